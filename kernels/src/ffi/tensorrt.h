/* What `tensorrt.cpp` offers to `tensorrt/sys.rs`, which repeats every line of it. One shared object of it is
 * compiled for each major release of TensorRT, whose C++ classes differ; this border stays the same.
 *
 * Functions that can fail give 0 or null then, and write why to `why`, of `why_size` bytes, at least one. */
#ifndef CLIPMILL_TENSORRT_H
#define CLIPMILL_TENSORRT_H

#include <stddef.h>
#include <stdint.h>

/* Raise when anything below changes. */
#define CLIPMILL_TRT_ABI 1

/* Dimensions of a tensor, at most: TensorRT's own limit. */
#define CLIPMILL_TRT_DIMS 8

/* How numbers are computed. A strongly typed TensorRT (11, RTX) takes them from the ONNX file alone. */
enum { CLIPMILL_TRT_FP32 = 0, CLIPMILL_TRT_FP16 = 1, CLIPMILL_TRT_INT8 = 2 };

typedef struct clipmill_trt_library clipmill_trt_library;
typedef struct clipmill_trt_engine clipmill_trt_engine;
typedef struct clipmill_trt_session clipmill_trt_session;

/* Severity: 0 internal error, 1 error, 2 warning, 3 info, 4 verbose. From any thread. */
typedef void (*clipmill_trt_log)(void *user, int32_t severity, const char *text);
/* A step of a phase was done, `parent` null where it is no part of another; 0 asks to stop. From any thread. */
typedef int32_t (*clipmill_trt_progress)(void *user, const char *phase, const char *parent, int32_t step,
                                         int32_t n_steps);

/* Sizes of an input in one optimization profile. */
typedef struct {
    const char *input;
    int32_t n_dims;
    int64_t least[CLIPMILL_TRT_DIMS], best[CLIPMILL_TRT_DIMS], most[CLIPMILL_TRT_DIMS];
} clipmill_trt_range;

typedef struct {
    const void *onnx;
    size_t onnx_size;
    const char *onnx_path;  /* where files that it names lie; null if it names none */
    uint64_t workspace_bytes; /* 0: TensorRT's default */
    int32_t precision;
    int32_t is_half_input;  /* the inputs are fp16; a strongly typed TensorRT wants them so in the ONNX file */
    int32_t level;          /* of optimization, 0 to 5; -1: TensorRT's default */
    int32_t is_hardware_compatible, is_version_compatible;
    int32_t compute_capability; /* 10 × major + minor, for TensorRT-RTX where there is no GPU; 0: this GPU's */
    int32_t n_profiles, n_ranges; /* ranges of each profile */
    const clipmill_trt_range *ranges; /* n_profiles × n_ranges */
    clipmill_trt_progress progress; /* null: none */
    void *user;
} clipmill_trt_build_options;

typedef struct {
    const char *name;       /* as long as the engine lives */
    int32_t type;           /* TensorRT's DataType: 0 f32, 1 f16, 2 i8, 3 i32, 8 i64 */
    int32_t is_input;
    int32_t n_dims;
    int64_t dims[CLIPMILL_TRT_DIMS]; /* -1 where it may differ */
} clipmill_trt_tensor;

/* All else in the shared object is hidden. */
#pragma GCC visibility push(default)
#ifdef __cplusplus
extern "C" {
#endif

int32_t clipmill_trt_abi(void);
/* Versions as TensorRT counts them: 10000 × major + 100 × minor + patch; 8 has 1000 × major. */
int32_t clipmill_trt_headers(void);
int32_t clipmill_trt_is_strongly_typed(void);

/* `parser` may be null: plans can then be run, and none be built. Keeps what it loads for good: TensorRT
 * does not survive being unloaded. */
clipmill_trt_library *clipmill_trt_load(const char *nvinfer, const char *parser, clipmill_trt_log log, void *user,
                                        char *why, size_t why_size);
int32_t clipmill_trt_can_build(const clipmill_trt_library *);

/* The plan is freed with `clipmill_trt_free`. */
int32_t clipmill_trt_build(clipmill_trt_library *, const clipmill_trt_build_options *, void **plan, size_t *plan_size,
                           char *why, size_t why_size);
void clipmill_trt_free(void *plan);

/* Needs a CUDA driver: TensorRT 8 ends the process where there is none. */
clipmill_trt_engine *clipmill_trt_engine_new(clipmill_trt_library *, const void *plan, size_t size, char *why,
                                             size_t why_size);
void clipmill_trt_engine_free(clipmill_trt_engine *);
int32_t clipmill_trt_n_tensors(const clipmill_trt_engine *);
int32_t clipmill_trt_n_profiles(const clipmill_trt_engine *);
int32_t clipmill_trt_tensor_at(const clipmill_trt_engine *, int32_t index, clipmill_trt_tensor *out);
/* Bytes of device memory that a session of a profile computes in; negative if unknown. */
int64_t clipmill_trt_scratch_bytes(const clipmill_trt_engine *, int32_t profile);

/* The scratch memory is the caller's, aligned to 256 bytes, and outlives the session. Sessions may share it
 * if they run one after another. Waits for nothing: the profile is chosen in the stream's order. */
clipmill_trt_session *clipmill_trt_session_new(clipmill_trt_engine *, int32_t profile, uint64_t scratch,
                                               uint64_t scratch_bytes, void *stream, char *why, size_t why_size);
void clipmill_trt_session_free(clipmill_trt_session *);
int32_t clipmill_trt_set_shape(clipmill_trt_session *, const char *name, const int64_t *dims, int32_t n_dims, char *why,
                               size_t why_size);
/* Of an input or output as it is now; gives the number of dimensions, or a negative one. */
int32_t clipmill_trt_shape(const clipmill_trt_session *, const char *name, int64_t *dims);
int32_t clipmill_trt_set_address(clipmill_trt_session *, const char *name, uint64_t address, char *why, size_t why_size);
int32_t clipmill_trt_enqueue(clipmill_trt_session *, void *stream, char *why, size_t why_size);

#ifdef __cplusplus
}
#endif
#pragma GCC visibility pop
#endif
