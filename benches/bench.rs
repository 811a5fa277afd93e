//! What the benches share: clocks, a table, and the file that keeps the results.
//!
//! CPU seconds are compared, not wall seconds: they hardly depend on what else the machine does. A
//! ratio of two of them from one run is what a figure is worth.

pub mod gpu;
pub mod vectors;

use std::{fs, path::PathBuf, process::Command};

use anyhow::{Context as _, Result};
use serde::Serialize;

/// The program, built beside the benches: it measures engines in processes of its own.
pub fn program() -> Option<PathBuf> {
    Some(std::env::current_exe().ok()?.parent()?.parent()?.join("clipmill"))
}

/// One measured thing.
#[derive(Clone, Debug, Serialize)]
pub struct Case {
    /// Such as `decode, every_ms=500`.
    pub name: String,
    /// What is counted: `clips`, `frames`, `items`.
    pub unit: &'static str,
    /// How many.
    pub n: u64,
    /// CPU seconds for all.
    pub cpu_s: f64,
    /// Wall seconds for all.
    pub wall_s: f64,
}

impl Case {
    /// Measures `work`, which returns how many units it did. Counts all threads of the process.
    pub fn measure(name: &str, unit: &'static str, work: impl FnOnce() -> Result<u64>) -> Result<Self> {
        let (cpu, wall) = (pipeline::run::cpu_seconds(), std::time::Instant::now());
        let n = work().with_context(|| format!("bench {name}"))?;
        let (cpu_s, wall_s) = (pipeline::run::cpu_seconds() - cpu, wall.elapsed().as_secs_f64());
        let case = Self { name: name.to_owned(), unit, n, cpu_s, wall_s };
        print(&format!(
            "{:<34} {:>8} {:<7} {:>10.1} per s {:>10.1} per CPU s {:>9.3} CPU ms each",
            case.name,
            case.n,
            case.unit,
            case.per_wall_s(),
            case.n as f64 / case.cpu_s,
            case.cpu_s / case.n as f64 * 1e3
        ));
        Ok(case)
    }

    /// Units a wall second.
    pub fn per_wall_s(&self) -> f64 {
        self.n as f64 / self.wall_s
    }
}

/// CPU nanoseconds of the calling thread.
pub fn thread_cpu_ns() -> u64 {
    // proc(5): the first field of schedstat is time on a CPU.
    let stat = fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split_whitespace().next().and_then(|ns| ns.parse().ok()).unwrap_or(0)
}

/// Keeps the cases in `benches/results/DATE-MACHINE/NAME.json`, where `BENCH_RESULTS` names that folder.
pub fn save(name: &str, cases: &[Case]) -> Result<()> {
    let Some(folder) = std::env::var_os("BENCH_RESULTS").map(PathBuf::from) else { return Ok(()) };
    fs::create_dir_all(&folder)?;
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let cpu = cpu
        .lines()
        .find_map(|l| l.strip_prefix("model name"))
        .unwrap_or("unknown")
        .trim_start_matches(['\t', ' ', ':']);
    let commit = Command::new("git").args(["rev-parse", "--short", "HEAD"]).output()?;
    let kept = serde_json::json!({
        "bench": name,
        "commit": String::from_utf8_lossy(&commit.stdout).trim(),
        "cpu": cpu,
        "cores": std::thread::available_parallelism()?.get(),
        "cases": cases,
    });
    let path = folder.join(format!("{name}.json"));
    fs::write(&path, serde_json::to_string_pretty(&kept)?)?;
    print(&format!("kept in {}", path.display()));
    Ok(())
}

/// A line of results.
#[expect(clippy::print_stdout, reason = "results are data")]
pub fn print(text: &str) {
    println!("{text}");
}
