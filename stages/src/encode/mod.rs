//! `FrameBatch` → `EmbeddingBatch`: frames of several clips fill a batch, the encoder embeds it, and
//! every clip gets its rows back.

pub mod joint;
pub mod onnx;
pub mod text;

use std::sync::Arc;

use anyhow::{Context as _, Result};

use crate::{
    item::{ClipEnd, ClipRef, EmbeddingBatch, FrameBatch, FrameInfo},
    model::Model,
    stage::{Emit, Stage, StageError},
};
use joint::JointSpace;
use onnx::OnnxEncoder;

/// How the encode stage works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The model.
    pub model: Model,
    /// Frames of one run of the engine.
    pub batch: usize,
    /// Threads inside each encoder.
    pub threads: usize,
    /// Whether the image tower's own vectors are kept beside the joint ones.
    pub keep_image_embedding: bool,
}

/// What an encoder says of a batch of `n` frames.
#[derive(Debug)]
pub struct Encoded {
    /// `n × image.dim`, as the engine gives them.
    pub embeddings: Vec<f32>,
    /// `n × classes`, for models with class scores.
    pub logits: Vec<f32>,
}

/// Runs the image tower: the seam between the stage and an inference engine.
pub trait Encoder {
    /// Embeds `n` tensors. The same tensor gives the same vector in any company.
    fn encode(&mut self, tensors: &[f32], n: usize) -> Result<Encoded>;
}

/// The encode stage.
pub struct Encode {
    encoder: Box<dyn Encoder>,
    joint: JointSpace,
    keep_image_embedding: bool,
    image_dim: usize,
    batch: usize,
    tensor_len: usize,
    tensors: Vec<f32>,
    waiting: Vec<Part>,
    n_waiting: usize,
}

/// Frames of one clip in the batch being filled.
struct Part {
    clip: Arc<ClipRef>,
    frames: Vec<FrameInfo>,
    end: Option<Box<ClipEnd>>,
}

impl Encode {
    /// Loads the image tower, on the thread that will run it.
    pub fn open(settings: &Settings, library: &std::path::Path) -> Result<Self> {
        let model = &settings.model;
        let encoder = OnnxEncoder::open(model, settings.threads, library)
            .with_context(|| format!("model {}", model.card.name))?;
        let joint = JointSpace::open(model)?;
        let keep = settings.keep_image_embedding && !joint.is_direct();
        Ok(Self::with_encoder(Box::new(encoder), joint, settings, keep))
    }

    fn with_encoder(encoder: Box<dyn Encoder>, joint: JointSpace, settings: &Settings, keep: bool) -> Self {
        let tensor_len = settings.model.recipe().tensor_len();
        Self {
            encoder,
            joint,
            keep_image_embedding: keep,
            image_dim: settings.model.card.image.dim,
            batch: settings.batch,
            tensor_len,
            tensors: vec![0.0; settings.batch * tensor_len],
            waiting: Vec::new(),
            n_waiting: 0,
        }
    }

    fn run(&mut self, out: &mut dyn Emit<EmbeddingBatch>) -> Result<(), StageError> {
        let n = std::mem::take(&mut self.n_waiting);
        let mut joint = Vec::new();
        let mut images = Vec::new();
        if n > 0 {
            let since = std::time::Instant::now();
            let encoded = self.encoder.encode(&self.tensors[..n * self.tensor_len], n)?;
            tracing::trace!(frames = n, clips = self.waiting.len(), took = ?since.elapsed(), "embedded a batch");
            joint = self.joint.project(&encoded, n)?;
            images = encoded.embeddings;
        }
        let (mut joint, mut images) = (joint.as_slice(), images.as_slice());
        for part in self.waiting.drain(..) {
            let n = part.frames.len();
            let (own, rest) = joint.split_at(n * self.joint.dim());
            let (own_images, other_images) = images.split_at(n * self.image_dim);
            (joint, images) = (rest, other_images);
            out.emit(EmbeddingBatch {
                clip: part.clip,
                frames: part.frames,
                embeddings: own.to_vec(),
                image_embeddings: if self.keep_image_embedding { own_images.to_vec() } else { Vec::new() },
                end: part.end,
            })?;
        }
        Ok(())
    }
}

impl Stage for Encode {
    type In = FrameBatch;
    type Out = EmbeddingBatch;

    fn process(&mut self, item: FrameBatch, out: &mut dyn Emit<EmbeddingBatch>) -> Result<(), StageError> {
        let FrameBatch { clip, mut frames, tensors, mut end } = item;
        let mut source = &tensors[..frames.len() * self.tensor_len];
        loop {
            let taken = frames.len().min(self.batch - self.n_waiting);
            let rest = frames.split_off(taken);
            let (now, later) = source.split_at(taken * self.tensor_len);
            source = later;
            let at = self.n_waiting * self.tensor_len;
            self.tensors[at..at + now.len()].copy_from_slice(now);
            self.n_waiting += taken;
            let end = if rest.is_empty() { end.take() } else { None };
            let done = rest.is_empty();
            self.waiting.push(Part { clip: clip.clone(), frames: std::mem::replace(&mut frames, rest), end });
            if self.n_waiting == self.batch {
                self.run(out)?;
            }
            if done {
                return Ok(());
            }
        }
    }

    fn finish(&mut self, out: &mut dyn Emit<EmbeddingBatch>) -> Result<(), StageError> {
        self.run(out)
    }
}
