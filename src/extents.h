/*
 * Runs of blank pages, as one bit a page.  A page is freed and taken by one bit,
 * and runs join by themselves.  Blocks of 1024 pages have an upper bound for
 * their longest run, so that a search looks into few of them.
 */
#ifndef PAGEDKV_SRC_EXTENTS_H
#define PAGEDKV_SRC_EXTENTS_H

#include <stdbool.h>
#include <stdint.h>

enum { PKV_I_BLOCK_PAGES = 1024, PKV_I_BLOCK_WORDS = PKV_I_BLOCK_PAGES / 64 };

typedef struct pkv_i_extents {
    uint64_t *bits;    /* [n_blocks * 16], 1: blank; those behind the last page are 0 */
    uint16_t *bound;   /* [n_blocks], no run of the block is longer */
    int64_t   n_pages;
    int64_t   n_blocks;
} pkv_i_extents;

/* A run inside one block. */
typedef struct pkv_i_run_of_pages {
    int64_t first;
    int64_t n; /* 0: there is none */
} pkv_i_run_of_pages;

static inline bool pkv_i_is_blank(const pkv_i_extents *e, int64_t page)
{
    return (e->bits[page / 64] >> (page % 64) & 1) != 0;
}

/* All pages blank, or none. */
void pkv_i_extents_fill(pkv_i_extents *e, bool blank);

/* One page; it must be in the other state. */
void pkv_i_extents_give(pkv_i_extents *e, int64_t page);
void pkv_i_extents_take(pkv_i_extents *e, int64_t page);

/* n blank pages from first on become taken. */
void pkv_i_extents_take_run(pkv_i_extents *e, int64_t first, int64_t n);

/*
 * A run of at least `wanted` blank pages, 1 .. 1024, found from block *from on;
 * if there is none, or it would take long to find, the longest of those that
 * were looked at.  *from moves to its block.  There must be a blank page.
 */
pkv_i_run_of_pages pkv_i_extents_find(pkv_i_extents *e, int64_t wanted, int64_t *from);

/* The next run of at least `wanted` blank pages that starts in [page, end of its block). */
pkv_i_run_of_pages pkv_i_extents_next(const pkv_i_extents *e, int64_t page, int64_t wanted);

/* Longest run, over the ends of blocks too. */
int64_t pkv_i_extents_longest(const pkv_i_extents *e);

#endif
