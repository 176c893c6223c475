// The runner for Python. The interpreter's lock is free whenever the driver is called.
#include "../bind.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "driver.h"
#include "error.h"
#include "graph.h"
#include "runner.h"

namespace py = pybind11;

namespace dssnet {
namespace {

// Destructors call the driver and may wait for the GPU, which may wait for a thread that needs the
// lock. The last owner can be a graph that is destroyed without it.
template <typename Object>
void destroy(Object* object) {
    if (PyGILState_Check() != 0) {
        const py::gil_scoped_release release;
        delete object;
    } else {
        delete object;
    }
}

template <typename Object, typename... Arguments>
std::shared_ptr<Object> make(Arguments&&... arguments) {
    const py::gil_scoped_release release;
    return std::shared_ptr<Object>(new Object(std::forward<Arguments>(arguments)...),
                                   destroy<Object>);
}

using Addresses = std::vector<uint64_t>;

}  // namespace

void bind_runtime(py::module_& m) {
    const auto unlocked = py::call_guard<py::gil_scoped_release>();
    py::register_exception<CudaError>(m, "CudaError", PyExc_RuntimeError);

    m.def(
        "driver_problem",
        []() -> std::optional<std::string> {
            std::string problem = driver::problem();
            if (problem.empty()) return std::nullopt;
            return problem;
        },
        unlocked,
        "Why CUDA's driver cannot be used here and what to do, or None.\n\n"
        "The first call loads and initialises the driver; the answer is kept.");
    m.def("device_count", &device_count, unlocked,
          "How many GPUs the driver shows; 0 where driver_problem() tells of one.");
    m.def("device_properties", &device_properties, py::arg("device"), unlocked,
          "What plans must know of a GPU.\n\n"
          "Raises:\n    CudaError: the driver fails or is not there.\n"
          "    ValueError: there is no such device.");

    // First, so that the signature of Runner.graph can name it.
    py::class_<Graph, std::shared_ptr<Graph>>(
        m, "Graph", "A plan as a CUDA graph; keeps its runner alive; safe from several threads.")
        .def("launch", &Graph::launch, py::arg("addresses"), py::arg("stream"), unlocked,
             "Launches the graph in a stream that is not being captured; only nodes whose\n"
             "parameters change are updated. Raises as Runner.launch() does.")
        .def("__repr__", [](const Graph& graph) {
            return "Graph(" + std::to_string(graph.plan().launches.size()) + " launches)";
        });

    py::class_<Runner, std::shared_ptr<Runner>>(
        m, "Runner", "Runs plans on one device, in its primary context; safe from several threads.")
        .def(py::init([](int device) { return make<Runner>(device); }), py::arg("device"))
        .def_property_readonly("device", &Runner::device)
        .def_property_readonly("loaded", py::cpp_function(&Runner::loaded, unlocked),
                               "Names of the loaded modules.")
        .def(
            "load",
            [](Runner& runner, const std::string& module, const py::bytes& image) {
                std::string copy = image;
                const py::gil_scoped_release release;
                runner.load(module, std::move(copy));
            },
            py::arg("module"), py::arg("image"),
            "Loads a cubin or PTX under a name; the same image again is no error.\n\n"
            "Raises:\n    CudaError: the driver refuses it; for PTX with its compiler's log.\n"
            "    ValueError: it is cut short, or another image has the name.")
        .def("launch", &Runner::launch, py::arg("plan"), py::arg("addresses"), py::arg("stream"),
             unlocked,
             "Launches a plan in a stream, with one device address a buffer.\n\n"
             "Raises:\n    CudaError: the driver refuses a launch, or an earlier one failed.\n"
             "    ValueError: the plan contradicts itself, the loaded images or the addresses.")
        .def(
            "graph",
            [](std::shared_ptr<Runner> runner, const Plan& plan, const Addresses& addresses) {
                return make<Graph>(std::move(runner), plan, addresses);
            },
            py::arg("plan"), py::arg("addresses"),
            "The plan as a graph that is launched with one call. Raises as launch() does.")
        .def("__repr__", [](const Runner& runner) {
            return "Runner(device=" + std::to_string(runner.device()) + ")";
        });
}

}  // namespace dssnet
