// Instruction rates of x86-64 as loops over registers; see rates.h. Included into an unnamed namespace by each file for an
// instruction set, which takes those that it has. Twelve independent sums are more than any processor has under way.

#define DSSNET_TWELVE(ONE) ONE(0) ONE(1) ONE(2) ONE(3) ONE(4) ONE(5) ONE(6) ONE(7) ONE(8) ONE(9) ONE(10) ONE(11)
#define DSSNET_SIX(ONE) ONE(0, 6) ONE(1, 7) ONE(2, 8) ONE(3, 9) ONE(4, 10) ONE(5, 11)
#define DSSNET_REGISTERS                                                                                           \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13"

// Zeros, for no processor is slowed down by them.
#define DSSNET_RATE(NAME, LOOP)                                                                \
    void NAME(long rounds) {                                                                   \
        asm volatile("vpxor %%xmm12, %%xmm12, %%xmm12\n\tvpxor %%xmm13, %%xmm13, %%xmm13\n\t"  \
                     DSSNET_TWELVE(DSSNET_ZERO) "1:\n\t" LOOP "sub $1, %0\n\tjnz 1b\n\tvzeroupper" \
                     : "+r"(rounds)                                                            \
                     :                                                                         \
                     : DSSNET_REGISTERS, "cc");                                                \
    }
#define DSSNET_ZERO(N) "vpxor %%xmm" #N ", %%xmm" #N ", %%xmm" #N "\n\t"

#define DSSNET_FMA_256(N) "vfmadd231ps %%ymm12, %%ymm13, %%ymm" #N "\n\t"
DSSNET_RATE(repeat_fma_256, DSSNET_TWELVE(DSSNET_FMA_256))
constexpr Rate FMA_256 = {"vfmadd231ps, 256 bits", 12 * 8, repeat_fma_256};

// Products of 16 bits, which have to be added up.
#define DSSNET_MADD_256(SUM, PRODUCT)                               \
    "vpmaddwd %%ymm12, %%ymm13, %%ymm" #PRODUCT "\n\tvpaddd %%ymm" \
    #PRODUCT ", %%ymm" #SUM ", %%ymm" #SUM "\n\t"
DSSNET_RATE(repeat_madd_256, DSSNET_SIX(DSSNET_MADD_256))
[[maybe_unused]] constexpr Rate MADD_256 = {"vpmaddwd and vpaddd, 256 bits", 6 * 16, repeat_madd_256};

#if defined(__AVXVNNI__)
#define DSSNET_DPBUSD_256(N) "%{vex%} vpdpbusd %%ymm12, %%ymm13, %%ymm" #N "\n\t"
DSSNET_RATE(repeat_dpbusd_256, DSSNET_TWELVE(DSSNET_DPBUSD_256))
constexpr Rate DPBUSD_256 = {"vpdpbusd, 256 bits", 12 * 32, repeat_dpbusd_256};
#endif

#if defined(__AVX512F__)
#define DSSNET_FMA_512(N) "vfmadd231ps %%zmm12, %%zmm13, %%zmm" #N "\n\t"
DSSNET_RATE(repeat_fma_512, DSSNET_TWELVE(DSSNET_FMA_512))
constexpr Rate FMA_512 = {"vfmadd231ps, 512 bits", 12 * 16, repeat_fma_512};

#define DSSNET_MADD_512(SUM, PRODUCT)                               \
    "vpmaddwd %%zmm12, %%zmm13, %%zmm" #PRODUCT "\n\tvpaddd %%zmm" \
    #PRODUCT ", %%zmm" #SUM ", %%zmm" #SUM "\n\t"
DSSNET_RATE(repeat_madd_512, DSSNET_SIX(DSSNET_MADD_512))
[[maybe_unused]] constexpr Rate MADD_512 = {"vpmaddwd and vpaddd, 512 bits", 6 * 32, repeat_madd_512};
#endif

#if defined(__AVX512VNNI__)
#define DSSNET_DPBUSD_512(N) "vpdpbusd %%zmm12, %%zmm13, %%zmm" #N "\n\t"
DSSNET_RATE(repeat_dpbusd_512, DSSNET_TWELVE(DSSNET_DPBUSD_512))
[[maybe_unused]] constexpr Rate DPBUSD_512 = {"vpdpbusd, 512 bits", 12 * 64, repeat_dpbusd_512};
#endif

#if defined(__AVX512BF16__)
#define DSSNET_DPBF16_512(N) "vdpbf16ps %%zmm12, %%zmm13, %%zmm" #N "\n\t"
DSSNET_RATE(repeat_dpbf16_512, DSSNET_TWELVE(DSSNET_DPBF16_512))
[[maybe_unused]] constexpr Rate DPBF16_512 = {"vdpbf16ps, 512 bits", 12 * 32, repeat_dpbf16_512};
#endif
