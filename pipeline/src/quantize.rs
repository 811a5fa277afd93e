//! The `model quantize` command: an int8 form of an image tower, its scales taken from the user's own
//! frames, installed only if it says the same as fp32.

use std::{
    fs,
    io::{BufRead as _, BufReader, BufWriter, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;
use stages::{
    clips::{ClipList, Label},
    encode::{
        image::ImageTower,
        joint::{JointSpace, normalize},
        network::{Engine, Libraries, Opening, Precision, reference},
        quantized::{FILES, Quantized, hash_file},
    },
    files::npy_header,
    model::{Home, Model},
};

use crate::{engines::measure::cosines, run::cpu_seconds, samples::each_clip, scratch::Scratch};

/// Frames of a clip that are looked at.
const FRAMES: u32 = 8;
/// Half of them calibrate, which is enough; the frames of the others are compared with one another.
const MOST_CLIPS: u64 = 256;
/// Fewer say little of how near the int8 form comes.
const LEAST_HELD_OUT: usize = 32;
/// Neighbours that must stay the same.
const TOP: usize = 10;
/// Quantizes by a well-kept library, which is Python's.
const SCRIPTS: [(&str, &str); 2] = [
    ("quantize.py", include_str!("../../stages/models/quantize.py")),
    ("refine.py", include_str!("../../stages/models/refine.py")),
];

/// What to make.
pub struct Task<'a> {
    /// Of which model.
    pub model: &'a Model,
    /// Clips: every other one calibrates, the rest is held out.
    pub clips: &'a str,
    /// Least mean cosine to fp32.
    pub min_cosine: f64,
    /// Least share of the same ten nearest.
    pub min_overlap: f64,
    /// Install it however near it comes.
    pub force: bool,
    /// A Python with numpy, onnx and onnxruntime.
    pub python: PathBuf,
}

/// What the script says of its work.
#[derive(Deserialize)]
struct Made {
    method: String,
    n_calibration: usize,
}

/// Makes the int8 form, measures it, and installs it if it is near enough. The error says how far it is.
pub fn quantize(task: &Task<'_>, home: &Home, told: &mut dyn FnMut(&str)) -> Result<Quantized> {
    let Task { model, clips, .. } = task;
    check_python(&task.python)?;
    let clips = ClipList::open(clips, Label::None)?;
    let picked = Picked::of(&clips);
    // On the disk of the models, which has room for frames and model; memory may not have.
    let folder = home.folder().join(".quantize");
    let failed = format!("cannot write to {}", folder.display());
    let waits = || told("another clipmill is quantizing; waiting for it");
    let scratch = Scratch::open(folder, &home.folder().join(".quantize.lock"), waits).context(failed)?;
    let [frames, made] = ["frames.npy", "int8.onnx"].map(|name| scratch.path().join(name));
    let n = write_calibration(model, &clips, picked, &frames, told)?;
    told(&format!("{n} frames calibrate; quantizing"));
    let image = model.file(&model.card.image.file);
    let Made { method, n_calibration } = run_script(task, scratch.path(), &image, &made, &frames, told)?;

    let libraries = Libraries::find(home);
    let name = &model.card.name;
    let found = compare(model, &made, &clips, picked, &libraries, told)?;
    let quantized = Quantized {
        file: FILES[0].into(),
        of: hash_file(&image)?,
        method,
        n_calibration,
        n_held_out: found.n,
        mean_cosine: found.cosines.0,
        least_cosine: found.cosines.1,
        top10_overlap: found.overlap,
    };
    told(&format!(
        "{name} in int8 ({}), on {} frames held out: cosine to fp32 {:.5} in the mean, {:.5} at least; {:.1} % of the ten nearest are the same; {:.2} times as fast as {}",
        quantized.method,
        found.n,
        found.cosines.0,
        found.cosines.1,
        100.0 * found.overlap,
        found.speed,
        reference(&libraries)
    ));
    if !task.force && (found.cosines.0 < task.min_cosine || found.overlap < task.min_overlap) {
        bail!(
            "{name} is not installed in int8: it needs a cosine of {} and {} % of the ten nearest\nhint: other clips to calibrate with, or --force",
            task.min_cosine,
            100.0 * task.min_overlap
        );
    }
    quantized.install(model, &made)?;
    Ok(quantized)
}

fn check_python(python: &Path) -> Result<()> {
    let hint = "hint: `make quantizer` sets one up, or name yours with --python";
    let done = Command::new(python).args(["-c", "import numpy, onnx, onnxruntime"]).output();
    let done = done.with_context(|| format!("cannot run {}\n{hint}", python.display()))?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(
        done.status.success(),
        "{}: {}\n{hint}",
        python.display(),
        said.lines().last().unwrap_or("failed")
    );
    Ok(())
}

/// Which clips are looked at: enough, from all of the list, so that a folder a class gives all classes.
#[derive(Clone, Copy)]
struct Picked {
    every: u64,
}

impl Picked {
    fn of(clips: &ClipList) -> Self {
        Self { every: clips.n_clips().div_ceil(MOST_CLIPS).max(1) }
    }

    fn calibrates(self, clip: u64) -> bool {
        clip.is_multiple_of(2 * self.every)
    }

    /// Those between the others.
    fn is_held_out(self, clip: u64) -> bool {
        clip.is_multiple_of(self.every) && !self.calibrates(clip)
    }
}

/// Writes the frames of the calibrating clips as NumPy's f32 [n, 3, height, width]; returns n.
fn write_calibration(
    model: &Model,
    clips: &ClipList,
    picked: Picked,
    path: &Path,
    told: &mut dyn FnMut(&str),
) -> Result<usize> {
    let recipe = model.recipe();
    let failed = || format!("cannot write {}", path.display());
    let mut file = BufWriter::new(fs::File::create(path).with_context(failed)?);
    let header = |n: usize| npy_header(&[n, 3, recipe.height, recipe.width]);
    file.write_all(&header(0)).with_context(failed)?;
    let mut n = 0;
    each_clip(clips, model, FRAMES, &|clip| picked.calibrates(clip), told, &mut |_, tensors, of_clip| {
        for value in tensors {
            file.write_all(&value.to_le_bytes()).with_context(failed)?;
        }
        n += of_clip;
        Ok(())
    })?;
    let mut file = file.into_inner().map_err(|e| e.into_error()).with_context(failed)?;
    std::io::Seek::rewind(&mut file)?;
    file.write_all(&header(n)).with_context(failed)?;
    ensure!(n > 0, "no frame is left to calibrate with");
    Ok(n)
}

fn run_script(
    task: &Task<'_>,
    scratch: &Path,
    image: &Path,
    made: &Path,
    frames: &Path,
    told: &mut dyn FnMut(&str),
) -> Result<Made> {
    for (name, text) in SCRIPTS {
        let path = scratch.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let image_tower = &task.model.card.image;
    let mut child = Command::new(&task.python)
        .arg(scratch.join("quantize.py"))
        .args([image, made])
        .args(["--input", &image_tower.input, "--output", &image_tower.embedding])
        .args(&image_tower.logits)
        .arg("--calibration")
        .arg(frames)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run {}", task.python.display()))?;
    let mut last = String::new();
    if let Some(said) = child.stderr.take() {
        for line in BufReader::new(said).lines().map_while(Result::ok) {
            // Its error is told once, as ours.
            if !line.starts_with("error: ") {
                told(&line);
            }
            last = line;
        }
    }
    let done = child.wait_with_output()?;
    ensure!(done.status.success(), "quantizing failed: {}", last.trim_start_matches("error: "));
    let facts = String::from_utf8_lossy(&done.stdout);
    serde_json::from_str(facts.lines().last().unwrap_or_default())
        .context("the script's facts cannot be read")
}

/// How near two engines come, on held-out frames.
struct Compared {
    n: usize,
    cosines: (f64, f64),
    overlap: f64,
    /// Images a CPU second of the second over the first.
    speed: f64,
}

/// Holds int8 against fp32: of the image tower's vectors and the joint ones, whichever is worse.
fn compare(
    model: &Model,
    made: &Path,
    clips: &ClipList,
    picked: Picked,
    libraries: &Libraries,
    told: &mut dyn FnMut(&str),
) -> Result<Compared> {
    let fp32 = reference(libraries);
    let int8 = Engine { precision: Precision::Int8, ..fp32 };
    let [fp32, int8] = [fp32, int8].map(|engine| Opening { engine, threads: 1 });
    let mut towers =
        [ImageTower::open(model, fp32, libraries)?, ImageTower::open_file(made, model, int8, libraries)?];
    let space = JointSpace::open(model)?;
    let mut cpu_s = [0.0; 2];
    let mut vectors = [[Vec::new(), Vec::new()], [Vec::new(), Vec::new()]];
    let mut n_frames = 0;
    let is_held_out = |clip| picked.is_held_out(clip);
    each_clip(clips, model, FRAMES, &is_held_out, told, &mut |_, tensors, n| {
        n_frames += n;
        for ((tower, vectors), cpu_s) in towers.iter_mut().zip(&mut vectors).zip(&mut cpu_s) {
            let cpu = cpu_seconds();
            let encoded = tower.encode(tensors, n)?;
            *cpu_s += cpu_seconds() - cpu;
            vectors[1].extend(space.project(&encoded, n)?);
            vectors[0].extend(encoded.embeddings);
        }
        Ok(())
    })?;
    ensure!(
        n_frames >= LEAST_HELD_OUT,
        "{n_frames} frames are too few to measure with, at least {LEAST_HELD_OUT} must be held out: give more clips"
    );
    let mut found = Compared { n: n_frames, cosines: (1.0, 1.0), overlap: 1.0, speed: cpu_s[0] / cpu_s[1] };
    let [mut of_fp32, mut of_int8] = vectors;
    for (a, b) in of_fp32.iter_mut().zip(&mut of_int8) {
        let dim = a.len() / n_frames;
        a.chunks_mut(dim).chain(b.chunks_mut(dim)).for_each(normalize);
        let near = cosines(a, b, n_frames).context("int8 gives vectors of another size")?;
        found.cosines = (found.cosines.0.min(near.0), found.cosines.1.min(near.1));
        found.overlap = found.overlap.min(overlap(a, b, dim));
    }
    Ok(found)
}

/// Share of each vector's ten nearest others by `a` that are so by `b`.
fn overlap(a: &[f32], b: &[f32], dim: usize) -> f64 {
    let nearest = |vectors: &[f32], of: usize| -> Vec<usize> {
        let query = &vectors[of * dim..(of + 1) * dim];
        let score = |v: &[f32]| v.iter().zip(query).map(|(x, y)| x * y).sum::<f32>();
        let mut scored: Vec<(f32, usize)> = vectors.chunks(dim).map(score).zip(0..).collect();
        scored.remove(of);
        scored.sort_by(|x, y| y.0.total_cmp(&x.0).then(x.1.cmp(&y.1)));
        scored.into_iter().take(TOP).map(|(_, i)| i).collect()
    };
    let n = a.len() / dim;
    let same: usize = (0..n)
        .map(|of| {
            let by_b = nearest(b, of);
            nearest(a, of).iter().filter(|i| by_b.contains(i)).count()
        })
        .sum();
    same as f64 / (n * TOP.min(n - 1)) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_counts_the_same_neighbours() {
        // Twelve unit vectors around a circle: each one's ten nearest are all others but the opposite.
        let circle = |shift: usize| -> Vec<f32> {
            (0..12)
                .flat_map(|i| {
                    let angle = ((i + shift) % 12) as f32 * std::f32::consts::TAU / 12.0;
                    [angle.cos(), angle.sin()]
                })
                .collect()
        };
        assert_eq!(overlap(&circle(0), &circle(3), 2), 1.0);
        let mut swapped = circle(0);
        // Two opposite ones change places with their neighbours.
        swapped.swap(0, 2);
        swapped.swap(1, 3);
        let share = overlap(&circle(0), &swapped, 2);
        assert!((0.9..1.0).contains(&share), "{share}");
    }
}
