//! [`Recipe`](super::Recipe)s on a device: the launch of `cu/preprocess.cu`, and its tables.
//!
//! The definition is the CPU's: the same weights, colours and rounding to whole levels. Weights down have 14
//! bits of fraction here, so a level may differ by one where its value lies between two.

use std::sync::Arc;

use cudarc::driver::{DeviceRepr, LaunchConfig, PushKernelArg};

use super::{Plan, Recipe};
use crate::{
    device::DeviceBuffer,
    gpu::{
        CudaError, Stream, named,
        program::{Programs, Unusable},
    },
    picture::{DevicePicture, Layout, Look},
    resample::Taps,
};

/// The kernel's file and text.
pub const SOURCE: (&str, &str) = ("preprocess.cu", include_str!("../../cu/preprocess.cu"));

/// What a device's tensors are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Float {
    /// 16 bits.
    Half,
    /// 32 bits.
    Single,
}

impl Float {
    /// Bytes of one.
    pub fn bytes(self) -> usize {
        match self {
            Self::Half => 2,
            Self::Single => 4,
        }
    }
}

/// Why pictures were not prepared.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    /// A picture that no tile of the kernel can hold a part of.
    #[error("a picture of {width}x{height} is too large for the GPU's preprocessing")]
    TooLarge {
        /// Samples across.
        width: usize,
        /// Samples down.
        height: usize,
    },
    /// The device failed.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

/// Pictures of one launch: as many as a kernel's parameters hold.
const TOGETHER: usize = 64;
/// Floats of shared memory that every device gives a block unasked.
const SHARED_FLOATS: usize = 12_000; // of 12,288
/// Words of shared memory that the kernel keeps for itself.
const RESERVED: usize = 12;
/// Tiles, the best first: large ones read less twice.
const TILES: [(usize, usize); 12] =
    [(32, 16), (32, 8), (16, 16), (16, 8), (16, 4), (8, 8), (8, 4), (4, 4), (4, 2), (2, 2), (2, 1), (1, 1)];
/// Bits of fraction of the weights down.
const WEIGHT_BITS: u32 = 14;
/// Kinds of pictures whose tables are kept.
const TABLES_KEPT: usize = 64;

/// As `Source` in the kernel.
#[derive(Clone, Copy, Default)]
#[repr(C)]
struct Source {
    planes: [u64; 3],
    look: u64,
    out: u64,
    strides: [u32; 3],
    pad: u32,
}

/// As `Sources` in the kernel.
#[derive(Clone, Copy)]
#[repr(C)]
struct Sources([Source; TOGETHER]);

// SAFETY: plain numbers, laid out as C does.
unsafe impl DeviceRepr for Sources {}

/// Tables of one kind of picture, on the device.
struct Table {
    look: Look,
    memory: DeviceBuffer,
    n_tiles: usize,
    shared_bytes: usize,
}

/// Runs one [`Recipe`] on a device, keeping the tables of the kinds of pictures seen last.
pub struct GpuPreprocessor {
    programs: Programs,
    stream: Stream,
    recipe: Recipe,
    float: Float,
    tables: Vec<Arc<Table>>,
    /// Tables that queued launches read.
    in_use: Vec<Arc<Table>>,
}

impl GpuPreprocessor {
    /// With a stream of its own. Compiles the kernel where that was not done before.
    pub fn new(programs: &Programs, recipe: Recipe, float: Float) -> Result<Self, Unusable> {
        programs.function(SOURCE, name(float))?;
        let stream = programs.gpu().stream()?;
        Ok(Self { programs: programs.clone(), stream, recipe, float, tables: Vec::new(), in_use: Vec::new() })
    }

    /// Bytes of one tensor.
    pub fn tensor_bytes(&self) -> usize {
        self.recipe.tensor_len() * self.float.bytes()
    }

    /// The stream that it works on.
    pub fn stream(&self) -> &Stream {
        &self.stream
    }

    /// Makes ready for pictures like this one, or says that they cannot be prepared.
    pub fn expect(&mut self, look: Look) -> Result<(), Failed> {
        self.table_for(look).map(drop)
    }

    /// Writes the pictures' tensors to `out`, the first as tensor number `at`, and waits: the pictures can
    /// go back to their decoder.
    ///
    /// # Panics
    /// If `out` is too small.
    pub fn run(
        &mut self,
        pictures: &[DevicePicture<'_>],
        out: &mut DeviceBuffer,
        at: usize,
    ) -> Result<(), Failed> {
        let mut chunks = pictures.chunks(TOGETHER).enumerate();
        let launched = chunks.try_for_each(|(i, together)| self.launch(together, out, at + i * TOGETHER));
        // Whatever was launched reads the pictures until then.
        let waited = self.stream.wait();
        self.in_use.clear();
        launched.and(waited.map_err(Failed::from))
    }

    /// Milliseconds of the work for [`Self::run`], the mean of `n`.
    #[doc(hidden)]
    pub fn measure(
        &mut self,
        pictures: &[DevicePicture<'_>],
        out: &mut DeviceBuffer,
        n: usize,
    ) -> Result<f64, Failed> {
        let stream = self.stream.clone();
        let measured = stream.mean_ms(n, || {
            let mut chunks = pictures.chunks(TOGETHER).enumerate();
            chunks.try_for_each(|(i, together)| self.launch(together, out, i * TOGETHER))
        });
        self.in_use.clear();
        measured
    }

    fn launch(
        &mut self,
        pictures: &[DevicePicture<'_>],
        out: &mut DeviceBuffer,
        at: usize,
    ) -> Result<(), Failed> {
        let bytes = self.tensor_bytes();
        assert!((at + pictures.len()) * bytes <= out.bytes(), "out holds the tensors");
        let mut sources = Sources([Source::default(); TOGETHER]);
        let (mut n_tiles, mut shared_bytes) = (0, 0);
        for (i, picture) in pictures.iter().enumerate() {
            let table = self.table_for(picture.look)?;
            n_tiles = n_tiles.max(table.n_tiles);
            shared_bytes = shared_bytes.max(table.shared_bytes);
            sources.0[i] = Source {
                planes: picture.planes.map(|plane| plane.address),
                look: table.memory.address(),
                out: out.address() + ((at + i) * bytes) as u64,
                strides: picture.planes.map(|plane| plane.stride as u32),
                pad: 0,
            };
            self.in_use.push(table);
        }
        let function = self.programs.loaded(SOURCE, name(self.float))?;
        let config = LaunchConfig {
            grid_dim: (n_tiles as u32, pictures.len() as u32, 1),
            block_dim: (256, 1, 1),
            shared_mem_bytes: shared_bytes as u32,
        };
        // SAFETY: the kernel takes `Sources` alone. The pictures can be read until the caller's wait, their
        // tables were made for their looks and stay in `self`, `out` has room for the tensors, and a block
        // uses no more shared memory than the tables say.
        unsafe { self.stream.inner().launch_builder(&function).arg(&sources).launch(config) }
            .map_err(named("cuLaunchKernel"))?;
        Ok(())
    }

    /// The tables for pictures like this one.
    fn table_for(&mut self, look: Look) -> Result<Arc<Table>, Failed> {
        if let Some(found) = self.tables.iter().find(|table| table.look == look) {
            return Ok(found.clone());
        }
        if self.tables.len() >= TABLES_KEPT {
            self.tables.remove(0);
        }
        let too_large = Failed::TooLarge { width: look.width, height: look.height };
        let (words, n_tiles, shared_floats) = words(&self.recipe, look).ok_or(too_large)?;
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let mut memory = DeviceBuffer::new(self.programs.gpu(), bytes.len())?;
        memory.write(0, &bytes, &self.stream)?;
        let shared_bytes = 4 * (RESERVED + shared_floats);
        let table = Arc::new(Table { look, memory, n_tiles, shared_bytes });
        self.tables.push(table.clone());
        Ok(table)
    }
}

/// Compiles and loads the kernel, where that was not done before.
pub fn compile(programs: &Programs) -> Result<(), Unusable> {
    programs.function(SOURCE, name(Float::Half)).map(drop)
}

fn name(float: Float) -> &'static str {
    match float {
        Float::Half => "preprocess_f16",
        Float::Single => "preprocess_f32",
    }
}

/// Where the components of a layout lie.
struct Planes {
    n: usize,
    /// 0 luma's weights, 1 chroma's.
    kind: [u32; 3],
    step: [u32; 3],
    plane_of: [u32; 3],
    offset_of: [u32; 3],
    n_components: u32,
}

impl Planes {
    fn of(layout: Layout) -> Self {
        let (n, kind, step, plane_of, offset_of, n_components) = match layout {
            Layout::Planar => (3, [0, 1, 1], [1; 3], [0, 1, 2], [0; 3], 3),
            Layout::SemiPlanar => (2, [0, 1, 0], [1, 2, 1], [0, 1, 1], [0, 0, 1], 3),
            Layout::PlanarGbr => (3, [0; 3], [1; 3], [2, 0, 1], [0; 3], 3),
            Layout::Gray => (1, [0; 3], [1; 3], [0; 3], [0; 3], 1),
            Layout::PackedRgb { offsets, step } => {
                (1, [0; 3], [u32::from(step); 3], [0; 3], offsets.map(u32::from), 3)
            }
        };
        Self { n, kind, step, plane_of, offset_of, n_components }
    }
}

/// Bytes of `Look` in the kernel, without its tables.
const HEADER_BYTES: usize = 232;

/// `Look` of the kernel with its tables, tiles of a picture, and floats of shared memory. `None` where even
/// the smallest tile needs too many.
fn words(recipe: &Recipe, look: Look) -> Option<(Vec<u32>, usize, usize)> {
    let plan = Plan::new(recipe, &look);
    let planes = Planes::of(look.format.layout);
    // The first sample of the tile's rows, to a multiple of four, and the end, likewise.
    let pitch = |p: usize, from: usize, to: usize| {
        let taps = &plan.across[planes.kind[p] as usize];
        let step = planes.step[p] as usize;
        let (first, end) = (taps.start[from] * step / 4 * 4, (taps.start[to - 1] + taps.width) * step);
        (end - first).next_multiple_of(4)
    };
    let floats = |(tile_width, tile_height): (usize, usize)| {
        let starts = (0..plan.width).step_by(tile_width);
        let row = |from: usize| -> usize {
            (0..planes.n).map(|p| pitch(p, from, (from + tile_width).min(plan.width))).sum()
        };
        starts.map(row).max().unwrap_or(0) * tile_height.min(plan.height)
    };
    let tile = TILES.into_iter().find(|tile| floats(*tile) <= SHARED_FLOATS)?;
    let n_tiles = plan.width.div_ceil(tile.0) * plan.height.div_ceil(tile.1);

    let mut tables = Vec::new();
    let mut axis = |starts: &[usize], taps: usize, weights: Vec<u32>| {
        let at = |tables: &Vec<u32>| (HEADER_BYTES + 4 * tables.len()) as u32;
        let start = at(&tables);
        tables.extend(starts.iter().map(|start| *start as u32));
        let weights_at = at(&tables);
        tables.extend(weights);
        [start, weights_at, taps as u32, 0]
    };
    let down = plan.down.each_ref().map(|taps| {
        let n = taps.width.next_multiple_of(2);
        axis(&taps.start, n, taps.weights.chunks(taps.width).flat_map(pairs).collect())
    });
    let across = plan.across.each_ref().map(|taps: &Taps| {
        // By tap, then by place.
        let by_tap = (0..taps.width).flat_map(|j| taps.weights.iter().skip(j).step_by(taps.width));
        axis(&taps.start, taps.width, by_tap.map(|w| (*w as f32).to_bits()).collect())
    });
    let sample_bytes = look.format.sample_bytes();
    let sizes = look.plane_sizes();
    let normalize = recipe.normalize();
    let m = plan.to_rgb;
    let is_yuv = matches!(look.format.layout, Layout::Planar | Layout::SemiPlanar);
    let orientation = look.orientation;
    let mut words: Vec<u32> = down.into_iter().chain(across).flatten().collect();
    words.extend([plan.width, plan.height, tile.0, tile.1, planes.n].map(|n| n as u32));
    words.extend([planes.n_components, sample_bytes as u32]);
    words.extend(sizes.map(|(row_bytes, _)| (row_bytes / sample_bytes) as u32));
    words.extend(sizes.map(|(_, rows)| rows as u32));
    words.extend([planes.kind, planes.step, planes.plane_of, planes.offset_of].into_iter().flatten());
    words.extend(
        [is_yuv, orientation.transpose, orientation.flip_across, orientation.flip_down].map(u32::from),
    );
    let floats_of = [m.black, m.luma, m.centre, m.rv, m.gu, m.gv, m.bu].map(|f| (f as f32).to_bits());
    words.extend(floats_of);
    words.extend(normalize.scale.into_iter().chain(normalize.bias).map(f32::to_bits));
    debug_assert_eq!(4 * words.len(), HEADER_BYTES);
    words.extend(tables);
    Some((words, n_tiles, floats(tile)))
}

/// Weights of one output as pairs of 16-bit integers, whose sum is exactly one.
fn pairs(weights: &[f64]) -> Vec<u32> {
    let one = f64::from(1u32 << WEIGHT_BITS);
    let mut whole: Vec<i32> = weights.iter().map(|w| (w * one).round() as i32).collect();
    let missing = (1 << WEIGHT_BITS) - whole.iter().sum::<i32>();
    if let Some(largest) = whole.iter_mut().max_by_key(|w| **w) {
        *largest += missing;
    }
    let pair = |pair: &[i32]| {
        let high = pair.get(1).copied().unwrap_or(0);
        (pair[0] as u32 & 0xFFFF) | (high as u32) << 16
    };
    whole.chunks(2).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_weights_sum_to_one() {
        for weights in [vec![1.0], vec![0.3, 0.4, 0.3], vec![1.0 / 7.0; 7], vec![-0.07, 0.57, 0.57, -0.07]] {
            let pairs = pairs(&weights);
            let sum: i32 = pairs.iter().map(|p| i32::from(*p as u16 as i16) + (*p as i32 >> 16)).sum();
            assert_eq!((sum, pairs.len()), (1 << WEIGHT_BITS, weights.len().div_ceil(2)));
        }
    }
}
