#include "extract.h"

#include "stream.h"

namespace dssnet::cpu {
namespace {

// The format that the first part of a layer reads; all its parts read the same.
const Format& input_of(const Operands& operands, const LayerNames& layer) { return operands.input(layer.parts.front()); }

}  // namespace

int Extract::Layer::rows_together() const {
    int most = 1;
    for (const Convolution& part : parts) most = std::max(most, part.rows_together());
    return most;
}

int Extract::Layer::reach() const {
    int most = 0;
    for (const Convolution& part : parts) most = std::max(most, part.taps() / 2);
    return most;
}

// Memory of the rings between the layers of a block, used by each block anew, and what convolutions need.
struct Extract::Scratch {
    uint32_t* rings;
    WinogradParts winograd;
};

Extract::Extract(const Kernels& kernels, const Operands& operands)
    : kernels_(kernels),
      features_(operands.sizes.features),
      head_(operands.fastest(kernels, "extract.head", input_of(operands, operands.blocks.front().front()).type)),
      together_(head_.rows_together()) {
    for (size_t number = 0; number < operands.blocks.size(); ++number) {
        const BlockNames& names = operands.blocks[number];
        std::vector<Layer> layers;
        std::vector<int> segments;
        for (size_t i = 0; i + 1 < names.size(); ++i) {
            Layer layer{{}, names[i].slope, {}};
            for (const std::string& part : names[i].parts) {
                layer.parts.push_back(operands.fastest(kernels, part, input_of(operands, names[i + 1]).type, segments));
                layer.channels.push_back(layer.parts.back().outputs());
            }
            segments = layer.channels;
            together_ = std::max(together_, layer.rows_together());
            layers.push_back(std::move(layer));
        }
        const bool is_last = number + 1 == operands.blocks.size();
        const Format next = is_last ? operands.fuse_input() : input_of(operands, operands.blocks[number + 1].front());
        Convolution last = operands.fastest(kernels, names.back().parts.front(), next.type, segments);
        together_ = std::max(together_, last.rows_together());
        blocks_.push_back({std::move(layers), std::move(last)});
    }
}

size_t Extract::zero_words(int cells) const {
    int groups = head_.groups();
    for (const Block& block : blocks_) {
        for (const Layer& layer : block.layers) groups = std::max(groups, layer.parts.front().groups());
        groups = std::max(groups, block.last.groups());
    }
    return Rows::words_of_row(1, groups, cells) + PAD;
}

double Extract::macs() const {
    double sum = head_.macs();
    for (const Block& block : blocks_) {
        for (const Layer& layer : block.layers) {
            for (const Convolution& part : layer.parts) sum += part.macs();
        }
        sum += block.last.macs();
    }
    return sum;
}

Extract::Maps Extract::maps(int height, int cells, const uint32_t* const* zeros, Format fuse, Arena& arena) const {
    // What is read for the last time lends its memory to what is written next: x0 to the blocks' narrow maps, the map
    // that the last block read to its result.
    size_t narrow = Rows::words_of_row(1, head_.groups(), cells);
    size_t packed = Rows::words_of_row(1, fuse.groups(features_), cells);
    for (const Block& block : blocks_) {
        narrow = std::max(narrow, Rows::words_of_row(1, block.last.groups(), cells));
        packed = std::max(packed, Rows::words_of_row(1, block.first().groups(), cells));
    }
    const int groups = fuse.groups(features_);
    const auto fused = [&](uint32_t* words) {
        return Rows(words, zeros[int(fuse.type)], height, height, 1, groups, fuse, cells);
    };
    Maps maps;
    maps.narrow = arena.take(narrow * height);
    maps.packed = arena.take(packed * height);
    maps.x0 = head_.rows(maps.narrow, zeros, height, height, 1, cells);
    maps.deep = fused(maps.packed);
    maps.shallow = fused(arena.take(height * Rows::words_of_row(1, groups, cells)));
    maps.features = arena.take_floats(size_t(height) * features_ * round_up(cells, UNIT));
    return maps;
}

// Rows between the layers of a block; those after the last layer are whole, `narrow`.
std::vector<Rows> Extract::rings(const Block& block, int height, int cells, const uint32_t* const* zeros, Arena& arena) {
    std::vector<Rows> found;
    for (size_t i = 1; i < block.layers.size(); ++i) {
        const Layer& reader = block.layers[i];
        found.push_back(reader.parts.front().rows(arena, zeros, height, reader.rows_together() + 2, 1, cells));
    }
    return found;
}

void Extract::run(const Maps& maps, int height, int cells, const Member& member, float* shallow, float* deep,
                  const uint32_t* const* zeros, Arena& arena) const {
    const ptrdiff_t width = round_up(cells, UNIT);
    size_t ring_words = 0;
    for (const Block& block : blocks_) {
        Arena counted;
        rings(block, height, cells, zeros, counted);
        ring_words = std::max(ring_words, counted.used());
    }
    Scratch scratch;
    scratch.rings = arena.take(ring_words);
    if (together_ > 1) scratch.winograd = WinogradParts(arena, zero_words(cells));
    if (!arena.has_memory()) return;

    const auto [first, last] = member.share(height, together_);
    const auto features_of = [&](int row) { return maps.features + size_t(row) * features_ * width; };
    const auto export_rows = [&](float* map) {
        for (int row = first; map && row < last; ++row) {
            export_row(features_of(row), 1, features_, cells, width, map + size_t(row) * cells * features_);
        }
    };
    const auto ending = [&](int row, const Rows& packed) {
        Finish finish = packed.packing(row);
        finish.kept = features_of(row), finish.kept_stride = width;
        return finish;
    };

    const auto whole = [&](const Convolution& reader, uint32_t* words) {
        return reader.rows(words, zeros, height, height, 1, cells);
    };
    Rows packed = whole(blocks_.front().first(), maps.packed);
    convolve_rows(head_, maps.x0, 1, first, last - first, cells, scratch.winograd,
                  [&](int row, int) { return ending(row, packed); });
    for (int row = first; row < last; ++row) {
        Finish finish = maps.shallow.packing(row);
        finish.outputs = features_;
        kernels_.finish(features_of(row), width, int(width) / UNIT, finish);
    }
    export_rows(shallow);
    member.wait();

    for (size_t number = 0; number < blocks_.size(); ++number) {
        const Block& block = blocks_[number];
        const Rows narrow = whole(block.last, maps.narrow);
        run_layers(block, packed, narrow, height, cells, first, last, zeros, scratch);
        member.wait();
        const bool is_last = number + 1 == blocks_.size();
        packed = is_last ? maps.deep : whole(blocks_[number + 1].first(), maps.packed);
        convolve_rows(block.last, narrow, 1, first, last - first, cells, scratch.winograd, [&](int row, int) {
            Finish finish = ending(row, packed);
            finish.addend = finish.kept, finish.addend_stride = width;
            return finish;
        });
        if (is_last) export_rows(deep);
        member.wait();
    }
}

void Extract::run_layers(const Block& block, const Rows& input, const Rows& narrow, int height, int cells, int first,
                         int last, const uint32_t* const* zeros, const Scratch& scratch) const {
    const size_t count = block.layers.size();
    Arena arena(scratch.rings);
    std::vector<Rows> results = rings(block, height, cells, zeros, arena);  // of each layer
    results.push_back(narrow);
    std::vector<int> begin(count);  // the first row that is needed of each
    begin[count - 1] = first;
    for (size_t i = count - 1; i > 0; --i) begin[i - 1] = begin[i] - block.layers[i].reach();

    std::vector<Stream> streams;
    streams.reserve(count);
    for (size_t i = 0; i < count; ++i) {
        const Layer& layer = block.layers[i];
        streams.emplace_back(begin[i], i + 1 == count ? last : height, layer.rows_together(), [&, i](int row0, int rows) {
            const Layer& layer = block.layers[i];
            if (i > 0) streams[i - 1].need(row0 + rows + layer.reach());
            const Rows &from = i > 0 ? results[i - 1] : input, &to = results[i];
            int group = 0;
            for (const Convolution& part : layer.parts) {
                convolve_rows(part, from, 1, row0, rows, cells, scratch.winograd, [&](int row, int) {
                    Finish finish = to.packing(row, 0, group);
                    finish.slope = layer.slope;
                    return finish;
                });
                group += to.format().groups(part.outputs());
            }
        });
    }
    streams.back().need(last);
}

}  // namespace dssnet::cpu
