//! Which parser and decoder take a demuxer's stream: a table for the common codecs, GStreamer's
//! registry for the rest.

use gst::prelude::*;
use gstreamer as gst;

/// The elements for one kind of stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Codec {
    /// Its name in `clips.codec`.
    pub(super) name: String,
    /// Cuts packets at pictures and flags keyframes, for containers that do not.
    pub(super) parser: Option<&'static str>,
    /// Decodes; none for raw video.
    pub(super) decoder: Option<String>,
}

impl Codec {
    /// For a stream of these caps; the error says what is not supported.
    pub(super) fn of(caps: &gst::CapsRef) -> Result<Self, String> {
        let Some(s) = caps.structure(0) else {
            return Err("a stream without caps".into());
        };
        let number = |field: &str| s.get::<i32>(field).unwrap_or(0);
        let (name, parser, decoder) = match (s.name().as_str(), number("mpegversion")) {
            ("video/x-raw", _) => return Ok(Self { name: "raw".into(), parser: None, decoder: None }),
            ("video/x-h264", _) => ("h264", Some("h264parse"), "avdec_h264"),
            ("video/x-h265", _) => ("hevc", Some("h265parse"), "avdec_h265"),
            ("video/mpeg", 4) => ("mpeg4", Some("mpeg4videoparse"), "avdec_mpeg4"),
            ("video/mpeg", 1) => ("mpeg1video", Some("mpegvideoparse"), "avdec_mpeg2video"),
            ("video/mpeg", 2) => ("mpeg2video", Some("mpegvideoparse"), "avdec_mpeg2video"),
            ("video/x-divx", _) if number("divxversion") >= 4 => ("mpeg4", None, "avdec_mpeg4"),
            ("video/x-xvid", _) => ("mpeg4", None, "avdec_mpeg4"),
            ("video/x-vp8", _) => ("vp8", None, "avdec_vp8"),
            ("video/x-vp9", _) => ("vp9", None, "avdec_vp9"),
            ("video/x-av1", _) => ("av1", Some("av1parse"), "av1dec"),
            ("image/jpeg", _) => ("mjpeg", None, "avdec_mjpeg"),
            ("application/x-cenc" | "application/x-cbcs" | "application/x-webm-enc", _) => {
                return Err("encrypted video".into());
            }
            (other, _) => {
                let decoder = registered_decoder(caps).ok_or_else(|| format!("no decoder for {other}"))?;
                let name = other.trim_start_matches("video/x-").trim_start_matches("image/").to_owned();
                return Ok(Self { name, parser: None, decoder: Some(decoder) });
            }
        };
        Ok(Self { name: name.into(), parser, decoder: Some(decoder.into()) })
    }
}

/// The decoder of highest rank that takes `caps` into memory of ours.
fn registered_decoder(caps: &gst::CapsRef) -> Option<String> {
    let kind = gst::ElementFactoryType::DECODER | gst::ElementFactoryType::MEDIA_VIDEO;
    let decoders = gst::ElementFactory::factories_with_type(kind, gst::Rank::MARGINAL);
    let best = decoders
        .into_iter()
        .filter(|f| f.can_sink_all_caps(caps) && !f.name().starts_with("nv"))
        .max_by_key(|f| (f.rank(), f.name()))?;
    Some(best.name().into())
}
