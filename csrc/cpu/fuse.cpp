#include "fuse.h"

#include <cstring>

namespace dssnet::cpu {
namespace {

constexpr int PIXELS = 4;  // of a cell at 1/2 resolution, a side
constexpr int NINE = 9;

// Which rows of values a cell's pixels read, per axis: value 0, 1, 2 (a, b, c) of cell -1, 0 or 1.
struct Values {
    int count;
    int cell[3], value[3];
};
constexpr Values VALUES[PIXELS] = {{3, {-1, 0, 0}, {2, 0, 1}},
                                   {2, {0, 0, 0}, {0, 1, 0}},
                                   {2, {0, 0, 0}, {1, 2, 0}},
                                   {3, {0, 0, 1}, {1, 2, 0}}};

// Words to the values that a column of pixels reads.
Taps value_taps(int column, ptrdiff_t map_words) {
    Taps taps = {};
    const Values& across = VALUES[column];
    for (int i = 0; i < across.count; ++i) taps[i] = across.value[i] * map_words + across.cell[i];
    return taps;
}

std::string numbered(const std::string& name, int number) { return name + "." + std::to_string(number); }

}  // namespace

Fuse::Fuse(const Kernels& kernels, const Operands& operands)
    : kernels_(kernels),
      sizes_(operands.sizes),
      mix_slope_(operands.slopes.at("fuse.mix")),
      smooth_slope_(operands.slopes.at("fuse.smooth")),
      reduce_slope_(operands.slopes.at("fuse.reduce")) {
    const Type y = operands.input("segment.narrow").type;
    if (sizes_.learned_upsampling) {
        const Type shuffled = operands.input("fuse.smooth").type, smooth = operands.input("fuse.reduce").type;
        for (int pixel = 0; pixel < PIXELS * PIXELS; ++pixel) {
            mix_.push_back(operands.convolution(kernels, numbered("fuse.mix", pixel), shuffled));
        }
        smooth_.push_back(operands.fastest(kernels, "fuse.smooth", smooth));
        reduce_.push_back(operands.fastest(kernels, "fuse.reduce", y));
        return;
    }
    mix_.push_back(operands.convolution(kernels, "fuse.mix", Type::f32));
    const Type values = operands.input("fuse.reduce.0").type;
    for (int product = 0; product < NINE; ++product) {
        // All nine have the same blocks: they are added up block by block.
        smooth_.push_back(operands.convolution(kernels, numbered("fuse.smooth", product), values));
        factor_steps_.push_back(1 / smooth_.back().input().step);
    }
    if (operands.winograd && values == Type::f32) {
        for (int column = 0; column < PIXELS; ++column) {
            reduce_.push_back(operands.fastest(kernels, numbered("fuse.reduce.column", column), y));
        }
        return;
    }
    for (int pixel = 0; pixel < PIXELS * PIXELS; ++pixel) {
        reduce_.push_back(operands.convolution(kernels, numbered("fuse.reduce", pixel), y));
    }
}

size_t Fuse::zero_words(int cells) const {
    const int phases = sizes_.learned_upsampling ? PIXELS : NINE;
    size_t words = Rows::words_of_row(1, mix_.front().groups(), cells);
    for (const Convolution* reader : {&smooth_.front(), &reduce_.front()}) {
        words = std::max(words, Rows::words_of_row(phases, reader->groups(), cells));
    }
    return words + PAD;
}

double Fuse::macs() const {
    // A convolution at 1/2 resolution gives 16 pixels a cell; those for one pixel or column of a cell are listed.
    const double pixels = sizes_.learned_upsampling ? PIXELS * PIXELS : 1, rows = by_columns() ? PIXELS : 1;
    double sum = 0;
    for (const Convolution& one : mix_) sum += one.macs();
    for (const Convolution& one : smooth_) sum += pixels * one.macs();
    for (const Convolution& one : reduce_) sum += pixels * rows * one.macs();
    return sum;
}

Fuse::Plan Fuse::plan(Range y, const Groups& groups, const Columns& columns, int height, bool map) const {
    Plan plan{y, {}, 0, Groups(0, 1), 0, columns};
    const int half = PIXELS * height;
    if (sizes_.learned_upsampling) {
        // What is left out of a group would change how the others are rounded.
        plan.y.first = groups.begin(y.first);
        const int together = smooth_.front().rows_together();
        plan.smooth = Groups(Groups(groups, 0, rows_together(map)), 1, together);
        const Range smooth = plan.smooth.around(plan.y.wider(1, half)), shuffled = smooth.wider(1, half);
        plan.first_smooth = smooth.first;
        plan.cells = {shuffled.first / PIXELS, (shuffled.last + PIXELS - 1) / PIXELS};
        return plan;
    }
    // Rows of cells in which y reads values. In Winograd's form the rows of a cell read all that any of them does. Of the
    // first row it reads none that the row before has a part in, and of the last none that the next one has.
    const Range values = by_columns() ? Range{y.first / PIXELS - 1, (y.last + PIXELS - 1) / PIXELS + 1}
                                      : Range{(y.first + PIXELS - 1) / PIXELS - 1, y.last / PIXELS + 1};
    plan.first_value = std::max(values.first, 0);
    plan.cells = {plan.first_value, std::min(values.last, height)};
    return plan;
}

Fuse::Run::Run(const Fuse& fuse, const Plan& plan, const Rows& shallow, const Rows& deep, const Rows& y, float* map,
               const uint32_t* const* zeros, Arena& arena)
    : fuse_(fuse),
      columns_(plan.columns),
      shallow_(shallow),
      deep_(deep),
      y_(y),
      map_(map),
      cells_(plan.columns.cells()),
      units_(plan.columns.units()),
      begin_(plan.columns.begin()),
      width_(round_up(cells_, UNIT)),
      y_rows_(arena.take_floats(map ? PIXELS * PIXELS * fuse.sizes_.y * width_ : 0)),
      cells_done_(plan.y.first / PIXELS),
      run_(run_words(cells_)) {
    const int height = shallow.height(), fused = fuse.sizes_.fused;
    const Convolution &smooth = fuse.smooth_.front(), &reduce = fuse.reduce_.front();
    if (fuse.sizes_.learned_upsampling) {
        const int half = PIXELS * height;
        // Made in whole cells, so up to three rows early.
        shuffled_ = smooth.rows(arena, zeros, half, smooth.rows_together() + 2 + 3, PIXELS, cells_);
        smooth_ = reduce.rows(arena, zeros, half, reduce.rows_together() + 2, PIXELS, cells_);
        winograd_ = WinogradParts(arena, std::max(shuffled_.row_words(), smooth_.row_words()));
        // Whole rows of cells: a pixel's convolutions read the same features.
        lower_ = Stream(plan.cells.first, height, [this](int row, int) { mix_row(row); });
        upper_ = Stream(plan.first_smooth, half, plan.smooth, [this](int row, int count) {
            lower_.need((row + count) / PIXELS + 1);
            const auto ending = [&](int at, int phase) {
                Finish finish = smooth_.packing(at, phase);
                finish.slope = fuse_.smooth_slope_;
                return finish;
            };
            convolve_rows(fuse_.smooth_.front(), shuffled_, PIXELS, row, count, columns_, winograd_, ending);
        });
        return;
    }
    // Cells beyond the last and the pads stay as they are here: zero.
    const size_t mixed_words = fused * run_ + PAD;
    mixed_rows_ = arena.take_floats(3 * mixed_words);
    zero_row_ = arena.take_floats(mixed_words);
    products_ = arena.take_floats(size_t(NINE) * WIDEST_BLOCK * width_);
    factors_ = smooth.rows(arena, zeros, 1, 1, NINE, cells_);
    values_ = reduce.rows(arena, zeros, height, 3, NINE, cells_);
    // Of a cell's three columns of values.
    if (fuse.by_columns()) winograd_ = WinogradParts(arena, 3 * values_.phase() + 2 * PAD);
    if (!arena.has_memory()) return;
    std::memset(mixed_rows_, 0, 3 * mixed_words * sizeof(float));
    std::memset(zero_row_, 0, mixed_words * sizeof(float));
    lower_ = Stream(plan.cells.first, height, [this](int row, int) { mix_row(row); });
    upper_ = Stream(plan.first_value, height, [this](int row, int) { values_row(row); });
}

float* Fuse::Run::mixed_row(int row) const {
    if (row < 0 || row >= shallow_.height()) return zero_row_ + PAD;
    return mixed_rows_ + row % 3 * (fuse_.sizes_.fused * run_ + PAD) + PAD;
}

void Fuse::Run::mix_row(int row) {
    const uint32_t* lines[2] = {shallow_.row(row) + begin_, deep_.row(row) + begin_};
    const ptrdiff_t here = 0;
    if (!fuse_.sizes_.learned_upsampling) {
        Finish finish;
        finish.slope = fuse_.mix_slope_;
        finish.kept = mixed_row(row), finish.kept_stride = run_;
        fuse_.mix_.front().row(lines, &here, shallow_.stride(), units_, columns_.finish(finish));
        return;
    }
    for (int i = 0; i < PIXELS; ++i) {
        for (int j = 0; j < PIXELS; ++j) {
            Finish finish = shuffled_.packing(PIXELS * row + i, j);
            finish.slope = fuse_.mix_slope_;
            const Convolution& mix = fuse_.mix_[PIXELS * i + j];
            mix.row(lines, &here, shallow_.stride(), units_, columns_.finish(finish));
        }
    }
}

void Fuse::Run::values_row(int row) {
    const int fused = fuse_.sizes_.fused, cells = cells_ - int(begin_);
    lower_.need(row + 2);
    NinePacked factors = {{}, {}, factors_.stride(), factors_.format().type};
    NinePacked values = {{}, {}, values_.stride(), values_.format().type};
    for (int i = 0; i < NINE; ++i) {
        factors.maps[i] = factors_.row(0) + i * factors_.phase() + begin_;
        factors.inverse_steps[i] = fuse_.factor_steps_[i];
        values.maps[i] = values_.row(row) + i * values_.phase() + begin_;
        values.inverse_steps[i] = 1 / values_.format().step;
    }
    const float* mixed[3];
    for (int i = 0; i < 3; ++i) mixed[i] = mixed_row(row + i - 1) + begin_;
    fuse_.kernels_.factors(mixed[0], mixed[1], mixed[2], fused, run_, units_, cells, factors);
    // Products are packed closely: only the units that are wanted.
    const ptrdiff_t width = units_ * UNIT;
    const Convolution& first = fuse_.smooth_.front();
    for (int block = 0, begin = 0; block < first.blocks(); begin += first.block_sizes()[block++]) {
        for (int product = 0; product < NINE; ++product) {
            const uint32_t* line = factors.maps[product];
            const ptrdiff_t here = 0;
            Finish finish;
            // Outputs are counted from the first block's first.
            finish.kept = products_ + (product * WIDEST_BLOCK - begin) * width, finish.kept_stride = width;
            finish.cells = cells;
            fuse_.smooth_[product].row(&line, &here, factors_.stride(), units_, finish, block, block + 1);
        }
        const int count = first.block_sizes()[block];
        fuse_.kernels_.combine(products_, begin, count, units_, cells, fuse_.smooth_slope_, values);
    }
}

Finish Fuse::Run::y_ending(int row, int phase) {
    Finish finish = y_.packing(row, phase);
    finish.slope = fuse_.reduce_slope_;
    const int channels = fuse_.sizes_.y;
    if (map_) finish.kept = y_rows_ + (row % PIXELS * PIXELS + phase) * channels * width_, finish.kept_stride = width_;
    return finish;
}

void Fuse::Run::export_y(int row) {
    const int channels = fuse_.sizes_.y;
    if (!map_) return;
    const float* floats = y_rows_ + row % PIXELS * PIXELS * channels * width_;
    export_row(floats, PIXELS, channels, cells_, width_, map_ + size_t(row) * PIXELS * cells_ * channels);
}

// All four rows of y of a row of cells.
void Fuse::Run::y_cells(int row) {
    upper_.need(row + 2);
    // The up-sampled map's rows around the cell: c of the cell before, a, b, b, c, a of the cell after.
    constexpr int CELL[WinogradParts::COUNT] = {-1, 0, 0, 0, 0, 1}, VALUE[WinogradParts::COUNT] = {2, 0, 1, 1, 2, 0};
    const uint32_t* lines[WinogradParts::COUNT];
    for (int i = 0; i < WinogradParts::COUNT; ++i) {
        lines[i] = values_.read(row + CELL[i]) + 3 * VALUE[i] * values_.phase() - PAD;
    }
    winograd_.transform(fuse_.kernels_, lines, 3 * values_.groups(), values_.stride(), columns_);
    for (int i = 0; i < WinogradParts::COUNT; ++i) lines[i] = winograd_.part(i) + PAD + begin_;
    for (int phase = 0; phase < PIXELS; ++phase) {
        const Taps taps = value_taps(phase, values_.phase());
        Finish rows[PIXELS];
        for (int i = 0; i < PIXELS; ++i) rows[i] = columns_.finish(y_ending(PIXELS * row + i, phase));
        fuse_.reduce_[phase].winograd_rows(lines, taps.data(), values_.stride(), units_, rows, PIXELS);
    }
    for (int i = 0; i < PIXELS; ++i) export_y(PIXELS * row + i);
}

void Fuse::Run::make(int first, int count) {
    if (fuse_.by_columns()) {
        for (; PIXELS * cells_done_ < first + count; ++cells_done_) y_cells(cells_done_);
        return;
    }
    if (fuse_.sizes_.learned_upsampling) {
        // One row at a time where somebody wants it as floats; never more than are kept of what is read.
        const int together = fuse_.rows_together(map_);
        for (int row = first; row < first + count; row += together) {
            const int rows = std::min(together, first + count - row);
            upper_.need(row + rows + 1);
            convolve_rows(fuse_.reduce_.front(), smooth_, PIXELS, row, rows, columns_, winograd_,
                          [&](int at, int phase) { return y_ending(at, phase); });
            export_y(row);
        }
        return;
    }
    for (int row = first; row < first + count; ++row) {
        const int cell = row / PIXELS;
        const Values& down = VALUES[row % PIXELS];
        upper_.need(cell + (down.cell[down.count - 1] > 0 ? 2 : 1));
        const uint32_t* lines[3];
        for (int i = 0; i < down.count; ++i) {
            lines[i] = values_.read(cell + down.cell[i]) + 3 * down.value[i] * values_.phase() + begin_;
        }
        for (int phase = 0; phase < PIXELS; ++phase) {
            const Taps taps = value_taps(phase, values_.phase());
            const Convolution& reduce = fuse_.reduce_[row % PIXELS * PIXELS + phase];
            const Finish finish = columns_.finish(y_ending(row, phase));
            reduce.row(lines, taps.data(), values_.stride(), units_, finish);
        }
        export_y(row);
    }
}

}  // namespace dssnet::cpu
