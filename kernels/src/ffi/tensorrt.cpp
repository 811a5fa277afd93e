/* TensorRT's C++ classes, flattened to plain functions.
 *
 * Compiled against TensorRT's public headers alone, once for every major release (8.5 and newer, 10, 11,
 * TensorRT-RTX 1): the order of virtual functions differs between them and is kept within one. Nothing is
 * linked: the library is opened at run time. It decides nothing, and lets no exception out.
 */
#include "tensorrt.h"

#include <dlfcn.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>

#include "NvInfer.h"
/* The parser is a project of its own, and its header is missing from some copies of TensorRT's. */
#if __has_include("NvOnnxParser.h")
#include "NvOnnxParser.h"
#define HAS_PARSER 1
#else
#define HAS_PARSER 0
#endif

#if NV_TENSORRT_MAJOR == 8
#define IS_STRONGLY_TYPED 0
#define HAS_MONITOR 0
#elif NV_TENSORRT_MAJOR == 10
#define IS_STRONGLY_TYPED 0
#define HAS_MONITOR 1
#else
#define IS_STRONGLY_TYPED 1
#define HAS_MONITOR 1
#endif
#define IS_85 (NV_TENSORRT_MAJOR == 8 && NV_TENSORRT_MINOR < 6)
#ifndef NV_TENSORRT_VERSION
#define NV_TENSORRT_VERSION (NV_TENSORRT_MAJOR * 1000 + NV_TENSORRT_MINOR * 100 + NV_TENSORRT_PATCH)
#endif

using namespace nvinfer1;

namespace {

/* A message longer than this says no more. */
constexpr size_t MOST_WORDS = 2000;

struct Failure final : std::runtime_error {
    using std::runtime_error::runtime_error;
};

/* TensorRT tells causes in its log alone. It keeps the first logger that it was given, so there is one for a
 * library, and threads share it. */
class Log final : public ILogger {
public:
    Log(clipmill_trt_log to, void *user) : to(to), user(user) {}

    void log(Severity severity, AsciiChar const *text) noexcept override {
        if (to)
            to(user, static_cast<int32_t>(severity), text);
        if (severity > Severity::kWARNING)
            return;
        try {
            std::lock_guard<std::mutex> guard(lock);
            /* TensorRT 8 only warns that there is no driver. */
            if (severity == Severity::kWARNING) {
                warning.assign(text, std::min(strlen(text), MOST_WORDS));
                return;
            }
            if (errors.size() + strlen(text) < MOST_WORDS)
                errors.append(errors.empty() ? "" : "; ").append(text);
        } catch (...) {
            /* No memory for a message about it. */
        }
    }

    void forget() {
        std::lock_guard<std::mutex> guard(lock);
        errors.clear();
        warning.clear();
    }

    /* Fails with what was said since `forget`: all errors, else the last warning. */
    [[noreturn]] void fail(std::string what) {
        std::lock_guard<std::mutex> guard(lock);
        std::string const &cause = errors.empty() ? warning : errors;
        if (!cause.empty())
            what.append(": ").append(cause);
        throw Failure(what);
    }

private:
    clipmill_trt_log to;
    void *user;
    std::mutex lock;
    std::string errors, warning;
};

void tell(char const *text, char *why, size_t why_size) {
    if (!why || !why_size)
        return;
    size_t n = std::min(strlen(text), why_size - 1);
    memcpy(why, text, n);
    why[n] = 0;
}

/* Runs `work` and gives what it gives, or `otherwise` with the reason in `why`. */
template <class T, class F> T guarded(T otherwise, char *why, size_t why_size, F work) noexcept {
    try {
        return work();
    } catch (std::exception const &e) {
        tell(e.what(), why, why_size);
    } catch (...) {
        tell("an exception of unknown kind", why, why_size);
    }
    return otherwise;
}

/* Functions are looked up when they are called: the parser of TensorRT 8 wants cuBLAS and cuDNN for plugins
 * that image towers do without, and stand-ins for those libraries will do. */
void *open_library(char const *path) {
    void *handle = dlopen(path, RTLD_LAZY | RTLD_LOCAL);
    if (!handle) {
        char const *reason = dlerror();
        throw Failure(reason ? reason : "it does not load");
    }
    return handle;
}

template <class F> void find(void *library, char const *name, F &out) {
    out = reinterpret_cast<F>(dlsym(library, name));
}

Dims dims_of(int64_t const *from, int32_t n) {
    if (n < 0 || n > CLIPMILL_TRT_DIMS)
        throw Failure("a tensor has too many dimensions");
    Dims dims{};
    dims.nbDims = n;
    for (int32_t i = 0; i < n; ++i)
        dims.d[i] = static_cast<std::remove_reference_t<decltype(dims.d[0])>>(from[i]);
    return dims;
}

int32_t put_dims(Dims const &dims, int64_t *out) {
    int32_t n = std::min(dims.nbDims, CLIPMILL_TRT_DIMS);
    for (int32_t i = 0; i < n; ++i)
        out[i] = dims.d[i];
    return n;
}

#if HAS_MONITOR
/* Hands steps on. A phase's number of steps is told once, when it starts. */
class Monitor final : public IProgressMonitor {
public:
    Monitor(clipmill_trt_progress to, void *user) : to(to), user(user) {}

    void phaseStart(char const *name, char const *parent, int32_t n_steps) noexcept override {
        try {
            std::lock_guard<std::mutex> guard(lock);
            phases[name] = {parent ? parent : "", parent != nullptr, n_steps};
        } catch (...) {
            /* Progress goes untold. */
        }
    }

    bool stepComplete(char const *name, int32_t step) noexcept override {
        try {
            Phase phase{};
            {
                std::lock_guard<std::mutex> guard(lock);
                phase = phases[name];
            }
            if (!to(user, name, phase.is_part ? phase.parent.c_str() : nullptr, step, phase.n_steps))
                is_cancelled = true;
        } catch (...) {
        }
        return !is_cancelled;
    }

    void phaseFinish(char const *name) noexcept override {
        try {
            std::lock_guard<std::mutex> guard(lock);
            phases.erase(name);
        } catch (...) {
        }
    }

private:
    struct Phase {
        std::string parent;
        bool is_part;
        int32_t n_steps;
    };
    clipmill_trt_progress to;
    void *user;
    std::mutex lock;
    std::map<std::string, Phase> phases;
    std::atomic<bool> is_cancelled{false};
};
#endif

} // namespace

struct clipmill_trt_library {
    clipmill_trt_library(clipmill_trt_log to, void *user) : log(to, user) {}

    void *(*new_runtime)(void *, int32_t) = nullptr;
    void *(*new_builder)(void *, int32_t) = nullptr;
    void *(*new_parser)(void *, void *, int32_t) = nullptr;
    int32_t version = 0;
    Log log;

    ILogger *logger() { return &log; }

    /* TensorRT refuses callers that are newer than it is. Of the classes in use, all that is called has been
     * there since the first minor release, so an older library of the same major will do. */
    int32_t caller() const { return std::min<int32_t>(version, NV_TENSORRT_VERSION); }
};

struct clipmill_trt_engine {
    clipmill_trt_library *library;
    std::unique_ptr<IRuntime> runtime;
    std::unique_ptr<ICudaEngine> engine;
};

struct clipmill_trt_session {
    clipmill_trt_library *library;
    std::unique_ptr<IExecutionContext> context;
};

namespace {

#if HAS_PARSER
/* The parser says where in the file it failed. */
std::string parser_errors(nvonnxparser::IParser const &parser) {
    std::string all;
    for (int i = 0; i < parser.getNbErrors() && all.size() < MOST_WORDS; ++i) {
        auto const *error = parser.getError(i);
        if (!error || !error->desc())
            continue;
        all.append(all.empty() ? "" : "; ");
        if (error->node() >= 0)
            all.append("node ").append(std::to_string(error->node()));
#if NV_TENSORRT_MAJOR != 8
        if (error->nodeOperator() && *error->nodeOperator())
            all.append(", ").append(error->nodeOperator());
#endif
        if (error->node() >= 0)
            all.append(": ");
        all.append(error->desc());
    }
    return all;
}

void add_profiles(IBuilder &builder, IBuilderConfig &config, clipmill_trt_build_options const &options, Log &log) {
    for (int32_t p = 0; p < options.n_profiles; ++p) {
        IOptimizationProfile *profile = builder.createOptimizationProfile();
        if (!profile)
            log.fail("no optimization profile can be made");
        for (int32_t r = 0; r < options.n_ranges; ++r) {
            auto const &range = options.ranges[p * options.n_ranges + r];
            auto set = [&](OptProfileSelector which, int64_t const *dims) {
                return profile->setDimensions(range.input, which, dims_of(dims, range.n_dims));
            };
            if (!set(OptProfileSelector::kMIN, range.least) || !set(OptProfileSelector::kOPT, range.best) ||
                !set(OptProfileSelector::kMAX, range.most))
                log.fail(std::string("the sizes of input ") + range.input + " are refused");
        }
        if (config.addOptimizationProfile(profile) < 0)
            log.fail("optimization profile " + std::to_string(p) + " does not fit the network");
    }
}

/* Makes the floats that come in fp16, or finds that they are. */
void halve_inputs(INetworkDefinition &network) {
    for (int32_t i = 0; i < network.getNbInputs(); ++i) {
        ITensor *input = network.getInput(i);
        if (input->getType() != DataType::kFLOAT)
            continue;
#if IS_STRONGLY_TYPED
        throw Failure(std::string("input ") + input->getName() + " is fp32 in the ONNX file, and fp16 is wanted");
#else
        input->setType(DataType::kHALF);
#endif
    }
}

void configure(IBuilderConfig &config, clipmill_trt_build_options const &options, Log &log) {
    (void)log;
    if (options.workspace_bytes)
        config.setMemoryPoolLimit(MemoryPoolType::kWORKSPACE, options.workspace_bytes);
    /* Its products have 10 bits of significand, which is not fp32. */
    if (options.precision == CLIPMILL_TRT_FP32)
        config.clearFlag(BuilderFlag::kTF32);
#if !IS_STRONGLY_TYPED
    if (options.precision != CLIPMILL_TRT_FP32)
        config.setFlag(BuilderFlag::kFP16);
    if (options.precision == CLIPMILL_TRT_INT8)
        config.setFlag(BuilderFlag::kINT8);
#endif
#if !IS_85
    if (options.level >= 0)
        config.setBuilderOptimizationLevel(options.level);
    if (options.is_version_compatible)
        config.setFlag(BuilderFlag::kVERSION_COMPATIBLE);
    if (options.is_hardware_compatible)
        config.setHardwareCompatibilityLevel(HardwareCompatibilityLevel::kAMPERE_PLUS);
#endif
#ifdef TRT_MAJOR_RTX
    if (options.compute_capability &&
        (!config.setNbComputeCapabilities(1) ||
         !config.setComputeCapability(static_cast<ComputeCapability>(options.compute_capability), 0)))
        log.fail("compute capability " + std::to_string(options.compute_capability) + " is refused");
#endif
}

std::unique_ptr<IHostMemory> build(clipmill_trt_library &library, clipmill_trt_build_options const &options) {
    Log &log = library.log;
    log.forget();
    if (!library.new_builder || !library.new_parser)
        throw Failure("this TensorRT has no builder or no ONNX parser: it runs plans only");
    std::unique_ptr<IBuilder> builder(static_cast<IBuilder *>(library.new_builder(library.logger(), library.caller())));
    if (!builder)
        log.fail("no builder can be made");
    uint32_t flags = 0;
#if NV_TENSORRT_MAJOR == 8
    flags = 1U << static_cast<uint32_t>(NetworkDefinitionCreationFlag::kEXPLICIT_BATCH);
#endif
    std::unique_ptr<INetworkDefinition> network(builder->createNetworkV2(flags));
    std::unique_ptr<IBuilderConfig> config(builder->createBuilderConfig());
    if (!network || !config)
        log.fail("no network can be made");
    std::unique_ptr<nvonnxparser::IParser> parser(static_cast<nvonnxparser::IParser *>(
        library.new_parser(network.get(), library.logger(), NV_ONNX_PARSER_VERSION)));
    if (!parser)
        log.fail("no ONNX parser can be made");
    if (!parser->parse(options.onnx, options.onnx_size, options.onnx_path)) {
        std::string errors = parser_errors(*parser);
        if (errors.empty())
            log.fail("the ONNX file cannot be parsed");
        throw Failure("the ONNX file cannot be parsed: " + errors);
    }
    if (options.is_half_input)
        halve_inputs(*network);
    configure(*config, options, log);
    add_profiles(*builder, *config, options, log);
#if HAS_MONITOR
    Monitor monitor(options.progress, options.user);
    if (options.progress)
        config->setProgressMonitor(&monitor);
#endif
    log.forget();
    std::unique_ptr<IHostMemory> plan(builder->buildSerializedNetwork(*network, *config));
    if (!plan || !plan->data() || !plan->size())
        log.fail("no plan can be built");
    return plan;
}
#endif

} // namespace

extern "C" {

int32_t clipmill_trt_abi(void) { return CLIPMILL_TRT_ABI; }
int32_t clipmill_trt_headers(void) { return NV_TENSORRT_VERSION; }
int32_t clipmill_trt_is_strongly_typed(void) { return IS_STRONGLY_TYPED; }

clipmill_trt_library *clipmill_trt_load(char const *nvinfer, char const *parser, clipmill_trt_log log, void *user,
                                        char *why, size_t why_size) {
    return guarded<clipmill_trt_library *>(nullptr, why, why_size, [&] {
        auto library = std::make_unique<clipmill_trt_library>(log, user);
        void *handle = open_library(nvinfer);
        int32_t (*version)() = nullptr;
        find(handle, "getInferLibVersion", version);
        find(handle, "createInferRuntime_INTERNAL", library->new_runtime);
        /* Lean runtimes have none. */
        find(handle, "createInferBuilder_INTERNAL", library->new_builder);
        if (!version || !library->new_runtime)
            throw Failure(std::string(nvinfer) + " is no TensorRT library");
        library->version = version();
#if NV_TENSORRT_MAJOR == 8
        /* Functions that are called here came in the last minor releases of 8. */
        if (library->version / 100 < NV_TENSORRT_VERSION / 100)
            throw Failure(std::string(nvinfer) + " is older than the headers that this was compiled with");
#endif
        if (parser && HAS_PARSER)
            find(open_library(parser), "createNvOnnxParser_INTERNAL", library->new_parser);
        return library.release();
    });
}

int32_t clipmill_trt_can_build(clipmill_trt_library const *library) {
    return library->new_builder && library->new_parser;
}

int32_t clipmill_trt_build(clipmill_trt_library *library, clipmill_trt_build_options const *options, void **plan,
                           size_t *plan_size, char *why, size_t why_size) {
    return guarded<int32_t>(0, why, why_size, [&]() -> int32_t {
#if HAS_PARSER
        auto built = build(*library, *options);
        void *copy = malloc(built->size());
        if (!copy)
            throw std::bad_alloc();
        memcpy(copy, built->data(), built->size());
        *plan = copy;
        *plan_size = built->size();
        return 1;
#else
        (void)library, (void)options, (void)plan, (void)plan_size;
        throw Failure("NvOnnxParser.h was not there when this was compiled, so no plans can be built");
#endif
    });
}

void clipmill_trt_free(void *plan) { free(plan); }

clipmill_trt_engine *clipmill_trt_engine_new(clipmill_trt_library *library, void const *plan, size_t size, char *why,
                                             size_t why_size) {
    return guarded<clipmill_trt_engine *>(nullptr, why, why_size, [&] {
        Log &log = library->log;
        log.forget();
        auto engine = std::make_unique<clipmill_trt_engine>();
        engine->library = library;
        engine->runtime.reset(static_cast<IRuntime *>(library->new_runtime(library->logger(), library->caller())));
        if (!engine->runtime)
            log.fail("no runtime can be made");
#if !IS_85
        /* Version-compatible plans carry code. Plans come from our own sealed files. */
        engine->runtime->setEngineHostCodeAllowed(true);
#endif
        engine->engine.reset(engine->runtime->deserializeCudaEngine(plan, size));
        if (!engine->engine)
            log.fail("the plan is refused");
        return engine.release();
    });
}

void clipmill_trt_engine_free(clipmill_trt_engine *engine) {
    if (engine) {
        engine->engine.reset();
        engine->runtime.reset();
    }
    delete engine;
}

int32_t clipmill_trt_n_tensors(clipmill_trt_engine const *engine) { return engine->engine->getNbIOTensors(); }

int32_t clipmill_trt_n_profiles(clipmill_trt_engine const *engine) {
    return engine->engine->getNbOptimizationProfiles();
}

int32_t clipmill_trt_tensor_at(clipmill_trt_engine const *engine, int32_t index, clipmill_trt_tensor *out) {
    char const *name = engine->engine->getIOTensorName(index);
    if (!name)
        return 0;
    out->name = name;
    out->type = static_cast<int32_t>(engine->engine->getTensorDataType(name));
    out->is_input = engine->engine->getTensorIOMode(name) == TensorIOMode::kINPUT;
    out->n_dims = put_dims(engine->engine->getTensorShape(name), out->dims);
    return 1;
}

int64_t clipmill_trt_scratch_bytes(clipmill_trt_engine const *engine, int32_t profile) {
#if IS_STRONGLY_TYPED
    return engine->engine->getDeviceMemorySizeForProfileV2(profile);
#elif NV_TENSORRT_MAJOR == 10
    /* The first form was there from 10.0 on. */
    return static_cast<int64_t>(engine->engine->getDeviceMemorySizeForProfile(profile));
#else
    (void)profile;
    return static_cast<int64_t>(engine->engine->getDeviceMemorySize());
#endif
}

clipmill_trt_session *clipmill_trt_session_new(clipmill_trt_engine *engine, int32_t profile, uint64_t scratch,
                                               uint64_t scratch_bytes, void *stream, char *why, size_t why_size) {
    return guarded<clipmill_trt_session *>(nullptr, why, why_size, [&] {
        Log &log = engine->library->log;
        log.forget();
        auto session = std::make_unique<clipmill_trt_session>();
        session->library = engine->library;
        void *memory = reinterpret_cast<void *>(scratch);
#if IS_STRONGLY_TYPED
        session->context.reset(
            engine->engine->createExecutionContext(ExecutionContextAllocationStrategy::kUSER_MANAGED));
        if (!session->context)
            log.fail("no execution context can be made");
        session->context->setDeviceMemoryV2(memory, static_cast<int64_t>(scratch_bytes));
#else
        (void)scratch_bytes;
        session->context.reset(engine->engine->createExecutionContextWithoutDeviceMemory());
        if (!session->context)
            log.fail("no execution context can be made");
        session->context->setDeviceMemory(memory);
#endif
        if (!session->context->setOptimizationProfileAsync(profile, static_cast<cudaStream_t>(stream)))
            log.fail("optimization profile " + std::to_string(profile) + " is refused");
        return session.release();
    });
}

void clipmill_trt_session_free(clipmill_trt_session *session) { delete session; }

int32_t clipmill_trt_set_shape(clipmill_trt_session *session, char const *name, int64_t const *dims, int32_t n_dims,
                               char *why, size_t why_size) {
    return guarded<int32_t>(0, why, why_size, [&]() -> int32_t {
        session->library->log.forget();
        if (!session->context->setInputShape(name, dims_of(dims, n_dims)))
            session->library->log.fail(std::string("the shape of input ") + name + " is refused");
        return 1;
    });
}

int32_t clipmill_trt_shape(clipmill_trt_session const *session, char const *name, int64_t *dims) {
    Dims shape = session->context->getTensorShape(name);
    return shape.nbDims < 0 ? -1 : put_dims(shape, dims);
}

int32_t clipmill_trt_set_address(clipmill_trt_session *session, char const *name, uint64_t address, char *why,
                                 size_t why_size) {
    return guarded<int32_t>(0, why, why_size, [&]() -> int32_t {
        session->library->log.forget();
        if (!session->context->setTensorAddress(name, reinterpret_cast<void *>(address)))
            session->library->log.fail(std::string("the address of ") + name + " is refused");
        return 1;
    });
}

int32_t clipmill_trt_enqueue(clipmill_trt_session *session, void *stream, char *why, size_t why_size) {
    return guarded<int32_t>(0, why, why_size, [&]() -> int32_t {
        session->library->log.forget();
        if (!session->context->enqueueV3(static_cast<cudaStream_t>(stream)))
            session->library->log.fail("the work is refused");
        return 1;
    });
}

} // extern "C"
