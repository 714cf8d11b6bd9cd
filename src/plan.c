/* The planner: from requests and their pages to slices. */
#include "plan.h"

enum { PREFETCH_REQUESTS = 16 };

/* Shifts for page sizes that are powers of two: a division a request is dear. */
typedef struct page_math {
    int32_t size;
    int32_t shift; /* -1: divide */
} page_math;

static page_math page_math_of(int64_t page_size)
{
    bool power = (page_size & (page_size - 1)) == 0;
    return (page_math){(int32_t)page_size, power ? __builtin_ctzll((uint64_t)page_size) : -1};
}

static inline int64_t page_of(page_math m, int64_t token)
{
    return m.shift >= 0 ? token >> m.shift : token / m.size;
}

/* One request's part of the batch. */
typedef struct request {
    int64_t        computed, scheduled;
    const int32_t *pages;
    int64_t        n_pages; /* entries of its table */
} request;

static pkv_status check_batch(const pkv_batch *b, bool with_tables, pkv_error *err)
{
    PKV_I_TRY(pkv_i_check_struct(b, sizeof *b, err));
    if (b->n_requests < 0 || b->page_size < 1 || b->page_size > INT32_MAX || b->n_pages < 0) {
        return pkv_i_fail(err, PKV_E_INVALID,
                          "n_requests or n_pages is negative, or page_size not in 1..2^31-1");
    }
    if (b->n_requests == 0) {
        return PKV_OK;
    }
    if (b->computed == NULL || b->scheduled == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "computed or scheduled is NULL");
    }
    bool csr = b->indptr != NULL;
    if (with_tables && csr == (b->block_table != NULL)) {
        return pkv_i_fail(err, PKV_E_INVALID, "give either block_table or indptr and indices");
    }
    if (with_tables && csr && b->indices == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "indices is NULL");
    }
    int64_t entries = 0;
    if (with_tables && !csr &&
        (b->block_table_width < 0 || b->block_table_stride < b->block_table_width ||
         PKV_I_MUL(b->n_requests, b->block_table_stride, &entries) ||
         entries > PTRDIFF_MAX / (int64_t)sizeof(int32_t))) {
        return pkv_i_fail(err, PKV_E_INVALID,
                          "block_table_stride is below block_table_width, or the table overflows");
    }
    return PKV_OK;
}

static inline pkv_status read_counts(const pkv_batch *b, int64_t r, request *out, pkv_error *err)
{
    out->computed = b->computed[r];
    out->scheduled = b->scheduled[r];
    if ((out->computed | out->scheduled) < 0) {
        return out->computed < 0
                   ? pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_COMPUTED, r, out->computed, 0,
                                   "computed is negative")
                   : pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_SCHEDULED, r, out->scheduled, 0,
                                   "scheduled is negative");
    }
    return PKV_OK;
}

/* Rows of the new K/V are int32 too. */
static inline pkv_status add_tokens(int64_t *n_tokens, int64_t r, const request *q, pkv_error *err)
{
    if (q->scheduled > INT32_MAX - *n_tokens) {
        return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_SCHEDULED, r, *n_tokens + q->scheduled,
                             INT32_MAX, "the tokens of the step exceed int32");
    }
    *n_tokens += q->scheduled;
    return PKV_OK;
}

static inline pkv_status read_table(const pkv_batch *b, int64_t r, request *out, pkv_error *err)
{
    if (b->indptr == NULL) {
        out->pages = b->block_table + r * b->block_table_stride;
        out->n_pages = b->block_table_width;
        return PKV_OK;
    }
    const int64_t from = b->indptr[r], to = b->indptr[r + 1];
    /* Not over the end either: entries behind it are not the caller's. */
    if (from < 0 || to < from || to > b->indptr[b->n_requests] || (r == 0 && from != 0)) {
        return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_TABLE, r, to, from,
                             "indptr does not rise from 0");
    }
    out->pages = b->indices + from;
    out->n_pages = to - from;
    return PKV_OK;
}

/* Slices as they are written: the last one may still grow. */
typedef struct writer {
    int32_t *dst, *src, *len;
    int64_t  n, capacity;
    int64_t  max_len; /* 0: exact, never grow */
    int32_t  max_page;
} writer;

/* The slices of one request; `row` is its first row of the new K/V. */
static inline pkv_status write_request(writer *w, page_math m, const request *q, int64_t r,
                                       int32_t row, pkv_error *err)
{
    int64_t page_i = page_of(m, q->computed);
    int64_t offset = q->computed - page_i * m.size;
    int64_t left = q->scheduled;
    int64_t n_touched = page_of(m, q->computed + left - 1) + 1;
    int64_t next = -1; /* slot at which the last slice of this request may grow */
    if (left > 0 && n_touched > q->n_pages) {
        return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_TABLE, r, q->n_pages, n_touched,
                             "the block table is too short for the request");
    }
    for (; left > 0; page_i++) {
        const int32_t page = q->pages[page_i];
        const int32_t len = (int32_t)(left < m.size - offset ? left : m.size - offset);
        if ((uint32_t)page > (uint32_t)w->max_page) {
            return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_PAGE, r, page, w->max_page,
                                 "a page is outside the cache, or its slots exceed int32");
        }
        const int32_t slot = (int32_t)(page * m.size + offset);
        if (slot == next && (int64_t)w->len[w->n - 1] + len <= w->max_len) {
            w->len[w->n - 1] += len;
        } else if (w->n < w->capacity) {
            w->dst[w->n] = slot;
            w->src[w->n] = row;
            w->len[w->n] = len;
            w->n++;
        } else {
            return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_CAPACITY, r, w->n + 1, w->capacity,
                                 "the slices do not fit their arrays");
        }
        next = (int64_t)slot + len;
        row += len;
        left -= len;
        offset = 0;
    }
    return PKV_OK;
}

/*
 * Asks for the table entry at which request r will start.  Tables are large and
 * were last read a step ago: without this each request waits for memory alone.
 */
static inline void prefetch_table(const pkv_batch *b, page_math m, int64_t r)
{
    if (r < b->n_requests && b->computed[r] >= 0) {
        const int64_t page_i = page_of(m, b->computed[r]);
        if (b->indptr == NULL && page_i < b->block_table_width) {
            __builtin_prefetch(b->block_table + r * b->block_table_stride + page_i);
        } else if (b->indptr != NULL && b->indptr[r] >= 0 &&
                   page_i < (int64_t)b->indptr[r + 1] - b->indptr[r]) {
            __builtin_prefetch(b->indices + b->indptr[r] + page_i);
        }
    }
}

/* Last page whose slots all fit int32 and that the cache has. */
static int32_t last_page(const pkv_batch *b)
{
    int64_t by_slots = ((int64_t)INT32_MAX + 1) / b->page_size - 1;
    int64_t last = b->n_pages > 0 && b->n_pages - 1 < by_slots ? b->n_pages - 1 : by_slots;
    return (int32_t)last;
}

pkv_status pkv_plan(const pkv_batch *batch, int64_t max_slice_tokens, pkv_slices *out,
                    int64_t *n_tokens_out, pkv_error *err)
{
    PKV_I_TRY(check_batch(batch, true, err));
    PKV_I_TRY(pkv_i_slices_writable(out, err));
    if (max_slice_tokens != 0 && max_slice_tokens < batch->page_size) {
        return pkv_i_fail(err, PKV_E_INVALID, "max_slice_tokens is neither 0 nor >= page_size");
    }
    const page_math m = page_math_of(batch->page_size);
    writer          w = {.dst = out->kv_cache_start, .src = out->new_kv_start,
                         .len = out->slice_len, .capacity = out->capacity,
                         .max_page = last_page(batch)};
    w.max_len = max_slice_tokens == 0                  ? INT32_MAX
                : max_slice_tokens == batch->page_size ? 0
                                                       : max_slice_tokens;
    int64_t row = 0;
    for (int64_t r = 0; r < PREFETCH_REQUESTS; r++) {
        prefetch_table(batch, m, r);
    }
    for (int64_t r = 0; r < batch->n_requests; r++) {
        request q = {0};
        prefetch_table(batch, m, r + PREFETCH_REQUESTS);
        PKV_I_TRY(read_counts(batch, r, &q, err));
        PKV_I_TRY(read_table(batch, r, &q, err));
        const int32_t first = (int32_t)row;
        PKV_I_TRY(add_tokens(&row, r, &q, err));
        PKV_I_TRY(write_request(&w, m, &q, r, first, err));
    }
    *out->num_slices = (int32_t)w.n;
    if (n_tokens_out != NULL) {
        *n_tokens_out = row;
    }
    return PKV_OK;
}

pkv_status pkv_plan_bound(const pkv_batch *batch, int64_t *n_slices_out, pkv_error *err)
{
    PKV_I_TRY(check_batch(batch, false, err));
    if (n_slices_out == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "n_slices_out is NULL");
    }
    const page_math m = page_math_of(batch->page_size);
    int64_t         n = 0, n_tokens = 0;
    for (int64_t r = 0; r < batch->n_requests; r++) {
        request q = {0};
        PKV_I_TRY(read_counts(batch, r, &q, err));
        PKV_I_TRY(add_tokens(&n_tokens, r, &q, err));
        if (q.scheduled > 0) {
            n += page_of(m, q.computed + q.scheduled - 1) - page_of(m, q.computed) + 1;
        }
    }
    *n_slices_out = n;
    return PKV_OK;
}

pkv_status pkv_i_batch_request(const pkv_batch *batch, int64_t r, const int32_t **pages,
                               int64_t *n_touched, pkv_error *err)
{
    request q = {0};
    PKV_I_TRY(read_counts(batch, r, &q, err));
    PKV_I_TRY(read_table(batch, r, &q, err));
    int64_t held = q.computed + q.scheduled;
    *pages = q.pages;
    *n_touched = (held + batch->page_size - 1) / batch->page_size;
    if (*n_touched > q.n_pages) {
        return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_TABLE, r, q.n_pages, *n_touched,
                             "the block table is too short for the request");
    }
    return PKV_OK;
}
