/* Conversions for AArch64, of which NEON is part; lanes and bytes in the same order. */
#if defined(__aarch64__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__

#include <arm_neon.h>
#include <string.h>

#include "kernels.h"

#define PKV_I_TARGET
#define PKV_I_CAST_TABLE pkv_i_cast_neon

enum { LANES = 4 };
typedef int32_t vi __attribute__((vector_size(16)));
typedef float   vf __attribute__((vector_size(16)));

static inline vi smaller(vi a, vi b)
{
    return (vi)vminq_s32((int32x4_t)a, (int32x4_t)b);
}

static inline void narrow_16(char *dst, const vi *v)
{
    for (int k = 0; k < 4; k++) {
        vst1_u8((uint8_t *)dst + 8 * k, vreinterpret_u8_u16(vmovn_u32((uint32x4_t)v[k])));
    }
}

static inline void narrow_8(char *dst, const vi *v)
{
    for (int k = 0; k < 4; k += 2) {
        uint16x8_t both = vcombine_u16(vmovn_u32((uint32x4_t)v[k]),
                                       vmovn_u32((uint32x4_t)v[k + 1]));
        vst1_u8((uint8_t *)dst + 4 * k, vmovn_u16(both));
    }
}

static inline void widen_16(vi *v, const char *src)
{
    for (int k = 0; k < 4; k++) {
        uint8x8_t bytes = vld1_u8((const uint8_t *)src + 8 * k);
        v[k] = (vi)vmovl_u16(vreinterpret_u16_u8(bytes));
    }
}

static inline void widen_8(vi *v, const char *src)
{
    for (int k = 0; k < 4; k += 2) {
        uint16x8_t both = vmovl_u8(vld1_u8((const uint8_t *)src + 4 * k));
        v[k] = (vi)vmovl_u16(vget_low_u16(both));
        v[k + 1] = (vi)vmovl_u16(vget_high_u16(both));
    }
}

#include "cast_lanes.h"

#else
typedef int pkv_i_no_cast_neon;
#endif
