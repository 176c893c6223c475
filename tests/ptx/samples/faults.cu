// Each kernel contains one bug the executor must report.
#include <cassert>
#include <cstdint>

extern "C" __global__ void store_past_end(int n, float* y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i <= n) y[i] = 1.f;
}
extern "C" __global__ void missing_syncthreads(const float* x, float* y) {
    __shared__ float s[128];
    s[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = s[127 - threadIdx.x];
}
// Write-after-read: the loop lacks the barrier before the next store.
extern "C" __global__ void missing_second_syncthreads(const float* x, float* y) {
    __shared__ float s[64];
    float v = 0;
    for (int k = 0; k < 4; ++k) {
        s[threadIdx.x] = x[k * 64 + threadIdx.x];
        __syncthreads();
        v += s[63 - threadIdx.x];
    }
    y[threadIdx.x] = v;
}
extern "C" __global__ void uninitialised_shared(float* y) {
    __shared__ float s[64];
    if (threadIdx.x < 63) s[threadIdx.x] = 1.f;
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];
}
extern "C" __global__ void misaligned_vector(const float* x, float4* y) {
    y[threadIdx.x] = *(const float4*)(x + 1 + 4 * threadIdx.x);
}
extern "C" __global__ void shared_past_end(float* y, int k) {
    __shared__ float s[64];
    s[threadIdx.x + k] = 1.f;
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x];
}
extern "C" __global__ void divergent_barrier(float* y) {
    __shared__ float s[64];
    if (threadIdx.x < 16) {
        s[threadIdx.x] = 1.f;
        __syncthreads();
        y[threadIdx.x] = s[threadIdx.x];
    } else {
        s[threadIdx.x] = 2.f;
        __syncthreads();
        y[threadIdx.x] = s[threadIdx.x] * 3.f;
    }
}
extern "C" __global__ void missing_arrival(float* y) {
    if (threadIdx.x < 32) asm volatile("bar.sync 1, 64;" ::: "memory");
    y[threadIdx.x] = 1.f;
}
extern "C" __global__ void partial_warp_ldmatrix(uint32_t* y) {
    __shared__ __align__(16) uint32_t s[128];
    for (int k = 0; k < 4; ++k) s[threadIdx.x * 4 + k] = k;
    __syncthreads();
    if (threadIdx.x < 20) {
        uint32_t r;
        unsigned p = (unsigned)__cvta_generic_to_shared(&s[threadIdx.x % 8 * 4]);
        asm volatile("ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%0}, [%1];" : "=r"(r) : "r"(p));
        y[threadIdx.x] = r;
    }
}
extern "C" __global__ void partial_warp_shuffle(int* y) {
    int v = threadIdx.x;
    if (threadIdx.x < 20) v = __shfl_xor_sync(~0u, v, 1);
    y[threadIdx.x] = v;
    for (int k = 0; k < (int)threadIdx.x; ++k) v += y[k];
    __syncthreads();
    y[threadIdx.x] = v;
}
extern "C" __global__ void blocks_collide(int* y) { y[threadIdx.x] = blockIdx.x; }
extern "C" __global__ void copy_words(int n, const int* x, int* y) {
    if ((int)threadIdx.x < n) y[threadIdx.x] = x[threadIdx.x];
}
extern "C" __global__ void endless(volatile int* y) {
    while (y[0] == 0) {}
}
extern "C" __global__ void failed_assertion(int n) { assert((int)threadIdx.x < n); }
// Two named barriers of 64 threads; the second pair reads what the first pair writes.
extern "C" __global__ void wrong_named_barrier(int* y) {
    __shared__ int s[64];
    int t = threadIdx.x % 64, pair = threadIdx.x / 64;
    if (pair == 0) s[t] = t;
    asm volatile("bar.sync %0, 64;" ::"r"(pair + 1) : "memory");
    if (pair == 1) y[t] = s[63 - t];
}
// Half of each 32-bit word is written by one thread, the other half by its neighbour.
extern "C" __global__ void halves_of_a_word(uint32_t* y) {
    __shared__ uint16_t s[64];
    s[threadIdx.x] = threadIdx.x;
    y[threadIdx.x / 2] = ((uint32_t*)s)[threadIdx.x / 2];
}
extern "C" __global__ void missing_syncwarp(int* y) {
    __shared__ int s[32];
    s[threadIdx.x] = threadIdx.x;
#ifndef MISSING_SYNCWARP
    __syncwarp();
#endif
    y[threadIdx.x] = s[31 - threadIdx.x];
}
// Two threads, one address, in one instruction.
extern "C" __global__ void same_address(int* y, int value) {
    __shared__ int s[32];
    s[threadIdx.x / 2] = value < 0 ? threadIdx.x : value;
    __syncthreads();
    y[threadIdx.x] = s[threadIdx.x / 2];
}
