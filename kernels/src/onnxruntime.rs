//! The version of an ONNX Runtime library, which its Rust binding reads but does not tell.

use std::{
    ffi::{CStr, c_char, c_void},
    path::Path,
};

use libloading::Library;

/// `OrtApiBase` of `onnxruntime_c_api.h`, the same since version 1.
#[repr(C)]
struct ApiBase {
    _get_api: unsafe extern "C" fn(u32) -> *const c_void,
    get_version_string: unsafe extern "C" fn() -> *const c_char,
}

/// Such as `1.31.1`; `None` if there is no such library, or it is another.
pub fn version(library: &Path) -> Option<String> {
    // SAFETY: loading runs the library's initializers. It is the one that the user has us run models
    // with, and is loaded once more or already by that.
    let library = unsafe { Library::new(library) }.ok()?;
    // SAFETY: the symbol has this type in every version of the library.
    let base = unsafe { library.get::<unsafe extern "C" fn() -> *const ApiBase>(b"OrtGetApiBase") }.ok()?;
    // SAFETY: it takes nothing and gives a table that lives as long as the library, or null.
    let base = unsafe { base().as_ref() }?;
    // SAFETY: it gives a constant text that lives as long as the library, which outlives this call.
    let text = unsafe { CStr::from_ptr((base.get_version_string)()) };
    Some(text.to_str().ok()?.to_owned())
}
