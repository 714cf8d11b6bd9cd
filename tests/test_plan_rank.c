/*
 * Plans of ranks that share every sequence: token g lies on rank g mod R as its token
 * g div R; all ranks together have the tokens of a full plan; and what is refused.
 */
#include "model.h"

#include <string.h>

enum { MOST_REQUESTS = 6, MOST_TOKENS = 900, POISON = 0x5A5A5A5A };

/* A batch whose tables are one rank's own, in either form. */
typedef struct batch {
    int32_t   computed[MOST_REQUESTS], scheduled[MOST_REQUESTS], rows[MOST_REQUESTS];
    int32_t   indptr[MOST_REQUESTS + 1];
    int32_t  *pages; /* [2 * MOST_REQUESTS, width] or [indptr[R]] */
    int64_t   width, n_requests, page_size;
    int       form; /* 0: 2-D, 1: 2-D with table_rows, 2: CSR with just the pages it needs */
    pkv_batch view;
} batch;

static int64_t tokens_of_rank(int64_t n, int64_t rank, int64_t n_ranks)
{
    int64_t count = 0;
    for (int64_t g = 0; g < n; g++) {
        count += g % n_ranks == rank;
    }
    return count;
}

/* Pages of request r on this rank: any numbers, the same for one seed. */
static int32_t page_of(uint64_t seed, int64_t r, int64_t i, int64_t rank)
{
    rng draw = {seed * 1000003 + (uint64_t)(r * 10007 + i * 101 + rank)};
    return (int32_t)rng_range(&draw, 0, 9999);
}

static void batch_fill(batch *b, uint64_t seed, int64_t rank, int64_t n_ranks)
{
    int32_t at = 0;
    b->width = 1;
    for (int64_t r = 0; r < b->n_requests; r++) {
        const int64_t n = tokens_of_rank(b->computed[r] + b->scheduled[r], rank, n_ranks);
        const int64_t n_pages = (n + b->page_size - 1) / b->page_size;
        b->width = n_pages > b->width ? n_pages : b->width;
        b->indptr[r] = at;
        at += (int32_t)n_pages;
        b->rows[r] = (int32_t)(2 * b->n_requests - 1 - 2 * r);
    }
    b->indptr[b->n_requests] = at;
    b->pages = test_alloc((size_t)(2 * MOST_REQUESTS * b->width + at) * sizeof *b->pages);
    memset(b->pages, 0xFF, (size_t)(2 * MOST_REQUESTS * b->width + at) * sizeof *b->pages);
    for (int64_t r = 0; r < b->n_requests; r++) {
        for (int64_t i = 0; i < (b->indptr[r + 1] - b->indptr[r]); i++) {
            const int64_t row = b->form == 1 ? b->rows[r] : r;
            b->pages[b->form == 2 ? b->indptr[r] + i : row * b->width + i] =
                page_of(seed, r, i, rank);
        }
    }
    b->view = (pkv_batch){.struct_size = sizeof b->view, .n_requests = b->n_requests,
                          .computed = b->computed, .scheduled = b->scheduled,
                          .page_size = b->page_size, .n_pages = 10000};
    if (b->form == 2) {
        b->view.indptr = b->indptr;
        b->view.indices = b->pages;
    } else {
        b->view.block_table = b->pages;
        b->view.block_table_stride = b->view.block_table_width = b->width;
        b->view.table_rows = b->form == 1 ? b->rows : NULL;
    }
}

/* What the header says, token by token. */
static void model_plan_rank(const batch *b, uint64_t seed, int64_t rank, int64_t n_ranks,
                            slice_list *out)
{
    int64_t row = 0;
    for (int64_t r = 0; r < b->n_requests; r++) {
        for (int64_t g = b->computed[r]; g < b->computed[r] + b->scheduled[r]; g++, row++) {
            if (g % n_ranks == rank) {
                const int64_t local = g / n_ranks;
                slice_list_add(out,
                               page_of(seed, r, local / b->page_size, rank) * b->page_size +
                                   local % b->page_size, row, 1);
            }
        }
    }
}

static void expect_plan(const slice_list *found, const slice_list *expected)
{
    int32_t (*triples)[3] = test_alloc((size_t)(expected->n + 1) * sizeof *triples);
    for (int32_t i = 0; i < expected->n; i++) {
        triples[i][0] = expected->view.kv_cache_start[i];
        triples[i][1] = expected->view.new_kv_start[i];
        triples[i][2] = expected->view.slice_len[i];
    }
    expect_slices(found, (const int32_t (*)[3])triples, expected->n);
    free(triples);
}

/* All ranks: each as the model has it; every row of the new K/V written by just one of them. */
static void check_ranks(batch *b, int64_t n_ranks, uint64_t seed)
{
    int64_t n_tokens = 0, n_all = 0;
    int     writers[MOST_TOKENS] = {0};
    for (int64_t r = 0; r < b->n_requests; r++) {
        n_tokens += b->scheduled[r];
    }
    for (int64_t rank = 0; rank < n_ranks; rank++) {
        slice_list found, expected;
        pkv_error  err;
        int64_t    n = -1;
        note_case("ranks", seed, "rank %d of %d, S %d, requests %d, form %d", (int)rank,
                  (int)n_ranks, (int)b->page_size, (int)b->n_requests, b->form);
        batch_fill(b, seed, rank, n_ranks);
        slice_list_init(&found, MOST_TOKENS);
        slice_list_init(&expected, MOST_TOKENS);
        expect_ok(pkv_plan_rank(&b->view, (int32_t)rank, (int32_t)n_ranks, &found.view, &n, &err),
                  &err);
        if (n_ranks == 1) {
            model_plan(&b->view, b->page_size, &expected);
            if (b->form == 1) { /* the model knows no table_rows */
                expected.n = 0;
                assert_int_equal(pkv_plan(&b->view, b->page_size, &expected.view, NULL, NULL), 0);
            }
        } else {
            model_plan_rank(b, seed, rank, n_ranks, &expected);
        }
        expect_plan(&found, &expected);
        int64_t n_rank = 0;
        for (int32_t i = 0; i < found.n; i++) {
            for (int32_t j = 0; j < found.view.slice_len[i]; j++, n_rank++) {
                writers[found.view.new_kv_start[i] + j]++;
            }
        }
        assert_int_equal(n, n_rank);
        n_all += n_rank;
        slice_list_free(&found);
        slice_list_free(&expected);
        free(b->pages);
    }
    assert_int_equal(n_all, n_tokens);
    for (int64_t t = 0; t < n_tokens; t++) {
        assert_int_equal(writers[t], 1);
    }
}

static void test_random_batches(void **state)
{
    (void)state;
    static const int64_t sizes[] = {1, 3, 16};
    for (uint64_t seed = 0; seed < 3000; seed++) {
        rng   r = {seed};
        batch b = {.n_requests = rng_range(&r, 0, MOST_REQUESTS),
                   .page_size = sizes[seed % 3], .form = (int)(seed / 3 % 3)};
        for (int64_t i = 0; i < b.n_requests; i++) {
            b.computed[i] = (int32_t)rng_range(&r, 0, 60);
            b.scheduled[i] = (int32_t)rng_range(&r, 0, rng_range(&r, 0, 2) == 0 ? 100 : 2);
        }
        check_ranks(&b, 1 + (int64_t)(seed / 9 % 5), seed);
    }
}

/* Pages that no power of two divides, and one token more than full pages. */
static void test_large_pages(void **state)
{
    (void)state;
    uint64_t seed = 0;
    for (int64_t n_ranks = 2; n_ranks <= 4; n_ranks++) {
        for (int form = 0; form < 3; form++, seed++) {
            batch b = {.n_requests = 3, .page_size = 192, .form = form};
            b.computed[0] = 0;
            b.scheduled[0] = (int32_t)(64 * n_ranks + 1);
            b.computed[1] = (int32_t)(192 * n_ranks - 3);
            b.scheduled[1] = 7;
            b.computed[2] = (int32_t)(64 * n_ranks + 1);
            b.scheduled[2] = (int32_t)(64 * n_ranks + 1);
            check_ranks(&b, n_ranks, seed);
        }
    }
}

/* By hand: 2 ranks, S = 2, tokens 1 to 5 of a sequence. */
static void test_by_hand(void **state)
{
    (void)state;
    const int32_t   computed[] = {1}, scheduled[] = {5}, indptr[] = {0, 2}, first[] = {10, 20};
    const pkv_batch b = {.struct_size = sizeof b, .n_requests = 1, .computed = computed,
                         .scheduled = scheduled, .indptr = indptr, .indices = first,
                         .page_size = 2};
    static const int32_t even[][3] = {{21, 1, 1}, {40, 3, 1}};            /* tokens 2 and 4 */
    static const int32_t odd[][3] = {{20, 0, 1}, {21, 2, 1}, {40, 4, 1}}; /* 1, 3 and 5 */
    slice_list list;
    slice_list_init(&list, 3);
    note_case("by hand", 0, "rank 0");
    assert_int_equal(pkv_plan_rank(&b, 0, 2, &list.view, NULL, NULL), PKV_OK);
    expect_slices(&list, even, 2);
    note_case("by hand", 0, "rank 1");
    assert_int_equal(pkv_plan_rank(&b, 1, 2, &list.view, NULL, NULL), PKV_OK);
    expect_slices(&list, odd, 3);
    slice_list_free(&list);
}

/* ---- refusals ---------------------------------------------------------------------------- */

typedef struct call {
    int32_t    computed[3], scheduled[3], indptr[4], indices[8], table[3][4], rows[3];
    int32_t    columns[3][20], n;
    pkv_batch  view;
    pkv_slices slices;
    int32_t    rank, n_ranks;
} call;

static void call_init(call *c)
{
    const call good = {.computed = {4, 0, 9}, .scheduled = {1, 6, 2}, .indptr = {0, 2, 4, 7},
                       .indices = {1, 2, 3, 4, 5, 6, 7},
                       .table = {{1, 2, 0, 0}, {3, 4, 0, 0}, {5, 6, 7, 0}}, .rows = {0, 1, 2},
                       .n = 77, .rank = 0, .n_ranks = 2};
    *c = good;
    memset(c->columns, 0x5A, sizeof c->columns);
    c->view = (pkv_batch){.struct_size = sizeof c->view, .n_requests = 3, .computed = c->computed,
                          .scheduled = c->scheduled, .indptr = c->indptr, .indices = c->indices,
                          .page_size = 2, .n_pages = 8};
    assert_int_equal(pkv_slices_from_array(&c->slices, sizeof c->slices, c->columns[0], 20, &c->n),
                     PKV_OK);
}

static void use_table(call *c)
{
    c->view.indptr = NULL;
    c->view.indices = NULL;
    c->view.block_table = c->table[0];
    c->view.block_table_stride = 4;
    c->view.block_table_width = 3;
    c->view.table_rows = c->rows;
}

static void refuse(call *c, const char *what, pkv_status code, int32_t rule, int64_t index,
                   int64_t value, int64_t limit)
{
    pkv_error  err;
    int64_t    n_tokens = 1234;
    const call before = *c;
    memset(&err, 0xAB, sizeof err);
    note_case(what, 0, "rank %d of %d", c->rank, c->n_ranks);
    expect_error(pkv_plan_rank(&c->view, c->rank, c->n_ranks, &c->slices, &n_tokens, &err), &err,
                 code, rule, index);
    if (rule != PKV_RULE_NONE) {
        assert_int_equal(err.value, value);
        assert_int_equal(err.limit, limit);
    }
    assert_int_equal(n_tokens, 1234);
    memset(c->columns, 0, sizeof c->columns); /* they alone may have changed */
    call after = before;
    memset(after.columns, 0, sizeof after.columns);
    expect_same_bytes("all but the columns", c, &after, sizeof after);
    call_init(c);
}

static void test_invalid(void **state)
{
    (void)state;
    static const int32_t bad[][2] = {{0, 0}, {0, -1}, {-1, 2}, {2, 2}, {5, 2}, {INT32_MIN, 1},
                                     {0, INT32_MIN}, {1, 1}};
    call                 c;
    call_init(&c);
    for (int i = 0; i < 8; i++) {
        c.rank = bad[i][0];
        c.n_ranks = bad[i][1];
        refuse(&c, "rank", PKV_E_INVALID, PKV_RULE_NONE, -1, 0, 0);
    }
    for (c.n_ranks = 1; c.n_ranks <= 2;) {
        const int32_t n_ranks = c.n_ranks;
        c.view.page_size = 0;
        refuse(&c, "page_size", PKV_E_INVALID, PKV_RULE_NONE, -1, 0, 0);
        c.n_ranks = n_ranks;
        c.view.computed = NULL;
        refuse(&c, "computed NULL", PKV_E_INVALID, PKV_RULE_NONE, -1, 0, 0);
        c.n_ranks = n_ranks;
        c.slices.new_kv_start = NULL;
        refuse(&c, "a column NULL", PKV_E_INVALID, PKV_RULE_NONE, -1, 0, 0);
        c.n_ranks = n_ranks;
        c.slices.num_slices = NULL;
        refuse(&c, "num_slices NULL", PKV_E_INVALID, PKV_RULE_NONE, -1, 0, 0);
        c.n_ranks = n_ranks;
        c.view.block_table = c.table[0];
        refuse(&c, "both forms", PKV_E_INVALID, PKV_RULE_NONE, -1, 0, 0);
        c.n_ranks = n_ranks;
        c.view.struct_size = 8;
        refuse(&c, "struct_size", PKV_E_UNSUPPORTED, PKV_RULE_NONE, -1, 0, 0);
        c.n_ranks = n_ranks + 1;
    }
    pkv_error err;
    call_init(&c);
    assert_int_equal(pkv_plan_rank(NULL, 0, 2, &c.slices, NULL, &err), PKV_E_INVALID);
    assert_int_equal(pkv_plan_rank(&c.view, 0, 2, NULL, NULL, NULL), PKV_E_INVALID);
}

static void test_out_of_range(void **state)
{
    (void)state;
    call c;
    call_init(&c);
    c.computed[1] = -1;
    refuse(&c, "computed", PKV_E_RANGE, PKV_RULE_COMPUTED, 1, -1, 0);
    c.scheduled[2] = INT32_MIN;
    refuse(&c, "scheduled", PKV_E_RANGE, PKV_RULE_SCHEDULED, 2, INT32_MIN, 0);
    c.scheduled[0] = c.scheduled[1] = 0;
    c.indptr[1] = 3; /* it falls behind */
    c.indptr[2] = 2;
    refuse(&c, "indptr", PKV_E_RANGE, PKV_RULE_TABLE, 1, 2, 3);
    /* Rank 0 of 2 has tokens 0, 2 .. 10 of 11: 6 on 3 pages; rank 1 has 5 on 3. */
    c.indptr[3] = 6;
    refuse(&c, "a table that is too short", PKV_E_RANGE, PKV_RULE_TABLE, 2, 2, 3);
    c.computed[2] = 7; /* to 9 tokens, of which rank 0 has 5: one on its third page */
    c.indptr[3] = 6;
    refuse(&c, "a table that is too short by a token", PKV_E_RANGE, PKV_RULE_TABLE, 2, 2, 3);
    use_table(&c);
    c.view.block_table_width = 2;
    refuse(&c, "a table that is too narrow", PKV_E_RANGE, PKV_RULE_TABLE, 2, 2, 3);
    use_table(&c);
    c.rows[1] = -1;
    refuse(&c, "table_rows", PKV_E_RANGE, PKV_RULE_TABLE, 1, -1, 0);
    c.indices[3] = 8;
    refuse(&c, "a page above", PKV_E_RANGE, PKV_RULE_PAGE, 1, 8, 7);
    c.indices[6] = -1;
    refuse(&c, "a page below", PKV_E_RANGE, PKV_RULE_PAGE, 2, -1, 7);
    c.view.n_pages = 0;
    c.indices[2] = 1 << 30; /* times 2 is over int32 */
    refuse(&c, "slots over int32", PKV_E_RANGE, PKV_RULE_PAGE, 1, 1 << 30, (1 << 30) - 1);
    c.slices.capacity = 4; /* 1 + 3 + 1 of rank 0 */
    refuse(&c, "capacity", PKV_E_RANGE, PKV_RULE_CAPACITY, 2, 5, 4);
    c.slices.capacity = 0;
    refuse(&c, "no capacity", PKV_E_RANGE, PKV_RULE_CAPACITY, 0, 1, 0);
    c.n_ranks = INT32_MAX; /* nearly all tokens are other ranks', but rows are counted */
    c.computed[0] = c.computed[1] = c.computed[2] = 1;
    c.scheduled[0] = INT32_MAX - 1;
    c.scheduled[1] = 2;
    refuse(&c, "tokens over int32", PKV_E_RANGE, PKV_RULE_SCHEDULED, 1, (int64_t)INT32_MAX + 1,
           INT32_MAX);
}

/* Pages that this rank does not touch in this step are not looked at. */
static void test_what_is_not_looked_at(void **state)
{
    (void)state;
    call      c;
    pkv_error err;
    call_init(&c);
    c.rank = 1; /* request 0 writes token 4, of rank 0 */
    c.indices[0] = c.indices[1] = -5;
    c.indices[4] = c.indices[5] = 99; /* tokens 9 and 10 lie on page 2 of request 2 */
    note_case("not looked at", 0, "other pages");
    expect_ok(pkv_plan_rank(&c.view, 1, 2, &c.slices, NULL, &err), &err);
    assert_int_equal(c.n, 4);
    call_init(&c);
    /* Rank 1 of 3 holds tokens 1, 4 of request 1 (6 tokens): one page, not two. */
    c.n_ranks = 3;
    c.indptr[2] = 3;
    c.indptr[3] = 5;
    note_case("not looked at", 0, "a shorter table");
    expect_ok(pkv_plan_rank(&c.view, 1, 3, &c.slices, NULL, &err), &err);
    call_init(&c);
    c.scheduled[0] = c.scheduled[1] = c.scheduled[2] = 0;
    c.indptr[1] = c.indptr[2] = c.indptr[3] = 0;
    note_case("not looked at", 0, "nothing scheduled");
    expect_ok(pkv_plan_rank(&c.view, 0, 2, &c.slices, NULL, &err), &err);
    assert_int_equal(c.n, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_by_hand),
        cmocka_unit_test(test_random_batches),
        cmocka_unit_test(test_large_pages),
        cmocka_unit_test(test_invalid),
        cmocka_unit_test(test_out_of_range),
        cmocka_unit_test(test_what_is_not_looked_at),
    };
    return cmocka_run_group_tests_name("plan_rank", tests, NULL, NULL);
}
