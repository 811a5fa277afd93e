//! `run.json`: what a run is and how it went; and whether a folder holds another run.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use stages::{
    clips::ClipList,
    encode::{
        network::{Backend, Engine, Precision},
        quantized::hash_file,
    },
    files::{read_sealed, sealed_json, write_whole},
    index::schema::{Element, SCHEMA_VERSION},
    model::{JointKind, Model},
};

use crate::{config::Config, engines::Chosen, runner::StageMeter};

/// `run.json`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// This program's version.
    pub clipmill: String,
    /// Of the Parquet files.
    pub schema_version: u32,
    /// `running`, `finished`, `stopped` or `failed`.
    pub status: String,
    /// Seconds since 1970.
    pub started_unix: u64,
    /// The configuration's file.
    pub config: String,
    /// All settings.
    pub settings: Map<String, Value>,
    /// What the rows depend on: a run goes on only with the same.
    pub identity: Map<String, Value>,
    /// Folder of the model.
    pub model_folder: String,
    /// Its name.
    pub model: String,
    /// [`Model::hash`]
    pub model_hash: String,
    /// [`Model::preprocess_hash`]
    pub preprocess_hash: String,
    /// `concepts` or `direct`.
    pub joint: String,
    /// Length of the joint vectors.
    pub dim: usize,
    /// What runs the model.
    #[serde(default = "first_engine")]
    pub engine: Engine,
    /// The portions that it worked in, which no row depends on.
    #[serde(default)]
    pub portions: Option<Chosen>,
    /// The engine's libraries and their versions.
    pub runtime: String,
    /// The decoders' framework.
    pub gstreamer: String,
    /// `--limit`, if given.
    pub limit: Option<u64>,
    /// The vector index: its rows, its lists and what they find. Empty until it is made.
    #[serde(default)]
    pub index: Option<Value>,
    /// How it ended; empty while it runs.
    #[serde(default)]
    pub outcome: Value,
}

impl Record {
    /// Of a run that is about to start.
    pub fn new(
        config: &Config,
        model: &Model,
        clips: &ClipList,
        image: &Path,
        chosen: &Chosen,
        runtime: &str,
        limit: Option<u64>,
    ) -> Result<Self> {
        let model_hash = model.hash()?;
        let preprocess_hash = model.preprocess_hash(config.decode.reading);
        let engine = chosen.engine;
        let mut identity = config.identity();
        identity.insert("schema version".into(), SCHEMA_VERSION.into());
        identity.insert("model hash".into(), model_hash.clone().into());
        identity.insert("preprocessing hash".into(), preprocess_hash.clone().into());
        identity.insert("engine".into(), engine.to_string().into());
        if let Some(form) = int8_form(image, engine)? {
            identity.insert(INT8_FORM.into(), form);
        }
        identity.insert("columns of the manifest".into(), clips.extra_columns().join(", ").into());
        Ok(Self {
            clipmill: env!("CARGO_PKG_VERSION").into(),
            schema_version: SCHEMA_VERSION,
            status: "running".into(),
            started_unix: unix_now(),
            config: config.file.clone(),
            settings: config.settings.iter().map(|s| (s.key.clone(), s.value.clone())).collect(),
            identity,
            model_folder: model.folder.to_string_lossy().into_owned(),
            model: model.card.name.clone(),
            model_hash,
            preprocess_hash,
            joint: if model.card.joint.kind == JointKind::Direct { "direct" } else { "concepts" }.into(),
            dim: model.card.joint.dim,
            engine,
            portions: Some(*chosen),
            runtime: runtime.to_owned(),
            gstreamer: gstreamer::version_string().into(),
            limit,
            index: None,
            outcome: Value::Null,
        })
    }

    /// Whether the joint vectors are other than the image tower's.
    pub fn has_joint_space_of_its_own(&self) -> bool {
        self.joint == "concepts"
    }

    /// The record of the run in `folder`.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join("run.json");
        let text = fs::read_to_string(&path)
            .with_context(|| format!("{} holds no run: cannot read {}", folder.display(), path.display()))?;
        let mut record: Self = read_sealed(&path, text.as_bytes()).context(CHANGED)?;
        let engine = record.engine.to_string();
        record.identity.entry("engine").or_insert(engine.into());
        record.identity.entry("index.embedding").or_insert(Element::default().word().into());
        Ok(record)
    }

    /// The record of the run in an output folder, if one is there. Refuses a folder that holds something else.
    pub fn at(folder: &Path) -> Result<Option<Self>> {
        if folder.join("run.json").exists() {
            return Self::read(folder).map(Some);
        }
        check_place(folder)?;
        Ok(None)
    }

    /// Refuses to go on with the run that is `there` in `folder`, if that has other settings.
    pub fn check_continues(&self, there: &Self, folder: &Path) -> Result<()> {
        let keys = there.identity.keys().chain(self.identity.keys());
        let mut differences: Vec<String> = keys
            .filter(|key| there.identity.get(*key) != self.identity.get(*key))
            .map(|key| {
                let show = |v: Option<&Value>| v.map_or("not set".into(), Value::to_string);
                format!(
                    "  {key}: there {}, here {}",
                    show(there.identity.get(key)),
                    show(self.identity.get(key))
                )
            })
            .collect();
        differences.sort();
        differences.dedup();
        if !differences.is_empty() {
            bail!(
                "output.dir: {} holds a run with other settings:\n{}\nhint: choose another output.dir, or remove that run",
                folder.display(),
                differences.join("\n")
            );
        }
        Ok(())
    }

    /// Stands for [`Self::identity`] in the shards' manifests: blake3 of its JSON, keys in order, no blanks.
    pub fn settings_hash(&self) -> Result<String> {
        let sorted: BTreeMap<&String, &Value> = self.identity.iter().collect();
        Ok(blake3::hash(&serde_json::to_vec(&sorted)?).to_hex().to_string())
    }

    /// Enters how the run ended.
    pub fn end(&mut self, status: &str, counts: Value, stages: &[StageMeter], wall_s: f64, cpu_s: f64) {
        self.status = status.into();
        self.outcome = json!({ "counts": counts, "stages": stages, "wall_s": wall_s, "cpu_s": cpu_s });
    }

    /// Writes `run.json`, whole or not at all.
    pub fn write(&self, folder: &Path) -> Result<()> {
        let path = folder.join("run.json");
        let text = sealed_json(self)?;
        write_whole(&path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
    }
}

const CHANGED: &str = "hint: who changed run.json himself removes its line `seal`";

/// Refuses an output folder without a run that holds something else.
fn check_place(folder: &Path) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    if !folder.is_dir() {
        bail!("output.dir: {} is a file, needs a folder", folder.display());
    }
    // A run that died before its first `run.json` leaves these, and nothing in them.
    const OURS: [&str; 6] = ["lock", "ledger", "frames", "clips", "manifests", "run.json.partial"];
    let is_begun = fs::metadata(folder.join("ledger")).is_ok_and(|ledger| ledger.len() > 0);
    for entry in fs::read_dir(folder).with_context(|| format!("output.dir: {}", folder.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if is_begun || !OURS.contains(&name.as_str()) {
            bail!(
                "output.dir: {} is no run of clipmill but holds {name}\nhint: choose a new or empty folder",
                folder.display()
            );
        }
    }
    Ok(())
}

/// In the identity of runs by int8.
pub const INT8_FORM: &str = "int8 form";

/// The hash of the image tower's form, if that is an int8 one.
pub fn int8_form(image: &Path, engine: Engine) -> Result<Option<Value>> {
    let is_int8 = engine.precision == Precision::Int8;
    is_int8.then(|| Ok(hash_file(image)?.into())).transpose()
}

/// Of runs that are older than the choice.
fn first_engine() -> Engine {
    Engine { backend: Backend::Onnx, precision: Precision::Fp32 }
}

/// Seconds since 1970.
pub fn unix_now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
