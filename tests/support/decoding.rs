//! The decode stage alone, without a program around it.

use std::{path::Path, sync::Arc};

use kernels::{
    gpu::Gpu,
    preprocess::{Recipe, Resize, on_gpu::Float},
    resample::Filter,
};
use stages::{
    decode::{Backend, Decode, Settings, sample::Sampling},
    item::{ClipEnd, ClipId, ClipRef, EncodedClip, FrameBatch, FrameInfo},
    load::Load,
    stage::{Closed, Emit, Rejection, Stage, StageError},
    tensors::{DeviceTensors, Tensors},
};

/// Colours from 0 to 1, the middle of the picture.
pub const RECIPE: Recipe = Recipe {
    width: 32,
    height: 32,
    resize: Resize::ShorterSide(32),
    filter: Filter::Bilinear,
    mean: [0.0; 3],
    std: [1.0; 3],
};

/// Settings that decode by a plan, in one thread.
pub fn settings(backend: Backend, sampling: Sampling) -> Settings {
    Settings { backend, threads: 1, batch_frames: 4, ..Settings::new(sampling, RECIPE) }
}

/// What the stage sends on of a clip.
#[derive(Clone, Debug, Default)]
pub struct Decoded {
    /// The chosen frames.
    pub frames: Vec<FrameInfo>,
    /// Their tensors.
    pub tensors: Vec<Vec<f32>>,
    /// What else is told of the clip.
    pub end: Option<ClipEnd>,
}

impl Decoded {
    /// Mean of all values of each tensor: 0 is black, 1 white.
    pub fn brightness(&self) -> Vec<f32> {
        self.tensors.iter().map(|t| t.iter().sum::<f32>() / t.len() as f32).collect()
    }

    /// Which frames of [`super::clips::Show::Count`] or `Wander` these are, by their brightness.
    pub fn pictured(&self, is_full_range: bool) -> Vec<u32> {
        let luma = |b: f32| if is_full_range { b * 255.0 } else { 16.0 + b * 219.0 };
        self.brightness().into_iter().map(|b| ((luma(b) - 16.0) / 4.0).round().max(0.0) as u32).collect()
    }
}

/// What [`Load`] and [`Decode`] send on, and whom they reject.
struct Sent<T>(Vec<T>);

impl<T> Emit<T> for Sent<T> {
    fn emit(&mut self, item: T) -> Result<(), Closed> {
        self.0.push(item);
        Ok(())
    }

    fn reject(&mut self, rejection: Rejection) -> Result<(), Closed> {
        panic!("{rejection}")
    }
}

/// Decodes a file, or says why it is rejected.
pub fn decode(stage: &mut Decode, file: &Path) -> Result<Decoded, String> {
    let path = file.to_string_lossy().into_owned();
    let clip = Arc::new(ClipRef { id: ClipId(0), path, label: None, extra: Vec::new() });
    let mut loaded: Sent<EncodedClip> = Sent(Vec::new());
    Load::open().process(clip, &mut loaded).unwrap();
    let mut batches: Sent<FrameBatch> = Sent(Vec::new());
    match stage.process(loaded.0.remove(0), &mut batches) {
        Ok(()) => stage.finish(&mut batches).unwrap(),
        Err(StageError::Reject(rejection)) => {
            // What came before the fault is not for the next clip.
            stage.finish(&mut batches).unwrap();
            return Err(rejection.reason.to_string());
        }
        Err(other) => panic!("{}: {other}", file.display()),
    }
    let mut decoded = Decoded::default();
    for batch in batches.0 {
        let floats = floats(&batch.tensors);
        let tensors = floats.chunks(RECIPE.tensor_len()).map(<[f32]>::to_vec);
        decoded.tensors.extend(tensors.take(batch.n_frames()));
        for part in batch.parts {
            assert!(decoded.end.is_none(), "a part after the last one");
            decoded.frames.extend(part.frames);
            decoded.end = part.end.map(|end| *end);
        }
    }
    let end = decoded.end.as_ref().expect("the last batch has an end");
    assert_eq!((end.n_sampled as usize, decoded.tensors.len()), (decoded.frames.len(), decoded.frames.len()));
    Ok(decoded)
}

/// A batch's numbers, wherever they lie.
fn floats(tensors: &Tensors) -> Vec<f32> {
    match tensors {
        Tensors::Host(floats) => floats.to_vec(),
        Tensors::Device(DeviceTensors { buffer, float }) => {
            let mut bytes = vec![0; buffer.bytes()];
            buffer.read(0, &mut bytes, &Gpu::open(0).unwrap().stream().unwrap()).unwrap();
            match float {
                Float::Single => bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect(),
                Float::Half => {
                    bytes.chunks(2).map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
                }
            }
        }
    }
}

/// Decodes a file by a stage of its own.
pub fn decode_by(settings: Settings, file: &Path) -> Decoded {
    decode(&mut Decode::open(settings).unwrap(), file).unwrap_or_else(|e| panic!("{}: {e}", file.display()))
}
