//! Kernels on a device against the CPU, on inputs that nobody chose.
//!
//! Where both are whole numbers, or floats in one order, every bit must agree; preprocessing may differ by
//! one level of 255, and no more than 0.56 from the exact value: half for the rounding, the rest for weights
//! with 14 bits of fraction.

use anyhow::{Result, ensure};
use half::f16;
use kernels::{
    cosine_top_k::{self, GpuTopK, Matrix},
    device::DeviceBuffer,
    frame_statistics::{self, Bins, GpuStatistics},
    l2_normalize::{self, GpuNormalizer, Rows},
    picture::{
        Colour, Layout, Look, Matrix as ColourMatrix, Orientation, Picture, PixelFormat, Plane, Range,
        SampleAspect, Siting,
    },
    preprocess::{
        Recipe, Resize,
        on_gpu::{Float, GpuPreprocessor},
    },
    reference,
    resample::Filter,
};
use serde::Serialize;

use super::{Device, Noise, Scale};
use crate::print;

/// What was compared.
#[derive(Clone, Debug, Serialize)]
pub struct Compared {
    /// The kernel.
    pub name: &'static str,
    /// Pictures, rows or queries.
    pub n: usize,
    /// The largest difference found, in levels of 255 or in bits.
    pub most_apart: f64,
}

/// Every kernel. A difference beyond what is allowed is an error.
pub fn run(device: &Device, scale: Scale) -> Result<Vec<Compared>> {
    let all: [fn(&Device, Scale) -> Result<Compared>; 5] =
        [preprocess, frame_statistics, l2_normalize, cosine_top_k, far_rows];
    let mut compared = Vec::new();
    for compare in all {
        let one = compare(device, scale)?;
        print(&format!("{:<24} {:>7} compared, at most {} apart", one.name, one.n, one.most_apart));
        compared.push(one);
    }
    Ok(compared)
}

/// A picture in host memory.
struct Made {
    look: Look,
    planes: [(usize, usize); 3],
    bytes: Vec<u8>,
}

impl Made {
    fn new(look: Look, noise: &mut Noise) -> Self {
        let sample_bytes = look.format.sample_bytes();
        let (mut bytes, mut planes) = (Vec::new(), [(0, 0); 3]);
        for (plane, (row_bytes, rows)) in planes.iter_mut().zip(look.plane_sizes()) {
            // As decoders align them, and as files have them.
            let stride = if noise.below(2) == 0 { row_bytes.next_multiple_of(256) } else { row_bytes };
            *plane = (bytes.len(), stride);
            for _ in 0..rows * stride / sample_bytes {
                let sample = noise.below(1 << look.format.depth) as u16;
                bytes.extend(&sample.to_le_bytes()[..sample_bytes]);
            }
            bytes.resize(bytes.len().next_multiple_of(256), 0);
        }
        Self { look, planes, bytes }
    }

    fn any(noise: &mut Noise, most: usize) -> Self {
        let layouts = [
            (Layout::SemiPlanar, (1, 1)),
            (Layout::Planar, (1, 1)),
            (Layout::Planar, (1, 0)),
            (Layout::Planar, (0, 0)),
            (Layout::Gray, (0, 0)),
        ];
        let (layout, subsampling) = layouts[noise.below(layouts.len())];
        let format = PixelFormat { layout, subsampling, depth: [8, 8, 10, 16][noise.below(4)] };
        let matrix = [ColourMatrix::Bt601, ColourMatrix::Bt709, ColourMatrix::Bt2020][noise.below(3)];
        let range = [Range::Limited, Range::Full][noise.below(2)];
        let siting = Siting { cosited_across: noise.below(2) == 0, cosited_down: noise.below(2) == 0 };
        let look = Look {
            width: noise.below(most) + 1,
            height: noise.below(most) + 1,
            format,
            colour: Colour { matrix, range, siting },
            orientation: Orientation::rotated(noise.below(4) as u8),
            sample_aspect: SampleAspect::default(),
        };
        Self::new(look, noise)
    }

    fn picture(&self) -> Picture<'_> {
        let Look { width, height, format, colour, orientation, sample_aspect } = self.look;
        let planes = self.planes.map(|(at, stride)| Plane { data: &self.bytes[at..], stride });
        Picture { planes, width, height, format, colour, orientation, sample_aspect }
    }
}

fn upload(device: &Device, made: &[Made]) -> Result<Vec<DeviceBuffer>> {
    made.iter().map(|made| device.filled(&made.bytes, made.bytes.len())).collect()
}

fn on<'a>(
    buffers: &'a [DeviceBuffer],
    made: &[Made],
    i: usize,
) -> Result<kernels::picture::DevicePicture<'a>> {
    let found = buffers[i].picture(made[i].planes, made[i].look);
    found.ok_or_else(|| anyhow::anyhow!("{:?} is not in its buffer", made[i].look))
}

fn preprocess(device: &Device, scale: Scale) -> Result<Compared> {
    let mut noise = Noise::new(1);
    let side = scale.pick(224, 24);
    let mut most_apart = 0f64;
    let n = scale.pick(200, 6);
    for filter in [Filter::Bicubic, Filter::Bilinear] {
        // Levels from 0 to 255.
        let recipe = Recipe {
            width: side,
            height: side,
            resize: Resize::ShorterSide(side),
            filter,
            mean: [0.0; 3],
            std: [1.0 / 255.0; 3],
        };
        let made: Vec<Made> = (0..n).map(|_| Made::any(&mut noise, scale.pick(1200, 80))).collect();
        let buffers = upload(device, &made)?;
        let pictures = (0..n).map(|i| on(&buffers, &made, i)).collect::<Result<Vec<_>>>()?;
        let mut on_gpu = GpuPreprocessor::new(&device.programs, recipe.clone(), Float::Half)?;
        let bytes = on_gpu.tensor_bytes();
        let mut out = DeviceBuffer::new(&device.gpu, n * bytes)?;
        on_gpu.run(&pictures, &mut out, 0)?;
        for (i, made) in made.iter().enumerate() {
            let got = device.read(&out, i * bytes, bytes)?;
            let want = reference::colours(&recipe, &made.picture());
            for (got, want) in got.chunks_exact(2).zip(want) {
                let got = f64::from(f16::from_le_bytes([got[0], got[1]]).to_f32());
                most_apart = most_apart.max((got - want).abs());
            }
            ensure!(most_apart < 0.56, "preprocess: {most_apart} levels apart, {:?}", made.look);
        }
    }
    Ok(Compared { name: "preprocess", n: 2 * n, most_apart })
}

fn frame_statistics(device: &Device, scale: Scale) -> Result<Compared> {
    let mut noise = Noise::new(2);
    let n = scale.pick(200, 6);
    let made: Vec<Made> = (0..n).map(|_| Made::any(&mut noise, scale.pick(1500, 60))).collect();
    let again: Vec<Made> = made.iter().map(|made| Made::new(made.look, &mut noise)).collect();
    let (buffers, buffers_again) = (upload(device, &made)?, upload(device, &again)?);
    for bins in [Bins::Thirty2, Bins::Sixty4] {
        let pairs = (0..n)
            .map(|i| Ok((on(&buffers, &made, i)?, Some(on(&buffers_again, &again, i)?))))
            .collect::<Result<Vec<_>>>()?;
        let got = GpuStatistics::new(&device.programs, bins)?.run(&pairs)?;
        for ((made, again), got) in made.iter().zip(&again).zip(got) {
            let want = frame_statistics::measure(&made.picture(), Some(&again.picture()), bins);
            ensure!(got == want, "frame_statistics of {:?}: {got:?}, not {want:?}", made.look);
        }
    }
    Ok(Compared { name: "frame_statistics", n: 2 * n, most_apart: 0.0 })
}

fn l2_normalize(device: &Device, scale: Scale) -> Result<Compared> {
    let mut noise = Noise::new(3);
    let on_gpu = GpuNormalizer::new(&device.programs)?;
    let mut n_rows = 0;
    for _ in 0..scale.pick(100, 4) {
        let (n, dim) = (noise.below(scale.pick(3000, 20)) + 1, noise.below(scale.pick(2000, 300)) + 1);
        let mut rows: Vec<f32> = (0..n * dim).map(|_| noise.float()).collect();
        rows[..dim].fill(0.0);
        let bytes: Vec<u8> = rows.iter().flat_map(|v| v.to_le_bytes()).collect();
        let mut buffer = device.filled(&bytes, bytes.len())?;
        let mut halves = DeviceBuffer::new(&device.gpu, n * dim * 2)?;
        on_gpu.run(&mut buffer, Rows { first: 0, n, dim }, Some(&mut halves))?;
        rows.chunks_mut(dim).for_each(l2_normalize::normalize);
        let want: Vec<u8> = rows.iter().flat_map(|v| v.to_le_bytes()).collect();
        ensure!(device.read(&buffer, 0, bytes.len())? == want, "l2_normalize: {n} rows of {dim} differ");
        let want: Vec<u8> = rows.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        ensure!(
            device.read(&halves, 0, want.len())? == want,
            "l2_normalize: {n} rows of {dim} differ in halves"
        );
        n_rows += n;
    }
    Ok(Compared { name: "l2_normalize", n: n_rows, most_apart: 0.0 })
}

/// A few rows again and again, so that many are equally good.
fn rows_of(noise: &mut Noise, n: usize, dim: usize) -> Vec<f16> {
    let some: Vec<f16> = (0..n.div_ceil(3) * dim).map(|_| f16::from_f32(noise.float() / 16.0)).collect();
    some.iter().copied().cycle().take(n * dim).collect()
}

fn bytes_of(rows: &[f16]) -> Vec<u8> {
    rows.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn cosine_top_k(device: &Device, scale: Scale) -> Result<Compared> {
    let mut noise = Noise::new(4);
    let mut n_queries = 0;
    for _ in 0..scale.pick(60, 3) {
        let (n, dim) = (noise.below(scale.pick(60_000, 80)) + 1, noise.below(scale.pick(600, 60)) + 1);
        let k = noise.below(scale.pick(cosine_top_k::MOST_K, 30)) + 1;
        let rows = rows_of(&mut noise, n, dim);
        let buffer = device.filled(&bytes_of(&rows), n * dim * 2)?;
        let queries: Vec<f32> = (0..3 * dim).map(|_| noise.float()).collect();
        let whole = Matrix { buffer: &buffer, first: 0, n: n as u64 };
        let got = GpuTopK::new(&device.programs, dim, k)?.run(whole, &queries)?;
        for (query, got) in queries.chunks(dim).zip(got) {
            let want = cosine_top_k::reference(&rows, query, k);
            ensure!(got == want, "cosine_top_k: the {k} best of {n} x {dim} differ");
            n_queries += 1;
        }
    }
    Ok(Compared { name: "cosine_top_k", n: n_queries, most_apart: 0.0 })
}

/// A matrix of more than 2^32 values: the best rows are the last ones.
fn far_rows(device: &Device, scale: Scale) -> Result<Compared> {
    let dim = 4096;
    let n = scale.pick((1 << 20) + 77, 64);
    if device.gpu.memory()?.0 < n * dim * 2 + (1 << 30) && scale == Scale::Whole {
        print("cosine_top_k beyond 2^32: left out, the device has not as much memory");
        return Ok(Compared { name: "cosine_top_k beyond 2^32", n: 0, most_apart: 0.0 });
    }
    let mut noise = Noise::new(6);
    let dull = bytes_of(&rows_of(&mut noise, 32, dim));
    let mut buffer = device.filled(&dull, n * dim * 2)?;
    let query: Vec<f32> = (0..dim).map(|_| noise.float()).collect();
    for i in 0..5 {
        let row: Vec<f16> = query.iter().map(|v| f16::from_f32(v * (5 - i) as f32)).collect();
        buffer.write((n - 5 + i) * dim * 2, &bytes_of(&row), &device.stream)?;
    }
    let whole = Matrix { buffer: &buffer, first: 0, n: n as u64 };
    let got = GpuTopK::new(&device.programs, dim, 5)?.run(whole, &query)?;
    let rows: Vec<u64> = got[0].iter().map(|hit| hit.row).collect();
    let want: Vec<u64> = (n as u64 - 5..n as u64).collect();
    ensure!(rows == want, "cosine_top_k beyond 2^32: rows {rows:?}, not {want:?}");
    Ok(Compared { name: "cosine_top_k beyond 2^32", n, most_apart: 0.0 })
}
