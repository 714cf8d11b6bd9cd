/*
 * Sequences as engines use them, on the model that writes (seq_model.h): every
 * helper reads back all sequences.  The cases of TVM's paged KV cache and of ONNX
 * Runtime GenAI's block tables, told anew, and speculative decoding.
 */
#include "seq_model.h"

enum { S = 16, N_ALLOCATORS = 3 };

static void make_world(seq_world *w, int64_t n_pages, int32_t n_groups, int32_t allocator)
{
    seq_shape shape = {.n_pages = n_pages, .page_size = S, .max_seqs = 16, .n_groups = n_groups,
                       .allocator = allocator};
    note_case("scenario", 0, "P %lld, %d groups, allocator %d", (long long)n_pages, n_groups,
              allocator);
    seq_world_init(w, &shape, NULL, NULL);
}

/* ---- forks ------------------------------------------------------------------ */

/* One token before a page's end, at its end, one behind it; then a fork of the fork. */
static void fork_at(seq_world *w, int64_t at)
{
    const int64_t held = at % S, copies = held > 0 ? w->shape.n_groups : 0;
    seq_model    *parent = seq_grown(w, 0, 35);
    seq_model    *child = seq_fork(w, parent, at);
    seq_world_check(w);
    assert_int_equal(seq_pool_counts(w).n_shared, w->shape.n_groups * seq_pages_of(w, at));
    child->prompt = 4;
    assert_int_equal(seq_grow(w, child, 1), copies);
    assert_int_equal(seq_grow(w, child, 1), 0); /* the copy is its own */
    assert_int_equal(seq_grow(w, parent, 1), 0);
    seq_model *grandchild = seq_fork(w, child, at + 1);
    grandchild->prompt = 8;
    assert_int_equal(seq_grow(w, grandchild, 20), (at + 1) % S > 0 ? w->shape.n_groups : 0);
    /* The parent goes back to where the fork began: its page is shared there, or is not. */
    seq_trim(w, parent, at);
    assert_int_equal(seq_grow(w, parent, 40), 0); /* the others have copies of their own */
    seq_model *again = seq_fork(w, grandchild, at + 5);
    assert_int_equal(seq_grow(w, grandchild, 3), 0); /* its last page is not in the fork */
    assert_int_equal(seq_grow(w, again, 3), (at + 5) % S > 0 ? w->shape.n_groups : 0);
    seq_close(w, child);
    seq_world_check(w);
    seq_close(w, parent);
    seq_world_check(w);
}

static void test_fork_around_a_page(void **state)
{
    (void)state;
    seq_world w;
    for (int32_t a = 0; a < N_ALLOCATORS; a++) {
        for (int32_t n_groups = 1; n_groups <= SEQ_GROUPS; n_groups++) {
            for (int64_t at = 15; at <= 17; at++) {
                make_world(&w, 60, n_groups, a);
                fork_at(&w, at);
                seq_world_free(&w);
            }
        }
    }
}

/* Each link goes on from where the last one stands or a bit before; then they go, in any order. */
static void test_chain_of_forks(void **state)
{
    (void)state;
    static const int order[] = {3, 0, 7, 12, 1, 11, 5, 2, 10, 4, 9, 6, 8};
    seq_world        w;
    for (int32_t a = 0; a < N_ALLOCATORS; a++) {
        seq_model *link[13];
        make_world(&w, 150, 2, a);
        link[0] = seq_grown(&w, 0, 30);
        for (int i = 1; i <= 12; i++) {
            link[i] = seq_fork(&w, link[i - 1], link[i - 1]->n_tokens - i % 4);
            link[i]->prompt = i % SEQ_PROMPTS;
            seq_grow(&w, link[i], 5 + i % 3);
        }
        for (int i = 0; i <= 12; i++) {
            seq_grow(&w, link[i], 1);
        }
        for (int i = 0; i <= 12; i++) {
            seq_close(&w, link[order[i]]);
            seq_world_check(&w);
        }
        assert_int_equal(seq_pool_counts(&w).n_used, 0);
        seq_world_free(&w);
    }
}

/* Pages that others had before, in another order. */
static void test_fork_after_recycling(void **state)
{
    (void)state;
    seq_world w;
    for (int32_t a = 0; a < N_ALLOCATORS; a++) {
        make_world(&w, 12, 1, a);
        seq_model *first = seq_grown(&w, 0, 70), *second = seq_grown(&w, 3, 60);
        seq_close(&w, first);
        seq_trim(&w, second, 33);
        seq_model *third = seq_grown(&w, 6, 90);
        seq_model *fork = seq_fork(&w, third, 71);
        fork->prompt = 1;
        seq_close(&w, second);
        assert_int_equal(seq_grow(&w, fork, 30), 1);
        seq_close(&w, third);
        seq_grow(&w, fork, 90);
        assert_int_equal(seq_pool_counts(&w).n_blank, 0);
        seq_world_free(&w);
    }
}

/* Tokens go, of a fork, through the place where it began. */
static void test_pop_through_a_fork(void **state)
{
    (void)state;
    static const int64_t pops[] = {17, 57, 16, 0, 37};
    seq_world            w;
    for (int32_t a = 0; a < N_ALLOCATORS; a++) {
        make_world(&w, 80, 2, a);
        seq_model *parent = seq_grown(&w, 0, 100), *child = seq_fork(&w, parent, 88);
        child->prompt = 5;
        seq_grow(&w, child, 40);
        for (int i = 0; i < 5; i++) {
            seq_trim(&w, child, child->n_tokens - pops[i]);
            seq_world_check(&w);
            const bool inside = child->n_tokens % S > 0;
            seq_model *other = seq_fork(&w, child, child->n_tokens); /* all of it is shared now */
            assert_int_equal(seq_grow(&w, child, 4), inside ? 2 : 0);
            seq_close(&w, other);
            seq_grow(&w, parent, 1);
        }
        seq_trim(&w, child, 0);
        seq_grow(&w, child, 50);
        seq_close(&w, parent);
        seq_world_check(&w);
        seq_world_free(&w);
    }
}

/* Of many, one after the other goes, and the others still read what they wrote. */
static void test_remove_in_order(void **state)
{
    (void)state;
    seq_world w;
    for (int32_t a = 0; a < N_ALLOCATORS; a++) {
        seq_model *all[10];
        make_world(&w, 120, 1, a);
        for (int i = 0; i < 10; i++) {
            all[i] = i % 3 == 2 ? seq_fork(&w, all[i - 1], 20 + i) : seq_grown(&w, i % 9, 31 + i);
            seq_grow(&w, all[i], 1 + i);
        }
        for (int i = 0; i < 10; i++) {
            seq_close(&w, all[i]);
            seq_world_check(&w);
            for (int j = i + 1; j < 10; j++) {
                seq_grow(&w, all[j], 1);
            }
        }
        seq_world_free(&w);
    }
}

/* ---- windows ------------------------------------------------------------------ */

/* What a token that comes next can read is there, and nothing that it cannot but in part. */
static void check_window(const seq_world *w, const seq_model *m, int64_t window, int64_t sinks)
{
    for (int64_t i = 0; i < seq_pages_of(w, m->n_tokens); i++) {
        const bool passed = i * S >= sinks && (i + 1) * S <= m->n_tokens - window + 1;
        assert_int_equal(seq_page(w, m, 1, i) < 0, passed);
        assert_true(seq_page(w, m, 0, i) >= 0);
    }
}

static void slide(seq_world *w, int64_t window, int64_t sinks)
{
    seq_model *m = seq_grown(w, 2, 3);
    for (int step = 0; step < 130; step++) {
        seq_grow(w, m, 1);
        if (m->n_tokens - window + 1 > sinks) {
            seq_drop(w, m, 1, sinks, m->n_tokens - window + 1);
        }
        check_window(w, m, window, sinks);
        if (step % 20 == 7) {
            seq_model *fork = seq_fork(w, m, m->n_tokens - 2);
            seq_grow(w, fork, 5);
            seq_close(w, fork);
        }
    }
    /* Not many pages are left of 9. */
    const int64_t n_sinks = (sinks + S - 1) / S, most = n_sinks + (window + S - 2) / S + 1;
    assert_true(seq_pool_counts(w).n_used <= 9 + most);
}

static void test_windows_and_sinks(void **state)
{
    (void)state;
    seq_world w;
    for (int32_t a = 0; a < N_ALLOCATORS; a++) {
        make_world(&w, 40, 2, a);
        slide(&w, 20, 6);
        seq_world_free(&w);
        make_world(&w, 40, 2, a);
        slide(&w, 40, 7);
        seq_world_free(&w);
    }
}

/* ---- reservations ----------------------------------------------------------------- */

/* The requests' needs are summed; what does not fit takes nothing, and what fits then does. */
static void test_needs_are_summed(void **state)
{
    (void)state;
    seq_world w;
    for (int32_t a = 0; a < N_ALLOCATORS; a++) {
        seq_step   st;
        seq_model *m[3];
        make_world(&w, 8, 1, a);
        seq_step_init(&st);
        for (int i = 0; i < 3; i++) {
            m[i] = seq_open(&w, i, 0);
            seq_step_add(&w, &st, m[i], 40);
        }
        assert_int_equal(seq_step_reserve(&w, &st), PKV_E_NO_PAGES); /* 3 + 3 + 3 */
        assert_int_equal(st.index, 2);
        assert_int_equal(seq_pool_counts(&w).n_blank, 8);
        st.n = 2;
        assert_int_equal(seq_step_reserve(&w, &st), PKV_OK);
        seq_step_commit(&w, &st, S);
        seq_step_add(&w, &st, m[2], 32);
        assert_int_equal(seq_step_reserve(&w, &st), PKV_OK);
        assert_int_equal(seq_pool_counts(&w).n_blank, 0);
        seq_step_commit(&w, &st, S);
        seq_world_free(&w);
    }
}

/* The slots behind the last token are used before a page is taken. */
static void test_tail_slots_first(void **state)
{
    (void)state;
    seq_world w;
    make_world(&w, 8, 2, PKV_POOL_EXTENT);
    seq_model *m = seq_grown(&w, 0, 20);
    const int32_t last = seq_page(&w, m, 1, 1);
    assert_int_equal(seq_pool_counts(&w).n_used, 4);
    seq_grow(&w, m, 12);
    assert_int_equal(seq_pool_counts(&w).n_used, 4);
    assert_int_equal(seq_page(&w, m, 1, 1), last);
    seq_grow(&w, m, 1);
    assert_int_equal(seq_pool_counts(&w).n_used, 6);
    seq_world_free(&w);
}

/* A release restores; a second one is refused and changes nothing; then the step runs. */
static void test_release_twice(void **state)
{
    (void)state;
    seq_world w;
    pkv_error err;
    for (int32_t a = 0; a < N_ALLOCATORS; a++) {
        seq_step st;
        make_world(&w, 12, 2, a);
        seq_model *m = seq_grown(&w, 0, 20), *fork = seq_fork(&w, m, 18);
        seq_model *fresh = seq_open(&w, 1, 0);
        for (int round = 0; round < 2; round++) {
            seq_step_init(&st);
            seq_step_add(&w, &st, fork, 3);
            seq_step_add(&w, &st, fresh, 17);
            seq_step_add(&w, &st, m, 0);
            assert_int_equal(seq_step_reserve(&w, &st), PKV_OK);
            assert_int_equal(st.n_copies, 2);
            seq_expect_closed_shop(&w, m);
            if (round == 0) {
                seq_step_release(&w, &st);
                seq_world_save(&w, 0);
                expect_error(pkv_seqs_release(w.seqs, &err), &err, PKV_E_STATE, PKV_RULE_NONE, -1);
                expect_error(pkv_seqs_commit(w.seqs, &err), &err, PKV_E_STATE, PKV_RULE_NONE, -1);
                seq_expect_same(&w, 0);
            } else {
                seq_step_commit(&w, &st, 0);
            }
        }
        seq_world_free(&w);
    }
}

/* A prompt in chunks takes the pages that it takes at once. */
static void test_chunked_prefill(void **state)
{
    (void)state;
    static const int64_t pages_after[] = {3, 5, 7, 7, 8};
    seq_world            w;
    make_world(&w, 20, 1, PKV_POOL_EXTENT);
    seq_model *chunked = seq_open(&w, 0, 0);
    for (int i = 0; i < 5; i++) {
        seq_grow(&w, chunked, i < 2 ? 37 : i == 2 ? 38 : i == 3 ? 0 : 1);
        assert_int_equal(seq_pool_counts(&w).n_used, pages_after[i]);
    }
    seq_model *whole = seq_grown(&w, 0, 113);
    assert_memory_equal(whole->value[0], chunked->value[0], 113 * sizeof(uint64_t));
    seq_world_free(&w);
}

/* Sixteen tokens are guessed, one is right; the pages of the others are there for the next ones. */
static void test_rejected_tokens(void **state)
{
    (void)state;
    seq_world w;
    for (int32_t a = 0; a < N_ALLOCATORS; a++) {
        make_world(&w, 6, 1, a);
        seq_model *m = seq_grown(&w, 0, 15), *other = seq_fork(&w, m, 15);
        for (int step = 0; step < 30; step++) {
            const int64_t n = m->n_tokens;
            m->prompt = 3; /* the draft's tokens are others than those that stay */
            seq_grow(&w, m, 16);
            m->prompt = 0;
            seq_trim(&w, m, step % 2 ? n + 1 : n);
            seq_world_check(&w);
            if (step % 2 == 0) {
                seq_grow(&w, m, 1);
            }
            assert_int_equal(seq_pool_counts(&w).n_used, 1 + seq_pages_of(&w, m->n_tokens));
        }
        seq_close(&w, other);
        seq_world_free(&w);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_fork_around_a_page),
        cmocka_unit_test(test_chain_of_forks),
        cmocka_unit_test(test_fork_after_recycling),
        cmocka_unit_test(test_pop_through_a_fork),
        cmocka_unit_test(test_remove_in_order),
        cmocka_unit_test(test_windows_and_sinks),
        cmocka_unit_test(test_needs_are_summed),
        cmocka_unit_test(test_tail_slots_first),
        cmocka_unit_test(test_release_twice),
        cmocka_unit_test(test_chunked_prefill),
        cmocka_unit_test(test_rejected_tokens),
    };
    return cmocka_run_group_tests_name("seq_scenarios", tests, NULL, NULL);
}
