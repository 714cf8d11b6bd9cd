/* An NVIDIA GPU through the driver that is found at run time; see gpu.h. */
#include "gpu.h"

#include <dlfcn.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "gpu_driver.h"

typedef struct driver {
    void *library;
#define MEMBER(name, symbol, parameters) int (*name) parameters;
    DRIVER_FUNCTIONS(MEMBER)
#undef MEMBER
} driver;

struct gpu {
    driver   driver;
    context  context;
    int      device;
    gpu_info info;
};

/* A symbol's address as a function pointer, which ISO C has no cast for. */
static bool find_function(void *library, const char *symbol, void *function, size_t n_bytes)
{
    void *address = dlsym(library, symbol);
    memcpy(function, &address, n_bytes);
    return address != NULL;
}

static int load_driver(driver *d)
{
    memset(d, 0, sizeof *d);
    /* It stays mapped when it is closed: it may have threads of its own. */
    d->library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (d->library == NULL) {
        return GPU_E_NO_DRIVER;
    }
    bool found = true;
#define FIND(name, symbol, parameters) \
    found = found && find_function(d->library, #symbol, &d->name, sizeof d->name);
    DRIVER_FUNCTIONS(FIND)
#undef FIND
    int code = found ? d->init(0) : GPU_E_OLD_DRIVER;
    if (code != 0) {
        dlclose(d->library);
    }
    return code;
}

static device_pointer as_device(const void *pointer)
{
    return (device_pointer)(uintptr_t)pointer;
}

/* ---- the device ------------------------------------------------------------ */

static int read_info(gpu *g)
{
    const driver *d = &g->driver;
    gpu_info     *info = &g->info;
    size_t        memory_bytes = 0;
    int           l2_bytes = 0;
    int           code = d->version(&info->driver_version);
    code = code != 0 ? code : d->device_name(info->name, (int)sizeof info->name, g->device);
    code = code != 0 ? code : d->device_memory(&memory_bytes, g->device);
    const struct {
        int attribute, *value;
    } asked[] = {
        {ATTRIBUTE_COMPUTE_MAJOR, &info->compute_major},
        {ATTRIBUTE_COMPUTE_MINOR, &info->compute_minor},
        {ATTRIBUTE_MULTIPROCESSORS, &info->n_multiprocessors},
        {ATTRIBUTE_L2_BYTES, &l2_bytes},
    };
    for (size_t i = 0; i < sizeof asked / sizeof asked[0] && code == 0; i++) {
        code = d->device_attribute(asked[i].value, asked[i].attribute, g->device);
    }
    if (code != 0) {
        return code;
    }
    if (d->device_attribute(&info->memory_clock_khz, ATTRIBUTE_MEMORY_CLOCK, g->device) != 0 ||
        d->device_attribute(&info->memory_bus_bits, ATTRIBUTE_MEMORY_BUS, g->device) != 0) {
        info->memory_clock_khz = info->memory_bus_bits = 0;
    }
    info->name[sizeof info->name - 1] = '\0';
    info->memory_bytes = (int64_t)memory_bytes;
    info->l2_bytes = l2_bytes;
    return 0;
}

static int open_device(gpu *g, int ordinal)
{
    const driver *d = &g->driver;
    int           code = d->device_get(&g->device, ordinal);
    code = code != 0 ? code : read_info(g);
    code = code != 0 ? code : d->retain(&g->context, g->device);
    if (code != 0) {
        return code;
    }
    code = d->set_current(g->context);
    if (code != 0) {
        d->release(g->device);
    }
    return code;
}

int gpu_open(gpu **out, int device)
{
    *out = NULL;
    gpu *g = calloc(1, sizeof *g);
    if (g == NULL) {
        return GPU_E_NO_MEMORY;
    }
    int code = load_driver(&g->driver);
    if (code != 0) {
        free(g);
        return code;
    }
    code = open_device(g, device);
    if (code != 0) {
        dlclose(g->driver.library);
        free(g);
        return code;
    }
    *out = g;
    return 0;
}

void gpu_close(gpu *g)
{
    if (g != NULL) {
        g->driver.set_current(NULL);
        g->driver.release(g->device);
        dlclose(g->driver.library);
        free(g);
    }
}

int gpu_use(gpu *g)
{
    return g->driver.set_current(g->context);
}

int gpu_count(int *n)
{
    driver d;
    *n = 0;
    int code = load_driver(&d);
    if (code != 0) {
        return code;
    }
    int found = 0;
    code = d.device_count(&found);
    if (code == 0) {
        *n = found;
    }
    dlclose(d.library);
    return code;
}

void gpu_get_info(const gpu *g, gpu_info *out)
{
    *out = g->info;
}

const char *gpu_error_text(const gpu *g, int code)
{
    const char *text = NULL;
    switch (code) {
    case 0: return "no error";
    case GPU_E_NO_DRIVER: return "no CUDA driver (libcuda.so.1)";
    case GPU_E_OLD_DRIVER: return "the CUDA driver is too old";
    case GPU_E_NO_MEMORY: return "out of memory";
    case 2: return "out of memory of the device";
    case 100: return "no CUDA device";
    case 101: return "no such CUDA device";
    default: break;
    }
    if (g != NULL && g->driver.error_string(code, &text) == 0 && text != NULL) {
        return text;
    }
    return "the CUDA driver gave an error";
}

/* ---- memory ---------------------------------------------------------------- */

int gpu_alloc(gpu *g, void **out, size_t n_bytes)
{
    device_pointer device = 0;
    int            code = g->driver.mem_alloc(&device, n_bytes);
    *out = code == 0 ? (void *)(uintptr_t)device : NULL;
    return code;
}

void gpu_free(gpu *g, void *device)
{
    if (device != NULL) {
        g->driver.mem_free(as_device(device));
    }
}

int gpu_host_alloc(gpu *g, void **out, size_t n_bytes)
{
    void *host = NULL;
    int   code = g->driver.host_alloc(&host, n_bytes, HOST_PORTABLE_MAPPED);
    *out = code == 0 ? host : NULL;
    return code;
}

void gpu_host_free(gpu *g, void *pinned)
{
    if (pinned != NULL) {
        g->driver.host_free(pinned);
    }
}

int gpu_memory(gpu *g, int64_t *free_bytes, int64_t *total_bytes)
{
    size_t left = 0, all = 0;
    int    code = g->driver.memory_info(&left, &all);
    if (code == 0) {
        *free_bytes = (int64_t)left;
        *total_bytes = (int64_t)all;
    }
    return code;
}

/* ---- copies and fills ------------------------------------------------------ */

int gpu_copy_in(gpu *g, void *device, const void *host, size_t n_bytes, void *stream)
{
    return n_bytes == 0 ? 0 : g->driver.copy_in(as_device(device), host, n_bytes, stream);
}

int gpu_copy_out(gpu *g, void *host, const void *device, size_t n_bytes, void *stream)
{
    return n_bytes == 0 ? 0 : g->driver.copy_out(host, as_device(device), n_bytes, stream);
}

int gpu_copy(gpu *g, void *dst, const void *src, size_t n_bytes, void *stream)
{
    return n_bytes == 0 ? 0 : g->driver.copy(as_device(dst), as_device(src), n_bytes, stream);
}

int gpu_fill(gpu *g, void *device, unsigned char byte, size_t n_bytes, void *stream)
{
    return n_bytes == 0 ? 0 : g->driver.fill(as_device(device), byte, n_bytes, stream);
}

int gpu_write(gpu *g, void *device, const void *host, size_t n_bytes)
{
    int code = gpu_copy_in(g, device, host, n_bytes, NULL);
    return code != 0 ? code : gpu_synchronize(g, NULL);
}

int gpu_read(gpu *g, void *host, const void *device, size_t n_bytes)
{
    int code = gpu_copy_out(g, host, device, n_bytes, NULL);
    return code != 0 ? code : gpu_synchronize(g, NULL);
}

/* ---- streams and events ---------------------------------------------------- */

int gpu_stream_create(gpu *g, void **out)
{
    void *stream = NULL;
    int   code = g->driver.stream_create(&stream, STREAM_NON_BLOCKING);
    *out = code == 0 ? stream : NULL;
    return code;
}

void gpu_stream_destroy(gpu *g, void *stream)
{
    if (stream != NULL) {
        g->driver.stream_destroy(stream);
    }
}

int gpu_synchronize(gpu *g, void *stream)
{
    return g->driver.stream_synchronize(stream);
}

int gpu_stream_wait(gpu *g, void *stream, gpu_event event)
{
    return g->driver.stream_wait(stream, event, 0);
}

int gpu_event_create(gpu *g, gpu_event *out)
{
    gpu_event event = NULL;
    int       code = g->driver.event_create(&event, 0);
    *out = code == 0 ? event : NULL;
    return code;
}

void gpu_event_destroy(gpu *g, gpu_event event)
{
    if (event != NULL) {
        g->driver.event_destroy(event);
    }
}

int gpu_event_record(gpu *g, gpu_event event, void *stream)
{
    return g->driver.event_record(event, stream);
}

int gpu_event_synchronize(gpu *g, gpu_event event)
{
    return g->driver.event_synchronize(event);
}

int gpu_elapsed_ms(gpu *g, gpu_event start, gpu_event end, float *ms)
{
    return g->driver.elapsed(ms, start, end);
}

/* ---- graphs ---------------------------------------------------------------- */

int gpu_capture_begin(gpu *g, void *stream)
{
    return g->driver.capture_begin(stream, CAPTURE_THREAD_LOCAL);
}

int gpu_capture_end(gpu *g, void *stream, gpu_graph *out)
{
    captured  graph = NULL;
    gpu_graph ready = NULL;
    *out = NULL;
    int code = g->driver.capture_end(stream, &graph);
    if (code == 0) {
        code = g->driver.instantiate(&ready, graph, 0);
    }
    if (graph != NULL) {
        g->driver.captured_destroy(graph);
    }
    if (code == 0) {
        *out = ready;
    }
    return code;
}

int gpu_graph_launch(gpu *g, gpu_graph graph, void *stream)
{
    return g->driver.graph_launch(graph, stream);
}

void gpu_graph_destroy(gpu *g, gpu_graph graph)
{
    if (graph != NULL) {
        g->driver.graph_destroy(graph);
    }
}
