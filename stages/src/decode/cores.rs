//! What the decoders of a run share of the machine.

use std::sync::{
    Arc,
    atomic::{AtomicI64, Ordering},
};

/// Counts the cores that no decoder uses. Clones share the count.
///
/// A clip always gets one thread, and a long one further threads while cores are free: at the end of a
/// run, say, when the other workers have nothing left.
#[derive(Clone, Debug)]
pub struct Cores {
    free: Arc<AtomicI64>,
}

/// Cores in use by one clip, until dropped.
#[derive(Debug)]
pub(super) struct Taken {
    free: Arc<AtomicI64>,
    n: i64,
}

/// Samples that one thread decodes in about as long as threads take to pay: a second of 1080p.
const WORTH_A_THREAD: u64 = 50_000_000;
/// Of smaller pictures, threads inside a decoder wait for one another more than they work: twice the CPU
/// time on 320×240 MPEG-4.
const SMALL_PICTURE: u64 = 640 * 360;
/// More threads in one decoder wait for one another.
const MOST_THREADS: u64 = 16;

impl Cores {
    /// So many, all free.
    pub fn new(n: usize) -> Self {
        Self { free: Arc::new(AtomicI64::new(n as i64)) }
    }

    /// For a clip: one core, whether or not it is free.
    pub(super) fn take(&self) -> Taken {
        self.free.fetch_sub(1, Ordering::Relaxed);
        Taken { free: self.free.clone(), n: 1 }
    }
}

impl Taken {
    /// Takes what is free for so many pictures of so many samples, if they are worth it.
    pub(super) fn more(&mut self, n_pictures: u64, samples: u64) {
        let is_small = samples < SMALL_PICTURE;
        let n_samples = if is_small { 0 } else { n_pictures.saturating_mul(samples) };
        let wanted = (n_samples / WORTH_A_THREAD).min(MOST_THREADS) as i64 - self.n;
        let mut free = self.free.load(Ordering::Relaxed);
        while wanted > 0 && free > 0 {
            let more = free.min(wanted);
            match self.free.compare_exchange(free, free - more, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => {
                    self.n += more;
                    break;
                }
                Err(now) => free = now,
            }
        }
    }

    pub(super) fn threads(&self) -> u32 {
        self.n as u32
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.free.fetch_add(self.n, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_clips_take_what_is_free() {
        let cores = Cores::new(4);
        let take = |n_pictures, samples| {
            let mut taken = cores.take();
            taken.more(n_pictures, samples);
            taken
        };
        let short = take(30, 1280 * 720);
        assert_eq!(short.threads(), 1);
        assert_eq!(take(200_000, 320 * 240).threads(), 1);
        let long = take(3600, 1920 * 1080);
        assert_eq!(long.threads(), 3);
        // More workers than cores: each clip still gets its thread.
        let another = take(u64::MAX, 1 << 40);
        assert_eq!(another.threads(), 1);
        drop((short, long, another));
        assert_eq!(take(75, 1920 * 1080).threads(), 3);
        assert_eq!(cores.free.load(Ordering::Relaxed), 4);
    }
}
