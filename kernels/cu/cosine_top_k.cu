// The rows of a matrix of halves that lie nearest to a few queries, all of unit length: the k best of each
// block, by score and then by row; the host merges the blocks.
//
// A warp takes four rows at a time, so that what it reads of the queries serves four. What beats the k-th of
// a block so far is gathered behind the best; when there may be no more room, all are sorted. Which of two
// threads comes first changes nothing: what is sorted is unique.
#include "kernel.h"

#define THREADS 256
#define WARPS (THREADS / 32)
#define ROWS 4 // of a warp at a time
// Two blocks a processor: the registers of a third would be too few for four queries.
#define BLOCKS 2

// As `cosine_top_k.rs` writes it.
struct Search {
    u64 rows;    // n_rows of dim halves
    u64 queries; // n_queries of dim floats
    u64 best;    // of each block and each query, k keys
    u64 n_rows;  // less than 2^32
    u32 rows_each; // of a block
    u32 dim, pitch; // pitch is dim, up to a multiple of 256
    u32 k, capacity; // capacity is a power of two, at least 2 k and at least k + 32
    u32 n_queries;
};
static_assert(sizeof(Search) == 56, "as `cosine_top_k.rs` lays it out");

// Larger for a better score, or for a lower row of the same; never 0.
__device__ __forceinline__ u64 key_of(float score, u32 row) {
    // There are two zeros.
    const u32 bits = float_bits(score + 0.f);
    const u32 ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return (u64)ordered << 32 | (0xFFFFFFFFu - row);
}

// The largest key first, each list on its own.
template <int QUERIES> __device__ __forceinline__ void sort(u64* keys, u32 capacity) {
    const u32 pairs = capacity / 2;
    for (u32 size = 2; size <= capacity; size *= 2) {
        for (u32 step = size / 2; step > 0; step /= 2) {
            __syncthreads();
            for (u32 i = threadIdx.x; i < pairs * QUERIES; i += THREADS) {
                const u32 pair = i & (pairs - 1);
                const u32 low = 2 * pair - (pair & (step - 1));
                u64* at = keys + (i - pair) * 2 + low;
                const u64 a = at[0], b = at[step];
                const bool falls = (low & size) == 0;
                if ((a < b) == falls) {
                    at[0] = b;
                    at[step] = a;
                }
            }
        }
    }
    __syncthreads();
}

template <int QUERIES> __device__ __forceinline__ void cosine_top_k(const Search& search) {
    // Keys, the k-th of each list, how many wait behind the best, then the queries.
    SHARED(u64, keys);
    u64* least = keys + QUERIES * search.capacity;
    u32* n_waiting = (u32*)(least + 4);
    float* queries = (float*)(n_waiting + 4);
    const u32 lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    const u32 dim = search.dim, pitch = search.pitch, k = search.k, capacity = search.capacity;

    for (u32 i = threadIdx.x; i < QUERIES * capacity; i += THREADS) keys[i] = 0;
    if (threadIdx.x < QUERIES) {
        least[threadIdx.x] = 0;
        n_waiting[threadIdx.x] = 0;
    }
    // Of 256 values, first the lower four of every lane's eight, then the upper four: lanes that read 16 bytes
    // each then meet no bank twice.
    for (u32 i = threadIdx.x; i < QUERIES * pitch; i += THREADS) {
        const u32 q = i / pitch, e = i % pitch;
        const bool is_there = q < search.n_queries && e < dim;
        const u32 at = (e & ~255u) + (e & 4) * 32 + (e >> 3 & 31) * 4 + (e & 3);
        queries[q * pitch + at] = is_there ? ((const float*)search.queries)[(u64)q * dim + e] : 0.f;
    }
    __syncthreads();

    const u16* rows = (const u16*)search.rows;
    const bool is_wide = (dim & 7) == 0;
    const u64 begin = (u64)blockIdx.x * search.rows_each;
    const u64 end = begin + search.rows_each < search.n_rows ? begin + search.rows_each : search.n_rows;
    for (u64 first = begin; first < end; first += WARPS * ROWS) {
        const u64 row0 = first + warp * ROWS;
        float sums[ROWS][QUERIES];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
#pragma unroll
            for (int q = 0; q < QUERIES; ++q) sums[r][q] = 0.f;
        }
        for (u32 at = lane * 8; at < dim; at += 256) {
            u32 eight[ROWS][4];
#pragma unroll
            for (int r = 0; r < ROWS; ++r) {
                // A row past the end is read as the last one, and left out below.
                const u64 row = row0 + r < end ? row0 + r : end - 1;
                load_halves(rows + row * dim, at, dim, is_wide, eight[r]);
            }
            const float* from = queries + (at & ~255u) + lane * 4;
#pragma unroll
            for (int q = 0; q < QUERIES; ++q) {
                const float4 low = *(const float4*)(from + q * pitch), high = *(const float4*)(from + q * pitch + 128);
#pragma unroll
                for (int r = 0; r < ROWS; ++r) {
                    float s = sums[r][q];
                    s = fmaf(from_half((u16)eight[r][0]), low.x, s);
                    s = fmaf(from_half((u16)(eight[r][0] >> 16)), low.y, s);
                    s = fmaf(from_half((u16)eight[r][1]), low.z, s);
                    s = fmaf(from_half((u16)(eight[r][1] >> 16)), low.w, s);
                    s = fmaf(from_half((u16)eight[r][2]), high.x, s);
                    s = fmaf(from_half((u16)(eight[r][2] >> 16)), high.y, s);
                    s = fmaf(from_half((u16)eight[r][3]), high.z, s);
                    s = fmaf(from_half((u16)(eight[r][3] >> 16)), high.w, s);
                    sums[r][q] = s;
                }
            }
        }
        // Lane number r * QUERIES + q keeps the score of row r for query q.
        float mine = 0.f;
#pragma unroll
        for (int r = 0; r < ROWS; ++r) {
#pragma unroll
            for (int q = 0; q < QUERIES; ++q) {
                const float sum = sum_of_warp(sums[r][q]);
                if ((int)lane == r * QUERIES + q) mine = sum;
            }
        }
        const u32 q = lane % QUERIES;
        const u64 row = row0 + lane / QUERIES;
        // A score that is no number is nobody's best.
        if (lane < ROWS * QUERIES && q < search.n_queries && row < end && mine == mine) {
            const u64 key = key_of(mine, (u32)row);
            if (key > least[q]) keys[q * capacity + k + atomicAdd(n_waiting + q, 1u)] = key;
        }
        __syncthreads();
        bool is_full = false;
#pragma unroll
        for (int i = 0; i < QUERIES; ++i) is_full |= n_waiting[i] + WARPS * ROWS > capacity - k;
        // All have read the numbers before anyone adds to them.
        __syncthreads();
        if (is_full) {
            sort<QUERIES>(keys, capacity);
            if (threadIdx.x < QUERIES) {
                least[threadIdx.x] = keys[threadIdx.x * capacity + k - 1];
                n_waiting[threadIdx.x] = 0;
            }
            for (u32 i = threadIdx.x; i < QUERIES * capacity; i += THREADS) {
                if ((i & (capacity - 1)) >= k) keys[i] = 0;
            }
            __syncthreads();
        }
    }
    sort<QUERIES>(keys, capacity);
    u64* best = (u64*)search.best + (u64)blockIdx.x * QUERIES * k;
    for (u32 i = threadIdx.x; i < QUERIES * k; i += THREADS) best[i] = keys[i / k * capacity + i % k];
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) cosine_top_k_1(const __grid_constant__ Search search) {
    cosine_top_k<1>(search);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) cosine_top_k_2(const __grid_constant__ Search search) {
    cosine_top_k<2>(search);
}

extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS) cosine_top_k_4(const __grid_constant__ Search search) {
    cosine_top_k<4>(search);
}
