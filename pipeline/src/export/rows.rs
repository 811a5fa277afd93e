//! The rows of a run, streamed from the shards that its ledger lists.

use std::{fs::File, path::Path, path::PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use arrow::{
    array::{Array as _, ArrayRef, AsArray as _, RecordBatch},
    compute::cast,
    datatypes::{DataType, Float16Type, Float32Type, Int64Type},
};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use stages::index::{
    ledger::Standing,
    manifest::Manifest,
    read::{batches, column},
    shard::shard_path,
};

use super::Of;
use crate::record::Record;

// The bytes of an array are those of its file.
const _: () = assert!(cfg!(target_endian = "little"));

/// What the vectors of a run are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct VectorType {
    pub(super) dim: usize,
    /// float16 or float32.
    pub(super) stored: DataType,
}

impl VectorType {
    /// NumPy's name of the stored type.
    pub(super) fn descr(&self) -> &'static str {
        if self.stored == DataType::Float16 { "<f2" } else { "<f4" }
    }
}

/// What is left to export.
pub(super) struct Rows {
    files: std::vec::IntoIter<PathBuf>,
    columns: &'static [&'static str],
    batches: Option<Box<dyn Iterator<Item = Result<RecordBatch>>>>,
    /// Read, but not given yet.
    rest: Option<RecordBatch>,
    /// All rows.
    pub(super) count: u64,
    pub(super) vector: VectorType,
}

impl Rows {
    /// Of the run in `folder`, as far as it has got.
    pub(super) fn open(folder: &Path, of: Of) -> Result<Self> {
        Record::read(folder)?;
        let shards = Standing::read(folder)?.shards;
        for shard in &shards {
            // Parquet's pages have no checksums of their own.
            Manifest::read(folder, *shard)?.map_or(Ok(()), |manifest| manifest.check(folder))?;
        }
        let files: Vec<PathBuf> = shards.iter().map(|s| shard_path(folder, of.table(), *s)).collect();
        let mut count = 0;
        let mut vector: Option<VectorType> = None;
        for path in &files {
            let (n, its) = footer(path)?;
            count += n;
            let first = vector.get_or_insert_with(|| its.clone());
            ensure!(*first == its, "{}: its vectors are {its:?}, others are {first:?}", path.display());
        }
        let Some(vector) = vector.filter(|_| count > 0) else {
            bail!("{} holds no finished shard: nothing is indexed yet", folder.display());
        };
        // The image tower's vectors, where they are kept, need not be read.
        let columns: &[&str] = match of {
            Of::Frames => &["clip_id", "path", "label", "frame_index", "pts_ns", "is_keyframe", "embedding"],
            Of::Clips => &[],
        };
        Ok(Self { files: files.into_iter(), columns, batches: None, rest: None, count, vector })
    }

    /// The next rows, `most` of them or fewer.
    pub(super) fn next(&mut self, most: u64) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(batch) = self.rest.take() {
                let n = batch.num_rows();
                let given = n.min(usize::try_from(most).unwrap_or(usize::MAX));
                if given < n {
                    self.rest = Some(batch.slice(given, n - given));
                }
                return Ok(Some(batch.slice(0, given)));
            }
            if let Some(batch) = self.batches.as_mut().and_then(Iterator::next) {
                self.rest = Some(batch?);
                continue;
            }
            let Some(path) = self.files.next() else { return Ok(None) };
            self.batches = Some(Box::new(batches(&path, self.columns)?));
        }
    }
}

/// The number of a shard's rows, and what its vectors are.
fn footer(path: &Path) -> Result<(u64, VectorType)> {
    let name = || path.display().to_string();
    let file = File::open(path).with_context(|| format!("cannot open {}", name()))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).with_context(name)?;
    let field = builder.schema().field_with_name("embedding").with_context(name)?;
    let vector = match field.data_type() {
        DataType::FixedSizeList(element, dim)
            if matches!(element.data_type(), DataType::Float16 | DataType::Float32) =>
        {
            VectorType { dim: *dim as usize, stored: element.data_type().clone() }
        }
        other => bail!("{}: column embedding is {other}, need vectors of float16 or float32", name()),
    };
    Ok((builder.metadata().file_metadata().num_rows() as u64, vector))
}

/// The values of the vectors, row after row, as `wanted`.
pub(super) fn values(rows: &RecordBatch, wanted: &DataType) -> Result<ArrayRef> {
    let list = column(rows, "embedding")?.as_fixed_size_list();
    Ok(cast(list.values(), wanted)?)
}

/// The bytes of an array of numbers, as files have them.
pub(super) fn bytes(values: &ArrayRef) -> Result<&[u8]> {
    Ok(match values.data_type() {
        DataType::Float16 => values.as_primitive::<Float16Type>().values().inner().as_slice(),
        DataType::Float32 => values.as_primitive::<Float32Type>().values().inner().as_slice(),
        DataType::Int64 => values.as_primitive::<Int64Type>().values().inner().as_slice(),
        other => bail!("no array of {other} is exported"),
    })
}
