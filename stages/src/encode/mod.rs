//! `FrameBatch` → `EmbeddingBatch`: the encoder embeds a batch of frames of several clips, and every
//! clip gets its rows.

pub mod image;
pub mod joint;
pub mod network;
pub mod onnx_file;
pub mod quantized;
pub mod tensorrt;
pub mod text;

use std::{collections::VecDeque, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::{
    item::{EmbeddingBatch, FrameBatch, Part},
    model::Model,
    stage::{Emit, Reason, Rejection, Stage, StageError},
    tensors::Tensors,
};
use image::ImageTower;
use joint::JointSpace;
use kernels::gpu::Gpu;
use network::{Libraries, Opening};
use tensorrt::{Place, TensorrtTower};

/// How the encode stage works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The model.
    pub model: Model,
    /// The image tower's form that the engine runs; see [`quantized::image_file`].
    pub image: PathBuf,
    /// What runs it.
    pub opening: Opening,
    /// Whether the image tower's own vectors are kept beside the joint ones.
    pub keep_image_embedding: bool,
    /// Frames of a batch, at most.
    pub batch: usize,
    /// The GPU that an engine for one runs on.
    pub device: usize,
}

/// What an encoder says of a batch of `n` frames.
#[derive(Debug)]
pub struct Encoded {
    /// `n × image.dim`, as the engine gives them.
    pub embeddings: Vec<f32>,
    /// `n × classes`, for models with class scores.
    pub logits: Vec<f32>,
}

/// Runs the image tower: the seam between the stage and what embeds. The same tensor gives the same vector in
/// any company.
pub trait Encoder {
    /// Takes a batch of `n` tensors to embed.
    fn submit(&mut self, tensors: Tensors, n: usize) -> Result<()>;
    /// What became of the batch that was taken first and not given back.
    fn collect(&mut self) -> Result<Encoded>;
    /// Batches that it works on at once.
    fn depth(&self) -> usize;
}

/// An encoder that works while it is called.
struct Blocking {
    tower: ImageTower,
    tensor_len: usize,
    done: VecDeque<Encoded>,
}

impl Encoder for Blocking {
    fn submit(&mut self, tensors: Tensors, n: usize) -> Result<()> {
        let tensors = tensors.on_host().context("a batch on a GPU, for an engine that is not there")?;
        self.done.push_back(self.tower.encode(&tensors[..n * self.tensor_len], n)?);
        Ok(())
    }

    fn collect(&mut self) -> Result<Encoded> {
        self.done.pop_front().context("nothing was submitted")
    }

    fn depth(&self) -> usize {
        1
    }
}

/// The encode stage.
pub struct Encode {
    encoder: Box<dyn Encoder>,
    /// Whose frames the encoder works on, in the order of their batches.
    submitted: VecDeque<Vec<Part>>,
    joint: JointSpace,
    keep_image_embedding: bool,
    image_dim: usize,
}

impl Encode {
    /// Loads the image tower, on the thread that will run it.
    pub fn open(settings: &Settings, libraries: &Libraries) -> Result<Self> {
        let Settings { model, image, opening, batch, .. } = settings;
        let joint = JointSpace::open(model)?;
        let encoder: Box<dyn Encoder> = if opening.engine.is_on_gpu() {
            let place = Place::of(libraries, &Gpu::open(settings.device)?)?;
            let told = &mut |text: &str| {
                tracing::info!("{text}");
                true
            };
            Box::new(TensorrtTower::open(model, image, opening.engine.precision, *batch, &place, told)?)
        } else {
            let tower = ImageTower::open_file(image, model, *opening, libraries)?;
            Box::new(Blocking { tower, tensor_len: model.recipe().tensor_len(), done: VecDeque::new() })
        };
        Ok(Self {
            encoder,
            submitted: VecDeque::new(),
            keep_image_embedding: settings.keep_image_embedding && !joint.is_direct(),
            joint,
            image_dim: model.card.image.dim,
        })
    }

    /// Sends on the batches that were taken first, until no more than `left` are under way.
    fn send_on(&mut self, left: usize, out: &mut dyn Emit<EmbeddingBatch>) -> Result<(), StageError> {
        while self.submitted.len() > left {
            let Some(parts) = self.submitted.pop_front() else { break };
            let encoded = self.encoder.collect()?;
            self.emit(parts, encoded, out)?;
        }
        Ok(())
    }

    /// Gives every part its rows.
    fn emit(
        &self,
        parts: Vec<Part>,
        encoded: Encoded,
        out: &mut dyn Emit<EmbeddingBatch>,
    ) -> Result<(), StageError> {
        let n = parts.iter().map(|part| part.frames.len()).sum();
        let joint = self.joint.project(&encoded, n)?;
        let (mut joint, mut images) = (joint.as_slice(), encoded.embeddings.as_slice());
        for part in parts {
            let n = part.frames.len();
            let (own, rest) = joint.split_at(n * self.joint.dim());
            let (own_images, other_images) = images.split_at(n * self.image_dim);
            (joint, images) = (rest, other_images);
            // In half precision a picture may be too much for a model. What is no number would be found by no query.
            if !own.iter().chain(own_images).all(|v| v.is_finite()) {
                let detail = "the model gives vectors that are no numbers".into();
                let reason = Reason::Corrupt { last_good: None, detail };
                out.reject(Rejection { clip: part.clip, stage: "encode", reason })?;
                continue;
            }
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
        let n = item.n_frames();
        if n == 0 {
            // Ends alone. Rows that are under way may come after them: the index counts.
            return self.emit(item.parts, Encoded { embeddings: Vec::new(), logits: Vec::new() }, out);
        }
        let since = std::time::Instant::now();
        self.encoder.submit(item.tensors, n)?;
        tracing::trace!(frames = n, parts = item.parts.len(), took = ?since.elapsed(), "took a batch");
        self.submitted.push_back(item.parts);
        self.send_on(self.encoder.depth() - 1, out)
    }

    fn idle(&mut self, out: &mut dyn Emit<EmbeddingBatch>) -> Result<(), StageError> {
        self.send_on(0, out)
    }

    fn finish(&mut self, out: &mut dyn Emit<EmbeddingBatch>) -> Result<(), StageError> {
        self.send_on(0, out)
    }
}
