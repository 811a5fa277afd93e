//! The text tower: words to unit vectors of the joint space.

use std::path::Path;

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

use super::{
    joint::normalize,
    network::{self, Feed, Libraries, Network, Values, require},
};
use crate::model::{Model, Pool, TextTower};

/// The text tower of a model, ready for texts.
pub struct TextEncoder {
    tower: TextTower,
    dim: usize,
    tokenizer: Tokenizer,
    network: Box<dyn Network>,
}

impl TextEncoder {
    /// Loads tokenizer and engine. A model without a text tower is an error.
    pub fn open(model: &Model, libraries: &Libraries) -> Result<Self> {
        let name = &model.card.name;
        let tower = model.card.text.clone();
        let tower =
            tower.with_context(|| format!("model {name} has no text tower: words cannot be searched"))?;
        let tokenizer =
            tokenizer(&tower, |file| model.file(file)).with_context(|| format!("model {name}"))?;
        let network = network::open_reference(&model.file(&tower.file), 1, libraries)
            .with_context(|| format!("model {name}"))?;
        let (inputs, outputs) = network.names();
        let wanted = [Some(&tower.input_ids), tower.attention_mask.as_ref(), tower.token_type_ids.as_ref()];
        require(&tower.file, "input", &inputs, wanted.into_iter().flatten())?;
        require(&tower.file, "output", &outputs, [&tower.output])?;
        Ok(Self { tower, dim: model.card.joint.dim, tokenizer, network })
    }

    /// The unit vector of a text.
    pub fn embed(&mut self, text: &str) -> Result<Vec<f32>> {
        let mut ids = token_ids(&self.tokenizer, text, self.tower.max_tokens)?;
        let n_real = ids.len();
        ids.resize(n_real.max(self.tower.pad_to), 0);
        let n = ids.len();
        let mask: Vec<i64> = (0..n).map(|i| i64::from(i < n_real)).collect();
        let segments = vec![0i64; n];
        let tower = &self.tower;
        let inputs = [
            (Some(&tower.input_ids), &ids),
            (tower.attention_mask.as_ref(), &mask),
            (tower.token_type_ids.as_ref(), &segments),
        ];
        let feed = |(name, values): (Option<&'_ String>, &'_ Vec<i64>)| Some((name?.clone(), values.clone()));
        let inputs: Vec<(String, Vec<i64>)> = inputs.into_iter().filter_map(feed).collect();
        let feeds: Vec<Feed<'_>> = inputs
            .iter()
            .map(|(name, values)| Feed { name, shape: vec![1, n], values: Values::I64(values) })
            .collect();
        let values = self.network.run(&feeds, &[&tower.output])?.remove(0).values;
        let mut vector = match self.tower.pool {
            Pool::None => values,
            Pool::Mean => {
                let mut mean = vec![0.0; self.dim];
                for token in values.chunks(self.dim).take(n_real) {
                    mean.iter_mut().zip(token).for_each(|(m, v)| *m += v / n_real as f32);
                }
                mean
            }
        };
        if vector.len() != self.dim {
            bail!("{} gives vectors of {} values, the card says {}", self.tower.file, vector.len(), self.dim);
        }
        normalize(&mut vector);
        Ok(vector)
    }
}

/// Tokens of a text with its start and end, at most `max` of them, the last being the end.
pub fn token_ids(tokenizer: &Tokenizer, text: &str, max: usize) -> Result<Vec<i64>> {
    let encoding = tokenizer.encode(text, true).map_err(|e| anyhow!("cannot tokenize {text:?}: {e}"))?;
    let mut ids: Vec<i64> = encoding.get_ids().iter().map(|id| i64::from(*id)).collect();
    if let Some(end) = ids.last().copied().filter(|_| ids.len() > max) {
        ids.truncate(max - 1);
        ids.push(end);
    }
    Ok(ids)
}

/// The tokenizer that the card names, without padding or truncation of its own.
pub fn tokenizer(tower: &TextTower, path: impl Fn(&str) -> std::path::PathBuf) -> Result<Tokenizer> {
    let mut tokenizer = match (&tower.tokenizer, &tower.vocab, &tower.merges) {
        (Some(file), _, _) => Tokenizer::from_file(path(file)).map_err(|e| anyhow!("{file}: {e}"))?,
        (None, Some(vocab), Some(merges)) => clip_tokenizer(&path(vocab), &path(merges))?,
        _ => bail!("text needs tokenizer, or vocab and merges"),
    };
    tokenizer.with_padding(None);
    tokenizer.with_truncation(None).map_err(|e| anyhow!("{e}"))?;
    Ok(tokenizer)
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
