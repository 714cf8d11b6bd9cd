/* The extension module pagedkv._core: what Python's own files build on. */
#include "core.h"

/* ---- sizing rules: numbers in, a number out; 0 is "outside its range" ------------ */

enum { MAX_NUMBERS = 4 };

static bool numbers(PyObject *args, int64_t *out, Py_ssize_t n)
{
    if (PyTuple_Size(args) != n) {
        PyErr_Format(PyExc_TypeError, "takes %zd numbers", n);
        return false;
    }
    for (Py_ssize_t i = 0; i < n; i++) {
        out[i] = PyLong_AsLongLong(PyTuple_GetItem(args, i));
    }
    return !PyErr_Occurred();
}

static PyObject *number_or_error(int64_t value, const char *name)
{
    return value > 0 ? PyLong_FromLongLong(value)
                     : raise_invalid("%s: an argument is outside its range", name);
}

#define SIZING(name, n, call)                                \
    static PyObject *name(PyObject *self, PyObject *args)    \
    {                                                        \
        int64_t v[MAX_NUMBERS];                              \
        (void)self;                                          \
        return numbers(args, v, n) ? number_or_error(call, #name) : NULL; \
    }

SIZING(token_bucket, 4, pkv_token_bucket(v[0], v[1], v[2], v[3]))
SIZING(padded_num_reqs, 2, pkv_padded_num_reqs(v[0], v[1]))
SIZING(padded_num_slices, 3, pkv_padded_num_slices(v[0], v[1], v[2]))
SIZING(scratch_page_bytes, 4,
       v[3] < 1 || v[3] > INT32_MAX ? 0 : pkv_scratch_page_bytes(v[0], v[1], v[2], (pkv_dtype)v[3]))
SIZING(num_slices_per_block, 2, pkv_num_slices_per_block(v[0], v[1]))
SIZING(page_size, 1, pkv_page_size(v[0]))
SIZING(min_page_size, 2, pkv_min_page_size(v[0], v[1]))
SIZING(max_num_reqs, 2, pkv_max_num_reqs(v[0], v[1]))

enum { MAX_BUCKETS = 65536 };

static PyObject *list_of(const int64_t *values, int64_t n)
{
    PyObject *list = PyList_New((Py_ssize_t)n);
    for (int64_t i = 0; list != NULL && i < n; i++) {
        PyList_SetItem(list, (Py_ssize_t)i, PyLong_FromLongLong(values[i]));
    }
    return list;
}

/* buckets(of_tokens, min, max, gap) -> list */
static PyObject *buckets(PyObject *self, PyObject *args)
{
    int64_t v[MAX_NUMBERS];
    (void)self;
    if (!numbers(args, v, 4)) {
        return NULL;
    }
    int64_t n = v[0] != 0 ? pkv_token_buckets(v[1], v[2], v[3], NULL, 0)
                          : pkv_request_buckets(v[1], v[2], NULL, 0);
    if (n < 1 || n > MAX_BUCKETS) {
        return raise_invalid("buckets: an argument is outside its range");
    }
    int64_t *values = PyMem_Malloc((size_t)n * sizeof *values);
    if (values == NULL) {
        return PyErr_NoMemory();
    }
    if (v[0] != 0) {
        pkv_token_buckets(v[1], v[2], v[3], values, n);
    } else {
        pkv_request_buckets(v[1], v[2], values, n);
    }
    PyObject *list = list_of(values, n);
    PyMem_Free(values);
    return list;
}

/* ---- the machine --------------------------------------------------------------------- */

static PyObject *dtype_from_name(PyObject *self, PyObject *args)
{
    const char *name;
    (void)self;
    return PyArg_ParseTuple(args, "s", &name) ? PyLong_FromLong(pkv_dtype_from_name(name)) : NULL;
}

static PyObject *get_num_threads(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    return PyLong_FromLong(pool_get_threads());
}

static PyObject *set_num_threads(PyObject *self, PyObject *args)
{
    int n;
    (void)self;
    if (!PyArg_ParseTuple(args, "i", &n)) {
        return NULL;
    }
    if (n < 1) {
        return raise_invalid("n: is %d, not 1 or more", n);
    }
    pool_set_threads(n);
    Py_RETURN_NONE;
}

static PyObject *version(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    return PyUnicode_FromString(pkv_version_string());
}

static PyObject *isa(PyObject *self, PyObject *unused)
{
    (void)self;
    (void)unused;
    return PyUnicode_FromString(pkv_isa_current());
}

/* A METH_FASTCALL function has another type than PyMethodDef says. */
#define FAST(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef methods[] = {
    {"move", FAST(core_move), METH_FASTCALL, NULL},
    {"check_slices", FAST(core_check_slices), METH_FASTCALL, NULL},
    {"plan", core_plan, METH_VARARGS, NULL},
    {"plan_bound", core_plan_bound, METH_VARARGS, NULL},
    {"plan_slots", core_plan_slots, METH_VARARGS, NULL},
    {"plan_blocks", FAST(core_plan_blocks), METH_FASTCALL, NULL},
    {"plan_step", core_plan_step, METH_VARARGS, NULL},
    {"token_bucket", token_bucket, METH_VARARGS, NULL},
    {"padded_num_reqs", padded_num_reqs, METH_VARARGS, NULL},
    {"padded_num_slices", padded_num_slices, METH_VARARGS, NULL},
    {"scratch_page_bytes", scratch_page_bytes, METH_VARARGS, NULL},
    {"num_slices_per_block", num_slices_per_block, METH_VARARGS, NULL},
    {"page_size", page_size, METH_VARARGS, NULL},
    {"min_page_size", min_page_size, METH_VARARGS, NULL},
    {"max_num_reqs", max_num_reqs, METH_VARARGS, NULL},
    {"buckets", buckets, METH_VARARGS, NULL},
    {"dtype_from_name", dtype_from_name, METH_VARARGS, NULL},
    {"get_num_threads", get_num_threads, METH_NOARGS, NULL},
    {"set_num_threads", set_num_threads, METH_VARARGS, NULL},
    {"version", version, METH_NOARGS, NULL},
    {"isa", isa, METH_NOARGS, NULL},
    {"xla_handler", core_xla_handler, METH_NOARGS, NULL},
    {"xla_handler_cuda", core_xla_handler_cuda, METH_NOARGS, NULL},
    {"cuda_device_count", core_cuda_device_count, METH_NOARGS, NULL},
    {"cuda_open", core_cuda_open, METH_VARARGS, NULL},
    {"cuda_update", FAST(core_cuda_update), METH_FASTCALL, NULL},
    {"cuda_plan", core_cuda_plan, METH_VARARGS, NULL},
    {"cuda_plan_slots", core_cuda_plan_slots, METH_VARARGS, NULL},
    {"pool_open", core_pool_open, METH_VARARGS, NULL},
    {"pool_alloc", core_pool_alloc, METH_VARARGS, NULL},
    {"pool_share", core_pool_share, METH_VARARGS, NULL},
    {"pool_free", core_pool_free, METH_VARARGS, NULL},
    {"pool_unkeep", core_pool_unkeep, METH_VARARGS, NULL},
    {"pool_owners", core_pool_owners, METH_VARARGS, NULL},
    {"pool_find", core_pool_find, METH_VARARGS, NULL},
    {"pool_publish", core_pool_publish, METH_VARARGS, NULL},
    {"pool_twin", core_pool_twin, METH_VARARGS, NULL},
    {"pool_counts", core_pool_counts, METH_VARARGS, NULL},
    {"pool_check", core_pool_check, METH_VARARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "_core",
    .m_size = -1,
    .m_methods = methods,
};

/* Declared here: Python.h's own declaration has no prototype warning to satisfy. */
PyMODINIT_FUNC PyInit__core(void);

PyMODINIT_FUNC PyInit__core(void)
{
    PyObject *m = PyModule_Create(&module);
    if (m != NULL && !array_setup()) {
        Py_DECREF(m);
        return NULL;
    }
    return m;
}
