// A convolution with its weights packed for an instruction set.
#pragma once

#include <array>
#include <functional>
#include <string>
#include <vector>

#include "maps.h"

namespace dssnet::cpu {

// Weights as they are given: [line][tap][input][output], as in a window of `lines` rows and `taps` columns.
struct Operand {
    std::string name;
    int lines = 1, taps = 1, inputs = 1, outputs = 1;
    const float* weight = nullptr;
    const float* bias = nullptr;  // [output] or null
};

// Multiply-accumulates by the type of what is multiplied. Of int8 in units of the processor's instructions for bytes: where
// there are such, those of 16 bits in Winograd's form count twice.
struct Macs {
    std::array<double, TYPES> of_type = {};

    Macs& operator+=(const Macs& other) {
        for (int type = 0; type < TYPES; ++type) of_type[type] += other.of_type[type];
        return *this;
    }
    friend Macs operator+(Macs one, const Macs& other) { return one += other; }
    friend Macs operator*(double times, Macs macs) {
        for (double& count : macs.of_type) count *= times;
        return macs;
    }
};

class Convolution {
  public:
    // `segments`: inputs lie in parts of so many channels, each of which fills whole words. Lines that read another map
    // than their neighbours are given as lines, too. `panel`: outputs whose sums wait for each other, at most; a multiple
    // of 12. Weights in tiles have panels of a tile, whatever it is.
    Convolution(const Kernels& kernels, const Operand& operand, Format input, Form form = Form::direct,
                std::vector<int> segments = {}, int panel = WIDEST_PANEL);

    // Whether a form gives what `direct` does: int8's sums must stay whole numbers of 32 bits.
    static bool fits(const Kernels& kernels, const Operand& operand, Format input, Form form);

    const Kernels& kernels() const { return *kernels_; }
    const Format& input() const { return input_; }
    Form form() const { return form_; }
    int lines() const { return lines_; }
    int taps() const { return taps_; }
    int outputs() const { return outputs_; }
    int groups() const { return groups_; }
    // Outputs of each panel.
    const std::vector<int>& panels() const { return panel_sizes_; }
    int widest_panel() const { return *std::max_element(panel_sizes_.begin(), panel_sizes_.end()); }
    // Rows that are best computed together.
    int rows_together() const { return form_ == Form::direct ? 1 : 4; }
    // Words that it needs beside its maps.
    size_t scratch_words() const {
        return form_ == Form::direct ? 0 : winograd_scratch_words(form_, input_.type, groups_, kernels_->part_lanes);
    }
    // Rows of the map that this convolution reads, in memory from `arena` or at `words`. `zeros`: by type, see `Rows`.
    Rows rows(uint32_t* words, const uint32_t* const* zeros, int height, int capacity, int phases, int cells) const {
        return Rows(words, zeros[int(input_.type)], height, capacity, phases, groups_, input_, cells);
    }
    Rows rows(Arena& arena, const uint32_t* const* zeros, int height, int capacity, int phases, int cells) const {
        const size_t row_words = Rows::words_of_row(phases, groups_, cells);
        return rows(arena.take(row_words * std::min(capacity, height)), zeros, height, capacity, phases, cells);
    }

    // Multiply-accumulates of a row of outputs in a phase, for each unit of cells, padding included.
    Macs macs() const;

    // Adds scale, bias and number of outputs to `finish`.
    Finish complete(Finish finish) const;

    // A row of outputs from `lines()` lines, each at cell 0 of group 0. Direct form only.
    void row(const uint32_t* const* lines, const ptrdiff_t* taps, ptrdiff_t group_stride, int units, const Finish& finish,
             int first_panel = 0, int last_panel = -1) const;

    // Up to four rows of outputs from six lines, in Winograd's form by pairs.
    void pair_rows(const uint32_t* const* lines, ptrdiff_t group_stride, int units, uint32_t* scratch, Finish* rows,
                   int row_count) const;
    // Likewise by cells: `columns` are the words to the six columns around a cell's four, `pixels` row by row.
    void cell_rows(const uint32_t* const* lines, const ptrdiff_t* columns, ptrdiff_t group_stride, int units,
                   uint32_t* scratch, Finish* pixels, int row_count) const;

    // As `row`, plus the largest of what `pooled` gives in four windows of the same map. Direct form only.
    void pooled_row(const uint32_t* const* lines, const ptrdiff_t* taps, const Convolution& pooled, const Window* four,
                    ptrdiff_t group_stride, int units, const Finish& finish) const;

    // What a window of this convolution looks like. The pointers must outlive it.
    Window window(const uint32_t* const* lines, const ptrdiff_t* taps, ptrdiff_t group_stride) const {
        return {lines, lines_, taps, taps_, groups_, group_stride};
    }

  private:
    Weights weights() const;

    const Kernels* kernels_;
    Format input_;
    Form form_;
    int lines_, taps_, outputs_, groups_;
    bool tiles_;
    std::vector<int> block_sizes_, panel_blocks_, panel_sizes_;
    Memory words_;
    std::vector<int32_t> start_;
    std::vector<float> scale_, bias_;
    size_t words_per_output_;
};

// Words to the neighbours at distance -reach .. reach of a pixel in `phase`, where the map read has `phases` columns a
// cell, `phase_words` apart, and the pixel lies `stride` columns from its left neighbour.
using Taps = std::array<ptrdiff_t, 5>;

Taps taps_around(int phase, int reach, int stride, int phases, ptrdiff_t phase_words);

// Words to the six columns from the last of the cell before to the first of the next, of a map with four columns a cell.
using CellColumns = std::array<ptrdiff_t, 6>;

// A convolution of stride 1, 1x1 or 3x3, for rows [first, first + count) of a map with `phases` columns a cell. `end` tells
// what happens to the sums of a row and phase, as if all columns were wanted. `scratch`: the convolution's.
void convolve_rows(const Convolution& convolution, const Rows& from, int phases, int first, int count,
                   const Columns& columns, uint32_t* scratch, const std::function<Finish(int row, int phase)>& end);

}  // namespace dssnet::cpu
