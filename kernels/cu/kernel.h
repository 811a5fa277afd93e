// What every kernel here is written in.
//
// The same sources are compiled twice: by NVRTC for a device, and as C++ with KERNEL_ON_CPU for tests,
// where `on_cpu.h` stands in for CUDA. No header of CUDA's is needed, so NVRTC needs no path at run time:
// what would come from one is written in PTX here, with its meaning in C++ beside it.
//
// Sums of floats are written with fmaf, in a fixed order, and compiled with --fmad=false: both builds, and
// every device, then give the same bits.
#pragma once

#ifdef KERNEL_ON_CPU
#include "on_cpu.h"
#define SHARED(type, name) type* name = reinterpret_cast<type*>(on_cpu::shared())
#else
#define SHARED(type, name) extern __shared__ __align__(16) type name[]
#endif

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

// To half precision, nearest even.
__device__ __forceinline__ u16 to_half(float f) {
#ifdef KERNEL_ON_CPU
    return on_cpu::to_half(f);
#else
    u16 h;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(h) : "f"(f));
    return h;
#endif
}

__device__ __forceinline__ float from_half(u16 h) {
#ifdef KERNEL_ON_CPU
    return on_cpu::from_half(h);
#else
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(h));
    return f;
#endif
}

// sum + a.lo * b.byte[first] + a.hi * b.byte[first + 1]: signed 16-bit weights, unsigned bytes; first is 0 or 2.
__device__ __forceinline__ int dot2_low(int weights, u32 bytes, int sum) {
#ifdef KERNEL_ON_CPU
    return sum + (short)weights * (int)(bytes & 255) + (weights >> 16) * (int)(bytes >> 8 & 255);
#else
    int d;
    asm("dp2a.lo.s32.u32 %0, %1, %2, %3;" : "=r"(d) : "r"(weights), "r"(bytes), "r"(sum));
    return d;
#endif
}

__device__ __forceinline__ int dot2_high(int weights, u32 bytes, int sum) {
#ifdef KERNEL_ON_CPU
    return dot2_low(weights, bytes >> 16, sum);
#else
    int d;
    asm("dp2a.hi.s32.u32 %0, %1, %2, %3;" : "=r"(d) : "r"(weights), "r"(bytes), "r"(sum));
    return d;
#endif
}

// Bytes of a (0 to 3) and b (4 to 7), chosen by the four lowest nibbles of how.
__device__ __forceinline__ u32 pick_bytes(u32 a, u32 b, u32 how) {
#ifdef KERNEL_ON_CPU
    u64 both = (u64)b << 32 | a;
    u32 picked = 0;
    for (int i = 0; i < 4; ++i) picked |= (u32)(both >> 8 * (how >> 4 * i & 7) & 255) << 8 * i;
    return picked;
#else
    u32 d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(how));
    return d;
#endif
}

__device__ __forceinline__ u32 float_bits(float f) {
#ifdef KERNEL_ON_CPU
    return on_cpu::bits(f);
#else
    return __float_as_uint(f);
#endif
}

// The sum over the warp's lanes, in every lane, always in the same order.
template <class T> __device__ __forceinline__ T sum_of_warp(T value) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, mask);
    return value;
}

// Floats i to i + 3 of a row of n; zeros past its end. By four: at multiples of 16 bytes, and n is one of four.
__device__ __forceinline__ void load_floats(const float* row, u32 i, u32 n, bool by_four, float* to) {
    if (by_four) {
        const float4 four = *(const float4*)(row + i);
        to[0] = four.x;
        to[1] = four.y;
        to[2] = four.z;
        to[3] = four.w;
        return;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) to[j] = i + j < n ? row[i + j] : 0.f;
}

// Halves i to i + 7 of a row of n, in pairs; likewise.
__device__ __forceinline__ void load_halves(const u16* row, u32 i, u32 n, bool by_eight, u32* to) {
    if (by_eight) {
        const uint4 eight = *(const uint4*)(row + i);
        to[0] = eight.x;
        to[1] = eight.y;
        to[2] = eight.z;
        to[3] = eight.w;
        return;
    }
#pragma unroll
    for (int j = 0; j < 4; ++j) {
        const u32 low = i + 2 * j < n ? row[i + 2 * j] : 0, high = i + 2 * j + 1 < n ? row[i + 2 * j + 1] : 0;
        to[j] = low | high << 16;
    }
}
