// Implicit-GEMM 3x3 convolution, NHWC fp16, zero padding 1: the shape of the network's kernels.
#include <cstdint>
constexpr int TILE = 16, CI = 48, CO = 64, PITCH = CI + 8, SIDE = TILE + 2;
struct Params {
    const uint16_t* x;      // [H, W, CI]
    const uint4* weights;   // [9 * CI / 16][CO / 16][32 lanes] fragments: two n-tiles of k16
    const float* bias;      // [CO]
    uint16_t* y;            // [H, W, CO]
    int height, width;
    float slope;
};
__device__ __forceinline__ unsigned smem(const void* p) { return (unsigned)__cvta_generic_to_shared(p); }
__device__ __forceinline__ uint4 load_weights(const uint4* p) {
    uint4 v;
    asm volatile("ld.global.nc.L1::evict_last.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}
extern "C" __global__ void __launch_bounds__(256) conv3x3(const __grid_constant__ Params p) {
    extern __shared__ __align__(16) uint16_t patch[];  // [SIDE][SIDE][PITCH]
    int t = threadIdx.x, lane = t % 32, warp = t / 32;
    int y0 = blockIdx.y * TILE - 1, x0 = blockIdx.x * TILE - 1;
    for (int i = t; i < SIDE * SIDE * (CI / 8); i += 256) {
        int c = i % (CI / 8) * 8, q = i / (CI / 8), gy = y0 + q / SIDE, gx = x0 + q % SIDE;
        bool in = gy >= 0 && gy < p.height && gx >= 0 && gx < p.width;
        const uint16_t* src = in ? p.x + ((size_t)gy * p.width + gx) * CI + c : p.x;
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(smem(patch + q * PITCH + c)), "l"(src), "r"(in ? 16 : 0));
    }
    asm volatile("cp.async.commit_group;\ncp.async.wait_group 0;");
    __syncthreads();
    float acc[2][8][4] = {};
    const uint4* w = p.weights + lane;
    int row = warp * 2, col = lane % 16, half = lane / 16 * 8;
#pragma unroll 1
    for (int tap = 0; tap < 9; ++tap) {
        int dy = tap / 3, dx = tap % 3;
#pragma unroll
        for (int k = 0; k < CI / 16; ++k) {
            uint32_t a[2][4];
            uint4 b[4];
#pragma unroll
            for (int j = 0; j < 4; ++j) b[j] = load_weights(w + ((tap * (CI / 16) + k) * 4 + j) * 32);
#pragma unroll
            for (int i = 0; i < 2; ++i)
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                             : "=r"(a[i][0]), "=r"(a[i][1]), "=r"(a[i][2]), "=r"(a[i][3])
                             : "r"(smem(patch + ((row + i + dy) * SIDE + col + dx) * PITCH + k * 16 + half)));
#pragma unroll
            for (int i = 0; i < 2; ++i)
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    uint32_t b0 = j & 1 ? b[j / 2].z : b[j / 2].x, b1 = j & 1 ? b[j / 2].w : b[j / 2].y;
                    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},"
                                 "{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                                 : "+f"(acc[i][j][0]), "+f"(acc[i][j][1]), "+f"(acc[i][j][2]), "+f"(acc[i][j][3])
                                 : "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]), "r"(b0), "r"(b1));
                }
        }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            int gy = y0 + 1 + row + i, gx = x0 + 1 + lane / 4 + h * 8;
            if (gy >= p.height || gx >= p.width) continue;
#pragma unroll
            for (int j = 0; j < 8; ++j) {
                int c = j * 8 + lane % 4 * 2;
                float u = acc[i][j][2 * h] + p.bias[c], v = acc[i][j][2 * h + 1] + p.bias[c + 1];
                u = u > 0 ? u : u * p.slope;
                v = v > 0 ? v : v * p.slope;
                uint32_t r;
                asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(v), "f"(u));
                *(uint32_t*)(p.y + ((size_t)gy * p.width + gx) * CO + c) = r;
            }
        }
}
