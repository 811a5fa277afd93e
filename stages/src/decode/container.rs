//! The container of a file, by its first bytes. Extensions lie.

/// A container that has a demuxer of its own in [`super::chain`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Container {
    /// RIFF AVI.
    Avi,
    /// ISO base media: MP4, MOV, 3GP.
    Mp4,
    /// Matroska and WebM.
    Matroska,
    /// MPEG transport stream, with or without M2TS's four extra bytes.
    MpegTs,
    /// MPEG program stream.
    MpegPs,
    /// Flash video.
    Flv,
    /// Ogg.
    Ogg,
    /// Windows Media (ASF).
    Asf,
    /// RealMedia.
    RealMedia,
    /// Material exchange format.
    Mxf,
    /// Animated or still GIF.
    Gif,
    /// WebP with more than one picture.
    AnimatedWebp,
    /// Something else, left to a library's own detection: pictures, bare streams, rarities.
    Other,
}

impl Container {
    /// The container of a file that starts with `head` (a few kilobytes suffice).
    pub fn of(head: &[u8]) -> Self {
        let at = |offset: usize, magic: &[u8]| head.get(offset..offset + magic.len()) == Some(magic);
        let synced =
            |offset: usize, packet: usize| (0..3).all(|i| head.get(offset + i * packet) == Some(&0x47));
        const BOXES: [&[u8; 4]; 9] =
            [b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"styp", b"moof"];
        const ASF_HEADER: &[u8] = &[0x30, 0x26, 0xB2, 0x75, 0x8E, 0x66, 0xCF, 0x11];
        const MXF_PARTITION: &[u8] = &[0x06, 0x0E, 0x2B, 0x34, 0x02, 0x05, 0x01, 0x01, 0x0D, 0x01, 0x02];
        if at(0, b"RIFF") && at(8, b"AVI") {
            Self::Avi
        } else if at(0, b"RIFF") && at(8, b"WEBPVP8X") && head.get(20).is_some_and(|flags| flags & 2 != 0) {
            Self::AnimatedWebp
        } else if BOXES.iter().any(|b| at(4, *b)) {
            Self::Mp4
        } else if at(0, &[0x1A, 0x45, 0xDF, 0xA3]) {
            Self::Matroska
        } else if at(0, b"FLV") {
            Self::Flv
        } else if at(0, b"OggS") {
            Self::Ogg
        } else if at(0, ASF_HEADER) {
            Self::Asf
        } else if at(0, b".RMF") {
            Self::RealMedia
        } else if at(0, b"GIF8") {
            Self::Gif
        } else if at(0, MXF_PARTITION) {
            Self::Mxf
        } else if at(0, &[0, 0, 1, 0xBA]) {
            Self::MpegPs
        } else if synced(0, 188) || synced(4, 192) {
            Self::MpegTs
        } else {
            Self::Other
        }
    }

    /// Its name in `clips.container`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Avi => "avi",
            Self::Mp4 => "mp4",
            Self::Matroska => "matroska",
            Self::MpegTs => "mpegts",
            Self::MpegPs => "mpegps",
            Self::Flv => "flv",
            Self::Ogg => "ogg",
            Self::Asf => "asf",
            Self::RealMedia => "realmedia",
            Self::Mxf => "mxf",
            Self::Gif => "gif",
            Self::AnimatedWebp => "webp",
            Self::Other => "other",
        }
    }

    /// The element that takes it apart; none for GIF, which is not GStreamer's, and for
    /// [`Container::Other`].
    pub fn demuxer(self) -> Option<&'static str> {
        Some(match self {
            Self::Avi => "avidemux",
            Self::Mp4 => "qtdemux",
            Self::Matroska => "matroskademux",
            Self::MpegTs => "tsdemux",
            Self::MpegPs => "mpegpsdemux",
            Self::Flv => "flvdemux",
            Self::Ogg => "oggdemux",
            Self::Asf => "asfdemux",
            Self::RealMedia => "rmdemux",
            Self::Mxf => "mxfdemux",
            Self::Gif | Self::AnimatedWebp | Self::Other => return None,
        })
    }

    /// What a file's own headers say against it: that it ends before it should.
    ///
    /// Demuxers read a file that was cut off to its end without a complaint.
    pub fn cut_off(self, bytes: &[u8]) -> Option<String> {
        match self {
            Self::Avi => {
                let size = bytes.get(4..8).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]))?;
                // A recorder that was stopped leaves 0, or all ones, and the rest may be good.
                let known = size != 0 && size != u32::MAX;
                let needed = u64::from(size) + 8;
                // The padding of the last chunk may be missing.
                (known && bytes.len() as u64 + 1 < needed)
                    .then(|| format!("the file has {} bytes, its header says {needed}", bytes.len()))
            }
            Self::Mp4 => mp4_cut_off(bytes),
            Self::Matroska => matroska_cut_off(bytes),
            _ => None,
        }
    }

    /// Whether its packets need a parser before a decoder understands them: they are not cut at
    /// pictures, or do not say which are keyframes.
    pub fn needs_parser(self) -> bool {
        matches!(self, Self::MpegTs | Self::MpegPs | Self::Mxf | Self::RealMedia)
    }
}

/// Walks the outermost boxes of an ISO file.
fn mp4_cut_off(bytes: &[u8]) -> Option<String> {
    let (mut at, mut has_movie) = (0usize, false);
    while let Some(header) = bytes.get(at..).and_then(|rest| rest.get(..8)) {
        has_movie |= &header[4..8] == b"moov";
        let size = u64::from(u32::from_be_bytes([header[0], header[1], header[2], header[3]]));
        let size = match (size, bytes[at..].get(8..16)) {
            // To the end of the file.
            (0, _) => break,
            // The size follows in 64 bits.
            (1, Some(long)) => u64::from_be_bytes(long.try_into().unwrap_or([0xFF; 8])).max(16),
            // Nonsense: what follows cannot be known.
            (1..8, _) => break,
            _ => size,
        };
        let name = String::from_utf8_lossy(&header[4..8]).into_owned();
        let end = (at as u64).saturating_add(size);
        if end > bytes.len() as u64 && matches!(name.as_str(), "mdat" | "moov" | "moof") {
            return Some(format!("the file has {} bytes, its {name} box ends at {end}", bytes.len()));
        }
        at = usize::try_from(end).unwrap_or(usize::MAX);
    }
    (!has_movie).then(|| "there is no moov box".into())
}

/// Compares the segment's size with the file's.
fn matroska_cut_off(bytes: &[u8]) -> Option<String> {
    /// An EBML size and the bytes it takes; no size where it is unknown.
    fn size(bytes: &[u8]) -> Option<(Option<u64>, usize)> {
        let first = *bytes.first()?;
        let len = first.leading_zeros() as usize + 1;
        let rest = bytes.get(1..len)?;
        let value =
            rest.iter().fold(u64::from(first) & ((1 << (8 - len)) - 1), |v, b| v << 8 | u64::from(*b));
        let is_unknown = value == (1 << (7 * len)) - 1;
        Some((if is_unknown { None } else { Some(value) }, len))
    }
    let (header, len) = size(bytes.get(4..)?)?;
    let segment = usize::try_from(header?).ok()?.checked_add(4 + len)?;
    let rest = bytes.get(segment..)?;
    if !rest.starts_with(&[0x18, 0x53, 0x80, 0x67]) {
        return None;
    }
    let (needed, len) = size(&rest[4..])?;
    let end = needed?.saturating_add((segment + 4 + len) as u64);
    (end > bytes.len() as u64)
        .then(|| format!("the file has {} bytes, its segment ends at {end}", bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sees_what_was_cut_off() {
        let avi = |size: u32, len: usize| {
            let mut bytes = b"RIFF....AVI ".to_vec();
            bytes[4..8].copy_from_slice(&size.to_le_bytes());
            bytes.resize(len, 0);
            Container::Avi.cut_off(&bytes)
        };
        assert_eq!(avi(92, 100), None);
        assert_eq!(avi(0, 100), None);
        assert_eq!(avi(192, 100).unwrap(), "the file has 100 bytes, its header says 200");
        let mp4 = |bytes: &[u8]| Container::Mp4.cut_off(bytes).is_none();
        assert!(mp4(b"\0\0\0\x08ftyp\0\0\0\x08moov"));
        assert!(mp4(b"\0\0\0\x01mdat\0\0\0\0\0\0\0\x12xx\0\0\0\x08moov"));
        let broken: [&[u8]; 5] = [
            b"\0\0\0\x08ftyp\0\0\xFF\xFFmdat",
            b"\0\0\0\x00mdat",
            b"\0\0\0\x01mdat\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF",
            // A size of nothing must not be walked for ever.
            b"\0\0\0\x01mdat\0\0\0\0\0\0\0\0hello world",
            b"\0\0\0\x08moov\0\0\0\xFFmdatdata",
        ];
        for broken in broken {
            assert!(!mp4(broken), "{broken:?}");
        }
        let mkv = |size: u8| {
            Container::Matroska
                .cut_off(&[0x1A, 0x45, 0xDF, 0xA3, 0x81, 0, 0x18, 0x53, 0x80, 0x67, size, 7, 7])
        };
        assert_eq!((mkv(0x82), mkv(0xFF)), (None, None));
        assert_eq!(mkv(0x83).unwrap(), "the file has 13 bytes, its segment ends at 14");
    }

    #[test]
    fn knows_containers_by_their_first_bytes() {
        let mut ts = vec![0u8; 600];
        (0..3).for_each(|i| ts[i * 188] = 0x47);
        let mut m2ts = vec![0u8; 600];
        (0..3).for_each(|i| m2ts[4 + i * 192] = 0x47);
        let check = |head: &[u8], want: Container| assert_eq!(Container::of(head), want);
        check(b"RIFF\x10\0\0\0AVI LIST", Container::Avi);
        check(b"\0\0\0\x20ftypisom", Container::Mp4);
        check(b"\0\0\0\x08wide\0\0\0\0mdat", Container::Mp4);
        check(b"\x1A\x45\xDF\xA3\x01", Container::Matroska);
        check(&ts, Container::MpegTs);
        check(&m2ts, Container::MpegTs);
        check(b"RIFF\x10\0\0\0WEBPVP8 ", Container::Other);
        check(b"RIFF\x10\0\0\0WEBPVP8X\x0A\0\0\0\x02\0\0\0", Container::AnimatedWebp);
        check(b"RIFF\x10\0\0\0WEBPVP8X\x0A\0\0\0\x10\0\0\0", Container::Other);
        check(b"", Container::Other);
        check(b"hello, world", Container::Other);
    }
}
