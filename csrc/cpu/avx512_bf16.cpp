// x86-64 with AVX-512, VNNI and BF16: Zen 4, Cooper Lake, Sapphire Rapids and newer.
#include <immintrin.h>

#include "instruction_sets.h"
#include "kernels.h"

namespace {

#include "avx512_vectors.h"
#include "avx512_vnni_dot.h"

struct DotBF16 {
    using Sum = __m512;
    using Input = __m512i;
    static constexpr int lanes = 16, units = 2, widest = 14;
    static Sum start(const int32_t*) { return _mm512_setzero_ps(); }
    static Input load(const uint32_t* words) { return load_words(words); }
    static Sum dot(Sum sum, Input input, const uint32_t* weight) {
        return _mm512_dpbf16_ps(sum, (__m512bh)input, (__m512bh)broadcast(weight));
    }
    static void store(uint32_t* words, Sum sum) { store_floats(words, sum); }
};

}  // namespace

#include "kernels.inl"

namespace dssnet::cpu {

const Kernels* avx512_bf16_kernels() {
    static const Kernels table = make_table("avx512_bf16", "AVX-512 F, BW, DQ, VL, VNNI and BF16", true, true);
    return &table;
}

}  // namespace dssnet::cpu
