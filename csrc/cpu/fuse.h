// Stage 3: shallow and deep features at 1/8 resolution to the map y at 1/2 resolution, and to the edge head's first
// convolution, which reads the same map.
//
// With nearest-neighbour up-sampling everything happens on cells: nine products with the cell and its differences to its
// neighbours, added up to the nine values a, b, c x a, b, c that the up-sampled and smoothed map takes in a cell, from
// which each of the cell's 16 pixels is a convolution of two or three values an axis.
#pragma once

#include <vector>

#include "edges.h"
#include "images.h"
#include "operands.h"
#include "stream.h"

namespace dssnet::cpu {

class Fuse {
  public:
    Fuse(const Kernels& kernels, const Operands& operands);

    // Of shallow and deep features.
    Format input() const { return mix_.front().input(); }
    size_t zero_words(int cells) const;
    // Multiply-accumulates for a row of cells, for each unit of them.
    Macs macs() const;
    // Rows of y that may be made before they are asked for.
    int rows_early() const { return by_cells() ? 3 : 0; }

    // Rows of the edge head's first convolution that are made together.
    int edge_rows_together() const {
        return sizes_.edges && edge_.front().form() == Form::cells ? PIXELS : 1;
    }

    // Whether some convolution computes the columns of a cell together.
    bool in_whole_cells() const {
        const auto is = [](const std::vector<Convolution>& some) { return !some.empty() && some.front().form() == Form::cells; };
        return is(smooth_) || is(reduce_) || is(edge_);
    }

    // Which rows are computed for rows of y that are made in such groups, and for rows of the edge head's first
    // convolution; either may be none. Columns are the same for all maps at 1/2 resolution: where only those pixels of a
    // cell are wanted that face its neighbour, y reads nothing beyond the cell, and edges of the features alone. With
    // `whole_cells` each map is computed for a cell more to either side than what reads it.
    struct Plan {
        Range y, edges, cells;  // cells: rows of shallow and deep features
        int first_value;        // nearest: row of cells
        Groups smooth;          // learned: groups of the rows of the map after the smoothing convolution,
        int first_smooth;       // and its first row
        Columns columns, of_values, of_features;  // of y and edges, of what they read, and of what that is made of
    };
    Plan plan(Range y, Range edges, const Groups& groups, const Columns& columns, int height, bool whole_cells,
              bool map = false) const;

    // Makes rows of y for one member of a team.
    class Run {
      public:
        // `y`: where rows go, packed, four columns a cell; `map`: float [4 * height][4 * cells][channels], or null where
        // not all is wanted. Rows from the plan's first on, in order. `edges` takes its rows in between, as soon as what
        // they read is there; null where the plan has none.
        Run(const Fuse& fuse, const Plan& plan, const Rows& shallow, const Rows& deep, const Rows& y, float* map,
            Edges::Run* edges, const uint32_t* const* zeros, Arena& arena);
        // Streams refer to their run.
        Run(const Run&) = delete;

        void make(int first, int count);
        // What is left for `edges`.
        void finish_edges();

      private:
        void mix_row(int row);
        void values_row(int row);
        void rows_of_cells(int row);
        template <class End>
        void pixel_row(const std::vector<Convolution>& pixels, int row, const End& end);
        void make_edges(bool all);
        Finish y_ending(int row, int phase);
        Finish edge_ending(int row, int phase);
        void export_y(int row);

        const Fuse& fuse_;
        const Columns columns_, of_values_, of_features_;
        const Rows &shallow_, &deep_, &y_;
        float* map_;
        Edges::Run* edges_;
        const int cells_;
        const ptrdiff_t width_;
        float* y_rows_;  // [pixel row of a cell][phase][channel][cells], where a map is asked for
        const Range wanted_y_, wanted_edges_;
        int next_cells_;  // row of cells whose rows of y and edges are made next, where they are made together,
        int next_edge_;   // and else the row of edges

        // Nearest: the mixed map as floats with pads, its factors, their products, the cell's values.
        ptrdiff_t run_;
        float *mixed_rows_, *zero_row_, *products_;
        Rows factors_, values_;

        // Learned: the up-sampled map before and after the smoothing convolution.
        Rows shuffled_, smooth_;
        uint32_t* winograd_;

        Stream lower_, upper_;  // nearest: mixed, values; learned: shuffled, smooth
        float* mixed_row(int row) const;
    };

  private:
    // Rows of y that are made together; where they are also wanted as floats, one.
    int rows_together(bool map) const { return map ? 1 : reduce_.front().rows_together(); }
    // Whether all pixels of a cell are made together from its values, in Winograd's form.
    bool by_cells() const { return !sizes_.learned_upsampling && reduce_.front().form() == Form::cells; }

    static constexpr int PIXELS = 4;  // of a cell at 1/2 resolution, a side

    const Kernels& kernels_;
    Sizes sizes_;
    float mix_slope_, smooth_slope_, reduce_slope_, edge_slope_;
    std::vector<Convolution> mix_;     // one; with learned up-sampling one for each of a cell's pixels
    std::vector<Convolution> smooth_;  // nine products, the first with the bias; with learned up-sampling one convolution
    std::vector<float> factor_steps_;  // inverse, of int8
    // One for each of a cell's pixels; in Winograd's form, or with learned up-sampling, one.
    std::vector<Convolution> reduce_;
    std::vector<Convolution> edge_;  // likewise; none without an edge head
};

}  // namespace dssnet::cpu
