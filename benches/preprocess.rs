//! The fused preprocessing alone, on one thread.
//!
//! `cargo bench --bench preprocess -- FRAMES.i420 WIDTH HEIGHT` takes frames from a file, as the
//! peers do, and prints `{"us_per_image": …}` last; without arguments it makes noise of usual sizes.

use anyhow::{Context as _, Result};
use benches::{Case, print, save, thread_cpu_ns};
use kernels::{
    aligned::AlignedFloats,
    lanes::Lanes,
    picture::{Colour, Layout, Orientation, Picture, PixelFormat, Plane, SampleAspect},
    preprocess::{Preprocessor, Recipe, Resize},
    resample::Filter,
};

fn recipe() -> Recipe {
    Recipe {
        width: 224,
        height: 224,
        resize: Resize::ShorterSide(224),
        filter: Filter::Bicubic,
        mean: [0.48, 0.46, 0.41],
        std: [0.27, 0.26, 0.28],
    }
}

struct Frames {
    width: usize,
    height: usize,
    format: PixelFormat,
    bytes: Vec<u8>,
}

impl Frames {
    fn noise(width: usize, height: usize, format: PixelFormat) -> Self {
        let mut state = 1u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            // The high byte of a sample stays inside ten bits.
            if format.depth > 8 { (state >> 30) as u8 } else { (state >> 24) as u8 }
        };
        let mut frames = Self { width, height, format, bytes: Vec::new() };
        frames.bytes = (0..8 * frames.len()).map(|_| next()).collect();
        frames
    }

    fn planes(&self) -> [(usize, usize); 3] {
        let (sx, sy) = self.format.subsampling;
        let bytes = self.format.sample_bytes();
        let chroma = (self.width.div_ceil(1 << sx) * bytes, self.height.div_ceil(1 << sy));
        [(self.width * bytes, self.height), chroma, chroma]
    }

    fn len(&self) -> usize {
        self.planes().iter().map(|(stride, rows)| stride * rows).sum()
    }

    fn picture(&self, i: usize) -> Picture<'_> {
        let mut rest = &self.bytes[i % (self.bytes.len() / self.len()) * self.len()..];
        let planes = self.planes().map(|(stride, rows)| {
            let (data, later) = rest.split_at(stride * rows);
            rest = later;
            Plane { data, stride }
        });
        Picture {
            planes,
            width: self.width,
            height: self.height,
            format: self.format,
            colour: Colour::default(),
            orientation: Orientation::default(),
            sample_aspect: SampleAspect::default(),
        }
    }
}

/// Median microseconds of CPU an image, of five rounds.
fn measure(frames: &Frames, lanes: Lanes) -> Result<f64> {
    let mut preprocessor = Preprocessor::with_lanes(recipe(), lanes);
    let mut out = AlignedFloats::zeroed(recipe().tensor_len());
    let out = &mut out.floats_mut()[..recipe().tensor_len()];
    // The clock ticks every 4 ms: a round must last for many of them.
    let n = (1_000_000_000 / (frames.width * frames.height + 200_000)).clamp(20, 4000);
    let mut rounds = Vec::new();
    for round in 0..6 {
        let before = thread_cpu_ns();
        for i in 0..n {
            preprocessor.run(&frames.picture(i), out)?;
        }
        // The first round warms up.
        if round > 0 {
            rounds.push((thread_cpu_ns() - before) as f64 / n as f64 / 1e3);
        }
    }
    rounds.sort_by(f64::total_cmp);
    Ok(rounds[2])
}

fn main() -> Result<()> {
    // `cargo bench` adds `--bench`.
    let args: Vec<String> = std::env::args().skip(1).filter(|a| a != "--bench").collect();
    if let [file, width, height] = &args[..] {
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {file}"))?;
        let frames =
            Frames { width: width.parse()?, height: height.parse()?, format: PixelFormat::I420, bytes };
        let us = measure(&frames, Lanes::detect())?;
        print(&serde_json::json!({ "us_per_image": us }).to_string());
        return Ok(());
    }
    let planar = |subsampling, depth| PixelFormat { layout: Layout::Planar, subsampling, depth };
    let mut cases = Vec::new();
    for (width, height) in [(320, 240), (640, 360), (1280, 720), (1920, 1080), (3840, 2160)] {
        for (name, format) in [("4:2:0 8 bit", PixelFormat::I420), ("4:4:4 10 bit", planar((0, 0), 10))] {
            let frames = Frames::noise(width, height, format);
            let every: Vec<f64> =
                Lanes::all().into_iter().map(|l| measure(&frames, l)).collect::<Result<_>>()?;
            let wide = every[every.len() - 1];
            let name = format!("preprocess {width}x{height} {name}");
            // Portable first, the widest that this CPU has last.
            let shown: Vec<String> = every.iter().map(|us| format!("{us:>9.1}")).collect();
            print(&format!("{name:<40} {} us an image", shown.join("")));
            cases.push(Case { name, unit: "frames", n: 1, cpu_s: wide / 1e6, wall_s: wide / 1e6 });
        }
    }
    save("preprocess", &cases)
}
