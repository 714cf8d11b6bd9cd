/*
 * The driver's functions that gpu.c calls, each once with its parameters: for the table of
 * their addresses, and for a comparison with the driver's own header (tests/cuda/abi.c).
 */
#ifndef PAGEDKV_CLI_GPU_DRIVER_H
#define PAGEDKV_CLI_GPU_DRIVER_H

#include <stddef.h>

#include "gpu.h"

typedef unsigned long long device_pointer;
typedef void *driver_stream;
typedef int driver_device;
typedef int driver_code, driver_attribute, driver_mode; /* enums of the driver */
typedef struct context_object *context;
typedef struct captured_object *captured; /* a graph before it is made ready */

enum {
    STREAM_NON_BLOCKING  = 1,
    CAPTURE_THREAD_LOCAL = 1, /* what other threads do is no business of the capture */
    HOST_PORTABLE_MAPPED = 1 | 2,
    ATTRIBUTE_MULTIPROCESSORS = 16,
    ATTRIBUTE_MEMORY_CLOCK = 36,
    ATTRIBUTE_MEMORY_BUS = 37,
    ATTRIBUTE_L2_BYTES = 38,
    ATTRIBUTE_COMPUTE_MAJOR = 75,
    ATTRIBUTE_COMPUTE_MINOR = 76
};

/* X(name here, name in the driver, parameters); all return a code. */
#define DRIVER_FUNCTIONS(X)                                                                 \
    X(init, cuInit, (unsigned int flags))                                                   \
    X(version, cuDriverGetVersion, (int *version))                                          \
    X(error_string, cuGetErrorString, (driver_code code, const char **text))                \
    X(device_count, cuDeviceGetCount, (int *n))                                             \
    X(device_get, cuDeviceGet, (driver_device *device, int ordinal))                        \
    X(device_name, cuDeviceGetName, (char *name, int room, driver_device device))           \
    X(device_attribute, cuDeviceGetAttribute,                                               \
      (int *value, driver_attribute attribute, driver_device device))                       \
    X(device_memory, cuDeviceTotalMem_v2, (size_t *n_bytes, driver_device device))          \
    X(retain, cuDevicePrimaryCtxRetain, (context *out, driver_device device))               \
    X(release, cuDevicePrimaryCtxRelease_v2, (driver_device device))                        \
    X(set_current, cuCtxSetCurrent, (context ctx))                                          \
    X(memory_info, cuMemGetInfo_v2, (size_t *free_bytes, size_t *total_bytes))              \
    X(mem_alloc, cuMemAlloc_v2, (device_pointer *out, size_t n_bytes))                      \
    X(mem_free, cuMemFree_v2, (device_pointer device))                                      \
    X(host_alloc, cuMemHostAlloc, (void **out, size_t n_bytes, unsigned int flags))         \
    X(host_free, cuMemFreeHost, (void *host))                                               \
    X(copy_in, cuMemcpyHtoDAsync_v2,                                                        \
      (device_pointer dst, const void *src, size_t n_bytes, driver_stream stream))          \
    X(copy_out, cuMemcpyDtoHAsync_v2,                                                       \
      (void *dst, device_pointer src, size_t n_bytes, driver_stream stream))                \
    X(copy, cuMemcpyDtoDAsync_v2,                                                           \
      (device_pointer dst, device_pointer src, size_t n_bytes, driver_stream stream))       \
    X(fill, cuMemsetD8Async,                                                                \
      (device_pointer dst, unsigned char byte, size_t n_bytes, driver_stream stream))       \
    X(stream_create, cuStreamCreate, (driver_stream *out, unsigned int flags))              \
    X(stream_destroy, cuStreamDestroy_v2, (driver_stream stream))                           \
    X(stream_synchronize, cuStreamSynchronize, (driver_stream stream))                      \
    X(stream_wait, cuStreamWaitEvent,                                                       \
      (driver_stream stream, gpu_event event, unsigned int flags))                          \
    X(event_create, cuEventCreate, (gpu_event *out, unsigned int flags))                    \
    X(event_destroy, cuEventDestroy_v2, (gpu_event event))                                  \
    X(event_record, cuEventRecord, (gpu_event event, driver_stream stream))                 \
    X(event_synchronize, cuEventSynchronize, (gpu_event event))                             \
    X(elapsed, cuEventElapsedTime, (float *ms, gpu_event start, gpu_event end))             \
    X(capture_begin, cuStreamBeginCapture_v2, (driver_stream stream, driver_mode mode))     \
    X(capture_end, cuStreamEndCapture, (driver_stream stream, captured *out))               \
    X(captured_destroy, cuGraphDestroy, (captured graph))                                   \
    X(instantiate, cuGraphInstantiateWithFlags,                                             \
      (gpu_graph *out, captured graph, unsigned long long flags))                           \
    X(graph_launch, cuGraphLaunch, (gpu_graph graph, driver_stream stream))                 \
    X(graph_destroy, cuGraphExecDestroy, (gpu_graph graph))

#endif
