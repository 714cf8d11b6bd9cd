/*
 * Every copy kernel against a plain byte loop: all small sizes at all
 * alignments, both ends of a page, strides, many runs.  The one test that
 * looks behind the public header.
 */
#include "support.h"

#include <stdio.h>
#include <string.h>

#include "../src/cpu/kernels.h"

enum { EDGE = 64, LARGEST = 70001, MAX_RUNS = 70 };

static const size_t large_sizes[] = {383,  511,  512,  513,  1023,  1025,  2047,  4033,
                                     4095, 4096, 4097, 8191, 12345, 16384, 65537, LARGEST};

static const char *const stream_names[] = {"cached", "streaming"};

static void plain_copy(const pkv_i_run *run, unsigned char *dst)
{
    for (size_t row = 0; row < run->n_rows; row++) {
        const char *src = run->src + (ptrdiff_t)row * run->src_stride_bytes;
        for (size_t b = 0; b < run->row_bytes; b++) {
            dst[(ptrdiff_t)row * run->dst_stride_bytes + (ptrdiff_t)b] = (unsigned char)src[b];
        }
    }
}

static pkv_i_run one_row(unsigned char *dst, const unsigned char *src, size_t n_bytes)
{
    return (pkv_i_run){(char *)dst, (const char *)src, n_bytes, 1, 0, 0};
}

static void run_kernel(const pkv_i_kernels *kernels, const pkv_i_run *runs, size_t n, bool stream)
{
    kernels->copy_runs(runs, n, stream);
    kernels->finish();
}

/* ---- one row, with canaries around --------------------------------------- */

typedef struct bench {
    unsigned char *dst;      /* EDGE + 64 + LARGEST + EDGE bytes, 64-byte aligned */
    unsigned char *expected; /* as many */
    unsigned char *src;      /* 64 + LARGEST bytes of noise, 64-byte aligned */
    unsigned char *canaries; /* as many as dst */
} bench;

static void *aligned_noise(size_t n_bytes, uint64_t seed)
{
    void *data = aligned_alloc(64, (n_bytes + 63) / 64 * 64);
    assert_non_null(data);
    fill(data, n_bytes, FILL_RANDOM, seed);
    return data;
}

static void bench_init(bench *b)
{
    size_t n_bytes = 2 * EDGE + 64 + LARGEST;
    b->dst = aligned_noise(n_bytes, 1);
    b->expected = aligned_noise(n_bytes, 1);
    b->canaries = aligned_noise(n_bytes, 1);
    b->src = aligned_noise(64 + LARGEST, 2);
}

static void bench_free(bench *b)
{
    free(b->dst);
    free(b->expected);
    free(b->canaries);
    free(b->src);
}

static void check_row(const pkv_i_kernels *kernels, bench *b, size_t n_bytes, size_t dst_align,
                      size_t src_align, bool stream)
{
    size_t window = 2 * EDGE + dst_align + n_bytes;
    note_case(kernels->isa, 0, "%zu bytes, alignment %zu from %zu, %s", n_bytes, dst_align,
              src_align, stream_names[stream]);
    pkv_i_run run = one_row(b->dst + EDGE + dst_align, b->src + src_align, n_bytes);
    run_kernel(kernels, &run, 1, stream);
    plain_copy(&run, b->expected + EDGE + dst_align);
    expect_same_bytes("copy", b->dst, b->expected, window);
    memcpy(b->dst, b->canaries, window);
    memcpy(b->expected, b->canaries, window);
}

static void every_small_size_and_alignment(const pkv_i_kernels *kernels)
{
    static const size_t src_aligns[] = {0, 1, 37};
    bench b;
    bench_init(&b);
    for (size_t n_bytes = 0; n_bytes <= 320; n_bytes++) {
        for (size_t align = 0; align < 64; align++) {
            for (size_t i = 0; i < 3; i++) {
                check_row(kernels, &b, n_bytes, align, src_aligns[i], false);
                check_row(kernels, &b, n_bytes, align, src_aligns[i], true);
            }
        }
    }
    bench_free(&b);
}

static void large_sizes_at_some_alignments(const pkv_i_kernels *kernels)
{
    static const size_t aligns[] = {0, 1, 16, 31, 63};
    bench b;
    bench_init(&b);
    for (size_t i = 0; i < sizeof large_sizes / sizeof large_sizes[0]; i++) {
        for (size_t a = 0; a < 5; a++) {
            check_row(kernels, &b, large_sizes[i], aligns[a], aligns[4 - a], false);
            check_row(kernels, &b, large_sizes[i], aligns[a], aligns[4 - a], true);
        }
    }
    bench_free(&b);
}

/* Every pattern survives: a kernel that went through a float unit would quiet a NaN. */
static void every_pattern(const pkv_i_kernels *kernels)
{
    bench b;
    bench_init(&b);
    for (int pattern = 0; pattern < FILL_COUNT; pattern++) {
        fill(b.src, 64 + LARGEST, pattern, 3);
        for (size_t n_bytes = 1; n_bytes <= 600; n_bytes += 13) {
            check_row(kernels, &b, n_bytes, n_bytes % 64, n_bytes % 7, n_bytes % 2 == 0);
        }
    }
    bench_free(&b);
}

/* ---- against guard pages ------------------------------------------------- */

static void check_at_guards(const pkv_i_kernels *kernels, const guarded *dst, const guarded *src,
                            size_t n_bytes, bool stream)
{
    note_case(kernels->isa, 0, "%zu bytes between guard pages, %s", n_bytes,
              stream_names[stream]);
    unsigned char *dst_ends[] = {dst->data, guarded_tail(dst, n_bytes)};
    unsigned char *src_ends[] = {src->data, guarded_tail(src, n_bytes)};
    for (size_t i = 0; i < 4; i++) {
        unsigned char *to = dst_ends[i / 2];
        unsigned char *from = src_ends[i % 2];
        memset(to, 0xA5, n_bytes);
        pkv_i_run run = one_row(to, from, n_bytes);
        run_kernel(kernels, &run, 1, stream);
        expect_same_bytes("copy at a guard page", to, from, n_bytes);
    }
}

static void both_ends_of_a_page(const pkv_i_kernels *kernels)
{
    guarded dst = guarded_new(LARGEST);
    guarded src = guarded_new(LARGEST);
    fill(src.data, src.room_bytes, FILL_RANDOM, 4);
    guarded_protect(&src);
    for (size_t n_bytes = 0; n_bytes <= 320; n_bytes++) {
        check_at_guards(kernels, &dst, &src, n_bytes, false);
        check_at_guards(kernels, &dst, &src, n_bytes, true);
    }
    for (size_t i = 0; i < sizeof large_sizes / sizeof large_sizes[0]; i++) {
        check_at_guards(kernels, &dst, &src, large_sizes[i], false);
        check_at_guards(kernels, &dst, &src, large_sizes[i], true);
    }
    guarded_free(&dst);
    guarded_free(&src);
}

/* ---- strides and many runs ----------------------------------------------- */

/* A run with rows of its own behind offset *dst_at; the source may repeat or overlap itself. */
static pkv_i_run random_run(rng *r, unsigned char *dst, size_t *dst_at, const guarded *src)
{
    pkv_i_run run;
    run.row_bytes = (size_t)rng_range(r, 0, rng_range(r, 0, 9) == 0 ? 3000 : 300);
    run.n_rows = (size_t)rng_range(r, 0, 9);
    run.dst_stride_bytes = (ptrdiff_t)run.row_bytes + (ptrdiff_t)rng_range(r, 0, 70);
    run.src_stride_bytes = (ptrdiff_t)rng_range(r, 0, 3) * (ptrdiff_t)run.row_bytes;
    *dst_at += (size_t)rng_range(r, 0, 70);
    run.dst = (char *)dst + *dst_at;
    *dst_at += run.n_rows * (size_t)run.dst_stride_bytes;
    size_t span = run.n_rows * (size_t)run.src_stride_bytes + run.row_bytes;
    run.src = (const char *)src->data + rng_range(r, 0, (int64_t)(src->room_bytes - span));
    return run;
}

static void random_runs(const pkv_i_kernels *kernels)
{
    size_t room = (size_t)MAX_RUNS * 10 * 3100;
    unsigned char *dst = aligned_noise(room, 5);
    unsigned char *expected = aligned_noise(room, 5);
    guarded src = guarded_new(100000);
    fill(src.data, src.room_bytes, FILL_RANDOM, 6);
    for (uint64_t seed = 0; seed < 300; seed++) {
        rng r = {seed};
        pkv_i_run runs[MAX_RUNS];
        size_t n_runs = (size_t)rng_range(&r, 0, MAX_RUNS);
        size_t used = 0;
        bool stream = seed % 2 == 1;
        note_case(kernels->isa, seed, "%zu runs, %s", n_runs, stream_names[stream]);
        for (size_t i = 0; i < n_runs; i++) {
            runs[i] = random_run(&r, dst, &used, &src);
        }
        run_kernel(kernels, runs, n_runs, stream);
        for (size_t i = 0; i < n_runs; i++) {
            plain_copy(&runs[i], expected + ((unsigned char *)runs[i].dst - dst));
        }
        expect_same_bytes("runs", dst, expected, used + 64);
    }
    free(dst);
    free(expected);
    guarded_free(&src);
}

/* ---- all variants -------------------------------------------------------- */

static void each_kernel(void (*check)(const pkv_i_kernels *kernels))
{
    watch_faults();
    int n_run = 0;
    for (int32_t i = 0; pkv_i_kernels_at(i) != NULL; i++) {
        const pkv_i_kernels *kernels = pkv_i_kernels_at(i);
        if (kernels->usable()) {
            check(kernels);
            n_run++;
        } else {
            print_message("kernel %s: not run, this processor lacks it\n", kernels->isa);
        }
    }
    assert_true(n_run >= 1);
}

static void test_small_sizes(void **state)
{
    (void)state;
    each_kernel(every_small_size_and_alignment);
}

static void test_large_sizes(void **state)
{
    (void)state;
    each_kernel(large_sizes_at_some_alignments);
}

static void test_patterns(void **state)
{
    (void)state;
    each_kernel(every_pattern);
}

static void test_page_ends(void **state)
{
    (void)state;
    each_kernel(both_ends_of_a_page);
}

static void test_runs(void **state)
{
    (void)state;
    each_kernel(random_runs);
}

static void test_plain_c_is_first_and_usable(void **state)
{
    (void)state;
    assert_non_null(pkv_i_kernels_at(0));
    assert_string_equal(pkv_i_kernels_at(0)->isa, "c");
    assert_true(pkv_i_kernels_at(0)->usable());
    for (int32_t i = 0; pkv_i_kernels_at(i) != NULL; i++) {
        assert_string_equal(pkv_isa_name(i), pkv_i_kernels_at(i)->isa);
        assert_int_equal(pkv_isa_usable(i), pkv_i_kernels_at(i)->usable());
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain_c_is_first_and_usable),
        cmocka_unit_test(test_small_sizes),
        cmocka_unit_test(test_large_sizes),
        cmocka_unit_test(test_patterns),
        cmocka_unit_test(test_page_ends),
        cmocka_unit_test(test_runs),
    };
    return cmocka_run_group_tests_name("kernels", tests, NULL, NULL);
}
