// Compared while this compiles, never run: the declarations of the runner and of the stand-in with
// those of cuda.h.
#include <cuda.h>

#include <cstddef>
#include <type_traits>

#include "driver.h"

namespace own {
#include "stand_in_types.h"
}

using namespace dssnet;

// --- signatures
// -----------------------------------------------------------------------------------

// cuda.h's type for each handle.
template <typename Handle>
struct Counterpart {
    using type = void;
};
#define HANDLE(ours, theirs)   \
    template <>                \
    struct Counterpart<ours> { \
        using type = theirs;   \
    };                         \
    static_assert(std::is_pointer_v<theirs> && sizeof(ours) == sizeof(theirs))
HANDLE(driver::Context, CUcontext);
HANDLE(driver::Module, CUmodule);
HANDLE(driver::Function, CUfunction);
HANDLE(driver::Kernel, CUkernel);
HANDLE(driver::Stream, CUstream);
HANDLE(driver::Graph, CUgraph);
HANDLE(driver::GraphNode, CUgraphNode);
HANDLE(driver::GraphExec, CUgraphExec);

template <typename Ours, typename Theirs>
constexpr bool same() {
    using Plain = std::remove_cv_t<Ours>;
    if constexpr (std::is_const_v<Ours> != std::is_const_v<Theirs>)
        return false;
    else if constexpr (!std::is_void_v<typename Counterpart<Plain>::type>)
        return std::is_same_v<typename Counterpart<Plain>::type, std::remove_cv_t<Theirs>>;
    else if constexpr (std::is_same_v<Plain, driver::KernelNodeParams>)
        return std::is_same_v<std::remove_cv_t<Theirs>, CUDA_KERNEL_NODE_PARAMS_v2>;
    else if constexpr (std::is_void_v<Ours> || std::is_void_v<Theirs>)
        return std::is_void_v<Ours> && std::is_void_v<Theirs>;
    else if constexpr (std::is_pointer_v<Ours> && std::is_pointer_v<Theirs>)
        return same<std::remove_pointer_t<Ours>, std::remove_pointer_t<Theirs>>();
    else if constexpr (std::is_enum_v<Theirs>)  // ours are plain integers
        return std::is_same_v<Plain, int> && sizeof(Theirs) == sizeof(int);
    else
        return std::is_same_v<Plain, std::remove_cv_t<Theirs>>;
}

template <typename Ours, typename Theirs>
struct Call;
template <typename... Ours, typename... Theirs>
struct Call<driver::Result (*)(Ours...), CUresult (*)(Theirs...)> {
    static constexpr bool same_types() {
        if constexpr (sizeof...(Ours) != sizeof...(Theirs))
            return false;
        else
            return (same<Ours, Theirs>() && ...);
    }
};

#define CHECK(member, symbol, parameters)                                                   \
    static_assert(Call<decltype(driver::Calls::member), decltype(&::symbol)>::same_types(), \
                  #symbol);
DSSNET_DRIVER_CALLS(CHECK)
#if CUDA_VERSION >= 12040
DSSNET_DRIVER_OPTIONAL_CALLS(CHECK)
#endif

static_assert(sizeof(CUresult) == sizeof(driver::Result));
static_assert(std::is_same_v<driver::Device, CUdevice>);

// --- layouts
// --------------------------------------------------------------------------------------

static_assert(sizeof(driver::KernelNodeParams) == sizeof(CUDA_KERNEL_NODE_PARAMS_v2));
static_assert(alignof(driver::KernelNodeParams) == alignof(CUDA_KERNEL_NODE_PARAMS_v2));
static_assert(sizeof(own::CUDA_KERNEL_NODE_PARAMS_v2) == sizeof(CUDA_KERNEL_NODE_PARAMS_v2));
#define FIELD(ours, theirs)                                            \
    static_assert(offsetof(driver::KernelNodeParams, ours) ==          \
                      offsetof(CUDA_KERNEL_NODE_PARAMS_v2, theirs) &&  \
                  offsetof(own::CUDA_KERNEL_NODE_PARAMS_v2, theirs) == \
                      offsetof(CUDA_KERNEL_NODE_PARAMS_v2, theirs) &&  \
                  same<decltype(driver::KernelNodeParams::ours),       \
                       decltype(CUDA_KERNEL_NODE_PARAMS_v2::theirs)>())
FIELD(function, func);
FIELD(grid_x, gridDimX);
FIELD(grid_y, gridDimY);
FIELD(grid_z, gridDimZ);
FIELD(block_x, blockDimX);
FIELD(block_y, blockDimY);
FIELD(block_z, blockDimZ);
FIELD(shared_bytes, sharedMemBytes);
FIELD(kernel_params, kernelParams);
FIELD(extra, extra);
FIELD(kernel, kern);
FIELD(context, ctx);

// --- constants
// ------------------------------------------------------------------------------------

#define OURS(name, value) static_assert(driver::name == value)
OURS(success, CUDA_SUCCESS);
OURS(capability_major, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
OURS(capability_minor, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
OURS(multiprocessor_count, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
OURS(max_shared_bytes_multiprocessor, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR);
OURS(max_shared_bytes_block_optin, CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
OURS(function_shared_bytes, CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES);
OURS(function_max_dynamic_shared_bytes, CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
OURS(jit_error_log_buffer, CU_JIT_ERROR_LOG_BUFFER);
OURS(jit_error_log_buffer_bytes, CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES);
OURS(capture_status_none, CU_STREAM_CAPTURE_STATUS_NONE);
OURS(capture_mode_relaxed, CU_STREAM_CAPTURE_MODE_RELAXED);

// Numbers of errors that have advice of their own, which the test reads out of the sources.
#define ADVISED(number, name) static_assert(number == name);
#include "advised.h"

#define STAND_IN(name) static_assert(static_cast<int>(own::name) == static_cast<int>(::name))
STAND_IN(CUDA_SUCCESS);
STAND_IN(CUDA_ERROR_INVALID_VALUE);
STAND_IN(CUDA_ERROR_NOT_INITIALIZED);
STAND_IN(CUDA_ERROR_INVALID_DEVICE);
STAND_IN(CUDA_ERROR_INVALID_CONTEXT);
STAND_IN(CUDA_ERROR_INVALID_PTX);
STAND_IN(CUDA_ERROR_INVALID_HANDLE);
STAND_IN(CUDA_ERROR_NOT_FOUND);
STAND_IN(CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
STAND_IN(CUDA_ERROR_STREAM_CAPTURE_INVALIDATED);
STAND_IN(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
STAND_IN(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
STAND_IN(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
STAND_IN(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR);
STAND_IN(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
STAND_IN(CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES);
STAND_IN(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES);
STAND_IN(CU_JIT_ERROR_LOG_BUFFER);
STAND_IN(CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES);
STAND_IN(CU_STREAM_CAPTURE_STATUS_NONE);
STAND_IN(CU_STREAM_CAPTURE_STATUS_ACTIVE);
STAND_IN(CU_STREAM_CAPTURE_STATUS_INVALIDATED);
STAND_IN(CU_STREAM_CAPTURE_MODE_GLOBAL);
STAND_IN(CU_STREAM_CAPTURE_MODE_THREAD_LOCAL);
STAND_IN(CU_STREAM_CAPTURE_MODE_RELAXED);
