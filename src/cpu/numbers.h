/*
 * Number formats, element by element: the rules of docs/numerics.md in integers
 * and single float operations, so that every compiler, optimisation level and
 * instruction set makes the same bytes.  Loops over these functions turn into
 * vector code.
 *
 * There is no sum of a product here that a compiler might round once instead of
 * twice, but where the product is exact.  The caller sees to the usual rounding
 * and to subnormals (fpenv.h).
 */
#ifndef PAGEDKV_SRC_CPU_NUMBERS_H
#define PAGEDKV_SRC_CPU_NUMBERS_H

#include <float.h>
#include <stdint.h>
#include <string.h>

#if FLT_EVAL_METHOD != 0
#error "conversions need float arithmetic that is rounded to float"
#endif

#ifndef PKV_I_INLINE /* device code has another word for it */
#define PKV_I_INLINE static inline __attribute__((always_inline))
#endif

PKV_I_INLINE uint32_t pkv_i_bits(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

PKV_I_INLINE float pkv_i_float(uint32_t bits)
{
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

enum {
    PKV_I_F32_SIGN = (int)0x80000000u,
    PKV_I_F32_MAGNITUDE = 0x7fffffff,
    PKV_I_F32_INF = 0x7f800000,
    PKV_I_F32_QUIET = 0x00400000
};

/* Of an element. */
enum { BITS_f32 = 32, BITS_f16 = 16, BITS_bf16 = 16, BITS_e4m3 = 8, BITS_e5m2 = 8, BITS_int8 = 8,
       BITS_int4 = 4 };

/* ---- to float: exact ------------------------------------------------------------------ */

PKV_I_INLINE float pkv_i_from_bf16(uint16_t x)
{
    return pkv_i_float((uint32_t)x << 16);
}

/*
 * A number with 5 exponent bits and 10 mantissa bits: its bits in float's places,
 * then the exponents put right by a product, which is exact for subnormals too.
 */
PKV_I_INLINE float pkv_i_from_f16(uint16_t x)
{
    uint32_t magnitude = (uint32_t)(x & 0x7fff) << 13;
    uint32_t bits = pkv_i_bits(pkv_i_float(magnitude) * 0x1p112f);
    bits |= magnitude >= 0x0f800000 ? (uint32_t)PKV_I_F32_INF : 0;
    return pkv_i_float(bits | (uint32_t)(x & 0x8000) << 16);
}

PKV_I_INLINE float pkv_i_from_e5m2(uint8_t x)
{
    return pkv_i_from_f16((uint16_t)(x << 8));
}

PKV_I_INLINE float pkv_i_from_e4m3(uint8_t x)
{
    uint32_t magnitude = x & 0x7f;
    uint32_t bits = pkv_i_bits(pkv_i_float(magnitude << 20) * 0x1p120f);
    bits = magnitude == 0x7f ? (uint32_t)(PKV_I_F32_INF | PKV_I_F32_QUIET) : bits;
    return pkv_i_float(bits | (uint32_t)(x & 0x80) << 24);
}

/* ---- scales ------------------------------------------------------------------------------ */

/* A computed scale: largest / most, 1 for nothing but zeros, and never below 2^-126. */
PKV_I_INLINE float pkv_i_scale_of(uint32_t largest, float most)
{
    float scale = largest == 0 ? 1.0f : pkv_i_float(largest) / most;
    return pkv_i_bits(scale) < 0x00800000 ? 0x1p-126f : scale;
}

/* Most that a format holds; of the others no scale is ever computed. */
enum { MOST_e4m3 = 448, MOST_e5m2 = 57344, MOST_int8 = 127, MOST_int4 = 7 };
enum { MOST_f32 = 1, MOST_f16 = 1, MOST_bf16 = 1 };

/* ---- from float: to nearest, ties to even, once ------------------------------------------ */

/* The magnitude without its lowest `drop` bits. */
PKV_I_INLINE uint32_t pkv_i_drop_bits(uint32_t magnitude, int drop)
{
    return (magnitude + ((1u << (drop - 1)) - 1) + (magnitude >> drop & 1)) >> drop;
}

/* The magnitude in units of 1 / per_unit, a power of two, where that is below 2^22. */
PKV_I_INLINE uint32_t pkv_i_in_units(uint32_t magnitude, float per_unit)
{
    return pkv_i_bits(pkv_i_float(magnitude) * per_unit + 0x1p23f) - 0x4b000000u;
}

PKV_I_INLINE uint16_t pkv_i_to_bf16(float x)
{
    uint32_t bits = pkv_i_bits(x), magnitude = bits & PKV_I_F32_MAGNITUDE;
    uint32_t code = pkv_i_drop_bits(magnitude, 16);
    code = magnitude > PKV_I_F32_INF ? magnitude >> 16 | 0x40 : code;
    return (uint16_t)(code | (bits >> 16 & 0x8000));
}

PKV_I_INLINE uint16_t pkv_i_to_f16(float x)
{
    uint32_t bits = pkv_i_bits(x), magnitude = bits & PKV_I_F32_MAGNITUDE;
    uint32_t code = pkv_i_drop_bits(magnitude, 13) - (112u << 10);
    code = magnitude < 0x38800000 ? pkv_i_in_units(magnitude, 0x1p24f) : code;
    code = code < 0x7c00 ? code : 0x7c00;
    code = magnitude > PKV_I_F32_INF ? 0x7e00 | (magnitude >> 13 & 0x3ff) : code;
    return (uint16_t)(code | (bits >> 16 & 0x8000));
}

PKV_I_INLINE uint8_t pkv_i_to_e4m3(float x)
{
    uint32_t bits = pkv_i_bits(x), magnitude = bits & PKV_I_F32_MAGNITUDE;
    uint32_t code = pkv_i_drop_bits(magnitude, 20) - (120u << 3);
    code = magnitude < 0x3c800000 ? pkv_i_in_units(magnitude, 0x1p9f) : code;
    code = code < 0x7e ? code : 0x7e;
    code = magnitude > PKV_I_F32_INF ? 0x7f : code;
    return (uint8_t)(code | (bits >> 24 & 0x80));
}

PKV_I_INLINE uint8_t pkv_i_to_e5m2(float x)
{
    uint32_t bits = pkv_i_bits(x), magnitude = bits & PKV_I_F32_MAGNITUDE;
    uint32_t code = pkv_i_drop_bits(magnitude, 21) - (112u << 2);
    code = magnitude < 0x38800000 ? pkv_i_in_units(magnitude, 0x1p16f) : code;
    code = code < 0x7b ? code : 0x7b;
    code = magnitude > PKV_I_F32_INF ? 0x7f : code;
    return (uint8_t)(code | (bits >> 24 & 0x80));
}

/* The nearest whole number in [-most - 1, most] as two's complement; NaN gives 0. */
PKV_I_INLINE uint32_t pkv_i_to_int(float x, float most)
{
    uint32_t bits = pkv_i_bits(x), magnitude = bits & PKV_I_F32_MAGNITUDE;
    float    least = most + 1;
    uint32_t size = magnitude < pkv_i_bits(least) ? magnitude : pkv_i_bits(least);
    uint32_t whole = pkv_i_in_units(size, 1.0f), sign = (uint32_t)-(int32_t)(bits >> 31);
    whole = sign == 0 && whole > (uint32_t)most ? (uint32_t)most : whole;
    whole = magnitude > PKV_I_F32_INF ? 0 : whole;
    return (whole ^ sign) - sign;
}

#endif
