/* Kinds of items: a number for each, the same whatever library an array is from. */
#include "core.h"
#include "dtype.h"

#include <stdio.h>
#include <string.h>

enum { MAX_OTHERS = 32, MAX_CACHED = 32, NAME_BYTES = 32, OTHERS = 1 << 16 };

typedef struct known {
    const char *name;
    int32_t     id;
} known;

static const known names[] = {
    {"int8", DTYPE_ID(0, 8)},           {"int16", DTYPE_ID(0, 16)},
    {"int32", DTYPE_ID(0, 32)},         {"int64", DTYPE_ID(0, 64)},
    {"uint8", DTYPE_ID(1, 8)},          {"uint16", DTYPE_ID(1, 16)},
    {"uint32", DTYPE_ID(1, 32)},        {"uint64", DTYPE_ID(1, 64)},
    {"float16", DTYPE_ID(2, 16)},       {"float32", DTYPE_ID(2, 32)},
    {"float64", DTYPE_ID(2, 64)},       {"bfloat16", DTYPE_ID(4, 16)},
    {"complex32", DTYPE_ID(5, 32)},     {"complex64", DTYPE_ID(5, 64)},
    {"complex128", DTYPE_ID(5, 128)},   {"bool", DTYPE_ID(6, 8)},
    {"float8_e3m4", DTYPE_ID(7, 8)},    {"float8_e4m3", DTYPE_ID(8, 8)},
    {"float8_e4m3b11fnuz", DTYPE_ID(9, 8)}, {"float8_e4m3fn", DTYPE_ID(10, 8)},
    {"float8_e4m3fnuz", DTYPE_ID(11, 8)}, {"float8_e5m2", DTYPE_ID(12, 8)},
    {"float8_e5m2fnuz", DTYPE_ID(13, 8)}, {"float8_e8m0fnu", DTYPE_ID(14, 8)},
};

/* Guarded by the interpreter's lock. */
static char      others[MAX_OTHERS][NAME_BYTES];
static int       n_others;
static PyObject *cached_object[MAX_CACHED];
static int32_t   cached_id[MAX_CACHED];
static int       n_cached;

int32_t dtype_of_name(const char *name)
{
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(names[i].name, name) == 0) {
            return names[i].id;
        }
    }
    for (int i = 0; i < n_others; i++) {
        if (strcmp(others[i], name) == 0) {
            return OTHERS + i;
        }
    }
    if (n_others == MAX_OTHERS || strlen(name) >= NAME_BYTES) {
        return DTYPE_NONE;
    }
    strcpy(others[n_others], name);
    return OTHERS + n_others++;
}

/* What str() says of it: "float32", "torch.float32"; the name behind the last dot. */
static int32_t id_of_text(PyObject *dtype)
{
    PyObject *text = PyObject_Str(dtype);
    PyObject *utf8 = text == NULL ? NULL : PyUnicode_AsUTF8String(text);
    int32_t   id = DTYPE_NONE;
    if (utf8 != NULL) {
        const char *name = PyBytes_AsString(utf8);
        const char *dot = strrchr(name, '.');
        id = dtype_of_name(dot == NULL ? name : dot + 1);
    }
    Py_XDECREF(utf8);
    Py_XDECREF(text);
    PyErr_Clear();
    return id;
}

int32_t dtype_of_object(PyObject *dtype)
{
    for (int i = 0; i < n_cached; i++) {
        if (cached_object[i] == dtype) {
            return cached_id[i];
        }
    }
    int32_t id = id_of_text(dtype);
    if (n_cached < MAX_CACHED && id != DTYPE_NONE) {
        Py_INCREF(dtype); /* so that no other dtype ever has this address */
        cached_object[n_cached] = dtype;
        cached_id[n_cached++] = id;
    }
    return id;
}

pkv_dtype dtype_to_library(int32_t dtype)
{
    switch (dtype) {
    case DTYPE_ID(2, 32): return PKV_DTYPE_F32;
    case DTYPE_ID(2, 16): return PKV_DTYPE_F16;
    case DTYPE_ID(4, 16): return PKV_DTYPE_BF16;
    case DTYPE_ID(10, 8): return PKV_DTYPE_FP8_E4M3;
    case DTYPE_ID(12, 8): return PKV_DTYPE_FP8_E5M2;
    case DTYPE_ID(0, 8): return PKV_DTYPE_INT8;
    case DTYPE_PACKED_INT4: return PKV_DTYPE_INT4;
    default: return 0;
    }
}

int32_t dtype_of_cache(const char *name)
{
    if (strcmp(name, "int4") == 0) {
        return DTYPE_PACKED_INT4;
    }
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (strcmp(names[i].name, name) == 0 && dtype_to_library(names[i].id) != 0) {
            return names[i].id;
        }
    }
    return DTYPE_NONE;
}

int64_t dtype_item_bits(int32_t dtype)
{
    return dtype == DTYPE_PACKED_INT4 ? 8 : dtype & 0xff;
}

const char *dtype_name(int32_t dtype)
{
    static char number[NAME_BYTES];
    if (dtype == DTYPE_PACKED_INT4) {
        return "int4, two a byte";
    }
    if (dtype >= OTHERS && dtype < OTHERS + n_others) {
        return others[dtype - OTHERS];
    }
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        if (names[i].id == dtype) {
            return names[i].name;
        }
    }
    snprintf(number, sizeof number, "dtype %d", (int)dtype);
    return number;
}
