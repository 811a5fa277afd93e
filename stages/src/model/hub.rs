//! Where a card's files can be fetched, and what they must be.

use std::collections::BTreeSet;

use anyhow::{Result, bail};
use serde::Deserialize;

use super::card::check_inside;

/// Files of a model's folder that are no hub's to write.
const OUR_FILES: [&str; 2] = ["model.toml", "pins.toml"];

/// `[hub]`: a repository in the form of Hugging Face's, at one revision.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hub {
    /// Such as `Xenova/clip-vit-base-patch32`.
    pub repo: String,
    /// A commit; a branch's files may change.
    pub revision: String,
    /// All that the model needs.
    pub files: Vec<HubFile>,
}

/// `[[hub.files]]`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubFile {
    /// In the repository.
    pub path: String,
    /// In the model's folder; by default the last part of `path`.
    pub to: Option<String>,
    /// Of its content, 64 small hexadecimal digits.
    pub sha256: Option<String>,
    /// Bytes.
    pub size: Option<u64>,
}

impl HubFile {
    /// Its path in the model's folder.
    pub fn to(&self) -> &str {
        self.to.as_deref().unwrap_or_else(|| self.path.rsplit('/').next().unwrap_or_default())
    }
}

impl Hub {
    pub(super) fn check(&self) -> Result<()> {
        for (key, value) in [("repo", &self.repo), ("revision", &self.revision)] {
            check_url_path(key, value)?;
        }
        if self.files.is_empty() {
            bail!("files is empty");
        }
        let mut seen = BTreeSet::new();
        for file in &self.files {
            check_url_path("files.path", &file.path)?;
            check_inside(file.to())?;
            if OUR_FILES.contains(&file.to()) || !seen.insert(file.to()) {
                bail!("two files would be {}", file.to());
            }
            if file.sha256.as_ref().is_some_and(|hash| !is_sha256(hash)) {
                bail!("sha256 of {} is not 64 small hexadecimal digits", file.path);
            }
        }
        Ok(())
    }
}

/// Whether this is a sha256 as `sha256sum` prints it.
pub fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// What becomes part of an address, so that it needs no escapes and leads nowhere else.
fn check_url_path(key: &str, value: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '_' | '+');
    if value.is_empty()
        || !value.chars().all(plain)
        || value.split('/').any(|part| matches!(part, "" | "." | ".."))
    {
        bail!("{key} is {value:?}, needs letters, digits and . - _ + between single slashes");
    }
    Ok(())
}
