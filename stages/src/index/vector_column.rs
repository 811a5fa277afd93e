//! A column of vectors, encoded into Parquet's pages by us.
//!
//! `parquet` writes lists of any depth, with gaps: two levels are computed for each value, and each half
//! becomes an object of its own. Here all vectors are there and of one length, so the levels of a row are
//! always the same few bytes, and values go from the encoder's rows straight into the page. The bytes are
//! what any writer could have written: data pages of version 1, levels in runs, values plain (float16) or
//! as a stream for each of their bytes (float32), by zstd 1.
//!
//! Format: <https://parquet.apache.org/docs/file-format/data-pages/encodings/>.

use anyhow::{Context as _, Result};
use arrow::buffer::Buffer;
use bytes::Bytes;
use half::{f16, slice::HalfFloatSliceExt as _};
use parquet::{
    basic::{Compression, Encoding, EncodingMask, ZstdLevel},
    column::{
        page::{CompressedPage, Page, PageWriter as _},
        writer::ColumnCloseResult,
    },
    file::{
        metadata::{ColumnChunkMetaData, OffsetIndexBuilder},
        writer::{SerializedPageWriter, TrackedWrite},
    },
    schema::types::ColumnDescPtr,
};
use zstd::bulk::Compressor;

use super::schema::Element;

/// Of all columns, vectors or not.
pub(crate) const ZSTD_LEVEL: i32 = 1;

/// Values of a page before compression, about. Smaller ones cost headers, larger ones a reader's memory.
const PAGE_BYTES: usize = 1 << 20;

/// The values of a page that is not full.
enum Values {
    Half(Vec<f16>),
    Single(Vec<f32>),
}

/// One column of a row group that is being filled.
pub(crate) struct VectorColumn {
    descr: ColumnDescPtr,
    dim: usize,
    page_rows: usize,
    values: Values,
    /// Rows in `values`.
    n_waiting: usize,
    /// Levels and values as they are compressed; kept for its memory.
    raw: Vec<u8>,
    compressor: Compressor<'static>,
    /// The finished pages, and what the footer says of them.
    pages: TrackedWrite<Vec<u8>>,
    offsets: OffsetIndexBuilder,
    uncompressed_bytes: usize,
    n_rows: usize,
}

impl VectorColumn {
    pub(crate) fn new(descr: ColumnDescPtr, dim: usize, element: Element) -> Result<Self> {
        Ok(Self {
            descr,
            dim,
            page_rows: (PAGE_BYTES / (dim * element.bytes())).max(1),
            values: match element {
                Element::Float16 => Values::Half(Vec::new()),
                Element::Float32 => Values::Single(Vec::new()),
            },
            n_waiting: 0,
            raw: Vec::new(),
            compressor: Compressor::new(ZSTD_LEVEL).context("cannot set up zstd")?,
            pages: TrackedWrite::new(Vec::new()),
            offsets: OffsetIndexBuilder::new(),
            uncompressed_bytes: 0,
            n_rows: 0,
        })
    }

    /// Adds a row.
    pub(crate) fn add(&mut self, vector: &[f32]) -> Result<()> {
        debug_assert_eq!(vector.len(), self.dim);
        match &mut self.values {
            Values::Half(values) => {
                let start = values.len();
                values.resize(start + vector.len(), f16::ZERO);
                values[start..].convert_from_f32_slice(vector);
            }
            Values::Single(values) => values.extend_from_slice(vector),
        }
        self.n_waiting += 1;
        if self.n_waiting == self.page_rows { self.write_page() } else { Ok(()) }
    }

    fn write_page(&mut self) -> Result<()> {
        let n_rows = std::mem::take(&mut self.n_waiting);
        self.raw.clear();
        write_levels(n_rows, self.dim, &mut self.raw);
        let encoding = match &mut self.values {
            Values::Half(values) => {
                // `Buffer` shows numbers as bytes and gives them back, without unsafe code here.
                let bytes = Buffer::from_vec(std::mem::take(values));
                self.raw.extend_from_slice(&bytes);
                *values = bytes.into_vec().unwrap_or_default();
                values.clear();
                Encoding::PLAIN
            }
            Values::Single(values) => {
                for byte in 0..size_of::<f32>() {
                    self.raw.extend(values.iter().map(|v| (v.to_bits() >> (8 * byte)) as u8));
                }
                values.clear();
                Encoding::BYTE_STREAM_SPLIT
            }
        };
        let compressed = self.compressor.compress(&self.raw).context("zstd")?;
        let page = Page::DataPage {
            buf: Bytes::from(compressed),
            num_values: (n_rows * self.dim) as u32,
            encoding,
            def_level_encoding: Encoding::RLE,
            rep_level_encoding: Encoding::RLE,
            statistics: None,
        };
        let page = CompressedPage::new(page, self.raw.len());
        let written = SerializedPageWriter::new(&mut self.pages).write_page(page)?;
        self.offsets.append_row_count(n_rows as i64);
        self.offsets.append_offset_and_size(written.offset as i64, written.compressed_size as i32);
        self.uncompressed_bytes += written.uncompressed_size;
        self.n_rows += n_rows;
        Ok(())
    }

    /// The column's bytes and what the footer says of them. The column is then empty, for the next row group.
    pub(crate) fn finish(&mut self) -> Result<(Bytes, ColumnCloseResult)> {
        if self.n_waiting > 0 {
            self.write_page()?;
        }
        let pages = std::mem::replace(&mut self.pages, TrackedWrite::new(Vec::new())).into_inner()?;
        let n_rows = std::mem::take(&mut self.n_rows);
        let values = match self.values {
            Values::Half(_) => Encoding::PLAIN,
            Values::Single(_) => Encoding::BYTE_STREAM_SPLIT,
        };
        let metadata = ColumnChunkMetaData::builder(self.descr.clone())
            .set_compression(Compression::ZSTD(ZstdLevel::try_new(ZSTD_LEVEL)?))
            .set_encodings_mask(EncodingMask::new_from_encodings([values, Encoding::RLE].iter()))
            .set_num_values((n_rows * self.dim) as i64)
            .set_total_compressed_size(pages.len() as i64)
            .set_total_uncompressed_size(std::mem::take(&mut self.uncompressed_bytes) as i64)
            .set_data_page_offset(0)
            .build()?;
        let closed = ColumnCloseResult {
            bytes_written: pages.len() as u64,
            rows_written: n_rows as u64,
            metadata,
            bloom_filter: None,
            column_index: None,
            offset_index: Some(std::mem::take(&mut self.offsets).build()),
        };
        Ok((Bytes::from(pages), closed))
    }

    /// Bytes that it holds, but for zstd's own.
    #[cfg(test)]
    pub(crate) fn memory_bytes(&self) -> usize {
        let values = match &self.values {
            Values::Half(values) => values.capacity() * size_of::<f16>(),
            Values::Single(values) => values.capacity() * size_of::<f32>(),
        };
        values + self.raw.capacity() + self.pages.inner().capacity()
    }
}

/// Repetition and definition levels of `n_rows` vectors that are all there, each preceded by its length.
fn write_levels(n_rows: usize, dim: usize, out: &mut Vec<u8>) {
    // A row's first value begins a list (0), all others go on with it (1).
    let mut row = Vec::new();
    write_run(1, 0, &mut row);
    if dim > 1 {
        write_run(dim - 1, 1, &mut row);
    }
    out.extend(((n_rows * row.len()) as u32).to_le_bytes());
    for _ in 0..n_rows {
        out.extend_from_slice(&row);
    }
    let mut defined = Vec::new();
    write_run(n_rows * dim, 1, &mut defined);
    out.extend((defined.len() as u32).to_le_bytes());
    out.extend(defined);
}

/// So many times the same level, in Parquet's hybrid of runs and packed bits: twice the number as a varint,
/// then the level in a byte.
fn write_run(n: usize, level: u8, out: &mut Vec<u8>) {
    let mut header = 2 * n;
    while header > 0x7F {
        out.push(header as u8 | 0x80);
        header >>= 7;
    }
    out.extend([header as u8, level]);
}
