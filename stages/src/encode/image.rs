//! The image tower: tensors to the outputs of its network.

use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::{
    Encoded,
    network::{self, Backend, Feed, Libraries, Network, Opening, Values, require},
};
use crate::model::Model;

/// A model's image tower, ready for pictures.
pub struct ImageTower {
    network: Box<dyn Network>,
    input: String,
    embedding: String,
    logits: Option<String>,
    shape: [usize; 3],
    dim: usize,
    /// Whether pictures are run one by one, for what would give them other vectors in company.
    one_by_one: bool,
}

impl ImageTower {
    /// Opens the tower and checks that it has the inputs and outputs of the card.
    pub fn open(model: &Model, opening: Opening, libraries: &Libraries) -> Result<Self> {
        let file = super::quantized::image_file(model, opening.engine.precision)?;
        Self::open_file(&file, model, opening, libraries)
    }

    /// Opens another form of the tower.
    pub fn open_file(file: &Path, model: &Model, opening: Opening, libraries: &Libraries) -> Result<Self> {
        let image = &model.card.image;
        let network = network::open(file, opening, libraries)
            .with_context(|| format!("model {} by {}", model.card.name, opening.engine))?;
        let (inputs, outputs) = network.names();
        require(&image.file, "input", &inputs, [&image.input])?;
        require(&image.file, "output", &outputs, [&image.embedding].into_iter().chain(&image.logits))?;
        Ok(Self {
            network,
            input: image.input.clone(),
            embedding: image.embedding.clone(),
            logits: image.logits.clone(),
            shape: [3, image.height, image.width],
            dim: image.dim,
            // Its products are summed in another order in another batch.
            one_by_one: opening.engine.backend == Backend::Rten,
        })
    }

    fn run(&mut self, tensors: &[f32], n: usize) -> Result<Encoded> {
        let [c, h, w] = self.shape;
        let feed = Feed { name: &self.input, shape: vec![n, c, h, w], values: Values::F32(tensors) };
        let wanted: Vec<&str> = [self.embedding.as_str()].into_iter().chain(self.logits.as_deref()).collect();
        let mut outputs = self.network.run(&[feed], &wanted)?.into_iter();
        for (array, name) in outputs.as_slice().iter().zip(&wanted) {
            if array.shape.first() != Some(&n) {
                bail!("output {name:?} has the shape {:?} for a batch of {n}", array.shape);
            }
        }
        let embeddings = outputs.next().map(|array| array.values).unwrap_or_default();
        if embeddings.len() != n * self.dim {
            let found = embeddings.len() / n;
            bail!("output {:?} has {found} values a frame, the card says {}", self.embedding, self.dim);
        }
        let logits = outputs.next().map(|array| array.values).unwrap_or_default();
        Ok(Encoded { embeddings, logits })
    }

    /// Embeds `n` tensors. The same tensor gives the same vector in any company.
    pub fn encode(&mut self, tensors: &[f32], n: usize) -> Result<Encoded> {
        if !self.one_by_one {
            return self.run(tensors, n);
        }
        let mut all = Encoded { embeddings: Vec::new(), logits: Vec::new() };
        for tensor in tensors.chunks(tensors.len() / n) {
            let one = self.run(tensor, 1)?;
            all.embeddings.extend(one.embeddings);
            all.logits.extend(one.logits);
        }
        Ok(all)
    }
}
