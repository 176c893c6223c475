// A first try of an instruction set on the processor at hand.
#pragma once

#include <string>

#include "kernels.h"

namespace dssnet::cpu {

// Computes a convolution of each type. Returns what differs from `reference` by more than rounding, or nothing.
std::string self_check(const Kernels& kernels, const Kernels& reference);

}  // namespace dssnet::cpu
