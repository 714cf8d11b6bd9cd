/*
 * Update and gather: check everything, fold the views, divide the payload,
 * turn slices into runs, hand the runs to the kernels.
 */
#include "cpu/kernels.h"
#include "geometry.h"
#include "parallel.h"
#include "slices.h"

enum {
    RUNS = 64, /* runs handed over at a time: 3 KiB of a worker's stack */
    LINE_BYTES = 64,
    /* Below this, rows that are read at once stay in the cache: an L2's worth. */
    READ_SOON_BYTES = 1 << 20
};

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

static const void *element(const void *array, int64_t i)
{
    const size_t *struct_size = array;
    return (const char *)array + (size_t)i * *struct_size;
}

static const pkv_slices *slices_of(const call *c, int64_t layer)
{
    return element(c->groups, c->group_ids != NULL ? c->group_ids[layer] : 0);
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
    const void *row = element(c->rows, layer);
    PKV_I_TRY(pkv_i_view_cache(element(c->caches, layer), cache, err));
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
    PKV_I_TRY(pkv_i_geometry_of(&cache, &rows, geometry, err));
    PKV_I_TRY(check_layer_slices(c, slices_of(c, layer), &cache, &rows, done, err));
    int64_t bytes = 0;
    if (PKV_I_MUL(done->sum_tokens, geometry->token_bytes, &bytes) ||
        PKV_I_ADD(c->payload_bytes, skipped(c, &cache) ? 0 : bytes, &c->payload_bytes)) {
        return pkv_i_fail(err, PKV_E_INVALID, "the payload overflows 63 bits");
    }
    return PKV_OK;
}

static pkv_status check_opts(const pkv_update_opts *opts, call *c, pkv_error *err)
{
    c->opts = (pkv_update_opts){.struct_size = sizeof c->opts};
    if (opts == NULL) {
        return PKV_OK;
    }
    const uint32_t known = PKV_UPDATE_STRICT | PKV_UPDATE_CHECKED | PKV_UPDATE_READ_SOON |
                           PKV_UPDATE_DEPENDENT_LAUNCH;
    PKV_I_TRY(pkv_i_check_struct(opts, sizeof *opts, err));
    if ((opts->flags & ~known) != 0 || opts->max_threads < 0) {
        return pkv_i_fail(err, PKV_E_INVALID, "an option flag is unknown, or max_threads negative");
    }
    c->opts = *opts;
    return PKV_OK;
}

/*
 * The first struct of an array gives the distance to the next, so it is checked
 * before the array is walked; each element is checked again when it is read.
 */
static pkv_status check_array(const void *array, size_t bytes, int64_t n, pkv_error *err)
{
    PKV_I_TRY(pkv_i_check_struct(array, bytes, err));
    const size_t step = *(const size_t *)array;
    if (step % sizeof step != 0) {
        return pkv_i_fail(err, PKV_E_INVALID, "struct_size is not a multiple of 8");
    }
    for (int64_t i = 1; i < n; i++) {
        if (*(const size_t *)element(array, i) != step) {
            return pkv_i_fail(err, PKV_E_INVALID, "structs of one array differ in struct_size");
        }
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
    PKV_I_TRY(check_array(c->caches, sizeof(pkv_cache), c->n_layers, err));
    PKV_I_TRY(check_array(c->rows, c->gather ? sizeof(pkv_rows) : sizeof(pkv_new_kv), c->n_layers,
                          err));
    return check_array(c->groups, sizeof(pkv_slices), c->n_groups, err);
}

/* ---- from slices to runs --------------------------------------------------------- */

typedef struct worker {
    const call           *c;
    const pkv_i_geometry *g;
    size_t                n_runs;
    pkv_i_run             runs[RUNS];
} worker;

static void flush(worker *w)
{
    w->c->kernels->copy_runs(w->runs, w->n_runs, w->c->stream);
    w->n_runs = 0;
}

static void emit(worker *w, char *cache, char *rows, int64_t row_bytes, int64_t n_rows,
                 int64_t cache_stride, int64_t rows_stride)
{
    bool gather = w->c->gather;
    w->runs[w->n_runs++] = (pkv_i_run){
        .dst = gather ? rows : cache,
        .src = gather ? cache : rows,
        .row_bytes = (size_t)row_bytes,
        .n_rows = (size_t)n_rows,
        .dst_stride_bytes = (ptrdiff_t)(gather ? rows_stride : cache_stride),
        .src_stride_bytes = (ptrdiff_t)(gather ? cache_stride : rows_stride)};
    if (w->n_runs == RUNS) {
        flush(w);
    }
}

/* A stretch of tokens that lie at a fixed distance on both sides. */
typedef struct stretch {
    char   *cache;
    char   *rows;
    int64_t n_tokens;
    int64_t from, to;    /* the tokens of it that this part copies */
    bool    cut_at_from; /* the part before ends inside the line at `from` */
    bool    cut_at_to;   /* this part ends inside the line at `to` */
} stretch;

/* Bytes from a token's first byte at the destination to the next line, within the stretch. */
static int64_t line_rest(const worker *w, const pkv_i_lane *l, const stretch *s, int64_t token)
{
    const char *dst = w->c->gather ? s->rows : s->cache;
    uintptr_t   at = (uintptr_t)dst + (uintptr_t)(token * l->head_bytes);
    int64_t     rest = (int64_t)(-at % LINE_BYTES);
    int64_t     left = (s->n_tokens - token) * l->head_bytes;
    return rest < left ? rest : left;
}

/* One run of bytes.  Where parts meet, the earlier one finishes the line. */
static void emit_contiguous(worker *w, const pkv_i_lane *l, const stretch *s)
{
    int64_t from = s->from * l->head_bytes, to = s->to * l->head_bytes;
    from += s->cut_at_from ? line_rest(w, l, s, s->from) : 0;
    to += s->cut_at_to ? line_rest(w, l, s, s->to) : 0;
    if (from < to) {
        emit(w, s->cache + from, s->rows + from, to - from, 1, 0, 0);
    }
}

/* Rows with gaps: along the axis that is dense in the cache, if one is. */
static void emit_strided(worker *w, const pkv_i_lane *l, const stretch *s)
{
    char   *cache = s->cache + s->from * l->cache_token_stride_bytes;
    char   *rows = s->rows + s->from * l->rows_token_stride_bytes;
    int64_t n = s->to - s->from;
    if (n == 0) {
        return;
    }
    if (l->n_heads == 1 || (n > 1 && l->cache_token_stride_bytes == l->head_bytes)) {
        for (int64_t h = 0; h < l->n_heads; h++) {
            emit(w, cache, rows, l->head_bytes, n, n > 1 ? l->cache_token_stride_bytes : 0,
                 n > 1 ? l->rows_token_stride_bytes : 0);
            cache += l->n_heads > 1 ? l->cache_head_stride_bytes : 0;
            rows += l->n_heads > 1 ? l->rows_head_stride_bytes : 0;
        }
        return;
    }
    for (int64_t t = 0; t < n; t++) {
        emit(w, cache + t * l->cache_token_stride_bytes, rows + t * l->rows_token_stride_bytes,
             l->head_bytes, l->n_heads, l->cache_head_stride_bytes, l->rows_head_stride_bytes);
    }
}

static void emit_stretch(worker *w, int64_t slot, int64_t row, stretch s)
{
    const pkv_i_geometry *g = w->g;
    for (int32_t i = 0; i < g->n_lanes; i++) {
        const pkv_i_lane *l = &g->lane[i];
        int64_t at = g->pages_adjacent
                         ? slot * l->cache_token_stride_bytes
                         : slot / g->page_size * l->cache_page_stride_bytes +
                               slot % g->page_size * l->cache_token_stride_bytes;
        s.cache = l->cache + at;
        s.rows = l->rows + row * l->rows_token_stride_bytes;
        if (l->contiguous) {
            emit_contiguous(w, l, &s);
        } else {
            emit_strided(w, l, &s);
        }
    }
}

/* Tokens [from, to) of one slice, split at page ends where pages are not adjacent. */
static void copy_slice(worker *w, const pkv_slices *slices, int64_t i, int64_t from, int64_t to,
                       bool cut_at_from, bool cut_at_to)
{
    const int64_t slot = slices->kv_cache_start[i], row = slices->new_kv_start[i];
    const int64_t len = slices->slice_len[i];
    if (w->g->pages_adjacent) {
        emit_stretch(w, slot, row,
                     (stretch){.n_tokens = len, .from = from, .to = to,
                               .cut_at_from = cut_at_from, .cut_at_to = cut_at_to});
        return;
    }
    int64_t page_end = w->g->page_size - slot % w->g->page_size;
    for (int64_t at = 0; at <= to && at < len; page_end += w->g->page_size) {
        int64_t end = page_end < len ? page_end : len;
        if (end > from) {
            stretch s = {.n_tokens = end - at,
                         .from = from > at ? from - at : 0,
                         .to = to < end ? to - at : end - at,
                         .cut_at_from = cut_at_from && from >= at,
                         .cut_at_to = cut_at_to && to < end};
            emit_stretch(w, slot + at, row + at, s);
        }
        at = end;
    }
}

/*
 * Tokens [from, to) of a plan, counted through its slices.  A cut at `to` may
 * fall on the first token of a slice, whose first line this part then finishes.
 */
static void copy_tokens(worker *w, const pkv_slices *slices, int64_t from, int64_t to, bool last)
{
    const int64_t n = *slices->num_slices;
    int64_t       start = 0; /* tokens before slice i */
    for (int64_t i = 0; i < n && start <= to; i++) {
        const int64_t len = slices->slice_len[i], end = start + len;
        if (len > 0 && end > from && (start < to || !last)) {
            copy_slice(w, slices, i, from > start ? from - start : 0, to < end ? to - start : len,
                       from > 0 && from >= start, !last && to < end);
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

/* Part p of the payload of all layers: bytes [payload * p / parts, ...), cut at tokens. */
static void run_part(void *ctx, int32_t part)
{
    const call *c = ctx;
    /* In this order the product cannot overflow. */
    const int64_t share = c->payload_bytes / c->n_parts, over = c->payload_bytes % c->n_parts;
    const int64_t lo = share * part + over * part / c->n_parts;
    const int64_t hi = share * (part + 1) + over * (part + 1) / c->n_parts;
    worker        w; /* its runs are filled as they come: clearing them would cost 48 lines */
    int64_t       base = 0; /* payload of the layers before */
    w.c = c;
    w.n_runs = 0;
    for (int64_t layer = 0; layer < c->n_layers && base < hi; layer++) {
        pkv_i_geometry    folded;
        const pkv_slices *slices = slices_of(c, layer);
        w.g = c->only;
        if (w.g == NULL) {
            pkv_i_view cache, rows;
            layer_views(c, layer, &cache, &rows, NULL);
            pkv_i_geometry_of(&cache, &rows, &folded, NULL);
            if (skipped(c, &cache)) {
                continue;
            }
            w.g = &folded;
        }
        int64_t tokens = c->n_parts == 1 ? INT64_MAX : count_tokens(slices);
        int64_t from = 0, to = tokens;
        if (c->n_parts > 1) {
            from = lo > base ? ceil_div(lo - base, w.g->token_bytes) : 0;
            to = ceil_div(hi - base, w.g->token_bytes);
            to = to < tokens ? to : tokens;
            base += tokens * w.g->token_bytes;
        }
        if (from < to) {
            copy_tokens(&w, slices, from, to, to == tokens);
            flush(&w);
        }
    }
    if (c->stream) {
        c->kernels->finish();
    }
}

/* ---- entry points ------------------------------------------------------------------ */

/* Past the processor's cache?  docs/benchmarking.md has the figures. */
static bool wants_streaming(const call *c)
{
    return (c->opts.flags & PKV_UPDATE_READ_SOON) == 0 || c->payload_bytes > READ_SOON_BYTES;
}

static pkv_status run(call *c, const pkv_update_opts *opts, pkv_error *err)
{
    PKV_I_TRY(check_opts(opts, c, err));
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
    c->stream = wants_streaming(c);
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
