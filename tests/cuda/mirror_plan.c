/*
 * The planner's suites once more on a device, as mirror.c does it: what the host planned is
 * planned again there, with these batches and mappings in device memory, and put in its place;
 * and what the host refused by its values must leave a count of -1.
 */
#include "mirror.h"

#include <string.h>

pkv_status __real_pkv_plan(const pkv_batch *batch, int64_t max_slice_tokens, pkv_slices *out,
                           int64_t *n_tokens_out, pkv_error *err);
pkv_status __wrap_pkv_plan(const pkv_batch *batch, int64_t max_slice_tokens, pkv_slices *out,
                           int64_t *n_tokens_out, pkv_error *err);

#define SLOTS_FUNCTION(name, type)                                                              \
    pkv_status name(const type *slots, int64_t n_tokens, int64_t page_size, int64_t n_slots,    \
                    int64_t max_slice_tokens, const int32_t *query_start_loc,                   \
                    int64_t n_requests, pkv_slices *out, pkv_error *err)
SLOTS_FUNCTION(__real_pkv_plan_slots_i32, int32_t);
SLOTS_FUNCTION(__real_pkv_plan_slots_i64, int64_t);
SLOTS_FUNCTION(__wrap_pkv_plan_slots_i32, int32_t);
SLOTS_FUNCTION(__wrap_pkv_plan_slots_i64, int64_t);

/* ---- the slices of a device -------------------------------------------------------------- */

enum { COUNT_BEFORE = -77 };

/* Arrays on the device that the plan is written to, full of garbage. */
static int32_t *slices_begin(const pkv_slices *out, pkv_slices *there)
{
    const size_t n = 3 * (size_t)out->capacity + 1;
    int32_t     *columns = test_alloc(n * sizeof *columns);
    fill(columns, n * sizeof *columns, FILL_RANDOM, 79);
    columns[n - 1] = COUNT_BEFORE;
    int32_t *block = mirror_new(columns, n * sizeof *columns);
    free(columns);
    assert_int_equal(pkv_slices_from_array(there, sizeof *there, block, out->capacity,
                                           block + n - 1), PKV_OK);
    return block;
}

/* What the device planned goes to the host's arrays; or it must have failed. */
static void slices_end(int32_t *block, pkv_slices *out, bool planned, int32_t word)
{
    const size_t capacity = (size_t)out->capacity;
    int32_t     *columns = test_alloc((3 * capacity + 1) * sizeof *columns);
    mirror_read(columns, block, (3 * capacity + 1) * sizeof *columns);
    const int32_t n = columns[3 * capacity];
    if (!planned) {
        assert_int_equal(n, -1);
        assert_int_equal(word, PKV_CUDA_FAULT_COUNT);
    } else {
        assert_int_equal(word, 0);
        assert_int_equal(n, *out->num_slices);
        int32_t *rows[3] = {out->kv_cache_start, out->new_kv_start, out->slice_len};
        for (int i = 0; i < 3 && n > 0; i++) {
            memcpy(rows[i], columns + (size_t)i * capacity, (size_t)n * sizeof *columns);
        }
    }
    free(columns);
    mirror_drop(block);
}

/* ---- from requests ------------------------------------------------------------------------ */

/* A step as the device takes it; tables have garbage where nothing is to be read. */
typedef struct device_batch {
    int32_t  n, width;
    int32_t *context_lens, *query_start_loc, *table;
} device_batch;

/* False for what it has no words for: other bounds, tables that are none, sums over int32. */
static bool can_plan(const pkv_batch *b, int64_t max_slice_tokens)
{
    int64_t rows = 0;
    if (max_slice_tokens != 0 && max_slice_tokens != b->page_size) {
        return false;
    }
    for (int64_t r = 0; r < b->n_requests; r++) {
        rows += b->scheduled[r];
        if (rows > INT32_MAX || rows < INT32_MIN ||
            (int64_t)b->computed[r] + b->scheduled[r] > INT32_MAX ||
            (int64_t)b->computed[r] + b->scheduled[r] < INT32_MIN ||
            (b->indptr != NULL && b->indptr[r + 1] - b->indptr[r] < 0) ||
            (b->table_rows != NULL && b->table_rows[r] < 0)) {
            return false;
        }
    }
    return b->indptr == NULL || b->n_requests == 0 || b->indptr[0] == 0;
}

static int64_t entries_of(const pkv_batch *b, int64_t r, const int32_t **pages)
{
    if (b->indptr != NULL) {
        *pages = b->indices + b->indptr[r];
        return b->indptr[r + 1] - b->indptr[r];
    }
    const int64_t row = b->table_rows != NULL ? b->table_rows[r] : r;
    *pages = b->block_table + row * b->block_table_stride;
    return b->block_table_width;
}

/* Entries that the plan may look at: the others may not be the caller's. */
static int64_t entries_touched(const pkv_batch *b, int64_t r, int64_t there)
{
    const int64_t end = (int64_t)b->computed[r] + b->scheduled[r];
    const int64_t touched = b->scheduled[r] > 0 && b->computed[r] >= 0
                                ? (end - 1) / b->page_size + 1
                                : 0;
    return touched < there ? touched : there;
}

/* All rows as wide as the widest; what a shorter one lacks is a page that none has. */
static device_batch batch_for_device(const pkv_batch *b)
{
    const int32_t *pages;
    device_batch   d = {.n = (int32_t)b->n_requests, .width = 1};
    for (int64_t r = 0; r < b->n_requests; r++) {
        const int64_t entries = entries_of(b, r, &pages);
        d.width = entries > d.width ? (int32_t)entries : d.width;
    }
    const size_t n = (size_t)d.n, cells = n * (size_t)d.width;
    d.context_lens = test_alloc((n + 1) * sizeof(int32_t));
    d.query_start_loc = test_alloc((n + 1) * sizeof(int32_t));
    d.table = test_alloc((cells + 1) * sizeof(int32_t));
    memset(d.table, 0xff, (cells + 1) * sizeof(int32_t));
    d.query_start_loc[0] = 0;
    for (int64_t r = 0; r < b->n_requests; r++) {
        const int64_t there = entries_touched(b, r, entries_of(b, r, &pages));
        d.context_lens[r] = b->computed[r] + b->scheduled[r];
        d.query_start_loc[r + 1] = d.query_start_loc[r] + b->scheduled[r];
        for (int64_t i = 0; i < there; i++) {
            d.table[r * d.width + i] = pages[i];
        }
    }
    return d;
}

typedef struct plan_call {
    pkv_cuda_batch batch;
    pkv_cuda_slots slots;
    int64_t        max_slice_tokens;
    pkv_slices     out;
} plan_call;

static pkv_status put_plan(void *ctx, const pkv_update_opts *opts, pkv_error *err,
                           pkv_cuda_stream stream)
{
    plan_call *c = ctx;
    return pkv_cuda_plan(mirror_device(), &c->batch, c->max_slice_tokens, &c->out,
                         opts->status_word, err, stream);
}

static void plan_on_device(const pkv_batch *b, int64_t max_slice_tokens, pkv_slices *out,
                           bool planned)
{
    device_batch  d = batch_for_device(b);
    const size_t  n = (size_t)d.n;
    int32_t      *count = mirror_new(&d.n, sizeof d.n);
    int32_t      *context_lens = mirror_new(d.context_lens, (n + 1) * sizeof(int32_t));
    int32_t      *query_start_loc = mirror_new(d.query_start_loc, (n + 1) * sizeof(int32_t));
    int32_t      *table = mirror_new(d.table, (n * (size_t)d.width + 1) * sizeof(int32_t));
    plan_call     c = {.batch = {.struct_size = sizeof c.batch, .num_seqs = count,
                                 .max_num_reqs = d.n, .context_lens = context_lens,
                                 .query_start_loc = query_start_loc, .block_table = table,
                                 .block_table_stride = d.width, .block_table_width = d.width,
                                 .page_size = b->page_size, .n_pages = b->n_pages},
                       .max_slice_tokens = max_slice_tokens};
    int32_t      *block = slices_begin(out, &c.out);
    const int32_t word = mirror_run_word(put_plan, &c, NULL);
    slices_end(block, out, planned, word);
    mirror_drop(count);
    mirror_drop(context_lens);
    mirror_drop(query_start_loc);
    mirror_drop(table);
    free(d.context_lens);
    free(d.query_start_loc);
    free(d.table);
}

pkv_status __wrap_pkv_plan(const pkv_batch *batch, int64_t max_slice_tokens, pkv_slices *out,
                           int64_t *n_tokens_out, pkv_error *err)
{
    const pkv_status status = __real_pkv_plan(batch, max_slice_tokens, out, n_tokens_out, err);
    if ((status == PKV_OK || status == PKV_E_RANGE) && can_plan(batch, max_slice_tokens)) {
        plan_on_device(batch, max_slice_tokens, out, status == PKV_OK);
    }
    return status;
}

/* ---- from slots ------------------------------------------------------------------------------ */

static pkv_status put_slots(void *ctx, const pkv_update_opts *opts, pkv_error *err,
                            pkv_cuda_stream stream)
{
    plan_call *c = ctx;
    return pkv_cuda_plan_slots(mirror_device(), &c->slots, c->max_slice_tokens, &c->out,
                               opts->status_word, err, stream);
}

/* With room behind the mapping and a count, in turns. */
static void slots_on_device(const void *slots, int32_t bits, int64_t n_tokens, int64_t page_size,
                            int64_t n_slots, int64_t max_slice_tokens, const int32_t *starts,
                            int64_t n_requests, pkv_slices *out, bool planned)
{
    static int    turn;
    const int64_t room = turn++ % 2 == 0 ? 9 : 0;
    const size_t  item = (size_t)bits / 8, bytes = (size_t)n_tokens * item;
    char         *mapping = test_alloc(bytes + (size_t)room * item + 1);
    const int32_t n = (int32_t)n_tokens, requests = (int32_t)n_requests;
    memset(mapping, 0x6b, bytes + (size_t)room * item + 1);
    if (bytes > 0) {
        memcpy(mapping, slots, bytes);
    }
    void      *there = mirror_new(mapping, bytes + (size_t)room * item + 1);
    int32_t   *count = mirror_new(&n, sizeof n), *num_seqs = mirror_new(&requests, sizeof n);
    int32_t   *starts_there =
        starts != NULL ? mirror_new(starts, (size_t)(n_requests + 1) * sizeof *starts) : NULL;
    plan_call  c = {.slots = {.struct_size = sizeof c.slots, .slots = there, .slot_bits = bits,
                              .n_tokens = n_tokens + room, .num_tokens = room > 0 ? count : NULL,
                              .query_start_loc = starts_there,
                              .num_seqs = starts != NULL ? num_seqs : NULL,
                              .max_num_reqs = starts != NULL ? n_requests : 0,
                              .page_size = page_size, .n_slots = n_slots},
                    .max_slice_tokens = max_slice_tokens};
    int32_t      *block = slices_begin(out, &c.out);
    const int32_t word = mirror_run_word(put_slots, &c, NULL);
    slices_end(block, out, planned, word);
    mirror_drop(there);
    mirror_drop(count);
    mirror_drop(num_seqs);
    mirror_drop(starts_there);
    free(mapping);
}

#define SLOTS_ON_BOTH(bits, type)                                                               \
    SLOTS_FUNCTION(__wrap_pkv_plan_slots_i##bits, type)                                         \
    {                                                                                           \
        const pkv_status status =                                                               \
            __real_pkv_plan_slots_i##bits(slots, n_tokens, page_size, n_slots, max_slice_tokens, \
                                          query_start_loc, n_requests, out, err);               \
        if ((status == PKV_OK || status == PKV_E_RANGE) &&                                      \
            (max_slice_tokens == 0 || max_slice_tokens == page_size)) {                         \
            slots_on_device(slots, bits, n_tokens, page_size, n_slots, max_slice_tokens,        \
                            query_start_loc, n_requests, out, status == PKV_OK);                \
        }                                                                                       \
        return status;                                                                          \
    }
SLOTS_ON_BOTH(32, int32_t)
SLOTS_ON_BOTH(64, int64_t)
