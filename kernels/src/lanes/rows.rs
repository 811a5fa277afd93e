//! The way by rows, without transposing, for pictures that shrink little.
//!
//! Neighbouring outputs of a slight resize draw on neighbouring samples: a window of them is loaded, and
//! one permutation a tap brings each output its sample. Where a window is as wide as a vector
//! ([`Vector::SLIDES`]), the next tap is the same permutation of the window one sample on. Rows are
//! weighed across first, which for chroma, having half the rows, is half the work; then down, where the
//! three components meet in registers, turn into colours and are stored for good.

use super::{Coefficients, Lanes, Normalize, Sample, Weights, blocks::to_rgb, vector::Vector};
use crate::aligned::AlignedFloats;

/// What a [`Vector`] takes of an output row at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Grouping {
    outputs: usize,
    window: usize,
    slides: bool,
    most_steps: usize,
}

impl Grouping {
    pub(super) fn of<V: Vector>() -> Self {
        Self { outputs: V::N, window: V::WINDOW, slides: V::SLIDES, most_steps: V::MOST_STEPS }
    }
}

/// Weights of an axis for groups of as many outputs as a vector has floats.
#[derive(Clone, Debug)]
pub struct GroupedWeights {
    grouping: Grouping,
    groups: Vec<Group>,
    /// Of all groups in turn: a vector a step.
    weights: AlignedFloats,
    /// First sample that any output draws on.
    first: usize,
    /// Samples from there to the last.
    n: usize,
    /// Floats from there to the end of the last window.
    reach: usize,
}

/// Outputs weighed together, a tap of each at every step.
#[derive(Clone, Debug)]
struct Group {
    /// Where the first window starts, from the first sample.
    start: usize,
    /// For each output, its place in the first window.
    places: [u32; 16],
    /// First and end of its floats in `weights`.
    weights: (usize, usize),
}

impl GroupedWeights {
    /// The weights times `gain`; `None` where the way by blocks is better.
    pub fn new(weights: &Weights, gain: f32, lanes: Lanes) -> Option<Self> {
        let grouping = lanes.grouping();
        let n = weights.start.len();
        let first = *weights.start.iter().min()?;
        let end = weights.start.iter().max()? + weights.width;
        let (mut groups, mut values, mut reach) = (Vec::new(), Vec::new(), 0);
        for output in (0..n).step_by(grouping.outputs) {
            // A last group that is not full repeats its last output.
            let outputs = (output..output + grouping.outputs).map(|o| o.min(n - 1));
            let start = outputs.clone().map(|o| weights.start[o]).min()?;
            let place = |o: usize| (weights.start[o] - start).min(grouping.window - 1);
            // An output too far for the first window waits for the one whose end has its first sample.
            let wait = |o: usize| weights.start[o] - start - place(o);
            let n_steps = outputs.clone().map(|o| wait(o) + weights.of(o).len()).max()?;
            let last_place = outputs.clone().map(place).max()?;
            let fits = grouping.slides || last_place + n_steps <= grouping.window;
            if n_steps > grouping.most_steps || !fits {
                return None;
            }
            let mut places = [0; 16];
            let from = values.len();
            values.resize(from + n_steps * grouping.outputs, 0.0);
            for (i, o) in outputs.enumerate() {
                places[i] = place(o) as u32;
                for (tap, weight) in weights.of(o).iter().enumerate() {
                    values[from + (wait(o) + tap) * grouping.outputs + i] = weight * gain;
                }
            }
            groups.push(Group { start: start - first, places, weights: (from, values.len()) });
            reach = reach.max(start - first + n_steps + grouping.window);
        }
        let mut aligned = AlignedFloats::zeroed(values.len());
        aligned.floats_mut()[..values.len()].copy_from_slice(&values);
        Some(Self { grouping, groups, weights: aligned, first, n: end - first, reach })
    }

    /// Floats of an output row: whole groups, and whole cache lines.
    pub fn padded_len(&self) -> usize {
        (self.groups.len() * self.grouping.outputs).next_multiple_of(16)
    }
}

/// Rows weighed across together: they share the loads of places and weights.
pub const TOGETHER: usize = 4;

/// [`Lanes::weigh_across`].
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
pub(super) unsafe fn weigh_across<V: Vector, S: Sample>(
    source: &[u8],
    stride: usize,
    floats: &mut AlignedFloats,
    weights: &GroupedWeights,
    out: &mut [f32],
) {
    // SAFETY: the caller has the features.
    unsafe {
        if out.len() == TOGETHER * weights.padded_len() {
            weigh_rows_across::<V, S, TOGETHER>(source, stride, floats, weights, out);
        } else {
            for (r, out) in out.chunks_exact_mut(weights.padded_len()).enumerate() {
                weigh_rows_across::<V, S, 1>(&source[r * stride..], stride, floats, weights, out);
            }
        }
    }
}

/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn weigh_rows_across<V: Vector, S: Sample, const R: usize>(
    source: &[u8],
    stride: usize,
    floats: &mut AlignedFloats,
    weights: &GroupedWeights,
    out: &mut [f32],
) {
    let (first, n) = (weights.first, weights.n);
    let pitch = weights.reach.max(n).next_multiple_of(16);
    let floats = floats.sized(R * pitch);
    for r in 0..R {
        let row = &source[r * stride + first * S::BYTES..][..n * S::BYTES];
        // SAFETY: the caller has the features.
        unsafe { to_floats::<V, S>(row, &mut floats[r * pitch..][..n]) };
    }
    let out_pitch = weights.padded_len();
    assert!(out.len() == R * out_pitch && weights.grouping == Grouping::of::<V>());
    let values = weights.weights.floats();
    for (i, group) in weights.groups.iter().enumerate() {
        let values = &values[group.weights.0..group.weights.1];
        // SAFETY: windows end inside `weights.reach` and so inside their row of `floats`; `places` holds
        // at least a vector; every row of `out` has a vector a group; the caller has the features.
        unsafe {
            let mut places = V::places(group.places.as_ptr());
            let mut from = floats.as_ptr().add(group.start);
            let mut windows: [V::Window; R] = std::array::from_fn(|r| V::window(from.add(r * pitch)));
            let mut sums = [V::splat(0.0); R];
            for weights in values.chunks_exact(V::N) {
                let weights = V::load(weights.as_ptr());
                for (r, sum) in sums.iter_mut().enumerate() {
                    if V::SLIDES {
                        windows[r] = V::window(from.add(r * pitch));
                    }
                    *sum = V::pick(windows[r], places).multiply_add(weights, *sum);
                }
                if V::SLIDES {
                    from = from.add(1);
                } else {
                    places = V::next(places);
                }
            }
            for (r, sum) in sums.iter().enumerate() {
                sum.store(out.as_mut_ptr().add(r * out_pitch + i * V::N));
            }
        }
    }
}

/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
unsafe fn to_floats<V: Vector, S: Sample>(row: &[u8], floats: &mut [f32]) {
    let mut floats = floats.chunks_exact_mut(V::N);
    let mut samples = row.chunks_exact(V::N * S::BYTES);
    for (floats, samples) in floats.by_ref().zip(samples.by_ref()) {
        // SAFETY: `V::N` samples and floats; the caller has the features.
        unsafe { V::from_samples::<S>(samples.as_ptr()).store(floats.as_mut_ptr()) };
    }
    for (float, sample) in floats.into_remainder().iter_mut().zip(samples.remainder().chunks_exact(S::BYTES))
    {
        *float = S::read(sample);
    }
}

/// One component of [`Lanes::rgb_row`]: rows weighed across, from the first that the output row draws
/// on.
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
    /// Sums of `K` vectors of columns from `x`.
    ///
    /// # Safety
    /// The CPU has the features of `V`; every row has `K` vectors from `x`.
    #[inline(always)]
    unsafe fn weigh<V: Vector, const K: usize>(&self, x: usize, start: f32) -> [V; K] {
        let mut from = self.floats.as_ptr().wrapping_add(x);
        // SAFETY: by the function's contract.
        unsafe {
            let mut sums = [V::splat(start); K];
            for weight in self.weights {
                let weight = V::splat(*weight);
                for (k, sum) in sums.iter_mut().enumerate() {
                    *sum = V::load(from.add(k * V::N)).multiply_add(weight, *sum);
                }
                from = from.wrapping_add(self.pitch);
            }
            sums
        }
    }
}

/// [`Lanes::rgb_row`].
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
pub(super) unsafe fn rgb_row<V: Vector>(
    yuv: [Rows<'_>; 3],
    m: Coefficients,
    n: Normalize,
    mut rgb: [&mut [f32]; 3],
) {
    let width = rgb[0].len();
    for rows in &yuv {
        let last = rows.weights.len().saturating_sub(1) * rows.pitch;
        assert!(rows.floats.len() >= last + width.next_multiple_of(V::N), "the rows hold whole vectors");
    }
    assert!(rgb.iter().all(|colour| colour.len() == width));
    let mut x = 0;
    // SAFETY: the rows hold whole vectors by the assertion above, and `ends` one; a colour has `width` floats.
    unsafe {
        // More columns at once share more of the loads of weights. With AVX-512, four vectors were slower.
        while x + 4 * V::N <= width && V::N < 16 {
            rgb_columns::<V, 4>(&yuv, x, m, n, rgb.each_mut().map(|colour| colour.as_mut_ptr().add(x)));
            x += 4 * V::N;
        }
        while x + 2 * V::N <= width {
            rgb_columns::<V, 2>(&yuv, x, m, n, rgb.each_mut().map(|colour| colour.as_mut_ptr().add(x)));
            x += 2 * V::N;
        }
        while x < width {
            let left = (width - x).min(V::N);
            let mut ends = [[0f32; 16]; 3];
            rgb_columns::<V, 1>(&yuv, x, m, n, ends.each_mut().map(|end| end.as_mut_ptr()));
            for (colour, end) in rgb.iter_mut().zip(&ends) {
                colour[x..x + left].copy_from_slice(&end[..left]);
            }
            x += left;
        }
    }
}

/// `K` vectors of columns of [`rgb_row`] from `x`.
///
/// # Safety
/// The CPU has the features of `V`; the rows have `K` vectors from `x`, and `to` is good for as many.
#[inline(always)]
unsafe fn rgb_columns<V: Vector, const K: usize>(
    yuv: &[Rows<'_>; 3],
    x: usize,
    m: Coefficients,
    n: Normalize,
    to: [*mut f32; 3],
) {
    // SAFETY: by the function's contract.
    unsafe {
        let [y, u, v]: [[V; K]; 3] =
            [yuv[0].weigh(x, -m.black * m.luma), yuv[1].weigh(x, -m.centre), yuv[2].weigh(x, -m.centre)];
        for k in 0..K {
            for (colour, to) in to_rgb([y[k], u[k], v[k]], m, n).into_iter().zip(to) {
                colour.store(to.add(k * V::N));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        lanes::{Byte, Word},
        resample::{Axis, Filter, Taps},
    };

    fn taps(luma_len: usize, resized_len: usize) -> Taps {
        Taps::new(Axis { luma_len, resized_len, crop_start: 1, crop_len: resized_len - 1 }, Filter::Bicubic)
    }

    fn check<S: Sample>(taps: &Taps, samples: &[u8], stride: usize, lanes: Lanes) {
        let weights = GroupedWeights::new(&taps.clone().into(), 0.5, lanes).expect("a slight resize");
        let pitch = weights.padded_len();
        for n_rows in [TOGETHER, 2] {
            let mut out = vec![f32::NAN; n_rows * pitch];
            lanes.weigh_across::<S>(samples, stride, &mut AlignedFloats::default(), &weights, &mut out);
            for (row, out) in out.chunks_exact(pitch).enumerate() {
                for (i, start) in taps.start.iter().enumerate() {
                    let sample = |j: usize| S::read(&samples[row * stride + (start + j) * S::BYTES..]);
                    let products = taps.weights[i * taps.width..][..taps.width]
                        .iter()
                        .enumerate()
                        .map(|(j, w)| w * f64::from(sample(j)));
                    let want = 0.5 * products.sum::<f64>();
                    let off = (f64::from(out[i]) - want).abs();
                    let top = f64::from(1u32 << (8 * S::BYTES));
                    assert!(off < 1e-6 * top, "{lanes:?} {i}: {} {want}", out[i]);
                }
            }
        }
    }

    #[test]
    fn every_slight_resize_across_is_what_the_weights_say() {
        let samples: Vec<u8> = (0..4 * 500u32).map(|i| (i.wrapping_mul(i * 40_503) >> 7) as u8).collect();
        for lanes in Lanes::all() {
            for (luma_len, resized_len) in [(240, 224), (120, 224), (31, 32), (5, 90), (100, 97), (2, 3)] {
                let taps = taps(luma_len, resized_len);
                check::<Byte>(&taps, &samples, 250, lanes);
                check::<Word>(&taps, &samples, 500, lanes);
            }
        }
    }

    #[test]
    fn a_large_shrink_goes_by_blocks() {
        for lanes in Lanes::all() {
            assert!(GroupedWeights::new(&taps(720, 224).into(), 1.0, lanes).is_none(), "{lanes:?}");
        }
    }
}
