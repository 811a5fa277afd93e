//! The inner loops of preprocessing, over blocks of sixteen rows.
//!
//! Each loop has a plain form, which is also compiled for AVX2 with FMA. The two that weigh samples
//! and the transposition have forms by hand besides, for AVX2 and AVX-512. The CPU chooses at run
//! time.

#[cfg(target_arch = "x86_64")]
pub mod rows;
#[cfg(target_arch = "x86_64")]
mod sixteen;

#[cfg(target_arch = "x86_64")]
use crate::aligned::AlignedFloats;
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
    /// AVX-512 where it pays, AVX2 and FMA elsewhere.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Lanes {
    /// The widest that this CPU has.
    pub fn detect() -> Self {
        Self::all().pop().unwrap_or(Self::PORTABLE)
    }

    /// What every CPU of the target has.
    pub const PORTABLE: Self = Self(Kind::Portable);

    /// Whether pictures can go the way by rows.
    pub fn has_rows(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        let has_rows = self.0 == Kind::Avx512;
        #[cfg(not(target_arch = "x86_64"))]
        let has_rows = false;
        has_rows
    }

    /// All that this CPU has, the widest last.
    pub fn all() -> Vec<Self> {
        let mut all = vec![Self::PORTABLE];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            all.push(Self(Kind::Avx2));
            if is_x86_feature_detected!("avx512f") {
                all.push(Self(Kind::Avx512));
            }
        }
        all
    }
}

#[inline(always)]
fn multiply_add<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

/// Declares `$name`, which picks `$body::<true>` compiled for AVX2 or `$body::<false>`.
macro_rules! per_lanes {
    ($(#[$doc:meta])* $name:ident, $body:ident, ($($arg:ident: $kind:ty),* $(,)?)) => {
        impl Lanes {
            $(#[$doc])*
            // The arguments are one loop's; a struct for each would only rename them.
            #[allow(clippy::too_many_arguments)]
            pub fn $name(self, $($arg: $kind),*) {
                #[cfg(target_arch = "x86_64")]
                #[target_feature(enable = "avx2,fma")]
                fn wide($($arg: $kind),*) {
                    $body::<true>($($arg),*)
                }
                match self.0 {
                    Kind::Portable => $body::<false>($($arg),*),
                    // SAFETY: these two are made by `all` alone, after it found AVX2 and FMA.
                    #[cfg(target_arch = "x86_64")]
                    Kind::Avx2 | Kind::Avx512 => unsafe { wide($($arg),*) },
                }
            }
        }
    };
}

impl Lanes {
    /// Adds source rows up: `out[x]` is the sum over `j` of `weights[j]` times the sample `x` of row
    /// `j`, rows being `stride` bytes apart from the start of `source`.
    pub fn weigh_rows<S: Sample>(self, source: &[u8], stride: usize, weights: &[f32], out: &mut [f32]) {
        let done = match self.0 {
            Kind::Portable => 0,
            // SAFETY: these two are made by `all` alone, after it found the features.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { weigh_rows_avx2::<S>(source, stride, weights, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => unsafe { weigh_rows_avx512::<S>(source, stride, weights, out) },
        };
        weigh_rows::<S>(&source[done * S::BYTES..], stride, weights, &mut out[done..]);
    }

    /// [`rows::weigh_across`] for these lanes, which must have it: see [`Lanes::has_rows`].
    #[cfg(target_arch = "x86_64")]
    pub fn weigh_across<S: Sample>(
        self,
        source: &[u8],
        stride: usize,
        n: usize,
        floats: &mut AlignedFloats,
        weights: &rows::GroupedWeights,
        out: &mut [f32],
    ) {
        assert!(self.has_rows());
        // SAFETY: that kind is made by `all` alone, after it found AVX-512F.
        unsafe { rows::weigh_across::<S>(source, stride, n, floats, weights, out) }
    }

    /// [`rows::rgb_row`] for these lanes, which must have it: see [`Lanes::has_rows`].
    #[cfg(target_arch = "x86_64")]
    pub fn rgb_row(self, yuv: [rows::Rows<'_>; 3], m: Coefficients, n: Normalize, rgb: [&mut [f32]; 3]) {
        assert!(self.has_rows());
        // SAFETY: that kind is made by `all` alone, after it found AVX-512F.
        unsafe { rows::rgb_row(yuv, m, n, rgb) }
    }

    /// Adds columns up: `out[x][row]` is the sum of `columns[weights.start[x] - first + j][row]`
    /// under the weights of `x`; columns and outputs are [`ROWS`] values each.
    pub fn weigh_columns(self, columns: &[f32], first: usize, weights: &Weights, out: &mut [f32]) {
        match self.0 {
            Kind::Portable => weigh_columns(columns, first, weights, out),
            // SAFETY: these two are made by `all` alone, after it found the features.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx2 => unsafe { weigh_columns_avx2(columns, first, weights, out) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kind::Avx512 => unsafe { weigh_columns_avx512(columns, first, weights, out) },
        }
    }
}

/// The loops of [`sixteen`] in functions that have the features of a vector type.
#[cfg(target_arch = "x86_64")]
macro_rules! wide_loops {
    ($rows:ident, $columns:ident, $vector:ident, $features:literal) => {
        /// # Safety
        /// The CPU has the features that it enables.
        #[target_feature(enable = $features)]
        unsafe fn $rows<S: Sample>(source: &[u8], stride: usize, weights: &[f32], out: &mut [f32]) -> usize {
            use sixteen::{weigh_rows, $vector};
            // SAFETY: this function has the features. Called by name, not by pointer, so that the loop is
            // inlined here and has them too.
            unsafe {
                match S::BYTES {
                    2 => weigh_rows::<$vector, true>(source, stride, weights, out),
                    _ => weigh_rows::<$vector, false>(source, stride, weights, out),
                }
            }
        }

        /// # Safety
        /// The CPU has the features that it enables.
        #[target_feature(enable = $features)]
        unsafe fn $columns(columns: &[f32], first: usize, weights: &Weights, out: &mut [f32]) {
            // SAFETY: this function has the features.
            unsafe { sixteen::weigh_columns::<sixteen::$vector>(columns, first, weights, out) }
        }
    };
}

#[cfg(target_arch = "x86_64")]
wide_loops!(weigh_rows_avx2, weigh_columns_avx2, Avx2, "avx2,fma");
#[cfg(target_arch = "x86_64")]
wide_loops!(weigh_rows_avx512, weigh_columns_avx512, Avx512, "avx512f");

fn weigh_rows<S: Sample>(source: &[u8], stride: usize, weights: &[f32], out: &mut [f32]) {
    for (x, sum) in out.iter_mut().enumerate() {
        *sum = 0.0;
        for (j, weight) in weights.iter().enumerate() {
            *sum += S::read(&source[j * stride + x * S::BYTES..]) * weight;
        }
    }
}

fn weigh_columns(columns: &[f32], first: usize, weights: &Weights, out: &mut [f32]) {
    for (i, out) in out.chunks_exact_mut(ROWS).take(weights.start.len()).enumerate() {
        out.fill(0.0);
        let columns = &columns[(weights.start[i] - first) * ROWS..];
        for (column, weight) in columns.chunks_exact(ROWS).zip(weights.of(i)) {
            for (sum, value) in out.iter_mut().zip(column) {
                *sum += value * weight;
            }
        }
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
fn yuv_to_rgb<const FUSED: bool>(y: &mut [f32], u: &mut [f32], v: &mut [f32], m: Coefficients, n: Normalize) {
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
            if self == Lanes::PORTABLE { (0, 0) } else { (down / 8 * 8, across / 8 * 8) };
        #[cfg(target_arch = "x86_64")]
        if self != Lanes::PORTABLE {
            for y in (0..whole_down).step_by(8) {
                for x in (0..whole_across).step_by(8) {
                    let from = &from[y * from_pitch + x..(y + 7) * from_pitch + x + 8];
                    let to = &mut to[x * to_pitch + y..(x + 7) * to_pitch + y + 8];
                    // SAFETY: AVX2 was detected; both slices hold eight rows of eight at their pitch.
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
