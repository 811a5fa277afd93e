//! All pictures of a clip and their times, from its packets alone.

use kernels::ffi::libav::Error;

use super::{codec::Codec, packets::Packets, timeline::Timeline};
use crate::{decode::sample::PacketTimes, item::Pts};

/// A picture, in the order of decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Picture {
    /// When it is shown, nanoseconds.
    pub(super) time: i64,
    /// Place among all pictures as they are shown.
    pub(super) rank: u32,
    /// The packet that it came in.
    pub(super) packet: u32,
    /// Whether decoding can start with it.
    pub(super) is_key: bool,
    /// The packet with which it is decoded: a later one, if other pictures came first in its own.
    pub(super) decoded_with: u32,
}

/// What a clip's packets tell.
pub(super) struct Survey {
    /// In the order of decoding; only if all could be told.
    pub(super) pictures: Option<Vec<Picture>>,
    /// Times of the packets.
    pub(super) times: PacketTimes,
    /// How many pictures a picture overtakes, at most.
    pub(super) reorder: u32,
    /// When the last picture ends.
    pub(super) end: i64,
    /// Whether decoders deliver pictures in line, whichever packet they came from.
    pub(super) is_counted: bool,
}

/// Pictures that a codec lets overtake another, at most: H.264 and H.265 allow 16.
const MOST_REORDERED: usize = 32;

impl Survey {
    /// Reads all packets. `step` is called for each.
    pub(super) fn of(packets: &mut Packets, timeline: &mut Timeline, step: impl Fn()) -> Result<Self, Error> {
        let mut is_whole = true;
        let mut spans = Vec::new();
        let mut coded = Vec::new();
        // Decoders take one picture a packet.
        let mut turns = Vec::new();
        let read = packets.survey(|number, packet| {
            step();
            let told = timeline.packet(packet);
            is_whole &= told.is_counted_on && !packet.is_corrupt && !packet.is_encrypted;
            if timeline.is_counted() {
                turns.extend(told.span.map(|_| number));
                spans.extend(told.span);
            } else if !(packet.is_discarded || told.is_counted_on && timeline.coded.is_empty()) {
                is_whole &= told.span.is_some() && timeline.coded.len() == 1;
                spans.extend(told.span);
            }
            for (i, picture) in timeline.coded.iter().enumerate() {
                if !packet.is_discarded {
                    let is_key = packet.is_key && i == 0;
                    coded.push(CodedPicture { packet: number, is_key, is_b: picture.is_b });
                }
            }
        });
        // What comes after a break cannot be planned, but the times before it hold.
        is_whole &= read.is_ok();
        if let Err(error @ Error::Stopped) = read {
            return Err(error);
        }
        let is_counted = timeline.is_counted();
        // Whether B-pictures behind a keyframe come out is for their decoder to say; MPEG-4's drops them.
        let has_b = coded.iter().any(|c| c.is_b);
        is_whole &= !(is_counted && has_b) || matches!(timeline.codec(), Some(Codec::Mpeg4(_)));
        let ranks = if is_counted { ranks_in_line(&coded) } else { ranks_by_time(&spans) };
        if is_counted {
            // Pictures in line before the stream ended.
            while is_whole && spans.len() < coded.len() && !spans.is_empty() {
                let last = spans[spans.len() - 1];
                spans.push(super::timeline::Span { start: last.end(), ..last });
            }
        }
        is_whole &= spans.len() == coded.len() && !coded.is_empty();
        let end = spans.iter().map(|s| (s.start, s.end())).max().map_or(0, |(_, end)| end);
        let latest = spans.iter().map(|s| s.end()).max().map(|nanos| Pts { nanos });
        let times = PacketTimes::new(spans.iter().map(|s| Pts { nanos: s.start }).collect(), latest);
        let has_repeats = times.pts.windows(2).any(|pair| pair[0] == pair[1]);
        let reorder = if is_counted { 0 } else { reordered(&spans) };
        let pictures = (is_whole && !has_repeats).then(|| {
            let pictures = coded.iter().zip(&ranks).enumerate();
            let pictures = pictures.map(|(i, (&CodedPicture { packet, is_key, .. }, &rank))| {
                let time = times.pts[rank as usize].nanos;
                // Those that are left at the end come when the decoder is drained.
                let decoded_with = if is_counted { turns.get(i).copied().unwrap_or(packet) } else { packet };
                Picture { time, rank, packet, decoded_with: decoded_with.max(packet), is_key }
            });
            pictures.collect()
        });
        Ok(Self { pictures, times, reorder, end, is_counted })
    }
}

/// A picture as its packet tells it.
struct CodedPicture {
    packet: u32,
    is_key: bool,
    is_b: bool,
}

/// B-pictures are shown before the one coded before them.
fn ranks_in_line(coded: &[CodedPicture]) -> Vec<u32> {
    let mut ranks = vec![0; coded.len()];
    let mut held = None;
    let mut next = 0;
    for (i, picture) in coded.iter().enumerate() {
        let shown = if picture.is_b { Some(i) } else { held.replace(i) };
        if let Some(shown) = shown {
            ranks[shown] = next;
            next += 1;
        }
    }
    if let Some(last) = held {
        ranks[last] = next;
    }
    ranks
}

fn ranks_by_time(spans: &[super::timeline::Span]) -> Vec<u32> {
    let mut order: Vec<u32> = (0..spans.len() as u32).collect();
    order.sort_by_key(|i| spans[*i as usize].start);
    let mut ranks = vec![0; spans.len()];
    for (rank, i) in order.into_iter().enumerate() {
        ranks[i as usize] = rank as u32;
    }
    ranks
}

fn reordered(spans: &[super::timeline::Span]) -> u32 {
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
        let ranks = |kinds: &str| {
            let coded: Vec<_> =
                kinds.bytes().map(|k| CodedPicture { packet: 0, is_key: false, is_b: k == b'B' }).collect();
            ranks_in_line(&coded)
        };
        assert_eq!(ranks("IPPP"), [0, 1, 2, 3]);
        assert_eq!(ranks("IPBPB"), [0, 2, 1, 4, 3]);
        // An open group: its first B-pictures come before the I-picture.
        assert_eq!(ranks("IPBBIBB"), [0, 3, 1, 2, 6, 4, 5]);
    }
}
