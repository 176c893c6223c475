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
      segment_(kernels, operands) {}

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

Network::Layout Network::layout(const Run& run) const {
    const int cells = run.width / PHASES;
    Layout layout;
    layout.zeros = std::max({downsample_.zero_words(cells), extract_.zero_words(cells), fuse_.zero_words(cells),
                             segment_.zero_words(cells)});
    layout.zeros = (layout.zeros + PAD - 1) / PAD * PAD;
    Arena counted;
    const uint32_t* const anything = counted.take(0);
    const uint32_t* const zeros[TYPES] = {anything, anything, anything};
    extract_.maps(run.height / PHASES, cells, zeros, fuse_.input(), counted);
    layout.shared = counted.used();
    layout.scratch = 0;
    run_stages(run, 0, {0, 1, nullptr}, zeros, Arena(), Arena(), &layout.scratch);
    return layout;
}

size_t Network::workspace_bytes(int height, int width, int threads) const {
    Run run;
    run.height = height, run.width = width;
    return 4 * layout(run).words(threads);
}

std::array<double, 3> Network::macs(int height, int width) const {
    const double units = double(height / PHASES) * (round_up(width / PHASES, UNIT) / UNIT);
    return {units * downsample_.macs(), units * extract_.macs(), units * (fuse_.macs() + segment_.macs())};
}

void Network::run(const Run& run, int threads) const {
    if (run.batch == 0 || run.height == 0 || run.width == 0) return;
    const Layout layout = this->layout(run);
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
                run_image(run, image, {0, 1, nullptr}, layout, words + member.rank * words_of_image);
            }
            for (int image = together; image < run.batch; ++image) {
                member.wait();
                run_image(run, image, member, layout, words);
            }
        });
    give_back(std::move(memory));
}

void Network::run_image(const Run& run, int image, const Member& member, const Layout& layout, uint32_t* memory) const {
    uint32_t *const plain = memory, *const bytes = memory + layout.zeros, *const shared = memory + 2 * layout.zeros;
    if (member.rank == 0) {
        std::fill_n(plain, layout.zeros, zero_word(Type::f32));
        std::fill_n(bytes, layout.zeros, zero_word(Type::i8));
    }
    member.wait();
    const uint32_t* const zeros[TYPES] = {plain, plain, bytes};
    uint32_t* const scratch = shared + layout.shared + member.rank * layout.scratch;
    run_stages(run, image, member, zeros, Arena(shared), Arena(scratch), nullptr);
}

// Every stage takes all of `scratch`. Where `most` is not null nothing is computed, and the words that the hungriest
// stage would take are put there.
void Network::run_stages(const Run& run, int image, const Member& member, const uint32_t* const* zeros, Arena shared,
                         Arena scratch, size_t* most) const {
    const int height = run.height / PHASES, cells = run.width / PHASES;
    const size_t pixels = size_t(run.height) * run.width, map = size_t(height) * cells;
    const size_t half_map = map * COLUMNS * COLUMNS;
    const bool all = run.stage == Stage::all;
    const auto [first, last] = member.share(height, 4);
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
    const Extract::Maps maps = extract_.maps(height, cells, zeros, fuse_.input(), shared);

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
        for (int row = first; row < last && !most; ++row) pack(from, channels, 1, to, row, floats);
        if (most) *most = std::max(*most, arena.used());
    };

    if (all || run.stage == Stage::downsample) {
        Arena arena = scratch;
        Image pixel_data;
        pixel_data.height = run.height, pixel_data.width = run.width;
        pixel_data.bytes = of_image(run.bytes, pixels * sizes_.in_channels);
        pixel_data.floats = of_image(run.floats, pixels * sizes_.in_channels);
        downsample_.run(pixel_data, first, last, maps.x0, of_image(run.x0, map * sizes_.width), zeros, arena);
        end_stage(arena, 0);
    }
    if (run.stage == Stage::extract) {
        pack_map(of_image(run.x0_in, map * sizes_.width), sizes_.width, maps.x0);
        if (!most) member.wait();
    }
    if (all || run.stage == Stage::extract) {
        Arena arena = scratch;
        const size_t size = map * sizes_.features;
        extract_.run(maps, height, cells, member, of_image(run.shallow, size), of_image(run.deep, size), zeros, arena);
        end_stage(arena, 1);
    }
    if (run.stage == Stage::fuse) {
        const size_t size = map * sizes_.features;
        pack_map(of_image(run.shallow_in, size), sizes_.features, maps.shallow);
        pack_map(of_image(run.deep_in, size), sizes_.features, maps.deep);
        if (!most) member.wait();
    }
    if (run.stage == Stage::downsample || run.stage == Stage::extract) return;

    Arena arena = scratch;
    const Rows y = segment_.y_rows(arena, zeros, COLUMNS * height, fuse_.rows_early(), cells);
    const int first_row = COLUMNS * first, last_row = COLUMNS * last;
    Answer answer;
    answer.kind = run.kind, answer.labels = of_image(run.labels, pixels);
    answer.values = of_image(run.values, pixels * sizes_.classes);
    if (run.stage == Stage::segment) {
        const float* from = of_image(run.y_in, half_map * sizes_.y);
        float* const floats = arena.take_floats(size_t(COLUMNS) * sizes_.y * round_up(cells, UNIT));
        const auto make_y = [&](int row, int rows) {
            for (int i = row; i < row + rows; ++i) pack(from, sizes_.y, COLUMNS, y, i, floats);
        };
        segment_.run(y, make_y, cells, first_row, last_row, answer, zeros, arena);
    } else {
        const int begin = all ? segment_.first_y(first_row) : first_row;
        Fuse::Run fuse(fuse_, maps.shallow, maps.deep, y, of_image(run.y, half_map * sizes_.y), cells, begin, zeros, arena);
        if (all) {
            const auto make_y = [&](int row, int rows) { fuse.make(row, rows); };
            segment_.run(y, make_y, cells, first_row, last_row, answer, zeros, arena);
        } else if (!most) {
            for (int row = first_row; row < last_row; ++row) fuse.make(row, 1);
        }
    }
    end_stage(arena, 2);
}

}  // namespace dssnet::cpu
