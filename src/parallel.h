/* Running the parts of one call: the caller's threads, OpenMP, or a loop. */
#ifndef PAGEDKV_SRC_PARALLEL_H
#define PAGEDKV_SRC_PARALLEL_H

#include "internal.h"

/* In how many parts to divide a payload; 1 if dividing does not pay. */
int32_t pkv_i_parts(const pkv_update_opts *opts, int64_t payload_bytes);

/* Runs body(ctx, p) for each p in 0..n_parts-1 and returns when all are done. */
void pkv_i_parallel(const pkv_update_opts *opts, int32_t n_parts, pkv_parallel_body body,
                    void *ctx);

/* Where part `part` of n_parts begins, of n things: the product cannot overflow. */
static inline int64_t pkv_i_part_begin(int64_t n, int32_t n_parts, int32_t part)
{
    return n / n_parts * part + n % n_parts * part / n_parts;
}

#endif
