// What happens to sums: scale, bias, addend, PReLU, maximum; then they are kept, packed, or both.

// --- packing -------------------------------------------------------------------------------------

// To nearest even, in the upper half of each word.
inline Words rounded_to_bf16(Floats value) {
    const Words bits = (Words)value;
    const Words rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) & 0xffff0000u;
    return value == value ? rounded : words(0x7fc00000u);
}

// Rounded to the nearest integer, from `lowest` to 127, plus 128; in the lowest byte of each word.
inline Words to_i8(Floats value, float inverse_step, float lowest) {
    Floats q = value * inverse_step;
    q = q > floats(lowest) ? q : floats(lowest);
    q = q < floats(127) ? q : floats(127);
    // The sum's last bits are those of the nearest integer plus 128.
    return (Words)(q + (12582912.0f + 128.0f)) & 0xffu;
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

inline Packing packing_of(const Finish& f, int units) {
    return {f.packed_type, f.inverse_step, f.packed, f.packed_stride, f.cells, units};
}

// A word of up to four channels, of which there are `count`.
template <Type type>
inline Words word_of(const Floats* values, int count, const Packing& to) {
    if constexpr (type == Type::f32) return (Words)values[0];
    if constexpr (type == Type::wide_bf16) return rounded_to_bf16(values[0]);
    if constexpr (type == Type::bf16) {
        const Words low = rounded_to_bf16(values[0]) >> 16;
        return count > 1 ? low | rounded_to_bf16(values[1]) : low;
    }
    if constexpr (type == Type::i8) {
        Words word = {};
        for (int k = 0; k < 4; ++k) {
            word |= (k < count ? to_i8(values[k], to.inverse_step, to.lowest) : words(128u)) << (8 * k);
        }
        return word;
    }
}

// Zeros before the first cell and after the last. What follows is the next group's pad, which that group does not write
// where only columns further right are wanted; or cells that nobody wants.
inline void store_pads(uint32_t* run, Type type, int cell, const Packing& to) {
    const Words zero = words(zero_word(type));
    if (cell == 0) {
        for (int i = 0; i < PAD; i += LANES) store(run - PAD + i, zero);
    }
    if (cell + LANES == to.units * UNIT) {
        for (int i = 0; i < PAD; i += LANES) store(run + LANES + i, zero);
    }
}

// The word of channels from `channel`, the first of a word, for the vector from `cell` on.
template <Type type>
inline void pack_word(const Floats* values, int count, int channel, int cell, const Packing& to) {
    uint32_t* run = to.row + channel / channels_per_word(type) * to.stride + cell;
    store(run, only_first(to.cells - cell, word_of<type>(values, count, to), words(zero_word(type))));
    store_pads(run, type, cell, to);
}

template <Type type>
inline void pack_as(const Floats* values, int first, int count, int cell, const Packing& to) {
    constexpr int W = channels_per_word(type);
    for (int n = 0; n < count; n += W) pack_word<type>(values + n, count - n, first + n, cell, to);
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
inline Floats activate(Floats value, float slope) {
    const Floats scaled = value * slope;
    if (slope <= 1.0f) return value < scaled ? scaled : value;
    return value > Floats{} ? value : scaled;
}

// Output `output` of the vector from `cell` on.
template <bool integers>
inline Floats end_of_sum(const uint32_t* sum, int output, int cell, const Finish& f) {
    Floats value;
    if constexpr (integers) {
        value = __builtin_convertvector(load<Ints>(sum), Floats) * f.scale[output];
    } else {
        value = load<Floats>(sum);
    }
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

template <bool integers, Type type>
void finish_as(const uint32_t* sums, ptrdiff_t stride, int first, int count, int cell, int cells, const Packing& packing,
               const Finish& f) {
    constexpr int W = channels_per_word(type);
    for (int n = 0; n < count; n += W) {
        for (int c = 0; c < cells; c += LANES) {
            Floats values[W];
            for (int k = 0; k < W && n + k < count; ++k) {
                values[k] = end_of_sum<integers>(sums + (n + k) * stride + c, first + n + k, cell + c, f);
            }
            pack_word<type>(values, count - n, first + n, cell + c, packing);
        }
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
