//! The decode stage alone on one thread, for `peers/compare.py decode`.
//!
//! `cargo bench --bench decode -- --clips FOLDER --mode all|count8|decode|every4s|keyframes`. Files are
//! in memory; the last line is JSON.

use std::sync::Arc;

use anyhow::Result;
use benches::print;
use clap::Parser;
use kernels::{
    picture::{Matrix, Reading},
    preprocess::{Recipe, Resize},
    resample::Filter,
};
use stages::{
    clips::{ClipList, Label},
    decode::{Backend, Decode, Settings, cores::Cores, sample::Sampling},
    item::{ClipId, ClipRef, EncodedClip, FrameBatch},
    load::Load,
    stage::{Closed, Emit, Rejection, Stage},
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

/// Keeps items, or counts frames.
struct Out<T> {
    items: Vec<T>,
    n_rejects: usize,
}

impl<T> Emit<T> for Out<T> {
    fn emit(&mut self, item: T) -> Result<(), Closed> {
        self.items.push(item);
        Ok(())
    }

    fn reject(&mut self, _: Rejection) -> Result<(), Closed> {
        self.n_rejects += 1;
        Ok(())
    }
}

/// Sampled and decoded frames of a clip.
fn decode(stage: &mut Decode, clip: &EncodedClip) -> Result<(u64, u64)> {
    struct Count(u64, u64);
    impl Emit<FrameBatch> for Count {
        fn emit(&mut self, batch: FrameBatch) -> Result<(), Closed> {
            self.0 += batch.frames.len() as u64;
            self.1 += batch.end.map_or(0, |end| u64::from(end.n_frames));
            Ok(())
        }
        fn reject(&mut self, _: Rejection) -> Result<(), Closed> {
            Ok(())
        }
    }
    let mut count = Count(0, 0);
    stage.process(clip.clone(), &mut count)?;
    Ok((count.0, count.1))
}

fn main() -> Result<()> {
    let args = Args::parse();
    let list = ClipList::open(&args.clips, Label::None)?;
    let mut loaded = Out { items: Vec::new(), n_rejects: 0 };
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
        sampling,
        plan: !args.no_plan && args.mode != "decode",
        threads: 1,
        cores: Cores::new(1),
        reading: Reading { unspecified: Matrix::Bt601, one_field: true },
        stall: std::time::Duration::from_secs(20),
        keep_damaged: true,
        batch_frames: 8,
        recipe: RECIPE,
    });
    decode(&mut stage, &loaded.items[0])?;
    let cpu = pipeline::run::cpu_seconds();
    let (mut frames, mut clips) = (0, 0);
    for clip in (0..args.passes).flat_map(|_| &loaded.items) {
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
