// Convolutions: sums of products in registers, over all lines, groups and taps.

// N outputs for V vectors of cells.
template <class Dot, int N, int V>
void sum_block(const Window& window, ptrdiff_t cell, const uint32_t* weights, const int32_t* start, uint32_t* sums,
               ptrdiff_t stride) {
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
            for (int tap = 0; tap < taps; ++tap, weights += N * Dot::weight_words) {
                const uint32_t* near = input + window.taps[tap];
                typename Dot::Input value[V];
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v) value[v] = Dot::load(near + v * LANES);
#pragma GCC unroll 16
                for (int n = 0; n < N; ++n) {
#pragma GCC unroll 8
                    for (int v = 0; v < V; ++v) {
                        sum[n][v] = Dot::dot(sum[n][v], value[v], weights + n * Dot::weight_words);
                    }
                }
            }
        }
    }
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) Dot::store(sums + n * stride + v * LANES, sum[n][v]);
    }
}

using SumBlock = void (*)(const Window&, ptrdiff_t, const uint32_t*, const int32_t*, uint32_t*, ptrdiff_t);

// One function for each number of outputs up to the widest.
#define DSSNET_FOR_OUTPUTS(CASE) \
    CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7) CASE(8) CASE(9) CASE(10) CASE(11) CASE(12) CASE(13) \
        CASE(14) CASE(15) CASE(16)

template <class Dot, int V>
SumBlock sum_block_of(int outputs) {
    static_assert(Dot::widest <= WIDEST_BLOCK);
#define DSSNET_CASE(N) \
    case N:            \
        return sum_block<Dot, (N <= Dot::widest ? N : 1), V>;
    switch (outputs) { DSSNET_FOR_OUTPUTS(DSSNET_CASE) }
#undef DSSNET_CASE
    return nullptr;
}

// Cells whose sums are taken together: one unit, or two where registers are that many.
template <class Dot>
constexpr int STRIP = Dot::vectors * LANES > UNIT ? Dot::vectors * LANES : UNIT;

// Sums of a block for `cells` cells from `cell` on: a strip of them or a unit.
template <class Dot>
inline void sum_cells(int outputs, const Window& window, int cell, int cells, const uint32_t* weights,
                      const int32_t* start, uint32_t* sums, ptrdiff_t stride) {
    constexpr int V = Dot::vectors, TOGETHER = V * LANES;
    if constexpr (TOGETHER > UNIT) {
        if (cells < TOGETHER) {
            return sum_block_of<Dot, UNIT / LANES>(outputs)(window, cell, weights, start, sums, stride);
        }
    }
    const SumBlock sum = sum_block_of<Dot, V>(outputs);
    for (int c = 0; c < cells; c += TOGETHER) sum(window, cell + c, weights, start, sums + c, stride);
}

// Steps through the panels of packed weights: `visit(first output, outputs, blocks' sizes, number of blocks, weights)`.
template <class Visit>
inline void for_panels(const Weights& weights, int first_panel, int last_panel, const Visit& visit) {
    const uint32_t* words = weights.words;
    const int* sizes = weights.block_sizes;
    for (int panel = 0, first = 0; panel < last_panel; ++panel) {
        const int blocks = weights.panel_blocks[panel];
        int outputs = 0;
        for (int block = 0; block < blocks; ++block) outputs += sizes[block];
        if (panel >= first_panel) visit(first, outputs, sizes, blocks, words);
        words += outputs * weights.words_per_output;
        sizes += blocks, first += outputs;
    }
}

template <class Dot, bool integers>
void convolve(const Window& window, const Weights& weights, int first_panel, int last_panel, int units,
              const Finish& finish) {
    constexpr int S = STRIP<Dot>;
    const Packing packing = packing_of(finish, units);
    for_panels(weights, first_panel, last_panel, [&](int first, int outputs, const int* sizes, int blocks, const uint32_t* panel) {
        alignas(64) uint32_t sums[WIDEST_PANEL * S];
        for (int cell = 0; cell < units * UNIT; cell += S) {
            const int cells = units * UNIT - cell < S ? UNIT : S;
            const uint32_t* words = panel;
            for (int block = 0, at = 0; block < blocks; at += sizes[block++]) {
                const int32_t* start = weights.start ? weights.start + first + at : nullptr;
                sum_cells<Dot>(sizes[block], window, cell, cells, words, start, sums + at * S, S);
                words += sizes[block] * weights.words_per_output;
            }
            finish_sums<integers>(sums, S, first, outputs, cell, cells, packing, finish);
        }
    });
}

// A block's largest of four windows: into `largest`, with `sums` for what is compared.
template <class Dot, bool integers>
inline void largest_of_four(int outputs, const Window* four, int cell, int cells, const uint32_t* weights,
                            const int32_t* start, uint32_t* largest, uint32_t* sums, ptrdiff_t stride) {
    using Sums = std::conditional_t<integers, Ints, Floats>;
    sum_cells<Dot>(outputs, four[0], cell, cells, weights, start, largest, stride);
    for (int corner = 1; corner < 4; ++corner) {
        sum_cells<Dot>(outputs, four[corner], cell, cells, weights, start, sums, stride);
        for (int n = 0; n < outputs; ++n) {
            for (int c = 0; c < cells; c += LANES) {
                const Sums one = load<Sums>(sums + n * stride + c), other = load<Sums>(largest + n * stride + c);
                store(largest + n * stride + c, one > other ? one : other);
            }
        }
    }
}

template <class Dot, bool integers>
void convolve_pooled(const Window& window, const Weights& weights, const Window* four, const Weights& pooled,
                     const float* pooled_scale, int units, const Finish& finish) {
    constexpr int S = STRIP<Dot>;
    const Packing packing = packing_of(finish, units);
    for_panels(weights, 0, weights.panel_count, [&](int first, int outputs, const int* sizes, int blocks, const uint32_t* panel) {
        const uint32_t* const pooled_panel = pooled.words + first * pooled.words_per_output;
        alignas(64) uint32_t sums[WIDEST_PANEL * S], largest[WIDEST_PANEL * S];
        for (int cell = 0; cell < units * UNIT; cell += S) {
            const int cells = units * UNIT - cell < S ? UNIT : S;
            const uint32_t *words = panel, *pooled_words = pooled_panel;
            for (int block = 0, at = 0; block < blocks; at += sizes[block++]) {
                const int32_t* start = weights.start ? weights.start + first + at : nullptr;
                const int32_t* pooled_start = pooled.start ? pooled.start + first + at : nullptr;
                largest_of_four<Dot, integers>(sizes[block], four, cell, cells, pooled_words, pooled_start,
                                               largest + at * S, sums + at * S, S);
                sum_cells<Dot>(sizes[block], window, cell, cells, words, start, sums + at * S, S);
                words += sizes[block] * weights.words_per_output;
                pooled_words += sizes[block] * pooled.words_per_output;
            }
            for (int n = 0; n < outputs; ++n) {
                for (int c = 0; c < cells; c += LANES) {
                    uint32_t* at = sums + n * S + c;
                    const uint32_t* larger = largest + n * S + c;
                    if constexpr (integers) {
                        const Floats one = __builtin_convertvector(load<Ints>(at), Floats) * finish.scale[first + n];
                        const Floats other = __builtin_convertvector(load<Ints>(larger), Floats);
                        store(at, one + other * pooled_scale[first + n]);
                    } else {
                        store(at, load<Floats>(at) + load<Floats>(larger));
                    }
                }
            }
            finish_sums<false>(sums, S, first, outputs, cell, cells, packing, finish);
        }
    });
}
