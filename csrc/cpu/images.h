// Images and maps as callers have them.
#pragma once

#include <cstdint>

#include "maps.h"

namespace dssnet::cpu {

// One image, contiguous: uint8 [height][width][channels], or normalised float [channels][height][width].
struct Image {
    const uint8_t* bytes = nullptr;
    const float* floats = nullptr;
    int height = 0, width = 0;
};

// A decision is labels and each label's probability.
enum class AnswerKind { labels, probabilities, logits, decision };

// One image's answer or that of a part of it, contiguous: uint8 [height][width], or float [height][width][classes], or of a
// decision uint8 and float [height][width].
struct Answer {
    AnswerKind kind = AnswerKind::labels;
    uint8_t* labels = nullptr;
    float* values = nullptr;
};

// A row of a caller's map, float [phases * cells][channels], from rows [phase][channel][stride] and back.
inline void export_row(const float* rows, int phases, int channels, int cells, ptrdiff_t stride, float* map) {
    for (int cell = 0; cell < cells; ++cell) {
        for (int phase = 0; phase < phases; ++phase) {
            const float* row = rows + phase * channels * stride + cell;
            for (int channel = 0; channel < channels; ++channel) *map++ = row[channel * stride];
        }
    }
}

inline void import_row(const float* map, int phases, int channels, int cells, ptrdiff_t stride, float* rows) {
    for (int cell = 0; cell < cells; ++cell) {
        for (int phase = 0; phase < phases; ++phase) {
            float* row = rows + phase * channels * stride + cell;
            for (int channel = 0; channel < channels; ++channel) row[channel * stride] = *map++;
        }
    }
}

}  // namespace dssnet::cpu
