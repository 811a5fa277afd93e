//! The `run` command: opens, starts, listens, reports.

use std::{
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Result, anyhow};
use stages::{index::ledger::Standing, item::Indexed, model::Home};

use crate::{
    config::Config,
    edge::Flow,
    progress::Progress,
    refresh::refresh,
    report::{Counts, bottleneck, stage_table, summary},
    stop::Stop,
    topology::{Fed, Opened, Running},
};

/// How a run ended, as its exit code tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Every clip is indexed.
    Indexed,
    /// Every clip ended, some as rejects.
    WithRejects,
    /// Ctrl-C drained it: what was in flight is committed, the rest is not done.
    Drained,
}

/// What `run` was asked besides its configuration.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Only the first so many clips of the list.
    pub limit: Option<u64>,
    /// Nothing but errors and the last line.
    pub quiet: bool,
    /// This program, which measures engines in processes of their own.
    pub program: Option<PathBuf>,
}

/// A run's settings are wrong, or something they name is missing: nothing was started.
#[derive(Debug, thiserror::Error)]
#[error("{0:#}")]
pub struct Unusable(pub anyhow::Error);

/// Runs to the end. Errors before the start are [`Unusable`]; later ones are faults.
pub fn run(config: Config, options: Options) -> Result<Ended> {
    let folder: PathBuf = config.output_dir.clone();
    let vectors = config.index.vectors.clone();
    let Options { limit, quiet, program } = options;
    let mut told = |line: &str| {
        if !quiet {
            crate::progress::eprint_line(line);
        }
    };
    let opened =
        Opened::open(config, &Home::from_env(), program.as_deref(), limit, &mut told).map_err(Unusable)?;
    let listed = opened.n_listed(limit);
    let n_before = opened.standing().done.len() as u64;
    let stop = Stop::default();
    on_ctrl_c(&stop);
    // What is done once a machine, such as measuring engines, is not this run's.
    let started = Instant::now();
    let (running, mut record) = opened.start(stop.clone(), limit)?;
    let mut progress = Progress::new(listed, quiet);
    if n_before > 0 && !quiet {
        progress.line(&format!("{} holds {n_before} clips already; going on", folder.display()));
    }
    let mut counts = Counts { listed, ..Counts::default() };
    listen(&running, &mut progress, &mut counts, quiet);
    progress.clear();
    let fed = running.fed.clone();
    let stages = running.join();
    add_fed(&mut counts, &fed);
    let wall_s = started.elapsed().as_secs_f64();
    let status = match (stop.fault(), counts.open()) {
        (Some(_), _) => "failed",
        (None, 0) => "finished",
        (None, _) => "stopped",
    };
    if stop.fault().is_some() {
        // What was told is not what is there: shards are published that nobody heard of any more, and
        // whole clips wait in one that was not. The ledger knows.
        let committed = Standing::read(&folder).map(|standing| standing.n_indexed());
        counts.indexed = committed.unwrap_or(counts.indexed_before);
    }
    record.end(status, serde_json::to_value(counts)?, &stages, wall_s, cpu_seconds());
    let recorded = record.write(&folder);
    if let Some(fault) = stop.fault() {
        let committed =
            format!("{} of {listed} clips are committed and stay; run it again to go on", counts.indexed);
        return Err(anyhow!("{fault:#}\n{committed}"));
    }
    recorded?;
    // After a Ctrl-C nobody wants to wait for lists: the next run or search goes on from what there is.
    if let Some(vectors) = vectors.filter(|_| status == "finished" && counts.indexed > 0) {
        let made = refresh(&folder, &mut record, &vectors, false, &mut |line| progress.line(line));
        if let Err(e) = made {
            // All clips are in the Parquet files, from which the index is made at any time.
            progress
                .line(&format!("the vector index is not up to date, `clipmill index` makes it so: {e:#}"));
        }
    }
    if !quiet && stages.iter().any(|s| s.sum().items > 0) {
        progress.line(stage_table(&stages).trim_end());
        if let Some(told) = bottleneck(&stages) {
            progress.line(&told);
        }
    }
    progress.line(&summary(&counts, status, &folder, wall_s));
    Ok(match (counts.open(), counts.rejected) {
        (0, 0) => Ended::Indexed,
        (0, _) => Ended::WithRejects,
        _ => Ended::Drained,
    })
}

/// Hears clips end until the index stage leaves.
fn listen(running: &Running, progress: &mut Progress, counts: &mut Counts, quiet: bool) {
    let mut skipped = 0;
    loop {
        let before = running.fed.n_unchanged.load(Ordering::Relaxed)
            + running.fed.n_rejected_before.load(Ordering::Relaxed);
        progress.skip(before - std::mem::replace(&mut skipped, before));
        match running.told.recv_within(Duration::from_millis(500)) {
            Ok(Some(Some(Flow::Item(Indexed::Clip { clip, n_frames, damage })))) => {
                counts.indexed += 1;
                counts.frames += u64::from(n_frames);
                progress.clip(n_frames);
                if let Some(damage) = damage {
                    counts.damaged += 1;
                    if !quiet {
                        progress.line(&format!(
                            "damaged clip {:04} ({}): {damage}; kept {n_frames} frames",
                            clip.id.0, clip.path
                        ));
                    }
                }
            }
            Ok(Some(Some(Flow::Item(Indexed::Shard(_))))) => (),
            Ok(Some(Some(Flow::Reject(rejection)))) => {
                counts.rejected += 1;
                progress.clip(0);
                if !quiet {
                    progress.line(&rejection.to_string());
                }
            }
            Ok(None) => (),
            Ok(Some(None)) | Err(_) => return,
        }
        progress.tick();
    }
}

fn add_fed(counts: &mut Counts, fed: &Fed) {
    let get = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
    counts.changed = get(&fed.n_changed);
    counts.indexed_before = get(&fed.n_unchanged);
    counts.indexed += counts.indexed_before + counts.changed;
    counts.rejected_before = get(&fed.n_rejected_before);
    counts.rejected += counts.rejected_before;
    counts.listed_twice = get(&fed.n_listed_twice);
}

/// The first Ctrl-C drains, the second aborts.
fn on_ctrl_c(stop: &Stop) {
    let presses = AtomicU32::new(0);
    let stop = stop.clone();
    let handler = move || match presses.fetch_add(1, Ordering::SeqCst) {
        0 => {
            crate::progress::eprint_line(
                "stopping: finishing and committing the clips in flight; again to abort",
            );
            stop.drain();
        }
        1 => {
            stop.abort(anyhow!("aborted by a second Ctrl-C"));
            // A decoder deep in a frame may not look up for long: shards on disk are whole either way.
            std::thread::spawn(|| {
                std::thread::sleep(Duration::from_secs(5));
                std::process::exit(1);
            });
        }
        _ => std::process::exit(1),
    };
    // Fails only where a handler is set already: a second run in one process, as in tests.
    if let Err(e) = ctrlc::set_handler(handler) {
        tracing::debug!(%e, "Ctrl-C is handled elsewhere");
    }
}

/// CPU seconds of this process, all threads.
pub fn cpu_seconds() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
