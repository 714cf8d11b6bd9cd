/*
 * Conversions for x86-64 with AVX2 and F16C.  The quick ways take blocks without
 * NaN (and computed scales without infinities), which the rules of numbers.h
 * make the same as the hardware does; they leave the others to cast_lanes.h.
 */
#if defined(__x86_64__)

#include <immintrin.h>
#include <string.h>

#include "kernels.h"
#include "numbers.h"

#define PKV_I_TARGET __attribute__((target("avx2,f16c")))
#define PKV_I_CAST_TABLE pkv_i_cast_avx2

enum { LANES = 8 };
typedef int32_t vi __attribute__((vector_size(32)));
typedef float   vf __attribute__((vector_size(32)));

PKV_I_TARGET static inline vi smaller(vi a, vi b)
{
    return (vi)_mm256_min_epi32((__m256i)a, (__m256i)b);
}

PKV_I_TARGET static inline __m256i load_32(const char *src)
{
    return _mm256_loadu_si256((const __m256i *)(const void *)src);
}

PKV_I_TARGET static inline void store_32(char *dst, __m256i v)
{
    _mm256_storeu_si256((__m256i *)(void *)dst, v);
}

/* Packing works on halves; the permutations put the quarters in order. */
PKV_I_TARGET static inline __m256i narrow_pair(vi a, vi b)
{
    return _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)a, (__m256i)b), 0xd8);
}

PKV_I_TARGET static inline void narrow_16(char *dst, const vi *v)
{
    store_32(dst, narrow_pair(v[0], v[1]));
    store_32(dst + 32, narrow_pair(v[2], v[3]));
}

PKV_I_TARGET static inline void narrow_8(char *dst, const vi *v)
{
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    __m256i       low = _mm256_packus_epi32((__m256i)v[0], (__m256i)v[1]);
    __m256i       high = _mm256_packus_epi32((__m256i)v[2], (__m256i)v[3]);
    store_32(dst, _mm256_permutevar8x32_epi32(_mm256_packus_epi16(low, high), order));
}

PKV_I_TARGET static inline void widen_16(vi *v, const char *src)
{
    __m256i a = load_32(src), b = load_32(src + 32);
    v[0] = (vi)_mm256_cvtepu16_epi32(_mm256_castsi256_si128(a));
    v[1] = (vi)_mm256_cvtepu16_epi32(_mm256_extracti128_si256(a, 1));
    v[2] = (vi)_mm256_cvtepu16_epi32(_mm256_castsi256_si128(b));
    v[3] = (vi)_mm256_cvtepu16_epi32(_mm256_extracti128_si256(b, 1));
}

PKV_I_TARGET static inline void widen_8(vi *v, const char *src)
{
    __m256i a = load_32(src);
    __m128i low = _mm256_castsi256_si128(a), high = _mm256_extracti128_si256(a, 1);
    v[0] = (vi)_mm256_cvtepu8_epi32(low);
    v[1] = (vi)_mm256_cvtepu8_epi32(_mm_srli_si128(low, 8));
    v[2] = (vi)_mm256_cvtepu8_epi32(high);
    v[3] = (vi)_mm256_cvtepu8_epi32(_mm_srli_si128(high, 8));
}

/* ---- quick ways, a block of 32 elements at a time: false where it is none for them --------- */

#define PKV_I_QUICK(name) quick_##name

PKV_I_TARGET static inline __m256i load_16_as_32(const char *src)
{
    return _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)(const void *)src));
}

PKV_I_TARGET static inline bool quick_get_f32(vf *x, const char *src)
{
    for (int k = 0; k < 4; k++) {
        x[k] = _mm256_loadu_ps((const float *)(const void *)(src + 32 * k));
    }
    return true;
}

PKV_I_TARGET static inline bool quick_get_bf16(vf *x, const char *src)
{
    for (int k = 0; k < 4; k++) {
        x[k] = (vf)_mm256_slli_epi32(load_16_as_32(src + 16 * k), 16);
    }
    return true;
}

/* The hardware makes signalling NaN quiet and keeps the rest, as the product would. */
PKV_I_TARGET static inline bool quick_get_f16(vf *x, const char *src)
{
    for (int k = 0; k < 4; k++) {
        x[k] = _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(src + 16 * k)));
    }
    return true;
}

/* 16 numbers of f16 each. */
PKV_I_TARGET static inline void spread_f16(vf *x, __m256i a, __m256i b)
{
    x[0] = _mm256_cvtph_ps(_mm256_castsi256_si128(a));
    x[1] = _mm256_cvtph_ps(_mm256_extracti128_si256(a, 1));
    x[2] = _mm256_cvtph_ps(_mm256_castsi256_si128(b));
    x[3] = _mm256_cvtph_ps(_mm256_extracti128_si256(b, 1));
}

PKV_I_TARGET static inline __m256i load_8_as_16(const char *src)
{
    return _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(const void *)src));
}

PKV_I_TARGET static inline bool quick_get_e5m2(vf *x, const char *src)
{
    spread_f16(x, _mm256_slli_epi16(load_8_as_16(src), 8),
               _mm256_slli_epi16(load_8_as_16(src + 16), 8));
    return true;
}

/* As f16 with the exponent 8 too low: the product with 2^8 is exact. */
PKV_I_TARGET static inline bool quick_get_e4m3(vf *x, const char *src)
{
    const __m256i keep = _mm256_set1_epi16((short)0xbfff);
    const __m256i nan = _mm256_set1_epi8(0x7f);
    __m256i       magnitude = _mm256_and_si256(load_32(src), nan);
    if (_mm256_movemask_epi8(_mm256_cmpeq_epi8(magnitude, nan)) != 0) {
        return false;
    }
    spread_f16(x, _mm256_and_si256(_mm256_slli_epi16(load_8_as_16(src), 7), keep),
               _mm256_and_si256(_mm256_slli_epi16(load_8_as_16(src + 16), 7), keep));
    for (int k = 0; k < 4; k++) {
        x[k] *= 0x1p8f;
    }
    return true;
}

PKV_I_TARGET static inline vf from_int8(__m128i bytes)
{
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}

PKV_I_TARGET static inline bool quick_get_int8(vf *x, const char *src)
{
    for (int k = 0; k < 4; k++) {
        x[k] = from_int8(_mm_loadl_epi64((const __m128i *)(const void *)(src + 8 * k)));
    }
    return true;
}

PKV_I_TARGET static inline bool quick_get_int4(vf *x, const char *src)
{
    const __m256i eight = _mm256_set1_epi8(8);
    __m256i       v = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(const void *)src));
    v = _mm256_and_si256(_mm256_or_si256(v, _mm256_slli_epi16(v, 4)), _mm256_set1_epi8(15));
    v = _mm256_sub_epi8(_mm256_xor_si256(v, eight), eight);
    __m128i low = _mm256_castsi256_si128(v), high = _mm256_extracti128_si256(v, 1);
    x[0] = from_int8(low);
    x[1] = from_int8(_mm_srli_si128(low, 8));
    x[2] = from_int8(high);
    x[3] = from_int8(_mm_srli_si128(high, 8));
    return true;
}

PKV_I_TARGET static inline bool has_nan(const vf *x)
{
    __m256 a = _mm256_cmp_ps(x[0], x[1], _CMP_UNORD_Q);
    __m256 b = _mm256_cmp_ps(x[2], x[3], _CMP_UNORD_Q);
    return _mm256_movemask_ps(_mm256_or_ps(a, b)) != 0;
}

PKV_I_TARGET static inline bool quick_put_f32(char *dst, const vf *x)
{
    for (int k = 0; k < 4; k++) {
        _mm256_storeu_ps((float *)(void *)(dst + 32 * k), x[k]);
    }
    return true;
}

PKV_I_TARGET static inline bool quick_put_f16(char *dst, const vf *x)
{
    for (int k = 0; k < 4; k++) {
        _mm_storeu_si128((__m128i *)(void *)(dst + 16 * k),
                         _mm256_cvtps_ph(x[k], _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    }
    return true;
}

PKV_I_TARGET static inline bool quick_put_bf16(char *dst, const vf *x)
{
    vi v[4];
    for (int k = 0; k < 4; k++) { /* the sign is not reached: the largest magnitude is infinity's */
        __m256i bits = (__m256i)x[k];
        __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        bits = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
        v[k] = (vi)_mm256_srli_epi32(bits, 16);
    }
    narrow_16(dst, v);
    return !has_nan(x);
}

/* The quarters of two packed pairs, in order. */
PKV_I_TARGET static inline __m256i in_order(__m256i packed)
{
    return _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/*
 * A format with `mantissa` bits and bias.  A sum with a power of two whose last
 * place is the format's rounds to a whole number of those places, subnormal or
 * not; places and exponent add up to the code.
 */
PKV_I_TARGET static inline __m256i codes_of(vf x, int mantissa, int bias, float most)
{
    const __m256i exponent = _mm256_set1_epi32(PKV_I_F32_INF);
    const __m256i least = _mm256_set1_epi32((128 - bias) << 23);
    __m256        size = _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff)));
    size = _mm256_min_ps(size, _mm256_set1_ps(most));
    __m256i power = _mm256_max_epi32(_mm256_and_si256((__m256i)size, exponent), least);
    __m256i unit = _mm256_add_epi32(power, _mm256_set1_epi32((23 - mantissa) << 23));
    __m256i sum = (__m256i)_mm256_add_ps(size, (__m256)unit);
    /* Places in the low halves and the exponent in the high ones, times 2^(7 - mantissa). */
    __m256i both = _mm256_blend_epi16(sum, power, 0xaa);
    return _mm256_madd_epi16(both, _mm256_set1_epi32(1 << 16 | 1 << (7 - mantissa)));
}

/* Of 16 elements, in quarters; the base comes off after the packing. */
PKV_I_TARGET static inline __m256i code_pair(vf a, vf b, int mantissa, int bias, float most)
{
    __m256i codes = _mm256_packus_epi32(codes_of(a, mantissa, bias, most),
                                        codes_of(b, mantissa, bias, most));
    return _mm256_sub_epi16(_mm256_srli_epi16(codes, 7 - mantissa),
                            _mm256_set1_epi16((short)((128 - bias) << mantissa)));
}

PKV_I_TARGET static inline bool quick_put_small(char *dst, const vf *x, int mantissa, int bias,
                                                float most)
{
    __m256i low = code_pair(x[0], x[1], mantissa, bias, most);
    __m256i high = code_pair(x[2], x[3], mantissa, bias, most);
    __m256i signs = _mm256_packs_epi16(_mm256_packs_epi32((__m256i)x[0], (__m256i)x[1]),
                                       _mm256_packs_epi32((__m256i)x[2], (__m256i)x[3]));
    signs = _mm256_and_si256(signs, _mm256_set1_epi8((char)0x80));
    store_32(dst, in_order(_mm256_or_si256(_mm256_packus_epi16(low, high), signs)));
    return !has_nan(x);
}

PKV_I_TARGET static inline bool quick_put_e4m3(char *dst, const vf *x)
{
    return quick_put_small(dst, x, 3, 7, 448.0f);
}

PKV_I_TARGET static inline bool quick_put_e5m2(char *dst, const vf *x)
{
    return quick_put_small(dst, x, 2, 15, 57344.0f);
}

/* Whole numbers up to `most`, as bytes that saturate below. */
PKV_I_TARGET static inline __m256i to_bytes(const vf *x, float most)
{
    __m256i v[4];
    for (int k = 0; k < 4; k++) {
        v[k] = _mm256_cvtps_epi32(_mm256_min_ps(x[k], _mm256_set1_ps(most)));
    }
    return in_order(_mm256_packs_epi16(_mm256_packs_epi32(v[0], v[1]),
                                       _mm256_packs_epi32(v[2], v[3])));
}

PKV_I_TARGET static inline bool quick_put_int8(char *dst, const vf *x)
{
    store_32(dst, to_bytes(x, 127.0f));
    return !has_nan(x);
}

PKV_I_TARGET static inline bool quick_put_int4(char *dst, const vf *x)
{
    __m256i bytes = _mm256_max_epi8(to_bytes(x, 7.0f), _mm256_set1_epi8(-8));
    bytes = _mm256_and_si256(bytes, _mm256_set1_epi8(15));
    bytes = _mm256_maddubs_epi16(bytes, _mm256_set1_epi16(0x1001)); /* low + 16 * high */
    bytes = _mm256_permute4x64_epi64(_mm256_packus_epi16(bytes, bytes), 0x08);
    _mm_storeu_si128((__m128i *)(void *)dst, _mm256_castsi256_si128(bytes));
    return !has_nan(x);
}

/* ---- quick largest magnitudes: infinity and above where not all is finite ----------------- */

PKV_I_TARGET static inline uint32_t largest_lane(__m256i v)
{
    __m128i m = _mm_max_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256(v, 1));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0x4e));
    m = _mm_max_epi32(m, _mm_shuffle_epi32(m, 0xb1));
    return (uint32_t)_mm_cvtsi128_si32(m);
}

PKV_I_TARGET static inline uint32_t quick_largest_f32(const char *src, size_t n)
{
    const __m256i magnitude = _mm256_set1_epi32(0x7fffffff);
    __m256i       a = _mm256_setzero_si256(), b = a;
    for (; n > 0; n -= 32, src += 128) {
        a = _mm256_max_epi32(a, _mm256_and_si256(load_32(src), magnitude));
        b = _mm256_max_epi32(b, _mm256_and_si256(load_32(src + 32), magnitude));
        a = _mm256_max_epi32(a, _mm256_and_si256(load_32(src + 64), magnitude));
        b = _mm256_max_epi32(b, _mm256_and_si256(load_32(src + 96), magnitude));
    }
    return largest_lane(_mm256_max_epi32(a, b));
}

/* Of 16-bit formats, whose codes rise with the magnitude. */
PKV_I_TARGET static inline uint32_t largest_code(const char *src, size_t n)
{
    const __m256i magnitude = _mm256_set1_epi16(0x7fff);
    __m256i       a = _mm256_setzero_si256(), b = a;
    for (; n > 0; n -= 32, src += 64) {
        a = _mm256_max_epu16(a, _mm256_and_si256(load_32(src), magnitude));
        b = _mm256_max_epu16(b, _mm256_and_si256(load_32(src + 32), magnitude));
    }
    a = _mm256_max_epu16(a, b);
    return largest_lane(_mm256_max_epi32(_mm256_and_si256(a, _mm256_set1_epi32(0xffff)),
                                         _mm256_srli_epi32(a, 16)));
}

PKV_I_TARGET static inline uint32_t quick_largest_bf16(const char *src, size_t n)
{
    return largest_code(src, n) << 16;
}

PKV_I_TARGET static inline uint32_t quick_largest_f16(const char *src, size_t n)
{
    return pkv_i_bits(pkv_i_from_f16((uint16_t)largest_code(src, n)));
}

#include "cast_lanes.h"

#else
typedef int pkv_i_no_cast_avx2;
#endif
