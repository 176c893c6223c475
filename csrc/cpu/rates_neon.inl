// Instruction rates of aarch64 as loops over registers; see rates.h. Included into an unnamed namespace by each file for an
// instruction set, which takes those that it has. Sixteen independent sums are more than any processor has under way.

#define DSSNET_SIXTEEN(ONE)                                                                                       \
    ONE(0) ONE(1) ONE(2) ONE(3) ONE(4) ONE(5) ONE(6) ONE(7) ONE(16) ONE(17) ONE(18) ONE(19) ONE(20) ONE(21) ONE(22) \
        ONE(23)
#define DSSNET_REGISTERS                                                                                             \
    "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23", "v24", "v25", \
        "v26", "v27", "v28", "v29", "v30", "v31"

// Zeros, for no processor is slowed down by them.
#define DSSNET_RATE(NAME, LOOP)                                                                               \
    void NAME(long rounds) {                                                                                  \
        asm volatile("movi v24.16b, #0\n\tmovi v25.16b, #0\n\t" DSSNET_SIXTEEN(DSSNET_ZERO) "1:\n\t" LOOP     \
                     "subs %0, %0, #1\n\tb.ne 1b"                                                             \
                     : "+r"(rounds)                                                                           \
                     :                                                                                        \
                     : DSSNET_REGISTERS, "cc");                                                               \
    }
#define DSSNET_ZERO(N) "movi v" #N ".16b, #0\n\t"

#define DSSNET_FMLA(N) "fmla v" #N ".4s, v24.4s, v25.4s\n\t"
DSSNET_RATE(repeat_fmla, DSSNET_SIXTEEN(DSSNET_FMLA))
constexpr Rate FMLA = {"fmla", 16 * 4, repeat_fmla};

// Products of bytes in 16 bits, which have to be added up.
#define DSSNET_SMULL(SUM, PRODUCT) \
    "smull v" #PRODUCT ".8h, v24.8b, v25.8b\n\tsadalp v" #SUM ".4s, v" #PRODUCT ".8h\n\t"
DSSNET_RATE(repeat_smull, DSSNET_SMULL(0, 26) DSSNET_SMULL(1, 27) DSSNET_SMULL(2, 28) DSSNET_SMULL(3, 29)
                              DSSNET_SMULL(4, 30) DSSNET_SMULL(5, 31))
[[maybe_unused]] constexpr Rate SMULL = {"smull and sadalp", 6 * 8, repeat_smull};

#if defined(__ARM_FEATURE_DOTPROD)
#define DSSNET_SDOT(N) "sdot v" #N ".4s, v24.16b, v25.16b\n\t"
DSSNET_RATE(repeat_sdot, DSSNET_SIXTEEN(DSSNET_SDOT))
constexpr Rate SDOT = {"sdot", 16 * 16, repeat_sdot};
#endif

#if defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define DSSNET_BFDOT(N) "bfdot v" #N ".4s, v24.8h, v25.8h\n\t"
DSSNET_RATE(repeat_bfdot, DSSNET_SIXTEEN(DSSNET_BFDOT))
constexpr Rate BFDOT = {"bfdot", 16 * 8, repeat_bfdot};
#endif
