/* The replay's memory: sizes, allocation, views, and where things lie. */
#include "engine.h"
#include "hugepages.h"
#include "limit.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

unsigned char *engine_cache_slot(const engine *e, int64_t layer, int64_t slot)
{
    return (unsigned char *)e->cache_memory.data + layer * e->layer_bytes +
           slot * e->shape.row_bytes;
}

unsigned char *engine_source_row(const engine *e, int64_t layer, int64_t row)
{
    return (unsigned char *)e->source_memory.data + layer * e->source_bytes +
           row * e->shape.row_bytes;
}

uint64_t engine_request_key(const engine *e, int64_t row)
{
    return (uint64_t)e->o->seed * 0x9e3779b97f4a7c15u + (uint64_t)e->schedule.request[row];
}

int64_t engine_row_slot(const engine *e, int64_t row, int64_t position)
{
    const int32_t *pages = e->schedule.block_table + row * e->schedule.width;
    return pages[position / e->o->page_size] * e->o->page_size + position % e->o->page_size;
}

static int size_shape(engine *e)
{
    const replay_options *o = e->o;
    pkv_new_kv            row;
    if (pkv_new_kv_combined(&row, sizeof row, NULL, 1, o->num_kv_heads, o->head_dim, o->dtype) !=
        PKV_OK) {
        return cli_fail(CLI_USAGE, "%" PRId64 " heads of %" PRId64 " %s make no whole row",
                        o->num_kv_heads, o->head_dim, pkv_dtype_name(o->dtype));
    }
    e->shape = (content_shape){.n_heads = o->num_kv_heads, .head_dim = o->head_dim,
                               .bits = pkv_dtype_bits(o->dtype),
                               .row_bytes = row.k.token_stride_bytes,
                               .head_bytes = row.k.head_stride_bytes / 2};
    return CLI_OK;
}

/* Pages that 2 GiB of K/V hold, but at least those of the longest request. */
static int64_t default_pages(const engine *e, int64_t longest)
{
    int64_t page_bytes = 0;
    if (__builtin_mul_overflow(e->shape.row_bytes * e->o->num_layers, e->o->page_size,
                               &page_bytes)) {
        return longest;
    }
    int64_t pages = ((int64_t)2 << 30) / page_bytes;
    return pages > longest ? pages : longest;
}

static int size_pool(const engine *e, int64_t *num_pages)
{
    const replay_options *o = e->o;
    int64_t               longest = 1;
    for (int64_t i = 0; i < e->trace->n_requests; i++) {
        int64_t pages = schedule_pages(&e->trace->requests[i], o->page_size);
        if (o->num_pages > 0 && pages > o->num_pages) {
            return cli_fail(CLI_EXHAUSTED,
                            "request %" PRId64 " needs %" PRId64 " pages of %" PRId64
                            " tokens, the pool has %" PRId64,
                            i, pages, o->page_size, o->num_pages);
        }
        longest = pages > longest ? pages : longest;
    }
    *num_pages = o->num_pages > 0 ? o->num_pages : default_pages(e, longest);
    return CLI_OK;
}

/* The cache and the new K/V of all layers, within half of the memory. */
static int size_memory(engine *e, int64_t num_pages)
{
    const replay_options *o = e->o;
    int64_t               slots = 0, caches = 0, sources = 0, all = 0;
    bool                  huge =
        __builtin_mul_overflow(num_pages, o->page_size, &slots) ||
        __builtin_mul_overflow(slots, e->shape.row_bytes, &e->layer_bytes) ||
        __builtin_mul_overflow(e->layer_bytes, o->num_layers, &caches) ||
        __builtin_mul_overflow(o->max_num_batched_tokens, e->shape.row_bytes, &e->source_bytes) ||
        __builtin_mul_overflow(e->source_bytes, o->num_layers, &sources) ||
        __builtin_add_overflow(caches, sources, &all) || slots > INT32_MAX;
    uint64_t memory = cli_memory_bytes();
    if (huge) {
        return cli_fail(CLI_EXHAUSTED,
                        "a cache of %" PRId64 " pages of %" PRId64 " tokens is too large: "
                        "its slots or bytes overflow",
                        num_pages, o->page_size);
    }
    if (memory > 0 && (uint64_t)all > memory / 2) {
        return cli_fail(CLI_EXHAUSTED,
                        "a cache of %.1f GiB and %.1f GiB of new K/V are more than half of the "
                        "memory (%.1f GiB)",
                        (double)caches / (1 << 30), (double)sources / (1 << 30),
                        (double)memory / (1 << 30));
    }
    return CLI_OK;
}

static int allocate_memory(engine *e)
{
    const uint64_t layers = (uint64_t)e->o->num_layers;
    e->cache_memory.struct_size = sizeof e->cache_memory;
    e->source_memory.struct_size = sizeof e->source_memory;
    if (pkv_memory_alloc(&e->cache_memory, (uint64_t)e->layer_bytes * layers,
                         PKV_MEMORY_HUGE_PAGES) != PKV_OK) {
        return cli_no_memory("the cache");
    }
    if (pkv_memory_alloc(&e->source_memory, (uint64_t)e->source_bytes * layers,
                         PKV_MEMORY_HUGE_PAGES) != PKV_OK) {
        return cli_no_memory("the new K/V");
    }
    return CLI_OK;
}

static int allocate_arrays(engine *e, int64_t num_pages)
{
    const replay_options *o = e->o;
    const int64_t         slots = num_pages * o->page_size;
    const int64_t bucket =
        pkv_token_bucket(o->max_num_batched_tokens, 16, o->max_num_batched_tokens, 0);
    e->slices_capacity = pkv_padded_num_slices(o->max_num_reqs, bucket, o->page_size);
    bool ok = true;
    for (int way = 0; way < N_WAYS; way++) {
        e->columns[way] = calloc((size_t)e->slices_capacity, 3 * sizeof(int32_t));
        e->result->histogram[way] = calloc((size_t)e->slices_capacity + 1, sizeof(int64_t));
        ok = ok && e->columns[way] != NULL && e->result->histogram[way] != NULL;
    }
    e->result->histogram_size = e->slices_capacity + 1;
    e->caches = calloc((size_t)o->num_layers, sizeof *e->caches);
    e->sources = calloc((size_t)o->num_layers, sizeof *e->sources);
    e->tokens = calloc((size_t)o->max_num_batched_tokens, sizeof *e->tokens);
    e->stamps = calloc((size_t)slots, 1);
    e->scratch = calloc((size_t)o->threads, (size_t)e->shape.row_bytes);
    ok = ok && e->caches != NULL && e->sources != NULL && e->tokens != NULL && e->stamps != NULL &&
         e->scratch != NULL && (o->series_path == NULL || series_init(&e->result->series));
    return ok ? CLI_OK : cli_no_memory("the replay");
}

static int make_views(engine *e, int64_t num_pages)
{
    const replay_options *o = e->o;
    for (int64_t layer = 0; layer < o->num_layers; layer++) {
        pkv_status status = pkv_cache_combined(&e->caches[layer], sizeof e->caches[layer],
                                               engine_cache_slot(e, layer, 0), num_pages, o->page_size,
                                               o->num_kv_heads, o->head_dim, o->cache_dtype);
        if (status == PKV_OK) {
            status = pkv_new_kv_combined(&e->sources[layer], sizeof e->sources[layer],
                                         engine_source_row(e, layer, 0), o->max_num_batched_tokens,
                                         o->num_kv_heads, o->head_dim, o->dtype);
        }
        if (status != PKV_OK) {
            return cli_fail(CLI_USAGE, "no cache of this shape: %s", pkv_status_name(status));
        }
    }
    return CLI_OK;
}

int engine_set_up(engine *e)
{
    int64_t num_pages = 0;
    int     status = size_shape(e);
    status = status != CLI_OK ? status : size_pool(e, &num_pages);
    status = status != CLI_OK ? status : size_memory(e, num_pages);
    status = status != CLI_OK ? status : allocate_memory(e);
    status = status != CLI_OK ? status : allocate_arrays(e, num_pages);
    status = status != CLI_OK ? status : make_views(e, num_pages);
    if (status != CLI_OK) {
        return status;
    }
    const schedule_limits limits = {.page_size = e->o->page_size, .num_pages = num_pages,
                                    .max_num_reqs = e->o->max_num_reqs,
                                    .max_num_batched_tokens = e->o->max_num_batched_tokens,
                                    .follow_arrivals = e->o->follow_arrivals};
    if (!schedule_init(&e->schedule, e->trace, &limits)) {
        return cli_no_memory("the schedule");
    }
    e->result->num_pages = num_pages;
    e->result->row_bytes = e->shape.row_bytes;
    return CLI_OK;
}

void engine_touch_memory(engine *e)
{
    memset(e->source_memory.data, 0, e->source_memory.size_bytes);
    memset(e->cache_memory.data, CONTENT_POISON, e->cache_memory.size_bytes);
    e->result->huge_pages =
        hugepages_bytes(e->cache_memory.data, e->cache_memory.size_bytes) >=
        (int64_t)(e->cache_memory.size_bytes / 2);
    e->result->copy_limit_bytes_per_s =
        limit_measure(e->cache_memory.data, e->cache_memory.size_bytes, e->source_memory.data,
                      e->source_memory.size_bytes, (int)e->o->threads);
    memset(e->cache_memory.data, CONTENT_POISON, e->cache_memory.size_bytes);
}

void engine_tear_down(engine *e)
{
    for (int way = 0; way < N_WAYS; way++) {
        free(e->columns[way]);
    }
    free(e->caches);
    free(e->sources);
    free(e->tokens);
    free(e->stamps);
    free(e->scratch);
    schedule_free(&e->schedule);
    pkv_memory_free(&e->cache_memory);
    pkv_memory_free(&e->source_memory);
}
