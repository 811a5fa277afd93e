//! `FrameBatch` → `EmbeddingBatch`: the encoder embeds a batch of frames of several clips, and every
//! clip gets its rows.

pub mod image;
pub mod joint;
pub mod network;
pub mod quantized;
pub mod text;

use std::path::PathBuf;

use anyhow::Result;

use crate::{
    item::{EmbeddingBatch, FrameBatch},
    model::Model,
    stage::{Emit, Stage, StageError},
};
use image::ImageTower;
use joint::JointSpace;
use network::{Libraries, Opening};

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
}

/// What an encoder says of a batch of `n` frames.
#[derive(Debug)]
pub struct Encoded {
    /// `n × image.dim`, as the engine gives them.
    pub embeddings: Vec<f32>,
    /// `n × classes`, for models with class scores.
    pub logits: Vec<f32>,
}

/// Runs the image tower: the seam between the stage and what embeds.
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
    tensor_len: usize,
}

impl Encode {
    /// Loads the image tower, on the thread that will run it.
    pub fn open(settings: &Settings, libraries: &Libraries) -> Result<Self> {
        let model = &settings.model;
        let joint = JointSpace::open(model)?;
        Ok(Self {
            encoder: Box::new(ImageTower::open_file(&settings.image, model, settings.opening, libraries)?),
            keep_image_embedding: settings.keep_image_embedding && !joint.is_direct(),
            joint,
            image_dim: model.card.image.dim,
            tensor_len: model.recipe().tensor_len(),
        })
    }
}

impl Stage for Encode {
    type In = FrameBatch;
    type Out = EmbeddingBatch;

    fn process(&mut self, item: FrameBatch, out: &mut dyn Emit<EmbeddingBatch>) -> Result<(), StageError> {
        let n = item.n_frames();
        let mut joint = Vec::new();
        let mut images = Vec::new();
        if n > 0 {
            let since = std::time::Instant::now();
            let encoded = self.encoder.encode(&item.tensors[..n * self.tensor_len], n)?;
            tracing::trace!(frames = n, parts = item.parts.len(), took = ?since.elapsed(), "embedded a batch");
            joint = self.joint.project(&encoded, n)?;
            images = encoded.embeddings;
        }
        let (mut joint, mut images) = (joint.as_slice(), images.as_slice());
        for part in item.parts {
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
