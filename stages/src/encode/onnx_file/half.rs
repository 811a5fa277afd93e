//! An ONNX network in fp16: its weights rounded, its sums where they must be kept in fp32.
//!
//! Every tensor of floats has up to two forms, one in each precision, and a `Cast` is put in where a node wants
//! the form that there is not. Inputs and outputs keep their names, and outputs their fp32.

use std::collections::{HashMap, HashSet};

use anyhow::{Context as _, Result, bail};
use half::f16;

use super::{FLOAT, GRAPH, Port, wire::Message};

const HALF: i64 = 10;

/// Operators that stay in fp32: sums over many numbers, squares and their roots, whose middle results leave
/// fp16's range; normalizations, made of these; and sources of fp32 by their definition. Convolutions and
/// products of matrices are not among them, as TensorRT sums their fp16 products in fp32.
const SINGLE: &[&str] = &[
    "BatchNormalization",
    "Cast",
    "ConstantOfShape",
    "CumSum",
    "DequantizeLinear",
    "Exp",
    "EyeLike",
    "GlobalAveragePool",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "Log",
    "LogSoftmax",
    "LpNormalization",
    "MeanVarianceNormalization",
    "Pow",
    "QuantizeLinear",
    "RMSNormalization",
    "Range",
    "Reciprocal",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMean",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "SimplifiedLayerNormalization",
    "Softmax",
    "Sqrt",
];

/// These go on in fp32 between such operators, so that a variance stays one until its root is taken.
const BETWEEN: &[&str] = &["Add", "Div", "Mul", "Sub", "Clip", "Max", "Neg"];

/// Operators whose outputs are no floats, whatever goes in.
const NOT_FLOATS: &[&str] = &[
    "And",
    "ArgMax",
    "ArgMin",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "IsInf",
    "IsNaN",
    "Less",
    "LessOrEqual",
    "NonZero",
    "Not",
    "Or",
    "QuantizeLinear",
    "Shape",
    "Size",
    "Xor",
];

/// Inputs that are fp32 by their operator's definition.
const SINGLE_INPUTS: &[(&str, usize)] = &[("Resize", 1), ("Resize", 2), ("Upsample", 1)];

/// Outputs after the first that are no floats.
const INDICES: &[&str] = &["Dropout", "MaxPool", "TopK"];

/// A tensor of floats, by the names of its forms.
#[derive(Clone, Default)]
struct Forms {
    single: Option<String>,
    half: Option<String>,
}

struct Rewriter<'a> {
    weights: HashMap<String, Message<'a>>,
    floats: HashMap<String, Forms>,
    /// fp32 by a node that computes in it, not by a cast.
    is_single: HashSet<String>,
    outputs: HashSet<String>,
    nodes: Vec<Vec<u8>>,
    /// Weights that are in use, in the form they are used in.
    kept: Vec<Vec<u8>>,
}

/// The network in fp16. With `is_half_input`, floats come in as fp16.
pub fn rewrite(onnx: &[u8], is_half_input: bool) -> Result<Vec<u8>> {
    let model = Message::read(onnx)?;
    let graph = Message::read(model.bytes(GRAPH).context("it is no ONNX file: it has no graph")?)?;
    if graph.all(15).next().is_some() || model.all(25).next().is_some() {
        bail!("it has sparse weights or functions of its own, of which no fp16 form is made");
    }
    let mut rewriter = Rewriter {
        weights: HashMap::new(),
        floats: HashMap::new(),
        is_single: HashSet::new(),
        outputs: HashSet::new(),
        nodes: Vec::new(),
        kept: Vec::new(),
    };
    for bytes in graph.all(5) {
        let weight = Message::read(bytes)?;
        let name = weight.text(8);
        if weight.int(14) == Some(1) || weight.all(13).next().is_some() {
            bail!("its weights lie in files of their own, of which no fp16 form is made");
        }
        if weight.int(2) == Some(FLOAT) {
            rewriter.floats.insert(name.clone(), Forms::default());
            rewriter.weights.insert(name, weight);
        } else {
            rewriter.kept.push(bytes.to_vec());
        }
    }
    let mut inputs = Vec::new();
    for bytes in graph.all(11) {
        let port = Port::read(bytes)?;
        // Old files name their weights among the inputs.
        if rewriter.floats.contains_key(&port.name) && rewriter.weights.contains_key(&port.name) {
            continue;
        }
        if !port.is_float {
            inputs.push(bytes.to_vec());
            continue;
        }
        let name = Some(port.name.clone());
        let forms = if is_half_input {
            inputs.push(halved_value(bytes)?);
            Forms { half: name, single: None }
        } else {
            inputs.push(bytes.to_vec());
            Forms { single: name, half: None }
        };
        rewriter.floats.insert(port.name, forms);
    }
    for bytes in graph.all(12) {
        rewriter.outputs.insert(Port::read(bytes)?.name);
    }
    for bytes in graph.all(1) {
        rewriter.node(bytes)?;
    }
    for output in rewriter.outputs.clone() {
        rewriter.finish(&output)?;
    }
    // `value_info` (13) tells types that are no longer true, and may be missing.
    let mut rewritten = graph.clone().without(1).without(5).without(11).without(13);
    for (number, list) in [(1, rewriter.nodes), (5, rewriter.kept), (11, inputs)] {
        rewritten = list.into_iter().fold(rewritten, |graph, bytes| graph.with(number, bytes));
    }
    Ok(model.clone().without(GRAPH).with(GRAPH, rewritten.write()).write())
}

impl Rewriter<'_> {
    /// The name of a tensor in one precision, with a cast before it if need be.
    fn form(&mut self, name: &str, is_half: bool) -> Result<String> {
        let forms = self.floats.get(name).cloned().unwrap_or_default();
        let (wanted, other) = if is_half { (forms.half, forms.single) } else { (forms.single, forms.half) };
        if let Some(wanted) = wanted {
            return Ok(wanted);
        }
        let made = match (self.weights.get(name), &other) {
            (Some(weight), _) => {
                let made = if is_half { name.to_owned() } else { format!("{name}__fp32") };
                let weight = if is_half { halved(weight)? } else { weight.clone() };
                self.kept.push(weight.without(8).with(8, made.as_str()).write());
                made
            }
            (None, Some(other)) => {
                let made = format!("{name}__{}", if is_half { "fp16" } else { "fp32" });
                self.nodes.push(cast(other, &made, if is_half { HALF } else { FLOAT }));
                made
            }
            (None, None) => bail!("{name:?} is used before it is made"),
        };
        let forms = self.floats.entry(name.to_owned()).or_default();
        *(if is_half { &mut forms.half } else { &mut forms.single }) = Some(made.clone());
        Ok(made)
    }

    fn node(&mut self, bytes: &[u8]) -> Result<()> {
        let node = Message::read(bytes)?;
        let (op, domain) = (node.text(4), node.text(7));
        let (inputs, outputs) = (node.texts(1), node.texts(2));
        let attributes: Vec<Message<'_>> = node.all(5).map(Message::read).collect::<Result<_>>()?;
        if attributes.iter().any(|a| a.bytes(6).is_some() || a.all(11).next().is_some()) {
            bail!("it has the operator {op} with a graph inside, of which no fp16 form is made");
        }
        let attribute = |name: &str| attributes.iter().find(|a| a.text(1) == name);
        if op == "Constant"
            && let Some(tensor) = attribute("value").and_then(|a| a.bytes(5))
        {
            return self.constant(bytes, tensor, &outputs);
        }
        let is_own = domain.is_empty() || domain == "ai.onnx";
        let is_float = |name: &String| self.floats.contains_key(name);
        let gives_floats = match op.as_str() {
            _ if !is_own => inputs.iter().any(is_float),
            "Cast" => attribute("to").and_then(|a| a.int(3)) == Some(FLOAT),
            "Constant" => attribute("value_float").is_some() || attribute("value_floats").is_some(),
            "ConstantOfShape" => match attribute("value").and_then(|a| a.bytes(5)) {
                Some(tensor) => Message::read(tensor)?.int(2) == Some(FLOAT),
                None => true,
            },
            "EyeLike" | "RandomNormalLike" => attribute("dtype").and_then(|a| a.int(3)) != Some(HALF),
            "Where" => inputs.get(1).is_some_and(is_float),
            "DequantizeLinear" => inputs.get(1).is_some_and(is_float),
            op if NOT_FLOATS.contains(&op) => false,
            _ => inputs.iter().find(|name| !name.is_empty()).is_some_and(is_float),
        };
        let computed = |name: &&String| is_float(name) && !self.weights.contains_key(*name);
        let mut computed = inputs.iter().filter(computed).peekable();
        let is_between = BETWEEN.contains(&op.as_str())
            && computed.peek().is_some()
            && computed.all(|name| self.is_single.contains(name));
        let is_single = !is_own || SINGLE.contains(&op.as_str()) || is_between || op == "Constant";
        let mut rewritten = node.clone().without(1).without(2);
        for (at, name) in inputs.iter().enumerate() {
            let name = if self.floats.contains_key(name) {
                let wants_single = is_single || SINGLE_INPUTS.contains(&(op.as_str(), at));
                self.form(name, !wants_single)?
            } else {
                name.clone()
            };
            rewritten = rewritten.with(1, name);
        }
        for (at, name) in outputs.iter().enumerate() {
            if name.is_empty() || !gives_floats || (at > 0 && INDICES.contains(&op.as_str())) {
                rewritten = rewritten.with(2, name.as_str());
                continue;
            }
            // An output of the network has its name for its fp32 form.
            let is_output = self.outputs.contains(name);
            let made = match (is_single, is_output) {
                (true, false) => format!("{name}__fp32"),
                (false, true) => format!("{name}__fp16"),
                _ => name.clone(),
            };
            rewritten = rewritten.with(2, made.as_str());
            let forms = self.floats.entry(name.clone()).or_default();
            *(if is_single { &mut forms.single } else { &mut forms.half }) = Some(made);
            if is_single {
                self.is_single.insert(name.clone());
            }
        }
        self.nodes.push(rewritten.write());
        Ok(())
    }

    /// A node that holds a tensor becomes a weight, if that is of floats.
    fn constant(&mut self, node: &[u8], tensor: &[u8], outputs: &[String]) -> Result<()> {
        let tensor = Message::read(tensor)?;
        let Some(name) = outputs.first().filter(|_| tensor.int(2) == Some(FLOAT)) else {
            self.nodes.push(node.to_vec());
            return Ok(());
        };
        // Written and read again, to be free of the node.
        let values = floats_of(&tensor)?;
        let mut weight = Message::default();
        for dim in tensor.ints(1)? {
            weight = weight.with_int(1, dim);
        }
        let raw: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.floats.insert(name.clone(), Forms::default());
        self.weights.insert(name.clone(), weight.with_int(2, FLOAT).with(9, raw));
        Ok(())
    }

    /// Gives an output of the network its fp32 form under its own name.
    fn finish(&mut self, output: &str) -> Result<()> {
        let Some(forms) = self.floats.get(output).cloned() else { return Ok(()) };
        match (forms.single, forms.half) {
            (Some(single), _) if single == output => {}
            (_, Some(half)) if half != output => self.nodes.push(cast(&half, output, FLOAT)),
            _ => bail!("output {output:?} is an input or a weight, of which no fp16 form is made"),
        }
        Ok(())
    }
}

/// A `Cast` node.
fn cast(from: &str, to: &str, kind: i64) -> Vec<u8> {
    let attribute = Message::default().with(1, "to").with_int(3, kind).with_int(20, 2);
    let node = Message::default().with(1, from).with(2, to).with(3, format!("{to}__cast")).with(4, "Cast");
    node.with(5, attribute.write()).write()
}

/// A ValueInfoProto of floats, with fp16 in their place.
fn halved_value(bytes: &[u8]) -> Result<Vec<u8>> {
    let value = Message::read(bytes)?;
    let kind = Message::read(value.bytes(2).unwrap_or_default())?;
    let tensor = Message::read(kind.bytes(1).unwrap_or_default())?;
    let tensor = tensor.clone().without(1).with_int(1, HALF).write();
    let kind = kind.clone().without(1).with(1, tensor).write();
    Ok(value.clone().without(2).with(2, kind).write())
}

/// The values of a TensorProto of floats.
fn floats_of(tensor: &Message<'_>) -> Result<Vec<f32>> {
    let raw = tensor.bytes(9).filter(|raw| !raw.is_empty());
    // Values are raw, or in a field of their own, packed or one by one.
    let values: Vec<f32> = match raw {
        Some(raw) => raw.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
        None => {
            let mut values = Vec::new();
            for (_, value) in tensor.fields.iter().filter(|(number, _)| *number == 4) {
                match value {
                    super::wire::Value::Fixed32(bytes) => values.push(f32::from_le_bytes(*bytes)),
                    super::wire::Value::Bytes(bytes) => {
                        values.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)));
                    }
                    _ => bail!("it is no ONNX file, or damaged"),
                }
            }
            values
        }
    };
    let wanted: i64 = tensor.ints(1)?.iter().product();
    if i64::try_from(values.len()) != Ok(wanted) {
        bail!("weight {:?} has {} values, and {wanted} by its shape", tensor.text(8), values.len());
    }
    Ok(values)
}

/// A TensorProto rounded to fp16. What is too large for it becomes its largest number; what is infinite stays.
fn halved<'a>(tensor: &Message<'a>) -> Result<Message<'a>> {
    let most = f16::MAX.to_f32();
    let round = |value: f32| f16::from_f32(if value.is_finite() { value.clamp(-most, most) } else { value });
    let raw: Vec<u8> = floats_of(tensor)?.into_iter().flat_map(|value| round(value).to_le_bytes()).collect();
    Ok(tensor.clone().without(2).without(4).without(9).with_int(2, HALF).with(9, raw))
}
