#include "runner.h"

#include <cstdlib>
#include <cstring>

#include "error.h"
#include "parameters.h"

namespace dssnet {
namespace {

bool synchronous_wanted() {
    const char* value = std::getenv("DSSNET_FAST_CUDA_SYNC");
    return value != nullptr && std::strcmp(value, "1") == 0;
}

}  // namespace

int device_count() {
    if (!driver::problem().empty()) return 0;
    int count = 0;
    check(driver::calls().device_count(&count), "cuDeviceGetCount", [] { return "all devices"; });
    return count;
}

DeviceProperties device_properties(int device) {
    const driver::Calls& calls = driver::calls();
    check_ordinal("device_properties", device);
    const auto name = [&] { return "device " + std::to_string(device); };
    driver::Device handle = 0;
    check(calls.device_get(&handle, device), "cuDeviceGet", name);
    const auto attribute = [&](int which) {
        int value = 0;
        check(calls.device_attribute(&value, which, handle), "cuDeviceGetAttribute", name);
        return value;
    };
    DeviceProperties properties;
    properties.capability =
        10 * attribute(driver::capability_major) + attribute(driver::capability_minor);
    properties.multiprocessors = attribute(driver::multiprocessor_count);
    properties.shared_bytes_block = attribute(driver::max_shared_bytes_block_optin);
    properties.shared_bytes_sm = attribute(driver::max_shared_bytes_multiprocessor);
    return properties;
}

Runner::Runner(int device) : context_(device), synchronous_(synchronous_wanted()) {}

Runner::~Runner() {
    if (driver::forked()) return;
    const RelaxedCapture relaxed(context_, std::nothrow);
    const CurrentContext current(context_, std::nothrow);
    // Unloading code that is running is undefined. Where it cannot be known that it has ended (the
    // driver refuses to wait while a stream is being captured), modules and context stay for the
    // rest of the process.
    if (!current.pushed() ||
        (launched_ && context_.calls().context_synchronize() != driver::success))
        context_.abandon();
    else
        modules_.unload();
}

void Runner::load(const std::string& module, std::string image) {
    CurrentContext current(context_);
    {
        const RelaxedCapture relaxed(context_);
        modules_.load(module, std::move(image));
    }
    current.restore();
}

void Runner::launch(const Plan& plan, const std::vector<uint64_t>& addresses, uint64_t stream) {
    std::vector<ParameterBlock> blocks = parameter_blocks("launch", plan, addresses);
    const auto where = reinterpret_cast<driver::Stream>(stream);
    CurrentContext current(context_);
    const std::vector<driver::Function> functions = modules_.functions(plan);
    const bool waiting = waits(where);
    if (waiting)
        wait(where, "work that was in the stream before, on device " + std::to_string(device()),
             "it is not this plan's; this process can no longer use the GPU and must be restarted");
    launched_ = true;
    for (size_t i = 0; i < plan.launches.size(); ++i) {
        const Launch& launch = plan.launches[i];
        const auto subject = [&] { return describe(launch, device()); };
        void* parameters[] = {blocks[i].data()};
        check(context_.calls().launch_kernel(functions[i], launch.grid[0], launch.grid[1],
                                             launch.grid[2], launch.threads, 1, 1,
                                             launch.shared_bytes, where, parameters, nullptr),
              "cuLaunchKernel", subject);
        if (waiting)
            wait(where, subject(),
                 "this launch failed while it ran, or another stream's did at that time; this "
                 "process can no longer use the GPU and must be restarted");
    }
    current.restore();
}

bool Runner::waits(driver::Stream stream) const {
    if (!synchronous_) return false;
    int status = driver::capture_status_none;
    check(context_.calls().stream_is_capturing(stream, &status), "cuStreamIsCapturing",
          [&] { return "device " + std::to_string(device()); });
    return status == driver::capture_status_none;
}

void Runner::wait(driver::Stream stream, const std::string& subject,
                  const std::string& hint) const {
    const driver::Result result = context_.calls().stream_synchronize(stream);
    if (result != driver::success) throw_error("cuStreamSynchronize", subject, result, hint);
}

}  // namespace dssnet
