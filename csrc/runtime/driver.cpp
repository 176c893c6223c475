#include "driver.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cstdlib>
#include <memory>

#include "error.h"

namespace dssnet::driver {
namespace {

constexpr const char* library_name = "libcuda.so.1";

struct Driver {
    Calls calls;
    std::string problem;
    int version = 0;
    bool initialised = false;
    pid_t process = getpid();
};

template <typename Pointer>
bool find(void* library, const char* symbol, Pointer& pointer) {
    pointer = reinterpret_cast<Pointer>(dlsym(library, symbol));
    return pointer != nullptr;
}

// "CUDA 12.4", for messages.
std::string version_text(int version) {
    if (version <= 0) return "of an unknown CUDA version";
    return "CUDA " + std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

// Where the library was loaded from: a second one in a container or an environment's folder is a
// common cause of trouble.
std::string path_of(void* symbol) {
    Dl_info info{};
    if (symbol != nullptr && dladdr(symbol, &info) != 0 && info.dli_fname != nullptr)
        return info.dli_fname;
    return library_name;
}

std::string no_device() {
    const char* visible = std::getenv("CUDA_VISIBLE_DEVICES");
    std::string text = "no GPU can be seen: nvidia-smi should list one";
    if (visible != nullptr)
        text +=
            "; CUDA_VISIBLE_DEVICES is set to \"" + std::string(visible) + "\", which may hide it";
    return text;
}

// What to do when cuInit fails.
std::string init_hint(Result result) {
    switch (result) {
        case 3:  // CUDA_ERROR_NOT_INITIALIZED
            return "this happens in a process forked from one that used CUDA: start workers with "
                   "the \"spawn\" method";
        case 34:  // CUDA_ERROR_STUB_LIBRARY
            return "this is the toolkit's stub, made for linking only: remove the folder \"stubs\" "
                   "from LD_LIBRARY_PATH";
        case 100:  // CUDA_ERROR_NO_DEVICE
            return no_device();
        case 101:  // CUDA_ERROR_INVALID_DEVICE
            return "CUDA_VISIBLE_DEVICES may name a GPU that is not there, or one in MIG mode "
                   "without an instance";
        case 802:  // CUDA_ERROR_SYSTEM_NOT_READY
            return "a service of the driver is not running: on machines with NVSwitch start "
                   "nvidia-fabricmanager";
        case 803:  // CUDA_ERROR_SYSTEM_DRIVER_MISMATCH
            return "the library and the kernel module are of different versions: restart the "
                   "machine after an update of the driver; in a container, use the host's library "
                   "and not one of the image";
        case 804:  // CUDA_ERROR_COMPAT_NOT_SUPPORTED_ON_DEVICE
            return "the cuda-compat package does not support this GPU: remove it, or its folder "
                   "from LD_LIBRARY_PATH, and update the driver";
        case 999:  // CUDA_ERROR_UNKNOWN
            return "the kernel module may not be loaded or its devices not accessible: see whether "
                   "nvidia-smi works and /dev/nvidia-uvm exists (nvidia-modprobe -u -c 0 makes "
                   "it); restart the machine after an update of the driver or a suspension";
        default: return "see whether nvidia-smi works";
    }
}

void initialise(Driver& driver) {
    // Never closed: the driver has threads and exit handlers of its own.
    void* library = dlopen(library_name, RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) {
        const char* reason = dlerror();
        driver.problem =
            std::string(library_name) + " cannot be loaded (" +
            (reason != nullptr ? reason : "no reason given") +
            "): it comes with NVIDIA's driver, which must be installed on the machine; "
            "a container must be started with access to the GPU (such as docker run "
            "--gpus all)";
        return;
    }
    Calls& calls = driver.calls;
    std::string missing;
#define DSSNET_FIND(member, symbol, parameters) \
    if (!find(library, #symbol, calls.member)) missing += missing.empty() ? #symbol : ", " #symbol;
    DSSNET_DRIVER_CALLS(DSSNET_FIND)
#undef DSSNET_FIND
#define DSSNET_FIND(member, symbol, parameters) find(library, #symbol, calls.member);
    DSSNET_DRIVER_OPTIONAL_CALLS(DSSNET_FIND)
#undef DSSNET_FIND

    // Asking for the version is allowed before cuInit.
    if (calls.driver_version != nullptr && calls.driver_version(&driver.version) != success)
        driver.version = 0;
    const std::string name =
        path_of(dlsym(library, "cuInit")) + " (" + version_text(driver.version) + ")";
    if (!missing.empty()) {
        driver.problem = name + " lacks " + missing +
                         ": CUDA 12.0 or newer is needed, update NVIDIA's driver to 525 or newer";
        return;
    }
    if (const Result result = calls.init(0); result != success) {
        driver.problem =
            "cuInit: " + name + ": " + error_text(calls, result) + "; " + init_hint(result);
        return;
    }
    driver.initialised = true;
    int count = 0;
    if (const Result result = calls.device_count(&count); result != success)
        driver.problem = "cuDeviceGetCount: " + name + ": " + error_text(calls, result) + "; " +
                         init_hint(result);
    else if (count == 0)
        driver.problem = name + ": " + no_device();
}

const Driver& instance() {
    // Not destroyed, so that objects which outlive this file's statics can still release what they
    // hold.
    static const Driver* const driver = [] {
        auto made = std::make_unique<Driver>();
        initialise(*made);
        return made.release();
    }();
    return *driver;
}

}  // namespace

std::string problem() {
    if (forked())
        return "this process was forked from one that had initialised CUDA, and CUDA cannot be "
               "used in both: start workers with the \"spawn\" method";
    return instance().problem;
}

const Calls& calls() {
    if (const std::string text = problem(); !text.empty()) throw CudaError(text);
    return instance().calls;
}

int version() { return instance().version; }

bool forked() noexcept {
    const Driver& driver = instance();
    return driver.initialised && driver.process != getpid();
}

}  // namespace dssnet::driver
