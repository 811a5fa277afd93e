//! WHEN: threads, edges, stopping, settings and reporting.
//!
//! In reading order:
//! - [`config`]: TOML → [`config::Config`]; every rule about settings;
//! - [`stop`]: drain and abort;
//! - [`edge`]: the bounded channel between stages;
//! - [`runner`]: one thread per worker; opens, feeds, measures, joins;
//! - [`topology`]: the wiring, the only file that knows all the stages;
//! - [`lanes`]: a run's GPUs, their engines and memory;
//! - [`engines`]: which engine encodes, measured once on a machine;
//! - [`record`]: `run.json`, and whether an output folder belongs to another run;
//! - [`progress`]: what a person sees while it runs;
//! - [`report`]: the stage table, the bottleneck, the last line;
//! - [`run`](mod@run): the `run` command;
//! - [`refresh`](mod@refresh): the vector index, after a run, by the `index` command, before a search;
//! - [`query`]: the `search` command;
//! - [`export`]: the `export` command;
//! - [`scratch`]: a folder to work in, by one process at a time;
//! - [`samples`]: frames of clips outside a run; [`evaluate`]: the `model eval` command; [`quantize`]: the
//!   `model quantize` command;
//! - [`cross_check`]: the `check --decode` command; [`gpu_check`]: `check --gpu`;
//! - [`store`]: the `model` commands that bring models in and take them out;
//! - [`doctor`]: what this machine has.

#![forbid(unsafe_code)]

pub mod config;
pub mod cross_check;
pub mod doctor;
pub mod edge;
pub mod engines;
pub mod evaluate;
pub mod export;
pub mod gpu_check;
pub mod lanes;
pub mod progress;
pub mod quantize;
pub mod query;
pub mod record;
pub mod refresh;
pub mod report;
pub mod run;
pub mod runner;
pub mod samples;
pub mod scratch;
pub mod stop;
pub mod store;
pub mod topology;
