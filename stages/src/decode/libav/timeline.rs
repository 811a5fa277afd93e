//! When pictures are shown, from their packets.
//!
//! Most containers give each packet a presentation time. AVI does not, and what FFmpeg makes up for it
//! goes wrong with B-frames: there the packets follow one another at an even pace, so the next picture
//! shown has the next packet's time, whichever packet it came from.

use kernels::ffi::libav::{Packet, Stream};

use super::codec::{Codec, Coded};

/// Frames of a stream that does not say how long one lasts.
const USUAL_FRAME_NS: i64 = 40_000_000;

/// A time and how long it lasts, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: i64,
    pub(super) lasts: i64,
}

impl Span {
    pub(super) fn end(self) -> i64 {
        self.start.saturating_add(self.lasts)
    }
}

/// What a packet means for the times of pictures.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Told {
    /// When its picture is shown; in a counted stream, when the next picture in line is.
    pub(super) span: Option<Span>,
    /// Whether the codec could tell its pictures, which are then in [`Timeline::coded`].
    pub(super) is_counted_on: bool,
}

/// Reads a stream's packets one after another.
pub(super) struct Timeline {
    codec: Option<Codec>,
    is_avi: bool,
    counted: Option<bool>,
    start_ns: i64,
    frame_ns: i64,
    /// Pictures that came in packets with others, and will take the place of later, empty packets.
    n_ahead: usize,
    /// Whether a picture was told to be shown before one that was coded before it.
    has_b: bool,
    /// Pictures of the last packet.
    pub(super) coded: Vec<Coded>,
}

impl Timeline {
    pub(super) fn new(stream: &Stream) -> Self {
        Self {
            codec: Codec::of(stream.codec, &stream.extradata),
            is_avi: stream.container == "avi",
            counted: None,
            start_ns: stream.start_ns,
            frame_ns: if stream.fps > 0.0 { (1e9 / stream.fps) as i64 } else { USUAL_FRAME_NS },
            n_ahead: 0,
            has_b: false,
            coded: Vec::new(),
        }
    }

    /// How long a picture lasts that does not say.
    pub(super) fn frame_ns(&self) -> i64 {
        self.frame_ns
    }

    /// Whether pictures take the packets' times in turn. Known after the first packet.
    pub(super) fn is_counted(&self) -> bool {
        self.counted.unwrap_or(false)
    }

    /// Whether all pictures so far are shown in the order of their packets.
    pub(super) fn is_in_order(&self) -> bool {
        !self.has_b && self.codec.as_ref().is_some_and(Codec::tells_order)
    }

    pub(super) fn codec(&self) -> Option<&Codec> {
        self.codec.as_ref()
    }

    pub(super) fn packet(&mut self, packet: &Packet) -> Told {
        let counted =
            *self.counted.get_or_insert(self.is_avi || (packet.pts_ns.is_none() && packet.dts_ns.is_some()));
        self.coded.clear();
        let is_counted_on = match &mut self.codec {
            Some(codec) => codec.pictures(packet.bytes(), &mut self.coded),
            None => false,
        };
        self.has_b |= self.coded.iter().any(|c| c.is_b);
        let time = if counted { packet.dts_ns } else { packet.pts_ns };
        let lasts = if packet.duration_ns > 0 { packet.duration_ns } else { self.frame_ns };
        let span = time.map(|time| Span { start: time.saturating_sub(self.start_ns), lasts });
        if !counted || !is_counted_on {
            return Told { span, is_counted_on };
        }
        // A packet of two pictures lends one to the next packet that has none.
        self.n_ahead += self.coded.iter().filter(|c| c.is_shown).count();
        let is_filled = self.n_ahead > 0;
        self.n_ahead = self.n_ahead.saturating_sub(1);
        Told { span: span.filter(|_| is_filled), is_counted_on }
    }
}
