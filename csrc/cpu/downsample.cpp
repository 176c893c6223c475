#include "downsample.h"

#include "stream.h"

namespace dssnet::cpu {

Downsample::Downsample(const Kernels& kernels, const Operands& operands)
    : kernels_(kernels),
      channels_(operands.sizes.in_channels),
      width_(operands.sizes.width),
      stem_(operands.convolution(kernels, "downsample.stem")),
      strided_(operands.convolution(kernels, "downsample.strided")),
      top_(operands.convolution(kernels, "downsample.strided.top")),
      left_(operands.convolution(kernels, "downsample.strided.left")),
      corner_(operands.convolution(kernels, "downsample.strided.corner")),
      second_(operands.convolution(kernels, "downsample.1")),
      third_(operands.convolution(kernels, "downsample.2")) {}

size_t Downsample::zero_words(int cells) const {
    return std::max({Rows::words_of_row(PHASES, stem_.groups(), cells), Rows::words_of_row(4, second_.groups(), cells),
                     Rows::words_of_row(2, third_.groups(), cells)}) +
           PAD;
}

void Downsample::run(const Image& image, int first, int last, const Columns& columns, const Rows& x0, float* map,
                     const uint32_t* const* zeros, Arena& arena) const {
    const int cells = columns.cells();
    // All that is read, at whatever resolution, lies within a cell.
    const Columns around = columns.wider(1);
    const ptrdiff_t begin = around.begin();
    const int units = around.units();
    const ptrdiff_t width = round_up(cells, UNIT);  // of a row of floats
    const size_t plane = width_ * width;       // of a phase of floats
    // Each convolution of stride 2 reads rows 2 y - 1 .. 2 y + 1, the composed one 2 y - 2 .. 2 y + 2.
    const Rows pixels = stem_.rows(arena, zeros, image.height, 5, PHASES, cells);
    const Rows half = second_.rows(arena, zeros, image.height / 2, 3, 4, cells);
    const Rows quarter = third_.rows(arena, zeros, image.height / 4, 3, 2, cells);
    float* const border = arena.take_floats(plane);           // what the composed convolution misses there
    float* const edge = arena.take_floats(width_ * UNIT);
    float* const half_row = arena.take_floats(4 * plane);
    float* const half_pooled = arena.take_floats(2 * plane);  // at 1/4 resolution
    float* const quarter_row = arena.take_floats(2 * plane);
    float* const pooled = arena.take_floats(plane);           // at 1/8 resolution
    float* const result = arena.take_floats(map ? plane : 0);
    if (!arena.has_memory()) return;

    Stream make_pixels(8 * first - 8, image.height, [&](int row, int) {
        uint32_t* const to = pixels.row(row) + begin;
        const size_t pixel = size_t(row) * image.width + begin * PHASES;
        const int count = around.computed().count();
        if (image.bytes) {
            kernels_.image_u8(image.bytes + pixel * channels_, channels_, count, pixels.format().type, to, pixels.stride());
        } else {
            const float* lines[3];
            for (int channel = 0; channel < channels_; ++channel) {
                lines[channel] = image.floats + size_t(channel) * image.height * image.width + pixel;
            }
            kernels_.image_f32(lines, channels_, count, pixels.format().type, to, pixels.stride());
        }
    });

    // Where the composed convolution sees the stem outside the image.
    const auto add_border = [&](int y, int phase, const uint32_t* const* lines, const Taps& taps) {
        if (y == 0) {
            Finish finish;
            finish.kept = border, finish.kept_stride = width;
            top_.row(lines + 2, taps.data(), pixels.stride(), units, around.finish(finish));
        } else {
            std::fill_n(border, plane, 0.0f);
        }
        const auto add_first_cell = [&](const Convolution& term, const uint32_t* const* lines) {
            constexpr ptrdiff_t FIRST_COLUMN = 0;
            Finish finish;
            finish.kept = edge, finish.kept_stride = UNIT, finish.cells = 1;
            term.row(lines, &FIRST_COLUMN, pixels.stride(), 1, finish);
            for (int i = 0; i < width_; ++i) border[i * width] += edge[i * UNIT];
        };
        if (phase != 0 || begin != 0) return;
        add_first_cell(left_, lines);
        if (y == 0) add_first_cell(corner_, lines + 2);
    };

    const int first_half = std::max(4 * first - 3, 0);
    Stream make_half(first_half, image.height / 2, [&](int y, int) {
        make_pixels.need(2 * y + 3);
        const uint32_t* lines[5];
        for (int i = 0; i < 5; ++i) lines[i] = pixels.read(2 * y - 2 + i) + begin;
        for (int phase = 0; phase < 4; ++phase) {
            const Taps taps = taps_around(phase, 2, 2, PHASES, pixels.phase());
            Finish finish = half.packing(y, phase);
            finish.kept = half_row + phase * plane, finish.kept_stride = width;
            if (y == 0 || phase == 0) {
                add_border(y, phase, lines, taps);
                finish.addend = border, finish.addend_stride = width;
            }
            Window stems[4];
            Taps stem_taps[2];
            for (int i = 0; i < 2; ++i) stem_taps[i] = taps_around(2 * phase + i, 1, 1, PHASES, pixels.phase());
            for (int i = 0; i < 4; ++i) {
                stems[i] = stem_.window(lines + 1 + i / 2, stem_taps[i % 2].data(), pixels.stride());
            }
            strided_.pooled_row(lines, taps.data(), stem_, stems, pixels.stride(), units, around.finish(finish));
        }
        // An odd first row is there only for the convolution.
        if (y % 2 == 0 || y > first_half) kernels_.pool(half_row, 2, plane, y % 2, half_pooled);
    });

    const int first_quarter = std::max(2 * first - 1, 0);
    Stream make_quarter(first_quarter, image.height / 4, [&](int y, int) {
        make_half.need(2 * y + 2);
        const uint32_t* lines[3];
        for (int i = 0; i < 3; ++i) lines[i] = half.read(2 * y - 1 + i) + begin;
        for (int phase = 0; phase < 2; ++phase) {
            Finish finish = quarter.packing(y, phase);
            finish.kept = quarter_row + phase * plane, finish.kept_stride = width;
            finish.addend = half_pooled + phase * plane, finish.addend_stride = width;
            const Taps taps = taps_around(phase, 1, 2, 4, half.phase());
            second_.row(lines, taps.data(), half.stride(), units, around.finish(finish));
        }
        if (y % 2 == 0 || y > first_quarter) kernels_.pool(quarter_row, 1, plane, y % 2, pooled);
    });

    for (int y = first; y < last; ++y) {
        make_quarter.need(2 * y + 2);
        const uint32_t* lines[3];
        for (int i = 0; i < 3; ++i) lines[i] = quarter.read(2 * y - 1 + i) + columns.begin();
        Finish finish = x0.packing(y);
        if (map) finish.kept = result, finish.kept_stride = width;
        finish.addend = pooled, finish.addend_stride = width;
        const Taps taps = taps_around(0, 1, 2, 2, quarter.phase());
        third_.row(lines, taps.data(), quarter.stride(), columns.units(), columns.finish(finish));
        if (map) export_row(result, 1, width_, cells, width, map + size_t(y) * cells * width_);
    }
}

}  // namespace dssnet::cpu
