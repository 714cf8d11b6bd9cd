/*
 * The pool: random operations against a model, reservations that leave no trace,
 * and where pages lie.  test_pool_refusals.c has what is refused.
 */
#include "pool_model.h"

#include <pthread.h>
#include <string.h>

static const int64_t SIZES[] = {1, 2, 63, 64, 65, 1023, 1024, 1025, 5000};
enum { N_SIZES = sizeof SIZES / sizeof SIZES[0], N_ALLOCATORS = 3, ROOM = 5000 };
static const char *const NAMES[N_ALLOCATORS] = {"extent", "lifo", "fifo"};

static int64_t draw(void *user, int64_t min, int64_t max)
{
    return rng_range(user, min, max);
}

/* ---- random operations --------------------------------------------------- */

/* Any kind, with few reservations; the pool is filled and emptied by turns. */
static int draw_kind(pool_world *w)
{
    static const char often[] = {POOL_ALLOC, POOL_ALLOC, POOL_ALLOC, POOL_ALLOC, POOL_FREE,
                                 POOL_FREE,  POOL_FREE,  POOL_KEEP,  POOL_KEEP,  POOL_SHARE};
    static const char inside[] = {POOL_ALLOC, POOL_ALLOC, POOL_ALLOC,  POOL_SHARE,
                                  POOL_SHARE, POOL_SHARE, POOL_COMMIT, POOL_RELEASE};
    int64_t drawn = draw(w->user, 0, 33);
    w->n_drawn++;
    if (drawn >= 32) {
        return POOL_LOST;
    }
    if (w->model.reserving && drawn < 28) {
        return inside[drawn % 8];
    }
    if (drawn >= 20) {
        return (int)(drawn < 28 ? drawn - 20 : drawn - 28 + POOL_FREE);
    }
    bool is_full = pool_model_count(&w->model).n_used == w->model.n_pages;
    bool drains = is_full || w->n_drawn % 768 >= 512;
    return often[drawn / 2] == POOL_ALLOC && drains && drawn > 0 ? POOL_FREE : often[drawn / 2];
}

static void run_random(int32_t allocator, int64_t n_pages, int64_t n_ops, int64_t *n_done,
                       int64_t *n_evictions)
{
    const uint64_t seed = (uint64_t)(allocator * 10000 + n_pages);
    rng            r = {seed};
    pool_world     w;
    pool_world_init(&w, allocator, n_pages, draw, &r);
    for (int64_t i = 0; i < n_ops; i++) {
        note_case(NAMES[allocator], seed, "P %lld, operation %lld", (long long)n_pages,
                  (long long)i);
        pool_world_step(&w, draw_kind(&w));
        pool_world_compare(&w, i % 64 == 0 || i + 1 == n_ops);
    }
    for (int k = 0; k < 2 * POOL_KINDS; k++) {
        n_done[k] += w.n_done[k];
    }
    *n_evictions += w.model.n_evictions;
    pool_world_free(&w);
}

/* PAGEDKV_POOL_OPS: how many operations in all. */
static void test_random_operations(void **state)
{
    (void)state;
    const char *asked = getenv("PAGEDKV_POOL_OPS");
    int64_t     n_ops = asked != NULL ? atoll(asked) : 135000;
    int64_t     n_done[2 * POOL_KINDS] = {0};
    watch_faults();
    for (int32_t a = 0; a < N_ALLOCATORS; a++) {
        int64_t n_evictions = 0;
        for (int s = 0; s < N_SIZES; s++) {
            run_random(a, SIZES[s], n_ops / (N_ALLOCATORS * N_SIZES), n_done, &n_evictions);
        }
        assert_true(n_evictions > 0);
    }
    for (int k = 0; k < 2 * POOL_KINDS; k++) {
        assert_true(n_done[k] > n_ops / 1000); /* every kind was done and was refused */
    }
}

/* ---- reservations leave no trace ----------------------------------------- */

static void step_both(pool_world *a, pool_world *b, int kind)
{
    size_t n_bytes;
    pool_world_step(a, kind);
    pool_world_step(b, kind);
    assert_int_equal(a->status, b->status);
    assert_int_equal(a->n, b->n);
    n_bytes = (size_t)a->n * sizeof *a->pages;
    expect_same_bytes("pages", a->pages, b->pages, n_bytes);
    pool_world_compare(a, false);
    pool_world_compare(b, false);
}

static void reserve_and_release(pool_world *w, rng *r)
{
    pool_world_step(w, POOL_RESERVE);
    for (int64_t i = rng_range(r, 1, 60); i > 0; i--) {
        pool_world_step(w, rng_range(r, 0, 2) > 0 ? POOL_ALLOC : POOL_SHARE);
        pool_world_compare(w, i == 1);
    }
    pool_world_step(w, POOL_RELEASE);
    pool_world_compare(w, true);
}

static void check_release(int32_t allocator, int64_t n_pages, uint64_t seed)
{
    rng        r = {seed}, same = {seed};
    pool_world w, untouched;
    pool_world_init(&w, allocator, n_pages, draw, &r);
    pool_world_init(&untouched, allocator, n_pages, draw, &same);
    const int n_rounds = n_pages < 5000 ? 6 : 2;
    for (int round = 0; round < n_rounds; round++) {
        note_case(NAMES[allocator], seed, "P %lld, round %d", (long long)n_pages, round);
        for (int i = 0; i < 250 || w.model.reserving; i++) {
            pool_world_step(&w, draw_kind(&w));
        }
        pool_world_copy(&untouched, &w);
        for (int i = 0; i < 3; i++) {
            reserve_and_release(&w, &r);
        }
        same = r;
        for (int i = 0; i < 150; i++) {
            int kind = draw_kind(&w);
            assert_int_equal(draw_kind(&untouched), kind);
            step_both(&w, &untouched, kind);
        }
    }
    pool_world_free(&w);
    pool_world_free(&untouched);
}

static void test_release_leaves_no_trace(void **state)
{
    (void)state;
    watch_faults();
    for (int32_t a = 0; a < N_ALLOCATORS; a++) {
        for (int s = 0; s < N_SIZES; s++) {
            check_release(a, SIZES[s], (uint64_t)(1000 * a + s));
        }
        check_release(a, 20 * 1024, (uint64_t)a);
    }
}

/* Also in the middle of a reservation: the copy goes on where the first one was. */
static void test_copies_are_pools(void **state)
{
    (void)state;
    for (int32_t a = 0; a < N_ALLOCATORS; a++) {
        rng        r = {77};
        pool_world w, copy;
        note_case(NAMES[a], 77, "copy");
        pool_world_init(&w, a, 1025, draw, &r);
        pool_world_init(&copy, a, 1025, draw, &r);
        for (int i = 0; i < 500 || !w.model.reserving; i++) {
            pool_world_step(&w, draw_kind(&w));
        }
        pool_world_step(&w, POOL_ALLOC);
        pool_world_copy(&copy, &w);
        memset(w.memory, 0xFF, (size_t)w.bytes);
        w.pool = NULL;
        pool_world_step(&copy, POOL_RELEASE);
        for (int i = 0; i < 500; i++) {
            pool_world_step(&copy, draw_kind(&copy));
            pool_world_compare(&copy, i % 16 == 0);
        }
        pool_world_free(&w);
        pool_world_free(&copy);
    }
}

/* ---- orders, by hand ----------------------------------------------------- */

static pkv_pool *make_pool(int32_t allocator, int64_t n_pages)
{
    pkv_pool_config config = {sizeof config, n_pages, allocator, 0};
    pkv_pool       *pool = NULL;
    pkv_error       err;
    expect_ok(pkv_pool_create(&config, NULL, &pool, &err), &err);
    return pool;
}

static void take(pkv_pool *pool, int64_t n, int32_t after, int64_t room, int32_t *pages)
{
    pkv_error err;
    expect_ok(pkv_pool_alloc(pool, n, after, room, pages, &err), &err);
}

static void give(pkv_pool *pool, const int32_t *pages, int64_t n)
{
    pkv_error err;
    expect_ok(pkv_pool_free(pool, pages, n, &err), &err);
}

static void expect_next(pkv_pool *pool, const int32_t *expected, int64_t n)
{
    int32_t found[16];
    take(pool, n, -1, 0, found);
    expect_same_bytes("pages", found, expected, (size_t)n * sizeof *found);
}

static int64_t longest(const pkv_pool *pool)
{
    pkv_pool_counts counts = {.struct_size = sizeof counts};
    pkv_error       err;
    expect_ok(pkv_pool_stats(pool, &counts, &err), &err);
    return counts.largest_extent;
}

/* Page 1 has two owners: it enters the queue where the second one leaves. */
static void test_orders(void **state)
{
    (void)state;
    const int32_t first[] = {0, 1, 2, 3, 4, 5}, freed[] = {1, 4, 0, 1, 2};
    const int32_t next[N_ALLOCATORS][6] = {
        {4, 0, 1, 2}, /* cached, the oldest first */
        {2, 1, 0, 4},
        {4, 0, 1, 2},
    };
    for (int32_t a = 0; a < N_ALLOCATORS; a++) {
        pkv_pool *pool = make_pool(a, 6);
        pkv_error err;
        note_case(NAMES[a], 0, "order");
        expect_next(pool, first, 6);
        expect_ok(pkv_pool_share(pool, first + 1, 1, &err), &err);
        expect_ok(pkv_pool_keep(pool, first, 6, 1, &err), &err);
        give(pool, freed, 5);
        for (int i = 0; i < 4; i++) {
            expect_next(pool, next[a] + i, 1);
        }
        pkv_pool_destroy(pool);
    }
}

/* Pages of a sequence that was freed from its end come back rising. */
static void test_evicted_pages_rise(void **state)
{
    (void)state;
    const int32_t rising[] = {2, 3, 4, 5};
    const int32_t falling[] = {5, 4, 3, 2};
    int32_t       pages[8];
    pkv_pool     *pool = make_pool(PKV_POOL_EXTENT, 8);
    pkv_error     err;
    take(pool, 8, -1, 0, pages);
    expect_ok(pkv_pool_keep(pool, rising, 4, 1, &err), &err);
    give(pool, falling, 4);
    expect_next(pool, rising, 4);
    pkv_pool_destroy(pool);
}

/* ---- extents ------------------------------------------------------------- */

/* More than a block, and then page after page while others grow elsewhere. */
static void test_growth_is_adjacent(void **state)
{
    (void)state;
    pkv_pool *pool = make_pool(PKV_POOL_EXTENT, 8192);
    int32_t   last[4], page;
    static int32_t many[3000];
    take(pool, 3000, -1, 300, many);
    for (int32_t i = 0; i < 3000; i++) {
        assert_int_equal(many[i], many[0] + i);
    }
    for (int s = 0; s < 4; s++) {
        take(pool, 1, -1, 300, &last[s]);
    }
    for (int i = 0; i < 250; i++) {
        for (int s = 0; s < 4; s++) {
            take(pool, 1, last[s], 300 - i, &page);
            assert_int_equal(page, last[s] + 1);
            last[s] = page;
        }
    }
    pkv_pool_destroy(pool);
}

static void test_blocks_join(void **state)
{
    (void)state;
    static int32_t pages[ROOM];
    pkv_pool      *pool = make_pool(PKV_POOL_EXTENT, ROOM);
    int32_t        last = 1020;
    take(pool, ROOM, -1, 0, pages);
    for (int32_t i = 0; i < ROOM; i++) {
        assert_int_equal(pages[i], i); /* an empty pool is one run */
    }
    give(pool, pages + 1021, 3000);
    assert_int_equal(longest(pool), 3000);
    take(pool, 2500, last, 0, pages);
    for (int32_t i = 0; i < 2500; i++) {
        assert_int_equal(pages[i], last + 1 + i);
    }
    pkv_pool_destroy(pool);
}

static void test_runs_join_in_any_order(void **state)
{
    (void)state;
    static int32_t pages[ROOM];
    rng            r = {5};
    pkv_pool      *pool = make_pool(PKV_POOL_EXTENT, ROOM);
    take(pool, ROOM, -1, 7, pages);
    assert_int_equal(longest(pool), 0);
    for (int32_t i = ROOM - 1; i > 0; i--) {
        int64_t j = rng_range(&r, 0, i);
        int32_t page = pages[i];
        pages[i] = pages[j];
        pages[j] = page;
    }
    for (int32_t i = 0; i < ROOM; i++) {
        give(pool, pages + i, 1);
    }
    assert_int_equal(longest(pool), ROOM);
    pkv_pool_destroy(pool);
}

static void test_room_leaves_gaps(void **state)
{
    (void)state;
    pkv_pool *pool = make_pool(PKV_POOL_EXTENT, 4096);
    int32_t   first[20], second[20];
    take(pool, 20, -1, 50, first);
    take(pool, 20, -1, 50, second);
    assert_int_equal(first[19], first[0] + 19);
    assert_int_equal(second[19], second[0] + 19);
    assert_true(second[0] > first[19] + 50 || first[0] > second[19] + 50);
    pkv_pool_destroy(pool);
}

/* Holes of one page, and all of them are found; then there is none. */
static void test_all_of_it(void **state)
{
    (void)state;
    static int32_t pages[ROOM], holes[ROOM];
    pkv_pool      *pool = make_pool(PKV_POOL_EXTENT, ROOM);
    pkv_error      err;
    take(pool, ROOM, -1, 1000000, pages);
    int32_t n = 0;
    for (int32_t page = 0; page < ROOM; page += 3) {
        holes[n++] = page;
    }
    give(pool, holes, n);
    assert_int_equal(longest(pool), 1);
    take(pool, n, 0, 10, pages);
    pkv_status status = pkv_pool_alloc(pool, 1, -1, 0, pages, &err);
    expect_error(status, &err, PKV_E_NO_PAGES, PKV_RULE_NONE, -1);
    assert_true(err.value == 0 && err.limit == 1);
    for (int32_t page = 0; page < ROOM; page++) {
        assert_int_equal(pkv_pool_owners(pool, page), 1);
    }
    pkv_pool_destroy(pool);
}

/* ---- threads ------------------------------------------------------------- */

static void *read_pool(void *user)
{
    const pkv_pool *pool = user;
    for (int i = 0; i < 50; i++) {
        pkv_pool_counts counts = {.struct_size = sizeof counts};
        bool            good = pkv_pool_stats(pool, &counts, NULL) == PKV_OK &&
                    pkv_pool_check(pool, NULL) == PKV_OK && pkv_pool_owners(pool, 3) == 1;
        if (!good) {
            return NULL;
        }
    }
    return user;
}

static void *use_own_pool(void *user)
{
    rng        r = {3};
    pool_world w;
    pool_world_init(&w, PKV_POOL_EXTENT, 1000, draw, &r);
    for (int i = 0; i < 500; i++) {
        pool_world_step(&w, draw_kind(&w));
    }
    pool_world_compare(&w, true);
    pool_world_free(&w);
    return user;
}

/* Those that take the pool const, beside each other and beside another pool's. */
static void test_readers_run_together(void **state)
{
    (void)state;
    int32_t   pages[500];
    pthread_t thread[4];
    for (int32_t a = 0; a < N_ALLOCATORS; a++) {
        pkv_pool *pool = make_pool(a, 1000);
        take(pool, 500, -1, 0, pages);
        for (int i = 0; i < 4; i++) {
            assert_int_equal(pthread_create(&thread[i], NULL, i < 3 ? read_pool : use_own_pool,
                                            pool), 0);
        }
        for (int i = 0; i < 4; i++) {
            void *result = NULL;
            assert_int_equal(pthread_join(thread[i], &result), 0);
            assert_true(result == pool);
        }
        pkv_pool_destroy(pool);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random_operations),
        cmocka_unit_test(test_release_leaves_no_trace),
        cmocka_unit_test(test_copies_are_pools),
        cmocka_unit_test(test_orders),
        cmocka_unit_test(test_evicted_pages_rise),
        cmocka_unit_test(test_growth_is_adjacent),
        cmocka_unit_test(test_blocks_join),
        cmocka_unit_test(test_runs_join_in_any_order),
        cmocka_unit_test(test_room_leaves_gaps),
        cmocka_unit_test(test_all_of_it),
        cmocka_unit_test(test_readers_run_together),
    };
    return cmocka_run_group_tests_name("pool", tests, NULL, NULL);
}
