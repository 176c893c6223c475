// What happens to sums: scale, bias, addend, PReLU, maximum; then they are kept, packed, or both.

// --- packing -------------------------------------------------------------------------------------

// To nearest even, in the upper half of each word.
inline Words rounded_to_bf16(Floats value) {
    const Words bits = (Words)value;
    const Words rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
    return value == value ? rounded : words(0x7fc00000u);
}

// How int8 rounds. Passed by value: what lies in memory would be loaded again after each store.
struct Steps {
    float inverse;
    float lowest = -127;
};

// Rounded to the nearest integer, from the lowest to 127, plus 128; in the lowest byte of each word.
inline Words to_i8(Floats value, Steps steps) {
    Floats q = value * steps.inverse;
    q = q > floats(steps.lowest) ? q : floats(steps.lowest);
    q = q < floats(127) ? q : floats(127);
    // The sum's last bits are those of the nearest integer plus 128.
    return (Words)(q + (12582912.0f + 128.0f)) & 0xffu;
}

// Where packed values of a row go, and what is around them.
struct Packing {
    Type type;
    Steps steps;
    uint32_t* row;     // cell 0 of the first group
    ptrdiff_t stride;  // between groups
    int cells, units;
};

inline Packing packing_of(const Finish& f, int units) {
    return {f.packed_type, {f.inverse_step}, f.packed, f.packed_stride, f.cells, units};
}

// A word of up to four channels, of which there are `count`.
template <Type type>
inline Words word_of(const Floats* values, int count, Steps steps) {
    if constexpr (type == Type::f32) return (Words)values[0];
    if constexpr (type == Type::wide_bf16) return rounded_to_bf16(values[0]);
    if constexpr (type == Type::bf16) {
        const Words low = rounded_to_bf16(values[0]) >> 16;
        return count > 1 ? low | rounded_to_bf16(values[1]) : low;
    }
    if constexpr (type == Type::i8) {
        Words word = {};
        for (int k = 0; k < 4; ++k) {
            word |= (k < count ? to_i8(values[k], steps) : words(128u)) << (8 * k);
        }
        return word;
    }
}

// Of cells [cell, cell + cells) of a run, whose words are there already: zeros beyond the last cell, and in the pads before
// the first and after the last. What follows is the next group's pad, which that group does not write where only columns
// further right are wanted; or cells that nobody wants.
inline void end_run(uint32_t* run, Type type, int cell, int cells, const Packing& to) {
    const Words zero = words(zero_word(type));
    for (int i = to.cells - cell; i < cells; ++i) run[i] = zero[0];
    if (cell == 0) {
        for (int i = 0; i < PAD; i += LANES) store(run - PAD + i, zero);
    }
    if (cell + cells == to.units * UNIT) {
        for (int i = 0; i < PAD; i += LANES) store(run + cells + i, zero);
    }
}

template <Type type>
inline void pack_as(const Floats* values, int first, int count, int cell, const Packing& to) {
    constexpr int W = channels_per_word(type);
    for (int n = 0; n < count; n += W) {
        uint32_t* run = to.row + (first + n) / W * to.stride + cell;
        store(run, word_of<type>(values + n, count - n, to.steps));
        end_run(run, type, cell, LANES, to);
    }
}

// Channels [first, first + count) of the vector from `cell` on; `first` is the first of a word.
inline void pack(const Floats* values, int first, int count, int cell, const Packing& to) {
    switch (to.type) {
        case Type::f32: return pack_as<Type::f32>(values, first, count, cell, to);
        case Type::wide_bf16: return pack_as<Type::wide_bf16>(values, first, count, cell, to);
        case Type::bf16: return pack_as<Type::bf16>(values, first, count, cell, to);
        case Type::i8: return pack_as<Type::i8>(values, first, count, cell, to);
    }
}

// --- sums ----------------------------------------------------------------------------------------

// PReLU. What is no number stays none; of slopes up to 1 it is the larger of two.
template <bool rising>
inline Floats activate(Floats value, float slope) {
    const Floats scaled = value * slope;
    return (rising ? value < scaled : value < Floats{}) ? scaled : value;
}

inline Floats activate(Floats value, float slope) {
    return slope <= 1.0f ? activate<true>(value, slope) : activate<false>(value, slope);
}

template <bool integers>
inline Floats value_of(const uint32_t* sum, float scale) {
    if constexpr (integers) return __builtin_convertvector(load<Ints>(sum), Floats) * scale;
    return load<Floats>(sum);
}

// An output's sum: scaled, with its bias, addend and PReLU; kept where that is wanted.
template <bool integers>
inline Floats end_of_sum(const uint32_t* sum, int output, int cell, const Finish& f) {
    Floats value = value_of<integers>(sum, integers ? f.scale[output] : 1.0f);
    if (f.bias) value += f.bias[output];
    if (f.addend) value += load<Floats>(f.addend + output * f.addend_stride + cell);
    if (f.slope != 1.0f) value = activate(value, f.slope);
    if (f.kept) {
        float* kept = f.kept + output * f.kept_stride + cell;
        Floats larger = value;
        if (f.maximum) {
            const Floats other = load<Floats>(kept);
            larger = value > other ? value : other;
        }
        store(kept, only_first(f.cells - cell, larger, Floats{}));
    }
    return value;
}

// Sums that are packed, `cells` cells from `cell` on.
template <bool integers, Type type>
void finish_as(const uint32_t* sums, ptrdiff_t stride, int first, int count, int cell, int cells, const Packing& packing,
               const Finish& f) {
    constexpr int W = channels_per_word(type);
    // Most convolutions add a bias and are activated, and no more.
    const Steps steps = packing.steps;
    const float slope = f.slope;
    const bool plain = f.bias && !f.addend && !f.kept && f.slope <= 1.0f;
    const bool inside = cell > 0 && cell + cells < packing.units * UNIT && cell + cells <= packing.cells;
    for (int n = 0; n < count; n += W, sums += W * stride) {
        uint32_t* run = packing.row + (first + n) / W * packing.stride + cell;
        if (plain && n + W <= count) {
            float scale[W], bias[W];
            for (int k = 0; k < W; ++k) {
                scale[k] = integers ? f.scale[first + n + k] : 1.0f, bias[k] = f.bias[first + n + k];
            }
            for (int c = 0; c < cells; c += LANES) {
                Floats values[W];
                for (int k = 0; k < W; ++k) {
                    values[k] = activate<true>(value_of<integers>(sums + k * stride + c, scale[k]) + bias[k], slope);
                }
                store(run + c, word_of<type>(values, W, steps));
            }
        } else {
            for (int c = 0; c < cells; c += LANES) {
                Floats values[W];
                for (int k = 0; k < W && n + k < count; ++k) {
                    values[k] = end_of_sum<integers>(sums + k * stride + c, first + n + k, cell + c, f);
                }
                store(run + c, word_of<type>(values, count - n, steps));
            }
        }
        if (!inside) end_run(run, type, cell, cells, packing);
    }
}

// Outputs [first, first + count) of `cells` cells from `cell` on, whole units; sums are `stride` words apart. `first` is the
// first of a word.
template <bool integers>
void finish_sums(const uint32_t* sums, ptrdiff_t stride, int first, int count, int cell, int cells, const Packing& packing,
                 const Finish& f) {
    if (!f.packed) {
        for (int n = 0; n < count; ++n) {
            for (int c = 0; c < cells; c += LANES) {
                end_of_sum<integers>(sums + n * stride + c, first + n, cell + c, f);
            }
        }
        return;
    }
    switch (packing.type) {
        case Type::f32: return finish_as<integers, Type::f32>(sums, stride, first, count, cell, cells, packing, f);
        case Type::wide_bf16:
            return finish_as<integers, Type::wide_bf16>(sums, stride, first, count, cell, cells, packing, f);
        case Type::bf16: return finish_as<integers, Type::bf16>(sums, stride, first, count, cell, cells, packing, f);
        case Type::i8: return finish_as<integers, Type::i8>(sums, stride, first, count, cell, cells, packing, f);
    }
}

void finish(const float* sums, ptrdiff_t stride, int units, const Finish& f) {
    const auto* first = reinterpret_cast<const uint32_t*>(sums);
    finish_sums<false>(first, stride, 0, f.outputs, 0, units * UNIT, packing_of(f, units), f);
}
