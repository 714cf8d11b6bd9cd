/* A pool of pages with its index of prefixes, as one object that Python owns. */
#include "core.h"

static const char POOL_NAME[] = "pagedkv.pool";

typedef struct owned_pool {
    pkv_pool   *pool;
    pkv_prefix *prefix;
    int64_t     n_pages;
    int64_t     page_size;
} owned_pool;

static void close_pool(PyObject *capsule)
{
    owned_pool *p = PyCapsule_GetPointer(capsule, POOL_NAME);
    if (p != NULL) {
        pkv_prefix_destroy(p->prefix);
        pkv_pool_destroy(p->pool);
        PyMem_Free(p);
    }
}

/* Where an entry lies is all that this decides: a bad hash is slow, never wrong. */
static uint64_t hash_bytes(const void *data, size_t bytes, uint64_t seed)
{
    const unsigned char *at = data;
    uint64_t             hash = seed ^ UINT64_C(0x9E3779B97F4A7C15);
    while (bytes > 0) {
        uint64_t word = 0;
        size_t   n = bytes < 8 ? bytes : 8;
        for (size_t i = 0; i < n; i++) {
            word |= (uint64_t)at[i] << (8 * i);
        }
        hash = (hash ^ word) * UINT64_C(0xD6E8FEB86659FD93);
        hash ^= hash >> 32;
        at += n;
        bytes -= n;
    }
    return hash;
}

static pkv_status make_pool(owned_pool *p, uint64_t seed, pkv_error *err)
{
    pkv_pool_config config = {.struct_size = sizeof config, .n_pages = p->n_pages,
                              .allocator = PKV_POOL_EXTENT};
    pkv_status      status = pkv_pool_create(&config, NULL, &p->pool, err);
    if (status != PKV_OK) {
        return status;
    }
    pkv_prefix_config index = {.struct_size = sizeof index, .page_size = p->page_size,
                               .n_groups = 1, .hash = hash_bytes, .seed = seed};
    return pkv_prefix_create(&index, p->pool, NULL, &p->prefix, err);
}

/* pool_open(n_pages, page_size, seed) -> the object */
PyObject *core_pool_open(PyObject *self, PyObject *args)
{
    long long          n_pages;
    long long          page_size;
    unsigned long long seed;
    (void)self;
    if (!PyArg_ParseTuple(args, "LLK", &n_pages, &page_size, &seed)) {
        return NULL;
    }
    owned_pool *p = PyMem_Calloc(1, sizeof *p);
    if (p == NULL) {
        return PyErr_NoMemory();
    }
    p->n_pages = n_pages;
    p->page_size = page_size;
    pkv_error err;
    PyObject *capsule = PyCapsule_New(p, POOL_NAME, close_pool);
    if (capsule == NULL) {
        PyMem_Free(p);
    } else if (make_pool(p, seed, &err) != PKV_OK) {
        Py_DECREF(capsule);
        return raise_error(&err, NULL);
    }
    return capsule;
}

/* ---- numbers in and out --------------------------------------------------------------- */

typedef struct numbers {
    int32_t   *of;
    Py_ssize_t n;
} numbers;

/* A list or tuple of integers; what does not fit in 32 bits is out of range for every use. */
static bool read_numbers(numbers *out, PyObject *obj, const char *name)
{
    *out = (numbers){0};
    if (!PyList_Check(obj) && !PyTuple_Check(obj)) {
        raise_invalid("%s: is no list", name);
        return false;
    }
    out->n = PySequence_Size(obj);
    out->of = PyMem_Malloc((size_t)(out->n + 1) * sizeof *out->of);
    if (out->of == NULL) {
        PyErr_NoMemory();
        return false;
    }
    for (Py_ssize_t i = 0; i < out->n; i++) {
        PyObject *item = PySequence_GetItem(obj, i);
        long long value = item == NULL ? -1 : PyLong_AsLongLong(item);
        Py_XDECREF(item);
        if (PyErr_Occurred() == NULL && (value < INT32_MIN || value > INT32_MAX)) {
            raise_invalid("%s: number %zd does not fit in 32 bits", name, i);
        }
        if (PyErr_Occurred() != NULL) {
            PyMem_Free(out->of);
            return false;
        }
        out->of[i] = (int32_t)value;
    }
    return true;
}

static PyObject *list_pages(const int32_t *pages, int64_t n)
{
    PyObject *list = PyList_New((Py_ssize_t)n);
    for (int64_t i = 0; list != NULL && i < n; i++) {
        PyList_SetItem(list, (Py_ssize_t)i, PyLong_FromLong(pages[i]));
    }
    return list;
}

static owned_pool *pool_of(PyObject *capsule)
{
    return PyCapsule_GetPointer(capsule, POOL_NAME);
}

/* ---- pages ------------------------------------------------------------------------------ */

/* pool_alloc(pool, n, after, room) -> [page] */
PyObject *core_pool_alloc(PyObject *self, PyObject *args)
{
    PyObject *capsule;
    long long n;
    int       after;
    long long room;
    (void)self;
    if (!PyArg_ParseTuple(args, "OLiL", &capsule, &n, &after, &room)) {
        return NULL;
    }
    owned_pool *p = pool_of(capsule);
    if (p == NULL) {
        return NULL;
    }
    /* More than there are is refused by the library, which needs no place for them then. */
    size_t    places = n > 0 && n <= p->n_pages ? (size_t)n : 1;
    int32_t  *pages = PyMem_Malloc(places * sizeof *pages);
    pkv_error err;
    if (pages == NULL) {
        return PyErr_NoMemory();
    }
    PyObject *list = pkv_pool_alloc(p->pool, n, after, room, pages, &err) == PKV_OK
                         ? list_pages(pages, n)
                         : raise_error(&err, NULL);
    PyMem_Free(pages);
    return list;
}

typedef pkv_status (*page_call)(pkv_pool *pool, const int32_t *pages, int64_t n, pkv_error *err);

static PyObject *call_with_pages(PyObject *args, page_call call)
{
    PyObject   *capsule;
    PyObject   *obj;
    numbers     pages;
    owned_pool *p;
    if (!PyArg_ParseTuple(args, "OO", &capsule, &obj) || (p = pool_of(capsule)) == NULL ||
        !read_numbers(&pages, obj, "pages")) {
        return NULL;
    }
    pkv_error  err;
    pkv_status status = call(p->pool, pages.of, pages.n, &err);
    PyMem_Free(pages.of);
    if (status != PKV_OK) {
        return raise_error(&err, NULL);
    }
    Py_RETURN_NONE;
}

static pkv_status unkeep(pkv_pool *pool, const int32_t *pages, int64_t n, pkv_error *err)
{
    return pkv_pool_keep(pool, pages, n, 0, err);
}

PyObject *core_pool_share(PyObject *self, PyObject *args)
{
    (void)self;
    return call_with_pages(args, pkv_pool_share);
}

PyObject *core_pool_free(PyObject *self, PyObject *args)
{
    (void)self;
    return call_with_pages(args, pkv_pool_free);
}

/* pool_unkeep(pool, pages): their content is of no use once they have no owner. */
PyObject *core_pool_unkeep(PyObject *self, PyObject *args)
{
    (void)self;
    return call_with_pages(args, unkeep);
}

/* pool_owners(pool, page) -> how many; -1 for a page that is none */
PyObject *core_pool_owners(PyObject *self, PyObject *args)
{
    PyObject   *capsule;
    int         page;
    owned_pool *p;
    (void)self;
    if (!PyArg_ParseTuple(args, "Oi", &capsule, &page) || (p = pool_of(capsule)) == NULL) {
        return NULL;
    }
    return PyLong_FromLongLong(pkv_pool_owners(p->pool, page));
}

/* ---- prefixes ----------------------------------------------------------------------------- */

/* pool_find(pool, salt, tokens) -> [page] that hold the beginning of a prompt */
PyObject *core_pool_find(PyObject *self, PyObject *args)
{
    PyObject          *capsule;
    PyObject          *obj;
    unsigned long long salt;
    numbers            tokens;
    owned_pool        *p;
    (void)self;
    if (!PyArg_ParseTuple(args, "OKO", &capsule, &salt, &obj) || (p = pool_of(capsule)) == NULL ||
        !read_numbers(&tokens, obj, "tokens")) {
        return NULL;
    }
    int64_t        most = tokens.n / p->page_size;
    int32_t       *pages = PyMem_Malloc((size_t)(most + 1) * sizeof *pages);
    pkv_prefix_hit hit = {0};
    pkv_error      err;
    PyObject      *list;
    if (pages == NULL) {
        list = PyErr_NoMemory();
    } else if (pkv_prefix_find(p->prefix, salt, tokens.of, tokens.n, pages, most, &hit, &err) !=
               PKV_OK) {
        list = raise_error(&err, NULL);
    } else {
        list = list_pages(pages, hit.n_pages);
    }
    PyMem_Free(pages);
    PyMem_Free(tokens.of);
    return list;
}

/* pool_publish(pool, salt, behind, tokens, pages): these can be found from now on */
PyObject *core_pool_publish(PyObject *self, PyObject *args)
{
    PyObject          *capsule;
    PyObject          *token_list;
    PyObject          *page_list;
    unsigned long long salt;
    int                behind;
    numbers            tokens;
    numbers            pages;
    owned_pool        *p;
    (void)self;
    if (!PyArg_ParseTuple(args, "OKiOO", &capsule, &salt, &behind, &token_list, &page_list) ||
        (p = pool_of(capsule)) == NULL || !read_numbers(&tokens, token_list, "tokens")) {
        return NULL;
    }
    if (!read_numbers(&pages, page_list, "pages")) {
        PyMem_Free(tokens.of);
        return NULL;
    }
    bool      fits = pages.n == tokens.n / p->page_size && tokens.n % p->page_size == 0;
    pkv_error err;
    PyObject *result = Py_None;
    if (!fits) {
        result = raise_invalid("tokens: are %zd, not those of %zd full pages", tokens.n, pages.n);
    } else if (pkv_prefix_publish(p->prefix, 0, salt, behind, tokens.of, pages.of, pages.n,
                                  &err) != PKV_OK) {
        result = raise_error(&err, NULL);
    }
    PyMem_Free(tokens.of);
    PyMem_Free(pages.of);
    Py_XINCREF(result);
    return result;
}

/* pool_twin(pool, page) -> another page with the same content, or -1 */
PyObject *core_pool_twin(PyObject *self, PyObject *args)
{
    PyObject   *capsule;
    int         page;
    int32_t     twin;
    owned_pool *p;
    pkv_error   err;
    (void)self;
    if (!PyArg_ParseTuple(args, "Oi", &capsule, &page) || (p = pool_of(capsule)) == NULL) {
        return NULL;
    }
    return pkv_prefix_twin(p->prefix, page, &twin, &err) == PKV_OK ? PyLong_FromLong(twin)
                                                                   : raise_error(&err, NULL);
}

/* pool_counts(pool) -> blank, cached, used, shared, evictions, tokens looked up, tokens found */
PyObject *core_pool_counts(PyObject *self, PyObject *args)
{
    PyObject   *capsule;
    owned_pool *p;
    (void)self;
    if (!PyArg_ParseTuple(args, "O", &capsule) || (p = pool_of(capsule)) == NULL) {
        return NULL;
    }
    pkv_pool_counts   counts = {.struct_size = sizeof counts};
    pkv_prefix_counts index = {.struct_size = sizeof index};
    pkv_error         err;
    if (pkv_pool_stats(p->pool, &counts, &err) != PKV_OK ||
        pkv_prefix_stats(p->prefix, &index, &err) != PKV_OK) {
        return raise_error(&err, NULL);
    }
    return Py_BuildValue("(LLLLLLL)", (long long)counts.n_blank, (long long)counts.n_cached,
                         (long long)counts.n_used, (long long)counts.n_shared,
                         (long long)counts.n_evictions, (long long)index.n_find_tokens,
                         (long long)index.n_hit_tokens);
}

/* pool_check(pool): proves that its books agree */
PyObject *core_pool_check(PyObject *self, PyObject *args)
{
    PyObject   *capsule;
    owned_pool *p;
    (void)self;
    if (!PyArg_ParseTuple(args, "O", &capsule) || (p = pool_of(capsule)) == NULL) {
        return NULL;
    }
    pkv_error err;
    if (pkv_pool_check(p->pool, &err) != PKV_OK || pkv_prefix_check(p->prefix, &err) != PKV_OK) {
        return raise_error(&err, NULL);
    }
    Py_RETURN_NONE;
}
