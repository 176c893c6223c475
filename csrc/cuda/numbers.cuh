// The two 16-bit number formats and the tensor-core instructions on them.
#pragma once

namespace dssnet {

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;

// Both formats offer the same functions. A u32 holds two numbers, the first in the low half.
//   pack / unpack    to and from float32, rounding to nearest even
//   fma2, max2       on pairs; max2 passes NaN on, as max pooling in PyTorch does
//   mma              D += A B on fragments of m16n8k16 (PTX ISA, "Matrix Fragments for mma.m16n8k16")
//   mma8             the same with k = 8
struct fp16 {
    static __device__ __forceinline__ u32 pack(float first, float second) {
        u32 pair;
        asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
        return pair;
    }
    static __device__ __forceinline__ float2 unpack(u32 pair) {
        float2 numbers;
        asm("{.reg .b16 low, high;\n"
            "mov.b32 {low, high}, %2;\n"
            "cvt.f32.f16 %0, low;\n"
            "cvt.f32.f16 %1, high;}"
            : "=f"(numbers.x), "=f"(numbers.y)
            : "r"(pair));
        return numbers;
    }
    static __device__ __forceinline__ u32 fma2(u32 a, u32 b, u32 c) {
        u32 d;
        asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
        return d;
    }
    static __device__ __forceinline__ u32 max2(u32 a, u32 b) {
        u32 d;
        asm("max.NaN.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
        return d;
    }
    static __device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
    static __device__ __forceinline__ void mma8(float (&d)[4], const u32 (&a)[2], u32 b) {
        asm("mma.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 "
            "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(b));
    }
    static constexpr u32 half2 = 0x38003800;   // { 0.5,  0.5}
    static constexpr u32 minus2 = 0xbc00bc00;  // {-1.0, -1.0}
};

struct bf16 {
    static __device__ __forceinline__ u32 pack(float first, float second) {
        u32 pair;
        asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(second), "f"(first));
        return pair;
    }
    static __device__ __forceinline__ float2 unpack(u32 pair) {
        // A bfloat16 is the upper half of a float32.
        return make_float2(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
    }
    static __device__ __forceinline__ u32 fma2(u32 a, u32 b, u32 c) {
        u32 d;
        asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
        return d;
    }
    static __device__ __forceinline__ u32 max2(u32 a, u32 b) {
        u32 d;
        asm("max.NaN.bf16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
        return d;
    }
    static __device__ __forceinline__ void mma(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
        asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
            "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    }
    static __device__ __forceinline__ void mma8(float (&d)[4], const u32 (&a)[2], u32 b) {
        asm("mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32 "
            "{%0, %1, %2, %3}, {%4, %5}, {%6}, {%0, %1, %2, %3};"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
            : "r"(a[0]), "r"(a[1]), "r"(b));
    }
    static constexpr u32 half2 = 0x3f003f00;
    static constexpr u32 minus2 = 0xbf80bf80;
};

// a if a > b, else b; NaN if either is NaN.
__device__ __forceinline__ float max_or_nan(float a, float b) {
    float d;
    asm("max.NaN.f32 %0, %1, %2;" : "=f"(d) : "f"(a), "f"(b));
    return d;
}

// PReLU with one slope for all channels.
__device__ __forceinline__ float prelu(float value, float slope) {
    return value > 0.0f ? value : slope * value;
}

}  // namespace dssnet
