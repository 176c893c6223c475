// x86-64 with AVX-512 (F, BW, DQ, VL), which has no instructions for bfloat16 and int8: Skylake-X.
#include <immintrin.h>

#include "instruction_sets.h"
#include "kernels.h"

namespace {

using dssnet::cpu::Rate;
#include "rates_x86.inl"
#include "avx512_vectors.h"

using DotBF16 = void;

// As in avx2.cpp.
struct DotI8 {
    using Sum = __m512i;
    struct Input {
        __m512i even, odd;
    };
    static constexpr int vectors = 2, widest = 10, weight_words = 2;
    static Sum start(const int32_t* value) { return start_from(value); }
    static Input load(const uint32_t* words) {
        const __m512i bytes = load_words(words);
        return {_mm512_and_si512(bytes, _mm512_set1_epi16(0xff)), _mm512_srli_epi16(bytes, 8)};
    }
    static Sum dot(Sum sum, Input input, const uint32_t* weight) {
        sum = _mm512_add_epi32(sum, _mm512_madd_epi16(input.even, broadcast(weight)));
        return _mm512_add_epi32(sum, _mm512_madd_epi16(input.odd, broadcast(weight + 1)));
    }
    static void store(uint32_t* words, Sum sum) { store_words(words, sum); }
};

struct DotI16 {
    using Sum = __m512i;
    using Input = __m512i;
    static constexpr int vectors = 2, widest_part = 12;
    static Sum start(const int32_t* value) { return start_from(value); }
    static Input load(const uint32_t* words) { return load_words(words); }
    static Sum dot(Sum sum, Input input, const uint32_t* weight) {
        return _mm512_add_epi32(sum, _mm512_madd_epi16(input, broadcast(weight)));
    }
    static void store(uint32_t* words, Sum sum) { store_words(words, sum); }
};

}  // namespace

#include "kernels.inl"

namespace dssnet::cpu {

constexpr Kernels avx512_kernels = make_table("avx512", "AVX-512 F, BW, DQ and VL", true, FMA_512, MADD_512);

}  // namespace dssnet::cpu
