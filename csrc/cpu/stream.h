// Rows of a map that are made in order, when somebody needs them.
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "maps.h"

namespace dssnet::cpu {

// Which rows of a map are computed together. Winograd's form rounds a row as its group has it, so the groups are those of
// the whole image, whoever computes which part of it.
class Groups {
  public:
    // Of `height` rows, `together` from the first on.
    Groups(int height, int together) {
        for (int row = 0; row < height; row += together) edges_.push_back(row);
        edges_.push_back(height);
    }
    // Of the map that a reader needs: for each of its groups the rows up to `reach` beyond, at most `together` at once.
    Groups(const Groups& reader, int reach, int together) {
        const int height = reader.edges_.back();
        edges_.push_back(0);
        for (int edge : reader.edges_) {
            const int end = edge == 0 ? 0 : std::min(edge + reach, height);
            while (edges_.back() < end) edges_.push_back(std::min(edges_.back() + together, end));
        }
    }

    // Of the group that `row` is in.
    int begin(int row) const { return *(after(row) - 1); }
    int end(int row) const { return *after(row); }
    // All rows of the groups that have some of `rows`.
    Range around(Range rows) const {
        return rows.count() <= 0 ? rows : Range{begin(rows.first), end(rows.last - 1)};
    }

  private:
    std::vector<int>::const_iterator after(int row) const { return std::upper_bound(edges_.begin(), edges_.end(), row); }

    std::vector<int> edges_;  // first rows of all groups, and the end
};

class Stream {
  public:
    Stream() = default;
    // `make`: a group's rows [first, first + count). The first group may be there in part.
    Stream(int first, int end, Groups groups, std::function<void(int first, int count)> make)
        : next_(std::max(first, 0)), end_(end), groups_(std::move(groups)), make_(std::move(make)) {}
    // Row by row.
    Stream(int first, int end, std::function<void(int first, int count)> make)
        : Stream(first, end, Groups(end, 1), std::move(make)) {}

    // Rows before this one are there.
    int next() const { return next_; }
    int end() const { return end_; }

    // All rows before `row` are there afterwards, as far as the map has them.
    void need(int row) {
        for (row = std::min(row, end_); next_ < row;) {
            const int count = std::min(groups_.end(next_), end_) - next_;
            make_(next_, count);
            next_ += count;
        }
    }

  private:
    int next_ = 0, end_ = 0;
    Groups groups_{0, 1};
    std::function<void(int, int)> make_;
};

}  // namespace dssnet::cpu
