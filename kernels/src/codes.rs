//! Inner products of vectors in eight bits, for search.
//!
//! A row is stored as bytes `round(x / scale) + 128` with a scale of its own, a query as signed bytes
//! likewise; rows and queries are padded with zeros to [`stride`] bytes. The products are whole numbers,
//! so every CPU gives the same ones.

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

use half::{f16, slice::HalfFloatSliceExt as _};

/// Rows whose scores are compared at once.
const GROUP: usize = 32;
/// What is added to a row's values so that they are bytes.
const OFFSET: i32 = 128;

/// Bytes of a row of `dim` values: a multiple of a cache line.
pub fn stride(dim: usize) -> usize {
    dim.next_multiple_of(64)
}

/// Standard deviation of the error of a product of unit vectors whose scales are `row` and `query`.
///
/// Rounding to steps of `s` errs by s²/12 in the mean square, and each error is multiplied by a value of
/// a vector of length one.
pub fn deviation(row: f32, query: f32) -> f32 {
    ((row * row + query * query) / 12.0).sqrt()
}

/// Writes the codes of `row` and returns its scale. `codes` has [`stride`] bytes.
pub fn encode_row(row: &[f32], codes: &mut [u8]) -> f32 {
    let (scale, inverse) = scales(row);
    let (values, padding) = codes.split_at_mut(row.len());
    for (code, value) in values.iter_mut().zip(row) {
        *code = (rounded(value * inverse) + OFFSET) as u8;
    }
    padding.fill(OFFSET as u8);
    scale
}

/// [`encode_row`] of a float16 row; `wide` is room for its values.
pub fn encode_half_row(row: &[f16], wide: &mut Vec<f32>, codes: &mut [u8]) -> f32 {
    wide.resize(row.len(), 0.0);
    row.convert_to_f32_slice(wide);
    encode_row(wide, codes)
}

/// The largest value becomes 127.
fn scales(values: &[f32]) -> (f32, f32) {
    let most = values.iter().fold(0f32, |most, v| most.max(v.abs()));
    if most.is_normal() && most.is_finite() { (most / 127.0, 127.0 / most) } else { (0.0, 0.0) }
}

/// To the nearest whole number, which is within ±128: below the point of this sum nothing is left.
fn rounded(value: f32) -> i32 {
    const WHOLE: f32 = 12_582_912.0; // 1.5 × 2²³
    (value + WHOLE).to_bits() as i32 - WHOLE.to_bits() as i32
}

/// Queries in eight bits.
#[derive(Clone, Debug)]
pub struct Queries {
    codes: Vec<i8>,
    stride: usize,
    /// By query: its scale, and what [`OFFSET`] adds to its products.
    facts: Vec<(f32, i32)>,
}

impl Queries {
    /// Of vectors of one length.
    pub fn new<'a>(queries: impl IntoIterator<Item = &'a [f32]>) -> Self {
        let mut this = Self { codes: Vec::new(), stride: 0, facts: Vec::new() };
        for query in queries {
            this.stride = stride(query.len());
            let (scale, inverse) = scales(query);
            let start = this.codes.len();
            this.codes.extend(query.iter().map(|v| rounded(v * inverse) as i8));
            let sum: i32 = this.codes[start..].iter().map(|c| i32::from(*c)).sum();
            this.codes.resize(start + this.stride, 0);
            this.facts.push((scale, sum * OFFSET));
        }
        this
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.facts.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.facts.is_empty()
    }

    /// The scale of one.
    pub fn scale(&self, query: usize) -> f32 {
        self.facts[query].0
    }

    /// Tells the scores of a query with rows that lie above a floor, from what [`products`] gave and the
    /// rows' scales, little-endian. `each` takes a row and its score and gives the floor from then on.
    #[inline]
    pub fn above<E>(
        &self,
        query: usize,
        products: &[i32],
        scales: &[[u8; 4]],
        mut floor: f32,
        mut each: impl FnMut(usize, f32) -> Result<f32, E>,
    ) -> Result<(), E> {
        let (own, offset) = self.facts[query];
        let score = |(product, scale): (&i32, &[u8; 4])| {
            (product - offset) as f32 * (f32::from_le_bytes(*scale) * own)
        };
        // Few rows are above the floor: most groups are done with by one comparison.
        for (group, (products, scales)) in products.chunks(GROUP).zip(scales.chunks(GROUP)).enumerate() {
            let scores = products.iter().zip(scales).map(score);
            // Not `f32::max`, whose care for NaN costs a vector loop.
            let most = scores.fold(f32::NEG_INFINITY, |most, s| if s > most { s } else { most });
            if most <= floor {
                continue;
            }
            for (i, pair) in products.iter().zip(scales).enumerate() {
                let score = score(pair);
                if score > floor {
                    floor = each(group * GROUP + i, score)?;
                }
            }
        }
        Ok(())
    }
}

/// The raw product of every query with every row of `codes`: `products[query * n_rows + row]`.
pub fn products(codes: &[u8], queries: &Queries, products: &mut [i32]) {
    let stride = queries.stride;
    if queries.is_empty() || codes.is_empty() {
        return;
    }
    assert_eq!(codes.len() % stride, 0, "whole rows of the queries' dimension");
    let n_rows = codes.len() / stride;
    assert_eq!(products.len(), n_rows * queries.len(), "a product for each pair");
    #[cfg(target_arch = "x86_64")]
    if x86::products(codes, &queries.codes, stride, products) {
        return;
    }
    #[cfg(target_arch = "aarch64")]
    return neon::products(codes, &queries.codes, stride, products);
    #[allow(unreachable_code, reason = "where the CPU always has a faster way")]
    products_reference(codes, queries, products);
}

/// [`products`], one value at a time.
pub fn products_reference(codes: &[u8], queries: &Queries, products: &mut [i32]) {
    let pairs = queries.codes.chunks_exact(queries.stride).flat_map(|query| {
        codes
            .chunks_exact(queries.stride)
            .map(move |row| row.iter().zip(query).map(|(r, q)| i32::from(*r) * i32::from(*q)).sum())
    });
    products.iter_mut().zip(pairs).for_each(|(to, product): (_, i32)| *to = product);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The scores of the first query with all rows.
    fn scores(queries: &Queries, products: &[i32], scales: &[f32]) -> Vec<f32> {
        let scales: Vec<[u8; 4]> = scales.iter().map(|s| s.to_le_bytes()).collect();
        let mut scores = vec![f32::NAN; scales.len()];
        let all = f32::NEG_INFINITY;
        let told = queries.above(0, products, &scales, all, |i, score| {
            scores[i] = score;
            Ok::<_, ()>(all)
        });
        told.unwrap();
        scores
    }

    #[test]
    fn a_floor_that_rises_lets_only_the_best_pass() {
        let row: Vec<f32> = vec![1.0; 64];
        let queries = Queries::new([row.as_slice()]);
        let products: Vec<i32> = (0..100).map(|i| (i * 37 % 100) * 127 + 127 * 64 * 128).collect();
        let scales = vec![(1f32 / 127.0).to_le_bytes(); 100];
        let mut passed = Vec::new();
        let told = queries.above(0, &products, &scales, 49.5 / 127.0, |i, score| {
            passed.push(i);
            Ok::<_, ()>(score)
        });
        told.unwrap();
        let mut expected = Vec::new();
        let mut most = 49;
        for i in 0..100 {
            if i * 37 % 100 > most {
                most = i * 37 % 100;
                expected.push(i as usize);
            }
        }
        assert_eq!(passed, expected);
    }

    fn vector(dim: usize, seed: f32) -> Vec<f32> {
        let raw: Vec<f32> = (0..dim).map(|i| ((i as f32 + seed) * 1.37 + seed * 0.61).sin()).collect();
        let norm = raw.iter().map(|v| v * v).sum::<f32>().sqrt();
        raw.iter().map(|v| v / norm).collect()
    }

    fn coded(rows: &[Vec<f32>]) -> (Vec<u8>, Vec<f32>) {
        let stride = stride(rows[0].len());
        let mut codes = vec![0; rows.len() * stride];
        let scales = rows.iter().zip(codes.chunks_mut(stride)).map(|(r, c)| encode_row(r, c)).collect();
        (codes, scales)
    }

    /// Every kind of CPU gives the reference's numbers, whatever the counts and lengths.
    #[test]
    fn products_are_those_of_the_reference() {
        for dim in [1, 63, 64, 65, 100, 384, 512, 1280] {
            for (n_rows, n_queries) in [(1, 1), (3, 2), (4, 4), (5, 1), (17, 8), (9, 13)] {
                let rows: Vec<_> = (0..n_rows).map(|i| vector(dim, i as f32)).collect();
                let queries: Vec<_> = (0..n_queries).map(|i| vector(dim, 100.0 + i as f32)).collect();
                let (codes, _) = coded(&rows);
                let queries = Queries::new(queries.iter().map(Vec::as_slice));
                let mut plain = vec![0; n_rows * n_queries];
                products_reference(&codes, &queries, &mut plain);
                let mut fast = vec![0; n_rows * n_queries];
                products(&codes, &queries, &mut fast);
                assert_eq!(fast, plain, "dim {dim}, {n_rows} rows, {n_queries} queries");
                #[cfg(target_arch = "x86_64")]
                for level in x86::LEVELS {
                    fast.fill(0);
                    if x86::products_by(level, &codes, &queries.codes, queries.stride, &mut fast) {
                        assert_eq!(fast, plain, "{level:?}: dim {dim}, {n_rows} rows, {n_queries} queries");
                    }
                }
            }
        }
    }

    /// Bytes at the ends of their range do not saturate.
    #[test]
    fn the_largest_codes_are_added_whole() {
        let row = vec![1.0; 512];
        let (codes, scales) = coded(&[row.clone(), row.iter().map(|v| -v).collect()]);
        assert_eq!((codes[0], codes[512]), (255, 1));
        let queries = Queries::new([row.as_slice()]);
        let mut found = vec![0; 2];
        products(&codes, &queries, &mut found);
        let scores = scores(&queries, &found, &scales);
        assert!((scores[0] - 512.0).abs() < 0.01 && (scores[1] + 512.0).abs() < 0.01, "{scores:?}");
    }

    #[test]
    fn scores_err_as_foretold() {
        let dim = 512;
        let rows: Vec<_> = (0..200).map(|i| vector(dim, i as f32 * 7.7)).collect();
        let (codes, scales) = coded(&rows);
        let query = vector(dim, 3.3);
        let queries = Queries::new([query.as_slice()]);
        let mut found = vec![0; rows.len()];
        products(&codes, &queries, &mut found);
        let mut squares = 0.0;
        let scores = self::scores(&queries, &found, &scales);
        for (i, row) in rows.iter().enumerate() {
            let exact: f32 = row.iter().zip(&query).map(|(a, b)| a * b).sum();
            let error = scores[i] - exact;
            let deviation = deviation(scales[i], queries.scale(0));
            assert!(error.abs() < 6.0 * deviation, "{i}: {error}, deviation {deviation}");
            squares += (error / deviation).powi(2);
        }
        let rms = (squares / rows.len() as f32).sqrt();
        assert!((0.5..1.5).contains(&rms), "{rms} deviations");
    }

    #[test]
    fn vectors_without_length_score_nothing() {
        let (codes, row_scales) = coded(&[vec![0.0; 10], vec![f32::NAN; 10]]);
        assert_eq!((row_scales[0], codes[0]), (0.0, 128));
        let queries = Queries::new([vec![1.0; 10].as_slice()]);
        let mut found = vec![0; 2];
        products(&codes, &queries, &mut found);
        assert_eq!(scores(&queries, &found, &row_scales), [0.0, 0.0]);
    }
}
