//! What an ONNX file says of itself, and its form in fp16.
//!
//! TensorRT 11 and TensorRT-RTX compute in the numbers of the file alone, so that fp16 needs an fp16 file:
//! [`half::rewrite`] makes it. Numbers of fields and types are those of onnx.proto.

pub mod half;
mod wire;

use anyhow::{Context as _, Result};

use wire::Message;

/// An input or output of floats.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its dimensions; `None` where they may differ.
    pub dims: Vec<Option<usize>>,
    /// Whether it holds fp32.
    pub is_float: bool,
}

const GRAPH: u64 = 7;
const FLOAT: i64 = 1;

impl Port {
    fn read(value: &[u8]) -> Result<Self> {
        let value = Message::read(value)?;
        let kind = Message::read(value.bytes(2).unwrap_or_default())?;
        let tensor = Message::read(kind.bytes(1).unwrap_or_default())?;
        let shape = Message::read(tensor.bytes(2).unwrap_or_default())?;
        let dim = |dim: &[u8]| -> Result<Option<usize>> {
            Ok(Message::read(dim)?
                .int(1)
                .and_then(|size| usize::try_from(size).ok())
                .filter(|size| *size > 0))
        };
        Ok(Self {
            name: value.text(1),
            dims: shape.all(1).map(dim).collect::<Result<_>>()?,
            is_float: tensor.int(1) == Some(FLOAT),
        })
    }
}

/// The inputs of a network that are no weights, and its outputs.
pub fn ports(onnx: &[u8]) -> Result<(Vec<Port>, Vec<Port>)> {
    let model = Message::read(onnx)?;
    let graph = Message::read(model.bytes(GRAPH).context("it is no ONNX file: it has no graph")?)?;
    let mut weights = Vec::new();
    for tensor in graph.all(5) {
        weights.push(Message::read(tensor)?.text(8));
    }
    let read = |number: u64| graph.all(number).map(Port::read).collect::<Result<Vec<Port>>>();
    let inputs = read(11)?.into_iter().filter(|port| !weights.contains(&port.name)).collect();
    Ok((inputs, read(12)?))
}
