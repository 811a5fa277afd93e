//! NumPy's arrays; and the format of one array and one table, for who has NumPy alone.
//!
//! The table is CSV, which needs nothing but Python: the same rows with their types are in the Parquet of
//! the other formats.

use std::io::Write as _;

use anyhow::{Result, ensure};
use arrow::array::{ArrayRef, RecordBatch};
use stages::files::numpy_header;

use super::{
    Part, Plan,
    place::{OutFile, Place},
    rows::{VectorType, bytes, values},
    table::{CsvFile, columns},
};

/// An array of known shape being written.
pub(super) struct NpyFile {
    file: OutFile,
    /// Values that are still to come.
    left: usize,
}

impl NpyFile {
    pub(super) fn create(place: &mut Place, name: &str, descr: &str, shape: &[usize]) -> Result<Self> {
        let mut file = place.create(name)?;
        file.write_all(&numpy_header(descr, shape))?;
        Ok(Self { file, left: shape.iter().product() })
    }

    pub(super) fn write(&mut self, values: &ArrayRef) -> Result<()> {
        self.left = self.left.saturating_sub(values.len());
        Ok(self.file.write_all(bytes(values)?)?)
    }

    pub(super) fn finish(self) -> Result<()> {
        ensure!(self.left == 0, "an array lacks {} of its values", self.left);
        self.file.finish()
    }
}

pub(super) struct Npy {
    vector: VectorType,
    vectors: NpyFile,
    rows: CsvFile,
}

pub(super) fn open(plan: &Plan, place: &mut Place, n_rows: u64) -> Result<Npy> {
    let vector = plan.vector.clone();
    let shape = [n_rows as usize, vector.dim];
    let vectors = NpyFile::create(place, "embeddings.npy", vector.descr(), &shape)?;
    Ok(Npy { vector, vectors, rows: CsvFile::create(place, "rows.csv")? })
}

impl Part for Npy {
    fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        self.vectors.write(&values(rows, &self.vector.stored)?)?;
        self.rows.write(&columns(rows, str::to_owned))
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.vectors.finish()?;
        self.rows.finish()
    }
}
