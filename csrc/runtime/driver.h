// The part of the CUDA driver's interface that the runner uses: declared here, found at run time.
//
// No CUDA header and no CUDA library is needed to build, and the same build runs where there is no
// driver and says so. The declarations are the driver's own; tests/cuda/test_declarations.py
// compares every type, constant, layout and signature with cuda.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

namespace dssnet::driver {

using Result = int;
using Device = int;
using DevicePointer = unsigned long long;
using Context = struct ContextObject*;
using Module = struct ModuleObject*;
using Function = struct FunctionObject*;
using Kernel = struct KernelObject*;
using Stream = struct StreamObject*;
using Graph = struct GraphObject*;
using GraphNode = struct GraphNodeObject*;
using GraphExec = struct GraphExecObject*;

struct KernelNodeParams {  // CUDA_KERNEL_NODE_PARAMS_v2
    Function function;
    unsigned int grid_x, grid_y, grid_z;
    unsigned int block_x, block_y, block_z;
    unsigned int shared_bytes;
    void** kernel_params;
    void** extra;
    Kernel kernel;    // read only where `function` is null
    Context context;  // likewise
};

constexpr Result success = 0;

constexpr int capability_major = 75;  // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
constexpr int capability_minor = 76;
constexpr int multiprocessor_count = 16;
constexpr int max_shared_bytes_multiprocessor = 81;
constexpr int max_shared_bytes_block_optin = 97;

constexpr int function_shared_bytes = 1;              // CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES
constexpr int function_max_dynamic_shared_bytes = 8;  // ..._MAX_DYNAMIC_SHARED_SIZE_BYTES

constexpr int jit_error_log_buffer = 5;
constexpr int jit_error_log_buffer_bytes = 6;

constexpr int capture_status_none = 0;   // CU_STREAM_CAPTURE_STATUS_NONE
constexpr int capture_mode_relaxed = 2;  // CU_STREAM_CAPTURE_MODE_RELAXED

// clang-format off
// CALL(member, symbol, parameters). The symbol is the name that the library exports, version and
// all: cuda.h maps plain names onto it with macros.
#define DSSNET_DRIVER_CALLS(CALL)                                                                  \
    CALL(init, cuInit, (unsigned int flags))                                                       \
    CALL(driver_version, cuDriverGetVersion, (int* version))                                       \
    CALL(error_name, cuGetErrorName, (Result error, const char** name))                            \
    CALL(error_string, cuGetErrorString, (Result error, const char** text))                        \
    CALL(device_count, cuDeviceGetCount, (int* count))                                             \
    CALL(device_get, cuDeviceGet, (Device* device, int ordinal))                                   \
    CALL(device_attribute, cuDeviceGetAttribute, (int* value, int attribute, Device device))       \
    CALL(primary_retain, cuDevicePrimaryCtxRetain, (Context* context, Device device))              \
    CALL(primary_release, cuDevicePrimaryCtxRelease_v2, (Device device))                           \
    CALL(context_push, cuCtxPushCurrent_v2, (Context context))                                     \
    CALL(context_pop, cuCtxPopCurrent_v2, (Context* context))                                      \
    CALL(context_synchronize, cuCtxSynchronize, ())                                                \
    CALL(capture_mode, cuThreadExchangeStreamCaptureMode, (int* mode))                             \
    CALL(stream_is_capturing, cuStreamIsCapturing, (Stream stream, int* status))                   \
    CALL(stream_synchronize, cuStreamSynchronize, (Stream stream))                                 \
    CALL(module_load, cuModuleLoadDataEx,                                                          \
         (Module* module, const void* image, unsigned int count, int* options, void** values))     \
    CALL(module_unload, cuModuleUnload, (Module module))                                           \
    CALL(module_function, cuModuleGetFunction,                                                     \
         (Function* function, Module module, const char* name))                                    \
    CALL(function_attribute, cuFuncGetAttribute, (int* value, int attribute, Function function))   \
    CALL(set_function_attribute, cuFuncSetAttribute, (Function function, int attribute, int value))\
    CALL(launch_kernel, cuLaunchKernel,                                                            \
         (Function function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,        \
          unsigned int block_x, unsigned int block_y, unsigned int block_z,                        \
          unsigned int shared_bytes, Stream stream, void** kernel_params, void** extra))           \
    CALL(graph_create, cuGraphCreate, (Graph* graph, unsigned int flags))                          \
    CALL(graph_destroy, cuGraphDestroy, (Graph graph))                                             \
    CALL(graph_add_kernel, cuGraphAddKernelNode_v2,                                                \
         (GraphNode* node, Graph graph, const GraphNode* dependencies, size_t count,               \
          const KernelNodeParams* params))                                                         \
    CALL(graph_instantiate, cuGraphInstantiateWithFlags,                                           \
         (GraphExec* exec, Graph graph, unsigned long long flags))                                 \
    CALL(graph_exec_set_kernel, cuGraphExecKernelNodeSetParams_v2,                                 \
         (GraphExec exec, GraphNode node, const KernelNodeParams* params))                         \
    CALL(graph_launch, cuGraphLaunch, (GraphExec exec, Stream stream))                             \
    CALL(graph_exec_destroy, cuGraphExecDestroy, (GraphExec exec))

// Calls that drivers of CUDA 12.0 lack; null there.
#define DSSNET_DRIVER_OPTIONAL_CALLS(CALL)                                                         \
    CALL(function_parameter, cuFuncGetParamInfo,                                                   \
         (Function function, size_t index, size_t* offset, size_t* bytes))
// clang-format on

struct Calls {
#define DSSNET_MEMBER(member, symbol, parameters) Result(*member) parameters = nullptr;
    DSSNET_DRIVER_CALLS(DSSNET_MEMBER)
    DSSNET_DRIVER_OPTIONAL_CALLS(DSSNET_MEMBER)
#undef DSSNET_MEMBER
};

// Why the driver cannot be used, and what to do; empty where it can. The first call loads and
// initialises the driver (and so makes CUDA unusable in children forked later); the answer is kept.
std::string problem();

// The driver's functions. Throws CudaError with problem() where there is one, so also in a forked
// child; a reference taken before the fork must not be used there.
const Calls& calls();

// The newest CUDA version that the driver supports, as 1000 * major + 10 * minor; 0 if unknown.
int version();

// Whether the process is a child that was forked after the driver had been initialised, in which no
// call may be made.
bool forked() noexcept;

}  // namespace dssnet::driver
