// Decoded pictures → normalized planar tensors: resize (antialiased), crop, colour, normalize and turn, in
// one pass over any number of pictures of any sizes and formats.
//
// A block makes one tile of one tensor. First it weighs the tile's source rows down, in integers: samples of
// a byte or two, weights with 14 bits of fraction, exact sums. Then it weighs across, in floats, and turns
// each result into red, green and blue. What a tile needs in between lies in shared memory.
#include "kernel.h"

#define WEIGHT_BITS 14
#define THREADS 256
// Words of shared memory before the rows.
#define RESERVED 12

// The planes of a picture and the place of its tensor, as `preprocess/on_gpu.rs` writes them.
struct Source {
    u64 plane[3];
    u64 look;
    u64 out;
    u32 stride[3];
    u32 pad;
};

// As many as a kernel's parameters hold: no copy is needed to launch.
struct Sources {
    Source of[64];
};

// One axis of one kind of plane, luma or chroma: offsets in bytes from the start of the Look.
struct Axis {
    u32 start;   // int a place: the first sample
    u32 weights; // down: `taps` a place; across: a place's lie `width` apart, so that neighbours read neighbours
    u32 taps;
    u32 pad;
};

// What pictures of one size, format and colour have in common; tables follow it in memory.
struct Look {
    Axis down[2];   // weights are pairs of short
    Axis across[2]; // weights are floats
    int width, height;           // of the tensor, before it is turned
    int tile_width, tile_height; // of a block
    int n_planes, n_components;
    int sample_bytes;
    int columns[3], rows[3]; // samples of each plane
    int kind[3];         // of each plane: 0 luma's weights, 1 chroma's
    int step[3];         // of each plane: samples from one of a component to its next
    int plane_of[3];     // of each component
    int offset_of[3];    // of each component: samples from the first of its plane's steps
    int is_yuv;
    int transpose, flip_across, flip_down;
    float black, luma, centre, rv, gu, gv, bu;
    float scale[3], bias[3];
};
static_assert(sizeof(Source) == 56 && sizeof(Look) == 232, "as `preprocess/on_gpu.rs` lays them out");

__device__ __forceinline__ int smaller(int a, int b) { return a < b ? a : b; }
__device__ __forceinline__ float clamp255(float v) { return v < 0.f ? 0.f : v > 255.f ? 255.f : v; }

// Four neighbouring samples of one byte, weighed down; the address and the stride are multiples of four.
__device__ __forceinline__ void down_bytes(const u8* from, u32 stride, int last, const int* pairs, int taps, float* to) {
    int a = 0, b = 0, c = 0, d = 0;
    for (int j = 0; j < taps; j += 2) {
        // A row past the last weighs nothing.
        u32 upper = *(const u32*)(from + (u64)smaller(j, last) * stride);
        u32 lower = *(const u32*)(from + (u64)smaller(j + 1, last) * stride);
        u32 left = pick_bytes(upper, lower, 0x5140), right = pick_bytes(upper, lower, 0x7362);
        int weights = pairs[j / 2];
        a = dot2_low(weights, left, a);
        b = dot2_high(weights, left, b);
        c = dot2_low(weights, right, c);
        d = dot2_high(weights, right, d);
    }
    const float unit = 1.f / (1 << WEIGHT_BITS);
    to[0] = a * unit;
    to[1] = b * unit;
    to[2] = c * unit;
    to[3] = d * unit;
}

// One sample of one or two bytes, wherever it lies.
__device__ __forceinline__ float down_one(const u8* from, u32 stride, int last, const int* pairs, int taps, int bytes) {
    int sum = 0;
    for (int j = 0; j < taps; ++j) {
        const u8* at = from + (u64)smaller(j, last) * stride;
        int sample = bytes == 1 ? at[0] : at[0] | at[1] << 8;
        int pair = pairs[j / 2];
        sum += sample * (j & 1 ? pair >> 16 : (short)pair);
    }
    return sum * (1.f / (1 << WEIGHT_BITS));
}

template <class Out> __device__ __forceinline__ void store(Out* out, u64 at, float value);
template <> __device__ __forceinline__ void store<float>(float* out, u64 at, float value) { out[at] = value; }
template <> __device__ __forceinline__ void store<u16>(u16* out, u64 at, float value) { out[at] = to_half(value); }

// Components of one place to the model's numbers, where a viewer sees it.
template <class Out> __device__ __forceinline__ void finish(const Look& look, Out* out, int x, int y, const float* value) {
    float rgb[3];
    if (look.is_yuv) {
        const float l = (value[0] - look.black) * look.luma, u = value[1] - look.centre, v = value[2] - look.centre;
        rgb[0] = fmaf(look.rv, v, l);
        rgb[1] = fmaf(look.gv, v, fmaf(look.gu, u, l));
        rgb[2] = fmaf(look.bu, u, l);
    } else {
        for (int c = 0; c < 3; ++c) rgb[c] = (value[c] - look.black) * look.luma;
    }
    const int width = look.transpose ? look.height : look.width, height = look.transpose ? look.width : look.height;
    int to_x = look.transpose ? y : x, to_y = look.transpose ? x : y;
    if (look.flip_across) to_x = width - 1 - to_x;
    if (look.flip_down) to_y = height - 1 - to_y;
    for (int c = 0; c < 3; ++c) {
        const float level = rintf(clamp255(rgb[c]));
        store(out, ((u64)c * height + to_y) * width + to_x, fmaf(level, look.scale[c], look.bias[c]));
    }
}

template <class Out> __device__ __forceinline__ void preprocess(const Source& source) {
    // Of each plane: the tile's first sample (a multiple of four), samples of a row, and where its rows begin.
    SHARED(int, shared);
    int *first = shared, *pitch = shared + 4, *base = shared + 8;
    float* rows = (float*)(shared + RESERVED);
    const Look& look = *(const Look*)source.look;
    const u8* tables = (const u8*)source.look;
    const int tiles_across = (look.width + look.tile_width - 1) / look.tile_width;
    const int x0 = (int)blockIdx.x % tiles_across * look.tile_width;
    const int y0 = (int)blockIdx.x / tiles_across * look.tile_height;
    // Other pictures of the launch may have more tiles. The whole block leaves.
    if (y0 >= look.height) return;
    const int n_across = smaller(look.tile_width, look.width - x0);
    const int n_down = smaller(look.tile_height, look.height - y0);

    if (threadIdx.x == 0) {
        int used = 0;
        for (int p = 0; p < look.n_planes; ++p) {
            const Axis& axis = look.across[look.kind[p]];
            const int* start = (const int*)(tables + axis.start);
            first[p] = start[x0] * look.step[p] & ~3;
            pitch[p] = ((start[x0 + n_across - 1] + (int)axis.taps) * look.step[p] - first[p] + 3) & ~3;
            base[p] = used;
            used += pitch[p] * n_down;
        }
    }
    __syncthreads();
    for (int p = 0; p < look.n_planes; ++p) {
        const Axis& axis = look.down[look.kind[p]];
        const int* start = (const int*)(tables + axis.start);
        const int pairs_each = (int)axis.taps / 2;
        const u8* plane = (const u8*)source.plane[p];
        const u32 stride = source.stride[p];
        const bool by_four = look.sample_bytes == 1 && ((source.plane[p] | stride) & 3) == 0;
        const int groups = pitch[p] / 4;
        for (int i = (int)threadIdx.x; i < groups * n_down; i += THREADS) {
            const int y = i / groups, x = i % groups * 4;
            const int row = start[y0 + y];
            const int* pairs = (const int*)(tables + axis.weights) + (y0 + y) * pairs_each;
            const u8* from = plane + (u64)row * stride;
            const int last = look.rows[p] - 1 - row;
            float* to = rows + base[p] + y * pitch[p] + x;
            if (by_four) {
                down_bytes(from + first[p] + x, stride, last, pairs, (int)axis.taps, to);
            } else {
                // The last group may reach past the row's last sample.
                for (int s = 0; s < 4; ++s) {
                    const int at = smaller(first[p] + x + s, look.columns[p] - 1);
                    to[s] = down_one(from + (u64)at * look.sample_bytes, stride, last, pairs, (int)axis.taps, look.sample_bytes);
                }
            }
        }
    }
    __syncthreads();

    // Two places a thread, one above the other: they share their weights.
    Out* out = (Out*)source.out;
    const int half = (n_down + 1) / 2;
    for (int i = (int)threadIdx.x; i < n_across * half; i += THREADS) {
        const int x = i % n_across, upper = i / n_across, lower = upper + half;
        float value[2][3];
#pragma unroll
        for (int c = 0; c < 3; ++c) {
            if (c >= look.n_components) {
                // Gray: luma is all three.
                value[0][c] = value[0][0];
                value[1][c] = value[1][0];
                continue;
            }
            const int p = look.plane_of[c];
            const Axis& axis = look.across[look.kind[p]];
            const int start = ((const int*)(tables + axis.start))[x0 + x];
            const float* weights = (const float*)(tables + axis.weights) + x0 + x;
            const int step = look.step[p];
            const float* at = rows + base[p] + start * step + look.offset_of[c] - first[p];
            const float* above = at + upper * pitch[p];
            // Where there is no lower one, the upper one is made twice.
            const float* below = at + smaller(lower, n_down - 1) * pitch[p];
            float sum_above = 0.f, sum_below = 0.f;
            for (int j = 0; j < (int)axis.taps; ++j) {
                const float weight = weights[j * look.width];
                sum_above = fmaf(weight, above[j * step], sum_above);
                sum_below = fmaf(weight, below[j * step], sum_below);
            }
            value[0][c] = sum_above;
            value[1][c] = sum_below;
        }
        finish(look, out, x0 + x, y0 + upper, value[0]);
        if (lower < n_down) finish(look, out, x0 + x, y0 + lower, value[1]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) preprocess_f16(const __grid_constant__ Sources sources) {
    preprocess<u16>(sources.of[blockIdx.y]);
}

extern "C" __global__ void __launch_bounds__(THREADS) preprocess_f32(const __grid_constant__ Sources sources) {
    preprocess<float>(sources.of[blockIdx.y]);
}
