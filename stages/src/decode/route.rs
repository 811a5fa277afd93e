//! Which decoder takes a clip: the GPU's or the CPU's, by what each took for clips of its kind so far.
//!
//! Each decoder's time has a price, and a clip goes where it is cheapest. The price of one that is idle while
//! the other is full falls, until clips come that it decodes not too badly; so each gets what it does better
//! than the other, and none is idle for long. A decoder that is slow for a clip may hold the last one and
//! make two slower than one: it is used once the run has lasted so long that this cannot cost what it gains.
//! What has not been measured is tried, a few times and then rarely.

#[cfg(test)]
mod simulation;

use std::{
    collections::HashMap,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Who decodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// A session on the GPU.
    Nvdec,
    /// A core.
    Cpu,
}

const WAYS: [Way; 2] = [Way::Nvdec, Way::Cpu];

impl Way {
    fn other(self) -> Self {
        if self == Way::Nvdec { Way::Cpu } else { Way::Nvdec }
    }
}

/// What is known of a clip before it is decoded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Features {
    /// FFmpeg's name.
    pub codec: &'static str,
    /// Samples of a picture.
    pub pixels: u64,
    /// Pictures to be decoded.
    pub n_pictures: u64,
    /// Pictures of the clip.
    pub n_frames: u64,
}

/// Clips that cost about the same for each picture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Kind {
    codec: &'static str,
    /// Logarithm of the picture's size: each step is twice as large.
    size: u32,
    /// Logarithm of the length: a short clip is dominated by its start.
    length: u32,
    /// How many of a clip's pictures are decoded: seeking costs.
    share: u32,
}

impl Kind {
    fn of(features: &Features) -> Self {
        let share = features.n_frames.max(1).div_ceil(features.n_pictures.max(1));
        Self {
            codec: features.codec,
            size: features.pixels.max(1).ilog2(),
            length: features.n_pictures.max(1).ilog2(),
            share: share.min(8).ilog2(),
        }
    }

    fn distance(self, other: Self) -> u32 {
        self.size.abs_diff(other.size) + self.length.abs_diff(other.length) + self.share.abs_diff(other.share)
    }
}

/// Seconds that a picture took.
#[derive(Clone, Copy, Debug)]
struct Cost {
    mean_s: f64,
    n: u32,
    /// Clips of this kind that went the other way since.
    passed: u32,
}

/// Weight of the last clip among many.
const LAST: f64 = 1.0 / 8.0;
/// One clip does not change an estimate by more: the first of a session, or one that swapped.
const MOST_CHANGE: f64 = 4.0;
/// So often a kind is tried before its estimate is believed.
const TRIES: u32 = 3;
/// After so many clips that went elsewhere, an estimate may be out of date.
const STALE: u32 = 100;
/// By how much of its time a run may end later for trying what looks slower.
const CURIOSITY: f64 = 0.03;
/// By how much a price changes, as a logarithm, each time that a clip finds one decoder idle and one full.
const PRICE_STEP: f64 = 0.03;
/// What is so much dearer is still better than to wait.
const PATIENCE: f64 = 2.0;
/// Decoders that differ by more are of no use to each other.
const MOST_PRICE: f64 = 7.0;
/// A picture of which nothing is known.
const UNKNOWN_S: f64 = 1e-3;

/// After so many clips of a kind in a row that NVDEC did not take, the next ones are the CPU's.
const MOST_FAILURES: u32 = 3;

/// How NVDEC fails for a kind.
#[derive(Clone, Copy, Debug, Default)]
struct Failing {
    /// Clips in a row.
    n: u32,
    /// Clips that the CPU decoded since.
    passed: u32,
}

/// A clip under way.
#[derive(Clone, Copy, Debug)]
struct Busy {
    id: u64,
    since: f64,
    expected_s: f64,
}

#[derive(Debug, Default)]
struct Lane {
    n_slots: usize,
    busy: Vec<Busy>,
    /// Who waits for a slot of this lane, in the order of arrival.
    waiting: Vec<u64>,
}

/// The rule, without a clock and without threads.
#[derive(Debug)]
struct Book {
    lanes: [Lane; 2],
    costs: HashMap<(Kind, Way), Cost>,
    /// Kinds whose last clip NVDEC did not take.
    failing: HashMap<Kind, Failing>,
    /// Seconds that clips took longer because they were sent where they seemed slower.
    curious_s: f64,
    /// Logarithm of what a second on the GPU is worth in seconds on the CPU.
    price: f64,
    /// When the first clip came.
    began: Option<f64>,
}

impl Book {
    fn new(sessions: usize, cores: usize) -> Self {
        let lane = |n_slots| Lane { n_slots, ..Lane::default() };
        Self {
            lanes: [lane(sessions), lane(cores)],
            costs: HashMap::new(),
            failing: HashMap::new(),
            curious_s: 0.0,
            price: 0.0,
            began: None,
        }
    }

    fn lane(&mut self, way: Way) -> &mut Lane {
        &mut self.lanes[way as usize]
    }

    fn has_room(&self, way: Way) -> bool {
        let lane = &self.lanes[way as usize];
        lane.busy.len() < lane.n_slots
    }

    /// Whether NVDEC may be asked: not while it fails, if another can decode.
    fn may_use_nvdec(&self, features: &Features) -> bool {
        let fails = |f: &Failing| f.n >= MOST_FAILURES && f.passed < STALE;
        self.lanes[Way::Cpu as usize].n_slots == 0
            || !self.failing.get(&Kind::of(features)).is_some_and(fails)
    }

    /// Seconds that a clip will take: as measured, or by the other way's measure and how the two compare
    /// for the most similar clips of its codec.
    fn expected(&self, features: &Features, way: Way) -> f64 {
        let kind = Kind::of(features);
        let mean = |kind, way| self.costs.get(&(kind, way)).map(|c: &Cost| c.mean_s);
        let ratio = || {
            let known = self.costs.keys().filter(|(k, w)| k.codec == kind.codec && *w == way);
            let both = known.filter_map(|(k, _)| Some((*k, mean(*k, way)? / mean(*k, way.other())?)));
            let nearest =
                both.min_by(|(a, x), (b, y)| kind.distance(*a).cmp(&kind.distance(*b)).then(x.total_cmp(y)));
            nearest.map_or(1.0, |(_, ratio)| ratio)
        };
        let by_other = || mean(kind, way.other()).map(|s| s * ratio());
        mean(kind, way).or_else(by_other).unwrap_or(UNKNOWN_S) * features.n_pictures.max(1) as f64
    }

    /// Where a clip goes now, or nothing if it had better wait.
    fn choose(&mut self, id: u64, features: &Features, now: f64) -> Option<Way> {
        let elapsed_s = now - *self.began.get_or_insert(now);
        WAYS.iter().for_each(|way| self.lane(*way).waiting.retain(|waiting| *waiting != id));
        let room = WAYS.map(|way| self.has_room(way));
        let may_use_nvdec = self.may_use_nvdec(features);
        match room {
            // For clips that it cannot decode, no price is low enough.
            _ if !may_use_nvdec => (),
            [true, false] => self.price -= PRICE_STEP,
            [false, true] => self.price += PRICE_STEP,
            _ => (),
        }
        self.price = self.price.clamp(-MOST_PRICE, MOST_PRICE);
        let expected = WAYS.map(|way| match way {
            Way::Nvdec if !may_use_nvdec => f64::INFINITY,
            _ => self.expected(features, way),
        });
        let done = WAYS.map(|way| self.ready(way, id, expected[way as usize], now) + expected[way as usize]);
        let least = |of: [f64; 2]| if of[0] <= of[1] { Way::Nvdec } else { Way::Cpu };
        let soonest = least(done);
        let later = soonest.other();
        let extra_s = done[later as usize] - done[soonest as usize];
        if room[later as usize] && extra_s.is_finite() && self.is_curious(features, later, extra_s, elapsed_s)
        {
            self.curious_s += extra_s;
            return Some(later);
        }
        let price = [expected[0] * self.price.exp(), expected[1]];
        let mut way = least(price);
        let other = way.other();
        if !room[way as usize]
            && room[other as usize]
            && price[other as usize] <= PATIENCE * price[way as usize]
        {
            way = other;
        }
        // The slower one may end the run: by less than it shortens it, or not at all.
        if way == later && 2.0 * extra_s > elapsed_s * self.share(way, expected) {
            way = soonest;
        }
        if room[way as usize] && self.lanes[way as usize].waiting.iter().all(|waiting| *waiting > id) {
            return Some(way);
        }
        let at = self.lane(way).waiting.partition_point(|waiting| *waiting < id);
        self.lane(way).waiting.insert(at, id);
        None
    }

    /// What part of all such clips a lane decodes, if both are never idle.
    fn share(&self, way: Way, expected: [f64; 2]) -> f64 {
        let rates = WAYS.map(|way| self.lanes[way as usize].n_slots as f64 / expected[way as usize]);
        rates[way as usize] / (rates[0] + rates[1])
    }

    /// Whether a clip is spent on learning. `extra_s` is what that is expected to cost.
    fn is_curious(&self, features: &Features, way: Way, extra_s: f64, elapsed_s: f64) -> bool {
        let kind = Kind::of(features);
        let is_affordable = self.curious_s + extra_s <= CURIOSITY * elapsed_s;
        let is_hinted = self.costs.keys().any(|(k, w)| k.codec == kind.codec && *w == way);
        match self.costs.get(&(kind, way)) {
            None => !is_hinted || is_affordable,
            Some(cost) => (cost.n < TRIES || cost.passed >= STALE) && is_affordable,
        }
    }

    /// When a slot of a lane is free for a clip, those that came before it served.
    fn ready(&self, way: Way, id: u64, expected_s: f64, now: f64) -> f64 {
        let lane = &self.lanes[way as usize];
        if lane.n_slots == 0 {
            return f64::INFINITY;
        }
        let ahead = lane.waiting.iter().filter(|waiting| **waiting < id).count();
        let free = lane.n_slots.saturating_sub(lane.busy.len());
        if ahead < free {
            return now;
        }
        // What is overdue may take as long again.
        let end = |b: &Busy| (b.since + b.expected_s).max(now + (now - b.since - b.expected_s) / 2.0);
        let mut ends: Vec<f64> = lane.busy.iter().map(end).collect();
        ends.sort_by(f64::total_cmp);
        // Clips for which there was no choice may be more than there are slots.
        let turn = ahead - free + ends.len().saturating_sub(lane.n_slots);
        let rounds = turn / ends.len().max(1);
        ends.get(turn % ends.len().max(1)).copied().unwrap_or(now) + rounds as f64 * expected_s
    }

    fn start(&mut self, id: u64, features: &Features, way: Way, now: f64) {
        let expected_s = self.expected(features, way);
        // One clip tries, the others wait for what it finds.
        if let (Way::Nvdec, Some(failing)) = (way, self.failing.get_mut(&Kind::of(features))) {
            failing.passed = 0;
        }
        self.lane(way).busy.push(Busy { id, since: now, expected_s });
    }

    /// A clip ended; what it took counts if it was decoded to its end.
    fn end(&mut self, id: u64, features: &Features, way: Way, is_good: bool, now: f64) {
        let Some(at) = self.lane(way).busy.iter().position(|busy| busy.id == id) else { return };
        let took_s = now - self.lane(way).busy.swap_remove(at).since;
        if is_good {
            self.learn(Kind::of(features), way, took_s / features.n_pictures.max(1) as f64);
        }
    }

    /// NVDEC did not take a clip, or not all of it.
    fn fail(&mut self, features: &Features) {
        let failing = self.failing.entry(Kind::of(features)).or_default();
        *failing = Failing { n: failing.n + 1, passed: 0 };
    }

    fn learn(&mut self, kind: Kind, way: Way, took_s: f64) {
        if let Some(other) = self.costs.get_mut(&(kind, way.other())) {
            other.passed += 1;
        }
        match way {
            Way::Nvdec => _ = self.failing.remove(&kind),
            Way::Cpu => self.failing.get_mut(&kind).into_iter().for_each(|failing| failing.passed += 1),
        }
        let new = Cost { mean_s: took_s, n: 0, passed: 0 };
        let cost = self.costs.entry((kind, way)).or_insert(new);
        // The second sets the first right whatever it was: the first may have opened a session.
        let took_s = match cost.n {
            0 | 1 => took_s,
            _ => took_s.clamp(cost.mean_s / MOST_CHANGE, cost.mean_s * MOST_CHANGE),
        };
        cost.mean_s = match cost.n {
            0 => took_s,
            1 => took_s.min(cost.mean_s),
            n => cost.mean_s + (took_s - cost.mean_s) * LAST.max(1.0 / f64::from(n)),
        };
        (cost.n, cost.passed) = (cost.n + 1, 0);
    }
}

/// Chooses for all workers of a run. Clones share what they learn.
#[derive(Clone, Debug)]
pub struct Router(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    book: Mutex<(Book, u64)>,
    changed: Condvar,
    since: Instant,
}

impl Router {
    /// For so many sessions on the GPU and so many cores.
    pub fn new(sessions: usize, cores: usize) -> Self {
        Self(Arc::new(Shared {
            book: Mutex::new((Book::new(sessions, cores), 0)),
            changed: Condvar::new(),
            since: Instant::now(),
        }))
    }

    fn lock(&self) -> MutexGuard<'_, (Book, u64)> {
        self.0.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> f64 {
        self.0.since.elapsed().as_secs_f64()
    }

    /// Chooses for a clip, and waits for its turn. `step` is called now and then.
    pub(super) fn choose(&self, features: Features, step: impl Fn()) -> Ticket {
        /// So that estimates that turn out wrong keep nobody waiting.
        const LOOK_AGAIN: Duration = Duration::from_millis(50);
        let mut book = self.lock();
        book.1 += 1;
        let id = book.1;
        loop {
            let now = self.now();
            if let Some(way) = book.0.choose(id, &features, now) {
                book.0.start(id, &features, way, now);
                return Ticket { router: self.clone(), id, features, way, is_open: true };
            }
            step();
            let waited = self.0.changed.wait_timeout(book, LOOK_AGAIN);
            book = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Notes a clip for which there is no choice.
    pub(super) fn note(&self, features: Features, way: Way) -> Ticket {
        let mut book = self.lock();
        book.1 += 1;
        let id = book.1;
        let now = self.now();
        book.0.start(id, &features, way, now);
        Ticket { router: self.clone(), id, features, way, is_open: true }
    }
}

/// A clip on its way. Dropping it frees the place; what it took counts if it was [`Ticket::finished`].
#[derive(Debug)]
pub(super) struct Ticket {
    router: Router,
    id: u64,
    features: Features,
    way: Way,
    is_open: bool,
}

impl Ticket {
    pub(super) fn way(&self) -> Way {
        self.way
    }

    /// The clip was decoded to its end.
    pub(super) fn finished(mut self) {
        self.close(true);
    }

    /// The decoder did not take the clip, or not all of it.
    pub(super) fn failed(mut self) {
        if self.way == Way::Nvdec {
            self.router.lock().0.fail(&self.features);
        }
        self.close(false);
    }

    fn close(&mut self, is_good: bool) {
        if std::mem::take(&mut self.is_open) {
            let now = self.router.now();
            self.router.lock().0.end(self.id, &self.features, self.way, is_good, now);
            self.router.0.changed.notify_all();
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.close(false);
    }
}
