// The kernels of one instruction set. A file that includes this defines, in its own unnamed namespace,
//
//   struct DotF32, DotBF16, DotI8 {
//       using Sum, Input;                                      // vectors of `lanes` cells
//       static constexpr int lanes;                            // divides UNIT
//       static constexpr int units, widest;                    // whose sums fit into registers; widest >= 4, a word of int8
//       static Sum start(const int32_t* value);                // sums that start from a value, or from 0 if null
//       static Input load(const uint32_t*);
//       static Sum dot(Sum, Input, const uint32_t* weights);   // adds the word's channels times those weights
//       static void store(uint32_t*, Sum);
//   };
//
// Nothing here may be shared between files that are
// compiled for different processors, hence the unnamed namespace and no standard containers.

#include <math.h>

#include <type_traits>

namespace {

using namespace dssnet::cpu;

// --- convolution ---------------------------------------------------------------------------------

// N outputs for U units of cells: sums stay in registers over all lines, groups and taps.
template <class Dot, int N, int U>
void sum_block(const Window& window, ptrdiff_t cell, const uint32_t* weights, const int32_t* start, uint32_t* sums) {
    constexpr int V = U * UNIT / Dot::lanes;
    typename Dot::Sum sum[N][V];
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) sum[n][v] = Dot::start(start ? start + n : nullptr);
    }
    const int groups = window.groups, taps = window.tap_count;
    for (int line = 0; line < window.line_count; ++line) {
        const uint32_t* input = window.lines[line] + cell;
        for (int group = 0; group < groups; ++group, input += window.group_stride) {
            for (int tap = 0; tap < taps; ++tap, weights += N) {
                const uint32_t* near = input + window.taps[tap];
                typename Dot::Input value[V];
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v) value[v] = Dot::load(near + v * Dot::lanes);
#pragma GCC unroll 16
                for (int n = 0; n < N; ++n) {
#pragma GCC unroll 8
                    for (int v = 0; v < V; ++v) sum[n][v] = Dot::dot(sum[n][v], value[v], weights + n);
                }
            }
        }
    }
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) Dot::store(sums + (n * V + v) * Dot::lanes, sum[n][v]);
    }
}

using SumBlock = void (*)(const Window&, ptrdiff_t, const uint32_t*, const int32_t*, uint32_t*);

template <class Dot, int U>
SumBlock sum_block_of(int outputs) {
    static_assert(Dot::widest <= WIDEST_BLOCK);
    // One function for each number of outputs up to the widest.
#define DSSNET_CASE(N) \
    case N:            \
        return sum_block<Dot, (N <= Dot::widest ? N : 1), U>;
    switch (outputs) {
        DSSNET_CASE(1) DSSNET_CASE(2) DSSNET_CASE(3) DSSNET_CASE(4) DSSNET_CASE(5) DSSNET_CASE(6) DSSNET_CASE(7)
        DSSNET_CASE(8) DSSNET_CASE(9) DSSNET_CASE(10) DSSNET_CASE(11) DSSNET_CASE(12) DSSNET_CASE(13) DSSNET_CASE(14)
        DSSNET_CASE(15) DSSNET_CASE(16)
    }
#undef DSSNET_CASE
    return nullptr;
}

// --- cells ---------------------------------------------------------------------------------------

// A unit of cells. Compilers make of these whatever vectors there are.
typedef float Floats __attribute__((vector_size(4 * UNIT)));
typedef int32_t Ints __attribute__((vector_size(4 * UNIT)));
typedef uint32_t Words __attribute__((vector_size(4 * UNIT)));

template <class Vector>
inline Vector load(const void* from) {
    Vector value;
    __builtin_memcpy(&value, from, sizeof value);
    return value;
}

template <class Vector>
inline void store(void* to, const Vector& value) {
    __builtin_memcpy(to, &value, sizeof value);
}

inline Floats floats(float value) { return Floats{} + value; }
inline Words words(uint32_t value) { return Words{} + value; }

// The first `count` cells as they are, the others as in `rest`.
template <class Vector>
inline Vector only_first(int count, Vector value, Vector rest) {
    if (count >= UNIT) return value;
    Ints cell;
    for (int i = 0; i < UNIT; ++i) cell[i] = i;
    return cell < Ints{} + count ? value : rest;
}

// --- packing -------------------------------------------------------------------------------------

// To nearest even.
inline Words to_bf16(Floats value) {
    const Words bits = (Words)value;
    const Words rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    return value == value ? rounded : words(0x7fc0u);
}

inline Words to_i8(Floats value, float inverse_step, float lowest) {
    Floats q = value * inverse_step;
    q = q > floats(lowest) ? q : floats(lowest);
    q = q < floats(127) ? q : floats(127);
    // The sum's last bits are those of the nearest integer.
    return ((Words)(q + 12582912.0f) + 128u) & 0xffu;
}

// Where packed values of a row go, and what is around them.
struct Packing {
    Type type;
    float inverse_step;
    uint32_t* row;     // cell 0 of the first group
    ptrdiff_t stride;  // between groups
    int cells, units;
    float lowest = -127;  // of int8
};

// A unit of channels [first, first + count): first is the first of a word.
inline void pack(const Floats* values, int first, int count, int unit, const Packing& to) {
    const int begin = unit * UNIT, left = to.cells - begin;
    const Words zero = words(zero_word(to.type));
    uint32_t* run = to.row + first / channels_per_word(to.type) * to.stride + begin;
    for (int n = 0; n < count; n += channels_per_word(to.type), run += to.stride) {
        Words word;
        switch (to.type) {
            case Type::f32: word = (Words)values[n]; break;
            case Type::bf16:
                word = to_bf16(values[n]);
                if (n + 1 < count) word |= to_bf16(values[n + 1]) << 16;
                break;
            default:
                word = to_i8(values[n], to.inverse_step, to.lowest);
                for (int k = 1; k < 4; ++k) {
                    word |= (n + k < count ? to_i8(values[n + k], to.inverse_step, to.lowest) : words(128u)) << (8 * k);
                }
        }
        store(run, only_first(left, word, zero));
        // Zeros before the first cell and after the last. What follows is the next group's pad, which that group does
        // not write where only columns further right are wanted; or cells that nobody wants.
        if (unit == 0) store(run - PAD, zero);
        if (unit == to.units - 1) store(run + UNIT, zero);
    }
}

// --- what happens to sums ------------------------------------------------------------------------

inline Floats activate(Floats value, float slope) { return value > Floats{} ? value : value * slope; }

// Outputs [first, first + count) of a unit, from sums `stride` words apart.
template <bool integers>
void finish_unit(const uint32_t* sums, ptrdiff_t stride, int first, int count, int unit, const Packing& packing,
                 const Finish& f) {
    Floats values[WIDEST_BLOCK];
    const int begin = unit * UNIT, left = f.cells - begin;
    for (int n = 0; n < count; ++n) {
        const int output = first + n;
        Floats value;
        if constexpr (integers) {
            value = __builtin_convertvector(load<Ints>(sums + n * stride), Floats) * f.scale[output];
        } else {
            value = load<Floats>(sums + n * stride);
        }
        if (f.bias) value += f.bias[output];
        if (f.addend) value += load<Floats>(f.addend + output * f.addend_stride + begin);
        if (f.slope != 1.0f) value = activate(value, f.slope);
        values[n] = value;
        if (f.kept) {
            float* kept = f.kept + output * f.kept_stride + begin;
            if (f.maximum) {
                const Floats other = load<Floats>(kept);
                value = value > other ? value : other;
            }
            store(kept, only_first(left, value, Floats{}));
        }
    }
    if (f.packed) pack(values, first, count, unit, packing);
}

inline Packing packing_of(const Finish& f, int units) {
    return {f.packed_type, f.inverse_step, f.packed, f.packed_stride, f.cells, units};
}

template <class Dot, int U, bool integers>
void convolve_units(const Window& window, const uint32_t* weights, const int32_t* start, int first, int count, int unit,
                    const Packing& packing, const Finish& finish) {
    alignas(64) uint32_t sums[WIDEST_BLOCK * U * UNIT];
    sum_block_of<Dot, U>(count)(window, unit * UNIT, weights, start, sums);
    for (int u = 0; u < U; ++u) {
        finish_unit<integers>(sums + u * UNIT, U * UNIT, first, count, unit + u, packing, finish);
    }
}

template <class Dot, bool integers>
void convolve(const Window& window, const Weights& weights, int first_block, int last_block, int units,
              const Finish& finish) {
    const Packing packing = packing_of(finish, units);
    const uint32_t* block_weights = weights.words;
    for (int block = 0, first = 0; block < last_block; ++block) {
        const int count = weights.block_sizes[block];
        if (block >= first_block) {
            const int32_t* start = weights.start ? weights.start + first : nullptr;
            int unit = 0;
            for (; unit + Dot::units <= units; unit += Dot::units) {
                convolve_units<Dot, Dot::units, integers>(window, block_weights, start, first, count, unit, packing, finish);
            }
            for (; unit < units; ++unit) {
                convolve_units<Dot, 1, integers>(window, block_weights, start, first, count, unit, packing, finish);
            }
        }
        block_weights += count * weights.words_per_output;
        first += count;
    }
}

template <class Dot, int U, bool integers>
void pooled_units(const Window& window, const uint32_t* weights, const int32_t* start, const Window* four,
                  const uint32_t* pooled_weights, const int32_t* pooled_start, const float* pooled_scale, int first,
                  int count, int unit, const Packing& packing, const Finish& finish) {
    using Sums = std::conditional_t<integers, Ints, Floats>;
    alignas(64) uint32_t sums[WIDEST_BLOCK * U * UNIT], largest[WIDEST_BLOCK * U * UNIT];
    const SumBlock sum = sum_block_of<Dot, U>(count);
    sum(four[0], unit * UNIT, pooled_weights, pooled_start, largest);
    for (int corner = 1; corner < 4; ++corner) {
        sum(four[corner], unit * UNIT, pooled_weights, pooled_start, sums);
        for (int i = 0; i < count * U * UNIT; i += UNIT) {
            const Sums one = load<Sums>(sums + i), other = load<Sums>(largest + i);
            store(largest + i, one > other ? one : other);
        }
    }
    sum(window, unit * UNIT, weights, start, sums);
    for (int n = 0; n < count; ++n) {
        for (int u = 0; u < U; ++u) {
            uint32_t* at = sums + (n * U + u) * UNIT;
            if constexpr (integers) {
                const Floats one = __builtin_convertvector(load<Ints>(at), Floats) * finish.scale[first + n];
                const Floats other = __builtin_convertvector(load<Ints>(largest + (n * U + u) * UNIT), Floats);
                store(at, one + other * pooled_scale[first + n]);
            } else {
                store(at, load<Floats>(at) + load<Floats>(largest + (n * U + u) * UNIT));
            }
        }
    }
    for (int u = 0; u < U; ++u) finish_unit<false>(sums + u * UNIT, U * UNIT, first, count, unit + u, packing, finish);
}

template <class Dot, bool integers>
void convolve_pooled(const Window& window, const Weights& weights, const Window* four, const Weights& pooled,
                     const float* pooled_scale, int units, const Finish& finish) {
    const Packing packing = packing_of(finish, units);
    const uint32_t *block_weights = weights.words, *pooled_weights = pooled.words;
    for (int block = 0, first = 0; block < weights.block_count; ++block) {
        const int count = weights.block_sizes[block];
        const int32_t* start = weights.start ? weights.start + first : nullptr;
        const int32_t* pooled_start = pooled.start ? pooled.start + first : nullptr;
        int unit = 0;
        for (; unit + Dot::units <= units; unit += Dot::units) {
            pooled_units<Dot, Dot::units, integers>(window, block_weights, start, four, pooled_weights, pooled_start,
                                                    pooled_scale, first, count, unit, packing, finish);
        }
        for (; unit < units; ++unit) {
            pooled_units<Dot, 1, integers>(window, block_weights, start, four, pooled_weights, pooled_start, pooled_scale,
                                           first, count, unit, packing, finish);
        }
        block_weights += count * weights.words_per_output;
        pooled_weights += count * pooled.words_per_output;
        first += count;
    }
}

void finish(const float* sums, ptrdiff_t stride, int units, const Finish& f) {
    constexpr int TOGETHER = 12;  // whole words of every type
    const Packing packing = packing_of(f, units);
    for (int first = 0; first < f.outputs; first += TOGETHER) {
        const int count = f.outputs - first < TOGETHER ? f.outputs - first : TOGETHER;
        for (int unit = 0; unit < units; ++unit) {
            const auto* block = reinterpret_cast<const uint32_t*>(sums + first * stride + unit * UNIT);
            finish_unit<false>(block, stride, first, count, unit, packing, f);
        }
    }
}

// --- Winograd ------------------------------------------------------------------------------------

// Rows of B^T and A^T for the points 0, 1, -1, 2, -2 and infinity (Lavin and Gray 2015, section 4.3).
void winograd_input(const uint32_t* const* lines, int part, size_t words, uint32_t* result) {
    const float* d[6];
    for (int i = 0; i < 6; ++i) d[i] = reinterpret_cast<const float*>(lines[i]);
    float* out = reinterpret_cast<float*>(result);
    switch (part) {
        case 0:
            for (size_t i = 0; i < words; ++i) out[i] = 4 * d[0][i] - 5 * d[2][i] + d[4][i];
            break;
        case 1:
            for (size_t i = 0; i < words; ++i) out[i] = (d[3][i] + d[4][i]) - 4 * (d[1][i] + d[2][i]);
            break;
        case 2:
            for (size_t i = 0; i < words; ++i) out[i] = (d[4][i] - d[3][i]) + 4 * (d[1][i] - d[2][i]);
            break;
        case 3:
            for (size_t i = 0; i < words; ++i) out[i] = (d[4][i] - d[2][i]) + 2 * (d[3][i] - d[1][i]);
            break;
        case 4:
            for (size_t i = 0; i < words; ++i) out[i] = (d[4][i] - d[2][i]) - 2 * (d[3][i] - d[1][i]);
            break;
        default:
            for (size_t i = 0; i < words; ++i) out[i] = 4 * d[1][i] - 5 * d[3][i] + d[5][i];
            break;
    }
}

template <int U>
void winograd_units(const Window& parts, const uint32_t* weights, size_t part_words, int first, int count, int unit,
                    const Packing* packings, const Finish* rows, int row_count) {
    alignas(64) uint32_t sums[6][WIDEST_BLOCK * U * UNIT];
    for (int part = 0; part < 6; ++part) {
        Window window = parts;
        window.lines += part;
        sum_block_of<DotF32, U>(count)(window, unit * UNIT, weights + part * part_words, nullptr, sums[part]);
    }
    for (int u = 0; u < U; ++u) {
        Floats results[4][WIDEST_BLOCK];
        for (int n = 0; n < count; ++n) {
            Floats m[6];
            for (int part = 0; part < 6; ++part) m[part] = load<Floats>(sums[part] + (n * U + u) * UNIT);
            const Floats even1 = m[1] + m[2], odd1 = m[1] - m[2], even2 = m[3] + m[4], odd2 = m[3] - m[4];
            results[0][n] = m[0] + even1 + even2;
            results[1][n] = odd1 + 2 * odd2;
            results[2][n] = even1 + 4 * even2;
            results[3][n] = odd1 + 8 * odd2 + m[5];
        }
        for (int row = 0; row < row_count; ++row) {
            const auto* row_sums = reinterpret_cast<const uint32_t*>(results[row]);
            finish_unit<false>(row_sums, UNIT, first, count, unit + u, packings[row], rows[row]);
        }
    }
}

void winograd(const Window& parts, const Weights& weights, int units, const Finish* rows, int row_count) {
    Packing packings[4];
    for (int row = 0; row < row_count; ++row) packings[row] = packing_of(rows[row], units);
    const size_t part_words = weights.words_per_output * rows[0].outputs;
    const uint32_t* block_weights = weights.words;
    for (int block = 0, first = 0; block < weights.block_count; ++block) {
        const int count = weights.block_sizes[block];
        int unit = 0;
        for (; unit + DotF32::units <= units; unit += DotF32::units) {
            winograd_units<DotF32::units>(parts, block_weights, part_words, first, count, unit, packings, rows, row_count);
        }
        for (; unit < units; ++unit) {
            winograd_units<1>(parts, block_weights, part_words, first, count, unit, packings, rows, row_count);
        }
        block_weights += count * weights.words_per_output;
        first += count;
    }
}

// --- image ---------------------------------------------------------------------------------------

// `value(pixel, channel)` is normalised.
template <class Value>
void image_row(int channels, int cells, Type type, uint32_t* row, ptrdiff_t stride, Value value) {
    const int units = (cells + UNIT - 1) / UNIT;
    // Byte 0 is -128.
    Packing packing = {type, 128.0f, row, stride, cells, units, -128.0f};
    for (int phase = 0; phase < PHASES; ++phase, packing.row += words_for(channels, type) * stride) {
        for (int unit = 0; unit < units; ++unit) {
            Floats values[4];
            for (int channel = 0; channel < channels; ++channel) {
                for (int i = 0; i < UNIT; ++i) {
                    const int cell = unit * UNIT + i;
                    values[channel][i] = cell < cells ? value(cell * PHASES + phase, channel) : 0.0f;
                }
            }
            pack(values, 0, channels, unit, packing);
        }
    }
}

void image_u8(const uint8_t* pixels, int channels, int cells, Type type, uint32_t* row, ptrdiff_t stride) {
    if (type == Type::i8) {
        // A pixel's bytes are what int8 words hold: value - 128, stored as value.
        const int units = (cells + UNIT - 1) / UNIT;
        for (int phase = 0; phase < PHASES; ++phase, row += stride) {
            store(row - PAD, words(zero_word(type)));
            const uint8_t* pixel = pixels + phase * channels;
            for (int cell = 0; cell < cells; ++cell, pixel += PHASES * channels) {
                row[cell] = channels == 3 ? pixel[0] | pixel[1] << 8 | pixel[2] << 16 | 0x80000000u
                                          : pixel[0] | 0x80808000u;
            }
            for (int i = cells; i < units * UNIT + PAD; ++i) row[i] = zero_word(type);
        }
        return;
    }
    image_row(channels, cells, type, row, stride,
              [=](int pixel, int channel) { return (float(pixels[pixel * channels + channel]) - 128.0f) / 128.0f; });
}

void image_f32(const float* const* lines, int channels, int cells, Type type, uint32_t* row, ptrdiff_t stride) {
    image_row(channels, cells, type, row, stride, [=](int pixel, int channel) { return lines[channel][pixel]; });
}

// --- down-sampling and FFM -----------------------------------------------------------------------

void pool(const float* row, int phases, size_t words, bool maximum, float* result) {
    for (int phase = 0; phase < phases; ++phase, row += 2 * words, result += words) {
        for (size_t i = 0; i < words; i += UNIT) {
            const Floats left = load<Floats>(row + i), right = load<Floats>(row + words + i);
            Floats larger = left > right ? left : right;
            if (maximum) {
                const Floats other = load<Floats>(result + i);
                larger = other > larger ? other : larger;
            }
            store(result + i, larger);
        }
    }
}

inline Packing packing_of(const NinePacked& to, int map, int cells, int units) {
    return {to.type, to.inverse_steps[map], to.maps[map], to.stride, cells, units};
}

void factors(const float* before, const float* here, const float* after, int channels, ptrdiff_t stride, int units,
             int cells, const NinePacked& to) {
    constexpr int TOGETHER = 4;  // whole words of every type
    Packing packings[9];
    for (int map = 0; map < 9; ++map) packings[map] = packing_of(to, map, cells, units);
    for (int first = 0; first < channels; first += TOGETHER) {
        const int count = channels - first < TOGETHER ? channels - first : TOGETHER;
        for (int unit = 0; unit < units; ++unit) {
            Floats values[9][TOGETHER];
            for (int n = 0; n < count; ++n) {
                // At the cell to the left, here, and to the right: the cell, and halves of its differences.
                Floats column[3][3];
                for (int k = 0; k < 3; ++k) {
                    const ptrdiff_t at = (first + n) * stride + unit * UNIT + k - 1;
                    const Floats middle = load<Floats>(here + at);
                    column[k][0] = middle;
                    column[k][1] = (load<Floats>(before + at) - middle) * 0.5f;
                    column[k][2] = (load<Floats>(after + at) - middle) * 0.5f;
                }
                for (int row = 0; row < 3; ++row) {
                    const Floats middle = column[1][row];
                    values[3 * row][n] = middle;
                    values[3 * row + 1][n] = (column[0][row] - middle) * 0.5f;
                    values[3 * row + 2][n] = (column[2][row] - middle) * 0.5f;
                }
            }
            for (int map = 0; map < 9; ++map) pack(values[map], first, count, unit, packings[map]);
        }
    }
}

void combine(const float* products, int first, int count, int units, int cells, float slope,
             const NinePacked& to) {
    const ptrdiff_t stride = units * UNIT, plane = WIDEST_BLOCK * stride;
    Packing packings[9];
    for (int map = 0; map < 9; ++map) packings[map] = packing_of(to, map, cells, units);
    for (int unit = 0; unit < units; ++unit) {
        Floats values[9][WIDEST_BLOCK];
        for (int n = 0; n < count; ++n) {
            const float* product = products + n * stride + unit * UNIT;
            // Per axis: a = here + before, b = here, c = here + after. Columns first.
            Floats row[3][3];
            for (int r = 0; r < 3; ++r) {
                const float* line = product + 3 * r * plane;
                const Floats here = load<Floats>(line);
                row[r][0] = here + load<Floats>(line + plane);
                row[r][1] = here;
                row[r][2] = here + load<Floats>(line + 2 * plane);
            }
            for (int c = 0; c < 3; ++c) {
                values[c][n] = activate(row[0][c] + row[1][c], slope);
                values[3 + c][n] = activate(row[0][c], slope);
                values[6 + c][n] = activate(row[0][c] + row[2][c], slope);
            }
        }
        for (int map = 0; map < 9; ++map) pack(values[map], first, count, unit, packings[map]);
    }
}

// --- answers -------------------------------------------------------------------------------------

const float* logits_of(const float* logits, int phase, ptrdiff_t pair_stride, ptrdiff_t class_stride, int classes) {
    return logits + phase / 2 * pair_stride + phase % 2 * classes * class_stride;
}

// The labels of a unit's cells in a phase, and the logits of these.
inline Words best_class(const float* logit, ptrdiff_t class_stride, int classes, Floats& best) {
    best = load<Floats>(logit);
    Words label = {};
    for (int c = 1; c < classes; ++c) {
        const Floats other = load<Floats>(logit + c * class_stride);
        label = other > best ? words(c) : label;
        best = other > best ? other : best;
    }
    return label;
}

// Labels of pixels from those of phases, a byte each in two words.
inline void store_labels(const Words* packed, int count, uint8_t* row) {
    for (int i = 0; i < count; ++i) {
        const uint32_t pair[2] = {packed[0][i], packed[1][i]};
        __builtin_memcpy(row + i * PHASES, pair, sizeof pair);
    }
}

void labels(const float* logits, ptrdiff_t pair_stride, ptrdiff_t class_stride, int classes, int cells, uint8_t* row) {
    for (int cell = 0; cell < cells; cell += UNIT) {
        Words packed[2] = {};
        for (int phase = 0; phase < PHASES; ++phase) {
            Floats best;
            const float* logit = logits_of(logits, phase, pair_stride, class_stride, classes) + cell;
            packed[phase / 4] |= best_class(logit, class_stride, classes, best) << (8 * (phase % 4));
        }
        store_labels(packed, cells - cell < UNIT ? cells - cell : UNIT, row + cell * PHASES);
    }
}

// Of numbers up to 0, to 1e-7; those below -87 give 1e-38. What is no number stays none.
inline Floats exponential(Floats x) {
    x = x < floats(-87.0f) ? floats(-87.0f) : x;
    // x = n log 2 + rest: the sum's last bits are those of n.
    constexpr float SHIFT = 12582912.0f;
    const Floats shifted = x * 1.44269504f + SHIFT, n = shifted - SHIFT;
    const Floats rest = (x - n * 0.693145752f) - n * 1.42860677e-6f;
    // Taylor's series, |rest| <= 0.35.
    constexpr float FACTORS[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    Floats sum = floats(1.0f / 5040);
    for (const float factor : FACTORS) sum = sum * rest + factor;
    return sum * (Floats)(((Words)shifted + 127u) << 23);
}

void decide(const float* logits, ptrdiff_t pair_stride, ptrdiff_t class_stride, int classes, int cells, uint8_t* row,
            float* probabilities) {
    for (int cell = 0; cell < cells; cell += UNIT) {
        const int count = cells - cell < UNIT ? cells - cell : UNIT;
        Words packed[2] = {};
        Floats probability[PHASES];
        for (int phase = 0; phase < PHASES; ++phase) {
            const float* logit = logits_of(logits, phase, pair_stride, class_stride, classes) + cell;
            Floats best, sum = {};
            packed[phase / 4] |= best_class(logit, class_stride, classes, best) << (8 * (phase % 4));
            for (int c = 0; c < classes; ++c) sum += exponential(load<Floats>(logit + c * class_stride) - best);
            probability[phase] = 1.0f / sum;
        }
        store_labels(packed, count, row + cell * PHASES);
        float* to = probabilities + cell * PHASES;
        for (int i = 0; i < count; ++i) {
            for (int phase = 0; phase < PHASES; ++phase) *to++ = probability[phase][i];
        }
    }
}

void values(const float* logits, ptrdiff_t pair_stride, ptrdiff_t class_stride, int classes, int cells,
            bool probabilities, float* row) {
    for (int cell = 0; cell < cells; ++cell) {
        for (int phase = 0; phase < PHASES; ++phase, row += classes) {
            const float* logit = logits_of(logits, phase, pair_stride, class_stride, classes) + cell;
            for (int c = 0; c < classes; ++c) row[c] = logit[c * class_stride];
            if (!probabilities) continue;
            float highest = row[0], sum = 0;
            for (int c = 1; c < classes; ++c) highest = row[c] > highest ? row[c] : highest;
            for (int c = 0; c < classes; ++c) sum += row[c] = expf(row[c] - highest);
            for (int c = 0; c < classes; ++c) row[c] /= sum;
        }
    }
}

constexpr Kernels make_table(const char* name, const char* needs, bool fast_bf16, bool fast_i8) {
    return {name,
            needs,
            fast_bf16,
            fast_i8,
            {DotF32::widest, DotBF16::widest, DotI8::widest},
            {},
            {convolve<DotF32, false>, convolve<DotBF16, false>, convolve<DotI8, true>},
            finish,
            winograd_input,
            winograd,
            {convolve_pooled<DotF32, false>, convolve_pooled<DotBF16, false>, convolve_pooled<DotI8, true>},
            image_u8,
            image_f32,
            pool,
            factors,
            combine,
            labels,
            values,
            decide};
}

}  // namespace
