/* See numbers_model.h. */
#include "numbers_model.h"

#include <math.h>
#include <string.h>

/* ---- formats ----------------------------------------------------------------------------- */

/* Float formats: mantissa and exponent bits; `largest` is the code of the largest number. */
typedef struct format {
    int      mantissa, exponent;
    uint32_t largest;
    int      saturates;
} format;

static format format_of(pkv_dtype dtype)
{
    switch (dtype) {
    case PKV_DTYPE_F32:
        return (format){23, 8, 0x7F7FFFFF, 0};
    case PKV_DTYPE_F16:
        return (format){10, 5, 0x7BFF, 0};
    case PKV_DTYPE_BF16:
        return (format){7, 8, 0x7F7F, 0};
    case PKV_DTYPE_FP8_E4M3:
        return (format){3, 4, 0x7E, 1};
    default: /* PKV_DTYPE_FP8_E5M2 */
        return (format){2, 5, 0x7B, 1};
    }
}

static int is_integer(pkv_dtype dtype)
{
    return dtype == PKV_DTYPE_INT8 || dtype == PKV_DTYPE_INT4;
}

int32_t model_bits(pkv_dtype dtype)
{
    if (is_integer(dtype)) {
        return dtype == PKV_DTYPE_INT8 ? 8 : 4;
    }
    const format f = format_of(dtype);
    return 1 + f.exponent + f.mantissa;
}

int model_converts(pkv_dtype from, pkv_dtype to)
{
    const int from_float = from >= PKV_DTYPE_F32 && from <= PKV_DTYPE_BF16;
    const int to_float = to >= PKV_DTYPE_F32 && to <= PKV_DTYPE_BF16;
    return from != to && from >= PKV_DTYPE_F32 && to >= PKV_DTYPE_F32 && from <= PKV_DTYPE_INT4 &&
           to <= PKV_DTYPE_INT4 && (from_float || to_float);
}

/* Little-endian, as the machines that the library runs on. */
uint32_t model_code(pkv_dtype dtype, const void *memory, int64_t i)
{
    const unsigned char *bytes = memory;
    uint32_t             code = 0;
    if (dtype == PKV_DTYPE_INT4) {
        return i % 2 == 0 ? bytes[i / 2] & 0xFu : bytes[i / 2] >> 4;
    }
    const int64_t n = model_bits(dtype) / 8;
    for (int64_t b = 0; b < n; b++) {
        code |= (uint32_t)bytes[i * n + b] << 8 * b;
    }
    return code;
}

void model_set_code(pkv_dtype dtype, void *memory, int64_t i, uint32_t code)
{
    unsigned char *bytes = memory;
    if (dtype == PKV_DTYPE_INT4) {
        bytes[i / 2] = (unsigned char)(i % 2 == 0 ? (bytes[i / 2] & 0xF0u) | code
                                                  : (bytes[i / 2] & 0x0Fu) | code << 4);
        return;
    }
    const int64_t n = model_bits(dtype) / 8;
    for (int64_t b = 0; b < n; b++) {
        bytes[i * n + b] = (unsigned char)(code >> 8 * b);
    }
}

/* The value of a code without its sign, as if there were no NaN and no infinity. */
static double magnitude_of(format f, uint32_t code)
{
    const int      bias = (1 << (f.exponent - 1)) - 1;
    const uint32_t mantissa = code & ((1u << f.mantissa) - 1);
    const int      exponent = (int)(code >> f.mantissa);
    return exponent == 0 ? ldexp(mantissa, 1 - bias - f.mantissa)
                         : ldexp((double)(mantissa + (1u << f.mantissa)),
                                 exponent - bias - f.mantissa);
}

double model_value(pkv_dtype dtype, uint32_t code)
{
    if (is_integer(dtype)) {
        const int32_t half = dtype == PKV_DTYPE_INT8 ? 128 : 8;
        return (int32_t)code >= half ? (int32_t)code - 2 * half : (int32_t)code;
    }
    if (dtype == PKV_DTYPE_F32) {
        float x;
        memcpy(&x, &code, sizeof x);
        return (double)x;
    }
    const format   f = format_of(dtype);
    const uint32_t sign_bit = 1u << (f.exponent + f.mantissa), magnitude = code & (sign_bit - 1);
    const double   sign = (code & sign_bit) != 0 ? -1 : 1;
    if (dtype == PKV_DTYPE_FP8_E4M3) {
        return magnitude == 0x7F ? (double)NAN : sign * magnitude_of(f, magnitude);
    }
    const uint32_t infinity = ((1u << f.exponent) - 1) << f.mantissa;
    if (magnitude >= infinity) {
        return magnitude > infinity ? (double)NAN : sign * HUGE_VAL;
    }
    return sign * magnitude_of(f, magnitude);
}

/* ---- binary32 ---------------------------------------------------------------------------- */

enum { F32_SIGN_SHIFT = 31 };
static const uint32_t f32_infinity = 0x7F800000, f32_quiet = 0x00400000;

static int is_nan(uint32_t bits)
{
    return (bits & 0x7FFFFFFF) > f32_infinity;
}

/* The compiler's own conversion: one rounding, to nearest even. */
uint32_t model_round_f32(double x)
{
    const float rounded = (float)x;
    uint32_t    bits;
    memcpy(&bits, &rounded, sizeof bits);
    return bits;
}

uint32_t model_to_f32(pkv_dtype from, uint32_t code)
{
    const double value = model_value(from, code);
    if (!isnan(value)) {
        return model_round_f32(value); /* exact */
    }
    /* A quiet NaN with the sign, and the payload's upper bits where there is one. */
    const format   f = format_of(from);
    const uint32_t sign = code >> (f.exponent + f.mantissa) << F32_SIGN_SHIFT;
    const uint32_t payload = from == PKV_DTYPE_FP8_E4M3 ? 0 : code & ((1u << f.mantissa) - 1);
    return sign | f32_infinity | f32_quiet | payload << (23 - f.mantissa);
}

uint32_t model_times(uint32_t x, uint32_t factor)
{
    if (is_nan(x)) {
        return x | f32_quiet;
    }
    return model_round_f32(model_value(PKV_DTYPE_F32, x) * model_value(PKV_DTYPE_F32, factor));
}

uint32_t model_reciprocal(uint32_t scale)
{
    return model_round_f32(1 / model_value(PKV_DTYPE_F32, scale));
}

/* ---- to a format ------------------------------------------------------------------------- */

static uint32_t nearest_integer(pkv_dtype to, double value)
{
    const double half = to == PKV_DTYPE_INT8 ? 128 : 8;
    double       whole = rint(value);
    whole = whole < -half ? -half : whole > half - 1 ? half - 1 : whole;
    return (uint32_t)(int32_t)whole & (to == PKV_DTYPE_INT8 ? 0xFF : 0xF);
}

/* What the codes of a format mean, up to the one behind the largest: made once. */
static const double *values_of(format f)
{
    static double values[4][0x7F81];
    double       *own = values[f.mantissa == 10 ? 0 : f.mantissa == 7 ? 1 : f.mantissa];
    for (uint32_t code = 1; own[1] == 0 && code <= f.largest + 1; code++) {
        own[f.largest + 2 - code] = magnitude_of(f, f.largest + 2 - code);
    }
    return own;
}

/* Codes rise with what they mean: a search for the last one that is not above. */
static uint32_t nearest_code(format f, double magnitude)
{
    const double *values = values_of(f);
    uint32_t      low = 0, high = f.largest + 1; /* above: infinity, or what it stands for */
    if (magnitude >= values[high]) {
        return f.saturates ? f.largest : high;
    }
    while (high - low > 1) {
        const uint32_t middle = low + (high - low) / 2;
        if (values[middle] <= magnitude) {
            low = middle;
        } else {
            high = middle;
        }
    }
    const double   below = magnitude - values[low], above = values[high] - magnitude;
    const uint32_t code = below < above ? low : above < below ? high : low % 2 == 0 ? low : high;
    return code > f.largest && f.saturates ? f.largest : code;
}

uint32_t model_from_f32(pkv_dtype to, uint32_t bits)
{
    if (is_integer(to)) {
        return is_nan(bits) ? 0 : nearest_integer(to, model_value(PKV_DTYPE_F32, bits));
    }
    const format   f = format_of(to);
    const uint32_t sign = bits >> F32_SIGN_SHIFT << (f.exponent + f.mantissa);
    if (to == PKV_DTYPE_F32) {
        return is_nan(bits) ? bits | f32_quiet : bits;
    }
    if (is_nan(bits)) {
        const uint32_t payload = (bits & 0x7FFFFF) >> (23 - f.mantissa);
        return sign | (f.saturates ? 0x7F
                                   : (f.largest + 1) | 1u << (f.mantissa - 1) | payload);
    }
    return sign | nearest_code(f, fabs(model_value(PKV_DTYPE_F32, bits)));
}

uint32_t model_scale(pkv_dtype from, const void *src, int64_t first, int64_t n, pkv_dtype to)
{
    const double most = is_integer(to) ? (to == PKV_DTYPE_INT8 ? 127 : 7)
                                       : magnitude_of(format_of(to), format_of(to).largest);
    double       largest = 0;
    for (int64_t i = first; i < first + n; i++) {
        const double magnitude = fabs(model_value(from, model_code(from, src, i)));
        largest = isfinite(magnitude) && magnitude > largest ? magnitude : largest;
    }
    const double scale = largest == 0 ? 1 : largest / most;
    return model_round_f32(scale < ldexp(1, -126) ? ldexp(1, -126) : scale);
}

void model_cast(pkv_dtype from, const void *src, pkv_dtype to, void *dst, int64_t n, int64_t group,
                model_scaling scaling, void *scales)
{
    unsigned char *at = scales;
    uint32_t       factor = 0x3F800000; /* 1 */
    for (int64_t i = 0; i < n; i++) {
        if (i % group == 0 && scaling != MODEL_ONE) {
            uint32_t scale = 0;
            if (scaling == MODEL_COMPUTED) {
                scale = model_scale(from, src, i, group, to);
                memcpy(at, &scale, sizeof scale);
            }
            memcpy(&scale, at, sizeof scale);
            at += sizeof scale;
            factor = scaling == MODEL_BACK ? scale : model_reciprocal(scale);
        }
        const uint32_t x = model_to_f32(from, model_code(from, src, i));
        model_set_code(to, dst, i, model_from_f32(to, model_times(x, factor)));
    }
}
