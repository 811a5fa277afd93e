//! `vectors/index.json`: which files are the index, and what is known of it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::{probe::Recall, sealed::Damage};
use crate::files::{is_sealed, read_sealed, sealed_json, sync_folder_of, write_whole};

/// Raised when a file of the index changes its meaning. An index of another number is made anew.
const FORMAT: u32 = 1;

/// `vectors/index.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Catalogue {
    format: u32,
    pub(crate) dim: usize,
    pub(crate) codebook: Option<CodebookEntry>,
    /// Of the lists, where there is a codebook.
    pub(crate) recall: Option<Recall>,
    pub(crate) segments: Vec<SegmentEntry>,
    /// Length of the ledger when the index held all of its shards: while it is the same, it does.
    pub(crate) ledger_bytes: u64,
}

/// A codebook.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct CodebookEntry {
    /// Its file.
    pub(crate) name: String,
    pub(crate) n_lists: usize,
    /// Rows that there were when it was trained.
    pub(crate) trained_rows: usize,
    /// Lists that a query by a frame needed then; 0 before that is measured.
    pub(crate) lists_needed: usize,
}

/// A shard's part.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SegmentEntry {
    pub(crate) shard: u32,
    pub(crate) n_rows: usize,
    /// File of its lists.
    pub(crate) lists: String,
    /// File of its deleted rows.
    pub(crate) deleted: Option<String>,
    /// Length of the shard's frames in Parquet: of another, this is not the index.
    pub(crate) frames_bytes: u64,
}

impl Catalogue {
    pub(crate) fn new(dim: usize) -> Self {
        Self { format: FORMAT, dim, ..Self::default() }
    }

    /// Rows of all shards.
    pub(crate) fn n_rows(&self) -> usize {
        self.segments.iter().map(|s| s.n_rows).sum()
    }

    /// Of the index in `folder`, if there is one. What is no catalogue of this version is a [`Damage`].
    pub(crate) fn read(folder: &Path) -> Result<Option<Self>> {
        let path = path(folder);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        let damage = |what: String| Damage { path: path.clone(), what };
        let read: Self = read_sealed(&path, &text).map_err(|e| damage(e.root_cause().to_string()))?;
        // No version wrote one without.
        if !is_sealed(&text) {
            return Err(damage("it has no seal".into()).into());
        }
        if read.format != FORMAT {
            return Err(damage(format!("it has format {}, need {FORMAT}", read.format)).into());
        }
        Ok(Some(read))
    }

    pub(crate) fn write(&self, folder: &Path) -> Result<()> {
        let path = path(folder);
        let text = sealed_json(self)?;
        write_whole(&path, text.as_bytes())
            .and_then(|()| sync_folder_of(&path))
            .with_context(|| format!("cannot write {}", path.display()))
    }
}

/// The catalogue's file.
pub(crate) fn path(folder: &Path) -> PathBuf {
    folder.join("index.json")
}

/// File of a shard's rows.
pub(crate) fn rows_name(shard: u32) -> String {
    format!("rows-{shard:05}")
}

/// File of a shard's lists by a codebook.
pub(crate) fn lists_name(shard: u32, codebook: Option<&str>) -> String {
    format!("lists-{shard:05}-{}", codebook.map_or("all", |name| name.trim_start_matches("codebook-")))
}
