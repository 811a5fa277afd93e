//! A folder to work in, by one process at a time.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

/// An empty folder, gone afterwards. What a killed process left in it goes when it is next opened.
#[derive(Debug)]
pub struct Scratch {
    folder: PathBuf,
    _lock: File,
}

impl Scratch {
    /// Waits for the file `lock`, telling `waits` if another process has it, and empties `folder`.
    pub fn open(folder: PathBuf, lock: &Path, waits: impl FnOnce()) -> io::Result<Self> {
        let lock = File::create(lock)?;
        if lock.try_lock().is_err() {
            waits();
            lock.lock()?;
        }
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir_all(&folder)?;
        Ok(Self { folder, _lock: lock })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.folder
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}
