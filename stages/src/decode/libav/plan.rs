//! Which pictures the chosen frames need.

use std::ops::Range;

use super::survey::{Picture, Survey};
use crate::{
    decode::sample::{Sampler, Sampling},
    item::{FrameInfo, Pts},
};

/// Pictures to decode in one go, starting at a keyframe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::decode) struct Segment {
    /// Places in the order of decoding, to the last that is needed.
    pub(in crate::decode) places: Range<usize>,
    /// The chosen among them, as indices of [`Plan::chosen`].
    pub(in crate::decode) chosen: Range<usize>,
}

/// A chosen frame, and its place in the order of decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::decode) struct Chosen {
    pub(in crate::decode) info: FrameInfo,
    pub(in crate::decode) place: usize,
}

/// How to decode the chosen frames, and little else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::decode) struct Plan<'a> {
    pictures: &'a [Picture],
    /// By place in the order of decoding.
    is_chosen: Vec<bool>,
    /// In presentation order.
    pub(in crate::decode) chosen: Vec<Chosen>,
    pub(in crate::decode) segments: Vec<Segment>,
}

impl<'a> Plan<'a> {
    /// `None` if the survey could not tell all pictures. The frames are those that
    /// [`Sampler`] chooses when it sees every picture.
    pub(in crate::decode) fn new(sampling: Sampling, survey: &'a Survey) -> Option<Self> {
        let pictures = survey.pictures.as_ref()?;
        // What comes before the first keyframe may or may not be decodable.
        if !pictures.first().is_some_and(|first| first.is_key && first.rank == Some(0)) {
            return None;
        }
        let chosen = choose(sampling, survey, pictures);
        let mut is_chosen = vec![false; pictures.len()];
        let is_key = |p: &Picture| p.is_key && p.rank.is_some();
        let keys: Vec<usize> = (0..pictures.len()).filter(|i| is_key(&pictures[*i])).collect();
        let mut segments: Vec<Segment> = Vec::new();
        for (i, Chosen { place, .. }) in chosen.iter().enumerate() {
            is_chosen[*place] = true;
            let start = start(pictures, &keys, *place);
            match segments.last_mut() {
                // A keyframe that the decoder passes anyway is no reason to start again.
                Some(last) if start < last.places.end => {
                    last.places.end = last.places.end.max(place + 1);
                    last.chosen.end = i + 1;
                }
                _ => segments.push(Segment { places: start..place + 1, chosen: i..i + 1 }),
            }
        }
        Some(Self { pictures, is_chosen, chosen, segments })
    }

    pub(in crate::decode) fn is_chosen(&self, place: usize) -> bool {
        self.is_chosen[place]
    }

    /// Whether a picture that is decoded is not shown.
    pub(in crate::decode) fn has_hidden(&self) -> bool {
        let mut places = self.segments.iter().flat_map(|s| s.places.clone());
        places.any(|place| self.pictures[place].rank.is_none())
    }

    /// When a picture is shown among all.
    pub(in crate::decode) fn rank(&self, place: u32) -> Option<u32> {
        self.pictures.get(place as usize)?.rank
    }

    /// Pictures that will be decoded.
    pub(in crate::decode) fn n_pictures(&self) -> u64 {
        self.segments.iter().map(|s| s.places.len() as u64).sum()
    }

    /// The picture at a place, unless the segment does without it.
    pub(in crate::decode) fn picture(&self, segment: &Segment, place: usize) -> Option<Picture> {
        let picture = self.pictures[place];
        let first = self.pictures[segment.places.start];
        // Shown before the keyframe, so made of pictures that are not decoded; nothing else is made of it.
        let is_leading = place > segment.places.start && picture.rank.is_some() && picture.rank < first.rank;
        (self.is_chosen(place) || !(picture.is_b || is_leading)).then_some(picture)
    }
}

/// The chosen frames in presentation order.
fn choose(sampling: Sampling, survey: &Survey, pictures: &[Picture]) -> Vec<Chosen> {
    let mut shown: Vec<u32> = vec![0; survey.times.pts.len()];
    for (place, picture) in pictures.iter().enumerate() {
        if let Some(rank) = picture.rank {
            shown[rank as usize] = place as u32;
        }
    }
    let mut sampler = Sampler::new(sampling, survey.times.clone());
    let mut chosen = Vec::new();
    for (place, pts) in shown.into_iter().zip(&survey.times.pts) {
        let place = place as usize;
        chosen.extend(sampler.push(*pts, pictures[place].is_key, place));
    }
    // As [`Chooser`](crate::decode::choose::Chooser) ends a clip.
    let known = if sampling.needs_packets() { sampler.packets_end() } else { Pts { nanos: i64::MIN } };
    chosen.extend(sampler.finish(Pts { nanos: survey.end }.max(known)));
    chosen.into_iter().map(|(info, place)| Chosen { info, place }).collect()
}

/// The keyframe from which a picture can be decoded: the last one that is neither coded nor shown after
/// it. What is shown before a keyframe may need what was coded before it.
fn start(pictures: &[Picture], keys: &[usize], place: usize) -> usize {
    let before = &keys[..keys.partition_point(|key| *key <= place)];
    let start = before.iter().rev().find(|key| pictures[**key].rank <= pictures[place].rank);
    start.copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::sample::PacketTimes;

    /// Pictures as text: `K12` is a keyframe shown at 12 ms, `B` refers to none, `.` any other.
    fn survey(text: &str) -> Survey {
        let time = |p: &str| p[1..].parse::<i64>().unwrap() * 1_000_000;
        let mut times: Vec<i64> = text.split(' ').map(time).collect();
        times.sort_unstable();
        let pictures = text.split(' ').enumerate().map(|(i, p)| Picture {
            packet: i as u32,
            bytes: (0, 1),
            rank: Some(times.partition_point(|t| *t < time(p)) as u32),
            is_key: p.starts_with('K'),
            is_b: p.starts_with('B'),
        });
        let end = times[times.len() - 1] + 1_000_000;
        let pts = times.iter().map(|t| Pts { nanos: *t }).collect();
        Survey {
            pictures: Some(pictures.collect()),
            times: PacketTimes::new(pts, Some(Pts { nanos: end })),
            reorder: None,
            end,
        }
    }

    #[test]
    fn only_what_the_chosen_need_is_decoded() {
        let check = |sampling, text: &str, chosen: &[usize], segments: &[&[usize]]| {
            let survey = survey(text);
            let plan = Plan::new(sampling, &survey).unwrap();
            let places: Vec<usize> = plan.chosen.iter().map(|c| c.place).collect();
            let decoded = |s: &Segment| -> Vec<usize> {
                s.places.clone().filter(|p| plan.picture(s, *p).is_some()).collect()
            };
            let decoded: Vec<Vec<usize>> = plan.segments.iter().map(decoded).collect();
            assert_eq!(places, chosen, "{sampling:?} of {text}");
            assert_eq!(decoded, segments, "{sampling:?} of {text}");
            assert!(plan.chosen.is_sorted_by_key(|c| c.info.pts));
        };
        let closed = "K0 .1 .2 .3 K4 .5 .6 .7";
        check(Sampling::EveryMs(6), closed, &[0, 6], &[&[0], &[4, 5, 6]]);
        check(Sampling::EveryMs(2), closed, &[0, 2, 4, 6], &[&[0, 1, 2], &[4, 5, 6]]);
        check(Sampling::Count(1), closed, &[4], &[&[4]]);
        check(Sampling::Keyframes, closed, &[0, 4], &[&[0], &[4]]);
        // An open group: 2 and 3 are coded after the keyframe of 4 and need the one before it.
        let open = "K0 .1 K4 .2 .3 .5";
        check(Sampling::EveryMs(5), open, &[0, 5], &[&[0], &[2, 5]]);
        check(Sampling::EveryMs(3), open, &[0, 4], &[&[0, 1, 2, 3, 4]]);
        check(Sampling::EveryMs(2), open, &[0, 3, 2], &[&[0, 1, 2, 3]]);
        // To what nothing refers need not be decoded, unless it is chosen.
        let b = "K0 .2 B1 .4 B3 .6 B5";
        check(Sampling::EveryMs(5), b, &[0, 6], &[&[0, 1, 3, 5, 6]]);
        check(Sampling::EveryMs(4), b, &[0, 3], &[&[0, 1, 3]]);
        // What comes before the first keyframe cannot be foretold.
        for cut in [".0 .1 K2", "K2 .0 .1"] {
            assert_eq!(Plan::new(Sampling::EveryMs(2), &survey(cut)), None);
        }
    }
}
