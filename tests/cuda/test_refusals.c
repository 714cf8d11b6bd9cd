/* What the calls refuse before anything is on the stream. */
#include <string.h>

#include "twin.h"

enum { PAGES = 4, PAGE_TOKENS = 4, HEADS = 2, DIM = 16, TOKENS = 8, COPIES = 2 };

/* Good arguments of all calls. */
typedef struct args {
    device          d;
    cw              w; /* int8 with scales a token and head, rows of bf16 */
    twin            cache_there, rows_there;
    slice_list      list;
    pkv_cache       cache;
    pkv_new_kv      new_kv;
    pkv_rows        rows;
    pkv_slices      slices;
    pkv_page_copy   copies[COPIES];
    twin            copies_there;
    pkv_page_copy  *copy;
    pkv_update_opts opts;
    pkv_cuda       *cuda;
    void           *stream;
    const int32_t  *num_copies;
    int64_t         launches;
} args;

static void args_open(args *a)
{
    const cw_shape shape = {.layout = CW_NHD, .dtype = PKV_DTYPE_INT8,
                            .rows_dtype = PKV_DTYPE_BF16, .n_pages = PAGES,
                            .page_size = PAGE_TOKENS, .n_heads = HEADS, .head_dim = {DIM, DIM},
                            .n_tokens = TOKENS,
                            .kind = {PKV_SCALES_TOKEN_HEAD, PKV_SCALES_TOKEN_HEAD}};
    *a = (args){.copies = {{0, 1, 2, 0}, {2, 3, 4, 0}}};
    device_open(&a->d);
    cw_init(&a->w, &shape, 1);
    a->cache_there = twin_new(&a->d, a->w.memory.data, a->w.memory.room_bytes);
    a->rows_there = twin_new(&a->d, a->w.rows_memory.data, a->w.rows_memory.room_bytes);
    a->copies_there = twin_new(&a->d, a->copies, sizeof a->copies);
    slice_list_init(&a->list, 4);
    slice_list_add(&a->list, 1, 0, 3);
    device_slices_init(&a->d, &a->slices, 4);
    device_slices_set(&a->d, &a->slices, &a->list, a->list.n);
    const pkv_rows rows = cw_rows(&a->w, a->w.rows_memory.data);
    a->cache = twin_cache(&a->cache_there, &a->w.cache);
    a->new_kv = twin_new_kv(&a->rows_there, &a->w.new_kv);
    a->rows = twin_rows(&a->rows_there, &rows);
    a->copy = twin_at(&a->copies_there, a->copies);
    a->num_copies = a->slices.num_slices;
    a->opts = a->d.opts;
    a->cuda = a->d.cuda;
    a->stream = a->d.stream;
    a->launches = device_launches();
}

/* Nothing was launched, nothing written. */
static void args_close(args *a)
{
    device_expect_launches(a->launches, 0);
    device_expect_status(&a->d, 0);
    twin_expect(&a->d, &a->cache_there, a->w.memory.data, "a cache");
    twin_free(&a->d, &a->cache_there);
    twin_free(&a->d, &a->rows_there);
    twin_free(&a->d, &a->copies_there);
    device_slices_free(&a->d, &a->slices);
    slice_list_free(&a->list);
    cw_free(&a->w);
    device_close(&a->d);
}

enum { UPDATE = 1, GATHER = 2, COPY = 4, ALL = 7 };

static pkv_status call(const args *a, int which, pkv_error *err)
{
    switch (which) {
    case UPDATE:
        return pkv_cuda_update(a->cuda, &a->cache, &a->new_kv, &a->slices, &a->opts, err,
                               a->stream);
    case GATHER:
        return pkv_cuda_gather(a->cuda, &a->cache, &a->rows, &a->slices, &a->opts, err, a->stream);
    default:
        return pkv_cuda_copy_pages(a->cuda, &a->cache, NULL, NULL, 1, a->copy, COPIES,
                                   a->num_copies, &a->opts, err, a->stream);
    }
}

/* Each of these calls fails in this way, with and without a place to say so. */
static void expect_refused(const args *a, int calls, pkv_status code)
{
    for (int which = UPDATE; which <= COPY; which *= 2) {
        pkv_error err = {0};
        if ((calls & which) != 0) {
            expect_error(call(a, which, &err), &err, code, PKV_RULE_NONE, -1);
            assert_int_equal(call(a, which, NULL), code);
        }
    }
}

/* ---- pointers ----------------------------------------------------------------------- */

static int32_t host_memory[4096];

static void test_host_pointers(void **state)
{
    (void)state;
    static args a;
    args_open(&a);
    struct {
        void *pointer; /* where the pointer is that is exchanged */
        int   calls;
    } places[] = {
        {&a.cache.k.data, ALL},
        {&a.cache.v.data, ALL},
        {&a.cache.k_scales.data, ALL},
        {&a.cache.v_scales.data, ALL},
        {&a.new_kv.k.data, UPDATE},
        {&a.new_kv.v.data, UPDATE},
        {&a.rows.k.data, GATHER},
        {&a.rows.v.data, GATHER},
        {&a.slices.kv_cache_start, UPDATE | GATHER},
        {&a.slices.new_kv_start, UPDATE | GATHER},
        {&a.slices.slice_len, UPDATE | GATHER},
        {&a.slices.num_slices, UPDATE | GATHER},
        {&a.opts.status_word, ALL},
        {&a.copy, COPY},
        {&a.num_copies, COPY},
    };
    void *const bad = host_memory;
    a.opts.flags = PKV_UPDATE_CHECKED;
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        void *good;
        memcpy(&good, places[i].pointer, sizeof good);
        memcpy(places[i].pointer, &bad, sizeof bad);
        note_case("pointer", i, "one of the host's");
        expect_refused(&a, places[i].calls, PKV_E_INVALID);
        memcpy(places[i].pointer, &good, sizeof good);
    }
    args_close(&a);
}

/* Of the last layer of two, the other pointers are the device's. */
static void test_pointer_of_a_layer(void **state)
{
    (void)state;
    static args a;
    pkv_error   err;
    args_open(&a);
    a.opts.flags = PKV_UPDATE_CHECKED;
    const pkv_new_kv new_kvs[2] = {a.new_kv, a.new_kv};
    pkv_cache        caches[2] = {a.cache, a.cache};
    caches[0].flags = PKV_CACHE_SHARED;
    caches[1].v.data = host_memory;
    expect_error(pkv_cuda_update_layers(a.cuda, caches, new_kvs, NULL, 2, &a.slices, 1, &a.opts,
                                        &err, a.stream), &err, PKV_E_INVALID, PKV_RULE_NONE, -1);
    assert_int_equal(err.layer, 1);
    pkv_cache dsts[2] = {a.cache, a.cache};
    dsts[1].k.data = host_memory;
    dsts[1].v.data = host_memory + 2048;
    dsts[1].k_scales = dsts[1].v_scales = (pkv_scales){0};
    dsts[1].dtype = caches[0].dtype = caches[1].dtype = PKV_DTYPE_BITS8;
    dsts[0].dtype = PKV_DTYPE_BITS8;
    for (int l = 0; l < 2; l++) {
        caches[l].k_scales = caches[l].v_scales = (pkv_scales){0};
        dsts[l].k_scales = dsts[l].v_scales = (pkv_scales){0};
    }
    caches[1].v.data = a.cache.v.data;
    dsts[0].k.data = a.rows_there.there; /* apart from the sources */
    dsts[0].v.data = a.rows_there.there + 1024;
    expect_error(pkv_cuda_copy_pages(a.cuda, caches, dsts, NULL, 2, a.copy, COPIES, a.num_copies,
                                     &a.opts, &err, a.stream), &err, PKV_E_INVALID, PKV_RULE_NONE,
                 -1);
    assert_int_equal(err.layer, 1);
    args_close(&a);
}

/* A real driver need not survive a stream that is none. */
static void test_stream(void **state)
{
    (void)state;
    needs_fake();
    static args a;
    args_open(&a);
    a.stream = host_memory;
    a.opts.flags = PKV_UPDATE_CHECKED;
    expect_refused(&a, ALL, PKV_E_INVALID);
    a.opts.flags = 0;
    expect_refused(&a, ALL, PKV_E_DEVICE);
    args_close(&a);
}

/* ---- options and structs ------------------------------------------------------------ */

static void test_options(void **state)
{
    (void)state;
    static args a;
    args_open(&a);
    a.opts.flags = PKV_UPDATE_STRICT;
    expect_refused(&a, ALL, PKV_E_UNSUPPORTED);
    a.opts.flags = PKV_UPDATE_STRICT | PKV_UPDATE_CHECKED;
    expect_refused(&a, ALL, PKV_E_UNSUPPORTED);
    a.opts.flags = 16;
    expect_refused(&a, ALL, PKV_E_INVALID);
    a.opts.flags = 0;
    a.opts.max_threads = -1;
    expect_refused(&a, ALL, PKV_E_INVALID);
    a.opts.max_threads = 0;
    a.opts.struct_size--;
    expect_refused(&a, ALL, PKV_E_UNSUPPORTED);
    a.opts = a.d.opts;
    a.cuda = NULL;
    expect_refused(&a, ALL, PKV_E_INVALID);
    args_close(&a);
}

/* A struct with a longer tail, which is zero or not. */
#define LONGER(type)        \
    struct {                \
        type    known;      \
        int64_t unknown[2]; \
    }

static void test_longer_structs(void **state)
{
    (void)state;
    static args a;
    args_open(&a);
    LONGER(pkv_cache) cache = {a.cache, {0, 0}};
    LONGER(pkv_new_kv) new_kv = {a.new_kv, {0, 0}};
    LONGER(pkv_rows) rows = {a.rows, {0, 0}};
    LONGER(pkv_slices) slices = {a.slices, {0, 0}};
    LONGER(pkv_update_opts) opts = {a.opts, {0, 0}};
    int64_t *const tails[] = {cache.unknown, new_kv.unknown, rows.unknown, slices.unknown,
                              opts.unknown};
    static const int calls[] = {ALL, UPDATE, GATHER, UPDATE | GATHER, ALL};
    cache.known.struct_size = sizeof cache;
    new_kv.known.struct_size = sizeof new_kv;
    rows.known.struct_size = sizeof rows;
    slices.known.struct_size = sizeof slices;
    opts.known.struct_size = sizeof opts;
    for (int i = -1; i < 5; i++) {
        const pkv_cuda_stream stream = a.stream;
        const pkv_status      refused = PKV_E_UNSUPPORTED;
        const int             of = i < 0 ? 0 : calls[i];
        const int32_t         none = 0;
        expect_gpu(a.d.g, gpu_write(a.d.g, a.slices.num_slices, &none, sizeof none));
        if (i >= 0) {
            tails[i][1] = 1;
        }
        const int64_t before = device_launches();
        assert_int_equal(pkv_cuda_update(a.cuda, &cache.known, &new_kv.known, &slices.known,
                                         &opts.known, NULL, stream),
                         (of & UPDATE) != 0 ? refused : PKV_OK);
        assert_int_equal(pkv_cuda_gather(a.cuda, &cache.known, &rows.known, &slices.known,
                                         &opts.known, NULL, stream),
                         (of & GATHER) != 0 ? refused : PKV_OK);
        assert_int_equal(pkv_cuda_copy_pages(a.cuda, &cache.known, NULL, NULL, 1, a.copy, COPIES,
                                             a.num_copies, &opts.known, NULL, stream),
                         (of & COPY) != 0 ? refused : PKV_OK);
        const int n = ((of & UPDATE) == 0) + ((of & GATHER) == 0) + 2 * ((of & COPY) == 0);
        device_expect_launches(before, n);
        a.launches += n;
        if (i >= 0) {
            tails[i][1] = 0;
        }
    }
    args_close(&a);
}

static void test_nulls(void **state)
{
    (void)state;
    static args a;
    pkv_error   err;
    args_open(&a);
    const pkv_cache *none = NULL;
    expect_error(pkv_cuda_update(a.cuda, none, &a.new_kv, &a.slices, NULL, &err, a.stream), &err,
                 PKV_E_INVALID, PKV_RULE_NONE, -1);
    expect_error(pkv_cuda_update(a.cuda, &a.cache, NULL, &a.slices, NULL, &err, a.stream), &err,
                 PKV_E_INVALID, PKV_RULE_NONE, -1);
    expect_error(pkv_cuda_update(a.cuda, &a.cache, &a.new_kv, NULL, NULL, &err, a.stream), &err,
                 PKV_E_INVALID, PKV_RULE_NONE, -1);
    expect_error(pkv_cuda_gather(a.cuda, &a.cache, NULL, &a.slices, NULL, &err, a.stream), &err,
                 PKV_E_INVALID, PKV_RULE_NONE, -1);
    expect_error(pkv_cuda_update_layers(a.cuda, &a.cache, &a.new_kv, NULL, 1, &a.slices, 0, NULL,
                                        &err, a.stream), &err, PKV_E_INVALID, PKV_RULE_NONE, -1);
    expect_error(pkv_cuda_update_layers(a.cuda, &a.cache, &a.new_kv, NULL, -1, &a.slices, 1, NULL,
                                        &err, a.stream), &err, PKV_E_INVALID, PKV_RULE_NONE, -1);
    expect_error(pkv_cuda_copy_pages(a.cuda, NULL, NULL, NULL, 1, a.copy, COPIES, a.num_copies,
                                     NULL, &err, a.stream), &err, PKV_E_INVALID, PKV_RULE_NONE, -1);
    expect_error(pkv_cuda_copy_pages(a.cuda, &a.cache, NULL, NULL, 1, NULL, COPIES, a.num_copies,
                                     NULL, &err, a.stream), &err, PKV_E_INVALID, PKV_RULE_NONE, -1);
    expect_error(pkv_cuda_copy_pages(a.cuda, &a.cache, NULL, NULL, 1, a.copy, -1, a.num_copies,
                                     NULL, &err, a.stream), &err, PKV_E_INVALID, PKV_RULE_NONE, -1);
    expect_error(pkv_cuda_copy_pages(a.cuda, &a.cache, NULL, NULL, 1, a.copy, COPIES, NULL, NULL,
                                     &err, a.stream), &err, PKV_E_INVALID, PKV_RULE_NONE, -1);
    const pkv_slices slices = a.slices;
    a.slices.num_slices = NULL;
    expect_refused(&a, UPDATE | GATHER, PKV_E_INVALID);
    a.slices = slices;
    a.slices.slice_len = NULL;
    expect_refused(&a, UPDATE | GATHER, PKV_E_INVALID);
    a.slices = slices;
    a.slices.capacity = -1;
    expect_refused(&a, UPDATE | GATHER, PKV_E_INVALID);
    a.slices = slices;
    a.cache.k.data = NULL;
    expect_refused(&a, ALL, PKV_E_INVALID);
    args_close(&a);
}

/* ---- sizes -------------------------------------------------------------------------- */

/* One token of two planes, `dim` opaque bytes each, at addresses of nowhere. */
static void set_row(args *a, int64_t dim, int64_t dim_v)
{
    unsigned char *const at = (unsigned char *)((uintptr_t)1 << 40); /* n is 0: nobody goes there */
    a->cache = (pkv_cache){.struct_size = sizeof a->cache, .n_pages = 1, .page_size = 1,
                           .n_heads = 1, .dtype = PKV_DTYPE_BITS8,
                           .k = {at, dim, dim, dim, dim},
                           .v = {dim_v > 0 ? at + 2 * dim : NULL, dim_v, dim_v, dim_v, dim_v}};
    a->new_kv = (pkv_new_kv){.struct_size = sizeof a->new_kv, .n_tokens = 1, .n_heads = 1,
                             .dtype = PKV_DTYPE_BITS8,
                             .k = {at + 8 * dim, dim, dim, dim},
                             .v = {dim_v > 0 ? at + 10 * dim : NULL, dim_v, dim_v, dim_v}};
}

/* The same row converted, from f32 to int8, with `group` elements to a scale; 0: no scale. */
static void set_cast_row(args *a, int64_t dim, int32_t group)
{
    set_row(a, dim, 0);
    a->cache.dtype = PKV_DTYPE_INT8;
    a->new_kv.dtype = PKV_DTYPE_F32;
    if (group > 0) {
        a->cache.k_scales = (pkv_scales){(unsigned char *)((uintptr_t)1 << 45), 0, 0, 0,
                                         PKV_SCALES_GROUP, group};
    }
}

static void expect_fits(args *a)
{
    pkv_error err;
    expect_ok(call(a, UPDATE, &err), &err);
    a->launches += device_launches() > 0;
}

static void test_sizes(void **state)
{
    (void)state;
    static args   a;
    const int64_t most = (int64_t)1 << 26; /* vectors or units */
    const int32_t none = 0;
    args_open(&a);
    expect_gpu(a.d.g, gpu_write(a.d.g, a.slices.num_slices, &none, sizeof none));
    set_row(&a, 16 * most, 0);
    expect_refused(&a, UPDATE, PKV_E_UNSUPPORTED);
    set_row(&a, 16 * most - 16, 0);
    expect_fits(&a);
    set_row(&a, 8 * most, 8 * most); /* in both together */
    expect_refused(&a, UPDATE, PKV_E_UNSUPPORTED);
    set_row(&a, 8 * most, 8 * most - 16);
    expect_fits(&a);
    set_row(&a, most + 1, 0); /* in vectors of one byte */
    expect_refused(&a, UPDATE, PKV_E_UNSUPPORTED);
    set_row(&a, most - 1, 0);
    expect_fits(&a);
    set_cast_row(&a, INT32_MAX, 0);
    expect_refused(&a, UPDATE, PKV_E_UNSUPPORTED);
    set_cast_row(&a, INT32_MAX - 1, 0);
    expect_fits(&a);
    set_cast_row(&a, most, 1);
    expect_refused(&a, UPDATE, PKV_E_UNSUPPORTED);
    set_cast_row(&a, most - 1, 1);
    expect_fits(&a);
    expect_gpu(a.d.g, gpu_synchronize(a.d.g, a.d.stream));
    args_close(&a);
}

/* A slice that begins below 2^31 may reach a second page of 2^31 slots or more. */
static void test_far_page(void **state)
{
    (void)state;
    static args   a;
    const int64_t bound = (int64_t)1 << 31;
    const struct {
        int64_t page_size, n_pages;
        bool    fits;
    } cases[] = {{bound - 1, 3, true},      {bound, 1, true},          {bound, 2, false},
                 {bound + 1, 2, false},     {2 * bound - 2, 2, false}, {2 * bound - 1, 2, true},
                 {(int64_t)1 << 40, 2, true}, {3, bound, true}};
    const int32_t none = 0;
    args_open(&a);
    expect_gpu(a.d.g, gpu_write(a.d.g, a.slices.num_slices, &none, sizeof none));
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        for (int flat = 0; flat < 2; flat++) {
            const int64_t S = cases[i].page_size;
            note_case("far page", i, "flat %d", flat);
            set_row(&a, 16, 0);
            a.cache.n_pages = cases[i].n_pages;
            a.cache.page_size = S;
            a.cache.k.token_stride_bytes = 16;
            a.cache.k.page_stride_bytes = 16 * (S + (flat == 0));
            a.new_kv.k.data = (void *)((uintptr_t)1 << 39);
            if (cases[i].fits || flat != 0) {
                expect_fits(&a);
            } else {
                expect_refused(&a, UPDATE, PKV_E_UNSUPPORTED);
            }
        }
    }
    expect_gpu(a.d.g, gpu_synchronize(a.d.g, a.d.stream));
    args_close(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_host_pointers),  cmocka_unit_test(test_pointer_of_a_layer),
        cmocka_unit_test(test_stream),         cmocka_unit_test(test_options),
        cmocka_unit_test(test_longer_structs), cmocka_unit_test(test_nulls),
        cmocka_unit_test(test_sizes),          cmocka_unit_test(test_far_page),
    };
    const int absent = cuda_absent();
    return absent != 0 ? absent : cmocka_run_group_tests(tests, NULL, NULL);
}
