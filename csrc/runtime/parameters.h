// The parameter blocks of a plan's launches, with the buffers' addresses filled in.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "../plan/plan.h"

namespace dssnet {

// The one parameter of a kernel: bytes at an address that suits every type a kernel's structure may
// hold. Its storage does not move when the block does.
class ParameterBlock {
  public:
    explicit ParameterBlock(const std::vector<uint8_t>& bytes);

    void* data() { return storage_.data(); }
    void write_address(uint32_t offset, uint64_t address);
    bool operator==(const ParameterBlock& other) const { return storage_ == other.storage_; }

  private:
    struct alignas(16) Piece {
        uint64_t words[2];
        bool operator==(const Piece& other) const {
            return words[0] == other.words[0] && words[1] == other.words[1];
        }
    };
    std::vector<Piece> storage_;
};

// The blocks of all launches, relocations applied; `addresses` has one address a buffer. Throws
// std::invalid_argument, beginning with `what`, for a plan that contradicts itself or an address
// that is missing, so that nothing at all is launched then.
std::vector<ParameterBlock> parameter_blocks(const std::string& what, const Plan& plan,
                                             const std::vector<uint64_t>& addresses);

// "extract/wneck on device 0, grid (8, 8, 1), 256 threads, 65536 bytes of dynamic shared memory".
std::string describe(const Launch& launch, int device);

}  // namespace dssnet
