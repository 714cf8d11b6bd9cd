/* What the step's metadata needs of the planner. */
#ifndef PAGEDKV_SRC_PLAN_H
#define PAGEDKV_SRC_PLAN_H

#include "internal.h"
#include "slices.h"

/* The checks of a batch that concern no single request. */
pkv_status pkv_i_check_batch(const pkv_batch *b, bool with_tables, pkv_error *err);

/*
 * Request r's table: its counts and the table are in order.  For a batch that has
 * passed pkv_i_check_batch().
 */
pkv_status pkv_i_batch_table(const pkv_batch *batch, int64_t r, const int32_t **pages,
                             int64_t *n_pages, pkv_error *err);

/* The same, and how many of the pages hold its tokens after the step: the table has them. */
pkv_status pkv_i_batch_request(const pkv_batch *batch, int64_t r, const int32_t **pages,
                               int64_t *n_touched, pkv_error *err);

/* Fails: n_pages where n_touched are needed. */
pkv_status pkv_i_fail_table(int64_t r, int64_t n_pages, int64_t n_touched, pkv_error *err);

#endif
