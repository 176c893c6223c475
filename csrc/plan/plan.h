// A launch plan: everything a run of the network asks of a GPU, as plain data.
//
// Plans are computed from numbers alone, without torch and without CUDA, so that they are the same
// on every machine: the runner hands one to the driver, the tests hand the same one to a PTX
// executor.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

namespace dssnet {

// What a buffer is for. The caller owns inputs, outputs and weights; the workspace is one block of
// memory in which every workspace buffer has its offset.
enum class Role { input, output, weights, workspace };

struct Buffer {
    std::string name;
    Role role;
    uint64_t bytes;
    uint64_t offset;  // into the workspace; 0 for the other roles
};

// At launch, the 8 bytes at `offset` of a parameter block become the device address of byte
// `addend` of buffer number `buffer`.
struct Relocation {
    uint32_t offset;
    uint32_t buffer;
    uint64_t addend;
};

// One kernel launch. The kernel takes one parameter: the block `parameters`, by value.
struct Launch {
    std::string module;  // the translation unit it lives in, such as "extract"
    std::string kernel;  // its unmangled name
    std::array<uint32_t, 3> grid;
    uint32_t threads;       // a block is one-dimensional
    uint32_t shared_bytes;  // dynamic shared memory
    std::vector<uint8_t> parameters;
    std::vector<Relocation> relocations;
};

// Launches run one after another; each reads what those before it wrote.
struct Plan {
    std::vector<Launch> launches;
    std::vector<Buffer> buffers;
    uint64_t workspace_bytes = 0;
};

// What a plan must know of a GPU.
struct DeviceProperties {
    int capability = 80;             // 10 * major + minor
    int multiprocessors = 108;       //
    int shared_bytes_block = 0;      // per block, with opt-in
    int shared_bytes_sm = 0;         // per multiprocessor
};

}  // namespace dssnet
