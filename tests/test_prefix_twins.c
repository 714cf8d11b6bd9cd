/*
 * The prefix index by hand: equal pages, however many; and the longest hit of groups
 * with windows against its definition, over random pages.
 */
#include "prefix_story.h"

enum { S = 4, N_ALLOCATORS = 3 };

/* ---- equal pages ----------------------------------------------------------- */

/* Equal pages one by one into the pool, each published. */
static void publish_equal(prefix_world *w, int32_t group, const int32_t *tokens, int32_t *pages,
                          int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        prefix_world_alloc(w, -1, 0, &pages[i], 1);
        const prefix_call call = {group, -1, 5, tokens, &pages[i], 1};
        expect_number(prefix_world_publish(w, &call), PKV_OK);
    }
}

static void shuffle(int32_t *pages, int64_t n, rng *r)
{
    for (int64_t i = n; i-- > 1;) {
        const int64_t j = rng_range(r, 0, i);
        const int32_t page = pages[i];
        pages[i] = pages[j];
        pages[j] = page;
    }
}

/* They go in any order, one each of two groups by turns: found while any is left in both. */
static void test_equal_pages_go(void **state)
{
    (void)state;
    enum { N = 40 };
    for (uint64_t seed = 0; seed < 60; seed++) {
        const pkv_prefix_group window = {2 * S, 0};
        prefix_shape           shape = story_shape((int32_t)(seed % N_ALLOCATORS), 3 * N, S,
                                                   &window, 1);
        prefix_world           w;
        rng                    r = {seed};
        int32_t                tokens[2 * S], pages[2][N];
        note_case("equal pages go", seed, "in any order");
        shape.max_events = 10 * N;
        shape.hash = seed % 2 == 0 ? prefix_hash_fnv : prefix_hash_same;
        prefix_world_init(&w, &shape);
        story_tokens(tokens, 2 * S, 1);
        for (int32_t g = 0; g < 2; g++) {
            publish_equal(&w, g, tokens, pages[g], N);
            shuffle(pages[g], N, &r);
        }
        prefix_world_compare(&w, true);
        for (int64_t i = 0; i < N; i++) {
            for (int32_t g = 0; g < 2; g++) {
                expect_number(story_find(&w, 5, tokens, 2 * S), i + 1 < N || g == 0);
                if (rng_range(&r, 0, 1) == 0) {
                    prefix_world_drop(&w, &pages[g][i], 1);
                    prefix_world_forget(&w, &pages[g][i], 1);
                } else {
                    prefix_world_keep(&w, &pages[g][i], 1, false);
                }
                prefix_world_compare(&w, true);
            }
            if (pkv_pool_owners(w.pool, pages[0][i]) > 0) { /* it comes back, as the newest */
                const prefix_call call = {0, -1, 5, tokens, &pages[0][i], 1};
                expect_number(prefix_world_publish(&w, &call), PKV_OK);
                prefix_world_keep(&w, &pages[0][i], 1, false);
            }
        }
        expect_number(story_find(&w, 5, tokens, 2 * S), 0);
        prefix_world_events(&w, 10 * N);
        story_over(&w);
    }
}

/* A reservation takes them from the oldest one on: another is found while one is left. */
static void test_equal_pages_inside_a_reservation(void **state)
{
    (void)state;
    enum { N = 50 };
    for (int32_t a = 0; a < N_ALLOCATORS; a++) {
        for (int committed = 0; committed < 2; committed++) {
            prefix_shape shape = story_shape(a, N, S, NULL, 0);
            prefix_world w;
            int32_t      tokens[2 * S], pages[N], page;
            note_case("equal pages", 0, "inside a reservation, allocator %d", (int)a);
            prefix_world_init(&w, &shape);
            story_tokens(tokens, 2 * S, 1);
            publish_equal(&w, 0, tokens, pages, N);
            prefix_world_drop(&w, pages, N);
            prefix_world_reserve(&w);
            for (int64_t i = 0; i < N; i++) {
                expect_number(story_find(&w, 5, tokens, 2 * S), 1);
                prefix_world_alloc(&w, -1, 0, &page, 1);
            }
            expect_number(story_find(&w, 5, tokens, 2 * S), 0);
            prefix_world_compare(&w, true);
            if (committed) {
                prefix_world_commit(&w);
            } else {
                prefix_world_release(&w);
            }
            expect_number(story_find(&w, 5, tokens, 2 * S), !committed);
            story_over(&w);
        }
    }
}

/*
 * Many more than the model could follow: a pool of nothing but equal pages, which are
 * evicted one by one while others like them come.  What each costs does not grow, or
 * this would take minutes.
 */
static void test_very_many_equal_pages(void **state)
{
    (void)state;
    enum { N = 30000, ROUNDS = 4 };
    for (int32_t a = 0; a < N_ALLOCATORS; a++) {
        pkv_pool_config   of_pool = {sizeof of_pool, N, a, 0};
        pkv_prefix_config config = {.struct_size = sizeof config, .page_size = S, .n_groups = 1,
                                    .max_events = 10, .hash = prefix_hash_fnv};
        pkv_pool         *pool = NULL;
        pkv_prefix       *prefix = NULL;
        pkv_prefix_event  events[10];
        int32_t           tokens[2 * S], page, found;
        int64_t           n, n_lost;
        pkv_error         err;
        note_case("very many equal pages", 0, "allocator %d", (int)a);
        story_tokens(tokens, 2 * S, 1);
        expect_ok(pkv_pool_create(&of_pool, NULL, &pool, &err), &err);
        expect_ok(pkv_prefix_create(&config, pool, NULL, &prefix, &err), &err);
        for (int64_t i = 0; i < ROUNDS * N; i++) {
            pkv_prefix_hit hit;
            expect_ok(pkv_prefix_find(prefix, 0, tokens, 2 * S, &found, 1, &hit, &err), &err);
            expect_number(hit.n_pages, i > 0);
            expect_ok(pkv_pool_alloc(pool, 1, -1, 0, &page, &err), &err);
            expect_ok(pkv_prefix_publish(prefix, 0, 0, -1, tokens, &page, 1, &err), &err);
            expect_ok(pkv_pool_free(pool, &page, 1, &err), &err);
        }
        expect_ok(pkv_prefix_check(prefix, &err), &err);
        expect_ok(pkv_prefix_clear(prefix, &err), &err);
        expect_ok(pkv_prefix_check(prefix, &err), &err);
        expect_ok(pkv_prefix_events(prefix, events, 10, &n, &n_lost, &err), &err);
        expect_that(n == 1 && events[0].kind == PKV_PREFIX_CLEARED && n_lost == 0);
        pkv_prefix_destroy(prefix);
        pkv_pool_destroy(pool);
    }
}

/* Of the words that a ring has each becomes any other number, in the ring and out of it. */
static void test_check_finds_wrong_rings(void **state)
{
    (void)state;
    enum { N = 4, P = 7 }; /* equal pages; and another one, and blank ones */
    const pkv_hash hashes[] = {prefix_hash_fnv, prefix_hash_same};
    for (int h = 0; h < 2; h++) {
        prefix_shape shape = story_shape(PKV_POOL_FIFO, P, S, NULL, 0);
        prefix_world w;
        int32_t      tokens[2 * S], pages[N + 1];
        int          n_words = 0;
        pkv_error    err;
        note_case("rings", 0, "hash %d", h);
        shape.hash = hashes[h];
        shape.max_events = 0;
        prefix_world_init(&w, &shape);
        story_tokens(tokens, 2 * S, 100);
        publish_equal(&w, 0, tokens, pages, N);
        publish_equal(&w, 0, tokens + S, pages + N, 1);
        for (size_t i = w.bytes[1] / 2; i < w.bytes[1]; i += sizeof(int32_t)) {
            unsigned char *at = w.memory[1] + i;
            int32_t        ring[2 * P], word;
            const int32_t  expected[2 * P] = {1, 3, 2, 0, 3, 1, 0, 2, 4, 4, 5, 5, 6, 6};
            if (i + sizeof ring > w.bytes[1] || memcmp(at, expected, sizeof ring) != 0) {
                continue;
            }
            for (size_t k = 0; k < 2 * P; k++, n_words++) {
                memcpy(&word, at + k * sizeof word, sizeof word);
                for (int32_t to = -4; to <= P; to++) {
                    memcpy(at + k * sizeof word, &to, sizeof to);
                    expect_number(pkv_prefix_check(w.prefix, &err),
                                  to == word ? PKV_OK : PKV_E_CORRUPT);
                }
                memcpy(at + k * sizeof word, &word, sizeof word);
            }
            /* Two rings of two; one with a page that is not equal, one with a blank one; a ring of
               blank ones; a ring of three and one alone.  All are closed. */
            const int32_t others[][2 * P] = {
                {1, 1, 0, 0, 3, 3, 2, 2, 4, 4, 5, 5, 6, 6},
                {1, 4, 2, 0, 3, 1, 4, 2, 0, 3, 5, 5, 6, 6},
                {1, 5, 2, 0, 3, 1, 5, 2, 4, 4, 0, 3, 6, 6},
                {1, 3, 2, 0, 3, 1, 0, 2, 4, 4, 6, 6, 5, 5},
                {1, 2, 2, 0, 0, 1, 3, 3, 4, 4, 5, 5, 6, 6},
            };
            for (size_t k = 0; k < sizeof others / sizeof others[0]; k++) {
                memcpy(at, others[k], sizeof others[k]);
                expect_number(pkv_prefix_check(w.prefix, &err), PKV_E_CORRUPT);
            }
            memcpy(at, expected, sizeof expected);
        }
        expect_number(n_words, 2 * P);
        story_over(&w);
    }
}

/*
 * What says of a page that another stands for it becomes any other number: none stands
 * there for it then, or two do.
 */
static void test_check_finds_wrong_marks(void **state)
{
    (void)state;
    enum { P = 6 };
    prefix_shape shape = story_shape(PKV_POOL_FIFO, P, S, NULL, 0);
    prefix_world w;
    int32_t      tokens[2 * S], pages[P];
    int          n_marks = 0;
    pkv_error    err;
    note_case("marks", 0, "of twins");
    shape.max_events = 0;
    prefix_world_init(&w, &shape);
    story_tokens(tokens, 2 * S, 100);
    publish_equal(&w, 0, tokens, pages, 4);
    publish_equal(&w, 0, tokens + S, pages + 4, 1);
    for (size_t i = 0; i < w.bytes[1]; i += sizeof(int32_t)) {
        unsigned char *at = w.memory[1] + i;
        int32_t        word;
        memcpy(&word, at, sizeof word);
        for (int32_t to = -5; word == -4 && to <= P; to++) {
            memcpy(at, &to, sizeof to);
            expect_number(pkv_prefix_check(w.prefix, &err), to == word ? PKV_OK : PKV_E_CORRUPT);
        }
        memcpy(at, &word, sizeof word);
        n_marks += word == -4;
    }
    expect_number(n_marks, 3);
    story_over(&w);
}

/* ---- the longest hit --------------------------------------------------------- */

enum { LONGEST = 48 };

/* Does a hit of n pages need page i of this group?  Some token behind it reads one of its. */
static bool needs(const pkv_prefix_group *w, int64_t i, int64_t n)
{
    for (int64_t at = i * S; at < (i + 1) * S; at++) {
        if (w->window_tokens == 0 || at < w->sink_tokens || at > n * S - w->window_tokens) {
            return true;
        }
    }
    return false;
}

static int64_t longest(const pkv_prefix_config *c, bool there[][LONGEST])
{
    for (int64_t n = LONGEST; n > 0; n--) {
        bool good = true;
        for (int32_t g = 0; g < c->n_groups; g++) {
            for (int64_t i = 0; i < n; i++) {
                good = good && (there[g][i] || (g > 0 && !needs(&c->groups[g], i, n)));
            }
        }
        if (good) {
            return n;
        }
    }
    return 0;
}

static pkv_prefix_config draw_config(rng *r)
{
    pkv_prefix_config c = {.struct_size = sizeof c, .page_size = S,
                           .n_groups = (int32_t)rng_range(r, 1, PKV_MAX_GROUPS),
                           .hash = prefix_hash_fnv};
    for (int32_t g = 1; g < c.n_groups; g++) {
        const int64_t most = rng_range(r, 0, 1) ? 4 * S : LONGEST * S;
        c.groups[g].window_tokens = rng_range(r, 0, 7) == 0 ? 0 : rng_range(r, 1, most);
        c.groups[g].sink_tokens = rng_range(r, 0, 1) ? 0 : rng_range(r, 1, 3 * S);
    }
    return c;
}

/* One prompt, of whose pages each group has some: few are missing, or most, or stretches. */
static int64_t run_longest(uint64_t seed)
{
    rng                     r = {seed};
    const pkv_prefix_config c = draw_config(&r);
    const pkv_pool_config   of_pool = {sizeof of_pool, PKV_MAX_GROUPS * LONGEST, 0, 0};
    const int64_t           rarely = rng_range(&r, 2, 60);
    pkv_pool               *pool = NULL;
    pkv_prefix             *prefix = NULL;
    bool                    there[PKV_MAX_GROUPS][LONGEST];
    int32_t                 tokens[LONGEST * S + 1], pages[PKV_MAX_GROUPS][LONGEST];
    int32_t                 found[PKV_MAX_GROUPS * LONGEST];
    pkv_prefix_hit          hit;
    pkv_error               err;
    note_case("longest hit", seed, "%d groups", (int)c.n_groups);
    story_tokens(tokens, LONGEST * S + 1, 0);
    expect_ok(pkv_pool_create(&of_pool, NULL, &pool, &err), &err);
    expect_ok(pkv_prefix_create(&c, pool, NULL, &prefix, &err), &err);
    for (int32_t g = 0; g < c.n_groups; g++) {
        expect_ok(pkv_pool_alloc(pool, LONGEST, -1, 0, pages[g], &err), &err);
        expect_ok(pkv_prefix_publish(prefix, g, 0, -1, tokens, pages[g], LONGEST, &err), &err);
    }
    for (int32_t g = 0; g < c.n_groups; g++) {
        bool is_there = true;
        for (int64_t i = 0; i < LONGEST; i++) {
            const int64_t in_a_row = rarely % 2 ? 3 : 1;
            is_there = rng_range(&r, 0, in_a_row) == 0 || in_a_row == 1
                           ? rng_range(&r, 0, g == 0 ? 10 * rarely : rarely) > 0
                           : is_there;
            there[g][i] = is_there;
            if (!is_there) {
                expect_ok(pkv_pool_keep(pool, &pages[g][i], 1, 0, &err), &err);
            }
        }
    }
    expect_ok(pkv_prefix_find(prefix, 0, tokens, LONGEST * S + 1, found, LONGEST, &hit, &err),
              &err);
    const int64_t n = longest(&c, there);
    expect_number(hit.n_pages, n);
    for (int32_t g = 0; g < c.n_groups; g++) {
        for (int64_t i = 0; i < n; i++) {
            expect_number(found[g * LONGEST + i],
                          g == 0 || needs(&c.groups[g], i, n) ? pages[g][i] : -1);
        }
    }
    pkv_prefix_destroy(prefix);
    pkv_pool_destroy(pool);
    return n;
}

static void test_longest_hit(void **state)
{
    (void)state;
    enum { RUNS = 6000 };
    int64_t n_of[LONGEST + 1] = {0}, n_lengths = 0;
    for (uint64_t seed = 0; seed < RUNS; seed++) {
        n_of[run_longest(seed)]++;
    }
    for (int64_t n = 0; n <= LONGEST; n++) {
        n_lengths += n_of[n] > RUNS / 500;
    }
    expect_that(n_of[0] < RUNS / 2 && n_lengths > LONGEST / 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_equal_pages_go),
        cmocka_unit_test(test_equal_pages_inside_a_reservation),
        cmocka_unit_test(test_very_many_equal_pages),
        cmocka_unit_test(test_check_finds_wrong_rings),
        cmocka_unit_test(test_check_finds_wrong_marks),
        cmocka_unit_test(test_longest_hit),
    };
    return cmocka_run_group_tests_name("prefix_twins", tests, NULL, NULL);
}
