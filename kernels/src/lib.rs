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
//! - [`mapped_file`]: a file in memory, released behind the reader;
//! - [`onnxruntime`]: the version of that library;
//! - [`ffi`]: FFmpeg's demuxers and software decoders.
//!
//! Nothing here knows what a clip, a stage or a thread is.

pub mod aligned;
pub mod codes;
pub mod colour;
pub mod dot;
pub mod ffi;
pub mod lanes;
pub mod mapped_file;
pub mod onnxruntime;
pub mod picture;
pub mod preprocess;
pub mod reference;
pub mod resample;
