//! Libraries that speak C, each in three floors: what is declared, what it returns, what is safe.

pub mod gst_cuda;
pub mod libav;
pub mod nvrtc;
pub mod tensorrt;

/// What the loader says of a library or a symbol: the error itself says only that there was one.
pub(crate) fn loader_says(error: &libloading::Error) -> String {
    let source = std::error::Error::source(error);
    source.map_or_else(|| error.to_string(), ToString::to_string)
}
