// Hands launch plans to the driver.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "../plan/plan.h"
#include "context.h"
#include "driver.h"
#include "modules.h"

namespace dssnet {

int device_count();
DeviceProperties device_properties(int device);

// Runs plans on one device, in the primary context and so beside torch. Safe from several threads.
// The calling thread's current context is the same after every call as before.
//
// A runner must outlive every graph that a caller captured from its launches: the modules are
// unloaded with it, and nobody tells it of such graphs.
class Runner {
  public:
    explicit Runner(int device);
    ~Runner();
    Runner(const Runner&) = delete;
    Runner& operator=(const Runner&) = delete;

    int device() const { return context_.ordinal(); }
    void load(const std::string& module, std::string image);
    std::vector<std::string> loaded() const { return modules_.names(); }

    // Launches one after another in `stream`, `addresses` being those of the plan's buffers.
    // Nothing is launched if an address or a function is missing. Where the stream is being
    // captured, the launches are.
    void launch(const Plan& plan, const std::vector<uint64_t>& addresses, uint64_t stream);

  private:
    friend class Graph;

    // Whether DSSNET_FAST_CUDA_SYNC=1 asks to wait for every kernel, and the stream allows it.
    bool waits(driver::Stream stream) const;
    void wait(driver::Stream stream, const std::string& subject, const std::string& hint) const;

    PrimaryContext context_;
    Modules modules_{context_};
    const bool synchronous_;
    std::atomic<bool> launched_{false};
};

}  // namespace dssnet
