//! Ctrl-C and kill: what is committed stays, the next run completes it, nothing is there twice.

use std::{
    collections::BTreeSet,
    fs,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use support::{
    clips::{Clip, MPEG4_AVI, make_at},
    run::{LIMIT, Outcome, Site, binary, wait},
};

const N_CLIPS: usize = 300;

/// Many names for one clip, so that a run lasts; a shard a clip, so that much is committed early.
fn site() -> Site {
    let site = Site::new();
    make_at(&site.path("clips/0000.avi"), &Clip::counting(MPEG4_AVI));
    for n in 1..N_CLIPS {
        fs::hard_link(site.path("clips/0000.avi"), site.path(&format!("clips/{n:04}.avi"))).unwrap();
    }
    site
}

const SETTINGS: &[(&str, &str)] = &[("sample.all", "true"), ("index.shard_rows", "1")];

/// Starts a run and waits until it has committed a few clips.
fn start(site: &Site) -> Child {
    let config = site.config(SETTINGS);
    let mut command = Command::new(binary());
    command.arg("run").arg(config).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    let since = Instant::now();
    let n_lines = || fs::read_to_string(site.path("out/ledger")).map_or(0, |ledger| ledger.lines().count());
    while n_lines() < 3 {
        assert!(since.elapsed() < LIMIT, "nothing was committed");
        std::thread::yield_now();
    }
    child
}

fn signal(child: &Child, signal: i32) {
    // SAFETY: `kill` touches no memory of ours; the process is our child and not yet waited for.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
}

/// The next run ends with every clip exactly once, and with all of its frames.
fn completes(site: &Site, n_before: usize) {
    let outcome = site.run(SETTINGS).expect(0);
    assert!(
        outcome.last_line().contains(&format!("{N_CLIPS} of {N_CLIPS} clips indexed ({n_before} unchanged")),
        "{}",
        outcome.last_line()
    );
    let clips = site.table("clips");
    assert_eq!(clips.names().into_iter().collect::<BTreeSet<_>>().len(), N_CLIPS);
    assert_eq!(clips.len(), N_CLIPS);
    assert_eq!(site.table("frames").len() as i64, clips.numbers("n_sampled").iter().sum::<i64>());
}

/// Clips in the ledger.
fn n_committed(site: &Site) -> usize {
    fs::read_to_string(site.path("out/ledger")).unwrap().matches("\"clip_id\"").count()
}

#[test]
fn the_first_ctrl_c_drains_and_commits() {
    let site = site();
    let child = start(&site);
    signal(&child, libc::SIGINT);
    let outcome: Outcome = wait(child, LIMIT).expect(130).says(&["stopping: finishing and committing"]);
    let n = site.table("clips").len();
    assert!(n < N_CLIPS, "it was over before the signal");
    assert_eq!(n, n_committed(&site));
    assert!(
        outcome.last_line().contains(&format!("stopped: {n} of {N_CLIPS} clips indexed")),
        "{}",
        outcome.last_line()
    );
    assert_eq!(site.record()["status"], "stopped");
    completes(&site, n);
}

#[test]
fn the_second_ctrl_c_aborts_and_loses_nothing_committed() {
    let site = site();
    let child = start(&site);
    signal(&child, libc::SIGINT);
    signal(&child, libc::SIGINT);
    let outcome = wait(child, Duration::from_secs(30));
    // The signals may meet as one, which is then a drain.
    assert!([Some(1), Some(130)].contains(&outcome.code), "{outcome:?}");
    if outcome.code == Some(1) {
        let told = format!("{} of {N_CLIPS} clips are committed", n_committed(&site));
        assert!(outcome.stderr.contains(&told), "no {told:?} in {}", outcome.stderr);
    }
    completes(&site, n_committed(&site));
}

#[test]
fn a_kill_loses_nothing_committed() {
    let site = site();
    let child = start(&site);
    signal(&child, libc::SIGKILL);
    assert_eq!(wait(child, LIMIT).code, None);
    completes(&site, n_committed(&site));
}

#[test]
fn a_second_process_on_the_same_run_is_refused() {
    let site = site();
    let child = start(&site);
    let id = child.id();
    site.run(SETTINGS).expect(2).says(&["is in use by another clipmill", &id.to_string()]);
    signal(&child, libc::SIGKILL);
    wait(child, LIMIT);
}
