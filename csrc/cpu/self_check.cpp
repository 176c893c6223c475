#include "self_check.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <vector>

#include "convolution.h"

namespace dssnet::cpu {
namespace {

// A convolution of which nothing is a multiple of anything: blocks, units and steps of tiles are left over.
struct Case {
    Form form;
    int height, lines, taps, phases, inputs, outputs, cells;
};
constexpr Case CASES[] = {{Form::direct, 2, 2, 3, 1, 75, 39, 41},
                          {Form::pairs, 5, 3, 3, 1, 13, 29, 41},
                          {Form::cells, 5, 3, 3, 4, 13, 29, 21}};

// As the reference computes them, which has no instructions for bfloat16.
constexpr Type CHECKED[] = {Type::f32, Type::wide_bf16, Type::i8};

const char* name_of(Type type) {
    switch (type) {
        case Type::f32: return "fp32";
        case Type::i8: return "int8";
        default: return "bf16";
    }
}

// All results of a case: rows of the direct form from the map's first on, else all rows.
std::vector<float> convolved(const Kernels& kernels, const Case& one, Type type) {
    std::mt19937 random(1);
    // Whole numbers up to 127, which every type has, int8 with a step of 1.
    std::vector<float> weights(size_t(one.lines) * one.taps * one.inputs * one.outputs);
    for (float& weight : weights) weight = float(int(random() % 255) - 127);
    std::fill_n(weights.begin(), one.outputs, 127.0f);
    Operand operand;
    operand.lines = one.lines, operand.taps = one.taps, operand.inputs = one.inputs, operand.outputs = one.outputs;
    operand.weight = weights.data();
    const Format format = {type, 1.0f};
    const Form form = Convolution::fits(kernels, operand, format, one.form) ? one.form : Form::direct;
    const Convolution convolution(kernels, operand, format, form);

    Memory memory, scratch, zero_words;
    const int groups = words_for(one.inputs, type), per_word = channels_per_word(type);
    const size_t row_words = Rows::words_of_row(one.phases, groups, one.cells);
    uint32_t *const words = memory.words(one.height * row_words), *const zeros = zero_words.words(row_words);
    std::fill_n(words, one.height * row_words, zero_word(type));
    std::fill_n(zeros, row_words, zero_word(type));
    const Rows rows(words, zeros, one.height, one.height, one.phases, groups, format, one.cells);
    for (int row = 0; row < one.height; ++row) {
        for (int phase = 0; phase < one.phases; ++phase) {
            for (int channel = 0; channel < one.inputs; ++channel) {
                uint32_t* const run = rows.row(row) + phase * rows.phase() + channel / per_word * rows.stride();
                for (int cell = 0; cell < one.cells; ++cell) {
                    const uint32_t bits = uint32_t(random());
                    // Floats of either sign from 1/2 to 2.
                    const uint32_t number = (bits & 0x80ffffffu) | 0x3f000000u;
                    switch (type) {
                        case Type::f32: run[cell] = number; break;
                        case Type::wide_bf16: run[cell] = number & 0xffff0000u; break;
                        case Type::bf16: run[cell] |= number >> 16 << (16 * (channel % 2)); break;
                        case Type::i8: run[cell] ^= bits % 255 << (8 * (channel % 4)); break;
                    }
                }
            }
        }
    }

    const int width = round_up(one.cells, UNIT);
    const size_t row_results = size_t(one.phases) * one.outputs * width;
    std::vector<float> results(one.height * row_results);
    const auto end = [&](int row, int phase) {
        Finish finish;
        finish.kept = results.data() + row * row_results + size_t(phase) * one.outputs * width;
        finish.kept_stride = width, finish.cells = one.cells;
        return finish;
    };
    if (one.form != Form::direct) {
        convolve_rows(convolution, rows, one.phases, 0, one.height, Columns(one.cells),
                      scratch.words(convolution.scratch_words() + 1), end);
        return results;
    }
    const uint32_t* lines[] = {rows.row(0), rows.row(1)};
    const Taps taps = taps_around(0, one.taps / 2, 1, one.phases, rows.phase());
    convolution.row(lines, taps.data(), rows.stride(), width / UNIT, end(0, 0));
    return results;
}

}  // namespace

SelfCheck::SelfCheck(const Kernels& reference) : reference_(reference) {
    for (const Case& one : CASES) {
        for (const Type type : CHECKED) right_.push_back(convolved(reference, one, type));
    }
}

std::string SelfCheck::problem(const Kernels& kernels) const {
    auto right = right_.begin();
    for (const Case& one : CASES) {
        for (const Type checked : CHECKED) {
            const std::vector<float>& wanted = *right++;
            // Only instructions of its own multiply pairs of bfloat16.
            const Type type = checked == Type::wide_bf16 ? Type::bf16 : checked;
            if (!kernels.convolve[int(type)]) continue;
            const std::vector<float> given = convolved(kernels, one, type);
            float largest = 0, error = 0;
            for (size_t i = 0; i < wanted.size(); ++i) {
                largest = std::max(largest, std::fabs(wanted[i]));
                const float difference = std::fabs(wanted[i] - given[i]);
                // Not a number, it is wrong, whatever follows.
                error = std::isfinite(difference) ? std::max(error, difference) : INFINITY;
            }
            if (!(error <= (type == Type::i8 ? 0.0f : 1e-5f * largest))) {
                return std::string(name_of(type)) + " differs from " + reference_.name + " by " + std::to_string(error) +
                       " of " + std::to_string(largest);
            }
        }
    }
    return "";
}

}  // namespace dssnet::cpu
