//! What a packet shows, told from its first bits: what a plan must know of a codec.

use std::ops::Range;

use memchr::memmem;

/// Codecs whose pictures can be counted without decoding them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::decode) enum Codec {
    /// MPEG-4 part 2. In AVI a packet may hold a P- and a B-picture, and a later one none.
    Mpeg4(Mpeg4),
    /// Packets may be there for others' sake, not to be shown.
    Vp8,
    /// The same.
    Vp9,
    /// MPEG-1 and 2. A picture a packet.
    Mpeg2,
    /// A picture a packet, shown in the order of the packets.
    InOrder,
    /// A picture a packet, which may overtake others: H.264, H.265, AV1.
    Other,
}

/// One coded picture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::decode) struct Coded {
    /// Its bytes in the packet, with the headers before it.
    pub(in crate::decode) bytes: Range<usize>,
    /// Whether it is shown.
    pub(in crate::decode) is_shown: bool,
    /// Whether it is shown before the picture that was coded before it, and no other refers to it.
    pub(in crate::decode) is_b: bool,
}

impl Codec {
    /// By FFmpeg's name; `None` where pictures cannot be counted, or depend on more than the last
    /// keyframe.
    pub(in crate::decode) fn of(name: &str, extradata: &[u8]) -> Option<Self> {
        Some(match name {
            "mpeg4" => Self::Mpeg4(Mpeg4::new(extradata)),
            "vp8" => Self::Vp8,
            "vp9" => Self::Vp9,
            "mpeg1video" | "mpeg2video" => Self::Mpeg2,
            "h264" | "hevc" | "av1" => Self::Other,
            "mjpeg" | "msmpeg4v2" | "msmpeg4v3" | "wmv1" | "wmv2" | "h263" | "flv1" | "prores" | "dnxhd"
            | "dvvideo" | "ffv1" | "huffyuv" | "ffvhuff" | "rawvideo" | "png" | "theora" => Self::InOrder,
            _ => return None,
        })
    }

    /// Whether the pictures' kinds tell in which order decoders deliver them.
    pub(in crate::decode) fn tells_order(&self) -> bool {
        *self != Self::Other
    }

    /// The pictures of a packet, appended to `to`, shown or not; false if they cannot be told.
    pub(in crate::decode) fn pictures(&mut self, packet: &[u8], to: &mut Vec<Coded>) -> bool {
        let is_shown = match self {
            Self::Mpeg4(mpeg4) => return mpeg4.pictures(packet, to),
            // A keyframe is always shown.
            Self::Vp8 => packet.first().is_some_and(|b| b & 0x10 != 0),
            Self::Vp9 => vp9_shows(packet),
            Self::Mpeg2 | Self::InOrder | Self::Other => !packet.is_empty(),
        };
        let is_b = *self == Self::Mpeg2 && mpeg2_is_b(packet);
        to.push(Coded { bytes: 0..packet.len(), is_shown, is_b });
        true
    }
}

/// Whether a VP9 packet shows a picture: by its uncompressed header, or as a superframe, which is made
/// so that hidden pictures travel with a shown one.
fn vp9_shows(packet: &[u8]) -> bool {
    let is_superframe = packet.last().is_some_and(|marker| {
        let (n_frames, bytes) = (usize::from(marker & 7) + 1, usize::from(marker >> 3 & 3) + 1);
        let index_len = 2 + n_frames * bytes;
        marker & 0xE0 == 0xC0 && packet.len() >= index_len && packet[packet.len() - index_len] == *marker
    });
    let mut bits = Bits::new(packet);
    let marker = bits.take(2);
    let profile = bits.take(1) | bits.take(1) << 1;
    if profile == 3 {
        bits.take(1);
    }
    let shows_existing = bits.take(1) == 1;
    let _frame_type = bits.take(1);
    is_superframe || (marker == 2 && (shows_existing || bits.take(1) == 1))
}

/// By the first picture header (ISO 13818-2, 6.2.3).
fn mpeg2_is_b(packet: &[u8]) -> bool {
    const B: u8 = 3;
    let header = packet.windows(6).find(|w| w[..4] == [0, 0, 1, 0]);
    header.is_some_and(|h| h[5] >> 3 & 7 == B)
}

/// What must be remembered of an MPEG-4 stream (ISO 14496-2, 6.2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::decode) struct Mpeg4 {
    /// Bits of a time increment, from the last video object layer.
    increment_bits: Option<u32>,
}

impl Mpeg4 {
    fn new(extradata: &[u8]) -> Self {
        let mut new = Self::default();
        new.pictures(extradata, &mut Vec::new());
        new
    }

    fn pictures(&mut self, packet: &[u8], to: &mut Vec<Coded>) -> bool {
        const VOP: u8 = 0xB6;
        let (mut at, mut taken) = (0, 0);
        while let Some(found) = memmem::find(&packet[at..], &[0, 0, 1]) {
            let start = at + found;
            at = start + 3;
            let Some((code, body)) = packet[at..].split_first() else { break };
            match *code {
                0x20..=0x2F => self.increment_bits = layer_increment_bits(body),
                VOP => {
                    let Some(increment_bits) = self.increment_bits else { return false };
                    let mut bits = Bits::new(body);
                    let kind = bits.take(2);
                    while bits.take(1) == 1 {}
                    bits.take(1);
                    bits.take(increment_bits);
                    bits.take(1);
                    let is_coded = bits.take(1) == 1;
                    if is_coded {
                        const B: u32 = 2;
                        // The one before ends here.
                        if let Some(last) = to.last_mut().filter(|_| taken > 0) {
                            last.bytes.end = start;
                        }
                        let from = if taken > 0 { start } else { 0 };
                        to.push(Coded { bytes: from..packet.len(), is_shown: true, is_b: kind == B });
                        taken += 1;
                    }
                }
                _ => (),
            }
        }
        true
    }
}

/// From a video object layer's header.
fn layer_increment_bits(body: &[u8]) -> Option<u32> {
    let mut bits = Bits::new(body);
    bits.take(1 + 8);
    if bits.take(1) == 1 {
        bits.take(4 + 3);
    }
    const EXTENDED_ASPECT: u32 = 15;
    if bits.take(4) == EXTENDED_ASPECT {
        bits.take(16);
    }
    // vol_control_parameters
    if bits.take(1) == 1 {
        bits.take(2 + 1);
        // vbv_parameters
        if bits.take(1) == 1 {
            (0..79).for_each(|_| {
                bits.take(1);
            });
        }
    }
    // Shape and a marker.
    bits.take(2 + 1);
    let resolution = bits.take(16);
    (resolution > 0).then(|| (resolution - 1).checked_ilog2().map_or(1, |bits| bits + 1))
}

/// Reads bits, the highest first; zeros after the end.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Bits<'a> {
    fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    fn take(&mut self, n: u32) -> u32 {
        (0..n).fold(0, |value, _| {
            let byte = self.bytes.get(self.at / 8).copied().unwrap_or(0);
            let bit = byte >> (7 - self.at % 8) & 1;
            self.at += 1;
            value << 1 | u32::from(bit)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bits as text, spaces between, to bytes.
    fn bytes(bits: &str) -> Vec<u8> {
        let bits: Vec<u8> = bits.bytes().filter(|b| *b != b' ').map(|b| b - b'0').collect();
        bits.chunks(8)
            .map(|chunk| chunk.iter().enumerate().fold(0, |byte, (i, bit)| byte | bit << (7 - i)))
            .collect()
    }

    #[test]
    fn vp8_and_vp9_hide_pictures() {
        let shows = |mut codec: Codec, packet: &[u8]| {
            let mut coded = Vec::new();
            assert!(codec.pictures(packet, &mut coded));
            coded.iter().filter(|c| c.is_shown).count()
        };
        assert_eq!(shows(Codec::Vp8, &[0b0001_0000]), 1);
        assert_eq!(shows(Codec::Vp8, &[0b0000_0001]), 0);
        assert_eq!(shows(Codec::Vp8, &[]), 0);
        // Marker, profile 0, not existing, inter, shown or hidden.
        assert_eq!(shows(Codec::Vp9, &bytes("10 00 0 1 1")), 1);
        assert_eq!(shows(Codec::Vp9, &bytes("10 00 0 1 0")), 0);
        assert_eq!(shows(Codec::Vp9, &bytes("10 00 1 000")), 1);
        // Profile 3 has a reserved bit.
        assert_eq!(shows(Codec::Vp9, &bytes("10 11 0 0 1 0")), 0);
        // Two frames with sizes of one byte.
        assert_eq!(shows(Codec::Vp9, &[0x84, 0, 0xC1, 1, 1, 0xC1]), 1);
    }

    #[test]
    fn mpeg2_tells_its_b_pictures() {
        let picture = |kind: &str| {
            let mut packet = vec![0, 0, 1, 0xB8, 1, 2, 3, 4, 0, 0, 1, 0];
            packet.extend(bytes(&format!("0000000001 {kind} 111")));
            mpeg2_is_b(&packet)
        };
        assert_eq!(["001", "010", "011"].map(picture), [false, false, true]);
    }

    #[test]
    fn mpeg4_pictures_are_counted_with_their_kinds() {
        // 25 ticks a second: five bits.
        let layer = bytes("0 00000001 0 0001 0 00 1 0000000000011001");
        let vop = |kind: &str, coded: &str| {
            let mut vop = vec![0, 0, 1, 0xB6];
            vop.extend(bytes(&format!("{kind} 10 1 00011 1 {coded} 1111111")));
            vop
        };
        let mut packet = vec![0, 0, 1, 0x20];
        packet.extend(&layer);
        packet.extend(vop("00", "1"));
        let found = |codec: &mut Codec, packet: &[u8]| {
            let mut coded = Vec::new();
            codec.pictures(packet, &mut coded).then(|| {
                // Their bytes are all of the packet.
                assert!(coded.windows(2).all(|pair| pair[0].bytes.end == pair[1].bytes.start));
                assert!(coded.first().is_none_or(|c| c.bytes.start == 0));
                coded.iter().map(|c| c.is_b).collect::<Vec<_>>()
            })
        };
        let mut codec = Codec::of("mpeg4", &[]).unwrap();
        assert_eq!(found(&mut codec, &vop("01", "1")), None, "no layer yet");
        assert_eq!(found(&mut codec, &packet), Some(vec![false]));
        assert_eq!(found(&mut codec, &[vop("01", "1"), vop("10", "1")].concat()), Some(vec![false, true]));
        assert_eq!(found(&mut codec, &vop("01", "0")), Some(vec![]), "not coded");
        let mut headed = Codec::of("mpeg4", &packet[..4 + layer.len()]).unwrap();
        assert_eq!(found(&mut headed, &vop("00", "1")), Some(vec![false]));
    }
}
