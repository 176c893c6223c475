// int8 without dot products of bytes. Included into an unnamed namespace after avx2_vectors.h or avx512_vectors.h; before it
// WIDEST_BYTES and WIDEST_SHORTS say how many outputs' sums fit into registers.

struct DotI16 {
    using Sum = Whole;
    using Input = Whole;
    static constexpr int vectors = 2, widest_part = WIDEST_SHORTS;
    static Sum start(const int32_t* value) { return start_from(value); }
    static Input load(const uint32_t* words) { return load_words(words); }
    static Sum dot(Sum sum, Input input, const uint32_t* weight) { return add_products(sum, input, broadcast(weight)); }
    static void store(uint32_t* words, Sum sum) { store_words(words, sum); }
};

// Products of bytes do not fit into the 16 bits of vpmaddubsw, so channels 0 and 2, and 1 and 3 are widened to 16 bits;
// weights are there in that form.
struct DotI8 {
    using Sum = Whole;
    struct Input {
        Whole even, odd;
    };
    static constexpr int vectors = 2, widest = WIDEST_BYTES, weight_words = 2;
    static Sum start(const int32_t* value) { return start_from(value); }
    static Input load(const uint32_t* words) {
        const Whole bytes = load_words(words);
        return {even_bytes(bytes), odd_bytes(bytes)};
    }
    static Sum dot(Sum sum, Input input, const uint32_t* weight) {
        return DotI16::dot(DotI16::dot(sum, input.even, weight), input.odd, weight + 1);
    }
    static void store(uint32_t* words, Sum sum) { store_words(words, sum); }
};
