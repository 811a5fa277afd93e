//! Edges: never more than the limits, an oversized item alone, rejections in band.

use std::{
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use pipeline::{
    edge::{Flow, Limits, edge},
    runner::Runner,
    stop::Stop,
};
use stages::{
    item::{ClipId, ClipRef},
    stage::{Emit, Reason, Rejection, Stage, StageError, Weigh},
};

struct Bytes(usize);

impl Weigh for Bytes {
    fn bytes(&self) -> usize {
        self.0
    }
}

fn rejection() -> Rejection {
    let clip = Arc::new(ClipRef { id: ClipId(7), path: "7.mp4".into(), label: None, extra: Vec::new() });
    Rejection { clip, stage: "decode", reason: Reason::Empty("nothing".into()) }
}

/// Emits every item twice; an empty one is a reject.
struct Twice;

impl Stage for Twice {
    type In = Bytes;
    type Out = Bytes;

    fn process(&mut self, item: Bytes, out: &mut dyn Emit<Bytes>) -> Result<(), StageError> {
        if item.0 == 0 {
            return Err(rejection().into());
        }
        out.emit(Bytes(item.0))?;
        Ok(out.emit(item)?)
    }
}

#[test]
fn bytes_stay_within_the_limit_and_an_oversized_item_passes_alone() {
    let limits = Limits { items: 64, bytes: 100 };
    let stop = Stop::default();
    let (sender, input) = edge(limits, &stop);
    let (output, receiver) = edge(limits, &stop);
    let mut runner = Runner::new(stop.clone());
    runner.spawn("twice", 2, input, output, || Ok(Twice)).unwrap();
    let sizes = [40, 60, 500, 0, 10, 90];
    let feeder = thread::spawn(move || sizes.map(|n| sender.send(Flow::Item(Bytes(n))).unwrap()));
    let (mut items, mut rejects) = (0, 0);
    while let Some(flow) = receiver.recv().unwrap() {
        match flow {
            Flow::Item(_) => items += 1,
            Flow::Reject(_) => rejects += 1,
        }
    }
    feeder.join().unwrap();
    assert!(receiver.most_bytes() <= 100, "{}", receiver.most_bytes());
    assert_eq!((items, rejects), (10, 1));
    let meters = runner.join();
    assert!(stop.fault().is_none());
    assert_eq!((meters[0].sum().items, meters[0].sum().rejects), (6, 1));
}

#[test]
fn a_full_edge_holds_its_sender_until_there_is_room() {
    let (sender, receiver) = edge(Limits { items: 2, bytes: 1000 }, &Stop::default());
    let (told, sent) = mpsc::channel();
    let feeder = thread::spawn(move || {
        for n in 0..4 {
            let waited = sender.send(Flow::Item(Bytes(n))).unwrap();
            told.send(waited).unwrap();
        }
    });
    // Two fit; the third waits until one is taken.
    assert_eq!(sent.recv().unwrap(), Duration::ZERO);
    assert_eq!(sent.recv().unwrap(), Duration::ZERO);
    assert!(sent.recv_timeout(Duration::from_millis(50)).is_err());
    assert!(receiver.recv().unwrap().is_some());
    assert!(sent.recv().unwrap() > Duration::ZERO);
    while receiver.recv().unwrap().is_some() {}
    feeder.join().unwrap();
}

#[test]
fn whatever_the_limits_everything_arrives_in_order() {
    use proptest::prelude::*;
    let sizes = prop::collection::vec(0usize..200, 0..60);
    proptest!(ProptestConfig::with_cases(60), |(items in 1usize..5, bytes in 1usize..150, sizes in sizes)| {
        let (sender, receiver) = edge(Limits { items, bytes }, &Stop::default());
        let sent = sizes.clone();
        let feeder = thread::spawn(move || sent.into_iter().try_for_each(|n| sender.send(Flow::Item(Bytes(n))).map(drop)));
        let mut arrived = Vec::new();
        while let Some(Flow::Item(item)) = receiver.recv().unwrap() {
            arrived.push(item.0);
        }
        feeder.join().unwrap().unwrap();
        prop_assert_eq!(arrived, sizes);
        prop_assert!(receiver.most_bytes() <= bytes);
    });
}
