/* Runs of blank pages: see extents.h. */
#include "extents.h"

enum { MAX_SEARCHED = 4 }; /* blocks that one search looks into, once it has found a page */

void pkv_i_extents_fill(pkv_i_extents *e, bool blank)
{
    for (int64_t i = 0; i < e->n_blocks * PKV_I_BLOCK_WORDS; i++) {
        int64_t left = e->n_pages - i * 64;
        e->bits[i] = !blank || left <= 0 ? 0 : left >= 64 ? ~(uint64_t)0
                                                          : ((uint64_t)1 << left) - 1;
    }
    for (int64_t b = 0; b < e->n_blocks; b++) {
        e->bound[b] = blank ? PKV_I_BLOCK_PAGES : 0;
    }
}

void pkv_i_extents_give(pkv_i_extents *e, int64_t page)
{
    e->bits[page / 64] |= (uint64_t)1 << (page % 64);
    e->bound[page / PKV_I_BLOCK_PAGES] = PKV_I_BLOCK_PAGES;
}

void pkv_i_extents_take(pkv_i_extents *e, int64_t page)
{
    e->bits[page / 64] &= ~((uint64_t)1 << (page % 64));
}

void pkv_i_extents_take_run(pkv_i_extents *e, int64_t first, int64_t n)
{
    while (n > 0) {
        int64_t  bit = first % 64, now = n < 64 - bit ? n : 64 - bit;
        uint64_t mask = now == 64 ? ~(uint64_t)0 : (((uint64_t)1 << now) - 1) << bit;
        e->bits[first / 64] &= ~mask;
        first += now;
        n -= now;
    }
}

/* Pages from `page` on up to `end` that are all blank, or all taken. */
static int64_t same_from(const pkv_i_extents *e, int64_t page, int64_t end, bool blank)
{
    int64_t at = page;
    while (at < end) {
        uint64_t word = e->bits[at / 64] >> (at % 64);
        uint64_t other = blank ? ~word : word;
        int64_t  room = 64 - at % 64;
        int64_t  run = other == 0 ? room : __builtin_ctzll(other);
        if (run < room) {
            at += run;
            break;
        }
        at += room;
    }
    return (at < end ? at : end) - page;
}

/* The first run of a block that is long enough, else its longest, which is then its bound. */
static pkv_i_run_of_pages search_block(pkv_i_extents *e, int64_t block, int64_t wanted)
{
    pkv_i_run_of_pages best = {0, 0};
    int64_t            at = block * PKV_I_BLOCK_PAGES, end = at + PKV_I_BLOCK_PAGES;
    while (at < end) {
        at += same_from(e, at, end, false);
        int64_t run = same_from(e, at, end, true);
        if (run > best.n) {
            best = (pkv_i_run_of_pages){at, run};
            if (run >= wanted) {
                return best;
            }
        }
        at += run;
    }
    e->bound[block] = (uint16_t)best.n;
    return best;
}

pkv_i_run_of_pages pkv_i_extents_find(pkv_i_extents *e, int64_t wanted, int64_t *from)
{
    pkv_i_run_of_pages best = {0, 0};
    int64_t            block = *from;
    int                n_searched = 0;
    for (int64_t i = 0; i < e->n_blocks; i++) {
        /* A block that cannot beat the best one so far is not looked at. */
        if (e->bound[block] >= wanted || e->bound[block] > best.n) {
            pkv_i_run_of_pages run = search_block(e, block, wanted);
            n_searched++;
            if (run.n > best.n) {
                best = run;
                *from = block;
            }
            if (run.n >= wanted || (n_searched >= MAX_SEARCHED && best.n > 0)) {
                return best;
            }
        }
        block = block + 1 < e->n_blocks ? block + 1 : 0;
    }
    return best;
}

pkv_i_run_of_pages pkv_i_extents_next(const pkv_i_extents *e, int64_t page, int64_t wanted)
{
    const int64_t end = (page / PKV_I_BLOCK_PAGES + 1) * PKV_I_BLOCK_PAGES;
    for (int64_t at = page; at < end;) {
        at += same_from(e, at, end, false);
        int64_t run = same_from(e, at, end, true);
        if (run >= wanted && run > 0) {
            return (pkv_i_run_of_pages){at, run};
        }
        at += run;
    }
    return (pkv_i_run_of_pages){end, 0};
}

int64_t pkv_i_extents_longest(const pkv_i_extents *e)
{
    int64_t longest = 0;
    for (int64_t at = 0; at < e->n_pages;) {
        at += same_from(e, at, e->n_pages, false);
        int64_t run = same_from(e, at, e->n_pages, true);
        longest = run > longest ? run : longest;
        at += run;
    }
    return longest;
}
