//! Parquet that Lance and LanceDB take as it is: the vector is `vector`, a fixed-size list of float32,
//! which is the name and the type that LanceDB looks for. Lance takes no dots in the names of columns: they
//! become underscores.

use std::sync::Arc;

use anyhow::Result;
use arrow::{
    array::{FixedSizeListArray, RecordBatch},
    datatypes::{DataType, Field},
};

use super::{
    Part, Plan, long_numbered,
    place::Place,
    rows::values,
    table::{ParquetFile, beside, columns, full},
};

pub(super) struct LanceInput {
    dim: usize,
    rows: ParquetFile,
}

pub(super) fn open(plan: &Plan, place: &mut Place, number: u64) -> Result<LanceInput> {
    let name = format!("rows-{}.parquet", long_numbered(plan, number));
    Ok(LanceInput { dim: plan.vector.dim, rows: ParquetFile::create(place, &name)? })
}

impl Part for LanceInput {
    fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        // As pyarrow's `list_(float32(), dim)` has it, so that schemas made there fit.
        let item = Arc::new(Field::new("item", DataType::Float32, true));
        let values = values(rows, &DataType::Float32)?;
        let vectors = FixedSizeListArray::try_new(item, self.dim as i32, values, None)?;
        let mut all = columns(rows, |name| beside(&["vector"])(&name.replace('.', "_")));
        all.push(full("vector", Arc::new(vectors)));
        self.rows.write(all)
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.rows.finish()
    }
}
