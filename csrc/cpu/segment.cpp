#include "segment.h"

namespace dssnet::cpu {
namespace {

constexpr int COLUMNS = 4;  // of a cell at 1/2 resolution

}  // namespace

Segment::Segment(const Kernels& kernels, const Operands& operands)
    : kernels_(kernels),
      classes_(operands.sizes.classes),
      slope_(operands.slopes.at("segment.narrow")),
      narrow_(operands.fastest(kernels, "segment.narrow", Form::cells)),
      tail_(operands.fastest(kernels, "segment.tail", Form::cells)),
      border_(operands.border(kernels, "segment.tail")) {}

size_t Segment::zero_words(int cells) const {
    return Rows::words_of_row(COLUMNS, std::max(narrow_.groups(), tail_.groups()), cells) + PAD;
}

Rows Segment::y_rows(Arena& arena, const uint32_t* const* zeros, int height, int extra, int cells) const {
    return narrow_.rows(arena, zeros, height, narrow_.rows_together() + 2 + extra, COLUMNS, cells);
}

Segment::Plan Segment::plan(Range rows, const Columns& columns, int height, bool whole_cells) const {
    const int together = narrow_.rows_together();
    const Groups narrow_groups(Groups(height, tail_.rows_together()), 1, together);
    const Range narrow = narrow_groups.around(rows.wider(1, height));
    const Columns around = columns.wider(1);
    return {rows,    narrow_groups, Groups(narrow_groups, 1, together), narrow, narrow.wider(1, height),
            columns, around,        whole_cells ? around.wider(1) : around};
}

void Segment::run(const Plan& plan, const Rows& y, const std::function<void(int, int)>& make_y, int answer_row,
                  const Answer& answer, const uint32_t* const* zeros, Arena& arena) const {
    const int height = y.height(), cells = plan.columns.cells();
    const ptrdiff_t width = round_up(cells, UNIT);
    const int outputs = tail_.outputs(), together = tail_.rows_together();
    const Rows narrow = tail_.rows(arena, zeros, height, together + 2, COLUMNS, cells);
    const size_t row_logits = COLUMNS * outputs * width;
    float* const logits = arena.take_floats(together * row_logits);
    // What reads a unit from anywhere in the last row of logits reads into this, too.
    float* const edge = arena.take_floats(outputs * UNIT);
    uint32_t* const winograd = arena.take(std::max(narrow_.scratch_words(), tail_.scratch_words()));
    if (!arena.has_memory()) return;

    Stream y_rows(plan.y.first, height, plan.y_groups, make_y);
    Stream narrow_rows(plan.narrow.first, height, plan.narrow_groups, [&](int row, int count) {
        y_rows.need(row + count + 1);
        convolve_rows(narrow_, y, COLUMNS, row, count, plan.around, winograd, [&](int at, int phase) {
            Finish finish = narrow.packing(at, phase);
            finish.slope = slope_;
            return finish;
        });
    });
    const Range wanted = plan.columns.wanted();
    const size_t pixels = size_t(wanted.count()) * PHASES;
    for (int row = plan.rows.first; row < plan.rows.last; row += together) {
        const int count = std::min(together, plan.rows.last - row);
        narrow_rows.need(row + count + 1);
        convolve_rows(tail_, narrow, COLUMNS, row, count, plan.columns, winograd, [&](int at, int phase) {
            Finish finish;
            finish.kept = logits + (at - row) * row_logits + phase * outputs * width, finish.kept_stride = width;
            return finish;
        });
        for (int at = row; at < row + count; ++at) {
            float* const row_of_logits = logits + (at - row) * row_logits;
            for (int phase = 0; phase < COLUMNS; ++phase) {
                add_border(narrow, at, phase, plan.columns, row_of_logits + phase * outputs * width, edge);
            }
            for (int half = 0; half < 2; ++half) {
                const size_t pixel = (size_t(at - answer_row) * 2 + half) * pixels;
                const float* of_half = row_of_logits + half * 2 * classes_ * width + wanted.first;
                const ptrdiff_t pair = outputs * width;
                switch (answer.kind) {
                    case AnswerKind::labels:
                        kernels_.labels(of_half, pair, width, classes_, wanted.count(), answer.labels + pixel);
                        break;
                    case AnswerKind::decision:
                        kernels_.decide(of_half, pair, width, classes_, wanted.count(), answer.labels + pixel,
                                        answer.values + pixel);
                        break;
                    default:
                        kernels_.values(of_half, pair, width, classes_, wanted.count(),
                                        answer.kind == AnswerKind::probabilities, answer.values + pixel * classes_);
                }
            }
        }
    }
}

void Segment::add_border(const Rows& narrow, int row, int phase, const Columns& columns, float* logits,
                         float* edge) const {
    const int outputs = tail_.outputs(), cells = columns.cells();
    const ptrdiff_t width = round_up(cells, UNIT);
    const auto add_line = [&](const Convolution& term) {
        Finish finish;
        finish.addend = finish.kept = logits, finish.addend_stride = finish.kept_stride = width;
        const uint32_t* line = narrow.row(row) + columns.begin();
        const Taps taps = taps_around(phase, 1, 1, COLUMNS, narrow.phase());
        term.row(&line, taps.data(), narrow.stride(), columns.units(), columns.finish(finish));
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
    const bool top = row == 0, bottom = row == narrow.height() - 1;
    const bool left = phase == 0 && columns.wanted().has(0);
    const bool right = phase == COLUMNS - 1 && columns.wanted().has(cells - 1);
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
