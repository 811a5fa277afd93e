//! TensorRT, from host memory: an engine like any other, to be measured and compared with them.
//!
//! A run that keeps frames on the GPU uses `encode::tensorrt` itself.

use std::path::Path;

use anyhow::{Result, bail};
use kernels::{ffi::tensorrt::Executor, gpu::Gpu};

use super::{Array, Feed, Libraries, Network, Opening, Values};
use crate::encode::tensorrt::{Place, USUAL_BATCH, Wanted, engine, in_pieces};

pub(super) struct TensorrtNetwork {
    executor: Executor,
    input: String,
    outputs: Vec<String>,
}

impl TensorrtNetwork {
    /// On the GPU that `libraries` names. Builds the engine if there is none, which takes minutes and is told in the log.
    pub(super) fn open(file: &Path, opening: Opening, libraries: &Libraries) -> Result<Self> {
        let place = Place::of(libraries, &Gpu::open(libraries.device)?)?;
        let wanted = Wanted::new(file, opening.engine.precision, USUAL_BATCH);
        let mut told = |text: &str| {
            tracing::info!("{text}");
            true
        };
        let engine = engine(&place, &wanted, &mut told)?;
        let (inputs, outputs): (Vec<_>, Vec<_>) = engine.tensors().iter().partition(|t| t.is_input);
        let names: Vec<&str> = outputs.iter().map(|output| output.name.as_str()).collect();
        let executor = Executor::new(&engine, &wanted.buckets(), &names)?;
        let input = inputs.first().map(|input| input.name.clone()).unwrap_or_default();
        Ok(Self { executor, input, outputs: names.into_iter().map(str::to_owned).collect() })
    }
}

impl Network for TensorrtNetwork {
    fn names(&self) -> (Vec<String>, Vec<String>) {
        (vec![self.input.clone()], self.outputs.clone())
    }

    fn run(&mut self, feeds: &[Feed<'_>], outputs: &[&str]) -> Result<Vec<Array>> {
        let [Feed { name, shape, values: Values::F32(values) }] = feeds else {
            bail!("TensorRT runs image towers here, whose one input is {:?}", self.input);
        };
        if *name != self.input {
            bail!("there is no input {name:?}, only {:?}", self.input);
        }
        let places = outputs.iter().map(|wanted| {
            let found = self.outputs.iter().position(|output| output == wanted);
            found.ok_or_else(|| anyhow::anyhow!("there is no output {wanted:?}"))
        });
        let places: Vec<usize> = places.collect::<Result<_>>()?;
        let n = shape.first().copied().unwrap_or(0);
        let mut all = vec![Vec::new(); places.len()];
        in_pieces(&mut self.executor, values, n, &mut |batch| {
            for (all, place) in all.iter_mut().zip(&places) {
                all.extend_from_slice(&batch.outputs[*place]);
            }
        })?;
        let lens = self.executor.output_lens();
        let array = |(values, place): (Vec<f32>, &usize)| Array { shape: vec![n, lens[*place]], values };
        Ok(all.into_iter().zip(&places).map(array).collect())
    }
}
