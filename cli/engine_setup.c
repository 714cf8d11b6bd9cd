/* The replay's memory: sizes, allocation, views, and where things lie. */
#include "engine.h"
#include "engine_cuda.h"
#include "hugepages.h"
#include "limit.h"
#include "quant.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

unsigned char *engine_cache_slot(const engine *e, int64_t layer, int64_t slot)
{
    return (unsigned char *)e->cache_memory.data + ENGINE_GUARD_BYTES + layer * e->layer_bytes +
           slot * e->shape.row_bytes;
}

unsigned char *engine_source_row(const engine *e, int64_t layer, int64_t row)
{
    return (unsigned char *)e->source_memory.data + layer * e->source_bytes +
           row * e->source_row_bytes;
}

int64_t engine_row_slot(const engine *e, int64_t row, int64_t position)
{
    int64_t        n_pages = 0;
    const int32_t *pages = ledger_of(&e->schedule.ledger, row, &n_pages);
    return pages[position / e->o->page_size] * e->o->page_size + position % e->o->page_size;
}

enum { POOL_PAGE_BYTES = 58 }; /* most that the pool takes for a page */

static int size_shape(engine *e)
{
    const replay_options *o = e->o;
    const pkv_dtype       dtypes[2] = {o->dtype, o->cache_dtype};
    pkv_new_kv            rows[2];
    for (int i = 0; i < 2; i++) {
        if (pkv_new_kv_combined(&rows[i], sizeof rows[i], NULL, 1, o->num_kv_heads, o->head_dim,
                                dtypes[i]) != PKV_OK) {
            return cli_fail(CLI_USAGE, "%" PRId64 " heads of %" PRId64 " %s make no whole row",
                            o->num_kv_heads, o->head_dim, pkv_dtype_name(dtypes[i]));
        }
    }
    const pkv_new_kv row = rows[1];
    e->converts = o->dtype != o->cache_dtype;
    e->source_row_bytes = rows[0].k.token_stride_bytes;
    e->shape = (content_shape){.n_heads = o->num_kv_heads,
                               .row_bytes = row.k.token_stride_bytes,
                               .head_bytes = row.k.head_stride_bytes / 2};
    e->scratch_bytes = (e->shape.row_bytes + 7) / 8 * 8 +
                       (2 * o->num_kv_heads + o->head_dim) * (int64_t)sizeof(float);
    e->given_scale = quant_given_scale();
    return CLI_OK;
}

/* Bytes of computed scales for a token in one layer. */
static int64_t token_scales_bytes(const engine *e)
{
    bool computed = e->converts && quant_scales_kind(e->o->cache_dtype) == PKV_SCALES_TOKEN_HEAD;
    return computed ? 2 * e->o->num_kv_heads * (int64_t)sizeof(float) : 0;
}

/*
 * Pages that 2 GiB of K/V hold, or, with a stamp a slot, a place in the pool and
 * a note, a quarter of the memory; but at least those of the longest request.
 */
static int64_t default_pages(const engine *e)
{
    const uint64_t memory = cli_memory_bytes();
    const int64_t  index_bytes = e->o->prefix_cache ? 4 * e->o->page_size + 60 : 0;
    const int64_t  extra_bytes = e->o->page_size + POOL_PAGE_BYTES + index_bytes +
                                (int64_t)sizeof(ledger_note);
    int64_t        page_bytes = 0;
    if (__builtin_mul_overflow(e->shape.row_bytes * e->o->num_layers, e->o->page_size,
                               &page_bytes) ||
        page_bytes > INT64_MAX - extra_bytes) {
        return e->longest_pages;
    }
    int64_t pages = ((int64_t)2 << 30) / page_bytes;
    if (memory > 0 && pages > (int64_t)(memory / 4) / (page_bytes + extra_bytes)) {
        pages = (int64_t)(memory / 4) / (page_bytes + extra_bytes);
    }
    return pages > e->longest_pages ? pages : e->longest_pages;
}

static int fail_long_request(const engine *e, int64_t request, int64_t pages)
{
    const replay_options *o = e->o;
    const int64_t         line = e->trace->requests[request].line;
    if (line > 0) {
        return cli_fail(CLI_EXHAUSTED,
                        "%s:%" PRId64 ": request needs %" PRId64 " pages of %" PRId64
                        " tokens, the pool has %" PRId64,
                        o->trace_path, line, pages, o->page_size, o->num_pages);
    }
    return cli_fail(CLI_EXHAUSTED,
                    "request %" PRId64 " needs %" PRId64 " pages of %" PRId64
                    " tokens, the pool has %" PRId64,
                    request, pages, o->page_size, o->num_pages);
}

static int size_pool(engine *e)
{
    const replay_options *o = e->o;
    e->longest_pages = 1;
    for (int64_t i = 0; i < e->trace->n_requests; i++) {
        int64_t pages = schedule_pages(&e->trace->requests[i], o->page_size);
        if (o->num_pages > 0 && pages > o->num_pages) {
            return fail_long_request(e, i, pages);
        }
        e->longest_pages = pages > e->longest_pages ? pages : e->longest_pages;
    }
    e->result->num_pages = o->num_pages > 0 ? o->num_pages : default_pages(e);
    return CLI_OK;
}

/* Adds n items to a sum of bytes; false if it overflows. */
static bool add_bytes(int64_t *sum_bytes, int64_t n, int64_t item_bytes)
{
    int64_t bytes = 0;
    return !__builtin_mul_overflow(n, item_bytes, &bytes) &&
           !__builtin_add_overflow(*sum_bytes, bytes, sum_bytes);
}

static schedule_limits limits_of(const engine *e)
{
    return (schedule_limits){.page_size = e->o->page_size,
                             .num_pages = e->result->num_pages,
                             .max_num_reqs = e->o->max_num_reqs,
                             .max_num_batched_tokens = e->o->max_num_batched_tokens,
                             .allocator = e->o->allocator,
                             .follow_arrivals = e->o->follow_arrivals,
                             .prefix_cache = e->o->prefix_cache,
                             .recompute = e->o->recompute};
}

/* Everything beside K and V that grows with the options: see allocate_arrays() and schedule.h. */
static bool add_tables(const engine *e, int64_t *sum_bytes)
{
    const replay_options *o = e->o;
    const int64_t         slots = e->result->num_pages * o->page_size;
    const schedule_limits limits = limits_of(e);
    return add_bytes(sum_bytes, slots, sizeof *e->stamps) &&
           schedule_add_bytes(&limits, e->longest_pages, sum_bytes) &&
           add_bytes(sum_bytes, 1, prompts_bytes(e->trace, o->prefix_cache)) &&
           add_bytes(sum_bytes, o->max_num_batched_tokens, sizeof *e->tokens) &&
           add_bytes(sum_bytes, e->slices_capacity + 1,
                     N_WAYS * (3 * sizeof(int32_t) + sizeof(int64_t))) &&
           add_bytes(sum_bytes, o->num_layers, sizeof *e->caches + sizeof *e->sources) &&
           add_bytes(sum_bytes, slots, token_scales_bytes(e) * o->num_layers) &&
           add_bytes(sum_bytes, o->threads, e->scratch_bytes);
}

/* All that will be allocated, within half of the memory. */
static int size_memory(engine *e)
{
    const replay_options *o = e->o;
    const int64_t         num_pages = e->result->num_pages;
    const int64_t         bucket = pkv_token_bucket(o->max_num_batched_tokens, PKV_MIN_TOKEN_BUCKET,
                                                    o->max_num_batched_tokens, 0);
    int64_t               slots = 0, caches = 0, sources = 0, tables = 0, all = 0;
    e->slices_capacity = pkv_padded_num_slices(o->max_num_reqs, bucket, o->page_size);
    bool fits = !__builtin_mul_overflow(num_pages, o->page_size, &slots) && slots <= INT32_MAX &&
                add_bytes(&e->layer_bytes, slots, e->shape.row_bytes) &&
                add_bytes(&e->source_bytes, o->max_num_batched_tokens, e->source_row_bytes) &&
                add_bytes(&caches, o->num_layers, e->layer_bytes) &&
                add_bytes(&sources, o->num_layers, e->source_bytes) && add_tables(e, &tables) &&
                add_bytes(&all, 1, caches) && add_bytes(&all, 1, sources) &&
                add_bytes(&all, 1, tables) && add_bytes(&all, 2, ENGINE_GUARD_BYTES);
    if (!fits) {
        return cli_fail(CLI_EXHAUSTED,
                        "a cache of %" PRId64 " pages of %" PRId64 " tokens is too large: "
                        "its slots or bytes overflow",
                        num_pages, o->page_size);
    }
    uint64_t memory = cli_memory_bytes();
    if (memory > 0 && (uint64_t)all > memory / 2) {
        return cli_fail(CLI_EXHAUSTED,
                        "a cache of %.1f GiB, %.1f GiB of new K/V and %.1f GiB of tables are more "
                        "than half of the memory (%.1f GiB)",
                        (double)caches / (1 << 30), (double)sources / (1 << 30),
                        (double)tables / (1 << 30), (double)memory / (1 << 30));
    }
    return CLI_OK;
}

static int allocate_memory(engine *e)
{
    const uint64_t layers = (uint64_t)e->o->num_layers;
    const uint64_t cache_bytes = (uint64_t)e->layer_bytes * layers + 2 * ENGINE_GUARD_BYTES;
    e->cache_memory.struct_size = sizeof e->cache_memory;
    e->source_memory.struct_size = sizeof e->source_memory;
    if (pkv_memory_alloc(&e->cache_memory, cache_bytes, PKV_MEMORY_HUGE_PAGES) != PKV_OK) {
        return cli_no_memory("the cache");
    }
    if (pkv_memory_alloc(&e->source_memory, (uint64_t)e->source_bytes * layers,
                         PKV_MEMORY_HUGE_PAGES) != PKV_OK) {
        return cli_no_memory("the new K/V");
    }
    return CLI_OK;
}

static int allocate_arrays(engine *e)
{
    const replay_options *o = e->o;
    const int64_t         slots = e->result->num_pages * o->page_size;
    bool                  ok = true;
    for (int way = 0; way < N_WAYS; way++) {
        e->columns[way] = calloc((size_t)e->slices_capacity, 3 * sizeof(int32_t));
        e->result->histogram[way] = calloc((size_t)e->slices_capacity + 1, sizeof(int64_t));
        ok = ok && e->columns[way] != NULL && e->result->histogram[way] != NULL;
    }
    e->result->histogram_size = e->slices_capacity + 1;
    e->caches = calloc((size_t)o->num_layers, sizeof *e->caches);
    e->sources = calloc((size_t)o->num_layers, sizeof *e->sources);
    e->tokens = calloc((size_t)o->max_num_batched_tokens, sizeof *e->tokens);
    e->stamps = calloc((size_t)slots, sizeof *e->stamps);
    e->scratch = calloc((size_t)o->threads, (size_t)e->scratch_bytes);
    if (token_scales_bytes(e) > 0) {
        const size_t bytes = (size_t)(slots * token_scales_bytes(e) * o->num_layers);
        e->scales = malloc(bytes);
        ok = ok && e->scales != NULL;
        if (e->scales != NULL) {
            memset(e->scales, CONTENT_POISON, bytes);
        }
    }
    ok = ok && e->caches != NULL && e->sources != NULL && e->tokens != NULL && e->stamps != NULL &&
         e->scratch != NULL && (o->series_path == NULL || series_init(&e->result->series));
    return ok ? CLI_OK : cli_no_memory("the replay");
}

/* The scales of a cache that quantises. */
static void set_scales(const engine *e, int64_t layer)
{
    pkv_scales   *of_plane[2] = {&e->caches[layer].k_scales, &e->caches[layer].v_scales};
    const int32_t kind = e->converts ? quant_scales_kind(e->o->cache_dtype) : PKV_SCALES_NONE;
    const int64_t token_bytes = engine_scales_bytes(e);
    for (int plane = 0; plane < 2 && kind != PKV_SCALES_NONE; plane++) {
        *of_plane[plane] = (pkv_scales){
            .data = (void *)(uintptr_t)&e->given_scale, .kind = kind,
            .page_stride_bytes = e->o->page_size * token_bytes,
            .token_stride_bytes = token_bytes, .head_stride_bytes = sizeof(float)};
        if (kind == PKV_SCALES_TOKEN_HEAD) {
            of_plane[plane]->data = engine_slot_scales(e, layer, plane, 0);
        }
    }
}

static int make_views(engine *e)
{
    const replay_options *o = e->o;
    for (int64_t layer = 0; layer < o->num_layers; layer++) {
        pkv_status status = pkv_cache_combined(&e->caches[layer], sizeof e->caches[layer],
                                               engine_cache_slot(e, layer, 0),
                                               e->result->num_pages, o->page_size,
                                               o->num_kv_heads, o->head_dim, o->cache_dtype);
        if (status == PKV_OK) {
            status = pkv_new_kv_combined(&e->sources[layer], sizeof e->sources[layer],
                                         engine_source_row(e, layer, 0), o->max_num_batched_tokens,
                                         o->num_kv_heads, o->head_dim, o->dtype);
        }
        set_scales(e, layer);
        if (status != PKV_OK) {
            return cli_fail(CLI_USAGE, "no cache of this shape: %s", pkv_status_name(status));
        }
    }
    return CLI_OK;
}

static void take_evicted(void *user, int32_t page, const ledger_note *note)
{
    engine_check_evicted(user, page, note);
}

/* A request ends, or is put back: what it wrote is there until now. */
static void see_off(void *user, int64_t row)
{
    engine *e = user;
    if (e->o->verify) {
        int64_t n = engine_verify_row(e, row);
        e->result->verified_tokens += schedule_row_done(&e->schedule, row) ? n : 0;
        engine_poison_row(e, row);
    }
}

int engine_set_up(engine *e)
{
    int status = size_shape(e);
    status = status != CLI_OK ? status : size_pool(e);
    status = status != CLI_OK ? status : size_memory(e);
    status = status != CLI_OK ? status : allocate_memory(e);
    status = status != CLI_OK ? status : allocate_arrays(e);
    status = status != CLI_OK ? status : make_views(e);
    status = status != CLI_OK ? status : engine_cuda_open(e);
    if (status != CLI_OK) {
        return status;
    }
    const schedule_limits limits = limits_of(e);
    const schedule_hooks  hooks = {take_evicted, see_off, e};
    e->result->row_bytes = e->shape.row_bytes;
    status = prompts_init(&e->prompts, e->trace, (uint64_t)e->o->seed, e->o->prefix_cache);
    return status != CLI_OK ? status : schedule_init(&e->schedule, &e->prompts, &limits, &hooks,
                                                     e->longest_pages);
}

int engine_touch_memory(engine *e)
{
    memset(e->source_memory.data, 0, e->source_memory.size_bytes);
    memset(e->cache_memory.data, CONTENT_POISON, e->cache_memory.size_bytes);
    if (e->cuda != NULL) {
        return engine_cuda_touch(e);
    }
    e->result->huge_pages =
        hugepages_bytes(e->cache_memory.data, e->cache_memory.size_bytes) >=
        (int64_t)(e->cache_memory.size_bytes / 2);
    e->result->copy_limit_bytes_per_s =
        limit_measure(e->cache_memory.data, e->cache_memory.size_bytes, e->source_memory.data,
                      e->source_memory.size_bytes, (int)e->o->threads);
    memset(e->cache_memory.data, CONTENT_POISON, e->cache_memory.size_bytes);
    return CLI_OK;
}

void engine_tear_down(engine *e)
{
    engine_cuda_close(e);
    for (int way = 0; way < N_WAYS; way++) {
        free(e->columns[way]);
    }
    free(e->caches);
    free(e->sources);
    free(e->tokens);
    free(e->stamps);
    free(e->scratch);
    free(e->scales);
    schedule_free(&e->schedule);
    prompts_free(&e->prompts);
    pkv_memory_free(&e->cache_memory);
    pkv_memory_free(&e->source_memory);
}
