//! HOW: pixels and pointers. All unsafe code of clipmill lives here.
//!
//! In reading order:
//! - [`picture`]: a decoded picture's planes, borrowed, and what their numbers mean;
//! - [`resample`]: antialiased filter weights, as Pillow computes them;
//! - [`colour`]: YUV to RGB matrices from the standards' constants;
//! - [`preprocess`]: picture → normalized planar tensor, fused in one pass;
//! - [`aligned`]: its buffers;
//! - [`lanes`]: the inner loops of it, for each kind of CPU;
//! - [`reference`](mod@reference): the same result in double precision, slow and plain;
//! - [`dot`], [`codes`]: inner products with float16 rows and with rows of eight bits, for search;
//! - [`l2_normalize`], [`frame_statistics`], [`cosine_top_k`]: on a device and here: rows to unit length,
//!   what tells repeated frames and cuts, the nearest rows of a matrix;
//! - [`mapped_file`]: a file in memory, released behind the reader;
//! - [`onnxruntime`]: the version of that library;
//! - [`gpu`]: a device, its streams, and its kernels, compiled from `../cu`;
//! - [`device`]: its memory;
//! - [`ffi`]: FFmpeg's demuxers and software decoders, NVRTC, TensorRT, pictures that GStreamer keeps on a
//!   GPU.
//!
//! Nothing here knows what a clip, a stage or a thread is.

pub mod aligned;
pub mod codes;
pub mod colour;
pub mod cosine_top_k;
pub mod device;
pub mod dot;
pub mod ffi;
pub mod frame_statistics;
pub mod gpu;
pub mod l2_normalize;
pub mod lanes;
pub mod mapped_file;
pub mod onnxruntime;
pub mod picture;
pub mod preprocess;
pub mod reference;
pub mod resample;
