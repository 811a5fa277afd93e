//! The card that describes a model, and where models are.
//!
//! A model is a folder with a `model.toml` and the files that it names. Another model needs another
//! folder, not other code.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use kernels::{
    preprocess::{Recipe, Resize},
    resample::Filter,
};
use serde::Deserialize;

/// `model.toml`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Card {
    /// As settings and shards name it.
    pub name: String,
    /// Of the weights.
    pub licence: String,
    /// Where the weights come from.
    pub source: String,
    /// The image tower.
    pub image: ImageTower,
    /// The text tower, where words can be searched.
    pub text: Option<TextTower>,
    /// How image and text vectors meet.
    pub joint: Joint,
}

/// `[image]`: input `[n, 3, height, width]` f32, output `[n, dim]` f32.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageTower {
    /// ONNX file.
    pub file: String,
    /// Name of the input.
    pub input: String,
    /// Samples across of the input.
    pub width: usize,
    /// Samples down of the input.
    pub height: usize,
    /// `shorter-side` or `stretch`.
    pub resize: ResizeRule,
    /// Samples of the shorter side before the centre crop.
    pub resize_to: Option<usize>,
    /// `bicubic` or `bilinear`, antialiased.
    pub filter: FilterName,
    /// Of colours in 0..1.
    pub mean: [f32; 3],
    /// Of colours in 0..1.
    pub std: [f32; 3],
    /// Name of the embedding output.
    pub embedding: String,
    /// Length of the embedding.
    pub dim: usize,
    /// Name of the class scores, for `joint.kind = "concepts"`.
    pub logits: Option<String>,
}

/// How pictures are brought to size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResizeRule {
    /// Shorter side to `resize_to`, then centre crop.
    ShorterSide,
    /// Both sides to the input's.
    Stretch,
}

/// The resize kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FilterName {
    /// Keys, a = −0.5.
    Bicubic,
    /// Triangle.
    Bilinear,
}

/// `[text]`: inputs `[n, tokens]` i64.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextTower {
    /// ONNX file.
    pub file: String,
    /// `tokenizer.json` of the `tokenizers` library; or `vocab` and `merges`.
    pub tokenizer: Option<String>,
    /// CLIP's byte-pair vocabulary, `vocab.json`.
    pub vocab: Option<String>,
    /// CLIP's merges, `merges.txt`.
    pub merges: Option<String>,
    /// Name of the token input.
    pub input_ids: String,
    /// Name of the mask input, where the model has one.
    pub attention_mask: Option<String>,
    /// Name of the segment input, where the model has one.
    pub token_type_ids: Option<String>,
    /// Name of the output.
    pub output: String,
    /// `mean` over tokens, or `none` where the output is a vector.
    pub pool: Pool,
    /// Longer texts are cut, keeping the end token.
    pub max_tokens: usize,
    /// Length of every input, or 0 for its own.
    pub pad_to: usize,
}

/// How token vectors become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pool {
    /// Mean over tokens that are not padding.
    Mean,
    /// The output is one vector already.
    None,
}

/// `[joint]`: the space that is searched.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Joint {
    /// See [`JointKind`].
    pub kind: JointKind,
    /// Length of its vectors.
    pub dim: usize,
    /// Names of the classes, one a line, for `concepts`.
    pub names: Option<String>,
    /// Text vectors of the names, made by `clipmill model build`.
    pub bank: Option<String>,
    /// So many most probable names are averaged.
    pub top: Option<usize>,
}

/// How image and text vectors meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JointKind {
    /// The towers were trained into one space.
    Direct,
    /// Through class names: the mean text vector of the most probable ones, weighted by probability
    /// (Norouzi et al., "Zero-Shot Learning by Convex Combination of Semantic Embeddings", 2013).
    Concepts,
}

/// A model's card and its folder, all files found.
#[derive(Clone, Debug)]
pub struct Model {
    /// Its card.
    pub card: Card,
    /// Its folder.
    pub folder: PathBuf,
}

impl Model {
    /// Finds a model by name in `home`, or by its folder where `name` is a path.
    pub fn find(name: &str, home: &Home) -> Result<Self> {
        let as_path = Path::new(name);
        let is_path = name.contains(std::path::MAIN_SEPARATOR) || as_path.join("model.toml").is_file();
        let folder = if is_path { as_path.to_owned() } else { home.models().join(name) };
        if !folder.is_dir() {
            let installed: Vec<String> = home.list().into_iter().map(|m| m.card.name).collect();
            let known = if installed.is_empty() { "none".to_owned() } else { installed.join(", ") };
            bail!(
                "model {name:?} is not installed: there is no folder {}\nhint: installed are: {known}; `make setup` installs the default",
                folder.display()
            );
        }
        Self::open(&folder)
    }

    /// Reads the card and checks that its files are there and its rules make sense.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("model.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("model card {}", path.display()))?;
        let card: Card = toml::from_str(&text).with_context(|| format!("model card {}", path.display()))?;
        let model = Self { card, folder: folder.to_owned() };
        model.check().with_context(|| format!("model card {}", path.display()))?;
        Ok(model)
    }

    fn check(&self) -> Result<()> {
        let Card { image, text, joint, .. } = &self.card;
        let mut files = vec![&image.file];
        if let Some(text) = text {
            files.push(&text.file);
            files.extend(text.tokenizer.iter().chain(&text.vocab).chain(&text.merges));
            if text.tokenizer.is_none() && (text.vocab.is_none() || text.merges.is_none()) {
                bail!("text needs tokenizer, or vocab and merges");
            }
        }
        files.extend(&joint.names);
        for file in files {
            if !self.folder.join(file).is_file() {
                bail!("names the file {file}, which is not in {}", self.folder.display());
            }
        }
        let smallest = image.width.max(image.height);
        match (image.resize, image.resize_to) {
            (ResizeRule::ShorterSide, Some(side)) if side >= smallest => (),
            (ResizeRule::ShorterSide, found) => {
                bail!("image.resize_to is {}, needs at least {smallest}", found.unwrap_or(0));
            }
            (ResizeRule::Stretch, _) => (),
        }
        if image.std.iter().any(|s| *s <= 0.0) || image.width == 0 || image.height == 0 || image.dim == 0 {
            bail!("image.width, height, dim and std must be above 0");
        }
        if joint.dim == 0 || text.as_ref().is_some_and(|t| t.max_tokens < 2) {
            bail!("joint.dim must be above 0, and text.max_tokens above 1");
        }
        match joint.kind {
            JointKind::Concepts => {
                let has_all =
                    image.logits.is_some() && text.is_some() && joint.names.is_some() && joint.bank.is_some();
                if !has_all || joint.top.unwrap_or(0) == 0 {
                    bail!(
                        "joint.kind = \"concepts\" needs image.logits, [text], joint.names, joint.bank and joint.top"
                    );
                }
            }
            JointKind::Direct if joint.dim != image.dim => {
                bail!("joint.dim is {}, but image.dim is {}", joint.dim, image.dim);
            }
            JointKind::Direct => (),
        }
        Ok(())
    }

    /// A file of the model.
    pub fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// What its pictures must look like.
    pub fn recipe(&self) -> Recipe {
        let image = &self.card.image;
        Recipe {
            width: image.width,
            height: image.height,
            resize: match image.resize {
                ResizeRule::ShorterSide => Resize::ShorterSide(image.resize_to.unwrap_or(image.width)),
                ResizeRule::Stretch => Resize::Stretch,
            },
            filter: match image.filter {
                FilterName::Bicubic => Filter::Bicubic,
                FilterName::Bilinear => Filter::Bilinear,
            },
            mean: image.mean,
            std: image.std,
        }
    }

    /// blake3 of everything that stored vectors depend on besides the pictures: the image tower, and
    /// for concepts their names' vectors.
    pub fn hash(&self) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        let Card { image, joint, .. } = &self.card;
        let bank = joint.bank.as_ref().filter(|_| joint.kind == JointKind::Concepts);
        for name in [Some(&image.file), bank].into_iter().flatten() {
            let path = self.file(name);
            let file = fs::File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
            hasher.update_reader(file).with_context(|| format!("cannot read {}", path.display()))?;
        }
        hasher.update(
            format!("{:?} {:?} {} {:?}", joint.kind, joint.top, image.embedding, image.logits).as_bytes(),
        );
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// blake3 of the preprocessing: the recipe, and the release of the routine that runs it.
    pub fn preprocess_hash(&self, reading: kernels::picture::Reading) -> String {
        // Raised when the same recipe gives other numbers.
        const ROUTINE: u32 = 2;
        let text = format!("{ROUTINE} {:?} {reading:?}", self.recipe());
        blake3::hash(text.as_bytes()).to_hex().to_string()
    }
}

/// Where models and the inference library are installed: `$CLIPMILL_HOME`, else
/// `$XDG_DATA_HOME/clipmill`, else `~/.local/share/clipmill`.
#[derive(Clone, Debug)]
pub struct Home {
    folder: PathBuf,
}

impl Home {
    /// By the environment.
    pub fn from_env() -> Self {
        let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let folder = var("CLIPMILL_HOME")
            .or_else(|| var("XDG_DATA_HOME").map(|d| d.join("clipmill")))
            .or_else(|| var("HOME").map(|d| d.join(".local/share/clipmill")))
            .unwrap_or_else(|| PathBuf::from("clipmill-home"));
        Self { folder }
    }

    /// The folder itself.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Folder of the models.
    pub fn models(&self) -> PathBuf {
        self.folder.join("models")
    }

    /// All models whose cards can be read, by name.
    pub fn list(&self) -> Vec<Model> {
        let entries = fs::read_dir(self.models()).into_iter().flatten().flatten();
        let mut models: Vec<Model> = entries.filter_map(|e| Model::open(&e.path()).ok()).collect();
        models.sort_by(|a, b| a.card.name.cmp(&b.card.name));
        models
    }

    /// ONNX Runtime's library: `$ORT_DYLIB_PATH`, else the installed one, else the system's.
    pub fn onnxruntime(&self) -> PathBuf {
        if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|v| !v.is_empty()) {
            return path.into();
        }
        let installed = self.folder.join("lib/libonnxruntime.so");
        if installed.is_file() { installed } else { "libonnxruntime.so".into() }
    }
}
