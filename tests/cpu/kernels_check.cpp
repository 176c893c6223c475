// Compares every instruction set of a build with plain loops in double precision, and prints one line for each.
// Compiled with csrc/cpu by test_kernels_check.py, for processors that this machine only emulates, too.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "../../csrc/cpu/convolution.h"
#include "../../csrc/cpu/instruction_sets.h"
#include "../../csrc/cpu/self_check.h"

using namespace dssnet::cpu;

namespace {

constexpr Type ALL_TYPES[] = {Type::f32, Type::bf16, Type::i8, Type::wide_bf16};
constexpr const char* TYPE_NAMES[] = {"fp32", "bf16", "int8", "wide bf16"};

bool has(const Kernels& kernels, Type type) { return kernels.convolve[int(type)] != nullptr; }

std::mt19937 random_bits(7);
float random_float() { return float(int(random_bits() % 4001) - 2000) / 1000; }
std::vector<float> random_floats(size_t count) {
    std::vector<float> values(count);
    for (float& value : values) value = random_float();
    return values;
}

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

// What a type keeps of a value. Written with a library's rounding, as kernels are not.
double kept_by(Type type, double value, double step) {
    if (type == Type::f32) return float(value);
    if (type == Type::i8) return std::fmin(std::fmax(std::nearbyint(value / step), -127), 127) * step;
    if (value == 0) return 0;
    const int exponent = std::ilogb(value);
    return std::scalbn(std::nearbyint(std::scalbn(value, 7 - exponent)), exponent - 7);
}

// Channel `lane` of a word.
double unpacked(uint32_t word, Type type, int lane, double step) {
    if (type == Type::f32) return float_of(word);
    if (type == Type::bf16) return float_of(word >> (16 * lane) << 16);
    if (type == Type::wide_bf16) return float_of(word);
    return (int(word >> (8 * lane) & 0xff) - 128) * step;
}

uint32_t packed(double value, Type type, int lane, double step) {
    if (type == Type::f32) return bits_of(float(value));
    if (type == Type::bf16) return bits_of(float(kept_by(type, value, step))) >> 16 << (16 * lane);
    if (type == Type::wide_bf16) return bits_of(float(kept_by(type, value, step)));
    return uint32_t(std::lround(kept_by(type, value, step) / step) + 128) << (8 * lane);
}

class Check {
  public:
    explicit Check(const Kernels& kernels) : kernels(kernels) {}

    void near(double given, double right, double tolerance, const char* what) {
        ++count_;
        // Not a number, it is wrong.
        if (std::fabs(given - right) <= tolerance) return;
        if (++wrong_ == 1) std::snprintf(first_, sizeof first_, "%s: %g instead of %g (%s)", what, given, right, about);
    }
    void same(uint32_t given, uint32_t right, const char* what) { near(given, right, 0, what); }

    bool report() const {
        std::printf("%-12s %ld comparisons", kernels.name, count_);
        if (wrong_) std::printf(", %ld WRONG, first %s", wrong_, first_);
        std::printf("\n");
        return wrong_ == 0;
    }

    const Kernels& kernels;
    char about[200] = "";

  private:
    long count_ = 0, wrong_ = 0;
    char first_[400] = "";
};

// Rows of a map: packed, and each value as it was packed.
struct Map {
    Map(int height, int phases, int channels, int cells, Type type, double step, std::vector<int> segments = {})
        : height(height), phases(phases), cells(cells), type(type), step(step) {
        if (segments.empty()) segments = {channels};
        const int per_word = channels_per_word(type);
        for (int size : segments) {
            for (int i = 0; i < size; ++i) places.push_back(groups * per_word + i);
            groups += words_for(size, type);
        }
        const size_t row_words = Rows::words_of_row(phases, groups, cells);
        uint32_t* words = memory.words((height + 1) * row_words);
        for (size_t i = 0; i < (height + 1) * row_words; ++i) words[i] = zero_word(type);
        rows = Rows(words + row_words, words, height, height, phases, groups, {type, float(step)}, cells);
    }
    void fill() {
        for (int row = 0; row < height; ++row) {
            for (int channel = 0; channel < int(places.size()); ++channel) {
                for (int column = 0; column < cells * phases; ++column) set(row, channel, column, random_float());
            }
        }
    }
    uint32_t& word(int row, int channel, int column) const {
        const int group = places[channel] / channels_per_word(type);
        return rows.row(row)[column % phases * rows.phase() + group * rows.stride() + column / phases];
    }
    void set(int row, int channel, int column, double value) {
        const int lane = places[channel] % channels_per_word(type);
        uint32_t& at = word(row, channel, column);
        const uint32_t mask = type == Type::i8     ? 0xffu << (8 * lane)
                              : type == Type::bf16 ? 0xffffu << (16 * lane)
                                                   : ~0u;
        at = (at & ~mask) | packed(value, type, lane, step);
    }
    double at(int row, int channel, int column) const {
        if (row < 0 || row >= height || column < 0 || column >= cells * phases) return 0;
        return unpacked(word(row, channel, column), type, places[channel] % channels_per_word(type), step);
    }

    int height, phases, cells, groups = 0;
    Type type;
    double step;
    std::vector<int> places;  // of channels among those of the words
    Memory memory;
    Rows rows;
};

// A run of a packed result: values, and zeros around them.
void check_packed(Check& check, const uint32_t* row, ptrdiff_t stride, Type type, double step, int channels, int cells,
                  const std::vector<double>& right, const std::vector<double>& tolerance) {
    const int per_word = channels_per_word(type), units = round_up(cells, UNIT) / UNIT;
    for (int group = 0; group < words_for(channels, type); ++group) {
        const uint32_t* run = row + group * stride;
        for (int lane = 0; lane < per_word; ++lane) {
            const int channel = group * per_word + lane;
            for (int cell = -1; cell < units * UNIT + 1; ++cell) {
                const double given = unpacked(run[cell], type, lane, step);
                if (channel >= channels || cell < 0 || cell >= cells) {
                    check.near(given, 0, 0, "packed zero");
                    continue;
                }
                const double value = right[channel * cells + cell], slack = tolerance[channel * cells + cell];
                // The neighbour it may be rounded to.
                const double one = kept_by(type, value - slack, step), other = kept_by(type, value + slack, step);
                const double tolerated = (other - one) / 2 * 1.0001 + 1e-6 * std::fabs(value);
                check.near(given, (one + other) / 2, tolerated, "packed value");
            }
        }
    }
}

struct Shape {
    int lines, taps, inputs, outputs, cells, phases;
};

void check_convolution(Check& check, Type type, Type result, const Shape& shape, bool split) {
    const int lines = shape.lines, taps = shape.taps, inputs = shape.inputs, outputs = shape.outputs;
    const int cells = shape.cells, phases = shape.phases;
    std::snprintf(check.about, sizeof check.about, "%s to %s, %d lines, %d taps, %d inputs, %d outputs, %d cells",
                  TYPE_NAMES[int(type)], TYPE_NAMES[int(result)], lines, taps, inputs, outputs, cells);
    const std::vector<int> segments = split && inputs > 5 ? std::vector<int>{5, inputs - 5} : std::vector<int>{inputs};
    Map map(lines, phases, inputs, cells, type, 1 / 60.0, segments);
    map.fill();
    const std::vector<float> weight = random_floats(size_t(lines) * taps * inputs * outputs);
    const std::vector<float> bias = random_floats(outputs);
    Operand operand;
    operand.lines = lines, operand.taps = taps, operand.inputs = inputs, operand.outputs = outputs;
    operand.weight = weight.data(), operand.bias = bias.data();
    // Panels of 12 for some, so that there are several of them.
    const Convolution convolution(check.kernels, operand, map.rows.format(), Form::direct, segments, split ? 12 : WIDEST_PANEL);

    std::vector<double> step(outputs);
    for (size_t i = 0; i < weight.size(); ++i) {
        step[i % outputs] = std::fmax(step[i % outputs], std::fabs(double(weight[i])) / 127);
    }
    const int phase = phases - 1, width = round_up(cells, UNIT);
    const std::vector<float> addend = random_floats(size_t(outputs) * width);
    const float slope = outputs % 2 ? 0.25f : 1.0f;
    std::vector<double> right(size_t(outputs) * cells), tolerance(right.size());
    for (int output = 0; output < outputs; ++output) {
        for (int cell = 0; cell < cells; ++cell) {
            double sum = bias[output] + double(addend[output * width + cell]), size = std::fabs(sum) + 1;
            for (int line = 0; line < lines; ++line) {
                for (int tap = 0; tap < taps; ++tap) {
                    for (int input = 0; input < inputs; ++input) {
                        const float exact = weight[((size_t(line) * taps + tap) * inputs + input) * outputs + output];
                        const double term = kept_by(type, exact, step[output]) *
                                            map.at(line, input, cell * phases + phase + tap - taps / 2);
                        sum += term, size += std::fabs(term);
                    }
                }
            }
            right[output * cells + cell] = sum > 0 ? sum : sum * slope;
            tolerance[output * cells + cell] = 2e-6 * size;
        }
    }

    std::vector<const uint32_t*> pointers;
    for (int line = 0; line < lines; ++line) pointers.push_back(map.rows.row(line));
    const Taps around = taps_around(phase, taps / 2, 1, phases, map.rows.phase());
    Map to(1, 1, outputs, cells, result, 0.5);
    std::fill_n(to.rows.row(0) - PAD, to.rows.row_words(), 0xdeadbeefu);
    std::vector<float> kept(size_t(outputs) * width, -3.0f);
    Finish finish;
    finish.addend = addend.data(), finish.addend_stride = width, finish.slope = slope, finish.cells = cells;
    finish.kept = kept.data(), finish.kept_stride = width;
    finish.packed = to.rows.row(0), finish.packed_stride = to.rows.stride(), finish.packed_type = result;
    finish.inverse_step = 2;
    const auto run = [&](int first = 0, int last = -1) {
        convolution.row(pointers.data(), around.data(), map.rows.stride(), width / UNIT, finish, first, last);
    };
    const auto compare = [&](int first, int last, double least, const char* what) {
        for (int i = first * width; i < last * width; ++i) {
            const int at = i / width * cells + i % width;
            if (i % width >= cells) check.near(kept[i], 0, 0, "kept beyond the last cell");
            else check.near(kept[i], std::fmax(right[at], least), tolerance[at], what);
        }
    };
    run();
    compare(0, outputs, -INFINITY, "kept");
    check_packed(check, to.rows.row(0), to.rows.stride(), result, 0.5, outputs, cells, right, tolerance);

    finish.maximum = true, finish.packed = nullptr;
    std::fill(kept.begin(), kept.end(), 1.0f);
    run();
    compare(0, outputs, 1, "maximum");

    // One panel only.
    finish.maximum = false;
    std::fill(kept.begin(), kept.end(), -3.0f);
    const int last = int(convolution.panels().size()) - 1;
    run(last, last + 1);
    const int begin = outputs - convolution.panels()[last];
    for (int i = 0; i < begin * width; ++i) check.near(kept[i], -3, 0, "another panel");
    compare(begin, outputs, -INFINITY, "last panel");
}

void check_convolutions(Check& check) {
    for (Type type : ALL_TYPES) {
        if (!has(check.kernels, type)) continue;
        for (Type result : ALL_TYPES) {
            // Every number of outputs of a block, one to five units, tiles of all sizes.
            for (int outputs = 1; outputs <= 17; ++outputs) {
                const int inputs = 1 + outputs * 23 % 61, cells = 1 + (outputs * 29 + int(result) * 16) % 80;
                const Shape shape = {1 + outputs % 3, 1 + outputs % 2 * 2, inputs, outputs, cells, 2};
                check_convolution(check, type, result, shape, outputs % 4 == 0);
            }
            check_convolution(check, type, result, {1, 1, 84, 84, 33, 1}, result == Type::i8);
            check_convolution(check, type, result, {3, 3, 42, 42, 41, 1}, false);
            check_convolution(check, type, result, {1, 1, 264, 30, 16, 1}, false);
        }
    }
}

// Winograd's forms, of maps with one column a cell and four; int8 exactly.
void check_winograd(Check& check, Form form, Type type, int inputs, int outputs, int cells, Range columns) {
    constexpr int HEIGHT = 7;
    const int phases = form == Form::pairs ? 1 : 4, width = round_up(cells, UNIT);
    std::snprintf(check.about, sizeof check.about, "%s of %s, %d inputs, %d outputs, cells %d to %d of %d",
                  form == Form::pairs ? "pairs" : "cells", TYPE_NAMES[int(type)], inputs, outputs, columns.first,
                  columns.last, cells);
    // Inputs, weights and results are whole numbers in int8.
    const bool whole = type == Type::i8;
    const double step = whole ? 1 : 1 / 60.0;
    Map map(HEIGHT, phases, inputs, cells, type, step);
    map.fill();
    if (whole) {
        for (int i = 0; i < HEIGHT * inputs * cells * phases; ++i) {
            const int row = i % HEIGHT, channel = i / HEIGHT % inputs, column = i / HEIGHT / inputs;
            map.set(row, channel, column, int(random_bits() % 255) - 127);
        }
    }
    std::vector<float> weight = random_floats(9 * inputs * outputs), bias = random_floats(outputs);
    if (whole) {
        for (float& one : weight) one = float(int(random_bits() % 255) - 127);
        std::fill_n(weight.begin(), outputs, 127.0f);
        std::fill(bias.begin(), bias.end(), 0.0f);
    }
    Operand operand;
    operand.lines = operand.taps = 3, operand.inputs = inputs, operand.outputs = outputs;
    operand.weight = weight.data(), operand.bias = bias.data();
    if (!Convolution::fits(check.kernels, operand, map.rows.format(), form)) return;
    const Convolution convolution(check.kernels, operand, map.rows.format(), form);
    // Not a number, whatever is left over there.
    Memory memory;
    uint32_t* const scratch = memory.words(convolution.scratch_words());
    std::fill_n(scratch, convolution.scratch_words(), 0xffffffffu);
    const size_t row_words = Rows::words_of_row(phases, words_for(outputs, type), cells);
    Memory packed_memory;
    uint32_t* const packed_words = packed_memory.words(HEIGHT * row_words);
    std::fill_n(packed_words, HEIGHT * row_words, 0xdeadbeefu);
    const Format format = {type, 4096.0f};
    const Rows packed(packed_words, packed_words, HEIGHT, HEIGHT, phases, words_for(outputs, type), format, cells);
    std::vector<float> kept(HEIGHT * phases * outputs * width);
    const auto of = [&](int row, int phase) { return kept.data() + (row * phases + phase) * outputs * width; };
    const Columns wanted(cells, columns);
    // Whole groups of rows or a last one in part, as a share of them may be.
    for (const Range rows : {Range{0, 4}, Range{4, HEIGHT}}) {
        convolve_rows(convolution, map.rows, phases, rows.first, rows.count(), wanted, scratch, [&](int row, int phase) {
            Finish finish = packed.packing(row, phase);
            finish.kept = of(row, phase), finish.kept_stride = width;
            return finish;
        });
    }
    for (int row = 0; row < HEIGHT; ++row) {
        for (int column = columns.first * phases; column < columns.last * phases; ++column) {
            for (int output = 0; output < outputs; ++output) {
                double sum = bias[output], size = 1;
                for (int i = 0; i < 9 * inputs; ++i) {
                    const int line = i / (3 * inputs), tap = i / inputs % 3, input = i % inputs;
                    const double term = kept_by(type, weight[i * outputs + output], 1) *
                                        map.at(row + line - 1, input, column + tap - 1);
                    sum += term, size += std::fabs(term);
                }
                const float given = of(row, column % phases)[output * width + column / phases];
                // Transformed numbers are larger than what they stand for: 3.1e-6 is the worst seen.
                check.near(given, sum, whole ? 0 : 6e-6 * size, "sum");
                const int per_word = channels_per_word(type);
                const uint32_t word = packed.row(row)[column % phases * packed.phase() +
                                                      output / per_word * packed.stride() + column / phases];
                const double stored = unpacked(word, type, output % per_word, format.step);
                check.near(stored, kept_by(type, given, format.step), 0, "packed");
            }
        }
    }
}

void check_winograd(Check& check) {
    for (const Form form : {Form::pairs, Form::cells}) {
        for (const Type type : ALL_TYPES) {
            if (!has(check.kernels, type)) continue;
            check_winograd(check, form, type, 9, 17, 21, {0, 21});
            check_winograd(check, form, type, 3, 51, 16, {0, 16});
            check_winograd(check, form, type, 6, 24, 67, {0, 67});
            check_winograd(check, form, type, 5, 7, 83, {0, 83});
            check_winograd(check, form, type, 4, 5, 100, {40, 60});
        }
    }
}

void check_pooled(Check& check) {
    constexpr int INPUTS = 3, OUTPUTS = 13, CELLS = 37, WIDTH = 48;
    for (Type type : ALL_TYPES) {
        if (!has(check.kernels, type)) continue;
        std::snprintf(check.about, sizeof check.about, "pooled, %s", TYPE_NAMES[int(type)]);
        Map map(4, 1, INPUTS, CELLS, type, 1 / 60.0);
        map.fill();
        // Whole numbers, and the largest int8 has: exact in all types.
        std::vector<float> weights[2], bias(OUTPUTS);
        std::vector<Convolution> convolutions;
        for (std::vector<float>& weight : weights) {
            weight = random_floats(INPUTS * OUTPUTS);
            for (float& one : weight) one = std::round(one * 63);
            std::fill_n(weight.begin(), OUTPUTS, 127.0f);
            Operand operand;
            operand.inputs = INPUTS, operand.outputs = OUTPUTS;
            operand.weight = weight.data(), operand.bias = bias.data();
            convolutions.emplace_back(check.kernels, operand, map.rows.format());
        }
        const uint32_t* lines[4];
        for (int i = 0; i < 4; ++i) lines[i] = map.rows.row(i);
        const ptrdiff_t here = 0;
        Window four[4];
        for (int i = 0; i < 4; ++i) four[i] = convolutions[1].window(lines + i, &here, map.rows.stride());
        std::vector<float> kept(OUTPUTS * WIDTH);
        Finish finish;
        finish.kept = kept.data(), finish.kept_stride = WIDTH, finish.cells = CELLS;
        convolutions[0].pooled_row(lines, &here, convolutions[1], four, map.rows.stride(), WIDTH / UNIT, finish);
        for (int output = 0; output < OUTPUTS; ++output) {
            for (int cell = 0; cell < CELLS; ++cell) {
                const auto sum = [&](int line, int which) {
                    double sum = 0;
                    for (int i = 0; i < INPUTS; ++i) {
                        sum += map.at(line, i, cell) * weights[which][i * OUTPUTS + output];
                    }
                    return sum;
                };
                const double largest = std::fmax(std::fmax(sum(0, 1), sum(1, 1)), std::fmax(sum(2, 1), sum(3, 1)));
                check.near(kept[output * WIDTH + cell], sum(0, 0) + largest, 2e-3, "sum");
            }
        }
    }
}

void check_finish(Check& check) {
    constexpr int OUTPUTS = 29, CELLS = 37, WIDTH = 48;
    for (Type type : ALL_TYPES) {
        std::snprintf(check.about, sizeof check.about, "finish, %s", TYPE_NAMES[int(type)]);
        const std::vector<float> sums = random_floats(OUTPUTS * WIDTH), bias = random_floats(OUTPUTS);
        Map to(1, 1, OUTPUTS, CELLS, type, 1 / 64.0);
        Finish finish;
        finish.bias = bias.data(), finish.slope = -0.5f, finish.outputs = OUTPUTS, finish.cells = CELLS;
        finish.packed = to.rows.row(0), finish.packed_stride = to.rows.stride(), finish.packed_type = type;
        finish.inverse_step = 64;
        check.kernels.finish(sums.data(), WIDTH, WIDTH / UNIT, finish);
        std::vector<double> right, tolerance(OUTPUTS * CELLS, 1e-6);
        for (int i = 0; i < OUTPUTS * CELLS; ++i) {
            const double sum = double(sums[i / CELLS * WIDTH + i % CELLS]) + bias[i / CELLS];
            right.push_back(sum > 0 ? sum : -0.5 * sum);
        }
        check_packed(check, to.rows.row(0), to.rows.stride(), type, 1 / 64.0, OUTPUTS, CELLS, right, tolerance);
    }
}

void check_images(Check& check) {
    constexpr int CELLS = 19;
    for (Type type : ALL_TYPES) {
        for (int channels = 1; channels <= 3; channels += 2) {
            std::snprintf(check.about, sizeof check.about, "image, %s, %d channels", TYPE_NAMES[int(type)], channels);
            std::vector<uint8_t> bytes(CELLS * PHASES * channels);
            for (uint8_t& byte : bytes) byte = uint8_t(random_bits());
            std::vector<float> floats[3];
            const float* lines[3];
            for (int channel = 0; channel < channels; ++channel) {
                for (int pixel = 0; pixel < CELLS * PHASES; ++pixel) {
                    floats[channel].push_back((bytes[pixel * channels + channel] - 128.0f) / 128);
                }
                lines[channel] = floats[channel].data();
            }
            for (bool of_bytes : {true, false}) {
                Map to(1, PHASES, channels, CELLS, type, 1 / 128.0);
                uint32_t* row = to.rows.row(0);
                std::fill_n(row - PAD, to.rows.row_words(), 0xdeadbeefu);
                if (of_bytes) check.kernels.image_u8(bytes.data(), channels, CELLS, type, row, to.rows.stride());
                else check.kernels.image_f32(lines, channels, CELLS, type, row, to.rows.stride());
                for (int phase = 0; phase < PHASES; ++phase) {
                    std::vector<double> right;
                    for (int i = 0; i < channels * CELLS; ++i) {
                        right.push_back(floats[i / CELLS][i % CELLS * PHASES + phase]);
                    }
                    const std::vector<double> exact(right.size(), 0.0);
                    // Exact in all types. Byte 0 is one value more than maps have, and than `kept_by` knows.
                    for (int i = 0; i < channels * CELLS; ++i) {
                        if (right[i] != -1 || type != Type::i8) continue;
                        uint32_t& word = row[phase * to.rows.phase() + i % CELLS];
                        check.near(unpacked(word, type, i / CELLS, 1 / 128.0), -1, 0, "byte 0");
                        word += 1u << (8 * (i / CELLS));
                    }
                    check_packed(check, row + phase * to.rows.phase(), to.rows.stride(), type, 1 / 128.0, channels,
                                 CELLS, right, exact);
                }
            }
        }
    }
}

void check_pool(Check& check) {
    constexpr int WORDS = 96;
    std::snprintf(check.about, sizeof check.about, "pool");
    const std::vector<float> row = random_floats(4 * WORDS), there = random_floats(2 * WORDS);
    for (bool maximum : {false, true}) {
        std::vector<float> result = there;
        check.kernels.pool(row.data(), 2, WORDS, maximum, result.data());
        for (int i = 0; i < 2 * WORDS; ++i) {
            const float* pair = row.data() + i / WORDS * 2 * WORDS + i % WORDS;
            const float larger = std::fmax(pair[0], pair[WORDS]);
            check.near(result[i], maximum ? std::fmax(larger, there[i]) : larger, 0, "largest");
        }
    }
}

void check_nine(Check& check) {
    constexpr int CHANNELS = 13, CELLS = 21, UNITS = 2, STRIDE = UNITS * UNIT + PAD, WIDTH = UNITS * UNIT;
    constexpr int PLANE = 10 * WIDTH;
    const double step = 1 / 16.0;
    for (Type type : ALL_TYPES) {
        std::snprintf(check.about, sizeof check.about, "nine maps, %s", TYPE_NAMES[int(type)]);
        std::vector<Map> maps;
        for (int i = 0; i < 9; ++i) maps.emplace_back(1, 1, CHANNELS, CELLS, type, step);
        NinePacked to;
        to.stride = maps[0].rows.stride(), to.type = type;
        for (int i = 0; i < 9; ++i) to.maps[i] = maps[i].rows.row(0), to.inverse_steps[i] = float(1 / step);
        const auto compare = [&](const std::function<double(int map, int channel, int cell)>& right) {
            for (int map = 0; map < 9; ++map) {
                std::vector<double> values, tolerance(CHANNELS * CELLS, 2e-6);
                for (int i = 0; i < CHANNELS * CELLS; ++i) values.push_back(right(map, i / CELLS, i % CELLS));
                check_packed(check, to.maps[map], to.stride, type, step, CHANNELS, CELLS, values, tolerance);
            }
        };

        std::vector<float> lines[3];
        for (std::vector<float>& line : lines) line = random_floats(CHANNELS * STRIDE + 2 * PAD);
        check.kernels.factors(lines[0].data() + PAD, lines[1].data() + PAD, lines[2].data() + PAD, CHANNELS, STRIDE,
                              UNITS, CELLS, to);
        compare([&](int map, int channel, int cell) {
            // Here, and halves of what the neighbour before and the one after have more: down, then across.
            const auto down = [&](int at) {
                const int i = PAD + channel * STRIDE + at;
                const double here = lines[1][i];
                return map / 3 == 0 ? here : (lines[map / 3 == 1 ? 0 : 2][i] - here) / 2;
            };
            const double here = down(cell);
            return map % 3 == 0 ? here : (down(cell + (map % 3 == 1 ? -1 : 1)) - here) / 2;
        });

        std::vector<float> products[2];
        for (std::vector<float>& product : products) product = random_floats(9 * PLANE);
        const float slope = 0.125f;
        constexpr int FIRST = 8;
        check.kernels.combine(products[0].data(), PLANE, 0, FIRST, UNITS, CELLS, slope, to);
        check.kernels.combine(products[1].data(), PLANE, FIRST, CHANNELS - FIRST, UNITS, CELLS, slope, to);
        compare([&](int map, int channel, int cell) {
            const std::vector<float>& of = products[channel >= FIRST];
            const auto product = [&](int i) { return double(of[i * PLANE + channel % FIRST * WIDTH + cell]); };
            const auto across = [&](int row) {
                return product(3 * row) + (map % 3 == 1 ? 0 : product(3 * row + (map % 3 == 0 ? 1 : 2)));
            };
            const double sum = across(0) + (map / 3 == 1 ? 0 : across(map / 3 == 0 ? 1 : 2));
            return sum > 0 ? sum : slope * sum;
        });
    }
}

void check_answers(Check& check) {
    constexpr int CELLS = 19, WIDTH = 32;
    for (int classes = 2; classes <= 5; classes += 3) {
        std::snprintf(check.about, sizeof check.about, "answers, %d classes", classes);
        const std::vector<float> logits = random_floats(8 * classes * WIDTH);
        const ptrdiff_t pair = 2 * classes * WIDTH;
        const auto logit = [&](int pixel, int c) {
            return double(logits[(pixel % PHASES * classes + c) * WIDTH + pixel / PHASES]);
        };
        std::vector<uint8_t> labels(CELLS * PHASES + 1, 77);
        check.kernels.labels(logits.data(), pair, WIDTH, classes, CELLS, labels.data());
        std::vector<uint8_t> decided(CELLS * PHASES + 1, 77);
        std::vector<float> highest(CELLS * PHASES + 1, 77);
        check.kernels.decide(logits.data(), pair, WIDTH, classes, CELLS, decided.data(), highest.data());
        std::vector<float> values[2];
        for (bool probabilities : {false, true}) {
            values[probabilities].resize(CELLS * PHASES * classes);
            float* to = values[probabilities].data();
            check.kernels.values(logits.data(), pair, WIDTH, classes, CELLS, probabilities, to);
        }
        for (int pixel = 0; pixel < CELLS * PHASES; ++pixel) {
            int best = 0;
            double sum = 0;
            for (int c = 0; c < classes; ++c) {
                if (logit(pixel, c) > logit(pixel, best)) best = c;
                sum += std::exp(logit(pixel, c));
            }
            check.same(labels[pixel], best, "label");
            check.same(decided[pixel], best, "decided label");
            check.near(highest[pixel], std::exp(logit(pixel, best)) / sum, 5e-7, "decided probability");
            for (int c = 0; c < classes; ++c) {
                check.near(values[0][pixel * classes + c], logit(pixel, c), 0, "logit");
                check.near(values[1][pixel * classes + c], std::exp(logit(pixel, c)) / sum, 1e-6, "probability");
            }
        }
        check.same(labels.back(), 77, "beyond the last label");
        check.same(decided.back(), 77, "beyond the last decided label");
        check.same(int(highest.back()), 77, "beyond the last probability");
    }
    // Far apart, and no numbers.
    std::snprintf(check.about, sizeof check.about, "answers that are extreme");
    for (const float other : {-3.0f, -40.0f, -1e30f}) {
        std::vector<float> logits(8 * 2 * UNIT, other), highest(UNIT * PHASES);
        std::vector<uint8_t> decided(UNIT * PHASES);
        for (int phase = 0; phase < 8; ++phase) std::fill_n(logits.begin() + (2 * phase + 1) * UNIT, UNIT, 0.0f);
        check.kernels.decide(logits.data(), 4 * UNIT, UNIT, 2, UNIT, decided.data(), highest.data());
        check.same(decided[5], 1, "label of the higher");
        check.near(highest[5], 1 / (1 + std::exp(double(other))), 2e-7, "probability of the higher");
    }
    for (const float other : {NAN, INFINITY}) {
        for (int which = 0; which < 2; ++which) {
            std::vector<float> logits(8 * 2 * UNIT, 1.0f), highest(UNIT * PHASES);
            std::vector<uint8_t> decided(UNIT * PHASES);
            logits[which * UNIT + 3] = other;
            check.kernels.decide(logits.data(), 4 * UNIT, UNIT, 2, UNIT, decided.data(), highest.data());
            for (int pixel = 0; pixel < UNIT * PHASES; ++pixel) {
                check.same(std::isfinite(highest[pixel]), pixel != 3 * PHASES, "finite");
            }
        }
    }
}

// The loops that measure instructions run, and are there for all that has instructions of its own.
void check_rates(Check& check) {
    std::snprintf(check.about, sizeof check.about, "rates");
    const bool portable = check.kernels.name == std::string("portable");
    for (Type type : ALL_TYPES) {
        const Rate& rate = check.kernels.rates[int(type)];
        const bool wanted = has(check.kernels, type) && !portable;
        check.same(rate.repeat != nullptr, wanted, "there");
        if (!rate.repeat) continue;
        rate.repeat(3);
        check.same(rate.products > 0 && rate.instructions[0], true, "described");
    }
}

// A first number that is none is seen, whatever follows.
void no_number(const Window& window, const Weights& weights, int first, int last, int units, const Finish& finish) {
    portable_kernels.convolve[int(Type::f32)](window, weights, first, last, units, finish);
    finish.kept[0] = NAN;
}

bool self_check_sees_it() {
    Kernels broken = portable_kernels;
    broken.convolve[int(Type::f32)] = no_number;
    const SelfCheck check(portable_kernels);
    const bool seen = check.problem(portable_kernels).empty() && !check.problem(broken).empty();
    if (!seen) std::printf("the self-check passes NaN\n");
    return seen;
}

}  // namespace

int main() {
    bool right = self_check_sees_it();
    for (const InstructionSet& set : instruction_sets()) {
        if (!set.runs_here) {
            const char* why = set.problem.empty() ? "not on this processor" : set.problem.c_str();
            std::printf("%-12s %s\n", set.kernels->name, why);
            right = right && set.problem.empty();
            if (set.problem.empty()) continue;
        }
        random_bits.seed(7);
        Check check(*set.kernels);
        check_convolutions(check);
        check_winograd(check);
        check_pooled(check);
        check_finish(check);
        check_images(check);
        check_pool(check);
        check_nine(check);
        check_answers(check);
        check_rates(check);
        right = check.report() && right;
    }
    return right ? 0 : 1;
}
