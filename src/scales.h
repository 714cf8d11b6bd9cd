/* Scales of a quantised cache: where they lie, and whether those that are given can be used. */
#ifndef PAGEDKV_SRC_SCALES_H
#define PAGEDKV_SRC_SCALES_H

#include "layout.h"

/* Fills view->scales and checks them; the rest of the view has passed its checks. */
pkv_status pkv_i_scales_view(const pkv_cache *cache, pkv_i_view *view, pkv_error *err);

/* Are the scales that the caller gives finite and at least 2^-126?  Reads them. */
pkv_status pkv_i_scales_check_given(const pkv_i_view *view, pkv_error *err);

/* The memory that the scales of a plane span; 0 bytes: there are none. */
pkv_i_plane pkv_i_scales_span(const pkv_i_view *view, int plane);

static inline int32_t pkv_i_scales_kind(const pkv_i_view *view, int plane)
{
    return view->has_scales ? view->scales[plane].kind : PKV_SCALES_NONE;
}

/* Are they made from the elements on write, and lie beside each token? */
static inline bool pkv_i_is_computed(const pkv_i_view *view, int plane)
{
    const int32_t kind = pkv_i_scales_kind(view, plane);
    return kind == PKV_SCALES_TOKEN_HEAD || kind == PKV_SCALES_GROUP;
}

static inline char *pkv_i_scale_at(const pkv_i_scales *s, int64_t page, int64_t token)
{
    return s->data + page * s->page_stride_bytes + token * s->token_stride_bytes;
}

#endif
