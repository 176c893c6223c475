// The planner and the packing of weights for Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../bind.h"
#include "planner.h"

namespace py = pybind11;

namespace dssnet {
namespace {

template <class Value>
Value choose(const char* what, const std::string& name, std::initializer_list<std::pair<const char*, Value>> choices) {
    std::string known;
    for (const auto& [known_name, value] : choices) {
        if (name == known_name) return value;
        known += (known.empty() ? "" : ", ") + std::string(known_name);
    }
    throw py::value_error(std::string(what) + " must be one of " + known + ", got " + name);
}

Precision precision_of(const std::string& name) {
    return choose<Precision>("precision", name, {{"fp16", Precision::fp16}, {"bf16", Precision::bf16}});
}

using Values = py::array_t<float, py::array::c_style>;

py::bytes pack_operands(const Network& network, const std::string& precision, const std::map<std::string, Values>& given) {
    const WeightLayout layout(network);
    const auto values = [&](const Operand& operand) -> const float* {
        const auto found = given.find(operand.name);
        if (found == given.end()) return nullptr;
        const Values& array = found->second;
        if (array.ndim() != 2 || array.shape(0) != operand.k || array.shape(1) != operand.n) {
            throw py::value_error("operand " + operand.name + " must have shape [" + std::to_string(operand.k) + ", " +
                                  std::to_string(operand.n) + "]");
        }
        return array.data();
    };
    const std::vector<uint8_t> packed = pack(layout, precision_of(precision), values);
    return {reinterpret_cast<const char*>(packed.data()), packed.size()};
}

}  // namespace

void bind_plan(py::module_& m) {
    py::class_<Network>(m, "Network", "The sizes of a network with W-NECK blocks.")
        .def(py::init([](int in_channels, int classes, int width, int features, int blocks, const std::string& upsampling) {
                 Network network;
                 network.in_channels = in_channels, network.classes = classes, network.width = width;
                 network.features = features, network.blocks = blocks;
                 network.learned_upsampling =
                     choose<bool>("upsampling", upsampling, {{"nearest", false}, {"pixel_shuffle", true}});
                 return network;
             }),
             py::kw_only(), py::arg("in_channels"), py::arg("classes"), py::arg("width"), py::arg("features"),
             py::arg("blocks"), py::arg("upsampling"))
        .def_readonly("in_channels", &Network::in_channels)
        .def_readonly("classes", &Network::classes)
        .def_readonly("width", &Network::width)
        .def_readonly("features", &Network::features)
        .def_readonly("blocks", &Network::blocks)
        .def_property_readonly("upsampling",
                               [](const Network& n) { return n.learned_upsampling ? "pixel_shuffle" : "nearest"; });

    py::class_<Sizes>(m, "Sizes", "Channels as the kernels store them.")
        .def(py::init<const Network&>(), py::arg("network"))
        .def_readonly("width", &Sizes::width)
        .def_readonly("features", &Sizes::features)
        .def_readonly("expanded", &Sizes::expanded)
        .def_readonly("squeezed", &Sizes::squeezed)
        .def_readonly("fused", &Sizes::fused)
        .def_readonly("values", &Sizes::values, "Of the fused channels, those held at a time.")
        .def_readonly("mix_tiles", &Sizes::mix_tiles)
        .def_readonly("outputs", &Sizes::outputs)
        .def_readonly_static("y", &HEAD_CHANNELS)
        .def_readonly_static("tail", &TAIL_CHANNELS);

    m.def(
        "operand_shapes",
        [](const Network& network) {
            std::map<std::string, std::pair<int, int>> shapes;
            for (const Operand& operand : WeightLayout(network).operands) shapes[operand.name] = {operand.k, operand.n};
            return shapes;
        },
        py::arg("network"), "Name to (rows, columns) of everything that `pack` takes.");
    m.def("pack", &pack_operands, py::arg("network"), py::arg("precision"), py::arg("operands"),
          "Weights as the kernels read them, from float32 matrices by name.");

    py::register_exception<PlanError>(m, "PlanError", PyExc_ValueError);
    m.def(
        "plan",
        [](const Network& network, const std::string& stage, int batch, int height, int width, const std::string& precision,
           const std::string& input, const std::string& output, const DeviceProperties& device) {
            Request request;
            request.stage = choose<Stage>("stage", stage,
                                          {{"all", Stage::all},
                                           {"downsample", Stage::downsample},
                                           {"extract", Stage::extract},
                                           {"fuse", Stage::fuse},
                                           {"segment", Stage::segment}});
            request.batch = batch, request.height = height, request.width = width;
            request.precision = precision_of(precision);
            request.input = choose<Input>("input", input, {{"uint8", Input::uint8}, {"float32", Input::float32}});
            request.answer = choose<Answer>("output", output,
                                            {{"labels", Answer::labels},
                                             {"probabilities", Answer::probabilities},
                                             {"logits", Answer::logits}});
            return make_plan(network, request, device);
        },
        py::arg("network"), py::arg("stage"), py::arg("batch"), py::arg("height"), py::arg("width"), py::arg("precision"),
        py::arg("input"), py::arg("output"), py::arg("device"),
        "The launches of a stage, or of all; height and width are those of the image.");
}

}  // namespace dssnet
