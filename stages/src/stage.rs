//! What a stage is, and the three ways it can end.

use std::sync::Arc;

use crate::item::{ClipRef, Pts};

/// One step of the pipeline, opened, run and dropped on one thread.
pub trait Stage {
    /// What comes in.
    type In: Weigh + Send + 'static;
    /// What goes out.
    type Out: Weigh + Send + 'static;

    /// Handles one item, emitting any number of outputs.
    fn process(&mut self, item: Self::In, out: &mut dyn Emit<Self::Out>) -> Result<(), StageError>;

    /// Hears that a clip was dropped upstream; forwards it unless overridden.
    fn rejected(&mut self, rejection: Rejection, out: &mut dyn Emit<Self::Out>) -> Result<(), StageError> {
        Ok(out.reject(rejection)?)
    }

    /// Sends on what is held back, where waiting for more would keep it too long. Called when there
    /// was no input for a while.
    fn idle(&mut self, _out: &mut dyn Emit<Self::Out>) -> Result<(), StageError> {
        Ok(())
    }

    /// Emits what is held back. Called at end of input, never after a fault.
    fn finish(&mut self, _out: &mut dyn Emit<Self::Out>) -> Result<(), StageError> {
        Ok(())
    }
}

/// Where a stage's outputs go. Both calls block while the edge is full.
pub trait Emit<T> {
    /// Sends an item on.
    fn emit(&mut self, item: T) -> Result<(), Closed>;
    /// Drops a clip: it leaves the run here, with its reason.
    fn reject(&mut self, rejection: Rejection) -> Result<(), Closed>;
}

/// Keeps what a stage emits, where one is run by itself. A stage that refuses its item says so by an error.
#[derive(Debug)]
pub struct Kept<T>(pub Vec<T>);

impl<T> Emit<T> for Kept<T> {
    fn emit(&mut self, item: T) -> Result<(), Closed> {
        self.0.push(item);
        Ok(())
    }

    fn reject(&mut self, _: Rejection) -> Result<(), Closed> {
        Ok(())
    }
}

/// The bytes an item holds while it waits on an edge.
pub trait Weigh {
    /// Bytes of memory, near enough for a limit.
    fn bytes(&self) -> usize;
}

/// Downstream has left: unwind quietly.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("downstream has stopped")]
pub struct Closed;

/// Why a stage did not take an item to its end.
#[derive(Debug, thiserror::Error)]
pub enum StageError {
    /// This clip is bad: record it and go on.
    #[error("{0}")]
    Reject(Box<Rejection>),
    /// Downstream left.
    #[error(transparent)]
    Closed(#[from] Closed),
    /// Nothing more can work: stop the run.
    #[error(transparent)]
    Fatal(#[from] anyhow::Error),
}

impl From<Rejection> for StageError {
    fn from(rejection: Rejection) -> Self {
        StageError::Reject(Box::new(rejection))
    }
}

/// A clip's end without rows.
#[derive(Clone, Debug, thiserror::Error)]
#[error("rejected clip {:04} ({}): {reason}", clip.id.0, clip.path)]
pub struct Rejection {
    /// Which clip.
    pub clip: Arc<ClipRef>,
    /// Where it ended: `load`, `decode`, `encode` or `index`.
    pub stage: &'static str,
    /// Why.
    pub reason: Reason,
}

/// Why a clip has no rows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The file cannot be opened or read.
    #[error("unreadable: {0}")]
    Unreadable(String),
    /// The file breaks its own format.
    #[error("corrupt{}: {detail}", last_good.map(|p| format!(" after {p}")).unwrap_or_default())]
    Corrupt {
        /// The last frame that came out whole.
        last_good: Option<Pts>,
        /// What the decoder said.
        detail: String,
    },
    /// No decoder here, or no video in it.
    #[error("unsupported: {0}")]
    Unsupported(String),
    /// Nothing to decode.
    #[error("empty: {0}")]
    Empty(String),
    /// A deadline passed.
    #[error("timed out: {0}")]
    TimedOut(String),
}

impl Reason {
    /// The word in `rejects.parquet`.
    pub fn word(&self) -> &'static str {
        match self {
            Reason::Unreadable(_) => "unreadable",
            Reason::Corrupt { .. } => "corrupt",
            Reason::Unsupported(_) => "unsupported",
            Reason::Empty(_) => "empty",
            Reason::TimedOut(_) => "timed_out",
        }
    }
}
