/*
 * What the program and the tests need of an NVIDIA GPU beside the library's own calls:
 * memory, copies, streams, events and graphs.  Through the CUDA driver, found at run time.
 *
 * Functions that return an int: 0, or why not: a GPU_E_* or the driver's own code.  Results
 * are untouched then, unless a comment says more.  gpu_error_text() has words for both.
 * Pointers to device memory are plain pointers, as the library takes them.  A stream is a
 * pkv_cuda_stream; NULL is the legacy default stream, which cannot be captured.
 */
#ifndef PAGEDKV_CLI_GPU_H
#define PAGEDKV_CLI_GPU_H

#include <stddef.h>
#include <stdint.h>

/* Codes of our own; the driver's are above 0. */
enum {
    GPU_E_NO_DRIVER  = -1, /* no libcuda.so.1 */
    GPU_E_OLD_DRIVER = -2, /* one without a function that is needed */
    GPU_E_NO_MEMORY  = -3  /* of the host, for the handle */
};

/* One device.  Its primary context, the one that the library uses too. */
typedef struct gpu gpu;
typedef struct gpu_event_object *gpu_event;
typedef struct gpu_graph_object *gpu_graph; /* ready to be launched */

typedef struct gpu_info {
    char    name[96];
    int     driver_version; /* as 13000 for 13.0 */
    int     compute_major, compute_minor;
    int     n_multiprocessors;
    int64_t memory_bytes;
    int64_t l2_bytes;
    int     memory_clock_khz, memory_bus_bits; /* 0 where the driver does not say */
} gpu_info;

/*
 * Retains the primary context of a device and makes it current on this thread.  *out is
 * NULL after a failure.  gpu_close() lets go of it; what was allocated must have been
 * freed before.  NULL is allowed.
 */
int  gpu_open(gpu **out, int device);
void gpu_close(gpu *g);

/* Makes the context current on another thread. */
int gpu_use(gpu *g);

/* Without a device: how many there are; *n is 0 after a failure. */
int gpu_count(int *n);

void gpu_get_info(const gpu *g, gpu_info *out);

/* Words for a code, valid until gpu_close(); g may be NULL. */
const char *gpu_error_text(const gpu *g, int code);

/* ---- memory: *out is NULL after a failure; to free NULL does nothing ------- */

int  gpu_alloc(gpu *g, void **out, size_t n_bytes); /* of the device; n_bytes >= 1 */
void gpu_free(gpu *g, void *device);
int  gpu_host_alloc(gpu *g, void **out, size_t n_bytes); /* pinned; the device can use it too */
void gpu_host_free(gpu *g, void *pinned);
int  gpu_memory(gpu *g, int64_t *free_bytes, int64_t *total_bytes);

/* ---- copies and fills, in the order of the stream; 0 bytes are allowed ----- */

/* From pageable memory the bytes are taken before the call returns. */
int gpu_copy_in(gpu *g, void *device, const void *host, size_t n_bytes, void *stream);

/* The bytes are there once the stream has been synchronized. */
int gpu_copy_out(gpu *g, void *host, const void *device, size_t n_bytes, void *stream);

/* Within the device, one contiguous block: what the copy limit is measured with. */
int gpu_copy(gpu *g, void *dst, const void *src, size_t n_bytes, void *stream);

int gpu_fill(gpu *g, void *device, unsigned char byte, size_t n_bytes, void *stream);

/* The same with the default stream, done when they return. */
int gpu_write(gpu *g, void *device, const void *host, size_t n_bytes);
int gpu_read(gpu *g, void *host, const void *device, size_t n_bytes);

/* ---- streams, which do not wait for the default one, and events ------------ */

int  gpu_stream_create(gpu *g, void **out);
void gpu_stream_destroy(gpu *g, void *stream);
int  gpu_synchronize(gpu *g, void *stream);
int  gpu_stream_wait(gpu *g, void *stream, gpu_event event); /* what follows on it waits */

int  gpu_event_create(gpu *g, gpu_event *out);
void gpu_event_destroy(gpu *g, gpu_event event);
int  gpu_event_record(gpu *g, gpu_event event, void *stream);
int  gpu_event_synchronize(gpu *g, gpu_event event);
/* Between two that have been recorded and reached. */
int  gpu_elapsed_ms(gpu *g, gpu_event start, gpu_event end, float *ms);

/* ---- graphs ---------------------------------------------------------------- */

/* From here on what this thread puts on the stream is recorded, not done. */
int gpu_capture_begin(gpu *g, void *stream);

/* *out is NULL after a failure; the stream is as before in any case. */
int  gpu_capture_end(gpu *g, void *stream, gpu_graph *out);
int  gpu_graph_launch(gpu *g, gpu_graph graph, void *stream);
void gpu_graph_destroy(gpu *g, gpu_graph graph);

#endif
