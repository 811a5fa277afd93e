//! What one engine does on this machine: images a second, and vectors to hold against another's.
//!
//! Run in a process of its own: a process can load one inference library only, memory comes back, and
//! an engine that crashes here costs a candidate.

use std::{path::Path, sync::Barrier, time::Instant};

use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};
use stages::{
    encode::{
        Encoder as _,
        image::ImageTower,
        joint::{JointSpace, normalize},
        network::{Libraries, Opening},
    },
    model::Model,
};

use super::pictures::{self, N_PICTURES};
use crate::run::cpu_seconds;

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

/// Rates of a task, batch by batch.
pub fn rates(task: &Task<'_>, libraries: &Libraries) -> Result<Vec<Rate>> {
    let tensors = pictures::tensors(&task.model.recipe())?;
    let rate = |batch: &usize| rate(task, *batch, &tensors, libraries);
    // A network may be made for batches of one size.
    let (good, mut bad): (Vec<_>, Vec<_>) = task.batches.iter().map(rate).partition(Result::is_ok);
    match bad.pop() {
        Some(e) if good.is_empty() => e.map(|_| Vec::new()),
        _ => good.into_iter().collect(),
    }
}

fn rate(task: &Task<'_>, batch: usize, tensors: &[f32], libraries: &Libraries) -> Result<Rate> {
    let len = task.model.recipe().tensor_len();
    let input: Vec<f32> = tensors.iter().copied().cycle().take(batch * len).collect();
    let barrier = Barrier::new(task.sessions);
    let session = || -> Result<(f64, f64, usize)> {
        let tower = ImageTower::open(task.model, task.opening, libraries).and_then(|mut tower| {
            // The first run prepares memory.
            tower.encode(&input, batch)?;
            Ok(tower)
        });
        barrier.wait();
        let mut tower = tower?;
        let started = Instant::now();
        let (mut least_cpu_s, mut runs) = (f64::INFINITY, 0);
        while runs < 2 || started.elapsed().as_secs_f64() < task.seconds {
            let cpu = cpu_seconds();
            tower.encode(&input, batch)?;
            least_cpu_s = least_cpu_s.min(cpu_seconds() - cpu);
            runs += 1;
        }
        Ok((least_cpu_s, started.elapsed().as_secs_f64(), runs))
    };
    let done: Vec<Result<(f64, f64, usize)>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..task.sessions).map(|_| scope.spawn(session)).collect();
        let crashed = || Err(anyhow!("a session crashed"));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| crashed())).collect()
    });
    let done: Vec<(f64, f64, usize)> = done.into_iter().collect::<Result<_>>()?;
    // Of several sessions, each run's CPU time holds that of the others.
    let least_cpu_s = done.iter().map(|(cpu_s, ..)| *cpu_s).fold(f64::INFINITY, f64::min);
    let per_wall_s = done.iter().map(|(_, wall_s, runs)| (runs * batch) as f64 / wall_s).sum();
    Ok(Rate { batch, per_cpu_s: batch as f64 / least_cpu_s, per_wall_s })
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
