//! Makes small real clips: every codec and container that this machine can write, with pictures
//! that say which frame they are.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
};

use gst::prelude::*;
use gstreamer as gst;
use gstreamer_app as gst_app;

/// A codec in a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    /// For file names.
    pub name: &'static str,
    /// Of the file.
    pub extension: &'static str,
    /// As `clips.codec` has it.
    pub codec: &'static str,
    /// As `clips.container` has it.
    pub container: &'static str,
    /// From raw pictures to packets; the encoder is named `enc`.
    pub encoder: &'static str,
    /// From packets to bytes.
    pub muxer: &'static str,
}

/// Groups of 10 frames, and bits enough that a flat picture keeps its brightness.
macro_rules! x264 {
    ($bframes:literal) => {
        concat!(
            "x264enc name=enc key-int-max=10 pass=qual quantizer=5 b-adapt=false bframes=",
            $bframes,
            " option-string=scenecut=0:keyint=10:min-keyint=10 ! h264parse"
        )
    };
}

/// A form; the encoder and the muxer are elements as `gst-launch-1.0` takes them.
pub const fn form(
    name: &'static str,
    extension: &'static str,
    [codec, container]: [&'static str; 2],
    encoder: &'static str,
    muxer: &'static str,
) -> Form {
    Form { name, extension, codec, container, encoder, muxer }
}

/// MPEG-4 part 2 in AVI, as UCF101 has it.
pub const MPEG4_AVI: Form =
    form("mpeg4", "avi", ["mpeg4", "avi"], "avenc_mpeg4 name=enc gop-size=10 bitrate=4000000", "avimux");
/// The same with B-frames.
pub const MPEG4_B_AVI: Form = form(
    "mpeg4-b",
    "avi",
    ["mpeg4", "avi"],
    "avenc_mpeg4 name=enc gop-size=10 bitrate=4000000 max-bframes=2",
    "avimux",
);
/// Uncompressed, in a layout that our kernels do not read as it is.
pub const YUY2_AVI: Form =
    form("yuy2", "avi", ["rawvideo", "avi"], "videoconvert name=enc ! video/x-raw,format=YUY2", "avimux");
/// H.264 with B-frames, the index at the end.
pub const H264_MP4: Form = form("h264", "mp4", ["h264", "mp4"], x264!(2), "mp4mux");
/// H.264 with B-frames, the index at the start.
pub const H264_FAST_MP4: Form = form("h264-fast", "mp4", ["h264", "mp4"], x264!(2), "mp4mux faststart=true");
/// H.264 in Matroska.
pub const H264_MKV: Form = form("h264", "mkv", ["h264", "matroska"], x264!(0), "matroskamux");
/// H.264 in a transport stream.
pub const H264_TS: Form = form("h264", "ts", ["h264", "mpegts"], x264!(2), "mpegtsmux");
/// VP8 in WebM.
pub const VP8_WEBM: Form = form(
    "vp8",
    "webm",
    ["vp8", "matroska"],
    "vp8enc name=enc keyframe-max-dist=10 target-bitrate=4000000 max-quantizer=4 deadline=1",
    "webmmux",
);
/// VP9 in WebM.
pub const VP9_WEBM: Form = form(
    "vp9",
    "webm",
    ["vp9", "matroska"],
    "vp9enc name=enc keyframe-max-dist=10 target-bitrate=4000000 max-quantizer=4 deadline=1 cpu-used=8 lag-in-frames=0",
    "webmmux",
);
/// Pictures that each stand alone.
pub const MJPEG_AVI: Form = form("mjpeg", "avi", ["mjpeg", "avi"], "jpegenc name=enc quality=100", "avimux");
/// Theora in Ogg.
pub const THEORA_OGV: Form = form(
    "theora",
    "ogv",
    ["theora", "ogg"],
    "theoraenc name=enc keyframe-auto=false keyframe-freq=10 keyframe-force=10 quality=63",
    "oggmux",
);

/// All of the above.
pub const FORMS: &[Form] = &[
    MPEG4_AVI,
    MPEG4_B_AVI,
    H264_MP4,
    H264_FAST_MP4,
    H264_MKV,
    H264_TS,
    VP8_WEBM,
    VP9_WEBM,
    MJPEG_AVI,
    THEORA_OGV,
];

/// What a clip shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// Grey, by frame: luma is 16 + 4 × frame. For up to 54 frames.
    Count,
    /// One colour: Y, U, V.
    Colour([u8; 3]),
    /// White above black.
    WhiteAbove,
    /// As `Count`, with a texture that wanders by: every picture is best made of others.
    Wander,
    /// A pattern of `videotestsrc`, for pictures that take space.
    Pattern(&'static str),
}

/// A clip to be made.
#[derive(Clone, Copy, Debug)]
pub struct Clip {
    /// Codec and container.
    pub form: Form,
    /// Samples across.
    pub width: usize,
    /// Samples down.
    pub height: usize,
    /// Frames a second.
    pub fps: u64,
    /// How many.
    pub n_frames: usize,
    /// What is seen.
    pub show: Show,
    /// Quarters by which players turn it clockwise; for MP4.
    pub turn: u8,
}

impl Clip {
    /// Two seconds of 96 × 64 that count their frames.
    pub fn counting(form: Form) -> Self {
        Self { form, width: 96, height: 64, fps: 25, n_frames: 50, show: Show::Count, turn: 0 }
    }

    /// A second of one colour.
    pub fn coloured(form: Form, yuv: [u8; 3]) -> Self {
        Self { n_frames: 25, show: Show::Colour(yuv), ..Self::counting(form) }
    }

    /// Two seconds that count their frames and cannot be decoded without the right references.
    pub fn wandering(form: Form) -> Self {
        Self { show: Show::Wander, ..Self::counting(form) }
    }

    /// A few seconds of noise, so that a cut-off file still holds pictures.
    pub fn noisy(form: Form) -> Self {
        Self { n_frames: 75, show: Show::Pattern("snow"), ..Self::counting(form) }
    }
}

/// A clip that was made, and what is known of it from its making.
#[derive(Clone, Debug)]
pub struct Made {
    /// The file.
    pub path: PathBuf,
    /// Presentation time of each frame, from the first.
    pub pts_ns: Vec<i64>,
    /// When the last frame ends.
    pub end_ns: i64,
    /// Numbers of the frames that the encoder made keyframes.
    pub keyframes: Vec<u32>,
}

/// Red in limited-range BT.601.
pub const RED: [u8; 3] = [81, 90, 240];
/// Green in limited-range BT.601.
pub const GREEN: [u8; 3] = [145, 54, 34];
/// Blue in limited-range BT.601.
pub const BLUE: [u8; 3] = [41, 240, 110];

/// A picture before it is coded.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// When it is shown.
    pub at_ns: u64,
    /// For how long.
    pub lasts_ns: u64,
    /// Its planes, in GStreamer's own layout.
    pub i420: Vec<u8>,
}

impl Clip {
    /// The pictures, one after another.
    pub fn pictures(&self) -> Vec<Drawn> {
        let at = |n: u64| n * 1_000_000_000 / self.fps;
        let drawn = |n| Drawn { at_ns: at(n), lasts_ns: at(n + 1) - at(n), i420: picture(self, n) };
        (0..self.n_frames as u64).map(drawn).collect()
    }

    /// What GStreamer calls such pictures.
    pub fn caps(&self) -> String {
        let Self { width, height, fps, .. } = self;
        format!(
            "video/x-raw,format=I420,width={width},height={height},framerate={fps}/1,\
             pixel-aspect-ratio=1/1,interlace-mode=progressive,colorimetry=bt601"
        )
    }
}

/// Makes a clip at `path`.
pub fn make_at(path: &Path, clip: &Clip) -> Made {
    let made = match clip.show {
        Show::Pattern(pattern) => {
            let source =
                format!("videotestsrc num-buffers={} pattern={pattern} ! {}", clip.n_frames, clip.caps());
            let keyframes = code(path, clip.form, &source, Vec::new());
            let at = |n: u64| (n * 1_000_000_000 / clip.fps) as i64;
            let n_frames = clip.n_frames as u64;
            let pts_ns = (0..n_frames).map(at).collect();
            Made { path: path.to_owned(), pts_ns, end_ns: at(n_frames), keyframes }
        }
        _ => record(path, clip.form, &clip.caps(), clip.pictures()),
    };
    if clip.turn > 0 {
        write_turn(path, clip.turn);
    }
    made
}

/// Makes a clip of given pictures.
pub fn record(path: &Path, form: Form, caps: &str, pictures: Vec<Drawn>) -> Made {
    let pts_ns = pictures.iter().map(|p| p.at_ns as i64).collect();
    let end_ns = pictures.last().map_or(0, |p| (p.at_ns + p.lasts_ns) as i64);
    let keyframes = code(path, form, &format!("appsrc name=src format=time caps=\"{caps}\""), pictures);
    Made { path: path.to_owned(), pts_ns, end_ns, keyframes }
}

/// Runs the encoder and the muxer; numbers of the keyframes.
fn code(path: &Path, form: Form, source: &str, pictures: Vec<Drawn>) -> Vec<u32> {
    gst::init().unwrap();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let text =
        format!("{source} ! {} ! {} ! filesink location=\"{}\"", form.encoder, form.muxer, path.display());
    let pipeline = launch(&text);
    let packets = Arc::new(Mutex::new(Vec::new()));
    let seen = packets.clone();
    let encoder = pipeline.by_name("enc").unwrap().static_pad("src").unwrap();
    encoder.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
        let packet = info.buffer().unwrap();
        let is_header = packet.flags().contains(gst::BufferFlags::HEADER) && packet.pts().is_none();
        if !is_header {
            let is_key = !packet.flags().contains(gst::BufferFlags::DELTA_UNIT);
            let is_b = form.codec == "mpeg4" && is_b_picture(&packet.map_readable().unwrap());
            seen.lock().unwrap().push(Packet { pts: packet.pts(), is_key, is_b });
        }
        gst::PadProbeReturn::Ok
    });
    pipeline.set_state(gst::State::Playing).unwrap();
    if let Some(source) = pipeline.by_name("src") {
        push(&source.downcast::<gst_app::AppSrc>().unwrap(), pictures);
    }
    finish(&pipeline, &text);
    keyframes(packets.lock().unwrap().clone())
}

/// Feeds a source to its end.
pub(crate) fn push(source: &gst_app::AppSrc, pictures: Vec<Drawn>) {
    for Drawn { at_ns, lasts_ns, i420 } in pictures {
        let mut buffer = gst::Buffer::from_mut_slice(i420);
        let fields = buffer.get_mut().unwrap();
        fields.set_pts(gst::ClockTime::from_nseconds(at_ns));
        fields.set_duration(gst::ClockTime::from_nseconds(lasts_ns));
        source.push_buffer(buffer).unwrap();
    }
    source.end_of_stream().unwrap();
}

/// Writes the matrix of a turned track (ISO/IEC 14496-12, `tkhd`), which GStreamer 1.22 cannot. The
/// shift that brings the picture back into view is left out: no player needs it.
fn write_turn(path: &Path, quarters: u8) {
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.windows(4).position(|w| w == b"tkhd").expect("an MP4 has a track") + 4;
    // Version 0 has times of 4 bytes, version 1 of 8.
    let matrix = at + if bytes[at] == 0 { 40 } else { 52 };
    let [a, b, c, d] =
        [[1, 0, 0, 1], [0, 1, -1, 0], [-1, 0, 0, -1], [0, -1, 1, 0]][usize::from(quarters % 4)];
    for (i, value) in [(0, a), (1, b), (3, c), (4, d)] {
        let fixed: i32 = value << 16;
        bytes[matrix + 4 * i..][..4].copy_from_slice(&fixed.to_be_bytes());
    }
    std::fs::write(path, bytes).unwrap();
}

#[derive(Clone, Copy)]
struct Packet {
    pts: Option<gst::ClockTime>,
    is_key: bool,
    is_b: bool,
}

/// Whether an MPEG-4 part 2 packet is a B-picture: the two bits after the start code 0xB6 are 2.
fn is_b_picture(packet: &[u8]) -> bool {
    packet.windows(5).any(|w| w.starts_with(&[0, 0, 1, 0xB6]) && w[4] >> 6 == 2)
}

/// Places of the keyframes among the pictures as they are shown.
fn keyframes(mut packets: Vec<Packet>) -> Vec<u32> {
    if packets.iter().any(|p| p.is_b) {
        // The encoder's times are no help: a B-picture is shown before the packet it follows.
        let mut shown: Vec<Packet> = Vec::new();
        for packet in packets {
            let at = if packet.is_b { shown.len() - 1 } else { shown.len() };
            shown.insert(at, packet);
        }
        packets = shown;
    } else {
        packets.sort_by_key(|p| p.pts);
    }
    packets.iter().zip(0..).filter(|(p, _)| p.is_key).map(|(_, n)| n).collect()
}

/// Makes a clip in `folder`, named after its form.
pub fn make(folder: &Path, clip: &Clip) -> Made {
    make_at(&folder.join(format!("{}.{}", clip.form.name, clip.form.extension)), clip)
}

/// A tone without pictures, in MP4.
pub fn make_sound(path: &Path) {
    gst::init().unwrap();
    let text = format!(
        "audiotestsrc num-buffers=40 ! audioconvert ! avenc_aac ! mp4mux ! filesink location=\"{}\"",
        path.display()
    );
    let pipeline = launch(&text);
    pipeline.set_state(gst::State::Playing).unwrap();
    finish(&pipeline, &text);
}

/// A still picture of one colour, by `encoder` (`pngenc` or `jpegenc`).
pub fn make_still(path: &Path, encoder: &str, [y, u, v]: [u8; 3]) {
    gst::init().unwrap();
    let caps = "video/x-raw,format=I420,width=96,height=64,framerate=1/1,colorimetry=bt601";
    let text = format!(
        "appsrc name=src format=time caps=\"{caps}\" ! videoconvert ! {encoder} ! filesink location=\"{}\"",
        path.display()
    );
    let pipeline = launch(&text);
    pipeline.set_state(gst::State::Playing).unwrap();
    let clip = Clip { n_frames: 1, ..Clip::coloured(MJPEG_AVI, [y, u, v]) };
    push(&pipeline.by_name("src").unwrap().downcast().unwrap(), clip.pictures());
    finish(&pipeline, &text);
}

pub(crate) fn launch(text: &str) -> gst::Pipeline {
    let parsed = gst::parse::launch(text).unwrap_or_else(|e| panic!("{text}: {e}"));
    parsed.downcast::<gst::Pipeline>().unwrap()
}

pub(crate) fn finish(pipeline: &gst::Pipeline, text: &str) {
    let wanted = [gst::MessageType::Eos, gst::MessageType::Error];
    let limit = gst::ClockTime::from_seconds(60);
    let message = pipeline.bus().unwrap().timed_pop_filtered(limit, &wanted);
    pipeline.set_state(gst::State::Null).unwrap();
    match message.as_ref().map(|m| m.view()) {
        Some(gst::MessageView::Eos(_)) => (),
        Some(gst::MessageView::Error(e)) => panic!("{text}: {} ({:?})", e.error(), e.debug()),
        _ => panic!("{text}: no end within {limit}"),
    }
}

/// An I420 picture in GStreamer's own layout: rows padded to 4 bytes.
fn picture(clip: &Clip, frame: u64) -> Vec<u8> {
    let (w, h) = (clip.width, clip.height);
    assert!(w % 8 == 0 && h % 2 == 0, "this writes no padding");
    type Luma = Box<dyn Fn(usize, usize) -> u8>;
    let (luma, [u, v]): (Luma, [u8; 2]) = match clip.show {
        Show::Count => (Box::new(move |_, _| (16 + 4 * frame) as u8), [128, 128]),
        Show::Colour([y, u, v]) => (Box::new(move |_, _| y), [u, v]),
        Show::WhiteAbove => (Box::new(move |row, _| if row < h / 2 { 235 } else { 16 }), [128, 128]),
        Show::Wander => (Box::new(move |row, column| wander(frame, row, column)), [128, 128]),
        Show::Pattern(_) => panic!("patterns are drawn by videotestsrc"),
    };
    let samples = (0..h).flat_map(|row| (0..w).map(move |column| (row, column)));
    let mut bytes: Vec<u8> = samples.map(|(row, column)| luma(row, column)).collect();
    bytes.extend(vec![u; w / 2 * (h / 2)]);
    bytes.extend(vec![v; w / 2 * (h / 2)]);
    bytes
}

/// Cells of random shade, which go left by three samples a frame and up by one.
pub fn wander(frame: u64, row: usize, column: usize) -> u8 {
    const CELL: u64 = 4;
    let cell = (((row as u64 + frame) / CELL) << 32) | ((column as u64 + 3 * frame) / CELL);
    let random = cell.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let random = (random ^ random >> 29).wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 40;
    // ±8 about the frame's own brightness.
    (16 + 4 * frame + random % 17) as u8 - 8
}
