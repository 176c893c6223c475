// Stage 2: features at 1/8 resolution through residual blocks.
//
// A block runs in two passes: all its layers but the last, row by row, so that only a few rows of the wide maps exist
// at a time; then the last, which changes the block's map in place. Between passes a team waits.
#pragma once

#include <vector>

#include "images.h"
#include "operands.h"
#include "team.h"

namespace dssnet::cpu {

class Extract {
  public:
    Extract(const Kernels& kernels, const Operands& operands);

    // Maps that all members of a team share.
    struct Maps {
        Rows x0;           // what `Downsample` made
        Rows shallow, deep;  // packed for the FFM
        float* features;   // [row][feature][cells], the blocks' map as it is added to
        uint32_t* packed;  // the same, packed for the convolution that reads it next; in the end `deep`
        uint32_t* narrow;  // what a block's last layer reads; before that `x0`
    };

    Maps maps(int height, int cells, const uint32_t* const* zeros, Format fuse, Arena& arena) const;

    // This member's share of all rows. `shallow` and `deep`: float [height][cells][features], or null. Scratch as for
    // `Downsample::run`.
    void run(const Maps& maps, int height, int cells, const Member& member, float* shallow, float* deep,
             const uint32_t* const* zeros, Arena& arena) const;

    size_t zero_words(int cells) const;

    // Multiply-accumulates for a row of cells, for each unit of them.
    double macs() const;

  private:
    struct Layer {
        std::vector<Convolution> parts;
        float slope;
        std::vector<int> channels;  // outputs of each part
        int rows_together() const;
        int reach() const;  // rows to either side that it reads
    };
    struct Block {
        std::vector<Layer> layers;  // but the last
        Convolution last;
        const Convolution& first() const { return layers.front().parts.front(); }
    };
    struct Scratch;

    static std::vector<Rows> rings(const Block& block, int height, int cells, const uint32_t* const* zeros, Arena& arena);
    void run_layers(const Block& block, const Rows& input, const Rows& narrow, int height, int cells, int first, int last,
                    const uint32_t* const* zeros, const Scratch& scratch) const;

    const Kernels& kernels_;
    int features_;
    Convolution head_;
    std::vector<Block> blocks_;
    int together_;  // rows that some convolution computes together
};

}  // namespace dssnet::cpu
