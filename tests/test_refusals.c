/* What an update and a gather refuse, with nothing written: views, options, overlaps, structs. */
#include "world.h"

#include <string.h>

static const world_shape small = {LAYOUT_NHD, SOURCE_APART, PKV_DTYPE_BF16, 8, 16, 3, 20, 20, 64};

/* A good call that each test spoils. */
typedef struct call {
    world           w;
    slice_list      list;
    pkv_cache       cache;
    pkv_new_kv      new_kv;
    pkv_rows        rows;
    pkv_slices      slices;
    pkv_update_opts opts;
    unsigned char  *rows_memory;
} call;

static void call_init(call *c)
{
    world_init(&c->w, &small, FILL_RANDOM, 1);
    slice_list_init(&c->list, 4);
    slice_list_add(&c->list, 3, 0, 30);
    slice_list_add(&c->list, 80, 30, 7);
    c->cache = c->w.cache;
    c->new_kv = c->w.new_kv;
    c->slices = c->list.view;
    c->opts = (pkv_update_opts){.struct_size = sizeof c->opts};
    size_t n_bytes = c->w.source_memory.room_bytes;
    c->rows_memory = test_alloc(2 * n_bytes);
    memset(c->rows_memory, 0, 2 * n_bytes);
    c->rows = world_rows(&c->w, c->rows_memory);
}

static void call_free(call *c)
{
    expect_same_bytes("gathered rows", c->rows_memory,
                      c->rows_memory + c->w.source_memory.room_bytes,
                      c->w.source_memory.room_bytes); /* the second half stays zero */
    world_expect_same(&c->w);
    world_free(&c->w);
    slice_list_free(&c->list);
    free(c->rows_memory);
}

static void refuse_update(const call *c, pkv_status code)
{
    pkv_error err;
    memset(&err, 0xAB, sizeof err);
    expect_error(pkv_update(&c->cache, &c->new_kv, &c->slices, &c->opts, &err), &err, code,
                 PKV_RULE_NONE, -1);
    assert_int_equal(pkv_update(&c->cache, &c->new_kv, &c->slices, &c->opts, NULL), code);
}

static void refuse_gather(const call *c, pkv_status code)
{
    pkv_error err;
    memset(&err, 0xAB, sizeof err);
    expect_error(pkv_gather(&c->cache, &c->rows, &c->slices, &c->opts, &err), &err, code,
                 PKV_RULE_NONE, -1);
}

static void test_null_arguments(void **state)
{
    (void)state;
    call c;
    call_init(&c);
    pkv_error err;
    note_case("NULL", 0, "update and gather");
    assert_int_equal(pkv_update(NULL, &c.new_kv, &c.slices, NULL, &err), PKV_E_INVALID);
    assert_int_equal(pkv_update(&c.cache, NULL, &c.slices, NULL, &err), PKV_E_INVALID);
    assert_int_equal(pkv_update(&c.cache, &c.new_kv, NULL, NULL, &err), PKV_E_INVALID);
    assert_int_equal(pkv_gather(NULL, &c.rows, &c.slices, NULL, &err), PKV_E_INVALID);
    assert_int_equal(pkv_gather(&c.cache, NULL, &c.slices, NULL, &err), PKV_E_INVALID);
    assert_int_equal(pkv_gather(&c.cache, &c.rows, NULL, NULL, NULL), PKV_E_INVALID);
    c.slices.kv_cache_start = NULL;
    refuse_update(&c, PKV_E_INVALID);
    c.slices = c.list.view;
    c.slices.num_slices = NULL;
    refuse_update(&c, PKV_E_INVALID);
    c.slices = c.list.view;
    c.cache.k.data = NULL;
    c.cache.v.data = NULL; /* still being sized */
    refuse_update(&c, PKV_E_INVALID);
    refuse_gather(&c, PKV_E_INVALID);
    c.cache = c.w.cache;
    c.cache.v.data = NULL; /* half of it */
    refuse_update(&c, PKV_E_INVALID);
    c.cache = c.w.cache;
    c.new_kv.k.data = NULL;
    refuse_update(&c, PKV_E_INVALID);
    call_free(&c);
}

static void test_shapes_that_differ(void **state)
{
    (void)state;
    call c;
    call_init(&c);
    note_case("shapes", 0, "new K/V against the cache");
    c.new_kv.n_heads = 2;
    refuse_update(&c, PKV_E_INVALID);
    c.new_kv = c.w.new_kv;
    c.new_kv.k.head_dim = 16;
    refuse_update(&c, PKV_E_INVALID);
    c.new_kv = c.w.new_kv;
    c.new_kv.v.head_dim = 16;
    refuse_update(&c, PKV_E_INVALID);
    c.new_kv = c.w.new_kv;
    memset(&c.new_kv.v, 0, sizeof c.new_kv.v); /* V in one only */
    refuse_update(&c, PKV_E_INVALID);
    c.new_kv = c.w.new_kv;
    memset(&c.cache.v, 0, sizeof c.cache.v);
    refuse_update(&c, PKV_E_INVALID);
    c.cache = c.w.cache;
    c.rows.n_heads = 2;
    refuse_gather(&c, PKV_E_INVALID);
    call_free(&c);
}

static void test_what_cannot_be(void **state)
{
    (void)state;
    call c;
    call_init(&c);
    note_case("conversions", 0, "dtypes, scales"); /* test_convert_refusals has the rest */
    c.new_kv.dtype = PKV_DTYPE_BITS16; /* as wide, and still another dtype */
    refuse_update(&c, PKV_E_UNSUPPORTED);
    c.new_kv = c.w.new_kv;
    c.rows.dtype = PKV_DTYPE_BITS16;
    refuse_gather(&c, PKV_E_UNSUPPORTED);
    c.rows.dtype = c.w.new_kv.dtype;
    static float scale = 1;
    c.cache.k_scales.kind = PKV_SCALES_TENSOR; /* of a float cache */
    c.cache.k_scales.data = &scale;
    refuse_update(&c, PKV_E_INVALID);
    refuse_gather(&c, PKV_E_INVALID);
    c.cache = c.w.cache;
    c.cache.v_scales.kind = PKV_SCALES_TOKEN_HEAD;
    refuse_update(&c, PKV_E_INVALID);
    c.cache.v_scales.kind = PKV_SCALES_GROUP + 1;
    refuse_update(&c, PKV_E_UNSUPPORTED);
    c.cache = c.w.cache;
    c.cache.flags = 2;
    refuse_update(&c, PKV_E_UNSUPPORTED);
    c.cache = c.w.cache;
    c.new_kv.flags = 1;
    refuse_update(&c, PKV_E_UNSUPPORTED);
    c.new_kv = c.w.new_kv;
    c.rows.flags = 1;
    refuse_gather(&c, PKV_E_UNSUPPORTED);
    call_free(&c);
}

static void test_unknown_options(void **state)
{
    (void)state;
    call c;
    call_init(&c);
    note_case("options", 0, "flags and max_threads");
    for (int bit = 4; bit < 32; bit++) {
        c.opts.flags = 1u << bit;
        refuse_update(&c, PKV_E_INVALID);
        refuse_gather(&c, PKV_E_INVALID);
    }
    c.opts.flags = 0;
    c.opts.max_threads = -1;
    refuse_update(&c, PKV_E_INVALID);
    c.opts.max_threads = 0;
    c.opts.flags = PKV_UPDATE_CHECKED | PKV_UPDATE_READ_SOON | PKV_UPDATE_DEPENDENT_LAUNCH;
    world_update(&c.w, &c.list.view, &c.opts);
    call_free(&c);
}

/* ---- overlaps ------------------------------------------------------------ */

/* Puts the source at `at` inside the memory of the cache and expects a refusal or not. */
static void check_overlap(call *c, unsigned char *at, bool is_refused)
{
    c->new_kv = (pkv_new_kv){.struct_size = sizeof c->new_kv, .n_tokens = 1, .n_heads = 1,
                             .dtype = PKV_DTYPE_BITS8};
    c->new_kv.k = (pkv_new_kv_plane){at, 0, 0, 100};
    c->rows = (pkv_rows){.struct_size = sizeof c->rows, .n_tokens = 1, .n_heads = 1,
                         .dtype = PKV_DTYPE_BITS8};
    c->rows.k = (pkv_rows_plane){at, 0, 0, 100};
    c->list.n = is_refused ? 1 : 0; /* otherwise the memory would change */
    if (is_refused) {
        refuse_update(c, PKV_E_INVALID);
        refuse_gather(c, PKV_E_INVALID);
    } else {
        assert_int_equal(pkv_update(&c->cache, &c->new_kv, &c->slices, NULL, NULL), PKV_OK);
        assert_int_equal(pkv_gather(&c->cache, &c->rows, &c->slices, NULL, NULL), PKV_OK);
    }
}

static void test_memory_that_overlaps(void **state)
{
    (void)state;
    call c;
    call_init(&c);
    unsigned char *first = c.w.memory.data + 2000;
    const int64_t n_bytes = 4 * 16 * 100;
    assert_int_equal(pkv_cache_nhd(&c.cache, sizeof c.cache, NULL, NULL, 4, 16, 1, 100,
                                   PKV_DTYPE_BITS8), PKV_OK);
    c.cache.k.data = first;
    memset(&c.cache.v, 0, sizeof c.cache.v); /* keys only */
    c.list.view.slice_len[0] = 1;
    note_case("overlap", 0, "100 bytes against [%d]", (int)n_bytes);
    check_overlap(&c, first, true);
    check_overlap(&c, first - 99, true);
    check_overlap(&c, first + n_bytes - 1, true);
    check_overlap(&c, first + 777, true);
    check_overlap(&c, first - 100, false);
    check_overlap(&c, first + n_bytes, false);
    call_free(&c);
}

/* K of the source in V of the cache is an overlap too. */
static void test_planes_that_overlap_crosswise(void **state)
{
    (void)state;
    call c;
    call_init(&c);
    note_case("overlap", 0, "K in V, V in K");
    c.new_kv.k.data = c.cache.v.data;
    refuse_update(&c, PKV_E_INVALID);
    c.new_kv = c.w.new_kv;
    c.new_kv.v.data = c.cache.k.data;
    refuse_update(&c, PKV_E_INVALID);
    call_free(&c);
}

/* ---- struct_size --------------------------------------------------------- */

/* Room behind each struct for fields that this library does not know. */
enum { TAIL = 24 };

static void *with_tail(const void *start, size_t n_bytes, unsigned char last)
{
    unsigned char *longer = test_alloc(n_bytes + TAIL);
    memcpy(longer, start, n_bytes);
    memset(longer + n_bytes, 0, TAIL);
    longer[n_bytes + TAIL - 1] = last;
    const size_t struct_size = n_bytes + TAIL;
    memcpy(longer, &struct_size, sizeof struct_size);
    return longer;
}

static pkv_status longer_update(const call *c, unsigned char cache_tail, unsigned char source_tail,
                                unsigned char slices_tail, unsigned char opts_tail)
{
    pkv_cache *cache = with_tail(&c->cache, sizeof c->cache, cache_tail);
    pkv_new_kv *new_kv = with_tail(&c->new_kv, sizeof c->new_kv, source_tail);
    pkv_slices *slices = with_tail(&c->slices, sizeof c->slices, slices_tail);
    pkv_update_opts *opts = with_tail(&c->opts, sizeof c->opts, opts_tail);
    pkv_status status = pkv_update(cache, new_kv, slices, opts, NULL);
    free(cache);
    free(new_kv);
    free(slices);
    free(opts);
    return status;
}

static void test_longer_structs(void **state)
{
    (void)state;
    call c;
    call_init(&c);
    note_case("struct_size", 0, "longer");
    assert_int_equal(longer_update(&c, 1, 0, 0, 0), PKV_E_UNSUPPORTED);
    assert_int_equal(longer_update(&c, 0, 1, 0, 0), PKV_E_UNSUPPORTED);
    assert_int_equal(longer_update(&c, 0, 0, 1, 0), PKV_E_UNSUPPORTED);
    assert_int_equal(longer_update(&c, 0, 0, 0, 1), PKV_E_UNSUPPORTED);
    world_expect_same(&c.w);
    assert_int_equal(longer_update(&c, 0, 0, 0, 0), PKV_OK);
    model_update(&c.w.model_cache, &c.new_kv, &c.slices);
    call_free(&c);
}

static void test_shorter_structs(void **state)
{
    (void)state;
    call c;
    call_init(&c);
    note_case("struct_size", 0, "shorter");
    size_t *sizes[] = {&c.cache.struct_size, &c.new_kv.struct_size, &c.slices.struct_size,
                       &c.opts.struct_size};
    for (size_t i = 0; i < 4; i++) {
        const size_t right = *sizes[i];
        for (size_t wrong = 0; wrong < right; wrong += right - 1) {
            *sizes[i] = wrong;
            refuse_update(&c, PKV_E_UNSUPPORTED);
        }
        *sizes[i] = right;
    }
    c.rows.struct_size--;
    refuse_gather(&c, PKV_E_UNSUPPORTED);
    call_free(&c);
}

/* In arrays of layers the first struct_size is the distance to the next element. */
static void test_arrays_of_longer_structs(void **state)
{
    (void)state;
    enum { LAYERS = 3, STEP = sizeof(pkv_cache) + TAIL, SOURCE_STEP = sizeof(pkv_new_kv) + TAIL };
    world worlds[LAYERS];
    unsigned char *caches = test_alloc(LAYERS * STEP);
    unsigned char *new_kvs = test_alloc(LAYERS * SOURCE_STEP);
    slice_list list;
    slice_list_init(&list, 1);
    slice_list_add(&list, 9, 2, 50);
    for (int l = 0; l < LAYERS; l++) {
        world_init(&worlds[l], &small, FILL_RANDOM, (uint64_t)l);
        void *cache = with_tail(&worlds[l].cache, sizeof(pkv_cache), 0);
        void *new_kv = with_tail(&worlds[l].new_kv, sizeof(pkv_new_kv), 0);
        memcpy(caches + l * STEP, cache, STEP);
        memcpy(new_kvs + l * SOURCE_STEP, new_kv, SOURCE_STEP);
        free(cache);
        free(new_kv);
    }
    pkv_error err;
    expect_ok(pkv_update_layers((pkv_cache *)(void *)caches, (pkv_new_kv *)(void *)new_kvs, NULL,
                                LAYERS, &list.view, 1, NULL, &err), &err);
    for (int l = 0; l < LAYERS; l++) {
        model_update(&worlds[l].model_cache, &worlds[l].new_kv, &list.view);
        world_expect_same(&worlds[l]);
        world_free(&worlds[l]);
    }
    slice_list_free(&list);
    free(caches);
    free(new_kvs);
}

/* A layer that shares another one's cache: checked, not written; a gather reads it. */
static void test_shared_cache_is_not_written(void **state)
{
    (void)state;
    call c;
    call_init(&c);
    c.cache.flags = PKV_CACHE_SHARED;
    pkv_error err;
    expect_ok(pkv_update(&c.cache, &c.new_kv, &c.slices, NULL, &err), &err);
    world_expect_same(&c.w);
    c.list.n = 5; /* N is 4 */
    assert_int_equal(pkv_update(&c.cache, &c.new_kv, &c.slices, NULL, &err), PKV_E_RANGE);
    c.list.n = 2;
    c.w.cache.flags = PKV_CACHE_SHARED;
    world_gather(&c.w, &c.slices, NULL);
    call_free(&c);
}

/* T = 0 with no memory at all is a call that does nothing. */
static void test_no_tokens(void **state)
{
    (void)state;
    call c;
    call_init(&c);
    pkv_error err;
    c.new_kv.n_tokens = 0;
    c.new_kv.k.data = NULL;
    c.new_kv.v.data = NULL;
    c.list.n = 0;
    expect_ok(pkv_update(&c.cache, &c.new_kv, &c.slices, NULL, &err), &err);
    c.list.n = 1;
    expect_error(pkv_update(&c.cache, &c.new_kv, &c.slices, NULL, &err), &err, PKV_E_RANGE,
                 PKV_RULE_NEW_KV_END, 0);
    call_free(&c);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_null_arguments),
        cmocka_unit_test(test_shapes_that_differ),
        cmocka_unit_test(test_what_cannot_be),
        cmocka_unit_test(test_unknown_options),
        cmocka_unit_test(test_memory_that_overlaps),
        cmocka_unit_test(test_planes_that_overlap_crosswise),
        cmocka_unit_test(test_longer_structs),
        cmocka_unit_test(test_shorter_structs),
        cmocka_unit_test(test_arrays_of_longer_structs),
        cmocka_unit_test(test_shared_cache_is_not_written),
        cmocka_unit_test(test_no_tokens),
    };
    return cmocka_run_group_tests_name("refusals", tests, NULL, NULL);
}
