/*
 * Pages of many layers in one host buffer: where they lie, out and in again, sizes,
 * refusals.
 */
#include "convert_world.h"

#include <string.h>

enum { LAYERS = 5, PAGES = 7, KEPT = 4 };

typedef struct layers {
    cw        worlds[LAYERS];
    pkv_cache caches[LAYERS];
} layers;

/* Layers of all layouts, dtypes and kinds that the seed draws, of one page size. */
static void layers_init(layers *m, uint64_t seed)
{
    rng r = {seed};
    for (int l = 0; l < LAYERS; l++) {
        cw_shape s = cw_random_shape(&r);
        s.n_pages = PAGES + l;
        s.page_size = 1 + (int64_t)(seed % 4) * 3;
        s.n_tokens = 1;
        s.head_dim[0] = s.head_dim[0] > 100 ? 64 : s.head_dim[0];
        s.head_dim[1] = s.head_dim[1] > 100 ? 100 : s.head_dim[1];
        if (s.dtype == s.rows_dtype) {
            s.rows_dtype = PKV_DTYPE_F32;
        }
        cw_init(&m->worlds[l], &s, seed * 8 + (uint64_t)l);
        m->caches[l] = m->worlds[l].cache;
    }
}

static void layers_free(layers *m)
{
    for (int l = 0; l < LAYERS; l++) {
        cw_free(&m->worlds[l]);
    }
}

static bool is_computed(const pkv_scales *s)
{
    return s->kind == PKV_SCALES_TOKEN_HEAD || s->kind == PKV_SCALES_GROUP;
}

static int64_t groups_of(const pkv_plane *p, const pkv_scales *s)
{
    return s->kind == PKV_SCALES_GROUP ? p->head_dim / s->group_size : 1;
}

static void expect_plane(const pkv_plane *found, const unsigned char *at, int64_t bytes,
                         int64_t n_heads, int64_t page_bytes)
{
    assert_ptr_equal(found->data, at);
    assert_int_equal(found->head_stride_bytes, bytes);
    assert_int_equal(found->token_stride_bytes, bytes * n_heads);
    assert_int_equal(found->page_stride_bytes, page_bytes);
}

/* As the header says: K, V, scales of K, scales of V; returns where the next layer begins. */
static const unsigned char *expect_layer(const pkv_cache *layer, const pkv_cache *out,
                                         const unsigned char *at, int64_t n_pages,
                                         int64_t page_bytes)
{
    const pkv_plane  *planes[2] = {&layer->k, &layer->v}, *views[2] = {&out->k, &out->v};
    const pkv_scales *scales[2] = {&layer->k_scales, &layer->v_scales};
    const pkv_scales *scale_views[2] = {&out->k_scales, &out->v_scales};
    const int64_t     n = layer->page_size * layer->n_heads;
    assert_int_equal(out->struct_size, sizeof *out);
    assert_int_equal(out->n_pages, n_pages);
    assert_int_equal(out->page_size, layer->page_size);
    assert_int_equal(out->n_heads, layer->n_heads);
    assert_int_equal(out->dtype, layer->dtype);
    for (int p = 0; p < 2; p++) {
        const int64_t bytes = planes[p]->head_dim * model_bits(layer->dtype) / 8;
        assert_int_equal(views[p]->head_dim, planes[p]->head_dim);
        if (planes[p]->head_dim > 0) {
            expect_plane(views[p], at, bytes, layer->n_heads, page_bytes);
            at += bytes * n;
        }
    }
    for (int p = 0; p < 2; p++) {
        assert_int_equal(scale_views[p]->kind, scales[p]->kind);
        assert_int_equal(scale_views[p]->group_size, scales[p]->group_size);
        if (is_computed(scales[p])) {
            const int64_t   bytes = 4 * groups_of(planes[p], scales[p]);
            const pkv_plane plane = {scale_views[p]->data, scale_views[p]->page_stride_bytes,
                                     scale_views[p]->token_stride_bytes,
                                     scale_views[p]->head_stride_bytes, 0};
            expect_plane(&plane, at, bytes, layer->n_heads, page_bytes);
            at += bytes * n;
        } else if (scales[p]->kind != PKV_SCALES_NONE) {
            assert_ptr_equal(scale_views[p]->data, scales[p]->data); /* at their place */
        }
    }
    return at;
}

/* Pages out, their places overwritten, and in to other pages of the same caches. */
static void out_and_in(layers *m, pkv_cache *views, uint64_t seed)
{
    static const pkv_page_copy out[] = {{5, 0, 0, 0}, {2, 3, 0, 0}, {6, 1, 0, 0}, {0, 2, 0, 0}};
    pkv_page_copy copies[KEPT];
    pkv_error     err;
    memcpy(copies, out, sizeof copies);
    for (int i = 0; i < KEPT; i++) {
        copies[i].n_tokens = (int32_t)m->caches[0].page_size;
    }
    expect_ok(pkv_copy_pages(m->caches, views, NULL, LAYERS, copies, KEPT, NULL, &err), &err);
    for (int l = 0; l < LAYERS; l++) {
        cw *w = &m->worlds[l];
        cw_note(w, seed, "swapped out");
        cw_expect_same(w); /* only read */
        for (int64_t slot = 0; slot < w->cache.n_pages * w->cache.page_size; slot++) {
            /* Noise, by a copy of another slot, so that every byte of a page is lost. */
            const int64_t S = w->cache.page_size, other = 1 * S + slot % S;
            convert_token(&w->cache, other, &w->cache, slot / S == 1 ? other : slot);
            convert_token(&w->model_cache, other, &w->model_cache, slot / S == 1 ? other : slot);
        }
        for (int i = 0; i < KEPT; i++) { /* what should come back */
            for (int64_t t = 0; t < w->cache.page_size; t++) {
                convert_token(&views[l], copies[i].dst * w->cache.page_size + t, &w->model_cache,
                              copies[i].src * w->cache.page_size + t);
            }
        }
    }
    for (int i = 0; i < KEPT; i++) {
        const int32_t page = copies[i].src;
        copies[i].src = copies[i].dst;
        copies[i].dst = page;
    }
    expect_ok(pkv_copy_pages(views, m->caches, NULL, LAYERS, copies, KEPT, NULL, &err), &err);
    for (int l = 0; l < LAYERS; l++) {
        cw_note(&m->worlds[l], seed, "swapped in");
        cw_expect_same(&m->worlds[l]);
    }
}

/* Elements and scales of the pages, as they were before they went out. */
static unsigned char *snapshot(const cw *w, size_t *n_bytes)
{
    *n_bytes = w->memory.room_bytes;
    unsigned char *kept = test_alloc(*n_bytes);
    memcpy(kept, w->memory.data, *n_bytes);
    return kept;
}

static void expect_pages_back(const cw *w, const unsigned char *before, uint64_t seed)
{
    static const int64_t pages[KEPT] = {5, 2, 6, 0};
    const pkv_plane     *planes[2] = {&w->cache.k, &w->cache.v};
    const pkv_scales    *scales[2] = {&w->cache.k_scales, &w->cache.v_scales};
    cw_note(w, seed, "identity");
    for (int64_t i = 0; i < KEPT * w->cache.page_size * w->cache.n_heads * 2; i++) {
        const int     p = (int)(i % 2);
        const int64_t h = i / 2 % w->cache.n_heads, t = i / 2 / w->cache.n_heads;
        const int64_t page = pages[t / w->cache.page_size], at = t % w->cache.page_size;
        if (planes[p]->head_dim == 0) {
            continue;
        }
        const unsigned char *element = (unsigned char *)planes[p]->data +
                                       page * planes[p]->page_stride_bytes +
                                       at * planes[p]->token_stride_bytes +
                                       h * planes[p]->head_stride_bytes;
        expect_same_bytes("elements", element, before + (element - w->memory.data),
                          (size_t)(planes[p]->head_dim * model_bits(w->cache.dtype) / 8));
        if (is_computed(scales[p])) {
            const unsigned char *scale = (unsigned char *)scales[p]->data +
                                         page * scales[p]->page_stride_bytes +
                                         at * scales[p]->token_stride_bytes +
                                         h * scales[p]->head_stride_bytes;
            expect_same_bytes("scales", scale, before + (scale - w->memory.data),
                              (size_t)(4 * groups_of(planes[p], scales[p])));
        }
    }
}

static void test_out_and_in(void **state)
{
    (void)state;
    static layers m;
    watch_faults();
    for (uint64_t seed = 0; seed < 150; seed++) {
        pkv_cache      views[LAYERS];
        unsigned char *before[LAYERS];
        size_t         n_bytes;
        int64_t        page_bytes = 0, asked = 0;
        pkv_error      err;
        layers_init(&m, seed);
        expect_ok(pkv_cache_swapped(views, sizeof views[0], m.caches, LAYERS, NULL, KEPT, &asked,
                                    &err), &err);
        guarded buffer = guarded_new((size_t)(KEPT * asked));
        fill(buffer.data, buffer.room_bytes, FILL_RANDOM, seed);
        unsigned char *data = guarded_tail(&buffer, (size_t)(KEPT * asked)); /* any alignment */
        expect_ok(pkv_cache_swapped(views, sizeof views[0], m.caches, LAYERS, data, KEPT,
                                    &page_bytes, &err), &err);
        assert_int_equal(page_bytes, asked);
        const unsigned char *at = data;
        for (int l = 0; l < LAYERS; l++) {
            cw_note(&m.worlds[l], seed, "the view of a layer");
            expect_ok(pkv_cache_check(&views[l], &err), &err);
            at = expect_layer(&m.caches[l], &views[l], at, KEPT, page_bytes);
            before[l] = snapshot(&m.worlds[l], &n_bytes);
        }
        assert_int_equal(at - data, page_bytes);
        out_and_in(&m, views, seed);
        for (int l = 0; l < LAYERS; l++) {
            expect_pages_back(&m.worlds[l], before[l], seed);
            free(before[l]);
        }
        guarded_free(&buffer);
        layers_free(&m);
    }
}

/* A shared layer has its room; going in, it is left alone. */
static void test_shared_layer(void **state)
{
    (void)state;
    static layers m;
    pkv_cache     views[LAYERS];
    pkv_error     err;
    int64_t       page_bytes = 0;
    layers_init(&m, 3);
    m.caches[2].flags = PKV_CACHE_SHARED;
    expect_ok(pkv_cache_swapped(views, sizeof views[0], m.caches, LAYERS, NULL, 1, &page_bytes,
                                &err), &err);
    unsigned char *data = test_alloc((size_t)page_bytes);
    memset(data, 1, (size_t)page_bytes);
    expect_ok(pkv_cache_swapped(views, sizeof views[0], m.caches, LAYERS, data, 1, &page_bytes,
                                &err), &err);
    assert_int_equal(views[2].flags, 0);
    const pkv_page_copy in = {0, 1, 1, 0};
    expect_ok(pkv_copy_pages(views, m.caches, NULL, LAYERS, &in, 1, NULL, &err), &err);
    cw_note(&m.worlds[2], 3, "shared");
    cw_expect_same(&m.worlds[2]);
    free(data);
    layers_free(&m);
}

static void refuse(pkv_status status, pkv_status code, const pkv_error *err, const pkv_cache *out,
                   int64_t page_bytes)
{
    static const pkv_cache zero;
    expect_error(status, err, code, PKV_RULE_NONE, -1);
    for (int l = 0; l < LAYERS; l++) {
        expect_same_bytes("views after a refusal", &out[l], &zero, sizeof zero);
    }
    assert_int_equal(page_bytes, -1);
}

static void test_refusals(void **state)
{
    (void)state;
    static layers m;
    pkv_cache     out[LAYERS];
    pkv_error     err;
    int64_t       n = -1;
    char          buffer[1];
    const size_t  size = sizeof out[0];
    memset(out, 0, sizeof out);
    layers_init(&m, 5);
    note_case("swapped", 5, "refusals");
    const struct {
        pkv_cache *out;
        size_t     size;
        int64_t    n_layers, n_pages;
        pkv_status code;
    } bad[] = {
        {NULL, size, LAYERS, 1, PKV_E_INVALID},      {out, size, 0, 1, PKV_E_INVALID},
        {out, size, -1, 1, PKV_E_INVALID},           {out, size, LAYERS, 0, PKV_E_INVALID},
        {out, size, LAYERS, -3, PKV_E_INVALID},
        {out, size, LAYERS, INT64_MAX / 2, PKV_E_INVALID},
        {out, size - 8, LAYERS, 1, PKV_E_UNSUPPORTED},
        {out, size + 8, LAYERS, 1, PKV_E_UNSUPPORTED},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        refuse(pkv_cache_swapped(bad[i].out, bad[i].size, m.caches, bad[i].n_layers, buffer,
                                 bad[i].n_pages, &n, &err), bad[i].code, &err, out, n);
    }
    refuse(pkv_cache_swapped(out, size, NULL, LAYERS, buffer, 1, &n, &err), PKV_E_INVALID, &err,
           out, n);
    refuse(pkv_cache_swapped(out, size, m.caches, LAYERS, buffer, 1, NULL, &err), PKV_E_INVALID,
           &err, out, n);
    m.caches[4].n_heads = 0; /* the last layer is not right */
    refuse(pkv_cache_swapped(out, size, m.caches, LAYERS, buffer, 1, &n, &err), PKV_E_INVALID,
           &err, out, n);
    m.caches[4].n_heads = m.worlds[4].cache.n_heads;
    m.caches[4].struct_size += 8;
    refuse(pkv_cache_swapped(out, size, m.caches, LAYERS, buffer, 1, &n, &err), PKV_E_INVALID,
           &err, out, n);
    layers_free(&m);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_out_and_in),
        cmocka_unit_test(test_shared_layer),
        cmocka_unit_test(test_refusals),
    };
    return cmocka_run_group_tests_name("swap", tests, NULL, NULL);
}
