// Which context is current, for as long as a scope lasts.
#pragma once

#include <new>
#include <string>

#include "driver.h"

namespace dssnet {

// The primary context of a device, the one that torch and the CUDA runtime use, retained for the
// lifetime of the object.
class PrimaryContext {
  public:
    // Throws CudaError, and std::invalid_argument for a number that no device has.
    explicit PrimaryContext(int ordinal);
    ~PrimaryContext();
    PrimaryContext(const PrimaryContext&) = delete;
    PrimaryContext& operator=(const PrimaryContext&) = delete;

    driver::Context handle() const { return handle_; }
    int ordinal() const { return ordinal_; }
    const driver::Calls& calls() const { return calls_; }

    // Keeps the context retained for the rest of the process.
    void abandon() noexcept { abandoned_ = true; }

  private:
    const driver::Calls& calls_;
    int ordinal_;
    driver::Device device_ = 0;
    driver::Context handle_ = nullptr;
    bool abandoned_ = false;
};

// Makes a context the calling thread's current one, and then the one from before again.
class CurrentContext {
  public:
    explicit CurrentContext(const PrimaryContext& context);
    // For destructors: a failure shows in pushed().
    CurrentContext(const PrimaryContext& context, std::nothrow_t) noexcept;
    ~CurrentContext();
    CurrentContext(const CurrentContext&) = delete;
    CurrentContext& operator=(const CurrentContext&) = delete;

    bool pushed() const { return pushed_; }
    // What the destructor does, but a failure is thrown: the caller's thread would go on with a
    // context that is not its own.
    void restore();

  private:
    const driver::Calls& calls_;
    int ordinal_;
    bool pushed_ = false;
};

// While a stream is being captured, the driver refuses calls that may allocate, such as the loading
// of a module, unless the calling thread declares that they are not meant for the capture.
class RelaxedCapture {
  public:
    explicit RelaxedCapture(const PrimaryContext& context);
    RelaxedCapture(const PrimaryContext& context, std::nothrow_t) noexcept;
    ~RelaxedCapture();
    RelaxedCapture(const RelaxedCapture&) = delete;
    RelaxedCapture& operator=(const RelaxedCapture&) = delete;

  private:
    const driver::Calls& calls_;
    int mode_ = driver::capture_mode_relaxed;
    bool exchanged_ = false;
};

// Throws std::invalid_argument, beginning with `what`, unless `ordinal` is the number of a device.
void check_ordinal(const std::string& what, int ordinal);

}  // namespace dssnet
