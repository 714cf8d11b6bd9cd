/*
 * The conversions of one instruction set: vectors, their groups and scales.  A
 * file defines
 *
 *     PKV_I_TARGET        the function attribute of its instruction set
 *     PKV_I_CAST_TABLE    the name of the function that finds the conversions
 *     loop_A_B(dst, src, n, factor)  n elements of A times the factor, as B
 *     largest_A(src, n)   largest magnitude of finite elements, as float's bits
 *
 * and includes this once.
 */
#include <pagedkv/pagedkv.h>

#include "numbers.h"

/* Of what is read back no scale is ever computed. */
#define largest_e4m3(src, n) ((void)(src), (void)(n), 0u)
#define largest_e5m2(src, n) ((void)(src), (void)(n), 0u)
#define largest_int8(src, n) ((void)(src), (void)(n), 0u)
#define largest_int4(src, n) ((void)(src), (void)(n), 0u)

/* ---- vectors -------------------------------------------------------------------------------- */

/*
 * What a group's elements are multiplied by; a computed scale is stored.  Without
 * scales there is no address to count from: `at` is added where there are some.
 */
#define CAST(from, to, from_dtype, to_dtype)                                              \
    PKV_I_TARGET static inline float factor_##from##_##to(                                \
        const char *src, size_t n, char *scales, ptrdiff_t at, pkv_i_scaling scaling)     \
    {                                                                                     \
        float s = 1.0f;                                                                   \
        if (scaling == PKV_I_SCALE_NONE) {                                                \
            return s;                                                                     \
        }                                                                                 \
        if (scaling == PKV_I_SCALE_COMPUTED) {                                            \
            s = pkv_i_scale_of(largest_##from(src, n), MOST_##to);                              \
            memcpy(scales + at, &s, sizeof s);                                            \
        } else {                                                                          \
            memcpy(&s, scales + at, sizeof s);                                            \
        }                                                                                 \
        return scaling == PKV_I_SCALE_BACK ? s : 1.0f / s;                                \
    }                                                                                     \
    PKV_I_TARGET static void cast_##from##_##to(const pkv_i_vectors *v, pkv_i_scaling scaling) \
    {                                                                                     \
        for (size_t i = 0; i < v->n_vectors; i++) {                                       \
            const char *src = v->src + (ptrdiff_t)i * v->src_stride_bytes;                \
            char       *dst = v->dst + (ptrdiff_t)i * v->dst_stride_bytes;                \
            ptrdiff_t   scale_at = (ptrdiff_t)i * v->scale_stride_bytes;                  \
            for (size_t at = 0; at < v->n; at += v->group) {                              \
                float factor = factor_##from##_##to(src, v->group, v->scale, scale_at, scaling); \
                loop_##from##_##to(dst, src, v->group, factor);                           \
                src += v->group * BITS_##from / 8;                                        \
                dst += v->group * BITS_##to / 8;                                          \
                scale_at += (ptrdiff_t)sizeof(float);                                     \
            }                                                                             \
        }                                                                                 \
    }
PKV_I_CASTS(CAST)
#undef CAST

pkv_i_cast_fn PKV_I_CAST_TABLE(int32_t from, int32_t to)
{
#define CAST(from_name, to_name, from_dtype, to_dtype)                         \
    if (from == PKV_DTYPE_##from_dtype && to == PKV_DTYPE_##to_dtype) {        \
        return cast_##from_name##_##to_name;                                   \
    }
    PKV_I_CASTS(CAST)
#undef CAST
    return NULL;
}
