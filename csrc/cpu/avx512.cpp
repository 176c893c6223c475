// x86-64 with AVX-512 (F, BW, DQ, VL), which has no instructions for bfloat16 and int8: Skylake-X.
#include <immintrin.h>

#include "instruction_sets.h"
#include "kernels.h"

namespace {

using dssnet::cpu::Rate;
#include "rates_x86.inl"
#include "avx512_vectors.h"

using DotBF16 = void;

constexpr int WIDEST_BYTES = 10, WIDEST_SHORTS = 12;
#include "widened_dot.h"

}  // namespace

#include "kernels.inl"

namespace dssnet::cpu {

constexpr Kernels avx512_kernels = make_table("avx512", "AVX-512 F, BW, DQ and VL", true, FMA_512, MADD_512);

}  // namespace dssnet::cpu
