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
    double macs() const { return 16 * (narrow_.macs() + tail_.macs()); }

    // Rows [first, last) of y, at 1/2 resolution, become pairs of rows of the answer. `make_y(first, count)` makes rows of
    // `y`, in order, from row `first_y(first)` on. Scratch as for `Downsample::run`.
    void run(const Rows& y, const std::function<void(int first, int count)>& make_y, int cells, int first, int last,
             const Answer& answer, const uint32_t* const* zeros, Arena& arena) const;
    int first_y(int first) const { return first < 2 ? 0 : first - 2; }

  private:
    struct Border {
        Convolution top, bottom, left, right;
        Convolution top_left, top_right, bottom_left, bottom_right;
    };

    // Adds what the composed convolution misses where row and phase touch the image's border.
    void add_border(const Rows& narrow, int row, int phase, int cells, float* logits, float* edge) const;

    const Kernels& kernels_;
    int classes_;
    float slope_;
    Convolution narrow_, tail_;
    Border border_;
};

}  // namespace dssnet::cpu
