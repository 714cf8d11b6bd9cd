/* Layers that pages are copied between: two caches each, and what a pair is checked for. */
#ifndef PAGEDKV_SRC_PAIRS_H
#define PAGEDKV_SRC_PAIRS_H

#include "layout.h"

/* Arrays are walked by the struct_size of their elements. */
typedef struct pkv_i_pairs {
    const pkv_cache *srcs, *dsts; /* the same: copies stay in a cache */
    const int32_t   *group_ids;
    int64_t          n_layers;
} pkv_i_pairs;

/* The arrays themselves; to be called before any of the functions below. */
pkv_status pkv_i_pairs_check(const pkv_i_pairs *p, pkv_error *err);

/* Everything about a layer but its copies and the values of given scales. */
pkv_status pkv_i_pair_check(const pkv_i_pairs *p, int64_t layer, pkv_i_view *src, pkv_i_view *dst,
                            pkv_error *err);

/* Of two dtypes that differ one is a float: an update if it is the source's, else a gather. */
bool pkv_i_pair_is_update(const pkv_i_view *src);

static inline int32_t pkv_i_pair_group(const pkv_i_pairs *p, int64_t layer)
{
    return p->group_ids != NULL ? p->group_ids[layer] : 0;
}

#endif
