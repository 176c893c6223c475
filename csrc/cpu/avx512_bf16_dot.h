// bfloat16 with AVX-512 BF16. Included into an unnamed namespace after avx512_vectors.h.

struct DotBF16 {
    using Sum = __m512;
    using Input = __m512i;
    static constexpr int vectors = 2, widest = 14, weight_words = 1;
    static Sum start(const int32_t*) { return _mm512_setzero_ps(); }
    static Input load(const uint32_t* words) { return load_words(words); }
    static Sum dot(Sum sum, Input input, const uint32_t* weight) {
        return _mm512_dpbf16_ps(sum, (__m512bh)input, (__m512bh)broadcast(weight));
    }
    static void store(uint32_t* words, Sum sum) { store_floats(words, sum); }
};
