/*
 * Checksums of every conversion over a fixed set of inputs, a line for each; where the
 * processor has vectors, a failure if theirs are others.  See same_bytes.sh.
 */
#include <pagedkv/pagedkv.h>

#include <stdio.h>
#include <string.h>

#include "../../src/cpu/cast.h"

enum { N = 4096, GROUP = 32, BYTES = 4 * N };

pkv_i_cast_fn pkv_i_cast_c(int32_t from, int32_t to);
pkv_i_cast_fn pkv_i_cast_avx2(int32_t from, int32_t to);
pkv_i_cast_fn pkv_i_cast_neon(int32_t from, int32_t to);

static pkv_i_cast_fn vectors(int32_t from, int32_t to)
{
#if defined(__x86_64__)
    return __builtin_cpu_supports("avx2") ? pkv_i_cast_avx2(from, to) : NULL;
#elif defined(__aarch64__)
    return pkv_i_cast_neon(from, to);
#else
    return pkv_i_cast_c(from, to);
#endif
}

static uint64_t next(uint64_t *state)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return *state >> 17;
}

/* Any bits, usual numbers, ties of few bits, subnormals and NaNs, a group of each in turn. */
static uint32_t f32_input(int i, uint64_t *state)
{
    const uint32_t any = (uint32_t)next(state), usual = (any & 0x807FFFFF) | (110 + any % 26) << 23;
    switch (i / GROUP % 6) {
    case 0:
        return any;
    case 1:
        return usual & 0xFFFFF000;
    case 2:
        return any & 0x807FFFFF; /* subnormal */
    case 3:
        return i % 8 == 0 ? any | 0x7F800000 : usual;
    default:
        return usual;
    }
}

static void fill(int32_t from, unsigned char *src)
{
    uint64_t state = 12345;
    for (int i = 0; i < N; i++) {
        const uint32_t bits = f32_input(i, &state);
        const uint16_t upper = (uint16_t)(bits >> 16);
        if (from == PKV_DTYPE_F32) {
            memcpy(src + 4 * i, &bits, 4);
        } else if (from == PKV_DTYPE_F16 || from == PKV_DTYPE_BF16) {
            const uint16_t code = from == PKV_DTYPE_BF16 ? upper : (uint16_t)(i * 16 + i / 256);
            memcpy(src + 2 * i, &code, 2);
        } else {
            src[i] = (unsigned char)(i + i / 256);
        }
    }
}

static uint64_t sum(uint64_t hash, const unsigned char *bytes, int n)
{
    for (int i = 0; i < n; i++) {
        hash = (hash ^ bytes[i]) * 0x100000001b3u;
    }
    return hash;
}

static uint64_t run(pkv_i_cast_fn cast, int32_t from, pkv_i_scaling scaling)
{
    static unsigned char src[BYTES], dst[BYTES];
    float                scales[N / GROUP];
    fill(from, src);
    memset(dst, 0, sizeof dst);
    for (int g = 0; g < N / GROUP; g++) {
        const float some[] = {1, 0.3f, 3, 0.01f, 4, 0x1p-126f, 0x1p126f, 0.007f};
        scales[g] = some[g / 6 % 8];
    }
    /* A few elements fewer, so that vectors have a rest too. */
    const pkv_i_vectors v = {.dst = (char *)dst, .src = (const char *)src,
                             .scale = (char *)scales, .n_vectors = 4, .n = 992,
                             .group = 62, .dst_stride_bytes = N,
                             .src_stride_bytes = BYTES / 16, .scale_stride_bytes = 64};
    cast(&v, scaling);
    return sum(sum(0xcbf29ce484222325u, dst, BYTES), (const unsigned char *)scales, sizeof scales);
}

int main(void)
{
    int n = 0;
    for (int32_t from = PKV_DTYPE_F32; from <= PKV_DTYPE_INT4; from++) {
        for (int32_t to = PKV_DTYPE_F32; to <= PKV_DTYPE_INT4; to++) {
            const pkv_i_cast_fn plain = pkv_i_cast_c(from, to), wide = vectors(from, to);
            for (int s = PKV_I_SCALE_NONE; plain != NULL && s <= PKV_I_SCALE_BACK; s++) {
                if (s == PKV_I_SCALE_COMPUTED && to <= PKV_DTYPE_BF16) {
                    continue; /* there is no such thing */
                }
                const uint64_t found = run(plain, from, (pkv_i_scaling)s);
                printf("%d %d %d %016llx\n", (int)from, (int)to, s, (unsigned long long)found);
                if (wide != NULL && run(wide, from, (pkv_i_scaling)s) != found) {
                    printf("%d %d %d: vectors differ\n", (int)from, (int)to, s);
                    return 1;
                }
                n++;
            }
        }
    }
    return n > 0 ? 0 : 1;
}
