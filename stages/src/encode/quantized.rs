//! The int8 form of an image tower, made and measured by `clipmill model quantize`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use super::network::Precision;
use crate::{files::write_whole, model::Model};

/// `int8.json` beside the model's card: which file, made of what, and how near it comes.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Quantized {
    /// The ONNX file, in the model's folder.
    pub file: String,
    /// blake3 of the fp32 file that it was made of.
    pub of: String,
    /// How it was made.
    pub method: String,
    /// Frames that its scales were taken from.
    pub n_calibration: usize,
    /// Other frames, that the following was measured on.
    pub n_held_out: usize,
    /// Mean cosine of its embeddings to those of fp32.
    pub mean_cosine: f64,
    /// Least cosine.
    pub least_cosine: f64,
    /// Share of the ten nearest frames by fp32 that are among its ten nearest.
    pub top10_overlap: f64,
}

/// Name of the record.
const RECORD: &str = "int8.json";

/// Names of what `model quantize` adds to a model's folder.
pub const FILES: [&str; 2] = ["int8.onnx", RECORD];

impl Quantized {
    /// Reads the record of a model, if it has one.
    pub fn read(model: &Model) -> Result<Option<Self>> {
        let path = model.file(RECORD);
        match fs::read_to_string(&path) {
            Ok(text) => {
                let read = serde_json::from_str(&text);
                read.map(Some).with_context(|| format!("{} is damaged", path.display()))
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Puts `made` into the model's folder under a name of its own, then the record.
    pub fn install(&self, model: &Model, made: &Path) -> Result<()> {
        let bytes = fs::read(made).with_context(|| format!("cannot read {}", made.display()))?;
        let record = serde_json::to_vec_pretty(self)?;
        for (name, bytes) in [(self.file.as_str(), &bytes), (RECORD, &record)] {
            let path = model.file(name);
            write_whole(&path, bytes).with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    }

    /// Whether it was made of the image tower as it is now.
    pub fn is_current(&self, model: &Model) -> Result<bool> {
        Ok(hash_file(&model.file(&model.card.image.file))? == self.of && model.file(&self.file).is_file())
    }
}

/// The image tower's file in a precision. 16-bit engines round the fp32 one themselves.
pub fn image_file(model: &Model, precision: Precision) -> Result<PathBuf> {
    if precision != Precision::Int8 {
        return Ok(model.file(&model.card.image.file));
    }
    let name = &model.card.name;
    match Quantized::read(model)? {
        Some(quantized) if quantized.is_current(model)? => Ok(model.file(&quantized.file)),
        Some(_) => bail!(
            "model {name} has changed since its int8 form was made\nhint: clipmill model quantize {name} --calibrate CLIPS"
        ),
        None => {
            bail!("model {name} has no int8 form\nhint: clipmill model quantize {name} --calibrate CLIPS")
        }
    }
}

/// blake3 of a file.
pub fn hash_file(path: &Path) -> Result<String> {
    let mut hasher = blake3::Hasher::new();
    let file = fs::File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    hasher.update_reader(file).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(hasher.finalize().to_hex().to_string())
}
