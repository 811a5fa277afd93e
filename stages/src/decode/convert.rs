//! Chosen frames → the model's form, in the decoder's thread.

use std::sync::{Arc, Mutex, PoisonError};

use crossbeam_channel::Sender;
use kernels::{picture::Reading, preprocess::Preprocessor};

use super::{FrameSink, Settings, StreamEnd, surface::Surface, watch::Progress};
use crate::{
    item::{ClipRef, FrameBatch, FrameInfo},
    stage::{Closed, Reason},
    tensors::{TensorBuffer, TensorPool},
};

/// What crosses from the decoder's thread to the worker's.
pub(super) enum Event {
    /// A full batch.
    Batch(FrameBatch),
    /// The clip's end.
    End(Box<Finished>),
}

/// What the converter leaves at the end of a clip.
pub(super) struct Finished {
    pub(super) stream: StreamEnd,
    pub(super) result: Result<(), Reason>,
    pub(super) n_sampled: u32,
    /// Chosen pictures that could not be converted, and what was wrong with the first.
    pub(super) lost: Option<(u32, String)>,
    pub(super) frames: Vec<FrameInfo>,
    pub(super) tensors: TensorBuffer,
}

/// Converts chosen pictures into batches.
pub(super) struct Converter {
    clip: Arc<ClipRef>,
    preprocessor: Arc<Mutex<Preprocessor>>,
    reading: Reading,
    tensor_len: usize,
    batch_frames: usize,
    pool: TensorPool,
    /// The batch being filled, and its tensors.
    frames: Vec<FrameInfo>,
    tensors: Option<TensorBuffer>,
    n_sampled: u32,
    lost: Option<(u32, String)>,
    events: Sender<Event>,
    progress: Progress,
}

impl Converter {
    pub(super) fn new(
        clip: Arc<ClipRef>,
        preprocessor: Arc<Mutex<Preprocessor>>,
        settings: &Settings,
        pool: TensorPool,
        events: Sender<Event>,
        progress: Progress,
    ) -> Self {
        Self {
            clip,
            preprocessor,
            reading: settings.reading,
            tensor_len: settings.recipe.tensor_len(),
            batch_frames: settings.batch_frames,
            pool,
            frames: Vec::new(),
            tensors: None,
            n_sampled: 0,
            lost: None,
            events,
            progress,
        }
    }
}

impl FrameSink for Converter {
    fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Converts a chosen picture into the batch. One that cannot be read is as good as not decoded.
    fn frame(&mut self, info: FrameInfo, surface: &Surface) -> Result<(), Closed> {
        let at = self.frames.len() * self.tensor_len;
        let tensors = self.tensors.get_or_insert_with(|| self.pool.take());
        let mut preprocessor = self.preprocessor.lock().unwrap_or_else(PoisonError::into_inner);
        let converted = surface.with_picture(self.reading, |picture| {
            preprocessor.run(picture, &mut tensors[at..at + self.tensor_len]).map_err(|e| e.to_string())
        });
        drop(preprocessor);
        if let Err(detail) | Ok(Err(detail)) = converted {
            tracing::debug!(clip = self.clip.path, pts = %info.pts, detail, "a picture cannot be converted");
            self.lost.get_or_insert((0, detail)).0 += 1;
            return Ok(());
        }
        self.frames.push(info);
        self.n_sampled += 1;
        if self.frames.len() == self.batch_frames {
            let frames = std::mem::take(&mut self.frames);
            let tensors = self.tensors.take().unwrap_or_default();
            let batch = FrameBatch { clip: self.clip.clone(), frames, tensors, end: None };
            self.events.send(Event::Batch(batch)).map_err(|_| Closed)?;
        }
        Ok(())
    }

    fn end(&mut self, stream: StreamEnd, result: Result<(), Reason>) {
        let finished = Finished {
            stream,
            result,
            n_sampled: self.n_sampled,
            lost: self.lost.take(),
            frames: std::mem::take(&mut self.frames),
            tensors: self.tensors.take().unwrap_or_default(),
        };
        // The worker hears of a closed channel by itself.
        let _ = self.events.send(Event::End(Box::new(finished)));
    }
}
