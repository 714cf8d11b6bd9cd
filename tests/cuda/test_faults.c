/* What a device skips and counts: slices that are wrong, page copies, given scales. */
#include <string.h>

#include "twin.h"

/* ---- slices and copies -------------------------------------------------------------- */

enum { PAGES = 6, PAGE_TOKENS = 8, SLOTS = PAGES * PAGE_TOKENS, TOKENS = 40, LAYERS = 5 };

/* Layers of two groups; the last one but one is shared. */
typedef struct layers {
    device     d;
    world      world[LAYERS];
    twin       cache[LAYERS], rows[LAYERS];
    pkv_cache  caches[LAYERS]; /* of the device */
    pkv_new_kv new_kvs[LAYERS];
    slice_list list[2], good[2];
    pkv_slices groups[2];
} layers;

static const int32_t group_ids[LAYERS] = {0, 1, 0, 0, 0};
enum { SHARED = 3 };

static void layers_open(layers *s)
{
    device_open(&s->d);
    for (int l = 0; l < LAYERS; l++) {
        const world_shape shape = {l == 2 ? LAYOUT_HND : LAYOUT_NHD, SOURCE_APART,
                                   PKV_DTYPE_F16, PAGES, PAGE_TOKENS, 2, 5, 5, TOKENS};
        world *w = &s->world[l];
        world_init(w, &shape, FILL_RANDOM, 30 + (uint64_t)l);
        s->cache[l] = twin_new(&s->d, w->memory.data, w->memory.room_bytes);
        s->rows[l] = twin_new(&s->d, w->source_memory.data, w->source_memory.room_bytes);
        s->caches[l] = twin_cache(&s->cache[l], &w->cache);
        s->caches[l].flags = l == SHARED ? PKV_CACHE_SHARED : 0;
        s->new_kvs[l] = twin_new_kv(&s->rows[l], &w->new_kv);
    }
    for (int g = 0; g < 2; g++) {
        slice_list_init(&s->list[g], 64);
        slice_list_init(&s->good[g], 64);
        device_slices_init(&s->d, &s->groups[g], 64);
    }
}

static void layers_close(layers *s)
{
    for (int l = 0; l < LAYERS; l++) {
        twin_free(&s->d, &s->cache[l]);
        twin_free(&s->d, &s->rows[l]);
        world_free(&s->world[l]);
    }
    for (int g = 0; g < 2; g++) {
        slice_list_free(&s->list[g]);
        slice_list_free(&s->good[g]);
        device_slices_free(&s->d, &s->groups[g]);
    }
    device_close(&s->d);
}

/* Every kind of slice that is wrong, alone or all together. */
static const int32_t bad_slices[][3] = {
    {-1, 0, 1},
    {0, -1, 1},
    {0, 0, -1},
    {SLOTS, 0, 1},
    {SLOTS - 1, 0, 2},
    {SLOTS - 3, 0, 4},
    {0, TOKENS, 1},
    {0, TOKENS - 1, 2},
    {0, 0, TOKENS + 1},
    {0, 0, SLOTS + 1},
    {SLOTS + 1, 0, 0}, /* empty, and outside all the same */
    {0, TOKENS + 1, 0},
    {INT32_MAX, 0, 1},
    {0, INT32_MAX, 1},
    {0, 0, INT32_MAX},
    {INT32_MAX, 0, INT32_MAX},
    {0, INT32_MAX, INT32_MAX},
    {INT32_MAX, INT32_MAX, INT32_MAX},
    {INT32_MIN, 0, 1},
    {INT32_MIN, INT32_MIN, INT32_MIN},
    {INT32_MIN, 0, INT32_MAX}, /* the sum of both is -1 */
    {0, INT32_MIN, INT32_MAX},
    {-2, -2, -2}, /* what the kernels use for something else */
    {1, 1, -2},
    {1, 1, INT32_MIN},
};
enum { BAD_KINDS = sizeof bad_slices / sizeof bad_slices[0] };

/* Good slices up to the very ends, each wrong one behind some of them. */
static void draw(layers *s, int g, int from, int to)
{
    slice_list *list = &s->list[g], *good = &s->good[g];
    const int32_t starts[][3] = {{0, 3, 2}, {SLOTS - 5, TOKENS - 5, 5}, {SLOTS, TOKENS, 0},
                                 {9, 10, 12}, {30, 0, 1}, {4, 4, 0}};
    rng r = {(uint64_t)(g + 10 * from)};
    list->n = good->n = 0;
    for (size_t i = 0; i < sizeof starts / sizeof starts[0]; i++) {
        slice_list_add(list, starts[i][0], starts[i][1], starts[i][2]);
        slice_list_add(good, starts[i][0], starts[i][1], starts[i][2]);
    }
    for (int i = from; i < to; i++) {
        slice_list_add(list, bad_slices[i][0], bad_slices[i][1], bad_slices[i][2]);
    }
    slice_list_shuffle(list, &r);
    slice_list_garbage(list, from % GARBAGE_KINDS, 1);
    device_slices_set(&s->d, &s->groups[g], list, list->n);
}

static void expect_layers(layers *s)
{
    for (int l = 0; l < LAYERS; l++) {
        if (l != SHARED) {
            model_update(&s->world[l].model_cache, &s->world[l].new_kv,
                         &s->good[group_ids[l]].view);
        }
        twin_expect(&s->d, &s->cache[l], s->world[l].model_memory, "a layer");
    }
}

static void put(const layers *s, const pkv_update_opts *opts)
{
    pkv_error err;
    expect_ok(pkv_cuda_update_layers(s->d.cuda, s->caches, s->new_kvs, group_ids, LAYERS,
                                     s->groups, 2, opts, &err, s->d.stream), &err);
}

/* Group 0 has three layers that are written, group 1 has one. */
static void test_bad_slices(void **state)
{
    (void)state;
    static layers s;
    layers_open(&s);
    for (int i = 0; i <= BAD_KINDS; i++) {
        const int from = i < BAD_KINDS ? i : 0, to = i < BAD_KINDS ? i + 1 : BAD_KINDS;
        draw(&s, 0, from, to);
        draw(&s, 1, 0, i % 3);
        note_case("bad slices", (uint64_t)i, "%d to %d", from, to);
        put(&s, &s.d.opts);
        device_expect_status(&s.d, 3 * (to - from) + i % 3);
        expect_layers(&s);
    }
    draw(&s, 0, 0, BAD_KINDS); /* nobody to tell */
    draw(&s, 1, 0, 0);
    put(&s, NULL);
    device_expect_status(&s.d, 0);
    expect_layers(&s);
    layers_close(&s);
}

/* A count that is wrong in one group, slices in the other: both show. */
static void test_both_faults(void **state)
{
    (void)state;
    static layers s;
    layers_open(&s);
    draw(&s, 0, 3, 5);
    draw(&s, 1, 0, 2);
    const int32_t n = 65;
    expect_gpu(s.d.g, gpu_write(s.d.g, s.groups[1].num_slices, &n, sizeof n));
    put(&s, &s.d.opts);
    device_expect_status(&s.d, PKV_CUDA_FAULT_COUNT + 2 * 3);
    s.good[1].n = 0;
    expect_layers(&s);
    put(&s, NULL);
    device_expect_status(&s.d, 0);
    layers_close(&s);
}

/* The number stays at its most, beside whatever bits are set. */
static void test_saturation(void **state)
{
    (void)state;
    static const int32_t before[] = {0, PKV_CUDA_FAULT_SLICES - 8, PKV_CUDA_FAULT_SLICES - 6,
                                     PKV_CUDA_FAULT_SLICES - 5, PKV_CUDA_FAULT_SLICES - 1,
                                     PKV_CUDA_FAULT_SLICES};
    static const int32_t bits[] = {0, PKV_CUDA_FAULT_COUNT,
                                   PKV_CUDA_FAULT_COUNT | PKV_CUDA_FAULT_SCALE};
    static layers s;
    layers_open(&s);
    draw(&s, 0, 0, 2); /* six with its layers */
    draw(&s, 1, 0, 0);
    for (size_t i = 0; i < sizeof before / sizeof before[0]; i++) {
        for (size_t b = 0; b < 3; b++) {
            const int32_t room = PKV_CUDA_FAULT_SLICES - before[i];
            device_set_status(&s.d, before[i] | bits[b]);
            put(&s, &s.d.opts);
            device_expect_status(&s.d, (before[i] + (room < 6 ? room : 6)) | bits[b]);
        }
    }
    expect_layers(&s);
    layers_close(&s);
}

/* A gather reads shared layers too, so it counts for them. */
static void test_bad_gathers(void **state)
{
    (void)state;
    static layers s;
    unsigned char *model[LAYERS];
    twin           there[LAYERS];
    pkv_rows       rows[LAYERS];
    pkv_error      err;
    layers_open(&s);
    draw(&s, 0, 0, BAD_KINDS);
    draw(&s, 1, 2, 5);
    for (int l = 0; l < LAYERS; l++) {
        const size_t n_bytes = s.world[l].source_memory.room_bytes;
        model[l] = test_alloc(n_bytes);
        fill(model[l], n_bytes, FILL_RANDOM, (uint64_t)l);
        there[l] = twin_new(&s.d, model[l], n_bytes);
        const pkv_rows of_model = world_rows(&s.world[l], model[l]);
        rows[l] = twin_rows(&there[l], &of_model);
        model_gather(&s.world[l].model_cache, &of_model, &s.good[group_ids[l]].view);
    }
    expect_ok(pkv_cuda_gather_layers(s.d.cuda, s.caches, rows, group_ids, LAYERS, s.groups, 2,
                                     &s.d.opts, &err, s.d.stream), &err);
    device_expect_status(&s.d, 4 * BAD_KINDS + 3);
    for (int l = 0; l < LAYERS; l++) {
        twin_expect(&s.d, &there[l], model[l], "gathered");
        twin_expect(&s.d, &s.cache[l], s.world[l].model_memory, "only read");
        twin_free(&s.d, &there[l]);
        free(model[l]);
    }
    layers_close(&s);
}

/* ---- page copies -------------------------------------------------------------------- */

/* A copy that is wrong, and how many layers of a call with LAYERS count it. */
static const struct {
    pkv_page_copy copy;
    int32_t       n_skipped;
} bad_copies[] = {
    {{-1, 0, 1, 0}, 3},          {{0, -1, 1, 0}, 3},
    {{PAGES, 0, 1, 0}, 3},       {{0, PAGES, 1, 0}, 3},
    {{0, 1, 0, 0}, 3},           {{0, 1, -1, 0}, 3},
    {{0, 1, -2, 0}, 3},          {{0, 1, PAGE_TOKENS + 1, 0}, 3},
    {{0, 1, INT32_MAX, 1}, 1},   {{INT32_MIN, 1, 1, 1}, 1},
    {{0, 1, INT32_MIN, 1}, 1},   {{INT32_MAX, INT32_MAX, 2, 1}, 1},
    {{-1, -1, -1, 2}, 0}, /* of a group that no layer has */
    {{0, 1, 1, -1}, 0},          {{0, 1, 1, INT32_MIN}, 0},
};

static void test_bad_copies(void **state)
{
    (void)state;
    enum { BAD = sizeof bad_copies / sizeof bad_copies[0] };
    static layers s;
    pkv_page_copy copies[BAD + 3] = {{0, 1, PAGE_TOKENS, 0}, {2, 3, 5, 1}};
    int32_t       n_skipped = 0, n = BAD + 2;
    pkv_error     err;
    layers_open(&s);
    for (int i = 0; i < BAD; i++) {
        copies[i + 2] = bad_copies[i].copy;
        n_skipped += bad_copies[i].n_skipped;
    }
    copies[BAD + 2] = (pkv_page_copy){4, 5, 1, 0}; /* behind the count */
    twin list = twin_new(&s.d, copies, sizeof copies), count = twin_new(&s.d, &n, sizeof n);
    expect_ok(pkv_cuda_copy_pages(s.d.cuda, s.caches, NULL, group_ids, LAYERS,
                                  twin_at(&list, copies), BAD + 3, twin_at(&count, &n), &s.d.opts,
                                  &err, s.d.stream), &err);
    device_expect_status(&s.d, n_skipped);
    for (int l = 0; l < LAYERS; l++) {
        const pkv_page_copy *c = &copies[group_ids[l]];
        const pkv_cache     *model = &s.world[l].model_cache;
        for (int64_t t = 0; l != SHARED && t < c->n_tokens; t++) {
            convert_token(model, (int64_t)c->src * PAGE_TOKENS + t, model,
                          (int64_t)c->dst * PAGE_TOKENS + t);
        }
        twin_expect(&s.d, &s.cache[l], s.world[l].model_memory, "a layer's pages");
    }
    n = BAD + 4;
    twin_push(&s.d, &count);
    expect_ok(pkv_cuda_copy_pages(s.d.cuda, s.caches, NULL, group_ids, LAYERS,
                                  twin_at(&list, copies), BAD + 3, twin_at(&count, &n), &s.d.opts,
                                  &err, s.d.stream), &err);
    device_expect_status(&s.d, PKV_CUDA_FAULT_COUNT);
    twin_expect(&s.d, &s.cache[0], s.world[0].model_memory, "after a count that is wrong");
    twin_free(&s.d, &list);
    twin_free(&s.d, &count);
    layers_close(&s);
}

/* Computed scales are copied by a launch of their own, which does not count once more. */
static void test_bad_copies_with_scales(void **state)
{
    (void)state;
    const cw_shape shape = {.layout = CW_HND, .dtype = PKV_DTYPE_INT8,
                            .rows_dtype = PKV_DTYPE_BF16, .n_pages = PAGES,
                            .page_size = PAGE_TOKENS, .n_heads = 2, .head_dim = {6, 6},
                            .n_tokens = TOKENS,
                            .kind = {PKV_SCALES_TOKEN_HEAD, PKV_SCALES_TOKEN_HEAD}};
    static const pkv_page_copy copies[] = {{0, 1, 3, 0}, {-1, 1, 1, 0}, {0, PAGES, 1, 0}};
    device    d;
    cw        w;
    int32_t   n = 3;
    pkv_error err;
    device_open(&d);
    cw_init(&w, &shape, 40);
    twin            list = twin_new(&d, copies, sizeof copies), count = twin_new(&d, &n, sizeof n);
    twin            memory = twin_new(&d, w.memory.data, w.memory.room_bytes);
    const pkv_cache cache = twin_cache(&memory, &w.cache);
    for (int turn = 0; turn < 2; turn++) {
        expect_ok(pkv_cuda_copy_pages(d.cuda, &cache, NULL, NULL, 1, twin_at(&list, copies), 3,
                                      twin_at(&count, &n), &d.opts, &err, d.stream), &err);
        device_expect_status(&d, turn == 0 ? 2 : PKV_CUDA_FAULT_COUNT);
        for (int64_t t = 0; t < 3; t++) {
            convert_token(&w.model_cache, t, &w.model_cache, PAGE_TOKENS + t);
        }
        twin_expect(&d, &memory, w.model_memory, "pages and scales");
        n = 4;
        twin_push(&d, &count);
    }
    twin_free(&d, &list);
    twin_free(&d, &count);
    twin_free(&d, &memory);
    cw_free(&w);
    device_close(&d);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bad_slices), cmocka_unit_test(test_both_faults),
        cmocka_unit_test(test_saturation), cmocka_unit_test(test_bad_gathers),
        cmocka_unit_test(test_bad_copies), cmocka_unit_test(test_bad_copies_with_scales),
    };
    const int absent = cuda_absent();
    return absent != 0 ? absent : cmocka_run_group_tests(tests, NULL, NULL);
}
