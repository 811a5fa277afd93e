//! The list of a run's clips: a folder, a glob, one file, or a manifest.
//!
//! Lists stream: a manifest of a million entries is read a row at a time, once to check and count it
//! and once to run it.

mod manifest;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use manifest::{Manifest, ManifestKind};

/// Names of video files in a folder, by extension. A manifest or a glob takes any name.
const VIDEO_EXTENSIONS: &[&str] = &[
    "3g2", "3gp", "asf", "avi", "divx", "dv", "f4v", "flv", "gif", "h264", "h265", "hevc", "ivf", "m1v",
    "m2ts", "m2v", "m4v", "mjpeg", "mjpg", "mkv", "mov", "mp4", "mpe", "mpeg", "mpg", "mts", "mxf", "nut",
    "ogg", "ogm", "ogv", "qt", "rm", "rmvb", "ts", "vob", "webm", "wmv",
];

/// Where a clip's label comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Label {
    /// The manifest's column `label` where it has one, else no labels.
    Auto,
    /// No labels.
    None,
    /// The name of the clip's folder.
    Parent,
    /// This column of the manifest.
    Column(String),
}

/// One entry of the list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The file, relative to the working directory or absolute.
    pub path: String,
    /// Its label.
    pub label: Option<String>,
    /// The manifest's further columns.
    pub extra: Vec<Option<String>>,
}

/// The clips of a run, found and checked, not yet opened.
pub struct ClipList {
    source: Source,
    label: Label,
    n_clips: u64,
}

enum Source {
    File(PathBuf),
    Folder(PathBuf),
    Glob(String),
    Manifest(Manifest),
}

impl ClipList {
    /// Finds what `clips` names and counts it. A list without a single clip is an error.
    pub fn open(clips: &str, label: Label) -> Result<Self> {
        let path = Path::new(clips);
        let source = if path.is_dir() {
            Source::Folder(path.to_owned())
        } else if path.exists() {
            match ManifestKind::of(path) {
                Some(kind) => Source::Manifest(Manifest::open(path, kind, &label)?),
                None => Source::File(path.to_owned()),
            }
        } else if clips.contains(['*', '?', '[']) {
            Source::Glob(clips.to_owned())
        } else {
            bail!("input.clips: {clips} does not exist");
        };
        if let (Label::Column(column), false) = (&label, matches!(source, Source::Manifest(_))) {
            bail!(
                "input.label names the column {column:?}, but {clips} is no manifest; use \"parent\" or \"none\""
            );
        }
        let mut list = Self { source, label, n_clips: 0 };
        list.n_clips = match &list.source {
            Source::Manifest(manifest) => manifest.n_rows(),
            _ => {
                let mut n = 0;
                for entry in list.iter()? {
                    entry?;
                    n += 1;
                }
                n
            }
        };
        if list.n_clips == 0 {
            bail!("input.clips: {clips} holds no clips");
        }
        Ok(list)
    }

    /// How many clips there are.
    pub fn n_clips(&self) -> u64 {
        self.n_clips
    }

    /// Names of the manifest's columns besides `path` and the label.
    pub fn extra_columns(&self) -> &[String] {
        match &self.source {
            Source::Manifest(manifest) => manifest.extra_columns(),
            _ => &[],
        }
    }

    /// The entries, in a stable order.
    pub fn iter(&self) -> Result<Box<dyn Iterator<Item = Result<Entry>> + Send + '_>> {
        Ok(match &self.source {
            Source::File(path) => Box::new(std::iter::once(Ok(self.entry(path)))),
            Source::Folder(folder) => Box::new(files_under(folder).map(|path| Ok(self.entry(&path?)))),
            Source::Glob(pattern) => {
                // As a shell does: hidden files only where the pattern names the dot.
                let options = glob::MatchOptions { require_literal_leading_dot: true, ..Default::default() };
                let found =
                    glob::glob_with(pattern, options).with_context(|| format!("input.clips: {pattern}"))?;
                Box::new(found.filter_map(|path| match path {
                    Ok(path) if path.is_dir() => None,
                    Ok(path) => Some(Ok(self.entry(&path))),
                    Err(e) => Some(Err(e.into())),
                }))
            }
            Source::Manifest(manifest) => Box::new(manifest.iter()?.map(|row| {
                let mut entry = row?;
                if self.label == Label::Parent {
                    entry.label = parent_name(Path::new(&entry.path));
                }
                Ok(entry)
            })),
        })
    }

    fn entry(&self, path: &Path) -> Entry {
        let label = if self.label == Label::Parent { parent_name(path) } else { None };
        Entry { path: path.to_string_lossy().into_owned(), label, extra: Vec::new() }
    }
}

fn parent_name(path: &Path) -> Option<String> {
    Some(path.parent()?.file_name()?.to_string_lossy().into_owned())
}

/// Video files below a folder by name, hidden ones left out, links followed.
fn files_under(folder: &Path) -> impl Iterator<Item = Result<PathBuf>> + Send + use<> {
    let hidden = |name: &std::ffi::OsStr| name.to_string_lossy().starts_with('.');
    walkdir::WalkDir::new(folder)
        .follow_links(true)
        .sort_by_file_name()
        .into_iter()
        .filter_entry(move |e| e.depth() == 0 || !hidden(e.file_name()))
        .filter_map(|entry| match entry {
            Ok(entry) if entry.file_type().is_dir() || !is_video_name(entry.path()) => None,
            Ok(entry) => Some(Ok(entry.into_path())),
            // A dangling link with a video's name is a clip that cannot be read: its own reject.
            Err(e) if e.path().is_some_and(is_video_name) => e.path().map(|p| Ok(p.to_owned())),
            Err(e) => match e.path() {
                Some(path) if e.io_error().is_some() && path.is_dir() => {
                    Some(Err(anyhow::Error::new(e).context("input.clips cannot be listed")))
                }
                _ => None,
            },
        })
}

fn is_video_name(path: &Path) -> bool {
    path.extension().is_some_and(|e| {
        VIDEO_EXTENSIONS.iter().any(|known| e.eq_ignore_ascii_case(std::ffi::OsStr::new(known)))
    })
}
