#include "convolution.h"

#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>

namespace dssnet::cpu {
namespace {

constexpr int PARTS = WinogradParts::COUNT;

// G of Winograd's F(4, 3): parts from the kernel's three rows.
constexpr double TRANSFORM[PARTS][3] = {{1. / 4, 0, 0},
                                        {-1. / 6, -1. / 6, -1. / 6},
                                        {-1. / 6, 1. / 6, -1. / 6},
                                        {1. / 24, 1. / 12, 1. / 6},
                                        {1. / 24, -1. / 12, 1. / 6},
                                        {0, 0, 1}};

std::vector<int> split(int outputs, int widest, int multiple) {
    widest = widest / multiple * multiple;
    const int count = (outputs + widest - 1) / widest;
    std::vector<int> sizes;
    for (int left = outputs, blocks = count; blocks > 0; --blocks) {
        const int size = std::min(left, round_up((left + blocks - 1) / blocks, multiple));
        sizes.push_back(size);
        left -= size;
    }
    return sizes;
}

uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

uint32_t to_bf16(float value) {
    const uint32_t bits = bits_of(value);
    if (std::isnan(value)) return 0x7fc0;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

}  // namespace

Convolution::Convolution(const Kernels& kernels, const Operand& operand, Format input, Type result, Form form,
                         std::vector<int> segments)
    : kernels_(&kernels),
      input_(input),
      form_(form),
      lines_(form == Form::winograd ? PARTS : operand.lines),
      taps_(operand.taps),
      outputs_(operand.outputs) {
    if (form == Form::winograd && (input.type != Type::f32 || operand.lines != 3)) {
        throw std::logic_error(operand.name + ": Winograd's form is for three rows in float32");
    }
    const int per_word = channels_per_word(input.type);
    if (segments.empty()) segments = {operand.inputs};
    std::vector<int> channels;  // of each place in the words; -1 where there is none
    for (int begin = 0, part = 0; part < int(segments.size()); begin += segments[part++]) {
        for (int i = 0; i < round_up(segments[part], per_word); ++i) channels.push_back(i < segments[part] ? begin + i : -1);
    }
    if (std::accumulate(segments.begin(), segments.end(), 0) != operand.inputs) {
        throw std::logic_error(operand.name + ": its segments are not its inputs");
    }
    groups_ = int(channels.size()) / per_word;
    const int tiles_from = kernels.tiles_from[int(input.type)];
    tiles_ = tiles_from && groups_ >= tiles_from;
    block_sizes_ = split(outputs_, tiles_ ? TILE : kernels.widest_block[int(input.type)], channels_per_word(result));

    const auto given = [&](int line, int tap, int channel, int output) -> double {
        return operand.weight[((size_t(line) * taps_ + tap) * operand.inputs + channel) * outputs_ + output];
    };
    const auto value = [&](int line, int tap, int channel, int output) -> double {
        if (channel < 0) return 0;
        if (form == Form::direct) return given(line, tap, channel, output);
        double sum = 0;
        for (int row = 0; row < 3; ++row) sum += TRANSFORM[line][row] * given(row, tap, channel, output);
        return sum;
    };

    std::vector<double> weight_step(outputs_, 1.0);
    if (input.type == Type::i8) {
        start_.assign(outputs_, 0), scale_.resize(outputs_);
        for (int output = 0; output < outputs_; ++output) {
            double largest = 0;
            for (int line = 0; line < lines_; ++line) {
                for (int tap = 0; tap < taps_; ++tap) {
                    for (int channel = 0; channel < operand.inputs; ++channel) {
                        largest = std::max(largest, std::fabs(value(line, tap, channel, output)));
                    }
                }
            }
            if (largest > 0) weight_step[output] = largest / 127;
            scale_[output] = float(weight_step[output] * input.step);
        }
    }
    bias_.assign(outputs_, 0.0f);
    if (operand.bias) std::copy(operand.bias, operand.bias + outputs_, bias_.begin());

    const auto word = [&](int line, int group, int tap, int output) {
        uint32_t word = 0;
        for (int i = 0; i < per_word; ++i) {
            const double exact = value(line, tap, channels[group * per_word + i], output);
            switch (input.type) {
                case Type::f32: word = bits_of(float(exact)); break;
                case Type::bf16: word |= to_bf16(float(exact)) << (16 * i); break;
                case Type::i8: {
                    const int q = int(std::nearbyint(exact / weight_step[output]));
                    word |= uint32_t(uint8_t(q)) << (8 * i);
                    start_[output] -= 128 * q;
                    break;
                }
            }
        }
        return word;
    };
    const int lines_of_part = form == Form::winograd ? 1 : lines_;
    const int step_groups = tile_groups(groups_);
    words_per_output_ = size_t(lines_of_part) * taps_ * (tiles_ ? tile_steps(groups_) * step_groups : groups_);
    uint32_t* to = words_.words(words_per_output_ * (lines_ / lines_of_part) * outputs_);
    for (int part = 0; part < lines_ / lines_of_part; ++part) {
        for (int begin = 0, block = 0; block < blocks(); begin += block_sizes_[block++]) {
            const int end = begin + block_sizes_[block];
            for (int line = part; line < part + lines_of_part; ++line) {
                if (!tiles_) {
                    for (int group = 0; group < groups_; ++group) {
                        for (int tap = 0; tap < taps_; ++tap) {
                            for (int output = begin; output < end; ++output) *to++ = word(line, group, tap, output);
                        }
                    }
                    continue;
                }
                for (int tap = 0; tap < taps_; ++tap) {
                    for (int met = 0; met < groups_; met = std::min(met + step_groups, groups_)) {
                        const int first = tile_begin(groups_, step_groups, met / step_groups);
                        for (int output = begin; output < end; ++output) {
                            for (int group = first; group < first + step_groups; ++group) {
                                *to++ = group < met ? 0 : word(line, group, tap, output);
                            }
                        }
                    }
                }
            }
        }
    }
}

double Convolution::macs() const {
    // Every word is multiplied once for each cell; Winograd's six parts give four rows.
    const double products = double(lines_) * taps_ * groups_ * channels_per_word(input_.type) * outputs_ * UNIT;
    return form_ == Form::winograd ? products / 4 : products;
}

Weights Convolution::weights() const {
    Weights found;
    found.words = words_.data();
    found.tiles = tiles_;
    found.start = start_.empty() ? nullptr : start_.data();
    found.block_sizes = block_sizes_.data();
    found.block_count = blocks();
    found.words_per_output = words_per_output_;
    return found;
}

Finish Convolution::complete(Finish finish) const {
    finish.scale = scale_.empty() ? nullptr : scale_.data();
    finish.bias = bias_.data();
    finish.outputs = outputs_;
    return finish;
}

void Convolution::row(const uint32_t* const* lines, const ptrdiff_t* taps, ptrdiff_t group_stride, int units,
                      const Finish& finish, int first_block, int last_block) const {
    kernels_->convolve[int(input_.type)](window(lines, taps, group_stride), weights(), first_block,
                                         last_block < 0 ? blocks() : last_block, units, complete(finish));
}

void Convolution::winograd_rows(const uint32_t* const* parts, const ptrdiff_t* taps, ptrdiff_t group_stride, int units,
                                Finish* rows, int row_count) const {
    for (int row = 0; row < row_count; ++row) rows[row] = complete(rows[row]);
    Window window = this->window(parts, taps, group_stride);
    window.line_count = 1;
    kernels_->winograd(window, weights(), units, rows, row_count);
}

void Convolution::pooled_row(const uint32_t* const* lines, const ptrdiff_t* taps, const Convolution& pooled,
                             const Window* four, ptrdiff_t group_stride, int units, const Finish& finish) const {
    kernels_->convolve_pooled[int(input_.type)](window(lines, taps, group_stride), weights(), four, pooled.weights(),
                                                pooled.scale_.data(), units, complete(finish));
}

Taps taps_around(int phase, int reach, int stride, int phases, ptrdiff_t phase_words) {
    Taps taps = {};
    for (int distance = -reach; distance <= reach; ++distance) {
        const int column = phase * stride + distance;
        const int cell = column < 0 ? -1 : column / phases;
        taps[distance + reach] = (column - cell * phases) * phase_words + cell;
    }
    return taps;
}

void WinogradParts::transform(const Kernels& kernels, const uint32_t* const* lines, int runs, ptrdiff_t stride,
                              const Columns& columns) const {
    for (int part = 0; part < COUNT; ++part) {
        if (columns.whole()) {
            kernels.winograd_input(lines, part, runs * stride + PAD, parts_[part]);
            continue;
        }
        for (int run = 0; run < runs; ++run) {
            const ptrdiff_t begin = run * stride + columns.begin();
            const uint32_t* from[COUNT];
            for (int i = 0; i < COUNT; ++i) from[i] = lines[i] + begin;
            kernels.winograd_input(from, part, columns.units() * UNIT + 2 * PAD, parts_[part] + begin);
        }
    }
}

void convolve_rows(const Convolution& convolution, const Rows& from, int phases, int first, int count,
                   const Columns& columns, const WinogradParts& parts,
                   const std::function<Finish(int row, int phase)>& end) {
    const int units = columns.units();
    const ptrdiff_t begin = columns.begin();
    const auto taps_of = [&](int phase) { return taps_around(phase, convolution.taps() / 2, 1, phases, from.phase()); };
    if (convolution.form() == Convolution::Form::direct) {
        const int reach = convolution.lines() / 2;
        const uint32_t* lines[3];
        for (int row = first; row < first + count; ++row) {
            for (int line = 0; line < convolution.lines(); ++line) lines[line] = from.read(row + line - reach) + begin;
            for (int phase = 0; phase < phases; ++phase) {
                const Finish finish = columns.finish(end(row, phase));
                convolution.row(lines, taps_of(phase).data(), from.stride(), units, finish);
            }
        }
        return;
    }
    for (int row = first; row < first + count; row += 4) {
        const uint32_t* lines[PARTS];
        // From the pad before the first run on: shifted reads meet transformed zeros. Rows that only unwanted results
        // read may not be there yet.
        for (int i = 0; i < PARTS; ++i) {
            const int index = row + i - 1;
            lines[i] = (index <= first + count ? from.read(index) : from.zero()) - PAD;
        }
        parts.transform(convolution.kernels(), lines, phases * from.groups(), from.stride(), columns);
        for (int i = 0; i < PARTS; ++i) lines[i] = parts.part(i) + PAD + begin;
        const int row_count = std::min(4, first + count - row);
        for (int phase = 0; phase < phases; ++phase) {
            Finish rows[4];
            for (int i = 0; i < row_count; ++i) rows[i] = columns.finish(end(row + i, phase));
            convolution.winograd_rows(lines, taps_of(phase).data(), from.stride(), units, rows, row_count);
        }
    }
}

}  // namespace dssnet::cpu
