//! Making the index from the shards, and keeping it up with them.
//!
//! Every file is written under another name and renamed; the catalogue, which names them all, comes last.
//! So a reader finds the old index or the new one, and a build that is killed is begun again where it
//! stopped. A shard that is added touches no other shard's files. New centroids change all lists, but no
//! rows.

use std::{
    collections::{HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use arrow::{
    array::{Array as _, AsArray as _},
    datatypes::{Int64Type, UInt32Type, UInt64Type},
};
use half::f16;

use super::{
    catalogue::{Catalogue, CodebookEntry, SegmentEntry, lists_name, rows_name},
    codebook::Codebook,
    deleted,
    lists::{Lists, write_lists},
    probe,
    rows::{Clip, Rows, RowsWriter},
    scan::Segment,
    sealed::Damage,
};
use crate::{
    encode::quantized::hash_file,
    index::{
        ledger::Standing,
        manifest::Manifest,
        read::{batches, column, vectors},
        shard::shard_path,
    },
};

/// Rows of the sample for each list.
const SAMPLE_ROWS: usize = 40;
/// Most bytes of the sample, as float16.
const SAMPLE_BYTES: usize = 512 << 20;
/// When there are so many times the rows of the last training, centroids are trained anew.
const GROWTH: usize = 4;

/// How the index is made.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Rows up to which all are scanned: no lists are made for fewer.
    pub exact_rows: usize,
    /// Share of the nearest rows that a search by lists is to find.
    pub recall: f64,
}

/// The index of a run, open for writing. The run must be locked by this process.
pub struct Builder {
    run: PathBuf,
    folder: PathBuf,
    catalogue: Catalogue,
    codebook: Option<(String, Codebook)>,
}

impl Builder {
    /// Of the run in folder `run`, with its files in `folder`. What is there and whole is kept, unless all is
    /// to be made anew.
    pub fn open(run: &Path, folder: &Path, dim: usize, anew: bool) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        let known = if anew { None } else { whole(Catalogue::read(folder))?.flatten() };
        let mut catalogue = known.filter(|c| c.dim == dim).unwrap_or_else(|| Catalogue::new(dim));
        let codebook = match &catalogue.codebook {
            Some(entry) => whole(Codebook::open(&folder.join(&entry.name)))?
                .filter(|c| (c.dim, c.n_lists()) == (dim, entry.n_lists))
                .map(|codebook| (entry.name.clone(), codebook)),
            None => None,
        };
        if codebook.is_none() {
            catalogue.codebook = None;
        }
        Ok(Self { run: run.to_owned(), folder: folder.to_owned(), catalogue, codebook })
    }

    /// Adds a published shard, if it is not in the index as it is now.
    pub fn add(&mut self, shard: u32) -> Result<()> {
        self.ensure(shard, false)?;
        self.catalogue.write(&self.folder)
    }

    /// Makes the index hold the published shards, all of them and no others.
    pub fn complete(&mut self, standing: &Standing, anew: bool) -> Result<()> {
        let ledger_bytes = fs::metadata(self.run.join("ledger")).map_or(0, |ledger| ledger.len());
        let shards: HashSet<u32> = standing.shards.iter().copied().collect();
        self.catalogue.segments.retain(|s| shards.contains(&s.shard));
        for shard in &standing.shards {
            self.ensure(*shard, anew)?;
        }
        self.delete(&standing.deleted)?;
        self.catalogue.ledger_bytes = ledger_bytes;
        self.finish()
    }

    /// Trains centroids where that pays, and measures what they find. `texts` gives vectors of words, if the
    /// model reads any.
    pub fn tune(
        &mut self,
        settings: &Settings,
        texts: &mut dyn FnMut() -> Result<Vec<Vec<f32>>>,
        told: &mut dyn FnMut(&str),
    ) -> Result<()> {
        let n_rows = self.catalogue.n_rows();
        if n_rows <= settings.exact_rows {
            if self.codebook.take().is_some() {
                self.relist()?;
            }
            self.catalogue.recall = None;
            return self.finish();
        }
        let is_known = |recall: &probe::Recall| (recall.rows, recall.target) == (n_rows, settings.recall);
        if self.codebook.is_some() && self.catalogue.recall.as_ref().is_some_and(is_known) {
            return Ok(());
        }
        let has_grown = |entry: &CodebookEntry| n_rows >= GROWTH * entry.trained_rows;
        let mut is_fresh = self.catalogue.codebook.as_ref().is_none_or(has_grown);
        if is_fresh {
            self.train(told)?;
        }
        let texts = texts()?;
        loop {
            let segments = self.segments()?;
            let Some((_, codebook)) = &self.codebook else { bail!("there is no codebook to measure") };
            let had_target =
                self.catalogue.recall.take().is_some_and(|before| before.target == settings.recall);
            let recall = probe::measure(&segments, codebook, settings.recall, &texts)?;
            let needed = recall.frame.first().map_or(0, |p| p.lists);
            self.catalogue.recall = Some(recall);
            let Some(entry) = &mut self.catalogue.codebook else { bail!("there is no codebook to measure") };
            if is_fresh || !had_target {
                entry.lists_needed = needed;
                return self.finish();
            }
            // Rows drift away from centroids that were made for others: then more lists are needed.
            if needed <= 2 * entry.lists_needed.max(4) {
                return self.finish();
            }
            drop(segments);
            self.train(told)?;
            is_fresh = true;
        }
    }

    fn finish(&self) -> Result<()> {
        self.catalogue.write(&self.folder)?;
        self.sweep()
    }

    fn train(&mut self, told: &mut dyn FnMut(&str)) -> Result<()> {
        let (n_rows, dim) = (self.catalogue.n_rows(), self.catalogue.dim);
        let n_lists = ((4.0 * (n_rows as f64).sqrt()) as usize).clamp(1, 1 << 16);
        told(&format!("training {n_lists} lists for {n_rows} rows"));
        let most = (n_lists * SAMPLE_ROWS).min(SAMPLE_BYTES / (2 * dim)).max(n_lists);
        let step = (n_rows / most).max(1);
        let mut sample: Vec<f16> = Vec::with_capacity(n_rows.div_ceil(step) * dim);
        let (mut bytes, mut vector) = (Vec::new(), Vec::new());
        let mut from = 0;
        for entry in &self.catalogue.segments {
            let rows = Rows::open(&self.folder.join(rows_name(entry.shard)))?;
            while from < entry.n_rows {
                rows.read(from..from + 1, &mut bytes, &mut vector)?;
                sample.extend_from_slice(&vector);
                from += step;
            }
            from -= entry.n_rows;
        }
        let codebook = Codebook::train(&sample, dim, n_lists);
        let name = codebook.name();
        codebook.write(&self.folder.join(&name))?;
        self.catalogue.codebook =
            Some(CodebookEntry { name: name.clone(), n_lists, trained_rows: n_rows, lists_needed: 0 });
        self.codebook = Some((name, codebook));
        self.relist()
    }

    /// Writes all lists by the codebook that is.
    fn relist(&mut self) -> Result<()> {
        if self.codebook.is_none() {
            self.catalogue.codebook = None;
        }
        for shard in self.catalogue.segments.iter().map(|s| s.shard).collect::<Vec<_>>() {
            let rows = Rows::open(&self.folder.join(rows_name(shard)))?;
            let lists = self.list(&rows, false)?;
            if let Some(entry) = self.catalogue.segments.iter_mut().find(|s| s.shard == shard) {
                entry.lists = lists;
            }
        }
        Ok(())
    }

    fn segments(&self) -> Result<Vec<Segment>> {
        self.catalogue.segments.iter().map(|entry| open_segment(&self.folder, entry)).collect()
    }

    /// Sees to a shard's rows, its lists and its entry.
    fn ensure(&mut self, shard: u32, anew: bool) -> Result<()> {
        let frames = shard_path(&self.run, "frames", shard);
        let frames_bytes =
            fs::metadata(&frames).with_context(|| format!("cannot read {}", frames.display()))?.len();
        let manifest = Manifest::read(&self.run, shard)?;
        // A shard that is not what was written is not to be blamed on its index.
        manifest.as_ref().map_or(Ok(()), |m| m.check_sizes(&self.run))?;
        let known_entry = self.catalogue.segments.iter().find(|s| s.shard == shard);
        let is_same_size = known_entry.is_some_and(|entry| entry.frames_bytes == frames_bytes);
        let path = self.folder.join(rows_name(shard));
        let mut rows = if anew { None } else { whole(Rows::open(&path))? };
        let source = match (&manifest, &rows) {
            (Some(manifest), _) => manifest.frames.blake3.clone(),
            // Of an older version, and too long to hash each time.
            (None, Some(rows)) if is_same_size => rows.facts.source.clone(),
            (None, _) => hash_file(&frames)?,
        };
        // The rows of another run's shard may have the same name.
        let facts = (shard, self.catalogue.dim, &source);
        rows = rows.filter(|r| (r.facts.shard, r.facts.dim, &r.facts.source) == facts);
        let is_known = rows.is_some();
        let rows = match rows {
            Some(rows) => rows,
            None => {
                if let Some(manifest) = &manifest {
                    manifest.check(&self.run)?;
                }
                self.write_rows(shard, &path, source)?;
                Rows::open(&path)?
            }
        };
        let lists = self.list(&rows, anew || !is_known)?;
        let there = self.catalogue.segments.iter().position(|s| s.shard == shard);
        let deleted = there.and_then(|at| self.catalogue.segments[at].deleted.clone());
        let entry = SegmentEntry { shard, n_rows: rows.facts.n_rows, lists, deleted, frames_bytes };
        match there {
            Some(at) => self.catalogue.segments[at] = entry,
            None => {
                self.catalogue.segments.push(entry);
                self.catalogue.segments.sort_by_key(|s| s.shard);
            }
        }
        Ok(())
    }

    /// The file of the lists of `rows` by the codebook that is; written, if it is not there and whole.
    fn list(&self, rows: &Rows, anew: bool) -> Result<String> {
        let codebook = self.codebook.as_ref().map(|(name, codebook)| (name.as_str(), codebook));
        let name = lists_name(rows.facts.shard, codebook.map(|(name, _)| name));
        let path = self.folder.join(&name);
        let known = if anew { None } else { whole(Lists::open(&path))? };
        if known.is_none_or(|lists| !lists.are_of(rows, codebook.map(|(name, _)| name))) {
            write_lists(&path, rows, codebook)?;
        }
        Ok(name)
    }

    /// Copies what search needs from a shard's Parquet files.
    fn write_rows(&self, shard: u32, path: &Path, source: String) -> Result<()> {
        let mut durations: HashMap<u64, i64> = HashMap::new();
        for batch in batches(&shard_path(&self.run, "clips", shard), &["clip_id", "duration_ns"])? {
            let batch = batch?;
            let ids = column(&batch, "clip_id")?.as_primitive::<UInt64Type>().values();
            let all = column(&batch, "duration_ns")?.as_primitive::<Int64Type>().values();
            durations.extend(ids.iter().copied().zip(all.iter().copied()));
        }
        let dim = self.catalogue.dim;
        let mut writer = RowsWriter::create(path, shard, dim)?;
        let frames = shard_path(&self.run, "frames", shard);
        let mut open_clip = None;
        let columns = ["clip_id", "path", "label", "frame_index", "pts_ns", "embedding"];
        for batch in batches(&frames, &columns)? {
            let batch = batch?;
            let ids = column(&batch, "clip_id")?.as_primitive::<UInt64Type>().values();
            let paths = column(&batch, "path")?.as_string::<i32>();
            let labels = column(&batch, "label")?.as_string::<i32>();
            let indices = column(&batch, "frame_index")?.as_primitive::<UInt32Type>().values();
            let times = column(&batch, "pts_ns")?.as_primitive::<Int64Type>().values();
            let (values, found) = vectors(&batch, "embedding")?;
            if found != dim {
                bail!("{}: its vectors have {found} values, the run's {dim}", frames.display());
            }
            let mut row = 0;
            while let Some(id) = ids.get(row).copied() {
                if open_clip.replace(id) != Some(id) {
                    let duration_ns = durations.get(&id).copied();
                    let duration_ns = duration_ns
                        .with_context(|| format!("{}: clip {id} is not in clips/", frames.display()))?;
                    let label = labels.is_valid(row).then(|| labels.value(row));
                    writer.begin(Clip { id, path: paths.value(row), label, duration_ns });
                }
                let n = ids[row..].iter().take_while(|other| **other == id).count();
                let rows = row..row + n;
                let infos = indices[rows.clone()].iter().copied().zip(times[rows.clone()].iter().copied());
                writer.add(infos, &values[rows.start * dim..rows.end * dim])?;
                row += n;
            }
        }
        writer.finish(source)
    }

    /// Marks the rows of deleted clips.
    fn delete(&mut self, clips: &HashSet<u64>) -> Result<()> {
        for entry in &mut self.catalogue.segments {
            let there = entry.deleted.take();
            if clips.is_empty() {
                continue;
            }
            let rows = Rows::open(&self.folder.join(rows_name(entry.shard)))?;
            let (bits, n) = deleted::bits(&rows, clips)?;
            if n > 0 {
                // Deleted rows only become more, so their number tells one file from another.
                let name = format!("deleted-{:05}-{n}", entry.shard);
                let path = self.folder.join(&name);
                let known = if there.as_ref() == Some(&name) {
                    whole(deleted::read(&path, entry.n_rows))?
                } else {
                    None
                };
                if known.is_none_or(|known| known != bits) {
                    deleted::write(&path, &bits)?;
                }
                entry.deleted = Some(name);
            }
        }
        Ok(())
    }

    /// Removes files that the catalogue does not name.
    fn sweep(&self) -> Result<()> {
        let mut named: HashSet<String> = HashSet::from(["index.json".to_owned()]);
        named.extend(self.catalogue.codebook.iter().map(|c| c.name.clone()));
        for entry in &self.catalogue.segments {
            named.extend([rows_name(entry.shard), entry.lists.clone()]);
            named.extend(entry.deleted.clone());
        }
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_ours = ["rows-", "lists-", "codebook-", "deleted-"].iter().any(|p| name.starts_with(p));
            if is_ours && !named.contains(&name) {
                let path = entry.path();
                fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
            }
        }
        Ok(())
    }
}

/// Opens a shard's part.
pub(crate) fn open_segment(folder: &Path, entry: &SegmentEntry) -> Result<Segment> {
    let rows = Rows::open(&folder.join(rows_name(entry.shard)))?;
    let lists = Lists::open(&folder.join(&entry.lists))?;
    let (own, of) = (&lists.facts, &rows.facts);
    let is_own = (own.shard, own.dim, own.n_rows, &own.source) == (of.shard, of.dim, of.n_rows, &of.source);
    if !is_own || (of.shard, of.n_rows) != (entry.shard, entry.n_rows) {
        bail!(Damage { path: folder.join(&entry.lists), what: "it is of other rows".into() });
    }
    let deleted = match &entry.deleted {
        Some(name) => deleted::read(&folder.join(name), entry.n_rows)?,
        None => Vec::new(),
    };
    Ok(Segment { rows, lists, deleted })
}

/// None in place of what is not there or not whole: it is made anew.
pub(crate) fn whole<T>(read: Result<T>) -> Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(e) if e.is::<Damage>() => {
            tracing::warn!("{e:#}; it is made anew");
            Ok(None)
        }
        Err(e) if is_missing(&e) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether a file is not there.
pub fn is_missing(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::NotFound)
}
