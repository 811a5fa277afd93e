//! One GPU's share of a run: what its decode and encode workers have in common.

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result};
use kernels::{
    device::DevicePool,
    gpu::{Gpu, program::Programs},
    preprocess::{
        Recipe,
        on_gpu::{self, Float},
    },
};

use crate::model::Home;

/// A GPU with its kernels and the buffers that batches lie in. Clones share them.
#[derive(Clone)]
pub struct Lane {
    /// Its kernels, and through them the device.
    pub programs: Programs,
    /// Buffers of one batch each. What GStreamer takes for surfaces comes on top, and is bounded by its sessions.
    pub pool: DevicePool,
    /// What tensors are made of.
    pub float: Float,
}

impl std::fmt::Debug for Lane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lane").field("gpu", &self.gpu().ordinal()).field("float", &self.float).finish()
    }
}

/// What a lane is made from.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// What the model wants of pictures.
    pub recipe: &'a Recipe,
    /// What tensors are made of.
    pub float: Float,
    /// Frames of a batch.
    pub batch: usize,
    /// Decode workers, each of which fills a batch.
    pub decoders: usize,
    /// Encode workers.
    pub encoders: usize,
    /// Bytes that batches may take; 0 for what keeps all workers busy, and at most half of what is free.
    pub bytes: usize,
}

impl Wanted<'_> {
    /// So many decoders at most find room in `bytes`.
    pub fn fitting_decoders(&self) -> usize {
        (self.bytes / self.buffer_bytes().max(1)).saturating_sub(1)
    }

    fn buffer_bytes(&self) -> usize {
        self.batch * self.recipe.tensor_len() * self.float.bytes()
    }

    /// Buffers without which workers wait for one another for ever: each decoder fills one, and one is embedded.
    fn least(&self) -> usize {
        self.decoders + 1
    }

    /// Buffers with which nobody waits: each decoder fills one and has sent one, each encoder works on two
    /// and holds the next.
    fn plenty(&self) -> usize {
        2 * self.decoders + 3 * self.encoders
    }
}

impl Lane {
    /// Opens a device for a run.
    pub fn open(ordinal: usize, home: &Home, wanted: &Wanted<'_>) -> Result<Self> {
        let gpu = Gpu::open(ordinal)?;
        check(&gpu, home)?;
        // The engine has its memory by now. NVDEC's surfaces are to come.
        let free = gpu.memory()?.0;
        let n = match wanted.bytes {
            0 => wanted.plenty().min(free / 2 / wanted.buffer_bytes().max(1)),
            bytes => bytes / wanted.buffer_bytes().max(1),
        };
        if n < wanted.least() {
            let (found, hint) = match wanted.bytes {
                0 => (format!("GPU {ordinal} has {} MiB free, half of it for batches", free >> 20), ""),
                bytes => (format!("gpu.memory_mib is {}", bytes >> 20), "raise gpu.memory_mib, or "),
            };
            anyhow::bail!(
                "{found}: {} decode workers need at least {} batches of {} frames, which are {} MiB\nhint: {hint}lower decode.workers, decode.sessions or encode.batch",
                wanted.decoders,
                wanted.least(),
                wanted.batch,
                (wanted.least() * wanted.buffer_bytes()).div_ceil(1 << 20),
            );
        }
        let pool = DevicePool::new(&gpu, n, wanted.buffer_bytes())
            .context("gpu.memory_mib asks for more than there is")?;
        Ok(Self { programs: programs(&gpu, home), pool, float: wanted.float })
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        self.programs.gpu()
    }
}

/// A device's kernels, kept in the data folder. All who ask share them.
pub fn programs(gpu: &Gpu, home: &Home) -> Programs {
    static ALL: Mutex<Vec<Programs>> = Mutex::new(Vec::new());
    let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(programs) = all.iter().find(|programs| programs.gpu().ordinal() == gpu.ordinal()) {
        return programs.clone();
    }
    let programs = Programs::new(gpu, &home.folder().join("kernels"), &nvrtc_folders(home));
    all.push(programs.clone());
    programs
}

/// Compiles what prepares pictures, where that was not done before.
pub fn check(gpu: &Gpu, home: &Home) -> Result<()> {
    Ok(on_gpu::compile(&programs(gpu, home))?)
}

/// Where NVRTC is looked for before the system's places.
pub fn nvrtc_folders(home: &Home) -> [PathBuf; 1] {
    [home.folder().join("gpu/nvrtc")]
}
