//! The batch that a worker's decoders fill in place, clip after clip.
//!
//! Frames of many short clips share a batch, so that the encoder runs full; nothing is copied on the way.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use kernels::{device::DevicePool, picture::Reading};

use super::{
    room::{NotPut, Room},
    surface::Surface,
};
use crate::{
    item::{ClipEnd, ClipRef, FrameBatch, FrameInfo, Part},
    stage::{Emit, StageError},
};

/// A batch with frames in it does not wait for more than this to be full.
const PATIENCE: Duration = Duration::from_millis(500);

/// One worker's batch, shared with the thread of its decoder.
#[derive(Clone)]
pub(super) struct Filling(Arc<Mutex<Batch>>);

pub(super) struct Batch {
    room: Room,
    capacity: usize,
    parts: Vec<Part>,
    n_frames: usize,
    /// Why nothing can be put into a batch any more.
    fault: Option<anyhow::Error>,
    /// Batches that are full, until the worker takes them: whatever becomes of a decoder's thread, the
    /// frames of other clips in them are not lost with it.
    full: VecDeque<FrameBatch>,
    /// When the first part came in.
    since: Instant,
    /// Whose frames are taken; see [`Filling::turn`].
    turn: u64,
}

impl Filling {
    /// Of `capacity` frames at most, for which `room` is made.
    pub(super) fn new(room: Room, capacity: usize) -> Self {
        Self(Arc::new(Mutex::new(Batch {
            room,
            capacity,
            parts: Vec::new(),
            n_frames: 0,
            fault: None,
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
        batch.give_back();
        batch.turn
    }
}

impl Filling {
    /// Sends on what is full or has waited long, and tells whether that was anything.
    pub(super) fn send_on(&self, out: &mut dyn Emit<FrameBatch>) -> Result<bool, StageError> {
        let mut is_any = false;
        loop {
            // Not held while the edge may block.
            let (taken, fault) = self.lock().take();
            if let Some(fault) = fault {
                return Err(StageError::Fatal(fault));
            }
            let Some(batch) = taken else { return Ok(is_any) };
            out.emit(batch)?;
            is_any = true;
        }
    }

    /// Sends on all that there is.
    pub(super) fn send_all(&self, out: &mut dyn Emit<FrameBatch>) -> Result<(), StageError> {
        self.send_on(out)?;
        self.lock().close();
        self.send_on(out).map(drop)
    }
}

impl Batch {
    pub(super) fn is_turn(&self, turn: u64) -> bool {
        self.turn == turn
    }

    /// Memory that comes back from other batches, where it is bounded.
    pub(super) fn pool(&self) -> Option<DevicePool> {
        self.room.pool()
    }

    /// Whether there is memory for the next picture. A device's comes back when other batches are embedded.
    pub(super) fn has_room(&mut self) -> bool {
        self.room.is_there()
    }

    /// Converts a picture into the next place, or says why that cannot be. A batch that is full by it
    /// waits to be taken. After a fault, so does that.
    pub(super) fn push(
        &mut self,
        clip: &Arc<ClipRef>,
        info: FrameInfo,
        surface: Surface,
        reading: Reading,
    ) -> Result<(), String> {
        match self.room.put(self.n_frames, surface, reading) {
            Ok(()) => (),
            Err(NotPut::Picture(detail)) => return Err(detail),
            Err(NotPut::Fault(fault)) => {
                self.fault.get_or_insert(fault);
                return Ok(());
            }
        }
        self.n_frames += 1;
        self.part(clip).frames.push(info);
        if self.n_frames == self.capacity {
            self.close();
        }
        Ok(())
    }

    /// Gives the decoder's surfaces back.
    fn give_back(&mut self) {
        if let Err(fault) = self.room.give_back() {
            self.fault.get_or_insert(fault);
        }
    }

    /// Marks the end of a clip.
    pub(super) fn end(&mut self, clip: &Arc<ClipRef>, end: ClipEnd) {
        self.give_back();
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

    /// Whether the worker has something to take.
    pub(super) fn has_full(&self) -> bool {
        !self.full.is_empty() || self.fault.is_some()
    }

    /// A batch that is full, or has waited long; or what went wrong.
    fn take(&mut self) -> (Option<FrameBatch>, Option<anyhow::Error>) {
        if self.full.is_empty() && self.since.elapsed() >= PATIENCE {
            self.close();
        }
        (self.full.pop_front(), self.fault.take())
    }

    /// What is in the batch waits to be taken.
    fn close(&mut self) {
        if self.parts.is_empty() {
            return;
        }
        self.n_frames = 0;
        let parts = std::mem::take(&mut self.parts);
        match self.room.take() {
            Ok(tensors) => self.full.push_back(FrameBatch { parts, tensors }),
            Err(fault) => {
                self.fault.get_or_insert(fault);
            }
        }
    }
}
