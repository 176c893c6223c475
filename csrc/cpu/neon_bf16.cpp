// aarch64 with dot products of bytes and of bfloat16: Neoverse V1 and N2, Apple M2 and newer.
#include <arm_neon.h>

#include "instruction_sets.h"
#include "kernels.h"

namespace {

using dssnet::cpu::Rate;
#include "rates_neon.inl"
#include "neon_vectors.h"
#include "neon_sdot.h"

// BFDOT adds two products and then the sum, each time rounding to odd: errors in float32 are 1.4 times those of other
// sets, and a ten-thousandth of what rounding to bfloat16 has done.
struct DotBF16 {
    using Sum = float32x4_t;
    using Input = bfloat16x8_t;
    static constexpr int vectors = 4, widest = 6, weight_words = 1;
    static Sum start(const int32_t*) { return vdupq_n_f32(0); }
    static Input load(const uint32_t* words) { return vreinterpretq_bf16_u32(vld1q_u32(words)); }
    static Sum dot(Sum sum, Input input, const uint32_t* weight) {
        return vbfdotq_laneq_f32(sum, input, vreinterpretq_bf16_u32(broadcast(weight)), 0);
    }
    static void store(uint32_t* words, Sum sum) { store_floats(words, sum); }
};

}  // namespace

#include "kernels.inl"

namespace dssnet::cpu {

constexpr Kernels neon_bf16_kernels = make_table("neon_bf16", "NEON with dot products (FEAT_DotProd, FEAT_BF16)", true, FMLA, SDOT, BFDOT);

}  // namespace dssnet::cpu
