#include "fuse.h"

#include <cstring>

namespace dssnet::cpu {
namespace {

constexpr int NINE = 9;
constexpr int SMOOTH_PANEL = 12;  // outputs whose nine products stay in a near cache; tiles have more

// Which rows of values a cell's pixels read, per axis: value 0, 1, 2 (a, b, c) of cell -1, 0 or 1.
struct Values {
    int count;
    int cell[3], value[3];
};
constexpr Values VALUES[] = {{3, {-1, 0, 0}, {2, 0, 1}},
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

// Rows of values that have to be there for a row of pixels.
int values_for(int row) {
    const Values& down = VALUES[row % 4];
    return row / 4 + (down.cell[down.count - 1] > 0 ? 2 : 1);
}

std::string numbered(const std::string& name, int number) { return name + "." + std::to_string(number); }

}  // namespace

Fuse::Fuse(const Kernels& kernels, const Operands& operands)
    : kernels_(kernels),
      sizes_(operands.sizes),
      mix_slope_(operands.slopes.at("fuse.mix")),
      smooth_slope_(operands.slopes.at("fuse.smooth")),
      reduce_slope_(operands.slopes.at("fuse.reduce")),
      edge_slope_(sizes_.edges ? operands.slopes.at("edge.first") : 1) {
    // The edge head's first convolution reads what `fuse.reduce` reads, in the same form and format.
    std::vector<std::pair<std::string, std::vector<Convolution>*>> readers = {{"fuse.reduce", &reduce_}};
    if (sizes_.edges) readers.emplace_back("edge.first", &edge_);
    if (sizes_.learned_upsampling) {
        for (int pixel = 0; pixel < PIXELS * PIXELS; ++pixel) {
            mix_.push_back(operands.convolution(kernels, numbered("fuse.mix", pixel)));
        }
        smooth_.push_back(operands.fastest(kernels, "fuse.smooth", Form::cells));
        for (const auto& [name, convolutions] : readers) {
            convolutions->push_back(operands.fastest(kernels, name, Form::cells));
        }
        return;
    }
    mix_.push_back(operands.convolution(kernels, "fuse.mix"));
    for (int product = 0; product < NINE; ++product) {
        // All nine have the same panels: they are added up panel by panel.
        smooth_.push_back(operands.convolution(kernels, numbered("fuse.smooth", product), SMOOTH_PANEL));
        factor_steps_.push_back(1 / smooth_.back().input().step);
    }
    // In int8 the weights of each pixel are added up before they are rounded, and are no 3x3 convolution any more.
    bool by_cells = operands.input("fuse.reduce").type != Type::i8;
    for (const auto& [name, _] : readers) by_cells = by_cells && operands.has_form(kernels, name, Form::cells);
    for (const auto& [name, convolutions] : readers) {
        if (by_cells) {
            convolutions->push_back(operands.fastest(kernels, name, Form::cells));
            continue;
        }
        for (int pixel = 0; pixel < PIXELS * PIXELS; ++pixel) {
            convolutions->push_back(operands.convolution(kernels, numbered(name, pixel)));
        }
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

Macs Fuse::macs() const {
    // A convolution at 1/2 resolution gives 16 pixels a cell; those for one pixel are listed.
    const double all = PIXELS * PIXELS, pixels = sizes_.learned_upsampling ? all : 1;
    Macs sum;
    for (const Convolution& one : mix_) sum += one.macs();
    for (const Convolution& one : smooth_) sum += pixels * one.macs();
    for (const Convolution& one : reduce_) sum += (by_cells() ? all : pixels) * one.macs();
    return sum;
}

Fuse::Plan Fuse::plan(Range y, Range edges, const Groups& groups, const Columns& columns, int height, bool whole_cells,
                      bool map) const {
    // What edges read of the outermost cells' maps has a part of the next cell's features.
    const int more = whole_cells ? 1 : 0, beyond = whole_cells || edges.count() > 0 ? 1 : 0;
    const Columns of_values = columns.wider(more);
    Plan plan{y, edges, {}, 0, Groups(0, 1), 0, columns, of_values, of_values.wider(beyond)};
    const int half = PIXELS * height;
    const auto cells_of = [](Range rows) -> Range { return {rows.first / PIXELS, (rows.last + PIXELS - 1) / PIXELS}; };
    const auto wider = [](Range rows, int end) { return rows.count() > 0 ? rows.wider(1, end) : rows; };
    if (sizes_.learned_upsampling) {
        // What is left out of a group would change how the others are rounded.
        if (y.count() > 0) plan.y.first = groups.begin(y.first);
        if (edge_rows_together() == PIXELS) {
            const Range cells = cells_of(edges);
            plan.edges = {PIXELS * cells.first, PIXELS * cells.last};
        }
        const int together = smooth_.front().rows_together();
        plan.smooth = Groups(Groups(groups, 0, rows_together(map)), 1, together);
        const Range smooth = plan.smooth.around(around_both(wider(plan.y, half), wider(plan.edges, half)));
        plan.first_smooth = smooth.first;
        plan.cells = cells_of(smooth.wider(1, half));
        return plan;
    }
    // Rows of cells in which values are read. In Winograd's form the rows of a cell read all that any of them does. Of the
    // first row y reads none that the row before has a part in, and of the last none that the next one has; nor do edges
    // in Winograd's form.
    const auto values_of = [&](Range rows) -> Range {
        if (rows.count() <= 0) return {};
        if (by_cells()) return {rows.first / PIXELS - 1, (rows.last + PIXELS - 1) / PIXELS + 1};
        return {(rows.first + PIXELS - 1) / PIXELS - 1, rows.last / PIXELS + 1};
    };
    const Range of_y = values_of(y), of_edges = values_of(edges), values = around_both(of_y, of_edges);
    plan.first_value = std::max(values.first, 0);
    plan.cells = around_both(of_y, by_cells() ? of_edges : wider(of_edges, height)).wider(0, height);
    return plan;
}

Fuse::Run::Run(const Fuse& fuse, const Plan& plan, const Rows& shallow, const Rows& deep, const Rows& y, float* map,
               Edges::Run* edges, const uint32_t* const* zeros, Arena& arena)
    : fuse_(fuse),
      columns_(plan.columns),
      of_values_(plan.of_values),
      of_features_(plan.of_features),
      shallow_(shallow),
      deep_(deep),
      y_(y),
      map_(map),
      edges_(edges),
      cells_(plan.columns.cells()),
      width_(round_up(cells_, UNIT)),
      y_rows_(arena.take_floats(map ? PIXELS * PIXELS * fuse.sizes_.y * width_ : 0)),
      wanted_y_(plan.y),
      wanted_edges_(plan.edges),
      next_cells_(around_both(plan.y, plan.edges).first / PIXELS),
      next_edge_(plan.edges.first),
      run_(run_words(cells_)) {
    const int height = shallow.height(), fused = fuse.sizes_.fused;
    const Convolution &smooth = fuse.smooth_.front(), &reduce = fuse.reduce_.front();
    size_t scratch_words = std::max(smooth.scratch_words(), reduce.scratch_words());
    if (!fuse.edge_.empty()) scratch_words = std::max(scratch_words, fuse.edge_.front().scratch_words());
    if (fuse.sizes_.learned_upsampling) {
        const int half = PIXELS * height;
        // Made in whole cells, so up to three rows early.
        shuffled_ = smooth.rows(arena, zeros, half, smooth.rows_together() + 2 + 3, PIXELS, cells_);
        // Edges are made in whole cells, up to four rows after y.
        const int kept = reduce.rows_together() + 2 + (edges ? 4 : 0);
        smooth_ = reduce.rows(arena, zeros, half, kept, PIXELS, cells_);
        winograd_ = arena.take(scratch_words);
        // Whole rows of cells: a pixel's convolutions read the same features.
        lower_ = Stream(plan.cells.first, height, [this](int row, int) { mix_row(row); });
        upper_ = Stream(plan.first_smooth, half, plan.smooth, [this](int row, int count) {
            lower_.need((row + count) / PIXELS + 1);
            const auto ending = [&](int at, int phase) {
                Finish finish = smooth_.packing(at, phase);
                finish.slope = fuse_.smooth_slope_;
                return finish;
            };
            convolve_rows(fuse_.smooth_.front(), shuffled_, PIXELS, row, count, of_values_, winograd_, ending);
        });
        return;
    }
    // Cells beyond the last and the pads stay as they are here: zero.
    const size_t mixed_words = fused * run_ + PAD;
    mixed_rows_ = arena.take_floats(3 * mixed_words);
    zero_row_ = arena.take_floats(mixed_words);
    products_ = arena.take_floats(size_t(NINE) * smooth.widest_panel() * width_);
    factors_ = smooth.rows(arena, zeros, 1, 1, NINE, cells_);
    values_ = reduce.rows(arena, zeros, height, 3, NINE, cells_);
    winograd_ = arena.take(scratch_words);
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
    const ptrdiff_t begin = of_features_.begin(), here = 0;
    const int units = of_features_.units();
    const uint32_t* lines[2] = {shallow_.row(row) + begin, deep_.row(row) + begin};
    if (!fuse_.sizes_.learned_upsampling) {
        Finish finish;
        finish.slope = fuse_.mix_slope_;
        finish.kept = mixed_row(row), finish.kept_stride = run_;
        fuse_.mix_.front().row(lines, &here, shallow_.stride(), units, of_features_.finish(finish));
        return;
    }
    for (int i = 0; i < PIXELS; ++i) {
        for (int j = 0; j < PIXELS; ++j) {
            Finish finish = shuffled_.packing(PIXELS * row + i, j);
            finish.slope = fuse_.mix_slope_;
            const Convolution& mix = fuse_.mix_[PIXELS * i + j];
            mix.row(lines, &here, shallow_.stride(), units, of_features_.finish(finish));
        }
    }
}

void Fuse::Run::values_row(int row) {
    const ptrdiff_t begin = of_values_.begin();
    const int fused = fuse_.sizes_.fused, units = of_values_.units(), cells = cells_ - int(begin);
    lower_.need(row + 2);
    NinePacked factors = {{}, {}, factors_.stride(), factors_.format().type};
    NinePacked values = {{}, {}, values_.stride(), values_.format().type};
    for (int i = 0; i < NINE; ++i) {
        factors.maps[i] = factors_.row(0) + i * factors_.phase() + begin;
        factors.inverse_steps[i] = fuse_.factor_steps_[i];
        values.maps[i] = values_.row(row) + i * values_.phase() + begin;
        values.inverse_steps[i] = 1 / values_.format().step;
    }
    const float* mixed[3];
    for (int i = 0; i < 3; ++i) mixed[i] = mixed_row(row + i - 1) + begin;
    fuse_.kernels_.factors(mixed[0], mixed[1], mixed[2], fused, run_, units, cells, factors);
    // Products are packed closely: only the units that are wanted.
    const ptrdiff_t width = units * UNIT, plane = fuse_.smooth_.front().widest_panel() * width;
    const std::vector<int>& panels = fuse_.smooth_.front().panels();
    for (int panel = 0, first = 0; panel < int(panels.size()); first += panels[panel++]) {
        for (int product = 0; product < NINE; ++product) {
            const uint32_t* line = factors.maps[product];
            const ptrdiff_t here = 0;
            Finish finish;
            // Outputs are counted from the first panel's first.
            finish.kept = products_ + product * plane - first * width, finish.kept_stride = width;
            finish.cells = cells;
            fuse_.smooth_[product].row(&line, &here, factors_.stride(), units, finish, panel, panel + 1);
        }
        fuse_.kernels_.combine(products_, plane, first, panels[panel], units, cells, fuse_.smooth_slope_, values);
    }
}

Finish Fuse::Run::y_ending(int row, int phase) {
    Finish finish = y_.packing(row, phase);
    finish.slope = fuse_.reduce_slope_;
    const int channels = fuse_.sizes_.y;
    if (map_) finish.kept = y_rows_ + (row % PIXELS * PIXELS + phase) * channels * width_, finish.kept_stride = width_;
    return finish;
}

Finish Fuse::Run::edge_ending(int row, int phase) {
    Finish finish = edges_->first().packing(row, phase);
    finish.slope = fuse_.edge_slope_;
    return finish;
}

void Fuse::Run::export_y(int row) {
    const int channels = fuse_.sizes_.y;
    if (!map_) return;
    const float* floats = y_rows_ + row % PIXELS * PIXELS * channels * width_;
    export_row(floats, PIXELS, channels, cells_, width_, map_ + size_t(row) * PIXELS * cells_ * channels);
}

// All four rows of y and of edges of a row of cells.
void Fuse::Run::rows_of_cells(int row) {
    upper_.need(row + 2);
    // The up-sampled map's rows around the cell: c of the cell before, a, b, b, c, a of the cell after. So are its columns.
    constexpr int CELL[] = {-1, 0, 0, 0, 0, 1}, VALUE[] = {2, 0, 1, 1, 2, 0};
    const uint32_t* lines[6];
    CellColumns columns;
    for (int i = 0; i < 6; ++i) {
        lines[i] = values_.read(row + CELL[i]) + 3 * VALUE[i] * values_.phase() + columns_.begin();
        columns[i] = VALUE[i] * values_.phase() + CELL[i];
    }
    const auto convolve = [&](const Convolution& convolution, const auto& end) {
        Finish pixels[PIXELS * PIXELS];
        for (int i = 0; i < PIXELS * PIXELS; ++i) pixels[i] = columns_.finish(end(PIXELS * row + i / PIXELS, i % PIXELS));
        convolution.cell_rows(lines, columns.data(), values_.stride(), columns_.units(), winograd_, pixels, PIXELS);
    };
    const Range rows = {PIXELS * row, PIXELS * (row + 1)};
    if (rows.last > wanted_y_.first && rows.first < wanted_y_.last) {
        convolve(fuse_.reduce_.front(), [&](int at, int phase) { return y_ending(at, phase); });
        for (int i = rows.first; i < rows.last; ++i) export_y(i);
    }
    if (rows.last > wanted_edges_.first && rows.first < wanted_edges_.last) {
        convolve(fuse_.edge_.front(), [&](int at, int phase) { return edge_ending(at, phase); });
        edges_->take(rows.first, PIXELS);
    }
}

// A row of convolutions of a cell's pixels.
template <class End>
void Fuse::Run::pixel_row(const std::vector<Convolution>& pixels, int row, const End& end) {
    const int cell = row / PIXELS;
    const Values& down = VALUES[row % PIXELS];
    const uint32_t* lines[3];
    for (int i = 0; i < down.count; ++i) {
        lines[i] = values_.read(cell + down.cell[i]) + 3 * down.value[i] * values_.phase() + columns_.begin();
    }
    for (int phase = 0; phase < PIXELS; ++phase) {
        const Taps taps = value_taps(phase, values_.phase());
        const Finish finish = columns_.finish(end(row, phase));
        pixels[row % PIXELS * PIXELS + phase].row(lines, taps.data(), values_.stride(), columns_.units(), finish);
    }
}

// Rows of edges for which all is there that they read; or all that are left.
void Fuse::Run::make_edges(bool all) {
    const auto end = [&](int row, int phase) { return edge_ending(row, phase); };
    const int together = fuse_.edge_rows_together();
    for (; next_edge_ < wanted_edges_.last; next_edge_ += together) {
        const int needed = fuse_.sizes_.learned_upsampling ? next_edge_ + together + 1 : values_for(next_edge_);
        if (!all && upper_.next() < std::min(needed, upper_.end())) return;
        upper_.need(needed);
        if (fuse_.sizes_.learned_upsampling) {
            convolve_rows(fuse_.edge_.front(), smooth_, PIXELS, next_edge_, together, columns_, winograd_, end);
        } else {
            pixel_row(fuse_.edge_, next_edge_, end);
        }
        edges_->take(next_edge_, together);
    }
}

void Fuse::Run::finish_edges() {
    if (!fuse_.by_cells()) return make_edges(true);
    for (; PIXELS * next_cells_ < wanted_edges_.last; ++next_cells_) rows_of_cells(next_cells_);
}

void Fuse::Run::make(int first, int count) {
    if (fuse_.by_cells()) {
        for (; PIXELS * next_cells_ < first + count; ++next_cells_) rows_of_cells(next_cells_);
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
            make_edges(false);
        }
        return;
    }
    for (int row = first; row < first + count; ++row) {
        upper_.need(values_for(row));
        pixel_row(fuse_.reduce_, row, [&](int at, int phase) { return y_ending(at, phase); });
        export_y(row);
        make_edges(false);
    }
}

}  // namespace dssnet::cpu
