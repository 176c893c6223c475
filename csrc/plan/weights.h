// How weights lie in memory: which operands a network has, and their packing.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "network.h"

namespace dssnet {

enum class Precision { fp16, bf16 };

// A matrix of weights [k, n] or, with `tiles` = 0, a table of float32 numbers [k, n].
//
// A matrix is packed in the order in which a warp consumes it: for each group of `tiles` times 8
// columns, its rows from first to last, in steps of 16 or 8 that are fragments of the tensor cores'
// mma instruction.
struct Operand {
    std::string name;
    int k, n;
    int tiles = 0;
    // The steps: `wide` of 16 rows, then `narrow` of 8, and so on; all of 16 where both are 0.
    int wide = 0, narrow = 0;
    // Whether columns are dealt so that a lane's accumulators hold neighbouring columns.
    bool neighbours = false;
    uint64_t offset = 0;  // into the packed weights

    uint64_t bytes() const { return uint64_t(k) * n * (tiles ? 2 : 4); }
};

struct WeightLayout {
    explicit WeightLayout(const Network& network);

    const Operand& find(const std::string& name) const;

    std::vector<Operand> operands;
    uint64_t bytes = 0;

  private:
    void add(Operand operand);
    void add_table(const std::string& name, int rows, int columns);
};

// Values of an operand, row by row; null if there is none of that name.
using OperandValues = std::function<const float*(const Operand&)>;

// The packed weights of a network.
std::vector<uint8_t> pack(const WeightLayout& layout, Precision precision, const OperandValues& values);

}  // namespace dssnet
