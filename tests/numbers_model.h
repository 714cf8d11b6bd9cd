/*
 * The rules of docs/numerics.md a second time: in double arithmetic, by searches
 * through the values of a format.  Shares nothing with the library.
 */
#ifndef PAGEDKV_TESTS_NUMBERS_MODEL_H
#define PAGEDKV_TESTS_NUMBERS_MODEL_H

#include <pagedkv/pagedkv.h>

typedef enum model_scaling {
    MODEL_ONE,      /* no scale */
    MODEL_GIVEN,    /* read; written are elements times its reciprocal */
    MODEL_COMPUTED, /* made from the elements, and stored */
    MODEL_BACK      /* read; elements times it */
} model_scaling;

/* Element i of memory, as its bits. */
uint32_t model_code(pkv_dtype dtype, const void *memory, int64_t i);
void     model_set_code(pkv_dtype dtype, void *memory, int64_t i, uint32_t code);

int32_t model_bits(pkv_dtype dtype);

/* The number that a code means, NaN and infinities too. */
double model_value(pkv_dtype dtype, uint32_t code);

/* Bits of binary32: of a code; the product of two; 1 / scale; a quotient or so, rounded. */
uint32_t model_to_f32(pkv_dtype from, uint32_t code);
uint32_t model_times(uint32_t x, uint32_t factor);
uint32_t model_reciprocal(uint32_t scale);
uint32_t model_round_f32(double x);

/* The code nearest to a binary32 number. */
uint32_t model_from_f32(pkv_dtype to, uint32_t bits);

/* The scale of n elements for a format. */
uint32_t model_scale(pkv_dtype from, const void *src, int64_t first, int64_t n, pkv_dtype to);

/* n elements in groups that share a scale; scales are binary32 side by side. */
void model_cast(pkv_dtype from, const void *src, pkv_dtype to, void *dst, int64_t n, int64_t group,
                model_scaling scaling, void *scales);

/* Is there a conversion? */
int model_converts(pkv_dtype from, pkv_dtype to);

#endif
