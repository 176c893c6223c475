// A first try of an instruction set on the processor at hand.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace dssnet::cpu {

class SelfCheck {
  public:
    // What is right, by kernels that every processor has.
    explicit SelfCheck(const Kernels& reference);

    // Computes convolutions of each type, in every form. Returns what differs by more than rounding, or nothing.
    std::string problem(const Kernels& kernels) const;

  private:
    const Kernels& reference_;
    std::vector<std::vector<float>> right_;
};

}  // namespace dssnet::cpu
