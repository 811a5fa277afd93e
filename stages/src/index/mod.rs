//! `EmbeddingBatch` → `Indexed`: a clip whole or not at all.
//!
//! Batches of a clip may come in any order, and its rejection may overtake them, so rows wait here
//! until their clip is complete. Complete clips are written to the open shard; a full shard is
//! published and entered in the ledger, and then in the vector index.

pub mod ledger;
pub mod manifest;
pub mod read;
pub mod schema;
pub mod shard;
mod table;
mod vector_column;
pub mod vectors;

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result};

use crate::{
    encode::joint::unit_mean,
    item::{ClipEnd, ClipId, ClipRef, EmbeddingBatch, FrameInfo, Indexed},
    stage::{Emit, Rejection, Stage, StageError},
};
use ledger::{ClipRecord, Ledger, RejectRecord, Standing};
use schema::VectorShape;
use shard::{FrameRow, Provenance, ShardWriter, write_rejects};
use vectors::Builder;

/// How the index stage works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The output folder.
    pub folder: PathBuf,
    /// Rows of frames after which a shard is published.
    pub shard_rows: u64,
    /// Lengths of the vectors.
    pub shape: VectorShape,
    /// Names of the manifest's further columns.
    pub extra_columns: Vec<String>,
    /// Whether the vector index is kept up with the shards.
    pub vectors: bool,
    /// Stands in the manifests for all settings that the rows depend on.
    pub settings_hash: String,
    /// Repeated in every row of `clips/`.
    pub provenance: Provenance,
}

/// The index stage. There is one of it in a run.
pub struct Index {
    settings: Settings,
    ledger: Ledger,
    vectors: Option<Builder>,
    pending: HashMap<ClipId, Pending>,
    rejected: HashSet<ClipId>,
    shard: Option<OpenShard>,
}

/// Rows of a clip that is not complete.
struct Pending {
    clip: Arc<ClipRef>,
    /// As they came.
    parts: Vec<Rows>,
    n_rows: usize,
    end: Option<Box<ClipEnd>>,
}

/// Rows of a batch.
struct Rows {
    frames: Vec<FrameInfo>,
    embeddings: Vec<f32>,
    image_embeddings: Vec<f32>,
}

impl Rows {
    fn iter(&self, shape: VectorShape) -> impl Iterator<Item = FrameRow<'_>> {
        let VectorShape { dim, image_dim, .. } = shape;
        self.frames.iter().enumerate().map(move |(i, info)| FrameRow {
            info: *info,
            vector: &self.embeddings[i * dim..(i + 1) * dim],
            image_vector: &self.image_embeddings[i * image_dim..(i + 1) * image_dim],
        })
    }
}

struct OpenShard {
    number: u32,
    writer: ShardWriter,
    records: Vec<ClipRecord>,
}

impl Index {
    /// Goes on with the run whose ledger is open.
    pub fn open(settings: Settings, ledger: Ledger) -> Result<Self> {
        let open =
            || Builder::open(&settings.folder, &vectors::folder(&settings.folder), settings.shape.dim, false);
        let vectors = settings.vectors.then(open).transpose()?;
        let (pending, rejected) = Default::default();
        Ok(Self { settings, ledger, vectors, pending, rejected, shard: None })
    }

    fn complete(&mut self, id: ClipId, out: &mut dyn Emit<Indexed>) -> Result<(), StageError> {
        let Some(pending) = self.pending.remove(&id) else { return Ok(()) };
        let Pending { clip, parts, end: Some(end), .. } = pending else { return Ok(()) };
        let shape = self.settings.shape;
        let mut frames: Vec<FrameRow<'_>> = parts.iter().flat_map(|part| part.iter(shape)).collect();
        frames.sort_by_key(|row| row.info.frame_index);
        let record = ClipRecord {
            clip_id: id.0,
            path: clip.path.clone(),
            n_frames: frames.len() as u32,
            bytes: end.identity.bytes,
            modified_ns: end.identity.modified_ns,
        };
        let vector = unit_mean(frames.iter().map(|row| row.vector), shape.dim);
        tracing::debug!(clip = clip.path, rows = record.n_frames, "complete");
        let damage = end.damage.clone();
        let told = Indexed::Clip { clip: clip.clone(), n_frames: record.n_frames, damage };
        let shard = self.open_shard()?;
        shard.writer.add(&clip, end, &frames, &vector)?;
        shard.records.push(record);
        let is_full = shard.writer.n_frames() >= self.settings.shard_rows;
        out.emit(told)?;
        if is_full { self.publish(out) } else { Ok(()) }
    }

    fn open_shard(&mut self) -> Result<&mut OpenShard> {
        if self.shard.is_none() {
            let Settings { folder, shape, extra_columns, provenance, .. } = &self.settings;
            let number = self.ledger.next_shard();
            let writer = ShardWriter::create(folder, number, *shape, extra_columns, provenance.clone())?;
            self.shard = Some(OpenShard { number, writer, records: Vec::new() });
        }
        self.shard.as_mut().context("a shard was just opened")
    }

    fn publish(&mut self, out: &mut dyn Emit<Indexed>) -> Result<(), StageError> {
        let Some(OpenShard { number, writer, records }) = self.shard.take() else { return Ok(()) };
        let shard = writer.commit(&self.settings.settings_hash)?;
        self.ledger.add_shard(number, shard.n_frames, records)?;
        // Made from what is published: where this fails or is cut off, a search does it.
        if let Some(Err(e)) = self.vectors.as_mut().map(|vectors| vectors.add(number)) {
            tracing::warn!("the vector index stays behind: {e:#}");
            self.vectors = None;
        }
        tracing::info!(shard = number, clips = shard.n_clips, frames = shard.n_frames, "published a shard");
        Ok(out.emit(Indexed::Shard(shard))?)
    }
}

impl Stage for Index {
    type In = EmbeddingBatch;
    type Out = Indexed;

    fn process(&mut self, item: EmbeddingBatch, out: &mut dyn Emit<Indexed>) -> Result<(), StageError> {
        let EmbeddingBatch { clip, frames, embeddings, image_embeddings, end } = item;
        let id = clip.id;
        if self.rejected.contains(&id) {
            return Ok(());
        }
        let new = || Pending { clip, parts: Vec::new(), n_rows: 0, end: None };
        let pending = self.pending.entry(id).or_insert_with(new);
        pending.n_rows += frames.len();
        pending.parts.push(Rows { frames, embeddings, image_embeddings });
        pending.end = end.or(pending.end.take());
        let expected = pending.end.as_ref().map(|e| e.n_sampled as usize);
        if expected == Some(pending.n_rows) { self.complete(id, out) } else { Ok(()) }
    }

    fn rejected(&mut self, rejection: Rejection, out: &mut dyn Emit<Indexed>) -> Result<(), StageError> {
        self.pending.remove(&rejection.clip.id);
        if self.rejected.insert(rejection.clip.id) {
            self.ledger.add_reject(RejectRecord::from(&rejection))?;
            out.reject(rejection)?;
        }
        Ok(())
    }

    fn finish(&mut self, out: &mut dyn Emit<Indexed>) -> Result<(), StageError> {
        if let Some(pending) = self.pending.values().next() {
            // Every batch of every clip is in: this would be a fault of ours, and loses nothing if told.
            return Err(StageError::Fatal(anyhow::anyhow!(
                "{} clips never became whole, the first is {}",
                self.pending.len(),
                pending.clip.path
            )));
        }
        self.publish(out)?;
        Ok(write_rejects(&self.settings.folder, &self.ledger.rejects())?)
    }
}

/// Writes `rejects.parquet` of the run in `folder` anew, from what its ledger says.
pub fn rewrite_rejects(folder: &Path, standing: &Standing) -> Result<()> {
    let mut rejects: Vec<&RejectRecord> = standing.rejects.values().collect();
    rejects.sort_by_key(|r| r.clip_id);
    write_rejects(folder, &rejects)
}
