// Stands in for CUDA when a kernel is compiled as C++ for tests. Blocks run one after another; the threads
// of a block are fibers, so that barriers and exchanges within a warp behave as on a device.
#pragma once
#include <setjmp.h>
#include <ucontext.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __forceinline__ inline
#define __restrict__ __restrict
#define __launch_bounds__(...)
#define __grid_constant__

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(16) float4 { float x, y, z, w; };

namespace on_cpu {

struct Block {
    dim3 grid, block, index, thread;
    std::vector<unsigned char> shared;
    std::vector<ucontext_t> fibers;
    // Where each fiber stopped: a jump, unlike swapcontext, asks nothing of the kernel.
    struct Place { jmp_buf at; };
    std::vector<Place> places;
    std::vector<char> has_started;
    std::vector<std::vector<char>> stacks;
    std::vector<char> ended;
    std::vector<uint64_t> exchanged;
    // How often each thread has come to a barrier of the block, and to an exchange within its warp.
    std::vector<unsigned long> at_barrier, at_exchange;
    Place scheduler;
    size_t running = 0;
    bool has_moved = false;
    std::function<void()> body;
};

inline Block& now() {
    static thread_local Block block;
    return block;
}

__attribute__((noinline)) inline void to_fiber(size_t t) {
    Block& b = now();
    if (_setjmp(b.scheduler.at)) return;
    if (b.has_started[t]) _longjmp(b.places[t].at, 1);
    b.has_started[t] = 1;
    setcontext(&b.fibers[t]);
}

__attribute__((noinline)) inline void to_scheduler() {
    Block& b = now();
    if (!_setjmp(b.places[b.running].at)) _longjmp(b.scheduler.at, 1);
}

// Lets the other threads run until those from `first` to `end` have come as often as this one, or ended.
inline void meet(std::vector<unsigned long>& come, size_t first, size_t end) {
    Block& b = now();
    const size_t me = b.running;
    const unsigned long mine = ++come[me];
    b.has_moved = true;
    for (size_t t = first; t < end && t < come.size();) {
        if (b.ended[t] || come[t] >= mine) ++t;
        else to_scheduler();
    }
    b.has_moved = true;
}

inline void meet_block() { meet(now().at_barrier, 0, now().at_barrier.size()); }
inline void meet_warp() {
    const size_t first = now().running & ~size_t(31);
    meet(now().at_exchange, first, first + 32);
}

inline void enter() {
    Block& b = now();
    b.body();
    b.ended[b.running] = 1;
    to_scheduler();
}

// Bytes behind the end of shared memory that must stay as they are.
constexpr size_t GUARD = 64;
constexpr unsigned char GUARD_BYTE = 0xCD;

template <class F> void launch(dim3 grid, dim3 block, size_t shared_bytes, F body) {
    Block& b = now();
    b.grid = grid;
    b.block = block;
    b.body = body;
    const size_t n = size_t(block.x) * block.y * block.z;
    b.fibers.resize(n);
    b.places.resize(n);
    b.stacks.resize(n);
    for (auto& stack : b.stacks) stack.resize(64 << 10);
    b.exchanged.assign(n, 0);
    for (unsigned i = 0; i < grid.x * grid.y * grid.z; ++i) {
        b.index = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
        // What a block finds in shared memory is noise.
        b.shared.assign(shared_bytes + GUARD, GUARD_BYTE);
        b.ended.assign(n, 0);
        b.has_started.assign(n, 0);
        b.at_barrier.assign(n, 0);
        b.at_exchange.assign(n, 0);
        for (size_t t = 0; t < n; ++t) {
            ucontext_t& fiber = b.fibers[t];
            getcontext(&fiber);
            fiber.uc_stack.ss_sp = b.stacks[t].data();
            fiber.uc_stack.ss_size = b.stacks[t].size();
            fiber.uc_link = nullptr;
            makecontext(&fiber, enter, 0);
        }
        // A warp goes as far as it can before the next one starts, the last one first in every other block: what
        // lacks a barrier finds the others' work not done.
        const size_t n_warps = (n + 31) / 32;
        for (size_t live = n; live > 0;) {
            bool has_moved = false;
            for (size_t w = 0; w < n_warps; ++w) {
                const size_t first = 32 * (i % 2 ? n_warps - 1 - w : w);
                do {
                    b.has_moved = false;
                    for (size_t t = first; t < first + 32 && t < n; ++t) {
                        if (b.ended[t]) continue;
                        b.running = t;
                        b.thread = dim3(t % block.x, t / block.x % block.y, t / block.x / block.y);
                        to_fiber(t);
                        b.has_moved |= b.ended[t];
                        live -= b.ended[t];
                    }
                    has_moved |= b.has_moved;
                } while (b.has_moved);
            }
            if (live > 0 && !has_moved) {
                fprintf(stderr, "threads of a block wait for each other at different places\n");
                abort();
            }
        }
        for (size_t g = 0; g < GUARD; ++g) {
            if (b.shared[shared_bytes + g] != GUARD_BYTE) {
                fprintf(stderr, "a kernel wrote past its %zu bytes of shared memory\n", shared_bytes);
                abort();
            }
        }
    }
}

inline unsigned char* shared() { return now().shared.data(); }

// The value that another lane of this warp has.
template <class T> T exchange(T value, unsigned lane) {
    static_assert(sizeof(T) <= 8);
    Block& b = now();
    const size_t me = b.running, warp = me & ~size_t(31);
    memcpy(&b.exchanged[me], &value, sizeof value);
    meet_warp();
    T other;
    memcpy(&other, &b.exchanged[warp + (lane & 31)], sizeof other);
    meet_warp();
    return other;
}

inline uint16_t to_half(float f) { _Float16 h = (_Float16)f; uint16_t bits; memcpy(&bits, &h, 2); return bits; }
inline uint32_t bits(float f) { uint32_t bits; memcpy(&bits, &f, 4); return bits; }
inline float from_half(uint16_t bits) { _Float16 h; memcpy(&h, &bits, 2); return (float)h; }

}  // namespace on_cpu

#define threadIdx (on_cpu::now().thread)
#define blockIdx (on_cpu::now().index)
#define blockDim (on_cpu::now().block)
#define gridDim (on_cpu::now().grid)
#define __syncthreads() on_cpu::meet_block()

template <class T> T __shfl_xor_sync(unsigned, T value, int mask) {
    return on_cpu::exchange(value, unsigned(on_cpu::now().running & 31) ^ unsigned(mask));
}
template <class T> T atomicAdd(T* at, T value) { T before = *at; *at += value; return before; }
