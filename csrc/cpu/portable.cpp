// Any processor: vectors of four floats, which GCC and Clang compile for whatever there is.
#include "instruction_sets.h"
#include "kernels.h"

namespace {

constexpr int LANES = 4;

typedef float Floats4 __attribute__((vector_size(16)));
typedef int32_t Ints4 __attribute__((vector_size(16)));
typedef uint32_t Words4 __attribute__((vector_size(16)));

using NativeFloats = Floats4;
Floats4 fused(Floats4 a, float b, Floats4 c) { return a * b + c; }

template <class Vector>
Vector load_as(const uint32_t* words) {
    Vector value;
    __builtin_memcpy(&value, words, sizeof value);
    return value;
}

template <class Vector>
void store_as(uint32_t* words, Vector value) {
    __builtin_memcpy(words, &value, sizeof value);
}

float float_of(uint32_t bits) {
    float value;
    __builtin_memcpy(&value, &bits, 4);
    return value;
}

struct DotF32 {
    using Sum = Floats4;
    using Input = Floats4;
    static constexpr int vectors = 2, widest = 4, widest_part = 4, weight_words = 1;
    static Sum start(const int32_t*) { return Floats4{}; }
    static Input load(const uint32_t* words) { return load_as<Floats4>(words); }
    static Sum dot(Sum sum, Input input, const uint32_t* weight) { return sum + input * float_of(*weight); }
    static void store(uint32_t* words, Sum sum) { store_as(words, sum); }
};

using DotBF16 = void;

struct DotI8 {
    using Sum = Ints4;
    using Input = Words4;
    static constexpr int vectors = 2, widest = 4, weight_words = 1;
    static Sum start(const int32_t* value) { return value ? Ints4{} + *value : Ints4{}; }
    static Input load(const uint32_t* words) { return load_as<Words4>(words); }
    static Sum dot(Sum sum, Input input, const uint32_t* weight) {
        for (int shift = 0; shift < 32; shift += 8) {
            sum += Ints4(input >> shift & 0xffu) * int32_t(int8_t(*weight >> shift & 0xff));
        }
        return sum;
    }
    static void store(uint32_t* words, Sum sum) { store_as(words, sum); }
};

// Integers are multiplied so slowly that nothing is gained.
using DotI16 = void;

}  // namespace

#include "kernels.inl"

namespace dssnet::cpu {

constexpr Kernels portable_kernels = make_table("portable", "any processor", false, {}, {});

}  // namespace dssnet::cpu
