//! All pictures of a clip and their times, from its packets alone.

use kernels::ffi::libav::Error;

use super::{
    packets::Packets,
    timeline::{Span, Timeline},
};
use crate::{decode::sample::PacketTimes, item::Pts};

/// A coded picture, in the order of decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::decode) struct Picture {
    /// The packet that holds it.
    pub(in crate::decode) packet: u32,
    /// Where it begins and ends in its packet.
    pub(in crate::decode) bytes: (u32, u32),
    /// Place among all pictures as they are shown; `None` if it is decoded for others only.
    pub(in crate::decode) rank: Option<u32>,
    /// Whether decoding can start with it.
    pub(in crate::decode) is_key: bool,
    /// Whether no other picture refers to it.
    pub(in crate::decode) is_b: bool,
}

/// What a clip's packets tell.
pub(in crate::decode) struct Survey {
    /// In the order of decoding; only if all could be told.
    pub(in crate::decode) pictures: Option<Vec<Picture>>,
    /// When pictures are shown, sorted.
    pub(in crate::decode) times: PacketTimes,
    /// How many pictures a picture overtakes, at most; unknown where packets have no presentation times.
    pub(in crate::decode) reorder: Option<u32>,
    /// When the last picture ends.
    pub(in crate::decode) end: i64,
}

/// Pictures that H.264 and H.265 let overtake another, at most; FFmpeg aborts on more.
const MOST_REORDERED: usize = 16;

impl Survey {
    /// Reads all packets. `step` is called for each.
    pub(in crate::decode) fn of(
        packets: &mut Packets,
        timeline: &mut Timeline,
        step: impl Fn(),
    ) -> Result<Self, Error> {
        let mut is_whole = true;
        let (mut spans, mut pictures) = (Vec::new(), Vec::new());
        let is_read = packets.survey(|number, packet| {
            step();
            let told = timeline.packet(packet);
            is_whole &= told.is_counted_on && !packet.is_corrupt && !packet.is_encrypted;
            let n_shown = timeline.coded.iter().filter(|c| c.is_shown).count();
            if timeline.is_counted() {
                spans.extend(told.span);
            } else if !(packet.is_discarded || told.is_counted_on && n_shown == 0) {
                is_whole &= told.span.is_some() && n_shown == 1;
                spans.extend(told.span);
            }
            for (i, coded) in timeline.coded.iter().enumerate() {
                pictures.push(Picture {
                    packet: number,
                    bytes: (coded.bytes.start as u32, coded.bytes.end as u32),
                    // Which place is told below.
                    rank: (coded.is_shown && !packet.is_discarded).then_some(0),
                    is_key: packet.is_key && i == 0,
                    is_b: coded.is_b,
                });
            }
        })?;
        // What comes after a break cannot be planned, but the times before it hold. AVI without an index
        // calls every packet a keyframe.
        is_whole &= is_read && !timeline.has_doubtful_keys(pictures.iter().all(|p| p.is_key));
        let n_shown = pictures.iter().filter(|p| p.rank.is_some()).count();
        let is_counted = timeline.is_counted();
        if is_counted && is_whole {
            // Those that were still in line when the stream ended.
            while let Some(last) = spans.last().copied().filter(|_| spans.len() < n_shown) {
                spans.push(Span { start: last.end(), ..last });
            }
        }
        is_whole &= spans.len() == n_shown && n_shown > 0;
        // Decoders deliver pictures in this order, whatever their times say.
        let in_line = timeline.codec().filter(|c| c.tells_order()).map(|_| ranks_in_line(&pictures));
        let ranks = match (is_counted, in_line) {
            (true, in_line) => in_line,
            (false, None) => Some(ranks_by_time(&spans)),
            (false, Some(in_line)) => Some(in_line).filter(|ranks| *ranks == ranks_by_time(&spans)),
        };
        is_whole &= ranks.is_some();
        let shown = pictures.iter_mut().filter(|p| p.rank.is_some());
        shown.zip(ranks.unwrap_or_default()).for_each(|(picture, rank)| picture.rank = Some(rank));
        let last = spans.iter().copied().max_by_key(|s| (s.start, s.end()));
        let latest = spans.iter().map(|s| s.end()).max().map(|nanos| Pts { nanos });
        let times = PacketTimes::new(spans.iter().map(|s| Pts { nanos: s.start }).collect(), latest);
        let has_repeats = times.pts.windows(2).any(|pair| pair[0] == pair[1]);
        Ok(Self {
            pictures: (is_whole && !has_repeats).then_some(pictures),
            times,
            reorder: (!is_counted).then(|| reordered(&spans)),
            end: last.map_or(0, Span::end),
        })
    }
}

/// Ranks of the shown pictures by their kind: B-pictures are shown before the one coded before them.
fn ranks_in_line(pictures: &[Picture]) -> Vec<u32> {
    let shown: Vec<&Picture> = pictures.iter().filter(|p| p.rank.is_some()).collect();
    let mut ranks = vec![0; shown.len()];
    let (mut held, mut next) = (None, 0);
    for (i, picture) in shown.iter().enumerate() {
        let out = if picture.is_b { Some(i) } else { held.replace(i) };
        if let Some(out) = out {
            ranks[out] = next;
            next += 1;
        }
    }
    if let Some(last) = held {
        ranks[last] = next;
    }
    ranks
}

/// Ranks of the shown pictures by their times.
fn ranks_by_time(spans: &[Span]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..spans.len() as u32).collect();
    order.sort_by_key(|i| spans[*i as usize].start);
    let mut ranks = vec![0; spans.len()];
    for (rank, i) in order.into_iter().enumerate() {
        ranks[i as usize] = rank as u32;
    }
    ranks
}

fn reordered(spans: &[Span]) -> u32 {
    let overtaken = |i: usize| {
        let before = &spans[i.saturating_sub(MOST_REORDERED)..i];
        before.iter().filter(|s| s.start > spans[i].start).count() as u32
    };
    (0..spans.len()).map(overtaken).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_in_line_are_ranked_by_their_kind() {
        let ranks = |kinds: &str| -> Vec<u32> {
            let picture = |k: u8| Picture {
                packet: 0,
                bytes: (0, 0),
                rank: (k != b'-').then_some(0),
                is_key: false,
                is_b: k == b'B',
            };
            let pictures: Vec<Picture> = kinds.bytes().map(picture).collect();
            ranks_in_line(&pictures)
        };
        assert_eq!(ranks("IPPP"), [0, 1, 2, 3]);
        assert_eq!(ranks("I-P-P"), [0, 1, 2]);
        assert_eq!(ranks("IPBPB"), [0, 2, 1, 4, 3]);
        // An open group: its first B-pictures come before the I-picture.
        assert_eq!(ranks("IPBBIBB"), [0, 3, 1, 2, 6, 4, 5]);
    }
}
