//! Writes tiny ONNX models, so that a test needs no weights.
//!
//! The image tower's output can be read: [`Seen`] says how bright and what colour a picture is and
//! which side is the brighter. The text tower has a vector a word, in the same space.

use std::{fs, path::Path};

/// Length of the vectors.
pub const DIM: usize = 6;
/// Samples across and down of the image tower's input.
pub const SIDE: usize = 16;
/// The value that is the same for every picture; it makes brightness a direction.
const CONSTANT: f32 = 0.5;

/// A protocol buffer message being written.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn int(mut self, field: u64, value: i64) -> Self {
        self.varint(field << 3);
        self.varint(value as u64);
        self
    }

    fn bytes(mut self, field: u64, bytes: impl AsRef<[u8]>) -> Self {
        self.varint(field << 3 | 2);
        self.varint(bytes.as_ref().len() as u64);
        self.0.extend(bytes.as_ref());
        self
    }

    fn all<T>(self, items: impl IntoIterator<Item = T>, add: impl Fn(Self, T) -> Self) -> Self {
        items.into_iter().fold(self, add)
    }
}

impl AsRef<[u8]> for Message {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

// Numbers of fields and types are those of onnx.proto, https://github.com/onnx/onnx.
const FLOAT: i64 = 1;
const INT64: i64 = 7;

/// A ValueInfoProto; a size of -1 may be any.
fn value(name: &str, kind: i64, shape: &[i64]) -> Message {
    let dim = |size: i64| match size {
        -1 => Message::default().bytes(2, "n"),
        size => Message::default().int(1, size),
    };
    let shape = Message::default().all(shape, |m, size| m.bytes(1, dim(*size)));
    let tensor = Message::default().int(1, kind).bytes(2, shape);
    Message::default().bytes(1, name).bytes(2, Message::default().bytes(1, tensor))
}

/// A TensorProto.
fn constant(name: &str, shape: &[usize], values: &[f32]) -> Message {
    assert_eq!(shape.iter().product::<usize>(), values.len(), "{name}");
    let raw: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Message::default().all(shape, |m, size| m.int(1, *size as i64)).int(2, FLOAT).bytes(8, name).bytes(9, raw)
}

/// A NodeProto with attributes that are lists of integers, or one if it is alone.
fn node(op: &str, inputs: &[&str], output: &str, attributes: &[(&str, i64, bool)]) -> Message {
    let attribute = |(name, value, is_list): &(&str, i64, bool)| {
        let named = Message::default().bytes(1, name);
        if *is_list { named.int(8, *value).int(20, 7) } else { named.int(3, *value).int(20, 2) }
    };
    Message::default()
        .all(inputs, |m, input| m.bytes(1, input))
        .bytes(2, output)
        .bytes(4, op)
        .all(attributes, |m, a| m.bytes(5, attribute(a)))
}

/// A ModelProto of operator set 13.
fn model(nodes: &[Message], constants: &[Message], input: Message, output: Message) -> Vec<u8> {
    let graph = Message::default()
        .all(nodes, |m, n| m.bytes(1, n))
        .bytes(2, "tiny")
        .all(constants, |m, c| m.bytes(5, c))
        .bytes(11, input)
        .bytes(12, output);
    let opset = Message::default().bytes(1, "").int(2, 13);
    Message::default().int(1, 8).bytes(7, graph).bytes(8, opset).0
}

/// What the tower makes of red, green and blue in 0..1: brightness, the constant, two differences of
/// colours, upper less lower half, left less right half.
fn image_tower() -> Vec<u8> {
    let mut weights = Vec::new();
    let (n, half) = ((SIDE * SIDE) as f32, SIDE / 2);
    for [warm, green] in [[1.0, -0.5], [0.0, 1.0], [-1.0, -0.5]] {
        for (row, column) in (0..SIDE).flat_map(|row| (0..SIDE).map(move |column| (row, column))) {
            let sign = |first: bool| if first { 1.0 } else { -1.0 };
            let grey = 1.0 / (3.0 * n);
            weights.extend([
                grey,
                0.0,
                warm / n,
                green / n,
                grey * sign(row < half),
                grey * sign(column < half),
            ]);
        }
    }
    let mut bias = [0.0; DIM];
    bias[1] = CONSTANT;
    let side = SIDE as i64;
    model(
        &[
            node("Flatten", &["pixel_values"], "flat", &[("axis", 1, false)]),
            node("MatMul", &["flat", "weights"], "product", &[]),
            node("Add", &["product", "bias"], "embedding", &[]),
        ],
        &[constant("weights", &[3 * SIDE * SIDE, DIM], &weights), constant("bias", &[DIM], &bias)],
        value("pixel_values", FLOAT, &[-1, 3, side, side]),
        value("embedding", FLOAT, &[-1, DIM as i64]),
    )
}

/// A tower with a layer that can be quantized and is not the last: a convolution of half the picture's
/// side, its negative values cut off, the mean of each channel.
fn conv_tower() -> Vec<u8> {
    let kernel = SIDE / 2;
    let weight = |i: usize| ((i * 37 + i / 64 * 11) % 101) as f32 / 101.0 - 0.4;
    let weights: Vec<f32> = (0..DIM * 3 * kernel * kernel).map(weight).collect();
    let side = SIDE as i64;
    model(
        &[
            node("Conv", &["pixel_values", "weights", "bias"], "found", &[]),
            node("Relu", &["found"], "positive", &[]),
            node("GlobalAveragePool", &["positive"], "pooled", &[]),
            node("Flatten", &["pooled"], "embedding", &[("axis", 1, false)]),
        ],
        &[constant("weights", &[DIM, 3, kernel, kernel], &weights), constant("bias", &[DIM], &[0.1; DIM])],
        value("pixel_values", FLOAT, &[-1, 3, side, side]),
        value("embedding", FLOAT, &[-1, DIM as i64]),
    )
}

/// A tower with a normalization written out, over numbers whose squares are more than fp16 can hold, and a
/// softmax: what transformers have.
fn norm_tower() -> Vec<u8> {
    const WIDE: usize = 48;
    let wave = |i: usize, size: f32| ((i * 29 + i / WIDE * 13) % 83) as f32 / 83.0 * size - size / 2.0;
    let wide: Vec<f32> = (0..3 * SIDE * SIDE * WIDE).map(|i| wave(i, 30.0)).collect();
    let last: Vec<f32> = (0..WIDE * DIM).map(|i| wave(i, 2.0)).collect();
    let side = SIDE as i64;
    let mean = &[("axes", 1, true), ("keepdims", 1, false)];
    model(
        &[
            node("Flatten", &["pixel_values"], "flat", &[("axis", 1, false)]),
            node("MatMul", &["flat", "wide"], "found", &[]),
            node("ReduceMean", &["found"], "mean", mean),
            node("Sub", &["found", "mean"], "centred", &[]),
            node("Pow", &["centred", "two"], "squares", &[]),
            node("ReduceMean", &["squares"], "variance", mean),
            node("Add", &["variance", "little"], "positive", &[]),
            node("Sqrt", &["positive"], "deviation", &[]),
            node("Div", &["centred", "deviation"], "normal", &[]),
            node("Softmax", &["normal"], "shares", &[("axis", 1, false)]),
            node("Sub", &["shares", "normal"], "both", &[]),
            node("MatMul", &["both", "last"], "embedding", &[]),
        ],
        &[
            constant("wide", &[3 * SIDE * SIDE, WIDE], &wide),
            constant("two", &[1], &[2.0]),
            constant("little", &[1], &[1e-6]),
            constant("last", &[WIDE, DIM], &last),
        ],
        value("pixel_values", FLOAT, &[-1, 3, side, side]),
        value("embedding", FLOAT, &[-1, DIM as i64]),
    )
}

/// Words, and what the image tower says of such a picture.
const WORDS: &[(&str, [f32; 3])] =
    &[("red", [1.0, 0.0, 0.0]), ("green", [0.0, 1.0, 0.0]), ("blue", [0.0, 0.0, 1.0]), ("white", [1.0; 3])];

/// Rows of the word table: nothing for padding, unknown words, start and end.
const N_SPECIAL: usize = 4;

fn text_tower() -> Vec<u8> {
    let mut table = vec![0.0; N_SPECIAL * DIM];
    for (_, [r, g, b]) in WORDS {
        table.extend([(r + g + b) / 3.0, CONSTANT, r - b, g - (r + b) / 2.0, 0.0, 0.0]);
    }
    model(
        &[
            node("Gather", &["table", "input_ids"], "tokens", &[("axis", 0, false)]),
            node("ReduceMean", &["tokens"], "text_embeds", &[("axes", 1, true), ("keepdims", 0, false)]),
        ],
        &[constant("table", &[N_SPECIAL + WORDS.len(), DIM], &table)],
        value("input_ids", INT64, &[-1, -1]),
        value("text_embeds", FLOAT, &[-1, DIM as i64]),
    )
}

fn tokenizer() -> String {
    let special = ["[PAD]", "[UNK]", "[START]", "[END]"];
    let words = special.into_iter().chain(WORDS.iter().map(|(word, _)| *word));
    let vocab: serde_json::Map<_, _> =
        words.zip(0..).map(|(word, id)| (word.to_owned(), id.into())).collect();
    let ends = serde_json::json!({
        "type": "BertProcessing", "sep": ["[END]", 3], "cls": ["[START]", 2],
    });
    serde_json::json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
        "normalizer": { "type": "Lowercase" }, "pre_tokenizer": { "type": "Whitespace" },
        "post_processor": ends, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]" },
    })
    .to_string()
}

const CARD: &str = r#"
name = "tiny"
licence = "none needed"
source = "tests/support/onnx.rs"

[image]
file = "image.onnx"
input = "pixel_values"
width = 16
height = 16
resize = "shorter-side"
resize_to = 16
filter = "bilinear"
mean = [0.0, 0.0, 0.0]
std = [1.0, 1.0, 1.0]
embedding = "embedding"
dim = 6

[joint]
kind = "direct"
dim = 6
"#;

const TEXT_CARD: &str = r#"
[text]
file = "text.onnx"
tokenizer = "tokenizer.json"
input_ids = "input_ids"
output = "text_embeds"
pool = "none"
max_tokens = 8
pad_to = 8
"#;

/// Writes a model that sees, but does not read.
pub fn write_image_model(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("image.onnx"), image_tower()).unwrap();
    fs::write(folder.join("model.toml"), CARD).unwrap();
}

/// Writes a model whose image tower can be quantized; its vectors say nothing.
pub fn write_conv_model(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("image.onnx"), conv_tower()).unwrap();
    fs::write(folder.join("model.toml"), CARD).unwrap();
}

/// Writes a model whose middle results leave fp16's range; its vectors say nothing.
pub fn write_norm_model(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("image.onnx"), norm_tower()).unwrap();
    fs::write(folder.join("model.toml"), CARD).unwrap();
}

/// Writes a model of CLIP's shape: two towers, one space.
pub fn write_clip_model(folder: &Path) {
    write_image_model(folder);
    fs::write(folder.join("text.onnx"), text_tower()).unwrap();
    fs::write(folder.join("tokenizer.json"), tokenizer()).unwrap();
    fs::write(folder.join("model.toml"), format!("{CARD}{TEXT_CARD}")).unwrap();
}

/// What a vector of the image tower says, its length undone.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// 0 is black, 1 white.
    pub brightness: f32,
    /// Upper less lower half.
    pub above: f32,
    /// Left less right half.
    pub left: f32,
}

impl Seen {
    /// Reads a stored vector.
    pub fn of(vector: &[f32]) -> Self {
        let scale = CONSTANT / vector[1];
        Self { brightness: vector[0] * scale, above: vector[4] * scale, left: vector[5] * scale }
    }

    /// The number of a frame of [`super::clips::Show::Count`], and how far off its brightness is, in
    /// frames. JPEG's full range is told apart by `is_full_range`.
    pub fn frame(&self, is_full_range: bool) -> (u32, f32) {
        let luma = if is_full_range { self.brightness * 255.0 } else { 16.0 + self.brightness * 219.0 };
        let frame = (luma - 16.0) / 4.0;
        (frame.round().max(0.0) as u32, (frame - frame.round()).abs())
    }
}
