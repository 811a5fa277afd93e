//! [`super::products`] for x86-64: AVX-512 with VNNI, and AVX2.

use std::arch::x86_64::*;

/// Kinds of CPU, the best first.
#[cfg(test)]
pub(super) const LEVELS: [Level; 2] = [Level::Vnni, Level::Avx2];

/// A kind of CPU.
#[derive(Clone, Copy, Debug)]
pub(super) enum Level {
    Vnni,
    Avx2,
}

impl Level {
    fn is_here(self) -> bool {
        match self {
            Self::Vnni => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vnni")
            }
            Self::Avx2 => is_x86_feature_detected!("avx2"),
        }
    }
}

/// Whether the CPU could do it. Lengths were checked by the caller.
pub(super) fn products(codes: &[u8], queries: &[i8], stride: usize, out: &mut [i32]) -> bool {
    products_by(Level::Vnni, codes, queries, stride, out)
        || products_by(Level::Avx2, codes, queries, stride, out)
}

pub(super) fn products_by(
    level: Level,
    codes: &[u8],
    queries: &[i8],
    stride: usize,
    out: &mut [i32],
) -> bool {
    if !level.is_here() {
        return false;
    }
    assert_eq!(stride % 64, 0, "rows are whole cache lines");
    assert_eq!(out.len(), codes.len() / stride * (queries.len() / stride), "a product for each pair");
    // SAFETY: the features were detected above, and the lengths hold by the assertions.
    unsafe {
        match level {
            Level::Vnni => all_vnni(codes, queries, stride, out),
            Level::Avx2 => all_avx2(codes, queries, stride, out),
        }
    }
    true
}

/// Rows that are read together: their sums are added up across lanes at once.
const ROWS: usize = 4;

/// # Safety
/// The CPU has the features; `codes` and `queries` are whole rows of `stride` bytes, a multiple of 64;
/// `out` has an element for each pair.
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn all_vnni(codes: &[u8], queries: &[i8], stride: usize, out: &mut [i32]) {
    let (n_rows, n_queries) = (codes.len() / stride, queries.len() / stride);
    let mut row = 0;
    while row + ROWS <= n_rows {
        // The CPU reads ahead within a page only, and lists start anywhere in one.
        for at in (0..ROWS * stride).step_by(64) {
            let ahead = codes.as_ptr().wrapping_add((row + 2 * ROWS) * stride + at);
            _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
        }
        let mut query = 0;
        while query < n_queries {
            // SAFETY: `row + ROWS` rows and `query + 4`, or `query + 1`, queries are there.
            unsafe {
                let rows = codes.as_ptr().add(row * stride);
                let of = queries.as_ptr().add(query * stride);
                let to = out.as_mut_ptr().add(query * n_rows + row);
                if query + 4 <= n_queries {
                    tile_vnni::<4>(rows, of, stride, to, n_rows);
                    query += 4;
                } else {
                    tile_vnni::<1>(rows, of, stride, to, n_rows);
                    query += 1;
                }
            }
        }
        row += ROWS;
    }
    for row in row..n_rows {
        for query in 0..n_queries {
            let (r, q) = (&codes[row * stride..][..stride], &queries[query * stride..][..stride]);
            let mut sum = _mm512_setzero_si512();
            for at in (0..stride).step_by(64) {
                // SAFETY: both slices have `stride` bytes, a multiple of 64.
                sum = unsafe {
                    let r = _mm512_loadu_si512(r.as_ptr().add(at).cast());
                    _mm512_dpbusd_epi32(sum, r, _mm512_loadu_si512(q.as_ptr().add(at).cast()))
                };
            }
            out[query * n_rows + row] = _mm512_reduce_add_epi32(sum);
        }
    }
}

/// # Safety
/// The CPU has the features; [`ROWS`] rows and `N` queries of `stride` bytes are readable; `to` can be
/// written at `query * n_rows + row` for each pair.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
unsafe fn tile_vnni<const N: usize>(
    rows: *const u8,
    queries: *const i8,
    stride: usize,
    to: *mut i32,
    n_rows: usize,
) {
    let mut sums = [[_mm512_setzero_si512(); ROWS]; N];
    for at in (0..stride).step_by(64) {
        // SAFETY: as promised by the caller; `at + 64 <= stride`.
        unsafe {
            let r: [__m512i; ROWS] =
                std::array::from_fn(|i| _mm512_loadu_si512(rows.add(i * stride + at).cast()));
            for (query, sums) in sums.iter_mut().enumerate() {
                let q = _mm512_loadu_si512(queries.add(query * stride + at).cast());
                for (sum, r) in sums.iter_mut().zip(r) {
                    *sum = _mm512_dpbusd_epi32(*sum, r, q);
                }
            }
        }
    }
    for (query, sums) in sums.into_iter().enumerate() {
        let [a, b, c, d] =
            sums.map(|s| _mm256_add_epi32(_mm512_castsi512_si256(s), _mm512_extracti64x4_epi64::<1>(s)));
        // SAFETY: as promised by the caller.
        unsafe { _mm_storeu_si128(to.add(query * n_rows).cast(), across(a, b, c, d)) };
    }
}

/// The sums of four vectors' lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn across(a: __m256i, b: __m256i, c: __m256i, d: __m256i) -> __m128i {
    let pairs = _mm256_hadd_epi32(_mm256_hadd_epi32(a, b), _mm256_hadd_epi32(c, d));
    _mm_add_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256::<1>(pairs))
}

/// # Safety
/// As for [`all_vnni`], with AVX2.
#[target_feature(enable = "avx2")]
unsafe fn all_avx2(codes: &[u8], queries: &[i8], stride: usize, out: &mut [i32]) {
    let (n_rows, n_queries) = (codes.len() / stride, queries.len() / stride);
    for row in (0..n_rows).step_by(ROWS) {
        let n = ROWS.min(n_rows - row);
        for query in 0..n_queries {
            let mut sums = [_mm256_setzero_si256(); ROWS];
            for at in (0..stride).step_by(16) {
                // SAFETY: rows below `row + n` and the query have `stride` bytes, a multiple of 64.
                unsafe {
                    // Widened to sixteen bits: products of bytes, added in pairs, would saturate there.
                    let q = _mm_loadu_si128(queries.as_ptr().add(query * stride + at).cast());
                    let q = _mm256_cvtepi8_epi16(q);
                    for (i, sum) in sums.iter_mut().enumerate().take(n) {
                        let r = _mm_loadu_si128(codes.as_ptr().add((row + i) * stride + at).cast());
                        *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(_mm256_cvtepu8_epi16(r), q));
                    }
                }
            }
            let [a, b, c, d] = sums;
            let mut lanes = [0i32; 4];
            // SAFETY: `lanes` holds four numbers.
            unsafe { _mm_storeu_si128(lanes.as_mut_ptr().cast(), across(a, b, c, d)) };
            out[query * n_rows + row..][..n].copy_from_slice(&lanes[..n]);
        }
    }
}
