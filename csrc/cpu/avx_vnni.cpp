// x86-64 with AVX2 and AVX-VNNI, the dot products of AVX-512 VNNI for vectors of 256 bits: Alder Lake to Panther Lake,
// Sierra Forest, Zen 5.
#include <immintrin.h>

#include "instruction_sets.h"
#include "kernels.h"

namespace {

using dssnet::cpu::Rate;
#include "rates_x86.inl"
#include "avx2_vectors.h"

struct DotI8 {
    using Sum = __m256i;
    using Input = __m256i;
    static constexpr int vectors = 2, widest = 6, widest_part = 6, weight_words = 1;
    static Sum start(const int32_t* value) { return start_from(value); }
    static Input load(const uint32_t* words) { return load_words(words); }
    static Sum dot(Sum sum, Input input, const uint32_t* weight) {
        return _mm256_dpbusd_avx_epi32(sum, input, broadcast(weight));
    }
    static void store(uint32_t* words, Sum sum) { store_words(words, sum); }
};

struct DotI16 : DotI8 {
    static Sum dot(Sum sum, Input input, const uint32_t* weight) {
        return _mm256_dpwssd_avx_epi32(sum, input, broadcast(weight));
    }
};

}  // namespace

#include "kernels.inl"

namespace dssnet::cpu {

constexpr Kernels avx_vnni_kernels = make_table("avx_vnni", "AVX2, FMA and AVX-VNNI", true, FMA_256, DPBUSD_256);

}  // namespace dssnet::cpu
