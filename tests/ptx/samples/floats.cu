// Conversions and 16-bit arithmetic, compared bit for bit with torch.
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cstdint>

extern "C" __global__ void conversions(int n, const float* x, __half* h, __nv_bfloat16* b, int8_t* s8, uint8_t* u8,
                                       int* rz, float* back, __half2* packed) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    h[i] = __float2half_rn(x[i]);
    b[i] = __float2bfloat16_rn(x[i]);
    int v;
    asm("cvt.rni.sat.s8.f32 %0, %1;" : "=r"(v) : "f"(x[i]));
    s8[i] = v;
    asm("cvt.rni.sat.u8.f32 %0, %1;" : "=r"(v) : "f"(x[i]));
    u8[i] = v;
    rz[i] = (int)x[i];
    back[i] = __half2float(h[i]) + __bfloat162float(b[i]);
    packed[i] = __floats2half2_rn(x[i], -x[i]);
}

// out[i*8 ...] = add, mul, fma, max, min, neg+abs, relu-fma, sub on half2 lanes.
extern "C" __global__ void half_math(int n, const __half2* a, const __half2* b, const __half2* c, __half2* out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[i * 8] = __hadd2(a[i], b[i]);
    out[i * 8 + 1] = __hmul2(a[i], b[i]);
    out[i * 8 + 2] = __hfma2(a[i], b[i], c[i]);
    out[i * 8 + 3] = __hmax2(a[i], b[i]);
    out[i * 8 + 4] = __hmin2(a[i], b[i]);
    out[i * 8 + 5] = __habs2(__hneg2(a[i]));
    out[i * 8 + 6] = __hfma2_relu(a[i], b[i], c[i]);
    out[i * 8 + 7] = __hsub2(a[i], b[i]);
}

extern "C" __global__ void bf16_math(int n, const __nv_bfloat16* a, const __nv_bfloat16* b, const __nv_bfloat16* c,
                                     __nv_bfloat16* out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[i * 4] = __hadd(a[i], b[i]);
    out[i * 4 + 1] = __hmul(a[i], b[i]);
    out[i * 4 + 2] = __hfma(a[i], b[i], c[i]);
    out[i * 4 + 3] = __hmax(a[i], b[i]);
}

extern "C" __global__ void float_math(int n, const float* a, const float* b, const float* c, float* out) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    out[i * 8] = fmaf(a[i], b[i], c[i]);
    out[i * 8 + 1] = a[i] / b[i];
    out[i * 8 + 2] = sqrtf(fabsf(a[i]));
    out[i * 8 + 3] = expf(a[i]);
    out[i * 8 + 4] = sinf(a[i]);
    out[i * 8 + 5] = logf(fabsf(a[i]));
    out[i * 8 + 6] = tanhf(a[i]);
    out[i * 8 + 7] = rintf(a[i]) + fminf(b[i], c[i]);
}
