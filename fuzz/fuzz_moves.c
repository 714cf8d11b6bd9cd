/*
 * Page copies drawn from the bytes, inside a cache and to another one: those that a plain
 * check takes are compared with the model, the others must be refused with nothing written.
 */
#include "input.h"

#include <stdlib.h>
#include <string.h>

#include "../tests/convert_world.h"

enum { MOST_COPIES = 12 };

static cw_shape take_shape(input *in)
{
    cw_shape s = {.layout = (int)take_range(in, 0, CW_LAYOUTS - 1),
                  .place = (int)take_range(in, 0, CW_PLACES - 1),
                  .dtype = (pkv_dtype)take_range(in, PKV_DTYPE_F32, PKV_DTYPE_INT4),
                  .n_pages = take_range(in, 1, 8), .page_size = take_range(in, 1, 5),
                  .n_heads = take_range(in, 1, 3), .n_tokens = 1};
    s.rows_dtype = s.dtype == PKV_DTYPE_F32 ? PKV_DTYPE_F16 : PKV_DTYPE_F32;
    for (int p = 0; p < 2; p++) {
        s.head_dim[p] = 2 * take_range(in, 1, 40);
        s.kind[p] = take_chance(in, 2) ? (int32_t)take_range(in, 3, 4) : PKV_SCALES_NONE;
        s.n_groups[p] = (int32_t)take_range(in, 1, 4);
    }
    return s;
}

/* Of the layout class and sizes of another, and mostly of its dtype and scales. */
static cw_shape take_partner(input *in, const cw_shape *a)
{
    cw_shape s = *a;
    s.place = (int)take_range(in, 0, CW_PLACES - 1);
    s.n_pages = take_range(in, 1, 8);
    if (take_chance(in, 2)) {
        s.dtype = (pkv_dtype)take_range(in, PKV_DTYPE_F32, PKV_DTYPE_INT4);
        s.kind[0] = (int32_t)take_range(in, 0, 1) * PKV_SCALES_TOKEN_HEAD;
        s.rows_dtype = s.dtype == PKV_DTYPE_F32 ? PKV_DTYPE_F16 : PKV_DTYPE_F32;
    }
    return s;
}

static bool copies_are_good(const pkv_page_copy *c, int n, const cw *src, const cw *dst)
{
    for (int i = 0; i < n; i++) {
        if (c[i].group == 0 &&
            (c[i].src < 0 || c[i].src >= src->shape.n_pages || c[i].dst < 0 ||
             c[i].dst >= dst->shape.n_pages || c[i].n_tokens < 1 ||
             c[i].n_tokens > src->shape.page_size)) {
            return false;
        }
        for (int j = 0; j < n; j++) {
            if (c[i].group == c[j].group && ((i != j && c[i].dst == c[j].dst) ||
                                             (src == dst && c[i].src == c[j].dst))) {
                return false;
            }
        }
    }
    return true;
}

/* Is there a way from one to the other: the same dtype and scales, or a conversion? */
static bool caches_are_good(const cw *src, const cw *dst)
{
    const cw_shape *a = &src->shape, *b = &dst->shape;
    if (a->dtype != b->dtype) {
        return model_converts(a->dtype, b->dtype) != 0;
    }
    for (int p = 0; p < 2; p++) {
        if (a->kind[p] != b->kind[p] ||
            (a->kind[p] == PKV_SCALES_GROUP && a->n_groups[p] != b->n_groups[p])) {
            return false;
        }
    }
    return true;
}

static void check(cw *src, cw *dst, const pkv_page_copy *copies, int n)
{
    pkv_error  err;
    const bool good = caches_are_good(src, dst) && copies_are_good(copies, n, src, dst);
    const pkv_status status = pkv_copy_pages(&src->cache, src == dst ? NULL : &dst->cache, NULL, 1,
                                             copies, n, NULL, &err);
    if ((status == PKV_OK) != good) {
        abort();
    }
    for (int i = 0; good && i < n; i++) {
        for (int64_t t = 0; t < copies[i].n_tokens && copies[i].group == 0; t++) {
            const int64_t S = src->shape.page_size;
            convert_token(&src->model_cache, copies[i].src * S + t, &dst->model_cache,
                          copies[i].dst * S + t);
        }
    }
    cw_expect_same(src);
    cw_expect_same(dst);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    input          in = {data, size};
    const cw_shape a = take_shape(&in), b = take_partner(&in, &a);
    cw             src, dst;
    cw_init(&src, &a, 1);
    cw_init(&dst, &b, 2);
    for (int round = 0; round < 6 && in.left > 0; round++) {
        pkv_page_copy copies[MOST_COPIES];
        const int     n = (int)take_range(&in, 0, MOST_COPIES);
        const bool    inside = take_chance(&in, 2);
        for (int i = 0; i < n; i++) {
            copies[i].src = take_mostly(&in, 0, a.n_pages - 1);
            copies[i].dst = take_mostly(&in, 0, (inside ? a : b).n_pages - 1);
            copies[i].n_tokens = take_mostly(&in, 1, a.page_size);
            copies[i].group = (int32_t)take_range(&in, 0, 9) == 9 ? 1 : 0;
        }
        check(&src, inside ? &src : &dst, copies, n);
    }
    cw_free(&src);
    cw_free(&dst);
    return 0;
}
