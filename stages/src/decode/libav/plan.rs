//! Which packets the chosen frames need.

use std::ops::Range;

use super::survey::{Picture, Survey};
use crate::{
    decode::sample::{Sampler, Sampling},
    item::{FrameInfo, Pts},
};

/// Packets to decode in one go, starting at a keyframe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// Numbers of the packets, to the last that is needed.
    pub(super) packets: Range<u32>,
    /// Rank of the picture that the decoder delivers first.
    pub(super) first_rank: u32,
    /// Pictures before this time need what came before the segment.
    pub(super) starts: i64,
    /// The chosen among its pictures, as indices of [`Plan::chosen`].
    pub(super) chosen: Range<usize>,
}

/// A chosen frame, and the packet that it comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    pub(super) info: FrameInfo,
    pub(super) packet: u32,
}

/// How to decode the chosen frames, and little else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// In presentation order.
    pub(super) chosen: Vec<Chosen>,
    pub(super) segments: Vec<Segment>,
}

impl Plan {
    /// `None` if the survey could not tell all pictures. The frames are those that
    /// [`Sampler`] chooses when it sees every picture.
    pub(super) fn new(sampling: Sampling, survey: &Survey) -> Option<Self> {
        let pictures = survey.pictures.as_ref()?;
        // What comes before the first keyframe may or may not be decodable.
        if !pictures.first().is_some_and(|first| first.is_key && first.rank == 0) {
            return None;
        }
        let mut plan = Plan { chosen: Vec::new(), segments: Vec::new() };
        for (info, place) in choose(sampling, survey, pictures) {
            let picture = pictures[place];
            let needed_to = needed_to(pictures, place, survey.is_counted);
            plan.chosen.push(Chosen { info, packet: picture.packet });
            let n = plan.chosen.len();
            // A keyframe that the decoder passes anyway is no reason to start again.
            let start = start(pictures, place);
            match plan.segments.last_mut() {
                Some(last) if start.packet < last.packets.end => {
                    last.packets.end = last.packets.end.max(needed_to);
                    last.chosen.end = n;
                }
                _ => plan.segments.push(Segment {
                    packets: start.packet..needed_to,
                    first_rank: start.rank,
                    starts: start.time,
                    chosen: n - 1..n,
                }),
            }
        }
        Some(plan)
    }

    /// Packets that will be decoded.
    pub(super) fn n_packets(&self) -> u64 {
        self.segments.iter().map(|s| s.packets.len() as u64).sum()
    }
}

/// The chosen frames in presentation order, each with its place in decoding order.
fn choose(sampling: Sampling, survey: &Survey, pictures: &[Picture]) -> Vec<(FrameInfo, usize)> {
    let mut shown: Vec<u32> = vec![0; pictures.len()];
    for (place, picture) in pictures.iter().enumerate() {
        shown[picture.rank as usize] = place as u32;
    }
    let mut sampler = Sampler::new(sampling, survey.times.clone());
    let mut chosen = Vec::new();
    for place in shown {
        let picture = pictures[place as usize];
        chosen.extend(sampler.push(Pts { nanos: picture.time }, picture.is_key, place as usize));
    }
    let end = Pts { nanos: survey.end }.max(sampler.packets_end());
    chosen.extend(sampler.finish(end));
    chosen
}

/// The keyframe from which a picture can be decoded: the last one that is neither coded nor shown after
/// it. What is shown before a keyframe may need what was coded before it.
fn start(pictures: &[Picture], place: usize) -> Picture {
    let wanted = pictures[place];
    let keys = pictures[..=place].iter().rev().filter(|p| p.is_key && p.rank <= wanted.rank);
    keys.copied().next().unwrap_or(pictures[0])
}

/// Number after the last packet that a picture needs. To be counted right, those shown before it must be
/// decoded as well.
fn needed_to(pictures: &[Picture], place: usize, is_counted: bool) -> u32 {
    let wanted = pictures[place];
    let shown_before = pictures[place + 1..].iter().take_while(|p| is_counted && p.rank < wanted.rank);
    shown_before.fold(wanted.decoded_with, |last, p| last.max(p.decoded_with)) + 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::sample::PacketTimes;

    /// Pictures as text: `K12` is a keyframe shown at 12 ms, `.` any other; one a packet.
    fn survey(text: &str) -> Survey {
        let parsed: Vec<(bool, i64)> = text
            .split(' ')
            .map(|p| (p.starts_with('K'), p[1..].parse::<i64>().unwrap() * 1_000_000))
            .collect();
        let mut times: Vec<i64> = parsed.iter().map(|p| p.1).collect();
        times.sort_unstable();
        let pictures = parsed.iter().enumerate().map(|(i, (is_key, time))| Picture {
            time: *time,
            rank: times.partition_point(|t| t < time) as u32,
            packet: i as u32,
            is_key: *is_key,
            decoded_with: i as u32,
        });
        let end = times[times.len() - 1] + 1_000_000;
        Survey {
            pictures: Some(pictures.collect()),
            times: PacketTimes::new(
                times.iter().map(|t| Pts { nanos: *t }).collect(),
                Some(Pts { nanos: end }),
            ),
            reorder: 0,
            end,
            is_counted: false,
        }
    }

    #[test]
    fn only_what_the_chosen_need_is_decoded() {
        let check = |sampling, text: &str, chosen: &[u32], segments: &[Range<u32>]| {
            let plan = Plan::new(sampling, &survey(text)).unwrap();
            let packets: Vec<u32> = plan.chosen.iter().map(|c| c.packet).collect();
            let ranges: Vec<Range<u32>> = plan.segments.iter().map(|s| s.packets.clone()).collect();
            assert_eq!((packets.as_slice(), ranges.as_slice()), (chosen, segments), "{sampling:?} of {text}");
            assert!(plan.chosen.is_sorted_by_key(|c| c.info.pts));
        };
        let closed = "K0 .1 .2 .3 K4 .5 .6 .7";
        check(Sampling::EveryMs(6), closed, &[0, 6], &[0..1, 4..7]);
        check(Sampling::EveryMs(2), closed, &[0, 2, 4, 6], &[0..3, 4..7]);
        check(Sampling::Count(1), closed, &[4], &[4..5]);
        check(Sampling::Keyframes, closed, &[0, 4], &[0..1, 4..5]);
        // An open group: 2 and 3 are coded after the keyframe of 4 and need the one before it. The
        // keyframe is passed on the way, so 5 goes on from there.
        let open = "K0 .1 K4 .2 .3 .5";
        check(Sampling::EveryMs(5), open, &[0, 5], &[0..1, 2..6]);
        check(Sampling::EveryMs(3), open, &[0, 4], &[0..5]);
        check(Sampling::EveryMs(2), open, &[0, 3, 2], &[0..4]);
        // What comes before the first keyframe cannot be foretold.
        for cut in [".0 .1 K2", "K2 .0 .1"] {
            assert_eq!(Plan::new(Sampling::EveryMs(2), &survey(cut)), None);
        }
    }
}
