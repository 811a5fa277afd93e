//! What is done: the source of truth of a run.
//!
//! A file of JSON lines, each with a checksum, that only grows. A shard's line is written last: each of its files is on the disk
//! before it has its name, both have their names before the manifest is there, and the manifest and all
//! names are on the disk before the line. So wherever a process is killed or the power goes, a line means
//! two whole files and their manifest; a shard without a line was never finished, and whatever there is of
//! it is swept at the next start, and its clips are done again. A last line without its end is a write that
//! was cut off, and never happened.

use std::{
    collections::{HashMap, HashSet},
    fs::{self, File, OpenOptions},
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};

use crate::{item::ClipId, load::modified_ns, stage::Rejection};

/// Where a shard's files are.
const FOLDERS: [&str; 3] = ["frames", "clips", "manifests"];

/// A line of the ledger.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    Shard {
        shard: u32,
        n_frames: u64,
        clips: Vec<ClipRecord>,
    },
    Reject(RejectRecord),
    /// Clips that searches are not to find any more; their rows stay in the shards.
    Deleted(Vec<u64>),
}

/// A clip whose rows are in a shard.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ClipRecord {
    pub(crate) clip_id: u64,
    pub(crate) path: String,
    pub(crate) n_frames: u32,
    pub(crate) bytes: u64,
    pub(crate) modified_ns: i64,
}

/// A clip without rows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RejectRecord {
    /// Its number.
    pub clip_id: u64,
    /// Its file.
    pub path: String,
    /// Its label.
    pub label: Option<String>,
    /// Where it ended.
    pub stage: String,
    /// [`crate::stage::Reason::word`].
    pub reason: String,
    /// The reason at length.
    pub detail: String,
    /// Length of the file; 0 if there was none.
    pub bytes: u64,
    /// When it was last written, nanoseconds since 1970.
    pub modified_ns: i64,
}

impl RejectRecord {
    fn done(&self) -> Done {
        let may_pass = matches!(self.reason.as_str(), "unreadable" | "timed_out")
            || self.detail.contains("not installed");
        Done::Rejected { bytes: self.bytes, modified_ns: self.modified_ns, may_pass }
    }
}

impl From<&Rejection> for RejectRecord {
    fn from(r: &Rejection) -> Self {
        let file = fs::metadata(&r.clip.path).ok();
        Self {
            clip_id: r.clip.id.0,
            path: r.clip.path.clone(),
            label: r.clip.label.clone(),
            stage: r.stage.into(),
            reason: r.reason.word().into(),
            detail: r.reason.to_string(),
            bytes: file.as_ref().map_or(0, fs::Metadata::len),
            modified_ns: file.as_ref().map_or(0, modified_ns),
        }
    }
}

/// Stands for a path: the first half of its blake3, which no two paths share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PathKey([u8; 16]);

impl PathKey {
    /// Of this path.
    pub fn of(path: &str) -> Self {
        let mut key = [0; 16];
        key.copy_from_slice(&blake3::hash(path.as_bytes()).as_bytes()[..16]);
        Self(key)
    }
}

/// How a clip of an earlier run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// Its rows are in a shard; the file had this length and time of writing.
    Indexed {
        /// Bytes.
        bytes: u64,
        /// Nanoseconds since 1970.
        modified_ns: i64,
    },
    /// It is in the rejects.
    Rejected {
        /// Bytes of the file then.
        bytes: u64,
        /// Nanoseconds since 1970.
        modified_ns: i64,
        /// Whether the cause may have gone though the file is the same: a disk that was away, a machine
        /// that was too busy, a plugin that was missing.
        may_pass: bool,
    },
    /// It was listed by this run, and has not ended yet.
    Listed,
}

/// Everything that the ledger says.
#[derive(Debug, Default)]
pub struct Standing {
    /// Ended clips. A million of them take 64 MB; their paths would take three times that.
    pub done: HashMap<PathKey, Done>,
    /// Numbers of the published shards.
    pub shards: Vec<u32>,
    /// All rejects.
    pub rejects: HashMap<PathKey, RejectRecord>,
    /// Numbers of the clips whose rows searches pass over.
    pub deleted: HashSet<u64>,
    /// The first number that no clip has.
    pub next_clip: u64,
}

impl Standing {
    /// Reads the ledger of the run in `folder`; a missing one says nothing.
    pub fn read(folder: &Path) -> Result<Self> {
        Ok(Self::parse(&folder.join("ledger"))?.0)
    }

    /// The standing, and the length of the ledger's whole lines.
    fn parse(path: &Path) -> Result<(Self, u64)> {
        let mut standing = Self::default();
        let mut whole = 0;
        let file = match File::open(path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok((standing, 0)),
            Err(e) => return Err(e).with_context(|| format!("cannot open {}", path.display())),
        };
        let mut reader = BufReader::new(file);
        let mut text = Vec::new();
        for n in 1.. {
            text.clear();
            let len = reader
                .read_until(b'\n', &mut text)
                .with_context(|| format!("cannot read {}", path.display()))?;
            if text.last() != Some(&b'\n') {
                // A write that was cut off leaves no whole line. Where one stands, only its end was changed.
                let is_whole = text.pop().is_some() && parse_line(&text).is_ok();
                if is_whole {
                    bail!("{}:{n}: the ledger is damaged: a line has no end", path.display());
                }
                break;
            }
            let line = parse_line(&text)
                .with_context(|| format!("{}:{n}: the ledger is damaged", path.display()))?;
            standing.add(line);
            whole += len as u64;
        }
        Ok((standing, whole))
    }

    fn add(&mut self, line: Line) {
        match line {
            Line::Shard { shard, clips, .. } => {
                self.shards.push(shard);
                for clip in clips {
                    self.next_clip = self.next_clip.max(clip.clip_id + 1);
                    let done = Done::Indexed { bytes: clip.bytes, modified_ns: clip.modified_ns };
                    let key = PathKey::of(&clip.path);
                    self.rejects.remove(&key);
                    self.done.insert(key, done);
                }
            }
            Line::Deleted(clips) => self.deleted.extend(clips),
            Line::Reject(reject) => {
                self.next_clip = self.next_clip.max(reject.clip_id + 1);
                let key = PathKey::of(&reject.path);
                self.done.insert(key, reject.done());
                self.rejects.insert(key, reject);
            }
        }
    }

    /// Clips with rows in a published shard.
    pub fn n_indexed(&self) -> u64 {
        self.done.values().filter(|d| matches!(d, Done::Indexed { .. })).count() as u64
    }

    /// The first free clip number.
    pub fn next_clip(&self) -> ClipId {
        ClipId(self.next_clip)
    }
}

/// The ledger, open for writing by the only process that may.
#[derive(Debug)]
pub struct Ledger {
    file: File,
    path: PathBuf,
    next_shard: u32,
    rejects: HashMap<PathKey, RejectRecord>,
    /// Held until the run ends.
    _lock: File,
}

impl Ledger {
    /// Opens the run in `folder` for this process alone, and sweeps what no line of the ledger names.
    pub fn open(folder: &Path) -> Result<(Self, Standing)> {
        for name in FOLDERS {
            let path = folder.join(name);
            fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        }
        let lock = lock(folder)?;
        let path = folder.join("ledger");
        let (mut standing, whole) = Standing::parse(&path)?;
        if !path.exists()
            && let Some(shard) = whole_shard(folder)?
        {
            bail!(
                "{} is missing, but there is {}\nhint: without its ledger a run cannot go on; choose another output.dir",
                path.display(),
                shard.display()
            );
        }
        let file = OpenOptions::new().create(true).append(true).open(&path)?;
        File::open(folder)?.sync_all()?;
        file.set_len(whole)?;
        sweep(folder, &standing.shards)?;
        let next_shard = standing.shards.iter().max().map_or(0, |s| s + 1);
        let rejects = std::mem::take(&mut standing.rejects);
        Ok((Self { file, path, next_shard, rejects, _lock: lock }, standing))
    }

    pub(crate) fn next_shard(&mut self) -> u32 {
        self.next_shard += 1;
        self.next_shard - 1
    }

    pub(crate) fn add_shard(&mut self, shard: u32, n_frames: u64, clips: Vec<ClipRecord>) -> Result<()> {
        for clip in &clips {
            self.rejects.remove(&PathKey::of(&clip.path));
        }
        self.append(&Line::Shard { shard, n_frames, clips })?;
        self.file.sync_all().with_context(|| format!("cannot sync {}", self.path.display()))
    }

    /// Takes clips out of searches.
    pub fn delete(&mut self, clips: Vec<u64>) -> Result<()> {
        self.append(&Line::Deleted(clips))?;
        self.file.sync_all().with_context(|| format!("cannot sync {}", self.path.display()))
    }

    /// A reject need not reach the disk at once: a clip whose line is lost is rejected again.
    pub(crate) fn add_reject(&mut self, reject: RejectRecord) -> Result<()> {
        self.rejects.insert(PathKey::of(&reject.path), reject.clone());
        self.append(&Line::Reject(reject))
    }

    /// All rejects, in the order of the clips.
    pub(crate) fn rejects(&self) -> Vec<&RejectRecord> {
        let mut rejects: Vec<&RejectRecord> = self.rejects.values().collect();
        rejects.sort_by_key(|r| r.clip_id);
        rejects
    }

    fn append(&mut self, line: &Line) -> Result<()> {
        let text = serde_json::to_string(line)?;
        let text = format!("{text} {}\n", line_sum(&text));
        self.file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", self.path.display()))
    }
}

/// Takes the run in `folder` for this process alone, until what is returned is dropped.
pub fn lock(folder: &Path) -> Result<File> {
    let path = folder.join("lock");
    let failed = || format!("cannot lock {}", path.display());
    let options = OpenOptions::new().create(true).truncate(false).write(true).read(true).clone();
    let mut lock = options.open(&path).with_context(failed)?;
    if let Err(e) = lock.try_lock() {
        if let fs::TryLockError::Error(e) = e {
            return Err(e).with_context(failed);
        }
        let holder = fs::read_to_string(&path).unwrap_or_default();
        bail!("{} is in use by another clipmill, process {}", folder.display(), holder.trim());
    }
    lock.set_len(0)?;
    write!(lock, "{}", std::process::id())?;
    Ok(lock)
}

/// Digits of a line's checksum.
const SUM_DIGITS: usize = 16;

fn line_sum(json: &str) -> String {
    blake3::hash(json.as_bytes()).to_hex()[..SUM_DIGITS].to_owned()
}

/// JSON, a blank, its checksum; older versions wrote the JSON alone.
fn parse_line(line: &[u8]) -> Result<Line> {
    let line = str::from_utf8(line)?.trim_end_matches('\n');
    let is_sum = |sum: &str| sum.len() == SUM_DIGITS && sum.bytes().all(|b| b.is_ascii_hexdigit());
    let Some((json, sum)) = line.rsplit_once(' ').filter(|(_, sum)| is_sum(sum)) else {
        return Ok(serde_json::from_str(line)?);
    };
    if sum != line_sum(json) {
        bail!("a line's checksum does not hold");
    }
    Ok(serde_json::from_str(json)?)
}

/// A shard with its name, if there is any.
fn whole_shard(folder: &Path) -> Result<Option<PathBuf>> {
    for entry in fs::read_dir(folder.join("frames"))? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "parquet") {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

/// Removes what a killed run left: files that are not whole, and those of shards without a line.
fn sweep(folder: &Path, shards: &[u32]) -> Result<()> {
    for name in FOLDERS {
        for entry in fs::read_dir(folder.join(name))? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let stem = |n: &str| Some(n.strip_suffix(".parquet").or(n.strip_suffix(".json"))?.to_owned());
            let number = name.strip_prefix("shard-").and_then(stem);
            let listed = number.and_then(|n| n.parse().ok()).is_some_and(|n: u32| shards.contains(&n));
            let ours = name.starts_with("shard-");
            if ours && !listed {
                tracing::info!(path = %path.display(), "sweeping a shard that was not finished");
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
    }
    Ok(())
}
