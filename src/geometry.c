/* Folding a cache and rows into lanes: see geometry.h. */
#include "geometry.h"
#include "scales.h"

static pkv_status check_fit(const pkv_i_view *cache, const pkv_i_view *rows, pkv_error *err)
{
    if (cache->plane[0].data == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "the cache has no memory");
    }
    if (cache->n_heads != rows->n_heads) {
        return pkv_i_fail(err, PKV_E_INVALID, "n_heads of cache and rows differ");
    }
    if (cache->head_dim[0] != rows->head_dim[0] || cache->head_dim[1] != rows->head_dim[1]) {
        return pkv_i_fail(err, PKV_E_INVALID, "head_dim of cache and rows differ");
    }
    return PKV_OK;
}

static bool ranges_meet(const pkv_i_plane *a, const pkv_i_plane *b)
{
    uintptr_t a_at = (uintptr_t)a->data, b_at = (uintptr_t)b->data;
    return a_at < b_at + (uint64_t)b->span_bytes && b_at < a_at + (uint64_t)a->span_bytes;
}

static bool views_meet(const pkv_i_view *cache, const pkv_i_view *rows)
{
    for (int i = 0; i < cache->n_planes; i++) {
        const pkv_i_plane scales = pkv_i_scales_span(cache, i);
        for (int j = 0; j < rows->n_planes; j++) {
            if (ranges_meet(&cache->plane[i], &rows->plane[j]) ||
                ranges_meet(&scales, &rows->plane[j])) {
                return true;
            }
        }
    }
    return false;
}

/*
 * Strides of axes with a single element mean nothing and must not stand in the
 * way of folding: they are replaced by what a dense neighbour would have.
 */
static void fill_lane(const pkv_i_view *cache, const pkv_i_view *rows, int plane, pkv_i_lane *l)
{
    const pkv_i_plane *c = &cache->plane[plane];
    const pkv_i_plane *r = &rows->plane[plane];
    const int64_t      page_stride = cache->n_pages == 1 ? 0 : c->page_stride_bytes;
    l->cache = c->data;
    l->rows = r->data;
    l->n_heads = cache->n_heads;
    l->head_bytes = c->head_bytes;
    l->cache_page_stride_bytes = page_stride;
    l->cache_token_stride_bytes = cache->page_size == 1 ? page_stride : c->token_stride_bytes;
    l->cache_head_stride_bytes = c->head_stride_bytes;
    l->rows_token_stride_bytes =
        rows->page_size == 1 ? l->cache_token_stride_bytes : r->token_stride_bytes;
    l->rows_head_stride_bytes = r->head_stride_bytes;
}

/* Heads side by side on both sides become one. */
static void fold_heads(pkv_i_lane *l)
{
    if (l->n_heads > 1 && l->cache_head_stride_bytes == l->head_bytes &&
        l->rows_head_stride_bytes == l->head_bytes) {
        l->head_bytes *= l->n_heads;
        l->n_heads = 1;
    }
}

/* V right behind K in every head (or token, once heads are folded), on both sides. */
static bool v_joins_k(const pkv_i_lane *k, const pkv_i_lane *v)
{
    return k->n_heads == v->n_heads && v->cache == k->cache + k->head_bytes &&
           v->rows == k->rows + k->head_bytes &&
           v->cache_page_stride_bytes == k->cache_page_stride_bytes &&
           v->cache_token_stride_bytes == k->cache_token_stride_bytes &&
           v->rows_token_stride_bytes == k->rows_token_stride_bytes &&
           (k->n_heads == 1 || (v->cache_head_stride_bytes == k->cache_head_stride_bytes &&
                                v->rows_head_stride_bytes == k->rows_head_stride_bytes));
}

static void fold_planes(pkv_i_geometry *g)
{
    if (g->n_lanes == 2 && v_joins_k(&g->lane[0], &g->lane[1])) {
        g->lane[0].head_bytes += g->lane[1].head_bytes;
        g->n_lanes = 1;
    }
}

pkv_status pkv_i_geometry_check(const pkv_i_view *cache, const pkv_i_view *rows, pkv_error *err)
{
    PKV_I_TRY(check_fit(cache, rows, err));
    return rows->page_size > 0 && views_meet(cache, rows)
               ? pkv_i_fail(err, PKV_E_INVALID, "the cache and the rows overlap in memory")
               : PKV_OK;
}

void pkv_i_geometry_of(const pkv_i_view *cache, const pkv_i_view *rows, pkv_i_geometry *out)
{
    out->n_lanes = cache->n_planes;
    out->page_size = cache->page_size;
    out->pages_adjacent = true;
    out->converts = cache->dtype != rows->dtype;
    out->token_bytes = 0;
    for (int i = 0; i < cache->n_planes; i++) {
        fill_lane(cache, rows, i, &out->lane[i]);
        out->token_bytes += out->lane[i].head_bytes * cache->n_heads;
    }
    if (out->converts) {
        return;
    }
    /* Interleaved by head first; then whole tokens; then V behind K in a token. */
    fold_planes(out);
    for (int i = 0; i < out->n_lanes; i++) {
        fold_heads(&out->lane[i]);
    }
    fold_planes(out);
    for (int i = 0; i < out->n_lanes; i++) {
        pkv_i_lane *l = &out->lane[i];
        int64_t     page_bytes = 0;
        l->contiguous = l->n_heads == 1 && l->rows_token_stride_bytes == l->head_bytes &&
                        l->cache_token_stride_bytes == l->head_bytes;
        bool adjacent = cache->n_pages == 1 ||
                        (!PKV_I_MUL(cache->page_size, l->cache_token_stride_bytes, &page_bytes) &&
                         page_bytes == l->cache_page_stride_bytes);
        out->pages_adjacent = out->pages_adjacent && adjacent;
    }
}
