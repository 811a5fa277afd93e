//! From what the settings want to what a run does.

use std::{fmt, path::Path};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use stages::{
    encode::network::{Backend, Engine, Libraries, Precision, check},
    model::{Home, Model},
};

use super::{
    measure::Rate,
    table::{Measured, candidates, line},
};

/// What the settings say of the engine; what they leave open is measured.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wanted {
    /// `encode.backend`
    pub backend: Option<Backend>,
    /// `encode.precision`
    pub precision: Option<Precision>,
    /// `encode.batch`
    pub batch: Option<usize>,
    /// `encode.workers`
    pub workers: Option<usize>,
    /// `encode.threads`
    pub threads: Option<usize>,
    /// `encode.min_cosine`
    pub min_cosine: f64,
    /// Whether `gpu.devices` or `encode.devices` names devices, so that nothing else will do.
    pub on_gpu: bool,
    /// The GPU to measure on.
    pub device: usize,
}

impl Wanted {
    /// `encode.min_cosine` where it is not stated.
    pub const MIN_COSINE: f64 = 0.995;
}

/// What encodes, and in what portions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// The engine.
    pub engine: Engine,
    /// Images of a batch.
    pub batch: usize,
    /// Sessions, one a worker.
    pub workers: usize,
    /// Threads of each.
    pub threads: usize,
}

impl fmt::Display for Chosen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { engine, batch, workers, threads } = self;
        let many = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let (sessions, threads) = (many(*workers, "session"), many(*threads, "thread"));
        write!(f, "{engine}, {sessions} of {threads}, {} a batch", many(*batch, "frame"))
    }
}

/// A gain less than this is not worth leaving fp32 and the plain library for.
const WORTHWHILE: f64 = 1.03;

/// Settles what `wanted` leaves open. A run that goes on keeps its `recorded` engine.
pub fn choose(
    wanted: &Wanted,
    recorded: Option<Engine>,
    model: &Model,
    home: &Home,
    program: Option<&Path>,
    told: &mut dyn FnMut(&str),
) -> Result<Chosen> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let libraries = Libraries { device: wanted.device, ..Libraries::find(home) };
    let with_gpu = wanted.backend.is_none_or(|backend| backend == Backend::Tensorrt);
    let all = candidates(model, &libraries, with_gpu);
    let may_be = |engine: &Engine| {
        wanted.backend.is_none_or(|backend| backend == engine.backend)
            && wanted.precision.is_none_or(|precision| precision == engine.precision)
            && (engine.is_on_gpu() || !wanted.on_gpu)
    };
    // Building another engine to compare takes minutes, and fp16 is near.
    let is_usual = |engine: &Engine| !engine.is_on_gpu() || engine.precision == Precision::Fp16;
    let fits = |engine: &Engine| may_be(engine) && (wanted.precision.is_some() || is_usual(engine));
    // A backend that is asked for by name is tried even where it was not found: its error names the cure.
    let backend = wanted.backend.or(wanted.on_gpu.then_some(Backend::Tensorrt));
    let usual = if backend == Some(Backend::Tensorrt) { Precision::Fp16 } else { Precision::Fp32 };
    let named = backend.map(|backend| Engine { backend, precision: wanted.precision.unwrap_or(usual) });
    let found: Vec<Engine> = all.iter().copied().filter(fits).collect();
    let engines = match (recorded.filter(may_be), named) {
        (Some(recorded), _) => {
            check(recorded, &libraries).context("output.dir holds a run by an engine that is not here")?;
            vec![recorded]
        }
        (None, _) if !found.is_empty() => found,
        (None, Some(engine)) => {
            check(engine, &libraries)?;
            vec![engine]
        }
        (None, None) => {
            let here: Vec<String> = all.iter().map(Engine::to_string).collect();
            bail!("no engine here computes in the wanted precision; here are: {}", here.join(", "));
        }
    };
    // A GPU's engine has one session, with two batches under way, and no threads that would have to be measured.
    let settled = |engine: Engine| {
        let one = engine.is_on_gpu().then_some(1);
        (wanted.workers.or(one), wanted.threads.or(one))
    };
    if let (&[engine], Some(batch)) = (engines.as_slice(), wanted.batch)
        && let (Some(workers), Some(threads)) = settled(engine)
    {
        return Ok(Chosen { engine, batch, workers, threads });
    }
    let mut measured = Measured::open(model, home, &libraries, program)?;
    if engines.iter().any(|engine| measured.row(*engine).is_none()) {
        told(&format!("measuring once what runs {} best on this machine:", model.card.name));
        measured.measure(&engines, told)?;
    }
    let engine = best(&measured, &engines, all[0], wanted)?;
    let rates =
        measured.row(engine).and_then(|row| row.found.as_ref().ok()).and_then(|found| found.best(engine));
    let batch = wanted.batch.or(rates.map(|rate| rate.batch)).unwrap_or(4);
    let (workers, threads) = match settled(engine) {
        (Some(workers), Some(threads)) => (workers, threads),
        (Some(workers), None) => (workers, (cores / workers).max(1)),
        (None, Some(threads)) => ((cores / threads).max(1), threads),
        (None, None) if cores == 1 => (1, 1),
        (None, None) => {
            let layouts = measured.measure_layouts(engine, batch, cores)?;
            let mut chosen = layouts.first().copied();
            for layout in layouts {
                // Threads that wait for one another lose the core to a decoder: the first is a session a core.
                if chosen.is_some_and(|c| layout.per_wall_s > 1.15 * c.per_wall_s) {
                    chosen = Some(layout);
                }
            }
            chosen.map_or((1, cores), |layout| (layout.sessions, layout.threads))
        }
    };
    Ok(Chosen { engine, batch, workers, threads })
}

/// Images a second of all cores, or of a GPU.
fn of_machine(engine: Engine, rate: Rate) -> f64 {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    if engine.is_on_gpu() { rate.of(engine) } else { rate.of(engine) * cores as f64 }
}

/// The fastest of those that are near enough to fp32.
fn best(measured: &Measured<'_>, engines: &[Engine], reference: Engine, wanted: &Wanted) -> Result<Engine> {
    let mut best: Option<(Engine, f64)> = None;
    let mut refused = Vec::new();
    for row in engines.iter().filter_map(|engine| measured.row(*engine)) {
        let rate = match &row.found {
            // What others are held against is near by definition; what was asked for by name is used
            // however near it is.
            Ok(found)
                if row.engine == reference
                    || engines.len() == 1
                    || wanted.precision.is_some()
                    || found.mean_cosine >= wanted.min_cosine =>
            {
                found.best(row.engine).map_or(0.0, |rate| of_machine(row.engine, rate))
            }
            Ok(_) => {
                refused.push(format!("{}: nearer was wanted, {}", line(row), wanted.min_cosine));
                continue;
            }
            Err(_) => {
                refused.push(line(row));
                continue;
            }
        };
        if best.is_none_or(|(_, most)| rate > WORTHWHILE * most) {
            best = Some((row.engine, rate));
        }
    }
    match best {
        Some((engine, _)) => Ok(engine),
        None => bail!("no engine runs the model and is near enough:\n  {}", refused.join("\n  ")),
    }
}
