#include "parameters.h"

#include <cstring>
#include <limits>
#include <stdexcept>

namespace dssnet {
namespace {

std::string number(uint64_t value) { return std::to_string(value); }

void apply(const std::string& what, const Plan& plan, const Launch& launch,
           const std::vector<uint64_t>& addresses, ParameterBlock& block) {
    for (const Relocation& relocation : launch.relocations) {
        const auto reject = [&](const std::string& fault) {
            throw std::invalid_argument(what + ": relocation of " + launch.module + "/" +
                                        launch.kernel + " " + fault);
        };
        const uint64_t end = uint64_t{relocation.offset} + sizeof(uint64_t);
        if (end > launch.parameters.size() || relocation.offset % sizeof(uint64_t) != 0)
            reject("must be at a multiple of 8 within the " + number(launch.parameters.size()) +
                   " bytes of parameters, got offset " + number(relocation.offset));
        if (relocation.buffer >= plan.buffers.size())
            reject("must name one of the " + number(plan.buffers.size()) + " buffers, got " +
                   number(relocation.buffer));
        const Buffer& buffer = plan.buffers[relocation.buffer];
        if (relocation.addend > buffer.bytes)
            reject("must stay within the " + number(buffer.bytes) + " bytes of buffer \"" +
                   buffer.name + "\", got byte " + number(relocation.addend));
        const uint64_t address = addresses[relocation.buffer];
        if (address == 0) reject("needs the address of buffer \"" + buffer.name + "\", got 0");
        if (address > std::numeric_limits<uint64_t>::max() - buffer.bytes)
            reject("needs an address of buffer \"" + buffer.name + "\" that leaves room for its " +
                   number(buffer.bytes) + " bytes, got " + number(address));
        block.write_address(relocation.offset, address + relocation.addend);
    }
}

}  // namespace

ParameterBlock::ParameterBlock(const std::vector<uint8_t>& bytes)
    : storage_((bytes.size() + sizeof(Piece) - 1) / sizeof(Piece)) {
    if (!bytes.empty()) std::memcpy(storage_.data(), bytes.data(), bytes.size());
}

void ParameterBlock::write_address(uint32_t offset, uint64_t address) {
    std::memcpy(static_cast<unsigned char*>(data()) + offset, &address, sizeof address);
}

std::vector<ParameterBlock> parameter_blocks(const std::string& what, const Plan& plan,
                                             const std::vector<uint64_t>& addresses) {
    if (addresses.size() != plan.buffers.size())
        throw std::invalid_argument(
            what + ": addresses must have one entry for each of the plan's " +
            number(plan.buffers.size()) + " buffers, got " + number(addresses.size()));
    std::vector<ParameterBlock> blocks;
    blocks.reserve(plan.launches.size());
    for (const Launch& launch : plan.launches) {
        if (launch.parameters.empty())
            throw std::invalid_argument(what + ": parameters of " + launch.module + "/" +
                                        launch.kernel + " must not be empty");
        apply(what, plan, launch, addresses, blocks.emplace_back(launch.parameters));
    }
    return blocks;
}

std::string describe(const Launch& launch, int device) {
    const auto& grid = launch.grid;
    return launch.module + "/" + launch.kernel + " on device " + number(device) + ", grid (" +
           number(grid[0]) + ", " + number(grid[1]) + ", " + number(grid[2]) + "), " +
           number(launch.threads) + " threads, " + number(launch.shared_bytes) +
           " bytes of dynamic shared memory";
}

}  // namespace dssnet
