#include "modules.h"

#include <array>
#include <cstring>
#include <stdexcept>

#include "error.h"
#include "parameters.h"

namespace dssnet {
namespace {

// Shared memory that every launch may have, static and dynamic together, without asking
// (CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK, the same on all GPUs).
constexpr uint64_t default_shared_bytes = 48 * 1024;

constexpr size_t jit_log_bytes = 16 * 1024;

bool begins(const std::string& image, const char (&magic)[5]) {
    return image.compare(0, 4, magic) == 0;
}

bool is_elf(const std::string& image) { return begins(image, "\177ELF"); }

bool is_fat_binary(const std::string& image) { return begins(image, "\x50\xed\x55\xba"); }

template <typename Number>
Number read(const std::string& image, size_t offset) {
    Number value;
    std::memcpy(&value, image.data() + offset, sizeof value);
    return value;
}

// The driver takes no length and would read past the end of an image that was cut short. The two
// tables that an ELF header points to are the last things that compilers write.
bool is_whole_elf(const std::string& image) {
    constexpr size_t header_bytes = 64;
    if (image.size() < header_bytes) return false;
    const auto fits = [&](size_t table, size_t entry_bytes, size_t entries) {
        const auto offset = read<uint64_t>(image, table);
        const uint64_t bytes =
            uint64_t{read<uint16_t>(image, entry_bytes)} * read<uint16_t>(image, entries);
        return offset <= image.size() && bytes <= image.size() - offset;
    };
    return fits(32, 54, 56) && fits(40, 58, 60);  // program headers, section headers
}

std::string kind(const std::string& image) {
    if (is_elf(image)) return "cubin";
    if (is_fat_binary(image)) return "fat binary";
    return "PTX";
}

std::string list(const std::vector<std::string>& names) {
    std::string text;
    for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
    return text.empty() ? "none" : text;
}

}  // namespace

void Modules::load(const std::string& name, std::string image) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const auto found = modules_.find(name); found != modules_.end()) {
        if (found->second.image == image) return;
        throw std::invalid_argument("load: module \"" + name +
                                    "\" must not be loaded already with another image");
    }
    if (image.empty() || (is_elf(image) && !is_whole_elf(image)))
        throw std::invalid_argument("load: the image of module \"" + name +
                                    "\" must be whole, got " + std::to_string(image.size()) +
                                    " bytes of it");
    // All memory is had before the driver's module is, so that nothing can fail once there is one.
    std::map<std::string, Module> entry;
    Module& module = entry[name];
    module.image = std::move(image);
    std::string log(jit_log_bytes, '\0');
    std::array<int, 2> options{driver::jit_error_log_buffer, driver::jit_error_log_buffer_bytes};
    // The driver takes a size in place of a pointer.
    std::array<void*, 2> values{log.data(), reinterpret_cast<void*>(uintptr_t{jit_log_bytes})};
    const driver::Result result = context_.calls().module_load(
        &module.handle, module.image.c_str(), static_cast<unsigned int>(options.size()),
        options.data(), values.data());
    if (result == driver::success) {
        modules_.merge(entry);
        return;
    }
    std::string hint = error_hint(result);
    if (log.front() != '\0') {
        log.back() = '\0';
        hint += (hint.empty() ? "" : "\n") + std::string("log of the driver's compiler:\n") +
                log.c_str();
    }
    throw_error("cuModuleLoadDataEx",
                "module \"" + name + "\" (" + kind(module.image) + ", " +
                    std::to_string(module.image.size()) + " bytes) on device " +
                    std::to_string(context_.ordinal()),
                result, hint);
}

std::vector<std::string> Modules::names() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<std::string> names;
    for (const auto& [name, module] : modules_) names.push_back(name);
    return names;
}

std::vector<driver::Function> Modules::functions(const Plan& plan) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<driver::Function> handles;
    handles.reserve(plan.launches.size());
    for (const Launch& launch : plan.launches) {
        Function& function = find(launch);
        // A driver that copied a longer block than there is would read past its end.
        if (function.parameter_bytes != 0 && function.parameter_bytes != launch.parameters.size())
            throw std::invalid_argument(
                "parameters of " + launch.module + "/" + launch.kernel + " must have " +
                std::to_string(function.parameter_bytes) + " bytes, got " +
                std::to_string(launch.parameters.size()) +
                "; the kernel image and the plan are of different versions");
        allow_shared_bytes(function, launch);
        handles.push_back(function.handle);
    }
    return handles;
}

void Modules::unload() noexcept {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (const auto& [name, module] : modules_) context_.calls().module_unload(module.handle);
    modules_.clear();
}

Modules::Function& Modules::find(const Launch& launch) {
    const auto module = modules_.find(launch.module);
    if (module == modules_.end()) {
        std::vector<std::string> names;
        for (const auto& entry : modules_) names.push_back(entry.first);
        throw std::invalid_argument("module \"" + launch.module + "\" of kernel " + launch.kernel +
                                    " must be loaded first; loaded: " + list(names));
    }
    auto& functions = module->second.functions;
    const auto found = functions.find(launch.kernel);
    if (found != functions.end()) return found->second;
    return functions.emplace(launch.kernel, look_up(module->second.handle, launch)).first->second;
}

Modules::Function Modules::look_up(driver::Module module, const Launch& launch) const {
    const driver::Calls& calls = context_.calls();
    const auto subject = [&] { return describe(launch, context_.ordinal()); };
    Function function;
    // May load the kernel, which may allocate.
    const RelaxedCapture relaxed(context_);
    check(calls.module_function(&function.handle, module, launch.kernel.c_str()),
          "cuModuleGetFunction", subject);
    check(calls.function_attribute(&function.static_shared_bytes, driver::function_shared_bytes,
                                   function.handle),
          "cuFuncGetAttribute", subject);
    size_t offset = 0;
    size_t bytes = 0;
    if (calls.function_parameter != nullptr &&
        calls.function_parameter(function.handle, 0, &offset, &bytes) == driver::success)
        function.parameter_bytes = bytes;
    return function;
}

void Modules::allow_shared_bytes(Function& function, const Launch& launch) const {
    const auto static_bytes = static_cast<uint64_t>(function.static_shared_bytes);
    if (static_bytes + launch.shared_bytes <= default_shared_bytes ||
        launch.shared_bytes <= function.dynamic_shared_bytes)
        return;
    const RelaxedCapture relaxed(context_);
    check(context_.calls().set_function_attribute(function.handle,
                                                  driver::function_max_dynamic_shared_bytes,
                                                  static_cast<int>(launch.shared_bytes)),
          "cuFuncSetAttribute", [&] {
              return describe(launch, context_.ordinal()) + " beside " +
                     std::to_string(static_bytes) + " static ones";
          });
    function.dynamic_shared_bytes = launch.shared_bytes;
}

}  // namespace dssnet
