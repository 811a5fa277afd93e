//! A plan on a device, and what goes in and out of it.

use std::{
    ffi::{CStr, CString},
    ptr::NonNull,
};

use super::{Error, TensorRt, Why, sys};
use crate::gpu::Gpu;

/// Kinds of numbers that we feed and read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// 32-bit integers.
    I32,
    /// 64-bit integers.
    I64,
}

impl Type {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 | Self::I32 => 4,
            Self::I64 => 8,
        }
    }
}

/// An input or output. The first dimension is the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// As in the ONNX file.
    pub name: String,
    /// Its numbers.
    pub kind: Type,
    /// Whether it goes in.
    pub is_input: bool,
    /// Dimensions but the first; `None` where it may differ.
    pub row: Vec<Option<usize>>,
}

impl Tensor {
    /// Numbers of one picture of a batch, where that is fixed.
    pub fn row_len(&self) -> Option<usize> {
        self.row.iter().copied().product()
    }
}

/// A plan that was read for a device.
pub struct Engine {
    pub(super) tensorrt: TensorRt,
    pub(super) raw: NonNull<sys::RawEngine>,
    pub(super) gpu: Gpu,
    tensors: Vec<Tensor>,
    n_profiles: usize,
}

// SAFETY: an engine is bound to a device, not to a thread.
unsafe impl Send for Engine {}

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Engine").field("tensors", &self.tensors).finish_non_exhaustive()
    }
}

impl Engine {
    /// Reads a plan that this TensorRT made for such a GPU.
    pub fn read(tensorrt: TensorRt, gpu: &Gpu, plan: &[u8]) -> Result<Self, Error> {
        gpu.bind()?;
        let shim = &tensorrt.loaded.shim;
        let mut why = Why::new();
        // SAFETY: the plan is read in the call alone. There is a driver, since there is a `Gpu`.
        let raw = NonNull::new(unsafe {
            let (at, size) = (plan.as_ptr().cast(), plan.len());
            (shim.engine_new)(tensorrt.loaded.raw.as_ptr(), at, size, why.at(), why.size())
        });
        let raw = raw.ok_or_else(|| why.error())?;
        // From here on `drop` frees it.
        let mut engine = Self { tensorrt, raw, gpu: gpu.clone(), tensors: Vec::new(), n_profiles: 0 };
        // SAFETY: the engine was just made.
        let (n, n_profiles) = unsafe { ((shim.n_tensors)(raw.as_ptr()), (shim.n_profiles)(raw.as_ptr())) };
        engine.n_profiles = usize::try_from(n_profiles).unwrap_or(0);
        for i in 0..n {
            let mut tensor = std::mem::MaybeUninit::<sys::Tensor>::zeroed();
            // SAFETY: the function writes all that matters where it gives something but 0; zeros are a
            // value of every field.
            let tensor = unsafe {
                if (shim.tensor_at)(raw.as_ptr(), i, tensor.as_mut_ptr()) == 0 {
                    return Err(Error::TensorRt(format!("input or output {i} has no name")));
                }
                tensor.assume_init()
            };
            engine.tensors.push(described(&tensor)?);
        }
        Ok(engine)
    }

    /// Inputs and outputs, in the plan's order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Its optimization profiles.
    pub fn n_profiles(&self) -> usize {
        self.n_profiles
    }

    /// Device memory that a session of any profile computes in.
    pub fn scratch_bytes(&self) -> Result<usize, Error> {
        let of = |profile: usize| {
            // SAFETY: the engine is open.
            let bytes =
                unsafe { (self.tensorrt.loaded.shim.scratch_bytes)(self.raw.as_ptr(), profile as i32) };
            usize::try_from(bytes).map_err(|_| {
                Error::TensorRt(format!("profile {profile} does not tell how much memory it computes in"))
            })
        };
        (0..self.n_profiles.max(1)).try_fold(0, |most, profile| Ok(most.max(of(profile)?)))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // A context that is lost has freed what was on the device; the rest is freed all the same.
        let _ = self.gpu.bind();
        // SAFETY: it is ours, and sessions keep their engine.
        unsafe { (self.tensorrt.loaded.shim.engine_free)(self.raw.as_ptr()) }
    }
}

fn described(raw: &sys::Tensor) -> Result<Tensor, Error> {
    // SAFETY: the name lives as long as the engine and ends with a zero byte.
    let name = unsafe { CStr::from_ptr(raw.name) }.to_string_lossy().into_owned();
    let kind = match raw.kind {
        0 => Type::F32,
        1 => Type::F16,
        3 => Type::I32,
        8 => Type::I64,
        other => {
            let known = "those known are f32, f16, i32 and i64";
            return Err(Error::TensorRt(format!("{name} is of the type {other}; {known}")));
        }
    };
    let dims = raw.dims.iter().take(usize::try_from(raw.n_dims).unwrap_or(0));
    let row = dims.skip(1).map(|dim| usize::try_from(*dim).ok()).collect();
    Ok(Tensor { name, kind, is_input: raw.is_input != 0, row })
}

/// A tensor's name for the shim.
pub(super) fn name_of(tensor: &Tensor) -> Result<CString, Error> {
    CString::new(tensor.name.as_str()).map_err(|_| Error::TensorRt("a name has a zero byte in it".into()))
}
