/*
 * Reservations and publications of sequences that are refused, by status, rule
 * and index; and nothing that can be seen is changed by it.
 */
#include "seq_model.h"

enum { S = 16, NONE = PKV_RULE_NONE, MAX_COPIES = 8 };

static void make_world(seq_world *w, int64_t n_pages, int32_t n_groups)
{
    seq_shape shape = {.n_pages = n_pages, .page_size = S, .max_seqs = 6, .n_groups = n_groups};
    note_case("refused steps", 0, "P %lld, %d groups", (long long)n_pages, n_groups);
    seq_world_init(w, &shape, NULL, NULL);
}

/* Two sequences, of which the second one is refused. */
static void refuse(seq_world *w, const pkv_seq handles[2], int32_t n_tokens,
                   const pkv_prefix_hit *prefix, int64_t max_copies, pkv_status code, int32_t rule)
{
    pkv_page_copy  copies[MAX_COPIES];
    pkv_error      err;
    int64_t        n_copies = -7;
    pkv_prefix_hit prefixes[2] = {{0}, prefix != NULL ? *prefix : (pkv_prefix_hit){0}};
    const int32_t  tokens[] = {1, n_tokens};
    seq_world_save(w, 0);
    expect_error(pkv_seqs_reserve(w->seqs, handles, tokens, prefix != NULL ? prefixes : NULL, 2, 1,
                                  copies, max_copies, &n_copies, &err), &err, code, rule, 1);
    assert_int_equal(n_copies, -7);
    seq_expect_untouched(w);
    seq_world_check(w);
    /* An error that nobody looks at. */
    assert_int_equal(pkv_seqs_reserve(w->seqs, handles, tokens, prefix != NULL ? prefixes : NULL, 2,
                                      1, copies, max_copies, &n_copies, NULL), code);
    seq_expect_untouched(w);
}

static void test_arguments(void **state)
{
    (void)state;
    seq_world w;
    make_world(&w, 8, 1);
    pkv_seqs     *s = w.seqs;
    pkv_page_copy copies[1];
    pkv_error     err;
    int64_t       n = -7;
    int32_t       one = 1;
    pkv_seq       q = seq_grown(&w, 0, 5)->handle;
    seq_world_save(&w, 0);
    const pkv_status got[] = {
        pkv_seqs_reserve(s, NULL, &one, NULL, 1, 0, copies, 1, &n, &err),
        pkv_seqs_reserve(s, &q, NULL, NULL, 1, 0, copies, 1, &n, &err),
        pkv_seqs_reserve(s, &q, &one, NULL, -1, 0, copies, 1, &n, &err),
        pkv_seqs_reserve(s, &q, &one, NULL, 1, -1, copies, 1, &n, &err),
        pkv_seqs_reserve(s, &q, &one, NULL, 1, 0, NULL, 1, &n, &err),
        pkv_seqs_reserve(s, &q, &one, NULL, 1, 0, copies, -1, &n, &err),
        pkv_seqs_reserve(s, &q, &one, NULL, 1, 0, copies, 1, NULL, &err)};
    for (size_t i = 0; i < sizeof got / sizeof got[0]; i++) {
        assert_int_equal(got[i], PKV_E_INVALID);
    }
    assert_int_equal(n, -7);
    seq_expect_same(&w, 0);
    expect_ok(pkv_seqs_reserve(s, NULL, NULL, NULL, 0, INT64_MAX, NULL, 0, &n, &err), &err);
    assert_int_equal(n, 0);
    seq_expect_closed_shop(&w, &w.seq[0]);
    expect_ok(pkv_seqs_commit(s, &err), &err);
    seq_world_check(&w);
    seq_world_free(&w);
}

static void test_sequences_of_a_step(void **state)
{
    (void)state;
    seq_world w;
    make_world(&w, 50, 2);
    seq_model    *m = seq_grown(&w, 0, 24), *other = seq_grown(&w, 1, 20);
    seq_model    *fork = seq_fork(&w, m, 20);
    const pkv_seq twice[] = {m->handle, m->handle}, none[] = {m->handle, w.seq[0].handle + 77};
    const pkv_seq pair[] = {other->handle, m->handle}, forks[] = {other->handle, fork->handle};
    refuse(&w, twice, 1, NULL, MAX_COPIES, PKV_E_STATE, NONE);
    refuse(&w, none, 1, NULL, MAX_COPIES, PKV_E_INVALID, NONE);
    refuse(&w, pair, -1, NULL, MAX_COPIES, PKV_E_RANGE, PKV_RULE_SCHEDULED);
    refuse(&w, pair, INT32_MIN, NULL, MAX_COPIES, PKV_E_RANGE, PKV_RULE_SCHEDULED);
    refuse(&w, pair, INT32_MAX, NULL, MAX_COPIES, PKV_E_RANGE, PKV_RULE_TABLE);
    refuse(&w, pair, (int32_t)(40 * S - 24 + 1), NULL, MAX_COPIES, PKV_E_RANGE, PKV_RULE_TABLE);
    refuse(&w, pair, 40 * S - 24, NULL, MAX_COPIES, PKV_E_NO_PAGES, NONE);
    for (int64_t max_copies = 0; max_copies < 2; max_copies++) { /* one a group is needed */
        refuse(&w, forks, 1, NULL, max_copies, PKV_E_RANGE, PKV_RULE_CAPACITY);
    }
    /* The page where it would go on was dropped, in the one group or in the other. */
    for (int32_t g = 0; g < 2; g++) {
        seq_model *d = seq_grown(&w, 2, 32);
        seq_drop(&w, d, g, 16, 32);
        seq_trim(&w, d, 30);
        const pkv_seq dropped[] = {other->handle, d->handle};
        refuse(&w, dropped, 1, NULL, MAX_COPIES, PKV_E_RANGE, PKV_RULE_TABLE);
        seq_grow(&w, d, 0);
        seq_trim(&w, d, 16);
        seq_grow(&w, d, 16);
    }
    seq_world_free(&w);
}

/* A hit of these pages, found just now. */
static pkv_prefix_hit hit_of(const seq_world *w, const int32_t *pages, int64_t stride, int64_t n)
{
    pkv_prefix_hit hit;
    pkv_error      err;
    expect_ok(pkv_prefix_find(w->index, 0, NULL, 0, NULL, 0, &hit, &err), &err);
    assert_true(hit.pages == NULL && hit.stride == 0 && hit.n_pages == 0);
    hit.pages = pages;
    hit.stride = stride;
    hit.n_pages = n;
    return hit;
}

/* Pages that a sequence may not begin with. */
static void test_prefixes(void **state)
{
    (void)state;
    seq_world w;
    pkv_error err;
    make_world(&w, 50, 2);
    seq_model *m = seq_grown(&w, 0, 80), *empty = seq_open(&w, 0, 0), *other = seq_grown(&w, 1, 20);
    seq_publish(&w, m, 80);
    int32_t        pages[2 * 41], bad;
    const pkv_seq  with_tokens[] = {other->handle, m->handle};
    const pkv_seq  pair[] = {other->handle, empty->handle};
    pkv_prefix_hit p = hit_of(&w, pages, 41, 2);
    for (int i = 0; i < 2 * 41; i++) {
        pages[i] = seq_page(&w, m, i / 41, i % 41 % 5);
    }
    refuse(&w, with_tokens, 1, &p, MAX_COPIES, PKV_E_STATE, NONE);
    for (int where = 0; where < 4; where++) { /* in each group, as the first or the last one */
        int32_t      *at = &pages[where / 2 * 41 + where % 2], good = *at;
        const int32_t none[] = {50, -2, INT32_MIN, INT32_MAX};
        for (int i = 0; i < 4; i++) {
            *at = none[i];
            refuse(&w, pair, 1, &p, MAX_COPIES, PKV_E_RANGE, PKV_RULE_PAGE);
        }
        for (bad = 0; pkv_pool_owners(w.pool, bad) > 0; bad++) {
        }
        *at = bad; /* blank */
        refuse(&w, pair, 1, &p, MAX_COPIES, PKV_E_STATE, PKV_RULE_PAGE);
        *at = seq_page(&w, other, where / 2, 0); /* used, and not kept: it may be written */
        refuse(&w, pair, 1, &p, MAX_COPIES, PKV_E_STATE, PKV_RULE_PAGE);
        *at = good;
    }
    p.n_pages = -1;
    refuse(&w, pair, 1, &p, MAX_COPIES, PKV_E_INVALID, NONE);
    p = hit_of(&w, NULL, 2, 1);
    refuse(&w, pair, 1, &p, MAX_COPIES, PKV_E_INVALID, NONE);
    p = hit_of(&w, pages, 1, 2); /* two groups, and their rows overlap */
    refuse(&w, pair, 1, &p, MAX_COPIES, PKV_E_INVALID, NONE);
    p = hit_of(&w, pages, 41, 41);
    refuse(&w, pair, 0, &p, MAX_COPIES, PKV_E_RANGE, PKV_RULE_TABLE);
    p.n_pages = 40;
    refuse(&w, pair, 1, &p, MAX_COPIES, PKV_E_RANGE, PKV_RULE_TABLE);
    p = hit_of(&w, pages, INT64_MAX, INT64_MAX);
    refuse(&w, pair, INT32_MAX, &p, MAX_COPIES, PKV_E_RANGE, PKV_RULE_TABLE);
    /* What just fits: a whole table of pages that others have. */
    p = hit_of(&w, pages, 41, 40);
    int32_t none = 0;
    int64_t n_copies = -7;
    expect_ok(pkv_seqs_reserve(w.seqs, &pair[1], &none, &p, 1, 0, NULL, 0, &n_copies, &err), &err);
    assert_int_equal(seq_info(&w, empty).n_reserved, 40 * S);
    expect_ok(pkv_seqs_release(w.seqs, &err), &err);
    seq_world_check(&w);
    seq_world_free(&w);
}

/* A row is not shorter than the hit, with one group either; of no pages nothing is looked at. */
static void test_stride_of_one_group(void **state)
{
    (void)state;
    seq_world w;
    pkv_error err;
    make_world(&w, 20, 1);
    seq_model *m = seq_grown(&w, 0, 40), *empty = seq_open(&w, 0, 0), *other = seq_grown(&w, 1, 5);
    seq_publish(&w, m, 40);
    int32_t        pages[] = {seq_page(&w, m, 0, 0), seq_page(&w, m, 0, 1)}, none = 0;
    const pkv_seq  pair[] = {other->handle, empty->handle};
    pkv_prefix_hit p = hit_of(&w, pages, 1, 2);
    int64_t        n_copies = -7;
    refuse(&w, pair, 1, &p, MAX_COPIES, PKV_E_INVALID, NONE);
    p.stride = INT64_MIN;
    refuse(&w, pair, 1, &p, MAX_COPIES, PKV_E_INVALID, NONE);
    p.stride = 2;
    expect_ok(pkv_seqs_reserve(w.seqs, &empty->handle, &none, &p, 1, 0, NULL, 0, &n_copies, &err),
              &err);
    assert_int_equal(pkv_pool_owners(w.pool, pages[1]), 2);
    expect_ok(pkv_seqs_release(w.seqs, &err), &err);
    p = (pkv_prefix_hit){.stamp = -7};
    expect_ok(pkv_seqs_reserve(w.seqs, &empty->handle, &none, &p, 1, 0, NULL, 0, &n_copies, &err),
              &err);
    expect_ok(pkv_seqs_release(w.seqs, &err), &err);
    seq_world_check(&w);
    seq_world_free(&w);
}

/*
 * Pages that were found and lost before they were shared: evicted, and evicted and published
 * again with another content of another tenant, by which they are kept as before.
 */
static void test_stale_hits(void **state)
{
    (void)state;
    for (int way = 0; way < 5; way++) {
        seq_world w;
        pkv_error err;
        make_world(&w, 5, 1);
        seq_model     *m = seq_grown(&w, 0, 2 * S), *empty = seq_open(&w, 0, 0);
        seq_model     *one = seq_grown(&w, 1, 1);
        const pkv_seq  pair[] = {one->handle, empty->handle};
        int32_t        pages[4];
        pkv_prefix_hit hit, again;
        seq_publish(&w, m, 2 * S);
        seq_close(&w, m);
        expect_ok(pkv_prefix_find(w.index, 0, m->token, 2 * S + 1, pages, 4, &hit, &err), &err);
        assert_int_equal(hit.n_pages, 2);
        if (way == 0) { /* nothing happens to it: pages that were blank are taken and given back */
            seq_close(&w, seq_grown(&w, 3, 2 * S));
        } else if (way < 4) {
            seq_model *b = seq_grown(&w, 8, 4 * S);
            if (way > 1) {
                b->salt = 7;
                seq_publish(&w, b, 4 * S);
            }
            if (way > 2) {
                seq_close(&w, b);
            }
        } else {
            expect_ok(pkv_prefix_clear(w.index, &err), &err);
            for (int32_t page = 0; page < 5; page++) {
                w.kept[page] = false;
            }
        }
        expect_ok(pkv_prefix_check(w.index, &err), &err);
        if (way > 0) {
            refuse(&w, pair, 0, &hit, MAX_COPIES, PKV_E_STATE, NONE);
            expect_ok(pkv_prefix_find(w.index, 0, m->token, 2 * S + 1, pages, 4, &again, &err),
                      &err);
            assert_true(again.n_pages == 0 && again.stamp > hit.stamp);
        } else {
            int32_t tokens[] = {1, 0};
            int64_t n_copies = -7;
            pkv_prefix_hit hits[] = {{0}, hit};
            expect_ok(pkv_seqs_reserve(w.seqs, pair, tokens, hits, 2, 0, NULL, 0, &n_copies, &err),
                      &err);
            expect_ok(pkv_seqs_release(w.seqs, &err), &err);
        }
        seq_world_check(&w);
        seq_world_free(&w);
    }
}

/* A reservation that evicts makes a hit stale when it is committed, and not if it is released. */
static void test_stale_by_a_reservation(void **state)
{
    (void)state;
    for (int committed = 0; committed < 2; committed++) {
        seq_world w;
        pkv_error err;
        make_world(&w, 6, 1);
        seq_model     *m = seq_grown(&w, 0, 3 * S), *empty = seq_open(&w, 0, 0);
        seq_model     *one = seq_grown(&w, 1, 1);
        const pkv_seq  pair[] = {one->handle, empty->handle};
        int32_t        pages[4], taken[3], none[] = {0, 0};
        int64_t        n_copies = -7;
        pkv_prefix_hit before, inside, hits[2] = {{0}};
        seq_publish(&w, m, 3 * S);
        seq_close(&w, m);
        expect_ok(pkv_prefix_find(w.index, 0, m->token, 3 * S + 1, pages, 4, &before, &err), &err);
        expect_ok(pkv_pool_reserve(w.pool, &err), &err);
        expect_ok(pkv_pool_alloc(w.pool, 3, -1, 0, taken, &err), &err);
        expect_ok(pkv_prefix_find(w.index, 0, m->token, 3 * S + 1, pages, 4, &inside, &err), &err);
        assert_true(before.n_pages == 3 && inside.n_pages == 2);
        assert_true(before.stamp == inside.stamp);
        expect_ok(committed ? pkv_pool_commit(w.pool, &err) : pkv_pool_release(w.pool, &err), &err);
        for (int k = 0; k < 2; k++) {
            hits[1] = k == 0 ? before : inside;
            const pkv_status status = pkv_seqs_reserve(w.seqs, pair, none, hits, 2, 0, NULL, 0,
                                                       &n_copies, &err);
            if (committed) {
                expect_error(status, &err, PKV_E_STATE, NONE, 1);
            } else {
                expect_ok(status, &err);
                expect_ok(pkv_seqs_release(w.seqs, &err), &err);
            }
        }
        if (committed) {
            expect_ok(pkv_pool_free(w.pool, taken, 3, &err), &err);
        }
        seq_world_free(&w);
    }
}

/* ---- publishing -------------------------------------------------------------------- */

static uint64_t no_hash(const void *data, size_t bytes, uint64_t seed)
{
    (void)data;
    return bytes + seed;
}

static void refuse_publish(seq_world *w, const seq_model *m, pkv_prefix *index,
                           const int32_t *tokens, int64_t n_tokens, pkv_status code, int32_t rule)
{
    pkv_error err;
    seq_world_save(w, 0);
    expect_error(pkv_seq_publish(w->seqs, m->handle, index, m->salt, tokens, n_tokens, &err), &err,
                 code, rule, -1);
    seq_expect_same(w, 0);
}

static void refuse_index(seq_world *w, const seq_model *m, pkv_pool *pool, int64_t page_size,
                         int32_t n_groups)
{
    pkv_error         err;
    pkv_prefix       *index = NULL;
    pkv_prefix_config c = {.struct_size = sizeof c, .page_size = page_size, .n_groups = n_groups,
                           .hash = no_hash};
    expect_ok(pkv_prefix_create(&c, pool, NULL, &index, &err), &err);
    refuse_publish(w, m, index, m->token, 40, PKV_E_INVALID, NONE);
    pkv_prefix_destroy(index);
}

static void test_publish(void **state)
{
    (void)state;
    seq_world       w;
    pkv_error       err;
    pkv_pool       *pool = NULL;
    pkv_pool_config of_pool = {.struct_size = sizeof of_pool, .n_pages = 50};
    make_world(&w, 50, 2);
    expect_ok(pkv_pool_create(&of_pool, NULL, &pool, &err), &err);
    seq_model *m = seq_grown(&w, 0, 70);
    refuse_index(&w, m, pool, S, 2);
    refuse_index(&w, m, w.pool, S + 1, 2);
    refuse_index(&w, m, w.pool, S, 1);
    refuse_index(&w, m, w.pool, S, 3);
    refuse_publish(&w, m, NULL, m->token, 40, PKV_E_INVALID, NONE);
    refuse_publish(&w, m, w.index, NULL, 1, PKV_E_INVALID, NONE);
    refuse_publish(&w, m, w.index, m->token, 71, PKV_E_RANGE, PKV_RULE_LIMIT);
    refuse_publish(&w, m, w.index, m->token, -1, PKV_E_RANGE, PKV_RULE_LIMIT);
    expect_ok(pkv_seq_publish(w.seqs, m->handle, w.index, 0, NULL, 0, &err), &err);
    pkv_pool_destroy(pool);
    seq_world_check(&w);
    seq_world_free(&w);
}

/* A page is published with tokens that are not its own: as another sequence did, or itself. */
static void test_other_tokens(void **state)
{
    (void)state;
    seq_world w;
    pkv_error err;
    int32_t   other[80];
    for (int32_t n_groups = 1; n_groups <= SEQ_GROUPS; n_groups++) {
        make_world(&w, 50, n_groups);
        seq_model *m = seq_grown(&w, 0, 70), *fork = seq_fork(&w, m, 70);
        seq_model *late = seq_fork(&w, m, 70);
        for (int i = 0; i < 70; i++) {
            other[i] = m->token[i];
        }
        other[3 * S - 1]++;
        seq_publish(&w, m, 4 * S);
        /* Up to the page at fault the fork's are published. */
        expect_error(pkv_seq_publish(w.seqs, fork->handle, w.index, 0, other, 70, &err), &err,
                     PKV_E_STATE, PKV_RULE_PAGE, 0);
        fork->n_published = 2;
        seq_world_check(&w);
        expect_error(pkv_seq_publish(w.seqs, late->handle, w.index, 1, m->token, 70, &err), &err,
                     PKV_E_STATE, PKV_RULE_PAGE, 0); /* the salt is part of the content */
        seq_world_check(&w);
        /* Its own were published with others before. */
        refuse_publish(&w, m, w.index, other + 1, 69, PKV_E_STATE, PKV_RULE_PAGE);
        other[4 * S - 1]--;
        refuse_publish(&w, m, w.index, other, 70, PKV_E_STATE, PKV_RULE_PAGE);
        refuse_publish(&w, m, w.index, other, 4 * S, PKV_E_STATE, PKV_RULE_PAGE);
        seq_publish(&w, m, 70);
        seq_publish(&w, fork, 70);
        seq_world_free(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arguments),
        cmocka_unit_test(test_sequences_of_a_step),
        cmocka_unit_test(test_prefixes),
        cmocka_unit_test(test_stride_of_one_group),
        cmocka_unit_test(test_stale_hits),
        cmocka_unit_test(test_stale_by_a_reservation),
        cmocka_unit_test(test_publish),
        cmocka_unit_test(test_other_tokens),
    };
    return cmocka_run_group_tests_name("seq_refused_steps", tests, NULL, NULL);
}
