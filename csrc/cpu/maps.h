// Rows of maps in memory. How a row is laid out: kernels.h.
#pragma once

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "kernels.h"

namespace dssnet::cpu {

constexpr int round_up(int value, int multiple) { return (value + multiple - 1) / multiple * multiple; }

// Words of a run of cells with the pad before it.
inline ptrdiff_t run_words(int cells) { return round_up(cells, UNIT) + PAD; }

// Consecutive rows, or other things that are counted.
struct Range {
    int first = 0, last = 0;  // without `last`

    int count() const { return last - first; }
    bool has(int index) const { return index >= first && index < last; }
    Range wider(int reach, int end) const { return {std::max(first - reach, 0), std::min(last + reach, end)}; }
};

// What holds both; an empty one does not count.
inline Range around_both(Range one, Range other) {
    if (one.count() <= 0) return other;
    if (other.count() <= 0) return one;
    return {std::min(one.first, other.first), std::max(one.last, other.last)};
}

// The cells of a row that somebody wants. Whole units of them are computed; what lies in a map beyond these is of no
// meaning, for nobody wants what depends on it.
class Columns {
  public:
    explicit Columns(int cells) : Columns(cells, {0, cells}) {}
    Columns(int cells, Range wanted) : cells_(cells), wanted_(wanted) {}

    // What is read for them by whoever reads `reach` cells to either side.
    Columns wider(int reach) const { return Columns(cells_, wanted_.wider(reach, cells_)); }

    int cells() const { return cells_; }  // of the whole row
    Range wanted() const { return wanted_; }
    ptrdiff_t begin() const { return wanted_.first / UNIT * UNIT; }  // words from cell 0 to the first unit
    int units() const { return (round_up(wanted_.last, UNIT) - int(begin())) / UNIT; }
    Range computed() const { return {int(begin()), std::min(int(begin()) + units() * UNIT, cells_)}; }
    bool whole() const { return units() * UNIT == round_up(cells_, UNIT); }

    // The end of a convolution of these columns, from that of a row.
    Finish finish(Finish of_row) const {
        if (of_row.addend) of_row.addend += begin();
        if (of_row.kept) of_row.kept += begin();
        if (of_row.packed) of_row.packed += begin();
        of_row.cells = cells_ - int(begin());
        return of_row;
    }

  private:
    int cells_;
    Range wanted_;
};

// Activations as a convolution reads them.
struct Format {
    Type type = Type::f32;
    float step = 1;  // of int8

    int groups(int channels) const { return words_for(channels, type); }
};

// Memory that is handed out front to back and taken back at once. Without memory it only counts what is asked for,
// and what it hands out must not be touched.
class Arena {
  public:
    Arena() = default;
    explicit Arena(uint32_t* base) : base_(base), has_memory_(true) {}

    uint32_t* take(size_t words) {
        const size_t begin = used_;
        used_ += (words + PAD - 1) / PAD * PAD;
        return base_ + begin;
    }
    float* take_floats(size_t count) { return reinterpret_cast<float*>(take(count)); }

    size_t used() const { return used_; }
    bool has_memory() const { return has_memory_; }

  private:
    // Any aligned address but null, to which nothing may be added.
    uint32_t* base_ = reinterpret_cast<uint32_t*>(64);
    bool has_memory_ = false;
    size_t used_ = 0;
};

// Words aligned for vectors.
class Memory {
  public:
    uint32_t* words(size_t count) {
        if (count > size_) {
            memory_.reset();
            size_ = 0;
            memory_.reset(static_cast<uint32_t*>(std::aligned_alloc(64, count * 4 / 64 * 64 + 64)));
            if (!memory_) throw std::bad_alloc();
            size_ = count;
        }
        return memory_.get();
    }
    const uint32_t* data() const { return memory_.get(); }
    size_t bytes() const { return size_ * 4; }

  private:
    struct Free {
        void operator()(uint32_t* words) const { std::free(words); }
    };
    std::unique_ptr<uint32_t, Free> memory_;
    size_t size_ = 0;
};

// Consecutive rows of a map, the last `capacity` of them kept. Rows outside the image are zero; a map of which only some
// rows are made needs room for no others.
class Rows {
  public:
    Rows() = default;

    // Of a row with `groups` words in each of `phases`.
    static size_t words_of_row(int phases, int groups, int cells) { return phases * groups * run_words(cells) + PAD; }

    // `words`: capacity * words_of_row of them; `zero_row`: as many zeros as a row has, of the same format.
    Rows(uint32_t* words, const uint32_t* zero_row, int height, int capacity, int phases, int groups, Format format,
         int cells)
        : height_(height),
          capacity_(std::min(capacity, height)),
          groups_(groups),
          cells_(cells),
          stride_(run_words(cells)),
          row_words_(words_of_row(phases, groups, cells)),
          format_(format),
          zero_row_(zero_row + PAD),
          words_(words) {}

    // Cell 0 of the first group of phase 0.
    uint32_t* row(int index) const { return words_ + index % capacity_ * row_words_ + PAD; }
    const uint32_t* read(int index) const { return index < 0 || index >= height_ ? zero() : row(index); }
    const uint32_t* zero() const { return zero_row_; }

    // What packs outputs into a row and phase, from its group `first_group` on.
    Finish packing(int index, int phase = 0, int first_group = 0) const {
        Finish finish;
        finish.packed = row(index) + phase * this->phase() + first_group * stride_, finish.packed_stride = stride_;
        finish.packed_type = format_.type, finish.inverse_step = 1 / format_.step;
        finish.cells = cells_;
        return finish;
    }

    int height() const { return height_; }
    int groups() const { return groups_; }
    ptrdiff_t stride() const { return stride_; }              // between groups
    ptrdiff_t phase() const { return groups_ * stride_; }     // between phases
    size_t row_words() const { return row_words_; }
    const Format& format() const { return format_; }

  private:
    int height_ = 0, capacity_ = 1, groups_ = 0, cells_ = 0;
    ptrdiff_t stride_ = 0;
    size_t row_words_ = 0;
    Format format_;
    const uint32_t* zero_row_ = nullptr;
    uint32_t* words_ = nullptr;
};

}  // namespace dssnet::cpu
