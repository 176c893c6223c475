// Stage 1: image -> [B, H/8, W/8, width].
//
// Each down-sampler is maxpool2(x) + conv3x3 stride 2 (x), its 1x1 convolution folded into the
// strided one. The first is computed from the image itself: stem and strided convolution are linear
// with nothing between them, so their composition is one 5x5 convolution of stride 2, and the four
// stem outputs under a pooling window lie in the same 5x5 neighbourhood. Nothing at full resolution
// exists outside registers.
#include "memory.cuh"
#include "params.h"

namespace dssnet {

// --- stem and first down-sampler ------------------------------------------------------------------

// The tile of the image as 16-bit numbers, zero outside the image as the convolutions pad. Pixel
// 2 * column0 - 2 begins at number 2 of a row, so that words of uint8 input are aligned.
template <class T, class Colors>
__device__ __forceinline__ void load_image(const StemParams& p, Colors colors, int row0, int column0) {
    using Tile = StemTile;
    const u32 base = shared_address(shared_memory);
    const int words = (2 * (Tile::COLUMNS - 1) * colors + 21) / 4;  // of four numbers
    const int top = 2 * row0 - 2;
    if (!p.float_input) {
        const int first = (2 * column0 - 2) * colors - 2, row_bytes = p.width * colors;
        const u8* image = static_cast<const u8*>(p.image) + u64(blockIdx.z) * p.height * row_bytes;
        for (int i = threadIdx.x; i < Tile::IMAGE_ROWS * words; i += THREADS) {
            const int row = i / words, word = i % words;
            const int y = top + row, byte = first + 4 * word;
            u32 values = 0x80808080;  // 128, which is 0 when normalised
            if (y >= 0 && y < p.height && byte >= 0 && byte < row_bytes) {
                values = load_constant4(image + u64(y) * row_bytes + byte);
            }
            float number[4];
#pragma unroll
            for (int k = 0; k < 4; ++k) {
                number[k] = (float((values >> (8 * k)) & 255) - 128.0f) * (1.0f / 128.0f);
            }
            store_shared8(base + (row * Tile::IMAGE_PITCH + 4 * word) * 2, T::pack(number[0], number[1]),
                          T::pack(number[2], number[3]));
        }
    } else {
        const int pixels = (4 * words - 3 + colors) / colors;
        const float* image = static_cast<const float*>(p.image) + u64(blockIdx.z) * colors * p.height * p.width;
        for (int i = threadIdx.x; i < Tile::IMAGE_ROWS * colors * pixels; i += THREADS) {
            const int row = i / (colors * pixels), rest = i % (colors * pixels);
            const int color = rest / pixels, pixel = rest % pixels;
            const int y = top + row, x = 2 * column0 - 2 + pixel;
            float value = 0.0f;
            if (y >= 0 && y < p.height && x >= 0 && x < p.width) {
                value = image[(u64(color) * p.height + y) * p.width + x];
            }
            const u32 number = T::pack(value, 0.0f);
            const u32 to = base + (row * Tile::IMAGE_PITCH + 2 + pixel * colors + color) * 2;
            asm volatile("st.shared.u16 [%0], %1;" ::"r"(to), "h"(u16(number)) : "memory");
        }
    }
}

// A warp computes 32 pixels of one row. k of its fragments runs along rows of the image: 16 numbers
// from the left end of a pixel's 5x5 neighbourhood, of which the weights use 15 (3 channels) or 5.
template <class T, bool RELEASED>
__device__ __forceinline__ void stem_down(const StemParams& p) {
    using Tile = StemTile;
    const Size<RELEASED ? 3 : 0> colors(p.in_channels);
    const Size<RELEASED ? 32 : 0> channels(p.channels);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, quad = lane % 4;
    const int row0 = blockIdx.y * Tile::ROWS, column0 = blockIdx.x * Tile::COLUMNS;
    load_image<T>(p, colors, row0, column0);
    __syncthreads();

    const int height = p.height / 2, width = p.width / 2, y = row0 + warp;
    if (y >= height) return;
    u32 a[2][5][4];
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int row = 0; row < 5; ++row) {
            const int number = (2 * warp + row) * Tile::IMAGE_PITCH + 2 + 2 * colors * (16 * m + group) + 2 * quad;
            const u32 at = shared_address(shared_memory) + 2 * number;
            a[m][row][0] = load_shared4(at);
            a[m][row][1] = load_shared4(at + 32 * colors);  // eight pixels on
            a[m][row][2] = load_shared4(at + 16);
            a[m][row][3] = load_shared4(at + 16 + 32 * colors);
        }
    }

    const u32 staging = shared_address(shared_memory) + Tile::IMAGE_BYTES + warp * Tile::COLUMNS * channels * 2;
    const auto staged = [&](int pixel, int chunk) {
        // With four chunks a pixel, this order keeps both sides free of bank conflicts.
        const int place = RELEASED ? chunk ^ ((pixel >> 1) & 3) : chunk;
        return staging + pixel * channels * 2 + place * CHUNK;
    };
#pragma unroll 1
    for (int tile = 0; tile < channels / 8; ++tile) {
        float strided[2][4] = {}, stem[2][2][2][4] = {};  // [pixels], [row][column][pixels]
        const u8* weights = static_cast<const u8*>(p.stem) + tile * 3 * 512;
#pragma unroll
        for (int row = 0; row < 3; ++row) {
            u32 b[2][2];
            load_b(b, weights + row * 512, lane);
#pragma unroll
            for (int m = 0; m < 2; ++m) {
#pragma unroll
                for (int column = 0; column < 2; ++column) {
                    T::mma(stem[0][column][m], a[m][1 + row], b[column]);
                    T::mma(stem[1][column][m], a[m][2 + row], b[column]);
                }
            }
        }
#pragma unroll
        for (int row = 0; row < 5; ++row) {
            u32 b[1][2];
            load_b(b, static_cast<const u8*>(p.strided) + (tile * 5 + row) * 256, lane);
#pragma unroll
            for (int m = 0; m < 2; ++m) T::mma(strided[m], a[m][row], b[0]);
        }
        const int channel = 8 * tile + 2 * quad;
        float2 bias = load_float2(p.bias + channel), bias_left = bias;

        // The strided convolution sees zeros, not the stem's extension, one pixel above and to the
        // left of the image: subtract what the 5x5 convolution saw there.
        const u8* border = static_cast<const u8*>(p.border) + tile * 7 * 256;
        if (y == 0) {
            u32 b[1][2];
            load_b(b, border, lane);
#pragma unroll
            for (int m = 0; m < 2; ++m) T::mma(strided[m], a[m][2], b[0]);
            const float2 top = load_float2(p.bias + channels + channel);
            bias.x += top.x, bias.y += top.y;
            bias_left = bias;
        }
        if (column0 == 0) {
            const auto first_pixel = [&](const u32(&from)[4], u32(&to)[4]) {
                to[0] = group == 0 ? from[0] : 0, to[2] = group == 0 ? from[2] : 0, to[1] = to[3] = 0;
            };
            u32 b[1][2], masked[4];
#pragma unroll
            for (int row = 0; row < 5; ++row) {
                load_b(b, border + (1 + row) * 256, lane);
                first_pixel(a[0][row], masked);
                T::mma(strided[0], masked, b[0]);
            }
            const float2 left = load_float2(p.bias + 2 * channels + channel);
            bias_left.x += left.x, bias_left.y += left.y;
            if (y == 0) {
                load_b(b, border + 6 * 256, lane);
                first_pixel(a[0][2], masked);
                T::mma(strided[0], masked, b[0]);
                const float2 corner = load_float2(p.bias + 3 * channels + channel);
                bias_left.x += corner.x, bias_left.y += corner.y;
            }
        }
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int pixel = 16 * m + group + 8 * half;
                const float2 constant = column0 == 0 && pixel == 0 ? bias_left : bias;
                float value[2];
#pragma unroll
                for (int k = 0; k < 2; ++k) {
                    const int e = 2 * half + k;
                    const float pooled = max_or_nan(max_or_nan(stem[0][0][m][e], stem[0][1][m][e]),
                                                    max_or_nan(stem[1][0][m][e], stem[1][1][m][e]));
                    value[k] = pooled + strided[m][e] + (k ? constant.y : constant.x);
                }
                store_shared4(staged(pixel, tile) + 4 * quad, T::pack(value[0], value[1]));
            }
        }
    }
    __syncwarp();
    const int chunks = channels / CHUNK_CHANNELS;
    u8* out = static_cast<u8*>(p.out) + ((u64(blockIdx.z) * height + y) * width + column0) * channels * 2;
    for (int i = lane; i < Tile::COLUMNS * chunks; i += 32) {
        const int pixel = i / chunks, chunk = i % chunks;
        if (column0 + pixel < width) store_global16(out + i * CHUNK, load_shared16(staged(pixel, chunk)));
    }
}

// --- the other down-samplers ----------------------------------------------------------------------

// A warp computes two rows of eight pixels. The tile's even and odd columns lie apart in shared
// memory, so that neighbours in the result, two columns apart in the input, are neighbours there.
template <class T, bool RELEASED>
__device__ __forceinline__ void down(const DownParams& p) {
    using Tile = DownTile;
    constexpr int N = RELEASED ? 4 : 2;
    const Size<RELEASED ? 32 : 0> channels(p.channels);
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, quad = lane % 4;
    const int row0 = blockIdx.y * Tile::ROWS, column0 = blockIdx.x * Tile::COLUMNS;
    const int chunks = channels / CHUNK_CHANNELS, pixel = pixel_bytes(channels);
    const u32 base = shared_address(shared_memory);
    const auto place = [](int row, int column) {
        return row * Tile::ROW_PLACES + column % 2 * Tile::ODD_PLACE + column / 2;
    };

    const int in_height = 2 * p.height, in_width = 2 * p.width;
    const u8* in = static_cast<const u8*>(p.in) + u64(blockIdx.z) * in_height * in_width * channels * 2;
    constexpr int PIXELS = Tile::IN_ROWS * Tile::IN_COLUMNS;
    for (int i = threadIdx.x; i < copy_items(PIXELS, chunks); i += Tile::THREADS) {
        const int chunk = copied_chunk(i, chunks), at = copied_pixel(i, chunks);
        const int row = at / Tile::IN_COLUMNS, column = at % Tile::IN_COLUMNS;
        if (at >= PIXELS) break;
        const int y = 2 * row0 - 1 + row, x = 2 * column0 - 1 + column;
        const bool inside = y >= 0 && y < in_height && x >= 0 && x < in_width;
        const u64 from = inside ? ((u64(y) * in_width + x) * chunks + chunk) * CHUNK : 0;
        copy_chunk_async(base + place(row, column) * pixel + chunk * CHUNK, in + from, inside);
    }
    wait_for_copies();
    __syncthreads();

    const int steps = channels / 16;
    const u32 rows = base + place(2 * (2 * warp + lane % 16 / 8), 2 * (lane % 8)) * pixel + lane / 16 * CHUNK;
    for (int n0 = 0; n0 < channels / 8; n0 += N) {
        float sum[N][4];
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const float2 bias = load_float2(p.bias + 8 * n0 + 2 * N * quad + 2 * n);
            sum[n][0] = sum[n][2] = bias.x, sum[n][1] = sum[n][3] = bias.y;
        }
        Ahead<N, RELEASED ? 2 : 1> b(static_cast<const u8*>(p.weights) + n0 * 9 * steps * 256, 9 * steps, lane);
#pragma unroll 1
        for (int tap_row = 0; tap_row < 3; ++tap_row) {
#pragma unroll
            for (int tap_column = 0; tap_column < 3; ++tap_column) {
                const u32 at = rows + place(tap_row, tap_column) * pixel;
#pragma unroll
                for (int k = 0; k < steps; ++k) {
                    const int slot = RELEASED ? k : 0;
                    u32 a[4];
                    load_a(a, at + 32 * k);
#pragma unroll
                    for (int n = 0; n < N; ++n) T::mma(sum[n], a, b.ring[slot][n]);
                    b.refill(slot);
                    if (slot == b.LAST) b.advance();
                }
            }
        }
        // The packed order of outputs gives a lane 2 N neighbouring channels.
        const u32 offset = (8 * n0 + 2 * N * quad) * 2;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const int row = 2 * warp + half, column = group;
            u32 pooled[N], other[N];
            load_shared(pooled, base + place(2 * row + 1, 2 * column + 1) * pixel + offset);
#pragma unroll
            for (int k = 1; k < 4; ++k) {
                load_shared(other, base + place(2 * row + 1 + k / 2, 2 * column + 1 + k % 2) * pixel + offset);
#pragma unroll
                for (int n = 0; n < N; ++n) pooled[n] = T::max2(pooled[n], other[n]);
            }
#pragma unroll
            for (int n = 0; n < N; ++n) {
                const float2 most = T::unpack(pooled[n]);
                pooled[n] = T::pack(sum[n][2 * half] + most.x, sum[n][2 * half + 1] + most.y);
            }
            const int y = row0 + row, x = column0 + column;
            if (y < p.height && x < p.width) {
                u8* out = static_cast<u8*>(p.out) + ((u64(blockIdx.z) * p.height + y) * p.width + x) * channels * 2;
                store_global(out + offset, pooled);
            }
        }
    }
}

}  // namespace dssnet

#define DOWNSAMPLE_KERNELS(type)                                                                                 \
    extern "C" __global__ void __launch_bounds__(dssnet::THREADS, 2)                                            \
        stem_down_##type(const __grid_constant__ dssnet::StemParams p) {                                        \
        dssnet::stem_down<dssnet::type, true>(p);                                                               \
    }                                                                                                           \
    extern "C" __global__ void __launch_bounds__(dssnet::THREADS, 2)                                            \
        stem_down_general_##type(const __grid_constant__ dssnet::StemParams p) {                                \
        dssnet::stem_down<dssnet::type, false>(p);                                                              \
    }                                                                                                           \
    extern "C" __global__ void __launch_bounds__(dssnet::DownTile::THREADS)                                     \
        down_##type(const __grid_constant__ dssnet::DownParams p) {                                             \
        dssnet::down<dssnet::type, true>(p);                                                                    \
    }                                                                                                           \
    extern "C" __global__ void __launch_bounds__(dssnet::DownTile::THREADS)                                     \
        down_general_##type(const __grid_constant__ dssnet::DownParams p) {                                     \
        dssnet::down<dssnet::type, false>(p);                                                                   \
    }

DOWNSAMPLE_KERNELS(fp16)
DOWNSAMPLE_KERNELS(bf16)
