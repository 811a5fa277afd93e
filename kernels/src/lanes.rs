//! The inner loops of preprocessing, over blocks of sixteen rows.
//!
//! Each loop is written once, over arrays whose size the compiler knows, and compiled twice: for the
//! baseline and for AVX2 with FMA, chosen at run time. Only the transposition is by hand.

use crate::resample::Taps;

/// Rows in a block: two AVX2 registers of `f32`.
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
    /// Source samples per output.
    pub width: usize,
    /// `start.len() * width` weights.
    pub values: Vec<f32>,
}

impl From<Taps> for Weights {
    fn from(taps: Taps) -> Self {
        let values = taps.weights.iter().map(|w| *w as f32).collect();
        Self { start: taps.start, width: taps.width, values }
    }
}

impl Weights {
    /// Weights of output `i`.
    #[inline(always)]
    pub fn of(&self, i: usize) -> &[f32] {
        &self.values[i * self.width..(i + 1) * self.width]
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

/// Which instructions the loops use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lanes {
    /// What every CPU of the target has.
    Portable,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2,
}

impl Lanes {
    /// The widest that this CPU has.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Lanes::Avx2;
        }
        Lanes::Portable
    }
}

#[inline(always)]
fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// Declares `$name`, which picks `$body::<true>` compiled for AVX2 or `$body::<false>`.
macro_rules! per_lanes {
    ($(#[$doc:meta])* $name:ident, $body:ident $(<$generic:ident: $bound:path>)?, ($($arg:ident: $kind:ty),* $(,)?)) => {
        impl Lanes {
            $(#[$doc])*
            // The arguments are one loop's; a struct for each would only rename them.
            #[allow(clippy::too_many_arguments)]
            pub fn $name $(<$generic: $bound>)? (self, $($arg: $kind),*) {
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx2,fma")]
                fn wide $(<$generic: $bound>)? ($($arg: $kind),*) {
                    $body::<true $(, $generic)?>($($arg),*)
                }
                match self {
                    Lanes::Portable => $body::<false $(, $generic)?>($($arg),*),
                    // SAFETY: `Avx2` is made by `detect` alone, after it found AVX2 and FMA.
                    #[cfg(target_arch = "x86_64")]
                    Lanes::Avx2 => unsafe { wide $(::<$generic>)? ($($arg),*) },
                }
            }
        }
    };
}

per_lanes! {
    /// Adds source rows up: `out[x]` is the sum over `j` of `weights[j]` times the sample `x` of row
    /// `j`, rows being `stride` bytes apart from the start of `source`.
    weigh_rows, weigh_rows<S: Sample>,
    (source: &[u8], stride: usize, weights: &[f32], out: &mut [f32])
}

#[inline(always)]
fn weigh_rows<const FUSED: bool, S: Sample>(source: &[u8], stride: usize, weights: &[f32], out: &mut [f32]) {
    const GROUP: usize = 16;
    let mut groups = out.chunks_exact_mut(GROUP);
    let mut at = 0;
    for group in &mut groups {
        let mut sums = [0f32; GROUP];
        let mut row = at;
        for weight in weights {
            let samples = &source[row..row + GROUP * S::BYTES];
            for (sum, sample) in sums.iter_mut().zip(samples.chunks_exact(S::BYTES)) {
                *sum = multiply_add::<FUSED>(S::read(sample), *weight, *sum);
            }
            row += stride;
        }
        group.copy_from_slice(&sums);
        at += GROUP * S::BYTES;
    }
    for sum in groups.into_remainder() {
        *sum = 0.0;
        for (j, weight) in weights.iter().enumerate() {
            *sum = multiply_add::<FUSED>(S::read(&source[at + j * stride..]), *weight, *sum);
        }
        at += S::BYTES;
    }
}

per_lanes! {
    /// Adds columns up: `out[x][row]` is the sum of `columns[weights.start[x] - first + j][row]`
    /// under the weights of `x`; columns and outputs are [`ROWS`] values each.
    weigh_columns, weigh_columns,
    (columns: &[f32], first: usize, weights: &Weights, out: &mut [f32])
}

#[inline(always)]
fn weigh_columns<const FUSED: bool>(columns: &[f32], first: usize, weights: &Weights, out: &mut [f32]) {
    for (i, out) in out.chunks_exact_mut(ROWS).take(weights.start.len()).enumerate() {
        let from = (weights.start[i] - first) * ROWS;
        let taps = weights.of(i);
        let columns = &columns[from..from + taps.len() * ROWS];
        let mut sums = [0f32; ROWS];
        for (column, weight) in columns.chunks_exact(ROWS).zip(taps) {
            for (sum, value) in sums.iter_mut().zip(column) {
                *sum = multiply_add::<FUSED>(*value, *weight, *sum);
            }
        }
        out.copy_from_slice(&sums);
    }
}

/// To the nearest whole number from 0 to 255, as a picture of bytes would hold it: the models were
/// trained on such pictures.
#[inline(always)]
fn to_byte_value(value: f32) -> f32 {
    value.clamp(0.0, 255.0).round_ties_even()
}

per_lanes! {
    /// Y, U and V samples to normalized R, G and B, in place.
    yuv_to_rgb, yuv_to_rgb,
    (y: &mut [f32], u: &mut [f32], v: &mut [f32], m: Coefficients, n: Normalize)
}

#[inline(always)]
fn yuv_to_rgb<const FUSED: bool>(
    y: &mut [f32],
    u: &mut [f32],
    v: &mut [f32],
    m: Coefficients,
    n: Normalize,
) {
    for ((y, u), v) in y.iter_mut().zip(u.iter_mut()).zip(v.iter_mut()) {
        let luma = (*y - m.black) * m.luma;
        let (pb, pr) = (*u - m.centre, *v - m.centre);
        let red = multiply_add::<FUSED>(m.rv, pr, luma);
        let green = multiply_add::<FUSED>(m.gu, pb, multiply_add::<FUSED>(m.gv, pr, luma));
        let blue = multiply_add::<FUSED>(m.bu, pb, luma);
        *y = multiply_add::<FUSED>(to_byte_value(red), n.scale[0], n.bias[0]);
        *u = multiply_add::<FUSED>(to_byte_value(green), n.scale[1], n.bias[1]);
        *v = multiply_add::<FUSED>(to_byte_value(blue), n.scale[2], n.bias[2]);
    }
}

per_lanes! {
    /// Samples of one colour to their normalized value, in place.
    level, level,
    (values: &mut [f32], black: f32, gain: f32, scale: f32, bias: f32)
}

#[inline(always)]
fn level<const FUSED: bool>(values: &mut [f32], black: f32, gain: f32, scale: f32, bias: f32) {
    for value in values {
        *value = multiply_add::<FUSED>(to_byte_value((*value - black) * gain), scale, bias);
    }
}

impl Lanes {
    /// Turns a `down` × `across` matrix around: `to[x * to_pitch + y] = from[y * from_pitch + x]`.
    pub fn transpose(
        self,
        from: &[f32],
        from_pitch: usize,
        (down, across): (usize, usize),
        to: &mut [f32],
        to_pitch: usize,
    ) {
        let (whole_down, whole_across) =
            if self == Lanes::Portable { (0, 0) } else { (down / 8 * 8, across / 8 * 8) };
        #[cfg(target_arch = "x86_64")]
        if self == Lanes::Avx2 {
            for y in (0..whole_down).step_by(8) {
                for x in (0..whole_across).step_by(8) {
                    let from = &from[y * from_pitch + x..(y + 7) * from_pitch + x + 8];
                    let to = &mut to[x * to_pitch + y..(x + 7) * to_pitch + y + 8];
                    // SAFETY: `Avx2` was detected; both slices hold eight rows of eight at their pitch.
                    unsafe { transpose_8x8(from.as_ptr(), from_pitch, to.as_mut_ptr(), to_pitch) };
                }
            }
        }
        for y in 0..down {
            let done = if y < whole_down { whole_across } else { 0 };
            for x in done..across {
                to[x * to_pitch + y] = from[y * from_pitch + x];
            }
        }
    }
}

/// # Safety
/// The CPU has AVX2; `from` and `to` point at eight rows of eight floats, `*_pitch` floats apart.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn transpose_8x8(from: *const f32, from_pitch: usize, to: *mut f32, to_pitch: usize) {
    use std::arch::x86_64::*;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposes_any_size() {
        for (down, across) in [(1, 1), (8, 8), (16, 24), (16, 23), (7, 40), (13, 9)] {
            let from: Vec<f32> = (0..down * across).map(|i| i as f32).collect();
            for lanes in [Lanes::Portable, Lanes::detect()] {
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
