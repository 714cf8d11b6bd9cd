/*
 * Folding: how many copies a token costs follows from the strides, and a longer
 * copy than needed bytes apart would show nowhere else.  So this test looks
 * inside: it is the one that knows src/geometry.h.
 */
#include "../src/geometry.h"

#include "support.h"

enum { P = 4, S = 16, H = 4, D = 32, T = 40, BYTES = 2 };

static unsigned char cache_memory[P * S * H * D * BYTES * 3];
static unsigned char rows_memory[T * H * D * BYTES * 4];

/* Folds and compares: lanes, heads a lane, contiguous, pages adjacent. */
static void expect_fold(const char *what, const pkv_cache *cache, const pkv_new_kv *new_kv,
                        int32_t n_lanes, int64_t n_heads, bool contiguous, bool adjacent)
{
    pkv_i_view     cache_view, rows_view;
    pkv_i_geometry g;
    pkv_error      err;
    note_case(what, 0, "P %d S %d H %d D %d", P, S, H, D);
    expect_ok(pkv_i_view_cache(cache, &cache_view, &err), &err);
    expect_ok(pkv_i_view_new_kv(new_kv, &rows_view, &err), &err);
    expect_ok(pkv_i_geometry_check(&cache_view, &rows_view, &err), &err);
    pkv_i_geometry_of(&cache_view, &rows_view, &g);
    assert_int_equal(g.n_lanes, n_lanes);
    assert_int_equal(g.pages_adjacent, adjacent);
    assert_int_equal(g.token_bytes, 2 * H * D * BYTES);
    for (int32_t i = 0; i < n_lanes; i++) {
        assert_int_equal(g.lane[i].n_heads, n_heads);
        assert_int_equal(g.lane[i].contiguous, contiguous);
        assert_int_equal(g.lane[i].head_bytes * g.lane[i].n_heads * n_lanes, g.token_bytes);
    }
}

/* K of all heads and right behind it V of all heads, in each token. */
static pkv_new_kv fused_rows(void)
{
    pkv_new_kv rows;
    assert_int_equal(pkv_new_kv_nhd(&rows, sizeof rows, rows_memory,
                                    rows_memory + H * D * BYTES, T, H, D, D, 2 * H * D * BYTES,
                                    PKV_DTYPE_BF16), PKV_OK);
    return rows;
}

static void test_what_becomes_one_row(void **state)
{
    (void)state;
    pkv_cache  cache;
    pkv_new_kv rows, fused = fused_rows();
    assert_int_equal(pkv_new_kv_combined(&rows, sizeof rows, rows_memory, T, H, D, PKV_DTYPE_BF16),
                     PKV_OK);
    assert_int_equal(pkv_cache_combined(&cache, sizeof cache, cache_memory, P, S, H, D,
                                        PKV_DTYPE_BF16), PKV_OK);
    expect_fold("combined", &cache, &rows, 1, 1, true, true);
    cache.k.head_stride_bytes = cache.v.head_stride_bytes = D * BYTES;
    cache.v.data = cache_memory + H * D * BYTES;
    expect_fold("K | V in each token", &cache, &fused, 1, 1, true, true);
    assert_int_equal(pkv_cache_content(&cache, sizeof cache, cache_memory, P, S, H, D, D,
                                       PKV_DTYPE_BF16), PKV_OK);
    expect_fold("content: K and V of a head are one vector", &cache, &rows, 1, H, false, false);
}

static void test_what_stays_apart(void **state)
{
    (void)state;
    pkv_cache  cache;
    pkv_new_kv rows, fused = fused_rows();
    unsigned char *v = cache_memory + P * S * H * D * BYTES;
    assert_int_equal(pkv_new_kv_nhd(&rows, sizeof rows, rows_memory,
                                    rows_memory + T * H * D * BYTES, T, H, D, D, 0,
                                    PKV_DTYPE_BF16), PKV_OK);
    assert_int_equal(pkv_cache_nhd(&cache, sizeof cache, cache_memory, v, P, S, H, D,
                                   PKV_DTYPE_BF16), PKV_OK);
    expect_fold("nhd: two runs a slice", &cache, &rows, 2, 1, true, true);
    expect_fold("nhd from fused rows", &cache, &fused, 2, 1, false, true);
    cache.k.page_stride_bytes = cache.v.page_stride_bytes = S * H * D * BYTES + 64;
    cache.n_pages = P - 1;
    expect_fold("nhd with gaps between pages", &cache, &rows, 2, 1, true, false);
    assert_int_equal(pkv_cache_hnd(&cache, sizeof cache, cache_memory, v, P, S, H, D,
                                   PKV_DTYPE_BF16), PKV_OK);
    expect_fold("hnd: a run a head", &cache, &rows, 2, H, false, false);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_what_becomes_one_row),
        cmocka_unit_test(test_what_stays_apart),
    };
    return cmocka_run_group_tests_name("geometry", tests, NULL, NULL);
}
