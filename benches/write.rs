//! Writing of shards alone: the index stage on one thread, fed rows from memory.
//!
//! `cargo bench --bench write -- VECTORS.npy [--rows 100000] [--embedding float16] [--image-dim 0]
//! [--frames 16] [--part 8]`. The file holds rows of float16 or float32. Prints one JSON line: CPU seconds
//! of the stage, bytes a row of `frames/`, and the process's peak memory less that before the first row.

use std::{fs, path::PathBuf, time::Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use benches::{
    print,
    vectors::{Rows, parts, settings},
};
use clap::Parser;
use pipeline::{engines::measure::kernel_mib, run::cpu_seconds};
use stages::{
    index::{
        Index,
        ledger::Ledger,
        manifest::Manifest,
        schema::{Element, VectorShape},
    },
    stage::{Kept, Stage as _},
};

#[derive(Parser)]
struct Args {
    /// NumPy file of shape rows × dimension
    vectors: PathBuf,
    /// At most so many rows
    #[arg(long, default_value_t = 100_000)]
    rows: usize,
    /// float16 or float32
    #[arg(long, default_value = "float16")]
    embedding: String,
    /// Length of a second vector in each row
    #[arg(long, default_value_t = 0)]
    image_dim: usize,
    /// Frames of a clip
    #[arg(long, default_value_t = 16)]
    frames: usize,
    /// Frames of a part, as batches cut clips
    #[arg(long, default_value_t = 8)]
    part: usize,
    /// Rows of a shard
    #[arg(long, default_value_t = 100_000)]
    shard_rows: u64,
    /// Where to write; removed before and after
    #[arg(long)]
    out: Option<PathBuf>,
    /// Leave what was written
    #[arg(long)]
    keep: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// The most memory that the process held.
fn peak_mib() -> u64 {
    kernel_mib("/proc/self/status", "VmHWM")
}

fn main() -> Result<()> {
    let args = Args::parse();
    let mut rows = Rows::open(&args.vectors)?;
    let element = Element::ALL.into_iter().find(|e| e.word() == args.embedding);
    let element = element.with_context(|| format!("--embedding {}: float16 or float32", args.embedding))?;
    let dim = rows.dim;
    let n = args.rows.min(rows.n) / args.frames * args.frames;
    ensure!(n > 0, "no rows");
    let scratch = tempfile::tempdir()?;
    let folder = args.out.clone().unwrap_or_else(|| scratch.path().join("run"));
    let shape = VectorShape { dim, image_dim: args.image_dim, element };
    let settings = settings(&folder, shape, args.shard_rows);
    fs::create_dir_all(&folder)?;
    let (ledger, standing) = Ledger::open(&folder)?;
    ensure!(standing.shards.is_empty(), "{} holds a run", folder.display());
    let mut stage = Index::open(settings, ledger)?;
    const CLIPS_AT_ONCE: usize = 64;
    let (mut cpu_s, mut wall_s, mut before_mib) = (0.0, 0.0, 0);
    let (mut done, mut id) = (0, 0);
    while done < n {
        let now = (CLIPS_AT_ONCE * args.frames).min(n - done);
        let vectors = rows.next(now)?;
        let mut batches = Vec::new();
        for clip in vectors.chunks(args.frames * dim) {
            batches.extend(parts(id, clip, dim, args.image_dim, args.part));
            id += 1;
        }
        drop(vectors);
        if done == 0 {
            before_mib = peak_mib();
        }
        let (cpu, wall) = (cpu_seconds(), Instant::now());
        for batch in batches {
            stage.process(batch, &mut Kept(Vec::new())).map_err(|e| anyhow!("{e}"))?;
        }
        cpu_s += cpu_seconds() - cpu;
        wall_s += wall.elapsed().as_secs_f64();
        done += now;
    }
    let (cpu, wall) = (cpu_seconds(), Instant::now());
    stage.finish(&mut Kept(Vec::new())).map_err(|e| anyhow!("{e}"))?;
    cpu_s += cpu_seconds() - cpu;
    wall_s += wall.elapsed().as_secs_f64();
    let peak = peak_mib() - before_mib;
    let manifests: Vec<Manifest> =
        (0..).map_while(|shard| Manifest::read(&folder, shard).transpose()).collect::<Result<_>>()?;
    let written: u64 = manifests.iter().map(|m| m.frames.rows).sum();
    ensure!(written == n as u64, "{written} rows of {n}");
    let bytes: u64 = manifests.iter().map(|m| m.frames.bytes).sum();
    let line = serde_json::json!({
        "rows": n, "dim": dim, "image_dim": args.image_dim, "embedding": args.embedding, "cpu_s": cpu_s,
        "wall_s": wall_s, "cpu_us_a_row": cpu_s / n as f64 * 1e6, "bytes_a_row": bytes as f64 / n as f64,
        "peak_mib": peak,
    });
    print(&line.to_string());
    if !args.keep {
        fs::remove_dir_all(&folder)?;
    }
    Ok(())
}
