/*
 * The part of DLPack's C interface that is used here (versions 0.x and 1.x, the
 * table of functions since 1.2), written down from its specification.
 */
#ifndef PAGEDKV_PYTHON_DLPACK_H
#define PAGEDKV_PYTHON_DLPACK_H

#include "core.h"

enum { DL_CPU = 1, DL_CUDA = 2, DL_READ_ONLY = 1, DL_MAJOR = 1 };

typedef struct dl_tensor {
    void    *data;
    int32_t  device_type;
    int32_t  device_id;
    int32_t  n_dims;
    uint8_t  type_code;
    uint8_t  type_bits;
    uint16_t type_lanes;
    int64_t *shape;
    int64_t *strides; /* in items; NULL: dense, row by row */
    uint64_t byte_offset;
} dl_tensor;

typedef struct dl_managed {
    dl_tensor tensor;
    void     *manager;
    void (*deleter)(struct dl_managed *self);
} dl_managed;

typedef struct dl_managed_versioned {
    uint32_t major, minor;
    void    *manager;
    void (*deleter)(struct dl_managed_versioned *self);
    uint64_t  flags;
    dl_tensor tensor;
} dl_managed_versioned;

typedef struct dl_table_header {
    uint32_t major, minor;
    const struct dl_table_header *older; /* a table of another major version, or NULL */
} dl_table_header;

/* -1: exception set.  What it fills in is the object's own: nothing is to be given back. */
typedef int dl_read(PyObject *obj, dl_tensor *out);

/* In a capsule "dlpack_exchange_api" that is an attribute of a type: good for its objects. */
typedef struct dl_table {
    dl_table_header header;
    void (*not_used[3])(void);
    dl_read *read; /* may be NULL */
    void (*not_used_either)(void);
} dl_table;

#endif
