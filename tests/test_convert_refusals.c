/* What updates and gathers with scales refuse: status, place and text, and nothing is written. */
#include "convert_world.h"

#include <string.h>

enum { S = 4, H = 3, D = 24, T = 10 };

/* A good call that each test spoils; computed scales, apart. */
typedef struct call {
    cw         w;
    slice_list list;
    pkv_cache  cache;
    pkv_new_kv new_kv;
    pkv_rows   rows;
    guarded    found;
} call;

static void call_init(call *c, pkv_dtype dtype, int32_t kind)
{
    const cw_shape s = {.layout = CW_NHD, .place = CW_SCALES_APART, .dtype = dtype,
                        .rows_dtype = PKV_DTYPE_F32, .n_pages = 5, .page_size = S, .n_heads = H,
                        .head_dim = {D, D}, .n_tokens = T, .kind = {kind, kind},
                        .n_groups = {3, 2}};
    watch_faults();
    cw_init(&c->w, &s, 1);
    slice_list_init(&c->list, 2);
    slice_list_add(&c->list, 3, 0, 6);
    slice_list_add(&c->list, 12, 6, 4);
    c->found = guarded_new(c->w.rows_memory.room_bytes - 1);
    c->cache = c->w.cache;
    c->new_kv = c->w.new_kv;
    c->rows = cw_rows(&c->w, c->found.data);
}

/* Nothing was written; and the call that was not spoilt is a good one. */
static void call_end(call *c)
{
    unsigned char *zeros = test_alloc(c->found.room_bytes);
    memset(zeros, 0, c->found.room_bytes);
    expect_same_bytes("rows of a refused gather", c->found.data, zeros, c->found.room_bytes);
    cw_expect_same(&c->w);
    cw_update(&c->w, &c->list.view, NULL);
    cw_gather(&c->w, &c->list.view, NULL);
    free(zeros);
    guarded_free(&c->found);
    slice_list_free(&c->list);
    cw_free(&c->w);
}

typedef struct expected {
    pkv_status  code;
    int32_t     rule;
    int64_t     index, value;
    const char *word; /* of the text */
} expected;

static void expect(pkv_status status, const pkv_error *err, const expected *e, const char *what)
{
    note_case(what, 0, "expects %s", e->word);
    expect_error(status, err, e->code, e->rule, e->index);
    if (err->value != e->value || strstr(err->what, e->word) == NULL) {
        fail_msg("%s: value %lld, text '%s', expected %lld and '%s'", what, (long long)err->value,
                 err->what, (long long)e->value, e->word);
    }
}

static void refuse(call *c, const char *what, const expected *e)
{
    pkv_error err;
    memset(&err, 0xAB, sizeof err);
    expect(pkv_update(&c->cache, &c->new_kv, &c->list.view, NULL, &err), &err, e, what);
    memset(&err, 0xAB, sizeof err);
    expect(pkv_gather(&c->cache, &c->rows, &c->list.view, NULL, &err), &err, e, what);
    assert_int_equal(pkv_update(&c->cache, &c->new_kv, &c->list.view, NULL, NULL), e->code);
    cw_expect_same(&c->w);
    c->cache = c->w.cache;
    c->new_kv = c->w.new_kv;
    c->rows = cw_rows(&c->w, c->found.data);
}

static void refuse_view(call *c, const char *what, const char *word)
{
    const pkv_cache spoilt = c->cache;
    pkv_error       err;
    const expected  e = {PKV_E_INVALID, PKV_RULE_NONE, -1, 0, word};
    refuse(c, what, &e);
    expect(pkv_cache_check(&spoilt, &err), &err, &e, what);
}

/* ---- dtypes ------------------------------------------------------------------------------ */

static void test_pairs_without_a_conversion(void **state)
{
    (void)state;
    for (pkv_dtype dtype = PKV_DTYPE_F32; dtype <= PKV_DTYPE_BITS32; dtype++) {
        for (pkv_dtype rows = PKV_DTYPE_F32; rows <= PKV_DTYPE_BITS32; rows++) {
            if (dtype == rows || (rows <= PKV_DTYPE_BF16 && model_converts(rows, dtype))) {
                continue;
            }
            call c;
            call_init(&c, PKV_DTYPE_FP8_E4M3, PKV_SCALES_NONE);
            /* Smaller or larger elements would not fit the strides, nor their memory. */
            const int64_t bytes = D * pkv_dtype_bits(dtype) / 8 * H;
            c.cache.dtype = dtype;
            c.cache.k.head_stride_bytes = c.cache.v.head_stride_bytes = bytes / H;
            c.cache.k.token_stride_bytes = c.cache.v.token_stride_bytes = bytes;
            c.cache.k.page_stride_bytes = c.cache.v.page_stride_bytes = bytes * S;
            c.cache.v.data = (char *)c.cache.k.data + bytes * S * 5;
            c.new_kv.dtype = c.rows.dtype = rows;
            refuse(&c, pkv_dtype_name(dtype),
                   &(expected){PKV_E_UNSUPPORTED, PKV_RULE_NONE, -1, 0, "no conversion"});
            call_end(&c);
        }
    }
}

static void test_computed_scales_with_equal_dtypes(void **state)
{
    (void)state;
    for (int32_t kind = PKV_SCALES_TOKEN_HEAD; kind <= PKV_SCALES_GROUP; kind++) {
        for (int only = 0; only < 3; only++) { /* of both, of K, of V */
            call c;
            call_init(&c, PKV_DTYPE_INT8, kind);
            c.new_kv.dtype = c.rows.dtype = PKV_DTYPE_INT8;
            c.cache.k_scales.kind = only == 2 ? PKV_SCALES_NONE : kind;
            c.cache.v_scales.kind = only == 1 ? PKV_SCALES_NONE : kind;
            refuse(&c, "equal dtypes",
                   &(expected){PKV_E_UNSUPPORTED, PKV_RULE_NONE, -1, 0, "bring no scales"});
            call_end(&c);
        }
    }
}

static void test_scales_of_other_dtypes(void **state)
{
    (void)state;
    static const pkv_dtype wrong[] = {PKV_DTYPE_F16, PKV_DTYPE_BF16, PKV_DTYPE_F32,
                                      PKV_DTYPE_BITS8};
    for (int i = 0; i < 4; i++) {
        for (int32_t kind = PKV_SCALES_TENSOR; kind <= PKV_SCALES_GROUP; kind++) {
            call c;
            call_init(&c, PKV_DTYPE_INT8, kind);
            const int64_t bytes = D * pkv_dtype_bits(wrong[i]) / 8 * H;
            c.cache.dtype = wrong[i];
            c.cache.k.head_stride_bytes = bytes / H;
            c.cache.k.token_stride_bytes = bytes;
            c.cache.k.page_stride_bytes = bytes * S;
            memset(&c.cache.v, 0, sizeof c.cache.v);
            memset(&c.new_kv.v, 0, sizeof c.new_kv.v);
            memset(&c.rows.v, 0, sizeof c.rows.v);
            refuse_view(&c, pkv_dtype_name(wrong[i]), "scales are for");
            call_end(&c);
        }
    }
}

/* ---- given scales ------------------------------------------------------------------------ */

static void test_given_scales_that_are_no_scales(void **state)
{
    (void)state;
    static const uint32_t wrong[] = {0,          0x80000000, 0xBF800000, 0x7F800000, 0xFF800000,
                                     0x7FC00000, 0xFFC00001, 0x7F800001, 0x00000001, 0x007FFFFF,
                                     0x80800000};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        for (int32_t kind = PKV_SCALES_TENSOR; kind <= PKV_SCALES_HEAD; kind++) {
            for (int at = 0; at < 2 * H; at++) { /* plane and head */
                const int h = at % H, plane = at / H;
                if (kind == PKV_SCALES_TENSOR && h > 0) {
                    continue;
                }
                call c;
                call_init(&c, i % 2 == 0 ? PKV_DTYPE_INT4 : PKV_DTYPE_FP8_E5M2, kind);
                uint32_t own[H];
                for (int s = 0; s < H; s++) {
                    own[s] = 0x00800000; /* 2^-126 is one */
                }
                own[h] = wrong[i];
                pkv_scales *scales = plane == 0 ? &c.cache.k_scales : &c.cache.v_scales;
                scales->data = own;
                scales->head_stride_bytes = 4;
                refuse(&c, "given",
                       &(expected){PKV_E_RANGE, PKV_RULE_SCALE, h, plane, "below 2^-126"});
                call_end(&c);
            }
        }
    }
}

/* Layers: the layer is named, and layers before it are not written either. */
static void test_given_scale_of_a_late_layer(void **state)
{
    (void)state;
    call c, d;
    call_init(&c, PKV_DTYPE_INT8, PKV_SCALES_HEAD);
    call_init(&d, PKV_DTYPE_INT8, PKV_SCALES_HEAD);
    const float      zeros[H] = {1, 0, 1};
    const pkv_cache  caches[2] = {c.cache, d.cache};
    const pkv_new_kv new_kvs[2] = {c.new_kv, d.new_kv};
    pkv_cache        spoilt[2] = {caches[0], caches[1]};
    pkv_error        err;
    float            own[H];
    memcpy(own, zeros, sizeof own);
    spoilt[1].v_scales.data = own;
    spoilt[1].v_scales.head_stride_bytes = 4;
    expect_error(pkv_update_layers(spoilt, new_kvs, NULL, 2, &c.list.view, 1, NULL, &err), &err,
                 PKV_E_RANGE, PKV_RULE_SCALE, 1);
    assert_int_equal(err.layer, 1);
    assert_int_equal(err.value, 1);
    call_end(&c);
    call_end(&d);
}

/* With the cache's own dtype given scales are not looked at. */
static void test_given_scales_with_equal_dtypes(void **state)
{
    (void)state;
    call c;
    call_init(&c, PKV_DTYPE_INT8, PKV_SCALES_HEAD);
    float     zeros[H] = {0};
    pkv_error err;
    c.cache.k_scales.data = zeros;
    c.cache.k_scales.head_stride_bytes = 4;
    c.new_kv.dtype = PKV_DTYPE_INT8;
    expect_ok(pkv_update(&c.cache, &c.new_kv, &c.list.view, NULL, &err), &err);
    convert_update(&c.w.model_cache, &c.new_kv, &c.list.view);
    call_end(&c);
}

/* ---- views ------------------------------------------------------------------------------- */

static void test_groups(void **state)
{
    (void)state;
    static const int32_t sizes[] = {0, -1, -8, 5, 7, 16, 25, 48, INT32_MAX, INT32_MIN};
    call                 c;
    call_init(&c, PKV_DTYPE_INT8, PKV_SCALES_GROUP);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++) {
        c.cache.k_scales.group_size = sizes[i];
        refuse_view(&c, "group_size of K", "group_size");
        c.cache.v_scales.group_size = sizes[i];
        refuse_view(&c, "group_size of V", "group_size");
    }
    for (int32_t kind = PKV_SCALES_TENSOR; kind <= PKV_SCALES_TOKEN_HEAD; kind++) {
        c.cache.v_scales.kind = kind; /* and a group_size */
        refuse_view(&c, "group_size without groups", "group_size");
    }
    call_end(&c);

    call_init(&c, PKV_DTYPE_INT4, PKV_SCALES_GROUP);
    c.cache.k_scales.group_size = 3; /* divides D */
    refuse_view(&c, "odd groups of int4", "no whole bytes");
    c.cache.v_scales.group_size = 1;
    refuse_view(&c, "groups of one int4", "no whole bytes");
    c.cache.k.head_dim = c.new_kv.k.head_dim = c.rows.k.head_dim = D - 1;
    refuse_view(&c, "an odd head_dim of int4", "no whole bytes");
    call_end(&c);
}

static void test_strides_and_data(void **state)
{
    (void)state;
    for (int32_t kind = PKV_SCALES_TOKEN_HEAD; kind <= PKV_SCALES_GROUP; kind++) {
        call c;
        call_init(&c, PKV_DTYPE_FP8_E4M3, kind);
        c.cache.k_scales.data = NULL;
        refuse_view(&c, "no data", "without data");
        for (int axis = 0; axis < 6; axis++) {
            for (int64_t wrong = -4; wrong <= 3; wrong++) {
                pkv_scales *s = axis < 3 ? &c.cache.k_scales : &c.cache.v_scales;
                int64_t    *strides[] = {&s->page_stride_bytes, &s->token_stride_bytes,
                                         &s->head_stride_bytes};
                *strides[axis % 3] = wrong;
                refuse_view(&c, "a stride", "a stride of the scales");
            }
            pkv_scales *s = axis < 3 ? &c.cache.k_scales : &c.cache.v_scales;
            int64_t    *strides[] = {&s->page_stride_bytes, &s->token_stride_bytes,
                                     &s->head_stride_bytes};
            *strides[axis % 3] -= 1; /* one byte too small */
            refuse_view(&c, "a stride by a byte", "a stride of the scales");
            *strides[axis % 3] = INT64_MAX / 2;
            refuse_view(&c, "a stride that overflows", "a stride of the scales");
        }
        call_end(&c);
    }
    for (int32_t kind = PKV_SCALES_TENSOR; kind <= PKV_SCALES_HEAD; kind++) {
        call c;
        call_init(&c, PKV_DTYPE_INT8, kind);
        c.cache.v_scales.data = NULL;
        refuse_view(&c, "no data", "without data");
        call_end(&c);
    }
}

static void test_kinds(void **state)
{
    (void)state;
    static const int32_t kinds[] = {-1, PKV_SCALES_GROUP + 1, INT32_MAX, INT32_MIN};
    call                 c;
    call_init(&c, PKV_DTYPE_INT8, PKV_SCALES_TOKEN_HEAD);
    for (int i = 0; i < 4; i++) {
        const expected e = {PKV_E_UNSUPPORTED, PKV_RULE_NONE, -1, 0, "kind of scales"};
        c.cache.k_scales.kind = kinds[i];
        refuse(&c, "kind of K", &e);
        c.cache.v_scales.kind = kinds[i];
        refuse(&c, "kind of V", &e);
    }
    call_end(&c);
}

static void test_scales_that_overlap_elements(void **state)
{
    (void)state;
    call c;
    call_init(&c, PKV_DTYPE_INT8, PKV_SCALES_TOKEN_HEAD);
    const int64_t k_bytes = 5 * S * H * D, s_bytes = 5 * S * H * 4;
    char *const   k = c.cache.k.data, *const v = c.cache.v.data;
    char *const   places[] = {k, k + 1, k + k_bytes - 1, k - s_bytes + 1, v, v + k_bytes - 1};
    for (int i = 0; i < 6; i++) {
        c.cache.k_scales.data = places[i];
        refuse_view(&c, "scales of K on elements", "scales and elements overlap");
        c.cache.v_scales.data = places[i];
        refuse_view(&c, "scales of V on elements", "scales and elements overlap");
    }
    c.cache.k_scales.data = c.cache.v_scales.data;
    refuse_view(&c, "scales of K and V", "scales of K and of V");
    c.cache.k_scales.data = (char *)c.cache.v_scales.data + s_bytes - 1;
    refuse_view(&c, "scales of K and V by a byte", "scales of K and of V");
    call_end(&c);
}

/* Given scales are read while elements are written: of a late token, or in what V computes. */
static void test_given_scales_in_written_memory(void **state)
{
    (void)state;
    for (int32_t kind = PKV_SCALES_TENSOR; kind <= PKV_SCALES_HEAD; kind++) {
        call c;
        call_init(&c, PKV_DTYPE_INT8, PKV_SCALES_TOKEN_HEAD);
        char *const   k = c.cache.k.data, *const v_scales = c.cache.v_scales.data;
        const int64_t token = H * D, k_bytes = 5 * S * token, s_bytes = 5 * S * H * 4;
        char *const   places[] = {k, k + token, k + 7 * token + D, k + k_bytes - 4,
                                  v_scales, v_scales + 4 * H, v_scales + s_bytes - 4};
        for (int i = 0; i < 7; i++) {
            c.cache.k_scales = (pkv_scales){.data = places[i], .kind = kind,
                                            .head_stride_bytes = 4};
            refuse_view(&c, "given scales in written memory",
                        i < 4 ? "scales and elements overlap" : "scales of K and of V");
        }
        call_end(&c);
    }
}

/* One scale in the elements of another head vector, everything else inside the page. */
static void test_one_scale_inside_elements(void **state)
{
    (void)state;
    const cw_shape s = {.layout = CW_NHD, .place = CW_SCALES_VECTOR, .dtype = PKV_DTYPE_INT8,
                        .rows_dtype = PKV_DTYPE_F32, .n_pages = 3, .page_size = 2, .n_heads = 2,
                        .head_dim = {8, 8}, .n_tokens = 4,
                        .kind = {PKV_SCALES_TOKEN_HEAD, PKV_SCALES_TOKEN_HEAD}};
    cw w;
    cw_init(&w, &s, 2);
    pkv_error err;
    expect_ok(pkv_cache_check(&w.cache, &err), &err);
    w.cache.k_scales.data = (char *)w.cache.k_scales.data - 1;
    expect_error(pkv_cache_check(&w.cache, &err), &err, PKV_E_INVALID, PKV_RULE_NONE, -1);
    w.cache.k_scales.data = (char *)w.cache.k_scales.data + 2;
    expect_error(pkv_cache_check(&w.cache, &err), &err, PKV_E_INVALID, PKV_RULE_NONE, -1);
    cw_free(&w);
}

/* Rows that lie in the cache's scales, computed or given. */
static void test_rows_that_overlap_scales(void **state)
{
    (void)state;
    for (int32_t kind = PKV_SCALES_TENSOR; kind <= PKV_SCALES_GROUP; kind++) {
        for (int plane = 0; plane < 2; plane++) {
            call           c;
            const expected e = {PKV_E_INVALID, PKV_RULE_NONE, -1, 0, "overlap"};
            call_init(&c, PKV_DTYPE_INT8, kind);
            /* Rows that end one byte inside the scales, and that begin at their last byte. */
            char         *scales = plane == 0 ? c.cache.k_scales.data : c.cache.v_scales.data;
            const int64_t groups = kind == PKV_SCALES_GROUP ? 3 - plane : 1;
            const int64_t s_bytes = kind == PKV_SCALES_TENSOR ? 4
                                    : kind == PKV_SCALES_HEAD ? 4 * H
                                                              : 5 * S * H * 4 * groups;
            c.new_kv.v.data = c.rows.v.data = scales + s_bytes - 1;
            refuse(&c, "rows at the scales' end", &e);
            c.new_kv.k.data = c.rows.k.data = scales - T * H * D * 4 + 1;
            refuse(&c, "rows at the scales' start", &e);
            call_end(&c);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_pairs_without_a_conversion),
        cmocka_unit_test(test_computed_scales_with_equal_dtypes),
        cmocka_unit_test(test_scales_of_other_dtypes),
        cmocka_unit_test(test_given_scales_that_are_no_scales),
        cmocka_unit_test(test_given_scale_of_a_late_layer),
        cmocka_unit_test(test_given_scales_with_equal_dtypes),
        cmocka_unit_test(test_groups),
        cmocka_unit_test(test_strides_and_data),
        cmocka_unit_test(test_kinds),
        cmocka_unit_test(test_scales_that_overlap_elements),
        cmocka_unit_test(test_given_scales_in_written_memory),
        cmocka_unit_test(test_one_scale_inside_elements),
        cmocka_unit_test(test_rows_that_overlap_scales),
    };
    return cmocka_run_group_tests_name("convert_refusals", tests, NULL, NULL);
}
