//! The `search` command: words, a picture or a clip → the clips that look like it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use stages::{
    decode::{self, Decode, sample::Sampling},
    encode::{
        self, Encode,
        joint::{JointSpace, unit_mean},
        network::{Engine, Libraries, Opening, reference},
        quantized::image_file,
        text::TextEncoder,
    },
    index::vectors::{Hit, search},
    item::{ClipId, ClipRef, EmbeddingBatch, EncodedClip, FrameBatch},
    load::Load,
    model::{Home, Model},
};

use crate::{
    config::{recorded_reading, recorded_sampling},
    record::{self, INT8_FORM, Record},
    samples::through,
};

/// What is searched for.
#[derive(Clone, Debug)]
pub enum Query {
    /// Words, through the model's text tower.
    Words(String),
    /// The first frame of a picture file.
    Image(String),
    /// A video, by the mean of its frames sampled as the run's were.
    Clip(String),
}

/// Answers queries about one run. What a query needs is loaded by the first that needs it, and kept.
pub struct Searcher {
    folder: PathBuf,
    record: Record,
    model: Model,
    libraries: Libraries,
    joint: JointSpace,
    text: Option<TextEncoder>,
    image: Option<Encode>,
}

impl Searcher {
    /// Of the run in `folder`. A model that has changed since is an error.
    pub fn open(folder: &Path) -> Result<Self> {
        let record = Record::read(folder)?;
        let home = Home::from_env();
        let model =
            Model::open(Path::new(&record.model_folder)).or_else(|_| Model::find(&record.model, &home))?;
        let hash = model.hash()?;
        if hash != record.model_hash {
            bail!(
                "{} was indexed with model {} of hash {}, the one in {} has {}: their vectors cannot be compared",
                folder.display(),
                record.model,
                record.model_hash,
                model.folder.display(),
                hash
            );
        }
        let libraries = Libraries::find(&home);
        let joint = JointSpace::open(&model)?;
        Ok(Self { folder: folder.to_owned(), record, model, libraries, joint, text: None, image: None })
    }

    /// The `k` nearest clips.
    pub fn find(&mut self, query: &Query, k: usize) -> Result<Vec<Hit>> {
        let vector = match query {
            Query::Words(words) if words.trim().is_empty() => bail!("the words to search for are empty"),
            Query::Words(words) => {
                let text = match self.text.take() {
                    Some(text) => text,
                    None => TextEncoder::open(&self.model, &self.libraries)?,
                };
                let words = self.text.insert(text).embed(words)?;
                self.joint.words(words)
            }
            Query::Image(file) => self.embed_file(file, Sampling::EveryMs(86_400_000))?,
            Query::Clip(file) => {
                let sampling = recorded_sampling(&self.record.settings);
                self.embed_file(file, sampling.context("run.json names no sampling")?)?
            }
        };
        search(&self.folder, &vector, k)
    }

    /// The unit mean vector of a file's sampled frames, made by the stages of the run.
    fn embed_file(&mut self, file: &str, sampling: Sampling) -> Result<Vec<f32>> {
        let decode = decode::Settings {
            reading: recorded_reading(&self.record.settings),
            ..decode::Settings::new(sampling, self.model.recipe())
        };
        let encode = match self.image.take() {
            Some(encode) => encode,
            None => self.open_image()?,
        };
        let encode = self.image.insert(encode);
        let clip = ClipRef { id: ClipId(0), path: file.to_owned(), label: None, extra: Vec::new() };
        let loaded: Vec<EncodedClip> = through(&mut Load::open(), vec![Arc::new(clip)])?;
        let frames: Vec<FrameBatch> = through(&mut Decode::open(decode), loaded)?;
        let batches: Vec<EmbeddingBatch> = through(encode, frames)?;
        let dim = self.record.dim;
        Ok(unit_mean(batches.iter().flat_map(|b| b.embeddings.chunks(dim)), dim))
    }

    /// By the run's own engine, so that the same picture gives the same vector; on a machine without it by
    /// the reference, which is near.
    fn open_image(&self) -> Result<Encode> {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        let open = |engine: Engine, image: PathBuf| {
            let opening = Opening { engine, threads };
            let model = self.model.clone();
            let settings = encode::Settings { model, image, opening, keep_image_embedding: false };
            Encode::open(&settings, &self.libraries)
        };
        let own = self.record.engine;
        let image = image_file(&self.model, own.precision)?;
        if self.record.identity.get(INT8_FORM) != record::int8_form(&image, own)?.as_ref() {
            bail!(
                "{} was indexed with another int8 form of {}: its vectors cannot be compared",
                self.folder.display(),
                self.record.model
            );
        }
        let stand_in = reference(&self.libraries);
        open(own, image).or_else(|e| {
            if own == stand_in {
                return Err(e);
            }
            tracing::warn!("the run's engine, {own}, does not open here; {stand_in} stands in: {e:#}");
            open(stand_in, image_file(&self.model, stand_in.precision)?)
        })
    }
}

/// A hit as people read it.
pub fn line(rank: usize, hit: &Hit) -> String {
    let label = hit.label.as_ref().map(|l| format!("  [{l}]")).unwrap_or_default();
    format!("{rank:>2}.  {:.3}  {}  {}{label}", hit.score, clock(hit.pts_ns), hit.path)
}

/// Hits as programs read them.
pub fn to_json(hits: &[Hit]) -> serde_json::Value {
    let hit = |(i, h): (usize, &Hit)| {
        json!({
            "rank": i + 1, "score": h.score, "path": h.path, "label": h.label, "clip_id": h.clip_id,
            "pts_ns": h.pts_ns, "time": clock(h.pts_ns), "frame_index": h.frame_index,
        })
    };
    hits.iter().enumerate().map(hit).collect()
}

/// mm:ss, with hours where there are any.
fn clock(pts_ns: i64) -> String {
    let seconds = (pts_ns.max(0)) / 1_000_000_000;
    let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    if h > 0 { format!("{h}:{m:02}:{s:02}") } else { format!("{m:02}:{s:02}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_read_as_players_show_them() {
        for (seconds, want) in [
            (0, "00:00"),
            (59, "00:59"),
            (61, "01:01"),
            (3600, "1:00:00"),
            (36_061, "10:01:01"),
            (-1, "00:00"),
        ] {
            assert_eq!(clock(seconds * 1_000_000_000), want);
        }
    }
}
