/*
 * A CUDA driver without a GPU: the functions of libcuda.so.1 that the library and the program
 * look up, over memory of the host.  It is as strict as a real driver or stricter:
 *
 *   - Memory of a device cannot be touched by the host: it is accessible only while work runs.
 *     A block ends at a page that nobody may touch, and the bytes around it are checked.
 *   - Work runs late: only when a stream is synchronized, an event is recorded or pageable
 *     memory is copied to.  Until then nothing but the bytes of a kernel's parameter is kept.
 *   - Blocks of a launch run one after the other, in an order of their own each time.
 *   - A kernel is loaded at its first launch, or when it is asked about; not in a capture.
 *   - A capture that meets a forbidden call is invalid.
 *
 * Faults, through environment variables that are read at each call:
 *
 *   PAGEDKV_FAKE_CUDA_INIT        code that cuInit gives
 *   PAGEDKV_FAKE_CUDA_DEVICES     how many there are (2)
 *   PAGEDKV_FAKE_CUDA_CAPABILITY  compute capability times ten (90)
 *   PAGEDKV_FAKE_CUDA_PTX         version of the kernels' code (90, or 80 below capability 90)
 *   PAGEDKV_FAKE_CUDA_VERSION     of the driver (13000)
 *   PAGEDKV_FAKE_CUDA_MEMORY      bytes of a device (16 GiB)
 *   PAGEDKV_FAKE_CUDA_CONTEXT     code for making a context
 *   PAGEDKV_FAKE_CUDA_LOAD        code for loading a module
 *   PAGEDKV_FAKE_CUDA_FUNCTION    code for finding the last of its functions
 *   PAGEDKV_FAKE_CUDA_LAUNCH      code for the next launch; unset by it
 *   PAGEDKV_FAKE_CUDA_SEED        of the order of blocks
 */
#ifndef PAGEDKV_TESTS_CUDA_FAKE_H
#define PAGEDKV_TESTS_CUDA_FAKE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../../src/cuda/driver.h"
#include "emulated.h"

enum {
    FAKE_DEVICES = 2,
    FAKE_MULTIPROCESSORS = 3, /* few and odd: blocks share the work unevenly */
    FAKE_E_INVALID_VALUE = 1,
    FAKE_E_OUT_OF_MEMORY = 2,
    FAKE_E_NOT_INITIALIZED = 3,
    FAKE_E_NO_DEVICE = 100,
    FAKE_E_INVALID_DEVICE = 101,
    FAKE_E_INVALID_CONTEXT = 201,
    FAKE_E_ILLEGAL_STATE = 401,
    FAKE_E_INVALID_HANDLE = 400,
    FAKE_E_NOT_FOUND = 500,
    FAKE_E_NOT_READY = 600,
    FAKE_E_LAUNCH_OUT_OF_RESOURCES = 701,
    FAKE_E_CAPTURE_UNSUPPORTED = 900,
    FAKE_E_CAPTURE_INVALIDATED = 901,
    FAKE_E_CAPTURE_UNMATCHED = 903,
    FAKE_E_CAPTURE_ISOLATION = 905,
    FAKE_E_CAPTURE_IMPLICIT = 906,
    FAKE_E_CAPTURED_EVENT = 907,
    FAKE_E_CAPTURE_WRONG_THREAD = 908
};

/* What tests may ask: fake_cuda_counts(), found by dlsym() in the library they opened. */
typedef struct fake_counts {
    int64_t n_retained; /* contexts, each as often as it was retained */
    int64_t n_modules, n_blocks, n_streams, n_events, n_graphs; /* alive */
    int64_t n_loaded;                /* kernels, ever */
    int64_t n_launches, n_dependent; /* kernels put on a stream */
    int64_t last_grid, last_threads; /* of the last: blocks, and threads of each */
    int64_t n_pushed;                /* contexts on this thread */
} fake_counts;

typedef struct pkv_i_cu_context_obj {
    int device;
    int n_retained;
} fake_context;

typedef struct pkv_i_cu_module_obj {
    fake_context *context;
    bool          alive;
} fake_module;

/* Never freed: a graph may hold it for longer than its module lives. */
typedef struct pkv_i_cu_function_obj {
    fake_module                  *module;
    const emulated_kernel        *kernel;
    bool                          loaded;
    struct pkv_i_cu_function_obj *next;
} fake_function;

/* Memory that was allocated, between two pages that nobody may touch. */
typedef struct fake_block {
    unsigned char     *map, *data;
    size_t             map_bytes, n_bytes;
    fake_context      *context;
    bool               is_host;
    struct fake_block *next;
} fake_block;

typedef enum fake_kind { FAKE_LAUNCH, FAKE_COPY, FAKE_FILL } fake_kind;

typedef struct fake_op {
    fake_kind      kind;
    fake_function *function;
    uint32_t       n_blocks;
    void          *kept; /* a kernel's parameter, or bytes taken from pageable memory */
    size_t         kept_bytes;
    void          *dst;
    const void    *src; /* NULL: kept */
    size_t         n_bytes;
    unsigned char  byte;
} fake_op;

typedef struct fake_ops {
    fake_op *op;
    size_t   n, room;
} fake_ops;

/* fake_driver.c: state, under one lock; FAKE_LOCK holds it until its block ends. */
typedef struct fake_state {
    bool           is_started;
    fake_context   context[FAKE_DEVICES];
    fake_block    *blocks;
    fake_function *functions;
    fake_counts    counts;
} fake_state;

extern fake_state fake;

int  fake_lock(void);
void fake_unlock(int *guard);
#define FAKE_LOCK int fake_guard __attribute__((cleanup(fake_unlock), unused)) = fake_lock()

int64_t       fake_setting(const char *name, int64_t otherwise);
fake_context *fake_current(void);                       /* of this thread, or NULL */
fake_block   *fake_find(const void *at, size_t n_bytes); /* that holds all of it, or NULL */
void          fake_expose(bool accessible);             /* the memory of devices to the host */

/* fake_stream.c */
typedef struct fake_stream {
    fake_context       *context;
    bool                is_blocking; /* it and the legacy stream wait for each other */
    fake_ops            queue;
    struct fake_capture *capture; /* or NULL */
    struct fake_stream *next;
} fake_stream;

void fake_drain_all(void);
void fake_drain(fake_stream *s);
bool fake_is_legacy(const void *handle);
int  fake_find_stream(void *handle, fake_stream **out);
int  fake_put(fake_stream *s, const fake_op *op); /* takes what the op keeps, on failure too */

fake_stream *fake_streams(void); /* those that were created */

void fake_append(fake_ops *to, const fake_op *op);
void fake_append_copies(fake_ops *to, const fake_ops *from);
void fake_clear(fake_ops *ops);

/* fake_graph.c: 0, or the code for a call that a capture of this thread forbids. */
typedef struct fake_capture {
    uint64_t             id;
    int                  mode;
    unsigned long        thread;
    fake_stream         *origin;
    bool                 is_invalid;
    fake_ops             ops;
    struct fake_capture *next;
} fake_capture;

int           fake_unsafe_call(void);
fake_capture *fake_find_capture(uint64_t id); /* under way, or NULL */

/* A driver's function: exported, with a prototype of its own. */
#define DRIVER(name, ...)                                    \
    __attribute__((visibility("default"))) int name(__VA_ARGS__); \
    int name(__VA_ARGS__)

#endif
