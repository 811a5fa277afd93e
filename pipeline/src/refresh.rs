//! The vector index of a run: kept up with its shards, tuned, told of.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use stages::{
    encode::{joint::JointSpace, network::Libraries, text::TextEncoder},
    index::{
        ledger::{Ledger, Standing, lock},
        rewrite_rejects,
        vectors::{Builder, Damage, Filter, Point, Settings, VectorIndex, folder, is_missing},
    },
    model::{Home, Model},
};

use crate::record::Record;

/// Words that the probe asks for, a line each.
const PROBE_WORDS: &str = include_str!("probe_words.txt");

/// Makes the index hold what the run does, trains and measures its lists where it has any, and enters what
/// they find in the run's record. `anew` makes every file again. Tells what it is about to do.
pub fn refresh(
    run: &Path,
    record: &mut Record,
    settings: &Settings,
    anew: bool,
    told: &mut dyn FnMut(&str),
) -> Result<VectorIndex> {
    let _lock = lock(run)?;
    // Another process may have written it since.
    *record = Record::read(run)?;
    let standing = Standing::read(run)?;
    if anew {
        rewrite_rejects(run, &standing)?;
    }
    let mut builder = Builder::open(run, &folder(run), record.dim, anew)?;
    builder.complete(&standing, anew)?;
    let reads = record.clone();
    builder.tune(settings, &mut || words(&reads), told)?;
    let (index, _) = VectorIndex::open(run, &folder(run))?;
    record.index = Some(facts(&index));
    record.write(run)?;
    Ok(index)
}

/// The index as it is searched: first made to hold what it lacks. While another process writes to the run,
/// what is in it is searched; where the run cannot be written to, an index is made in a folder for the
/// moment, which is returned with it.
pub fn current(
    run: &Path,
    record: &Record,
    told: &mut dyn FnMut(&str),
) -> Result<(VectorIndex, Option<tempfile::TempDir>)> {
    let opened = VectorIndex::open(run, &folder(run));
    // A build may just have replaced a file that the catalogue named.
    let is_replaced = opened.as_ref().is_err_and(is_missing);
    let opened = if is_replaced { VectorIndex::open(run, &folder(run)) } else { opened };
    let there = match opened {
        Ok((index, missing)) if missing.is_empty() => return Ok((index, None)),
        Ok((index, missing)) => {
            told(&format!("{}: {} shards are not in its index yet", run.display(), missing.len()));
            Some(index)
        }
        Err(e) if e.is::<Damage>() => {
            // The hint is taken at once.
            let what = e.to_string();
            told(&format!("{}; making it anew", what.split('\n').next().unwrap_or_default()));
            None
        }
        Err(e) if is_missing(&e) => {
            told(&format!("{}: making its index", run.display()));
            None
        }
        Err(e) => return Err(e),
    };
    let place = match lock(run) {
        Ok(lock) => Standing::read(run).map(|s| (Some(lock), s, folder(run), None)),
        Err(e) => match there {
            Some(index) => {
                told(&format!("{e:#}; searching what is there"));
                return Ok((index, None));
            }
            None => {
                let folder = tempfile::tempdir()?;
                told(&format!("{e:#}; making an index for this search in {}", folder.path().display()));
                Standing::read(run).map(|s| (None, s, folder.path().to_owned(), Some(folder)))
            }
        },
    };
    let (_lock, standing, folder, temporary) = place?;
    if standing.shards.is_empty() {
        bail!("{} holds no finished shard: nothing is indexed yet", run.display());
    }
    let mut builder = Builder::open(run, &folder, record.dim, false)?;
    builder.complete(&standing, false)?;
    Ok((VectorIndex::open(run, &folder)?.0, temporary))
}

/// Vectors of the probe's words; none where the model reads none.
fn words(record: &Record) -> Result<Vec<Vec<f32>>> {
    let home = Home::from_env();
    let model = Model::open(Path::new(&record.model_folder)).or_else(|_| Model::find(&record.model, &home));
    let Some(model) = model.ok().filter(|m| m.card.text.is_some()) else { return Ok(Vec::new()) };
    let joint = JointSpace::open(&model)?;
    let mut text = match TextEncoder::open(&model, &Libraries::find(&home)) {
        Ok(text) => text,
        Err(e) => {
            tracing::warn!("what lists find of words is not measured: {e:#}");
            return Ok(Vec::new());
        }
    };
    PROBE_WORDS.lines().map(|line| Ok(joint.words(text.embed(line)?))).collect()
}

/// How an index is to be made by a run's own settings.
pub fn settings(record: &Record) -> Settings {
    let number = |key: &str| record.settings.get(key).and_then(Value::as_f64);
    Settings {
        exact_rows: number("index.exact_rows").map_or(DEFAULT_EXACT_ROWS, |n| n as usize),
        recall: number("index.recall").unwrap_or(DEFAULT_RECALL),
    }
}

/// Rows up to which lists do not pay: training them costs as much as some thousand searches of all.
pub const DEFAULT_EXACT_ROWS: usize = 200_000;
/// Share of the nearest rows that a search is to find.
pub const DEFAULT_RECALL: f64 = 0.99;

/// What `run.json` says of the index.
fn facts(index: &VectorIndex) -> Value {
    json!({ "rows": index.n_rows(), "lists": index.n_lists(), "recall": index.recall() })
}

/// What people are told of it.
pub fn lines(index: &VectorIndex) -> Vec<String> {
    let Some(n_lists) = index.n_lists() else {
        return vec![format!("{} rows, all of which a search scans: nothing is missed", index.n_rows())];
    };
    let mut lines = vec![format!("{} rows in {n_lists} lists", index.n_rows())];
    let point = |kind: &str, p: &Point| {
        format!(
            "queries by {kind} visit {} lists and find {:.1} % of the {} nearest ({} queries)",
            p.lists,
            p.recall * 100.0,
            p.rows,
            p.queries
        )
    };
    if let Some(recall) = index.recall() {
        lines.extend(recall.frame.iter().map(|p| point("picture", p)));
        lines.extend(recall.text.iter().map(|p| point("words", p)));
    }
    lines
}

/// Takes the clips that `filter` lets pass out of searches, and tells their paths.
pub fn delete(run: &Path, record: &Record, filter: &Filter) -> Result<Vec<String>> {
    if filter.is_by_frame() {
        bail!("clips are deleted whole: a condition on `time` says nothing about them");
    }
    let (index, temporary) = current(run, record, &mut |_| ())?;
    if temporary.is_some() {
        bail!("{} cannot be written to", run.display());
    }
    let gone = Standing::read(run)?.deleted;
    let clips = index.clips(filter)?.into_iter().filter(|(id, _)| !gone.contains(id));
    let (ids, paths): (Vec<u64>, Vec<String>) = clips.unzip();
    if ids.is_empty() {
        return Ok(paths);
    }
    let (mut ledger, mut standing) = Ledger::open(run)?;
    standing.deleted.extend(&ids);
    ledger.delete(ids).context("the clips stay")?;
    Builder::open(run, &folder(run), record.dim, false)?.complete(&standing, false)?;
    Ok(paths)
}
