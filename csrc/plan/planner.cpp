#include "planner.h"

#include <algorithm>
#include <cstddef>
#include <cstring>

namespace dssnet {
namespace {

constexpr int MAX_GRID = 65535;  // along y and z

int divide_up(int value, int by) { return (value + by - 1) / by; }

// Collects launches and buffers.
class Builder {
  public:
    Builder(const Network& network, const Request& request)
        : layout_(network), suffix_(request.precision == Precision::fp16 ? "_fp16" : "_bf16") {
        weights_ = buffer("weights", Role::weights, layout_.bytes);
    }

    uint32_t buffer(const std::string& name, Role role, uint64_t bytes) {
        plan_.buffers.push_back({name, role, bytes, 0});
        return uint32_t(plan_.buffers.size() - 1);
    }

    // A launch whose parameter block is `parameters`, with all addresses zero.
    template <class Parameters>
    void launch(const char* module, const std::string& kernel, std::array<uint32_t, 3> grid, int threads,
                int shared_bytes, const Parameters& parameters) {
        if (grid[1] > MAX_GRID || grid[2] > MAX_GRID) {
            throw PlanError("the images are too large or too many for one launch of " + kernel);
        }
        Launch launch{module, kernel + suffix_, grid, uint32_t(threads), uint32_t(shared_bytes), {}, {}};
        launch.parameters.resize(sizeof(Parameters));
        std::memcpy(launch.parameters.data(), &parameters, sizeof(Parameters));
        plan_.launches.push_back(std::move(launch));
    }

    // Points a field of the last launch's parameters at a buffer or an operand.
    void point(size_t field, uint32_t buffer) { relocate(field, buffer, 0); }
    void point(size_t field, const std::string& operand) { relocate(field, weights_, layout_.find(operand).offset); }

    Plan finish() {
        place_workspace();
        return std::move(plan_);
    }

  private:
    void relocate(size_t field, uint32_t buffer, uint64_t addend) {
        plan_.launches.back().relocations.push_back({uint32_t(field), buffer, addend});
    }

    // Gives every workspace buffer an offset; those never alive at once may share memory.
    void place_workspace() {
        struct Life {
            uint32_t buffer;
            int first, last;
        };
        std::vector<Life> placed;
        for (uint32_t i = 0; i < plan_.buffers.size(); ++i) {
            Buffer& buffer = plan_.buffers[i];
            if (buffer.role != Role::workspace) continue;
            Life life{i, int(plan_.launches.size()), -1};
            for (int n = 0; n < int(plan_.launches.size()); ++n) {
                for (const Relocation& relocation : plan_.launches[n].relocations) {
                    if (relocation.buffer == i) life.first = std::min(life.first, n), life.last = std::max(life.last, n);
                }
            }
            std::vector<const Buffer*> others;
            for (const Life& other : placed) {
                if (other.first <= life.last && life.first <= other.last) others.push_back(&plan_.buffers[other.buffer]);
            }
            std::sort(others.begin(), others.end(), [](auto* a, auto* b) { return a->offset < b->offset; });
            for (const Buffer* other : others) {
                if (buffer.offset + buffer.bytes <= other->offset) break;
                buffer.offset = std::max(buffer.offset, (other->offset + other->bytes + 255) / 256 * 256);
            }
            plan_.workspace_bytes = std::max(plan_.workspace_bytes, (buffer.offset + buffer.bytes + 255) / 256 * 256);
            placed.push_back(life);
        }
    }

    WeightLayout layout_;
    std::string suffix_;
    uint32_t weights_;
    Plan plan_;
};

// A tile of cells for the W-NECK chain.
struct ChainTile {
    int rows, columns;
    const char* name;
    bool released_only;
    int resident;  // blocks a multiprocessor has registers for
    int cells() const { return rows * columns; }
    int ring_cells() const { return (rows + 2) * (columns + 2); }
    int shared_bytes(const Sizes& sizes) const;
};

template <int ROWS, int COLUMNS>
int chain_shared_bytes(const Sizes& sizes) {
    using Tile = WneckTile<ROWS, COLUMNS>;
    // The head reads `width` channels where the blocks read `squeezed`; one tile serves both.
    return Tile::shared_bytes(std::max(sizes.width, sizes.squeezed), sizes.features, sizes.expanded, sizes.squeezed);
}

constexpr ChainTile CHAIN_TILES[] = {
    {8, 16, "8x16", true, 1},
    {8, 8, "8x8", false, 2},
    {4, 8, "4x8", false, 2},
};

int ChainTile::shared_bytes(const Sizes& sizes) const {
    if (columns == 16) return chain_shared_bytes<8, 16>(sizes);
    return rows == 8 ? chain_shared_bytes<8, 8>(sizes) : chain_shared_bytes<4, 8>(sizes);
}

// A rough model of a W-NECK launch, in clocks. Large tiles read the weights less often and waste
// less on their rings, small ones fill more multiprocessors. Rates are per multiprocessor and
// clock: dense fp16 products through mma.sync, and a share of the L2 cache's bandwidth.
double chain_clocks(const ChainTile& tile, const Sizes& sizes, uint64_t tiles, const DeviceProperties& device) {
    constexpr double PRODUCTS = 600, L2_BYTES = 24, WAVE = 3000;
    const double expand = 10.0 * sizes.features * sizes.expanded, restore = 9.0 * sizes.squeezed * sizes.features;
    const double squeeze = 2.0 * sizes.expanded * 9 * sizes.squeezed;
    const double products = tile.cells() * (expand + squeeze) + round_up(tile.ring_cells(), 16) * restore;
    const double weight_bytes = 2 * (expand + squeeze + restore);
    const int fit = device.shared_bytes_sm / (tile.shared_bytes(sizes) + 1024);
    const int resident = std::max(1, std::min(tile.resident, fit));
    const double rounds = double((tiles + device.multiprocessors - 1) / device.multiprocessors);
    const double waves = double((tiles + uint64_t(device.multiprocessors) * resident - 1) /
                                (uint64_t(device.multiprocessors) * resident));
    const double l2 = double(tiles) * weight_bytes / (L2_BYTES * device.multiprocessors);
    return std::max(rounds * products / PRODUCTS, l2) + waves * WAVE;
}

const ChainTile& choose_chain_tile(const Sizes& sizes, int batch, int height, int width, const DeviceProperties& device) {
    const ChainTile* best = nullptr;
    double least = 0;
    for (const ChainTile& tile : CHAIN_TILES) {
        if (tile.released_only && !sizes.released_wneck) continue;
        if (tile.shared_bytes(sizes) > device.shared_bytes_block) continue;
        const uint64_t tiles = uint64_t(batch) * divide_up(height, tile.rows) * divide_up(width, tile.columns);
        const double clocks = chain_clocks(tile, sizes, tiles, device);
        if (!best || clocks < least) best = &tile, least = clocks;
    }
    if (!best) {
        throw PlanError("a block of this network needs " + std::to_string(CHAIN_TILES[2].shared_bytes(sizes)) +
                        " bytes of shared memory, the device has " + std::to_string(device.shared_bytes_block));
    }
    return *best;
}

class Planner {
  public:
    Planner(const Network& network, const Request& request, const DeviceProperties& device)
        : network_(network), request_(request), device_(device), sizes_(network), builder_(network, request),
          height_(request.height / 8), width_(request.width / 8) {}

    Plan run() {
        switch (request_.stage) {
            case Stage::all: {
                const uint32_t image = image_buffer();
                const uint32_t x0 = map("x0", Role::workspace, sizes_.width);
                downsample(image, x0);
                const uint32_t shallow = map("shallow", Role::workspace, sizes_.features);
                const uint32_t deep = map("deep", Role::workspace, sizes_.features);
                extract(x0, shallow, deep);
                const uint32_t y = y_buffer(Role::workspace);
                fuse(shallow, deep, y);
                segment(y, answer_buffer());
                break;
            }
            case Stage::downsample: {
                const uint32_t image = image_buffer();
                downsample(image, map("x0", Role::output, sizes_.width));
                break;
            }
            case Stage::extract: {
                const uint32_t x0 = map("x0", Role::input, sizes_.width);
                const uint32_t shallow = map("shallow", Role::output, sizes_.features);
                extract(x0, shallow, map("deep", Role::output, sizes_.features));
                break;
            }
            case Stage::fuse: {
                const uint32_t shallow = map("shallow", Role::input, sizes_.features);
                const uint32_t deep = map("deep", Role::input, sizes_.features);
                fuse(shallow, deep, y_buffer(Role::output));
                break;
            }
            case Stage::segment: {
                const uint32_t y = y_buffer(Role::input);
                segment(y, answer_buffer());
                break;
            }
        }
        return builder_.finish();
    }

  private:
    // --- buffers ---

    uint64_t cells(int scale = 1) const { return uint64_t(request_.batch) * height_ * width_ * scale * scale; }

    uint32_t map(const std::string& name, Role role, int channels, int scale = 1) {
        return builder_.buffer(name, role, cells(scale) * channels * 2);
    }
    uint32_t image_buffer() {
        const uint64_t bytes = request_.input == Input::uint8 ? 1 : 4;
        return builder_.buffer("image", Role::input, cells(8) * network_.in_channels * bytes);
    }
    uint32_t y_buffer(Role role) { return map("y", role, HEAD_CHANNELS, 4); }
    uint32_t answer_buffer() {
        const uint64_t bytes = request_.answer == Answer::labels ? 1 : 4 * network_.classes;
        return builder_.buffer("answer", Role::output, cells(8) * bytes);
    }

    std::array<uint32_t, 3> grid(int height, int width, int rows, int columns) const {
        return {uint32_t(divide_up(width, columns)), uint32_t(divide_up(height, rows)), uint32_t(request_.batch)};
    }

    // --- stages ---

    void downsample(uint32_t image, uint32_t x0) {
        StemParams stem{};
        stem.height = request_.height, stem.width = request_.width;
        stem.in_channels = network_.in_channels, stem.channels = sizes_.width;
        stem.float_input = request_.input == Input::float32;
        const uint32_t half = map("half", Role::workspace, sizes_.width, 4);
        builder_.launch("downsample", sizes_.released_stem ? "stem_down" : "stem_down_general",
                        grid(4 * height_, 4 * width_, StemTile::ROWS, StemTile::COLUMNS), THREADS,
                        StemTile::shared_bytes(sizes_.width), stem);
        builder_.point(offsetof(StemParams, image), image);
        builder_.point(offsetof(StemParams, out), half);
        builder_.point(offsetof(StemParams, stem), "downsample.stem");
        builder_.point(offsetof(StemParams, strided), "downsample.strided");
        builder_.point(offsetof(StemParams, border), "downsample.border");
        builder_.point(offsetof(StemParams, bias), "downsample.bias");
        const uint32_t quarter = map("quarter", Role::workspace, sizes_.width, 2);
        down("downsample.1", half, quarter, 2);
        down("downsample.2", quarter, x0, 1);
    }

    void down(const std::string& operand, uint32_t in, uint32_t out, int scale) {
        DownParams params{};
        params.height = scale * height_, params.width = scale * width_, params.channels = sizes_.width;
        builder_.launch("downsample", sizes_.released_down ? "down" : "down_general",
                        grid(params.height, params.width, DownTile::ROWS, DownTile::COLUMNS), DownTile::THREADS,
                        DownTile::shared_bytes(sizes_.width), params);
        builder_.point(offsetof(DownParams, in), in);
        builder_.point(offsetof(DownParams, out), out);
        builder_.point(offsetof(DownParams, weights), operand);
        builder_.point(offsetof(DownParams, bias), operand + ".bias");
    }

    void extract(uint32_t x0, uint32_t shallow, uint32_t deep) {
        const ChainTile& tile = choose_chain_tile(sizes_, request_.batch, height_, width_, device_);
        const uint64_t tiles = uint64_t(request_.batch) * divide_up(height_, tile.rows) * divide_up(width_, tile.columns);
        const std::string kernel = std::string("wneck_") + tile.name + (sizes_.released_wneck ? "" : "_general");
        uint32_t x = shallow, u = x0;
        for (int launch = 0; launch <= network_.blocks; ++launch) {
            const bool head = launch == 0, last = launch == network_.blocks;
            const std::string restored = head ? "extract.head" : "extract." + std::to_string(launch - 1) + ".restore";
            const std::string number = std::to_string(launch);
            const uint32_t x_out = head ? shallow : last ? deep : map("x" + number, Role::workspace, sizes_.features);
            uint32_t u_out = 0;

            WneckParams params{};
            params.height = height_, params.width = width_;
            params.tile_rows = divide_up(height_, tile.rows), params.tile_columns = divide_up(width_, tile.columns);
            params.u_channels = head ? sizes_.width : sizes_.squeezed;
            params.features = sizes_.features, params.expanded = sizes_.expanded, params.squeezed = sizes_.squeezed;
            params.restore_only = last;
            if (!last) {
                u_out = builder_.buffer("u" + number, Role::workspace, tiles * tile.ring_cells() * sizes_.squeezed * 2);
            }
            builder_.launch("extract", kernel, grid(height_, width_, tile.rows, tile.columns), THREADS,
                            tile.shared_bytes(sizes_), params);
            builder_.point(offsetof(WneckParams, u_in), u);
            builder_.point(offsetof(WneckParams, x_out), x_out);
            builder_.point(offsetof(WneckParams, restore), restored);
            builder_.point(offsetof(WneckParams, restore_bias), restored + ".bias");
            if (!head) {
                builder_.point(offsetof(WneckParams, x_in), x);
                builder_.point(offsetof(WneckParams, u_bias), "extract." + std::to_string(launch - 1) + ".squeeze.bias");
            }
            if (!last) {
                const std::string block = "extract." + number + ".";
                builder_.point(offsetof(WneckParams, u_out), u_out);
                builder_.point(offsetof(WneckParams, expand1), block + "expand1");
                builder_.point(offsetof(WneckParams, expand3), block + "expand3");
                builder_.point(offsetof(WneckParams, expand_bias), block + "expand.bias");
                builder_.point(offsetof(WneckParams, squeeze), block + "squeeze");
                builder_.point(offsetof(WneckParams, slope), block + "slope");
            }
            x = x_out, u = u_out;
        }
    }

    void fuse(uint32_t shallow, uint32_t deep, uint32_t y) {
        FuseParams params{};
        params.height = height_, params.width = width_;
        params.features = sizes_.features, params.fused = sizes_.fused;
        if (network_.learned_upsampling) {
            const int large = ShuffleTile<8, 16>::shared_bytes(sizes_.features, sizes_.fused);
            const int small = ShuffleTile<4, 8>::shared_bytes(sizes_.features, sizes_.fused);
            const bool fits = large <= device_.shared_bytes_block;
            check_shared("the learned FFM", fits ? large : small);
            builder_.launch("fuse", fits ? "fuse_shuffle_8x16" : "fuse_shuffle_4x8",
                            grid(4 * height_, 4 * width_, fits ? 8 : 4, fits ? 16 : 8), THREADS, fits ? large : small, params);
        } else {
            const int shared = NearestTile::shared_bytes(sizes_.features, sizes_.fused, sizes_.values);
            check_shared("the FFM", shared);
            builder_.launch("fuse", sizes_.released_fuse ? "fuse_nearest" : "fuse_nearest_general",
                            grid(height_, width_, NearestTile::ROWS, NearestTile::COLUMNS), THREADS, shared, params);
        }
        builder_.point(offsetof(FuseParams, shallow), shallow);
        builder_.point(offsetof(FuseParams, deep), deep);
        builder_.point(offsetof(FuseParams, y), y);
        builder_.point(offsetof(FuseParams, mix), "fuse.mix");
        builder_.point(offsetof(FuseParams, smooth), "fuse.smooth");
        builder_.point(offsetof(FuseParams, reduce), "fuse.reduce");
        builder_.point(offsetof(FuseParams, mix_bias), "fuse.mix.bias");
        builder_.point(offsetof(FuseParams, smooth_bias), "fuse.smooth.bias");
        builder_.point(offsetof(FuseParams, reduce_bias), "fuse.reduce.bias");
        builder_.point(offsetof(FuseParams, slopes), "fuse.slopes");
    }

    void segment(uint32_t y, uint32_t answer) {
        SegmentParams params{};
        params.height = 4 * height_, params.width = 4 * width_;
        params.classes = network_.classes, params.outputs = sizes_.outputs;
        params.form = request_.answer == Answer::labels          ? LABELS
                      : request_.answer == Answer::probabilities ? PROBABILITIES
                                                                 : LOGITS;
        const int shared = SegmentTile::shared_bytes(sizes_.outputs);
        check_shared("the segmentation head", shared);
        builder_.launch("segment", network_.classes == 2 ? "segment_two" : "segment",
                        grid(params.height, params.width, SegmentTile::ROWS, SegmentTile::COLUMNS), THREADS, shared, params);
        builder_.point(offsetof(SegmentParams, y), y);
        builder_.point(offsetof(SegmentParams, answer), answer);
        builder_.point(offsetof(SegmentParams, narrow), "segment.narrow");
        builder_.point(offsetof(SegmentParams, narrow_bias), "segment.narrow.bias");
        builder_.point(offsetof(SegmentParams, slope), "segment.slope");
        builder_.point(offsetof(SegmentParams, tail), "segment.tail");
        builder_.point(offsetof(SegmentParams, border), "segment.border");
        builder_.point(offsetof(SegmentParams, tail_bias), "segment.bias");
    }

    void check_shared(const char* what, int bytes) const {
        if (bytes > device_.shared_bytes_block) {
            throw PlanError(std::string(what) + " of this network needs " + std::to_string(bytes) +
                            " bytes of shared memory, the device has " + std::to_string(device_.shared_bytes_block));
        }
    }

    const Network network_;
    const Request request_;
    const DeviceProperties device_;
    const Sizes sizes_;
    Builder builder_;
    const int height_, width_;  // at 1/8 resolution
};

}  // namespace

Plan make_plan(const Network& network, const Request& request, const DeviceProperties& device) {
    if (request.batch < 1 || request.height < 8 || request.width < 8 || request.height % 8 || request.width % 8) {
        throw PlanError("batch must be at least 1, height and width multiples of 8, got " +
                        std::to_string(request.batch) + ", " + std::to_string(request.height) + " and " +
                        std::to_string(request.width));
    }
    if (uint64_t(request.height) * request.width > uint64_t(1) << 30) {
        throw PlanError("images may have up to 2^30 pixels; use tiles for larger ones");
    }
    return Planner(network, request, device).run();
}

}  // namespace dssnet
