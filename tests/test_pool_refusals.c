/* Whatever a pool refuses: the status, the index, and not one byte changed. */
#include "support.h"

#include <string.h>

enum { PAGES = 100, USED = 60, CACHED = 10 };

/*
 * Pages 0 .. 59 are used (3 twice), 60 .. 69 cached, the others blank, whatever
 * the allocator.
 */
typedef struct fixture {
    void          *block;
    unsigned char *memory, *before;
    uint64_t       bytes;
    pkv_pool      *pool;
    int32_t        allocator;
} fixture;

static fixture make(int32_t allocator)
{
    pkv_pool_config config = {sizeof config, PAGES, allocator, 0};
    fixture         f = {.allocator = allocator};
    int32_t         pages[USED + CACHED];
    const int32_t   three = 3;
    pkv_error       err;
    note_case("refusals", (uint64_t)allocator, "P %d", PAGES);
    expect_ok(pkv_pool_bytes(&config, &f.bytes, &err), &err);
    f.block = test_alloc((size_t)f.bytes + 64);
    f.before = test_alloc((size_t)f.bytes);
    f.memory = (unsigned char *)f.block + (64 - (uintptr_t)f.block % 64);
    memset(f.memory, 0x5A, (size_t)f.bytes);
    expect_ok(pkv_pool_init(&config, f.memory, f.bytes, &f.pool, &err), &err);
    expect_ok(pkv_pool_alloc(f.pool, USED + CACHED, -1, 0, pages, &err), &err);
    for (int32_t i = 0; i < USED + CACHED; i++) {
        assert_int_equal(pages[i], i);
    }
    expect_ok(pkv_pool_keep(f.pool, pages + USED, CACHED, 1, &err), &err);
    expect_ok(pkv_pool_free(f.pool, pages + USED, CACHED, &err), &err);
    expect_ok(pkv_pool_share(f.pool, &three, 1, &err), &err);
    memcpy(f.before, f.memory, (size_t)f.bytes);
    return f;
}

static void drop(fixture *f)
{
    pkv_error err;
    expect_ok(pkv_pool_check(f->pool, &err), &err);
    free(f->block);
    free(f->before);
}

/* What has been done up to here is what must not change. */
static void go_on_from_here(fixture *f)
{
    memcpy(f->before, f->memory, (size_t)f->bytes);
}

static void expect_refusal(const fixture *f, pkv_status status, const pkv_error *err,
                           pkv_status code, int32_t rule, int64_t index)
{
    expect_error(status, err, code, rule, index);
    expect_same_bytes("pool", f->memory, f->before, (size_t)f->bytes);
}

/* ---- lists of pages ------------------------------------------------------ */

enum { SHARE, FREE, KEEP, FORGET, N_CALLS };

static pkv_status call(int which, pkv_pool *pool, const int32_t *pages, int64_t n, pkv_error *err)
{
    switch (which) {
    case SHARE:
        return pkv_pool_share(pool, pages, n, err);
    case FREE:
        return pkv_pool_free(pool, pages, n, err);
    case KEEP:
        return pkv_pool_keep(pool, pages, n, 1, err);
    default:
        return pkv_pool_forget(pool, pages, n, err);
    }
}

static void test_lists(void **state)
{
    (void)state;
    watch_faults();
    for (int32_t a = PKV_POOL_EXTENT; a <= PKV_POOL_FIFO; a++) {
        fixture   f = make(a);
        pkv_error err;
        for (int which = 0; which < N_CALLS; which++) {
            const int32_t good = which == FORGET ? USED : 7;
            const int32_t foreign[] = {-1, INT32_MIN, PAGES, INT32_MAX};
            for (int i = 0; i < 4; i++) {
                const int32_t pages[] = {good, good + 1, foreign[i], good + 2};
                pkv_status    status = call(which, f.pool, pages, 4, &err);
                expect_refusal(&f, status, &err, PKV_E_RANGE, PKV_RULE_PAGE, 2);
                assert_int_equal(err.value, foreign[i]);
                assert_int_equal(err.limit, PAGES);
                assert_int_equal(call(which, f.pool, pages, 4, NULL), PKV_E_RANGE);
            }
            expect_refusal(&f, call(which, NULL, &good, 1, &err), &err, PKV_E_INVALID, 0, -1);
            expect_refusal(&f, call(which, f.pool, NULL, 1, &err), &err, PKV_E_INVALID, 0, -1);
            expect_refusal(&f, call(which, f.pool, &good, -1, &err), &err, PKV_E_INVALID, 0, -1);
            expect_refusal(&f, call(which, f.pool, &good, INT64_MIN, &err), &err, PKV_E_INVALID,
                           0, -1);
            expect_ok(call(which, f.pool, NULL, 0, &err), &err);
            expect_same_bytes("pool", f.memory, f.before, (size_t)f.bytes);
        }
        drop(&f);
    }
}

/* A call, its pages, and which of them it refuses. */
typedef struct wrong_state {
    int     which;
    int32_t pages[6];
    int64_t n, index;
} wrong_state;

static void test_states(void **state)
{
    (void)state;
    const wrong_state cases[] = {
        {SHARE, {1, 60, 70}, 3, 2},                /* blank */
        {SHARE, {99}, 1, 0},                       /* never used */
        {FREE, {70}, 1, 0},                        /* blank */
        {FREE, {1, 2, 65}, 3, 2},                  /* cached: freed already */
        {FREE, {5, 6, 5}, 3, 2},                   /* twice, and one owner */
        {FREE, {3, 4, 3, 3}, 4, 3},                /* three times, and two owners */
        {FREE, {0, 3, 59, 3, 0}, 5, 4},
        {KEEP, {1, 99}, 2, 1},                     /* blank */
        {KEEP, {60}, 1, 0},                        /* cached */
        {FORGET, {60, 61, 5}, 3, 2},               /* used */
        {FORGET, {60, 99}, 2, 1},                  /* blank */
        {FORGET, {60, 62, 61, 62}, 4, 3},          /* twice */
    };
    for (int32_t a = PKV_POOL_EXTENT; a <= PKV_POOL_FIFO; a++) {
        fixture f = make(a);
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
            const wrong_state *c = &cases[i];
            pkv_error          err;
            pkv_status         status = call(c->which, f.pool, c->pages, c->n, &err);
            expect_refusal(&f, status, &err, PKV_E_STATE, PKV_RULE_PAGE, c->index);
            assert_int_equal(err.value, c->pages[c->index]);
        }
        drop(&f);
    }
}

static void test_queries_of_no_page(void **state)
{
    (void)state;
    fixture         f = make(PKV_POOL_EXTENT);
    pkv_pool_counts counts = {.struct_size = sizeof counts};
    pkv_error       err;
    assert_int_equal(pkv_pool_owners(f.pool, -1), -1);
    assert_int_equal(pkv_pool_owners(f.pool, PAGES), -1);
    assert_int_equal(pkv_pool_owners(f.pool, INT32_MAX), -1);
    assert_int_equal(pkv_pool_owners(NULL, 0), -1);
    assert_int_equal(pkv_pool_owners(f.pool, 3), 2);
    expect_error(pkv_pool_check(NULL, &err), &err, PKV_E_INVALID, 0, -1);
    expect_error(pkv_pool_stats(NULL, &counts, &err), &err, PKV_E_INVALID, 0, -1);
    expect_error(pkv_pool_stats(f.pool, NULL, &err), &err, PKV_E_INVALID, 0, -1);
    counts.struct_size--;
    expect_error(pkv_pool_stats(f.pool, &counts, &err), &err, PKV_E_UNSUPPORTED, 0, -1);
    assert_int_equal(counts.n_pages, 0);
    drop(&f);
}

/* ---- allocation ---------------------------------------------------------- */

static void test_allocation(void **state)
{
    (void)state;
    for (int32_t a = PKV_POOL_EXTENT; a <= PKV_POOL_FIFO; a++) {
        fixture    f = make(a);
        int32_t    pages[PAGES + 1], untouched[PAGES + 1];
        pkv_error  err;
        pkv_status status;
        memset(pages, 0x77, sizeof pages);
        memcpy(untouched, pages, sizeof pages);
        for (int i = 0; i < 4; i++) { /* no pool, a negative n, no pages, a negative room */
            status = pkv_pool_alloc(i == 0 ? NULL : f.pool, i == 1 ? -1 : 1, -1, i == 3 ? -1 : 0,
                                    i == 2 ? NULL : pages, &err);
            expect_refusal(&f, status, &err, PKV_E_INVALID, PKV_RULE_NONE, -1);
        }
        const int32_t after[] = {-2, INT32_MIN, PAGES, INT32_MAX};
        for (int i = 0; i < 4; i++) {
            status = pkv_pool_alloc(f.pool, 1, after[i], 0, pages, &err);
            expect_refusal(&f, status, &err, PKV_E_RANGE, PKV_RULE_PAGE, -1);
            assert_int_equal(err.value, after[i]);
        }
        const int64_t n_free = PAGES - USED;
        const int64_t too_many[] = {n_free + 1, PAGES + 1, (int64_t)1 << 40, INT64_MAX};
        for (int i = 0; i < 4; i++) {
            status = pkv_pool_alloc(f.pool, too_many[i], 0, INT64_MAX, pages, &err);
            expect_refusal(&f, status, &err, PKV_E_NO_PAGES, PKV_RULE_NONE, -1);
            assert_true(err.value == n_free && err.limit == too_many[i]);
        }
        expect_same_bytes("pages", pages, untouched, sizeof pages);
        expect_ok(pkv_pool_alloc(f.pool, 0, -1, 0, NULL, &err), &err); /* none: good */
        expect_same_bytes("pool", f.memory, f.before, (size_t)f.bytes);
        expect_ok(pkv_pool_alloc(f.pool, n_free, 5, INT64_MAX, pages, &err), &err);
        drop(&f);
    }
}

/* ---- reservations -------------------------------------------------------- */

static void test_reservations(void **state)
{
    (void)state;
    for (int32_t a = PKV_POOL_EXTENT; a <= PKV_POOL_FIFO; a++) {
        fixture       f = make(a);
        const int32_t used = 1, cached = USED;
        int32_t       pages[PAGES];
        pkv_error     err;
        expect_refusal(&f, pkv_pool_commit(f.pool, &err), &err, PKV_E_STATE, 0, -1);
        expect_refusal(&f, pkv_pool_release(f.pool, &err), &err, PKV_E_STATE, 0, -1);
        expect_refusal(&f, pkv_pool_reserve(NULL, &err), &err, PKV_E_INVALID, 0, -1);
        expect_refusal(&f, pkv_pool_commit(NULL, &err), &err, PKV_E_INVALID, 0, -1);
        expect_refusal(&f, pkv_pool_release(NULL, &err), &err, PKV_E_INVALID, 0, -1);
        expect_ok(pkv_pool_reserve(f.pool, &err), &err);
        expect_ok(pkv_pool_alloc(f.pool, 5, -1, 0, pages, &err), &err);
        go_on_from_here(&f);
        expect_refusal(&f, pkv_pool_reserve(f.pool, &err), &err, PKV_E_STATE, 0, -1);
        expect_refusal(&f, pkv_pool_free(f.pool, &used, 1, &err), &err, PKV_E_STATE, 0, -1);
        expect_refusal(&f, pkv_pool_free(f.pool, NULL, 0, &err), &err, PKV_E_STATE, 0, -1);
        expect_refusal(&f, pkv_pool_keep(f.pool, &used, 1, 0, &err), &err, PKV_E_STATE, 0, -1);
        expect_refusal(&f, pkv_pool_forget(f.pool, &cached, 1, &err), &err, PKV_E_STATE, 0, -1);
        expect_refusal(&f, pkv_pool_alloc(f.pool, PAGES, -1, 0, pages, &err), &err,
                       PKV_E_NO_PAGES, 0, -1);
        expect_ok(pkv_pool_release(f.pool, &err), &err);
        drop(&f);
    }
}

/* Any number of shares, of one page and of all, those that it took itself too. */
static void test_reservation_remembers_all(void **state)
{
    (void)state;
    for (int32_t a = PKV_POOL_EXTENT; a <= PKV_POOL_FIFO; a++) {
        fixture       f = make(a);
        const int32_t one = 1, cached = USED;
        int32_t       pages[PAGES], all[PAGES];
        pkv_error     err;
        expect_ok(pkv_pool_reserve(f.pool, &err), &err);
        for (int i = 0; i < 30 * PAGES; i++) {
            expect_ok(pkv_pool_share(f.pool, &one, 1, &err), &err);
        }
        expect_ok(pkv_pool_share(f.pool, &cached, 1, &err), &err);
        expect_ok(pkv_pool_alloc(f.pool, 7, 2, 100, pages, &err), &err);
        expect_ok(pkv_pool_alloc(f.pool, PAGES - USED - 8, -1, 0, pages, &err), &err);
        for (int i = 0; i < 5 * PAGES; i++) {
            all[i % PAGES] = i % PAGES;
            expect_ok(pkv_pool_share(f.pool, all, i % PAGES + 1, &err), &err);
        }
        assert_int_equal(pkv_pool_owners(f.pool, 1), 1 + 30 * PAGES + 5 * (PAGES - 1));
        assert_int_equal(pkv_pool_owners(f.pool, PAGES - 1), 1 + 5);
        expect_ok(pkv_pool_check(f.pool, &err), &err);
        expect_ok(pkv_pool_release(f.pool, &err), &err);
        for (int32_t i = 0; i < PAGES; i++) {
            assert_int_equal(pkv_pool_owners(f.pool, i), i >= USED ? 0 : i == 3 ? 2 : 1);
        }
        drop(&f);
    }
}

/* ---- the list of lost pages ---------------------------------------------- */

static void test_lost(void **state)
{
    (void)state;
    for (int32_t a = PKV_POOL_EXTENT; a <= PKV_POOL_FIFO; a++) {
        fixture       f = make(a);
        const int32_t cached[] = {USED + 2, USED, USED + 7};
        int32_t       pages[PAGES], untouched[PAGES];
        int64_t       n = 77;
        pkv_error     err;
        expect_ok(pkv_pool_forget(f.pool, cached, 3, &err), &err);
        go_on_from_here(&f);
        memset(pages, 0x77, sizeof pages);
        memcpy(untouched, pages, sizeof pages);
        for (int i = 0; i < 5; i++) { /* no pool, no pages, negative numbers, nowhere to count */
            const int64_t asked = i == 2 ? -1 : i == 3 ? INT64_MIN : 1;
            pkv_status    status = pkv_pool_lost(i == 0 ? NULL : f.pool, i == 1 ? NULL : pages,
                                                 asked, i == 4 ? NULL : &n, &err);
            expect_refusal(&f, status, &err, PKV_E_INVALID, PKV_RULE_NONE, -1);
            assert_int_equal(n, 77);
        }
        expect_same_bytes("pages", pages, untouched, sizeof pages);
        expect_ok(pkv_pool_lost(f.pool, NULL, 0, &n, &err), &err); /* none: good */
        assert_int_equal(n, 0);
        expect_same_bytes("pool", f.memory, f.before, (size_t)f.bytes);
        expect_ok(pkv_pool_lost(f.pool, pages, PAGES, &n, &err), &err);
        assert_int_equal(n, 3);
        expect_same_bytes("pages", pages, cached, sizeof cached);
        expect_ok(pkv_pool_lost(f.pool, pages, PAGES, &n, &err), &err);
        assert_int_equal(n, 0);
        drop(&f);
    }
}

/* ---- the check itself ---------------------------------------------------- */

/* Of all words that a call changed, each one put back alone is found. */
static void expect_found(fixture *f)
{
    int n_words = 0;
    for (size_t i = 0; i < f->bytes; i += sizeof(uint64_t)) {
        uint64_t  word;
        pkv_error err;
        memcpy(&word, f->memory + i, sizeof word);
        if (memcmp(f->before + i, &word, sizeof word) != 0) {
            memcpy(f->memory + i, f->before + i, sizeof word);
            assert_int_equal(pkv_pool_check(f->pool, &err), PKV_E_CORRUPT);
            assert_true(err.what != NULL && err.index < PAGES);
            memcpy(f->memory + i, &word, sizeof word);
            n_words++;
        }
    }
    assert_true(n_words >= 2);
    go_on_from_here(f);
}

static void test_check_finds_each_word(void **state)
{
    (void)state;
    for (int32_t a = PKV_POOL_EXTENT; a <= PKV_POOL_FIFO; a++) {
        fixture       f = make(a);
        const int32_t page = 7;
        pkv_error     err;
        expect_ok(pkv_pool_keep(f.pool, &page, 1, 1, &err), &err);
        go_on_from_here(&f);
        expect_ok(pkv_pool_share(f.pool, &page, 1, &err), &err);
        expect_found(&f);
        expect_ok(pkv_pool_free(f.pool, &page, 1, &err), &err);
        expect_found(&f);
        expect_ok(pkv_pool_free(f.pool, &page, 1, &err), &err);
        expect_found(&f);
        expect_ok(pkv_pool_share(f.pool, &page, 1, &err), &err);
        expect_found(&f);
        drop(&f);
    }
}

/* The list of lost pages: one enters, one leaves. */
static void test_check_finds_lost_words(void **state)
{
    (void)state;
    for (int32_t a = PKV_POOL_EXTENT; a <= PKV_POOL_FIFO; a++) {
        fixture   f = make(a);
        int32_t   page;
        int64_t   n;
        pkv_error err;
        for (int32_t i = USED; i < USED + 3; i++) {
            expect_ok(pkv_pool_forget(f.pool, &i, 1, &err), &err);
            expect_found(&f);
        }
        expect_ok(pkv_pool_lost(f.pool, &page, 1, &n, &err), &err);
        assert_true(n == 1 && page == USED);
        expect_found(&f);
        drop(&f);
    }
}

/* Each word of 4 bytes that is `from` becomes `to`, alone: how often is that found, and so told? */
static int count_found(fixture *f, uint32_t from, uint32_t to, int64_t index, const char *what)
{
    int n_found = 0;
    for (size_t i = 0; i < f->bytes; i += sizeof(uint32_t)) {
        uint32_t  word;
        pkv_error err;
        memcpy(&word, f->memory + i, sizeof word);
        if (word == from) {
            memcpy(f->memory + i, &to, sizeof to);
            n_found += pkv_pool_check(f->pool, &err) == PKV_E_CORRUPT && err.index == index &&
                       strstr(err.what, what) != NULL;
            memcpy(f->memory + i, &word, sizeof word);
        }
    }
    return n_found;
}

/* Of the words that the loss of page 0 changed only one may be put back: kept again it is whole. */
static void test_check_finds_that_page_0_is_lost(void **state)
{
    (void)state;
    fixture       f = make(PKV_POOL_LIFO);
    const int32_t page = 0;
    int           n_words = 0, n_found = 0;
    pkv_error     err;
    expect_ok(pkv_pool_keep(f.pool, &page, 1, 1, &err), &err);
    go_on_from_here(&f);
    expect_ok(pkv_pool_keep(f.pool, &page, 1, 0, &err), &err);
    for (size_t i = 0; i < f.bytes; i += sizeof(uint64_t)) {
        uint64_t word;
        memcpy(&word, f.memory + i, sizeof word);
        if (memcmp(f.before + i, &word, sizeof word) != 0) {
            memcpy(f.memory + i, f.before + i, sizeof word);
            n_words++;
            n_found += pkv_pool_check(f.pool, &err) == PKV_E_CORRUPT;
            memcpy(f.memory + i, &word, sizeof word);
        }
    }
    assert_true(n_words == 5 && n_found == 4);
    drop(&f);
}

/* One page twice in the list, and another one not at all. */
static void test_check_finds_a_page_lost_twice(void **state)
{
    (void)state;
    fixture       f = make(PKV_POOL_EXTENT);
    const int32_t pages[] = {USED + 1, USED + 6, USED + 8};
    pkv_error     err;
    expect_ok(pkv_pool_forget(f.pool, pages, 3, &err), &err);
    assert_int_equal(count_found(&f, USED + 6, USED + 1, -1, "lost"), 1);
    assert_int_equal(count_found(&f, USED + 6, USED + 8, -1, "lost"), 1);
    assert_int_equal(count_found(&f, USED + 6, USED + 7, -1, "lost"), 1);
    assert_int_equal(count_found(&f, USED + 6, PAGES, -1, "lost"), 1);
    assert_int_equal(count_found(&f, USED + 6, UINT32_MAX, -1, "lost"), 1);
    drop(&f);
}

/* What a reservation remembers of a page, left behind: its commit forgets it. */
static void test_check_finds_what_is_left_of_a_reservation(void **state)
{
    (void)state;
    fixture       f = make(PKV_POOL_FIFO);
    const int32_t page = 44;
    pkv_error     err;
    expect_ok(pkv_pool_reserve(f.pool, &err), &err);
    for (int i = 0; i < 5; i++) {
        expect_ok(pkv_pool_share(f.pool, &page, 1, &err), &err);
    }
    go_on_from_here(&f);
    expect_ok(pkv_pool_commit(f.pool, &err), &err);
    int n_found = 0;
    for (size_t i = 0; i < f.bytes; i += sizeof(uint32_t)) {
        uint32_t word, before;
        memcpy(&word, f.memory + i, sizeof word);
        memcpy(&before, f.before + i, sizeof before);
        memcpy(f.memory + i, &before, sizeof before);
        if (word != before && pkv_pool_check(f.pool, &err) == PKV_E_CORRUPT) {
            assert_true(err.index == page && word == 0 && before == 5);
            n_found++;
        }
        memcpy(f.memory + i, &word, sizeof word);
    }
    assert_int_equal(n_found, 1);
    drop(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lists),
        cmocka_unit_test(test_states),
        cmocka_unit_test(test_queries_of_no_page),
        cmocka_unit_test(test_allocation),
        cmocka_unit_test(test_reservations),
        cmocka_unit_test(test_reservation_remembers_all),
        cmocka_unit_test(test_lost),
        cmocka_unit_test(test_check_finds_each_word),
        cmocka_unit_test(test_check_finds_lost_words),
        cmocka_unit_test(test_check_finds_that_page_0_is_lost),
        cmocka_unit_test(test_check_finds_a_page_lost_twice),
        cmocka_unit_test(test_check_finds_what_is_left_of_a_reservation),
    };
    return cmocka_run_group_tests_name("pool_refusals", tests, NULL, NULL);
}
