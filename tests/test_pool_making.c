/* Making a pool: configurations, how much memory, the caller's memory and memory functions. */
#include "hooks.h"

#include <string.h>

/* ---- configurations ------------------------------------------------------ */

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

/* 40 to 57 bytes a page and up to 1000 more: sizes one by one, then about each power of two. */
static void test_bytes(void **state)
{
    (void)state;
    uint64_t before = 0, bytes = 0;
    for (int64_t i = 1; i < 20000 + 3 * 16 - 1; i++) {
        const int64_t   j = i - 20000;
        const int64_t   n_pages = j < 0 ? i : ((int64_t)1 << (15 + j / 3)) + j % 3 - 1;
        pkv_pool_config config = {sizeof config, n_pages, PKV_POOL_LIFO, 0};
        pkv_error       err;
        note_case("bytes", 0, "P %lld", (long long)n_pages);
        expect_ok(pkv_pool_bytes(&config, &bytes, &err), &err);
        assert_true(bytes % 64 == 0 && bytes >= before && bytes >= 40 * (uint64_t)n_pages &&
                    bytes <= 57 * (uint64_t)n_pages + 1000);
        before = bytes;
    }
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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_configs),
        cmocka_unit_test(test_longer_configs),
        cmocka_unit_test(test_bytes),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_hooks),
    };
    return cmocka_run_group_tests_name("pool_making", tests, NULL, NULL);
}
