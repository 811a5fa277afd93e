//! Statistics of luma planes, for frames that repeat and scenes that change: `cu/frame_statistics.cu`, and
//! the same on the CPU. All of it is whole numbers, so every form gives the same.

use cudarc::driver::{DeviceRepr, LaunchConfig, PushKernelArg};

use crate::{
    device::DeviceBuffer,
    gpu::{
        CudaError, Gpu, Stream, named,
        program::{Programs, Unusable},
    },
    picture::{DevicePicture, Look, Picture},
};

/// The kernel's file and text.
pub const SOURCE: (&str, &str) = ("frame_statistics.cu", include_str!("../cu/frame_statistics.cu"));

/// Bins that the kernel keeps room for.
const MOST_BINS: usize = 64;
/// Frames of one launch: as many as a kernel's parameters hold.
const TOGETHER: usize = 64;
/// As `Statistics` in the kernel.
const OUT_BYTES: usize = 24 + 4 * MOST_BINS;
/// Of a block.
const THREADS: usize = 256;
/// What a thread takes at a time.
const GROUP_BYTES: usize = 16;
/// How often it does: a block then adds to the results only now and then.
const GROUPS_EACH: usize = 8;

/// How finely luma is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bins {
    /// 32 of them.
    Thirty2,
    /// 64 of them.
    Sixty4,
}

impl Bins {
    /// How many.
    pub fn n(self) -> usize {
        1 << self.bits()
    }

    fn bits(self) -> u32 {
        match self {
            Self::Thirty2 => 5,
            Self::Sixty4 => 6,
        }
    }

    /// A sample's bin is its value shifted right by this.
    fn shift(self, depth: u8) -> u32 {
        u32::from(depth) - self.bits()
    }
}

/// What is told of one frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Of all samples.
    pub sum: u64,
    /// Of their squares.
    pub sum_of_squares: u64,
    /// Samples by their uppermost bits; one above its depth counts in the last bin.
    pub histogram: Vec<u32>,
    /// The sum of absolute differences to the frame before, if there was one of this kind.
    pub difference: Option<u64>,
}

/// Whether the second can be compared with the first: same size, same samples, luma of its own.
fn is_like(look: Look, previous: Look) -> bool {
    (look.width, look.height, look.format.depth) == (previous.width, previous.height, previous.format.depth)
        && !previous.format.is_rgb()
}

fn asserted(look: Look) -> Look {
    assert!(!look.format.is_rgb(), "the first plane is luma");
    assert!(look.width * look.height <= u32::MAX as usize, "a histogram counts to 2^32");
    look
}

/// On the CPU.
///
/// # Panics
/// If the picture is one of red, green and blue.
pub fn measure(picture: &Picture<'_>, previous: Option<&Picture<'_>>, bins: Bins) -> Statistics {
    let look = asserted(picture.look());
    let previous = previous.filter(|previous| is_like(look, previous.look()));
    let bytes = look.format.sample_bytes();
    let mut total = Statistics {
        sum: 0,
        sum_of_squares: 0,
        histogram: vec![0; bins.n()],
        difference: previous.map(|_| 0),
    };
    let shift = bins.shift(look.format.depth);
    // Neighbours tend to be alike, and one counter would wait for itself.
    let mut counts = [[0u32; MOST_BINS]; 4];
    for y in 0..look.height {
        let row = row_of(picture, y, look.width * bytes);
        let before = previous.map(|previous| row_of(previous, y, look.width * bytes));
        let sums = if bytes == 1 {
            count(row, &mut counts, |v: &u8| usize::from(*v) >> shift, bins);
            bytes_of_row(row, before)
        } else {
            let (row, before) = (words(row), before.map(words));
            count(&row, &mut counts, |v: &u16| usize::from(*v) >> shift, bins);
            words_of_row(&row, before.as_deref())
        };
        total.sum += sums[0];
        total.sum_of_squares += sums[1];
        if let Some(difference) = &mut total.difference {
            *difference += sums[2];
        }
    }
    for counts in counts {
        total.histogram.iter_mut().zip(counts).for_each(|(n, more)| *n += more);
    }
    total
}

fn row_of<'a>(picture: &Picture<'a>, y: usize, len: usize) -> &'a [u8] {
    let plane = picture.planes[0];
    &plane.data[y * plane.stride..][..len]
}

fn words(row: &[u8]) -> Vec<u16> {
    row.chunks_exact(2).map(|b| u16::from_le_bytes([b[0], b[1]])).collect()
}

fn count<T>(row: &[T], counts: &mut [[u32; MOST_BINS]; 4], bin: impl Fn(&T) -> usize, bins: Bins) {
    for four in row.chunks(4) {
        for (counts, v) in counts.iter_mut().zip(four) {
            counts[bin(v).min(bins.n() - 1)] += 1;
        }
    }
}

/// Sum, sum of squares, sum of differences. Sums of 4096 bytes' squares fit 32 bits, which vectors like.
fn bytes_of_row(row: &[u8], before: Option<&[u8]>) -> [u64; 3] {
    let mut sums = [0u64; 3];
    for samples in row.chunks(4096) {
        sums[0] += u64::from(samples.iter().map(|v| u32::from(*v)).sum::<u32>());
        sums[1] += u64::from(samples.iter().map(|v| u32::from(*v) * u32::from(*v)).sum::<u32>());
    }
    if let Some(before) = before {
        for (samples, before) in row.chunks(4096).zip(before.chunks(4096)) {
            let apart = samples.iter().zip(before).map(|(a, b)| u32::from(a.abs_diff(*b)));
            sums[2] += u64::from(apart.sum::<u32>());
        }
    }
    sums
}

fn words_of_row(row: &[u16], before: Option<&[u16]>) -> [u64; 3] {
    let sum = row.chunks(4096).map(|v| u64::from(v.iter().map(|v| u32::from(*v)).sum::<u32>())).sum();
    let squares = row.iter().map(|v| u64::from(u32::from(*v) * u32::from(*v))).sum();
    let apart = |before: &[u16]| row.iter().zip(before).map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    [sum, squares, before.map_or(0, apart)]
}

/// The same, one sample at a time.
///
/// # Panics
/// As [`measure`].
pub fn reference(picture: &Picture<'_>, previous: Option<&Picture<'_>>, bins: Bins) -> Statistics {
    let look = asserted(picture.look());
    let previous = previous.filter(|previous| is_like(look, previous.look()));
    let sample = |picture: &Picture<'_>, x: usize, y: usize| {
        let plane = picture.planes[0];
        let row = &plane.data[y * plane.stride..];
        if look.format.depth > 8 {
            u64::from(row[2 * x]) | u64::from(row[2 * x + 1]) << 8
        } else {
            u64::from(row[x])
        }
    };
    let mut total = Statistics {
        sum: 0,
        sum_of_squares: 0,
        histogram: vec![0; bins.n()],
        difference: previous.map(|_| 0),
    };
    for y in 0..look.height {
        for x in 0..look.width {
            let v = sample(picture, x, y);
            total.sum += v;
            total.sum_of_squares += v * v;
            let bin = (v >> bins.shift(look.format.depth)).min(bins.n() as u64 - 1);
            total.histogram[bin as usize] += 1;
            if let (Some(difference), Some(previous)) = (&mut total.difference, previous) {
                *difference += v.abs_diff(sample(previous, x, y));
            }
        }
    }
    total
}

/// As `Frame` in the kernel.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Frame {
    luma: u64,
    previous: u64,
    out: u64,
    stride: u32,
    previous_stride: u32,
    width: u32,
    height: u32,
    shift: u32,
    n_bins: u32,
}

/// As `Frames` in the kernel.
#[derive(Clone, Copy)]
#[repr(C)]
struct Frames([Frame; TOGETHER]);

// SAFETY: plain numbers, laid out as C does.
unsafe impl DeviceRepr for Frames {}

/// A frame in a device's memory, and the one before it.
pub type Pair<'a> = (DevicePicture<'a>, Option<DevicePicture<'a>>);

/// The kernels on one device.
pub struct GpuStatistics {
    programs: Programs,
    stream: Stream,
    bins: Bins,
    out: DeviceBuffer,
}

impl GpuStatistics {
    /// With a stream of its own. Compiles the kernels where that was not done before.
    pub fn new(programs: &Programs, bins: Bins) -> Result<Self, Unusable> {
        for bytes in [1, 2] {
            programs.function(SOURCE, name(bytes))?;
        }
        let gpu: &Gpu = programs.gpu();
        let out = DeviceBuffer::new(gpu, TOGETHER * OUT_BYTES)?;
        Ok(Self { programs: programs.clone(), stream: gpu.stream()?, bins, out })
    }

    /// Statistics of each frame, in order.
    ///
    /// # Panics
    /// If a picture is one of red, green and blue.
    pub fn run(&mut self, pairs: &[Pair<'_>]) -> Result<Vec<Statistics>, CudaError> {
        let mut all = Vec::with_capacity(pairs.len());
        for together in pairs.chunks(TOGETHER) {
            self.launch(together)?;
            let mut bytes = vec![0; together.len() * OUT_BYTES];
            // It waits, for what was queued before too.
            self.out.read(0, &mut bytes, &self.stream)?;
            all.extend(bytes.chunks(OUT_BYTES).zip(together).map(|(bytes, pair)| self.read(bytes, pair)));
        }
        Ok(all)
    }

    /// Milliseconds of the work for [`Self::run`], the mean of `n`; of the first 64 frames.
    #[doc(hidden)]
    pub fn measure(&mut self, pairs: &[Pair<'_>], n: usize) -> Result<f64, CudaError> {
        let stream = self.stream.clone();
        stream.mean_ms(n, || self.launch(&pairs[..pairs.len().min(TOGETHER)]))
    }

    fn read(&self, bytes: &[u8], (picture, previous): &Pair<'_>) -> Statistics {
        let mut words = bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
        let mut word = || words.next().unwrap_or(0);
        let mut long = || u64::from(word()) | u64::from(word()) << 32;
        let [sum, sum_of_squares, difference] = [long(), long(), long()];
        let histogram = (0..self.bins.n()).map(|_| word()).collect();
        let is_compared = previous.is_some_and(|previous| is_like(picture.look, previous.look));
        Statistics { sum, sum_of_squares, histogram, difference: is_compared.then_some(difference) }
    }

    fn launch(&mut self, pairs: &[Pair<'_>]) -> Result<(), CudaError> {
        self.out.clear(&self.stream)?;
        for bytes in [1, 2] {
            let mut frames = Frames([Frame::default(); TOGETHER]);
            let (mut n, mut n_groups) = (0, 0);
            for (i, (picture, previous)) in pairs.iter().enumerate() {
                let look = asserted(picture.look);
                if look.format.sample_bytes() != bytes {
                    continue;
                }
                let previous = previous.filter(|previous| is_like(look, previous.look));
                let before = previous.map(|previous| previous.planes[0]).unwrap_or_default();
                frames.0[n] = Frame {
                    luma: picture.planes[0].address,
                    previous: before.address,
                    out: self.out.address() + (i * OUT_BYTES) as u64,
                    stride: picture.planes[0].stride as u32,
                    previous_stride: before.stride as u32,
                    width: look.width as u32,
                    height: look.height as u32,
                    shift: self.bins.shift(look.format.depth),
                    n_bins: self.bins.n() as u32,
                };
                n += 1;
                n_groups = n_groups.max((look.width * bytes).div_ceil(GROUP_BYTES) * look.height);
            }
            if n_groups == 0 {
                continue;
            }
            let function = self.programs.loaded(SOURCE, name(bytes))?;
            let config = LaunchConfig {
                grid_dim: (n_groups.div_ceil(THREADS * GROUPS_EACH) as u32, n as u32, 1),
                block_dim: (THREADS as u32, 1, 1),
                shared_mem_bytes: (THREADS / 32 * self.bins.n() * 4) as u32,
            };
            // SAFETY: the kernel takes `Frames` alone. The pictures can be read until the caller's wait, the
            // results have room in `out`, and a block has a histogram for each of its warps.
            unsafe { self.stream.inner().launch_builder(&function).arg(&frames).launch(config) }
                .map_err(named("cuLaunchKernel"))?;
        }
        Ok(())
    }
}

fn name(sample_bytes: usize) -> &'static str {
    if sample_bytes == 1 { "frame_statistics_u8" } else { "frame_statistics_u16" }
}
