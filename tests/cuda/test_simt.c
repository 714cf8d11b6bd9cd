/*
 * The kernels with all their threads (simt.h) against the same kernels with one thread for a
 * block (emulated.h), byte for byte: few jobs, each with something that only threads can get
 * wrong.  Under the thread sanitizer a barrier that is missing is a race.
 */
#include "simt.h"

#include <string.h>

#include "../../src/cuda/work.h"
#include "../support.h"
#include "emulated.h"

enum { ROOM = 3 << 20 };

/* All memory of a job, so that every byte of it is compared. */
typedef struct arena {
    unsigned char *data, *before, *found;
    size_t         used;
    rng            r;
} arena;

static void arena_open(arena *a, uint64_t seed)
{
    watch_faults();
    *a = (arena){.data = aligned_alloc(64, ROOM), .before = test_alloc(ROOM),
                 .found = test_alloc(ROOM), .r = {seed}};
    assert_non_null(a->data);
    fill(a->data, ROOM, FILL_RANDOM, seed);
    note_case("threads", seed, "made");
}

static void arena_close(arena *a)
{
    free(a->data);
    free(a->before);
    free(a->found);
}

/* `off` bytes behind a place that is aligned to 64. */
static void *take(arena *a, int64_t n_bytes, int64_t off)
{
    unsigned char *at = a->data + a->used + off;
    a->used += (size_t)(off + n_bytes + 63) / 64 * 64;
    assert_true(a->used <= ROOM);
    return at;
}

/* ---- both ways ---------------------------------------------------------------------- */

#define NAME(name, job) "pkv_" #name,
#define CAST_NAME(from, to, from_dtype, to_dtype) "pkv_cast_" #from "_" #to,
static const char *const names[PKV_I_CUDA_KERNELS] = {
    PKV_I_CUDA_COPIES(NAME) PKV_I_CUDA_PLANS(NAME) PKV_I_CASTS(CAST_NAME)};

static void run_both(arena *a, int kernel, const void *job, uint32_t n_blocks)
{
    const emulated_kernel *one = emulated_find(names[kernel]);
    const simt_kernel     *all = simt_find(names[kernel]);
    char                   why[300];
    assert_true(one != NULL && all != NULL);
    note_case("threads", 0, "%s, %u blocks", names[kernel], (unsigned int)n_blocks);
    memcpy(a->before, a->data, ROOM);
    if (!simt_run(all, job, n_blocks, why, sizeof why)) {
        fail_msg("%s: %s", names[kernel], why);
    }
    memcpy(a->found, a->data, ROOM);
    memcpy(a->data, a->before, ROOM);
    for (uint32_t block = 0; block < n_blocks; block++) {
        one->run_block(job, block, n_blocks);
    }
    expect_same_bytes("by threads and by one", a->found, a->data, ROOM);
}

/* ---- views and lists ---------------------------------------------------------------- */

typedef struct shape {
    pkv_dtype dtype, rows_dtype;
    int64_t   n_heads, head_dim[2]; /* [1] 0: no V */
    int32_t   kind[2];              /* of scales */
    int64_t   group;                /* of PKV_SCALES_GROUP */
    bool      by_head;              /* heads outside tokens */
    int64_t   pad;                  /* bytes before each head vector */
    bool      gather;
    int       kernel;
    uint32_t  team;
    int64_t   capacity, n_pages, page_size;
} shape;

static void put_scales(arena *a, const shape *s, pkv_i_view *v, int p)
{
    const int64_t n = s->kind[p] == PKV_SCALES_GROUP ? v->head_dim[p] / s->group : 1;
    pkv_i_scales *to = &v->scales[p];
    int64_t       all = 1;
    *to = (pkv_i_scales){.kind = s->kind[p], .group = v->head_dim[p] / n};
    if (s->kind[p] == PKV_SCALES_NONE) {
        return;
    }
    v->has_scales = true;
    if (s->kind[p] != PKV_SCALES_TENSOR) {
        to->head_stride_bytes = 4 * n;
        all = n * v->n_heads;
    }
    if (s->kind[p] == PKV_SCALES_TOKEN_HEAD || s->kind[p] == PKV_SCALES_GROUP) {
        to->token_stride_bytes = 4 * all;
        to->page_stride_bytes = 4 * all * v->page_size;
        all *= v->page_size * v->n_pages;
    }
    to->data = take(a, 4 * all, 0);
    for (int64_t i = 0; i < all; i++) {
        const uint32_t bits = (uint32_t)rng_range(&a->r, 118 << 23, 129 << 23);
        memcpy(to->data + 4 * i, &bits, sizeof bits);
    }
}

static pkv_i_view put_view(arena *a, const shape *s, bool rows)
{
    pkv_i_view v = {.n_pages = rows ? 1 : s->n_pages, .n_heads = s->n_heads,
                    .page_size = rows ? s->n_pages * s->page_size : s->page_size,
                    .dtype = rows ? s->rows_dtype : s->dtype,
                    .n_planes = s->head_dim[1] > 0 ? 2 : 1};
    for (int p = 0; p < v.n_planes; p++) {
        pkv_i_plane  *plane = &v.plane[p];
        const int64_t n_bytes = pkv_i_dtype_bytes(v.dtype, s->head_dim[p]), unit = n_bytes + s->pad;
        v.head_dim[p] = s->head_dim[p];
        plane->head_bytes = n_bytes;
        plane->token_stride_bytes = s->by_head ? unit : unit * v.n_heads;
        plane->head_stride_bytes = s->by_head ? unit * v.page_size : unit;
        plane->page_stride_bytes = unit * v.n_heads * v.page_size;
        plane->data = take(a, plane->page_stride_bytes * v.n_pages, s->pad);
    }
    for (int p = 0; p < v.n_planes && !rows; p++) {
        put_scales(a, s, &v, p);
    }
    return v;
}

/* Columns and two numbers: count and status. */
typedef struct list {
    pkv_slices slices;
    int32_t   *numbers;
    int32_t    n_bad;
} list;

static list put_list(arena *a, int64_t capacity)
{
    int32_t *at = take(a, 3 * capacity * 4, 0);
    list     l = {.numbers = take(a, 8, 0)};
    l.slices = (pkv_slices){.struct_size = sizeof l.slices, .kv_cache_start = at,
                            .new_kv_start = at + capacity, .slice_len = at + 2 * capacity,
                            .capacity = capacity, .num_slices = l.numbers};
    l.numbers[0] = (int32_t)capacity;
    l.numbers[1] = 0;
    return l;
}

static void swap_columns(const pkv_slices *s, int64_t i, int64_t k)
{
    int32_t *const columns[] = {s->kv_cache_start, s->new_kv_start, s->slice_len};
    for (int c = 0; c < 3; c++) {
        const int32_t was = columns[c][i];
        columns[c][i] = columns[c][k];
        columns[c][k] = was;
    }
}

/* Disjoint slots and rows in any order, every 41st entry wrong in one of four ways. */
static void fill_list(arena *a, list *l, int64_t n_slots)
{
    const pkv_slices *s = &l->slices;
    int64_t           slot = 0;
    for (int64_t i = 0; i < s->capacity; i++) {
        const int64_t left = s->capacity - i, room = (n_slots - slot) / left;
        const int64_t len = rng_range(&a->r, 0, 2 * room < n_slots - slot ? 2 * room : room);
        s->kv_cache_start[i] = (int32_t)slot;
        s->new_kv_start[i] = (int32_t)(n_slots - slot - len);
        s->slice_len[i] = (int32_t)len;
        slot += len;
        if (i % 41 == 40) {
            int32_t *const columns[] = {s->kv_cache_start, s->new_kv_start, s->slice_len};
            columns[i / 41 % 3][i] = i % 2 == 0 ? -1 : (int32_t)n_slots + 1;
            l->n_bad++;
        }
    }
    for (int64_t i = s->capacity - 1; i > 0; i--) {
        swap_columns(s, i, rng_range(&a->r, 0, i));
    }
}

static void expect_work(const pkv_i_work *w, const shape *s)
{
    assert_int_equal(w->kernel, s->kernel);
    if (s->team > 0) {
        assert_int_equal(w->job.cast.team, s->team);
    }
}

/* n_layers (1 or 2) of a shape; the second has the first one's scales. */
static void run_shape(const shape *s, uint32_t n_layers, int32_t faults, uint32_t n_blocks)
{
    arena      a;
    pkv_i_work w, more;
    pkv_error  err = {0};
    arena_open(&a, (uint64_t)s->kernel * 1000 + (uint64_t)s->capacity);
    pkv_i_view       cache = put_view(&a, s, false);
    const pkv_i_view rows = put_view(&a, s, true);
    list             l = put_list(&a, s->capacity);
    fill_list(&a, &l, s->n_pages * s->page_size);
    if ((faults & PKV_CUDA_FAULT_SCALE) != 0) {
        memset(cache.scales[0].data + cache.scales[0].head_stride_bytes, 0, 4); /* of head 1 */
    }
    expect_ok(pkv_i_work_of_slices(&w, &cache, &rows, s->gather, &l.slices, &l.numbers[1], &err),
              &err);
    if (n_layers == 2) {
        const pkv_i_view other = put_view(&a, s, true);
        cache.plane[0].data = take(&a, cache.plane[0].page_stride_bytes * s->n_pages, s->pad);
        cache.plane[1].data = take(&a, cache.plane[1].page_stride_bytes * s->n_pages, s->pad);
        expect_ok(pkv_i_work_of_slices(&more, &cache, &other, s->gather, &l.slices,
                                       &l.numbers[1], &err), &err);
        w.job.copy.layer[1] = more.job.copy.layer[0]; /* of copies */
    }
    w.job.copy.list.n_layers = n_layers; /* at the same place in both jobs */
    expect_work(&w, s);
    run_both(&a, w.kernel, &w.job, n_blocks);
    assert_memory_not_equal(a.data, a.before, ROOM);
    assert_int_equal(l.numbers[1], l.n_bad * (int32_t)n_layers + faults);
    arena_close(&a);
}

/* ---- updates and gathers ------------------------------------------------------------ */

static void test_copies(void **state)
{
    (void)state;
    static const shape s[] = {
        {.dtype = 3, .rows_dtype = 3, .n_heads = 2, .head_dim = {24, 24}, .capacity = 2500,
         .n_pages = 180, .page_size = 16, .kernel = PKV_I_CUDA_copy_16},
        {.dtype = 3, .rows_dtype = 3, .n_heads = 1, .head_dim = {12, 12}, .capacity = 300,
         .n_pages = 40, .page_size = 7, .kernel = PKV_I_CUDA_copy_8, .gather = true},
        {.dtype = 6, .rows_dtype = 6, .n_heads = 3, .head_dim = {12, 20}, .capacity = 5,
         .n_pages = 9, .page_size = 32, .kernel = PKV_I_CUDA_copy_4, .by_head = true},
        {.dtype = 4, .rows_dtype = 4, .n_heads = 1, .head_dim = {6}, .capacity = 600,
         .n_pages = 400, .page_size = 1, .kernel = PKV_I_CUDA_copy_2},
        {.dtype = 6, .rows_dtype = 6, .n_heads = 3, .head_dim = {7, 7}, .capacity = 1030,
         .n_pages = 70, .page_size = 16, .kernel = PKV_I_CUDA_copy_1, .pad = 1},
    };
    run_shape(&s[0], 2, 0, 2);
    run_shape(&s[1], 1, 0, 3);
    run_shape(&s[2], 1, 0, 2);
    run_shape(&s[3], 1, 0, 1);
    run_shape(&s[4], 1, 0, 2);
}

static void test_counts(void **state)
{
    (void)state;
    static const struct {
        int32_t capacity, n, status;
    } cases[] = {{20, 0, 0}, {20, -1, PKV_CUDA_FAULT_COUNT}, {20, 21, PKV_CUDA_FAULT_COUNT},
                 {0, 0, 0}};
    static const shape s = {.dtype = 3, .rows_dtype = 3, .n_heads = 2, .head_dim = {8, 8},
                            .n_pages = 3, .page_size = 16};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        arena      a;
        pkv_i_work w;
        arena_open(&a, i);
        const pkv_i_view cache = put_view(&a, &s, false), rows = put_view(&a, &s, true);
        list             l = put_list(&a, cases[i].capacity);
        fill_list(&a, &l, 48);
        l.numbers[0] = cases[i].n;
        expect_ok(pkv_i_work_of_slices(&w, &cache, &rows, false, &l.slices, &l.numbers[1], NULL),
                  NULL);
        w.job.copy.list.n_layers = 1;
        run_both(&a, w.kernel, &w.job, 2);
        assert_int_equal(l.numbers[1], cases[i].status);
        arena_close(&a);
    }
}

static void test_casts(void **state)
{
    (void)state;
    static const shape s[] = {
        {.dtype = 4, .rows_dtype = 1, .n_heads = 3, .head_dim = {64, 40}, .capacity = 1100,
         .n_pages = 80, .page_size = 16, .kind = {PKV_SCALES_HEAD, PKV_SCALES_HEAD},
         .kernel = PKV_I_CUDA_cast_f32_e4m3, .team = 8},
        {.dtype = 6, .rows_dtype = 3, .n_heads = 2, .head_dim = {256, 100}, .capacity = 40,
         .n_pages = 9, .page_size = 16, .kind = {PKV_SCALES_TOKEN_HEAD, PKV_SCALES_TOKEN_HEAD},
         .kernel = PKV_I_CUDA_cast_bf16_int8, .team = 32},
        {.dtype = 7, .rows_dtype = 3, .n_heads = 3, .head_dim = {32, 16}, .capacity = 130,
         .n_pages = 20, .page_size = 7, .kind = {PKV_SCALES_GROUP, PKV_SCALES_GROUP}, .group = 8,
         .kernel = PKV_I_CUDA_cast_bf16_int4, .team = 1},
        {.dtype = 7, .rows_dtype = 2, .n_heads = 5, .head_dim = {98, 6}, .capacity = 1200,
         .n_pages = 30, .page_size = 16, .kind = {PKV_SCALES_TOKEN_HEAD, PKV_SCALES_TENSOR},
         .kernel = PKV_I_CUDA_cast_f16_int4, .team = 16, .by_head = true, .pad = 1},
        {.dtype = 6, .rows_dtype = 3, .n_heads = 2, .head_dim = {16, 16}, .capacity = 60,
         .n_pages = 9, .page_size = 16, .kind = {PKV_SCALES_TOKEN_HEAD, PKV_SCALES_GROUP},
         .group = 8, .kernel = PKV_I_CUDA_cast_int8_bf16, .team = 2, .gather = true},
        {.dtype = 5, .rows_dtype = 1, .n_heads = 8, .head_dim = {300, 2}, .capacity = 30,
         .n_pages = 5, .page_size = 4, .kernel = PKV_I_CUDA_cast_e5m2_f32, .team = 32,
         .gather = true},
        {.dtype = 4, .rows_dtype = 3, .n_heads = 4, .head_dim = {32, 30}, .capacity = 100,
         .n_pages = 20, .page_size = 16, .kind = {PKV_SCALES_GROUP, PKV_SCALES_TOKEN_HEAD},
         .group = 16, .kernel = PKV_I_CUDA_cast_bf16_e4m3, .team = 4},
    };
    run_shape(&s[0], 1, PKV_CUDA_FAULT_SCALE, 2);
    run_shape(&s[1], 1, 0, 2);
    for (size_t i = 2; i < sizeof s / sizeof s[0]; i++) {
        run_shape(&s[i], 1, 0, 1 + (uint32_t)i % 2);
    }
}

/* ---- pages -------------------------------------------------------------------------- */

/* Copies of pages into other places of a second cache; some of another group, some wrong. */
static void test_pages(void **state)
{
    (void)state;
    enum { PAGES = 1300 };
    arena     a;
    shape     s = {.dtype = 3, .n_heads = 2, .head_dim = {4, 4}, .n_pages = PAGES, .page_size = 3,
                   .kind = {PKV_SCALES_TOKEN_HEAD, PKV_SCALES_TOKEN_HEAD}};
    arena_open(&a, 5);
    const pkv_i_view wide = put_view(&a, &s, false);
    s.dtype = 6;
    const pkv_i_view src = put_view(&a, &s, false), dst = put_view(&a, &s, false);
    pkv_page_copy   *copies = take(&a, PAGES * (int64_t)sizeof *copies, 0);
    int32_t         *numbers = take(&a, 8, 0), n_bad = 0;
    numbers[0] = PAGES;
    for (int32_t i = 0; i < PAGES; i++) {
        copies[i] = (pkv_page_copy){.group = i % 5 == 3, .src = i * 7 % PAGES,
                                    .dst = PAGES - 1 - i, .n_tokens = 1 + i % 3};
        if (i % 100 == 40) {
            copies[i].n_tokens = 4 - i / 100 % 3 * 2; /* 4, 2 or 0 */
            n_bad += copies[i].n_tokens != 2;
        }
    }
    const pkv_i_page_list pages = {copies, &numbers[0], PAGES, &numbers[1]};
    pkv_i_work            w[3];
    expect_ok(pkv_i_work_of_pages(&w[0], &src, &dst, &pages, 0, NULL), NULL);
    expect_ok(pkv_i_work_of_page_scales(&w[1], &src, &dst, &pages, 0, NULL), NULL);
    expect_ok(pkv_i_work_of_pages(&w[2], &wide, &dst, &pages, 0, NULL), NULL);
    assert_int_equal(w[2].kernel, PKV_I_CUDA_cast_bf16_int8);
    for (int i = 0; i < 3; i++) {
        numbers[1] = 0;
        w[i].job.copy.list.n_layers = 1;
        run_both(&a, w[i].kernel, &w[i].job, 2);
        assert_memory_not_equal(a.data, a.before, ROOM);
        assert_int_equal(numbers[1], i == 1 ? 0 : n_bad);
    }
    arena_close(&a);
}

/* ---- plans -------------------------------------------------------------------------- */

enum { REQUESTS = 700, WIDTH = 9, TOKENS = 3000 };

static void run_plan(arena *a, int kernel, const pkv_i_plan_job *job, bool good)
{
    *job->status = 0;
    run_both(a, kernel, job, 1);
    assert_int_equal(*job->status, good ? 0 : PKV_CUDA_FAULT_COUNT);
    assert_true(good ? *job->num_slices > 0 : *job->num_slices == -1);
}

static pkv_i_plan_job put_plan(arena *a)
{
    const list l = put_list(a, 4000);
    return (pkv_i_plan_job){.cache_start = l.slices.kv_cache_start, .len = l.slices.slice_len,
                            .rows_start = l.slices.new_kv_start, .capacity = l.slices.capacity,
                            .num_slices = l.slices.num_slices, .status = &l.numbers[1],
                            .page_size = 16, .exact = 1};
}

static void test_plan_pages(void **state)
{
    (void)state;
    arena a;
    arena_open(&a, 6);
    pkv_i_plan_job job = put_plan(&a);
    int32_t *context = take(&a, REQUESTS * 4, 0), *starts = take(&a, (REQUESTS + 1) * 4, 0);
    int32_t *table = take(&a, REQUESTS * WIDTH * 4, 0), *n = take(&a, 4, 0);
    starts[0] = 0;
    for (int32_t r = 0; r < REQUESTS; r++) {
        const int32_t scheduled = (int32_t)rng_range(&a.r, 0, 40);
        context[r] = scheduled + (int32_t)rng_range(&a.r, 0, 100);
        starts[r + 1] = starts[r] + scheduled;
        for (int32_t p = 0; p < WIDTH; p++) {
            table[r * WIDTH + p] = r * WIDTH + (p / 3 * 3 + 2 * p) % WIDTH; /* some neighbours */
        }
    }
    *n = REQUESTS;
    job.context_lens = context;
    job.query_start_loc = starts;
    job.block_table = table;
    job.num_seqs = n;
    job.max_num_reqs = REQUESTS;
    job.table_stride = job.table_width = WIDTH;
    job.n_pages = REQUESTS * WIDTH;
    run_plan(&a, PKV_I_CUDA_plan_pages, &job, true);
    job.exact = 0;
    run_plan(&a, PKV_I_CUDA_plan_pages, &job, true);
    pkv_i_plan_job bad = job;
    bad.capacity = *job.num_slices - 1;
    run_plan(&a, PKV_I_CUDA_plan_pages, &bad, false);
    bad = job;
    bad.n_pages = 100; /* for most threads */
    run_plan(&a, PKV_I_CUDA_plan_pages, &bad, false);
    bad = job;
    bad.max_num_reqs = REQUESTS - 1;
    run_plan(&a, PKV_I_CUDA_plan_pages, &bad, false);
    context[REQUESTS / 2] = starts[REQUESTS / 2 + 1] - starts[REQUESTS / 2] - 1; /* for one */
    run_plan(&a, PKV_I_CUDA_plan_pages, &job, false);
    *n = 0;
    *job.status = 0;
    run_both(&a, PKV_I_CUDA_plan_pages, &job, 1);
    assert_int_equal(*job.num_slices, 0);
    arena_close(&a);
}

static void test_plan_slots(void **state)
{
    (void)state;
    arena a;
    arena_open(&a, 7);
    pkv_i_plan_job job = put_plan(&a);
    int32_t *slots = take(&a, TOKENS * 4, 0), *starts = take(&a, 4 * 4, 0), *n = take(&a, 4, 0);
    int64_t *longs = take(&a, TOKENS * 8, 0);
    for (int32_t i = 0; i < TOKENS; i++) {
        const bool goes_on = i > 0 && slots[i - 1] >= 0 && rng_range(&a.r, 0, 9) > 0;
        slots[i] = goes_on ? slots[i - 1] + 1 : (int32_t)rng_range(&a.r, -1, 9000);
        longs[i] = slots[i];
    }
    *n = 3;
    memcpy(starts, (const int32_t[]){0, 1000, 1001, TOKENS}, 16);
    job.slots64 = longs;
    job.n_tokens = TOKENS;
    job.n_slots = 1 << 20;
    run_plan(&a, PKV_I_CUDA_plan_slots, &job, true);
    job.slots64 = NULL;
    job.slots32 = slots;
    job.query_start_loc = starts;
    job.num_seqs = n;
    job.max_num_reqs = 3;
    job.exact = 0;
    run_plan(&a, PKV_I_CUDA_plan_slots, &job, true);
    pkv_i_plan_job bad = job;
    bad.capacity = *job.num_slices - 1;
    run_plan(&a, PKV_I_CUDA_plan_slots, &bad, false);
    bad = job;
    bad.n_slots = 100;
    run_plan(&a, PKV_I_CUDA_plan_slots, &bad, false);
    slots[1999] = -2;
    run_plan(&a, PKV_I_CUDA_plan_slots, &job, false);
    arena_close(&a);
}

/* ---- what must be found ------------------------------------------------------------- */

static void test_mistakes(void **state)
{
    (void)state;
    static const struct {
        const char *name, *why;
    } cases[] = {{"leaves", "the end"}, {"parts", "simt_kernels.c:"}, {"misses", "for lane 31"},
                 {"strays", "is not of mask"}};
    const double patience = simt_patience_s;
    simt_patience_s = 0.2;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char why[300] = "";
        assert_false(simt_run(simt_find(cases[i].name), NULL, 2, why, sizeof why));
        if (strstr(why, cases[i].why) == NULL) {
            fail_msg("%s: %s", cases[i].name, why);
        }
    }
    simt_patience_s = patience;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_mistakes),   cmocka_unit_test(test_copies),
        cmocka_unit_test(test_counts),     cmocka_unit_test(test_casts),
        cmocka_unit_test(test_pages),      cmocka_unit_test(test_plan_pages),
        cmocka_unit_test(test_plan_slots),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
