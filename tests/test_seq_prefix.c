/*
 * Sequences that publish what they wrote and begin with what was found, on the
 * model that writes (seq_model.h).
 */
#include "seq_model.h"

enum { S = 16, N_ALLOCATORS = 3 };

static void make_world(seq_world *w, int64_t n_pages, int32_t n_groups, int32_t allocator)
{
    seq_shape shape = {.n_pages = n_pages, .page_size = S, .max_seqs = SEQ_MAX,
                       .n_groups = n_groups, .allocator = allocator,
                       .groups = {{0, 0}, {20, 6}, {40, 0}}};
    note_case("prefix", 0, "P %lld, %d groups, allocator %d", (long long)n_pages, n_groups,
              allocator);
    seq_world_init(w, &shape, NULL, NULL);
}

/* Pages of the hit of a prompt's first n_tokens tokens. */
static int64_t hit(seq_world *w, int64_t prompt, uint64_t salt, int64_t n_tokens)
{
    seq_step   st;
    seq_model *m = seq_open(w, prompt, salt);
    seq_step_init(&st);
    const int64_t n_pages = seq_step_begin(w, &st, m, n_tokens);
    seq_close(w, m);
    return n_pages;
}

/* A sequence with these first tokens of a prompt, found as far as can be. */
static seq_model *begun(seq_world *w, int64_t prompt, int64_t n_tokens, int64_t n_found)
{
    seq_step   st;
    seq_model *m = seq_open(w, prompt, 0);
    seq_step_init(&st);
    assert_int_equal(seq_step_begin(w, &st, m, n_tokens), n_found);
    assert_int_equal(seq_step_reserve(w, &st), PKV_OK);
    seq_step_commit(w, &st, S);
    assert_int_equal(m->n_tokens, n_tokens);
    return m;
}

/* A stretch of a prompt in the cache, and nobody has it. */
static void cache_prompt(seq_world *w, int64_t prompt, int64_t n_tokens)
{
    seq_model *m = seq_grown(w, prompt, n_tokens);
    seq_publish(w, m, n_tokens);
    seq_close(w, m);
    seq_world_check(w);
}

/* ---- what is published stays as it is ------------------------------------------ */

/* Whoever trims into a published page and goes on gets a copy; the page is found as before. */
static void test_trim_into_a_published_page(void **state)
{
    (void)state;
    seq_world w;
    for (int32_t a = 0; a < N_ALLOCATORS; a++) {
        for (int32_t n_groups = 1; n_groups <= SEQ_GROUPS; n_groups++) {
            make_world(&w, 30, n_groups, a);
            seq_model *m = seq_grown(&w, 0, 40);
            seq_publish(&w, m, 40);
            assert_int_equal(m->n_published, 2);
            const int32_t page = seq_page(&w, m, 0, 1);
            seq_trim(&w, m, 20);
            seq_world_check(&w);
            m->prompt = 8;
            seq_put_token(&w, m, 19, m->token[19]);
            assert_int_equal(seq_grow(&w, m, 25), n_groups);
            assert_true(seq_page(&w, m, 0, 1) != page);
            assert_int_equal(pkv_pool_owners(w.pool, page), 0); /* cached */
            seq_model *other = begun(&w, 0, 40, 2);
            assert_int_equal(seq_page(&w, other, 0, 1), page);
            seq_publish(&w, m, 45); /* its copy has the same tokens, or it would not fit */
            seq_world_check(&w);
            seq_world_free(&w);
        }
    }
}

/* The same where another sequence shares it, and where the fork itself is the one to publish. */
static void test_shared_and_published(void **state)
{
    (void)state;
    seq_world w;
    for (int32_t a = 0; a < N_ALLOCATORS; a++) {
        make_world(&w, 40, 2, a);
        seq_model *m = seq_grown(&w, 0, 40), *early = seq_fork(&w, m, 25);
        seq_model *late = seq_fork(&w, m, 40);
        seq_publish(&w, m, 40);
        seq_publish(&w, late, 32); /* published already */
        assert_int_equal(late->n_published, 2);
        early->prompt = 3;
        assert_int_equal(seq_grow(&w, early, 10), 2);
        seq_publish(&w, early, 35); /* the first page is known, the second one is a twin */
        seq_close(&w, m);
        seq_trim(&w, late, 31); /* the only owner now, and yet it is not written */
        assert_int_equal(seq_grow(&w, late, 1), 2);
        seq_world_check(&w);
        assert_int_equal(hit(&w, 0, 0, 40), 2);
        assert_int_equal(hit(&w, 0, 1, 40), 0); /* other salt */
        seq_world_free(&w);
    }
}

/* What a sequence began with counts as published, and it publishes what is behind. */
static void test_begin_and_go_on(void **state)
{
    (void)state;
    seq_world w;
    for (int32_t a = 0; a < N_ALLOCATORS; a++) {
        make_world(&w, 60, 3, a);
        cache_prompt(&w, 0, 5 * S);
        seq_model *m = begun(&w, 0, 5 * S, 4); /* the last token's page is always computed */
        assert_int_equal(m->n_published, 4);
        seq_publish(&w, m, 5 * S);
        seq_grow(&w, m, 40);
        seq_publish(&w, m, m->n_tokens);
        assert_int_equal(m->n_published, 7);
        seq_close(&w, m);
        m = begun(&w, 0, 8 * S, 7);
        seq_model *fork = seq_fork(&w, m, 3 * S);
        assert_int_equal(fork->n_published, 3);
        seq_trim(&w, m, 0);
        assert_int_equal(seq_info(&w, m).n_published, 0);
        seq_world_free(&w);
    }
}

/* A prompt is found of which the windows keep the last pages only; it has the rest as none. */
static void test_windows_are_passed(void **state)
{
    (void)state;
    seq_world w;
    for (int32_t a = 0; a < N_ALLOCATORS; a++) {
        make_world(&w, 80, 3, a);
        seq_model *m = seq_grown(&w, 0, 100);
        seq_publish(&w, m, 80);
        seq_drop(&w, m, 1, 6, 100 - 20 + 1);
        seq_drop(&w, m, 2, 0, 100 - 40 + 1);
        seq_publish(&w, m, 100);
        assert_int_equal(m->n_published, 6);
        seq_model *other = begun(&w, 0, 100, 6);
        assert_true(seq_page(&w, other, 1, 0) >= 0 && seq_page(&w, other, 1, 1) < 0);
        assert_true(seq_page(&w, other, 1, 4) >= 0 && seq_page(&w, other, 1, 5) >= 0);
        assert_true(seq_page(&w, other, 2, 2) < 0 && seq_page(&w, other, 2, 3) >= 0);
        seq_model *fork = seq_fork(&w, other, 97);
        seq_grow(&w, fork, 20);
        seq_publish(&w, fork, fork->n_tokens);
        seq_world_check(&w);
        /* Without the first group's pages nothing is published behind them. */
        seq_grow(&w, m, 60);
        seq_drop(&w, m, 0, 6 * S, 7 * S);
        seq_publish(&w, m, m->n_tokens);
        assert_int_equal(m->n_published, 6);
        seq_world_free(&w);
    }
}

/* What a window had passed when the pages were published cannot be found: the hit ends before. */
static void test_published_too_late(void **state)
{
    (void)state;
    seq_world w;
    make_world(&w, 80, 2, PKV_POOL_EXTENT);
    seq_model *m = seq_grown(&w, 0, 100);
    seq_publish(&w, m, 50);
    seq_drop(&w, m, 1, 6, 100 - 20 + 1);
    seq_publish(&w, m, 100);
    assert_int_equal(m->n_published, 6);
    begun(&w, 0, 100, 3);
    seq_world_free(&w);
}

/*
 * The pages of a sequence that goes are evicted from its end on, so what is found
 * gets shorter and is not gone at once: whether it was closed, trimmed or dropped.
 */
static void test_last_pages_go_first(void **state)
{
    (void)state;
    static const int32_t allocators[] = {PKV_POOL_EXTENT, PKV_POOL_FIFO};
    for (int k = 0; k < 6; k++) {
        seq_world w;
        make_world(&w, 7, 1, allocators[k % 2]);
        seq_model *m = seq_grown(&w, 0, 6 * S);
        seq_publish(&w, m, 6 * S);
        if (k / 2 == 0) {
            seq_close(&w, m);
        } else if (k / 2 == 1) {
            seq_trim(&w, m, 0);
        } else {
            seq_drop(&w, m, 0, 0, 6 * S);
        }
        for (int64_t n_left = 6; n_left > 0; n_left--) {
            seq_grown(&w, 8, 1);
            assert_int_equal(hit(&w, 0, 0, 6 * S + 1), n_left);
        }
        seq_world_free(&w);
    }
}

/* ---- admission ------------------------------------------------------------------ */

/*
 * Half of the pages are cached, and one sequence of the step wants them while
 * another needs room: they are not its victims, whoever is named first.
 */
static void test_hits_are_no_victims(void **state)
{
    (void)state;
    seq_world w;
    for (int32_t a = 0; a < N_ALLOCATORS; a++) {
        for (int first = 0; first < 2; first++) {
            seq_step st;
            make_world(&w, 8, 1, a);
            cache_prompt(&w, 0, 4 * S);
            assert_int_equal(seq_pool_counts(&w).n_cached, 4);
            seq_model *greedy = seq_open(&w, 8, 0), *lucky = seq_open(&w, 0, 0);
            for (int64_t greedy_pages = 4; greedy_pages >= 3; greedy_pages--) {
                seq_step_init(&st);
                if (first == 0) {
                    seq_step_add(&w, &st, greedy, greedy_pages * S);
                }
                assert_int_equal(seq_step_begin(&w, &st, lucky, 4 * S + 1), 4);
                if (first == 1) {
                    seq_step_add(&w, &st, greedy, greedy_pages * S);
                }
                const bool fits = greedy_pages == 3;
                assert_int_equal(seq_step_reserve(&w, &st), fits ? PKV_OK : PKV_E_NO_PAGES);
                assert_true(fits || st.index == 1);
            }
            seq_step_commit(&w, &st, S);
            assert_int_equal(seq_pool_counts(&w).n_evictions, 0);
            seq_world_free(&w);
        }
    }
}

/* Cached pages go one by one, and with them what is found: into `left`, until none is left. */
static int64_t watch_them_go(seq_world *w, int64_t *left)
{
    int64_t n = 0;
    while (seq_pool_counts(w).n_blank + seq_pool_counts(w).n_cached > 0) {
        seq_grown(w, 8, 1);
        for (int64_t prompt = 0; prompt < 9; prompt += 3) {
            left[n++] = hit(w, prompt, 0, 7 * S + 1);
        }
    }
    return n;
}

/* Beside a twin that never heard of it: an admission that fails leaves the cached pages' age. */
static void test_failed_admission_leaves_no_trace(void **state)
{
    (void)state;
    seq_world w[2];
    int64_t   left[2][100], n[2];
    for (int32_t a = 0; a < N_ALLOCATORS; a++) {
        for (int twin = 0; twin < 2; twin++) {
            make_world(&w[twin], 24, 1, a);
            for (int64_t prompt = 0; prompt < 9; prompt += 3) {
                cache_prompt(&w[twin], prompt, 7 * S);
            }
            for (int try = 0; twin == 0 && try < 6; try++) {
                seq_step   st;
                seq_model *m = seq_open(&w[0], try % 3 * 3, 0), *big = seq_open(&w[0], 7, 0);
                seq_step_init(&st);
                const int64_t found = seq_step_begin(&w[0], &st, m, (4 + try % 4) * S);
                assert_true(found > 2 || a == PKV_POOL_LIFO); /* which takes cached pages first */
                seq_step_add(&w[0], &st, big, try % 2 ? 5 * S : 30 * S);
                if (seq_step_reserve(&w[0], &st) == PKV_OK) {
                    seq_step_release(&w[0], &st);
                }
                seq_close(&w[0], big);
                seq_close(&w[0], m);
            }
            n[twin] = watch_them_go(&w[twin], left[twin]);
        }
        assert_true(n[0] > 20 && n[0] == n[1]);
        assert_memory_equal(left[0], left[1], (size_t)n[0] * sizeof left[0][0]);
        seq_world_free(&w[0]);
        seq_world_free(&w[1]);
    }
}

/* More owners come in one reservation than the pool has pages. */
static void test_many_begin_alike(void **state)
{
    (void)state;
    enum { N = SEQ_MAX };
    seq_world w;
    for (int32_t a = 0; a < N_ALLOCATORS; a++) {
        make_world(&w, 14 + 2 * N, 2, a);
        cache_prompt(&w, 4, 7 * S);
        for (int round = 0; round < 3; round++) {
            seq_step st;
            seq_step_init(&st);
            for (int i = 0; i < N; i++) {
                seq_model *m = round == 0 ? seq_open(&w, 4, 0) : &w.seq[i];
                assert_int_equal(seq_step_begin(&w, &st, m, 6 * S + 1 + i % S), 6);
            }
            assert_int_equal(seq_step_reserve(&w, &st), PKV_OK);
            assert_int_equal(pkv_pool_owners(w.pool, seq_page(&w, st.of[7], 0, 3)), N);
            if (round < 2) {
                seq_step_release(&w, &st);
                continue;
            }
            seq_step_commit(&w, &st, S);
        }
        assert_int_equal(seq_pool_counts(&w).n_used, 6 + 3 + 2 * N); /* the window has passed 3 */
        seq_world_free(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_trim_into_a_published_page),
        cmocka_unit_test(test_shared_and_published),
        cmocka_unit_test(test_begin_and_go_on),
        cmocka_unit_test(test_windows_are_passed),
        cmocka_unit_test(test_published_too_late),
        cmocka_unit_test(test_last_pages_go_first),
        cmocka_unit_test(test_hits_are_no_victims),
        cmocka_unit_test(test_failed_admission_leaves_no_trace),
        cmocka_unit_test(test_many_begin_alike),
    };
    return cmocka_run_group_tests_name("seq_prefix", tests, NULL, NULL);
}
