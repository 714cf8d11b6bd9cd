/* The checks of slices alone: default rules, strict rules, and which slice is named. */
#include "support.h"

#include <string.h>

enum { T = 100, SLOTS = 160, S = 16 };

static void check(const slice_list *list, int32_t strict, int64_t n_tokens)
{
    pkv_error err;
    int64_t found = -1;
    expect_ok(pkv_slices_check(&list->view, T, SLOTS, S, strict, &found, &err), &err);
    assert_int_equal(found, n_tokens);
    expect_ok(pkv_slices_check(&list->view, T, SLOTS, S, strict, NULL, NULL), &err);
}

static void refuse(const slice_list *list, int32_t strict, pkv_status code, int32_t rule,
                   int64_t index)
{
    pkv_error err;
    int64_t found = -1;
    memset(&err, 0xAB, sizeof err);
    expect_error(pkv_slices_check(&list->view, T, SLOTS, S, strict, &found, &err), &err, code, rule,
                 index);
    assert_int_equal(found, -1);
}

static void test_sum_of_lengths(void **state)
{
    (void)state;
    slice_list list;
    slice_list_init(&list, 4);
    check(&list, 0, 0);
    check(&list, 1, 0);
    slice_list_add(&list, 5, 10, 11);
    slice_list_add(&list, 32, 21, 16);
    check(&list, 1, 27);
    slice_list_add(&list, 0, 0, 0);     /* empty: the default mode only */
    slice_list_add(&list, 60, 60, 40);  /* over page ends */
    check(&list, 0, 67);
    refuse(&list, 1, PKV_E_STRICT, PKV_RULE_SLICE_LEN, 2);
    slice_list_free(&list);
}

/* The lowest index counts, and in it the first rule; gaps and overlaps come last. */
static void test_which_fault_is_named(void **state)
{
    (void)state;
    slice_list list;
    slice_list_init(&list, 5);
    slice_list_add(&list, 0, 0, 4);
    slice_list_add(&list, 2, 50, 4);       /* overlap and gap */
    slice_list_add(&list, SLOTS, T, 1);    /* both ends out */
    slice_list_add(&list, -1, -1, -1);     /* everything */
    note_case("which fault", 0, "5 slices");
    refuse(&list, 0, PKV_E_RANGE, PKV_RULE_NEW_KV_END, 2);
    refuse(&list, 1, PKV_E_RANGE, PKV_RULE_NEW_KV_END, 2);
    list.view.new_kv_start[2] = 54;
    refuse(&list, 1, PKV_E_RANGE, PKV_RULE_KV_CACHE_END, 2);
    list.view.kv_cache_start[2] = 14;
    list.view.slice_len[2] = 3;
    refuse(&list, 1, PKV_E_STRICT, PKV_RULE_SAME_PAGE, 2);
    refuse(&list, 0, PKV_E_RANGE, PKV_RULE_NEW_KV_START, 3);
    list.n = 3;
    list.view.slice_len[2] = 2;
    refuse(&list, 1, PKV_E_STRICT, PKV_RULE_NEW_KV_GAP, 1);
    list.view.new_kv_start[1] = 3; /* rows that are read twice do not join either */
    refuse(&list, 1, PKV_E_STRICT, PKV_RULE_NEW_KV_GAP, 1);
    list.view.new_kv_start[1] = 4;
    list.view.new_kv_start[2] = 8;
    refuse(&list, 1, PKV_E_STRICT, PKV_RULE_KV_CACHE_OVERLAP, 1);
    list.view.kv_cache_start[1] = 4;
    check(&list, 1, 10);
    slice_list_free(&list);
}

static void test_bad_arguments(void **state)
{
    (void)state;
    slice_list list;
    slice_list_init(&list, 2);
    note_case("bad arguments", 0, "2 columns");
    assert_int_equal(pkv_slices_check(NULL, T, SLOTS, S, 0, NULL, NULL), PKV_E_INVALID);
    assert_int_equal(pkv_slices_check(&list.view, -1, SLOTS, S, 0, NULL, NULL), PKV_E_INVALID);
    assert_int_equal(pkv_slices_check(&list.view, T, -1, S, 0, NULL, NULL), PKV_E_INVALID);
    assert_int_equal(pkv_slices_check(&list.view, T, SLOTS, 0, 1, NULL, NULL), PKV_E_INVALID);
    assert_int_equal(pkv_slices_check(&list.view, T, SLOTS, 0, 0, NULL, NULL), PKV_OK);
    assert_int_equal(pkv_slices_check(&list.view, 0, 0, S, 1, NULL, NULL), PKV_OK);
    list.n = 3;
    refuse(&list, 0, PKV_E_RANGE, PKV_RULE_COUNT, -1);
    list.n = -1;
    refuse(&list, 1, PKV_E_RANGE, PKV_RULE_COUNT, -1);
    list.n = 0;
    list.view.new_kv_start = NULL;
    refuse(&list, 0, PKV_E_INVALID, PKV_RULE_NONE, -1);
    slice_list_free(&list);
}

/* ---- strict over many slices, in any order ------------------------------- */

/* n slices of 1..S tokens, rows without gaps, slots apart; then shuffled. */
static void strict_plan(slice_list *list, rng *r, int64_t n, int64_t *n_rows, int64_t *n_slots)
{
    slice_list_init(list, n);
    int64_t row = rng_range(r, 0, 9);
    int64_t slot = 0;
    for (int64_t i = 0; i < n; i++) {
        int64_t len = rng_range(r, 1, S);
        if (slot % S + len > S || rng_range(r, 0, 3) == 0) {
            slot += S - slot % S;
        }
        slice_list_add(list, slot, row, len);
        slot += len;
        row += len;
    }
    *n_rows = row;
    *n_slots = slot;
    const pkv_slices *s = &list->view;
    int32_t *columns[] = {s->kv_cache_start, s->new_kv_start, s->slice_len};
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t j = rng_range(r, 0, i);
        for (int c = 0; c < 3; c++) {
            int32_t kept = columns[c][i];
            columns[c][i] = columns[c][j];
            columns[c][j] = kept;
        }
    }
}

static void expect_strict(const slice_list *list, int64_t n_rows, int64_t n_slots, int32_t rule,
                          int64_t index)
{
    pkv_error err;
    pkv_status status = pkv_slices_check(&list->view, n_rows, n_slots, S, 1, NULL, &err);
    if (rule == PKV_RULE_NONE) {
        expect_ok(status, &err);
    } else {
        expect_error(status, &err, PKV_E_STRICT, rule, index);
    }
}

/* Moves slice i onto the slots of a slice that is no longer: of two that start alike, the
 * one with the higher index is at fault. */
static void plant_overlap(slice_list *list, int64_t i, int64_t n_rows, int64_t n_slots)
{
    int32_t *starts = list->view.kv_cache_start;
    const int32_t *lens = list->view.slice_len;
    int64_t j = (i + 1) % list->n;
    int32_t kept = starts[i];
    while (j != i && lens[j] < lens[i]) {
        j = (j + 1) % list->n;
    }
    starts[i] = starts[j];
    if (j != i) {
        expect_strict(list, n_rows, n_slots, PKV_RULE_KV_CACHE_OVERLAP, i > j ? i : j);
    }
    starts[i] = kept;
}

/* Takes one token off slice i: the slice with the next row no longer joins. */
static void plant_gap(slice_list *list, int64_t i, int64_t n_rows, int64_t n_slots)
{
    const int32_t *starts = list->view.new_kv_start;
    int32_t *lens = list->view.slice_len;
    int64_t next = 0;
    while (next < list->n && starts[next] != starts[i] + lens[i]) {
        next++;
    }
    if (next < list->n && lens[i] > 1) {
        lens[i]--;
        expect_strict(list, n_rows, n_slots, PKV_RULE_NEW_KV_GAP, next);
        lens[i]++;
    }
}

static void test_strict_over_many_slices(void **state)
{
    (void)state;
    static const int64_t counts[] = {1, 2, 3, 255, 256, 257, 511, 512, 513, 1000, 3000};
    for (uint64_t seed = 0; seed < 44; seed++) {
        rng r = {seed};
        int64_t n = counts[seed % 11];
        slice_list list;
        int64_t n_rows;
        int64_t n_slots;
        strict_plan(&list, &r, n, &n_rows, &n_slots);
        note_case("strict", seed, "%d slices", (int)n);
        expect_strict(&list, n_rows, n_slots, PKV_RULE_NONE, -1);
        for (int k = 0; k < 4; k++) {
            plant_overlap(&list, rng_range(&r, 0, n - 1), n_rows, n_slots);
            plant_gap(&list, rng_range(&r, 0, n - 1), n_rows, n_slots);
        }
        expect_strict(&list, n_rows, n_slots, PKV_RULE_NONE, -1);
        slice_list_free(&list);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sum_of_lengths),
        cmocka_unit_test(test_which_fault_is_named),
        cmocka_unit_test(test_bad_arguments),
        cmocka_unit_test(test_strict_over_many_slices),
    };
    return cmocka_run_group_tests_name("slices", tests, NULL, NULL);
}
