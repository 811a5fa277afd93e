//! What one engine does on this machine: images a second, and vectors to hold against another's.
//!
//! Run in a process of its own: a process can load one inference library only, memory comes back, and
//! an engine that crashes here costs a candidate.

use std::{path::Path, sync::Barrier, time::Instant};

use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};
use stages::{
    encode::{
        image::ImageTower,
        joint::{JointSpace, normalize},
        network::{Engine, Libraries, Opening},
    },
    model::Model,
};

use super::pictures::{self, N_PICTURES};
use crate::run::cpu_seconds;

/// Shorter times are not told apart.
const CLOCK_STEP_S: f64 = 1e-6;

/// How fast an engine embeds batches of one size.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Rate {
    /// Images of a batch.
    pub batch: usize,
    /// By the process's CPU time, of the best run.
    pub per_cpu_s: f64,
    /// By the clock, all sessions together.
    pub per_wall_s: f64,
}

impl Rate {
    /// What engines of its kind are held against one another by: on a CPU its own time, which other work does not
    /// change; a GPU's is its own.
    pub fn of(&self, engine: Engine) -> f64 {
        if engine.is_on_gpu() { self.per_wall_s } else { self.per_cpu_s }
    }
}

/// What a process that measures prints.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Printed {
    /// By the size of the batch.
    pub rates: Vec<Rate>,
    /// The most memory that the process held.
    pub peak_mib: u64,
}

/// A line of the kernel's account in KiB, such as `VmHWM` of `/proc/self/status`, in MiB. 0 if it tells none.
pub fn kernel_mib(file: &str, key: &str) -> u64 {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
    let kib = line.and_then(|line| line.trim().split(' ').next()?.parse::<u64>().ok());
    kib.unwrap_or(0) / 1024
}

/// What to measure.
#[derive(Clone, Debug)]
pub struct Task<'a> {
    /// Of which model.
    pub model: &'a Model,
    /// The engine.
    pub opening: Opening,
    /// Sessions at work at once.
    pub sessions: usize,
    /// Sizes of batches.
    pub batches: &'a [usize],
    /// At least so long for each, and at least two runs.
    pub seconds: f64,
}

/// One session's runs of a batch.
struct Runs {
    n: usize,
    /// Of the process, in the best run; with several sessions, that of the others is in it.
    least_cpu_s: f64,
    wall_s: f64,
}

/// Rates of a task, batch by batch. Sizes that the network refuses are left out, unless it refuses all.
pub fn rates(task: &Task<'_>, libraries: &Libraries) -> Result<Vec<Rate>> {
    let len = task.model.recipe().tensor_len();
    let most = task.batches.iter().copied().max().unwrap_or(0);
    let tensors = pictures::tensors(&task.model.recipe())?;
    let tensors: Vec<f32> = tensors.iter().copied().cycle().take(most * len).collect();
    let barrier = Barrier::new(task.sessions);
    let session = || -> Vec<Result<Runs>> {
        let mut tower = ImageTower::open(task.model, task.opening, libraries);
        let mut measure = |batch: usize| -> Result<Runs> {
            let input = &tensors[..batch * len];
            let mut encode = || match &mut tower {
                Ok(tower) => tower.encode(input, batch).map(drop),
                Err(e) => Err(anyhow!("{e:#}")),
            };
            // The first run prepares memory. All sessions meet here, whatever became of them.
            let warm = encode();
            barrier.wait();
            warm?;
            let started = Instant::now();
            let mut runs = Runs { n: 0, least_cpu_s: f64::INFINITY, wall_s: 0.0 };
            while runs.n < 2 || started.elapsed().as_secs_f64() < task.seconds {
                let cpu = cpu_seconds();
                encode()?;
                // A virtual machine's CPU clock may stand still over a batch of a tiny model, and a
                // rate without end is no number in JSON.
                runs.least_cpu_s = runs.least_cpu_s.min((cpu_seconds() - cpu).max(CLOCK_STEP_S));
                runs.n += 1;
            }
            runs.wall_s = started.elapsed().as_secs_f64();
            Ok(runs)
        };
        task.batches.iter().map(|batch| measure(*batch)).collect()
    };
    let of_sessions: Vec<Vec<Result<Runs>>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..task.sessions).map(|_| scope.spawn(session)).collect();
        let joined =
            threads.into_iter().map(|thread| thread.join().map_err(|_| anyhow!("a session crashed")));
        joined.collect::<Result<_>>()
    })?;
    let mut rates = Vec::new();
    let mut refused = None;
    let mut of_sessions: Vec<_> = of_sessions.into_iter().map(Vec::into_iter).collect();
    for batch in task.batches.iter().copied() {
        match of_sessions.iter_mut().filter_map(Iterator::next).collect::<Result<Vec<Runs>>>() {
            Ok(runs) => rates.push(Rate {
                batch,
                per_cpu_s: batch as f64 / runs.iter().map(|r| r.least_cpu_s).fold(f64::INFINITY, f64::min),
                per_wall_s: runs.iter().map(|r| (r.n * batch) as f64 / r.wall_s.max(CLOCK_STEP_S)).sum(),
            }),
            Err(e) => refused = Some(e),
        }
    }
    match refused {
        Some(e) if rates.is_empty() => Err(e),
        _ => Ok(rates),
    }
}

/// The built-in pictures' vectors: the image tower's, then the joint ones, all of unit length.
pub fn vectors(model: &Model, opening: Opening, libraries: &Libraries) -> Result<[Vec<f32>; 2]> {
    let tensors = pictures::tensors(&model.recipe())?;
    let mut tower = ImageTower::open(model, opening, libraries)?;
    let space = JointSpace::open(model)?;
    let (mut images, mut joint) = (Vec::new(), Vec::new());
    for tensor in tensors.chunks(model.recipe().tensor_len()) {
        let encoded = tower.encode(tensor, 1)?;
        joint.extend(space.project(&encoded, 1)?);
        images.extend(encoded.embeddings);
    }
    images.chunks_mut(model.card.image.dim).for_each(normalize);
    Ok([images, joint])
}

/// Mean and least cosine of two lists of unit vectors.
pub fn cosines(a: &[f32], b: &[f32], n: usize) -> Option<(f64, f64)> {
    if a.len() != b.len() || n == 0 || !a.len().is_multiple_of(n) {
        return None;
    }
    let dot = |(a, b): (&[f32], &[f32])| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
    let dim = a.len() / n;
    let cosines: Vec<f64> = a.chunks(dim).zip(b.chunks(dim)).map(dot).collect();
    // NaN, which an engine may give, must not pass for near.
    let least = cosines.iter().copied().reduce(|a, b| if b.is_nan() || b < a { b } else { a })?;
    Some((cosines.iter().sum::<f64>() / n as f64, least))
}

/// Writes vectors for [`read_vectors`].
pub fn write_vectors(path: &Path, vectors: &[Vec<f32>; 2]) -> std::io::Result<()> {
    let bytes: Vec<u8> = vectors.iter().flatten().flat_map(|v| v.to_le_bytes()).collect();
    std::fs::write(path, bytes)
}

/// Reads what [`write_vectors`] wrote: of [`N_PICTURES`] pictures and so many values each.
pub fn read_vectors(path: &Path, image_dim: usize) -> Result<[Vec<f32>; 2]> {
    let bytes = std::fs::read(path)?;
    let mut images: Vec<f32> =
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    if images.len() <= N_PICTURES * image_dim {
        return Err(anyhow!("{} is cut off", path.display()));
    }
    let joint = images.split_off(N_PICTURES * image_dim);
    Ok([images, joint])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vector_that_is_no_number_is_not_near() {
        let a = [1.0, 0.0, 0.0, 1.0];
        assert_eq!(cosines(&a, &a, 2), Some((1.0, 1.0)));
        let (mean, least) = cosines(&a, &[1.0, 0.0, f32::NAN, 0.0], 2).unwrap();
        assert!(mean.is_nan() && least.is_nan());
        assert_eq!(cosines(&a, &a[..2], 2), None);
    }
}
