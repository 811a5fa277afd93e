//! The measured engines of a model on this machine, and the file that remembers them.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use kernels::gpu::Gpu;
use serde::{Deserialize, Serialize};
use stages::{
    encode::{
        network::{self, Backend, Engine, Libraries, Precision, RTEN, check, reference},
        quantized::{Quantized, hash_file, image_file},
        tensorrt::{self, Place, USUAL_BATCH, Wanted},
    },
    files::write_whole,
    model::{Home, Model},
};

use super::{
    measure::{Printed, Rate, cosines, kernel_mib, read_vectors},
    pictures::N_PICTURES,
};
use crate::{record::unix_now, scratch::Scratch};

/// Raised when older measurements are not to be believed any more.
const ROUTINE: u32 = 2;
/// Batches that engines are measured with.
const BATCHES: [usize; 5] = [1, 2, 4, 8, 16];
/// Of a GPU's engines.
const GPU_BATCHES: [usize; 3] = [1, 16, USUAL_BATCH];
/// Measured for so long, each batch.
const SECONDS: f64 = 0.25;
/// A measurement that takes longer has hung.
const DEADLINE: Duration = Duration::from_secs(300);
/// A failure may have had a passing cause, such as full memory: after a day it is tried again.
const FORGIVEN_AFTER_S: u64 = 86_400;

/// What was measured of a model on this machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Table {
    /// The CPU, the libraries and what else the figures depend on, for people.
    pub machine: Vec<String>,
    /// The engines, in the order that they were measured.
    pub rows: Vec<Row>,
}

/// An engine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Row {
    /// Which.
    pub engine: Engine,
    /// The GPU that it ran on, and its TensorRT; none for a CPU's.
    #[serde(default)]
    pub device: Option<String>,
    /// What it does, or why it cannot.
    pub found: std::result::Result<Found, String>,
    /// When that was, in seconds since 1970.
    pub unix: u64,
    /// Sessions and threads that were compared, with images a second by the clock.
    pub layouts: Vec<Layout>,
}

/// What an engine does with one thread.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Found {
    /// By the size of the batch.
    pub rates: Vec<Rate>,
    /// Mean cosine to fp32 on the built-in pictures, of the stored vectors or the image tower's own,
    /// whichever is less.
    pub mean_cosine: f64,
    /// Least cosine.
    pub least_cosine: f64,
    /// The most memory that a session took, with the program around it.
    pub peak_mib: u64,
}

/// Sessions at work at once, and threads in each.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Layout {
    /// Images of a batch.
    pub batch: usize,
    /// Sessions.
    pub sessions: usize,
    /// Threads of each.
    pub threads: usize,
    /// Images a second by the clock.
    pub per_wall_s: f64,
}

impl Found {
    /// The smallest batch that does nearly as well as the best one: less to wait for, less memory.
    pub fn best(&self, engine: Engine) -> Option<Rate> {
        let most = self.rates.iter().map(|r| r.of(engine)).fold(0.0, f64::max);
        self.rates.iter().copied().find(|r| r.of(engine) >= 0.97 * most)
    }
}

/// A model's table, open for measuring.
pub struct Measured<'a> {
    model: &'a Model,
    libraries: &'a Libraries,
    program: Option<&'a Path>,
    path: PathBuf,
    /// What is known.
    pub table: Table,
}

impl<'a> Measured<'a> {
    /// Reads what is remembered. `program` is clipmill itself, which measures in processes of its own.
    pub fn open(
        model: &'a Model,
        home: &Home,
        libraries: &'a Libraries,
        program: Option<&'a Path>,
    ) -> Result<Self> {
        let machine = machine(model, libraries)?;
        let key = blake3::hash(machine.join("\n").as_bytes()).to_hex();
        let name = format!("{}-{}.json", model.card.name, &key[..16]);
        let path = home.folder().join("engines").join(name);
        let mut measured =
            Self { model, libraries, program, path, table: Table { machine, rows: Vec::new() } };
        measured.read();
        Ok(measured)
    }

    /// Takes over what is remembered. A table that cannot be read is as good as none.
    fn read(&mut self) {
        let read = fs::read_to_string(&self.path).ok().and_then(|text| serde_json::from_str(&text).ok());
        let Some(Table { rows, .. }) = read else { return };
        let is_stale =
            |row: &Row| row.found.is_err() && unix_now().saturating_sub(row.unix) > FORGIVEN_AFTER_S;
        self.table.rows = rows.into_iter().filter(|row| !is_stale(row)).collect();
    }

    /// What is known of an engine; of a GPU's, on that GPU.
    pub fn row(&self, engine: Engine) -> Option<&Row> {
        let device = device(engine, self.libraries);
        self.table.rows.iter().find(|row| row.engine == engine && row.device == device)
    }

    /// Forgets failures.
    pub fn forgive(&mut self) {
        self.table.rows.retain(|row| row.found.is_ok());
    }

    /// Measures those engines that are not known, and the reference that they are held against.
    pub fn measure(&mut self, engines: &[Engine], told: &mut dyn FnMut(&str)) -> Result<()> {
        if engines.iter().all(|engine| self.row(*engine).is_some()) {
            return Ok(());
        }
        let (scratch, _elsewhere) = self.scratch()?;
        // Another process may have measured while this one waited for its turn.
        self.read();
        let reference = reference(self.libraries);
        let reference_vectors = scratch.path().join("reference");
        // Where it is wanted itself, it is measured with the others, first.
        if engines.first() != Some(&reference) || self.row(reference).is_some() {
            self.child(reference, &reference_vectors, &[1], 0.0, (1, 1))
                .with_context(|| format!("model {} by {reference}", self.model.card.name))?;
        }
        for engine in engines {
            if self.row(*engine).is_some() {
                continue;
            }
            let own = scratch.path().join("own");
            let own = if *engine == reference { &reference_vectors } else { &own };
            let built = if engine.is_on_gpu() { self.build(*engine, told) } else { Ok(()) };
            let batches: &[usize] = if engine.is_on_gpu() { &GPU_BATCHES } else { &BATCHES };
            let found = built.and_then(|()| self.child(*engine, own, batches, SECONDS, (1, 1)));
            let found = found.and_then(|printed| {
                let (mean_cosine, least_cosine) = self.nearness(*engine, &reference_vectors, own)?;
                let Printed { rates, peak_mib } = printed;
                Ok(Found { rates, mean_cosine, least_cosine, peak_mib })
            });
            let found = found.map_err(|e| format!("{e:#}"));
            let device = device(*engine, self.libraries);
            let row = Row { engine: *engine, device, found, unix: unix_now(), layouts: Vec::new() };
            told(&line(&row));
            self.table.rows.push(row);
            self.write();
        }
        Ok(())
    }

    /// Compares one-thread sessions on all cores with one session of all threads, and what lies between.
    pub fn measure_layouts(&mut self, engine: Engine, batch: usize, cores: usize) -> Result<Vec<Layout>> {
        // Of engines on the cores alone.
        let known = |row: &&mut Row| row.engine == engine;
        let model = self.model;
        let known_layouts = self.row(engine).map(|row| row.layouts.clone()).unwrap_or_default();
        let own: Vec<Layout> = known_layouts.iter().copied().filter(|layout| layout.batch == batch).collect();
        if !own.is_empty() {
            return Ok(own);
        }
        let mut shapes = vec![(cores, 1), (1, cores)];
        if cores >= 8 {
            shapes.insert(1, (cores / 4, 4));
        }
        shapes.dedup();
        // Every session holds the model's weights. Half of what is free is for decoders and the page cache.
        let free_mib = kernel_mib("/proc/meminfo", "MemAvailable") / 2;
        let session_mib = self.row(engine).and_then(|row| Some(row.found.as_ref().ok()?.peak_mib));
        let fits = |sessions: usize| {
            sessions == 1 || free_mib == 0 || sessions as u64 * session_mib.unwrap_or(0) <= free_mib
        };
        shapes.retain(|(sessions, _)| fits(*sessions));
        let (scratch, _elsewhere) = self.scratch()?;
        let mut layouts = Vec::new();
        for (sessions, threads) in shapes {
            // One that fails, for lack of memory say, is not chosen.
            match self.child(
                engine,
                &scratch.path().join("own"),
                &[batch],
                2.0 * SECONDS,
                (sessions, threads),
            ) {
                Ok(printed) => layouts.extend(printed.rates.first().map(|rate| Layout {
                    batch,
                    sessions,
                    threads,
                    per_wall_s: rate.per_wall_s,
                })),
                Err(e) => tracing::debug!(model = model.card.name, sessions, threads, "{e:#}"),
            }
        }
        if let Some(row) = self.table.rows.iter_mut().find(known) {
            row.layouts = [known_layouts, layouts.clone()].concat();
            self.write();
        }
        Ok(layouts)
    }

    /// Builds a GPU's engine, which takes longer than measuring it may.
    fn build(&self, engine: Engine, told: &mut dyn FnMut(&str)) -> Result<()> {
        let place = Place::of(self.libraries, &Gpu::open(self.libraries.device)?)?;
        let file = image_file(self.model, engine.precision)?;
        let wanted = Wanted::new(&file, engine.precision, USUAL_BATCH);
        tensorrt::engine(&place, &wanted, &mut |line| {
            told(line);
            true
        })
        .map(drop)
    }

    /// Has another process measure, and reads its rates.
    fn child(
        &self,
        engine: Engine,
        vectors: &Path,
        batches: &[usize],
        seconds: f64,
        (sessions, threads): (usize, usize),
    ) -> Result<Printed> {
        let Some(program) = self.program else {
            let name = &self.model.card.name;
            bail!("what runs {name} was not measured here yet\nhint: clipmill doctor --measure");
        };
        let list: Vec<String> = batches.iter().map(usize::to_string).collect();
        let mut child = Command::new(program)
            .arg("measure-engine")
            .arg(&self.model.folder)
            .args(["--engine", &engine.to_string(), "--batches", &list.join(",")])
            .args(["--sessions", &sessions.to_string(), "--threads", &threads.to_string()])
            .args(["--device", &self.libraries.device.to_string()])
            .args(["--seconds", &seconds.to_string(), "--vectors"])
            .arg(vectors)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", program.display()))?;
        let started = Instant::now();
        while child.try_wait()?.is_none() {
            if started.elapsed() > DEADLINE {
                let _ = child.kill();
                let _ = child.wait();
                bail!("no result after {} s", DEADLINE.as_secs());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let output = child.wait_with_output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            let said = said.lines().find_map(|line| line.strip_prefix("error: ")).map(str::to_owned);
            bail!("{}", said.unwrap_or_else(|| format!("it ended with {}", output.status)));
        }
        serde_json::from_slice(&output.stdout).context("its figures cannot be read")
    }

    fn nearness(&self, engine: Engine, reference: &Path, own: &Path) -> Result<(f64, f64)> {
        let dim = self.model.card.image.dim;
        let (reference, own) = (read_vectors(reference, dim)?, read_vectors(own, dim)?);
        let pairs = reference.iter().zip(&own).map(|(a, b)| cosines(a, b, N_PICTURES));
        let nearness = pairs.reduce(|a, b| {
            let (a, b) = (a?, b?);
            Some((a.0.min(b.0), a.1.min(b.1)))
        });
        let mut near = nearness.flatten().ok_or_else(|| anyhow!("its vectors are of another size"))?;
        if engine.precision == Precision::Int8
            && let Some(held_out) = Quantized::read(self.model)?
        {
            // The user's own frames have seen it, too.
            near = (near.0.min(held_out.mean_cosine), near.1.min(held_out.least_cosine));
        }
        ensure!(near.0.is_finite() && near.1.is_finite(), "its vectors are no numbers");
        Ok(near)
    }

    /// A folder to measure in, by one process at a time: two would slow one another. With it what it lies in,
    /// where that is not the data folder.
    fn scratch(&self) -> Result<(Scratch, Option<tempfile::TempDir>)> {
        let open = |engines: &Path| {
            fs::create_dir_all(engines)?;
            Scratch::open(engines.join("scratch"), &engines.join("lock"), || ())
        };
        let engines = self.path.parent().unwrap_or(&self.path);
        match open(engines) {
            Ok(scratch) => Ok((scratch, None)),
            // A data folder that cannot be written is no reason not to run.
            Err(e) => tempfile::tempdir()
                .and_then(|elsewhere| Ok((open(elsewhere.path())?, Some(elsewhere))))
                .with_context(|| format!("cannot write to {} ({e}) nor", self.path.display())),
        }
    }

    /// Remembers the table; a folder that cannot be written only costs measuring again.
    fn write(&self) {
        let text = serde_json::to_vec_pretty(&self.table).map_err(std::io::Error::from);
        if let Err(e) = text.and_then(|text| write_whole(&self.path, &text)) {
            tracing::warn!("cannot remember the measured engines in {}: {e}", self.path.display());
        }
    }
}

/// The GPU of an engine for one, with what runs it there.
fn device(engine: Engine, libraries: &Libraries) -> Option<String> {
    if !engine.is_on_gpu() {
        return None;
    }
    let gpu = Gpu::open(libraries.device).ok()?;
    let ((major, minor), version) = (gpu.capability().ok()?, network::tensorrt_version(libraries).ok()?);
    Some(format!("{} of capability {major}.{minor}, {version}", gpu.name().ok()?))
}

/// Engines that this machine has for the model, the reference first. GPUs are looked at where `with_gpu`.
pub fn candidates(model: &Model, libraries: &Libraries, with_gpu: bool) -> Vec<Engine> {
    let reference = reference(libraries);
    let has_int8 = Quantized::read(model).ok().flatten().is_some();
    let backends = [
        Some(reference.backend),
        libraries.openvino.as_ref().map(|_| Backend::Openvino),
        (with_gpu && Gpu::count().is_ok_and(|n| n > 0)).then_some(Backend::Tensorrt),
    ];
    let mut engines = vec![reference];
    for backend in backends.into_iter().flatten() {
        let own = Precision::ALL
            .into_iter()
            .filter(|precision| has_int8 || *precision != Precision::Int8)
            .map(|precision| Engine { backend, precision });
        engines.extend(own.filter(|engine| check(*engine, libraries).is_ok()));
    }
    engines.dedup();
    engines
}

/// A row for people.
pub fn line(row: &Row) -> String {
    let engine = row.engine.to_string();
    match &row.found {
        Err(reason) => format!("{engine:<14} {}", reason.replace('\n', "; ")),
        Ok(found) => {
            let (batch, rate) = found.best(row.engine).map_or((0, 0.0), |r| (r.batch, r.of(row.engine)));
            let clock = if row.engine.is_on_gpu() { "" } else { "CPU " };
            format!(
                "{engine:<14} {rate:>7.1} images a {clock}second in batches of {batch:>2}; cosine to fp32 {:.5} in the mean, {:.5} at least",
                found.mean_cosine, found.least_cosine
            )
        }
    }
}

/// What the figures depend on.
fn machine(model: &Model, libraries: &Libraries) -> Result<Vec<String>> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let mut lines =
        vec![format!("routine {ROUTINE}, {cores} cores"), cpu(), format!("model {}", model.hash()?)];
    for library in [Some(&libraries.onnxruntime), libraries.openvino.as_ref()].into_iter().flatten() {
        let version = kernels::onnxruntime::version(library).unwrap_or_else(|| "none".into());
        let bytes = fs::metadata(library).map_or(0, |meta| meta.len());
        lines.push(format!("{} version {version}, {bytes} bytes", library.display()));
    }
    lines.push(RTEN.to_owned());
    // OpenVINO is many libraries, the first of which may stay when others change.
    let beside = libraries.openvino.as_ref().and_then(|library| fs::read_dir(library.parent()?).ok());
    let mut parts: Vec<String> = beside
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some(format!("{:?} {}", entry.file_name(), entry.metadata().ok()?.len())))
        .collect();
    parts.sort();
    lines.push(parts.join(", "));
    if let Some(quantized) = Quantized::read(model)? {
        let form = hash_file(&model.file(&quantized.file)).unwrap_or_default();
        lines.push(format!("int8 {form}, {} {}", quantized.mean_cosine, quantized.least_cosine));
    }
    Ok(lines)
}

/// Name and features of the CPU, as the kernel tells them.
fn cpu() -> String {
    let mut text = String::new();
    let read = fs::File::open("/proc/cpuinfo").and_then(|mut file| file.read_to_string(&mut text));
    if read.is_err() {
        return std::env::consts::ARCH.to_owned();
    }
    let of = |key: &str| {
        let line = text.lines().find(|line| line.starts_with(key));
        line.and_then(|line| line.split_once(": ")).map(|(_, value)| value.trim().to_owned())
    };
    let features = of("flags").or_else(|| of("Features")).unwrap_or_default();
    format!(
        "{}, features {}",
        of("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
        &blake3::hash(features.as_bytes()).to_hex()[..16]
    )
}
