/* Making a prefix index: configurations, how much memory, the caller's memory and functions. */
#include "hooks.h"
#include "prefix_story.h"

static pkv_pool *make_pool(int64_t n_pages)
{
    pkv_pool_config config = {sizeof config, n_pages, PKV_POOL_FIFO, 0};
    pkv_pool       *pool = NULL;
    pkv_error       err;
    expect_ok(pkv_pool_create(&config, NULL, &pool, &err), &err);
    return pool;
}

static pkv_prefix_config good_config(int64_t page_size, int64_t max_events)
{
    return (pkv_prefix_config){.struct_size = sizeof(pkv_prefix_config), .page_size = page_size,
                               .n_groups = 1, .max_events = max_events, .hash = prefix_hash_fnv};
}

/* ---- configurations ------------------------------------------------------ */

static void expect_refused(const pkv_prefix_config *c, pkv_pool *pool, pkv_status code)
{
    _Alignas(64) static unsigned char memory[16384], zeros[16384];
    pkv_prefix *prefix = NULL;
    uint64_t    bytes = 12;
    pkv_error   err;
    expect_error(pkv_prefix_bytes(c, pool, &bytes, &err), &err, code, 0, -1);
    expect_error(pkv_prefix_init(c, pool, memory, sizeof memory, &prefix, &err), &err, code, 0, -1);
    expect_error(pkv_prefix_create(c, pool, NULL, &prefix, &err), &err, code, 0, -1);
    expect_number(pkv_prefix_bytes(c, pool, &bytes, NULL), code);
    expect_that(bytes == 12 && prefix == NULL);
    expect_same_bytes("memory", memory, zeros, sizeof memory);
}

static void test_numbers_out_of_range(void **state)
{
    (void)state;
    const struct {
        int64_t    page_size, max_events;
        int32_t    n_groups;
        uint32_t   flags;
        pkv_status code;
    } cases[] = {
        {0, 0, 1, 0, PKV_E_INVALID},
        {-1, 0, 1, 0, PKV_E_INVALID},
        {((int64_t)1 << 20) + 1, 0, 1, 0, PKV_E_INVALID},
        {INT64_MAX, 0, 1, 0, PKV_E_INVALID},
        {16, -1, 1, 0, PKV_E_INVALID},
        {16, ((int64_t)1 << 30) + 1, 1, 0, PKV_E_INVALID},
        {16, INT64_MAX, 1, 0, PKV_E_INVALID},
        {16, 0, 0, 0, PKV_E_INVALID},
        {16, 0, -1, 0, PKV_E_INVALID},
        {16, 0, PKV_MAX_GROUPS + 1, 0, PKV_E_INVALID},
        {16, 0, INT32_MAX, 0, PKV_E_INVALID},
        {16, 0, 1, 1, PKV_E_UNSUPPORTED},
        {16, 0, 1, UINT32_MAX, PKV_E_UNSUPPORTED},
    };
    pkv_pool *pool = make_pool(4);
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        pkv_prefix_config c = good_config(cases[i].page_size, cases[i].max_events);
        c.n_groups = cases[i].n_groups;
        c.flags = cases[i].flags;
        note_case("config", i, "S %lld", (long long)c.page_size);
        expect_refused(&c, pool, cases[i].code);
    }
    pkv_pool_destroy(pool);
}

static void test_groups_and_the_hash(void **state)
{
    (void)state;
    pkv_pool         *pool = make_pool(4);
    pkv_prefix_config c = good_config(16, 0);
    uint64_t          bytes = 0;
    pkv_error         err;
    note_case("config", 0, "groups and hash");
    c.hash = NULL;
    expect_refused(&c, pool, PKV_E_INVALID);
    for (int32_t g = 0; g < PKV_MAX_GROUPS; g++) {
        c = good_config(16, 0);
        c.n_groups = g + 1;
        c.groups[g].window_tokens = -1;
        expect_refused(&c, pool, PKV_E_INVALID);
        c.groups[g] = (pkv_prefix_group){0, INT64_MIN};
        expect_refused(&c, pool, PKV_E_INVALID);
        c.groups[g] = (pkv_prefix_group){1, 0};
        expect_number(pkv_prefix_bytes(&c, pool, &bytes, &err), g == 0 ? PKV_E_INVALID : PKV_OK);
        c.groups[g] = (pkv_prefix_group){0, 0};
        if (g + 1 < PKV_MAX_GROUPS) {
            c.groups[g + 1].window_tokens = -1; /* not one of its groups */
        }
        expect_ok(pkv_prefix_bytes(&c, pool, &bytes, &err), &err);
    }
    pkv_pool_destroy(pool);
}

static void test_struct_sizes(void **state)
{
    (void)state;
    struct {
        pkv_prefix_config config;
        uint64_t          tail;
    } longer = {good_config(4, 0), 0};
    struct {
        pkv_prefix_counts counts;
        uint64_t          tail;
    } more = {{.struct_size = sizeof more}, 0};
    pkv_pool         *pool = make_pool(4);
    pkv_prefix       *prefix = NULL;
    pkv_prefix_config c = good_config(4, 0);
    pkv_error         err;
    note_case("config", 0, "struct sizes");
    c.struct_size--;
    expect_refused(&c, pool, PKV_E_UNSUPPORTED);
    c.struct_size = 0;
    expect_refused(&c, pool, PKV_E_UNSUPPORTED);
    longer.config.struct_size = sizeof longer;
    expect_ok(pkv_prefix_create(&longer.config, pool, NULL, &prefix, &err), &err);
    expect_ok(pkv_prefix_stats(prefix, &more.counts, &err), &err);
    expect_number(more.counts.struct_size, sizeof more);
    longer.tail = more.tail = 1;
    expect_refused(&longer.config, pool, PKV_E_UNSUPPORTED);
    expect_error(pkv_prefix_stats(prefix, &more.counts, &err), &err, PKV_E_UNSUPPORTED, 0, -1);
    more.tail = 0;
    more.counts.struct_size = sizeof more.counts - 1;
    expect_error(pkv_prefix_stats(prefix, &more.counts, &err), &err, PKV_E_UNSUPPORTED, 0, -1);
    expect_error(pkv_prefix_stats(prefix, NULL, &err), &err, PKV_E_INVALID, 0, -1);
    pkv_prefix_destroy(prefix);
    pkv_pool_destroy(pool);
}

/* ---- memory -------------------------------------------------------------- */

/* 4 * S + 48 to 56 bytes a page with S rounded up to 2, 40 an event, and up to 1000 more. */
static void test_bytes(void **state)
{
    (void)state;
    const int64_t sizes[] = {1, 2, 3, 15, 16, 17, 128, 4096, (int64_t)1 << 20};
    const int64_t events[] = {0, 1, 7, 1000, (int64_t)1 << 30};
    for (int64_t n_pages = 1; n_pages < 70000; n_pages += n_pages < 300 ? 1 : n_pages / 3) {
        pkv_pool *pool = make_pool(n_pages);
        for (size_t i = 0; i < sizeof sizes / sizeof sizes[0] * 5; i++) {
            const int64_t     S = sizes[i / 5], n_events = events[i % 5];
            const uint64_t    P = (uint64_t)n_pages, of_tokens = 4 * (uint64_t)((S + 1) / 2 * 2);
            const uint64_t    of_events = 40 * (uint64_t)n_events;
            pkv_prefix_config c = good_config(S, n_events);
            uint64_t          bytes = 0;
            pkv_error         err;
            note_case("bytes", 0, "P %lld, S %lld, %lld events", (long long)P, (long long)S,
                      (long long)n_events);
            expect_ok(pkv_prefix_bytes(&c, pool, &bytes, &err), &err);
            expect_that(bytes % 64 == 0 && bytes >= P * (of_tokens + 48) + of_events &&
                        bytes <= P * (of_tokens + 56) + of_events + 1000);
        }
        pkv_pool_destroy(pool);
    }
}

/* Every page published and lost again, every event told. */
static void use_all(pkv_prefix *prefix, pkv_pool *pool, int64_t n_pages, int64_t page_size)
{
    int32_t         *pages = test_alloc((size_t)n_pages * sizeof *pages);
    int32_t         *tokens = test_alloc((size_t)page_size * sizeof *tokens);
    pkv_prefix_event e;
    int64_t          n = 1, n_lost = 0;
    pkv_error        err;
    expect_ok(pkv_pool_alloc(pool, n_pages, -1, 0, pages, &err), &err);
    for (int64_t i = 0; i < n_pages; i++) {
        story_tokens(tokens, page_size, (int32_t)i);
        expect_ok(pkv_prefix_publish(prefix, 0, 0, -1, tokens, pages + i, 1, &err), &err);
    }
    expect_ok(pkv_prefix_check(prefix, &err), &err);
    expect_ok(pkv_pool_free(pool, pages, n_pages, &err), &err);
    expect_ok(pkv_pool_forget(pool, pages, n_pages, &err), &err);
    while (n > 0) {
        expect_ok(pkv_prefix_events(prefix, &e, 1, &n, &n_lost, &err), &err);
    }
    expect_ok(pkv_prefix_check(prefix, &err), &err);
    free(pages);
    free(tokens);
}

/* Just as many bytes as were asked for, between pages that fault. */
static void test_memory(void **state)
{
    (void)state;
    watch_faults();
    const int64_t sizes[][3] = {{1, 1, 0}, {1, 1, 1}, {2, 3, 7}, {64, 16, 5}, {65, 1, 300}};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        pkv_pool         *pool = make_pool(sizes[i][0]);
        pkv_prefix_config c = good_config(sizes[i][1], sizes[i][2]);
        pkv_prefix       *prefix = NULL;
        uint64_t          bytes = 0;
        pkv_error         err;
        note_case("memory", i, "P %lld", (long long)sizes[i][0]);
        expect_ok(pkv_prefix_bytes(&c, pool, &bytes, &err), &err);
        guarded        g = guarded_new((size_t)bytes);
        unsigned char *memory = guarded_tail(&g, (size_t)bytes);
        for (int k = 0; k < 4; k++) { /* no memory, too little, not aligned, nowhere to go */
            pkv_status status = pkv_prefix_init(&c, pool, k == 0   ? NULL
                                                          : k == 2 ? memory - 32
                                                                   : memory,
                                                k == 1 ? bytes - 1 : bytes,
                                                k == 3 ? NULL : &prefix, &err);
            expect_error(status, &err, PKV_E_INVALID, 0, -1);
        }
        expect_error(pkv_prefix_bytes(&c, pool, NULL, &err), &err, PKV_E_INVALID, 0, -1);
        expect_error(pkv_prefix_bytes(NULL, pool, &bytes, &err), &err, PKV_E_INVALID, 0, -1);
        expect_refused(&c, NULL, PKV_E_INVALID);
        for (uint64_t b = 0; b < bytes; b++) {
            expect_number(memory[b], 0);
        }
        expect_ok(pkv_prefix_init(&c, pool, memory, bytes, &prefix, &err), &err);
        expect_that((unsigned char *)prefix == memory);
        use_all(prefix, pool, sizes[i][0], sizes[i][1]);
        pkv_prefix_destroy(prefix); /* the caller's: nothing happens */
        expect_ok(pkv_prefix_check(prefix, &err), &err);
        guarded_free(&g);
        pkv_pool_destroy(pool);
    }
    pkv_prefix_destroy(NULL);
}

/* What is no pool, and what is no index. */
static void test_no_pool_and_no_index(void **state)
{
    (void)state;
    _Alignas(64) static unsigned char nothing[4096];
    pkv_prefix_config c = good_config(4, 0);
    pkv_prefix_counts counts = {.struct_size = sizeof counts};
    pkv_error         err;
    note_case("nothing", 0, "zeros");
    expect_refused(&c, (pkv_pool *)nothing, PKV_E_INVALID);
    expect_error(pkv_prefix_stats((pkv_prefix *)nothing, &counts, &err), &err, PKV_E_INVALID, 0,
                 -1);
    expect_error(pkv_prefix_check((pkv_prefix *)nothing, &err), &err, PKV_E_INVALID, 0, -1);
}

/* ---- the caller's memory functions --------------------------------------- */

static void test_hooks(void **state)
{
    (void)state;
    pkv_pool         *pool = make_pool(30);
    pkv_prefix_config c = good_config(5, 40);
    hooks             h = {0};
    pkv_allocator     a = {sizeof a, hook_alloc, hook_release, &h};
    pkv_prefix       *prefix = NULL;
    uint64_t          bytes = 0;
    pkv_error         err;
    note_case("hooks", 0, "P 30");
    expect_ok(pkv_prefix_bytes(&c, pool, &bytes, &err), &err);
    expect_ok(pkv_prefix_create(&c, pool, &a, &prefix, &err), &err);
    memset(&a, 0, sizeof a); /* it was copied */
    expect_that(h.n_alloc == 1 && h.n_release == 0 && h.bytes == bytes && prefix == h.memory);
    use_all(prefix, pool, 30, 5);
    pkv_prefix_destroy(prefix);
    expect_that(h.n_alloc == 1 && h.n_release == 1);

    a = (pkv_allocator){sizeof a, hook_alloc, hook_release, &h};
    prefix = NULL;
    h.give_none = true;
    expect_error(pkv_prefix_create(&c, pool, &a, &prefix, &err), &err, PKV_E_NO_MEMORY, 0, -1);
    expect_that(prefix == NULL && h.n_release == 1);
    h.give_none = false;
    h.give_crooked = true;
    expect_error(pkv_prefix_create(&c, pool, &a, &prefix, &err), &err, PKV_E_INVALID, 0, -1);
    expect_that(prefix == NULL && h.n_alloc == 3 && h.n_release == 2);

    a.alloc = NULL;
    expect_error(pkv_prefix_create(&c, pool, &a, &prefix, &err), &err, PKV_E_INVALID, 0, -1);
    a = (pkv_allocator){sizeof a, hook_alloc, NULL, &h};
    expect_error(pkv_prefix_create(&c, pool, &a, &prefix, &err), &err, PKV_E_INVALID, 0, -1);
    a = (pkv_allocator){sizeof a - 8, hook_alloc, hook_release, &h};
    expect_error(pkv_prefix_create(&c, pool, &a, &prefix, &err), &err, PKV_E_UNSUPPORTED, 0, -1);
    a = (pkv_allocator){sizeof a, hook_alloc, hook_release, &h};
    expect_error(pkv_prefix_create(&c, pool, &a, NULL, &err), &err, PKV_E_INVALID, 0, -1);
    expect_error(pkv_prefix_create(NULL, pool, &a, &prefix, &err), &err, PKV_E_INVALID, 0, -1);
    expect_error(pkv_prefix_create(&c, NULL, &a, &prefix, &err), &err, PKV_E_INVALID, 0, -1);
    expect_that(prefix == NULL && h.n_alloc == 3);
    pkv_pool_destroy(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_numbers_out_of_range),
        cmocka_unit_test(test_groups_and_the_hash),
        cmocka_unit_test(test_struct_sizes),
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_no_pool_and_no_index),
        cmocka_unit_test(test_hooks),
    };
    return cmocka_run_group_tests_name("prefix_making", tests, NULL, NULL);
}
