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
    /// Something else, left to GStreamer's own detection: pictures, bare streams, rarities.
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
            Self::Gif | Self::Other => return None,
        })
    }

    /// Whether its packets need a parser before a decoder understands them: they are not cut at
    /// pictures, or do not say which are keyframes.
    pub fn needs_parser(self) -> bool {
        matches!(self, Self::MpegTs | Self::MpegPs | Self::Mxf | Self::RealMedia)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        check(b"", Container::Other);
        check(b"hello, world", Container::Other);
    }
}
