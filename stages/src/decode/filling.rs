//! The batch that a worker's decoders fill in place, clip after clip.
//!
//! Frames of many short clips share a batch, so that the encoder runs full; nothing is copied on the way.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use kernels::{
    picture::Reading,
    preprocess::{Preprocessor, Recipe},
};

use super::surface::Surface;
use crate::{
    item::{ClipEnd, ClipRef, FrameBatch, FrameInfo, Part},
    stage::{Closed, Emit},
    tensors::{TensorBuffer, TensorPool},
};

/// A batch with frames in it does not wait for more than this to be full.
const PATIENCE: Duration = Duration::from_millis(500);

/// One worker's batch, shared with the thread of its decoder.
#[derive(Clone)]
pub(super) struct Filling(Arc<Mutex<Batch>>);

pub(super) struct Batch {
    preprocessor: Preprocessor,
    pool: TensorPool,
    tensor_len: usize,
    capacity: usize,
    parts: Vec<Part>,
    tensors: TensorBuffer,
    n_frames: usize,
    /// Batches that are full, until the worker takes them: whatever becomes of a decoder's thread, the
    /// frames of other clips in them are not lost with it.
    full: VecDeque<FrameBatch>,
    /// When the first part came in.
    since: Instant,
    /// Whose frames are taken; see [`Filling::turn`].
    turn: u64,
}

impl Filling {
    /// Of `capacity` frames at most.
    pub(super) fn new(recipe: &Recipe, capacity: usize) -> Self {
        Self(Arc::new(Mutex::new(Batch {
            preprocessor: Preprocessor::new(recipe.clone()),
            pool: TensorPool::new(capacity * recipe.tensor_len()),
            tensor_len: recipe.tensor_len(),
            capacity,
            parts: Vec::new(),
            tensors: TensorBuffer::default(),
            n_frames: 0,
            full: VecDeque::new(),
            since: Instant::now(),
            turn: 0,
        })))
    }

    /// The batch, for a moment.
    pub(super) fn lock(&self) -> MutexGuard<'_, Batch> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins a decoder's turn. One that was given up may wake later: its turn is over.
    pub(super) fn turn(&self) -> u64 {
        let mut batch = self.lock();
        batch.turn += 1;
        batch.turn
    }
}

impl Filling {
    /// Sends on what is full or has waited long, and tells whether that was anything.
    pub(super) fn send_on(&self, out: &mut dyn Emit<FrameBatch>) -> Result<bool, Closed> {
        let mut is_any = false;
        loop {
            // Not held while the edge may block.
            let taken = self.lock().take();
            let Some(batch) = taken else { return Ok(is_any) };
            out.emit(batch)?;
            is_any = true;
        }
    }
}

impl Batch {
    pub(super) fn is_turn(&self, turn: u64) -> bool {
        self.turn == turn
    }

    /// Converts a picture into the next place, or says why that cannot be. A batch that is full by it
    /// waits to be taken.
    pub(super) fn push(
        &mut self,
        clip: &Arc<ClipRef>,
        info: FrameInfo,
        surface: &Surface,
        reading: Reading,
    ) -> Result<(), String> {
        if self.tensors.is_empty() {
            self.tensors = self.pool.take();
        }
        let Self { preprocessor, tensors, tensor_len, .. } = self;
        let at = self.n_frames * *tensor_len;
        let place = &mut tensors[at..at + *tensor_len];
        surface
            .with_picture(reading, |picture| preprocessor.run(picture, place).map_err(|e| e.to_string()))??;
        self.n_frames += 1;
        self.part(clip).frames.push(info);
        if self.n_frames == self.capacity {
            let batch = self.close();
            self.full.extend(batch);
        }
        Ok(())
    }

    /// Marks the end of a clip.
    pub(super) fn end(&mut self, clip: &Arc<ClipRef>, end: ClipEnd) {
        self.part(clip).end = Some(Box::new(end));
    }

    fn part(&mut self, clip: &Arc<ClipRef>) -> &mut Part {
        if self.parts.is_empty() {
            self.since = Instant::now();
        }
        if self.parts.last().is_none_or(|part| part.clip.id != clip.id) {
            self.parts.push(Part { clip: clip.clone(), frames: Vec::new(), end: None });
        }
        let last = self.parts.len() - 1;
        &mut self.parts[last]
    }

    pub(super) fn has_full(&self) -> bool {
        !self.full.is_empty()
    }

    /// A batch that is full, or has waited long.
    pub(super) fn take(&mut self) -> Option<FrameBatch> {
        let is_old = self.since.elapsed() >= PATIENCE;
        self.full.pop_front().or_else(|| if is_old { self.close() } else { None })
    }

    /// A batch, if there is anything in it.
    pub(super) fn take_any(&mut self) -> Option<FrameBatch> {
        self.full.pop_front().or_else(|| self.close())
    }

    fn close(&mut self) -> Option<FrameBatch> {
        if self.parts.is_empty() {
            return None;
        }
        self.n_frames = 0;
        let (parts, tensors) = (std::mem::take(&mut self.parts), std::mem::take(&mut self.tensors));
        Some(FrameBatch { parts, tensors })
    }
}
