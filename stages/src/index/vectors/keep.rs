//! The best of many scores that err a little.

/// A row that may be among the best.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Candidate {
    pub(crate) score: f32,
    pub(crate) segment: u32,
    /// Of the row, in its segment's lists.
    pub(crate) place: u32,
}

/// Where more rows than this are too alike to be told apart by their codes, any of them will do.
const ALIKE: usize = 1 << 16;

/// Keeps the `want` best and what comes within `margin` of them.
#[derive(Debug)]
pub(crate) struct Keep {
    want: usize,
    margin: f32,
    /// Scores below are not among the best.
    floor: f32,
    found: Vec<Candidate>,
    /// When there are so many, those below the floor are dropped.
    full: usize,
}

impl Keep {
    pub(crate) fn new(want: usize, margin: f32) -> Self {
        Self { want, margin, floor: f32::NEG_INFINITY, found: Vec::new(), full: 2 * want + 64 }
    }

    pub(crate) fn floor(&self) -> f32 {
        self.floor
    }

    #[inline]
    pub(crate) fn push(&mut self, candidate: Candidate) {
        if candidate.score > self.floor {
            self.found.push(candidate);
            if self.found.len() >= self.full {
                self.trim();
            }
        }
    }

    #[cold]
    fn trim(&mut self) {
        let best_first = |a: &Candidate, b: &Candidate| b.score.total_cmp(&a.score);
        if self.found.len() > self.want {
            let (_, last, _) = self.found.select_nth_unstable_by(self.want - 1, best_first);
            self.floor = self.floor.max(last.score - self.margin);
            let floor = self.floor;
            self.found.retain(|c| c.score >= floor);
        }
        let most = 4 * self.want + ALIKE;
        if self.found.len() > most {
            let (_, last, _) = self.found.select_nth_unstable_by(most - 1, best_first);
            self.floor = last.score;
            self.found.truncate(most);
        }
        self.full = 2 * self.found.len().max(self.want) + 64;
    }

    /// All that is kept, the best first.
    pub(crate) fn done(mut self) -> Vec<Candidate> {
        self.trim();
        let order = |c: &Candidate| (c.segment, c.place);
        self.found.sort_unstable_by(|a, b| b.score.total_cmp(&a.score).then(order(a).cmp(&order(b))));
        self.found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_near_the_best_is_kept() {
        // A fixed shuffle of 0, 0.001, …, 4.999.
        let scores = (0..5000u32).map(|i| (i * 1877 % 5000) as f32 / 1000.0);
        for (want, margin, kept) in
            [(1, 0.0, 1), (10, 0.0, 10), (10, 0.0125, 22), (10, 9.0, 5000), (9000, 0.0, 5000)]
        {
            let mut keep = Keep::new(want, margin);
            for (place, score) in scores.clone().enumerate() {
                keep.push(Candidate { score, segment: 0, place: place as u32 });
            }
            let found = keep.done();
            assert_eq!(found.len(), kept, "{want} {margin}");
            for (i, candidate) in found.iter().enumerate() {
                assert_eq!(candidate.score, (4999 - i) as f32 / 1000.0);
            }
        }
    }
}
