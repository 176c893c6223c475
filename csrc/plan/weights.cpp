#include "weights.h"

#include <cmath>
#include <cstring>
#include <stdexcept>

namespace dssnet {

// --- which operands there are ---------------------------------------------------------------------

void WeightLayout::add(Operand operand) {
    operand.offset = bytes;
    bytes = (bytes + operand.bytes() + 255) / 256 * 256;
    operands.push_back(std::move(operand));
}

void WeightLayout::add_table(const std::string& name, int rows, int columns) {
    Operand operand;
    operand.name = name, operand.k = rows, operand.n = columns;
    add(std::move(operand));
}

// The kernels read these in the layouts that csrc/cuda/params.h and the kernels' comments give.
WeightLayout::WeightLayout(const Network& network) {
    const Sizes sizes(network);
    const auto matrix = [&](const std::string& name, int k, int n, int tiles) -> Operand {
        Operand operand;
        operand.name = name, operand.k = k, operand.n = n, operand.tiles = tiles;
        return operand;
    };

    add(matrix("downsample.stem", 3 * 16, 2 * sizes.width, 2));
    add(matrix("downsample.strided", 5 * 16, sizes.width, 1));
    add(matrix("downsample.border", 7 * 16, sizes.width, 1));
    add_table("downsample.bias", 4, sizes.width);
    for (const char* name : {"downsample.1", "downsample.2"}) {
        Operand operand = matrix(name, 9 * sizes.width, sizes.width, sizes.released_down ? 4 : 2);
        operand.neighbours = true;
        add(std::move(operand));
        add_table(std::string(name) + ".bias", 1, sizes.width);
    }

    const int restore_tiles = sizes.released_wneck ? 3 : 2;
    add(matrix("extract.head", 9 * sizes.width, sizes.features, restore_tiles));
    add_table("extract.head.bias", 1, sizes.features);
    for (int block = 0; block < network.blocks; ++block) {
        const std::string name = "extract." + std::to_string(block) + ".";
        add(matrix(name + "expand1", sizes.features, sizes.expanded, 4));
        add(matrix(name + "expand3", 9 * sizes.features, sizes.expanded, 4));
        add_table(name + "expand.bias", 2, sizes.expanded);
        add_table(name + "slope", 1, 1);
        add(matrix(name + "squeeze", 2 * sizes.expanded, 9 * sizes.squeezed, 9));
        add_table(name + "squeeze.bias", 1, sizes.squeezed);
        add(matrix(name + "restore", 9 * sizes.squeezed, sizes.features, restore_tiles));
        add_table(name + "restore.bias", 1, sizes.features);
    }

    if (network.learned_upsampling) {
        add(matrix("fuse.mix", 2 * sizes.features, 16 * sizes.fused, 2));
        add_table("fuse.mix.bias", 16, sizes.fused);
        add(matrix("fuse.smooth", 9 * sizes.fused, sizes.fused, 2));
        add_table("fuse.smooth.bias", 1, sizes.fused);
        Operand reduce = matrix("fuse.reduce", 9 * sizes.fused, HEAD_CHANNELS, 2);
        reduce.neighbours = true;
        add(std::move(reduce));
    } else {
        add(matrix("fuse.mix", 2 * sizes.features, round_up(sizes.fused, 8 * sizes.mix_tiles), sizes.mix_tiles));
        add_table("fuse.mix.bias", 1, sizes.fused);
        Operand smooth = matrix("fuse.smooth", 9 * sizes.fused, round_up(sizes.fused, 16), 2);
        smooth.wide = sizes.fused / 16 * 9, smooth.narrow = sizes.fused % 16 ? 9 : 0;
        add(std::move(smooth));
        add_table("fuse.smooth.bias", 1, sizes.fused);
        Operand reduce = matrix("fuse.reduce", 25 * sizes.fused, HEAD_CHANNELS, 4);
        reduce.wide = sizes.values / 16 * 5, reduce.narrow = sizes.values % 16 ? 5 : 0;
        add(std::move(reduce));
    }
    add_table("fuse.reduce.bias", 1, HEAD_CHANNELS);
    add_table("fuse.slopes", 1, 3);

    add(matrix("segment.narrow", 9 * HEAD_CHANNELS, TAIL_CHANNELS, 3));
    add_table("segment.narrow.bias", 1, TAIL_CHANNELS);
    add_table("segment.slope", 1, 1);
    const int tail_tiles = network.classes == 2 ? 1 : 2;
    for (const auto& [name, taps] : {std::pair{"segment.tail", 9}, std::pair{"segment.border", 16}}) {
        Operand operand = matrix(name, taps * TAIL_CHANNELS, sizes.outputs, tail_tiles);
        operand.wide = 1, operand.narrow = 1;
        add(std::move(operand));
    }
    add_table("segment.bias", 9, sizes.outputs);
}

const Operand& WeightLayout::find(const std::string& name) const {
    for (const Operand& operand : operands) {
        if (operand.name == name) return operand;
    }
    throw std::logic_error("this network has no operand " + name);
}

// --- packing --------------------------------------------------------------------------------------

namespace {

// Rounded to nearest even, as the kernels round; infinite beyond the range.
uint16_t to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if (std::isnan(value)) return uint16_t(bits >> 16 | 0x40);
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

uint16_t to_fp16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    if (std::isnan(value)) return sign | 0x7e00;
    const float size = std::fabs(value);
    if (size >= 65520.0f) return sign | 0x7c00;
    if (size < 0x1p-14f) return sign | uint16_t(std::nearbyint(size * 0x1p24f));  // subnormal
    std::memcpy(&bits, &size, 4);
    bits += 0xfff + (bits >> 13 & 1);
    return sign | uint16_t((bits - (112u << 23)) >> 13);
}

uint16_t rounded(float value, Precision precision) {
    return precision == Precision::fp16 ? to_fp16(value) : to_bf16(value);
}

// One step of 16 or 8 rows for a group of tiles. Two tiles of a wide step lie together, so that a
// lane reads its four registers at once; likewise four, then two, then one tile of a narrow step.
uint16_t* pack_step(const float* rows, const Operand& operand, int column0, int depth, Precision precision,
                    uint16_t* out) {
    const int registers = depth / 8;
    for (int tile = 0; tile < operand.tiles;) {
        const int left = operand.tiles - tile;
        const int together = depth == 16 ? (left >= 2 ? 2 : 1) : left >= 4 ? 4 : left >= 2 ? 2 : 1;
        for (int lane = 0; lane < 32; ++lane) {
            const int group = lane / 4, quad = lane % 4;
            for (int i = 0; i < together; ++i) {
                // Column `group` of the fragment is accumulator column `group` of the tile. With
                // `neighbours`, accumulators 2 q and 2 q + 1 of all tiles (quad q's) make one run.
                const int t = tile + i;
                const int column = operand.neighbours ? group / 2 * 2 * operand.tiles + 2 * t + group % 2 : 8 * t + group;
                for (int r = 0; r < registers; ++r) {
                    for (int half = 0; half < 2; ++half) {
                        const int row = 8 * r + 2 * quad + half;
                        *out++ = rounded(rows[size_t(row) * operand.n + column0 + column], precision);
                    }
                }
            }
        }
        tile += together;
    }
    return out;
}

void pack_matrix(const float* values, const Operand& operand, Precision precision, uint16_t* out) {
    const int wide = operand.wide || operand.narrow ? operand.wide : 1;
    const int period = wide + operand.narrow, columns = 8 * operand.tiles;
    for (int column0 = 0; column0 < operand.n; column0 += columns) {
        int row = 0;
        for (int step = 0; row < operand.k; step = (step + 1) % period) {
            const int depth = step < wide ? 16 : 8;
            out = pack_step(values + size_t(row) * operand.n, operand, column0, depth, precision, out);
            row += depth;
        }
    }
}

}  // namespace

std::vector<uint8_t> pack(const WeightLayout& layout, Precision precision, const OperandValues& values) {
    std::vector<uint8_t> packed(layout.bytes);
    for (const Operand& operand : layout.operands) {
        const float* from = values(operand);
        if (!from) throw std::invalid_argument("no values for the operand " + operand.name);
        uint8_t* to = packed.data() + operand.offset;
        if (operand.tiles) {
            std::vector<uint16_t> matrix(size_t(operand.k) * operand.n);
            pack_matrix(from, operand, precision, matrix.data());
            std::memcpy(to, matrix.data(), operand.bytes());
        } else {
            std::memcpy(to, from, operand.bytes());
        }
    }
    return packed;
}

}  // namespace dssnet
