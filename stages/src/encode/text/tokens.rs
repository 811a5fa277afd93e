//! Texts to token ids, by whichever tokenizer the card names.

use std::{
    borrow::Cow,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, anyhow, bail};
use tokenizers::{
    Tokenizer,
    models::bpe::BPE,
    normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers},
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence as PreTokenizers,
        split::{Split, SplitPattern},
    },
    processors::roberta::RobertaProcessing,
    tokenizer::SplitDelimiterBehavior,
};

use super::sentencepiece::SentencePiece;
use crate::model::TextTower;

/// A tokenizer, and how texts are cleaned for it.
pub struct Tokens {
    kind: Kind,
    lowercase: bool,
    strip_punctuation: bool,
}

enum Kind {
    Library(Box<Tokenizer>),
    SentencePiece(SentencePiece),
}

impl Tokens {
    /// The tokenizer that the card names, without padding or truncation of its own. `path` finds a
    /// file of the model.
    pub fn open(tower: &TextTower, path: impl Fn(&str) -> PathBuf) -> Result<Self> {
        let kind = match (&tower.tokenizer, &tower.vocab, &tower.merges, &tower.sentencepiece) {
            (Some(file), ..) => {
                library(Tokenizer::from_file(path(file)).map_err(|e| anyhow!("{file}: {e}"))?)?
            }
            (None, Some(vocab), Some(merges), _) => library(clip_tokenizer(&path(vocab), &path(merges))?)?,
            (_, _, _, Some(file)) => {
                let bytes = std::fs::read(path(file)).with_context(|| file.clone())?;
                Kind::SentencePiece(SentencePiece::parse(&bytes).with_context(|| file.clone())?)
            }
            _ => bail!("text needs one of tokenizer, vocab and merges, or sentencepiece"),
        };
        Ok(Self { kind, lowercase: tower.lowercase, strip_punctuation: tower.strip_punctuation })
    }

    /// Tokens of a text with its start and end, at most `max` of them, the last being the end.
    pub fn ids(&self, text: &str, max: usize) -> Result<Vec<i64>> {
        let text = self.clean(text);
        let mut ids: Vec<i64> = match &self.kind {
            Kind::Library(tokenizer) => {
                let encoding =
                    tokenizer.encode(&*text, true).map_err(|e| anyhow!("cannot tokenize {text:?}: {e}"))?;
                encoding.get_ids().iter().map(|id| i64::from(*id)).collect()
            }
            Kind::SentencePiece(pieces) => pieces.ids(&text),
        };
        if let Some(end) = ids.last().copied().filter(|_| ids.len() > max) {
            ids.truncate(max - 1);
            ids.push(end);
        }
        Ok(ids)
    }

    fn clean<'t>(&self, text: &'t str) -> Cow<'t, str> {
        let mut text = Cow::Borrowed(text);
        if self.lowercase {
            text = text.to_lowercase().into();
        }
        if self.strip_punctuation {
            let kept = text.replace(|c: char| c.is_ascii_punctuation(), "");
            // The information separators are white space to Python, which the models were trained with.
            let words = kept.split(|c: char| c.is_whitespace() || ('\x1C'..='\x1F').contains(&c));
            text = words.filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ").into();
        }
        text
    }
}

fn library(mut tokenizer: Tokenizer) -> Result<Kind> {
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|e| anyhow!("{e}"))?;
    Ok(Kind::Library(Box::new(tokenizer)))
}

/// CLIP's byte-pair tokenizer from its two vocabulary files, as Hugging Face's `CLIPTokenizer` builds
/// it: NFC, whitespace runs to one space, lower case; words by CLIP's pattern; `</w>` ends a word.
fn clip_tokenizer(vocab: &Path, merges: &Path) -> Result<Tokenizer> {
    const PATTERN: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
    const END: &str = "<|endoftext|>";
    let fail = |e: tokenizers::Error| anyhow!("{} and {}: {e}", vocab.display(), merges.display());
    let bpe = BPE::from_file(&vocab.to_string_lossy(), &merges.to_string_lossy())
        .unk_token(END.into())
        .end_of_word_suffix("</w>".into())
        .build()
        .map_err(fail)?;
    let mut tokenizer = Tokenizer::new(bpe);
    let one_space = Replace::new(tokenizers::normalizers::replace::ReplacePattern::Regex(r"\s+".into()), " ");
    let steps = vec![NFC.into(), one_space.map_err(fail)?.into(), Lowercase.into()];
    tokenizer.with_normalizer(Some(Normalizers::new(steps))).map_err(fail)?;
    let words = Split::new(SplitPattern::Regex(PATTERN.into()), SplitDelimiterBehavior::Removed, true);
    let bytes = ByteLevel::new(false, true, true);
    tokenizer.with_pre_tokenizer(Some(PreTokenizers::new(vec![words.map_err(fail)?.into(), bytes.into()])));
    let id =
        |token: &str| tokenizer.token_to_id(token).with_context(|| format!("the vocabulary lacks {token}"));
    let (start, end) = (id("<|startoftext|>")?, id(END)?);
    let ends =
        RobertaProcessing::new((END.into(), end), ("<|startoftext|>".into(), start)).trim_offsets(false);
    tokenizer.with_post_processor(Some(ends.add_prefix_space(false)));
    Ok(tokenizer)
}
