//! The rule against decoders that are simulated: a mix is not slower than either decoder alone.

use super::{Book, Features, WAYS, Way};

/// Clips of one kind, and what each decoder really takes for one, in milliseconds.
#[derive(Clone, Copy)]
struct Sort {
    codec: &'static str,
    pixels: u64,
    n_pictures: u64,
    ms: [f64; 2],
    /// Whether the GPU fails for each, when its time is over.
    fails: bool,
}

impl Sort {
    fn features(&self) -> Features {
        let Self { codec, pixels, n_pictures, .. } = *self;
        Features { codec, pixels, n_pictures, n_frames: n_pictures }
    }
}

/// A job: its sort and by how much it differs from the mean.
#[derive(Clone, Copy)]
struct Clip {
    sort: Sort,
    noise: f64,
}

/// Decoders of both kinds, and what changes while they work.
struct Machine {
    slots: [usize; 2],
    /// After so many clips, each way takes so many times as long.
    load: fn(usize) -> [f64; 2],
    /// What opening a session costs the first clips of each slot on the GPU, in milliseconds.
    cold_ms: f64,
}

fn clips(sorts: &[Sort], n: usize) -> Vec<Clip> {
    let mut random = 1u64;
    let mut next = || {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as f64 / (1u64 << 31) as f64
    };
    let mut clip = || {
        let sort = sorts[(next() * sorts.len() as f64) as usize];
        // Now and then one that takes long.
        let noise = if next() < 0.01 { 5.0 } else { 0.7 + 0.6 * next() };
        Clip { sort, noise }
    };
    (0..n).map(|_| clip()).collect()
}

impl Machine {
    fn took(&self, i: usize, clip: &Clip, way: Way, n_started: &mut [usize; 2]) -> f64 {
        let w = way as usize;
        n_started[w] += 1;
        let cold = if way == Way::Nvdec && n_started[w] <= self.slots[w] { self.cold_ms } else { 0.0 };
        (clip.sort.ms[w] * clip.noise * (self.load)(i)[w] + cold) / 1e3
    }

    /// Seconds until all clips are decoded, a worker a slot, each taking the next clip when it is free.
    fn run(&self, clips: &[Clip]) -> f64 {
        let mut book = Book::new(self.slots[0], self.slots[1]);
        let (mut now, mut next, mut n_started) = (0.0, 0, [0; 2]);
        let mut waiting: Vec<usize> = Vec::new();
        let mut busy: Vec<(f64, usize, Way)> = Vec::new();
        let n_workers: usize = self.slots.iter().sum();
        loop {
            while waiting.len() + busy.len() < n_workers && next < clips.len() {
                waiting.push(next);
                next += 1;
            }
            waiting.retain(|i| {
                let features = clips[*i].sort.features();
                let Some(way) = book.choose(*i as u64, &features, now) else { return true };
                book.start(*i as u64, &features, way, now);
                busy.push((now + self.took(*i, &clips[*i], way, &mut n_started), *i, way));
                false
            });
            let first = (0..busy.len()).min_by(|a, b| busy[*a].0.total_cmp(&busy[*b].0));
            let Some(first) = first else {
                assert!(waiting.is_empty() && next == clips.len(), "clips wait while nothing is done");
                return now;
            };
            let (at, i, way) = busy.swap_remove(first);
            now = at;
            let features = clips[i].sort.features();
            if way == Way::Nvdec && clips[i].sort.fails {
                book.fail(&features);
                book.end(i as u64, &features, way, false, now);
                book.start(i as u64, &features, Way::Cpu, now);
                busy.push((now + self.took(i, &clips[i], Way::Cpu, &mut n_started), i, Way::Cpu));
                continue;
            }
            book.end(i as u64, &features, way, true, now);
        }
    }

    /// The same with one kind of decoder.
    fn alone(&self, clips: &[Clip], way: Way) -> f64 {
        let mut n_started = [0; 2];
        let mut free = vec![0.0f64; self.slots[way as usize]];
        for (i, clip) in clips.iter().enumerate() {
            let Some(slot) = free.iter_mut().min_by(|a, b| a.total_cmp(b)) else { return f64::INFINITY };
            *slot += self.took(i, clip, way, &mut n_started);
        }
        free.into_iter().fold(0.0, f64::max)
    }
}

const fn sort(codec: &'static str, pixels: u64, n_pictures: u64, nvdec_ms: f64, cpu_ms: f64) -> Sort {
    Sort { codec, pixels, n_pictures, ms: [nvdec_ms, cpu_ms], fails: false }
}

/// The same, but that NVDEC fails after its time.
const fn failing(sort: Sort) -> Sort {
    Sort { fails: true, ..sort }
}

const UCF: Sort = sort("mpeg4", 320 * 240, 180, 30.0, 10.0);
const HD: Sort = sort("h264", 1920 * 1080, 300, 400.0, 1300.0);

/// Clips of a run.
const N: usize = 20_000;

fn steady(_: usize) -> [f64; 2] {
    [1.0; 2]
}

/// Checks that the mix takes at most `share` of what the better decoder takes alone.
fn check(name: &str, sorts: &[Sort], machine: &Machine, share: f64) {
    let clips = clips(sorts, N);
    let mix = machine.run(&clips);
    let [nvdec, cpu] = WAYS.map(|way| machine.alone(&clips, way));
    let better = nvdec.min(cpu);
    assert!(mix <= share * better, "{name}: {:.3} of the better one, {share} wanted", mix / better);
}

#[test]
fn a_mix_is_not_slower_than_either_alone() {
    let machine = |slots| Machine { slots, load: steady, cold_ms: 70.0 };
    // As good as the two together can be: 1 / (1 + what the slower adds).
    check("equal", &[sort("h264", 1 << 16, 100, 10.0, 10.0)], &machine([7, 7]), 0.53);
    check("NVDEC faster", &[HD], &machine([7, 16]), 0.61);
    check("CPU faster", &[UCF], &machine([7, 16]), 0.92);
    // A decoder that is of no use does no harm.
    check("NVDEC useless", &[sort("mpeg4", 1 << 16, 180, 3000.0, 10.0)], &machine([7, 16]), 1.005);
    check("CPU useless", &[sort("hevc", 1 << 23, 300, 20.0, 9000.0)], &machine([7, 16]), 1.005);
    check("one of each", &[UCF], &machine([1, 1]), 0.85);
    check("no sessions", &[UCF], &machine([0, 4]), 1.001);
}

#[test]
fn each_codec_goes_where_it_is_cheaper() {
    let a = sort("mpeg4", 320 * 240, 180, 40.0, 5.0);
    let b = sort("h264", 1280 * 720, 180, 5.0, 40.0);
    let machine = Machine { slots: [4, 4], load: steady, cold_ms: 70.0 };
    // Each alone takes 22.5 ms a clip; the two, each at its own, 2.5 ms.
    check("opposite", &[a, b], &machine, 0.18);
    check("opposite, uneven", &[a, a, a, b], &machine, 0.35);
    let many: Vec<Sort> = (0..6)
        .flat_map(|i| {
            [
                sort("mpeg4", 40_000 << i, 60 << (i % 3), 30.0, 6.0 * f64::from(1 << i)),
                sort("hevc", 40_000 << i, 60 << (i % 3), 10.0, 12.0 * f64::from(1 << i)),
            ]
        })
        .collect();
    check("many kinds", &many, &Machine { slots: [7, 16], load: steady, cold_ms: 70.0 }, 0.43);
}

#[test]
fn a_decoder_that_fails_is_left_alone() {
    let machine = Machine { slots: [8, 8], load: steady, cold_ms: 0.0 };
    let hopeless = failing(sort("mpeg4", 320 * 240, 180, 20.0, 10.0));
    let clips = clips(&[hopeless], N);
    let (mix, cpu) = (machine.run(&clips), machine.alone(&clips, Way::Cpu));
    assert!(mix <= 1.03 * cpu, "{:.3} of the CPU alone", mix / cpu);
}

#[test]
fn what_failed_is_tried_again_later() {
    let mut book = Book::new(1, 1);
    let features = UCF.features();
    let mut clip = |id, fails| {
        let way = book.choose(id, &features, id as f64).unwrap();
        book.start(id, &features, way, id as f64);
        if fails && way == Way::Nvdec {
            book.fail(&features);
        }
        let is_good = way == Way::Cpu || !fails;
        let took_s = if way == Way::Nvdec { 0.05 } else { 0.1 };
        book.end(id, &features, way, is_good, id as f64 + took_s);
        way == Way::Nvdec
    };
    let tried: Vec<u64> = (0..300).filter(|id| clip(*id, true)).collect();
    assert!(tried.len() >= 3 && tried.len() <= 6, "{tried:?}");
    assert!(tried.windows(2).skip(2).all(|w| w[1] - w[0] >= 100), "{tried:?}");
    let n_good = (300..600).filter(|id| clip(*id, false)).count();
    assert!(n_good > 100, "{n_good}");
}

#[test]
fn a_clip_without_a_choice_takes_a_core() {
    let router = super::Router::new(0, 1);
    let noted = router.note(UCF.features(), Way::Cpu);
    let (began, waiting) = (std::time::Instant::now(), router.clone());
    let next = std::thread::spawn(move || waiting.choose(UCF.features(), || ()).finished());
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(!next.is_finished(), "after {:?}", began.elapsed());
    noted.finished();
    next.join().unwrap();
}

#[test]
fn what_changes_is_noticed() {
    // The GPU is taken by another program for the second half, then the CPU in turn.
    let nvdec_slows: fn(usize) -> [f64; 2] = |i| if i < N / 2 { [1.0, 1.0] } else { [10.0, 1.0] };
    let cpu_slows: fn(usize) -> [f64; 2] = |i| if i < N / 2 { [1.0, 1.0] } else { [1.0, 10.0] };
    let nvdec_quickens: fn(usize) -> [f64; 2] = |i| if i < N / 4 { [30.0, 1.0] } else { [1.0, 1.0] };
    let even = sort("h264", 1 << 18, 100, 10.0, 10.0);
    for (name, load, share) in [
        ("NVDEC slows", nvdec_slows, 0.77),
        ("CPU slows", cpu_slows, 0.77),
        ("NVDEC quickens", nvdec_quickens, 0.79),
    ] {
        check(name, &[even], &Machine { slots: [8, 8], load, cold_ms: 70.0 }, share);
    }
}

#[test]
fn a_clip_that_is_lost_keeps_no_place() {
    let router = super::Router::new(1, 0);
    let features = UCF.features();
    let first = router.choose(features, || ());
    assert_eq!(first.way(), Way::Nvdec);
    let waiting = std::thread::spawn({
        let router = router.clone();
        move || router.choose(features, || ()).finished()
    });
    drop(first);
    waiting.join().unwrap();
    router.choose(features, || ()).finished();
}
