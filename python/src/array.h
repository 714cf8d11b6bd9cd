/* What array.c and tensor.c share. */
#ifndef PAGEDKV_PYTHON_ARRAY_H
#define PAGEDKV_PYTHON_ARRAY_H

#include "core.h"
#include "dlpack.h"

/* PyTorch's tensors, in host memory.  1: done, 0: not a plain tensor, -1: exception set. */
int tensor_open(array *a, PyObject *obj);

/* Data, layout and dtype, wherever the items lie.  False: exception set. */
bool array_take(array *a, const dl_tensor *t);

/* False, perhaps with an exception: not so many integers. */
bool array_read_tuple(PyObject *tuple, int64_t *out, int *n);

bool array_has_items(const array *a);

/* Raises "argument: why"; returns false. */
bool array_fail(const array *a, const char *why);

#endif
