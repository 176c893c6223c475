// aarch64 with dot products of bytes: Cortex-A76, Neoverse N1 and newer.
#include <arm_neon.h>

#include "instruction_sets.h"
#include "kernels.h"

namespace {

using dssnet::cpu::Rate;
#include "rates_neon.inl"
#include "neon_vectors.h"
#include "neon_sdot.h"

using DotBF16 = void;

}  // namespace

#include "kernels.inl"

namespace dssnet::cpu {

constexpr Kernels neon_dot_kernels = make_table("neon_dot", "NEON with dot products (FEAT_DotProd)", true, FMLA, SDOT);

}  // namespace dssnet::cpu
