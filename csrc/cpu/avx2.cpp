// x86-64 with AVX2 and FMA.
#include <immintrin.h>

#include "instruction_sets.h"
#include "kernels.h"

namespace {

using dssnet::cpu::Rate;
#include "rates_x86.inl"
#include "avx2_vectors.h"

// Products of bytes do not fit into the 16 bits of vpmaddubsw, so channels 0 and 2, and 1 and 3 are widened to 16 bits;
// weights are there in that form.
struct DotI8 {
    using Sum = __m256i;
    struct Input {
        __m256i even, odd;
    };
    static constexpr int vectors = 2, widest = 4, weight_words = 2;
    static Sum start(const int32_t* value) { return start_from(value); }
    static Input load(const uint32_t* words) {
        const __m256i bytes = load_words(words);
        return {_mm256_and_si256(bytes, _mm256_set1_epi16(0xff)), _mm256_srli_epi16(bytes, 8)};
    }
    static Sum dot(Sum sum, Input input, const uint32_t* weight) {
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(input.even, broadcast(weight)));
        return _mm256_add_epi32(sum, _mm256_madd_epi16(input.odd, broadcast(weight + 1)));
    }
    static void store(uint32_t* words, Sum sum) { store_words(words, sum); }
};

struct DotI16 {
    using Sum = __m256i;
    using Input = __m256i;
    static constexpr int vectors = 2, widest_part = 6;
    static Sum start(const int32_t* value) { return start_from(value); }
    static Input load(const uint32_t* words) { return load_words(words); }
    static Sum dot(Sum sum, Input input, const uint32_t* weight) {
        return _mm256_add_epi32(sum, _mm256_madd_epi16(input, broadcast(weight)));
    }
    static void store(uint32_t* words, Sum sum) { store_words(words, sum); }
};

}  // namespace

#include "kernels.inl"

namespace dssnet::cpu {

constexpr Kernels avx2_kernels = make_table("avx2", "AVX2 and FMA", true, FMA_256, MADD_256);

}  // namespace dssnet::cpu
