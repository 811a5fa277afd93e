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
    /// Weights over luma samples.
    pub fn new(axis: Axis, filter: Filter) -> Self {
        let scale = axis.luma_len as f64 / axis.resized_len as f64;
        let stretch = scale.max(1.0);
        let reach = filter.support() * stretch;
        let outputs = (0..axis.crop_len).map(|i| {
            let centre = ((axis.crop_start + i) as f64 + 0.5) * scale;
            // Pillow's rounding of the window's ends.
            let low = (centre - reach + 0.5).max(0.0) as usize;
            let high = ((centre + reach + 0.5).max(0.0) as usize).min(axis.luma_len);
            let low = low.min(axis.luma_len - 1);
            let weights = (low..high.max(low + 1)).map(|p| filter.at((p as f64 + 0.5 - centre) / stretch));
            (low, weights.collect())
        });
        Self::from_outputs(outputs.collect(), axis.luma_len)
    }

    /// Weights over chroma samples that do what bringing chroma to luma's resolution by linear
    /// interpolation, and then these weights, would do: both steps are linear, so one table holds
    /// both. There is a chroma sample for every `1 << subsampling` luma samples, on the first of them
    /// when `cosited`, else in their middle.
    pub fn over_chroma(&self, plane_len: usize, subsampling: u8, cosited: bool) -> Self {
        let per_luma = 1.0 / f64::from(1u32 << subsampling);
        let shift = if cosited { 0.5 * (1.0 - per_luma) } else { 0.0 };
        let outputs = self.start.iter().zip(self.weights.chunks(self.width)).map(|(start, weights)| {
            // Luma sample `p` lies between chroma samples `at` and `at + 1`, nearer the second by `part`.
            let place = |p: usize| {
                let x = ((p as f64 + 0.5) * per_luma + shift - 0.5).clamp(0.0, (plane_len - 1) as f64);
                (x.floor() as usize, x.fract())
            };
            let (low, _) = place(*start);
            let (high, _) = place(start + self.width - 1);
            let mut sums = vec![0.0; (high + 2).min(plane_len) - low];
            for (j, weight) in weights.iter().enumerate() {
                let (at, part) = place(start + j);
                sums[at - low] += weight * (1.0 - part);
                if part > 0.0 {
                    sums[at - low + 1] += weight * part;
                }
            }
            (low, sums)
        });
        Self::from_outputs(outputs.collect(), plane_len)
    }

    /// Normalizes the weights of every output and gives all the same width.
    fn from_outputs(outputs: Vec<(usize, Vec<f64>)>, plane_len: usize) -> Self {
        // The windows' ends are generous; a sample that weighs nothing need not be read.
        let trim = |(low, weights): (usize, Vec<f64>)| {
            let sum: f64 = weights.iter().sum();
            let skipped = weights.iter().take_while(|w| w.abs() < 1e-9).count().min(weights.len() - 1);
            let end = weights.iter().rposition(|w| w.abs() >= 1e-9).map_or(skipped + 1, |last| last + 1);
            (low + skipped, weights[skipped..end].iter().map(|w| w / sum).collect::<Vec<f64>>())
        };
        let outputs: Vec<(usize, Vec<f64>)> = outputs.into_iter().map(trim).collect();
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
        let taps = Taps::new(axis(7, 7), Filter::Bicubic);
        assert_eq!((taps.width, &taps.start[..]), (1, &[0, 1, 2, 3, 4, 5, 6][..]));
        assert!(taps.weights.iter().all(|w| (w - 1.0).abs() < 1e-12));
    }

    #[test]
    fn weights_sum_to_one_and_stay_inside_for_any_size() {
        for luma_len in [1usize, 2, 3, 5, 8, 63, 320] {
            for resized_len in [1, 2, 7, 224] {
                let luma = Taps::new(axis(luma_len, resized_len), Filter::Bicubic);
                for (subsampling, cosited) in [(0, false), (1, false), (1, true), (2, true)] {
                    let plane_len = luma_len.div_ceil(1 << subsampling);
                    let taps = luma.over_chroma(plane_len, subsampling, cosited);
                    assert!(taps.span().end <= plane_len);
                    for row in taps.weights.chunks(taps.width) {
                        assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-9);
                    }
                }
            }
        }
    }

    #[test]
    fn chroma_weights_are_interpolation_then_resize() {
        let chroma = [10.0, 50.0, 20.0, 90.0, 40.0];
        let luma = Taps::new(axis(9, 4), Filter::Bicubic);
        for cosited in [false, true] {
            // Chroma sample c lies at luma 2c when cosited, else at 2c + 0.5.
            let at_luma = |p: usize| {
                let x = (p as f64 / 2.0 - if cosited { 0.0 } else { 0.25 }).clamp(0.0, 4.0);
                let low = x.floor() as usize;
                chroma[low] * (1.0 - x.fract()) + chroma[(low + 1).min(4)] * x.fract()
            };
            let both = luma.over_chroma(5, 1, cosited);
            for i in 0..4 {
                let apply = |taps: &Taps, sample: &dyn Fn(usize) -> f64| -> f64 {
                    (0..taps.width)
                        .map(|j| taps.weights[i * taps.width + j] * sample(taps.start[i] + j))
                        .sum()
                };
                let (two_steps, one) = (apply(&luma, &at_luma), apply(&both, &|c| chroma[c]));
                assert!((two_steps - one).abs() < 1e-9, "{two_steps} {one}");
            }
        }
    }

    #[test]
    fn halving_averages_what_pillow_averages() {
        // PIL.Image.resize((2, 1), BILINEAR) of [0, 30, 60, 90]: windows of 3 and 3 samples.
        let taps = Taps::new(axis(4, 2), Filter::Bilinear);
        let source = [0.0, 30.0, 60.0, 90.0];
        let first: f64 = (0..taps.width).map(|j| taps.weights[j] * source[taps.start[0] + j]).sum();
        // Weights 0.75, 0.75, 0.25 over samples 0, 1, 2, normalized by 1.75.
        assert!((first - (0.75 * 30.0 + 0.25 * 60.0) / 1.75).abs() < 1e-9);
    }
}
