//! Antialiased filter weights, by Pillow's definition.
//!
//! An output sample is a weighted sum of the source samples under a kernel that is stretched by the
//! scale when shrinking, so that no source sample is skipped. Weights are computed in double
//! precision and cut to single.

/// The interpolation kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Filter {
    /// Triangle, support 1.
    Bilinear,
    /// Keys' cubic with a = −0.5, support 2: Pillow's and PyTorch's antialiased bicubic.
    Bicubic,
}

impl Filter {
    fn support(self) -> f64 {
        match self {
            Filter::Bilinear => 1.0,
            Filter::Bicubic => 2.0,
        }
    }

    /// The kernel's value at distance `x`, in source samples when enlarging.
    fn at(self, x: f64) -> f64 {
        const A: f64 = -0.5;
        let x = x.abs();
        match self {
            Filter::Bilinear if x < 1.0 => 1.0 - x,
            Filter::Bicubic if x < 1.0 => ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0,
            Filter::Bicubic if x < 2.0 => (((x - 5.0) * x + 8.0) * x - 4.0) * A,
            _ => 0.0,
        }
    }
}

/// One axis of a resize: which source samples make the kept output samples.
#[derive(Clone, Copy, Debug)]
pub struct Axis {
    /// Luma samples of the source.
    pub luma_len: usize,
    /// Samples of the resized picture, before the crop.
    pub resized_len: usize,
    /// First kept output sample.
    pub crop_start: usize,
    /// Kept output samples.
    pub crop_len: usize,
}

/// Weights of an axis for one plane: output `i` is the sum over `j < width` of
/// `weights[i * width + j] * source[start[i] + j]`.
#[derive(Clone, Debug)]
pub struct Taps {
    /// First source sample of each output sample.
    pub start: Vec<usize>,
    /// Source samples per output sample, the same for all; surplus ones weigh nothing.
    pub width: usize,
    /// `start.len() * width` weights; those of one output sum to 1.
    pub weights: Vec<f64>,
}

impl Taps {
    /// Weights over a plane with `plane_len` samples, one for every `1 << subsampling` luma samples,
    /// sitting on the first of them when `cosited`, else in their middle.
    pub fn new(axis: Axis, filter: Filter, plane_len: usize, subsampling: u8, cosited: bool) -> Self {
        let planes_per_luma = 1.0 / f64::from(1u32 << subsampling);
        let shift = if cosited { 0.5 * (1.0 - planes_per_luma) } else { 0.0 };
        let scale = axis.luma_len as f64 / axis.resized_len as f64 * planes_per_luma;
        let stretch = scale.max(1.0);
        let reach = filter.support() * stretch;
        let centre = |i: usize| ((axis.crop_start + i) as f64 + 0.5) * scale + shift;
        // Pillow's rounding of the window's ends.
        let window = |i: usize| {
            let low = (centre(i) - reach + 0.5).max(0.0) as usize;
            let high = ((centre(i) + reach + 0.5).max(0.0) as usize).min(plane_len);
            let low = low.min(plane_len - 1);
            (low, high.max(low + 1))
        };
        let mut outputs = Vec::with_capacity(axis.crop_len);
        for i in 0..axis.crop_len {
            let (low, high) = window(i);
            let weights = (low..high).map(|p| filter.at((p as f64 + 0.5 - centre(i)) / stretch));
            let mut weights: Vec<f64> = weights.collect();
            let sum: f64 = weights.iter().sum();
            weights.iter_mut().for_each(|w| *w /= sum);
            // The window's ends are generous; a sample that weighs nothing need not be read.
            let skipped = weights.iter().take_while(|w| **w == 0.0).count();
            let end = weights.iter().rposition(|w| *w != 0.0).map_or(skipped + 1, |last| last + 1);
            outputs.push((low + skipped, weights[skipped..end].to_vec()));
        }
        let width = outputs.iter().map(|(_, w)| w.len()).max().unwrap_or(1);
        let mut taps = Taps { start: Vec::new(), width, weights: Vec::new() };
        for (low, weights) in outputs {
            let start = low.min(plane_len - width);
            let before = low - start;
            taps.start.push(start);
            taps.weights.extend(std::iter::repeat_n(0.0, before));
            let after = width - before - weights.len();
            taps.weights.extend(weights);
            taps.weights.extend(std::iter::repeat_n(0.0, after));
        }
        taps
    }

    /// The source samples that any output needs.
    pub fn span(&self) -> std::ops::Range<usize> {
        let first = self.start.iter().min().copied().unwrap_or(0);
        let last = self.start.iter().max().copied().unwrap_or(0);
        first..last + self.width
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn axis(luma_len: usize, resized_len: usize) -> Axis {
        Axis { luma_len, resized_len, crop_start: 0, crop_len: resized_len }
    }

    #[test]
    fn same_size_is_the_identity() {
        let taps = Taps::new(axis(7, 7), Filter::Bicubic, 7, 0, false);
        for i in 0..7 {
            for j in 0..taps.width {
                let want = if taps.start[i] + j == i { 1.0 } else { 0.0 };
                assert!((taps.weights[i * taps.width + j] - want).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn weights_sum_to_one_and_stay_inside_for_any_size() {
        for luma_len in [1usize, 2, 3, 5, 8, 63, 320] {
            for resized_len in [1, 2, 7, 224] {
                for (subsampling, cosited) in [(0, false), (1, false), (1, true), (2, true)] {
                    let plane_len = luma_len.div_ceil(1 << subsampling);
                    let taps = Taps::new(
                        axis(luma_len, resized_len),
                        Filter::Bicubic,
                        plane_len,
                        subsampling,
                        cosited,
                    );
                    assert!(taps.span().end <= plane_len);
                    for row in taps.weights.chunks(taps.width) {
                        assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-9);
                    }
                }
            }
        }
    }

    #[test]
    fn halving_averages_what_pillow_averages() {
        // PIL.Image.resize((2, 1), BILINEAR) of [0, 30, 60, 90]: windows of 3 and 3 samples.
        let taps = Taps::new(axis(4, 2), Filter::Bilinear, 4, 0, false);
        let source = [0.0, 30.0, 60.0, 90.0];
        let first: f64 = (0..taps.width).map(|j| taps.weights[j] * source[taps.start[0] + j]).sum();
        // Weights 0.75, 0.75, 0.25 over samples 0, 1, 2, normalized by 1.75.
        assert!((first - (0.75 * 30.0 + 0.25 * 60.0) / 1.75).abs() < 1e-9);
    }
}
