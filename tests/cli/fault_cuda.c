/*
 * Linked into pagedkv_emulated with --wrap: as fault.c, for updates on a device.  The
 * environment's FAULT says what goes wrong in every graph, FAULT_SLOT the slot of
 * FAULT=stray.
 */
#include <pagedkv/pagedkv_cuda.h>

#include <dlfcn.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

pkv_status __real_pkv_cuda_update_layers(pkv_cuda *cuda, const pkv_cache *caches,
                                         const pkv_new_kv *new_kvs, const int32_t *group_ids,
                                         int64_t n_layers, const pkv_slices *groups,
                                         int64_t n_groups, const pkv_update_opts *opts,
                                         pkv_error *err, pkv_cuda_stream stream);
pkv_status __wrap_pkv_cuda_update_layers(pkv_cuda *cuda, const pkv_cache *caches,
                                         const pkv_new_kv *new_kvs, const int32_t *group_ids,
                                         int64_t n_layers, const pkv_slices *groups,
                                         int64_t n_groups, const pkv_update_opts *opts,
                                         pkv_error *err, pkv_cuda_stream stream);

enum { MAX_LAYERS = 64 };

static bool is_fault(const char *name)
{
    const char *fault = getenv("FAULT");
    return fault != NULL && strcmp(fault, name) == 0;
}

/* Bytes of a number by the driver's fill, put on the stream, and so into the graph. */
static void put_number(void *at, uint32_t number, int n_bytes, pkv_cuda_stream stream)
{
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    int (*fill)(unsigned long long, unsigned char, size_t, void *) = NULL;
    if (driver == NULL) {
        abort();
    }
    *(void **)(void *)&fill = dlsym(driver, "cuMemsetD8Async");
    for (int i = 0; i < n_bytes; i++) {
        if (fill == NULL || fill((unsigned long long)(uintptr_t)at + (unsigned)i,
                                 (unsigned char)(number >> 8 * i), 1, stream) != 0) {
            abort();
        }
    }
    dlclose(driver);
}

/* Spoils what the call is told; caches and sources are copies. */
static void spoil_call(pkv_cache *caches, pkv_new_kv *sources, int64_t n_layers)
{
    pkv_cache  *cache = &caches[n_layers - 1];
    pkv_new_kv *source = &sources[n_layers - 1];
    if (is_fault("swap")) {
        const void *k = source->k.data;
        source->k.data = source->v.data;
        source->v.data = k;
    } else if (is_fault("wrong-row")) {
        source->k.data = (const char *)source->k.data + source->k.token_stride_bytes;
        source->v.data = (const char *)source->v.data + source->v.token_stride_bytes;
        source->n_tokens--;
    } else if (is_fault("wrong-slot")) {
        cache->k.data = (char *)cache->k.data + cache->k.token_stride_bytes;
        cache->v.data = (char *)cache->v.data + cache->v.token_stride_bytes;
        cache->n_pages--;
    } else if (is_fault("wrong-layer")) {
        *cache = caches[0];
    }
}

pkv_status __wrap_pkv_cuda_update_layers(pkv_cuda *cuda, const pkv_cache *caches,
                                         const pkv_new_kv *new_kvs, const int32_t *group_ids,
                                         int64_t n_layers, const pkv_slices *groups,
                                         int64_t n_groups, const pkv_update_opts *opts,
                                         pkv_error *err, pkv_cuda_stream stream)
{
    pkv_cache  some_caches[MAX_LAYERS];
    pkv_new_kv some_sources[MAX_LAYERS];
    if (getenv("FAULT") == NULL || n_layers > MAX_LAYERS) {
        return __real_pkv_cuda_update_layers(cuda, caches, new_kvs, group_ids, n_layers, groups,
                                             n_groups, opts, err, stream);
    }
    memcpy(some_caches, caches, (size_t)n_layers * sizeof *caches);
    memcpy(some_sources, new_kvs, (size_t)n_layers * sizeof *new_kvs);
    spoil_call(some_caches, some_sources, n_layers);
    pkv_slices slices = *groups;
    if (is_fault("all-columns")) {
        put_number(slices.num_slices, (uint32_t)slices.capacity, 4, stream);
    } else if (is_fault("count")) {
        slices.capacity = 0;
    }
    pkv_status status = __real_pkv_cuda_update_layers(
        cuda, some_caches, some_sources, group_ids, n_layers - is_fault("fewer-layers"), &slices,
        n_groups, opts, err, stream);
    if (is_fault("stray")) {
        const char *slot = getenv("FAULT_SLOT");
        put_number((char *)caches[0].k.data + atol(slot) * caches[0].k.token_stride_bytes + 5, 0x11,
                   1, stream);
    } else if (is_fault("status")) {
        put_number(opts->status_word, 3, 4, stream);
    }
    return status;
}
