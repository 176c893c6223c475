// The instruction sets of this build, and the choice among them.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace dssnet::cpu {

// One a file; what a build leaves out is not referred to by `instruction_sets`. They are constants: nothing of a file that
// is compiled for an instruction set runs before the processor is known to have it, not even to tell its name.
extern const Kernels portable_kernels;
extern const Kernels avx2_kernels;
extern const Kernels avx_vnni_kernels;
extern const Kernels avx512_kernels;
extern const Kernels avx512_vnni_kernels;
extern const Kernels avx512_bf16_kernels;
extern const Kernels amx_kernels;
extern const Kernels neon_kernels;
extern const Kernels neon_dot_kernels;
extern const Kernels neon_bf16_kernels;

struct InstructionSet {
    const Kernels* kernels;
    bool runs_here;       // the processor has it, and a first try found nothing wrong
    std::string problem;  // what it found; not empty only where the processor has it
    bool fast_bf16;       // its instructions for bfloat16 are faster here than float32
};

// Those that were compiled, slowest first; the first runs everywhere. The others that the processor has are tried once:
// what gives wrong results here is not used.
const std::vector<InstructionSet>& instruction_sets();

// The named one, or the fastest that runs here where the name is empty. Throws std::invalid_argument.
const Kernels& choose_kernels(const std::string& name);

}  // namespace dssnet::cpu
