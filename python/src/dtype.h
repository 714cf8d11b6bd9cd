/* Kinds of items: see dtype.c. */
#ifndef PAGEDKV_PYTHON_DTYPE_H
#define PAGEDKV_PYTHON_DTYPE_H

#include "core.h"

/* DLPack's type code and bits; names that DLPack has no code for get numbers of their own. */
#define DTYPE_ID(code, bits) ((int32_t)(((code) << 8) | (bits)))
#define DTYPE_NONE (-1)

int32_t dtype_of_name(const char *name);

/* Of a dtype object of NumPy or PyTorch. */
int32_t dtype_of_object(PyObject *dtype);

#endif
