/* What the step's metadata needs of the planner. */
#ifndef PAGEDKV_SRC_PLAN_H
#define PAGEDKV_SRC_PLAN_H

#include "internal.h"
#include "slices.h"

/*
 * The pages that hold request r's tokens after the step, and how many they are.
 * For a batch that pkv_plan() has accepted.
 */
pkv_status pkv_i_batch_request(const pkv_batch *batch, int64_t r, const int32_t **pages,
                               int64_t *n_touched, pkv_error *err);

#endif
