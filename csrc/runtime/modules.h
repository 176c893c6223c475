// The kernel images loaded into one context, and the functions looked up in them.
#pragma once

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "../plan/plan.h"
#include "context.h"
#include "driver.h"

namespace dssnet {

class Modules {
  public:
    explicit Modules(const PrimaryContext& context) : context_(context) {}
    Modules(const Modules&) = delete;
    Modules& operator=(const Modules&) = delete;

    // Loads a cubin, a fat binary or PTX under a name. The context must be current. Loading the
    // same image again does nothing, so that threads which both find it missing may both load it;
    // another image under a name in use is an std::invalid_argument, as is an image cut short.
    void load(const std::string& name, std::string image);

    std::vector<std::string> names() const;

    // The functions of a plan's launches, allowed the shared memory that these need. The context
    // must be current.
    std::vector<driver::Function> functions(const Plan& plan);

    // Unloads everything. The context must be current, and nothing may be running.
    void unload() noexcept;

  private:
    struct Function {
        driver::Function handle = nullptr;
        int static_shared_bytes = 0;
        uint32_t dynamic_shared_bytes = 0;  // opted in so far; 0 where the default suffices
        size_t parameter_bytes = 0;         // 0 where the driver does not tell
    };
    struct Module {
        driver::Module handle = nullptr;
        std::string image;
        std::map<std::string, Function> functions;
    };

    Function& find(const Launch& launch);
    Function look_up(driver::Module module, const Launch& launch) const;
    void allow_shared_bytes(Function& function, const Launch& launch) const;

    const PrimaryContext& context_;
    mutable std::mutex mutex_;
    std::map<std::string, Module> modules_;
};

}  // namespace dssnet
