/*
 * Updates and gathers that convert, end to end, against a plain model: layouts, sizes,
 * dtypes, scales and their places, strided rows, parts, layers.
 */
#include "convert_world.h"

#include <string.h>

static void select_isa(uint64_t wish)
{
    uint64_t n = 0;
    while (pkv_isa_name((int32_t)n) != NULL) {
        n++;
    }
    const int32_t i = (int32_t)(wish % n);
    assert_int_equal(pkv_isa_select(pkv_isa_usable(i) ? pkv_isa_name(i) : NULL), PKV_OK);
}

/* Written, compared with poison around; read back, compared. */
static void check_shape(const cw_shape *shape, uint64_t seed)
{
    const pkv_update_opts read_soon = {.struct_size = sizeof read_soon,
                                       .flags = PKV_UPDATE_READ_SOON};
    const pkv_update_opts *opts = seed % 2 == 0 ? NULL : &read_soon;
    rng                    r = {seed};
    cw                     w;
    slice_list             list;
    select_isa(seed);
    cw_init(&w, shape, seed);
    slice_list_init(&list, 12);
    cw_random_slices(&w, &r, &list);
    cw_note(&w, seed, "gather of noise");
    cw_gather(&w, &list.view, opts);
    cw_note(&w, seed, "update");
    cw_update(&w, &list.view, opts);
    cw_note(&w, seed, "gather");
    cw_gather(&w, &list.view, opts);
    slice_list_free(&list);
    cw_free(&w);
}

static void test_random_shapes(void **state)
{
    (void)state;
    watch_faults();
    const char *env = getenv("PAGEDKV_CONVERT_SHAPES"); /* fewer where an emulator runs this */
    const int   n = env != NULL ? atoi(env) : 800;
    for (int i = 0; i < n; i++) {
        rng            r = {(uint64_t)i + 1000000};
        const cw_shape shape = cw_random_shape(&r);
        check_shape(&shape, (uint64_t)i);
    }
}

/* Every pair with every layout, kind of scales and place, at one size. */
static void test_every_combination(void **state)
{
    (void)state;
    uint64_t seed = 0;
    watch_faults();
    for (int pair = 0; pair < 21; pair++) {
        for (int layout = 0; layout < CW_LAYOUTS; layout++) {
            for (int kinds = 0; kinds < 8; kinds++, seed++) {
                cw_shape s = {.layout = layout, .rows = (int)(seed % CW_ROWS),
                              .place = (int)(seed / 3 % CW_PLACES), .n_pages = 4, .page_size = 3,
                              .n_heads = 2, .head_dim = {16, 12}, .n_tokens = 9,
                              .kind = {kinds % 5, (kinds * 3 + pair) % 5}, .n_groups = {4, 3}};
                s.kind[1] = kinds >= 5 ? PKV_SCALES_NONE : s.kind[1]; /* only one is scaled */
                cw_set_pair(&s, pair);
                check_shape(&s, seed);
            }
        }
    }
}

/* The sizes that models have. */
static void test_mla_sizes(void **state)
{
    (void)state;
    watch_faults();
    for (int pair = 0; pair < 21; pair++) {
        for (int place = 0; place < CW_PLACES; place++) {
            cw_shape s = {.layout = CW_MLA_KEYS, .rows = place % 3, .place = place, .n_pages = 3,
                          .page_size = 4, .n_heads = 1, .head_dim = {576, 0}, .n_tokens = 7,
                          .kind = {PKV_SCALES_GROUP, 0}, .n_groups = {place % 2 == 0 ? 9 : 4, 0}};
            cw_set_pair(&s, pair);
            check_shape(&s, (uint64_t)(pair * 8 + place));
            s.layout = CW_MLA;
            s.head_dim[0] = 512;
            s.head_dim[1] = 64;
            s.n_groups[0] = 4;
            check_shape(&s, (uint64_t)(pair * 8 + place + 4));
        }
    }
}

/* Tokens around the size of the stage: 16 KiB in the destination's dtype. */
static void test_tokens_that_exceed_the_stage(void **state)
{
    (void)state;
    static const int64_t heads[] = {2, 28, 32, 33, 64}, dims[] = {576, 128, 64};
    uint64_t             seed = 0;
    watch_faults();
    for (int h = 0; h < 5; h++) {
        for (int d = 0; d < 3; d++) {
            for (int pair = 0; pair < 18; pair += 2, seed++) {
                cw_shape s = {.layout = (int)(seed % CW_LAYOUTS), .rows = (int)(seed / 5 % CW_ROWS),
                              .place = (int)(seed / 2 % CW_PLACES), .n_pages = 3, .page_size = 2,
                              .n_heads = heads[h], .head_dim = {dims[d], dims[d]}, .n_tokens = 2,
                              .kind = {(int32_t)(seed % 5), (int32_t)(seed / 5 % 5)},
                              .n_groups = {4, 2}};
                cw_set_pair(&s, pair + h % 2);
                check_shape(&s, seed);
            }
        }
    }
}

/* ---- parts ------------------------------------------------------------------------------- */

/* Backwards, or every third one first: an order is not promised. */
static void in_odd_order(void *user, int32_t n_parts, pkv_parallel_body body, void *ctx)
{
    *(int32_t *)user = n_parts;
    for (int32_t first = 0; first < 3; first++) {
        for (int32_t p = n_parts - 1 - first; p >= 0; p -= 3) {
            body(ctx, p);
        }
    }
}

static void check_parts(const cw_shape *shape, uint64_t seed)
{
    int32_t         n_parts = 0;
    pkv_update_opts opts = {.struct_size = sizeof opts,
                            .parallel_for = seed % 2 == 0 ? in_odd_order : cw_threads,
                            .parallel_user = &n_parts,
                            .max_threads = (int32_t)(seed % 3) * 7};
    rng        r = {seed};
    cw         w;
    slice_list list;
    select_isa(seed);
    cw_init(&w, shape, seed);
    slice_list_init(&list, 900);
    cw_random_slices(&w, &r, &list);
    cw_note(&w, seed, "parts");
    cw_update(&w, &list.view, &opts);
    assert_true(n_parts > 1);
    n_parts = 0;
    cw_gather(&w, &list.view, &opts);
    assert_true(n_parts > 1);
    slice_list_free(&list);
    cw_free(&w);
}

static void test_many_parts(void **state)
{
    (void)state;
    watch_faults();
    for (uint64_t seed = 0; seed < 24; seed++) {
        cw_shape s = {.layout = (int)(seed % CW_LAYOUTS), .rows = (int)(seed % CW_ROWS),
                      .place = (int)(seed / 3 % CW_PLACES), .page_size = 7, .n_heads = 3,
                      .head_dim = {96, 64}, .n_pages = 240, .n_tokens = 1500,
                      .kind = {(int32_t)(seed % 5), (int32_t)(seed / 5 % 5)}, .n_groups = {4, 4}};
        cw_set_pair(&s, (int)(seed * 7));
        s.n_tokens = s.dtype == PKV_DTYPE_INT4 ? 2 * s.n_tokens : s.n_tokens;
        s.layout = s.layout == CW_MLA || s.layout == CW_MLA_KEYS ? CW_PADDED : s.layout;
        s.n_pages *= s.n_tokens / 1500;
        check_parts(&s, seed);
    }
}

/* ---- layers ------------------------------------------------------------------------------ */

enum { N_LAYERS = 8, N_GROUPS = 2 };

/* Layers that convert, that copy, and one that shares another's cache. */
typedef struct layers {
    cw         worlds[N_LAYERS];
    pkv_cache  caches[N_LAYERS];
    pkv_new_kv new_kvs[N_LAYERS];
    slice_list lists[N_GROUPS];
    pkv_slices groups[N_GROUPS];
} layers;

static const int32_t group_ids[N_LAYERS] = {0, 1, 1, 0, 1, 0, 0, 1};

static void layers_init(layers *m, uint64_t seed)
{
    for (int l = 0; l < N_LAYERS; l++) {
        cw_shape s = {.layout = (int)(seed + (uint64_t)l) % CW_LAYOUTS, .rows = l % CW_ROWS,
                      .place = l % CW_PLACES, .n_pages = 12 + l, .page_size = 5,
                      .n_heads = 1 + l % 3,
                      .head_dim = {160, 160}, .n_tokens = 50, .kind = {l % 5, (l + 2) % 5},
                      .n_groups = {5, 2}};
        cw_set_pair(&s, l % 3 == 2 ? 18 + l % 3 : (int)seed + 5 * l);
        cw_init(&m->worlds[l], &s, seed * 8 + (uint64_t)l);
        m->worlds[l].cache.flags = l == 4 ? PKV_CACHE_SHARED : 0;
        m->caches[l] = m->worlds[l].cache;
        m->new_kvs[l] = m->worlds[l].new_kv;
    }
    for (int g = 0; g < N_GROUPS; g++) {
        slice_list_init(&m->lists[g], 5);
        slice_list_add(&m->lists[g], 30 + g, 20, 20);
        slice_list_add(&m->lists[g], 3, 0, 19);
        slice_list_add(&m->lists[g], 59, 49 - g, 1);
        m->groups[g] = m->lists[g].view;
    }
}

static void layers_free(layers *m)
{
    for (int l = 0; l < N_LAYERS; l++) {
        cw_free(&m->worlds[l]);
    }
    for (int g = 0; g < N_GROUPS; g++) {
        slice_list_free(&m->lists[g]);
    }
}

static void gather_all(layers *m, const pkv_update_opts *opts, uint64_t seed)
{
    unsigned char *found[N_LAYERS], *expected[N_LAYERS];
    pkv_rows       rows[N_LAYERS];
    pkv_error      err;
    for (int l = 0; l < N_LAYERS; l++) {
        const size_t n_bytes = m->worlds[l].rows_memory.room_bytes;
        found[l] = test_alloc(n_bytes);
        expected[l] = test_alloc(n_bytes);
        memset(found[l], 0x5A, n_bytes);
        memset(expected[l], 0x5A, n_bytes);
        rows[l] = cw_rows(&m->worlds[l], found[l]);
        const pkv_rows model_rows = cw_rows(&m->worlds[l], expected[l]);
        convert_gather(&m->worlds[l].model_cache, &model_rows, &m->groups[group_ids[l]]);
    }
    expect_ok(pkv_gather_layers(m->caches, rows, group_ids, N_LAYERS, m->groups, N_GROUPS, opts,
                                &err), &err);
    for (int l = 0; l < N_LAYERS; l++) {
        cw_note(&m->worlds[l], seed, "gather of layers");
        expect_same_bytes("rows", found[l], expected[l], m->worlds[l].rows_memory.room_bytes);
        free(found[l]);
        free(expected[l]);
    }
}

static void test_layers(void **state)
{
    (void)state;
    static layers m;
    int32_t       n_parts = 0;
    watch_faults();
    for (uint64_t seed = 0; seed < 16; seed++) {
        const pkv_update_opts opts = {.struct_size = sizeof opts,
                                      .parallel_for = seed % 4 == 1 ? cw_threads : in_odd_order,
                                      .parallel_user = &n_parts};
        pkv_error err;
        select_isa(seed / 2);
        layers_init(&m, seed);
        expect_ok(pkv_update_layers(m.caches, m.new_kvs, group_ids, N_LAYERS, m.groups, N_GROUPS,
                                    seed % 2 == 0 ? NULL : &opts, &err), &err);
        for (int l = 0; l < N_LAYERS; l++) {
            if (l != 4) {
                convert_update(&m.worlds[l].model_cache, &m.new_kvs[l], &m.groups[group_ids[l]]);
            }
            cw_note(&m.worlds[l], seed, "layers");
            cw_expect_same(&m.worlds[l]);
        }
        gather_all(&m, seed % 2 == 0 ? NULL : &opts, seed);
        layers_free(&m);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_combination),
        cmocka_unit_test(test_mla_sizes),
        cmocka_unit_test(test_tokens_that_exceed_the_stage),
        cmocka_unit_test(test_random_shapes),
        cmocka_unit_test(test_many_parts),
        cmocka_unit_test(test_layers),
    };
    return cmocka_run_group_tests_name("convert", tests, NULL, NULL);
}
