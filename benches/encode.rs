//! Encoding alone, by one engine and one session: tensors to embeddings.
//!
//! `cargo bench --bench encode -- MODEL [--backend auto] [--precision fp32] [--batch 8] [--threads 1]
//! [--seconds 5] [--stage]`. Prints one JSON line like `peers/encode.py`, which measures the same in
//! Python. With `--stage` the whole encode stage runs, fed as by decoders, instead of the bare engine; its
//! ratio to the bare engine, in turn, is what the stage costs.

use std::{path::PathBuf, sync::Arc, time::Instant};

use anyhow::{Context as _, Result, anyhow};
use benches::{print, program};
use clap::Parser;
use pipeline::{
    engines::{Wanted, choose},
    progress::eprint_line,
    run::cpu_seconds,
};
use stages::{
    encode::{
        self, Encode,
        image::ImageTower,
        network::{Backend, Libraries, Opening, Precision},
        quantized::image_file,
    },
    item::{ClipId, ClipRef, EmbeddingBatch, FrameBatch, FrameInfo, Part, Pts},
    model::{Home, Model},
    stage::{Closed, Emit, Rejection, Stage as _},
    tensors::{TensorPool, Tensors},
};

#[derive(Parser)]
struct Args {
    /// Folder or name of a model
    model: PathBuf,
    /// auto, onnx (or onnxruntime), openvino or rten
    #[arg(long, default_value = "auto")]
    backend: String,
    /// auto, fp32, bf16 or int8
    #[arg(long, default_value = "auto")]
    precision: String,
    #[arg(long, default_value_t = 8)]
    batch: usize,
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// By the clock
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// The stage instead of the engine alone
    #[arg(long)]
    stage: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// Counts rows.
struct Count(u64);

impl Emit<EmbeddingBatch> for Count {
    fn emit(&mut self, batch: EmbeddingBatch) -> Result<(), Closed> {
        self.0 += batch.frames.len() as u64;
        Ok(())
    }
    fn reject(&mut self, _: Rejection) -> Result<(), Closed> {
        Ok(())
    }
}

/// As `peers/encode.py` fills its batch: f32 in [-1, 1), value i by the hash of i (Wellons's lowbias32).
fn pixels(n: usize) -> Vec<f32> {
    let value = |i: usize| {
        let mut x = i as u32;
        for (shift, factor) in [(16, 0x7feb_352d), (15, 0x846c_a68b)] {
            x = (x ^ (x >> shift)).wrapping_mul(factor);
        }
        x ^= x >> 16;
        (x >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(value).collect()
}

/// The one of `all` with this word.
fn named<T: Copy>(all: &[T], word_of: fn(T) -> &'static str, word: &str) -> Result<T> {
    let found = all.iter().copied().find(|one| word_of(*one) == word);
    found.with_context(|| {
        format!(
            "{word} is neither auto nor one of {:?}",
            all.iter().map(|one| word_of(*one)).collect::<Vec<_>>()
        )
    })
}

fn main() -> Result<()> {
    let args = Args::parse();
    let home = Home::from_env();
    let model = Model::find(&args.model.to_string_lossy(), &home)?;
    let wanted = Wanted {
        backend: match args.backend.as_str() {
            "auto" => None,
            // As `peers/encode.py` names it.
            "onnxruntime" => Some(Backend::Onnx),
            word => Some(named(&Backend::ALL, Backend::word, word)?),
        },
        precision: match args.precision.as_str() {
            "auto" => None,
            word => Some(named(&Precision::ALL, Precision::word, word)?),
        },
        batch: Some(args.batch),
        on_gpu: false,
        device: 0,
        workers: Some(1),
        threads: Some(args.threads),
        min_cosine: Wanted::MIN_COSINE,
    };
    let chosen = choose(&wanted, None, &model, &home, program().as_deref(), &mut eprint_line)?;
    let libraries = Libraries::find(&home);
    let opening = Opening { engine: chosen.engine, threads: args.threads };
    let n = args.batch;
    let tensors = pixels(n * model.recipe().tensor_len());

    let mut one: Box<dyn FnMut() -> Result<()>> = if args.stage {
        let image = image_file(&model, opening.engine.precision)?;
        let settings = encode::Settings {
            model: model.clone(),
            image,
            opening,
            keep_image_embedding: false,
            batch: 0,
            device: 0,
        };
        let mut stage = Encode::open(&settings, &libraries)?;
        let pool = TensorPool::new(tensors.len());
        let clip = Arc::new(ClipRef { id: ClipId(0), path: String::new(), label: None, extra: Vec::new() });
        Box::new(move || {
            let mut buffer = pool.take();
            // Decoders fill it elsewhere: the same numbers are there after the first time.
            if buffer[0] != tensors[0] {
                buffer.copy_from_slice(&tensors);
            }
            let info = FrameInfo { frame_index: 0, pts: Pts { nanos: 0 }, is_keyframe: true };
            let parts = vec![Part { clip: clip.clone(), frames: vec![info; n], end: None }];
            let mut count = Count(0);
            stage
                .process(FrameBatch { parts, tensors: Tensors::Host(buffer) }, &mut count)
                .map_err(|e| anyhow!("{e}"))?;
            anyhow::ensure!(count.0 == n as u64, "{} rows of {n} frames", count.0);
            Ok(())
        })
    } else {
        let mut tower = ImageTower::open(&model, opening, &libraries)?;
        Box::new(move || tower.encode(&tensors, n).map(drop))
    };
    for _ in 0..3 {
        one()?;
    }
    let (cpu, started, mut images) = (cpu_seconds(), Instant::now(), 0);
    while started.elapsed().as_secs_f64() < args.seconds {
        one()?;
        images += n;
    }
    let line = serde_json::json!({
        "engine": chosen.engine.to_string(), "precision": chosen.engine.precision, "batch": n,
        "threads": args.threads, "images": images, "cpu_s": cpu_seconds() - cpu,
        "wall_s": started.elapsed().as_secs_f64(),
    });
    print(&line.to_string());
    Ok(())
}
