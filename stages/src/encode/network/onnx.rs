//! ONNX Runtime, with its own kernels or OpenVINO's.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use anyhow::{Context as _, Result, anyhow, bail};
use ort::{
    environment::Environment,
    ep::{ArbitrarilyConfigurableExecutionProvider as _, OpenVINO},
    session::{Session, SessionInputValue, builder::SessionBuilder},
    value::{Tensor, TensorElementType, TensorRef},
};

use super::{Array, Backend, Feed, Libraries, Network, Opening, Precision, Values};

/// The one environment that a process may have; sessions need it for as long as they live.
static ENVIRONMENT: Mutex<Option<(PathBuf, Environment)>> = Mutex::new(None);

/// Loads the library on the first call and gives its environment. A process can have one library only;
/// one that is there already will do, unless it lacks what is wanted of it.
fn environment(library: &Path, will_any_do: bool) -> Result<Environment> {
    let mut loaded = ENVIRONMENT.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((path, environment)) = &*loaded {
        if !will_any_do && path != library {
            bail!("{} cannot be loaded beside {}", library.display(), path.display());
        }
        return Ok(environment.clone());
    }
    let builder = ort::init_from(library).map_err(|e| {
        anyhow!("cannot load ONNX Runtime from {}: {e}\nhint: `make setup` installs it", library.display())
    })?;
    let environment = builder.with_name("clipmill").build().context("ONNX Runtime does not start")?;
    *loaded = Some((library.to_owned(), environment.clone()));
    Ok(environment)
}

/// The version of the library, which is loaded by this.
pub fn version(library: &Path) -> Result<String> {
    environment(library, true)?;
    Ok(kernels::onnxruntime::version(library).unwrap_or_else(|| "of unknown version".into()))
}

/// A session of ONNX Runtime.
pub(super) struct OnnxNetwork {
    session: Session,
}

impl OnnxNetwork {
    pub(super) fn open(file: &Path, opening: Opening, libraries: &Libraries) -> Result<Self> {
        let environment = match (opening.engine.backend, &libraries.openvino) {
            (Backend::Openvino, Some(library)) => environment(library, false)?,
            _ => environment(&libraries.onnxruntime, true)?,
        };
        let build = || -> ort::Result<Session> {
            let builder = Session::builder(&environment)?
                .with_intra_threads(opening.threads)?
                .with_inter_threads(1)?
                // Idle threads that spin take the cores from the decoders.
                .with_intra_op_spinning(false)?;
            let mut builder = match opening.engine.backend {
                Backend::Openvino => with_openvino(builder, opening)?,
                _ => builder,
            };
            builder.commit_from_file(file)
        };
        let session = build().with_context(|| format!("cannot load {}", file.display()))?;
        Ok(Self { session })
    }
}

impl OnnxNetwork {
    /// Whether an input wants 32-bit integers: exports differ.
    fn is_narrow(&self, name: &str) -> bool {
        let input = self.session.inputs().iter().find(|i| i.name() == name);
        input.and_then(|i| i.dtype().tensor_type()) == Some(TensorElementType::Int32)
    }
}

/// Hands the network to OpenVINO. Its precision is always stated: the default depends on the CPU.
fn with_openvino(builder: SessionBuilder, opening: Opening) -> ort::Result<SessionBuilder> {
    let hint = if opening.engine.precision == Precision::Bf16 { "bf16" } else { "f32" };
    let properties = serde_json::json!({"CPU": {
        "INFERENCE_PRECISION_HINT": hint,
        "INFERENCE_NUM_THREADS": opening.threads,
        "NUM_STREAMS": 1,
        // Sessions of one thread each would all be pinned to the same core.
        "ENABLE_CPU_PINNING": false,
    }});
    let provider = OpenVINO::default()
        .with_device_type("CPU")
        .with_num_threads(opening.threads)
        .with_arbitrary_config("load_config", properties.to_string())
        .build()
        .error_on_failure();
    Ok(builder.with_execution_providers([provider])?)
}

impl Network for OnnxNetwork {
    fn names(&self) -> (Vec<String>, Vec<String>) {
        let inputs = self.session.inputs().iter().map(|i| i.name().to_owned());
        let outputs = self.session.outputs().iter().map(|o| o.name().to_owned());
        (inputs.collect(), outputs.collect())
    }

    fn run(&mut self, feeds: &[Feed<'_>], outputs: &[&str]) -> Result<Vec<Array>> {
        let mut inputs: Vec<(Cow<'_, str>, SessionInputValue<'_>)> = Vec::new();
        for feed in feeds {
            let shape = feed.shape.clone();
            let value = match feed.values {
                Values::F32(values) => TensorRef::from_array_view((shape, values))?.into_dyn(),
                Values::I64(values) if self.is_narrow(feed.name) => {
                    let values = values.iter().map(|v| i32::try_from(*v)).collect::<Result<Vec<_>, _>>()?;
                    inputs.push((feed.name.into(), Tensor::from_array((shape, values))?.into()));
                    continue;
                }
                Values::I64(values) => TensorRef::from_array_view((shape, values))?.into_dyn(),
            };
            inputs.push((feed.name.into(), value.into()));
        }
        let found = self.session.run(inputs)?;
        let take = |name: &&str| -> Result<Array> {
            let (shape, values) = found[*name].try_extract_tensor::<f32>()?;
            let shape = shape.iter().map(|n| *n as usize).collect();
            Ok(Array { shape, values: values.to_vec() })
        };
        outputs.iter().map(take).collect()
    }
}
