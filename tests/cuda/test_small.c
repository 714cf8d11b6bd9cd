/*
 * All small shapes: page sizes, heads, bytes of a head vector and layouts, with slices at
 * every offset and of every length in three pages, both ways.
 */
#include <string.h>

#include "twin.h"

enum { PAGES = 3, LAYERS = 3, LAYOUTS = 4 };

typedef struct small {
    device         d;
    int64_t        page_size, n_heads, bytes, n_slots;
    int            layout;
    int64_t        cache_bytes, rows_bytes; /* of a layer */
    unsigned char *cache_memory, *rows_memory, *new_memory;
    twin           cache, rows, new_rows;
    pkv_cache      caches[LAYERS], caches_there[LAYERS];
    pkv_new_kv     new_kvs[LAYERS], new_kvs_there[LAYERS];
    pkv_rows       out[LAYERS], out_there[LAYERS];
    slice_list     list;
    pkv_slices     slices;
    int32_t       *numbers; /* of the device */
} small;

/* Layer l of a layout that lies at `at`; opaque bytes. */
static pkv_cache cache_of(const small *s, unsigned char *at)
{
    pkv_cache      c;
    unsigned char *v = at + PAGES * s->page_size * s->n_heads * s->bytes;
    pkv_status     status =
        s->layout == 0   ? pkv_cache_nhd(&c, sizeof c, at, NULL, PAGES, s->page_size, s->n_heads,
                                         s->bytes, PKV_DTYPE_BITS8)
        : s->layout == 1 ? pkv_cache_combined(&c, sizeof c, at, PAGES, s->page_size, s->n_heads,
                                              s->bytes, PKV_DTYPE_BITS8)
        : s->layout == 2 ? pkv_cache_nhd(&c, sizeof c, at, v, PAGES, s->page_size, s->n_heads,
                                         s->bytes, PKV_DTYPE_BITS8)
                         : pkv_cache_hnd(&c, sizeof c, at, v, PAGES, s->page_size, s->n_heads,
                                         s->bytes, PKV_DTYPE_BITS8);
    assert_int_equal(status, PKV_OK);
    return c;
}

/* Rows of n_slots tokens, K then V apart, or combined as the cache is. */
static pkv_rows rows_of(const small *s, unsigned char *at)
{
    pkv_rows   r;
    const bool keys = s->layout == 0;
    pkv_status status =
        s->layout == 1
            ? pkv_rows_combined(&r, sizeof r, at, s->n_slots, s->n_heads, s->bytes,
                                PKV_DTYPE_BITS8)
            : pkv_rows_nhd(&r, sizeof r, at, keys ? NULL : at + s->n_slots * s->n_heads * s->bytes,
                           s->n_slots, s->n_heads, s->bytes, keys ? 0 : s->bytes, 0,
                           PKV_DTYPE_BITS8);
    assert_int_equal(status, PKV_OK);
    return r;
}

static pkv_new_kv source_of(const pkv_rows *r)
{
    pkv_new_kv out = {.struct_size = sizeof out, .n_tokens = r->n_tokens, .n_heads = r->n_heads,
                      .dtype = r->dtype};
    out.k = (pkv_new_kv_plane){r->k.data, r->k.token_stride_bytes, r->k.head_stride_bytes,
                               r->k.head_dim};
    out.v = (pkv_new_kv_plane){r->v.data, r->v.token_stride_bytes, r->v.head_stride_bytes,
                               r->v.head_dim};
    return out;
}

static unsigned char *filled(int64_t n_bytes, uint64_t seed)
{
    unsigned char *memory = test_alloc((size_t)n_bytes);
    fill(memory, (size_t)n_bytes, FILL_RANDOM, seed);
    return memory;
}

/* Layers one byte, two bytes, ... apart from a whole number of vectors, by the shape. */
static void small_init(small *s)
{
    const int64_t token = s->n_heads * s->bytes * (s->layout == 0 ? 1 : 2);
    const int64_t shift = (int64_t)1 << (s->page_size + s->n_heads) % 6;
    s->n_slots = PAGES * s->page_size;
    s->cache_bytes = (s->n_slots * token + 63) / 32 * 32 + shift;
    s->rows_bytes = s->cache_bytes;
    s->cache_memory = filled(LAYERS * s->cache_bytes, 1);
    s->rows_memory = filled(LAYERS * s->rows_bytes, 2);
    s->new_memory = filled(LAYERS * s->rows_bytes, 3);
    s->cache = twin_new(&s->d, s->cache_memory, (size_t)(LAYERS * s->cache_bytes));
    s->rows = twin_new(&s->d, s->rows_memory, (size_t)(LAYERS * s->rows_bytes));
    s->new_rows = twin_new(&s->d, s->new_memory, (size_t)(LAYERS * s->rows_bytes));
    for (int l = 0; l < LAYERS; l++) {
        const pkv_rows source = rows_of(s, s->new_memory + l * s->rows_bytes);
        s->caches[l] = cache_of(s, s->cache_memory + l * s->cache_bytes);
        s->new_kvs[l] = source_of(&source);
        s->out[l] = rows_of(s, s->rows_memory + l * s->rows_bytes);
        s->caches_there[l] = twin_cache(&s->cache, &s->caches[l]);
        s->new_kvs_there[l] = twin_new_kv(&s->new_rows, &s->new_kvs[l]);
        s->out_there[l] = twin_rows(&s->rows, &s->out[l]);
    }
    note_case("small", 0, "S %d H %d bytes %d layout %d", (int)s->page_size, (int)s->n_heads,
              (int)s->bytes, s->layout);
}

static void small_free(small *s)
{
    twin_free(&s->d, &s->cache);
    twin_free(&s->d, &s->rows);
    twin_free(&s->d, &s->new_rows);
    free(s->cache_memory);
    free(s->rows_memory);
    free(s->new_memory);
}

/* Lists of one slice each, which go to the device together. */
enum { MOST_LISTS = 16 };

typedef struct lists {
    int        n;
    int32_t    number[MOST_LISTS][4]; /* n, then the slice */
    pkv_slices host[MOST_LISTS], there[MOST_LISTS];
} lists;

static void add_list(lists *l, const small *s, int64_t slot, int64_t row, int64_t len)
{
    int32_t *at = l->number[l->n], *there = s->numbers + 4 * l->n;
    at[0] = 1;
    at[1] = (int32_t)slot;
    at[2] = (int32_t)row;
    at[3] = (int32_t)len;
    l->host[l->n] = (pkv_slices){sizeof l->host[0], 1, at + 1, at + 2, at + 3, at};
    l->there[l->n] = (pkv_slices){sizeof l->host[0], 1, there + 1, there + 2, there + 3, there};
    l->n++;
}

static void put_update(small *s, const pkv_slices *host, const pkv_slices *there, int64_t n_layers)
{
    pkv_error err;
    expect_ok(pkv_cuda_update_layers(s->d.cuda, s->caches_there, s->new_kvs_there, NULL, n_layers,
                                     there, 1, &s->d.opts, &err, s->d.stream), &err);
    for (int64_t l = 0; l < n_layers; l++) {
        model_update(&s->caches[l], &s->new_kvs[l], host);
    }
}

static void put_gather(small *s, const pkv_slices *host, const pkv_slices *there, int64_t n_layers)
{
    pkv_error err;
    expect_ok(pkv_cuda_gather_layers(s->d.cuda, s->caches_there, s->out_there, NULL, n_layers,
                                     there, 1, &s->d.opts, &err, s->d.stream), &err);
    for (int64_t l = 0; l < n_layers; l++) {
        model_gather(&s->caches[l], &s->out[l], host);
    }
}

static void compare(const small *s)
{
    expect_gpu(s->d.g, gpu_synchronize(s->d.g, s->d.stream));
    twin_expect(&s->d, &s->cache, s->cache_memory, "caches");
    twin_expect(&s->d, &s->rows, s->rows_memory, "rows");
}

/* All slots in one list, the other way around. */
static void run_single_tokens(small *s)
{
    s->list.n = 0;
    for (int64_t slot = 0; slot < s->n_slots; slot++) {
        slice_list_add(&s->list, slot, s->n_slots - 1 - slot, 1);
    }
    device_slices_set(&s->d, &s->slices, &s->list, s->list.n);
    put_update(s, &s->list.view, &s->slices, LAYERS);
    put_gather(s, &s->list.view, &s->slices, LAYERS);
    compare(s);
}

/*
 * Every slice of the shape, to and from changing rows.  Of one offset the longest comes first,
 * so that something of each is left.
 */
static void run_shape(small *s)
{
    small_init(s);
    for (int64_t slot = 0; slot < s->n_slots; slot++) {
        lists l = {.n = 0};
        for (int64_t len = s->n_slots - slot; len >= 0; len--) {
            add_list(&l, s, slot, (slot + 5 * len) % (s->n_slots - len + 1), len);
        }
        expect_gpu(s->d.g, gpu_write(s->d.g, s->numbers, l.number, sizeof l.number));
        for (int i = 0; i < l.n; i++) {
            put_update(s, &l.host[i], &l.there[i], 1 + (slot + i) % LAYERS);
        }
        for (int i = 0; i < l.n; i++) {
            put_gather(s, &l.host[i], &l.there[i], 1 + (slot + i + 1) % LAYERS);
        }
        compare(s);
    }
    run_single_tokens(s);
    small_free(s);
}

/* K alone, combined, apart, by head. */
static void run_layout(int layout)
{
    static const int64_t bytes[] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 32};
    static small         s;
    void                *numbers = NULL;
    s = (small){.layout = layout};
    device_open(&s.d);
    expect_gpu(s.d.g, gpu_alloc(s.d.g, &numbers, sizeof(int32_t[MOST_LISTS][4])));
    s.numbers = numbers;
    slice_list_init(&s.list, 16);
    device_slices_init(&s.d, &s.slices, 16);
    for (s.page_size = 1; s.page_size <= 5; s.page_size++) {
        for (s.n_heads = 1; s.n_heads <= 3; s.n_heads++) {
            for (size_t b = 0; b < sizeof bytes / sizeof bytes[0]; b++) {
                s.bytes = bytes[b];
                run_shape(&s);
            }
        }
    }
    device_expect_status(&s.d, 0);
    gpu_free(s.d.g, s.numbers);
    device_slices_free(&s.d, &s.slices);
    slice_list_free(&s.list);
    device_close(&s.d);
}

static void test_keys(void **state)
{
    (void)state;
    run_layout(0);
}

static void test_combined(void **state)
{
    (void)state;
    run_layout(1);
}

static void test_apart(void **state)
{
    (void)state;
    run_layout(2);
}

static void test_by_head(void **state)
{
    (void)state;
    run_layout(3);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_combined),
        cmocka_unit_test(test_apart),
        cmocka_unit_test(test_by_head),
    };
    const int absent = cuda_absent();
    return absent != 0 ? absent : cmocka_run_group_tests(tests, NULL, NULL);
}
