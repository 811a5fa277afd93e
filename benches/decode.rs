//! The decode stage alone on one thread, for `peers/compare.py decode`.
//!
//! `cargo bench --bench decode -- --clips FOLDER --mode all|count8|decode|every4s|keyframes`. Files are
//! in memory; the last line is JSON.

use std::sync::Arc;

use anyhow::Result;
use benches::print;
use clap::Parser;
use kernels::{
    preprocess::{Recipe, Resize},
    resample::Filter,
};
use stages::{
    clips::{ClipList, Label},
    decode::{Backend, Decode, Settings, sample::Sampling},
    item::{ClipId, ClipRef, EncodedClip, FrameBatch},
    load::Load,
    stage::{Closed, Emit, Kept, Rejection, Stage},
};

#[derive(Parser)]
struct Args {
    /// Folder of clips
    #[arg(long)]
    clips: String,
    /// Which frames become tensors; `decode` decodes all and converts one
    #[arg(long, value_parser = ["all", "count8", "decode", "every4s", "keyframes"])]
    mode: String,
    /// Times over all clips
    #[arg(long, default_value_t = 1)]
    passes: usize,
    /// Which software
    #[arg(long, default_value = "libav", value_parser = ["libav", "gstreamer"])]
    backend: String,
    /// Decode every packet, whatever is wanted
    #[arg(long)]
    no_plan: bool,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// What CLIP models want, but for the last digits of mean and std.
const RECIPE: Recipe = Recipe {
    width: 224,
    height: 224,
    resize: Resize::ShorterSide(224),
    filter: Filter::Bicubic,
    mean: [0.4815, 0.4578, 0.4082],
    std: [0.2686, 0.2613, 0.2758],
};

/// Sampled and decoded frames of a clip.
fn decode(stage: &mut Decode, clip: &EncodedClip) -> Result<(u64, u64)> {
    struct Count(u64, u64);
    impl Emit<FrameBatch> for Count {
        fn emit(&mut self, batch: FrameBatch) -> Result<(), Closed> {
            self.0 += batch.n_frames() as u64;
            self.1 +=
                batch.parts.iter().filter_map(|p| p.end.as_ref()).map(|e| u64::from(e.n_frames)).sum::<u64>();
            Ok(())
        }
        fn reject(&mut self, _: Rejection) -> Result<(), Closed> {
            Ok(())
        }
    }
    let mut count = Count(0, 0);
    stage.process(clip.clone(), &mut count)?;
    stage.finish(&mut count)?;
    Ok((count.0, count.1))
}

fn main() -> Result<()> {
    let args = Args::parse();
    let list = ClipList::open(&args.clips, Label::None)?;
    let mut loaded = Kept(Vec::new());
    let mut load = Load::open();
    for (i, entry) in list.iter()?.enumerate() {
        let entry = entry?;
        let clip = ClipRef { id: ClipId(i as u64), path: entry.path, label: None, extra: Vec::new() };
        load.process(Arc::new(clip), &mut loaded)?;
    }
    const DAY_MS: u64 = 86_400_000;
    let sampling = match args.mode.as_str() {
        "all" => Sampling::All,
        "count8" => Sampling::Count(8),
        "every4s" => Sampling::EveryMs(4000),
        "keyframes" => Sampling::Keyframes,
        _ => Sampling::EveryMs(DAY_MS),
    };
    let mut stage = Decode::open(Settings {
        backend: if args.backend == "libav" { Backend::Libav } else { Backend::Gstreamer },
        plan: !args.no_plan && args.mode != "decode",
        threads: 1,
        ..Settings::new(sampling, RECIPE)
    })?;
    decode(&mut stage, &loaded.0[0])?;
    let cpu = pipeline::run::cpu_seconds();
    let (mut frames, mut clips) = (0, 0);
    for clip in (0..args.passes).flat_map(|_| &loaded.0) {
        let (sampled, decoded) = decode(&mut stage, clip)?;
        frames += if args.mode == "decode" { decoded } else { sampled };
        clips += 1;
    }
    let cpu_s = pipeline::run::cpu_seconds() - cpu;
    print(
        &serde_json::json!({
            "peer": format!("clipmill-{}", args.backend),
            "mode": args.mode, "clips": clips, "frames": frames, "cpu_s": cpu_s,
        })
        .to_string(),
    );
    Ok(())
}
