//! Sixteen floats in registers, for the two loops that autovectorization leaves slow.
//!
//! The loops are written once over [`Sixteen`] and inlined into a function that has the CPU features
//! of the implementation. All of it is for x86-64; elsewhere the portable loops serve.

use std::arch::x86_64::*;

use super::Weights;

/// Sixteen floats.
///
/// # Safety
/// Every function may only be called where the CPU has the implementation's features. Pointers must
/// be good for sixteen elements.
pub(super) trait Sixteen: Copy {
    /// One float, sixteen times.
    type Splat: Copy;
    unsafe fn zero() -> Self;
    unsafe fn splat(value: f32) -> Self::Splat;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn from_bytes(from: *const u8) -> Self;
    unsafe fn from_words(from: *const u8) -> Self;
    unsafe fn store(self, to: *mut f32);
    /// `self * weight + sum`
    unsafe fn multiply_add(self, weight: Self::Splat, sum: Self) -> Self;
}

/// Two registers of AVX2, with FMA.
#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256, __m256);

// SAFETY (all functions below): the trait's contract gives the features and sixteen good elements.
impl Sixteen for Avx2 {
    type Splat = __m256;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: by the trait's contract.
        unsafe { Self(_mm256_setzero_ps(), _mm256_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m256 {
        // SAFETY: by the trait's contract.
        unsafe { _mm256_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: by the trait's contract.
        unsafe { Self(_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))) }
    }

    #[inline(always)]
    unsafe fn from_bytes(from: *const u8) -> Self {
        // SAFETY: by the trait's contract.
        unsafe {
            let bytes = _mm_loadu_si128(from.cast());
            let (low, high) = (_mm256_cvtepu8_epi32(bytes), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(bytes)));
            Self(_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        }
    }

    #[inline(always)]
    unsafe fn from_words(from: *const u8) -> Self {
        // SAFETY: by the trait's contract.
        unsafe {
            let (low, high) = (_mm_loadu_si128(from.cast()), _mm_loadu_si128(from.add(16).cast()));
            Self(
                _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(low)),
                _mm256_cvtepi32_ps(_mm256_cvtepu16_epi32(high)),
            )
        }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: by the trait's contract.
        unsafe {
            _mm256_storeu_ps(to, self.0);
            _mm256_storeu_ps(to.add(8), self.1);
        }
    }

    #[inline(always)]
    unsafe fn multiply_add(self, weight: __m256, sum: Self) -> Self {
        // SAFETY: by the trait's contract.
        unsafe { Self(_mm256_fmadd_ps(self.0, weight, sum.0), _mm256_fmadd_ps(self.1, weight, sum.1)) }
    }
}

/// One register of AVX-512.
#[derive(Clone, Copy)]
pub(super) struct Avx512(__m512);

impl Sixteen for Avx512 {
    type Splat = __m512;

    #[inline(always)]
    unsafe fn zero() -> Self {
        // SAFETY: by the trait's contract.
        unsafe { Self(_mm512_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn splat(value: f32) -> __m512 {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_set1_ps(value) }
    }

    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: by the trait's contract.
        unsafe { Self(_mm512_loadu_ps(from)) }
    }

    #[inline(always)]
    unsafe fn from_bytes(from: *const u8) -> Self {
        // SAFETY: by the trait's contract.
        unsafe { Self(_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())))) }
    }

    #[inline(always)]
    unsafe fn from_words(from: *const u8) -> Self {
        // SAFETY: by the trait's contract.
        unsafe { Self(_mm512_cvtepi32_ps(_mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast())))) }
    }

    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: by the trait's contract.
        unsafe { _mm512_storeu_ps(to, self.0) }
    }

    #[inline(always)]
    unsafe fn multiply_add(self, weight: __m512, sum: Self) -> Self {
        // SAFETY: by the trait's contract.
        unsafe { Self(_mm512_fmadd_ps(self.0, weight, sum.0)) }
    }
}

/// [`super::Lanes::weigh_rows`] in groups of sixteen, the last of which overlaps its predecessor;
/// returns how many samples that did: none of fewer than sixteen. `WORDS` tells two-byte samples.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
pub(super) unsafe fn weigh_rows<V: Sixteen, const WORDS: bool>(
    source: &[u8],
    stride: usize,
    weights: &[f32],
    out: &mut [f32],
) -> usize {
    let sample_bytes = if WORDS { 2 } else { 1 };
    let n = out.len();
    if n < 16 || weights.is_empty() {
        return 0;
    }
    assert!((weights.len() - 1) * stride + n * sample_bytes <= source.len(), "the rows are in the source");
    for at in (0..n).step_by(16) {
        let at = at.min(n - 16);
        // SAFETY: `at + 16 <= n`, the assertion covers the last row, and so all; `out` has `n`
        // floats; the caller has the features.
        unsafe {
            let mut sum = V::zero();
            let mut from = source.as_ptr().add(at * sample_bytes);
            for weight in weights {
                let samples = if WORDS { V::from_words(from) } else { V::from_bytes(from) };
                sum = samples.multiply_add(V::splat(*weight), sum);
                // One past the last row is never read; wrapping keeps the arithmetic itself defined.
                from = from.wrapping_add(stride);
            }
            sum.store(out.as_mut_ptr().add(at));
        }
    }
    n
}

/// [`super::Lanes::weigh_columns`].
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
pub(super) unsafe fn weigh_columns<V: Sixteen>(
    columns: &[f32],
    first: usize,
    weights: &Weights,
    out: &mut [f32],
) {
    for (i, out) in out.chunks_exact_mut(16).take(weights.start.len()).enumerate() {
        let taps = weights.of(i);
        let columns = &columns[(weights.start[i] - first) * 16..][..taps.len() * 16];
        // SAFETY: `columns` has sixteen floats a tap and `out` sixteen; the caller has the features.
        unsafe {
            let mut sum = V::zero();
            let mut from = columns.as_ptr();
            for weight in taps {
                sum = V::load(from).multiply_add(V::splat(*weight), sum);
                from = from.wrapping_add(16);
            }
            sum.store(out.as_mut_ptr());
        }
    }
}
