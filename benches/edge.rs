//! The edge alone: what an item costs to cross it.

use std::thread;

use anyhow::Result;
use benches::{Case, save};
use pipeline::{
    edge::{Flow, Limits, edge},
    stop::Stop,
};
use stages::stage::Weigh;

struct Item(u64);

impl Weigh for Item {
    fn bytes(&self) -> usize {
        1
    }
}

fn cross(n: u64, items: usize) -> Result<u64> {
    let (sender, receiver) = edge::<Item>(Limits { items, bytes: 1 << 20 }, &Stop::default());
    let feeder = thread::spawn(move || (0..n).try_for_each(|i| sender.send(Flow::Item(Item(i))).map(drop)));
    let mut sum = 0;
    while let Some(Flow::Item(Item(i))) = receiver.recv()? {
        sum += i;
    }
    let fed = feeder.join().map_err(|_| anyhow::anyhow!("the feeder panicked"))?;
    fed?;
    anyhow::ensure!(sum == n * (n - 1) / 2, "items were lost");
    Ok(n)
}

fn main() -> Result<()> {
    let mut cases = Vec::new();
    for items in [1, 8, 64] {
        let name = format!("edge of {items} items");
        cases.push(Case::measure(&name, "items", || cross(200_000, items))?);
    }
    save("edge", &cases)
}
