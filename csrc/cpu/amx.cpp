// x86-64 with AMX: Sapphire Rapids and newer. Convolutions in bfloat16 and int8 multiply tiles; the rest is AVX-512.
//
// A map's words are what AMX wants: a tile of 16 cells of up to 16 groups is so many rows of 64 bytes, one group's
// stride apart, and a neighbour is the same at another address. The weights of up to 16 outputs are the other factor,
// and the product is sums [output][cell], which end like all others.
//
// Checked with emulated tiles (see amx_tiles.h) and by its instructions, but not yet run on a processor that has AMX:
// there `instruction_sets` compares it with the portable kernels before it is used.
#include <immintrin.h>

#include "instruction_sets.h"
#include "kernels.h"

namespace {

using dssnet::cpu::Rate;
#include "rates_x86.inl"
#include "avx512_vectors.h"
#include "avx512_vnni_bytes.h"
#include "avx512_bf16_dot.h"
#include "amx_tiles.h"

}  // namespace

#include "kernels.inl"

namespace {

// Tiles 0 to 3 are sums of two blocks times two units; then two of weights and two of cells.
template <int block, int unit>
constexpr int SUMS = 2 * block + unit;
template <int block>
constexpr int WEIGHTS = 4 + block;
template <int unit>
constexpr int CELLS = 6 + unit;

void repeat_tiles(long rounds, void (*four)()) {
    TileShapes shapes;
    for (int tile = 0; tile < 8; ++tile) shapes.set(tile, TILE, UNIT);
    Tiles::configure(shapes);
    for (; rounds > 0; --rounds) four();
    Tiles::release();
}

// Four independent sums, as the kernels have them.
void repeat_tiles_bf16(long rounds) {
    repeat_tiles(rounds, [] {
        Tiles::dot_bf16<0, 4, 6>(), Tiles::dot_bf16<1, 4, 7>(), Tiles::dot_bf16<2, 5, 6>(), Tiles::dot_bf16<3, 5, 7>();
    });
}
void repeat_tiles_i8(long rounds) {
    repeat_tiles(rounds, [] {
        Tiles::dot_s8u8<0, 4, 6>(), Tiles::dot_s8u8<1, 4, 7>(), Tiles::dot_s8u8<2, 5, 6>(), Tiles::dot_s8u8<3, 5, 7>();
    });
}
constexpr Rate TILES_BF16 = {"tdpbf16ps", 4 * TILE * UNIT * TILE * 2, repeat_tiles_bf16};
constexpr Rate TILES_I8 = {"tdpbsud", 4 * TILE * UNIT * TILE * 4, repeat_tiles_i8};

struct DotTilesBF16 {
    static constexpr bool integers = false;
    template <int sums, int weights, int cells>
    static void dot() {
        Tiles::dot_bf16<sums, weights, cells>();
    }
};

struct DotTilesI8 {
    static constexpr bool integers = true;
    template <int sums, int weights, int cells>
    static void dot() {
        Tiles::dot_s8u8<sums, weights, cells>();
    }
};

// B blocks that follow each other, at most two.
struct Blocks {
    const uint32_t* weights[2];
    int first[2], count[2];
    alignas(64) int32_t start[2][TILE][UNIT];  // int8: what sums start from
};

template <class Dot, int block, int unit>
void begin_tile(const Blocks& blocks) {
    if constexpr (Dot::integers) {
        Tiles::load<SUMS<block, unit>>(blocks.start[block], UNIT);
    } else {
        Tiles::zero<SUMS<block, unit>>();
    }
}

template <class Dot, int B, int U>
void convolve_tiles(const Window& window, const Blocks& blocks, int unit, const Packing& packing,
                    const Finish& finish) {
    begin_tile<Dot, 0, 0>(blocks);
    if constexpr (U > 1) begin_tile<Dot, 0, 1>(blocks);
    if constexpr (B > 1) begin_tile<Dot, 1, 0>(blocks);
    if constexpr (B > 1 && U > 1) begin_tile<Dot, 1, 1>(blocks);

    const int all = window.groups, steps = tile_steps(all), groups = tile_groups(all);
    const int words0 = blocks.count[0] * groups, words1 = blocks.count[1] * groups;
    const ptrdiff_t stride = window.group_stride;
    const uint32_t *weights0 = blocks.weights[0], *weights1 = blocks.weights[1];
    for (int line = 0; line < window.line_count; ++line) {
        for (int tap = 0; tap < window.tap_count; ++tap) {
            const uint32_t* near = window.lines[line] + unit * UNIT + window.taps[tap];
            for (int step = 0; step < steps; ++step) {
                const uint32_t* input = near + tile_begin(all, groups, step) * stride;
                Tiles::load<CELLS<0>>(input, stride);
                Tiles::load<WEIGHTS<0>>(weights0, groups);
                Dot::template dot<SUMS<0, 0>, WEIGHTS<0>, CELLS<0>>();
                if constexpr (U > 1) {
                    Tiles::load<CELLS<1>>(input + UNIT, stride);
                    Dot::template dot<SUMS<0, 1>, WEIGHTS<0>, CELLS<1>>();
                }
                if constexpr (B > 1) {
                    Tiles::load<WEIGHTS<1>>(weights1, groups);
                    Dot::template dot<SUMS<1, 0>, WEIGHTS<1>, CELLS<0>>();
                    if constexpr (U > 1) Dot::template dot<SUMS<1, 1>, WEIGHTS<1>, CELLS<1>>();
                }
                weights0 += words0, weights1 += words1;
            }
        }
    }

    alignas(64) uint32_t sums[B][TILE][U * UNIT];
    Tiles::store<SUMS<0, 0>>(sums[0], U * UNIT);
    if constexpr (U > 1) Tiles::store<SUMS<0, 1>>(&sums[0][0][UNIT], U * UNIT);
    if constexpr (B > 1) Tiles::store<SUMS<1, 0>>(sums[B - 1], U * UNIT);
    if constexpr (B > 1 && U > 1) Tiles::store<SUMS<1, 1>>(&sums[B - 1][0][UNIT], U * UNIT);
    for (int block = 0; block < B; ++block) {
        finish_sums<Dot::integers>(sums[block][0], U * UNIT, blocks.first[block], blocks.count[block], unit * UNIT,
                                   U * UNIT, packing, finish);
    }
}

template <class Dot, int B>
void convolve_blocks(const Window& window, const Blocks& blocks, int units, const Packing& packing,
                     const Finish& finish) {
    TileShapes shapes;
    const int groups = tile_groups(window.groups);
    for (int block = 0; block < B; ++block) {
        for (int unit = 0; unit < 2; ++unit) shapes.set(2 * block + unit, blocks.count[block], UNIT);
        shapes.set(WEIGHTS<0> + block, blocks.count[block], groups);
    }
    for (int unit = 0; unit < 2; ++unit) shapes.set(CELLS<0> + unit, groups, UNIT);
    Tiles::configure(shapes);

    int unit = 0;
    for (; unit + 2 <= units; unit += 2) convolve_tiles<Dot, B, 2>(window, blocks, unit, packing, finish);
    if (unit < units) convolve_tiles<Dot, B, 1>(window, blocks, unit, packing, finish);
}

// As `convolve`, with weights in tiles or not.
template <class Dot, class DotWords>
void convolve_either(const Window& window, const Weights& weights, int first_panel, int last_panel, int units,
                     const Finish& finish) {
    if (!weights.tiles) {
        return convolve<DotWords, Dot::integers>(window, weights, first_panel, last_panel, units, finish);
    }
    const Packing packing = packing_of(finish, units);
    Blocks blocks;
    const uint32_t* block_weights = weights.words;
    // Every block is a panel.
    for (int block = 0, first = 0, found = 0; block < last_panel; ++block) {
        const int count = weights.block_sizes[block];
        if (block >= first_panel) {
            blocks.weights[found] = block_weights, blocks.first[found] = first, blocks.count[found] = count;
            if (Dot::integers) {
                for (int n = 0; n < count; ++n) store(blocks.start[found][n], Ints{} + weights.start[first + n]);
            }
            if (++found == 2) {
                convolve_blocks<Dot, 2>(window, blocks, units, packing, finish);
                found = 0;
            } else if (block + 1 == last_panel) {
                blocks.weights[1] = block_weights, blocks.count[1] = 0;
                convolve_blocks<Dot, 1>(window, blocks, units, packing, finish);
            }
        }
        block_weights += count * weights.words_per_output;
        first += count;
    }
    // Tiles in use would be saved whenever the thread is interrupted.
    Tiles::release();
}

}  // namespace

namespace dssnet::cpu {

constexpr Kernels amx_kernels = [] {
    const char* needs = "AMX (tiles, int8 and bf16), and AVX-512 F, BW, DQ, VL, VNNI and BF16";
    Kernels table = make_table("amx", needs, true, FMA_512, TILES_I8, TILES_BF16);
    table.convolve[int(Type::bf16)] = convolve_either<DotTilesBF16, DotBF16>;
    table.convolve[int(Type::i8)] = convolve_either<DotTilesI8, DotI8>;
    // Tiles multiply bytes eight times as fast as vectors do whole numbers of 16 bits.
    table.winograd_pairs[int(Type::i8)] = nullptr, table.winograd_cells[int(Type::i8)] = nullptr;
    // Tiles with fewer groups are loaded as slowly as full ones. `convolve_pooled`, which reads an image's few
    // channels, knows no tiles.
    table.tiles_from[int(Type::bf16)] = table.tiles_from[int(Type::i8)] = 4;
    return table;
}();

}  // namespace dssnet::cpu
