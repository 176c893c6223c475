// A plan as a CUDA graph: one call to the driver for all its launches.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "../plan/plan.h"
#include "driver.h"
#include "parameters.h"
#include "runner.h"

namespace dssnet {

// Owns what a call of the driver destroys. That call must be allowed where the owner ends.
template <typename Handle>
class Owned {
  public:
    explicit Owned(driver::Result (*destroy)(Handle)) : destroy_(destroy) {}
    ~Owned() { reset(); }
    Owned(const Owned&) = delete;
    Owned& operator=(const Owned&) = delete;

    Handle get() const { return handle_; }
    void take(Handle handle) { handle_ = handle; }
    void abandon() noexcept { handle_ = nullptr; }
    void reset() noexcept {
        if (handle_ != nullptr) destroy_(handle_);
        handle_ = nullptr;
    }

  private:
    driver::Result (*destroy_)(Handle);
    Handle handle_ = nullptr;
};

// A chain of kernel nodes, one a launch. Safe from several threads. The driver runs one launch of
// it at a time, in whatever streams they are.
class Graph {
  public:
    // Throws what Runner::launch does.
    Graph(std::shared_ptr<Runner> runner, Plan plan, const std::vector<uint64_t>& addresses);
    ~Graph();
    Graph(const Graph&) = delete;
    Graph& operator=(const Graph&) = delete;

    // As Runner::launch, except that the stream must not be under capture. With
    // DSSNET_FAST_CUDA_SYNC=1 the plan's launches are made one by one, to name the one that fails.
    void launch(const std::vector<uint64_t>& addresses, uint64_t stream);

    const Plan& plan() const { return plan_; }

  private:
    void build();
    void update(std::vector<ParameterBlock> blocks);
    driver::KernelNodeParams node_params(size_t index, void** parameters) const;

    const std::shared_ptr<Runner> runner_;
    const Plan plan_;
    const driver::Calls& calls_;
    std::vector<driver::Function> functions_;
    std::vector<driver::GraphNode> nodes_;
    std::mutex mutex_;
    std::vector<ParameterBlock> blocks_;  // what the executable graph holds
    std::vector<bool> current_;           // whether it surely does, node by node
    Owned<driver::Graph> graph_;          // its nodes name those of the executable graph
    Owned<driver::GraphExec> exec_;
};

}  // namespace dssnet
