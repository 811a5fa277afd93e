//! What the tests share: clips made on the spot, models made on the spot, and the program run on
//! them.
#![expect(clippy::unwrap_used, reason = "a test that cannot prepare its ground fails, here as well")]

pub mod clips;
pub mod decoding;
pub mod fake_gpu;
pub mod hub;
pub mod nvcuvid;
pub mod onnx;
pub mod packets;
pub mod rows;
pub mod run;
pub mod written;

use std::path::PathBuf;

/// The workspace's root.
pub fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// A golden file.
pub fn data(name: &str) -> PathBuf {
    root().join("tests/data").join(name)
}

/// Says that a test has nothing to run on; where `must` is set to 1, that is a failure.
#[expect(clippy::print_stderr, reason = "tests skip aloud")]
pub fn skip(why: &str, must: &str) {
    assert!(std::env::var(must).as_deref() != Ok("1"), "{must}=1, but {why}");
    eprintln!("SKIPPED: {why}");
}
