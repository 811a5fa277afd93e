//! Decoding on the CPU by FFmpeg's libraries: the fast way.
//!
//! Packets are read first where the sampling rule leaves frames out: their times say which frames it
//! will choose ([`survey`], [`plan`]), and only what those need is decoded. A stream that turns out
//! otherwise than its packets promised is decoded whole.

mod clip;
mod codec;
mod packets;
mod plan;
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
use kernels::mapped_file::MappedFile;

use super::{
    Decoder, Decoding, FrameSink, Settings, StreamEnd, cores::Cores, sample::Sampling, surface::Surface,
    watch::Progress,
};
use crate::{
    item::FrameInfo,
    stage::{Closed, Reason},
};
use clip::Job;

/// A thread that decodes one clip after another.
pub(super) struct LibavDecoder {
    plan: bool,
    threads: u32,
    cores: Cores,
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
}

impl Decoding for UnderWay {}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

impl LibavDecoder {
    pub(super) fn new(settings: &Settings) -> Self {
        let Settings { plan, threads, cores, .. } = settings;
        Self { plan: *plan, threads: *threads, cores: cores.clone(), worker: None }
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
        let stop = Arc::new(AtomicBool::new(false));
        let worker = self.worker.get_or_insert_with(Worker::start);
        let job = Job {
            file: file.clone(),
            sampling,
            plan: self.plan,
            threads: self.threads,
            cores: self.cores.clone(),
            stop: stop.clone(),
            sink: Box::new(Ending { sink, is_busy: worker.is_busy.clone() }),
        };
        worker.is_busy.store(true, Ordering::Release);
        worker.jobs.send(job).map_err(|_| Reason::Corrupt {
            last_good: None,
            detail: "the decoder's thread is gone".into(),
        })?;
        Ok(Box::new(UnderWay { stop }))
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

    fn frame(&mut self, info: FrameInfo, surface: &Surface) -> Result<(), Closed> {
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
