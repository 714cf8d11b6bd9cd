/*
 * Counts and slices that only the device sees: one captured graph for every count, and lists
 * of all lengths around what a block looks at in one go.
 */
#include <string.h>

#include "twin.h"

/* ---- one graph for every count ------------------------------------------------------ */

enum { N = 40, PAGES = 24, PAGE_TOKENS = 16, TOKENS = 300, LAYERS = 4 };

/* Layers of all sorts that the same slices fit, and what each is made into. */
typedef struct step {
    device        d;
    world         update, pages, gather, layer[LAYERS];
    cw            convert;
    twin          update_rows, layer_rows[LAYERS], convert_rows;
    twin          update_cache, pages_cache, gather_cache, layer_cache[LAYERS], convert_cache;
    unsigned char *rows_model; /* of the gather */
    twin          rows;
    pkv_slices    slices; /* of the device */
    slice_list    list, made; /* what is written; the list that it is drawn from */
    pkv_page_copy copies[N];
    twin          copies_there;
    gpu_graph     graph;
} step;

static void make_world(const device *d, world *w, int layout, int source, pkv_dtype dtype,
                       uint64_t seed, twin *cache, twin *rows)
{
    const world_shape shape = {layout, source, dtype, PAGES, PAGE_TOKENS, 3, 8, 8, TOKENS};
    world_init(w, &shape, FILL_RANDOM, seed);
    *cache = twin_new(d, w->memory.data, w->memory.room_bytes);
    if (rows != NULL) {
        *rows = twin_new(d, w->source_memory.data, w->source_memory.room_bytes);
    }
}

static void make_layers(step *s)
{
    static const int layouts[LAYERS] = {LAYOUT_NHD, LAYOUT_NHD, LAYOUT_HND, LAYOUT_COMBINED};
    for (int l = 0; l < LAYERS; l++) {
        make_world(&s->d, &s->layer[l], layouts[l], l == 2 ? SOURCE_ODD : SOURCE_APART,
                   l == 3 ? PKV_DTYPE_F32 : PKV_DTYPE_BF16, 20 + (uint64_t)l, &s->layer_cache[l],
                   &s->layer_rows[l]);
    }
}

static void capture(step *s);

static void step_open(step *s)
{
    device_open(&s->d);
    make_world(&s->d, &s->update, LAYOUT_PADDED, SOURCE_FUSED, PKV_DTYPE_BF16, 1,
               &s->update_cache, &s->update_rows);
    make_world(&s->d, &s->pages, LAYOUT_CONTENT, SOURCE_APART, PKV_DTYPE_F16, 2, &s->pages_cache,
               NULL);
    make_world(&s->d, &s->gather, LAYOUT_HND, SOURCE_FUSED, PKV_DTYPE_F32, 3, &s->gather_cache,
               NULL);
    make_layers(s);
    const cw_shape shape = {.layout = CW_PADDED, .rows = CW_ROWS_FUSED, .place = CW_SCALES_ODD,
                            .dtype = PKV_DTYPE_INT8, .rows_dtype = PKV_DTYPE_BF16,
                            .n_pages = PAGES, .page_size = PAGE_TOKENS, .n_heads = 2,
                            .head_dim = {24, 16}, .n_tokens = TOKENS,
                            .kind = {PKV_SCALES_GROUP, PKV_SCALES_TOKEN_HEAD}, .n_groups = {3, 1}};
    cw_init(&s->convert, &shape, 4);
    s->convert_cache = twin_new(&s->d, s->convert.memory.data, s->convert.memory.room_bytes);
    s->convert_rows = twin_new(&s->d, s->convert.rows_memory.data,
                               s->convert.rows_memory.room_bytes);
    s->rows_model = test_alloc(s->gather.source_memory.room_bytes);
    fill(s->rows_model, s->gather.source_memory.room_bytes, FILL_RANDOM, 5);
    s->rows = twin_new(&s->d, s->rows_model, s->gather.source_memory.room_bytes);
    slice_list_init(&s->list, N);
    slice_list_init(&s->made, N);
    device_slices_init(&s->d, &s->slices, N);
    memset(s->copies, 0, sizeof s->copies);
    s->copies_there = twin_new(&s->d, s->copies, sizeof s->copies);
    capture(s);
}

static void free_world(const device *d, world *w, twin *cache, twin *rows)
{
    twin_free(d, cache);
    if (rows != NULL) {
        twin_free(d, rows);
    }
    world_free(w);
}

static void step_close(step *s)
{
    gpu_graph_destroy(s->d.g, s->graph);
    free_world(&s->d, &s->update, &s->update_cache, &s->update_rows);
    free_world(&s->d, &s->pages, &s->pages_cache, NULL);
    free_world(&s->d, &s->gather, &s->gather_cache, NULL);
    for (int l = 0; l < LAYERS; l++) {
        free_world(&s->d, &s->layer[l], &s->layer_cache[l], &s->layer_rows[l]);
    }
    twin_free(&s->d, &s->convert_cache);
    twin_free(&s->d, &s->convert_rows);
    cw_free(&s->convert);
    twin_free(&s->d, &s->rows);
    free(s->rows_model);
    twin_free(&s->d, &s->copies_there);
    device_slices_free(&s->d, &s->slices);
    slice_list_free(&s->list);
    slice_list_free(&s->made);
    device_close(&s->d);
}

/* The five calls; what is captured depends on no number that a replay changes. */
static void put_calls(const step *s)
{
    const device  *d = &s->d;
    pkv_error      err;
    pkv_cache      caches[LAYERS];
    pkv_new_kv     new_kvs[LAYERS];
    const pkv_cache  update = twin_cache(&s->update_cache, &s->update.cache);
    const pkv_new_kv update_rows = twin_new_kv(&s->update_rows, &s->update.new_kv);
    const pkv_cache  gather = twin_cache(&s->gather_cache, &s->gather.cache);
    const pkv_rows   model_rows = world_rows(&s->gather, s->rows_model);
    const pkv_rows   rows = twin_rows(&s->rows, &model_rows);
    const pkv_cache  pages = twin_cache(&s->pages_cache, &s->pages.cache);
    const pkv_cache  convert = twin_cache(&s->convert_cache, &s->convert.cache);
    const pkv_new_kv convert_rows = twin_new_kv(&s->convert_rows, &s->convert.new_kv);
    for (int l = 0; l < LAYERS; l++) {
        caches[l] = twin_cache(&s->layer_cache[l], &s->layer[l].cache);
        new_kvs[l] = twin_new_kv(&s->layer_rows[l], &s->layer[l].new_kv);
    }
    expect_ok(pkv_cuda_update(d->cuda, &update, &update_rows, &s->slices, &d->opts, &err,
                              d->stream), &err);
    expect_ok(pkv_cuda_update_layers(d->cuda, caches, new_kvs, NULL, LAYERS, &s->slices, 1,
                                     &d->opts, &err, d->stream), &err);
    expect_ok(pkv_cuda_gather(d->cuda, &gather, &rows, &s->slices, &d->opts, &err, d->stream),
              &err);
    expect_ok(pkv_cuda_copy_pages(d->cuda, &pages, NULL, NULL, 1, twin_at(&s->copies_there,
                                  s->copies), N, s->slices.num_slices, &d->opts, &err, d->stream),
              &err);
    expect_ok(pkv_cuda_update(d->cuda, &convert, &convert_rows, &s->slices, &d->opts, &err,
                              d->stream), &err);
}

static void capture(step *s)
{
    expect_gpu(s->d.g, gpu_capture_begin(s->d.g, s->d.stream));
    put_calls(s);
    expect_gpu(s->d.g, gpu_capture_end(s->d.g, s->d.stream, &s->graph));
}

/* A list of n good slices with garbage behind them; page copies in pairs, from odd to even. */
static void draw(step *s, rng *r, int32_t n, int garbage)
{
    int64_t slot = 0, row = 0;
    s->made.n = 0;
    for (int i = 0; i < N; i++) {
        const int64_t len = rng_range(r, 0, i % 8 == 0 ? 20 : 6);
        slice_list_add(&s->made, slot, row, len);
        slot += len + rng_range(r, 0, 2);
        row += len;
    }
    assert_true(slot <= PAGES * PAGE_TOKENS && row <= TOKENS);
    slice_list_shuffle(&s->made, r);
    s->list.n = 0;
    for (int32_t i = 0; i < n; i++) {
        slice_list_add(&s->list, s->made.view.kv_cache_start[i], s->made.view.new_kv_start[i],
                       s->made.view.slice_len[i]);
    }
    slice_list_garbage(&s->list, garbage, rng_next(r));
    fill(s->copies, sizeof s->copies, garbage == 1 ? FILL_ONES : FILL_RANDOM, rng_next(r));
    const int32_t first = (int32_t)rng_range(r, 0, PAGES / 2 - 1);
    for (int32_t i = 0; i < n; i++) { /* from N / 2 on of a group that no layer has */
        const int32_t pair = (first + i) % (PAGES / 2);
        s->copies[i] = (pkv_page_copy){2 * pair + 1, 2 * pair, (int32_t)rng_range(r, 1, 16),
                                       i < PAGES / 2 ? 0 : 7};
    }
}

/* What the five calls do, on the host. */
static void run_model(step *s)
{
    const pkv_slices *list = &s->list.view;
    model_update(&s->update.model_cache, &s->update.new_kv, list);
    for (int l = 0; l < LAYERS; l++) {
        model_update(&s->layer[l].model_cache, &s->layer[l].new_kv, list);
    }
    const pkv_rows rows = world_rows(&s->gather, s->rows_model);
    model_gather(&s->gather.model_cache, &rows, list);
    convert_update(&s->convert.model_cache, &s->convert.new_kv, list);
    for (int32_t i = 0; i < s->list.n && i < PAGES / 2; i++) {
        const pkv_page_copy *c = &s->copies[i];
        for (int64_t t = 0; t < c->n_tokens; t++) {
            convert_token(&s->pages.model_cache, (int64_t)c->src * PAGE_TOKENS + t,
                          &s->pages.model_cache, (int64_t)c->dst * PAGE_TOKENS + t);
        }
    }
}

static void expect_step(const step *s)
{
    const device *d = &s->d;
    twin_expect(d, &s->update_cache, s->update.model_memory, "updated");
    for (int l = 0; l < LAYERS; l++) {
        twin_expect(d, &s->layer_cache[l], s->layer[l].model_memory, "a layer");
    }
    twin_expect(d, &s->rows, s->rows_model, "gathered");
    twin_expect(d, &s->gather_cache, s->gather.model_memory, "gathered from");
    twin_expect(d, &s->pages_cache, s->pages.model_memory, "pages");
    twin_expect(d, &s->convert_cache, s->convert.model_memory, "converted");
}

static void test_replays(void **state)
{
    (void)state;
    static step s;
    s = (step){.graph = NULL};
    static const int32_t counts[] = {0, 1, N, -1, N + 1, INT32_MIN, INT32_MAX, N - 1, 7, 2, N};
    rng r = {11};
    step_open(&s);
    expect_step(&s); /* captured, not done */
    for (int turn = 0; turn < 30; turn++) {
        const int32_t n = counts[(size_t)turn % (sizeof counts / sizeof counts[0])];
        const bool    good = n >= 0 && n <= N;
        note_case("replay", (uint64_t)turn, "n %d", (int)n);
        draw(&s, &r, good ? n : N, turn % GARBAGE_KINDS);
        twin_push(&s.d, &s.copies_there);
        device_slices_set(&s.d, &s.slices, &s.list, n);
        expect_gpu(s.d.g, gpu_graph_launch(s.d.g, s.graph, s.d.stream));
        device_expect_status(&s.d, good ? 0 : PKV_CUDA_FAULT_COUNT);
        if (good) {
            run_model(&s);
        }
        expect_step(&s);
    }
    step_close(&s);
}

/* ---- lists of every length ---------------------------------------------------------- */

enum { SLOTS = 24576, ROWS = 24000, MOST = 5000 };

typedef struct long_list {
    device     d;
    world      copy;
    cw         cast;
    twin       copy_cache, copy_rows, cast_cache, cast_rows;
    slice_list list, good;
    pkv_slices slices;
} long_list;

static void long_open(long_list *l, int64_t capacity)
{
    *l = (long_list){0};
    device_open(&l->d);
    const world_shape copy = {LAYOUT_PADDED, SOURCE_APART, PKV_DTYPE_BITS8, SLOTS / 16, 16, 1, 4,
                              3, ROWS};
    world_init(&l->copy, &copy, FILL_RANDOM, 8);
    l->copy_cache = twin_new(&l->d, l->copy.memory.data, l->copy.memory.room_bytes);
    l->copy_rows = twin_new(&l->d, l->copy.source_memory.data, l->copy.source_memory.room_bytes);
    const cw_shape cast = {.layout = CW_KEYS, .dtype = PKV_DTYPE_FP8_E5M2,
                           .rows_dtype = PKV_DTYPE_F16, .n_pages = SLOTS / 16, .page_size = 16,
                           .n_heads = 1, .head_dim = {2, 0}, .n_tokens = ROWS};
    cw_init(&l->cast, &cast, 9);
    l->cast_cache = twin_new(&l->d, l->cast.memory.data, l->cast.memory.room_bytes);
    l->cast_rows = twin_new(&l->d, l->cast.rows_memory.data, l->cast.rows_memory.room_bytes);
    slice_list_init(&l->list, capacity);
    slice_list_init(&l->good, capacity);
    device_slices_init(&l->d, &l->slices, capacity);
}

static void long_close(long_list *l)
{
    twin_free(&l->d, &l->copy_cache);
    twin_free(&l->d, &l->copy_rows);
    twin_free(&l->d, &l->cast_cache);
    twin_free(&l->d, &l->cast_rows);
    world_free(&l->copy);
    cw_free(&l->cast);
    slice_list_free(&l->list);
    slice_list_free(&l->good);
    device_slices_free(&l->d, &l->slices);
    device_close(&l->d);
}

/* Adds a slice to the list, and to the good ones if it is one. */
static void add(long_list *l, int64_t slot, int64_t row, int64_t len, bool is_good)
{
    slice_list_add(&l->list, slot, row, len);
    if (is_good) {
        slice_list_add(&l->good, slot, row, len);
    }
}

/* The list by both kernels, and the model. */
static void long_run(long_list *l)
{
    const device    *d = &l->d;
    const int32_t    n_bad = l->list.n - l->good.n;
    pkv_error        err;
    const pkv_cache  copy = twin_cache(&l->copy_cache, &l->copy.cache);
    const pkv_new_kv copy_rows = twin_new_kv(&l->copy_rows, &l->copy.new_kv);
    const pkv_cache  cast = twin_cache(&l->cast_cache, &l->cast.cache);
    const pkv_new_kv cast_rows = twin_new_kv(&l->cast_rows, &l->cast.new_kv);
    note_case("long list", 0, "n %d of %d, %d bad", (int)l->list.n, (int)l->list.view.capacity,
              (int)n_bad);
    device_slices_set(d, &l->slices, &l->list, l->list.n);
    expect_ok(pkv_cuda_update(d->cuda, &copy, &copy_rows, &l->slices, &d->opts, &err, d->stream),
              &err);
    device_expect_status(d, n_bad);
    expect_ok(pkv_cuda_update(d->cuda, &cast, &cast_rows, &l->slices, &d->opts, &err, d->stream),
              &err);
    device_expect_status(d, n_bad);
    model_update(&l->copy.model_cache, &l->copy.new_kv, &l->good.view);
    convert_update(&l->cast.model_cache, &l->cast.new_kv, &l->good.view);
    twin_expect(d, &l->copy_cache, l->copy.model_memory, "copied by a long list");
    twin_expect(d, &l->cast_cache, l->cast.model_memory, "converted by a long list");
}

/* n slices, empty ones between them; from the second turn on some that end outside. */
static void draw_long(long_list *l, rng *r, int32_t n, bool with_bad)
{
    int64_t slot = rng_range(r, 0, 99), row = rng_range(r, 0, 99);
    l->list.n = l->good.n = 0;
    for (int32_t i = 0; i < n; i++) {
        const bool    bad = with_bad && rng_range(r, 0, 9) == 0;
        const int64_t len = rng_range(r, 0, n < 100 ? 40 : 8) > 4 ? rng_range(r, 1, 6) : 0;
        if (bad) {
            add(l, SLOTS - 3, row, 4, false);
        } else {
            add(l, slot, row, len, true);
        }
        slot += len;
        row += len;
    }
    assert_true(slot <= SLOTS && row <= ROWS);
    slice_list_shuffle(&l->list, r);
}

static void test_long_lists(void **state)
{
    (void)state;
    static const int32_t counts[] = {1,    2,    3,    31,   32,   33,   511,  512, 513,
                                     1023, 1024, 1025, 1535, 1537, 2047, 2048, 2049, 3000,
                                     4999, MOST};
    static long_list l;
    rng              r = {3};
    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        for (int turn = 0; turn < 2; turn++) { /* with room behind the list, and with none */
            long_open(&l, turn == 0 ? MOST : counts[i]);
            draw_long(&l, &r, counts[i], turn != 0);
            slice_list_garbage(&l.list, (int)i % GARBAGE_KINDS, i);
            long_run(&l);
            long_close(&l);
        }
    }
}

/* One of 20,000 tokens beside 3,000 of one; first, in the middle and last of the list. */
static void test_one_long_slice(void **state)
{
    (void)state;
    enum { LONG = 20000, SHORT = 3000 };
    static long_list l;
    static const int32_t places[] = {0, 1500, SHORT};
    long_open(&l, MOST);
    for (size_t turn = 0; turn < 3; turn++) {
        rng r = {turn};
        l.list.n = l.good.n = 0;
        for (int32_t i = 0; i <= SHORT; i++) {
            if (i == places[turn]) {
                add(&l, 7, (int64_t)turn * 100, LONG, true);
            }
            if (i < SHORT) {
                add(&l, LONG + 7 + i, rng_range(&r, 0, ROWS - 1), 1, true);
            }
        }
        slice_list_garbage(&l.list, (int)turn, turn);
        long_run(&l);
    }
    long_close(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_replays),
        cmocka_unit_test(test_long_lists),
        cmocka_unit_test(test_one_long_slice),
    };
    const int absent = cuda_absent();
    return absent != 0 ? absent : cmocka_run_group_tests(tests, NULL, NULL);
}
