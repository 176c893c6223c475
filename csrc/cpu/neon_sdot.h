// int8 with SDOT. Included into an unnamed namespace after neon_vectors.h.

struct DotI8 {
    using Sum = int32x4_t;
    using Input = int8x16_t;
    static constexpr int vectors = 4, widest = 6, weight_words = 1;
    // Inputs are as large as they should be, so sums start from 0.
    static Sum start(const int32_t*) { return vdupq_n_s32(0); }
    static Input load(const uint32_t* words) { return load_bytes(words); }
    static Sum dot(Sum sum, Input input, const uint32_t* weight) {
        return vdotq_laneq_s32(sum, input, broadcast_bytes(weight), 0);
    }
    static void store(uint32_t* words, Sum sum) { vst1q_u32(words, vreinterpretq_u32_s32(sum)); }
};
