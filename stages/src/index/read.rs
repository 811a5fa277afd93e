//! Reading published Parquet files, a batch of rows at a time.

use std::{borrow::Cow, fs::File, path::Path};

use anyhow::{Context as _, Result, bail};
use arrow::{
    array::{Array, AsArray as _, RecordBatch},
    datatypes::{DataType, Float16Type, Float32Type},
};
use half::{f16, slice::HalfFloatSliceExt as _};
use parquet::arrow::{ProjectionMask, arrow_reader::ParquetRecordBatchReaderBuilder};

/// Rows read at a time.
const BATCH_ROWS: usize = 4_096;

/// Batches of the named columns of a file; of all its columns if none is named.
pub fn batches(path: &Path, columns: &[&str]) -> Result<impl Iterator<Item = Result<RecordBatch>> + use<>> {
    let name = path.display().to_string();
    let file = File::open(path).with_context(|| format!("cannot open {name}"))?;
    let builder = ParquetRecordBatchReaderBuilder::try_new(file).with_context(|| name.clone())?;
    let mask = if columns.is_empty() {
        ProjectionMask::all()
    } else {
        ProjectionMask::columns(builder.parquet_schema(), columns.iter().copied())
    };
    let reader =
        builder.with_projection(mask).with_batch_size(BATCH_ROWS).build().with_context(|| name.clone())?;
    Ok(reader.map(move |batch| batch.with_context(|| name.clone())))
}

/// A column that every shard has.
pub fn column<'a>(batch: &'a RecordBatch, name: &str) -> Result<&'a dyn Array> {
    Ok(batch.column_by_name(name).with_context(|| format!("a shard has no column {name}"))?.as_ref())
}

/// The values of a column of vectors, row after row, and their dimension. Vectors stored as float32 are
/// rounded to float16, which is what search works with.
pub fn vectors<'a>(batch: &'a RecordBatch, name: &str) -> Result<(Cow<'a, [f16]>, usize)> {
    let list = column(batch, name)?
        .as_fixed_size_list_opt()
        .with_context(|| format!("column {name} is no fixed-size list"))?;
    let dim = list.value_length() as usize;
    let values = match list.value_type() {
        DataType::Float16 => Cow::Borrowed(&list.values().as_primitive::<Float16Type>().values()[..]),
        DataType::Float32 => {
            let wide = list.values().as_primitive::<Float32Type>().values();
            let mut values = vec![f16::ZERO; wide.len()];
            values.convert_from_f32_slice(wide);
            Cow::Owned(values)
        }
        other => bail!("column {name} holds {other}, need float16 or float32"),
    };
    Ok((values, dim))
}
