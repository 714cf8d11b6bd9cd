/* k_scale and v_scale: their shape says which elements share a scale. */
#include "dtype.h"
#include "move.h"

#include <stdio.h>

enum { SCALE_BYTES = 4 };

bool scale_open(scale_arg *s, PyObject *obj, const char *name)
{
    s->name = name;
    s->given = obj != Py_None;
    if (!s->given) {
        return true;
    }
    if (PyFloat_Check(obj) || PyLong_Check(obj)) {
        double number = PyFloat_AsDouble(obj);
        s->number = (float)number;
        return !PyErr_Occurred();
    }
    s->is_array = true;
    if (!array_open(&s->array, obj, name, false)) {
        return false;
    }
    s->is_jax = array_is_jax(obj);
    if (s->array.dtype != DTYPE_ID(2, 32)) {
        raise_invalid("%s: holds %s, not float32", name, dtype_name(s->array.dtype));
        return false;
    }
    return true;
}

void scale_close(scale_arg *s)
{
    array_close(&s->array);
}

static bool refuse_shape(const scale_arg *s, const array *cache, int64_t n_heads)
{
    char slots[64];
    if (cache->n_dims == 4) {
        snprintf(slots, sizeof slots, "%lld, %lld", (long long)cache->shape[0],
                 (long long)cache->shape[1]);
    } else {
        snprintf(slots, sizeof slots, "%lld", (long long)cache->shape[0]);
    }
    raise_invalid("%s: is neither a number nor of shape [%lld], [%s, %lld] or "
                  "[%s, %lld, groups]", s->name, (long long)n_heads, slots, (long long)n_heads,
                  slots, (long long)n_heads);
    return false;
}

/* One scale for each slot and head, or for each group of a head vector. */
static bool view_each(const scale_arg *s, const array *cache, const pkv_cache *view,
                      int64_t head_dim, pkv_scales *out)
{
    const array *a = &s->array;
    const int    lead = cache->n_dims - 2; /* axes that count slots */
    const bool   grouped = a->n_dims == lead + 2;
    for (int i = 0; i < lead; i++) {
        if (a->shape[i] != cache->shape[i]) {
            return refuse_shape(s, cache, view->n_heads);
        }
    }
    if (a->shape[lead] != view->n_heads) {
        return refuse_shape(s, cache, view->n_heads);
    }
    *out = (pkv_scales){.data = a->data,
                        .kind = grouped ? PKV_SCALES_GROUP : PKV_SCALES_TOKEN_HEAD,
                        .token_stride_bytes = a->stride_bytes[lead - 1],
                        .head_stride_bytes = a->stride_bytes[lead]};
    if (__builtin_mul_overflow(a->stride_bytes[0], lead == 2 ? 1 : view->page_size,
                               &out->page_stride_bytes)) {
        raise_invalid("%s: has a stride that overflows", s->name);
        return false;
    }
    if (!grouped) {
        return true;
    }
    const int64_t groups = a->shape[lead + 1];
    if (groups < 1 || groups > INT32_MAX || head_dim / groups > INT32_MAX ||
        head_dim % groups != 0) {
        raise_invalid("%s: %lld groups do not divide a head of %lld elements", s->name,
                      (long long)groups, (long long)head_dim);
        return false;
    }
    if (groups > 1 && a->stride_bytes[lead + 1] != SCALE_BYTES) {
        raise_invalid("%s: its last axis is not contiguous", s->name);
        return false;
    }
    out->group_size = (int32_t)(head_dim / groups);
    return true;
}

bool scale_view(const scale_arg *s, const array *cache, const pkv_cache *view, int64_t head_dim,
                bool written, pkv_scales *out)
{
    const array *a = &s->array;
    const int    lead = cache->n_dims - 2;
    if (!s->given) {
        return true; /* kind NONE, as *out is */
    }
    if (!s->is_array) {
        /* The library only reads a given scale. */
        *out = (pkv_scales){.data = (void *)(uintptr_t)&s->number, .kind = PKV_SCALES_TENSOR};
        return true;
    }
    if (a->n_dims == 0 || (a->n_dims == 1 && a->shape[0] == 1)) {
        *out = (pkv_scales){.data = a->data, .kind = PKV_SCALES_TENSOR};
        return true;
    }
    if (a->n_dims == 1) {
        *out = (pkv_scales){.data = a->data, .kind = PKV_SCALES_HEAD,
                            .head_stride_bytes = a->stride_bytes[0]};
        return a->shape[0] == view->n_heads || refuse_shape(s, cache, view->n_heads);
    }
    if (a->n_dims != lead + 1 && a->n_dims != lead + 2) {
        return refuse_shape(s, cache, view->n_heads);
    }
    if (written && (a->read_only || s->is_jax)) {
        raise_invalid("%s: is read-only", s->name);
        return false;
    }
    return view_each(s, cache, view, head_dim, out);
}
