#include "convolution.h"

#include <cmath>
#include <cstring>
#include <numeric>
#include <stdexcept>

namespace dssnet::cpu {
namespace {

// Winograd's form: each part's factors of the kernel's three rows or columns, times a number that makes them whole.
struct Factors {
    double row[3];
    int whole;

    double of(const double* three) const { return row[0] * three[0] + row[1] * three[1] + row[2] * three[2]; }
};
// F(2, 3) and F(4, 3).
constexpr Factors PAIR_FACTORS[] = {{{1, 0, 0}, 1}, {{1, 1, 1}, 2}, {{1, -1, 1}, 2}, {{0, 0, 1}, 1}};
constexpr Factors FOUR_FACTORS[] = {{{1, 0, 0}, 4},   {{-1, -1, -1}, 6}, {{-1, 1, -1}, 6},
                                    {{1, 2, 4}, 24}, {{1, -2, 4}, 24},  {{0, 0, 1}, 1}};
constexpr int ROWS = 6;  // parts of the rows
constexpr int PAIR_MULTIPLE = 48, CELL_MULTIPLE = 576;  // of int8's sums, see winograd.inl

// A number as a sum of `count` numbers that are multiples of `multiple`, but for the last, and about the same.
std::vector<int> split(int number, int count, int multiple) {
    std::vector<int> sizes;
    for (int left = number; left > 0; --count) {
        sizes.push_back(std::min(left, round_up((left + count - 1) / count, multiple)));
        left -= sizes.back();
    }
    return sizes;
}

int parts_needed(int number, int largest) { return (number + largest - 1) / largest; }

uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

float float_of(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

uint32_t to_bf16(float value) {
    const uint32_t bits = bits_of(value);
    if (std::isnan(value)) return 0x7fc0;
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

}  // namespace

bool Convolution::fits(const Kernels& kernels, const Operand& operand, Format input, Form form) {
    if (form == Form::direct) return true;
    if (operand.lines != 3 || operand.taps != 3) return false;
    const int type = int(input.type);
    if (form == Form::pairs ? !kernels.winograd_pairs[type] : !kernels.winograd_cells[type]) return false;
    if (input.type != Type::i8) return true;
    const size_t inputs = size_t(operand.lines) * operand.taps * operand.inputs;
    for (int output = 0; output < operand.outputs; ++output) {
        double largest = 0, sum = 0;
        for (size_t i = 0; i < inputs; ++i) {
            const double weight = std::fabs(double(operand.weight[i * operand.outputs + output]));
            largest = std::max(largest, weight), sum += weight;
        }
        // Of integers, each rounded by half at most, times inputs from -128 to 127.
        const double bound = largest > 0 ? 128 * (sum / largest * 127 + inputs / 2.0) : 0;
        if (bound * (form == Form::pairs ? PAIR_MULTIPLE : CELL_MULTIPLE) >= 2147483648.0) return false;
    }
    return true;
}

Convolution::Convolution(const Kernels& kernels, const Operand& operand, Format input, Form form,
                         std::vector<int> segments, int panel)
    : kernels_(&kernels),
      input_(input),
      form_(form),
      lines_(operand.lines),
      taps_(operand.taps),
      outputs_(operand.outputs) {
    const int type = int(input.type);
    if (!kernels.convolve[type]) throw std::logic_error(operand.name + ": no kernels for its type");
    if (!fits(kernels, operand, input, form)) throw std::logic_error(operand.name + ": it has no such form");
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
    const bool direct = form == Form::direct;
    const int tiles_from = direct ? kernels.tiles_from[type] : 0;
    tiles_ = tiles_from && groups_ >= tiles_from;
    const int widest = tiles_ ? TILE : direct ? kernels.widest_block[type] : kernels.widest_part[type];
    if (tiles_) panel = TILE;
    if (!direct) panel = std::min(panel, WINOGRAD_PANEL);
    // Panels are whole words of every type, and whole blocks where that is possible, too.
    panel_sizes_ = split(outputs_, parts_needed(outputs_, panel), tiles_ || !direct ? 4 : 12);
    for (const int size : panel_sizes_) {
        const std::vector<int> blocks = split(size, parts_needed(size, widest), 1);
        block_sizes_.insert(block_sizes_.end(), blocks.begin(), blocks.end());
        panel_blocks_.push_back(int(blocks.size()));
    }

    const auto given = [&](int line, int tap, int channel, int output) -> double {
        return operand.weight[((size_t(line) * taps_ + tap) * operand.inputs + channel) * outputs_ + output];
    };
    std::vector<double> weight_step(outputs_, 1.0);
    if (input.type == Type::i8) {
        start_.assign(outputs_, 0), scale_.resize(outputs_);
        for (int output = 0; output < outputs_; ++output) {
            double largest = 0;
            for (int line = 0; line < lines_; ++line) {
                for (int tap = 0; tap < taps_; ++tap) {
                    for (int channel = 0; channel < operand.inputs; ++channel) {
                        largest = std::max(largest, std::fabs(given(line, tap, channel, output)));
                    }
                }
            }
            if (largest > 0) weight_step[output] = largest / 127;
            scale_[output] = float(weight_step[output] * input.step);
        }
    }
    // As products have it: rounded, and not yet in a form.
    const auto rounded = [&](double exact, int output) -> double {
        switch (input.type) {
            case Type::f32: return float(exact);
            case Type::i8: return std::nearbyint(exact / weight_step[output]);
            default: return float_of(to_bf16(float(exact)) << 16);
        }
    };
    const auto value = [&](int line, int tap, int channel, int output) -> double {
        return channel < 0 ? 0 : rounded(given(line, tap, channel, output), output);
    };
    bias_.assign(outputs_, 0.0f);
    if (operand.bias) std::copy(operand.bias, operand.bias + outputs_, bias_.begin());

    // The words of a group for an output.
    uint32_t* to = nullptr;
    const bool wide = kernels.weight_words[type] == 2;
    const auto put_shorts = [&](const int* values) {
        for (int i = 0; i < 2; ++i) *to++ = uint32_t(uint16_t(values[i])) | uint32_t(uint16_t(values[i + 2])) << 16;
    };
    const auto put = [&](int line, int group, int tap, int output) {
        uint32_t word = 0;
        int bytes[4];
        for (int i = 0; i < per_word; ++i) {
            const double number = value(line, tap, channels[group * per_word + i], output);
            if (input.type == Type::i8) {
                bytes[i] = int(number);
                word |= uint32_t(uint8_t(bytes[i])) << (8 * i);
                start_[output] -= 128 * bytes[i];
            } else if (input.type == Type::bf16) {
                word |= to_bf16(float(number)) << (16 * i);
            } else {
                word = bits_of(float(number));
            }
        }
        if (input.type == Type::i8 && wide) put_shorts(bytes);
        else *to++ = word;
    };
    if (!direct) {
        start_.clear();
        // Of part [across][down], a whole number in int8; float32 is rounded once, in the end.
        const int parts = parts_of(form), words = groups_ * part_words(input.type);
        const Factors* const of_columns = form == Form::pairs ? &PAIR_FACTORS[0] : &FOUR_FACTORS[0];
        const auto transform = [&](int channel, int output, double* values) {
            double rows[ROWS][3];
            for (int tap = 0; tap < 3; ++tap) {
                double kernel[3];
                for (int line = 0; line < 3; ++line) {
                    const double exact = given(line, tap, channel, output);
                    kernel[line] = input.type == Type::f32 ? exact : rounded(exact, output);
                }
                for (int row = 0; row < ROWS; ++row) rows[row][tap] = FOUR_FACTORS[row].of(kernel);
            }
            for (int part = 0; part < parts; ++part) {
                const Factors& across = of_columns[part / ROWS];
                const int whole = across.whole * FOUR_FACTORS[part % ROWS].whole;
                values[part] = across.of(rows[part % ROWS]) / (input.type == Type::i8 ? 1 : whole);
            }
        };
        words_per_output_ = size_t(parts) * words;
        uint32_t* const all = words_.words(words_per_output_ * outputs_);
        std::fill_n(all, words_per_output_ * outputs_, 0u);
        const int* block = block_sizes_.data();
        for (int panel = 0, begin = 0; panel < int(panel_sizes_.size()); begin += panel_sizes_[panel++]) {
            for (int i = 0, first = begin; i < panel_blocks_[panel]; ++i, first += *block++) {
                for (int output = first; output < first + *block; ++output) {
                    for (int place = 0; place < int(channels.size()); ++place) {
                        if (channels[place] < 0) continue;
                        double values[36];
                        transform(channels[place], output, values);
                        // Of a word of int8 channels 0 and 2, then 1 and 3.
                        const int word = input.type == Type::i8 ? place / 4 * 2 + place % 2 : place;
                        const int shift = input.type == Type::i8 && place % 4 >= 2 ? 16 : 0;
                        for (int part = 0; part < parts; ++part) {
                            uint32_t& at = all[begin * words_per_output_ + size_t(part) * panel_sizes_[panel] * words +
                                               size_t(first - begin) * words + size_t(word) * *block + output - first];
                            at |= input.type == Type::i8 ? uint32_t(uint16_t(int(values[part]))) << shift
                                                         : bits_of(float(values[part]));
                        }
                    }
                }
            }
        }
        return;
    }
    const int step_groups = tile_groups(groups_);
    const int groups = tiles_ ? tile_steps(groups_) * step_groups : groups_ * kernels.weight_words[type];
    words_per_output_ = size_t(lines_) * taps_ * groups;
    to = words_.words(words_per_output_ * outputs_);
    for (int begin = 0, block = 0; begin < outputs_; begin += block_sizes_[block++]) {
        const int end = begin + block_sizes_[block];
        for (int line = 0; line < lines_; ++line) {
            if (!tiles_) {
                for (int group = 0; group < groups_; ++group) {
                    for (int tap = 0; tap < taps_; ++tap) {
                        for (int output = begin; output < end; ++output) put(line, group, tap, output);
                    }
                }
                continue;
            }
            for (int tap = 0; tap < taps_; ++tap) {
                for (int met = 0; met < groups_; met = std::min(met + step_groups, groups_)) {
                    const int first = tile_begin(groups_, step_groups, met / step_groups);
                    for (int output = begin; output < end; ++output) {
                        for (int group = first; group < first + step_groups; ++group) {
                            if (group < met) *to++ = 0;
                            else put(line, group, tap, output);
                        }
                    }
                }
            }
        }
    }
}

Macs Convolution::macs() const {
    // Every word is multiplied once for each cell; a part gives four rows of two or four columns.
    const int type = int(input_.type);
    double products = double(groups_) * channels_per_word(input_.type) * outputs_ * UNIT;
    if (form_ == Form::direct) products *= lines_ * taps_;
    else products *= double(parts_of(form_)) / (form_ == Form::pairs ? 8 : 16);
    const bool twice = form_ != Form::direct && input_.type == Type::i8 && kernels_->weight_words[type] == 1;
    Macs macs;
    macs.of_type[type] = twice ? 2 * products : products;
    return macs;
}

Weights Convolution::weights() const {
    Weights found;
    found.words = words_.data();
    found.tiles = tiles_;
    found.start = start_.empty() ? nullptr : start_.data();
    found.block_sizes = block_sizes_.data();
    found.panel_blocks = panel_blocks_.data(), found.panel_count = int(panel_blocks_.size());
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
                      const Finish& finish, int first_panel, int last_panel) const {
    kernels_->convolve[int(input_.type)](window(lines, taps, group_stride), weights(), first_panel,
                                         last_panel < 0 ? int(panel_sizes_.size()) : last_panel, units, complete(finish));
}

void Convolution::pair_rows(const uint32_t* const* lines, ptrdiff_t group_stride, int units, uint32_t* scratch,
                            Finish* rows, int row_count) const {
    for (int row = 0; row < row_count; ++row) rows[row] = complete(rows[row]);
    const auto run = kernels_->winograd_pairs[int(input_.type)];
    run(lines, group_stride, groups_, weights(), units, scratch, rows, row_count);
}

void Convolution::cell_rows(const uint32_t* const* lines, const ptrdiff_t* columns, ptrdiff_t group_stride, int units,
                            uint32_t* scratch, Finish* pixels, int row_count) const {
    for (int pixel = 0; pixel < 4 * row_count; ++pixel) pixels[pixel] = complete(pixels[pixel]);
    const auto run = kernels_->winograd_cells[int(input_.type)];
    run(lines, columns, group_stride, groups_, weights(), units, scratch, pixels, row_count);
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

void convolve_rows(const Convolution& convolution, const Rows& from, int phases, int first, int count,
                   const Columns& columns, uint32_t* scratch,
                   const std::function<Finish(int row, int phase)>& end) {
    const int units = columns.units();
    const ptrdiff_t begin = columns.begin();
    const auto taps_of = [&](int phase) { return taps_around(phase, convolution.taps() / 2, 1, phases, from.phase()); };
    if (convolution.form() == Form::direct) {
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
    const ptrdiff_t phase = from.phase();
    const CellColumns around = {3 * phase - 1, 0, phase, 2 * phase, 3 * phase, 1};
    for (int row = first; row < first + count; row += 4) {
        const uint32_t* lines[6];
        // Rows that only unwanted results read may not be there yet.
        for (int i = 0; i < 6; ++i) {
            const int index = row + i - 1;
            lines[i] = (index <= first + count ? from.read(index) : from.zero()) + begin;
        }
        const int row_count = std::min(4, first + count - row);
        Finish ends[16];
        for (int i = 0; i < row_count * phases; ++i) ends[i] = columns.finish(end(row + i / phases, i % phases));
        if (convolution.form() == Form::pairs) {
            convolution.pair_rows(lines, from.stride(), units, scratch, ends, row_count);
        } else {
            convolution.cell_rows(lines, around.data(), from.stride(), units, scratch, ends, row_count);
        }
    }
}

}  // namespace dssnet::cpu
