//! Bounded channels between stages.
//!
//! An edge limits items and bytes. An item larger than the byte limit is admitted alone, so a badly
//! chosen limit slows a run but cannot hang it. Rejections travel with the items and weigh nothing.

use std::{
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crossbeam_channel::{RecvTimeoutError, TrySendError};
use stages::stage::{Closed, Rejection, Weigh};

use crate::stop::{Stop, Wake};

/// Most that may wait on an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Items and rejections; at least 1.
    pub items: usize,
    /// Bytes by [`Weigh`]; at least 1.
    pub bytes: usize,
}

/// What passes an edge.
#[derive(Debug)]
pub enum Flow<T> {
    /// Work.
    Item(T),
    /// A clip that was dropped upstream.
    Reject(Rejection),
}

struct Parcel<T> {
    flow: Flow<T>,
    charge: usize,
}

/// Room left on an edge.
struct Budget {
    limits: Limits,
    used: Mutex<Used>,
    room: Condvar,
    stop: Stop,
}

#[derive(Default)]
struct Used {
    items: usize,
    bytes: usize,
    most_bytes: usize,
    receivers: usize,
}

impl Budget {
    fn used(&self) -> MutexGuard<'_, Used> {
        // Counters are whole between any two statements: a panic elsewhere does not spoil them.
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Budget {
    fn wake(&self) {
        // Taking the lock orders this after a sleeper's last look at the switch.
        let _used = self.used();
        self.room.notify_all();
    }
}

/// The end of an edge where items go in.
pub struct Sender<T> {
    channel: crossbeam_channel::Sender<Parcel<T>>,
    budget: Arc<Budget>,
}

/// The end of an edge where items come out.
pub struct Receiver<T> {
    channel: crossbeam_channel::Receiver<Parcel<T>>,
    budget: Arc<Budget>,
}

/// A new edge.
pub fn edge<T: Weigh + Send + 'static>(limits: Limits, stop: &Stop) -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = crossbeam_channel::bounded(limits.items.max(1));
    let used = Mutex::new(Used { receivers: 1, ..Used::default() });
    let budget = Arc::new(Budget { limits, used, room: Condvar::new(), stop: stop.clone() });
    let sleeper: Arc<dyn Wake> = budget.clone();
    stop.wakes(Arc::downgrade(&sleeper));
    (Sender { channel: sender, budget: budget.clone() }, Receiver { channel: receiver, budget })
}

impl<T: Weigh> Sender<T> {
    /// Sends, waiting for room; returns how long it waited.
    pub fn send(&self, flow: Flow<T>) -> Result<Duration, Closed> {
        let bytes = match &flow {
            Flow::Item(item) => item.bytes(),
            Flow::Reject(_) => 0,
        };
        let limits = self.budget.limits;
        let charge = bytes.min(limits.bytes);
        let mut waited = Duration::ZERO;
        let mut used = self.budget.used();
        loop {
            if self.budget.stop.is_aborted() || used.receivers == 0 {
                return Err(Closed);
            }
            if used.items < limits.items.max(1) && used.bytes + charge <= limits.bytes {
                break;
            }
            let since = Instant::now();
            used = self.budget.room.wait(used).unwrap_or_else(PoisonError::into_inner);
            waited += since.elapsed();
        }
        used.items += 1;
        used.bytes += charge;
        used.most_bytes = used.most_bytes.max(used.bytes);
        // Under the lock, so that the channel is never fuller than the count; it has room for all.
        match self.channel.try_send(Parcel { flow, charge }) {
            Ok(()) => Ok(waited),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => Err(Closed),
        }
    }
}

impl<T> Receiver<T> {
    /// The next item; `None` once the input has ended. An abort is [`Closed`], never an end.
    pub fn recv(&self) -> Result<Option<Flow<T>>, Closed> {
        loop {
            if let Some(flow) = self.recv_within(Duration::from_secs(3600))? {
                return Ok(flow);
            }
        }
    }

    /// Like [`Receiver::recv`], but `None` outside if nothing came in time.
    pub fn recv_within(&self, time: Duration) -> Result<Option<Option<Flow<T>>>, Closed> {
        // Looked at often enough that an abort is prompt; a blocked receiver holds nothing back.
        const LOOK_EVERY: Duration = Duration::from_millis(50);
        let until = Instant::now() + time;
        loop {
            if self.budget.stop.is_aborted() {
                return Err(Closed);
            }
            let left = until.saturating_duration_since(Instant::now());
            match self.channel.recv_timeout(LOOK_EVERY.min(left)) {
                Ok(Parcel { flow, charge }) => {
                    let mut used = self.budget.used();
                    used.items -= 1;
                    used.bytes -= charge;
                    drop(used);
                    self.budget.room.notify_all();
                    return Ok(Some(Some(flow)));
                }
                // Senders of an aborted run leave as well: that is no end of input.
                Err(RecvTimeoutError::Disconnected) if self.budget.stop.is_aborted() => return Err(Closed),
                Err(RecvTimeoutError::Disconnected) => return Ok(Some(None)),
                Err(RecvTimeoutError::Timeout) if left.is_zero() => return Ok(None),
                Err(RecvTimeoutError::Timeout) => (),
            }
        }
    }

    /// Most bytes that ever waited here.
    pub fn most_bytes(&self) -> usize {
        self.budget.used().most_bytes
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { channel: self.channel.clone(), budget: self.budget.clone() }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        self.budget.used().receivers += 1;
        Self { channel: self.channel.clone(), budget: self.budget.clone() }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        self.budget.used().receivers -= 1;
        self.budget.room.notify_all();
    }
}
