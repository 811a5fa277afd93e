//! A decoder's picture as GStreamer holds it, seen as borrowed planes.

use gst_video::{VideoColorMatrix, VideoColorRange, VideoFormat, VideoFrameExt as _};
use gstreamer as gst;
use gstreamer_video as gst_video;
use kernels::picture::{
    Colour, Layout, Matrix, Orientation, Picture, PixelFormat, Plane, Range, Reading, SampleAspect, Siting,
};

/// A decoded sample.
pub(in crate::decode) struct SampleSurface {
    sample: gst::Sample,
}

impl SampleSurface {
    pub(super) fn new(sample: gst::Sample) -> Self {
        Self { sample }
    }

    /// Maps the picture for reading and hands it to `see`. Formats that the kernels do not read are
    /// converted to 8-bit 4:4:4 first.
    pub(in crate::decode) fn with_picture<R>(
        &self,
        reading: Reading,
        see: impl FnOnce(&Picture<'_>) -> R,
    ) -> Result<R, String> {
        let caps = self.sample.caps().ok_or("a sample without caps")?;
        let buffer = self.sample.buffer().ok_or("a sample without a buffer")?;
        let info = gst_video::VideoInfo::from_caps(caps).map_err(|e| format!("caps {caps}: {e}"))?;
        let frame = gst_video::VideoFrameRef::from_buffer_ref_readable(buffer, &info)
            .map_err(|e| format!("cannot map a {} picture: {e}", info.format()))?;
        match pixel_format(info.format()) {
            Some(format) => {
                let colour = colour(&info, stated_colorimetry(caps), reading.unspecified);
                let picture = picture(&frame, format, colour)?;
                let flags = frame.flags();
                let is_interlaced = flags.contains(gst_video::VideoFrameFlags::INTERLACED);
                Ok(if reading.one_field && is_interlaced {
                    see(&picture.one_field(flags.contains(gst_video::VideoFrameFlags::TFF)))
                } else {
                    see(&picture)
                })
            }
            None => {
                let plain = gst_video::VideoInfo::builder(VideoFormat::Y444, info.width(), info.height())
                    // The converter refuses to change any of these.
                    .fps(info.fps())
                    .par(info.par())
                    .interlace_mode(info.interlace_mode())
                    .build()
                    .map_err(|e| e.to_string())?;
                let converter = gst_video::VideoConverter::new(&info, &plain, None)
                    .map_err(|e| format!("{}: {e}", info.format()))?;
                let out = gst::Buffer::with_size(plain.size()).map_err(|e| e.to_string())?;
                let mut out = gst_video::VideoFrame::from_buffer_writable(out, &plain)
                    .map_err(|_| "cannot map a new buffer")?;
                converter.frame_ref(&frame, &mut out.as_mut_video_frame_ref());
                let format = PixelFormat { layout: Layout::Planar, subsampling: (0, 0), depth: 8 };
                let colour = colour(&plain, Some(plain.colorimetry()), reading.unspecified);
                Ok(see(&picture(&out.as_video_frame_ref(), format, colour)?))
            }
        }
    }
}

fn picture<'a>(
    frame: &'a gst_video::VideoFrameRef<&gst::BufferRef>,
    format: PixelFormat,
    colour: Colour,
) -> Result<Picture<'a>, String> {
    let mut planes = [Plane { data: &[], stride: 0 }; 3];
    for (i, plane) in planes.iter_mut().enumerate().take(frame.n_planes() as usize) {
        let data = frame.plane_data(i as u32).map_err(|e| e.to_string())?;
        let stride = usize::try_from(frame.plane_stride()[i]).map_err(|_| "a picture stored upside down")?;
        *plane = Plane { data, stride };
    }
    let aspect = frame.info().par();
    Ok(Picture {
        planes,
        width: frame.width() as usize,
        height: frame.height() as usize,
        format,
        colour,
        orientation: Orientation::default(),
        sample_aspect: SampleAspect::new(aspect.numer(), aspect.denom()).unwrap_or_default(),
    })
}

/// The format in the kernels' terms, for those that they read.
fn pixel_format(format: VideoFormat) -> Option<PixelFormat> {
    let planar = |layout, subsampling, depth| Some(PixelFormat { layout, subsampling, depth });
    let packed = |offsets, step| planar(Layout::PackedRgb { offsets, step }, (0, 0), 8);
    match format {
        VideoFormat::I420 | VideoFormat::A420 => planar(Layout::Planar, (1, 1), 8),
        VideoFormat::Y41b => planar(Layout::Planar, (2, 0), 8),
        VideoFormat::Y42b => planar(Layout::Planar, (1, 0), 8),
        VideoFormat::Y444 => planar(Layout::Planar, (0, 0), 8),
        VideoFormat::I42010le => planar(Layout::Planar, (1, 1), 10),
        VideoFormat::I42210le => planar(Layout::Planar, (1, 0), 10),
        VideoFormat::Y44410le => planar(Layout::Planar, (0, 0), 10),
        VideoFormat::I42012le => planar(Layout::Planar, (1, 1), 12),
        VideoFormat::I42212le => planar(Layout::Planar, (1, 0), 12),
        VideoFormat::Y44412le => planar(Layout::Planar, (0, 0), 12),
        VideoFormat::Nv12 => planar(Layout::SemiPlanar, (1, 1), 8),
        VideoFormat::P01010le => planar(Layout::SemiPlanar, (1, 1), 16),
        VideoFormat::Gbr => planar(Layout::PlanarGbr, (0, 0), 8),
        VideoFormat::Gbr10le => planar(Layout::PlanarGbr, (0, 0), 10),
        VideoFormat::Gbr12le => planar(Layout::PlanarGbr, (0, 0), 12),
        VideoFormat::Gray8 => planar(Layout::Gray, (0, 0), 8),
        VideoFormat::Gray16Le => planar(Layout::Gray, (0, 0), 16),
        VideoFormat::Rgb => packed([0, 1, 2], 3),
        VideoFormat::Bgr => packed([2, 1, 0], 3),
        VideoFormat::Rgbx | VideoFormat::Rgba => packed([0, 1, 2], 4),
        VideoFormat::Bgrx | VideoFormat::Bgra => packed([2, 1, 0], 4),
        VideoFormat::Xrgb | VideoFormat::Argb => packed([1, 2, 3], 4),
        VideoFormat::Xbgr | VideoFormat::Abgr => packed([3, 2, 1], 4),
        _ => None,
    }
}

/// What the caps themselves say of colours. `VideoInfo` fills gaps with GStreamer's defaults, which
/// are not ours, and drops the range of a stream that states no matrix.
fn stated_colorimetry(caps: &gst::CapsRef) -> Option<gst_video::VideoColorimetry> {
    caps.structure(0)?.get::<&str>("colorimetry").ok()?.parse().ok()
}

/// What the stream says of its colours, and the usual default where it says nothing.
fn colour(
    info: &gst_video::VideoInfo,
    stated: Option<gst_video::VideoColorimetry>,
    unspecified: Matrix,
) -> Colour {
    let matrix = match stated.as_ref().map(|s| s.matrix()) {
        Some(VideoColorMatrix::Bt601) => Matrix::Bt601,
        Some(VideoColorMatrix::Bt709) => Matrix::Bt709,
        Some(VideoColorMatrix::Bt2020) => Matrix::Bt2020,
        Some(VideoColorMatrix::Smpte240m) => Matrix::Smpte240m,
        Some(VideoColorMatrix::Fcc) => Matrix::Fcc,
        _ => unspecified,
    };
    let silent_range = if info.is_rgb() || info.is_gray() { Range::Full } else { Range::Limited };
    let range = match stated.map(|s| s.range()) {
        Some(VideoColorRange::Range0_255) => Range::Full,
        Some(VideoColorRange::Range16_235) => Range::Limited,
        _ => silent_range,
    };
    let site = info.chroma_site();
    let siting = if site.is_empty() {
        Colour::default().siting
    } else {
        Siting {
            cosited_across: site.contains(gst_video::VideoChromaSite::H_COSITED),
            cosited_down: site.contains(gst_video::VideoChromaSite::V_COSITED),
        }
    };
    Colour { matrix, range, siting }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_as_stated_and_gaps_are_ours() {
        gst::init().unwrap();
        let check = |rest: &str, matrix, range| {
            // A size at which GStreamer would guess BT.709.
            let caps = format!("video/x-raw,width=1280,height=720,framerate=25/1,{rest}");
            let caps: gst::Caps = caps.parse().unwrap();
            let info = gst_video::VideoInfo::from_caps(&caps).unwrap();
            let found = colour(&info, stated_colorimetry(&caps), Matrix::Bt601);
            assert_eq!((found.matrix, found.range), (matrix, range), "{rest}");
        };
        check("format=I420", Matrix::Bt601, Range::Limited);
        check("format=I420,colorimetry=bt709", Matrix::Bt709, Range::Limited);
        check("format=I420,colorimetry=bt601", Matrix::Bt601, Range::Limited);
        check("format=I420,colorimetry=1:3:5:1", Matrix::Bt709, Range::Full);
        // A range without a matrix.
        check("format=I420,colorimetry=1:0:0:0", Matrix::Bt601, Range::Full);
        check("format=I420,colorimetry=2:0:0:0", Matrix::Bt601, Range::Limited);
        check("format=I420_10LE,colorimetry=bt2020-10", Matrix::Bt2020, Range::Limited);
        check("format=RGB", Matrix::Bt601, Range::Full);
        check("format=GRAY8", Matrix::Bt601, Range::Full);
    }
}
