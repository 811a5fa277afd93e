//! Files of named sections, every block of which has a checksum.
//!
//! ```text
//! section … section, each starting at a cache line │ checksums of the blocks │ foot as JSON │ its length,
//! its checksum, the magic word
//! ```
//!
//! A block is checked when it is first read and then trusted, so a reader pays for what it touches. What
//! is cut off, was written by another program or has another form fails to open; a flipped byte is found
//! by the first read of its block. A file is written under another name and renamed when it is whole.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{BufWriter, Write as _},
    ops::Range,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use anyhow::{Context as _, Result, anyhow};
use kernels::mapped_file::MappedFile;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::files::sync_folder_of;

/// Bytes that a checksum covers.
const BLOCK: usize = 16 << 10;
/// The last bytes of a file. Its number is that of the form.
const MAGIC: &[u8; 8] = b"clipmil1";
/// Length and checksum of the foot, and the magic word.
const TAIL: usize = 4 + 8 + 8;
const ALIGN: usize = 64;

/// What is wrong with a file of the index. A rebuild mends it.
#[derive(Debug, thiserror::Error)]
#[error("{} is damaged: {what}\nhint: `clipmill index RUN --rebuild` makes it anew", path.display())]
pub struct Damage {
    /// The file.
    pub path: PathBuf,
    /// Where, and how it was found.
    pub what: String,
}

#[derive(Serialize, Deserialize)]
struct Foot {
    /// What the writer says of the file.
    facts: serde_json::Value,
    /// First byte and length.
    sections: BTreeMap<String, (u64, u64)>,
    /// Bytes before the checksums.
    data_bytes: u64,
    /// Of the checksums.
    sums: u64,
}

fn checksum(bytes: &[u8]) -> u64 {
    let hash = blake3::hash(bytes);
    let mut word = [0; 8];
    word.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(word)
}

/// A file being written.
pub(crate) struct SealedWriter {
    path: PathBuf,
    partial: PathBuf,
    file: BufWriter<File>,
    block: Vec<u8>,
    sums: Vec<u8>,
    at: u64,
    /// First byte and length, the last one being written.
    sections: Vec<(String, (u64, u64))>,
}

impl SealedWriter {
    pub(crate) fn create(path: PathBuf) -> Result<Self> {
        let partial = path.with_extension("partial");
        let file = File::create(&partial).with_context(|| format!("cannot create {}", partial.display()))?;
        Ok(Self {
            path,
            partial,
            file: BufWriter::with_capacity(256 << 10, file),
            block: Vec::with_capacity(BLOCK),
            sums: Vec::new(),
            at: 0,
            sections: Vec::new(),
        })
    }

    /// What follows is the section `name`.
    pub(crate) fn section(&mut self, name: &str) -> Result<()> {
        let padding = (self.at as usize).next_multiple_of(ALIGN) - self.at as usize;
        self.put(&[0; ALIGN][..padding])?;
        self.sections.push((name.to_owned(), (self.at, 0)));
        Ok(())
    }

    /// Adds to the section that was begun last.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let (_, (_, len)) = self.sections.last_mut().context("a section was begun")?;
        *len += bytes.len() as u64;
        self.put(bytes)
    }

    /// A section and all of its bytes.
    pub(crate) fn add(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.section(name)?;
        self.write(bytes)
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).with_context(|| format!("cannot write {}", self.partial.display()))?;
        self.at += bytes.len() as u64;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(BLOCK - self.block.len()));
            self.block.extend_from_slice(now);
            if self.block.len() == BLOCK {
                self.end_block();
            }
            bytes = later;
        }
        Ok(())
    }

    fn end_block(&mut self) {
        self.sums.extend(checksum(&self.block).to_le_bytes());
        self.block.clear();
    }

    /// Makes the file whole and gives it its name.
    pub(crate) fn finish(mut self, facts: &impl Serialize) -> Result<()> {
        if !self.block.is_empty() {
            self.end_block();
        }
        let failed = || format!("cannot write {}", self.partial.display());
        let foot = Foot {
            facts: serde_json::to_value(facts)?,
            sections: self.sections.into_iter().collect(),
            data_bytes: self.at,
            sums: checksum(&self.sums),
        };
        let foot = serde_json::to_vec(&foot)?;
        for part in
            [&self.sums[..], &foot, &(foot.len() as u32).to_le_bytes(), &checksum(&foot).to_le_bytes(), MAGIC]
        {
            self.file.write_all(part).with_context(failed)?;
        }
        let file =
            self.file.into_inner().map_err(std::io::IntoInnerError::into_error).with_context(failed)?;
        file.sync_all().with_context(failed)?;
        fs::rename(&self.partial, &self.path)
            .and_then(|()| sync_folder_of(&self.path))
            .with_context(|| format!("cannot rename {} to {}", self.partial.display(), self.path.display()))
    }
}

/// A whole file, mapped.
#[derive(Debug)]
pub(crate) struct Sealed {
    path: PathBuf,
    /// None where all is read from the map: a run of many shards must not use up the open files.
    file: Option<File>,
    map: MappedFile,
    sections: BTreeMap<String, Range<usize>>,
    data_bytes: usize,
    sums: Vec<u64>,
    /// A bit a block: its checksum held.
    checked: Vec<AtomicU64>,
}

impl Sealed {
    /// Opens a file, and reads what its writer said of it. A file that is not whole is a [`Damage`].
    pub(crate) fn open<T: DeserializeOwned>(path: &Path) -> Result<(Self, T)> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        let damage = |what: &str| anyhow!(Damage { path: path.to_owned(), what: what.to_owned() });
        if file.metadata().with_context(|| format!("cannot read {}", path.display()))?.len() < TAIL as u64 {
            return Err(damage("it is cut off"));
        }
        let map = MappedFile::new(&file).with_context(|| format!("cannot map {}", path.display()))?;
        let bytes = map.bytes();
        let (rest, tail) = bytes.split_at(bytes.len() - TAIL);
        if tail[12..] != MAGIC[..] {
            return Err(damage("it is cut off, or no file of this version"));
        }
        let number = |from: &[u8]| from.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
        let foot_at = rest.len().checked_sub(number(&tail[..4]) as usize);
        let (rest, foot) = rest.split_at(foot_at.ok_or_else(|| damage("its foot is cut off"))?);
        if checksum(foot) != number(&tail[4..12]) {
            return Err(damage("the checksum of its foot does not hold"));
        }
        let Foot { facts, sections, data_bytes, sums } =
            serde_json::from_slice(foot).map_err(|e| damage(&format!("its foot says {e}")))?;
        let n_blocks = (data_bytes as usize).div_ceil(BLOCK);
        let len = n_blocks.checked_mul(8).and_then(|sums| sums.checked_add(data_bytes as usize));
        if len != Some(rest.len()) || checksum(&rest[data_bytes as usize..]) != sums {
            return Err(damage("its checksums do not hold"));
        }
        let facts = serde_json::from_value(facts).map_err(|e| damage(&format!("its foot says {e}")))?;
        let sums = rest[data_bytes as usize..].chunks_exact(8).map(number).collect();
        let sections = sections
            .into_iter()
            .map(|(name, (from, len))| (name, from as usize..from.saturating_add(len) as usize))
            .collect();
        let checked = (0..n_blocks.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let data_bytes = data_bytes as usize;
        Ok((
            Self { path: path.to_owned(), file: Some(file), map, sections, data_bytes, sums, checked },
            facts,
        ))
    }

    /// Where a section lies, which has `len` bytes.
    pub(crate) fn section(&self, name: &str, len: usize) -> Result<Range<usize>> {
        let range = self.sections.get(name).filter(|r| r.len() == len && r.end <= self.data_bytes);
        range.cloned().ok_or_else(|| self.damage(format!("it has no section {name} of {len} bytes")))
    }

    /// Closes the file, of which the map is enough.
    pub(crate) fn mapped(mut self) -> Self {
        self.file = None;
        self
    }

    /// Copies bytes without mapping them, where there is a file.
    fn copy(&self, from: usize, to: &mut [u8]) -> Result<()> {
        let Some(file) = &self.file else {
            to.copy_from_slice(&self.map.bytes()[from..from + to.len()]);
            return Ok(());
        };
        file.read_exact_at(to, from as u64).with_context(|| format!("cannot read {}", self.path.display()))
    }

    pub(crate) fn damage(&self, what: String) -> anyhow::Error {
        anyhow!(Damage { path: self.path.clone(), what })
    }

    fn is_checked(&self, block: usize) -> bool {
        self.checked[block / 64].load(Ordering::Relaxed) >> (block % 64) & 1 == 1
    }

    /// Compares a block with its checksum. Not again if it held before.
    fn check(&self, block: usize, bytes: impl FnOnce(Range<usize>) -> Result<Checked>) -> Result<()> {
        if self.is_checked(block) {
            return Ok(());
        }
        let range = block * BLOCK..((block + 1) * BLOCK).min(self.data_bytes);
        let found = bytes(range.clone())?;
        if found.0 != self.sums[block] {
            let what = format!("bytes {} to {} are not what was written", range.start, range.end);
            return Err(self.damage(what));
        }
        self.checked[block / 64].fetch_or(1 << (block % 64), Ordering::Relaxed);
        Ok(())
    }

    fn blocks(range: &Range<usize>) -> Range<usize> {
        if range.is_empty() { 0..0 } else { range.start / BLOCK..range.end.div_ceil(BLOCK) }
    }

    /// Bytes of the map, checked.
    pub(crate) fn bytes(&self, range: Range<usize>) -> Result<&[u8]> {
        for block in Self::blocks(&range) {
            self.check(block, |of| Ok(Checked(checksum(&self.map.bytes()[of]))))?;
        }
        Ok(&self.map.bytes()[range])
    }

    /// Reads bytes into `to` without mapping them, so that they do not count as this process's memory.
    pub(crate) fn read(&self, from: usize, to: &mut [u8]) -> Result<()> {
        for block in Self::blocks(&(from..from + to.len())) {
            self.check(block, |of| {
                let mut bytes = vec![0; of.len()];
                self.copy(of.start, &mut bytes)?;
                Ok(Checked(checksum(&bytes)))
            })?;
        }
        self.copy(from, to)
    }

    /// Compares every block with its checksum, whatever was checked before.
    pub(crate) fn verify(&self) -> Result<()> {
        self.checked.iter().for_each(|bits| bits.store(0, Ordering::Relaxed));
        let mut bytes = vec![0; BLOCK];
        for block in 0..self.sums.len() {
            self.check(block, |of| {
                let bytes = &mut bytes[..of.len()];
                self.copy(of.start, bytes)?;
                Ok(Checked(checksum(bytes)))
            })?;
        }
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// A block's checksum as found.
struct Checked(u64);

/// The `i`th number of a slice of them.
pub(crate) fn u32_at(bytes: &[u8], i: usize) -> u32 {
    u32::from_le_bytes(bytes.as_chunks().0[i])
}

/// The `i`th number of a slice of them.
pub(crate) fn u64_at(bytes: &[u8], i: usize) -> u64 {
    u64::from_le_bytes(bytes.as_chunks().0[i])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(folder: &Path) -> PathBuf {
        let path = folder.join("a");
        let mut writer = SealedWriter::create(path.clone()).unwrap();
        writer.add("first", &[1; 100]).unwrap();
        writer.section("second").unwrap();
        for i in 0..300u32 {
            writer.write(&[i as u8; 200]).unwrap();
        }
        writer.finish(&serde_json::json!({"rows": 7})).unwrap();
        path
    }

    #[test]
    fn what_was_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let (file, facts) = Sealed::open::<serde_json::Value>(&written(folder.path())).unwrap();
        assert_eq!(facts["rows"], 7);
        assert_eq!(file.bytes(file.section("first", 100).unwrap()).unwrap(), [1; 100]);
        let second = file.section("second", 60_000).unwrap();
        assert_eq!(second.start % 64, 0);
        let mut row = [0; 200];
        file.read(second.start + 299 * 200, &mut row).unwrap();
        assert_eq!(row, [299u32 as u8; 200]);
        file.verify().unwrap();
        assert!(file.section("third", 0).is_err() && file.section("first", 99).is_err());
        assert!(!folder.path().join("a.partial").exists());
    }

    /// Each byte flipped is found: by opening, or by the read that touches its block.
    #[test]
    fn a_flipped_byte_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let whole = fs::read(&path).unwrap();
        for at in (0..whole.len()).step_by(97).chain(whole.len() - 400..whole.len()) {
            let mut bytes = whole.clone();
            bytes[at] ^= 4;
            fs::write(&path, bytes).unwrap();
            let Ok((file, _)) = Sealed::open::<serde_json::Value>(&path) else { continue };
            assert!(at < file.data_bytes, "{at} was not seen at opening");
            let touching = [file.bytes(at..at + 1).map(drop), file.read(at, &mut [0]), file.verify()];
            for found in touching {
                let damage = found.unwrap_err().downcast::<Damage>().unwrap();
                assert_eq!(damage.path, path);
            }
            let other = if at < BLOCK { BLOCK } else { 0 };
            file.bytes(other..other + 1).unwrap();
        }
    }

    #[test]
    fn what_is_cut_off_does_not_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = written(folder.path());
        let whole = fs::read(&path).unwrap();
        for len in (0..whole.len()).step_by(501).chain(whole.len() - 30..whole.len()) {
            fs::write(&path, &whole[..len]).unwrap();
            let found = Sealed::open::<serde_json::Value>(&path).map(drop).unwrap_err();
            assert!(found.is::<Damage>(), "{len}: {found:#}");
        }
    }
}
