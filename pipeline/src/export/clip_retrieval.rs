//! What `clip-retrieval inference` writes, and `clip-retrieval index`, autofaiss and embedding-reader read.
//!
//! `img_emb/img_emb_N.npy` and `metadata/metadata_N.parquet` of the same N hold the same rows. Their
//! readers pair them by the order of their names, so N has leading zeros. The metadata's own columns are
//! `image_path` and `caption`; ours follow.

use std::sync::Arc;

use anyhow::Result;
use arrow::array::{ArrayRef, AsArray as _, RecordBatch, StringArray};
use stages::index::read::column;

use super::{
    Part, Plan,
    npy::NpyFile,
    numbered,
    place::Place,
    rows::{VectorType, values},
    table::{ParquetFile, beside, columns, full},
};

pub(super) struct ClipRetrieval {
    vector: VectorType,
    vectors: NpyFile,
    metadata: ParquetFile,
}

pub(super) fn open(plan: &Plan, place: &mut Place, number: u64, n_rows: u64) -> Result<ClipRetrieval> {
    let number = numbered(plan, number);
    let vector = plan.vector.clone();
    let shape = [n_rows as usize, vector.dim];
    let vectors = NpyFile::create(place, &format!("img_emb/img_emb_{number}.npy"), vector.descr(), &shape)?;
    let metadata = ParquetFile::create(place, &format!("metadata/metadata_{number}.parquet"))?;
    Ok(ClipRetrieval { vector, vectors, metadata })
}

impl Part for ClipRetrieval {
    fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        self.vectors.write(&values(rows, &self.vector.stored)?)?;
        let labels = column(rows, "label")?.as_string::<i32>();
        let captions: StringArray = labels.iter().map(|l| Some(l.unwrap_or_default())).collect();
        let path: ArrayRef = Arc::new(column(rows, "path")?.as_string::<i32>().clone());
        let mut all = vec![full("image_path", path), full("caption", Arc::new(captions))];
        // `path` is `image_path`.
        all.extend(
            columns(rows, beside(&["image_path", "caption"])).into_iter().filter(|c| c.name != "path"),
        );
        self.metadata.write(all)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.vectors.finish()?;
        self.metadata.finish()
    }
}
