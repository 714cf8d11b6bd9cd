/*
 * How a cache and rows face each other, brought to as few and as long copies
 * as their strides allow.
 */
#ifndef PAGEDKV_SRC_GEOMETRY_H
#define PAGEDKV_SRC_GEOMETRY_H

#include "layout.h"

/*
 * One plane after folding: heads that lie side by side on both sides are one
 * wide head, and so are K and V.
 */
typedef struct pkv_i_lane {
    char   *cache;
    char   *rows;
    int64_t n_heads;
    int64_t head_bytes;
    int64_t cache_page_stride_bytes;
    int64_t cache_token_stride_bytes;
    int64_t cache_head_stride_bytes;
    int64_t rows_token_stride_bytes;
    int64_t rows_head_stride_bytes;
    bool    contiguous; /* tokens of a page follow each other without a gap, on both sides */
} pkv_i_lane;

typedef struct pkv_i_geometry {
    int32_t    n_lanes;
    bool       converts;       /* element types differ: the lanes are not set */
    bool       pages_adjacent; /* the first slot of page p + 1 follows the last one of page p */
    int64_t    page_size;
    int64_t    token_bytes; /* payload of one token: of the cache's side */
    pkv_i_lane lane[2];
} pkv_i_geometry;

/* Do rows and cache fit together (shapes, no overlap)?  Both have passed their own checks. */
pkv_status pkv_i_geometry_check(const pkv_i_view *cache, const pkv_i_view *rows, pkv_error *err);

/* Fills *out for views that fit together. */
void pkv_i_geometry_of(const pkv_i_view *cache, const pkv_i_view *rows, pkv_i_geometry *out);

#endif
