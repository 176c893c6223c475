// Answers from logits: labels, values, decisions.

const float* logits_of(const float* logits, int phase, ptrdiff_t pair_stride, ptrdiff_t class_stride, int classes) {
    return logits + phase / 2 * pair_stride + phase % 2 * classes * class_stride;
}

// The labels of a vector's cells in a phase, and the logits of these.
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
    for (int cell = 0; cell < cells; cell += LANES) {
        Words packed[2] = {};
        for (int phase = 0; phase < PHASES; ++phase) {
            Floats best;
            const float* logit = logits_of(logits, phase, pair_stride, class_stride, classes) + cell;
            packed[phase / 4] |= best_class(logit, class_stride, classes, best) << (8 * (phase % 4));
        }
        store_labels(packed, cells - cell < LANES ? cells - cell : LANES, row + cell * PHASES);
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
    for (int cell = 0; cell < cells; cell += LANES) {
        const int count = cells - cell < LANES ? cells - cell : LANES;
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
