//! The inner loops of preprocessing.
//!
//! Each is written once, over [`vector::Vector`], and compiled for AVX-512, for AVX2 with FMA, for NEON,
//! and for any CPU. The CPU chooses at run time.

mod blocks;
pub mod rows;
mod vector;

use crate::{aligned::AlignedFloats, resample::Taps};

/// Rows in a block.
pub const ROWS: usize = 16;

/// Sample type of a plane.
pub trait Sample: Copy {
    /// Bytes of one sample.
    const BYTES: usize;
    /// The sample at the start of `bytes`.
    fn read(bytes: &[u8]) -> f32;
}

/// Samples of one byte.
#[derive(Clone, Copy)]
pub struct Byte;
/// Samples of two bytes, little-endian.
#[derive(Clone, Copy)]
pub struct Word;

impl Sample for Byte {
    const BYTES: usize = 1;
    #[inline(always)]
    fn read(bytes: &[u8]) -> f32 {
        f32::from(bytes[0])
    }
}

impl Sample for Word {
    const BYTES: usize = 2;
    #[inline(always)]
    fn read(bytes: &[u8]) -> f32 {
        f32::from(u16::from_le_bytes([bytes[0], bytes[1]]))
    }
}

/// [`Taps`] as the loops read them.
#[derive(Clone, Debug)]
pub struct Weights {
    /// First source sample of each output.
    pub start: Vec<usize>,
    /// Most source samples per output.
    pub width: usize,
    /// `start.len() * width` weights.
    values: Vec<f32>,
    /// Weights of each output up to the last that is not zero.
    used: Vec<usize>,
}

impl From<Taps> for Weights {
    fn from(taps: Taps) -> Self {
        let values: Vec<f32> = taps.weights.iter().map(|w| *w as f32).collect();
        let used = |weights: &[f32]| weights.iter().rposition(|w| *w != 0.0).map_or(0, |last| last + 1);
        let used = values.chunks_exact(taps.width).map(used).collect();
        Self { start: taps.start, width: taps.width, values, used }
    }
}

impl Weights {
    /// Weights of output `i`, without surplus ones at the end.
    #[inline(always)]
    pub fn of(&self, i: usize) -> &[f32] {
        &self.values[i * self.width..][..self.used[i]]
    }
}

/// Scale and offset that end in the model's numbers: `value * scale + bias` for 0..255.
#[derive(Clone, Copy, Debug)]
pub struct Normalize {
    /// Per colour.
    pub scale: [f32; 3],
    /// Per colour.
    pub bias: [f32; 3],
}

/// [`crate::colour::ToRgb`] in single precision.
#[derive(Clone, Copy, Debug)]
pub struct Coefficients {
    pub(crate) black: f32,
    pub(crate) luma: f32,
    pub(crate) centre: f32,
    pub(crate) rv: f32,
    pub(crate) gu: f32,
    pub(crate) gv: f32,
    pub(crate) bu: f32,
}

/// Which instructions the loops use. Only [`Lanes::all`] makes those that a CPU may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lanes(Kind);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// What every CPU of the target has.
    Portable,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// AVX-512F, and AVX2 to transpose.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    /// What every 64-bit ARM has.
    #[cfg(target_arch = "aarch64")]
    Neon,
}

impl Lanes {
    /// The widest that this CPU has.
    pub fn detect() -> Self {
        Self::all().pop().unwrap_or(Self::PORTABLE)
    }

    /// What every CPU of the target has.
    pub const PORTABLE: Self = Self(Kind::Portable);

    /// All that this CPU has, the widest last.
    pub fn all() -> Vec<Self> {
        #[allow(unused_mut, reason = "not every target has others")]
        let mut all = vec![Self::PORTABLE];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            all.push(Self(Kind::Avx2));
            if is_x86_feature_detected!("avx512f") {
                all.push(Self(Kind::Avx512));
            }
        }
        #[cfg(target_arch = "aarch64")]
        all.push(Self(Kind::Neon));
        all
    }
}

#[inline(always)]
fn multiply_add(a: f32, b: f32, c: f32) -> f32 {
    // Elsewhere `mul_add` may be a call.
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) { a.mul_add(b, c) } else { a * b + c }
}

/// Floats from here to twice as much are whole numbers.
const WHOLE: f32 = (1 << 23) as f32;

/// To the nearest whole number from 0 to 255, as a picture of bytes would hold it: the models were
/// trained on such pictures.
#[inline(always)]
fn to_byte_value(value: f32) -> f32 {
    // The sum is rounded, to even where it is a tie. (`round_ties_even` is a call where SSE4.1 is not
    // taken for granted.)
    value.clamp(0.0, 255.0) + WHOLE - WHOLE
}

/// Declares `$name`, which is `$loop` over the vector that the lanes stand for, compiled for it.
macro_rules! per_lanes {
    ($(#[$doc:meta])* $name:ident, $loop:path, $(<$sample:ident>)? ($($arg:ident: $kind:ty),* $(,)?)) => {
        impl Lanes {
            $(#[$doc])*
            pub fn $name $(<$sample: Sample>)? (self, $($arg: $kind),*) {
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx2,fma")]
                fn avx2 $(<$sample: Sample>)? ($($arg: $kind),*) {
                    use $loop as inner;
                    // SAFETY: this function has the features.
                    unsafe { inner::<vector::Avx2 $(, $sample)?>($($arg),*) }
                }
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx512f")]
                fn avx512 $(<$sample: Sample>)? ($($arg: $kind),*) {
                    use $loop as inner;
                    // SAFETY: this function has the features.
                    unsafe { inner::<vector::Avx512 $(, $sample)?>($($arg),*) }
                }
                use $loop as inner;
                match self.0 {
                    // SAFETY: that vector needs no features.
                    Kind::Portable => unsafe { inner::<vector::Plain $(, $sample)?>($($arg),*) },
                    // SAFETY: made by `all` alone, after it found AVX2 and FMA.
                    #[cfg(target_arch = "x86_64")]
                    Kind::Avx2 => unsafe { avx2 $(::<$sample>)? ($($arg),*) },
                    // SAFETY: made by `all` alone, after it found AVX-512F.
                    #[cfg(target_arch = "x86_64")]
                    Kind::Avx512 => unsafe { avx512 $(::<$sample>)? ($($arg),*) },
                    // SAFETY: NEON is in the target's baseline.
                    #[cfg(target_arch = "aarch64")]
                    Kind::Neon => unsafe { inner::<vector::Neon $(, $sample)?>($($arg),*) },
                }
            }
        }
    };
}

per_lanes! {
    /// Adds source rows up: `out[x]` is the sum over `j` of `weights[j]` times the sample `x` of row
    /// `j`, rows being `stride` bytes apart from the start of `source`.
    weigh_rows, blocks::weigh_rows,
    <S>(source: &[u8], stride: usize, weights: &[f32], out: &mut [f32])
}

per_lanes! {
    /// Adds columns up: `out[x][row]` is the sum of `columns[weights.start[x] - first + j][row]`
    /// under the weights of `x`; columns and outputs are [`ROWS`] values each.
    weigh_columns, blocks::weigh_columns,
    (columns: &[f32], first: usize, weights: &Weights, out: &mut [f32])
}

per_lanes! {
    /// Y, U and V samples to normalized R, G and B, in place, as far as there are whole blocks of
    /// [`ROWS`].
    yuv_to_rgb, blocks::yuv_to_rgb,
    (y: &mut [f32], u: &mut [f32], v: &mut [f32], m: Coefficients, n: Normalize)
}

per_lanes! {
    /// Samples of one colour to their normalized value, in place, as far as there are whole blocks of
    /// [`ROWS`].
    level, blocks::level,
    (values: &mut [f32], black: f32, gain: f32, scale: f32, bias: f32)
}

impl Lanes {
    /// How [`Lanes::weigh_across`] groups outputs.
    fn grouping(self) -> rows::Grouping {
        match self.0 {
            Kind::Portable => rows::Grouping::of::<vector::Plain>(),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => rows::Grouping::of::<vector::Avx2>(),
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => rows::Grouping::of::<vector::Avx512>(),
            #[cfg(target_arch = "aarch64")]
            Kind::Neon => rows::Grouping::of::<vector::Neon>(),
        }
    }
}

per_lanes! {
    /// Weighs rows across: row `r` is at `r * stride` in `source`, its
    /// [`rows::GroupedWeights::padded_len`] floats go to row `r` of `out`, for the whole rows that `out`
    /// has, at most [`rows::TOGETHER`]. `floats` is scratch.
    weigh_across, rows::weigh_across,
    <S>(source: &[u8], stride: usize, floats: &mut AlignedFloats, weights: &rows::GroupedWeights, out: &mut [f32])
}

per_lanes! {
    /// Weighs the rows of Y, U and V down and writes one row of normalized red, green and blue.
    rgb_row, rows::rgb_row,
    (yuv: [rows::Rows<'_>; 3], m: Coefficients, n: Normalize, rgb: [&mut [f32]; 3])
}

per_lanes! {
    /// Turns a `down` × `across` matrix around: `to[x * to_pitch + y] = from[y * from_pitch + x]`.
    transpose, blocks::transpose,
    (from: &[f32], from_pitch: usize, size: (usize, usize), to: &mut [f32], to_pitch: usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposes_any_size() {
        for (down, across) in [(1, 1), (8, 8), (16, 24), (16, 23), (7, 40), (13, 9)] {
            let from: Vec<f32> = (0..down * across).map(|i| i as f32).collect();
            for lanes in Lanes::all() {
                let mut to = vec![-1.0; down * across];
                lanes.transpose(&from, across, (down, across), &mut to, down);
                for y in 0..down {
                    for x in 0..across {
                        assert_eq!(to[x * down + y], from[y * across + x], "{down}x{across} {lanes:?}");
                    }
                }
            }
        }
    }
}
