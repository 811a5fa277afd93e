//! The space in which pictures and words meet.

use std::{fs, path::Path};

use anyhow::{Context as _, Result, bail};

use super::{Encoded, network::Libraries, text::TextEncoder};
use crate::{
    files::{npy_header, read_npy, write_whole},
    model::{JointKind, Model},
};

/// From the engine's outputs to unit vectors of the joint space.
pub struct JointSpace {
    dim: usize,
    concepts: Option<Concepts>,
}

struct Concepts {
    /// A unit text vector a class.
    bank: Vec<f32>,
    top: usize,
    temperature: f32,
    /// Taken off every vector.
    centre: Vec<f32>,
}

impl JointSpace {
    /// Reads the concept bank where the model has one.
    pub fn open(model: &Model) -> Result<Self> {
        let joint = &model.card.joint;
        let concepts = match (joint.kind, &joint.bank) {
            (JointKind::Concepts, Some(bank)) => {
                let path = model.file(bank);
                if !path.is_file() {
                    bail!(
                        "model {}: there is no {} yet\nhint: clipmill model build {}",
                        model.card.name,
                        path.display(),
                        model.folder.display()
                    );
                }
                let bank = read_bank(&path, joint.dim)?;
                let centre = if joint.centre { mean(&bank, joint.dim) } else { vec![0.0; joint.dim] };
                let (top, temperature) = (joint.top.unwrap_or(1), joint.temperature.unwrap_or(1.0));
                Some(Concepts { bank, top, temperature, centre })
            }
            _ => None,
        };
        Ok(Self { dim: joint.dim, concepts })
    }

    /// Length of its vectors.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Whether the image tower's vectors are the joint ones.
    pub fn is_direct(&self) -> bool {
        self.concepts.is_none()
    }

    /// The unit vector of the joint space for the text tower's unit vector.
    pub fn words(&self, mut vector: Vec<f32>) -> Vec<f32> {
        if let Some(concepts) = &self.concepts {
            vector.iter_mut().zip(&concepts.centre).for_each(|(v, c)| *v -= c);
        }
        normalize(&mut vector);
        vector
    }

    /// `n` unit vectors. A bank of another number of classes than the scores is an error.
    pub fn project(&self, encoded: &Encoded, n: usize) -> Result<Vec<f32>> {
        let mut joint = match &self.concepts {
            None => encoded.embeddings.clone(),
            Some(concepts) => {
                let classes = concepts.bank.len() / self.dim;
                if encoded.logits.len() != n * classes {
                    let found = encoded.logits.len() / n.max(1);
                    bail!(
                        "the model scores {found} classes, its concept bank has {classes}; build it again with `clipmill model build`"
                    );
                }
                encoded.logits.chunks(classes).flat_map(|row| concepts.mean(row, self.dim)).collect()
            }
        };
        joint.chunks_mut(self.dim).for_each(normalize);
        Ok(joint)
    }
}

impl Concepts {
    /// Mean text vector of the most probable classes, weighted by probability, from the centre.
    fn mean(&self, logits: &[f32], dim: usize) -> Vec<f32> {
        let mut order: Vec<usize> = (0..logits.len()).collect();
        let top = self.top.min(order.len());
        // Ties go to the lower class, so that the result does not depend on the sort.
        let best_first = |a: &usize, b: &usize| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b));
        if top < order.len() {
            order.select_nth_unstable_by(top, best_first);
            order.truncate(top);
        }
        order.sort_unstable_by(best_first);
        let most = order.first().map_or(0.0, |i| logits[*i]);
        // Probabilities over all classes, taken for the top and normalized again, are the softmax of
        // the top alone.
        let weights: Vec<f32> =
            order.iter().map(|i| ((logits[*i] - most) / self.temperature).exp()).collect();
        let sum: f32 = weights.iter().sum();
        let mut mean = vec![0.0; dim];
        for (class, weight) in order.iter().zip(&weights) {
            for (m, v) in mean.iter_mut().zip(&self.bank[class * dim..(class + 1) * dim]) {
                *m += v * weight / sum;
            }
        }
        mean.iter_mut().zip(&self.centre).for_each(|(m, c)| *m -= c);
        mean
    }
}

fn mean(vectors: &[f32], dim: usize) -> Vec<f32> {
    let mut sum = vec![0.0f64; dim];
    for vector in vectors.chunks(dim) {
        sum.iter_mut().zip(vector).for_each(|(s, v)| *s += f64::from(*v));
    }
    let n = (vectors.len() / dim) as f64;
    sum.into_iter().map(|s| (s / n) as f32).collect()
}

/// To unit length. A zero vector, which no query can find, stays zero.
pub fn normalize(vector: &mut [f32]) {
    let norm = vector.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
    if norm > 0.0 {
        vector.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
    }
}

/// The mean of vectors, of unit length.
pub fn unit_mean<'a>(vectors: impl Iterator<Item = &'a [f32]>, dim: usize) -> Vec<f32> {
    let mut mean = vec![0.0; dim];
    for vector in vectors {
        mean.iter_mut().zip(vector).for_each(|(m, v)| *m += v);
    }
    normalize(&mut mean);
    mean
}

/// Makes the concept bank: the text vector of every class name. Returns their number.
pub fn build_bank(model: &Model, libraries: &Libraries) -> Result<usize> {
    let joint = &model.card.joint;
    let (JointKind::Concepts, Some(names), Some(bank)) = (joint.kind, &joint.names, &joint.bank) else {
        bail!("model {} has no concept bank to build", model.card.name);
    };
    let names = fs::read_to_string(model.file(names))?;
    let mut text = TextEncoder::open(model, libraries)?;
    let mut values = Vec::new();
    let mut n = 0;
    for name in names.lines() {
        values.extend(text.embed(name)?);
        n += 1;
    }
    write_npy(&model.file(bank), &values, joint.dim).with_context(|| format!("cannot write {bank}"))?;
    Ok(n)
}

/// Writes rows of f32 as NumPy's format, whole or not at all.
fn write_npy(path: &Path, values: &[f32], dim: usize) -> std::io::Result<()> {
    let mut bytes = npy_header(&[values.len() / dim, dim]);
    bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    write_whole(path, &bytes)
}

/// Reads what [`write_npy`] wrote.
fn read_bank(path: &Path, dim: usize) -> Result<Vec<f32>> {
    let damaged = || format!("{} is damaged; build it again with `clipmill model build`", path.display());
    let (bank, found) = read_npy(path).with_context(damaged)?;
    if found != dim {
        bail!("{}", damaged());
    }
    Ok(bank)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mean_of_concepts_is_the_softmax_of_the_top() {
        let bank = vec![1.0, 0.0, 0.0, 1.0, 0.7, 0.7];
        let concepts = Concepts { bank, top: 2, temperature: 1.0, centre: vec![0.0; 2] };
        let space = JointSpace { dim: 2, concepts: Some(concepts) };
        let encoded = Encoded { embeddings: vec![], logits: vec![2.0, 1.0, -9.0, 0.0, 0.0, 5.0] };
        let joint = space.project(&encoded, 2).unwrap();
        // Weights e^0 and e^-1 on the axes; then unit length.
        let (a, b) = (1.0f32, (-1.0f32).exp());
        let norm = (a * a + b * b).sqrt();
        assert!((joint[0] - a / norm).abs() < 1e-6 && (joint[1] - b / norm).abs() < 1e-6, "{joint:?}");
        // A clear winner is itself; the tie behind it goes to the lower class.
        assert!((joint[2] - joint[3]).abs() < 0.02, "{joint:?}");
        let too_many = Encoded { embeddings: vec![], logits: vec![0.0; 8] };
        assert!(space.project(&too_many, 2).unwrap_err().to_string().contains("4 classes"));
    }

    #[test]
    fn pictures_and_words_are_seen_from_the_centre() {
        let bank = vec![1.0, 0.0, 0.0, 1.0];
        let centre = mean(&bank, 2);
        assert_eq!(centre, [0.5, 0.5]);
        let space =
            JointSpace { dim: 2, concepts: Some(Concepts { bank, top: 2, temperature: 2.0, centre }) };
        let encoded = Encoded { embeddings: vec![], logits: vec![4.0, 0.0] };
        // Weights e^2 and 1: from the centre, the first axis less the second.
        let picture = space.project(&encoded, 1).unwrap();
        let half = 0.5f32.sqrt();
        assert!((picture[0] - half).abs() < 1e-6 && (picture[1] + half).abs() < 1e-6, "{picture:?}");
        let words = space.words(vec![1.0, 0.0]);
        assert!((words[0] - half).abs() < 1e-6 && (words[1] + half).abs() < 1e-6, "{words:?}");
        // A high temperature brings the weights together, and the picture to the centre.
        let equal = Encoded { embeddings: vec![], logits: vec![1.0, 1.0] };
        assert_eq!(space.project(&equal, 1).unwrap(), [0.0, 0.0]);
    }

    #[test]
    fn npy_comes_back_and_damage_is_seen() {
        let path = std::env::temp_dir().join(format!("clipmill-{}.npy", std::process::id()));
        let values: Vec<f32> = (0..12).map(|i| i as f32 / 3.0).collect();
        write_npy(&path, &values, 4).unwrap();
        assert_eq!(read_bank(&path, 4).unwrap(), values);
        let bytes = fs::read(&path).unwrap();
        for cut in [0, 5, 9, 20, bytes.len() - 1] {
            fs::write(&path, &bytes[..cut]).unwrap();
            assert!(read_bank(&path, 4).unwrap_err().to_string().contains("damaged"), "{cut}");
        }
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_zero_vector_stays_zero() {
        let mut zero = [0.0; 4];
        normalize(&mut zero);
        assert_eq!(zero, [0.0; 4]);
    }
}
