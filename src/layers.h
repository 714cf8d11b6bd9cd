/* The layers of one call: arrays of the caller's structs, and what every layer is checked for. */
#ifndef PAGEDKV_SRC_LAYERS_H
#define PAGEDKV_SRC_LAYERS_H

#include "layout.h"

/* Arrays are walked by the struct_size of their elements. */
typedef struct pkv_i_layers {
    const pkv_cache  *caches;
    const void       *rows; /* pkv_new_kv for an update, pkv_rows for a gather */
    const int32_t    *group_ids;
    int64_t           n_layers;
    const pkv_slices *groups;
    int64_t           n_groups;
    bool              gather;
} pkv_i_layers;

/* The arrays themselves; to be called before any of the functions below. */
pkv_status pkv_i_layers_check(const pkv_i_layers *l, pkv_error *err);

/* Views of a layer that is in order, or what is wrong with one of them. */
pkv_status pkv_i_layer_views(const pkv_i_layers *l, int64_t layer, pkv_i_view *cache,
                             pkv_i_view *rows, pkv_error *err);

/*
 * Everything about a layer but its slices and the values of given scales: group id, views,
 * shapes that fit, memory apart, dtypes between which there is a way.
 */
pkv_status pkv_i_layer_check(const pkv_i_layers *l, int64_t layer, pkv_i_view *cache,
                             pkv_i_view *rows, pkv_error *err);

/* Of the layer's group; it has one that is in order. */
const pkv_slices *pkv_i_layer_slices(const pkv_i_layers *l, int64_t layer);

/* An update leaves a shared layer alone; a gather reads it. */
static inline bool pkv_i_layer_skipped(const pkv_i_layers *l, const pkv_i_view *cache)
{
    return !l->gather && (cache->flags & PKV_CACHE_SHARED) != 0;
}

/* Names the layer of a failure, where there are several; returns status. */
static inline pkv_status pkv_i_fail_layer(pkv_status status, int64_t layer, int64_t n_layers,
                                          pkv_error *err)
{
    if (status != PKV_OK && err != NULL && n_layers > 1) {
        err->layer = layer;
    }
    return status;
}

#endif
