/* Cache and source of `bench update`: big enough that what comes next is cold. */
#include "bench_memory.h"

#include <stdlib.h>
#include <string.h>

#include "bench_run.h"
#include "hugepages.h"

enum {
    OTHER_BYTES = 4 << 20, /* more than the second-level cache of one core */
    LINE_BYTES = 64
};

/* Slots are numbered in 32 bits, and the order of their visits must fit memory too. */
static const int64_t max_slots = (int64_t)1 << 24;

uint64_t bench_cache_bytes(const bench_options *options)
{
    uint64_t bytes = (uint64_t)(options->quick ? 256 : 1024) << 20;
    uint64_t most = cli_memory_bytes() / 8;

    while (most > 0 && bytes > most) {
        bytes /= 2;
    }
    return bytes;
}

int bench_memory_allocate(pkv_memory *memory, uint64_t bytes, bool huge_pages)
{
    memory->struct_size = sizeof *memory;
    pkv_status status = pkv_memory_alloc(memory, bytes, huge_pages ? PKV_MEMORY_HUGE_PAGES : 0);
    if (status != PKV_OK) {
        memory->data = NULL;
        return cli_fail(CLI_EXHAUSTED, "bench: no memory for %llu MiB",
                        (unsigned long long)(bytes >> 20));
    }
    if (!huge_pages) {
        hugepages_refuse(memory->data, (size_t)memory->size_bytes);
    }
    return CLI_OK;
}

/* Bytes that differ from row to row, so that a row in the wrong place is seen. */
static void fill(const pkv_memory *memory, uint64_t seed)
{
    uint64_t *words = memory->data;

    for (uint64_t i = 0; i < memory->size_bytes / sizeof words[0]; i++) {
        words[i] = bench_random(&seed);
    }
}

bool bench_memory_is_huge(const pkv_memory *memory)
{
    int64_t huge_bytes = hugepages_bytes(memory->data, (size_t)memory->size_bytes);
    return huge_bytes >= 0 && (uint64_t)huge_bytes >= memory->size_bytes / 10 * 9;
}

int bench_memory_open(bench_memory *memory, const bench_options *options, bool huge_pages)
{
    uint64_t bytes = bench_cache_bytes(options);

    *memory = (bench_memory){.other = calloc(1, OTHER_BYTES)};
    if (memory->other == NULL) {
        return cli_no_memory("bench");
    }
    int status = bench_memory_allocate(&memory->cache, bytes, huge_pages);
    if (status == CLI_OK) {
        status = bench_memory_allocate(&memory->source, bytes / 2, huge_pages);
    }
    if (status == CLI_OK) {
        memset(memory->other, 1, OTHER_BYTES);
        memset(memory->cache.data, 0, (size_t)memory->cache.size_bytes);
        fill(&memory->source, 7);
        memory->huge_pages = bench_memory_is_huge(&memory->cache) &&
                             bench_memory_is_huge(&memory->source);
    }
    return status;
}

void bench_memory_close(bench_memory *memory)
{
    if (memory->cache.data != NULL) {
        pkv_memory_free(&memory->cache);
    }
    if (memory->source.data != NULL) {
        pkv_memory_free(&memory->source);
    }
    free(memory->other);
    *memory = (bench_memory){0};
}

void bench_memory_evict(const bench_memory *memory)
{
    const volatile char *at = memory->other;

    for (int64_t i = 0; i < OTHER_BYTES; i += LINE_BYTES) {
        (void)at[i];
    }
}

const char *bench_layout_name(unsigned layout)
{
    switch (layout) {
    case BENCH_COMBINED:
        return "combined";
    case BENCH_NHD:
        return "nhd";
    default:
        return "hnd";
    }
}

/* K and V apart follow one another in one allocation. */
static pkv_status build(pkv_cache *out, const bench_shape *s, char *data, int64_t n_pages,
                        int64_t plane_bytes)
{
    switch (s->layout) {
    case BENCH_COMBINED:
        return pkv_cache_combined(out, sizeof *out, data, n_pages, s->page_size, s->num_kv_heads,
                                  s->head_dim, s->dtype);
    case BENCH_NHD:
        return pkv_cache_nhd(out, sizeof *out, data, data + plane_bytes, n_pages, s->page_size,
                             s->num_kv_heads, s->head_dim, s->dtype);
    default:
        return pkv_cache_hnd(out, sizeof *out, data, data + plane_bytes, n_pages, s->page_size,
                             s->num_kv_heads, s->head_dim, s->dtype);
    }
}

int bench_view_open(bench_view *view, const bench_shape *s, const pkv_memory *memory)
{
    bool    together = s->layout == BENCH_COMBINED;
    int64_t head_bits = s->head_dim * pkv_dtype_bits(s->dtype);
    int64_t head_bytes = head_bits / 8;

    if (head_bits % 8 != 0) {
        return cli_fail(CLI_USAGE, "bench: --head-dim %lld of %s is no whole number of bytes",
                        (long long)s->head_dim, pkv_dtype_name(s->dtype));
    }
    int64_t plane_token_bytes = s->num_kv_heads * head_bytes;
    int64_t page_bytes = 2 * plane_token_bytes * s->page_size;
    int64_t n_pages = (int64_t)memory->size_bytes / page_bytes;
    if (n_pages > max_slots / s->page_size) {
        n_pages = max_slots / s->page_size;
    }
    if (n_pages < 1) {
        return cli_fail(CLI_USAGE, "bench: a page of %lld bytes does not fit the cache of %llu",
                        (long long)page_bytes, (unsigned long long)memory->size_bytes);
    }
    *view = (bench_view){.layout = s->layout,
                         .n_planes = together ? 1 : 2,
                         .rows_a_plane = s->layout == BENCH_HND ? s->num_kv_heads : 1,
                         .token_bytes = 2 * plane_token_bytes};
    view->row_bytes = view->token_bytes / view->n_planes / view->rows_a_plane;
    pkv_status status = build(&view->cache, s, memory->data, n_pages, n_pages * page_bytes / 2);
    return status == PKV_OK ? CLI_OK
                            : cli_fail(CLI_USAGE, "bench: no such cache: %s",
                                       pkv_status_name(status));
}

int bench_view_source(const bench_view *view, const void *data, int64_t n_tokens, pkv_new_kv *out)
{
    const pkv_cache *c = &view->cache;
    const char      *v = (const char *)data + n_tokens * view->token_bytes / 2;
    pkv_status       status;

    if (view->n_planes == 1) {
        status = pkv_new_kv_combined(out, sizeof *out, data, n_tokens, c->n_heads, c->k.head_dim,
                                     c->dtype);
    } else {
        status = pkv_new_kv_nhd(out, sizeof *out, data, v, n_tokens, c->n_heads, c->k.head_dim,
                                c->k.head_dim, 0, c->dtype);
    }
    return status == PKV_OK ? CLI_OK
                            : cli_fail(CLI_USAGE, "bench: no such source: %s",
                                       pkv_status_name(status));
}

int64_t bench_source_stride_bytes(const bench_view *view)
{
    return view->token_bytes / view->n_planes;
}

char *bench_slot_row(const bench_view *view, int64_t plane, int64_t slot, int64_t row)
{
    const pkv_plane *p = plane == 0 ? &view->cache.k : &view->cache.v;
    int64_t          page = slot / view->cache.page_size;
    int64_t          offset = slot % view->cache.page_size;

    return (char *)p->data + page * p->page_stride_bytes + offset * p->token_stride_bytes +
           row * p->head_stride_bytes;
}

const char *bench_source_row(const bench_view *view, const pkv_new_kv *source, int64_t plane,
                             int64_t token, int64_t row)
{
    const char *data = plane == 0 ? source->k.data : source->v.data;
    return data + token * bench_source_stride_bytes(view) + row * view->row_bytes;
}
