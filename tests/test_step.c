/* A step's metadata: all seven fields with their padding, and every limit. */
#include "batches.h"
#include "model.h"

#include <string.h>

enum { MAX_REQS = BATCH_REQUESTS + 2, MAX_TOKENS = 2048, ROOM = 400 };

/* Everything that a step fills, in arrays full of garbage. */
typedef struct step_room {
    pkv_step        step;
    pkv_step_limits limits;
    slice_list      list;
    int32_t         block_tables[MAX_REQS * BATCH_WIDTH];
    int32_t         context_lens[MAX_REQS];
    int32_t         query_start_loc[MAX_REQS + 1];
    int32_t         num_seqs;
} step_room;

static void room_init(step_room *room, int64_t capacity)
{
    memset(room, 0xAB, sizeof *room);
    slice_list_init(&room->list, capacity);
    room->list.n = -77;
    room->num_seqs = -66;
    room->limits = (pkv_step_limits){.struct_size = sizeof room->limits,
                                     .max_num_reqs = MAX_REQS,
                                     .max_num_batched_tokens = MAX_TOKENS,
                                     .num_slices_per_block = 64};
    room->step = (pkv_step){.struct_size = sizeof room->step,
                            .slices = &room->list.view,
                            .block_tables = room->block_tables,
                            .block_tables_width = BATCH_WIDTH,
                            .context_lens = room->context_lens,
                            .query_start_loc = room->query_start_loc,
                            .num_seqs = &room->num_seqs};
}

/* ---- one step by hand ---------------------------------------------------- */

static const int32_t hand_computed[] = {0, 30, 20};
static const int32_t hand_scheduled[] = {35, 1, 13};
static const int32_t hand_table[] = {7, 2, 9, 4, 11, -1, 5, 1, 3};

static pkv_batch hand_batch(void)
{
    return batch_of(hand_computed, hand_scheduled, 3, hand_table, 3, 16);
}

static void test_worked_example(void **state)
{
    (void)state;
    static const int32_t slices[][3] = {{112, 0, 16}, {32, 16, 16}, {144, 32, 3},
                                        {190, 35, 1}, {20, 36, 12}, {48, 48, 1}};
    static const int32_t context_lens[MAX_REQS] = {35, 31, 33};
    static const int32_t query_start_loc[MAX_REQS + 1] = {0, 35, 36, 49, 1, 1, 1, 1,
                                                          1, 1,  1,  1,  1, 1, 1};
    static const int32_t tables[4][4] = {{7, 2, 9, 0}, {4, 11, 0, 0}, {5, 1, 3, 0}, {0}};
    step_room room;
    room_init(&room, 64);
    pkv_batch batch = hand_batch();
    pkv_error err;
    note_case("worked example", 0, "S 16");
    expect_ok(pkv_step_plan(&batch, &room.limits, &room.step, &err), &err);
    expect_slices(&room.list, slices, 6);
    expect_same_bytes("context_lens", room.context_lens, context_lens, sizeof context_lens);
    expect_same_bytes("query_start_loc", room.query_start_loc, query_start_loc,
                      sizeof query_start_loc);
    for (int r = 0; r < 4; r++) {
        expect_same_bytes("block_tables", room.block_tables + r * BATCH_WIDTH, tables[r],
                          sizeof tables[r]);
    }
    assert_int_equal(room.num_seqs, 3);
    assert_int_equal(room.step.n_tokens, 49);
    assert_int_equal(room.step.token_bucket, 64);
    assert_int_equal(room.step.padded_num_slices, 2 * MAX_REQS + 4);
    assert_int_equal(room.step.num_slices_per_block, 64);
    for (int i = 6; i < room.step.padded_num_slices; i++) {
        assert_int_equal(room.list.view.kv_cache_start[i], 0);
        assert_int_equal(room.list.view.new_kv_start[i], 0);
        assert_int_equal(room.list.view.slice_len[i], 0);
    }
    slice_list_free(&room.list);
}

/* A bucket gap, an exact plan, and no request at all. */
static void test_other_limits(void **state)
{
    (void)state;
    step_room room;
    room_init(&room, 64);
    pkv_batch batch = hand_batch();
    pkv_error err;
    room.limits.bucket_gap_tokens = 16;
    room.limits.max_slice_tokens = 16;
    expect_ok(pkv_step_plan(&batch, &room.limits, &room.step, &err), &err);
    assert_int_equal(room.step.token_bucket, 64);
    batch.n_requests = 1;
    expect_ok(pkv_step_plan(&batch, &room.limits, &room.step, &err), &err);
    assert_int_equal(room.step.token_bucket, 48);
    batch.n_requests = 0;
    expect_ok(pkv_step_plan(&batch, &room.limits, &room.step, &err), &err);
    assert_int_equal(room.step.n_tokens, 0);
    assert_int_equal(room.step.token_bucket, 16);
    assert_int_equal(room.list.n, 0);
    assert_int_equal(room.num_seqs, 0);
    assert_int_equal(room.query_start_loc[0], 0);
    assert_int_equal(room.query_start_loc[1], 1);
    slice_list_free(&room.list);
}

/* ---- random steps -------------------------------------------------------- */

static void expect_tables(const step_room *room, const random_batch *b)
{
    for (int64_t r = 0; r < MAX_REQS; r++) {
        bool is_real = r < b->table.n_requests;
        int64_t n_pages = is_real ? b->indptr[r + 1] - b->indptr[r] : 0;
        for (int64_t i = 0; i < BATCH_WIDTH; i++) {
            int32_t expected = i < n_pages ? b->indices[b->indptr[r] + i] : 0;
            assert_int_equal(room->block_tables[r * BATCH_WIDTH + i], expected);
        }
        assert_int_equal(room->context_lens[r], is_real ? b->computed[r] + b->scheduled[r] : 0);
    }
}

static void expect_starts(const step_room *room, const random_batch *b)
{
    int32_t start = 0;
    for (int64_t r = 0; r <= MAX_REQS; r++) {
        assert_int_equal(room->query_start_loc[r], r <= b->table.n_requests ? start : 1);
        start += r < b->table.n_requests ? b->scheduled[r] : 0;
    }
}

static void expect_step_slices(const step_room *room, const random_batch *b)
{
    slice_list expected;
    slice_list_init(&expected, ROOM);
    model_plan(&b->table, room->limits.max_slice_tokens, &expected);
    assert_int_equal(room->list.n, expected.n);
    assert_true(room->list.n <= room->step.padded_num_slices);
    for (int64_t i = 0; i < room->step.padded_num_slices; i++) {
        bool is_real = i < expected.n;
        const pkv_slices *found = &room->list.view;
        assert_int_equal(found->kv_cache_start[i], is_real ? expected.view.kv_cache_start[i] : 0);
        assert_int_equal(found->new_kv_start[i], is_real ? expected.view.new_kv_start[i] : 0);
        assert_int_equal(found->slice_len[i], is_real ? expected.view.slice_len[i] : 0);
    }
    slice_list_free(&expected);
}

static void test_random_steps(void **state)
{
    (void)state;
    static const int64_t page_sizes[] = {1, 2, 5};
    for (uint64_t seed = 0; seed < 600; seed++) {
        rng r = {seed};
        random_batch b;
        random_batch_init(&b, &r, page_sizes[seed % 3]);
        step_room room;
        room_init(&room, ROOM * 6);
        room.limits.max_slice_tokens = seed % 2 == 0 ? 0 : b.table.page_size;
        note_case("random step", seed, "S %d", (int)b.table.page_size);
        pkv_error err;
        const pkv_batch *batch = seed % 4 < 2 ? &b.table : &b.csr;
        expect_ok(pkv_step_plan(batch, &room.limits, &room.step, &err), &err);
        expect_tables(&room, &b);
        expect_starts(&room, &b);
        expect_step_slices(&room, &b);
        assert_int_equal(room.num_seqs, b.table.n_requests);
        slice_list_free(&room.list);
    }
}

/* ---- refusals ------------------------------------------------------------ */

static void refuse(const pkv_batch *batch, step_room *room, pkv_status code, int32_t rule,
                   int64_t index)
{
    pkv_error err;
    memset(&err, 0xAB, sizeof err);
    expect_error(pkv_step_plan(batch, &room->limits, &room->step, &err), &err, code, rule, index);
    assert_int_equal(pkv_step_plan(batch, &room->limits, &room->step, NULL), code);
    assert_int_equal(room->list.n, -77);
    assert_int_equal(room->num_seqs, -66);
    slice_list_free(&room->list);
    room_init(room, 64);
}

static void test_limits_exceeded(void **state)
{
    (void)state;
    pkv_batch batch = hand_batch();
    pkv_error err;
    step_room room;
    room_init(&room, 64);
    note_case("limits", 0, "one too many");
    room.limits.max_num_reqs = 2;
    assert_int_equal(pkv_step_plan(&batch, &room.limits, &room.step, &err), PKV_E_RANGE);
    assert_int_equal(err.rule, PKV_RULE_LIMIT);
    assert_int_equal(err.limit, 2);
    room.limits.max_num_reqs = 3;
    room.limits.max_num_batched_tokens = 48;
    assert_int_equal(pkv_step_plan(&batch, &room.limits, &room.step, &err), PKV_E_RANGE);
    assert_int_equal(err.rule, PKV_RULE_LIMIT);
    assert_int_equal(err.limit, 48);
    assert_int_equal(err.value, 49);
    room.limits.max_num_batched_tokens = 49;
    room.step.block_tables_width = 2;
    refuse(&batch, &room, PKV_E_RANGE, PKV_RULE_TABLE, 0);
    room.limits.max_num_reqs = 3;
    room.limits.max_num_batched_tokens = 49;
    room.step.block_tables_width = 3;
    expect_ok(pkv_step_plan(&batch, &room.limits, &room.step, &err), &err);
    slice_list_free(&room.list);
}

static void test_capacity_below_the_padding(void **state)
{
    (void)state;
    pkv_batch batch = hand_batch();
    pkv_error err;
    step_room room;
    room_init(&room, 64);
    room.step.slices->capacity = 2 * MAX_REQS + 4;
    expect_ok(pkv_step_plan(&batch, &room.limits, &room.step, &err), &err);
    room.list.n = -77;
    room.num_seqs = -66;
    room.step.slices->capacity--;
    assert_int_equal(pkv_step_plan(&batch, &room.limits, &room.step, &err), PKV_E_RANGE);
    assert_int_equal(err.rule, PKV_RULE_CAPACITY);
    assert_int_equal(err.limit, 2 * MAX_REQS + 4);
    refuse(&batch, &room, PKV_E_RANGE, PKV_RULE_CAPACITY, -1);
    slice_list_free(&room.list);
}

static void test_bad_batches(void **state)
{
    (void)state;
    static const int32_t negative[] = {0, -1, 4};
    static const int32_t ends[] = {INT32_MAX, 1};
    static const int32_t one[] = {1, 1};
    static const int32_t pages[] = {0, 1, 0, 1};
    step_room room;
    room_init(&room, 64);
    note_case("bad batches", 0, "S 16");
    pkv_batch batch = batch_of(negative, hand_scheduled, 3, hand_table, 3, 16);
    refuse(&batch, &room, PKV_E_RANGE, PKV_RULE_COMPUTED, 1);
    batch = batch_of(hand_computed, hand_scheduled, 3, hand_table, 2, 16);
    refuse(&batch, &room, PKV_E_RANGE, PKV_RULE_TABLE, 0);
    /* context_lens could not say 2^31. */
    batch = batch_of(ends, one, 2, pages, 2, (int64_t)1 << 30);
    assert_int_equal(pkv_step_plan(&batch, &room.limits, &room.step, NULL), PKV_E_RANGE);
    assert_int_equal(room.list.n, -77);
    slice_list_free(&room.list);
}

static void test_bad_limits_and_arrays(void **state)
{
    (void)state;
    pkv_batch batch = hand_batch();
    step_room good;
    room_init(&good, 64);
    step_room bad[10];
    for (size_t i = 0; i < 10; i++) {
        room_init(&bad[i], 64);
    }
    bad[0].limits.max_num_reqs = 0;
    bad[1].limits.max_num_batched_tokens = 0;
    bad[2].limits.bucket_gap_tokens = -1;
    bad[3].limits.num_slices_per_block = 0;
    bad[4].limits.max_slice_tokens = 15;
    bad[5].step.block_tables = NULL;
    bad[6].step.context_lens = NULL;
    bad[7].step.query_start_loc = NULL;
    bad[8].step.num_seqs = NULL;
    bad[9].step.block_tables_width = 0;
    for (size_t i = 0; i < 10; i++) {
        note_case("bad limits or arrays", i, "S 16");
        refuse(&batch, &bad[i], PKV_E_INVALID, PKV_RULE_NONE, -1);
        slice_list_free(&bad[i].list);
    }
    assert_int_equal(pkv_step_plan(NULL, &good.limits, &good.step, NULL), PKV_E_INVALID);
    assert_int_equal(pkv_step_plan(&batch, NULL, &good.step, NULL), PKV_E_INVALID);
    assert_int_equal(pkv_step_plan(&batch, &good.limits, NULL, NULL), PKV_E_INVALID);
    good.step.struct_size--;
    refuse(&batch, &good, PKV_E_UNSUPPORTED, PKV_RULE_NONE, -1);
    good.limits.struct_size--;
    refuse(&batch, &good, PKV_E_UNSUPPORTED, PKV_RULE_NONE, -1);
    batch.struct_size--;
    refuse(&batch, &good, PKV_E_UNSUPPORTED, PKV_RULE_NONE, -1);
    slice_list_free(&good.list);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_worked_example),
        cmocka_unit_test(test_other_limits),
        cmocka_unit_test(test_random_steps),
        cmocka_unit_test(test_limits_exceeded),
        cmocka_unit_test(test_capacity_below_the_padding),
        cmocka_unit_test(test_bad_batches),
        cmocka_unit_test(test_bad_limits_and_arrays),
    };
    return cmocka_run_group_tests_name("step", tests, NULL, NULL);
}
