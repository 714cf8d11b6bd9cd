/*
 * A device's words for the host, so that the kernels run as on a device: each thread of a
 * block is a thread, and the blocks of a grid run at the same time.  Then there is what one
 * thread in place of a block cannot have: barriers, races in shared memory (which the thread
 * sanitizer sees), lanes that wait for each other.
 */
#ifndef PAGEDKV_TESTS_CUDA_SIMT_H
#define PAGEDKV_TESTS_CUDA_SIMT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { SIMT_THREADS = 512 };

/* ---- to run a grid ------------------------------------------------------------------ */

typedef void (*simt_body)(const void *job, uint32_t block, uint32_t n_blocks, void *shared);

typedef struct simt_kernel {
    const char *name; /* of the symbol in the device code, as "pkv_copy_16" */
    simt_body   body;
    size_t      shared_bytes;
} simt_kernel;

/* NULL: there is no such kernel. */
const simt_kernel *simt_find(const char *name);

/* Most that a lane waits for the others of its mask. */
extern double simt_patience_s;

/*
 * Runs a grid.  False, with the reason in `why`, if the threads of a block met at different
 * barriers, or if a lane was missing where others named it.
 */
bool simt_run(const simt_kernel *kernel, const void *job, uint32_t n_blocks, char *why,
              size_t why_bytes);

/* ---- the words ---------------------------------------------------------------------- */

#define PKV_I_SIMT 1
#define __device__
#define __forceinline__ inline __attribute__((always_inline))

typedef struct uint4 {
    uint32_t x, y, z, w;
} __attribute__((aligned(16), may_alias)) uint4;
typedef struct uint2 {
    uint32_t x, y;
} __attribute__((aligned(8), may_alias)) uint2;

typedef struct simt_index {
    uint32_t x;
} simt_index;
extern _Thread_local simt_index threadIdx;

#define SIMT_TEXT(x) #x
#define SIMT_LINE(x) SIMT_TEXT(x)
#define SIMT_HERE __FILE__ ":" SIMT_LINE(__LINE__)
#define __syncthreads() simt_sync(SIMT_HERE)

#define __shfl_xor_sync(mask, value, by) \
    ((__typeof__(value))simt_shuffle(SIMT_HERE, (mask), (uint64_t)(value), simt_lane() ^ (by)))
#define __shfl_up_sync(mask, value, by) \
    ((__typeof__(value))simt_shuffle(SIMT_HERE, (mask), (uint64_t)(value), simt_lane() - (by)))

static inline uint32_t simt_lane(void)
{
    return threadIdx.x & 31;
}

/* All threads of the block, at the same place. */
void simt_sync(const char *where);

/* All lanes of the mask; x of lane `from`, or the own one if that is no lane. */
uint64_t simt_shuffle(const char *where, uint32_t mask, uint64_t x, uint32_t from);

static inline int32_t atomicCAS(int32_t *word, int32_t seen, int32_t next)
{
    (void)__atomic_compare_exchange_n(word, &seen, next, false, __ATOMIC_RELAXED,
                                      __ATOMIC_RELAXED);
    return seen;
}

#endif
