#include "error.h"

namespace dssnet {

std::string error_text(const driver::Calls& calls, driver::Result result) {
    const char* name = nullptr;
    const char* text = nullptr;
    // Both fail for numbers that this driver does not know; the number alone must do then.
    if (calls.error_name == nullptr || calls.error_name(result, &name) != driver::success ||
        name == nullptr)
        name = "error";
    if (calls.error_string == nullptr || calls.error_string(result, &text) != driver::success ||
        text == nullptr)
        text = "no text";
    return std::string(name) + " (" + std::to_string(result) + "): " + text;
}

std::string error_hint(driver::Result result) {
    switch (result) {
        case 2:  // CUDA_ERROR_OUT_OF_MEMORY
            return "the GPU's memory is full: free some, or end other processes that use the GPU";
        case 4:  // CUDA_ERROR_DEINITIALIZED
            return "the process is shutting down";
        case 46:  // CUDA_ERROR_DEVICE_UNAVAILABLE
            return "another process may hold the GPU exclusively: see its compute mode in "
                   "nvidia-smi";
        case 200:  // CUDA_ERROR_INVALID_IMAGE
        case 209:  // CUDA_ERROR_NO_BINARY_FOR_GPU
        case 218:  // CUDA_ERROR_INVALID_PTX
        case 222:  // CUDA_ERROR_UNSUPPORTED_PTX_VERSION
            return "the image does not suit this GPU, or its compiler is newer than this driver "
                   "(CUDA " +
                   std::to_string(driver::version() / 1000) + "." +
                   std::to_string(driver::version() % 1000 / 10) +
                   "): compile it for this machine, or update the driver";
        case 221:  // CUDA_ERROR_JIT_COMPILER_NOT_FOUND
            return "libnvidia-ptxjitcompiler.so.1, a part of the driver, is missing: install it";
        case 201:  // CUDA_ERROR_INVALID_CONTEXT
        case 400:  // CUDA_ERROR_INVALID_HANDLE
        case 709:  // CUDA_ERROR_CONTEXT_IS_DESTROYED
            return "the stream must be of the runner's device, which must not have been reset";
        // What the GPU reports when it comes to run a kernel. Any later call may be the one told.
        case 214:  // CUDA_ERROR_ECC_UNCORRECTABLE
        case 220:  // CUDA_ERROR_NVLINK_UNCORRECTABLE
        case 226:  // CUDA_ERROR_CONTAINED
        case 700:  // CUDA_ERROR_ILLEGAL_ADDRESS
        case 702:  // CUDA_ERROR_LAUNCH_TIMEOUT
        case 710:  // CUDA_ERROR_ASSERT
        case 714:  // CUDA_ERROR_HARDWARE_STACK_ERROR
        case 715:  // CUDA_ERROR_ILLEGAL_INSTRUCTION
        case 716:  // CUDA_ERROR_MISALIGNED_ADDRESS
        case 717:  // CUDA_ERROR_INVALID_ADDRESS_SPACE
        case 718:  // CUDA_ERROR_INVALID_PC
        case 719:  // CUDA_ERROR_LAUNCH_FAILED
        case 721:  // CUDA_ERROR_TENSOR_MEMORY_LEAK
            return "an earlier launch, of any library, may be the cause: run again with "
                   "DSSNET_FAST_CUDA_SYNC=1, which waits for every kernel and so names the one "
                   "that fails; this process can no longer use the GPU and must be restarted";
        case 999:  // CUDA_ERROR_UNKNOWN
            return "see whether nvidia-smi works and shows a compute mode other than Prohibited";
        default:
            if (result >= 900 && result <= 908)  // CUDA_ERROR_STREAM_CAPTURE_..., CAPTURED_EVENT
                return "a stream was being captured: run once before the capture, with the same "
                       "sizes";
            return "";
    }
}

void throw_error(const char* call, const std::string& subject, driver::Result result,
                 const std::string& hint) {
    std::string message =
        std::string(call) + ": " + subject + ": " + error_text(driver::calls(), result);
    if (!hint.empty()) message += "; " + hint;
    throw CudaError(message);
}

}  // namespace dssnet
