//! The columns beside the vectors, as Parquet or CSV.

use anyhow::Result;
use arrow::{
    array::{ArrayRef, RecordBatch},
    datatypes::DataType,
    util::display::{ArrayFormatter, FormatOptions},
};
use parquet::{
    arrow::ArrowWriter,
    basic::{Compression, ZstdLevel},
    file::properties::WriterProperties,
    schema::types::ColumnPath,
};

use super::place::{OutFile, Place};

/// Rows of a row group: 25 MB of memory at 384 dimensions of float32.
const GROUP_ROWS: usize = 16_384;

/// A column to be written.
pub(super) struct Column {
    pub(super) name: String,
    pub(super) values: ArrayRef,
    pub(super) is_nullable: bool,
}

/// A column without gaps.
pub(super) fn full(name: &str, values: ArrayRef) -> Column {
    Column { name: name.to_owned(), values, is_nullable: false }
}

/// The rows' columns but for the vectors, by the names that `fit` makes of theirs.
pub(super) fn columns(rows: &RecordBatch, fit: impl Fn(&str) -> String) -> Vec<Column> {
    let schema = rows.schema();
    let mut made: Vec<Column> = Vec::with_capacity(schema.fields().len());
    for (field, values) in schema.fields().iter().zip(rows.columns()) {
        if matches!(field.data_type(), DataType::FixedSizeList(..)) {
            continue;
        }
        let mut name = fit(field.name());
        // A name that was made must be nobody else's.
        while name != *field.name()
            && (schema.field_with_name(&name).is_ok() || made.iter().any(|c| c.name == name))
        {
            name.insert_str(0, "manifest_");
        }
        made.push(Column { name, values: values.clone(), is_nullable: field.is_nullable() });
    }
    made
}

/// Calls a column of the manifest `manifest_NAME` where the format has a column NAME of its own.
pub(super) fn beside(own: &[&str]) -> impl Fn(&str) -> String {
    move |name| if own.contains(&name) { format!("manifest_{name}") } else { name.to_owned() }
}

/// A Parquet file being written.
pub(super) struct ParquetFile {
    state: State,
}

/// The schema is known when the first rows are.
enum State {
    New(Option<OutFile>),
    Open(Box<ArrowWriter<OutFile>>),
}

impl ParquetFile {
    pub(super) fn create(place: &mut Place, name: &str) -> Result<Self> {
        Ok(Self { state: State::New(Some(place.create(name)?)) })
    }

    pub(super) fn write(&mut self, columns: Vec<Column>) -> Result<()> {
        let named = columns.into_iter().map(|c| (c.name, c.values, c.is_nullable));
        let batch = RecordBatch::try_from_iter_with_nullable(named)?;
        if let State::New(file) = &mut self.state
            && let Some(file) = file.take()
        {
            // Vectors repeat nothing: a dictionary of them is wasted work.
            let vector = ColumnPath::new(vec!["vector".into(), "list".into(), "item".into()]);
            let properties = WriterProperties::builder()
                .set_compression(Compression::ZSTD(ZstdLevel::try_new(1)?))
                .set_max_row_group_row_count(Some(GROUP_ROWS))
                .set_column_dictionary_enabled(vector, false)
                .build();
            let writer = ArrowWriter::try_new(file, batch.schema(), Some(properties))?;
            self.state = State::Open(Box::new(writer));
        }
        if let State::Open(writer) = &mut self.state {
            writer.write(&batch)?;
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<()> {
        match self.state {
            State::New(file) => file.map_or(Ok(()), OutFile::finish),
            State::Open(writer) => writer.into_inner()?.finish(),
        }
    }
}

/// A CSV file being written: UTF-8, quoted where needed, a gap is an empty field.
pub(super) struct CsvFile {
    writer: csv::Writer<OutFile>,
    has_header: bool,
}

impl CsvFile {
    pub(super) fn create(place: &mut Place, name: &str) -> Result<Self> {
        Ok(Self { writer: csv::Writer::from_writer(place.create(name)?), has_header: false })
    }

    pub(super) fn write(&mut self, columns: &[Column]) -> Result<()> {
        if !self.has_header {
            self.writer.write_record(columns.iter().map(|c| &c.name))?;
            self.has_header = true;
        }
        let options = FormatOptions::new().with_null("");
        let formatters = columns.iter().map(|c| ArrayFormatter::try_new(&c.values, &options));
        let formatters = formatters.collect::<Result<Vec<_>, _>>()?;
        for row in 0..columns.first().map_or(0, |c| c.values.len()) {
            for formatter in &formatters {
                self.writer.write_field(formatter.value(row).try_to_string()?)?;
            }
            self.writer.write_record(None::<&[u8]>)?;
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<()> {
        self.writer.into_inner().map_err(|e| e.into_error())?.finish()
    }
}
