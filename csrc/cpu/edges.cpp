#include "edges.h"

namespace dssnet::cpu {
namespace {

constexpr int COLUMNS = 4;  // of a cell at 1/2 resolution
constexpr int REACH = 2;    // of the composed convolution
constexpr int TAP_ROWS = 2 * REACH + 1;

}  // namespace

Edges::Edges(const Kernels& kernels, const Operands& operands)
    : kernels_(kernels),
      tail_(operands.convolution(kernels, "edge.tail")),
      last_(operands.convolution(kernels, "edge.last")),
      border_(operands.border(kernels, "edge.tail")) {}

size_t Edges::zero_words(int cells) const { return Rows::words_of_row(COLUMNS, last_.groups(), cells) + PAD; }

Edges::Plan Edges::plan(Range rows, const Columns& columns, int height) const {
    const Range narrow = rows.wider(1, height);
    // All that a pixel of the edge map depends on here lies within a cell of it.
    return {rows, narrow, narrow.wider(REACH, height), columns, columns.wider(1)};
}

Edges::Run::Run(const Edges& edges, const Plan& plan, int height, int together, float* map, int map_row,
                const uint32_t* const* zeros, Arena& arena)
    : edges_(edges),
      plan_(plan),
      height_(height),
      cells_(plan.columns.cells()),
      width_(round_up(cells_, UNIT)),
      map_(map),
      map_row_(map_row),
      first_(edges.tail_.rows(arena, zeros, height, together, COLUMNS, cells_)),
      narrow_(edges.last_.rows(arena, zeros, height, 3, COLUMNS, cells_)),
      sums_(arena.take_floats(size_t(TAP_ROWS) * COLUMNS * TAP_ROWS * width_)),
      beyond_(arena.take_floats(size_t(2) * COLUMNS * width_)),
      pixel_(arena.take_floats(TAP_ROWS * UNIT)),
      row_(arena.take_floats(COLUMNS * width_)),
      next_narrow_(plan.narrow.first),
      next_row_(plan.rows.first) {}

float* Edges::Run::sums(int row, int phase) const {
    return sums_ + (row % TAP_ROWS * COLUMNS + phase) * TAP_ROWS * width_;
}

float* Edges::Run::beyond(bool bottom, int phase) const { return beyond_ + (bottom * COLUMNS + phase) * width_; }

void Edges::Run::take(int first, int count) {
    for (int row = first; row < first + count; ++row) {
        if (!plan_.first.has(row)) continue;
        sum_row(row);
        const bool is_last = row == height_ - 1;
        for (; next_narrow_ < plan_.narrow.last && (is_last || next_narrow_ + REACH <= row); ++next_narrow_) {
            narrow_row(next_narrow_);
            const bool is_end = next_narrow_ == height_ - 1;
            for (; next_row_ < plan_.rows.last && (is_end || next_row_ + 1 <= next_narrow_); ++next_row_) {
                answer_row(next_row_);
            }
        }
    }
}

void Edges::Run::sum_row(int row) {
    const Columns& columns = plan_.around;
    const bool left = columns.wanted().has(0), right = columns.wanted().has(cells_ - 1);
    const uint32_t* line = first_.row(row) + columns.begin();
    for (int phase = 0; phase < COLUMNS; ++phase) {
        const Taps taps = taps_around(phase, REACH, 1, COLUMNS, first_.phase());
        const auto convolve = [&](const Convolution& convolution, float* to) {
            Finish finish;
            finish.kept = to, finish.kept_stride = width_;
            convolution.row(&line, taps.data(), first_.stride(), columns.units(), columns.finish(finish));
        };
        const auto add_pixels = [&](const Convolution& of_left, const Convolution& of_right, float* to) {
            if (left && phase == 0) add_pixel(of_left, row, phase, 0, to);
            if (right && phase == COLUMNS - 1) add_pixel(of_right, row, phase, cells_ - 1, to);
        };
        const Border& border = edges_.border_;
        convolve(edges_.tail_, sums(row, phase));
        add_pixels(border.left, border.right, sums(row, phase));
        if (row == 0) {
            convolve(border.top, beyond(false, phase));
            add_pixels(border.top_left, border.top_right, beyond(false, phase));
        }
        if (row == height_ - 1) {
            convolve(border.bottom, beyond(true, phase));
            add_pixels(border.bottom_left, border.bottom_right, beyond(true, phase));
        }
    }
}

// The unit of cells around one pixel is computed, and that pixel's cell taken.
void Edges::Run::add_pixel(const Convolution& term, int row, int phase, int cell, float* sums) const {
    const ptrdiff_t begin = cell / UNIT * UNIT, column = phase * first_.phase() + begin;
    const uint32_t* line = first_.row(row);
    Finish finish;
    finish.kept = pixel_, finish.kept_stride = UNIT, finish.cells = UNIT;
    term.row(&line, &column, first_.stride(), 1, finish);
    for (int output = 0; output < term.outputs(); ++output) {
        sums[output * width_ + cell] += pixel_[output * UNIT + cell - begin];
    }
}

void Edges::Run::narrow_row(int row) {
    const Columns& columns = plan_.around;
    const ptrdiff_t begin = columns.begin(), count = columns.units() * UNIT;
    for (int phase = 0; phase < COLUMNS; ++phase) {
        float* const to = row_ + phase * width_ + begin;
        std::fill_n(to, count, 0.0f);
        const auto add = [&](const float* from) {
            for (ptrdiff_t i = 0; i < count; ++i) to[i] += from[i];
        };
        for (int distance = -REACH; distance <= REACH; ++distance) {
            if (row + distance < 0 || row + distance >= height_) continue;
            add(sums(row + distance, phase) + (distance + REACH) * width_ + begin);
        }
        if (row == 0) add(beyond(false, phase) + begin);
        if (row == height_ - 1) add(beyond(true, phase) + begin);
        Finish finish = narrow_.packing(row, phase);
        finish.outputs = 1;
        edges_.kernels_.finish(to, width_, columns.units(), columns.finish(finish));
    }
}

void Edges::Run::answer_row(int row) {
    const Columns& columns = plan_.columns;
    const Range wanted = columns.wanted();
    const uint32_t* lines[3];
    for (int i = 0; i < 3; ++i) lines[i] = narrow_.read(row + i - 1) + columns.begin();
    for (int phase = 0; phase < COLUMNS; ++phase) {
        Finish finish;
        finish.kept = row_ + phase * width_, finish.kept_stride = width_;
        const Taps taps = taps_around(phase, 1, 1, COLUMNS, narrow_.phase());
        edges_.last_.row(lines, taps.data(), narrow_.stride(), columns.units(), columns.finish(finish));
    }
    float* const to = map_ + size_t(row - map_row_) * COLUMNS * wanted.count();
    export_row(row_ + wanted.first, COLUMNS, 1, wanted.count(), width_, to);
}

}  // namespace dssnet::cpu
