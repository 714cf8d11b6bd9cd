/*
 * What sequences refuse: every error that pagedkv/sequences.h names, by status,
 * rule and index, and nothing is changed by it.  test_seq_broken.c has tables
 * that are broken, and memory that is not there.
 */
#include "seq_model.h"

enum { S = 16, NONE = PKV_RULE_NONE };

#define REFUSED(w, call, code, rule, index)              \
    do {                                                 \
        pkv_error err_ = {0};                            \
        pkv_error *err = &err_;                          \
        seq_world_save(w, 0);                            \
        expect_error(call, &err_, code, rule, index);    \
        seq_expect_same(w, 0);                           \
    } while (0)

static void make_world(seq_world *w, int64_t n_pages, int32_t n_groups, int64_t max_seqs)
{
    seq_shape shape = {.n_pages = n_pages, .page_size = S, .max_seqs = max_seqs,
                       .n_groups = n_groups};
    note_case("refusals", 0, "P %lld, %d groups", (long long)n_pages, n_groups);
    seq_world_init(w, &shape, NULL, NULL);
}

/* ---- making a table ------------------------------------------------------------ */

static const pkv_seqs_config GOOD = {.struct_size = sizeof GOOD, .max_seqs = 4,
                                     .max_pages_per_seq = 8, .page_size = S, .n_groups = 2};

static void expect_no_table(const pkv_seqs_config *config, pkv_status code)
{
    pkv_error       err;
    uint64_t        bytes = 77;
    pkv_seqs       *out = NULL;
    pkv_pool       *pool = NULL;
    pkv_pool_config of_pool = {.struct_size = sizeof of_pool, .n_pages = 4};
    static _Alignas(64) unsigned char memory[4096];
    expect_ok(pkv_pool_create(&of_pool, NULL, &pool, &err), &err);
    expect_error(pkv_seqs_bytes(config, &bytes, &err), &err, code, NONE, -1);
    expect_error(pkv_seqs_init(config, pool, memory, sizeof memory, &out, &err), &err, code, NONE,
                 -1);
    expect_error(pkv_seqs_create(config, pool, NULL, &out, &err), &err, code, NONE, -1);
    assert_true(bytes == 77 && out == NULL);
    pkv_pool_destroy(pool);
}

static void test_configs(void **state)
{
    (void)state;
    static const int64_t bad_seqs[] = {0, -1, ((int64_t)1 << 20) + 1};
    static const int64_t bad_widths[] = {0, -1, ((int64_t)1 << 30) + 1};
    static const int64_t bad_sizes[] = {0, -1, (int64_t)1 << 31};
    static const int32_t bad_groups[] = {-1, 9, INT32_MIN};
    note_case("configs", 0, "-");
    expect_no_table(NULL, PKV_E_INVALID);
    for (int i = 0; i < 3; i++) {
        pkv_seqs_config c = GOOD;
        c.max_seqs = bad_seqs[i];
        expect_no_table(&c, PKV_E_INVALID);
        c = GOOD;
        c.max_pages_per_seq = bad_widths[i];
        expect_no_table(&c, PKV_E_INVALID);
        c = GOOD;
        c.page_size = bad_sizes[i];
        expect_no_table(&c, PKV_E_INVALID);
        c = GOOD;
        c.n_groups = bad_groups[i];
        expect_no_table(&c, PKV_E_INVALID);
    }
    pkv_seqs_config c = GOOD;
    c.flags = 1;
    expect_no_table(&c, PKV_E_UNSUPPORTED);
    c = GOOD;
    c.struct_size--;
    expect_no_table(&c, PKV_E_UNSUPPORTED);
    struct {
        pkv_seqs_config config;
        uint64_t        newer;
    } longer = {GOOD, 1};
    longer.config.struct_size = sizeof longer;
    expect_no_table(&longer.config, PKV_E_UNSUPPORTED);
    longer.newer = 0;
    uint64_t bytes[3];
    expect_ok(pkv_seqs_bytes(&longer.config, &bytes[0], NULL), NULL);
    c = GOOD;
    c.n_groups = 0;
    expect_ok(pkv_seqs_bytes(&c, &bytes[1], NULL), NULL);
    c.n_groups = 1;
    expect_ok(pkv_seqs_bytes(&c, &bytes[2], NULL), NULL);
    assert_true(bytes[0] > bytes[1] && bytes[1] == bytes[2]);
    assert_int_equal(pkv_seqs_bytes(&GOOD, NULL, NULL), PKV_E_INVALID);
}

static void test_memory(void **state)
{
    (void)state;
    seq_world w;
    make_world(&w, 4, 1, 4);
    static _Alignas(64) unsigned char memory[8192];
    uint64_t  bytes = 0;
    pkv_seqs *out = NULL;
    expect_ok(pkv_seqs_bytes(&GOOD, &bytes, NULL), NULL);
    assert_true(bytes < sizeof memory - 64 && bytes % 64 == 0);
    REFUSED(&w, pkv_seqs_init(&GOOD, w.pool, memory, bytes - 1, &out, err), PKV_E_INVALID, NONE,
            -1);
    REFUSED(&w, pkv_seqs_init(&GOOD, w.pool, memory + 8, bytes, &out, err), PKV_E_INVALID, NONE,
            -1);
    REFUSED(&w, pkv_seqs_init(&GOOD, w.pool, NULL, bytes, &out, err), PKV_E_INVALID, NONE, -1);
    REFUSED(&w, pkv_seqs_init(&GOOD, NULL, memory, bytes, &out, err), PKV_E_INVALID, NONE, -1);
    REFUSED(&w, pkv_seqs_init(&GOOD, w.pool, memory, bytes, NULL, err), PKV_E_INVALID, NONE, -1);
    REFUSED(&w, pkv_seqs_create(&GOOD, w.pool, NULL, NULL, err), PKV_E_INVALID, NONE, -1);
    REFUSED(&w, pkv_seqs_create(&GOOD, NULL, NULL, &out, err), PKV_E_INVALID, NONE, -1);
    assert_true(out == NULL);
    pkv_seqs_destroy(NULL);
    seq_world_free(&w);
}

/* ---- handles --------------------------------------------------------------------- */

static void expect_no_handle(seq_world *w, pkv_seq bad)
{
    pkv_seq       out = 0;
    pkv_seq       pair[] = {w->seq[0].handle, bad};
    int32_t       ones[] = {1, 1}, a[2], b[2], c[2];
    int64_t       n_copies = -7;
    pkv_seq_state info = {.struct_size = sizeof info};
    pkv_batch     batch;
    const int32_t invalid = PKV_E_INVALID;
    REFUSED(w, pkv_seq_fork(w->seqs, bad, 0, &out, err), invalid, NONE, -1);
    REFUSED(w, pkv_seq_trim(w->seqs, bad, 0, err), invalid, NONE, -1);
    REFUSED(w, pkv_seq_drop(w->seqs, bad, 0, 0, 0, err), invalid, NONE, -1);
    REFUSED(w, pkv_seq_close(w->seqs, bad, err), invalid, NONE, -1);
    REFUSED(w, pkv_seq_info(w->seqs, bad, &info, err), invalid, NONE, -1);
    REFUSED(w, pkv_seq_publish(w->seqs, bad, w->index, 0, NULL, 0, err), invalid, NONE, -1);
    REFUSED(w, pkv_seqs_batch(w->seqs, 0, pair, 2, a, b, c, &batch, err), invalid, NONE, 1);
    pkv_error err;
    seq_world_save(w, 0);
    expect_error(pkv_seqs_reserve(w->seqs, pair, ones, NULL, 2, 0, NULL, 0, &n_copies, &err), &err,
                 PKV_E_INVALID, NONE, 1);
    seq_expect_untouched(w);
    assert_true(out == 0 && n_copies == -7);
}

static void test_handles(void **state)
{
    (void)state;
    seq_world w;
    make_world(&w, 8, 2, 3);
    seq_grown(&w, 0, 20);
    seq_model *m = seq_grown(&w, 1, 5);
    pkv_seq    closed = m->handle;
    seq_close(&w, m);
    expect_no_handle(&w, closed); /* its place is free */
    seq_open(&w, 0, 0);
    expect_no_handle(&w, closed); /* its place is another's */
    expect_no_handle(&w, 0);
    expect_no_handle(&w, -1);
    expect_no_handle(&w, INT64_MAX);
    expect_no_handle(&w, INT64_MIN);
    expect_no_handle(&w, w.seq[0].handle + 2);
    expect_no_handle(&w, w.seq[0].handle + 3); /* place 3 of 3 */
    expect_no_handle(&w, w.seq[0].handle + ((int64_t)1 << 32));
    seq_world_check(&w);
    seq_world_free(&w);
}

/* ---- numbers ----------------------------------------------------------------------- */

static void test_numbers(void **state)
{
    (void)state;
    static const int64_t bad[] = {21, -1, INT64_MAX, INT64_MIN};
    seq_world            w;
    make_world(&w, 8, 2, 3);
    const pkv_seq q = seq_grown(&w, 0, 20)->handle;
    pkv_seq       out = 0;
    for (int i = 0; i < 4; i++) {
        REFUSED(&w, pkv_seq_fork(w.seqs, q, bad[i], &out, err), PKV_E_RANGE, PKV_RULE_LIMIT, -1);
        REFUSED(&w, pkv_seq_trim(w.seqs, q, bad[i], err), PKV_E_RANGE, PKV_RULE_LIMIT, -1);
        REFUSED(&w, pkv_seq_drop(w.seqs, q, 0, bad[i], 20, err), PKV_E_RANGE, PKV_RULE_LIMIT, -1);
        REFUSED(&w, pkv_seq_drop(w.seqs, q, 0, 0, bad[i], err), PKV_E_RANGE, PKV_RULE_LIMIT, -1);
    }
    REFUSED(&w, pkv_seq_drop(w.seqs, q, 0, 11, 10, err), PKV_E_RANGE, PKV_RULE_LIMIT, -1);
    REFUSED(&w, pkv_seq_drop(w.seqs, q, -1, 0, 20, err), PKV_E_INVALID, NONE, -1);
    REFUSED(&w, pkv_seq_drop(w.seqs, q, 2, 0, 20, err), PKV_E_INVALID, NONE, -1);
    REFUSED(&w, pkv_seq_fork(w.seqs, q, 0, NULL, err), PKV_E_INVALID, NONE, -1);
    REFUSED(&w, pkv_seq_open(w.seqs, NULL, err), PKV_E_INVALID, NONE, -1);
    REFUSED(&w, pkv_seqs_commit(w.seqs, err), PKV_E_STATE, NONE, -1);
    REFUSED(&w, pkv_seqs_release(w.seqs, err), PKV_E_STATE, NONE, -1);
    seq_open(&w, 0, 0);
    seq_open(&w, 0, 0);
    pkv_error err;
    seq_world_save(&w, 0);
    expect_error(pkv_seq_open(w.seqs, &out, &err), &err, PKV_E_NO_MEMORY, NONE, -1);
    assert_int_equal(err.limit, 3);
    expect_error(pkv_seq_fork(w.seqs, q, 0, &out, &err), &err, PKV_E_NO_MEMORY, NONE, -1);
    seq_expect_same(&w, 0);
    assert_true(out == 0);
    seq_world_free(&w);
}

static void test_no_table(void **state)
{
    (void)state;
    pkv_error     err;
    pkv_seq       out = 0;
    int64_t       n = 0;
    pkv_batch     batch;
    pkv_seq_state info = {.struct_size = sizeof info};
    _Alignas(64) unsigned char zeroes[1024] = {0};
    note_case("no table", 0, "-");
    for (int i = 0; i < 2; i++) {
        pkv_seqs *none = i == 0 ? NULL : (pkv_seqs *)(void *)zeroes;
        pkv_status got[] = {pkv_seqs_clear(none, &err), pkv_seq_open(none, &out, &err),
                            pkv_seq_fork(none, 1, 0, &out, &err), pkv_seq_trim(none, 1, 0, &err),
                            pkv_seq_drop(none, 1, 0, 0, 0, &err), pkv_seq_close(none, 1, &err),
                            pkv_seqs_reserve(none, NULL, NULL, NULL, 0, 0, NULL, 0, &n, &err),
                            pkv_seqs_commit(none, &err), pkv_seqs_release(none, &err),
                            pkv_seq_publish(none, 1, NULL, 0, NULL, 0, &err),
                            pkv_seq_info(none, 1, &info, &err), pkv_seqs_check(none, 0, &err),
                            pkv_seqs_batch(none, 0, NULL, 0, NULL, NULL, NULL, &batch, &err)};
        for (size_t k = 0; k < sizeof got / sizeof got[0]; k++) {
            assert_int_equal(got[k], PKV_E_INVALID);
        }
    }
}

static void test_info_and_batch(void **state)
{
    (void)state;
    seq_world w;
    make_world(&w, 8, 2, 3);
    const pkv_seq q = seq_grown(&w, 0, 20)->handle;
    int32_t       a[1], b[1], c[1];
    pkv_batch     batch;
    pkv_seq_state info = {.struct_size = sizeof info - 1};
    REFUSED(&w, pkv_seq_info(w.seqs, q, &info, err), PKV_E_UNSUPPORTED, NONE, -1);
    REFUSED(&w, pkv_seq_info(w.seqs, q, NULL, err), PKV_E_INVALID, NONE, -1);
    REFUSED(&w, pkv_seqs_batch(w.seqs, 2, &q, 1, a, b, c, &batch, err), PKV_E_INVALID, NONE, -1);
    REFUSED(&w, pkv_seqs_batch(w.seqs, -1, &q, 1, a, b, c, &batch, err), PKV_E_INVALID, NONE, -1);
    REFUSED(&w, pkv_seqs_batch(w.seqs, 0, &q, -1, a, b, c, &batch, err), PKV_E_INVALID, NONE, -1);
    REFUSED(&w, pkv_seqs_batch(w.seqs, 0, NULL, 1, a, b, c, &batch, err), PKV_E_INVALID, NONE, -1);
    REFUSED(&w, pkv_seqs_batch(w.seqs, 0, &q, 1, NULL, b, c, &batch, err), PKV_E_INVALID, NONE, -1);
    REFUSED(&w, pkv_seqs_batch(w.seqs, 0, &q, 1, a, NULL, c, &batch, err), PKV_E_INVALID, NONE, -1);
    REFUSED(&w, pkv_seqs_batch(w.seqs, 0, &q, 1, a, b, NULL, &batch, err), PKV_E_INVALID, NONE, -1);
    REFUSED(&w, pkv_seqs_batch(w.seqs, 0, &q, 1, a, b, c, NULL, err), PKV_E_INVALID, NONE, -1);
    seq_world_free(&w);
}

/* Tokens beyond int32 can be had, but not planned. */
static void test_long_sequences(void **state)
{
    (void)state;
    pkv_error       err;
    pkv_pool       *pool = NULL;
    pkv_seqs       *seqs = NULL;
    pkv_seq         q[2];
    int64_t         n_copies;
    int32_t         all[] = {0, INT32_MAX}, computed[2], scheduled[2], rows[2];
    pkv_batch       batch;
    pkv_pool_config of_pool = {.struct_size = sizeof of_pool, .n_pages = 8};
    pkv_seqs_config c = {.struct_size = sizeof c, .max_seqs = 2, .max_pages_per_seq = 8,
                         .page_size = 1 << 30};
    note_case("long", 0, "S %lld", (long long)c.page_size);
    expect_ok(pkv_pool_create(&of_pool, NULL, &pool, &err), &err);
    expect_ok(pkv_seqs_create(&c, pool, NULL, &seqs, &err), &err);
    expect_ok(pkv_seq_open(seqs, &q[0], &err), &err);
    expect_ok(pkv_seq_open(seqs, &q[1], &err), &err);
    for (int i = 0; i < 2; i++) {
        expect_ok(pkv_seqs_reserve(seqs, q, all, NULL, 2, 0, NULL, 0, &n_copies, &err), &err);
        expect_ok(pkv_seqs_batch(seqs, 0, q, 2, computed, scheduled, rows, &batch, &err), &err);
        assert_int_equal(computed[1], i == 0 ? 0 : INT32_MAX);
        expect_ok(pkv_seqs_commit(seqs, &err), &err);
    }
    expect_error(pkv_seqs_batch(seqs, 0, q, 2, computed, scheduled, rows, &batch, &err), &err,
                 PKV_E_RANGE, PKV_RULE_COMPUTED, 1);
    pkv_seqs_destroy(seqs);
    pkv_pool_destroy(pool);
}

/* ---- the pool's own reservation --------------------------------------------------------- */

static void test_reservation_of_the_pool(void **state)
{
    (void)state;
    seq_world w;
    pkv_seq   out = 0;
    int64_t   n_copies = -7;
    int32_t   one = 1;
    make_world(&w, 8, 2, 3);
    seq_model *m = seq_grown(&w, 0, 40);
    expect_ok(pkv_pool_reserve(w.pool, NULL), NULL);
    const pkv_seq q = m->handle;
    REFUSED(&w, pkv_seq_fork(w.seqs, q, 10, &out, err), PKV_E_STATE, NONE, -1);
    REFUSED(&w, pkv_seq_trim(w.seqs, q, 10, err), PKV_E_STATE, NONE, -1);
    REFUSED(&w, pkv_seq_trim(w.seqs, q, 40, err), PKV_E_STATE, NONE, -1);
    REFUSED(&w, pkv_seq_drop(w.seqs, q, 1, 0, 40, err), PKV_E_STATE, NONE, -1);
    REFUSED(&w, pkv_seq_close(w.seqs, q, err), PKV_E_STATE, NONE, -1);
    REFUSED(&w, pkv_seqs_clear(w.seqs, err), PKV_E_STATE, NONE, -1);
    REFUSED(&w, pkv_seq_publish(w.seqs, q, w.index, 0, m->token, 40, err), PKV_E_STATE, NONE, -1);
    REFUSED(&w, pkv_seq_publish(w.seqs, q, w.index, 0, m->token, 0, err), PKV_E_STATE, NONE, -1);
    REFUSED(&w, pkv_seqs_reserve(w.seqs, &q, &one, NULL, 1, 0, NULL, 0, &n_copies, err),
            PKV_E_STATE, NONE, -1);
    expect_ok(pkv_pool_release(w.pool, NULL), NULL);
    seq_world_check(&w);
    seq_world_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_configs),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_handles),
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_no_table),
        cmocka_unit_test(test_info_and_batch),
        cmocka_unit_test(test_long_sequences),
        cmocka_unit_test(test_reservation_of_the_pool),
    };
    return cmocka_run_group_tests_name("seq_refusals", tests, NULL, NULL);
}
