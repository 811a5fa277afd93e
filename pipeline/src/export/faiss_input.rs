//! Float32 arrays for FAISS: `embeddings/`, and of the same rows `ids/` and `rows/`.
//!
//! FAISS itself takes arrays from memory, float32 and int64, so NumPy's files, which can be mapped, need
//! no conversion; autofaiss reads the folder of embeddings as it is. `.fvecs` is read by FAISS's benchmarks
//! alone. The ids have a folder of their own, for autofaiss takes all the arrays that it finds.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use arrow::{
    array::{ArrayRef, AsArray as _, Int64Array, RecordBatch},
    datatypes::{DataType, UInt32Type, UInt64Type},
};
use stages::index::read::column;

use super::{
    Of, Part, Plan,
    npy::NpyFile,
    numbered,
    place::Place,
    rows::values,
    table::{ParquetFile, beside, columns, full},
};

pub(super) struct FaissInput {
    of: Of,
    vectors: NpyFile,
    ids: NpyFile,
    rows: ParquetFile,
}

pub(super) fn open(plan: &Plan, place: &mut Place, number: u64, n_rows: u64) -> Result<FaissInput> {
    let number = numbered(plan, number);
    let n_rows = n_rows as usize;
    let shape = [n_rows, plan.vector.dim];
    Ok(FaissInput {
        of: plan.of,
        vectors: NpyFile::create(place, &format!("embeddings/embeddings_{number}.npy"), "<f4", &shape)?,
        ids: NpyFile::create(place, &format!("ids/ids_{number}.npy"), "<i8", &[n_rows])?,
        rows: ParquetFile::create(place, &format!("rows/rows_{number}.parquet"))?,
    })
}

impl Part for FaissInput {
    fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        let ids: ArrayRef = Arc::new(ids(rows, self.of)?);
        self.vectors.write(&values(rows, &DataType::Float32)?)?;
        self.ids.write(&ids)?;
        let mut all = vec![full("id", ids)];
        all.extend(columns(rows, beside(&["id"])));
        self.rows.write(all)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.vectors.finish()?;
        self.ids.finish()?;
        self.rows.finish()
    }
}

/// A number that tells a row: of a clip its own, of a frame `clip_id << 32 | frame_index`.
fn ids(rows: &RecordBatch, of: Of) -> Result<Int64Array> {
    let clips = column(rows, "clip_id")?.as_primitive::<UInt64Type>();
    let Of::Frames = of else {
        let ids: Result<Vec<i64>, _> = clips.values().iter().map(|c| i64::try_from(*c)).collect();
        return Ok(ids.context("a clip's number is too large for FAISS")?.into());
    };
    let frames = column(rows, "frame_index")?.as_primitive::<UInt32Type>();
    let id = |(clip, frame): (&u64, &u32)| {
        let clip = i32::try_from(*clip).ok()?;
        Some(i64::from(clip) << 32 | i64::from(*frame))
    };
    let ids: Option<Vec<i64>> = clips.values().iter().zip(frames.values()).map(id).collect();
    Ok(ids.context("a frame's id holds clips below 2,147,483,648; this run has a larger one")?.into())
}
