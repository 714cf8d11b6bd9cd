/*
 * Every layout with every kind of source, against the plain model, with poison
 * around and between; and offsets that 32 bits cannot hold.
 */
#include "world.h"

#include <string.h>
#include <sys/mman.h>

/* ---- the matrix ---------------------------------------------------------- */

static const int64_t page_sizes[] = {1, 16, 33};
static const int64_t head_counts[] = {1, 3, 8};
static const int64_t head_dims[] = {1, 3, 64, 80, 128};

/* The dtypes and instruction sets go round, so that each meets each layout. */
static world_shape matrix_shape(int layout, int source, int cell)
{
    world_shape s = {.layout = layout, .source = source};
    s.dtype = PKV_DTYPE_F32 + (layout + source + cell) % PKV_DTYPE_BITS32;
    s.page_size = page_sizes[cell % 3];
    s.n_heads = head_counts[cell / 3 % 3];
    s.head_dim_k = head_dims[cell / 9];
    s.head_dim_v = layout == LAYOUT_NHD || layout == LAYOUT_HND ? s.head_dim_k
                                                                : head_dims[(cell + source) % 5];
    s.n_pages = 4 + 40 / s.page_size;
    s.n_tokens = 50;
    return s;
}

static void select_isa(int wish)
{
    int32_t n = 0;
    while (pkv_isa_name(n) != NULL) {
        n++;
    }
    int32_t i = wish % n;
    const char *name = pkv_isa_usable(i) ? pkv_isa_name(i) : pkv_isa_name(0);
    assert_int_equal(pkv_isa_select(name), PKV_OK);
}

static void check_cell(int layout, int source, int cell)
{
    const pkv_update_opts read_soon = {.struct_size = sizeof read_soon,
                                       .flags = PKV_UPDATE_READ_SOON};
    const world_shape shape = matrix_shape(layout, source, cell);
    uint64_t seed = (uint64_t)((layout * SOURCE_COUNT + source) * 45 + cell);
    const pkv_update_opts *opts = seed % 2 == 0 ? NULL : &read_soon;
    rng r = {seed};
    world w;
    slice_list list;
    select_isa((int)seed);
    world_init(&w, &shape, cell % FILL_COUNT == FILL_ZEROS ? FILL_PERIOD : cell % FILL_COUNT, seed);
    slice_list_init(&list, 12);
    world_random_slices(&w, &r, &list);
    world_update(&w, &list.view, opts);
    if (w.shape.source != SOURCE_REPEATED) { /* rows that repeat cannot be written */
        world_gather(&w, &list.view, opts);
    }
    slice_list_free(&list);
    world_free(&w);
}

static void check_layout(int layout)
{
    watch_faults();
    for (int source = 0; source < SOURCE_COUNT; source++) {
        for (int cell = 0; cell < 45; cell++) {
            check_cell(layout, source, cell);
        }
    }
    assert_int_equal(pkv_isa_select(NULL), PKV_OK);
}

static void test_combined(void **state)
{
    (void)state;
    check_layout(LAYOUT_COMBINED);
}

static void test_nhd(void **state)
{
    (void)state;
    check_layout(LAYOUT_NHD);
}

static void test_hnd(void **state)
{
    (void)state;
    check_layout(LAYOUT_HND);
}

static void test_content(void **state)
{
    (void)state;
    check_layout(LAYOUT_CONTENT);
}

static void test_mla(void **state)
{
    (void)state;
    check_layout(LAYOUT_MLA);
}

static void test_padded(void **state)
{
    (void)state;
    check_layout(LAYOUT_PADDED);
}

static void test_keys_only(void **state)
{
    (void)state;
    check_layout(LAYOUT_K_ONLY);
}

/* ---- the same bytes from every instruction set, at every start and length  */

static void test_every_isa(void **state)
{
    (void)state;
    watch_faults();
    for (int32_t i = 0; pkv_isa_name(i) != NULL; i++) {
        if (!pkv_isa_usable(i)) {
            print_message("isa %s: not run, this processor lacks it\n", pkv_isa_name(i));
            continue;
        }
        assert_int_equal(pkv_isa_select(pkv_isa_name(i)), PKV_OK);
        assert_string_equal(pkv_isa_current(), pkv_isa_name(i));
        for (int64_t len = 1; len <= 60; len++) {
            const world_shape shape = {LAYOUT_NHD, SOURCE_APART, PKV_DTYPE_BF16, 9, 7, 2, 37, 37,
                                       63};
            world w;
            slice_list list;
            world_init(&w, &shape, FILL_RANDOM, (uint64_t)len);
            slice_list_init(&list, 1);
            slice_list_add(&list, (len * 5) % 3, len % 4, len);
            world_update(&w, &list.view, NULL);
            world_gather(&w, &list.view, NULL);
            slice_list_free(&list);
            world_free(&w);
        }
    }
    assert_int_equal(pkv_isa_select(NULL), PKV_OK);
}

/* ---- longer than a page, in all layouts ---------------------------------- */

static void test_slices_longer_than_pages(void **state)
{
    (void)state;
    watch_faults();
    for (int layout = 0; layout < LAYOUT_COUNT; layout++) {
        for (int64_t start = 0; start < 12; start++) {
            const world_shape shape = {layout, SOURCE_APART, PKV_DTYPE_F16, 12, 4, 2, 24, 24, 40};
            world w;
            slice_list list;
            world_init(&w, &shape, FILL_RANDOM, (uint64_t)start);
            slice_list_init(&list, 2);
            slice_list_add(&list, start, 1, 30);
            slice_list_add(&list, start + 30, 31, 5);
            world_update(&w, &list.view, NULL);
            world_gather(&w, &list.view, NULL);
            slice_list_free(&list);
            world_free(&w);
        }
    }
}

/* ---- update, then gather ------------------------------------------------- */

static void test_gather_gives_back_what_was_written(void **state)
{
    (void)state;
    for (int layout = 0; layout < LAYOUT_COUNT; layout++) {
        const world_shape shape = {layout, SOURCE_APART, PKV_DTYPE_F32, 10, 16, 3, 40, 40, 100};
        world w;
        slice_list list;
        world_init(&w, &shape, FILL_RANDOM, 9);
        slice_list_init(&list, 3);
        slice_list_add(&list, 60, 0, 33);
        slice_list_add(&list, 3, 33, 57);
        slice_list_add(&list, 159, 90, 1);
        world_update(&w, &list.view, NULL);

        size_t n_bytes = w.source_memory.room_bytes;
        unsigned char *back = test_alloc(n_bytes);
        memcpy(back, w.source_memory.data, n_bytes);
        const pkv_rows rows = world_rows(&w, back);
        memset(rows.k.data, 0x5A, (size_t)(91 * rows.k.token_stride_bytes));
        if (rows.v.data != NULL) {
            memset(rows.v.data, 0x5A, (size_t)(91 * rows.v.token_stride_bytes));
        }
        pkv_error err;
        expect_ok(pkv_gather(&w.cache, &rows, &list.view, NULL, &err), &err);
        expect_same_bytes("rows", back, w.source_memory.data, n_bytes);
        free(back);
        slice_list_free(&list);
        world_free(&w);
    }
}

/* ---- offsets beyond 2^31 and 2^32 bytes ---------------------------------- */

enum { FAR_TOKEN_BYTES = 4096, FAR_PAGE = 16, FAR_TOKENS = 40 };

/* More than 2^33 bytes of address space; only what is written becomes memory. */
static const int64_t far_pages = ((int64_t)1 << 33) / FAR_TOKEN_BYTES / FAR_PAGE + 3;

static void expect_far_token(const pkv_cache *cache, const pkv_new_kv *src, int64_t slot,
                             int64_t row)
{
    for (int64_t h = 0; h < 8; h++) {
        int64_t at = slot / FAR_PAGE * cache->k.page_stride_bytes +
                     slot % FAR_PAGE * cache->k.token_stride_bytes +
                     h * cache->k.head_stride_bytes;
        int64_t from = row * src->k.token_stride_bytes + h * src->k.head_stride_bytes;
        expect_same_bytes("K", (char *)cache->k.data + at, (const char *)src->k.data + from, 256);
        expect_same_bytes("V", (char *)cache->v.data + at, (const char *)src->v.data + from, 256);
    }
}

/* Slices around each power of two, and at the very end; then back by a gather. */
static void check_far(const char *name, pkv_cache *cache)
{
    static unsigned char rows[FAR_TOKENS * FAR_TOKEN_BYTES];
    fill(rows, sizeof rows, FILL_RANDOM, 10);
    pkv_new_kv src;
    assert_int_equal(pkv_new_kv_combined(&src, sizeof src, rows, FAR_TOKENS, 8, 128,
                                         PKV_DTYPE_BF16), PKV_OK);
    const int64_t slot_bytes = cache->k.page_stride_bytes / FAR_PAGE; /* on average */
    const int64_t ends = far_pages * FAR_PAGE;
    const int64_t starts[] = {((int64_t)1 << 31) / slot_bytes - 5,
                              ((int64_t)1 << 32) / slot_bytes - 5, ends - 10};
    slice_list list;
    slice_list_init(&list, 3);
    for (int i = 0; i < 3; i++) {
        note_case(name, 0, "slot %lld", (long long)starts[i]);
        slice_list_add(&list, starts[i], 10 * i + 3, 10);
    }
    pkv_error err;
    expect_ok(pkv_update(cache, &src, &list.view, NULL, &err), &err);
    for (int64_t i = 0; i < 30; i++) {
        expect_far_token(cache, &src, starts[i / 10] + i % 10, i + 3);
    }
    static unsigned char back[FAR_TOKENS * FAR_TOKEN_BYTES];
    pkv_rows out;
    assert_int_equal(pkv_rows_combined(&out, sizeof out, back, FAR_TOKENS, 8, 128,
                                       PKV_DTYPE_BF16), PKV_OK);
    expect_ok(pkv_gather(cache, &out, &list.view, NULL, &err), &err);
    expect_same_bytes("far rows", back + 3 * FAR_TOKEN_BYTES, rows + 3 * FAR_TOKEN_BYTES,
                      30 * FAR_TOKEN_BYTES);
    slice_list_free(&list);
}

static void test_offsets_beyond_32_bits(void **state)
{
    (void)state;
    watch_faults();
    size_t map_bytes = (size_t)far_pages * FAR_PAGE * FAR_TOKEN_BYTES;
    char *map = mmap(NULL, map_bytes, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    assert_true(map != MAP_FAILED);
    pkv_cache cache;
    assert_int_equal(pkv_cache_combined(&cache, sizeof cache, map, far_pages, FAR_PAGE, 8, 128,
                                        PKV_DTYPE_BF16), PKV_OK);
    check_far("combined", &cache);
    assert_int_equal(pkv_cache_content(&cache, sizeof cache, map, far_pages, FAR_PAGE, 8, 128, 128,
                                       PKV_DTYPE_BF16), PKV_OK);
    check_far("content", &cache);
    assert_int_equal(munmap(map, map_bytes), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_combined),
        cmocka_unit_test(test_nhd),
        cmocka_unit_test(test_hnd),
        cmocka_unit_test(test_content),
        cmocka_unit_test(test_mla),
        cmocka_unit_test(test_padded),
        cmocka_unit_test(test_keys_only),
        cmocka_unit_test(test_every_isa),
        cmocka_unit_test(test_slices_longer_than_pages),
        cmocka_unit_test(test_gather_gives_back_what_was_written),
        cmocka_unit_test(test_offsets_beyond_32_bits),
    };
    return cmocka_run_group_tests_name("update_layouts", tests, NULL, NULL);
}
