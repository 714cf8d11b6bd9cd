/* The fake driver's devices, contexts, modules and memory; see fake.h. */
#define _GNU_SOURCE
#include "fake.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

enum { ALIGNMENT = 256, CANARY = 0xA5, MAX_PUSHED = 16 };

fake_state fake;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

static _Thread_local struct {
    fake_context *context[MAX_PUSHED];
    int           n;
} pushed;

int fake_lock(void)
{
    return pthread_mutex_lock(&mutex);
}

void fake_unlock(int *guard)
{
    (void)guard;
    pthread_mutex_unlock(&mutex);
}

int64_t fake_setting(const char *name, int64_t otherwise)
{
    char variable[64];
    snprintf(variable, sizeof variable, "PAGEDKV_FAKE_CUDA_%s", name);
    const char *text = getenv(variable);
    return text != NULL ? strtoll(text, NULL, 10) : otherwise;
}

/* ---- devices --------------------------------------------------------------- */

static int count_devices(void)
{
    int64_t n = fake_setting("DEVICES", FAKE_DEVICES);
    return n < FAKE_DEVICES ? (int)n : FAKE_DEVICES;
}

static int check_device(int device)
{
    if (!fake.is_started) {
        return FAKE_E_NOT_INITIALIZED;
    }
    return device >= 0 && device < count_devices() ? 0 : FAKE_E_INVALID_DEVICE;
}

DRIVER(cuInit, unsigned int flags)
{
    FAKE_LOCK;
    int code = (int)fake_setting("INIT", 0);
    code = code == 0 && flags != 0 ? FAKE_E_INVALID_VALUE : code;
    code = code == 0 && count_devices() == 0 ? FAKE_E_NO_DEVICE : code;
    fake.is_started = fake.is_started || code == 0;
    for (int i = 0; i < FAKE_DEVICES; i++) {
        fake.context[i].device = i;
    }
    return code;
}

DRIVER(cuDriverGetVersion, int *version)
{
    *version = (int)fake_setting("VERSION", 13000);
    return 0;
}

DRIVER(cuGetErrorString, int code, const char **text)
{
    *text = code == FAKE_E_NOT_READY ? "not ready" : "an error of the fake driver";
    return 0;
}

DRIVER(cuDeviceGetCount, int *n)
{
    FAKE_LOCK;
    *n = count_devices();
    return fake.is_started ? 0 : FAKE_E_NOT_INITIALIZED;
}

DRIVER(cuDeviceGet, int *device, int ordinal)
{
    FAKE_LOCK;
    *device = ordinal;
    return check_device(ordinal);
}

DRIVER(cuDeviceGetName, char *name, int room, int device)
{
    FAKE_LOCK;
    snprintf(name, (size_t)room, "Fake GPU %d", device);
    return check_device(device);
}

DRIVER(cuDeviceTotalMem_v2, size_t *n_bytes, int device)
{
    FAKE_LOCK;
    *n_bytes = (size_t)fake_setting("MEMORY", (int64_t)16 << 30);
    return check_device(device);
}

DRIVER(cuDeviceGetAttribute, int *value, int attribute, int device)
{
    FAKE_LOCK;
    int capability = (int)fake_setting("CAPABILITY", 90);
    switch (attribute) {
    case PKV_I_CU_MULTIPROCESSOR_COUNT: *value = FAKE_MULTIPROCESSORS; break;
    case PKV_I_CU_L2_CACHE_SIZE: *value = 1 << 20; break;
    case PKV_I_CU_COMPUTE_CAPABILITY_MAJOR: *value = capability / 10; break;
    case PKV_I_CU_COMPUTE_CAPABILITY_MINOR: *value = capability % 10; break;
    default: return FAKE_E_INVALID_VALUE;
    }
    return check_device(device);
}

/* ---- contexts -------------------------------------------------------------- */

fake_context *fake_current(void)
{
    return pushed.n > 0 ? pushed.context[pushed.n - 1] : NULL;
}

DRIVER(cuDevicePrimaryCtxRetain, fake_context **out, int device)
{
    FAKE_LOCK;
    int code = check_device(device);
    code = code != 0 ? code : (int)fake_setting("CONTEXT", 0);
    if (code == 0) {
        *out = &fake.context[device];
        (*out)->n_retained++;
        fake.counts.n_retained++;
    }
    return code;
}

DRIVER(cuDevicePrimaryCtxRelease_v2, int device)
{
    FAKE_LOCK;
    int code = check_device(device);
    if (code == 0 && fake.context[device].n_retained == 0) {
        return FAKE_E_INVALID_CONTEXT;
    }
    if (code == 0) {
        fake_drain_all();
        fake.context[device].n_retained--;
        fake.counts.n_retained--;
    }
    return code;
}

DRIVER(cuCtxGetCurrent, fake_context **out)
{
    FAKE_LOCK;
    *out = fake_current();
    return fake.is_started ? 0 : FAKE_E_NOT_INITIALIZED;
}

DRIVER(cuCtxPushCurrent_v2, fake_context *context)
{
    FAKE_LOCK;
    if (context == NULL || context->n_retained == 0 || pushed.n == MAX_PUSHED) {
        return FAKE_E_INVALID_CONTEXT;
    }
    pushed.context[pushed.n++] = context;
    return 0;
}

DRIVER(cuCtxPopCurrent_v2, fake_context **out)
{
    FAKE_LOCK;
    if (pushed.n == 0) {
        return FAKE_E_INVALID_CONTEXT;
    }
    *out = pushed.context[--pushed.n];
    return 0;
}

DRIVER(cuCtxSetCurrent, fake_context *context)
{
    FAKE_LOCK;
    if (context != NULL && context->n_retained == 0) {
        return FAKE_E_INVALID_CONTEXT;
    }
    pushed.n = pushed.n > 0 ? pushed.n - 1 : 0;
    if (context != NULL) {
        pushed.context[pushed.n++] = context;
    }
    return 0;
}

/* What a call needs that works in the current context and that no capture allows. */
static int check_unsafe(void)
{
    fake_context *context = fake_current();
    if (context == NULL || context->n_retained == 0) {
        return FAKE_E_INVALID_CONTEXT;
    }
    return fake_unsafe_call();
}

/* ---- modules --------------------------------------------------------------- */

DRIVER(cuModuleLoadData, fake_module **out, const void *image)
{
    FAKE_LOCK;
    int code = check_unsafe();
    code = code != 0 ? code : (int)fake_setting("LOAD", 0);
    if (code != 0 || image == NULL) {
        return code != 0 ? code : FAKE_E_INVALID_VALUE;
    }
    fake_module *module = calloc(1, sizeof *module);
    if (module == NULL) {
        return FAKE_E_OUT_OF_MEMORY;
    }
    *module = (fake_module){.context = fake_current(), .alive = true};
    fake.counts.n_modules++;
    *out = module;
    return 0;
}

/* The module stays allocated, for functions that a graph still holds. */
DRIVER(cuModuleUnload, fake_module *module)
{
    FAKE_LOCK;
    int code = check_unsafe();
    if (code != 0 || !module->alive || module->context != fake_current()) {
        return code != 0 ? code : FAKE_E_INVALID_HANDLE;
    }
    fake_drain_all();
    module->alive = false;
    fake.counts.n_modules--;
    return 0;
}

DRIVER(cuModuleGetFunction, fake_function **out, fake_module *module, const char *name)
{
    FAKE_LOCK;
    const emulated_kernel *kernel = emulated_find(name);
    int                    fault = (int)fake_setting("FUNCTION", 0);
    if (fault != 0 && strcmp(name, "pkv_cast_int4_bf16") == 0) {
        return fault;
    }
    if (kernel == NULL) {
        return FAKE_E_NOT_FOUND;
    }
    fake_function *function = calloc(1, sizeof *function);
    if (function == NULL) {
        return FAKE_E_OUT_OF_MEMORY;
    }
    *function = (fake_function){.module = module, .kernel = kernel, .next = fake.functions};
    fake.functions = function;
    *out = function;
    return 0;
}

DRIVER(cuFuncLoad, fake_function *function)
{
    FAKE_LOCK;
    int code = check_unsafe();
    function->loaded = code == 0;
    fake.counts.n_loaded += code == 0;
    return code;
}

DRIVER(cuFuncGetAttribute, int *value, int attribute, fake_function *function)
{
    FAKE_LOCK;
    int code = check_unsafe();
    fake.counts.n_loaded += code == 0 && !function->loaded;
    function->loaded = function->loaded || code == 0;
    *value = (int)fake_setting("PTX", fake_setting("CAPABILITY", 90) < 90 ? 80 : 90);
    return attribute == PKV_I_CU_PTX_VERSION ? code : FAKE_E_INVALID_VALUE;
}

/* ---- memory ---------------------------------------------------------------- */

fake_block *fake_find(const void *at, size_t n_bytes)
{
    uintptr_t start = (uintptr_t)at;
    for (fake_block *b = fake.blocks; b != NULL; b = b->next) {
        uintptr_t data = (uintptr_t)b->data;
        if (start >= data && start - data < b->n_bytes && n_bytes <= b->n_bytes - (start - data)) {
            return b;
        }
    }
    return NULL;
}

static size_t page_bytes(void)
{
    return (size_t)sysconf(_SC_PAGESIZE);
}

static void protect(const fake_block *b, int protection)
{
    if (mprotect(b->map + page_bytes(), b->map_bytes - 2 * page_bytes(), protection) != 0) {
        perror("fake driver: mprotect");
        abort();
    }
}

void fake_expose(bool accessible)
{
    for (const fake_block *b = fake.blocks; b != NULL; b = b->next) {
        if (!b->is_host) {
            protect(b, accessible ? PROT_READ | PROT_WRITE : PROT_NONE);
        }
    }
}

static size_t used_bytes(const fake_context *context)
{
    size_t used = 0;
    for (const fake_block *b = fake.blocks; b != NULL; b = b->next) {
        used += !b->is_host && b->context == context ? b->n_bytes : 0;
    }
    return used;
}

static size_t left_bytes(void)
{
    size_t all = (size_t)fake_setting("MEMORY", (int64_t)16 << 30);
    size_t used = used_bytes(fake_current());
    return used < all ? all - used : 0;
}

/* The data ends before the upper guard, as near as its alignment allows. */
static int allocate(size_t n_bytes, bool is_host, void **out)
{
    int code = check_unsafe();
    if (code != 0 || n_bytes == 0) {
        return code != 0 ? code : FAKE_E_INVALID_VALUE;
    }
    if (!is_host && n_bytes > left_bytes()) {
        return FAKE_E_OUT_OF_MEMORY;
    }
    size_t aligned = (n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    size_t room = (aligned + page_bytes() - 1) / page_bytes() * page_bytes();
    fake_block    *b = calloc(1, sizeof *b);
    unsigned char *map = mmap(NULL, room + 2 * page_bytes(), PROT_NONE,
                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (b == NULL || map == MAP_FAILED) {
        abort();
    }
    *b = (fake_block){.map = map, .map_bytes = room + 2 * page_bytes(), .n_bytes = n_bytes,
                      .data = map + page_bytes() + room - aligned, .context = fake_current(),
                      .is_host = is_host, .next = fake.blocks};
    protect(b, PROT_READ | PROT_WRITE);
    memset(map + page_bytes(), CANARY, room - aligned);
    memset(b->data + n_bytes, CANARY, aligned - n_bytes);
    protect(b, is_host ? PROT_READ | PROT_WRITE : PROT_NONE);
    fake.blocks = b;
    fake.counts.n_blocks++;
    *out = b->data;
    return 0;
}

static void check_canaries(const fake_block *b)
{
    const unsigned char *start = b->map + page_bytes();
    const unsigned char *end = b->map + b->map_bytes - page_bytes();
    for (const unsigned char *at = start; at < end; at++) {
        if (at == b->data) {
            at += b->n_bytes;
            if (at == end) {
                break;
            }
        }
        if (*at != CANARY) {
            fprintf(stderr, "fake driver: a byte %td bytes from the start of a block of %zu "
                            "was written\n", at - b->data, b->n_bytes);
            abort();
        }
    }
}

static int release(const void *data, bool is_host)
{
    int code = check_unsafe();
    if (code != 0) {
        return code;
    }
    for (fake_block **at = &fake.blocks; *at != NULL; at = &(*at)->next) {
        fake_block *b = *at;
        if (b->data == data && b->is_host == is_host) {
            fake_drain_all();
            protect(b, PROT_READ | PROT_WRITE);
            check_canaries(b);
            munmap(b->map, b->map_bytes);
            *at = b->next;
            free(b);
            fake.counts.n_blocks--;
            return 0;
        }
    }
    return FAKE_E_INVALID_VALUE;
}

DRIVER(cuMemAlloc_v2, pkv_i_cu_address *out, size_t n_bytes)
{
    FAKE_LOCK;
    void *data = NULL;
    int   code = allocate(n_bytes, false, &data);
    *out = (uintptr_t)data;
    return code;
}

DRIVER(cuMemFree_v2, pkv_i_cu_address data)
{
    FAKE_LOCK;
    return release((const void *)(uintptr_t)data, false);
}

DRIVER(cuMemHostAlloc, void **out, size_t n_bytes, unsigned int flags)
{
    FAKE_LOCK;
    return (flags & ~7u) != 0 ? FAKE_E_INVALID_VALUE : allocate(n_bytes, true, out);
}

DRIVER(cuMemFreeHost, void *data)
{
    FAKE_LOCK;
    return release(data, true);
}

DRIVER(cuMemGetInfo_v2, size_t *free_bytes, size_t *total_bytes)
{
    FAKE_LOCK;
    *free_bytes = left_bytes();
    *total_bytes = (size_t)fake_setting("MEMORY", (int64_t)16 << 30);
    return fake_current() != NULL ? 0 : FAKE_E_INVALID_CONTEXT;
}

DRIVER(cuPointerGetAttribute, void *value, int attribute, pkv_i_cu_address pointer)
{
    FAKE_LOCK;
    const fake_block *b = fake_find((const void *)(uintptr_t)pointer, 0);
    if (b == NULL) {
        return FAKE_E_INVALID_VALUE;
    }
    unsigned int type = b->is_host ? PKV_I_CU_MEMORYTYPE_HOST : PKV_I_CU_MEMORYTYPE_DEVICE;
    switch (attribute) {
    case PKV_I_CU_MEMORY_TYPE: memcpy(value, &type, sizeof type); return 0;
    case PKV_I_CU_DEVICE_ORDINAL: memcpy(value, &b->context->device, sizeof(int)); return 0;
    case PKV_I_CU_IS_MANAGED: memset(value, 0, 1); return 0;
    default: return FAKE_E_INVALID_VALUE;
    }
}

__attribute__((visibility("default"))) void fake_cuda_counts(fake_counts *out);

void fake_cuda_counts(fake_counts *out)
{
    FAKE_LOCK;
    *out = fake.counts;
    out->n_pushed = pushed.n;
}
