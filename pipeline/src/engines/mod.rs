//! Which engine encodes, and in what portions: measured once on a machine, then remembered.

pub mod choose;
pub mod measure;
pub mod pictures;
pub mod table;

pub use choose::{Chosen, Wanted, choose};
