#include "context.h"

#include <stdexcept>

#include "error.h"

namespace dssnet {
namespace {

std::string device_name(int ordinal) { return "device " + std::to_string(ordinal); }

}  // namespace

void check_ordinal(const std::string& what, int ordinal) {
    int count = 0;
    check(driver::calls().device_count(&count), "cuDeviceGetCount", [] { return "all devices"; });
    if (ordinal < 0 || ordinal >= count)
        throw std::invalid_argument(what + ": device must be less than the number of GPUs seen, " +
                                    std::to_string(count) + ", got " + std::to_string(ordinal));
}

PrimaryContext::PrimaryContext(int ordinal) : calls_(driver::calls()), ordinal_(ordinal) {
    check_ordinal("Runner", ordinal);
    const auto name = [&] { return device_name(ordinal); };
    check(calls_.device_get(&device_, ordinal), "cuDeviceGet", name);
    check(calls_.primary_retain(&handle_, device_), "cuDevicePrimaryCtxRetain", name);
}

PrimaryContext::~PrimaryContext() {
    if (!abandoned_ && !driver::forked()) calls_.primary_release(device_);
}

CurrentContext::CurrentContext(const PrimaryContext& context)
    : calls_(driver::calls()), ordinal_(context.ordinal()) {
    check(calls_.context_push(context.handle()), "cuCtxPushCurrent",
          [&] { return device_name(ordinal_); });
    pushed_ = true;
}

CurrentContext::CurrentContext(const PrimaryContext& context, std::nothrow_t) noexcept
    : calls_(context.calls()), ordinal_(context.ordinal()) {
    pushed_ = calls_.context_push(context.handle()) == driver::success;
}

CurrentContext::~CurrentContext() {
    driver::Context popped = nullptr;
    if (pushed_) calls_.context_pop(&popped);
}

void CurrentContext::restore() {
    pushed_ = false;
    driver::Context popped = nullptr;
    check(calls_.context_pop(&popped), "cuCtxPopCurrent", [&] { return device_name(ordinal_); });
}

RelaxedCapture::RelaxedCapture(const PrimaryContext& context) : calls_(context.calls()) {
    check(calls_.capture_mode(&mode_), "cuThreadExchangeStreamCaptureMode",
          [&] { return "relaxed mode on " + device_name(context.ordinal()); });
    exchanged_ = true;
}

RelaxedCapture::RelaxedCapture(const PrimaryContext& context, std::nothrow_t) noexcept
    : calls_(context.calls()) {
    exchanged_ = calls_.capture_mode(&mode_) == driver::success;
}

RelaxedCapture::~RelaxedCapture() {
    if (exchanged_) calls_.capture_mode(&mode_);
}

}  // namespace dssnet
