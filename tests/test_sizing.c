/* Upstream's sizing rules: its own test vectors, and the properties behind them. */
#include "support.h"

enum { MIB = 1 << 20, MAX_BUCKETS = 40 };

static void expect_list(int64_t n, const int64_t *found, const int64_t *expected,
                        int64_t n_expected)
{
    assert_int_equal(n, n_expected);
    for (int64_t i = 0; i < n; i++) {
        assert_int_equal(found[i], expected[i]);
    }
}

static void check_token_buckets(int64_t max, int64_t gap, const int64_t *expected, int64_t n)
{
    int64_t found[MAX_BUCKETS];
    expect_list(pkv_token_buckets(16, max, gap, found, MAX_BUCKETS), found, expected, n);
    assert_int_equal(pkv_token_buckets(16, max, gap, NULL, 0), n);
}

static void test_token_buckets(void **state)
{
    (void)state;
    const int64_t gap_512[] = {16, 32, 64, 128, 192, 256, 320, 384, 448, 512};
    const int64_t gap_317[] = {16, 32, 64, 128, 192, 256, 320};
    const int64_t doubling_1024[] = {16, 32, 64, 128, 256, 512, 1024};
    const int64_t doubling_317[] = {16, 32, 64, 128, 256, 512};
    check_token_buckets(512, 64, gap_512, 10);
    check_token_buckets(317, 64, gap_317, 7);
    check_token_buckets(1024, 0, doubling_1024, 7);
    check_token_buckets(317, 0, doubling_317, 6);
    check_token_buckets(1, 0, doubling_317, 1);
    assert_int_equal(pkv_token_buckets(16, 8192, 64, NULL, 0), 130);
    assert_int_equal(pkv_token_buckets(16, 8192, 0, NULL, 0), 10);
}

static void test_buckets_fill_no_more_than_the_room(void **state)
{
    (void)state;
    int64_t found[3] = {-7, -7, -7};
    assert_int_equal(pkv_token_buckets(16, 512, 64, found, 2), 10);
    assert_int_equal(found[0], 16);
    assert_int_equal(found[1], 32);
    assert_int_equal(found[2], -7);
    found[1] = -7;
    assert_int_equal(pkv_request_buckets(8, 36, found, 1), 4);
    assert_int_equal(found[1], -7);
}

static void test_token_bucket(void **state)
{
    (void)state;
    assert_int_equal(pkv_token_bucket(1, 16, 512, 64), 16);
    assert_int_equal(pkv_token_bucket(16, 16, 512, 64), 16);
    assert_int_equal(pkv_token_bucket(20, 16, 512, 64), 32);
    assert_int_equal(pkv_token_bucket(300, 16, 512, 64), 320);
    assert_int_equal(pkv_token_bucket(512, 16, 512, 64), 512);
    assert_int_equal(pkv_token_bucket(513, 16, 512, 64), 0);
    assert_int_equal(pkv_token_bucket(49, 16, 8192, 0), 64);
}

/* pkv_token_bucket() does not build the list; it must agree with it all the same. */
static void test_token_bucket_is_the_first_that_holds(void **state)
{
    (void)state;
    static const int64_t gaps[] = {0, 1, 16, 48, 64, 100, 128, 1000};
    for (size_t g = 0; g < sizeof gaps / sizeof gaps[0]; g++) {
        int64_t buckets[600];
        int64_t n = pkv_token_buckets(16, 500, gaps[g], buckets, 600);
        assert_in_range(n, 1, 600);
        assert_true(buckets[n - 1] >= 500);
        int64_t i = 0;
        for (int64_t tokens = 1; tokens <= buckets[n - 1]; tokens++) {
            i += tokens > buckets[i];
            assert_int_equal(pkv_token_bucket(tokens, 16, 500, gaps[g]), buckets[i]);
        }
    }
}

/* A gap of 1 up to 2^60: arithmetic, not a walk. */
static void test_endless_buckets(void **state)
{
    (void)state;
    const int64_t huge = (int64_t)1 << 60;
    assert_int_equal(pkv_token_bucket(huge - 7, 16, huge, 1), huge - 7);
    assert_int_equal(pkv_token_buckets(16, huge, 1, NULL, 0), huge - 15);
    assert_int_equal(pkv_token_bucket(huge + 1, 16, huge, 0), 0);
}

static void test_request_buckets(void **state)
{
    (void)state;
    int64_t found[MAX_BUCKETS];
    const int64_t up_to_32[] = {8, 16, 32};
    const int64_t up_to_36[] = {8, 16, 32, 36};
    expect_list(pkv_request_buckets(8, 32, found, MAX_BUCKETS), found, up_to_32, 3);
    expect_list(pkv_request_buckets(8, 36, found, MAX_BUCKETS), found, up_to_36, 4);
}

static void test_padded_num_reqs(void **state)
{
    (void)state;
    static const int64_t vectors[][3] = {
        {3, 32, 8},   {9, 32, 16},    {19, 32, 32},   {17, 28, 28},  {4, 128, 8}, {8, 128, 8},
        {9, 128, 16}, {16, 128, 16},  {17, 128, 32},  {100, 64, 64}, {1, 128, 8}, {0, 128, 8}};
    for (size_t i = 0; i < sizeof vectors / sizeof vectors[0]; i++) {
        assert_int_equal(pkv_padded_num_reqs(vectors[i][0], vectors[i][1]), vectors[i][2]);
    }
}

static void test_padded_num_slices(void **state)
{
    (void)state;
    assert_int_equal(pkv_padded_num_slices(128, 512, 128), 260);
    assert_int_equal(pkv_padded_num_slices(128, 2048, 128), 272);
    assert_int_equal(pkv_padded_num_slices(128, 512, 16), 288);
    assert_int_equal(pkv_padded_num_slices(128, 2048, 16), 384);
    for (int64_t bucket = 16; bucket <= 256; bucket *= 2) {
        assert_int_equal(pkv_padded_num_slices(128, bucket, 16), bucket);
    }
}

/* Model and page; bytes of one page; slices per block in 16 MiB and in 39 MiB. */
static void test_num_slices_per_block(void **state)
{
    (void)state;
    static const struct {
        int64_t page_size, n_heads, head_dim;
        pkv_dtype dtype;
        int64_t page_bytes, in_16_mib, in_39_mib;
    } rows[] = {
        {128, 8, 128, PKV_DTYPE_BF16, 524288, 32, 64},
        {16, 8, 128, PKV_DTYPE_BF16, 65536, 64, 64},
        {256, 8, 128, PKV_DTYPE_BF16, 1048576, 16, 32},
        {128, 1, 128, PKV_DTYPE_BF16, 65536, 64, 64},
        {128, 32, 96, PKV_DTYPE_BF16, 2097152, 8, 16},
        {128, 8, 128, PKV_DTYPE_FP8_E4M3, 262144, 64, 64},
        {128, 1, 128, PKV_DTYPE_FP8_E5M2, 65536, 64, 64},
        {128, 1, 64, PKV_DTYPE_INT4, 65536, 64, 64},
        {16, 8, 128, PKV_DTYPE_F32, 131072, 64, 64},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        int64_t page_bytes = pkv_scratch_page_bytes(rows[i].page_size, rows[i].n_heads,
                                                    rows[i].head_dim, rows[i].dtype);
        assert_int_equal(page_bytes, rows[i].page_bytes);
        assert_int_equal(pkv_num_slices_per_block(page_bytes, 16 * MIB), rows[i].in_16_mib);
        assert_int_equal(pkv_num_slices_per_block(page_bytes, 39 * MIB), rows[i].in_39_mib);
    }
    assert_int_equal(pkv_num_slices_per_block(1000, 999), 0);
    assert_int_equal(pkv_num_slices_per_block(1000, 1000), 1);
    assert_int_equal(pkv_num_slices_per_block(1000, 3999), 2);
    assert_int_equal(pkv_num_slices_per_block(1, INT64_MAX), 64);
}

static void test_page_sizes(void **state)
{
    (void)state;
    assert_int_equal(pkv_page_size(1), 16);
    assert_int_equal(pkv_page_size(512), 32);
    assert_int_equal(pkv_page_size(1024), 64);
    assert_int_equal(pkv_page_size(1025), 128);
    assert_int_equal(pkv_page_size(2048), 128);
    assert_int_equal(pkv_page_size(4096), 256);
    assert_int_equal(pkv_page_size(8192), 256);
    assert_int_equal(pkv_page_size(8193), 16);
    assert_int_equal(pkv_min_page_size(512, 2048), 8);
    assert_int_equal(pkv_min_page_size(512, 32768), 128);
    assert_int_equal(pkv_min_page_size(256, 131072), 256);
    assert_int_equal(pkv_max_num_reqs(32000, 128), 524);
    assert_true(pkv_max_num_reqs(2048, 128) >= 1200);
}

static void test_bad_arguments_give_zero(void **state)
{
    (void)state;
    assert_int_equal(pkv_token_buckets(15, 512, 0, NULL, 0), 0);
    assert_int_equal(pkv_token_buckets(0, 512, 0, NULL, 0), 0);
    assert_int_equal(pkv_token_buckets(16, 0, 0, NULL, 0), 0);
    assert_int_equal(pkv_token_buckets(16, 512, -1, NULL, 0), 0);
    assert_int_equal(pkv_token_bucket(1, 15, 512, 0), 0);
    assert_int_equal(pkv_token_bucket(-1, 16, 512, 0), 0);
    assert_int_equal(pkv_request_buckets(0, 32, NULL, 0), 0);
    assert_int_equal(pkv_request_buckets(8, 0, NULL, 0), 0);
    assert_int_equal(pkv_padded_num_reqs(-1, 32), 0);
    assert_int_equal(pkv_padded_num_reqs(1, 0), 0);
    assert_int_equal(pkv_padded_num_slices(0, 512, 16), 0);
    assert_int_equal(pkv_padded_num_slices(128, 0, 16), 0);
    assert_int_equal(pkv_padded_num_slices(128, 512, 0), 0);
    assert_int_equal(pkv_scratch_page_bytes(0, 8, 128, PKV_DTYPE_BF16), 0);
    assert_int_equal(pkv_scratch_page_bytes(16, 0, 128, PKV_DTYPE_BF16), 0);
    assert_int_equal(pkv_scratch_page_bytes(16, 8, 0, PKV_DTYPE_BF16), 0);
    assert_int_equal(pkv_scratch_page_bytes(16, 8, 128, 99), 0);
    assert_int_equal(pkv_num_slices_per_block(0, MIB), 0);
    assert_int_equal(pkv_num_slices_per_block(MIB, -1), 0);
    assert_int_equal(pkv_page_size(0), 0);
    assert_int_equal(pkv_min_page_size(0, 2048), 0);
    assert_int_equal(pkv_min_page_size(512, 0), 0);
    assert_int_equal(pkv_max_num_reqs(0, 16), 0);
    assert_int_equal(pkv_max_num_reqs(2048, 0), 0);
}

/* Results at the ends of int64 are not the point: nothing may overflow or hang. */
static void test_extreme_arguments_are_harmless(void **state)
{
    (void)state;
    static const int64_t ends[] = {INT64_MIN, -1, 0, 1, 16, (int64_t)1 << 62, INT64_MAX};
    for (size_t i = 0; i < 7; i++) {
        int64_t a = ends[i];
        assert_true(pkv_page_size(a) >= 0);
        for (size_t j = 0; j < 7; j++) {
            int64_t b = ends[j];
            assert_true(pkv_token_buckets(a, b, 0, NULL, 0) >= 0);
            assert_true(pkv_request_buckets(a, b, NULL, 0) >= 0);
            assert_true(pkv_padded_num_reqs(a, b) >= 0);
            assert_in_range(pkv_num_slices_per_block(a, b), 0, 64);
            assert_true(pkv_min_page_size(a, b) >= 0);
            assert_true(pkv_max_num_reqs(a, b) >= 0);
            for (size_t k = 0; k < 7; k++) {
                assert_true(pkv_token_bucket(a, 16, b, ends[k]) >= 0);
                assert_true(pkv_padded_num_slices(a, b, ends[k]) >= 0);
                assert_true(pkv_scratch_page_bytes(a, b, ends[k], PKV_DTYPE_F32) >= 0);
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_token_buckets),
        cmocka_unit_test(test_buckets_fill_no_more_than_the_room),
        cmocka_unit_test(test_token_bucket),
        cmocka_unit_test(test_token_bucket_is_the_first_that_holds),
        cmocka_unit_test(test_endless_buckets),
        cmocka_unit_test(test_request_buckets),
        cmocka_unit_test(test_padded_num_reqs),
        cmocka_unit_test(test_padded_num_slices),
        cmocka_unit_test(test_num_slices_per_block),
        cmocka_unit_test(test_page_sizes),
        cmocka_unit_test(test_bad_arguments_give_zero),
        cmocka_unit_test(test_extreme_arguments_are_harmless),
    };
    return cmocka_run_group_tests_name("sizing", tests, NULL, NULL);
}
