/* The sizing rules with any arguments: quick, without overflow, and the lists as documented. */
#include "fuzz_plan.h"

#include <cmocka.h>

enum { MAX_BUCKETS = 80 };

/* Does the list begin at `first`, take the right steps and end at the first that reaches `last`? */
static void check_list(const int64_t *list, int64_t n_listed, int64_t n, int64_t first,
                       int64_t last, int64_t gap)
{
    for (int64_t i = 0; i < n_listed; i++) {
        int64_t before = i > 0 ? list[i - 1] : 0;
        int64_t step = gap == 0 || before * 2 <= gap ? before : gap;
        assert_int_equal(list[i], i > 0 ? before + step : first);
        assert_int_equal(list[i] >= last, i == n - 1);
    }
}

static void fuzz_token_buckets(input *in)
{
    const bool    any = take_chance(in, 4);
    const int64_t first = any ? take_number(in) : (int64_t)1 << take_range(in, 0, 20);
    const int64_t last = take_number(in), gap = take_number(in), n_tokens = take_number(in);
    const int64_t cap = take_range(in, 0, MAX_BUCKETS);
    int64_t       list[MAX_BUCKETS];
    const int64_t n = pkv_token_buckets(first, last, gap, list, cap);
    const int64_t bucket = pkv_token_bucket(n_tokens, first, last, gap);
    assert_int_equal(pkv_token_buckets(first, last, gap, NULL, 0), n);
    assert_true(n >= 0);
    if (n == 0) {
        assert_int_equal(bucket, 0);
        return;
    }
    check_list(list, n < cap ? n : cap, n, first, last, gap);
    if (n <= cap) {
        int64_t i = 0;
        while (i < n && list[i] < n_tokens) {
            i++;
        }
        assert_int_equal(bucket, n_tokens < 0 || i == n ? 0 : list[i]);
    }
}

static void fuzz_request_buckets(input *in)
{
    const int64_t first = take_number(in), last = take_number(in);
    int64_t       list[MAX_BUCKETS];
    const int64_t n = pkv_request_buckets(first, last, list, MAX_BUCKETS);
    assert_true(n >= 0 && n <= MAX_BUCKETS);
    for (int64_t i = 0; i < n; i++) {
        assert_true(list[i] == last ? i == n - 1 : list[i] == first << i && list[i] < last);
    }
}

void fuzz_sizing(input *in)
{
    fuzz_token_buckets(in);
    fuzz_request_buckets(in);
    const int64_t a = take_number(in), b = take_number(in), c = take_number(in);
    const int64_t reqs = pkv_padded_num_reqs(a, b), slices = pkv_padded_num_slices(a, b, c);
    const int32_t per_block = pkv_num_slices_per_block(a, b);
    assert_true(reqs >= 0 && reqs <= (b > 0 ? b : 0));
    assert_true(slices >= 0 && slices <= (b > 0 ? b : 0));
    assert_true(per_block >= 0 && per_block <= 64 && (per_block & (per_block - 1)) == 0);
    assert_true(per_block == 0 || a <= b / per_block);
    assert_true(pkv_scratch_page_bytes(a, b, c, take_mostly(in, 1, 10)) >= 0);
    const int64_t page = pkv_page_size(a);
    assert_true(a < 1 || a > (int64_t)1 << 61 ? page == 0 : page >= 16 && page <= 256);
    assert_true(pkv_min_page_size(a, b) >= 0 && pkv_max_num_reqs(a, b) >= 0);
}
