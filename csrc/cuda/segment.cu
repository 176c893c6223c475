// Stage 4: [B, H/2, W/2, 32] -> labels, probabilities or logits at full resolution.
//
// A 3x3 convolution and PReLU; then nearest x2 and two 3x3 convolutions with nothing between them,
// composed into one 3x3 convolution to 4 * classes channels at 1/2 resolution, whose outputs are the
// sub-pixels. The second of the two pads zeros where the composed kernel sees the first one's
// extension: what it sees there is a linear function of the outermost row or column and is
// subtracted.
#include "memory.cuh"
#include "params.h"

namespace dssnet {

// 8 * N outputs at a time.
template <class T, int N>
struct Segment {
    using Tile = SegmentTile;
    static constexpr int Y_PIXEL = pixel_bytes(HEAD_CHANNELS), N_PIXEL = pixel_bytes(TAIL_CHANNELS);
    static constexpr int Y_STEPS = HEAD_CHANNELS / 16, OUT = TAIL_CHANNELS / 8;
    using NarrowWeights = Ahead<OUT, Y_STEPS>;
    static constexpr int TAP_BYTES = N * (256 + 128);  // of packed weights: k = 16 and k = 8

    const SegmentParams& p;
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, group = lane / 4, quad = lane % 4;
    const int row0 = blockIdx.y * Tile::ROWS, column0 = blockIdx.x * Tile::COLUMNS;
    const int pitch = Tile::logits_pitch(p.outputs) * 4;
    const u32 narrowed = shared_address(shared_memory);  // then labels
    const u32 second = narrowed + Tile::N_BYTES;         // y, then logits

    __device__ __forceinline__ explicit Segment(const SegmentParams& p) : p(p) {}

    __device__ __forceinline__ bool in_image(int row, int column) const {
        const int y = row0 + row, x = column0 + column;
        return y >= 0 && y < p.height && x >= 0 && x < p.width;
    }

    __device__ __forceinline__ void load() const {
        constexpr int CHUNKS = HEAD_CHANNELS / CHUNK_CHANNELS;
        static_assert(Tile::Y_ROWS * Tile::Y_COLUMNS % 8 == 0);
        for (int i = threadIdx.x; i < Tile::Y_ROWS * Tile::Y_COLUMNS * CHUNKS; i += THREADS) {
            const int chunk = copied_chunk(i, CHUNKS), pixel = copied_pixel(i, CHUNKS);
            const int row = pixel / Tile::Y_COLUMNS, column = pixel % Tile::Y_COLUMNS;
            const bool inside = in_image(row - 2, column - 2);
            const u64 index = (u64(blockIdx.z) * p.height + row0 + row - 2) * p.width + column0 + column - 2;
            copy_chunk_async(second + row * Tile::Y_ROW_BYTES + column * Y_PIXEL + chunk * CHUNK,
                             static_cast<const u8*>(p.y) + (inside ? (index * CHUNKS + chunk) * CHUNK : 0), inside);
        }
    }

    // PReLU(conv(y)) for the tile and a ring of one pixel; zero outside the image.
    __device__ __forceinline__ void narrow(NarrowWeights b) const {
        constexpr int TILES = round_up(Tile::N_PIXELS, 16) / 16, M = (TILES + WARPS - 1) / WARPS;
        if (warp * M >= TILES) return;
        const float slope = *p.slope;
        u32 at[M];
#pragma unroll
        for (int m = 0; m < M; ++m) {
            const int pixel = (warp * M + m) * 16 + lane % 16;
            const int mine = pixel < Tile::N_PIXELS ? pixel : Tile::N_PIXELS - 1;
            at[m] = second + mine / Tile::N_COLUMNS * Tile::Y_ROW_BYTES + mine % Tile::N_COLUMNS * Y_PIXEL + lane / 16 * CHUNK;
        }
        float sum[M][OUT][4];
#pragma unroll
        for (int n = 0; n < OUT; ++n) {
            const float2 bias = load_float2(p.narrow_bias + 8 * n + 2 * quad);
#pragma unroll
            for (int m = 0; m < M; ++m) {
                sum[m][n][0] = sum[m][n][2] = bias.x, sum[m][n][1] = sum[m][n][3] = bias.y;
            }
        }
#pragma unroll 1
        for (int tap_row = 0; tap_row < 3; ++tap_row) {
#pragma unroll
            for (int tap_column = 0; tap_column < 3; ++tap_column) {
#pragma unroll
                for (int k = 0; k < Y_STEPS; ++k) {
#pragma unroll
                    for (int m = 0; m < M; ++m) {
                        u32 a[4];
                        load_a(a, at[m] + tap_row * Tile::Y_ROW_BYTES + tap_column * Y_PIXEL + 32 * k);
#pragma unroll
                        for (int n = 0; n < OUT; ++n) T::mma(sum[m][n], a, b.ring[k][n]);
                    }
                    b.refill(k);
                    if (k == b.LAST) b.advance();
                }
            }
        }
#pragma unroll
        for (int m = 0; m < M; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int pixel = (warp * M + m) * 16 + group + 8 * half;
                if (pixel >= Tile::N_PIXELS) continue;
                const bool inside = in_image(pixel / Tile::N_COLUMNS - 1, pixel % Tile::N_COLUMNS - 1);
#pragma unroll
                for (int n = 0; n < OUT; ++n) {
                    const float low = prelu(sum[m][n][2 * half], slope), high = prelu(sum[m][n][2 * half + 1], slope);
                    store_shared4(narrowed + pixel * N_PIXEL + (8 * n + 2 * quad) * 2, inside ? T::pack(low, high) : 0);
                }
            }
        }
    }

    // One tap of the composed convolution, for the pixels `low` (row `group` of the fragment) and
    // `high` (row `group` + 8) of one row of 16.
    __device__ __forceinline__ void tap(float (&sum)[N][4], u32 at, const u32 (&b)[N][2], const u32 (&b8)[N], bool low,
                                        bool high) const {
        u32 a[4], a8[2];
        load_a(a, at);
        load_a8(a8, at + 32);
        if (!low) a[0] = a[2] = a8[0] = 0;
        if (!high) a[1] = a[3] = a8[1] = 0;
#pragma unroll
        for (int n = 0; n < N; ++n) {
            T::mma(sum[n], a, b[n]);
            T::mma8(sum[n], a8, b8[n]);
        }
    }

    // Corrections of one kind, `count` taps, for the pixels at that border.
    __device__ __forceinline__ void correct(float (&sum)[N][4], u32 at, u32 step, int count, const u8* weights,
                                            const float* bias, bool low, bool high) const {
        for (int i = 0; i < count; ++i) {
            u32 b[N][2], b8[N];
            load_b(b, weights + i * TAP_BYTES, lane);
            load_b8(b8, weights + i * TAP_BYTES + N * 256, lane);
            tap(sum, at + i * step, b, b8, low, high);
        }
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const float2 constant = load_float2(bias + 8 * n + 2 * quad);
            if (low) sum[n][0] += constant.x, sum[n][1] += constant.y;
            if (high) sum[n][2] += constant.x, sum[n][3] += constant.y;
        }
    }

    // Logits of two rows of 16 pixels, outputs n0 ... n0 + 8 N.
    __device__ __forceinline__ void tail(float (&sum)[2][N][4], int n0) const {
        const u8* weights = static_cast<const u8*>(p.tail) + n0 / (8 * N) * 9 * TAP_BYTES;
        const u32 at = narrowed + (2 * warp * Tile::N_COLUMNS + lane % 16) * N_PIXEL + lane / 16 * CHUNK;
#pragma unroll
        for (int n = 0; n < N; ++n) {
            const float2 bias = load_float2(p.tail_bias + n0 + 8 * n + 2 * quad);
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                sum[m][n][0] = sum[m][n][2] = bias.x, sum[m][n][1] = sum[m][n][3] = bias.y;
            }
        }
#pragma unroll
        for (int i = 0; i < 9; ++i) {
            u32 b[N][2], b8[N];
            load_b(b, weights + i * TAP_BYTES, lane);
            load_b8(b8, weights + i * TAP_BYTES + N * 256, lane);
#pragma unroll
            for (int m = 0; m < 2; ++m) {
                tap(sum[m], at + ((m + i / 3) * Tile::N_COLUMNS + i % 3) * N_PIXEL, b, b8, true, true);
            }
        }
        const u8* border = static_cast<const u8*>(p.border) + n0 / (8 * N) * 16 * TAP_BYTES;
        const bool left = column0 == 0, right = column0 + Tile::COLUMNS >= p.width;
        const bool low_left = left && group == 0;
        const bool low_right = column0 + group == p.width - 1, high_right = column0 + group + 8 == p.width - 1;
#pragma unroll
        for (int m = 0; m < 2; ++m) {
            const int y = row0 + 2 * warp + m;
            const bool top = y == 0, bottom = y == p.height - 1;
            const u32 centre = at + ((m + 1) * Tile::N_COLUMNS + 1) * N_PIXEL;
            const auto bias = [&](int kind) { return p.tail_bias + kind * p.outputs + n0; };
            const u32 row = Tile::N_COLUMNS * N_PIXEL;
            if (top) correct(sum[m], centre - N_PIXEL, N_PIXEL, 3, border, bias(1), true, true);
            if (bottom) correct(sum[m], centre - N_PIXEL, N_PIXEL, 3, border + 3 * TAP_BYTES, bias(2), true, true);
            if (left) correct(sum[m], centre - row, row, 3, border + 6 * TAP_BYTES, bias(3), low_left, false);
            if (right) correct(sum[m], centre - row, row, 3, border + 9 * TAP_BYTES, bias(4), low_right, high_right);
            if (top && left) correct(sum[m], centre, 0, 1, border + 12 * TAP_BYTES, bias(5), low_left, false);
            if (top && right) correct(sum[m], centre, 0, 1, border + 13 * TAP_BYTES, bias(6), low_right, high_right);
            if (bottom && left) correct(sum[m], centre, 0, 1, border + 14 * TAP_BYTES, bias(7), low_left, false);
            if (bottom && right) correct(sum[m], centre, 0, 1, border + 15 * TAP_BYTES, bias(8), low_right, high_right);
        }
    }

    // Two classes, one tile of outputs: a lane holds both logits of one sub-pixel of its pixels.
    __device__ __forceinline__ void label_two(const float (&sum)[2][N][4]) const {
        __syncthreads();
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int row = 2 * (2 * warp + m) + quad / 2, column = 2 * (group + 8 * half) + quad % 2;
                store_label(row, column, sum[m][0][2 * half + 1] > sum[m][0][2 * half]);
            }
        }
    }

    __device__ __forceinline__ void store_label(int row, int column, u32 label) const {
        const u32 to = narrowed + row * 2 * Tile::COLUMNS + column;
        asm volatile("st.shared.u8 [%0], %1;" ::"r"(to), "r"(label) : "memory");
    }

    __device__ __forceinline__ float logit(u32 address) const { return __uint_as_float(load_shared4(address)); }

    // Labels, or probabilities in place of logits, of any number of classes.
    __device__ __forceinline__ void decide() const {
        for (int i = threadIdx.x; i < 4 * Tile::PIXELS; i += THREADS) {
            const int pixel = i / 4, sub = i % 4;
            const u32 at = second + pixel * pitch + sub * p.classes * 4;
            float most = logit(at);
            u32 label = 0;
            for (int c = 1; c < p.classes; ++c) {
                const float value = logit(at + 4 * c);
                // As torch.argmax: the first of equals, and NaN above all.
                if (value > most || (value != value && most == most)) most = value, label = c;
            }
            if (p.form == LABELS) {
                store_label(pixel / Tile::COLUMNS * 2 + sub / 2, pixel % Tile::COLUMNS * 2 + sub % 2, label);
            } else {
                float total = 0.0f;
                for (int c = 0; c < p.classes; ++c) total += __expf(logit(at + 4 * c) - most);
                for (int c = 0; c < p.classes; ++c) {
                    store_shared4(at + 4 * c, __float_as_uint(__expf(logit(at + 4 * c) - most) / total));
                }
            }
        }
    }

    __device__ __forceinline__ void write_labels() const {
        const int row = threadIdx.x / 8, column = threadIdx.x % 8 * 4;  // four labels a thread
        if (!in_image(row / 2, column / 2)) return;
        const u64 to = (u64(blockIdx.z) * 2 * p.height + 2 * row0 + row) * 2 * p.width + 2 * column0 + column;
        *reinterpret_cast<u32*>(static_cast<u8*>(p.answer) + to) = load_shared4(narrowed + row * 2 * Tile::COLUMNS + column);
    }

    __device__ __forceinline__ void write_numbers() const {
        const int row_numbers = 2 * Tile::COLUMNS * p.classes;
        for (int i = threadIdx.x; i < 2 * Tile::ROWS * row_numbers; i += THREADS) {
            const int row = i / row_numbers, column = i % row_numbers / p.classes, c = i % p.classes;
            if (!in_image(row / 2, column / 2)) continue;
            const u32 from = second + (row / 2 * Tile::COLUMNS + column / 2) * pitch + ((row % 2 * 2 + column % 2) * p.classes + c) * 4;
            const u64 pixel = (u64(blockIdx.z) * 2 * p.height + 2 * row0 + row) * 2 * p.width + 2 * column0 + column;
            static_cast<float*>(p.answer)[pixel * p.classes + c] = logit(from);
        }
    }

    __device__ __forceinline__ void run() const {
        static_assert(2 * Tile::COLUMNS * 2 * Tile::ROWS == 4 * THREADS && Tile::COLUMNS == 16 && Tile::ROWS == 2 * WARPS);
        load();
        const NarrowWeights to_narrow(p.narrow, 9 * Y_STEPS, lane);
        wait_for_copies();
        __syncthreads();
        narrow(to_narrow);
        __syncthreads();
        float sum[2][N][4];
        if (N == 1 && p.form == LABELS) {
            tail(sum, 0);
            label_two(sum);
        } else {
            for (int n0 = 0; n0 < p.outputs; n0 += 8 * N) {
                tail(sum, n0);
#pragma unroll
                for (int m = 0; m < 2; ++m) {
#pragma unroll
                    for (int n = 0; n < N; ++n) {
                        const int pixel = (2 * warp + m) * Tile::COLUMNS + group;
                        const u32 to = second + pixel * pitch + (n0 + 8 * n + 2 * quad) * 4;
                        store_shared_float2(to, make_float2(sum[m][n][0], sum[m][n][1]));
                        store_shared_float2(to + 8 * pitch, make_float2(sum[m][n][2], sum[m][n][3]));
                    }
                }
            }
            __syncthreads();
            if (p.form != LOGITS) decide();
        }
        __syncthreads();
        if (p.form == LABELS) {
            write_labels();
        } else {
            write_numbers();
        }
    }
};

}  // namespace dssnet

// For 2 classes, and for more.
#define SEGMENT_KERNELS(type)                                                   \
    extern "C" __global__ void __launch_bounds__(dssnet::THREADS, 2)            \
        segment_two_##type(const __grid_constant__ dssnet::SegmentParams p) {   \
        dssnet::Segment<dssnet::type, 1>(p).run();                              \
    }                                                                           \
    extern "C" __global__ void __launch_bounds__(dssnet::THREADS, 2)            \
        segment_##type(const __grid_constant__ dssnet::SegmentParams p) {       \
        dssnet::Segment<dssnet::type, 2>(p).run();                              \
    }

SEGMENT_KERNELS(fp16)
SEGMENT_KERNELS(bf16)
