//! Clips, ranked by their best frames.

use std::{
    collections::{HashMap, HashSet},
    fs, io,
    path::Path,
};

use anyhow::{Context as _, Result, anyhow, bail};
use half::f16;
use kernels::dot::dot_f16;

use super::{
    build::open_segment,
    catalogue::{self, Catalogue},
    codebook::Codebook,
    deleted,
    filter::Filter,
    probe::{Kind, Recall},
    scan::{self, Asked, Scored, Segment, TOGETHER},
    sealed::Damage,
};
use crate::index::{ledger::Standing, shard::shard_path};

/// Rows that a filter lets pass, up to which they are all scored, whatever lists there are.
const MATCHING_ROWS: usize = 50_000;
/// Reading a row costs so many times what scanning its code does.
const ROW_COST: usize = 8;
/// A search with a filter visits so many times the lists that the number of its rows asks for.
const FILTERED: usize = 4;
/// Rows asked for at first, for each clip wanted: a clip's frames come together.
const ROWS_PER_CLIP: usize = 4;
/// Rows before a frame, and after it, that may be of its moment.
const MOMENT_ROWS: usize = 4096;
/// A frame belongs to the moment around the best one if its score falls off by no more than this.
const MOMENT: f32 = 0.02;

/// The index of a run, open for searching.
#[derive(Debug)]
pub struct VectorIndex {
    dim: usize,
    segments: Vec<Segment>,
    codebook: Option<Codebook>,
    recall: Option<Recall>,
    n_rows: usize,
    n_deleted: usize,
}

/// What is asked.
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// A vector of unit length.
    pub vector: &'a [f32],
    /// What it was made from.
    pub kind: Kind,
    /// Clips wanted.
    pub clips: usize,
    /// Which may be answers.
    pub filter: &'a Filter,
}

/// The clips found, and how.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The best first.
    pub hits: Vec<Hit>,
    /// What was looked at.
    pub how: How,
}

/// What a search looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum How {
    /// Every row: nothing can be missed.
    All {
        /// How many.
        rows: usize,
    },
    /// The rows that a filter lets pass, every one.
    Matching {
        /// How many.
        rows: usize,
        /// Of how many.
        of: usize,
    },
    /// The lists nearest to the query.
    Lists {
        /// How many.
        lists: usize,
        /// Of how many.
        of: usize,
        /// Share of the nearest rows that so many lists found, as measured when the index was built.
        recall: Option<f64>,
    },
}

/// A row, by its place in its shard, and its cosine with the query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Nearest {
    /// Number of the shard.
    pub shard: u32,
    /// Row in its `frames/`.
    pub row: usize,
    /// Cosine.
    pub score: f32,
}

/// The best moment of a clip.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// Cosine of frame and query.
    pub score: f32,
    /// The clip's number in its run.
    pub clip_id: u64,
    /// The clip's file.
    pub path: String,
    /// The clip's label.
    pub label: Option<String>,
    /// Which frame.
    pub frame_index: u32,
    /// When it is shown.
    pub pts_ns: i64,
    /// When the moment around it begins: its first frame that is nearly as good.
    pub start_ns: i64,
    /// When it ends.
    pub end_ns: i64,
    /// The frame's vector.
    pub vector: Vec<f16>,
}

impl VectorIndex {
    /// Opens the index in `folder` of the run in folder `run`, and tells the published shards that it lacks.
    /// What is not whole, or of another run, is a [`Damage`].
    pub fn open(run: &Path, folder: &Path) -> Result<(Self, Vec<u32>)> {
        let none = || io::Error::new(io::ErrorKind::NotFound, "there is no index");
        let catalogue = Catalogue::read(folder)?.ok_or_else(none)?;
        let ledger = run.join("ledger");
        let ledger_bytes =
            fs::metadata(&ledger).with_context(|| format!("cannot read {}", ledger.display()))?.len();
        let mut missing = Vec::new();
        let mut deleted = None;
        if ledger_bytes != catalogue.ledger_bytes {
            let Standing { shards, deleted: clips, .. } = Standing::read(run)?;
            deleted = Some(clips);
            let own: HashSet<u32> = catalogue.segments.iter().map(|s| s.shard).collect();
            missing.extend(shards.iter().copied().filter(|s| !own.contains(s)));
            if own.len() + missing.len() != shards.len() {
                return Err(damage(folder, "it holds shards that the run does not"));
            }
        }
        for entry in &catalogue.segments {
            let path = shard_path(run, "frames", entry.shard);
            let bytes = fs::metadata(&path).with_context(|| format!("cannot read {}", path.display()))?.len();
            if bytes != entry.frames_bytes {
                return Err(damage(
                    folder,
                    &format!("{} is another file than it was made from", path.display()),
                ));
            }
        }
        let open = |entry| open_segment(folder, entry);
        let mut segments = catalogue.segments.iter().map(open).collect::<Result<Vec<Segment>>>()?;
        // The index may not know yet what the ledger says.
        for clips in deleted.iter().filter(|clips| !clips.is_empty()) {
            for segment in &mut segments {
                segment.deleted = deleted::bits(&segment.rows, clips)?.0;
            }
        }
        let codebook = match &catalogue.codebook {
            Some(entry) => Some(Codebook::open(&folder.join(&entry.name))?),
            None => None,
        };
        let n_lists = codebook.as_ref().map_or(1, Codebook::n_lists);
        let name = catalogue.codebook.as_ref().map(|entry| entry.name.as_str());
        let is_named =
            |codebook: &Codebook| Some(codebook.name().as_str()) == name && codebook.dim == catalogue.dim;
        let is_own = |s: &Segment| {
            (s.lists.facts.n_lists, s.rows.facts.dim) == (n_lists, catalogue.dim)
                && s.lists.facts.codebook.as_deref() == name
        };
        if !codebook.as_ref().is_none_or(is_named) || !segments.iter().all(is_own) {
            return Err(damage(folder, "its lists are of another codebook"));
        }
        let n_rows = catalogue.n_rows();
        let n_deleted = segments.iter().flat_map(|s| &s.deleted).map(|bits| bits.count_ones() as usize).sum();
        let recall = catalogue.recall;
        Ok((Self { dim: catalogue.dim, segments, codebook, recall, n_rows, n_deleted }, missing))
    }

    /// Length of its vectors.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Rows that it holds.
    pub fn n_rows(&self) -> usize {
        self.n_rows
    }

    /// Those that are not deleted.
    fn n_live(&self) -> usize {
        self.n_rows - self.n_deleted
    }

    /// Lists of its codebook, if it has one.
    pub fn n_lists(&self) -> Option<usize> {
        self.codebook.as_ref().map(Codebook::n_lists)
    }

    /// What its lists find, where it has any.
    pub fn recall(&self) -> Option<&Recall> {
        self.recall.as_ref()
    }

    /// The `rows` nearest rows. `lists` says how many lists are visited, in place
    /// of what the probe found; 0 scans all.
    pub fn nearest(
        &self,
        vector: &[f32],
        kind: Kind,
        rows: usize,
        lists: Option<usize>,
    ) -> Result<Vec<Nearest>> {
        self.check(vector)?;
        let asked = Asked { segments: &self.segments, want: rows, admits: None };
        let lists = lists.unwrap_or_else(|| self.lists(kind, rows, self.n_live()));
        let found = match &self.codebook {
            Some(codebook) if lists > 0 => scan::nearest_lists(&asked, codebook, vector, lists)?,
            _ => scan::all(&asked, &[vector])?.pop().unwrap_or_default(),
        };
        Ok(self.named(found))
    }

    /// [`Self::nearest`] of several queries by one scan of all rows.
    pub fn nearest_of_all(&self, vectors: &[&[f32]], rows: usize) -> Result<Vec<Vec<Nearest>>> {
        vectors.iter().try_for_each(|v| self.check(v))?;
        let asked = Asked { segments: &self.segments, want: rows, admits: None };
        Ok(scan::all(&asked, vectors)?.into_iter().map(|found| self.named(found)).collect())
    }

    fn named(&self, found: Vec<Scored>) -> Vec<Nearest> {
        let shard = |s: &Scored| self.segments[s.segment].rows.facts.shard;
        found.iter().map(|s| Nearest { shard: shard(s), row: s.row, score: s.score }).collect()
    }

    fn check(&self, vector: &[f32]) -> Result<()> {
        if vector.len() != self.dim {
            bail!("the query has {} values, the run's vectors {}", vector.len(), self.dim);
        }
        if vector.iter().any(|v| !v.is_finite()) {
            bail!("the query is no vector of numbers");
        }
        if vector.iter().all(|v| *v == 0.0) {
            bail!("the query is a vector without length");
        }
        Ok(())
    }

    /// Lists to visit for so many rows, of which `matching` may be answers. 0: all are to be scanned.
    fn lists(&self, kind: Kind, rows: usize, matching: usize) -> usize {
        let (Some(codebook), Some(recall)) = (&self.codebook, &self.recall) else { return 0 };
        let points = recall.points(kind);
        let Some(last) = points.last() else { return 0 };
        let lists = match recall.point(kind, rows) {
            Some(point) => point.lists,
            None => last.lists * rows.div_ceil(last.rows),
        };
        // Where fewer rows can be answers, the nearest of them lie further away; and a filter may leave out
        // just what lies near.
        let further = if matching < self.n_live() { FILTERED } else { 1 };
        let lists = lists.saturating_mul(further).saturating_mul(self.n_rows) / matching.max(1);
        if lists * 2 >= codebook.n_lists() { 0 } else { lists.max(1) }
    }

    /// Number and path of the clips that a filter lets pass.
    pub fn clips(&self, filter: &Filter) -> Result<Vec<(u64, String)>> {
        let mut clips = Vec::new();
        for Segment { rows, .. } in &self.segments {
            for clip in 0..rows.facts.n_clips {
                let clip = rows.clip(clip)?;
                if filter.admits_clip(&clip) {
                    clips.push((clip.id, clip.path.to_owned()));
                }
            }
        }
        Ok(clips)
    }

    /// The clips whose best frames are nearest to each question's vector. Where all rows are to be scanned,
    /// several questions share a scan.
    pub fn find(&self, questions: &[Question<'_>]) -> Result<Vec<Answer>> {
        questions.iter().try_for_each(|q| self.check(q.vector))?;
        let mut answers: Vec<Option<Answer>> = vec![None; questions.len()];
        let together: Vec<usize> = (0..questions.len())
            .filter(|i| {
                let Question { kind, clips, filter, .. } = questions[*i];
                filter.is_open() && self.lists(kind, rows_for(clips), self.n_live()) == 0
            })
            .collect();
        for chunk in together.chunks(TOGETHER).filter(|chunk| chunk.len() > 1) {
            let want = chunk.iter().map(|i| rows_for(questions[*i].clips)).max().unwrap_or(1);
            let asked = Asked { segments: &self.segments, want, admits: None };
            let vectors: Vec<&[f32]> = chunk.iter().map(|i| questions[*i].vector).collect();
            for (i, found) in chunk.iter().zip(scan::all(&asked, &vectors)?) {
                let is_everything = found.len() < want;
                let best = self.by_clip(found)?;
                if best.len() >= questions[*i].clips || is_everything {
                    let how = How::All { rows: self.n_rows };
                    answers[*i] = Some(Answer { hits: self.hits(best, &questions[*i])?, how });
                }
            }
        }
        let alone = answers.into_iter().zip(questions);
        alone.map(|(answer, question)| answer.map_or_else(|| self.find_one(question), Ok)).collect()
    }

    fn find_one(&self, question: &Question<'_>) -> Result<Answer> {
        let matching = Matching::of(&self.segments, question.filter)?;
        let n_matching = matching.as_ref().map_or(self.n_live(), |m| m.n_rows);
        let admits = matching.as_ref().map(|m| {
            move |segment: usize, row: usize| m.admits(&self.segments, question.filter, segment, row)
        });
        let mut asked = Asked {
            segments: &self.segments,
            want: rows_for(question.clips),
            admits: admits.as_ref().map(|admits| admits as scan::Admits<'_>),
        };
        let few =
            n_matching * ROW_COST <= self.n_rows || (self.codebook.is_some() && n_matching <= MATCHING_ROWS);
        if let Some(matching) = matching.as_ref().filter(|_| few) {
            let best = matching.best_frames(&asked, question)?;
            let how = How::Matching { rows: n_matching, of: self.n_rows };
            return Ok(Answer { hits: self.hits(best, question)?, how });
        }
        loop {
            let lists = self.lists(question.kind, asked.want, n_matching);
            let (found, how) = match &self.codebook {
                Some(codebook) if lists > 0 => {
                    let recall = self.recall.as_ref().and_then(|r| r.point(question.kind, asked.want));
                    let recall = recall.filter(|_| question.filter.is_open()).map(|p| p.recall);
                    let found = scan::nearest_lists(&asked, codebook, question.vector, lists)?;
                    (found, How::Lists { lists, of: codebook.n_lists(), recall })
                }
                _ => {
                    let found = scan::all(&asked, &[question.vector])?.pop().unwrap_or_default();
                    (found, How::All { rows: self.n_rows })
                }
            };
            let is_everything = lists == 0 && found.len() < asked.want;
            let best = self.by_clip(found)?;
            if best.len() >= question.clips || is_everything {
                return Ok(Answer { hits: self.hits(best, question)?, how });
            }
            // Frames of few clips filled the answer.
            asked.want = asked.want.saturating_mul(4);
        }
    }

    /// The best row of each clip, in order.
    fn by_clip(&self, found: Vec<Scored>) -> Result<Vec<Scored>> {
        let mut seen = HashSet::new();
        let mut best = Vec::new();
        for scored in found {
            let clip = self.segments[scored.segment].rows.frame(scored.row)?.clip;
            if seen.insert((scored.segment, clip)) {
                best.push(scored);
            }
        }
        Ok(best)
    }

    fn hits(&self, best: Vec<Scored>, question: &Question<'_>) -> Result<Vec<Hit>> {
        best.into_iter().take(question.clips).map(|scored| self.hit(scored, question)).collect()
    }

    /// The moment around a clip's best frame.
    fn hit(&self, scored: Scored, question: &Question<'_>) -> Result<Hit> {
        let rows = &self.segments[scored.segment].rows;
        let frame = rows.frame(scored.row)?;
        let clip = rows.clip(frame.clip)?;
        let (mut bytes, mut vectors) = (Vec::new(), Vec::new());
        let all = rows.rows_of(frame.clip)?;
        // Of a very long clip, what is around the frame.
        let near =
            scored.row.saturating_sub(MOMENT_ROWS).max(all.start)..(scored.row + MOMENT_ROWS).min(all.end);
        let frames = rows.read_frames(near.clone(), &mut bytes, &mut vectors)?;
        let own = scored.row.checked_sub(near.start).filter(|own| *own < frames.len());
        let own = own.with_context(|| format!("row {} is of no clip", scored.row))?;
        let scores: Vec<f32> =
            vectors.chunks_exact(self.dim).map(|vector| dot_f16(vector, question.vector)).collect();
        let floor = moment_floor(&scores, own);
        let belongs = |i: &usize| scores[*i] >= floor && question.filter.admits_time(frames[*i].pts_ns);
        let first = (0..own).rev().take_while(belongs).last().unwrap_or(own);
        let last = (own + 1..scores.len()).take_while(belongs).last().unwrap_or(own);
        let clip_end = rows.frame(all.start)?.pts_ns.saturating_add(clip.duration_ns);
        let next = if near.end < all.end { Some(rows.frame(near.end)?) } else { None };
        let end_ns = frames
            .get(last + 1)
            .copied()
            .or(next)
            .map_or(clip_end.max(frames[last].pts_ns), |next| next.pts_ns);
        Ok(Hit {
            score: scored.score,
            clip_id: clip.id,
            path: clip.path.to_owned(),
            label: clip.label.map(str::to_owned),
            frame_index: frame.index,
            pts_ns: frame.pts_ns,
            start_ns: frames[first].pts_ns,
            end_ns,
            vector: vectors[own * self.dim..(own + 1) * self.dim].to_vec(),
        })
    }
}

/// Rows to ask for, so that as many clips may be among them.
fn rows_for(clips: usize) -> usize {
    clips.saturating_mul(ROWS_PER_CLIP).max(32)
}

/// The least score of a frame of the moment around the best one: half the way down to the clip's median,
/// or a little down where the whole clip looks the same.
fn moment_floor(scores: &[f32], best: usize) -> f32 {
    let mut sorted = scores.to_vec();
    let middle = sorted.len() / 2;
    let (_, median, _) = sorted.select_nth_unstable_by(middle, f32::total_cmp);
    scores[best] - MOMENT.max((scores[best] - *median) / 2.0)
}

fn damage(folder: &Path, what: &str) -> anyhow::Error {
    anyhow!(Damage { path: catalogue::path(folder), what: what.to_owned() })
}

/// The clips that a filter lets pass.
struct Matching {
    /// By segment, a bit a clip.
    clips: Vec<Vec<u64>>,
    /// All of their rows.
    n_rows: usize,
}

impl Matching {
    /// None where everything passes.
    fn of(segments: &[Segment], filter: &Filter) -> Result<Option<Self>> {
        if filter.is_open() {
            return Ok(None);
        }
        let mut this = Self { clips: Vec::new(), n_rows: 0 };
        for segment in segments {
            let rows = &segment.rows;
            let mut bits = vec![0u64; rows.facts.n_clips.div_ceil(64)];
            let is_by_row = filter.is_by_frame() || !segment.deleted.is_empty();
            for clip in 0..rows.facts.n_clips {
                if !filter.admits_clip(&rows.clip(clip)?) {
                    continue;
                }
                bits[clip / 64] |= 1 << (clip % 64);
                let own = rows.rows_of(clip)?;
                if !is_by_row {
                    this.n_rows += own.len();
                    continue;
                }
                for row in own {
                    let passes = !segment.is_deleted(row) && filter.admits_time(rows.frame(row)?.pts_ns);
                    this.n_rows += usize::from(passes);
                }
            }
            this.clips.push(bits);
        }
        Ok(Some(this))
    }

    fn has(&self, segment: usize, clip: usize) -> bool {
        self.clips[segment][clip / 64] >> (clip % 64) & 1 == 1
    }

    fn admits(&self, segments: &[Segment], filter: &Filter, segment: usize, row: usize) -> Result<bool> {
        let frame = segments[segment].rows.frame(row)?;
        Ok(self.has(segment, frame.clip) && filter.admits_time(frame.pts_ns))
    }

    /// The best row of every matching clip, in order; every one of its rows is scored.
    fn best_frames(&self, asked: &Asked<'_>, question: &Question<'_>) -> Result<Vec<Scored>> {
        let (mut bytes, mut vectors) = (Vec::new(), Vec::new());
        let mut best: HashMap<(usize, usize), Scored> = HashMap::new();
        for (number, segment) in asked.segments.iter().enumerate() {
            for clip in (0..segment.rows.facts.n_clips).filter(|clip| self.has(number, *clip)) {
                let rows = segment.rows.rows_of(clip)?;
                segment.rows.read(rows.clone(), &mut bytes, &mut vectors)?;
                for (row, vector) in rows.zip(vectors.chunks_exact(question.vector.len())) {
                    if segment.is_deleted(row)
                        || (question.filter.is_by_frame() && !scan::admits(asked, number, row)?)
                    {
                        continue;
                    }
                    let scored = Scored { score: dot_f16(vector, question.vector), segment: number, row };
                    if scored.score.is_nan() {
                        continue;
                    }
                    let known = best.entry((number, clip)).or_insert(scored);
                    if scored.score > known.score {
                        *known = scored;
                    }
                }
            }
        }
        let mut best: Vec<Scored> = best.into_values().collect();
        best.sort_unstable_by(scan::better_first);
        Ok(best)
    }
}

/// The `n` hits that are good and unlike one another: each is the one whose score, less its likeness to
/// what was taken before, is the largest (maximal marginal relevance). Scores and likenesses are first
/// brought to the same range, for those of words lie close together.
pub fn diverse<T>(hits: Vec<T>, n: usize, hit: impl Fn(&T) -> &Hit) -> Vec<T> {
    let range = |values: &mut dyn Iterator<Item = f32>| {
        let (least, most) = values.fold((f32::INFINITY, f32::NEG_INFINITY), |(l, m), v| (l.min(v), m.max(v)));
        move |v: f32| if most > least { (v - least) / (most - least) } else { 0.0 }
    };
    let wide: Vec<Vec<f32>> =
        hits.iter().map(|h| hit(h).vector.iter().map(|v| v.to_f32()).collect()).collect();
    let likeness = |a: usize, b: usize| dot_f16(&hit(&hits[a]).vector, &wide[b]);
    let relevance = range(&mut hits.iter().map(|h| hit(h).score));
    let pairs = (0..hits.len()).flat_map(|a| (0..a).map(move |b| (a, b)));
    let similarity = range(&mut pairs.map(|(a, b)| likeness(a, b)));
    let mut rest: Vec<usize> = (0..hits.len()).collect();
    // To what was taken before.
    let mut nearest = vec![0f32; hits.len()];
    let mut taken = Vec::new();
    while taken.len() < n && !rest.is_empty() {
        let worth = |i: &usize| relevance(hit(&hits[*i]).score) - nearest[*i];
        let best =
            (1..rest.len()).fold(0, |best, i| if worth(&rest[i]) > worth(&rest[best]) { i } else { best });
        let best = rest.remove(best);
        for i in &rest {
            nearest[*i] = nearest[*i].max(similarity(likeness(*i, best)));
        }
        taken.push(best);
    }
    let mut hits: Vec<Option<T>> = hits.into_iter().map(Some).collect();
    taken.into_iter().filter_map(|i| hits[i].take()).collect()
}
