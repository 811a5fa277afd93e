//! Buffers for frames in the model's form, aligned, used again and again.
//!
//! A fresh buffer costs its page faults, which for a frame is as much as filling it.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
};

use kernels::{aligned::AlignedFloats, device::DeviceBuffer, preprocess::on_gpu::Float};

/// A batch's tensors, wherever they lie.
#[derive(Debug)]
pub enum Tensors {
    /// In the host's memory.
    Host(TensorBuffer),
    /// In a device's.
    Device(DeviceTensors),
}

impl Default for Tensors {
    /// None.
    fn default() -> Self {
        Self::Host(TensorBuffer::default())
    }
}

impl Tensors {
    /// Bytes that are held.
    pub fn bytes(&self) -> usize {
        match self {
            Self::Host(floats) => floats.len() * size_of::<f32>(),
            Self::Device(tensors) => tensors.buffer.bytes(),
        }
    }

    /// The floats of tensors on the host.
    pub fn on_host(&self) -> Option<&[f32]> {
        match self {
            Self::Host(floats) => Some(floats),
            Self::Device(_) => None,
        }
    }
}

/// Tensors in a buffer of a device's pool, all work on them done.
#[derive(Debug)]
pub struct DeviceTensors {
    /// Where they lie, one after another.
    pub buffer: DeviceBuffer,
    /// What they are made of.
    pub float: Float,
}

/// Buffers of one size. Clones share them.
#[derive(Clone, Debug)]
pub struct TensorPool {
    free: Arc<Mutex<Vec<AlignedFloats>>>,
    len: usize,
}

impl TensorPool {
    /// Of buffers with `len` floats.
    pub fn new(len: usize) -> Self {
        Self { free: Arc::default(), len }
    }

    /// A buffer with unspecified contents; it comes back when dropped.
    pub fn take(&self) -> TensorBuffer {
        let used = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        TensorBuffer {
            floats: used.unwrap_or_else(|| AlignedFloats::zeroed(self.len)),
            home: Some(self.clone()),
        }
    }
}

/// A buffer on loan from a [`TensorPool`].
#[derive(Debug, Default)]
pub struct TensorBuffer {
    floats: AlignedFloats,
    home: Option<TensorPool>,
}

impl Deref for TensorBuffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        self.floats.floats()
    }
}

impl DerefMut for TensorBuffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        self.floats.floats_mut()
    }
}

impl Drop for TensorBuffer {
    fn drop(&mut self) {
        if let Some(pool) = self.home.take() {
            let floats = std::mem::take(&mut self.floats);
            pool.free.lock().unwrap_or_else(PoisonError::into_inner).push(floats);
        }
    }
}
