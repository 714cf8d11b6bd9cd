/* Many layers and many threads: groups, shared layers, the caller's parallel-for, data races. */
#include "world.h"

#include <pthread.h>
#include <stdatomic.h>
#include <string.h>

/* ---- layers and groups --------------------------------------------------- */

enum { N_LAYERS = 6, N_GROUPS = 2 };

typedef struct model_layers {
    world      worlds[N_LAYERS];
    pkv_cache  caches[N_LAYERS];
    pkv_new_kv new_kvs[N_LAYERS];
    slice_list lists[N_GROUPS];
    pkv_slices groups[N_GROUPS];
} model_layers;

static const int32_t group_ids[N_LAYERS] = {0, 1, 0, 1, 1, 0};

/* Layer 3 shares another layer's cache; layouts and sizes differ between layers. */
static void layers_init(model_layers *m)
{
    for (int l = 0; l < N_LAYERS; l++) {
        const world_shape shape = {l % LAYOUT_COUNT, SOURCE_APART, PKV_DTYPE_BF16, 12 + l, 16,
                                   1 + l % 3, 20 + 4 * l, 20 + 4 * l, 90};
        world_init(&m->worlds[l], &shape, FILL_RANDOM, (uint64_t)l);
        m->worlds[l].cache.flags = l == 3 ? PKV_CACHE_SHARED : 0;
        m->caches[l] = m->worlds[l].cache;
        m->new_kvs[l] = m->worlds[l].new_kv;
    }
    for (int g = 0; g < N_GROUPS; g++) {
        slice_list_init(&m->lists[g], 5);
        slice_list_add(&m->lists[g], 30 + 10 * g, 0, 40);
        slice_list_add(&m->lists[g], 7, 40, 20 - g);
        m->groups[g] = m->lists[g].view;
    }
}

static void layers_free(model_layers *m)
{
    for (int l = 0; l < N_LAYERS; l++) {
        world_free(&m->worlds[l]);
    }
    for (int g = 0; g < N_GROUPS; g++) {
        slice_list_free(&m->lists[g]);
    }
}

static void expect_layers(const model_layers *m)
{
    for (int l = 0; l < N_LAYERS; l++) {
        note_case("layers", (uint64_t)l, "layer %d", l);
        world_expect_same(&m->worlds[l]);
    }
}

static void test_layers_groups_and_a_shared_one(void **state)
{
    (void)state;
    watch_faults();
    model_layers m;
    layers_init(&m);
    pkv_error err;
    expect_ok(pkv_update_layers(m.caches, m.new_kvs, group_ids, N_LAYERS, m.groups, N_GROUPS, NULL,
                                &err), &err);
    for (int l = 0; l < N_LAYERS; l++) {
        if (l != 3) {
            model_update(&m.worlds[l].model_cache, &m.new_kvs[l], &m.groups[group_ids[l]]);
        }
    }
    expect_layers(&m);
    layers_free(&m);
}

/* A gather reads the shared layer too. */
static void test_gather_layers(void **state)
{
    (void)state;
    watch_faults();
    model_layers m;
    layers_init(&m);
    unsigned char *found[N_LAYERS];
    unsigned char *expected[N_LAYERS];
    pkv_rows rows[N_LAYERS];
    for (int l = 0; l < N_LAYERS; l++) {
        size_t n_bytes = m.worlds[l].source_memory.room_bytes;
        found[l] = test_alloc(n_bytes);
        expected[l] = test_alloc(n_bytes);
        memset(found[l], 0x5A, n_bytes);
        memset(expected[l], 0x5A, n_bytes);
        rows[l] = world_rows(&m.worlds[l], found[l]);
        const pkv_rows model_rows = world_rows(&m.worlds[l], expected[l]);
        model_gather(&m.worlds[l].model_cache, &model_rows, &m.groups[group_ids[l]]);
    }
    pkv_error err;
    expect_ok(pkv_gather_layers(m.caches, rows, group_ids, N_LAYERS, m.groups, N_GROUPS, NULL,
                                &err), &err);
    for (int l = 0; l < N_LAYERS; l++) {
        note_case("gather layers", 0, "layer %d", l);
        expect_same_bytes("rows", found[l], expected[l], m.worlds[l].source_memory.room_bytes);
        free(found[l]);
        free(expected[l]);
    }
    layers_free(&m);
}

/* A fault in a late layer: it is named, and no layer is written. */
static void test_a_bad_layer_stops_all(void **state)
{
    (void)state;
    model_layers m;
    layers_init(&m);
    pkv_error err;
    m.caches[4].n_pages = 2; /* too few slots for its group, which layer 3 had enough for */
    expect_error(pkv_update_layers(m.caches, m.new_kvs, group_ids, N_LAYERS, m.groups, N_GROUPS,
                                   NULL, &err), &err, PKV_E_RANGE, PKV_RULE_KV_CACHE_END, 0);
    assert_int_equal(err.layer, 4);
    m.caches[4] = m.worlds[4].cache;
    m.new_kvs[4].n_tokens = 55; /* too few rows */
    expect_error(pkv_update_layers(m.caches, m.new_kvs, group_ids, N_LAYERS, m.groups, N_GROUPS,
                                   NULL, &err), &err, PKV_E_RANGE, PKV_RULE_NEW_KV_END, 1);
    assert_int_equal(err.layer, 4);
    m.new_kvs[4] = m.worlds[4].new_kv;
    m.new_kvs[3].n_heads++; /* a shared layer is checked as well */
    expect_error(pkv_update_layers(m.caches, m.new_kvs, group_ids, N_LAYERS, m.groups, N_GROUPS,
                                   NULL, &err), &err, PKV_E_INVALID, PKV_RULE_NONE, -1);
    assert_int_equal(err.layer, 3);
    m.new_kvs[3].n_heads--;
    int32_t bad_ids[N_LAYERS] = {0, 1, 0, 1, 1, N_GROUPS};
    assert_int_equal(pkv_update_layers(m.caches, m.new_kvs, bad_ids, N_LAYERS, m.groups, N_GROUPS,
                                       NULL, &err), PKV_E_INVALID);
    assert_int_equal(err.layer, 5);
    bad_ids[0] = -1;
    assert_int_equal(pkv_update_layers(m.caches, m.new_kvs, bad_ids, N_LAYERS, m.groups, N_GROUPS,
                                       NULL, &err), PKV_E_INVALID);
    assert_int_equal(err.layer, 0);
    expect_layers(&m);
    layers_free(&m);
}

/* struct_size is also the distance of the elements. */
static void test_struct_sizes_of_an_array(void **state)
{
    (void)state;
    model_layers m;
    layers_init(&m);
    pkv_error err;
    m.caches[2].struct_size += 8;
    expect_error(pkv_update_layers(m.caches, m.new_kvs, group_ids, N_LAYERS, m.groups, N_GROUPS,
                                   NULL, &err), &err, PKV_E_INVALID, PKV_RULE_NONE, -1);
    m.caches[2].struct_size -= 8;
    m.groups[0].struct_size = 4; /* of a group that no layer here uses */
    static const int32_t second[N_LAYERS] = {1, 1, 1, 1, 1, 1};
    expect_error(pkv_update_layers(m.caches, m.new_kvs, second, N_LAYERS, m.groups, N_GROUPS, NULL,
                                   &err), &err, PKV_E_UNSUPPORTED, PKV_RULE_NONE, -1);
    expect_layers(&m);
    layers_free(&m);
}

static void test_no_layers(void **state)
{
    (void)state;
    model_layers m;
    layers_init(&m);
    assert_int_equal(pkv_update_layers(m.caches, m.new_kvs, NULL, 0, m.groups, N_GROUPS, NULL,
                                       NULL), PKV_OK);
    assert_int_equal(pkv_update_layers(m.caches, m.new_kvs, NULL, -1, m.groups, N_GROUPS, NULL,
                                       NULL), PKV_E_INVALID);
    assert_int_equal(pkv_update_layers(NULL, NULL, NULL, 0, NULL, 0, NULL, NULL), PKV_OK);
    assert_int_equal(pkv_gather_layers(NULL, NULL, NULL, 0, NULL, 0, NULL, NULL), PKV_OK);
    expect_layers(&m);
    layers_free(&m);
}

/* ---- the caller's parallel-for ------------------------------------------- */

static void run_reversed(void *user, int32_t n_parts, pkv_parallel_body body, void *ctx)
{
    int32_t *most_parts = user;
    *most_parts = n_parts > *most_parts ? n_parts : *most_parts;
    for (int32_t p = n_parts - 1; p >= 0; p--) {
        body(ctx, p);
    }
}

typedef struct part_queue {
    pkv_parallel_body body;
    void             *ctx;
    int32_t           n_parts;
    _Atomic int32_t   next;
} part_queue;

static void *work(void *arg)
{
    part_queue *q = arg;
    for (int32_t p = atomic_fetch_add(&q->next, 1); p < q->n_parts;
         p = atomic_fetch_add(&q->next, 1)) {
        q->body(q->ctx, p);
    }
    return NULL;
}

static void run_on_pthreads(void *user, int32_t n_parts, pkv_parallel_body body, void *ctx)
{
    enum { THREADS = 4 };
    int32_t *most_parts = user;
    *most_parts = n_parts > *most_parts ? n_parts : *most_parts;
    part_queue q = {.body = body, .ctx = ctx, .n_parts = n_parts};
    pthread_t threads[THREADS];
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_create(&threads[i], NULL, work, &q), 0);
    }
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(threads[i], NULL), 0);
    }
}

/* Payloads that are worth dividing, in lengths that make parts end inside lines and slices. */
static void check_parts(const world_shape *shape, const pkv_update_opts *opts, uint64_t seed)
{
    rng r = {seed};
    world w;
    slice_list list;
    world_init(&w, shape, FILL_RANDOM, seed);
    slice_list_init(&list, 2000);
    world_random_slices(&w, &r, &list);
    world_update(&w, &list.view, opts);
    world_gather(&w, &list.view, opts);
    slice_list_free(&list);
    world_free(&w);
}

static void check_all_shapes(pkv_parallel_for parallel_for)
{
    static const int32_t max_threads[] = {0, 1, 3, 7};
    int32_t most_parts = 0;
    watch_faults();
    for (int layout = 0; layout < LAYOUT_COUNT; layout++) {
        for (size_t i = 0; i < 4; i++) {
            const pkv_update_opts opts = {.struct_size = sizeof opts,
                                          .max_threads = max_threads[i],
                                          .parallel_for = parallel_for,
                                          .parallel_user = &most_parts};
            /* Rows of 37 bytes: no part begins at a line. */
            const world_shape odd = {layout, SOURCE_APART, PKV_DTYPE_BITS8, 120, 16, 5, 37, 37,
                                     1500};
            const world_shape wide = {layout, SOURCE_APART, PKV_DTYPE_F32, 30, 16, 2, 128, 128,
                                      400};
            /* Tokens of 7 bytes: a line holds many, and a slice may end inside it. */
            const world_shape narrow = {layout, SOURCE_APART, PKV_DTYPE_BITS8, 1500, 16, 1, 7, 7,
                                        20000};
            /* The plain copy is the one that the thread sanitizer sees. */
            assert_int_equal(pkv_isa_select(i % 2 == 0 ? NULL : "c"), PKV_OK);
            most_parts = 0;
            check_parts(&odd, &opts, i);
            check_parts(&wide, &opts, i + 100);
            check_parts(&narrow, &opts, i + 200);
            if (parallel_for != NULL && max_threads[i] > 1) {
                assert_in_range(most_parts, 2, max_threads[i]);
            }
        }
    }
    assert_int_equal(pkv_isa_select(NULL), PKV_OK);
}

static void test_parts_in_reversed_order(void **state)
{
    (void)state;
    check_all_shapes(run_reversed);
}

static void test_parts_on_pthreads(void **state)
{
    (void)state;
    check_all_shapes(run_on_pthreads);
}

/* Which part wrote each 64-byte line of a cache that was all zero. */
typedef struct line_owners {
    const unsigned char *cache;
    unsigned char       *before; /* the cache before the part that runs */
    int32_t             *owner;  /* of each line: 1 + part, 0: nobody */
    int64_t              n_lines;
    int64_t              n_shared;
    int32_t              n_parts;
} line_owners;

static void run_and_watch_lines(void *user, int32_t n_parts, pkv_parallel_body body, void *ctx)
{
    line_owners *o = user;
    o->n_parts = n_parts;
    for (int32_t p = 0; p < n_parts; p++) {
        body(ctx, p);
        for (int64_t line = 0; line < o->n_lines; line++) {
            if (memcmp(o->before + 64 * line, o->cache + 64 * line, 64) != 0) {
                o->n_shared += o->owner[line] != 0;
                o->owner[line] = 1 + p;
            }
        }
        memcpy(o->before, o->cache, (size_t)o->n_lines * 64);
    }
}

/* Rows of 480 bytes on pages of 33: parts meet inside a line, which one of them must finish. */
static void test_parts_share_no_line(void **state)
{
    (void)state;
    enum { PAGES = 60, S = 33, H = 3, D = 80, ROW = 2 * H * D, T = PAGES * S };
    guarded cache_memory = guarded_new((size_t)T * ROW), rows = guarded_new((size_t)T * ROW);
    memset(rows.data, 0xff, (size_t)T * ROW);
    for (int32_t max_threads = 2; max_threads <= 14; max_threads++) {
        line_owners o = {.cache = cache_memory.data, .n_lines = (int64_t)T * ROW / 64};
        o.before = calloc((size_t)o.n_lines, 64);
        o.owner = calloc((size_t)o.n_lines, sizeof *o.owner);
        assert_true(o.before != NULL && o.owner != NULL);
        const pkv_update_opts opts = {.struct_size = sizeof opts, .max_threads = max_threads,
                                      .parallel_for = run_and_watch_lines, .parallel_user = &o};
        pkv_cache cache;
        pkv_new_kv new_kv;
        pkv_error err;
        slice_list list;
        slice_list_init(&list, PAGES);
        for (int32_t p = 0; p < PAGES; p++) {
            slice_list_add(&list, p * S, p * S, S);
        }
        memset(cache_memory.data, 0, (size_t)T * ROW);
        assert_int_equal(pkv_cache_combined(&cache, sizeof cache, cache_memory.data, PAGES, S, H, D,
                                            PKV_DTYPE_BITS8), PKV_OK);
        assert_int_equal(pkv_new_kv_combined(&new_kv, sizeof new_kv, rows.data, T, H, D,
                                             PKV_DTYPE_BITS8), PKV_OK);
        note_case("lines of parts", 0, "%d threads", max_threads);
        expect_ok(pkv_update(&cache, &new_kv, &list.view, &opts, &err), &err);
        expect_same_bytes("cache", cache_memory.data, rows.data, (size_t)T * ROW);
        assert_int_equal(o.n_parts, max_threads);
        assert_int_equal(o.n_shared, 0);
        slice_list_free(&list);
        free(o.before);
        free(o.owner);
    }
    guarded_free(&cache_memory);
    guarded_free(&rows);
}

/* More threads than any machine has: no more are started than OpenMP's own count. */
static void test_a_great_many_threads(void **state)
{
    (void)state;
    const world_shape shape = {0, SOURCE_APART, PKV_DTYPE_F32, 30, 16, 2, 128, 128, 400};
    const pkv_update_opts opts = {.struct_size = sizeof opts, .max_threads = INT32_MAX};
    assert_true(pkv_default_threads() >= 1);
    check_parts(&shape, &opts, 5);
}

static void test_parts_on_the_library_s_own_threads(void **state)
{
    (void)state;
    assert_true(pkv_default_threads() >= 1);
    check_all_shapes(NULL);
}

static void test_many_layers_divided_over_threads(void **state)
{
    (void)state;
    watch_faults();
    int32_t most_parts = 0;
    for (int32_t threads = 1; threads <= 9; threads++) {
        const pkv_update_opts opts = {.struct_size = sizeof opts, .max_threads = threads,
                                      .parallel_for = run_reversed, .parallel_user = &most_parts};
        world worlds[3];
        pkv_cache caches[3];
        pkv_new_kv new_kvs[3];
        slice_list list;
        const world_shape shape = {LAYOUT_NHD, SOURCE_APART, PKV_DTYPE_BITS8, 70, 16, 3, 67, 67,
                                   1000};
        for (int l = 0; l < 3; l++) {
            world_init(&worlds[l], &shape, FILL_RANDOM, (uint64_t)l);
            caches[l] = worlds[l].cache;
            new_kvs[l] = worlds[l].new_kv;
        }
        rng r = {(uint64_t)threads};
        slice_list_init(&list, 300);
        world_random_slices(&worlds[0], &r, &list);
        pkv_error err;
        expect_ok(pkv_update_layers(caches, new_kvs, NULL, 3, &list.view, 1, &opts, &err), &err);
        for (int l = 0; l < 3; l++) {
            model_update(&worlds[l].model_cache, &new_kvs[l], &list.view);
            world_expect_same(&worlds[l]);
            world_free(&worlds[l]);
        }
        slice_list_free(&list);
    }
    assert_true(most_parts >= 2);
}

/* ---- calls at the same time on one cache --------------------------------- */

enum { WRITERS = 4, SLOTS_EACH = 16 * 8 };

typedef struct writer {
    const pkv_cache  *cache;
    const pkv_new_kv *new_kv;
    slice_list        list;
    pkv_status        status;
} writer;

static void *write_slots(void *arg)
{
    writer *w = arg;
    for (int i = 0; i < 20 && w->status == PKV_OK; i++) {
        w->status = pkv_update(w->cache, w->new_kv, &w->list.view, NULL, NULL);
    }
    return NULL;
}

/* Neighbouring slots, rows of 37 bytes: the writers share cache lines but no byte. */
static void test_disjoint_updates_at_the_same_time(void **state)
{
    (void)state;
    for (int i = 0; i < 2 * LAYOUT_COUNT; i++) {
        const world_shape shape = {i / 2, SOURCE_APART, PKV_DTYPE_BITS8, WRITERS * 8, 16, 3, 37,
                                   37, WRITERS * SLOTS_EACH};
        world w;
        assert_int_equal(pkv_isa_select(i % 2 == 0 ? NULL : "c"), PKV_OK);
        world_init(&w, &shape, FILL_RANDOM, 1);
        writer writers[WRITERS];
        pthread_t threads[WRITERS];
        for (int t = 0; t < WRITERS; t++) {
            writers[t] = (writer){.cache = &w.cache, .new_kv = &w.new_kv};
            slice_list_init(&writers[t].list, SLOTS_EACH);
            for (int at = t; at < WRITERS * SLOTS_EACH; at += WRITERS) {
                slice_list_add(&writers[t].list, at, at, 1);
            }
            assert_int_equal(pthread_create(&threads[t], NULL, write_slots, &writers[t]), 0);
        }
        for (int t = 0; t < WRITERS; t++) {
            assert_int_equal(pthread_join(threads[t], NULL), 0);
            assert_int_equal(writers[t].status, PKV_OK);
            model_update(&w.model_cache, &w.new_kv, &writers[t].list.view);
            slice_list_free(&writers[t].list);
        }
        world_expect_same(&w);
        world_free(&w);
    }
}

/* One thread changes the instruction set while others write. */
static void *switch_isa(void *arg)
{
    (void)arg;
    for (int i = 0; i < 200; i++) {
        pkv_isa_select(i % 2 == 0 ? "c" : NULL);
    }
    return NULL;
}

static void test_selecting_an_isa_meanwhile(void **state)
{
    (void)state;
    const world_shape shape = {LAYOUT_NHD, SOURCE_APART, PKV_DTYPE_BF16, 20, 16, 2, 64, 64, 300};
    world w;
    world_init(&w, &shape, FILL_RANDOM, 2);
    writer one = {.cache = &w.cache, .new_kv = &w.new_kv};
    slice_list_init(&one.list, 1);
    slice_list_add(&one.list, 3, 0, 300);
    pthread_t threads[2];
    assert_int_equal(pthread_create(&threads[0], NULL, switch_isa, NULL), 0);
    assert_int_equal(pthread_create(&threads[1], NULL, write_slots, &one), 0);
    assert_int_equal(pthread_join(threads[0], NULL), 0);
    assert_int_equal(pthread_join(threads[1], NULL), 0);
    model_update(&w.model_cache, &w.new_kv, &one.list.view);
    world_expect_same(&w);
    slice_list_free(&one.list);
    world_free(&w);
    assert_int_equal(pkv_isa_select(NULL), PKV_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layers_groups_and_a_shared_one),
        cmocka_unit_test(test_gather_layers),
        cmocka_unit_test(test_a_bad_layer_stops_all),
        cmocka_unit_test(test_struct_sizes_of_an_array),
        cmocka_unit_test(test_no_layers),
        cmocka_unit_test(test_parts_in_reversed_order),
        cmocka_unit_test(test_parts_on_pthreads),
        cmocka_unit_test(test_parts_share_no_line),
        cmocka_unit_test(test_a_great_many_threads),
        cmocka_unit_test(test_parts_on_the_library_s_own_threads),
        cmocka_unit_test(test_many_layers_divided_over_threads),
        cmocka_unit_test(test_disjoint_updates_at_the_same_time),
        cmocka_unit_test(test_selecting_an_isa_meanwhile),
    };
    return cmocka_run_group_tests_name("update_many", tests, NULL, NULL);
}
