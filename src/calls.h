/* What the calls that move data share: options, and arrays of the caller's structs. */
#ifndef PAGEDKV_SRC_CALLS_H
#define PAGEDKV_SRC_CALLS_H

#include "internal.h"

/* Fills *out; opts may be NULL. */
pkv_status pkv_i_check_opts(const pkv_update_opts *opts, pkv_update_opts *out, pkv_error *err);

/*
 * The first struct of an array gives the distance to the next, so it is checked
 * before the array is walked; each element is checked again when it is read.
 */
pkv_status pkv_i_check_array(const void *array, size_t bytes, int64_t n, pkv_error *err);

static inline const void *pkv_i_element(const void *array, int64_t i)
{
    const size_t *struct_size = array;
    return (const char *)array + (size_t)i * *struct_size;
}

/* Past the processor's cache?  docs/benchmarking.md has the figures. */
bool pkv_i_wants_streaming(const pkv_update_opts *opts, int64_t payload_bytes);

#endif
