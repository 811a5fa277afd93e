//! Tar files of samples: `KEY.npy`, `KEY.json`, and `KEY.txt` where there is a label.
//!
//! A key is the clip's number, and the frame's: what follows a name's first dot is the kind of its
//! content, so paths cannot be keys. The label is text, for `.cls` is decoded as a number.

use anyhow::{Result, bail};
use arrow::{
    array::{Array, AsArray as _, RecordBatch},
    datatypes::{DataType, Float64Type, Int64Type, UInt32Type, UInt64Type},
};
use serde_json::Value;
use stages::{files::numpy_header, index::read::column};

use super::{
    Of, Part, Plan, long_numbered,
    place::{OutFile, Place},
    rows::{VectorType, bytes, values},
    table::columns,
};

pub(super) struct Webdataset {
    of: Of,
    vector: VectorType,
    tar: tar::Builder<OutFile>,
}

pub(super) fn open(plan: &Plan, place: &mut Place, number: u64) -> Result<Webdataset> {
    let file = place.create(&format!("{}.tar", long_numbered(plan, number)))?;
    Ok(Webdataset { of: plan.of, vector: plan.vector.clone(), tar: tar::Builder::new(file) })
}

impl Webdataset {
    fn add(&mut self, key: &str, kind: &str, content: &[u8]) -> Result<()> {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        // No time and no owner: the same run gives the same bytes.
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        Ok(self.tar.append_data(&mut header, format!("{key}.{kind}"), content)?)
    }
}

impl Part for Webdataset {
    fn write(&mut self, rows: &RecordBatch) -> Result<()> {
        let values = values(rows, &self.vector.stored)?;
        let values = bytes(&values)?;
        let clips = column(rows, "clip_id")?.as_primitive::<UInt64Type>();
        let frames = match self.of {
            Of::Frames => Some(column(rows, "frame_index")?.as_primitive::<UInt32Type>()),
            Of::Clips => None,
        };
        let labels = column(rows, "label")?.as_string::<i32>();
        let columns = columns(rows, str::to_owned);
        let header = numpy_header(self.vector.descr(), &[self.vector.dim]);
        for (row, vector) in values.chunks_exact(values.len() / rows.num_rows()).enumerate() {
            let mut key = format!("{:09}", clips.value(row));
            if let Some(frames) = frames {
                key += &format!("-{:07}", frames.value(row));
            }
            let told = columns.iter().map(|c| Ok((c.name.clone(), json(&c.values, row)?)));
            let told = told.collect::<Result<serde_json::Map<_, _>>>()?;
            self.add(&key, "npy", &[&header, vector].concat())?;
            self.add(&key, "json", &serde_json::to_vec(&told)?)?;
            if labels.is_valid(row) {
                self.add(&key, "txt", labels.value(row).as_bytes())?;
            }
        }
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<()> {
        self.tar.into_inner()?.finish()
    }
}

/// A value of a column of the shards.
fn json(values: &dyn Array, row: usize) -> Result<Value> {
    if values.is_null(row) {
        return Ok(Value::Null);
    }
    Ok(match values.data_type() {
        DataType::Utf8 => values.as_string::<i32>().value(row).into(),
        DataType::Boolean => values.as_boolean().value(row).into(),
        DataType::UInt32 => values.as_primitive::<UInt32Type>().value(row).into(),
        DataType::UInt64 => values.as_primitive::<UInt64Type>().value(row).into(),
        DataType::Int64 => values.as_primitive::<Int64Type>().value(row).into(),
        DataType::Float64 => values.as_primitive::<Float64Type>().value(row).into(),
        other => bail!("no column of {other} can be exported"),
    })
}
