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
        joint::{JointSpace, normalize, unit_mean},
        network::{Engine, Libraries, Opening, reference},
        quantized::image_file,
        tensorrt::USUAL_BATCH,
        text::TextEncoder,
    },
    index::vectors::{Answer, Filter, Hit, How, Kind, Question, VectorIndex, diverse},
    item::{ClipId, ClipRef, EmbeddingBatch, EncodedClip, FrameBatch},
    load::Load,
    model::{Home, Model},
};

use crate::{
    config::{recorded_reading, recorded_sampling},
    record::{INT8_FORM, Record, int8_form},
    refresh::current,
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
    /// A vector of the joint space, made elsewhere.
    Vector(Vec<f32>),
}

/// Answers queries about runs of one model. What a query needs is loaded by the first that needs it, and kept.
pub struct Searcher {
    runs: Vec<Run>,
    model: Model,
    libraries: Libraries,
    joint: JointSpace,
    text: Option<TextEncoder>,
    image: Option<Encode>,
}

struct Run {
    folder: PathBuf,
    record: Record,
    index: VectorIndex,
    /// Of an index that is made for the moment.
    _temporary: Option<tempfile::TempDir>,
}

/// How hits are chosen.
#[derive(Clone, Debug)]
pub struct Choice {
    /// Clips wanted.
    pub k: usize,
    /// Which may be answers.
    pub filter: Filter,
    /// Whether they are to be unlike one another.
    pub diverse: bool,
}

/// The hits of a query.
#[derive(Clone, Debug)]
pub struct Found {
    /// The best first, each with the folder of its run.
    pub hits: Vec<(PathBuf, Hit)>,
    /// What was looked at in each run.
    pub how: Vec<(PathBuf, How)>,
}

/// Clips among which the unlike are chosen, for each that is wanted.
const DIVERSE_AMONG: usize = 5;
/// Most that are chosen so.
const DIVERSE_MOST: usize = 500;

impl Searcher {
    /// Of the runs in `folders`. A model that has changed since, or differs between runs, is an error.
    pub fn open(folders: &[PathBuf], told: &mut dyn FnMut(&str)) -> Result<Self> {
        let records = folders.iter().map(|f| Ok((f, Record::read(f)?))).collect::<Result<Vec<_>>>()?;
        let (folder, record) = records.first().context("no run is named")?;
        let form = |record: &Record| record.identity.get(INT8_FORM).cloned();
        for (other_folder, other) in &records {
            if other.model_hash != record.model_hash {
                bail!(
                    "{} was indexed with model {} of hash {}, {} with {} of {}: they cannot be searched together",
                    folder.display(),
                    record.model,
                    record.model_hash,
                    other_folder.display(),
                    other.model,
                    other.model_hash
                );
            }
            if form(other).is_some() && form(record).is_some() && form(other) != form(record) {
                bail!(
                    "{} and {} were indexed with different int8 forms of {}: they cannot be searched together",
                    folder.display(),
                    other_folder.display(),
                    record.model
                );
            }
        }
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
        let runs = records
            .into_iter()
            .map(|(folder, record)| {
                let (index, _temporary) = current(folder, &record, told)?;
                Ok(Run { folder: folder.clone(), record, index, _temporary })
            })
            .collect::<Result<_>>()?;
        Ok(Self { runs, model, libraries, joint, text: None, image: None })
    }

    /// The nearest clips of each query, which are searched for together.
    pub fn find(&mut self, queries: &[Query], choice: &Choice) -> Result<Vec<Found>> {
        let vectors = queries.iter().map(|query| self.embed(query)).collect::<Result<Vec<_>>>()?;
        if choice.diverse && choice.k > DIVERSE_MOST {
            bail!("--diverse compares every two hits: at most {DIVERSE_MOST}, not {}", choice.k);
        }
        let clips = if choice.diverse { choice.k * DIVERSE_AMONG } else { choice.k };
        let questions: Vec<Question<'_>> = vectors
            .iter()
            .map(|(vector, kind)| Question { vector, kind: *kind, clips, filter: &choice.filter })
            .collect();
        let nothing = Found { hits: Vec::new(), how: Vec::new() };
        let mut found = vec![nothing; queries.len()];
        for run in &self.runs {
            let answers = run.index.find(&questions).with_context(|| run.folder.display().to_string())?;
            for (found, Answer { hits, how }) in found.iter_mut().zip(answers) {
                found.hits.extend(hits.into_iter().map(|hit| (run.folder.clone(), hit)));
                found.how.push((run.folder.clone(), how));
            }
        }
        for found in &mut found {
            found.hits.sort_by(|(_, a), (_, b)| b.score.total_cmp(&a.score));
            found.hits.truncate(clips);
            if choice.diverse {
                found.hits = diverse(std::mem::take(&mut found.hits), choice.k, |(_, hit)| hit);
            }
        }
        Ok(found)
    }

    /// The unit vector of a query.
    fn embed(&mut self, query: &Query) -> Result<(Vec<f32>, Kind)> {
        Ok(match query {
            Query::Words(words) if words.trim().is_empty() => bail!("the words to search for are empty"),
            Query::Words(words) => {
                let text = match self.text.take() {
                    Some(text) => text,
                    None => TextEncoder::open(&self.model, &self.libraries)?,
                };
                let words = self.text.insert(text).embed(words)?;
                (self.joint.words(words), Kind::Text)
            }
            Query::Image(file) => (self.embed_file(file, Sampling::EveryMs(86_400_000))?, Kind::Frame),
            Query::Clip(file) => {
                let sampling = recorded_sampling(&self.runs[0].record.settings);
                (self.embed_file(file, sampling.context("run.json names no sampling")?)?, Kind::Frame)
            }
            Query::Vector(vector) => {
                let mut vector = vector.clone();
                normalize(&mut vector);
                (vector, Kind::Text)
            }
        })
    }

    /// The unit mean vector of a file's sampled frames, made by the stages of the run.
    fn embed_file(&mut self, file: &str, sampling: Sampling) -> Result<Vec<f32>> {
        let decode = decode::Settings {
            reading: recorded_reading(&self.runs[0].record.settings),
            ..decode::Settings::new(sampling, self.model.recipe())
        };
        let encode = match self.image.take() {
            Some(encode) => encode,
            None => self.open_image()?,
        };
        let encode = self.image.insert(encode);
        let clip = ClipRef { id: ClipId(0), path: file.to_owned(), label: None, extra: Vec::new() };
        let loaded: Vec<EncodedClip> = through(&mut Load::open(), vec![Arc::new(clip)])?;
        let frames: Vec<FrameBatch> = through(&mut Decode::open(decode)?, loaded)?;
        let batches: Vec<EmbeddingBatch> = through(encode, frames)?;
        let dim = self.joint.dim();
        Ok(unit_mean(batches.iter().flat_map(|b| b.embeddings.chunks(dim)), dim))
    }

    /// By the run's own engine, so that the same picture gives the same vector; on a machine without it by
    /// the reference, which is near.
    fn open_image(&self) -> Result<Encode> {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        let open = |engine: Engine, image: PathBuf| {
            let opening = Opening { engine, threads };
            let model = self.model.clone();
            let settings = encode::Settings {
                model,
                image,
                opening,
                keep_image_embedding: false,
                batch: USUAL_BATCH,
                device: 0,
            };
            Encode::open(&settings, &self.libraries)
        };
        let Run { folder, record, .. } = &self.runs[0];
        let own = record.engine;
        let image = image_file(&self.model, own.precision)?;
        if record.identity.get(INT8_FORM) != int8_form(&image, own)?.as_ref() {
            bail!(
                "{} was indexed with another int8 form of {}: its vectors cannot be compared",
                folder.display(),
                record.model
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

/// A hit as people read it: score, best frame, the moment around it.
pub fn line(rank: usize, hit: &Hit) -> String {
    let label = hit.label.as_ref().map(|l| format!("  [{l}]")).unwrap_or_default();
    let moment = format!("{}-{}", clock(hit.start_ns), clock(hit.end_ns));
    format!("{rank:>2}.  {:.3}  {}  {moment}  {}{label}", hit.score, clock(hit.pts_ns), hit.path)
}

/// What a search looked at, as people read it.
pub fn explained(folder: &Path, how: &How) -> String {
    let what = match how {
        How::All { rows } => format!("scanned all {rows} rows; nothing is missed"),
        How::Matching { rows, of } => {
            format!("scanned the {rows} of {of} rows that match; nothing is missed")
        }
        How::Lists { lists, of, recall: Some(recall) } => {
            format!("visited {lists} of {of} lists, which find {:.1} % of the nearest frames", recall * 100.0)
        }
        How::Lists { lists, of, recall: None } => {
            format!("visited {lists} of {of} lists; what they find was not measured for such a question")
        }
    };
    format!("{}: {what}", folder.display())
}

/// Hits as programs read them.
pub fn to_json(hits: &[(PathBuf, Hit)]) -> serde_json::Value {
    let hit = |(i, (run, h)): (usize, &(PathBuf, Hit))| {
        json!({
            "rank": i + 1, "score": h.score, "path": h.path, "label": h.label, "clip_id": h.clip_id,
            "pts_ns": h.pts_ns, "time": clock(h.pts_ns), "frame_index": h.frame_index,
            "start_ns": h.start_ns, "end_ns": h.end_ns, "run": run,
        })
    };
    hits.iter().enumerate().map(hit).collect()
}

/// The columns of [`to_csv`].
pub const CSV_COLUMNS: [&str; 11] = [
    "query",
    "rank",
    "score",
    "path",
    "label",
    "time_s",
    "start_s",
    "end_s",
    "frame_index",
    "clip_id",
    "run",
];

/// Hits as tables hold them.
pub fn to_csv(query: &str, hits: &[(PathBuf, Hit)]) -> Vec<[String; 11]> {
    let seconds = |ns: i64| format!("{:.3}", ns as f64 / 1e9);
    let row = |(i, (run, h)): (usize, &(PathBuf, Hit))| {
        [
            query.to_owned(),
            (i + 1).to_string(),
            h.score.to_string(),
            h.path.clone(),
            h.label.clone().unwrap_or_default(),
            seconds(h.pts_ns),
            seconds(h.start_ns),
            seconds(h.end_ns),
            h.frame_index.to_string(),
            h.clip_id.to_string(),
            run.display().to_string(),
        ]
    };
    hits.iter().enumerate().map(row).collect()
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
