//! [`super::products`] for aarch64, by the instructions that every such CPU has.

use std::arch::aarch64::*;

/// Lengths were checked by the caller.
pub(super) fn products(codes: &[u8], queries: &[i8], stride: usize, out: &mut [i32]) {
    let pairs = queries
        .chunks_exact(stride)
        .flat_map(|query| codes.chunks_exact(stride).map(move |row| product(row, query)));
    out.iter_mut().zip(pairs).for_each(|(to, product)| *to = product);
}

fn product(row: &[u8], query: &[i8]) -> i32 {
    let mut sum = 0;
    for (r, q) in row.chunks_exact(16).zip(query.chunks_exact(16)) {
        // SAFETY: NEON is part of aarch64; both slices have sixteen bytes.
        sum += unsafe {
            let (r, q) = (vld1q_u8(r.as_ptr()), vld1q_s8(q.as_ptr()));
            // Less 128, a row's byte is signed as the query's is; their sum is put back below.
            let r = vreinterpretq_s8_u8(veorq_u8(r, vdupq_n_u8(0x80)));
            let low = vmull_s8(vget_low_s8(r), vget_low_s8(q));
            let both = vmlal_high_s8(low, r, q);
            vaddlvq_s16(both) + 128 * i32::from(vaddlvq_s8(q))
        };
    }
    sum
}
