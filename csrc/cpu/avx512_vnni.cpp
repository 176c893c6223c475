// x86-64 with AVX-512 and VNNI, but without bfloat16: Cascade Lake, Ice Lake.
#include <immintrin.h>

#include "instruction_sets.h"
#include "kernels.h"

namespace {

using dssnet::cpu::Rate;
#include "rates_x86.inl"
#include "avx512_vectors.h"
#include "avx512_vnni_bytes.h"

using DotBF16 = void;

}  // namespace

#include "kernels.inl"

namespace dssnet::cpu {

constexpr Kernels avx512_vnni_kernels = make_table("avx512_vnni", "AVX-512 F, BW, DQ, VL and VNNI", true, FMA_512, DPBUSD_512);

}  // namespace dssnet::cpu
