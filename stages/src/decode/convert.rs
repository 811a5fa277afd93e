//! Chosen frames → the model's form, in the decoder's thread.

use std::{sync::Arc, time::Duration};

use crossbeam_channel::{Sender, TrySendError};
use kernels::picture::Reading;

use super::{FrameSink, StreamEnd, filling::Filling, surface::Surface, watch::Progress};
use crate::{
    item::{ClipRef, FrameInfo},
    stage::{Closed, Reason},
};

/// Looks so often whether somebody still wants the frames, while a device's memory is to come back.
const ROOM_WAIT: Duration = Duration::from_millis(20);

/// What crosses from the decoder's thread to the worker's.
pub(super) enum Event {
    /// A full batch waits to be taken.
    Full,
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
}

/// Converts a clip's chosen pictures into its worker's batch.
pub(super) struct Converter {
    clip: Arc<ClipRef>,
    reading: Reading,
    filling: Filling,
    turn: u64,
    n_sampled: u32,
    lost: Option<(u32, String)>,
    events: Sender<Event>,
    progress: Progress,
}

impl Converter {
    pub(super) fn new(
        clip: Arc<ClipRef>,
        reading: Reading,
        filling: Filling,
        events: Sender<Event>,
        progress: Progress,
    ) -> Self {
        let turn = filling.turn();
        Self { clip, reading, filling, turn, n_sampled: 0, lost: None, events, progress }
    }
}

impl FrameSink for Converter {
    fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Converts a chosen picture into the batch. One that cannot be read is as good as not decoded.
    fn frame(&mut self, info: FrameInfo, surface: Surface) -> Result<(), Closed> {
        let mut batch = self.filling.lock();
        while batch.is_turn(self.turn) && !batch.has_room() {
            // Ours may be among the batches whose memory is waited for: the worker sends them on meanwhile.
            let pool = batch.pool();
            drop(batch);
            if let Err(TrySendError::Disconnected(_)) = self.events.try_send(Event::Full) {
                return Err(Closed);
            }
            if let Some(pool) = pool {
                pool.wait(ROOM_WAIT);
            }
            // It is not the decoder that is silent.
            self.progress.step();
            batch = self.filling.lock();
        }
        if !batch.is_turn(self.turn) {
            return Err(Closed);
        }
        if let Err(detail) = batch.push(&self.clip, info, surface, self.reading) {
            tracing::debug!(clip = self.clip.path, pts = %info.pts, detail, "a picture cannot be converted");
            self.lost.get_or_insert((0, detail)).0 += 1;
            return Ok(());
        }
        self.n_sampled += 1;
        let is_full = batch.has_full();
        drop(batch);
        // The channel is short: a worker that waits on its edge holds the decoder.
        if is_full { self.events.send(Event::Full).map_err(|_| Closed) } else { Ok(()) }
    }

    fn end(&mut self, stream: StreamEnd, result: Result<(), Reason>) {
        let finished = Finished { stream, result, n_sampled: self.n_sampled, lost: self.lost.take() };
        // The worker hears of a closed channel by itself.
        let _ = self.events.send(Event::End(Box::new(finished)));
    }
}

#[cfg(test)]
mod tests {
    use kernels::{
        picture::Matrix,
        preprocess::{Recipe, Resize},
        resample::Filter,
    };

    use super::*;
    use crate::{
        decode::{room::Room, surface::Canvas, watch::Watch},
        item::{ClipId, FrameBatch, Pts},
        stage::Kept,
    };

    #[test]
    fn a_decoder_that_was_given_up_fills_no_batch_of_others() {
        let recipe = Recipe {
            width: 4,
            height: 4,
            resize: Resize::Stretch,
            filter: Filter::Bilinear,
            mean: [0.0; 3],
            std: [1.0; 3],
        };
        let filling = Filling::new(Room::open(&recipe, 2, None).unwrap(), 2);
        let reading = Reading { unspecified: Matrix::Bt601, one_field: true };
        let (events, received) = crossbeam_channel::unbounded();
        let converter = |id| {
            let clip = Arc::new(ClipRef { id: ClipId(id), path: String::new(), label: None, extra: vec![] });
            let progress = Watch::new(std::time::Duration::from_secs(1)).progress();
            Converter::new(clip, reading, filling.clone(), events.clone(), progress)
        };
        let surface = || Surface::rgba(Canvas { rgba: vec![255; 64], width: 4, height: 4 });
        let info = FrameInfo { frame_index: 0, pts: Pts { nanos: 0 }, is_keyframe: true };

        let mut hung = converter(0);
        assert!(hung.frame(info, surface()).is_ok());
        let mut next = converter(1);
        // It wakes while the next clip is decoded, and can do no harm any more.
        assert!(hung.frame(info, surface()).is_err());
        assert!(next.frame(info, surface()).is_ok());
        assert!(matches!(received.try_recv(), Ok(Event::Full)));
        let mut sent = Kept(Vec::new());
        filling.send_on(&mut sent).unwrap();
        let batch = sent.0.remove(0);
        let parts: Vec<(u64, usize)> = batch.parts.iter().map(|p| (p.clip.id.0, p.frames.len())).collect();
        assert_eq!(parts, [(0, 1), (1, 1)]);
        // One whose worker has left when it fills a batch takes nothing with it.
        assert!(next.frame(info, surface()).is_ok());
        drop(received);
        assert!(next.frame(info, surface()).is_err());
        filling.send_all(&mut sent).unwrap();
        assert_eq!(sent.0.iter().map(FrameBatch::n_frames).collect::<Vec<_>>(), [2]);
    }
}
