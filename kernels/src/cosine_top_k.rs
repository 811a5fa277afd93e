//! The rows that lie nearest to a query, of a matrix of halves of unit length: `cu/cosine_top_k.cu`, and the
//! same on the CPU.
//!
//! Best first; of two rows with one score the lower comes first. A score that is no number is nobody's best.
//! The kernel's scores are [`score`]'s to the bit; [`top_k`] sums in another order, so that scores differ by
//! rounding and rows that are as near as that may change places.

use cudarc::driver::{DeviceRepr, LaunchConfig, PushKernelArg};
use half::f16;

use crate::{
    device::DeviceBuffer,
    dot::dot_f16,
    gpu::{
        CudaError, Stream, named,
        program::{Programs, Unusable},
    },
};

/// The kernel's file and text.
pub const SOURCE: (&str, &str) = ("cosine_top_k.cu", include_str!("../cu/cosine_top_k.cu"));

/// Values of a row that the kernel takes at most: queries must lie in shared memory.
pub const MOST_DIM: usize = 4096;
/// Rows that it can be asked for.
pub const MOST_K: usize = 1024;
/// Of a block.
const THREADS: usize = 256;
/// Rows that a block takes at a time.
const ROWS: usize = 32;
/// Blocks of a processor at once: see the kernel.
const BLOCKS: usize = 2;
/// Shared memory that every device gives a block unasked.
const SHARED_BYTES: usize = 48 << 10;
/// Rows of one launch: a row's number is half a key.
const ROWS_A_LAUNCH: u64 = 1 << 31;

/// A row that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    /// Of the matrix.
    pub row: u64,
    /// Its inner product with the query.
    pub score: f32,
}

/// The kernel's score, to the bit: each lane of 32 adds up eight values in turn, then lanes meet in pairs.
pub fn score(row: &[f16], query: &[f32]) -> f32 {
    assert_eq!(row.len(), query.len(), "row and query have the same dimension");
    let mut lanes = [0f32; 32];
    for (row, query) in row.chunks(8 * lanes.len()).zip(query.chunks(8 * lanes.len())) {
        for ((lane, row), query) in lanes.iter_mut().zip(row.chunks(8)).zip(query.chunks(8)) {
            for (r, q) in row.iter().zip(query) {
                *lane = r.to_f32().mul_add(*q, *lane);
            }
        }
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

/// Best first, then by row.
fn by_rank(a: &Hit, b: &Hit) -> std::cmp::Ordering {
    // There are two zeros.
    (b.score + 0.0).total_cmp(&(a.score + 0.0)).then(a.row.cmp(&b.row))
}

fn keep_best(hits: &mut Vec<Hit>, k: usize) {
    if hits.len() > k && k > 0 {
        hits.select_nth_unstable_by(k - 1, by_rank);
    }
    hits.truncate(k);
}

/// On the CPU: the `k` best of rows as long as the query.
pub fn top_k(rows: &[f16], query: &[f32], k: usize) -> Vec<Hit> {
    if k == 0 || query.is_empty() {
        return Vec::new();
    }
    let mut hits: Vec<Hit> = Vec::with_capacity(2 * k + 1);
    let mut least = f32::NEG_INFINITY;
    for (row, values) in (0..).zip(rows.chunks_exact(query.len())) {
        let score = dot_f16(values, query);
        // Rows come in order, so one that is only as good ranks behind.
        if score > least || (hits.len() < k && score == least) {
            hits.push(Hit { row, score });
            if hits.len() > 2 * k {
                keep_best(&mut hits, k);
                least = hits.last().map_or(least, |hit| hit.score);
            }
        }
    }
    keep_best(&mut hits, k);
    hits.sort_unstable_by(by_rank);
    hits
}

/// The same, by sorting all; scores are [`score`]'s.
pub fn reference(rows: &[f16], query: &[f32], k: usize) -> Vec<Hit> {
    let scored = rows.chunks_exact(query.len().max(1)).map(|row| score(row, query));
    let mut hits: Vec<Hit> =
        (0..).zip(scored).filter(|(_, s)| !s.is_nan()).map(|(row, score)| Hit { row, score }).collect();
    hits.sort_by(by_rank);
    hits.truncate(k);
    hits
}

/// As `Search` in the kernel.
#[derive(Clone, Copy)]
#[repr(C)]
struct Search {
    rows: u64,
    queries: u64,
    best: u64,
    n_rows: u64,
    rows_each: u32,
    dim: u32,
    pitch: u32,
    k: u32,
    capacity: u32,
    n_queries: u32,
}

// SAFETY: plain numbers, laid out as C does.
unsafe impl DeviceRepr for Search {}

/// A matrix in a device's memory: `n` rows, from row `first` of a buffer on. Rows are numbered from there.
#[derive(Clone, Copy, Debug)]
pub struct Matrix<'a> {
    /// Rows of halves.
    pub buffer: &'a DeviceBuffer,
    /// Rows before them in the buffer.
    pub first: u64,
    /// How many.
    pub n: u64,
}

/// The kernels on one device, for rows of one dimension.
pub struct GpuTopK {
    programs: Programs,
    stream: Stream,
    dim: usize,
    k: usize,
    /// Queries of one pass over the matrix: 1, 2 or 4, as many as shared memory holds.
    together: usize,
    n_blocks: usize,
    queries: DeviceBuffer,
    best: DeviceBuffer,
    rows_a_launch: u64,
}

impl GpuTopK {
    /// With a stream of its own. Compiles the kernels where that was not done before.
    ///
    /// # Panics
    /// If `dim` is not in 1 to [`MOST_DIM`], or `k` not in 1 to [`MOST_K`].
    pub fn new(programs: &Programs, dim: usize, k: usize) -> Result<Self, Unusable> {
        assert!((1..=MOST_DIM).contains(&dim), "dim is {dim}");
        assert!((1..=MOST_K).contains(&k), "k is {k}");
        let fits = |n: &usize| shared_bytes(*n, dim, k) <= SHARED_BYTES;
        let together = [4, 2].into_iter().find(fits).unwrap_or(1);
        programs.function(SOURCE, name(together))?;
        let gpu = programs.gpu();
        let n_blocks = BLOCKS * gpu.processors()?;
        Ok(Self {
            programs: programs.clone(),
            stream: gpu.stream()?,
            dim,
            k,
            together,
            n_blocks,
            queries: DeviceBuffer::new(gpu, together * dim * 4)?,
            best: DeviceBuffer::new(gpu, n_blocks * together * k * 8)?,
            rows_a_launch: ROWS_A_LAUNCH,
        })
    }

    /// Splits matrices with more rows than this, to test that.
    #[doc(hidden)]
    pub fn with_rows_a_launch(self, rows_a_launch: u64) -> Self {
        Self { rows_a_launch, ..self }
    }

    /// The best rows of each query, in order. Halves are widened to floats without loss by the caller.
    ///
    /// # Panics
    /// If the matrix is not inside its buffer, or `queries` are no whole number of them.
    pub fn run(&mut self, matrix: Matrix<'_>, queries: &[f32]) -> Result<Vec<Vec<Hit>>, CudaError> {
        assert!(queries.len().is_multiple_of(self.dim), "whole queries of {} values", self.dim);
        let mut found = Vec::with_capacity(queries.len() / self.dim);
        for queries in queries.chunks(self.together * self.dim) {
            let n_queries = queries.len() / self.dim;
            let bytes: Vec<u8> = queries.iter().flat_map(|v| v.to_le_bytes()).collect();
            self.queries.write(0, &bytes, &self.stream)?;
            let mut hits = vec![Vec::new(); n_queries];
            let mut first = 0;
            while first < matrix.n {
                let n = (matrix.n - first).min(self.rows_a_launch);
                let n_blocks = self.launch(Matrix { first: matrix.first + first, n, ..matrix }, n_queries)?;
                self.read_best(n_blocks, first, &mut hits)?;
                first += n;
            }
            found.extend(hits.into_iter().map(|mut hits| {
                hits.sort_unstable_by(by_rank);
                hits
            }));
        }
        Ok(found)
    }

    /// Milliseconds of one pass over the matrix with as many queries as it takes, the mean of `n`; and how
    /// many queries those are. The host's merging is not in it.
    #[doc(hidden)]
    pub fn measure(
        &mut self,
        matrix: Matrix<'_>,
        query: &[f32],
        n: usize,
    ) -> Result<(f64, usize), CudaError> {
        let bytes: Vec<u8> = query.iter().flat_map(|v| v.to_le_bytes()).collect();
        self.queries.write(0, &bytes.repeat(self.together), &self.stream)?;
        let stream = self.stream.clone();
        Ok((stream.mean_ms(n, || self.launch(matrix, self.together).map(drop))?, self.together))
    }

    /// Merges what the blocks found; the first row of their launch is row `first` of the matrix.
    fn read_best(&self, n_blocks: usize, first: u64, hits: &mut [Vec<Hit>]) -> Result<(), CudaError> {
        let mut bytes = vec![0; n_blocks * self.together * self.k * 8];
        // It waits, for what was queued before too.
        self.best.read(0, &mut bytes, &self.stream)?;
        for (i, keys) in bytes.chunks(self.k * 8).enumerate() {
            // The last lists may be of no query.
            let Some(hits) = hits.get_mut(i % self.together) else { continue };
            let keys = keys.chunks_exact(8).map(|b| b.iter().rev().fold(0u64, |k, b| k << 8 | u64::from(*b)));
            // They come best first, and end with zeros.
            hits.extend(keys.take_while(|key| *key != 0).map(|key| hit_of(key, first)));
        }
        hits.iter_mut().for_each(|hits| keep_best(hits, self.k));
        Ok(())
    }

    /// Queues one pass; returns its number of blocks.
    fn launch(&mut self, matrix: Matrix<'_>, n_queries: usize) -> Result<usize, CudaError> {
        let row_bytes = 2 * self.dim as u64;
        let end = matrix.first.checked_add(matrix.n).and_then(|rows| rows.checked_mul(row_bytes));
        assert!(end.is_some_and(|end| end <= matrix.buffer.bytes() as u64), "the matrix is in its buffer");
        let rows_each = (matrix.n as usize).div_ceil(self.n_blocks).next_multiple_of(ROWS);
        let n_blocks = (matrix.n as usize).div_ceil(rows_each);
        let search = Search {
            rows: matrix.buffer.address() + matrix.first * row_bytes,
            queries: self.queries.address(),
            best: self.best.address(),
            n_rows: matrix.n,
            rows_each: rows_each as u32,
            dim: self.dim as u32,
            pitch: pitch(self.dim) as u32,
            k: self.k as u32,
            capacity: capacity(self.k) as u32,
            n_queries: n_queries as u32,
        };
        let function = self.programs.loaded(SOURCE, name(self.together))?;
        let config = LaunchConfig {
            grid_dim: (n_blocks as u32, 1, 1),
            block_dim: (THREADS as u32, 1, 1),
            shared_mem_bytes: shared_bytes(self.together, self.dim, self.k) as u32,
        };
        // SAFETY: the kernel takes `Search` alone. The rows are in their buffer, which is borrowed until the
        // caller's wait; queries and best have room for `together` queries of every block; a block's shared
        // memory is what was reckoned. Rows start at multiples of 16 bytes where `dim` is one of eight, for
        // buffers do.
        unsafe { self.stream.inner().launch_builder(&function).arg(&search).launch(config) }
            .map_err(named("cuLaunchKernel"))?;
        Ok(n_blocks)
    }
}

fn pitch(dim: usize) -> usize {
    dim.next_multiple_of(256)
}

/// Keys of a list in shared memory: the best, and room for those that wait to be sorted.
fn capacity(k: usize) -> usize {
    (2 * k).next_power_of_two().max(256)
}

fn shared_bytes(queries: usize, dim: usize, k: usize) -> usize {
    // The k-th and the number of those that wait, of four lists.
    queries * (8 * capacity(k) + 4 * pitch(dim)) + 4 * (8 + 4)
}

fn hit_of(key: u64, first: u64) -> Hit {
    let ordered = (key >> 32) as u32;
    let bits = if ordered >> 31 == 1 { ordered & 0x7FFF_FFFF } else { !ordered };
    Hit { row: first + u64::from(u32::MAX - key as u32), score: f32::from_bits(bits) }
}

fn name(queries: usize) -> &'static str {
    match queries {
        4 => "cosine_top_k_4",
        2 => "cosine_top_k_2",
        _ => "cosine_top_k_1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_finds_what_sorting_finds() {
        let query: Vec<f32> = (0..48).map(|i| (i as f32 * 0.7).sin()).collect();
        for n in [0, 1, 7, 500] {
            // Every row three times, so that many are equally good; one is no number.
            let mut rows: Vec<f16> =
                (0..n * 48).map(|i| f16::from_f32(((i / 144 * 48 + i % 48) as f32 * 0.13).sin())).collect();
            if n == 500 {
                rows[48 * 9 + 5] = f16::NAN;
            }
            for k in [1, 3, 10, 499, 600] {
                let (fast, plain) = (top_k(&rows, &query, k), reference(&rows, &query, k));
                assert_eq!(fast.len(), plain.len(), "{n} {k}");
                for (a, b) in fast.iter().zip(&plain) {
                    assert!(a.row == b.row && (a.score - b.score).abs() < 1e-4, "{n} {k}: {a:?} {b:?}");
                }
            }
        }
    }

    #[test]
    fn shared_memory_suffices_for_all_that_is_allowed() {
        assert!(shared_bytes(1, MOST_DIM, MOST_K) <= SHARED_BYTES);
    }
}
