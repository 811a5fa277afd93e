//! Ends a run, gently or at once.

use std::sync::{
    Arc, Mutex, OnceLock, PoisonError, Weak,
    atomic::{AtomicU8, Ordering},
};

const DRAINING: u8 = 1;
const ABORTED: u8 = 2;

/// Something that sleeps until an abort wakes it.
pub trait Wake: Send + Sync {
    /// Called after [`Stop::is_aborted`] turned true.
    fn wake(&self);
}

/// The switch of a run. Clones share it.
#[derive(Clone, Default)]
pub struct Stop(Arc<Inner>);

#[derive(Default)]
struct Inner {
    state: AtomicU8,
    fault: OnceLock<anyhow::Error>,
    sleepers: Mutex<Vec<Weak<dyn Wake>>>,
}

impl Stop {
    /// Reads no new clip; everything in flight is finished and committed.
    pub fn drain(&self) {
        self.0.state.fetch_max(DRAINING, Ordering::SeqCst);
    }

    /// Stops everything now. The first fault wins.
    pub fn abort(&self, fault: anyhow::Error) {
        // A later fault follows from the first.
        let _ = self.0.fault.set(fault);
        self.0.state.fetch_max(ABORTED, Ordering::SeqCst);
        for sleeper in self.0.sleepers.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            if let Some(sleeper) = sleeper.upgrade() {
                sleeper.wake();
            }
        }
    }

    /// Registers what an abort must wake.
    pub fn wakes(&self, sleeper: Weak<dyn Wake>) {
        self.0.sleepers.lock().unwrap_or_else(PoisonError::into_inner).push(sleeper);
    }

    /// Whether no new clip is to be read.
    pub fn is_draining(&self) -> bool {
        self.0.state.load(Ordering::SeqCst) >= DRAINING
    }

    /// Whether everything stops now.
    pub fn is_aborted(&self) -> bool {
        self.0.state.load(Ordering::SeqCst) == ABORTED
    }

    /// The first fault.
    pub fn fault(&self) -> Option<&anyhow::Error> {
        self.0.fault.get()
    }
}
