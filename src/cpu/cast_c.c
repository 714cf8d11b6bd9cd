/* Conversions in plain C, an element at a time: what all others are compared with. */
#include "kernels.h"
#include "numbers.h"

#define PKV_I_TARGET
#define PKV_I_CAST_TABLE pkv_i_cast_c

/* Any alignment, and any type may lie there. */
typedef uint32_t any_u32 __attribute__((aligned(1), may_alias));
typedef uint16_t any_u16 __attribute__((aligned(1), may_alias));
typedef float    any_f32 __attribute__((aligned(1), may_alias));

/* ---- one element, at index i of a vector -------------------------------------------------- */

PKV_I_INLINE float load_f32(const char *at, size_t i)
{
    return pkv_i_float(((const any_u32 *)(const void *)at)[i]);
}

PKV_I_INLINE float load_f16(const char *at, size_t i)
{
    return pkv_i_from_f16(((const any_u16 *)(const void *)at)[i]);
}

PKV_I_INLINE float load_bf16(const char *at, size_t i)
{
    return pkv_i_from_bf16(((const any_u16 *)(const void *)at)[i]);
}

PKV_I_INLINE float load_e4m3(const char *at, size_t i)
{
    return pkv_i_from_e4m3((uint8_t)at[i]);
}

PKV_I_INLINE float load_e5m2(const char *at, size_t i)
{
    return pkv_i_from_e5m2((uint8_t)at[i]);
}

PKV_I_INLINE float load_int8(const char *at, size_t i)
{
    return (float)(int8_t)at[i];
}

/* Two to a byte, the even element in the low nibble. */
PKV_I_INLINE float load_int4(const char *at, size_t i)
{
    int32_t nibble = (uint8_t)at[i / 2] >> 4 * (i % 2) & 0xf;
    return (float)((nibble ^ 8) - 8);
}

PKV_I_INLINE void store_f32(char *at, size_t i, float x)
{
    ((any_f32 *)(void *)at)[i] = x;
}

PKV_I_INLINE void store_f16(char *at, size_t i, float x)
{
    ((any_u16 *)(void *)at)[i] = pkv_i_to_f16(x);
}

PKV_I_INLINE void store_bf16(char *at, size_t i, float x)
{
    ((any_u16 *)(void *)at)[i] = pkv_i_to_bf16(x);
}

PKV_I_INLINE void store_e4m3(char *at, size_t i, float x)
{
    at[i] = (char)pkv_i_to_e4m3(x);
}

PKV_I_INLINE void store_e5m2(char *at, size_t i, float x)
{
    at[i] = (char)pkv_i_to_e5m2(x);
}

PKV_I_INLINE void store_int8(char *at, size_t i, float x)
{
    at[i] = (char)pkv_i_to_int(x, 127);
}

/* ---- a group of elements with one factor ---------------------------------------------------- */

#define LOOP(from, to)                                                                    \
    static inline void loop_##from##_##to(                                   \
        char *restrict dst, const char *restrict src, size_t n, float factor)             \
    {                                                                                     \
        for (size_t i = 0; i < n; i++) {                                                  \
            store_##to(dst, i, load_##from(src, i) * factor);                             \
        }                                                                                 \
    }

/* int4 two at a time: an element alone has no byte. */
#define LOOP_PAIRS(from)                                                                  \
    PKV_I_INLINE char pair_##from(const char *src, size_t i, float factor)                \
    {                                                                                     \
        uint32_t low = pkv_i_to_int(load_##from(src, 2 * i) * factor, 7);                 \
        uint32_t high = pkv_i_to_int(load_##from(src, 2 * i + 1) * factor, 7);            \
        return (char)((low & 0xf) | high << 4);                                           \
    }                                                                                     \
    static inline void loop_##from##_int4(                                   \
        char *restrict dst, const char *restrict src, size_t n, float factor)             \
    {                                                                                     \
        for (size_t i = 0; i < n / 2; i++) {                                              \
            dst[i] = pair_##from(src, i, factor);                                         \
        }                                                                                 \
    }

/* The largest magnitude of finite elements. */
#define LARGEST(from)                                                                     \
    PKV_I_INLINE uint32_t finite_##from(const char *src, size_t i)                        \
    {                                                                                     \
        uint32_t magnitude = pkv_i_bits(load_##from(src, i)) & PKV_I_F32_MAGNITUDE;       \
        return magnitude < PKV_I_F32_INF ? magnitude : 0;                                 \
    }                                                                                     \
    static inline uint32_t largest_##from(const char *src, size_t n)         \
    {                                                                                     \
        uint32_t largest = 0;                                                             \
        for (size_t i = 0; i < n; i++) {                                                  \
            uint32_t now = finite_##from(src, i);                                         \
            largest = now > largest ? now : largest;                                      \
        }                                                                                 \
        return largest;                                                                   \
    }

LARGEST(f32)
LARGEST(f16)
LARGEST(bf16)

LOOP_PAIRS(f32)
LOOP_PAIRS(f16)
LOOP_PAIRS(bf16)

LOOP(f32, f16) LOOP(f32, bf16) LOOP(f32, e4m3) LOOP(f32, e5m2) LOOP(f32, int8)
LOOP(f16, f32) LOOP(f16, bf16) LOOP(f16, e4m3) LOOP(f16, e5m2) LOOP(f16, int8)
LOOP(bf16, f32) LOOP(bf16, f16) LOOP(bf16, e4m3) LOOP(bf16, e5m2) LOOP(bf16, int8)
LOOP(e4m3, f32) LOOP(e4m3, f16) LOOP(e4m3, bf16)
LOOP(e5m2, f32) LOOP(e5m2, f16) LOOP(e5m2, bf16)
LOOP(int8, f32) LOOP(int8, f16) LOOP(int8, bf16)
LOOP(int4, f32) LOOP(int4, f16) LOOP(int4, bf16)

#include "cast_body.h"
