// Maps that no convolution makes: images, what pooling keeps, and the FFM's factors and values.

// --- images --------------------------------------------------------------------------------------

// `value(pixel, channel)` is normalised.
template <class Value>
void image_row(int channels, int cells, Type type, uint32_t* row, ptrdiff_t stride, Value value) {
    const int units = (cells + UNIT - 1) / UNIT;
    // Byte 0 is -128.
    Packing packing = {type, {128.0f, -128.0f}, row, stride, cells, units};
    for (int phase = 0; phase < PHASES; ++phase, packing.row += words_for(channels, type) * stride) {
        for (int begin = 0; begin < units * UNIT; begin += LANES) {
            Floats values[4];
            for (int channel = 0; channel < channels; ++channel) {
                for (int i = 0; i < LANES; ++i) {
                    const int cell = begin + i;
                    values[channel][i] = cell < cells ? value(cell * PHASES + phase, channel) : 0.0f;
                }
            }
            pack(values, 0, channels, begin, packing);
        }
    }
}

void image_u8(const uint8_t* pixels, int channels, int cells, Type type, uint32_t* row, ptrdiff_t stride) {
    if (type == Type::i8) {
        // A pixel's bytes are what int8 words hold: value - 128, stored as value.
        const int units = (cells + UNIT - 1) / UNIT;
        for (int phase = 0; phase < PHASES; ++phase, row += stride) {
            for (int i = -PAD; i < 0; i += LANES) store(row + i, words(zero_word(type)));
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
        for (size_t i = 0; i < words; i += LANES) {
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
    return {to.type, {to.inverse_steps[map]}, to.maps[map], to.stride, cells, units};
}

void factors(const float* before, const float* here, const float* after, int channels, ptrdiff_t stride, int units,
             int cells, const NinePacked& to) {
    constexpr int TOGETHER = 4;  // whole words of every type
    Packing packings[9];
    for (int map = 0; map < 9; ++map) packings[map] = packing_of(to, map, cells, units);
    for (int first = 0; first < channels; first += TOGETHER) {
        const int count = channels - first < TOGETHER ? channels - first : TOGETHER;
        for (int cell = 0; cell < units * UNIT; cell += LANES) {
            Floats values[9][TOGETHER];
            for (int n = 0; n < count; ++n) {
                // At the cell to the left, here, and to the right: the cell, and halves of its differences.
                Floats column[3][3];
                for (int k = 0; k < 3; ++k) {
                    const ptrdiff_t at = (first + n) * stride + cell + k - 1;
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
            for (int map = 0; map < 9; ++map) pack(values[map], first, count, cell, packings[map]);
        }
    }
}

void combine(const float* products, ptrdiff_t plane, int first, int count, int units, int cells, float slope,
             const NinePacked& to) {
    constexpr int TOGETHER = 4;  // whole words of every type
    const ptrdiff_t stride = units * UNIT;
    Packing packings[9];
    for (int map = 0; map < 9; ++map) packings[map] = packing_of(to, map, cells, units);
    for (int begin = 0; begin < count; begin += TOGETHER) {
        const int together = count - begin < TOGETHER ? count - begin : TOGETHER;
        for (int cell = 0; cell < units * UNIT; cell += LANES) {
            Floats values[9][TOGETHER];
            for (int n = 0; n < together; ++n) {
                const float* product = products + (begin + n) * stride + cell;
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
            for (int map = 0; map < 9; ++map) pack(values[map], first + begin, together, cell, packings[map]);
        }
    }
}
