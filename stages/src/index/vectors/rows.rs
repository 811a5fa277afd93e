//! A shard's rows as search reads them: vectors at random, and what they are of.
//!
//! Everything here is in the shard's Parquet files, in the same order, but there nothing can be read
//! without unpacking all around it.

use std::{ops::Range, path::Path};

use anyhow::{Context as _, Result};
use half::f16;
use serde::{Deserialize, Serialize};

use super::sealed::{Sealed, SealedWriter, u32_at, u64_at};

/// Bytes of a clip's entry: number, first row, rows, duration, where its text starts, and the lengths of path
/// and label, of which that is.
const CLIP_BYTES: usize = 40;
/// Bytes of a frame's entry: its clip, its index, its time.
const FRAME_BYTES: usize = 16;
/// In place of a label's length, where there is none.
const NO_LABEL: u32 = u32::MAX;

/// What the file says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RowsFacts {
    pub(crate) shard: u32,
    pub(crate) dim: usize,
    pub(crate) n_rows: usize,
    pub(crate) n_clips: usize,
    /// blake3 of the shard's frames, which these rows are.
    pub(crate) source: String,
    text_bytes: usize,
}

/// A clip of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Clip<'a> {
    /// Its number in the run.
    pub(crate) id: u64,
    /// Its file.
    pub(crate) path: &'a str,
    /// Its label.
    pub(crate) label: Option<&'a str>,
    /// Last frame's end less the first frame's start.
    pub(crate) duration_ns: i64,
}

/// Writes [`Rows`], clip after clip.
pub(crate) struct RowsWriter {
    file: SealedWriter,
    shard: u32,
    dim: usize,
    n_rows: usize,
    clips: Vec<u8>,
    frames: Vec<u8>,
    text: Vec<u8>,
    bytes: Vec<u8>,
}

impl RowsWriter {
    pub(crate) fn create(path: &Path, shard: u32, dim: usize) -> Result<Self> {
        let mut file = SealedWriter::create(path.to_owned())?;
        file.section("vectors")?;
        let (clips, frames, text, bytes) = Default::default();
        Ok(Self { file, shard, dim, n_rows: 0, clips, frames, text, bytes })
    }

    /// What follows are the rows of this clip.
    pub(crate) fn begin(&mut self, clip: Clip<'_>) {
        self.clips.extend(clip.id.to_le_bytes());
        self.clips.extend((self.n_rows as u32).to_le_bytes());
        self.clips.extend(0u32.to_le_bytes());
        self.clips.extend(clip.duration_ns.to_le_bytes());
        self.clips.extend((self.text.len() as u64).to_le_bytes());
        for text in [Some(clip.path), clip.label] {
            self.clips.extend(text.map_or(NO_LABEL, |text| text.len() as u32).to_le_bytes());
            self.text.extend(text.unwrap_or_default().as_bytes());
        }
    }

    /// Adds rows of the clip that was begun last: index and time of each frame, and their vectors.
    pub(crate) fn add(&mut self, frames: impl Iterator<Item = (u32, i64)>, vectors: &[f16]) -> Result<()> {
        let entry = self.clips.len().checked_sub(CLIP_BYTES).context("a clip was begun")?;
        for (index, pts_ns) in frames {
            self.frames.extend(((entry / CLIP_BYTES) as u32).to_le_bytes());
            self.frames.extend(index.to_le_bytes());
            self.frames.extend(pts_ns.to_le_bytes());
            self.n_rows += 1;
        }
        let n_rows = self.n_rows as u32 - u32_at(&self.clips[entry..], 2);
        self.clips[entry + 12..entry + 16].copy_from_slice(&n_rows.to_le_bytes());
        self.bytes.clear();
        self.bytes.extend(vectors.iter().flat_map(|v| v.to_le_bytes()));
        self.file.write(&self.bytes)
    }

    pub(crate) fn finish(mut self, source: String) -> Result<()> {
        for (name, bytes) in [("frames", &self.frames), ("clips", &self.clips), ("text", &self.text)] {
            self.file.add(name, bytes)?;
        }
        let n_clips = self.clips.len() / CLIP_BYTES;
        let Self { shard, dim, n_rows, .. } = self;
        self.file.finish(&RowsFacts { shard, dim, n_rows, n_clips, source, text_bytes: self.text.len() })
    }
}

/// The rows of one shard.
#[derive(Debug)]
pub(crate) struct Rows {
    file: Sealed,
    pub(crate) facts: RowsFacts,
    vectors: Range<usize>,
    frames: Range<usize>,
    clips: Range<usize>,
    text: Range<usize>,
}

/// Which frame a row is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Its clip's place in the shard.
    pub(crate) clip: usize,
    pub(crate) index: u32,
    pub(crate) pts_ns: i64,
}

impl Rows {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let (file, facts) = Sealed::open::<RowsFacts>(path)?;
        let vectors = file.section("vectors", facts.n_rows.saturating_mul(facts.dim).saturating_mul(2))?;
        let frames = file.section("frames", facts.n_rows.saturating_mul(FRAME_BYTES))?;
        let clips = file.section("clips", facts.n_clips.saturating_mul(CLIP_BYTES))?;
        let text = file.section("text", facts.text_bytes)?;
        Ok(Self { file, facts, vectors, frames, clips, text })
    }

    /// Reads the vectors of `rows`; `bytes` is room for them.
    pub(crate) fn read(&self, rows: Range<usize>, bytes: &mut Vec<u8>, to: &mut Vec<f16>) -> Result<()> {
        let len = self.facts.dim * 2;
        bytes.resize(rows.len() * len, 0);
        self.file.read(self.vectors.start + rows.start * len, bytes)?;
        to.clear();
        to.extend(bytes.as_chunks().0.iter().map(|b| f16::from_le_bytes(*b)));
        Ok(())
    }

    pub(crate) fn frame(&self, row: usize) -> Result<Frame> {
        let from = self.frames.start + row * FRAME_BYTES;
        let bytes = self.file.bytes(from..from + FRAME_BYTES)?;
        let clip = u32_at(bytes, 0) as usize;
        if clip >= self.facts.n_clips {
            return Err(self.file.damage(format!("row {row} is of a clip that is not there")));
        }
        Ok(Frame { clip, index: u32_at(bytes, 1), pts_ns: u64_at(bytes, 1) as i64 })
    }

    fn entry(&self, clip: usize) -> Result<&[u8]> {
        let from = self.clips.start + clip * CLIP_BYTES;
        self.file.bytes(from..from + CLIP_BYTES)
    }

    /// Reads the vectors of `rows`, and tells which frames they are.
    pub(crate) fn read_frames(
        &self,
        rows: Range<usize>,
        bytes: &mut Vec<u8>,
        to: &mut Vec<f16>,
    ) -> Result<Vec<Frame>> {
        self.read(rows.clone(), bytes, to)?;
        rows.map(|row| self.frame(row)).collect()
    }

    /// The rows of a clip.
    pub(crate) fn rows_of(&self, clip: usize) -> Result<Range<usize>> {
        let entry = self.entry(clip)?;
        let (first, n) = (u32_at(entry, 2) as usize, u32_at(entry, 3) as usize);
        if first + n > self.facts.n_rows {
            return Err(self.file.damage(format!("clip {clip} has rows that are not there")));
        }
        Ok(first..first + n)
    }

    pub(crate) fn clip(&self, clip: usize) -> Result<Clip<'_>> {
        let entry = self.entry(clip)?;
        let (path_len, label_len) = (u32_at(entry, 8) as usize, u32_at(entry, 9));
        let path_at = u64_at(entry, 3) as usize;
        let text = |from: usize, len: usize| {
            let no_name = || self.file.damage(format!("clip {clip} has no readable name"));
            let end = from.checked_add(len).filter(|end| *end <= self.text.len()).ok_or_else(no_name)?;
            let bytes = self.file.bytes(self.text.start + from..self.text.start + end)?;
            str::from_utf8(bytes).map_err(|_| no_name())
        };
        Ok(Clip {
            id: u64_at(entry, 0),
            path: text(path_at, path_len)?,
            label: match label_len {
                NO_LABEL => None,
                len => Some(text(path_at.saturating_add(path_len), len as usize)?),
            },
            duration_ns: u64_at(entry, 2) as i64,
        })
    }

    pub(crate) fn verify(&self) -> Result<()> {
        self.file.verify()
    }

    pub(crate) fn path(&self) -> &Path {
        self.file.path()
    }
}
