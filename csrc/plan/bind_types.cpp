// The structures of plan.h for Python: made there, read there, never changed.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "../bind.h"
#include "plan.h"

namespace py = pybind11;

namespace dssnet {
namespace {

std::string number(uint64_t value) { return std::to_string(value); }

const char* name_of(Role role) {
    switch (role) {
        case Role::input: return "input";
        case Role::output: return "output";
        case Role::weights: return "weights";
        case Role::workspace: return "workspace";
    }
    return "unknown";
}

std::vector<uint8_t> to_vector(const py::bytes& bytes) {
    const std::string_view view = bytes;
    return {view.begin(), view.end()};
}

py::bytes to_bytes(const std::vector<uint8_t>& bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

std::string repr(const Buffer& buffer) {
    return "Buffer(\"" + buffer.name + "\", Role." + name_of(buffer.role) +
           ", bytes=" + number(buffer.bytes) + ", offset=" + number(buffer.offset) + ")";
}

std::string repr(const Relocation& relocation) {
    return "Relocation(offset=" + number(relocation.offset) +
           ", buffer=" + number(relocation.buffer) + ", addend=" + number(relocation.addend) + ")";
}

std::string repr(const Launch& launch) {
    return "Launch(\"" + launch.module + "\", \"" + launch.kernel + "\", grid=(" +
           number(launch.grid[0]) + ", " + number(launch.grid[1]) + ", " + number(launch.grid[2]) +
           "), threads=" + number(launch.threads) +
           ", shared_bytes=" + number(launch.shared_bytes) + ", " +
           number(launch.parameters.size()) + " bytes of parameters, " +
           number(launch.relocations.size()) + " relocations)";
}

std::string repr(const Plan& plan) {
    return "Plan(" + number(plan.launches.size()) + " launches, " + number(plan.buffers.size()) +
           " buffers, workspace_bytes=" + number(plan.workspace_bytes) + ")";
}

std::string repr(const DeviceProperties& device) {
    return "DeviceProperties(capability=" + std::to_string(device.capability) +
           ", multiprocessors=" + std::to_string(device.multiprocessors) +
           ", shared_bytes_block=" + std::to_string(device.shared_bytes_block) +
           ", shared_bytes_sm=" + std::to_string(device.shared_bytes_sm) + ")";
}

template <typename Type>
std::string repr_of(const Type& value) {
    return repr(value);
}

}  // namespace

void bind_plan_types(py::module_& m) {
    py::enum_<Role>(m, "Role", "What a buffer is for.")
        .value("input", Role::input)
        .value("output", Role::output)
        .value("weights", Role::weights)
        .value("workspace", Role::workspace);

    py::class_<Buffer>(m, "Buffer", "Device memory that a plan reads or writes.")
        .def(py::init([](std::string name, Role role, uint64_t bytes, uint64_t offset) {
                 return Buffer{std::move(name), role, bytes, offset};
             }),
             py::arg("name"), py::arg("role"), py::arg("bytes"), py::arg("offset") = 0)
        .def_readonly("name", &Buffer::name)
        .def_readonly("role", &Buffer::role)
        .def_readonly("bytes", &Buffer::bytes)
        .def_readonly("offset", &Buffer::offset, "Into the workspace; 0 for the other roles.")
        .def("__repr__", &repr_of<Buffer>);

    py::class_<Relocation>(m, "Relocation",
                           "Where in a parameter block which buffer's address goes.")
        .def(py::init([](uint32_t offset, uint32_t buffer, uint64_t addend) {
                 return Relocation{offset, buffer, addend};
             }),
             py::arg("offset"), py::arg("buffer"), py::arg("addend") = 0)
        .def_readonly("offset", &Relocation::offset)
        .def_readonly("buffer", &Relocation::buffer)
        .def_readonly("addend", &Relocation::addend)
        .def("__repr__", &repr_of<Relocation>);

    py::class_<Launch>(m, "Launch", "One kernel launch.")
        .def(py::init([](std::string module, std::string kernel, std::array<uint32_t, 3> grid,
                         uint32_t threads, uint32_t shared_bytes, const py::bytes& parameters,
                         std::vector<Relocation> relocations) {
                 return Launch{
                     std::move(module),     std::move(kernel),     grid, threads, shared_bytes,
                     to_vector(parameters), std::move(relocations)};
             }),
             py::arg("module"), py::arg("kernel"), py::arg("grid"), py::arg("threads"),
             py::arg("shared_bytes"), py::arg("parameters"), py::arg("relocations"))
        .def_readonly("module", &Launch::module)
        .def_readonly("kernel", &Launch::kernel)
        .def_property_readonly("grid",
                               [](const Launch& launch) {
                                   return py::make_tuple(launch.grid[0], launch.grid[1],
                                                         launch.grid[2]);
                               })
        .def_readonly("threads", &Launch::threads)
        .def_readonly("shared_bytes", &Launch::shared_bytes)
        .def_property_readonly("parameters",
                               [](const Launch& launch) { return to_bytes(launch.parameters); })
        .def_readonly("relocations", &Launch::relocations)
        .def("__repr__", &repr_of<Launch>);

    py::class_<Plan>(m, "Plan", "What a run of the network asks of a GPU.")
        .def(py::init([](std::vector<Launch> launches, std::vector<Buffer> buffers,
                         uint64_t workspace_bytes) {
                 return Plan{std::move(launches), std::move(buffers), workspace_bytes};
             }),
             py::arg("launches"), py::arg("buffers"), py::arg("workspace_bytes"))
        .def_readonly("launches", &Plan::launches)
        .def_readonly("buffers", &Plan::buffers)
        .def_readonly("workspace_bytes", &Plan::workspace_bytes)
        .def("__repr__", &repr_of<Plan>);

    py::class_<DeviceProperties>(m, "DeviceProperties", "What a plan must know of a GPU.")
        .def(py::init([](int capability, int multiprocessors, int shared_bytes_block,
                         int shared_bytes_sm) {
                 DeviceProperties device;
                 device.capability = capability;
                 device.multiprocessors = multiprocessors;
                 device.shared_bytes_block = shared_bytes_block;
                 device.shared_bytes_sm = shared_bytes_sm;
                 return device;
             }),
             py::arg("capability") = DeviceProperties{}.capability,
             py::arg("multiprocessors") = DeviceProperties{}.multiprocessors,
             py::arg("shared_bytes_block") = DeviceProperties{}.shared_bytes_block,
             py::arg("shared_bytes_sm") = DeviceProperties{}.shared_bytes_sm)
        .def_readonly("capability", &DeviceProperties::capability, "10 * major + minor.")
        .def_readonly("multiprocessors", &DeviceProperties::multiprocessors)
        .def_readonly("shared_bytes_block", &DeviceProperties::shared_bytes_block,
                      "Shared memory a block may have, with opt-in.")
        .def_readonly("shared_bytes_sm", &DeviceProperties::shared_bytes_sm,
                      "Shared memory of a multiprocessor.")
        .def("__repr__", &repr_of<DeviceProperties>);
}

}  // namespace dssnet
