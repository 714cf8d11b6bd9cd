/* The memory functions of objects that the library creates: the caller's, or libc's. */
#ifndef PAGEDKV_SRC_ALLOCATOR_H
#define PAGEDKV_SRC_ALLOCATOR_H

#include "internal.h"

enum { PKV_I_ALIGN_BYTES = 64 }; /* of what is taken */

/* The next place for an array in one block of memory, aligned; *end moves behind it. */
static inline uint64_t pkv_i_place_array(uint64_t *end, uint64_t bytes)
{
    uint64_t at = (*end + PKV_I_ALIGN_BYTES - 1) / PKV_I_ALIGN_BYTES * PKV_I_ALIGN_BYTES;
    *end = at + bytes;
    return at;
}

/*
 * Takes `bytes` from `given`, or from aligned_alloc() if that is NULL; *used
 * receives what gives them back.  PKV_E_INVALID, _UNSUPPORTED or _NO_MEMORY.
 */
pkv_status pkv_i_take_memory(const pkv_allocator *given, uint64_t bytes, pkv_allocator *used,
                             void **memory, pkv_error *err);

#endif
