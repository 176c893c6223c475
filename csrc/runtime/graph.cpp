#include "graph.h"

#include <utility>

#include "error.h"

namespace dssnet {

Graph::Graph(std::shared_ptr<Runner> runner, Plan plan, const std::vector<uint64_t>& addresses)
    : runner_(std::move(runner)),
      plan_(std::move(plan)),
      calls_(driver::calls()),
      nodes_(plan_.launches.size()),
      blocks_(parameter_blocks("graph", plan_, addresses)),
      current_(plan_.launches.size(), true),
      graph_(calls_.graph_destroy),
      exec_(calls_.graph_exec_destroy) {
    CurrentContext current(runner_->context_);
    const RelaxedCapture relaxed(runner_->context_);
    try {
        build();
    } catch (...) {
        // While the context is still current, unlike in the members' destructors.
        exec_.reset();
        graph_.reset();
        throw;
    }
    current.restore();
}

Graph::~Graph() {
    if (driver::forked()) {
        exec_.abandon();
        graph_.abandon();
        return;
    }
    const RelaxedCapture relaxed(runner_->context_, std::nothrow);
    const CurrentContext current(runner_->context_, std::nothrow);
    exec_.reset();
    graph_.reset();
}

void Graph::build() {
    const auto all = [&] {
        return std::to_string(plan_.launches.size()) + " launches on device " +
               std::to_string(runner_->device());
    };
    functions_ = runner_->modules_.functions(plan_);
    driver::Graph graph = nullptr;
    check(calls_.graph_create(&graph, 0), "cuGraphCreate", all);
    graph_.take(graph);
    for (size_t i = 0; i < nodes_.size(); ++i) {
        void* parameters[] = {blocks_[i].data()};
        const driver::KernelNodeParams params = node_params(i, parameters);
        const driver::GraphNode* previous = i == 0 ? nullptr : &nodes_[i - 1];
        check(calls_.graph_add_kernel(&nodes_[i], graph, previous, i == 0 ? 0 : 1, &params),
              "cuGraphAddKernelNode",
              [&] { return describe(plan_.launches[i], runner_->device()); });
    }
    driver::GraphExec exec = nullptr;
    check(calls_.graph_instantiate(&exec, graph, 0), "cuGraphInstantiate", all);
    exec_.take(exec);
}

void Graph::launch(const std::vector<uint64_t>& addresses, uint64_t stream) {
    if (runner_->synchronous_) return runner_->launch(plan_, addresses, stream);
    std::vector<ParameterBlock> blocks = parameter_blocks("launch", plan_, addresses);
    CurrentContext current(runner_->context_);
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        update(std::move(blocks));
        runner_->launched_ = true;
        check(calls_.graph_launch(exec_.get(), reinterpret_cast<driver::Stream>(stream)),
              "cuGraphLaunch", [&] {
                  return "graph of " + std::to_string(plan_.launches.size()) +
                         " launches on device " + std::to_string(runner_->device());
              });
    }
    current.restore();
}

void Graph::update(std::vector<ParameterBlock> blocks) {
    for (size_t i = 0; i < blocks.size(); ++i) {
        if (current_[i] && blocks[i] == blocks_[i]) continue;
        // Should the call fail, the node may hold either: it is set again before the next launch.
        current_[i] = false;
        void* parameters[] = {blocks[i].data()};
        const driver::KernelNodeParams params = node_params(i, parameters);
        check(calls_.graph_exec_set_kernel(exec_.get(), nodes_[i], &params),
              "cuGraphExecKernelNodeSetParams",
              [&] { return describe(plan_.launches[i], runner_->device()); });
        blocks_[i] = std::move(blocks[i]);
        current_[i] = true;
    }
}

driver::KernelNodeParams Graph::node_params(size_t index, void** parameters) const {
    const Launch& launch = plan_.launches[index];
    driver::KernelNodeParams params{};
    params.function = functions_[index];
    params.grid_x = launch.grid[0];
    params.grid_y = launch.grid[1];
    params.grid_z = launch.grid[2];
    params.block_x = launch.threads;
    params.block_y = 1;
    params.block_z = 1;
    params.shared_bytes = launch.shared_bytes;
    params.kernel_params = parameters;
    return params;
}

}  // namespace dssnet
