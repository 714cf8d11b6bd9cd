/*
 * Steps of a few requests with any counts and any block table, as a 2-D array
 * and as CSR, against a plain planner; and the step's metadata.  Arrays are
 * just as long as the header says that they are read or written.
 */
#include "fuzz_plan.h"

#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum {
    MAX_REQUESTS = 6,
    MAX_PAGES = 8,
    MAX_SPOILED_ENTRY = 60, /* of indptr: one request then has that many pages */
    MAX_SLICES = MAX_REQUESTS * (MAX_SPOILED_ENTRY + MAX_PAGES)
};

/* A batch in arrays of its own.  Not to be copied: it points into itself. */
typedef struct step_input {
    pkv_batch batch;
    int32_t   computed[MAX_REQUESTS];
    int32_t   scheduled[MAX_REQUESTS];
    int32_t   indptr[MAX_REQUESTS + 1];
    int32_t  *pages; /* the block table in either form */
} step_input;

/* What pkv_plan() should answer. */
typedef struct verdict {
    int64_t  bad_request; /* -1: none */
    uint32_t rules;       /* bits of the rules that it breaks */
    int64_t  n_tokens;
    int64_t  n_slices;
    triple   slices[MAX_SLICES];
} verdict;

/* ---- slices -------------------------------------------------------------- */

static int32_t pattern_at(int64_t i)
{
    return (int32_t)(i * 7919 - 1000000);
}

void columns_init(columns *c, int64_t capacity)
{
    c->memory = exactly((size_t)capacity * 3 * sizeof *c->memory);
    c->n = COUNT_BEFORE;
    for (int64_t i = 0; i < 3 * capacity; i++) {
        c->memory[i] = pattern_at(i);
    }
    assert_int_equal(pkv_slices_from_array(&c->view, sizeof c->view, c->memory, capacity, &c->n),
                     PKV_OK);
}

void columns_free(columns *c)
{
    free(c->memory);
}

void columns_expect(const columns *c, const triple *expected, int64_t n, int64_t written)
{
    assert_int_equal(c->n, n);
    for (int64_t i = 0; i < n; i++) {
        assert_int_equal(c->view.kv_cache_start[i], expected[i].dst);
        assert_int_equal(c->view.new_kv_start[i], expected[i].src);
        assert_int_equal(c->view.slice_len[i], expected[i].len);
    }
    for (int64_t i = 0; i < 3 * c->view.capacity; i++) {
        if (i % c->view.capacity >= written) {
            assert_int_equal(c->memory[i], pattern_at(i));
        }
    }
}

/* ---- drawing a batch ----------------------------------------------------- */

static int64_t n_entries(const pkv_batch *b, int64_t r)
{
    return b->indptr != NULL ? (int64_t)b->indptr[r + 1] - b->indptr[r] : b->block_table_width;
}

static int64_t first_entry(const pkv_batch *b, int64_t r)
{
    return b->indptr != NULL ? b->indptr[r] : r * b->block_table_stride;
}

/* Pages that the request's new tokens reach, counted from its first. */
static int64_t n_touched(const pkv_batch *b, int64_t r)
{
    int64_t end = (int64_t)b->computed[r] + b->scheduled[r];
    return b->scheduled[r] > 0 ? (end - 1) / b->page_size + 1 : 0;
}

/* Does request r's part of a CSR table lie within the whole, which starts at 0? */
static bool part_is_good(const pkv_batch *b, int64_t r)
{
    return b->indptr == NULL || (b->indptr[r] >= 0 && b->indptr[r + 1] >= b->indptr[r] &&
                                 b->indptr[r + 1] <= b->indptr[b->n_requests] &&
                                 (r > 0 || b->indptr[0] == 0));
}

/* Entries that a plan, or with `whole` a step's metadata, may read. */
static int64_t entries_read(const pkv_batch *b, bool whole)
{
    int64_t most = 0;
    for (int64_t r = 0; r < b->n_requests; r++) {
        int64_t last = whole ? n_entries(b, r) : n_touched(b, r);
        last = last < n_entries(b, r) ? last : n_entries(b, r);
        if (last > 0 && part_is_good(b, r) && first_entry(b, r) + last > most) {
            most = first_entry(b, r) + last;
        }
    }
    return most;
}

/* Tokens of a request; `huge`: next to a multiple of 2^30, so that sums leave int32. */
static int32_t take_tokens(input *in, bool huge)
{
    if (!huge) {
        return take_mostly(in, 0, 60);
    }
    return (int32_t)((take_range(in, 0, 1) << 30) + take_range(in, -1, 1));
}

static void take_counts(input *in, step_input *s)
{
    pkv_batch *b = &s->batch;
    b->struct_size = sizeof *b;
    b->n_requests = take_range(in, 0, MAX_REQUESTS);
    const bool huge = take_chance(in, 16);
    b->page_size = take_chance(in, 8) ? take_number(in) : take_range(in, 1, 20);
    b->page_size = huge ? (int64_t)1 << 30 : b->page_size;
    b->n_pages = take_chance(in, 4) ? take_range(in, 0, 40) : 0;
    for (int64_t r = 0; r < b->n_requests; r++) {
        s->computed[r] = take_tokens(in, huge);
        s->scheduled[r] = take_tokens(in, huge);
    }
    b->computed = s->computed;
    b->scheduled = s->scheduled;
}

static void take_pages(input *in, step_input *s, bool whole)
{
    pkv_batch *b = &s->batch;
    if (b->page_size < 1) {
        s->pages = exactly(0); /* refused before the table is looked at */
    } else {
        int64_t n = entries_read(b, whole);
        s->pages = exactly((size_t)n * sizeof *s->pages);
        for (int64_t i = 0; i < n; i++) {
            bool follows = i > 0 && s->pages[i - 1] < INT32_MAX && !take_chance(in, 3);
            s->pages[i] = follows ? s->pages[i - 1] + 1 : take_mostly(in, 0, 30);
        }
    }
    *(b->indptr != NULL ? &b->indices : &b->block_table) = s->pages;
}

/* `whole`: the table has all the pages that its requests hold. */
static void take_batch(input *in, step_input *s, bool whole)
{
    memset(s, 0, sizeof *s);
    take_counts(in, s);
    pkv_batch *b = &s->batch;
    if (take_chance(in, 2)) {
        for (int64_t r = 0; r < b->n_requests; r++) {
            s->indptr[r + 1] = s->indptr[r] + (int32_t)take_range(in, 0, MAX_PAGES);
        }
        if (take_chance(in, 8)) {
            s->indptr[take_range(in, 0, b->n_requests)] =
                (int32_t)take_range(in, -9, MAX_SPOILED_ENTRY);
        }
        b->indptr = s->indptr;
    } else {
        b->block_table_width = take_range(in, 0, MAX_PAGES);
        b->block_table_stride = b->block_table_width + take_range(in, 0, 3);
    }
    take_pages(in, s, whole);
}

/* ---- a plain planner ----------------------------------------------------- */

static bool page_is_bad(const pkv_batch *b, int64_t page)
{
    return page < 0 || (b->n_pages > 0 && page >= b->n_pages) ||
           (page + 1) * b->page_size - 1 > INT32_MAX;
}

/* The rules on a request that concern no output. */
static uint32_t broken_rules(const pkv_batch *b, int64_t r, int64_t n_tokens_before)
{
    uint32_t rules = 0;
    rules |= b->computed[r] < 0 ? 1u << PKV_RULE_COMPUTED : 0;
    rules |= b->scheduled[r] < 0 ? 1u << PKV_RULE_SCHEDULED : 0;
    if (rules != 0) {
        return rules;
    }
    if (!part_is_good(b, r)) {
        return 1u << PKV_RULE_TABLE;
    }
    rules |= n_tokens_before + b->scheduled[r] > INT32_MAX ? 1u << PKV_RULE_SCHEDULED : 0;
    if (n_touched(b, r) > n_entries(b, r)) {
        return rules | 1u << PKV_RULE_TABLE;
    }
    for (int64_t i = b->computed[r] / b->page_size; i < n_touched(b, r); i++) {
        const int32_t *table = b->indptr != NULL ? b->indices : b->block_table;
        rules |= page_is_bad(b, table[first_entry(b, r) + i]) ? 1u << PKV_RULE_PAGE : 0;
    }
    return rules;
}

/* Appends the slices of one request; false if they are more than the capacity. */
static bool plan_request(const pkv_batch *b, int64_t r, int64_t max_slice_tokens, int64_t capacity,
                         verdict *v)
{
    const int32_t *table = b->indptr != NULL ? b->indices : b->block_table;
    const int64_t  end = (int64_t)b->computed[r] + b->scheduled[r];
    const int64_t  first_slice = v->n_slices;
    for (int64_t at = b->computed[r]; at < end;) {
        int64_t page_end = (at / b->page_size + 1) * b->page_size;
        int64_t len = (page_end < end ? page_end : end) - at;
        int64_t dst = table[first_entry(b, r) + at / b->page_size] * b->page_size +
                      at % b->page_size;
        triple *last = v->n_slices > first_slice ? &v->slices[v->n_slices - 1] : NULL;
        bool    joins = last != NULL && max_slice_tokens != b->page_size &&
                     last->dst + last->len == dst &&
                     (max_slice_tokens == 0 || last->len + len <= max_slice_tokens);
        if (joins) {
            last->len += len;
        } else if (v->n_slices < capacity) {
            v->slices[v->n_slices++] = (triple){dst, v->n_tokens, len};
        } else {
            return false;
        }
        v->n_tokens += len;
        at += len;
    }
    return true;
}

static void plan_plainly(const pkv_batch *b, int64_t max_slice_tokens, int64_t capacity, verdict *v)
{
    memset(v, 0, sizeof *v);
    v->bad_request = -1;
    for (int64_t r = 0; r < b->n_requests && v->bad_request < 0; r++) {
        v->rules = broken_rules(b, r, v->n_tokens);
        /* With a bad page too, either may be found first. */
        if ((v->rules & ~(1u << PKV_RULE_PAGE)) == 0 &&
            !plan_request(b, r, max_slice_tokens, capacity, v)) {
            v->rules |= 1u << PKV_RULE_CAPACITY;
        }
        v->bad_request = v->rules != 0 ? r : -1;
    }
}

/* ---- pkv_plan() and pkv_plan_bound() ------------------------------------- */

static bool sizes_are_bad(const pkv_batch *b, int64_t max_slice_tokens)
{
    return b->page_size < 1 || b->page_size > INT32_MAX ||
           (max_slice_tokens != 0 && max_slice_tokens < b->page_size);
}

static int64_t take_bound(input *in, int64_t page_size)
{
    switch (take_range(in, 0, 3)) {
    case 0:
        return take_number(in);
    case 1:
        return 0;
    default:
        return page_size;
    }
}

static void expect_refusal(const pkv_batch *b, const verdict *v, int64_t capacity,
                           const pkv_error *err)
{
    assert_int_equal(err->code, PKV_E_RANGE);
    assert_int_equal(err->index, v->bad_request);
    assert_true(err->rule > 0 && err->rule < 32 && (v->rules >> err->rule & 1) == 1);
    if (err->rule == PKV_RULE_CAPACITY) {
        assert_int_equal(err->limit, capacity);
    }
    if (err->rule == PKV_RULE_TABLE && part_is_good(b, err->index)) {
        assert_int_equal(err->value, n_entries(b, err->index));
        assert_int_equal(err->limit, n_touched(b, err->index));
    }
}

/* How many slices the exact plan has, by the counts alone. */
static void check_bound(const pkv_batch *b)
{
    int64_t n = -1, expected = 0, n_tokens = 0;
    bool    good = true;
    for (int64_t r = 0; r < b->n_requests && good; r++) {
        n_tokens += b->scheduled[r];
        good = b->computed[r] >= 0 && b->scheduled[r] >= 0 && n_tokens <= INT32_MAX;
        expected += b->scheduled[r] > 0 ? n_touched(b, r) - b->computed[r] / b->page_size : 0;
    }
    assert_int_equal(pkv_plan_bound(b, &n, NULL), good ? PKV_OK : PKV_E_RANGE);
    assert_int_equal(n, good ? expected : -1);
}

static void fuzz_plan(input *in)
{
    step_input s;
    verdict    v;
    columns    out;
    pkv_error  err = {0};
    int64_t    n_tokens = -1;
    take_batch(in, &s, false);
    const pkv_batch *b = &s.batch;
    const int64_t    bound = take_bound(in, b->page_size);
    columns_init(&out, take_chance(in, 2) ? take_range(in, 0, 9) : MAX_SLICES);
    pkv_status status = pkv_plan(b, bound, &out.view, &n_tokens, &err);
    if (sizes_are_bad(b, bound)) {
        assert_int_equal(status, PKV_E_INVALID);
    } else {
        check_bound(b);
        plan_plainly(b, bound, out.view.capacity, &v);
        if (v.bad_request >= 0) {
            assert_int_equal(status, PKV_E_RANGE);
            expect_refusal(b, &v, out.view.capacity, &err);
        } else {
            assert_int_equal(status, PKV_OK);
            assert_int_equal(n_tokens, v.n_tokens);
            columns_expect(&out, v.slices, v.n_slices, v.n_slices);
        }
    }
    if (status != PKV_OK) {
        assert_int_equal(out.n, COUNT_BEFORE);
        assert_int_equal(n_tokens, -1);
        assert_int_equal(err.code, status);
    }
    columns_free(&out);
    free(s.pages);
}

/* ---- pkv_step_plan() ------------------------------------------------------ */

/* Limits and arrays of just the sizes that they ask for. */
typedef struct step_output {
    pkv_step_limits limits;
    pkv_step        step;
    columns         slices;
    int32_t         num_seqs;
} step_output;

static void take_output(input *in, const pkv_batch *b, step_output *o)
{
    int64_t reqs = take_range(in, 1, MAX_REQUESTS + 2);
    int64_t width = take_range(in, 1, MAX_PAGES + 2);
    o->limits = (pkv_step_limits){.struct_size = sizeof o->limits,
                                  .max_num_reqs = reqs,
                                  .max_num_batched_tokens = take_mostly(in, 1, 400),
                                  .bucket_gap_tokens = take_mostly(in, 0, 70),
                                  .max_slice_tokens = take_bound(in, b->page_size),
                                  .num_slices_per_block = take_mostly(in, 1, 64)};
    columns_init(&o->slices, take_range(in, 0, 90));
    o->num_seqs = COUNT_BEFORE;
    o->step = (pkv_step){.struct_size = sizeof o->step, .block_tables_width = width};
    o->step.slices = &o->slices.view;
    o->step.block_tables = exactly((size_t)(reqs * width) * sizeof(int32_t));
    o->step.context_lens = exactly((size_t)reqs * sizeof(int32_t));
    o->step.query_start_loc = exactly((size_t)(reqs + 1) * sizeof(int32_t));
    o->step.num_seqs = &o->num_seqs;
}

static void free_output(step_output *o)
{
    columns_free(&o->slices);
    free(o->step.block_tables);
    free(o->step.context_lens);
    free(o->step.query_start_loc);
}

/* Do the requests fit the limits and the table's width?  For a batch that can be planned. */
static bool requests_fit(const pkv_batch *b, const step_output *o)
{
    bool fit = b->n_requests <= o->limits.max_num_reqs;
    for (int64_t r = 0; r < b->n_requests; r++) {
        int64_t held = (int64_t)b->computed[r] + b->scheduled[r];
        int64_t pages = (held + b->page_size - 1) / b->page_size;
        fit = fit && held <= INT32_MAX && pages <= n_entries(b, r) &&
              pages <= o->step.block_tables_width;
    }
    return fit;
}

static void expect_request(const pkv_batch *b, const step_output *o, int64_t r)
{
    const bool     real = r < b->n_requests;
    const int32_t  held = real ? b->computed[r] + b->scheduled[r] : 0;
    const int64_t  pages = (held + b->page_size - 1) / b->page_size;
    const int32_t *table = b->indptr != NULL ? b->indices : b->block_table;
    const pkv_step *step = &o->step;
    for (int64_t i = 0; i < step->block_tables_width; i++) {
        assert_int_equal(step->block_tables[r * step->block_tables_width + i],
                         i < pages ? table[first_entry(b, r) + i] : 0);
    }
    assert_int_equal(step->context_lens[r], held);
    assert_int_equal(step->query_start_loc[r + 1],
                     real ? step->query_start_loc[r] + b->scheduled[r] : 1);
}

static void expect_step(const pkv_batch *b, const step_output *o, const verdict *v, int64_t bucket,
                        int64_t padded)
{
    assert_int_equal(o->num_seqs, b->n_requests);
    assert_int_equal(o->step.query_start_loc[0], 0);
    for (int64_t r = 0; r < o->limits.max_num_reqs; r++) {
        expect_request(b, o, r);
    }
    assert_int_equal(o->step.n_tokens, v->n_tokens);
    assert_int_equal(o->step.token_bucket, bucket);
    assert_int_equal(o->step.padded_num_slices, padded);
    assert_int_equal(o->step.num_slices_per_block, o->limits.num_slices_per_block);
    columns_expect(&o->slices, v->slices, v->n_slices, padded);
    for (int64_t i = v->n_slices; i < padded; i++) {
        assert_int_equal(o->slices.view.kv_cache_start[i], 0);
        assert_int_equal(o->slices.view.new_kv_start[i], 0);
        assert_int_equal(o->slices.view.slice_len[i], 0);
    }
}

static void fuzz_step(input *in)
{
    step_input  s;
    step_output o;
    verdict     v;
    pkv_error   err = {0};
    take_batch(in, &s, true);
    const pkv_batch *b = &s.batch;
    take_output(in, b, &o);
    pkv_status status = pkv_step_plan(b, &o.limits, &o.step, &err);
    const pkv_step_limits *l = &o.limits;
    bool good = !sizes_are_bad(b, l->max_slice_tokens) && l->max_num_batched_tokens >= 1 &&
                l->bucket_gap_tokens >= 0 && l->num_slices_per_block >= 1;
    int64_t bucket = 0, padded = 0;
    if (good) {
        plan_plainly(b, l->max_slice_tokens, o.slices.view.capacity, &v);
        bucket = pkv_token_bucket(v.n_tokens, PKV_MIN_TOKEN_BUCKET, l->max_num_batched_tokens,
                                  l->bucket_gap_tokens);
        padded = pkv_padded_num_slices(l->max_num_reqs, bucket, b->page_size);
        good = v.bad_request < 0 && v.n_tokens <= l->max_num_batched_tokens &&
               requests_fit(b, &o) && padded <= o.slices.view.capacity;
    }
    assert_int_equal(status == PKV_OK, good);
    if (good) {
        expect_step(b, &o, &v, bucket, padded);
    } else {
        assert_int_equal(err.code, status);
        assert_int_equal(o.num_seqs, COUNT_BEFORE);
        assert_int_equal(o.slices.n, COUNT_BEFORE);
        assert_int_equal(o.step.n_tokens, 0);
    }
    free_output(&o);
    free(s.pages);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input in = {data, size};
    switch (take_range(&in, 0, 3)) {
    case 0:
        fuzz_plan(&in);
        break;
    case 1:
        fuzz_step(&in);
        break;
    case 2:
        fuzz_slots(&in);
        break;
    default:
        fuzz_sizing(&in);
        break;
    }
    return 0;
}
