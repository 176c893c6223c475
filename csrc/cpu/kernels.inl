// The kernels of one instruction set. A file that includes this defines, in its own unnamed namespace,
//
//   struct DotF32, DotBF16, DotI8 {
//       using Sum, Input;                                      // vectors of `lanes` cells
//       static constexpr int lanes;                            // divides UNIT
//       static constexpr int units, widest;                    // units and outputs whose sums fit into registers
//       static Sum start(const int32_t* value);                // sums that start from a value, or from 0 if null
//       static Input load(const uint32_t*);
//       static Sum dot(Sum, Input, const uint32_t* weights);   // adds the word's channels times those weights
//       static void store(uint32_t*, Sum);
//   };
//
// Loops over cells are plain: compilers vectorise them. Nothing here may be shared between files that are
// compiled for different processors, hence the unnamed namespace and no standard containers.

#include <math.h>

#include <cstring>

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

// --- packing -------------------------------------------------------------------------------------

inline uint32_t bits_of(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

inline uint32_t to_bf16(float value) {
    const uint32_t bits = bits_of(value);
    const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
    return value == value ? rounded : 0x7fc0u;
}

inline uint32_t to_i8(float value, float inverse_step) {
    float q = value * inverse_step;
    q = q < -127.0f ? -127.0f : q;
    q = q > 127.0f ? 127.0f : q;
    // The sum's last bits are those of the nearest integer.
    return (bits_of(q + 12582912.0f) + 128) & 0xff;
}

inline void fill(uint32_t* words, uint32_t value, int count) {
    for (int i = 0; i < count; ++i) words[i] = value;
}

// Packs `count` channels of C cells; missing channels of the last word are zero.
template <int C>
void pack_words(const float* values, int count, Type type, float inverse_step, uint32_t* words, ptrdiff_t stride) {
    switch (type) {
        case Type::f32:
            for (int n = 0; n < count; ++n) std::memcpy(words + n * stride, values + n * C, C * 4);
            break;
        case Type::bf16:
            for (int n = 0; n < count; n += 2, words += stride) {
                const float* low = values + n * C;
                if (n + 1 < count) {
                    for (int i = 0; i < C; ++i) words[i] = to_bf16(low[i]) | to_bf16(low[C + i]) << 16;
                } else {
                    for (int i = 0; i < C; ++i) words[i] = to_bf16(low[i]);
                }
            }
            break;
        case Type::i8:
            for (int n = 0; n < count; n += 4, words += stride) {
                uint32_t word[C];
                for (int i = 0; i < C; ++i) word[i] = to_i8(values[n * C + i], inverse_step);
                for (int k = 1; k < 4; ++k) {
                    const float* channel = values + (n + k) * C;
                    if (n + k < count) {
                        for (int i = 0; i < C; ++i) word[i] |= to_i8(channel[i], inverse_step) << (8 * k);
                    } else {
                        for (int i = 0; i < C; ++i) word[i] |= 128u << (8 * k);
                    }
                }
                std::memcpy(words, word, C * 4);
            }
            break;
    }
}

// What lies around packed cells: zeros before the first, beyond the last, and after the last group.
template <int C>
void pack_surroundings(uint32_t* words, ptrdiff_t stride, int groups, Type type, int cell, int cells, bool is_last_unit,
                       bool is_last_group) {
    const uint32_t zero = zero_word(type);
    for (int group = 0; group < groups; ++group) {
        uint32_t* run = words + group * stride;
        if (cell == 0) fill(run - PAD, zero, PAD);
        for (int i = cells - cell; i < C; ++i) {
            if (i >= 0) run[i] = zero;
        }
        if (is_last_unit && is_last_group && group == groups - 1) fill(run + C, zero, PAD);
    }
}

template <int C>
void pack(const float* values, int first, int count, int cell, int units, int outputs, int cells, Type type,
          float inverse_step, uint32_t* packed, ptrdiff_t stride) {
    uint32_t* words = packed + first / channels_per_word(type) * stride + cell;
    pack_words<C>(values, count, type, inverse_step, words, stride);
    pack_surroundings<C>(words, stride, words_for(count, type), type, cell, cells, cell + C == units * UNIT,
                         first + count == outputs);
}

// --- what happens to sums ------------------------------------------------------------------------

template <int C>
void activate(float* values, float slope) {
    for (int i = 0; i < C; ++i) values[i] = values[i] > 0 ? values[i] : values[i] * slope;
}

// Outputs [first, first + count) for C cells from `cell` on.
template <int C, bool integers>
void finish_block(const uint32_t* sums, ptrdiff_t sum_stride, int first, int count, int cell, int units, const Finish& f) {
    alignas(64) float values[WIDEST_BLOCK * C];
    for (int n = 0; n < count; ++n) {
        const int output = first + n;
        float* value = values + n * C;
        const uint32_t* sum = sums + n * sum_stride;
        const float bias = f.bias ? f.bias[output] : 0.0f;
        if constexpr (integers) {
            const float scale = f.scale[output];
            int32_t whole[C];
            std::memcpy(whole, sum, C * 4);
            for (int i = 0; i < C; ++i) value[i] = float(whole[i]) * scale + bias;
        } else {
            std::memcpy(value, sum, C * 4);
            for (int i = 0; i < C; ++i) value[i] += bias;
        }
        if (f.addend) {
            const float* addend = f.addend + output * f.addend_stride + cell;
            for (int i = 0; i < C; ++i) value[i] += addend[i];
        }
        if (f.slope != 1.0f) activate<C>(value, f.slope);
        if (f.kept) {
            float* kept = f.kept + output * f.kept_stride + cell;
            if (f.maximum) {
                for (int i = 0; i < C; ++i) kept[i] = value[i] > kept[i] ? value[i] : kept[i];
            } else {
                std::memcpy(kept, value, C * 4);
            }
            for (int i = f.cells - cell; i < C; ++i) {
                if (i >= 0) kept[i] = 0;
            }
        }
    }
    if (f.packed) {
        pack<C>(values, first, count, cell, units, f.outputs, f.cells, f.packed_type, f.inverse_step, f.packed,
                f.packed_stride);
    }
}

template <class Dot, bool integers>
void convolve(const Window& window, const Weights& weights, int first_block, int last_block, int units, const Finish& finish) {
    alignas(64) uint32_t sums[WIDEST_BLOCK * 2 * UNIT];
    int first = 0;
    const uint32_t* words = weights.words;
    for (int block = 0; block < last_block; ++block) {
        const int count = weights.block_sizes[block];
        if (block >= first_block) {
            const int32_t* start = weights.start ? weights.start + first : nullptr;
            int unit = 0;
            if constexpr (Dot::units == 2) {
                const SumBlock two = sum_block_of<Dot, 2>(count);
                for (; unit + 2 <= units; unit += 2) {
                    two(window, unit * UNIT, words, start, sums);
                    finish_block<2 * UNIT, integers>(sums, 2 * UNIT, first, count, unit * UNIT, units, finish);
                }
            }
            const SumBlock one = sum_block_of<Dot, 1>(count);
            for (; unit < units; ++unit) {
                one(window, unit * UNIT, words, start, sums);
                finish_block<UNIT, integers>(sums, UNIT, first, count, unit * UNIT, units, finish);
            }
        }
        words += count * weights.words_per_output;
        first += count;
    }
}

void finish(const float* sums, ptrdiff_t stride, int units, const Finish& f) {
    constexpr int TOGETHER = 12;  // whole words of every type
    for (int first = 0; first < f.outputs; first += TOGETHER) {
        const int count = f.outputs - first < TOGETHER ? f.outputs - first : TOGETHER;
        for (int unit = 0; unit < units; ++unit) {
            const auto* block = reinterpret_cast<const uint32_t*>(sums + first * stride + unit * UNIT);
            finish_block<UNIT, false>(block, stride, first, count, unit * UNIT, units, f);
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

void winograd_output(const float* parts, size_t plane, size_t words, float* const* rows) {
    float *r0 = rows[0], *r1 = rows[1], *r2 = rows[2], *r3 = rows[3];
    const float *m0 = parts, *m1 = m0 + plane, *m2 = m1 + plane, *m3 = m2 + plane, *m4 = m3 + plane, *m5 = m4 + plane;
    for (size_t i = 0; i < words; ++i) {
        const float even1 = m1[i] + m2[i], odd1 = m1[i] - m2[i], even2 = m3[i] + m4[i], odd2 = m3[i] - m4[i];
        const float last = m5[i];
        r0[i] = m0[i] + even1 + even2;
        r1[i] = odd1 + 2 * odd2;
        r2[i] = even1 + 4 * even2;
        r3[i] = odd1 + 8 * odd2 + last;
    }
}

// --- image ---------------------------------------------------------------------------------------

// `value(pixel, channel)` is normalised.
template <class Value>
void image_row(int channels, int cells, Type type, uint32_t* row, ptrdiff_t stride, Value value) {
    const int groups = words_for(channels, type), units = (cells + UNIT - 1) / UNIT;
    for (int phase = 0; phase < PHASES; ++phase, row += groups * stride) {
        for (int unit = 0; unit < units; ++unit) {
            alignas(64) float values[4 * UNIT];
            for (int channel = 0; channel < channels; ++channel) {
                for (int i = 0; i < UNIT; ++i) {
                    const int cell = unit * UNIT + i;
                    values[channel * UNIT + i] = cell < cells ? value(cell * PHASES + phase, channel) : 0.0f;
                }
            }
            pack<UNIT>(values, 0, channels, unit * UNIT, units, channels, cells, type, 128.0f, row, stride);
        }
    }
}

void image_u8(const uint8_t* pixels, int channels, int cells, Type type, uint32_t* row, ptrdiff_t stride) {
    if (type == Type::i8) {
        // A pixel's bytes are what int8 words hold: value - 128, stored as value.
        const int units = (cells + UNIT - 1) / UNIT;
        for (int phase = 0; phase < PHASES; ++phase, row += stride) {
            fill(row - PAD, zero_word(type), PAD);
            const uint8_t* pixel = pixels + phase * channels;
            for (int cell = 0; cell < cells; ++cell, pixel += PHASES * channels) {
                row[cell] = channels == 3 ? pixel[0] | pixel[1] << 8 | pixel[2] << 16 | 0x80000000u
                                          : pixel[0] | 0x80808000u;
            }
            fill(row + cells, zero_word(type), units * UNIT - cells + PAD);
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
        for (size_t i = 0; i < words; ++i) {
            const float larger = row[i] > row[words + i] ? row[i] : row[words + i];
            result[i] = maximum && result[i] > larger ? result[i] : larger;
        }
    }
}

void factors(const float* before, const float* here, const float* after, int channels, ptrdiff_t stride, int units,
             int cells, const NinePacked& to) {
    constexpr int TOGETHER = 4;  // whole words of every type
    for (int first = 0; first < channels; first += TOGETHER) {
        const int count = channels - first < TOGETHER ? channels - first : TOGETHER;
        for (int unit = 0; unit < units; ++unit) {
            alignas(64) float values[9][TOGETHER * UNIT];
            for (int n = 0; n < count; ++n) {
                const ptrdiff_t at = (first + n) * stride + unit * UNIT;
                const float *b = before + at, *h = here + at, *a = after + at;
                for (int i = 0; i < UNIT; ++i) {
                    const float left[3] = {h[i - 1], (b[i - 1] - h[i - 1]) * 0.5f, (a[i - 1] - h[i - 1]) * 0.5f};
                    const float middle[3] = {h[i], (b[i] - h[i]) * 0.5f, (a[i] - h[i]) * 0.5f};
                    const float right[3] = {h[i + 1], (b[i + 1] - h[i + 1]) * 0.5f, (a[i + 1] - h[i + 1]) * 0.5f};
                    for (int row = 0; row < 3; ++row) {
                        values[3 * row][n * UNIT + i] = middle[row];
                        values[3 * row + 1][n * UNIT + i] = (left[row] - middle[row]) * 0.5f;
                        values[3 * row + 2][n * UNIT + i] = (right[row] - middle[row]) * 0.5f;
                    }
                }
            }
            for (int map = 0; map < 9; ++map) {
                pack<UNIT>(values[map], first, count, unit * UNIT, units, channels, cells, to.type, to.inverse_steps[map],
                           to.maps[map], to.stride);
            }
        }
    }
}

void combine(const float* products, int first, int count, int units, int cells, float slope, int outputs,
             const NinePacked& to) {
    const ptrdiff_t stride = units * UNIT, plane = WIDEST_BLOCK * stride;
    // Per axis: a = here + before, b = here, c = here + after.
    constexpr int SECOND[3] = {1, -1, 2};
    for (int unit = 0; unit < units; ++unit) {
        for (int row = 0; row < 3; ++row) {
            for (int column = 0; column < 3; ++column) {
                alignas(64) float values[WIDEST_BLOCK * UNIT];
                const float* p = products + unit * UNIT;
                const int r = SECOND[row], c = SECOND[column];
                for (int n = 0; n < count; ++n, p += stride) {
                    float* value = values + n * UNIT;
                    std::memcpy(value, p, UNIT * 4);
                    if (r >= 0) {
                        for (int i = 0; i < UNIT; ++i) value[i] += p[3 * r * plane + i];
                    }
                    if (c >= 0) {
                        for (int i = 0; i < UNIT; ++i) value[i] += p[c * plane + i];
                    }
                    if (r >= 0 && c >= 0) {
                        for (int i = 0; i < UNIT; ++i) value[i] += p[(3 * r + c) * plane + i];
                    }
                    activate<UNIT>(value, slope);
                }
                const int map = 3 * row + column;
                pack<UNIT>(values, first, count, unit * UNIT, units, outputs, cells, to.type, to.inverse_steps[map],
                           to.maps[map], to.stride);
            }
        }
    }
}

// --- answers -------------------------------------------------------------------------------------

const float* logits_of(const float* logits, int phase, ptrdiff_t pair_stride, ptrdiff_t class_stride, int classes) {
    return logits + phase / 2 * pair_stride + phase % 2 * classes * class_stride;
}

void labels(const float* logits, ptrdiff_t pair_stride, ptrdiff_t class_stride, int classes, int cells, uint8_t* row) {
    for (int cell = 0; cell < cells; cell += UNIT) {
        alignas(64) uint32_t words[2][UNIT] = {};
        for (int phase = 0; phase < PHASES; ++phase) {
            alignas(64) float best[UNIT];
            alignas(64) uint32_t label[UNIT] = {};
            const float* logit = logits_of(logits, phase, pair_stride, class_stride, classes) + cell;
            std::memcpy(best, logit, sizeof best);
            for (int c = 1; c < classes; ++c) {
                logit += class_stride;
                for (int i = 0; i < UNIT; ++i) {
                    label[i] = logit[i] > best[i] ? uint32_t(c) : label[i];
                    best[i] = logit[i] > best[i] ? logit[i] : best[i];
                }
            }
            for (int i = 0; i < UNIT; ++i) words[phase / 4][i] |= label[i] << (8 * (phase % 4));
        }
        for (int i = 0; i < UNIT && cell + i < cells; ++i) {
            std::memcpy(row + (cell + i) * PHASES, &words[0][i], 4);
            std::memcpy(row + (cell + i) * PHASES + 4, &words[1][i], 4);
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

Kernels make_table(const char* name, const char* needs, bool fast_bf16, bool fast_i8) {
    return {name,
            needs,
            fast_bf16,
            fast_i8,
            {DotF32::widest, DotBF16::widest, DotI8::widest},
            {convolve<DotF32, false>, convolve<DotBF16, false>, convolve<DotI8, true>},
            finish,
            winograd_input,
            winograd_output,
            image_u8,
            image_f32,
            pool,
            factors,
            combine,
            labels,
            values};
}

}  // namespace
