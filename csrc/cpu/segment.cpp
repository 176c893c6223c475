#include "segment.h"

namespace dssnet::cpu {
namespace {

constexpr int COLUMNS = 4;  // of a cell at 1/2 resolution

}  // namespace

Segment::Segment(const Kernels& kernels, const Operands& operands)
    : kernels_(kernels),
      classes_(operands.sizes.classes),
      slope_(operands.slopes.at("segment.narrow")),
      narrow_(operands.fastest(kernels, "segment.narrow", operands.input("segment.tail").type)),
      tail_(operands.fastest(kernels, "segment.tail", Type::f32)),
      border_{operands.convolution(kernels, "segment.tail.top", Type::f32),
              operands.convolution(kernels, "segment.tail.bottom", Type::f32),
              operands.convolution(kernels, "segment.tail.left", Type::f32),
              operands.convolution(kernels, "segment.tail.right", Type::f32),
              operands.convolution(kernels, "segment.tail.top_left", Type::f32),
              operands.convolution(kernels, "segment.tail.top_right", Type::f32),
              operands.convolution(kernels, "segment.tail.bottom_left", Type::f32),
              operands.convolution(kernels, "segment.tail.bottom_right", Type::f32)} {}

size_t Segment::zero_words(int cells) const {
    return Rows::words_of_row(COLUMNS, std::max(narrow_.groups(), tail_.groups()), cells) + PAD;
}

Rows Segment::y_rows(Arena& arena, const uint32_t* const* zeros, int height, int extra, int cells) const {
    return narrow_.rows(arena, zeros, height, narrow_.rows_together() + 2 + extra, COLUMNS, cells);
}

void Segment::run(const Rows& y, const std::function<void(int, int)>& make_y, int cells, int first, int last,
                  const Answer& answer, const uint32_t* const* zeros, Arena& arena) const {
    const int height = y.height(), units = round_up(cells, UNIT) / UNIT;
    const ptrdiff_t width = units * UNIT;
    const int outputs = tail_.outputs(), together = tail_.rows_together();
    const Rows narrow = tail_.rows(arena, zeros, height, together + 2, COLUMNS, cells);
    const size_t row_logits = COLUMNS * outputs * width;
    float* const logits = arena.take_floats(together * row_logits);
    float* const edge = arena.take_floats(outputs * UNIT);
    const WinogradParts winograd(arena, std::max(y.row_words(), narrow.row_words()));
    if (!arena.has_memory()) return;

    Stream y_rows(first_y(first), height, narrow_.rows_together(), make_y);
    Stream narrow_rows(first - 1, height, narrow_.rows_together(), [&](int row, int count) {
        y_rows.need(row + count + 1);
        convolve_rows(narrow_, y, COLUMNS, row, count, cells, winograd, [&](int at, int phase) {
            Finish finish = narrow.packing(at, phase);
            finish.slope = slope_;
            return finish;
        });
    });
    const size_t pixels = size_t(cells) * PHASES;
    for (int row = first; row < last; row += together) {
        const int count = std::min(together, last - row);
        narrow_rows.need(row + count + 1);
        convolve_rows(tail_, narrow, COLUMNS, row, count, cells, winograd, [&](int at, int phase) {
            Finish finish;
            finish.cells = cells;
            finish.kept = logits + (at - row) * row_logits + phase * outputs * width, finish.kept_stride = width;
            return finish;
        });
        for (int at = row; at < row + count; ++at) {
            float* const row_of_logits = logits + (at - row) * row_logits;
            for (int phase = 0; phase < COLUMNS; ++phase) {
                add_border(narrow, at, phase, cells, row_of_logits + phase * outputs * width, edge);
            }
            for (int half = 0; half < 2; ++half) {
                const size_t pixel = (size_t(at) * 2 + half) * pixels;
                const float* of_half = row_of_logits + half * 2 * classes_ * width;
                if (answer.kind == AnswerKind::labels) {
                    kernels_.labels(of_half, outputs * width, width, classes_, cells, answer.labels + pixel);
                } else {
                    kernels_.values(of_half, outputs * width, width, classes_, cells,
                                    answer.kind == AnswerKind::probabilities, answer.values + pixel * classes_);
                }
            }
        }
    }
}

void Segment::add_border(const Rows& narrow, int row, int phase, int cells, float* logits, float* edge) const {
    const int outputs = tail_.outputs(), units = round_up(cells, UNIT) / UNIT;
    const ptrdiff_t width = units * UNIT;
    const auto add_line = [&](const Convolution& term) {
        Finish finish;
        finish.addend = finish.kept = logits, finish.addend_stride = finish.kept_stride = width, finish.cells = cells;
        const uint32_t* line = narrow.row(row);
        term.row(&line, taps_around(phase, 1, 1, COLUMNS, narrow.phase()).data(), narrow.stride(), units, finish);
    };
    // The unit of cells around one pixel is computed, and that pixel's cell taken.
    const auto add_pixel = [&](const Convolution& term, int cell) {
        const ptrdiff_t begin = cell / UNIT * UNIT, column = phase * narrow.phase() + begin;
        const uint32_t* lines[3];
        for (int i = 0; i < term.lines(); ++i) lines[i] = narrow.read(row + i - term.lines() / 2);
        Finish finish;
        finish.kept = edge, finish.kept_stride = UNIT, finish.cells = UNIT;
        term.row(lines, &column, narrow.stride(), 1, finish);
        for (int output = 0; output < outputs; ++output) logits[output * width + cell] += edge[output * UNIT + cell - begin];
    };
    const bool top = row == 0, bottom = row == narrow.height() - 1, left = phase == 0, right = phase == COLUMNS - 1;
    if (top) add_line(border_.top);
    if (bottom) add_line(border_.bottom);
    if (left) add_pixel(border_.left, 0);
    if (right) add_pixel(border_.right, cells - 1);
    if (top && left) add_pixel(border_.top_left, 0);
    if (top && right) add_pixel(border_.top_right, cells - 1);
    if (bottom && left) add_pixel(border_.bottom_left, 0);
    if (bottom && right) add_pixel(border_.bottom_right, cells - 1);
}

}  // namespace dssnet::cpu
