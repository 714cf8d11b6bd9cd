/* The pool: the queue of pages, allocation, reservations. */
#include <string.h>

#include "pool_state.h"

/* ---- the ring --------------------------------------------------------------------- */

/* Drops what is out of date; at most half of the entries are not. */
static void compact(pkv_pool *p)
{
    const pkv_i_page *states = pkv_i_pool_pages(p);
    pkv_i_entry      *ring = pkv_i_pool_ring(p);
    uint64_t          to = p->now.head, mask = p->ring_size - 1;
    for (uint64_t i = p->now.head; i != p->now.tail; i++) {
        pkv_i_entry e = ring[i & mask];
        if (pkv_i_pool_is_current(states, &e)) {
            ring[to++ & mask] = e;
        }
    }
    p->now.tail = to;
}

void pkv_i_pool_push(pkv_pool *p, uint32_t page)
{
    pkv_i_page *s = &pkv_i_pool_pages(p)[page];
    s->info = (s->info + POOL_STAMP) | POOL_QUEUED;
    if (p->now.tail - p->now.head == p->ring_size) {
        compact(p);
    }
    pkv_i_pool_ring(p)[p->now.tail++ & (p->ring_size - 1)] = (pkv_i_entry){page, s->info};
}

/* The next page of the ring, oldest first or newest first; there must be one. */
uint32_t pkv_i_pool_pop(pkv_pool *p)
{
    const pkv_i_page  *states = pkv_i_pool_pages(p);
    const pkv_i_entry *ring = pkv_i_pool_ring(p);
    const uint64_t     mask = p->ring_size - 1;
    const bool         newest = p->allocator == PKV_POOL_LIFO;
    for (;;) {
        const pkv_i_entry *e = newest ? &ring[--p->now.tail & mask] : &ring[p->now.head++ & mask];
        uint64_t           later = newest ? p->now.tail - 1 - POOL_LOOK_AHEAD
                                          : p->now.head + POOL_LOOK_AHEAD;
        if (later - p->now.head < p->now.tail - p->now.head) { /* else there is no entry there */
            __builtin_prefetch(&states[ring[later & mask].page]);
        }
        if (pkv_i_pool_is_current(states, e)) {
            return e->page;
        }
    }
}

/* ---- allocation ------------------------------------------------------------------- */

/* A page without an owner gets one; where it came from, it is not any more. */
static void own(pkv_pool *p, uint32_t page, uint32_t kind)
{
    pkv_i_pool_pages(p)[page].owners = 1;
    pkv_i_pool_note(p, page, kind);
    if (kind == POOL_DID_EVICT && !p->reserving) { /* else when it is certain */
        pkv_i_pool_lose(p, page);
    }
}

static void take_run(pkv_pool *p, pkv_i_extents *e, int64_t first, int64_t n, int32_t *pages)
{
    pkv_i_extents_take_run(e, first, n);
    for (int64_t i = 0; i < n; i++) {
        own(p, (uint32_t)(first + i), POOL_DID_TAKE);
        pages[i] = (int32_t)(first + i);
    }
    p->now.n_blank -= n;
}

/* Blank pages right behind `after`. */
static int64_t take_behind(pkv_pool *p, pkv_i_extents *e, int64_t after, int64_t n, int32_t *pages)
{
    int64_t got = 0;
    while (got < n && after + 1 + got < p->n_pages && pkv_i_is_blank(e, after + 1 + got)) {
        got++;
    }
    take_run(p, e, after + 1, got, pages);
    return got;
}

/*
 * A place for n pages and room on both sides: before them for what grows there,
 * behind them for their own growth.  Where no run is so long, less room.
 */
static pkv_i_run_of_pages find_place(pkv_pool *p, pkv_i_extents *e, int64_t n, int64_t room)
{
    const int64_t most = PKV_I_BLOCK_PAGES;
    int64_t       want = n < most ? n : most;
    int64_t       gap = room < (most - want) / 2 ? room : (most - want) / 2;
    pkv_i_run_of_pages run = pkv_i_extents_find(e, want + 2 * gap, &p->now.rover);
    int64_t spare = run.n - want;
    if (spare > 0 && run.first > 0 && gap > 0) {
        int64_t before = spare / 2 < gap ? spare / 2 : gap;
        run.first += before;
        run.n -= before;
    }
    return run;
}

/*
 * Where no run is long enough, one search serves for several: from the one that
 * it found on, the other runs of the block that are half as long or longer.
 */
static int64_t take_pieces(pkv_pool *p, pkv_i_extents *e, int64_t n, pkv_i_run_of_pages run,
                           int32_t *pages)
{
    const int64_t least = (run.n + 1) / 2;
    int64_t       got = 0;
    while (got < n && run.n > 0) {
        int64_t now = n - got < run.n ? n - got : run.n;
        take_run(p, e, run.first, now, pages + got);
        got += now;
        int64_t end = run.first + run.n;
        run = end % PKV_I_BLOCK_PAGES == 0 ? (pkv_i_run_of_pages){end, 0}
                                           : pkv_i_extents_next(e, end, least);
    }
    return got;
}

/* A sequence is freed from its end, so its pages come out of the queue backwards. */
static void put_forwards(int32_t *pages, int64_t n)
{
    int64_t n_rising = 0;
    for (int64_t i = 1; i < n; i++) {
        n_rising += (pages[i] == pages[i - 1] + 1) - (pages[i] == pages[i - 1] - 1);
    }
    for (int64_t i = 0, j = n - 1; n_rising < 0 && i < j; i++, j--) {
        int32_t page = pages[i];
        pages[i] = pages[j];
        pages[j] = page;
    }
}

/* All blank pages are gone: the cached ones, those freed first before all others. */
static void alloc_evicted(pkv_pool *p, int64_t n, int32_t *pages)
{
    pkv_i_page *states = pkv_i_pool_pages(p);
    for (int64_t i = 0; i < n; i++) {
        uint32_t page = pkv_i_pool_pop(p);
        states[page].info &= ~(uint32_t)(POOL_KEPT | POOL_QUEUED);
        own(p, page, POOL_DID_EVICT);
        pages[i] = (int32_t)page;
    }
    p->now.n_cached -= n;
    p->now.n_evictions += n;
    put_forwards(pages, n);
}

static void alloc_extents(pkv_pool *p, int64_t n, int32_t after, int64_t room, int32_t *pages)
{
    pkv_i_extents e = pkv_i_pool_extents(p);
    int64_t       got = after >= 0 ? take_behind(p, &e, after, n, pages) : 0;
    while (got < n && p->now.n_blank > 0) {
        pkv_i_run_of_pages run = find_place(p, &e, n - got, room);
        got += take_pieces(p, &e, n - got, run, pages + got);
        got += take_behind(p, &e, pages[got - 1], n - got, pages + got);
    }
    alloc_evicted(p, n - got, pages + got);
}

static void alloc_queue(pkv_pool *p, int64_t n, int32_t *pages)
{
    pkv_i_page *states = pkv_i_pool_pages(p);
    for (int64_t i = 0; i < n; i++) {
        uint32_t page = pkv_i_pool_pop(p);
        if ((states[page].info & POOL_KEPT) != 0) {
            own(p, page, POOL_DID_EVICT);
            p->now.n_cached--;
            p->now.n_evictions++;
        } else {
            own(p, page, POOL_DID_TAKE);
            p->now.n_blank--;
        }
        states[page].info &= ~(uint32_t)(POOL_KEPT | POOL_QUEUED);
        pages[i] = (int32_t)page;
    }
}

pkv_status pkv_i_pool_check_args(const pkv_pool *p, const int32_t *pages, int64_t n, pkv_error *err)
{
    if (p == NULL || p->magic != POOL_MAGIC || n < 0 || (pages == NULL && n > 0)) {
        return pkv_i_fail(err, PKV_E_INVALID, "pool or pages is NULL, or n is negative");
    }
    return PKV_OK;
}

pkv_status pkv_pool_alloc(pkv_pool *pool, int64_t n, int32_t after, int64_t room, int32_t *pages,
                          pkv_error *err)
{
    PKV_I_TRY(pkv_i_pool_check_args(pool, pages, n, err));
    if (room < 0) {
        return pkv_i_fail(err, PKV_E_INVALID, "room is negative");
    }
    if (after < -1 || after >= pool->n_pages) {
        return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_PAGE, -1, after, pool->n_pages,
                             "after is no page of the pool");
    }
    const int64_t n_free = pool->now.n_blank + pool->now.n_cached;
    if (n > n_free) {
        return pkv_i_fail_at(err, PKV_E_NO_PAGES, PKV_RULE_NONE, -1, n_free, n,
                             "the pool has not so many pages left");
    }
    if (pool->allocator == PKV_POOL_EXTENT) {
        alloc_extents(pool, n, after, room, pages);
    } else {
        alloc_queue(pool, n, pages);
    }
    pool->now.n_used += n;
    if (!pool->reserving && pool->now.n_used > pool->n_used_peak) {
        pool->n_used_peak = pool->now.n_used;
    }
    return PKV_OK;
}

/* ---- reservations ----------------------------------------------------------------- */

/* Bounds steer the search, so they too are as before: taking pages and searching changes them. */
static void copy_bounds(pkv_pool *p, uint64_t to, uint64_t from)
{
    if (p->allocator == PKV_POOL_EXTENT) {
        memcpy(pkv_i_pool_at(p, to), pkv_i_pool_at(p, from),
               (size_t)p->n_blocks * sizeof(uint16_t));
    }
}

static pkv_status check_reserving(const pkv_pool *p, bool wanted, pkv_error *err)
{
    PKV_I_TRY(pkv_i_pool_check_args(p, NULL, 0, err));
    if (p->reserving != wanted) {
        return pkv_i_fail(err, PKV_E_STATE, wanted ? "no reservation is open"
                                                   : "a reservation is open already");
    }
    return PKV_OK;
}

pkv_status pkv_pool_reserve(pkv_pool *pool, pkv_error *err)
{
    PKV_I_TRY(check_reserving(pool, false, err));
    pool->before = pool->now;
    copy_bounds(pool, pool->at.bound_before, pool->at.bound);
    pool->n_journal = 0;
    pool->reserving = true;
    return PKV_OK;
}

pkv_status pkv_pool_commit(pkv_pool *pool, pkv_error *err)
{
    PKV_I_TRY(check_reserving(pool, true, err));
    const uint32_t *journal = pkv_i_pool_journal(pool);
    for (int64_t i = 0; i < pool->n_journal; i++) {
        uint32_t page = journal[i] & POOL_PAGE_MASK, kind = journal[i] >> POOL_KIND_SHIFT;
        if (kind == POOL_DID_SHARE) {
            pkv_i_pool_noted(pool)[page] = 0;
        } else if (kind == POOL_DID_EVICT) {
            pkv_i_pool_lose(pool, page);
        }
    }
    pool->reserving = false;
    if (pool->now.n_used > pool->n_used_peak) {
        pool->n_used_peak = pool->now.n_used;
    }
    return PKV_OK;
}

static void undo(pkv_pool *p, pkv_i_extents *e, uint32_t page, uint32_t kind)
{
    pkv_i_page *s = &pkv_i_pool_pages(p)[page];
    bool        queue = p->allocator != PKV_POOL_EXTENT;
    switch (kind) {
    case POOL_DID_TAKE:
        s->owners = 0;
        if (queue) {
            s->info |= POOL_QUEUED;
        } else {
            pkv_i_extents_give(e, page);
        }
        break;
    case POOL_DID_EVICT:
        s->owners = 0;
        s->info |= POOL_KEPT | POOL_QUEUED;
        break;
    case POOL_DID_REVIVE:
        s->info |= POOL_QUEUED;
        s->owners = 0;
        break;
    default: /* all that were given, at once */
        s->owners -= pkv_i_pool_noted(p)[page];
        pkv_i_pool_noted(p)[page] = 0;
        break;
    }
}

pkv_status pkv_pool_release(pkv_pool *pool, pkv_error *err)
{
    PKV_I_TRY(check_reserving(pool, true, err));
    const uint32_t *journal = pkv_i_pool_journal(pool);
    pkv_i_extents   e = pkv_i_pool_extents(pool);
    for (int64_t i = pool->n_journal; i-- > 0;) {
        undo(pool, &e, journal[i] & POOL_PAGE_MASK, journal[i] >> POOL_KIND_SHIFT);
    }
    pool->now = pool->before;
    copy_bounds(pool, pool->at.bound, pool->at.bound_before);
    pool->reserving = false;
    return PKV_OK;
}
