// 3x3 convolutions in Winograd's form (Lavin and Gray 2015): four rows of outputs at once by F(4, 3), and across by
// F(2, 3) for pairs of cells or by F(4, 3) for the four columns of a cell. Rows of B^T and A^T are those for the points
// 0, 1, -1, 2, -2 and infinity, and 0, 1, -1 and infinity.
//
// In float32, and from int8 exactly: inputs become whole numbers of 16 bits, and sums those of 32 bits that are a known
// multiple of the convolution's, whatever overflows on the way.

// One row of the parts at a time, for registers hold no more.
template <class Vector, class Store>
inline void input_transform4(const Vector* d, const Store& store) {
    store(0, multiply_add(d[0], 4, multiply_add(d[2], -5, d[4])));
    const Vector a = multiply_add(d[2], -4, d[4]), b = multiply_add(d[1], -4, d[3]);
    store(1, a + b), store(2, a - b);
    const Vector c = d[4] - d[2], e = d[3] - d[1];
    store(3, multiply_add(e, 2, c)), store(4, multiply_add(e, -2, c));
    store(5, multiply_add(d[1], 4, multiply_add(d[3], -5, d[5])));
}

template <class Vector>
inline void input_transform2(const Vector* d, Vector* r) {
    r[0] = d[0] - d[2], r[1] = d[1] + d[2], r[2] = d[2] - d[1], r[3] = d[1] - d[3];
}

// Weights of whole numbers are larger than they should be by 4, 6, 6, 24, 24 and 1: results by 24.
template <class Vector>
inline void output_transform4(const Vector* m, Vector* y) {
    constexpr bool integers = std::is_same_v<Vector, Words>;
    Vector even1 = m[1] + m[2], odd1 = m[1] - m[2];
    const Vector even2 = m[3] + m[4], odd2 = m[3] - m[4];
    if constexpr (integers) even1 = even1 * 4, odd1 = odd1 * 4;
    y[0] = (integers ? m[0] * 6 : m[0]) + even1 + even2;
    y[1] = multiply_add(odd2, 2, odd1);
    y[2] = multiply_add(even2, 4, even1);
    y[3] = multiply_add(odd2, 8, odd1) + (integers ? m[5] * 24 : m[5]);
}

// Likewise by 1, 2, 2 and 1: results by 2.
template <class Vector>
inline void output_transform2(const Vector* m, Vector* y) {
    constexpr bool integers = std::is_same_v<Vector, Words>;
    y[0] = (integers ? m[0] * 2 : m[0]) + m[1] + m[2];
    y[1] = m[1] - m[2] - (integers ? m[3] * 2 : m[3]);
}

// A multiple of 2^shift * odd, divided by it.
template <int shift, uint32_t inverse_of_odd>
inline Words divided(Words value) {
    return (Words)((Ints)value >> shift) * inverse_of_odd;
}

// What float32 words are multiplied as.
template <class DotOfFloats>
struct PartsF32 {
    using Dot = DotOfFloats;
    using Input = Floats;
    using Sums = Floats;
    static constexpr int words = 1;  // of a part, for each word of the map
    static Input input(Words word, int) { return (Input)word; }
    static Sums divided_pairs(Sums sum) { return sum; }
    static Sums divided_cells(Sums sum) { return sum; }
};

// Words of four bytes become two of channels 0 and 2, and 1 and 3.
template <class DotOfShorts>
struct PartsI8 {
    using Dot = DotOfShorts;
    using Input = Shorts;
    using Sums = Words;  // signed, but free to overflow
    static constexpr int words = 2;
    static Input input(Words word, int number) {
        return (Input)((number ? word >> 8 : word) & 0x00ff00ffu) - int16_t(128);
    }
    static Sums divided_pairs(Sums sum) { return divided<4, 0xaaaaaaabu>(sum); }  // 48 = 16 * 3
    static Sums divided_cells(Sums sum) { return divided<6, 0x38e38e39u>(sum); }  // 576 = 64 * 9
};

// Words of a part that are computed together: two vectors of the widest, so that weights are loaded half as often.
constexpr int PART_LANES = 2 * LANES > UNIT ? 2 * LANES : UNIT;

// N outputs of one part for V vectors: the inner loop of everything here.
template <class Dot, int N, int V>
void sum_part(const uint32_t* input, int words, const uint32_t* weights, uint32_t* sums) {
    typename Dot::Sum sum[N][V];
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) sum[n][v] = Dot::start(nullptr);
    }
    for (const uint32_t* end = input + words * PART_LANES; input < end; input += PART_LANES, weights += N) {
        typename Dot::Input value[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) value[v] = Dot::load(input + v * LANES);
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) sum[n][v] = Dot::dot(sum[n][v], value[v], weights + n);
        }
    }
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) Dot::store(sums + n * PART_LANES + v * LANES, sum[n][v]);
    }
}

using SumPart = void (*)(const uint32_t*, int, const uint32_t*, uint32_t*);

template <class Dot, int V>
SumPart sum_part_of(int outputs) {
    static_assert(Dot::widest_part <= WIDEST_BLOCK);
#define DSSNET_CASE(N) \
    case N:            \
        return sum_part<Dot, (N <= Dot::widest_part ? N : 1), V>;
    switch (outputs) { DSSNET_FOR_OUTPUTS(DSSNET_CASE) }
#undef DSSNET_CASE
    return nullptr;
}

// Two blocks of N outputs that follow each other, for one vector: alone they would wait for their own sums.
template <class Dot, int N>
void sum_two_blocks(const uint32_t* input, int words, const uint32_t* weights, uint32_t* sums) {
    typename Dot::Sum sum[2][N];
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) sum[0][n] = sum[1][n] = Dot::start(nullptr);
    const uint32_t *one = weights, *other = weights + N * words;
    for (const uint32_t* end = input + words * PART_LANES; input < end; input += PART_LANES, one += N, other += N) {
        const typename Dot::Input value = Dot::load(input);
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) sum[0][n] = Dot::dot(sum[0][n], value, one + n);
#pragma GCC unroll 16
        for (int n = 0; n < N; ++n) sum[1][n] = Dot::dot(sum[1][n], value, other + n);
    }
#pragma GCC unroll 16
    for (int n = 0; n < N; ++n) {
        Dot::store(sums + n * PART_LANES, sum[0][n]);
        Dot::store(sums + (N + n) * PART_LANES, sum[1][n]);
    }
}

template <class Dot>
SumPart sum_two_blocks_of(int outputs) {
    // As many sums as in a block for all vectors.
    constexpr int MOST = Dot::widest_part < 12 ? Dot::widest_part : 12;
#define DSSNET_CASE(N) \
    case N:            \
        return sum_two_blocks<Dot, (N <= MOST ? N : 1)>;
    if (outputs <= MOST) {
        switch (outputs) { DSSNET_FOR_OUTPUTS(DSSNET_CASE) }
    }
#undef DSSNET_CASE
    return nullptr;
}

// A panel's sums [part][output][PART_LANES] from parts [part][word][PART_LANES], of which `lanes` are wanted.
template <class Dot>
inline void sum_parts(int parts, const uint32_t* input, int words, int lanes, const int* sizes, int blocks, int outputs,
                      const uint32_t* weights, size_t part_weights, uint32_t* sums) {
    constexpr int V = Dot::vectors * LANES < PART_LANES ? Dot::vectors : PART_LANES / LANES;
    for (int part = 0; part < parts; ++part) {
        const uint32_t* from = input + size_t(part) * words * PART_LANES;
        const uint32_t* of_block = weights + part * part_weights;
        uint32_t* to = sums + part * outputs * PART_LANES;
        for (int block = 0; block < blocks; ++block) {
            const int size = sizes[block];
            if (lanes == LANES && block + 1 < blocks && sizes[block + 1] == size) {
                if (const SumPart two = sum_two_blocks_of<Dot>(size)) {
                    two(from, words, of_block, to);
                    of_block += 2 * size * words, to += 2 * size * PART_LANES;
                    ++block;
                    continue;
                }
            }
            int lane = 0;
            for (; lane + V * LANES <= lanes; lane += V * LANES) sum_part_of<Dot, V>(size)(from + lane, words, of_block, to + lane);
            for (; lane < lanes; lane += LANES) sum_part_of<Dot, 1>(size)(from + lane, words, of_block, to + lane);
            of_block += size * words, to += size * PART_LANES;
        }
    }
}

// --- pairs of cells ------------------------------------------------------------------------------

constexpr int PAIR_PARTS = 6 * 4, PAIR_CELLS = 2 * PART_LANES;

// Four neighbours of each pair of cells in a row, from the cell before the first; `both` vectors of the row, or the first.
template <bool both>
inline void neighbours(const uint32_t* row, Words* near) {
    const auto second = [](const uint32_t* at) { return both ? load<Words>(at + LANES) : Words{}; };
    near[0] = even_lanes(load<Words>(row - 1), second(row - 1));
    const Words one = load<Words>(row), other = second(row);
    near[1] = even_lanes(one, other), near[2] = odd_lanes(one, other);
    near[3] = odd_lanes(load<Words>(row + 1), second(row + 1));
}

template <class Parts, bool both>
inline void transform_pair_lanes(const uint32_t* const* lines, ptrdiff_t at, uint32_t* to, ptrdiff_t part) {
    using Input = typename Parts::Input;
    Input across[Parts::words][4][6];
    for (int row = 0; row < 6; ++row) {
        Words near[4];
        neighbours<both>(lines[row] + at, near);
        for (int number = 0; number < Parts::words; ++number) {
            Input d[4], r[4];
            for (int i = 0; i < 4; ++i) d[i] = Parts::input(near[i], number);
            input_transform2(d, r);
            for (int i = 0; i < 4; ++i) across[number][i][row] = r[i];
        }
    }
    for (int number = 0; number < Parts::words; ++number, to += PART_LANES) {
        for (int column = 0; column < 4; ++column) {
            input_transform4(across[number][column],
                             [&](int row, Input value) { store(to + (column * 6 + row) * part, value); });
        }
    }
}

// Parts of `cells` cells, whole units, from six rows of a map.
template <class Parts>
void transform_pairs(const uint32_t* const* lines, ptrdiff_t stride, int groups, int cells, uint32_t* parts) {
    const ptrdiff_t part = ptrdiff_t(groups) * Parts::words * PART_LANES;
    // Pointers of their own need not be loaded again after each store.
    const uint32_t* const six[] = {lines[0], lines[1], lines[2], lines[3], lines[4], lines[5]};
    for (int group = 0; group < groups; ++group) {
        uint32_t* to = parts + group * Parts::words * PART_LANES;
        for (int cell = 0; cell < cells; cell += 2 * LANES) {
            const ptrdiff_t at = group * stride + cell;
            // Beyond the last unit there is nothing that may be read.
            if (cell + LANES < cells) transform_pair_lanes<Parts, true>(six, at, to + cell / 2, part);
            else transform_pair_lanes<Parts, false>(six, at, to + cell / 2, part);
        }
    }
}

// Columns of parts, of six rows each `part` words apart, become columns of four rows.
template <class Sums, int columns>
inline void columns_of_results(const uint32_t* sums, int part, Sums (&down)[columns][4]) {
    for (int column = 0; column < columns; ++column) {
        Sums m[6];
        for (int row = 0; row < 6; ++row) m[row] = load<Sums>(sums + (column * 6 + row) * part);
        output_transform4(m, down[column]);
    }
}

// Results [row][output][PAIR_CELLS] from the sums of all parts.
template <class Parts>
void results_of_pairs(const uint32_t* sums, int outputs, int lanes, uint32_t* results) {
    using Sums = typename Parts::Sums;
    const int part = outputs * PART_LANES;
    for (int output = 0; output < outputs; ++output) {
        for (int lane = 0; lane < lanes; lane += LANES) {
            Sums down[4][4];  // [column of the transform][row]
            columns_of_results(sums + output * PART_LANES + lane, part, down);
            for (int row = 0; row < 4; ++row) {
                Sums m[4], y[2];
                for (int column = 0; column < 4; ++column) m[column] = down[column][row];
                output_transform2(m, y);
                for (int i = 0; i < 2; ++i) y[i] = Parts::divided_pairs(y[i]);
                uint32_t* to = results + (row * outputs + output) * PAIR_CELLS + 2 * lane;
                store(to, first_of_pairs(y[0], y[1]));
                store(to + LANES, second_of_pairs(y[0], y[1]));
            }
        }
    }
}

template <class Parts, bool integers>
void winograd_pairs(const uint32_t* const* lines, ptrdiff_t stride, int groups, const Weights& weights, int units,
                    uint32_t* scratch, const Finish* rows, int row_count) {
    const int words = groups * Parts::words;
    uint32_t* const sums = scratch + PAIR_PARTS * words * PART_LANES;
    uint32_t* const results = sums + PAIR_PARTS * WINOGRAD_PANEL * PART_LANES;
    Packing packings[4];
    for (int row = 0; row < row_count; ++row) packings[row] = packing_of(rows[row], units);
    for (int cell = 0; cell < units * UNIT; cell += PAIR_CELLS) {
        const int cells = units * UNIT - cell < PAIR_CELLS ? units * UNIT - cell : PAIR_CELLS;
        const int lanes = (cells / 2 + LANES - 1) / LANES * LANES;
        const uint32_t* from[6];
        for (int row = 0; row < 6; ++row) from[row] = lines[row] + cell;
        transform_pairs<Parts>(from, stride, groups, cells, scratch);
        for_panels(weights, 0, weights.panel_count, [&](int first, int outputs, const int* sizes, int blocks, const uint32_t* panel) {
            sum_parts<typename Parts::Dot>(PAIR_PARTS, scratch, words, lanes, sizes, blocks, outputs, panel,
                                           size_t(outputs) * words, sums);
            results_of_pairs<Parts>(sums, outputs, lanes, results);
            for (int row = 0; row < row_count; ++row) {
                finish_sums<integers>(results + row * outputs * PAIR_CELLS, PAIR_CELLS, first, outputs, cell, cells,
                                      packings[row], rows[row]);
            }
        });
    }
}

// --- the four columns of a cell ------------------------------------------------------------------

constexpr int CELL_PARTS = 6 * 6;

template <class Parts>
void transform_cells(const uint32_t* const* lines, const ptrdiff_t* columns, ptrdiff_t stride, int groups, int cells,
                     uint32_t* parts) {
    const ptrdiff_t part = ptrdiff_t(groups) * Parts::words * PART_LANES;
    const uint32_t* const six[] = {lines[0], lines[1], lines[2], lines[3], lines[4], lines[5]};
    const ptrdiff_t around[] = {columns[0], columns[1], columns[2], columns[3], columns[4], columns[5]};
    for (int group = 0; group < groups; ++group) {
        for (int number = 0; number < Parts::words; ++number) {
            for (int lane = 0; lane < cells; lane += LANES) {
                using Input = typename Parts::Input;
                Input down[6][6];  // [row of the transform][column]
                for (int column = 0; column < 6; ++column) {
                    Input d[6];
                    for (int row = 0; row < 6; ++row) {
                        d[row] = Parts::input(load<Words>(six[row] + around[column] + group * stride + lane), number);
                    }
                    input_transform4(d, [&](int row, Input value) { down[row][column] = value; });
                }
                uint32_t* to = parts + (group * Parts::words + number) * PART_LANES + lane;
                for (int row = 0; row < 6; ++row) {
                    input_transform4(down[row], [&](int column, Input value) {
                        store(to + (column * 6 + row) * part, value);
                    });
                }
            }
        }
    }
}

// Results [row][column][output][PART_LANES] from the sums of all parts.
template <class Parts>
void results_of_cells(const uint32_t* sums, int outputs, int cells, uint32_t* results) {
    using Sums = typename Parts::Sums;
    const int part = outputs * PART_LANES;
    for (int output = 0; output < outputs; ++output) {
        for (int lane = 0; lane < cells; lane += LANES) {
            const int at = output * PART_LANES + lane;
            Sums down[6][4];  // [column of the transform][row]
            columns_of_results(sums + at, part, down);
            for (int row = 0; row < 4; ++row) {
                Sums m[6], y[4];
                for (int column = 0; column < 6; ++column) m[column] = down[column][row];
                output_transform4(m, y);
                for (int i = 0; i < 4; ++i) store(results + (4 * row + i) * part + at, Parts::divided_cells(y[i]));
            }
        }
    }
}

template <class Parts, bool integers>
void winograd_cells(const uint32_t* const* lines, const ptrdiff_t* columns, ptrdiff_t stride, int groups,
                    const Weights& weights, int units, uint32_t* scratch, const Finish* pixels, int row_count) {
    const int words = groups * Parts::words;
    uint32_t* const sums = scratch + CELL_PARTS * words * PART_LANES;
    uint32_t* const results = sums + CELL_PARTS * WINOGRAD_PANEL * PART_LANES;
    Packing packings[16];
    for (int pixel = 0; pixel < 4 * row_count; ++pixel) packings[pixel] = packing_of(pixels[pixel], units);
    for (int cell = 0; cell < units * UNIT; cell += PART_LANES) {
        const int cells = units * UNIT - cell < PART_LANES ? units * UNIT - cell : PART_LANES;
        const uint32_t* from[6];
        for (int row = 0; row < 6; ++row) from[row] = lines[row] + cell;
        transform_cells<Parts>(from, columns, stride, groups, cells, scratch);
        for_panels(weights, 0, weights.panel_count, [&](int first, int outputs, const int* sizes, int blocks, const uint32_t* panel) {
            sum_parts<typename Parts::Dot>(CELL_PARTS, scratch, words, cells, sizes, blocks, outputs, panel,
                                           size_t(outputs) * words, sums);
            results_of_cells<Parts>(sums, outputs, cells, results);
            for (int pixel = 0; pixel < 4 * row_count; ++pixel) {
                finish_sums<integers>(results + pixel * outputs * PART_LANES, PART_LANES, first, outputs, cell, cells,
                                      packings[pixel], pixels[pixel]);
            }
        });
    }
}
