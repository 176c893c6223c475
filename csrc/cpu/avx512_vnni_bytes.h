// int8 with AVX-512 VNNI. Included into an unnamed namespace after avx512_vectors.h.

constexpr int WIDEST = 14;
inline Whole dot_bytes(Whole sum, Whole input, Whole weight) { return _mm512_dpbusd_epi32(sum, input, weight); }
inline Whole dot_shorts(Whole sum, Whole input, Whole weight) { return _mm512_dpwssd_epi32(sum, input, weight); }

#include "vnni_dot.h"
