/* Scales: see scales.h. */
#include "scales.h"

#include <string.h>

static bool is_given(int32_t kind)
{
    return kind == PKV_SCALES_TENSOR || kind == PKV_SCALES_HEAD;
}

/* As a plane whose blocks are the scales of a head vector; an axis that shares one has no steps. */
static pkv_i_plane as_plane(const pkv_i_view *view, int which, int64_t sizes[3])
{
    const pkv_i_scales *s = &view->scales[which];
    const bool          each = !is_given(s->kind);
    sizes[0] = each ? view->n_pages : 1;
    sizes[1] = each ? view->page_size : 1;
    sizes[2] = s->kind == PKV_SCALES_TENSOR ? 1 : view->n_heads;
    return (pkv_i_plane){.data = s->data,
                         .page_stride_bytes = s->page_stride_bytes,
                         .token_stride_bytes = s->token_stride_bytes,
                         .head_stride_bytes = s->head_stride_bytes,
                         .head_bytes = (int64_t)sizeof(float) *
                                       (view->head_dim[which] / s->group)};
}

static const char *check_kind(const pkv_i_view *view, int which, const pkv_scales *given)
{
    const int64_t bits = pkv_dtype_bits(view->dtype);
    if (view->dtype < PKV_DTYPE_FP8_E4M3 || view->dtype > PKV_DTYPE_INT4) {
        return "scales are for fp8, int8 and int4";
    }
    if (given->data == NULL && view->plane[0].data != NULL) { /* else it is being sized */
        return "scales without data";
    }
    const bool by_group = given->kind == PKV_SCALES_GROUP;
    if (by_group ? given->group_size < 1 || view->head_dim[which] % given->group_size != 0
                 : given->group_size != 0) {
        return "group_size does not divide head_dim, or is set without groups";
    }
    return by_group && given->group_size * bits % 8 != 0 ? "group_size makes no whole bytes" : NULL;
}

static void fill(const pkv_i_view *view, int which, const pkv_scales *given, pkv_i_scales *out)
{
    const bool each = !is_given(given->kind);
    *out = (pkv_i_scales){.data = given->data, .kind = given->kind,
                          .group = view->head_dim[which]};
    out->page_stride_bytes = each ? given->page_stride_bytes : 0;
    out->token_stride_bytes = each ? given->token_stride_bytes : 0;
    out->head_stride_bytes = given->kind == PKV_SCALES_TENSOR ? 0 : given->head_stride_bytes;
    if (given->kind == PKV_SCALES_GROUP) {
        out->group = given->group_size;
    }
}

/* Scales that are written must share no byte with elements or with each other. */
static const char *check_apart(const pkv_i_view *view, int which)
{
    const int64_t sizes[3] = {view->n_pages, view->page_size, view->n_heads};
    int64_t       own_sizes[3], other_sizes[3];
    pkv_i_plane   own = as_plane(view, which, own_sizes);
    const char   *wrong = pkv_i_plane_check(own_sizes, &own);
    if (wrong != NULL) {
        return "a stride of the scales is negative or too small, or they overflow";
    }
    if (own.data == NULL) {
        return NULL;
    }
    for (int i = 0; i < view->n_planes; i++) {
        if (view->plane[i].data != NULL &&
            pkv_i_planes_meet(own_sizes, &own, sizes, &view->plane[i])) {
            return "scales and elements overlap";
        }
    }
    if (which == 0 || view->scales[0].kind == PKV_SCALES_NONE) {
        return NULL;
    }
    pkv_i_plane other = as_plane(view, 0, other_sizes);
    (void)pkv_i_plane_check(other_sizes, &other);
    bool same_given = is_given(view->scales[0].kind) && is_given(view->scales[1].kind);
    return !same_given && pkv_i_planes_meet(own_sizes, &own, other_sizes, &other)
               ? "scales of K and of V overlap"
               : NULL;
}

pkv_status pkv_i_scales_view(const pkv_cache *cache, pkv_i_view *view, pkv_error *err)
{
    const pkv_scales *given[2] = {&cache->k_scales, &cache->v_scales};
    for (int i = 0; i < 2; i++) {
        view->scales[i] = (pkv_i_scales){.kind = PKV_SCALES_NONE};
        if (i >= view->n_planes || given[i]->kind == PKV_SCALES_NONE) {
            continue;
        }
        const char *wrong = check_kind(view, i, given[i]);
        if (wrong == NULL) {
            fill(view, i, given[i], &view->scales[i]);
            wrong = check_apart(view, i);
        }
        if (wrong != NULL) {
            return pkv_i_fail(err, PKV_E_INVALID, wrong);
        }
    }
    return PKV_OK;
}

pkv_i_plane pkv_i_scales_span(const pkv_i_view *view, int plane)
{
    int64_t sizes[3];
    if (!view->has_scales || view->scales[plane].kind == PKV_SCALES_NONE) {
        return (pkv_i_plane){0};
    }
    pkv_i_plane p = as_plane(view, plane, sizes);
    (void)pkv_i_plane_check(sizes, &p);
    return p;
}

pkv_status pkv_i_scales_check_given(const pkv_i_view *view, pkv_error *err)
{
    for (int i = 0; i < view->n_planes; i++) {
        const pkv_i_scales *s = &view->scales[i];
        if (!view->has_scales || !is_given(s->kind)) {
            continue;
        }
        for (int64_t h = 0; h < (s->kind == PKV_SCALES_HEAD ? view->n_heads : 1); h++) {
            uint32_t bits;
            memcpy(&bits, s->data + h * s->head_stride_bytes, sizeof bits);
            if (bits < 0x00800000 || bits >= 0x7f800000) { /* 2^-126 and infinity */
                return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_SCALE, h, i, 0,
                                     "a scale is not finite or below 2^-126 (value 0: K, 1: V)");
            }
        }
    }
    return PKV_OK;
}
