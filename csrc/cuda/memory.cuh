// Moving data: fragments of activations out of shared memory, packed weights out of global memory,
// asynchronous copies, barriers.
#pragma once

#include "numbers.cuh"

namespace dssnet {

constexpr int CHUNK = 16;          // bytes: eight channels, the unit in which maps are moved
constexpr int CHUNK_CHANNELS = 8;

// Item i of a copy of whole pixels: eight lanes take the same chunk of eight neighbouring pixels,
// which lie in different banks, and a warp still touches whole sectors of global memory.
__device__ __forceinline__ constexpr int copy_items(int pixels, int chunks) { return (pixels + 7) / 8 * 8 * chunks; }
__device__ __forceinline__ int copied_chunk(int i, int chunks) { return i / 8 % chunks; }
__device__ __forceinline__ int copied_pixel(int i, int chunks) { return i / 8 / chunks * 8 + i % 8; }

extern __shared__ __align__(128) u8 shared_memory[];

// Address in the shared window, as instructions on shared memory take it.
__device__ __forceinline__ u32 shared_address(const void* pointer) {
    return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// --- activations: A fragments ---------------------------------------------------------------------
// Lane l gives the address of one 16-byte row: rows 0-15 of the tile at lanes 0-15 for the first
// eight of k, again at lanes 16-31 for the second eight.

__device__ __forceinline__ void load_a(u32 (&a)[4], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(a[0]), "=r"(a[1]), "=r"(a[2]), "=r"(a[3])
                 : "r"(address)
                 : "memory");
}

// With k = 8; lanes 0-15 give addresses, those of the others are not used.
__device__ __forceinline__ void load_a8(u32 (&a)[2], u32 address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0, %1}, [%2];"
                 : "=r"(a[0]), "=r"(a[1])
                 : "r"(address)
                 : "memory");
}

// --- weights: B fragments -------------------------------------------------------------------------
// The host packs weights in the order in which the warps consume them (csrc/plan/pack.cpp). One
// k-step of N tiles of 8 outputs is 256 N bytes (k = 16) or 128 N bytes (k = 8).

__device__ __forceinline__ uint4 load_constant16(const u8* address) {
    uint4 v;
    asm volatile("ld.global.nc.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(address));
    return v;
}

__device__ __forceinline__ uint2 load_constant8(const u8* address) {
    uint2 v;
    asm volatile("ld.global.nc.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(address));
    return v;
}

__device__ __forceinline__ u32 load_constant4(const u8* address) {
    u32 v;
    asm volatile("ld.global.nc.u32 %0, [%1];" : "=r"(v) : "l"(address));
    return v;
}

template <int N>
__device__ __forceinline__ void load_b(u32 (&b)[N][2], const u8* step, int lane) {
#pragma unroll
    for (int n = 0; n + 1 < N; n += 2) {
        const uint4 v = load_constant16(step + n * 256 + lane * 16);
        b[n][0] = v.x, b[n][1] = v.y, b[n + 1][0] = v.z, b[n + 1][1] = v.w;
    }
    if constexpr (N % 2) {
        const uint2 v = load_constant8(step + (N - 1) * 256 + lane * 8);
        b[N - 1][0] = v.x, b[N - 1][1] = v.y;
    }
}

template <int N>
__device__ __forceinline__ void load_b8(u32 (&b)[N], const u8* step, int lane) {
    constexpr int FOURS = N / 4 * 4, TWOS = N / 2 * 2;
#pragma unroll
    for (int n = 0; n < FOURS; n += 4) {
        const uint4 v = load_constant16(step + n * 128 + lane * 16);
        b[n] = v.x, b[n + 1] = v.y, b[n + 2] = v.z, b[n + 3] = v.w;
    }
    if constexpr (TWOS > FOURS) {
        const uint2 v = load_constant8(step + FOURS * 128 + lane * 8);
        b[FOURS] = v.x, b[FOURS + 1] = v.y;
    }
    if constexpr (N > TWOS) b[TWOS] = load_constant4(step + TWOS * 128 + lane * 4);
}

// Packed weights of steps 0, 1, 2, ... held DEPTH steps ahead of their use, so that the latency of
// the L2 cache hides behind the tensor cores. The number of steps is a multiple of DEPTH: use
// ring[0], refill(0), ring[1], refill(1), ..., ring[LAST], refill(LAST), then advance().
template <int N, int DEPTH>
struct Ahead {
    static constexpr int LAST = DEPTH - 1;
    u32 ring[DEPTH][N][2];
    const u8* next;
    int left;  // steps not yet asked for
    int lane;

    __device__ __forceinline__ Ahead(const void* weights, int steps, int lane)
        : next(static_cast<const u8*>(weights)), left(steps), lane(lane) {
#pragma unroll
        for (int slot = 0; slot < DEPTH; ++slot) refill(slot);
        advance();
    }
    __device__ __forceinline__ void refill(int slot) {
        if (left > 0) load_b(ring[slot], next + slot * 256 * N, lane);
    }
    __device__ __forceinline__ void advance() {
        next += DEPTH * 256 * N;
        left -= DEPTH;
    }
};

// Calls step(slot, k) for k = 0, 1, ... `steps` - 1, `slot` = k % DEPTH a constant after unrolling.
template <int DEPTH, class Step>
__device__ __forceinline__ void for_steps(int steps, Step&& step) {
#pragma unroll 1
    for (int k = 0; k < steps; k += DEPTH) {
#pragma unroll
        for (int slot = 0; slot < DEPTH; ++slot) step(slot, k + slot);
    }
}

// --- asynchronous copies --------------------------------------------------------------------------

// 16 bytes from global to shared memory, or zeros where `inside` is false.
__device__ __forceinline__ void copy_chunk_async(u32 to, const void* from, bool inside) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(inside ? 16 : 0)
                 : "memory");
}

__device__ __forceinline__ void wait_for_copies() {
    asm volatile("cp.async.wait_all;" ::: "memory");
}

// --- shared memory --------------------------------------------------------------------------------

__device__ __forceinline__ u32 load_shared4(u32 address) {
    u32 v;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(v) : "r"(address) : "memory");
    return v;
}

__device__ __forceinline__ void store_shared4(u32 address, u32 v) {
    asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(v) : "memory");
}

__device__ __forceinline__ void store_shared8(u32 address, u32 first, u32 second) {
    asm volatile("st.shared.v2.u32 [%0], {%1, %2};" ::"r"(address), "r"(first), "r"(second) : "memory");
}

__device__ __forceinline__ float2 load_shared_float2(u32 address) {
    float2 v;
    asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];" : "=f"(v.x), "=f"(v.y) : "r"(address) : "memory");
    return v;
}

__device__ __forceinline__ void store_shared_float2(u32 address, float2 v) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(v.x), "f"(v.y) : "memory");
}

__device__ __forceinline__ uint4 load_shared16(u32 address) {
    uint4 v;
    asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "r"(address)
                 : "memory");
    return v;
}

__device__ __forceinline__ void store_shared16(u32 address, uint4 v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z),
                 "r"(v.w)
                 : "memory");
}

// Two or four neighbouring words.
__device__ __forceinline__ void load_shared(u32 (&v)[2], u32 address) {
    asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];" : "=r"(v[0]), "=r"(v[1]) : "r"(address) : "memory");
}

__device__ __forceinline__ void load_shared(u32 (&v)[4], u32 address) {
    const uint4 w = load_shared16(address);
    v[0] = w.x, v[1] = w.y, v[2] = w.z, v[3] = w.w;
}

// --- global memory --------------------------------------------------------------------------------

__device__ __forceinline__ void store_global(void* address, const u32 (&v)[2]) {
    *static_cast<uint2*>(address) = make_uint2(v[0], v[1]);
}

__device__ __forceinline__ void store_global(void* address, const u32 (&v)[4]) {
    *static_cast<uint4*>(address) = make_uint4(v[0], v[1], v[2], v[3]);
}

__device__ __forceinline__ void store_global16(void* address, uint4 v) {
    *static_cast<uint4*>(address) = v;
}

__device__ __forceinline__ float2 load_float2(const float* address) {
    return *reinterpret_cast<const float2*>(address);
}

// --- barriers -------------------------------------------------------------------------------------

// Waits for `threads` threads (whole warps) at barrier `id`, 1 to 15; 0 is __syncthreads.
__device__ __forceinline__ void sync_some(int id, int threads) {
    asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// A size that is a constant in kernels compiled for the released network and a parameter in those
// for any other.
template <int CONSTANT>
struct Size {
    __device__ __forceinline__ explicit Size(int) {}
    __device__ __forceinline__ constexpr operator int() const { return CONSTANT; }
};
template <>
struct Size<0> {
    int value;
    __device__ __forceinline__ explicit Size(int value) : value(value) {}
    __device__ __forceinline__ operator int() const { return value; }
};

}  // namespace dssnet
