//! Animated GIF, by the `gif` crate: GStreamer 1.22 has only libav's demuxer for it, which never
//! tells the end of most files and loses their times.

use std::{io::Cursor, sync::Arc, thread};

use gif::{ColorOutput, DecodeOptions, DisposalMethod, Frame};
use gstreamer as gst;
use gstreamer_video as gst_video;
use kernels::{mapped_file::MappedFile, picture::Orientation};

use super::{Decoding, PictureSink, StreamEnd, sample::PacketTimes, surface::Surface};
use crate::{item::Pts, stage::Reason};

const CENTISECOND_NS: i64 = 10_000_000;
/// As browsers and libav do: a delay of less than 20 ms means that none was chosen, and 100 ms is.
const LEAST_DELAY: u16 = 2;
const USUAL_DELAY: u16 = 10;
/// A canvas of more samples than this is an attack, not a picture: a file of 80 bytes can ask for it.
const MOST_SAMPLES: usize = 1 << 25;

/// A GIF being decoded in a thread of its own. It ends by itself: at the file's end, or when its
/// pictures are no longer taken.
struct GifDecoding;

impl Decoding for GifDecoding {}

type Reader = gif::Decoder<Cursor<Mapped>>;

struct Mapped(Arc<MappedFile>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self.0.bytes()
    }
}

fn open(file: &Arc<MappedFile>) -> Result<Reader, Reason> {
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::RGBA);
    let reader = options.read_info(Cursor::new(Mapped(file.clone()))).map_err(|e| corrupt(&e, None))?;
    if usize::from(reader.width()) * usize::from(reader.height()) > MOST_SAMPLES {
        return Err(Reason::Unsupported(format!("a GIF of {}x{}", reader.width(), reader.height())));
    }
    Ok(reader)
}

fn corrupt(error: &gif::DecodingError, last_good: Option<Pts>) -> Reason {
    Reason::Corrupt { last_good, detail: error.to_string() }
}

fn delay_ns(frame: &Frame<'_>) -> i64 {
    let delay = if frame.delay < LEAST_DELAY { USUAL_DELAY } else { frame.delay };
    i64::from(delay) * CENTISECOND_NS
}

/// Starts decoding. Only the first frame decodes alone.
pub(super) fn start(
    file: &Arc<MappedFile>,
    keyframes_only: bool,
    mut sink: Box<dyn PictureSink>,
) -> Result<Box<dyn Decoding>, Reason> {
    let mut reader = open(file)?;
    thread::spawn(move || {
        let mut stream = StreamEnd {
            codec: "gif".into(),
            container: "gif".into(),
            decoder: "gif".into(),
            width: u32::from(reader.width()),
            height: u32::from(reader.height()),
            ..StreamEnd::default()
        };
        let mut canvas = Canvas::new(usize::from(reader.width()), usize::from(reader.height()));
        let mut last = None;
        let result = loop {
            let frame = match reader.read_next_frame() {
                Ok(Some(frame)) => frame,
                Ok(None) if last.is_none() => break Err(Reason::Empty("the GIF has no frames".into())),
                Ok(None) => break Ok(()),
                Err(e) => break Err(corrupt(&e, last)),
            };
            let pts = stream.end;
            stream.end.nanos += delay_ns(frame);
            let is_keyframe = last.is_none();
            last = Some(pts);
            let shown = canvas.draw(frame);
            if keyframes_only && !is_keyframe {
                continue;
            }
            match shown.and_then(|s| sink.picture(pts, is_keyframe, s).map_err(|e| e.to_string())) {
                Ok(()) => (),
                // Nobody takes pictures any more, so nobody hears the end either.
                Err(detail) => break Err(Reason::Corrupt { last_good: Some(pts), detail }),
            }
        };
        sink.end(stream, result);
    });
    Ok(Box::new(GifDecoding))
}

/// Times of all frames.
pub(super) fn packet_times(file: &Arc<MappedFile>) -> Result<PacketTimes, Reason> {
    let mut reader = open(file)?;
    let (mut pts, mut end) = (Vec::new(), Pts { nanos: 0 });
    while let Ok(Some(frame)) = reader.read_next_frame() {
        pts.push(end);
        end.nanos += delay_ns(frame);
    }
    Ok(PacketTimes::new(pts, Some(end)))
}

/// The picture as it stands, to which frames are added.
struct Canvas {
    width: usize,
    height: usize,
    rgba: Vec<u8>,
}

impl Canvas {
    /// White, as libav leaves what is transparent when the transparency is dropped.
    fn new(width: usize, height: usize) -> Self {
        Self { width, height, rgba: vec![255; width * height * 4] }
    }

    /// Adds a frame, gives the picture, then disposes of the frame as it asks.
    fn draw(&mut self, frame: &Frame<'_>) -> Result<Surface, String> {
        let before = (frame.dispose == DisposalMethod::Previous).then(|| self.rgba.clone());
        self.each_row(frame, |canvas, pixels| {
            for (to, from) in canvas.chunks_exact_mut(4).zip(pixels.chunks_exact(4)) {
                if from[3] != 0 {
                    to.copy_from_slice(from);
                }
            }
        });
        let shown = surface(self.width, self.height, self.rgba.clone());
        match (frame.dispose, before) {
            (DisposalMethod::Background, _) => self.each_row(frame, |canvas, _| canvas.fill(255)),
            (_, Some(before)) => self.rgba = before,
            _ => (),
        }
        shown
    }

    /// Pairs the rows that a frame covers with its own, both cut at the canvas's edge.
    fn each_row(&mut self, frame: &Frame<'_>, mut act: impl FnMut(&mut [u8], &[u8])) {
        let (left, top) = (usize::from(frame.left).min(self.width), usize::from(frame.top));
        let width = usize::from(frame.width);
        let kept = width.min(self.width - left) * 4;
        let canvas = self.rgba.chunks_exact_mut(self.width.max(1) * 4).skip(top);
        for (canvas, pixels) in canvas.zip(frame.buffer.chunks_exact(width.max(1) * 4)) {
            act(&mut canvas[left * 4..left * 4 + kept], &pixels[..kept]);
        }
    }
}

fn surface(width: usize, height: usize, rgba: Vec<u8>) -> Result<Surface, String> {
    let info = gst_video::VideoInfo::builder(gst_video::VideoFormat::Rgba, width as u32, height as u32);
    let caps = info.build().and_then(|i| i.to_caps()).map_err(|e| e.to_string())?;
    let buffer = gst::Buffer::from_mut_slice(rgba);
    Ok(Surface::new(gst::Sample::builder().buffer(&buffer).caps(&caps).build(), Orientation::default()))
}
