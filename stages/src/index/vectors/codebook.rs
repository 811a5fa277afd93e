//! Centroids: which lists the rows lie in, and which of them a query visits.
//!
//! Spherical k-means over a sample of the rows. Rows and centroids meet in eight bits: what lies nearest
//! by a hair's breadth of rounding is as good a list.

use std::{convert::Infallible, path::Path};

use anyhow::Result;
use half::{f16, slice::HalfFloatSliceExt as _};
use kernels::codes::{Queries, encode_row, products, stride};
use serde::{Deserialize, Serialize};

use super::{
    keep::{Candidate, Keep},
    parallel::parallel,
    sealed::{Sealed, SealedWriter},
};
use crate::encode::joint::normalize;

/// Rounds of k-means. Lists hardly change after these.
const ROUNDS: usize = 6;
/// Rows compared with a block of centroids at once.
const ROWS: usize = 8;
/// Centroids whose products are held at once: with the rows' they stay in the nearest cache.
const CENTROIDS: usize = 256;

#[derive(Serialize, Deserialize)]
struct Facts {
    dim: usize,
    n_lists: usize,
}

/// Centroids in eight bits.
#[derive(Debug)]
pub(crate) struct Codebook {
    pub(crate) dim: usize,
    codes: Vec<u8>,
    /// Little-endian.
    scales: Vec<[u8; 4]>,
}

impl Codebook {
    pub(crate) fn n_lists(&self) -> usize {
        self.scales.len()
    }

    /// Of the file; two codebooks of one name are the same.
    pub(crate) fn name(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.codes).update(self.scales.as_flattened());
        format!("codebook-{}", &hasher.finalize().to_hex()[..8])
    }

    fn of(centroids: &[f32], dim: usize) -> Self {
        let stride = stride(dim);
        let mut codes = vec![0; centroids.len() / dim * stride];
        let rows = centroids.chunks_exact(dim).zip(codes.chunks_exact_mut(stride));
        let scales = rows.map(|(centroid, codes)| encode_row(centroid, codes).to_le_bytes()).collect();
        Self { dim, codes, scales }
    }

    /// Of a sample of rows. The same sample gives the same codebook.
    pub(crate) fn train(sample: &[f16], dim: usize, n_lists: usize) -> Self {
        let n = sample.len() / dim;
        let row = |i: usize| &sample[i * dim..(i + 1) * dim];
        // Neighbours in the sample are often frames of one clip: a large step leads away from them.
        let pick = |i: usize| (i * 7919 + i * 7919 / n.max(1)) % n.max(1);
        let mut centroids = vec![0f32; n_lists * dim];
        for (i, centroid) in centroids.chunks_exact_mut(dim).enumerate() {
            row(pick(i)).convert_to_f32_slice(centroid);
        }
        for _ in 0..ROUNDS {
            let lists = Self::of(&centroids, dim).assign(sample);
            let mut counts = vec![0u32; n_lists];
            centroids.fill(0.0);
            let mut wide = vec![0f32; dim];
            for (i, list) in lists.iter().enumerate() {
                counts[*list as usize] += 1;
                row(i).convert_to_f32_slice(&mut wide);
                let sum = &mut centroids[*list as usize * dim..][..dim];
                sum.iter_mut().zip(&wide).for_each(|(s, v)| *s += v);
            }
            for (i, centroid) in centroids.chunks_exact_mut(dim).enumerate() {
                if counts[i] == 0 {
                    // A list without rows takes the place of some row.
                    row(pick(i * 31 + 17)).convert_to_f32_slice(centroid);
                }
                normalize(centroid);
            }
        }
        Self::of(&centroids, dim)
    }

    /// The list of each row.
    pub(crate) fn assign(&self, rows: &[f16]) -> Vec<u32> {
        let n = rows.len() / self.dim;
        let parts = parallel(n.div_ceil(ROWS), |blocks| {
            let rows = &rows[blocks.start * ROWS * self.dim..(blocks.end * ROWS).min(n) * self.dim];
            self.assign_part(rows)
        });
        parts.concat()
    }

    fn assign_part(&self, rows: &[f16]) -> Vec<u32> {
        let stride = stride(self.dim);
        let mut lists = Vec::with_capacity(rows.len() / self.dim);
        let mut wide = vec![0f32; ROWS * self.dim];
        let mut found = vec![0i32; ROWS * CENTROIDS];
        for rows in rows.chunks(ROWS * self.dim) {
            let wide = &mut wide[..rows.len()];
            rows.convert_to_f32_slice(wide);
            let rows = Queries::new(wide.chunks_exact(self.dim));
            let mut best = [(f32::NEG_INFINITY, 0u32); ROWS];
            let blocks = self.codes.chunks(CENTROIDS * stride).zip(self.scales.chunks(CENTROIDS));
            for (block, (codes, scales)) in blocks.enumerate() {
                let found = &mut found[..rows.len() * scales.len()];
                products(codes, &rows, found);
                for (i, best) in best[..rows.len()].iter_mut().enumerate() {
                    let found = &found[i * scales.len()..][..scales.len()];
                    let Ok(()) = rows.above(i, found, scales, best.0, |j, score| {
                        *best = (score, (block * CENTROIDS + j) as u32);
                        Ok::<_, Infallible>(score)
                    });
                }
            }
            lists.extend(best[..rows.len()].iter().map(|(_, list)| *list));
        }
        lists
    }

    /// The `n` lists whose centroids are nearest to the only query, the nearest first.
    pub(crate) fn nearest(&self, query: &Queries, n: usize) -> Vec<u32> {
        let mut found = vec![0; self.n_lists()];
        products(&self.codes, query, &mut found);
        let mut keep = Keep::new(n, 0.0);
        let Ok(()) = query.above(0, &found, &self.scales, keep.floor(), |list, score| {
            keep.push(Candidate { score, segment: 0, place: list as u32 });
            Ok::<_, Infallible>(keep.floor())
        });
        keep.done().into_iter().take(n).map(|list| list.place).collect()
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        let mut file = SealedWriter::create(path.to_owned())?;
        file.add("codes", &self.codes)?;
        file.add("scales", self.scales.as_flattened())?;
        file.finish(&Facts { dim: self.dim, n_lists: self.n_lists() })
    }

    pub(crate) fn open(path: &Path) -> Result<Self> {
        let (file, Facts { dim, n_lists }) = Sealed::open(path)?;
        let codes = file.bytes(file.section("codes", n_lists.saturating_mul(stride(dim)))?)?.to_vec();
        let scales = file.bytes(file.section("scales", n_lists.saturating_mul(4))?)?;
        let scales = scales.as_chunks().0.to_vec();
        Ok(Self { dim, codes, scales })
    }
}
