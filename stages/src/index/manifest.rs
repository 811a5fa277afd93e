//! A shard's manifest: what its files are, so that a reader can tell whether they still are.
//!
//! `manifests/shard-00007.json` is written when both files have their names and before the shard is in
//! the ledger; `manifests/rejects.json` says the same of `rejects.parquet`. Sizes and hashes are those of the bytes that were written; nothing is read again. Runs of
//! versions that wrote none have none, and work all the same.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::shard::shard_path;
use crate::files::{read_sealed, sealed_json, sync_folder_of, write_whole};

/// `manifests/shard-00007.json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The shard's number.
    pub shard: u32,
    /// [`super::schema::SCHEMA_VERSION`] of its writer.
    pub schema_version: u32,
    /// Version of its writer.
    pub clipmill: String,
    /// blake3 of all settings that the rows depend on; the same in all shards of a run.
    pub settings_hash: String,
    /// `frames/shard-00007.parquet`
    pub frames: Listed,
    /// `clips/shard-00007.parquet`
    pub clips: Listed,
}

/// A file of a shard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listed {
    /// Rows of the table.
    pub rows: u64,
    /// Length of the file.
    pub bytes: u64,
    /// Of the file, in hexadecimal.
    pub blake3: String,
}

impl Listed {
    fn check_size(&self, path: &Path) -> Result<()> {
        let found = fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len();
        if found != self.bytes {
            bail!("{} has {found} bytes, its manifest says {}\n{HINT}", path.display(), self.bytes);
        }
        Ok(())
    }

    fn check(&self, path: &Path) -> Result<()> {
        self.check_size(path)?;
        let mut hasher = blake3::Hasher::new();
        File::open(path)
            .and_then(|file| hasher.update_reader(file).map(drop))
            .with_context(|| format!("cannot read {}", path.display()))?;
        let found = hasher.finalize().to_hex();
        if found.as_str() != self.blake3 {
            bail!("{} has blake3 {found}, its manifest says {}\n{HINT}", path.display(), self.blake3);
        }
        Ok(())
    }
}

/// Enters what `rejects.parquet` is now.
pub(crate) fn write_rejects(run: &Path, listed: &Listed) -> Result<()> {
    write(&rejects_path(run), listed)
}

/// Compares `rejects.parquet` with what was entered; older versions entered nothing.
pub fn check_rejects(run: &Path) -> Result<()> {
    let path = rejects_path(run);
    match read::<Listed>(&path)? {
        Some(listed) => listed.check(&run.join("rejects.parquet")),
        None => Ok(()),
    }
}

fn rejects_path(run: &Path) -> PathBuf {
    run.join("manifests").join("rejects.json")
}

/// Writes a manifest whole, and waits for the disk.
fn write(path: &Path, manifest: &impl Serialize) -> Result<()> {
    write_whole(path, sealed_json(manifest)?.as_bytes())
        .and_then(|()| sync_folder_of(path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Reads a manifest, if there is one.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(text) => read_sealed(path, &text).map(Some),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
}

impl Manifest {
    /// That of a shard of the run in folder `run`; none where an older version wrote the shard.
    pub fn read(run: &Path, shard: u32) -> Result<Option<Self>> {
        let path = manifest_path(run, shard);
        let Some(read) = read::<Self>(&path)? else { return Ok(None) };
        if read.shard != shard {
            bail!("{} is of shard {}", path.display(), read.shard);
        }
        Ok(Some(read))
    }

    /// Compares the lengths of the shard's files, which costs next to nothing.
    pub fn check_sizes(&self, run: &Path) -> Result<()> {
        self.files(run).into_iter().try_for_each(|(path, listed)| listed.check_size(&path))
    }

    /// Reads the shard's files and compares length and hash.
    pub fn check(&self, run: &Path) -> Result<()> {
        self.check_sizes(run)?;
        self.files(run).into_iter().try_for_each(|(path, listed)| listed.check(&path))
    }

    fn files(&self, run: &Path) -> [(PathBuf, &Listed); 2] {
        [("frames", &self.frames), ("clips", &self.clips)]
            .map(|(table, listed)| (shard_path(run, table, self.shard), listed))
    }

    /// Writes it whole, and waits for the disk.
    pub(crate) fn write(&self, run: &Path) -> Result<()> {
        write(&manifest_path(run, self.shard), self)
    }
}

const HINT: &str =
    "hint: the file changed after it was written; put its copy back, or index anew into another folder";

fn manifest_path(run: &Path, shard: u32) -> PathBuf {
    run.join("manifests").join(format!("shard-{shard:05}.json"))
}
