/* Memory for the bench; what `bench update` copies between, and how a layout lies in it. */
#ifndef PAGEDKV_CLI_BENCH_MEMORY_H
#define PAGEDKV_CLI_BENCH_MEMORY_H

#include <stdbool.h>
#include <stdint.h>

#include "bench.h"

typedef struct bench_memory {
    pkv_memory cache;
    pkv_memory source;
    char      *other; /* read between timings to push the rest out of the core's caches */
    bool       huge_pages; /* what the system gave */
} bench_memory;

/* Memory on pages of that kind where the system gives them, untouched.  Exit status. */
int bench_memory_allocate(pkv_memory *memory, uint64_t bytes, bool huge_pages);

/* Did the system?  Nine tenths count as all: the ends of a mapping may not fit. */
bool bench_memory_is_huge(const pkv_memory *memory);

/* Bytes of the cache that bench_memory_open() makes; the source has half of it. */
uint64_t bench_cache_bytes(const bench_options *options);

/* Allocates and touches everything.  Exit status. */
int bench_memory_open(bench_memory *memory, const bench_options *options, bool huge_pages);
void bench_memory_close(bench_memory *memory);

/* Reads the other memory. */
void bench_memory_evict(const bench_memory *memory);

/* One layer's cache in the cache memory, and the rows that one token is made of. */
typedef struct bench_view {
    unsigned  layout;
    pkv_cache cache;
    int64_t   n_planes;      /* K and V together are one */
    int64_t   rows_a_plane;  /* contiguous rows of a token in one plane */
    int64_t   row_bytes;
    int64_t   token_bytes;   /* all rows of a token */
} bench_view;

/* Shape of a cache. */
typedef struct bench_shape {
    unsigned  layout;
    int64_t   page_size;
    int64_t   num_kv_heads;
    int64_t   head_dim;
    pkv_dtype dtype;
} bench_shape;

const char *bench_layout_name(unsigned layout);

/* Fills the memory with as many pages as it holds.  Exit status. */
int bench_view_open(bench_view *view, const bench_shape *shape, const pkv_memory *memory);

/* Dense new K/V at `data` in the layout's own order.  Exit status. */
int bench_view_source(const bench_view *view, const void *data, int64_t n_tokens, pkv_new_kv *out);

/* Bytes from one token to the next in one plane of such a source. */
int64_t bench_source_stride_bytes(const bench_view *view);

/* Where a row of a token lies: in the cache by slot, in the source by number. */
char *bench_slot_row(const bench_view *view, int64_t plane, int64_t slot, int64_t row);
const char *bench_source_row(const bench_view *view, const pkv_new_kv *source, int64_t plane,
                             int64_t token, int64_t row);

#endif
