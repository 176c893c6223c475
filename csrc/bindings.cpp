#include "bind.h"

PYBIND11_MODULE(_native, m) {
    m.doc() = "Launch plans, and the runner that hands them to CUDA's driver.";
    dssnet::bind_plan_types(m);
    dssnet::bind_plan(m);
    dssnet::bind_runtime(m);
}
