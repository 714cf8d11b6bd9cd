/* The planner: from requests and their pages to slices. */
#include "plan.h"

enum { PREFETCH_REQUESTS = 24 };

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

pkv_status pkv_i_check_batch(const pkv_batch *b, bool with_tables, pkv_error *err)
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
    if (with_tables && csr && b->table_rows != NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "table_rows goes with block_table only");
    }
    int64_t       entries = 0;
    const int64_t n_rows = b->table_rows != NULL ? INT32_MAX : b->n_requests;
    if (with_tables && !csr &&
        (b->block_table_width < 0 || b->block_table_stride < b->block_table_width ||
         PKV_I_MUL(n_rows, b->block_table_stride, &entries) ||
         entries > PTRDIFF_MAX / (int64_t)sizeof(int32_t))) {
        return pkv_i_fail(err, PKV_E_INVALID,
                          "block_table_stride is below block_table_width, or the table overflows");
    }
    return PKV_OK;
}

/* Row of the block table for request r; below 0: none. */
static inline int64_t row_of(const pkv_batch *b, int64_t r)
{
    return b->table_rows == NULL ? r : b->table_rows[r];
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
        const int64_t row = row_of(b, r);
        if (row < 0) {
            return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_TABLE, r, row, 0,
                                 "table_rows names no row");
        }
        out->pages = b->block_table + row * b->block_table_stride;
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

/* Slices as they are written. */
typedef struct writer {
    int32_t *dst, *src, *len;
    int64_t  n, capacity;
    int64_t  max_len; /* 0: exact, never join */
    uint32_t max_page;
} writer;

/* What is still to be written of one request. */
typedef struct rest {
    const int32_t *page; /* the next one */
    int64_t        offset, left;
    int32_t        row; /* of the new K/V */
} rest;

static pkv_status fail_page(const writer *w, int64_t r, int32_t page, pkv_error *err)
{
    return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_PAGE, r, page, w->max_page,
                         "a page is outside the cache, or its slots exceed int32");
}

static pkv_status fail_capacity(const writer *w, int64_t r, pkv_error *err)
{
    return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_CAPACITY, r, w->capacity + 1, w->capacity,
                         "the slices do not fit their arrays");
}

/* Tokens of the next page. */
static inline int32_t next_len(const rest *t, int32_t page_size)
{
    int64_t room = page_size - t->offset;
    return (int32_t)(t->left < room ? t->left : room);
}

static inline void advance(rest *t, int32_t len)
{
    t->page++;
    t->offset = 0;
    t->left -= len;
    t->row += len;
}

static inline pkv_status write_exact(writer *w, int32_t page_size, rest t, int64_t r,
                                     pkv_error *err)
{
    for (; t.left > 0; w->n++) {
        const int32_t len = next_len(&t, page_size);
        if ((uint32_t)*t.page > w->max_page) {
            return fail_page(w, r, *t.page, err);
        }
        if (w->n == w->capacity) {
            return fail_capacity(w, r, err);
        }
        w->dst[w->n] = (int32_t)(*t.page * page_size + t.offset);
        w->src[w->n] = t.row;
        w->len[w->n] = len;
        advance(&t, len);
    }
    return PKV_OK;
}

/*
 * Neighbours joined.  Where they adjoin cannot be predicted, so there is no
 * branch on it: each page writes the slice that it ends, again if it was joined.
 */
static inline pkv_status write_merged(writer *w, int32_t page_size, rest t, int64_t r,
                                      pkv_error *err)
{
    const bool limited = w->max_len < INT32_MAX;
    int64_t    at = w->n - 1;  /* the slice that is written */
    int64_t    next = -1;      /* the slot that would join it */
    int32_t    first_slot = 0, first_row = 0, joined_len = 0;
    while (t.left > 0) {
        const int32_t len = next_len(&t, page_size);
        if ((uint32_t)*t.page > w->max_page) {
            return fail_page(w, r, *t.page, err);
        }
        const int32_t slot = (int32_t)(*t.page * page_size + t.offset);
        int32_t       join = slot == next;
        if (limited) {
            join &= (int64_t)joined_len + len <= w->max_len;
        }
        const int32_t keep = -join;
        at += 1 - join;
        if (at >= w->capacity) {
            return fail_capacity(w, r, err);
        }
        first_slot = (first_slot & keep) | (slot & ~keep);
        first_row = (first_row & keep) | (t.row & ~keep);
        joined_len = (joined_len & keep) + len;
        w->dst[at] = first_slot;
        w->src[at] = first_row;
        w->len[at] = joined_len;
        next = (int64_t)slot + len;
        advance(&t, len);
    }
    w->n = at + 1;
    return PKV_OK;
}

/* The slices of one request; `row` is its first row of the new K/V. */
static inline pkv_status write_request(writer *w, page_math m, const request *q, int64_t r,
                                       int32_t row, pkv_error *err)
{
    if (q->scheduled == 0) {
        return PKV_OK;
    }
    int64_t page_i = page_of(m, q->computed);
    int64_t n_touched = page_of(m, q->computed + q->scheduled - 1) + 1;
    if (n_touched > q->n_pages) {
        return pkv_i_fail_table(r, q->n_pages, n_touched, err);
    }
    rest t = {.page = q->pages + page_i,
              .offset = q->computed - page_i * m.size,
              .left = q->scheduled,
              .row = row};
    return w->max_len > 0 ? write_merged(w, m.size, t, r, err)
                          : write_exact(w, m.size, t, r, err);
}

/*
 * Asks for the table entry at which request r will start.  Tables are large and
 * were last read a step ago: without this each request waits for memory alone.
 */
static inline void prefetch_table(const pkv_batch *b, page_math m, int64_t r)
{
    if (r < b->n_requests && b->computed[r] >= 0) {
        const int64_t page_i = page_of(m, b->computed[r]);
        if (b->indptr == NULL && page_i < b->block_table_width && row_of(b, r) >= 0) {
            __builtin_prefetch(b->block_table + row_of(b, r) * b->block_table_stride + page_i);
        } else if (b->indptr != NULL && b->indptr[r] >= 0 &&
                   page_i < (int64_t)b->indptr[r + 1] - b->indptr[r]) {
            __builtin_prefetch(b->indices + b->indptr[r] + page_i);
        }
    }
}

/* As page_of, of a number that fits: a division by fewer bits, and none to repair the sign. */
static inline uint32_t short_page_of(page_math m, uint32_t token)
{
    return m.shift >= 0 ? token >> m.shift : token / (uint32_t)m.size;
}

/*
 * Requests from r on that decode and have a 2-D table: one token, one slice,
 * nothing to split or to join.  Stops at the first that is anything else or
 * wrong, for which the general way has the words.  Returns where it stopped.
 */
static inline int64_t write_decodes_by(writer *w, page_math m, const pkv_batch *b,
                                       const int32_t *rows, int64_t r, int64_t row)
{
    const int64_t  most = w->capacity - w->n, left = b->n_requests - r, first = r;
    const int64_t  end = r + (most < left ? most : left);
    const int64_t  width = b->block_table_width;
    int32_t *const dst = w->dst + w->n, *const src = w->src + w->n, *const len = w->len + w->n;
    for (; r < end && b->scheduled[r] == 1; r++) {
        const uint32_t at = (uint32_t)b->computed[r], page_i = short_page_of(m, at);
        const int64_t  table_row = rows == NULL ? r : rows[r];
        if (at > INT32_MAX || page_i >= width || table_row < 0) {
            break;
        }
        /* As prefetch_table, without a branch that would wait for computed[]. */
        const int64_t later = r + PREFETCH_REQUESTS < end ? r + PREFETCH_REQUESTS : end - 1;
        const int64_t later_i = short_page_of(m, (uint32_t)b->computed[later]);
        const int64_t later_row = rows == NULL ? later : rows[later];
        __builtin_prefetch(b->block_table +
                           (later_row < 0 ? table_row : later_row) * b->block_table_stride +
                           (later_i < width ? later_i : page_i));
        const uint32_t page = (uint32_t)b->block_table[table_row * b->block_table_stride + page_i];
        if (page > w->max_page) {
            break;
        }
        dst[r - first] = (int32_t)(page * (uint32_t)m.size + (at - page_i * (uint32_t)m.size));
        src[r - first] = (int32_t)(row + (r - first));
        len[r - first] = 1;
    }
    w->n += r - first;
    return r;
}

static int64_t write_decodes(writer *w, page_math m, const pkv_batch *b, int64_t r, int64_t row)
{
    return b->table_rows == NULL ? write_decodes_by(w, m, b, NULL, r, row)
                                 : write_decodes_by(w, m, b, b->table_rows, r, row);
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
    PKV_I_TRY(pkv_i_check_batch(batch, true, err));
    PKV_I_TRY(pkv_i_slices_writable(out, err));
    if (max_slice_tokens != 0 && max_slice_tokens < batch->page_size) {
        return pkv_i_fail(err, PKV_E_INVALID, "max_slice_tokens is neither 0 nor >= page_size");
    }
    const page_math m = page_math_of(batch->page_size);
    writer          w = {.dst = out->kv_cache_start, .src = out->new_kv_start,
                         .len = out->slice_len, .capacity = out->capacity,
                         .max_page = (uint32_t)last_page(batch)};
    w.max_len = max_slice_tokens == 0                  ? INT32_MAX
                : max_slice_tokens == batch->page_size ? 0
                                                       : max_slice_tokens;
    int64_t row = 0;
    for (int64_t r = 0; r < PREFETCH_REQUESTS; r++) {
        prefetch_table(batch, m, r);
    }
    for (int64_t r = 0; r < batch->n_requests; r++) {
        if (batch->indptr == NULL && row <= INT32_MAX - batch->n_requests) {
            const int64_t decodes_end = write_decodes(&w, m, batch, r, row);
            row += decodes_end - r;
            r = decodes_end;
            if (r == batch->n_requests) {
                break;
            }
        }
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
    PKV_I_TRY(pkv_i_check_batch(batch, false, err));
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

pkv_status pkv_i_batch_table(const pkv_batch *batch, int64_t r, const int32_t **pages,
                             int64_t *n_pages, pkv_error *err)
{
    request q = {0};
    PKV_I_TRY(read_counts(batch, r, &q, err));
    PKV_I_TRY(read_table(batch, r, &q, err));
    *pages = q.pages;
    *n_pages = q.n_pages;
    return PKV_OK;
}

pkv_status pkv_i_fail_table(int64_t r, int64_t n_pages, int64_t n_touched, pkv_error *err)
{
    return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_TABLE, r, n_pages, n_touched,
                         "the block table is too short for the request");
}

pkv_status pkv_i_batch_request(const pkv_batch *batch, int64_t r, const int32_t **pages,
                               int64_t *n_touched, pkv_error *err)
{
    int64_t n_pages = 0;
    PKV_I_TRY(pkv_i_batch_table(batch, r, pages, &n_pages, err));
    int64_t held = (int64_t)batch->computed[r] + batch->scheduled[r];
    *n_touched = (held + batch->page_size - 1) / batch->page_size;
    return *n_touched > n_pages ? pkv_i_fail_table(r, n_pages, *n_touched, err) : PKV_OK;
}
