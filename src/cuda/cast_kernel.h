/*
 * Conversions of rows, both ways.  A unit is what shares one scale, or a piece of it; a team
 * of lanes takes a unit at a time, eight elements a lane.  The numbers are the processor's
 * (cpu/numbers.h), compiled without contraction, so the bytes are the same.
 */
#ifndef PAGEDKV_SRC_CUDA_CAST_KERNEL_H
#define PAGEDKV_SRC_CUDA_CAST_KERNEL_H

#include "tile.h"

#if defined(__CUDACC__)
#define PKV_I_INLINE static __device__ __forceinline__
#endif
#include "../cpu/numbers.h"

/* ---- bytes: whole words where the address allows it --------------------------------- */

/* Eight elements have at most 32 bytes. */
typedef struct pkv_i_words {
    uint32_t word[8];
} pkv_i_words;

PKV_I_DEVICE uint32_t pkv_i_alignment(const char *at)
{
    return (uint32_t)(uintptr_t)at & 15;
}

/* Reads n_bytes of one to 32. */
PKV_I_DEVICE pkv_i_words pkv_i_read_words(const char *at, uint32_t n_bytes)
{
    pkv_i_words    w = {{0, 0, 0, 0, 0, 0, 0, 0}};
    const uint32_t off = pkv_i_alignment(at);
    if (off == 0 && n_bytes % 16 == 0) {
        PKV_I_UNROLL for (uint32_t i = 0; i < 2; i++) {
            if (16 * i < n_bytes) {
                const pkv_i_vec16 v = ((const pkv_i_vec16 *)(const void *)at)[i];
                w.word[4 * i] = v.x;
                w.word[4 * i + 1] = v.y;
                w.word[4 * i + 2] = v.z;
                w.word[4 * i + 3] = v.w;
            }
        }
    } else if (off % 4 == 0 && n_bytes % 4 == 0) {
        PKV_I_UNROLL for (uint32_t i = 0; i < 8; i++) {
            if (4 * i < n_bytes) {
                w.word[i] = ((const pkv_i_vec4 *)(const void *)at)[i];
            }
        }
    } else {
        PKV_I_UNROLL for (uint32_t i = 0; i < 32; i++) {
            if (i < n_bytes) {
                w.word[i / 4] |= (uint32_t)(uint8_t)at[i] << i % 4 * 8;
            }
        }
    }
    return w;
}

PKV_I_DEVICE void pkv_i_write_words(char *at, const pkv_i_words *w, uint32_t n_bytes)
{
    const uint32_t off = pkv_i_alignment(at);
    if (off == 0 && n_bytes % 16 == 0) {
        PKV_I_UNROLL for (uint32_t i = 0; i < 2; i++) {
            if (16 * i < n_bytes) {
                pkv_i_vec16 v;
                v.x = w->word[4 * i];
                v.y = w->word[4 * i + 1];
                v.z = w->word[4 * i + 2];
                v.w = w->word[4 * i + 3];
                ((pkv_i_vec16 *)(void *)at)[i] = v;
            }
        }
    } else if (off % 8 == 0 && n_bytes == 8) {
        pkv_i_vec8 v;
        v.x = w->word[0];
        v.y = w->word[1];
        *(pkv_i_vec8 *)(void *)at = v;
    } else if (off % 4 == 0 && n_bytes % 4 == 0) {
        PKV_I_UNROLL for (uint32_t i = 0; i < 8; i++) {
            if (4 * i < n_bytes) {
                ((pkv_i_vec4 *)(void *)at)[i] = w->word[i];
            }
        }
    } else {
        PKV_I_UNROLL for (uint32_t i = 0; i < 32; i++) {
            if (i < n_bytes) {
                at[i] = (char)(w->word[i / 4] >> i % 4 * 8);
            }
        }
    }
}

/* ---- elements ----------------------------------------------------------------------- */

PKV_I_DEVICE uint32_t pkv_i_code_at(const pkv_i_words *w, uint32_t i, uint32_t bits)
{
    const uint32_t word = w->word[i * bits / 32] >> i * bits % 32;
    return bits == 32 ? word : word & ((1u << bits) - 1);
}

PKV_I_DEVICE void pkv_i_put_code(pkv_i_words *w, uint32_t i, uint32_t bits, uint32_t code)
{
    w->word[i * bits / 32] |= (bits == 32 ? code : code & ((1u << bits) - 1)) << i * bits % 32;
}

/* From a code to a number, and back. */
#define DECODE_f32(code) pkv_i_float(code)
#define DECODE_f16(code) pkv_i_from_f16((uint16_t)(code))
#define DECODE_bf16(code) pkv_i_from_bf16((uint16_t)(code))
#define DECODE_e4m3(code) pkv_i_from_e4m3((uint8_t)(code))
#define DECODE_e5m2(code) pkv_i_from_e5m2((uint8_t)(code))
#define DECODE_int8(code) ((float)(int8_t)(code))
#define DECODE_int4(code) ((float)((int32_t)((code) ^ 8) - 8))
#define ENCODE_f32(x) pkv_i_bits(x)
#define ENCODE_f16(x) pkv_i_to_f16(x)
#define ENCODE_bf16(x) pkv_i_to_bf16(x)
#define ENCODE_e4m3(x) pkv_i_to_e4m3(x)
#define ENCODE_e5m2(x) pkv_i_to_e5m2(x)
#define ENCODE_int8(x) pkv_i_to_int(x, 127)
#define ENCODE_int4(x) pkv_i_to_int(x, 7)

/*
 * x times its scale's factor.  A device's product that is a NaN has neither sign nor payload, so
 * it is made of what was multiplied, as processors do: of x, of a scale that is one, or of none.
 */
PKV_I_DEVICE float pkv_i_scaled(float x, float factor)
{
    const float product = pkv_i_multiply(x, factor);
    if (product == product) {
        return product;
    }
    const uint32_t nan = x != x             ? pkv_i_bits(x)
                         : factor != factor ? pkv_i_bits(factor)
                                            : 0xffc00000u;
    return pkv_i_float(nan | PKV_I_F32_QUIET);
}

/* ---- units -------------------------------------------------------------------------- */

/* One unit: elements, where they lie, and their scale. */
typedef struct pkv_i_unit {
    const char *src;
    char       *dst, *scale;
    uint32_t    n;       /* elements */
    int32_t     scaling; /* pkv_i_scaling */
    uint32_t    given;   /* the scale is the caller's */
} pkv_i_unit;

PKV_I_DEVICE pkv_i_unit pkv_i_unit_at(const pkv_i_cast_job *job, const pkv_i_tile *tile,
                                      uint64_t i, uint32_t src_bits, uint32_t dst_bits)
{
    uint64_t       at, token;
    const uint64_t of_all = pkv_i_divide_long(i, job->token_units, &at);
    const uint32_t layer = (uint32_t)pkv_i_divide_long(of_all, tile->n_tokens, &token);
    const uint32_t entry = pkv_i_tile_find(tile, (uint32_t)token);
    const uint32_t in_entry = (uint32_t)token - tile->before[entry];
    const uint32_t second = at >= job->plane[0].n_units;
    const pkv_i_cast_plane *p = &job->plane[second];
    const uint32_t in_token = (uint32_t)at - (second ? job->plane[0].n_units : 0);
    const uint32_t head = pkv_i_divide(in_token, p->head_units);
    const uint32_t in_head = in_token - head * p->head_units.by;
    const uint32_t group = pkv_i_divide(in_head, p->group_units);
    const uint32_t from = (in_head - group * p->group_units.by) * p->unit; /* of the group */
    const int64_t  element = (int64_t)group * p->group + from;
    const pkv_i_list *list = &job->list;
    const int32_t     slot = tile->cache_start[entry], row = tile->rows_start[entry];
    char *cache = job->layer[layer].cache[second] + head * p->cache.head +
                  pkv_i_slot_at(list, &p->cache, slot, in_entry);
    char *rows = job->layer[layer].rows[second] + head * p->rows.head +
                 pkv_i_row_at(list, &p->rows, row, in_entry);
    pkv_i_unit u;
    u.n = p->group - from < p->unit ? p->group - from : p->unit;
    u.scaling = p->scaling;
    u.given = p->given;
    u.src = (job->gather ? cache : rows) + element * src_bits / 8;
    u.dst = (job->gather ? rows : cache) + element * dst_bits / 8;
    u.scale = NULL;
    if (p->scaling != PKV_I_SCALE_NONE) {
        u.scale = job->layer[layer].scales[second] + head * p->scales.head + (int64_t)group * 4 +
                  (job->scales_by_rows
                       ? pkv_i_row_at(list, &p->scales, row, in_entry)
                       : pkv_i_slot_at(list, &p->scales, slot, in_entry));
    }
    return u;
}

/* A given scale; 0 if it is none to use. */
PKV_I_DEVICE float pkv_i_read_scale(const pkv_i_unit *u)
{
    const uint32_t bits = pkv_i_read_words(u->scale, 4).word[0];
    return u->given && (bits < 0x00800000 || bits >= PKV_I_F32_INF) ? 0.0f : pkv_i_float(bits);
}

#define PKV_I_CAST_UNIT(from, to, from_dtype, to_dtype)                                       \
    /* The largest magnitude of a unit's finite elements, as float's bits. */                 \
    PKV_I_DEVICE uint32_t pkv_i_largest_##from##_##to(const pkv_i_unit *u, uint32_t width)    \
    {                                                                                         \
        uint32_t largest = 0;                                                                 \
        PKV_I_EACH_LANE(lane, width) {                                                        \
            for (uint32_t e = 8 * lane; e < u->n; e += 8 * width) {                           \
                const uint32_t    n = u->n - e < 8 ? u->n - e : 8;                            \
                const pkv_i_words w = pkv_i_read_words(u->src + (int64_t)e * BITS_##from / 8, \
                                                       n * BITS_##from / 8);                  \
                PKV_I_UNROLL for (uint32_t i = 0; i < 8; i++) { /* zeros behind the end */    \
                    const float    x = DECODE_##from(pkv_i_code_at(&w, i, BITS_##from));      \
                    const uint32_t size = pkv_i_bits(x) & PKV_I_F32_MAGNITUDE;                \
                    largest = size < PKV_I_F32_INF && size > largest ? size : largest;        \
                }                                                                             \
            }                                                                                 \
        }                                                                                     \
        return pkv_i_team_max(largest, width);                                                \
    }                                                                                         \
    PKV_I_DEVICE void pkv_i_cast_elements_##from##_##to(const pkv_i_unit *u, uint32_t width,  \
                                                        float factor)                         \
    {                                                                                         \
        PKV_I_EACH_LANE(lane, width) {                                                        \
            for (uint32_t e = 8 * lane; e < u->n; e += 8 * width) {                           \
                const uint32_t    n = u->n - e < 8 ? u->n - e : 8;                            \
                const pkv_i_words w = pkv_i_read_words(u->src + (int64_t)e * BITS_##from / 8, \
                                                       n * BITS_##from / 8);                  \
                pkv_i_words out = {{0, 0, 0, 0, 0, 0, 0, 0}};                                 \
                PKV_I_UNROLL for (uint32_t i = 0; i < 8; i++) {                               \
                    const float x = DECODE_##from(pkv_i_code_at(&w, i, BITS_##from));         \
                    pkv_i_put_code(&out, i, BITS_##to, ENCODE_##to(pkv_i_scaled(x, factor))); \
                }                                                                             \
                pkv_i_write_words(u->dst + (int64_t)e * BITS_##to / 8, &out,                  \
                                  n * BITS_##to / 8);                                         \
            }                                                                                 \
        }                                                                                     \
    }                                                                                         \
    PKV_I_DEVICE void pkv_i_cast_unit_##from##_##to(const pkv_i_cast_job *job,                \
                                                    const pkv_i_unit *u)                      \
    {                                                                                         \
        float s = 1.0f;                                                                       \
        if (u->scaling == PKV_I_SCALE_COMPUTED) {                                             \
            s = pkv_i_scale_of(pkv_i_largest_##from##_##to(u, job->team), MOST_##to);         \
            PKV_I_EACH_LANE(lane, job->team) {                                                \
                if (lane == 0) {                                                              \
                    const pkv_i_words w = {{pkv_i_bits(s), 0, 0, 0, 0, 0, 0, 0}};             \
                    pkv_i_write_words(u->scale, &w, 4);                                       \
                }                                                                             \
            }                                                                                 \
        } else if (u->scaling != PKV_I_SCALE_NONE) {                                          \
            s = pkv_i_read_scale(u);                                                          \
            if (u->given && s == 0.0f) {                                                      \
                pkv_i_tell(job->list.status, PKV_CUDA_FAULT_SCALE, 0);                      \
                return;                                                                       \
            }                                                                                 \
        }                                                                                     \
        pkv_i_cast_elements_##from##_##to(u, job->team,                                       \
                                          u->scaling == PKV_I_SCALE_BACK ? s : 1.0f / s);     \
    }                                                                                         \
    PKV_I_DEVICE void pkv_i_block_cast_##from##_##to(const pkv_i_cast_job *job,               \
                                                     pkv_i_grid grid, pkv_i_tile *tile)       \
    {                                                                                         \
        const uint64_t n_teams = (uint64_t)grid.n_blocks * (PKV_I_CUDA_THREADS / job->team);  \
        const int64_t  n = pkv_i_list_begin(&job->list, grid, tile);                          \
        for (int64_t first = 0; first < n; first += tile->n_entries) {                        \
            pkv_i_tile_load(&job->list, grid, first, n, tile);                                \
            const uint64_t all = (uint64_t)tile->n_tokens * job->token_units *                \
                                 job->list.n_layers;                                          \
            PKV_I_EACH_TEAM(team, job->team) {                                                \
                /* Neighbours stay in a block: they read the same lines. */                   \
                uint64_t i = (uint64_t)grid.block * (PKV_I_CUDA_THREADS / job->team) + team;  \
                for (; i < all; i += n_teams) {                                               \
                    const pkv_i_unit u = pkv_i_unit_at(job, tile, i, BITS_##from, BITS_##to); \
                    pkv_i_cast_unit_##from##_##to(job, &u);                                   \
                }                                                                             \
            }                                                                                 \
        }                                                                                     \
    }
PKV_I_CASTS(PKV_I_CAST_UNIT)
#undef PKV_I_CAST_UNIT

#endif
