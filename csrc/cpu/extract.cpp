#include "extract.h"

#include "stream.h"

namespace dssnet::cpu {
namespace {

// The format that the first part of a layer reads; all its parts read the same.
const Format& input_of(const Operands& operands, const LayerNames& layer) { return operands.input(layer.parts.front()); }

}  // namespace

int Extract::Layer::groups(Format format) const {
    int groups = 0;
    for (int part : channels) groups += format.groups(part);
    return groups;
}

int Extract::Layer::rows_together() const {
    int most = 1;
    for (const Convolution& part : parts) most = std::max(most, part.rows_together());
    return most;
}

// Rings between the layers of a block, and what convolutions need; made anew for each block in the same memory.
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
    const auto rows = [&](uint32_t* words, int groups, Format format) {
        return Rows(words, zeros[int(format.type)], height, height, 1, groups, format, cells);
    };
    Maps maps;
    maps.narrow = arena.take(narrow * height);
    maps.packed = arena.take(packed * height);
    maps.x0 = rows(maps.narrow, head_.groups(), head_.input());
    maps.deep = rows(maps.packed, fuse.groups(features_), fuse);
    uint32_t* const shallow = arena.take(height * Rows::words_of_row(1, fuse.groups(features_), cells));
    maps.shallow = rows(shallow, fuse.groups(features_), fuse);
    maps.features = arena.take_floats(size_t(height) * features_ * round_up(cells, UNIT));
    return maps;
}

Rows Extract::packed_rows(const Convolution& reader, uint32_t* words, int height, int cells,
                          const uint32_t* const* zeros) const {
    const Format& format = reader.input();
    return Rows(words, zeros[int(format.type)], height, height, 1, reader.groups(), format, cells);
}

void Extract::run(const Maps& maps, int height, int cells, const Member& member, float* shallow, float* deep,
                  const uint32_t* const* zeros, Arena& arena) const {
    const ptrdiff_t width = round_up(cells, UNIT);
    size_t ring_words = 0, row_words = Rows::words_of_row(1, head_.groups(), cells);
    for (const Block& block : blocks_) {
        size_t words = 0;
        for (size_t i = 0; i < block.layers.size(); ++i) {
            const Convolution& reader = i + 1 < block.layers.size() ? block.layers[i + 1].parts.front() : block.last;
            const size_t row = Rows::words_of_row(1, reader.groups(), cells);
            if (i + 1 < block.layers.size()) words += row * std::min(block.layers[i + 1].rows_together() + 2, height);
            row_words = std::max(row_words, row);
        }
        row_words = std::max(row_words, Rows::words_of_row(1, block.first().groups(), cells));
        ring_words = std::max(ring_words, words);
    }
    Scratch scratch;
    scratch.rings = arena.take(ring_words);
    if (together_ > 1) scratch.winograd = WinogradParts(arena, row_words);
    if (!arena.has_memory()) return;

    const auto [first, last] = member.share(height, together_);
    const auto features_of = [&](int row) { return maps.features + size_t(row) * features_ * width; };
    const auto export_rows = [&](float* map) {
        for (int row = first; map && row < last; ++row) {
            export_row(features_of(row), 1, features_, cells, width, map + size_t(row) * cells * features_);
        }
    };
    const auto ending = [&](int row, const Rows& packed) {
        Finish finish;
        finish.kept = features_of(row), finish.kept_stride = width, finish.cells = cells;
        finish.packed = packed.row(row), finish.packed_stride = packed.stride();
        finish.packed_type = packed.format().type, finish.inverse_step = 1 / packed.format().step;
        return finish;
    };

    Rows packed = packed_rows(blocks_.front().first(), maps.packed, height, cells, zeros);
    convolve_rows(head_, maps.x0, 1, first, last - first, cells, scratch.winograd,
                  [&](int row, int) { return ending(row, packed); });
    for (int row = first; row < last; ++row) {
        Finish finish = ending(row, maps.shallow);
        finish.kept = nullptr, finish.outputs = features_;
        kernels_.finish(features_of(row), width, int(width) / UNIT, finish);
    }
    export_rows(shallow);
    member.wait();

    for (size_t number = 0; number < blocks_.size(); ++number) {
        const Block& block = blocks_[number];
        const Rows narrow = packed_rows(block.last, maps.narrow, height, cells, zeros);
        run_layers(block, packed, narrow, height, cells, first, last, zeros, scratch);
        member.wait();
        const bool is_last = number + 1 == blocks_.size();
        packed = is_last ? maps.deep : packed_rows(blocks_[number + 1].first(), maps.packed, height, cells, zeros);
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
    std::vector<Rows> results;  // of each layer
    std::vector<int> begin(count);  // the first row that is needed of each
    uint32_t* words = scratch.rings;
    for (size_t i = 0; i < count; ++i) {
        if (i + 1 == count) {
            results.push_back(narrow);
            break;
        }
        const Convolution& reader = block.layers[i + 1].parts.front();
        const Format& format = reader.input();
        const int capacity = std::min(block.layers[i + 1].rows_together() + 2, height);
        results.emplace_back(words, zeros[int(format.type)], height, capacity, 1, reader.groups(), format, cells);
        words += results.back().row_words() * capacity;
    }
    const auto reach = [&](size_t layer) {
        int most = 0;
        for (const Convolution& part : block.layers[layer].parts) most = std::max(most, part.taps() / 2);
        return most;
    };
    begin[count - 1] = first;
    for (size_t i = count - 1; i > 0; --i) begin[i - 1] = begin[i] - reach(i);

    std::vector<Stream> streams;
    streams.reserve(count);
    for (size_t i = 0; i < count; ++i) {
        const Layer& layer = block.layers[i];
        streams.emplace_back(begin[i], i + 1 == count ? last : height, layer.rows_together(), [&, i](int row0, int rows) {
            if (i > 0) streams[i - 1].need(row0 + rows + reach(i));
            const Rows& from = i > 0 ? results[i - 1] : input;
            ptrdiff_t offset = 0;
            for (const Convolution& part : block.layers[i].parts) {
                convolve_rows(part, from, 1, row0, rows, cells, scratch.winograd, [&](int row, int) {
                    Finish finish;
                    finish.slope = block.layers[i].slope, finish.cells = cells;
                    finish.packed = results[i].row(row) + offset, finish.packed_stride = results[i].stride();
                    finish.packed_type = results[i].format().type, finish.inverse_step = 1 / results[i].format().step;
                    return finish;
                });
                offset += results[i].format().groups(part.outputs()) * results[i].stride();
            }
        });
    }
    streams.back().need(last);
}

}  // namespace dssnet::cpu
