// aarch64 with NEON, which all of them have: no instructions for bfloat16 and int8.
#include <arm_neon.h>

#include "instruction_sets.h"
#include "kernels.h"

namespace {

using dssnet::cpu::Rate;
#include "rates_neon.inl"
#include "neon_vectors.h"

using DotBF16 = void;

// Two products of bytes fit into 16 bits: 128 * 127 * 2.
struct DotI8 {
    using Sum = int32x4_t;
    using Input = int8x16_t;
    static constexpr int vectors = 4, widest = 6, weight_words = 1;
    // Inputs are as large as they should be, so sums start from 0.
    static Sum start(const int32_t*) { return vdupq_n_s32(0); }
    static Input load(const uint32_t* words) { return load_bytes(words); }
    static Sum dot(Sum sum, Input input, const uint32_t* weight) {
        const int8x16_t factor = broadcast_bytes(weight);
        const int16x8_t low = vmull_s8(vget_low_s8(input), vget_low_s8(factor)), high = vmull_high_s8(input, factor);
        return vpadalq_s16(sum, vpaddq_s16(low, high));
    }
    static void store(uint32_t* words, Sum sum) { vst1q_u32(words, vreinterpretq_u32_s32(sum)); }
};

}  // namespace

#include "kernels.inl"

namespace dssnet::cpu {

constexpr Kernels neon_kernels = make_table("neon", "NEON, as every aarch64 processor", false, FMLA, SMULL);

}  // namespace dssnet::cpu
