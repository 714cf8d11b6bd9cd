/* The kernels compiled for the host: the same source, one thread instead of a block's. */
#include "emulated.h"

#include <string.h>

#include "../../src/cuda/cast_kernel.h"
#include "../../src/cuda/copy_kernel.h"
#include "../../src/cuda/plan_kernel.h"

/* Shared memory holds whatever was there: nothing may depend on it. */
#define MOVE(name, job_type)                                                           \
    static void run_##name(const void *job, uint32_t block, uint32_t n_blocks)         \
    {                                                                                  \
        pkv_i_tile tile;                                                               \
        memset(&tile, 0xa5, sizeof tile);                                              \
        pkv_i_block_##name((const job_type *)job, (pkv_i_grid){block, n_blocks}, &tile); \
    }
#define CAST(from, to, from_dtype, to_dtype) MOVE(cast_##from##_##to, pkv_i_cast_job)
#define PLAN(name, job_type)                                                           \
    static void run_##name(const void *job, uint32_t block, uint32_t n_blocks)         \
    {                                                                                  \
        pkv_i_plan_state state;                                                        \
        memset(&state, 0xa5, sizeof state);                                            \
        (void)block, (void)n_blocks;                                                   \
        pkv_i_block_##name((const job_type *)job, &state);                             \
    }
PKV_I_CUDA_COPIES(MOVE)
PKV_I_CASTS(CAST)
PKV_I_CUDA_PLANS(PLAN)
#undef CAST

#define ENTRY(name, job_type) {"pkv_" #name, sizeof(job_type), run_##name},
#define CAST(from, to, from_dtype, to_dtype) ENTRY(cast_##from##_##to, pkv_i_cast_job)
static const emulated_kernel kernels[] = {
    PKV_I_CUDA_COPIES(ENTRY)
    PKV_I_CASTS(CAST)
    PKV_I_CUDA_PLANS(ENTRY)
};

const emulated_kernel *emulated_find(const char *name)
{
    for (size_t i = 0; i < sizeof kernels / sizeof kernels[0]; i++) {
        if (strcmp(kernels[i].name, name) == 0) {
            return &kernels[i];
        }
    }
    return NULL;
}
