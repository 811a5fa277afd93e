//! Buffers for frames in the model's form, used again and again.
//!
//! A fresh buffer costs its page faults, which for a frame is as much as filling it.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, PoisonError},
};

/// Buffers of one size. Clones share them.
#[derive(Clone, Debug)]
pub struct TensorPool {
    free: Arc<Mutex<Vec<Vec<f32>>>>,
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
        TensorBuffer { floats: used.unwrap_or_else(|| vec![0.0; self.len]), home: Some(self.clone()) }
    }
}

/// A buffer on loan from a [`TensorPool`].
#[derive(Debug, Default)]
pub struct TensorBuffer {
    floats: Vec<f32>,
    home: Option<TensorPool>,
}

impl Deref for TensorBuffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.floats
    }
}

impl DerefMut for TensorBuffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.floats
    }
}

impl From<Vec<f32>> for TensorBuffer {
    fn from(floats: Vec<f32>) -> Self {
        Self { floats, home: None }
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
