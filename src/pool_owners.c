/* The pool: owners come and go; what was worth keeping is cached. */
#include "pool_state.h"

static pkv_status fail_page(const pkv_pool *p, const int32_t *pages, int64_t i, pkv_error *err)
{
    return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_PAGE, i, pages[i], p->n_pages,
                         "is no page of the pool");
}

static pkv_status fail_state(int32_t page, int64_t i, const char *what, pkv_error *err)
{
    return pkv_i_fail_at(err, PKV_E_STATE, PKV_RULE_PAGE, i, page, 0, what);
}

static inline bool is_page(const pkv_pool *p, int32_t page)
{
    return page >= 0 && page < p->n_pages;
}

static pkv_status check_free(const pkv_pool *p, const int32_t *pages, int64_t n, pkv_error *err)
{
    PKV_I_TRY(pkv_i_pool_check_args(p, pages, n, err));
    return p->reserving ? pkv_i_fail(err, PKV_E_STATE, "a reservation is open: nothing is freed")
                        : PKV_OK;
}

/* Pages ahead are fetched: in a random order each would be waited for alone. */
static inline void fetch_ahead(const pkv_pool *p, const int32_t *pages, int64_t i, int64_t n)
{
    if (i + POOL_LOOK_AHEAD < n && is_page(p, pages[i + POOL_LOOK_AHEAD])) {
        __builtin_prefetch(&pkv_i_pool_pages(p)[pages[i + POOL_LOOK_AHEAD]], 1);
    }
}

/* ---- sharing ---------------------------------------------------------------------- */

static bool is_cached(const pkv_i_page *s)
{
    return s->owners == 0 && (s->info & POOL_KEPT) != 0;
}

static pkv_status check_share(const pkv_pool *p, const int32_t *pages, int64_t n, pkv_error *err)
{
    const pkv_i_page *states = pkv_i_pool_pages(p);
    for (int64_t i = 0; i < n; i++) {
        fetch_ahead(p, pages, i, n);
        if (!is_page(p, pages[i])) {
            return fail_page(p, pages, i, err);
        }
        const pkv_i_page *s = &states[pages[i]];
        if (s->owners == 0 && !is_cached(s)) {
            return fail_state(pages[i], i, "a page without owner and content cannot be shared",
                              err);
        }
        if (s->owners > INT32_MAX - n) {
            return fail_state(pages[i], i, "a page has too many owners", err);
        }
    }
    return PKV_OK;
}

pkv_status pkv_pool_share(pkv_pool *pool, const int32_t *pages, int64_t n, pkv_error *err)
{
    PKV_I_TRY(pkv_i_pool_check_args(pool, pages, n, err));
    if (n > INT32_MAX) {
        return pkv_i_fail(err, PKV_E_INVALID, "more pages are named than one can have owners");
    }
    PKV_I_TRY(check_share(pool, pages, n, err));
    pkv_i_page *states = pkv_i_pool_pages(pool);
    uint32_t   *noted = pkv_i_pool_noted(pool);
    for (int64_t i = 0; i < n; i++) {
        pkv_i_page *s = &states[pages[i]];
        bool        cached = s->owners == 0;
        if (cached) {
            pkv_i_pool_note(pool, (uint32_t)pages[i], POOL_DID_REVIVE);
        } else if (pool->reserving && noted[pages[i]]++ == 0) {
            pkv_i_pool_note(pool, (uint32_t)pages[i], POOL_DID_SHARE);
        }
        pool->now.n_shared += s->owners == 1;
        s->owners++;
        if (cached) {
            s->info &= ~(uint32_t)POOL_QUEUED;
            pool->now.n_cached--;
            pool->now.n_used++;
        }
    }
    if (!pool->reserving && pool->now.n_used > pool->n_used_peak) {
        pool->n_used_peak = pool->now.n_used;
    }
    return PKV_OK;
}

/* ---- freeing ---------------------------------------------------------------------- */

/* One owner less for each; all or none. */
static pkv_status drop_owners(pkv_pool *p, const int32_t *pages, int64_t n, pkv_error *err)
{
    pkv_i_page *states = pkv_i_pool_pages(p);
    for (int64_t i = 0; i < n; i++) {
        fetch_ahead(p, pages, i, n);
        if (is_page(p, pages[i]) && states[pages[i]].owners > 0) {
            p->now.n_shared -= --states[pages[i]].owners == 1;
            continue;
        }
        for (int64_t j = i; j-- > 0;) {
            p->now.n_shared += states[pages[j]].owners++ == 1;
        }
        return is_page(p, pages[i])
                   ? fail_state(pages[i], i, "a page is freed that has no owner", err)
                   : fail_page(p, pages, i, err);
    }
    return PKV_OK;
}

/*
 * Pages without owner go where they belong: into the queue, behind one another as
 * their last owners left, or to their bits.  One that is named twice settles once.
 */
static void settle(pkv_pool *p, const int32_t *pages, int64_t n)
{
    const bool        all = p->allocator != PKV_POOL_EXTENT;
    const pkv_i_page *states = pkv_i_pool_pages(p);
    pkv_i_extents     e = pkv_i_pool_extents(p);
    int64_t           n_blank = 0, n_cached = 0;
    for (int64_t i = 0; i < n; i++) {
        const pkv_i_page *s = &states[pages[i]];
        const bool        kept = (s->info & POOL_KEPT) != 0;
        fetch_ahead(p, pages, i, n);
        if (s->owners > 0) {
            continue;
        }
        if (kept || all) {
            const bool first = (s->info & POOL_QUEUED) == 0;
            pkv_i_pool_push(p, (uint32_t)pages[i]); /* a second time: its place is here */
            n_cached += first && kept;
            n_blank += first && !kept;
        } else if (!pkv_i_is_blank(&e, pages[i])) {
            pkv_i_extents_give(&e, pages[i]);
            n_blank++;
        }
    }
    p->now.n_blank += n_blank;
    p->now.n_cached += n_cached;
    p->now.n_used -= n_blank + n_cached;
}

pkv_status pkv_pool_free(pkv_pool *pool, const int32_t *pages, int64_t n, pkv_error *err)
{
    PKV_I_TRY(check_free(pool, pages, n, err));
    PKV_I_TRY(drop_owners(pool, pages, n, err));
    settle(pool, pages, n);
    return PKV_OK;
}

/* ---- content ---------------------------------------------------------------------- */

pkv_status pkv_pool_keep(pkv_pool *pool, const int32_t *pages, int64_t n, int32_t keep,
                         pkv_error *err)
{
    PKV_I_TRY(check_free(pool, pages, n, err));
    pkv_i_page *states = pkv_i_pool_pages(pool);
    for (int64_t i = 0; i < n; i++) {
        if (!is_page(pool, pages[i])) {
            return fail_page(pool, pages, i, err);
        }
        if (states[pages[i]].owners == 0) {
            return fail_state(pages[i], i, "a page has no owner", err);
        }
    }
    for (int64_t i = 0; i < n; i++) {
        uint32_t *info = &states[pages[i]].info;
        if (keep == 0 && (*info & POOL_KEPT) != 0) {
            pkv_i_pool_lose(pool, (uint32_t)pages[i]);
        }
        *info = keep != 0 ? *info | POOL_KEPT : *info & ~(uint32_t)POOL_KEPT;
    }
    return PKV_OK;
}

pkv_status pkv_pool_forget(pkv_pool *pool, const int32_t *pages, int64_t n, pkv_error *err)
{
    PKV_I_TRY(check_free(pool, pages, n, err));
    pkv_i_page *states = pkv_i_pool_pages(pool);
    for (int64_t i = 0; i < n; i++) {
        if (is_page(pool, pages[i]) && is_cached(&states[pages[i]])) {
            states[pages[i]].info &= ~(uint32_t)POOL_KEPT; /* so that a second time is noticed */
            continue;
        }
        for (int64_t j = i; j-- > 0;) {
            states[pages[j]].info |= POOL_KEPT;
        }
        return is_page(pool, pages[i]) ? fail_state(pages[i], i, "a page is not cached", err)
                                       : fail_page(pool, pages, i, err);
    }
    pkv_i_extents e = pkv_i_pool_extents(pool);
    for (int64_t i = 0; i < n; i++) {
        states[pages[i]].info &= ~(uint32_t)POOL_QUEUED;
        pkv_i_pool_lose(pool, (uint32_t)pages[i]);
        if (pool->allocator == PKV_POOL_EXTENT) {
            pkv_i_extents_give(&e, pages[i]);
        } else {
            pkv_i_pool_push(pool, (uint32_t)pages[i]);
        }
    }
    pool->now.n_cached -= n;
    pool->now.n_blank += n;
    return PKV_OK;
}
