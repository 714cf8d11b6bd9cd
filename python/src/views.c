/* Views of an update or a gather: which memory, and what its items mean. */
#include "dtype.h"
#include "move.h"

#include <stdio.h>

/* ---- what items are to the library -------------------------------------------------- */

typedef struct items {
    pkv_dtype dtype;
    int64_t   per_item; /* elements for the library in an item of the array */
} items;

/* Opaque items of the same size; wider ones are several of 32 bits. */
static bool opaque_items(const array *a, items *out)
{
    switch (a->item_bytes) {
    case 1: *out = (items){PKV_DTYPE_BITS8, 1}; return true;
    case 2: *out = (items){PKV_DTYPE_BITS16, 1}; return true;
    case 4: *out = (items){PKV_DTYPE_BITS32, 1}; return true;
    case 8: *out = (items){PKV_DTYPE_BITS32, 2}; return true;
    case 16: *out = (items){PKV_DTYPE_BITS32, 4}; return true;
    default: break;
    }
    raise_unsupported("%s: has items of %lld bytes", a->name, (long long)a->item_bytes);
    return false;
}

static bool is_same(const array *a, const array *b)
{
    return a->dtype == b->dtype && a->item_bytes == b->item_bytes;
}

/* What a cache holds: its own dtype, or what `cache_dtype` says of unsigned integers. */
static bool cache_meaning(const call *c, int32_t *out)
{
    const array *a = &c->k_cache;
    *out = c->cache_dtype == DTYPE_NONE ? a->dtype : c->cache_dtype;
    if (*out != a->dtype && (a->dtype != DTYPE_ID(1, 8 * a->item_bytes) ||
                             dtype_item_bits(*out) != 8 * a->item_bytes)) {
        char said[64];
        snprintf(said, sizeof said, "%s", dtype_name(*out));
        raise_invalid("cache_dtype: is %s, which items of %s (%s) cannot be; unsigned integers of "
                      "its size can", said, a->name, dtype_name(a->dtype));
        return false;
    }
    return true;
}

bool views_refuse_dtypes(const call *c)
{
    const int32_t one_a_byte = dtype_of_name("int4"), rows = c->k.dtype;
    int32_t       cache = DTYPE_NONE;
    char          first[64]; /* dtype_name may use one buffer for both */
    if (!cache_meaning(c, &cache)) {
        return false;
    }
    snprintf(first, sizeof first, "%s", dtype_name(rows));
    raise_invalid("%s: holds %s, but %s holds %s; there is no conversion between these dtypes%s",
                  c->k.name, first, c->k_cache.name, dtype_name(cache),
                  rows == one_a_byte || cache == one_a_byte
                      ? " (a cache of uint8 holds two int4 an item, with cache_dtype=\"int4\")"
                      : "");
    return false;
}

/* The same items on both sides are opaque, unless there are scales, of which the library judges. */
static bool items_of(const call *c, items *rows, items *cache)
{
    int32_t cache_id;
    if (!cache_meaning(c, &cache_id)) {
        return false;
    }
    const int32_t rows_id = is_same(&c->k, &c->k_cache) ? cache_id : c->k.dtype;
    const bool    scaled = c->k_scale.given || c->v_scale.given;
    if (rows_id == cache_id && c->k.item_bytes == c->k_cache.item_bytes && !scaled) {
        return opaque_items(&c->k, rows) && opaque_items(&c->k_cache, cache);
    }
    *rows = (items){dtype_to_library(rows_id), rows_id == DTYPE_PACKED_INT4 ? 2 : 1};
    *cache = (items){dtype_to_library(cache_id), cache_id == DTYPE_PACKED_INT4 ? 2 : 1};
    if (rows_id == cache_id && cache->dtype == 0) {
        raise_invalid("%s: %s holds %s; scales are for float8, int8 and int4",
                      c->k_scale.given ? "k_scale" : "v_scale", c->k_cache.name,
                      dtype_name(cache_id));
        return false;
    }
    return (rows->dtype != 0 && cache->dtype != 0) || views_refuse_dtypes(c);
}

static bool same_dtype(const array *a, const array *b)
{
    if (!is_same(a, b)) {
        char first[64];
        snprintf(first, sizeof first, "%s", dtype_name(a->dtype));
        raise_invalid("%s: holds %s, but %s holds %s; both must be the same", a->name, first,
                      b->name, dtype_name(b->dtype));
        return false;
    }
    return true;
}

/* ---- memory -------------------------------------------------------------------------- */

static bool fail_stride(const array *a)
{
    raise_invalid("%s: has a shape or stride that overflows", a->name);
    return false;
}

static bool last_is_dense(const array *a)
{
    int last = a->n_dims - 1;
    if (a->shape[last] > 1 && a->stride_bytes[last] != a->item_bytes) {
        raise_invalid("%s: its last axis is not contiguous", a->name);
        return false;
    }
    return true;
}

static bool head_dim_of(const array *a, int64_t per_item, int64_t *out)
{
    return !__builtin_mul_overflow(a->shape[a->n_dims - 1], per_item, out) || fail_stride(a);
}

/* Rows [T, H, D]. */
static bool rows_plane(const array *a, int64_t per_item, pkv_rows_plane *out)
{
    if (a->n_dims != 3) {
        raise_invalid("%s: has %d dimensions, not the 3 of [tokens, heads, head_dim]", a->name,
                      a->n_dims);
        return false;
    }
    if ((a->shape[0] > 0 && !last_is_dense(a)) || !head_dim_of(a, per_item, &out->head_dim)) {
        return false;
    }
    out->data = a->data;
    if (a->shape[0] == 0) { /* strides of nothing are whatever a library says: zeros, often */
        out->head_stride_bytes = a->shape[2] * a->item_bytes;
        return true;
    }
    out->token_stride_bytes = a->shape[0] > 1 ? a->stride_bytes[0] : 0;
    out->head_stride_bytes = a->shape[1] > 1 ? a->stride_bytes[1] : 0;
    return true;
}

/* A cache [P*S, H, D] or [P, S, H, D]; sizes go to `cache`. */
static bool cache_plane(const call *c, const array *a, int64_t per_item, pkv_cache *cache,
                        pkv_plane *out)
{
    int     paged = a->n_dims == 4;
    int64_t page_size = paged ? a->shape[1] : c->page_size > 0 ? c->page_size : 1;
    if (a->n_dims != 3 && !paged) {
        raise_invalid("%s: has %d dimensions, neither [pages * page_size, heads, head_dim] nor "
                      "[pages, page_size, heads, head_dim]", a->name, a->n_dims);
        return false;
    }
    if (!paged && c->page_size == 0 && (c->flags & PKV_UPDATE_STRICT) != 0) {
        raise_invalid("page_size: strict mode needs it for a cache of 3 dimensions");
        return false;
    }
    if (paged && c->page_size > 0 && c->page_size != page_size) {
        raise_invalid("page_size: is %lld, but %s has pages of %lld", (long long)c->page_size,
                      a->name, (long long)page_size);
        return false;
    }
    if (page_size < 1 || (!paged && a->shape[0] % page_size != 0)) {
        raise_invalid("%s: its %lld slots are no whole number of pages of %lld", a->name,
                      (long long)a->shape[0], (long long)page_size);
        return false;
    }
    if (!last_is_dense(a) || !head_dim_of(a, per_item, &out->head_dim)) {
        return false;
    }
    cache->page_size = page_size;
    cache->n_pages = paged ? a->shape[0] : a->shape[0] / page_size;
    cache->n_heads = a->shape[a->n_dims - 2];
    out->data = a->data;
    out->token_stride_bytes = a->stride_bytes[paged];
    out->head_stride_bytes = a->stride_bytes[paged + 1];
    return !__builtin_mul_overflow(a->stride_bytes[0], paged ? 1 : page_size,
                                   &out->page_stride_bytes) || fail_stride(a);
}

/* What the library would say of "shapes", in the words of the arguments. */
static bool same_shape(const array *rows, int64_t rows_dim, const array *cache, int64_t cache_dim)
{
    int64_t heads = cache->shape[cache->n_dims - 2];
    if (rows->shape[1] != heads || rows_dim != cache_dim) {
        raise_invalid("%s: has heads of [%lld, %lld], but %s of [%lld, %lld]", rows->name,
                      (long long)rows->shape[1], (long long)rows_dim, cache->name,
                      (long long)heads, (long long)cache_dim);
        return false;
    }
    return true;
}

/* Both caches are of one shape but for the head_dim. */
static bool same_pages(const pkv_cache *k, const pkv_cache *v)
{
    if (k->n_pages != v->n_pages || k->page_size != v->page_size || k->n_heads != v->n_heads) {
        raise_invalid("value_cache: differs from key_cache in pages, page size or heads");
        return false;
    }
    return true;
}

/* ---- K and V ------------------------------------------------------------------------- */

static bool build_v(call *c, const items *rows_items, const items *cache_items, pkv_cache *cache,
                    pkv_rows *rows)
{
    pkv_cache v_cache = *cache;
    if (!same_dtype(&c->v, &c->k) || !same_dtype(&c->v_cache, &c->k_cache) ||
        !rows_plane(&c->v, rows_items->per_item, &rows->v) ||
        !cache_plane(c, &c->v_cache, cache_items->per_item, &v_cache, &cache->v) ||
        !same_shape(&c->v, rows->v.head_dim, &c->v_cache, cache->v.head_dim) ||
        !same_pages(cache, &v_cache)) {
        return false;
    }
    if (c->v.shape[0] != c->k.shape[0] || c->v.shape[1] != c->k.shape[1]) {
        raise_invalid("%s: differs from %s in tokens or heads", c->v.name, c->k.name);
        return false;
    }
    return true;
}

/* K0 V0 K1 V1 ... as two planes, since K and V have scales of their own. */
static bool take_apart(const call *c, pkv_cache *cache, pkv_rows *rows)
{
    if (cache->n_heads % 2 != 0) {
        raise_invalid("%s: scales need pairs of K and V, but it has %lld heads", c->k_cache.name,
                      (long long)cache->n_heads);
        return false;
    }
    pkv_plane      *k = &cache->k;
    pkv_rows_plane *from = &rows->k;
    cache->n_heads /= 2;
    rows->n_heads /= 2;
    cache->v = *k;
    rows->v = *from;
    if (k->data != NULL) {
        cache->v.data = (char *)k->data + k->head_stride_bytes;
    }
    if (from->data != NULL) {
        rows->v.data = (char *)from->data + from->head_stride_bytes;
    }
    if (__builtin_mul_overflow(k->head_stride_bytes, 2, &k->head_stride_bytes) ||
        __builtin_mul_overflow(from->head_stride_bytes, 2, &from->head_stride_bytes)) {
        return fail_stride(&c->k_cache);
    }
    cache->v.head_stride_bytes = k->head_stride_bytes;
    rows->v.head_stride_bytes = from->head_stride_bytes;
    return true;
}

static bool build_scales(const call *c, const items *rows_items, const items *cache_items,
                         pkv_cache *cache)
{
    const array *v_cache = c->apart ? &c->v_cache : &c->k_cache;
    if (!scale_view(&c->k_scale, &c->k_cache, cache, cache->k.head_dim, !c->gather,
                    &cache->k_scales) ||
        !scale_view(&c->v_scale, v_cache, cache, cache->v.head_dim, !c->gather,
                    &cache->v_scales)) {
        return false;
    }
    const bool k_computed = cache->k_scales.kind >= PKV_SCALES_TOKEN_HEAD;
    if (rows_items->dtype == cache_items->dtype &&
        (k_computed || cache->v_scales.kind >= PKV_SCALES_TOKEN_HEAD)) {
        raise_invalid("%s: rows in the cache's own dtype bring no scales of their own",
                      k_computed ? c->k_scale.name : c->v_scale.name);
        return false;
    }
    return true;
}

bool views_build(call *c, pkv_cache *cache, pkv_rows *rows)
{
    items rows_items = {0, 1}, cache_items = {0, 1};
    *cache = (pkv_cache){.struct_size = sizeof *cache};
    *rows = (pkv_rows){.struct_size = sizeof *rows};
    if (!items_of(c, &rows_items, &cache_items) ||
        !rows_plane(&c->k, rows_items.per_item, &rows->k) ||
        !cache_plane(c, &c->k_cache, cache_items.per_item, cache, &cache->k) ||
        !same_shape(&c->k, rows->k.head_dim, &c->k_cache, cache->k.head_dim)) {
        return false;
    }
    cache->dtype = cache_items.dtype;
    rows->dtype = rows_items.dtype;
    rows->n_tokens = c->k.shape[0];
    rows->n_heads = c->k.shape[1];
    const bool scaled = c->k_scale.given || c->v_scale.given;
    if (c->apart ? !build_v(c, &rows_items, &cache_items, cache, rows)
                 : scaled && !take_apart(c, cache, rows)) {
        return false;
    }
    return !scaled || build_scales(c, &rows_items, &cache_items, cache);
}

pkv_new_kv views_source(const pkv_rows *r)
{
    return (pkv_new_kv){
        .struct_size = sizeof(pkv_new_kv), .n_tokens = r->n_tokens, .n_heads = r->n_heads,
        .dtype = r->dtype,
        .k = {r->k.data, r->k.token_stride_bytes, r->k.head_stride_bytes, r->k.head_dim},
        .v = {r->v.data, r->v.token_stride_bytes, r->v.head_stride_bytes, r->v.head_dim}};
}
