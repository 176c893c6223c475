// What each part of the extension adds to the Python module.
#pragma once

#include <pybind11/pybind11.h>

namespace dssnet {

void bind_plan_types(pybind11::module_& m);  // csrc/plan/bind_types.cpp
void bind_plan(pybind11::module_& m);        // csrc/plan/bind.cpp
void bind_runtime(pybind11::module_& m);     // csrc/runtime/bind.cpp
void bind_cpu(pybind11::module_& m);         // csrc/cpu/bind.cpp

}  // namespace dssnet
