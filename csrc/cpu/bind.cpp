// The CPU's network for Python: raw addresses in, nothing kept of them.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <chrono>
#include <optional>

#include "../bind.h"
#include "instruction_sets.h"
#include "network.h"

namespace py = pybind11;

namespace dssnet {
namespace {

using namespace dssnet::cpu;
using Values = py::array_t<float, py::array::c_style>;

Type type_of(const std::string& name) {
    if (name == "fp32") return Type::f32;
    if (name == "bf16") return Type::bf16;
    if (name == "int8") return Type::i8;
    if (name == "wide_bf16") return Type::wide_bf16;
    throw py::value_error("type must be fp32, bf16, int8 or wide_bf16, got " + name);
}

Stage stage_of(const std::string& name) {
    const std::pair<const char*, Stage> stages[] = {{"all", Stage::all},
                                                    {"downsample", Stage::downsample},
                                                    {"extract", Stage::extract},
                                                    {"fuse", Stage::fuse},
                                                    {"segment", Stage::segment},
                                                    {"edges", Stage::edges}};
    for (const auto& [known, stage] : stages) {
        if (name == known) return stage;
    }
    throw py::value_error("stage must be all, downsample, extract, fuse, segment or edges, got " + name);
}

AnswerKind kind_of(const std::string& name) {
    if (name == "labels") return AnswerKind::labels;
    if (name == "probabilities") return AnswerKind::probabilities;
    if (name == "logits") return AnswerKind::logits;
    if (name == "decision") return AnswerKind::decision;
    throw py::value_error("output must be labels, probabilities, logits or decision, got " + name);
}

// (weight [lines, taps, inputs, outputs], bias [outputs], type, step)
using Given = std::tuple<Values, Values, std::string, float>;

std::unique_ptr<Network> make_network(const std::string& instruction_set, const py::dict& sizes,
                                      const std::map<std::string, Given>& convolutions,
                                      const std::vector<std::vector<std::pair<std::vector<std::string>, float>>>& blocks,
                                      const std::map<std::string, float>& slopes, bool winograd) {
    Operands operands;
    const auto size = [&](const char* name) { return sizes[name].cast<int>(); };
    operands.sizes.in_channels = size("in_channels"), operands.sizes.classes = size("classes");
    operands.sizes.width = size("width"), operands.sizes.features = size("features");
    operands.sizes.fused = size("fused"), operands.sizes.y = size("y"), operands.sizes.narrow = size("narrow");
    operands.sizes.learned_upsampling = sizes["learned_upsampling"].cast<bool>();
    operands.sizes.edges = sizes["edges"].cast<bool>();
    operands.slopes = slopes;
    operands.winograd = winograd;
    for (const auto& [name, given] : convolutions) {
        const auto& [weight, bias, type, step] = given;
        if (weight.ndim() != 4 || bias.ndim() != 1 || bias.shape(0) != weight.shape(3)) {
            throw py::value_error(name + ": weights must be [lines, taps, inputs, outputs], with a bias for each output");
        }
        Operand operand;
        operand.name = name;
        operand.lines = int(weight.shape(0)), operand.taps = int(weight.shape(1));
        operand.inputs = int(weight.shape(2)), operand.outputs = int(weight.shape(3));
        operand.weight = weight.data(), operand.bias = bias.data();
        operands.convolutions[name] = operand;
        operands.inputs[name] = {type_of(type), step};
    }
    for (const auto& block : blocks) {
        BlockNames names;
        for (const auto& [parts, slope] : block) names.push_back({parts, slope});
        operands.blocks.push_back(names);
    }
    const Kernels& kernels = choose_kernels(instruction_set);
    const py::gil_scoped_release release;
    return std::make_unique<Network>(kernels, operands);
}

// The pixels (top, left, bottom, right) whose answer is wanted.
using Core = std::optional<std::array<int, 4>>;

Run run_of(int batch, int height, int width, const Core& core) {
    if (batch < 0 || height < 0 || width < 0 || height % PHASES || width % PHASES) {
        throw py::value_error("images must have sides that are multiples of 8");
    }
    Run run;
    run.batch = batch, run.height = height, run.width = width;
    if (!core) return run;
    const auto [top, left, bottom, right] = *core;
    const auto fits = [](int first, int last, int end) {
        return first % PHASES == 0 && last % PHASES == 0 && 0 <= first && first <= last && last <= end;
    };
    if (!fits(top, bottom, height) || !fits(left, right, width)) {
        throw py::value_error("the core must lie in the image, with edges that are multiples of 8");
    }
    run.has_core = true;
    run.core_rows = {top / PHASES, bottom / PHASES}, run.core_columns = {left / PHASES, right / PHASES};
    return run;
}

void check_edges(const Network& network, const Run& run) {
    if (run.makes_edges() && !network.sizes().edges) throw py::value_error("the network has no edge head");
}

void run_network(const Network& network, const std::string& stage, int batch, int height, int width,
                 const std::map<std::string, uintptr_t>& addresses, const std::string& output, int threads,
                 const Core& core) {
    Run run = run_of(batch, height, width, core);
    run.stage = stage_of(stage);
    run.wants_answer = !output.empty(), run.wants_edges = addresses.count("edges") > 0;
    if (run.wants_answer) run.kind = kind_of(output);
    check_edges(network, run);
    if (core && run.stage != Stage::all) throw py::value_error("a core is for all stages together");
    const auto take = [&](const char* name, auto& pointer) {
        const auto found = addresses.find(name);
        using Pointer = std::decay_t<decltype(pointer)>;
        if (found != addresses.end()) pointer = reinterpret_cast<Pointer>(found->second);
    };
    take("bytes", run.bytes), take("floats", run.floats);
    take("x0_in", run.x0_in), take("shallow_in", run.shallow_in), take("deep_in", run.deep_in), take("y_in", run.y_in);
    take("x0", run.x0), take("shallow", run.shallow), take("deep", run.deep), take("y", run.y);
    take("seconds", run.seconds);
    take("labels", run.labels), take("values", run.values), take("edges", run.edges);
    const py::gil_scoped_release release;
    network.run(run, threads);
}

// Multiply-accumulates a second of the instructions that multiply a type, on so many threads; 0 where none are known.
double measure_peak(const std::string& instruction_set, const std::string& type, int threads, double seconds) {
    const Rate rate = choose_kernels(instruction_set).rates[int(type_of(type))];
    if (!rate.repeat) return 0;
    constexpr long ROUNDS = 2000;
    std::vector<double> rates(std::max(threads, 1));
    const py::gil_scoped_release release;
    run_together(threads, [](int) {}, [&](const Member& member) {
        using Clock = std::chrono::steady_clock;
        const auto begin = Clock::now();
        double passed = 0, rounds = 0;
        for (; passed < seconds; rounds += ROUNDS) {
            rate.repeat(ROUNDS);
            passed = std::chrono::duration<double>(Clock::now() - begin).count();
        }
        rates[member.rank] = rounds * rate.products / passed;
    });
    double sum = 0;
    for (double rate : rates) sum += rate;
    return sum;
}

// By the names that `type_of` knows, without those of which there are none.
std::map<std::string, double> by_name(const Macs& macs) {
    std::map<std::string, double> found;
    for (const char* name : {"fp32", "bf16", "int8", "wide_bf16"}) {
        const double count = macs.of_type[int(type_of(name))];
        if (count > 0) found[name] = count;
    }
    return found;
}

}  // namespace

void bind_cpu(py::module_& m) {
    m.def(
        "cpu_instruction_sets",
        [] {
            std::vector<py::dict> found;
            for (const InstructionSet& set : instruction_sets()) {
                using py::literals::operator""_a;
                found.push_back(py::dict("name"_a = set.kernels->name, "needs"_a = set.kernels->needs,
                                         "runs_here"_a = set.runs_here, "fast_bf16"_a = set.fast_bf16,
                                         "fast_int8"_a = set.kernels->fast_i8, "problem"_a = set.problem));
            }
            return found;
        },
        "Instruction sets that this build has kernels for, slowest first.");

    m.def("cpu_peak", &measure_peak, py::kw_only(), py::arg("instruction_set"), py::arg("type"), py::arg("threads"),
          py::arg("seconds"),
          "Multiply-accumulates a second that the instructions for a type reach on registers, on so many threads; 0 where "
          "none are known.");

    m.def(
        "cpu_peak_instructions",
        [](const std::string& instruction_set, const std::string& type) {
            const char* found = choose_kernels(instruction_set).rates[int(type_of(type))].instructions;
            return std::string(found ? found : "");
        },
        py::kw_only(), py::arg("instruction_set"), py::arg("type"), "What `cpu_peak` measures; nothing where it gives 0.");

    py::class_<Network>(m, "CpuNetwork", "A network with its weights packed for an instruction set.")
        .def(py::init(&make_network), py::kw_only(), py::arg("instruction_set"), py::arg("sizes"), py::arg("convolutions"),
             py::arg("blocks"), py::arg("slopes"), py::arg("winograd"))
        .def("run", &run_network, py::kw_only(), py::arg("stage"), py::arg("batch"), py::arg("height"), py::arg("width"),
             py::arg("addresses"), py::arg("output"), py::arg("threads"), py::arg("core") = py::none(),
             "Fills what `addresses` names. `output`: nothing where only edges are wanted. `core`: only these pixels, "
             "(top, left, bottom, right), of all stages' answer.")
        .def(
            "macs",
            [](const Network& network, int height, int width) {
                std::vector<std::map<std::string, double>> stages;
                for (const Macs& macs : network.macs(height, width)) stages.push_back(by_name(macs));
                return stages;
            },
            py::arg("height"), py::arg("width"),
            "Multiply-accumulates for an image, by type: downsample, extract, and the two other stages together.")
        .def(
            "workspace_bytes",
            [](const Network& network, int height, int width, int threads, const Core& core, bool edges) {
                Run run = run_of(0, height, width, core);
                run.wants_edges = edges;
                check_edges(network, run);
                return network.workspace_bytes(run, threads);
            },
            py::arg("height"), py::arg("width"), py::arg("threads"), py::arg("core") = py::none(), py::arg("edges") = false);
}

}  // namespace dssnet
