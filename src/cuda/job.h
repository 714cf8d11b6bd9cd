/*
 * The contract of the CUDA kernels: what the host hands to one launch, by value.  In the
 * common part of C and C++, since the kernels are compiled as both (exec.h).  A job knows
 * strides and lists; no views, no pool.
 */
#ifndef PAGEDKV_SRC_CUDA_JOB_H
#define PAGEDKV_SRC_CUDA_JOB_H

#include <pagedkv/pagedkv_cuda.h>

#include "../cpu/cast.h"

enum {
    PKV_I_CUDA_THREADS = 512,      /* of a block */
    PKV_I_CUDA_BLOCKS_PER_SM = 2,  /* of a launch; a plan has one block in all */
    PKV_I_CUDA_TILE = 1024,        /* entries of a list that a block looks at in one go */
    PKV_I_CUDA_LAYERS = 64         /* of a launch: parameters have 4 KiB in all */
};

/* To divide 0 <= x < 2^31 by a constant: x * magic >> shift.  by 0: there is nothing to divide. */
typedef struct pkv_i_divisor {
    uint32_t by, magic, shift;
} pkv_i_divisor;

/* Bytes from one page, token and head of a plane to the next. */
typedef struct pkv_i_steps {
    int64_t page, token, head;
} pkv_i_steps;

/*
 * What is to be moved.  Entry i < *count moves tokens between slot cache_start[i] of the
 * cache and row rows_start[i] of the rows; or, where copies is set, between the pages of
 * copies[i], if it is of this group: the cache is then the destination and the rows are
 * pages of the source.
 */
typedef struct pkv_i_list {
    const int32_t       *cache_start, *rows_start, *len;
    const pkv_page_copy *copies;
    const int32_t       *count;
    int32_t             *status; /* or NULL */
    int64_t              capacity;
    int64_t              cache_limit, rows_limit; /* slots and rows; of copies: pages */
    int64_t              page_tokens;             /* most that a copy may have */
    pkv_i_divisor        cache_page; /* tokens of a page; by 0: all is one */
    int32_t              group;
    uint32_t             n_layers;
    uint32_t             reserved;
} pkv_i_list;

/* Planes of one layer. */
typedef struct pkv_i_job_layer {
    char *cache[2], *rows[2], *scales[2];
} pkv_i_job_layer;

/* One plane, or both where they lie side by side, in vectors of as many bytes as the kernel's. */
typedef struct pkv_i_copy_lane {
    pkv_i_steps   cache, rows;
    uint32_t      n_vectors; /* of a token */
    pkv_i_divisor head_vectors;
} pkv_i_copy_lane;

typedef struct pkv_i_copy_job {
    pkv_i_list      list;
    uint32_t        gather; /* from the cache to the rows, else the other way */
    uint32_t        n_lanes;
    uint32_t        token_vectors; /* of all lanes, below 2^31 */
    uint32_t        step_tokens, step_vectors; /* 32 vectors on: so many tokens and vectors */
    uint32_t        reserved;
    pkv_i_copy_lane lane[2];
    pkv_i_job_layer layer[PKV_I_CUDA_LAYERS];
} pkv_i_copy_job;

/* Vectors of a plane, cut into units that share one scale. */
typedef struct pkv_i_cast_plane {
    pkv_i_steps   cache, rows, scales;
    uint32_t      group;   /* elements that share a scale */
    uint32_t      unit;    /* elements of a unit: a group, or pieces of one if no scale is made */
    uint32_t      n_units; /* of a token, of all its heads */
    int32_t       scaling; /* pkv_i_scaling */
    uint32_t      given;   /* the scale is the caller's, and may be none to use */
    uint32_t      reserved;
    pkv_i_divisor head_units, group_units;
} pkv_i_cast_plane;

typedef struct pkv_i_cast_job {
    pkv_i_list       list;
    uint32_t         gather;
    uint32_t         n_planes;
    uint32_t         token_units; /* of all planes, below 2^31 */
    uint32_t         team;           /* lanes that work on a unit: a power of two up to 32 */
    uint32_t         scales_by_rows; /* of a copy of pages: the scales are the source's */
    uint32_t         reserved;
    pkv_i_cast_plane plane[2];
    pkv_i_job_layer  layer[PKV_I_CUDA_LAYERS];
} pkv_i_cast_job;

/* A plan from a slot a token (slots32 or slots64), or from requests and their pages. */
typedef struct pkv_i_plan_job {
    const int32_t *slots32;
    const int64_t *slots64;
    const int32_t *num_tokens; /* or NULL */
    const int32_t *context_lens, *block_table;
    const int32_t *query_start_loc, *num_seqs; /* may be NULL with slots */
    int64_t        n_tokens;
    int64_t        max_num_reqs, table_stride, table_width;
    int64_t        page_size, n_pages;
    int64_t        n_slots; /* the first slot that is out of bounds */
    int32_t       *cache_start, *rows_start, *len, *num_slices;
    int64_t        capacity;
    int32_t       *status;
    uint32_t       exact; /* slices end at page ends */
    uint32_t       reserved;
} pkv_i_plan_job;

/* All kernels: copies by the bytes of a vector, conversions, plans.  X(name, job's type) */
#define PKV_I_CUDA_COPIES(X) \
    X(copy_16, pkv_i_copy_job) X(copy_8, pkv_i_copy_job) X(copy_4, pkv_i_copy_job) \
    X(copy_2, pkv_i_copy_job) X(copy_1, pkv_i_copy_job)
#define PKV_I_CUDA_PLANS(X) X(plan_pages, pkv_i_plan_job) X(plan_slots, pkv_i_plan_job)

#define PKV_I_CUDA_ID(name, job) PKV_I_CUDA_##name,
#define PKV_I_CUDA_CAST_ID(from, to, from_dtype, to_dtype) PKV_I_CUDA_cast_##from##_##to,
enum {
    PKV_I_CUDA_COPIES(PKV_I_CUDA_ID)
    PKV_I_CUDA_PLANS(PKV_I_CUDA_ID)
    PKV_I_CASTS(PKV_I_CUDA_CAST_ID)
    PKV_I_CUDA_KERNELS
};
#undef PKV_I_CUDA_ID
#undef PKV_I_CUDA_CAST_ID

#endif
