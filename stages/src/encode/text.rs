//! The text tower: words to unit vectors of the joint space.

pub mod sentencepiece;
pub mod spiece_file;
pub mod tokens;

use anyhow::{Context as _, Result, bail};

use super::{
    joint::normalize,
    network::{self, Feed, Libraries, Network, Values, require},
};
use crate::model::{Model, Pool, TextTower};
use tokens::Tokens;

/// The text tower of a model, ready for texts.
pub struct TextEncoder {
    tower: TextTower,
    dim: usize,
    tokens: Tokens,
    network: Box<dyn Network>,
}

impl TextEncoder {
    /// Loads tokenizer and engine. A model without a text tower is an error.
    pub fn open(model: &Model, libraries: &Libraries) -> Result<Self> {
        let name = &model.card.name;
        let tower = model.card.text.clone();
        let tower =
            tower.with_context(|| format!("model {name} has no text tower: words cannot be searched"))?;
        let tokens =
            Tokens::open(&tower, |file| model.file(file)).with_context(|| format!("model {name}"))?;
        let network = network::open_reference(&model.file(&tower.file), 1, libraries)
            .with_context(|| format!("model {name}"))?;
        let (inputs, outputs) = network.names();
        let wanted = [Some(&tower.input_ids), tower.attention_mask.as_ref(), tower.token_type_ids.as_ref()];
        require(&tower.file, "input", &inputs, wanted.into_iter().flatten())?;
        require(&tower.file, "output", &outputs, [&tower.output])?;
        Ok(Self { tower, dim: model.card.joint.dim, tokens, network })
    }

    /// The unit vector of a text.
    pub fn embed(&mut self, text: &str) -> Result<Vec<f32>> {
        let mut ids = self.tokens.ids(text, self.tower.max_tokens)?;
        let n_real = ids.len();
        ids.resize(n_real.max(self.tower.pad_to), self.tower.pad_id);
        let n = ids.len();
        let mask: Vec<i64> = (0..n).map(|i| i64::from(i < n_real)).collect();
        let tower = &self.tower;
        let inputs = [
            (Some(&tower.input_ids), ids),
            (tower.attention_mask.as_ref(), mask),
            (tower.token_type_ids.as_ref(), vec![0; n]),
        ];
        let feeds: Vec<Feed<'_>> = inputs
            .iter()
            .filter_map(|(name, values)| Some(((*name)?, values)))
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
