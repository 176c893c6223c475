// What the files for NEON share. Each includes it into its own unnamed namespace.

constexpr int LANES = 4;
using NativeFloats = float32x4_t;
inline float32x4_t fused(float32x4_t a, float b, float32x4_t c) { return vfmaq_n_f32(c, a, b); }

inline float32x4_t load_floats(const uint32_t* words) { return vreinterpretq_f32_u32(vld1q_u32(words)); }
inline void store_floats(uint32_t* words, float32x4_t sum) { vst1q_u32(words, vreinterpretq_u32_f32(sum)); }
inline uint32x4_t broadcast(const uint32_t* word) { return vld1q_dup_u32(word); }

struct DotF32 {
    using Sum = float32x4_t;
    using Input = float32x4_t;
    static constexpr int vectors = 4, widest = 6, widest_part = 6, weight_words = 1;
    static Sum start(const int32_t*) { return vdupq_n_f32(0); }
    static Input load(const uint32_t* words) { return load_floats(words); }
    static Sum dot(Sum sum, Input input, const uint32_t* weight) {
        return vfmaq_laneq_f32(sum, input, vreinterpretq_f32_u32(broadcast(weight)), 0);
    }
    static void store(uint32_t* words, Sum sum) { store_floats(words, sum); }
};

// Signed bytes: what is stored is 128 more, but NEON multiplies bytes of the same kind only.
inline int8x16_t load_bytes(const uint32_t* words) {
    return vreinterpretq_s8_u32(veorq_u32(vld1q_u32(words), vdupq_n_u32(0x80808080u)));
}
inline int8x16_t broadcast_bytes(const uint32_t* word) { return vreinterpretq_s8_u32(broadcast(word)); }

// Nothing is gained by multiplying whole numbers of 16 bits.
using DotI16 = void;
