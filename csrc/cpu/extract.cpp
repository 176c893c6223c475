#include "extract.h"

namespace dssnet::cpu {

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
    uint32_t* winograd;
};

Extract::Extract(const Kernels& kernels, const Operands& operands)
    : kernels_(kernels),
      features_(operands.sizes.features),
      head_(operands.fastest(kernels, "extract.head", Form::pairs)),
      winograd_words_(head_.scratch_words()) {
    for (size_t number = 0; number < operands.blocks.size(); ++number) {
        const BlockNames& names = operands.blocks[number];
        std::vector<Layer> layers;
        std::vector<int> segments;
        for (size_t i = 0; i + 1 < names.size(); ++i) {
            Layer layer{{}, names[i].slope, {}};
            for (const std::string& part : names[i].parts) {
                layer.parts.push_back(operands.fastest(kernels, part, Form::pairs, segments));
                winograd_words_ = std::max(winograd_words_, layer.parts.back().scratch_words());
                layer.channels.push_back(layer.parts.back().outputs());
            }
            segments = layer.channels;
            layers.push_back(std::move(layer));
        }
        Convolution last = operands.fastest(kernels, names.back().parts.front(), Form::pairs, segments);
        winograd_words_ = std::max(winograd_words_, last.scratch_words());
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

Macs Extract::macs() const {
    Macs sum = head_.macs();
    for (const Block& block : blocks_) {
        for (const Layer& layer : block.layers) {
            for (const Convolution& part : layer.parts) sum += part.macs();
        }
        sum += block.last.macs();
    }
    return sum;
}

Extract::Steps Extract::steps(const Block& block, int height, const Part& narrow) {
    const int count = int(block.layers.size());
    Steps steps{{}, std::vector<Part>(count, narrow), narrow};
    steps.groups.assign(count, Groups(height, block.layers.back().rows_together()));
    for (int i = count - 1; i >= 0; --i) {
        const Layer& layer = block.layers[i];
        Part& read = i > 0 ? steps.parts[i - 1] : steps.input;
        read = {steps.parts[i].rows.wider(layer.reach(), height), steps.parts[i].columns.wider(layer.reach())};
        if (i == 0) break;
        steps.groups[i - 1] = Groups(steps.groups[i], layer.reach(), block.layers[i - 1].rows_together());
        read.rows = steps.groups[i - 1].around(read.rows);
    }
    return steps;
}

Extract::Plan Extract::plan(int height, const Part& wanted) const {
    // Rows that convolutions which are not streamed give, and what these read.
    const auto result = [&](const Convolution& convolution, const Part& part) -> Part {
        return {Groups(height, convolution.rows_together()).around(part.rows), part.columns};
    };
    const auto read = [&](const Convolution& convolution, const Part& part) -> Part {
        const int reach = convolution.taps() / 2;
        return {part.rows.wider(reach, height), part.columns.wider(reach)};
    };
    Plan plan{height, wanted, wanted, wanted, {blocks_.size(), {wanted, wanted}}};
    Part part = wanted;
    for (size_t number = blocks_.size(); number-- > 0;) {
        const Block& block = blocks_[number];
        Plan::OfBlock& of_block = plan.blocks[number];
        of_block.result = result(block.last, part);
        const int together = block.layers.back().rows_together();
        of_block.narrow = read(block.last, of_block.result);
        of_block.narrow.rows = Groups(height, together).around(of_block.narrow.rows);
        part = steps(block, height, of_block.narrow).input;
    }
    plan.head = result(head_, part);
    plan.x0 = read(head_, plan.head);
    return plan;
}

Extract::Maps Extract::maps(const Plan& plan, const uint32_t* const* zeros, Format fuse, Arena& arena) const {
    // No other map has more rows than x0.
    const int height = plan.height, kept = plan.x0.rows.count(), cells = plan.x0.columns.cells();
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
        return Rows(words, zeros[int(fuse.type)], height, kept, 1, groups, fuse, cells);
    };
    Maps maps;
    maps.narrow = arena.take(narrow * kept);
    maps.packed = arena.take(packed * kept);
    maps.x0 = head_.rows(maps.narrow, zeros, height, kept, 1, cells);
    maps.deep = fused(maps.packed);
    maps.shallow = fused(arena.take(kept * Rows::words_of_row(1, groups, cells)));
    maps.features = arena.take_floats(size_t(kept) * features_ * round_up(cells, UNIT));
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

void Extract::run(const Plan& plan, const Maps& maps, const Member& member, float* shallow, float* deep,
                  const uint32_t* const* zeros, Arena& arena) const {
    const int height = plan.height, kept = plan.x0.rows.count(), cells = plan.x0.columns.cells();
    const ptrdiff_t width = round_up(cells, UNIT);
    size_t ring_words = 0;
    for (const Block& block : blocks_) {
        Arena counted;
        rings(block, height, cells, zeros, counted);
        ring_words = std::max(ring_words, counted.used());
    }
    Scratch scratch;
    scratch.rings = arena.take(ring_words);
    scratch.winograd = arena.take(winograd_words_);
    if (!arena.has_memory()) return;

    const auto features_of = [&](int row) { return maps.features + size_t(row - plan.head.rows.first) * features_ * width; };
    const auto export_rows = [&](Range rows, float* map) {
        for (int row = rows.first; map && row < rows.last; ++row) {
            export_row(features_of(row), 1, features_, cells, width, map + size_t(row) * cells * features_);
        }
    };
    const auto ending = [&](int row, const Rows& packed) {
        Finish finish = packed.packing(row);
        finish.kept = features_of(row), finish.kept_stride = width;
        return finish;
    };
    const auto whole = [&](const Convolution& reader, uint32_t* words) {
        return reader.rows(words, zeros, height, kept, 1, cells);
    };

    Rows packed = whole(blocks_.front().first(), maps.packed);
    const Range share = member.share_of_groups(plan.head.rows, head_.rows_together());
    convolve_rows(head_, maps.x0, 1, share.first, share.count(), plan.head.columns, scratch.winograd,
                  [&](int row, int) { return ending(row, packed); });
    for (int row = share.first; row < share.last; ++row) {
        if (!plan.wanted.rows.has(row)) continue;
        const Columns& columns = plan.wanted.columns;
        Finish finish = maps.shallow.packing(row);
        finish.outputs = features_;
        kernels_.finish(features_of(row) + columns.begin(), width, columns.units(), columns.finish(finish));
    }
    export_rows(share, shallow);
    member.wait();

    for (size_t number = 0; number < blocks_.size(); ++number) {
        const Block& block = blocks_[number];
        const Plan::OfBlock& of_block = plan.blocks[number];
        const Rows narrow = whole(block.last, maps.narrow);
        const int together = block.layers.back().rows_together();
        const Part mine = {member.share_of_groups(of_block.narrow.rows, together), of_block.narrow.columns};
        run_layers(block, packed, narrow, mine, zeros, scratch);
        member.wait();
        const bool is_last = number + 1 == blocks_.size();
        packed = is_last ? maps.deep : whole(blocks_[number + 1].first(), maps.packed);
        const Range rows = member.share_of_groups(of_block.result.rows, block.last.rows_together());
        convolve_rows(block.last, narrow, 1, rows.first, rows.count(), of_block.result.columns, scratch.winograd,
                      [&](int row, int) {
                          Finish finish = ending(row, packed);
                          finish.addend = finish.kept, finish.addend_stride = width;
                          return finish;
                      });
        if (is_last) export_rows(rows, deep);
        member.wait();
    }
}

void Extract::run_layers(const Block& block, const Rows& input, const Rows& narrow, const Part& wanted,
                         const uint32_t* const* zeros, const Scratch& scratch) {
    if (wanted.rows.count() == 0) return;
    const size_t count = block.layers.size();
    const int height = input.height(), cells = wanted.columns.cells();
    Arena arena(scratch.rings);
    std::vector<Rows> results = rings(block, height, cells, zeros, arena);  // of each layer
    results.push_back(narrow);
    const Steps steps = Extract::steps(block, height, wanted);

    std::vector<Stream> streams;
    streams.reserve(count);
    for (size_t i = 0; i < count; ++i) {
        const Range rows = steps.parts[i].rows;
        streams.emplace_back(rows.first, rows.last, steps.groups[i], [&, i](int first, int rows) {
            const Layer& layer = block.layers[i];
            if (i > 0) streams[i - 1].need(first + rows + layer.reach());
            const Rows &from = i > 0 ? results[i - 1] : input, &to = results[i];
            int group = 0;
            for (const Convolution& part : layer.parts) {
                convolve_rows(part, from, 1, first, rows, steps.parts[i].columns, scratch.winograd, [&](int row, int) {
                    Finish finish = to.packing(row, 0, group);
                    finish.slope = layer.slope;
                    return finish;
                });
                group += to.format().groups(part.outputs());
            }
        });
    }
    streams.back().need(wanted.rows.last);
}

}  // namespace dssnet::cpu
