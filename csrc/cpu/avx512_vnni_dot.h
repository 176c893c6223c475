// int8 with AVX-512 VNNI. Included into an unnamed namespace after avx512_vectors.h.

struct DotI8 {
    using Sum = __m512i;
    using Input = __m512i;
    static constexpr int vectors = 2, widest = 14, widest_part = 14, weight_words = 1;
    static Sum start(const int32_t* value) { return start_from(value); }
    static Input load(const uint32_t* words) { return load_words(words); }
    static Sum dot(Sum sum, Input input, const uint32_t* weight) {
        return _mm512_dpbusd_epi32(sum, input, broadcast(weight));
    }
    static void store(uint32_t* words, Sum sum) { store_words(words, sum); }
};

struct DotI16 : DotI8 {
    static Sum dot(Sum sum, Input input, const uint32_t* weight) {
        return _mm512_dpwssd_epi32(sum, input, broadcast(weight));
    }
};
