// A library with the interface of CUDA's driver. It runs nothing: it keeps books of what is asked
// of it, and writes down everything that the driver's documentation forbids.
//
// An image is text: for each kernel a line ".entry <name> <bytes of parameters> <offsets of
// addresses among them, with commas> <bytes of static shared memory>", behind an ELF header in what
// stands for a cubin. A line ".error <text>" makes it invalid.
//
// Functions named stand_in_... are for the tests. Environment: STAND_IN_DEVICES, STAND_IN_VERSION,
// STAND_IN_FAIL (see stand_in_fail).
#include <dlfcn.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#ifdef STAND_IN_WITH_CUDA_H
#include <cuda.h>
#else
#include "stand_in_types.h"
#endif

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

enum class Kind { context, module, function, stream, graph, node, exec };
const char* const kind_names[] = {"context", "module", "function", "stream",
                                  "graph",   "node",   "exec"};
constexpr int default_shared_bytes = 48 * 1024;
constexpr int optin_shared_bytes = 227 * 1024;

struct Object {
    Kind kind;
    bool live = true;
};

struct Context {
    int device;
    int fault = 0;         // what its calls return from now on
    int coming_fault = 0;  // what they will return once it is noticed
    int launches_until = 0;
    std::vector<std::pair<uint64_t, uint64_t>> in_flight{};  // function, stream
};

struct Kernel {
    size_t bytes = 0;
    std::vector<size_t> pointers;
    int static_bytes = 0;
};

struct Module {
    uint64_t context;
    std::map<std::string, Kernel> kernels;
};

struct Function {
    uint64_t module;
    std::string name;
    Kernel kernel;
    int dynamic_bytes;
};

struct Stream {
    uint64_t context;
    bool capturing = false;
    bool invalidated = false;
    int mode = 0;
    std::thread::id thread{};
};

struct Work {
    uint64_t function;
    unsigned grid[3];
    unsigned block[3];
    unsigned shared_bytes;
    std::vector<uint8_t> parameters;
};

struct Node {
    uint64_t graph;
    Work work;
    std::vector<uint64_t> dependencies;
};

struct Exec {
    uint64_t graph;
    uint64_t context;
    std::vector<uint64_t> order;
    std::map<uint64_t, Work> work;
};

struct Thread {
    std::vector<uint64_t> stack;  // of current contexts
    int capture_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
};

struct Failure {
    std::string call;
    int result;
    int countdown;  // the call that fails, counted from the next; 0: every one; -1: none any more
};

const char* text_environment(const char* name, const char* otherwise) {
    const char* value = std::getenv(name);
    return value == nullptr ? otherwise : value;
}

int environment(const char* name, int otherwise) {
    const char* value = std::getenv(name);
    return value == nullptr ? otherwise : std::atoi(value);
}

std::vector<Failure> parse_failures(const char* text) {
    std::vector<Failure> failures;
    std::stringstream list(text);
    for (std::string item; std::getline(list, item, ',');) {
        std::stringstream fields(item);
        std::string call, result, countdown;
        std::getline(fields, call, ':');
        std::getline(fields, result, ':');
        std::getline(fields, countdown, ':');
        failures.push_back({call, std::stoi(result), countdown.empty() ? 1 : std::stoi(countdown)});
    }
    return failures;
}

// Never destroyed: objects of a runner may be released while the process ends.
struct Books {
    std::mutex mutex;
    pid_t process = 0;  // that called cuInit
    uint64_t next = 0x1000;
    uint64_t next_address = 0x7f0000000000;
    std::map<std::thread::id, Thread> threads;
    std::map<uint64_t, Object> objects;
    std::map<uint64_t, Context> contexts;
    std::map<uint64_t, Module> modules;
    std::map<uint64_t, Function> functions;
    std::map<uint64_t, Stream> streams;
    std::map<uint64_t, std::vector<uint64_t>> graphs;
    std::map<uint64_t, Node> nodes;
    std::map<uint64_t, Exec> execs;
    std::map<int, std::pair<uint64_t, int>> primary;    // device: context, times retained
    std::map<uint64_t, std::pair<size_t, int>> memory;  // address: bytes, device
    std::set<uint64_t> in_use;                          // graphs that a call is at work on
    std::map<std::string, int> faults;                  // kernel: result
    std::vector<Failure> failures = parse_failures(text_environment("STAND_IN_FAIL", ""));
    unsigned delay_us = 0;
    int invalidated_captures = 0;
    std::vector<std::string> violations;
    std::vector<std::string> launches;
    std::vector<std::string> order;
};

Books& books() {
    static Books* const kept = new Books;
    return *kept;
}

// Not thread_local: a thread that ends with a context still current must show.
Thread& this_thread() { return books().threads[std::this_thread::get_id()]; }

int device_count() { return environment("STAND_IN_DEVICES", 1); }

std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (char c : text) {
        if (c == '"' || c == '\\') out += '\\';
        out += c == '\n' ? ' ' : c;
    }
    return out + "\"";
}

std::string joined(const std::vector<std::string>& items) {
    std::string out;
    for (const auto& item : items) out += (out.empty() ? "" : ",") + item;
    return out;
}

template <typename Handle>
uint64_t number(Handle handle) {
    return reinterpret_cast<uintptr_t>(handle);
}

template <typename Handle>
Handle handle(uint64_t number) {
    return reinterpret_cast<Handle>(static_cast<uintptr_t>(number));
}

void violation(const std::string& text) { books().violations.push_back(quoted(text)); }

uint64_t create(Kind kind) {
    const uint64_t made = books().next += 0x10;
    books().objects[made] = {kind};
    return made;
}

void release(uint64_t object) { books().objects[object].live = false; }

bool holds_interpreter_lock() {
    using Check = int (*)();
    static const auto check = reinterpret_cast<Check>(dlsym(RTLD_DEFAULT, "PyGILState_Check"));
    return check != nullptr && check() == 1;
}

// One call of the driver, from its beginning to its end; holds the books.
class Call {
  public:
    // `graph` is the graph that may be used by one thread only, if any.
    explicit Call(const char* name, uint64_t graph = 0) : name_(name), graph_(graph) {
        const bool locked = holds_interpreter_lock();
        lock_ = std::unique_lock<std::mutex>(books().mutex);
        Books& b = books();
        b.order.push_back(quoted(name));
        if (locked) complain("the interpreter's lock is held");
        const bool early = name_ == "cuInit" || name_ == "cuDriverGetVersion" ||
                           name_ == "cuGetErrorName" || name_ == "cuGetErrorString";
        if (!early && b.process == 0) {
            fail("before cuInit", CUDA_ERROR_NOT_INITIALIZED);
        } else if (b.process != 0 && b.process != getpid()) {
            fail("in a forked child", CUDA_ERROR_NOT_INITIALIZED);
        }
        if (graph_ != 0 && !b.in_use.insert(graph_).second) {
            complain("two threads use one graph at once");
            graph_ = 0;
        }
        if (b.delay_us != 0) {
            lock_.unlock();
            usleep(b.delay_us);
            lock_.lock();
        }
        for (Failure& failure : b.failures) {
            if (failure.call != name_) continue;
            if (failure.countdown == 0 || failure.countdown == 1) result = failure.result;
            if (failure.countdown > 0)
                failure.countdown = failure.countdown == 1 ? -1 : failure.countdown - 1;
        }
    }
    ~Call() {
        if (graph_ != 0) books().in_use.erase(graph_);
    }

    void complain(const std::string& fault) const { violation(name_ + ": " + fault); }
    CUresult fail(const std::string& fault, int code) {
        complain(fault);
        result = code;
        return static_cast<CUresult>(code);
    }
    CUresult failed() const { return static_cast<CUresult>(result); }

    // Whether the handle names a live object of its kind.
    template <typename Handle>
    bool valid(Handle handle, Kind kind) {
        const auto found = books().objects.find(number(handle));
        const std::string name = kind_names[static_cast<int>(kind)];
        if (found == books().objects.end() || found->second.kind != kind)
            fail("this " + name + " was never made", CUDA_ERROR_INVALID_HANDLE);
        else if (!found->second.live)
            fail("this " + name + " is used after its release", CUDA_ERROR_INVALID_HANDLE);
        else
            return true;
        return false;
    }

    // The current context; null, and a failure, where there is none or it is dead.
    Context* current() {
        if (this_thread().stack.empty()) {
            fail("no context is current", CUDA_ERROR_INVALID_CONTEXT);
            return nullptr;
        }
        if (!valid(handle<CUcontext>(this_thread().stack.back()), Kind::context)) return nullptr;
        Context& context = books().contexts.at(this_thread().stack.back());
        if (context.fault != 0) result = context.fault;
        return context.fault == 0 ? &context : nullptr;
    }

    bool of_current(uint64_t context) {
        if (context == this_thread().stack.back()) return true;
        fail("another context is current", CUDA_ERROR_INVALID_CONTEXT);
        return false;
    }

    // Whether stream capture forbids the call to this thread.
    bool unsafe_now() {
        if (this_thread().capture_mode == CU_STREAM_CAPTURE_MODE_RELAXED) return false;
        for (auto& [id, stream] : books().streams) {
            if (!stream.capturing || stream.mode == CU_STREAM_CAPTURE_MODE_RELAXED) continue;
            const bool mine = stream.thread == std::this_thread::get_id();
            if (!mine && (stream.mode != CU_STREAM_CAPTURE_MODE_GLOBAL ||
                          this_thread().capture_mode != CU_STREAM_CAPTURE_MODE_GLOBAL))
                continue;
            invalidate(stream);
            fail("not safe while a stream is captured", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
            return true;
        }
        return false;
    }

    static void invalidate(Stream& stream) {
        if (!stream.invalidated) ++books().invalidated_captures;
        stream.invalidated = true;
    }

    // Reads and judges what is to be launched; false, and a failure, if it must not be.
    bool read(Work& work, CUfunction function, void** parameters, void** extra) {
        if (!valid(function, Kind::function)) return false;
        const Function& known = books().functions.at(number(function));
        if (!of_current(books().modules.at(known.module).context)) return false;
        work.function = number(function);
        if (static_cast<int>(work.shared_bytes) > known.dynamic_bytes) {
            fail(known.name + " has more dynamic shared memory than was opted in",
                 CUDA_ERROR_INVALID_VALUE);
            return false;
        }
        uint64_t threads = 1, blocks = 1;
        for (int i = 0; i < 3; ++i) threads *= work.block[i], blocks *= work.grid[i];
        if (threads == 0 || threads > 1024 || blocks == 0) {
            result = CUDA_ERROR_INVALID_VALUE;
            return false;
        }
        if (parameters == nullptr || parameters[0] == nullptr || extra != nullptr) {
            fail(known.name + " is given no parameters", CUDA_ERROR_INVALID_VALUE);
            return false;
        }
        if (number(parameters[0]) % 16 != 0) complain("parameters are not at a multiple of 16");
        const auto* bytes = static_cast<const uint8_t*>(parameters[0]);
        work.parameters.assign(bytes, bytes + known.kernel.bytes);
        return judge_addresses(work);
    }

    bool judge_addresses(const Work& work) {
        const Function& known = books().functions.at(work.function);
        const int device = books().contexts.at(this_thread().stack.back()).device;
        for (size_t offset : known.kernel.pointers) {
            uint64_t address;
            std::memcpy(&address, work.parameters.data() + offset, sizeof address);
            auto block = books().memory.upper_bound(address);
            const bool live =
                block != books().memory.begin() && address < (--block)->first + block->second.first;
            if (!live)
                fail(known.name + " is given an address of no live memory",
                     CUDA_ERROR_INVALID_VALUE);
            else if (block->second.second != device)
                fail(known.name + " is given an address of another device",
                     CUDA_ERROR_INVALID_VALUE);
            if (failed() != CUDA_SUCCESS) return false;
        }
        return true;
    }

    // The stream's books, made for the null stream; null, and a failure, if it is not valid.
    Stream* stream(CUstream which) {
        if (which == nullptr) {
            null_ = Stream{this_thread().stack.back()};
            return &null_;
        }
        if (!valid(which, Kind::stream)) return nullptr;
        Stream& found = books().streams.at(number(which));
        if (!of_current(found.context)) return nullptr;
        if (found.invalidated) result = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
        return found.invalidated ? nullptr : &found;
    }

    int result = 0;

  private:
    std::string name_;
    uint64_t graph_;
    std::unique_lock<std::mutex> lock_;
    Stream null_{0};
};

void record(const char* how, const Work& work, const Context& context, CUstream stream) {
    const Function& function = books().functions.at(work.function);
    std::ostringstream out;
    out << "{\"how\":\"" << how << "\",\"kernel\":" << quoted(function.name) << ",\"grid\":["
        << work.grid[0] << "," << work.grid[1] << "," << work.grid[2] << "],\"block\":["
        << work.block[0] << "," << work.block[1] << "," << work.block[2]
        << "],\"shared_bytes\":" << work.shared_bytes << ",\"device\":" << context.device
        << ",\"stream\":" << number(stream) << ",\"parameters\":\"";
    const char* const digits = "0123456789abcdef";
    for (uint8_t byte : work.parameters) out << digits[byte >> 4] << digits[byte & 15];
    out << "\"}";
    books().launches.push_back(out.str());
}

// What happens to a context when a kernel is sent off: faults show later, in another call.
void send(const char* how, const Work& work, Context& context, CUstream stream) {
    record(how, work, context, stream);
    context.in_flight.emplace_back(work.function, number(stream));
    const auto fault = books().faults.find(books().functions.at(work.function).name);
    if (fault == books().faults.end() || context.coming_fault != 0) return;
    context.coming_fault = fault->second;
    context.launches_until = 2;
}

void notice_fault(Context& context) {
    if (context.coming_fault == 0) return;
    context.fault = context.coming_fault;
    context.in_flight.clear();
}

bool parse(const char* image, Module& module, std::string& error) {
    if (std::memcmp(image, "\177ELF", 4) == 0) image += 64;
    std::stringstream lines(image);
    for (std::string line; std::getline(lines, line);) {
        std::stringstream words(line);
        std::string word, name, offsets;
        words >> word;
        if (word == ".error") std::getline(words, error);
        if (word != ".entry") continue;
        Kernel kernel;
        words >> name >> kernel.bytes >> offsets >> kernel.static_bytes;
        std::stringstream list(offsets);
        for (std::string item; std::getline(list, item, ',');)
            if (item != "-") kernel.pointers.push_back(std::stoul(item));
        module.kernels[name] = kernel;
    }
    return error.empty();
}

}  // namespace

#define BEGIN(...)          \
    Call call(__VA_ARGS__); \
    if (call.failed() != CUDA_SUCCESS) return call.failed()

// --- for the tests
// --------------------------------------------------------------------------------

// "cuLaunchKernel:700:3": the third call from now returns 700; ":0": every call does. Several with
// commas.
EXPORT void stand_in_fail(const char* text) {
    const std::lock_guard<std::mutex> lock(books().mutex);
    books().failures = parse_failures(text);
}

// The kernel fails while it runs: the next launch still succeeds, then every call returns `result`.
EXPORT void stand_in_fault(const char* kernel, int result) {
    const std::lock_guard<std::mutex> lock(books().mutex);
    books().faults[kernel] = result;
}

EXPORT void stand_in_delay(unsigned microseconds) {
    const std::lock_guard<std::mutex> lock(books().mutex);
    books().delay_us = microseconds;
}

EXPORT void stand_in_forget() {
    const std::lock_guard<std::mutex> lock(books().mutex);
    books().launches.clear();
    books().order.clear();
    books().violations.clear();
}

EXPORT const char* stand_in_report() {
    static std::string text;
    const std::lock_guard<std::mutex> lock(books().mutex);
    const Books& b = books();
    std::map<Kind, int> live;
    for (const auto& [id, object] : b.objects) live[object.kind] += object.live;
    std::vector<std::string> retained;
    for (const auto& [device, primary] : b.primary)
        retained.push_back(quoted(std::to_string(device)) + ":" + std::to_string(primary.second));
    std::vector<std::string> counts;
    for (Kind kind : {Kind::module, Kind::graph, Kind::exec})
        counts.push_back(quoted(kind_names[static_cast<int>(kind)]) + ":" +
                         std::to_string(live[kind]));
    size_t depth = 0;
    int mode = CU_STREAM_CAPTURE_MODE_GLOBAL;
    for (const auto& [id, thread] : b.threads) {
        depth += thread.stack.size();
        mode = std::max(mode, thread.capture_mode);
    }
    text = "{\"retained\":{" + joined(retained) + "},\"live\":{" + joined(counts) +
           "},\"stack\":" + std::to_string(depth) + ",\"capture_mode\":" + std::to_string(mode) +
           ",\"invalidated_captures\":" + std::to_string(b.invalidated_captures) +
           ",\"violations\":[" + joined(b.violations) + "],\"launches\":[" + joined(b.launches) +
           "],\"order\":[" + joined(b.order) + "]}";
    return text.c_str();
}

// --- initialisation, errors, devices
// --------------------------------------------------------------

EXPORT CUresult cuInit(unsigned int) {
    BEGIN("cuInit");
    books().process = getpid();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDriverGetVersion(int* version) {
    BEGIN("cuDriverGetVersion");
    *version = environment("STAND_IN_VERSION", 12040);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGetErrorName(CUresult error, const char** name) {
    BEGIN("cuGetErrorName");
    static const std::map<int, const char*> names = {{1, "CUDA_ERROR_INVALID_VALUE"},
                                                     {100, "CUDA_ERROR_NO_DEVICE"},
                                                     {218, "CUDA_ERROR_INVALID_PTX"},
                                                     {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"},
                                                     {500, "CUDA_ERROR_NOT_FOUND"},
                                                     {700, "CUDA_ERROR_ILLEGAL_ADDRESS"},
                                                     {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"},
                                                     {999, "CUDA_ERROR_UNKNOWN"}};
    const auto found = names.find(error);
    if (found == names.end()) return CUDA_ERROR_INVALID_VALUE;
    *name = found->second;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGetErrorString(CUresult error, const char** text) {
    BEGIN("cuGetErrorString");
    if (error == 998) return CUDA_ERROR_INVALID_VALUE;
    *text = "words of the driver";
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetCount(int* count) {
    BEGIN("cuDeviceGetCount");
    *count = device_count();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGet(CUdevice* device, int ordinal) {
    BEGIN("cuDeviceGet");
    if (ordinal < 0 || ordinal >= device_count())
        return call.fail("there is no such device", CUDA_ERROR_INVALID_DEVICE);
    *device = ordinal;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice device) {
    BEGIN("cuDeviceGetAttribute");
    switch (attribute) {
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = 8 + device; break;
        case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = 6; break;
        case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *value = 84; break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN:
            *value = optin_shared_bytes;
            break;
        case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *value = 228 * 1024; break;
        default: return CUDA_ERROR_INVALID_VALUE;
    }
    return CUDA_SUCCESS;
}

// --- contexts
// -------------------------------------------------------------------------------------

EXPORT CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice device) {
    BEGIN("cuDevicePrimaryCtxRetain");
    auto& [id, times] = books().primary[device];
    if (times++ == 0) {
        id = create(Kind::context);
        books().contexts[id] = Context{device};
    }
    *context = handle<CUcontext>(id);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    BEGIN("cuDevicePrimaryCtxRelease_v2");
    auto& [id, times] = books().primary[device];
    if (times == 0)
        return call.fail("released more often than retained", CUDA_ERROR_INVALID_CONTEXT);
    if (--times > 0) return CUDA_SUCCESS;
    for (const auto& [module, known] : books().modules)
        if (known.context == id && books().objects[module].live)
            call.complain("the last owner leaves while modules are loaded");
    for (const auto& [exec, known] : books().execs)
        if (known.context == id && books().objects[exec].live)
            call.complain("the last owner leaves while there are graphs");
    release(id);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxPushCurrent_v2(CUcontext context) {
    BEGIN("cuCtxPushCurrent_v2");
    if (!call.valid(context, Kind::context)) return call.failed();
    this_thread().stack.push_back(number(context));
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxPopCurrent_v2(CUcontext* context) {
    BEGIN("cuCtxPopCurrent_v2");
    if (this_thread().stack.empty())
        return call.fail("no context is current", CUDA_ERROR_INVALID_CONTEXT);
    if (context != nullptr) *context = handle<CUcontext>(this_thread().stack.back());
    this_thread().stack.pop_back();
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxGetCurrent(CUcontext* context) {
    BEGIN("cuCtxGetCurrent");
    *context = handle<CUcontext>(this_thread().stack.empty() ? 0 : this_thread().stack.back());
    return CUDA_SUCCESS;
}

EXPORT CUresult cuCtxSynchronize() {
    BEGIN("cuCtxSynchronize");
    Context* context = call.current();
    if (context == nullptr || call.unsafe_now()) return call.failed();
    for (auto& [id, stream] : books().streams)
        if (stream.capturing && stream.context == this_thread().stack.back()) {
            Call::invalidate(stream);
            return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    notice_fault(*context);
    context->in_flight.clear();
    return static_cast<CUresult>(context->fault);
}

EXPORT CUresult cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode* mode) {
    BEGIN("cuThreadExchangeStreamCaptureMode");
    const int before = this_thread().capture_mode;
    this_thread().capture_mode = *mode;
    *mode = static_cast<CUstreamCaptureMode>(before);
    return CUDA_SUCCESS;
}

// --- memory and streams, for the tests' own use
// ---------------------------------------------------

EXPORT CUresult cuMemAlloc_v2(CUdeviceptr* address, size_t bytes) {
    BEGIN("cuMemAlloc_v2");
    Context* context = call.current();
    if (context == nullptr || call.unsafe_now()) return call.failed();
    *address = books().next_address;
    books().next_address += (bytes + 511) / 512 * 512 + 512;
    books().memory[*address] = {bytes, context->device};
    return CUDA_SUCCESS;
}

EXPORT CUresult cuMemFree_v2(CUdeviceptr address) {
    BEGIN("cuMemFree_v2");
    if (books().memory.erase(address) == 0)
        return call.fail("no live memory begins there", CUDA_ERROR_INVALID_VALUE);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamCreate(CUstream* stream, unsigned int) {
    BEGIN("cuStreamCreate");
    if (call.current() == nullptr) return call.failed();
    const uint64_t id = create(Kind::stream);
    books().streams[id] = Stream{this_thread().stack.back()};
    *stream = handle<CUstream>(id);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamDestroy_v2(CUstream stream) {
    BEGIN("cuStreamDestroy_v2");
    if (!call.valid(stream, Kind::stream)) return call.failed();
    release(number(stream));
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamBeginCapture_v2(CUstream stream, CUstreamCaptureMode mode) {
    BEGIN("cuStreamBeginCapture_v2");
    if (call.current() == nullptr) return call.failed();
    Stream* found = call.stream(stream);
    if (found == nullptr) return call.failed();
    found->capturing = true;
    found->mode = mode;
    found->thread = std::this_thread::get_id();
    return CUDA_SUCCESS;
}

// The captured graph is not kept: the launches are in the books, marked "capture".
EXPORT CUresult cuStreamEndCapture(CUstream stream, CUgraph* graph) {
    BEGIN("cuStreamEndCapture");
    if (!call.valid(stream, Kind::stream)) return call.failed();
    Stream& found = books().streams.at(number(stream));
    const bool invalidated = found.invalidated;
    found.capturing = found.invalidated = false;
    *graph = nullptr;
    return invalidated ? CUDA_ERROR_STREAM_CAPTURE_INVALIDATED : CUDA_SUCCESS;
}

// --- streams
// --------------------------------------------------------------------------------------

EXPORT CUresult cuStreamIsCapturing(CUstream stream, CUstreamCaptureStatus* status) {
    BEGIN("cuStreamIsCapturing");
    if (call.current() == nullptr) return call.failed();
    Stream* found = call.stream(stream);
    if (found == nullptr) return call.failed();
    *status = found->capturing ? CU_STREAM_CAPTURE_STATUS_ACTIVE : CU_STREAM_CAPTURE_STATUS_NONE;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuStreamSynchronize(CUstream stream) {
    BEGIN("cuStreamSynchronize");
    Context* context = call.current();
    if (context == nullptr) return call.failed();
    Stream* found = call.stream(stream);
    if (found == nullptr) return call.failed();
    if (found->capturing) {
        Call::invalidate(*found);
        return call.fail("the stream is being captured", CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED);
    }
    notice_fault(*context);
    auto& flying = context->in_flight;
    for (size_t i = flying.size(); i-- > 0;)
        if (flying[i].second == number(stream)) flying.erase(flying.begin() + i);
    return static_cast<CUresult>(context->fault);
}

// --- modules and functions
// ------------------------------------------------------------------------

EXPORT CUresult cuModuleLoadDataEx(CUmodule* module, const void* image, unsigned int count,
                                   CUjit_option* options, void** values) {
    BEGIN("cuModuleLoadDataEx");
    if (call.current() == nullptr || call.unsafe_now()) return call.failed();
    char* log = nullptr;
    size_t log_bytes = 0;
    for (unsigned i = 0; i < count; ++i) {
        if (options[i] == CU_JIT_ERROR_LOG_BUFFER) log = static_cast<char*>(values[i]);
        if (options[i] == CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES) log_bytes = number(values[i]);
    }
    Module made{this_thread().stack.back(), {}};
    std::string error;
    if (!parse(static_cast<const char*>(image), made, error)) {
        if (log != nullptr && log_bytes != 0) {
            // To the last byte, so that a wrong length shows.
            const size_t length = std::min(error.size(), log_bytes - 1);
            std::memset(log, 0, log_bytes);
            std::memcpy(log, error.data(), length);
        }
        return CUDA_ERROR_INVALID_PTX;
    }
    const uint64_t id = create(Kind::module);
    books().modules[id] = made;
    *module = handle<CUmodule>(id);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuModuleUnload(CUmodule module) {
    BEGIN("cuModuleUnload");
    Context* context = call.current();
    if (context == nullptr || call.unsafe_now() || !call.valid(module, Kind::module) ||
        !call.of_current(books().modules.at(number(module)).context))
        return call.failed();
    const auto from_here = [&](uint64_t function) {
        return books().functions.at(function).module == number(module);
    };
    for (const auto& [function, stream] : context->in_flight)
        if (from_here(function)) {
            call.complain("its kernels may still be running");
            break;
        }
    for (const auto& [id, node] : books().nodes)
        if (books().objects[node.graph].live && from_here(node.work.function))
            call.complain("a graph uses its kernels");
    for (const auto& [id, exec] : books().execs)
        for (const auto& [node, work] : exec.work)
            if (books().objects[id].live && from_here(work.function))
                call.complain("an executable graph uses its kernels");
    for (const auto& [id, function] : books().functions)
        if (function.module == number(module)) release(id);
    release(number(module));
    return CUDA_SUCCESS;
}

EXPORT CUresult cuModuleGetFunction(CUfunction* function, CUmodule module, const char* name) {
    BEGIN("cuModuleGetFunction");
    if (call.current() == nullptr || call.unsafe_now() || !call.valid(module, Kind::module) ||
        !call.of_current(books().modules.at(number(module)).context))
        return call.failed();
    const auto& kernels = books().modules.at(number(module)).kernels;
    const auto found = kernels.find(name);
    if (found == kernels.end()) return CUDA_ERROR_NOT_FOUND;
    const uint64_t id = create(Kind::function);
    books().functions[id] = {number(module), name, found->second,
                             default_shared_bytes - found->second.static_bytes};
    *function = handle<CUfunction>(id);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuFuncGetAttribute(int* value, CUfunction_attribute attribute,
                                   CUfunction function) {
    BEGIN("cuFuncGetAttribute");
    if (call.current() == nullptr || !call.valid(function, Kind::function)) return call.failed();
    if (attribute != CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES) return CUDA_ERROR_INVALID_VALUE;
    *value = books().functions.at(number(function)).kernel.static_bytes;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuFuncSetAttribute(CUfunction function, CUfunction_attribute attribute, int value) {
    BEGIN("cuFuncSetAttribute");
    if (call.current() == nullptr || call.unsafe_now() || !call.valid(function, Kind::function))
        return call.failed();
    Function& known = books().functions.at(number(function));
    if (attribute != CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES || value < 0 ||
        value + known.kernel.static_bytes > optin_shared_bytes)
        return CUDA_ERROR_INVALID_VALUE;
    if (value <= known.dynamic_bytes) call.complain("allows no more than was allowed before");
    known.dynamic_bytes = value;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuFuncGetParamInfo(CUfunction function, size_t index, size_t* offset,
                                   size_t* bytes) {
    BEGIN("cuFuncGetParamInfo");
    if (!call.valid(function, Kind::function)) return call.failed();
    if (index != 0) return CUDA_ERROR_INVALID_VALUE;
    *offset = 0;
    *bytes = books().functions.at(number(function)).kernel.bytes;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuLaunchKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y,
                               unsigned int grid_z, unsigned int block_x, unsigned int block_y,
                               unsigned int block_z, unsigned int shared_bytes, CUstream stream,
                               void** parameters, void** extra) {
    BEGIN("cuLaunchKernel");
    Context* context = call.current();
    if (context == nullptr) return call.failed();
    if (context->coming_fault != 0 && --context->launches_until == 0) {
        notice_fault(*context);
        return static_cast<CUresult>(context->fault);
    }
    Work work{0, {grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, shared_bytes, {}};
    if (!call.read(work, function, parameters, extra)) return call.failed();
    Stream* found = call.stream(stream);
    if (found == nullptr) return call.failed();
    if (found->capturing)
        record("capture", work, *context, stream);
    else
        send("launch", work, *context, stream);
    return CUDA_SUCCESS;
}

// --- graphs
// ---------------------------------------------------------------------------------------

EXPORT CUresult cuGraphCreate(CUgraph* graph, unsigned int) {
    BEGIN("cuGraphCreate");
    const uint64_t id = create(Kind::graph);
    books().graphs[id] = {};
    *graph = handle<CUgraph>(id);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphDestroy(CUgraph graph) {
    BEGIN("cuGraphDestroy", number(graph));
    if (!call.valid(graph, Kind::graph)) return call.failed();
    for (uint64_t node : books().graphs.at(number(graph))) release(node);
    release(number(graph));
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphAddKernelNode_v2(CUgraphNode* node, CUgraph graph,
                                        const CUgraphNode* dependencies, size_t count,
                                        const CUDA_KERNEL_NODE_PARAMS_v2* params) {
    BEGIN("cuGraphAddKernelNode_v2", number(graph));
    if (call.current() == nullptr || !call.valid(graph, Kind::graph)) return call.failed();
    Node made{number(graph), {}, {}};
    for (size_t i = 0; i < count; ++i) {
        if (!call.valid(dependencies[i], Kind::node)) return call.failed();
        made.dependencies.push_back(number(dependencies[i]));
    }
    made.work = {0,
                 {params->gridDimX, params->gridDimY, params->gridDimZ},
                 {params->blockDimX, params->blockDimY, params->blockDimZ},
                 params->sharedMemBytes,
                 {}};
    if (!call.read(made.work, params->func, params->kernelParams, params->extra))
        return call.failed();
    const uint64_t id = create(Kind::node);
    books().nodes[id] = made;
    books().graphs.at(number(graph)).push_back(id);
    *node = handle<CUgraphNode>(id);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphInstantiateWithFlags(CUgraphExec* exec, CUgraph graph, unsigned long long) {
    BEGIN("cuGraphInstantiateWithFlags", number(graph));
    if (call.current() == nullptr || call.unsafe_now() || !call.valid(graph, Kind::graph))
        return call.failed();
    Exec made{number(graph), this_thread().stack.back(), {}, {}};
    // Of the nodes that may run next, the one added last runs first: a missing dependency shows.
    const auto& nodes = books().graphs.at(number(graph));
    std::set<uint64_t> done;
    while (done.size() < nodes.size())
        for (size_t i = nodes.size(); i-- > 0;) {
            const Node& node = books().nodes.at(nodes[i]);
            bool ready = done.count(nodes[i]) == 0;
            for (uint64_t before : node.dependencies) ready = ready && done.count(before) != 0;
            if (!ready) continue;
            done.insert(nodes[i]);
            made.order.push_back(nodes[i]);
            made.work[nodes[i]] = node.work;
            break;
        }
    const uint64_t id = create(Kind::exec);
    books().execs[id] = made;
    *exec = handle<CUgraphExec>(id);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode node,
                                                  const CUDA_KERNEL_NODE_PARAMS_v2* params) {
    BEGIN("cuGraphExecKernelNodeSetParams_v2", number(exec));
    if (call.current() == nullptr || !call.valid(exec, Kind::exec) || !call.valid(node, Kind::node))
        return call.failed();
    Exec& known = books().execs.at(number(exec));
    const auto found = known.work.find(number(node));
    if (found == known.work.end())
        return call.fail("the node is of another graph", CUDA_ERROR_INVALID_VALUE);
    Work work{0,
              {params->gridDimX, params->gridDimY, params->gridDimZ},
              {params->blockDimX, params->blockDimY, params->blockDimZ},
              params->sharedMemBytes,
              {}};
    if (!call.read(work, params->func, params->kernelParams, params->extra)) return call.failed();
    found->second = work;
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream) {
    BEGIN("cuGraphLaunch", number(exec));
    Context* context = call.current();
    if (context == nullptr || !call.valid(exec, Kind::exec)) return call.failed();
    const Exec& known = books().execs.at(number(exec));
    if (!call.of_current(known.context)) return call.failed();
    if (context->coming_fault != 0 && --context->launches_until == 0) {
        notice_fault(*context);
        return static_cast<CUresult>(context->fault);
    }
    if (call.stream(stream) == nullptr) return call.failed();
    for (uint64_t node : known.order) {
        const Work& work = known.work.at(node);
        if (!call.valid(handle<CUfunction>(work.function), Kind::function) ||
            !call.judge_addresses(work))
            return call.failed();
    }
    for (uint64_t node : known.order) send("graph", known.work.at(node), *context, stream);
    return CUDA_SUCCESS;
}

EXPORT CUresult cuGraphExecDestroy(CUgraphExec exec) {
    BEGIN("cuGraphExecDestroy", number(exec));
    if (!call.valid(exec, Kind::exec)) return call.failed();
    release(number(exec));
    return CUDA_SUCCESS;
}
