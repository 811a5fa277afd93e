//! The `search` command: words, a picture or a clip → the clips that look like it.

use std::{path::Path, sync::Arc};

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use stages::{
    decode::{self, Decode, sample::Sampling},
    encode::{
        self, Encode,
        joint::{JointSpace, normalize},
        network::{Libraries, Opening},
        text::TextEncoder,
    },
    index::vectors::{Hit, search},
    item::{ClipId, ClipRef, EmbeddingBatch, EncodedClip, FrameBatch},
    load::Load,
    model::{Home, Model},
};

use crate::{
    config::{recorded_reading, recorded_sampling},
    record::Record,
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

/// The `k` nearest clips of the run in `folder`.
pub fn find(folder: &Path, query: &Query, k: usize) -> Result<Vec<Hit>> {
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
    let vector = match query {
        Query::Words(words) if words.trim().is_empty() => bail!("the words to search for are empty"),
        Query::Words(words) => {
            let words = TextEncoder::open(&model, &libraries)?.embed(words)?;
            JointSpace::open(&model)?.words(words)
        }
        Query::Image(file) => embed_file(file, Sampling::EveryMs(86_400_000), &record, &model, &libraries)?,
        Query::Clip(file) => {
            let sampling = recorded_sampling(&record.settings).context("run.json names no sampling")?;
            embed_file(file, sampling, &record, &model, &libraries)?
        }
    };
    search(folder, &vector, k)
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

/// The unit mean vector of a file's sampled frames, made by the stages of the run.
fn embed_file(
    file: &str,
    sampling: Sampling,
    record: &Record,
    model: &Model,
    libraries: &Libraries,
) -> Result<Vec<f32>> {
    let decode = decode::Settings {
        reading: recorded_reading(&record.settings),
        ..decode::Settings::new(sampling, model.recipe())
    };
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let encode = encode::Settings {
        model: model.clone(),
        opening: Opening { engine: record.engine, threads: cores },
        keep_image_embedding: false,
    };
    let clip = ClipRef { id: ClipId(0), path: file.to_owned(), label: None, extra: Vec::new() };
    let loaded: Vec<EncodedClip> = through(&mut Load::open(), vec![Arc::new(clip)])?;
    let frames: Vec<FrameBatch> = through(&mut Decode::open(decode), loaded)?;
    let batches: Vec<EmbeddingBatch> = through(&mut Encode::open(&encode, libraries)?, frames)?;
    let mut mean = vec![0.0; record.dim];
    for vector in batches.iter().flat_map(|b| b.embeddings.chunks(record.dim)) {
        mean.iter_mut().zip(vector).for_each(|(m, v)| *m += v);
    }
    normalize(&mut mean);
    Ok(mean)
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
