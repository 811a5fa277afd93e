//! What a decoder element is fed: which element, under which caps, and the bytes of a picture.
//!
//! The caps of all clips of one codec and size are the same, since new caps make an element close its
//! decoder (`gst_nvdec_set_format`): headers travel with the first picture, not in the caps.

use std::ops::Range;

use gstreamer as gst;
use kernels::ffi::libav::Stream;

use super::av1;

/// How packets of a codec become what its element takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    /// As they are, the headers before the first.
    Plain,
    /// NAL units behind start codes (ISO 14496-10 and ISO 23008-2, annex B).
    StartCodes,
    /// A frame at a time (VP9, annex B).
    Frames,
    /// The same of AV1; see [`av1`].
    Units,
}

/// A codec that the device may decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Codec {
    /// Elements that decode it, the best first.
    elements: &'static [&'static str],
    caps: &'static str,
    framing: Framing,
}

/// Those that keep a picture's own time come first: the others, over NVIDIA's parser, tell pictures apart
/// by their order alone, and lose count of hidden ones.
const CODECS: [(&str, Codec); 9] = [
    (
        "h264",
        Codec {
            elements: &["nvh264sldec", "nvh264dec"],
            caps: "video/x-h264,stream-format=byte-stream,alignment=au,profile=high",
            framing: Framing::StartCodes,
        },
    ),
    (
        "hevc",
        Codec {
            elements: &["nvh265sldec", "nvh265dec"],
            caps: "video/x-h265,stream-format=byte-stream,alignment=au,profile=main",
            framing: Framing::StartCodes,
        },
    ),
    ("vp8", Codec { elements: &["nvvp8sldec", "nvvp8dec"], caps: "video/x-vp8", framing: Framing::Plain }),
    (
        "vp9",
        Codec {
            elements: &["nvvp9sldec", "nvvp9dec"],
            caps: "video/x-vp9,alignment=frame,profile=(string)0,chroma-format=(string)4:2:0,bit-depth-luma=(uint)8,bit-depth-chroma=(uint)8",
            framing: Framing::Frames,
        },
    ),
    (
        "av1",
        Codec {
            elements: &["nvav1dec"],
            caps: "video/x-av1,stream-format=obu-stream,alignment=frame,profile=main,bit-depth-luma=(uint)8,bit-depth-chroma=(uint)8,chroma-format=(string)4:2:0",
            framing: Framing::Units,
        },
    ),
    (
        "mpeg4",
        Codec {
            elements: &["nvmpeg4videodec"],
            caps: "video/mpeg,mpegversion=4,systemstream=false",
            framing: Framing::Plain,
        },
    ),
    (
        "mpeg2video",
        Codec {
            elements: &["nvmpeg2videodec"],
            caps: "video/mpeg,mpegversion=2,systemstream=false",
            framing: Framing::Plain,
        },
    ),
    (
        "mpeg1video",
        Codec {
            elements: &["nvmpegvideodec"],
            caps: "video/mpeg,mpegversion=1,systemstream=false",
            framing: Framing::Plain,
        },
    ),
    ("mjpeg", Codec { elements: &["nvjpegdec"], caps: "image/jpeg,parsed=true", framing: Framing::Plain }),
];

impl Codec {
    /// By FFmpeg's name.
    pub(super) fn of(name: &str) -> Option<Self> {
        CODECS.iter().find(|(codec, _)| *codec == name).map(|(_, codec)| *codec)
    }

    /// Names of its elements for a device, the better first. The plugin names those of the first device plainly,
    /// those of others by numbers.
    pub(super) fn elements(&self, device: u32) -> impl Iterator<Item = String> {
        self.elements.iter().map(move |name| match device {
            0 => (*name).into(),
            _ => format!("{}device{device}dec", name.trim_end_matches("dec")),
        })
    }

    /// Names of those that a device has elements for.
    pub(super) fn all(device: u32) -> Vec<&'static str> {
        let is_there = |name: String| gst::ElementFactory::find(&name).is_some();
        let has = |codec: &Codec| codec.elements(device).any(is_there);
        CODECS.iter().filter(|(_, codec)| has(codec)).map(|(name, _)| *name).collect()
    }

    /// Whether its element tells pictures apart by their order alone (`parser_decode_callback` and
    /// `parser_display_callback` in gstnvdec.c): one that NVIDIA's parser overlooks gives its time to the next.
    pub(super) fn is_by_order(&self) -> bool {
        !self.elements[0].contains("sl") && self.framing != Framing::Units
    }

    /// For pictures of one size. The rate is made up: where there is none, GStreamer 1.22.0 divides by it.
    pub(super) fn caps(&self, (width, height): (u32, u32)) -> String {
        format!("{},width={width},height={height},framerate=25/1", self.caps)
    }
}

/// Turns a stream's packets into what its element takes.
#[derive(Debug)]
pub(super) struct Feed {
    framing: Framing,
    /// Headers that the container keeps apart.
    headers: Vec<u8>,
    /// Bytes of a NAL unit's length; 0 where start codes part them already.
    length_bytes: usize,
}

impl Feed {
    /// `None` where the headers break their format.
    pub(super) fn new(codec: Codec, stream: &Stream) -> Option<Self> {
        let extradata = stream.extradata.as_slice();
        let is_counted = extradata.first() == Some(&1);
        let (headers, length_bytes) = match (codec.framing, stream.codec) {
            (Framing::StartCodes, "h264") if is_counted => avc_headers(extradata)?,
            (Framing::StartCodes, _) if is_counted => hevc_headers(extradata)?,
            (Framing::Frames, _) => (Vec::new(), 0),
            (Framing::Units, _) => (av1::headers(extradata).to_vec(), 0),
            // JPEG has none, and what AVI keeps there is none of VP8's.
            (Framing::Plain, "mjpeg" | "vp8") => (Vec::new(), 0),
            _ => (extradata.to_vec(), 0),
        };
        Some(Self { framing: codec.framing, headers, length_bytes })
    }

    /// The pieces to push for a picture's bytes, in turn; with the headers where decoding starts. `None`
    /// where the bytes break their format.
    pub(super) fn pieces(&self, bytes: &[u8], is_start: bool) -> Option<Vec<Vec<u8>>> {
        let headers: &[u8] = if is_start { &self.headers } else { &[] };
        match self.framing {
            Framing::Plain => Some(vec![[headers, bytes].concat()]),
            Framing::Frames => Some(vp9_frames(bytes)?.into_iter().map(|r| bytes[r].to_vec()).collect()),
            Framing::Units => {
                let mut pieces: Vec<Vec<u8>> =
                    av1::frames(bytes)?.into_iter().map(|r| bytes[r].to_vec()).collect();
                if let Some(first) = pieces.first_mut() {
                    first.splice(..0, headers.iter().copied());
                }
                Some(pieces)
            }
            Framing::StartCodes if self.length_bytes == 0 => Some(vec![[headers, bytes].concat()]),
            Framing::StartCodes => {
                let mut out = Vec::with_capacity(headers.len() + bytes.len() + 16);
                out.extend_from_slice(headers);
                let mut rest = bytes;
                while !rest.is_empty() {
                    let (length, body) = rest.split_at_checked(self.length_bytes)?;
                    let length = length.iter().fold(0, |n, b| n << 8 | usize::from(*b));
                    let (unit, after) = body.split_at_checked(length)?;
                    put(&mut out, unit);
                    rest = after;
                }
                Some(vec![out])
            }
        }
    }
}

fn put(out: &mut Vec<u8>, unit: &[u8]) {
    out.extend_from_slice(&[0, 0, 0, 1]);
    out.extend_from_slice(unit);
}

/// Reads from the front.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self, n_bytes: usize) -> Option<usize> {
        Some(self.take(n_bytes)?.iter().fold(0, |n, b| n << 8 | usize::from(*b)))
    }
}

/// Parameter sets behind start codes, and the bytes of a length (ISO 14496-15, 5.3.3.1).
fn avc_headers(extradata: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut bytes = Bytes(extradata);
    bytes.take(4)?;
    let length_bytes = (bytes.number(1)? & 3) + 1;
    let mut out = Vec::new();
    for mask in [0x1F, 0xFF] {
        for _ in 0..bytes.number(1)? & mask {
            let length = bytes.number(2)?;
            put(&mut out, bytes.take(length)?);
        }
    }
    Some((out, length_bytes))
}

/// The same for H.265 (ISO 14496-15, 8.3.3.1).
fn hevc_headers(extradata: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut bytes = Bytes(extradata);
    bytes.take(21)?;
    let length_bytes = (bytes.number(1)? & 3) + 1;
    let mut out = Vec::new();
    for _ in 0..bytes.number(1)? {
        bytes.take(1)?;
        for _ in 0..bytes.number(2)? {
            let length = bytes.number(2)?;
            put(&mut out, bytes.take(length)?);
        }
    }
    Some((out, length_bytes))
}

/// The frames of a VP9 packet, by its index if it has one (VP9 bitstream specification, annex B).
fn vp9_frames(packet: &[u8]) -> Option<Vec<Range<usize>>> {
    let marker = *packet.last()?;
    let (n_frames, size_bytes) = (usize::from(marker & 7) + 1, usize::from(marker >> 3 & 3) + 1);
    let index_bytes = 2 + n_frames * size_bytes;
    let has_index =
        marker & 0xE0 == 0xC0 && packet.len() >= index_bytes && packet[packet.len() - index_bytes] == marker;
    if !has_index {
        return Some(std::iter::once(0..packet.len()).collect());
    }
    let end = packet.len() - index_bytes;
    let mut at = 0usize;
    let sizes = packet[end + 1..packet.len() - 1].chunks(size_bytes);
    let mut frames = Vec::new();
    for size in sizes {
        let size = size.iter().rev().fold(0, |n, b| n << 8 | usize::from(*b));
        let frame = at..at.checked_add(size).filter(|to| *to <= end)?;
        at = frame.end;
        if !frame.is_empty() {
            frames.push(frame);
        }
    }
    Some(frames)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_become_start_codes() {
        let avc = [1, 100, 0, 30, 0xFF, 0xE1, 0, 2, 0x67, 7, 1, 0, 1, 0x68];
        let headers = [0, 0, 0, 1, 0x67, 7, 0, 0, 0, 1, 0x68];
        assert_eq!(avc_headers(&avc), Some((headers.to_vec(), 4)));
        let hevc = [&[1; 21][..], &[0xFD, 1, 0x20, 0, 1, 0, 3, 0x40, 1, 9]].concat();
        assert_eq!(hevc_headers(&hevc), Some((vec![0, 0, 0, 1, 0x40, 1, 9], 2)));
        for cut in 1..avc.len() {
            assert_eq!(avc_headers(&avc[..cut]), None, "{cut}");
        }
        let feed = Feed { framing: Framing::StartCodes, headers: headers.to_vec(), length_bytes: 2 };
        let picture = [0, 1, 0x65, 0, 2, 0x41, 0x9A];
        let units = [0, 0, 0, 1, 0x65, 0, 0, 0, 1, 0x41, 0x9A];
        assert_eq!(feed.pieces(&picture, false), Some(vec![units.to_vec()]));
        assert_eq!(feed.pieces(&picture, true), Some(vec![[&headers[..], &units].concat()]));
        assert_eq!(feed.pieces(&picture[..6], false), None);
    }

    #[test]
    fn superframes_fall_apart() {
        let frames = |packet: &[u8]| -> Option<Vec<(usize, usize)>> {
            Some(vp9_frames(packet)?.into_iter().map(|frame| (frame.start, frame.end)).collect())
        };
        assert_eq!(frames(&[0x82, 1, 2]), Some(vec![(0, 3)]));
        assert_eq!(frames(&[7, 8, 9, 0xC1, 1, 2, 0xC1]), Some(vec![(0, 1), (1, 3)]));
        // More than there is.
        assert_eq!(frames(&[7, 8, 9, 0xC1, 1, 9, 0xC1]), None);
        assert_eq!(frames(&[]), None);
    }
}
