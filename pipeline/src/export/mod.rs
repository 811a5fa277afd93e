//! The `export` command: a run's rows, as other tools read them.
//!
//! In reading order:
//! - [`place`]: the folder written to, there whole or not at all;
//! - [`rows`]: what is exported, streamed from the shards;
//! - [`table`]: the columns beside the vectors, as Parquet or CSV; [`npy`]: NumPy's arrays;
//! - a file a format: [`clip_retrieval`], [`npy`], [`faiss_input`], [`lance_input`], [`webdataset`].
//!
//! A format's files come in parts: each part has its share of the rows, and what belongs together has
//! the same number. Vectors keep the type that they are stored in where the reader takes both; nothing
//! is ever rounded. The same run gives the same bytes.

mod clip_retrieval;
mod faiss_input;
mod lance_input;
mod npy;
mod place;
mod rows;
mod table;
mod webdataset;

use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use arrow::array::RecordBatch;
use clap::{Args, ValueEnum};

use crate::{progress::eprint_line, report::grouped, run::Unusable};
use place::Place;
use rows::{Rows, VectorType};

/// What is asked of the command.
#[derive(Args, Clone, Debug)]
pub struct Request {
    /// Folder of a run (its output.dir)
    pub run: PathBuf,
    /// For what
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub to: Format,
    /// A new or empty folder to write
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
    /// A row a frame, or a row a clip with the mean of its frames
    #[arg(long, value_enum, value_name = "ROWS", default_value_t = Of::Frames)]
    pub of: Of,
    /// Rows of a file; by default 10,000 for webdataset, 1,000,000 for others, and all for npy
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub rows_per_file: Option<u64>,
}

/// Who reads the files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// img_emb/*.npy and metadata/*.parquet, as clip-retrieval, autofaiss and embedding-reader take them
    ClipRetrieval,
    /// embeddings.npy and rows.csv
    Npy,
    /// embeddings/*.npy in float32, ids/*.npy for `add_with_ids`, rows/*.parquet
    FaissInput,
    /// Parquet with a column `vector` of float32, as Lance and LanceDB take it
    LanceInput,
    /// Tar files of samples: npy, json, and txt where there is a label
    Webdataset,
}

/// Which rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Of {
    /// Every sampled frame
    Frames,
    /// Every clip
    Clips,
}

impl Of {
    /// The folder of the table in a run.
    fn table(self) -> &'static str {
        match self {
            Self::Frames => "frames",
            Self::Clips => "clips",
        }
    }
}

/// What every part of an export needs to know.
struct Plan {
    of: Of,
    vector: VectorType,
    /// How many parts there are.
    n_parts: u64,
}

/// The files of one share of the rows.
trait Part {
    fn write(&mut self, rows: &RecordBatch) -> Result<()>;
    /// All rows are written.
    fn finish(self: Box<Self>) -> Result<()>;
}

/// Writes the export, and a line of what it holds. Errors before the start are [`Unusable`].
pub fn export(request: &Request) -> Result<()> {
    let (mut rows, mut place) = open(request).map_err(Unusable)?;
    let total = rows.count;
    let per_part = match (request.rows_per_file, request.to) {
        (Some(n), _) => n,
        (None, Format::Npy) => total,
        (None, Format::Webdataset) => 10_000,
        (None, _) => 1_000_000,
    };
    let plan = Plan { of: request.of, vector: rows.vector.clone(), n_parts: total.div_ceil(per_part) };
    for number in 0..plan.n_parts {
        let mut left = per_part.min(total - number * per_part);
        let mut part = open_part(request.to, &plan, &mut place, number, left)?;
        while left > 0 {
            let batch = rows.next(left)?.context("the shards changed while they were read")?;
            left -= batch.num_rows() as u64;
            part.write(&batch)?;
        }
        part.finish()?;
    }
    let n_files = place.publish()?;
    let (rows, of, out) = (grouped(total), request.of.table(), request.out.display());
    let files = if n_files == 1 { "1 file".to_owned() } else { format!("{} files", grouped(n_files)) };
    eprint_line(&format!("exported: {rows} rows of {of} in {files}: {out}"));
    Ok(())
}

fn open(request: &Request) -> Result<(Rows, Place)> {
    ensure!(
        request.rows_per_file.is_none() || request.to != Format::Npy,
        "--rows-per-file is not for npy, which is one file"
    );
    Ok((Rows::open(&request.run, request.of)?, Place::open(&request.out)?))
}

fn open_part(
    format: Format,
    plan: &Plan,
    place: &mut Place,
    number: u64,
    n_rows: u64,
) -> Result<Box<dyn Part>> {
    Ok(match format {
        Format::ClipRetrieval => Box::new(clip_retrieval::open(plan, place, number, n_rows)?),
        Format::Npy => Box::new(npy::open(plan, place, n_rows)?),
        Format::FaissInput => Box::new(faiss_input::open(plan, place, number, n_rows)?),
        Format::LanceInput => Box::new(lance_input::open(plan, place, number)?),
        Format::Webdataset => Box::new(webdataset::open(plan, place, number)?),
    })
}

/// The number of a part as clip-retrieval writes it: as many digits as the number of parts has, so that
/// names sort as numbers do.
fn numbered(plan: &Plan, number: u64) -> String {
    let width = plan.n_parts.to_string().len();
    format!("{number:0width$}")
}

/// The same with at least five digits.
fn long_numbered(plan: &Plan, number: u64) -> String {
    let width = plan.n_parts.to_string().len().max(5);
    format!("{number:0width$}")
}
