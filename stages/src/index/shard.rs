//! A shard: a pair of Parquet files of the same clips, and their manifest.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Result;
use arrow::array::{
    ArrayRef, BooleanBuilder, Float64Array, Int64Array, Int64Builder, StringArray, StringBuilder,
    UInt32Array, UInt32Builder, UInt64Array, UInt64Builder,
};

use super::{
    ledger::RejectRecord,
    manifest::{self, Manifest},
    schema::{self, VectorShape},
    table::TableWriter,
};
use crate::item::{ClipEnd, ClipRef, FrameInfo, ShardRef};

/// Rows whose columns, but for vectors, wait to be encoded at once.
const ROWS_AT_ONCE: usize = 2_048;

/// A frame of a whole clip.
#[derive(Clone, Copy)]
pub(crate) struct FrameRow<'a> {
    pub(crate) info: FrameInfo,
    /// Of the joint space.
    pub(crate) vector: &'a [f32],
    /// The image tower's; empty where those are not kept.
    pub(crate) image_vector: &'a [f32],
}

/// What every row of `clips/` repeats.
#[derive(Clone, Debug)]
pub struct Provenance {
    /// The model's name.
    pub model: String,
    /// [`crate::model::Model::hash`].
    pub model_hash: String,
    /// [`crate::model::Model::preprocess_hash`].
    pub preprocess_hash: String,
}

/// `frames/shard-00007.parquet` and the like.
pub fn shard_path(run: &Path, table: &str, shard: u32) -> PathBuf {
    run.join(table).join(format!("shard-{shard:05}.parquet"))
}

/// A row of `clips/` that waits.
struct ClipRow {
    clip: Arc<ClipRef>,
    end: Box<ClipEnd>,
}

/// Rows of `frames/` that wait.
#[derive(Default)]
struct FrameColumns {
    n_rows: usize,
    clip_id: UInt64Builder,
    path: StringBuilder,
    label: StringBuilder,
    frame_index: UInt32Builder,
    pts_ns: Int64Builder,
    is_keyframe: BooleanBuilder,
}

impl FrameColumns {
    fn add(&mut self, clip: &ClipRef, info: FrameInfo) {
        self.n_rows += 1;
        self.clip_id.append_value(clip.id.0);
        self.path.append_value(&clip.path);
        self.label.append_option(clip.label.as_ref());
        self.frame_index.append_value(info.frame_index);
        self.pts_ns.append_value(info.pts.nanos);
        self.is_keyframe.append_value(info.is_keyframe);
    }

    /// Leaves none behind.
    fn take(&mut self) -> [ArrayRef; 6] {
        self.n_rows = 0;
        [
            Arc::new(self.clip_id.finish()),
            Arc::new(self.path.finish()),
            Arc::new(self.label.finish()),
            Arc::new(self.frame_index.finish()),
            Arc::new(self.pts_ns.finish()),
            Arc::new(self.is_keyframe.finish()),
        ]
    }
}

/// One shard's pair of files being written.
pub(crate) struct ShardWriter {
    run: PathBuf,
    shard: u32,
    n_extra: usize,
    provenance: Provenance,
    frames: TableWriter,
    clips: TableWriter,
    waiting_frames: FrameColumns,
    waiting_clips: Vec<ClipRow>,
    n_clips: u64,
    n_frames: u64,
}

impl ShardWriter {
    pub(crate) fn create(
        run: &Path,
        shard: u32,
        shape: VectorShape,
        extra_columns: &[String],
        provenance: Provenance,
    ) -> Result<Self> {
        let path = |table| shard_path(run, table, shard);
        Ok(Self {
            run: run.to_owned(),
            shard,
            n_extra: extra_columns.len(),
            provenance,
            frames: TableWriter::create(path("frames"), schema::frames(shape))?,
            clips: TableWriter::create(path("clips"), schema::clips(shape, extra_columns))?,
            waiting_frames: FrameColumns::default(),
            waiting_clips: Vec::new(),
            n_clips: 0,
            n_frames: 0,
        })
    }

    /// Rows of frames so far.
    pub(crate) fn n_frames(&self) -> u64 {
        self.n_frames
    }

    /// Adds a whole clip: its frames in order, and its own vector.
    pub(crate) fn add(
        &mut self,
        clip: &Arc<ClipRef>,
        end: Box<ClipEnd>,
        frames: &[FrameRow<'_>],
        vector: &[f32],
    ) -> Result<()> {
        for FrameRow { info, vector, image_vector } in frames {
            let both = [*vector, image_vector];
            let kept = if image_vector.is_empty() { &both[..1] } else { &both };
            self.frames.add_vectors(kept)?;
            self.waiting_frames.add(clip, *info);
            if self.waiting_frames.n_rows >= ROWS_AT_ONCE || self.frames.room() == 0 {
                self.flush_frames()?;
            }
        }
        self.clips.add_vectors(&[vector])?;
        self.waiting_clips.push(ClipRow { clip: clip.clone(), end });
        if self.waiting_clips.len() >= ROWS_AT_ONCE || self.clips.room() == 0 {
            self.flush_clips()?;
        }
        self.n_clips += 1;
        self.n_frames += frames.len() as u64;
        Ok(())
    }

    fn flush_frames(&mut self) -> Result<()> {
        if self.waiting_frames.n_rows == 0 {
            return Ok(());
        }
        self.frames.add_arrays(&self.waiting_frames.take())?;
        if self.frames.room() == 0 { self.frames.end_group() } else { Ok(()) }
    }

    fn flush_clips(&mut self) -> Result<()> {
        if self.waiting_clips.is_empty() {
            return Ok(());
        }
        let arrays = self.clip_columns();
        self.waiting_clips.clear();
        self.clips.add_arrays(&arrays)?;
        if self.clips.room() == 0 { self.clips.end_group() } else { Ok(()) }
    }

    /// Closes and names both files and writes their manifest. The caller then enters the shard in the ledger.
    pub(crate) fn commit(mut self, settings_hash: &str) -> Result<ShardRef> {
        self.flush_frames()?;
        self.flush_clips()?;
        let shard = ShardRef { shard: self.shard, n_clips: self.n_clips, n_frames: self.n_frames };
        let (frames, clips) = (self.frames.close()?, self.clips.close()?);
        frames.publish()?;
        clips.publish()?;
        let manifest = Manifest {
            shard: shard.shard,
            schema_version: schema::SCHEMA_VERSION,
            clipmill: env!("CARGO_PKG_VERSION").into(),
            settings_hash: settings_hash.into(),
            frames: frames.listed(shard.n_frames),
            clips: clips.listed(shard.n_clips),
        };
        manifest.write(&self.run)?;
        Ok(shard)
    }

    /// The columns of the clips that wait, but for their vectors.
    fn clip_columns(&self) -> Vec<ArrayRef> {
        let waiting = &self.waiting_clips;
        let text = |get: &dyn Fn(&ClipRow) -> String| -> ArrayRef {
            Arc::new(StringArray::from_iter_values(waiting.iter().map(get)))
        };
        let number = |get: &dyn Fn(&ClipEnd) -> u32| -> ArrayRef {
            Arc::new(UInt32Array::from_iter_values(waiting.iter().map(|c| get(&c.end))))
        };
        let repeated = |value: &String| text(&|_| value.clone());
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from_iter_values(waiting.iter().map(|c| c.clip.id.0))),
            text(&|c| c.clip.path.clone()),
            Arc::new(StringArray::from_iter(waiting.iter().map(|c| c.clip.label.as_ref()))),
            text(&|c| c.end.identity.content_hash.to_hex().to_string()),
            text(&|c| c.end.codec.clone()),
            text(&|c| c.end.container.clone()),
            number(&|e| e.width),
            number(&|e| e.height),
            Arc::new(Float64Array::from_iter_values(waiting.iter().map(|c| c.end.fps))),
            Arc::new(Int64Array::from_iter_values(waiting.iter().map(|c| c.end.duration_ns))),
            number(&|e| e.n_frames),
            number(&|e| e.n_sampled),
            text(&|c| c.end.decoder.clone()),
            text(&|c| if c.end.damage.is_some() { "damaged" } else { "ok" }.to_owned()),
            Arc::new(StringArray::from_iter(waiting.iter().map(|c| c.end.damage.as_ref()))),
            repeated(&self.provenance.model),
            repeated(&self.provenance.model_hash),
            repeated(&self.provenance.preprocess_hash),
        ];
        for i in 0..self.n_extra {
            let values = waiting.iter().map(|c| c.clip.extra.get(i).and_then(Option::as_ref));
            columns.push(Arc::new(StringArray::from_iter(values)));
        }
        columns
    }
}

/// Writes all rejects of the run anew.
pub(crate) fn write_rejects(run: &Path, rejects: &[&RejectRecord]) -> Result<()> {
    let text = |get: &dyn Fn(&RejectRecord) -> &str| -> ArrayRef {
        Arc::new(StringArray::from_iter_values(rejects.iter().map(|r| get(r))))
    };
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt64Array::from_iter_values(rejects.iter().map(|r| r.clip_id))),
        text(&|r| &r.path),
        Arc::new(StringArray::from_iter(rejects.iter().map(|r| r.label.as_ref()))),
        text(&|r| &r.stage),
        text(&|r| &r.reason),
        text(&|r| &r.detail),
    ];
    let mut table = TableWriter::create(run.join("rejects.parquet"), schema::rejects())?;
    table.add_arrays(&columns)?;
    let closed = table.close()?;
    closed.publish()?;
    manifest::write_rejects(run, &closed.listed(rejects.len() as u64))
}
