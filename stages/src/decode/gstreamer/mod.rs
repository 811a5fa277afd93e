//! Decoding on the CPU by GStreamer's elements: the second opinion, and the codecs that FFmpeg lacks.

mod chain;
mod codec;
pub(super) mod sample;
mod source;

use std::{collections::VecDeque, sync::Arc, time::Duration};

use crossbeam_channel::bounded;

use gstreamer as gst;
use kernels::{mapped_file::MappedFile, picture::Orientation};

use super::{
    Chooser, Decoder, Decoding, FrameSink, StreamEnd,
    container::Container,
    sample::{PacketTimes, Sampling},
    surface::Surface,
    watch::{Progress, Watch, abandon},
};
use crate::{
    item::Pts,
    stage::{Closed, Reason},
};
use chain::{Chain, Deliver, Listener};
use sample::SampleSurface;

/// Frames of a stream that does not say how long one lasts.
const USUAL_FRAME_NS: i64 = 40_000_000;

/// GStreamer's software decoders.
pub(super) struct GstreamerDecoder {
    threads: u32,
    stall: Duration,
}

impl GstreamerDecoder {
    /// With so many threads inside each decoder; a pass over packets is given up after `stall`.
    pub(super) fn new(threads: u32, stall: Duration) -> Self {
        Self { threads, stall }
    }

    fn packet_times(&self, file: &Arc<MappedFile>, container: Container) -> Result<PacketTimes, Reason> {
        let (found, times) = bounded(1);
        let mut watch = Watch::new(self.stall);
        let packets = Packets { pts: Vec::new(), end: None, found, progress: watch.progress() };
        let reading = Box::new(Chain::start(file, container, Deliver::Packets, packets)?);
        loop {
            match watch.recv(&times) {
                Ok(Some(times)) => return times,
                Ok(None) => (),
                Err(silence) => {
                    abandon(reading);
                    return Err(silence);
                }
            }
        }
    }
}

impl Decoding for Chain {}

impl Decoder for GstreamerDecoder {
    fn start(
        &mut self,
        file: &Arc<MappedFile>,
        sampling: Sampling,
        sink: Box<dyn FrameSink>,
    ) -> Result<Box<dyn Decoding>, Reason> {
        // Late: most runs never need it, and the first time loads all plugins.
        gst::init().map_err(|e| Reason::Unsupported(format!("GStreamer does not start: {e}")))?;
        let container = Container::of(file.bytes());
        if matches!(container, Container::Gif | Container::AnimatedWebp) {
            // libav's GIF demuxer inside GStreamer 1.22 never tells the end of most of them.
            let detail = format!("GStreamer does not decode {} reliably", container.name());
            return Err(Reason::Unsupported(detail));
        }
        if container == Container::Other && is_text(file.bytes()) {
            // It might be a playlist, which decodebin3 would follow to other files and hosts.
            return Err(Reason::Unsupported("a text file".into()));
        }
        let times = if sampling.needs_packets() {
            self.packet_times(file, container)?
        } else {
            PacketTimes::default()
        };
        let pictures = Pictures {
            chooser: Chooser::new(sampling, times, sink),
            keyframes_only: sampling == Sampling::Keyframes,
            orientation: Orientation::default(),
            mark: gst::Caps::new_empty_simple("timestamp/x-clipmill-keyframe"),
            avi_times: (container == Container::Avi).then(VecDeque::new),
            last: None,
            frame_ns: USUAL_FRAME_NS,
            n_packets: 0,
            end: StreamEnd { container: container.name().into(), ..StreamEnd::default() },
        };
        let deliver = Deliver::Pictures { threads: self.threads };
        Ok(Box::new(Chain::start(file, container, deliver, pictures)?))
    }
}

/// Whether a file begins as text does; YUV4MPEG2 does so too.
fn is_text(bytes: &[u8]) -> bool {
    let head = &bytes[..bytes.len().min(64)];
    !head.starts_with(b"YUV4MPEG2") && head.iter().all(|b| matches!(b, b'\t' | b'\n' | b'\r' | 0x20..=0x7E))
}

/// Time of a sample on the player's clock, and how long it lasts. MP4's edit lists and TS's start
/// times are in the segment.
fn stream_time(sample: &gst::Sample) -> (Option<Pts>, Option<i64>) {
    let Some(buffer) = sample.buffer() else { return (None, None) };
    let raw = buffer.pts().or(buffer.dts());
    let nanos = raw.and_then(|time| {
        let segment = sample.segment()?.downcast_ref::<gst::ClockTime>()?;
        let signed = segment.to_stream_time_full(time)?;
        Some(match signed {
            gst::Signed::Positive(t) => t.nseconds() as i64,
            gst::Signed::Negative(t) => -(t.nseconds() as i64),
        })
    });
    (nanos.map(|nanos| Pts { nanos }), buffer.duration().map(|d| d.nseconds() as i64))
}

/// Listens for pictures and hands them on with their times.
struct Pictures {
    chooser: Chooser,
    keyframes_only: bool,
    orientation: Orientation,
    /// What marks keyframe packets. Decoders hand the mark on to the picture.
    mark: gst::Caps,
    /// AVI gives packets no presentation times, and what decoders make up for them goes wrong with
    /// B-frames. Its packets follow one another at an even pace, so the next picture shown has the
    /// next packet's time, whichever packet it came from.
    avi_times: Option<VecDeque<gst::ClockTime>>,
    last: Option<Pts>,
    frame_ns: i64,
    n_packets: u64,
    end: StreamEnd,
}

impl Pictures {
    /// A time for every picture, never going back: a missing one follows its predecessor by a frame.
    fn settle(&mut self, pts: Option<Pts>) -> Pts {
        let settled = match (pts, self.last) {
            (Some(pts), Some(last)) => pts.max(last),
            (Some(pts), None) => pts,
            (None, Some(last)) => Pts { nanos: last.nanos.saturating_add(self.frame_ns) },
            (None, None) => Pts { nanos: 0 },
        };
        self.last = Some(settled);
        settled
    }
}

impl Listener for Pictures {
    fn stream(&mut self, codec: &str, decoder: &str) {
        self.end.codec = codec.into();
        self.end.decoder = decoder.into();
    }

    fn packet(&mut self, packet: &mut gst::Buffer) -> bool {
        let is_delta = packet.flags().contains(gst::BufferFlags::DELTA_UNIT);
        self.n_packets += 1;
        if let Some(times) = &mut self.avi_times {
            times.extend(packet.dts().or(packet.pts()));
        }
        if !is_delta {
            gst::ReferenceTimestampMeta::add(packet.make_mut(), &self.mark, gst::ClockTime::ZERO, None);
        }
        // An AVI is decoded whole even for keyframes alone: without the others, nothing tells when a
        // keyframe behind B-frames is shown.
        !(self.keyframes_only && is_delta && self.avi_times.is_none())
    }

    fn orientation(&mut self, orientation: Orientation) {
        self.orientation = orientation;
    }

    fn sample(&mut self, sample: gst::Sample) -> Result<(), Closed> {
        if self.last.is_none()
            && let Some(s) = sample.caps().and_then(|c| c.structure(0))
        {
            self.end.width = s.get::<i32>("width").unwrap_or(0) as u32;
            self.end.height = s.get::<i32>("height").unwrap_or(0) as u32;
            let fps = s.get::<gst::Fraction>("framerate").unwrap_or(gst::Fraction::new(0, 1));
            if fps.numer() > 0 {
                self.end.fps = f64::from(fps.numer()) / f64::from(fps.denom());
                self.frame_ns = (1e9 / self.end.fps) as i64;
            }
        }
        let is_marked = sample.buffer().is_some_and(|b| {
            b.iter_meta::<gst::ReferenceTimestampMeta>().any(|m| m.reference() == self.mark.as_ref())
        });
        // Without packets, as in raw video, each picture stands for itself.
        let is_keyframe = self.n_packets == 0 || is_marked;
        let (mut pts, lasts) = stream_time(&sample);
        if let Some(time) = self.avi_times.as_mut().and_then(VecDeque::pop_front) {
            pts = Some(Pts { nanos: time.nseconds() as i64 });
        }
        let pts = self.settle(pts);
        self.end.end = Pts { nanos: pts.nanos.saturating_add(lasts.unwrap_or(self.frame_ns)) };
        let surface = Surface::gstreamer(SampleSurface::new(sample), self.orientation);
        self.chooser.picture(pts, is_keyframe, surface)
    }

    fn end(&mut self, end: Result<(), Reason>) {
        let stream = std::mem::take(&mut self.end);
        let result = match end {
            Err(Reason::Corrupt { detail, .. }) => Err(Reason::Corrupt { last_good: self.last, detail }),
            Err(other) => Err(other),
            Ok(_) if self.last.is_none() && self.n_packets > 0 => {
                let detail = format!("none of {} packets could be decoded", self.n_packets);
                Err(Reason::Corrupt { last_good: None, detail })
            }
            Ok(_) if self.last.is_none() => Err(Reason::Empty("the video stream has no frames".into())),
            Ok(()) => Ok(()),
        };
        self.chooser.end(stream, result);
    }
}

/// Listens for packets and keeps their times.
struct Packets {
    pts: Vec<Pts>,
    end: Option<Pts>,
    found: crossbeam_channel::Sender<Result<PacketTimes, Reason>>,
    progress: Progress,
}

impl Listener for Packets {
    fn stream(&mut self, _: &str, _: &str) {}

    fn packet(&mut self, _: &mut gst::Buffer) -> bool {
        true
    }

    fn orientation(&mut self, _: Orientation) {}

    fn sample(&mut self, sample: gst::Sample) -> Result<(), Closed> {
        self.progress.step();
        if let (Some(pts), lasts) = stream_time(&sample) {
            self.pts.push(pts);
            let end = lasts.map(|ns| Pts { nanos: pts.nanos.saturating_add(ns) });
            self.end = self.end.max(end);
        }
        Ok(())
    }

    fn end(&mut self, end: Result<(), Reason>) {
        // A broken file still has the packets before the break.
        let times = match end {
            Err(reason) if self.pts.is_empty() => Err(reason),
            _ => Ok(PacketTimes::new(std::mem::take(&mut self.pts), self.end)),
        };
        // Nobody waits any more once the clip timed out.
        let _ = self.found.send(times);
    }
}
