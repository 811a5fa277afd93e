//! Frames of clips in a model's form, outside a run: for measuring models.

use std::sync::Arc;

use anyhow::{Result, anyhow, ensure};
use stages::{
    clips::ClipList,
    decode::{Decode, Settings, sample::Sampling},
    item::{ClipId, ClipRef, EncodedClip},
    load::Load,
    model::Model,
    stage::{Kept, Stage, StageError},
};

/// Sees a clip's frames: their tensors and number.
pub type See<'a> = dyn FnMut(&ClipRef, &[f32], usize) -> Result<()> + 'a;

/// Shows `see` every clip that `pick` takes by its number, with its frames' tensors: `count` from the middles
/// of equal parts. Clips that do not decode are told and left out; none left is an error.
pub fn each_clip(
    clips: &ClipList,
    model: &Model,
    count: u32,
    pick: &dyn Fn(u64) -> bool,
    told: &mut dyn FnMut(&str),
    see: &mut See<'_>,
) -> Result<()> {
    let recipe = model.recipe();
    let len = recipe.tensor_len();
    let mut decode = Decode::open(Settings::new(Sampling::Count(count), recipe))?;
    let mut n_seen = 0;
    for (entry, i) in clips.iter()?.zip(0..).filter(|(_, i)| pick(*i)) {
        let entry = entry?;
        let clip = ClipRef { id: ClipId(i), path: entry.path, label: entry.label, extra: entry.extra };
        let clip = Arc::new(clip);
        let loaded: Result<Vec<EncodedClip>> = through(&mut Load::open(), vec![clip.clone()]);
        match loaded.and_then(|loaded| through(&mut decode, loaded)) {
            Ok(batches) => {
                // A slow clip comes in several.
                let filled = batches
                    .iter()
                    .flat_map(|b| &b.tensors.on_host().unwrap_or_default()[..b.n_frames() * len]);
                let tensors: Vec<f32> = filled.copied().collect();
                see(&clip, &tensors, tensors.len() / len)?;
                n_seen += 1;
            }
            Err(e) => told(&format!("left out: {e:#}")),
        }
    }
    ensure!(n_seen > 0, "no clip could be decoded");
    Ok(())
}

/// Runs a stage over some items, and has it send on what it holds back.
pub fn through<S: Stage>(stage: &mut S, items: Vec<S::In>) -> Result<Vec<S::Out>> {
    let mut out = Kept(Vec::new());
    let told = |e: StageError| match e {
        StageError::Reject(r) => anyhow!("{}: {}", r.clip.path, r.reason),
        other => other.into(),
    };
    for item in items {
        if let Err(e) = stage.process(item, &mut out) {
            // What a bad clip left behind is not for the next one.
            stage.finish(&mut Kept(Vec::new())).map_err(told)?;
            return Err(told(e));
        }
    }
    stage.finish(&mut out).map_err(told)?;
    Ok(out.0)
}
