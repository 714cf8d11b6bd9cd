/*
 * What the library should do, written a second time in the plainest way: byte
 * by byte and token by token, straight from the formulas of pagedkv.h.
 */
#ifndef PAGEDKV_TESTS_MODEL_H
#define PAGEDKV_TESTS_MODEL_H

#include "support.h"

/* Bytes of head_dim elements. */
int64_t model_row_bytes(pkv_dtype dtype, int64_t head_dim);

/* Bytes from a plane's data to behind its last element. */
int64_t model_plane_bytes(const pkv_cache *cache, const pkv_plane *plane);

/* pkv_update() and pkv_gather(), which here do not look at anything's limits. */
void model_update(const pkv_cache *cache, const pkv_new_kv *new_kv, const pkv_slices *slices);
void model_gather(const pkv_cache *cache, const pkv_rows *rows, const pkv_slices *slices);

/* pkv_plan() of a batch that is right; appends to an empty list. */
void model_plan(const pkv_batch *batch, int64_t max_slice_tokens, slice_list *out);

/* pkv_plan_slots_i64() of a mapping that is right; appends to an empty list. */
void model_plan_slots(const int64_t *slots, int64_t n_tokens, int64_t page_size,
                      int64_t max_slice_tokens, const int32_t *query_start_loc,
                      int64_t n_requests, slice_list *out);

#endif
