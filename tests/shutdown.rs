//! Ends of a run: a crash is not an end of input, an abort wakes everyone, a drain finishes.

use std::{sync::mpsc, thread, time::Duration};

use pipeline::{
    edge::{Flow, Limits, Receiver, edge},
    runner::Runner,
    stop::Stop,
};
use stages::stage::{Emit, Stage, StageError, Weigh};

const LIMITS: Limits = Limits { items: 4, bytes: 1000 };

#[derive(Clone, Copy)]
struct One;

impl Weigh for One {
    fn bytes(&self) -> usize {
        1
    }
}

/// Fails in its own way on the third item.
struct Third {
    n: u32,
    fail: fn() -> Result<(), StageError>,
}

impl Stage for Third {
    type In = One;
    type Out = One;

    fn process(&mut self, item: One, out: &mut dyn Emit<One>) -> Result<(), StageError> {
        self.n += 1;
        if self.n == 3 { (self.fail)() } else { Ok(out.emit(item)?) }
    }
}

/// Runs `fail` in a stage and returns how its output edge ended, and the fault.
fn ended(fail: fn() -> Result<(), StageError>) -> (bool, String) {
    let stop = Stop::default();
    let (sender, input) = edge(LIMITS, &stop);
    let (output, receiver) = edge(LIMITS, &stop);
    let mut runner = Runner::new(stop.clone());
    runner.spawn("third", 1, input, output, move || Ok(Third { n: 0, fail })).unwrap();
    let feeder = thread::spawn(move || while sender.send(Flow::Item(One)).is_ok() {});
    let is_end = loop {
        match receiver.recv() {
            Ok(Some(_)) => (),
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    feeder.join().unwrap();
    runner.join();
    (is_end, stop.fault().map(|f| format!("{f:#}")).unwrap_or_default())
}

#[test]
fn a_panic_is_an_abort_and_never_looks_like_the_end() {
    let (is_end, fault) = ended(|| panic!("boom"));
    assert_eq!((is_end, fault.as_str()), (false, "stage third panicked: boom"));
}

#[test]
fn a_fatal_error_is_an_abort_with_its_cause() {
    let (is_end, fault) =
        ended(|| Err(StageError::Fatal(anyhow::anyhow!("disk full").context("cannot write x"))));
    assert_eq!((is_end, fault.as_str()), (false, "stage third: cannot write x: disk full"));
}

#[test]
fn a_stage_that_cannot_open_aborts() {
    let stop = Stop::default();
    let (sender, input) = edge::<One>(LIMITS, &stop);
    let (output, receiver) = edge::<One>(LIMITS, &stop);
    let mut runner = Runner::new(stop.clone());
    runner
        .spawn("third", 2, input, output, || -> anyhow::Result<Third> { anyhow::bail!("no model") })
        .unwrap();
    assert!(receiver.recv().is_err());
    assert!(sender.send(Flow::Item(One)).is_err());
    runner.join();
    assert_eq!(format!("{:#}", stop.fault().unwrap()), "stage third: no model");
}

#[test]
fn the_first_fault_wins() {
    let stop = Stop::default();
    stop.abort(anyhow::anyhow!("first"));
    stop.abort(anyhow::anyhow!("second"));
    assert_eq!(stop.fault().unwrap().to_string(), "first");
}

#[test]
fn an_abort_wakes_a_sender_and_a_receiver_that_wait() {
    let stop = Stop::default();
    let (full, _kept) = edge(Limits { items: 1, bytes: 10 }, &stop);
    let (_quiet, empty): (_, Receiver<One>) = edge(LIMITS, &stop);
    full.send(Flow::Item(One)).unwrap();
    let (woke, waking) = mpsc::channel();
    let woke_too = woke.clone();
    let sending = thread::spawn(move || woke.send(full.send(Flow::Item(One)).is_err()));
    let receiving = thread::spawn(move || woke_too.send(empty.recv().is_err()));
    stop.abort(anyhow::anyhow!("enough"));
    for _ in 0..2 {
        assert!(waking.recv_timeout(Duration::from_secs(10)).unwrap());
    }
    sending.join().unwrap().unwrap();
    receiving.join().unwrap().unwrap();
}

#[test]
fn a_sender_learns_that_its_receivers_left() {
    let (sender, receiver) = edge(Limits { items: 1, bytes: 10 }, &Stop::default());
    sender.send(Flow::Item(One)).unwrap();
    let waiting = thread::spawn(move || sender.send(Flow::Item(One)).is_err());
    drop(receiver);
    assert!(waiting.join().unwrap());
}

#[test]
fn a_drain_is_no_abort() {
    let stop = Stop::default();
    let (sender, receiver) = edge(LIMITS, &stop);
    sender.send(Flow::Item(One)).unwrap();
    stop.drain();
    assert!(stop.is_draining() && !stop.is_aborted());
    sender.send(Flow::Item(One)).unwrap();
    drop(sender);
    assert!(receiver.recv().unwrap().is_some());
    assert!(receiver.recv().unwrap().is_some());
    assert!(receiver.recv().unwrap().is_none());
}
