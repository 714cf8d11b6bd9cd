/*
 * Sequences against a model that writes: every token is a number, steps copy and
 * write the numbers where the library says, and every sequence must read back
 * what it wrote, whatever was forked, trimmed, dropped or undone meanwhile.
 */
#include <pagedkv/pagedkv.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { MAX_SEQS = 12, WIDTH = 40, MAX_TOKENS = 600, MAX_COPIES = MAX_SEQS, GONE = -1 };

typedef struct model_seq {
    pkv_seq handle; /* 0: not open */
    int64_t n_tokens;
    int64_t token[MAX_TOKENS]; /* GONE: its page was dropped */
} model_seq;

typedef struct world {
    uint64_t  random;
    int64_t   n_pages, page_size, next_token;
    int64_t  *content; /* [n_pages, page_size] */
    pkv_pool *pool;
    pkv_seqs *seqs;
    model_seq model[MAX_SEQS];
} world;

static int64_t below(world *w, int64_t n)
{
    w->random ^= w->random << 13;
    w->random ^= w->random >> 7;
    w->random ^= w->random << 17;
    return (int64_t)(w->random % (uint64_t)n);
}

static void expect(pkv_status got, pkv_status want, const pkv_error *err, const char *what)
{
    if (got != want) {
        fail_msg("%s: %s, not %s: %s", what, pkv_status_name(got), pkv_status_name(want),
                 got == PKV_OK ? "" : err->what);
    }
}

static void open_world(world *w, uint64_t seed, int64_t n_pages, int64_t page_size, int allocator)
{
    pkv_error       err;
    pkv_pool_config pool = {.struct_size = sizeof pool, .n_pages = n_pages,
                            .allocator = allocator};
    pkv_seqs_config seqs = {.struct_size = sizeof seqs, .max_seqs = MAX_SEQS,
                            .max_pages_per_seq = WIDTH, .page_size = page_size};
    *w = (world){.random = seed * 0x9e3779b97f4a7c15U + 1, .n_pages = n_pages,
                 .page_size = page_size, .next_token = 1};
    w->content = calloc((size_t)(n_pages * page_size), sizeof *w->content);
    assert_non_null(w->content);
    expect(pkv_pool_create(&pool, NULL, &w->pool, &err), PKV_OK, &err, "pool");
    expect(pkv_seqs_create(&seqs, w->pool, NULL, &w->seqs, &err), PKV_OK, &err, "seqs");
}

static void close_world(world *w)
{
    pkv_error       err;
    pkv_pool_counts counts = {.struct_size = sizeof counts};
    pkv_seqs_destroy(w->seqs);
    expect(pkv_pool_stats(w->pool, &counts, &err), PKV_OK, &err, "stats");
    assert_int_equal(counts.n_used, 0);
    expect(pkv_pool_check(w->pool, &err), PKV_OK, &err, "check of the pool");
    pkv_pool_destroy(w->pool);
    free(w->content);
}

/* Everything that every sequence wrote and did not drop is where its table says. */
static void check_world(const world *w)
{
    pkv_error err;
    expect(pkv_seqs_check(w->seqs, 1, &err), PKV_OK, &err, "check");
    for (int s = 0; s < MAX_SEQS; s++) {
        const model_seq *m = &w->model[s];
        if (m->handle == 0) {
            continue;
        }
        pkv_seq_state info = {.struct_size = sizeof info};
        expect(pkv_seq_info(w->seqs, m->handle, &info, &err), PKV_OK, &err, "info");
        assert_int_equal(info.n_tokens, m->n_tokens);
        assert_int_equal(info.n_pages, (m->n_tokens + w->page_size - 1) / w->page_size);
        for (int64_t t = 0; t < m->n_tokens; t++) {
            int32_t page = info.pages[t / w->page_size];
            assert_int_equal(page < 0, m->token[t] == GONE);
            if (page >= 0 &&
                w->content[page * w->page_size + t % w->page_size] != m->token[t]) {
                fail_msg("sequence %d: token %lld is not what it wrote", s, (long long)t);
            }
        }
    }
}

static model_seq *pick(world *w, bool open)
{
    int start = (int)below(w, MAX_SEQS);
    for (int i = 0; i < MAX_SEQS; i++) {
        model_seq *m = &w->model[(start + i) % MAX_SEQS];
        if ((m->handle != 0) == open) {
            return m;
        }
    }
    return NULL;
}

static void fork_one(world *w)
{
    pkv_error  err;
    model_seq *from = pick(w, true), *to = pick(w, false);
    if (from == NULL || to == NULL) {
        return;
    }
    int64_t n = below(w, from->n_tokens + 1);
    pkv_seq handle = 0;
    expect(pkv_seq_fork(w->seqs, from->handle, n, &handle, &err), PKV_OK, &err, "fork");
    *to = *from;
    to->handle = handle;
    to->n_tokens = n;
}

static void shorten_one(world *w)
{
    pkv_error  err;
    model_seq *m = pick(w, true);
    if (m == NULL) {
        return;
    }
    if (below(w, 3) > 0) {
        int64_t n = below(w, 2) ? m->n_tokens - below(w, m->n_tokens < 5 ? m->n_tokens + 1 : 5)
                                : below(w, m->n_tokens + 1);
        expect(pkv_seq_trim(w->seqs, m->handle, n, &err), PKV_OK, &err, "trim");
        m->n_tokens = n;
        return;
    }
    int64_t to = below(w, m->n_tokens + 1), from = below(w, to + 1);
    expect(pkv_seq_drop(w->seqs, m->handle, from, to, &err), PKV_OK, &err, "drop");
    for (int64_t p = (from + w->page_size - 1) / w->page_size; p < to / w->page_size; p++) {
        for (int64_t t = p * w->page_size; t < (p + 1) * w->page_size; t++) {
            m->token[t] = GONE;
        }
    }
}

/* The step as an engine runs it: the copies, then the slices of the plan. */
static void run_step(world *w, const pkv_seq *handles, const pkv_page_copy *copies,
                     int64_t n_copies, model_seq *const *of_step, const int32_t *n_tokens,
                     int64_t n)
{
    int32_t    computed[MAX_SEQS], scheduled[MAX_SEQS], rows[MAX_SEQS];
    int32_t    columns[3 * 1024], n_slices;
    int64_t    total = 0;
    pkv_batch  batch;
    pkv_slices slices;
    pkv_error  err;
    for (int64_t i = 0; i < n_copies; i++) {
        memcpy(&w->content[copies[i].dst * w->page_size], &w->content[copies[i].src * w->page_size],
               (size_t)copies[i].n_tokens * sizeof *w->content);
    }
    expect(pkv_seqs_batch(w->seqs, handles, n, computed, scheduled, rows, &batch, &err), PKV_OK,
           &err, "batch");
    batch.n_pages = w->n_pages;
    expect(pkv_slices_from_array(&slices, sizeof slices, columns, 1024, &n_slices), PKV_OK, &err,
           "slices");
    int64_t merge = below(w, 2) ? 0 : w->page_size;
    expect(pkv_plan(&batch, merge, &slices, &total, &err), PKV_OK, &err, "plan");
    int64_t first = w->next_token;
    for (int32_t i = 0; i < n_slices; i++) {
        for (int32_t t = 0; t < columns[2048 + i]; t++) {
            w->content[columns[i] + t] = first + columns[1024 + i] + t;
        }
    }
    for (int64_t i = 0; i < n; i++) {
        for (int32_t t = 0; t < n_tokens[i]; t++) {
            of_step[i]->token[of_step[i]->n_tokens++] = w->next_token++;
        }
    }
    assert_int_equal(w->next_token - first, total);
}

static bool can_grow(const world *w, const model_seq *m)
{
    int64_t in_last = m->n_tokens % w->page_size;
    return in_last == 0 || m->token[m->n_tokens - in_last] != GONE;
}

static void step(world *w)
{
    model_seq    *of_step[MAX_SEQS];
    pkv_seq       handles[MAX_SEQS];
    int32_t       n_tokens[MAX_SEQS];
    pkv_page_copy copies[MAX_COPIES];
    int64_t       n = 0, n_copies = 0;
    pkv_error     err;
    int64_t       longest = WIDTH * w->page_size < MAX_TOKENS ? WIDTH * w->page_size : MAX_TOKENS;
    for (int s = 0; s < MAX_SEQS; s++) {
        model_seq *m = &w->model[s];
        int32_t    add = (int32_t)below(w, below(w, 4) ? 4 : 40);
        if (m->handle != 0 && below(w, 3) && m->n_tokens + add <= longest && can_grow(w, m)) {
            of_step[n] = m;
            handles[n] = m->handle;
            n_tokens[n++] = add;
        }
    }
    pkv_status status = pkv_seqs_reserve(w->seqs, handles, n_tokens, n, below(w, 8), copies,
                                         MAX_COPIES, &n_copies, &err);
    if (status == PKV_E_NO_PAGES) {
        assert_true(err.index >= 0 && err.index < n);
        return;
    }
    expect(status, PKV_OK, &err, "reserve");
    pkv_seq other = 0;
    expect(pkv_seq_open(w->seqs, &other, &err), PKV_E_STATE, &err, "open in a reservation");
    if (below(w, 4) == 0) {
        expect(pkv_seqs_release(w->seqs, &err), PKV_OK, &err, "release");
        return;
    }
    run_step(w, handles, copies, n_copies, of_step, n_tokens, n);
    expect(pkv_seqs_commit(w->seqs, &err), PKV_OK, &err, "commit");
}

static void operate(world *w)
{
    pkv_error  err;
    model_seq *m;
    switch (below(w, 8)) {
    case 0:
        if ((m = pick(w, false)) != NULL) {
            expect(pkv_seq_open(w->seqs, &m->handle, &err), PKV_OK, &err, "open");
            m->n_tokens = 0;
        }
        break;
    case 1: fork_one(w); break;
    case 2: shorten_one(w); break;
    case 3:
        if (below(w, 3) == 0 && (m = pick(w, true)) != NULL) {
            pkv_seq gone = m->handle;
            expect(pkv_seq_close(w->seqs, gone, &err), PKV_OK, &err, "close");
            expect(pkv_seq_close(w->seqs, gone, &err), PKV_E_INVALID, &err, "close twice");
            m->handle = 0;
        }
        break;
    default: step(w); break;
    }
}

static void test_random(void **state)
{
    (void)state;
    static const int64_t sizes[] = {1, 3, 16, 33};
    for (uint64_t seed = 1; seed <= 24; seed++) {
        static world w;
        open_world(&w, seed, 20 + (int64_t)(seed * 7 % 60), sizes[seed % 4], (int)(seed % 3));
        for (int i = 0; i < 1500; i++) {
            operate(&w);
            check_world(&w);
        }
        close_world(&w);
    }
}

/* A fork in the middle of a page: who writes first gets the copy, and the other one does not. */
static void test_fork_copies_once(void **state)
{
    (void)state;
    static world  w;
    pkv_error     err;
    pkv_seq       both[2];
    int32_t       twenty = 20, one[] = {1, 1};
    pkv_page_copy copies[2];
    int64_t       n_copies = -1;
    open_world(&w, 1, 8, 16, PKV_POOL_EXTENT);
    expect(pkv_seq_open(w.seqs, &both[0], &err), PKV_OK, &err, "open");
    expect(pkv_seqs_reserve(w.seqs, both, &twenty, 1, 0, copies, 0, &n_copies, &err), PKV_OK, &err,
           "first step");
    assert_int_equal(n_copies, 0);
    expect(pkv_seqs_commit(w.seqs, &err), PKV_OK, &err, "commit");
    expect(pkv_seq_fork(w.seqs, both[0], 18, &both[1], &err), PKV_OK, &err, "fork");
    expect(pkv_seqs_reserve(w.seqs, both, one, 2, 0, copies, 1, &n_copies, &err), PKV_E_RANGE, &err,
           "no room for two copies");
    assert_int_equal(err.index, 1);
    assert_int_equal(n_copies, 0);
    expect(pkv_seqs_reserve(w.seqs, &both[1], one, 1, 0, copies, 2, &n_copies, &err), PKV_OK, &err,
           "the fork writes");
    assert_int_equal(n_copies, 1);
    assert_int_equal(copies[0].src, 1);
    assert_int_equal(copies[0].n_tokens, 2);
    expect(pkv_seqs_commit(w.seqs, &err), PKV_OK, &err, "commit");
    expect(pkv_seqs_reserve(w.seqs, both, one, 2, 0, copies, 2, &n_copies, &err), PKV_OK, &err,
           "both write");
    assert_int_equal(n_copies, 0);
    expect(pkv_seqs_commit(w.seqs, &err), PKV_OK, &err, "commit");
    close_world(&w);
}

static void test_refusals(void **state)
{
    (void)state;
    static world  w;
    pkv_error     err;
    pkv_seq       q = 0, other = 0;
    int64_t       n_copies = 0;
    int32_t       many = 41 * 16, all = 8 * 16, below_zero = -1;
    open_world(&w, 1, 8, 16, PKV_POOL_EXTENT);
    expect(pkv_seq_open(w.seqs, &q, &err), PKV_OK, &err, "open");
    expect(pkv_seq_trim(w.seqs, q, 1, &err), PKV_E_RANGE, &err, "trim more than there is");
    expect(pkv_seq_fork(w.seqs, q, 1, &other, &err), PKV_E_RANGE, &err, "fork past the end");
    expect(pkv_seq_fork(w.seqs, q + 1, 0, &other, &err), PKV_E_INVALID, &err, "no such handle");
    expect(pkv_seq_trim(w.seqs, 0, 0, &err), PKV_E_INVALID, &err, "handle 0");
    expect(pkv_seq_drop(w.seqs, q, 1, 0, &err), PKV_E_RANGE, &err, "drop backwards");
    expect(pkv_seqs_commit(w.seqs, &err), PKV_E_STATE, &err, "commit without a reservation");
    expect(pkv_seqs_reserve(w.seqs, &q, &many, 1, 0, NULL, 0, &n_copies, &err), PKV_E_RANGE, &err,
           "longer than a row");
    assert_int_equal(err.rule, PKV_RULE_TABLE);
    expect(pkv_seqs_reserve(w.seqs, &q, &below_zero, 1, 0, NULL, 0, &n_copies, &err), PKV_E_RANGE,
           &err, "negative tokens");
    pkv_seq twice[] = {q, q};
    int32_t ones[] = {1, 1};
    expect(pkv_seqs_reserve(w.seqs, twice, ones, 2, 0, NULL, 0, &n_copies, &err), PKV_E_STATE, &err,
           "the same twice");
    expect(pkv_seqs_reserve(w.seqs, &q, &all, 1, 0, NULL, 0, &n_copies, &err), PKV_OK, &err,
           "all pages");
    expect(pkv_seqs_commit(w.seqs, &err), PKV_OK, &err, "commit");
    expect(pkv_seqs_reserve(w.seqs, &q, ones, 1, 0, NULL, 0, &n_copies, &err), PKV_E_NO_PAGES, &err,
           "one too many");
    assert_int_equal(err.index, 0);
    expect(pkv_seqs_check(w.seqs, 1, &err), PKV_OK, &err, "check");
    for (int i = 1; i < MAX_SEQS; i++) {
        expect(pkv_seq_open(w.seqs, &other, &err), PKV_OK, &err, "open");
    }
    expect(pkv_seq_open(w.seqs, &other, &err), PKV_E_NO_MEMORY, &err, "one open too many");
    close_world(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),
        cmocka_unit_test(test_fork_copies_once),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
