// x86-64 with AVX2 and AVX-VNNI, the dot products of AVX-512 VNNI for vectors of 256 bits: Alder Lake to Panther Lake,
// Sierra Forest, Zen 5.
#include <immintrin.h>

#include "instruction_sets.h"
#include "kernels.h"

namespace {

using dssnet::cpu::Rate;
#include "rates_x86.inl"
#include "avx2_vectors.h"

constexpr int WIDEST = 6;
inline Whole dot_bytes(Whole sum, Whole input, Whole weight) { return _mm256_dpbusd_avx_epi32(sum, input, weight); }
inline Whole dot_shorts(Whole sum, Whole input, Whole weight) { return _mm256_dpwssd_avx_epi32(sum, input, weight); }

#include "vnni_dot.h"

}  // namespace

#include "kernels.inl"

namespace dssnet::cpu {

constexpr Kernels avx_vnni_kernels = make_table("avx_vnni", "AVX2, FMA and AVX-VNNI", true, FMA_256, DPBUSD_256);

}  // namespace dssnet::cpu
