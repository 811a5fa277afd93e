//! The way by blocks of [`ROWS`] rows: weighed down, transposed, weighed across, converted.

use super::{Coefficients, Normalize, ROWS, Sample, Weights, vector::Vector};

/// [`super::Lanes::weigh_rows`].
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
pub(super) unsafe fn weigh_rows<V: Vector, S: Sample>(
    source: &[u8],
    stride: usize,
    weights: &[f32],
    out: &mut [f32],
) {
    let n = out.len();
    assert!(
        weights.len().saturating_sub(1) * stride + n * S::BYTES <= source.len(),
        "the rows are in the source"
    );
    // SAFETY: the assertion covers the last row and so all; the caller has the features.
    unsafe {
        if n >= V::N {
            let wide = n / (4 * V::N) * (4 * V::N);
            weigh_strips::<V, S, 4>(source, stride, weights, 0..wide, out);
            weigh_strips::<V, S, 1>(source, stride, weights, wide..n, out);
        } else {
            for (x, sum) in out.iter_mut().enumerate() {
                let samples = weights
                    .iter()
                    .enumerate()
                    .map(|(j, w)| S::read(&source[j * stride + x * S::BYTES..]) * w);
                *sum = samples.sum();
            }
        }
    }
}

/// [`weigh_rows`] of some columns in strips of `K` vectors; the last ends with the columns, and overlaps
/// what is before it where they do not divide.
///
/// # Safety
/// The CPU has the features of `V`; `source` has a row a weight, and `K` vectors end with the columns.
#[inline(always)]
unsafe fn weigh_strips<V: Vector, S: Sample, const K: usize>(
    source: &[u8],
    stride: usize,
    weights: &[f32],
    columns: std::ops::Range<usize>,
    out: &mut [f32],
) {
    let strip = K * V::N;
    for at in columns.clone().step_by(strip) {
        let at = at.min(columns.end - strip);
        // SAFETY: `at + strip` samples are in every row and in `out`; the caller has the features.
        unsafe {
            let mut sums = [V::splat(0.0); K];
            let mut from = source.as_ptr().wrapping_add(at * S::BYTES);
            for weight in weights {
                let weight = V::splat(*weight);
                for (k, sum) in sums.iter_mut().enumerate() {
                    *sum = V::from_samples::<S>(from.add(k * V::N * S::BYTES)).multiply_add(weight, *sum);
                }
                // One past the last row is never read; wrapping keeps the arithmetic itself defined.
                from = from.wrapping_add(stride);
            }
            for (k, sum) in sums.iter().enumerate() {
                sum.store(out.as_mut_ptr().add(at + k * V::N));
            }
        }
    }
}

/// [`super::Lanes::weigh_columns`].
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
pub(super) unsafe fn weigh_columns<V: Vector>(
    columns: &[f32],
    first: usize,
    weights: &Weights,
    out: &mut [f32],
) {
    for (i, out) in out.chunks_exact_mut(ROWS).take(weights.start.len()).enumerate() {
        let taps = weights.of(i);
        let columns = &columns[(weights.start[i] - first) * ROWS..][..taps.len() * ROWS];
        // SAFETY: `columns` has `ROWS` floats a tap and `out` as many; the caller has the features.
        unsafe {
            let mut sums = [V::splat(0.0); 4];
            for (column, weight) in columns.chunks_exact(ROWS).zip(taps) {
                let weight = V::splat(*weight);
                for (k, sum) in sums.iter_mut().take(ROWS / V::N).enumerate() {
                    *sum = V::load(column.as_ptr().add(k * V::N)).multiply_add(weight, *sum);
                }
            }
            for (k, sum) in sums.iter().take(ROWS / V::N).enumerate() {
                sum.store(out.as_mut_ptr().add(k * V::N));
            }
        }
    }
}

/// [`super::Lanes::yuv_to_rgb`].
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
pub(super) unsafe fn yuv_to_rgb<V: Vector>(
    y: &mut [f32],
    u: &mut [f32],
    v: &mut [f32],
    m: Coefficients,
    n: Normalize,
) {
    let (y, u, v) = (y.chunks_exact_mut(V::N), u.chunks_exact_mut(V::N), v.chunks_exact_mut(V::N));
    for ((y, u), v) in y.zip(u).zip(v) {
        // SAFETY: the slices are of `V::N` floats; the caller has the features.
        unsafe {
            let luma = V::load(y.as_ptr()).multiply_add(V::splat(m.luma), V::splat(-m.black * m.luma));
            let chroma =
                |from: &[f32]| V::load(from.as_ptr()).multiply_add(V::splat(1.0), V::splat(-m.centre));
            let [r, g, b] = to_rgb([luma, chroma(u), chroma(v)], m, n);
            r.store(y.as_mut_ptr());
            g.store(u.as_mut_ptr());
            b.store(v.as_mut_ptr());
        }
    }
}

/// Y, U and V samples to normalized R, G and B.
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
pub(super) unsafe fn to_rgb<V: Vector>([y, u, v]: [V; 3], m: Coefficients, n: Normalize) -> [V; 3] {
    // SAFETY: the caller has the features.
    unsafe {
        let r = v.multiply_add(V::splat(m.rv), y);
        let g = u.multiply_add(V::splat(m.gu), v.multiply_add(V::splat(m.gv), y));
        let b = u.multiply_add(V::splat(m.bu), y);
        let normal = |value: V, c: usize| {
            value.to_byte_value().multiply_add(V::splat(n.scale[c]), V::splat(n.bias[c]))
        };
        [normal(r, 0), normal(g, 1), normal(b, 2)]
    }
}

/// [`super::Lanes::level`].
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
pub(super) unsafe fn level<V: Vector>(values: &mut [f32], black: f32, gain: f32, scale: f32, bias: f32) {
    for values in values.chunks_exact_mut(V::N) {
        // SAFETY: the slice is of `V::N` floats; the caller has the features.
        unsafe {
            let value = V::load(values.as_ptr()).multiply_add(V::splat(gain), V::splat(-black * gain));
            value.to_byte_value().multiply_add(V::splat(scale), V::splat(bias)).store(values.as_mut_ptr());
        }
    }
}

/// [`super::Lanes::transpose`].
///
/// # Safety
/// The CPU has the features of `V`.
#[inline(always)]
pub(super) unsafe fn transpose<V: Vector>(
    from: &[f32],
    from_pitch: usize,
    (down, across): (usize, usize),
    to: &mut [f32],
    to_pitch: usize,
) {
    let tile = V::TILE;
    let (whole_down, whole_across) = (down / tile * tile, across / tile * tile);
    for y in (0..whole_down).step_by(tile) {
        for x in (0..whole_across).step_by(tile) {
            let from = &from[y * from_pitch + x..(y + tile - 1) * from_pitch + x + tile];
            let to = &mut to[x * to_pitch + y..(x + tile - 1) * to_pitch + y + tile];
            // SAFETY: both slices hold a tile at their pitch; the caller has the features.
            unsafe { V::transpose(from.as_ptr(), from_pitch, to.as_mut_ptr(), to_pitch) };
        }
    }
    for y in 0..down {
        let done = if y < whole_down { whole_across } else { 0 };
        for x in done..across {
            to[x * to_pitch + y] = from[y * from_pitch + x];
        }
    }
}
