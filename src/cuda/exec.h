/*
 * The words that the kernels are written in, so that one source runs on a device and on
 * the host.  A kernel works through its block in phases: a loop over the block's threads,
 * or over its teams and their lanes, then a barrier.  On a device each thread takes its own
 * turn of such a loop; on the host one thread takes all turns, one after another.
 */
#ifndef PAGEDKV_SRC_CUDA_EXEC_H
#define PAGEDKV_SRC_CUDA_EXEC_H

#include <string.h>

#include "job.h"

typedef struct pkv_i_grid {
    uint32_t block, n_blocks;
} pkv_i_grid;

#if defined(__CUDACC__) || defined(PKV_I_SIMT) /* a device, or a test with all its threads */

#define PKV_I_DEVICE static __device__ __forceinline__
#define PKV_I_UNROLL _Pragma("unroll")
#define PKV_I_TURNS(var, mine, all) for (uint32_t var = (mine), once_##var = 1; once_##var; \
                                         once_##var = 0)
#define PKV_I_LANE(width) (threadIdx.x & ((width) - 1))

typedef uint4    pkv_i_vec16;
typedef uint2    pkv_i_vec8;
typedef uint32_t pkv_i_vec4;
typedef uint16_t pkv_i_vec2;
typedef uint8_t  pkv_i_vec1;

PKV_I_DEVICE void pkv_i_sync(void)
{
    __syncthreads();
}

/* What the kernel ahead wrote is there from here on; and the kernel behind may start. */
PKV_I_DEVICE void pkv_i_wait_for_ahead(void)
{
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

/* The largest of a team's lanes, to each of them.  All lanes of the team are here. */
PKV_I_DEVICE uint32_t pkv_i_team_max(uint32_t x, uint32_t width)
{
    const uint32_t first = (threadIdx.x & 31) & ~(width - 1);
    const uint32_t mask = width == 32 ? ~0u : ((1u << width) - 1) << first;
    for (uint32_t i = width / 2; i > 0; i /= 2) {
        const uint32_t other = __shfl_xor_sync(mask, x, i);
        x = other > x ? other : x;
    }
    return x;
}

/*
 * values[t], of the block's threads, become the sums of those before.  `sums` has room for a
 * number of each warp.  A thread may read its own value when it returns; the others', and call
 * this again, after a barrier.
 */
PKV_I_DEVICE void pkv_i_block_scan(int64_t *values, int64_t *sums)
{
    const uint32_t lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    const int64_t  own = values[threadIdx.x];
    int64_t        upto = own, before = 0;
    for (uint32_t i = 1; i < 32; i *= 2) {
        const int64_t other = __shfl_up_sync(~0u, upto, i);
        upto += lane >= i ? other : 0;
    }
    if (lane == 31) {
        sums[warp] = upto;
    }
    __syncthreads();
    for (uint32_t w = 0; w < PKV_I_CUDA_THREADS / 32; w++) {
        before += w < warp ? sums[w] : 0;
    }
    values[threadIdx.x] = before + upto - own;
}

PKV_I_DEVICE float pkv_i_multiply(float a, float b)
{
    return a * b;
}

/* *word = next if it is still `seen`; what it was. */
PKV_I_DEVICE int32_t pkv_i_swap_if(int32_t *word, int32_t seen, int32_t next)
{
    return atomicCAS(word, seen, next);
}

#else /* the host */

#define PKV_I_DEVICE static inline
#define PKV_I_UNROLL
#define PKV_I_TURNS(var, mine, all) for (uint32_t var = 0; var < (all); var++)
#define PKV_I_LANE(width) 0

/* Aligned as on a device, so that a sanitizer sees what would be a fault there. */
typedef struct pkv_i_vec16 {
    uint32_t x, y, z, w;
} __attribute__((aligned(16), may_alias)) pkv_i_vec16;
typedef struct pkv_i_vec8 {
    uint32_t x, y;
} __attribute__((aligned(8), may_alias)) pkv_i_vec8;
typedef uint32_t __attribute__((may_alias)) pkv_i_vec4;
typedef uint16_t __attribute__((may_alias)) pkv_i_vec2;
typedef uint8_t pkv_i_vec1;

PKV_I_DEVICE void pkv_i_sync(void)
{
}

PKV_I_DEVICE void pkv_i_wait_for_ahead(void)
{
}

PKV_I_DEVICE uint32_t pkv_i_team_max(uint32_t x, uint32_t width)
{
    (void)width;
    return x;
}

PKV_I_DEVICE void pkv_i_block_scan(int64_t *values, int64_t *sums)
{
    int64_t all = 0;
    (void)sums;
    for (uint32_t t = 0; t < PKV_I_CUDA_THREADS; t++) {
        const int64_t own = values[t];
        values[t] = all;
        all += own;
    }
}

/* As a device multiplies: a NaN loses its sign and its payload. */
PKV_I_DEVICE float pkv_i_multiply(float a, float b)
{
    const uint32_t nan = 0x7fffffff;
    float          product = a * b;
    if (product != product) {
        memcpy(&product, &nan, sizeof product);
    }
    return product;
}

PKV_I_DEVICE int32_t pkv_i_swap_if(int32_t *word, int32_t seen, int32_t next)
{
    const int32_t was = *word;
    *word = was == seen ? next : was;
    return was;
}

#endif

#define PKV_I_EACH_THREAD(t) PKV_I_TURNS(t, threadIdx.x, PKV_I_CUDA_THREADS)
/* Teams of `width` threads, a power of two up to 32. */
#define PKV_I_EACH_TEAM(team, width) \
    PKV_I_TURNS(team, threadIdx.x / (width), PKV_I_CUDA_THREADS / (width))
#define PKV_I_EACH_LANE(lane, width) PKV_I_TURNS(lane, PKV_I_LANE(width), width)

/* ---- arithmetic --------------------------------------------------------------------- */

/* x / d for 0 <= x < 2^31 */
PKV_I_DEVICE uint32_t pkv_i_divide(uint32_t x, pkv_i_divisor d)
{
    return (uint32_t)((uint64_t)x * d.magic >> d.shift);
}

/* Divisions of 64 bits are long on a device; most numbers fit 32. */
PKV_I_DEVICE uint64_t pkv_i_divide_long(uint64_t x, uint64_t by, uint64_t *rest)
{
    if (((x | by) >> 32) == 0) {
        *rest = (uint32_t)x % (uint32_t)by;
        return (uint32_t)x / (uint32_t)by;
    }
    *rest = x % by;
    return x / by;
}

/* ---- faults ------------------------------------------------------------------------- */

/* Sets bits of a status word and adds skipped slices, as far as there is room for them. */
PKV_I_DEVICE void pkv_i_tell(int32_t *status, int32_t bits, uint64_t n_skipped)
{
    const int32_t most = PKV_CUDA_FAULT_SLICES;
    if (status == NULL || (bits == 0 && n_skipped == 0)) {
        return;
    }
    int32_t seen, found = pkv_i_swap_if(status, 0, 0);
    do {
        seen = found;
        const int32_t room = most - (seen & most);
        const int32_t more = n_skipped < (uint64_t)room ? (int32_t)n_skipped : room;
        found = pkv_i_swap_if(status, seen, (seen + more) | bits);
    } while (found != seen);
}

#endif
