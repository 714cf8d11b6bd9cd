/* Views of a host buffer with all layers of a page side by side. */
#include <string.h>

#include "calls.h"
#include "layout.h"
#include "scales.h"

/* Adds n blocks of bytes to *end, which is where they lie from; false if that overflows. */
static bool add_blocks(int64_t *end, int64_t n, int64_t bytes, int64_t *at)
{
    int64_t all = 0;
    *at = *end;
    return !PKV_I_MUL(n, bytes, &all) && !PKV_I_ADD(*end, all, end);
}

/* One layer's place in a page; *end moves behind it.  Offsets stand in the data pointers. */
static bool lay_out(const pkv_cache *layer, const pkv_i_view *view, int64_t *end, pkv_cache *out)
{
    pkv_plane  *planes[2] = {&out->k, &out->v};
    pkv_scales *scales[2] = {&out->k_scales, &out->v_scales};
    int64_t     n = 0, at = 0;
    *out = *layer;
    if (PKV_I_MUL(view->page_size, view->n_heads, &n)) {
        return false;
    }
    for (int i = 0; i < view->n_planes; i++) {
        const int64_t bytes = view->plane[i].head_bytes;
        if (!add_blocks(end, n, bytes, &at)) {
            return false;
        }
        planes[i]->data = (void *)(uintptr_t)at;
        planes[i]->head_stride_bytes = bytes;
        planes[i]->token_stride_bytes = bytes * view->n_heads;
    }
    for (int i = 0; i < view->n_planes; i++) {
        const int32_t kind = view->has_scales ? view->scales[i].kind : PKV_SCALES_NONE;
        if (kind != PKV_SCALES_TOKEN_HEAD && kind != PKV_SCALES_GROUP) {
            continue;
        }
        const int64_t bytes = view->head_dim[i] / view->scales[i].group * (int64_t)sizeof(float);
        if (!add_blocks(end, n, bytes, &at)) {
            return false;
        }
        scales[i]->data = (void *)(uintptr_t)at;
        scales[i]->head_stride_bytes = bytes;
        scales[i]->token_stride_bytes = bytes * view->n_heads;
    }
    return true;
}

/* Offsets become addresses. */
static void set_place(char *buffer, int64_t page_bytes, int64_t n_pages, pkv_cache *out)
{
    pkv_plane  *planes[2] = {&out->k, &out->v};
    pkv_scales *scales[2] = {&out->k_scales, &out->v_scales};
    out->n_pages = n_pages;
    out->flags = 0;
    for (int i = 0; i < 2; i++) {
        if (i == 0 || out->v.head_dim > 0) {
            planes[i]->data = buffer == NULL ? NULL : buffer + (uintptr_t)planes[i]->data;
            planes[i]->page_stride_bytes = page_bytes;
        }
        if (scales[i]->kind == PKV_SCALES_TOKEN_HEAD || scales[i]->kind == PKV_SCALES_GROUP) {
            scales[i]->data = buffer == NULL ? NULL : buffer + (uintptr_t)scales[i]->data;
            scales[i]->page_stride_bytes = page_bytes;
        }
    }
}

pkv_status pkv_cache_swapped(pkv_cache *out, size_t struct_size, const pkv_cache *layers,
                             int64_t n_layers, void *buffer, int64_t n_pages,
                             int64_t *page_bytes_out, pkv_error *err)
{
    int64_t page_bytes = 0, all = 0;
    if (out == NULL || layers == NULL || n_layers < 1 || n_pages < 1 || page_bytes_out == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "a pointer is NULL, or a number below 1");
    }
    if (struct_size != sizeof *out) {
        return pkv_i_fail(err, PKV_E_UNSUPPORTED, "struct_size is not this library's");
    }
    PKV_I_TRY(pkv_i_check_array(layers, sizeof *layers, n_layers, err));
    for (int pass = 0; pass < 2; pass++) { /* the bytes of a page first, then the views */
        int64_t end = 0;
        for (int64_t i = 0; i < n_layers; i++) {
            const pkv_cache *layer = pkv_i_element(layers, i);
            pkv_i_view       view;
            pkv_cache        laid;
            PKV_I_TRY(pkv_i_view_cache(layer, &view, err));
            if (!lay_out(layer, &view, &end, &laid) || PKV_I_MUL(end, n_pages, &all)) {
                return pkv_i_fail(err, PKV_E_INVALID, "the buffer overflows 63 bits");
            }
            if (pass == 1) {
                laid.struct_size = sizeof laid;
                set_place(buffer, page_bytes, n_pages, &laid);
                out[i] = laid;
            }
        }
        page_bytes = end;
    }
    *page_bytes_out = page_bytes;
    return PKV_OK;
}
