/* Number formats by their definition, and slow: see bench_numbers.h. */
#include "bench_numbers.h"

#include <math.h>
#include <string.h>

typedef struct format {
    pkv_dtype dtype;
    int       mantissa_bits;
    int       least_exponent; /* of normal numbers */
    double    most;
    bool      overflows; /* to infinity; else it saturates */
} format;

static const format formats[] = {
    {PKV_DTYPE_F16, 10, -14, 65504, true},
    {PKV_DTYPE_BF16, 7, -126, 0x1.fep127, true},
    {PKV_DTYPE_FP8_E4M3, 3, -6, 448, false},
    {PKV_DTYPE_FP8_E5M2, 2, -14, 57344, false},
};

static const format *format_of(pkv_dtype dtype)
{
    for (size_t i = 0; i < sizeof formats / sizeof formats[0]; i++) {
        if (formats[i].dtype == dtype) {
            return &formats[i];
        }
    }
    return NULL;
}

float bench_number_most(pkv_dtype dtype)
{
    const format *f = format_of(dtype);
    return f != NULL ? (float)f->most : dtype == PKV_DTYPE_INT8 ? 127.0F : 7.0F;
}

/* Sign, exponent and mantissa of a code with so many bits. */
static double from_code(const format *f, uint32_t code, int bits)
{
    uint32_t magnitude = code & ((1U << (bits - 1)) - 1);
    int      exponent = (int)(magnitude >> f->mantissa_bits);
    uint32_t mantissa = magnitude & ((1U << f->mantissa_bits) - 1);
    int      last = (1 << (bits - 1 - f->mantissa_bits)) - 1;
    bool     has_infinity = f->dtype != PKV_DTYPE_FP8_E4M3;
    double   size;

    if (exponent == last && has_infinity) {
        size = mantissa == 0 ? (double)INFINITY : (double)NAN;
    } else if (exponent == last && magnitude == 0x7f) {
        size = (double)NAN;
    } else if (exponent == 0) {
        size = ldexp(mantissa, f->least_exponent - f->mantissa_bits);
    } else {
        size = ldexp(mantissa + (1U << f->mantissa_bits),
                     f->least_exponent + exponent - 1 - f->mantissa_bits);
    }
    return copysign(size, code >> (bits - 1) != 0 ? -1.0 : 1.0);
}

double bench_number_at(pkv_dtype dtype, const char *vector, int64_t i)
{
    const format *f = format_of(dtype);
    uint16_t      two;
    float         four;

    switch (pkv_dtype_bits(dtype)) {
    case 32:
        memcpy(&four, vector + 4 * i, sizeof four);
        return (double)four;
    case 16:
        memcpy(&two, vector + 2 * i, sizeof two);
        return from_code(f, two, 16);
    case 8:
        return f != NULL ? from_code(f, (uint8_t)vector[i], 8) : (int8_t)vector[i];
    default:
        return (((uint8_t)vector[i / 2] >> 4 * (i % 2) & 0xf) ^ 8) - 8;
    }
}

double bench_number_round(pkv_dtype dtype, float x)
{
    const format *f = format_of(dtype);
    double        size = fabs((double)x), most = (double)bench_number_most(dtype);

    if (dtype == PKV_DTYPE_F32 || isnan(x)) {
        return f != NULL || dtype == PKV_DTYPE_F32 ? (double)x : 0;
    }
    if (f == NULL) {
        double whole = nearbyint((double)x);
        return whole > most ? most : whole < -most - 1 ? -most - 1 : whole;
    }
    if (size > 0 && !isinf(x)) {
        int exponent = ilogb(size) > f->least_exponent ? ilogb(size) : f->least_exponent;
        int unit = exponent - f->mantissa_bits;
        size = ldexp(nearbyint(ldexp(size, -unit)), unit);
    }
    if (size > f->most) {
        size = f->overflows ? (double)INFINITY : f->most;
    }
    return copysign(size, (double)x);
}
