/* From slices to runs: see runs.h. */
#include "runs.h"

enum { LINE_BYTES = 64 };

void pkv_i_flush(pkv_i_worker *w)
{
    w->kernels->copy_runs(w->runs, w->n_runs, w->stream);
    w->n_runs = 0;
}

static void emit(pkv_i_worker *w, char *cache, char *rows, int64_t row_bytes, int64_t n_rows,
                 int64_t cache_stride, int64_t rows_stride)
{
    bool gather = w->gather;
    w->runs[w->n_runs++] = (pkv_i_run){
        .dst = gather ? rows : cache,
        .src = gather ? cache : rows,
        .row_bytes = (size_t)row_bytes,
        .n_rows = (size_t)n_rows,
        .dst_stride_bytes = (ptrdiff_t)(gather ? rows_stride : cache_stride),
        .src_stride_bytes = (ptrdiff_t)(gather ? cache_stride : rows_stride)};
    if (w->n_runs == PKV_I_RUNS) {
        pkv_i_flush(w);
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
static int64_t line_rest(const pkv_i_worker *w, const pkv_i_lane *l, const stretch *s,
                         int64_t token)
{
    const char *dst = w->gather ? s->rows : s->cache;
    uintptr_t   at = (uintptr_t)dst + (uintptr_t)(token * l->head_bytes);
    int64_t     rest = (int64_t)(-at % LINE_BYTES);
    int64_t     left = (s->n_tokens - token) * l->head_bytes;
    return rest < left ? rest : left;
}

/* One run of bytes.  Where parts meet, the earlier one finishes the line. */
static void emit_contiguous(pkv_i_worker *w, const pkv_i_lane *l, const stretch *s)
{
    int64_t from = s->from * l->head_bytes, to = s->to * l->head_bytes;
    from += s->cut_at_from ? line_rest(w, l, s, s->from) : 0;
    to += s->cut_at_to ? line_rest(w, l, s, s->to) : 0;
    if (from < to) {
        emit(w, s->cache + from, s->rows + from, to - from, 1, 0, 0);
    }
}

/* Rows with gaps, token by token: the source is read from its start to its end. */
static void emit_strided(pkv_i_worker *w, const pkv_i_lane *l, const stretch *s)
{
    char   *cache = s->cache + s->from * l->cache_token_stride_bytes;
    char   *rows = s->rows + s->from * l->rows_token_stride_bytes;
    int64_t n = s->to - s->from;
    if (n == 0) {
        return;
    }
    if (l->n_heads == 1) {
        emit(w, cache, rows, l->head_bytes, n, n > 1 ? l->cache_token_stride_bytes : 0,
             n > 1 ? l->rows_token_stride_bytes : 0);
        return;
    }
    for (int64_t t = 0; t < n; t++) {
        emit(w, cache + t * l->cache_token_stride_bytes, rows + t * l->rows_token_stride_bytes,
             l->head_bytes, l->n_heads, l->cache_head_stride_bytes, l->rows_head_stride_bytes);
    }
}

static void emit_stretch(pkv_i_worker *w, int64_t slot, int64_t row, stretch s)
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

void pkv_i_emit_slice(pkv_i_worker *w, const pkv_i_piece *p)
{
    const int64_t slot = p->slot, row = p->row, len = p->len, from = p->from, to = p->to;
    if (w->g->pages_adjacent) {
        emit_stretch(w, slot, row,
                     (stretch){.n_tokens = len, .from = from, .to = to,
                               .cut_at_from = p->cut_at_from, .cut_at_to = p->cut_at_to});
        return;
    }
    int64_t page_end = w->g->page_size - slot % w->g->page_size;
    for (int64_t at = 0; at <= to && at < len; page_end += w->g->page_size) {
        int64_t end = page_end < len ? page_end : len;
        if (end > from) {
            stretch s = {.n_tokens = end - at,
                         .from = from > at ? from - at : 0,
                         .to = to < end ? to - at : end - at,
                         .cut_at_from = p->cut_at_from && from >= at,
                         .cut_at_to = p->cut_at_to && to < end};
            emit_stretch(w, slot + at, row + at, s);
        }
        at = end;
    }
}
