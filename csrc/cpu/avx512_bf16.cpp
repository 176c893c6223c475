// x86-64 with AVX-512, VNNI and BF16: Zen 4, Cooper Lake, Sapphire Rapids and newer.
#include <immintrin.h>

#include "instruction_sets.h"
#include "kernels.h"

namespace {

using dssnet::cpu::Rate;
#include "rates_x86.inl"
#include "avx512_vectors.h"
#include "avx512_vnni_bytes.h"
#include "avx512_bf16_dot.h"

}  // namespace

#include "kernels.inl"

namespace dssnet::cpu {

constexpr Kernels avx512_bf16_kernels = make_table("avx512_bf16", "AVX-512 F, BW, DQ, VL, VNNI and BF16", true, FMA_512, DPBUSD_512, DPBF16_512);

}  // namespace dssnet::cpu
