// Vectors of cells as wide as the instruction set's registers: LANES floats or 32-bit words. Compilers make of them what
// there is; wider ones they would keep in memory.

typedef float Floats __attribute__((vector_size(4 * LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef int16_t Shorts __attribute__((vector_size(4 * LANES)));

static_assert(UNIT % LANES == 0 && PAD % LANES == 0);

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

// The first `count` lanes as they are, the others as in `rest`.
template <class Vector>
inline Vector only_first(int count, Vector value, Vector rest) {
    if (count >= LANES) return value;
    Ints lane;
    for (int i = 0; i < LANES; ++i) lane[i] = i;
    return lane < Ints{} + count ? value : rest;
}

// a * b + c, rounded once where there are instructions for that; of whole numbers, exact. Templates, for some compilers
// take vectors of the same size for each other.
template <class Vector>
inline Vector multiply_add(Vector a, int b, Vector c) {
    if constexpr (std::is_same_v<Vector, Floats>) return (Floats)fused((NativeFloats)a, float(b), (NativeFloats)c);
    else if constexpr (std::is_same_v<Vector, Shorts>) return a * int16_t(b) + c;
    else return a * uint32_t(b) + c;
}

// --- every second lane ---------------------------------------------------------------------------

// Shuffles stay within 128 bits, where they are cheap: `even_lanes` and `odd_lanes` of two vectors that follow each other
// give lanes in an order of their own, from which `first_of_pairs` and `second_of_pairs` make the natural order again.
// Steps of 2 take two lanes of each vector, steps of 1 take them by turns from both.
template <int first, int step>
constexpr int source_lane(int lane) {
    const int block = lane / 4 * 4 + first, place = lane % 4;
    return step == 2 ? block + place % 2 * 2 + (place >= 2 ? LANES : 0) : block + place / 2 + (place % 2 ? LANES : 0);
}

// As floats, for which there are shuffles of two vectors.
template <int first, int step, size_t... lane>
inline Floats shuffled(Floats one, Floats other, std::index_sequence<lane...>) {
#if defined(__clang__)
    return __builtin_shufflevector(one, other, source_lane<first, step>(lane)...);
#else
    return __builtin_shuffle(one, other, Ints{source_lane<first, step>(lane)...});
#endif
}

template <int first, int step, class Vector>
inline Vector shuffle(Vector one, Vector other) {
    return (Vector)shuffled<first, step>((Floats)one, (Floats)other, std::make_index_sequence<LANES>());
}

template <class Vector>
inline Vector even_lanes(Vector one, Vector other) {
    return shuffle<0, 2>(one, other);
}
template <class Vector>
inline Vector odd_lanes(Vector one, Vector other) {
    return shuffle<1, 2>(one, other);
}
template <class Vector>
inline Vector first_of_pairs(Vector even, Vector odd) {
    return shuffle<0, 1>(even, odd);
}
template <class Vector>
inline Vector second_of_pairs(Vector even, Vector odd) {
    return shuffle<2, 1>(even, odd);
}
