/*
 * Where conversions read and write: every length, every alignment, groups, strides,
 * canaries and guard pages; and the caller's float environment.
 */
#include "numbers_model.h"
#include "support.h"

#include <fenv.h>
#include <string.h>

#include "../src/cpu/fpenv.h"
#include "../src/cpu/kernels.h"

enum { FIRST = PKV_DTYPE_F32, LAST = PKV_DTYPE_INT4 };

static size_t bytes_of(pkv_dtype dtype, int64_t n)
{
    return (size_t)(n * model_bits(dtype) / 8);
}

/* What may happen to scales between these formats. */
static int scalings_of(pkv_dtype from, pkv_dtype to, model_scaling out[3])
{
    out[0] = MODEL_ONE;
    if (to > PKV_DTYPE_BF16) {
        out[1] = MODEL_GIVEN;
        out[2] = MODEL_COMPUTED;
        return 3;
    }
    out[1] = MODEL_BACK;
    return from > PKV_DTYPE_BF16 ? 2 : 1;
}

static const pkv_i_scaling library_scaling[] = {
    [MODEL_ONE] = PKV_I_SCALE_NONE, [MODEL_GIVEN] = PKV_I_SCALE_GIVEN,
    [MODEL_COMPUTED] = PKV_I_SCALE_COMPUTED, [MODEL_BACK] = PKV_I_SCALE_BACK};

/* ---- vectors anywhere -------------------------------------------------------------------- */

/* Elements of usual sizes, some of them odd. */
static void fill_elements(rng *r, pkv_dtype dtype, unsigned char *memory, size_t n_bytes)
{
    fill(memory, n_bytes, FILL_RANDOM, rng_next(r));
    const int64_t n = (int64_t)n_bytes * 8 / model_bits(dtype);
    for (int64_t i = 0; dtype <= PKV_DTYPE_BF16 && i < n; i++) {
        if (rng_range(r, 0, 15) != 0) {
            const uint32_t bits = ((uint32_t)rng_next(r) & 0x807FFFFFu) |
                                  (uint32_t)rng_range(r, 117, 131) << 23;
            model_set_code(dtype, memory, i, model_from_f32(dtype, bits));
        }
    }
}

static void fill_scales(rng *r, unsigned char *memory, size_t n_bytes)
{
    for (size_t at = 0; at + 4 <= n_bytes; at++) { /* any alignment may be read */
        memory[at] = (unsigned char)rng_range(r, 0x3C, 0x41);
    }
}

typedef struct vectors {
    pkv_dtype     from, to;
    model_scaling scaling;
    int64_t       n_vectors, n, group;
    size_t        dst_at, src_at, scale_at; /* alignments */
    size_t        dst_pad, src_pad, scale_pad;
} vectors;

enum { EDGE = 48, ROOM = 4 * 1200 * 4 + 2 * EDGE + 64 };

typedef struct bench {
    unsigned char *dst, *expected, *src, *scales, *expected_scales;
} bench;

static void bench_init(bench *b)
{
    unsigned char **all[] = {&b->dst, &b->expected, &b->src, &b->scales, &b->expected_scales};
    for (int i = 0; i < 5; i++) {
        *all[i] = aligned_alloc(64, (ROOM + 63) / 64 * 64);
        assert_non_null(*all[i]);
    }
}

static void bench_free(bench *b)
{
    free(b->dst);
    free(b->expected);
    free(b->src);
    free(b->scales);
    free(b->expected_scales);
}

static void note_vectors(const char *isa, uint64_t seed, const vectors *c)
{
    note_case(isa, seed,
              "%s -> %s scaling %d, %lld x %lld groups of %lld, at %zu from %zu scale %zu",
              pkv_dtype_name(c->from), pkv_dtype_name(c->to), c->scaling, (long long)c->n_vectors,
              (long long)c->n, (long long)c->group, c->dst_at, c->src_at, c->scale_at);
}

/* With canaries around and between, by every kernel. */
static void check_vectors(bench *b, const vectors *c, uint64_t seed)
{
    rng          r = {seed};
    const size_t dst_step = bytes_of(c->to, c->n) + c->dst_pad;
    const size_t src_step = bytes_of(c->from, c->n) + c->src_pad;
    const size_t scale_step = (size_t)(c->n / c->group) * 4 + c->scale_pad;
    const size_t dst_bytes = 2 * EDGE + c->dst_at + (size_t)c->n_vectors * dst_step;
    const size_t scale_bytes = 2 * EDGE + c->scale_at + (size_t)c->n_vectors * scale_step;
    unsigned char *src = b->src + c->src_at, *dst = b->expected + EDGE + c->dst_at;
    unsigned char *scales = b->expected_scales + EDGE + c->scale_at;
    assert_true(dst_bytes <= ROOM && scale_bytes <= ROOM);
    fill_elements(&r, c->from, src, (size_t)c->n_vectors * src_step);
    fill(b->expected, dst_bytes, FILL_RANDOM, seed);
    fill_scales(&r, b->expected_scales, scale_bytes);
    unsigned char kept[ROOM];
    memcpy(kept, b->expected_scales, scale_bytes);
    for (int64_t v = 0; v < c->n_vectors; v++) {
        model_cast(c->from, src + (size_t)v * src_step, c->to, dst + (size_t)v * dst_step, c->n,
                   c->group, c->scaling, scales + (size_t)v * scale_step);
    }
    for (int32_t i = 0; pkv_i_kernels_at(i) != NULL; i++) {
        const pkv_i_kernels *kernels = pkv_i_kernels_at(i);
        if (!kernels->usable()) {
            continue;
        }
        note_vectors(kernels->isa, seed, c);
        fill(b->dst, dst_bytes, FILL_RANDOM, seed);
        memcpy(b->scales, kept, scale_bytes);
        const pkv_i_vectors v = {.dst = (char *)b->dst + EDGE + c->dst_at,
                                 .src = (const char *)src,
                                 .scale = (char *)b->scales + EDGE + c->scale_at,
                                 .n_vectors = (size_t)c->n_vectors,
                                 .n = (size_t)c->n,
                                 .group = (size_t)c->group,
                                 .dst_stride_bytes = (ptrdiff_t)dst_step,
                                 .src_stride_bytes = (ptrdiff_t)src_step,
                                 .scale_stride_bytes = (ptrdiff_t)scale_step};
        kernels->cast(c->from, c->to)(&v, library_scaling[c->scaling]);
        expect_same_bytes("scales", b->scales, b->expected_scales, scale_bytes);
        expect_same_bytes("elements", b->dst, b->expected, dst_bytes);
    }
}

/* Calls body for every pair that has a conversion. */
static void each_pair(void (*body)(bench *b, pkv_dtype from, pkv_dtype to))
{
    bench b;
    watch_faults();
    bench_init(&b);
    for (pkv_dtype from = FIRST; from <= LAST; from++) {
        for (pkv_dtype to = FIRST; to <= LAST; to++) {
            if (model_converts(from, to)) {
                body(&b, from, to);
            }
        }
    }
    bench_free(&b);
}

static bool is_even_only(pkv_dtype from, pkv_dtype to)
{
    return from == PKV_DTYPE_INT4 || to == PKV_DTYPE_INT4;
}

static void every_length(bench *b, pkv_dtype from, pkv_dtype to)
{
    model_scaling scalings[3];
    const int     n_scalings = scalings_of(from, to, scalings);
    const int64_t step = is_even_only(from, to) ? 2 : 1;
    for (int64_t n = step; n <= 200; n += step) {
        for (int s = 0; s < n_scalings; s++) {
            const uint64_t seed = (uint64_t)(n * 8 + s);
            rng            r = {seed};
            const vectors  c = {.from = from, .to = to, .scaling = scalings[s], .n_vectors = 1,
                                .n = n, .group = n, .dst_at = (size_t)rng_range(&r, 0, 7),
                                .src_at = (size_t)rng_range(&r, 0, 7),
                                .scale_at = (size_t)rng_range(&r, 0, 7)};
            check_vectors(b, &c, seed);
        }
    }
}

static void every_alignment(bench *b, pkv_dtype from, pkv_dtype to)
{
    model_scaling scalings[3];
    const int     n_scalings = scalings_of(from, to, scalings);
    for (uint64_t seed = 0; seed < 512; seed++) {
        rng     r = {seed};
        vectors c = {.from = from, .to = to, .dst_at = seed % 8, .src_at = seed / 8 % 8,
                     .scale_at = seed / 64, .n_vectors = 1};
        c.scaling = scalings[(int)(seed + seed / 8) % n_scalings];
        c.n = 2 * rng_range(&r, 1, 40);
        c.group = c.n;
        check_vectors(b, &c, seed);
    }
}

static void every_group(bench *b, pkv_dtype from, pkv_dtype to)
{
    model_scaling scalings[3];
    const int     n_scalings = scalings_of(from, to, scalings);
    const int64_t step = is_even_only(from, to) ? 2 : 1;
    for (int64_t group = step; group <= 100; group += step) {
        for (int s = 0; s < n_scalings; s++) {
            const uint64_t seed = (uint64_t)(group * 8 + s);
            rng            r = {seed};
            vectors        c = {.from = from, .to = to, .scaling = scalings[s], .group = group};
            c.n_vectors = rng_range(&r, 1, 3);
            c.n = group * rng_range(&r, 1, group < 40 ? 4 : 2);
            c.dst_at = (size_t)rng_range(&r, 0, 7);
            c.src_at = (size_t)rng_range(&r, 0, 7);
            c.scale_at = (size_t)rng_range(&r, 0, 7);
            c.dst_pad = (size_t)rng_range(&r, 0, 9);
            c.src_pad = (size_t)rng_range(&r, 0, 9);
            c.scale_pad = (size_t)rng_range(&r, 0, 9);
            check_vectors(b, &c, seed);
        }
    }
}

static void test_every_length(void **state)
{
    (void)state;
    each_pair(every_length);
}

static void test_every_alignment(void **state)
{
    (void)state;
    each_pair(every_alignment);
}

static void test_every_group(void **state)
{
    (void)state;
    each_pair(every_group);
}

/* ---- guard pages ------------------------------------------------------------------------- */

typedef struct rooms {
    guarded dst, src, scales;
} rooms;

/* Source, destination and scales end, or start, at a page that cannot be touched. */
static void at_guards(const rooms *g, pkv_dtype from, pkv_dtype to, int64_t n, bool at_end)
{
    const size_t   dst_bytes = bytes_of(to, n), src_bytes = bytes_of(from, n);
    model_scaling  scalings[3];
    const int      n_scalings = scalings_of(from, to, scalings);
    unsigned char *dst = at_end ? guarded_tail(&g->dst, dst_bytes) : g->dst.data;
    unsigned char *src = at_end ? guarded_tail(&g->src, src_bytes) : g->src.data;
    unsigned char *scale = at_end ? guarded_tail(&g->scales, 4) : g->scales.data;
    unsigned char  expected[1024];
    for (int s = 0; s < n_scalings; s++) {
        uint32_t one = 0x3F000000;
        model_cast(from, src, to, expected, n, n, scalings[s], &one);
        for (int32_t i = 0; pkv_i_kernels_at(i) != NULL; i++) {
            const pkv_i_kernels *kernels = pkv_i_kernels_at(i);
            if (!kernels->usable()) {
                continue;
            }
            const vectors c = {.from = from, .to = to, .scaling = scalings[s], .n_vectors = 1,
                               .n = n, .group = n};
            note_vectors(kernels->isa, at_end, &c);
            memcpy(scale, &(uint32_t){0x3F000000}, 4);
            const pkv_i_vectors v = {.dst = (char *)dst, .src = (char *)src, .n_vectors = 1,
                                     .scale = (char *)scale, .n = (size_t)n, .group = (size_t)n};
            kernels->cast(from, to)(&v, library_scaling[scalings[s]]);
            expect_same_bytes("scale at a guard page", scale, &one, 4);
            expect_same_bytes("elements at a guard page", dst, expected, dst_bytes);
        }
    }
}

static void between_guards(bench *b, pkv_dtype from, pkv_dtype to)
{
    (void)b;
    rng           r = {7};
    rooms         g = {guarded_new(1000), guarded_new(1000), guarded_new(10)};
    const int64_t step = is_even_only(from, to) ? 2 : 1;
    fill_elements(&r, from, g.src.data, g.src.room_bytes);
    guarded_protect(&g.src);
    for (int64_t n = step; n <= 200; n += n < 70 ? step : 14) {
        at_guards(&g, from, to, n, false);
        at_guards(&g, from, to, n, true);
    }
    guarded_free(&g.dst);
    guarded_free(&g.src);
    guarded_free(&g.scales);
}

static void test_guard_pages(void **state)
{
    (void)state;
    each_pair(between_guards);
}

/* ---- the caller's float environment ------------------------------------------------------ */

#if defined(__x86_64__)
static void flush_subnormals(bool flush)
{
    _mm_setcsr(flush ? _mm_getcsr() | 0x8040 : _mm_getcsr() & ~0x8040u); /* FTZ and DAZ */
}

static uint64_t modes(void)
{
    return _mm_getcsr();
}
#elif defined(__aarch64__)
static uint64_t modes(void)
{
    uint64_t fpcr;
    __asm__ volatile("mrs %0, fpcr" : "=r"(fpcr));
    return fpcr;
}

static void flush_subnormals(bool flush)
{
    const uint64_t bit = (uint64_t)1 << 24;
    __asm__ volatile("msr fpcr, %0" : : "r"(flush ? modes() | bit : modes() & ~bit));
}
#else
static void flush_subnormals(bool flush)
{
    (void)flush;
}

static uint64_t modes(void)
{
    return 0;
}
#endif

enum { T = 9, H = 2, D = 66, PER_TOKEN = H * D };

/* New K/V with many subnormals and ties. */
static void fill_delicate(uint32_t *x, size_t n, rng *r)
{
    for (size_t i = 0; i < n; i++) {
        const uint32_t sign = (uint32_t)rng_range(r, 0, 1) << 31;
        x[i] = i % 3 == 0   ? sign | (uint32_t)rng_range(r, 0, 0x7FFFFF)
               : i % 3 == 1 ? sign | model_round_f32((double)rng_range(r, 0, 300) / 2)
                            : sign | (uint32_t)rng_range(r, 100, 135) << 23 |
                                  (uint32_t)rng_range(r, 0, 0x7FFFFF);
    }
}

typedef struct delicate {
    uint32_t  x[T * PER_TOKEN];
    uint32_t  cache[T * PER_TOKEN], back[T * PER_TOKEN]; /* room for any dtype */
    uint32_t  scales[T * H * 2];
} delicate;

static void write_and_read(delicate *d, pkv_dtype dtype, int32_t kind)
{
    pkv_cache  cache;
    pkv_new_kv rows;
    pkv_rows   back;
    pkv_error  err;
    int32_t    columns[3] = {0, 0, T}, one = 1;
    pkv_slices slices;
    assert_int_equal(pkv_cache_nhd(&cache, sizeof cache, d->cache, NULL, T, 1, H, D, dtype), 0);
    assert_int_equal(pkv_new_kv_nhd(&rows, sizeof rows, d->x, NULL, T, H, D, 0, 0, PKV_DTYPE_F32),
                     0);
    assert_int_equal(pkv_rows_nhd(&back, sizeof back, d->back, NULL, T, H, D, 0, 0, PKV_DTYPE_F32),
                     0);
    assert_int_equal(pkv_slices_from_array(&slices, sizeof slices, columns, 1, &one), 0);
    memset(&cache.v, 0, sizeof cache.v);
    if (dtype > PKV_DTYPE_BF16) {
        cache.k_scales = (pkv_scales){d->scales, H * 8, H * 8, 8, kind,
                                      kind == PKV_SCALES_GROUP ? D / 2 : 0};
    }
    expect_ok(pkv_update(&cache, &rows, &slices, NULL, &err), &err);
    expect_ok(pkv_gather(&cache, &back, &slices, NULL, &err), &err);
}

static void with_modes(const delicate *before, const delicate *expected, pkv_dtype dtype,
                       int32_t kind, int rounding, bool flush)
{
    delicate d = *before;
    note_case(pkv_isa_current(), (uint64_t)rounding, "%s kind %d flushing %d",
              pkv_dtype_name(dtype), kind, flush);
    assert_int_equal(fesetround(rounding), 0);
    flush_subnormals(flush);
    const uint64_t was = modes();
    write_and_read(&d, dtype, kind);
    const uint64_t is = modes();
    flush_subnormals(false);
    assert_int_equal(fegetround(), rounding);
    assert_int_equal(fesetround(FE_TONEAREST), 0);
    assert_true(is == was);
    expect_same_bytes("cache", d.cache, expected->cache, sizeof d.cache);
    expect_same_bytes("scales", d.scales, expected->scales, sizeof d.scales);
    expect_same_bytes("rows", d.back, expected->back, sizeof d.back);
}

static void test_float_environment(void **state)
{
    (void)state;
    static const int roundings[] = {FE_TONEAREST, FE_UPWARD, FE_DOWNWARD, FE_TOWARDZERO};
    static delicate  d, expected;
    rng              r = {3};
    memset(&d, 0x3C, sizeof d);
    fill_delicate(d.x, T * PER_TOKEN, &r);
    for (int32_t isa = 0; pkv_isa_name(isa) != NULL; isa++) {
        if (pkv_isa_usable(isa) == 0) {
            continue;
        }
        assert_int_equal(pkv_isa_select(pkv_isa_name(isa)), PKV_OK);
        for (pkv_dtype dtype = PKV_DTYPE_F16; dtype <= LAST; dtype++) {
            for (int32_t kind = PKV_SCALES_TENSOR; kind <= PKV_SCALES_TOKEN_HEAD; kind++) {
                expected = d;
                write_and_read(&expected, dtype, kind);
                for (int m = 0; m < 8; m++) {
                    with_modes(&d, &expected, dtype, kind, roundings[m % 4], m >= 4);
                }
            }
        }
    }
    assert_int_equal(pkv_isa_select(NULL), PKV_OK);
}

/* What the library's own entry and exit do. */
static void test_enter_and_leave(void **state)
{
    (void)state;
    assert_int_equal(fesetround(FE_UPWARD), 0);
    flush_subnormals(true);
    const uint64_t was = modes(), kept = pkv_i_fpenv_enter();
    volatile float least = 0x1p-149f, one = 1, small = 0x1p-30f;
    volatile float twice = least + least, sum = one + small;
    const bool     is_kept = twice != 0 && sum == 1;
    pkv_i_fpenv_leave(kept);
    const uint64_t is = modes();
    flush_subnormals(false);
    assert_int_equal(fesetround(FE_TONEAREST), 0);
    assert_true(is_kept);
    assert_true(is == was);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_length),
        cmocka_unit_test(test_every_alignment),
        cmocka_unit_test(test_every_group),
        cmocka_unit_test(test_guard_pages),
        cmocka_unit_test(test_float_environment),
        cmocka_unit_test(test_enter_and_leave),
    };
    return cmocka_run_group_tests_name("numbers_places", tests, NULL, NULL);
}
