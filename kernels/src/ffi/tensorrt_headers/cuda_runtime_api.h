/* The two types of CUDA's runtime that TensorRT's headers name. The shim only hands them through, so a
 * machine without CUDA's own headers compiles it as well. */
#ifndef CLIPMILL_CUDA_RUNTIME_API_H
#define CLIPMILL_CUDA_RUNTIME_API_H

typedef struct CUstream_st *cudaStream_t;
typedef struct CUevent_st *cudaEvent_t;

#endif
