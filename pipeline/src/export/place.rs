//! The folder that an export writes: there whole, or not at all.
//!
//! Everything is written to `FOLDER.partial`, which gets its name at the end. Nothing that was there
//! before is written over; only what a killed export of ours left is removed, which its lock file tells.

use std::{
    fs::{self, File, TryLockError},
    io::{self, BufWriter, Write},
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};

/// In `FOLDER.partial` while it is written.
const LOCK: &str = "clipmill-export.lock";
/// Values are written a row group or a batch of rows at a time.
const BUFFER_BYTES: usize = 1 << 20;

/// The folder being written; removed unless it is published.
pub(super) struct Place {
    out: PathBuf,
    partial: PathBuf,
    n_files: u64,
    is_kept: bool,
    _lock: File,
}

impl Place {
    /// For an export to `out`, which must be new or an empty folder.
    pub(super) fn open(out: &Path) -> Result<Self> {
        let shown = out.display();
        let mut out = std::path::absolute(out).with_context(|| format!("--out: {shown}"))?;
        match fs::symlink_metadata(&out) {
            Ok(_) => out = check_empty(&out).with_context(|| format!("--out: {shown}"))?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(e).with_context(|| format!("--out: cannot read {shown}")),
        }
        let (Some(parent), Some(name)) = (out.parent(), out.file_name()) else {
            bail!("--out: {shown} names no folder of its own");
        };
        let mut name = name.to_owned();
        name.push(".partial");
        let partial = parent.join(name);
        fs::create_dir_all(parent).with_context(|| format!("cannot create {}", parent.display()))?;
        let lock = occupy(&partial)?;
        Ok(Self { out, partial, n_files: 0, is_kept: false, _lock: lock })
    }

    /// A new file of the export.
    pub(super) fn create(&mut self, name: &str) -> Result<OutFile> {
        let path = self.partial.join(name);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        }
        let file = File::create_new(&path).with_context(|| format!("cannot create {}", path.display()))?;
        self.n_files += 1;
        Ok(OutFile(BufWriter::with_capacity(BUFFER_BYTES, Named { file, path })))
    }

    /// Gives the folder its name, and returns how many files are in it.
    pub(super) fn publish(mut self) -> Result<u64> {
        let (partial, out) = (self.partial.display(), self.out.display());
        let lock = self.partial.join(LOCK);
        fs::remove_file(&lock).with_context(|| format!("cannot remove {}", lock.display()))?;
        for folder in folders(&self.partial)? {
            sync(&folder)?;
        }
        // Over an empty folder it may take the place; not over one that something came into.
        self.is_kept = true;
        fs::rename(&self.partial, &self.out)
            .with_context(|| format!("the export is whole in {partial}, but cannot be renamed to {out}"))?;
        self.out.parent().map_or(Ok(()), sync)?;
        Ok(self.n_files)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.is_kept {
            let _ = fs::remove_dir_all(&self.partial);
        }
    }
}

/// Where `out` is, if that is an empty folder that can be replaced.
fn check_empty(out: &Path) -> Result<PathBuf> {
    let out = fs::canonicalize(out)?;
    ensure!(out.is_dir(), "is a file, needs a new or empty folder");
    if let Some(entry) = fs::read_dir(&out)?.next() {
        let name = entry?.file_name();
        bail!("holds {}, needs a new or empty folder", name.to_string_lossy());
    }
    let is_mount = out
        .parent()
        .map_or(Ok(true), |p| Ok(p.metadata()?.dev() != out.metadata()?.dev()) as io::Result<_>)?;
    let is_here = std::env::current_dir().is_ok_and(|here| here == out);
    ensure!(!is_mount && !is_here, "cannot be replaced by the finished export; name a folder in it");
    Ok(out)
}

/// Makes `partial` and holds its lock; empties it if a killed export left it.
fn occupy(partial: &Path) -> Result<File> {
    let shown = partial.display();
    match fs::create_dir(partial) {
        Ok(()) => {}
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let is_ours = partial.join(LOCK).is_file();
            ensure!(is_ours, "{shown} is in the way\nhint: remove it, or choose another --out");
        }
        Err(e) => return Err(e).with_context(|| format!("cannot create {shown}")),
    }
    let path = partial.join(LOCK);
    let lock = File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    match lock.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => bail!("{shown} is being written by another export"),
        Err(TryLockError::Error(e)) => return Err(e).with_context(|| format!("cannot lock {shown}")),
    }
    for entry in fs::read_dir(partial).with_context(|| format!("cannot read {shown}"))? {
        let path = entry?.path();
        let removed = match path.is_dir() {
            true => fs::remove_dir_all(&path),
            false if path.ends_with(LOCK) => Ok(()),
            false => fs::remove_file(&path),
        };
        removed.with_context(|| format!("cannot remove {}", path.display()))?;
    }
    Ok(lock)
}

/// A folder, and those in it.
fn folders(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![folder.to_owned()];
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    Ok(found)
}

fn sync(folder: &Path) -> Result<()> {
    File::open(folder).and_then(|f| f.sync_all()).with_context(|| format!("cannot sync {}", folder.display()))
}

/// A file of the export being written. Its errors name it.
pub(super) struct OutFile(BufWriter<Named>);

struct Named {
    file: File,
    path: PathBuf,
}

impl Named {
    fn told(&self, e: &io::Error) -> io::Error {
        io::Error::new(e.kind(), format!("cannot write {}: {e}", self.path.display()))
    }
}

impl Write for Named {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes).map_err(|e| self.told(&e))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush().map_err(|e| self.told(&e))
    }
}

impl Write for OutFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl OutFile {
    /// Waits for the disk.
    pub(super) fn finish(self) -> Result<()> {
        let named = self.0.into_inner().map_err(|e| e.into_error())?;
        named.file.sync_all().map_err(|e| named.told(&e))?;
        Ok(())
    }
}
