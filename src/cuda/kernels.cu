/* The kernels for nvcc: each a block's work with its grid and its shared memory. */
#include "cast_kernel.h"
#include "copy_kernel.h"
#include "plan_kernel.h"

/* As few registers as let all blocks of a launch run at the same time. */
#define KERNEL                   \
    extern "C" __global__ void   \
        __launch_bounds__(PKV_I_CUDA_THREADS, PKV_I_CUDA_BLOCKS_PER_SM)
#define GRID() (pkv_i_grid{blockIdx.x, gridDim.x})

#define MOVE(name, job_type)                                                            \
    KERNEL pkv_##name(const __grid_constant__ job_type job)                             \
    {                                                                                   \
        __shared__ pkv_i_tile tile;                                                     \
        pkv_i_wait_for_ahead();                                                         \
        pkv_i_block_##name(&job, GRID(), &tile);                                        \
    }
PKV_I_CUDA_COPIES(MOVE)

#define CAST(from, to, from_dtype, to_dtype) MOVE(cast_##from##_##to, pkv_i_cast_job)
PKV_I_CASTS(CAST)

#define PLAN(name, job_type)                                                            \
    KERNEL pkv_##name(const __grid_constant__ job_type job)                             \
    {                                                                                   \
        __shared__ pkv_i_plan_state state;                                              \
        pkv_i_wait_for_ahead();                                                         \
        pkv_i_block_##name(&job, &state);                                               \
    }
PKV_I_CUDA_PLANS(PLAN)
