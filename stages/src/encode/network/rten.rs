//! `rten`: networks without any native library.

use std::{path::Path, sync::Arc};

use anyhow::{Context as _, Result, anyhow};
use rten::{Model, NodeId, RunOptions, ThreadPool, ValueOrView};
use rten_tensor::{AsView as _, Layout as _, Tensor, TensorView};

use super::{Array, Feed, Network, Values};

pub(super) struct RtenNetwork {
    model: Model,
    threads: Arc<ThreadPool>,
}

impl RtenNetwork {
    pub(super) fn open(file: &Path, threads: usize) -> Result<Self> {
        let model =
            Model::load_file(file).map_err(|e| anyhow!("rten cannot load {}: {e}", file.display()))?;
        Ok(Self { model, threads: Arc::new(ThreadPool::with_num_threads(threads)) })
    }

    fn node(&self, name: &str) -> Result<NodeId> {
        self.model.node_id(name).with_context(|| format!("no input or output {name:?}"))
    }
}

impl Network for RtenNetwork {
    fn names(&self) -> (Vec<String>, Vec<String>) {
        let names = |ids: &[NodeId]| {
            let name = |id: &NodeId| self.model.node_info(*id)?.name().map(str::to_owned);
            ids.iter().filter_map(name).collect()
        };
        (names(self.model.input_ids()), names(self.model.output_ids()))
    }

    fn run(&mut self, feeds: &[Feed<'_>], outputs: &[&str]) -> Result<Vec<Array>> {
        let mut inputs: Vec<(NodeId, ValueOrView<'_>)> = Vec::new();
        for feed in feeds {
            let value = match feed.values {
                Values::F32(values) => TensorView::from_data(&feed.shape[..], values).into(),
                // It knows no wider integers; tokens fit.
                Values::I64(values) => {
                    let values: Vec<i32> = values.iter().map(|v| *v as i32).collect();
                    Tensor::from_data(&feed.shape[..], values).into()
                }
            };
            inputs.push((self.node(feed.name)?, value));
        }
        let wanted: Vec<NodeId> = outputs.iter().map(|name| self.node(name)).collect::<Result<_>>()?;
        let mut options = RunOptions::default();
        options.thread_pool = Some(self.threads.clone());
        let found = self.model.run(inputs, &wanted, Some(options))?;
        let take = |value: rten::Value| -> Result<Array> {
            let tensor: Tensor<f32> = value.try_into().map_err(|e| anyhow!("an output is not f32: {e:?}"))?;
            Ok(Array { shape: tensor.shape().to_vec(), values: tensor.to_vec() })
        };
        found.into_iter().map(take).collect()
    }
}
