//! For decoders that deliver every picture: hands on those that the sampling rule chooses.

use super::{
    FrameSink, StreamEnd,
    sample::{PacketTimes, Sampler, Sampling},
    surface::Surface,
};
use crate::{
    item::{FrameInfo, Pts},
    stage::{Closed, Reason},
};

pub(super) struct Chooser {
    sampler: Sampler<Surface>,
    sink: Box<dyn FrameSink>,
    first: Option<Pts>,
    /// Frames up to this time were handed on before, by other means.
    after: Option<Pts>,
}

impl Chooser {
    /// `times` may be empty where [`Sampling::needs_packets`] says no.
    pub(super) fn new(sampling: Sampling, times: PacketTimes, sink: Box<dyn FrameSink>) -> Self {
        Self { sampler: Sampler::new(sampling, times), sink, first: None, after: None }
    }

    /// Leaves out frames up to `last`.
    pub(super) fn after(mut self, last: Option<Pts>) -> Self {
        self.after = last;
        self
    }

    pub(super) fn picture(&mut self, pts: Pts, is_keyframe: bool, surface: Surface) -> Result<(), Closed> {
        self.sink.progress().step();
        self.first.get_or_insert(pts);
        match self.sampler.push(pts, is_keyframe, surface) {
            Some((info, surface)) => self.frame(info, surface),
            None => Ok(()),
        }
    }

    fn frame(&mut self, info: FrameInfo, surface: Surface) -> Result<(), Closed> {
        if self.after.is_some_and(|after| info.pts <= after) {
            Ok(())
        } else {
            self.sink.frame(info, surface)
        }
    }

    pub(super) fn end(&mut self, mut stream: StreamEnd, result: Result<(), Reason>) {
        // Where packets were dropped unseen, the stream ends with the last of them.
        stream.end = stream.end.max(self.sampler.packets_end());
        stream.first = self.first.unwrap_or_default();
        stream.n_frames = self.sampler.n_seen();
        if let Some((info, surface)) = self.sampler.finish(stream.end) {
            // Whoever closed hears of it by himself.
            let _ = self.frame(info, surface);
        }
        self.sink.end(stream, result);
    }

    pub(super) fn progress(&self) {
        self.sink.progress().step();
    }
}
