//! One NVIDIA device, its streams and events. The driver is loaded at run time.
//!
//! Every device is opened with its primary context, which GStreamer and TensorRT share, so that an
//! address of one is an address of all. A failing call is fatal for the run: after an illegal access the
//! context is of no more use, and memory is planned before, not retried.

pub mod program;

use std::{
    ffi::{CStr, c_void},
    sync::{Arc, Mutex, PoisonError},
};

use cudarc::driver::{
    CudaContext, CudaEvent, CudaStream, DriverError, result,
    sys::{CUdevice_attribute, CUevent_flags, CUresult},
};

/// Why there is no device to work on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// libcuda is not there.
    #[error(
        "there is no NVIDIA driver: libcuda.so.1 cannot be loaded\nhint: install the driver, or mount it into the container (--gpus all)"
    )]
    NoDriver,
    /// The driver is there and does not work.
    #[error("the NVIDIA driver does not start: {0}")]
    Driver(String),
    /// There are fewer devices than that.
    #[error("there is no GPU {ordinal}: the driver shows {found}")]
    NoDevice {
        /// The wanted one.
        ordinal: usize,
        /// Devices that there are.
        found: usize,
    },
}

/// A call of the driver that failed. Nothing on the device can be trusted after it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {code}: {meaning}")]
pub struct CudaError {
    call: &'static str,
    code: String,
    meaning: String,
    is_memory: bool,
}

impl CudaError {
    /// Whether the device has no room.
    pub fn is_out_of_memory(&self) -> bool {
        self.is_memory
    }
}

/// Names the call that failed.
pub(crate) fn named(call: &'static str) -> impl Fn(DriverError) -> CudaError {
    move |error| {
        let text = |text: Result<&CStr, DriverError>| {
            text.map_or_else(|_| format!("error {}", error.0 as u32), |t| t.to_string_lossy().into_owned())
        };
        CudaError {
            call,
            code: text(error.error_name()),
            meaning: text(error.error_string()),
            is_memory: error.0 == CUresult::CUDA_ERROR_OUT_OF_MEMORY,
        }
    }
}

/// Whether the driver's library can be loaded.
pub fn has_driver() -> bool {
    // SAFETY: it opens libraries by the driver's names, whose initializers are NVIDIA's.
    unsafe { cudarc::driver::sys::is_culib_present() }
}

/// Whether a library of the driver can be loaded, such as `libnvcuvid.so.1`.
pub fn has_library(name: &str) -> bool {
    // SAFETY: a library of such a name is NVIDIA's, and so are its initializers.
    unsafe { libloading::Library::new(name) }.is_ok()
}

/// An open device. Clones share it.
#[derive(Clone, Debug)]
pub struct Gpu {
    context: Arc<CudaContext>,
}

impl Gpu {
    /// How many devices the driver shows.
    pub fn count() -> Result<usize, Unavailable> {
        if !has_driver() {
            return Err(Unavailable::NoDriver);
        }
        let failed = |e: DriverError| Unavailable::Driver(named("cuInit")(e).to_string());
        match result::init() {
            // What `CUDA_VISIBLE_DEVICES` hides is not there.
            Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => return Ok(0),
            started => started.map_err(failed)?,
        }
        let n = result::device::get_count().map_err(failed)?;
        Ok(usize::try_from(n).unwrap_or(0))
    }

    /// Opens device number `ordinal`, as the driver counts them (`CUDA_VISIBLE_DEVICES` is heeded).
    ///
    /// A device once opened stays open: to make its context anew takes longer than most of what is asked of it.
    pub fn open(ordinal: usize) -> Result<Self, Unavailable> {
        static OPEN: Mutex<Vec<Gpu>> = Mutex::new(Vec::new());
        let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(gpu) = open.iter().find(|gpu| gpu.ordinal() == ordinal) {
            return Ok(gpu.clone());
        }
        let gpu = Self::open_anew(ordinal)?;
        open.push(gpu.clone());
        Ok(gpu)
    }

    fn open_anew(ordinal: usize) -> Result<Self, Unavailable> {
        let found = Self::count()?;
        if ordinal >= found {
            return Err(Unavailable::NoDevice { ordinal, found });
        }
        let failed = |e: DriverError| Unavailable::Driver(named("cuDevicePrimaryCtxRetain")(e).to_string());
        let context = CudaContext::new(ordinal).map_err(failed)?;
        // SAFETY: streams of ours are ordered by our own events, and memory outlives what uses it by our
        // own guards; cudarc's bookkeeping for each slice would cost two events a launch.
        unsafe { context.disable_event_tracking() };
        Ok(Self { context })
    }

    /// Its number, as the driver counts them.
    pub fn ordinal(&self) -> usize {
        self.context.ordinal()
    }

    /// Such as `NVIDIA H200`.
    pub fn name(&self) -> Result<String, CudaError> {
        self.context.name().map_err(named("cuDeviceGetName"))
    }

    /// Its compute capability, such as `(9, 0)`.
    pub fn capability(&self) -> Result<(u32, u32), CudaError> {
        let (major, minor) = self.context.compute_capability().map_err(named("cuDeviceGetAttribute"))?;
        Ok((major.unsigned_abs(), minor.unsigned_abs()))
    }

    /// Multiprocessors.
    pub fn processors(&self) -> Result<usize, CudaError> {
        let n = self.context.attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
        n.map(|n| usize::try_from(n).unwrap_or(1)).map_err(named("cuDeviceGetAttribute"))
    }

    /// Bytes of its memory: free now, and in all.
    pub fn memory(&self) -> Result<(usize, usize), CudaError> {
        self.context.mem_get_info().map_err(named("cuMemGetInfo"))
    }

    /// The version of CUDA that the driver serves, such as `(13, 0)`.
    pub fn driver_version() -> Result<(u32, u32), CudaError> {
        let mut version = 0;
        // SAFETY: the driver is loaded, since a `Gpu` was counted or opened before; it writes one number.
        unsafe { cudarc::driver::sys::cuDriverGetVersion(&mut version) }
            .result()
            .map_err(named("cuDriverGetVersion"))?;
        let version = version.unsigned_abs();
        Ok((version / 1000, version % 1000 / 10))
    }

    /// A stream of its own, which waits for no other.
    pub fn stream(&self) -> Result<Stream, CudaError> {
        let stream = self.context.new_stream().map_err(named("cuStreamCreate"))?;
        Ok(Stream { stream })
    }

    pub(crate) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// The primary context and the device, for libraries that share them. Valid while this lives.
    pub(crate) fn raw(&self) -> (*mut c_void, i32) {
        (self.context.cu_ctx().cast(), self.context.cu_device())
    }

    /// Makes this thread's calls go to this device.
    pub(crate) fn bind(&self) -> Result<(), CudaError> {
        self.context.bind_to_thread().map_err(named("cuCtxSetCurrent"))
    }
}

/// A queue of work of one device. Clones share it.
#[derive(Clone, Debug)]
pub struct Stream {
    stream: Arc<CudaStream>,
}

impl Stream {
    /// Waits for all that was queued. The thread sleeps meanwhile: decoders want the core.
    pub fn wait(&self) -> Result<(), CudaError> {
        self.event()?.wait()
    }

    /// Marks what was queued until now.
    pub fn event(&self) -> Result<Event, CudaError> {
        const FLAGS: CUevent_flags = CUevent_flags::CU_EVENT_BLOCKING_SYNC;
        let event = self.stream.context().new_event(Some(FLAGS)).map_err(named("cuEventCreate"))?;
        event.record(&self.stream).map_err(named("cuEventRecord"))?;
        Ok(Event { event })
    }

    /// Marks the time of what was queued until now, for measuring.
    pub fn instant(&self) -> Result<Event, CudaError> {
        const FLAGS: CUevent_flags = CUevent_flags::CU_EVENT_DEFAULT;
        let event = self.stream.context().new_event(Some(FLAGS)).map_err(named("cuEventCreate"))?;
        event.record(&self.stream).map_err(named("cuEventRecord"))?;
        Ok(Event { event })
    }

    /// Milliseconds that the device spends on what `queue` queues, the mean of `n` times after one that does
    /// not count. Waits.
    pub(crate) fn mean_ms<E: From<CudaError>>(
        &self,
        n: usize,
        mut queue: impl FnMut() -> Result<(), E>,
    ) -> Result<f64, E> {
        queue()?;
        self.wait()?;
        let started = self.instant()?;
        for _ in 0..n {
            queue()?;
        }
        let ended = self.instant()?;
        self.wait()?;
        Ok(started.ms_until(&ended)? / n as f64)
    }

    pub(crate) fn inner(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// For libraries that queue work themselves. Valid while this lives.
    pub(crate) fn raw(&self) -> *mut c_void {
        self.stream.cu_stream().cast()
    }

    pub(crate) fn bind(&self) -> Result<(), CudaError> {
        self.stream.context().bind_to_thread().map_err(named("cuCtxSetCurrent"))
    }
}

/// A mark in a stream.
#[derive(Debug)]
pub struct Event {
    event: CudaEvent,
}

impl Event {
    /// Waits until the stream has come so far. The thread sleeps meanwhile.
    pub fn wait(&self) -> Result<(), CudaError> {
        self.event.synchronize().map_err(named("cuEventSynchronize"))
    }

    /// Milliseconds from this to a later mark; both by [`Stream::instant`].
    pub fn ms_until(&self, later: &Self) -> Result<f64, CudaError> {
        self.event.elapsed_ms(&later.event).map(f64::from).map_err(named("cuEventElapsedTime"))
    }
}
