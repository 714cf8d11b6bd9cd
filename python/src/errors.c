/* Exceptions: pagedkv._errors decides which; see there for the words. */
#include <stdarg.h>
#include <stdio.h>

#include "core.h"

static void set_exception(PyObject *arguments)
{
    PyObject *module = PyImport_ImportModule("pagedkv._errors");
    PyObject *make = module == NULL ? NULL : PyObject_GetAttrString(module, "from_status");
    PyObject *exception = make == NULL ? NULL : PyObject_Call(make, arguments, NULL);
    if (exception != NULL) {
        PyErr_SetObject((PyObject *)Py_TYPE(exception), exception);
    }
    Py_XDECREF(exception);
    Py_XDECREF(make);
    Py_XDECREF(module);
}

PyObject *raise_error(const pkv_error *err, const pkv_slices *slices)
{
    char line[256];
    pkv_error_format(err, line, sizeof line);
    PyObject *slice = Py_None;
    Py_INCREF(slice);
    if (slices != NULL && err->index >= 0 && err->index < slices->capacity) {
        Py_DECREF(slice);
        slice = Py_BuildValue("(iii)", slices->kv_cache_start[err->index],
                              slices->new_kv_start[err->index], slices->slice_len[err->index]);
    }
    PyObject *arguments =
        slice == NULL ? NULL
                      : Py_BuildValue("(isiLLLLN)", (int)err->code, line, (int)err->rule,
                                      (long long)err->index, (long long)err->layer,
                                      (long long)err->value, (long long)err->limit, slice);
    if (arguments != NULL) {
        set_exception(arguments);
        Py_DECREF(arguments);
    }
    return NULL;
}

static PyObject *raise_text(pkv_status code, const char *format, va_list values)
{
    char line[256];
    vsnprintf(line, sizeof line, format, values);
    PyObject *arguments = Py_BuildValue("(is)", (int)code, line);
    if (arguments != NULL) {
        set_exception(arguments);
        Py_DECREF(arguments);
    }
    return NULL;
}

PyObject *raise_status(pkv_status code, const char *format, ...)
{
    va_list values;
    va_start(values, format);
    raise_text(code, format, values);
    va_end(values);
    return NULL;
}

PyObject *raise_invalid(const char *format, ...)
{
    va_list values;
    va_start(values, format);
    raise_text(PKV_E_INVALID, format, values);
    va_end(values);
    return NULL;
}

PyObject *raise_unsupported(const char *format, ...)
{
    va_list values;
    va_start(values, format);
    raise_text(PKV_E_UNSUPPORTED, format, values);
    va_end(values);
    return NULL;
}
