/*
 * Number formats for the replay's check, by another way than the library's: in
 * double arithmetic, a number at a time.  See docs/numerics.md for the rules.
 */
#ifndef PAGEDKV_CLI_QUANT_H
#define PAGEDKV_CLI_QUANT_H

#include <pagedkv/pagedkv.h>

/* Scales that a cache of this dtype has in a replay that converts. */
int32_t quant_scales_kind(pkv_dtype cache_dtype);

/* The given scale of fp8 caches. */
float quant_given_scale(void);

/* Element i of a vector in f32, f16 or bf16; x must have an exact code there. */
void quant_put_exact(pkv_dtype dtype, double x, int64_t i, unsigned char *vector);

/*
 * What the cache must hold of a head vector of n numbers, each of them exact in
 * f32; *scale is what a computed scale must be.
 */
void quant_vector(pkv_dtype dtype, const float *x, int64_t n, unsigned char *vector, float *scale);

#endif
