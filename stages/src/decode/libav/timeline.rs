//! When pictures are shown, from their packets.
//!
//! Most containers give each packet a presentation time. AVI does not, and what FFmpeg makes up for it
//! goes wrong with B-frames: there the packets follow one another at an even pace, so the next picture
//! shown has the next packet's time, whichever packet it came from.

use kernels::ffi::libav::{Packet, Stream};

use super::codec::{Codec, Coded};

/// A clock that falls back by so much was set anew: what follows is another recording, not another order.
const CLOCK_RESET_NS: i64 = 1_000_000_000;
/// Frames of a stream that does not say how long one lasts.
const USUAL_FRAME_NS: i64 = 40_000_000;

/// A time and how long it lasts, in nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::decode) struct Span {
    pub(in crate::decode) start: i64,
    pub(in crate::decode) lasts: i64,
}

impl Span {
    pub(in crate::decode) fn end(self) -> i64 {
        self.start.saturating_add(self.lasts)
    }
}

/// What a packet means for the times of pictures.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::decode) struct Told {
    /// When its picture is shown; in a counted stream, when the next picture in line is.
    pub(in crate::decode) span: Option<Span>,
    /// Whether the codec could tell its pictures, which are then in [`Timeline::coded`].
    pub(in crate::decode) is_counted_on: bool,
}

/// Reads a stream's packets one after another.
pub(in crate::decode) struct Timeline {
    codec: Option<Codec>,
    is_avi: bool,
    is_intra_only: bool,
    /// Whether the container has no times at all.
    is_untimed: bool,
    may_reorder: bool,
    /// Whether two packets may be one picture.
    may_split: bool,
    counted: Option<bool>,
    start_ns: i64,
    n_packets: i64,
    /// Time of decoding that the last packet had, after it was set right.
    last_dts: Option<i64>,
    frame_ns: i64,
    /// Pictures that came in packets with others, and will take the place of later, empty packets.
    n_ahead: usize,
    /// Whether a picture was told to be shown before one that was coded before it.
    has_b: bool,
    /// Pictures of the last packet.
    pub(in crate::decode) coded: Vec<Coded>,
}

impl Timeline {
    pub(in crate::decode) fn new(stream: &Stream) -> Self {
        Self {
            codec: Codec::of(stream.codec, &stream.extradata),
            is_avi: stream.container == "avi",
            is_intra_only: stream.is_intra_only,
            is_untimed: stream.is_untimed,
            may_reorder: stream.may_reorder,
            may_split: stream.codec == "h264" && stream.is_interlaced && is_bare(stream.container),
            counted: None,
            start_ns: stream.start_ns,
            n_packets: 0,
            last_dts: None,
            frame_ns: if stream.fps > 0.0 { (1e9 / stream.fps) as i64 } else { USUAL_FRAME_NS },
            n_ahead: 0,
            has_b: false,
            coded: Vec::new(),
        }
    }

    /// How long a picture lasts that does not say.
    pub(in crate::decode) fn frame_ns(&self) -> i64 {
        self.frame_ns
    }

    /// Whether pictures take the packets' times in turn. Known after the first packet.
    pub(in crate::decode) fn is_counted(&self) -> bool {
        self.counted.unwrap_or(false)
    }

    /// Whether all pictures so far are shown in the order of their packets.
    pub(in crate::decode) fn is_in_order(&self) -> bool {
        let in_order = self.codec.as_ref().map_or(!self.may_reorder, Codec::tells_order);
        !self.has_b && in_order
    }

    /// Whether marks of keyframes, all packets having one, are not to be trusted.
    pub(in crate::decode) fn has_doubtful_keys(&self, all_are: bool) -> bool {
        self.is_avi && all_are && !self.is_intra_only && self.n_packets > 1
    }

    pub(in crate::decode) fn codec(&self) -> Option<&Codec> {
        self.codec.as_ref()
    }

    pub(in crate::decode) fn packet(&mut self, packet: &Packet) -> Told {
        let has_dts_alone = packet.pts_ns.is_none() && packet.dts_ns.is_some();
        let counted = *self.counted.get_or_insert(self.is_avi || self.is_untimed || has_dts_alone);
        self.coded.clear();
        let is_counted_on = match &mut self.codec {
            Some(codec) => codec.pictures(packet.bytes(), &mut self.coded) && !self.may_split,
            None => false,
        };
        self.has_b |= self.coded.iter().any(|c| c.is_b);
        let paced = self.start_ns.saturating_add(self.n_packets.saturating_mul(self.frame_ns));
        let time = match (self.is_untimed, counted) {
            (true, _) => Some(paced),
            (false, true) => packet.dts_ns,
            (false, false) => packet.pts_ns,
        };
        self.n_packets += 1;
        if let (Some(dts), Some(last)) = (packet.dts_ns, self.last_dts) {
            let now = dts.saturating_sub(self.start_ns);
            if now < last.saturating_sub(CLOCK_RESET_NS) {
                self.start_ns = self.start_ns.saturating_sub(last.saturating_add(self.frame_ns) - now);
            }
        }
        self.last_dts = packet.dts_ns.map(|dts| dts.saturating_sub(self.start_ns)).or(self.last_dts);
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

/// Containers whose packets FFmpeg cuts itself, at fields if a picture's two come apart.
fn is_bare(container: &str) -> bool {
    matches!(container, "mpegts" | "mpeg" | "h264")
}
