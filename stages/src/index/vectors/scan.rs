//! The rows nearest to a query: found in eight bits, told apart in float16.
//!
//! A score in eight bits errs by a little whose deviation is known from the scales, so what may be among
//! the best is kept and scored again from the rows themselves. Where all rows are scanned nothing is missed;
//! where lists are visited, what lies in others.
//!
//! A card could take the place of [`all`]: it has the codes' layout, the queries and the kept to give back.

use std::ops::Range;

use anyhow::Result;
use half::f16;
use kernels::{
    codes::{Queries, deviation, products},
    dot::dot_f16,
};

use super::{
    codebook::Codebook,
    keep::{Candidate, Keep},
    lists::Lists,
    parallel::parallel,
    rows::Rows,
};

/// How far a score is trusted to err, in its deviations. Two scores' difference errs so much once in 40,000
/// times, and only for a row at the very edge of the best does that matter.
const DEVIATIONS: f32 = 6.0;
/// Queries that share a scan.
pub const TOGETHER: usize = 8;
/// Rows scored at once: their products, of so many queries, stay in the nearest cache.
const BLOCK_ROWS: usize = 256;
/// Rows below which a second thread costs more than it gives.
const PARALLEL_ROWS: usize = 50_000;

/// One shard's part of the index.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) rows: Rows,
    pub(crate) lists: Lists,
    /// A bit a row that is deleted; empty where none is.
    pub(crate) deleted: Vec<u64>,
}

impl Segment {
    pub(crate) fn is_deleted(&self, row: usize) -> bool {
        self.deleted.get(row / 64).is_some_and(|bits| bits >> (row % 64) & 1 == 1)
    }
}

/// Whether a row may be an answer.
pub(crate) type Admits<'a> = &'a (dyn Fn(usize, usize) -> Result<bool> + Sync);

/// A row and its exact score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Scored {
    pub(crate) score: f32,
    pub(crate) segment: usize,
    pub(crate) row: usize,
}

/// What is searched, and for how many rows.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) segments: &'a [Segment],
    /// Rows wanted.
    pub(crate) want: usize,
    pub(crate) admits: Option<Admits<'a>>,
}

/// The best rows of all, for each query.
pub(crate) fn all(asked: &Asked<'_>, queries: &[&[f32]]) -> Result<Vec<Vec<Scored>>> {
    let coded = Queries::new(queries.iter().copied());
    let work: Vec<(usize, Range<usize>)> = asked
        .segments
        .iter()
        .enumerate()
        .flat_map(|(i, segment)| {
            let n = segment.lists.facts.n_rows;
            (0..n).step_by(BLOCK_ROWS).map(move |from| (i, from..(from + BLOCK_ROWS).min(n)))
        })
        .collect();
    let scan = |blocks: Range<usize>| -> Result<Vec<Keep>> {
        let mut keeps = keeps(asked, &coded);
        let mut room = vec![0; BLOCK_ROWS * queries.len()];
        for (segment, places) in &work[blocks] {
            score(asked, *segment, places.clone(), &coded, &mut room, &mut keeps)?;
        }
        Ok(keeps)
    };
    let parts = if work.len() * BLOCK_ROWS * queries.len() < PARALLEL_ROWS {
        vec![scan(0..work.len())]
    } else {
        parallel(work.len(), scan)
    };
    let mut merged = keeps(asked, &coded);
    for part in parts {
        for (merged, keep) in merged.iter_mut().zip(part?) {
            keep.done().into_iter().for_each(|candidate| merged.push(candidate));
        }
    }
    let pairs = merged.into_iter().zip(queries).enumerate();
    pairs.map(|(i, (keep, query))| rescore(asked, query, deviation_of(asked, &coded, i), keep)).collect()
}

/// The best rows of the `n_lists` lists nearest to the query.
pub(crate) fn nearest_lists(
    asked: &Asked<'_>,
    codebook: &Codebook,
    query: &[f32],
    n_lists: usize,
) -> Result<Vec<Scored>> {
    let coded = Queries::new([query]);
    let mut keeps = keeps(asked, &coded);
    let mut room = vec![0; BLOCK_ROWS];
    for list in codebook.nearest(&coded, n_lists) {
        for (i, segment) in asked.segments.iter().enumerate() {
            let places = segment.lists.list(list as usize);
            for from in places.clone().step_by(BLOCK_ROWS) {
                let block = from..(from + BLOCK_ROWS).min(places.end);
                score(asked, i, block, &coded, &mut room, &mut keeps)?;
            }
        }
    }
    let deviation = deviation_of(asked, &coded, 0);
    keeps.pop().map_or(Ok(Vec::new()), |keep| rescore(asked, query, deviation, keep))
}

fn deviation_of(asked: &Asked<'_>, queries: &Queries, query: usize) -> f32 {
    let most = asked.segments.iter().map(|s| s.lists.facts.most_scale).fold(0.0, f32::max);
    deviation(most, queries.scale(query))
}

fn keeps(asked: &Asked<'_>, queries: &Queries) -> Vec<Keep> {
    let keep = |query| Keep::new(asked.want, DEVIATIONS * deviation_of(asked, queries, query));
    (0..queries.len()).map(keep).collect()
}

/// Scores the rows at `places` of a segment.
fn score(
    asked: &Asked<'_>,
    number: usize,
    places: Range<usize>,
    queries: &Queries,
    room: &mut [i32],
    keeps: &mut [Keep],
) -> Result<()> {
    let segment = &asked.segments[number];
    let scales = segment.lists.scales(&places)?;
    let found = &mut room[..places.len() * queries.len()];
    products(segment.lists.codes(&places)?, queries, found);
    let is_open = asked.admits.is_none() && segment.deleted.is_empty();
    for (query, (keep, found)) in keeps.iter_mut().zip(found.chunks_exact(places.len().max(1))).enumerate() {
        queries.above(query, found, scales, keep.floor(), |i, score| {
            let place = places.start + i;
            if is_open || admits(asked, number, segment.lists.row(place)?)? {
                keep.push(Candidate { score, segment: number as u32, place: place as u32 });
            }
            anyhow::Ok(keep.floor())
        })?;
    }
    Ok(())
}

pub(crate) fn admits(asked: &Asked<'_>, segment: usize, row: usize) -> Result<bool> {
    Ok(!asked.segments[segment].is_deleted(row)
        && asked.admits.map_or(Ok(true), |admits| admits(segment, row))?)
}

/// The best of what was kept, by the rows themselves.
fn rescore(asked: &Asked<'_>, query: &[f32], deviation: f32, keep: Keep) -> Result<Vec<Scored>> {
    let (mut bytes, mut vector): (Vec<u8>, Vec<f16>) = Default::default();
    let mut best: Vec<Scored> = Vec::new();
    for Candidate { score, segment, place } in keep.done() {
        // The rest scores less still: none of it can come before the last of the best.
        let last = asked.want.checked_sub(1).and_then(|last| best.get(last));
        if last.is_some_and(|last| score + DEVIATIONS * deviation < last.score) {
            break;
        }
        let segment = segment as usize;
        let Segment { rows, lists, .. } = &asked.segments[segment];
        let row = lists.row(place as usize)?;
        rows.read(row..row + 1, &mut bytes, &mut vector)?;
        let scored = Scored { score: dot_f16(&vector, query), segment, row };
        if scored.score.is_nan() {
            // An engine gave no numbers; it comes before everything in the order of floats.
            continue;
        }
        let at = best.partition_point(|b| better_first(b, &scored).is_lt());
        if at < asked.want {
            best.insert(at, scored);
            best.truncate(asked.want);
        }
    }
    Ok(best)
}

/// Ties go to the row that was stored first.
pub(crate) fn better_first(a: &Scored, b: &Scored) -> std::cmp::Ordering {
    b.score.total_cmp(&a.score).then((a.segment, a.row).cmp(&(b.segment, b.row)))
}
