/* Slices from a slot for every token: both widths, padding, requests' ends, refusals. */
#include "model.h"

enum { MAX_TOKENS = 300 };

/* One mapping in both widths. */
typedef struct mapping {
    int64_t wide[MAX_TOKENS];
    int32_t narrow[MAX_TOKENS];
    int64_t n_tokens;
} mapping;

static mapping mapping_of(const int64_t *slots, int64_t n)
{
    mapping m = {.n_tokens = n};
    for (int64_t t = 0; t < n; t++) {
        m.wide[t] = slots[t];
        m.narrow[t] = (int32_t)slots[t];
    }
    return m;
}

static pkv_status plan_width(const mapping *m, bool is_wide, int64_t page_size, int64_t n_slots,
                             int64_t max_slice_tokens, const int32_t *starts, int64_t n_requests,
                             slice_list *out, pkv_error *err)
{
    return is_wide ? pkv_plan_slots_i64(m->wide, m->n_tokens, page_size, n_slots, max_slice_tokens,
                                        starts, n_requests, &out->view, err)
                   : pkv_plan_slots_i32(m->narrow, m->n_tokens, page_size, n_slots,
                                        max_slice_tokens, starts, n_requests, &out->view, err);
}

static void check_slots(const mapping *m, int64_t page_size, int64_t max_slice_tokens,
                        const int32_t *starts, int64_t n_requests, const int32_t (*expected)[3],
                        int32_t n)
{
    for (int is_wide = 0; is_wide < 2; is_wide++) {
        slice_list list;
        slice_list_init(&list, n); /* capacity exactly enough */
        pkv_error err;
        expect_ok(plan_width(m, is_wide, page_size, 0, max_slice_tokens, starts, n_requests, &list,
                             &err), &err);
        expect_slices(&list, expected, n);
        slice_list_free(&list);
    }
}

static void test_exact_merged_and_bounded(void **state)
{
    (void)state;
    const int64_t slots[] = {14, 15, 16, 17, 40, 41, -1, -1, 42, 3};
    const mapping m = mapping_of(slots, 10);
    const int32_t exact[][3] = {{14, 0, 2}, {16, 2, 2}, {40, 4, 2}, {42, 8, 1}, {3, 9, 1}};
    const int32_t merged[][3] = {{14, 0, 4}, {40, 4, 2}, {42, 8, 1}, {3, 9, 1}};
    const int32_t up_to_3[][3] = {{14, 0, 3}, {17, 3, 1}, {40, 4, 2}, {42, 8, 1}, {3, 9, 1}};
    check_slots(&m, 16, 16, NULL, 0, exact, 5);
    check_slots(&m, 16, 0, NULL, 0, merged, 4);
    check_slots(&m, 16, 3, NULL, 0, up_to_3, 5);
    check_slots(&m, 1, 0, NULL, 0, merged, 4);
}

/* Slots that count up across two requests: joined, unless the call knows where requests end. */
static void test_requests_end(void **state)
{
    (void)state;
    const int64_t slots[] = {5, 6, 7, 8, 9, 10};
    const int32_t starts[] = {0, 2, 2, 5, 6};
    const mapping m = mapping_of(slots, 6);
    const int32_t joined[][3] = {{5, 0, 6}};
    const int32_t apart[][3] = {{5, 0, 2}, {7, 2, 3}, {10, 5, 1}};
    check_slots(&m, 16, 0, NULL, 0, joined, 1);
    check_slots(&m, 16, 0, starts, 4, apart, 3);
}

static void test_nothing_to_write(void **state)
{
    (void)state;
    const int64_t padding[] = {-1, -1, -1};
    const mapping none = mapping_of(padding, 0);
    const mapping only_padding = mapping_of(padding, 3);
    const int32_t empty[1][3] = {{0}};
    check_slots(&none, 16, 0, NULL, 0, empty, 0);
    check_slots(&only_padding, 16, 16, NULL, 0, empty, 0);
}

/* Slot 0 behind padding must not look like "one more than -1". */
static void test_slot_zero_behind_padding(void **state)
{
    (void)state;
    const int64_t slots[] = {-1, 0, 1, -1, 2};
    const mapping m = mapping_of(slots, 5);
    const int32_t expected[][3] = {{0, 1, 2}, {2, 4, 1}};
    check_slots(&m, 16, 0, NULL, 0, expected, 2);
}

static void test_last_slot_of_int32(void **state)
{
    (void)state;
    const int64_t slots[] = {INT32_MAX - 1, INT32_MAX, 0};
    const mapping m = mapping_of(slots, 3);
    const int32_t expected[][3] = {{INT32_MAX - 1, 0, 2}, {0, 2, 1}};
    check_slots(&m, 16, 0, NULL, 0, expected, 2);
}

/* ---- random mappings ----------------------------------------------------- */

static mapping random_mapping(rng *r)
{
    mapping m = {.n_tokens = rng_range(r, 0, MAX_TOKENS)};
    int64_t slot = 0;
    for (int64_t t = 0; t < m.n_tokens; t++) {
        int64_t kind = rng_range(r, 0, 9);
        slot = kind < 7 ? slot + 1 : rng_range(r, 0, 5000);
        m.wide[t] = kind == 9 ? -1 : slot;
        m.narrow[t] = (int32_t)m.wide[t];
    }
    return m;
}

/* Rising from 0 to n_tokens, some requests empty; returns how many. */
static int64_t random_starts(rng *r, int64_t n_tokens, int32_t starts[MAX_TOKENS])
{
    int64_t n = rng_range(r, 1, 20);
    starts[0] = 0;
    for (int64_t i = 1; i < n; i++) {
        starts[i] = (int32_t)rng_range(r, starts[i - 1], n_tokens);
    }
    starts[n] = (int32_t)n_tokens;
    return n;
}

static void check_against_model(const mapping *m, int64_t page_size, int64_t max_slice_tokens,
                                const int32_t *starts, int64_t n_requests)
{
    slice_list expected;
    slice_list_init(&expected, MAX_TOKENS);
    model_plan_slots(m->wide, m->n_tokens, page_size, max_slice_tokens, starts, n_requests,
                     &expected);
    for (int is_wide = 0; is_wide < 2; is_wide++) {
        slice_list found;
        slice_list_init(&found, m->n_tokens);
        pkv_error err;
        expect_ok(plan_width(m, is_wide, page_size, 6000, max_slice_tokens, starts, n_requests,
                             &found, &err), &err);
        assert_int_equal(found.n, expected.n);
        for (int32_t i = 0; i < found.n; i++) {
            assert_int_equal(found.view.kv_cache_start[i], expected.view.kv_cache_start[i]);
            assert_int_equal(found.view.new_kv_start[i], expected.view.new_kv_start[i]);
            assert_int_equal(found.view.slice_len[i], expected.view.slice_len[i]);
        }
        slice_list_free(&found);
    }
    slice_list_free(&expected);
}

static void test_random_mappings(void **state)
{
    (void)state;
    static const int64_t page_sizes[] = {1, 5, 16};
    for (uint64_t seed = 0; seed < 1500; seed++) {
        rng r = {seed};
        const mapping m = random_mapping(&r);
        int32_t starts[MAX_TOKENS];
        int64_t n_requests = random_starts(&r, m.n_tokens, starts);
        int64_t page_size = page_sizes[seed % 3];
        note_case("random mapping", seed, "S %d, T %d", (int)page_size, (int)m.n_tokens);
        check_against_model(&m, page_size, page_size, NULL, 0);
        check_against_model(&m, page_size, page_size, starts, n_requests);
        check_against_model(&m, page_size, 0, starts, n_requests);
        check_against_model(&m, page_size, rng_range(&r, 1, 40), starts, n_requests);
    }
}

/* ---- refusals ------------------------------------------------------------ */

static void refuse(const mapping *m, int64_t page_size, int64_t n_slots, int64_t capacity,
                   pkv_status code, int32_t rule, int64_t index)
{
    for (int is_wide = 0; is_wide < 2; is_wide++) {
        slice_list list;
        slice_list_init(&list, capacity);
        list.n = -77;
        pkv_error err;
        expect_error(plan_width(m, is_wide, page_size, n_slots, 0, NULL, 0, &list, &err), &err,
                     code, rule, index);
        assert_int_equal(plan_width(m, is_wide, page_size, n_slots, 0, NULL, 0, &list, NULL), code);
        assert_int_equal(list.n, -77);
        slice_list_free(&list);
    }
}

static void test_bad_slots(void **state)
{
    (void)state;
    const int64_t below[] = {3, -2, 4};
    const int64_t over[] = {3, 99, 100};
    const int64_t apart[] = {1, 3, 5};
    mapping m = mapping_of(below, 3);
    note_case("bad slots", 0, "S 16");
    refuse(&m, 16, 0, 3, PKV_E_RANGE, PKV_RULE_SLOT, 1);
    m = mapping_of(over, 3);
    refuse(&m, 16, 100, 3, PKV_E_RANGE, PKV_RULE_SLOT, 2);
    m = mapping_of(apart, 3);
    refuse(&m, 16, 0, 2, PKV_E_RANGE, PKV_RULE_CAPACITY, 2);
    refuse(&m, 0, 0, 3, PKV_E_INVALID, PKV_RULE_NONE, -1);
    refuse(&m, 16, -1, 3, PKV_E_INVALID, PKV_RULE_NONE, -1);
    m.n_tokens = -1;
    refuse(&m, 16, 0, 3, PKV_E_INVALID, PKV_RULE_NONE, -1);
}

static void test_slots_over_int32(void **state)
{
    (void)state;
    static const int64_t values[] = {(int64_t)INT32_MAX + 1, INT64_MAX, INT64_MIN, -4294967295};
    for (size_t i = 0; i < 4; i++) {
        const int64_t slots[] = {7, values[i]};
        slice_list list;
        slice_list_init(&list, 2);
        list.n = -77;
        pkv_error err;
        pkv_status status = pkv_plan_slots_i64(slots, 2, 16, 0, 0, NULL, 0, &list.view, &err);
        expect_error(status, &err, PKV_E_RANGE, PKV_RULE_SLOT, 1);
        assert_int_equal(err.value, values[i]);
        assert_int_equal(list.n, -77);
        slice_list_free(&list);
    }
}

static void test_bad_arguments(void **state)
{
    (void)state;
    const int64_t slots[] = {1, 2, 3};
    const int32_t falling[] = {0, 2, 1};
    const int32_t beyond[] = {0, 2, 4};
    slice_list list;
    slice_list_init(&list, 3);
    pkv_slices *out = &list.view;
    assert_int_equal(pkv_plan_slots_i64(NULL, 3, 16, 0, 0, NULL, 0, out, NULL), PKV_E_INVALID);
    assert_int_equal(pkv_plan_slots_i32(NULL, 3, 16, 0, 0, NULL, 0, out, NULL), PKV_E_INVALID);
    assert_int_equal(pkv_plan_slots_i64(slots, 3, 16, 0, 0, NULL, 0, NULL, NULL), PKV_E_INVALID);
    assert_int_equal(pkv_plan_slots_i64(slots, 3, 16, 0, -1, NULL, 0, out, NULL), PKV_E_INVALID);
    assert_int_not_equal(pkv_plan_slots_i64(slots, 3, 16, 0, 0, falling, 2, out, NULL), PKV_OK);
    assert_int_not_equal(pkv_plan_slots_i64(slots, 3, 16, 0, 0, beyond, 2, out, NULL), PKV_OK);
    assert_int_equal(pkv_plan_slots_i64(slots, 3, 16, 0, 0, beyond, -1, out, NULL), PKV_E_INVALID);
    assert_int_equal(pkv_plan_slots_i64(NULL, 0, 16, 0, 0, NULL, 0, out, NULL), PKV_OK);
    assert_int_equal(list.n, 0);
    slice_list_free(&list);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_exact_merged_and_bounded),
        cmocka_unit_test(test_requests_end),
        cmocka_unit_test(test_nothing_to_write),
        cmocka_unit_test(test_slot_zero_behind_padding),
        cmocka_unit_test(test_last_slot_of_int32),
        cmocka_unit_test(test_random_mappings),
        cmocka_unit_test(test_bad_slots),
        cmocka_unit_test(test_slots_over_int32),
        cmocka_unit_test(test_bad_arguments),
    };
    return cmocka_run_group_tests_name("plan_slots", tests, NULL, NULL);
}
