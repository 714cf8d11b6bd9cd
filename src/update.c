/*
 * Update and gather: check everything, fold the views, divide the payload,
 * turn slices into runs, hand the runs to the kernels.
 */
#include "calls.h"
#include "convert.h"
#include "parallel.h"
#include "runs.h"
#include "scales.h"
#include "slices.h"

/* One call.  Arrays of the caller's structs are walked by their own struct_size. */
typedef struct call {
    const pkv_cache       *caches;
    const void            *rows; /* pkv_new_kv for an update, pkv_rows for a gather */
    const int32_t         *group_ids;
    int64_t                n_layers;
    const pkv_slices      *groups;
    int64_t                n_groups;
    bool                   gather;
    pkv_update_opts        opts;
    bool                   stream;
    const pkv_i_kernels   *kernels;
    const pkv_i_geometry  *only;          /* geometry of the layer, where there is just one */
    int64_t                payload_bytes; /* of all layers */
    int32_t                n_parts;
} call;

static const pkv_slices *slices_of(const call *c, int64_t layer)
{
    return pkv_i_element(c->groups, c->group_ids != NULL ? c->group_ids[layer] : 0);
}

/* An update leaves a shared layer alone; a gather reads it. */
static bool skipped(const call *c, const pkv_i_view *cache)
{
    return !c->gather && (cache->flags & PKV_CACHE_SHARED) != 0;
}

/* ---- checks ------------------------------------------------------------------ */

/* Sizes that the slices of a layer were last checked against. */
typedef struct checked {
    const pkv_slices *slices;
    int64_t           n_tokens, n_slots, page_size;
    int64_t           sum_tokens;
} checked;

static pkv_status layer_views(const call *c, int64_t layer, pkv_i_view *cache, pkv_i_view *rows,
                              pkv_error *err)
{
    const void *row = pkv_i_element(c->rows, layer);
    PKV_I_TRY(pkv_i_view_cache(pkv_i_element(c->caches, layer), cache, err));
    return c->gather ? pkv_i_view_rows(row, rows, err) : pkv_i_view_new_kv(row, rows, err);
}

/* Layers of one group mostly have the same sizes: their slices are checked once. */
static pkv_status check_layer_slices(const call *c, const pkv_slices *slices,
                                     const pkv_i_view *cache, const pkv_i_view *rows, checked *done,
                                     pkv_error *err)
{
    const int64_t n_slots = cache->n_pages * cache->page_size;
    if (done->slices == slices && done->n_tokens == rows->page_size && done->n_slots == n_slots &&
        done->page_size == cache->page_size) {
        return PKV_OK;
    }
    int32_t strict = (c->opts.flags & PKV_UPDATE_STRICT) != 0;
    PKV_I_TRY(pkv_slices_check(slices, rows->page_size, n_slots, cache->page_size, strict,
                               &done->sum_tokens, err));
    done->slices = slices;
    done->n_tokens = rows->page_size;
    done->n_slots = n_slots;
    done->page_size = cache->page_size;
    return PKV_OK;
}

/* Checks one layer and adds its payload; *geometry is left as that layer's. */
static pkv_status check_layer(call *c, int64_t layer, pkv_i_geometry *geometry, checked *done,
                              pkv_error *err)
{
    if (c->group_ids != NULL && (c->group_ids[layer] < 0 || c->group_ids[layer] >= c->n_groups)) {
        return pkv_i_fail(err, PKV_E_INVALID, "a group id is not within 0..n_groups-1");
    }
    pkv_i_view cache, rows;
    PKV_I_TRY(layer_views(c, layer, &cache, &rows, err));
    PKV_I_TRY(pkv_i_geometry_check(&cache, &rows, err));
    PKV_I_TRY(pkv_i_convert_check(&cache, &rows, c->gather, err));
    pkv_i_geometry_of(&cache, &rows, geometry);
    PKV_I_TRY(check_layer_slices(c, slices_of(c, layer), &cache, &rows, done, err));
    int64_t bytes = 0;
    if (PKV_I_MUL(done->sum_tokens, geometry->token_bytes, &bytes) ||
        PKV_I_ADD(c->payload_bytes, skipped(c, &cache) ? 0 : bytes, &c->payload_bytes)) {
        return pkv_i_fail(err, PKV_E_INVALID, "the payload overflows 63 bits");
    }
    return PKV_OK;
}

static pkv_status check_arrays(const call *c, pkv_error *err)
{
    if (c->n_layers < 0 || c->n_groups < 0 || (c->n_layers > 0 && c->n_groups == 0)) {
        return pkv_i_fail(err, PKV_E_INVALID, "n_layers or n_groups is negative, or no group");
    }
    if (c->n_layers == 0) {
        return PKV_OK;
    }
    if (c->caches == NULL || c->rows == NULL || c->groups == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "an array of layers or groups is NULL");
    }
    PKV_I_TRY(pkv_i_check_array(c->caches, sizeof(pkv_cache), c->n_layers, err));
    PKV_I_TRY(pkv_i_check_array(c->rows, c->gather ? sizeof(pkv_rows) : sizeof(pkv_new_kv),
                                c->n_layers, err));
    return pkv_i_check_array(c->groups, sizeof(pkv_slices), c->n_groups, err);
}

/* ---- from slices to runs --------------------------------------------------------- */

/*
 * Tokens [from, to) of a plan, counted through its slices.  A cut at `to` may
 * fall on the first token of a slice, whose first line this part then finishes.
 */
static void copy_tokens(pkv_i_worker *w, pkv_i_converter *converter, const pkv_slices *slices,
                        int64_t from, int64_t to, bool last)
{
    const int64_t n = *slices->num_slices;
    int64_t       start = 0; /* tokens before slice i */
    for (int64_t i = 0; i < n && start <= to; i++) {
        const int64_t len = slices->slice_len[i], end = start + len;
        if (len > 0 && end > from && (start < to || !last)) {
            const pkv_i_piece piece = {.slot = slices->kv_cache_start[i],
                                       .row = slices->new_kv_start[i],
                                       .len = len,
                                       .from = from > start ? from - start : 0,
                                       .to = to < end ? to - start : len,
                                       .cut_at_from = from > 0 && from >= start,
                                       .cut_at_to = !last && to < end};
            if (converter != NULL) {
                pkv_i_convert_slice(converter, w, &piece);
            } else {
                pkv_i_emit_slice(w, &piece);
            }
        }
        start = end;
    }
}

static int64_t count_tokens(const pkv_slices *slices)
{
    int64_t sum = 0;
    for (int64_t i = 0; i < *slices->num_slices; i++) {
        sum += slices->slice_len[i];
    }
    return sum;
}

static int64_t ceil_div(int64_t a, int64_t b)
{
    return a / b + (a % b != 0 ? 1 : 0);
}

/* Tokens [from, to) of a layer, as they are. */
static void copy_layer(const call *c, pkv_i_worker *w, int64_t layer, int64_t from, int64_t to,
                       bool last)
{
    copy_tokens(w, NULL, slices_of(c, layer), from, to, last);
    pkv_i_flush(w);
}

/* The same with another element type: a function of its own, for the stack that it takes. */
static void convert_layer(const call *c, pkv_i_worker *w, const pkv_i_view *cache,
                          const pkv_i_view *rows, int64_t layer, int64_t from, int64_t to,
                          bool last)
{
    pkv_i_converter converter;
    pkv_i_convert_begin(&converter, cache, rows, c->gather, w);
    copy_tokens(w, &converter, slices_of(c, layer), from, to, last);
    pkv_i_convert_end(&converter, w);
}

/* Part p of the payload of all layers: bytes [payload * p / parts, ...), cut at tokens. */
static void run_part(void *ctx, int32_t part)
{
    const call *c = ctx;
    const int64_t lo = pkv_i_part_begin(c->payload_bytes, c->n_parts, part);
    const int64_t hi = pkv_i_part_begin(c->payload_bytes, c->n_parts, part + 1);
    int64_t       base = 0; /* payload of the layers before */
    pkv_i_worker  w; /* its runs are filled as they come: clearing them would cost 48 lines */
    w.kernels = c->kernels;
    w.stream = c->stream;
    w.gather = c->gather;
    w.n_runs = 0;
    for (int64_t layer = 0; layer < c->n_layers && base < hi; layer++) {
        pkv_i_geometry folded;
        pkv_i_view     cache, rows;
        w.g = c->only;
        if (w.g == NULL) {
            layer_views(c, layer, &cache, &rows, NULL);
            if (skipped(c, &cache)) {
                continue;
            }
            pkv_i_geometry_of(&cache, &rows, &folded);
            w.g = &folded;
        }
        const int64_t token_bytes = w.g->token_bytes;
        const int64_t tokens = c->n_parts == 1 ? INT64_MAX : count_tokens(slices_of(c, layer));
        int64_t       from = 0, to = tokens;
        if (c->n_parts > 1) {
            from = lo > base ? ceil_div(lo - base, token_bytes) : 0;
            to = ceil_div(hi - base, token_bytes);
            to = to < tokens ? to : tokens;
            base += tokens * token_bytes;
        }
        if (from < to && w.g->converts) {
            if (w.g == c->only) {
                layer_views(c, layer, &cache, &rows, NULL);
            }
            convert_layer(c, &w, &cache, &rows, layer, from, to, to == tokens);
        } else if (from < to) {
            copy_layer(c, &w, layer, from, to, to == tokens);
        }
    }
    if (c->stream) {
        c->kernels->finish();
    }
}

/* ---- entry points ------------------------------------------------------------------ */

static pkv_status run(call *c, const pkv_update_opts *opts, pkv_error *err)
{
    PKV_I_TRY(pkv_i_check_opts(opts, &c->opts, err));
    PKV_I_TRY(check_arrays(c, err));
    pkv_i_geometry geometry;
    checked        done = {0};
    for (int64_t layer = 0; layer < c->n_layers; layer++) {
        pkv_status status = check_layer(c, layer, &geometry, &done, err);
        if (status != PKV_OK) {
            if (err != NULL && c->n_layers > 1) {
                err->layer = layer;
            }
            return status;
        }
    }
    if (c->payload_bytes == 0) {
        return PKV_OK;
    }
    c->only = c->n_layers == 1 ? &geometry : NULL;
    c->kernels = pkv_i_kernels_current();
    c->stream = pkv_i_wants_streaming(&c->opts, c->payload_bytes);
    c->n_parts = pkv_i_parts(&c->opts, c->payload_bytes);
    pkv_i_parallel(&c->opts, c->n_parts, run_part, c);
    return PKV_OK;
}

pkv_status pkv_update_layers(const pkv_cache *caches, const pkv_new_kv *new_kvs,
                             const int32_t *group_ids, int64_t n_layers, const pkv_slices *groups,
                             int64_t n_groups, const pkv_update_opts *opts, pkv_error *err)
{
    call c = {.caches = caches, .rows = new_kvs, .group_ids = group_ids, .n_layers = n_layers,
              .groups = groups, .n_groups = n_groups, .gather = false};
    return run(&c, opts, err);
}

pkv_status pkv_gather_layers(const pkv_cache *caches, const pkv_rows *rows,
                             const int32_t *group_ids, int64_t n_layers, const pkv_slices *groups,
                             int64_t n_groups, const pkv_update_opts *opts, pkv_error *err)
{
    call c = {.caches = caches, .rows = rows, .group_ids = group_ids, .n_layers = n_layers,
              .groups = groups, .n_groups = n_groups, .gather = true};
    return run(&c, opts, err);
}

pkv_status pkv_update(const pkv_cache *cache, const pkv_new_kv *new_kv, const pkv_slices *slices,
                      const pkv_update_opts *opts, pkv_error *err)
{
    return pkv_update_layers(cache, new_kv, NULL, 1, slices, 1, opts, err);
}

pkv_status pkv_gather(const pkv_cache *cache, const pkv_rows *rows, const pkv_slices *slices,
                      const pkv_update_opts *opts, pkv_error *err)
{
    return pkv_gather_layers(cache, rows, NULL, 1, slices, 1, opts, err);
}
