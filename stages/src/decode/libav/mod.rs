//! Decoding on the CPU by FFmpeg's libraries: the fast way.
//!
//! Packets are read first where the sampling rule leaves frames out: their times say which frames it
//! will choose ([`survey`], [`plan`]), and only what those need is decoded. A stream that turns out
//! otherwise than its packets promised is decoded whole.

pub(super) mod clip;
mod codec;
pub(super) mod packets;
pub(super) mod plan;
mod survey;
mod timeline;

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use crossbeam_channel::{Sender, unbounded};
use kernels::{mapped_file::MappedFile, picture::Reading};

use super::{
    Decoder, Decoding, FrameSink, Settings, StreamEnd, cores::Cores, nvdec::Nvdec, sample::Sampling,
    surface::Surface, watch::Progress,
};
use crate::{
    item::FrameInfo,
    stage::{Closed, Reason},
};
use clip::{Job, Slot};

/// A thread that decodes one clip after another.
pub(super) struct LibavDecoder {
    plan: bool,
    threads: u32,
    cores: Cores,
    reading: Reading,
    nvdec: Option<Nvdec>,
    worker: Option<Worker>,
}

struct Worker {
    jobs: Sender<Job>,
    thread: JoinHandle<()>,
    /// Set while a clip is decoded.
    is_busy: Arc<AtomicBool>,
}

/// The clip under way; dropping it makes its reads fail, its frames are not taken any more.
struct UnderWay {
    stop: Arc<AtomicBool>,
    slot: Slot,
}

impl Decoding for UnderWay {
    fn hung(&mut self) {
        self.slot.hung();
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.slot.give_up();
    }
}

impl LibavDecoder {
    pub(super) fn new(settings: &Settings) -> Self {
        let Settings { plan, threads, cores, reading, nvdec, keep_damaged, .. } = settings.clone();
        // The device conceals damage without a word.
        let nvdec = nvdec.filter(|_| keep_damaged);
        Self { plan, threads, cores, reading, nvdec, worker: None }
    }
}

impl Decoder for LibavDecoder {
    fn start(
        &mut self,
        file: &Arc<MappedFile>,
        sampling: Sampling,
        sink: Box<dyn FrameSink>,
    ) -> Result<Box<dyn Decoding>, Reason> {
        // A worker that is still busy was given up: it ends by itself, if ever. A panic may have ended it.
        let can_work = |w: &Worker| !w.is_busy.load(Ordering::Acquire) && !w.thread.is_finished();
        self.worker = self.worker.take().filter(can_work);
        let (stop, slot) = (Arc::new(AtomicBool::new(false)), Slot::default());
        let worker = self.worker.get_or_insert_with(Worker::start);
        let job = Job {
            file: file.clone(),
            sampling,
            plan: self.plan,
            threads: self.threads,
            cores: self.cores.clone(),
            reading: self.reading,
            nvdec: self.nvdec.clone(),
            slot: slot.clone(),
            stop: stop.clone(),
            sink: Box::new(Ending { sink, is_busy: worker.is_busy.clone() }),
        };
        worker.is_busy.store(true, Ordering::Release);
        worker.jobs.send(job).map_err(|_| Reason::Corrupt {
            last_good: None,
            detail: "the decoder's thread is gone".into(),
        })?;
        Ok(Box::new(UnderWay { stop, slot }))
    }
}

/// Tells that the worker is free before it tells the clip's end, which brings the next clip.
struct Ending {
    sink: Box<dyn FrameSink>,
    is_busy: Arc<AtomicBool>,
}

impl FrameSink for Ending {
    fn progress(&self) -> &Progress {
        self.sink.progress()
    }

    fn frame(&mut self, info: FrameInfo, surface: Surface) -> Result<(), Closed> {
        self.sink.frame(info, surface)
    }

    fn end(&mut self, stream: StreamEnd, result: Result<(), Reason>) {
        self.is_busy.store(false, Ordering::Release);
        self.sink.end(stream, result);
    }
}

impl Worker {
    fn start() -> Self {
        let (jobs, received) = unbounded::<Job>();
        let thread = thread::spawn(move || received.into_iter().for_each(clip::decode));
        Self { jobs, thread, is_busy: Arc::default() }
    }
}
