// Stage 2: the W-NECK chain, one launch a block; see `WneckParams` for how the chain is cut.
#include "memory.cuh"
#include "params.h"

namespace dssnet {

// Warps of a block in the expanding and squeezing products: 2 share the cells, 4 the outputs.
constexpr int CELL_WARPS = 2, OUTPUT_WARPS = WARPS / CELL_WARPS;
static_assert(CELL_WARPS == 2 && OUTPUT_WARPS == 4, "see the distribution of warps below");

template <class T, class Tile, bool RELEASED>
struct Wneck {
    const WneckParams& p;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, quad = lane % 4;
    const int row0 = blockIdx.y * Tile::ROWS, column0 = blockIdx.x * Tile::COLUMNS;
    const Size<RELEASED ? 32 : 0> u_channels{p.u_channels}, squeezed{p.squeezed};
    const Size<RELEASED ? 48 : 0> features{p.features};
    const Size<RELEASED ? 128 : 0> expanded{p.expanded};
    const int x_pixel = pixel_bytes(features), u_pixel = pixel_bytes(u_channels);
    const int z_pixel = pixel_bytes(2 * expanded), u_row = Tile::u_row_bytes(u_channels);
    const u32 first = shared_address(shared_memory);
    const u32 second = first + Tile::first_bytes(features, squeezed);
    // `first` holds x, then the partial sums; `second` holds u, then the expanded map z.

    __device__ __forceinline__ explicit Wneck(const WneckParams& p) : p(p) {}

    __device__ __forceinline__ bool in_image(int row, int column) const {
        const int y = row0 + row, x = column0 + column;
        return y >= 0 && y < p.height && x >= 0 && x < p.width;
    }
    __device__ __forceinline__ u64 cell_index(int row, int column) const {
        return (u64(blockIdx.z) * p.height + row0 + row) * p.width + column0 + column;
    }

    // --- streams of packed weights ---
    // They do not wait for anybody: each is begun before the barrier in front of its product, so
    // that its first steps arrive meanwhile. Warps without work ask for none.

    static constexpr int RESTORE_TILES = RELEASED ? 3 : 2, EXPAND_TILES = 4, SQUEEZE_TILES = 9;
    static constexpr int RESTORE_CELL_TILES = round_up(Tile::X_CELLS, 16) / 16;
    using RestoreWeights = Ahead<RESTORE_TILES, RELEASED ? 2 : 1>;
    using ExpandWeights = Ahead<EXPAND_TILES, RELEASED ? 3 : 1>;
    using SqueezeWeights = Ahead<SQUEEZE_TILES, RELEASED ? 2 : 1>;

    __device__ __forceinline__ int restore_units() const { return RESTORE_CELL_TILES * (features / (8 * RESTORE_TILES)); }

    __device__ __forceinline__ RestoreWeights restore_weights(int unit) const {
        const int steps = 9 * u_channels / 16, n0 = unit / RESTORE_CELL_TILES * RESTORE_TILES;
        return {static_cast<const u8*>(p.restore) + n0 * steps * 256, unit < restore_units() ? steps : 0, lane};
    }
    template <int SIDE>
    __device__ __forceinline__ ExpandWeights expand_weights(int n0) const {
        const int steps = SIDE * SIDE * features / 16;
        const u8* weights = static_cast<const u8*>(SIDE == 1 ? p.expand1 : p.expand3);
        return {weights + n0 / 8 * steps * 256, n0 < expanded ? steps : 0, lane};
    }
    __device__ __forceinline__ SqueezeWeights squeeze_weights(int tile) const {
        const int steps = 2 * expanded / 16;
        return {static_cast<const u8*>(p.squeeze) + tile * steps * SQUEEZE_TILES * 256, tile < squeezed / 8 ? steps : 0, lane};
    }

    // --- loading ---

    // x with a ring of one cell.
    __device__ __forceinline__ void load_x() const {
        const int chunks = features / CHUNK_CHANNELS;
        for (int i = threadIdx.x; i < copy_items(Tile::X_CELLS, chunks); i += THREADS) {
            const int chunk = copied_chunk(i, chunks), cell = copied_pixel(i, chunks);
            if (cell >= Tile::X_CELLS) continue;
            const int row = cell / Tile::X_COLUMNS - 1, column = cell % Tile::X_COLUMNS - 1;
            const bool inside = in_image(row, column);
            const u64 from = inside ? (cell_index(row, column) * chunks + chunk) * CHUNK : 0;
            copy_chunk_async(first + cell * x_pixel + chunk * CHUNK, static_cast<const u8*>(p.x_in) + from, inside);
        }
    }

    // The head's input with a ring of two cells.
    __device__ __forceinline__ void load_map() const {
        const int chunks = u_channels / CHUNK_CHANNELS;
        static_assert(Tile::U_CELLS % 8 == 0);
        for (int i = threadIdx.x; i < Tile::U_CELLS * chunks; i += THREADS) {
            const int chunk = copied_chunk(i, chunks), cell = copied_pixel(i, chunks);
            const int row = cell / Tile::U_COLUMNS, column = cell % Tile::U_COLUMNS;
            const bool inside = in_image(row - 2, column - 2);
            const u64 from = inside ? (cell_index(row - 2, column - 2) * chunks + chunk) * CHUNK : 0;
            copy_chunk_async(second + row * u_row + column * u_pixel + chunk * CHUNK,
                             static_cast<const u8*>(p.u_in) + from, inside);
        }
    }

    // First and last of the tiles, relative to this one, whose ring reaches row (or column) `at`.
    __device__ __forceinline__ static void reaching(int at, int size, int tile, int tiles, int& from, int& to) {
        from = at <= 0 ? -1 : at > size ? 1 : 0;
        to = at >= size - 1 ? 1 : at < -1 ? -1 : 0;
        if (tile == 0) from = from < 0 ? 0 : from;
        if (tile == tiles - 1) to = to > 0 ? 0 : to;
    }

    // The squeezed map with a ring of two cells: bias and up to four partial sums, zero outside.
    __device__ __forceinline__ void load_sums() const {
        const int chunks = u_channels / CHUNK_CHANNELS;
        const int tile_row = blockIdx.y, tile_column = blockIdx.x;
#pragma unroll 2
        for (int i = threadIdx.x; i < Tile::U_CELLS * chunks; i += THREADS) {
            const int chunk = copied_chunk(i, chunks), place = copied_pixel(i, chunks);
            const int row = place / Tile::U_COLUMNS - 2, column = place % Tile::U_COLUMNS - 2;
            uint4 sum = make_uint4(0, 0, 0, 0);
            if (in_image(row, column)) {
                int rows[2], columns[2];
                reaching(row, Tile::ROWS, tile_row, p.tile_rows, rows[0], rows[1]);
                reaching(column, Tile::COLUMNS, tile_column, p.tile_columns, columns[0], columns[1]);
                uint4 part[4];
#pragma unroll
                for (int k = 0; k < 4; ++k) {
                    const int r = rows[k / 2], c = columns[k % 2];
                    const bool repeated = (k / 2 && rows[1] == rows[0]) || (k % 2 && columns[1] == columns[0]);
                    part[k] = make_uint4(0, 0, 0, 0);
                    if (!repeated) {
                        const u64 tile = (u64(blockIdx.z) * p.tile_rows + tile_row + r) * p.tile_columns + tile_column + c;
                        const int cell = (row - r * Tile::ROWS + 1) * Tile::X_COLUMNS + column - c * Tile::COLUMNS + 1;
                        part[k] = load_constant16(static_cast<const u8*>(p.u_in) +
                                                  ((tile * Tile::X_CELLS + cell) * chunks + chunk) * CHUNK);
                    }
                }
                const auto add = [&](u32 a, u32 b, u32 c, u32 d, int channel) {
                    const float2 bias = load_float2(p.u_bias + chunk * CHUNK_CHANNELS + channel);
                    const float2 va = T::unpack(a), vb = T::unpack(b), vc = T::unpack(c), vd = T::unpack(d);
                    return T::pack(bias.x + va.x + vb.x + vc.x + vd.x, bias.y + va.y + vb.y + vc.y + vd.y);
                };
                sum.x = add(part[0].x, part[1].x, part[2].x, part[3].x, 0);
                sum.y = add(part[0].y, part[1].y, part[2].y, part[3].y, 2);
                sum.z = add(part[0].z, part[1].z, part[2].z, part[3].z, 4);
                sum.w = add(part[0].w, part[1].w, part[2].w, part[3].w, 6);
            }
            store_shared16(second + (row + 2) * u_row + (column + 2) * u_pixel + chunk * CHUNK, sum);
        }
    }

    // --- products ---

    // x += conv(u) + bias, for the tile and a ring of one cell; zero outside the image, as the
    // expanding convolution pads.
    __device__ __forceinline__ void restore(RestoreWeights b) const {
        constexpr int N = RESTORE_TILES, TILES = RESTORE_CELL_TILES;
        const int steps = u_channels / 16;
        for (int unit = warp; unit < restore_units(); unit += WARPS) {
            if (unit != warp) b = restore_weights(unit);
            const int cell0 = unit % TILES * 16, n0 = unit / TILES * N;
            const int mine = cell0 + lane % 16 < Tile::X_CELLS ? cell0 + lane % 16 : Tile::X_CELLS - 1;
            const u32 at = second + mine / Tile::X_COLUMNS * u_row + mine % Tile::X_COLUMNS * u_pixel + lane / 16 * CHUNK;
            float sum[N][4];
#pragma unroll
            for (int n = 0; n < N; ++n) {
                const float2 bias = load_float2(p.restore_bias + 8 * (n0 + n) + 2 * quad);
                sum[n][0] = sum[n][2] = bias.x, sum[n][1] = sum[n][3] = bias.y;
            }
#pragma unroll 1
            for (int tap_row = 0; tap_row < 3; ++tap_row) {
#pragma unroll
                for (int tap_column = 0; tap_column < 3; ++tap_column) {
#pragma unroll
                    for (int k = 0; k < steps; ++k) {
                        const int slot = RELEASED ? k : 0;
                        u32 a[4];
                        load_a(a, at + tap_row * u_row + tap_column * u_pixel + 32 * k);
#pragma unroll
                        for (int n = 0; n < N; ++n) T::mma(sum[n], a, b.ring[slot][n]);
                        b.refill(slot);
                        if (slot == b.LAST) b.advance();
                    }
                }
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int cell = cell0 + group + 8 * half;
                if (cell >= Tile::X_CELLS) continue;
                const bool inside = in_image(cell / Tile::X_COLUMNS - 1, cell % Tile::X_COLUMNS - 1);
#pragma unroll
                for (int n = 0; n < N; ++n) {
                    const u32 to = first + cell * x_pixel + (8 * (n0 + n) + 2 * quad) * 2;
                    float2 value = make_float2(sum[n][2 * half], sum[n][2 * half + 1]);
                    if (p.x_in) {
                        const float2 x = T::unpack(load_shared4(to));
                        value.x += x.x, value.y += x.y;
                    }
                    store_shared4(to, inside ? T::pack(value.x, value.y) : 0);
                }
            }
        }
    }

    __device__ __forceinline__ void write_x() const {
        const int chunks = features / CHUNK_CHANNELS;
        for (int i = threadIdx.x; i < Tile::CELLS * chunks; i += THREADS) {
            const int chunk = copied_chunk(i, chunks), cell = copied_pixel(i, chunks);
            const int row = cell / Tile::COLUMNS, column = cell % Tile::COLUMNS;
            if (in_image(row, column)) {
                const u32 from = first + ((row + 1) * Tile::X_COLUMNS + column + 1) * x_pixel + chunk * CHUNK;
                store_global16(static_cast<u8*>(p.x_out) + (cell_index(row, column) * chunks + chunk) * CHUNK,
                               load_shared16(from));
            }
        }
    }

    // z[n0 ...] = PReLU(conv(x)) for 32 channels and half of the cells: the 1x1 branch
    // (SIDE = 1) or the 3x3 branch (SIDE = 3). Zero outside the image, as the squeezing
    // convolution pads.
    template <int SIDE>
    __device__ __forceinline__ void expand(ExpandWeights b, int n0) const {
        if (n0 >= expanded) return;
        constexpr int N = EXPAND_TILES, M = Tile::CELLS / 16 / CELL_WARPS;
        const int channel0 = SIDE == 1 ? n0 : expanded + n0;
        constexpr int ROWS_A_TILE = 16 / Tile::COLUMNS;
        const float slope = *p.slope;
        const int steps = features / 16, cell0 = warp % CELL_WARPS * M * 16;
        const int mine = cell0 + lane % 16, reach = SIDE == 1 ? 1 : 0;
        const u32 at = first + lane / 16 * CHUNK +
                       ((mine / Tile::COLUMNS + reach) * Tile::X_COLUMNS + mine % Tile::COLUMNS + reach) * x_pixel;
        float sum[M][N][4];
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const float2 bias = load_float2(p.expand_bias + channel0 + 8 * n + 2 * quad);
#pragma unroll
            for (int m = 0; m < M; ++m) {
                sum[m][n][0] = sum[m][n][2] = bias.x, sum[m][n][1] = sum[m][n][3] = bias.y;
            }
        }
#pragma unroll 1
        for (int tap_row = 0; tap_row < SIDE; ++tap_row) {
#pragma unroll 1
            for (int tap_column = 0; tap_column < SIDE; ++tap_column) {
                const u32 tap = at + (tap_row * Tile::X_COLUMNS + tap_column) * x_pixel;
#pragma unroll
                for (int k = 0; k < steps; ++k) {
                    const int slot = RELEASED ? k : 0;
#pragma unroll
                    for (int m = 0; m < M; ++m) {
                        u32 a[4];
                        load_a(a, tap + m * ROWS_A_TILE * Tile::X_COLUMNS * x_pixel + 32 * k);
#pragma unroll
                        for (int n = 0; n < N; ++n) T::mma(sum[m][n], a, b.ring[slot][n]);
                    }
                    b.refill(slot);
                    if (slot == b.LAST) b.advance();
                }
            }
        }
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int cell = cell0 + 16 * m + group + 8 * half;
                const bool inside = in_image(cell / Tile::COLUMNS, cell % Tile::COLUMNS);
#pragma unroll
                for (int n = 0; n < N; ++n) {
                    const float low = prelu(sum[m][n][2 * half], slope), high = prelu(sum[m][n][2 * half + 1], slope);
                    store_shared4(second + cell * z_pixel + (channel0 + 8 * n + 2 * quad) * 2,
                                  inside ? T::pack(low, high) : 0);
                }
            }
        }
    }

    // Partial sums of 8 squeezed channels. An expanded cell contributes to nine cells; nine tiles
    // of accumulators hold the nine products, which are then added up where they belong, one tap
    // after another so that no two lanes meet in a cell.
    __device__ __forceinline__ void squeeze(SqueezeWeights b, int tile) const {
        if (tile >= squeezed / 8) return;
        constexpr int N = SQUEEZE_TILES, M = Tile::CELLS / 16 / CELL_WARPS;
        const int steps = 2 * expanded / 16, cell0 = warp % CELL_WARPS * M * 16;
        const u32 sums = first + tile * Tile::SUM_BYTES;
        const u32 at = second + (cell0 + lane % 16) * z_pixel + lane / 16 * CHUNK;
        for (int i = warp % CELL_WARPS * 32 + lane; i < Tile::X_CELLS * 2; i += CELL_WARPS * 32) {
            store_shared16(sums + i * 16, make_uint4(0, 0, 0, 0));
        }
        float sum[M][N][4] = {};
        for_steps<SqueezeWeights::LAST + 1>(steps, [&](int slot, int k) {
#pragma unroll
            for (int m = 0; m < M; ++m) {
                u32 a[4];
                load_a(a, at + m * 16 * z_pixel + 32 * k);
#pragma unroll
                for (int n = 0; n < N; ++n) T::mma(sum[m][n], a, b.ring[slot][n]);
            }
            b.refill(slot);
            if (slot == b.LAST) b.advance();
        });
#pragma unroll
        for (int tap = 0; tap < N; ++tap) {
            sync_some(1 + warp / CELL_WARPS, CELL_WARPS * 32);
#pragma unroll
            for (int m = 0; m < M; ++m) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    const int cell = cell0 + 16 * m + group + 8 * half;
                    const int row = cell / Tile::COLUMNS + 2 - tap / 3, column = cell % Tile::COLUMNS + 2 - tap % 3;
                    const u32 to = sums + (row * Tile::X_COLUMNS + column) * 32 + quad * 8;
                    float2 total = load_shared_float2(to);
                    total.x += sum[m][tap][2 * half], total.y += sum[m][tap][2 * half + 1];
                    store_shared_float2(to, total);
                }
            }
        }
    }

    __device__ __forceinline__ void write_sums() const {
        const int chunks = squeezed / CHUNK_CHANNELS;
        const u64 tile = (u64(blockIdx.z) * p.tile_rows + blockIdx.y) * p.tile_columns + blockIdx.x;
        u8* out = static_cast<u8*>(p.u_out) + tile * Tile::X_CELLS * chunks * CHUNK;
        for (int i = threadIdx.x; i < copy_items(Tile::X_CELLS, chunks); i += THREADS) {
            const int chunk = copied_chunk(i, chunks), cell = copied_pixel(i, chunks), odd = cell / 4 % 2;
            if (cell >= Tile::X_CELLS) continue;
            // Of eight cells, four read their halves in opposite order, so that banks do not collide.
            const u32 from = first + chunk * Tile::SUM_BYTES + cell * 32;
            const uint4 one = load_shared16(from + odd * 16), two = load_shared16(from + (1 - odd) * 16);
            const uint4 low = odd ? two : one, high = odd ? one : two;
            const auto pack = [](u32 a, u32 b) { return T::pack(__uint_as_float(a), __uint_as_float(b)); };
            store_global16(out + (cell * chunks + chunk) * CHUNK, make_uint4(pack(low.x, low.y), pack(low.z, low.w),
                                                       pack(high.x, high.y), pack(high.z, high.w)));
        }
    }

    __device__ __forceinline__ void run() const {
        const int part = warp / CELL_WARPS;
        if (p.x_in) {
            load_x();
            load_sums();
        } else {
            load_map();
        }
        const RestoreWeights to_restore = restore_weights(warp);
        wait_for_copies();
        __syncthreads();
        restore(to_restore);
        if (p.restore_only) {
            __syncthreads();
            write_x();
            return;
        }
        const ExpandWeights to_expand1 = expand_weights<1>(32 * part), to_expand3 = expand_weights<3>(32 * part);
        __syncthreads();
        write_x();
        expand<1>(to_expand1, 32 * part);
        expand<3>(to_expand3, 32 * part);
        for (int n0 = 32 * (part + OUTPUT_WARPS); n0 < expanded; n0 += 32 * OUTPUT_WARPS) {
            expand<1>(expand_weights<1>(n0), n0);
            expand<3>(expand_weights<3>(n0), n0);
        }
        const SqueezeWeights to_squeeze = squeeze_weights(part);
        __syncthreads();
        squeeze(to_squeeze, part);
        for (int tile = part + OUTPUT_WARPS; tile < squeezed / 8; tile += OUTPUT_WARPS) squeeze(squeeze_weights(tile), tile);
        __syncthreads();
        write_sums();
    }
};

}  // namespace dssnet

#define WNECK_KERNEL(name, type, rows, columns, released, blocks)                                  \
    extern "C" __global__ void __launch_bounds__(dssnet::THREADS, blocks)                          \
        name(const __grid_constant__ dssnet::WneckParams p) {                                      \
        dssnet::Wneck<dssnet::type, dssnet::WneckTile<rows, columns>, released>(p).run();          \
    }

#define WNECK_KERNELS(type)                                          \
    WNECK_KERNEL(wneck_4x8_##type, type, 4, 8, true, 2)              \
    WNECK_KERNEL(wneck_8x8_##type, type, 8, 8, true, 2)              \
    WNECK_KERNEL(wneck_8x16_##type, type, 8, 16, true, 1)            \
    WNECK_KERNEL(wneck_4x8_general_##type, type, 4, 8, false, 2)     \
    WNECK_KERNEL(wneck_8x8_general_##type, type, 8, 8, false, 2)

WNECK_KERNELS(fp16)
WNECK_KERNELS(bf16)
