/* A layer to test with; see world.h. */
#include "world.h"

#include <stdio.h>
#include <string.h>

static const char *const layout_names[] = {"combined", "nhd",    "hnd",   "content",
                                           "mla",      "padded", "k_only"};
static const char *const source_names[] = {"combined", "apart", "fused", "odd", "repeated"};

static world_shape shape_that_fits(world_shape s)
{
    if (s.dtype == PKV_DTYPE_INT4) {
        s.head_dim_k += s.head_dim_k % 2;
        s.head_dim_v += s.head_dim_v % 2;
    }
    if (s.layout == LAYOUT_COMBINED) {
        s.head_dim_v = s.head_dim_k;
    } else if (s.layout == LAYOUT_MLA) {
        s.n_heads = 1;
    } else if (s.layout == LAYOUT_K_ONLY) {
        s.head_dim_v = 0;
    }
    if (s.source == SOURCE_COMBINED && s.head_dim_v != s.head_dim_k) {
        s.source = SOURCE_APART;
    }
    return s;
}

/* ---- the cache ----------------------------------------------------------- */

/* K [P, S, H, D] and V [P, H, S, D], every axis a few bytes longer than its content. */
static void make_padded(pkv_cache *cache, const world_shape *s)
{
    assert_int_equal(pkv_cache_nhd(cache, sizeof *cache, NULL, NULL, s->n_pages, s->page_size,
                                   s->n_heads, s->head_dim_k, s->dtype), PKV_OK);
    pkv_plane *k = &cache->k;
    k->head_stride_bytes = model_row_bytes(s->dtype, s->head_dim_k) + 3;
    k->token_stride_bytes = s->n_heads * k->head_stride_bytes + 5;
    k->page_stride_bytes = s->page_size * k->token_stride_bytes + 7;
    pkv_plane *v = &cache->v;
    v->head_dim = s->head_dim_v;
    v->token_stride_bytes = model_row_bytes(s->dtype, s->head_dim_v) + 2;
    v->head_stride_bytes = s->page_size * v->token_stride_bytes + 9;
    v->page_stride_bytes = s->n_heads * v->head_stride_bytes + 11;
}

static void make_cache(pkv_cache *cache, const world_shape *s, unsigned char *k, unsigned char *v)
{
    pkv_status status = PKV_OK;
    int64_t rope_offset = s->head_dim_k + 6;
    switch (s->layout) {
    case LAYOUT_COMBINED:
        status = pkv_cache_combined(cache, sizeof *cache, k, s->n_pages, s->page_size, s->n_heads,
                                    s->head_dim_k, s->dtype);
        break;
    case LAYOUT_HND:
        status = pkv_cache_hnd(cache, sizeof *cache, k, v, s->n_pages, s->page_size, s->n_heads,
                               s->head_dim_k, s->dtype);
        break;
    case LAYOUT_CONTENT:
        status = pkv_cache_content(cache, sizeof *cache, k, s->n_pages, s->page_size, s->n_heads,
                                   s->head_dim_k, s->head_dim_v, s->dtype);
        break;
    case LAYOUT_MLA:
        status = pkv_cache_mla(cache, sizeof *cache, k, s->n_pages, s->page_size, s->head_dim_k,
                               s->head_dim_v, rope_offset, rope_offset + s->head_dim_v + 10,
                               s->dtype);
        break;
    case LAYOUT_PADDED:
        make_padded(cache, s);
        cache->k.data = k;
        cache->v.data = v;
        break;
    default: /* NHD and K_ONLY */
        status = pkv_cache_nhd(cache, sizeof *cache, k, v, s->n_pages, s->page_size, s->n_heads,
                               s->head_dim_k, s->dtype);
        break;
    }
    assert_int_equal(status, PKV_OK);
    if (s->layout == LAYOUT_K_ONLY) {
        memset(&cache->v, 0, sizeof cache->v);
    }
}

/* V of a two-plane layout is as wide as K, but in the padded one. */
static bool has_two_planes(int layout)
{
    return layout == LAYOUT_NHD || layout == LAYOUT_HND || layout == LAYOUT_PADDED;
}

/* The same view of another memory that starts at `to`. */
static pkv_cache move_view(pkv_cache cache, const unsigned char *from, unsigned char *to)
{
    cache.k.data = to + ((unsigned char *)cache.k.data - from);
    if (cache.v.data != NULL) {
        cache.v.data = to + ((unsigned char *)cache.v.data - from);
    }
    return cache;
}

static void init_cache(world *w, rng *r)
{
    const world_shape *s = &w->shape;
    make_cache(&w->cache, s, NULL, NULL);
    int64_t k_bytes = model_plane_bytes(&w->cache, &w->cache.k);
    int64_t v_bytes = model_plane_bytes(&w->cache, &w->cache.v);
    size_t front = (size_t)rng_range(r, 1, 80);
    size_t gap = (size_t)rng_range(r, 0, 80);
    size_t both_bytes = (size_t)(k_bytes + v_bytes) + gap + 64; /* 64: one-plane paddings */
    w->memory = guarded_new(front + both_bytes);
    fill(w->memory.data, w->memory.room_bytes, FILL_RANDOM, rng_next(r));

    unsigned char *k = w->memory.data + front;
    unsigned char *v = k + k_bytes + gap;
    if (has_two_planes(s->layout) && rng_range(r, 0, 1) == 1) {
        v = w->memory.data + front;
        k = v + v_bytes + gap;
    }
    make_cache(&w->cache, s, k, v);

    w->model_memory = test_alloc(w->memory.room_bytes);
    memcpy(w->model_memory, w->memory.data, w->memory.room_bytes);
    w->model_cache = move_view(w->cache, w->memory.data, w->model_memory);
}

/* ---- the source ---------------------------------------------------------- */

/* Strides of the source and where its planes begin; returns the bytes that it spans. */
static size_t describe_source(const world_shape *s, pkv_new_kv *src, size_t *k_at, size_t *v_at)
{
    int64_t k_row = model_row_bytes(s->dtype, s->head_dim_k);
    int64_t v_row = model_row_bytes(s->dtype, s->head_dim_v);
    int64_t pad = s->source == SOURCE_ODD ? 3 : 0;
    int64_t queries = s->source == SOURCE_FUSED ? 2 * s->n_heads * k_row : 0;
    int64_t k_heads = s->n_heads * (k_row + pad);
    int64_t v_heads = s->n_heads * (v_row + pad);
    src->k = (pkv_new_kv_plane){NULL, queries + k_heads + v_heads + pad, k_row + pad,
                                s->head_dim_k};
    src->v = (pkv_new_kv_plane){NULL, src->k.token_stride_bytes, v_row + pad, s->head_dim_v};
    *k_at = (size_t)(pad + queries);
    *v_at = *k_at + (size_t)k_heads;
    size_t n_bytes = (size_t)(pad + s->n_tokens * src->k.token_stride_bytes);
    if (s->source == SOURCE_COMBINED) {
        src->k.head_stride_bytes = src->v.head_stride_bytes = 2 * k_row;
        *v_at = (size_t)k_row;
    } else if (s->source == SOURCE_APART) {
        src->k.token_stride_bytes = k_heads;
        src->v.token_stride_bytes = v_heads;
        *v_at = (size_t)(s->n_tokens * k_heads);
    } else if (s->source == SOURCE_REPEATED) {
        src->k.token_stride_bytes = src->v.token_stride_bytes = 0;
        n_bytes = (size_t)(k_heads + v_heads);
    }
    return n_bytes;
}

static void init_source(world *w, int pattern, uint64_t seed)
{
    const world_shape *s = &w->shape;
    memset(&w->new_kv, 0, sizeof w->new_kv);
    w->new_kv.struct_size = sizeof w->new_kv;
    w->new_kv.n_tokens = s->n_tokens;
    w->new_kv.n_heads = s->n_heads;
    w->new_kv.dtype = s->dtype;
    size_t k_at;
    size_t v_at;
    size_t n_bytes = describe_source(s, &w->new_kv, &k_at, &v_at);
    w->source_memory = guarded_new(n_bytes);
    unsigned char *data = guarded_tail(&w->source_memory, n_bytes);
    fill(data, n_bytes, pattern, seed);
    guarded_protect(&w->source_memory);
    w->new_kv.k.data = data + k_at;
    if (s->head_dim_v != 0) {
        w->new_kv.v.data = data + v_at;
    } else {
        memset(&w->new_kv.v, 0, sizeof w->new_kv.v);
    }
}

/* ---- the whole ----------------------------------------------------------- */

void world_init(world *w, const world_shape *shape, int pattern, uint64_t seed)
{
    rng r = {seed};
    memset(w, 0, sizeof *w);
    w->shape = shape_that_fits(*shape);
    const world_shape *s = &w->shape;
    note_case(layout_names[s->layout], seed,
              "source %s, dtype %d, P %lld S %lld H %lld Dk %lld Dv %lld T %lld, isa %s",
              source_names[s->source], s->dtype, (long long)s->n_pages, (long long)s->page_size,
              (long long)s->n_heads, (long long)s->head_dim_k, (long long)s->head_dim_v,
              (long long)s->n_tokens, pkv_isa_current());
    init_cache(w, &r);
    init_source(w, pattern, rng_next(&r));
}

void world_free(world *w)
{
    guarded_free(&w->memory);
    guarded_free(&w->source_memory);
    free(w->model_memory);
}

void world_expect_same(const world *w)
{
    expect_same_bytes("cache memory", w->memory.data, w->model_memory, w->memory.room_bytes);
}

void world_update(world *w, const pkv_slices *slices, const pkv_update_opts *opts)
{
    pkv_error err = {0};
    expect_ok(pkv_update(&w->cache, &w->new_kv, slices, opts, &err), &err);
    model_update(&w->model_cache, &w->new_kv, slices);
    world_expect_same(w);
}

pkv_rows world_rows(const world *w, unsigned char *memory)
{
    const pkv_new_kv *src = &w->new_kv;
    pkv_rows rows = {.struct_size = sizeof rows,
                     .n_tokens = src->n_tokens,
                     .n_heads = src->n_heads,
                     .dtype = src->dtype};
    rows.k = (pkv_rows_plane){memory + ((const unsigned char *)src->k.data - w->source_memory.data),
                              src->k.token_stride_bytes, src->k.head_stride_bytes,
                              src->k.head_dim};
    if (src->v.data != NULL) {
        rows.v = (pkv_rows_plane){
            memory + ((const unsigned char *)src->v.data - w->source_memory.data),
            src->v.token_stride_bytes, src->v.head_stride_bytes, src->v.head_dim};
    }
    return rows;
}

void world_gather(world *w, const pkv_slices *slices, const pkv_update_opts *opts)
{
    guarded found = guarded_new(w->source_memory.room_bytes - 1);
    unsigned char *expected = test_alloc(found.room_bytes);
    fill(found.data, found.room_bytes, FILL_RANDOM, 5);
    memcpy(expected, found.data, found.room_bytes);
    pkv_rows rows = world_rows(w, found.data);
    pkv_rows model_rows = world_rows(w, expected);
    pkv_error err = {0};
    guarded_protect(&w->memory);
    expect_ok(pkv_gather(&w->cache, &rows, slices, opts, &err), &err);
    model_gather(&w->model_cache, &model_rows, slices);
    expect_same_bytes("gathered rows", found.data, expected, found.room_bytes);
    guarded_free(&found);
    free(expected);
}

/* ---- slices -------------------------------------------------------------- */

static void swap_columns(const pkv_slices *s, int64_t a, int64_t b)
{
    int32_t *rows[] = {s->kv_cache_start, s->new_kv_start, s->slice_len};
    for (size_t i = 0; i < 3; i++) {
        int32_t kept = rows[i][a];
        rows[i][a] = rows[i][b];
        rows[i][b] = kept;
    }
}

void world_random_slices(const world *w, rng *r, slice_list *list)
{
    int64_t n_slots = w->shape.n_pages * w->shape.page_size;
    int64_t slot = rng_range(r, 0, 2);
    int64_t row = 0;
    while (list->n < list->view.capacity) {
        int64_t len = rng_range(r, 0, 1 + 5 * w->shape.page_size / 2);
        if (slot + len > n_slots || row + len > w->shape.n_tokens) {
            break;
        }
        slice_list_add(list, slot, row, len);
        slot += len + rng_range(r, 0, 3);
        row += len + (rng_range(r, 0, 3) == 0);
    }
    for (int64_t i = list->n - 1; i > 0; i--) {
        swap_columns(&list->view, i, rng_range(r, 0, i));
    }
}
