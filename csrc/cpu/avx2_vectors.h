// What the files for AVX2 share. Each includes it into its own unnamed namespace.

constexpr int LANES = 8;
using NativeFloats = __m256;
inline __m256 fused(__m256 a, float b, __m256 c) { return _mm256_fmadd_ps(a, _mm256_set1_ps(b), c); }

inline __m256i load_words(const uint32_t* words) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(words)); }
inline __m256i broadcast(const uint32_t* word) { return _mm256_set1_epi32(int(*word)); }
inline void store_words(uint32_t* words, __m256i sum) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(words), sum); }
inline __m256i start_from(const int32_t* value) { return value ? _mm256_set1_epi32(*value) : _mm256_setzero_si256(); }

using Whole = __m256i;
inline Whole even_bytes(Whole bytes) { return _mm256_and_si256(bytes, _mm256_set1_epi16(0xff)); }
inline Whole odd_bytes(Whole bytes) { return _mm256_srli_epi16(bytes, 8); }
// Adds products of two numbers of 16 bits.
inline Whole add_products(Whole sum, Whole input, Whole weight) {
    return _mm256_add_epi32(sum, _mm256_madd_epi16(input, weight));
}

struct DotF32 {
    using Sum = __m256;
    using Input = __m256;
    static constexpr int vectors = 2, widest = 6, widest_part = 6, weight_words = 1;
    static Sum start(const int32_t*) { return _mm256_setzero_ps(); }
    static Input load(const uint32_t* words) { return _mm256_loadu_ps(reinterpret_cast<const float*>(words)); }
    static Sum dot(Sum sum, Input input, const uint32_t* weight) {
        return _mm256_fmadd_ps(input, _mm256_broadcast_ss(reinterpret_cast<const float*>(weight)), sum);
    }
    static void store(uint32_t* words, Sum sum) { _mm256_storeu_ps(reinterpret_cast<float*>(words), sum); }
};

// No processor with these vectors only has instructions for it.
using DotBF16 = void;
