//! Waiting for a decoder, as long as it makes progress.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError};

use super::Decoding;
use crate::stage::Reason;

/// Counts what a decoder delivers, wanted or not.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress(Arc<AtomicU64>);

impl Progress {
    /// The decoder is alive.
    pub(super) fn step(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Gives a decoder up when it makes no progress for so long.
pub(super) struct Watch {
    progress: Progress,
    stall: Duration,
    n_seen: u64,
    since: Instant,
}

impl Watch {
    pub(super) fn new(stall: Duration) -> Self {
        Self { progress: Progress::default(), stall, n_seen: 0, since: Instant::now() }
    }

    pub(super) fn progress(&self) -> Progress {
        self.progress.clone()
    }

    /// The next message, or nothing for a short while; or, after a silence, what it means.
    pub(super) fn recv<T>(&mut self, from: &Receiver<T>) -> Result<Option<T>, Reason> {
        const LOOK_EVERY: Duration = Duration::from_millis(200);
        match from.recv_timeout(LOOK_EVERY.min(self.stall)) {
            Ok(message) => Ok(Some(message)),
            Err(RecvTimeoutError::Disconnected) => {
                let detail = "the decoder stopped without a word".into();
                Err(Reason::Corrupt { last_good: None, detail })
            }
            Err(RecvTimeoutError::Timeout) => {
                let n = self.progress.count();
                if n != self.n_seen {
                    (self.n_seen, self.since) = (n, Instant::now());
                } else if self.since.elapsed() >= self.stall {
                    let silent_s = self.stall.as_secs_f64();
                    return Err(Reason::TimedOut(format!("silent for {silent_s:.1} s, after {n} steps")));
                }
                Ok(None)
            }
        }
    }

    /// Time spent elsewhere is not the decoder's.
    pub(super) fn rest(&mut self) {
        self.since = Instant::now();
    }
}

/// Leaves a hung decoder to a thread of its own: stopping it may hang as well.
pub(super) fn abandon(mut decoding: Box<dyn Decoding>) {
    decoding.hung();
    std::thread::spawn(move || drop(decoding));
}
