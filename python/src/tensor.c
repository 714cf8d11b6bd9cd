/*
 * PyTorch's tensors.  In newer releases their type has DLPack's table of C
 * functions, which takes a few percent of the time of six methods called from here.
 */
#include "array.h"
#include "dtype.h"

/* ---- by the table ------------------------------------------------------------------ */

enum { MAX_TYPES = 16 };

typedef struct known_type {
    PyObject *type;
    dl_read  *read; /* NULL: no table that is known here */
    bool      is_tensor;
} known_type;

/* The first types that were met.  Guarded by the interpreter's lock. */
static known_type types[MAX_TYPES];
static int        n_types;

/* Not what is inherited: a subclass may have methods that say something else. */
static dl_read *find_read(PyObject *type)
{
    PyObject *own = PyObject_GetAttrString(type, "__dict__");
    PyObject *capsule =
        own == NULL ? NULL : PyMapping_GetItemString(own, "__dlpack_c_exchange_api__");
    const dl_table_header *header = capsule == NULL || !PyCapsule_CheckExact(capsule)
                                        ? NULL
                                        : PyCapsule_GetPointer(capsule, "dlpack_exchange_api");
    while (header != NULL && header->major != DL_MAJOR) {
        header = header->older;
    }
    Py_XDECREF(capsule); /* tables are never freed */
    Py_XDECREF(own);
    PyErr_Clear();
    return header == NULL ? NULL : ((const dl_table *)(const void *)header)->read;
}

/* A table says nothing of memory that must not be written, so of other arrays it is not used. */
static known_type type_of(PyObject *obj)
{
    PyObject *type = (PyObject *)Py_TYPE(obj);
    for (int i = 0; i < n_types; i++) {
        if (types[i].type == type) {
            return types[i];
        }
    }
    PyObject  *data_ptr = PyObject_GetAttrString(type, "data_ptr");
    known_type found = {.type = type, .is_tensor = data_ptr != NULL};
    Py_XDECREF(data_ptr);
    PyErr_Clear();
    if (found.is_tensor) {
        found.read = find_read(type);
    }
    if (n_types < MAX_TYPES) {
        Py_INCREF(type); /* so that no other type ever has this address */
        types[n_types++] = found;
    }
    return found;
}

/* False, without an exception: what the table says is not plain.  Methods say the rest. */
static bool ask_table(dl_read *read, PyObject *obj, dl_tensor *out)
{
    if (read == NULL) {
        return false;
    }
    if (read(obj, out) != 0) {
        PyErr_Clear();
        return false;
    }
    return out->n_dims >= 0 && out->n_dims <= MAX_DIMS && out->type_lanes == 1 &&
           out->type_bits >= 8 && out->type_bits % 8 == 0;
}

/* PyTorch's integers of 1 to 7 bits, a byte each, are 8 bits to the table. */
static void name_dtype(array *a, PyObject *obj)
{
    if (a->dtype == DTYPE_ID(0, 8) || a->dtype == DTYPE_ID(1, 8)) {
        PyObject *dtype = PyObject_GetAttrString(obj, "dtype");
        if (dtype != NULL) {
            a->dtype = dtype_of_object(dtype);
            Py_DECREF(dtype);
        }
        PyErr_Clear();
    }
}

static bool take(array *a, PyObject *obj, const dl_tensor *t)
{
    if (!array_take(a, t)) {
        return false;
    }
    name_dtype(a, obj);
    return true;
}

/* ---- by methods -------------------------------------------------------------------- */

static int64_t int_of_call(PyObject *obj, const char *method)
{
    PyObject *result = PyObject_CallMethod(obj, method, NULL);
    int64_t   value = result == NULL ? -1 : PyLong_AsLongLong(result);
    Py_XDECREF(result);
    return value;
}

/* Wherever the items lie.  False, without an exception: not a tensor of the plain kind. */
static bool read_by_methods(array *a, PyObject *obj)
{
    PyObject *shape = PyObject_GetAttrString(obj, "shape");
    PyObject *strides = shape == NULL ? NULL : PyObject_CallMethod(obj, "stride", NULL);
    PyObject *dtype = strides == NULL ? NULL : PyObject_GetAttrString(obj, "dtype");
    PyObject *address = dtype == NULL ? NULL : PyObject_CallMethod(obj, "data_ptr", NULL);
    int       n_strides = 0;
    bool      ok = address != NULL && array_read_tuple(shape, a->shape, &a->n_dims) &&
              array_read_tuple(strides, a->stride_bytes, &n_strides) && n_strides == a->n_dims;
    if (ok) {
        a->item_bytes = int_of_call(obj, "element_size");
        a->dtype = dtype_of_object(dtype);
        a->data = PyLong_AsVoidPtr(address);
        for (int i = 0; i < a->n_dims; i++) {
            a->stride_bytes[i] *= a->item_bytes;
        }
    }
    Py_XDECREF(address);
    Py_XDECREF(dtype);
    Py_XDECREF(strides);
    Py_XDECREF(shape);
    PyErr_Clear(); /* a sparse tensor has no data_ptr; whoever asks next names the argument */
    return ok && a->dtype != DTYPE_NONE;
}

int tensor_open(array *a, PyObject *obj)
{
    const known_type type = type_of(obj);
    dl_tensor        t;
    if (!type.is_tensor) {
        return 0;
    }
    if (ask_table(type.read, obj, &t) && t.device_type == DL_CPU) {
        return take(a, obj, &t) ? 1 : -1;
    }
    PyObject *is_cpu = PyObject_GetAttrString(obj, "is_cpu");
    if (is_cpu == NULL) {
        PyErr_Clear();
        return 0;
    }
    bool on_cpu = is_cpu == Py_True;
    Py_DECREF(is_cpu);
    if (!on_cpu) {
        raise_unsupported("%s: is not in host memory; torch.ops.pagedkv has operators for CUDA "
                          "tensors", a->name);
        return -1;
    }
    return read_by_methods(a, obj) ? 1 : 0;
}

/* ---- on a CUDA device -------------------------------------------------------------- */

/* The ordinal of the CUDA device that a tensor is on, or -1. */
static int64_t cuda_device_of(PyObject *obj)
{
    PyObject *is_cuda = PyObject_GetAttrString(obj, "is_cuda");
    int64_t   device = is_cuda == Py_True ? int_of_call(obj, "get_device") : -1;
    Py_XDECREF(is_cuda);
    PyErr_Clear();
    return device;
}

static void raise_elsewhere(const array *a, PyObject *obj, int32_t device)
{
    PyObject *where = PyObject_GetAttrString(obj, "device");
    PyObject *text = where == NULL ? NULL : PyObject_Str(where);
    PyObject *utf8 = text == NULL ? NULL : PyUnicode_AsUTF8String(text);
    PyErr_Clear();
    raise_invalid("%s: is on %.40s, not on cuda:%d", a->name,
                  utf8 == NULL ? "no device" : PyBytes_AsString(utf8), (int)device);
    Py_XDECREF(utf8);
    Py_XDECREF(text);
    Py_XDECREF(where);
}

bool array_open_cuda(array *out, PyObject *obj, const char *name, int32_t device)
{
    *out = (array){.name = name, .dtype = DTYPE_NONE};
    dl_tensor t;
    if (ask_table(type_of(obj).read, obj, &t) && t.device_type == DL_CUDA &&
        t.device_id == device) {
        if (!take(out, obj, &t)) {
            return false;
        }
    } else if (cuda_device_of(obj) != device) {
        raise_elsewhere(out, obj, device);
        return false;
    } else if (!read_by_methods(out, obj)) {
        return array_fail(out, "is no tensor with items in memory");
    }
    return out->data != NULL || !array_has_items(out) ||
           array_fail(out, "has no memory: it was freed");
}
