/* Layers that pages are copied between: see pairs.h. */
#include "pairs.h"

#include "calls.h"
#include "convert.h"
#include "scales.h"

pkv_status pkv_i_pairs_check(const pkv_i_pairs *p, pkv_error *err)
{
    if (p->n_layers < 0 || (p->n_layers > 0 && p->srcs == NULL)) {
        return pkv_i_fail(err, PKV_E_INVALID, "an array is NULL, or a number negative");
    }
    if (p->n_layers == 0) {
        return PKV_OK;
    }
    PKV_I_TRY(pkv_i_check_array(p->srcs, sizeof(pkv_cache), p->n_layers, err));
    return pkv_i_check_array(p->dsts, sizeof(pkv_cache), p->n_layers, err);
}

static pkv_status check_shapes(const pkv_i_view *src, const pkv_i_view *dst, pkv_error *err)
{
    if (src->plane[0].data == NULL || dst->plane[0].data == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "a cache has no memory");
    }
    if (src->page_size != dst->page_size || src->n_heads != dst->n_heads ||
        src->head_dim[0] != dst->head_dim[0] || src->head_dim[1] != dst->head_dim[1]) {
        return pkv_i_fail(err, PKV_E_INVALID,
                          "page_size, n_heads or head_dim of the two caches differ");
    }
    return PKV_OK;
}

/* Given scales may be the same memory; those that are written must not be read. */
static bool scales_meet(const pkv_i_view *src, const pkv_i_view *dst)
{
    for (int i = 0; i < dst->n_planes; i++) {
        const pkv_i_plane written = pkv_i_scales_span(dst, i);
        const uintptr_t   at = (uintptr_t)written.data;
        for (int j = 0; pkv_i_is_computed(dst, i) && j < src->n_planes; j++) {
            const pkv_i_plane read = pkv_i_scales_span(src, j);
            const uintptr_t   other = (uintptr_t)read.data;
            if (at < other + (uint64_t)read.span_bytes &&
                other < at + (uint64_t)written.span_bytes) {
                return true;
            }
        }
    }
    return false;
}

/* Bits can be copied where they mean the same on both sides. */
static pkv_status check_kinds(const pkv_i_view *src, const pkv_i_view *dst, pkv_error *err)
{
    for (int i = 0; i < src->n_planes; i++) {
        const int32_t kind = pkv_i_scales_kind(src, i);
        if (kind != pkv_i_scales_kind(dst, i) ||
            (kind != PKV_SCALES_NONE && src->scales[i].group != dst->scales[i].group)) {
            return pkv_i_fail(err, PKV_E_UNSUPPORTED,
                              "the scales of the two caches differ in kind");
        }
    }
    return PKV_OK;
}

bool pkv_i_pair_is_update(const pkv_i_view *src)
{
    return src->dtype <= PKV_DTYPE_BF16;
}

pkv_status pkv_i_pair_check(const pkv_i_pairs *p, int64_t layer, pkv_i_view *src, pkv_i_view *dst,
                            pkv_error *err)
{
    PKV_I_TRY(pkv_i_view_cache(pkv_i_element(p->srcs, layer), src, err));
    PKV_I_TRY(pkv_i_view_cache(pkv_i_element(p->dsts, layer), dst, err));
    PKV_I_TRY(check_shapes(src, dst, err));
    if (p->dsts != p->srcs) {
        PKV_I_TRY(pkv_i_geometry_check(src, dst, err));
        PKV_I_TRY(pkv_i_geometry_check(dst, src, err)); /* the scales of the other side too */
        if (scales_meet(src, dst)) {
            return pkv_i_fail(err, PKV_E_INVALID, "the scales of the two caches overlap");
        }
    }
    if (src->dtype == dst->dtype) {
        return check_kinds(src, dst, err);
    }
    const bool update = pkv_i_pair_is_update(src);
    return pkv_i_convert_check_dtypes(update ? dst : src, update ? src : dst, !update, err);
}
