//! Resizing row by row, without transposing: AVX-512 only, for pictures that hardly shrink.
//!
//! Sixteen neighbouring outputs of a slight resize draw on at most 32 neighbouring samples, so two
//! registers hold them all and one permutation a tap brings each output its sample. Rows are weighed
//! across first, which for chroma, having half the rows, is half the work; then down, where the
//! three components meet in registers, turn into colours and are stored for good.

use std::arch::x86_64::*;

use super::{Coefficients, Normalize, Sample, Weights};
use crate::aligned::AlignedFloats;

/// Samples that two registers hold.
const WINDOW: usize = 32;

/// Weights of an axis for groups of sixteen outputs.
#[derive(Clone, Debug)]
pub struct GroupedWeights {
    /// First sample of each group's window.
    bases: Vec<usize>,
    /// Taps of every output.
    width: usize,
    /// `groups × width` taps.
    taps: Vec<Tap>,
}

/// For each of sixteen outputs, a place in the window and its weight.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Tap {
    places: [i32; 16],
    weights: [f32; 16],
}

impl GroupedWeights {
    /// `None` if some group needs more samples than a window holds.
    pub fn new(weights: &Weights) -> Option<Self> {
        let n = weights.start.len();
        let mut grouped = Self { bases: Vec::new(), width: weights.width, taps: Vec::new() };
        for first in (0..n).step_by(16) {
            // A last group that is not full repeats its last output.
            let outputs: [usize; 16] = std::array::from_fn(|i| (first + i).min(n - 1));
            let base = outputs.iter().map(|o| weights.start[*o]).min()?;
            let last = outputs.iter().map(|o| weights.start[*o] + weights.width).max()?;
            if last - base > WINDOW {
                return None;
            }
            grouped.bases.push(base);
            for tap in 0..weights.width {
                grouped.taps.push(Tap {
                    places: outputs.map(|o| (weights.start[o] + tap - base) as i32),
                    weights: outputs.map(|o| weights.of(o)[tap]),
                });
            }
        }
        Some(grouped)
    }

    /// Floats of an output row: whole groups.
    pub fn padded_len(&self) -> usize {
        self.bases.len() * 16
    }
}

/// Rows weighed across together: they share the loads of places and weights.
pub const TOGETHER: usize = 4;

/// Weighs rows of `n` samples across: row `r` is at `r * stride` in `source`, its
/// [`GroupedWeights::padded_len`] floats go to row `r` of `out`, for the whole rows that `out` has, at
/// most [`TOGETHER`]. `floats` is scratch.
///
/// # Safety
/// The CPU has AVX-512F.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn weigh_across<S: Sample>(
    source: &[u8],
    stride: usize,
    n: usize,
    floats: &mut AlignedFloats,
    weights: &GroupedWeights,
    out: &mut [f32],
) {
    // SAFETY: this function has the features.
    unsafe {
        if out.len() == TOGETHER * weights.padded_len() {
            weigh_rows_across::<S, TOGETHER>(source, stride, n, floats, weights, out);
        } else {
            for (r, out) in out.chunks_exact_mut(weights.padded_len()).enumerate() {
                weigh_rows_across::<S, 1>(&source[r * stride..], stride, n, floats, weights, out);
            }
        }
    }
}

/// # Safety
/// The CPU has AVX-512F.
#[target_feature(enable = "avx512f")]
unsafe fn weigh_rows_across<S: Sample, const R: usize>(
    source: &[u8],
    stride: usize,
    n: usize,
    floats: &mut AlignedFloats,
    weights: &GroupedWeights,
    out: &mut [f32],
) {
    let pitch = (n + WINDOW).next_multiple_of(16);
    let floats = floats.sized(R * pitch);
    for r in 0..R {
        let row = &source[r * stride..][..n * S::BYTES];
        // SAFETY: this function has the features.
        unsafe { to_floats::<S>(row, &mut floats[r * pitch..][..n]) };
    }
    let out_pitch = weights.padded_len();
    assert!(out.len() == R * out_pitch && weights.bases.iter().all(|b| *b <= n));
    for (group, (base, taps)) in
        weights.bases.iter().zip(weights.taps.chunks_exact(weights.width)).enumerate()
    {
        // SAFETY: a window starts at most at `n` and so ends inside its row of `floats`; the arrays
        // hold sixteen elements; every row of `out` has sixteen floats a group.
        unsafe {
            let windows: [[__m512; 2]; R] = std::array::from_fn(|r| {
                let window = floats.as_ptr().add(r * pitch + base);
                [_mm512_loadu_ps(window), _mm512_loadu_ps(window.add(16))]
            });
            let mut sums = [_mm512_setzero_ps(); R];
            for tap in taps {
                let places = _mm512_load_si512(tap.places.as_ptr().cast());
                let weights = _mm512_load_ps(tap.weights.as_ptr());
                for (sum, [low, high]) in sums.iter_mut().zip(&windows) {
                    *sum = _mm512_fmadd_ps(_mm512_permutex2var_ps(*low, places, *high), weights, *sum);
                }
            }
            for (r, sum) in sums.iter().enumerate() {
                _mm512_storeu_ps(out.as_mut_ptr().add(r * out_pitch + group * 16), *sum);
            }
        }
    }
}

/// # Safety
/// The CPU has AVX-512F.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn to_floats<S: Sample>(row: &[u8], floats: &mut [f32]) {
    let whole = floats.len() / 16 * 16;
    for at in (0..whole).step_by(16) {
        let from = row[at * S::BYTES..(at + 16) * S::BYTES].as_ptr();
        // SAFETY: sixteen samples are at `from`, and `floats` has sixteen from `at`.
        unsafe {
            let wide = if S::BYTES == 2 {
                _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()))
            } else {
                _mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast()))
            };
            _mm512_storeu_ps(floats.as_mut_ptr().add(at), _mm512_cvtepi32_ps(wide));
        }
    }
    for (float, sample) in floats[whole..].iter_mut().zip(row[whole * S::BYTES..].chunks_exact(S::BYTES)) {
        *float = S::read(sample);
    }
}

/// One component of [`rgb_row`]: rows weighed across, from the first that the output row draws on.
#[derive(Clone, Copy)]
pub struct Rows<'a> {
    /// The rows, `pitch` floats apart.
    pub floats: &'a [f32],
    /// Floats from row to row.
    pub pitch: usize,
    /// A weight a row.
    pub weights: &'a [f32],
}

impl Rows<'_> {
    /// Sums of sixteen columns from `x`, and of sixteen more.
    ///
    /// # Safety
    /// The CPU has AVX-512F; every row has `16 * N` floats from `x`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn weigh<const N: usize>(&self, x: usize) -> [__m512; N] {
        let mut from = self.floats.as_ptr().wrapping_add(x);
        let mut sums = [_mm512_setzero_ps(); N];
        for weight in self.weights {
            let weight = _mm512_set1_ps(*weight);
            for (i, sum) in sums.iter_mut().enumerate() {
                // SAFETY: by the function's contract.
                let samples = unsafe { _mm512_loadu_ps(from.add(16 * i)) };
                *sum = _mm512_fmadd_ps(samples, weight, *sum);
            }
            from = from.wrapping_add(self.pitch);
        }
        sums
    }
}

/// Weighs the rows of Y, U and V down and writes one row of normalized red, green and blue.
///
/// # Safety
/// The CPU has AVX-512F.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn rgb_row(yuv: [Rows<'_>; 3], m: Coefficients, n: Normalize, rgb: [&mut [f32]; 3]) {
    let width = rgb[0].len();
    for rows in &yuv {
        let last = rows.weights.len().saturating_sub(1) * rows.pitch;
        assert!(rows.floats.len() >= last + width.next_multiple_of(16), "the rows hold whole groups");
    }
    let mut rgb = rgb;
    assert!(rgb.iter().all(|colour| colour.len() == width));
    let mut x = 0;
    // SAFETY: the rows hold whole groups by the assertion above, and a colour `width` floats.
    unsafe {
        while x + 32 <= width {
            rgb_columns::<2>(&yuv, m, n, x, [!0; 2], &mut rgb);
            x += 32;
        }
        while x < width {
            let left = (width - x).min(16);
            rgb_columns::<1>(&yuv, m, n, x, [((1u32 << left) - 1) as __mmask16], &mut rgb);
            x += 16;
        }
    }
}

/// `N` groups of sixteen columns of [`rgb_row`], stored where the masks say.
///
/// # Safety
/// The CPU has AVX-512F; the rows have `16 * N` floats from `x`, the colours as many as are masked.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn rgb_columns<const N: usize>(
    yuv: &[Rows<'_>; 3],
    m: Coefficients,
    n: Normalize,
    x: usize,
    masks: [__mmask16; N],
    rgb: &mut [&mut [f32]; 3],
) {
    // SAFETY: by the function's contract.
    let [y, u, v] = unsafe { [yuv[0].weigh::<N>(x), yuv[1].weigh::<N>(x), yuv[2].weigh::<N>(x)] };
    // The sample values of black and of no colour are taken off once a colour, not once a component.
    let off = -m.black * m.luma;
    let (off_red, off_blue) = (off - m.rv * m.centre, off - m.bu * m.centre);
    let off_green = off - (m.gu + m.gv) * m.centre;
    for i in 0..N {
        let from_luma = |off: f32| _mm512_fmadd_ps(y[i], _mm512_set1_ps(m.luma), _mm512_set1_ps(off));
        let r = _mm512_fmadd_ps(_mm512_set1_ps(m.rv), v[i], from_luma(off_red));
        let g = _mm512_fmadd_ps(_mm512_set1_ps(m.gv), v[i], from_luma(off_green));
        let g = _mm512_fmadd_ps(_mm512_set1_ps(m.gu), u[i], g);
        let b = _mm512_fmadd_ps(_mm512_set1_ps(m.bu), u[i], from_luma(off_blue));
        for (colour, value) in [r, g, b].into_iter().enumerate() {
            let value = _mm512_min_ps(_mm512_max_ps(value, _mm512_setzero_ps()), _mm512_set1_ps(255.0));
            // Imm 8: to the nearest whole number, ties to even, no exceptions.
            let value = _mm512_roundscale_ps::<8>(value);
            let value =
                _mm512_fmadd_ps(value, _mm512_set1_ps(n.scale[colour]), _mm512_set1_ps(n.bias[colour]));
            // SAFETY: by the function's contract.
            unsafe { _mm512_mask_storeu_ps(rgb[colour].as_mut_ptr().add(x + 16 * i), masks[i], value) };
        }
    }
}
