// Stage 4: the map y at 1/2 resolution to labels, probabilities or logits.
#pragma once

#include <functional>

#include "images.h"
#include "operands.h"
#include "stream.h"

namespace dssnet::cpu {

class Segment {
  public:
    Segment(const Kernels& kernels, const Operands& operands);

    // Rows of y as this reads them, `extra` more than it needs at a time.
    Rows y_rows(Arena& arena, const uint32_t* const* zeros, int height, int extra, int cells) const;
    size_t zero_words(int cells) const;
    // Multiply-accumulates for a row of cells, for each unit of them, without the image's border.
    Macs macs() const { return 16 * (narrow_.macs() + tail_.macs()); }

    // Which rows, at 1/2 resolution, are computed together and read for `rows` of the answer's.
    struct Plan {
        Range rows;               // rows of logits
        Groups narrow_groups, y_groups;
        Range narrow, y;          // the first group of y may be there in part
        Columns columns, around, y_columns;  // of logits, of the map before them, and of y
    };
    // `rows`: at most the last group is there in part, where it is the image's last. `whole_cells`: some convolution at 1/2
    // resolution computes the columns of a cell together, so that all of them depend on both neighbours. Otherwise all that
    // a pixel of the answer depends on lies within a cell of it.
    Plan plan(Range rows, const Columns& columns, int height, bool whole_cells) const;
    bool in_whole_cells() const { return narrow_.form() == Form::cells || tail_.form() == Form::cells; }

    // `make_y(first, count)` makes rows of `y`, in order, from the plan's first on. The answer is that for the plan's
    // columns, and begins at row `answer_row` of logits. Scratch as for `Downsample::run`.
    void run(const Plan& plan, const Rows& y, const std::function<void(int first, int count)>& make_y, int answer_row,
             const Answer& answer, const uint32_t* const* zeros, Arena& arena) const;

  private:
    // Adds what the composed convolution misses where row and phase touch the image's border.
    void add_border(const Rows& narrow, int row, int phase, const Columns& columns, float* logits, float* edge) const;

    const Kernels& kernels_;
    int classes_;
    float slope_;
    Convolution narrow_, tail_;
    Border border_;
};

}  // namespace dssnet::cpu
