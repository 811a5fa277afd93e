//! `EncodedClip` → `FrameBatch`: the wanted frames, in the model's form.
//!
//! The decoder calls back in a thread of its own; there the wanted pictures are chosen and converted
//! straight from the decoder's planes, so no frame is copied and none that is dropped is touched.
//! Finished batches cross to the worker's thread, which sends them on: GStreamer never waits on an
//! edge, and stopping a clip cannot deadlock.

mod chain;
mod codec;
pub mod container;
mod gif;
pub mod sample;
pub mod software;
mod source;
pub mod surface;

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use kernels::{
    mapped_file::MappedFile,
    picture::Matrix,
    preprocess::{Preprocessor, Recipe},
};

use crate::{
    item::{ClipEnd, ClipRef, EncodedClip, FrameBatch, FrameInfo, Pts},
    stage::{Closed, Emit, Reason, Rejection, Stage, StageError},
    tensors::{TensorBuffer, TensorPool},
};
use container::Container;
use sample::{PacketTimes, Sampler, Sampling};
use surface::Surface;

/// How the decode stage works.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which frames of a clip.
    pub sampling: Sampling,
    /// Threads inside each software decoder; 0 leaves it to the decoder.
    pub threads: u32,
    /// The matrix of streams that name none.
    pub unspecified_matrix: Matrix,
    /// A decoder that delivers nothing for so long is given up.
    pub stall: Duration,
    /// Whether the good part of a damaged clip is kept.
    pub keep_damaged: bool,
    /// Frames of one [`FrameBatch`], at most.
    pub batch_frames: usize,
    /// The model's wishes.
    pub recipe: Recipe,
}

/// Decodes clips: the seam between the stage and GStreamer, one file for each kind of decoder.
pub trait Decoder {
    /// Starts decoding. `sink` gets every picture in presentation order, then the end.
    fn start(
        &mut self,
        file: &Arc<MappedFile>,
        keyframes_only: bool,
        sink: Box<dyn PictureSink>,
    ) -> Result<Box<dyn Decoding>, Reason>;

    /// Starts reading the presentation times of the packets, which go to `found`; `progress` counts them.
    fn packet_times(
        &mut self,
        file: &Arc<MappedFile>,
        found: Sender<Result<PacketTimes, Reason>>,
        progress: Arc<AtomicU64>,
    ) -> Result<Box<dyn Decoding>, Reason>;
}

/// A clip being decoded; dropping it stops that. Receivers of its output go first.
pub trait Decoding: Send {}

/// Takes pictures in the decoder's thread.
pub trait PictureSink: Send {
    /// The next picture; `Closed` stops the decoder.
    fn picture(&mut self, pts: Pts, is_keyframe: bool, surface: Surface) -> Result<(), Closed>;
    /// No more pictures, and why. Called once, last.
    fn end(&mut self, stream: StreamEnd, result: Result<(), Reason>);
}

/// What a decoder knows of a stream when it ends.
#[derive(Clone, Debug)]
pub struct StreamEnd {
    /// Such as `h264`.
    pub codec: String,
    /// Such as `mp4`.
    pub container: String,
    /// Such as `avdec_h264`.
    pub decoder: String,
    /// Samples across of the first picture.
    pub width: u32,
    /// Samples down of the first picture.
    pub height: u32,
    /// By the container; 0 if it does not say.
    pub fps: f64,
    /// When the last picture ends.
    pub end: Pts,
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
            end: Pts { nanos: 0 },
        }
    }
}

/// The decode stage.
pub struct Decode {
    settings: Settings,
    decoder: Box<dyn Decoder>,
    preprocessor: Arc<Mutex<Preprocessor>>,
    pool: TensorPool,
}

impl Decode {
    /// With the decoder that the settings ask for.
    pub fn open(settings: Settings) -> anyhow::Result<Self> {
        let decoder = Box::new(software::SoftwareDecoder::new(settings.threads)?);
        let preprocessor = Arc::new(Mutex::new(Preprocessor::new(settings.recipe.clone())));
        let pool = TensorPool::new(settings.batch_frames * settings.recipe.tensor_len());
        Ok(Self { settings, decoder, preprocessor, pool })
    }

    fn packet_times(&mut self, file: &Arc<MappedFile>) -> Result<PacketTimes, Reason> {
        let (found, times) = bounded(1);
        let mut watch = Watch::new(self.settings.stall);
        let reading = self.decoder.packet_times(file, found, watch.progress.clone())?;
        watch.recv(&times).unwrap_or_else(|silence| {
            abandon(reading);
            Err(silence)
        })
    }

    fn decode(&mut self, item: &EncodedClip, out: &mut dyn Emit<FrameBatch>) -> Result<Finished, Stopped> {
        let sampling = self.settings.sampling;
        let packets =
            if sampling.needs_packets() { self.packet_times(&item.file)? } else { PacketTimes::default() };
        let (events, received) = bounded(2);
        let watch = Watch::new(self.settings.stall);
        let converter = Converter {
            clip: item.clip.clone(),
            sampler: Sampler::new(sampling, packets),
            preprocessor: self.preprocessor.clone(),
            settings: self.settings.clone(),
            pool: self.pool.clone(),
            frames: Vec::new(),
            tensors: None,
            n_sampled: 0,
            lost: None,
            first: None,
            events,
            progress: watch.progress.clone(),
        };
        let decoding =
            self.decoder.start(&item.file, sampling == Sampling::Keyframes, Box::new(converter))?;
        let running = Running { events: received, decoding: Some(decoding) };
        running.forward(out, watch)
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
                Err(Reason::Empty(format!("the sampling rule chose none of {} frames", finished.n_frames)))
            }
            None => Ok(None),
        }
    }
}

impl Stage for Decode {
    type In = EncodedClip;
    type Out = FrameBatch;

    fn process(&mut self, item: EncodedClip, out: &mut dyn Emit<FrameBatch>) -> Result<(), StageError> {
        let clip = item.clip.clone();
        let reject = |reason| Rejection { clip: clip.clone(), stage: "decode", reason };
        let finished = match self.decode(&item, out) {
            Ok(finished) => finished,
            Err(Stopped::Closed(closed)) => return Err(closed.into()),
            Err(Stopped::Reject(reason)) => return Err(reject(reason).into()),
        };
        let damage = self.damage(&finished, item.file.bytes()).map_err(reject)?;
        let Finished { stream, first, n_frames, n_sampled, frames, tensors, .. } = finished;
        tracing::debug!(
            clip = clip.path,
            codec = stream.codec,
            container = stream.container,
            n_frames,
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
            duration_ns: stream.end.nanos - first.map_or(0, |f| f.nanos),
            n_frames,
            n_sampled,
            decoder: stream.decoder,
            damage,
        };
        Ok(out.emit(FrameBatch { clip: item.clip, frames, tensors, end: Some(Box::new(end)) })?)
    }
}

/// A clip's decoder and what comes out of it.
struct Running {
    events: Receiver<Event>,
    decoding: Option<Box<dyn Decoding>>,
}

enum Event {
    Batch(FrameBatch),
    End(Box<Finished>),
}

/// What the converter leaves at the end of a clip.
struct Finished {
    stream: StreamEnd,
    result: Result<(), Reason>,
    first: Option<Pts>,
    n_frames: u32,
    n_sampled: u32,
    lost: Option<(u32, String)>,
    frames: Vec<FrameInfo>,
    tensors: TensorBuffer,
}

/// Why a clip has no end of its own.
enum Stopped {
    Closed(Closed),
    Reject(Reason),
}

impl From<Reason> for Stopped {
    fn from(reason: Reason) -> Self {
        Stopped::Reject(reason)
    }
}

impl Running {
    /// Sends batches on until the clip ends.
    fn forward(mut self, out: &mut dyn Emit<FrameBatch>, mut watch: Watch) -> Result<Finished, Stopped> {
        loop {
            match watch.recv(&self.events) {
                Ok(Event::Batch(batch)) => out.emit(batch).map_err(Stopped::Closed)?,
                Ok(Event::End(finished)) => return Ok(*finished),
                Err(silence) => {
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

/// Leaves a hung decoder to a thread of its own: stopping it may hang as well.
fn abandon(decoding: Box<dyn Decoding>) {
    std::thread::spawn(move || drop(decoding));
}

/// Waits for a decoder, as long as it makes progress.
struct Watch {
    /// What the decoder has delivered, wanted or not.
    progress: Arc<AtomicU64>,
    stall: Duration,
    n_seen: u64,
    since: Instant,
}

impl Watch {
    fn new(stall: Duration) -> Self {
        Self { progress: Arc::default(), stall, n_seen: 0, since: Instant::now() }
    }

    /// The next message; or, after a silence, what it means.
    fn recv<T>(&mut self, from: &Receiver<T>) -> Result<T, Reason> {
        const LOOK_EVERY: Duration = Duration::from_millis(200);
        // Time that we spent elsewhere is not the decoder's.
        self.since = Instant::now();
        loop {
            match from.recv_timeout(LOOK_EVERY.min(self.stall)) {
                Ok(message) => return Ok(message),
                Err(RecvTimeoutError::Disconnected) => {
                    let detail = "the decoder stopped without a word".into();
                    return Err(Reason::Corrupt { last_good: None, detail });
                }
                Err(RecvTimeoutError::Timeout) => {
                    let n = self.progress.load(Ordering::Relaxed);
                    if n != self.n_seen {
                        (self.n_seen, self.since) = (n, Instant::now());
                    } else if self.since.elapsed() >= self.stall {
                        let silent_s = self.stall.as_secs_f64();
                        return Err(Reason::TimedOut(format!(
                            "silent for {silent_s:.1} s, after {n} frames"
                        )));
                    }
                }
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // The decoder may be blocked sending to us. Let go before stopping it.
        self.events = crossbeam_channel::never();
        self.decoding = None;
    }
}

/// Chooses and converts pictures in the decoder's thread.
struct Converter {
    clip: Arc<ClipRef>,
    sampler: Sampler<Surface>,
    preprocessor: Arc<Mutex<Preprocessor>>,
    settings: Settings,
    pool: TensorPool,
    /// The batch being filled, and its tensors.
    frames: Vec<FrameInfo>,
    tensors: Option<TensorBuffer>,
    n_sampled: u32,
    /// Chosen pictures that could not be converted, and what was wrong with the first.
    lost: Option<(u32, String)>,
    first: Option<Pts>,
    events: Sender<Event>,
    progress: Arc<AtomicU64>,
}

impl Converter {
    /// Converts a chosen picture into the batch. One that cannot be read is as good as not decoded.
    fn convert(&mut self, info: FrameInfo, surface: &Surface) -> Result<(), Closed> {
        let len = self.settings.recipe.tensor_len();
        let at = self.frames.len() * len;
        let tensors = self.tensors.get_or_insert_with(|| self.pool.take());
        let mut preprocessor = self.preprocessor.lock().unwrap_or_else(PoisonError::into_inner);
        let converted = surface.with_picture(self.settings.unspecified_matrix, |picture| {
            preprocessor.run(picture, &mut tensors[at..at + len]).map_err(|e| e.to_string())
        });
        drop(preprocessor);
        if let Err(detail) | Ok(Err(detail)) = converted {
            tracing::debug!(clip = self.clip.path, pts = %info.pts, detail, "a picture cannot be converted");
            self.lost.get_or_insert((0, detail)).0 += 1;
            return Ok(());
        }
        self.frames.push(info);
        self.n_sampled += 1;
        if self.frames.len() == self.settings.batch_frames {
            let frames = std::mem::take(&mut self.frames);
            let tensors = self.tensors.take().unwrap_or_default();
            let batch = FrameBatch { clip: self.clip.clone(), frames, tensors, end: None };
            self.events.send(Event::Batch(batch)).map_err(|_| Closed)?;
        }
        Ok(())
    }
}

impl PictureSink for Converter {
    fn picture(&mut self, pts: Pts, is_keyframe: bool, surface: Surface) -> Result<(), Closed> {
        self.progress.fetch_add(1, Ordering::Relaxed);
        self.first.get_or_insert(pts);
        match self.sampler.push(pts, is_keyframe, surface) {
            Some((info, surface)) => self.convert(info, &surface),
            None => Ok(()),
        }
    }

    fn end(&mut self, mut stream: StreamEnd, result: Result<(), Reason>) {
        // Where packets were dropped unseen, the stream ends with the last of them.
        stream.end = stream.end.max(self.sampler.packets_end());
        if let Some((info, surface)) = self.sampler.finish(stream.end) {
            // The worker hears of a closed channel by itself.
            let _ = self.convert(info, &surface);
        }
        let finished = Finished {
            stream,
            result,
            first: self.first,
            n_frames: self.sampler.n_seen(),
            n_sampled: self.n_sampled,
            lost: self.lost.take(),
            frames: std::mem::take(&mut self.frames),
            tensors: self.tensors.take().unwrap_or_default(),
        };
        let _ = self.events.send(Event::End(Box::new(finished)));
    }
}
