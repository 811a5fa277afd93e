//! What there is for work on a GPU. None of it is needed: without, everything runs on the CPU.

use kernels::{
    ffi::{nvrtc::Nvrtc, tensorrt::TensorRt},
    gpu::Gpu,
};
use stages::{decode::nvdec::Nvdec, encode::network::Libraries, lane::nvrtc_folders, model::Home};

use super::State;

/// Adds a line for each.
pub(super) fn examine(home: &Home, add: &mut dyn FnMut(State, &str, String)) {
    let mut here = |what: &str, found: Result<String, String>| match found {
        Ok(told) => add(State::Here, what, told),
        Err(told) => add(State::Optional, what, told.replace('\n', "; ")),
    };
    match Gpu::count() {
        Err(why) => here("GPU", Err(format!("{why}; not needed: everything runs on the CPU"))),
        Ok(0) => here("GPU", Err("the driver shows none".into())),
        Ok(n) => (0..n).for_each(|ordinal| here(&format!("GPU {ordinal}"), gpu(ordinal))),
    }
    here("NVDEC", nvdec());
    here(
        "NVRTC",
        Nvrtc::find(&nvrtc_folders(home), None).map_err(|e| e.to_string()).map(|nvrtc| {
            let (major, minor) = nvrtc.version();
            format!("CUDA {major}.{minor} ({})", nvrtc.path().display())
        }),
    );
    here("TensorRT", tensorrt(home));
}

fn tensorrt(home: &Home) -> Result<String, String> {
    let found = TensorRt::find(&Libraries::find(home).tensorrt).map_err(|e| e.to_string())?;
    let (headers, other) = found.shim();
    let shim = other.map_or_else(
        || format!("by the headers of {headers}"),
        |path| format!("by the shim {}", path.display()),
    );
    let only = if found.can_build() { "" } else { "; without its ONNX parser it builds no engines" };
    Ok(format!("{} ({}), {shim}{only}", found.version(), found.path().display()))
}

fn gpu(ordinal: usize) -> Result<String, String> {
    let told = |e: &dyn std::fmt::Display| e.to_string();
    let gpu = Gpu::open(ordinal).map_err(|e| told(&e))?;
    let (major, minor) = Gpu::driver_version().map_err(|e| told(&e))?;
    let ((a, b), (free, total)) =
        (gpu.capability().map_err(|e| told(&e))?, gpu.memory().map_err(|e| told(&e))?);
    Ok(format!(
        "{}, compute capability {a}.{b}, {} of {} MiB free; the driver serves CUDA {major}.{minor}",
        gpu.name().map_err(|e| told(&e))?,
        free >> 20,
        total >> 20
    ))
}

fn nvdec() -> Result<String, String> {
    let gpu = Gpu::open(0).map_err(|_| "there is no GPU".to_owned())?;
    let nvdec = Nvdec::open(&gpu, 1).map_err(|e| format!("{e:#}"))?;
    Ok(nvdec.codecs().join(", "))
}
