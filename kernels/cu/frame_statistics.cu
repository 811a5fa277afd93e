// Statistics of luma planes, in exact integers: what tells frames that repeat and scenes that change.
//
// Any number of frames of any sizes in one launch. Each thread takes 16 bytes of a row at a time; a warp has
// a histogram of its own in shared memory, and equal neighbours are counted before they are added to it, so
// that even a black frame does not make all threads wait for one number.
#include "kernel.h"

#define THREADS 256
#define WARPS (THREADS / 32)
#define MOST_BINS 64

// As `frame_statistics.rs` writes them.
struct Frame {
    u64 luma;
    u64 previous; // 0 where there is none
    u64 out;
    u32 stride, previous_stride;
    u32 width, height;
    u32 shift, n_bins; // a sample's bin is its value shifted right
};

// As many as a kernel's parameters hold.
struct Frames {
    Frame of[64];
};

// As `frame_statistics.rs` reads them; all zero before the launch.
struct Statistics {
    u64 sum, sum_of_squares, difference;
    u32 histogram[MOST_BINS];
};
static_assert(sizeof(Frame) == 48 && sizeof(Statistics) == 280, "as `frame_statistics.rs` lays them out");

// 16 bytes of a row from `x` on; zeros for samples from `n` on.
template <int BYTES> __device__ __forceinline__ void load_samples(const u8* row, u32 x, int n, bool is_wide, u32* words) {
    const u8* at = row + (u64)x * BYTES;
    if (is_wide && n == 16 / BYTES) {
        const uint4 all = *(const uint4*)at;
        words[0] = all.x;
        words[1] = all.y;
        words[2] = all.z;
        words[3] = all.w;
        return;
    }
    words[0] = words[1] = words[2] = words[3] = 0;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
        if (i < n * BYTES) words[i / 4] |= (u32)at[i] << 8 * (i % 4);
    }
}

template <int BYTES> __device__ __forceinline__ void frame_statistics(const Frame& frame) {
    SHARED(u32, histograms);
    constexpr int TOGETHER = 16 / BYTES;
    const u32 groups = (frame.width + TOGETHER - 1) / TOGETHER;
    const u32 n_groups = groups * frame.height;
    // Other frames of the launch may be larger. The whole block leaves.
    if (blockIdx.x * THREADS >= n_groups) return;
    for (u32 i = threadIdx.x; i < WARPS * frame.n_bins; i += THREADS) histograms[i] = 0;
    __syncthreads();

    u32* mine = histograms + threadIdx.x / 32 * frame.n_bins;
    const u8 *luma = (const u8*)frame.luma, *previous = (const u8*)frame.previous;
    const bool is_wide = ((frame.luma | frame.stride) & 15) == 0;
    const bool is_previous_wide = ((frame.previous | frame.previous_stride) & 15) == 0;
    u64 sum = 0, sum_of_squares = 0, difference = 0;
    u32 run_bin = 0, run = 0;
    for (u32 i = blockIdx.x * THREADS + threadIdx.x; i < n_groups; i += gridDim.x * THREADS) {
        const u32 y = i / groups, x = i % groups * TOGETHER;
        const int n = frame.width - x < TOGETHER ? (int)(frame.width - x) : TOGETHER;
        u32 now[4], before[4] = {0, 0, 0, 0};
        load_samples<BYTES>(luma + (u64)y * frame.stride, x, n, is_wide, now);
        if (previous) load_samples<BYTES>(previous + (u64)y * frame.previous_stride, x, n, is_previous_wide, before);
        // Of 16 bytes, or 8 samples of two.
        u32 group_sum = 0, group_squares = 0, group_difference = 0;
#pragma unroll
        for (int j = 0; j < TOGETHER; ++j) {
            if (j >= n) continue;
            const int word = j * BYTES / 4, bit = j * BYTES % 4 * 8;
            const u32 mask = (1u << 8 * BYTES) - 1;
            const u32 a = now[word] >> bit & mask, b = before[word] >> bit & mask;
            group_sum += a;
            group_difference += a > b ? a - b : b - a;
            if (BYTES == 1) group_squares += a * a;
            else sum_of_squares += (u64)a * a;
            u32 bin = a >> frame.shift;
            // Samples above their depth.
            if (bin >= frame.n_bins) bin = frame.n_bins - 1;
            if (bin != run_bin) {
                if (run) atomicAdd(mine + run_bin, run);
                run_bin = bin;
                run = 0;
            }
            ++run;
        }
        sum += group_sum;
        sum_of_squares += group_squares;
        if (previous) difference += group_difference;
    }
    if (run) atomicAdd(mine + run_bin, run);
    __syncthreads();

    Statistics* out = (Statistics*)frame.out;
    sum = sum_of_warp(sum);
    sum_of_squares = sum_of_warp(sum_of_squares);
    difference = sum_of_warp(difference);
    if ((threadIdx.x & 31) == 0) {
        atomicAdd(&out->sum, sum);
        atomicAdd(&out->sum_of_squares, sum_of_squares);
        if (previous) atomicAdd(&out->difference, difference);
    }
    for (u32 bin = threadIdx.x; bin < frame.n_bins; bin += THREADS) {
        u32 n = 0;
        for (int warp = 0; warp < WARPS; ++warp) n += histograms[warp * frame.n_bins + bin];
        if (n) atomicAdd(out->histogram + bin, n);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) frame_statistics_u8(const __grid_constant__ Frames frames) {
    frame_statistics<1>(frames.of[blockIdx.y]);
}

extern "C" __global__ void __launch_bounds__(THREADS) frame_statistics_u16(const __grid_constant__ Frames frames) {
    frame_statistics<2>(frames.of[blockIdx.y]);
}
