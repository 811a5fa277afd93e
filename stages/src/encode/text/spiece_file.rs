//! The parts of SentencePiece's model file that tokenizing needs.
//!
//! Fields and numbers are those of `sentencepiece_model.proto`,
//! <https://github.com/google/sentencepiece>. Unknown fields are skipped, as protocol buffers want it.

use anyhow::{Context as _, Result, bail};

/// `TrainerSpec.ModelType`.
pub const UNIGRAM: u64 = 1;

/// What a piece is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Part of texts.
    Normal,
    /// Stands for what no piece covers.
    Unknown,
    /// Start, end or padding; never part of a text.
    Control,
    /// Part of texts, never cut or normalized.
    UserDefined,
    /// A byte of an unknown character.
    Byte,
    /// Not to be produced.
    Unused,
}

/// A piece; its id is its place.
#[derive(Clone, Debug)]
pub struct Piece {
    /// With `▁` for spaces.
    pub text: String,
    /// Logarithm of its probability.
    pub score: f32,
    /// Its kind.
    pub kind: Kind,
}

/// A `.model` file.
#[derive(Clone, Debug)]
pub struct SpieceFile {
    /// All, by id.
    pub pieces: Vec<Piece>,
    /// [`UNIGRAM`] is what we read.
    pub model_type: u64,
    /// Id of the end token, or -1.
    pub end_id: i64,
    /// Unknown characters are spelt in bytes.
    pub byte_fallback: bool,
    /// Spaces end words, they do not start them.
    pub space_is_suffix: bool,
    /// Replacements, in the form of [`super::sentencepiece`].
    pub charsmap: Vec<u8>,
    /// A space is put at the text's edge.
    pub add_dummy_prefix: bool,
    /// Leading, trailing and repeated spaces go.
    pub remove_extra_spaces: bool,
    /// Spaces become `▁`.
    pub escape_spaces: bool,
}

impl SpieceFile {
    /// Reads a file's bytes.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        // Defaults are the schema's.
        let mut file = Self {
            pieces: Vec::new(),
            model_type: UNIGRAM,
            end_id: 2,
            byte_fallback: false,
            space_is_suffix: false,
            charsmap: Vec::new(),
            add_dummy_prefix: true,
            remove_extra_spaces: true,
            escape_spaces: true,
        };
        for field in Fields(bytes) {
            match field.context("is no SentencePiece model")? {
                (1, Value::Bytes(piece)) => file.pieces.push(read_piece(piece)?),
                (2, Value::Bytes(trainer)) => {
                    for field in Fields(trainer) {
                        match field? {
                            (3, Value::Number(n)) => file.model_type = n,
                            (24, Value::Number(n)) => file.space_is_suffix = n != 0,
                            (35, Value::Number(n)) => file.byte_fallback = n != 0,
                            (42, Value::Number(n)) => file.end_id = n as i64,
                            _ => (),
                        }
                    }
                }
                (3, Value::Bytes(normalizer)) => {
                    for field in Fields(normalizer) {
                        match field? {
                            (2, Value::Bytes(map)) => file.charsmap = map.to_vec(),
                            (3, Value::Number(n)) => file.add_dummy_prefix = n != 0,
                            (4, Value::Number(n)) => file.remove_extra_spaces = n != 0,
                            (5, Value::Number(n)) => file.escape_spaces = n != 0,
                            _ => (),
                        }
                    }
                }
                _ => (),
            }
        }
        if file.pieces.is_empty() {
            bail!("is no SentencePiece model: it has no pieces");
        }
        Ok(file)
    }
}

fn read_piece(bytes: &[u8]) -> Result<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: Kind::Normal };
    for field in Fields(bytes) {
        match field? {
            (1, Value::Bytes(text)) => piece.text = std::str::from_utf8(text)?.to_owned(),
            (2, Value::Word(bits)) => piece.score = f32::from_bits(bits),
            (3, Value::Number(kind)) => {
                piece.kind = match kind {
                    1 => Kind::Normal,
                    2 => Kind::Unknown,
                    3 => Kind::Control,
                    4 => Kind::UserDefined,
                    5 => Kind::Unused,
                    6 => Kind::Byte,
                    other => bail!("piece {:?} is of the unknown kind {other}", piece.text),
                };
            }
            _ => (),
        }
    }
    Ok(piece)
}

/// A value of a protocol buffer's field.
enum Value<'a> {
    Number(u64),
    Word(u32),
    Bytes(&'a [u8]),
    Skipped,
}

/// The fields of a message, in the order that they are written.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn varint(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (byte, rest) = self.0.split_first().context("a number is cut off")?;
            self.0 = rest;
            value |= u64::from(byte & 0x7F) << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        bail!("a number is longer than 64 bits")
    }

    fn take(&mut self, n: u64) -> Result<&'a [u8]> {
        let n = usize::try_from(n)?;
        let (taken, rest) = self.0.split_at_checked(n).context("a field is cut off")?;
        self.0 = rest;
        Ok(taken)
    }

    fn field(&mut self) -> Result<(u64, Value<'a>)> {
        let tag = self.varint()?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => {
                self.take(8)?;
                Value::Skipped
            }
            2 => {
                let n = self.varint()?;
                Value::Bytes(self.take(n)?)
            }
            5 => {
                let word = self.take(4)?;
                Value::Word(u32::from_le_bytes(word.try_into()?))
            }
            other => bail!("a field is of the unknown form {other}"),
        };
        Ok((tag >> 3, value))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u64, Value<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.0 = &[];
        }
        Some(field)
    }
}
