//! A decoded picture: borrowed planes, here or on a device, and what their numbers mean.

use std::marker::PhantomData;

/// One plane: rows of samples, `stride` bytes apart. The last row may end at its last sample.
#[derive(Clone, Copy, Debug)]
pub struct Plane<'a> {
    /// The samples, 1 byte each up to 8 bits of depth, else 2 bytes little-endian.
    pub data: &'a [u8],
    /// Bytes from one row to the next.
    pub stride: usize,
}

/// How the samples of a picture lie in its planes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Range {
    /// 16 is black and 235 white, at 8 bits.
    Limited,
    /// 0 is black and 255 white, at 8 bits.
    Full,
}

/// Where chroma samples sit: on a luma sample, or between two.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Siting {
    /// On the left luma sample (MPEG-2, H.264), not between two (JPEG, MPEG-1).
    pub cosited_across: bool,
    /// On the upper luma sample, not between two.
    pub cosited_down: bool,
}

/// Everything that turns samples into colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
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
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Hash)]
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

/// Shape of a sample: its width to its height.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SampleAspect {
    /// Parts across.
    pub across: u32,
    /// Parts down.
    pub down: u32,
}

impl Default for SampleAspect {
    fn default() -> Self {
        Self { across: 1, down: 1 }
    }
}

impl SampleAspect {
    /// No sample is longer than this many times its width, or the other way round: beyond it, a header
    /// is damaged.
    const MOST: u32 = 16;

    /// `None` for what is no shape of a sample.
    pub fn new(across: i32, down: i32) -> Option<Self> {
        let (across, down) = (u32::try_from(across).ok()?, u32::try_from(down).ok()?);
        let is_sane = across > 0 && down > 0 && across / down < Self::MOST && down / across < Self::MOST;
        is_sane.then_some(Self { across, down })
    }

    /// Samples across and down of square samples, for as many of these; at least one each.
    pub fn square(self, width: usize, height: usize) -> (usize, usize) {
        let (across, down) = (u64::from(self.across), u64::from(self.down));
        // The direction in which samples are long gets more of them, so none are lost.
        let stretch = |n: usize, by: u64, of: u64| ((n as u64 * by + of / 2) / of).max(1) as usize;
        if across >= down {
            (stretch(width, across, down), height)
        } else {
            (width, stretch(height, down, across))
        }
    }
}

/// How a decoder's pictures are read where that is a matter of choice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reading {
    /// The matrix of streams that name none.
    pub unspecified: Matrix,
    /// Whether one field stands for an interlaced picture; both make it a comb where things move.
    pub one_field: bool,
}

/// What pictures of one kind have in common: all but their samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Look {
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
    /// Shape of its samples.
    pub sample_aspect: SampleAspect,
}

impl Look {
    /// Chroma samples across and down; an odd size keeps its last half sample.
    pub fn chroma_size(&self) -> (usize, usize) {
        let (sx, sy) = self.format.subsampling;
        (self.width.div_ceil(1 << sx), self.height.div_ceil(1 << sy))
    }

    /// Bytes of a row, and rows, that each plane must hold; nothing for planes that the layout lacks.
    pub fn plane_sizes(&self) -> [(usize, usize); 3] {
        let bytes = self.format.sample_bytes();
        let (chroma_width, chroma_height) = self.chroma_size();
        let (whole, none) = ((self.width * bytes, self.height), (0, 0));
        let chroma = (chroma_width * bytes, chroma_height);
        match self.format.layout {
            Layout::Planar => [whole, chroma, chroma],
            Layout::SemiPlanar => [whole, (2 * chroma.0, chroma.1), none],
            Layout::PlanarGbr => [whole; 3],
            Layout::Gray => [whole, none, none],
            Layout::PackedRgb { step, .. } => [(self.width * usize::from(step), self.height), none, none],
        }
    }

    /// That of one field; none if the two differ in size.
    fn one_field(self) -> Option<Self> {
        let whole_fields = 2 << self.format.subsampling.1;
        if self.height == 0 || !self.height.is_multiple_of(whole_fields) {
            return None;
        }
        let SampleAspect { across, down } = self.sample_aspect;
        let sample_aspect = SampleAspect { across, down: down * 2 };
        Some(Self { height: self.height / 2, sample_aspect, ..self })
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
    /// Shape of its samples.
    pub sample_aspect: SampleAspect,
}

impl<'a> Picture<'a> {
    /// All of it but the samples.
    pub fn look(&self) -> Look {
        let Self { width, height, format, colour, orientation, sample_aspect, .. } = *self;
        Look { width, height, format, colour, orientation, sample_aspect }
    }

    /// Chroma samples across and down; an odd size keeps its last half sample.
    pub fn chroma_size(&self) -> (usize, usize) {
        self.look().chroma_size()
    }

    /// Bytes of a row, and rows, that each plane must hold; nothing for planes that the layout lacks.
    pub fn plane_sizes(&self) -> [(usize, usize); 3] {
        self.look().plane_sizes()
    }

    /// The field of an interlaced picture that is shown first: every other row, twice as high.
    ///
    /// The two fields are two moments, and what moved between them is a comb. A picture whose fields
    /// differ in size stays as it is.
    pub fn one_field(self, top: bool) -> Self {
        let Some(Look { height, sample_aspect, .. }) = self.look().one_field() else { return self };
        let planes = self.planes.map(|plane| Plane {
            data: plane.data.get(if top { 0 } else { plane.stride }..).unwrap_or(&[]),
            stride: plane.stride * 2,
        });
        Picture { planes, height, sample_aspect, ..self }
    }
}

/// One plane in a device's memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DevicePlane {
    /// Of its first sample.
    pub(crate) address: u64,
    /// Bytes from one row to the next.
    pub(crate) stride: usize,
}

/// A picture in a device's memory, valid while whatever holds it is borrowed.
#[derive(Clone, Copy, Debug)]
pub struct DevicePicture<'a> {
    pub(crate) planes: [DevicePlane; 3],
    pub(crate) look: Look,
    held: PhantomData<&'a ()>,
}

impl<'a> DevicePicture<'a> {
    /// A picture whose planes are where they are said to be.
    ///
    /// # Safety
    /// The planes that `look` needs ([`Look::plane_sizes`]) can be read on the device for `'a`. Where an
    /// address and its stride are multiples of four, so can the bytes of every row up to the next such one.
    pub unsafe fn new(planes: [DevicePlane; 3], look: Look) -> Self {
        Self { planes, look, held: PhantomData }
    }

    /// All of it but the samples.
    pub fn look(&self) -> Look {
        self.look
    }

    /// As [`Picture::one_field`].
    pub fn one_field(self, top: bool) -> Self {
        let Some(look) = self.look.one_field() else { return self };
        let planes = self.planes.map(|DevicePlane { address, stride }| DevicePlane {
            address: address + if top { 0 } else { stride as u64 },
            stride: stride * 2,
        });
        Self { planes, look, held: PhantomData }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_that_are_not_square_count_for_more() {
        let square =
            |across, down, width, height| SampleAspect::new(across, down).unwrap().square(width, height);
        assert_eq!(square(1, 1, 320, 240), (320, 240));
        assert_eq!(square(64, 45, 720, 576), (1024, 576));
        assert_eq!(square(8, 9, 720, 480), (720, 540));
        for (across, down) in [(0, 1), (1, 0), (-4, 3), (1000, 1), (1, i32::MAX)] {
            assert_eq!(SampleAspect::new(across, down), None);
        }
    }

    #[test]
    fn a_field_is_every_other_row() {
        let luma: Vec<u8> = (0..8u8).flat_map(|row| [row; 6]).collect();
        let chroma: Vec<u8> = (0..4u8).flat_map(|row| [row; 3]).collect();
        let planes = [(&luma, 6), (&chroma, 3), (&chroma, 3)]
            .map(|(data, stride)| Plane { data: data.as_slice(), stride });
        let picture = Picture {
            planes,
            width: 6,
            height: 8,
            format: PixelFormat::I420,
            colour: Colour::default(),
            orientation: Orientation::default(),
            sample_aspect: SampleAspect::default(),
        };
        for (top, luma, chroma) in [(true, [0, 2, 4, 6], [0, 2]), (false, [1, 3, 5, 7], [1, 3])] {
            let field = picture.one_field(top);
            let rows = |p: usize, n: usize| -> Vec<u8> {
                (0..n).map(|r| field.planes[p].data[r * field.planes[p].stride]).collect()
            };
            assert_eq!((field.height, rows(0, 4), rows(1, 2)), (4, luma.to_vec(), chroma.to_vec()));
            assert_eq!(field.sample_aspect.square(field.width, field.height), (6, 8));
        }
        assert_eq!(Picture { height: 6, ..picture }.one_field(true).height, 6);
    }
}
