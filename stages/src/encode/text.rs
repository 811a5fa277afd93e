//! The text tower: words to unit vectors of the joint space.

pub mod sentencepiece;
pub mod spiece_file;
pub mod tokens;

use std::{borrow::Cow, path::Path};

use anyhow::{Context as _, Result, bail};
use ort::{
    session::{Session, SessionInputValue},
    value::{Tensor, TensorElementType},
};

use super::{
    joint::normalize,
    onnx::{require, session},
};
use crate::model::{Model, Pool, TextTower};
use tokens::Tokens;

/// The text tower of a model, ready for texts.
pub struct TextEncoder {
    tower: TextTower,
    dim: usize,
    tokens: Tokens,
    session: Session,
}

impl TextEncoder {
    /// Loads tokenizer and engine. A model without a text tower is an error.
    pub fn open(model: &Model, library: &Path) -> Result<Self> {
        let name = &model.card.name;
        let tower = model.card.text.clone();
        let tower =
            tower.with_context(|| format!("model {name} has no text tower: words cannot be searched"))?;
        let tokens =
            Tokens::open(&tower, |file| model.file(file)).with_context(|| format!("model {name}"))?;
        let session =
            session(&model.file(&tower.file), 1, library).with_context(|| format!("model {name}"))?;
        let inputs = [Some(&tower.input_ids), tower.attention_mask.as_ref(), tower.token_type_ids.as_ref()];
        require(
            &tower.file,
            "input",
            session.inputs().iter().map(|i| i.name()),
            inputs.into_iter().flatten(),
        )?;
        require(&tower.file, "output", session.outputs().iter().map(|o| o.name()), [&tower.output])?;
        Ok(Self { tower, dim: model.card.joint.dim, tokens, session })
    }

    /// The unit vector of a text.
    pub fn embed(&mut self, text: &str) -> Result<Vec<f32>> {
        let mut ids = self.tokens.ids(text, self.tower.max_tokens)?;
        let n_real = ids.len();
        ids.resize(n_real.max(self.tower.pad_to), self.tower.pad_id);
        let n = ids.len();
        let mask: Vec<i64> = (0..n).map(|i| i64::from(i < n_real)).collect();
        let mut inputs = vec![self.input(&self.tower.input_ids, ids)?];
        if let Some(name) = &self.tower.attention_mask {
            inputs.push(self.input(name, mask)?);
        }
        if let Some(name) = &self.tower.token_type_ids {
            inputs.push(self.input(name, vec![0; n])?);
        }
        let outputs = self.session.run(inputs)?;
        let (_, values) = outputs[self.tower.output.as_str()].try_extract_tensor::<f32>()?;
        let mut vector = match self.tower.pool {
            Pool::None => values.to_vec(),
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

    /// Numbers for an input, in the width that the graph wants: exports differ.
    fn input(&self, name: &str, values: Vec<i64>) -> Result<(Cow<'static, str>, SessionInputValue<'static>)> {
        let shape = [1, values.len()];
        let input = self.session.inputs().iter().find(|i| i.name() == name);
        let value = match input.and_then(|i| i.dtype().tensor_type()) {
            Some(TensorElementType::Int32) => {
                let narrow = values.into_iter().map(i32::try_from).collect::<Result<Vec<i32>, _>>()?;
                Tensor::from_array((shape, narrow))?.into()
            }
            _ => Tensor::from_array((shape, values))?.into(),
        };
        Ok((name.to_owned().into(), value))
    }
}
