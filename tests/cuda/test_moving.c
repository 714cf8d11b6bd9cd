/* Work that goes on at once, and memory that 32 bits do not reach. */
#include <pthread.h>
#include <string.h>

#include "twin.h"

/* ---- two streams, two threads ------------------------------------------------------- */

enum { WORKERS = 2, ROUNDS = 8, PAGES = 64, PAGE_TOKENS = 16, TOKENS = 512, LISTS = ROUNDS };

/* A worker has every second page of the cache, a stream and slices of its own. */
typedef struct worker {
    pthread_t     thread;
    const device *d;
    void         *stream;
    int32_t      *status_word; /* of the device */
    slice_list    list[LISTS];
    pkv_slices    slices[LISTS];
    pkv_cache     cache; /* of the device */
    pkv_new_kv    new_kv;
    pkv_status    status;
} worker;

typedef struct shop {
    device d;
    world  w;
    twin   cache, rows;
    worker worker[WORKERS];
} shop;

static void worker_init(shop *s, int i)
{
    worker *k = &s->worker[i];
    void   *word = NULL;
    rng     r = {(uint64_t)i};
    *k = (worker){.d = &s->d};
    expect_gpu(s->d.g, gpu_stream_create(s->d.g, &k->stream));
    expect_gpu(s->d.g, gpu_alloc(s->d.g, &word, sizeof(int32_t)));
    k->status_word = word;
    expect_gpu(s->d.g, gpu_fill(s->d.g, word, 0, sizeof(int32_t), NULL));
    k->cache = twin_cache(&s->cache, &s->w.cache);
    k->new_kv = twin_new_kv(&s->rows, &s->w.new_kv);
    for (int l = 0; l < LISTS; l++) {
        slice_list_init(&k->list[l], PAGES);
        for (int64_t p = i; p < PAGES; p += WORKERS) {
            const int64_t len = rng_range(&r, 1, PAGE_TOKENS);
            slice_list_add(&k->list[l], p * PAGE_TOKENS + rng_range(&r, 0, PAGE_TOKENS - len),
                           rng_range(&r, 0, TOKENS - len), len);
        }
        if (l == LISTS - 1) {
            slice_list_add(&k->list[l], -1, 0, 1); /* for the status */
        }
        slice_list_garbage(&k->list[l], l % GARBAGE_KINDS, 1);
        device_slices_init(&s->d, &k->slices[l], PAGES);
        device_slices_set(&s->d, &k->slices[l], &k->list[l], k->list[l].n);
    }
}

static void shop_open(shop *s)
{
    const world_shape shape = {LAYOUT_HND, SOURCE_FUSED, PKV_DTYPE_BF16, PAGES, PAGE_TOKENS, 2, 16,
                               16, TOKENS};
    device_open(&s->d);
    world_init(&s->w, &shape, FILL_RANDOM, 6);
    s->cache = twin_new(&s->d, s->w.memory.data, s->w.memory.room_bytes);
    s->rows = twin_new(&s->d, s->w.source_memory.data, s->w.source_memory.room_bytes);
    for (int i = 0; i < WORKERS; i++) {
        worker_init(s, i);
    }
}

/* Waits for a worker; its skipped slice is in its own status word. */
static void worker_close(shop *s, int i)
{
    worker *k = &s->worker[i];
    int32_t word = -1;
    assert_int_equal(k->status, PKV_OK);
    expect_gpu(s->d.g, gpu_synchronize(s->d.g, k->stream));
    expect_gpu(s->d.g, gpu_read(s->d.g, &word, k->status_word, sizeof word));
    assert_int_equal(word, 1);
    for (int l = 0; l < LISTS; l++) {
        k->list[l].n -= l == LISTS - 1;
        model_update(&s->w.model_cache, &s->w.new_kv, &k->list[l].view);
        slice_list_free(&k->list[l]);
        device_slices_free(&s->d, &k->slices[l]);
    }
    gpu_free(s->d.g, k->status_word);
    gpu_stream_destroy(s->d.g, k->stream);
}

static void shop_close(shop *s)
{
    for (int i = 0; i < WORKERS; i++) {
        worker_close(s, i);
    }
    twin_expect(&s->d, &s->cache, s->w.model_memory, "a cache with two writers");
    twin_free(&s->d, &s->cache);
    twin_free(&s->d, &s->rows);
    world_free(&s->w);
    device_close(&s->d);
}

/* No failure of cmocka's here: it may run on a thread of its own. */
static void put(worker *k, int round)
{
    const pkv_update_opts opts = {.struct_size = sizeof opts, .status_word = k->status_word,
                                  .flags = round % 2 != 0 ? PKV_UPDATE_CHECKED : 0};
    const pkv_status status = pkv_cuda_update(k->d->cuda, &k->cache, &k->new_kv,
                                              &k->slices[round], &opts, NULL, k->stream);
    k->status = k->status == PKV_OK ? status : k->status;
}

static void test_streams(void **state)
{
    (void)state;
    static shop s;
    shop_open(&s);
    for (int round = 0; round < ROUNDS; round++) {
        for (int i = 0; i < WORKERS; i++) {
            put(&s.worker[i], round);
        }
    }
    shop_close(&s);
}

static void *work(void *argument)
{
    worker *k = argument;
    if (gpu_use(k->d->g) != 0) {
        k->status = PKV_E_DEVICE;
    }
    for (int round = 0; round < ROUNDS; round++) {
        put(k, round);
    }
    return NULL;
}

static void test_threads(void **state)
{
    (void)state;
    static shop s;
    shop_open(&s);
    for (int i = 0; i < WORKERS; i++) {
        assert_int_equal(pthread_create(&s.worker[i].thread, NULL, work, &s.worker[i]), 0);
    }
    for (int i = 0; i < WORKERS; i++) {
        assert_int_equal(pthread_join(s.worker[i].thread, NULL), 0);
    }
    shop_close(&s);
}

/* ---- far offsets -------------------------------------------------------------------- */

/*
 * A block of more than 4 GiB.  The bytes that a test looks at are set before it, and those
 * around 2^32 from where the right ones are too.
 */
enum {
    FAR_HEADS = 2,
    FAR_DIM = 64,
    FAR_TOKENS = 16,
    FAR_ROWS_BYTES = FAR_TOKENS * FAR_HEADS * FAR_DIM,
    NEAR = 64
};

typedef struct far {
    device        d;
    unsigned char *block;
    size_t         n_bytes;
    unsigned char  rows_model[2 * FAR_ROWS_BYTES]; /* written from, gathered into */
    float          floats_model[2 * FAR_ROWS_BYTES]; /* the same as numbers */
    twin           rows, floats;
    slice_list     list;
    pkv_slices     slices;
} far;

static const size_t far_bytes = ((size_t)4 << 30) + ((size_t)256 << 20);

/* False, with the test to be skipped, where the device is too small. */
static bool far_open(far *f)
{
    void   *block = NULL;
    int64_t left = 0, all = 0;
    *f = (far){.n_bytes = far_bytes};
    device_open(&f->d);
    expect_gpu(f->d.g, gpu_memory(f->d.g, &left, &all));
    if (left < (int64_t)far_bytes + (1 << 20)) {
        device_close(&f->d);
        return false;
    }
    expect_gpu(f->d.g, gpu_alloc(f->d.g, &block, f->n_bytes));
    f->block = block;
    fill(f->rows_model, sizeof f->rows_model, FILL_RANDOM, 8);
    f->rows = twin_new(&f->d, f->rows_model, sizeof f->rows_model);
    f->floats = twin_new(&f->d, f->floats_model, sizeof f->floats_model);
    slice_list_init(&f->list, 8);
    device_slices_init(&f->d, &f->slices, 8);
    return true;
}

static void far_close(far *f)
{
    gpu_free(f->d.g, f->block);
    twin_free(&f->d, &f->rows);
    twin_free(&f->d, &f->floats);
    slice_list_free(&f->list);
    device_slices_free(&f->d, &f->slices);
    device_close(&f->d);
}

/* Sets the bytes of a head vector to a number, and those before and behind it. */
static void mark(const far *f, int64_t at)
{
    for (int64_t lower = at % ((int64_t)1 << 32); lower < (int64_t)f->n_bytes;
         lower += (int64_t)1 << 32) {
        if (lower >= NEAR && lower + FAR_DIM + NEAR <= (int64_t)f->n_bytes) {
            expect_gpu(f->d.g, gpu_fill(f->d.g, f->block + lower - NEAR, 0x5a, 2 * NEAR + FAR_DIM,
                                        f->d.stream));
        }
    }
}

/* The head vector at `at` is this, and what lies around it and 2^32 away is as it was. */
static void expect_mark(const far *f, int64_t at, const unsigned char *vector)
{
    for (int64_t lower = at % ((int64_t)1 << 32); lower < (int64_t)f->n_bytes;
         lower += (int64_t)1 << 32) {
        unsigned char found[2 * NEAR + FAR_DIM], expected[2 * NEAR + FAR_DIM];
        if (lower < NEAR || lower + FAR_DIM + NEAR > (int64_t)f->n_bytes) {
            continue;
        }
        memset(expected, 0x5a, sizeof expected);
        if (lower == at) {
            memcpy(expected + NEAR, vector, FAR_DIM);
        }
        expect_gpu(f->d.g, gpu_read(f->d.g, found, f->block + lower - NEAR, sizeof found));
        expect_same_bytes("a far head vector", found, expected, sizeof found);
    }
}

/* The cache: pages of 1 MiB, or one with tokens or heads that far apart. */
static pkv_cache far_cache(const far *f, int kind)
{
    const int64_t MiB = 1 << 20, n = (int64_t)(f->n_bytes >> 20);
    pkv_cache     c = {.struct_size = sizeof c, .n_pages = n, .page_size = 4,
                       .n_heads = FAR_HEADS, .dtype = PKV_DTYPE_INT8,
                       .k = {f->block + 4096, MiB, 1024, 256, FAR_DIM}};
    if (kind == 1) { /* by head */
        c.k.token_stride_bytes = 256;
        c.k.head_stride_bytes = 1024;
    } else if (kind == 2) { /* flat: slots 1 MiB apart, the pages too */
        c.n_pages = n / 4;
        c.k.page_stride_bytes = 4 * MiB;
        c.k.token_stride_bytes = MiB;
    } else if (kind == 3) { /* heads more than 4 GiB apart */
        c.n_pages = 20;
        c.k.page_stride_bytes = 4096;
        c.k.head_stride_bytes = ((int64_t)4 << 30) + MiB;
    }
    return c;
}

static int64_t far_at(const far *f, const pkv_cache *c, int64_t slot, int64_t head)
{
    return (unsigned char *)c->k.data - f->block + slot / c->page_size * c->k.page_stride_bytes +
           slot % c->page_size * c->k.token_stride_bytes + head * c->k.head_stride_bytes;
}

/* Tokens near the start, around 2^31 and 2^32 bytes and at the end, three in a slice. */
static void far_slices(far *f, const pkv_cache *c)
{
    const int64_t n_slots = c->n_pages * c->page_size;
    const int64_t starts[] = {5, n_slots * 8 / 17 - 1, n_slots * 16 / 17 - 1, n_slots - 3};
    f->list.n = 0;
    for (int i = 0; i < 4; i++) {
        slice_list_add(&f->list, starts[i], 4 * i, 3);
    }
    device_slices_set(&f->d, &f->slices, &f->list, f->list.n);
}

typedef void (*far_visit)(const far *f, int64_t at, const unsigned char *vector);

static void only_mark(const far *f, int64_t at, const unsigned char *vector)
{
    (void)vector;
    mark(f, at);
}

/* Every head vector of the slices, with the bytes of its row. */
static void far_each(const far *f, const pkv_cache *c, far_visit visit)
{
    for (int32_t i = 0; i < f->list.n; i++) {
        for (int64_t j = 0; j < f->list.view.slice_len[i]; j++) {
            for (int64_t h = 0; h < FAR_HEADS; h++) {
                const int64_t row = f->list.view.new_kv_start[i] + j;
                visit(f, far_at(f, c, f->list.view.kv_cache_start[i] + j, h),
                      f->rows_model + (row * FAR_HEADS + h) * FAR_DIM);
            }
        }
    }
}

/* New rows, as bytes and as the numbers that an int8 of these bytes is. */
static void far_rows(far *f, uint64_t seed)
{
    fill(f->rows_model, sizeof f->rows_model, FILL_RANDOM, seed);
    for (size_t i = 0; i < sizeof f->rows_model; i++) {
        f->floats_model[i] = (float)(int8_t)f->rows_model[i];
    }
    twin_push(&f->d, &f->rows);
    twin_push(&f->d, &f->floats);
}

/* What a gather makes of the second half of the rows; of four three are of a slice. */
static void far_gather_model(far *f)
{
    const size_t bytes = FAR_HEADS * FAR_DIM;
    for (size_t i = 0; i < FAR_ROWS_BYTES; i++) {
        if (i / bytes % 4 != 3) {
            f->rows_model[FAR_ROWS_BYTES + i] = f->rows_model[i];
            f->floats_model[FAR_ROWS_BYTES + i] = f->floats_model[i];
        }
    }
}

/* There and back, the bytes themselves or converted. */
static void far_run(far *f, const pkv_cache *c, bool converted)
{
    const pkv_dtype dtype = converted ? PKV_DTYPE_F32 : c->dtype;
    const twin     *of = converted ? &f->floats : &f->rows;
    pkv_new_kv      new_kv;
    pkv_rows        rows;
    pkv_error       err;
    assert_int_equal(pkv_new_kv_nhd(&new_kv, sizeof new_kv, of->there, NULL, FAR_TOKENS, FAR_HEADS,
                                    FAR_DIM, 0, 0, dtype), PKV_OK);
    assert_int_equal(pkv_rows_nhd(&rows, sizeof rows, of->there + of->n_bytes / 2, NULL,
                                  FAR_TOKENS, FAR_HEADS, FAR_DIM, 0, 0, dtype), PKV_OK);
    expect_ok(pkv_cuda_update(f->d.cuda, c, &new_kv, &f->slices, &f->d.opts, &err, f->d.stream),
              &err);
    device_expect_status(&f->d, 0);
    far_each(f, c, expect_mark);
    expect_ok(pkv_cuda_gather(f->d.cuda, c, &rows, &f->slices, &f->d.opts, &err, f->d.stream),
              &err);
    device_expect_status(&f->d, 0);
    far_gather_model(f);
    twin_expect(&f->d, of, of->host, "gathered from afar");
}

static void test_far_caches(void **state)
{
    (void)state;
    static far f;
    if (!far_open(&f)) {
        skip();
    }
    for (int turn = 0; turn < 8; turn++) {
        const int       kind = turn / 2;
        const pkv_cache c = far_cache(&f, kind);
        note_case("far", (uint64_t)turn, "a cache of more than 4 GiB");
        far_slices(&f, &c);
        far_each(&f, &c, only_mark);
        far_rows(&f, 9 + (uint64_t)turn);
        far_run(&f, &c, turn % 2 != 0);
    }
    far_close(&f);
}

/* Rows that are as far apart, of a cache that is small; and a page copied from end to end. */
static void test_far_rows_and_pages(void **state)
{
    (void)state;
    static far f;
    pkv_error  err;
    if (!far_open(&f)) {
        skip();
    }
    const pkv_cache far_side = far_cache(&f, 2); /* its slots are the rows here */
    const int64_t   n_rows = far_side.n_pages * far_side.page_size;
    pkv_cache       c;
    assert_int_equal(pkv_cache_nhd(&c, sizeof c, f.rows.there, NULL, FAR_TOKENS, 1, FAR_HEADS,
                                   FAR_DIM, far_side.dtype), PKV_OK);
    const pkv_rows rows = {.struct_size = sizeof rows, .n_tokens = n_rows, .n_heads = FAR_HEADS,
                           .dtype = c.dtype,
                           .k = {far_side.k.data, far_side.k.token_stride_bytes,
                                 far_side.k.head_stride_bytes, FAR_DIM}};
    far_slices(&f, &far_side);
    far_each(&f, &far_side, only_mark);
    const pkv_slices turned = {f.slices.struct_size, f.slices.capacity, f.slices.new_kv_start,
                               f.slices.kv_cache_start, f.slices.slice_len, f.slices.num_slices};
    expect_ok(pkv_cuda_gather(f.d.cuda, &c, &rows, &turned, &f.d.opts, &err, f.d.stream), &err);
    device_expect_status(&f.d, 0);
    far_each(&f, &far_side, expect_mark);

    const pkv_cache     pages = far_cache(&f, 0);
    const pkv_page_copy copy = {0, (int32_t)pages.n_pages - 1, 3, 0};
    const int32_t       one = 1;
    twin list = twin_new(&f.d, &copy, sizeof copy), count = twin_new(&f.d, &one, sizeof one);
    f.list.n = 0;
    slice_list_add(&f.list, 0, 0, 3);
    slice_list_add(&f.list, (pages.n_pages - 1) * pages.page_size, 0, 3);
    far_each(&f, &pages, only_mark);
    for (int64_t t = 0; t < 3; t++) {
        for (int64_t h = 0; h < FAR_HEADS; h++) {
            expect_gpu(f.d.g, gpu_copy(f.d.g, f.block + far_at(&f, &pages, t, h),
                                       f.rows.there + (t * FAR_HEADS + h) * FAR_DIM, FAR_DIM,
                                       f.d.stream));
        }
    }
    expect_ok(pkv_cuda_copy_pages(f.d.cuda, &pages, NULL, NULL, 1, twin_at(&list, &copy), 1,
                                  twin_at(&count, &one), &f.d.opts, &err, f.d.stream), &err);
    device_expect_status(&f.d, 0);
    far_each(&f, &pages, expect_mark);
    twin_free(&f.d, &list);
    twin_free(&f.d, &count);
    far_close(&f);
}

/* Slots behind 2^31, which a slice that begins below runs into; pages are told apart. */
static void test_far_slots(void **state)
{
    (void)state;
    enum { PAGE = 32767, STRIDE = PAGE + 1, LEN = 300000, FIRST = INT32_MAX / PAGE - 1, SEEN = 13 };
    static far           f;
    static unsigned char source[LEN], expected[SEEN * STRIDE];
    pkv_error            err;
    pkv_new_kv           new_kv;
    if (!far_open(&f)) {
        skip();
    }
    unsigned char  *seen = f.block + (int64_t)FIRST * STRIDE;
    const pkv_cache c = {.struct_size = sizeof c, .n_pages = FIRST + SEEN, .page_size = PAGE,
                         .n_heads = 1, .dtype = PKV_DTYPE_BITS8, .k = {f.block, STRIDE, 1, 1, 1}};
    fill(source, sizeof source, FILL_RANDOM, 12);
    twin rows = twin_new(&f.d, source, sizeof source);
    assert_int_equal(pkv_new_kv_nhd(&new_kv, sizeof new_kv, rows.there, NULL, LEN, 1, 1, 0, 0,
                                    c.dtype), PKV_OK);
    expect_gpu(f.d.g, gpu_fill(f.d.g, seen, 0x5a, sizeof expected, f.d.stream));
    memset(expected, 0x5a, sizeof expected);
    for (int64_t i = 0; i < LEN; i++) {
        const int64_t slot = (int64_t)INT32_MAX - 5 + i;
        expected[(slot / PAGE - FIRST) * STRIDE + slot % PAGE] = source[i];
    }
    f.list.n = 0;
    slice_list_add(&f.list, INT32_MAX - 5, 0, LEN);
    device_slices_set(&f.d, &f.slices, &f.list, f.list.n);
    expect_ok(pkv_cuda_update(f.d.cuda, &c, &new_kv, &f.slices, &f.d.opts, &err, f.d.stream),
              &err);
    device_expect_status(&f.d, 0);
    const twin there = {expected, seen, sizeof expected};
    twin_expect(&f.d, &there, expected, "slots behind 2^31");
    twin_free(&f.d, &rows);
    far_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_streams),
        cmocka_unit_test(test_threads),
        cmocka_unit_test(test_far_caches),
        cmocka_unit_test(test_far_rows_and_pages),
        cmocka_unit_test(test_far_slots),
    };
    const int absent = cuda_absent();
    return absent != 0 ? absent : cmocka_run_group_tests(tests, NULL, NULL);
}
