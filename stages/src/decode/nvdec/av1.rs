//! AV1: a container's temporal unit, which shows one picture, falls apart into the frames that it codes.
//!
//! The element takes a frame at a time (AV1 bitstream specification, section 5.3 for units, 7.5 for their order).

use std::ops::Range;

const FRAME_HEADER: u8 = 3;
const TILE_GROUP: u8 = 4;
const FRAME: u8 = 6;
const REDUNDANT_HEADER: u8 = 7;
const TILE_LIST: u8 = 8;

/// The sequence header that MP4 and Matroska keep apart (AV1 in ISO BMFF, section 2.3.3).
pub(super) fn headers(extradata: &[u8]) -> &[u8] {
    match extradata {
        // Marker and version, then three bytes that say what the header says.
        [0x81, _, _, _, units @ ..] => units,
        _ => &[],
    }
}

/// Where each frame begins and ends, with the units that come before it. `None` where sizes contradict.
pub(super) fn frames(unit: &[u8]) -> Option<Vec<Range<usize>>> {
    let (mut frames, mut at, mut begin, mut has_frame) = (Vec::new(), 0, 0, false);
    while at < unit.len() {
        let (kind, len) = unit_at(&unit[at..])?;
        let goes_on = matches!(kind, TILE_GROUP | REDUNDANT_HEADER | TILE_LIST);
        if has_frame && !goes_on {
            frames.push(begin..at);
            (begin, has_frame) = (at, false);
        }
        has_frame |= matches!(kind, FRAME_HEADER | FRAME);
        at += len;
    }
    if begin < at {
        frames.push(begin..at);
    }
    Some(frames)
}

/// Kind and length of the first unit.
fn unit_at(bytes: &[u8]) -> Option<(u8, usize)> {
    let header = *bytes.first()?;
    let has_extension = header & 4 != 0;
    let has_size = header & 2 != 0;
    let start = 1 + usize::from(has_extension);
    let kind = header >> 3 & 15;
    if !has_size {
        // To the end.
        return (start <= bytes.len()).then_some((kind, bytes.len()));
    }
    let (mut size, mut n) = (0usize, 0);
    loop {
        let byte = *bytes.get(start + n)?;
        size |= usize::from(byte & 0x7F) << (7 * n);
        n += 1;
        if byte & 0x80 == 0 {
            break;
        }
        if n == 4 {
            return None;
        }
    }
    let len = start + n + size;
    (len <= bytes.len()).then_some((kind, len))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A unit of a kind with so many bytes.
    fn unit(kind: u8, n: u8) -> Vec<u8> {
        [&[kind << 3 | 2, n][..], &vec![0xAA; usize::from(n)]].concat()
    }

    #[test]
    fn a_temporal_unit_falls_apart_at_its_frames() {
        let ranges = |units: &[Vec<u8>]| {
            let frames = frames(&units.concat())?;
            Some(frames.iter().map(|f| (f.start, f.end)).collect::<Vec<_>>())
        };
        // Delimiter, sequence header and a frame; then a hidden one in two tile groups, and one that is shown.
        assert_eq!(ranges(&[unit(2, 0), unit(1, 3), unit(6, 5)]), Some(vec![(0, 14)]));
        let units = [unit(2, 0), unit(6, 5), unit(3, 2), unit(4, 4), unit(4, 1), unit(5, 2), unit(3, 1)];
        assert_eq!(ranges(&units), Some(vec![(0, 9), (9, 22), (22, 29)]));
        // The last unit may leave its size out.
        assert_eq!(frames(&[6 << 3, 1, 2, 3]).map(|f| f.len()), Some(1));
        assert_eq!(frames(&[6 << 3 | 2, 9, 1]), None);
        assert_eq!(frames(&[6 << 3 | 2, 0xFF, 0xFF, 0xFF, 0xFF, 1]), None);
        assert_eq!(frames(&[]), Some(vec![]));
    }

    #[test]
    fn headers_come_behind_four_bytes() {
        assert_eq!(headers(&[0x81, 4, 12, 0, 10, 1, 7]), [10, 1, 7]);
        assert!(headers(&[10, 11]).is_empty() && headers(&[]).is_empty());
    }
}
