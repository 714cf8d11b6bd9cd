/*
 * One form for every view: a cache has P pages of S tokens; new K/V and gathered
 * rows are one page of T tokens.  All checks of views live here.
 */
#ifndef PAGEDKV_SRC_LAYOUT_H
#define PAGEDKV_SRC_LAYOUT_H

#include "internal.h"

typedef struct pkv_i_plane {
    char   *data; /* of new K/V too, which is never written through it */
    int64_t page_stride_bytes;
    int64_t token_stride_bytes;
    int64_t head_stride_bytes;
    int64_t head_bytes; /* bytes of one head vector */
    int64_t span_bytes; /* from data to behind the last element */
} pkv_i_plane;

/* The scales of a plane; strides of axes that share a scale are 0. */
typedef struct pkv_i_scales {
    char   *data;
    int64_t page_stride_bytes;
    int64_t token_stride_bytes;
    int64_t head_stride_bytes;
    int64_t group; /* elements that share one */
    int32_t kind;  /* PKV_SCALES_* */
} pkv_i_scales;

typedef struct pkv_i_view {
    int64_t     n_pages;
    int64_t     page_size;
    int64_t     n_heads;
    int64_t     head_dim[2];
    pkv_dtype   dtype;
    uint32_t    flags;
    int32_t     n_planes; /* 1: K only, 2: K and V */
    bool         has_scales;
    pkv_i_plane  plane[2];
    pkv_i_scales scales[2]; /* of a cache; set where has_scales */
} pkv_i_view;

/* Check a public view and bring it into that form.  *out is valid after PKV_OK only. */
pkv_status pkv_i_view_cache(const pkv_cache *cache, pkv_i_view *out, pkv_error *err);
pkv_status pkv_i_view_new_kv(const pkv_new_kv *new_kv, pkv_i_view *out, pkv_error *err);
pkv_status pkv_i_view_rows(const pkv_rows *rows, pkv_i_view *out, pkv_error *err);

/*
 * For planes that are not K or V: fills span_bytes, of blocks of head_bytes each on
 * the axes of these sizes.  NULL, or what is wrong: two blocks share a byte.
 */
const char *pkv_i_plane_check(const int64_t sizes[3], pkv_i_plane *plane);

/* Do blocks of two planes share a byte?  Sizes: pages, tokens of a page, heads. */
bool pkv_i_planes_meet(const int64_t a_sizes[3], const pkv_i_plane *a, const int64_t b_sizes[3],
                       const pkv_i_plane *b);

/* Bytes of `elements` items, -1 if that is no whole number of bytes or overflows. */
int64_t pkv_i_dtype_bytes(pkv_dtype dtype, int64_t elements);

#endif
