//! An engine at work on a stream, with room for two batches: while one is computed, the next is copied in
//! and the one before is read.
//!
//! Its memory is there from the start. A batch is run at the least size (bucket) that holds it; each has an
//! optimization profile of its own, fixed addresses, and so a CUDA graph.

use std::{collections::HashMap, rc::Rc, sync::Arc};

use cudarc::driver::{CudaGraph, result};
use half::f16;

use super::{Engine, Error, Type, engine::Tensor, session::Session};
use crate::{
    device::{DeviceBuffer, Pinned},
    gpu::{Event, Stream, named},
};

/// Batches that may be under way at once.
pub const SLOTS: usize = 2;

/// The tensors of a batch, one after another.
#[derive(Debug)]
pub enum Source<'a> {
    /// In host memory; copied before `submit` returns.
    Host(&'a [f32]),
    /// In device memory, from the start of the buffer; kept until the batch is collected.
    Device {
        /// Where.
        buffer: Arc<DeviceBuffer>,
        /// Numbers of this kind.
        kind: Type,
    },
}

/// What came out for a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Collected {
    /// Pictures of the batch.
    pub n: usize,
    /// The wanted outputs in their order, row by row.
    pub outputs: Vec<Vec<f32>>,
}

/// A tensor and the numbers in one row of it.
struct Port {
    tensor: Tensor,
    row_len: usize,
}

impl Port {
    fn row_bytes(&self) -> usize {
        self.row_len * self.tensor.kind.bytes()
    }
}

/// A batch's memory.
struct Slot {
    input: DeviceBuffer,
    staging: Pinned,
    outputs: Vec<DeviceBuffer>,
    /// Of the wanted outputs.
    results: Vec<Pinned>,
    /// By bucket; `None` where it cannot be recorded.
    graphs: HashMap<usize, Option<CudaGraph>>,
    /// Buckets that have run here.
    has_run: Vec<bool>,
    under_way: Option<UnderWay>,
}

struct UnderWay {
    n: usize,
    done: Event,
    /// What the work reads.
    _source: Option<Arc<DeviceBuffer>>,
}

/// An engine with its memory on one stream. Batches come out in the order they went in.
pub struct Executor {
    slots: [Slot; SLOTS],
    /// The slot of the next batch.
    next: usize,
    /// One for each bucket.
    sessions: Vec<Session>,
    buckets: Vec<usize>,
    input: Port,
    outputs: Vec<Port>,
    /// Places of the wanted ones in `outputs`.
    wanted: Vec<usize>,
    stream: Stream,
    /// Smaller batches are padded to as many.
    least: usize,
}

fn refused<T>(text: String) -> Result<T, Error> {
    Err(Error::TensorRt(text))
}

impl Executor {
    /// Takes the memory. `buckets` are the sizes of batches that the engine's profiles were built for, in
    /// their order, each of one size; `wanted` are names of outputs.
    pub fn new(engine: &Rc<Engine>, buckets: &[usize], wanted: &[&str]) -> Result<Self, Error> {
        let gpu = &engine.gpu;
        let n_profiles = engine.n_profiles();
        if n_profiles != buckets.len() || buckets.is_empty() {
            return refused(format!(
                "the plan has {n_profiles} profiles for {} sizes of batches",
                buckets.len()
            ));
        }
        let (inputs, outputs): (Vec<&Tensor>, Vec<&Tensor>) =
            engine.tensors().iter().partition(|tensor| tensor.is_input);
        let [input] = inputs[..] else {
            return refused(format!("the network has {} inputs, and an image tower has one", inputs.len()));
        };
        let Some(row_len) = input.row_len() else {
            return refused(format!("input {} has no fixed size: {:?}", input.name, input.row));
        };
        if !matches!(input.kind, Type::F32 | Type::F16) {
            return refused(format!("input {} is of {:?}, and pictures are floats", input.name, input.kind));
        }
        let input = Port { tensor: input.clone(), row_len };
        let stream = gpu.stream()?;
        let scratch = Arc::new(DeviceBuffer::new(gpu, engine.scratch_bytes()?)?);
        let mut sessions = Vec::new();
        let mut ports: Vec<Port> = Vec::new();
        for (profile, bucket) in buckets.iter().enumerate() {
            let mut session = Session::new(engine, profile, &scratch, &stream)?;
            let sizes: Vec<usize> =
                std::iter::once(*bucket).chain(input.tensor.row.iter().map(|dim| dim.unwrap_or(0))).collect();
            session.set_shape(&input.tensor, &sizes)?;
            // An engine may leave sizes open that follow from the batch; here they are known.
            ports.clear();
            for tensor in &outputs {
                let shape = session.shape(tensor)?;
                if shape[0] != *bucket {
                    let name = &tensor.name;
                    return refused(format!("output {name} has the shape {shape:?} for a batch of {bucket}"));
                }
                let row_len = shape[1..].iter().product();
                ports.push(Port { tensor: (*tensor).clone(), row_len });
            }
            sessions.push(session);
        }
        stream.wait()?;
        let place = |name: &&str| {
            let found = ports.iter().position(|port| port.tensor.name == *name);
            let names: Vec<&str> = ports.iter().map(|port| port.tensor.name.as_str()).collect();
            let missing = || Error::TensorRt(format!("no output {name:?}; there is {}", names.join(", ")));
            found.ok_or_else(missing)
        };
        let wanted: Vec<usize> = wanted.iter().map(place).collect::<Result<_, _>>()?;
        if let Some(port) = wanted.iter().map(|w| &ports[*w]).find(|p| !is_float(p.tensor.kind)) {
            return refused(format!("output {} is of {:?}, not floats", port.tensor.name, port.tensor.kind));
        }
        let most = buckets.iter().copied().max().unwrap_or(0);
        let slot = || -> Result<Slot, Error> {
            let bytes = |port: &Port| port.row_bytes() * most;
            let mut input_buffer = DeviceBuffer::new(gpu, bytes(&input))?;
            // So that rows beyond a batch hold numbers, whatever the memory held before.
            input_buffer.write(0, &vec![0; bytes(&input)], &stream)?;
            Ok(Slot {
                input: input_buffer,
                staging: Pinned::new(gpu, bytes(&input))?,
                outputs: ports
                    .iter()
                    .map(|port| DeviceBuffer::new(gpu, bytes(port)))
                    .collect::<Result<_, _>>()?,
                results: wanted
                    .iter()
                    .map(|w| Pinned::new(gpu, bytes(&ports[*w])))
                    .collect::<Result<_, _>>()?,
                graphs: HashMap::new(),
                has_run: vec![false; buckets.len()],
                under_way: None,
            })
        };
        Ok(Self {
            slots: [slot()?, slot()?],
            next: 0,
            sessions,
            buckets: buckets.to_vec(),
            input,
            outputs: ports,
            wanted,
            stream,
            least: 1,
        })
    }

    /// Pads smaller batches to `least`. Each size is computed in its own way, so that a picture's numbers differ in
    /// their last bits from one to another; this way they do not depend on its company.
    pub fn padded_to(mut self, least: usize) -> Self {
        self.least = least.max(1);
        self
    }

    /// The numbers that device memory must hold to be taken.
    pub fn input_kind(&self) -> Type {
        self.input.tensor.kind
    }

    /// Numbers of one picture.
    pub fn input_len(&self) -> usize {
        self.input.row_len
    }

    /// Numbers that the wanted outputs have for a picture.
    pub fn output_lens(&self) -> Vec<usize> {
        self.wanted.iter().map(|w| self.outputs[*w].row_len).collect()
    }

    /// The greatest batch.
    pub fn most(&self) -> usize {
        self.buckets.iter().copied().max().unwrap_or(0)
    }

    /// Batches under way.
    pub fn in_flight(&self) -> usize {
        self.slots.iter().filter(|slot| slot.under_way.is_some()).count()
    }

    /// Whether one must be collected before the next is submitted.
    pub fn is_full(&self) -> bool {
        self.slots[self.next].under_way.is_some()
    }

    /// Whether batches of any size are launched as graphs by now.
    pub fn has_graphs(&self) -> bool {
        self.slots.iter().any(|slot| slot.graphs.values().any(Option::is_some))
    }

    /// Queues a batch of `n` pictures.
    pub fn submit(&mut self, source: Source<'_>, n: usize) -> Result<(), Error> {
        if self.is_full() {
            return refused(format!("{SLOTS} batches are under way"));
        }
        let fitting = (0..self.buckets.len()).filter(|b| self.buckets[*b] >= n.max(self.least));
        let Some(bucket) = fitting.min_by_key(|b| self.buckets[*b]) else {
            return refused(format!("a batch of {n}, where {} is most", self.most()));
        };
        self.stream.bind()?;
        let numbers = n * self.input.row_len;
        let bytes = n * self.input.row_bytes();
        let slot = &mut self.slots[self.next];
        let stream = self.stream.inner().cu_stream();
        let kept = match source {
            Source::Host(values) => {
                if values.len() != numbers {
                    return refused(format!(
                        "{} numbers for {n} pictures, which have {numbers}",
                        values.len()
                    ));
                }
                slot.staging.write_floats(0, values, self.input.tensor.kind == Type::F16);
                // SAFETY: the input has room for the greatest batch; both ends are this slot's, which is not
                // used again before `collect` has waited.
                unsafe { result::memcpy_htod_async(slot.input.address(), &slot.staging[..bytes], stream) }
                    .map_err(named("cuMemcpyHtoDAsync"))?;
                None
            }
            Source::Device { buffer, kind } => {
                if kind != self.input.tensor.kind {
                    let own = self.input.tensor.kind;
                    return refused(format!(
                        "tensors of {kind:?} in device memory, and the engine takes {own:?}"
                    ));
                }
                if buffer.bytes() < bytes {
                    return refused(format!("{} bytes for {n} pictures, which have {bytes}", buffer.bytes()));
                }
                let (to, from) = (slot.input.address(), buffer.address());
                match (slot.input.gpu(), buffer.gpu()) {
                    (Some(own), Some(other)) if own.ordinal() != other.ordinal() => {
                        let (own, other) = (own.context().cu_ctx(), other.context().cu_ctx());
                        // SAFETY: both ends are long enough, as was just seen, and lie in these contexts; the
                        // source is kept until `collect` has waited.
                        unsafe { result::memcpy_peer_async(own, to, other, from, bytes, stream) }
                            .map_err(named("cuMemcpyPeerAsync"))?;
                    }
                    // SAFETY: as above.
                    _ => unsafe { result::memcpy_dtod_async(to, from, bytes, stream) }
                        .map_err(named("cuMemcpyDtoDAsync"))?,
                }
                Some(buffer)
            }
        };
        self.run(bucket)?;
        let slot = &mut self.slots[self.next];
        for (result, wanted) in slot.results.iter_mut().zip(&self.wanted) {
            let bytes = n * self.outputs[*wanted].row_bytes();
            // SAFETY: both have room for the greatest batch, and nobody reads the result before `collect`
            // has waited.
            unsafe {
                result::memcpy_dtoh_async(&mut result[..bytes], slot.outputs[*wanted].address(), stream)
            }
            .map_err(named("cuMemcpyDtoHAsync"))?;
        }
        slot.under_way = Some(UnderWay { n, done: self.stream.event()?, _source: kept });
        self.next = (self.next + 1) % SLOTS;
        Ok(())
    }

    /// Queues the engine's work on the next slot.
    fn run(&mut self, bucket: usize) -> Result<(), Error> {
        let slot = &mut self.slots[self.next];
        let session = &mut self.sessions[bucket];
        if let Some(Some(graph)) = slot.graphs.get(&bucket) {
            return Ok(graph.launch().map_err(named("cuGraphLaunch"))?);
        }
        // SAFETY: these buffers have room for the greatest batch. They and the session live as long as the
        // executor, which waits for its work before it drops them, graphs included.
        unsafe {
            session.set_address(&self.input.tensor, slot.input.address())?;
            for (port, buffer) in self.outputs.iter().zip(&slot.outputs) {
                session.set_address(&port.tensor, buffer.address())?;
            }
            // The first run prepares what a recording must not do.
            if slot.has_run[bucket] && !slot.graphs.contains_key(&bucket) {
                let graph = session.record(&self.stream);
                if graph.is_none() {
                    // Not an error: the same work is queued one by one, here and from now on.
                    slot.graphs.insert(bucket, None);
                } else if let Some(graph) = slot.graphs.entry(bucket).or_insert(graph) {
                    return Ok(graph.launch().map_err(named("cuGraphLaunch"))?);
                }
            }
            session.enqueue(&self.stream)?;
        }
        slot.has_run[bucket] = true;
        Ok(())
    }

    /// Waits for the oldest batch; `None` if none is under way.
    pub fn collect(&mut self) -> Result<Option<Collected>, Error> {
        // The next slot is the older one where both are at work.
        let at =
            [self.next, (self.next + 1) % SLOTS].into_iter().find(|i| self.slots[*i].under_way.is_some());
        let Some(slot) = at.map(|at| &mut self.slots[at]) else { return Ok(None) };
        let Some(batch) = slot.under_way.take() else { return Ok(None) };
        batch.done.wait()?;
        let outputs = self.wanted.iter().zip(&slot.results).map(|(wanted, result)| {
            let port = &self.outputs[*wanted];
            floats(&result[..batch.n * port.row_bytes()], port.tensor.kind)
        });
        Ok(Some(Collected { n: batch.n, outputs: outputs.collect() }))
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        // So that nothing is freed under work that is still under way. A context that is lost does none.
        let _ = self.stream.wait();
    }
}

fn is_float(kind: Type) -> bool {
    matches!(kind, Type::F32 | Type::F16)
}

/// Reads floats as the engine writes them.
fn floats(bytes: &[u8], kind: Type) -> Vec<f32> {
    match kind {
        Type::F16 => bytes.as_chunks().0.iter().map(|half| f16::from_le_bytes(*half).to_f32()).collect(),
        _ => bytes.as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect(),
    }
}
