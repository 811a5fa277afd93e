//! What a person sees while a run works: a bar on a terminal, plain lines elsewhere.

use std::{
    io::{IsTerminal as _, Write as _},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Between plain lines.
const LINE_EVERY: Duration = Duration::from_secs(5);

/// Counts of a run under way, shown as they change.
pub struct Progress {
    bar: Option<ProgressBar>,
    quiet: bool,
    started: Instant,
    told: Instant,
    n_clips: u64,
    total: u64,
    n_frames: u64,
}

impl Progress {
    /// For `total` clips.
    pub fn new(total: u64, quiet: bool) -> Self {
        let on_terminal = !quiet && std::io::stderr().is_terminal();
        let bar = on_terminal.then(|| {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let template = "{bar:30} {pos}/{len} clips  {msg}  {elapsed} gone, {eta} left";
            // A constant template: if it were wrong, the default bar would do.
            bar.set_style(
                ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
            bar.enable_steady_tick(Duration::from_millis(250));
            bar
        });
        let now = Instant::now();
        Self { bar, quiet, started: now, told: now, n_clips: 0, total, n_frames: 0 }
    }

    /// So many clips ended elsewhere: by an earlier run.
    pub fn skip(&mut self, n_clips: u64) {
        self.total = self.total.saturating_sub(n_clips);
        if let Some(bar) = &self.bar {
            bar.set_length(self.total);
        }
    }

    /// A clip ended, with so many rows.
    pub fn clip(&mut self, n_frames: u32) {
        self.n_clips += 1;
        self.n_frames += u64::from(n_frames);
        if let Some(bar) = &self.bar {
            bar.set_position(self.n_clips);
            bar.set_message(format!("{:.0} frames/s", self.frames_per_second()));
        }
    }

    /// A line among the others, above the bar.
    pub fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.suspend(|| eprint_line(text)),
            None => eprint_line(text),
        }
    }

    /// Looks whether a plain line is due.
    pub fn tick(&mut self) {
        if self.bar.is_some() || self.quiet || self.told.elapsed() < LINE_EVERY {
            return;
        }
        self.told = Instant::now();
        let rate = self.n_clips as f64 / self.started.elapsed().as_secs_f64();
        let left = match self.n_clips {
            0 => "unknown time".to_owned(),
            n => format!("{:.0} s", self.total.saturating_sub(n) as f64 / rate),
        };
        eprint_line(&format!(
            "{} of {} clips, {:.1} clips/s, {:.0} frames/s, {left} left",
            self.n_clips,
            self.total,
            rate,
            self.frames_per_second()
        ));
    }

    /// Takes the bar away.
    pub fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn frames_per_second(&self) -> f64 {
        self.n_frames as f64 / self.started.elapsed().as_secs_f64().max(1e-9)
    }
}

/// A line on stderr. One that cannot be written (a log on a full disk) is not worth a run.
pub fn eprint_line(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}
