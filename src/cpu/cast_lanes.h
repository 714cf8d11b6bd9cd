/*
 * Conversions in vectors: the rules of numbers.h on LANES elements at a time, in
 * the vector types that gcc and clang share.  A file defines PKV_I_TARGET,
 * PKV_I_CAST_TABLE, LANES, and
 *
 *     smaller(a, b)     the smaller one, lane by lane, of vi
 *     narrow_16(dst, v) 4 * LANES numbers below 2^16 from v[4], as 16-bit items
 *     narrow_8(dst, v)  the same below 2^8, as bytes
 *     widen_16(v, src), widen_8(v, src)  the way back, zeros above
 *
 * and includes this once.  A block is four vectors; what is left of a vector goes
 * through a block of zeros.
 *
 * A file that has faster ways for most blocks defines PKV_I_QUICK(name), and
 *
 *     quick_get_A(x, src), quick_put_A(dst, x)  false where the block is none for them
 *     quick_largest_A(src, n)  for whole blocks; infinity or above where one is not finite
 */
#include <stdbool.h>

#include "numbers.h"

enum {
    BLOCK = 4 * LANES,
    AHEAD = 2048 /* elements; how far the source is prefetched: docs/benchmarking.md */
};

typedef uint32_t vu __attribute__((vector_size(4 * LANES)));

/* Unrolled at any level of optimisation, since a block is to stay in registers. */
#if defined(__clang__)
#define EACH_OF_BLOCK(k) _Pragma("unroll") for (int k = 0; k < 4; k++)
#else
#define EACH_OF_BLOCK(k) _Pragma("GCC unroll 4") for (int k = 0; k < 4; k++)
#endif

/* Where m is all ones a, where it is 0 b. */
PKV_I_TARGET static inline vi choose(vi m, vi a, vi b)
{
    return (a & m) | (b & ~m);
}

PKV_I_TARGET static inline vi all(int32_t x)
{
    return x - (vi){0};
}

/* ---- to float -------------------------------------------------------------------- */

PKV_I_TARGET static inline void get_f32(vf *x, const char *src)
{
    EACH_OF_BLOCK(k) {
        memcpy(&x[k], src + k * (int)sizeof x[k], sizeof x[k]);
    }
}

PKV_I_TARGET static inline void get_bf16(vf *x, const char *src)
{
    vi v[4];
    widen_16(v, src);
    EACH_OF_BLOCK(k) {
        x[k] = (vf)(v[k] << 16);
    }
}

PKV_I_TARGET static inline vf from_f16(vi v)
{
    vi magnitude = (v & 0x7fff) << 13, sign = (v & 0x8000) << 16;
    vi bits = (vi)((vf)magnitude * 0x1p112f);
    return (vf)(bits | ((magnitude >= 0x0f800000) & PKV_I_F32_INF) | sign);
}

PKV_I_TARGET static inline void get_f16(vf *x, const char *src)
{
    vi v[4];
    widen_16(v, src);
    EACH_OF_BLOCK(k) {
        x[k] = from_f16(v[k]);
    }
}

PKV_I_TARGET static inline void get_e5m2(vf *x, const char *src)
{
    vi v[4];
    widen_8(v, src);
    EACH_OF_BLOCK(k) {
        x[k] = from_f16(v[k] << 8);
    }
}

PKV_I_TARGET static inline void get_e4m3(vf *x, const char *src)
{
    vi v[4];
    widen_8(v, src);
    EACH_OF_BLOCK(k) {
        vi magnitude = v[k] & 0x7f, sign = (v[k] & 0x80) << 24;
        vi bits = (vi)((vf)(magnitude << 20) * 0x1p120f);
        x[k] = (vf)(choose(magnitude == 0x7f, all(PKV_I_F32_INF | PKV_I_F32_QUIET), bits) | sign);
    }
}

PKV_I_TARGET static inline void get_int8(vf *x, const char *src)
{
    vi v[4];
    widen_8(v, src);
    EACH_OF_BLOCK(k) {
        x[k] = __builtin_convertvector((v[k] ^ 0x80) - 0x80, vf);
    }
}

PKV_I_TARGET static inline void get_int4(vf *x, const char *src)
{
    char bytes[BLOCK];
    for (int i = 0; i < BLOCK / 16; i++) { /* eight bytes are sixteen nibbles */
        uint64_t packed, low, high;
        memcpy(&packed, src + 8 * i, sizeof packed);
        low = packed & 0xffffffff;
        high = packed >> 32;
        for (int half = 0; half < 2; half++) {
            uint64_t b = half == 0 ? low : high;
            b = (b | b << 16) & 0x0000ffff0000ffffu;
            b = (b | b << 8) & 0x00ff00ff00ff00ffu;
            b = (b | b << 4) & 0x0f0f0f0f0f0f0f0fu;
            memcpy(bytes + 16 * i + 8 * half, &b, sizeof b);
        }
    }
    vi v[4];
    widen_8(v, bytes);
    EACH_OF_BLOCK(k) {
        x[k] = __builtin_convertvector((v[k] ^ 8) - 8, vf);
    }
}

/* ---- from float ------------------------------------------------------------------ */

/* Without signs, since the sum of a NaN goes over an int's end; what comes of it is not used. */
PKV_I_TARGET static inline vi drop_bits(vi magnitude, int drop)
{
    const vu m = (vu)magnitude;
    return (vi)((m + ((1u << (drop - 1)) - 1) + (m >> drop & 1)) >> drop);
}

PKV_I_TARGET static inline vi in_units(vi magnitude, float per_unit)
{
    return (vi)((vf)magnitude * per_unit + 0x1p23f) - 0x4b000000;
}

PKV_I_TARGET static inline void put_f32(char *dst, const vf *x)
{
    EACH_OF_BLOCK(k) {
        memcpy(dst + k * (int)sizeof x[k], &x[k], sizeof x[k]);
    }
}

PKV_I_TARGET static inline void put_bf16(char *dst, const vf *x)
{
    vi v[4];
    EACH_OF_BLOCK(k) {
        vi bits = (vi)x[k], magnitude = bits & PKV_I_F32_MAGNITUDE;
        vi code = choose(magnitude > PKV_I_F32_INF, magnitude >> 16 | 0x40,
                         drop_bits(magnitude, 16));
        v[k] = code | (bits >> 16 & 0x8000);
    }
    narrow_16(dst, v);
}

/* A format of so many mantissa bits and bias; `nan` where x is none. */
PKV_I_TARGET static inline vi to_small(vi magnitude, int mantissa, int bias, vi most, vi nan)
{
    const int drop = 23 - mantissa, least = (128 - bias) << 23; /* the smallest normal number */
    vi code = drop_bits(magnitude, drop) - ((127 - bias) << mantissa);
    vi tiny = in_units(magnitude, pkv_i_float((uint32_t)(126 + bias + mantissa) << 23));
    code = smaller(choose(magnitude < least, tiny, code), most);
    return choose(magnitude > PKV_I_F32_INF, nan, code);
}

PKV_I_TARGET static inline void put_f16(char *dst, const vf *x)
{
    vi v[4];
    EACH_OF_BLOCK(k) {
        vi bits = (vi)x[k], magnitude = bits & PKV_I_F32_MAGNITUDE;
        vi nan = 0x7e00 | (magnitude >> 13 & 0x3ff);
        v[k] = to_small(magnitude, 10, 15, all(0x7c00), nan) | (bits >> 16 & 0x8000);
    }
    narrow_16(dst, v);
}

PKV_I_TARGET static inline void put_e4m3(char *dst, const vf *x)
{
    vi v[4];
    EACH_OF_BLOCK(k) {
        vi bits = (vi)x[k], magnitude = bits & PKV_I_F32_MAGNITUDE;
        v[k] = to_small(magnitude, 3, 7, all(0x7e), all(0x7f)) | (bits >> 24 & 0x80);
    }
    narrow_8(dst, v);
}

PKV_I_TARGET static inline void put_e5m2(char *dst, const vf *x)
{
    vi v[4];
    EACH_OF_BLOCK(k) {
        vi bits = (vi)x[k], magnitude = bits & PKV_I_F32_MAGNITUDE;
        v[k] = to_small(magnitude, 2, 15, all(0x7b), all(0x7f)) | (bits >> 24 & 0x80);
    }
    narrow_8(dst, v);
}

PKV_I_TARGET static inline vi to_int(vf x, int32_t most)
{
    vi bits = (vi)x, magnitude = bits & PKV_I_F32_MAGNITUDE, sign = bits >> 31;
    vi size = smaller(magnitude, all((int32_t)pkv_i_bits((float)(most + 1))));
    vi whole = smaller(in_units(size, 1.0f), most - sign); /* one more below zero */
    whole &= magnitude <= PKV_I_F32_INF;
    return (whole ^ sign) - sign;
}

PKV_I_TARGET static inline void put_int8(char *dst, const vf *x)
{
    vi v[4];
    EACH_OF_BLOCK(k) {
        v[k] = to_int(x[k], 127) & 0xff;
    }
    narrow_8(dst, v);
}

PKV_I_TARGET static inline void put_int4(char *dst, const vf *x)
{
    vi   v[4];
    char bytes[BLOCK];
    EACH_OF_BLOCK(k) {
        v[k] = to_int(x[k], 7) & 0xf;
    }
    narrow_8(bytes, v);
    for (int i = 0; i < BLOCK / 8; i++) {
        uint64_t b;
        memcpy(&b, bytes + 8 * i, sizeof b);
        b = (b | b >> 4) & 0x00ff00ff00ff00ffu;
        b = (b | b >> 8) & 0x0000ffff0000ffffu;
        uint32_t packed = (uint32_t)(b | b >> 16);
        memcpy(dst + 4 * i, &packed, sizeof packed);
    }
}

/* ---- a group of elements --------------------------------------------------------- */

#ifdef PKV_I_QUICK
/* What it writes stays where it says true. */
#define QUICK(from, to)                                                                    \
    PKV_I_TARGET static inline bool quick_##from##_##to(char *dst, const char *src,        \
                                                        float factor)                      \
    {                                                                                      \
        vf x[4];                                                                           \
        if (!quick_get_##from(x, src)) {                                                   \
            return false;                                                                  \
        }                                                                                  \
        EACH_OF_BLOCK(k) {                                                                 \
            x[k] *= factor;                                                                \
        }                                                                                  \
        return quick_put_##to(dst, x);                                                     \
    }
#define RARE __attribute__((noinline, cold))
#else
#define QUICK(from, to)                                                                    \
    PKV_I_TARGET static inline bool quick_##from##_##to(char *dst, const char *src,        \
                                                        float factor)                      \
    {                                                                                      \
        (void)dst, (void)src, (void)factor;                                                \
        return false;                                                                      \
    }
#define RARE inline
#endif

#define LOOP(from, to, from_dtype, to_dtype)                                               \
    QUICK(from, to)                                                                        \
    PKV_I_TARGET static RARE void block_##from##_##to(char *dst, const char *src,          \
                                                      float factor)                        \
    {                                                                                      \
        vf x[4];                                                                           \
        get_##from(x, src);                                                                \
        EACH_OF_BLOCK(k) {                                                                 \
            x[k] *= factor;                                                                \
        }                                                                                  \
        put_##to(dst, x);                                                                  \
    }                                                                                      \
    PKV_I_TARGET static inline void loop_##from##_##to(char *dst, const char *src, size_t n, \
                                                       float factor)                       \
    {                                                                                      \
        for (; n >= BLOCK; n -= BLOCK) {                                                   \
            for (int at = 0; at < BLOCK * BITS_##from / 8; at += 64) {                     \
                __builtin_prefetch(src + AHEAD * BITS_##from / 8 + at);                    \
            }                                                                              \
            if (!quick_##from##_##to(dst, src, factor)) {                                  \
                block_##from##_##to(dst, src, factor);                                     \
            }                                                                              \
            src += BLOCK * BITS_##from / 8;                                                \
            dst += BLOCK * BITS_##to / 8;                                                  \
        }                                                                                  \
        if (n > 0) {                                                                       \
            char last[BLOCK * BITS_##from / 8] = {0}, out[BLOCK * BITS_##to / 8];          \
            memcpy(last, src, n * BITS_##from / 8);                                        \
            block_##from##_##to(out, last, factor);                                        \
            memcpy(dst, out, n * BITS_##to / 8);                                           \
        }                                                                                  \
    }

#ifdef PKV_I_QUICK
#define QUICK_LARGEST(from, src, n, most) \
    ((n) % BLOCK == 0 && ((most) = quick_largest_##from(src, n)) < PKV_I_F32_INF)
#else
#define QUICK_LARGEST(from, src, n, most) ((void)(most), false)
#endif

#define LARGEST(from)                                                                      \
    PKV_I_TARGET static inline vi largest_block_##from(vi largest, const char *src)        \
    {                                                                                      \
        vf x[4];                                                                           \
        get_##from(x, src);                                                                \
        EACH_OF_BLOCK(k) { /* of negated numbers the smallest */                \
            vi magnitude = (vi)x[k] & PKV_I_F32_MAGNITUDE;                                 \
            largest = smaller(largest, -(magnitude & (magnitude < PKV_I_F32_INF)));        \
        }                                                                                  \
        return largest;                                                                    \
    }                                                                                      \
    PKV_I_TARGET static RARE uint32_t plain_largest_##from(const char *src, size_t n)      \
    {                                                                                      \
        vi       largest = {0};                                                            \
        uint32_t most = 0;                                                                 \
        for (; n >= BLOCK; n -= BLOCK, src += BLOCK * BITS_##from / 8) {                   \
            largest = largest_block_##from(largest, src);                                  \
        }                                                                                  \
        if (n > 0) {                                                                       \
            char last[BLOCK * BITS_##from / 8] = {0};                                      \
            memcpy(last, src, n * BITS_##from / 8);                                        \
            largest = largest_block_##from(largest, last);                                 \
        }                                                                                  \
        for (int i = 0; i < LANES; i++) {                                                  \
            most = (uint32_t)-largest[i] > most ? (uint32_t)-largest[i] : most;            \
        }                                                                                  \
        return most;                                                                       \
    }                                                                                      \
    PKV_I_TARGET static inline uint32_t largest_##from(const char *src, size_t n)          \
    {                                                                                      \
        uint32_t most = 0;                                                                 \
        return QUICK_LARGEST(from, src, n, most) ? most : plain_largest_##from(src, n);    \
    }

PKV_I_CASTS(LOOP)
LARGEST(f32)
LARGEST(f16)
LARGEST(bf16)

#include "cast_body.h"
