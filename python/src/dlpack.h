/*
 * The part of DLPack's C interface that is used here (versions 0.x and 1.x),
 * written down from its specification.
 */
#ifndef PAGEDKV_PYTHON_DLPACK_H
#define PAGEDKV_PYTHON_DLPACK_H

#include <stdint.h>

enum { DL_CPU = 1, DL_READ_ONLY = 1, DL_MAJOR = 1 };

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

#endif
