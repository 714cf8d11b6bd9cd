/*
 * Arrays of other libraries.  DLPack where it can say everything; NumPy's array
 * interface for what DLPack has no word for (ml_dtypes' arrays); tensor.c for
 * PyTorch's tensors, whose DLPack method is written in Python and slow.
 */
#include "array.h"

#include <stdlib.h>
#include <string.h>

#include "dtype.h"

static PyObject *max_version_kwargs; /* {"max_version": (1, 0)} */
static PyObject *no_args;

bool array_fail(const array *a, const char *why)
{
    raise_invalid("%s: %s", a->name, why);
    return false;
}

static void dense_strides(array *a)
{
    int64_t stride = a->item_bytes;
    for (int i = a->n_dims - 1; i >= 0; i--) {
        a->stride_bytes[i] = stride;
        stride *= a->shape[i];
    }
}

/* ---- DLPack ---------------------------------------------------------------- */

static void release(void *managed, bool versioned)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace); /* a deleter may run Python */
    if (versioned) {
        dl_managed_versioned *m = managed;
        if (m->deleter != NULL) {
            m->deleter(m);
        }
    } else {
        dl_managed *m = managed;
        if (m->deleter != NULL) {
            m->deleter(m);
        }
    }
    PyErr_Restore(type, value, trace);
}

bool array_take(array *a, const dl_tensor *t)
{
    if (t->n_dims < 0 || t->n_dims > MAX_DIMS) {
        return array_fail(a, "has too many dimensions");
    }
    if (t->type_bits < 8 || t->type_bits % 8 != 0 || t->type_lanes != 1) {
        return array_fail(a, "has items that are no whole bytes");
    }
    a->item_bytes = t->type_bits / 8;
    a->dtype = DTYPE_ID(t->type_code, t->type_bits);
    a->n_dims = t->n_dims;
    a->data = t->data == NULL ? NULL : (char *)t->data + t->byte_offset;
    for (int i = 0; i < t->n_dims; i++) {
        a->shape[i] = t->shape[i];
    }
    if (t->strides == NULL) {
        dense_strides(a);
        return true;
    }
    for (int i = 0; i < t->n_dims; i++) {
        if (__builtin_mul_overflow(t->strides[i], a->item_bytes, &a->stride_bytes[i])) {
            return array_fail(a, "has a stride that overflows");
        }
    }
    return true;
}

static bool from_tensor(array *a, const dl_tensor *t)
{
    if (t->device_type != DL_CPU) {
        raise_unsupported("%s: is not in host memory (DLPack device %d)", a->name,
                          (int)t->device_type);
        return false;
    }
    return array_take(a, t);
}

/* Takes what a capsule holds.  1: taken, 0: cannot (no exception), -1: exception set. */
static int from_capsule(array *a, PyObject *capsule)
{
    if (PyCapsule_IsValid(capsule, "dltensor_versioned")) {
        dl_managed_versioned *m = PyCapsule_GetPointer(capsule, "dltensor_versioned");
        if (PyCapsule_SetName(capsule, "used_dltensor_versioned") < 0) {
            return -1;
        }
        a->dlpack = m;
        a->dlpack_versioned = true;
        if (m->major != DL_MAJOR) {
            return 0;
        }
        a->read_only = (m->flags & DL_READ_ONLY) != 0;
        return from_tensor(a, &m->tensor) ? 1 : -1;
    }
    if (PyCapsule_IsValid(capsule, "dltensor")) {
        dl_managed *m = PyCapsule_GetPointer(capsule, "dltensor");
        if (PyCapsule_SetName(capsule, "used_dltensor") < 0) {
            return -1;
        }
        a->dlpack = m;
        a->dlpack_versioned = false;
        return from_tensor(a, &m->tensor) ? 1 : -1;
    }
    return 0;
}

static int from_dlpack(array *a, PyObject *method)
{
    PyObject *capsule = PyObject_Call(method, no_args, max_version_kwargs);
    if (capsule == NULL && PyErr_ExceptionMatches(PyExc_TypeError)) {
        PyErr_Clear(); /* older than DLPack 1.0: no such argument */
        capsule = PyObject_Call(method, no_args, NULL);
    }
    if (capsule == NULL) {
        PyErr_Clear();
        return 0;
    }
    int got = from_capsule(a, capsule);
    Py_DECREF(capsule);
    if (got != 1) {
        array_close(a);
    }
    return got;
}

/* JAX arrays never change, but its DLPack capsules do not say so. */
bool array_is_jax(PyObject *obj)
{
    PyObject *module = PyObject_GetAttrString((PyObject *)Py_TYPE(obj), "__module__");
    PyObject *utf8 = module != NULL && PyUnicode_Check(module) ? PyUnicode_AsUTF8String(module)
                                                               : NULL;
    bool      jax = utf8 != NULL && strncmp(PyBytes_AsString(utf8), "jax", 3) == 0;
    Py_XDECREF(utf8);
    Py_XDECREF(module);
    PyErr_Clear();
    return jax;
}

/* ---- NumPy's array interface ------------------------------------------------- */

bool array_read_tuple(PyObject *tuple, int64_t *out, int *n)
{
    Py_ssize_t size = PyTuple_Check(tuple) ? PyTuple_Size(tuple) : -1;
    if (size < 0 || size > MAX_DIMS) {
        return false;
    }
    for (Py_ssize_t i = 0; i < size; i++) {
        out[i] = PyLong_AsLongLong(PyTuple_GetItem(tuple, i));
    }
    *n = (int)size;
    return !PyErr_Occurred();
}

static bool from_interface_dict(array *a, PyObject *dict)
{
    PyObject *shape = PyDict_GetItemString(dict, "shape");
    PyObject *data = PyDict_GetItemString(dict, "data");
    PyObject *strides = PyDict_GetItemString(dict, "strides");
    PyObject *typestr = PyDict_GetItemString(dict, "typestr");
    int       n_strides = 0;
    if (shape == NULL || data == NULL || typestr == NULL || !PyTuple_Check(data) ||
        PyTuple_Size(data) != 2 || !array_read_tuple(shape, a->shape, &a->n_dims)) {
        return false;
    }
    PyObject *type = PyUnicode_AsUTF8String(typestr);
    if (type == NULL || PyBytes_Size(type) < 3) {
        Py_XDECREF(type);
        return false;
    }
    char order = PyBytes_AsString(type)[0], kind = PyBytes_AsString(type)[1];
    a->item_bytes = strtoll(PyBytes_AsString(type) + 2, NULL, 10);
    Py_DECREF(type);
    /* 'U' counts characters, and 'O' is references, whose counts a copy of bits would spoil. */
    if (a->item_bytes < 1 || order == '>' || kind == 'U' || kind == 'O') {
        return false;
    }
    a->data = PyLong_AsVoidPtr(PyTuple_GetItem(data, 0));
    a->read_only = PyObject_IsTrue(PyTuple_GetItem(data, 1)) != 0;
    dense_strides(a);
    if (strides != NULL && strides != Py_None &&
        (!array_read_tuple(strides, a->stride_bytes, &n_strides) || n_strides != a->n_dims)) {
        return false;
    }
    return !PyErr_Occurred();
}

/* References inside structured items. */
static bool has_objects(PyObject *dtype)
{
    PyObject *flag = PyObject_GetAttrString(dtype, "hasobject");
    bool      has = flag == Py_True;
    Py_XDECREF(flag);
    return has;
}

static bool from_interface(array *a, PyObject *obj)
{
    PyObject *dict = PyObject_GetAttrString(obj, "__array_interface__");
    PyObject *dtype = dict == NULL ? NULL : PyObject_GetAttrString(obj, "dtype");
    bool      ok = dtype != NULL && PyDict_Check(dict) && from_interface_dict(a, dict) &&
              !has_objects(dtype);
    if (ok) {
        a->dtype = dtype_of_object(dtype);
        a->owner = dict; /* of a NumPy scalar it alone keeps the memory */
        dict = NULL;
    }
    Py_XDECREF(dtype);
    Py_XDECREF(dict);
    PyErr_Clear();
    return ok && a->dtype != DTYPE_NONE;
}

/* ---- all of them ------------------------------------------------------------------ */

/* 1: done, 0: cannot, -1: exception set. */
static int from_others(array *a, PyObject *obj)
{
    PyObject *method = PyObject_GetAttrString(obj, "__dlpack__");
    int       got = 0;
    if (method != NULL) {
        got = from_dlpack(a, method);
        Py_DECREF(method);
    } else {
        PyErr_Clear();
    }
    return got != 0 ? got : from_interface(a, obj);
}

bool array_has_items(const array *a)
{
    for (int i = 0; i < a->n_dims; i++) {
        if (a->shape[i] == 0) {
            return false;
        }
    }
    return true;
}

bool array_open(array *out, PyObject *obj, const char *name, bool writable)
{
    *out = (array){.name = name, .dtype = DTYPE_NONE};
    int  got = tensor_open(out, obj);
    bool is_tensor = got == 1;
    if (got == 0) {
        got = from_others(out, obj);
    }
    if (got < 0) {
        return false;
    }
    if (got == 0) {
        return array_fail(out, "is no array: it has neither DLPack nor an array interface "
                               "that says where its items lie");
    }
    if (writable && (out->read_only || (!is_tensor && array_is_jax(obj)))) {
        array_close(out);
        return array_fail(out, "is read-only");
    }
    if (out->data == NULL && array_has_items(out)) {
        array_close(out);
        return array_fail(out, "has no memory: it was freed, or never had any");
    }
    return true;
}

void array_close(array *a)
{
    if (a->dlpack != NULL) {
        release(a->dlpack, a->dlpack_versioned);
        a->dlpack = NULL;
    }
    Py_XDECREF(a->owner);
    a->owner = NULL;
}

bool array_is_int32(const array *a)
{
    return a->dtype == DTYPE_ID(0, 32);
}

bool array_is_int64(const array *a)
{
    return a->dtype == DTYPE_ID(0, 64);
}

bool array_is_vector(const array *a, bool allow_int64)
{
    if (!array_is_int32(a) && !(allow_int64 && array_is_int64(a))) {
        raise_invalid("%s: holds %s, not int32%s", a->name, dtype_name(a->dtype),
                      allow_int64 ? " or int64" : "");
        return false;
    }
    if (a->n_dims != 1) {
        raise_invalid("%s: has %d dimensions, not 1", a->name, a->n_dims);
        return false;
    }
    if (a->shape[0] > 1 && a->stride_bytes[0] != a->item_bytes) {
        raise_invalid("%s: is not contiguous", a->name);
        return false;
    }
    return true;
}

bool array_setup(void)
{
    PyObject *version = Py_BuildValue("(ii)", DL_MAJOR, 0);
    max_version_kwargs = version == NULL ? NULL : Py_BuildValue("{s:O}", "max_version", version);
    Py_XDECREF(version);
    no_args = PyTuple_New(0);
    return max_version_kwargs != NULL && no_args != NULL;
}
