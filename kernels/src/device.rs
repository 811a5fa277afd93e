//! Memory of a device, and of the host where a device reads and writes it.
//!
//! A [`DevicePool`] takes its memory at the start and hands it out again and again: a run never asks the
//! device for more, whatever its clips are like.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, Condvar, Mutex, PoisonError},
    time::Duration,
};

use cudarc::driver::result;
use half::slice::HalfFloatSliceExt as _;

use crate::{
    gpu::{CudaError, Gpu, Stream, named},
    picture::{DevicePicture, DevicePlane, Look},
};

/// Device memory of our own, freed when dropped.
#[derive(Debug)]
struct Allocation {
    gpu: Gpu,
    address: u64,
    bytes: usize,
}

impl Allocation {
    fn new(gpu: &Gpu, bytes: usize) -> Result<Self, CudaError> {
        gpu.bind()?;
        // SAFETY: nothing else owns what it gives; `drop` frees it once. CUDA refuses no bytes at all.
        let address = unsafe { result::malloc_sync(bytes.max(1)) }.map_err(named("cuMemAlloc"))?;
        Ok(Self { gpu: gpu.clone(), address, bytes })
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        // A context that is lost has freed it.
        if self.gpu.bind().is_ok() {
            // SAFETY: it came from `malloc_sync`, and whoever queued work on it has waited.
            let _ = unsafe { result::free_sync(self.address) };
        }
    }
}

/// A device's memory; one from a [`DevicePool`] goes back when dropped.
#[derive(Debug)]
pub struct DeviceBuffer {
    /// Always there, until `drop` takes it.
    memory: Option<Allocation>,
    home: Option<DevicePool>,
}

impl DeviceBuffer {
    /// Of its own, with unspecified contents.
    pub fn new(gpu: &Gpu, bytes: usize) -> Result<Self, CudaError> {
        Ok(Self { memory: Some(Allocation::new(gpu, bytes)?), home: None })
    }

    /// Whose memory it is.
    pub(crate) fn gpu(&self) -> Option<&Gpu> {
        self.memory.as_ref().map(|memory| &memory.gpu)
    }

    /// How many bytes it holds.
    pub fn bytes(&self) -> usize {
        self.memory.as_ref().map_or(0, |memory| memory.bytes)
    }

    /// Where it starts, for work that is waited for before this is dropped.
    pub(crate) fn address(&self) -> u64 {
        self.memory.as_ref().map_or(0, |memory| memory.address)
    }

    /// The picture whose planes lie here, at these offsets and strides; `None` where it would not fit. Every
    /// row, the last too, must be `stride` bytes long.
    pub fn picture(&self, planes: [(usize, usize); 3], look: Look) -> Option<DevicePicture<'_>> {
        let mut at = [DevicePlane::default(); 3];
        for ((plane, (offset, stride)), (row_bytes, rows)) in
            at.iter_mut().zip(planes).zip(look.plane_sizes())
        {
            let end = rows.checked_mul(stride)?.checked_add(offset)?;
            if end > self.bytes() || (rows > 0 && stride < row_bytes) {
                return None;
            }
            *plane = DevicePlane { address: self.address() + offset as u64, stride };
        }
        // SAFETY: the planes were just found to lie in this buffer, which the picture borrows, whole rows of
        // them.
        Some(unsafe { DevicePicture::new(at, look) })
    }

    /// Queues zeros for all of it. Whoever has it waits before it is dropped.
    pub(crate) fn clear(&mut self, stream: &Stream) -> Result<(), CudaError> {
        stream.bind()?;
        // SAFETY: the range is all of ours, and the caller lets it live until a wait.
        unsafe { result::memset_d8_async(self.address(), 0, self.bytes(), stream.inner().cu_stream()) }
            .map_err(named("cuMemsetD8Async"))
    }

    /// Milliseconds of a copy of `from` to the start of this, the mean of `n`. Waits.
    ///
    /// # Panics
    /// If it does not fit.
    pub fn measure_copy(&mut self, from: &Self, stream: &Stream, n: usize) -> Result<f64, CudaError> {
        assert!(from.bytes() <= self.bytes(), "{} bytes to {}", from.bytes(), self.bytes());
        stream.bind()?;
        let (to, bytes) = (self.address(), from.bytes());
        stream.mean_ms(n, || {
            let raw = stream.inner().cu_stream();
            // SAFETY: both are as long, and borrowed until `mean_ms` has waited.
            unsafe { result::memcpy_dtod_async(to, from.address(), bytes, raw) }
                .map_err(named("cuMemcpyDtoDAsync"))
        })
    }

    /// Copies `from` to the bytes from `at` on, and waits.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn write(&mut self, at: usize, from: &[u8], stream: &Stream) -> Result<(), CudaError> {
        assert!(at + from.len() <= self.bytes(), "{} bytes at {at} of {}", from.len(), self.bytes());
        stream.bind()?;
        // SAFETY: the range is inside, and both ends live until the wait below.
        unsafe { result::memcpy_htod_async(self.address() + at as u64, from, stream.inner().cu_stream()) }
            .map_err(named("cuMemcpyHtoDAsync"))?;
        stream.wait()
    }

    /// Copies the bytes from `at` on to `to`, and waits.
    ///
    /// # Panics
    /// If there are not as many.
    pub fn read(&self, at: usize, to: &mut [u8], stream: &Stream) -> Result<(), CudaError> {
        assert!(at + to.len() <= self.bytes(), "{} bytes at {at} of {}", to.len(), self.bytes());
        stream.bind()?;
        // SAFETY: as in `write`.
        unsafe { result::memcpy_dtoh_async(to, self.address() + at as u64, stream.inner().cu_stream()) }
            .map_err(named("cuMemcpyDtoHAsync"))?;
        stream.wait()
    }
}

impl Drop for DeviceBuffer {
    fn drop(&mut self) {
        if let (Some(memory), Some(home)) = (self.memory.take(), self.home.take()) {
            home.shared.free.lock().unwrap_or_else(PoisonError::into_inner).push(memory);
            home.shared.returned.notify_one();
        }
    }
}

/// Why a pool cannot be had.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// The device has less than that.
    #[error(
        "GPU {ordinal} has {free_mib} MiB free, {n} buffers of {buffer_mib} MiB need {needed_mib}; {fitting} would fit"
    )]
    Memory {
        /// Which device.
        ordinal: usize,
        /// Free now.
        free_mib: usize,
        /// Wanted buffers.
        n: usize,
        /// Of one.
        buffer_mib: usize,
        /// Of all.
        needed_mib: usize,
        /// Buffers that can be had.
        fitting: usize,
    },
    /// The driver failed otherwise.
    #[error(transparent)]
    Cuda(#[from] CudaError),
}

/// Buffers of one size, all there from the start. Clones share them.
#[derive(Clone, Debug)]
pub struct DevicePool {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    free: Mutex<Vec<Allocation>>,
    returned: Condvar,
    n: usize,
    buffer_bytes: usize,
}

impl DevicePool {
    /// Takes `n` buffers of `buffer_bytes` from the device.
    pub fn new(gpu: &Gpu, n: usize, buffer_bytes: usize) -> Result<Self, NoRoom> {
        let mut free = Vec::with_capacity(n);
        for _ in 0..n {
            match Allocation::new(gpu, buffer_bytes) {
                Ok(memory) => free.push(memory),
                Err(e) if e.is_out_of_memory() => {
                    let fitting = free.len();
                    drop(free);
                    let mib = |bytes: usize| bytes >> 20;
                    return Err(NoRoom::Memory {
                        ordinal: gpu.ordinal(),
                        free_mib: mib(gpu.memory()?.0),
                        n,
                        buffer_mib: mib(buffer_bytes),
                        needed_mib: mib(n * buffer_bytes),
                        fitting,
                    });
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Self {
            shared: Arc::new(Shared { free: Mutex::new(free), returned: Condvar::new(), n, buffer_bytes }),
        })
    }

    /// A buffer with unspecified contents, if one is free.
    pub fn take(&self) -> Option<DeviceBuffer> {
        let memory = self.shared.free.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        Some(DeviceBuffer { memory: Some(memory), home: Some(self.clone()) })
    }

    /// Waits until a buffer is free, or for so long.
    pub fn wait(&self, patience: Duration) {
        let free = self.shared.free.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.shared.returned.wait_timeout_while(free, patience, |free| free.is_empty()));
    }

    /// Buffers in all.
    pub fn n(&self) -> usize {
        self.shared.n
    }

    /// Bytes of one.
    pub fn buffer_bytes(&self) -> usize {
        self.shared.buffer_bytes
    }
}

/// Host memory that a device copies to and from by itself, while the host does other things.
#[derive(Debug)]
pub struct Pinned {
    gpu: Gpu,
    memory: *mut u8,
    bytes: usize,
}

// SAFETY: it owns its memory, which any thread may use; CUDA calls bind the context first.
unsafe impl Send for Pinned {}

impl Pinned {
    /// With unspecified contents.
    pub fn new(gpu: &Gpu, bytes: usize) -> Result<Self, CudaError> {
        gpu.bind()?;
        // SAFETY: nothing else owns what it gives. No flags: what is write-combined is slow to read.
        let memory = unsafe { result::malloc_host(bytes.max(1), 0) }.map_err(named("cuMemHostAlloc"))?;
        let memory: *mut u8 = memory.cast();
        // SAFETY: as many bytes were just given; from here on all of them have a value.
        unsafe { memory.write_bytes(0, bytes) };
        Ok(Self { gpu: gpu.clone(), memory, bytes })
    }
}

impl Pinned {
    /// Writes floats to the bytes from `at` on, as halves or as they are.
    ///
    /// # Panics
    /// If they do not fit.
    pub fn write_floats(&mut self, at: usize, floats: &[f32], as_halves: bool) {
        let bytes = floats.len() * if as_halves { 2 } else { 4 };
        let to = &mut self[at..at + bytes];
        if as_halves {
            // Eight at a time: the conversion is one instruction then.
            for (floats, to) in floats.chunks(8).zip(to.chunks_mut(16)) {
                let mut halves = [half::f16::ZERO; 8];
                halves[..floats.len()].convert_from_f32_slice(floats);
                to.iter_mut().zip(halves.iter().flat_map(|h| h.to_le_bytes())).for_each(|(to, b)| *to = b);
            }
        } else {
            to.chunks_exact_mut(4).zip(floats).for_each(|(to, f)| to.copy_from_slice(&f.to_le_bytes()));
        }
    }
}

impl Deref for Pinned {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: ours, of that length and written in `new`; who lets a device write to it waits before
        // the borrow ends.
        unsafe { std::slice::from_raw_parts(self.memory, self.bytes) }
    }
}

impl DerefMut for Pinned {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`; the borrow is exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.memory, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.gpu.bind().is_ok() {
            // SAFETY: it came from `malloc_host`, and whoever let a device use it has waited.
            let _ = unsafe { result::free_host(self.memory.cast()) };
        }
    }
}
