/* Update and gather: arrays to views, views to the library. */
#include "core.h"

#include <stdio.h>

/* The arrays of one call; V is absent in the combined form. */
typedef struct call {
    array      k, v, slices, k_cache, v_cache, count;
    bool       gather, apart;
    int32_t    n;
    uint32_t   flags;
    int64_t    page_size; /* 0: what a 4-D cache says; of a 3-D one, all that strict mode needs */
    pkv_slices plan;
} call;

enum { ARG_GATHER, ARG_K, ARG_V, ARG_SLICES, ARG_K_CACHE, ARG_V_CACHE, ARG_N, ARG_PAGE_SIZE,
       ARG_FLAGS, N_ARGS };

/* Below this, waking a thread that sleeps takes longer than it saves. */
static const int64_t THREADS_FROM_BYTES = 4 << 20;

pkv_update_opts core_opts(uint32_t flags, int64_t bytes)
{
    int32_t threads = bytes < THREADS_FROM_BYTES ? 1 : pool_get_threads();
    return (pkv_update_opts){.struct_size = sizeof(pkv_update_opts),
                             .flags = flags,
                             .max_threads = threads,
                             .parallel_for = threads > 1 ? pool_parallel_for : NULL};
}

/* ---- the count ----------------------------------------------------------------- */

static bool count_of_array(array *a, PyObject *obj, int64_t *out)
{
    if (!array_open(a, obj, "num_kv_update_slices", false)) {
        return false;
    }
    bool one = a->n_dims == 0 || (a->n_dims == 1 && a->shape[0] == 1);
    if (!one || (!array_is_int32(a) && !array_is_int64(a))) {
        raise_invalid("num_kv_update_slices: is not one int32 or int64");
        return false;
    }
    *out = array_is_int32(a) ? *(const int32_t *)(const void *)a->data
                             : *(const int64_t *)(const void *)a->data;
    return true;
}

static bool read_count(call *c, PyObject *obj)
{
    int64_t n = 0;
    if (PyLong_Check(obj)) {
        int over = 0;
        n = PyLong_AsLongLongAndOverflow(obj, &over);
        n = over < 0 ? INT64_MIN : over > 0 ? INT64_MAX : n;
    } else if (!count_of_array(&c->count, obj, &n)) {
        return false;
    }
    /* Out of int32 it is out of every range; the library names the range. */
    c->n = n < INT32_MIN ? INT32_MIN : n > INT32_MAX ? INT32_MAX : (int32_t)n;
    return true;
}

/* ---- views ---------------------------------------------------------------------- */

bool slices_open(pkv_slices *out, const array *a, int32_t *n)
{
    if (!array_is_int32(a)) {
        raise_invalid("%s: holds %s, not int32", a->name, dtype_name(a->dtype));
        return false;
    }
    if (a->n_dims != 2 || a->shape[0] != 3) {
        raise_invalid("%s: is not of shape [3, N]", a->name);
        return false;
    }
    if (a->shape[1] > 1 && a->stride_bytes[1] != a->item_bytes) {
        raise_invalid("%s: its rows are not contiguous; pass a [3, N] array, not the transpose "
                      "of [N, 3]", a->name);
        return false;
    }
    int32_t *rows[3];
    for (int i = 0; i < 3; i++) {
        rows[i] = (int32_t *)(void *)(a->data + i * a->stride_bytes[0]);
    }
    *out = (pkv_slices){.struct_size = sizeof *out,
                        .capacity = a->shape[1],
                        .kv_cache_start = rows[0],
                        .new_kv_start = rows[1],
                        .slice_len = rows[2],
                        .num_slices = n};
    return true;
}

/* Opaque items of the same size; wider ones are several of 32 bits. */
static bool opaque_dtype(const array *a, pkv_dtype *dtype, int64_t *head_dim)
{
    int64_t items = a->shape[a->n_dims - 1];
    switch (a->item_bytes) {
    case 1: *dtype = PKV_DTYPE_BITS8; break;
    case 2: *dtype = PKV_DTYPE_BITS16; break;
    case 4: *dtype = PKV_DTYPE_BITS32; break;
    case 8: *dtype = PKV_DTYPE_BITS32; items *= 2; break;
    case 16: *dtype = PKV_DTYPE_BITS32; items *= 4; break;
    default: raise_unsupported("%s: has items of %lld bytes", a->name, (long long)a->item_bytes);
             return false;
    }
    *head_dim = items;
    return true;
}

static bool last_is_dense(const array *a)
{
    int last = a->n_dims - 1;
    if (a->shape[last] > 1 && a->stride_bytes[last] != a->item_bytes) {
        raise_invalid("%s: its last axis is not contiguous", a->name);
        return false;
    }
    return true;
}

/* Rows [T, H, D]. */
static bool rows_plane(const array *a, pkv_rows_plane *out, pkv_dtype *dtype)
{
    if (a->n_dims != 3) {
        raise_invalid("%s: has %d dimensions, not the 3 of [tokens, heads, head_dim]", a->name,
                      a->n_dims);
        return false;
    }
    if ((a->shape[0] > 0 && !last_is_dense(a)) || !opaque_dtype(a, dtype, &out->head_dim)) {
        return false;
    }
    out->data = a->data;
    if (a->shape[0] == 0) { /* strides of nothing are whatever a library says: zeros, often */
        out->head_stride_bytes = a->shape[2] * a->item_bytes;
        return true;
    }
    out->token_stride_bytes = a->shape[0] > 1 ? a->stride_bytes[0] : 0;
    out->head_stride_bytes = a->shape[1] > 1 ? a->stride_bytes[1] : 0;
    return true;
}

/* A cache [P*S, H, D] or [P, S, H, D]; sizes go to `cache`. */
static bool cache_plane(call *c, const array *a, pkv_cache *cache, pkv_plane *out)
{
    int     paged = a->n_dims == 4;
    int64_t page_size = paged ? a->shape[1] : c->page_size > 0 ? c->page_size : 1;
    if (a->n_dims != 3 && !paged) {
        raise_invalid("%s: has %d dimensions, neither [pages * page_size, heads, head_dim] nor "
                      "[pages, page_size, heads, head_dim]", a->name, a->n_dims);
        return false;
    }
    if (!paged && c->page_size == 0 && (c->flags & PKV_UPDATE_STRICT) != 0) {
        raise_invalid("page_size: strict mode needs it for a cache of 3 dimensions");
        return false;
    }
    if (paged && c->page_size > 0 && c->page_size != page_size) {
        raise_invalid("page_size: is %lld, but %s has pages of %lld", (long long)c->page_size,
                      a->name, (long long)page_size);
        return false;
    }
    if (page_size < 1 || (!paged && a->shape[0] % page_size != 0)) {
        raise_invalid("%s: its %lld slots are no whole number of pages of %lld", a->name,
                      (long long)a->shape[0], (long long)page_size);
        return false;
    }
    if (!last_is_dense(a) || !opaque_dtype(a, &cache->dtype, &out->head_dim)) {
        return false;
    }
    cache->page_size = page_size;
    cache->n_pages = paged ? a->shape[0] : a->shape[0] / page_size;
    cache->n_heads = a->shape[a->n_dims - 2];
    out->data = a->data;
    out->token_stride_bytes = a->stride_bytes[paged];
    out->head_stride_bytes = a->stride_bytes[paged + 1];
    if (__builtin_mul_overflow(a->stride_bytes[0], paged ? 1 : page_size,
                               &out->page_stride_bytes)) {
        raise_invalid("%s: has a stride that overflows", a->name);
        return false;
    }
    return true;
}

static bool same_dtype(const array *a, const array *b)
{
    if (a->dtype != b->dtype || a->item_bytes != b->item_bytes) {
        /* dtype_name may use one buffer for both. */
        char first[64];
        snprintf(first, sizeof first, "%s", dtype_name(a->dtype));
        raise_invalid("%s: holds %s, but %s holds %s; a copy keeps the bits, so both must be the "
                      "same", a->name, first, b->name, dtype_name(b->dtype));
        return false;
    }
    return true;
}

/* What the library would say of "shapes", in the words of the arguments. */
static bool same_shape(const array *rows, const array *cache)
{
    int64_t heads = cache->shape[cache->n_dims - 2], dim = cache->shape[cache->n_dims - 1];
    if (rows->shape[1] != heads || rows->shape[2] != dim) {
        raise_invalid("%s: has heads of [%lld, %lld], but %s of [%lld, %lld]", rows->name,
                      (long long)rows->shape[1], (long long)rows->shape[2], cache->name,
                      (long long)heads, (long long)dim);
        return false;
    }
    return true;
}

/* Both caches are of one shape but for the head_dim. */
static bool same_pages(const pkv_cache *k, const pkv_cache *v)
{
    if (k->n_pages != v->n_pages || k->page_size != v->page_size || k->n_heads != v->n_heads ||
        k->dtype != v->dtype) {
        raise_invalid("value_cache: differs from key_cache in pages, page size, heads or dtype");
        return false;
    }
    return true;
}

static bool build(call *c, pkv_cache *cache, pkv_rows *rows)
{
    *cache = (pkv_cache){.struct_size = sizeof *cache};
    *rows = (pkv_rows){.struct_size = sizeof *rows};
    if (!rows_plane(&c->k, &rows->k, &rows->dtype) ||
        !cache_plane(c, &c->k_cache, cache, &cache->k) || !same_dtype(&c->k, &c->k_cache) ||
        !same_shape(&c->k, &c->k_cache)) {
        return false;
    }
    rows->n_tokens = c->k.shape[0];
    rows->n_heads = c->k.shape[1];
    if (!c->apart) {
        return true;
    }
    pkv_cache v_cache = *cache;
    pkv_dtype v_dtype;
    if (!rows_plane(&c->v, &rows->v, &v_dtype) ||
        !cache_plane(c, &c->v_cache, &v_cache, &cache->v) || !same_dtype(&c->v, &c->v_cache) ||
        !same_dtype(&c->v, &c->k) || !same_shape(&c->v, &c->v_cache) ||
        !same_pages(cache, &v_cache)) {
        return false;
    }
    if (c->v.shape[0] != c->k.shape[0] || c->v.shape[1] != c->k.shape[1]) {
        raise_invalid("%s: differs from %s in tokens or heads", c->v.name, c->k.name);
        return false;
    }
    return true;
}

/* pkv_new_kv is pkv_rows with const pointers. */
static pkv_new_kv source_of(const pkv_rows *r)
{
    return (pkv_new_kv){
        .struct_size = sizeof(pkv_new_kv), .n_tokens = r->n_tokens, .n_heads = r->n_heads,
        .dtype = r->dtype,
        .k = {r->k.data, r->k.token_stride_bytes, r->k.head_stride_bytes, r->k.head_dim},
        .v = {r->v.data, r->v.token_stride_bytes, r->v.head_stride_bytes, r->v.head_dim}};
}

/* The library speaks of caches and rows, the caller of arguments. */
static void raise_refusal(const call *c, const pkv_cache *cache, const pkv_rows *rows,
                          const pkv_error *err)
{
    const char *sep = c->apart ? ", " : "", *k_cache = c->k_cache.name, *k = c->k.name;
    const char *v_cache = c->apart ? c->v_cache.name : "", *v = c->apart ? c->v.name : "";
    pkv_new_kv  source = source_of(rows);
    pkv_error   why;
    if (err->code != PKV_E_INVALID || err->rule != PKV_RULE_NONE) {
        raise_error(err, err->rule >= PKV_RULE_NEW_KV_START ? &c->plan : NULL);
    } else if (pkv_cache_check(cache, &why) != PKV_OK) {
        raise_invalid("%s%s%s: %s", k_cache, sep, v_cache, why.what);
    } else if ((c->gather ? pkv_rows_check(rows, &why) : pkv_new_kv_check(&source, &why)) !=
               PKV_OK) {
        raise_invalid("%s%s%s: %s", k, sep, v, why.what);
    } else {
        raise_invalid("%s%s%s, %s%s%s: %s", k, sep, v, k_cache, sep, v_cache, err->what);
    }
}

/* Of the rows: what moves if all are named once. */
static int64_t bytes_of(const array *rows)
{
    int64_t bytes = rows->item_bytes;
    for (int i = 0; i < rows->n_dims; i++) {
        if (__builtin_mul_overflow(bytes, rows->shape[i], &bytes)) {
            return INT64_MAX / 4;
        }
    }
    return bytes < INT64_MAX / 4 ? bytes : INT64_MAX / 4;
}

static bool run(call *c)
{
    pkv_cache cache;
    pkv_rows  rows;
    pkv_error err;
    if (!build(c, &cache, &rows)) {
        return false;
    }
    pkv_status      status;
    pkv_update_opts opts = core_opts(c->flags, bytes_of(&c->k) + (c->apart ? bytes_of(&c->v) : 0));
    PyThreadState  *held = PyEval_SaveThread();
    if (c->gather) {
        status = pkv_gather(&cache, &rows, &c->plan, &opts, &err);
    } else {
        pkv_new_kv source = source_of(&rows);
        status = pkv_update(&cache, &source, &c->plan, &opts, &err);
    }
    PyEval_RestoreThread(held);
    if (status != PKV_OK) {
        raise_refusal(c, &cache, &rows, &err);
    }
    return status == PKV_OK;
}

/* ---- the method -------------------------------------------------------------------- */

static bool open_all(call *c, PyObject *const *args)
{
    const bool to_cache = !c->gather;
    const char *k = c->apart ? (to_cache ? "key" : "key_out") : (to_cache ? "new_kv" : "out");
    return array_open(&c->k, args[ARG_K], k, c->gather) &&
           (!c->apart ||
            array_open(&c->v, args[ARG_V], to_cache ? "value" : "value_out", c->gather)) &&
           array_open(&c->slices, args[ARG_SLICES], "slices", false) &&
           array_open(&c->k_cache, args[ARG_K_CACHE], c->apart ? "key_cache" : "kv_cache",
                      to_cache) &&
           (!c->apart || array_open(&c->v_cache, args[ARG_V_CACHE], "value_cache", to_cache)) &&
           read_count(c, args[ARG_N]) && slices_open(&c->plan, &c->slices, &c->n);
}

PyObject *core_move(PyObject *self, PyObject *const *args, Py_ssize_t n_args)
{
    (void)self;
    if (n_args != N_ARGS) {
        PyErr_SetString(PyExc_TypeError, "move() takes 9 arguments");
        return NULL;
    }
    call c = {.gather = args[ARG_GATHER] == Py_True,
              .apart = args[ARG_V] != Py_None,
              .page_size = args[ARG_PAGE_SIZE] == Py_None ? 0
                                                          : PyLong_AsLongLong(args[ARG_PAGE_SIZE]),
              .flags = (uint32_t)PyLong_AsUnsignedLong(args[ARG_FLAGS])};
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (args[ARG_PAGE_SIZE] != Py_None && c.page_size < 1) {
        return raise_invalid("page_size: is %lld, not 1 or more", (long long)c.page_size);
    }
    bool ok = open_all(&c, args) && run(&c);
    array_close(&c.k);
    array_close(&c.v);
    array_close(&c.slices);
    array_close(&c.k_cache);
    array_close(&c.v_cache);
    array_close(&c.count);
    if (!ok) {
        return NULL;
    }
    Py_RETURN_NONE;
}

/* check_slices(slices, n, n_tokens, n_slots, page_size, strict) -> tokens */
PyObject *core_check_slices(PyObject *self, PyObject *const *args, Py_ssize_t n_args)
{
    (void)self;
    if (n_args != 6) {
        PyErr_SetString(PyExc_TypeError, "check_slices() takes 6 arguments");
        return NULL;
    }
    call    c = {0};
    int64_t n_tokens = PyLong_AsLongLong(args[2]), n_slots = PyLong_AsLongLong(args[3]);
    int64_t page_size = PyLong_AsLongLong(args[4]), sum = 0;
    bool    ok = !PyErr_Occurred() && array_open(&c.slices, args[0], "slices", false) &&
              read_count(&c, args[1]) && slices_open(&c.plan, &c.slices, &c.n);
    pkv_error err;
    if (ok && pkv_slices_check(&c.plan, n_tokens, n_slots, page_size, args[5] == Py_True, &sum,
                               &err) != PKV_OK) {
        raise_error(&err, err.rule >= PKV_RULE_NEW_KV_START ? &c.plan : NULL);
        ok = false;
    }
    array_close(&c.slices);
    array_close(&c.count);
    return ok ? PyLong_FromLongLong(sum) : NULL;
}
