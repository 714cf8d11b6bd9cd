/*
 * Pages copied inside caches and between them, against a plain model: layouts, dtypes,
 * scales, layers, groups, parts; and which copies are refused for what they write and read.
 */
#include "convert_world.h"

#include <string.h>

enum { MOST_LAYERS = 4, MOST_COPIES = 64 };

static void select_isa(uint64_t wish)
{
    uint64_t n = 0;
    while (pkv_isa_name((int32_t)n) != NULL) {
        n++;
    }
    const int32_t i = (int32_t)(wish % n);
    assert_int_equal(pkv_isa_select(pkv_isa_usable(i) ? pkv_isa_name(i) : NULL), PKV_OK);
}

static void in_odd_order(void *user, int32_t n_parts, pkv_parallel_body body, void *ctx)
{
    *(int32_t *)user = n_parts;
    for (int32_t p = n_parts - 1; p >= 0; p--) {
        body(ctx, p);
    }
}

/* ---- shapes ------------------------------------------------------------------------------ */

/* A layout that two planes of one head_dim, or keys alone, can have. */
static int any_layout(rng *r, bool keys_only, int64_t n_heads)
{
    static const int two[] = {CW_COMBINED, CW_NHD, CW_HND, CW_CONTENT, CW_PADDED, CW_MLA};
    if (keys_only) {
        return n_heads == 1 && rng_range(r, 0, 1) == 0 ? CW_MLA_KEYS : CW_KEYS;
    }
    return two[rng_range(r, 0, n_heads == 1 ? 5 : 4)];
}

/* A cache's shape; its rows have another dtype, so that scales may be computed. */
static cw_shape any_shape(rng *r)
{
    static const int64_t page_sizes[] = {1, 3, 16}, heads[] = {1, 3, 8}, dims[] = {2, 16, 80, 100};
    cw_shape s = {.place = (int)rng_range(r, 0, CW_PLACES - 1),
                  .dtype = (pkv_dtype)rng_range(r, PKV_DTYPE_F32, PKV_DTYPE_INT4),
                  .n_pages = rng_range(r, 8, 20), .page_size = page_sizes[rng_range(r, 0, 2)],
                  .n_heads = heads[rng_range(r, 0, 2)], .n_tokens = 1};
    s.rows_dtype = s.dtype == PKV_DTYPE_F32 ? PKV_DTYPE_F16 : PKV_DTYPE_F32;
    s.head_dim[0] = s.head_dim[1] = dims[rng_range(r, 0, 3)];
    s.layout = any_layout(r, rng_range(r, 0, 4) == 0, s.n_heads);
    for (int p = 0; p < 2; p++) {
        s.kind[p] = (int32_t)rng_range(r, PKV_SCALES_NONE, PKV_SCALES_GROUP);
        s.n_groups[p] = (int32_t)rng_range(r, 1, 5);
    }
    return s;
}

/* One that pages of `a` can go to: of its dtype with its scales, or of another one. */
static cw_shape partner_of(const cw_shape *a, rng *r)
{
    cw_shape s = any_shape(r);
    s.page_size = a->page_size;
    s.n_heads = a->n_heads;
    s.head_dim[0] = a->head_dim[0];
    s.head_dim[1] = a->head_dim[0];
    s.layout = any_layout(r, a->layout == CW_KEYS || a->layout == CW_MLA_KEYS, a->n_heads);
    if (rng_range(r, 0, 2) == 0 || !(model_converts(a->dtype, s.dtype))) {
        s.dtype = a->dtype;
        memcpy(s.kind, a->kind, sizeof s.kind);
        memcpy(s.n_groups, a->n_groups, sizeof s.n_groups);
    }
    s.rows_dtype = s.dtype == PKV_DTYPE_F32 ? PKV_DTYPE_F16 : PKV_DTYPE_F32;
    return s;
}

/* Given scales of one dtype must be equal: the other's own ones, or the same memory. */
static void equal_scales(cw *src, cw *dst, bool same_memory)
{
    pkv_scales *from[2] = {&src->cache.k_scales, &src->cache.v_scales};
    pkv_scales *to[2] = {&dst->cache.k_scales, &dst->cache.v_scales};
    for (int p = 0; p < 2 && src->shape.dtype == dst->shape.dtype; p++) {
        const int32_t kind = from[p]->kind;
        const int64_t n = kind == PKV_SCALES_TENSOR ? 1
                          : kind == PKV_SCALES_HEAD ? src->shape.n_heads
                                                    : 0;
        for (int64_t h = 0; h < n && !same_memory; h++) {
            const unsigned char *own = (unsigned char *)from[p]->data +
                                       h * from[p]->head_stride_bytes;
            unsigned char       *other = (unsigned char *)to[p]->data +
                                         h * to[p]->head_stride_bytes;
            memcpy(other, own, 4);
            memcpy(dst->model_memory + (other - dst->memory.data), own, 4);
        }
        if (n > 0 && same_memory) {
            *to[p] = *from[p];
        }
    }
}

/* ---- copies ------------------------------------------------------------------------------ */

typedef struct moves {
    cw            srcs[MOST_LAYERS], dsts[MOST_LAYERS];
    pkv_cache     src_views[MOST_LAYERS], dst_views[MOST_LAYERS];
    int32_t       group_ids[MOST_LAYERS];
    int           n_layers;
    pkv_page_copy copies[MOST_COPIES];
    int           n_copies;
} moves;

/* Numbers [0, n) in any order. */
static void shuffle(int32_t *order, int32_t n, rng *r)
{
    for (int32_t i = 0; i < n; i++) {
        order[i] = i;
    }
    for (int32_t i = n - 1; i > 0; i--) {
        const int32_t other = (int32_t)rng_range(r, 0, i), kept = order[i];
        order[i] = order[other];
        order[other] = kept;
    }
}

/* For two groups, and one of no layer: pages that are read, others that are written, once. */
static void draw_copies(moves *m, int32_t n_src, int32_t n_dst, int32_t page_size, bool inside,
                        rng *r)
{
    m->n_copies = 0;
    for (int32_t group = 0; group < 3; group++) {
        int32_t       order[64], written[64];
        const int32_t n = n_src < n_dst ? n_src : n_dst, half = n / 2;
        shuffle(order, n, r);
        shuffle(written, n_dst, r);
        for (int32_t i = 0; i < (inside ? half : n); i++) {
            m->copies[m->n_copies++] = (pkv_page_copy){
                inside ? order[half + (int32_t)rng_range(r, 0, half - 1)] : order[i],
                inside ? order[i] : written[i],
                rng_range(r, 0, 1) == 0 ? page_size : (int32_t)rng_range(r, 1, page_size),
                group == 1 ? -7 : group};
        }
    }
    for (int i = m->n_copies - 1; i > 0; i--) {
        const int           other = (int)rng_range(r, 0, i);
        const pkv_page_copy kept = m->copies[i];
        m->copies[i] = m->copies[other];
        m->copies[other] = kept;
    }
}

static void model_moves(moves *m, bool inside)
{
    for (int l = 0; l < m->n_layers; l++) {
        cw *dst = inside ? &m->srcs[l] : &m->dsts[l];
        const int32_t group = m->group_ids[l];
        for (int i = 0; i < m->n_copies; i++) {
            const pkv_page_copy *c = &m->copies[i];
            const pkv_cache     *view = inside ? &m->src_views[l] : &m->dst_views[l];
            for (int64_t t = 0; c->group == group && t < c->n_tokens &&
                                (view->flags & PKV_CACHE_SHARED) == 0; t++) {
                convert_token(&m->srcs[l].model_cache, c->src * view->page_size + t,
                              &dst->model_cache, c->dst * view->page_size + t);
            }
        }
    }
}

static void run_moves(moves *m, bool inside, uint64_t seed)
{
    int32_t         n_parts = 0;
    pkv_update_opts opts = {.struct_size = sizeof opts, .parallel_for = in_odd_order,
                            .parallel_user = &n_parts,
                            .flags = seed % 5 == 0 ? PKV_UPDATE_READ_SOON : 0};
    pkv_error err;
    expect_ok(pkv_copy_pages(m->src_views, inside ? NULL : m->dst_views, m->group_ids, m->n_layers,
                             m->copies, m->n_copies, seed % 3 == 0 ? NULL : &opts, &err), &err);
    model_moves(m, inside);
    for (int l = 0; l < m->n_layers; l++) {
        cw_note(&m->srcs[l], seed, inside ? "moves inside" : "moves: source");
        cw_expect_same(&m->srcs[l]);
        if (!inside) {
            cw_note(&m->dsts[l], seed, "moves: destination");
            cw_expect_same(&m->dsts[l]);
            cw_free(&m->dsts[l]);
        }
        cw_free(&m->srcs[l]);
    }
}

static int32_t any_group(int layer)
{
    return layer % 2 == 0 ? 0 : -7;
}

static void test_inside(void **state)
{
    (void)state;
    static moves m;
    watch_faults();
    for (uint64_t seed = 0; seed < 400; seed++) {
        rng r = {seed};
        select_isa(seed);
        m.n_layers = (int)rng_range(&r, 1, MOST_LAYERS);
        const int64_t page_size = any_shape(&r).page_size, n_pages = rng_range(&r, 2, 20);
        for (int l = 0; l < m.n_layers; l++) {
            cw_shape s = any_shape(&r);
            s.page_size = page_size;
            s.n_pages = n_pages + rng_range(&r, 0, 3);
            cw_init(&m.srcs[l], &s, seed * 8 + (uint64_t)l);
            m.srcs[l].cache.flags = rng_range(&r, 0, 4) == 0 ? PKV_CACHE_SHARED : 0;
            m.src_views[l] = m.srcs[l].cache;
            m.group_ids[l] = any_group(l);
        }
        draw_copies(&m, (int32_t)n_pages, (int32_t)n_pages, (int32_t)page_size, true, &r);
        run_moves(&m, true, seed);
    }
}

static void test_across(void **state)
{
    (void)state;
    static moves m;
    watch_faults();
    for (uint64_t seed = 0; seed < 800; seed++) {
        rng           r = {seed + 5000};
        const int64_t page_size = any_shape(&r).page_size;
        int64_t       n_src = 64, n_dst = 64;
        select_isa(seed);
        m.n_layers = (int)rng_range(&r, 1, MOST_LAYERS);
        for (int l = 0; l < m.n_layers; l++) {
            cw_shape s = any_shape(&r);
            s.page_size = page_size;
            const cw_shape d = partner_of(&s, &r);
            cw_init(&m.srcs[l], &s, seed * 8 + (uint64_t)l);
            cw_init(&m.dsts[l], &d, seed * 8 + 4 + (uint64_t)l);
            equal_scales(&m.srcs[l], &m.dsts[l], seed % 2 == 0);
            m.dsts[l].cache.flags = rng_range(&r, 0, 6) == 0 ? PKV_CACHE_SHARED : 0;
            m.src_views[l] = m.srcs[l].cache;
            m.dst_views[l] = m.dsts[l].cache;
            m.group_ids[l] = any_group(l);
            n_src = s.n_pages < n_src ? s.n_pages : n_src;
            n_dst = d.n_pages < n_dst ? d.n_pages : n_dst;
        }
        draw_copies(&m, (int32_t)n_src, (int32_t)n_dst, (int32_t)page_size, false, &r);
        run_moves(&m, false, seed);
    }
}

/* Large enough to be divided, with pages that share lines where parts meet. */
static void test_many_parts(void **state)
{
    (void)state;
    watch_faults();
    for (uint64_t seed = 0; seed < 14; seed++) {
        rng      r = {seed};
        cw_shape s = any_shape(&r);
        s.layout = seed % 2 == 0 ? CW_NHD : CW_PADDED;
        s.n_pages = 400;
        s.page_size = 7;
        s.n_heads = 3;
        s.head_dim[0] = s.head_dim[1] = 50;
        s.dtype = (pkv_dtype)(seed % 7 + 1);
        s.rows_dtype = s.dtype == PKV_DTYPE_F32 ? PKV_DTYPE_F16 : PKV_DTYPE_F32;
        cw w;
        cw_init(&w, &s, seed);
        pkv_page_copy copies[200];
        int32_t       order[400], n_parts = 0;
        shuffle(order, 400, &r);
        for (int i = 0; i < 200; i++) {
            copies[i] = (pkv_page_copy){order[200 + i], order[i], i % 3 == 0 ? 5 : 7, 0};
            for (int64_t t = 0; t < copies[i].n_tokens; t++) {
                convert_token(&w.model_cache, copies[i].src * 7 + t, &w.model_cache,
                              copies[i].dst * 7 + t);
            }
        }
        pkv_update_opts opts = {.struct_size = sizeof opts,
                                .parallel_for = seed % 3 == 0 ? in_odd_order : cw_threads,
                                .parallel_user = &n_parts};
        pkv_error       err;
        cw_note(&w, seed, "parts");
        expect_ok(pkv_copy_pages(&w.cache, NULL, NULL, 1, copies, 200, &opts, &err), &err);
        assert_true(n_parts > 1);
        cw_expect_same(&w);
        cw_free(&w);
    }
}

/* ---- what is written is not read --------------------------------------------------------- */

/* Index of the copy at fault and the page, or -1. */
static int64_t first_fault(const pkv_page_copy *c, int64_t n, bool inside, int32_t *page)
{
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = 0; j < i; j++) {
            if (c[j].dst == c[i].dst && c[j].group == c[i].group) {
                *page = c[i].dst;
                return i;
            }
        }
    }
    for (int64_t i = 0; inside && i < n; i++) {
        for (int64_t j = 0; j < n; j++) {
            if (c[j].dst == c[i].src && c[j].group == c[i].group) {
                *page = c[i].src;
                return i;
            }
        }
    }
    return -1;
}

static void expect_as_naive(cw *w, cw *other, const pkv_page_copy *copies, int64_t n, uint64_t seed)
{
    for (int across = 0; across < 2; across++) {
        cw       *dst = across == 1 ? other : w;
        int32_t   page = -1;
        pkv_error err;
        const int64_t at = first_fault(copies, n, across == 0, &page);
        const pkv_status status = pkv_copy_pages(&w->cache, across == 1 ? &other->cache : NULL,
                                                 NULL, 1, copies, n, NULL, &err);
        cw_note(w, seed, "written and read");
        if (at >= 0) {
            expect_error(status, &err, PKV_E_RANGE, PKV_RULE_PAGE, at);
            assert_int_equal(err.value, page);
        } else {
            expect_ok(status, &err);
            for (int64_t i = 0; i < n; i++) {
                for (int64_t t = 0; t < copies[i].n_tokens && copies[i].group == 0; t++) {
                    const int64_t S = w->shape.page_size;
                    convert_token(&w->model_cache, copies[i].src * S + t, &dst->model_cache,
                                  copies[i].dst * S + t);
                }
            }
        }
        cw_expect_same(w);
        cw_expect_same(other);
    }
}

static void naive_round(int32_t n_pages, int64_t n_copies, int dirty, uint64_t seed)
{
    const cw_shape s = {.layout = CW_NHD, .dtype = PKV_DTYPE_INT8, .rows_dtype = PKV_DTYPE_F32,
                        .n_pages = n_pages, .page_size = 1, .n_heads = 1, .head_dim = {2, 2},
                        .n_tokens = 1, .kind = {PKV_SCALES_TOKEN_HEAD, PKV_SCALES_NONE}};
    rng            r = {seed};
    cw             w, other;
    cw_init(&w, &s, seed);
    cw_init(&other, &s, seed + 1);
    pkv_page_copy *copies = test_alloc((size_t)n_copies * sizeof *copies);
    int32_t       *order = test_alloc((size_t)n_pages * sizeof *order);
    shuffle(order, n_pages, &r);
    for (int64_t i = 0; i < n_copies; i++) { /* the first half is read, the second written */
        const int32_t read = order[rng_range(&r, 0, n_pages / 2 - 1)];
        const int32_t written = order[n_pages / 2 + i % (n_pages - n_pages / 2)];
        const bool    other_way = rng_range(&r, 0, 3) == 0; /* in another group */
        copies[i] = (pkv_page_copy){other_way ? written : read,
                                    other_way ? order[i % (n_pages / 2)] : written, 1, other_way};
    }
    for (int d = 0; d < dirty; d++) {
        const int64_t i = rng_range(&r, 0, n_copies - 1);
        if (rng_range(&r, 0, 1) == 0) {
            copies[i].dst = order[rng_range(&r, 0, n_pages - 1)];
        } else {
            copies[i].src = order[rng_range(&r, 0, n_pages - 1)];
        }
    }
    expect_as_naive(&w, &other, copies, n_copies, seed);
    free(copies);
    free(order);
    cw_free(&w);
    cw_free(&other);
}

/* Cycles, chains, a page twice, a page onto itself come up among few pages. */
static void test_few_pages(void **state)
{
    (void)state;
    watch_faults();
    for (uint64_t seed = 0; seed < 3000; seed++) {
        naive_round(2 + (int32_t)(seed % 9), 1 + (int64_t)(seed / 3 % 5), (int)(seed % 4), seed);
    }
}

/* So many that bits of the filter collide. */
static void test_thousands(void **state)
{
    (void)state;
    static const int32_t pages[] = {600, 5000, 13000};
    watch_faults();
    for (uint64_t seed = 0; seed < 9; seed++) {
        const int32_t n = pages[seed % 3];
        naive_round(n, n / 2, (int)(seed / 3), seed);
    }
}

static void test_cycles_and_chains(void **state)
{
    (void)state;
    static const pkv_page_copy lists[][3] = {
        {{0, 1, 1, 0}, {1, 2, 1, 0}, {3, 4, 1, 0}}, /* a chain */
        {{1, 2, 1, 0}, {0, 1, 1, 0}, {3, 4, 1, 0}}, /* the other way round */
        {{0, 1, 1, 0}, {1, 0, 1, 0}, {3, 4, 1, 0}}, /* a cycle */
        {{0, 1, 1, 0}, {1, 2, 1, 0}, {2, 0, 1, 0}}, /* of three */
        {{0, 1, 1, 0}, {3, 2, 1, 0}, {4, 4, 1, 0}}, /* onto itself */
        {{0, 1, 1, 0}, {3, 2, 1, 0}, {4, 1, 1, 0}}, /* written twice */
        {{0, 1, 1, 0}, {0, 2, 1, 0}, {0, 3, 1, 0}}, /* read three times: fine */
        {{0, 1, 1, 0}, {1, 2, 1, 1}, {2, 0, 1, 2}}, /* other groups: fine */
    };
    static const int64_t faults[] = {1, 0, 0, 0, 2, 2, -1, -1};
    static const int32_t at_page[] = {1, 1, 0, 0, 4, 1, 0, 0};
    const cw_shape s = {.layout = CW_HND, .dtype = PKV_DTYPE_BF16, .rows_dtype = PKV_DTYPE_F32,
                        .n_pages = 5, .page_size = 2, .n_heads = 2, .head_dim = {6, 6},
                        .n_tokens = 1};
    for (int i = 0; i < 8; i++) {
        cw w, other;
        int32_t page = 0;
        cw_init(&w, &s, (uint64_t)i);
        cw_init(&other, &s, (uint64_t)i + 100);
        assert_int_equal(first_fault(lists[i], 3, true, &page), faults[i]);
        assert_int_equal(page, at_page[i]);
        expect_as_naive(&w, &other, lists[i], 3, (uint64_t)i);
        cw_free(&w);
        cw_free(&other);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_inside),
        cmocka_unit_test(test_across),
        cmocka_unit_test(test_many_parts),
        cmocka_unit_test(test_cycles_and_chains),
        cmocka_unit_test(test_few_pages),
        cmocka_unit_test(test_thousands),
    };
    return cmocka_run_group_tests_name("moves", tests, NULL, NULL);
}
