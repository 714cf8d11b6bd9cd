/*
 * Sequences against a model that writes (seq_model.h): random operations on many
 * shapes.  test_seq_scenarios.c and test_seq_prefix.c have what was thought of,
 * test_seq_refusals.c what is refused, test_seq_threads.c threads.
 */
#include "seq_model.h"

enum { N_SIZES = 4, N_ALLOCATORS = 3, N_WORLDS = N_SIZES * SEQ_GROUPS * N_ALLOCATORS * 2 };

static int64_t draw(void *user, int64_t min, int64_t max)
{
    return rng_range(user, min, max);
}

/* World i: every page size, number of groups and allocator, with a good hash and a bad one. */
static seq_shape shape_of(int64_t i, rng *r)
{
    static const int64_t sizes[N_SIZES] = {1, 3, 16, 33};
    const int64_t        S = sizes[i % N_SIZES];
    const int32_t        n_groups = (int32_t)(i / N_SIZES % SEQ_GROUPS) + 1;
    seq_shape            shape = {.page_size = S, .n_groups = n_groups};
    shape.bad_hash = i >= N_WORLDS / 2;
    shape.allocator = (int32_t)(i / (N_SIZES * SEQ_GROUPS) % N_ALLOCATORS);
    shape.n_pages = rng_range(r, 6, 24) * (n_groups + 1);
    shape.max_seqs = rng_range(r, 3, 12);
    shape.groups[1].window_tokens = rng_range(r, 1, 3 * S + 2);
    shape.groups[1].sink_tokens = rng_range(r, 0, S + 1);
    shape.groups[2].window_tokens = rng_range(r, 1, S + 1);
    return shape;
}

static void add_counts(seq_counts *sum, const seq_world *w)
{
    pkv_pool_counts pool = {.struct_size = sizeof pool};
    const int64_t  *from = (const int64_t *)&w->counts;
    int64_t        *to = (int64_t *)sum;
    for (size_t i = 0; i < sizeof *sum / sizeof *to; i++) {
        to[i] += from[i];
    }
    expect_ok(pkv_pool_stats(w->pool, &pool, NULL), NULL);
    sum->n_evictions += pool.n_evictions;
}

static void run_world(int64_t i, int64_t n_ops, seq_counts *sum)
{
    const uint64_t seed = (uint64_t)i + 1;
    rng            r = {seed};
    seq_shape      shape = shape_of(i, &r);
    seq_world      w;
    seq_world_init(&w, &shape, draw, &r);
    for (int64_t op = 0; op < n_ops; op++) {
        note_case("random", seed, "S %lld, %d groups, allocator %d, P %lld, operation %lld",
                  (long long)shape.page_size, shape.n_groups, shape.allocator,
                  (long long)shape.n_pages, (long long)op);
        seq_world_step(&w);
    }
    add_counts(sum, &w);
    seq_world_free(&w);
}

/* PAGEDKV_SEQ_OPS: how many operations in all. */
static void test_random(void **state)
{
    (void)state;
    const char   *asked = getenv("PAGEDKV_SEQ_OPS");
    const int64_t n_ops = asked != NULL ? atoll(asked) : 108000;
    seq_counts    sum = {0};
    watch_faults();
    for (int64_t i = 0; i < N_WORLDS; i++) {
        run_world(i, n_ops / N_WORLDS, &sum);
    }
    print_message("%lld operations: %lld commits, %lld releases, %lld without room, %lld out of "
                  "range, %lld copies, %lld hits of %lld pages, %lld published, %lld evicted\n",
                  (long long)n_ops, (long long)sum.n_commits, (long long)sum.n_releases,
                  (long long)sum.n_no_pages, (long long)sum.n_out_of_range,
                  (long long)sum.n_copies, (long long)sum.n_hits, (long long)sum.n_hit_pages,
                  (long long)sum.n_published, (long long)sum.n_evictions);
    if (n_ops < 30000) {
        return; /* too few to have done everything often */
    }
    for (int k = 0; k < SEQ_KINDS; k++) {
        assert_true(sum.n_of_kind[k] >= n_ops / 1000);
    }
    assert_true(sum.n_commits > n_ops / 20 && sum.n_releases > n_ops / 100 &&
                sum.n_no_pages > n_ops / 100 && sum.n_out_of_range > n_ops / 1000 &&
                sum.n_copies > n_ops / 40 && sum.n_hits > n_ops / 100 &&
                sum.n_published > n_ops / 50 && sum.n_evictions > n_ops / 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_random)};
    return cmocka_run_group_tests_name("sequences", tests, NULL, NULL);
}
