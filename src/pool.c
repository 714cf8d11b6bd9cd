/* The pool: making one, counting, proving that it is whole. */
#include <string.h>

#include "allocator.h"
#include "pool_state.h"

static const int64_t MAX_PAGES = (int64_t)1 << 30;

/* ---- making one ------------------------------------------------------------------- */

static void lay_out(pkv_pool *p, int64_t n_pages)
{
    uint64_t end = sizeof *p, pages = (uint64_t)n_pages;
    p->n_pages = n_pages;
    p->n_blocks = (n_pages + PKV_I_BLOCK_PAGES - 1) / PKV_I_BLOCK_PAGES;
    p->ring_size = 2;
    while (p->ring_size < 2 * pages) {
        p->ring_size *= 2;
    }
    p->at.pages = pkv_i_place_array(&end, pages * sizeof(pkv_i_page));
    p->at.ring = pkv_i_place_array(&end, p->ring_size * sizeof(pkv_i_entry));
    p->at.journal = pkv_i_place_array(&end, 2 * pages * sizeof(uint32_t));
    p->at.noted = pkv_i_place_array(&end, pages * sizeof(uint32_t));
    p->at.lost = pkv_i_place_array(&end, pages * sizeof(uint32_t));
    p->at.is_lost = pkv_i_place_array(&end, (pages + 63) / 64 * sizeof(uint64_t));
    p->at.bits = pkv_i_place_array(&end, (uint64_t)p->n_blocks * PKV_I_BLOCK_WORDS *
                                             sizeof(uint64_t));
    p->at.bound = pkv_i_place_array(&end, (uint64_t)p->n_blocks * sizeof(uint16_t));
    p->at.bound_before = pkv_i_place_array(&end, (uint64_t)p->n_blocks * sizeof(uint16_t));
    p->at.total = pkv_i_place_array(&end, 0);
}

static pkv_status check_config(const pkv_pool_config *c, pkv_error *err)
{
    PKV_I_TRY(pkv_i_check_struct(c, sizeof *c, err));
    if (c->flags != 0) {
        return pkv_i_fail(err, PKV_E_UNSUPPORTED, "a flag of the pool is unknown");
    }
    if (c->n_pages < 1 || c->n_pages > MAX_PAGES || c->allocator < PKV_POOL_EXTENT ||
        c->allocator > PKV_POOL_FIFO) {
        return pkv_i_fail(err, PKV_E_INVALID, "n_pages is not in 1..2^30, or no such allocator");
    }
    return PKV_OK;
}

pkv_status pkv_pool_bytes(const pkv_pool_config *config, uint64_t *bytes_out, pkv_error *err)
{
    PKV_I_TRY(check_config(config, err));
    if (bytes_out == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "bytes_out is NULL");
    }
    pkv_pool p;
    lay_out(&p, config->n_pages);
    *bytes_out = p.at.total;
    return PKV_OK;
}

pkv_status pkv_pool_init(const pkv_pool_config *config, void *memory, uint64_t memory_bytes,
                         pkv_pool **out, pkv_error *err)
{
    uint64_t bytes = 0;
    PKV_I_TRY(pkv_pool_bytes(config, &bytes, err));
    if (memory == NULL || out == NULL || memory_bytes < bytes ||
        (uintptr_t)memory % PKV_I_ALIGN_BYTES != 0) {
        return pkv_i_fail(err, PKV_E_INVALID, "memory is NULL, too small or not aligned to 64");
    }
    pkv_pool *p = memory;
    *p = (pkv_pool){.magic = POOL_MAGIC, .allocator = config->allocator};
    lay_out(p, config->n_pages);
    p->now.n_blank = p->n_pages;
    memset(pkv_i_pool_pages(p), 0, (size_t)p->n_pages * sizeof(pkv_i_page));
    memset(pkv_i_pool_noted(p), 0, (size_t)p->n_pages * sizeof(uint32_t));
    memset(pkv_i_pool_is_lost(p), 0, (size_t)(p->n_pages + 63) / 64 * sizeof(uint64_t));
    pkv_i_extents e = pkv_i_pool_extents(p);
    pkv_i_extents_fill(&e, config->allocator == PKV_POOL_EXTENT);
    for (int64_t i = 0; config->allocator != PKV_POOL_EXTENT && i < p->n_pages; i++) {
        /* Page 0 comes first either way. */
        pkv_i_pool_push(p, (uint32_t)(config->allocator == PKV_POOL_FIFO ? i : p->n_pages - 1 - i));
    }
    *out = p;
    return PKV_OK;
}

pkv_status pkv_pool_create(const pkv_pool_config *config, const pkv_allocator *allocator,
                           pkv_pool **out, pkv_error *err)
{
    pkv_allocator a;
    uint64_t      bytes = 0;
    void         *memory = NULL;
    PKV_I_TRY(pkv_pool_bytes(config, &bytes, err));
    if (out == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "out is NULL");
    }
    PKV_I_TRY(pkv_i_take_memory(allocator, bytes, &a, &memory, err));
    pkv_status status = pkv_pool_init(config, memory, bytes, out, err);
    if (status != PKV_OK) {
        a.release(a.user, memory, (size_t)bytes);
        return status;
    }
    (*out)->memory = a;
    return PKV_OK;
}

void pkv_pool_destroy(pkv_pool *pool)
{
    if (pool != NULL && pool->memory.release != NULL) {
        pkv_allocator a = pool->memory;
        uint64_t      bytes = pool->at.total;
        pool->magic = 0;
        a.release(a.user, pool, (size_t)bytes);
    }
}

/* ---- counting and proving --------------------------------------------------------- */

int64_t pkv_pool_owners(const pkv_pool *pool, int32_t page)
{
    bool is_page = pkv_i_pool_check_args(pool, NULL, 0, NULL) == PKV_OK && page >= 0 &&
                   page < pool->n_pages;
    return is_page ? (int64_t)pkv_i_pool_pages(pool)[page].owners : -1;
}

bool pkv_i_pool_is_writable(const pkv_pool *pool, int32_t page)
{
    const pkv_i_page *s = &pkv_i_pool_pages(pool)[page];
    return s->owners == 1 && (s->info & POOL_KEPT) == 0;
}

int64_t pkv_i_pool_n_pages(const pkv_pool *pool)
{
    return pkv_i_pool_check_args(pool, NULL, 0, NULL) == PKV_OK ? pool->n_pages : -1;
}

bool pkv_i_pool_is_kept(const pkv_pool *pool, int32_t page)
{
    return (pkv_i_pool_pages(pool)[page].info & POOL_KEPT) != 0;
}

bool pkv_i_pool_is_settled(const pkv_pool *pool)
{
    return !pool->reserving;
}

int64_t pkv_i_pool_losses(const pkv_pool *pool)
{
    return pool->n_losses;
}

void pkv_i_pool_fetch(const pkv_pool *pool, int32_t page)
{
    __builtin_prefetch(&pkv_i_pool_pages(pool)[page]);
}

pkv_status pkv_pool_lost(pkv_pool *pool, int32_t *pages, int64_t n, int64_t *n_out, pkv_error *err)
{
    PKV_I_TRY(pkv_i_pool_check_args(pool, pages, n, err));
    if (n_out == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "n_out is NULL");
    }
    const int64_t now = n < pool->n_lost ? n : pool->n_lost;
    for (int64_t i = 0; i < now; i++) {
        uint32_t page = pkv_i_pool_lost(pool)[pool->lost_head];
        pkv_i_pool_is_lost(pool)[page / 64] &= ~((uint64_t)1 << (page % 64));
        pages[i] = (int32_t)page;
        pool->lost_head = pool->lost_head + 1 < pool->n_pages ? pool->lost_head + 1 : 0;
    }
    pool->n_lost -= now;
    *n_out = now;
    return PKV_OK;
}

/* Runs of blank pages: only the extents' allocator has them as bits. */
static int64_t longest_extent(const pkv_pool *p)
{
    const pkv_i_page *pages = pkv_i_pool_pages(p);
    pkv_i_extents     e = pkv_i_pool_extents(p);
    if (p->allocator == PKV_POOL_EXTENT) {
        return pkv_i_extents_longest(&e);
    }
    int64_t longest = 0, run = 0;
    for (int64_t i = 0; i < p->n_pages; i++) {
        bool blank = pages[i].owners == 0 && (pages[i].info & POOL_KEPT) == 0;
        run = blank ? run + 1 : 0;
        longest = run > longest ? run : longest;
    }
    return longest;
}

pkv_status pkv_pool_stats(const pkv_pool *pool, pkv_pool_counts *out, pkv_error *err)
{
    PKV_I_TRY(pkv_i_pool_check_args(pool, NULL, 0, err));
    PKV_I_TRY(pkv_i_check_struct(out, sizeof *out, err));
    const pkv_i_pool_now *now = &pool->now;
    out->n_pages = pool->n_pages;
    out->n_blank = now->n_blank;
    out->n_cached = now->n_cached;
    out->n_used = now->n_used;
    out->n_shared = now->n_shared;
    out->n_used_peak = pool->n_used_peak;
    out->n_evictions = now->n_evictions;
    out->largest_extent = longest_extent(pool);
    return PKV_OK;
}

/* What the pages themselves say. */
typedef struct census {
    int64_t n_blank, n_cached, n_used, n_shared, n_queued;
} census;

static pkv_status check_page(const pkv_pool *p, const pkv_i_extents *e, int64_t i, census *sum,
                             pkv_error *err)
{
    const pkv_i_page *s = &pkv_i_pool_pages(p)[i];
    const bool extent = p->allocator == PKV_POOL_EXTENT, kept = (s->info & POOL_KEPT) != 0;
    const bool queued = (s->info & POOL_QUEUED) != 0, blank_bit = pkv_i_is_blank(e, i);
    const bool free_page = s->owners == 0;
    const char *wrong = NULL;
    if (queued != (free_page && (kept || !extent))) {
        wrong = "a page is in the queue and should not be, or the other way round";
    } else if (blank_bit != (free_page && !kept && extent)) {
        wrong = "a page's bit says blank and should not, or the other way round";
    }
    if (wrong != NULL) {
        return pkv_i_fail_at(err, PKV_E_CORRUPT, PKV_RULE_PAGE, i, s->owners, 0, wrong);
    }
    sum->n_queued += queued;
    sum->n_used += !free_page;
    sum->n_shared += s->owners > 1;
    sum->n_cached += free_page && kept;
    sum->n_blank += free_page && !kept;
    return PKV_OK;
}

static pkv_status check_ring(const pkv_pool *p, int64_t n_queued, pkv_error *err)
{
    const pkv_i_page  *pages = pkv_i_pool_pages(p);
    const pkv_i_entry *ring = pkv_i_pool_ring(p);
    int64_t            n = 0;
    if (p->now.tail - p->now.head > p->ring_size) {
        return pkv_i_fail(err, PKV_E_CORRUPT, "the queue is longer than its ring");
    }
    for (uint64_t i = p->now.head; i != p->now.tail; i++) {
        const pkv_i_entry *e = &ring[i & (p->ring_size - 1)];
        if (e->page >= (uint64_t)p->n_pages) {
            return pkv_i_fail(err, PKV_E_CORRUPT, "the queue holds what is no page");
        }
        n += pkv_i_pool_is_current(pages, e);
    }
    return n == n_queued ? PKV_OK
                         : pkv_i_fail(err, PKV_E_CORRUPT, "the queue and its pages disagree");
}

static pkv_status check_blocks(const pkv_i_extents *e, pkv_error *err)
{
    for (int64_t b = 0; b < e->n_blocks; b++) {
        int64_t run = 0;
        for (int64_t i = b * PKV_I_BLOCK_PAGES; i < (b + 1) * PKV_I_BLOCK_PAGES; i++) {
            bool blank = pkv_i_is_blank(e, i);
            run = blank ? run + 1 : 0;
            if (run > e->bound[b] || (blank && i >= e->n_pages)) {
                return pkv_i_fail_at(err, PKV_E_CORRUPT, PKV_RULE_PAGE, i, run, e->bound[b],
                                     "a run is longer than its block's bound, or past the end");
            }
        }
    }
    return PKV_OK;
}

/*
 * The ring of lost pages names each page that has a bit, once: sums of the numbers and of their
 * squares differ where one stands for another.  And nothing is noted for ever.
 */
static pkv_status check_lost(const pkv_pool *p, pkv_error *err)
{
    int64_t  n_bits = 0;
    uint64_t sum = 0, squares = 0;
    for (int64_t i = 0; i < p->n_pages; i++) {
        const uint64_t bit = pkv_i_pool_is_lost(p)[i / 64] >> (i % 64) & 1;
        n_bits += (int64_t)bit;
        sum += bit * (uint64_t)i;
        squares += bit * (uint64_t)(i * i);
        if (!p->reserving && pkv_i_pool_noted(p)[i] != 0) {
            return pkv_i_fail_at(err, PKV_E_CORRUPT, PKV_RULE_PAGE, i, 0, 0,
                                 "owners are noted for a reservation that is over");
        }
    }
    bool whole = p->n_lost == n_bits && p->n_losses >= p->n_lost && p->lost_head >= 0 &&
                 p->lost_head < p->n_pages;
    for (int64_t i = 0; whole && i < p->n_lost; i++) {
        const int64_t  at = p->lost_head + i;
        const uint64_t page = pkv_i_pool_lost(p)[at < p->n_pages ? at : at - p->n_pages];
        sum -= page;
        squares -= page * page;
    }
    return whole && sum == 0 && squares == 0
               ? PKV_OK
               : pkv_i_fail(err, PKV_E_CORRUPT, "the list of lost pages is broken");
}

pkv_status pkv_pool_check(const pkv_pool *pool, pkv_error *err)
{
    PKV_I_TRY(pkv_i_pool_check_args(pool, NULL, 0, err));
    pkv_i_extents e = pkv_i_pool_extents(pool);
    census        sum = {0};
    for (int64_t i = 0; i < pool->n_pages; i++) {
        PKV_I_TRY(check_page(pool, &e, i, &sum, err));
    }
    const pkv_i_pool_now *now = &pool->now;
    if (sum.n_blank != now->n_blank || sum.n_cached != now->n_cached ||
        sum.n_used != now->n_used || sum.n_shared != now->n_shared) {
        return pkv_i_fail(err, PKV_E_CORRUPT, "a count is not what the pages add up to");
    }
    PKV_I_TRY(check_ring(pool, sum.n_queued, err));
    PKV_I_TRY(check_lost(pool, err));
    return check_blocks(&e, err);
}
