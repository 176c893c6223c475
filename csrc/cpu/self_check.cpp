#include "self_check.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "convolution.h"

namespace dssnet::cpu {
namespace {

// Nothing is a multiple of anything: blocks, units and steps of tiles are left over.
constexpr int LINES = 2, TAPS = 3, INPUTS = 75, OUTPUTS = 39, CELLS = 41;
constexpr int UNITS = (CELLS + UNIT - 1) / UNIT;

const char* name_of(Type type) { return type == Type::f32 ? "fp32" : type == Type::bf16 ? "bf16" : "int8"; }

std::vector<float> convolved(const Kernels& kernels, Type type) {
    std::mt19937 random(1);
    // Whole numbers up to 127, which every type has, int8 with a step of 1.
    std::vector<float> weights(size_t(LINES) * TAPS * INPUTS * OUTPUTS);
    for (float& weight : weights) weight = float(int(random() % 255) - 127);
    std::fill_n(weights.begin(), OUTPUTS, 127.0f);
    Operand operand;
    operand.lines = LINES, operand.taps = TAPS, operand.inputs = INPUTS, operand.outputs = OUTPUTS;
    operand.weight = weights.data();
    const Convolution convolution(kernels, operand, {type, 1.0f}, Type::f32);

    const int groups = words_for(INPUTS, type);
    Memory memory;
    const size_t row_words = Rows::words_of_row(1, groups, CELLS);
    uint32_t* words = memory.words(LINES * row_words);
    for (size_t i = 0; i < LINES * row_words; ++i) {
        const uint32_t word = uint32_t(random());
        // Floats of either sign from 1/2 to 2.
        words[i] = type == Type::f32    ? (word & 0x80ffffffu) | 0x3f000000u
                   : type == Type::bf16 ? (word & 0x80ff80ffu) | 0x3f003f00u
                                        : word;
    }
    const uint32_t* lines[LINES] = {words + PAD, words + row_words + PAD};
    const ptrdiff_t taps[TAPS] = {-1, 0, 1};
    std::vector<float> results(size_t(OUTPUTS) * UNITS * UNIT);
    Finish finish;
    finish.kept = results.data(), finish.kept_stride = UNITS * UNIT, finish.cells = CELLS;
    convolution.row(lines, taps, run_words(CELLS), UNITS, finish);
    return results;
}

}  // namespace

std::string self_check(const Kernels& kernels, const Kernels& reference) {
    for (Type type : {Type::f32, Type::bf16, Type::i8}) {
        const std::vector<float> right = convolved(reference, type), given = convolved(kernels, type);
        float largest = 0, error = 0;
        for (size_t i = 0; i < right.size(); ++i) {
            largest = std::max(largest, std::fabs(right[i]));
            // Not a number, it is wrong.
            const float difference = std::fabs(right[i] - given[i]);
            if (!(difference <= error)) error = difference;
        }
        if (!(error <= (type == Type::i8 ? 0.0f : 1e-5f * largest))) {
            return std::string(name_of(type)) + " differs from " + reference.name + " by " + std::to_string(error) +
                   " of " + std::to_string(largest);
        }
    }
    return "";
}

}  // namespace dssnet::cpu
