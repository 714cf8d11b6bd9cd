/*
 * The contract of the conversions: part of kernels.h.  A conversion knows
 * vectors and their scales; where they lie in pages is the caller's business.
 */
#ifndef PAGEDKV_SRC_CPU_CAST_H
#define PAGEDKV_SRC_CPU_CAST_H

#include <stddef.h>
#include <stdint.h>

/* What happens to the scale of a group. */
typedef enum pkv_i_scaling {
    PKV_I_SCALE_NONE,     /* it is 1 */
    PKV_I_SCALE_GIVEN,    /* read; elements are multiplied by its reciprocal */
    PKV_I_SCALE_COMPUTED, /* from the elements' largest magnitude, and stored; else the same */
    PKV_I_SCALE_BACK      /* read; elements are multiplied by it */
} pkv_i_scaling;

/*
 * n_vectors vectors of n elements each, any alignment.  The float environment
 * (fpenv.h) is the caller's business.
 */
typedef struct pkv_i_vectors {
    char       *dst;
    const char *src;
    char       *scale; /* of the first vector: a float for each group */
    size_t      n_vectors;
    size_t      n;
    size_t      group; /* elements that share a scale; divides n, and is n where all do */
    ptrdiff_t   dst_stride_bytes, src_stride_bytes, scale_stride_bytes;
} pkv_i_vectors;

typedef void (*pkv_i_cast_fn)(const pkv_i_vectors *v, pkv_i_scaling scaling);

/*
 * From which pkv_dtype to which: rows of the table that every instruction set
 * fills.  Formats that are written but not read from new K/V, and the other way
 * round, have none.
 *
 *     PKV_CAST(from, to, their pkv_dtype names)
 */
#define PKV_I_CASTS(PKV_CAST)           \
    PKV_CAST(f32, f16, F32, F16)        \
    PKV_CAST(f32, bf16, F32, BF16)      \
    PKV_CAST(f32, e4m3, F32, FP8_E4M3)  \
    PKV_CAST(f32, e5m2, F32, FP8_E5M2)  \
    PKV_CAST(f32, int8, F32, INT8)      \
    PKV_CAST(f32, int4, F32, INT4)      \
    PKV_CAST(f16, f32, F16, F32)        \
    PKV_CAST(f16, bf16, F16, BF16)      \
    PKV_CAST(f16, e4m3, F16, FP8_E4M3)  \
    PKV_CAST(f16, e5m2, F16, FP8_E5M2)  \
    PKV_CAST(f16, int8, F16, INT8)      \
    PKV_CAST(f16, int4, F16, INT4)      \
    PKV_CAST(bf16, f32, BF16, F32)      \
    PKV_CAST(bf16, f16, BF16, F16)      \
    PKV_CAST(bf16, e4m3, BF16, FP8_E4M3) \
    PKV_CAST(bf16, e5m2, BF16, FP8_E5M2) \
    PKV_CAST(bf16, int8, BF16, INT8)    \
    PKV_CAST(bf16, int4, BF16, INT4)    \
    PKV_CAST(e4m3, f32, FP8_E4M3, F32)  \
    PKV_CAST(e4m3, f16, FP8_E4M3, F16)  \
    PKV_CAST(e4m3, bf16, FP8_E4M3, BF16) \
    PKV_CAST(e5m2, f32, FP8_E5M2, F32)  \
    PKV_CAST(e5m2, f16, FP8_E5M2, F16)  \
    PKV_CAST(e5m2, bf16, FP8_E5M2, BF16) \
    PKV_CAST(int8, f32, INT8, F32)      \
    PKV_CAST(int8, f16, INT8, F16)      \
    PKV_CAST(int8, bf16, INT8, BF16)    \
    PKV_CAST(int4, f32, INT4, F32)      \
    PKV_CAST(int4, f16, INT4, F16)      \
    PKV_CAST(int4, bf16, INT4, BF16)

#endif
