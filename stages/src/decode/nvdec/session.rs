//! One decoder element, kept through many clips.
//!
//! There is no pipeline around it: its pads are linked to two of ours, so that a packet is pushed and its
//! pictures are taken in the caller's thread, with no queue and no thread of GStreamer's between.
//!
//! What keeps the hardware's session through clips (GStreamer 1.22 and 1.24, read in their source):
//! - the caps stay the same ([`super::bitstream`]), so `gst_video_decoder_setcaps` ignores them;
//! - `SEGMENT_DONE` makes `gst_video_decoder_sink_event_default` drain the element: NVIDIA's parser gets an
//!   end of stream, GStreamer's own ones bump all pictures, and the decoder stays. An `EOS` would close the
//!   pads;
//! - a flush afterwards forgets pictures that never came out. It keeps caps and decoder
//!   (`gst_video_decoder_reset` with `full` unset).
//!
//! Times must rise from picture to picture: after one step back the base class makes up times of its own
//! until it is reset (`reordered_output` in `gst_video_decoder_prepare_finish_frame`). So a picture's time is
//! its rank among the clip's pictures, and a session that delivers anything else is thrown away.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use gst::prelude::*;
use gstreamer as gst;
use gstreamer_video as gst_video;
use kernels::ffi::gst_cuda::{CudaSurface, GstCuda};

use super::{bitstream::Codec, pool::Open};

/// Time from one rank to the next.
const STEP: gst::ClockTime = gst::ClockTime::from_mseconds(1);

/// A decoder on the device, for clips of one codec and size.
pub(super) struct Session {
    element: gst::Element,
    feed: gst::Pad,
    /// Linked to the element, which would have nowhere to deliver without it.
    _taken: gst::Pad,
    out: Arc<Mutex<Out>>,
    caps: String,
    /// Counts it among those that are open.
    open: Open,
    /// Whose context all of it works in: dropped last.
    cuda: GstCuda,
}

/// What the element delivered and said.
#[derive(Default)]
struct Out {
    info: Option<gst_video::VideoInfo>,
    pictures: VecDeque<Delivered>,
    error: Option<String>,
}

/// A picture from the element.
struct Delivered {
    rank: Option<u32>,
    info: Option<gst_video::VideoInfo>,
    buffer: gst::Buffer,
}

fn lock(out: &Mutex<Out>) -> MutexGuard<'_, Out> {
    out.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Session {
    /// Makes the element and opens it; the device's decoder follows with the first picture.
    pub(super) fn start(cuda: &GstCuda, codec: Codec, caps: &str, open: Open) -> Result<Self, String> {
        let element = make(codec, cuda.device())?;
        element.set_context(cuda.context());
        // The first error counts: a picture that is lost is no picture of another time.
        if element.has_property("max-errors") {
            element.set_property("max-errors", 0i32);
        }
        let out: Arc<Mutex<Out>> = Arc::default();
        listen(&element, &out);
        let feed = gst::Pad::builder(gst::PadDirection::Src).name("feed").build();
        let taken = taken(&out)?;
        let linked = |pad: &str| element.static_pad(pad).ok_or("an element without its pads");
        let failed = |e: gst::PadLinkError| format!("{}: {e}", element.name());
        feed.link(&linked("sink")?).map_err(failed)?;
        linked("src")?.link(&taken).map_err(failed)?;
        let activated = feed.set_active(true).and_then(|()| taken.set_active(true));
        activated.map_err(|e| e.to_string())?;
        let session = Self { element, feed, _taken: taken, out, caps: caps.into(), open, cuda: cuda.clone() };
        if session.element.set_state(gst::State::Playing).is_err() {
            return Err(session.fault("the decoder does not start"));
        }
        let caps: gst::Caps = session.caps.parse().map_err(|_| "caps that GStreamer does not read")?;
        let is_taken = session.feed.push_event(gst::event::StreamStart::new("clipmill"))
            && session.feed.push_event(gst::event::Caps::new(&caps))
            && session.begin();
        if is_taken { Ok(session) } else { Err(session.fault("the decoder does not take such pictures")) }
    }

    /// Its place among those that are open.
    pub(super) fn open(&self) -> &Open {
        &self.open
    }

    pub(super) fn caps(&self) -> &str {
        &self.caps
    }

    /// Pushes bytes of the picture that is shown as number `rank`; hidden ones have none.
    pub(super) fn push(&mut self, bytes: Vec<u8>, rank: Option<u32>, is_key: bool) -> Result<(), String> {
        let mut buffer = gst::Buffer::from_mut_slice(bytes);
        if let Some(fields) = buffer.get_mut() {
            fields.set_pts(rank.map(|rank| u64::from(rank) * STEP));
            fields.set_duration(STEP);
            if !is_key {
                fields.set_flags(gst::BufferFlags::DELTA_UNIT);
            }
        }
        self.feed.push(buffer).map(|_| ()).map_err(|flow| self.fault(&format!("the decoder failed ({flow})")))
    }

    /// The next picture and its rank.
    pub(super) fn picture(&mut self) -> Option<Result<(u32, CudaSurface), String>> {
        let Delivered { rank, info, buffer } = lock(&self.out).pictures.pop_front()?;
        let (Some(rank), Some(info)) = (rank, info) else {
            return Some(Err("a picture without a time or without caps".into()));
        };
        Some(
            CudaSurface::map(buffer, &info, &self.cuda)
                .map(|surface| (rank, surface))
                .map_err(|e| e.to_string()),
        )
    }

    /// Makes it deliver all that it holds.
    pub(super) fn drain(&mut self) -> Result<(), String> {
        let done = gst::event::SegmentDone::new(gst::ClockTime::ZERO);
        if self.feed.push_event(done) { Ok(()) } else { Err(self.fault("the decoder cannot be drained")) }
    }

    /// Makes it forget what came, to go on at another keyframe.
    pub(super) fn reset(&mut self) -> Result<(), String> {
        let is_reset = self.feed.push_event(gst::event::FlushStart::new())
            && self.feed.push_event(gst::event::FlushStop::new(true))
            && self.begin();
        lock(&self.out).pictures.clear();
        if is_reset { Ok(()) } else { Err(self.fault("the decoder cannot be flushed")) }
    }

    /// A segment: elements take pictures in segments alone.
    fn begin(&self) -> bool {
        let segment = gst::FormattedSegment::<gst::ClockTime>::new();
        self.feed.push_event(gst::event::Segment::new(&segment))
    }

    /// What the element said, or else `otherwise`.
    fn fault(&self, otherwise: &str) -> String {
        let said = lock(&self.out).error.take();
        said.map_or_else(|| otherwise.into(), |said| format!("{otherwise}: {said}"))
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Nothing is to be done about an element that will not stop.
        let _ = self.element.set_state(gst::State::Null);
    }
}

/// The element for a device.
fn make(codec: Codec, device: u32) -> Result<gst::Element, String> {
    for name in codec.elements(device) {
        let Ok(element) = gst::ElementFactory::make(&name).build() else { continue };
        let id = element.has_property("cuda-device-id").then(|| element.property::<u32>("cuda-device-id"));
        if id.is_none_or(|id| id == device) {
            return Ok(element);
        }
    }
    Err(format!("GPU {device} has no decoder for it"))
}

/// A pad that keeps what comes. It takes pictures in the device's memory alone, so that elements choose it.
fn taken(out: &Arc<Mutex<Out>>) -> Result<gst::Pad, String> {
    let caps = gst::Caps::builder("video/x-raw").features(["memory:CUDAMemory"]).build();
    let template = gst::PadTemplate::new("taken", gst::PadDirection::Sink, gst::PadPresence::Always, &caps);
    let template = template.map_err(|e| e.to_string())?;
    let (on_buffer, on_event) = (out.clone(), out.clone());
    let pad = gst::Pad::builder_from_template(&template)
        .chain_function(move |_, _, buffer| {
            let mut out = lock(&on_buffer);
            let rank = buffer.pts().map(|pts| pts.nseconds() / STEP.nseconds());
            let rank = rank.and_then(|rank| u32::try_from(rank).ok());
            let info = out.info.clone();
            out.pictures.push_back(Delivered { rank, info, buffer });
            Ok(gst::FlowSuccess::Ok)
        })
        .event_function(move |_, _, event| {
            if let gst::EventView::Caps(caps) = event.view() {
                lock(&on_event).info = gst_video::VideoInfo::from_caps(caps.caps()).ok();
            }
            true
        })
        .build();
    Ok(pad)
}

/// Keeps the first error that the element posts.
fn listen(element: &gst::Element, out: &Arc<Mutex<Out>>) {
    let bus = gst::Bus::new();
    let out = out.clone();
    bus.set_sync_handler(move |_, message| {
        if let gst::MessageView::Error(error) = message.view() {
            let text = error.error().message().trim_end_matches('.').to_lowercase();
            lock(&out).error.get_or_insert(text);
        }
        gst::BusSyncReply::Drop
    });
    element.set_bus(Some(&bus));
}
