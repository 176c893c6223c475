// Elementary kernels: elementwise, shuffles, shared memory, divergence, integers, atomics.
#include <cstdint>

extern "C" __global__ void saxpy(int n, float a, const float* x, float* y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = a * x[i] + y[i];
}

// Sum of each block's slice by warp shuffles, then across warps.
extern "C" __global__ void block_reduce(int n, const float* x, float* out) {
    __shared__ float part[32];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float v = i < n ? x[i] : 0.f;
    for (int o = 16; o; o >>= 1) v += __shfl_xor_sync(~0u, v, o);
    if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x < 32) {
        v = threadIdx.x < blockDim.x / 32 ? part[threadIdx.x] : 0.f;
        for (int o = 16; o; o >>= 1) v += __shfl_down_sync(~0u, v, o);
        if (threadIdx.x == 0) out[blockIdx.x] = v;
    }
}

template <int PITCH> __device__ void transpose(int n, const float* x, float* y) {
    __shared__ float tile[32][PITCH];
    int c = blockIdx.x * 32 + threadIdx.x, r = blockIdx.y * 32 + threadIdx.y;
    tile[threadIdx.y][threadIdx.x] = x[r * n + c];
    __syncthreads();
    c = blockIdx.y * 32 + threadIdx.x;
    r = blockIdx.x * 32 + threadIdx.y;
    y[r * n + c] = tile[threadIdx.x][threadIdx.y];
}
extern "C" __global__ void transpose_conflict(int n, const float* x, float* y) { transpose<32>(n, x, y); }
extern "C" __global__ void transpose_padded(int n, const float* x, float* y) { transpose<33>(n, x, y); }

// Data-dependent loop and branches; the step count differs per thread.
extern "C" __global__ void collatz(int n, const unsigned* x, int* steps) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    unsigned v = x[i];
    int k = 0;
    while (v != 1) {
        if (v & 1) v = 3 * v + 1;
        else v >>= 1;
        ++k;
    }
    steps[i] = k;
}

__device__ int poly(int x, int k) { return k ? x * x - k : ~x; }

extern "C" __global__ void switch_steps(int n, const int* x, int* y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    int v = x[i];
    switch (v & 7) {
        case 0: v = poly(v, 3); break;
        case 1: v = v * 5 + 1; break;
        case 2: v = v / 7; break;
        case 3: v = poly(v, 0) % 1000; break;
        case 4: v = v << (v & 15); break;
        case 5: v ^= 0x5a5a; break;
        default: v = -v;
    }
    y[i] = v;
}

// Struct by value indexed at run time, and a local array.
struct Scales {
    float scale[6];
    unsigned char extra[3];
};
__device__ float extras(Scales s, int k) { return s.extra[k] + s.extra[2]; }

extern "C" __global__ void structs(Scales s, const float* x, float* y, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float stack[8], sum = 0;
#pragma unroll 1
    for (int k = 0; k < n; ++k) stack[(k * 3) & 7] = s.scale[(threadIdx.x * 7 + k) % 6] * x[i];
#pragma unroll 1
    for (int k = 0; k < n; ++k) sum += stack[(k * 3) & 7] * (k + 1);
    y[i] = sum + extras(s, n - 5);
}

// One result column per operation; the test mirrors the list in NumPy.
extern "C" __global__ void integer_ops(int n, const uint32_t* a, const uint32_t* b, const uint32_t* c,
                                       uint32_t* out, uint64_t* out64) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    uint32_t x = a[i], y = b[i], z = c[i], r[19];
    int32_t sx = x, sy = y;
    r[0] = x + y;
    r[1] = x * y + z;
    r[2] = __umulhi(x, y);
    r[3] = __mulhi(sx, sy);
    r[4] = x / (y | 1);
    r[5] = sx % (sy | 1);
    r[6] = __popc(x);
    r[7] = __clz(x);
    r[8] = __brev(x);
    r[9] = __byte_perm(x, y, z & 0x7777);
    r[10] = __funnelshift_l(x, y, z);
    r[11] = __funnelshift_rc(x, y, z & 63);
    r[12] = (x & y) ^ (z | ~x);
    r[13] = __dp4a(sx, sy, (int)z);
    asm("bfe.s32 %0, %1, 5, 9;" : "=r"(r[14]) : "r"(x));
    asm("bfi.b32 %0, %1, %2, 7, 12;" : "=r"(r[15]) : "r"(x), "r"(y));
    r[16] = min(sx, sy) + max(x, y);
    r[17] = sx >> (z & 31);
    r[18] = __ffs(x);
    for (int k = 0; k < 19; ++k) out[i * 19 + k] = r[k];
    uint64_t w = (uint64_t)x << 32 | y;
    out64[i * 3] = w * z + (uint64_t)x * y;
    out64[i * 3 + 1] = __umul64hi(w, (uint64_t)z << 31 | x);
    out64[i * 3 + 2] = w / (z | 1) + __popcll(w) + __clzll(w);
}

// Histogram by shared and global atomics; ticket order by returned values.
extern "C" __global__ void histogram(int n, const uint8_t* x, unsigned* hist, unsigned* tickets, float* total) {
    __shared__ unsigned local[256];
    local[threadIdx.x] = 0;
    __syncthreads();
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) {
        tickets[i] = atomicAdd(&local[x[i]], 1u);
        atomicAdd(total, (float)x[i]);
    }
    __syncthreads();
    atomicAdd(&hist[threadIdx.x], local[threadIdx.x]);
}

// Votes, shuffles, redux and barrier reductions.
extern "C" __global__ void warp_ops(const int* x, int* out) {
    int t = threadIdx.x, v = x[t], o[8];
    o[0] = __ballot_sync(~0u, v > 3);
    o[1] = __any_sync(~0u, v > 90) * 2 + __all_sync(~0u, v > 0);
    o[2] = __activemask();
    o[3] = __shfl_up_sync(~0u, v, 3, 8);
    o[4] = __shfl_sync(~0u, v, 5, 16);
    o[5] = __syncthreads_count(v & 1);
    o[6] = __syncthreads_or(v == 77);
    o[7] = __reduce_add_sync(~0u, v) + __reduce_max_sync(~0u, v);
    for (int k = 0; k < 8; ++k) out[t * 8 + k] = o[k];
}

// Warp 0 produces, warp 1 consumes, through named barrier 1.
extern "C" __global__ void named_barrier(int* out) {
    __shared__ int box[32];
    int lane = threadIdx.x % 32;
    if (threadIdx.x < 32) {
        box[lane] = 100 + lane;
        asm volatile("bar.arrive 1, 64;" ::: "memory");
    } else {
        asm volatile("bar.sync 1, 64;" ::: "memory");
        out[lane] = box[31 - lane];
    }
}
