#include "network.h"

#include <chrono>

namespace dssnet::cpu {
namespace {

constexpr size_t KEPT_BYTES = size_t(256) << 20;  // of memory for the next run, at most
constexpr int COLUMNS = 4;                        // of a cell at 1/2 resolution

}  // namespace

Network::Network(const Kernels& kernels, const Operands& operands)
    : kernels_(kernels),
      sizes_(operands.sizes),
      downsample_(kernels, operands),
      extract_(kernels, operands),
      fuse_(kernels, operands),
      segment_(kernels, operands) {
    if (sizes_.edges) edges_.emplace(kernels, operands);
}

std::unique_ptr<Memory> Network::borrow() const {
    const std::lock_guard lock(fork_safe_mutex());
    if (kept_.empty()) return std::make_unique<Memory>();
    std::unique_ptr<Memory> memory = std::move(kept_.back());
    kept_.pop_back();
    return memory;
}

void Network::give_back(std::unique_ptr<Memory> memory) const {
    const std::lock_guard lock(fork_safe_mutex());
    size_t bytes = memory->bytes();
    for (const std::unique_ptr<Memory>& one : kept_) bytes += one->bytes();
    if (bytes <= KEPT_BYTES) kept_.push_back(std::move(memory));
}

Segment::Plan Network::segment_plan(const Run& run, Range rows) const {
    const int half = COLUMNS * (run.height / PHASES);
    return segment_.plan({COLUMNS * rows.first, COLUMNS * rows.last}, run.columns(), half, in_whole_cells());
}

Edges::Plan Network::edge_plan(const Run& run, Range rows) const {
    const int half = COLUMNS * (run.height / PHASES);
    return edges_->plan({COLUMNS * rows.first, COLUMNS * rows.last}, run.columns(), half);
}

Fuse::Plan Network::fuse_plan(const Run& run, Range rows) const {
    // The groups are those of the segmentation head, whoever wants which rows.
    const Segment::Plan segment = segment_plan(run, rows);
    const Range y = run.makes_edges() && !run.makes_answer() ? Range{} : segment.y;
    const Range edges = run.makes_edges() ? edge_plan(run, rows).first : Range{};
    return fuse_.plan(y, edges, segment.y_groups, segment.y_columns, run.height / PHASES, in_whole_cells());
}

Extract::Plan Network::extract_plan(const Run& run) const {
    const Fuse::Plan fuse = fuse_plan(run, run.rows());
    return extract_.plan(run.height / PHASES, {fuse.cells, fuse.of_features});
}

Network::Layout Network::layout(const Run& run, const Extract::Plan& plan) const {
    const int cells = run.width / PHASES;
    Layout layout;
    layout.zeros = std::max({downsample_.zero_words(cells), extract_.zero_words(cells), fuse_.zero_words(cells),
                             segment_.zero_words(cells)});
    if (edges_) layout.zeros = std::max(layout.zeros, edges_->zero_words(cells));
    layout.zeros = (layout.zeros + PAD - 1) / PAD * PAD;
    Arena counted;
    const uint32_t* const anything = counted.take(0);
    const uint32_t* const zeros[TYPES] = {anything, anything, anything, anything};
    extract_.maps(plan, zeros, fuse_.input(), counted);
    layout.shared = counted.used();
    layout.scratch = 0;
    run_stages(run, plan, 0, {0, 1, nullptr}, zeros, Arena(), Arena(), &layout.scratch);
    return layout;
}

size_t Network::workspace_bytes(const Run& run, int threads) const {
    return 4 * layout(run, extract_plan(run)).words(threads);
}

std::array<Macs, 3> Network::macs(int height, int width) const {
    const double units = double(height / PHASES) * (round_up(width / PHASES, UNIT) / UNIT);
    return {units * downsample_.macs(), units * extract_.macs(), units * (fuse_.macs() + segment_.macs())};
}

void Network::run(const Run& run, int threads) const {
    if (run.batch == 0 || run.height == 0 || run.width == 0) return;
    if (run.has_core && (run.rows().count() == 0 || run.core_columns.count() == 0)) return;
    const Extract::Plan plan = extract_plan(run);
    const Layout layout = this->layout(run, plan);
    std::unique_ptr<Memory> memory = borrow();
    uint32_t* words = nullptr;
    int together = 0;  // images that members take one each of, without waiting for each other
    size_t words_of_image = 0;
    run_together(
        threads,
        [&](int size) {
            together = run.batch >= size ? run.batch / size * size : 0;
            words_of_image = layout.words(1);
            const size_t split = together < run.batch ? layout.words(size) : 0;
            words = memory->words(std::max(together ? size * words_of_image : 0, split));
        },
        [&](const Member& member) {
            for (int image = member.rank; image < together; image += member.size) {
                run_image(run, plan, image, {0, 1, nullptr}, layout, words + member.rank * words_of_image);
            }
            for (int image = together; image < run.batch; ++image) {
                member.wait();
                run_image(run, plan, image, member, layout, words);
            }
        });
    give_back(std::move(memory));
}

void Network::run_image(const Run& run, const Extract::Plan& plan, int image, const Member& member, const Layout& layout,
                        uint32_t* memory) const {
    uint32_t *const plain = memory, *const bytes = memory + layout.zeros, *const shared = memory + 2 * layout.zeros;
    if (member.rank == 0) {
        std::fill_n(plain, layout.zeros, zero_word(Type::f32));
        std::fill_n(bytes, layout.zeros, zero_word(Type::i8));
    }
    member.wait();
    const uint32_t* const zeros[TYPES] = {plain, plain, bytes, plain};
    uint32_t* const scratch = shared + layout.shared + member.rank * layout.scratch;
    run_stages(run, plan, image, member, zeros, Arena(shared), Arena(scratch), nullptr);
}

// Every stage takes all of `scratch`. Where `most` is not null nothing is computed, and the words that the hungriest
// stage would take are put there.
void Network::run_stages(const Run& run, const Extract::Plan& plan, int image, const Member& member,
                         const uint32_t* const* zeros, Arena shared, Arena scratch, size_t* most) const {
    const int height = run.height / PHASES, cells = run.width / PHASES;
    const size_t pixels = size_t(run.height) * run.width, map = size_t(height) * cells;
    const size_t half_map = map * COLUMNS * COLUMNS;
    const bool all = run.stage == Stage::all;
    const auto share = [&](Range rows) -> Range {
        const auto [first, last] = member.share(rows.count(), 4);
        return {rows.first + first, rows.first + last};
    };
    const Range mine = share(run.rows());
    const auto of_image = [&](auto* data, size_t size) { return data ? data + image * size : nullptr; };
    using Clock = std::chrono::steady_clock;
    Clock::time_point started = Clock::now();
    const auto end_stage = [&](const Arena& arena, int stage) {
        if (most) {
            *most = std::max(*most, arena.used());
            return;
        }
        member.wait();
        if (run.seconds && member.rank == 0) {
            const Clock::time_point now = Clock::now();
            run.seconds[stage] += std::chrono::duration<double>(now - started).count();
            started = now;
        }
    };
    const Extract::Maps maps = extract_.maps(plan, zeros, fuse_.input(), shared);

    // A caller's map, packed row by row.
    const auto pack = [&](const float* from, int channels, int phases, const Rows& to, int row, float* floats) {
        const ptrdiff_t width = round_up(cells, UNIT);
        import_row(from + size_t(row) * phases * cells * channels, phases, channels, cells, width, floats);
        for (int phase = 0; phase < phases; ++phase) {
            Finish finish = to.packing(row, phase);
            finish.outputs = channels;
            kernels_.finish(floats + phase * channels * width, width, int(width) / UNIT, finish);
        }
    };
    const auto pack_map = [&](const float* from, int channels, const Rows& to) {
        Arena arena = scratch;
        float* const floats = arena.take_floats(size_t(channels) * round_up(cells, UNIT));
        for (int row = mine.first; row < mine.last && !most; ++row) pack(from, channels, 1, to, row, floats);
        if (most) *most = std::max(*most, arena.used());
    };

    if (all || run.stage == Stage::downsample) {
        Arena arena = scratch;
        Image pixel_data;
        pixel_data.height = run.height, pixel_data.width = run.width;
        pixel_data.bytes = of_image(run.bytes, pixels * sizes_.in_channels);
        pixel_data.floats = of_image(run.floats, pixels * sizes_.in_channels);
        const Range rows = share(plan.x0.rows);
        float* const x0 = of_image(run.x0, map * sizes_.width);
        downsample_.run(pixel_data, rows.first, rows.last, plan.x0.columns, maps.x0, x0, zeros, arena);
        end_stage(arena, 0);
    }
    if (run.stage == Stage::extract) {
        pack_map(of_image(run.x0_in, map * sizes_.width), sizes_.width, maps.x0);
        if (!most) member.wait();
    }
    if (all || run.stage == Stage::extract) {
        Arena arena = scratch;
        const size_t size = map * sizes_.features;
        extract_.run(plan, maps, member, of_image(run.shallow, size), of_image(run.deep, size), zeros, arena);
        end_stage(arena, 1);
    }
    if (run.stage == Stage::fuse || run.stage == Stage::edges) {
        const size_t size = map * sizes_.features;
        pack_map(of_image(run.shallow_in, size), sizes_.features, maps.shallow);
        pack_map(of_image(run.deep_in, size), sizes_.features, maps.deep);
        if (!most) member.wait();
    }
    if (run.stage == Stage::downsample || run.stage == Stage::extract) return;

    Arena arena = scratch;
    const bool makes_y = run.makes_answer() || run.stage == Stage::fuse;
    const Rows y = makes_y ? segment_.y_rows(arena, zeros, COLUMNS * height, fuse_.rows_early(), cells) : Rows();
    Segment::Plan segment = segment_plan(run, mine);
    const int answer_row = COLUMNS * run.rows().first;
    const size_t answered = size_t(PHASES * run.rows().count()) * PHASES * run.columns().wanted().count();
    std::optional<Edges::Run> edges;
    if (run.makes_edges()) {
        edges.emplace(*edges_, edge_plan(run, mine), COLUMNS * height, fuse_.edge_rows_together(),
                      of_image(run.edges, answered / 4), answer_row, zeros, arena);
    }
    const bool decides = run.kind == AnswerKind::decision;
    Answer answer;
    answer.kind = run.kind, answer.labels = of_image(run.labels, answered);
    answer.values = of_image(run.values, answered * (decides ? 1 : sizes_.classes));
    if (run.stage == Stage::segment) {
        const float* from = of_image(run.y_in, half_map * sizes_.y);
        float* const floats = arena.take_floats(size_t(COLUMNS) * sizes_.y * round_up(cells, UNIT));
        const auto make_y = [&](int row, int rows) {
            for (int i = row; i < row + rows; ++i) pack(from, sizes_.y, COLUMNS, y, i, floats);
        };
        segment_.run(segment, y, make_y, answer_row, answer, zeros, arena);
    } else if (all || run.stage == Stage::edges) {
        const Fuse::Plan plan = fuse_plan(run, mine);
        Fuse::Run fuse(fuse_, plan, maps.shallow, maps.deep, y, nullptr, edges ? &*edges : nullptr, zeros, arena);
        if (run.makes_answer()) {
            segment.y = plan.y;
            const auto make_y = [&](int row, int rows) { fuse.make(row, rows); };
            segment_.run(segment, y, make_y, answer_row, answer, zeros, arena);
        }
        if (edges && !most) fuse.finish_edges();
    } else {
        const Range rows = {COLUMNS * mine.first, COLUMNS * mine.last};
        const Fuse::Plan plan = fuse_.plan(rows, {}, Groups(COLUMNS * height, 1), run.columns(), height, in_whole_cells(), true);
        float* const map = of_image(run.y, half_map * sizes_.y);
        Fuse::Run fuse(fuse_, plan, maps.shallow, maps.deep, y, map, nullptr, zeros, arena);
        for (int row = rows.first; row < rows.last && !most; ++row) fuse.make(row, 1);
    }
    end_stage(arena, 2);
}

}  // namespace dssnet::cpu
