/* Conversions on the way: see convert.h. */
#include "convert.h"

#include <string.h>

#include "cpu/fpenv.h"
#include "scales.h"

/* ---- checks ------------------------------------------------------------------------- */

int32_t pkv_converts(pkv_dtype from, pkv_dtype to)
{
    return pkv_i_kernels_at(0)->cast(from, to) != NULL ? 1 : 0;
}

pkv_status pkv_i_convert_check_dtypes(const pkv_i_view *cache, const pkv_i_view *rows, bool gather,
                                      pkv_error *err)
{
    if (cache->dtype == rows->dtype) {
        return pkv_i_is_computed(cache, 0) || pkv_i_is_computed(cache, 1)
                   ? pkv_i_fail(err, PKV_E_UNSUPPORTED,
                                "rows in the cache's own dtype bring no scales of their own")
                   : PKV_OK;
    }
    const pkv_i_view *from = gather ? cache : rows, *to = gather ? rows : cache;
    const bool rows_are_floats = rows->dtype <= PKV_DTYPE_BF16;
    if (!rows_are_floats || !pkv_converts(from->dtype, to->dtype)) {
        return pkv_i_fail(err, PKV_E_UNSUPPORTED, "there is no conversion between these dtypes");
    }
    return PKV_OK;
}

pkv_status pkv_i_convert_check_scales(const pkv_i_view *cache, const pkv_i_view *rows,
                                      pkv_error *err)
{
    return cache->dtype != rows->dtype ? pkv_i_scales_check_given(cache, err) : PKV_OK;
}

/* ---- addresses ---------------------------------------------------------------------- */

static char *token_at(const pkv_i_view *view, const pkv_i_plane *plane, int64_t index)
{
    return plane->data + index / view->page_size * plane->page_stride_bytes +
           index % view->page_size * plane->token_stride_bytes;
}

/* Planes of one token that the stage has room for are laid out as the destination's are. */
static void lay_out_stage(pkv_i_converter *c)
{
    const pkv_i_plane *k = &c->dst->plane[0], *v = &c->dst->plane[1];
    const int64_t      H = c->dst->n_heads;
    const bool         two = c->dst->n_planes == 2;
    const int64_t      k_bytes = k->head_bytes, v_bytes = two ? v->head_bytes : 0;
    int64_t            token_bytes = 0;
    const bool         fits = !PKV_I_MUL(H, k_bytes + v_bytes, &token_bytes);
    c->n_stage = fits ? PKV_I_STAGE_BYTES / token_bytes : 0;
    c->n_staged = 0;
    /* K and V of a head side by side, or each plane for itself. */
    const bool by_head = two && v->data == k->data + k_bytes &&
                         (H == 1 || (k->head_stride_bytes == v->head_stride_bytes &&
                                     k->head_stride_bytes == k_bytes + v_bytes));
    c->stage_plane[0] = (pkv_i_plane){.data = c->stage, .head_bytes = k_bytes,
                                      .token_stride_bytes = by_head ? token_bytes : H * k_bytes,
                                      .head_stride_bytes = by_head ? k_bytes + v_bytes : k_bytes};
    c->stage_plane[1] = c->stage_plane[0];
    c->stage_plane[1].head_bytes = v_bytes;
    if (by_head) {
        c->stage_plane[1].data = c->stage + k_bytes;
    } else {
        c->stage_plane[1].data = c->stage + c->n_stage * H * k_bytes;
        c->stage_plane[1].token_stride_bytes = H * v_bytes;
        c->stage_plane[1].head_stride_bytes = v_bytes;
    }
}

static pkv_i_scaling scaling_of(const pkv_i_converter *c, int plane)
{
    if (!c->cache->has_scales || c->cache->scales[plane].kind == PKV_SCALES_NONE) {
        return PKV_I_SCALE_NONE;
    }
    if (c->gather) {
        return PKV_I_SCALE_BACK;
    }
    return pkv_i_is_computed(c->cache, plane) ? PKV_I_SCALE_COMPUTED : PKV_I_SCALE_GIVEN;
}

/* Is there one factor for all elements of both planes? */
static bool share_factor(const pkv_i_converter *c)
{
    const pkv_i_scales *k = &c->cache->scales[0], *v = &c->cache->scales[1];
    if (scaling_of(c, 0) == PKV_I_SCALE_NONE || scaling_of(c, 1) == PKV_I_SCALE_NONE) {
        return scaling_of(c, 0) == scaling_of(c, 1);
    }
    return k->kind == PKV_SCALES_TENSOR && v->kind == PKV_SCALES_TENSOR &&
           memcmp(k->data, v->data, sizeof(float)) == 0;
}

/* K and V of each head side by side in every token. */
static bool alternate(const pkv_i_plane *k, const pkv_i_plane *v, int64_t n_heads)
{
    return v->data == k->data + k->head_bytes && v->token_stride_bytes == k->token_stride_bytes &&
           v->page_stride_bytes == k->page_stride_bytes &&
           (n_heads == 1 || (k->head_stride_bytes == k->head_bytes + v->head_bytes &&
                             v->head_stride_bytes == k->head_stride_bytes));
}

/* The source is read from its start to its end: what is side by side there is read in turns. */
static void choose_order(pkv_i_converter *c)
{
    const pkv_i_plane *k = &c->src->plane[0], *v = &c->src->plane[1];
    const bool         turns = c->dst->n_planes == 2 && alternate(k, v, c->src->n_heads);
    c->joined = turns && c->n_stage > 0 && share_factor(c) &&
                alternate(&c->stage_plane[0], &c->stage_plane[1], c->src->n_heads);
    c->in_turns = turns && !c->joined && c->src->n_heads > 1;
}

void pkv_i_convert_begin(pkv_i_converter *c, const pkv_i_view *cache, const pkv_i_view *rows,
                         bool gather, pkv_i_worker *w)
{
    c->cache = cache;
    c->src = gather ? cache : rows;
    c->dst = gather ? rows : cache;
    c->gather = gather;
    c->cast = w->kernels->cast(c->src->dtype, c->dst->dtype);
    lay_out_stage(c);
    choose_order(c);
    if (c->n_stage > 0) {
        pkv_i_view stage = {.n_pages = 1, .page_size = c->n_stage, .n_heads = c->dst->n_heads,
                            .dtype = c->dst->dtype, .n_planes = c->dst->n_planes,
                            .plane = {c->stage_plane[0], c->stage_plane[1]}};
        pkv_i_geometry_of(c->dst, &stage, &c->to_dst);
    }
    w->g = &c->to_dst;
    c->worker_gather = w->gather;
    w->gather = false; /* the stage is the rows, whatever the destination is */
    c->float_environment = pkv_i_fpenv_enter();
}

void pkv_i_convert_end(pkv_i_converter *c, pkv_i_worker *w)
{
    pkv_i_flush(w);
    w->gather = c->worker_gather;
    pkv_i_fpenv_leave(c->float_environment);
}

/* ---- vectors ------------------------------------------------------------------------- */

/* One token of one plane: its heads, as one vector where they are dense and share what they do. */
static pkv_i_vectors token_vectors(const pkv_i_converter *c, int plane, int64_t src_index,
                                   int64_t slot, char *dst, int64_t dst_head_stride_bytes)
{
    const pkv_i_plane  *src = &c->src->plane[plane];
    const pkv_i_scales *s = &c->cache->scales[plane];
    const pkv_i_scaling scaling = scaling_of(c, plane);
    const int64_t       H = c->src->n_heads, D = c->src->head_dim[plane];
    const bool shared = scaling == PKV_I_SCALE_NONE || s->kind == PKV_SCALES_TENSOR;
    const bool dense = H == 1 || (src->head_stride_bytes == src->head_bytes &&
                                  dst_head_stride_bytes == c->dst->plane[plane].head_bytes);
    pkv_i_vectors v = {.dst = dst,
                       .src = token_at(c->src, src, src_index),
                       .n_vectors = (size_t)H,
                       .n = (size_t)D,
                       .group = (size_t)D,
                       .dst_stride_bytes = (ptrdiff_t)dst_head_stride_bytes,
                       .src_stride_bytes = (ptrdiff_t)src->head_stride_bytes};
    if (scaling != PKV_I_SCALE_NONE) {
        v.scale = pkv_i_scale_at(s, slot / c->cache->page_size, slot % c->cache->page_size);
        v.scale_stride_bytes = (ptrdiff_t)s->head_stride_bytes;
        v.group = (size_t)s->group;
    }
    if (c->joined) {
        v.n_vectors = 1;
        v.n = v.group = (size_t)(H * (D + c->src->head_dim[1]));
    } else if (shared && dense) {
        v.n_vectors = 1;
        v.n = v.group = (size_t)(H * D);
    }
    return v;
}

/* K and V of a token in turns, a head of each: as they lie in the source. */
static void cast_in_turns(const pkv_i_converter *c, pkv_i_vectors v[2])
{
    for (size_t left = v[0].n_vectors; left > 0; left--) {
        for (int i = 0; i < 2; i++) {
            v[i].n_vectors = 1;
            c->cast(&v[i], scaling_of(c, i));
            v[i].dst += v[i].dst_stride_bytes;
            v[i].src += v[i].src_stride_bytes;
            if (v[i].scale != NULL) {
                v[i].scale += v[i].scale_stride_bytes;
            }
        }
    }
}

/* One token, to the stage as its number `staged`, or in its place where there is none. */
static void cast_token(const pkv_i_converter *c, int64_t src, int64_t slot, int64_t dst,
                       int64_t staged)
{
    const int     n_planes = c->joined ? 1 : c->dst->n_planes;
    pkv_i_vectors v[2];
    for (int i = 0; i < n_planes; i++) {
        const pkv_i_plane *to = c->n_stage > 0 ? &c->stage_plane[i] : &c->dst->plane[i];
        char              *at = c->n_stage > 0 ? to->data + staged * to->token_stride_bytes
                                               : token_at(c->dst, to, dst);
        v[i] = token_vectors(c, i, src, slot, at, to->head_stride_bytes);
        /* The page walk that the next stage's stores will need; where it ends may be no page. */
        __builtin_prefetch(token_at(c->dst, &c->dst->plane[i], dst) + PKV_I_STAGE_BYTES, 0, 0);
    }
    if (c->in_turns) {
        cast_in_turns(c, v);
        return;
    }
    for (int i = 0; i < n_planes; i++) {
        c->cast(&v[i], scaling_of(c, i));
    }
}

/* Tokens [from, to) of a piece, through the stage as far as it has room; how many. */
static int64_t convert_some(pkv_i_converter *c, pkv_i_worker *w, const pkv_i_piece *p, int64_t from,
                            int64_t to)
{
    const int64_t src = c->gather ? p->slot : p->row, dst = c->gather ? p->row : p->slot;
    if (c->n_stage > 0 && c->n_staged == c->n_stage) {
        pkv_i_flush(w);
        c->n_staged = 0;
    }
    int64_t n = to - from;
    if (c->n_stage > 0 && n > c->n_stage - c->n_staged) {
        n = c->n_stage - c->n_staged;
    }
    for (int64_t t = from; t < from + n; t++) {
        cast_token(c, src + t, p->slot + t, dst + t, c->n_staged + t - from);
    }
    if (c->n_stage > 0) {
        pkv_i_emit_slice(w, &(pkv_i_piece){.slot = dst + from, .row = c->n_staged, .len = n,
                                           .to = n});
        c->n_staged += n;
    }
    return n;
}

void pkv_i_convert_slice(pkv_i_converter *c, pkv_i_worker *w, const pkv_i_piece *p)
{
    for (int64_t at = p->from; at < p->to;) {
        at += convert_some(c, w, p, at, p->to);
    }
}
