/* Numbers for the check: see quant.h. */
#include "quant.h"

#include <math.h>
#include <stdbool.h>
#include <string.h>

/* A float format: bits of exponent and mantissa, and the largest code of a magnitude. */
typedef struct format {
    int exponent_bits, mantissa_bits, most;
} format;

static format format_of(pkv_dtype dtype)
{
    switch (dtype) {
    case PKV_DTYPE_F32: return (format){8, 23, 0x7f800000};
    case PKV_DTYPE_F16: return (format){5, 10, 0x7c00};
    case PKV_DTYPE_BF16: return (format){8, 7, 0x7f80};
    case PKV_DTYPE_FP8_E4M3: return (format){4, 3, 0x7e};
    default: return (format){5, 2, 0x7b};
    }
}

static bool is_integer(pkv_dtype dtype)
{
    return dtype == PKV_DTYPE_INT8 || dtype == PKV_DTYPE_INT4;
}

/* The code of a finite number, to nearest even: an exponent, and how many steps of it fit. */
static uint32_t float_code(format f, double x)
{
    const int    bias = (1 << (f.exponent_bits - 1)) - 1;
    const double size = fabs(x);
    int          exponent = 0;
    frexp(size, &exponent); /* size in [2^(exponent-1), 2^exponent) */
    exponent = size == 0 || exponent - 1 < 1 - bias ? 1 - bias : exponent - 1;
    double   steps = nearbyint(ldexp(size, f.mantissa_bits - exponent));
    uint32_t field = (uint32_t)(exponent + bias);
    /* A normal number's steps hold the leading one, which counts as one of the exponent. */
    double code = (double)((uint64_t)(field - 1) << f.mantissa_bits) + steps;
    code = code < f.most ? code : f.most;
    uint32_t sign = signbit(x) ? (uint32_t)1 << (f.exponent_bits + f.mantissa_bits) : 0;
    return (uint32_t)code | sign;
}

static uint32_t integer_code(pkv_dtype dtype, double x)
{
    const double most = dtype == PKV_DTYPE_INT8 ? 127 : 7;
    double       whole = nearbyint(x);
    whole = whole > most ? most : whole < -most - 1 ? -most - 1 : whole;
    return (uint32_t)(int32_t)whole;
}

static void put_code(pkv_dtype dtype, uint32_t code, int64_t i, unsigned char *vector)
{
    const int bits = pkv_dtype_bits(dtype);
    if (bits == 4) {
        unsigned char *byte = &vector[i / 2];
        *byte = (unsigned char)(i % 2 == 0 ? (code & 0xf) : (*byte | code << 4));
        return;
    }
    for (int b = 0; b < bits / 8; b++) { /* the low byte first, as machines with a kernel do */
        vector[i * bits / 8 + b] = (unsigned char)(code >> 8 * b);
    }
}

void quant_put_exact(pkv_dtype dtype, double x, int64_t i, unsigned char *vector)
{
    if (dtype != PKV_DTYPE_F16) { /* float's bits, or the upper half of them */
        const float exact = (float)x;
        uint32_t    bits;
        memcpy(&bits, &exact, sizeof bits);
        put_code(dtype, dtype == PKV_DTYPE_BF16 ? bits >> 16 : bits, i, vector);
        return;
    }
    put_code(dtype, float_code(format_of(dtype), x), i, vector);
}

int32_t quant_scales_kind(pkv_dtype cache_dtype)
{
    return is_integer(cache_dtype)                  ? PKV_SCALES_TOKEN_HEAD
           : pkv_dtype_bits(cache_dtype) == 8       ? PKV_SCALES_TENSOR
                                                    : PKV_SCALES_NONE;
}

float quant_given_scale(void)
{
    return 0.01f;
}

void quant_vector(pkv_dtype dtype, const float *x, int64_t n, unsigned char *vector, float *scale)
{
    const int32_t kind = quant_scales_kind(dtype);
    *scale = kind == PKV_SCALES_TENSOR ? quant_given_scale() : 1.0f;
    if (kind == PKV_SCALES_TOKEN_HEAD) {
        float largest = 0;
        for (int64_t i = 0; i < n; i++) {
            largest = fabsf(x[i]) > largest ? fabsf(x[i]) : largest;
        }
        *scale = largest > 0 ? largest / (dtype == PKV_DTYPE_INT8 ? 127.0f : 7.0f) : 1.0f;
    }
    const volatile float factor = 1.0f / *scale; /* rounded to float, whatever the machine does */
    for (int64_t i = 0; i < n; i++) {
        const volatile float product = x[i] * factor;
        put_code(dtype,
                 is_integer(dtype) ? integer_code(dtype, product)
                                   : float_code(format_of(dtype), product),
                 i, vector);
    }
}
