//! A Parquet file being written: to a temporary file, hashed on the way, synced, then renamed. A name
//! without `.partial` is whole.

use std::{
    fs::{self, File},
    io::{self, BufWriter, Write},
    path::PathBuf,
};

use anyhow::{Context as _, Result, ensure};
use arrow::{
    array::ArrayRef,
    datatypes::{DataType, SchemaRef},
};
use parquet::{
    arrow::{
        ArrowWriter,
        arrow_writer::{ArrowColumnWriter, ArrowRowGroupWriterFactory, compute_leaves},
    },
    basic::{Compression, ZstdLevel},
    file::{metadata::KeyValue, properties::WriterProperties, writer::SerializedFileWriter},
};

use super::{
    manifest::Listed,
    schema::Element,
    vector_column::{VectorColumn, ZSTD_LEVEL},
};
use crate::files::sync_folder_of;

/// Rows of a row group, at most.
const GROUP_ROWS: usize = 16_384;
/// Vectors of a row group before compression, at most. They wait in memory, compressed.
const GROUP_BYTES: usize = 16 << 20;

/// Bytes hashed and written at once: `parquet` brings 8 KiB, and blake3 is fast from 16 KiB.
const WRITE_BYTES: usize = 1 << 18;

/// A file of which size and hash are known when it is written.
struct Hashed {
    file: File,
    bytes: u64,
    hasher: blake3::Hasher,
}

impl Write for Hashed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.bytes += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// A table being written. Rows come in two ways at once, their vectors one by one and their other columns
/// in arrays of any number, which meet when a row group ends.
pub(crate) struct TableWriter {
    writer: SerializedFileWriter<BufWriter<Hashed>>,
    factory: ArrowRowGroupWriterFactory,
    schema: SchemaRef,
    /// Of the open row group, all columns; those of vectors are not used.
    columns: Vec<ArrowColumnWriter>,
    /// By their places among all columns.
    vectors: Vec<(usize, VectorColumn)>,
    group_rows: usize,
    /// Rows of the open row group.
    n_rows: usize,
    partial: PathBuf,
    path: PathBuf,
}

impl TableWriter {
    pub(crate) fn create(path: PathBuf, schema: SchemaRef) -> Result<Self> {
        let partial = path.with_extension("parquet.partial");
        // Arrow's readers find the schema's metadata in a field of their own; others read these.
        let metadata = schema.metadata().iter().map(|(key, value)| KeyValue::new(key.clone(), value.clone()));
        let properties = WriterProperties::builder()
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL)?))
            .set_key_value_metadata(Some(metadata.collect()))
            .build();
        let file = File::create(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
        let hashed = Hashed { file, bytes: 0, hasher: blake3::Hasher::new() };
        let hashed = BufWriter::with_capacity(WRITE_BYTES, hashed);
        let writer = ArrowWriter::try_new(hashed, schema.clone(), Some(properties))?;
        let (writer, factory) = writer.into_serialized_writer()?;
        let mut vectors = Vec::new();
        let mut row_bytes = 0;
        for (place, field) in schema.fields().iter().enumerate() {
            let DataType::FixedSizeList(inner, dim) = field.data_type() else { continue };
            let element = Element::of(inner.data_type()).context("a vector is of no known type")?;
            let column = VectorColumn::new(writer.schema_descr().column(place), *dim as usize, element)?;
            vectors.push((place, column));
            row_bytes += *dim as usize * element.bytes();
        }
        let columns = factory.create_column_writers(0)?;
        let group_rows = GROUP_BYTES.checked_div(row_bytes).unwrap_or(GROUP_ROWS).clamp(1, GROUP_ROWS);
        Ok(Self { writer, factory, schema, columns, vectors, group_rows, n_rows: 0, partial, path })
    }

    /// Rows that the open row group takes yet; at least one.
    pub(crate) fn room(&self) -> usize {
        self.group_rows - self.n_rows
    }

    /// Adds the vectors of a row, in the order of their columns.
    pub(crate) fn add_vectors(&mut self, vectors: &[&[f32]]) -> Result<()> {
        debug_assert_eq!(vectors.len(), self.vectors.len());
        self.n_rows += 1;
        self.vectors.iter_mut().zip(vectors).try_for_each(|((_, column), vector)| column.add(vector))
    }

    /// Adds the other columns of rows whose vectors are there already.
    pub(crate) fn add_arrays(&mut self, arrays: &[ArrayRef]) -> Result<()> {
        if self.vectors.is_empty() {
            self.n_rows += arrays.first().map_or(0, |a| a.len());
        }
        let is_vector = |place: &usize| self.vectors.iter().any(|(v, _)| v == place);
        let places: Vec<usize> = (0..self.columns.len()).filter(|place| !is_vector(place)).collect();
        ensure!(places.len() == arrays.len(), "{} arrays of {} columns", arrays.len(), places.len());
        for (place, array) in places.into_iter().zip(arrays) {
            for leaf in compute_leaves(self.schema.field(place), array)? {
                self.columns[place].write(&leaf)?;
            }
        }
        Ok(())
    }

    /// Ends the row group, if it has any rows: both ways of adding must have brought the same ones.
    pub(crate) fn end_group(&mut self) -> Result<()> {
        if std::mem::take(&mut self.n_rows) == 0 {
            return Ok(());
        }
        let failed = || format!("cannot write {}", self.partial.display());
        let next = self.factory.create_column_writers(self.writer.flushed_row_groups().len() + 1)?;
        let columns = std::mem::replace(&mut self.columns, next);
        let mut group = self.writer.next_row_group()?;
        for (place, column) in columns.into_iter().enumerate() {
            match self.vectors.iter_mut().find(|(v, _)| *v == place) {
                Some((_, vectors)) => {
                    let (bytes, closed) = vectors.finish()?;
                    group.append_column(&bytes, closed).with_context(failed)?;
                }
                None => column.close()?.append_to_row_group(&mut group).with_context(failed)?,
            }
        }
        group.close().with_context(failed)?;
        Ok(())
    }

    /// Bytes of memory in use.
    #[cfg(test)]
    pub(crate) fn memory_bytes(&self) -> usize {
        let others: usize = self.columns.iter().map(ArrowColumnWriter::memory_size).sum();
        others + self.vectors.iter().map(|(_, v)| v.memory_bytes()).sum::<usize>()
    }

    /// Writes what is left and the footer, and waits for the disk.
    pub(crate) fn close(mut self) -> Result<ClosedTable> {
        self.end_group()?;
        let Self { writer, partial, path, .. } = self;
        let failed = || format!("cannot write {}", partial.display());
        let hashed = writer.into_inner().with_context(failed)?.into_inner();
        let Hashed { file, bytes, hasher } =
            hashed.map_err(io::IntoInnerError::into_error).with_context(failed)?;
        file.sync_all().with_context(failed)?;
        Ok(ClosedTable { partial, path, bytes, blake3: hasher.finalize().to_hex().to_string() })
    }
}

/// A whole Parquet file that has not got its name yet.
pub(crate) struct ClosedTable {
    partial: PathBuf,
    path: PathBuf,
    bytes: u64,
    blake3: String,
}

impl ClosedTable {
    /// Gives it its name.
    pub(crate) fn publish(&self) -> Result<()> {
        let Self { partial, path, .. } = self;
        fs::rename(partial, path)
            .with_context(|| format!("cannot rename {} to {}", partial.display(), path.display()))?;
        sync_folder_of(path).with_context(|| format!("cannot sync the folder of {}", path.display()))
    }

    pub(crate) fn listed(self, rows: u64) -> Listed {
        Listed { rows, bytes: self.bytes, blake3: self.blake3 }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{AsArray as _, UInt64Array};

    use super::*;
    use std::path::Path;

    use crate::index::{
        read,
        schema::{self, VectorShape},
    };

    fn value(i: usize) -> f32 {
        (i as f32 * 0.618_034).fract() - 0.5
    }

    /// Writes rows of one vector that is `i` times the last one's and a number.
    fn write(path: &Path, shape: VectorShape, n_rows: usize) -> (usize, usize) {
        // Its first columns are left out: only a number and vectors matter here.
        let fields = schema::frames(shape)
            .fields()
            .iter()
            .filter(|f| f.name() == "clip_id" || is_vector(f))
            .cloned()
            .collect::<Vec<_>>();
        let mut table =
            TableWriter::create(path.to_owned(), Arc::new(arrow::datatypes::Schema::new(fields))).unwrap();
        let (mut first, mut peak) = (0, 0);
        for row in 0..n_rows {
            let vector: Vec<f32> = (0..shape.dim).map(|i| value(row * shape.dim + i)).collect();
            let image: Vec<f32> = (0..shape.image_dim).map(|i| value(row + i)).collect();
            table.add_vectors(&[&vector[..], &image][..1 + usize::from(shape.image_dim > 0)]).unwrap();
            peak = peak.max(table.memory_bytes());
            if table.room() == 0 || row + 1 == n_rows {
                let numbers = UInt64Array::from_iter_values(first as u64..row as u64 + 1);
                table.add_arrays(&[Arc::new(numbers)]).unwrap();
                table.end_group().unwrap();
                first = row + 1;
            }
        }
        let n_groups = table.writer.flushed_row_groups().len();
        table.close().unwrap().publish().unwrap();
        (n_groups, peak)
    }

    fn is_vector(field: &arrow::datatypes::Field) -> bool {
        matches!(field.data_type(), DataType::FixedSizeList(..))
    }

    #[test]
    fn vectors_of_any_length_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        // A page of 1 MiB, one row more, and one less; rows of a single value; runs of more than a byte.
        for (dim, n_rows) in
            [(1, 3), (2, 1_000), (7, 40_000), (64, 8_192), (64, 8_193), (512, 1_023), (1_280, 900)]
        {
            for element in Element::ALL {
                let shape = VectorShape { dim, image_dim: 0, element };
                let (n_groups, _) = write(&path, shape, n_rows);
                assert_eq!(n_groups, n_rows.div_ceil(GROUP_ROWS), "{shape:?}");
                let mut row = 0;
                for batch in read::batches(&path, &[]).unwrap() {
                    let batch = batch.unwrap();
                    let (values, found_dim) = read::vectors(&batch, "embedding").unwrap();
                    assert_eq!(found_dim, dim);
                    assert_eq!(values.len(), batch.num_rows() * dim);
                    let wanted = (row * dim..).map(|i| half::f16::from_f32(value(i)));
                    assert!(
                        values.iter().copied().eq(wanted.take(values.len())),
                        "{shape:?}, from row {row}"
                    );
                    let ids = batch.column(0).as_primitive::<arrow::datatypes::UInt64Type>();
                    assert_eq!(ids.value(0), row as u64);
                    row += batch.num_rows();
                }
                assert_eq!(row, n_rows, "{shape:?}");
            }
        }
    }

    #[test]
    fn memory_is_bounded_at_any_length() {
        const LIMIT: usize = 64 << 20;
        let folder = tempfile::tempdir().unwrap();
        for (dim, image_dim, n_rows) in [(1_280, 1_280, 4_000), (384, 1_280, 4_000), (16, 0, 20_000)] {
            let shape = VectorShape { dim, image_dim, element: Element::Float32 };
            let (n_groups, peak) = write(&folder.path().join("a.parquet"), shape, n_rows);
            assert!(n_groups > 1 && peak < LIMIT, "{shape:?}: {n_groups} groups, {peak} bytes");
        }
    }
}
