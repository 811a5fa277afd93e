//! Vectors of floats: one small trait, so that each loop is written once for all CPUs.
//!
//! The loops over [`Vector`] are inlined into functions that have the CPU features of the
//! implementation. [`Plain`] is for every CPU: compilers make vectors of it, but for picking.

use super::Sample;

/// Some floats in a register.
///
/// # Safety
/// Every function may only be called where the CPU has the implementation's features. Pointers must be
/// good for [`Vector::N`] elements, of [`Vector::window`] for [`Vector::WINDOW`] as long as it is used.
pub(super) trait Vector: Copy {
    /// Floats of a vector: 4, 8 or 16.
    const N: usize;
    /// Floats of a window.
    const WINDOW: usize;
    /// Whether another window is no more work than other places: windows then slide from tap to tap.
    const SLIDES: bool;
    /// Steps of a group where the way by rows still is the shorter, as measured (NEON: as AVX2).
    const MOST_STEPS: usize;
    /// Rows and columns that are transposed at once.
    const TILE: usize;
    /// Floats to pick from.
    type Window: Copy;
    /// For each of `N` floats, its place in a window.
    type Places: Copy;
    unsafe fn splat(value: f32) -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn from_bytes(from: *const u8) -> Self;
    unsafe fn from_words(from: *const u8) -> Self;
    #[inline(always)]
    unsafe fn from_samples<S: Sample>(from: *const u8) -> Self {
        // SAFETY: by the trait's contract.
        unsafe { if S::BYTES == 2 { Self::from_words(from) } else { Self::from_bytes(from) } }
    }
    unsafe fn store(self, to: *mut f32);
    /// `self * by + sum`
    unsafe fn multiply_add(self, by: Self, sum: Self) -> Self;
    /// [`super::to_byte_value`] of each.
    unsafe fn to_byte_value(self) -> Self;
    unsafe fn window(from: *const f32) -> Self::Window;
    unsafe fn places(from: *const u32) -> Self::Places;
    /// Each place one further.
    unsafe fn next(places: Self::Places) -> Self::Places;
    unsafe fn pick(window: Self::Window, places: Self::Places) -> Self;
    /// Turns a tile around; its rows are at the pitches, and good.
    unsafe fn transpose(from: *const f32, from_pitch: usize, to: *mut f32, to_pitch: usize);
}

/// Implements [`Vector`] for `$name`, all functions inlined and with the trait's contract.
macro_rules! vector {
    ($name:ident { $($item:tt)* } $(fn $function:ident $arguments:tt -> $result:ty $body:block)*) => {
        #[allow(unused_unsafe, reason = "some CPUs' intrinsics are safe functions, others' are not")]
        impl Vector for $name {
            $($item)*
            $(
                #[inline(always)]
                unsafe fn $function $arguments -> $result {
                    // SAFETY: the trait's contract gives the features and good pointers.
                    unsafe { $body }
                }
            )*
        }
    };
}

/// Floats for any CPU.
#[derive(Clone, Copy)]
pub(super) struct Plain([f32; 4]);

vector! {
    Plain {
        const N: usize = 4;
        const WINDOW: usize = 64;
        const SLIDES: bool = true;
        const MOST_STEPS: usize = 6;
        const TILE: usize = 4;
        type Window = *const f32;
        type Places = [u32; 4];
    }
    fn splat(value: f32) -> Self { Self([value; 4]) }
    fn load(from: *const f32) -> Self { Self(from.cast::<[f32; 4]>().read_unaligned()) }
    fn from_bytes(from: *const u8) -> Self { Self(from.cast::<[u8; 4]>().read().map(f32::from)) }
    fn from_words(from: *const u8) -> Self {
        Self(from.cast::<[[u8; 2]; 4]>().read().map(|word| f32::from(u16::from_le_bytes(word))))
    }
    fn store(self, to: *mut f32) -> () { to.cast::<[f32; 4]>().write_unaligned(self.0) }
    fn multiply_add(self, by: Self, sum: Self) -> Self {
        Self(std::array::from_fn(|i| super::multiply_add(self.0[i], by.0[i], sum.0[i])))
    }
    fn to_byte_value(self) -> Self { Self(self.0.map(super::to_byte_value)) }
    fn window(from: *const f32) -> *const f32 { from }
    fn places(from: *const u32) -> [u32; 4] { from.cast::<[u32; 4]>().read() }
    fn next(places: [u32; 4]) -> [u32; 4] { places.map(|place| place + 1) }
    fn pick(window: *const f32, places: [u32; 4]) -> Self {
        Self(places.map(|place| *window.add(place as usize)))
    }
    fn transpose(from: *const f32, from_pitch: usize, to: *mut f32, to_pitch: usize) -> () {
        let rows: [[f32; 4]; 4] =
            std::array::from_fn(|y| from.add(y * from_pitch).cast::<[f32; 4]>().read_unaligned());
        for x in 0..4 {
            to.add(x * to_pitch).cast::<[f32; 4]>().write_unaligned(rows.map(|row| row[x]));
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) use x86_64::{Avx2, Avx512};

#[cfg(target_arch = "x86_64")]
mod x86_64 {
    use super::Vector;
    use std::arch::x86_64::*;

    /// AVX2 with FMA.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx2(__m256);

    vector! {
        Avx2 {
            const N: usize = 8;
            const WINDOW: usize = 8;
            const SLIDES: bool = true;
            const MOST_STEPS: usize = 12;
            const TILE: usize = 8;
            type Window = __m256;
            type Places = __m256i;
        }
        fn splat(value: f32) -> Self { Self(_mm256_set1_ps(value)) }
        fn load(from: *const f32) -> Self { Self(_mm256_loadu_ps(from)) }
        fn from_bytes(from: *const u8) -> Self {
            Self(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from.cast()))))
        }
        fn from_words(from: *const u8) -> Self {
            Self(_mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(_mm_loadu_si128(from.cast()))))
        }
        fn store(self, to: *mut f32) -> () { _mm256_storeu_ps(to, self.0) }
        fn multiply_add(self, by: Self, sum: Self) -> Self { Self(_mm256_fmadd_ps(self.0, by.0, sum.0)) }
        fn to_byte_value(self) -> Self {
            let clamped = _mm256_min_ps(_mm256_max_ps(self.0, _mm256_setzero_ps()), _mm256_set1_ps(255.0));
            // As the plain form rounds: additions find more free ports than `_mm256_round_ps`.
            let whole = _mm256_set1_ps(crate::lanes::WHOLE);
            Self(_mm256_sub_ps(_mm256_add_ps(clamped, whole), whole))
        }
        fn window(from: *const f32) -> __m256 { _mm256_loadu_ps(from) }
        fn places(from: *const u32) -> __m256i { _mm256_loadu_si256(from.cast()) }
        fn next(places: __m256i) -> __m256i { _mm256_add_epi32(places, _mm256_set1_epi32(1)) }
        fn pick(window: __m256, places: __m256i) -> Self { Self(_mm256_permutevar8x32_ps(window, places)) }
        fn transpose(from: *const f32, from_pitch: usize, to: *mut f32, to_pitch: usize) -> () {
            transpose_8x8(from, from_pitch, to, to_pitch)
        }
    }

    /// AVX-512F.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Avx512(__m512);

    vector! {
        Avx512 {
            const N: usize = 16;
            const WINDOW: usize = 32;
            const SLIDES: bool = false;
            const MOST_STEPS: usize = 16;
            const TILE: usize = 8;
            type Window = [__m512; 2];
            type Places = __m512i;
        }
        fn splat(value: f32) -> Self { Self(_mm512_set1_ps(value)) }
        fn load(from: *const f32) -> Self { Self(_mm512_loadu_ps(from)) }
        fn from_bytes(from: *const u8) -> Self {
            Self(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()))))
        }
        fn from_words(from: *const u8) -> Self {
            Self(_mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()))))
        }
        fn store(self, to: *mut f32) -> () { _mm512_storeu_ps(to, self.0) }
        fn multiply_add(self, by: Self, sum: Self) -> Self { Self(_mm512_fmadd_ps(self.0, by.0, sum.0)) }
        fn to_byte_value(self) -> Self {
            let clamped = _mm512_min_ps(_mm512_max_ps(self.0, _mm512_setzero_ps()), _mm512_set1_ps(255.0));
            Self(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(clamped))
        }
        fn window(from: *const f32) -> [__m512; 2] { [_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16))] }
        fn places(from: *const u32) -> __m512i { _mm512_loadu_si512(from.cast()) }
        fn next(places: __m512i) -> __m512i { _mm512_add_epi32(places, _mm512_set1_epi32(1)) }
        fn pick(window: [__m512; 2], places: __m512i) -> Self {
            Self(_mm512_permutex2var_ps(window[0], places, window[1]))
        }
        fn transpose(from: *const f32, from_pitch: usize, to: *mut f32, to_pitch: usize) -> () {
            transpose_8x8(from, from_pitch, to, to_pitch)
        }
    }

    /// # Safety
    /// The CPU has AVX2; `from` and `to` point at eight rows of eight floats, `*_pitch` floats apart.
    #[target_feature(enable = "avx2")]
    unsafe fn transpose_8x8(from: *const f32, from_pitch: usize, to: *mut f32, to_pitch: usize) {
        // SAFETY: the caller gives eight readable rows.
        let rows: [__m256; 8] = std::array::from_fn(|i| unsafe { _mm256_loadu_ps(from.add(i * from_pitch)) });
        // Pairs of rows, then of pairs, then of halves: the usual three rounds.
        let pairs: [__m256; 8] = std::array::from_fn(|i| {
            let (a, b) = (rows[i / 2 * 2], rows[i / 2 * 2 + 1]);
            if i % 2 == 0 { _mm256_unpacklo_ps(a, b) } else { _mm256_unpackhi_ps(a, b) }
        });
        let fours: [__m256; 8] = std::array::from_fn(|i| {
            let (a, b) = (pairs[i / 4 * 4 + i % 4 / 2], pairs[i / 4 * 4 + i % 4 / 2 + 2]);
            if i % 2 == 0 { _mm256_shuffle_ps::<0x44>(a, b) } else { _mm256_shuffle_ps::<0xEE>(a, b) }
        });
        for i in 0..4 {
            let low = _mm256_permute2f128_ps::<0x20>(fours[i], fours[i + 4]);
            let high = _mm256_permute2f128_ps::<0x31>(fours[i], fours[i + 4]);
            // SAFETY: the caller gives eight writable rows.
            unsafe {
                _mm256_storeu_ps(to.add(i * to_pitch), low);
                _mm256_storeu_ps(to.add((i + 4) * to_pitch), high);
            }
        }
    }
}

#[cfg(target_arch = "aarch64")]
pub(super) use aarch64::Neon;

#[cfg(target_arch = "aarch64")]
mod aarch64 {
    use super::Vector;
    use std::arch::aarch64::*;

    /// NEON.
    #[derive(Clone, Copy)]
    pub(in super::super) struct Neon(float32x4_t);

    vector! {
        Neon {
            const N: usize = 4;
            const WINDOW: usize = 4;
            const SLIDES: bool = true;
            const MOST_STEPS: usize = 12;
            const TILE: usize = 4;
            type Window = uint8x16_t;
            type Places = uint8x16_t;
        }
        fn splat(value: f32) -> Self { Self(vdupq_n_f32(value)) }
        fn load(from: *const f32) -> Self { Self(vld1q_f32(from)) }
        fn from_bytes(from: *const u8) -> Self {
            // Four bytes, widened twice.
            let bytes = vcreate_u8(u64::from(from.cast::<u32>().read_unaligned()));
            Self(vcvtq_f32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes)))))
        }
        fn from_words(from: *const u8) -> Self {
            Self(vcvtq_f32_u32(vmovl_u16(vreinterpret_u16_u8(vld1_u8(from)))))
        }
        fn store(self, to: *mut f32) -> () { vst1q_f32(to, self.0) }
        fn multiply_add(self, by: Self, sum: Self) -> Self { Self(vfmaq_f32(sum.0, self.0, by.0)) }
        fn to_byte_value(self) -> Self {
            let clamped = vminq_f32(vmaxq_f32(self.0, vdupq_n_f32(0.0)), vdupq_n_f32(255.0));
            Self(vrndnq_f32(clamped))
        }
        fn window(from: *const f32) -> uint8x16_t { vreinterpretq_u8_f32(vld1q_f32(from)) }
        fn places(from: *const u32) -> uint8x16_t {
            // The four bytes of place p are 4p to 4p + 3.
            let first = vmulq_n_u32(vld1q_u32(from), 0x0404_0404);
            vreinterpretq_u8_u32(vaddq_u32(first, vdupq_n_u32(0x0302_0100)))
        }
        fn next(places: uint8x16_t) -> uint8x16_t { vaddq_u8(places, vdupq_n_u8(4)) }
        fn pick(window: uint8x16_t, places: uint8x16_t) -> Self {
            Self(vreinterpretq_f32_u8(vqtbl1q_u8(window, places)))
        }
        fn transpose(from: *const f32, from_pitch: usize, to: *mut f32, to_pitch: usize) -> () {
            let row = |y: usize| vld1q_f32(from.add(y * from_pitch));
            let (even, odd) = (vtrnq_f32(row(0), row(1)), vtrnq_f32(row(2), row(3)));
            let halves = |a, b| (vreinterpretq_f64_f32(a), vreinterpretq_f64_f32(b));
            let ((a, b), (c, d)) = (halves(even.0, odd.0), halves(even.1, odd.1));
            let columns = [vzip1q_f64(a, b), vzip1q_f64(c, d), vzip2q_f64(a, b), vzip2q_f64(c, d)];
            for (x, column) in columns.into_iter().enumerate() {
                vst1q_f32(to.add(x * to_pitch), vreinterpretq_f32_f64(column));
            }
        }
    }
}
