// x86-64 with AVX-512 (F, BW, DQ, VL), which has no instructions for bfloat16 and int8.
#include <immintrin.h>

#include "instruction_sets.h"
#include "kernels.h"

namespace {

#include "avx512_vectors.h"
#include "avx512_halves.h"

// As in avx2.cpp, even and odd bytes, widened to 16 bits.
struct DotI8 {
    using Sum = __m512i;
    struct Input {
        __m512i even, odd;
    };
    static constexpr int lanes = 16, units = 2, widest = 8;
    static Sum start(const int32_t* value) { return value ? _mm512_set1_epi32(*value) : _mm512_setzero_si512(); }
    static Input load(const uint32_t* words) {
        const __m512i bytes = load_words(words), mask = _mm512_set1_epi16(0xff);
        return {_mm512_and_si512(bytes, mask), _mm512_srli_epi16(bytes, 8)};
    }
    static Sum dot(Sum sum, Input input, const uint32_t* weight) {
        const __m512i bytes = broadcast(weight);
        const __m512i even = _mm512_srai_epi16(_mm512_slli_epi16(bytes, 8), 8), odd = _mm512_srai_epi16(bytes, 8);
        sum = _mm512_add_epi32(sum, _mm512_madd_epi16(input.even, even));
        return _mm512_add_epi32(sum, _mm512_madd_epi16(input.odd, odd));
    }
    static void store(uint32_t* words, Sum sum) { _mm512_storeu_si512(words, sum); }
};

}  // namespace

#include "kernels.inl"

namespace dssnet::cpu {

constexpr Kernels avx512_kernels = make_table("avx512", "AVX-512 F, BW, DQ and VL", false, true);

}  // namespace dssnet::cpu
