/* One update or gather: what move.c, views.c and scales.c share. */
#ifndef PAGEDKV_PYTHON_MOVE_H
#define PAGEDKV_PYTHON_MOVE_H

#include "core.h"

/* k_scale or v_scale: nothing, a number or an array. */
typedef struct scale_arg {
    array       array;
    float       number;
    bool        given, is_array, is_jax;
    const char *name;
} scale_arg;

/* The arrays of one call; V is absent in the combined form.  With `cuda` they are a device's. */
typedef struct call {
    array      k, v, slices, k_cache, v_cache, count;
    scale_arg  k_scale, v_scale;
    int32_t    cache_dtype; /* what the caches' items are, or DTYPE_NONE: what they say */
    bool       gather, apart;
    int32_t    n;
    uint32_t   flags;
    int64_t    page_size; /* 0: what a 4-D cache says; of a 3-D one, all that strict mode needs */
    pkv_slices plan;

    pkv_cuda       *cuda; /* NULL: host memory */
    pkv_cuda_stream stream;
    array           status_word; /* or all zero */
} call;

/* Moves what the arrays of the call say.  False: exception set. */
bool move_run(call *c);
void move_close(call *c);

/* Views of the caches and the rows.  False: exception set. */
bool views_build(call *c, pkv_cache *cache, pkv_rows *rows);

/* "There is no conversion", with the names of both dtypes; returns false. */
bool views_refuse_dtypes(const call *c);

/* pkv_new_kv is pkv_rows with const pointers. */
pkv_new_kv views_source(const pkv_rows *r);

bool scale_open(scale_arg *s, PyObject *obj, const char *name);
void scale_close(scale_arg *s);

/* The scales of one plane: `cache` is its array, `view` has its sizes.  False: exception set. */
bool scale_view(const scale_arg *s, const array *cache, const pkv_cache *view, int64_t head_dim,
                bool written, pkv_scales *out);

#endif
