//! One GStreamer pipeline for one clip: `source ! demuxer ! [parser !] [decoder !] sink`.
//!
//! Nothing is detected or plugged that the first bytes and the demuxer's caps do not settle: per clip
//! that saves 7 ms against `decodebin`, and its hangs on damaged files. Only what the table of
//! containers does not know goes to `decodebin3`.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gst::prelude::*;
use gstreamer as gst;
use gstreamer_app as gst_app;
use kernels::{mapped_file::MappedFile, picture::Orientation};

use super::{codec::Codec, source::mapped_source};
use crate::{
    decode::container::Container,
    stage::{Closed, Reason},
};

/// Hears what happens in a chain. Called from GStreamer's threads, one call at a time.
pub(super) trait Listener: Send {
    /// The video stream was found; `decoder` is the element that decodes it.
    fn stream(&mut self, codec: &str, decoder: &str);
    /// A packet goes to the decoder; `false` drops it.
    fn packet(&mut self, packet: &mut gst::Buffer) -> bool;
    /// A viewer turns the pictures.
    fn orientation(&mut self, orientation: Orientation);
    /// A picture, or a packet where packets were asked for.
    fn sample(&mut self, sample: gst::Sample) -> Result<(), Closed>;
    /// The stream ended, or it broke. Called once, last.
    fn end(&mut self, end: Result<(), Reason>);
}

/// What a chain delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Deliver {
    /// Decoded pictures, by so many decoder threads.
    Pictures {
        /// 0 leaves it to the decoder.
        threads: u32,
    },
    /// Packets, not decoded.
    Packets,
}

/// A listener that hears one end and nothing after it.
struct Shared<L> {
    listener: L,
    ended: bool,
}

type Ears<L> = Arc<Mutex<Shared<L>>>;

fn lock<L>(ears: &Ears<L>) -> MutexGuard<'_, Shared<L>> {
    // A panic in a listener has already ended its clip; the flag below keeps others out.
    ears.lock().unwrap_or_else(PoisonError::into_inner)
}

fn end<L: Listener>(ears: &Ears<L>, how: Result<(), Reason>) {
    let mut shared = lock(ears);
    if !shared.ended {
        shared.ended = true;
        shared.listener.end(how);
    }
}

/// A running pipeline; dropping it stops it.
///
/// Whoever receives from the listener must let go first: stopping waits for the call under way.
pub(super) struct Chain {
    pipeline: gst::Pipeline,
}

impl Drop for Chain {
    fn drop(&mut self) {
        // Nothing is to be done about an element that will not stop.
        let _ = self.pipeline.set_state(gst::State::Null);
    }
}

impl Chain {
    /// Starts the clip. Everything that happens afterwards goes to `listener`.
    pub(super) fn start<L: Listener + 'static>(
        file: &Arc<MappedFile>,
        container: Container,
        deliver: Deliver,
        listener: L,
    ) -> Result<Self, Reason> {
        let pipeline = gst::Pipeline::new();
        let ears = Arc::new(Mutex::new(Shared { listener, ended: false }));
        let source = mapped_source(file);
        let front = make(container.demuxer().unwrap_or("decodebin3"))?;
        let sink = sink(&ears);
        let linked = pipeline
            .add_many([source.upcast_ref(), &front, sink.upcast_ref()])
            .and_then(|()| source.link(&front));
        linked.map_err(|e| Reason::Unsupported(format!("{}: {e}", front.name())))?;
        on_message(&pipeline, &ears);
        if container.demuxer().is_none() {
            on_decoder(&front, deliver, &ears);
        }
        let plug = Plug { pipeline: pipeline.downgrade(), sink: sink.downgrade(), container, deliver };
        let on_pad = ears.clone();
        front.connect_pad_added(move |_, pad| {
            if let Err(unsupported) = plug.pad(pad, &on_pad) {
                end(&on_pad, Err(Reason::Unsupported(unsupported)));
            }
        });
        let (on_last_pad, weak_sink) = (ears.clone(), sink.downgrade());
        front.connect_no_more_pads(move |_| {
            let unlinked =
                weak_sink.upgrade().and_then(|s| s.static_pad("sink")).is_some_and(|p| !p.is_linked());
            if unlinked {
                end(&on_last_pad, Err(Reason::Unsupported("no video stream".into())));
            }
        });
        let chain = Self { pipeline };
        if chain.pipeline.set_state(gst::State::Playing).is_err() {
            // The cause is on the bus, and so with the listener already; this is for silent failures.
            end(
                &ears,
                Err(Reason::Corrupt { last_good: None, detail: "the pipeline would not start".into() }),
            );
        }
        Ok(chain)
    }
}

fn make(name: &str) -> Result<gst::Element, Reason> {
    gst::ElementFactory::make(name).build().map_err(|_| {
        Reason::Unsupported(format!("needs the GStreamer element {name}, which is not installed"))
    })
}

fn sink<L: Listener + 'static>(ears: &Ears<L>) -> gst_app::AppSink {
    let (on_sample, on_end) = (ears.clone(), ears.clone());
    let callbacks = gst_app::AppSinkCallbacks::builder()
        .new_sample(move |sink| {
            let sample = sink.pull_sample().map_err(|_| gst::FlowError::Eos)?;
            let mut shared = lock(&on_sample);
            if shared.ended || shared.listener.sample(sample).is_err() {
                return Err(gst::FlowError::Eos);
            }
            Ok(gst::FlowSuccess::Ok)
        })
        .eos(move |_| end(&on_end, Ok(())))
        .build();
    let sink = gst_app::AppSink::builder()
        .sync(false)
        .enable_last_sample(false)
        .wait_on_eos(false)
        .max_buffers(4)
        .callbacks(callbacks)
        .build();
    sink.set_qos(false);
    sink
}

/// Links the first video stream; the others stay unlinked.
struct Plug {
    pipeline: gst::glib::WeakRef<gst::Pipeline>,
    sink: gst::glib::WeakRef<gst_app::AppSink>,
    container: Container,
    deliver: Deliver,
}

impl Plug {
    fn pad<L: Listener + 'static>(&self, pad: &gst::Pad, ears: &Ears<L>) -> Result<(), String> {
        let (Some(pipeline), Some(sink)) = (self.pipeline.upgrade(), self.sink.upgrade()) else {
            return Ok(());
        };
        let caps = pad.current_caps().unwrap_or_else(|| pad.query_caps(None));
        if !is_video(&caps) || sink.static_pad("sink").is_some_and(|p| p.is_linked()) {
            return Ok(());
        }
        let codec = Codec::of(&caps)?;
        let mut elements = Vec::new();
        if let Some(parser) = codec.parser
            && (self.container.needs_parser() || !is_framed(&caps))
        {
            elements.push(make(parser).map_err(|e| e.to_string())?);
        }
        let mut decoded_by = codec.decoder.clone().unwrap_or_else(|| "none".into());
        if let (Deliver::Pictures { threads }, Some(decoder)) = (self.deliver, &codec.decoder) {
            let decoder = make(decoder).map_err(|e| e.to_string())?;
            set_threads(&decoder, threads);
            watch_packets(&decoder, ears);
            elements.push(decoder);
        }
        if self.container == Container::Other {
            decoded_by = "decodebin3".into();
        }
        lock(ears).listener.stream(&codec.name, &decoded_by);
        elements.push(sink.upcast());
        let (added, sink) = (&elements[..elements.len() - 1], &elements[elements.len() - 1]);
        let failed = |e: gst::glib::BoolError| format!("{}: {e}", codec.name);
        pipeline.add_many(added).map_err(failed)?;
        gst::Element::link_many(&elements).map_err(failed)?;
        for element in added {
            element.sync_state_with_parent().map_err(failed)?;
        }
        let first = added.first().unwrap_or(sink).static_pad("sink").ok_or("an element without an input")?;
        pad.link(&first).map_err(|e| format!("{}: cannot be linked: {e}", codec.name))?;
        Ok(())
    }
}

fn is_video(caps: &gst::CapsRef) -> bool {
    caps.structure(0).is_some_and(|s| {
        let name = s.name().as_str();
        let original = s.get::<String>("original-media-type").unwrap_or_default();
        name.starts_with("video/") || name.starts_with("image/") || original.starts_with("video/")
    })
}

/// Whether H.264 and H.265 packets are whole pictures that come with their parameter sets.
fn is_framed(caps: &gst::CapsRef) -> bool {
    caps.structure(0).is_some_and(|s| {
        let nal_based = matches!(s.name().as_str(), "video/x-h264" | "video/x-h265");
        let is_whole = s.get::<&str>("alignment") == Ok("au") && s.has_field("codec_data");
        !nal_based || is_whole
    })
}

fn set_threads(decoder: &gst::Element, threads: u32) {
    for property in ["max-threads", "threads", "n-threads"] {
        if decoder.has_property(property) {
            decoder.set_property_from_str(property, &threads.to_string());
        }
    }
    if decoder.has_property("qos") {
        decoder.set_property("qos", false);
    }
}

/// The same for decoders that `decodebin3` picks.
fn on_decoder<L: Listener + 'static>(front: &gst::Element, deliver: Deliver, ears: &Ears<L>) {
    let Some(bin) = front.downcast_ref::<gst::Bin>() else { return };
    let ears = ears.clone();
    let kind = gst::ElementFactoryType::DECODER;
    bin.connect_deep_element_added(move |_, _, element| {
        let is_video =
            |f: &gst::ElementFactory| f.has_type(kind) && !f.has_type(gst::ElementFactoryType::MEDIA_AUDIO);
        if let Deliver::Pictures { threads } = deliver
            && element.factory().is_some_and(|f| is_video(&f))
        {
            set_threads(element, threads);
            watch_packets(element, &ears);
        }
    });
}

fn watch_packets<L: Listener + 'static>(decoder: &gst::Element, ears: &Ears<L>) {
    let ears = ears.clone();
    if let Some(pad) = decoder.static_pad("sink") {
        pad.add_probe(gst::PadProbeType::BUFFER, move |_, info| {
            let is_wanted = info.buffer_mut().is_none_or(|packet| lock(&ears).listener.packet(packet));
            // Not `Drop`, which would have GStreamer drop it a second time.
            if is_wanted { gst::PadProbeReturn::Ok } else { gst::PadProbeReturn::Handled }
        });
    }
}

/// Errors and tags, heard in the thread that posts them.
fn on_message<L: Listener + 'static>(pipeline: &gst::Pipeline, ears: &Ears<L>) {
    let Some(bus) = pipeline.bus() else { return };
    let ears = ears.clone();
    bus.set_sync_handler(move |_, message| {
        match message.view() {
            gst::MessageView::Error(e) => end(&ears, Err(reason(&e.error()))),
            gst::MessageView::Tag(tag) => {
                if let Some(turn) = tag.tags().get::<gst::tags::ImageOrientation>() {
                    lock(&ears).listener.orientation(orientation(turn.get()));
                }
            }
            _ => (),
        }
        gst::BusSyncReply::Drop
    });
}

/// GStreamer's error in our terms. "Internal data stream error" and the like are all it says of most
/// damage.
fn reason(error: &gst::glib::Error) -> Reason {
    use gst::StreamError as S;
    let text = error.message().trim_end_matches('.').to_lowercase();
    if error.matches(S::CodecNotFound) || error.matches(S::Decrypt) || error.matches(S::DecryptNokey) {
        Reason::Unsupported(text)
    } else if error.matches(S::TypeNotFound) || error.matches(S::WrongType) {
        Reason::Unsupported("not a video format that is known here".into())
    } else if text.contains("no playable streams") {
        Reason::Empty("the file holds no stream that can be played".into())
    } else if error.matches(gst::ResourceError::Read) || error.matches(gst::ResourceError::NotFound) {
        Reason::Unreadable(text)
    } else {
        Reason::Corrupt { last_good: None, detail: text }
    }
}

/// GStreamer's image-orientation tag: turned clockwise, then, for `flip-`, mirrored.
fn orientation(tag: &str) -> Orientation {
    let degrees: u32 = tag.rsplit('-').next().and_then(|d| d.parse().ok()).unwrap_or(0);
    let turned = Orientation::rotated((degrees / 90 % 4) as u8);
    if tag.starts_with("flip-") { turned.mirrored() } else { turned }
}
