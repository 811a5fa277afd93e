//! SentencePiece's unigram tokenizer, from the model file that it trains.
//!
//! Written from the method (Kudo, "Subword Regularization", 2018; github.com/google/sentencepiece)
//! and held against the library's own ids. The `tokenizers` crate can be built from the same file,
//! but its normalizer looks at graphemes where SentencePiece takes the longest match, and its
//! vocabulary lets the text `</s>` be the end token.

use std::collections::HashMap;

use anyhow::{Result, bail};

use super::spiece_file::{self, Kind, SpieceFile};

/// What stands for a space inside pieces.
const SPACE: char = '▁';
/// An unknown character costs so much more than the least likely piece.
const UNKNOWN_PENALTY: f32 = 10.0;

/// A tokenizer, ready for texts.
pub struct SentencePiece {
    normalizer: Normalizer,
    /// Pieces that a text can have, by their bytes: id and score.
    pieces: HashMap<Vec<u8>, (u32, f32)>,
    longest: usize,
    unknown: (u32, f32),
    /// Ids of the bytes 0 to 255, where the model spells unknown characters in bytes.
    bytes: Option<Vec<u32>>,
    end: Option<u32>,
}

impl SentencePiece {
    /// Reads the bytes of a `.model` file. Models of another kind than unigram are an error.
    pub fn parse(file: &[u8]) -> Result<Self> {
        let file = SpieceFile::parse(file)?;
        if file.model_type != spiece_file::UNIGRAM {
            bail!("is no unigram model (its type is {}); only those are read", file.model_type);
        }
        let scores = || file.pieces.iter().filter(|p| p.kind == Kind::Normal).map(|p| p.score);
        let least = scores().fold(f32::MAX, f32::min);
        let most = scores().fold(f32::MIN, f32::max);
        let mut pieces = HashMap::new();
        let mut by_byte = vec![None; 256];
        let mut unknown = None;
        let mut whole = Vec::new();
        for (id, piece) in (0u32..).zip(&file.pieces) {
            let text = piece.text.as_bytes();
            match piece.kind {
                Kind::Normal => {
                    pieces.insert(text.to_vec(), (id, piece.score));
                }
                Kind::UserDefined => {
                    // As the library scores them: longer ones win over any parts.
                    pieces.insert(text.to_vec(), (id, text.len() as f32 * most - 0.1));
                    whole.push(piece.text.clone());
                }
                Kind::Unknown => unknown = Some(id),
                Kind::Byte => {
                    let hex = piece.text.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
                    let byte = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
                    if let Some(byte) = byte {
                        by_byte[usize::from(byte)] = Some(id);
                    }
                }
                Kind::Control | Kind::Unused => (),
            }
        }
        let Some(unknown) = unknown else { bail!("has no unknown piece") };
        let bytes: Option<Vec<u32>> = by_byte.into_iter().collect();
        let end = u32::try_from(file.end_id).ok();
        if end.is_some_and(|id| id as usize >= file.pieces.len()) {
            bail!("its end token is {}, and it has {} pieces", file.end_id, file.pieces.len());
        }
        Ok(Self {
            longest: pieces.keys().map(Vec::len).max().unwrap_or(0),
            pieces,
            unknown: (unknown, least - UNKNOWN_PENALTY),
            bytes: bytes.filter(|_| file.byte_fallback),
            end,
            normalizer: Normalizer::new(&file, whole)?,
        })
    }

    /// Ids of a text, its end token last where the model has one.
    pub fn ids(&self, text: &str) -> Vec<i64> {
        let text = self.normalizer.normalize(text);
        let mut ids = Vec::new();
        let mut after_unknown = false;
        for (id, piece) in self.best_path(&text) {
            let is_unknown = id == self.unknown.0;
            match &self.bytes {
                Some(bytes) if is_unknown => {
                    ids.extend(piece.bytes().map(|b| i64::from(bytes[usize::from(b)])));
                }
                // Neighbours that are unknown are one token.
                _ if is_unknown && after_unknown => (),
                _ => ids.push(i64::from(id)),
            }
            after_unknown = is_unknown;
        }
        ids.extend(self.end.map(i64::from));
        ids
    }

    /// The most likely way to cut a normalized text, by Viterbi's algorithm. Sums are 32-bit floats
    /// as the library's are, so ties fall the same way.
    fn best_path<'t>(&self, text: &'t str) -> Vec<(u32, &'t str)> {
        #[derive(Clone, Copy)]
        struct Best {
            id: u32,
            score: f32,
            from: usize,
        }
        let bytes = text.as_bytes();
        let mut best: Vec<Option<Best>> = vec![None; bytes.len() + 1];
        for (from, first) in text.char_indices() {
            let score_here = best[from].map_or(0.0, |b| b.score);
            let mut offer = |to: usize, id: u32, score: f32| {
                let score = score + score_here;
                if best[to].is_none_or(|b| score > b.score) {
                    best[to] = Some(Best { id, score, from });
                }
            };
            let alone = from + first.len_utf8();
            let mut is_known = false;
            for to in from + 1..=bytes.len().min(from + self.longest) {
                if let Some((id, score)) = self.pieces.get(&bytes[from..to]) {
                    offer(to, *id, *score);
                    is_known |= to == alone;
                }
            }
            if !is_known {
                offer(alone, self.unknown.0, self.unknown.1);
            }
        }
        let mut path = Vec::new();
        let mut to = bytes.len();
        while let Some(step) = best[to].filter(|_| to > 0) {
            path.push((step.id, &text[step.from..to]));
            to = step.from;
        }
        path.reverse();
        path
    }
}

/// Brings texts to the form that pieces were trained on.
struct Normalizer {
    rules: Option<Rules>,
    /// Pieces that are never changed, longest first.
    whole: Vec<String>,
    adds_space_before: bool,
    adds_space_behind: bool,
    removes_spaces: bool,
    space: char,
}

impl Normalizer {
    fn new(file: &SpieceFile, mut whole: Vec<String>) -> Result<Self> {
        whole.sort_by_key(|piece| std::cmp::Reverse(piece.len()));
        Ok(Self {
            rules: Rules::parse(&file.charsmap)?,
            whole,
            adds_space_before: file.add_dummy_prefix && !file.space_is_suffix,
            adds_space_behind: file.add_dummy_prefix && file.space_is_suffix,
            removes_spaces: file.remove_extra_spaces,
            space: if file.escape_spaces { SPACE } else { ' ' },
        })
    }

    /// What the text starts with becomes this; and so many of its bytes are used up.
    fn step<'a>(&'a self, text: &'a str) -> (&'a str, usize) {
        if let Some(piece) = self.whole.iter().find(|piece| text.starts_with(piece.as_str())) {
            return (piece, piece.len());
        }
        if let Some(found) = self.rules.as_ref().and_then(|rules| rules.longest_match(text)) {
            return found;
        }
        let first = text.chars().next().map_or(0, char::len_utf8);
        (&text[..first], first)
    }

    fn normalize(&self, mut text: &str) -> String {
        if self.removes_spaces {
            while !text.is_empty() {
                let (becomes, used) = self.step(text);
                if becomes != " " {
                    break;
                }
                text = &text[used..];
            }
        }
        let mut normal = String::with_capacity(text.len() + SPACE.len_utf8());
        if text.is_empty() {
            return normal;
        }
        if self.adds_space_before {
            normal.push(self.space);
        }
        let mut after_space = self.removes_spaces;
        while !text.is_empty() {
            let (mut becomes, used) = self.step(text);
            if after_space {
                becomes = becomes.trim_start_matches(' ');
            }
            if !becomes.is_empty() {
                normal.extend(becomes.chars().map(|c| if c == ' ' { self.space } else { c }));
                after_space = becomes.ends_with(' ');
            }
            after_space &= self.removes_spaces;
            text = &text[used..];
        }
        if self.removes_spaces {
            normal.truncate(normal.trim_end_matches(self.space).len());
        }
        if self.adds_space_behind {
            normal.push(self.space);
        }
        normal
    }
}

/// The model's replacements: a double-array trie (Yata's darts-clone) from texts to offsets in a table
/// of texts that end with a zero.
struct Rules {
    units: Vec<u32>,
    texts: String,
}

impl Rules {
    fn parse(charsmap: &[u8]) -> Result<Option<Self>> {
        if charsmap.is_empty() {
            return Ok(None);
        }
        let parts = charsmap.split_first_chunk::<4>().and_then(|(size, rest)| {
            rest.split_at_checked(u32::from_le_bytes(*size) as usize).filter(|(trie, _)| trie.len() % 4 == 0)
        });
        let Some((trie, texts)) = parts else { bail!("its table of replacements is cut off") };
        let (units, _) = trie.as_chunks::<4>();
        Ok(Some(Self {
            units: units.iter().map(|unit| u32::from_le_bytes(*unit)).collect(),
            texts: String::from_utf8(texts.to_vec())?,
        }))
    }

    /// The replacement of the longest start of the text that has one, and that start's length.
    fn longest_match(&self, text: &str) -> Option<(&str, usize)> {
        // Layout of a unit: https://github.com/s-yata/darts-clone, `DoubleArrayUnit`.
        let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
        let label = |unit: u32| unit & ((1 << 31) | 0xFF);
        let has_value = |unit: u32| unit & (1 << 8) != 0;
        let mut at = offset(*self.units.first()?);
        let mut found = None;
        for (i, byte) in text.bytes().enumerate() {
            at ^= usize::from(byte);
            let Some(unit) = self.units.get(at).copied().filter(|unit| label(*unit) == u32::from(byte))
            else {
                break;
            };
            at ^= offset(unit);
            if has_value(unit) {
                let value = self.units.get(at)? & !(1 << 31);
                found = Some((value as usize, i + 1));
            }
        }
        let (value, used) = found?;
        // A match that ends inside a character can only come from a damaged table.
        let becomes = self.texts.get(value..)?.split('\0').next()?;
        text.is_char_boundary(used).then_some((becomes, used))
    }
}
