// A CUDA driver over host memory: the part of libcuda.so.1 that the GPU runtime calls.
//
// Work is done when it is queued, or kept while its stream is captured. The row kernels are those of
// rows.cu, compiled for the host and run thread by thread, so their arithmetic is tested without a
// GPU. stub_* are for tests: what is still alive, which call is to fail, work of a foreign library.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <dlfcn.h>
#include <functional>
#include <map>
#include <set>
#include <string>
#include <vector>

struct Dim { unsigned x, y, z; };
static Dim blockIdx, blockDim, gridDim, threadIdx;
struct alignas(16) uint4 { unsigned x, y, z, w; };
#define __device__
#define __global__
#include "rows.cu"

typedef int Result;
typedef std::uint64_t Address;
typedef std::function<void()> Work;
enum { OK = 0, INVALID = 1, NO_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, NOT_FOUND = 500,
       NOT_READY = 600, CAPTURE_UNSUPPORTED = 900 };

struct Stream { std::vector<Work>* captured = nullptr; };
struct Event { double ms = 0; };
struct Graph { std::vector<Work> work; };

static std::map<void*, size_t> device_memory, pinned_memory;
static std::set<void*> things;  // streams, events, graphs and modules
static std::vector<void*> contexts;
static int retained = 0, context_body = 0;
static double now_ms = 0;
static std::string failing;
static int failing_in = 0, failing_code = 0;

static Result enter(const char* name)
{
    if (failing != name)
        return OK;
    if (failing_in > 0)
        --failing_in;
    return failing_in == 0 ? failing_code : OK;  // the nth call and all after it
}
#define ENTER                                     \
    if (Result code_ = enter(__func__)) return code_

template <typename T> static T* opened(T* thing) { things.insert(thing); return thing; }

template <typename T> static Result closed(void* thing)
{
    if (!things.erase(thing)) return INVALID;
    delete static_cast<T*>(thing);
    return OK;
}

static Result queued(void* handle, Work work)
{
    Stream* stream = static_cast<Stream*>(handle);
    if (!things.count(stream)) return INVALID;
    if (contexts.empty()) return 201;  // CUDA_ERROR_INVALID_CONTEXT
    now_ms += 0.01;
    if (stream->captured) stream->captured->push_back(work);
    else work();
    return OK;
}

static bool holds(const std::map<void*, size_t>& memory, const void* address, size_t size)
{
    auto next = memory.upper_bound(const_cast<void*>(address));
    if (next == memory.begin()) return false;
    --next;
    return static_cast<const char*>(address) + size
        <= static_cast<const char*>(next->first) + next->second;
}

static Result allocated(std::map<void*, size_t>& memory, void** address, size_t size)
{
    if (size == 0) return INVALID;
    *address = std::aligned_alloc(256, (size + 255) / 256 * 256);
    memset(*address, 0xCD, size);
    memory[*address] = size;
    return OK;
}

static Result freed(std::map<void*, size_t>& memory, void* address)
{
    if (!memory.erase(address)) return INVALID;
    std::free(address);
    return OK;
}

extern "C" {
Result cuInit(unsigned) { ENTER; return OK; }
Result cuDriverGetVersion(int* version) { *version = 13000; return OK; }
Result cuDeviceGetCount(int* count) { ENTER; *count = 1; return OK; }
Result cuDeviceGet(int* device, int ordinal) { *device = ordinal; return ordinal ? 101 : OK; }
Result cuDeviceGetName(char* name, int size, int) { strncpy(name, "stub GPU", size); return OK; }
Result cuDeviceComputeCapability(int* major, int* minor, int) { *major = 9; *minor = 0; return OK; }
Result cuDeviceGetAttribute(int* value, int attribute, int)
{
    *value = attribute == 75 ? 9 : 0;  // compute capability, major and minor
    return OK;
}
Result cuDevicePrimaryCtxRetain(void** context, int)
{
    ENTER;
    ++retained;
    *context = &context_body;
    return OK;
}
Result cuDevicePrimaryCtxRelease_v2(int) { --retained; return OK; }
Result cuCtxPushCurrent_v2(void* context) { ENTER; contexts.push_back(context); return OK; }
Result cuCtxPopCurrent_v2(void** context)
{
    if (contexts.empty()) return 201;
    *context = contexts.back();
    contexts.pop_back();
    return OK;
}
Result cuCtxGetCurrent(void** context)
{
    *context = contexts.empty() ? nullptr : contexts.back();
    return OK;
}
Result cuCtxGetDevice(int* device) { *device = 0; return OK; }
Result cuCtxSynchronize() { return OK; }

static const size_t memory_bytes = size_t(1) << 34;  // as much as host memory gives is used of it
Result cuMemGetInfo_v2(size_t* free, size_t* total)
{
    *total = memory_bytes;
    *free = memory_bytes / 2;
    return OK;
}
Result cuDeviceTotalMem_v2(size_t* total, int) { *total = memory_bytes; return OK; }
Result cuMemAlloc_v2(Address* address, size_t size)
{
    ENTER;
    if (size > memory_bytes) return NO_MEMORY;
    return allocated(device_memory, reinterpret_cast<void**>(address), size);
}
Result cuMemFree_v2(Address address)
{
    ENTER;
    return freed(device_memory, reinterpret_cast<void*>(address));
}
Result cuMemHostAlloc(void** address, size_t size, unsigned)
{
    ENTER;
    return allocated(pinned_memory, address, size);
}
Result cuMemFreeHost(void* address) { ENTER; return freed(pinned_memory, address); }

Result cuStreamCreate(void** stream, unsigned flags)
{
    ENTER;
    *stream = opened(new Stream);
    return flags == 1 ? OK : INVALID;  // streams that wait for no other
}
Result cuStreamDestroy_v2(void* stream) { return closed<Stream>(stream); }
Result cuStreamSynchronize(void* stream)
{
    ENTER;
    if (!things.count(stream)) return INVALID;
    return static_cast<Stream*>(stream)->captured ? CAPTURE_UNSUPPORTED : OK;
}
Result cuStreamWaitEvent(void* stream, void* event, unsigned)
{
    ENTER;
    return things.count(stream) && things.count(event) ? OK : INVALID;
}
Result cuEventCreate(void** event, unsigned) { ENTER; *event = opened(new Event); return OK; }
Result cuEventDestroy_v2(void* event) { return closed<Event>(event); }
Result cuEventRecord(void* event, void* stream)
{
    ENTER;
    if (!things.count(stream) || !things.count(event)) return INVALID;
    static_cast<Event*>(event)->ms = now_ms;
    return OK;
}
Result cuEventSynchronize(void* event) { ENTER; return things.count(event) ? OK : INVALID; }
Result cuEventQuery(void* event) { return things.count(event) ? OK : INVALID; }
Result cuEventElapsedTime_v2(float* ms, void* start, void* end)
{
    *ms = static_cast<float>(static_cast<Event*>(end)->ms - static_cast<Event*>(start)->ms);
    return OK;
}
Result cuEventElapsedTime(float* ms, void* start, void* end)
{
    return cuEventElapsedTime_v2(ms, start, end);
}

Result cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t size, void* stream)
{
    ENTER;
    void* target = reinterpret_cast<void*>(to);
    if (!holds(device_memory, target, size) || !holds(pinned_memory, from, size)) return INVALID;
    return queued(stream, [=] { memcpy(target, from, size); });
}
Result cuMemcpyDtoHAsync_v2(void* to, Address from, size_t size, void* stream)
{
    ENTER;
    const void* source = reinterpret_cast<void*>(from);
    if (!holds(pinned_memory, to, size) || !holds(device_memory, source, size)) return INVALID;
    return queued(stream, [=] { memcpy(to, source, size); });
}
Result cuMemcpyDtoDAsync_v2(Address to, Address from, size_t size, void* stream)
{
    ENTER;
    void *target = reinterpret_cast<void*>(to), *source = reinterpret_cast<void*>(from);
    if (!holds(device_memory, target, size) || !holds(device_memory, source, size)) return INVALID;
    return queued(stream, [=] { memcpy(target, source, size); });
}
Result cuMemsetD8Async(Address to, unsigned char value, size_t size, void* stream)
{
    ENTER;
    void* target = reinterpret_cast<void*>(to);
    if (!holds(device_memory, target, size)) return INVALID;
    return queued(stream, [=] { memset(target, value, size); });
}

Result cuModuleLoadData(void** module, const void* image)
{
    ENTER;
    if (!strstr(static_cast<const char*>(image), ".visible .entry")) return 218;  // INVALID_PTX
    *module = opened(new Event);
    return OK;
}
Result cuModuleLoadDataEx(void** module, const void* image, unsigned, void*, void*)
{
    return cuModuleLoadData(module, image);
}
Result cuModuleUnload(void* module) { return closed<Event>(module); }
Result cuModuleGetFunction(void** function, void*, const char* name)
{
    ENTER;
    if (!strcmp(name, "gather_rows")) *function = reinterpret_cast<void*>(&gather_rows);
    else if (!strcmp(name, "scatter_rows")) *function = reinterpret_cast<void*>(&scatter_rows);
    else return NOT_FOUND;
    return OK;
}
Result cuFuncSetBlockShape(void*, int, int, int) { return OK; }
Result cuLaunchKernel(void* function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                      unsigned bz, unsigned, void* stream, void** parameters, void** extra)
{
    ENTER;
    Address given[2];
    if (parameters)  // pointers to each
        for (int i = 0; i < 2; ++i) given[i] = *static_cast<Address*>(parameters[i]);
    else  // CU_LAUNCH_PARAM_BUFFER_POINTER, buffer, ...
        memcpy(given, extra[1], sizeof given);
    if (by != 1 || bz != 1) return INVALID;
    auto kernel = reinterpret_cast<void (*)(const Rows*, const int*)>(function);
    auto tensors = reinterpret_cast<const Rows*>(given[0]);
    auto slots = reinterpret_cast<const int*>(given[1]);
    return queued(stream, [=] {
        gridDim = {gx, gy, gz};
        blockDim = {bx, by, bz};
        for (blockIdx.z = 0; blockIdx.z < gz; ++blockIdx.z)
            for (blockIdx.y = 0; blockIdx.y < gy; ++blockIdx.y)
                for (blockIdx.x = 0; blockIdx.x < gx; ++blockIdx.x)
                    for (threadIdx.x = 0; threadIdx.x < bx; ++threadIdx.x) kernel(tensors, slots);
    });
}

Result cuStreamBeginCapture_v2(void* stream, int mode)
{
    ENTER;
    if (mode != 1) return INVALID;  // of this thread only
    static_cast<Stream*>(stream)->captured = new std::vector<Work>;
    return OK;
}
Result cuStreamEndCapture(void* stream, void** graph)
{
    ENTER;
    Stream* own = static_cast<Stream*>(stream);
    Graph* made = opened(new Graph);
    made->work = *own->captured;
    delete own->captured;
    own->captured = nullptr;
    *graph = made;
    return OK;
}
Result cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long)
{
    ENTER;
    *executable = opened(new Graph(*static_cast<Graph*>(graph)));
    return OK;
}
Result cuGraphLaunch(void* executable, void* stream)
{
    ENTER;
    if (!things.count(executable) || !things.count(stream)) return INVALID;
    for (Work& work : static_cast<Graph*>(executable)->work) work();
    return OK;
}
Result cuGraphDestroy(void* graph) { return closed<Graph>(graph); }
Result cuGraphExecDestroy(void* graph) { return closed<Graph>(graph); }
Result cuGetErrorName(Result, const char** name) { *name = "CUDA_ERROR"; return OK; }
Result cuGetErrorString(Result code, const char** text)
{
    *text = code == NO_MEMORY ? "out of memory" : "unspecified launch failure";
    return OK;
}
Result cuGetProcAddress_v2(const char* symbol, void** function, int, std::uint64_t, int* status)
{
    const std::string name = symbol;
    const char* lacking = getenv("STUB_LACKS");  // a driver that is older than this call
    *function = nullptr;
    for (const char* ending : {"_v2", "WithFlags", ""})
        if (!*function && !(lacking && name == lacking)) *function = dlsym(RTLD_DEFAULT, (name + ending).c_str());
    Dl_info found;  // nothing but this library's own
    if (*function && (!dladdr(*function, &found) || !strstr(found.dli_fname, "libcuda")))
        *function = nullptr;
    if (status) *status = *function ? 0 : 1;
    return *function ? OK : NOT_FOUND;
}

// ---- for tests

int stub_alive() { return device_memory.size() + pinned_memory.size() + things.size(); }
int stub_retained() { return retained; }
int stub_contexts() { return contexts.size(); }
void stub_fail(const char* call, int nth, int code)
{
    failing = call;
    failing_in = nth;
    failing_code = code;
}
int stub_queue(void* stream, void (*callback)(long), long number)
{
    return queued(stream, [=] { callback(number); });
}
}
