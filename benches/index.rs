//! The vector index alone: building, opening, searching, on vectors and queries whose answers are known.
//!
//! `cargo bench --bench index -- DIR [--exact-rows 200000] [--shard-rows 100000] [--keep RUN]`.
//! DIR is what `benches/peers/make_vectors.py` writes. The rows are first written as the shards of a run; then
//! lines of JSON tell what `benches/peers/compare_index.py` compares: the CPU seconds and bytes of the index,
//! how long it takes to open, and for each number of lists visited, recall@10 and queries a CPU second, one a
//! call and, where all rows are scanned, eight. Memory is the process's own, after the searches.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result, anyhow, ensure};
use benches::{
    print,
    vectors::{Rows, parts, settings},
};
use clap::Parser;
use pipeline::{engines::measure::kernel_mib, run::cpu_seconds};
use serde_json::json;
use stages::{
    files::NpyForm,
    index::{
        Index,
        ledger::Ledger,
        schema::{Element, VectorShape},
        vectors::{Builder, Kind, Nearest, Settings, VectorIndex},
    },
    stage::{Kept, Stage as _},
};

/// Lists visited; 0 scans all rows.
const VISITS: [usize; 20] =
    [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024];
/// Nearest rows asked for.
const NEAREST: usize = 10;
/// CPU seconds after which a setting has been measured enough, and recall beyond which none is needed.
const ENOUGH_S: f64 = 3.0;
const ENOUGH_RECALL: f64 = 0.9985;

#[derive(Parser)]
struct Args {
    /// Folder of base.f16.npy, q_frame.f32.npy, q_text.f32.npy and their truths
    dir: PathBuf,
    /// Up to so many rows are scanned, all of them
    #[arg(long, default_value_t = 200_000)]
    exact_rows: usize,
    /// Rows of a shard
    #[arg(long, default_value_t = 100_000)]
    shard_rows: u64,
    /// Work in this folder and leave it; what is there already is not built again
    #[arg(long)]
    keep: Option<PathBuf>,
    /// Only so many of the queries
    #[arg(long, default_value_t = 1000)]
    queries: usize,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let scratch = tempfile::tempdir()?;
    let run = args.keep.clone().unwrap_or_else(|| scratch.path().join("run"));
    let folder = run.join("vectors");
    if !folder.join("index.json").exists() {
        write_run(&args, &run)?;
        build(&args, &run, &folder)?;
    }
    let started = Instant::now();
    let (index, missing) = VectorIndex::open(&run, &folder)?;
    print(&json!({"what": "open", "ms": started.elapsed().as_secs_f64() * 1e3, "how": "map"}).to_string());
    ensure!(missing.is_empty(), "shards are missing");
    for (name, kind) in [("frame", Kind::Frame), ("text", Kind::Text)] {
        let queries = Rows::open(&args.dir.join(format!("q_{name}.f32.npy")))?;
        let (n, dim) = (queries.n.min(args.queries), queries.dim);
        let values = { queries }.next(n)?;
        let queries: Vec<&[f32]> = values.chunks(dim).collect();
        let truth = truth(&args.dir.join(format!("truth_{name}.u32.npy")))?;
        search(&index, name, kind, &queries, &truth, args.shard_rows as usize)?;
    }
    Ok(())
}

fn write_run(args: &Args, run: &Path) -> Result<()> {
    const FRAMES: usize = 16;
    let mut rows = Rows::open(&args.dir.join("base.f16.npy"))?;
    fs::create_dir_all(run)?;
    let shape = VectorShape { dim: rows.dim, image_dim: 0, element: Element::Float16 };
    let mut stage = Index::open(settings(run, shape, args.shard_rows), Ledger::open(run)?.0)?;
    let mut done = 0;
    while done < rows.n {
        let n = FRAMES.min(rows.n - done);
        for part in parts(done / FRAMES, &rows.next(n)?, rows.dim, 0, FRAMES) {
            stage.process(part, &mut Kept(Vec::new())).map_err(|e| anyhow!("{e}"))?;
        }
        done += n;
    }
    stage.finish(&mut Kept(Vec::new())).map_err(|e| anyhow!("{e}"))
}

fn build(args: &Args, run: &Path, folder: &Path) -> Result<()> {
    let dim = Rows::open(&args.dir.join("base.f16.npy"))?.dim;
    let (_ledger, standing) = Ledger::open(run)?;
    let cpu = cpu_seconds();
    let mut builder = Builder::open(run, folder, dim, false)?;
    builder.complete(&standing, false)?;
    let rows_s = cpu_seconds() - cpu;
    let settings = Settings { exact_rows: args.exact_rows, recall: 0.99 };
    let mut probe_s = 0.0;
    builder.tune(
        &settings,
        &mut || {
            probe_s = cpu_seconds();
            Ok(Vec::new())
        },
        &mut |_| (),
    )?;
    // What it takes to know the recall is not the index's making, but told.
    probe_s = if probe_s > 0.0 { cpu_seconds() - probe_s } else { 0.0 };
    let cpu_s = cpu_seconds() - cpu - probe_s;
    let bytes: u64 = fs::read_dir(folder)?.map(|e| Ok(e?.metadata()?.len())).sum::<std::io::Result<u64>>()?;
    let line = json!({"what": "build", "cpu_s": cpu_s, "of_it_from_parquet_s": rows_s, "probe_s": probe_s, "bytes": bytes});
    print(&line.to_string());
    Ok(())
}

/// The ten nearest of each query.
fn truth(path: &Path) -> Result<Vec<Vec<u32>>> {
    let told = || path.display().to_string();
    let bytes = fs::read(path).with_context(told)?;
    let mut rest = &bytes[..];
    let form = NpyForm::read(&mut rest).context("it is no NumPy file").with_context(told)?;
    ensure!(form.descr == "<u4" && form.shape.len() == 2, "{}: need rows of u32", told());
    let rows = rest.chunks_exact(form.shape[1] * 4);
    Ok(rows.map(|r| r.as_chunks().0[..NEAREST].iter().map(|b| u32::from_le_bytes(*b)).collect()).collect())
}

/// The nearest rows of each of some queries.
type Answer<'a> = dyn Fn(&[&[f32]]) -> Result<Vec<Vec<Nearest>>> + 'a;

fn search(
    index: &VectorIndex,
    name: &str,
    kind: Kind,
    queries: &[&[f32]],
    truth: &[Vec<u32>],
    shard_rows: usize,
) -> Result<()> {
    let tell = |lists: usize, batch: usize, answer: &Answer<'_>| {
        // Warm, and as many queries as there is time for.
        let started = Instant::now();
        for chunk in queries.chunks(batch).take(64) {
            answer(chunk)?;
            if started.elapsed().as_secs_f64() > 1.0 {
                break;
            }
        }
        let cpu = cpu_seconds();
        let (mut n, mut hits) = (0, 0);
        for (chunk, truth) in queries.chunks(batch).zip(truth.chunks(batch)) {
            for (found, truth) in answer(chunk)?.iter().zip(truth) {
                let is_true =
                    |n: &&Nearest| truth.contains(&((n.shard as usize * shard_rows + n.row) as u32));
                hits += found.iter().filter(is_true).count();
                n += 1;
            }
            if cpu_seconds() - cpu > ENOUGH_S {
                break;
            }
        }
        let cpu_s = cpu_seconds() - cpu;
        let recall = hits as f64 / (n * NEAREST) as f64;
        let line = json!({
            "what": "search", "queries": name, "setting": {"visit": lists}, "batch": batch, "recall": recall,
            "per_cpu_s": n as f64 / cpu_s, "rss_mib": kernel_mib("/proc/self/status", "VmRSS"),
        });
        print(&line.to_string());
        anyhow::Ok(recall)
    };
    let one = |lists: usize| move |q: &[&[f32]]| Ok(vec![index.nearest(q[0], kind, NEAREST, Some(lists))?]);
    if let Some(n_lists) = index.n_lists() {
        for lists in VISITS.into_iter().filter(|v| *v <= n_lists) {
            if tell(lists, 1, &one(lists))? >= ENOUGH_RECALL {
                break;
            }
        }
    } else {
        tell(0, 1, &one(0))?;
        tell(0, 8, &|q| index.nearest_of_all(q, NEAREST))?;
    }
    Ok(())
}
