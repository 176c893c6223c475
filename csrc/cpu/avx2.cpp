// x86-64 with AVX2 and FMA.
#include <immintrin.h>

#include "instruction_sets.h"
#include "kernels.h"

namespace {

using dssnet::cpu::UNIT;

__m256i load_words(const uint32_t* words) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)); }
__m256i broadcast(const uint32_t* word) { return _mm256_set1_epi32(int(*word)); }
void store_floats(uint32_t* words, __m256 sum) { _mm256_storeu_ps(reinterpret_cast<float*>(words), sum); }

struct DotF32 {
    using Sum = __m256;
    using Input = __m256;
    static constexpr int lanes = 8, units = 1, widest = 6;
    static Sum start(const int32_t*) { return _mm256_setzero_ps(); }
    static Input load(const uint32_t* words) { return _mm256_loadu_ps(reinterpret_cast<const float*>(words)); }
    static Sum dot(Sum sum, Input input, const uint32_t* weight) {
        return _mm256_fmadd_ps(input, _mm256_broadcast_ss(reinterpret_cast<const float*>(weight)), sum);
    }
    static void store(uint32_t* words, Sum sum) { store_floats(words, sum); }
};

// Both halves of a word, each as a float.
struct Halves {
    __m256 low, high;
};

Halves halves_of(__m256i words) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(words, 16)),
            _mm256_castsi256_ps(_mm256_and_si256(words, _mm256_set1_epi32(int(0xffff0000))))};
}

struct DotBF16 {
    using Sum = __m256;
    using Input = Halves;
    static constexpr int lanes = 8, units = 1, widest = 4;
    static Sum start(const int32_t*) { return _mm256_setzero_ps(); }
    static Input load(const uint32_t* words) { return halves_of(load_words(words)); }
    static Sum dot(Sum sum, Input input, const uint32_t* weight) {
        const Halves factor = halves_of(broadcast(weight));
        return _mm256_fmadd_ps(input.high, factor.high, _mm256_fmadd_ps(input.low, factor.low, sum));
    }
    static void store(uint32_t* words, Sum sum) { store_floats(words, sum); }
};

// Products of bytes do not fit into the 16 bits of vpmaddubsw, so even and odd bytes are widened to 16 bits.
struct DotI8 {
    using Sum = __m256i;
    struct Input {
        __m256i even, odd;
    };
    static constexpr int lanes = 8, units = 1, widest = 4;
    static Sum start(const int32_t* value) { return value ? _mm256_set1_epi32(*value) : _mm256_setzero_si256(); }
    static Input load(const uint32_t* words) {
        const __m256i bytes = load_words(words), mask = _mm256_set1_epi16(0xff);
        return {_mm256_and_si256(bytes, mask), _mm256_srli_epi16(bytes, 8)};
    }
    static Sum dot(Sum sum, Input input, const uint32_t* weight) {
        const __m256i bytes = broadcast(weight);
        const __m256i even = _mm256_srai_epi16(_mm256_slli_epi16(bytes, 8), 8), odd = _mm256_srai_epi16(bytes, 8);
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(input.even, even));
        return _mm256_add_epi32(sum, _mm256_madd_epi16(input.odd, odd));
    }
    static void store(uint32_t* words, Sum sum) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(words), sum); }
};

}  // namespace

#include "kernels.inl"

namespace dssnet::cpu {

constexpr Kernels avx2_kernels = make_table("avx2", "AVX2 and FMA", false, true);

}  // namespace dssnet::cpu
