// int8 by dot products of bytes, and of 16 bits. Included into an unnamed namespace after avx2_vectors.h or
// avx512_vectors.h; before it there are `dot_bytes`, `dot_shorts`, and WIDEST, how many outputs' sums fit into registers.

struct DotI8 {
    using Sum = Whole;
    using Input = Whole;
    static constexpr int vectors = 2, widest = WIDEST, widest_part = WIDEST, weight_words = 1;
    static Sum start(const int32_t* value) { return start_from(value); }
    static Input load(const uint32_t* words) { return load_words(words); }
    static Sum dot(Sum sum, Input input, const uint32_t* weight) { return dot_bytes(sum, input, broadcast(weight)); }
    static void store(uint32_t* words, Sum sum) { store_words(words, sum); }
};

struct DotI16 : DotI8 {
    static Sum dot(Sum sum, Input input, const uint32_t* weight) { return dot_shorts(sum, input, broadcast(weight)); }
};
