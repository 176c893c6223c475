// What host and kernels agree on: parameter blocks, tile sizes, layouts of shared memory.
//
// Maps between kernels are NHWC in 16-bit numbers, channels padded with zeros to a multiple of 16.
// "Cells" are positions at 1/8 resolution. Every kernel takes one of these structs by value.
#pragma once

#ifdef __CUDACC__
#define DSSNET_SHARED_CODE __host__ __device__
#else
#define DSSNET_SHARED_CODE
#endif

namespace dssnet {

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / 32;

DSSNET_SHARED_CODE constexpr int round_up(int value, int to) { return (value + to - 1) / to * to; }

// Bytes from one pixel to the next in shared memory: an odd number of 16-byte chunks, so that eight
// neighbours lie in different banks.
DSSNET_SHARED_CODE constexpr int pixel_bytes(int channels) { return (channels / 8 | 1) * 16; }

// Bytes from one row of `columns` pixels to the next such that runs of eight pixels of a block
// `used` columns wide lie in different banks where they wrap into the next row, too.
DSSNET_SHARED_CODE constexpr int row_bytes(int columns, int used, int pixel) {
    return columns * pixel + (used * pixel - columns * pixel % 128) % 128;
}

// --- stem and first down-sampler ------------------------------------------------------------------

struct StemParams {
    const void* image;    // u8 [B, H, W, C] or float32 [B, C, H, W], (value - 128) / 128
    void* out;            // [B, H/2, W/2, channels]
    const void* stem;     // packed, k = 3 rows of 16, n = (8-channel tile, column parity, channel)
    const void* strided;  // packed, k = 5 rows of 16, n = channels
    const void* border;   // packed, k = (top, 5 rows of left, corner) of 16, n = channels
    const float* bias;    // [4, channels]: everywhere, top, left, corner
    int height, width;    // of the image
    int in_channels;
    int channels;  // of the result, padded
    int float_input;
};

struct StemTile {
    static constexpr int ROWS = 8, COLUMNS = 32;  // of the result; a warp computes one row
    static constexpr int IMAGE_ROWS = 2 * ROWS + 3;
    static constexpr int IMAGE_PITCH = 208;  // numbers; 2 * 32 + 4 pixels of 3 channels and 2 before
    static constexpr int IMAGE_BYTES = IMAGE_ROWS * IMAGE_PITCH * 2;
    static DSSNET_SHARED_CODE constexpr int shared_bytes(int channels) {
        return IMAGE_BYTES + ROWS * COLUMNS * channels * 2;
    }
};

// --- the other down-samplers ----------------------------------------------------------------------

struct DownParams {
    const void* in;    // [B, 2 * height, 2 * width, channels]
    void* out;         // [B, height, width, channels]
    const void* weights;  // packed, k = 9 taps of channels, n = channels
    const float* bias;    // [channels]
    int height, width;    // of the result
    int channels;
};

struct DownTile {
    static constexpr int THREADS = 128;
    static constexpr int ROWS = 8, COLUMNS = 8;
    static constexpr int IN_ROWS = 2 * ROWS + 1, IN_COLUMNS = 2 * COLUMNS + 1;
    // Even columns, then odd ones; 12 places on, so that a row of both is free of bank conflicts.
    static constexpr int ODD_PLACE = 12, ROW_PLACES = ODD_PLACE + COLUMNS;
    static DSSNET_SHARED_CODE constexpr int shared_bytes(int channels) {
        return IN_ROWS * ROW_PLACES * pixel_bytes(channels);
    }
};

// --- W-NECK chain ---------------------------------------------------------------------------------
// One launch restores block k - 1 and computes block k up to its squeezed map; the first computes
// the head convolution in place of a restored block, the last restores only.
//
// A tile's squeezed map is a partial sum: what the tile's own expanded cells contribute to the
// cells of the tile and of the ring around it. So expanded channels are computed once, never in a
// halo, and the next launch adds up to four contributions a cell.

struct WneckParams {
    const void* x_in;   // [B, height, width, features]; null for the head
    void* x_out;        // [B, height, width, features]
    const void* u_in;   // head: [B, height, width, squeezed]; else partial sums as u_out
    void* u_out;        // [B, tile rows, tile columns, (ROWS + 2) * (COLUMNS + 2), squeezed]
    const void* restore;   // packed, k = 9 taps of u channels, n = features
    const void* expand1;   // packed, k = features, n = expanded
    const void* expand3;   // packed, k = 9 taps of features, n = expanded
    const void* squeeze;   // packed, k = 2 * expanded, n = (8-channel tile, 9 taps, channel)
    const float* restore_bias;  // [features]
    const float* expand_bias;   // [2, expanded]
    const float* u_bias;        // [u channels]; null for the head
    const float* slope;         // of the PReLU, [1]
    int height, width;
    int tile_columns, tile_rows;
    int u_channels;  // of u_in
    int features, expanded, squeezed;  // padded
    int restore_only;
};

template <int ROWS_, int COLUMNS_>
struct WneckTile {
    static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_, CELLS = ROWS * COLUMNS;
    static constexpr int X_ROWS = ROWS + 2, X_COLUMNS = COLUMNS + 2, X_CELLS = X_ROWS * X_COLUMNS;
    static constexpr int U_ROWS = ROWS + 4, U_COLUMNS = COLUMNS + 4, U_CELLS = U_ROWS * U_COLUMNS;

    static DSSNET_SHARED_CODE constexpr int u_row_bytes(int u_channels) {
        return row_bytes(U_COLUMNS, X_COLUMNS, pixel_bytes(u_channels));
    }
    // Partial sums in float32, [8-channel tile][ring and tile][8]; the step between tiles keeps
    // the four of a cell in different banks.
    static constexpr int SUM_BYTES = round_up(X_CELLS * 32, 128) + 32;

    // Two regions, each used twice: x, then the sums; u, then the expanded map.
    static DSSNET_SHARED_CODE constexpr int first_bytes(int features, int squeezed) {
        const int x = X_CELLS * pixel_bytes(features), sums = squeezed / 8 * SUM_BYTES;
        return round_up(x > sums ? x : sums, 128);
    }
    static DSSNET_SHARED_CODE constexpr int shared_bytes(int u_channels, int features, int expanded,
                                                         int squeezed) {
        const int u = U_ROWS * u_row_bytes(u_channels), z = CELLS * pixel_bytes(2 * expanded);
        return first_bytes(features, squeezed) + (u > z ? u : z);
    }
};

// --- FFM and the convolution after it -------------------------------------------------------------

constexpr int HEAD_CHANNELS = 32;  // of y

struct FuseParams {
    const void* shallow;  // [B, height, width, features]
    const void* deep;     // [B, height, width, features]
    void* y;              // [B, 4 * height, 4 * width, 32]
    const void* mix;      // packed, k = (shallow, deep) features, n = fused (times 16 when shuffled)
    const void* smooth;   // packed, see csrc/cuda/fuse.cu
    const void* reduce;   // packed, see csrc/cuda/fuse.cu
    const float* mix_bias;
    const float* smooth_bias;
    const float* reduce_bias;  // [32]
    const float* slopes;       // of the PReLUs after mix, smooth and reduce
    int height, width;  // in cells
    int features;       // padded
    int fused;          // 2 * features without padding, padded
};

// Nearest-neighbour FFM. `VALUES` channels of the 3 x 3 values a cell are held at a time.
struct NearestTile {
    static constexpr int ROWS = 4, COLUMNS = 8, CELLS = ROWS * COLUMNS;
    static constexpr int G_ROWS = ROWS + 2, G_COLUMNS = COLUMNS + 2, G_CELLS = G_ROWS * G_COLUMNS;
    // Neighbours are read at fixed distances, so cells beyond both ends are read, never used.
    static constexpr int G_BEFORE = G_COLUMNS + 1, G_PADDED = round_up(G_CELLS, 16);
    static constexpr int G_STORED = G_BEFORE + G_PADDED + G_COLUMNS + 1;
    static constexpr int V_ROWS = 3 * ROWS + 2, V_COLUMNS = 3 * COLUMNS + 2;
    static constexpr int Y_CELL_BYTES = 80, Y_PLANE_BYTES = CELLS * Y_CELL_BYTES + 64;

    static DSSNET_SHARED_CODE constexpr int shared_bytes(int features, int fused, int values) {
        const int in = G_CELLS * pixel_bytes(2 * features);
        const int v = V_ROWS * V_COLUMNS * pixel_bytes(values), y = 16 * Y_PLANE_BYTES;
        const int largest = in > v ? (in > y ? in : y) : (v > y ? v : y);
        return G_STORED * pixel_bytes(fused) + largest;
    }
};

// Learned (pixel shuffle) FFM; sizes are of pixels at 1/2 resolution.
template <int ROWS_, int COLUMNS_>
struct ShuffleTile {
    static constexpr int ROWS = ROWS_, COLUMNS = COLUMNS_, PIXELS = ROWS * COLUMNS;
    static constexpr int M_ROWS = ROWS + 4, M_COLUMNS = COLUMNS + 4;
    static constexpr int S_ROWS = ROWS + 2, S_COLUMNS = COLUMNS + 2, S_PIXELS = S_ROWS * S_COLUMNS;
    static constexpr int CELL_ROWS = ROWS / 4 + 2, CELL_COLUMNS = COLUMNS / 4 + 2;

    static DSSNET_SHARED_CODE constexpr int m_row_bytes(int fused) {
        return row_bytes(M_COLUMNS, S_COLUMNS, pixel_bytes(fused));
    }
    static DSSNET_SHARED_CODE constexpr int shared_bytes(int features, int fused) {
        const int in = CELL_ROWS * CELL_COLUMNS * pixel_bytes(2 * features);
        const int s = S_PIXELS * pixel_bytes(fused);
        return M_ROWS * m_row_bytes(fused) + (in > s ? in : s);
    }
};

// --- segmentation head ----------------------------------------------------------------------------

constexpr int TAIL_CHANNELS = 24;  // 20, padded
constexpr int LABELS = 0, PROBABILITIES = 1, LOGITS = 2;

struct SegmentParams {
    const void* y;       // [B, height, width, 32]
    void* answer;        // u8 [B, 2H, 2W] or float32 [B, 2H, 2W, classes]
    const void* narrow;  // packed, k = 9 taps of 32, n = 24
    const void* tail;    // packed, k = 9 taps of 24, n = outputs
    const void* border;  // packed, k = (3 top, 3 bottom, 3 left, 3 right, 4 corners) of 24, n = outputs
    const float* narrow_bias;  // [24]
    const float* tail_bias;    // [9, outputs]: everywhere, top, bottom, left, right, 4 corners
    const float* slope;        // of the PReLU after narrow, [1]
    int height, width;  // of y
    int classes;
    int outputs;  // 4 * classes, order (sub-row, sub-column, class), padded to 8 or a multiple of 16
    int form;     // LABELS, PROBABILITIES or LOGITS
};

struct SegmentTile {
    static constexpr int ROWS = 16, COLUMNS = 16, PIXELS = ROWS * COLUMNS;
    static constexpr int Y_ROWS = ROWS + 4, Y_COLUMNS = COLUMNS + 4;
    static constexpr int N_ROWS = ROWS + 2, N_COLUMNS = COLUMNS + 2, N_PIXELS = N_ROWS * N_COLUMNS;
    static constexpr int Y_ROW_BYTES = row_bytes(Y_COLUMNS, N_COLUMNS, pixel_bytes(HEAD_CHANNELS));
    static constexpr int N_BYTES = N_PIXELS * pixel_bytes(TAIL_CHANNELS);

    // Numbers from one pixel's logits to the next, odd multiples of 8 apart in banks.
    static DSSNET_SHARED_CODE constexpr int logits_pitch(int outputs) { return outputs + 8 * (outputs % 16 == 0); }
    static DSSNET_SHARED_CODE constexpr int shared_bytes(int outputs) {
        const int y = Y_ROWS * Y_ROW_BYTES, logits = PIXELS * logits_pitch(outputs) * 4;
        return N_BYTES + (y > logits ? y : logits);
    }
};

}  // namespace dssnet
