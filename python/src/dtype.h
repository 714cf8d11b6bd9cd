/* Kinds of items: see dtype.c. */
#ifndef PAGEDKV_PYTHON_DTYPE_H
#define PAGEDKV_PYTHON_DTYPE_H

#include "core.h"

/* DLPack's type code and bits; names that DLPack has no code for get numbers of their own. */
#define DTYPE_ID(code, bits) ((int32_t)(((code) << 8) | (bits)))
#define DTYPE_NONE (-1)

/* Two elements a byte: what a cache of uint8 may be said to hold. */
#define DTYPE_PACKED_INT4 DTYPE_ID(0, 4)

int32_t dtype_of_name(const char *name);

/* Of a dtype object of NumPy or PyTorch. */
int32_t dtype_of_object(PyObject *dtype);

/* Of what a caller says that a cache holds; DTYPE_NONE for what the library cannot convert. */
int32_t dtype_of_cache(const char *name);

/* The library's name of it, or 0. */
pkv_dtype dtype_to_library(int32_t dtype);

/* Bits of the item of an array that holds it. */
int64_t dtype_item_bits(int32_t dtype);

#endif
