// Failures of the driver, as exceptions that say what was asked of it.
#pragma once

#include <stdexcept>
#include <string>

#include "driver.h"

namespace dssnet {

class CudaError : public std::runtime_error {
  public:
    using std::runtime_error::runtime_error;
};

// "CUDA_ERROR_INVALID_VALUE (1): invalid argument".
std::string error_text(const driver::Calls& calls, driver::Result result);

// What to do about an error, or what it may come from; empty where its name says enough.
std::string error_hint(driver::Result result);

[[noreturn]] void throw_error(const char* call, const std::string& subject, driver::Result result,
                              const std::string& hint);

// Throws CudaError unless `result` is success. `subject()` says what the call was about; it is
// asked for only then, since launches cannot wait for the making of strings.
template <typename Subject>
void check(driver::Result result, const char* call, const Subject& subject) {
    if (result != driver::success) throw_error(call, subject(), result, error_hint(result));
}

}  // namespace dssnet
