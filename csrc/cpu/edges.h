// The edge head after its first convolution, which `Fuse` makes from the FFM's map: that convolution's rows at 1/2
// resolution to the edge map.
//
// The next two convolutions are linear and become one of 5x5 with one output. It is computed row by row of what it
// reads, one sum for each of its five rows of taps, so that every row is read once and by five outputs together; the
// sums of five rows are then added up.
#pragma once

#include "images.h"
#include "operands.h"
#include "stream.h"

namespace dssnet::cpu {

class Edges {
  public:
    Edges(const Kernels& kernels, const Operands& operands);

    size_t zero_words(int cells) const;

    // Which rows are computed for `rows` of the edge map.
    struct Plan {
        Range rows, narrow, first;  // of the edge map, of the map before it, of the first convolution
        Columns columns, around;    // of the edge map, and of all before it
    };
    Plan plan(Range rows, const Columns& columns, int height) const;

    // Makes the edge map for one member of a team, from rows of the first convolution as they come.
    class Run {
      public:
        // `map`: float [rows][columns] at 1/2 resolution of the plan's columns, from row `map_row` on. `together`: rows
        // of the first convolution that are made at once.
        Run(const Edges& edges, const Plan& plan, int height, int together, float* map, int map_row,
            const uint32_t* const* zeros, Arena& arena);

        // Where the first convolution puts its rows, four columns a cell.
        const Rows& first() const { return first_; }
        // Takes such rows, each of the plan's once, in order; others are passed by.
        void take(int first, int count);

      private:
        void sum_row(int row);
        void narrow_row(int row);
        void answer_row(int row);
        float* sums(int row, int phase) const;
        float* beyond(bool bottom, int phase) const;
        void add_pixel(const Convolution& term, int row, int phase, int cell, float* sums) const;

        const Edges& edges_;
        const Plan plan_;
        const int height_, cells_;
        const ptrdiff_t width_;
        float* map_;
        const int map_row_;
        Rows first_, narrow_;
        float *sums_;    // [row of five][phase][row of taps][cells]
        float *beyond_;  // [top, bottom][phase][cells]: what rows outside the image would add
        float *pixel_, *row_;
        int next_narrow_, next_row_;
    };

  private:
    const Kernels& kernels_;
    Convolution tail_, last_;
    Border border_;  // for the rows of taps and, at the top and bottom, for the row beyond
};

}  // namespace dssnet::cpu
