// Rows of a map that are made in order, when somebody needs them.
#pragma once

#include <algorithm>
#include <functional>

namespace dssnet::cpu {

class Stream {
  public:
    // `make`: rows [first, first + count), count <= together.
    Stream(int first, int end, int together, std::function<void(int first, int count)> make)
        : next_(std::max(first, 0)), end_(end), together_(together), make_(std::move(make)) {}

    // All rows before `row` are there afterwards, as far as the map has them.
    void need(int row) {
        for (row = std::min(row, end_); next_ < row;) {
            const int count = std::min(together_, row - next_);
            make_(next_, count);
            next_ += count;
        }
    }

  private:
    int next_, end_, together_;
    std::function<void(int, int)> make_;
};

}  // namespace dssnet::cpu
