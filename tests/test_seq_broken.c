/*
 * Sequences when things break: each allocation fails in turn, owners and handles
 * run out, and pkv_seqs_check() finds what was spoiled by hand.  It looks into
 * src/seq_state.h and src/pool_state.h.
 */
#include "../src/pool_state.h"
#include "../src/seq_state.h"
#include "seq_model.h"

#include <string.h>
#include <xxhash.h>

enum { S = 16 };

static void make_world(seq_world *w, int32_t n_groups)
{
    seq_shape shape = {.n_pages = 30, .page_size = S, .max_seqs = 4, .n_groups = n_groups};
    note_case("broken", 0, "%d groups", n_groups);
    seq_world_init(w, &shape, NULL, NULL);
}

/* ---- memory that is not there ------------------------------------------------ */

typedef struct memory_of_test {
    int64_t n_calls, fail_at, n_live, n_live_bytes, misalign;
} memory_of_test;

static void *give(void *user, size_t bytes, size_t align)
{
    memory_of_test *m = user;
    if (m->n_calls++ == m->fail_at) {
        return NULL;
    }
    char *memory = aligned_alloc(align, bytes + align);
    assert_non_null(memory);
    memset(memory, 0xA5, bytes + align);
    m->n_live++;
    m->n_live_bytes += (int64_t)bytes;
    return memory + m->misalign;
}

static void take_back(void *user, void *memory, size_t bytes)
{
    memory_of_test *m = user;
    m->n_live--;
    m->n_live_bytes -= (int64_t)bytes;
    free((char *)memory - m->misalign);
}

static uint64_t hash(const void *data, size_t bytes, uint64_t seed)
{
    return XXH3_64bits_withSeed(data, bytes, seed);
}

typedef struct trio {
    pkv_pool   *pool;
    pkv_seqs   *seqs;
    pkv_prefix *index;
} trio;

static const pkv_seqs_config SEQS = {.struct_size = sizeof SEQS, .max_seqs = 4,
                                     .max_pages_per_seq = 8, .page_size = S, .n_groups = 2};

static pkv_status make_trio(const pkv_allocator *a, trio *t, pkv_error *err)
{
    pkv_pool_config   pool = {.struct_size = sizeof pool, .n_pages = 20};
    pkv_prefix_config index = {.struct_size = sizeof index, .page_size = S, .n_groups = 2,
                               .hash = hash};
    *t = (trio){0};
    PKV_I_TRY(pkv_pool_create(&pool, a, &t->pool, err));
    PKV_I_TRY(pkv_seqs_create(&SEQS, t->pool, a, &t->seqs, err));
    return pkv_prefix_create(&index, t->pool, a, &t->index, err);
}

static void destroy_trio(trio *t)
{
    pkv_prefix_destroy(t->index);
    pkv_seqs_destroy(t->seqs);
    pkv_pool_destroy(t->pool);
}

static void test_every_allocation_fails(void **state)
{
    (void)state;
    for (int64_t fail_at = 0; fail_at <= 3; fail_at++) {
        memory_of_test m = {.fail_at = fail_at};
        pkv_allocator  a = {sizeof a, give, take_back, &m};
        trio           t;
        pkv_error      err;
        note_case("allocations", 0, "the one at %lld", (long long)fail_at);
        pkv_status status = make_trio(&a, &t, &err);
        assert_int_equal(m.n_calls, fail_at < 3 ? fail_at + 1 : 3); /* and no call more */
        assert_int_equal(m.n_live, fail_at);
        assert_true((t.pool != NULL) == (fail_at > 0) && (t.seqs != NULL) == (fail_at > 1) &&
                    (t.index != NULL) == (fail_at > 2));
        if (fail_at < 3) {
            expect_error(status, &err, PKV_E_NO_MEMORY, PKV_RULE_NONE, -1);
        } else {
            expect_ok(status, &err);
        }
        destroy_trio(&t);
        assert_true(m.n_live == 0 && m.n_live_bytes == 0);
    }
}

static void test_bad_allocators(void **state)
{
    (void)state;
    memory_of_test m = {.fail_at = -1};
    pkv_allocator  good = {sizeof good, give, take_back, &m};
    trio           t;
    pkv_seqs      *out = NULL;
    pkv_error      err;
    note_case("allocators", 0, "-");
    expect_ok(make_trio(&good, &t, &err), &err);
    pkv_allocator bad = good;
    bad.alloc = NULL;
    expect_error(pkv_seqs_create(&SEQS, t.pool, &bad, &out, &err), &err, PKV_E_INVALID,
                 PKV_RULE_NONE, -1);
    bad = good;
    bad.release = NULL;
    expect_error(pkv_seqs_create(&SEQS, t.pool, &bad, &out, &err), &err, PKV_E_INVALID,
                 PKV_RULE_NONE, -1);
    bad = good;
    bad.struct_size--;
    expect_error(pkv_seqs_create(&SEQS, t.pool, &bad, &out, &err), &err, PKV_E_UNSUPPORTED,
                 PKV_RULE_NONE, -1);
    assert_int_equal(m.n_calls, 3);
    memory_of_test skew = {.fail_at = -1, .misalign = 8};
    bad = (pkv_allocator){sizeof bad, give, take_back, &skew};
    expect_error(pkv_seqs_create(&SEQS, t.pool, &bad, &out, &err), &err, PKV_E_INVALID,
                 PKV_RULE_NONE, -1);
    expect_error(pkv_seqs_create(&SEQS, NULL, &good, &out, &err), &err, PKV_E_INVALID,
                 PKV_RULE_NONE, -1);
    assert_true(out == NULL && skew.n_calls == 1 && skew.n_live == 0 && m.n_live == 3);
    destroy_trio(&t);
    assert_int_equal(m.n_live, 0);
}

/* A table that goes inside its reservation leaves the pool whole. */
static void test_destroy_inside_a_reservation(void **state)
{
    (void)state;
    trio            t;
    pkv_error       err;
    pkv_seq         q[2];
    pkv_page_copy   copies[4];
    int64_t         n_copies;
    int32_t         n_tokens[] = {20, 3};
    pkv_pool_counts counts = {.struct_size = sizeof counts};
    note_case("destroy", 0, "-");
    expect_ok(make_trio(NULL, &t, &err), &err);
    expect_ok(pkv_seq_open(t.seqs, &q[0], &err), &err);
    expect_ok(pkv_seqs_reserve(t.seqs, q, n_tokens, NULL, 1, 0, copies, 4, &n_copies, &err), &err);
    expect_ok(pkv_seqs_commit(t.seqs, &err), &err);
    expect_ok(pkv_seq_fork(t.seqs, q[0], 18, &q[1], &err), &err);
    expect_ok(pkv_seqs_reserve(t.seqs, q, n_tokens, NULL, 2, 0, copies, 4, &n_copies, &err), &err);
    assert_int_equal(n_copies, 4);
    pkv_seqs_destroy(t.seqs);
    t.seqs = NULL;
    expect_ok(pkv_pool_check(t.pool, &err), &err);
    expect_ok(pkv_pool_stats(t.pool, &counts, &err), &err);
    assert_int_equal(counts.n_blank, 20);
    destroy_trio(&t);
}

/* ---- what runs out ------------------------------------------------------------ */

/* A page has all the owners that it can have: a fork fails, and no other page has one more. */
static void test_too_many_owners(void **state)
{
    (void)state;
    seq_world w;
    for (int32_t group = 0; group < 3; group++) {
        for (int64_t i = 0; i < 3; i++) {
            pkv_error err;
            pkv_seq   out = 77;
            make_world(&w, 3);
            seq_model *m = seq_grown(&w, 0, 40);
            seq_close(&w, seq_fork(&w, m, 40));
            seq_fork(&w, m, 40); /* so that all are shared before and behind */
            seq_drop(&w, m, 1, 0, 16);
            pkv_i_page *page = &pkv_i_pool_pages(w.pool)[seq_page(&w, &w.seq[1], group, i)];
            const uint32_t owners = page->owners;
            page->owners = INT32_MAX;
            seq_world_save(&w, 0);
            pkv_status status = pkv_seq_fork(w.seqs, w.seq[1].handle, 40, &out, &err);
            expect_error(status, &err, PKV_E_STATE, PKV_RULE_PAGE, i);
            assert_int_equal(out, 77);
            seq_expect_same(&w, 0);
            page->owners = owners;
            seq_world_check(&w);
            seq_world_free(&w);
        }
    }
}

/* A place whose handles are used up is not used again, and none of them is good again. */
static void test_handles_run_out(void **state)
{
    (void)state;
    seq_world w;
    pkv_error err;
    make_world(&w, 1);
    seq_model    *m = seq_open(&w, 0, 0);
    const pkv_seq first = m->handle;
    pkv_i_seqs_seqs(w.seqs)[0].generation = INT32_MAX;
    m->handle = (pkv_seq)INT32_MAX << 32;
    seq_grow(&w, m, 20);
    const pkv_seq last = m->handle;
    seq_close(&w, m);
    for (int i = 0; i < 3; i++) {
        seq_open(&w, 0, 0);
    }
    pkv_seq out = 77;
    expect_error(pkv_seq_open(w.seqs, &out, &err), &err, PKV_E_NO_MEMORY, PKV_RULE_NONE, -1);
    expect_error(pkv_seq_close(w.seqs, last, &err), &err, PKV_E_INVALID, PKV_RULE_NONE, -1);
    expect_error(pkv_seq_close(w.seqs, first, &err), &err, PKV_E_INVALID, PKV_RULE_NONE, -1);
    seq_world_check(&w);
    seq_world_free(&w);
}

/* ---- what the check finds ------------------------------------------------------- */

static void expect_corrupt(seq_world *w, int32_t alone)
{
    pkv_error err;
    assert_int_equal(pkv_seqs_check(w->seqs, alone, &err), PKV_E_CORRUPT);
    assert_non_null(err.what);
}

static void test_check_finds(void **state)
{
    (void)state;
    seq_world w;
    pkv_error err;
    make_world(&w, 2);
    seq_model *m = seq_grown(&w, 0, 40);
    seq_fork(&w, m, 20);
    pkv_i_seq *q = &pkv_i_seqs_seqs(w.seqs)[0];
    int64_t   *numbers[] = {&q->n_tokens, &q->n_pages, &q->n_published, &w.seqs->n_open};
    const int  wrong[] = {16, 1, 3, 1};
    for (int i = 0; i < 4; i++) {
        *numbers[i] += wrong[i];
        expect_corrupt(&w, 0);
        *numbers[i] -= wrong[i];
        expect_ok(pkv_seqs_check(w.seqs, 1, &err), &err);
    }
    int32_t  blank = 0;
    int32_t *row = pkv_i_seqs_row(w.seqs, 0, 1);
    while (pkv_pool_owners(w.pool, blank) > 0) {
        blank++;
    }
    const int32_t bad[] = {blank, -2, 30, INT32_MIN, INT32_MAX};
    for (int i = 0; i < 5; i++) {
        const int32_t good = row[2];
        row[2] = bad[i];
        expect_corrupt(&w, 0);
        row[2] = good;
    }
    const int32_t good = row[2];
    row[2] = -1; /* as if it were dropped: an owner too many */
    expect_ok(pkv_seqs_check(w.seqs, 0, &err), &err);
    expect_corrupt(&w, 1);
    row[2] = good;
    expect_ok(pkv_pool_share(w.pool, &good, 1, &err), &err); /* an owner of one's own */
    expect_ok(pkv_seqs_check(w.seqs, 0, &err), &err);
    expect_corrupt(&w, 1);
    expect_ok(pkv_pool_free(w.pool, &good, 1, &err), &err);
    expect_ok(pkv_seqs_check(w.seqs, 1, &err), &err);
    seq_world_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_allocation_fails),
        cmocka_unit_test(test_bad_allocators),
        cmocka_unit_test(test_destroy_inside_a_reservation),
        cmocka_unit_test(test_too_many_owners),
        cmocka_unit_test(test_handles_run_out),
        cmocka_unit_test(test_check_finds),
    };
    return cmocka_run_group_tests_name("seq_broken", tests, NULL, NULL);
}
