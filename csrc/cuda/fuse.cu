// Stage 3: shallow and deep features -> FFM -> 3x3 convolution to 32 channels, at 1/2 resolution.
//
// Nearest-neighbour FFM. A 3x3 convolution over a nearest-x4 map gives 3 x 3 distinct values a
// cell: along each axis a, b, b, c. With the sums of the kernel's taps s (all three), m (the one
// before) and p (the one after) and the differences D- and D+ of the map to the cell before and
// after,
//     b = s g,   a = s g + m D-g,   c = s g + p D+g,
// in two dimensions nine products a cell, all of which one lane accumulates in float32.
// The convolution that follows reads rows c' a b | a b b | b b c | b c a' of those values (c' of the
// cell before, a' of the one after); where two taps meet the same value, their weights are summed:
// 100 instead of 144 products a cell.
#include "memory.cuh"
#include "params.h"

namespace dssnet {

// --- nearest-neighbour FFM ------------------------------------------------------------------------

// Packed weights: mix [group of MIX tiles][k-step]; smooth [pair of tiles][k-step][(s, m, p) of rows,
// (s, m, p) of columns]; reduce [chunk of VALUES][taps of rows: -, 0, +, 0 and +, - and 0][k-step]
// [the same of columns].
template <class T, bool RELEASED>
struct NearestFuse {
    using Tile = NearestTile;
    // Channels of the values held at a time, and the last eight that make no whole k-step.
    static constexpr int VALUES = RELEASED ? 88 : 32, STEPS = VALUES / 16;
    static constexpr bool REST = VALUES % 16 != 0;
    static constexpr int MIX = RELEASED ? 6 : 2;

    const FuseParams& p;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, quad = lane % 4;
    const int row0 = blockIdx.y * Tile::ROWS, column0 = blockIdx.x * Tile::COLUMNS;
    const Size<RELEASED ? 48 : 0> features{p.features};
    const Size<RELEASED ? 88 : 0> fused{p.fused};
    const int in_pixel = pixel_bytes(2 * features), g_pixel = pixel_bytes(fused);
    static constexpr int v_pixel = pixel_bytes(VALUES);
    const float mix_slope = p.slopes[0], smooth_slope = p.slopes[1], reduce_slope = p.slopes[2];
    const u32 first = shared_address(shared_memory);
    const u32 g = first + Tile::G_BEFORE * g_pixel;
    const u32 second = first + Tile::G_STORED * g_pixel;  // input, then values, then y

    __device__ __forceinline__ explicit NearestFuse(const FuseParams& p) : p(p) {}

    __device__ __forceinline__ bool in_image(int row, int column) const {
        const int y = row0 + row, x = column0 + column;
        return y >= 0 && y < p.height && x >= 0 && x < p.width;
    }

    __device__ __forceinline__ void load() const {
        const int half = features / CHUNK_CHANNELS;
        for (int i = threadIdx.x; i < copy_items(Tile::G_CELLS, 2 * half); i += THREADS) {
            const int chunk = copied_chunk(i, 2 * half), cell = copied_pixel(i, 2 * half);
            if (cell >= Tile::G_CELLS) continue;
            const int row = cell / Tile::G_COLUMNS - 1, column = cell % Tile::G_COLUMNS - 1;
            const bool inside = in_image(row, column), deep = chunk >= half;
            const u64 index = (u64(blockIdx.z) * p.height + row0 + row) * p.width + column0 + column;
            const u8* from = static_cast<const u8*>(deep ? p.deep : p.shallow);
            copy_chunk_async(second + cell * in_pixel + chunk * CHUNK,
                             from + (inside ? (index * half + chunk - (deep ? half : 0)) * CHUNK : 0), inside);
        }
        // What lies beyond the tile's cells is multiplied into products that nobody uses.
        const int chunks = g_pixel / CHUNK, before = Tile::G_BEFORE * chunks;
        const int all = Tile::G_STORED * chunks, cells = Tile::G_CELLS * chunks;
        for (int i = threadIdx.x; i < all - cells; i += THREADS) {
            store_shared16(first + (i < before ? i : i + cells) * CHUNK, make_uint4(0, 0, 0, 0));
        }
    }

    // g = PReLU(conv1x1(shallow, deep)); zero outside the image, as the 3x3 convolution pads.
    __device__ __forceinline__ void mix() const {
        const int steps = 2 * features / 16, groups = (fused / 8 + MIX - 1) / MIX;
        for (int unit = warp; unit < Tile::G_PADDED / 16 * groups; unit += WARPS) {
            const int cell0 = unit % (Tile::G_PADDED / 16) * 16, part = unit / (Tile::G_PADDED / 16);
            const int mine = cell0 + lane % 16 < Tile::G_CELLS ? cell0 + lane % 16 : Tile::G_CELLS - 1;
            const u32 at = second + mine * in_pixel + lane / 16 * CHUNK;
            float sum[MIX][4] = {};
            Ahead<MIX, RELEASED ? 2 : 1> b(static_cast<const u8*>(p.mix) + part * steps * MIX * 256, steps, lane);
            for_steps<RELEASED ? 2 : 1>(steps, [&](int slot, int k) {
                u32 a[4];
                load_a(a, at + 32 * k);
#pragma unroll
                for (int n = 0; n < MIX; ++n) T::mma(sum[n], a, b.ring[slot][n]);
                b.refill(slot);
                if (slot == b.LAST) b.advance();
            });
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int cell = cell0 + group + 8 * half;
                if (cell >= Tile::G_CELLS) continue;
                const bool inside = in_image(cell / Tile::G_COLUMNS - 1, cell % Tile::G_COLUMNS - 1);
#pragma unroll
                for (int n = 0; n < MIX; ++n) {
                    const int channel = 8 * (part * MIX + n) + 2 * quad;
                    if (channel >= fused) continue;
                    const float2 bias = load_float2(p.mix_bias + channel);
                    const float low = prelu(sum[n][2 * half] + bias.x, mix_slope);
                    const float high = prelu(sum[n][2 * half + 1] + bias.y, mix_slope);
                    store_shared4(g + cell * g_pixel + channel * 2, inside ? T::pack(low, high) : 0);
                }
            }
        }
    }

    // From g at a cell and its eight neighbours, the nine factors of the products, in place: the
    // centre, half the differences along one axis, a quarter of those along both. Halving is exact
    // and keeps differences of large numbers finite; the packed weights carry the factors 2 and 4.
    __device__ __forceinline__ static void differences(u32& nw, u32& n, u32& ne, u32& w, u32 centre, u32& e, u32& sw,
                                                       u32& s, u32& se) {
        constexpr u32 HALF = T::half2, MINUS = T::minus2;
        const auto half_of = [&](u32 a) { return T::fma2(a, HALF, 0); };
        const auto minus = [&](u32 a, u32 b) { return T::fma2(b, MINUS, a); };
        const u32 c = half_of(centre), half_n = half_of(n), half_s = half_of(s);
        w = minus(half_of(w), c), e = minus(half_of(e), c);
        const u32 half_w = half_of(w), half_e = half_of(e);
        nw = minus(half_of(minus(half_of(nw), half_n)), half_w);
        ne = minus(half_of(minus(half_of(ne), half_n)), half_e);
        sw = minus(half_of(minus(half_of(sw), half_s)), half_w);
        se = minus(half_of(minus(half_of(se), half_s)), half_e);
        n = minus(half_n, c), s = minus(half_s, c);
    }

    // One k-step of all nine products of two tiles of outputs.
    template <int K>  // 16 or 8
    __device__ __forceinline__ void products(float (&sum)[9][2][4], u32 at, const u8* weights) const {
        u32 a[9][K / 4];
#pragma unroll
        for (int i = 0; i < 9; ++i) {
            const u32 from = at + ((i / 3 - 1) * Tile::G_COLUMNS + i % 3 - 1) * g_pixel;
            if constexpr (K == 16) {
                load_a(a[i], from);
            } else {
                load_a8(a[i], from);
            }
        }
#pragma unroll
        for (int e = 0; e < K / 4; ++e) {
            differences(a[0][e], a[1][e], a[2][e], a[3][e], a[4][e], a[5][e], a[6][e], a[7][e], a[8][e]);
        }
        constexpr int NEIGHBOUR[3] = {1, 0, 2};  // s, m, p
#pragma unroll
        for (int i = 0; i < 9; ++i) {
            const int from = NEIGHBOUR[i / 3] * 3 + NEIGHBOUR[i % 3];
            if constexpr (K == 16) {
                u32 b[2][2];
                load_b(b, weights + i * 512, lane);
                T::mma(sum[i][0], a[from], b[0]);
                T::mma(sum[i][1], a[from], b[1]);
            } else {
                u32 b[2];
                load_b8(b, weights + i * 256, lane);
                T::mma8(sum[i][0], a[from], b[0]);
                T::mma8(sum[i][1], a[from], b[1]);
            }
        }
    }

    // The values of channels channel0 ... channel0 + VALUES; zero outside the image.
    __device__ __forceinline__ void values(int channel0) const {
        constexpr int PAIRS = (VALUES + 15) / 16, TILES = Tile::G_PADDED / 16;
        const int pair_bytes = 9 * 2 * 16 * fused;
        for (int unit = warp; unit < TILES * PAIRS; unit += WARPS) {
            const int cell0 = unit % TILES * 16, pair = unit / TILES;
            const u32 at = g + (cell0 + lane % 16) * g_pixel + lane / 16 * CHUNK;
            const u8* weights = static_cast<const u8*>(p.smooth) + (channel0 / 16 + pair) * pair_bytes;
            float sum[9][2][4] = {};
            const int steps = fused / 16;
#pragma unroll 1
            for (int k = 0; k < steps; ++k) products<16>(sum, at + 32 * k, weights + k * 9 * 512);
            if constexpr (REST) products<8>(sum, at + 32 * steps, weights + steps * 9 * 512);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int cell = cell0 + group + 8 * half;
                const int row = cell / Tile::G_COLUMNS, column = cell % Tile::G_COLUMNS;
                if (cell >= Tile::G_CELLS) continue;
                const bool inside = in_image(row - 1, column - 1);
#pragma unroll
                for (int n = 0; n < 2; ++n) {
                    const int channel = 16 * pair + 8 * n + 2 * quad;
                    if (channel >= VALUES) continue;
                    const float2 bias = load_float2(p.smooth_bias + channel0 + channel);
#pragma unroll
                    for (int i = 0; i < 3; ++i) {
                        const int v_row = 3 * row - 2 + i;  // row 0 holds c of the cells before
                        // a: s + m, b: s, c: s + p of rows, still split by columns.
                        float line[3][2];
#pragma unroll
                        for (int j = 0; j < 3; ++j) {
#pragma unroll
                            for (int k = 0; k < 2; ++k) {
                                const int e = 2 * half + k;
                                line[j][k] = sum[j][n][e] + (i == 1 ? 0.0f : sum[i == 0 ? 3 + j : 6 + j][n][e]);
                            }
                        }
#pragma unroll
                        for (int j = 0; j < 3; ++j) {
                            const int v_column = 3 * column - 2 + j;
                            float low = line[0][0] + bias.x, high = line[0][1] + bias.y;
                            if (j != 1) low += line[j == 0 ? 1 : 2][0], high += line[j == 0 ? 1 : 2][1];
                            if (v_row < 0 || v_row >= Tile::V_ROWS || v_column < 0 || v_column >= Tile::V_COLUMNS) continue;
                            low = prelu(low, smooth_slope), high = prelu(high, smooth_slope);
                            store_shared4(second + (v_row * Tile::V_COLUMNS + v_column) * v_pixel + channel * 2,
                                          inside ? T::pack(low, high) : 0);
                        }
                    }
                }
            }
        }
    }

    // y += conv(values of one chunk), for 16 cells and one of their four sub-rows.
    template <int K, class Sum, class Weights>
    __device__ __forceinline__ void taps(Sum& sum, u32 at, Weights&& weights) const {
        u32 a[5][K / 4];  // columns c' a b c a'
#pragma unroll
        for (int i = 0; i < 5; ++i) {
            if constexpr (K == 16) {
                load_a(a[i], at + i * v_pixel);
            } else {
                load_a8(a[i], at + i * v_pixel);
            }
        }
        const auto add = [&](int sub_column, int column, const auto& b) {
#pragma unroll
            for (int n = 0; n < 4; ++n) {
                if constexpr (K == 16) {
                    T::mma(sum[sub_column][n], a[column], b[n]);
                } else {
                    T::mma8(sum[sub_column][n], a[column], b[n]);
                }
            }
        };
        weights(0, [&](const auto& b) { add(0, 0, b), add(1, 1, b), add(3, 2, b); });
        weights(1, [&](const auto& b) { add(0, 1, b), add(3, 3, b); });
        weights(2, [&](const auto& b) { add(0, 2, b), add(2, 3, b), add(3, 4, b); });
        weights(3, [&](const auto& b) { add(1, 2, b); });
        weights(4, [&](const auto& b) { add(2, 2, b); });
    }

    __device__ __forceinline__ void reduce(float (&sum)[4][4][4], int chunk, int cells, int sub_row) const {
        // Which row of values a sub-row begins at, how many it reads, and which sum of the kernel's
        // rows meets each.
        const int start = sub_row == 0 ? 0 : sub_row == 1 ? 1 : 2, rows = sub_row == 0 || sub_row == 3 ? 3 : 2;
        const int kernel_row = sub_row == 1 ? 0x30 : sub_row == 2 ? 0x24 : 0x210;  // a hexadecimal digit each
        constexpr int STEP = 5 * 1024, BLOCK = 5 * 64 * VALUES;
        const u8* base = static_cast<const u8*>(p.reduce) + chunk * 5 * BLOCK;
        const auto block = [&](int row) { return base + (kernel_row >> (4 * row) & 15) * BLOCK; };
        const int cell_row = 2 * cells + lane % 16 / 8, cell_column = lane % 8;
        const u32 at = second + ((3 * cell_row + start) * Tile::V_COLUMNS + 3 * cell_column) * v_pixel + lane / 16 * CHUNK;

        u32 ring[5][4][2];
        const u8* next = block(0);
#pragma unroll
        for (int i = 0; i < 5; ++i) load_b(ring[i], next + i * 1024, lane);
#pragma unroll 1
        for (int row = 0; row < rows; ++row) {
            const u32 from = at + row * Tile::V_COLUMNS * v_pixel;
            const u8* here = block(row);
            u32 rest[5][4];
#pragma unroll 1
            for (int k = 0; k < STEPS; ++k) {
                const bool last = k == STEPS - 1, more = !last || row + 1 < rows;
                if constexpr (REST) {
                    if (last) {
#pragma unroll
                        for (int i = 0; i < 5; ++i) load_b8(rest[i], here + STEPS * STEP + i * 512, lane);
                    }
                }
                next = last ? block(row + 1) : here + (k + 1) * STEP;
                taps<16>(sum, from + 32 * k, [&](int i, auto&& use) {
                    use(ring[i]);
                    if (more) load_b(ring[i], next + i * 1024, lane);
                });
            }
            if constexpr (REST) taps<8>(sum, from + 32 * STEPS, [&](int i, auto&& use) { use(rest[i]); });
        }
    }

    __device__ __forceinline__ void write_y(const float (&sum)[4][4][4], int cells, int sub_row) const {
        // Planes of one sub-row and sub-column each: neither side has bank conflicts.
#pragma unroll
        for (int sub_column = 0; sub_column < 4; ++sub_column) {
            const u32 plane = second + (4 * sub_row + sub_column) * Tile::Y_PLANE_BYTES;
#pragma unroll
            for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int n = 0; n < 4; ++n) {
                    const float2 bias = load_float2(p.reduce_bias + 8 * n + 2 * quad);
                    const float low = prelu(sum[sub_column][n][2 * half] + bias.x, reduce_slope);
                    const float high = prelu(sum[sub_column][n][2 * half + 1] + bias.y, reduce_slope);
                    const int cell = (2 * cells + half) * Tile::COLUMNS + group;
                    store_shared4(plane + cell * Tile::Y_CELL_BYTES + (8 * n + 2 * quad) * 2, T::pack(low, high));
                }
            }
        }
        __syncthreads();
        constexpr int CHUNKS = HEAD_CHANNELS / CHUNK_CHANNELS, WIDTH = 4 * Tile::COLUMNS;
        for (int i = threadIdx.x; i < 4 * Tile::ROWS * WIDTH * CHUNKS; i += THREADS) {
            const int chunk = i % CHUNKS, row = i / CHUNKS / WIDTH, column = i / CHUNKS % WIDTH;
            if (in_image(row / 4, column / 4)) {
                const u32 from = second + (row % 4 * 4 + column % 4) * Tile::Y_PLANE_BYTES +
                                 (row / 4 * Tile::COLUMNS + column / 4) * Tile::Y_CELL_BYTES + chunk * CHUNK;
                const u64 pixel = (u64(blockIdx.z) * 4 * p.height + 4 * row0 + row) * 4 * p.width + 4 * column0 + column;
                store_global16(static_cast<u8*>(p.y) + (pixel * CHUNKS + chunk) * CHUNK, load_shared16(from));
            }
        }
    }

    __device__ __forceinline__ void run() const {
        load();
        wait_for_copies();
        __syncthreads();
        mix();
        // Sub-rows 0 and 3 take three rows of products, 1 and 2 take two: warps that share a
        // scheduler (equal modulo 4) get one of each.
        const int cells = warp / 4, sub_row = cells == 0 ? warp % 4 : warp % 4 ^ 1;
        float sum[4][4][4] = {};
        const int chunks = RELEASED ? 1 : fused / VALUES;
        for (int chunk = 0; chunk < chunks; ++chunk) {
            __syncthreads();
            values(chunk * VALUES);
            __syncthreads();
            reduce(sum, chunk, cells, sub_row);
        }
        __syncthreads();
        write_y(sum, cells, sub_row);
    }
};

// --- learned FFM ----------------------------------------------------------------------------------

// mix gives 16 times the channels, which pixel shuffle spreads over 4 x 4 pixels; then two 3x3
// convolutions at 1/2 resolution, both maps in shared memory only. Packed in pairs of tiles: mix
// n = (sub-pixel, channel); smooth and reduce k = 9 taps of channels.
template <class T, class Tile>
struct ShuffleFuse {
    const FuseParams& p;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, quad = lane % 4;
    const int row0 = blockIdx.y * Tile::ROWS, column0 = blockIdx.x * Tile::COLUMNS;
    const int in_pixel = pixel_bytes(2 * p.features), pixel = pixel_bytes(p.fused), m_row = Tile::m_row_bytes(p.fused);
    const float mix_slope = p.slopes[0], smooth_slope = p.slopes[1], reduce_slope = p.slopes[2];
    const u32 mixed = shared_address(shared_memory);
    const u32 second = mixed + Tile::M_ROWS * m_row;  // input, then the smoothed map

    __device__ __forceinline__ explicit ShuffleFuse(const FuseParams& p) : p(p) {}

    __device__ __forceinline__ bool in_image(int row, int column) const {
        const int y = row0 + row, x = column0 + column;
        return y >= 0 && y < 4 * p.height && x >= 0 && x < 4 * p.width;
    }

    __device__ __forceinline__ void load() const {
        const int half = p.features / CHUNK_CHANNELS;
        constexpr int CELLS = Tile::CELL_ROWS * Tile::CELL_COLUMNS;
        for (int i = threadIdx.x; i < copy_items(CELLS, 2 * half); i += THREADS) {
            const int chunk = copied_chunk(i, 2 * half), cell = copied_pixel(i, 2 * half);
            if (cell >= CELLS) continue;
            const int y = row0 / 4 - 1 + cell / Tile::CELL_COLUMNS, x = column0 / 4 - 1 + cell % Tile::CELL_COLUMNS;
            const bool inside = y >= 0 && y < p.height && x >= 0 && x < p.width, deep = chunk >= half;
            const u64 index = (u64(blockIdx.z) * p.height + y) * p.width + x;
            const u8* from = static_cast<const u8*>(deep ? p.deep : p.shallow);
            copy_chunk_async(second + cell * in_pixel + chunk * CHUNK,
                             from + (inside ? (index * half + chunk - (deep ? half : 0)) * CHUNK : 0), inside);
        }
    }

    __device__ __forceinline__ void mix() const {
        constexpr int CELLS = Tile::CELL_ROWS * Tile::CELL_COLUMNS, TILES = round_up(CELLS, 16) / 16;
        const int steps = 2 * p.features / 16, pairs = p.fused / 16;
        for (int unit = warp; unit < TILES * 16 * pairs; unit += WARPS) {
            const int cell0 = unit % TILES * 16, sub_pixel = unit / TILES / pairs, pair = unit / TILES % pairs;
            const int mine = cell0 + lane % 16 < CELLS ? cell0 + lane % 16 : CELLS - 1;
            const u32 at = second + mine * in_pixel + lane / 16 * CHUNK;
            float sum[2][4] = {};
            Ahead<2, 1> b(static_cast<const u8*>(p.mix) + u64(sub_pixel * pairs + pair) * steps * 512, steps, lane);
            for (int k = 0; k < steps; ++k) {
                u32 a[4];
                load_a(a, at + 32 * k);
                T::mma(sum[0], a, b.ring[0][0]);
                T::mma(sum[1], a, b.ring[0][1]);
                b.refill(0);
                b.advance();
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int cell = cell0 + group + 8 * half;
                const int row = 4 * (cell / Tile::CELL_COLUMNS - 1) + sub_pixel / 4;
                const int column = 4 * (cell % Tile::CELL_COLUMNS - 1) + sub_pixel % 4;
                if (cell >= CELLS || row < -2 || row >= Tile::ROWS + 2 || column < -2 || column >= Tile::COLUMNS + 2) continue;
                const bool inside = in_image(row, column);
#pragma unroll
                for (int n = 0; n < 2; ++n) {
                    const int channel = 16 * pair + 8 * n + 2 * quad;
                    const float2 bias = load_float2(p.mix_bias + sub_pixel * p.fused + channel);
                    const float low = prelu(sum[n][2 * half] + bias.x, mix_slope);
                    const float high = prelu(sum[n][2 * half + 1] + bias.y, mix_slope);
                    store_shared4(mixed + (row + 2) * m_row + (column + 2) * pixel + channel * 2,
                                  inside ? T::pack(low, high) : 0);
                }
            }
        }
    }

    // A 3x3 convolution for 16 pixels and 16 outputs.
    __device__ __forceinline__ void convolve(float (&sum)[2][4], u32 at, int row_bytes, const void* weights, int pair) const {
        const int steps = p.fused / 16;
        Ahead<2, 1> b(static_cast<const u8*>(weights) + u64(pair) * 9 * steps * 512, 9 * steps, lane);
        for (int tap = 0; tap < 9; ++tap) {
            for (int k = 0; k < steps; ++k) {
                u32 a[4];
                load_a(a, at + tap / 3 * row_bytes + tap % 3 * pixel + 32 * k);
                T::mma(sum[0], a, b.ring[0][0]);
                T::mma(sum[1], a, b.ring[0][1]);
                b.refill(0);
                b.advance();
            }
        }
    }

    __device__ __forceinline__ void smooth() const {
        constexpr int TILES = round_up(Tile::S_PIXELS, 16) / 16;
        for (int unit = warp; unit < TILES * (p.fused / 16); unit += WARPS) {
            const int pixel0 = unit % TILES * 16, pair = unit / TILES;
            const int mine = pixel0 + lane % 16 < Tile::S_PIXELS ? pixel0 + lane % 16 : Tile::S_PIXELS - 1;
            float sum[2][4] = {};
            convolve(sum, mixed + mine / Tile::S_COLUMNS * m_row + mine % Tile::S_COLUMNS * pixel + lane / 16 * CHUNK,
                     m_row, p.smooth, pair);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int at = pixel0 + group + 8 * half;
                if (at >= Tile::S_PIXELS) continue;
                const bool inside = in_image(at / Tile::S_COLUMNS - 1, at % Tile::S_COLUMNS - 1);
#pragma unroll
                for (int n = 0; n < 2; ++n) {
                    const int channel = 16 * pair + 8 * n + 2 * quad;
                    const float2 bias = load_float2(p.smooth_bias + channel);
                    const float low = prelu(sum[n][2 * half] + bias.x, smooth_slope);
                    const float high = prelu(sum[n][2 * half + 1] + bias.y, smooth_slope);
                    store_shared4(second + at * pixel + channel * 2, inside ? T::pack(low, high) : 0);
                }
            }
        }
    }

    __device__ __forceinline__ void reduce() const {
        for (int unit = warp; unit < Tile::PIXELS / 16 * (HEAD_CHANNELS / 16); unit += WARPS) {
            const int pixel0 = unit % (Tile::PIXELS / 16) * 16, pair = unit / (Tile::PIXELS / 16);
            const int mine = pixel0 + lane % 16;
            float sum[2][4] = {};
            convolve(sum, second + (mine / Tile::COLUMNS * Tile::S_COLUMNS + mine % Tile::COLUMNS) * pixel + lane / 16 * CHUNK,
                     Tile::S_COLUMNS * pixel, p.reduce, pair);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int at = pixel0 + group + 8 * half, row = at / Tile::COLUMNS, column = at % Tile::COLUMNS;
                if (!in_image(row, column)) continue;
                // The packed order of outputs gives a lane four neighbouring channels.
                const int channel = 16 * pair + 4 * quad;
                u32 out[2];
#pragma unroll
                for (int n = 0; n < 2; ++n) {
                    const float2 bias = load_float2(p.reduce_bias + channel + 2 * n);
                    out[n] = T::pack(prelu(sum[n][2 * half] + bias.x, reduce_slope),
                                     prelu(sum[n][2 * half + 1] + bias.y, reduce_slope));
                }
                const u64 index = (u64(blockIdx.z) * 4 * p.height + row0 + row) * 4 * p.width + column0 + column;
                store_global(static_cast<u8*>(p.y) + (index * HEAD_CHANNELS + channel) * 2, out);
            }
        }
    }

    __device__ __forceinline__ void run() const {
        load();
        wait_for_copies();
        __syncthreads();
        mix();
        __syncthreads();
        smooth();
        __syncthreads();
        reduce();
    }
};

}  // namespace dssnet

#define FUSE_KERNELS(type)                                                                                     \
    extern "C" __global__ void __launch_bounds__(dssnet::THREADS, 1)                                           \
        fuse_nearest_##type(const __grid_constant__ dssnet::FuseParams p) {                                    \
        dssnet::NearestFuse<dssnet::type, true>(p).run();                                                      \
    }                                                                                                          \
    extern "C" __global__ void __launch_bounds__(dssnet::THREADS, 1)                                           \
        fuse_nearest_general_##type(const __grid_constant__ dssnet::FuseParams p) {                            \
        dssnet::NearestFuse<dssnet::type, false>(p).run();                                                     \
    }                                                                                                          \
    extern "C" __global__ void __launch_bounds__(dssnet::THREADS, 1)                                           \
        fuse_shuffle_4x8_##type(const __grid_constant__ dssnet::FuseParams p) {                                \
        dssnet::ShuffleFuse<dssnet::type, dssnet::ShuffleTile<4, 8>>(p).run();                                 \
    }                                                                                                          \
    extern "C" __global__ void __launch_bounds__(dssnet::THREADS, 1)                                           \
        fuse_shuffle_8x16_##type(const __grid_constant__ dssnet::FuseParams p) {                               \
        dssnet::ShuffleFuse<dssnet::type, dssnet::ShuffleTile<8, 16>>(p).run();                                \
    }

FUSE_KERNELS(fp16)
FUSE_KERNELS(bf16)
