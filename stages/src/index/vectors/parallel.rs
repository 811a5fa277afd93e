//! Work on ranges of numbers, on all cores.

use std::ops::Range;

/// What `work` gives for each of as many equal ranges of `0..n` as there are cores, in order.
///
/// # Panics
/// As `work` does.
pub(crate) fn parallel<T: Send>(n: usize, work: impl Fn(Range<usize>) -> T + Sync) -> Vec<T> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get()).min(n);
    if cores <= 1 {
        return vec![work(0..n)];
    }
    let bounds = |part: usize| part * n / cores..(part + 1) * n / cores;
    std::thread::scope(|scope| {
        let work = &work;
        let others: Vec<_> = (1..cores).map(|part| scope.spawn(move || work(bounds(part)))).collect();
        let mut found = vec![work(bounds(0))];
        found.extend(
            others
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))),
        );
        found
    })
}
