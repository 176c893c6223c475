// What the files for AVX-512 share. Each includes it into its own unnamed namespace.

constexpr int LANES = 16;
using NativeFloats = __m512;
inline __m512 fused(__m512 a, float b, __m512 c) { return _mm512_fmadd_ps(a, _mm512_set1_ps(b), c); }

inline __m512i load_words(const uint32_t* words) { return _mm512_loadu_si512(words); }
inline __m512i broadcast(const uint32_t* word) { return _mm512_set1_epi32(int(*word)); }
inline void store_words(uint32_t* words, __m512i sum) { _mm512_storeu_si512(words, sum); }
inline __m512i start_from(const int32_t* value) { return value ? _mm512_set1_epi32(*value) : _mm512_setzero_si512(); }
inline void store_floats(uint32_t* words, __m512 sum) { _mm512_storeu_ps(words, sum); }

using Whole = __m512i;
inline Whole even_bytes(Whole bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi16(0xff)); }
inline Whole odd_bytes(Whole bytes) { return _mm512_srli_epi16(bytes, 8); }
// Adds products of two numbers of 16 bits.
inline Whole add_products(Whole sum, Whole input, Whole weight) {
    return _mm512_add_epi32(sum, _mm512_madd_epi16(input, weight));
}

struct DotF32 {
    using Sum = __m512;
    using Input = __m512;
    static constexpr int vectors = 2, widest = 14, widest_part = 14, weight_words = 1;
    static Sum start(const int32_t*) { return _mm512_setzero_ps(); }
    static Input load(const uint32_t* words) { return _mm512_loadu_ps(words); }
    static Sum dot(Sum sum, Input input, const uint32_t* weight) {
        return _mm512_fmadd_ps(input, _mm512_castsi512_ps(broadcast(weight)), sum);
    }
    static void store(uint32_t* words, Sum sum) { store_floats(words, sum); }
};
