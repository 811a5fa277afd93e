//! `model.toml`: what a model is made of, and the rules that a card must keep.

use std::path::{Component, Path};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use super::hub::Hub;

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
    /// Where its files can be fetched.
    pub hub: Option<Hub>,
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
    /// `tokenizer.json` of the `tokenizers` library; or `vocab` and `merges`; or `sentencepiece`.
    pub tokenizer: Option<String>,
    /// CLIP's byte-pair vocabulary, `vocab.json`.
    pub vocab: Option<String>,
    /// CLIP's merges, `merges.txt`.
    pub merges: Option<String>,
    /// SentencePiece's unigram model, such as `spiece.model`; its end token is appended.
    pub sentencepiece: Option<String>,
    /// Texts are lower-cased before all else.
    #[serde(default)]
    pub lowercase: bool,
    /// ASCII punctuation is removed, white space runs become one space, none at either end.
    #[serde(default)]
    pub strip_punctuation: bool,
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
    /// The token that fills up to `pad_to`.
    #[serde(default)]
    pub pad_id: i64,
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
    /// Divides the class scores before they become probabilities; 1 where it is not stated.
    pub temperature: Option<f32>,
    /// Whether the bank's mean vector is taken off pictures and words, for `concepts`: names of things
    /// share most of what a text vector says, and their differences are what a search is about.
    #[serde(default)]
    pub centre: bool,
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

impl Card {
    /// Reads a card and checks its rules; opens no file.
    pub fn parse(text: &str) -> Result<Self> {
        let card: Self = toml::from_str(text)?;
        card.check()?;
        Ok(card)
    }

    /// The files that it names and that are not derived, relative to the model's folder.
    pub fn files(&self) -> Vec<&str> {
        let mut files = vec![&self.image.file];
        if let Some(text) = &self.text {
            files.push(&text.file);
            files.extend(text.tokenizer.iter().chain(&text.vocab).chain(&text.merges));
            files.extend(&text.sentencepiece);
        }
        files.extend(&self.joint.names);
        files.into_iter().map(String::as_str).collect()
    }

    fn check(&self) -> Result<()> {
        let Self { image, text, joint, .. } = self;
        check_name(&self.name)?;
        if let Some(text) = text {
            let pairs = text.vocab.is_some() && text.merges.is_some();
            let kinds = [text.tokenizer.is_some(), pairs, text.sentencepiece.is_some()];
            if kinds.iter().filter(|is_there| **is_there).count() != 1 {
                bail!("text needs one of tokenizer, vocab and merges, or sentencepiece");
            }
        }
        for file in self.files() {
            check_inside(file)?;
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
            JointKind::Concepts if joint.temperature.is_some_and(|t| !(t > 0.0 && t.is_finite())) => {
                bail!("joint.temperature must be above 0");
            }
            JointKind::Concepts => {
                let has_all =
                    image.logits.is_some() && text.is_some() && joint.names.is_some() && joint.bank.is_some();
                if !has_all || joint.top.unwrap_or(0) == 0 {
                    bail!(
                        "joint.kind = \"concepts\" needs image.logits, [text], joint.names, joint.bank and joint.top"
                    );
                }
            }
            JointKind::Direct if joint.centre || joint.temperature.is_some() => {
                bail!("joint.centre and joint.temperature are for joint.kind = \"concepts\"");
            }
            JointKind::Direct if joint.dim != image.dim => {
                bail!("joint.dim is {}, but image.dim is {}", joint.dim, image.dim);
            }
            JointKind::Direct => (),
        }
        if let Some(hub) = &self.hub {
            hub.check().context("hub")?;
            for file in self.files() {
                if !hub.files.iter().any(|f| f.to() == file) {
                    bail!("hub.files has nothing for {file}");
                }
            }
        }
        Ok(())
    }
}

/// Fails for a file that would not be below the model's folder.
pub(super) fn check_inside(file: &str) -> Result<()> {
    let is_inside = Path::new(file).components().all(|part| matches!(part, Component::Normal(_)));
    if file.is_empty() || !is_inside {
        bail!("{file:?} is no path below the model's folder");
    }
    Ok(())
}

/// A name that is one plain part of a path, and not hidden.
pub fn check_name(name: &str) -> Result<()> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | '+');
    if name.is_empty() || name.starts_with('.') || !name.chars().all(is_plain) {
        bail!("{name:?} is no model's name: that has letters, digits and . - _ + and starts with no point");
    }
    Ok(())
}
