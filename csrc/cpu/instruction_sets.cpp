#include "instruction_sets.h"

#include <stdexcept>

#include "self_check.h"

#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace dssnet::cpu {
namespace {

#if defined(__x86_64__)
bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}

bool has_vnni() { return has_avx512() && __builtin_cpu_supports("avx512vnni"); }

// Leaf 7 of CPUID; what compilers' own tests know differs from version to version.
bool leaf7(unsigned subleaf, int output, int bit) {
    unsigned registers[4] = {};
    if (!__get_cpuid_count(7, subleaf, &registers[0], &registers[1], &registers[2], &registers[3])) return false;
    return registers[output] >> bit & 1;
}

[[maybe_unused]] bool has_avx_vnni() { return has_avx2() && leaf7(1, 0, 4); }
[[maybe_unused]] bool has_bf16() { return has_vnni() && leaf7(1, 0, 5); }

#if defined(DSSNET_FAST_AMX)
// The kernel gives the tile registers' memory to processes that ask for it.
bool has_amx() {
#if defined(DSSNET_FAST_EMULATE_TILES)
    return has_bf16();
#endif
    constexpr int EDX = 3, REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
    if (!has_bf16() || !leaf7(0, EDX, 22) || !leaf7(0, EDX, 24) || !leaf7(0, EDX, 25)) return false;
    return syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
}
#endif
#endif

#if defined(__aarch64__)
// Bits of the kernel's, whose names are not in every header.
bool has_dot() { return getauxval(AT_HWCAP) >> 20 & 1; }
[[maybe_unused]] bool has_neon_bf16() { return has_dot() && getauxval(AT_HWCAP2) >> 14 & 1; }
#endif

// Intel's cores start a vdpbf16ps every other cycle only: half the products of float32's instructions, a quarter of what
// Winograd's form needs. Their tiles are fast.
bool has_fast_bf16(const Kernels& kernels) {
    if (!kernels.convolve[int(Type::bf16)]) return false;
#if defined(__x86_64__)
    return kernels.tiles_from[int(Type::bf16)] || !__builtin_cpu_is("intel");
#else
    return true;
#endif
}

}  // namespace

const std::vector<InstructionSet>& instruction_sets() {
    static const std::vector<InstructionSet> found = [] {
        std::vector<InstructionSet> sets = {{&portable_kernels, true, "", false}};
        const SelfCheck check(portable_kernels);
        [[maybe_unused]] const auto add = [&](const Kernels& kernels, bool has) {
            const std::string problem = has ? check.problem(kernels) : "";
            sets.push_back({&kernels, has && problem.empty(), problem, has_fast_bf16(kernels)});
        };
#if defined(DSSNET_FAST_AVX2)
        add(avx2_kernels, has_avx2());
#endif
#if defined(DSSNET_FAST_AVX_VNNI)
        add(avx_vnni_kernels, has_avx_vnni());
#endif
#if defined(DSSNET_FAST_AVX512)
        add(avx512_kernels, has_avx512());
#endif
#if defined(DSSNET_FAST_AVX512_VNNI)
        add(avx512_vnni_kernels, has_vnni());
#endif
#if defined(DSSNET_FAST_AVX512_BF16)
        add(avx512_bf16_kernels, has_bf16());
#endif
#if defined(DSSNET_FAST_AMX)
        add(amx_kernels, has_amx());
#endif
#if defined(DSSNET_FAST_NEON)
        add(neon_kernels, true);
#endif
#if defined(DSSNET_FAST_NEON_DOT)
        add(neon_dot_kernels, has_dot());
#endif
#if defined(DSSNET_FAST_NEON_BF16)
        add(neon_bf16_kernels, has_neon_bf16());
#endif
        return sets;
    }();
    return found;
}

const Kernels& choose_kernels(const std::string& name) {
    const std::vector<InstructionSet>& sets = instruction_sets();
    std::string able;
    for (auto set = sets.rbegin(); set != sets.rend(); ++set) {
        if (!set->runs_here) {
            if (name == set->kernels->name) {
                throw std::invalid_argument("instruction set " + name +
                                            (set->problem.empty() ? std::string(" needs ") + set->kernels->needs +
                                                                        ", which this processor lacks"
                                                                  : " gives wrong results here: " + set->problem));
            }
            continue;
        }
        if (name.empty() || name == set->kernels->name) return *set->kernels;
        able += (able.empty() ? "" : ", ") + std::string(set->kernels->name);
    }
    throw std::invalid_argument("instruction set " + name + " is not in this build; here run: " + able);
}

}  // namespace dssnet::cpu
