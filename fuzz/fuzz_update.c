/*
 * Updates and gathers over any views that nest, with any slices, options and
 * instruction sets, against the tests' byte model: what must be written is, and
 * no other byte of the memory changes.
 */
#include "input.h"

#include <stdlib.h>
#include <string.h>

#include "../tests/model.h"

enum {
    MAX_LAYERS = 3,
    MAX_COLUMNS = 24,
    MAX_TOKENS = 256,
    MAX_BYTES = 400 << 10, /* room for several parts of a payload */
    SLACK_BYTES = 70
};

/* Memory and a view of it.  Rows are a cache of one page of T tokens. */
typedef struct side {
    unsigned char *memory;
    size_t         n_bytes;
    pkv_cache      view;
} side;

typedef struct layer {
    side cache;
    side rows;
} layer;

/* Sizes that all layers share, so that one plan fits them all. */
typedef struct job {
    bool            gather;
    int64_t         n_pages, page_size, n_tokens;
    int64_t         n_layers;
    layer           layers[MAX_LAYERS];
    int32_t         columns[3 * MAX_COLUMNS];
    int32_t         n;
    pkv_slices      slices;
    pkv_update_opts opts;
    int32_t         first_part; /* the caller's threads start there and go round */
} job;

/* ---- views --------------------------------------------------------------- */

/* Views of no rows are laid out as for one: even then K and V must lie apart. */
static int64_t at_least_one(int64_t n)
{
    return n > 0 ? n : 1;
}

/* The planes beside each other, interleaved by head, or interleaved by token. */
static void take_planes(input *in, pkv_cache *c, const int64_t head_bytes[2], bool may_repeat)
{
    const int64_t n[3] = {c->n_pages, at_least_one(c->page_size), c->n_heads};
    int64_t stride[2][3];
    int64_t v_at = 0; /* 0: beside K */
    switch (take_range(in, 0, 3)) {
    case 0:
        v_at = head_bytes[0] + take_range(in, 0, 2) * take_range(in, 0, 9);
        take_strides(in, n, v_at + head_bytes[1], stride[0]);
        memcpy(stride[1], stride[0], sizeof stride[0]);
        break;
    case 1:
        v_at = c->n_heads * head_bytes[0];
        const int64_t whole[3] = {n[0], n[1], 1};
        take_strides(in, whole, v_at + c->n_heads * head_bytes[1], stride[0]);
        memcpy(stride[1], stride[0], sizeof stride[0]);
        stride[0][2] = head_bytes[0];
        stride[1][2] = head_bytes[1];
        break;
    default:
        take_strides(in, n, head_bytes[0], stride[0]);
        take_strides(in, n, head_bytes[1], stride[1]);
        break;
    }
    if (may_repeat && take_chance(in, 8)) {
        stride[0][1] = stride[1][1] = 0;
    }
    for (int i = 0; i < 6; i++) { /* the stride of a single element means nothing */
        if (n[i % 3] == 1 && take_chance(in, 4)) {
            stride[i / 3][i % 3] = take_number(in);
        }
    }
    c->k = (pkv_plane){NULL, stride[0][0], stride[0][1], stride[0][2], c->k.head_dim};
    c->v = (pkv_plane){(void *)(uintptr_t)v_at, stride[1][0], stride[1][1], stride[1][2],
                       c->v.head_dim};
}

static int64_t plane_bytes(pkv_cache c, const pkv_plane *p)
{
    c.page_size = at_least_one(c.page_size);
    return model_plane_bytes(&c, p);
}

/* Gives the view memory with noise in it, and a little room at both ends; false if too much. */
static bool place_planes(input *in, side *s)
{
    pkv_cache *c = &s->view;
    int64_t    k_bytes = plane_bytes(*c, &c->k), v_bytes = plane_bytes(*c, &c->v);
    int64_t    v_at = (int64_t)(uintptr_t)c->v.data;
    int64_t    k_at = take_range(in, 0, SLACK_BYTES);
    if (v_at == 0 && take_chance(in, 2)) {
        v_at = k_at;
        k_at += v_bytes + take_range(in, 0, 9);
    } else {
        v_at += k_at + (v_at == 0 ? k_bytes + take_range(in, 0, 9) : 0);
    }
    int64_t end = k_at + k_bytes > v_at + v_bytes ? k_at + k_bytes : v_at + v_bytes;
    end += take_chance(in, 2) ? take_range(in, 0, SLACK_BYTES) : 0;
    if (end > MAX_BYTES) {
        return false;
    }
    s->n_bytes = (size_t)end;
    s->memory = exactly(s->n_bytes);
    fill_noise(s->memory, s->n_bytes);
    c->k.data = s->memory + k_at;
    c->v.data = s->memory + v_at;
    if (c->v.head_dim == 0) {
        memset(&c->v, 0, sizeof c->v);
    }
    return true;
}

static bool take_layer(input *in, const job *j, bool large, layer *l)
{
    int64_t dim[2];
    l->cache.view = (pkv_cache){.struct_size = sizeof(pkv_cache), .n_pages = j->n_pages,
                                .page_size = j->page_size, .n_heads = take_range(in, 1, 4),
                                .dtype = (pkv_dtype)take_range(in, 1, 10)};
    dim[0] = take_range(in, 1, large ? 900 : 80);
    dim[1] = take_chance(in, 2) ? take_range(in, 0, large ? 900 : 80) : dim[0];
    int64_t head_bytes[2];
    for (int i = 0; i < 2; i++) {
        dim[i] += l->cache.view.dtype == PKV_DTYPE_INT4 ? dim[i] % 2 : 0;
        head_bytes[i] = model_row_bytes(l->cache.view.dtype, dim[i]);
    }
    l->cache.view.k.head_dim = dim[0];
    l->cache.view.v.head_dim = dim[1];
    l->rows.view = l->cache.view;
    l->rows.view.n_pages = 1;
    l->rows.view.page_size = j->n_tokens;
    l->cache.view.flags = take_chance(in, 8) ? PKV_CACHE_SHARED : 0;
    take_planes(in, &l->cache.view, head_bytes, false);
    take_planes(in, &l->rows.view, head_bytes, !j->gather);
    return place_planes(in, &l->cache) && place_planes(in, &l->rows);
}

static pkv_rows rows_of(const pkv_cache *c)
{
    const pkv_plane *k = &c->k, *v = &c->v;
    return (pkv_rows){
        .struct_size = sizeof(pkv_rows), .n_tokens = c->page_size, .n_heads = c->n_heads,
        .dtype = c->dtype,
        .k = {k->data, k->token_stride_bytes, k->head_stride_bytes, k->head_dim},
        .v = {v->data, v->token_stride_bytes, v->head_stride_bytes, v->head_dim}};
}

static pkv_new_kv new_kv_of(const pkv_cache *c)
{
    pkv_rows rows = rows_of(c);
    return (pkv_new_kv){.struct_size = sizeof(pkv_new_kv), .n_tokens = rows.n_tokens,
                        .n_heads = rows.n_heads, .dtype = rows.dtype,
                        .k = {rows.k.data, rows.k.token_stride_bytes, rows.k.head_stride_bytes,
                              rows.k.head_dim},
                        .v = {rows.v.data, rows.v.token_stride_bytes, rows.v.head_stride_bytes,
                              rows.v.head_dim}};
}

/* ---- slices and options -------------------------------------------------- */

static void take_slices(input *in, job *j)
{
    const int64_t n_slots = j->n_pages * j->page_size;
    const bool    in_order = !take_chance(in, 4);
    const bool    exact = take_chance(in, 4);
    int64_t       capacity = take_range(in, 0, MAX_COLUMNS), slot = 0, row = 0;
    pkv_slices_from_array(&j->slices, sizeof j->slices, j->columns, capacity, &j->n);
    j->n = take_chance(in, 32) ? take_int32(in) : (int32_t)take_range(in, 0, capacity);
    for (int64_t i = 0; i < capacity; i++) {
        slot = in_order ? slot + take_range(in, 0, 2) : take_range(in, 0, n_slots);
        row = in_order ? row + (exact ? 0 : take_range(in, 0, 1)) : take_range(in, 0, j->n_tokens);
        slot = slot < n_slots ? slot : n_slots;
        row = row < j->n_tokens ? row : j->n_tokens;
        int64_t most = n_slots - slot < j->n_tokens - row ? n_slots - slot : j->n_tokens - row;
        int64_t page_rest = j->page_size - slot % j->page_size;
        int64_t len = take_range(in, 0, exact && page_rest < most ? page_rest : most);
        j->slices.kv_cache_start[i] = (int32_t)slot;
        j->slices.new_kv_start[i] = (int32_t)row;
        j->slices.slice_len[i] = (int32_t)len;
        slot += len;
        row += len;
    }
    if (capacity > 0 && take_chance(in, 8)) {
        j->columns[take_range(in, 0, 3 * capacity - 1)] = take_int32(in);
    }
}

static void run_parts(void *user, int32_t n_parts, pkv_parallel_body body, void *ctx)
{
    const job *j = user;
    for (int32_t p = 0; p < n_parts; p++) {
        body(ctx, (p + j->first_part) % n_parts);
    }
}

static void take_opts(input *in, job *j)
{
    j->opts = (pkv_update_opts){.struct_size = sizeof j->opts,
                                .flags = (uint32_t)take_range(in, 0, 15),
                                .max_threads = (int32_t)take_range(in, 0, 9)};
    j->opts.flags &= take_chance(in, 4) ? ~0u : ~(uint32_t)PKV_UPDATE_STRICT;
    j->first_part = (int32_t)take_range(in, 0, 8);
    if (!take_chance(in, 8)) {
        j->opts.parallel_for = run_parts;
        j->opts.parallel_user = j;
    }
}

static bool take_job(input *in, job *j)
{
    memset(j, 0, sizeof *j);
    const bool large = take_chance(in, 16);
    j->gather = take_chance(in, 2);
    j->n_pages = take_range(in, 1, 4);
    j->page_size = take_range(in, 1, large ? 64 : 9);
    j->n_tokens = take_range(in, 0, large ? MAX_TOKENS : 40);
    j->n_layers = take_chance(in, 4) ? take_range(in, 1, MAX_LAYERS) : 1;
    take_slices(in, j);
    take_opts(in, j);
    for (int64_t i = 0; i < j->n_layers; i++) {
        if (!take_layer(in, j, large, &j->layers[i])) {
            return false;
        }
    }
    return true;
}

static void free_job(job *j)
{
    for (int64_t i = 0; i < MAX_LAYERS; i++) {
        free(j->layers[i].cache.memory);
        free(j->layers[i].rows.memory);
    }
}

/* ---- which slices are right ---------------------------------------------- */

static bool slice_is_good(const job *j, int64_t i, bool strict)
{
    const int64_t dst = j->slices.kv_cache_start[i], src = j->slices.new_kv_start[i];
    const int64_t len = j->slices.slice_len[i], size = j->page_size;
    bool good = dst >= 0 && src >= 0 && len >= 0 && src + len <= j->n_tokens &&
                dst + len <= j->n_pages * size;
    return good && (!strict || (len > 0 && dst / size == (dst + len - 1) / size));
}

static bool meet(const int32_t *starts, const int32_t *lens, int64_t a, int64_t b)
{
    return starts[a] < starts[b] + lens[b] && starts[b] < starts[a] + lens[a];
}

/* Strict mode, over slices that are each good: do cache ranges meet, or new_kv ranges not join? */
static bool order_is_good(const job *j)
{
    const int32_t *lens = j->slices.slice_len, *src = j->slices.new_kv_start;
    int64_t        n_followed = 0;
    for (int64_t a = 0; a < j->n; a++) {
        bool followed = false;
        for (int64_t b = 0; b < j->n; b++) {
            if (a != b && (meet(j->slices.kv_cache_start, lens, a, b) || meet(src, lens, a, b))) {
                return false;
            }
            followed = followed || src[b] == src[a] + lens[a];
        }
        n_followed += followed;
    }
    return j->n == 0 || n_followed == j->n - 1;
}

enum { BAD_COUNT = -1, BAD_ORDER = MAX_COLUMNS, ALL_GOOD };

/* The lowest bad slice, or one of these. */
static int64_t first_bad(const job *j)
{
    const bool strict = (j->opts.flags & PKV_UPDATE_STRICT) != 0;
    if (j->n < 0 || j->n > j->slices.capacity) {
        return BAD_COUNT;
    }
    for (int64_t i = 0; i < j->n; i++) {
        if (!slice_is_good(j, i, strict)) {
            return i;
        }
    }
    return strict && !order_is_good(j) ? BAD_ORDER : ALL_GOOD;
}

/* ---- running ------------------------------------------------------------- */

/* The same view of other memory. */
static pkv_cache move_view(const side *s, unsigned char *to)
{
    pkv_cache moved = s->view;
    moved.k.data = to + ((unsigned char *)s->view.k.data - s->memory);
    if (s->view.v.data != NULL) {
        moved.v.data = to + ((unsigned char *)s->view.v.data - s->memory);
    }
    return moved;
}

static side *written_side(job *j, int64_t i)
{
    return j->gather ? &j->layers[i].rows : &j->layers[i].cache;
}

static pkv_status call(job *j, pkv_error *err)
{
    pkv_cache  caches[MAX_LAYERS];
    pkv_new_kv new_kvs[MAX_LAYERS];
    pkv_rows   rows[MAX_LAYERS];
    for (int64_t i = 0; i < j->n_layers; i++) {
        caches[i] = j->layers[i].cache.view;
        new_kvs[i] = new_kv_of(&j->layers[i].rows.view);
        rows[i] = rows_of(&j->layers[i].rows.view);
    }
    return j->gather ? pkv_gather_layers(caches, rows, NULL, j->n_layers, &j->slices, 1, &j->opts,
                                         err)
                     : pkv_update_layers(caches, new_kvs, NULL, j->n_layers, &j->slices, 1,
                                         &j->opts, err);
}

/* What the model makes of a copy of the written side's memory; a bad call changes nothing. */
static unsigned char *model_result(job *j, int64_t i, bool good)
{
    side          *s = written_side(j, i);
    unsigned char *expected = exactly(s->n_bytes);
    memcpy(expected, s->memory, s->n_bytes);
    pkv_cache moved = move_view(s, expected);
    if (good && j->gather) {
        pkv_rows rows = rows_of(&moved);
        model_gather(&j->layers[i].cache.view, &rows, &j->slices);
    } else if (good && (s->view.flags & PKV_CACHE_SHARED) == 0) {
        pkv_new_kv new_kv = new_kv_of(&j->layers[i].rows.view);
        model_update(&moved, &new_kv, &j->slices);
    }
    return expected;
}

static void copy_token(const pkv_cache *to, const pkv_cache *from, int64_t slot)
{
    const pkv_plane *planes[2][2] = {{&to->k, &from->k}, {&to->v, &from->v}};
    for (int i = 0; i < 2 && planes[i][0]->data != NULL; i++) {
        const pkv_plane *p = planes[i][0];
        for (int64_t h = 0; h < to->n_heads; h++) {
            int64_t at = slot / to->page_size * p->page_stride_bytes +
                         slot % to->page_size * p->token_stride_bytes + h * p->head_stride_bytes;
            memcpy((unsigned char *)p->data + at, (unsigned char *)planes[i][1]->data + at,
                   (size_t)model_row_bytes(to->dtype, p->head_dim));
        }
    }
}

/* Tokens that two slices name hold unspecified bytes: the model takes over what was found. */
static void settle_overlaps(job *j, int64_t i, unsigned char *expected)
{
    const side    *s = written_side(j, i);
    const pkv_cache to = move_view(s, expected);
    const int32_t *starts = j->gather ? j->slices.new_kv_start : j->slices.kv_cache_start;
    int            n_named[MAX_TOKENS] = {0};
    for (int64_t k = 0; k < j->n; k++) {
        for (int32_t t = 0; t < j->slices.slice_len[k]; t++) {
            if (++n_named[starts[k] + t] == 2) {
                copy_token(&to, &s->view, starts[k] + t);
            }
        }
    }
}

/* One call with one instruction set.  On failure the model's memory is what there was before. */
static void check_call(job *j, int64_t bad, unsigned char *const expected[MAX_LAYERS])
{
    pkv_error  err = {0};
    const bool good = bad == ALL_GOOD;
    pkv_status status = call(j, &err);
    if (good) {
        expect_ok(status, &err);
    } else {
        assert_true(status == PKV_E_RANGE || status == PKV_E_STRICT);
        assert_int_equal(err.code, status);
        assert_true(err.index == bad || (bad == BAD_ORDER && status == PKV_E_STRICT));
    }
    for (int64_t i = 0; i < j->n_layers; i++) {
        const side *s = written_side(j, i);
        if (good && (j->gather || (s->view.flags & PKV_CACHE_SHARED) == 0)) {
            settle_overlaps(j, i, expected[i]);
        }
        expect_same_bytes("memory", s->memory, expected[i], s->n_bytes);
    }
}

static void check_job(job *j)
{
    unsigned char *before[MAX_LAYERS], *expected[MAX_LAYERS];
    const int64_t  bad = first_bad(j);
    for (int64_t i = 0; i < j->n_layers; i++) {
        const side *s = written_side(j, i);
        before[i] = exactly(s->n_bytes);
        memcpy(before[i], s->memory, s->n_bytes);
        expected[i] = model_result(j, i, bad == ALL_GOOD);
    }
    for (int32_t isa = 0; pkv_isa_name(isa) != NULL; isa++) {
        if (pkv_isa_select(pkv_isa_name(isa)) == PKV_OK) {
            note_case(pkv_isa_name(isa), 0, "%s of %d slices, %d layers",
                      j->gather ? "gather" : "update", j->n, (int)j->n_layers);
            check_call(j, bad, expected);
        }
        for (int64_t i = 0; i < j->n_layers; i++) {
            const side *s = written_side(j, i);
            memcpy(s->memory, before[i], s->n_bytes);
        }
    }
    for (int64_t i = 0; i < j->n_layers; i++) {
        free(before[i]);
        free(expected[i]);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input in = {data, size};
    job   j;
    if (take_job(&in, &j)) {
        check_job(&j);
    }
    free_job(&j);
    return 0;
}
