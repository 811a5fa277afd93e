//! Decoding on an NVIDIA device: GStreamer's NVDEC elements, pictures that stay in the device's memory.
//!
//! Containers are read, and frames are chosen, as for the software decoder ([`super::libav`]), so the rows
//! are the same whichever decodes. A clip that the device does not take, or fails to decode, is the software
//! decoder's; see [`clip`].
//!
//! Opening a decoder on the device takes 50 to 70 ms, as long as many a clip: sessions are kept and lent to
//! one clip after another ([`pool`], [`session`]).

mod av1;
mod bitstream;
pub(super) mod clip;
pub(super) mod pool;
mod session;

use std::sync::Arc;

use anyhow::bail;
use gstreamer as gst;
use kernels::{
    ffi::gst_cuda::GstCuda,
    gpu::{Gpu, has_library},
};

use self::{bitstream::Codec, clip::Planned, pool::Pool};
use super::{libav::clip::Left, route::Router};

/// The part of the driver that decodes.
const LIBRARY: &str = "libnvcuvid.so.1";

/// The decoders of a device. Clones share them.
#[derive(Clone)]
pub struct Nvdec {
    pool: Arc<Pool>,
    router: Option<Router>,
}

impl std::fmt::Debug for Nvdec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nvdec").finish_non_exhaustive()
    }
}

impl Nvdec {
    /// On `gpu`, with so many sessions at most; or what is missing.
    pub fn open(gpu: &Gpu, n_sessions: usize) -> anyhow::Result<Self> {
        gst::init()?;
        if !has_library(LIBRARY) {
            bail!(
                "{LIBRARY} cannot be loaded\nhint: it comes with the driver; in containers, NVIDIA_DRIVER_CAPABILITIES=compute,video,utility"
            );
        }
        let cuda = GstCuda::sharing(gpu)?;
        if Codec::all(cuda.device()).is_empty() {
            bail!(
                "GStreamer has no NVDEC elements for GPU {}\nhint: apt-get install gstreamer1.0-plugins-bad, and remove ~/.cache/gstreamer-1.0 if they were there before the driver",
                gpu.ordinal()
            );
        }
        Ok(Self::new(cuda, n_sessions))
    }

    /// With so many sessions at most. Every clip that the device can decode goes to it.
    pub fn new(cuda: GstCuda, n_sessions: usize) -> Self {
        Self { pool: Arc::new(Pool::new(cuda, n_sessions)), router: None }
    }

    /// Codecs that it may decode, by FFmpeg's names.
    pub fn codecs(&self) -> Vec<&'static str> {
        Codec::all(self.pool.device())
    }

    /// Leaves the choice for each clip to `router`.
    pub fn routed(self, router: Router) -> Self {
        Self { router: Some(router), ..self }
    }

    pub(super) fn router(&self) -> Option<&Router> {
        self.router.as_ref()
    }

    /// Whether there may be a decoder for a codec, by FFmpeg's name.
    pub(super) fn knows(&self, codec: &str) -> bool {
        Codec::of(codec).is_some()
    }

    /// Decodes a clip as planned, or leaves it to others.
    pub(super) fn decode(&self, planned: Planned<'_>) -> Result<(), Left> {
        planned.run(&self.pool)
    }
}
