/*
 * The prefix index by hand, one group: what serving engines expect of a prefix
 * cache.  Each call is compared with the model too.
 */
#include "prefix_story.h"

enum { S = 4, N_ALLOCATORS = 3 };
static const char *const NAMES[N_ALLOCATORS] = {"extent", "lifo", "fifo"};

static void begin(prefix_world *w, int32_t allocator, int64_t n_pages, const char *what)
{
    prefix_shape shape = story_shape(allocator, n_pages, S, NULL, 0);
    note_case(NAMES[allocator], 0, "%s", what);
    prefix_world_init(w, &shape);
}

/* ---- sharing ------------------------------------------------------------- */

/* Three full pages and a partial one: who comes second shares three, the third one revives them. */
static void test_three_pages_and_a_partial_one(void **state)
{
    (void)state;
    for (int32_t a = 0; a < N_ALLOCATORS; a++) {
        prefix_world w;
        int32_t      tokens[4 * S], other[4 * S], last, found[4];
        begin(&w, a, 12, "three pages and a partial one");
        story_tokens(tokens, 4 * S, 100);
        memcpy(other, tokens, 3 * S * sizeof *tokens);
        story_tokens(other + 3 * S, S, 900);
        expect_number(story_find(&w, 0, tokens, 3 * S + 2), 0);
        story_seq first = story_compute(&w, 0, tokens, 3 * S + 2);
        prefix_world_alloc(&w, first.pages[0][2], 0, &last, 1); /* of its last tokens */

        expect_number(prefix_world_find(&w, 0, other, 3 * S + 3, found, 4), 3);
        expect_same_bytes("pages", found, first.pages[0], 3 * sizeof *found);
        prefix_world_share(&w, found, 3);
        prefix_world_alloc(&w, found[2], 0, &found[3], 1);
        for (int i = 0; i < 3; i++) {
            expect_number(pkv_pool_owners(w.pool, found[i]), 2);
        }
        prefix_world_drop(&w, &last, 1);
        story_end(&w, &first);
        prefix_world_drop(&w, &found[3], 1);
        story_end(&w, &first); /* the second one's have the same numbers */
        expect_number(pool_model_count(&w.model.pool).n_cached, 3);

        expect_number(prefix_world_find(&w, 0, tokens, 4 * S, found, 4), 3);
        expect_same_bytes("pages", found, first.pages[0], 3 * sizeof *found);
        prefix_world_share(&w, found, 3);
        expect_number(pkv_pool_owners(w.pool, found[2]), 1);
        expect_number(w.model.counts.n_hit_tokens, 6 * S);
        story_over(&w);
    }
}

/* At least the last token is computed, and a partial page is no hit. */
static void test_the_last_token_is_computed(void **state)
{
    (void)state;
    const int64_t lengths[][2] = {{0, 0},     {1, 0},         {S, 0},         {S + 1, 1},
                                  {2 * S, 1}, {2 * S - 1, 1}, {2 * S + 1, 2}, {3 * S, 2},
                                  {3 * S + 1, 3}, {3 * S + 3, 3}, {4 * S + 1, 3}};
    prefix_world w;
    int32_t      tokens[5 * S];
    begin(&w, PKV_POOL_FIFO, 10, "the last token");
    story_tokens(tokens, 5 * S, 0);
    story_compute(&w, 7, tokens, 3 * S);
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        expect_number(story_find(&w, 7, tokens, lengths[i][0]), lengths[i][1]);
    }
    story_over(&w);
}

static void test_max_pages(void **state)
{
    (void)state;
    prefix_world w;
    int32_t      tokens[5 * S], found[9];
    begin(&w, PKV_POOL_EXTENT, 10, "max_pages");
    story_tokens(tokens, 5 * S, 0);
    story_seq s = story_compute(&w, 0, tokens, 5 * S - 1);
    for (int64_t most = 0; most < 9; most++) {
        expect_number(prefix_world_find(&w, 0, tokens, 5 * S, found, most), most < 4 ? most : 4);
        expect_same_bytes("pages", found, s.pages[0],
                          (size_t)(most < 4 ? most : 4) * sizeof *found);
    }
    story_over(&w);
}

static void test_salts_never_share(void **state)
{
    (void)state;
    const uint64_t salts[] = {0, 1, 2, 3, UINT64_MAX, (uint64_t)1 << 32};
    enum { N = sizeof salts / sizeof salts[0] };
    prefix_world w;
    int32_t      tokens[3 * S], found[3];
    story_seq    s[N];
    begin(&w, PKV_POOL_LIFO, 2 * N, "salts");
    story_tokens(tokens, 3 * S, 5);
    for (int i = 0; i < N; i++) { /* ids go 1, 2, 3 ... too */
        expect_number(story_find(&w, salts[i], tokens, 3 * S), 0);
        s[i] = story_compute(&w, salts[i], tokens, 2 * S);
    }
    for (int i = 0; i < N; i++) {
        expect_number(prefix_world_find(&w, salts[i], tokens, 3 * S, found, 3), 2);
        expect_same_bytes("pages", found, s[i].pages[0], 2 * sizeof *found);
    }
    story_over(&w);
}

/* What begins in the middle of another prompt is another content. */
static void test_the_beginning_counts(void **state)
{
    (void)state;
    prefix_world w;
    int32_t      tokens[4 * S];
    begin(&w, PKV_POOL_EXTENT, 8, "the beginning");
    story_tokens(tokens, 4 * S, 1);
    story_compute(&w, 0, tokens, 4 * S);
    expect_number(story_find(&w, 0, tokens + S, 3 * S), 0);
    tokens[S - 1]++;
    expect_number(story_find(&w, 0, tokens, 4 * S), 0);
    tokens[S - 1]--;
    tokens[2 * S]++;
    expect_number(story_find(&w, 0, tokens, 4 * S), 2);
    story_over(&w);
}

/* Decoding: the page that is full is found, the next one not before it is. */
static void test_decoding_over_a_page_boundary(void **state)
{
    (void)state;
    prefix_world w;
    int32_t      tokens[4 * S], page;
    begin(&w, PKV_POOL_FIFO, 8, "decoding");
    story_tokens(tokens, 4 * S, 1);
    story_seq s = story_compute(&w, 0, tokens, S + 2);
    prefix_world_alloc(&w, s.pages[0][0], 0, &page, 1);
    expect_number(story_find(&w, 0, tokens, 3 * S), 1);
    const prefix_call full = {0, s.pages[0][0], 0, tokens + S, &page, 1};
    expect_number(prefix_world_publish(&w, &full), PKV_OK);
    expect_number(story_find(&w, 0, tokens, 3 * S), 2);
    prefix_world_alloc(&w, page, 0, &page, 1); /* the third one: used, not published */
    expect_number(story_find(&w, 0, tokens, 3 * S + 1), 2);
    story_over(&w);
}

/* ---- eviction ------------------------------------------------------------ */

/* Freed from its end, a sequence goes from its end too; all but the queue's newest first. */
static void test_a_sequence_is_evicted_from_its_end(void **state)
{
    (void)state;
    const int32_t allocators[] = {PKV_POOL_EXTENT, PKV_POOL_FIFO};
    for (int i = 0; i < 2; i++) {
        prefix_world w;
        int32_t      tokens[6 * S], page;
        begin(&w, allocators[i], 5, "eviction from the end");
        story_tokens(tokens, 6 * S, 1);
        story_seq s = story_compute(&w, 0, tokens, 5 * S);
        story_end(&w, &s);
        for (int64_t n = 5; n-- > 0;) {
            prefix_world_alloc(&w, -1, 0, &page, 1);
            expect_number(page, s.pages[0][n]);
            expect_number(story_find(&w, 0, tokens, 6 * S), n);
        }
        story_over(&w);
    }
}

/* A page with other tokens is found by these and never by the ones before. */
static void test_no_stale_hit(void **state)
{
    (void)state;
    for (int32_t a = 0; a < N_ALLOCATORS; a++) {
        prefix_world w;
        int32_t      tokens[2][3 * S], found[3];
        begin(&w, a, 2, "no stale hit");
        story_tokens(tokens[0], 3 * S, 1);
        story_tokens(tokens[1], 3 * S, 1000);
        for (int round = 0; round < 6; round++) {
            story_seq s = story_compute(&w, 0, tokens[round % 2], 2 * S);
            expect_number(story_find(&w, 0, tokens[(round + 1) % 2], 3 * S), 0);
            expect_number(prefix_world_find(&w, 0, tokens[round % 2], 3 * S, found, 3), 2);
            expect_same_bytes("pages", found, s.pages[0], 2 * sizeof *found);
            story_end(&w, &s);
        }
        expect_number(w.model.pool.n_evictions, 10);
        story_over(&w);
    }
}

/* Two cached pages are the oldest: once they are shared the admission takes others. */
static void test_a_hit_is_no_victim_of_its_own_admission(void **state)
{
    (void)state;
    for (int32_t a = 0; a < N_ALLOCATORS; a++) {
        for (int end = 0; end < 3; end++) { /* no reservation, one that is committed, or released */
            prefix_world w;
            int32_t      tokens[3 * S], other[3 * S], found[3], rest[4];
            pkv_error    err;
            begin(&w, a, 4, "the hit is no victim");
            story_tokens(tokens, 3 * S, 1);
            story_tokens(other, 3 * S, 100);
            story_seq hit = story_compute(&w, 0, tokens, 2 * S);
            story_seq old = story_compute(&w, 0, other, 2 * S);
            story_end(&w, &hit);
            story_end(&w, &old);
            if (end > 0) {
                prefix_world_reserve(&w);
            }
            expect_number(prefix_world_find(&w, 0, tokens, 3 * S, found, 3), 2);
            prefix_world_share(&w, found, 2);
            prefix_world_alloc(&w, found[1], 0, rest, 2);
            for (int i = 0; i < 2; i++) {
                expect_that(rest[i] == old.pages[0][0] || rest[i] == old.pages[0][1]);
                expect_number(pkv_pool_owners(w.pool, found[i]), 1);
            }
            expect_number(pkv_pool_alloc(w.pool, 1, -1, 0, rest + 2, &err), PKV_E_NO_PAGES);
            expect_number(story_find(&w, 0, tokens, 3 * S), 2);
            expect_number(story_find(&w, 0, other, 3 * S), 0);
            if (end == 1) {
                prefix_world_commit(&w);
            } else if (end == 2) {
                prefix_world_release(&w);
            }
            expect_number(story_find(&w, 0, tokens, 3 * S), 2);
            expect_number(story_find(&w, 0, other, 3 * S), end == 2 ? 2 : 0);
            story_over(&w);
        }
    }
}

/* A page that an open reservation took is not found; its twin is. */
static void test_a_twin_outlives_the_other(void **state)
{
    (void)state;
    for (int released = 0; released < 2; released++) {
        prefix_world w;
        int32_t      tokens[2 * S], found[2], page;
        begin(&w, PKV_POOL_FIFO, 2, "twins");
        story_tokens(tokens, 2 * S, 1);
        story_seq first = story_compute(&w, 0, tokens, S), second = story_compute(&w, 0, tokens, S);
        expect_number(w.model.held[0].id, w.model.held[1].id);
        story_end(&w, &first);
        story_end(&w, &second);
        prefix_world_reserve(&w);
        prefix_world_alloc(&w, -1, 0, &page, 1);
        expect_number(page, first.pages[0][0]);
        expect_number(prefix_world_find(&w, 0, tokens, 2 * S, found, 2), 1);
        expect_number(found[0], second.pages[0][0]);
        if (released) {
            prefix_world_release(&w);
        } else {
            prefix_world_commit(&w);
        }
        expect_number(story_find(&w, 0, tokens, 2 * S), 1);
        prefix_world_alloc(&w, -1, 0, &page, 1);
        expect_number(story_find(&w, 0, tokens, 2 * S), released);
        story_over(&w);
    }
}

static int32_t twin_of(prefix_world *w, int32_t page)
{
    int32_t   twin;
    pkv_error err;
    expect_ok(pkv_prefix_twin(w->prefix, page, &twin, &err), &err);
    return twin;
}

/* Requests that run side by side compute the same page: the newest is told of the oldest left. */
static void test_the_twin_of_the_newest_is_the_oldest(void **state)
{
    (void)state;
    prefix_world w;
    int32_t      tokens[S], page[3];
    begin(&w, PKV_POOL_FIFO, 4, "twins, oldest first");
    story_tokens(tokens, S, 1);
    for (int i = 0; i < 3; i++) {
        page[i] = story_compute(&w, 0, tokens, S).pages[0][0];
        expect_number(twin_of(&w, page[i]), i == 0 ? -1 : page[0]);
    }
    prefix_world_keep(&w, &page[0], 1, false);
    expect_number(twin_of(&w, page[0]), -1);
    expect_number(twin_of(&w, page[2]), page[1]);
    prefix_world_keep(&w, &page[1], 1, false);
    expect_number(twin_of(&w, page[2]), -1);
    story_over(&w);
}

/* ---- identity ------------------------------------------------------------ */

static uint64_t id_of(prefix_world *w, int32_t page)
{
    pkv_prefix_event e;
    pkv_error        err;
    expect_ok(pkv_prefix_page(w->prefix, page, &e, &err), &err);
    return e.id;
}

/*
 * The page in front goes, the one behind stays: it is found neither behind what took
 * the page, nor behind the same tokens in a page of later.
 */
static void test_a_child_belongs_to_its_parent(void **state)
{
    (void)state;
    prefix_world w;
    int32_t      tokens[3 * S], other[3 * S];
    begin(&w, PKV_POOL_FIFO, 6, "a parent that is gone");
    story_tokens(tokens, 3 * S, 1);
    memcpy(other, tokens, sizeof tokens);
    other[0] = 77;
    story_seq      s = story_compute(&w, 0, tokens, 2 * S);
    const int32_t  parent = s.pages[0][0], child = s.pages[0][1];
    const uint64_t id = id_of(&w, parent), of_child = id_of(&w, child);
    prefix_world_keep(&w, &parent, 1, false);
    expect_number(story_find(&w, 0, tokens, 3 * S), 0);
    prefix_call call = {0, -1, 0, other, &parent, 1};
    expect_number(prefix_world_publish(&w, &call), PKV_OK);
    expect_number(story_find(&w, 0, other, 3 * S), 1);

    story_seq again = story_compute(&w, 0, tokens, S);
    expect_that(id_of(&w, again.pages[0][0]) > of_child && of_child > id);
    expect_number(story_find(&w, 0, tokens, 3 * S), 1);
    expect_number(id_of(&w, child), of_child);
    /* It holds another content: the one behind the old parent. */
    call = (prefix_call){0, again.pages[0][0], 0, tokens + S, &child, 1};
    expect_number(prefix_world_publish(&w, &call), PKV_E_STATE);
    int32_t page;
    prefix_world_alloc(&w, -1, 0, &page, 1);
    call.pages = &page;
    expect_number(prefix_world_publish(&w, &call), PKV_OK);
    expect_that(id_of(&w, page) > id_of(&w, again.pages[0][0]));
    expect_number(story_find(&w, 0, tokens, 3 * S), 2);
    story_over(&w);
}

/* Behind a page that is gone nothing is published; behind its twin the id is the same. */
static void test_behind_a_twin(void **state)
{
    (void)state;
    prefix_world w;
    int32_t      tokens[3 * S], page, found[3];
    begin(&w, PKV_POOL_LIFO, 6, "behind a twin");
    story_tokens(tokens, 3 * S, 1);
    story_seq first = story_compute(&w, 0, tokens, S), second = story_compute(&w, 0, tokens, S);
    prefix_world_alloc(&w, -1, 0, &page, 1);
    prefix_world_keep(&w, first.pages[0], 1, false);
    prefix_call call = {0, first.pages[0][0], 0, tokens + S, &page, 1};
    expect_number(prefix_world_publish(&w, &call), PKV_E_STATE);
    call.behind = second.pages[0][0];
    expect_number(prefix_world_publish(&w, &call), PKV_OK);
    expect_number(prefix_world_find(&w, 0, tokens, 3 * S, found, 3), 2);
    expect_that(found[0] == second.pages[0][0] && found[1] == page);
    story_over(&w);
}

/* ---- clearing, and many at once ------------------------------------------ */

static void test_clear_while_pages_are_used(void **state)
{
    (void)state;
    for (int32_t a = 0; a < N_ALLOCATORS; a++) {
        prefix_world w;
        int32_t      tokens[3 * S], other[3 * S];
        begin(&w, a, 8, "clear");
        story_tokens(tokens, 3 * S, 1);
        story_tokens(other, 3 * S, 100);
        story_seq      used = story_compute(&w, 0, tokens, 2 * S);
        story_seq      cached = story_compute(&w, 0, other, 2 * S);
        const uint64_t last = id_of(&w, cached.pages[0][1]);
        story_end(&w, &cached);
        expect_number(prefix_world_clear(&w), PKV_OK);
        expect_number(story_find(&w, 0, tokens, 3 * S) + story_find(&w, 0, other, 3 * S), 0);
        expect_number(pkv_pool_owners(w.pool, used.pages[0][0]), 1);
        expect_number(pool_model_count(&w.model.pool).n_cached, 0);
        prefix_world_compare(&w, true);
        /* The same pages with the same tokens, of new weights. */
        prefix_call call = {0, -1, 0, tokens, used.pages[0], 2};
        expect_number(prefix_world_publish(&w, &call), PKV_OK);
        expect_that(id_of(&w, used.pages[0][0]) > last);
        expect_number(story_find(&w, 0, tokens, 3 * S), 2);
        expect_number(prefix_world_clear(&w), PKV_OK);
        story_end(&w, &used);
        expect_number(pool_model_count(&w.model.pool).n_blank, 8);
        prefix_world_events(&w, 100);
        story_over(&w);
    }
}

/* More than the index asks for at a time. */
static void test_many_are_lost_at_once(void **state)
{
    (void)state;
    for (int64_t n_pages = 60; n_pages <= 300; n_pages += n_pages == 60 ? 4 : 59) {
        prefix_world w;
        int32_t     *pages = test_alloc((size_t)n_pages * sizeof *pages), tokens[S];
        begin(&w, PKV_POOL_FIFO, n_pages, "many");
        prefix_world_alloc(&w, -1, 0, pages, n_pages);
        for (int64_t i = 0; i < n_pages; i++) {
            story_tokens(tokens, S, (int32_t)i);
            prefix_call call = {0, -1, 0, tokens, pages + i, 1};
            expect_number(prefix_world_publish(&w, &call), PKV_OK);
        }
        prefix_world_drop(&w, pages, n_pages);
        prefix_world_forget(&w, pages, n_pages);
        expect_number(story_find(&w, 0, tokens, S), 0);
        expect_number(w.model.counts.n_removed, n_pages);
        free(pages);
        story_over(&w);
    }
}

/* An index in the caller's memory can be copied, and goes on from there. */
static void test_a_copy_is_an_index(void **state)
{
    (void)state;
    prefix_world w;
    int32_t      tokens[3 * S];
    begin(&w, PKV_POOL_EXTENT, 6, "a copy");
    story_tokens(tokens, 3 * S, 1);
    story_seq      s = story_compute(&w, 0, tokens, 2 * S);
    unsigned char *copy = aligned_alloc(64, (size_t)w.bytes[1]);
    assert_non_null(copy);
    memcpy(copy, w.memory[1], (size_t)w.bytes[1]);
    memset(w.memory[1], 0xFF, (size_t)w.bytes[1]);
    free(w.memory[1]);
    w.memory[1] = copy;
    w.prefix = (pkv_prefix *)copy;
    prefix_world_compare(&w, true);
    story_end(&w, &s);
    prefix_world_forget(&w, &s.pages[0][1], 1);
    expect_number(story_find(&w, 0, tokens, 3 * S), 1);
    prefix_world_events(&w, 9);
    story_over(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_three_pages_and_a_partial_one),
        cmocka_unit_test(test_the_last_token_is_computed),
        cmocka_unit_test(test_max_pages),
        cmocka_unit_test(test_salts_never_share),
        cmocka_unit_test(test_the_beginning_counts),
        cmocka_unit_test(test_decoding_over_a_page_boundary),
        cmocka_unit_test(test_a_sequence_is_evicted_from_its_end),
        cmocka_unit_test(test_no_stale_hit),
        cmocka_unit_test(test_a_hit_is_no_victim_of_its_own_admission),
        cmocka_unit_test(test_a_twin_outlives_the_other),
        cmocka_unit_test(test_the_twin_of_the_newest_is_the_oldest),
        cmocka_unit_test(test_a_child_belongs_to_its_parent),
        cmocka_unit_test(test_behind_a_twin),
        cmocka_unit_test(test_clear_while_pages_are_used),
        cmocka_unit_test(test_many_are_lost_at_once),
        cmocka_unit_test(test_a_copy_is_an_index),
    };
    return cmocka_run_group_tests_name("prefix_scenarios", tests, NULL, NULL);
}
