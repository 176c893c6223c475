// The kernels of one instruction set. A file that includes this defines, in its own unnamed namespace,
//
//   constexpr int LANES;                                       // 32-bit lanes of its vectors; divides UNIT
//   using NativeFloats;                                        // a vector of floats
//   NativeFloats fused(NativeFloats a, float b, NativeFloats c);  // a * b + c
//   struct DotF32, DotBF16, DotI8, DotI16 {
//       using Sum, Input;                                      // vectors of LANES cells
//       static constexpr int vectors, widest;                  // so many vectors and outputs, whose sums fit into registers
//       static constexpr int weight_words;                     // for each word of channels
//       static Sum start(const int32_t* value);                // sums that start from a value, or from 0 if null
//       static Input load(const uint32_t*);
//       static Sum dot(Sum, Input, const uint32_t* weights);   // adds the word's channels times those weights
//       static void store(uint32_t*, Sum);
//   };
//
// Those that multiply parts of Winograd's form, DotF32 and DotI16, have `widest_part`, the outputs of a block there; DotI16
// needs neither `widest` nor `weight_words`. DotBF16 is void where the processor has no instructions for bfloat16, for which
// float32 stands in then; so is DotI16, of two channels of 16 bits a word, where int8 gains nothing by Winograd's form.
//
// Nothing here may be shared between files that are compiled for different processors, hence the unnamed namespace and no
// standard containers.

#include <math.h>

#include <type_traits>
#include <utility>

namespace {

using namespace dssnet::cpu;

#include "vectors.inl"
#include "finish.inl"
#include "sums.inl"
#include "winograd.inl"
#include "maps.inl"
#include "answers.inl"

// Kernels for inputs of a type, multiplied as Dot tells; none where it is void.
template <class Dot, bool integers>
constexpr void add_convolutions(Kernels& table, Type type) {
    if constexpr (!std::is_void_v<Dot>) {
        table.widest_block[int(type)] = Dot::widest;
        table.weight_words[int(type)] = Dot::weight_words;
        table.convolve[int(type)] = convolve<Dot, integers>;
        table.convolve_pooled[int(type)] = convolve_pooled<Dot, integers>;
    }
}

template <class Dot, template <class> class Parts, bool integers>
constexpr void add_winograd(Kernels& table, Type type) {
    if constexpr (!std::is_void_v<Dot>) {
        table.widest_part[int(type)] = Dot::widest_part;
        table.winograd_pairs[int(type)] = winograd_pairs<Parts<Dot>, integers>;
        table.winograd_cells[int(type)] = winograd_cells<Parts<Dot>, integers>;
    }
}

// `f32`, `i8` and `bf16`: rates of what multiplies them.
constexpr Kernels make_table(const char* name, const char* needs, bool fast_i8, Rate f32, Rate i8, Rate bf16 = {}) {
    Kernels table = {};
    table.name = name, table.needs = needs;
    table.part_lanes = PART_LANES;
    table.fast_i8 = fast_i8;
    for (const Type type : {Type::f32, Type::wide_bf16}) {
        add_convolutions<DotF32, false>(table, type);
        add_winograd<DotF32, PartsF32, false>(table, type);
    }
    add_convolutions<DotBF16, false>(table, Type::bf16);
    add_convolutions<DotI8, true>(table, Type::i8);
    add_winograd<DotI16, PartsI8, true>(table, Type::i8);
    table.rates[int(Type::f32)] = table.rates[int(Type::wide_bf16)] = f32;
    table.rates[int(Type::bf16)] = bf16, table.rates[int(Type::i8)] = i8;
    table.finish = finish;
    table.image_u8 = image_u8, table.image_f32 = image_f32;
    table.pool = pool;
    table.factors = factors, table.combine = combine;
    table.labels = labels, table.values = values, table.decide = decide;
    return table;
}

}  // namespace
