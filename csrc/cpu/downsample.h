// Stage 1: an image to features at 1/8 resolution.
#pragma once

#include "images.h"
#include "operands.h"

namespace dssnet::cpu {

class Downsample {
  public:
    Downsample(const Kernels& kernels, const Operands& operands);

    // Rows [first, last) of the result into `x0`, packed, and into `map`, float [height / 8][cells][width], where it is
    // not null and all columns are wanted. Adds what it needs to `arena`; where that only counts, nothing else happens.
    void run(const Image& image, int first, int last, const Columns& columns, const Rows& x0, float* map,
             const uint32_t* const* zeros, Arena& arena) const;

    // What its maps need of rows of zeros, in words.
    size_t zero_words(int cells) const;

    // Multiply-accumulates for a row of cells, for each unit of them.
    Macs macs() const { return 64 * stem_.macs() + 16 * strided_.macs() + 4 * second_.macs() + third_.macs(); }

  private:
    const Kernels& kernels_;
    int channels_, width_;
    Convolution stem_, strided_, top_, left_, corner_;
    Convolution second_, third_;
};

}  // namespace dssnet::cpu
