//! Each stage alone, fed from memory, then the whole line, on a folder of clips.
//!
//! `cargo bench --bench stages -- CLIPS [--every-ms 500]`. The last line is the ratio that matters:
//! the whole line's clips a second over those of its slowest stage alone with the same workers.

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use benches::{Case, print, program, save};
use clap::Parser;
use pipeline::{
    config::{Config, Override},
    edge::{Flow, Limits, edge},
    engines::choose,
    progress::eprint_line,
    run::{self, Options},
    runner::Runner,
    stop::Stop,
    topology::{decode_settings, encode_settings},
};
use stages::{
    clips::{ClipList, Label},
    decode::Decode,
    encode::{Encode, network::Libraries, quantized::image_file},
    index::{
        self, Index,
        ledger::Ledger,
        schema::{Element, VectorShape},
        shard::Provenance,
    },
    item::{
        ClipEnd, ClipId, ClipRef, EmbeddingBatch, EncodedClip, FileIdentity, FrameBatch, FrameInfo, Indexed,
        Part, Pts,
    },
    load::Load,
    model::{Home, Model},
    stage::{Kept, Stage},
    tensors::{TensorPool, Tensors},
};

#[derive(Parser)]
struct Args {
    /// Folder of clips
    clips: String,
    /// Sampling
    #[arg(long, default_value_t = 500)]
    every_ms: u64,
    /// Workers that decode, and as many that encode; all cores by default
    #[arg(long, default_value_t = 0)]
    workers: usize,
    /// Stop after the decode stage
    #[arg(long)]
    decode_only: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

const NO_LIMITS: Limits = Limits { items: usize::MAX >> 8, bytes: usize::MAX };

/// Runs a stage alone over items that are all in memory, dropping what it emits. Opening is not timed.
fn alone<S: Stage>(
    name: &'static str,
    unit: &'static str,
    workers: usize,
    items: Vec<S::In>,
    n: impl Fn(&S::Out) -> u64,
    open: impl Fn() -> Result<S> + Send + Sync + 'static,
) -> Result<Case> {
    let stop = Stop::default();
    let limits = Limits { items: items.len().max(1), ..NO_LIMITS };
    let (input, listed) = edge(limits, &stop);
    let (output, received) = edge::<S::Out>(Limits { items: 4096, ..NO_LIMITS }, &stop);
    let barrier = Arc::new(std::sync::Barrier::new(workers + 1));
    let mut runner = Runner::new(stop.clone());
    let at_start = barrier.clone();
    runner.spawn(name, workers, listed, output, move || {
        let stage = open();
        at_start.wait();
        stage
    })?;
    barrier.wait();
    Case::measure(&format!("{name} alone, {workers} workers"), unit, move || {
        for item in items {
            input.send(Flow::Item(item))?;
        }
        drop(input);
        let mut sum = 0;
        while let Some(flow) = received.recv().map_err(|_| anyhow!("{:?}", stop.fault()))? {
            if let Flow::Item(item) = flow {
                sum += n(&item);
            }
        }
        runner.join();
        Ok(sum)
    })
}

fn clip_refs(list: &ClipList) -> Result<Vec<Arc<ClipRef>>> {
    let entries = list.iter()?.enumerate();
    entries
        .map(|(i, e)| {
            let e = e?;
            Ok(Arc::new(ClipRef { id: ClipId(i as u64), path: e.path, label: e.label, extra: e.extra }))
        })
        .collect()
}

/// Frames as the decode stage emits them, with the clips' real lengths: `counts` rows each.
fn frame_batches(clips: &[Arc<ClipRef>], counts: &[u32], batch: usize, tensor_len: usize) -> Vec<FrameBatch> {
    let pool = TensorPool::new(batch * tensor_len);
    let mut batches = Vec::new();
    let (mut parts, mut room) = (Vec::new(), batch);
    for (clip, n) in clips.iter().zip(counts) {
        let mut infos: Vec<FrameInfo> = (0..*n).map(info).collect();
        while !infos.is_empty() {
            let rest = infos.split_off(room.min(infos.len()));
            room -= infos.len();
            let end = rest.is_empty().then(|| Box::new(end(*n)));
            parts.push(Part { clip: clip.clone(), frames: std::mem::replace(&mut infos, rest), end });
            if room == 0 {
                batches.push(FrameBatch {
                    parts: std::mem::take(&mut parts),
                    tensors: Tensors::Host(pool.take()),
                });
                room = batch;
            }
        }
    }
    if !parts.is_empty() {
        batches.push(FrameBatch { parts, tensors: Tensors::Host(pool.take()) });
    }
    batches
}

fn info(i: u32) -> FrameInfo {
    FrameInfo { frame_index: i, pts: Pts { nanos: i64::from(i) * 500_000_000 }, is_keyframe: i == 0 }
}

fn end(n: u32) -> ClipEnd {
    ClipEnd {
        identity: FileIdentity { content_hash: blake3::hash(b""), bytes: 0, modified_ns: 0 },
        codec: "mpeg4".into(),
        container: "avi".into(),
        width: 320,
        height: 240,
        fps: 25.0,
        duration_ns: i64::from(n) * 500_000_000,
        n_frames: n * 12,
        n_sampled: n,
        decoder: "avdec_mpeg4".into(),
        damage: None,
    }
}

fn embedding_batches(clips: &[Arc<ClipRef>], counts: &[u32], dim: usize) -> Vec<EmbeddingBatch> {
    let vector = |i: u32| (0..dim).map(move |d| ((d as u32 * 31 + i * 17) % 101) as f32 / 1000.0 - 0.05);
    let rows = |(clip, n): (&Arc<ClipRef>, &u32)| EmbeddingBatch {
        clip: clip.clone(),
        frames: (0..*n).map(info).collect(),
        embeddings: (0..*n).flat_map(vector).collect(),
        image_embeddings: Vec::new(),
        end: Some(Box::new(end(*n))),
    };
    clips.iter().zip(counts).map(rows).collect()
}

fn load_all(clips: &[Arc<ClipRef>]) -> Result<Vec<EncodedClip>> {
    let (mut load, mut kept) = (Load::open(), Kept(Vec::new()));
    for clip in clips {
        load.process(clip.clone(), &mut kept)?;
    }
    Ok(kept.0)
}

fn main() -> Result<()> {
    let Args { clips, every_ms, workers, decode_only, .. } = Args::parse();
    let scratch = tempfile::tempdir()?;
    let out = scratch.path().join("run");
    let cores = std::thread::available_parallelism()?.get();
    let set = |key: &str, value: String| Override { key: key.into(), value };
    let overrides = [
        set("input.clips", serde_json::to_string(&clips)?),
        set("output.dir", serde_json::to_string(&out)?),
        set("sample.every_ms", every_ms.to_string()),
        set("decode.workers", workers.to_string()),
        set("encode.workers", workers.to_string()),
    ];
    let config = Config::parse("bench", "", &overrides, cores)?;
    let home = Home::from_env();
    let model = Model::find(&config.encode.model, &home)?;
    let refs = clip_refs(&ClipList::open(&clips, Label::None)?)?;
    let mut cases = Vec::new();

    cases.push(alone("load", "clips", config.load.workers, refs.clone(), |_| 1, || Ok(Load::open()))?);
    let wanted = &config.encode.engine;
    let chosen = choose(wanted, None, &model, &home, program().as_deref(), &mut eprint_line)?;
    let settings = decode_settings(&config, &model, chosen.batch);
    let loaded = load_all(&refs)?;
    let n_loaded = loaded.len();
    let counts = Arc::new(std::sync::Mutex::new(vec![0u32; refs.len()]));
    let seen = counts.clone();
    let ends = move |b: &FrameBatch| {
        let ended = b.parts.iter().filter_map(|p| p.end.as_ref().map(|end| (p.clip.id.0, end.n_sampled)));
        let Ok(mut counts) = seen.lock() else { return 0 };
        ended.map(|(id, n)| counts[id as usize] = n).count() as u64
    };
    cases.push(alone("decode", "clips", config.decode.workers, loaded, ends, move || {
        Decode::open(settings.clone())
    })?);
    anyhow::ensure!(cases[1].n == n_loaded as u64, "some clips do not decode: choose others");
    if decode_only {
        return Ok(());
    }
    let counts = counts.lock().map_err(|_| anyhow!("poisoned"))?.clone();

    let n_frames: u64 = counts.iter().map(|n| u64::from(*n)).sum();
    // All frames at once would not fit: enough of them for a steady figure.
    let few = refs
        .len()
        .min((2 << 30) / (n_frames as usize / refs.len().max(1) + 8) / (4 * model.recipe().tensor_len()));
    let batches = frame_batches(&refs[..few], &counts[..few], chosen.batch, model.recipe().tensor_len());
    let image = image_file(&model, chosen.engine.precision)?;
    let (settings, libraries) = (encode_settings(&config, &model, image, &chosen), Libraries::find(&home));
    let rows = |b: &EmbeddingBatch| b.frames.len() as u64;
    cases.push(alone("encode", "frames", chosen.workers, batches, rows, move || {
        Encode::open(&settings, &libraries)
    })?);

    let rows = embedding_batches(&refs, &counts, model.card.joint.dim);
    let folder = scratch.path().join("index");
    let shape = VectorShape { dim: model.card.joint.dim, image_dim: 0, element: Element::Float16 };
    let ledger = std::sync::Mutex::new(Some(Ledger::open(&folder)?.0));
    let settings = index::Settings {
        folder,
        shard_rows: config.index.shard_rows,
        shape,
        extra_columns: Vec::new(),
        vectors: true,
        settings_hash: String::new(),
        provenance: Provenance {
            model: String::new(),
            model_hash: String::new(),
            preprocess_hash: String::new(),
        },
    };
    cases.push(alone(
        "index",
        "clips",
        1,
        rows,
        |i: &Indexed| u64::from(matches!(i, Indexed::Clip { .. })),
        move || {
            let ledger = ledger.lock().ok().and_then(|mut l| l.take()).context("one worker")?;
            Index::open(settings.clone(), ledger)
        },
    )?);

    let whole = Case::measure("the whole line", "clips", || {
        run::run(config.clone(), Options { quiet: true, limit: None, program: program() })?;
        Ok(n_loaded as u64)
    })?;
    let frames_a_clip = n_frames as f64 / refs.len() as f64;
    let clips_a_second =
        |c: &Case| if c.unit == "frames" { c.per_wall_s() / frames_a_clip } else { c.per_wall_s() };
    let slowest = cases.iter().map(clips_a_second).fold(f64::INFINITY, f64::min);
    print(&format!(
        "{n_frames} frames of {} clips; the whole line does {:.2} of its slowest stage alone ({:.1} of {:.1} clips/s)",
        refs.len(),
        whole.per_wall_s() / slowest,
        whole.per_wall_s(),
        slowest
    ));
    // Stages that work at once share the cores: together they cannot be faster than their CPU time allows.
    let cpu_a_clip: f64 = cases
        .iter()
        .map(|c| c.cpu_s / c.n as f64 * if c.unit == "frames" { frames_a_clip } else { 1.0 })
        .sum();
    print(&format!(
        "the stages take {:.1} CPU ms a clip, so {cores} cores allow {:.1} clips/s: the whole line does {:.2} of that",
        cpu_a_clip * 1e3,
        cores as f64 / cpu_a_clip,
        whole.per_wall_s() * cpu_a_clip / cores as f64
    ));
    cases.push(whole);
    save("stages", &cases)
}
