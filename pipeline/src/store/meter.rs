//! What a person sees while a model comes in: a bar on a terminal, plain lines elsewhere.

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::progress::eprint_line;

/// Between plain lines.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Bytes of a model, as they come.
pub struct Meter {
    bar: Option<ProgressBar>,
    /// Of all files, where every size is known.
    total: Option<u64>,
    n_bytes: u64,
    /// Of these, so many came in this run and tell its speed.
    n_moved: u64,
    started: Instant,
    told: Instant,
}

impl Meter {
    /// For so many bytes, where that is known.
    pub fn new(total: Option<u64>) -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
            let template = match total {
                Some(_) => {
                    "{bar:30} {decimal_bytes} of {decimal_total_bytes}, {decimal_bytes_per_sec}, {eta} left"
                }
                None => "{spinner} {decimal_bytes}, {decimal_bytes_per_sec}",
            };
            // A constant template: if it were wrong, the default bar would do.
            bar.set_style(
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        let now = Instant::now();
        Self { bar, total, n_bytes: 0, n_moved: 0, started: now, told: now }
    }

    /// A line among the others, above the bar.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprint_line(text)),
            None => eprint_line(text),
        }
    }

    /// So many bytes came.
    pub fn moved(&mut self, n: u64) {
        self.n_moved += n;
        self.pass(n);
        if self.bar.is_none() && self.told.elapsed() >= LINE_EVERY {
            self.told = Instant::now();
            let speed = self.n_moved as f64 / self.started.elapsed().as_secs_f64();
            let rest = self.total.map(|total| {
                let left = total.saturating_sub(self.n_bytes) as f64 / speed.max(1.0);
                format!(" of {}, {left:.0} s left", megabytes(total))
            });
            self.line(&format!(
                "{}{} at {}/s",
                megabytes(self.n_bytes),
                rest.unwrap_or_default(),
                megabytes(speed as u64)
            ));
        }
    }

    /// So many bytes were here before.
    pub fn pass(&mut self, n: u64) {
        self.n_bytes += n;
        self.show();
    }

    /// So many bytes count no more: they are fetched again.
    pub fn lost(&mut self, n: u64) {
        self.n_bytes = self.n_bytes.saturating_sub(n);
        self.show();
    }

    fn show(&self) {
        if let Some(bar) = &self.bar {
            bar.set_position(self.n_bytes);
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

/// A size for people.
pub fn megabytes(bytes: u64) -> String {
    match bytes {
        0..1_000 => format!("{bytes} B"),
        1_000..1_000_000 => format!("{:.1} kB", bytes as f64 / 1e3),
        _ => format!("{:.1} MB", bytes as f64 / 1e6),
    }
}
