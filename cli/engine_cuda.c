/* The replay with its cache in the memory of a GPU: see engine_cuda.h. */
#include "engine_cuda.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "device.h"

/* Numbers of the device's that every graph reads: where they lie in `numbers`. */
enum { AT_COUNT = 0, AT_STATUS = 1, AT_SCALE = 2, AT_COLUMNS = 64 };

enum { MAX_BUCKETS = 64 };

/* Memory that is on both sides. */
typedef struct twin {
    unsigned char *host;
    unsigned char *device;
    size_t         n_bytes;
} twin;

enum { TWIN_CACHE, TWIN_SOURCE, TWIN_SCALES, N_TWINS };

/* One bucket: its graph serves all ways and every step of the bucket. */
typedef struct bucket {
    int64_t   n_tokens; /* 0: not captured yet */
    int64_t   capacity; /* N */
    gpu_graph graph;
} bucket;

struct engine_cuda {
    cli_device  device;
    twin        twins[N_TWINS];
    int32_t    *numbers; /* of the device: count, status word, given scale, columns */
    int32_t    *staging; /* [3 * slices_capacity] */
    pkv_new_kv *sources; /* [num_layers] as long as the bucket that is captured */
    bucket      buckets[MAX_BUCKETS];
    uint64_t    random;
};

/* ---- memory -------------------------------------------------------------- */

/* Notes the first failure; false after one. */
static bool is_well(engine *e, int code, const char *what)
{
    if (e->failed == CLI_OK) {
        e->failed = device_status(&e->cuda->device, code, what);
        e->reported = e->reported || e->failed != CLI_OK; /* one line is enough */
    }
    return e->failed == CLI_OK;
}

static int allocate_twins(engine *e)
{
    engine_cuda *c = e->cuda;
    gpu         *g = c->device.gpu;
    const int64_t slots = e->result->num_pages * e->o->page_size;
    const size_t  numbers_bytes = (size_t)(AT_COLUMNS + 3 * e->slices_capacity) * sizeof(int32_t);
    size_t        all = numbers_bytes;
    int           code = 0;
    c->twins[TWIN_CACHE] = (twin){e->cache_memory.data, NULL, e->cache_memory.size_bytes};
    c->twins[TWIN_SOURCE] = (twin){e->source_memory.data, NULL, e->source_memory.size_bytes};
    c->twins[TWIN_SCALES] =
        (twin){e->scales, NULL, (size_t)(2 * e->o->num_layers * slots * engine_scales_bytes(e))};
    for (int i = 0; i < N_TWINS; i++) {
        twin *t = &c->twins[i];
        all += t->n_bytes;
        if (t->n_bytes > 0 && code == 0) {
            code = gpu_alloc(g, (void **)(void *)&t->device, t->n_bytes);
        }
    }
    code = code != 0 ? code : gpu_alloc(g, (void **)(void *)&c->numbers, numbers_bytes);
    if (code != 0) {
        return cli_fail(CLI_EXHAUSTED,
                        "--backend cuda: no %.1f GiB on the device, which has %.1f GiB: %s",
                        (double)all / (1 << 30),
                        (double)c->device.info.memory_bytes / (1 << 30),
                        gpu_error_text(g, code));
    }
    c->staging = calloc((size_t)e->slices_capacity, 3 * sizeof *c->staging);
    c->sources = calloc((size_t)e->o->num_layers, sizeof *c->sources);
    return c->staging != NULL && c->sources != NULL ? CLI_OK : cli_no_memory("the replay");
}

/* Where the device has what the host has there. */
static void *on_device(const engine_cuda *c, const void *host)
{
    for (int i = 0; i < N_TWINS; i++) {
        const twin     *t = &c->twins[i];
        const uintptr_t offset = (uintptr_t)host - (uintptr_t)t->host;
        if (t->host != NULL && offset < t->n_bytes) {
            return t->device + offset;
        }
    }
    return NULL;
}

static void move_scales(const engine *e, pkv_scales *scales)
{
    const engine_cuda *c = e->cuda;
    if (scales->kind != PKV_SCALES_NONE) {
        scales->data = scales->data == (const void *)&e->given_scale
                           ? (void *)(c->numbers + AT_SCALE)
                           : on_device(c, scales->data);
    }
}

static void move_views(engine *e)
{
    for (int64_t layer = 0; layer < e->o->num_layers; layer++) {
        pkv_cache  *cache = &e->caches[layer];
        pkv_new_kv *source = &e->sources[layer];
        cache->k.data = on_device(e->cuda, cache->k.data);
        cache->v.data = on_device(e->cuda, cache->v.data);
        source->k.data = on_device(e->cuda, source->k.data);
        source->v.data = on_device(e->cuda, source->v.data);
        move_scales(e, &cache->k_scales);
        move_scales(e, &cache->v_scales);
    }
}

int engine_cuda_open(engine *e)
{
    if (!e->o->cuda) {
        return CLI_OK;
    }
    e->cuda = calloc(1, sizeof *e->cuda);
    if (e->cuda == NULL) {
        return cli_no_memory("the replay");
    }
    e->cuda->random = 1;
    int status = device_open(&e->cuda->device);
    status = status != CLI_OK ? status : allocate_twins(e);
    if (status == CLI_OK) {
        memcpy(e->result->device, e->cuda->device.info.name, sizeof e->result->device);
        move_views(e);
    }
    return status;
}

void engine_cuda_close(engine *e)
{
    engine_cuda *c = e->cuda;
    if (c == NULL) {
        return;
    }
    gpu *g = c->device.gpu;
    for (int i = 0; i < MAX_BUCKETS; i++) {
        if (c->buckets[i].graph != NULL) {
            gpu_graph_destroy(g, c->buckets[i].graph);
        }
    }
    for (int i = 0; i < N_TWINS && g != NULL; i++) {
        gpu_free(g, c->twins[i].device);
    }
    if (g != NULL) {
        gpu_free(g, c->numbers);
    }
    device_close(&c->device);
    free(c->staging);
    free(c->sources);
    free(c);
    e->cuda = NULL;
}

int engine_cuda_touch(engine *e)
{
    engine_cuda *c = e->cuda;
    if (c == NULL) {
        return CLI_OK;
    }
    gpu         *g = c->device.gpu;
    const twin  *cache = &c->twins[TWIN_CACHE], *source = &c->twins[TWIN_SOURCE];
    const twin  *scales = &c->twins[TWIN_SCALES];
    void        *stream = c->device.stream;
    const size_t half = cache->n_bytes / 2, most = (size_t)256 << 20;
    int          status = device_copy_limit(&c->device, cache->device, cache->device + half,
                                            (int64_t)(half < most ? half : most),
                                            &e->result->copy_limit_bytes_per_s);
    if (status != CLI_OK) {
        return status;
    }
    int code = gpu_fill(g, cache->device, CONTENT_POISON, cache->n_bytes, stream);
    code = code != 0 ? code : gpu_fill(g, source->device, 0, source->n_bytes, stream);
    if (scales->n_bytes > 0) {
        code = code != 0 ? code
                         : gpu_fill(g, scales->device, CONTENT_POISON, scales->n_bytes, stream);
    }
    code = code != 0 ? code : gpu_fill(g, c->numbers, 0, AT_COLUMNS * sizeof(int32_t), stream);
    code = code != 0 ? code : gpu_copy_in(g, c->numbers + AT_SCALE, &e->given_scale,
                                          sizeof e->given_scale, stream);
    code = code != 0 ? code : gpu_synchronize(g, stream);
    return device_status(&c->device, code, "memory of the device");
}

/* ---- one step ------------------------------------------------------------ */

void engine_cuda_put_rows(engine *e)
{
    engine_cuda *c = e->cuda;
    const size_t n_bytes = (size_t)(e->schedule.n_tokens * e->source_row_bytes);
    for (int64_t layer = 0; c != NULL && layer < e->o->num_layers; layer++) {
        const void *rows = engine_source_row(e, layer, 0);
        if (!is_well(e, gpu_copy_in(c->device.gpu, on_device(c, rows), rows, n_bytes,
                                    c->device.stream), "new K/V to the device")) {
            return;
        }
    }
}

/* Columns of the bucket behind the count, as upstream's array. */
static pkv_slices bucket_slices(const engine_cuda *c, int64_t capacity)
{
    pkv_slices slices;
    (void)pkv_slices_from_array(&slices, sizeof slices, c->numbers + AT_COLUMNS, capacity,
                                c->numbers + AT_COUNT);
    return slices;
}

/* The update of all layers for steps of this bucket, and one run of it with a count of 0. */
static int capture(engine *e, bucket *b)
{
    engine_cuda          *c = e->cuda;
    gpu                  *g = c->device.gpu;
    void                 *stream = c->device.stream;
    const pkv_update_opts opts = {.struct_size = sizeof opts,
                                  .status_word = c->numbers + AT_STATUS};
    const pkv_slices      slices = bucket_slices(c, b->capacity);
    pkv_error             err;
    for (int64_t layer = 0; layer < e->o->num_layers; layer++) {
        c->sources[layer] = e->sources[layer];
        if (c->sources[layer].n_tokens > b->n_tokens) {
            c->sources[layer].n_tokens = b->n_tokens;
        }
    }
    int code = gpu_capture_begin(g, stream);
    if (code != 0) {
        return device_status(&c->device, code, "capture");
    }
    pkv_status status = pkv_cuda_update_layers(c->device.cuda, e->caches, c->sources, NULL,
                                               e->o->num_layers, &slices, 1, &opts, &err, stream);
    code = gpu_capture_end(g, stream, &b->graph);
    if (status != PKV_OK) {
        return cli_fail_pkv(&err, "update");
    }
    code = code != 0 ? code : gpu_fill(g, c->numbers + AT_COUNT, 0, sizeof(int32_t), stream);
    code = code != 0 ? code : gpu_graph_launch(g, b->graph, stream);
    code = code != 0 ? code : gpu_synchronize(g, stream);
    return device_status(&c->device, code, "graph");
}

/* The bucket of the step; NULL after a line. */
static bucket *find_bucket(engine *e)
{
    const int64_t n_tokens = pkv_token_bucket(e->schedule.n_tokens, PKV_MIN_TOKEN_BUCKET,
                                              e->o->max_num_batched_tokens, 0);
    bucket       *b = e->cuda->buckets;
    while (b->n_tokens != 0 && b->n_tokens != n_tokens) {
        b++; /* buckets double: there is room for all */
    }
    if (b->n_tokens == 0) {
        b->n_tokens = n_tokens;
        b->capacity = pkv_padded_num_slices(e->o->max_num_reqs, n_tokens, e->o->page_size);
        e->failed = capture(e, b);
        e->result->n_graphs++;
    }
    return e->failed == CLI_OK ? b : NULL;
}

/*
 * What stands behind the real columns must not matter: one time in two a slice that could be
 * written, to show what is there if it is, else anything.
 */
static void put_garbage(engine *e, int32_t *column, int64_t capacity)
{
    const uint64_t bits = content_mix(++e->cuda->random);
    const int64_t  slots = e->result->num_pages * e->o->page_size;
    column[0] = (int32_t)(uint32_t)bits;
    column[capacity] = (int32_t)(uint32_t)(bits >> 32);
    column[2 * capacity] = (int32_t)(uint32_t)(bits >> 16);
    if (bits % 2 == 0) {
        column[0] = (int32_t)((bits >> 1) % (uint64_t)slots);
        column[capacity] = (int32_t)((bits >> 8) % (uint64_t)e->schedule.n_tokens);
        column[2 * capacity] = 1;
    }
}

/* The columns of a way as the bucket's graph has them; zeros behind those of static are its own. */
static void stage(engine *e, int way, int64_t capacity)
{
    int32_t *staging = e->cuda->staging;
    for (int i = 0; i < 3; i++) {
        memcpy(staging + i * capacity, e->columns[way] + i * e->slices_capacity,
               (size_t)e->counts[way] * sizeof *staging);
    }
    for (int64_t i = e->counts[way]; i < capacity; i++) {
        put_garbage(e, staging + i, capacity);
    }
}

int engine_cuda_write(engine *e, int way, int64_t *ns)
{
    engine_cuda *c = e->cuda;
    gpu         *g = c->device.gpu;
    void        *stream = c->device.stream;
    double       measured = 0;
    bucket      *b = e->failed == CLI_OK ? find_bucket(e) : NULL;
    if (b == NULL) {
        return e->failed;
    }
    stage(e, way, b->capacity);
    int code = gpu_copy_in(g, c->numbers + AT_COLUMNS, c->staging,
                           (size_t)b->capacity * 3 * sizeof *c->staging, stream);
    code = code != 0 ? code : gpu_copy_in(g, c->numbers + AT_COUNT, &e->counts[way],
                                          sizeof e->counts[way], stream);
    code = code != 0 ? code : gpu_synchronize(g, stream);
    code = code != 0 ? code : device_timer_start(&c->device);
    code = code != 0 ? code : gpu_graph_launch(g, b->graph, stream);
    code = code != 0 ? code : device_timer_stop(&c->device, &measured);
    *ns = (int64_t)measured;
    return is_well(e, code, "update") ? CLI_OK : e->failed;
}

/* ---- for the checks ------------------------------------------------------ */

static void fetch(engine *e, unsigned char *host, int64_t n_bytes)
{
    engine_cuda *c = e->cuda;
    if (n_bytes > 0 && e->failed == CLI_OK) {
        (void)is_well(e, gpu_copy_out(c->device.gpu, host, on_device(c, host), (size_t)n_bytes,
                                      c->device.stream), "the cache from the device");
    }
}

static void end_fetch(engine *e)
{
    if (e->failed == CLI_OK) {
        (void)is_well(e, gpu_synchronize(e->cuda->device.gpu, e->cuda->device.stream),
                      "the cache from the device");
    }
}

void engine_cuda_fetch(engine *e, int64_t slot, int64_t n_slots)
{
    if (e->cuda == NULL) {
        return;
    }
    for (int64_t layer = 0; layer < e->o->num_layers; layer++) {
        fetch(e, engine_cache_slot(e, layer, slot), n_slots * e->shape.row_bytes);
        for (int plane = 0; plane < 2 && e->scales != NULL; plane++) {
            fetch(e, engine_slot_scales(e, layer, plane, slot), n_slots * engine_scales_bytes(e));
        }
    }
    end_fetch(e);
}

void engine_cuda_fetch_all(engine *e)
{
    if (e->cuda == NULL) {
        return;
    }
    const twin *scales = &e->cuda->twins[TWIN_SCALES], *cache = &e->cuda->twins[TWIN_CACHE];
    fetch(e, cache->host, (int64_t)cache->n_bytes);
    fetch(e, scales->host, (int64_t)scales->n_bytes);
    end_fetch(e);
}

static int fill(const engine_cuda *c, const unsigned char *host, int64_t n_bytes)
{
    return gpu_fill(c->device.gpu, on_device(c, host), CONTENT_POISON, (size_t)n_bytes,
                    c->device.stream);
}

void engine_cuda_poison(engine *e, int32_t page)
{
    const engine_cuda *c = e->cuda;
    const int64_t      S = e->o->page_size, slot = page * S;
    int                code = 0;
    if (c == NULL || e->failed != CLI_OK) {
        return;
    }
    for (int64_t layer = 0; layer < e->o->num_layers && code == 0; layer++) {
        code = fill(c, engine_cache_slot(e, layer, slot), S * e->shape.row_bytes);
        for (int plane = 0; plane < 2 && e->scales != NULL && code == 0; plane++) {
            code = fill(c, engine_slot_scales(e, layer, plane, slot), S * engine_scales_bytes(e));
        }
    }
    (void)is_well(e, code, "poison");
}

int engine_cuda_finish(engine *e)
{
    engine_cuda *c = e->cuda;
    int32_t      word = 0;
    if (c == NULL || e->failed != CLI_OK) {
        return e->failed;
    }
    int code = gpu_copy_out(c->device.gpu, &word, c->numbers + AT_STATUS, sizeof word,
                            c->device.stream);
    code = code != 0 ? code : gpu_synchronize(c->device.gpu, c->device.stream);
    if (is_well(e, code, "status word") && word != 0 && !e->reported) {
        cli_fail(CLI_DIFFERENCE, "the kernels' status word is 0x%08x: %d slices skipped%s%s",
                 (unsigned)word, (int)(word & PKV_CUDA_FAULT_SLICES),
                 (word & PKV_CUDA_FAULT_COUNT) != 0 ? ", a count out of range" : "",
                 (word & PKV_CUDA_FAULT_SCALE) != 0 ? ", a scale out of range" : "");
        e->reported = true;
    }
    e->result->status_word = word;
    return e->failed;
}
