//! How fast each kernel is, as a share of what the device's memory allows, and its CPU form.
//!
//! The floor of a kernel is the time in which a copy inside the device moves the bytes that it must read and
//! write once. For preprocessing those are the samples under the crop and the tensor, without the filter's
//! margin: the true floor is a little higher.

use std::time::Instant;

use anyhow::Result;
use half::f16;
use kernels::{
    cosine_top_k::{self, GpuTopK, Matrix},
    device::DeviceBuffer,
    frame_statistics::{self, Bins, GpuStatistics},
    l2_normalize::{self, GpuNormalizer, Rows},
    picture::{Colour, DevicePicture, Layout, Look, Orientation, Picture, PixelFormat, Plane, SampleAspect},
    preprocess::{
        Recipe, Resize,
        on_gpu::{Float, GpuPreprocessor},
    },
    resample::Filter,
};
use serde::Serialize;

use super::{Device, Noise, Scale};
use crate::print;

/// One measured thing.
#[derive(Clone, Debug, Serialize)]
pub struct Measured {
    /// Such as `preprocess 1920x1080`.
    pub name: String,
    /// What is counted.
    pub unit: &'static str,
    /// How many a second.
    pub per_s: f64,
    /// Gigabytes a second that it must move.
    pub gb_per_s: f64,
    /// Of what a copy moves; none on the CPU.
    pub of_bandwidth: Option<f64>,
}

/// NV12, whose rows are as long as NVDEC's: multiples of 256 bytes.
fn look(width: usize, height: usize) -> Look {
    Look {
        width,
        height,
        format: PixelFormat { layout: Layout::SemiPlanar, subsampling: (1, 1), depth: 8 },
        colour: Colour::default(),
        orientation: Orientation::default(),
        sample_aspect: SampleAspect::default(),
    }
}

/// Frames one behind the other in one buffer.
struct Frames {
    look: Look,
    n: usize,
    buffer: DeviceBuffer,
}

impl Frames {
    /// As many as no cache holds.
    fn new(device: &Device, (width, height): (usize, usize), scale: Scale) -> Result<Self> {
        let look = look(width, height);
        let bytes = Self::bytes_of(look);
        let n = scale.pick(((512 << 20) / bytes).clamp(64, 2048), 3);
        let buffer = device.filled(&Noise::new(width).bytes(bytes), n * bytes)?;
        Ok(Self { look, n, buffer })
    }

    fn bytes_of(look: Look) -> usize {
        look.width.next_multiple_of(256) * (look.height + look.height.div_ceil(2))
    }

    fn picture(&self, i: usize) -> Result<DevicePicture<'_>> {
        let (stride, first) = (self.look.width.next_multiple_of(256), i % self.n * Self::bytes_of(self.look));
        let planes = [(first, stride), (first + stride * self.look.height, stride), (0, 0)];
        self.buffer
            .picture(planes, self.look)
            .ok_or_else(|| anyhow::anyhow!("frame {i} is not in its buffer"))
    }

    fn pictures(&self) -> Result<Vec<DevicePicture<'_>>> {
        (0..self.n).map(|i| self.picture(i)).collect()
    }
}

struct Bench<'a> {
    device: &'a Device,
    scale: Scale,
    copy_gb_per_s: f64,
    measured: Vec<Measured>,
}

impl Bench<'_> {
    fn add(&mut self, name: String, unit: &'static str, n: usize, bytes: usize, ms: f64) {
        let (per_s, gb_per_s) = (n as f64 / ms * 1e3, bytes as f64 / ms / 1e6);
        let share = gb_per_s / self.copy_gb_per_s;
        print(&format!(
            "{name:<44} {per_s:>14.0} {unit}/s {gb_per_s:>8.1} GB/s {:>6.1} % of a copy",
            share * 100.0
        ));
        self.measured.push(Measured { name, unit, per_s, gb_per_s, of_bandwidth: Some(share) });
    }

    fn rounds(&self) -> usize {
        self.scale.pick(20, 1)
    }

    fn preprocess(&mut self, size: (usize, usize)) -> Result<()> {
        let side = self.scale.pick(224, 16);
        let recipe = Recipe {
            width: side,
            height: side,
            resize: Resize::ShorterSide(side),
            filter: Filter::Bicubic,
            mean: [0.48, 0.46, 0.41],
            std: [0.27, 0.26, 0.28],
        };
        let frames = Frames::new(self.device, size, self.scale)?;
        let mut on_gpu = GpuPreprocessor::new(&self.device.programs, recipe, Float::Half)?;
        let mut out = DeviceBuffer::new(&self.device.gpu, frames.n * on_gpu.tensor_bytes())?;
        let ms = on_gpu.measure(&frames.pictures()?, &mut out, self.rounds())?;
        // The crop is a square as high as the frame.
        let crop = size.0.min(size.1).pow(2);
        let bytes = frames.n * (crop + crop / 2 + on_gpu.tensor_bytes());
        self.add(
            format!("preprocess {}x{} NV12 to {side} fp16", size.0, size.1),
            "frames",
            frames.n,
            bytes,
            ms,
        );
        Ok(())
    }

    fn frame_statistics(&mut self, size: (usize, usize), is_compared: bool) -> Result<()> {
        let frames = Frames::new(self.device, size, self.scale)?;
        let n = frames.n.min(64);
        let mut pairs = Vec::new();
        for i in 0..n {
            // Far apart, so that none is read twice while a cache still has it.
            let before = if is_compared { Some(frames.picture(i + frames.n / 2)?) } else { None };
            pairs.push((frames.picture(i)?, before));
        }
        let mut on_gpu = GpuStatistics::new(&self.device.programs, Bins::Sixty4)?;
        let ms = on_gpu.measure(&pairs, self.rounds())?;
        let bytes = n * size.0 * size.1 * if is_compared { 2 } else { 1 };
        let told = if is_compared { ", compared" } else { "" };
        self.add(format!("frame_statistics {}x{}{told}", size.0, size.1), "frames", n, bytes, ms);
        Ok(())
    }

    fn l2_normalize(&mut self, dim: usize, has_halves: bool) -> Result<()> {
        let n = self.scale.pick((1 << 29) / dim, 20);
        let row: Vec<u8> = (0..dim).flat_map(|i| ((i + 1) as f32).to_le_bytes()).collect();
        let mut buffer = self.device.filled(&row.repeat(n.min(4096)), n * dim * 4)?;
        let mut halves = DeviceBuffer::new(&self.device.gpu, if has_halves { n * dim * 2 } else { 0 })?;
        let on_gpu = GpuNormalizer::new(&self.device.programs)?;
        let rows = Rows { first: 0, n, dim };
        let ms = on_gpu.measure(&mut buffer, rows, has_halves.then_some(&mut halves), self.rounds())?;
        let bytes = n * dim * if has_halves { 10 } else { 8 };
        let told = if has_halves { ", and halves" } else { "" };
        self.add(format!("l2_normalize {dim}{told}"), "rows", n, bytes, ms);
        Ok(())
    }

    fn cosine_top_k(&mut self, dim: usize, k: usize) -> Result<()> {
        let n = self.scale.pick((4 << 30) / dim / 2, 40);
        let mut noise = Noise::new(dim);
        let some = n.min(8192);
        let rows: Vec<u8> =
            (0..some * dim).flat_map(|_| f16::from_f32(noise.float()).to_le_bytes()).collect();
        let buffer = self.device.filled(&rows, n * dim * 2)?;
        let mut on_gpu = GpuTopK::new(&self.device.programs, dim, k)?;
        let query: Vec<f32> = (0..dim).map(|_| noise.float()).collect();
        let whole = Matrix { buffer: &buffer, first: 0, n: n as u64 };
        let (ms, together) = on_gpu.measure(whole, &query, self.rounds())?;
        // The matrix is read once for all queries of a pass.
        self.add(format!("cosine_top_k {dim}, {k} best, {together} queries"), "rows", n, n * dim * 2, ms);
        Ok(())
    }
}

/// Every kernel on the device.
pub fn run(device: &Device, scale: Scale) -> Result<Vec<Measured>> {
    let copy_gb_per_s = device.bandwidth(scale)?;
    print(&format!("{:<44} {:>30.1} GB/s read and written", "copy", copy_gb_per_s));
    let name = "copy".to_owned();
    let copy = Measured {
        name,
        unit: "bytes",
        per_s: copy_gb_per_s * 1e9,
        gb_per_s: copy_gb_per_s,
        of_bandwidth: Some(1.0),
    };
    let mut bench = Bench { device, scale, copy_gb_per_s, measured: vec![copy] };
    let all = [(320, 240), (1280, 720), (1920, 1080), (3840, 2160)];
    for size in scale.pick(&all[..], &[(64, 48)]) {
        bench.preprocess(*size)?;
        bench.frame_statistics(*size, false)?;
        bench.frame_statistics(*size, true)?;
    }
    for dim in scale.pick(&[384, 512, 768, 1280][..], &[64]) {
        bench.l2_normalize(*dim, false)?;
        bench.l2_normalize(*dim, true)?;
    }
    for (dim, k) in scale.pick(&[(512, 10), (512, 1000), (1280, 10), (4096, 10)][..], &[(64, 3)]) {
        bench.cosine_top_k(*dim, *k)?;
    }
    Ok(bench.measured)
}

/// The CPU forms, on one thread.
pub fn on_cpu(scale: Scale) -> Result<Vec<Measured>> {
    let mut measured = Vec::new();
    let mut measure = |name: String, unit, n: usize, bytes: usize, work: &mut dyn FnMut()| {
        work();
        let rounds = scale.pick(10, 1);
        let started = Instant::now();
        (0..rounds).for_each(|_| work());
        let s = started.elapsed().as_secs_f64() / f64::from(rounds);
        let (per_s, gb_per_s) = (n as f64 / s, bytes as f64 / s / 1e9);
        print(&format!("{name:<44} {per_s:>14.0} {unit}/s {gb_per_s:>8.1} GB/s"));
        measured.push(Measured { name, unit, per_s, gb_per_s, of_bandwidth: None });
    };
    let mut noise = Noise::new(5);
    let (n, dim) = (scale.pick(20_000, 20), 512);
    let mut rows: Vec<f32> = (0..n * dim).map(|_| noise.float()).collect();
    measure(format!("l2_normalize {dim} on the CPU"), "rows", n, n * dim * 8, &mut || {
        rows.chunks_mut(dim).for_each(l2_normalize::normalize);
    });
    let halves: Vec<f16> = rows.iter().map(|v| f16::from_f32(*v)).collect();
    measure(format!("cosine_top_k {dim}, 10 best on the CPU"), "rows", n, n * dim * 2, &mut || {
        std::hint::black_box(cosine_top_k::top_k(&halves, &rows[..dim], 10));
    });
    let (width, height) = scale.pick((1920, 1080), (64, 48));
    let look = look(width, height);
    let (bytes, before) = (noise.bytes(width * height), noise.bytes(width * height));
    let picture = |data| {
        let planes = [data, &[][..], &[]].map(|data| Plane { data, stride: width });
        let Look { width, height, format, colour, orientation, sample_aspect } = look;
        Picture { planes, width, height, format, colour, orientation, sample_aspect }
    };
    let name = format!("frame_statistics {width}x{height}, compared, on the CPU");
    measure(name, "frames", 1, 2 * width * height, &mut || {
        let (now, before) = (picture(&bytes[..]), picture(&before[..]));
        std::hint::black_box(frame_statistics::measure(&now, Some(&before), Bins::Sixty4));
    });
    Ok(measured)
}
