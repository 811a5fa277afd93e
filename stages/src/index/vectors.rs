//! Search: an exact scan of the published float16 vectors.
//!
//! The vectors are read from the shards themselves, a row group at a time, so nothing has to be
//! built first and memory does not grow with the run. Each clip answers with its best frame.

use std::{collections::HashMap, path::Path};

use anyhow::{Context as _, Result, anyhow, bail};
use arrow::{
    array::{Array as _, AsArray as _},
    datatypes::{Int64Type, UInt32Type, UInt64Type},
};
use kernels::dot::dot_f16;

use super::{
    ledger::Standing,
    read::{batches, column, vectors},
    shard::shard_path,
};

/// The best frame of a clip for a query.
#[derive(Clone, Debug, PartialEq)]
pub struct Hit {
    /// Cosine of frame and query.
    pub score: f32,
    /// The clip's number.
    pub clip_id: u64,
    /// The clip's file.
    pub path: String,
    /// The clip's label.
    pub label: Option<String>,
    /// Which frame.
    pub frame_index: u32,
    /// When it is shown.
    pub pts_ns: i64,
}

/// A clip's best frame so far, before its name is looked up.
#[derive(Clone, Copy)]
struct Best {
    score: f32,
    shard: u32,
    frame_index: u32,
    pts_ns: i64,
}

/// The `k` clips of the run in `folder` whose best frames are nearest to the unit vector `query`.
pub fn search(folder: &Path, query: &[f32], k: usize) -> Result<Vec<Hit>> {
    let shards = Standing::read(folder)?.shards;
    if shards.is_empty() {
        bail!("{} holds no finished shard: nothing is indexed yet", folder.display());
    }
    let n_threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(shards.len());
    let parts: Vec<Result<HashMap<u64, Best>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..n_threads)
            .map(|first| {
                let own: Vec<u32> = shards.iter().copied().skip(first).step_by(n_threads).collect();
                scope.spawn(move || {
                    let mut best = HashMap::new();
                    for shard in own {
                        scan(folder, shard, query, &mut best)?;
                    }
                    Ok(best)
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|t| t.join().unwrap_or_else(|_| Err(anyhow!("a search thread panicked"))))
            .collect()
    });
    let mut best: Vec<(u64, Best)> = Vec::new();
    for part in parts {
        // A clip's rows are in one shard, so parts do not share clips.
        best.extend(part?);
    }
    best.sort_by(|(a_id, a), (b_id, b)| b.score.total_cmp(&a.score).then(a_id.cmp(b_id)));
    best.truncate(k);
    names(folder, &best)
}

fn scan(folder: &Path, shard: u32, query: &[f32], best: &mut HashMap<u64, Best>) -> Result<()> {
    let path = shard_path(folder, "frames", shard);
    for batch in batches(&path, &["clip_id", "frame_index", "pts_ns", "embedding"])? {
        let batch = batch?;
        let ids = column(&batch, "clip_id")?.as_primitive::<UInt64Type>();
        let frames = column(&batch, "frame_index")?.as_primitive::<UInt32Type>();
        let times = column(&batch, "pts_ns")?.as_primitive::<Int64Type>();
        let (values, dim) = vectors(&batch, "embedding")?;
        if dim != query.len() {
            bail!("{}: vectors have {dim} values, the query has {}", path.display(), query.len());
        }
        for (row, vector) in values.chunks_exact(dim).enumerate() {
            let score = dot_f16(vector, query);
            let id = ids.value(row);
            let better = best.get(&id).is_none_or(|b| score > b.score);
            if better {
                let found = Best { score, shard, frame_index: frames.value(row), pts_ns: times.value(row) };
                best.insert(id, found);
            }
        }
    }
    Ok(())
}

/// Paths and labels of the found clips, from `clips/`.
fn names(folder: &Path, best: &[(u64, Best)]) -> Result<Vec<Hit>> {
    let mut named: HashMap<u64, (String, Option<String>)> = HashMap::new();
    let mut shards: Vec<u32> = best.iter().map(|(_, b)| b.shard).collect();
    shards.sort_unstable();
    shards.dedup();
    for shard in shards {
        for batch in batches(&shard_path(folder, "clips", shard), &["clip_id", "path", "label"])? {
            let batch = batch?;
            let ids = column(&batch, "clip_id")?.as_primitive::<UInt64Type>();
            let paths = column(&batch, "path")?.as_string::<i32>();
            let labels = column(&batch, "label")?.as_string::<i32>();
            for row in 0..batch.num_rows() {
                if best.iter().any(|(id, _)| *id == ids.value(row)) {
                    let label = labels.is_valid(row).then(|| labels.value(row).to_owned());
                    named.insert(ids.value(row), (paths.value(row).to_owned(), label));
                }
            }
        }
    }
    best.iter()
        .map(|(id, b)| {
            let (path, label) =
                named.remove(id).with_context(|| format!("clip {id} is in frames/, not in clips/"))?;
            Ok(Hit {
                score: b.score,
                clip_id: *id,
                path,
                label,
                frame_index: b.frame_index,
                pts_ns: b.pts_ns,
            })
        })
        .collect()
}
