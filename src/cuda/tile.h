/*
 * Reading a list: a block looks at a tile of its entries, leaves out what is none of the
 * list's, and counts tokens, so that any share of the tile can be found by itself.
 */
#ifndef PAGEDKV_SRC_CUDA_TILE_H
#define PAGEDKV_SRC_CUDA_TILE_H

#include "exec.h"

/* Lengths that stand for something else. */
enum { PKV_I_OTHER_GROUP = -1, PKV_I_BAD_ENTRY = -2 };

/* In shared memory. */
typedef struct pkv_i_tile {
    uint32_t before[PKV_I_CUDA_TILE + 1]; /* tokens before entry k; of all at the end */
    int32_t  cache_start[PKV_I_CUDA_TILE], rows_start[PKV_I_CUDA_TILE], len[PKV_I_CUDA_TILE];
    int64_t  scan[PKV_I_CUDA_THREADS], sums[PKV_I_CUDA_THREADS / 32];
    uint32_t n_entries; /* fewer than were read if their tokens would not fit 32 bits */
    uint32_t n_tokens;
} pkv_i_tile;

/* Columns that are fetched whatever the count is. */
PKV_I_DEVICE uint32_t pkv_i_list_ahead(const pkv_i_list *list)
{
    return list->capacity < PKV_I_CUDA_THREADS ? (uint32_t)list->capacity : PKV_I_CUDA_THREADS;
}

/* Entries first + [from, to), as they stand in the list. */
PKV_I_DEVICE void pkv_i_tile_fetch(const pkv_i_list *list, int64_t first, uint32_t from,
                                   uint32_t to, pkv_i_tile *tile)
{
    PKV_I_EACH_THREAD(t) {
        for (uint32_t k = from + t; k < to; k += PKV_I_CUDA_THREADS) {
            if (list->copies != NULL) {
                const pkv_page_copy copy = list->copies[first + k];
                tile->cache_start[k] = copy.dst;
                tile->rows_start[k] = copy.src;
                /* No copy has less than one token: what is negative is wrong whatever it is. */
                tile->len[k] = copy.group != list->group ? PKV_I_OTHER_GROUP
                               : copy.n_tokens > 0       ? copy.n_tokens
                                                         : PKV_I_BAD_ENTRY;
            } else {
                tile->cache_start[k] = list->cache_start[first + k];
                tile->rows_start[k] = list->rows_start[first + k];
                tile->len[k] = list->len[first + k];
            }
        }
    }
}

/* Tokens of entry k, or PKV_I_OTHER_GROUP or PKV_I_BAD_ENTRY. */
PKV_I_DEVICE int32_t pkv_i_tile_check(const pkv_i_list *list, const pkv_i_tile *tile, uint32_t k)
{
    const int64_t cache = tile->cache_start[k], rows = tile->rows_start[k], len = tile->len[k];
    uint32_t      fits;
    if (list->copies != NULL) {
        if (len == PKV_I_OTHER_GROUP) {
            return PKV_I_OTHER_GROUP;
        }
        fits = len > 0 && len <= list->page_tokens && cache >= 0 && cache < list->cache_limit &&
               rows >= 0 && rows < list->rows_limit;
    } else {
        fits = len >= 0 && cache >= 0 && cache + len <= list->cache_limit && rows >= 0 &&
               rows + len <= list->rows_limit;
    }
    return fits ? (int32_t)len : PKV_I_BAD_ENTRY;
}

/* Entries of a thread: those of one thread lie side by side. */
PKV_I_DEVICE void pkv_i_tile_span(uint32_t n, uint32_t t, uint32_t *from, uint32_t *to)
{
    const uint32_t each = (n + PKV_I_CUDA_THREADS - 1) / PKV_I_CUDA_THREADS;
    *from = t * each < n ? t * each : n;
    *to = *from + each < n ? *from + each : n;
}

/* From `n` fetched entries to the tile: checked, tokens counted, faults told once. */
PKV_I_DEVICE void pkv_i_tile_count(const pkv_i_list *list, pkv_i_grid grid, uint32_t n,
                                   pkv_i_tile *tile)
{
    const int64_t limit = (int64_t)1 << 31;
    pkv_i_sync();
    PKV_I_EACH_THREAD(t) {
        uint32_t from, to;
        int64_t  sum = 0;
        pkv_i_tile_span(n, t, &from, &to);
        for (uint32_t k = from; k < to; k++) {
            tile->len[k] = pkv_i_tile_check(list, tile, k);
            sum += tile->len[k] > 0 ? tile->len[k] : 0;
        }
        tile->scan[t] = sum;
    }
    pkv_i_block_scan(tile->scan, tile->sums);
    PKV_I_EACH_THREAD(t) {
        uint32_t from, to;
        int64_t  at = tile->scan[t];
        pkv_i_tile_span(n, t, &from, &to);
        for (uint32_t k = from; k < to; k++) {
            const int64_t end = at + (tile->len[k] > 0 ? tile->len[k] : 0);
            if (at < limit) {
                tile->before[k] = (uint32_t)at;
                if (end >= limit || k + 1 == n) { /* one entry only: the last that counts */
                    tile->before[k + 1] = tile->n_tokens = (uint32_t)end;
                    tile->n_entries = k + 1;
                }
            }
            at = end;
        }
    }
    pkv_i_sync();
    if (grid.block == 0 && list->status != NULL) {
        PKV_I_EACH_THREAD(t) {
            uint32_t n_bad = 0;
            for (uint32_t k = t; k < tile->n_entries; k += PKV_I_CUDA_THREADS) {
                n_bad += tile->len[k] == PKV_I_BAD_ENTRY;
            }
            pkv_i_tell(list->status, 0, (uint64_t)n_bad * list->n_layers);
        }
    }
}

/* The entry of token `token` < n_tokens of a tile. */
PKV_I_DEVICE uint32_t pkv_i_tile_find(const pkv_i_tile *tile, uint32_t token)
{
    uint32_t low = 0, high = tile->n_entries; /* before[low] <= token < before[high] */
    while (high - low > 1) {
        const uint32_t middle = low + (high - low) / 2;
        if (tile->before[middle] <= token) {
            low = middle;
        } else {
            high = middle;
        }
    }
    return low;
}

/* Where a token of an entry lies in the rows, from the plane's start: they are one page. */
PKV_I_DEVICE int64_t pkv_i_row_at(const pkv_i_list *list, const pkv_i_steps *steps, int32_t start,
                                  uint32_t token)
{
    return list->copies != NULL ? start * steps->page + token * steps->token
                                : ((uint32_t)start + token) * steps->token;
}

/* The same in the cache. */
PKV_I_DEVICE int64_t pkv_i_slot_at(const pkv_i_list *list, const pkv_i_steps *steps, int32_t start,
                                   uint32_t token)
{
    const pkv_i_divisor page = list->cache_page;
    if (list->copies != NULL || page.by == 0) {
        return pkv_i_row_at(list, steps, start, token);
    }
    const uint32_t slot = (uint32_t)start + token;
    /* A cache may have more slots than an int32 can begin at. */
    const uint32_t p = slot >> 31 ? slot / page.by : pkv_i_divide(slot, page);
    return p * steps->page + (slot - p * page.by) * steps->token;
}

/* How many entries the list has, by its own count; the first of them are on their way. */
PKV_I_DEVICE int64_t pkv_i_list_begin(const pkv_i_list *list, pkv_i_grid grid, pkv_i_tile *tile)
{
    const int64_t n = *list->count;
    /* Columns that may not count, asked for before the count is there: it saves a trip. */
    pkv_i_tile_fetch(list, 0, 0, pkv_i_list_ahead(list), tile);
    if (n >= 0 && n <= list->capacity) {
        return n;
    }
    if (grid.block == 0) {
        PKV_I_EACH_THREAD(t) {
            if (t == 0) {
                pkv_i_tell(list->status, PKV_CUDA_FAULT_COUNT, 0);
            }
        }
    }
    return 0;
}

/* The tile of entries first, ... of n; the next one begins tile->n_entries later. */
PKV_I_DEVICE void pkv_i_tile_load(const pkv_i_list *list, pkv_i_grid grid, int64_t first,
                                  int64_t n, pkv_i_tile *tile)
{
    const uint32_t there = first > 0 ? 0 : pkv_i_list_ahead(list);
    const uint32_t take = n - first < PKV_I_CUDA_TILE ? (uint32_t)(n - first) : PKV_I_CUDA_TILE;
    if (first > 0) {
        pkv_i_sync(); /* nobody looks at the last tile any more */
    }
    pkv_i_tile_fetch(list, first, there, take, tile);
    pkv_i_tile_count(list, grid, take, tile);
}

#endif
