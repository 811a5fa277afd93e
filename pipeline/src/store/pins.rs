//! `pins.toml`, beside a model's card: the sha256 of every file as it was installed.
//!
//! It is a file of its own so that the card stays as its author wrote it.

use std::{collections::BTreeMap, fs, io::Read, path::Path};

use anyhow::{Context as _, Result, bail};
use sha2::{Digest as _, Sha256};
use stages::{
    files::write_whole,
    model::{Card, hub::is_sha256},
};

/// Its name.
pub const FILE: &str = "pins.toml";

const HEAD: &str =
    "# The sha256 of every file when this model was installed; `clipmill model check` compares.\n";

/// Files of a model, by their path in its folder, and their sha256.
#[derive(Clone, Debug, Default)]
pub struct Pins(BTreeMap<String, String>);

impl Pins {
    /// Those of a folder; none where it has no file of them.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", path.display())),
        };
        let pins: BTreeMap<String, String> =
            toml::from_str(&text).with_context(|| path.display().to_string())?;
        if let Some((file, _)) = pins.iter().find(|(_, sha256)| !is_sha256(sha256)) {
            bail!("{}: {file} has no sha256 of 64 small hexadecimal digits", path.display());
        }
        Ok(Self(pins))
    }

    /// Writes them whole.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = format!("{HEAD}{}", toml::to_string(&self.0)?);
        write_whole(path, text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The card's own pins win.
    pub fn add_card(&mut self, card: &Card) {
        for file in card.hub.iter().flat_map(|hub| &hub.files) {
            if let Some(sha256) = &file.sha256 {
                self.insert(file.to(), sha256);
            }
        }
    }

    /// Notes a file.
    pub fn insert(&mut self, file: &str, sha256: &str) {
        self.0.insert(file.to_owned(), sha256.to_owned());
    }

    /// Forgets all others.
    pub fn keep_only<'a>(&mut self, files: impl Iterator<Item = &'a str>) {
        let files: Vec<&str> = files.collect();
        self.0.retain(|file, _| files.contains(&file.as_str()));
    }

    /// The pin of a file.
    pub fn get(&self, file: &str) -> Option<&String> {
        self.0.get(file)
    }

    /// All, by file.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &String)> {
        self.0.iter()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Of a file's content, as `sha256sum` prints it.
pub fn sha256_of(path: &Path) -> Result<String> {
    Ok(hex(hash_of(path)?))
}

/// A hasher that has read all of a file.
pub fn hash_of(path: &Path) -> Result<Sha256> {
    let read = || -> std::io::Result<Sha256> {
        let mut file = fs::File::open(path)?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 1 << 18];
        loop {
            match file.read(&mut buffer)? {
                0 => return Ok(hasher),
                n => hasher.update(&buffer[..n]),
            }
        }
    };
    read().with_context(|| format!("cannot read {}", path.display()))
}

/// What the hasher comes to.
pub fn hex(hasher: Sha256) -> String {
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}
