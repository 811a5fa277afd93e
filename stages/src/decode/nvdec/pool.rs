//! The device's decoders that wait for their next clip.

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, Once, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kernels::ffi::gst_cuda::GstCuda;

use super::{bitstream::Codec, session::Session};

/// Sessions of one device, lent to a clip at a time.
pub(super) struct Pool {
    most: usize,
    /// Shared with whoever has one of its places.
    places: Arc<Places>,
    /// Those that were used last come last.
    idle: Mutex<Vec<Session>>,
    /// What sessions work in: dropped after them.
    cuda: GstCuda,
}

/// How many sessions are open.
#[derive(Default)]
struct Places {
    n_open: Mutex<usize>,
    /// A session was closed, or waits.
    changed: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts a session as long as it is open; clones stand for the same one.
#[derive(Clone)]
pub(in crate::decode) struct Open(Arc<Place>);

struct Place {
    places: Arc<Places>,
    is_left: AtomicBool,
}

impl Open {
    /// Frees the place of a session that is given up: closing it may take for ever.
    pub(in crate::decode) fn leave(&self) {
        self.0.leave();
    }

    fn is_left(&self) -> bool {
        self.0.is_left.load(Ordering::Acquire)
    }
}

impl Place {
    fn leave(&self) {
        if !self.is_left.swap(true, Ordering::AcqRel) {
            *lock(&self.places.n_open) -= 1;
            self.places.changed.notify_all();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.leave();
    }
}

/// Why there is no session.
pub(super) enum Refused {
    /// The clip waited for one, and nobody wants it any more.
    Stopped,
    Failed(String),
}

impl Pool {
    pub(super) fn new(cuda: GstCuda, most: usize) -> Self {
        Self { most, places: Arc::default(), idle: Mutex::default(), cuda }
    }

    pub(super) fn device(&self) -> u32 {
        self.cuda.device()
    }

    /// A session for these caps: one that waits, or a new one while there may be more. To make room, the
    /// one that waited longest is closed. Where all are in use, `wait` is asked now and then whether to go on
    /// waiting.
    pub(super) fn take(&self, codec: Codec, caps: &str, wait: impl Fn() -> bool) -> Result<Session, Refused> {
        /// How often `wait` is asked.
        const ASK_EVERY: Duration = Duration::from_millis(50);
        if self.most == 0 {
            return Err(Refused::Failed("there may be no sessions".into()));
        }
        let open = loop {
            let mut n_open = lock(&self.places.n_open);
            let mut idle = lock(&self.idle);
            if let Some(at) = idle.iter().rposition(|session| session.caps() == caps) {
                return Ok(idle.remove(at));
            }
            if *n_open < self.most {
                *n_open += 1;
                let places = self.places.clone();
                break Open(Arc::new(Place { places, is_left: AtomicBool::new(false) }));
            }
            if !idle.is_empty() {
                let oldest = idle.remove(0);
                // Closing it counts it out, and takes a while.
                drop((idle, n_open));
                drop(oldest);
                continue;
            }
            drop(idle);
            let waited = self.places.changed.wait_timeout(n_open, ASK_EVERY);
            drop(waited.unwrap_or_else(PoisonError::into_inner));
            if !wait() {
                return Err(Refused::Stopped);
            }
        };
        Session::start(&self.cuda, codec, caps, open).map_err(Refused::Failed)
    }

    /// Takes back one that is reset, and nothing but that.
    pub(super) fn give(&self, session: Session) {
        // Another one may have its place by now.
        if session.open().is_left() {
            return drop(session);
        }
        let n_open = lock(&self.places.n_open);
        lock(&self.idle).push(session);
        drop(n_open);
        self.places.changed.notify_all();
    }
}

/// Tells once that sessions are replaced. Why, and for which clips, is told when debugging.
pub(in crate::decode) fn tell_of_failures() {
    static TOLD: Once = Once::new();
    TOLD.call_once(|| tracing::warn!("a decoder of NVDEC's hung or failed and was replaced; told once"));
}

/// Closes a session that failed, in a thread of its own: what failed may hang.
pub(super) fn throw_away(session: Session) {
    session.open().leave();
    std::thread::spawn(move || drop(session));
}
