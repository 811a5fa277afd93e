//! Networks in ONNX files, and the software that runs them: the seam between clipmill and inference
//! libraries.

mod onnx;
mod rten;
mod tensorrt;

use std::{
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use anyhow::{Result, bail};
use kernels::{ffi::tensorrt::TensorRt, gpu::Gpu};
use serde::{Deserialize, Serialize};

pub use onnx::version;

use crate::{lane, model::Home};

/// Software that runs networks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// ONNX Runtime's own kernels.
    Onnx,
    /// OpenVINO, as a provider of ONNX Runtime.
    Openvino,
    /// `rten`, which is Rust and needs no library.
    Rten,
    /// TensorRT, on an NVIDIA GPU.
    Tensorrt,
}

/// The numbers that a network computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    Fp32,
    /// 16-bit floats with 11 bits of significand.
    Fp16,
    /// Products of 16-bit floats with 8 bits of significand, summed in 32 bits.
    Bf16,
    /// 8-bit integers, by the scales of a quantized model.
    Int8,
}

/// What runs a network. Stored vectors depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Engine {
    /// The software.
    pub backend: Backend,
    /// Its numbers.
    pub precision: Precision,
}

impl Engine {
    /// Whether it takes its pictures on a GPU.
    pub fn is_on_gpu(self) -> bool {
        self.backend == Backend::Tensorrt
    }
}

impl Backend {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Onnx, Self::Openvino, Self::Rten, Self::Tensorrt];

    /// As settings and records name it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Onnx => "onnx",
            Self::Openvino => "openvino",
            Self::Rten => "rten",
            Self::Tensorrt => "tensorrt",
        }
    }
}

impl Precision {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Fp32, Self::Fp16, Self::Bf16, Self::Int8];

    /// As settings and records name it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Fp32 => "fp32",
            Self::Fp16 => "fp16",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.backend.word(), self.precision.word())
    }
}

impl FromStr for Engine {
    type Err = anyhow::Error;

    /// Reads what [`fmt::Display`] writes.
    fn from_str(text: &str) -> Result<Self> {
        let by = |backend| Precision::ALL.map(|precision| Self { backend, precision });
        match Backend::ALL.into_iter().flat_map(by).find(|engine| engine.to_string() == text) {
            Some(engine) => Ok(engine),
            None => bail!("{text:?} is no engine, such as \"onnx fp32\""),
        }
    }
}

/// The inference libraries of this machine.
#[derive(Clone, Debug)]
pub struct Libraries {
    /// ONNX Runtime; loading it may still fail.
    pub onnxruntime: PathBuf,
    /// Whether the user named it, so that nothing stands in for it.
    pub is_named: bool,
    /// An ONNX Runtime with OpenVINO's provider beside it, if installed.
    pub openvino: Option<PathBuf>,
    /// Folders to look for TensorRT in, before the system's own.
    pub tensorrt: Vec<PathBuf>,
    /// Where its engines are kept.
    pub tensorrt_engines: PathBuf,
    /// The GPU that single engines run on; a run has its own for each lane.
    pub device: usize,
    /// The data folder, where kernels are kept.
    pub data: PathBuf,
}

impl Libraries {
    /// Those of the data folder.
    pub fn find(home: &Home) -> Self {
        let openvino = home.folder().join("openvino/libonnxruntime.so");
        Self {
            onnxruntime: home.onnxruntime(),
            is_named: std::env::var_os("ORT_DYLIB_PATH").is_some_and(|path| !path.is_empty()),
            openvino: openvino.is_file().then_some(openvino),
            tensorrt: vec![home.folder().join("tensorrt")],
            tensorrt_engines: super::tensorrt::engines(home),
            device: 0,
            data: home.folder().to_owned(),
        }
    }
}

/// What to do where it is wanted and missing.
const NO_OPENVINO: &str = "OpenVINO is not installed\nhint: `make setup` installs it on x86-64";

/// The release of rten that is built in, by its major and minor number.
pub const RTEN: &str = "rten 0.27";

/// How a network is opened.
#[derive(Clone, Copy, Debug)]
pub struct Opening {
    /// What runs it.
    pub engine: Engine,
    /// Threads inside it.
    pub threads: usize,
}

/// Values for an input.
#[derive(Clone, Copy, Debug)]
pub enum Values<'a> {
    /// Pictures.
    F32(&'a [f32]),
    /// Tokens.
    I64(&'a [i64]),
}

/// An input with its values, in row-major order.
#[derive(Clone, Debug)]
pub struct Feed<'a> {
    /// Name of the input.
    pub name: &'a str,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// As many as the shape says.
    pub values: Values<'a>,
}

/// An output, in row-major order.
#[derive(Clone, Debug)]
pub struct Array {
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// As many as the shape says.
    pub values: Vec<f32>,
}

/// A network ready to run.
pub trait Network {
    /// Names of the inputs and of the outputs.
    fn names(&self) -> (Vec<String>, Vec<String>);
    /// Runs it once and gives the wanted outputs, in their order.
    fn run(&mut self, feeds: &[Feed<'_>], outputs: &[&str]) -> Result<Vec<Array>>;
}

/// Whether an engine can be had here, or why not. An engine that would compute in other numbers than its
/// name says cannot.
pub fn check(engine: Engine, libraries: &Libraries) -> Result<()> {
    match (engine.backend, engine.precision) {
        (Backend::Openvino, _) if libraries.openvino.is_none() => bail!(NO_OPENVINO),
        (Backend::Openvino, Precision::Bf16) if !has_bf16() => {
            bail!("{engine}: this CPU does not multiply bf16")
        }
        (Backend::Tensorrt, Precision::Bf16)
        | (Backend::Onnx | Backend::Openvino | Backend::Rten, Precision::Fp16)
        | (Backend::Onnx, Precision::Bf16)
        | (Backend::Rten, Precision::Bf16 | Precision::Int8) => {
            bail!(
                "there is no {engine}: onnx computes in fp32 and int8, openvino in fp32, bf16 and int8, rten in fp32, tensorrt in fp32, fp16 and int8"
            )
        }
        (Backend::Tensorrt, _) => {
            // What the rest is of no use without comes first.
            let gpu = Gpu::open(libraries.device)?;
            tensorrt_version(libraries)?;
            // Pictures are prepared by our own kernels, which must be compiled, or have been.
            lane::check(&gpu, &Home::at(libraries.data.clone()))
        }
        _ => Ok(()),
    }
}

/// Such as `TensorRT 10.13.3`.
pub fn tensorrt_version(libraries: &Libraries) -> Result<String> {
    Ok(TensorRt::find(&libraries.tensorrt)?.version().to_string())
}

/// Whether the CPU multiplies bf16; without, OpenVINO computes in fp32 all the same.
fn has_bf16() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        false
    }
}

/// Opens the network of `file`.
pub fn open(file: &Path, opening: Opening, libraries: &Libraries) -> Result<Box<dyn Network>> {
    check(opening.engine, libraries)?;
    Ok(match opening.engine.backend {
        Backend::Tensorrt => Box::new(tensorrt::TensorrtNetwork::open(file, opening, libraries)?),
        Backend::Rten => Box::new(rten::RtenNetwork::open(file, opening.threads)?),
        Backend::Onnx | Backend::Openvino => Box::new(onnx::OnnxNetwork::open(file, opening, libraries)?),
    })
}

/// Opens a network that vectors are compared with: by ONNX Runtime, or `rten` where there is none.
pub fn open_reference(file: &Path, threads: usize, libraries: &Libraries) -> Result<Box<dyn Network>> {
    let opening = Opening { engine: reference(libraries), threads };
    open(file, opening, libraries)
}

/// The engine that others are held against, as far as this machine has it. Binds this process to no
/// library.
pub fn reference(libraries: &Libraries) -> Engine {
    let version = kernels::onnxruntime::version(&libraries.onnxruntime);
    let is_usable = version.is_some_and(|version| is_new_enough(&version));
    let backend = if is_usable || libraries.is_named { Backend::Onnx } else { Backend::Rten };
    Engine { backend, precision: Precision::Fp32 }
}

/// Whether a version has the API that we call: 1.24 or newer.
fn is_new_enough(version: &str) -> bool {
    let mut parts = version.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (1, 24)
}

/// What runs an engine, with its version, for records.
pub fn runtime(engine: Engine, libraries: &Libraries) -> Result<String> {
    check(engine, libraries)?;
    Ok(match (engine.backend, &libraries.openvino) {
        (Backend::Rten, _) => RTEN.into(),
        (Backend::Tensorrt, _) => tensorrt_version(libraries)?,
        (Backend::Openvino, Some(library)) => {
            format!("OpenVINO in onnxruntime {}", version(library)?)
        }
        (Backend::Openvino, None) => bail!(NO_OPENVINO),
        (Backend::Onnx, _) => format!("onnxruntime {}", version(&libraries.onnxruntime)?),
    })
}

/// Fails with all found names if a wanted one is missing.
pub fn require<'a>(
    file: &str,
    what: &str,
    found: &[String],
    wanted: impl IntoIterator<Item = &'a String>,
) -> Result<()> {
    for name in wanted {
        if !found.contains(name) {
            bail!("{file} has no {what} {name:?}; it has {}", found.join(", "));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn engines_are_read_as_they_are_written() {
        for text in ["onnx fp32", "openvino bf16", "openvino int8", "rten fp32", "tensorrt fp16"] {
            assert_eq!(text.parse::<Engine>().unwrap().to_string(), text);
        }
        assert!("onnx".parse::<Engine>().is_err());
    }

    #[test]
    fn old_libraries_are_known_by_their_version() {
        for (version, is_new) in [("1.24.1", true), ("1.31.1", true), ("2.0.0", true), ("1.14.0", false)] {
            assert_eq!(is_new_enough(version), is_new, "{version}");
        }
        assert!(!is_new_enough("of unknown version"));
    }
}
