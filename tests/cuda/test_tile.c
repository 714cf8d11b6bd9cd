/*
 * Arithmetic of the kernels that no memory is large enough for, on the host: tiles whose
 * tokens do not fit 32 bits, steps through them, and divisions by constants.
 */
#include <string.h>

#include "../../src/cuda/copy_kernel.h"
#include "../../src/cuda/work.c"
#include "../support.h"

/* ---- divisors ----------------------------------------------------------------------- */

static void expect_quotient(int64_t x, int64_t by, pkv_i_divisor d)
{
    if (x >= 0 && x <= INT32_MAX) {
        const uint32_t found = pkv_i_divide((uint32_t)x, d);
        if (found != (uint32_t)(x / by)) {
            fail_msg("%lld / %lld is not %u", (long long)x, (long long)by, found);
        }
    }
}

/* At the edges of the first multiples, the last ones, and those in between. */
static void check_divisor(int64_t by, rng *r)
{
    const pkv_i_divisor d = divisor_of(by);
    const int64_t       most = INT32_MAX / by;
    assert_int_equal(d.by, by);
    for (int64_t i = 0; i < 24; i++) {
        const int64_t q = i < 8 ? i : i < 16 ? most + 1 - (i - 8) : rng_range(r, 0, most);
        for (int64_t edge = -2; edge <= 2; edge++) {
            expect_quotient(q * by + edge, by, d);
        }
        expect_quotient(rng_range(r, 0, INT32_MAX), by, d);
        expect_quotient(INT32_MAX - i, by, d);
    }
}

static void test_divisors(void **state)
{
    (void)state;
    rng r = {1};
    for (int64_t by = 1; by <= 5000; by++) {
        check_divisor(by, &r);
    }
    for (int k = 1; k <= 31; k++) {
        for (int64_t off = -3; off <= 3; off++) {
            const int64_t by = ((int64_t)1 << k) + off;
            if (by >= 1 && by <= INT32_MAX) {
                check_divisor(by, &r);
            }
        }
    }
    for (int i = 0; i < 20000; i++) {
        check_divisor(rng_range(&r, 1, (int64_t)1 << rng_range(&r, 1, 30)), &r);
    }
    check_divisor(INT32_MAX, &r);
    assert_int_equal(divisor_of((int64_t)INT32_MAX + 1).by, 0);
    assert_int_equal(divisor_of(INT64_MAX).by, 0);
}

/* Every number, for some. */
static void test_small_divisors(void **state)
{
    (void)state;
    for (int64_t by = 1; by <= 300; by++) {
        const pkv_i_divisor d = divisor_of(by);
        for (uint32_t x = 0; x < 20000; x++) {
            if (pkv_i_divide(x, d) != x / (uint32_t)by) {
                fail_msg("%u / %lld is wrong", x, (long long)by);
            }
        }
    }
}

static void test_long_divisions(void **state)
{
    (void)state;
    rng r = {2};
    for (int i = 0; i < 100000; i++) {
        const uint64_t x = rng_next(&r) >> rng_range(&r, 0, 63);
        const uint64_t by = (rng_next(&r) >> rng_range(&r, 0, 63)) + 1;
        uint64_t       rest = 7;
        if (by != 0) {
            assert_true(pkv_i_divide_long(x, by, &rest) == x / by && rest == x % by);
        }
    }
}

/* ---- tiles -------------------------------------------------------------------------- */

enum { COLUMNS = 3000 };

static int32_t  columns[3][COLUMNS];
static int32_t  count, status;
static pkv_i_tile tile;

/* A list that no buffer limits but the numbers themselves. */
static pkv_i_list endless_list(int32_t n)
{
    count = n;
    status = 0;
    return (pkv_i_list){.cache_start = columns[0], .rows_start = columns[1], .len = columns[2],
                        .count = &count, .status = &status, .capacity = n,
                        .cache_limit = INT64_MAX, .rows_limit = INT64_MAX, .n_layers = 3};
}

/* What a tile says of entries first, ...: each once, with the tokens before it. */
static void expect_tile(int64_t first, int64_t n)
{
    uint64_t tokens = 0;
    assert_true(tile.n_entries >= 1 && tile.n_entries <= PKV_I_CUDA_TILE &&
                first + tile.n_entries <= n);
    for (uint32_t k = 0; k < tile.n_entries; k++) {
        const int32_t len = columns[2][first + k];
        assert_int_equal(tile.before[k], tokens);
        assert_true(tokens < (uint64_t)1 << 31); /* each begins where 31 bits reach */
        if (len > 0) {
            assert_int_equal(pkv_i_tile_find(&tile, (uint32_t)tokens), k);
            assert_int_equal(pkv_i_tile_find(&tile, (uint32_t)tokens + (uint32_t)len - 1), k);
            tokens += (uint32_t)len;
        }
    }
    assert_int_equal(tile.before[tile.n_entries], tokens);
    assert_int_equal(tile.n_tokens, tokens);
    /* It is full, or at the list's end, or could not take one more. */
    assert_true(tile.n_entries == PKV_I_CUDA_TILE || first + tile.n_entries == n ||
                tokens >= (uint64_t)1 << 31);
}

/* Reads the whole list as a kernel does. */
static void walk(int32_t n)
{
    const pkv_i_list list = endless_list(n);
    int32_t          n_bad = 0;
    for (int block = 0; block < 2; block++) { /* only the first tells */
        const pkv_i_grid grid = {(uint32_t)block, 2};
        memset(&tile, 0xa5, sizeof tile);
        assert_int_equal(pkv_i_list_begin(&list, grid, &tile), n);
        for (int64_t first = 0; first < n; first += tile.n_entries) {
            pkv_i_tile_load(&list, grid, first, n, &tile);
            expect_tile(first, n);
        }
    }
    for (int32_t i = 0; i < n; i++) {
        n_bad += columns[2][i] < 0;
    }
    assert_int_equal(status, 3 * n_bad);
}

static void test_large_tiles(void **state)
{
    (void)state;
    static const int32_t sizes[] = {INT32_MAX, 1 << 30, 1 << 21, (1 << 21) - 1, (1 << 22) + 1,
                                    1 << 25, 1};
    static const int32_t numbers[] = {1, 2, 3, 511, 512, 513, 1023, 1024, 1025, 2049, COLUMNS};
    rng r = {4};
    fill(columns, sizeof columns, FILL_ZEROS, 0);
    for (size_t s = 0; s < sizeof sizes / sizeof sizes[0]; s++) {
        for (size_t n = 0; n < sizeof numbers / sizeof numbers[0]; n++) {
            for (int turn = 0; turn < 4; turn++) { /* all of them; some empty, wrong or short */
                for (int32_t i = 0; i < numbers[n]; i++) {
                    const int64_t kind = turn == 0 ? 9 : rng_range(&r, 0, turn * 2);
                    columns[2][i] = kind == 0 ? 0 : kind == 1 ? -1 : kind == 2 ? 3 : sizes[s];
                }
                walk(numbers[n]);
            }
        }
    }
}

/* A last entry that fills the tile to the token, and one more. */
static void test_tile_edges(void **state)
{
    (void)state;
    fill(columns, sizeof columns, FILL_ZEROS, 0);
    for (int32_t off = -2; off <= 2; off++) {
        for (int32_t at = 1; at < 1100; at += 37) { /* 2^31 + off tokens up to and with entry at */
            fill(columns, sizeof columns, FILL_ZEROS, 0);
            columns[2][0] = INT32_MAX - 10;
            columns[2][at] = 11 + off;
            columns[2][at + 1] = 5;
            walk(at + 20);
        }
    }
}

/* ---- steps -------------------------------------------------------------------------- */

/* A step of 32 vectors leads where the place itself is looked up, over entries and layers. */
static void check_steps(const pkv_i_list *list, uint32_t token_vectors, rng *r)
{
    static pkv_i_copy_job job;
    job.token_vectors = token_vectors;
    job.step_tokens = 32 / token_vectors;
    job.step_vectors = 32 % token_vectors;
    job.list = *list;
    job.n_lanes = 1 + token_vectors % 2;
    job.lane[0] = (pkv_i_copy_lane){.cache = {0, 16, 0}, .rows = {0, 48, 0},
                                    .n_vectors = token_vectors / job.n_lanes};
    job.lane[1] = (pkv_i_copy_lane){.cache = {0, 32, 0}, .rows = {0, 80, 0}};
    for (uint32_t l = 0; l < job.list.n_layers; l++) { /* addresses that nobody touches */
        for (int i = 0; i < 2; i++) {
            job.layer[l].cache[i] = (char *)((uintptr_t)(4 * l + (uint32_t)i + 1) << 42);
            job.layer[l].rows[i] = (char *)((uintptr_t)(4 * l + (uint32_t)i + 3) << 42);
        }
    }
    const uint64_t all = (uint64_t)tile.n_tokens * token_vectors * job.list.n_layers;
    for (int i = 0; i < 200 && all > 32; i++) {
        const uint64_t at = i < 40 && (uint64_t)i + 32 < all
                                ? (uint64_t)i
                                : rng_next(r) % (all - 32);
        pkv_i_cursor stepped = pkv_i_cursor_at(&job, &tile, at);
        pkv_i_cursor_step(&stepped, &job, &tile);
        const pkv_i_cursor found = pkv_i_cursor_at(&job, &tile, at + 32);
        const uint64_t     back = ((uint64_t)found.layer * tile.n_tokens + found.token) *
                                  token_vectors + found.vector;
        assert_true(back == at + 32 && found.vector < token_vectors);
        assert_true(tile.before[found.entry] <= found.token &&
                    found.token < tile.before[found.entry + 1]);
        assert_true(stepped.layer == found.layer && stepped.entry == found.entry &&
                    stepped.token == found.token && stepped.vector == found.vector);
        assert_true(stepped.lane == found.lane && stepped.cache == found.cache &&
                    stepped.rows == found.rows);
    }
}

static void test_steps(void **state)
{
    (void)state;
    rng r = {5};
    for (int turn = 0; turn < 60; turn++) {
        const int32_t n = (int32_t)rng_range(&r, 1, turn < 30 ? 6 : 1024);
        const int32_t most = turn % 3 == 0 ? 2 : turn % 3 == 1 ? 50 : INT32_MAX / 1024;
        for (int32_t i = 0; i < n; i++) {
            columns[2][i] = (int32_t)rng_range(&r, 0, 3) == 0 ? 0 : (int32_t)rng_range(&r, 1, most);
        }
        const pkv_i_list list = endless_list(n);
        assert_int_equal(pkv_i_list_begin(&list, (pkv_i_grid){0, 1}, &tile), n);
        pkv_i_tile_load(&list, (pkv_i_grid){0, 1}, 0, n, &tile);
        static const uint32_t vectors[] = {1, 2, 3, 5, 7, 16, 31, 32, 33, 48, 64, 65, 1000,
                                           MAX_PARTS - 1};
        for (size_t v = 0; v < sizeof vectors / sizeof vectors[0]; v++) {
            check_steps(&list, vectors[v], &r);
        }
    }
}

/* ---- vectors ------------------------------------------------------------------------ */

/* A stride of at least so many bytes, a multiple of a vector's. */
static int64_t padded(rng *r, int64_t at_least, int64_t unit)
{
    return (at_least + unit - 1) / unit * unit + unit * rng_range(r, 0, 2);
}

static int64_t unit_of(rng *r)
{
    return (int64_t)1 << (rng_range(r, 0, 3) == 0 ? rng_range(r, 0, 4) : 4);
}

/* Views of a layer at addresses that nobody touches, everything a multiple of something. */
static void draw_views(rng *r, pkv_i_view *cache, pkv_i_view *rows)
{
    unsigned char *const at = (unsigned char *)((uintptr_t)1 << 40);
    const int64_t        bytes = unit_of(r) * rng_range(r, 1, 3), heads = rng_range(r, 1, 3);
    pkv_error            err;
    pkv_cache c = {.struct_size = sizeof c, .n_pages = rng_range(r, 1, 3),
                   .page_size = rng_range(r, 1, 3), .n_heads = heads, .dtype = PKV_DTYPE_BITS8};
    c.k = (pkv_plane){.data = at + unit_of(r), .head_dim = bytes};
    c.k.head_stride_bytes = padded(r, bytes, unit_of(r));
    c.k.token_stride_bytes = padded(r, heads * c.k.head_stride_bytes, unit_of(r));
    c.k.page_stride_bytes = padded(r, c.page_size * c.k.token_stride_bytes, unit_of(r));
    pkv_new_kv n = {.struct_size = sizeof n, .n_tokens = rng_range(r, 1, 4), .n_heads = heads,
                    .dtype = PKV_DTYPE_BITS8};
    n.k = (pkv_new_kv_plane){.data = at + (1 << 20) + unit_of(r), .head_dim = bytes};
    n.k.head_stride_bytes = padded(r, bytes, unit_of(r));
    n.k.token_stride_bytes = padded(r, heads * n.k.head_stride_bytes, unit_of(r));
    if (rng_range(r, 0, 1) == 0) {
        c.v = c.k;
        n.v = n.k;
        c.v.data = at + (1 << 16) + unit_of(r);
        n.v.data = at + (1 << 21) + unit_of(r);
    }
    expect_ok(pkv_i_view_cache(&c, cache, &err), &err);
    expect_ok(pkv_i_view_new_kv(&n, rows, &err), &err);
}

static int64_t kernel_bytes(int kernel)
{
    static const int64_t bytes[] = {16, 8, 4, 2, 1};
    static const int     kernels[] = {PKV_I_CUDA_copy_16, PKV_I_CUDA_copy_8, PKV_I_CUDA_copy_4,
                                      PKV_I_CUDA_copy_2, PKV_I_CUDA_copy_1};
    for (size_t i = 0; i < 5; i++) {
        if (kernels[i] == kernel) {
            return bytes[i];
        }
    }
    fail_msg("no copy: kernel %d", kernel);
    return 0;
}

/* All bits of the addresses at which a job's head vectors begin, and of their lengths. */
static uint64_t all_bits(const pkv_i_copy_job *job, int64_t n_slots, int64_t n_rows, int64_t bytes)
{
    uint64_t bits = 0;
    for (uint32_t i = 0; i < job->n_lanes; i++) {
        const pkv_i_copy_lane *of = &job->lane[i];
        bits |= of->head_vectors.by * (uint64_t)bytes;
        for (uint32_t h = 0; h < of->n_vectors / of->head_vectors.by; h++) {
            const char *cache = job->layer[0].cache[i] + h * of->cache.head;
            const char *rows = job->layer[0].rows[i] + h * of->rows.head;
            for (uint32_t t = 0; t < n_slots; t++) {
                bits |= (uintptr_t)(cache + pkv_i_slot_at(&job->list, &of->cache, 0, t));
            }
            for (uint32_t t = 0; t < n_rows; t++) {
                bits |= (uintptr_t)(rows + pkv_i_row_at(&job->list, &of->rows, 0, t));
            }
        }
    }
    return bits;
}

/* Vectors lie on multiples of their size, which a device needs; and none could be wider. */
static void test_vectors(void **state)
{
    (void)state;
    static pkv_i_work w;
    rng               r = {6};
    int32_t           n = 0, column = 0;
    const pkv_slices  slices = {sizeof slices, 1, &column, &column, &column, &n};
    for (int i = 0; i < 50000; i++) {
        pkv_i_view cache, rows;
        pkv_error  err;
        draw_views(&r, &cache, &rows);
        expect_ok(pkv_i_work_of_slices(&w, &cache, &rows, false, &slices, NULL, &err), &err);
        const int64_t  bytes = kernel_bytes(w.kernel);
        const uint64_t bits = all_bits(&w.job.copy, cache.n_pages * cache.page_size,
                                       rows.page_size, bytes);
        note_case("vectors", (uint64_t)i, "of %d bytes, addresses %#llx", (int)bytes,
                  (unsigned long long)bits);
        expect_same_bytes("remainder", &(uint64_t){bits % (uint64_t)bytes}, &(uint64_t){0}, 8);
        if (bytes < 16 && bits % (2 * (uint64_t)bytes) == 0) {
            fail_msg("vectors of %d bytes could be wider: %d", (int)bytes, i);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_divisors),       cmocka_unit_test(test_small_divisors),
        cmocka_unit_test(test_long_divisions), cmocka_unit_test(test_large_tiles),
        cmocka_unit_test(test_tile_edges),     cmocka_unit_test(test_steps),
        cmocka_unit_test(test_vectors),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
