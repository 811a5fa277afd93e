//! WHAT: the work done on one clip.
//!
//! In reading order:
//! - [`stage`]: what a stage is, and the three ways it can end;
//! - [`item`]: what passes between stages;
//! - [`tensors`]: the buffers that frames travel in;
//! - [`lane`]: a GPU's share of a run;
//! - [`files`]: files that are there whole, or not at all;
//! - [`clips`]: the list of a run's clips, from a folder, a glob or a manifest;
//! - [`load`]: `ClipRef` → `EncodedClip`;
//! - [`decode`]: `EncodedClip` → `FrameBatch`, the frames already in the model's form;
//! - [`model`]: the card that describes a model, and its files;
//! - [`encode`]: `FrameBatch` → `EmbeddingBatch`;
//! - [`index`]: `EmbeddingBatch` → `ShardRef`, a clip whole or not at all; and search.
//!
//! No stage names another stage, a channel or a thread pool of the run: `pipeline` wires them.

#![forbid(unsafe_code)]

pub mod clips;
pub mod decode;
pub mod encode;
pub mod files;
pub mod index;
pub mod item;
pub mod lane;
pub mod load;
pub mod model;
pub mod stage;
pub mod tensors;
