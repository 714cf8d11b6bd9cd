/*
 * Plans made by one block: from a slot for every token, or from requests and their pages.
 * Both are a row of elements (tokens, or the pages that a request touches) of which each
 * says by itself whether it joins the one before.  The block counts those that do not, and
 * so knows where each slice goes; what fails leaves a count of -1.
 */
#ifndef PAGEDKV_SRC_CUDA_PLAN_KERNEL_H
#define PAGEDKV_SRC_CUDA_PLAN_KERNEL_H

#include "exec.h"

/* In shared memory. */
typedef struct pkv_i_plan_state {
    int64_t scan[PKV_I_CUDA_THREADS], sums[PKV_I_CUDA_THREADS / 32];
    int64_t pages_before[PKV_I_CUDA_THREADS]; /* of the requests of the threads before */
    int64_t n_elements, n_slices;
    int32_t failed;
} pkv_i_plan_state;

/* One element: where it goes, and whether the one before goes on here. */
typedef struct pkv_i_plan_element {
    int64_t  slot;
    int32_t  row, len; /* len 0: padding, no slice */
    uint32_t joins;
} pkv_i_plan_element;

/* Any number of threads may say so at once. */
PKV_I_DEVICE void pkv_i_plan_fail(pkv_i_plan_state *s)
{
    (void)pkv_i_swap_if(&s->failed, 0, 1);
}

/* Things [*from, *to) of n are thread t's. */
PKV_I_DEVICE void pkv_i_plan_span(int64_t n, uint32_t t, int64_t *from, int64_t *to)
{
    const int64_t each = (n + PKV_I_CUDA_THREADS - 1) / PKV_I_CUDA_THREADS;
    *from = t * each < n ? t * each : n;
    *to = *from + each < n ? *from + each : n;
}

/* R, or -1 where it is none. */
PKV_I_DEVICE int64_t pkv_i_plan_requests(const pkv_i_plan_job *job)
{
    const int64_t n = job->num_seqs != NULL ? *job->num_seqs : 0;
    return n >= 0 && n <= job->max_num_reqs ? n : -1;
}

/* ---- elements: tokens --------------------------------------------------------------- */

PKV_I_DEVICE int64_t pkv_i_slot_of(const pkv_i_plan_job *job, int64_t token)
{
    return job->slots32 != NULL ? job->slots32[token] : job->slots64[token];
}

/* Where a slot lies in its page. */
PKV_I_DEVICE uint64_t pkv_i_in_page(const pkv_i_plan_job *job, int64_t slot)
{
    uint64_t in_page;
    (void)pkv_i_divide_long((uint64_t)slot, (uint64_t)job->page_size, &in_page);
    return in_page;
}

/* Does a request start at this token? */
PKV_I_DEVICE uint32_t pkv_i_starts_request(const pkv_i_plan_job *job, int64_t n_requests,
                                           int64_t token)
{
    int64_t low = 0, high = job->query_start_loc != NULL ? n_requests + 1 : 0;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        const int64_t start = job->query_start_loc[middle];
        if (start == token) {
            return 1;
        }
        if (start < token) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    return 0;
}

PKV_I_DEVICE pkv_i_plan_element pkv_i_plan_token(const pkv_i_plan_job *job, int64_t n_requests,
                                                 int64_t token)
{
    pkv_i_plan_element e;
    e.slot = pkv_i_slot_of(job, token);
    e.row = (int32_t)token;
    e.len = e.slot >= 0;
    e.joins = e.len > 0 && token > 0 && pkv_i_slot_of(job, token - 1) == e.slot - 1 &&
              e.slot > 0 && !(job->exact && pkv_i_in_page(job, e.slot) == 0) &&
              !pkv_i_starts_request(job, n_requests, token);
    return e;
}

/* Are the slots and the starts what they may be?  Sets failed where not. */
PKV_I_DEVICE void pkv_i_check_tokens(const pkv_i_plan_job *job, pkv_i_plan_state *s,
                                     int64_t n_requests)
{
    const int64_t n = job->num_tokens != NULL ? *job->num_tokens : job->n_tokens;
    const int64_t n_starts = job->query_start_loc != NULL ? n_requests + 1 : 0;
    PKV_I_EACH_THREAD(t) {
        uint32_t bad = n < 0 || n > job->n_tokens || n_requests < 0;
        for (int64_t i = t; !bad && i < n; i += PKV_I_CUDA_THREADS) {
            const int64_t slot = pkv_i_slot_of(job, i);
            bad = slot < -1 || slot >= job->n_slots;
        }
        for (int64_t r = t; !bad && r < n_starts; r += PKV_I_CUDA_THREADS) {
            const int32_t least = r > 0 ? job->query_start_loc[r - 1] : 0;
            bad = job->query_start_loc[r] < least || job->query_start_loc[r] > n;
        }
        if (bad) {
            pkv_i_plan_fail(s);
        }
        if (t == 0) {
            s->n_elements = n;
        }
    }
}

/* ---- elements: pages ---------------------------------------------------------------- */

/* A request of the batch. */
typedef struct pkv_i_plan_request {
    int64_t first_page, n_pages; /* that it touches, in its table */
    int32_t computed, context;
} pkv_i_plan_request;

PKV_I_DEVICE pkv_i_plan_request pkv_i_plan_request_at(const pkv_i_plan_job *job, int64_t r)
{
    const int32_t      scheduled = job->query_start_loc[r + 1] - job->query_start_loc[r];
    pkv_i_plan_request q;
    q.context = job->context_lens[r];
    q.computed = q.context - scheduled;
    q.first_page = q.computed / job->page_size;
    q.n_pages = scheduled > 0 ? (q.context - 1) / job->page_size + 1 - q.first_page : 0;
    return q;
}

PKV_I_DEVICE int32_t pkv_i_page_of(const pkv_i_plan_job *job, int64_t r, int64_t page)
{
    return job->block_table[r * job->table_stride + page];
}

/* Before anything of it is computed with: starts rise, and the table is wide enough. */
PKV_I_DEVICE uint32_t pkv_i_is_request(const pkv_i_plan_job *job, int64_t r)
{
    const int32_t from = job->query_start_loc[r], to = job->query_start_loc[r + 1];
    if (from < 0 || to < from || (r == 0 && from != 0) || job->context_lens[r] < to - from) {
        return 0;
    }
    const pkv_i_plan_request q = pkv_i_plan_request_at(job, r);
    return q.first_page + q.n_pages <= job->table_width || q.n_pages == 0;
}

/* Each thread counts the pages of its requests; for the others to see after a barrier. */
PKV_I_DEVICE void pkv_i_count_pages(const pkv_i_plan_job *job, pkv_i_plan_state *s,
                                    int64_t n_requests)
{
    PKV_I_EACH_THREAD(t) {
        int64_t from, to, pages = 0;
        pkv_i_plan_span(n_requests > 0 ? n_requests : 0, t, &from, &to);
        for (int64_t r = from; r < to; r++) {
            if (pkv_i_is_request(job, r)) {
                pages += pkv_i_plan_request_at(job, r).n_pages;
            } else {
                pkv_i_plan_fail(s);
            }
        }
        if (n_requests < 0) {
            pkv_i_plan_fail(s);
        }
        s->scan[t] = pages;
        if (t == PKV_I_CUDA_THREADS - 1) {
            s->n_elements = pages; /* of the last; those before are added below */
        }
    }
    pkv_i_block_scan(s->scan, s->sums);
    PKV_I_EACH_THREAD(t) {
        s->pages_before[t] = s->scan[t];
        if (t == PKV_I_CUDA_THREADS - 1) {
            s->n_elements += s->scan[t];
        }
    }
}

/* A place in the row of pages: page `page` of what request r touches. */
typedef struct pkv_i_plan_cursor {
    int64_t            r, page;
    pkv_i_plan_request q;
} pkv_i_plan_cursor;

/* Goes on to the request that the page, counted on, is of. */
PKV_I_DEVICE void pkv_i_plan_settle(const pkv_i_plan_job *job, pkv_i_plan_cursor *c)
{
    while (c->page >= c->q.n_pages) {
        c->page -= c->q.n_pages;
        c->q = pkv_i_plan_request_at(job, ++c->r);
    }
}

/* The page that is element i < n_elements. */
PKV_I_DEVICE pkv_i_plan_cursor pkv_i_plan_find(const pkv_i_plan_job *job,
                                               const pkv_i_plan_state *s, int64_t n_requests,
                                               int64_t i)
{
    uint32_t low = 0, high = PKV_I_CUDA_THREADS; /* pages_before[low] <= i */
    while (high - low > 1) {
        const uint32_t middle = low + (high - low) / 2;
        if (s->pages_before[middle] <= i) {
            low = middle;
        } else {
            high = middle;
        }
    }
    pkv_i_plan_cursor c;
    int64_t           end;
    pkv_i_plan_span(n_requests, low, &c.r, &end);
    c.page = i - s->pages_before[low];
    c.q = pkv_i_plan_request_at(job, c.r);
    pkv_i_plan_settle(job, &c);
    return c;
}

PKV_I_DEVICE pkv_i_plan_element pkv_i_plan_page(const pkv_i_plan_job *job,
                                                const pkv_i_plan_cursor *c)
{
    const int64_t S = job->page_size, at = c->q.first_page + c->page;
    const int64_t from = c->page == 0 ? c->q.computed : at * S; /* tokens of the sequence */
    const int64_t to = c->page == c->q.n_pages - 1 ? c->q.context : (at + 1) * S;
    const int32_t page = pkv_i_page_of(job, c->r, at);
    pkv_i_plan_element e;
    e.slot = page * S + (from - at * S);
    e.row = job->query_start_loc[c->r] + (int32_t)(from - c->q.computed);
    e.len = (int32_t)(to - from);
    e.joins = !job->exact && c->page > 0 && pkv_i_page_of(job, c->r, at - 1) == page - 1;
    if (page < 0 || page >= job->n_pages) {
        e.slot = -1; /* no page of the cache: the plan fails */
    }
    return e;
}

/* ---- slices ------------------------------------------------------------------------- */

/* Slice k begins, goes on or ends with this element. */
PKV_I_DEVICE void pkv_i_plan_put(const pkv_i_plan_job *job, int64_t k,
                                 const pkv_i_plan_element *e, uint32_t ends)
{
    if (!e->joins) {
        job->cache_start[k] = (int32_t)e->slot;
        job->rows_start[k] = e->row;
    }
    if (ends) {
        job->len[k] = e->row + e->len; /* less its first row, once that is there */
    }
}

/* Slices that begin in each thread's elements are counted: may they be written? */
PKV_I_DEVICE uint32_t pkv_i_plan_counted(const pkv_i_plan_job *job, pkv_i_plan_state *s)
{
    PKV_I_EACH_THREAD(t) {
        if (t == PKV_I_CUDA_THREADS - 1) {
            s->n_slices = s->scan[t];
        }
    }
    pkv_i_block_scan(s->scan, s->sums);
    PKV_I_EACH_THREAD(t) {
        if (t == PKV_I_CUDA_THREADS - 1) {
            s->n_slices += s->scan[t];
            if (s->n_slices > job->capacity) {
                pkv_i_plan_fail(s);
            }
        }
    }
    pkv_i_sync();
    return !s->failed;
}

/* Lengths and count are put right; what failed is told. */
PKV_I_DEVICE void pkv_i_plan_finish(const pkv_i_plan_job *job, const pkv_i_plan_state *s)
{
    pkv_i_sync();
    const uint32_t failed = s->failed != 0;
    PKV_I_EACH_THREAD(t) {
        for (int64_t k = t; !failed && k < s->n_slices; k += PKV_I_CUDA_THREADS) {
            job->len[k] -= job->rows_start[k];
        }
        if (t == 0) {
            *job->num_slices = failed ? -1 : (int32_t)s->n_slices;
            if (failed) {
                pkv_i_tell(job->status, PKV_CUDA_FAULT_COUNT, 0);
            }
        }
    }
}

PKV_I_DEVICE void pkv_i_plan_begin(pkv_i_plan_state *s)
{
    PKV_I_EACH_THREAD(t) {
        if (t == 0) {
            s->failed = 0;
            s->n_slices = s->n_elements = 0;
        }
    }
    pkv_i_sync();
}

PKV_I_DEVICE void pkv_i_block_plan_slots(const pkv_i_plan_job *job, pkv_i_plan_state *s)
{
    const int64_t n_requests = pkv_i_plan_requests(job);
    pkv_i_plan_begin(s);
    pkv_i_check_tokens(job, s, n_requests);
    pkv_i_sync();
    if (!s->failed) {
        PKV_I_EACH_THREAD(t) {
            int64_t from, to, n = 0;
            pkv_i_plan_span(s->n_elements, t, &from, &to);
            for (int64_t i = from; i < to; i++) {
                const pkv_i_plan_element e = pkv_i_plan_token(job, n_requests, i);
                n += e.len > 0 && !e.joins;
            }
            s->scan[t] = n;
        }
        if (pkv_i_plan_counted(job, s)) {
            PKV_I_EACH_THREAD(t) {
                int64_t from, to, k = s->scan[t] - 1;
                pkv_i_plan_span(s->n_elements, t, &from, &to);
                for (int64_t i = from; i < to; i++) {
                    const pkv_i_plan_element e = pkv_i_plan_token(job, n_requests, i);
                    if (e.len > 0) {
                        k += !e.joins;
                        pkv_i_plan_put(job, k, &e,
                                       i + 1 == s->n_elements ||
                                           !pkv_i_plan_token(job, n_requests, i + 1).joins);
                    }
                }
            }
        }
    }
    pkv_i_plan_finish(job, s);
}

/* A thread's pages: how many slices begin in them; these are written if `write` says so. */
PKV_I_DEVICE int64_t pkv_i_plan_pages(const pkv_i_plan_job *job, pkv_i_plan_state *s,
                                      int64_t n_requests, uint32_t t, uint32_t write)
{
    int64_t from, to, n = 0;
    pkv_i_plan_span(s->n_elements, t, &from, &to);
    if (from == to) {
        return 0;
    }
    pkv_i_plan_cursor  c = pkv_i_plan_find(job, s, n_requests, from);
    pkv_i_plan_element e = pkv_i_plan_page(job, &c);
    for (int64_t i = from; i < to; i++) {
        pkv_i_plan_element next = {0, 0, 0, 0};
        if (e.slot < 0) {
            pkv_i_plan_fail(s);
        }
        if (i + 1 < s->n_elements) {
            c.page++;
            pkv_i_plan_settle(job, &c);
            next = pkv_i_plan_page(job, &c);
        }
        n += !e.joins;
        if (write) {
            pkv_i_plan_put(job, s->scan[t] + n - 1, &e, !next.joins);
        }
        e = next;
    }
    return n;
}

PKV_I_DEVICE void pkv_i_block_plan_pages(const pkv_i_plan_job *job, pkv_i_plan_state *s)
{
    const int64_t n_requests = pkv_i_plan_requests(job);
    pkv_i_plan_begin(s);
    pkv_i_count_pages(job, s, n_requests);
    const uint32_t in_order = !s->failed;
    pkv_i_sync(); /* pages are counted; all have looked before one finds a page that is none */
    if (in_order) {
        PKV_I_EACH_THREAD(t) {
            s->scan[t] = pkv_i_plan_pages(job, s, n_requests, t, 0);
        }
        if (pkv_i_plan_counted(job, s)) {
            PKV_I_EACH_THREAD(t) {
                (void)pkv_i_plan_pages(job, s, n_requests, t, 1);
            }
        }
    }
    pkv_i_plan_finish(job, s);
}

#endif
