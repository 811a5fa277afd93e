//! An execution context of an engine, for one size of batch.

use std::{ptr::NonNull, rc::Rc, sync::Arc};

use cudarc::driver::{
    CudaGraph,
    sys::{CUgraphInstantiate_flags, CUstreamCaptureMode},
};

use super::{
    Engine, Error, Why,
    engine::{Tensor, name_of},
    sys,
};
use crate::{device::DeviceBuffer, gpu::Stream};

pub(super) struct Session {
    raw: NonNull<sys::RawSession>,
    engine: Rc<Engine>,
    /// What it computes in; sessions of one stream share it.
    _scratch: Arc<DeviceBuffer>,
}

impl Session {
    /// Chooses a profile, in the stream's order.
    pub(super) fn new(
        engine: &Rc<Engine>,
        profile: usize,
        scratch: &Arc<DeviceBuffer>,
        stream: &Stream,
    ) -> Result<Self, Error> {
        stream.bind()?;
        let mut why = Why::new();
        // SAFETY: the engine and the scratch memory are kept by what this makes; all sessions that share it
        // work on this stream, one after another, since `Executor` has one stream.
        let raw = NonNull::new(unsafe {
            (engine.tensorrt.loaded.shim.session_new)(
                engine.raw.as_ptr(),
                profile as i32,
                scratch.address(),
                scratch.bytes() as u64,
                stream.raw(),
                why.at(),
                why.size(),
            )
        });
        let raw = raw.ok_or_else(|| why.error())?;
        Ok(Self { raw, engine: engine.clone(), _scratch: scratch.clone() })
    }

    /// Fixes the size of an input.
    pub(super) fn set_shape(&mut self, tensor: &Tensor, dims: &[usize]) -> Result<(), Error> {
        let name = name_of(tensor)?;
        let dims: Vec<i64> = dims.iter().map(|dim| *dim as i64).collect();
        let mut why = Why::new();
        // SAFETY: the name and the sizes are read in the call alone.
        let is_set = unsafe {
            (self.engine.tensorrt.loaded.shim.set_shape)(
                self.raw.as_ptr(),
                name.as_ptr(),
                dims.as_ptr(),
                dims.len() as i32,
                why.at(),
                why.size(),
            ) != 0
        };
        if is_set { Ok(()) } else { Err(why.error()) }
    }

    /// The size of an input or output, after those of all inputs were set.
    pub(super) fn shape(&self, tensor: &Tensor) -> Result<Vec<usize>, Error> {
        let name = name_of(tensor)?;
        let mut dims = [0; sys::DIMS];
        // SAFETY: there is room for as many sizes as a tensor can have.
        let n = unsafe {
            (self.engine.tensorrt.loaded.shim.shape)(self.raw.as_ptr(), name.as_ptr(), dims.as_mut_ptr())
        };
        let known = dims.iter().take(usize::try_from(n).unwrap_or(0)).map(|dim| usize::try_from(*dim));
        let shape: Option<Vec<usize>> = known.map(Result::ok).collect();
        let missing = || Error::TensorRt(format!("the size of {} depends on its values", tensor.name));
        shape.filter(|shape| !shape.is_empty()).ok_or_else(missing)
    }

    /// Says where an input or output lies.
    ///
    /// # Safety
    /// There is room for the tensor at its size, until all work that is enqueued meanwhile is over.
    pub(super) unsafe fn set_address(&mut self, tensor: &Tensor, address: u64) -> Result<(), Error> {
        let name = name_of(tensor)?;
        let mut why = Why::new();
        let shim = &self.engine.tensorrt.loaded.shim;
        // SAFETY: the caller vouches for the address.
        let is_set = unsafe {
            (shim.set_address)(self.raw.as_ptr(), name.as_ptr(), address, why.at(), why.size()) != 0
        };
        if is_set { Ok(()) } else { Err(why.error()) }
    }

    /// Queues the work.
    ///
    /// # Safety
    /// All inputs and outputs have their addresses, and the session outlives the work.
    pub(super) unsafe fn enqueue(&mut self, stream: &Stream) -> Result<(), Error> {
        stream.bind()?;
        let mut why = Why::new();
        let shim = &self.engine.tensorrt.loaded.shim;
        // SAFETY: the caller vouches for what the work reads and writes; the stream is alive.
        let is_queued = unsafe { (shim.enqueue)(self.raw.as_ptr(), stream.raw(), why.at(), why.size()) != 0 };
        if is_queued { Ok(()) } else { Err(why.error()) }
    }

    /// The same work as a graph, which costs the host one call; `None` where it cannot be recorded. Nothing
    /// of it is done yet.
    ///
    /// # Safety
    /// As for `enqueue`, for as long as the graph may be launched.
    pub(super) unsafe fn record(&mut self, stream: &Stream) -> Option<CudaGraph> {
        // Other threads go on with what a recording forbids, such as taking memory.
        const MODE: CUstreamCaptureMode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.inner().begin_capture(MODE).ok()?;
        // SAFETY: the caller vouches for it.
        let queued = unsafe { self.enqueue(stream) };
        // Ends the recording in any case: a stream that records does no work.
        let graph = stream.inner().end_capture(CUgraphInstantiate_flags(0));
        queued.ok().and(graph.ok()?)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // A context that is lost has freed what was on the device; the rest is freed all the same.
        let _ = self.engine.gpu.bind();
        // SAFETY: it is ours; `Executor` has waited for its work.
        unsafe { (self.engine.tensorrt.loaded.shim.session_free)(self.raw.as_ptr()) }
    }
}
