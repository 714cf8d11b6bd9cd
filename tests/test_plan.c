/* The planner: fixed vectors, random steps against a token-by-token model, every refusal. */
#include "batches.h"
#include "model.h"

#include <string.h>

enum { ROOM = 400 };

/* Plans into a fresh list and compares with the expected triples. */
static void check_plan(const pkv_batch *batch, int64_t max_slice_tokens,
                       const int32_t (*expected)[3], int32_t n, int64_t n_tokens)
{
    slice_list list;
    slice_list_init(&list, ROOM);
    int64_t found_tokens = -1;
    pkv_error err;
    expect_ok(pkv_plan(batch, max_slice_tokens, &list.view, &found_tokens, &err), &err);
    expect_slices(&list, expected, n);
    assert_int_equal(found_tokens, n_tokens);
    slice_list_free(&list);
}

/* ---- vectors ------------------------------------------------------------- */

static void test_two_requests(void **state)
{
    (void)state;
    const int32_t computed[] = {0, 10};
    const int32_t scheduled[] = {10, 30};
    const int32_t table[] = {100, -1, -1, 200, 201, 202};
    const int32_t exact[][3] = {{1600, 0, 10}, {3210, 10, 6}, {3216, 16, 16}, {3232, 32, 8}};
    const int32_t merged[][3] = {{1600, 0, 10}, {3210, 10, 30}};
    const int32_t up_to_24[][3] = {{1600, 0, 10}, {3210, 10, 22}, {3232, 32, 8}};
    pkv_batch batch = batch_of(computed, scheduled, 2, table, 3, 16);
    note_case("vector (i)", 0, "S 16");
    check_plan(&batch, 16, exact, 4, 40);
    check_plan(&batch, 0, merged, 2, 40);
    check_plan(&batch, 24, up_to_24, 3, 40);
    check_plan(&batch, 30, merged, 2, 40);
}

static void test_one_request(void **state)
{
    (void)state;
    const int32_t computed[] = {5};
    const int32_t scheduled[] = {20};
    const int32_t indptr[] = {0, 2};
    const int32_t indices[] = {50, 51};
    const int32_t exact[][3] = {{805, 0, 11}, {816, 11, 9}};
    const int32_t merged[][3] = {{805, 0, 20}};
    pkv_batch batch = batch_of(computed, scheduled, 1, NULL, 0, 16);
    batch.indptr = indptr;
    batch.indices = indices;
    note_case("vector (ii)", 0, "S 16, CSR");
    check_plan(&batch, 16, exact, 2, 20);
    check_plan(&batch, 0, merged, 1, 20);
}

/* Prefill, decode and a chunk, pages in no order. */
static void test_worked_example(void **state)
{
    (void)state;
    const int32_t computed[] = {0, 30, 20};
    const int32_t scheduled[] = {35, 1, 13};
    const int32_t table[] = {7, 2, 9, 4, 11, -1, 5, 1, 3};
    const int32_t exact[][3] = {{112, 0, 16}, {32, 16, 16}, {144, 32, 3},
                                {190, 35, 1}, {20, 36, 12}, {48, 48, 1}};
    pkv_batch batch = batch_of(computed, scheduled, 3, table, 3, 16);
    note_case("worked example", 0, "S 16");
    check_plan(&batch, 16, exact, 6, 49);
    check_plan(&batch, 0, exact, 6, 49);
    assert_int_equal(pkv_token_bucket(49, 16, 8192, 0), 64);
}

/* The next request begins at the slot where the last one ended: still two slices. */
static void test_requests_are_never_joined(void **state)
{
    (void)state;
    const int32_t computed[] = {0, 0, 0};
    const int32_t scheduled[] = {4, 0, 4};
    const int32_t table[] = {7, 0, 8};
    const int32_t expected[][3] = {{28, 0, 4}, {32, 4, 4}};
    pkv_batch batch = batch_of(computed, scheduled, 3, table, 1, 4);
    check_plan(&batch, 0, expected, 2, 8);
}

static void test_nothing_to_do(void **state)
{
    (void)state;
    const int32_t zero[] = {0, 0};
    const int32_t computed[] = {17, 0};
    pkv_batch batch = batch_of(NULL, NULL, 0, NULL, 0, 16);
    const int32_t none[1][3] = {{0}};
    check_plan(&batch, 16, none, 0, 0);
    batch = batch_of(computed, zero, 2, zero, 1, 16); /* a table too short for what is computed */
    check_plan(&batch, 0, none, 0, 0);
}

/* ---- random steps -------------------------------------------------------- */

static void expect_same_plan(const slice_list *found, const slice_list *expected)
{
    assert_int_equal(found->n, expected->n);
    size_t n_bytes = (size_t)found->n * sizeof(int32_t);
    expect_same_bytes("kv_cache_start", found->view.kv_cache_start, expected->view.kv_cache_start,
                      n_bytes);
    expect_same_bytes("new_kv_start", found->view.new_kv_start, expected->view.new_kv_start,
                      n_bytes);
    expect_same_bytes("slice_len", found->view.slice_len, expected->view.slice_len, n_bytes);
}

/* What a plan promises, whatever the planner: rows in order without gaps, lengths in bounds. */
static void expect_sound(const slice_list *plan, int64_t n_tokens, int64_t max_slice_tokens)
{
    int64_t row = 0;
    for (int32_t i = 0; i < plan->n; i++) {
        int64_t len = plan->view.slice_len[i];
        assert_int_equal(plan->view.new_kv_start[i], row);
        assert_true(len >= 1 && (max_slice_tokens == 0 || len <= max_slice_tokens));
        row += len;
    }
    assert_int_equal(row, n_tokens);
}

static void check_against_model(const random_batch *b, int64_t max_slice_tokens)
{
    slice_list found;
    slice_list found_csr;
    slice_list expected;
    slice_list_init(&found, ROOM);
    slice_list_init(&found_csr, ROOM);
    slice_list_init(&expected, ROOM);
    model_plan(&b->table, max_slice_tokens, &expected);
    int64_t n_tokens = 0;
    int64_t bound = 0;
    pkv_error err;
    expect_ok(pkv_plan(&b->table, max_slice_tokens, &found.view, &n_tokens, &err), &err);
    expect_ok(pkv_plan(&b->csr, max_slice_tokens, &found_csr.view, NULL, &err), &err);
    expect_same_plan(&found, &expected);
    expect_same_plan(&found_csr, &expected);
    expect_sound(&found, n_tokens, max_slice_tokens);
    expect_ok(pkv_plan_bound(&b->table, &bound, &err), &err);
    if (max_slice_tokens == b->table.page_size) {
        assert_int_equal(bound, found.n);
    } else {
        assert_true(found.n <= bound);
    }
    slice_list_free(&found);
    slice_list_free(&found_csr);
    slice_list_free(&expected);
}

static void test_random_steps(void **state)
{
    (void)state;
    static const int64_t page_sizes[] = {1, 2, 3, 16, 33, 128};
    for (uint64_t seed = 0; seed < 1200; seed++) {
        rng r = {seed};
        int64_t page_size = page_sizes[seed % 6];
        random_batch b;
        random_batch_init(&b, &r, page_size);
        note_case("random step", seed, "S %lld, R %lld", (long long)page_size,
                  (long long)b.table.n_requests);
        check_against_model(&b, page_size);
        check_against_model(&b, 0);
        check_against_model(&b, page_size + rng_range(&r, 1, 5 * page_size));
    }
}

/* Columns from n on belong to the caller. */
static void test_columns_past_n_are_left_alone(void **state)
{
    (void)state;
    const int32_t computed[] = {0};
    const int32_t scheduled[] = {3};
    const int32_t table[] = {1};
    pkv_batch batch = batch_of(computed, scheduled, 1, table, 1, 16);
    slice_list list;
    slice_list untouched;
    slice_list_init(&list, 8);
    slice_list_init(&untouched, 8);
    pkv_error err;
    expect_ok(pkv_plan(&batch, 16, &list.view, NULL, &err), &err);
    for (int i = 0; i < 3; i++) {
        expect_same_bytes("columns past n", list.columns + i * 8 + 1, untouched.columns + i * 8 + 1,
                          7 * sizeof(int32_t));
    }
    slice_list_free(&list);
    slice_list_free(&untouched);
}

/* ---- the ends of int32 --------------------------------------------------- */

static void test_last_slot_of_int32(void **state)
{
    (void)state;
    const int32_t computed[] = {14};
    const int32_t scheduled[] = {2};
    const int32_t last_page[] = {(1 << 27) - 1};
    const int32_t expected[][3] = {{INT32_MAX - 1, 0, 2}};
    pkv_batch batch = batch_of(computed, scheduled, 1, last_page, 1, 16);
    check_plan(&batch, 16, expected, 1, 2);

    const int32_t long_context[] = {INT32_MAX};
    const int32_t one[] = {1};
    const int32_t pages[] = {0, 1};
    const int32_t last_slot[][3] = {{INT32_MAX, 0, 1}};
    batch = batch_of(long_context, one, 1, pages, 2, (int64_t)1 << 30);
    check_plan(&batch, 0, last_slot, 1, 1);
}

/* Merging may not run past what a length can say. */
static void test_merged_slice_of_int32_max_tokens(void **state)
{
    (void)state;
    const int32_t zero[] = {0};
    const int32_t all[] = {INT32_MAX};
    const int32_t pages[] = {0, 1, 2, 3};
    const int32_t expected[][3] = {{0, 0, INT32_MAX}};
    pkv_batch batch = batch_of(zero, all, 1, pages, 4, (int64_t)1 << 29);
    check_plan(&batch, 0, expected, 1, INT32_MAX);
}

/* ---- refusals ------------------------------------------------------------ */

/* Every form of the call must refuse, name the place, and leave *num_slices alone. */
static void refuse(const pkv_batch *batch, int64_t max_slice_tokens, int64_t capacity,
                   pkv_status code, int32_t rule, int64_t index)
{
    slice_list list;
    slice_list_init(&list, capacity);
    list.n = -77;
    int64_t n_tokens = -88;
    pkv_error err;
    memset(&err, 0xAB, sizeof err);
    pkv_status status = pkv_plan(batch, max_slice_tokens, &list.view, &n_tokens, &err);
    expect_error(status, &err, code, rule, index);
    assert_int_equal(pkv_plan(batch, max_slice_tokens, &list.view, &n_tokens, NULL), code);
    assert_int_equal(list.n, -77);
    assert_int_equal(n_tokens, -88);
    slice_list_free(&list);
}

static void test_bad_requests(void **state)
{
    (void)state;
    const int32_t computed[] = {0, 3, 9};
    const int32_t scheduled[] = {5, 5, 9};
    const int32_t negative[] = {5, -1, 9};
    const int32_t table[] = {0, 1, 2, 3, 4, 5};
    const int32_t bad_page[] = {0, 1, 2, 3, 4, -1};
    const int32_t big_page[] = {0, 1, 1 << 27, 3, 4, 5};
    pkv_batch batch = batch_of(computed, negative, 3, table, 2, 16);
    note_case("bad requests", 0, "S 16");
    refuse(&batch, 16, 9, PKV_E_RANGE, PKV_RULE_SCHEDULED, 1);
    batch = batch_of(negative, scheduled, 3, table, 2, 16);
    refuse(&batch, 16, 9, PKV_E_RANGE, PKV_RULE_COMPUTED, 1);
    batch = batch_of(computed, scheduled, 3, table, 1, 16);
    refuse(&batch, 0, 9, PKV_E_RANGE, PKV_RULE_TABLE, 2);
    batch = batch_of(computed, scheduled, 3, bad_page, 2, 16);
    refuse(&batch, 16, 9, PKV_E_RANGE, PKV_RULE_PAGE, 2);
    batch = batch_of(computed, scheduled, 3, big_page, 2, 16); /* its slots begin at 2^31 */
    refuse(&batch, 16, 9, PKV_E_RANGE, PKV_RULE_PAGE, 1);
    batch = batch_of(computed, scheduled, 3, table, 2, 16);
    batch.n_pages = 5; /* page 5 is one too far */
    refuse(&batch, 16, 9, PKV_E_RANGE, PKV_RULE_PAGE, 2);
    const int32_t last_of_int32[] = {(1 << 27) - 1};
    batch = batch_of(computed, scheduled, 1, last_of_int32, 1, 16);
    batch.n_pages = (1 << 27) - 1;
    refuse(&batch, 16, 9, PKV_E_RANGE, PKV_RULE_PAGE, 0);
}

static void test_bad_csr(void **state)
{
    (void)state;
    const int32_t computed[] = {0, 0};
    const int32_t scheduled[] = {8, 8};
    const int32_t indices[] = {0, 1, 2, 3};
    const int32_t too_short[] = {0, 2, 3};
    const int32_t falling[] = {0, 2, 1};
    const int32_t late[] = {1, 3, 5};
    pkv_batch batch = batch_of(computed, scheduled, 2, NULL, 0, 4);
    batch.indices = indices;
    batch.indptr = too_short;
    refuse(&batch, 4, 9, PKV_E_RANGE, PKV_RULE_TABLE, 1);
    batch.indptr = falling; /* request 0 would read past the end that the last entry gives */
    refuse(&batch, 4, 9, PKV_E_RANGE, PKV_RULE_TABLE, 0);
    batch.indptr = late;
    refuse(&batch, 4, 9, PKV_E_RANGE, PKV_RULE_TABLE, 0);
}

static void test_tokens_over_int32(void **state)
{
    (void)state;
    const int32_t computed[] = {0, 0};
    const int32_t scheduled[] = {INT32_MAX, 1};
    const int32_t pages[] = {0, 1, 2, 3, 0, 0, 0, 0};
    pkv_batch batch = batch_of(computed, scheduled, 2, pages, 4, (int64_t)1 << 29);
    refuse(&batch, 0, 9, PKV_E_RANGE, PKV_RULE_SCHEDULED, 1);
}

static void test_bad_shapes(void **state)
{
    (void)state;
    const int32_t computed[] = {0};
    const int32_t scheduled[] = {8};
    const int32_t table[] = {0, 1};
    const int32_t indptr[] = {0, 2};
    const pkv_batch good = batch_of(computed, scheduled, 1, table, 2, 4);
    pkv_batch bad[11];
    for (size_t i = 0; i < 11; i++) {
        bad[i] = good;
    }
    bad[0].n_requests = -1;
    bad[1].page_size = 0;
    bad[2].page_size = -4;
    bad[3].n_pages = -1;
    bad[4].computed = NULL;
    bad[5].scheduled = NULL;
    bad[6].block_table = NULL;
    bad[7].block_table_stride = 1;
    bad[8].block_table_width = -1;
    bad[9].indptr = indptr; /* two forms at once */
    bad[9].indices = table;
    bad[10].block_table = NULL;
    bad[10].indptr = indptr;
    for (size_t i = 0; i < 11; i++) {
        note_case("bad shape", i, "max_slice_tokens 0");
        refuse(&bad[i], 0, 9, PKV_E_INVALID, PKV_RULE_NONE, -1);
    }
    note_case("bound", 0, "below a page, negative");
    refuse(&good, 3, 9, PKV_E_INVALID, PKV_RULE_NONE, -1);
    refuse(&good, -1, 9, PKV_E_INVALID, PKV_RULE_NONE, -1);
}

static void test_null_arguments(void **state)
{
    (void)state;
    const pkv_batch empty = batch_of(NULL, NULL, 0, NULL, 0, 4);
    slice_list list;
    slice_list_init(&list, 4);
    int64_t bound = -5;
    assert_int_equal(pkv_plan(NULL, 0, &list.view, NULL, NULL), PKV_E_INVALID);
    assert_int_equal(pkv_plan(&empty, 0, NULL, NULL, NULL), PKV_E_INVALID);
    pkv_slices bad = list.view;
    bad.num_slices = NULL;
    assert_int_equal(pkv_plan(&empty, 0, &bad, NULL, NULL), PKV_E_INVALID);
    bad = list.view;
    bad.slice_len = NULL;
    assert_int_equal(pkv_plan(&empty, 0, &bad, NULL, NULL), PKV_E_INVALID);
    bad = list.view;
    bad.capacity = -1;
    assert_int_equal(pkv_plan(&empty, 0, &bad, NULL, NULL), PKV_E_INVALID);
    assert_int_equal(pkv_plan_bound(NULL, &bound, NULL), PKV_E_INVALID);
    assert_int_equal(pkv_plan_bound(&empty, NULL, NULL), PKV_E_INVALID);
    assert_int_equal(bound, -5);
    slice_list_free(&list);
}

/* The capacity must cover the slices that the plan has, merged or not. */
static void test_capacity(void **state)
{
    (void)state;
    const int32_t computed[] = {0, 10};
    const int32_t scheduled[] = {10, 30};
    const int32_t table[] = {100, -1, -1, 200, 201, 202};
    pkv_batch batch = batch_of(computed, scheduled, 2, table, 3, 16);
    static const int64_t bounds[] = {16, 0, 24}, needed[] = {4, 2, 3};
    for (size_t i = 0; i < 3; i++) {
        slice_list list;
        slice_list_init(&list, needed[i]);
        pkv_error err;
        expect_ok(pkv_plan(&batch, bounds[i], &list.view, NULL, &err), &err);
        assert_int_equal(list.n, needed[i]);
        note_case("capacity", 0, "one less than enough, max_slice_tokens %d", (int)bounds[i]);
        refuse(&batch, bounds[i], needed[i] - 1, PKV_E_RANGE, PKV_RULE_CAPACITY, 1);
        list.view.capacity = needed[i] - 1;
        assert_int_equal(pkv_plan(&batch, bounds[i], &list.view, NULL, &err), PKV_E_RANGE);
        assert_int_equal(err.value, needed[i]);
        assert_int_equal(err.limit, needed[i] - 1);
        slice_list_free(&list);
    }
}

static void test_bound_refuses_bad_requests(void **state)
{
    (void)state;
    const int32_t good[] = {0, 4};
    const int32_t bad[] = {0, -4};
    int64_t bound = -5;
    pkv_error err;
    pkv_batch batch = batch_of(bad, good, 2, NULL, 0, 4);
    expect_error(pkv_plan_bound(&batch, &bound, &err), &err, PKV_E_RANGE, PKV_RULE_COMPUTED, 1);
    batch = batch_of(good, bad, 2, NULL, 0, 4);
    expect_error(pkv_plan_bound(&batch, &bound, &err), &err, PKV_E_RANGE, PKV_RULE_SCHEDULED, 1);
    assert_int_equal(bound, -5);
    batch = batch_of(good, good, 2, NULL, 0, 3);
    expect_ok(pkv_plan_bound(&batch, &bound, &err), &err); /* the tables are not read */
    assert_int_equal(bound, 2); /* tokens 4..7 lie in pages 1 and 2 */
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_two_requests),
        cmocka_unit_test(test_one_request),
        cmocka_unit_test(test_worked_example),
        cmocka_unit_test(test_requests_are_never_joined),
        cmocka_unit_test(test_nothing_to_do),
        cmocka_unit_test(test_random_steps),
        cmocka_unit_test(test_columns_past_n_are_left_alone),
        cmocka_unit_test(test_last_slot_of_int32),
        cmocka_unit_test(test_merged_slice_of_int32_max_tokens),
        cmocka_unit_test(test_bad_requests),
        cmocka_unit_test(test_bad_csr),
        cmocka_unit_test(test_tokens_over_int32),
        cmocka_unit_test(test_bad_shapes),
        cmocka_unit_test(test_null_arguments),
        cmocka_unit_test(test_capacity),
        cmocka_unit_test(test_bound_refuses_bad_requests),
    };
    return cmocka_run_group_tests_name("plan", tests, NULL, NULL);
}
