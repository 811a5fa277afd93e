//! The wiring: the only file that knows all the stages.
//!
//! ```text
//! clip list → feed ─▶ load ─▶ decode ─▶ encode ─▶ index ─▶ the caller
//! ```
//!
//! On GPUs, each device has a lane: decode and encode workers with an edge of their own, for batches lie in its
//! memory. All lanes draw clips from one edge, so a faster card takes more, and end in one index.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use anyhow::{Context as _, Result};
use stages::{
    clips::ClipList,
    decode::{self, Decode, cores::Cores},
    encode::{
        self, Encode,
        joint::JointSpace,
        network::{self, Libraries, Opening},
        quantized::image_file,
    },
    index::{
        self, Index,
        ledger::{Done, Ledger, PathKey, Standing},
        schema::VectorShape,
        shard::Provenance,
    },
    item::{ClipId, ClipRef, Indexed},
    load::{Load, modified_ns},
    model::{Home, Model},
    stage::StageError,
};

use crate::{
    config::Config,
    edge::{Flow, Limits, Receiver, Sender, edge},
    engines::{Chosen, choose},
    lanes::{self, Lanes},
    record::Record,
    runner::{Runner, StageMeter},
    stop::Stop,
};

/// Everything a run needs, found and checked; nothing is running yet.
pub struct Opened {
    config: Config,
    model: Model,
    image: PathBuf,
    libraries: Libraries,
    chosen: Chosen,
    lanes: Lanes,
    clips: ClipList,
    ledger: Ledger,
    standing: Standing,
    record: Record,
}

/// A run under way.
pub struct Running {
    /// What the index stage tells, and rejections.
    pub told: Receiver<Indexed>,
    /// The switch.
    pub stop: Stop,
    /// Counts of the feed.
    pub fed: Arc<Fed>,
    runner: Runner,
}

/// What the feed did.
#[derive(Debug, Default)]
pub struct Fed {
    /// Clips indexed by an earlier run, and unchanged.
    pub n_unchanged: AtomicU64,
    /// Clips rejected by an earlier run.
    pub n_rejected_before: AtomicU64,
    /// Clips indexed by an earlier run whose file has changed since.
    pub n_changed: AtomicU64,
    /// Entries that name a clip listed before.
    pub n_listed_twice: AtomicU64,
}

impl Opened {
    /// Looks at everything that the settings name, and opens the output folder for this process.
    /// Errors here are the user's to mend: no clip has been touched.
    pub fn open(
        config: Config,
        home: &Home,
        program: Option<&Path>,
        limit: Option<u64>,
        told: &mut dyn FnMut(&str),
    ) -> Result<Self> {
        let clips = ClipList::open(&config.input.clips, config.input.label.clone())?;
        let model = Model::find(&config.encode.model, home)?;
        // Loaded once here, so that a model that cannot work stops the run before it starts.
        JointSpace::open(&model)?;
        let libraries = Libraries::find(home);
        let dir = &config.output_dir;
        let there = Record::at(dir)?;
        // A run that goes on keeps its engine, whatever would be chosen today.
        let recorded = there.as_ref().map(|record| record.engine);
        let chosen = choose(&config.encode.engine, recorded, &model, home, program, told)?;
        told(&format!("{} by {chosen}", model.card.name));
        let image = image_file(&model, chosen.engine.precision)?;
        let runtime = network::runtime(chosen.engine, &libraries)?;
        let record = Record::new(&config, &model, &clips, &image, &chosen, &runtime, limit)?;
        there.map_or(Ok(()), |there| record.check_continues(&there, dir))?;
        let plan = lanes::Plan {
            config: &config,
            model: &model,
            image: &image,
            chosen: &chosen,
            libraries: &libraries,
            home,
        };
        let lanes = plan.open(told)?;
        fs::create_dir_all(dir).with_context(|| format!("output.dir: cannot create {}", dir.display()))?;
        let (ledger, standing) =
            Ledger::open(dir).with_context(|| format!("output.dir: {}", dir.display()))?;
        record.write(dir)?;
        Ok(Self { config, model, image, libraries, chosen, lanes, clips, ledger, standing, record })
    }

    /// How the run stood when it was opened.
    pub fn standing(&self) -> &Standing {
        &self.standing
    }

    /// Clips that this run is to account for.
    pub fn n_listed(&self, limit: Option<u64>) -> u64 {
        limit.unwrap_or(u64::MAX).min(self.clips.n_clips())
    }

    /// Starts all threads.
    pub fn start(self, stop: Stop, limit: Option<u64>) -> Result<(Running, Record)> {
        let Self { config, model, image, libraries, chosen, lanes, clips, ledger, standing, record } = self;
        let Config { load, decode, index, .. } = &config;
        let in_flight = |workers: usize| 2 * workers + 8;
        let mib = 1 << 20;
        let (to_load, listed) = edge(Limits { items: 64, bytes: mib }, &stop);
        let (to_decode, loaded) =
            edge(Limits { items: in_flight(decode.workers), bytes: load.ahead_bytes }, &stop);
        let (to_index, encoded) = edge(Limits { items: 64, bytes: 16 * mib }, &stop);
        let (to_caller, told) = edge(Limits { items: 1024, bytes: mib }, &stop);

        let mut runner = Runner::new(stop.clone());
        let fed = Arc::new(Fed::default());
        let shape = VectorShape {
            dim: model.card.joint.dim,
            image_dim: if index.keep_image_embedding && record.has_joint_space_of_its_own() {
                model.card.image.dim
            } else {
                0
            },
            element: index.embedding,
        };
        let index_settings = index::Settings {
            folder: config.output_dir.clone(),
            shard_rows: index.shard_rows,
            vectors: index.vectors.is_some(),
            shape,
            extra_columns: clips.extra_columns().to_vec(),
            settings_hash: record.settings_hash()?,
            provenance: Provenance {
                model: model.card.name.clone(),
                model_hash: record.model_hash.clone(),
                preprocess_hash: record.preprocess_hash.clone(),
            },
        };
        let feed = Feed { clips, standing, fed: fed.clone(), stop: stop.clone(), limit };
        runner.feed(to_load, move |out| feed.run(out))?;
        runner.spawn("load", load.workers, listed, to_decode, || Ok(Load::open()))?;
        let mut decoded = Vec::new();
        for lanes::Opened { lane, nvdec, encode_device } in lanes.all {
            // A lane's batches are bounded by its pool.
            let bytes = if lane.is_some() { usize::MAX } else { decode.ahead_bytes };
            let (to_encode, own) = edge(Limits { items: in_flight(chosen.workers), bytes }, &stop);
            let usual = decode_settings(&config, &model, chosen.batch);
            let settings = decode::Settings { lane, nvdec, ..usual };
            let open = move || Decode::open(settings.clone());
            runner.spawn("decode", lanes.decode_workers, loaded.clone(), to_encode, open)?;
            decoded.push((own, encode_device));
        }
        drop(loaded);
        for (decoded, device) in decoded {
            let settings = encode_settings(&config, &model, image.clone(), &chosen);
            let (settings, libraries) = (encode::Settings { device, ..settings }, libraries.clone());
            let open = move || Encode::open(&settings, &libraries);
            runner.spawn("encode", chosen.workers, decoded, to_index.clone(), open)?;
        }
        drop(to_index);
        // One worker: a clip's rows meet in one place, and the ledger has one writer.
        let index = std::sync::Mutex::new(Some((index_settings, ledger)));
        runner.spawn("index", 1, encoded, to_caller, move || {
            let taken = index.lock().ok().and_then(|mut i| i.take());
            let (settings, ledger) = taken.context("the index stage has one worker")?;
            Index::open(settings, ledger)
        })?;
        Ok((Running { told, stop, fed, runner }, record))
    }
}

impl Running {
    /// Waits for all threads.
    pub fn join(self) -> Vec<StageMeter> {
        drop(self.told);
        self.runner.join()
    }
}

/// The decode stage's settings for a model.
pub fn decode_settings(config: &Config, model: &Model, batch: usize) -> decode::Settings {
    decode::Settings {
        backend: config.decode.backend,
        sampling: config.sampling,
        plan: config.decode.plan,
        threads: config.decode.threads,
        cores: Cores::new(config.decode.cores),
        reading: config.decode.reading,
        stall: config.decode.stall,
        keep_damaged: config.decode.keep_damaged,
        batch_frames: batch,
        recipe: model.recipe(),
        nvdec: None,
        lane: None,
    }
}

/// The encode stage's settings for a model.
pub fn encode_settings(config: &Config, model: &Model, image: PathBuf, chosen: &Chosen) -> encode::Settings {
    encode::Settings {
        model: model.clone(),
        image,
        opening: Opening { engine: chosen.engine, threads: chosen.threads },
        keep_image_embedding: config.index.keep_image_embedding,
        batch: chosen.batch,
        device: 0,
    }
}

/// Sends the listed clips that are not done yet.
struct Feed {
    clips: ClipList,
    standing: Standing,
    fed: Arc<Fed>,
    stop: Stop,
    limit: Option<u64>,
}

impl Feed {
    fn run(mut self, out: &Sender<Arc<ClipRef>>) -> Result<(), StageError> {
        let mut next = self.standing.next_clip();
        let limit = self.limit.unwrap_or(u64::MAX);
        let mut seen = std::mem::take(&mut self.standing.done);
        for entry in self.clips.iter()?.take(usize::try_from(limit).unwrap_or(usize::MAX)) {
            if self.stop.is_draining() {
                break;
            }
            let entry = entry?;
            let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
            let is_unchanged = |bytes: u64, then: i64| match Path::new(&entry.path).metadata() {
                Ok(meta) => meta.len() == bytes && modified_ns(&meta) == then,
                Err(_) => bytes == 0 && then == 0,
            };
            // A clip of this run is entered as well, so that a second mention of it is seen.
            match seen.insert(PathKey::of(&entry.path), Done::Listed) {
                Some(Done::Listed) => {
                    tracing::warn!(path = entry.path, "listed more than once; it is indexed once");
                    count(&self.fed.n_listed_twice);
                }
                Some(Done::Indexed { bytes, modified_ns }) if is_unchanged(bytes, modified_ns) => {
                    count(&self.fed.n_unchanged);
                }
                Some(Done::Indexed { .. }) => {
                    tracing::warn!(path = entry.path, "changed or gone since it was indexed; its rows stay");
                    count(&self.fed.n_changed);
                }
                Some(Done::Rejected { bytes, modified_ns, may_pass: false })
                    if is_unchanged(bytes, modified_ns) =>
                {
                    count(&self.fed.n_rejected_before);
                }
                Some(Done::Rejected { .. }) | None => {
                    let clip = ClipRef { id: next, path: entry.path, label: entry.label, extra: entry.extra };
                    next = ClipId(next.0 + 1);
                    out.send(Flow::Item(Arc::new(clip)))?;
                }
            }
        }
        Ok(())
    }
}
