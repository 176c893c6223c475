// The tile registers of AMX: eight of up to 16 rows of up to 16 words. Included into an unnamed namespace.
//
// With DSSNET_FAST_EMULATE_TILES they are arrays instead, so that what uses them can be tested anywhere. Instructions
// are written out, for compilers' own functions for tiles differ, and GCC's do not say that they read memory.

// Of every tile its shape; as the processor reads it.
struct TileShapes {
    uint8_t palette = 1, first_row = 0, unused[14] = {};
    uint16_t bytes[16] = {};  // in a row
    uint8_t rows[16] = {};

    void set(int tile, int row_count, int words) { rows[tile] = uint8_t(row_count), bytes[tile] = uint16_t(4 * words); }
};
static_assert(sizeof(TileShapes) == 64);

#if !defined(DSSNET_FAST_EMULATE_TILES)

struct Tiles {
    static void configure(const TileShapes& shapes) { asm volatile("ldtilecfg %0" : : "m"(shapes)); }
    static void release() { asm volatile("tilerelease"); }

    template <int tile>
    static void zero() {
        asm volatile("tilezero %%tmm%c0" : : "i"(tile));
    }
    // `stride`: words from one row to the next.
    template <int tile>
    static void load(const void* from, ptrdiff_t stride) {
        asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(4 * stride), "i"(tile) : "memory");
    }
    template <int tile>
    static void store(void* to, ptrdiff_t stride) {
        asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(4 * stride), "i"(tile) : "memory");
    }
    // sums[m][n] += the dot product of words a[m][k] and b[k][n] over k: of two bfloat16, or four bytes, signed in a.
    template <int sums, int a, int b>
    static void dot_bf16() {
        asm volatile("tdpbf16ps %%tmm%c0, %%tmm%c1, %%tmm%c2" : : "i"(b), "i"(a), "i"(sums));
    }
    template <int sums, int a, int b>
    static void dot_s8u8() {
        asm volatile("tdpbsud %%tmm%c0, %%tmm%c1, %%tmm%c2" : : "i"(b), "i"(a), "i"(sums));
    }
};

#else

struct Tiles {
    static inline thread_local TileShapes shapes;
    static inline thread_local uint32_t words[8][16][16];

    // What the processor would refuse.
    static void check(bool right) {
        if (!right) __builtin_trap();
    }
    static int rows_of(int tile) { return check(shapes.rows[tile] > 0), shapes.rows[tile]; }
    static int words_of(int tile) { return check(shapes.bytes[tile] > 0), shapes.bytes[tile] / 4; }

    static void configure(const TileShapes& given) {
        check(given.palette == 1 && given.first_row == 0);
        for (int tile = 0; tile < 16; ++tile) {
            check(given.rows[tile] <= 16 && given.bytes[tile] <= 64 && !given.rows[tile] == !given.bytes[tile]);
            check(tile < 8 || !given.rows[tile]);
        }
        shapes = given;
        __builtin_memset(words, 0, sizeof words);
    }
    static void release() { shapes = TileShapes(); }

    template <int tile>
    static void zero() {
        rows_of(tile);
        __builtin_memset(words[tile], 0, sizeof words[tile]);
    }
    template <int tile>
    static void load(const void* from, ptrdiff_t stride) {
        zero<tile>();
        for (int row = 0; row < rows_of(tile); ++row) {
            __builtin_memcpy(words[tile][row], static_cast<const uint32_t*>(from) + row * stride, 4 * words_of(tile));
        }
    }
    template <int tile>
    static void store(void* to, ptrdiff_t stride) {
        for (int row = 0; row < rows_of(tile); ++row) {
            __builtin_memcpy(static_cast<uint32_t*>(to) + row * stride, words[tile][row], 4 * words_of(tile));
        }
    }

    template <class Dot>
    static void dot(int sums, int a, int b, Dot dot) {
        check(rows_of(sums) == rows_of(a) && words_of(sums) == words_of(b) && words_of(a) == rows_of(b));
        for (int m = 0; m < rows_of(sums); ++m) {
            for (int n = 0; n < words_of(sums); ++n) {
                words[sums][m][n] = dot(words[sums][m][n], words[a][m], &words[b][0][n], words_of(a));
            }
        }
    }
    static float float_of(uint32_t bits) {
        float value;
        __builtin_memcpy(&value, &bits, 4);
        return value;
    }
    // Even and odd channels are summed by themselves, then all is added.
    template <int sums, int a, int b>
    static void dot_bf16() {
        dot(sums, a, b, [](uint32_t sum, const uint32_t* row, const uint32_t* column, int count) {
            float even = 0, odd = 0;
            for (int k = 0; k < count; ++k) {
                even = __builtin_fmaf(float_of(row[k] << 16), float_of(column[16 * k] << 16), even);
                odd = __builtin_fmaf(float_of(row[k] & 0xffff0000u), float_of(column[16 * k] & 0xffff0000u), odd);
            }
            const float total = float_of(sum) + (even + odd);
            __builtin_memcpy(&sum, &total, 4);
            return sum;
        });
    }
    template <int sums, int a, int b>
    static void dot_s8u8() {
        dot(sums, a, b, [](uint32_t sum, const uint32_t* row, const uint32_t* column, int count) {
            for (int k = 0; k < count; ++k) {
                for (int shift = 0; shift < 32; shift += 8) {
                    sum += uint32_t(int8_t(row[k] >> shift & 0xff) * int(column[16 * k] >> shift & 0xff));
                }
            }
            return sum;
        });
    }
};

#endif
