//! A decoded picture: borrowed planes and what their numbers mean.

/// One plane: rows of samples, `stride` bytes apart. The last row may end at its last sample.
#[derive(Clone, Copy, Debug)]
pub struct Plane<'a> {
    /// The samples, 1 byte each up to 8 bits of depth, else 2 bytes little-endian.
    pub data: &'a [u8],
    /// Bytes from one row to the next.
    pub stride: usize,
}

/// How the samples of a picture lie in its planes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Y, U and V planes.
    Planar,
    /// A Y plane, and one with U and V in turn (NV12, P010).
    SemiPlanar,
    /// G, B and R planes.
    PlanarGbr,
    /// A luma plane alone.
    Gray,
    /// One plane of interleaved bytes: red, green and blue at these offsets in every `step` bytes.
    PackedRgb {
        /// Of red, green and blue.
        offsets: [u8; 3],
        /// Bytes from one pixel to the next.
        step: u8,
    },
}

/// Layout, subsampling and depth of a picture's samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PixelFormat {
    /// Where the components lie.
    pub layout: Layout,
    /// log2 of luma samples per chroma sample, across and down: 4:2:0 is `(1, 1)`.
    pub subsampling: (u8, u8),
    /// Bits of a sample, 8 to 16. High-aligned formats such as P010 count as 16.
    pub depth: u8,
}

impl PixelFormat {
    /// 8-bit planar 4:2:0, what most files hold.
    pub const I420: Self = Self { layout: Layout::Planar, subsampling: (1, 1), depth: 8 };

    /// Bytes of one sample.
    pub fn sample_bytes(&self) -> usize {
        if self.depth > 8 { 2 } else { 1 }
    }

    /// Whether the components are red, green and blue already.
    pub fn is_rgb(&self) -> bool {
        matches!(self.layout, Layout::PlanarGbr | Layout::PackedRgb { .. })
    }
}

/// The matrix between YUV and RGB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Matrix {
    /// ITU-R BT.601: SD video, and what decoders assume where a stream is silent.
    Bt601,
    /// ITU-R BT.709: HD video.
    Bt709,
    /// ITU-R BT.2020, non-constant luminance.
    Bt2020,
    /// SMPTE 240M.
    Smpte240m,
    /// FCC 47 CFR 73.682.
    Fcc,
}

/// What the smallest and largest sample values stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// 16 is black and 235 white, at 8 bits.
    Limited,
    /// 0 is black and 255 white, at 8 bits.
    Full,
}

/// Where chroma samples sit: on a luma sample, or between two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Siting {
    /// On the left luma sample (MPEG-2, H.264), not between two (JPEG, MPEG-1).
    pub cosited_across: bool,
    /// On the upper luma sample, not between two.
    pub cosited_down: bool,
}

/// Everything that turns samples into colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Colour {
    /// Matrix; without meaning for RGB and gray pictures.
    pub matrix: Matrix,
    /// Range of all components.
    pub range: Range,
    /// Chroma position.
    pub siting: Siting,
}

impl Default for Colour {
    /// What swscale, and so most peers and most training sets, assume of a silent stream.
    fn default() -> Self {
        Self {
            matrix: Matrix::Bt601,
            range: Range::Limited,
            siting: Siting { cosited_across: true, cosited_down: false },
        }
    }
}

/// What a viewer does to the stored picture before showing it: transpose first, then flip.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Orientation {
    /// Swap rows and columns.
    pub transpose: bool,
    /// Then mirror left and right.
    pub flip_across: bool,
    /// Then mirror top and bottom.
    pub flip_down: bool,
}

impl Orientation {
    /// Turned clockwise by a quarter, a half or three quarters (`quarters` modulo 4).
    pub fn rotated(quarters: u8) -> Self {
        let (transpose, flip_across, flip_down) = match quarters % 4 {
            0 => (false, false, false),
            1 => (true, true, false),
            2 => (false, true, true),
            _ => (true, false, true),
        };
        Self { transpose, flip_across, flip_down }
    }

    /// This, then mirrored left and right.
    pub fn mirrored(self) -> Self {
        Self { flip_across: !self.flip_across, ..self }
    }
}

/// A decoded picture, valid while the decoder's buffer is mapped.
#[derive(Clone, Copy, Debug)]
pub struct Picture<'a> {
    /// The planes that `format.layout` names; the rest are empty.
    pub planes: [Plane<'a>; 3],
    /// Luma samples across.
    pub width: usize,
    /// Luma samples down.
    pub height: usize,
    /// Layout, subsampling, depth.
    pub format: PixelFormat,
    /// Meaning of the numbers.
    pub colour: Colour,
    /// How a viewer turns it.
    pub orientation: Orientation,
}

impl Picture<'_> {
    /// Chroma samples across and down; an odd size keeps its last half sample.
    pub fn chroma_size(&self) -> (usize, usize) {
        let (sx, sy) = self.format.subsampling;
        (self.width.div_ceil(1 << sx), self.height.div_ceil(1 << sy))
    }
}
