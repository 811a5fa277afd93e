//! Engines on disk: built once for a model, a GPU and a TensorRT, and sealed, so that one that is damaged or
//! of another machine is built again.

use std::{
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    rc::Rc,
};

use anyhow::{Context as _, Result, anyhow, bail};
use kernels::ffi::tensorrt::{
    Engine, Error, TensorRt,
    build::{BuildOptions, Precision as Numbers, Range},
};

use super::{super::onnx_file, Place, USUAL_BATCH};
use crate::encode::network::Precision;

/// Raise when the same inputs are to give other plans.
const RECIPE: u32 = 1;
const MAGIC: &[u8] = b"clipmill engine\n";

/// What an engine is to be.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The network.
    pub file: PathBuf,
    /// Its numbers.
    pub precision: Precision,
    /// The greatest batch.
    pub most: usize,
}

impl Wanted {
    /// For batches of `batch` pictures: the usual engine, where that has such a size, or one of its own.
    pub fn new(file: &Path, precision: Precision, batch: usize) -> Self {
        let usual = Self { file: file.to_owned(), precision, most: USUAL_BATCH };
        let most = if usual.buckets().contains(&batch) { USUAL_BATCH } else { batch };
        Self { most, ..usual }
    }

    /// Sizes of batches that an engine is built for, each with an optimization profile of its own: powers of
    /// four, and the greatest. Every profile costs time when building; a batch between two sizes is padded,
    /// which in a run only its last ones are.
    pub fn buckets(&self) -> Vec<usize> {
        let most = self.most.max(1);
        let powers = std::iter::successors(Some(1), |n: &usize| n.checked_mul(4));
        powers.take_while(|n| *n < most).chain([most]).collect()
    }

    /// Whether pictures come in as fp16: half the bytes, and what kernels write for fp16 engines.
    pub fn is_half_input(&self) -> bool {
        self.precision == Precision::Fp16
    }
}

/// All that a plan depends on, one a line.
fn key(place: &Place, wanted: &Wanted, onnx: &[u8]) -> Result<String> {
    let (major, minor) = place.gpu.capability()?;
    Ok(format!(
        "recipe {RECIPE}\nmodel {}\n{}\nshim {}\ngpu {}\ncapability {major}.{minor}\nprecision {}\nbatches {:?}\n",
        blake3::hash(onnx).to_hex(),
        place.tensorrt.version(),
        place.tensorrt.shim().0,
        place.gpu.name()?,
        wanted.precision.word(),
        wanted.buckets(),
    ))
}

/// A sealed file: what it starts with, the hash of all that follows, the key's length, the key, the plan.
fn sealed(key: &str, plan: &[u8]) -> Vec<u8> {
    let content = [&(key.len() as u64).to_le_bytes(), key.as_bytes(), plan].concat();
    [MAGIC, blake3::hash(&content).as_bytes(), &content].concat()
}

/// The plan of a sealed file, if it is whole and of this key.
fn unsealed<'a>(bytes: &'a [u8], key: &str) -> Result<&'a [u8]> {
    let damaged = || anyhow!("it is damaged");
    let (hash, content) =
        bytes.strip_prefix(MAGIC).and_then(|b| b.split_first_chunk::<32>()).ok_or_else(damaged)?;
    if blake3::hash(content) != *hash {
        return Err(damaged());
    }
    let (len, rest) = content.split_first_chunk().ok_or_else(damaged)?;
    let len = usize::try_from(u64::from_le_bytes(*len)).map_err(|_| damaged())?;
    let (found, plan) = rest.split_at_checked(len).ok_or_else(damaged)?;
    if found != key.as_bytes() {
        bail!("it was built for another GPU, TensorRT or model");
    }
    Ok(plan)
}

/// The engine, from the disk or built anew, which takes minutes. `told` hears how far it is, and gives false
/// to stop.
pub fn engine(place: &Place, wanted: &Wanted, told: &mut dyn FnMut(&str) -> bool) -> Result<Rc<Engine>> {
    let name = wanted.file.display();
    let onnx = fs::read(&wanted.file).with_context(|| format!("cannot read {name}"))?;
    let key = key(place, wanted, &onnx)?;
    let stem = wanted.file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let path = place.folder.join(format!("{stem}-{}.plan", &blake3::hash(key.as_bytes()).to_hex()[..16]));
    fs::create_dir_all(&place.folder).with_context(|| format!("cannot make {}", place.folder.display()))?;
    // Of processes that want the same engine, one builds it and the others wait.
    let lock_path = path.with_extension("lock");
    let lock = File::create(&lock_path).with_context(|| format!("cannot write {}", lock_path.display()))?;
    if lock.try_lock().is_err() {
        told("another process builds the same TensorRT engine; waiting for it");
        lock.lock().with_context(|| format!("cannot lock {}", lock_path.display()))?;
    }
    if let Some(engine) = kept(place, &path, &key) {
        return Ok(engine);
    }
    let plan = build(place, wanted, &onnx, told)?;
    // A full disk costs the next run time, not this one its work.
    if let Err(e) = keep(&path, &sealed(&key, &plan)) {
        tracing::warn!("cannot keep the engine as {}, so the next run builds it again: {e}", path.display());
    }
    let read = Engine::read(place.tensorrt, &place.gpu, &plan);
    Ok(Rc::new(read.with_context(|| format!("the TensorRT engine of {name}, just built"))?))
}

/// The engine of a file, unless there is none or it will not do, which is told.
fn kept(place: &Place, path: &Path, key: &str) -> Option<Rc<Engine>> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return None,
        Err(e) => {
            tracing::warn!("cannot read {}, so it is built again: {e}", path.display());
            return None;
        }
    };
    let read = unsealed(&bytes, key)
        .and_then(|plan| Engine::read(place.tensorrt, &place.gpu, plan).map_err(anyhow::Error::from));
    match read {
        Ok(engine) => Some(Rc::new(engine)),
        Err(e) => {
            tracing::warn!("{} is not used and built again: {e:#}", path.display());
            None
        }
    }
}

/// Written beside its place and renamed. Who calls holds the lock, so that what is there half written was
/// left by somebody who is gone.
fn keep(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let partial = path.with_extension("plan.partial");
    let write = || -> std::io::Result<()> {
        let mut file = File::create(&partial)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    };
    write().inspect_err(|_| {
        // It is of no use, and takes room; the error is told.
        let _ = fs::remove_file(&partial);
    })
}

fn build(place: &Place, wanted: &Wanted, onnx: &[u8], told: &mut dyn FnMut(&str) -> bool) -> Result<Vec<u8>> {
    let name = wanted.file.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let tensorrt: TensorRt = place.tensorrt;
    let in_file = || format!("{}", wanted.file.display());
    let (inputs, _) = onnx_file::ports(onnx).with_context(in_file)?;
    let profile = |batch: usize| -> Result<Vec<Range>> {
        let range = |port: &onnx_file::Port| {
            let sizes = std::iter::once(Some(batch)).chain(port.dims.iter().skip(1).copied());
            let sizes: Option<Vec<usize>> = sizes.collect();
            let sizes = sizes.with_context(|| {
                format!("input {:?} of {name} has open sizes besides the batch: {:?}", port.name, port.dims)
            })?;
            Ok(Range { input: port.name.clone(), least: sizes.clone(), best: sizes.clone(), most: sizes })
        };
        inputs.iter().map(range).collect()
    };
    let profiles = wanted.buckets().into_iter().map(profile).collect::<Result<Vec<_>>>()?;
    let numbers = match wanted.precision {
        Precision::Fp32 => Numbers::Fp32,
        Precision::Fp16 => Numbers::Fp16,
        Precision::Int8 => Numbers::Int8,
        Precision::Bf16 => bail!("there is no tensorrt bf16"),
    };
    let is_half = wanted.precision == Precision::Fp16;
    let half = match is_half && tensorrt.is_strongly_typed() {
        true => Some(onnx_file::half::rewrite(onnx, wanted.is_half_input()).with_context(in_file)?),
        false => None,
    };
    let options = BuildOptions {
        is_half_input: wanted.is_half_input(),
        onnx_path: Some(wanted.file.clone()),
        ..BuildOptions::new(numbers, profiles)
    };
    let what = format!(
        "building the TensorRT engine of {name} in {} for {} (once; it may take minutes)",
        wanted.precision.word(),
        place.gpu.name()?
    );
    let mut last = String::new();
    let stopped = || anyhow!("stopped while building the TensorRT engine of {name}");
    if !told(&what) {
        return Err(stopped());
    }
    let mut is_wanted = true;
    let mut progress = |share: f32, phase: &str| {
        let line = format!("{what}: {:.0} %, {phase}", share * 100.0);
        if line != last {
            is_wanted &= told(&line);
            last = line;
        }
        is_wanted
    };
    let built = tensorrt.build(Some(&place.gpu), half.as_deref().unwrap_or(onnx), &options, &mut progress);
    built.map_err(|e| match e {
        Error::Stopped => stopped(),
        e => anyhow!("cannot build the TensorRT engine of {}: {e}", in_file()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_has_a_bucket() {
        let buckets = |most| Wanted { file: PathBuf::new(), precision: Precision::Fp16, most }.buckets();
        assert_eq!(buckets(0), [1]);
        assert_eq!(buckets(1), [1]);
        assert_eq!(buckets(4), [1, 4]);
        assert_eq!(buckets(100), [1, 4, 16, 64, 100]);
    }

    #[test]
    fn what_was_changed_or_is_of_another_key_is_refused() {
        let bytes = sealed("key", b"plan");
        assert_eq!(unsealed(&bytes, "key").unwrap(), b"plan");
        assert!(unsealed(&bytes, "other").unwrap_err().to_string().contains("another GPU"));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            assert!(unsealed(&changed, "key").is_err(), "{at}");
            assert!(unsealed(&bytes[..at], "key").is_err(), "cut at {at}");
        }
    }
}
