// Tensor-core GEMMs: cp.async, ldmatrix and mma.sync in fp16; mma.sync in int8.
#include <cuda_fp16.h>
#include <cstdint>

#ifndef STAGES
#define STAGES 3
#endif
constexpr int BM = 64, BN = 64, BK = 32, APITCH = BK + 8, BPITCH = BN + 8;

__device__ void copy16(void* smem, const void* global, bool in) {
    unsigned s = (unsigned)__cvta_generic_to_shared(smem);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(s), "l"(global), "r"(in ? 16 : 0));
}

// C[M,N] (f32) = A[M,K] (row major) * B[K,N] (row major); K, N multiples of 8; 128 threads.
extern "C" __global__ void __launch_bounds__(128)
gemm_f16(int M, int N, int K, const __half* A, const __half* B, float* C) {
    __shared__ __align__(16) __half sa[STAGES][BM][APITCH];
    __shared__ __align__(16) __half sb[STAGES][BK][BPITCH];
    int t = threadIdx.x, lane = t % 32, warp = t / 32, wm = warp / 2 * 32, wn = warp % 2 * 32;
    int m0 = blockIdx.y * BM, n0 = blockIdx.x * BN, tiles = (K + BK - 1) / BK;
    auto fetch = [&](int tile) {
        int s = tile % STAGES, k0 = tile * BK;
        if (tile < tiles) {
            for (int j = t; j < BM * BK / 8; j += 128) {
                int r = j / (BK / 8), c = j % (BK / 8) * 8;
                bool in = m0 + r < M && k0 + c < K;
                copy16(&sa[s][r][c], in ? A + (size_t)(m0 + r) * K + k0 + c : A, in);
            }
            for (int j = t; j < BK * BN / 8; j += 128) {
                int r = j / (BN / 8), c = j % (BN / 8) * 8;
                bool in = k0 + r < K && n0 + c < N;
                copy16(&sb[s][r][c], in ? B + (size_t)(k0 + r) * N + n0 + c : B, in);
            }
        }
        asm volatile("cp.async.commit_group;");
    };
    float acc[2][4][4] = {};
    for (int s = 0; s < STAGES - 1; ++s) fetch(s);
    for (int tile = 0; tile < tiles; ++tile) {
        // the three macros plant bugs for the tests
#ifndef MISSING_WAIT
#ifndef LATE_WAIT
#define LATE_WAIT 0
#endif
        asm volatile("cp.async.wait_group %0;" ::"n"(STAGES - 2 + LATE_WAIT));
#endif
#ifndef MISSING_BARRIER
        __syncthreads();
#endif
        fetch(tile + STAGES - 1);
        int s = tile % STAGES;
        for (int kk = 0; kk < BK; kk += 16) {
            uint32_t a[2][4], b[4][2];
            for (int i = 0; i < 2; ++i) {
                unsigned p = (unsigned)__cvta_generic_to_shared(&sa[s][wm + i * 16 + lane % 16][kk + lane / 16 * 8]);
                asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                             : "=r"(a[i][0]), "=r"(a[i][1]), "=r"(a[i][2]), "=r"(a[i][3]) : "r"(p));
            }
            for (int j = 0; j < 4; ++j) {
                unsigned p = (unsigned)__cvta_generic_to_shared(&sb[s][kk + lane % 16][wn + j * 8]);
                asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1}, [%2];"
                             : "=r"(b[j][0]), "=r"(b[j][1]) : "r"(p));
            }
            for (int i = 0; i < 2; ++i)
                for (int j = 0; j < 4; ++j)
                    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},"
                                 "{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                                 : "+f"(acc[i][j][0]), "+f"(acc[i][j][1]), "+f"(acc[i][j][2]), "+f"(acc[i][j][3])
                                 : "r"(a[i][0]), "r"(a[i][1]), "r"(a[i][2]), "r"(a[i][3]), "r"(b[j][0]), "r"(b[j][1]));
        }
    }
    for (int i = 0; i < 2; ++i)
        for (int j = 0; j < 4; ++j)
            for (int e = 0; e < 4; ++e) {
                int r = m0 + wm + i * 16 + lane / 4 + e / 2 * 8, c = n0 + wn + j * 8 + lane % 4 * 2 + e % 2;
                if (r < M && c < N) C[(size_t)r * N + c] = acc[i][j][e];
            }
}

// C[M,N] (s32) = A[M,K] * B[N,K]^T in int8; one warp per 16x8 tile, K a multiple of 32.
extern "C" __global__ void gemm_s8(int N, int K, const int8_t* A, const int8_t* B, int* C) {
    int lane = threadIdx.x, g = lane / 4, t = lane % 4;
    const int8_t* a = A + (size_t)(blockIdx.y * 16 + g) * K + t * 4;
    const int8_t* b = B + (size_t)(blockIdx.x * 8 + g) * K + t * 4;
    int c[4] = {};
    for (int k = 0; k < K; k += 32) {
        auto ld = [](const int8_t* p) { return *(const uint32_t*)p; };
        asm volatile("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
                     : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
                     : "r"(ld(a + k)), "r"(ld(a + 8 * K + k)), "r"(ld(a + k + 16)), "r"(ld(a + 8 * K + k + 16)),
                       "r"(ld(b + k)), "r"(ld(b + k + 16)));
    }
    int* out = C + (size_t)(blockIdx.y * 16 + g) * N + blockIdx.x * 8 + t * 2;
    out[0] = c[0];
    out[1] = c[1];
    out[8 * N] = c[2];
    out[8 * N + 1] = c[3];
}
