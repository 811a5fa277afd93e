// FAKE libnvinfer.so.10 and its shim in one: test code, no TensorRT. A plan is a line of text, and an "engine"
// gives for each picture the means of as many stripes of its numbers as an output is long. The work is queued
// in a stream of the fake driver, which runs it as late as it may.
//
// FAKE_TENSORRT_VERSION  as getInferLibVersion counts (101600)
// FAKE_TENSORRT_OUTPUTS  such as embedding:6,logits:4 (embedding:6)
// FAKE_TENSORRT_FAIL     such as enqueue:3, the call that fails, and all later ones
// FAKE_TENSORRT_REFUSE_RECORDING  no work is taken while the stream records a graph
// FAKE_TENSORRT_SLOW     a build takes ten seconds, unless it is stopped
// FAKE_TENSORRT_REPORT   a file that gets a line for every plan that is built
#include "tensorrt.h"

#include <dlfcn.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <sstream>
#include <string>
#include <vector>

#define SHOWN extern "C" __attribute__((visibility("default")))

namespace {
const uint64_t SCRATCH = 4096;

const char* setting(const char* name, const char* otherwise) {
    const char* value = getenv(name);
    return value && *value ? value : otherwise;
}

void tell(const std::string& text, char* why, size_t size) { snprintf(why, size, "fake: %s", text.c_str()); }

std::mutex& lock = *new std::mutex;
// Whether this call is the one that is to fail.
bool fails(const char* call) {
    static auto& calls = *new std::map<std::string, long>;
    std::lock_guard<std::mutex> guard(lock);
    long n = ++calls[call];
    std::string fail = setting("FAKE_TENSORRT_FAIL", "");
    size_t colon = fail.find(':');
    return colon != std::string::npos && fail.substr(0, colon) == call && n >= atol(fail.c_str() + colon + 1);
}

float half(uint16_t h) {
    int exponent = h >> 10 & 31, fraction = h & 1023;
    float size = exponent == 31 ? (fraction ? NAN : INFINITY)
                                : exponent ? std::ldexp(1024.f + fraction, exponent - 25) : std::ldexp((float)fraction, -24);
    return h & 0x8000 ? -size : size;
}

struct Output {
    std::string name;
    int64_t len;
};
std::vector<Output> outputs_of(const std::string& list) {
    std::vector<Output> all;
    std::stringstream stream(list);
    for (std::string one; std::getline(stream, one, ',');) {
        size_t colon = one.find(':');
        all.push_back({one.substr(0, colon), atol(one.c_str() + colon + 1)});
    }
    return all;
}
}  // namespace

struct clipmill_trt_library {};
struct clipmill_trt_engine {
    std::string input;
    int is_half;
    std::vector<int64_t> row;
    std::vector<int64_t> batches;
    std::vector<Output> outputs;
};
struct clipmill_trt_session {
    const clipmill_trt_engine* engine;
    int64_t n;
    int32_t profile;
    uint64_t scratch;
    std::map<std::string, uint64_t> addresses;
};

namespace {
// All that the work needs, copied when it is queued.
struct Work {
    clipmill_trt_engine engine;
    clipmill_trt_session session;
};

void run(void* data) {
    Work* work = (Work*)data;
    const auto& engine = work->engine;
    const auto& at = work->session.addresses;
    size_t len = 1;
    for (int64_t dim : engine.row) len *= dim;
    const void* from = (const void*)at.at(engine.input);
    // What others keep there shows.
    memset((void*)work->session.scratch, 0xEE, SCRATCH);
    for (const Output& output : engine.outputs) {
        float* to = (float*)at.at(output.name);
        for (int64_t n = 0; n < work->session.n; ++n) {
            for (int64_t i = 0; i < output.len; ++i) {
                double sum = 0;
                size_t start = i * len / output.len, end = (i + 1) * len / output.len;
                for (size_t k = start; k < end; ++k)
                    sum += engine.is_half ? half(((const uint16_t*)from)[n * len + k]) : ((const float*)from)[n * len + k];
                *to++ = float(sum / double(end - start));
            }
        }
    }
    // Graphs launch it again, so it stays: a test's process ends soon.
}
}  // namespace

SHOWN int32_t getInferLibVersion() { return atoi(setting("FAKE_TENSORRT_VERSION", "101600")); }

SHOWN int32_t clipmill_trt_abi() { return CLIPMILL_TRT_ABI; }
SHOWN int32_t clipmill_trt_headers() { return 101600; }
SHOWN int32_t clipmill_trt_is_strongly_typed() { return getInferLibVersion() >= 110000; }

SHOWN clipmill_trt_library* clipmill_trt_load(const char*, const char*, clipmill_trt_log log, void* user, char*, size_t) {
    log(user, 2, "this is a FAKE TensorRT for tests");
    return new clipmill_trt_library;
}
SHOWN int32_t clipmill_trt_can_build(const clipmill_trt_library*) { return 1; }

SHOWN int32_t clipmill_trt_build(clipmill_trt_library*, const clipmill_trt_build_options* o, void** plan, size_t* size,
                                 char* why, size_t why_size) {
    if (fails("build")) return tell("no plan can be built", why, why_size), 0;
    if (o->n_ranges != 1 || !o->n_profiles) return tell("one input and a profile are wanted", why, why_size), 0;
    const int n_steps = getenv("FAKE_TENSORRT_SLOW") ? 10000 : 4;
    for (int step = 0; step < n_steps; ++step) {
        if (o->progress && !o->progress(o->user, "pretending", nullptr, step, n_steps))
            return tell("stopped", why, why_size), 0;
        if (n_steps > 4) usleep(1000);
    }
    std::stringstream text;
    text << "FAKE PLAN " << o->ranges[0].input << " " << o->is_half_input << " " << o->ranges[0].n_dims - 1;
    for (int i = 1; i < o->ranges[0].n_dims; ++i) text << " " << o->ranges[0].most[i];
    text << " " << o->n_profiles;
    for (int i = 0; i < o->n_profiles; ++i) text << " " << o->ranges[i].most[0];
    text << " " << setting("FAKE_TENSORRT_OUTPUTS", "embedding:6");
    if (const char* report = getenv("FAKE_TENSORRT_REPORT")) {
        FILE* f = fopen(report, "a");
        fprintf(f, "precision %d, %zu bytes of ONNX: %s\n", o->precision, o->onnx_size, text.str().c_str());
        fclose(f);
    }
    *size = text.str().size();
    *plan = malloc(*size);
    memcpy(*plan, text.str().data(), *size);
    return 1;
}
SHOWN void clipmill_trt_free(void* plan) { free(plan); }

SHOWN clipmill_trt_engine* clipmill_trt_engine_new(clipmill_trt_library*, const void* plan, size_t size, char* why,
                                                   size_t why_size) {
    std::stringstream text(std::string((const char*)plan, size));
    std::string fake, word, outputs;
    auto* engine = new clipmill_trt_engine;
    size_t n_dims = 0, n_profiles = 0;
    text >> fake >> word >> engine->input >> engine->is_half >> n_dims;
    engine->row.resize(n_dims);
    for (auto& dim : engine->row) text >> dim;
    text >> n_profiles;
    engine->batches.resize(n_profiles);
    for (auto& batch : engine->batches) text >> batch;
    text >> outputs;
    if (fake != "FAKE" || text.fail() || fails("engine")) {
        delete engine;
        return tell("the plan is refused", why, why_size), nullptr;
    }
    engine->outputs = outputs_of(outputs);
    return engine;
}
SHOWN void clipmill_trt_engine_free(clipmill_trt_engine* engine) { delete engine; }
SHOWN int32_t clipmill_trt_n_tensors(const clipmill_trt_engine* e) { return 1 + (int32_t)e->outputs.size(); }
SHOWN int32_t clipmill_trt_n_profiles(const clipmill_trt_engine* e) { return (int32_t)e->batches.size(); }
SHOWN int32_t clipmill_trt_tensor_at(const clipmill_trt_engine* e, int32_t i, clipmill_trt_tensor* out) {
    out->is_input = i == 0;
    out->name = i ? e->outputs[i - 1].name.c_str() : e->input.c_str();
    out->type = i ? 0 : e->is_half;
    out->dims[0] = -1;
    if (i) {
        out->n_dims = 2;
        out->dims[1] = e->outputs[i - 1].len;
    } else {
        out->n_dims = 1 + (int32_t)e->row.size();
        for (size_t d = 0; d < e->row.size(); ++d) out->dims[d + 1] = e->row[d];
    }
    return 1;
}
SHOWN int64_t clipmill_trt_scratch_bytes(const clipmill_trt_engine*, int32_t) { return SCRATCH; }

SHOWN clipmill_trt_session* clipmill_trt_session_new(clipmill_trt_engine* engine, int32_t profile, uint64_t scratch,
                                                     uint64_t bytes, void*, char* why, size_t why_size) {
    if (profile < 0 || profile >= (int32_t)engine->batches.size() || scratch % 256 || bytes < SCRATCH)
        return tell("profile or scratch memory refused", why, why_size), nullptr;
    return new clipmill_trt_session{engine, 0, profile, scratch, {}};
}
SHOWN void clipmill_trt_session_free(clipmill_trt_session* session) { delete session; }
SHOWN int32_t clipmill_trt_set_shape(clipmill_trt_session* s, const char* name, const int64_t* dims, int32_t n_dims,
                                     char* why, size_t why_size) {
    bool is_right = s->engine->input == name && n_dims == 1 + (int32_t)s->engine->row.size();
    for (size_t i = 0; is_right && i < s->engine->row.size(); ++i) is_right = dims[i + 1] == s->engine->row[i];
    // Profiles are of one size each.
    if (!is_right || dims[0] != s->engine->batches[s->profile])
        return tell("shape refused", why, why_size), 0;
    s->n = dims[0];
    return 1;
}
SHOWN int32_t clipmill_trt_shape(const clipmill_trt_session* s, const char* name, int64_t* dims) {
    for (const Output& output : s->engine->outputs) {
        if (output.name != name) continue;
        dims[0] = s->n;
        dims[1] = output.len;
        return 2;
    }
    return -1;
}
SHOWN int32_t clipmill_trt_set_address(clipmill_trt_session* s, const char* name, uint64_t at, char*, size_t) {
    s->addresses[name] = at;
    return 1;
}
SHOWN int32_t clipmill_trt_enqueue(clipmill_trt_session* s, void* stream, char* why, size_t why_size) {
    if (fails("enqueue")) return tell("the work is refused", why, why_size), 0;
    if (!s->n || s->addresses.size() != 1 + s->engine->outputs.size())
        return tell("shape or address missing", why, why_size), 0;
    typedef void (*Queue)(void*, void (*)(void*), void*);
    static Queue queue = (Queue)dlsym(dlopen("libcuda.so.1", RTLD_NOW), "fake_cuda_queue");
    if (!queue) return tell("libcuda.so.1 is not the fake one", why, why_size), 0;
    typedef int (*IsRecording)(void*, int*);
    int status = 0;
    if (getenv("FAKE_TENSORRT_REFUSE_RECORDING") &&
        !((IsRecording)dlsym(dlopen("libcuda.so.1", RTLD_NOW), "cuStreamIsCapturing"))(stream, &status) && status)
        return tell("nothing can be recorded", why, why_size), 0;
    queue(stream, run, new Work{*s->engine, *s});
    return 1;
}
