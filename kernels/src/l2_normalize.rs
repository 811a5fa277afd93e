//! Rows to unit length: `cu/l2_normalize.cu`, and the same on the CPU.
//!
//! Squares of floats are exact in double precision, so no row is too large or too small. The kernel and
//! [`normalize`] sum in one order and agree to the bit; [`reference`] is the definition, and they are within
//! one unit in the last place of it. A row of zeros and one with a NaN stay as they are.

use cudarc::driver::{LaunchConfig, PushKernelArg};
use half::f16;

use crate::{
    device::DeviceBuffer,
    gpu::{
        CudaError, Stream, named,
        program::{Programs, Unusable},
    },
};

/// The kernel's file and text.
pub const SOURCE: (&str, &str) = ("l2_normalize.cu", include_str!("../cu/l2_normalize.cu"));

/// Lanes of a warp times what each takes at a time: as many sums are kept.
const SUMS: usize = 128;
/// Rows of a block.
const ROWS: usize = 8;

/// One row, by the formula.
pub fn reference(row: &mut [f32]) {
    let norm = row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
    if norm > 0.0 {
        row.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
    }
}

/// One row, to the same bits as the kernel.
pub fn normalize(row: &mut [f32]) {
    let norm = sum_of_squares(row).sqrt();
    if norm > 0.0 {
        let scale = 1.0 / norm;
        row.iter_mut().for_each(|v| *v = (f64::from(*v) * scale) as f32);
    }
}

/// In the kernel's order: each lane of 32 adds up four values in turn, then lanes meet in pairs.
fn sum_of_squares(row: &[f32]) -> f64 {
    let mut sums = [0f64; SUMS];
    for values in row.chunks(SUMS) {
        for (sum, v) in sums.iter_mut().zip(values) {
            // Exact, so that it does not matter whether the product is rounded before it is added.
            *sum += f64::from(*v) * f64::from(*v);
        }
    }
    let mut lanes = [0f64; SUMS / 4];
    for (lane, four) in lanes.iter_mut().zip(sums.chunks(4)) {
        *lane = (four[0] + four[1]) + (four[2] + four[3]);
    }
    let mut n = lanes.len();
    while n > 1 {
        n /= 2;
        for i in 0..n {
            lanes[i] += lanes[i + n];
        }
    }
    lanes[0]
}

/// Rows in a device's memory: `n` of `dim` floats, from row `first` of a buffer on.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// Rows before them in the buffer.
    pub first: usize,
    /// How many.
    pub n: usize,
    /// Floats of one.
    pub dim: usize,
}

/// The kernel on one device.
pub struct GpuNormalizer {
    programs: Programs,
    stream: Stream,
}

impl GpuNormalizer {
    /// With a stream of its own. Compiles the kernel where that was not done before.
    pub fn new(programs: &Programs) -> Result<Self, Unusable> {
        programs.function(SOURCE, "l2_normalize")?;
        Ok(Self { programs: programs.clone(), stream: programs.gpu().stream()? })
    }

    /// Normalizes `rows` in place, and waits. `halves` gets the same rows in half precision, from its start.
    ///
    /// # Panics
    /// If a buffer is too small.
    pub fn run(
        &self,
        buffer: &mut DeviceBuffer,
        rows: Rows,
        halves: Option<&mut DeviceBuffer>,
    ) -> Result<(), CudaError> {
        self.launch(buffer, rows, halves.as_deref())?;
        self.stream.wait()
    }

    /// Milliseconds of the work for [`Self::run`], the mean of `n`.
    #[doc(hidden)]
    pub fn measure(
        &self,
        buffer: &mut DeviceBuffer,
        rows: Rows,
        halves: Option<&mut DeviceBuffer>,
        n: usize,
    ) -> Result<f64, CudaError> {
        self.stream.mean_ms(n, || self.launch(buffer, rows, halves.as_deref()))
    }

    fn launch(
        &self,
        buffer: &mut DeviceBuffer,
        rows: Rows,
        halves: Option<&DeviceBuffer>,
    ) -> Result<(), CudaError> {
        let Rows { first, n, dim } = rows;
        assert!((first + n) * dim * 4 <= buffer.bytes(), "{rows:?} in {} bytes", buffer.bytes());
        assert!(halves.is_none_or(|halves| n * dim * 2 <= halves.bytes()), "halves hold the rows");
        if n == 0 || dim == 0 {
            return Ok(());
        }
        let function = self.programs.loaded(SOURCE, "l2_normalize")?;
        let config = LaunchConfig {
            grid_dim: (n.div_ceil(ROWS) as u32, 1, 1),
            block_dim: (32 * ROWS as u32, 1, 1),
            shared_mem_bytes: 0,
        };
        let at = buffer.address() + (first * dim * 4) as u64;
        let (halves, n, dim) = (halves.map_or(0, DeviceBuffer::address), n as u64, dim as u32);
        // SAFETY: the kernel takes these four; both buffers hold the rows and are borrowed until the wait of
        // the caller. A row starts at a multiple of 16 bytes where `dim` is one of four, for buffers do.
        unsafe {
            self.stream
                .inner()
                .launch_builder(&function)
                .arg(&at)
                .arg(&halves)
                .arg(&n)
                .arg(&dim)
                .launch(config)
        }
        .map_err(named("cuLaunchKernel"))?;
        Ok(())
    }
}

/// Rows in host memory to half precision, as the kernel writes them.
pub fn to_halves(rows: &[f32]) -> Vec<f16> {
    rows.iter().map(|v| f16::from_f32(*v)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_reference_to_one_unit_in_the_last_place() {
        for dim in (0..300).chain([384, 512, 768, 1280, 4099]) {
            let scale = [1e-30f32, 1.0, 1e30][dim % 3];
            let row: Vec<f32> = (0..dim).map(|i| (i as f32 * 0.37 + dim as f32).sin() * scale).collect();
            let (mut fast, mut plain) = (row.clone(), row);
            normalize(&mut fast);
            reference(&mut plain);
            let apart = |(a, b): (&f32, &f32)| (a.to_bits() as i64 - b.to_bits() as i64).abs();
            assert!(fast.iter().zip(&plain).map(apart).max().unwrap_or(0) <= 1, "{dim}");
        }
    }

    #[test]
    fn rows_without_a_length_stay() {
        for row in [vec![0f32; 5], vec![1.0, f32::NAN, 2.0]] {
            let mut after = row.clone();
            normalize(&mut after);
            let bits = |row: &[f32]| row.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&after), bits(&row));
        }
    }
}
