//! ONNX Runtime on the CPU: the embedded default.

use std::{
    path::Path,
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result, anyhow, bail};
use ort::{environment::Environment, session::Session, value::TensorRef};

use super::{Encoded, Encoder};
use crate::model::Model;

/// The one environment that a process may have; sessions need it for as long as they live.
static ENVIRONMENT: Mutex<Option<Environment>> = Mutex::new(None);

/// Loads the library on the first call and gives its environment.
fn environment(library: &Path) -> Result<Environment> {
    let mut loaded = ENVIRONMENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(environment) = &*loaded {
        return Ok(environment.clone());
    }
    let builder = ort::init_from(library).map_err(|e| {
        anyhow!("cannot load ONNX Runtime from {}: {e}\nhint: `make setup` installs it", library.display())
    })?;
    let environment = builder.with_name("clipmill").build().context("ONNX Runtime does not start")?;
    *loaded = Some(environment.clone());
    Ok(environment)
}

/// A session for `file` with so many threads of its own.
pub fn session(file: &Path, threads: usize, library: &Path) -> Result<Session> {
    let environment = environment(library)?;
    let build = || -> ort::Result<Session> {
        Session::builder(&environment)?
            .with_intra_threads(threads)?
            .with_inter_threads(1)?
            // Idle threads that spin take the cores from the decoders.
            .with_intra_op_spinning(false)?
            .commit_from_file(file)
    };
    build().with_context(|| format!("cannot load {}", file.display()))
}

/// The version of the library, which is loaded by this.
pub fn version(library: &Path) -> Result<String> {
    environment(library)?;
    Ok(kernels::onnxruntime::version(library).unwrap_or_else(|| "of unknown version".into()))
}

/// The image tower as an ONNX Runtime session.
pub struct OnnxEncoder {
    session: Session,
    input: String,
    embedding: String,
    logits: Option<String>,
    shape: [usize; 3],
    dim: usize,
}

impl OnnxEncoder {
    /// Opens the model's image tower and checks that it has the inputs and outputs of the card.
    pub fn open(model: &Model, threads: usize, library: &Path) -> Result<Self> {
        let image = &model.card.image;
        let session = session(&model.file(&image.file), threads, library)?;
        require(&image.file, "input", session.inputs().iter().map(|i| i.name()), [&image.input])?;
        let outputs = [&image.embedding].into_iter().chain(&image.logits);
        require(&image.file, "output", session.outputs().iter().map(|o| o.name()), outputs)?;
        Ok(Self {
            session,
            input: image.input.clone(),
            embedding: image.embedding.clone(),
            logits: image.logits.clone(),
            shape: [3, image.height, image.width],
            dim: image.dim,
        })
    }
}

/// Fails with all found names if a wanted one is missing.
pub(super) fn require<'a, 'b>(
    file: &str,
    what: &str,
    found: impl Iterator<Item = &'a str>,
    wanted: impl IntoIterator<Item = &'b String>,
) -> Result<()> {
    let found: Vec<&str> = found.collect();
    for name in wanted {
        if !found.contains(&name.as_str()) {
            bail!("{file} has no {what} {name:?}; it has {}", found.join(", "));
        }
    }
    Ok(())
}

impl Encoder for OnnxEncoder {
    fn encode(&mut self, tensors: &[f32], n: usize) -> Result<Encoded> {
        let [c, h, w] = self.shape;
        let input = TensorRef::from_array_view(([n, c, h, w], tensors))?;
        let outputs = self.session.run(ort::inputs![self.input.as_str() => input])?;
        let take = |name: &str| -> Result<Vec<f32>> {
            let (shape, values) = outputs[name].try_extract_tensor::<f32>()?;
            if shape.first() != Some(&(n as i64)) {
                bail!("output {name:?} has the shape {shape:?} for a batch of {n}");
            }
            Ok(values.to_vec())
        };
        let embeddings = take(&self.embedding)?;
        if embeddings.len() != n * self.dim {
            bail!(
                "output {:?} has {} values a frame, the card says {}",
                self.embedding,
                embeddings.len() / n,
                self.dim
            );
        }
        let logits = self.logits.as_deref().map(take).transpose()?.unwrap_or_default();
        Ok(Encoded { embeddings, logits })
    }
}
