//! The vector index: derived from the shards, and rebuilt from them at any time.
//!
//! ```text
//! vectors/
//!   index.json              which files are the index, what its lists find
//!   rows-00007              a shard's vectors in float16, and what they are of
//!   lists-00007-NAME        the same in eight bits, list after list
//!   codebook-NAME           the centroids of the lists, where there are so many rows that lists pay
//!   deleted-00007-N         which rows searches pass over
//! ```
//!
//! Every shard has a part of its own, so adding one touches no other. Few rows are all scanned; for many,
//! centroids shared by all parts say which lists a query visits, and a probe tells how many it must visit to
//! find what it should. Near-duplicate frames, of which videos are full, cripple graphs; lists do not mind.
//!
//! In reading order: [`sealed`] files, [`rows`], [`lists`], [`codebook`], [`scan`] and what it [`keep`]s,
//! [`probe`], [`catalogue`], [`build`], [`filter`], [`search`](mod@search), [`verify`](mod@verify).

mod build;
mod catalogue;
mod codebook;
mod deleted;
mod filter;
mod keep;
mod lists;
mod parallel;
mod probe;
mod rows;
mod scan;
mod sealed;
mod search;
mod verify;

use std::path::{Path, PathBuf};

pub use build::{Builder, Settings, is_missing};
pub use filter::{Condition, Filter};
pub use probe::{Kind, Point, Recall};
pub use scan::TOGETHER;
pub use sealed::Damage;
pub use search::{Answer, Hit, How, Nearest, Question, VectorIndex, diverse};
pub use verify::verify;

/// Where the index of the run in folder `run` is.
pub fn folder(run: &Path) -> PathBuf {
    run.join("vectors")
}
