/*
 * What the files of the pool share: its parts, and the queue of pages.
 *
 * The queue is a ring of (page, stamp).  A page that leaves it in the middle
 * only changes its own stamp, and the entry is skipped when it comes up: no
 * links to follow, so the order of pages costs nothing.
 */
#ifndef PAGEDKV_SRC_POOL_STATE_H
#define PAGEDKV_SRC_POOL_STATE_H

#include "extents.h"
#include "internal.h"
#include "pool_pages.h"

enum {
    POOL_MAGIC = 0x706b7670,
    POOL_LOOK_AHEAD = 8, /* pages whose counts are fetched before they are needed */
    /* info: a stamp above two flags. */
    POOL_KEPT = 1,   /* worth keeping when the last owner leaves */
    POOL_QUEUED = 2, /* the ring has an entry with this info */
    POOL_STAMP = 4,  /* one step of the stamp */
    /* Kinds of a journal's entries, above the page's number. */
    POOL_KIND_SHIFT = 30,
    POOL_PAGE_MASK = (1 << POOL_KIND_SHIFT) - 1,
    POOL_DID_TAKE = 0,   /* blank, now used */
    POOL_DID_EVICT = 1,  /* cached, now used and no longer kept */
    POOL_DID_REVIVE = 2, /* cached, now used again */
    POOL_DID_SHARE = 3
};

typedef struct pkv_i_page {
    uint32_t owners;
    uint32_t info;
} pkv_i_page;

typedef struct pkv_i_entry {
    uint32_t page;
    uint32_t info; /* the page's at that time */
} pkv_i_entry;

/* Where the arrays lie, from the start of the pool; the whole can be moved. */
typedef struct pkv_i_pool_layout {
    uint64_t pages, ring, journal, noted, lost, is_lost, bits, bound, bound_before, total;
} pkv_i_pool_layout;

/* What a release brings back as it was. */
typedef struct pkv_i_pool_now {
    uint64_t head, tail; /* of the ring; only their low bits are places */
    int64_t  rover;      /* the block where the last search ended */
    int64_t  n_blank, n_cached, n_used, n_shared, n_evictions;
} pkv_i_pool_now;

struct pkv_pool {
    uint32_t          magic;
    int32_t           allocator;
    pkv_i_pool_layout at;
    int64_t           n_pages, n_blocks;
    uint64_t          ring_size; /* a power of two, at least twice the pages */
    pkv_i_pool_now    now, before; /* `before`: when the open reservation began */
    int64_t           n_used_peak;
    int64_t           n_journal;
    int64_t           lost_head, n_lost; /* of the list of lost pages, a ring */
    int64_t           n_losses;          /* that ever were; a release does not take one back */
    bool              reserving;
    pkv_allocator     memory; /* of a created pool */
};

static inline void *pkv_i_pool_at(const pkv_pool *p, uint64_t offset)
{
    return (char *)(uintptr_t)p + offset;
}

static inline pkv_i_page *pkv_i_pool_pages(const pkv_pool *p)
{
    return pkv_i_pool_at(p, p->at.pages);
}

static inline pkv_i_entry *pkv_i_pool_ring(const pkv_pool *p)
{
    return pkv_i_pool_at(p, p->at.ring);
}

static inline uint32_t *pkv_i_pool_journal(const pkv_pool *p)
{
    return pkv_i_pool_at(p, p->at.journal);
}

/* [n_pages] owners that the open reservation gave a page beside its first one; else 0. */
static inline uint32_t *pkv_i_pool_noted(const pkv_pool *p)
{
    return pkv_i_pool_at(p, p->at.noted);
}

/* Pages whose kept content is gone: a ring of n_pages, and a bit for each that is in it. */
static inline uint32_t *pkv_i_pool_lost(const pkv_pool *p)
{
    return pkv_i_pool_at(p, p->at.lost);
}

static inline uint64_t *pkv_i_pool_is_lost(const pkv_pool *p)
{
    return pkv_i_pool_at(p, p->at.is_lost);
}

static inline pkv_i_extents pkv_i_pool_extents(const pkv_pool *p)
{
    return (pkv_i_extents){.bits = pkv_i_pool_at(p, p->at.bits),
                           .bound = pkv_i_pool_at(p, p->at.bound),
                           .n_pages = p->n_pages,
                           .n_blocks = p->n_blocks};
}

/* Is there a pool, and are there n page numbers (whatever they are)? */
pkv_status pkv_i_pool_check_args(const pkv_pool *p, const int32_t *pages, int64_t n,
                                 pkv_error *err);

/* A page goes to the end of the queue, or the next one leaves it (there must be one). */
void     pkv_i_pool_push(pkv_pool *p, uint32_t page);
uint32_t pkv_i_pool_pop(pkv_pool *p);

static inline bool pkv_i_pool_is_current(const pkv_i_page *pages, const pkv_i_entry *e)
{
    return pages[e->page].info == e->info;
}

/* A page whose content was kept is not what it was: pkv_pool_lost() will say so, once. */
static inline void pkv_i_pool_lose(pkv_pool *p, uint32_t page)
{
    uint64_t *word = &pkv_i_pool_is_lost(p)[page / 64], bit = (uint64_t)1 << (page % 64);
    p->n_losses++;
    if ((*word & bit) == 0) {
        *word |= bit;
        int64_t at = p->lost_head + p->n_lost++;
        pkv_i_pool_lost(p)[at < p->n_pages ? at : at - p->n_pages] = page;
    }
}

/* The journal never overflows: a page gets its first owner once, and is shared once (see noted). */
static inline void pkv_i_pool_note(pkv_pool *p, uint32_t page, uint32_t kind)
{
    if (p->reserving) {
        pkv_i_pool_journal(p)[p->n_journal++] = page | kind << POOL_KIND_SHIFT;
    }
}

#endif
