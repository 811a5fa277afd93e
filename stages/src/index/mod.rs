//! `EmbeddingBatch` → `Indexed`: a clip whole or not at all.
//!
//! Batches of a clip may come in any order, and its rejection may overtake them, so rows wait here
//! until their clip is complete. Complete clips are written to the open shard; a full shard is
//! published and entered in the ledger.

pub mod ledger;
pub mod read;
pub mod schema;
pub mod shard;
pub mod vectors;

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
    sync::Arc,
};

use anyhow::{Context as _, Result};

use crate::{
    encode::joint::unit_mean,
    item::{ClipEnd, ClipId, ClipRef, EmbeddingBatch, FrameInfo, Indexed},
    stage::{Emit, Rejection, Stage, StageError},
};
use ledger::{ClipRecord, Ledger, RejectRecord};
use schema::VectorShape;
use shard::{ClipRows, Provenance, ShardWriter, write_rejects};

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
    /// Repeated in every row of `clips/`.
    pub provenance: Provenance,
}

/// The index stage. There is one of it in a run.
pub struct Index {
    settings: Settings,
    ledger: Ledger,
    pending: HashMap<ClipId, Pending>,
    rejected: HashSet<ClipId>,
    shard: Option<OpenShard>,
}

/// Rows of a clip that is not complete.
struct Pending {
    clip: Arc<ClipRef>,
    frames: Vec<(FrameInfo, Vec<f32>, Vec<f32>)>,
    end: Option<Box<ClipEnd>>,
}

struct OpenShard {
    number: u32,
    writer: ShardWriter,
    records: Vec<ClipRecord>,
}

impl Index {
    /// Goes on with the run whose ledger is open.
    pub fn open(settings: Settings, ledger: Ledger) -> Self {
        Self { settings, ledger, pending: HashMap::new(), rejected: HashSet::new(), shard: None }
    }

    fn complete(&mut self, id: ClipId, out: &mut dyn Emit<Indexed>) -> Result<(), StageError> {
        let Some(pending) = self.pending.remove(&id) else { return Ok(()) };
        let Pending { clip, mut frames, end: Some(end) } = pending else { return Ok(()) };
        frames.sort_by_key(|(info, ..)| info.frame_index);
        let record = ClipRecord {
            clip_id: id.0,
            path: clip.path.clone(),
            n_frames: frames.len() as u32,
            bytes: end.identity.bytes,
            modified_ns: end.identity.modified_ns,
        };
        let mut rows = ClipRows {
            clip: clip.clone(),
            end,
            frames: Vec::with_capacity(frames.len()),
            embeddings: Vec::with_capacity(frames.len() * self.settings.shape.dim),
            image_embeddings: Vec::new(),
            embedding: Vec::new(),
        };
        for (info, vector, image) in frames {
            rows.frames.push(info);
            rows.embeddings.extend(vector);
            rows.image_embeddings.extend(image);
        }
        let dim = self.settings.shape.dim;
        rows.embedding = unit_mean(rows.embeddings.chunks(dim), dim);
        tracing::debug!(clip = clip.path, rows = record.n_frames, "complete");
        let told = Indexed::Clip { clip, n_frames: record.n_frames, damage: rows.end.damage.clone() };
        let shard = self.open_shard()?;
        shard.writer.add(rows)?;
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
        let shard = writer.commit()?;
        self.ledger.add_shard(number, shard.n_frames, records)?;
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
        let pending =
            self.pending.entry(id).or_insert_with(|| Pending { clip, frames: Vec::new(), end: None });
        let VectorShape { dim, image_dim } = self.settings.shape;
        for (i, info) in frames.into_iter().enumerate() {
            let image = image_embeddings.get(i * image_dim..(i + 1) * image_dim).unwrap_or_default().to_vec();
            pending.frames.push((info, embeddings[i * dim..(i + 1) * dim].to_vec(), image));
        }
        pending.end = end.or(pending.end.take());
        let expected = pending.end.as_ref().map(|e| e.n_sampled as usize);
        if expected == Some(pending.frames.len()) { self.complete(id, out) } else { Ok(()) }
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
