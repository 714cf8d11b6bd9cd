/* Many layers in one call: which share a launch, and what is wrong with which. */
#include <string.h>

#include "twin.h"

enum {
    PAGES = 3,
    PAGE_TOKENS = 4,
    HEADS = 2,
    DIM = 8,
    TOKENS = 9,
    MOST = 300,
    ROOM = 2048, /* bytes of a layer's cache, and of its rows */
    GROUPS = 2
};

/* What sets layers apart. */
typedef struct sort {
    int       layout; /* 0: NHD, 1: HND, 2: combined, 3: keys only */
    pkv_dtype dtype, rows_dtype;
    int       shift; /* bytes that the memory is off its alignment */
    int32_t   group;
    int32_t   scales; /* PKV_SCALES_NONE, _HEAD or _TOKEN_HEAD */
} sort;

typedef struct stack {
    device         d;
    int64_t        n;
    unsigned char *cache_memory, *rows_memory; /* of the model */
    twin           cache, rows;
    pkv_cache      caches[MOST], there[MOST];
    pkv_new_kv     new_kvs[MOST], new_kvs_there[MOST];
    int32_t        group_ids[MOST];
    slice_list     list[GROUPS];
    pkv_slices     slices[GROUPS];
} stack;

static pkv_scales scales_at(unsigned char *at, int32_t kind)
{
    if (kind == PKV_SCALES_NONE) {
        return (pkv_scales){0};
    }
    for (int i = 0; i < HEADS * PAGES * PAGE_TOKENS; i++) {
        const uint32_t bits = 0x3f800000u + 0x1000u * (uint32_t)i;
        memcpy(at + 4 * i, &bits, sizeof bits);
    }
    return (pkv_scales){at, 4 * HEADS * PAGE_TOKENS, 4 * HEADS, 4, kind, 0};
}

/* Planes in the first 1.5 KiB of the layer's room, scales behind. */
static pkv_cache cache_of(const sort *s, unsigned char *room)
{
    pkv_cache      c;
    unsigned char *k = room + s->shift, *v = k + 768;
    pkv_status     status =
        s->layout == 2
                ? pkv_cache_combined(&c, sizeof c, k, PAGES, PAGE_TOKENS, HEADS, DIM, s->dtype)
        : s->layout == 1 ? pkv_cache_hnd(&c, sizeof c, k, v, PAGES, PAGE_TOKENS, HEADS, DIM,
                                         s->dtype)
                         : pkv_cache_nhd(&c, sizeof c, k, s->layout == 3 ? NULL : v, PAGES,
                                         PAGE_TOKENS, HEADS, DIM, s->dtype);
    assert_int_equal(status, PKV_OK);
    c.k_scales = scales_at(room + 1600, s->scales);
    c.v_scales = s->layout == 3 ? (pkv_scales){0} : scales_at(room + 1824, s->scales);
    return c;
}

static void stack_open(stack *s, const sort *sorts, int64_t n_sorts, int64_t n)
{
    *s = (stack){.n = n};
    device_open(&s->d);
    s->cache_memory = test_alloc(MOST * ROOM);
    s->rows_memory = test_alloc(MOST * ROOM);
    fill(s->cache_memory, MOST * ROOM, FILL_RANDOM, 1);
    fill(s->rows_memory, MOST * ROOM, FILL_RANDOM, 2);
    for (int64_t l = 0; l < n; l++) {
        const sort    *of = &sorts[l % n_sorts];
        unsigned char *rows = s->rows_memory + l * ROOM + of->shift;
        s->caches[l] = cache_of(of, s->cache_memory + l * ROOM);
        assert_int_equal(pkv_new_kv_nhd(&s->new_kvs[l], sizeof s->new_kvs[l], rows,
                                        of->layout == 3 ? NULL : rows + 1024, TOKENS, HEADS, DIM,
                                        of->layout == 3 ? 0 : DIM, 0, of->rows_dtype), PKV_OK);
        s->group_ids[l] = of->group;
    }
    s->cache = twin_new(&s->d, s->cache_memory, MOST * ROOM);
    s->rows = twin_new(&s->d, s->rows_memory, MOST * ROOM);
    for (int64_t l = 0; l < n; l++) {
        s->there[l] = twin_cache(&s->cache, &s->caches[l]);
        s->new_kvs_there[l] = twin_new_kv(&s->rows, &s->new_kvs[l]);
    }
    for (int g = 0; g < GROUPS; g++) {
        slice_list_init(&s->list[g], 8);
        slice_list_add(&s->list[g], 1 + g, 2, 6); /* over a page's end */
        slice_list_add(&s->list[g], 9, 0, 2);
        device_slices_init(&s->d, &s->slices[g], 8);
        device_slices_set(&s->d, &s->slices[g], &s->list[g], s->list[g].n);
    }
}

static void stack_close(stack *s)
{
    for (int g = 0; g < GROUPS; g++) {
        slice_list_free(&s->list[g]);
        device_slices_free(&s->d, &s->slices[g]);
    }
    twin_free(&s->d, &s->cache);
    twin_free(&s->d, &s->rows);
    free(s->cache_memory);
    free(s->rows_memory);
    device_close(&s->d);
}

static pkv_status put(const stack *s, pkv_error *err)
{
    return pkv_cuda_update_layers(s->d.cuda, s->there, s->new_kvs_there, s->group_ids, s->n,
                                  s->slices, GROUPS, &s->d.opts, err, s->d.stream);
}

/* Opaque items are copied by the one model, everything else by the other. */
static void run_model(const stack *s)
{
    for (int64_t l = 0; l < s->n; l++) {
        const pkv_slices *list = &s->list[s->group_ids[l]].view;
        if (s->caches[l].dtype == s->new_kvs[l].dtype) {
            model_update(&s->caches[l], &s->new_kvs[l], list);
        } else {
            convert_update(&s->caches[l], &s->new_kvs[l], list);
        }
    }
}

static void update_and_compare(stack *s, int64_t n_launches)
{
    pkv_error     err;
    const int64_t before = device_launches();
    note_case("layers", (uint64_t)s->n, "%d launches", (int)n_launches);
    expect_ok(put(s, &err), &err);
    device_expect_launches(before, n_launches);
    device_expect_status(&s->d, 0);
    run_model(s);
    twin_expect(&s->d, &s->cache, s->cache_memory, "caches of all layers");
}

static const int64_t numbers[] = {1, 2, 63, 64, 65, 127, 128, 130, MOST};
enum { NUMBERS = sizeof numbers / sizeof numbers[0] };

static void test_alike(void **state)
{
    (void)state;
    static stack      s;
    static const sort sorts[] = {
        {0, PKV_DTYPE_BF16, PKV_DTYPE_BF16, 0, 0, PKV_SCALES_NONE},
        {1, PKV_DTYPE_FP8_E4M3, PKV_DTYPE_BF16, 0, 1, PKV_SCALES_TOKEN_HEAD},
        {2, PKV_DTYPE_BITS8, PKV_DTYPE_BITS8, 1, 1, PKV_SCALES_NONE},
    };
    for (int i = 0; i < NUMBERS; i++) {
        for (size_t kind = 0; kind < sizeof sorts / sizeof sorts[0]; kind++) {
            stack_open(&s, &sorts[kind], 1, numbers[i]);
            update_and_compare(&s, (numbers[i] + 63) / 64);
            stack_close(&s);
        }
    }
}

/* Eight sorts in turn: each that differs in what the header names has launches of its own. */
static void test_mixed(void **state)
{
    (void)state;
    static stack      s;
    static const sort sorts[] = {
        {0, PKV_DTYPE_BF16, PKV_DTYPE_BF16, 0, 0, PKV_SCALES_NONE},
        {0, PKV_DTYPE_BF16, PKV_DTYPE_BF16, 0, 1, PKV_SCALES_NONE}, /* another group */
        {1, PKV_DTYPE_BF16, PKV_DTYPE_BF16, 0, 0, PKV_SCALES_NONE}, /* strides */
        {3, PKV_DTYPE_BF16, PKV_DTYPE_BF16, 0, 0, PKV_SCALES_NONE}, /* planes */
        {0, PKV_DTYPE_BF16, PKV_DTYPE_BF16, 2, 0, PKV_SCALES_NONE}, /* alignment */
        {0, PKV_DTYPE_INT8, PKV_DTYPE_BF16, 0, 0, PKV_SCALES_NONE}, /* dtype */
        {0, PKV_DTYPE_INT8, PKV_DTYPE_BF16, 0, 0, PKV_SCALES_HEAD}, /* kind of scales */
        {0, PKV_DTYPE_INT8, PKV_DTYPE_F32, 0, 0, PKV_SCALES_HEAD},
    };
    for (int i = 0; i < NUMBERS - 1; i++) {
        stack_open(&s, sorts, 8, numbers[i]);
        update_and_compare(&s, numbers[i] < 8 ? numbers[i] : 8);
        stack_close(&s);
    }
}

/* The same layers read back, in as many launches. */
static void test_gather(void **state)
{
    (void)state;
    static stack      s;
    static const sort sorts[] = {
        {1, PKV_DTYPE_BITS16, PKV_DTYPE_BITS16, 4, 1, PKV_SCALES_NONE},
        {0, PKV_DTYPE_F16, PKV_DTYPE_F16, 0, 0, PKV_SCALES_NONE},
    };
    stack_open(&s, sorts, 2, 130);
    static pkv_rows rows[MOST], there[MOST];
    for (int64_t l = 0; l < s.n; l++) {
        const pkv_new_kv *from = &s.new_kvs[l];
        rows[l] = (pkv_rows){.struct_size = sizeof rows[l], .n_tokens = from->n_tokens,
                             .n_heads = from->n_heads, .dtype = from->dtype};
        rows[l].k = (pkv_rows_plane){(void *)(uintptr_t)from->k.data, from->k.token_stride_bytes,
                                     from->k.head_stride_bytes, from->k.head_dim};
        rows[l].v = (pkv_rows_plane){(void *)(uintptr_t)from->v.data, from->v.token_stride_bytes,
                                     from->v.head_stride_bytes, from->v.head_dim};
        there[l] = twin_rows(&s.rows, &rows[l]);
        model_gather(&s.caches[l], &rows[l], &s.list[s.group_ids[l]].view);
    }
    pkv_error     err;
    const int64_t before = device_launches();
    expect_ok(pkv_cuda_gather_layers(s.d.cuda, s.there, there, s.group_ids, s.n, s.slices, GROUPS,
                                     &s.d.opts, &err, s.d.stream), &err);
    device_expect_launches(before, 2 * 2);
    device_expect_status(&s.d, 0);
    twin_expect(&s.d, &s.rows, s.rows_memory, "rows of all layers");
    twin_expect(&s.d, &s.cache, s.cache_memory, "only read");
    stack_close(&s);
}

/* Pages: a launch for the elements, and one for the scales that were computed. */
static void test_pages(void **state)
{
    (void)state;
    static stack s;
    const sort   plain = {1, PKV_DTYPE_BF16, PKV_DTYPE_BF16, 0, 0, PKV_SCALES_NONE};
    const sort   scaled = {0, PKV_DTYPE_INT8, PKV_DTYPE_BF16, 0, 1, PKV_SCALES_TOKEN_HEAD};
    const sort   sorts[] = {plain, scaled};
    stack_open(&s, sorts, 2, 130);
    const pkv_page_copy copies[] = {{0, 2, PAGE_TOKENS, 0}, {2, 1, 3, 1}};
    const int32_t       n = 2;
    twin list = twin_new(&s.d, copies, sizeof copies), count = twin_new(&s.d, &n, sizeof n);
    pkv_error     err;
    const int64_t before = device_launches();
    expect_ok(pkv_cuda_copy_pages(s.d.cuda, s.there, NULL, s.group_ids, s.n,
                                  twin_at(&list, copies), 2, twin_at(&count, &n), &s.d.opts, &err,
                                  s.d.stream), &err);
    device_expect_launches(before, 2 + 2 + 2);
    device_expect_status(&s.d, 0);
    for (int64_t l = 0; l < s.n; l++) {
        const pkv_page_copy *c = &copies[l % 2];
        for (int64_t t = 0; t < c->n_tokens; t++) {
            convert_token(&s.caches[l], (int64_t)c->src * PAGE_TOKENS + t, &s.caches[l],
                          (int64_t)c->dst * PAGE_TOKENS + t);
        }
    }
    twin_expect(&s.d, &s.cache, s.cache_memory, "pages of all layers");
    twin_free(&s.d, &list);
    twin_free(&s.d, &count);
    stack_close(&s);
}

/* Shared layers take no launch and no bytes; none at all is no launch either. */
static void test_shared(void **state)
{
    (void)state;
    static stack s;
    pkv_error    err;
    const sort   plain = {0, PKV_DTYPE_BF16, PKV_DTYPE_BF16, 0, 0, PKV_SCALES_NONE};
    stack_open(&s, &plain, 1, 130);
    for (int64_t l = 0; l < s.n; l++) {
        s.there[l].flags = l % 2 == 0 ? PKV_CACHE_SHARED : 0;
    }
    int64_t before = device_launches();
    expect_ok(put(&s, &err), &err);
    device_expect_launches(before, 2); /* 65 layers */
    device_expect_status(&s.d, 0);
    for (int64_t l = 1; l < s.n; l += 2) {
        model_update(&s.caches[l], &s.new_kvs[l], &s.list[0].view);
    }
    twin_expect(&s.d, &s.cache, s.cache_memory, "every second layer");
    for (int64_t l = 0; l < s.n; l++) {
        s.there[l].flags = PKV_CACHE_SHARED;
    }
    before = device_launches();
    expect_ok(put(&s, &err), &err);
    s.n = 0;
    expect_ok(put(&s, &err), &err);
    device_expect_launches(before, 0);
    twin_expect(&s.d, &s.cache, s.cache_memory, "no layer");
    stack_close(&s);
}

/* One layer that is wrong: it is named, and not even those before it are written. */
static void test_bad_layer(void **state)
{
    (void)state;
    static stack s;
    pkv_error    err;
    const sort   plain = {0, PKV_DTYPE_BF16, PKV_DTYPE_BF16, 0, 0, PKV_SCALES_NONE};
    stack_open(&s, &plain, 1, 130);
    static const int64_t bad[] = {0, 64, 129};
    for (size_t i = 0; i < 3; i++) {
        const int64_t    l = bad[i], before = device_launches();
        const pkv_cache  cache = s.there[l];
        const pkv_new_kv new_kv = s.new_kvs_there[l];
        s.new_kvs_there[l].n_heads = HEADS + 1;
        expect_error(put(&s, &err), &err, PKV_E_INVALID, PKV_RULE_NONE, -1);
        assert_int_equal(err.layer, l);
        s.new_kvs_there[l] = new_kv;
        s.there[l].dtype = PKV_DTYPE_BITS16;
        expect_error(put(&s, &err), &err, PKV_E_UNSUPPORTED, PKV_RULE_NONE, -1);
        assert_int_equal(err.layer, l);
        s.there[l] = cache;
        s.there[l].flags = PKV_CACHE_SHARED; /* checked all the same */
        s.there[l].page_size = 0;
        expect_error(put(&s, &err), &err, PKV_E_INVALID, PKV_RULE_NONE, -1);
        assert_int_equal(err.layer, l);
        s.there[l] = cache;
        for (int32_t id = -1; id <= GROUPS; id += GROUPS + 1) {
            s.group_ids[l] = id;
            expect_error(put(&s, &err), &err, PKV_E_INVALID, PKV_RULE_NONE, -1);
            assert_int_equal(err.layer, l);
        }
        s.group_ids[l] = 0;
        device_expect_launches(before, 0);
        device_expect_status(&s.d, 0);
        twin_expect(&s.d, &s.cache, s.cache_memory, "after a failure");
    }
    update_and_compare(&s, 3);
    stack_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_alike),     cmocka_unit_test(test_mixed),
        cmocka_unit_test(test_gather),    cmocka_unit_test(test_pages),
        cmocka_unit_test(test_shared),    cmocka_unit_test(test_bad_layer),
    };
    const int absent = cuda_absent();
    return absent != 0 ? absent : cmocka_run_group_tests(tests, NULL, NULL);
}
