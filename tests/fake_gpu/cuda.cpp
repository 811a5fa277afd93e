// FAKE libcuda.so.1: test code. Device memory is host memory, and kernels run on the CPU.
//
// What is queued in a stream runs as late as it may: when somebody waits for it. Work that is not waited for,
// buffers that are freed too early and results that are read too soon show in every test, not once a year.
//
// FAKE_CUDA_DEVICES  devices (1)
// FAKE_CUDA_MIB      memory of each (1024)
// FAKE_CUDA_FAIL     such as cuLaunchKernel:3, the call that fails with an illegal address
// FAKE_CUDA_MACHINE_CODE  1: modules are real machine code, taken without a look; the kernels run as ever
// FAKE_CUDA_REPORT   a file that gets counts of calls and the most memory in use, at the end
#include "kernels.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

typedef int Result;
typedef unsigned long long Address;
enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NO_DEVICE = 100, INVALID_DEVICE = 101, INVALID_IMAGE = 200,
       INVALID_CONTEXT = 201, NOT_FOUND = 500, NOT_READY = 600, ILLEGAL_ADDRESS = 700, NOT_SUPPORTED = 801 };

namespace {
// What threads may still use when the process ends is never destroyed: all of it is made by `new`.
std::recursive_mutex& all = *new std::recursive_mutex;
typedef std::lock_guard<std::recursive_mutex> Lock;
std::map<std::string, long>& calls = *new std::map<std::string, long>;

const char* setting(const char* name, const char* otherwise) {
    const char* value = getenv(name);
    return value && *value ? value : otherwise;
}
int n_devices() { return atoi(setting("FAKE_CUDA_DEVICES", "1")); }
size_t memory() { return strtoull(setting("FAKE_CUDA_MIB", "1024"), nullptr, 10) << 20; }

struct Event;
struct Stream;
struct Graph {
    std::vector<std::function<void()>> work;
};
struct Event {
    std::chrono::steady_clock::time_point time;
    Stream* stream = nullptr;  // where it was recorded last
    unsigned long number = 0;  // of the work before it
};
struct Stream {
    std::deque<std::function<void()>> queued;
    unsigned long n_queued = 0, n_done = 0;
    Graph* capture = nullptr;
    void add(std::function<void()> work) {
        if (capture) { capture->work.push_back(std::move(work)); return; }
        queued.push_back(std::move(work));
        ++n_queued;
    }
    void run(unsigned long until) {
        while (n_done < until && !queued.empty()) {
            auto work = std::move(queued.front());
            queued.pop_front();
            work();
            ++n_done;
        }
    }
    void run() { run(n_queued); }
};
std::set<Stream*>& streams() { static auto& s = *new std::set<Stream*>; return s; }
Stream* stream_of(void* s) {
    static Stream* legacy = [] { auto* s = new Stream; streams().insert(s); return s; }();
    return s ? (Stream*)s : legacy;
}
void run_all() { for (Stream* s : streams()) s->run(); }

std::map<Address, size_t>& allocations() { static auto& a = *new std::map<Address, size_t>; return a; }
size_t used = 0, most_used = 0;
// Whether the bytes lie in one allocation.
bool is_ours(Address at, size_t n) {
    auto next = allocations().upper_bound(at);
    if (next == allocations().begin()) return false;
    auto [start, len] = *--next;
    return at + n <= start + len;
}

int failed = 0;  // a context that failed stays so
// Counts a call; the one that is to fail does.
int enter(const char* name) {
    long n = ++calls[name];
    static const auto& fail = *new std::string(setting("FAKE_CUDA_FAIL", ""));
    const size_t colon = fail.find(':');
    if (colon != std::string::npos && fail.substr(0, colon) == name && n >= atol(fail.c_str() + colon + 1)) failed = ILLEGAL_ADDRESS;
    return failed;
}
struct Report {
    ~Report() {
        const char* path = getenv("FAKE_CUDA_REPORT");
        FILE* f = path ? fopen(path, "w") : nullptr;
        if (!f) return;
        fprintf(f, "most_bytes %zu\nleft_bytes %zu\n", most_used, used);
        for (auto& [name, n] : calls) fprintf(f, "%s %ld\n", name.c_str(), n);
        fclose(f);
    }
} report;

thread_local std::vector<void*> contexts;
// How often each device's primary context was retained and not released since.
std::map<int, int>& retained() { static auto& r = *new std::map<int, int>; return r; }

// The real driver reads memory that it freed; here a use too late ends the process.
void check_alive(void* c) {
    const uintptr_t device = (uintptr_t)c - 1;
    if (!c || device >= (uintptr_t)n_devices() || retained()[(int)device] > 0) return;
    fprintf(stderr, "FAKE CUDA: the primary context of device %d is used after its release\n", (int)device);
    abort();
}
// Whether the calling thread has a context, as most calls demand.
Result current() {
    if (contexts.empty() || !contexts.back()) return INVALID_CONTEXT;
    check_alive(contexts.back());
    return OK;
}

Result allocate(Address* at, size_t n) {
    if (used + n > memory()) return OUT_OF_MEMORY;
    void* p = aligned_alloc(512, (n + 511) / 512 * 512);
    if (!p) return OUT_OF_MEMORY;
    memset(p, 0xA5, n);
    *at = (Address)p;
    allocations()[*at] = n;
    used += n;
    if (used > most_used) most_used = used;
    return OK;
}
Result release(Address at) {
    auto found = allocations().find(at);
    if (found == allocations().end()) return at ? INVALID_VALUE : OK;
    run_all();  // as the real one does
    memset((void*)at, 0xDD, found->second);
    used -= found->second;
    allocations().erase(found);
    free((void*)at);
    return OK;
}
}  // namespace

#define API extern "C" __attribute__((visibility("default"))) Result
#define ENTER(name) Lock lock(all); if (int e = enter(name)) return e
#define ENTER_IN_CONTEXT(name) ENTER(name); if (int e = current()) return e
#define RELEASE() Lock lock(all); if (!contexts.empty()) check_alive(contexts.back())

API cuInit(unsigned) { Lock lock(all); return n_devices() ? OK : NO_DEVICE; }
API cuDriverGetVersion(int* v) { *v = 13000; return OK; }
API cuDeviceGetCount(int* n) { *n = n_devices(); return OK; }
API cuDeviceGet(int* d, int i) { *d = i; return i < n_devices() ? OK : INVALID_DEVICE; }
API cuDeviceGetName(char* s, int n, int d) { snprintf(s, n, "fake device %d", d); return OK; }
API cuDeviceTotalMem_v2(size_t* n, int) { *n = memory(); return OK; }
API cuDeviceGetAttribute(int* v, int a, int) {
    *v = a == 75 ? 9 : a == 76 ? 0 : a == 115 ? 1 : a == 14 ? 512 : a == 16 ? 4 : 0;
    return OK;
}
API cuDeviceGetUuid_v2(unsigned char* u, int d) { memset(u, d + 1, 16); return OK; }
API cuDevicePrimaryCtxRetain(void** c, int d) { ENTER("cuDevicePrimaryCtxRetain"); ++retained()[d]; *c = (void*)(uintptr_t)(d + 1); return OK; }
API cuDevicePrimaryCtxRelease_v2(int d) { Lock lock(all); return retained()[d] > 0 ? (--retained()[d], OK) : INVALID_CONTEXT; }
API cuCtxSetCurrent(void* c) { { Lock lock(all); check_alive(c); } if (contexts.empty()) contexts.push_back(c); else contexts.back() = c; return OK; }
API cuCtxGetCurrent(void** c) { *c = contexts.empty() ? nullptr : contexts.back(); return OK; }
API cuCtxPushCurrent_v2(void* c) { { Lock lock(all); check_alive(c); } contexts.push_back(c); return OK; }
API cuCtxPopCurrent_v2(void** c) {
    if (contexts.empty()) return INVALID_CONTEXT;
    if (c) *c = contexts.back();
    contexts.pop_back();
    return OK;
}
API cuCtxCreate_v2(void** c, unsigned, int) { ENTER("cuCtxCreate"); *c = malloc(1); contexts.push_back(*c); return OK; }
API cuCtxDestroy_v2(void* c) { free(c); return OK; }
API cuCtxGetDevice(int* d) { *d = contexts.empty() ? 0 : int((uintptr_t)contexts.back()) - 1; return OK; }
API cuCtxEnablePeerAccess(void*, unsigned) { return OK; }
API cuCtxDisablePeerAccess(void*) { return OK; }
API cuDeviceCanAccessPeer(int* v, int, int) { *v = 0; return OK; }
API cuCtxSynchronize() { ENTER_IN_CONTEXT("cuCtxSynchronize"); run_all(); return OK; }

API cuMemGetInfo_v2(size_t* free, size_t* total) { Lock lock(all); *total = memory(); *free = memory() - used; return OK; }
API cuMemAlloc_v2(Address* p, size_t n) { ENTER_IN_CONTEXT("cuMemAlloc"); return allocate(p, n); }
API cuMemAllocAsync(Address* p, size_t n, void*) { ENTER_IN_CONTEXT("cuMemAlloc"); return allocate(p, n); }
API cuMemAllocPitch_v2(Address* p, size_t* pitch, size_t w, size_t h, unsigned) {
    ENTER_IN_CONTEXT("cuMemAllocPitch");
    *pitch = (w + 511) / 512 * 512;
    return allocate(p, *pitch * h);
}
API cuMemFree_v2(Address p) { RELEASE(); return release(p); }
API cuMemFreeAsync(Address p, void*) { RELEASE(); return release(p); }
API cuMemHostAlloc(void** p, size_t n, unsigned) { ENTER_IN_CONTEXT("cuMemHostAlloc"); *p = aligned_alloc(4096, (n + 4095) / 4096 * 4096); return *p ? OK : OUT_OF_MEMORY; }
API cuMemAllocHost_v2(void** p, size_t n) { return cuMemHostAlloc(p, n, 0); }
API cuMemFreeHost(void* p) { RELEASE(); run_all(); free(p); return OK; }

// As with pinned memory: both ends must stay until the stream was waited for.
API cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t n, void* s) {
    ENTER_IN_CONTEXT("cuMemcpyHtoDAsync");
    if (!is_ours(to, n)) return ILLEGAL_ADDRESS;
    stream_of(s)->add([=] { memcpy((void*)to, from, n); });
    return OK;
}
API cuMemcpyDtoHAsync_v2(void* to, Address from, size_t n, void* s) {
    ENTER_IN_CONTEXT("cuMemcpyDtoHAsync");
    if (!is_ours(from, n)) return ILLEGAL_ADDRESS;
    stream_of(s)->add([=] { memcpy(to, (void*)from, n); });
    return OK;
}
API cuMemcpyDtoDAsync_v2(Address to, Address from, size_t n, void* s) {
    ENTER_IN_CONTEXT("cuMemcpyDtoDAsync");
    if (!is_ours(from, n) || !is_ours(to, n)) return ILLEGAL_ADDRESS;
    stream_of(s)->add([=] { memmove((void*)to, (void*)from, n); });
    return OK;
}
API cuMemcpyPeerAsync(Address to, void* to_context, Address from, void* from_context, size_t n, void* s) {
    ENTER("cuMemcpyPeerAsync");
    if (to_context == from_context) return INVALID_CONTEXT;
    if (!is_ours(from, n) || !is_ours(to, n)) return ILLEGAL_ADDRESS;
    stream_of(s)->add([=] { memmove((void*)to, (void*)from, n); });
    return OK;
}
API cuMemcpyHtoD_v2(Address to, const void* from, size_t n) { Lock lock(all); if (int e = current()) return e; run_all(); memcpy((void*)to, from, n); return OK; }
API cuMemcpyDtoH_v2(void* to, Address from, size_t n) { Lock lock(all); if (int e = current()) return e; run_all(); memcpy(to, (void*)from, n); return OK; }
API cuMemsetD8Async(Address to, unsigned char v, size_t n, void* s) {
    ENTER_IN_CONTEXT("cuMemsetD8Async");
    if (!is_ours(to, n)) return ILLEGAL_ADDRESS;
    stream_of(s)->add([=] { memset((void*)to, v, n); });
    return OK;
}
struct Copy2D {
    size_t from_x, from_y; int from_type; const void* from_host; Address from_device; void* from_array; size_t from_pitch;
    size_t to_x, to_y; int to_type; void* to_host; Address to_device; void* to_array; size_t to_pitch;
    size_t width, height;
};
API cuMemcpy2DAsync_v2(const Copy2D* c, void* s) {
    ENTER_IN_CONTEXT("cuMemcpy2DAsync");
    Copy2D m = *c;
    stream_of(s)->add([m] {
        const char* from = (m.from_type == 1 ? (const char*)m.from_host : (const char*)m.from_device) + m.from_y * m.from_pitch + m.from_x;
        char* to = (m.to_type == 1 ? (char*)m.to_host : (char*)m.to_device) + m.to_y * m.to_pitch + m.to_x;
        for (size_t y = 0; y < m.height; ++y) memcpy(to + y * m.to_pitch, from + y * m.from_pitch, m.width);
    });
    return OK;
}
API cuMemcpy2D_v2(const Copy2D* c) { Lock lock(all); Result r = cuMemcpy2DAsync_v2(c, nullptr); run_all(); return r; }

API cuStreamCreate(void** s, unsigned) { ENTER_IN_CONTEXT("cuStreamCreate"); auto* made = new Stream; streams().insert(made); *s = made; return OK; }
API cuStreamCreateWithPriority(void** s, unsigned f, int) { return cuStreamCreate(s, f); }
API cuStreamDestroy_v2(void* s) { RELEASE(); stream_of(s)->run(); streams().erase((Stream*)s); delete (Stream*)s; return OK; }
API cuStreamDestroy(void* s) { return cuStreamDestroy_v2(s); }
API cuStreamSynchronize(void* s) { ENTER("cuStreamSynchronize"); stream_of(s)->run(); return failed; }
API cuStreamQuery(void* s) { ENTER("cuStreamQuery"); Stream* t = stream_of(s); t->run(t->n_done + 1); return t->queued.empty() ? OK : NOT_READY; }
API cuStreamWaitEvent(void* s, void* e, unsigned) {
    ENTER("cuStreamWaitEvent");
    Event* event = (Event*)e;
    Stream* of = event->stream;
    unsigned long until = event->number;
    stream_of(s)->add([=] { if (of && streams().count(of)) of->run(until); });
    return OK;
}
API cuEventCreate(void** e, unsigned) { ENTER_IN_CONTEXT("cuEventCreate"); *e = new Event; return OK; }
API cuEventDestroy_v2(void* e) { RELEASE(); delete (Event*)e; return OK; }
API cuEventRecord(void* e, void* s) {
    ENTER("cuEventRecord");
    Event* event = (Event*)e;
    Stream* stream = stream_of(s);
    if (stream->capture) return OK;
    event->stream = stream;
    event->number = stream->n_queued;
    event->time = std::chrono::steady_clock::now();
    return OK;
}
API cuEventSynchronize(void* e) {
    ENTER("cuEventSynchronize");
    Event* event = (Event*)e;
    if (event->stream && streams().count(event->stream)) event->stream->run(event->number);
    event->time = std::chrono::steady_clock::now();
    return failed;
}
API cuEventQuery(void* e) {
    ENTER("cuEventQuery");
    Event* event = (Event*)e;
    Stream* s = event->stream;
    if (!s || !streams().count(s) || s->n_done >= event->number) return OK;
    s->run(s->n_done + 1);
    return s->n_done >= event->number ? OK : NOT_READY;
}
API cuEventElapsedTime(float* ms, void* a, void* b) {
    *ms = std::chrono::duration<float, std::milli>(((Event*)b)->time - ((Event*)a)->time).count();
    return OK;
}
API cuEventElapsedTime_v2(float* ms, void* a, void* b) { return cuEventElapsedTime(ms, a, b); }

API cuStreamBeginCapture_v2(void* s, int) { ENTER("cuStreamBeginCapture"); stream_of(s)->capture = new Graph; return OK; }
API cuStreamEndCapture(void* s, void** g) { ENTER("cuStreamEndCapture"); *g = stream_of(s)->capture; stream_of(s)->capture = nullptr; return OK; }
API cuStreamIsCapturing(void* s, int* status) { Lock lock(all); *status = stream_of(s)->capture ? 1 : 0; return OK; }
API cuGraphInstantiateWithFlags(void** e, void* g, unsigned long long) { ENTER("cuGraphInstantiate"); *e = new Graph(*(Graph*)g); return OK; }
API cuGraphDestroy(void* g) { Lock lock(all); delete (Graph*)g; return OK; }
API cuGraphExecDestroy(void* g) { Lock lock(all); delete (Graph*)g; return OK; }
API cuGraphUpload(void*, void*) { return OK; }
API cuGraphLaunch(void* g, void* s) {
    ENTER("cuGraphLaunch");
    for (auto& work : ((Graph*)g)->work) stream_of(s)->add(work);
    return OK;
}

API cuModuleLoadData(void** m, const void* image) {
    ENTER_IN_CONTEXT("cuModuleLoadData");
    const bool is_machine_code = strncmp((const char*)image, "\x7F" "ELF", 4) == 0;
    if (atoi(setting("FAKE_CUDA_MACHINE_CODE", "0")) != is_machine_code) return INVALID_IMAGE;
    if (!is_machine_code && strncmp((const char*)image, "FAKE ", 5) != 0) return INVALID_IMAGE;
    *m = (void*)0x2;
    return OK;
}
API cuModuleUnload(void*) { return OK; }
API cuModuleGetFunction(void** f, void*, const char* name) {
    ENTER("cuModuleGetFunction");
    auto found = kernels().find(name);
    if (found == kernels().end()) return NOT_FOUND;
    *f = (void*)&found->second;
    return OK;
}
API cuFuncGetAttribute(int* v, int, void*) { *v = 0; return OK; }
API cuFuncSetAttribute(void*, int, int) { return OK; }
API cuLaunchKernel(void* f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                   unsigned shared_bytes, void* s, void** args, void**) {
    ENTER_IN_CONTEXT("cuLaunchKernel");
    // A block gets no more than this unasked.
    if (shared_bytes > 48 << 10 || !gx || !gy || !gz || gy > 65535 || gz > 65535 || bx * by * bz > 1024) return INVALID_VALUE;
    stream_of(s)->add((*(const Kernel*)f)(Launch{{gx, gy, gz}, {bx, by, bz}, shared_bytes, args}));
    return OK;
}
API cuLaunchHostFunc(void* s, void (*f)(void*), void* data) { ENTER("cuLaunchHostFunc"); stream_of(s)->add([=] { f(data); }); return OK; }
API cuGetErrorName(Result e, const char** s) {
    *s = e == OUT_OF_MEMORY ? "CUDA_ERROR_OUT_OF_MEMORY" : e == ILLEGAL_ADDRESS ? "CUDA_ERROR_ILLEGAL_ADDRESS" : "CUDA_ERROR_FAKE";
    return OK;
}
API cuGetErrorString(Result e, const char** s) {
    *s = e == OUT_OF_MEMORY ? "out of memory" : e == ILLEGAL_ADDRESS ? "an illegal memory access was encountered" : "the fake driver refuses";
    return OK;
}

// For fakes of other libraries that queue work in a stream of this one.
extern "C" __attribute__((visibility("default"))) void fake_cuda_queue(void* s, void (*f)(void*), void* data) {
    Lock lock(all);
    stream_of(s)->add([=] { f(data); });
}

// Graphics and textures, which libgstcuda looks up: refused.
#define REFUSED(name) API name() { return NOT_SUPPORTED; }
REFUSED(cuGLGetDevices_v2) REFUSED(cuGraphicsGLRegisterBuffer) REFUSED(cuGraphicsGLRegisterImage)
REFUSED(cuGraphicsMapResources) REFUSED(cuGraphicsResourceGetMappedPointer_v2) REFUSED(cuGraphicsResourceSetMapFlags_v2)
REFUSED(cuGraphicsSubResourceGetMappedArray) REFUSED(cuGraphicsUnmapResources) REFUSED(cuGraphicsUnregisterResource)
REFUSED(cuTexObjectCreate) REFUSED(cuTexObjectDestroy)
