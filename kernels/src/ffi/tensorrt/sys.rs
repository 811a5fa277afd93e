//! `tensorrt.h`, line by line, and the shared objects that it was compiled into.

use std::ffi::{c_char, c_int, c_void};

use libloading::Library;

include!(concat!(env!("OUT_DIR"), "/tensorrt_shims.rs"));

pub(super) const ABI: i32 = 1;
pub(super) const DIMS: usize = 8;

pub(super) const FP32: i32 = 0;
pub(super) const FP16: i32 = 1;
pub(super) const INT8: i32 = 2;

/// Opaque.
#[repr(C)]
pub(super) struct RawLibrary {
    _private: [u8; 0],
}

/// Opaque.
#[repr(C)]
pub(super) struct RawEngine {
    _private: [u8; 0],
}

/// Opaque.
#[repr(C)]
pub(super) struct RawSession {
    _private: [u8; 0],
}

pub(super) type Log = unsafe extern "C" fn(*mut c_void, i32, *const c_char);
pub(super) type Progress = unsafe extern "C" fn(*mut c_void, *const c_char, *const c_char, i32, i32) -> i32;

#[repr(C)]
pub(super) struct Range {
    pub(super) input: *const c_char,
    pub(super) n_dims: i32,
    pub(super) least: [i64; DIMS],
    pub(super) best: [i64; DIMS],
    pub(super) most: [i64; DIMS],
}

#[repr(C)]
pub(super) struct BuildOptions {
    pub(super) onnx: *const c_void,
    pub(super) onnx_size: usize,
    pub(super) onnx_path: *const c_char,
    pub(super) workspace_bytes: u64,
    pub(super) precision: i32,
    pub(super) is_half_input: i32,
    pub(super) level: i32,
    pub(super) is_hardware_compatible: i32,
    pub(super) is_version_compatible: i32,
    pub(super) compute_capability: i32,
    pub(super) n_profiles: i32,
    pub(super) n_ranges: i32,
    pub(super) ranges: *const Range,
    pub(super) progress: Option<Progress>,
    pub(super) user: *mut c_void,
}

#[repr(C)]
pub(super) struct Tensor {
    pub(super) name: *const c_char,
    pub(super) kind: i32,
    pub(super) is_input: i32,
    pub(super) n_dims: i32,
    pub(super) dims: [i64; DIMS],
}

/// Declares the functions of a shim, to be looked up by name.
macro_rules! functions {
    ($($name:ident: fn($($arg:ty),*) $(-> $out:ty)?;)*) => {
        /// A shim's functions, all there.
        pub(super) struct Shim {
            $(pub(super) $name: unsafe extern "C" fn($($arg),*) $(-> $out)?,)*
            /// The functions lie in it.
            _library: Library,
        }

        impl Shim {
            /// Takes the functions of a loaded library.
            ///
            /// # Safety
            /// The library is a shim, as `tensorrt.h` declares it in this version.
            unsafe fn of(library: Library) -> Result<Self, libloading::Error> {
                Ok(Self {
                    // SAFETY: the caller vouches for the types.
                    $($name: *unsafe { library.get(concat!("clipmill_trt_", stringify!($name)).as_bytes()) }?,)*
                    _library: library,
                })
            }
        }
    };
}

functions! {
    headers: fn() -> i32;
    is_strongly_typed: fn() -> i32;
    load: fn(*const c_char, *const c_char, Log, *mut c_void, *mut c_char, usize) -> *mut RawLibrary;
    can_build: fn(*const RawLibrary) -> i32;
    build: fn(*mut RawLibrary, *const BuildOptions, *mut *mut c_void, *mut usize, *mut c_char, usize) -> c_int;
    free: fn(*mut c_void);
    engine_new: fn(*mut RawLibrary, *const c_void, usize, *mut c_char, usize) -> *mut RawEngine;
    engine_free: fn(*mut RawEngine);
    n_tensors: fn(*const RawEngine) -> i32;
    n_profiles: fn(*const RawEngine) -> i32;
    tensor_at: fn(*const RawEngine, i32, *mut Tensor) -> i32;
    scratch_bytes: fn(*const RawEngine, i32) -> i64;
    session_new: fn(*mut RawEngine, i32, u64, u64, *mut c_void, *mut c_char, usize) -> *mut RawSession;
    session_free: fn(*mut RawSession);
    set_shape: fn(*mut RawSession, *const c_char, *const i64, i32, *mut c_char, usize) -> i32;
    shape: fn(*const RawSession, *const c_char, *mut i64) -> i32;
    set_address: fn(*mut RawSession, *const c_char, u64, *mut c_char, usize) -> i32;
    enqueue: fn(*mut RawSession, *mut c_void, *mut c_char, usize) -> i32;
}

impl Shim {
    /// Opens a shim's file; `Err` says why it is none of this version.
    pub(super) fn open(path: &std::path::Path) -> Result<Self, String> {
        // SAFETY: loading it runs no code but the C++ library's; the file is our own, or the user named it.
        let library = unsafe { Library::new(path) }.map_err(|e| super::super::loader_says(&e))?;
        type Abi = unsafe extern "C" fn() -> i32;
        // SAFETY: every version of a shim has this function with this type.
        let abi = unsafe { library.get::<Abi>(b"clipmill_trt_abi").map(|abi| abi()) };
        match abi {
            // SAFETY: the version says which header it was compiled with.
            Ok(ABI) => unsafe { Self::of(library) }.map_err(|e| super::super::loader_says(&e)),
            Ok(abi) => Err(format!("it is of version {abi}, and this clipmill wants {ABI}")),
            Err(e) => Err(format!("it is no shim of clipmill's: {}", super::super::loader_says(&e))),
        }
    }
}
