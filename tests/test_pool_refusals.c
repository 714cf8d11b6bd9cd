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

/* P pages shared and all of the others allocated: that much a reservation remembers. */
static void test_reservation_remembers_enough(void **state)
{
    (void)state;
    for (int32_t a = PKV_POOL_EXTENT; a <= PKV_POOL_FIFO; a++) {
        fixture       f = make(a);
        const int32_t one = 1;
        int32_t       pages[PAGES];
        pkv_error     err;
        pkv_status    status = PKV_OK;
        expect_ok(pkv_pool_reserve(f.pool, &err), &err);
        int64_t n_shared = 0;
        while (n_shared < 3 * PAGES && status == PKV_OK) {
            go_on_from_here(&f);
            status = pkv_pool_share(f.pool, &one, 1, &err);
            n_shared += status == PKV_OK;
        }
        assert_true(n_shared >= PAGES && n_shared < 3 * PAGES);
        expect_refusal(&f, status, &err, PKV_E_NO_MEMORY, 0, -1);
        assert_int_equal(pkv_pool_owners(f.pool, 1), 1 + n_shared);
        expect_ok(pkv_pool_alloc(f.pool, 7, 2, 100, pages, &err), &err);
        expect_ok(pkv_pool_alloc(f.pool, PAGES - USED - 7, -1, 0, pages, &err), &err);
        expect_ok(pkv_pool_check(f.pool, &err), &err);
        expect_ok(pkv_pool_release(f.pool, &err), &err);
        assert_int_equal(pkv_pool_owners(f.pool, 1), 1);
        assert_int_equal(pkv_pool_owners(f.pool, USED), 0);
        drop(&f);
    }
}

/* ---- making one ---------------------------------------------------------- */

static void test_configs(void **state)
{
    (void)state;
    const struct {
        pkv_pool_config config;
        pkv_status      code;
    } cases[] = {
        {{sizeof(pkv_pool_config), 0, 0, 0}, PKV_E_INVALID},
        {{sizeof(pkv_pool_config), -1, 0, 0}, PKV_E_INVALID},
        {{sizeof(pkv_pool_config), ((int64_t)1 << 30) + 1, 0, 0}, PKV_E_INVALID},
        {{sizeof(pkv_pool_config), INT64_MAX, 0, 0}, PKV_E_INVALID},
        {{sizeof(pkv_pool_config), 8, -1, 0}, PKV_E_INVALID},
        {{sizeof(pkv_pool_config), 8, 3, 0}, PKV_E_INVALID},
        {{sizeof(pkv_pool_config), 8, 0, 1}, PKV_E_UNSUPPORTED},
        {{sizeof(pkv_pool_config) - 1, 8, 0, 0}, PKV_E_UNSUPPORTED},
        {{0, 8, 0, 0}, PKV_E_UNSUPPORTED},
    };
    _Alignas(64) static unsigned char memory[4096], zeros[4096];
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const pkv_pool_config *c = &cases[i].config;
        pkv_pool              *pool = NULL;
        uint64_t               bytes = 12;
        pkv_error              err;
        note_case("config", i, "n_pages %lld", (long long)c->n_pages);
        expect_error(pkv_pool_bytes(c, &bytes, &err), &err, cases[i].code, 0, -1);
        expect_error(pkv_pool_init(c, memory, sizeof memory, &pool, &err), &err, cases[i].code, 0,
                     -1);
        expect_error(pkv_pool_create(c, NULL, &pool, &err), &err, cases[i].code, 0, -1);
        assert_true(bytes == 12 && pool == NULL);
    }
    expect_same_bytes("memory", memory, zeros, sizeof memory);
}

/* A newer caller's longer struct: read if its tail is zero. */
static void test_longer_configs(void **state)
{
    (void)state;
    struct {
        pkv_pool_config config;
        uint64_t        tail;
    } longer = {{sizeof longer, 8, PKV_POOL_FIFO, 0}, 0};
    struct {
        pkv_pool_counts counts;
        uint64_t        tail;
    } more = {{.struct_size = sizeof more}, 0};
    pkv_pool *pool = NULL;
    uint64_t  bytes = 0;
    pkv_error err;
    expect_ok(pkv_pool_create(&longer.config, NULL, &pool, &err), &err);
    expect_ok(pkv_pool_stats(pool, &more.counts, &err), &err);
    assert_true(more.counts.n_blank == 8 && more.counts.struct_size == sizeof more);
    longer.tail = more.tail = 1;
    expect_error(pkv_pool_bytes(&longer.config, &bytes, &err), &err, PKV_E_UNSUPPORTED, 0, -1);
    expect_error(pkv_pool_stats(pool, &more.counts, &err), &err, PKV_E_UNSUPPORTED, 0, -1);
    pkv_pool_destroy(pool);
}

/* Just as many bytes as were asked for, between pages that fault. */
static void test_memory(void **state)
{
    (void)state;
    const int64_t sizes[] = {1, 2, 64, 1000, 1024, 1025, 4096, 70000};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        pkv_pool_config config = {sizeof config, sizes[i], PKV_POOL_EXTENT, 0};
        pkv_pool       *pool = NULL;
        uint64_t        bytes = 0;
        pkv_error       err;
        note_case("memory", 0, "P %lld", (long long)sizes[i]);
        expect_ok(pkv_pool_bytes(&config, &bytes, &err), &err);
        assert_true(bytes % 64 == 0 && (int64_t)bytes >= 32 * sizes[i] &&
                    (int64_t)bytes <= 49 * sizes[i] + 800);
        guarded        g = guarded_new((size_t)bytes);
        unsigned char *memory = guarded_tail(&g, (size_t)bytes);
        expect_error(pkv_pool_init(&config, NULL, bytes, &pool, &err), &err, PKV_E_INVALID, 0, -1);
        pkv_status status = pkv_pool_init(&config, memory, bytes - 1, &pool, &err);
        expect_error(status, &err, PKV_E_INVALID, 0, -1);
        expect_error(pkv_pool_init(&config, memory - 32, bytes + 32, &pool, &err), &err,
                     PKV_E_INVALID, 0, -1);
        status = pkv_pool_init(&config, memory, bytes, NULL, &err);
        expect_error(status, &err, PKV_E_INVALID, 0, -1);
        expect_error(pkv_pool_bytes(NULL, &bytes, &err), &err, PKV_E_INVALID, 0, -1);
        expect_error(pkv_pool_bytes(&config, NULL, &err), &err, PKV_E_INVALID, 0, -1);
        for (uint64_t b = 0; b < bytes; b++) {
            assert_int_equal(memory[b], 0);
        }
        expect_ok(pkv_pool_init(&config, memory, bytes, &pool, &err), &err);
        int32_t *pages = test_alloc((size_t)sizes[i] * sizeof *pages);
        assert_true((unsigned char *)pool == memory);
        expect_ok(pkv_pool_alloc(pool, sizes[i], 0, 0, pages, &err), &err);
        expect_ok(pkv_pool_keep(pool, pages, sizes[i], 1, &err), &err);
        expect_ok(pkv_pool_free(pool, pages, sizes[i], &err), &err);
        expect_ok(pkv_pool_check(pool, &err), &err);
        pkv_pool_destroy(pool); /* the caller's: nothing happens */
        assert_int_equal(pkv_pool_owners(pool, 0), 0);
        free(pages);
        guarded_free(&g);
    }
    pkv_pool_destroy(NULL);
}

/* ---- the caller's memory functions --------------------------------------- */

typedef struct hooks {
    int    n_alloc, n_release;
    bool   give_none, give_crooked;
    size_t bytes;
    void  *memory;
} hooks;

static void *hook_alloc(void *user, size_t bytes, size_t align)
{
    hooks *h = user;
    assert_int_equal(align, 64);
    h->n_alloc++;
    h->bytes = bytes;
    h->memory = h->give_none ? NULL : aligned_alloc(align, bytes + 64);
    if (h->give_crooked) {
        h->memory = (char *)h->memory + 8;
    }
    return h->memory;
}

static void hook_release(void *user, void *memory, size_t bytes)
{
    hooks *h = user;
    h->n_release++;
    assert_true(memory == h->memory && bytes == h->bytes);
    free((char *)memory - (h->give_crooked ? 8 : 0));
}

static void test_hooks(void **state)
{
    (void)state;
    pkv_pool_config config = {sizeof config, 500, PKV_POOL_LIFO, 0};
    hooks           h = {0};
    pkv_allocator   a = {sizeof a, hook_alloc, hook_release, &h};
    pkv_pool       *pool = NULL;
    uint64_t        bytes = 0;
    pkv_error       err;
    note_case("hooks", 0, "P 500");
    expect_ok(pkv_pool_bytes(&config, &bytes, &err), &err);
    expect_ok(pkv_pool_create(&config, &a, &pool, &err), &err);
    memset(&a, 0, sizeof a); /* it was copied */
    assert_true(h.n_alloc == 1 && h.n_release == 0 && h.bytes == bytes && pool == h.memory);
    expect_ok(pkv_pool_check(pool, &err), &err);
    pkv_pool_destroy(pool);
    assert_true(h.n_alloc == 1 && h.n_release == 1);

    a = (pkv_allocator){sizeof a, hook_alloc, hook_release, &h};
    pool = NULL;
    h.give_none = true;
    expect_error(pkv_pool_create(&config, &a, &pool, &err), &err, PKV_E_NO_MEMORY, 0, -1);
    assert_true(pool == NULL && h.n_release == 1);
    h.give_none = false;
    h.give_crooked = true;
    expect_error(pkv_pool_create(&config, &a, &pool, &err), &err, PKV_E_INVALID, 0, -1);
    assert_true(pool == NULL && h.n_alloc == 3 && h.n_release == 2);

    a.alloc = NULL;
    expect_error(pkv_pool_create(&config, &a, &pool, &err), &err, PKV_E_INVALID, 0, -1);
    a = (pkv_allocator){sizeof a, hook_alloc, NULL, &h};
    expect_error(pkv_pool_create(&config, &a, &pool, &err), &err, PKV_E_INVALID, 0, -1);
    a = (pkv_allocator){sizeof a - 8, hook_alloc, hook_release, &h};
    expect_error(pkv_pool_create(&config, &a, &pool, &err), &err, PKV_E_UNSUPPORTED, 0, -1);
    a = (pkv_allocator){sizeof a, hook_alloc, hook_release, &h};
    expect_error(pkv_pool_create(&config, &a, NULL, &err), &err, PKV_E_INVALID, 0, -1);
    expect_error(pkv_pool_create(NULL, &a, &pool, &err), &err, PKV_E_INVALID, 0, -1);
    assert_true(pool == NULL && h.n_alloc == 3);
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lists),
        cmocka_unit_test(test_states),
        cmocka_unit_test(test_queries_of_no_page),
        cmocka_unit_test(test_allocation),
        cmocka_unit_test(test_reservations),
        cmocka_unit_test(test_reservation_remembers_enough),
        cmocka_unit_test(test_configs),
        cmocka_unit_test(test_longer_configs),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_hooks),
        cmocka_unit_test(test_check_finds_each_word),
    };
    return cmocka_run_group_tests_name("pool_refusals", tests, NULL, NULL);
}
