//! `check --decode`: a file decoded by a plan and decoded whole, compared frame by frame.

use std::{path::Path, sync::Arc, time::Instant};

use kernels::{
    preprocess::{Recipe, Resize},
    resample::Filter,
};
use serde_json::json;
use stages::{
    decode::{Decode, Settings, sample::Sampling},
    item::{ClipId, ClipRef, EncodedClip, FrameBatch, FrameInfo},
    load::Load,
    stage::{Closed, Emit, Kept, Rejection, Stage, StageError},
};

/// Rules that are compared, each for itself.
pub const RULES: [(&str, Sampling); 5] = [
    ("every_ms=500", Sampling::EveryMs(500)),
    ("every_ms=4000", Sampling::EveryMs(4000)),
    ("fps=3", Sampling::Fps(3.0)),
    ("count=8", Sampling::Count(8)),
    ("keyframes", Sampling::Keyframes),
];

/// A rule on a file, both ways.
#[derive(Clone, Debug)]
pub struct Compared {
    /// Of [`RULES`].
    pub rule: &'static str,
    /// Frames that the plan chose; or why it ended.
    pub planned: Result<usize, String>,
    /// The same of decoding everything.
    pub whole: Result<usize, String>,
    /// How they differ, the first few.
    pub differences: Vec<String>,
    /// Seconds that it took.
    pub planned_s: f64,
    /// The same of decoding everything.
    pub whole_s: f64,
}

/// Any recipe would do: colours between 0 and 1 of a common size.
const RECIPE: Recipe = Recipe {
    width: 224,
    height: 224,
    resize: Resize::ShorterSide(224),
    filter: Filter::Bicubic,
    mean: [0.0; 3],
    std: [1.0; 3],
};

const SHOWN: usize = 5;

/// Decodes `file` by every rule, both ways. The error says why it cannot be read.
pub fn compare(file: &Path) -> Result<Vec<Compared>, String> {
    let path = file.to_string_lossy().into_owned();
    let clip = ClipRef { id: ClipId(0), path, label: None, extra: Vec::new() };
    let mut loaded = Kept(Vec::new());
    Load::open().process(Arc::new(clip), &mut loaded).map_err(|e| told(&e))?;
    let loaded: &EncodedClip = loaded.0.first().ok_or("the file was not read")?;
    let one = |(rule, sampling): (&'static str, Sampling)| {
        let (planned, planned_s) = frames(loaded, sampling, true);
        let (whole, whole_s) = frames(loaded, sampling, false);
        let differences = differences(&planned, &whole);
        let count = |frames: Result<Vec<Frame>, String>| frames.map(|f| f.len());
        let (planned, whole) = (count(planned), count(whole));
        Compared { rule, planned, whole, differences, planned_s, whole_s }
    };
    Ok(RULES.into_iter().map(one).collect())
}

/// A chosen frame and the hash of its tensor.
type Frame = (FrameInfo, blake3::Hash);

fn frames(clip: &EncodedClip, sampling: Sampling, plan: bool) -> (Result<Vec<Frame>, String>, f64) {
    let mut decode = match Decode::open(Settings { plan, ..Settings::new(sampling, RECIPE) }) {
        Ok(decode) => decode,
        Err(e) => return (Err(format!("{e:#}")), 0.0),
    };
    let start = Instant::now();
    let mut hashed = Hashed::default();
    let done = decode.process(clip.clone(), &mut hashed);
    let done = done.and_then(|()| decode.finish(&mut hashed));
    let took_s = start.elapsed().as_secs_f64();
    (done.map(|()| hashed.frames).map_err(|e| told(&e)), took_s)
}

fn told(error: &StageError) -> String {
    match error {
        StageError::Reject(rejection) => rejection.reason.to_string(),
        other => other.to_string(),
    }
}

fn differences(planned: &Result<Vec<Frame>, String>, whole: &Result<Vec<Frame>, String>) -> Vec<String> {
    let (planned, whole) = match (planned, whole) {
        (Ok(planned), Ok(whole)) => (planned, whole),
        (Err(a), Err(b)) if a == b => return Vec::new(),
        (planned, whole) => {
            let end = |r: &Result<Vec<Frame>, String>| match r {
                Ok(frames) => format!("{} frames", frames.len()),
                Err(reason) => reason.clone(),
            };
            return vec![format!("planned: {}; whole: {}", end(planned), end(whole))];
        }
    };
    let mut found = Vec::new();
    if planned.len() != whole.len() {
        found.push(format!("planned: {} frames; whole: {} frames", planned.len(), whole.len()));
    }
    for (i, ((a, a_hash), (b, b_hash))) in planned.iter().zip(whole).enumerate() {
        let name = |f: &FrameInfo| {
            format!("frame {} at {}{}", f.frame_index, f.pts, if f.is_keyframe { ", a keyframe" } else { "" })
        };
        if a != b {
            found.push(format!("choice {i}: planned {}; whole {}", name(a), name(b)));
        } else if a_hash != b_hash {
            found.push(format!("choice {i}: {} has other pixels", name(a)));
        }
        if found.len() == SHOWN {
            break;
        }
    }
    found
}

impl Compared {
    /// For people.
    pub fn line(&self) -> String {
        let Self { rule, planned_s, whole_s, .. } = self;
        let verdict = if self.differences.is_empty() { "same" } else { "DIFFERENT" };
        match &self.whole {
            Err(reason) => format!("{rule:<14} {verdict}: {reason}"),
            Ok(n) => format!(
                "{rule:<14} {verdict}: {n} frame{}; planned {:.1} ms, whole {:.1} ms",
                if *n == 1 { "" } else { "s" },
                planned_s * 1e3,
                whole_s * 1e3
            ),
        }
    }

    /// For `--json`.
    pub fn to_json(&self) -> serde_json::Value {
        let end = |r: &Result<usize, String>| match r {
            Ok(n) => json!({"frames": n}),
            Err(reason) => json!({"rejected": reason}),
        };
        json!({
            "rule": self.rule, "planned": end(&self.planned), "whole": end(&self.whole),
            "differences": self.differences,
            "planned_s": self.planned_s, "whole_s": self.whole_s,
        })
    }
}

#[derive(Default)]
struct Hashed {
    frames: Vec<Frame>,
}

impl Emit<FrameBatch> for Hashed {
    fn emit(&mut self, batch: FrameBatch) -> Result<(), Closed> {
        let len = RECIPE.tensor_len();
        let infos = batch.parts.iter().flat_map(|part| &part.frames);
        for (info, tensor) in infos.zip(batch.tensors.on_host().unwrap_or_default().chunks(len)) {
            let mut hasher = blake3::Hasher::new();
            tensor.iter().for_each(|v| {
                hasher.update(&v.to_le_bytes());
            });
            self.frames.push((*info, hasher.finalize()));
        }
        Ok(())
    }

    fn reject(&mut self, _: Rejection) -> Result<(), Closed> {
        Ok(())
    }
}
