#include "bind.h"

PYBIND11_MODULE(_native, m) {
    m.doc() = "Launch plans, the runner that hands them to CUDA's driver, and the network on the CPU.";
    dssnet::bind_plan_types(m);
    dssnet::bind_plan(m);
    dssnet::bind_runtime(m);
    dssnet::bind_cpu(m);
}
