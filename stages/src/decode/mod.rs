//! `EncodedClip` → `FrameBatch`: the wanted frames, in the model's form.
//!
//! The decoder calls back in a thread of its own; there the wanted pictures are chosen and converted
//! straight from the decoder's planes, so no frame is copied and none that is dropped is touched.
//! A worker fills batches clip after clip. Full ones cross to the worker's thread, which sends them on:
//! GStreamer never waits on an edge, and stopping a clip cannot deadlock.

mod choose;
pub mod container;
mod convert;
pub mod cores;
mod filling;
mod gstreamer;
mod libav;
pub mod nvdec;
mod room;
pub mod route;
pub mod sample;
mod surface;
mod watch;
mod webp;

use std::{sync::Arc, time::Duration};

use crossbeam_channel::{Receiver, bounded};
use kernels::{
    mapped_file::MappedFile,
    picture::{Matrix, Reading},
    preprocess::Recipe,
};

use crate::{
    item::{ClipEnd, EncodedClip, FrameBatch, FrameInfo, Pts},
    lane::Lane,
    stage::{Closed, Emit, Reason, Rejection, Stage, StageError},
};
use choose::Chooser;
use container::Container;
use convert::{Converter, Event, Finished};
use cores::Cores;
use filling::Filling;
use nvdec::Nvdec;
use room::Room;
use sample::Sampling;
use surface::Surface;
use watch::{Progress, Watch, abandon};

/// Which software decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// FFmpeg's libraries; GStreamer for what they lack.
    Auto,
    /// FFmpeg's libraries alone.
    Libav,
    /// GStreamer's elements alone.
    Gstreamer,
}

/// How the decode stage works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which software decodes.
    pub backend: Backend,
    /// Which frames of a clip.
    pub sampling: Sampling,
    /// Whether only the packets that the chosen frames need are decoded, where that is exact.
    pub plan: bool,
    /// Threads inside each software decoder; 0 gives long clips those that are free.
    pub threads: u32,
    /// What all workers share of the machine.
    pub cores: Cores,
    /// Decoders of a GPU, for what they can decode; [`Backend::Gstreamer`] leaves them out.
    pub nvdec: Option<Nvdec>,
    /// How pictures are read where that is a matter of choice.
    pub reading: Reading,
    /// A decoder that delivers nothing for so long is given up.
    pub stall: Duration,
    /// Whether the good part of a damaged clip is kept. If not, `nvdec` is left out, which tells no damage.
    pub keep_damaged: bool,
    /// Frames of one [`FrameBatch`], at most.
    pub batch_frames: usize,
    /// The model's wishes.
    pub recipe: Recipe,
    /// The GPU that batches are made on, if not on the host.
    pub lane: Option<Lane>,
}

impl Settings {
    /// The usual ones, for a stage that has the machine to itself.
    pub fn new(sampling: Sampling, recipe: Recipe) -> Self {
        Self {
            backend: Backend::Auto,
            sampling,
            plan: true,
            threads: 0,
            cores: Cores::new(std::thread::available_parallelism().map_or(1, |n| n.get())),
            nvdec: None,
            reading: Reading { unspecified: Matrix::Bt601, one_field: true },
            stall: Duration::from_secs(20),
            keep_damaged: true,
            batch_frames: 8,
            recipe,
            lane: None,
        }
    }
}

/// Decodes clips: the seam between the stage and a library, one folder for each.
trait Decoder: Send {
    /// Starts decoding. `sink` gets the frames that `sampling` chooses, in presentation order, then the
    /// end; if starting fails, it is dropped.
    fn start(
        &mut self,
        file: &Arc<MappedFile>,
        sampling: Sampling,
        sink: Box<dyn FrameSink>,
    ) -> Result<Box<dyn Decoding>, Reason>;
}

/// A clip being decoded; dropping it stops that. Receivers of its output go first.
trait Decoding: Send {
    /// It made no progress for too long; it is dropped next.
    fn hung(&mut self) {}
}

/// Takes the chosen frames in the decoder's thread.
trait FrameSink: Send {
    /// Counts what the decoder does, so that silence is noticed.
    fn progress(&self) -> &Progress;
    /// The next frame; `Closed` stops the decoder.
    fn frame(&mut self, info: FrameInfo, surface: Surface) -> Result<(), Closed>;
    /// No more frames, and why. Called once, last.
    fn end(&mut self, stream: StreamEnd, result: Result<(), Reason>);
}

/// What a decoder knows of a stream when it ends.
#[derive(Clone, Debug)]
struct StreamEnd {
    /// Such as `h264`.
    pub codec: String,
    /// Such as `mp4`.
    pub container: String,
    /// Such as `nvdec:h264`, `libav:h264` or `gstreamer:avdec_h264`.
    pub decoder: String,
    /// Samples across of the first picture.
    pub width: u32,
    /// Samples down of the first picture.
    pub height: u32,
    /// By the container; 0 if it does not say.
    pub fps: f64,
    /// When the first picture is shown.
    pub first: Pts,
    /// When the last picture ends.
    pub end: Pts,
    /// Pictures of the clip, whether or not they were decoded.
    pub n_frames: u32,
}

impl Default for StreamEnd {
    fn default() -> Self {
        Self {
            codec: "unknown".into(),
            container: "other".into(),
            decoder: "none".into(),
            width: 0,
            height: 0,
            fps: 0.0,
            first: Pts { nanos: 0 },
            end: Pts { nanos: 0 },
            n_frames: 0,
        }
    }
}

/// The decode stage.
pub struct Decode {
    settings: Settings,
    /// Tried in turn, while they find that they do not support a clip.
    decoders: Vec<Box<dyn Decoder>>,
    filling: Filling,
}

impl Decode {
    /// With the decoders that the settings ask for.
    pub fn open(settings: Settings) -> anyhow::Result<Self> {
        let libav = || -> Box<dyn Decoder> { Box::new(libav::LibavDecoder::new(&settings)) };
        let gstreamer = || -> Box<dyn Decoder> {
            Box::new(gstreamer::GstreamerDecoder::new(settings.threads.max(1), settings.stall))
        };
        let decoders = match settings.backend {
            Backend::Auto => vec![libav(), gstreamer()],
            Backend::Libav => vec![libav()],
            Backend::Gstreamer => vec![gstreamer()],
        };
        let room = Room::open(&settings.recipe, settings.batch_frames, settings.lane.as_ref())?;
        let filling = Filling::new(room, settings.batch_frames);
        Ok(Self { settings, decoders, filling })
    }

    /// Decodes with the first decoder that supports the clip.
    fn decode(&mut self, item: &EncodedClip, out: &mut dyn Emit<FrameBatch>) -> Result<Finished, Stopped> {
        let mut unsupported = None;
        for decoder in &mut self.decoders {
            let (events, received) = bounded(2);
            let watch = Watch::new(self.settings.stall);
            let converter = Converter::new(
                item.clip.clone(),
                self.settings.reading,
                self.filling.clone(),
                events,
                watch.progress(),
            );
            let started = decoder.start(&item.file, self.settings.sampling, Box::new(converter));
            let finished = started.map_err(Stopped::Reject).and_then(|decoding| {
                Running { events: received, decoding: Some(decoding), filling: &self.filling }
                    .forward(out, watch)
            });
            let refused = match &finished {
                Ok(Finished { n_sampled: 0, result: Err(reason), .. }) => reason,
                Err(Stopped::Reject(reason)) => reason,
                _ => return finished,
            };
            // What no header tells is left alone: GStreamer's own detection follows playlists to other files
            // and hosts, and crashes on some.
            let is_known = Container::of(item.file.bytes()).demuxer().is_some();
            match (&unsupported, refused) {
                (None, Reason::Unsupported(_)) if is_known => unsupported = Some(refused.clone()),
                (None, _) => return finished,
                // The first decoder knew best what is wrong.
                (Some(_), _) => (),
            }
        }
        Err(Stopped::Reject(unsupported.unwrap_or_else(|| Reason::Unsupported("no decoder".into()))))
    }

    /// What is wrong with a clip that ended with frames, if anything.
    fn damage(&self, finished: &Finished, bytes: &[u8]) -> Result<Option<String>, Reason> {
        let Finished { stream, result, lost, .. } = finished;
        let cut_off = Container::of(bytes).cut_off(bytes);
        let corrupt = |detail: String| Reason::Corrupt { last_good: Some(stream.end), detail };
        let said = match (result, cut_off, lost) {
            (Err(Reason::Empty(_)), Some(detail), _) => {
                return Err(Reason::Corrupt { last_good: None, detail });
            }
            (Err(reason), ..) => Some((reason.to_string(), reason.clone())),
            (Ok(()), _, Some((n, detail))) => {
                let detail = format!("{n} pictures cannot be converted: {detail}");
                Some((detail.clone(), Reason::Unsupported(detail)))
            }
            (Ok(()), Some(detail), _) => Some((detail.clone(), corrupt(detail))),
            (Ok(()), None, None) => None,
        };
        match said {
            Some((_, reason)) if !self.settings.keep_damaged || finished.n_sampled == 0 => Err(reason),
            Some((detail, _)) => Ok(Some(detail)),
            None if finished.n_sampled == 0 => {
                Err(Reason::Empty(format!("the sampling rule chose none of {} frames", stream.n_frames)))
            }
            None => Ok(None),
        }
    }
}

impl Stage for Decode {
    type In = EncodedClip;
    type Out = FrameBatch;

    fn process(&mut self, item: EncodedClip, out: &mut dyn Emit<FrameBatch>) -> Result<(), StageError> {
        // Of what came before, an end may be left that no further frame drives out.
        self.filling.send_on(out)?;
        let clip = item.clip.clone();
        let reject = |reason| Rejection { clip: clip.clone(), stage: "decode", reason };
        let finished = match self.decode(&item, out) {
            Ok(finished) => finished,
            Err(Stopped::Stage(e)) => return Err(e),
            Err(Stopped::Reject(reason)) => return Err(reject(reason).into()),
        };
        let damage = self.damage(&finished, item.file.bytes()).map_err(reject)?;
        let Finished { stream, n_sampled, .. } = finished;
        tracing::debug!(
            clip = clip.path,
            codec = stream.codec,
            container = stream.container,
            n_frames = stream.n_frames,
            n_sampled,
            damage,
            "decoded"
        );
        let end = ClipEnd {
            identity: item.identity,
            codec: stream.codec,
            container: stream.container,
            width: stream.width,
            height: stream.height,
            fps: stream.fps,
            duration_ns: stream.end.nanos.saturating_sub(stream.first.nanos),
            n_frames: stream.n_frames,
            n_sampled,
            decoder: stream.decoder,
            damage,
        };
        self.filling.lock().end(&item.clip, end);
        Ok(())
    }

    fn idle(&mut self, out: &mut dyn Emit<FrameBatch>) -> Result<(), StageError> {
        self.finish(out)
    }

    fn finish(&mut self, out: &mut dyn Emit<FrameBatch>) -> Result<(), StageError> {
        self.filling.send_all(out)
    }
}

/// A clip's decoder and what comes out of it.
struct Running<'a> {
    events: Receiver<Event>,
    decoding: Option<Box<dyn Decoding>>,
    filling: &'a Filling,
}

/// Why a clip has no end of its own.
enum Stopped {
    /// The worker ends with it.
    Stage(StageError),
    Reject(Reason),
}

impl From<Reason> for Stopped {
    fn from(reason: Reason) -> Self {
        Stopped::Reject(reason)
    }
}

impl Running<'_> {
    /// Sends batches on until the clip ends.
    fn forward(mut self, out: &mut dyn Emit<FrameBatch>, mut watch: Watch) -> Result<Finished, Stopped> {
        loop {
            match watch.recv(&self.events) {
                // Frames of a slow clip, and of those before it, do not wait for its next ones either.
                Ok(Some(Event::Full) | None) => {
                    if self.filling.send_on(out).map_err(Stopped::Stage)? {
                        watch.rest();
                    }
                }
                Ok(Some(Event::End(finished))) => return Ok(*finished),
                Err(silence) => {
                    self.filling.turn();
                    self.events = crossbeam_channel::never();
                    if let Some(decoding) = self.decoding.take() {
                        abandon(decoding);
                    }
                    return Err(silence.into());
                }
            }
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        // The decoder may be blocked sending to us. Let go before stopping it.
        self.events = crossbeam_channel::never();
        self.decoding = None;
    }
}
