//! A run's GPUs: which there are, their engines, their memory and what decodes on them. Or the host alone.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use kernels::{
    gpu::Gpu,
    preprocess::{Recipe, on_gpu::Float},
};
use stages::{
    decode::{nvdec::Nvdec, route::Router},
    encode::{
        network::Libraries,
        tensorrt::{Place, TensorrtTower},
    },
    lane::{self, Lane},
    model::{Home, Model},
};

use crate::{
    config::{Config, Nvdec as Wish},
    engines::Chosen,
};

/// All lanes of a run; without a GPU there is one, on the host.
pub struct Lanes {
    /// One for each device that decodes.
    pub all: Vec<Opened>,
    /// Decode workers of each.
    pub decode_workers: usize,
}

/// A lane, opened.
pub struct Opened {
    /// The device that batches lie on, if not the host.
    pub lane: Option<Lane>,
    /// The device's decoders.
    pub nvdec: Option<Nvdec>,
    /// The device that embeds.
    pub encode_device: usize,
}

/// What a run is to be.
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    /// Its settings.
    pub config: &'a Config,
    /// Its model.
    pub model: &'a Model,
    /// The form of the image tower.
    pub image: &'a Path,
    /// What embeds.
    pub chosen: &'a Chosen,
    /// Where libraries are.
    pub libraries: &'a Libraries,
    /// The data folder.
    pub home: &'a Home,
}

impl Plan<'_> {
    /// Opens the devices, builds engines that are not kept, which takes minutes, and takes memory.
    pub fn open(self, told: &mut dyn FnMut(&str)) -> Result<Lanes> {
        let devices = self.devices()?;
        let n = devices.len().max(1);
        let mut all = Vec::new();
        if devices.is_empty() {
            let nvdec = self.nvdec(None, n, told).context("decode.backend")?;
            all.push(Opened { lane: None, nvdec, encode_device: 0 });
        }
        let pinned = self.config.encode.devices.as_deref().unwrap_or(&devices);
        let embeds = |i: usize| pinned.get(i % pinned.len().max(1)).copied().unwrap_or(0);
        // The engines' memory first: what is left is for batches.
        let engines: Vec<TensorrtTower> =
            (0..devices.len()).map(|i| self.engine(embeds(i), told)).collect::<Result<_>>()?;
        let float = engines.first().map_or(Float::Single, TensorrtTower::float);
        for (i, device) in devices.iter().enumerate() {
            let lane = self.lane(*device, n, float).context("gpu.devices")?;
            let nvdec = self.nvdec(Some(&lane), n, told).context("decode.backend")?;
            all.push(Opened { lane: Some(lane), nvdec, encode_device: embeds(i) });
        }
        // Encode workers open them again, each on its own thread.
        drop(engines);
        let with_nvdec = all.iter().any(|lane| lane.nvdec.is_some());
        let decode_workers = match devices.is_empty() {
            true => self.workers(n, with_nvdec),
            false => self.fitting_workers(n, with_nvdec, float),
        };
        Ok(Lanes { all, decode_workers })
    }

    /// Those that decode and hold batches; none where the engine is on the host.
    fn devices(&self) -> Result<Vec<usize>> {
        let Self { config, chosen, .. } = self;
        let named = &config.gpu.devices;
        if chosen.engine.is_on_gpu() {
            return Ok(match named {
                Some(devices) => devices.clone(),
                None => (0..Gpu::count()?).collect(),
            });
        }
        // Who names a device wants it.
        for (key, devices) in [("gpu.devices", named), ("encode.devices", &config.encode.devices)] {
            let open = devices.iter().flatten().map(|device| Gpu::open(*device));
            open.collect::<Result<Vec<_>, _>>().context(key)?;
            let is_for_nvdec = key == "gpu.devices" && config.decode.nvdec == Wish::Always;
            if devices.is_some() && !is_for_nvdec {
                bail!("{key}: {} works on no GPU\nhint: encode.backend = \"tensorrt\"", chosen.engine);
            }
        }
        Ok(Vec::new())
    }

    /// Opens a device's engine, so that what is missing, memory too, is told before anything runs.
    fn engine(&self, device: usize, told: &mut dyn FnMut(&str)) -> Result<TensorrtTower> {
        let place = Place::of(self.libraries, &Gpu::open(device).context("encode.devices")?)?;
        let mut hears = |line: &str| {
            told(line);
            true
        };
        let (precision, batch) = (self.chosen.engine.precision, self.chosen.batch);
        TensorrtTower::open(self.model, self.image, precision, batch, &place, &mut hears)
            .with_context(|| format!("GPU {device}: encode.batch is {batch}"))
    }

    fn lane(&self, device: usize, n_lanes: usize, float: Float) -> Result<Lane> {
        let recipe = self.model.recipe();
        let decoders = self.fitting_workers(n_lanes, self.config.decode.nvdec != Wish::Never, float);
        Lane::open(device, self.home, &lane::Wanted { decoders, ..self.wanted(&recipe, float) })
    }

    fn wanted<'r>(&self, recipe: &'r Recipe, float: Float) -> lane::Wanted<'r> {
        lane::Wanted {
            recipe,
            float,
            batch: self.chosen.batch,
            decoders: 1,
            encoders: self.chosen.workers,
            bytes: self.config.gpu.memory_bytes,
        }
    }

    /// Decode workers of a lane: a core each, and one for each of NVDEC's sessions where their number is open.
    fn workers(&self, n_lanes: usize, with_nvdec: bool) -> usize {
        let decode = &self.config.decode;
        let sessions = if with_nvdec && decode.is_workers_open { decode.sessions } else { 0 };
        decode.workers.div_ceil(n_lanes) + sessions
    }

    /// The same, or as many as `gpu.memory_mib` has room for where their number is open.
    fn fitting_workers(&self, n_lanes: usize, with_nvdec: bool, float: Float) -> usize {
        let workers = self.workers(n_lanes, with_nvdec);
        if self.config.gpu.memory_bytes == 0 || !self.config.decode.is_workers_open {
            return workers;
        }
        workers.min(self.wanted(&self.model.recipe(), float).fitting_decoders()).max(1)
    }

    /// NVDEC for a lane, where the settings want it and it is there.
    fn nvdec(
        &self,
        lane: Option<&Lane>,
        n_lanes: usize,
        told: &mut dyn FnMut(&str),
    ) -> Result<Option<Nvdec>> {
        let decode = &self.config.decode;
        let cores = decode.workers.div_ceil(n_lanes);
        // The device conceals damage without a word.
        if !decode.keep_damaged {
            if decode.nvdec == Wish::Always {
                told("NVDEC tells no damage, and decode.damaged is \"reject\": the cores decode");
            }
            return Ok(None);
        }
        match (decode.nvdec, lane) {
            (Wish::Never, _) | (Wish::Choice, None) => Ok(None),
            (Wish::Choice, Some(lane)) => match Nvdec::open(lane.gpu(), decode.sessions) {
                Ok(nvdec) => Ok(Some(nvdec.routed(Router::new(decode.sessions, cores)))),
                Err(e) => {
                    let device = lane.gpu().ordinal();
                    told(&format!("GPU {device} decodes nothing, the cores do: {e:#}").replace('\n', "; "));
                    Ok(None)
                }
            },
            (Wish::Always, Some(lane)) => Nvdec::open(lane.gpu(), decode.sessions).map(Some),
            (Wish::Always, None) => {
                let first = self.config.gpu.devices.as_ref().and_then(|devices| devices.first());
                Nvdec::open(&Gpu::open(first.copied().unwrap_or(0))?, decode.sessions).map(Some)
            }
        }
    }
}
