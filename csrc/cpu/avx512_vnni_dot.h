// int8 with AVX-512 VNNI. Included into an unnamed namespace after avx512_vectors.h.

struct DotI8 {
    using Sum = __m512i;
    using Input = __m512i;
    static constexpr int lanes = 16, units = 2, widest = 12;  // whole words of outputs
    static Sum start(const int32_t* value) { return value ? _mm512_set1_epi32(*value) : _mm512_setzero_si512(); }
    static Input load(const uint32_t* words) { return load_words(words); }
    static Sum dot(Sum sum, Input input, const uint32_t* weight) {
        return _mm512_dpbusd_epi32(sum, input, broadcast(weight));
    }
    static void store(uint32_t* words, Sum sum) { _mm512_storeu_si512(words, sum); }
};
