//! The end of a run: stage table, bottleneck, last line.

use std::fmt::Write as _;

use crate::runner::{StageMeter, WorkerMeter};

/// How a run's clips ended.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
pub struct Counts {
    /// Entries of the list, after `--limit`.
    pub listed: u64,
    /// With rows, all runs together.
    pub indexed: u64,
    /// Of those, indexed by an earlier run.
    pub indexed_before: u64,
    /// Of those, changed since.
    pub changed: u64,
    /// Of those of this run, with a damaged file whose good part was kept.
    pub damaged: u64,
    /// In `rejects.parquet`, all runs together.
    pub rejected: u64,
    /// Of those, rejected by an earlier run, unchanged since, and not tried again.
    pub rejected_before: u64,
    /// Named more than once in the list.
    pub listed_twice: u64,
    /// Rows of this run.
    pub frames: u64,
}

impl Counts {
    /// Entries of the list that have no end: none, unless the run was stopped.
    pub fn open(&self) -> u64 {
        self.listed.saturating_sub(self.indexed + self.rejected + self.listed_twice)
    }
}

/// A line a stage: what its workers did with their time.
pub fn stage_table(stages: &[StageMeter]) -> String {
    let mut table = String::from("stage    workers    items   busy  starved  blocked   MiB in\n");
    let span = span_ns(stages);
    for stage in stages {
        let sum = stage.sum();
        let [busy, starved, blocked] = shares(stage, span);
        // Writing to a String does not fail.
        let _ = writeln!(
            table,
            "{:<8} {:>7} {:>8} {busy:>5.0}% {starved:>7.0}% {blocked:>7.0}% {:>8.1}",
            stage.stage,
            stage.workers.len(),
            sum.items,
            sum.bytes as f64 / f64::from(1 << 20),
        );
    }
    table
}

/// The time that the longest-living worker lived. A worker that is done early is none of the three.
fn span_ns(stages: &[StageMeter]) -> u64 {
    let lived = |w: &WorkerMeter| w.busy_ns + w.starved_ns + w.blocked_ns;
    stages.iter().flat_map(|s| &s.workers).map(lived).max().unwrap_or(0).max(1)
}

/// Percent busy, starved and blocked of what the stage's workers had.
fn shares(stage: &StageMeter, span_ns: u64) -> [f64; 3] {
    let sum = stage.sum();
    let had = span_ns as f64 * stage.workers.len() as f64;
    [sum.busy_ns, sum.starved_ns, sum.blocked_ns].map(|ns| ns as f64 / had * 100.0)
}

/// The stage that is neither starved nor blocked, in a sentence.
pub fn bottleneck(stages: &[StageMeter]) -> Option<String> {
    let span = span_ns(stages);
    let busy = |stage: &StageMeter| shares(stage, span)[0];
    let slowest = stages.iter().filter(|s| s.sum().items > 0).max_by(|a, b| busy(a).total_cmp(&busy(b)))?;
    if busy(slowest) < 1.0 {
        return None;
    }
    let mut others: Vec<&StageMeter> = stages.iter().filter(|s| s.stage != slowest.stage).collect();
    others.sort_by(|a, b| busy(b).total_cmp(&busy(a)));
    let others: Vec<String> = others.iter().map(|s| format!("{} {:.0} %", s.stage, busy(s))).collect();
    let advice = match slowest.stage {
        "encode" => "a smaller model, fewer frames a clip, or more cores would help",
        "decode" => "try decode.workers, or more cores",
        "load" => "the disk may be the limit; try load.workers",
        _ => "try a faster disk for output.dir",
    };
    Some(format!(
        "{} limits this run: busy {:.0} % of its time ({}); {advice}",
        slowest.stage,
        busy(slowest),
        others.join(", ")
    ))
}

/// 9996 as "9,996".
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The last line.
pub fn summary(counts: &Counts, status: &str, folder: &std::path::Path, wall_s: f64) -> String {
    let mut line =
        format!("{status}: {} of {} clips indexed", grouped(counts.indexed), grouped(counts.listed));
    let notes = [
        (counts.indexed_before, "unchanged from an earlier run"),
        (counts.damaged, "damaged, their good part kept"),
        (counts.changed, "changed or gone since they were indexed"),
    ];
    let notes: Vec<String> =
        notes.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{} {what}", grouped(*n))).collect();
    if !notes.is_empty() {
        let _ = write!(line, " ({})", notes.join("; "));
    }
    if counts.rejected > 0 {
        let path = folder.join("rejects.parquet");
        let before = match counts.rejected_before {
            0 => String::new(),
            n => format!("; {} by an earlier run, not tried again", grouped(n)),
        };
        let _ = write!(line, ", {} rejected ({}{before})", grouped(counts.rejected), path.display());
    }
    if counts.listed_twice > 0 {
        let _ = write!(line, ", {} listed twice", grouped(counts.listed_twice));
    }
    if counts.open() > 0 {
        let _ = write!(line, ", {} not done; run it again to go on", grouped(counts.open()));
    }
    let _ = write!(line, "; {} frames in {wall_s:.1} s", grouped(counts.frames));
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_digits() {
        for (n, want) in [(0, "0"), (999, "999"), (1000, "1,000"), (1_234_567, "1,234,567")] {
            assert_eq!(grouped(n), want);
        }
    }

    #[test]
    fn names_the_stage_that_works_most() {
        let meter = |stage, busy_ns, starved_ns, blocked_ns| StageMeter {
            stage,
            workers: vec![WorkerMeter {
                items: 1,
                busy_ns,
                starved_ns,
                blocked_ns,
                ..WorkerMeter::default()
            }],
        };
        let stages = [
            meter("load", 1, 0, 99),
            meter("decode", 30, 0, 70),
            meter("encode", 97, 3, 0),
            meter("index", 2, 98, 0),
        ];
        let told = bottleneck(&stages).unwrap();
        assert!(
            told.starts_with(
                "encode limits this run: busy 97 % of its time (decode 30 %, index 2 %, load 1 %)"
            ),
            "{told}"
        );
    }
}
