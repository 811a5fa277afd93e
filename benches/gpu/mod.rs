//! Kernels on a device: whether they agree with the CPU, and how far they are from what its memory allows.
//!
//! The program `gpu` runs this where there is a device, and needs nothing beside it; tests run it, small,
//! against the fake driver.

pub mod kernels;
pub mod parity;

use std::{fs, path::Path, path::PathBuf};

use ::kernels::{
    device::DeviceBuffer,
    gpu::{Gpu, Stream, program::Programs},
};
use anyhow::{Context as _, Result};
use serde::Serialize;

use crate::print;

/// How much work is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// What fills a device.
    Whole,
    /// So little that a CPU can play the device.
    Small,
}

impl Scale {
    /// One or the other.
    pub fn pick<T>(self, whole: T, small: T) -> T {
        match self {
            Self::Whole => whole,
            Self::Small => small,
        }
    }
}

/// An open device.
pub struct Device {
    /// It.
    pub gpu: Gpu,
    /// Its kernels.
    pub programs: Programs,
    /// For copies.
    pub stream: Stream,
}

impl Device {
    /// Device number `ordinal`; kernels are kept in `folder`, NVRTC is looked for in `libraries`.
    pub fn open(ordinal: usize, folder: &Path, libraries: &[PathBuf]) -> Result<Self> {
        let gpu = Gpu::open(ordinal)?;
        let programs = Programs::new(&gpu, folder, libraries);
        Ok(Self { programs, stream: gpu.stream()?, gpu })
    }

    /// Memory of its own with these bytes, again and again up to `n`.
    pub fn filled(&self, bytes: &[u8], n: usize) -> Result<DeviceBuffer> {
        let mut buffer = DeviceBuffer::new(&self.gpu, n)?;
        for at in (0..n).step_by(bytes.len().max(1)) {
            buffer.write(at, &bytes[..bytes.len().min(n - at)], &self.stream)?;
        }
        Ok(buffer)
    }

    /// The first `n` bytes of a buffer.
    pub fn read(&self, buffer: &DeviceBuffer, at: usize, n: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; n];
        buffer.read(at, &mut bytes, &self.stream)?;
        Ok(bytes)
    }

    /// Gigabytes a second that a copy inside its memory reads and writes, the best of five.
    pub fn bandwidth(&self, scale: Scale) -> Result<f64> {
        let bytes = scale.pick(1 << 30, 1 << 16);
        let from = self.filled(&[0; 1 << 16], bytes)?;
        let mut to = DeviceBuffer::new(&self.gpu, bytes)?;
        let mut best = f64::INFINITY;
        for _ in 0..5 {
            best = best.min(to.measure_copy(&from, &self.stream, 10)?);
        }
        Ok(2.0 * bytes as f64 / best / 1e6)
    }

    /// What there is, for the results.
    pub fn facts(&self) -> Result<serde_json::Value> {
        let (driver, capability) = (Gpu::driver_version()?, self.gpu.capability()?);
        Ok(serde_json::json!({
            "name": self.gpu.name()?,
            "capability": format!("{}.{}", capability.0, capability.1),
            "processors": self.gpu.processors()?,
            "memory_mib": self.gpu.memory()?.1 >> 20,
            "driver_cuda": format!("{}.{}", driver.0, driver.1),
        }))
    }
}

/// Numbers that look like noise and are the same everywhere.
pub struct Noise(u32);

impl Noise {
    /// Begins at a place of its own.
    pub fn new(seed: usize) -> Self {
        Self(seed as u32 * 2 + 1)
    }

    /// Any number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        // Numerical Recipes' generator; its low bits repeat soon.
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as usize % end.max(1)
    }

    /// From -1 to 1.
    pub fn float(&mut self) -> f32 {
        self.below(1 << 24) as f32 / (1 << 23) as f32 - 1.0
    }

    /// As many bytes.
    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        (0..n).map(|_| self.below(256) as u8).collect()
    }
}

/// Keeps the cases as `NAME.json` in a folder, where one is given.
pub fn save(folder: Option<&Path>, name: &str, device: &Device, cases: &[impl Serialize]) -> Result<()> {
    let Some(folder) = folder else { return Ok(()) };
    fs::create_dir_all(folder)?;
    let kept = serde_json::json!({
        "bench": name,
        // The machine has no git: the pack says what it was built from.
        "commit": std::env::var("CLIPMILL_COMMIT").unwrap_or_else(|_| "unknown".into()),
        "device": device.facts()?,
        "cases": cases,
    });
    let path = folder.join(format!("{name}.json"));
    fs::write(&path, serde_json::to_string_pretty(&kept)?).with_context(|| path.display().to_string())?;
    print(&format!("kept in {}", path.display()));
    Ok(())
}
