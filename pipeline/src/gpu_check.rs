//! `check --gpu`: a file decoded and prepared on a GPU, and by the cores, compared frame by frame.

use std::{path::Path, sync::Arc, time::Instant};

use anyhow::{Context as _, Result};
use kernels::{
    preprocess::{Recipe, Resize, on_gpu::Float},
    resample::Filter,
};
use serde_json::{Value, json};
use stages::{
    decode::{Decode, Settings, nvdec::Nvdec, sample::Sampling},
    item::{ClipEnd, ClipId, ClipRef, EncodedClip, FrameBatch, FrameInfo},
    lane::{self, Lane},
    load::Load,
    model::Home,
    stage::{Closed, Emit, Kept, Rejection, Stage, StageError},
    tensors::Tensors,
};

/// Levels from 0 to 255, small enough that all of a clip's are kept.
const RECIPE: Recipe = Recipe {
    width: 64,
    height: 64,
    resize: Resize::ShorterSide(64),
    filter: Filter::Bicubic,
    mean: [0.0; 3],
    std: [1.0 / 255.0; 3],
};
/// Frames of a batch.
const BATCH: usize = 16;
/// Pictures that are alike to the eye, and to a model.
pub const LEAST_PSNR_DB: f64 = 40.0;

/// What came of a file.
#[derive(Clone, Debug)]
pub struct Checked {
    /// `clips.decoder` on the GPU; the software one's name where NVDEC was left.
    pub decoder: String,
    /// Frames by the GPU, and by the cores.
    pub n_frames: [usize; 2],
    /// Whether numbers, times and keyframes of all frames are the same.
    pub same_frames: bool,
    /// Peak signal to noise of the worst frame, in decibels; none where all are equal.
    pub worst_psnr_db: Option<f64>,
    /// Seconds on the GPU, and on one core.
    pub took_s: [f64; 2],
}

impl Checked {
    /// Whether NVDEC decoded it.
    pub fn is_by_nvdec(&self) -> bool {
        self.decoder.starts_with("nvdec:")
    }

    /// Whether a search would not tell the two apart.
    pub fn is_good(&self) -> bool {
        self.same_frames && self.worst_psnr_db.is_none_or(|db| db >= LEAST_PSNR_DB)
    }

    /// For people.
    pub fn line(&self) -> String {
        let [on_gpu, on_cpu] = self.n_frames;
        let frames = if self.same_frames {
            format!("{on_gpu} frames at the same times")
        } else {
            format!("{on_gpu} frames, {on_cpu} by the cores, not the same")
        };
        let psnr = self.worst_psnr_db.map_or("equal levels".into(), |db| format!("worst PSNR {db:.1} dB"));
        let [gpu_s, cpu_s] = self.took_s;
        format!("{}: {frames}, {psnr}; {gpu_s:.3} s, one core {cpu_s:.3} s", self.decoder)
    }

    /// For programs.
    pub fn to_json(&self) -> Value {
        json!({
            "decoder": self.decoder, "frames": self.n_frames[0], "frames_by_cores": self.n_frames[1],
            "same_frames": self.same_frames, "worst_psnr_db": self.worst_psnr_db,
            "gpu_s": self.took_s[0], "core_s": self.took_s[1], "good": self.is_good(),
        })
    }
}

/// A device to check files on.
pub struct Checker {
    lane: Lane,
    nvdec: Nvdec,
}

impl Checker {
    /// On device number `ordinal`.
    pub fn open(ordinal: usize, home: &Home) -> Result<Self> {
        let wanted = lane::Wanted {
            recipe: &RECIPE,
            float: Float::Single,
            batch: BATCH,
            decoders: 1,
            encoders: 1,
            bytes: 0,
        };
        let lane = Lane::open(ordinal, home, &wanted)?;
        let nvdec = Nvdec::open(lane.gpu(), 1).context("NVDEC")?;
        Ok(Self { lane, nvdec })
    }

    /// Decodes all of a file both ways. The inner error says why it cannot be; the outer one ends everything.
    pub fn check(&self, file: &Path) -> Result<Result<Checked, String>> {
        match self.compare(file) {
            Ok(checked) => Ok(Ok(checked)),
            Err(StageError::Reject(rejection)) => Ok(Err(rejection.reason.to_string())),
            Err(StageError::Fatal(e)) => Err(e),
            Err(StageError::Closed(e)) => Err(e.into()),
        }
    }

    fn compare(&self, file: &Path) -> Result<Checked, StageError> {
        let path = file.to_string_lossy().into_owned();
        let clip = ClipRef { id: ClipId(0), path, label: None, extra: Vec::new() };
        let mut loaded: Kept<EncodedClip> = Kept(Vec::new());
        Load::open().process(Arc::new(clip), &mut loaded)?;
        let clip = loaded.0.first().context("the file was not read")?;
        let usual = Settings { threads: 1, batch_frames: BATCH, ..Settings::new(Sampling::All, RECIPE) };
        let on_cpu = self.decode(clip, usual.clone())?;
        let (lane, nvdec) = (Some(self.lane.clone()), Some(self.nvdec.clone()));
        let on_gpu = self.decode(clip, Settings { lane, nvdec, ..usual })?;
        let worst = on_gpu.levels.iter().zip(&on_cpu.levels).map(|(a, b)| squares(a, b)).max().unwrap_or(0);
        let mean = worst as f64 / RECIPE.tensor_len() as f64;
        Ok(Checked {
            decoder: on_gpu.end.map_or("none".into(), |end| end.decoder),
            n_frames: [on_gpu.frames.len(), on_cpu.frames.len()],
            same_frames: on_gpu.frames == on_cpu.frames,
            worst_psnr_db: (worst > 0).then(|| 10.0 * (255.0 * 255.0 / mean).log10()),
            took_s: [on_gpu.took_s, on_cpu.took_s],
        })
    }

    fn decode(&self, clip: &EncodedClip, settings: Settings) -> Result<Levels<'_>, StageError> {
        let mut levels = Levels::none(&self.lane);
        let started = Instant::now();
        let mut decode = Decode::open(settings)?;
        decode.process(clip.clone(), &mut levels)?;
        decode.finish(&mut levels)?;
        levels.took_s = started.elapsed().as_secs_f64();
        Ok(levels)
    }
}

/// Sum of squared differences.
fn squares(a: &[u8], b: &[u8]) -> u64 {
    a.iter().zip(b).map(|(a, b)| u64::from(a.abs_diff(*b)).pow(2)).sum()
}

/// Takes the decode stage's batches, wherever they lie.
struct Levels<'a> {
    lane: &'a Lane,
    frames: Vec<FrameInfo>,
    levels: Vec<Vec<u8>>,
    end: Option<ClipEnd>,
    took_s: f64,
}

impl<'a> Levels<'a> {
    fn none(lane: &'a Lane) -> Self {
        Self { lane, frames: Vec::new(), levels: Vec::new(), end: None, took_s: 0.0 }
    }

    fn take(&mut self, batch: FrameBatch) -> Result<()> {
        let n = batch.n_frames();
        let floats = match &batch.tensors {
            Tensors::Host(floats) => floats[..n * RECIPE.tensor_len()].to_vec(),
            Tensors::Device(tensors) => {
                let mut bytes = vec![0; n * RECIPE.tensor_len() * size_of::<f32>()];
                tensors.buffer.read(0, &mut bytes, &self.lane.gpu().stream()?)?;
                bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect()
            }
        };
        let level = |tensor: &[f32]| tensor.iter().map(|v| *v as u8).collect();
        self.levels.extend(floats.chunks(RECIPE.tensor_len()).map(level));
        for part in batch.parts {
            self.frames.extend(part.frames);
            self.end = part.end.map(|end| *end).or(self.end.take());
        }
        Ok(())
    }
}

impl Emit<FrameBatch> for Levels<'_> {
    fn emit(&mut self, batch: FrameBatch) -> Result<(), Closed> {
        self.take(batch).map_err(|e| {
            tracing::error!("{e:#}");
            Closed
        })
    }

    fn reject(&mut self, _: Rejection) -> Result<(), Closed> {
        Ok(())
    }
}
