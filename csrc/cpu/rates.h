// How fast a processor's instructions are at best: loops over registers that share nothing with the kernels, what these are
// measured by. `repeat` is compiled for its instruction set only, and run where the processor has it.
#pragma once

namespace dssnet::cpu {

struct Rate {
    const char* instructions = nullptr;  // of which the loop is made
    double products = 0;                 // multiply-accumulates of a round
    void (*repeat)(long rounds) = nullptr;
};

}  // namespace dssnet::cpu
