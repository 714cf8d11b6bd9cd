/*
 * Views of arbitrary shapes, strides and addresses.  A check never crashes and
 * never reads memory but the struct; what it accepts has the properties that
 * pagedkv.h promises, counted byte by byte where the shape is small.
 */
#include "input.h"

#include <pagedkv/pagedkv.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

__extension__ typedef __int128 wide;

enum { AXES = 3, MAP_BYTES = 1 << 14, TAIL_BYTES = 24, KINDS = 3 };
enum { KIND_CACHE, KIND_NEW_KV, KIND_ROWS };

/* Any view, as the formulas of the header see it. */
typedef struct flat_plane {
    uint64_t at;
    int64_t  stride[AXES];
    int64_t  head_dim;
} flat_plane;

typedef struct flat_view {
    int64_t    n[AXES]; /* pages, tokens, heads */
    pkv_dtype  dtype;
    flat_plane plane[2];
    bool       written; /* a cache or the rows of a gather */
    int64_t    fewest_tokens;
} flat_view;

/* ---- what the header says ------------------------------------------------ */

static wide span_of(const flat_view *f, int i)
{
    wide span = (wide)f->plane[i].head_dim * pkv_dtype_bits(f->dtype) / 8;
    for (int a = 0; a < AXES; a++) {
        span += f->n[a] > 1 ? (wide)(f->n[a] - 1) * f->plane[i].stride[a] : 0;
    }
    return span;
}

static bool plane_is_sound(const flat_view *f, int i)
{
    const flat_plane *p = &f->plane[i];
    bool whole = (wide)p->head_dim * pkv_dtype_bits(f->dtype) % 8 == 0;
    for (int a = 0; a < AXES; a++) {
        if (f->n[a] > 1 && p->stride[a] < 0) {
            return false;
        }
    }
    return p->head_dim >= 1 && whole && span_of(f, i) <= INT64_MAX &&
           p->at + span_of(f, i) <= UINT64_MAX;
}

static int n_planes(const flat_view *f)
{
    return f->plane[1].head_dim != 0 ? 2 : 1;
}

static bool shape_is_sound(const flat_view *f)
{
    bool sound = f->n[0] >= 1 && f->n[1] >= f->fewest_tokens && f->n[2] >= 1 &&
                 pkv_dtype_bits(f->dtype) != 0 && (wide)f->n[0] * f->n[1] <= INT64_MAX;
    for (int i = 0; sound && i < n_planes(f); i++) {
        sound = plane_is_sound(f, i);
    }
    return sound;
}

/* Each axis, taken by rising stride, steps over everything inside it. */
static bool steps_over(const flat_view *f, int i)
{
    wide inside = (wide)f->plane[i].head_dim * pkv_dtype_bits(f->dtype) / 8;
    bool taken[AXES] = {false};
    for (int round = 0; round < AXES; round++) {
        int next = -1;
        for (int a = 0; a < AXES; a++) {
            bool smaller = next < 0 || f->plane[i].stride[a] < f->plane[i].stride[next];
            next = !taken[a] && f->n[a] > 1 && smaller ? a : next;
        }
        if (next < 0) {
            return true;
        }
        if (f->plane[i].stride[next] < inside) {
            return false;
        }
        taken[next] = true;
        inside += (wide)(f->n[next] - 1) * f->plane[i].stride[next];
    }
    return true;
}

static bool same_strides(const flat_view *f)
{
    for (int a = 0; a < AXES; a++) {
        if (f->n[a] > 1 && f->plane[0].stride[a] != f->plane[1].stride[a]) {
            return false;
        }
    }
    return true;
}

static bool apart(const flat_view *f)
{
    return f->plane[0].at + span_of(f, 0) <= f->plane[1].at ||
           f->plane[1].at + span_of(f, 1) <= f->plane[0].at;
}

/* ---- byte by byte -------------------------------------------------------- */

/* Marks all bytes of a plane that begins `at` bytes into the map; false at one marked before. */
static bool mark_plane(const flat_view *f, int i, uint64_t at, unsigned char *map)
{
    const int64_t  n_bytes = f->plane[i].head_dim * pkv_dtype_bits(f->dtype) / 8;
    const int64_t *stride = f->plane[i].stride;
    for (int64_t p = 0; p < f->n[0]; p++) {
        for (int64_t s = 0; s < f->n[1]; s++) {
            for (int64_t h = 0; h < f->n[2]; h++) {
                int64_t to = (int64_t)at + (p > 0 ? p * stride[0] : 0) +
                             (s > 0 ? s * stride[1] : 0) + (h > 0 ? h * stride[2] : 0);
                for (int64_t b = to; b < to + n_bytes; b++) {
                    if (map[b] != 0) {
                        return false;
                    }
                    map[b] = 1;
                }
            }
        }
    }
    return true;
}

/* Do all planes together lie within one map's bytes?  *first is where they begin. */
static bool is_small(const flat_view *f, uint64_t *first)
{
    const uint64_t k = f->plane[0].at, v = f->plane[1].at;
    const bool     two = n_planes(f) == 2;
    *first = two && v < k ? v : k;
    return k - *first + span_of(f, 0) <= MAP_BYTES &&
           (!two || v - *first + span_of(f, 1) <= MAP_BYTES);
}

static bool no_byte_twice(const flat_view *f, uint64_t first)
{
    unsigned char map[MAP_BYTES] = {0};
    return mark_plane(f, 0, f->plane[0].at - first, map) &&
           (n_planes(f) == 1 || mark_plane(f, 1, f->plane[1].at - first, map));
}

/* ---- the properties ------------------------------------------------------ */

/* Small views only, with memory: must the check accept this one? */
static bool must_accept(const flat_view *f, uint64_t first)
{
    if (!shape_is_sound(f) || f->n[1] == 0 || f->plane[0].at == 0 ||
        (n_planes(f) == 2 && f->plane[1].at == 0)) {
        return false;
    }
    if (!f->written) {
        return true;
    }
    bool in_step = n_planes(f) == 1 || apart(f) || same_strides(f);
    return steps_over(f, 0) && (n_planes(f) == 1 || steps_over(f, 1)) && in_step &&
           no_byte_twice(f, first);
}

static void check_verdict(const flat_view *f, pkv_status status)
{
    uint64_t first = 0;
    if (status != PKV_OK) {
        if (shape_is_sound(f) && is_small(f, &first) && must_accept(f, first)) {
            fail_msg("a good view was refused");
        }
        return;
    }
    assert_true(shape_is_sound(f));
    assert_true(f->n[1] == 0 || f->fewest_tokens == 1 || f->plane[0].at != 0);
    assert_true(f->n[1] == 0 || f->plane[0].at == 0 || n_planes(f) == 1 || f->plane[1].at != 0);
    bool sized = f->plane[0].at == 0 && f->plane[1].at == 0; /* V has no place yet */
    if (f->written && f->n[1] > 0 && !(sized && n_planes(f) == 2) && is_small(f, &first)) {
        assert_true(no_byte_twice(f, first));
    }
}

static void check_bytes(const pkv_cache *cache, const flat_view *f)
{
    int64_t k = -1, v = -1, total = -1;
    if (pkv_cache_bytes(cache, &k, &v, &total, NULL) != PKV_OK) {
        assert_true(k == -1 && v == -1 && total == -1);
        assert_true(n_planes(f) == 2 && span_of(f, 0) + span_of(f, 1) > INT64_MAX);
        return;
    }
    wide v_span = n_planes(f) == 2 ? span_of(f, 1) : 0;
    wide v_at = (wide)f->plane[1].at - (wide)f->plane[0].at;
    wide expected = span_of(f, 0) + v_span;
    if (v_span > 0 && v_at > 0 && v_at <= span_of(f, 0)) {
        expected = v_at + v_span > span_of(f, 0) ? v_at + v_span : span_of(f, 0);
    }
    assert_true(k == span_of(f, 0) && v == v_span && total == expected);
}

/* ---- drawing views ------------------------------------------------------- */

static uint64_t take_address(input *in)
{
    return take_chance(in, 8) ? (uint64_t)take_number(in) : 4096 + (uint64_t)take_range(in, 0, 999);
}

static void take_view(input *in, int kind, flat_view *f)
{
    *f = (flat_view){.written = kind != KIND_NEW_KV, .fewest_tokens = kind == KIND_CACHE};
    for (int a = 0; a < AXES; a++) {
        f->n[a] = take_chance(in, 8) ? take_number(in) : take_range(in, 1, 5);
    }
    f->n[0] = kind == KIND_CACHE ? f->n[0] : 1;
    f->dtype = take_mostly(in, 0, 11);
    const uint64_t bits = (uint64_t)pkv_dtype_bits(f->dtype);
    for (int i = 0; i < 2; i++) {
        f->plane[i].at = take_address(in);
        f->plane[i].head_dim = take_chance(in, 8) ? take_number(in) : take_range(in, 1, 16);
        take_strides(in, f->n, (int64_t)((uint64_t)f->plane[i].head_dim * bits / 8),
                     f->plane[i].stride);
        if (take_chance(in, 8)) {
            f->plane[i].stride[take_range(in, 0, AXES - 1)] = take_number(in);
        }
    }
    if (take_chance(in, 2)) { /* V as K, but for its place and its width */
        memcpy(f->plane[1].stride, f->plane[0].stride, sizeof f->plane[1].stride);
    }
    if (take_chance(in, 4)) {
        f->plane[1] = (flat_plane){0};
    }
}

/* ---- from flat to public ------------------------------------------------- */

static pkv_cache to_cache(const flat_view *f)
{
    pkv_plane plane[2];
    for (int i = 0; i < 2; i++) {
        const flat_plane *p = &f->plane[i];
        plane[i] = (pkv_plane){(void *)(uintptr_t)p->at, p->stride[0], p->stride[1], p->stride[2],
                               p->head_dim};
    }
    return (pkv_cache){.struct_size = sizeof(pkv_cache), .n_pages = f->n[0], .page_size = f->n[1],
                       .n_heads = f->n[2], .dtype = f->dtype, .k = plane[0], .v = plane[1]};
}

static pkv_rows to_rows(const flat_view *f)
{
    pkv_rows_plane plane[2];
    for (int i = 0; i < 2; i++) {
        const flat_plane *p = &f->plane[i];
        plane[i] = (pkv_rows_plane){(void *)(uintptr_t)p->at, p->stride[1], p->stride[2],
                                    p->head_dim};
    }
    return (pkv_rows){.struct_size = sizeof(pkv_rows), .n_tokens = f->n[1], .n_heads = f->n[2],
                      .dtype = f->dtype, .k = plane[0], .v = plane[1]};
}

static flat_view from_cache(const pkv_cache *c)
{
    flat_view f = {.n = {c->n_pages, c->page_size, c->n_heads}, .dtype = c->dtype,
                   .written = true, .fewest_tokens = 1};
    const pkv_plane *planes[2] = {&c->k, &c->v};
    for (int i = 0; i < 2; i++) {
        f.plane[i] = (flat_plane){(uintptr_t)planes[i]->data,
                                  {planes[i]->page_stride_bytes, planes[i]->token_stride_bytes,
                                   planes[i]->head_stride_bytes},
                                  planes[i]->head_dim};
    }
    return f;
}

/* ---- the checks under test ----------------------------------------------- */

static pkv_status run_check(int kind, const void *view, pkv_error *err)
{
    switch (kind) {
    case KIND_CACHE:
        return pkv_cache_check(view, err);
    case KIND_NEW_KV:
        return pkv_new_kv_check(view, err);
    default:
        return pkv_rows_check(view, err);
    }
}

/* A failure fills the whole error, success none of it. */
static void check_error(pkv_status status, const pkv_error *err)
{
    const pkv_error unset = {.code = 99};
    if (status == PKV_OK) {
        assert_int_equal(err->code, unset.code);
        assert_true(err->what == NULL);
        return;
    }
    assert_true(status == PKV_E_INVALID || status == PKV_E_UNSUPPORTED);
    assert_int_equal(err->code, status);
    assert_int_equal(err->index, -1);
    assert_true(err->what != NULL && err->what[0] != '\0');
}

/* The view with a struct_size and a tail of some other version behind it. */
static void fuzz_versions(input *in, int kind, const void *view, size_t view_bytes)
{
    const size_t   tail_bytes = (size_t)take_range(in, 0, TAIL_BYTES);
    const size_t   struct_size = take_chance(in, 4) ? (size_t)take_range(in, 0, (int64_t)view_bytes)
                                                    : view_bytes + tail_bytes;
    unsigned char *longer = exactly(view_bytes + tail_bytes);
    memcpy(longer, view, view_bytes);
    memcpy(longer, &struct_size, sizeof struct_size);
    bool unknown = false;
    for (size_t i = 0; i < tail_bytes; i++) {
        longer[view_bytes + i] = take_byte(in);
        unknown = unknown || (struct_size > view_bytes && longer[view_bytes + i] != 0);
    }
    bool       refused = struct_size < view_bytes || unknown;
    pkv_status expected = refused ? PKV_E_UNSUPPORTED : run_check(kind, view, NULL);
    assert_int_equal(run_check(kind, longer, NULL), expected);
    free(longer);
}

static void fuzz_view(input *in)
{
    const int kind = (int)take_range(in, 0, KINDS - 1);
    flat_view f;
    take_view(in, kind, &f);
    pkv_cache  cache = to_cache(&f);
    pkv_rows   rows = to_rows(&f);
    pkv_new_kv new_kv;
    memcpy(&new_kv, &rows, sizeof new_kv); /* the same members, but for const */
    new_kv.struct_size = sizeof new_kv;
    uint32_t flags = take_chance(in, 8) ? (uint32_t)take_int32(in) : 0;
    cache.flags = rows.flags = new_kv.flags = flags;
    bool         unknown = (flags & ~(kind == KIND_CACHE ? (uint32_t)PKV_CACHE_SHARED : 0)) != 0;
    const void  *views[KINDS] = {&cache, &new_kv, &rows};
    const size_t view_bytes[KINDS] = {sizeof cache, sizeof new_kv, sizeof rows};

    pkv_error  err = {.code = 99};
    pkv_status status = run_check(kind, views[kind], &err);
    check_error(status, &err);
    assert_int_equal(run_check(kind, views[kind], NULL), status);
    if (unknown) {
        assert_int_equal(status, PKV_E_UNSUPPORTED);
    } else {
        check_verdict(&f, status);
    }
    if (status == PKV_OK && kind == KIND_CACHE) {
        check_bytes(&cache, &f);
    }
    fuzz_versions(in, kind, views[kind], view_bytes[kind]);
}

/* ---- builders ------------------------------------------------------------ */

static pkv_status build(input *in, pkv_cache *out, const int64_t n[5], pkv_dtype dtype, void *k)
{
    void *v = take_chance(in, 4) ? (void *)(uintptr_t)take_address(in) : NULL;
    switch (take_range(in, 0, 4)) {
    case 0:
        return pkv_cache_combined(out, sizeof *out, k, n[0], n[1], n[2], n[3], dtype);
    case 1:
        return pkv_cache_nhd(out, sizeof *out, k, v, n[0], n[1], n[2], n[3], dtype);
    case 2:
        return pkv_cache_hnd(out, sizeof *out, k, v, n[0], n[1], n[2], n[3], dtype);
    case 3:
        return pkv_cache_content(out, sizeof *out, k, n[0], n[1], n[2], n[3], n[4], dtype);
    default:
        return pkv_cache_mla(out, sizeof *out, k, n[0], n[1], n[3], n[4],
                             n[3] < 1000 ? n[3] + take_range(in, 0, 9) : n[3], take_number(in),
                             dtype);
    }
}

static void fuzz_builder(input *in)
{
    int64_t n[5];
    for (int i = 0; i < 5; i++) {
        n[i] = take_chance(in, 4) ? take_number(in) : take_range(in, 1, 40);
    }
    pkv_dtype dtype = take_mostly(in, 1, 10);
    void     *k = take_chance(in, 2) ? (void *)(uintptr_t)take_address(in) : NULL;
    pkv_cache built, untouched;
    memset(&untouched, 0x5A, sizeof untouched);
    built = untouched;
    if (build(in, &built, n, dtype, k) != PKV_OK) {
        assert_true(memcmp(&built, &untouched, sizeof built) == 0);
        return;
    }
    flat_view f = from_cache(&built);
    assert_int_equal(pkv_cache_check(&built, NULL), PKV_OK);
    assert_true(f.n[0] == n[0] && f.n[1] == n[1] && f.plane[0].head_dim == n[3]);
    check_verdict(&f, PKV_OK);
    check_bytes(&built, &f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input in = {data, size};
    if (take_chance(&in, 4)) {
        fuzz_builder(&in);
    } else {
        fuzz_view(&in);
    }
    return 0;
}
