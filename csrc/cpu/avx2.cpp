// x86-64 with AVX2 and FMA.
#include <immintrin.h>

#include "instruction_sets.h"
#include "kernels.h"

namespace {

using dssnet::cpu::Rate;
#include "rates_x86.inl"
#include "avx2_vectors.h"

constexpr int WIDEST_BYTES = 4, WIDEST_SHORTS = 6;
#include "widened_dot.h"

}  // namespace

#include "kernels.inl"

namespace dssnet::cpu {

constexpr Kernels avx2_kernels = make_table("avx2", "AVX2 and FMA", true, FMA_256, MADD_256);

}  // namespace dssnet::cpu
