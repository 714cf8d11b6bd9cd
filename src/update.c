/*
 * Update and gather: check everything, fold the views, divide the payload,
 * turn slices into runs, hand the runs to the kernels.
 */
#include "calls.h"
#include "convert.h"
#include "layers.h"
#include "parallel.h"
#include "runs.h"
#include "slices.h"

typedef struct call {
    pkv_i_layers           layers;
    pkv_update_opts        opts;
    bool                   stream;
    const pkv_i_kernels   *kernels;
    const pkv_i_geometry  *only;          /* geometry of the layer, where there is just one */
    int64_t                payload_bytes; /* of all layers */
    int32_t                n_parts;
} call;

/* ---- checks ------------------------------------------------------------------ */

/* Sizes that the slices of a layer were last checked against. */
typedef struct checked {
    const pkv_slices *slices;
    int64_t           n_tokens, n_slots, page_size;
    int64_t           sum_tokens;
} checked;

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
    pkv_i_view cache, rows;
    PKV_I_TRY(pkv_i_layer_check(&c->layers, layer, &cache, &rows, err));
    PKV_I_TRY(pkv_i_convert_check_scales(&cache, &rows, err));
    pkv_i_geometry_of(&cache, &rows, geometry);
    const pkv_slices *slices = pkv_i_layer_slices(&c->layers, layer);
    PKV_I_TRY(check_layer_slices(c, slices, &cache, &rows, done, err));
    const bool skipped = pkv_i_layer_skipped(&c->layers, &cache);
    int64_t    bytes = 0;
    if (PKV_I_MUL(done->sum_tokens, geometry->token_bytes, &bytes) ||
        PKV_I_ADD(c->payload_bytes, skipped ? 0 : bytes, &c->payload_bytes)) {
        return pkv_i_fail(err, PKV_E_INVALID, "the payload overflows 63 bits");
    }
    return PKV_OK;
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
    copy_tokens(w, NULL, pkv_i_layer_slices(&c->layers, layer), from, to, last);
    pkv_i_flush(w);
}

/* The same with another element type: a function of its own, for the stack that it takes. */
static void convert_layer(const call *c, pkv_i_worker *w, const pkv_i_view *cache,
                          const pkv_i_view *rows, int64_t layer, int64_t from, int64_t to,
                          bool last)
{
    pkv_i_converter converter;
    pkv_i_convert_begin(&converter, cache, rows, c->layers.gather, w);
    copy_tokens(w, &converter, pkv_i_layer_slices(&c->layers, layer), from, to, last);
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
    w.gather = c->layers.gather;
    w.n_runs = 0;
    for (int64_t layer = 0; layer < c->layers.n_layers && base < hi; layer++) {
        pkv_i_geometry folded;
        pkv_i_view     cache, rows;
        w.g = c->only;
        if (w.g == NULL) {
            pkv_i_layer_views(&c->layers, layer, &cache, &rows, NULL);
            if (pkv_i_layer_skipped(&c->layers, &cache)) {
                continue;
            }
            pkv_i_geometry_of(&cache, &rows, &folded);
            w.g = &folded;
        }
        const int64_t token_bytes = w.g->token_bytes;
        const int64_t tokens = c->n_parts == 1
                                   ? INT64_MAX
                                   : count_tokens(pkv_i_layer_slices(&c->layers, layer));
        int64_t       from = 0, to = tokens;
        if (c->n_parts > 1) {
            from = lo > base ? ceil_div(lo - base, token_bytes) : 0;
            to = ceil_div(hi - base, token_bytes);
            to = to < tokens ? to : tokens;
            base += tokens * token_bytes;
        }
        if (from < to && w.g->converts) {
            if (w.g == c->only) {
                pkv_i_layer_views(&c->layers, layer, &cache, &rows, NULL);
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
    PKV_I_TRY(pkv_i_layers_check(&c->layers, err));
    pkv_i_geometry geometry;
    checked        done = {0};
    for (int64_t layer = 0; layer < c->layers.n_layers; layer++) {
        PKV_I_TRY(pkv_i_fail_layer(check_layer(c, layer, &geometry, &done, err), layer,
                                   c->layers.n_layers, err));
    }
    if (c->payload_bytes == 0) {
        return PKV_OK;
    }
    c->only = c->layers.n_layers == 1 ? &geometry : NULL;
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
    call c = {.layers = {caches, new_kvs, group_ids, n_layers, groups, n_groups, false}};
    return run(&c, opts, err);
}

pkv_status pkv_gather_layers(const pkv_cache *caches, const pkv_rows *rows,
                             const int32_t *group_ids, int64_t n_layers, const pkv_slices *groups,
                             int64_t n_groups, const pkv_update_opts *opts, pkv_error *err)
{
    call c = {.layers = {caches, rows, group_ids, n_layers, groups, n_groups, true}};
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
