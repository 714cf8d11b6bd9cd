/*
 * Copies of rows, both ways, in vectors of as many bytes as both sides allow.  The vectors
 * of a tile, of all layers, are divided among all warps of the grid, each warp's side by
 * side: so one long slice and many short ones both spread.
 */
#ifndef PAGEDKV_SRC_CUDA_COPY_KERNEL_H
#define PAGEDKV_SRC_CUDA_COPY_KERNEL_H

#include "tile.h"

enum { PKV_I_COPY_UNROLL = 4 }; /* loads of a lane before its first store */

/* A vector of a tile: of which layer, entry and token, and which of the token's. */
typedef struct pkv_i_cursor {
    uint32_t layer, entry, token, vector; /* token: of the tile */
    uint32_t lane;                        /* of the job, that the vector is in */
    char    *cache, *rows;                /* where the token's part of that lane lies */
} pkv_i_cursor;

/* Of several vectors of one token the address is computed once. */
PKV_I_DEVICE void pkv_i_cursor_place(pkv_i_cursor *c, const pkv_i_copy_job *job,
                                     const pkv_i_tile *tile)
{
    const pkv_i_list      *list = &job->list;
    const uint32_t         token = c->token - tile->before[c->entry];
    const pkv_i_copy_lane *lane = &job->lane[c->vector >= job->lane[0].n_vectors];
    c->lane = c->vector >= job->lane[0].n_vectors;
    c->cache = job->layer[c->layer].cache[c->lane] +
               pkv_i_slot_at(list, &lane->cache, tile->cache_start[c->entry], token);
    c->rows = job->layer[c->layer].rows[c->lane] +
              pkv_i_row_at(list, &lane->rows, tile->rows_start[c->entry], token);
}

/* Goes on to the layer and the entry that the token, counted on, is in. */
PKV_I_DEVICE void pkv_i_cursor_settle(pkv_i_cursor *c, const pkv_i_tile *tile, uint64_t token)
{
    while (token >= tile->n_tokens) {
        token -= tile->n_tokens;
        c->layer++;
        c->entry = 0;
    }
    c->token = (uint32_t)token;
    while (tile->before[c->entry + 1] <= c->token) {
        c->entry++;
    }
}

/* 32 vectors on. */
PKV_I_DEVICE void pkv_i_cursor_step(pkv_i_cursor *c, const pkv_i_copy_job *job,
                                    const pkv_i_tile *tile)
{
    uint64_t token = (uint64_t)c->token + job->step_tokens;
    c->vector += job->step_vectors;
    if (c->vector >= job->token_vectors) {
        c->vector -= job->token_vectors;
        token++;
    }
    if (token != c->token) {
        pkv_i_cursor_settle(c, tile, token);
        pkv_i_cursor_place(c, job, tile);
    } else if ((c->vector >= job->lane[0].n_vectors) != c->lane) {
        pkv_i_cursor_place(c, job, tile);
    }
}

PKV_I_DEVICE pkv_i_cursor pkv_i_cursor_at(const pkv_i_copy_job *job, const pkv_i_tile *tile,
                                          uint64_t i)
{
    uint64_t     vector, token;
    pkv_i_cursor c;
    const uint64_t of_all = pkv_i_divide_long(i, job->token_vectors, &vector);
    c.layer = (uint32_t)pkv_i_divide_long(of_all, tile->n_tokens, &token);
    c.token = (uint32_t)token;
    c.vector = (uint32_t)vector;
    c.entry = pkv_i_tile_find(tile, c.token);
    pkv_i_cursor_place(&c, job, tile);
    return c;
}

/* Where the vector is to be read and written. */
PKV_I_DEVICE void pkv_i_copy_ends(const pkv_i_copy_job *job, const pkv_i_cursor *c,
                                  uint32_t vector_bytes, const char **src, char **dst)
{
    const pkv_i_copy_lane *lane = &job->lane[c->lane];
    const uint32_t         vector = c->vector - (c->lane ? job->lane[0].n_vectors : 0);
    const uint32_t         head = pkv_i_divide(vector, lane->head_vectors);
    const int64_t in_head = (int64_t)(vector - head * lane->head_vectors.by) * vector_bytes;
    char         *cache = c->cache + in_head + head * lane->cache.head;
    char         *rows = c->rows + in_head + head * lane->rows.head;
    *src = job->gather ? cache : rows;
    *dst = job->gather ? rows : cache;
}

/* Vectors [from, to) of a tile by one warp: loads first, then stores. */
#define PKV_I_COPY_RANGE(bytes)                                                              \
    PKV_I_DEVICE void pkv_i_copy_range_##bytes(const pkv_i_copy_job *job,                    \
                                               const pkv_i_tile *tile, uint64_t from,        \
                                               uint64_t to)                                  \
    {                                                                                        \
        PKV_I_EACH_LANE(lane, 32) {                                                          \
            uint64_t     i = from + lane;                                                    \
            pkv_i_cursor c = pkv_i_cursor_at(job, tile, i < to ? i : from);                  \
            while (i < to) {                                                                 \
                pkv_i_vec##bytes v[PKV_I_COPY_UNROLL];                                       \
                char            *dst[PKV_I_COPY_UNROLL];                                     \
                const uint64_t   left = (to - i + 31) / 32;                                  \
                PKV_I_UNROLL for (uint32_t u = 0; u < PKV_I_COPY_UNROLL; u++) {              \
                    const char *src;                                                         \
                    if (u < left) {                                                          \
                        pkv_i_copy_ends(job, &c, bytes, &src, &dst[u]);                      \
                        v[u] = *(const pkv_i_vec##bytes *)(const void *)src;                 \
                        if (u + 1 < left) {                                                  \
                            pkv_i_cursor_step(&c, job, tile);                                \
                        }                                                                    \
                    }                                                                        \
                }                                                                            \
                PKV_I_UNROLL for (uint32_t u = 0; u < PKV_I_COPY_UNROLL; u++) {              \
                    if (u < left) {                                                          \
                        *(pkv_i_vec##bytes *)(void *)dst[u] = v[u];                          \
                    }                                                                        \
                }                                                                            \
                i += 32 * PKV_I_COPY_UNROLL;                                                 \
            }                                                                                \
        }                                                                                    \
    }

/* What a block does: of each tile the shares of its warps. */
#define PKV_I_COPY_BLOCK(bytes)                                                              \
    PKV_I_COPY_RANGE(bytes)                                                                  \
    PKV_I_DEVICE void pkv_i_block_copy_##bytes(const pkv_i_copy_job *job, pkv_i_grid grid,   \
                                               pkv_i_tile *tile)                             \
    {                                                                                        \
        const uint64_t n_warps = (uint64_t)grid.n_blocks * (PKV_I_CUDA_THREADS / 32);        \
        const int64_t  n = pkv_i_list_begin(&job->list, grid, tile);                         \
        for (int64_t first = 0; first < n; first += tile->n_entries) {                       \
            pkv_i_tile_load(&job->list, grid, first, n, tile);                               \
            const uint64_t all = (uint64_t)tile->n_tokens * job->token_vectors *             \
                                 job->list.n_layers;                                         \
            const uint64_t share = ((all + n_warps - 1) / n_warps + 31) / 32 * 32;           \
            PKV_I_EACH_TEAM(team, 32) {                                                      \
                /* Neighbours in the list go to different processors. */                     \
                const uint64_t warp = (uint64_t)team * grid.n_blocks + grid.block;           \
                const uint64_t from = warp * share;                                          \
                if (from < all) {                                                            \
                    pkv_i_copy_range_##bytes(job, tile, from,                                \
                                             from + share < all ? from + share : all);       \
                }                                                                            \
            }                                                                                \
        }                                                                                    \
    }

PKV_I_COPY_BLOCK(16)
PKV_I_COPY_BLOCK(8)
PKV_I_COPY_BLOCK(4)
PKV_I_COPY_BLOCK(2)
PKV_I_COPY_BLOCK(1)

#endif
