/* Update and gather: arrays to views, views to the library. */
#include "dtype.h"
#include "move.h"

enum { ARG_GATHER, ARG_K, ARG_V, ARG_SLICES, ARG_K_CACHE, ARG_V_CACHE, ARG_N, ARG_PAGE_SIZE,
       ARG_FLAGS, N_ARGS, ARG_K_SCALE = N_ARGS, ARG_V_SCALE, ARG_CACHE_DTYPE, N_SCALED_ARGS };

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

/* A cache that is refused with its scales and not without them. */
static bool is_fault_of_scales(const pkv_cache *cache)
{
    pkv_cache bare = *cache;
    bare.k_scales = bare.v_scales = (pkv_scales){0};
    return pkv_cache_check(&bare, NULL) == PKV_OK;
}

/* Not of dtypes: of what a device or its driver cannot do. */
static bool is_fault_of_device(const call *c, const pkv_error *err)
{
    return c->cuda != NULL && err->code == PKV_E_UNSUPPORTED && c->k.dtype == c->k_cache.dtype;
}

/* The library speaks of caches and rows, the caller of arguments. */
static void raise_refusal(const call *c, const pkv_cache *cache, const pkv_rows *rows,
                          const pkv_error *err)
{
    const char *sep = c->apart ? ", " : "", *k_cache = c->k_cache.name, *k = c->k.name;
    const char *v_cache = c->apart ? c->v_cache.name : "", *v = c->apart ? c->v.name : "";
    const bool  both = c->k_scale.given && c->v_scale.given;
    pkv_new_kv  source = views_source(rows);
    pkv_error   why;
    if (err->rule == PKV_RULE_SCALE || is_fault_of_device(c, err)) {
        raise_error(err, NULL);
    } else if (err->code == PKV_E_UNSUPPORTED) {
        views_refuse_dtypes(c);
    } else if (err->code != PKV_E_INVALID || err->rule != PKV_RULE_NONE) {
        const bool of_slice = err->rule >= PKV_RULE_NEW_KV_START && c->cuda == NULL;
        raise_error(err, of_slice ? &c->plan : NULL);
    } else if (pkv_cache_check(cache, &why) != PKV_OK && is_fault_of_scales(cache)) {
        raise_invalid("%s%s%s: %s", c->k_scale.given ? "k_scale" : "", both ? ", " : "",
                      c->v_scale.given ? "v_scale" : "", why.what);
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

static pkv_status run_host(const call *c, const pkv_cache *cache, const pkv_rows *rows,
                           pkv_error *err)
{
    pkv_update_opts opts = core_opts(c->flags, bytes_of(&c->k) + (c->apart ? bytes_of(&c->v) : 0));
    if (c->gather) {
        return pkv_gather(cache, rows, &c->plan, &opts, err);
    }
    pkv_new_kv source = views_source(rows);
    return pkv_update(cache, &source, &c->plan, &opts, err);
}

static pkv_status run_cuda(const call *c, const pkv_cache *cache, const pkv_rows *rows,
                           pkv_error *err)
{
    pkv_update_opts opts = {.struct_size = sizeof opts,
                            .status_word = (int32_t *)(void *)c->status_word.data};
    pkv_new_kv      source = views_source(rows);
    return pkv_cuda_update(c->cuda, cache, &source, &c->plan, &opts, err, c->stream);
}

bool move_run(call *c)
{
    pkv_cache cache;
    pkv_rows  rows;
    pkv_error err;
    if (!views_build(c, &cache, &rows)) {
        return false;
    }
    PyThreadState *held = PyEval_SaveThread();
    pkv_status     status = c->cuda == NULL ? run_host(c, &cache, &rows, &err)
                                            : run_cuda(c, &cache, &rows, &err);
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

static bool read_cache_dtype(call *c, PyObject *obj)
{
    if (obj == Py_None) {
        return true;
    }
    PyObject *utf8 = PyUnicode_Check(obj) ? PyUnicode_AsUTF8String(obj) : NULL;
    c->cache_dtype = utf8 == NULL ? DTYPE_NONE : dtype_of_cache(PyBytes_AsString(utf8));
    if (c->cache_dtype == DTYPE_NONE && !PyErr_Occurred()) {
        raise_invalid("cache_dtype: is '%.40s', none of float32, float16, bfloat16, float8_e4m3fn, "
                      "float8_e5m2, int8 and int4", utf8 == NULL ? "?" : PyBytes_AsString(utf8));
    }
    Py_XDECREF(utf8);
    return c->cache_dtype != DTYPE_NONE;
}

static bool open_scales(call *c, PyObject *const *args)
{
    return scale_open(&c->k_scale, args[ARG_K_SCALE], "k_scale") &&
           scale_open(&c->v_scale, args[ARG_V_SCALE], "v_scale") &&
           read_cache_dtype(c, args[ARG_CACHE_DTYPE]);
}

void move_close(call *c)
{
    array_close(&c->k);
    array_close(&c->v);
    array_close(&c->slices);
    array_close(&c->k_cache);
    array_close(&c->v_cache);
    array_close(&c->count);
    array_close(&c->status_word);
    scale_close(&c->k_scale);
    scale_close(&c->v_scale);
}

PyObject *core_move(PyObject *self, PyObject *const *args, Py_ssize_t n_args)
{
    (void)self;
    if (n_args != N_ARGS && n_args != N_SCALED_ARGS) {
        PyErr_SetString(PyExc_TypeError, "move() takes 9 or 12 arguments");
        return NULL;
    }
    call c = {.gather = args[ARG_GATHER] == Py_True,
              .apart = args[ARG_V] != Py_None,
              .cache_dtype = DTYPE_NONE,
              .page_size = args[ARG_PAGE_SIZE] == Py_None ? 0
                                                          : PyLong_AsLongLong(args[ARG_PAGE_SIZE]),
              .flags = (uint32_t)PyLong_AsUnsignedLong(args[ARG_FLAGS])};
    if (PyErr_Occurred()) {
        return NULL;
    }
    if (args[ARG_PAGE_SIZE] != Py_None && c.page_size < 1) {
        return raise_invalid("page_size: is %lld, not 1 or more", (long long)c.page_size);
    }
    bool ok = open_all(&c, args) && (n_args == N_ARGS || open_scales(&c, args)) && move_run(&c);
    move_close(&c);
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
