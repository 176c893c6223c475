// Stage 2: features at 1/8 resolution through residual blocks.
//
// A block runs in two passes: all its layers but the last, row by row, so that only a few rows of the wide maps exist
// at a time; then the last, which changes the block's map in place. Between passes a team waits.
#pragma once

#include <vector>

#include "images.h"
#include "operands.h"
#include "stream.h"
#include "team.h"

namespace dssnet::cpu {

class Extract {
  public:
    Extract(const Kernels& kernels, const Operands& operands);

    // Maps that all members of a team share.
    struct Maps {
        Rows x0;           // what `Downsample` made
        Rows shallow, deep;  // packed for the FFM
        float* features;   // [row from the head's first on][feature][cells], the blocks' map as it is added to
        uint32_t* packed;  // the same, packed for the convolution that reads it next; in the end `deep`
        uint32_t* narrow;  // what a block's last layer reads; before that `x0`
    };

    // Which rows and columns are computed, for those of shallow and deep features that are wanted: every block reads a
    // little beyond what the next one needs.
    struct Part {
        Range rows;
        Columns columns;
    };
    struct Plan {
        struct OfBlock {
            Part narrow, result;
        };
        int height;
        Part x0, head, wanted;
        std::vector<OfBlock> blocks;
    };
    Plan plan(int height, const Part& wanted) const;

    Maps maps(const Plan& plan, const uint32_t* const* zeros, Format fuse, Arena& arena) const;

    // This member's share. `shallow` and `deep`: float [height][cells][features], or null where not all is wanted.
    // Scratch as for `Downsample::run`.
    void run(const Plan& plan, const Maps& maps, const Member& member, float* shallow, float* deep,
             const uint32_t* const* zeros, Arena& arena) const;

    size_t zero_words(int cells) const;

    // Multiply-accumulates for a row of cells, for each unit of them.
    Macs macs() const;

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

    // Which rows a layer of a block computes together, and which it computes for those that the block's last layer reads.
    struct Steps {
        std::vector<Groups> groups;
        std::vector<Part> parts;  // those of inner layers begin with a group
        Part input;               // what the first layer reads
    };
    static Steps steps(const Block& block, int height, const Part& narrow);
    static std::vector<Rows> rings(const Block& block, int height, int cells, const uint32_t* const* zeros, Arena& arena);
    static void run_layers(const Block& block, const Rows& input, const Rows& narrow, const Part& wanted,
                           const uint32_t* const* zeros, const Scratch& scratch);

    const Kernels& kernels_;
    int features_;
    Convolution head_;
    std::vector<Block> blocks_;
    size_t winograd_words_;  // of the hungriest convolution
};

}  // namespace dssnet::cpu
