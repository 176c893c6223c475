// bfloat16 without instructions for it: each half of a word as a float. Included after avx512_vectors.h.

struct Halves {
    __m512 low, high;
};

Halves halves_of(__m512i words) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(words, 16)),
            _mm512_castsi512_ps(_mm512_and_si512(words, _mm512_set1_epi32(int(0xffff0000))))};
}

struct DotBF16 {
    using Sum = __m512;
    using Input = Halves;
    static constexpr int lanes = 16, units = 2, widest = 10;
    static Sum start(const int32_t*) { return _mm512_setzero_ps(); }
    static Input load(const uint32_t* words) { return halves_of(load_words(words)); }
    static Sum dot(Sum sum, Input input, const uint32_t* weight) {
        const Halves factor = halves_of(broadcast(weight));
        return _mm512_fmadd_ps(input.high, factor.high, _mm512_fmadd_ps(input.low, factor.low, sum));
    }
    static void store(uint32_t* words, Sum sum) { store_floats(words, sum); }
};
