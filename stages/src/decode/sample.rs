//! Which frames of a clip are wanted, decided as they come.
//!
//! A time asks for the frame that a player shows at that time: the last one whose presentation time
//! is not later. So a frame can only be chosen once its successor is known, and one frame is held.
//! Times start at the first frame's. A frame is chosen once, even if several times ask for it.

use crate::item::{FrameInfo, Pts};

/// The rule for choosing frames.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sampling {
    /// The frame shown every so many milliseconds.
    EveryMs(u64),
    /// The frame shown so many times a second.
    Fps(f64),
    /// So many frames, shown at the middles of as many equal parts of the clip.
    Count(u32),
    /// The frames that decode alone.
    Keyframes,
    /// Every frame.
    All,
}

impl Sampling {
    /// Whether the rule needs the clip's packet times before decoding.
    pub fn needs_packets(self) -> bool {
        matches!(self, Sampling::Count(_) | Sampling::Keyframes)
    }
}

/// Presentation times of a clip's packets, known before decoding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PacketTimes {
    /// Of all packets, sorted.
    pub pts: Vec<Pts>,
    /// End of the last packet, if it says how long it lasts.
    pub end: Option<Pts>,
}

impl PacketTimes {
    /// Sorts the times and fills a missing end with the usual distance of frames.
    pub fn new(mut pts: Vec<Pts>, end: Option<Pts>) -> Self {
        pts.sort_unstable();
        Self { pts, end }
    }

    fn span(&self) -> (i64, i64) {
        let first = self.pts.first().map_or(0, |p| p.nanos);
        let last = self.pts.last().map_or(0, |p| p.nanos);
        let gap = last.saturating_sub(first) / (self.pts.len().max(2) as i64 - 1);
        (first, self.end.map_or(last.saturating_add(gap), |e| e.nanos.max(last)))
    }

    /// Place of the frame with this time among all frames.
    fn index_of(&self, pts: Pts) -> u32 {
        self.pts.partition_point(|p| *p < pts) as u32
    }
}

/// Chooses frames from those that come, in presentation order.
pub struct Sampler<S> {
    sampling: Sampling,
    packets: PacketTimes,
    held: Option<(FrameInfo, S)>,
    n_seen: u32,
    n_asked: u64,
    first: Option<Pts>,
}

impl<S> Sampler<S> {
    /// For one clip. `packets` may be empty where [`Sampling::needs_packets`] says no.
    pub fn new(sampling: Sampling, packets: PacketTimes) -> Self {
        Self { sampling, packets, held: None, n_seen: 0, n_asked: 0, first: None }
    }

    /// End of the last packet, where the packets are known.
    pub fn packets_end(&self) -> Pts {
        if self.packets.pts.is_empty() {
            Pts { nanos: i64::MIN }
        } else {
            Pts { nanos: self.packets.span().1 }
        }
    }

    /// Frames seen so far.
    pub fn n_seen(&self) -> u32 {
        self.n_seen
    }

    /// Takes the next frame and returns the one that is now known to be wanted.
    pub fn push(&mut self, pts: Pts, is_keyframe: bool, picture: S) -> Option<(FrameInfo, S)> {
        let frame_index = match self.sampling {
            Sampling::Keyframes if !self.packets.pts.is_empty() => self.packets.index_of(pts),
            _ => self.n_seen,
        };
        self.n_seen += 1;
        self.first.get_or_insert(pts);
        let info = FrameInfo { frame_index, pts, is_keyframe };
        match self.sampling {
            Sampling::All => Some((info, picture)),
            Sampling::Keyframes => is_keyframe.then_some((info, picture)),
            _ => {
                let shown_until = pts.nanos;
                let chosen = if self.take_times_before(shown_until) { self.held.take() } else { None };
                self.held = Some((info, picture));
                chosen
            }
        }
    }

    /// Ends the clip: the last frame is shown until `end`.
    pub fn finish(&mut self, end: Pts) -> Option<(FrameInfo, S)> {
        let last = self.held.as_ref()?.0.pts.nanos;
        // A frame is shown for some time, even if the stream does not say how long.
        if self.take_times_before(end.nanos.max(last.saturating_add(1))) { self.held.take() } else { None }
    }

    /// Passes all wanted times before `limit`; whether there was any.
    fn take_times_before(&mut self, limit: i64) -> bool {
        let mut any = self.skip_to_near(limit);
        while let Some(time) = self.wanted(self.n_asked) {
            if time >= limit {
                break;
            }
            self.n_asked += 1;
            any = true;
        }
        any
    }

    /// Passes by division what would take long to count: a stream may jump by years. Whether any
    /// wanted time was passed.
    fn skip_to_near(&mut self, limit: i64) -> bool {
        let Some(first) = self.first else { return false };
        let step_ns = match self.sampling {
            Sampling::EveryMs(ms) => ms as f64 * 1e6,
            Sampling::Fps(fps) => 1e9 / fps,
            _ => return false,
        };
        let near = ((limit as f64 - first.nanos as f64) / step_ns) as u64;
        // A few less, to be exact whatever the rounding.
        let near = near.saturating_sub(3 + near / (1 << 40));
        let skips = near > self.n_asked;
        self.n_asked = self.n_asked.max(near);
        skips
    }

    /// The wanted time number `n`.
    fn wanted(&self, n: u64) -> Option<i64> {
        let first = self.first?.nanos;
        match self.sampling {
            Sampling::EveryMs(ms) => {
                Some(first.saturating_add((n as i64).saturating_mul(ms as i64).saturating_mul(1_000_000)))
            }
            Sampling::Fps(fps) => Some(first.saturating_add((n as f64 * 1e9 / fps).round() as i64)),
            Sampling::Count(count) if n < u64::from(count) => {
                let (start, end) = self.packets.span();
                let offset = i128::from(end - start) * i128::from(2 * n + 1) / i128::from(2 * count);
                // The decoder's first frame may be later than the container's: never before it.
                Some((start + offset as i64).max(first))
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: i64) -> Pts {
        Pts { nanos: ms * 1_000_000 }
    }

    fn chosen(sampling: Sampling, times: &[i64], end: i64) -> Vec<u32> {
        let packets = PacketTimes::new(times.iter().map(|t| ms(*t)).collect(), Some(ms(end)));
        let mut sampler = Sampler::new(sampling, packets);
        let mut chosen: Vec<u32> = times
            .iter()
            .filter_map(|t| sampler.push(ms(*t), *t == 0, ()))
            .map(|(info, ())| info.frame_index)
            .collect();
        chosen.extend(sampler.finish(ms(end)).map(|(info, ())| info.frame_index));
        chosen
    }

    #[test]
    fn chooses_the_frame_shown_at_each_time() {
        let check = |sampling, times: &[i64], end, want: &[u32]| {
            assert_eq!(chosen(sampling, times, end), want, "{sampling:?} of {times:?}");
        };
        let even: Vec<i64> = (0..10).map(|i| i * 100).collect();
        check(Sampling::EveryMs(250), &even, 1000, &[0, 2, 5, 7]);
        check(Sampling::EveryMs(300), &even, 1000, &[0, 3, 6, 9]);
        check(Sampling::EveryMs(900), &even, 1000, &[0, 9]);
        check(Sampling::EveryMs(1000), &even, 1000, &[0]);
        check(Sampling::Fps(4.0), &even, 1000, &[0, 2, 5, 7]);
        check(Sampling::Count(1), &even, 1000, &[5]);
        check(Sampling::Count(2), &even, 1000, &[2, 7]);
        check(Sampling::Count(10), &even, 1000, &(0..10).collect::<Vec<_>>());
        // More than there are: each once.
        check(Sampling::Count(40), &even, 1000, &(0..10).collect::<Vec<_>>());
        check(Sampling::EveryMs(1), &[0, 40, 80], 120, &[0, 1, 2]);
        check(Sampling::All, &even, 1000, &(0..10).collect::<Vec<_>>());
        // Uneven: the picture shown at 500 is the one of 90.
        check(Sampling::EveryMs(500), &[0, 90, 700, 1500], 1540, &[0, 1, 2, 3]);
        // Times start at the first frame, wherever that is.
        check(Sampling::EveryMs(200), &[1400, 1500, 1600, 1700], 1800, &[0, 2]);
        check(Sampling::EveryMs(200), &[-200, -100, 0, 100], 200, &[0, 2]);
        check(Sampling::EveryMs(500), &[0], 0, &[0]);
        // A jump of a century, a millisecond at a time.
        check(Sampling::EveryMs(1), &[0, 40, 3_155_760_000_000], 3_155_760_000_040, &[0, 1, 2]);
        check(Sampling::Fps(999.0), &[0, 40, 3_155_760_000_000], 3_155_760_000_040, &[0, 1, 2]);
        check(Sampling::Count(8), &[0], 0, &[0]);
    }
}
