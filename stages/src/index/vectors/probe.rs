//! How much the lists find of what there is: measured on queries whose answers are known.

use anyhow::Result;
use half::slice::HalfFloatSliceExt as _;
use serde::{Deserialize, Serialize};

use super::{
    codebook::Codebook,
    parallel::parallel,
    scan::{self, Asked, Scored, Segment, TOGETHER},
};

/// Stored rows that are asked for.
const FRAMES: usize = 200;
/// Numbers of rows wanted at which recall is measured.
const WANTED: [usize; 3] = [10, 100, 1000];

/// What a query looks like. Frames lie near their lists' centroids, texts far from all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Made from pictures.
    Frame,
    /// Made from words.
    Text,
}

/// Lists to visit, by what is asked.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Recall {
    /// What was aimed at.
    pub target: f64,
    /// Rows that there were.
    pub rows: usize,
    /// Queries like stored frames.
    pub frame: Vec<Point>,
    /// Queries by words; empty where the model has no text tower.
    pub text: Vec<Point>,
}

/// Lists that find enough of the nearest rows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Point {
    /// Rows wanted.
    pub rows: usize,
    /// Lists visited.
    pub lists: usize,
    /// Share of the truly nearest that were found, over the probe's queries.
    pub recall: f64,
    /// Queries of the probe.
    pub queries: usize,
}

impl Recall {
    /// What was measured of queries of a kind; of frames, where words were not asked.
    pub fn points(&self, kind: Kind) -> &[Point] {
        if kind == Kind::Text && !self.text.is_empty() { &self.text } else { &self.frame }
    }

    /// Where so many rows are wanted: the next larger number that was measured.
    pub fn point(&self, kind: Kind, rows: usize) -> Option<Point> {
        self.points(kind).iter().find(|p| p.rows >= rows).copied()
    }
}

/// Measures how many lists find `target` of the nearest rows. `texts` are vectors of words.
pub(crate) fn measure(
    segments: &[Segment],
    codebook: &Codebook,
    target: f64,
    texts: &[Vec<f32>],
) -> Result<Recall> {
    let frames = stored(segments, codebook.dim)?;
    Ok(Recall {
        target,
        rows: segments.iter().map(|s| s.lists.facts.n_rows).sum(),
        frame: points(segments, codebook, target, &frames)?,
        text: points(
            segments,
            codebook,
            target,
            &texts.iter().map(|t| (t.clone(), None)).collect::<Vec<_>>(),
        )?,
    })
}

/// A query, and the stored row that it is, which is no answer.
type Probe = (Vec<f32>, Option<(usize, usize)>);

fn stored(segments: &[Segment], dim: usize) -> Result<Vec<Probe>> {
    let n_rows: usize = segments.iter().map(|s| s.lists.facts.n_rows).sum();
    let (mut bytes, mut vector) = (Vec::new(), Vec::new());
    let mut probes = Vec::new();
    for i in 0..FRAMES.min(n_rows) {
        let mut row = (2 * i + 1) * n_rows / (2 * FRAMES.min(n_rows));
        let mut segment = 0;
        while row >= segments[segment].lists.facts.n_rows {
            row -= segments[segment].lists.facts.n_rows;
            segment += 1;
        }
        if segments[segment].is_deleted(row) {
            continue;
        }
        segments[segment].rows.read(row..row + 1, &mut bytes, &mut vector)?;
        let mut query = vec![0.0; dim];
        vector.convert_to_f32_slice(&mut query);
        probes.push((query, Some((segment, row))));
    }
    Ok(probes)
}

/// Rows of an answer less the query's own.
fn others(found: Vec<Scored>, own: Option<(usize, usize)>) -> impl Iterator<Item = (usize, usize)> {
    found.into_iter().map(|s| (s.segment, s.row)).filter(move |row| Some(*row) != own)
}

fn points(segments: &[Segment], codebook: &Codebook, target: f64, probes: &[Probe]) -> Result<Vec<Point>> {
    let n_rows: usize = segments.iter().map(|s| s.lists.facts.n_rows).sum();
    let asked = |want| Asked { segments, want: want + 1, admits: None };
    let most = WANTED.into_iter().filter(|w| *w * 20 <= n_rows).max().unwrap_or(WANTED[0]);
    let mut truth: Vec<Vec<(usize, usize)>> = Vec::new();
    for probes in probes.chunks(TOGETHER) {
        let queries: Vec<&[f32]> = probes.iter().map(|(query, _)| query.as_slice()).collect();
        let found = scan::all(&asked(most), &queries)?;
        truth.extend(found.into_iter().zip(probes).map(|(found, (_, own))| others(found, *own).collect()));
    }
    let mut points = Vec::new();
    let mut ladder = ladder(codebook.n_lists());
    for rows in WANTED.into_iter().filter(|w| *w <= most && !probes.is_empty()) {
        while let Some(lists) = ladder.first().copied() {
            let parts = parallel(probes.len(), |range| {
                range
                    .map(|i| -> Result<(usize, usize)> {
                        let (query, own) = &probes[i];
                        let found = scan::nearest_lists(&asked(rows), codebook, query, lists)?;
                        let found: Vec<_> = others(found, *own).take(rows).collect();
                        let truth = &truth[i][..rows.min(truth[i].len())];
                        Ok((truth.iter().filter(|row| found.contains(row)).count(), truth.len()))
                    })
                    .collect::<Result<Vec<_>>>()
            });
            let (mut hits, mut all) = (0, 0);
            for part in parts {
                for (found, there) in part? {
                    hits += found;
                    all += there;
                }
            }
            let recall = hits as f64 / all.max(1) as f64;
            if recall >= target || ladder.len() == 1 {
                points.push(Point { rows, lists, recall, queries: probes.len() });
                break;
            }
            // More rows never need fewer lists.
            ladder.remove(0);
        }
    }
    Ok(points)
}

/// 1, 2, 3, 4, 6, 8, 12, 16 … up to all.
fn ladder(n_lists: usize) -> Vec<usize> {
    let mut steps = vec![1];
    let mut step = 2;
    while step < n_lists {
        steps.push(step);
        if step * 3 / 2 < n_lists {
            steps.push(step * 3 / 2);
        }
        step *= 2;
    }
    steps.push(n_lists);
    steps.dedup();
    steps
}
