/* See convert_world.h. */
#include "convert_world.h"

#include <pthread.h>
#include <string.h>

static const char *const layout_names[] = {"combined", "nhd",      "hnd",    "content",
                                           "mla",      "mla_keys", "padded", "keys"};
static const char *const rows_names[] = {"apart", "fused", "odd", "combined"};
static const char *const place_names[] = {"apart", "page", "vector", "odd"};

static bool is_computed(int32_t kind)
{
    return kind == PKV_SCALES_TOKEN_HEAD || kind == PKV_SCALES_GROUP;
}

/* ---- shapes ------------------------------------------------------------------------------ */

/* As many groups as asked, or fewer, so that they divide head_dim into whole bytes. */
static int32_t groups_that_fit(const cw_shape *s, int p)
{
    int32_t n = s->kind[p] == PKV_SCALES_GROUP ? s->n_groups[p] : 1;
    n = n < 1 ? 1 : n;
    while (s->head_dim[p] % n != 0 || s->head_dim[p] / n * model_bits(s->dtype) % 8 != 0) {
        n--;
    }
    return n;
}

static cw_shape shape_that_fits(cw_shape s)
{
    const bool one_plane = s.layout == CW_KEYS || s.layout == CW_MLA_KEYS;
    if (s.layout == CW_MLA || s.layout == CW_MLA_KEYS) {
        s.n_heads = 1;
    }
    for (int p = 0; p < 2; p++) {
        if (s.dtype == PKV_DTYPE_INT4 || s.rows_dtype == PKV_DTYPE_INT4) {
            s.head_dim[p] += s.head_dim[p] % 2;
        }
        const bool same = s.dtype == s.rows_dtype;
        if (s.dtype <= PKV_DTYPE_BF16 || (same && is_computed(s.kind[p]))) {
            s.kind[p] = PKV_SCALES_NONE;
        }
    }
    if (s.layout == CW_COMBINED || s.rows == CW_ROWS_COMBINED) {
        s.head_dim[1] = s.head_dim[0];
    }
    if (one_plane) {
        s.head_dim[1] = 0;
        s.kind[1] = PKV_SCALES_NONE;
        s.rows = s.rows == CW_ROWS_COMBINED ? CW_ROWS_APART : s.rows;
    }
    for (int p = 0; p < 2; p++) {
        s.n_groups[p] = s.head_dim[p] > 0 ? groups_that_fit(&s, p) : 0;
    }
    const bool own_planes = s.layout == CW_NHD || s.layout == CW_HND || s.layout == CW_PADDED ||
                            s.layout == CW_MLA_KEYS || s.layout == CW_KEYS;
    s.place = s.place == CW_SCALES_VECTOR && !own_planes ? CW_SCALES_PAGE : s.place;
    return s;
}

void cw_set_pair(cw_shape *s, int i)
{
    static const pkv_dtype pairs[][2] = {
        {2, 1}, {3, 1}, {4, 1}, {5, 1}, {6, 1}, {7, 1}, /* into f32 and back, and so on */
        {1, 2}, {3, 2}, {4, 2}, {5, 2}, {6, 2}, {7, 2},
        {1, 3}, {2, 3}, {4, 3}, {5, 3}, {6, 3}, {7, 3},
        {4, 4}, {7, 7}, {6, 6}, /* copies */
    };
    i %= (int)(sizeof pairs / sizeof pairs[0]);
    s->dtype = pairs[i][0];
    s->rows_dtype = pairs[i][1];
}

cw_shape cw_random_shape(rng *r)
{
    static const int64_t page_sizes[] = {1, 7, 16, 64}, heads[] = {1, 3, 8};
    static const int64_t dims[] = {1, 3, 64, 80, 96, 100, 128, 256, 576};
    cw_shape s = {.layout = (int)rng_range(r, 0, CW_LAYOUTS - 1),
                  .rows = (int)rng_range(r, 0, CW_ROWS - 1),
                  .place = (int)rng_range(r, 0, CW_PLACES - 1)};
    cw_set_pair(&s, (int)rng_range(r, 0, 20));
    s.page_size = page_sizes[rng_range(r, 0, 3)];
    s.n_heads = heads[rng_range(r, 0, 2)];
    for (int p = 0; p < 2; p++) {
        s.head_dim[p] = dims[rng_range(r, 0, 8)];
        s.kind[p] = (int32_t)rng_range(r, PKV_SCALES_NONE, PKV_SCALES_GROUP);
        s.n_groups[p] = (int32_t)rng_range(r, 1, 8);
    }
    const int64_t token = s.n_heads * (s.head_dim[0] + s.head_dim[1]);
    s.n_tokens = 4000 / token < 3 ? 3 : 4000 / token > 40 ? 40 : 4000 / token;
    s.n_pages = (s.n_tokens + 10) / s.page_size + 2;
    return s;
}

/* ---- the cache --------------------------------------------------------------------------- */

/* A cache whose memory starts at 0: data pointers are offsets. */
typedef struct draft {
    pkv_plane  plane[2];
    pkv_scales scales[2];
    int64_t    end; /* of what has its place */
} draft;

static void *offset(int64_t at)
{
    return (void *)(uintptr_t)at;
}

static int64_t vector_bytes(const cw_shape *s, int p)
{
    return s->head_dim[p] * model_bits(s->dtype) / 8;
}

static int64_t scale_bytes(const cw_shape *s, int p)
{
    return is_computed(s->kind[p]) ? 4 * s->n_groups[p] : 0;
}

/* Bytes behind the elements of a page: its scales, if that is where they lie. */
static int64_t page_room(const cw_shape *s, int p)
{
    return s->place == CW_SCALES_PAGE ? s->page_size * s->n_heads * scale_bytes(s, p) : 0;
}

/* Planes of their own; by_head: heads outside tokens. */
static void draft_plane(draft *d, const cw_shape *s, int p, bool by_head, int64_t pad)
{
    pkv_plane    *plane = &d->plane[p];
    const int64_t own = s->place == CW_SCALES_VECTOR ? scale_bytes(s, p) : 0;
    const int64_t unit = vector_bytes(s, p) + own + pad;
    const int64_t inner = unit * (by_head ? s->page_size : s->n_heads) + pad;
    plane->data = offset(d->end);
    plane->head_dim = s->head_dim[p];
    plane->token_stride_bytes = by_head ? unit : inner;
    plane->head_stride_bytes = by_head ? inner : unit;
    plane->page_stride_bytes = inner * (by_head ? s->n_heads : s->page_size) + page_room(s, p);
    if (s->layout == CW_MLA_KEYS) { /* rows that start on 64 bytes of their own */
        plane->token_stride_bytes = (unit + 63) / 64 * 64;
        plane->page_stride_bytes = plane->token_stride_bytes * s->page_size + page_room(s, p);
    }
    d->end += plane->page_stride_bytes * s->n_pages + pad;
}

/* K and V in each other's strides. */
static void draft_both(draft *d, const cw_shape *s)
{
    const int64_t k = vector_bytes(s, 0), v = vector_bytes(s, 1);
    const int64_t gap = s->layout == CW_MLA ? 6 : 0, unit = k + gap + v + (gap != 0 ? 10 : 0);
    const bool    by_head = s->layout == CW_CONTENT;
    pkv_plane    *plane = &d->plane[0];
    plane->data = offset(d->end);
    plane->token_stride_bytes = by_head ? unit : unit * s->n_heads;
    plane->head_stride_bytes = by_head ? unit * s->page_size : unit;
    plane->page_stride_bytes = unit * s->n_heads * s->page_size + page_room(s, 0) +
                               page_room(s, 1);
    plane->head_dim = s->head_dim[0];
    d->plane[1] = *plane;
    d->plane[1].data = offset(d->end + k + gap);
    d->plane[1].head_dim = s->head_dim[1];
    d->end += plane->page_stride_bytes * s->n_pages;
}

static void draft_scales(draft *d, const cw_shape *s, int p, bool both)
{
    pkv_scales      *scales = &d->scales[p];
    const pkv_plane *plane = &d->plane[p];
    const int64_t    bytes = scale_bytes(s, p), odd = s->place == CW_SCALES_ODD ? 1 : 0;
    scales->kind = s->kind[p];
    scales->group_size =
        s->kind[p] == PKV_SCALES_GROUP ? (int32_t)(s->head_dim[p] / s->n_groups[p]) : 0;
    if (s->kind[p] == PKV_SCALES_NONE) {
        return;
    }
    d->end += odd;
    scales->data = offset(d->end);
    if (bytes == 0) { /* given: no other stride matters */
        scales->head_stride_bytes = 4 + 3 * odd;
        scales->page_stride_bytes = scales->token_stride_bytes = -12345;
        d->end += scales->head_stride_bytes * s->n_heads;
        return;
    }
    scales->head_stride_bytes = bytes;
    scales->token_stride_bytes = bytes * s->n_heads;
    scales->page_stride_bytes = bytes * s->n_heads * s->page_size;
    if (s->place == CW_SCALES_PAGE) {
        const int64_t rooms = page_room(s, p) + (both ? page_room(s, 1 - p) : 0);
        const int64_t start = both ? (int64_t)(uintptr_t)d->plane[0].data
                                   : (int64_t)(uintptr_t)plane->data;
        scales->data = offset(start + plane->page_stride_bytes - rooms +
                              (both && p == 1 ? page_room(s, 0) : 0));
        scales->page_stride_bytes = plane->page_stride_bytes;
    } else if (s->place == CW_SCALES_VECTOR) {
        scales->data = offset((int64_t)(uintptr_t)plane->data + vector_bytes(s, p));
        scales->page_stride_bytes = plane->page_stride_bytes;
        scales->token_stride_bytes = plane->token_stride_bytes;
        scales->head_stride_bytes = plane->head_stride_bytes;
    } else if (odd) {
        scales->token_stride_bytes = bytes + 1;
        scales->head_stride_bytes = scales->token_stride_bytes * s->page_size + 3;
        scales->page_stride_bytes = scales->head_stride_bytes * s->n_heads + 5;
    }
    d->end += s->place == CW_SCALES_APART || odd ? scales->page_stride_bytes * s->n_pages : 0;
}

static draft draft_of(const cw_shape *s, int64_t start)
{
    draft      d = {.end = start};
    const bool both = s->layout == CW_COMBINED || s->layout == CW_CONTENT || s->layout == CW_MLA;
    if (both) {
        draft_both(&d, s);
    } else {
        const int64_t pad = s->layout == CW_PADDED ? 3 : 0;
        draft_plane(&d, s, 0, s->layout == CW_HND, pad);
        if (s->head_dim[1] > 0) {
            draft_plane(&d, s, 1, s->layout == CW_HND || s->layout == CW_PADDED, pad);
        }
    }
    d.end += 9;
    draft_scales(&d, s, 0, both);
    draft_scales(&d, s, 1, both);
    return d;
}

static pkv_cache cache_at(const cw_shape *s, const draft *d, unsigned char *memory)
{
    pkv_cache c = {.struct_size = sizeof c, .n_pages = s->n_pages, .page_size = s->page_size,
                   .n_heads = s->n_heads, .dtype = s->dtype, .k = d->plane[0], .v = d->plane[1],
                   .k_scales = d->scales[0], .v_scales = d->scales[1]};
    c.k.data = memory + (uintptr_t)c.k.data;
    c.v.data = s->head_dim[1] > 0 ? memory + (uintptr_t)c.v.data : NULL;
    c.k_scales.data = c.k_scales.kind != 0 ? memory + (uintptr_t)c.k_scales.data : NULL;
    c.v_scales.data = c.v_scales.kind != 0 ? memory + (uintptr_t)c.v_scales.data : NULL;
    return c;
}

/* Every scale that there is becomes a usual number. */
static void fill_scales(const cw_shape *s, const pkv_scales *scales, int p, rng *r)
{
    const bool    each = is_computed(scales->kind);
    const int64_t n_heads = scales->kind == PKV_SCALES_TENSOR ? 1 : s->n_heads;
    for (int64_t page = 0; page < (each ? s->n_pages : 1); page++) {
        for (int64_t t = 0; t < (each ? s->page_size : 1); t++) {
            for (int64_t at = 0; at < n_heads * (each ? s->n_groups[p] : 1); at++) {
                const int64_t  h = each ? at / s->n_groups[p] : at;
                const int64_t  g = each ? at % s->n_groups[p] : 0;
                const uint32_t bits = (uint32_t)rng_range(r, 118, 129) << 23 |
                                      (uint32_t)rng_range(r, 0, 0x7FFFFF);
                memcpy((unsigned char *)scales->data +
                           (each ? page * scales->page_stride_bytes +
                                       t * scales->token_stride_bytes : 0) +
                           h * scales->head_stride_bytes + 4 * g, &bits, sizeof bits);
            }
        }
    }
}

/* ---- the rows ---------------------------------------------------------------------------- */

static void init_rows(cw *w, rng *r)
{
    const cw_shape *s = &w->shape;
    const int64_t   k = s->head_dim[0] * model_bits(s->rows_dtype) / 8;
    const int64_t   v = s->head_dim[1] * model_bits(s->rows_dtype) / 8;
    const int64_t   pad = s->rows == CW_ROWS_ODD ? 3 : 0;
    const int64_t   queries = s->rows == CW_ROWS_FUSED ? 2 * s->n_heads * k : 0;
    const int64_t   k_heads = s->n_heads * (k + pad), v_heads = s->n_heads * (v + pad);
    const int64_t   token = queries + k_heads + v_heads + pad;
    int64_t         k_at = pad + queries, v_at = k_at + k_heads;
    w->new_kv = (pkv_new_kv){.struct_size = sizeof w->new_kv, .n_tokens = s->n_tokens,
                             .n_heads = s->n_heads, .dtype = s->rows_dtype};
    w->new_kv.k = (pkv_new_kv_plane){NULL, token, k + pad, s->head_dim[0]};
    w->new_kv.v = (pkv_new_kv_plane){NULL, token, v + pad, s->head_dim[1]};
    if (s->rows == CW_ROWS_COMBINED) {
        w->new_kv.k.head_stride_bytes = w->new_kv.v.head_stride_bytes = k + v;
        v_at = k;
    } else if (s->rows == CW_ROWS_APART) {
        w->new_kv.k.token_stride_bytes = k_heads;
        w->new_kv.v.token_stride_bytes = v_heads;
        v_at = s->n_tokens * k_heads;
    }
    const size_t n_bytes = (size_t)(pad + s->n_tokens * token);
    w->rows_memory = guarded_new(n_bytes);
    unsigned char *data = guarded_tail(&w->rows_memory, n_bytes);
    fill(data, n_bytes, FILL_RANDOM, rng_next(r));
    for (int64_t i = 0; s->rows_dtype <= PKV_DTYPE_BF16 && !pad &&
                        i < (int64_t)n_bytes * 8 / model_bits(s->rows_dtype); i++) {
        if (rng_range(r, 0, 15) != 0) { /* usual numbers, some others left */
            const uint32_t bits = ((uint32_t)rng_next(r) & 0x807FFFFFu) |
                                  (uint32_t)rng_range(r, 117, 131) << 23;
            model_set_code(s->rows_dtype, data, i, model_from_f32(s->rows_dtype, bits));
        }
    }
    guarded_protect(&w->rows_memory);
    w->new_kv.k.data = data + k_at;
    if (s->head_dim[1] > 0) {
        w->new_kv.v.data = data + v_at;
    } else {
        memset(&w->new_kv.v, 0, sizeof w->new_kv.v);
    }
}

/* ---- the whole --------------------------------------------------------------------------- */

void cw_note(const cw *w, uint64_t seed, const char *what)
{
    const cw_shape *s = &w->shape;
    note_case(layout_names[s->layout], seed,
              "%s, isa %s, %s rows %s %s, scales %s %d/%d %d/%d, P %d S %d H %d D %d %d T %d", what,
              pkv_isa_current(), pkv_dtype_name(s->dtype), rows_names[s->rows],
              pkv_dtype_name(s->rows_dtype), place_names[s->place], s->kind[0], s->n_groups[0],
              s->kind[1], s->n_groups[1], (int)s->n_pages, (int)s->page_size, (int)s->n_heads,
              (int)s->head_dim[0], (int)s->head_dim[1], (int)s->n_tokens);
}

void cw_init(cw *w, const cw_shape *shape, uint64_t seed)
{
    rng r = {seed};
    memset(w, 0, sizeof *w);
    w->shape = shape_that_fits(*shape);
    const draft d = draft_of(&w->shape, rng_range(&r, 1, 80));
    w->memory = guarded_new((size_t)d.end);
    fill(w->memory.data, w->memory.room_bytes, FILL_RANDOM, rng_next(&r));
    w->cache = cache_at(&w->shape, &d, w->memory.data);
    for (int p = 0; p < 2; p++) {
        if (w->shape.kind[p] != PKV_SCALES_NONE) {
            fill_scales(&w->shape, p == 0 ? &w->cache.k_scales : &w->cache.v_scales, p, &r);
        }
    }
    w->model_memory = test_alloc(w->memory.room_bytes);
    memcpy(w->model_memory, w->memory.data, w->memory.room_bytes);
    w->model_cache = cache_at(&w->shape, &d, w->model_memory);
    init_rows(w, &r);
    cw_note(w, seed, "made");
}

void cw_free(cw *w)
{
    guarded_free(&w->memory);
    guarded_free(&w->rows_memory);
    free(w->model_memory);
}

void cw_expect_same(const cw *w)
{
    expect_same_bytes("cache and scales", w->memory.data, w->model_memory, w->memory.room_bytes);
}

void cw_update(cw *w, const pkv_slices *slices, const pkv_update_opts *opts)
{
    pkv_error err = {0};
    expect_ok(pkv_update(&w->cache, &w->new_kv, slices, opts, &err), &err);
    convert_update(&w->model_cache, &w->new_kv, slices);
    cw_expect_same(w);
}

pkv_rows cw_rows(const cw *w, unsigned char *memory)
{
    const pkv_new_kv_plane *from[2] = {&w->new_kv.k, &w->new_kv.v};
    pkv_rows                rows = {.struct_size = sizeof rows, .n_tokens = w->new_kv.n_tokens,
                                    .n_heads = w->new_kv.n_heads, .dtype = w->new_kv.dtype};
    pkv_rows_plane         *to[2] = {&rows.k, &rows.v};
    for (int p = 0; p < 2 && from[p]->data != NULL; p++) {
        *to[p] = (pkv_rows_plane){
            memory + ((const unsigned char *)from[p]->data - w->rows_memory.data),
            from[p]->token_stride_bytes, from[p]->head_stride_bytes, from[p]->head_dim};
    }
    return rows;
}

void cw_gather(cw *w, const pkv_slices *slices, const pkv_update_opts *opts)
{
    guarded        found = guarded_new(w->rows_memory.room_bytes - 1);
    unsigned char *expected = test_alloc(found.room_bytes);
    pkv_error      err = {0};
    fill(found.data, found.room_bytes, FILL_RANDOM, 5);
    memcpy(expected, found.data, found.room_bytes);
    const pkv_rows rows = cw_rows(w, found.data), model_rows = cw_rows(w, expected);
    expect_ok(pkv_gather(&w->cache, &rows, slices, opts, &err), &err);
    convert_gather(&w->model_cache, &model_rows, slices);
    expect_same_bytes("gathered rows", found.data, expected, found.room_bytes);
    cw_expect_same(w);
    guarded_free(&found);
    free(expected);
}

typedef struct part {
    pthread_t         thread;
    pkv_parallel_body body;
    void             *ctx;
    int32_t           number;
} part;

static void *run_part(void *arg)
{
    const part *p = arg;
    p->body(p->ctx, p->number);
    return NULL;
}

void cw_threads(void *user, int32_t n_parts, pkv_parallel_body body, void *ctx)
{
    part *parts = test_alloc((size_t)n_parts * sizeof *parts);
    *(int32_t *)user = n_parts;
    for (int32_t p = 0; p < n_parts; p++) {
        parts[p].body = body;
        parts[p].ctx = ctx;
        parts[p].number = p;
        assert_int_equal(pthread_create(&parts[p].thread, NULL, run_part, &parts[p]), 0);
    }
    for (int32_t p = 0; p < n_parts; p++) {
        assert_int_equal(pthread_join(parts[p].thread, NULL), 0);
    }
    free(parts);
}

void cw_random_slices(const cw *w, rng *r, slice_list *list)
{
    const int64_t n_slots = w->shape.n_pages * w->shape.page_size;
    int64_t       slot = rng_range(r, 0, 2), row = 0;
    while (list->n < list->view.capacity) {
        const int64_t len = rng_range(r, 0, 1 + 5 * w->shape.page_size / 2);
        if (slot + len > n_slots || row + len > w->shape.n_tokens) {
            break;
        }
        slice_list_add(list, slot, row, len);
        slot += len + rng_range(r, 0, 3);
        row += len + (rng_range(r, 0, 3) == 0);
    }
    for (int64_t i = list->n - 1; i > 0; i--) {
        const int64_t other = rng_range(r, 0, i);
        int32_t      *columns[] = {list->view.kv_cache_start, list->view.new_kv_start,
                                   list->view.slice_len};
        for (size_t c = 0; c < 3; c++) {
            const int32_t kept = columns[c][i];
            columns[c][i] = columns[c][other];
            columns[c][other] = kept;
        }
    }
}
