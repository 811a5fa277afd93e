//! The image tower by TensorRT: tensors in device or host memory → embeddings, two batches under way.

mod cache;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, anyhow, bail};
use kernels::{
    ffi::tensorrt::{Collected, Executor, SLOTS, Source, TensorRt, Type},
    gpu::Gpu,
    preprocess::on_gpu::Float,
};

pub use cache::{Wanted, engine};

use super::{
    Encoded, Encoder,
    network::{Libraries, Precision},
};
use crate::{
    model::{Home, Model},
    tensors::{DeviceTensors, Tensors},
};

/// The greatest batch of an engine where no greater one is asked for: so searches, measurements and runs share one.
/// More pictures are run in pieces.
pub const USUAL_BATCH: usize = 64;

/// Where engines run, and where they are kept.
#[derive(Clone, Debug)]
pub struct Place {
    /// The library.
    pub tensorrt: TensorRt,
    /// The device.
    pub gpu: Gpu,
    /// Folder of the engines.
    pub folder: PathBuf,
}

impl Place {
    /// A GPU with the TensorRT of this machine, or what is missing.
    pub fn of(libraries: &Libraries, gpu: &Gpu) -> Result<Self> {
        let tensorrt = TensorRt::find(&libraries.tensorrt)?;
        Ok(Self { tensorrt, gpu: gpu.clone(), folder: libraries.tensorrt_engines.clone() })
    }
}

/// Folder of the engines.
pub fn engines(home: &Home) -> PathBuf {
    home.folder().join("engines-tensorrt")
}

/// An image tower on one GPU. Memory for two batches is taken when it is opened, and never more.
pub struct TensorrtTower {
    executor: Executor,
    has_logits: bool,
}

impl TensorrtTower {
    /// Opens a form of a model's tower (`super::quantized::image_file`), whose engine is built if there is
    /// none: `told` hears how far it is, and gives false to stop. Batches have up to `batch` pictures; each is
    /// computed as if it had so many.
    pub fn open(
        model: &Model,
        file: &Path,
        precision: Precision,
        batch: usize,
        place: &Place,
        told: &mut dyn FnMut(&str) -> bool,
    ) -> Result<Self> {
        let image = &model.card.image;
        let wanted = Wanted::new(file, precision, batch);
        let engine = engine(place, &wanted, told)?;
        let outputs: Vec<&str> =
            [image.embedding.as_str()].into_iter().chain(image.logits.as_deref()).collect();
        let executor = Executor::new(&engine, &wanted.buckets(), &outputs);
        let executor = executor.with_context(|| format!("the TensorRT engine of {}", file.display()))?;
        let executor = executor.padded_to(batch);
        let tensor_len = model.recipe().tensor_len();
        if executor.input_len() != tensor_len {
            bail!(
                "{} takes {} values a picture, the card says {tensor_len}",
                image.file,
                executor.input_len()
            );
        }
        let found = executor.output_lens().first().copied().unwrap_or(0);
        if found != image.dim {
            bail!("output {:?} has {found} values a frame, the card says {}", image.embedding, image.dim);
        }
        Ok(Self { executor, has_logits: image.logits.is_some() })
    }

    /// What tensors in device memory must be made of.
    pub fn float(&self) -> Float {
        if self.executor.input_kind() == Type::F16 { Float::Half } else { Float::Single }
    }

    /// The greatest batch.
    pub fn most(&self) -> usize {
        self.executor.most()
    }

    /// Whether batches are launched as graphs by now.
    pub fn has_graphs(&self) -> bool {
        self.executor.has_graphs()
    }

    /// Batches under way.
    pub fn in_flight(&self) -> usize {
        self.executor.in_flight()
    }
}

impl Encoder for TensorrtTower {
    /// Tensors on the host are copied before this returns; those on the device stay until the batch is
    /// collected. An error is fatal: what was queued cannot be trusted after it.
    fn submit(&mut self, tensors: Tensors, n: usize) -> Result<()> {
        let submitted = match tensors {
            Tensors::Host(floats) => {
                let numbers = n * self.executor.input_len();
                let floats = floats.get(..numbers).with_context(|| {
                    format!("{} values for {n} pictures, which have {numbers}", floats.len())
                })?;
                self.executor.submit(Source::Host(floats), n)
            }
            Tensors::Device(DeviceTensors { buffer, float }) => {
                let kind = match float {
                    Float::Single => Type::F32,
                    Float::Half => Type::F16,
                };
                self.executor.submit(Source::Device { buffer: Arc::new(buffer), kind }, n)
            }
        };
        Ok(submitted?)
    }

    fn collect(&mut self) -> Result<Encoded> {
        let batch = self.executor.collect()?.context("no batch is under way")?;
        let mut outputs = batch.outputs.into_iter();
        let embeddings = outputs.next().unwrap_or_default();
        let logits = outputs.next().filter(|_| self.has_logits).unwrap_or_default();
        Ok(Encoded { embeddings, logits })
    }

    fn depth(&self) -> usize {
        SLOTS
    }
}

/// Runs any number of pictures from host memory, and hands on what comes out in order.
pub(super) fn in_pieces(
    executor: &mut Executor,
    tensors: &[f32],
    n: usize,
    each: &mut dyn FnMut(Collected),
) -> Result<()> {
    let len = executor.input_len();
    if executor.in_flight() > 0 {
        bail!("batches are under way that were submitted one by one");
    }
    if tensors.len() != n * len {
        bail!("{} values for {n} pictures, which have {len} each", tensors.len());
    }
    for piece in tensors.chunks(executor.most() * len) {
        if executor.is_full() {
            each(executor.collect()?.ok_or_else(|| anyhow!("no batch is under way"))?);
        }
        executor.submit(Source::Host(piece), piece.len() / len)?;
    }
    while let Some(batch) = executor.collect()? {
        each(batch);
    }
    Ok(())
}
