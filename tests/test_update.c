/*
 * The update as upstream defines it: its own test grids byte for byte, its nine
 * invalid inputs, and what the dynamic count means.
 */
#include "world.h"

#include <string.h>

/* ---- upstream's data ----------------------------------------------------- */

enum { N_SLICES = 7, N_ROWS = 128 };

/* Slices of upstream's tests for one page size; `padded` columns, zero from 7 on. */
static void upstream_slices(int64_t page, int64_t padded, slice_list *list)
{
    const int64_t lens[N_SLICES] = {7, page, page, 1, 1, 1, 9};
    const int64_t starts[N_SLICES] = {2 * page - 7, 2 * page,     3 * page,     4 * page + 6,
                                      5 * page + 7, 6 * page + 8, 15 * page + 3};
    slice_list_init(list, padded);
    memset(list->columns, 0, (size_t)padded * 3 * sizeof(int32_t));
    int64_t row = 0;
    for (int i = 0; i < N_SLICES; i++) {
        slice_list_add(list, starts[i], row, lens[i]);
        row += lens[i];
    }
}

/* A cache of zeros [pages * page, C, D] bf16, and the model's; pages never touched cost nothing. */
typedef struct upstream_case {
    guarded    cache_memory;
    guarded    model_memory;
    guarded    source;
    size_t     cache_bytes;
    pkv_cache  cache;
    pkv_cache  model;
    pkv_new_kv new_kv;
} upstream_case;

static void upstream_init(upstream_case *u, int64_t n_pages, int64_t page, int64_t combined_heads,
                          int64_t head_dim)
{
    u->cache_bytes = (size_t)(n_pages * page * combined_heads * head_dim) * 2;
    size_t source_bytes = (size_t)(N_ROWS * combined_heads * head_dim) * 2;
    u->cache_memory = guarded_new(u->cache_bytes);
    u->model_memory = guarded_new(u->cache_bytes);
    u->source = guarded_new(source_bytes);
    unsigned char *data = guarded_tail(&u->cache_memory, u->cache_bytes);
    unsigned char *model_data = guarded_tail(&u->model_memory, u->cache_bytes);
    unsigned char *rows = guarded_tail(&u->source, source_bytes);
    fill(rows, source_bytes, FILL_RANDOM, 1234);
    assert_int_equal(pkv_cache_combined(&u->cache, sizeof u->cache, data, n_pages, page,
                                        combined_heads / 2, head_dim, PKV_DTYPE_BF16), PKV_OK);
    assert_int_equal(pkv_cache_combined(&u->model, sizeof u->model, model_data, n_pages, page,
                                        combined_heads / 2, head_dim, PKV_DTYPE_BF16), PKV_OK);
    assert_int_equal(pkv_new_kv_combined(&u->new_kv, sizeof u->new_kv, rows, N_ROWS,
                                         combined_heads / 2, head_dim, PKV_DTYPE_BF16), PKV_OK);
}

static void upstream_free(upstream_case *u)
{
    guarded_free(&u->cache_memory);
    guarded_free(&u->model_memory);
    guarded_free(&u->source);
}

static void check_upstream(int64_t n_pages, int64_t page, int64_t heads, int64_t head_dim,
                           int64_t per_block, const pkv_update_opts *opts)
{
    note_case("upstream", 1234, "pages %d, page size %d, combined heads %d, head_dim %d, block %d",
              (int)n_pages, (int)page, (int)heads, (int)head_dim, (int)per_block);
    upstream_case u;
    slice_list list;
    upstream_init(&u, n_pages, page, heads, head_dim);
    upstream_slices(page, (N_SLICES + per_block - 1) / per_block * per_block, &list);
    pkv_error err;
    expect_ok(pkv_update(&u.cache, &u.new_kv, &list.view, opts, &err), &err);
    model_update(&u.model, &u.new_kv, &list.view);
    expect_same_bytes("cache", u.cache_memory.data, u.model_memory.data,
                      u.cache_memory.room_bytes);
    slice_list_free(&list);
    upstream_free(&u);
}

/* tests/v1/tpu/test_kv_cache_update_kernel.py: 16 cases. */
static void test_vllm_grid(void **state)
{
    (void)state;
    watch_faults();
    for (int i = 0; i < 16; i++) {
        check_upstream(1000, 32 + (i & 1), i & 2 ? 16 : 2, i & 4 ? 256 : 128, i & 8 ? 8 : 4, NULL);
    }
}

/* ragged_kv_cache_update_v2_test.py::test_basic: 32 cases; slices per block None is 64 here. */
static void test_tpu_inference_grid(void **state)
{
    (void)state;
    watch_faults();
    const pkv_update_opts strict = {.struct_size = sizeof strict, .flags = PKV_UPDATE_STRICT};
    for (int i = 0; i < 32; i++) {
        check_upstream(20, 32 + (i & 1), i & 2 ? 16 : 2, i & 4 ? 256 : 128, i & 8 ? 64 : 8,
                       i & 16 ? &strict : NULL);
    }
}

/* ---- upstream's nine invalid inputs -------------------------------------- */

static void change_and_refuse(int number, slice_list *list, pkv_status code, int32_t rule,
                              int64_t index)
{
    const pkv_update_opts strict = {.struct_size = sizeof strict, .flags = PKV_UPDATE_STRICT};
    note_case("invalid input", (uint64_t)number, "page 32, C 2, D 128");
    upstream_case u;
    upstream_init(&u, 20, 32, 2, 128);
    pkv_error err;
    memset(&err, 0xAB, sizeof err);
    expect_error(pkv_update(&u.cache, &u.new_kv, &list->view, &strict, &err), &err, code, rule,
                 index);
    assert_int_equal(err.layer, -1);
    pkv_rows rows; /* a gather has the same rules */
    assert_int_equal(pkv_rows_combined(&rows, sizeof rows, u.model_memory.data, N_ROWS, 1, 128,
                                       PKV_DTYPE_BF16), PKV_OK);
    expect_error(pkv_gather(&u.cache, &rows, &list->view, &strict, &err), &err, code, rule, index);
    expect_same_bytes("cache", u.cache_memory.data, u.model_memory.data,
                      u.cache_memory.room_bytes); /* both all zeros still */
    slice_list_free(list);
    upstream_slices(32, 8, list);
    upstream_free(&u);
}

static void test_nine_invalid_inputs(void **state)
{
    (void)state;
    slice_list list;
    upstream_slices(32, 8, &list);
    pkv_slices *s = &list.view;
    s->new_kv_start[0] = -1;
    change_and_refuse(1, &list, PKV_E_RANGE, PKV_RULE_NEW_KV_START, 0);
    s->kv_cache_start[0] = -1;
    change_and_refuse(2, &list, PKV_E_RANGE, PKV_RULE_KV_CACHE_START, 0);
    s->slice_len[0] = 0;
    change_and_refuse(3, &list, PKV_E_STRICT, PKV_RULE_SLICE_LEN, 0);
    s->slice_len[0] = 33;
    change_and_refuse(4, &list, PKV_E_STRICT, PKV_RULE_SLICE_LEN, 0);
    s->new_kv_start[0] = 128;
    change_and_refuse(5, &list, PKV_E_RANGE, PKV_RULE_NEW_KV_END, 0);
    s->kv_cache_start[0] = 640;
    change_and_refuse(6, &list, PKV_E_RANGE, PKV_RULE_KV_CACHE_END, 0);
    s->kv_cache_start[0] = 31;
    s->slice_len[0] = 32;
    change_and_refuse(7, &list, PKV_E_STRICT, PKV_RULE_SAME_PAGE, 0);
    s->new_kv_start[1] += 1;
    change_and_refuse(8, &list, PKV_E_STRICT, PKV_RULE_NEW_KV_GAP, 1);
    s->kv_cache_start[4] = s->kv_cache_start[3];
    change_and_refuse(9, &list, PKV_E_STRICT, PKV_RULE_KV_CACHE_OVERLAP, 4);
    slice_list_free(&list);
}

/* ---- the dynamic count --------------------------------------------------- */

static const world_shape small = {LAYOUT_COMBINED, SOURCE_COMBINED, PKV_DTYPE_BF16, 8, 16, 3, 20,
                                  20, 64};

static void test_counts_from_none_to_all(void **state)
{
    (void)state;
    watch_faults();
    for (int32_t n = 0; n <= N_SLICES; n++) {
        world w;
        slice_list list;
        world_init(&w, &small, FILL_RANDOM, (uint64_t)n);
        slice_list_init(&list, N_SLICES); /* garbage past n, but for n = N */
        for (int32_t i = 0; i < n; i++) {
            slice_list_add(&list, 17 * i, 9 * i, 9);
        }
        world_update(&w, &list.view, NULL);
        slice_list_free(&list);
        world_free(&w);
    }
}

/* Columns past n are not even read: they may lie in memory that is not there. */
static void test_columns_past_n_are_not_read(void **state)
{
    (void)state;
    watch_faults();
    world w;
    world_init(&w, &small, FILL_RANDOM, 3);
    guarded rows[3];
    int32_t n = 1;
    pkv_slices slices = {.struct_size = sizeof slices, .capacity = 1000, .num_slices = &n};
    int32_t **starts[] = {&slices.kv_cache_start, &slices.new_kv_start, &slices.slice_len};
    for (int i = 0; i < 3; i++) {
        rows[i] = guarded_new(8);
        *starts[i] = (int32_t *)(void *)guarded_tail(&rows[i], sizeof(int32_t));
    }
    *slices.kv_cache_start = 5;
    *slices.new_kv_start = 6;
    *slices.slice_len = 7;
    world_update(&w, &slices, NULL);
    for (int i = 0; i < 3; i++) {
        guarded_free(&rows[i]);
    }
    world_free(&w);
}

static void refuse_slices(world *w, const pkv_slices *slices, int32_t rule, int64_t index)
{
    pkv_error err;
    expect_error(pkv_update(&w->cache, &w->new_kv, slices, NULL, &err), &err, PKV_E_RANGE, rule,
                 index);
    assert_int_equal(pkv_update(&w->cache, &w->new_kv, slices, NULL, NULL), PKV_E_RANGE);
    world_expect_same(w); /* nothing is written, not even the slices before */
}

static void test_counts_out_of_range(void **state)
{
    (void)state;
    world w;
    slice_list list;
    world_init(&w, &small, FILL_RANDOM, 4);
    slice_list_init(&list, 3);
    slice_list_add(&list, 0, 0, 5);
    static const int32_t counts[] = {-1, 4, INT32_MIN, INT32_MAX};
    for (size_t i = 0; i < 4; i++) {
        list.n = counts[i];
        refuse_slices(&w, &list.view, PKV_RULE_COUNT, -1);
    }
    slice_list_free(&list);
    world_free(&w);
}

/* One good slice before, one bad one: each rule of the default mode. */
static void test_slices_out_of_range(void **state)
{
    (void)state;
    static const int32_t bad[][4] = {
        {0, -1, 1, PKV_RULE_NEW_KV_START},        {-1, 0, 1, PKV_RULE_KV_CACHE_START},
        {0, 0, -1, PKV_RULE_SLICE_LEN},           {0, 60, 5, PKV_RULE_NEW_KV_END},
        {126, 0, 3, PKV_RULE_KV_CACHE_END},       {129, 0, 0, PKV_RULE_KV_CACHE_END},
        {0, 65, 0, PKV_RULE_NEW_KV_END},          {INT32_MAX, 0, 1, PKV_RULE_KV_CACHE_END},
        {0, INT32_MAX, INT32_MAX, PKV_RULE_NEW_KV_END},
        {INT32_MAX, 0, 2, PKV_RULE_KV_CACHE_END}, {INT32_MIN, INT32_MIN, 1, PKV_RULE_NEW_KV_START}};
    world w;
    world_init(&w, &small, FILL_RANDOM, 5);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        slice_list list;
        slice_list_init(&list, 3);
        slice_list_add(&list, 3, 3, 10);
        slice_list_add(&list, bad[i][0], bad[i][1], bad[i][2]);
        slice_list_add(&list, -9, -9, -9);
        refuse_slices(&w, &list.view, bad[i][3], 1);
        slice_list_free(&list);
    }
    world_free(&w);
}

/* Slices that end exactly at the ends of both buffers, and empty ones there. */
static void test_slices_at_the_ends(void **state)
{
    (void)state;
    watch_faults();
    world w;
    slice_list list;
    world_init(&w, &small, FILL_RANDOM, 6);
    slice_list_init(&list, 4);
    slice_list_add(&list, 128 - 10, 64 - 10, 10);
    slice_list_add(&list, 128, 64, 0);
    slice_list_add(&list, 0, 0, 0);
    slice_list_add(&list, 0, 0, 1);
    world_update(&w, &list.view, NULL);
    slice_list_free(&list);
    world_free(&w);
}

/* ---- meaning ------------------------------------------------------------- */

static void test_order_does_not_matter(void **state)
{
    (void)state;
    watch_faults();
    for (uint64_t seed = 0; seed < 30; seed++) {
        world w;
        slice_list list;
        rng r = {seed};
        world_init(&w, &small, FILL_RANDOM, seed);
        slice_list_init(&list, 12);
        world_random_slices(&w, &r, &list); /* rows and slots disjoint, order shuffled */
        world_update(&w, &list.view, NULL);
        for (int32_t i = 0, j = list.n - 1; i < j; i++, j--) {
            int32_t *columns[] = {list.view.kv_cache_start, list.view.new_kv_start,
                                  list.view.slice_len};
            for (int c = 0; c < 3; c++) {
                int32_t kept = columns[c][i];
                columns[c][i] = columns[c][j];
                columns[c][j] = kept;
            }
        }
        fill(w.memory.data, w.memory.room_bytes, FILL_PERIOD, 0);
        fill(w.model_memory, w.memory.room_bytes, FILL_PERIOD, 0);
        world_update(&w, &list.view, NULL);
        slice_list_free(&list);
        world_free(&w);
    }
}

/* Two slices over the same slots: those bytes are anyone's, all others as ever. */
static void test_overlapping_destinations_harm_nothing_else(void **state)
{
    (void)state;
    watch_faults();
    world w;
    slice_list list;
    world_init(&w, &small, FILL_RANDOM, 8);
    slice_list_init(&list, 4);
    slice_list_add(&list, 20, 0, 20);
    slice_list_add(&list, 30, 40, 20); /* slots 30..39 twice */
    pkv_error err;
    expect_ok(pkv_update(&w.cache, &w.new_kv, &list.view, NULL, &err), &err);
    model_update(&w.model_cache, &w.new_kv, &list.view);
    size_t token_bytes = (size_t)w.cache.k.token_stride_bytes;
    memcpy((char *)w.model_cache.k.data + 30 * token_bytes,
           (char *)w.cache.k.data + 30 * token_bytes, 10 * token_bytes);
    world_expect_same(&w);
    slice_list_free(&list);
    world_free(&w);
}

static void test_every_pattern_survives(void **state)
{
    (void)state;
    watch_faults();
    static const pkv_dtype dtypes[] = {PKV_DTYPE_F32, PKV_DTYPE_F16, PKV_DTYPE_BF16,
                                       PKV_DTYPE_FP8_E4M3, PKV_DTYPE_FP8_E5M2};
    for (int pattern = 0; pattern < FILL_COUNT; pattern++) {
        for (size_t i = 0; i < 5; i++) {
            world_shape shape = small;
            shape.dtype = dtypes[i];
            world w;
            slice_list list;
            world_init(&w, &shape, pattern, (uint64_t)pattern);
            slice_list_init(&list, 2);
            slice_list_add(&list, 5, 1, 40);
            slice_list_add(&list, 60, 50, 14);
            world_update(&w, &list.view, NULL);
            world_gather(&w, &list.view, NULL);
            slice_list_free(&list);
            world_free(&w);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_vllm_grid),
        cmocka_unit_test(test_tpu_inference_grid),
        cmocka_unit_test(test_nine_invalid_inputs),
        cmocka_unit_test(test_counts_from_none_to_all),
        cmocka_unit_test(test_columns_past_n_are_not_read),
        cmocka_unit_test(test_counts_out_of_range),
        cmocka_unit_test(test_slices_out_of_range),
        cmocka_unit_test(test_slices_at_the_ends),
        cmocka_unit_test(test_order_does_not_matter),
        cmocka_unit_test(test_overlapping_destinations_harm_nothing_else),
        cmocka_unit_test(test_every_pattern_survives),
    };
    return cmocka_run_group_tests_name("update", tests, NULL, NULL);
}
