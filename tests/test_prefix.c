/*
 * The prefix index: random operations against a model, with a good hash and with
 * bad ones.  test_prefix_scenarios.c has cases by hand, test_prefix_refusals.c
 * what is refused.
 */
#include "prefix_random.h"

#include <xxhash.h>

enum { N_HASHES = 3 };

static const int64_t SIZES[] = {1, 2, 3, 16};

static int64_t draw(void *user, int64_t min, int64_t max)
{
    return rng_range(user, min, max);
}

/* Windows that end inside a page, at its end, and that are shorter than one. */
static prefix_shape make_shape(int allocator, int size, int groups, rng *r)
{
    const int64_t S = SIZES[size];
    prefix_shape  s = {.allocator = allocator, .page_size = S, .n_groups = groups + 1,
                       .max_events = 2000};
    s.n_pages = rng_range(r, 8, 60);
    s.max_events = rng_range(r, 0, 3) == 0 ? rng_range(r, 0, 6) : s.max_events;
    for (int g = 1; g <= groups; g++) {
        s.groups[g].window_tokens = rng_range(r, 1, 4 * S);
        s.groups[g].sink_tokens = rng_range(r, 0, 1) == 0 ? 0 : rng_range(r, 1, 2 * S);
    }
    if (groups == 2 && rng_range(r, 0, 2) == 0) {
        s.groups[2] = (pkv_prefix_group){0, 0}; /* a second one that keeps all */
    }
    return s;
}

typedef struct totals {
    int64_t n_done[2 * PREFIX_KINDS];
    int64_t n_hits[PREFIX_MAX_DEPTH + 1];
    int64_t n_evictions, n_undone, n_windowed, n_gone, n_begun, n_removed;
} totals;

static void add(totals *sum, const prefix_random *r)
{
    for (int k = 0; k < 2 * PREFIX_KINDS; k++) {
        sum->n_done[k] += r->n_done[k];
    }
    for (int n = 0; n <= PREFIX_MAX_DEPTH; n++) {
        sum->n_hits[n] += r->w.n_hits[n];
    }
    sum->n_evictions += r->w.model.pool.n_evictions;
    sum->n_undone += r->n_undone;
    sum->n_windowed += r->w.n_windowed;
    sum->n_gone += r->w.n_gone;
    sum->n_begun += r->w.n_begun;
    sum->n_removed += r->w.model.counts.n_removed;
}

/* Returns what the index has answered, as a number. */
static uint64_t run_random(const prefix_shape *shape, const char *name, uint64_t seed,
                           int64_t n_ops, totals *sum)
{
    rng           numbers = {seed};
    prefix_random r = {.draw = draw, .user = &numbers};
    prefix_world_init(&r.w, shape);
    for (int64_t i = 0; i < n_ops; i++) {
        note_case(name, seed, "allocator %d, P %lld, S %lld, G %d, operation %lld",
                  (int)shape->allocator, (long long)shape->n_pages, (long long)shape->page_size,
                  (int)shape->n_groups, (long long)i);
        prefix_random_step(&r, prefix_random_kind(&r));
        /* Not each time: the index hears of what is lost when it is called. */
        if (i % 3 == 0 || i + 1 == n_ops) {
            prefix_world_compare(&r.w, i % 48 == 0 || i + 1 == n_ops);
        }
    }
    add(sum, &r);
    prefix_world_free(&r.w);
    return r.w.digest;
}

/* What shows that the operations were worth it. */
static void check_totals(const totals *sum, int64_t n_ops)
{
    for (int k = 0; k < PREFIX_KINDS; k++) {
        expect_that(sum->n_done[k] > n_ops / 1000);
    }
    expect_that(sum->n_done[PREFIX_PUBLISH + PREFIX_KINDS] > n_ops / 1000);
    expect_that(sum->n_done[PREFIX_CLEAR + PREFIX_KINDS] > 0);
    for (int n = 0; n < PREFIX_MAX_DEPTH; n++) {
        expect_that(sum->n_hits[n] > n_ops / 2000);
    }
    expect_that(sum->n_evictions > n_ops / 10 && sum->n_removed > n_ops / 10);
    expect_that(sum->n_undone > n_ops / 100);
    expect_that(sum->n_windowed > n_ops / 100 && sum->n_gone > n_ops / 100 && sum->n_begun > 0);
}

/* PAGEDKV_PREFIX_OPS: how many operations in all. */
static void test_random_operations(void **state)
{
    (void)state;
    static const pkv_hash    hashes[N_HASHES] = {XXH3_64bits_withSeed, prefix_hash_same,
                                                 prefix_hash_two_bits};
    static const char *const names[N_HASHES] = {"XXH3", "one value", "two bits"};
    const char              *asked = getenv("PAGEDKV_PREFIX_OPS");
    const int64_t            n_ops = asked != NULL ? atoll(asked) : 162000;
    /* Many shapes rather than long runs: 36 of them, and the same again with other numbers. */
    const int64_t            n_runs = n_ops / (1500 * N_HASHES) + 1;
    totals                   sum = {0};
    watch_faults();
    for (int64_t i = 0; i < n_runs; i++) {
        rng          r = {(uint64_t)i};
        prefix_shape shape = make_shape((int)(i % 3), (int)(i % 4), (int)((i + i / 12) % 3), &r);
        uint64_t     digests[N_HASHES];
        for (int h = 0; h < N_HASHES; h++) {
            shape.hash = hashes[h];
            digests[h] = run_random(&shape, names[h], (uint64_t)i, n_ops / (n_runs * N_HASHES) + 1,
                                    &sum);
            expect_that(digests[h] == digests[0]);
        }
    }
    if (n_ops >= 100000) {
        check_totals(&sum, n_ops);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_operations),
    };
    return cmocka_run_group_tests_name("prefix", tests, NULL, NULL);
}
