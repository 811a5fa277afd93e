//! One thread per worker: opens its stage, feeds it, measures it, joins it.

use std::{
    panic::AssertUnwindSafe,
    sync::Arc,
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, anyhow};
use serde::Serialize;
use stages::stage::{Closed, Emit, Rejection, Stage, StageError, Weigh};

use crate::{
    edge::{Flow, Receiver, Sender},
    stop::Stop,
};

/// Name of the thread that is no stage.
const FEED: &str = "feed";

/// A stage without input for so long hears of it.
const IDLE_AFTER: Duration = Duration::from_millis(200);

/// What a worker did with its time. Kept by the runner, never by a stage.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct WorkerMeter {
    /// Items taken in.
    pub items: u64,
    /// Bytes of them.
    pub bytes: u64,
    /// Clips that ended here.
    pub rejects: u64,
    /// At work.
    pub busy_ns: u64,
    /// Waiting for input.
    pub starved_ns: u64,
    /// Waiting for room downstream.
    pub blocked_ns: u64,
    /// Opening the stage: loading a model, say. Not part of the above.
    pub open_ns: u64,
}

/// The meters of a stage's workers.
#[derive(Clone, Debug, Serialize)]
pub struct StageMeter {
    /// `load`, `decode`, `encode` or `index`.
    pub stage: &'static str,
    /// One a worker.
    pub workers: Vec<WorkerMeter>,
}

impl StageMeter {
    /// All workers together.
    pub fn sum(&self) -> WorkerMeter {
        let mut sum = WorkerMeter::default();
        for w in &self.workers {
            sum.items += w.items;
            sum.bytes += w.bytes;
            sum.rejects += w.rejects;
            sum.busy_ns += w.busy_ns;
            sum.starved_ns += w.starved_ns;
            sum.blocked_ns += w.blocked_ns;
            sum.open_ns += w.open_ns;
        }
        sum
    }
}

/// The threads of a run.
pub struct Runner {
    stop: Stop,
    threads: Vec<(&'static str, JoinHandle<WorkerMeter>)>,
}

/// What a stage emits into: the edge, timed.
struct Outlet<'a, T> {
    edge: &'a Sender<T>,
    blocked: Duration,
    rejects: u64,
}

impl<T: Weigh> Emit<T> for Outlet<'_, T> {
    fn emit(&mut self, item: T) -> Result<(), Closed> {
        self.blocked += self.edge.send(Flow::Item(item))?;
        Ok(())
    }

    fn reject(&mut self, rejection: Rejection) -> Result<(), Closed> {
        self.blocked += self.edge.send(Flow::Reject(rejection))?;
        Ok(())
    }
}

impl Runner {
    /// No threads yet.
    pub fn new(stop: Stop) -> Self {
        Self { stop, threads: Vec::new() }
    }

    /// Starts `workers` threads, each opening its own stage.
    pub fn spawn<S: Stage>(
        &mut self,
        name: &'static str,
        workers: usize,
        input: Receiver<S::In>,
        output: Sender<S::Out>,
        open: impl Fn() -> Result<S> + Send + Sync + 'static,
    ) -> Result<()> {
        let open = Arc::new(open);
        for worker in 0..workers {
            let (input, open) = (input.clone(), open.clone());
            self.thread(name, worker, output.clone(), move |out, meter| work(&*open, &input, out, meter))?;
        }
        Ok(())
    }

    /// Starts a thread that fills the first edge and belongs to no stage.
    pub fn feed<T: Weigh + Send + 'static>(
        &mut self,
        output: Sender<T>,
        body: impl FnOnce(&Sender<T>) -> Result<(), StageError> + Send + 'static,
    ) -> Result<()> {
        self.thread(FEED, 0, output, move |out, _| body(out))
    }

    /// The thread owns `output` and drops it last: after an abort, so that downstream cannot take a
    /// crash for the end of input.
    fn thread<T: Weigh + Send + 'static>(
        &mut self,
        name: &'static str,
        worker: usize,
        output: Sender<T>,
        body: impl FnOnce(&Sender<T>, &mut WorkerMeter) -> Result<(), StageError> + Send + 'static,
    ) -> Result<()> {
        let stop = self.stop.clone();
        let run = move || {
            let mut meter = WorkerMeter::default();
            let _span = tracing::info_span!("worker", stage = name, worker).entered();
            tracing::debug!("starts");
            let fault = match std::panic::catch_unwind(AssertUnwindSafe(|| body(&output, &mut meter))) {
                Ok(Err(StageError::Fatal(e))) => Some(e.context(format!("stage {name}"))),
                Ok(_) => None,
                Err(panic) => {
                    let said = panic.downcast_ref::<String>().map(String::as_str);
                    let said = said.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
                    Some(anyhow!("stage {name} panicked: {said}"))
                }
            };
            tracing::debug!(items = meter.items, rejects = meter.rejects, "ended");
            if let Some(fault) = fault {
                stop.abort(fault);
            }
            meter
        };
        let thread = std::thread::Builder::new().name(format!("{name}-{worker}")).spawn(run);
        self.threads.push((name, thread.context("cannot start a thread")?));
        Ok(())
    }

    /// Waits for all threads and gives their meters, stage by stage in the order they were started.
    pub fn join(self) -> Vec<StageMeter> {
        let mut stages: Vec<StageMeter> = Vec::new();
        for (name, thread) in self.threads {
            let meter = thread.join().unwrap_or_default();
            match stages.last_mut().filter(|s| s.stage == name) {
                _ if name == FEED => (),
                Some(stage) => stage.workers.push(meter),
                None => stages.push(StageMeter { stage: name, workers: vec![meter] }),
            }
        }
        stages
    }
}

fn work<S: Stage>(
    open: &dyn Fn() -> Result<S>,
    input: &Receiver<S::In>,
    output: &Sender<S::Out>,
    meter: &mut WorkerMeter,
) -> Result<(), StageError> {
    let opening = Instant::now();
    let mut stage = open()?;
    meter.open_ns = opening.elapsed().as_nanos() as u64;
    let mut out = Outlet { edge: output, blocked: Duration::ZERO, rejects: 0 };
    let mut ended = Ok(());
    loop {
        let (waiting, mut idle) = (Instant::now(), Duration::ZERO);
        let flow = match input.recv_within(IDLE_AFTER)? {
            Some(flow) => flow,
            None => {
                let (working, blocked_before) = (Instant::now(), out.blocked);
                stage.idle(&mut out)?;
                add_busy(meter, working, out.blocked - blocked_before);
                idle += working.elapsed();
                input.recv()?
            }
        };
        meter.starved_ns += (waiting.elapsed() - idle).as_nanos() as u64;
        let Some(flow) = flow else { break };
        let (working, blocked_before) = (Instant::now(), out.blocked);
        let done = match flow {
            Flow::Item(item) => {
                meter.items += 1;
                meter.bytes += item.bytes() as u64;
                stage.process(item, &mut out)
            }
            Flow::Reject(rejection) => stage.rejected(rejection, &mut out),
        };
        let done = match done {
            Err(StageError::Reject(rejection)) => {
                out.rejects += 1;
                out.reject(*rejection).map_err(StageError::from)
            }
            other => other,
        };
        add_busy(meter, working, out.blocked - blocked_before);
        if done.is_err() {
            ended = done;
            break;
        }
    }
    if ended.is_ok() {
        let (working, blocked_before) = (Instant::now(), out.blocked);
        ended = stage.finish(&mut out);
        add_busy(meter, working, out.blocked - blocked_before);
    }
    meter.blocked_ns = out.blocked.as_nanos() as u64;
    meter.rejects = out.rejects;
    ended
}

fn add_busy(meter: &mut WorkerMeter, since: Instant, blocked: Duration) {
    meter.busy_ns += since.elapsed().saturating_sub(blocked).as_nanos() as u64;
}
