//! TOML → [`Config`]; every rule about settings.
//!
//! Parse, then check, then open. Checking is pure: it touches no file, so the same text gives the
//! same errors everywhere, and all of them at once. What a setting names (a folder, a model) is
//! looked at when the run opens.

mod reader;

use std::{path::PathBuf, time::Duration};

use kernels::picture::{Matrix, Reading};
use serde_json::{Map, Value};
use stages::{
    clips::Label,
    decode::{Backend, sample::Sampling},
    encode::network::{Backend as Runtime, Precision},
    index::{schema::Element, vectors},
};

pub use reader::{Errors, Override};
use reader::{Reader, Whole};

use crate::{
    engines::Wanted,
    refresh::{DEFAULT_EXACT_ROWS, DEFAULT_RECALL},
};

/// All settings of a run, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The file they came from.
    pub file: String,
    /// `[input]`
    pub input: Input,
    /// `output.dir`
    pub output_dir: PathBuf,
    /// `[sample]`
    pub sampling: Sampling,
    /// `[load]`
    pub load: Load,
    /// `[decode]`
    pub decode: Decode,
    /// `[encode]`
    pub encode: Encode,
    /// `[gpu]`
    pub gpu: Gpu,
    /// `[index]`
    pub index: Index,
    /// Every key with its value, and where the value came from.
    pub settings: Vec<Setting>,
}

/// One key as the plan shows it.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Such as `decode.workers`.
    pub key: String,
    /// Its value.
    pub value: Value,
    /// `default`, `--set`, or the line of the file.
    pub from: String,
}

/// `[input]`
#[derive(Clone, Debug)]
pub struct Input {
    /// Folder, glob, file or manifest.
    pub clips: String,
    /// Where labels come from.
    pub label: Label,
}

/// `[load]`
#[derive(Clone, Debug)]
pub struct Load {
    /// Threads.
    pub workers: usize,
    /// Bytes of files read ahead of the decoders.
    pub ahead_bytes: usize,
}

/// `[decode]`
#[derive(Clone, Debug)]
pub struct Decode {
    /// Which software.
    pub backend: Backend,
    /// Which clips GPUs decode.
    pub nvdec: Nvdec,
    /// Clips that NVDEC decodes at once, on each GPU.
    pub sessions: usize,
    /// Threads, each with a clip of its own.
    pub workers: usize,
    /// Whether those are the cores, so that NVDEC's come on top.
    pub is_workers_open: bool,
    /// Threads inside each decoder; 0 gives long clips those that are free.
    pub threads: u32,
    /// Cores that `threads = 0` shares out.
    pub cores: usize,
    /// Whether only what the chosen frames need is decoded.
    pub plan: bool,
    /// How pictures are read where that is a matter of choice.
    pub reading: Reading,
    /// Longest silence of a decoder.
    pub stall: Duration,
    /// Whether the good part of a damaged clip is kept.
    pub keep_damaged: bool,
    /// Bytes of frames ahead of the encoder.
    pub ahead_bytes: usize,
}

/// Which clips GPUs decode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nvdec {
    /// None.
    Never,
    /// Those that they are better at, where frames stay on one.
    Choice,
    /// All that they can.
    Always,
}

/// `[encode]`
#[derive(Clone, Debug)]
pub struct Encode {
    /// Name or folder.
    pub model: String,
    /// What runs it; what is left open is measured.
    pub engine: Wanted,
    /// GPUs that embed, for lanes in turn; `None` for each lane's own.
    pub devices: Option<Vec<usize>>,
}

/// `[gpu]`
#[derive(Clone, Debug)]
pub struct Gpu {
    /// Devices to work on, as the driver counts them; `None` for all that it shows.
    pub devices: Option<Vec<usize>>,
    /// Bytes of each that batches may take; 0 for what keeps the workers busy.
    pub memory_bytes: usize,
}

/// `[index]`
#[derive(Clone, Debug)]
pub struct Index {
    /// Rows after which a shard is published.
    pub shard_rows: u64,
    /// What stored vectors are made of.
    pub embedding: Element,
    /// Whether the image tower's vectors are kept.
    pub keep_image_embedding: bool,
    /// How the vector index is made, if it is.
    pub vectors: Option<vectors::Settings>,
}

/// Keys whose values the rows of a run depend on: a run goes on only with the same ones.
const IDENTITY: &[&str] = &[
    "input.clips",
    "input.label",
    "sample.every_ms",
    "sample.fps",
    "sample.count",
    "sample.keyframes",
    "sample.all",
    "decode.matrix",
    "decode.damaged",
    "decode.fields",
    "encode.model",
    "index.embedding",
    "index.keep_image_embedding",
];

const MIB: usize = 1 << 20;

impl Config {
    /// Reads and checks `text`, which came from `file`, under the `--set` overrides. `cores` is what
    /// `0` workers stand for.
    pub fn parse(file: &str, text: &str, overrides: &[Override], cores: usize) -> Result<Self, Errors> {
        let mut r = Reader::new(file, text, overrides)?;
        let clips = r.text("input.clips", None);
        let label = r.text("input.label", Some("auto"));
        let output_dir = r.text("output.dir", None);
        let sampling = sampling(&mut r);
        let load = Load {
            workers: r.whole("load.workers", Whole { default: 1, least: 1, most: 64 }) as usize,
            ahead_bytes: r.whole("load.ahead_mib", Whole { default: 64, least: 1, most: 1 << 20 }) as usize
                * MIB,
        };
        // No stage can use more threads than this many; a typing error should not start thousands.
        let many = |default| Whole { default, least: 0, most: 256 };
        let or_cores = |n: u64, auto: usize| if n == 0 { auto } else { n as usize };
        let words = ["auto", "software", "nvdec", "libav", "gstreamer"];
        let backend = r.choice("decode.backend", "auto", &words);
        let nvdec = match words[backend] {
            "auto" => Nvdec::Choice,
            "nvdec" => Nvdec::Always,
            _ => Nvdec::Never,
        };
        let matrix = r.choice("decode.matrix", "bt601", &["bt601", "bt709", "bt2020"]);
        let damaged = r.choice("decode.damaged", "keep", &["keep", "reject"]);
        let fields = r.choice("decode.fields", "first", &["first", "both"]);
        let decode_workers = r.whole("decode.workers", many(0));
        let decode = Decode {
            backend: match words[backend] {
                "libav" => Backend::Libav,
                "gstreamer" => Backend::Gstreamer,
                _ => Backend::Auto,
            },
            nvdec,
            sessions: r.whole("decode.sessions", Whole { default: 8, least: 1, most: 64 }) as usize,
            workers: or_cores(decode_workers, cores),
            is_workers_open: decode_workers == 0,
            threads: r.whole("decode.threads", many(0)) as u32,
            cores,
            plan: r.flag("decode.plan", true),
            reading: Reading {
                unspecified: [Matrix::Bt601, Matrix::Bt709, Matrix::Bt2020][matrix],
                one_field: fields == 0,
            },
            stall: Duration::from_secs(
                r.whole("decode.stall_s", Whole { default: 20, least: 1, most: 3600 }),
            ),
            keep_damaged: damaged == 0,
            ahead_bytes: r.whole("decode.ahead_mib", Whole { default: 64, least: 1, most: 1 << 20 }) as usize
                * MIB,
        };
        let backend = auto_or(&mut r, "encode.backend", Runtime::ALL, Runtime::word);
        let precision = auto_or(&mut r, "encode.precision", Precision::ALL, Precision::word);
        let given = |n: u64| (n > 0).then_some(n as usize);
        let mut encode = Encode {
            model: r.text("encode.model", Some("efficientnet-lite0-minilm")),
            engine: Wanted {
                backend,
                precision,
                batch: given(r.whole("encode.batch", Whole { default: 0, least: 0, most: 1024 })),
                workers: given(r.whole("encode.workers", many(0))),
                threads: given(r.whole("encode.threads", many(0))),
                min_cosine: r.number("encode.min_cosine", Wanted::MIN_COSINE, -1.0, 1.0),
                on_gpu: false,
                device: 0,
            },
            devices: r.numbers_or("encode.devices", "auto", 255),
        };
        let gpu = Gpu {
            devices: r.numbers_or("gpu.devices", "auto", 255),
            memory_bytes: r.whole("gpu.memory_mib", Whole { default: 0, least: 0, most: 1 << 20 }) as usize
                * MIB,
        };
        // Frames may stay on the host while NVDEC decodes on the named devices.
        let names_engines = gpu.devices.is_some() && decode.nvdec != Nvdec::Always;
        encode.engine.on_gpu = names_engines || encode.devices.is_some();
        let first = |devices: &Option<Vec<usize>>| devices.as_ref()?.first().copied();
        encode.engine.device = first(&encode.devices).or(first(&gpu.devices)).unwrap_or(0);
        let [half, single] = Element::ALL.map(Element::word);
        let index = Index {
            shard_rows: r.whole("index.shard_rows", Whole { default: 100_000, least: 1, most: 100_000_000 }),
            embedding: Element::ALL[r.choice("index.embedding", half, &[half, single])],
            keep_image_embedding: r.flag("index.keep_image_embedding", false),
            vectors: vectors(&mut r),
        };
        let settings = r.finish()?;
        Ok(Self {
            file: file.to_owned(),
            input: Input { clips, label: label_rule(&label) },
            output_dir: output_dir.into(),
            sampling,
            load,
            decode,
            encode,
            gpu,
            index,
            settings,
        })
    }

    /// The settings that a run's rows depend on.
    pub fn identity(&self) -> Map<String, Value> {
        // A rule that is off is as good as not there.
        let is_off = |s: &Setting| s.key.starts_with("sample.") && s.value == Value::Bool(false);
        let own = self.settings.iter().filter(|s| IDENTITY.contains(&s.key.as_str()) && !is_off(s));
        own.map(|s| (s.key.clone(), s.value.clone())).collect()
    }
}

/// The sampling rule in a run's recorded settings, for queries by clip.
pub fn recorded_sampling(settings: &Map<String, Value>) -> Option<Sampling> {
    let get = |key: &str| settings.get(&format!("sample.{key}"));
    if let Some(ms) = get("every_ms").and_then(Value::as_u64) {
        return Some(Sampling::EveryMs(ms));
    }
    if let Some(fps) = get("fps").and_then(Value::as_f64) {
        return Some(Sampling::Fps(fps));
    }
    if let Some(n) = get("count").and_then(Value::as_u64) {
        return Some(Sampling::Count(n as u32));
    }
    let is_true = |key: &str| get(key).and_then(Value::as_bool) == Some(true);
    if is_true("keyframes") { Some(Sampling::Keyframes) } else { is_true("all").then_some(Sampling::All) }
}

/// How a run's recorded settings read pictures, for queries by clip.
pub fn recorded_reading(settings: &Map<String, Value>) -> Reading {
    let word = |key: &str| settings.get(key).and_then(Value::as_str).unwrap_or_default();
    let unspecified = match word("decode.matrix") {
        "bt709" => Matrix::Bt709,
        "bt2020" => Matrix::Bt2020,
        _ => Matrix::Bt601,
    };
    Reading { unspecified, one_field: word("decode.fields") != "both" }
}

/// One of `all` by its word, or `auto`, the default, which leaves it open.
fn auto_or<T: Copy, const N: usize>(
    r: &mut Reader<'_>,
    key: &str,
    all: [T; N],
    word: fn(T) -> &'static str,
) -> Option<T> {
    let words: Vec<&str> = std::iter::once("auto").chain(all.map(word)).collect();
    r.choice(key, "auto", &words).checked_sub(1).map(|i| all[i])
}

fn label_rule(label: &str) -> Label {
    match label {
        "auto" => Label::Auto,
        "none" => Label::None,
        "parent" => Label::Parent,
        column => Label::Column(column.to_owned()),
    }
}

/// Exactly one of the `[sample]` keys; `every_ms = 500` where there is none.
fn sampling(r: &mut Reader<'_>) -> Sampling {
    const DAY_MS: u64 = 86_400_000;
    // One on the command line replaces the one in the file.
    r.overrides_replace("sample.");
    let rules = [
        r.optional_whole("sample.every_ms", 1, DAY_MS).map(|ms| ("sample.every_ms", Sampling::EveryMs(ms))),
        r.optional_number("sample.fps", 0.001, 1000.0).map(|fps| ("sample.fps", Sampling::Fps(fps))),
        r.optional_whole("sample.count", 1, 1_000_000).map(|n| ("sample.count", Sampling::Count(n as u32))),
        r.optional_flag("sample.keyframes")
            .filter(|on| *on)
            .map(|_| ("sample.keyframes", Sampling::Keyframes)),
        r.optional_flag("sample.all").filter(|on| *on).map(|_| ("sample.all", Sampling::All)),
    ];
    let mut given: Vec<(&str, Sampling)> = rules.into_iter().flatten().collect();
    if given.len() > 1 {
        let names: Vec<&str> = given.iter().map(|(name, _)| *name).collect();
        r.error(
            given[1].0,
            &format!("only one rule can choose the frames, but there are {}", names.join(" and ")),
        );
    }
    if given.is_empty() {
        const DEFAULT_MS: u64 = 500;
        r.note_default("sample.every_ms", DEFAULT_MS.into());
        return Sampling::EveryMs(DEFAULT_MS);
    }
    given.remove(0).1
}

fn vectors(r: &mut Reader<'_>) -> Option<vectors::Settings> {
    let is_wanted = r.flag("index.vectors", true);
    let rows = Whole { default: DEFAULT_EXACT_ROWS as u64, least: 0, most: 1 << 32 };
    let exact_rows = r.whole("index.exact_rows", rows) as usize;
    let recall = r.number("index.recall", DEFAULT_RECALL, 0.5, 1.0);
    is_wanted.then_some(vectors::Settings { exact_rows, recall })
}
