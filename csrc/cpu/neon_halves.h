// bfloat16 without instructions for it: each half of a word as a float. Included after neon_vectors.h.

struct Halves {
    float32x4_t low, high;
};

inline Halves halves_of(uint32x4_t words) {
    return {vreinterpretq_f32_u32(vshlq_n_u32(words, 16)),
            vreinterpretq_f32_u32(vandq_u32(words, vdupq_n_u32(0xffff0000u)))};
}

struct DotBF16 {
    using Sum = float32x4_t;
    using Input = Halves;
    static constexpr int lanes = 4, units = 1, widest = 5;
    static Sum start(const int32_t*) { return vdupq_n_f32(0); }
    static Input load(const uint32_t* words) { return halves_of(vld1q_u32(words)); }
    static Sum dot(Sum sum, Input input, const uint32_t* weight) {
        const Halves factor = halves_of(broadcast(weight));
        return vfmaq_laneq_f32(vfmaq_laneq_f32(sum, input.low, factor.low, 0), input.high, factor.high, 0);
    }
    static void store(uint32_t* words, Sum sum) { store_floats(words, sum); }
};
