//! Kernels: compiled by NVRTC when first used, kept on disk, loaded into a device.
//!
//! What is kept is named by its source's hash, the device's architecture and NVRTC's version, and carries
//! its own hash: a damaged file is compiled again. Without NVRTC, what another machine compiled will do.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use cudarc::{
    driver::{CudaFunction, CudaModule},
    nvrtc::Ptx,
};

use super::{CudaError, Gpu, named};
use crate::{
    cosine_top_k,
    ffi::nvrtc::{self, Nvrtc, Source, Target},
    frame_statistics, l2_normalize,
    preprocess::on_gpu,
};

/// The header of all kernels.
pub const HEADERS: &[(&str, &str)] = &[("kernel.h", include_str!("../../cu/kernel.h"))];

/// Every kernel's file and text.
pub const SOURCES: &[(&str, &str)] =
    &[cosine_top_k::SOURCE, frame_statistics::SOURCE, l2_normalize::SOURCE, on_gpu::SOURCE];

/// What all kernels are compiled with: see `kernel.h` for why products and sums are not fused.
pub const OPTIONS: &[&str] =
    &["--std=c++17", "--fmad=false", "--prec-div=true", "--prec-sqrt=true", "-lineinfo"];

/// Why a kernel cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It cannot be compiled.
    #[error(transparent)]
    Compile(#[from] nvrtc::Error),
    /// It cannot be loaded.
    #[error(transparent)]
    Load(#[from] CudaError),
    /// What was compiled cannot be kept.
    #[error("cannot write {}: {error}", path.display())]
    Keep {
        /// Where.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
}

/// A device's kernels. Clones share them.
#[derive(Clone)]
pub struct Programs {
    gpu: Gpu,
    folder: PathBuf,
    nvrtc: Arc<OnceLock<Result<Nvrtc, nvrtc::Error>>>,
    libraries: Vec<PathBuf>,
    loaded: Arc<Mutex<HashMap<&'static str, Arc<CudaModule>>>>,
}

impl Programs {
    /// Of `gpu`, kept in `folder`; NVRTC is looked for in `libraries` and where the system has it.
    pub fn new(gpu: &Gpu, folder: &Path, libraries: &[PathBuf]) -> Self {
        Self {
            gpu: gpu.clone(),
            folder: folder.to_owned(),
            nvrtc: Arc::default(),
            libraries: libraries.to_vec(),
            loaded: Arc::default(),
        }
    }

    /// Their device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// A kernel by its source's name and text, and its own name.
    pub(crate) fn function(
        &self,
        (name, text): (&'static str, &'static str),
        function: &str,
    ) -> Result<CudaFunction, Unusable> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let module = match loaded.get(name) {
            Some(module) => module.clone(),
            None => {
                let module = self.load(Source { name, text, headers: HEADERS })?;
                loaded.insert(name, module.clone());
                module
            }
        };
        Ok(module.load_function(function).map_err(named("cuModuleGetFunction"))?)
    }

    /// [`Self::function`] of a kernel that was asked for before.
    pub(crate) fn loaded(
        &self,
        source: (&'static str, &'static str),
        function: &str,
    ) -> Result<CudaFunction, CudaError> {
        self.function(source, function).map_err(|e| match e {
            Unusable::Load(e) => e,
            // It was compiled and loaded then.
            other => unreachable!("{other}"),
        })
    }

    fn load(&self, source: Source<'_>) -> Result<Arc<CudaModule>, Unusable> {
        let (major, minor) = self.gpu.capability()?;
        let capability = major * 10 + minor;
        let load = |code: Vec<u8>| {
            self.gpu.context().load_module(Ptx::from_binary(code)).map_err(named("cuModuleLoadData"))
        };
        let nvrtc = self
            .nvrtc
            .get_or_init(|| Nvrtc::find(&self.libraries, Gpu::driver_version().ok().map(|(major, _)| major)));
        let stem = format!("{}-{}", source.name, &hash_of(source)[..16]);
        let nvrtc = match nvrtc {
            Ok(nvrtc) => nvrtc,
            Err(missing) => {
                let kept = self.any_kept(&stem, capability);
                return kept.map_or_else(|| Err(missing.clone().into()), |code| Ok(load(code)?));
            }
        };
        let target = nvrtc.target(capability)?;
        let path = self.folder.join(file_name(&stem, target, nvrtc.version()));
        // One that the driver refuses is as good as damaged.
        if let Some(module) = read_kept(&path).and_then(|code| load(code).ok()) {
            return Ok(module);
        }
        let code = nvrtc.compile(source, target, OPTIONS)?.code;
        keep(&path, &code).map_err(|error| Unusable::Keep { path, error })?;
        Ok(load(code)?)
    }

    /// What any version of NVRTC made of the source for this device.
    fn any_kept(&self, stem: &str, capability: u32) -> Option<Vec<u8>> {
        let start = format!("{stem}-{}-", Target::Machine(capability).name());
        let files = fs::read_dir(&self.folder).ok()?.filter_map(Result::ok);
        let mut names: Vec<PathBuf> = files
            .filter(|file| file.file_name().to_string_lossy().starts_with(&start))
            .map(|file| file.path())
            .collect();
        names.sort();
        names.iter().rev().find_map(|path| read_kept(path))
    }
}

fn file_name(stem: &str, target: Target, (major, minor): (u32, u32)) -> String {
    format!("{stem}-{}-nvrtc{major}.{minor}.bin", target.name())
}

fn hash_of(source: Source<'_>) -> String {
    let mut hasher = blake3::Hasher::new();
    let parts = source.headers.iter().flat_map(|(name, text)| [*name, *text]);
    for part in [source.name, source.text].into_iter().chain(parts).chain(OPTIONS.iter().copied()) {
        hasher.update(&(part.len() as u64).to_le_bytes()).update(part.as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

/// The code of a kept file: 32 bytes of blake3, then what they are of.
fn read_kept(path: &Path) -> Option<Vec<u8>> {
    let bytes = fs::read(path).ok()?;
    let (hash, code) = bytes.split_at_checked(blake3::OUT_LEN)?;
    (blake3::hash(code).as_bytes() == hash).then(|| code.to_vec())
}

/// Compiles a source for one capability into `folder`, for a machine without NVRTC.
pub fn compile_into(
    folder: &Path,
    nvrtc: &Nvrtc,
    source: (&str, &str),
    capability: u32,
) -> Result<(), Unusable> {
    let source = Source { name: source.0, text: source.1, headers: HEADERS };
    let target = Target::Machine(capability);
    let stem = format!("{}-{}", source.name, &hash_of(source)[..16]);
    let path = folder.join(file_name(&stem, target, nvrtc.version()));
    let code = nvrtc.compile(source, target, OPTIONS)?.code;
    keep(&path, &code).map_err(|error| Unusable::Keep { path, error })
}

/// Written beside its place and renamed: several processes may do so at once.
fn keep(path: &Path, code: &[u8]) -> std::io::Result<()> {
    fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    let bytes = [blake3::hash(code).as_bytes().as_slice(), code].concat();
    fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, path)).inspect_err(|_| {
        // What is left of it is of no use; the error is told.
        let _ = fs::remove_file(&partial);
    })
}
