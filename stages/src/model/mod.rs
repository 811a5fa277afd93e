//! The card that describes a model, and where models are.
//!
//! A model is a folder with a `model.toml` and the files that it names. Another model needs another
//! folder, not other code.
//!
//! - [`card`]: `model.toml` and its rules;
//! - [`hub`]: where a card's files can be fetched;
//! - [`known`](mod@known): the cards that come with the program;
//! - [`home`]: where models are installed.

pub mod card;
pub mod home;
pub mod hub;
pub mod known;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail};
use kernels::{
    preprocess::{Recipe, Resize},
    resample::Filter,
};

pub use card::{Card, FilterName, ImageTower, Joint, JointKind, Pool, ResizeRule, TextTower};
pub use home::Home;
pub use hub::{Hub, HubFile};
pub use known::known;

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
                "model {name:?} is not installed: there is no folder {}\nhint: installed are: {known}; `make setup` installs the default, `clipmill model list` tells what can be added",
                folder.display()
            );
        }
        Self::open(&folder)
    }

    /// Reads the card and checks that its files are there and its rules make sense.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("model.toml");
        let text = fs::read_to_string(&path).with_context(|| format!("model card {}", path.display()))?;
        let card = Card::parse(&text).with_context(|| format!("model card {}", path.display()))?;
        let model = Self { card, folder: folder.to_owned() };
        model.check().with_context(|| format!("model card {}", path.display()))?;
        Ok(model)
    }

    fn check(&self) -> Result<()> {
        for file in self.card.files() {
            if !self.folder.join(file).is_file() {
                bail!("names the file {file}, which is not in {}", self.folder.display());
            }
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
        let mut rule = format!("{:?} {:?} {} {:?}", joint.kind, joint.top, image.embedding, image.logits);
        // Left out where they change nothing, so that older runs stay what they are.
        if joint.centre || joint.temperature.is_some() {
            rule += &format!(" {:?} {}", joint.temperature, joint.centre);
        }
        hasher.update(rule.as_bytes());
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
