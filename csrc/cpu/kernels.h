// What the stages ask of an instruction set: a table of functions over plain pointers and sizes.
//
// Everything is laid out for vectors whose lanes are cells, the 8x8 pixels behind one pixel of the
// maps at 1/8 resolution. A row of a map with q columns a cell is [phase][group][cells], where phase
// is the column within the cell and group a 32-bit word of channels: one in float32, two in
// bfloat16, four in int8. So a convolution reads any neighbour with the same vector load, shifted by
// at most one cell, and broadcasts weights: no channel count wastes lanes, strides of 2 included.
//
// Each run of cells is preceded and followed by PAD words of zeros, which stand for what lies
// outside the image; cells of a last, partly filled unit are zero, too.
#pragma once

#include <cstddef>
#include <cstdint>

#include "rates.h"

namespace dssnet::cpu {

constexpr int UNIT = 16;         // cells that are always computed together
constexpr int PAD = 16;          // words before and after each run of cells: one would do, but 64 bytes keep alignment
constexpr int WIDEST_BLOCK = 16; // outputs that any instruction set computes together, at most
constexpr int WIDEST_PANEL = 48; // outputs whose sums wait for each other, at most: all of a word end together
constexpr int PHASES = 8;        // columns of an image in a cell

constexpr int TILE = 16;         // words in a row of a tile, and rows of it, at most

// wide_bf16: values of bfloat16 as float32, for processors that multiply nothing narrower, or not faster.
enum class Type { f32, bf16, i8, wide_bf16 };
constexpr int TYPES = 4;

// `static`, for every file that includes this is compiled for another instruction set: a shared copy
// could be one that this processor cannot run.
static constexpr int channels_per_word(Type type) {
    return type == Type::bf16 ? 2 : type == Type::i8 ? 4 : 1;
}

// Four channels of zero: int8 values q are stored as q + 128, unsigned.
static constexpr uint32_t zero_word(Type type) { return type == Type::i8 ? 0x80808080u : 0u; }

static constexpr int words_for(int channels, Type type) {
    return (channels + channels_per_word(type) - 1) / channels_per_word(type);
}

// Kernels that multiply tiles take groups in equal steps of at most TILE. Where these do not add up, the last step
// begins early, and weights that were met before are zero: nothing beyond the last group is read.
static constexpr int tile_steps(int groups) { return (groups + TILE - 1) / TILE; }
static constexpr int tile_groups(int groups) { return (groups + tile_steps(groups) - 1) / tile_steps(groups); }
static constexpr int tile_begin(int groups, int step_groups, int step) {
    return (step + 1) * step_groups <= groups ? step * step_groups : groups - step_groups;
}

// Winograd's form of 3x3 convolutions gives four rows at once, from six, and across `pairs` of cells or the four columns of
// `cells`. So many parts are multiplied, each by weights of its own.
enum class Form { direct, pairs, cells };
static constexpr int parts_of(Form form) { return form == Form::pairs ? 24 : form == Form::cells ? 36 : 1; }
constexpr int WINOGRAD_PANEL = 24;  // outputs of a panel, at most: sums of all parts stay in a near cache

// Words of a map in a part: int8 becomes whole numbers of 16 bits.
static constexpr int part_words(Type type) { return type == Type::i8 ? 2 : 1; }

// What a convolution in Winograd's form needs beside its maps: parts, their sums, and the results of a panel.
static constexpr size_t winograd_scratch_words(Form form, Type type, int groups, int part_lanes) {
    return (size_t(parts_of(form)) * (groups * part_words(type) + WINOGRAD_PANEL) + 16 * WINOGRAD_PANEL) * part_lanes;
}

// What a convolution reads for one row of outputs: lines times taps words for each group and cell.
struct Window {
    const uint32_t* const* lines;  // cell 0 of group 0
    int line_count;
    const ptrdiff_t* taps;  // words from there to the neighbour
    int tap_count;
    int groups;
    ptrdiff_t group_stride;  // words
};

// Packed weights; see `Convolution`.
struct Weights {
    const uint32_t* words;     // [block][line][group][tap][output of the block], or in tiles; in Winograd's form [panel]
                               // [part][block][group][output of the block]
    bool tiles;                // [block][line][tap][step][output of the block][group of the step]
    const int32_t* start;      // int8: what sums start from, for inputs are 128 too large; else null
    const int* block_sizes;    // outputs of each block
    const int* panel_blocks;   // blocks of each panel; outputs of all but the last are whole words
    int panel_count;
    size_t words_per_output;   // lines * groups * taps, or parts * groups; in tiles the groups of all steps
};

// What happens to sums: scale, bias, addend, PReLU; then they are kept, packed, or both.
struct Finish {
    const float* scale = nullptr;  // [outputs], int8 only
    const float* bias = nullptr;   // [outputs] or none
    const float* addend = nullptr; // [outputs][cells] or none
    ptrdiff_t addend_stride = 0;
    float slope = 1;               // of the PReLU; 1 is none
    float* kept = nullptr;         // [outputs][cells] or none
    ptrdiff_t kept_stride = 0;
    bool maximum = false;          // keep the larger of this and what is there
    uint32_t* packed = nullptr;    // cell 0 of the first group, or none
    ptrdiff_t packed_stride = 0;   // words between groups
    Type packed_type = Type::f32;
    float inverse_step = 1;        // of int8 values
    int outputs = 0;
    int cells = 0;                 // those beyond are zero
};

// Where the nine maps of a row of cells go; see `factors` and `combine`.
struct NinePacked {
    uint32_t* maps[9];
    float inverse_steps[9];
    ptrdiff_t stride;
    Type type;
};

struct Kernels {
    const char* name;
    const char* needs;  // what a processor must have, for messages
    bool fast_i8;       // int8 is faster than float32
    int widest_block[TYPES];  // outputs of a block, at most; TILE in tiles
    int widest_part[TYPES];   // in Winograd's form
    int part_lanes;           // cells of a part, or pairs of them, that are computed together
    int weight_words[TYPES];  // that a word of a map is multiplied by: two where bytes are widened
    Rate rates[TYPES];        // of the instructions that multiply; none where none is known
    int tiles_from[TYPES];    // groups from which on a convolution's weights are wanted in tiles; 0 is never

    // Panels [first_panel, last_panel) of a row of outputs, `units` units of cells. Null for what has no instructions.
    void (*convolve[TYPES])(const Window&, const Weights&, int first_panel, int last_panel, int units, const Finish&);

    // The same end for sums that are there already: float [outputs][cells].
    void (*finish)(const float* sums, ptrdiff_t stride, int units, const Finish&);

    // Winograd's form, up to four rows of outputs from six lines at cell 0 of group 0; null where nothing is gained. `scratch`:
    // winograd_scratch_words. By pairs: maps with one column a cell. By cells: `columns` are the words from there to the six
    // columns that a cell's four are computed from; `pixels`: of each row its four.
    void (*winograd_pairs[TYPES])(const uint32_t* const* lines, ptrdiff_t stride, int groups, const Weights&, int units,
                                  uint32_t* scratch, const Finish* rows, int row_count);
    void (*winograd_cells[TYPES])(const uint32_t* const* lines, const ptrdiff_t* columns, ptrdiff_t stride, int groups,
                                  const Weights&, int units, uint32_t* scratch, const Finish* pixels, int row_count);

    // A row of outputs plus the largest of what a second convolution gives in four windows, without its bias. Both have
    // the same blocks and panels.
    void (*convolve_pooled[TYPES])(const Window&, const Weights&, const Window* four, const Weights& pooled,
                                   const float* pooled_scale, int units, const Finish&);

    // A row of the image, 8 * cells pixels, as words of `type`: uint8 [pixels][channels], or normalised float
    // [channels] lines of pixels. `row` is cell 0 of phase 0.
    void (*image_u8)(const uint8_t* pixels, int channels, int cells, Type type, uint32_t* row, ptrdiff_t stride);
    void (*image_f32)(const float* const* lines, int channels, int cells, Type type, uint32_t* row, ptrdiff_t stride);

    // The larger of each two phases, [2 * phases][channels][words] -> [phases][channels][words]; `maximum` as in Finish.
    void (*pool)(const float* row, int phases, size_t words, bool maximum, float* result);

    // Factors of the FFM's nine products (see fold.cell_differences): lines of float [channels][stride], with pads.
    void (*factors)(const float* before, const float* here, const float* after, int channels, ptrdiff_t stride,
                    int units, int cells, const NinePacked&);

    // A cell's nine values from nine products [count][16 * units] of outputs [first, first + count), `plane` words apart.
    void (*combine)(const float* products, ptrdiff_t plane, int first, int count, int units, int cells, float slope,
                    const NinePacked&);

    // A row of answers, 8 * cells pixels, from logits [pair of phases][phase of the pair][class][cells].
    void (*labels)(const float* logits, ptrdiff_t pair_stride, ptrdiff_t class_stride, int classes, int cells,
                   uint8_t* row);
    void (*values)(const float* logits, ptrdiff_t pair_stride, ptrdiff_t class_stride, int classes, int cells,
                   bool probabilities, float* row);
    // Labels and each label's probability, which is no number where a logit is none or infinitely high.
    void (*decide)(const float* logits, ptrdiff_t pair_stride, ptrdiff_t class_stride, int classes, int cells,
                   uint8_t* labels, float* probabilities);
};

}  // namespace dssnet::cpu
