//! Writing Parquet: to a temporary file, synced, then renamed. A name without `.partial` is whole.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context as _, Result};
use arrow::{
    array::{
        ArrayRef, BooleanArray, FixedSizeListArray, Float16Array, Float64Array, Int64Array, RecordBatch,
        StringArray, UInt32Array, UInt64Array,
    },
    datatypes::{DataType, Field, SchemaRef},
};
use half::f16;
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
    schema::types::ColumnPath,
};

use super::{
    ledger::RejectRecord,
    schema::{self, VectorShape},
};
use crate::item::{ClipEnd, ClipRef, FrameInfo, ShardRef};

/// Rows of a row group of frames: 13 MB of memory at 384 dimensions.
const FRAME_GROUP_ROWS: usize = 16_384;
/// Rows of a row group of clips.
const CLIP_GROUP_ROWS: usize = 4_096;

/// A whole clip, ready to be written.
#[derive(Debug)]
pub(crate) struct ClipRows {
    pub(crate) clip: Arc<ClipRef>,
    pub(crate) end: Box<ClipEnd>,
    /// In order of `frame_index`.
    pub(crate) frames: Vec<FrameInfo>,
    /// `frames.len() × dim`.
    pub(crate) embeddings: Vec<f32>,
    /// `frames.len() × image_dim`.
    pub(crate) image_embeddings: Vec<f32>,
    /// Of the clip, unit length.
    pub(crate) embedding: Vec<f32>,
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

/// A Parquet file being written.
struct PartialFile {
    writer: ArrowWriter<File>,
    schema: SchemaRef,
    partial: PathBuf,
    path: PathBuf,
}

impl PartialFile {
    fn create(path: PathBuf, schema: SchemaRef, group_rows: usize) -> Result<Self> {
        let partial = path.with_extension("parquet.partial");
        let mut properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
            .set_max_row_group_row_count(Some(group_rows));
        for name in ["embedding", "image_embedding"] {
            // Vectors repeat nothing: a dictionary of them is wasted work.
            let column = ColumnPath::new(vec![name.into(), "list".into(), "element".into()]);
            properties = properties.set_column_dictionary_enabled(column, false);
        }
        let file = File::create(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
        let writer = ArrowWriter::try_new(file, schema.clone(), Some(properties.build()))?;
        Ok(Self { writer, schema, partial, path })
    }

    fn write(&mut self, batch: &RecordBatch) -> Result<()> {
        self.writer.write(batch).with_context(|| format!("cannot write {}", self.partial.display()))
    }

    /// Writes the footer and waits for the disk.
    fn close(self) -> Result<(PathBuf, PathBuf)> {
        let Self { writer, partial, path, .. } = self;
        let failed = || format!("cannot write {}", partial.display());
        writer.into_inner().with_context(failed)?.sync_all().with_context(failed)?;
        Ok((partial, path))
    }
}

/// Gives a closed file its name.
fn publish((partial, path): (PathBuf, PathBuf)) -> Result<()> {
    fs::rename(&partial, &path)
        .with_context(|| format!("cannot rename {} to {}", partial.display(), path.display()))?;
    if let Some(folder) = path.parent() {
        File::open(folder)?.sync_all().with_context(|| format!("cannot sync {}", folder.display()))?;
    }
    Ok(())
}

/// `frames/shard-00007.parquet` and the like.
pub fn shard_path(run: &Path, table: &str, shard: u32) -> PathBuf {
    run.join(table).join(format!("shard-{shard:05}.parquet"))
}

/// One shard's pair of files being written.
pub(crate) struct ShardWriter {
    shard: u32,
    shape: VectorShape,
    provenance: Provenance,
    frames: PartialFile,
    clips: PartialFile,
    waiting: Vec<ClipRows>,
    n_waiting_frames: usize,
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
        let frames = shard_path(run, "frames", shard);
        let clips = shard_path(run, "clips", shard);
        Ok(Self {
            shard,
            shape,
            provenance,
            frames: PartialFile::create(frames, schema::frames(shape), FRAME_GROUP_ROWS)?,
            clips: PartialFile::create(clips, schema::clips(shape, extra_columns), CLIP_GROUP_ROWS)?,
            waiting: Vec::new(),
            n_waiting_frames: 0,
            n_clips: 0,
            n_frames: 0,
        })
    }

    /// Rows of frames so far.
    pub(crate) fn n_frames(&self) -> u64 {
        self.n_frames
    }

    pub(crate) fn add(&mut self, rows: ClipRows) -> Result<()> {
        self.n_clips += 1;
        self.n_frames += rows.frames.len() as u64;
        self.n_waiting_frames += rows.frames.len();
        self.waiting.push(rows);
        // Small batches cost the writer's fixed work; large ones memory.
        if self.n_waiting_frames >= 2_048 || self.waiting.len() >= 1_024 {
            self.flush()?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let waiting = std::mem::take(&mut self.waiting);
        self.n_waiting_frames = 0;
        if !waiting.is_empty() {
            self.frames.write(&self.frames_batch(&waiting)?)?;
            self.clips.write(&self.clips_batch(&waiting)?)?;
        }
        Ok(())
    }

    /// Closes and names both files. The caller then enters the shard in the ledger.
    pub(crate) fn commit(mut self) -> Result<ShardRef> {
        self.flush()?;
        let shard = ShardRef { shard: self.shard, n_clips: self.n_clips, n_frames: self.n_frames };
        let (frames, clips) = (self.frames.close()?, self.clips.close()?);
        publish(frames)?;
        publish(clips)?;
        Ok(shard)
    }

    fn frames_batch(&self, waiting: &[ClipRows]) -> Result<RecordBatch> {
        let frames = || waiting.iter().flat_map(|c| c.frames.iter().map(move |f| (c, f)));
        let mut columns: Vec<ArrayRef> = vec![
            Arc::new(UInt64Array::from_iter_values(frames().map(|(c, _)| c.clip.id.0))),
            Arc::new(StringArray::from_iter_values(frames().map(|(c, _)| &c.clip.path))),
            Arc::new(StringArray::from_iter(frames().map(|(c, _)| c.clip.label.as_ref()))),
            Arc::new(UInt32Array::from_iter_values(frames().map(|(_, f)| f.frame_index))),
            Arc::new(Int64Array::from_iter_values(frames().map(|(_, f)| f.pts.nanos))),
            Arc::new(BooleanArray::from_iter(frames().map(|(_, f)| Some(f.is_keyframe)))),
            vectors(waiting.iter().flat_map(|c| &c.embeddings), self.shape.dim)?,
        ];
        if self.shape.image_dim > 0 {
            columns.push(vectors(waiting.iter().flat_map(|c| &c.image_embeddings), self.shape.image_dim)?);
        }
        Ok(RecordBatch::try_new(schema::frames(self.shape), columns)?)
    }

    fn clips_batch(&self, waiting: &[ClipRows]) -> Result<RecordBatch> {
        let text = |get: &dyn Fn(&ClipRows) -> String| -> ArrayRef {
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
            vectors(waiting.iter().flat_map(|c| &c.embedding), self.shape.dim)?,
            repeated(&self.provenance.model),
            repeated(&self.provenance.model_hash),
            repeated(&self.provenance.preprocess_hash),
        ];
        let schema = self.clips.schema.clone();
        let n_extra = schema.fields().len() - columns.len();
        for i in 0..n_extra {
            let values = waiting.iter().map(|c| c.clip.extra.get(i).and_then(Option::as_ref));
            columns.push(Arc::new(StringArray::from_iter(values)));
        }
        Ok(RecordBatch::try_new(schema, columns)?)
    }
}

fn vectors<'a>(values: impl Iterator<Item = &'a f32>, dim: usize) -> Result<ArrayRef> {
    let element = Arc::new(Field::new("element", DataType::Float16, false));
    let values = Float16Array::from_iter_values(values.map(|v| f16::from_f32(*v)));
    Ok(Arc::new(FixedSizeListArray::try_new(element, dim as i32, Arc::new(values), None)?))
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
    let mut file = PartialFile::create(run.join("rejects.parquet"), schema::rejects(), CLIP_GROUP_ROWS)?;
    file.write(&RecordBatch::try_new(schema::rejects(), columns)?)?;
    publish(file.close()?)
}
