// Rows of floats to unit length, in place; optionally a copy of them in half precision.
//
// A warp takes a row. Squares are summed in double precision, where they are exact and no float overflows,
// always in the same order: a row's result depends neither on its neighbours nor on where it lies. Memory is
// the limit by far, also where a device does few doubles.
#include "kernel.h"

#define THREADS 256

// A row of zeros has no direction and one with a NaN no length: both stay as they are.
extern "C" __global__ void __launch_bounds__(THREADS) l2_normalize(float* rows, u16* halves, u64 n, u32 dim) {
    const u32 lane = threadIdx.x & 31;
    const u64 row = (u64)blockIdx.x * (THREADS / 32) + threadIdx.x / 32;
    // The whole warp leaves.
    if (row >= n) return;
    float* at = rows + row * dim;
    // Then every row starts at a multiple of 16 bytes.
    const bool by_four = (dim & 3) == 0;

    double sums[4] = {0., 0., 0., 0.};
    for (u32 i = lane * 4; i < dim; i += 128) {
        float four[4];
        load_floats(at, i, dim, by_four, four);
#pragma unroll
        for (int j = 0; j < 4; ++j) sums[j] = fma((double)four[j], (double)four[j], sums[j]);
    }
    const double squares = sum_of_warp((sums[0] + sums[1]) + (sums[2] + sums[3]));
    const double norm = sqrt(squares);
    const bool has_length = norm > 0.;
    const double scale = 1. / norm;

    u16* half = halves ? halves + row * dim : 0;
    for (u32 i = lane * 4; i < dim; i += 128) {
        float four[4];
        load_floats(at, i, dim, by_four, four);
#pragma unroll
        for (int j = 0; j < 4; ++j) four[j] = has_length ? (float)((double)four[j] * scale) : four[j];
        if (by_four) {
            *(float4*)(at + i) = float4{four[0], four[1], four[2], four[3]};
            if (half) {
                const u32 left = to_half(four[0]) | (u32)to_half(four[1]) << 16;
                const u32 right = to_half(four[2]) | (u32)to_half(four[3]) << 16;
                *(uint2*)(half + i) = uint2{left, right};
            }
        } else {
#pragma unroll
            for (int j = 0; j < 4; ++j) {
                if (i + j >= dim) continue;
                at[i + j] = four[j];
                if (half) half[i + j] = to_half(four[j]);
            }
        }
    }
}
