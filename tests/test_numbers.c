/*
 * The conversions of every instruction set against a model in double arithmetic: all
 * inputs of the small formats, the edges of binary32, ties, NaNs, random bits; and the
 * worked examples of docs/numerics.md.
 */
#include "numbers_model.h"
#include "support.h"

#include <stdio.h>
#include <string.h>

#include "../src/cpu/kernels.h"

static const pkv_dtype dtypes[] = {PKV_DTYPE_F32,      PKV_DTYPE_F16,  PKV_DTYPE_BF16,
                                   PKV_DTYPE_FP8_E4M3, PKV_DTYPE_FP8_E5M2, PKV_DTYPE_INT8,
                                   PKV_DTYPE_INT4};
enum { N_DTYPES = 7, N_FLOATS = 3 };

/* Given scales: 1, 0.3, 10, a power of two, the smallest, and two large ones. */
static const uint32_t some_scales[] = {0x3F800000, 0x3E99999A, 0x41200000, 0x40800000,
                                       0x00800000, 0x7F000000, 0x7F7FFFFF};
enum { N_SCALES = 7 };

static pkv_i_scaling library_scaling(model_scaling scaling)
{
    switch (scaling) {
    case MODEL_GIVEN:
        return PKV_I_SCALE_GIVEN;
    case MODEL_COMPUTED:
        return PKV_I_SCALE_COMPUTED;
    case MODEL_BACK:
        return PKV_I_SCALE_BACK;
    default:
        return PKV_I_SCALE_NONE;
    }
}

static size_t bytes_of(pkv_dtype dtype, int64_t n)
{
    return (size_t)(n * model_bits(dtype) / 8);
}

/* ---- a list of inputs, by every kernel --------------------------------------------------- */

/* One vector of n elements; all of its scales are one or, if computed, one for each group. */
typedef struct lot {
    pkv_dtype     from, to;
    const void   *src;
    int64_t       n, group;
    model_scaling scaling;
    uint32_t      scale;
    const char   *what;
    uint64_t      seed;
} lot;

static void run_kernel(const pkv_i_kernels *kernels, const lot *l, void *dst, void *scales)
{
    const pkv_i_vectors v = {.dst = dst, .src = l->src, .scale = scales, .n_vectors = 1,
                             .n = (size_t)l->n, .group = (size_t)l->group};
    const pkv_i_cast_fn cast = kernels->cast(l->from, l->to);
    assert_non_null(cast);
    cast(&v, library_scaling(l->scaling));
}

static uint32_t *new_scales(const lot *l, size_t n)
{
    uint32_t *scales = test_alloc(n * sizeof *scales);
    for (size_t i = 0; i < n; i++) {
        scales[i] = l->scale;
    }
    return scales;
}

static void check(const lot *l)
{
    const size_t n_bytes = bytes_of(l->to, l->n), n_scales = (size_t)(l->n / l->group);
    void        *expected = test_alloc(n_bytes), *found = test_alloc(n_bytes);
    uint32_t    *scales = new_scales(l, n_scales);
    memset(expected, 0, n_bytes);
    model_cast(l->from, l->src, l->to, expected, l->n, l->group, l->scaling, scales);
    int n_run = 0;
    for (int32_t i = 0; pkv_i_kernels_at(i) != NULL; i++) {
        const pkv_i_kernels *kernels = pkv_i_kernels_at(i);
        if (!kernels->usable()) {
            continue;
        }
        uint32_t *own = new_scales(l, n_scales);
        note_case(kernels->isa, l->seed, "%s, %s -> %s, n %lld group %lld scaling %d scale %08x",
                  l->what, pkv_dtype_name(l->from), pkv_dtype_name(l->to), (long long)l->n,
                  (long long)l->group, l->scaling, l->scale);
        memset(found, 0xA5, n_bytes);
        run_kernel(kernels, l, found, own);
        expect_same_bytes("scales", own, scales, n_scales * sizeof *own);
        expect_same_bytes("elements", found, expected, n_bytes);
        free(own);
        n_run++;
    }
    assert_true(n_run >= 1);
    free(expected);
    free(found);
    free(scales);
}

/* To every format that there is, with no scale and with some. */
static void check_to_all(pkv_dtype from, const void *src, int64_t n, int n_scales,
                         const char *what, uint64_t seed)
{
    for (int t = 0; t < N_DTYPES; t++) {
        lot l = {.from = from, .to = dtypes[t], .src = src, .n = n, .group = n, .what = what,
                 .seed = seed};
        if (!model_converts(from, dtypes[t])) {
            continue;
        }
        check(&l);
        for (int s = 0; s < n_scales; s++) {
            l.scaling = from > PKV_DTYPE_BF16 ? MODEL_BACK : MODEL_GIVEN;
            l.scale = some_scales[s];
            check(&l);
        }
    }
}

static void test_all_16_bit_inputs(void **state)
{
    (void)state;
    static uint16_t codes[65536];
    for (int i = 0; i < 65536; i++) {
        codes[i] = (uint16_t)i;
    }
    check_to_all(PKV_DTYPE_F16, codes, 65536, 3, "all codes", 0);
    check_to_all(PKV_DTYPE_BF16, codes, 65536, 3, "all codes", 0);
    for (int t = N_FLOATS; t < N_DTYPES; t++) { /* the rest of the scales, on the integers' way */
        for (int s = 3; s < N_SCALES; s++) {
            const lot l = {PKV_DTYPE_BF16, dtypes[t], codes, 65536, 65536, MODEL_GIVEN,
                           some_scales[s], "all codes", 0};
            check(&l);
        }
    }
}

static void test_all_8_bit_and_4_bit_inputs(void **state)
{
    (void)state;
    uint8_t codes[256];
    for (int i = 0; i < 256; i++) {
        codes[i] = (uint8_t)i;
    }
    for (int f = N_FLOATS; f < N_DTYPES; f++) {
        check_to_all(dtypes[f], codes, dtypes[f] == PKV_DTYPE_INT4 ? 512 : 256, N_SCALES,
                     "all bytes", 0);
    }
}

/* ---- binary32 ---------------------------------------------------------------------------- */

typedef struct list {
    uint32_t *bits;
    int64_t   n, room;
} list;

static void push(list *l, uint32_t bits)
{
    if (l->n == l->room) {
        l->room = l->room * 2 + 64;
        l->bits = realloc(l->bits, (size_t)l->room * sizeof *l->bits);
        assert_non_null(l->bits);
    }
    l->bits[l->n++] = bits;
}

static void push_signed(list *l, uint32_t bits)
{
    push(l, bits);
    push(l, bits ^ 0x80000000u);
}

static void push_around(list *l, uint32_t bits)
{
    push_signed(l, bits);
    push_signed(l, bits + 1);
    if ((bits & 0x7FFFFFFF) != 0) {
        push_signed(l, bits - 1);
    }
}

static void test_edges_of_f32(void **state)
{
    (void)state;
    static const uint32_t mantissas[] = {
        0,        1,        2,        3,        0x0FFFFF, 0x100000, 0x1FFFFF, 0x3FFFFF, 0x400000,
        0x400001, 0x555555, 0x5FF000, 0x6FFFFF, 0x7FE000, 0x7FF000, 0x7FFFFE, 0x7FFFFF, 0x001000};
    list l = {0};
    for (uint32_t exponent = 0; exponent < 256; exponent++) {
        for (size_t m = 0; m < sizeof mantissas / sizeof mantissas[0]; m++) {
            push_signed(&l, exponent << 23 | mantissas[m]);
        }
    }
    for (uint32_t bit = 0; bit < 23; bit++) { /* subnormals, and NaNs with one bit of payload */
        push_around(&l, 1u << bit);
        push_around(&l, 0x7F800000 | 1u << bit);
    }
    check_to_all(PKV_DTYPE_F32, l.bits, l.n, N_SCALES, "edges", 0);
    free(l.bits);
}

/* Every middle between two neighbours of the format, every value, and what lies next to them. */
static list ties_of(pkv_dtype to)
{
    list           l = {0};
    const uint32_t last = 1u << (model_bits(to) - 1);
    if (to >= PKV_DTYPE_INT8) {
        for (int32_t half = 0; half <= 600; half++) {
            push_around(&l, model_round_f32(half / 2.0));
        }
        return l;
    }
    for (uint32_t code = 0; code + 1 < last; code++) {
        const double here = model_value(to, code);
        double       next = model_value(to, code + 1);
        if (!(here < 1e39)) { /* not infinity or NaN */
            break;
        }
        if (!(next < 1e39)) { /* where a further number would be */
            next = here + (here - model_value(to, code - 1));
        }
        push_around(&l, model_round_f32(here));
        push_around(&l, model_round_f32((here + next) / 2));
    }
    return l;
}

static void test_ties_of_every_format(void **state)
{
    (void)state;
    for (int t = 1; t < N_DTYPES; t++) {
        list l = ties_of(dtypes[t]);
        lot  ties = {.from = PKV_DTYPE_F32, .to = dtypes[t], .src = l.bits, .n = l.n,
                     .group = l.n, .what = "ties"};
        check(&ties);
        ties.scaling = MODEL_GIVEN;
        ties.scale = 0x40400000; /* 3 */
        check(&ties);
        for (int64_t i = 0; i < l.n; i++) { /* times 4, where that is a number */
            const uint32_t exponent = l.bits[i] >> 23 & 0xFF;
            l.bits[i] += exponent > 0 && exponent < 253 ? 2u << 23 : 0;
        }
        ties.scale = 0x40800000; /* 4 */
        check(&ties);
        free(l.bits);
    }
}

static void test_random_f32(void **state)
{
    (void)state;
    enum { N = 1000000, PIECE = 1000 };
    static uint32_t bits[N];
    rng             r = {20};
    for (int i = 0; i < N; i++) {
        bits[i] = (uint32_t)rng_next(&r);
    }
    for (int t = 1; t < N_DTYPES; t++) {
        const lot l = {PKV_DTYPE_F32, dtypes[t], bits, N, N, MODEL_ONE, 0, "random bits", 20};
        check(&l);
    }
    /* Near to 1, with a scale that is, so that most products are numbers of the format. */
    for (int i = 0; i < N; i += PIECE) {
        for (int j = i; j < i + PIECE; j++) {
            bits[j] = (bits[j] & 0x807FFFFFu) | (uint32_t)rng_range(&r, 110, 135) << 23;
        }
        const uint32_t scale = (uint32_t)rng_range(&r, 115, 130) << 23 |
                               (uint32_t)rng_range(&r, 0, 0x7FFFFF);
        const lot l = {PKV_DTYPE_F32, dtypes[1 + i / PIECE % (N_DTYPES - 1)], bits + i, PIECE,
                       PIECE, MODEL_GIVEN, scale, "random near 1", (uint64_t)i};
        check(&l);
    }
}

/* ---- computed scales --------------------------------------------------------------------- */

static uint32_t special(rng *r, int kind)
{
    static const uint32_t edges[] = {0x7F800000, 0xFF800000, 0x7FC00000, 0xFF800001, 0,
                                     0x80000000, 1,          0x80000001, 0x007FFFFF, 0x00800000,
                                     0x7F7FFFFF, 0x3F800000};
    switch (kind) {
    case 0: /* nothing but zeros */
        return (uint32_t)rng_range(r, 0, 1) << 31;
    case 1: /* nothing finite */
        return edges[rng_range(r, 0, 3)];
    case 2: /* zeros and what is not finite */
        return edges[rng_range(r, 0, 5)];
    case 3: /* subnormals */
        return (uint32_t)rng_range(r, 0, 0x7FFFFF) | (uint32_t)rng_range(r, 0, 1) << 31;
    case 4: /* around 1e-36 */
        return 0x03AA2425u + (uint32_t)rng_range(r, -0x1000000, 0x1000000);
    case 5:
        return edges[rng_range(r, 0, 11)];
    case 6: /* large */
        return (uint32_t)rng_range(r, 0x7E000000, 0x7F7FFFFF) | (uint32_t)rng_range(r, 0, 1) << 31;
    case 7:
        return (uint32_t)rng_next(r);
    default: /* usual */
        return ((uint32_t)rng_next(r) & 0x807FFFFFu) | (uint32_t)rng_range(r, 118, 129) << 23;
    }
}

static void test_computed_scales(void **state)
{
    (void)state;
    enum { N_GROUPS = 12, MOST = 130 };
    uint32_t wide[N_GROUPS * MOST];
    uint16_t narrow[N_GROUPS * MOST];
    for (uint64_t seed = 0; seed < 2000; seed++) {
        rng           r = {seed};
        const int64_t group = 2 * rng_range(&r, 1, MOST / 2), n = group * N_GROUPS;
        const int     f = (int)(seed % N_FLOATS), t = N_FLOATS + (int)(seed / 3 % 4);
        for (int64_t i = 0; i < n; i++) {
            wide[i] = special(&r, (int)((i / group + (int64_t)seed) % 9));
            narrow[i] = (uint16_t)model_from_f32(dtypes[f == 0 ? 1 : f], wide[i]);
        }
        const lot l = {dtypes[f], dtypes[t], f == 0 ? (void *)wide : (void *)narrow, n, group,
                       MODEL_COMPUTED, 0xDEADBEEF, "computed", seed};
        check(&l);
    }
}

/* ---- docs/numerics.md -------------------------------------------------------------------- */

static void expect_codes(const char *what, pkv_dtype from, const void *src, pkv_dtype to,
                         const void *expected, int64_t n, model_scaling scaling, uint32_t scale)
{
    const lot l = {from, to, src, n, n, scaling, scale, what, 0};
    uint8_t   found[64];
    uint32_t  scales[1] = {scale};
    check(&l);
    for (int32_t i = 0; pkv_i_kernels_at(i) != NULL; i++) {
        if (pkv_i_kernels_at(i)->usable()) {
            run_kernel(pkv_i_kernels_at(i), &l, found, scales);
            expect_same_bytes(what, found, expected, bytes_of(to, n));
        }
    }
}

typedef struct example {
    uint32_t  x;
    pkv_dtype to;
    uint32_t  code;
    uint32_t  scale; /* 0: none */
} example;

static const example examples[] = {
    {0x3F880001, PKV_DTYPE_FP8_E5M2, 0x3C, 0},          /* 1.0625 and a bit: 1.0 */
    {0x3F900008, PKV_DTYPE_FP8_E5M2, 0x3D, 0},          /* 1.125 + 2^-20: 1.25 */
    {0x41A80000, PKV_DTYPE_INT8, 7, 0x40400000},        /* 21 / 3 */
    {0x40A00000, PKV_DTYPE_INT8, 0, 0x41200000},        /* 5 / 10, a tie */
    {0x3D3851EC, PKV_DTYPE_INT8, 4, 0x3C23D70A},        /* 0.045 / 0.01: 4.5 by the reciprocal */
    {0x00018000, PKV_DTYPE_BF16, 0x0002, 0},            /* a tie, to even */
    {0x7F7FFFFF, PKV_DTYPE_BF16, 0x7F80, 0},            /* overflow */
    {0x477FEFFF, PKV_DTYPE_F16, 0x7BFF, 0},             /* 65519.996 */
    {0x477FF000, PKV_DTYPE_F16, 0x7C00, 0},             /* 65520 */
    {0x33000000, PKV_DTYPE_F16, 0x0000, 0},             /* 2^-25, a tie */
    {0x33000001, PKV_DTYPE_F16, 0x0001, 0},             /* the next one */
    {0x43E80000, PKV_DTYPE_FP8_E4M3, 0x7E, 0},          /* 464 */
    {0xFF800000, PKV_DTYPE_FP8_E4M3, 0xFE, 0},          /* -inf */
    {0x3A800000, PKV_DTYPE_FP8_E4M3, 0x00, 0},          /* 2^-10, a tie */
    {0x3B400000, PKV_DTYPE_FP8_E4M3, 0x02, 0},          /* 3 * 2^-10 */
    {0x47700000, PKV_DTYPE_FP8_E5M2, 0x7B, 0},          /* 61440 */
    {0x7F800000, PKV_DTYPE_FP8_E5M2, 0x7B, 0},          /* inf */
    {0xC3008000, PKV_DTYPE_INT8, 0x80, 0},              /* -128.5 */
    {0x3F000000, PKV_DTYPE_INT8, 0, 0},                 /* 0.5 */
    {0x3FC00000, PKV_DTYPE_INT8, 2, 0},                 /* 1.5 */
    {0x42FF0000, PKV_DTYPE_INT8, 0x7F, 0},              /* 127.5 */
    {0xFF800001, PKV_DTYPE_BF16, 0xFFC0, 0},            /* a signalling NaN */
    {0xFF800001, PKV_DTYPE_F16, 0xFE00, 0},
    {0xFF800001, PKV_DTYPE_FP8_E4M3, 0xFF, 0},
    {0xFF800001, PKV_DTYPE_INT8, 0x00, 0},
    {0x80000000, PKV_DTYPE_F16, 0x8000, 0},             /* -0 */
    {0x80000000, PKV_DTYPE_FP8_E4M3, 0x80, 0},
    {0x80000000, PKV_DTYPE_INT8, 0, 0},
};

static void test_examples(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof examples / sizeof examples[0]; i++) {
        const example *e = &examples[i];
        const uint32_t x[2] = {e->x, 0}, codes16 = e->code;
        const int64_t  n = e->to == PKV_DTYPE_INT4 ? 2 : 1;
        char           what[32];
        snprintf(what, sizeof what, "example %zu", i);
        expect_codes(what, PKV_DTYPE_F32, x, e->to, &codes16, n,
                     e->scale == 0 ? MODEL_ONE : MODEL_GIVEN, e->scale);
    }
}

/* The reciprocals and products on the way of the examples. */
static void test_examples_on_the_way(void **state)
{
    (void)state;
    static const uint32_t rows[][4] = {
        /* x, scale, 1 / scale, x times that */
        {0x41A80000, 0x40400000, 0x3EAAAAAB, 0x40E00000},
        {0x40A00000, 0x41200000, 0x3DCCCCCD, 0x3F000000},
        {0x3D3851EC, 0x3C23D70A, 0x42C80000, 0x40900000},
    };
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        assert_int_equal(model_reciprocal(rows[i][1]), rows[i][2]);
        assert_int_equal(model_times(rows[i][0], rows[i][2]), rows[i][3]);
    }
}

static void test_examples_of_groups(void **state)
{
    (void)state;
    const float   pair[2] = {-8.4f, 3.0f};
    const uint8_t nibbles = 0x38;
    expect_codes("two nibbles", PKV_DTYPE_F32, pair, PKV_DTYPE_INT4, &nibbles, 2, MODEL_ONE, 0);

    const uint32_t group[4] = {0x3F800000, 0xC0200000, 0x7F800000, 0x7FC00000};
    const int8_t   codes[4] = {51, -127, 127, 0};
    const uint32_t scale = model_scale(PKV_DTYPE_F32, group, 0, 4, PKV_DTYPE_INT8);
    const uint32_t back[4] = {0x3F808102, 0xC0200000, 0x40200000, 0}; /* 1.003937, -2.5, 2.5, 0 */
    assert_int_equal(scale, 0x3CA14285);
    assert_int_equal(model_reciprocal(scale), 0x424B3333);
    expect_codes("int8 group", PKV_DTYPE_F32, group, PKV_DTYPE_INT8, codes, 4, MODEL_COMPUTED, 0);
    expect_codes("and back", PKV_DTYPE_INT8, codes, PKV_DTYPE_F32, back, 4, MODEL_BACK, scale);

    const float   tiny = 1e-36f;
    const uint8_t code = 85;
    assert_int_equal(model_scale(PKV_DTYPE_F32, &tiny, 0, 1, PKV_DTYPE_INT8), 0x00800000);
    assert_int_equal(model_reciprocal(0x00800000), 0x7E800000); /* 2^126 */
    expect_codes("1e-36", PKV_DTYPE_F32, &tiny, PKV_DTYPE_INT8, &code, 1, MODEL_COMPUTED, 0);

    const uint8_t  infinity = 0x7C;
    const uint32_t wide = 0x7F800000;
    expect_codes("e5m2 infinity", PKV_DTYPE_FP8_E5M2, &infinity, PKV_DTYPE_F32, &wide, 1,
                 MODEL_ONE, 0);
}

/* What has a conversion and what has none. */
static void test_table(void **state)
{
    (void)state;
    for (int32_t i = 0; pkv_i_kernels_at(i) != NULL; i++) {
        for (pkv_dtype from = -1; from <= PKV_DTYPE_BITS32 + 1; from++) {
            for (pkv_dtype to = -1; to <= PKV_DTYPE_BITS32 + 1; to++) {
                assert_int_equal(pkv_i_kernels_at(i)->cast(from, to) != NULL,
                                 model_converts(from, to));
                assert_int_equal(pkv_converts(from, to), model_converts(from, to));
            }
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_all_16_bit_inputs),
        cmocka_unit_test(test_all_8_bit_and_4_bit_inputs),
        cmocka_unit_test(test_edges_of_f32),
        cmocka_unit_test(test_ties_of_every_format),
        cmocka_unit_test(test_random_f32),
        cmocka_unit_test(test_computed_scales),
        cmocka_unit_test(test_examples),
        cmocka_unit_test(test_examples_on_the_way),
        cmocka_unit_test(test_examples_of_groups),
    };
    return cmocka_run_group_tests_name("numbers", tests, NULL, NULL);
}
