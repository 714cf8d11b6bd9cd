/*
 * The part of XLA's foreign function interface (version 0.1) that is used here,
 * written down from its header, so that building needs no JAX.  tests/python
 * compares it with the header of the installed jaxlib.
 */
#ifndef PAGEDKV_PYTHON_XLA_ABI_H
#define PAGEDKV_PYTHON_XLA_ABI_H

#include <stddef.h>
#include <stdint.h>

enum { XLA_EXTENSION_METADATA = 1, XLA_API_MAJOR = 0, XLA_API_MINOR = 1 };

enum { XLA_STAGE_INITIALIZE = 2, XLA_STAGE_EXECUTE = 3 };

/* May be recorded in a graph and replayed. */
enum { XLA_TRAIT_COMMAND_BUFFER = 1 };

enum {
    XLA_INVALID_ARGUMENT = 3,
    XLA_OUT_OF_RANGE     = 11,
    XLA_UNIMPLEMENTED    = 12,
    XLA_INTERNAL         = 13
};

enum {
    XLA_PRED = 1, XLA_S8 = 2, XLA_S16 = 3, XLA_S32 = 4, XLA_S64 = 5, XLA_U8 = 6, XLA_U16 = 7,
    XLA_U32 = 8, XLA_U64 = 9, XLA_F16 = 10, XLA_F32 = 11, XLA_F64 = 12, XLA_C64 = 15,
    XLA_BF16 = 16, XLA_F8E5M2 = 19, XLA_F8E4M3FN = 20, XLA_F8E4M3B11FNUZ = 23,
    XLA_F8E5M2FNUZ = 24, XLA_F8E4M3FNUZ = 25, XLA_F8E4M3 = 28, XLA_F8E3M4 = 29,
    XLA_F8E8M0FNU = 33
};

typedef struct xla_extension {
    size_t                struct_size;
    int                   type;
    struct xla_extension *next;
} xla_extension;

typedef struct xla_version {
    size_t         struct_size;
    xla_extension *extensions;
    int            major_version;
    int            minor_version;
} xla_version;

typedef struct xla_metadata {
    size_t      struct_size;
    xla_version api_version;
    uint32_t    traits;
} xla_metadata;

typedef struct xla_metadata_extension {
    xla_extension base;
    xla_metadata *metadata;
} xla_metadata_extension;

typedef struct xla_error xla_error;

typedef struct xla_error_create_args {
    size_t         struct_size;
    xla_extension *extensions;
    const char    *message;
    int            code;
} xla_error_create_args;

typedef struct xla_stream_args {
    size_t         struct_size;
    xla_extension *extensions;
    void          *ctx;
    void          *stream; /* out: a CUstream */
} xla_stream_args;

typedef struct xla_device_args {
    size_t         struct_size;
    xla_extension *extensions;
    void          *ctx;
    int32_t        device; /* out: the ordinal */
} xla_device_args;

typedef struct xla_api {
    size_t         struct_size; /* an older XLA's ends earlier */
    xla_extension *extensions;
    xla_version    api_version;
    const void    *internal_api;
    xla_error *(*error_create)(xla_error_create_args *args);
    void (*not_used[3])(void);
    xla_error *(*stream_get)(xla_stream_args *args);
    void (*not_used_either[12])(void);
    xla_error *(*device_get)(xla_device_args *args);
} xla_api;

typedef struct xla_buffer {
    size_t         struct_size;
    xla_extension *extensions;
    int            dtype;
    void          *data;
    int64_t        rank;
    int64_t       *dims;
} xla_buffer;

/* Arguments and results look the same. */
typedef struct xla_values {
    size_t         struct_size;
    xla_extension *extensions;
    int64_t        size;
    int           *types;
    void         **values;
} xla_values;

typedef struct xla_call_frame {
    size_t         struct_size;
    xla_extension *extensions;
    const xla_api *api;
    void          *ctx;
    int            stage;
    xla_values     args;
    xla_values     rets;
} xla_call_frame;

#endif
