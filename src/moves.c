/* Page copies: checks, cycles, and a copy as an update from a page. */
#include <string.h>

#include "calls.h"
#include "convert.h"
#include "layers.h"
#include "pairs.h"
#include "parallel.h"
#include "runs.h"
#include "scales.h"

enum { FILTER_WORDS = 256 };

typedef struct move {
    pkv_i_pairs          pairs;
    const pkv_page_copy *copies;
    int64_t              n_copies;
    const pkv_i_kernels *kernels;
    bool                 stream;
    int32_t              n_parts;
} move;

/* ---- what is written is not read ------------------------------------------------------ */

/* Pages of groups, hashed to bits: a clear bit says that a page is none of them. */
typedef struct filter {
    uint64_t words[FILTER_WORDS];
} filter;

static uint64_t filter_bit(int32_t page, int32_t group)
{
    uint64_t mixed = ((uint64_t)(uint32_t)group << 32 | (uint32_t)page) * 0x9e3779b97f4a7c15u;
    return mixed >> 50; /* 14 bits: a bit of the words */
}

static bool filter_has(const filter *f, int32_t page, int32_t group)
{
    uint64_t bit = filter_bit(page, group);
    return (f->words[bit / 64] >> (bit % 64) & 1) != 0;
}

static void filter_add(filter *f, int32_t page, int32_t group)
{
    uint64_t bit = filter_bit(page, group);
    f->words[bit / 64] |= (uint64_t)1 << (bit % 64);
}

static pkv_status fail_page(int64_t index, int32_t page, const char *what, pkv_error *err)
{
    return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_PAGE, index, page, 0, what);
}

/* Copies whose bit is set are compared with all; of a few thousand pages those are few. */
static pkv_status check_written_once(const move *m, pkv_error *err)
{
    filter written = {{0}};
    for (int64_t i = 0; i < m->n_copies; i++) {
        const pkv_page_copy *c = &m->copies[i];
        for (int64_t j = 0; filter_has(&written, c->dst, c->group) && j < i; j++) {
            if (m->copies[j].dst == c->dst && m->copies[j].group == c->group) {
                return fail_page(i, c->dst, "a page is written twice", err);
            }
        }
        filter_add(&written, c->dst, c->group);
    }
    for (int64_t i = 0; m->pairs.dsts == m->pairs.srcs && i < m->n_copies; i++) {
        const pkv_page_copy *c = &m->copies[i];
        for (int64_t j = 0; filter_has(&written, c->src, c->group) && j < m->n_copies; j++) {
            if (m->copies[j].dst == c->src && m->copies[j].group == c->group) {
                return fail_page(i, c->src, "a page is written and read", err);
            }
        }
    }
    return PKV_OK;
}

/* ---- checks ------------------------------------------------------------------------ */

/* Of planes whose bits are copied the given scales are the same. */
static pkv_status check_same_given(const pkv_i_view *src, const pkv_i_view *dst, pkv_error *err)
{
    for (int i = 0; i < src->n_planes; i++) {
        const pkv_i_scales *a = &src->scales[i], *b = &dst->scales[i];
        const int32_t       kind = pkv_i_scales_kind(src, i);
        const int64_t       n = kind == PKV_SCALES_TENSOR ? 1
                                : kind == PKV_SCALES_HEAD ? src->n_heads
                                                          : 0;
        for (int64_t h = 0; h < n; h++) {
            if (memcmp(a->data + h * a->head_stride_bytes, b->data + h * b->head_stride_bytes,
                       sizeof(float)) != 0) {
                return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_SCALE, h, i, 0,
                                     "given scales of the two caches differ");
            }
        }
    }
    return PKV_OK;
}

static pkv_status check_layer(const move *m, int64_t layer, pkv_i_view *src, pkv_i_view *dst,
                              pkv_error *err)
{
    PKV_I_TRY(pkv_i_pair_check(&m->pairs, layer, src, dst, err));
    if (src->dtype == dst->dtype) {
        return check_same_given(src, dst, err);
    }
    return pkv_i_pair_is_update(src) ? pkv_i_convert_check_scales(dst, src, err)
                                     : pkv_i_convert_check_scales(src, dst, err);
}

static pkv_status check_copies(const move *m, int32_t group, const pkv_i_view *src,
                               const pkv_i_view *dst, pkv_error *err)
{
    for (int64_t i = 0; i < m->n_copies; i++) {
        const pkv_page_copy *c = &m->copies[i];
        if (c->group != group) {
            continue;
        }
        if (c->src < 0 || c->src >= src->n_pages || c->dst < 0 || c->dst >= dst->n_pages) {
            return fail_page(i, c->src < 0 || c->src >= src->n_pages ? c->src : c->dst,
                             "is no page of the cache", err);
        }
        if (c->n_tokens < 1 || c->n_tokens > src->page_size) {
            return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_SLICE_LEN, i, c->n_tokens,
                                 src->page_size, "tokens of a copy are not in 1..page size");
        }
    }
    return PKV_OK;
}

/* ---- copying ------------------------------------------------------------------------------ */

/* The page as rows: one page of S tokens. */
static pkv_i_view page_as_rows(const pkv_i_view *cache, int64_t page)
{
    pkv_i_view rows = *cache;
    rows.n_pages = 1;
    for (int i = 0; i < cache->n_planes; i++) {
        rows.plane[i].data += page * cache->plane[i].page_stride_bytes;
        rows.plane[i].page_stride_bytes = 0;
    }
    return rows;
}

/* Scales that were computed go with their tokens. */
static void copy_scales(const pkv_i_view *src, const pkv_i_view *dst, const pkv_page_copy *c)
{
    for (int i = 0; i < src->n_planes; i++) {
        const pkv_i_scales *from = &src->scales[i], *to = &dst->scales[i];
        if (!pkv_i_is_computed(src, i)) {
            continue;
        }
        const size_t bytes = (size_t)(src->head_dim[i] / from->group) * sizeof(float);
        for (int64_t t = 0; t < c->n_tokens; t++) {
            for (int64_t h = 0; h < src->n_heads; h++) {
                memcpy(pkv_i_scale_at(to, c->dst, t) + h * to->head_stride_bytes,
                       pkv_i_scale_at(from, c->src, t) + h * from->head_stride_bytes, bytes);
            }
        }
    }
}

static void copy_page(pkv_i_worker *w, const pkv_i_view *src, const pkv_i_view *dst,
                      const pkv_page_copy *c)
{
    const pkv_i_view  rows = page_as_rows(src, c->src);
    const int64_t     slot = c->dst * dst->page_size;
    const pkv_i_piece piece = {.slot = slot, .len = c->n_tokens, .to = c->n_tokens};
    pkv_i_geometry    geometry;
    pkv_i_geometry_of(dst, &rows, &geometry);
    w->g = &geometry;
    pkv_i_emit_slice(w, &piece);
    if (src->has_scales) {
        copy_scales(src, dst, c);
    }
}

/* All copies [from, to) of a layer, converted; a function of its own, for the stack it takes. */
static void convert_pages(const move *m, pkv_i_worker *w, const pkv_i_view *src,
                          const pkv_i_view *dst, int32_t group, int64_t from, int64_t to)
{
    const bool      update = pkv_i_pair_is_update(src);
    pkv_i_converter converter;
    pkv_i_convert_begin(&converter, update ? dst : src, update ? src : dst, !update, w);
    for (int64_t i = from; i < to; i++) {
        const pkv_page_copy *c = &m->copies[i];
        const int64_t        at_src = c->src * src->page_size, at_dst = c->dst * dst->page_size;
        if (c->group == group) {
            pkv_i_convert_slice(&converter, w,
                                &(pkv_i_piece){.slot = update ? at_dst : at_src,
                                               .row = update ? at_src : at_dst,
                                               .len = c->n_tokens, .to = c->n_tokens});
        }
    }
    pkv_i_convert_end(&converter, w);
}

/* Every part copies a share of the copies, in all layers. */
static void run_part(void *ctx, int32_t part)
{
    const move   *m = ctx;
    const int64_t from = pkv_i_part_begin(m->n_copies, m->n_parts, part);
    const int64_t to = pkv_i_part_begin(m->n_copies, m->n_parts, part + 1);
    pkv_i_worker  w;
    w.kernels = m->kernels;
    w.stream = m->stream;
    w.gather = false;
    w.n_runs = 0;
    for (int64_t layer = 0; layer < m->pairs.n_layers; layer++) {
        pkv_i_view    src, dst;
        const int32_t group = pkv_i_pair_group(&m->pairs, layer);
        (void)pkv_i_view_cache(pkv_i_element(m->pairs.srcs, layer), &src, NULL);
        (void)pkv_i_view_cache(pkv_i_element(m->pairs.dsts, layer), &dst, NULL);
        if ((dst.flags & PKV_CACHE_SHARED) != 0) {
            continue;
        }
        if (src.dtype != dst.dtype) {
            convert_pages(m, &w, &src, &dst, group, from, to);
            continue;
        }
        for (int64_t i = from; i < to; i++) {
            if (m->copies[i].group == group) {
                copy_page(&w, &src, &dst, &m->copies[i]);
            }
        }
        pkv_i_flush(&w);
    }
    if (m->stream) {
        m->kernels->finish();
    }
}

pkv_status pkv_copy_pages(const pkv_cache *srcs, const pkv_cache *dsts, const int32_t *group_ids,
                          int64_t n_layers, const pkv_page_copy *copies, int64_t n_copies,
                          const pkv_update_opts *opts, pkv_error *err)
{
    move            m = {.pairs = {srcs, dsts != NULL ? dsts : srcs, group_ids, n_layers},
                         .copies = copies, .n_copies = n_copies};
    pkv_update_opts checked;
    int64_t         payload_bytes = 0;
    PKV_I_TRY(pkv_i_check_opts(opts, &checked, err));
    if (n_copies < 0 || (n_copies > 0 && copies == NULL)) {
        return pkv_i_fail(err, PKV_E_INVALID, "an array is NULL, or a number negative");
    }
    PKV_I_TRY(pkv_i_pairs_check(&m.pairs, err));
    for (int64_t layer = 0; layer < n_layers; layer++) {
        pkv_i_view     src, dst;
        pkv_i_geometry geometry;
        pkv_status     status = check_layer(&m, layer, &src, &dst, err);
        if (status == PKV_OK) {
            status = check_copies(&m, pkv_i_pair_group(&m.pairs, layer), &src, &dst, err);
        }
        PKV_I_TRY(pkv_i_fail_layer(status, layer, n_layers, err));
        pkv_i_geometry_of(&dst, &src, &geometry);
        int64_t bytes = 0;
        if (PKV_I_MUL(geometry.token_bytes, src.page_size, &bytes) ||
            PKV_I_MUL(bytes, n_copies, &bytes) || PKV_I_ADD(payload_bytes, bytes, &payload_bytes)) {
            payload_bytes = INT64_MAX; /* only how many threads pay depends on it */
        }
    }
    PKV_I_TRY(check_written_once(&m, err));
    if (n_layers == 0 || n_copies == 0) {
        return PKV_OK;
    }
    m.kernels = pkv_i_kernels_current();
    m.stream = pkv_i_wants_streaming(&checked, payload_bytes);
    m.n_parts = pkv_i_parts(&checked, payload_bytes);
    m.n_parts = m.n_parts < n_copies ? m.n_parts : (int32_t)n_copies;
    pkv_i_parallel(&checked, m.n_parts, run_part, &m);
    return PKV_OK;
}
