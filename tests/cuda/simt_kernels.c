/* The device's form of the kernels, for simt.h; and small ones that a device must not have. */
#include "simt.h"

#include "../../src/cuda/exec.h"

/* From here on a barrier is the place where it is called; and loops stay as they are. */
#define pkv_i_sync() __syncthreads()
#undef PKV_I_UNROLL
#define PKV_I_UNROLL

#include "../../src/cuda/cast_kernel.h"
#include "../../src/cuda/copy_kernel.h"
#include "../../src/cuda/plan_kernel.h"

_Static_assert(SIMT_THREADS == (int)PKV_I_CUDA_THREADS, "threads of a block");

#define MOVE(name, job_type)                                                                    \
    static void run_##name(const void *job, uint32_t block, uint32_t n_blocks, void *shared)    \
    {                                                                                           \
        pkv_i_wait_for_ahead();                                                                 \
        pkv_i_block_##name((const job_type *)job, (pkv_i_grid){block, n_blocks},                \
                           (pkv_i_tile *)shared);                                               \
    }
#define CAST(from, to, from_dtype, to_dtype) MOVE(cast_##from##_##to, pkv_i_cast_job)
#define PLAN(name, job_type)                                                                    \
    static void run_##name(const void *job, uint32_t block, uint32_t n_blocks, void *shared)    \
    {                                                                                           \
        (void)block, (void)n_blocks;                                                            \
        pkv_i_wait_for_ahead();                                                                 \
        pkv_i_block_##name((const job_type *)job, (pkv_i_plan_state *)shared);                  \
    }
PKV_I_CUDA_COPIES(MOVE)
PKV_I_CASTS(CAST)
PKV_I_CUDA_PLANS(PLAN)
#undef CAST

/* ---- mistakes ----------------------------------------------------------------------- */

#define MISTAKE(name) \
    static void run_##name(const void *job, uint32_t block, uint32_t n_blocks, void *shared)

/* One thread has no barrier. */
MISTAKE(leaves)
{
    (void)job, (void)block, (void)n_blocks, (void)shared;
    if (threadIdx.x != 77) {
        __syncthreads();
    }
}

/* All threads have one, but not the same. */
MISTAKE(parts)
{
    (void)job, (void)block, (void)n_blocks, (void)shared;
    if (threadIdx.x < 256) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

/* A warp names a lane that has gone. */
MISTAKE(misses)
{
    (void)job, (void)block, (void)n_blocks;
    if (threadIdx.x % 32 != 31) {
        *((uint32_t *)shared + threadIdx.x) = __shfl_xor_sync(~0u, threadIdx.x, 1u);
    }
}

/* Teams of 4 read beyond their lanes. */
MISTAKE(strays)
{
    (void)job, (void)block, (void)n_blocks;
    const uint32_t mask = 15u << (threadIdx.x & 28);
    *((uint32_t *)shared + threadIdx.x) = __shfl_xor_sync(mask, threadIdx.x, 4u);
}

#define MOVE_ENTRY(name, job_type) {"pkv_" #name, run_##name, sizeof(pkv_i_tile)},
#define CAST(from, to, from_dtype, to_dtype) MOVE_ENTRY(cast_##from##_##to, pkv_i_cast_job)
#define PLAN_ENTRY(name, job_type) {"pkv_" #name, run_##name, sizeof(pkv_i_plan_state)},
#define MISTAKE_ENTRY(name) {#name, run_##name, SIMT_THREADS * sizeof(uint32_t)},
static const simt_kernel kernels[] = {
    PKV_I_CUDA_COPIES(MOVE_ENTRY) PKV_I_CASTS(CAST) PKV_I_CUDA_PLANS(PLAN_ENTRY)
    MISTAKE_ENTRY(leaves) MISTAKE_ENTRY(parts) MISTAKE_ENTRY(misses) MISTAKE_ENTRY(strays)
};

const simt_kernel *simt_find(const char *name)
{
    for (size_t i = 0; i < sizeof kernels / sizeof kernels[0]; i++) {
        if (strcmp(kernels[i].name, name) == 0) {
            return &kernels[i];
        }
    }
    return NULL;
}
