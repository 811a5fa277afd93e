//! Inner products of a float32 query with float16 rows.

use half::f16;

/// The inner product of `row` and `query`, which have the same length.
pub fn dot_f16(row: &[f16], query: &[f32]) -> f32 {
    assert_eq!(row.len(), query.len(), "row and query have the same dimension");
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
    {
        // SAFETY: the features were detected on the line above, and the lengths are equal.
        return unsafe { dot_f16_avx2(row, query) };
    }
    dot_f16_reference(row, query)
}

/// [`dot_f16`], one product at a time.
pub fn dot_f16_reference(row: &[f16], query: &[f32]) -> f32 {
    row.iter().zip(query).map(|(r, q)| r.to_f32() * q).sum()
}

/// # Safety
/// The CPU has AVX2, FMA and F16C; `row` and `query` have the same length.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dot_f16_avx2(row: &[f16], query: &[f32]) -> f32 {
    use std::arch::x86_64::*;
    let mut sums = [_mm256_setzero_ps(); 4];
    let whole = row.len() / 32 * 32;
    for at in (0..whole).step_by(32) {
        for (lane, sum) in sums.iter_mut().enumerate() {
            let from = at + lane * 8;
            // SAFETY: `from + 8 <= whole <= row.len() == query.len()`; f16 is two bytes of plain data.
            let (r, q) = unsafe {
                let r = _mm_loadu_si128(row.as_ptr().add(from).cast());
                (_mm256_cvtph_ps(r), _mm256_loadu_ps(query.as_ptr().add(from)))
            };
            *sum = _mm256_fmadd_ps(r, q, *sum);
        }
    }
    let sum = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
    let mut lanes = [0f32; 8];
    // SAFETY: `lanes` holds eight floats.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), sum) };
    lanes.iter().sum::<f32>() + dot_f16_reference(&row[whole..], &query[whole..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agrees_with_the_reference_at_every_length() {
        for len in (0..200).chain([384, 512, 1280]) {
            let row: Vec<f16> = (0..len).map(|i| f16::from_f32((i as f32 * 0.37).sin())).collect();
            let query: Vec<f32> = (0..len).map(|i| (i as f32 * 0.11).cos()).collect();
            let (fast, plain) = (dot_f16(&row, &query), dot_f16_reference(&row, &query));
            assert!((fast - plain).abs() < 1e-3, "{len}: {fast} {plain}");
        }
    }
}
