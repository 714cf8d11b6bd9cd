/* What page copies refuse: status, place and text, and nothing is written. */
#include "convert_world.h"

#include <string.h>

enum { P = 6, S = 4, H = 2, D = 16 };

/* A good call between two caches that each test spoils. */
typedef struct call {
    cw              src, dst;
    pkv_cache       srcs[2], dsts[2];
    const pkv_cache *to; /* NULL: inside */
    int32_t         group_ids[2];
    int64_t         n_layers, n_copies;
    pkv_page_copy   copies[2];
    pkv_update_opts opts;
    float           given[8]; /* equal given scales of both caches */
} call;

static cw_shape shape_of(pkv_dtype dtype, int32_t kind)
{
    return (cw_shape){.layout = CW_NHD, .place = CW_SCALES_APART, .dtype = dtype,
                      .rows_dtype = dtype == PKV_DTYPE_F32 ? PKV_DTYPE_F16 : PKV_DTYPE_F32,
                      .n_pages = P, .page_size = S, .n_heads = H, .head_dim = {D, D},
                      .n_tokens = 1, .kind = {kind, kind}, .n_groups = {4, 4}};
}

static void point_to_given(call *c, pkv_cache *cache)
{
    pkv_scales *scales[2] = {&cache->k_scales, &cache->v_scales};
    for (int p = 0; p < 2; p++) {
        if (scales[p]->kind == PKV_SCALES_TENSOR || scales[p]->kind == PKV_SCALES_HEAD) {
            scales[p]->data = c->given + 4 * p;
            scales[p]->head_stride_bytes = 4;
        }
    }
}

/* Both layers are views of one cache; copies are of different groups. */
static void call_reset(call *c)
{
    c->srcs[0] = c->srcs[1] = c->src.cache;
    c->dsts[0] = c->dsts[1] = c->dst.cache;
    for (int l = 0; l < 2; l++) {
        point_to_given(c, &c->srcs[l]);
        point_to_given(c, &c->dsts[l]);
    }
    c->to = c->dsts;
    c->group_ids[0] = 0;
    c->group_ids[1] = 1;
    c->n_layers = c->n_copies = 2;
    c->copies[0] = (pkv_page_copy){0, 1, S, 0};
    c->copies[1] = (pkv_page_copy){2, 3, 1, 1};
    c->opts = (pkv_update_opts){.struct_size = sizeof c->opts};
    for (int i = 0; i < 8; i++) {
        c->given[i] = 0.5f + (float)i;
    }
}

static void call_init(call *c, pkv_dtype from, int32_t from_kind, pkv_dtype to, int32_t to_kind)
{
    const cw_shape a = shape_of(from, from_kind), b = shape_of(to, to_kind);
    watch_faults();
    cw_init(&c->src, &a, 1);
    cw_init(&c->dst, &b, 2);
    call_reset(c);
}

static void call_free(call *c)
{
    cw_free(&c->src);
    cw_free(&c->dst);
}

static pkv_status run(const call *c, pkv_error *err)
{
    return pkv_copy_pages(c->srcs, c->to, c->group_ids, c->n_layers, c->copies, c->n_copies,
                          &c->opts, err);
}

static void refuse_at(call *c, const char *what, pkv_status code, int32_t rule, int64_t index,
                      int64_t value, const char *word)
{
    pkv_error err;
    memset(&err, 0xAB, sizeof err);
    note_case(what, 0, "expects %s", word);
    expect_error(run(c, &err), &err, code, rule, index);
    if (err.value != value || strstr(err.what, word) == NULL) {
        fail_msg("%s: value %lld, text '%s', expected %lld and '%s'", what, (long long)err.value,
                 err.what, (long long)value, word);
    }
    assert_int_equal(run(c, NULL), code);
    cw_expect_same(&c->src);
    cw_expect_same(&c->dst);
    call_reset(c);
}

static void refuse(call *c, const char *what, const char *word)
{
    refuse_at(c, what, PKV_E_INVALID, PKV_RULE_NONE, -1, 0, word);
}

/* After all that was spoilt: the call itself is a good one. */
static void accept(call *c)
{
    pkv_error err;
    note_case("good", 0, "the call that was spoilt");
    expect_ok(run(c, &err), &err);
    for (int i = 0; i < 2; i++) {
        for (int64_t t = 0; t < c->copies[i].n_tokens; t++) {
            convert_token(&c->src.model_cache, c->copies[i].src * S + t, &c->dst.model_cache,
                          c->copies[i].dst * S + t);
        }
    }
    cw_expect_same(&c->src);
    cw_expect_same(&c->dst);
}

static void test_arrays_and_options(void **state)
{
    (void)state;
    call      c;
    pkv_error err;
    call_init(&c, PKV_DTYPE_BF16, 0, PKV_DTYPE_BF16, 0);
    assert_int_equal(pkv_copy_pages(NULL, c.dsts, NULL, 1, c.copies, 1, NULL, &err), PKV_E_INVALID);
    assert_int_equal(pkv_copy_pages(c.srcs, c.dsts, NULL, 1, NULL, 1, NULL, &err), PKV_E_INVALID);
    c.n_layers = -1;
    refuse(&c, "layers below 0", "negative");
    c.n_copies = -1;
    refuse(&c, "copies below 0", "negative");
    c.opts.flags = 1u << 20;
    refuse(&c, "an unknown flag", "flag");
    c.opts.max_threads = -1;
    refuse(&c, "threads below 0", "max_threads");
    c.opts.struct_size = 3;
    refuse_at(&c, "options too short", PKV_E_UNSUPPORTED, PKV_RULE_NONE, -1, 0, "");
    c.srcs[0].struct_size = 3;
    refuse_at(&c, "a source too short", PKV_E_UNSUPPORTED, PKV_RULE_NONE, -1, 0, "");
    c.dsts[0].struct_size = 3;
    refuse_at(&c, "a destination too short", PKV_E_UNSUPPORTED, PKV_RULE_NONE, -1, 0, "");
    c.srcs[1].struct_size += 8;
    refuse(&c, "sizes that differ", "struct_size");
    expect_ok(pkv_copy_pages(NULL, NULL, NULL, 0, NULL, 0, NULL, &err), &err);
    expect_ok(pkv_copy_pages(c.srcs, c.dsts, NULL, 2, NULL, 0, NULL, &err), &err);
    c.n_layers = 0;
    expect_ok(run(&c, &err), &err);
    cw_expect_same(&c.src);
    cw_expect_same(&c.dst);
    call_reset(&c);
    accept(&c);
    call_free(&c);
}

static void test_views_and_shapes(void **state)
{
    (void)state;
    call c;
    call_init(&c, PKV_DTYPE_INT8, PKV_SCALES_GROUP, PKV_DTYPE_INT8, PKV_SCALES_GROUP);
    c.srcs[1].k.data = NULL;
    c.srcs[1].v.data = NULL;
    refuse(&c, "a source without memory", "no memory");
    c.dsts[1].k.data = NULL;
    c.dsts[1].v.data = NULL;
    refuse(&c, "a destination without memory", "no memory");
    c.dsts[1].page_size = S - 1;
    refuse(&c, "page_size", "differ");
    c.srcs[1].n_heads = H - 1;
    refuse(&c, "n_heads", "differ");
    c.dsts[1].k.head_dim = 8;
    refuse(&c, "Dk", "differ");
    c.dsts[1].v.head_dim = 8;
    refuse(&c, "Dv", "differ");
    memset(&c.dsts[1].v, 0, sizeof c.dsts[1].v);
    refuse(&c, "V absent", "differ");
    c.srcs[1].k.page_stride_bytes = 1;
    refuse(&c, "a stride", "stride");
    c.dsts[1].k_scales.data = NULL;
    refuse(&c, "scales without data", "without data");
    c.dsts[1].flags = 2;
    refuse_at(&c, "a flag", PKV_E_UNSUPPORTED, PKV_RULE_NONE, -1, 0, "flag");
    accept(&c);
    call_free(&c);
}

static void test_layers_are_named(void **state)
{
    (void)state;
    call      c;
    pkv_error err;
    call_init(&c, PKV_DTYPE_BF16, 0, PKV_DTYPE_F32, 0);
    c.dsts[1].n_pages = 3; /* page 3 is none */
    expect_error(run(&c, &err), &err, PKV_E_RANGE, PKV_RULE_PAGE, 1);
    assert_int_equal(err.layer, 1);
    assert_int_equal(err.value, 3);
    cw_expect_same(&c.dst);
    call_free(&c);
}

static void test_copies_out_of_range(void **state)
{
    (void)state;
    static const int32_t pages[] = {-1, P, INT32_MAX, INT32_MIN};
    static const int32_t tokens[] = {0, -1, S + 1, INT32_MAX, INT32_MIN};
    call                 c;
    call_init(&c, PKV_DTYPE_FP8_E4M3, PKV_SCALES_TOKEN_HEAD, PKV_DTYPE_BF16, 0);
    for (int i = 0; i < 8; i++) {
        c.to = i % 2 == 0 ? c.dsts : NULL;
        c.copies[1].src = pages[i / 2];
        refuse_at(&c, "a source page", PKV_E_RANGE, PKV_RULE_PAGE, 1, pages[i / 2], "no page");
        c.to = i % 2 == 0 ? c.dsts : NULL;
        c.copies[0].dst = pages[i / 2];
        refuse_at(&c, "a destination page", PKV_E_RANGE, PKV_RULE_PAGE, 0, pages[i / 2], "no page");
    }
    for (int i = 0; i < 5; i++) {
        c.copies[1].n_tokens = tokens[i];
        refuse_at(&c, "n_tokens", PKV_E_RANGE, PKV_RULE_SLICE_LEN, 1, tokens[i],
                  "tokens of a copy");
    }
    c.dsts[0].n_pages = c.dsts[1].n_pages = P - 3; /* the destination has fewer */
    refuse_at(&c, "a page of the source only", PKV_E_RANGE, PKV_RULE_PAGE, 1, 3, "no page");
    c.copies[1] = c.copies[0];
    refuse_at(&c, "a page twice", PKV_E_RANGE, PKV_RULE_PAGE, 1, 1, "written twice");
    c.to = NULL;
    c.copies[0].dst = 0; /* onto itself */
    refuse_at(&c, "src == dst", PKV_E_RANGE, PKV_RULE_PAGE, 0, 0, "written and read");
    c.to = c.srcs; /* the same as NULL */
    c.copies[0].dst = 0;
    refuse_at(&c, "src == dst", PKV_E_RANGE, PKV_RULE_PAGE, 0, 0, "written and read");
    c.copies[1].group = 5; /* no layer has it: nothing is looked at */
    c.copies[1].src = -1;
    pkv_error err;
    expect_ok(run(&c, &err), &err);
    call_free(&c);
}

static void test_dtypes_and_kinds(void **state)
{
    (void)state;
    for (pkv_dtype from = PKV_DTYPE_F32; from <= PKV_DTYPE_INT4; from++) {
        for (pkv_dtype to = PKV_DTYPE_F32; to <= PKV_DTYPE_INT4; to++) {
            if (from != to && !model_converts(from, to)) {
                call c;
                call_init(&c, from, 0, to, 0);
                refuse_at(&c, "dtypes", PKV_E_UNSUPPORTED, PKV_RULE_NONE, -1, 0, "no conversion");
                call_free(&c);
            }
        }
    }
    for (int32_t a = PKV_SCALES_NONE; a <= PKV_SCALES_GROUP; a++) {
        for (int32_t b = PKV_SCALES_NONE; b <= PKV_SCALES_GROUP; b++) {
            call c;
            call_init(&c, PKV_DTYPE_INT8, a, PKV_DTYPE_INT8, b);
            if (a != b) {
                refuse_at(&c, "kinds", PKV_E_UNSUPPORTED, PKV_RULE_NONE, -1, 0, "differ in kind");
            } else if (a != PKV_SCALES_TENSOR && a != PKV_SCALES_HEAD) {
                accept(&c);
            }
            call_free(&c);
        }
    }
    call c;
    call_init(&c, PKV_DTYPE_INT8, PKV_SCALES_GROUP, PKV_DTYPE_INT8, PKV_SCALES_GROUP);
    c.dsts[0].k_scales.group_size = c.dsts[0].v_scales.group_size = D; /* still a good view */
    refuse_at(&c, "group sizes", PKV_E_UNSUPPORTED, PKV_RULE_NONE, -1, 0, "differ");
    call_free(&c);
}

static void test_given_scales(void **state)
{
    (void)state;
    for (int32_t kind = PKV_SCALES_TENSOR; kind <= PKV_SCALES_HEAD; kind++) {
        for (int at = 0; at < 2 * H; at++) { /* plane and head */
            const int head = at % H, plane = at / H;
            float     own[H];
            call      c;
            if (kind == PKV_SCALES_TENSOR && head > 0) {
                continue;
            }
            call_init(&c, PKV_DTYPE_INT8, kind, PKV_DTYPE_INT8, kind);
            memcpy(own, c.given + 4 * plane, sizeof own);
            pkv_scales *scales = plane == 0 ? &c.dsts[0].k_scales : &c.dsts[0].v_scales;
            scales->data = own;
            own[head] += 1;
            refuse_at(&c, "given scales that differ", PKV_E_RANGE, PKV_RULE_SCALE, head, plane,
                      "given scales");
            call_free(&c);

            call_init(&c, PKV_DTYPE_INT8, kind, PKV_DTYPE_F16, 0);
            scales = plane == 0 ? &c.srcs[1].k_scales : &c.srcs[1].v_scales;
            scales->data = own;
            own[head] = 0;
            refuse_at(&c, "a scale of 0", PKV_E_RANGE, PKV_RULE_SCALE, head, plane, "2^-126");
            call_free(&c);

            call_init(&c, PKV_DTYPE_F16, 0, PKV_DTYPE_INT4, kind);
            scales = plane == 0 ? &c.dsts[1].k_scales : &c.dsts[1].v_scales;
            scales->data = own;
            refuse_at(&c, "a scale of 0", PKV_E_RANGE, PKV_RULE_SCALE, head, plane, "2^-126");
            call_free(&c);
        }
    }
}

static void test_caches_that_overlap(void **state)
{
    (void)state;
    const int64_t bytes = P * S * H * D, s_bytes = P * S * H * 4;
    call          c;
    call_init(&c, PKV_DTYPE_INT8, PKV_SCALES_TOKEN_HEAD, PKV_DTYPE_INT8, PKV_SCALES_TOKEN_HEAD);
    c.dsts[0] = c.srcs[0]; /* the same cache, as another array */
    refuse(&c, "itself", "overlap");
    c.dsts[0].v.data = (char *)c.srcs[0].k.data + bytes - 1;
    refuse(&c, "V on K by a byte", "overlap");
    c.dsts[1].k.data = (char *)c.srcs[1].v_scales.data + s_bytes - 1;
    c.dsts[1].v.data = (char *)c.dsts[1].k.data + bytes;
    refuse(&c, "K on the source's scales", "overlap");
    c.dsts[1].k_scales.data = (char *)c.srcs[1].v.data + bytes - 1;
    c.dsts[1].v_scales.data = (char *)c.dsts[1].k_scales.data + s_bytes;
    refuse(&c, "scales on the source's V", "overlap");
    c.dsts[0].k_scales.data = c.srcs[0].k_scales.data;
    refuse(&c, "the same scales", "overlap");
    c.dsts[0].v_scales.data = (char *)c.srcs[0].k_scales.data - s_bytes + 1;
    refuse(&c, "scales by a byte", "overlap");
    accept(&c);
    call_free(&c);
}

/* A shared destination is checked and left as it is; a shared source is read. */
static void test_shared(void **state)
{
    (void)state;
    call      c;
    pkv_error err;
    call_init(&c, PKV_DTYPE_INT8, PKV_SCALES_TOKEN_HEAD, PKV_DTYPE_BF16, 0);
    c.dsts[0].flags = c.dsts[1].flags = PKV_CACHE_SHARED;
    c.copies[0].dst = P;
    refuse_at(&c, "a page of a shared cache", PKV_E_RANGE, PKV_RULE_PAGE, 0, P, "no page");
    c.dsts[0].flags = c.dsts[1].flags = PKV_CACHE_SHARED;
    expect_ok(run(&c, &err), &err);
    cw_expect_same(&c.dst);
    call_reset(&c);
    c.srcs[0].flags = c.srcs[1].flags = PKV_CACHE_SHARED;
    accept(&c);
    call_free(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arrays_and_options), cmocka_unit_test(test_views_and_shapes),
        cmocka_unit_test(test_layers_are_named),   cmocka_unit_test(test_copies_out_of_range),
        cmocka_unit_test(test_dtypes_and_kinds),   cmocka_unit_test(test_given_scales),
        cmocka_unit_test(test_caches_that_overlap), cmocka_unit_test(test_shared),
    };
    return cmocka_run_group_tests_name("moves_refusals", tests, NULL, NULL);
}
