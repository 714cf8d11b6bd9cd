/* Given scales that are none to use: the head vectors that they are for stay as they were. */
#include <string.h>

#include "twin.h"

static const struct {
    uint32_t bits;
    bool     is_good;
} scales[] = {
    {0x00000000, false}, {0x80000000, false}, /* zeros */
    {0x00000001, false}, {0x007fffff, false}, /* subnormal */
    {0x00800000, true},  {0x7f7fffff, true},  /* the least and the most */
    {0x7f800000, false}, {0xff800000, false}, /* infinities */
    {0x7f800001, false}, {0x7fc00000, false}, {0xffffffff, false},
    {0x80800000, false}, {0xbf800000, false}, {0xff7fffff, false}, /* below zero */
    {0x3f800000, true},
};
enum { SCALES = sizeof scales / sizeof scales[0], HEADS = 5 };

typedef struct scaled {
    device     d;
    cw         w;
    twin       cache, rows;
    slice_list list;
    pkv_slices slices;
    bool       is_good[2][HEADS];
    bool       is_any_bad;
} scaled;

static void scaled_open(scaled *s, int turn, bool given)
{
    static const pkv_dtype dtypes[] = {PKV_DTYPE_FP8_E4M3, PKV_DTYPE_FP8_E5M2, PKV_DTYPE_INT8,
                                       PKV_DTYPE_INT4};
    const cw_shape shape = {.layout = turn % CW_LAYOUTS, .rows = turn % CW_ROWS,
                            .dtype = dtypes[turn % 4], .rows_dtype = PKV_DTYPE_F32 + turn % 3,
                            .n_pages = 5, .page_size = 4, .n_heads = HEADS, .head_dim = {16, 16},
                            .n_tokens = 18,
                            .kind = {!given          ? PKV_SCALES_TOKEN_HEAD
                                     : turn % 2 == 0 ? PKV_SCALES_TENSOR
                                                     : PKV_SCALES_HEAD,
                                     !given          ? PKV_SCALES_TOKEN_HEAD
                                     : turn % 3 == 0 ? PKV_SCALES_TENSOR
                                                     : PKV_SCALES_HEAD}};
    rng r = {(uint64_t)turn};
    device_open(&s->d);
    cw_init(&s->w, &shape, 50 + (uint64_t)turn);
    slice_list_init(&s->list, 12);
    cw_random_slices(&s->w, &r, &s->list);
    device_slices_init(&s->d, &s->slices, 12);
    device_slices_set(&s->d, &s->slices, &s->list, s->list.n);
}

static void scaled_close(scaled *s)
{
    twin_free(&s->d, &s->cache);
    twin_free(&s->d, &s->rows);
    slice_list_free(&s->list);
    device_slices_free(&s->d, &s->slices);
    cw_free(&s->w);
    device_close(&s->d);
}

/* Puts scales into the model's memory, from the i-th on, and notes which are good. */
static void set_scales(scaled *s, int i)
{
    const pkv_scales *of_plane[2] = {&s->w.model_cache.k_scales, &s->w.model_cache.v_scales};
    s->is_any_bad = false;
    for (int p = 0; p < 2; p++) {
        for (int64_t h = 0; h < HEADS; h++) {
            const pkv_scales *to = of_plane[p];
            const bool        one = to->kind == PKV_SCALES_TENSOR;
            const int         k = one ? (i + 7 * p) % SCALES : (i + 3 * (int)h + 7 * p) % SCALES;
            s->is_good[p][h] = to->kind == PKV_SCALES_NONE || scales[k].is_good;
            if (to->kind != PKV_SCALES_NONE && h < s->w.shape.n_heads) {
                memcpy((unsigned char *)to->data + (one ? 0 : h * to->head_stride_bytes),
                       &scales[k].bits, sizeof scales[k].bits);
                s->is_any_bad = s->is_any_bad || !scales[k].is_good;
            }
        }
    }
}

/* A plane's head vectors at a token: of the model they go back to what they were. */
static void keep(unsigned char *model, const unsigned char *before, int64_t at, int64_t n_bytes)
{
    memcpy(model + at, before + at, (size_t)n_bytes);
}

/* Of an update, with usual scales in the place of those that are none. */
static void model_of_update(scaled *s)
{
    const pkv_cache     *c = &s->w.model_cache;
    const pkv_plane     *planes[2] = {&c->k, &c->v};
    const unsigned char *start = s->w.model_memory;
    unsigned char       *before = test_alloc(s->w.memory.room_bytes);
    memcpy(before, start, s->w.memory.room_bytes);
    convert_update(c, &s->w.new_kv, &s->list.view);
    for (int64_t at = 0; at < 2 * c->n_heads * c->n_pages * c->page_size; at++) {
        const int64_t    p = at % 2, h = at / 2 % c->n_heads, slot = at / 2 / c->n_heads;
        const pkv_plane *plane = planes[p];
        if (plane->head_dim > 0 && !s->is_good[p][h]) {
            const unsigned char *vector =
                (const unsigned char *)plane->data +
                slot / c->page_size * plane->page_stride_bytes +
                slot % c->page_size * plane->token_stride_bytes + h * plane->head_stride_bytes;
            keep(s->w.model_memory, before, vector - start,
                 model_row_bytes(c->dtype, plane->head_dim));
        }
    }
    free(before);
}

static void test_updates(void **state)
{
    (void)state;
    static scaled s;
    for (int turn = 0; turn < 24; turn++) {
        scaled_open(&s, turn, true);
        s.rows = twin_new(&s.d, s.w.rows_memory.data, s.w.rows_memory.room_bytes);
        s.cache = twin_new(&s.d, s.w.model_memory, s.w.memory.room_bytes);
        const pkv_cache  cache = twin_cache(&s.cache, &s.w.model_cache);
        const pkv_new_kv new_kv = twin_new_kv(&s.rows, &s.w.new_kv);
        for (int i = 0; i < SCALES; i++) {
            pkv_error err;
            set_scales(&s, i);
            twin_push(&s.d, &s.cache);
            cw_note(&s.w, (uint64_t)i, "given scales");
            expect_ok(pkv_cuda_update(s.d.cuda, &cache, &new_kv, &s.slices,
                                      i % 4 == 3 ? NULL : &s.d.opts, &err, s.d.stream), &err);
            device_expect_status(&s.d, s.is_any_bad && i % 4 != 3 ? PKV_CUDA_FAULT_SCALE : 0);
            model_of_update(&s);
            twin_expect(&s.d, &s.cache, s.w.model_memory, "cache");
        }
        scaled_close(&s);
    }
}

/* Of a gather: where a scale is none to use, the row's head vector stays. */
static void model_of_gather(const scaled *s, unsigned char *memory)
{
    const pkv_rows        rows = cw_rows(&s->w, memory);
    const pkv_rows_plane *planes[2] = {&rows.k, &rows.v};
    unsigned char        *before = test_alloc(s->w.rows_memory.room_bytes);
    memcpy(before, memory, s->w.rows_memory.room_bytes);
    convert_gather(&s->w.model_cache, &rows, &s->list.view);
    for (int64_t at = 0; at < 2 * rows.n_heads * rows.n_tokens; at++) {
        const int64_t         p = at % 2, h = at / 2 % rows.n_heads, t = at / 2 / rows.n_heads;
        const pkv_rows_plane *plane = planes[p];
        if (plane->head_dim > 0 && !s->is_good[p][h]) {
            const unsigned char *vector = (const unsigned char *)plane->data +
                                          t * plane->token_stride_bytes +
                                          h * plane->head_stride_bytes;
            keep(memory, before, vector - memory, model_row_bytes(rows.dtype, plane->head_dim));
        }
    }
    free(before);
}

static void test_gathers(void **state)
{
    (void)state;
    static scaled s;
    for (int turn = 0; turn < 24; turn++) {
        scaled_open(&s, turn, true);
        unsigned char *model = test_alloc(s.w.rows_memory.room_bytes);
        fill(model, s.w.rows_memory.room_bytes, FILL_RANDOM, 3);
        s.rows = twin_new(&s.d, model, s.w.rows_memory.room_bytes);
        s.cache = twin_new(&s.d, s.w.model_memory, s.w.memory.room_bytes);
        const pkv_cache cache = twin_cache(&s.cache, &s.w.model_cache);
        const pkv_rows  of_model = cw_rows(&s.w, model);
        const pkv_rows  rows = twin_rows(&s.rows, &of_model);
        for (int i = 0; i < SCALES; i++) {
            pkv_error err;
            set_scales(&s, i);
            twin_push(&s.d, &s.cache);
            cw_note(&s.w, (uint64_t)i, "given scales, gathered");
            expect_ok(pkv_cuda_gather(s.d.cuda, &cache, &rows, &s.slices, &s.d.opts, &err,
                                      s.d.stream), &err);
            device_expect_status(&s.d, s.is_any_bad ? PKV_CUDA_FAULT_SCALE : 0);
            model_of_gather(&s, model);
            twin_expect(&s.d, &s.rows, model, "rows");
            twin_expect(&s.d, &s.cache, s.w.model_memory, "only read");
        }
        free(model);
        scaled_close(&s);
    }
}

/* Of every token and head, whatever is none to use as a given scale. */
static void set_computed(const scaled *s)
{
    const pkv_cache  *c = &s->w.model_cache;
    const pkv_scales *planes[2] = {&c->k_scales, &c->v_scales};
    for (int64_t at = 0; at < 2 * c->n_heads * c->n_pages * c->page_size; at++) {
        const int64_t     h = at / 2 % c->n_heads, slot = at / 2 / c->n_heads;
        const pkv_scales *to = planes[at % 2];
        if (to->kind != PKV_SCALES_NONE) {
            memcpy((unsigned char *)to->data + slot / c->page_size * to->page_stride_bytes +
                       slot % c->page_size * to->token_stride_bytes + h * to->head_stride_bytes,
                   &scales[at % SCALES].bits, sizeof(uint32_t));
        }
    }
}

/* Computed scales are multiplied with as they stand: nobody promised anything of them. */
static void test_computed(void **state)
{
    (void)state;
    static scaled s;
    for (int turn = 0; turn < 24; turn++) {
        pkv_error err;
        scaled_open(&s, turn, false);
        set_computed(&s);
        unsigned char *model = test_alloc(s.w.rows_memory.room_bytes);
        fill(model, s.w.rows_memory.room_bytes, FILL_RANDOM, 3);
        s.rows = twin_new(&s.d, model, s.w.rows_memory.room_bytes);
        s.cache = twin_new(&s.d, s.w.model_memory, s.w.memory.room_bytes);
        const pkv_cache cache = twin_cache(&s.cache, &s.w.model_cache);
        const pkv_rows  of_model = cw_rows(&s.w, model);
        const pkv_rows  rows = twin_rows(&s.rows, &of_model);
        cw_note(&s.w, (uint64_t)turn, "computed scales, gathered");
        expect_ok(pkv_cuda_gather(s.d.cuda, &cache, &rows, &s.slices, &s.d.opts, &err,
                                  s.d.stream), &err);
        device_expect_status(&s.d, 0);
        convert_gather(&s.w.model_cache, &of_model, &s.list.view);
        twin_expect(&s.d, &s.rows, model, "rows");
        free(model);
        scaled_close(&s);
    }
}

/* A scale that nobody needs is not looked at; a bad slice and a bad scale both show. */
static void test_with_slices(void **state)
{
    (void)state;
    static scaled s;
    pkv_error     err;
    scaled_open(&s, 8, true);
    s.rows = twin_new(&s.d, s.w.rows_memory.data, s.w.rows_memory.room_bytes);
    s.cache = twin_new(&s.d, s.w.model_memory, s.w.memory.room_bytes);
    const pkv_cache  cache = twin_cache(&s.cache, &s.w.model_cache);
    const pkv_new_kv new_kv = twin_new_kv(&s.rows, &s.w.new_kv);
    set_scales(&s, 0);
    twin_push(&s.d, &s.cache);
    for (int turn = 0; turn < 2; turn++) {
        s.list.n = 0;
        slice_list_add(&s.list, 0, 0, turn);
        slice_list_add(&s.list, 0, -1, 1);
        device_slices_set(&s.d, &s.slices, &s.list, 2);
        expect_ok(pkv_cuda_update(s.d.cuda, &cache, &new_kv, &s.slices, &s.d.opts, &err,
                                  s.d.stream), &err);
        device_expect_status(&s.d, turn == 0 ? 1 : PKV_CUDA_FAULT_SCALE + 1);
        s.list.n = 1;
        model_of_update(&s);
        twin_expect(&s.d, &s.cache, s.w.model_memory, "cache");
    }
    scaled_close(&s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_updates),
        cmocka_unit_test(test_gathers),
        cmocka_unit_test(test_computed),
        cmocka_unit_test(test_with_slices),
    };
    const int absent = cuda_absent();
    return absent != 0 ? absent : cmocka_run_group_tests(tests, NULL, NULL);
}
