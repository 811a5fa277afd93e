//! A decoder's picture, whichever decoder it is, seen as borrowed planes.

use kernels::{
    ffi::{gst_cuda::CudaSurface, libav},
    picture::{
        Colour, DevicePicture, Layout, Look, Orientation, Picture, PixelFormat, Plane, Range, Reading,
        SampleAspect,
    },
};

use super::gstreamer::sample::SampleSurface;

/// Surfaces are few and a decoder may stall without them: convert, then drop.
pub(super) struct Surface {
    from: From,
    orientation: Orientation,
}

enum From {
    Libav(libav::Frame, Option<SampleAspect>),
    Gstreamer(SampleSurface),
    Cuda(Box<CudaSurface>, Colour, SampleAspect),
    Rgba(Canvas),
}

/// Pixels of red, green, blue and alpha, a byte each, in our own memory.
pub(super) struct Canvas {
    pub(super) width: usize,
    pub(super) height: usize,
    pub(super) rgba: Vec<u8>,
}

impl Surface {
    /// A frame of FFmpeg's, turned and stretched as the container says.
    pub(super) fn libav(frame: libav::Frame, orientation: Orientation, stated: Option<SampleAspect>) -> Self {
        Self { from: From::Libav(frame, stated), orientation }
    }

    /// A sample of GStreamer's.
    pub(super) fn gstreamer(sample: SampleSurface, orientation: Orientation) -> Self {
        Self { from: From::Gstreamer(sample), orientation }
    }

    /// A picture in a device's memory.
    pub(super) fn cuda(
        surface: CudaSurface,
        colour: Colour,
        orientation: Orientation,
        sample_aspect: SampleAspect,
    ) -> Self {
        Self { from: From::Cuda(Box::new(surface), colour, sample_aspect), orientation }
    }

    /// The picture in its device's memory, where that is where it lies; borrowed from its decoder as long as
    /// this is.
    pub(super) fn on_device(&self, reading: Reading) -> Option<DevicePicture<'_>> {
        let From::Cuda(surface, colour, sample_aspect) = &self.from else { return None };
        let picture = surface.picture(self.look(surface, *colour, *sample_aspect));
        Some(match surface.top_field_first() {
            Some(top) if reading.one_field => picture.one_field(top),
            _ => picture,
        })
    }

    fn look(&self, surface: &CudaSurface, colour: Colour, sample_aspect: SampleAspect) -> Look {
        let (width, height) = surface.size();
        Look { width, height, format: surface.format(), colour, orientation: self.orientation, sample_aspect }
    }

    /// A picture of our own.
    pub(super) fn rgba(canvas: Canvas) -> Self {
        Self { from: From::Rgba(canvas), orientation: Orientation::default() }
    }

    /// Shows the picture to `see`.
    pub(super) fn with_picture<R>(
        &self,
        reading: Reading,
        see: impl FnOnce(&Picture<'_>) -> R,
    ) -> Result<R, String> {
        let turned = |picture: &Picture<'_>| see(&Picture { orientation: self.orientation, ..*picture });
        match &self.from {
            From::Libav(frame, stated) => {
                frame.with_picture(reading, *stated, turned).map_err(|e| e.to_string())
            }
            From::Gstreamer(sample) => sample.with_picture(reading, turned),
            From::Cuda(surface, colour, sample_aspect) => {
                let Look { width, height, format, colour, orientation, sample_aspect } =
                    self.look(surface, *colour, *sample_aspect);
                let seen = surface.with_host_planes(|[y, uv]| {
                    let planes = [y, uv, Plane { data: &[], stride: 0 }];
                    let picture =
                        Picture { planes, width, height, format, colour, orientation, sample_aspect };
                    match surface.top_field_first() {
                        Some(top) if reading.one_field => turned(&picture.one_field(top)),
                        _ => turned(&picture),
                    }
                });
                seen.map_err(|e| e.to_string())
            }
            From::Rgba(canvas) => Ok(turned(&canvas.picture())),
        }
    }
}

impl Canvas {
    fn picture(&self) -> Picture<'_> {
        let none = Plane { data: &[], stride: 0 };
        let layout = Layout::PackedRgb { offsets: [0, 1, 2], step: 4 };
        Picture {
            planes: [Plane { data: &self.rgba, stride: 4 * self.width }, none, none],
            width: self.width,
            height: self.height,
            format: PixelFormat { layout, subsampling: (0, 0), depth: 8 },
            colour: Colour { range: Range::Full, ..Colour::default() },
            orientation: Orientation::default(),
            sample_aspect: SampleAspect::default(),
        }
    }
}
