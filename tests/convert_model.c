/* Updates, gathers and page copies with conversions; see convert_world.h. */
#include <string.h>

#include "convert_world.h"

static unsigned char *vector_at(const pkv_cache *c, const pkv_plane *p, int64_t slot, int64_t head)
{
    return (unsigned char *)p->data + slot / c->page_size * p->page_stride_bytes +
           slot % c->page_size * p->token_stride_bytes + head * p->head_stride_bytes;
}

/* The scales of one head vector, as the header says. */
static unsigned char *scales_at(const pkv_cache *c, const pkv_scales *s, int64_t slot, int64_t head)
{
    unsigned char *at = s->data;
    if (s->kind == PKV_SCALES_TENSOR) {
        return at;
    }
    if (s->kind == PKV_SCALES_HEAD) {
        return at + head * s->head_stride_bytes;
    }
    return at + slot / c->page_size * s->page_stride_bytes +
           slot % c->page_size * s->token_stride_bytes + head * s->head_stride_bytes;
}

static bool is_computed(const pkv_scales *s)
{
    return s->kind == PKV_SCALES_TOKEN_HEAD || s->kind == PKV_SCALES_GROUP;
}

static int64_t group_of(const pkv_plane *p, const pkv_scales *s)
{
    return s->kind == PKV_SCALES_GROUP ? s->group_size : p->head_dim;
}

static void copy_bytes(unsigned char *dst, const unsigned char *src, int64_t n_bytes)
{
    for (int64_t i = 0; i < n_bytes; i++) {
        dst[i] = src[i];
    }
}

static void write_vector(const pkv_cache *c, const pkv_plane *p, const pkv_scales *s, int64_t slot,
                         int64_t head, pkv_dtype from, const unsigned char *src)
{
    unsigned char *dst = vector_at(c, p, slot, head);
    if (from == c->dtype) {
        copy_bytes(dst, src, p->head_dim * model_bits(from) / 8);
        return;
    }
    model_cast(from, src, c->dtype, dst, p->head_dim, group_of(p, s),
               s->kind == PKV_SCALES_NONE ? MODEL_ONE
               : is_computed(s)           ? MODEL_COMPUTED
                                          : MODEL_GIVEN,
               s->kind == PKV_SCALES_NONE ? NULL : scales_at(c, s, slot, head));
}

static void read_vector(const pkv_cache *c, const pkv_plane *p, const pkv_scales *s, int64_t slot,
                        int64_t head, pkv_dtype to, unsigned char *dst)
{
    const unsigned char *src = vector_at(c, p, slot, head);
    if (to == c->dtype) {
        copy_bytes(dst, src, p->head_dim * model_bits(to) / 8);
        return;
    }
    model_cast(c->dtype, src, to, dst, p->head_dim, group_of(p, s),
               s->kind == PKV_SCALES_NONE ? MODEL_ONE : MODEL_BACK,
               s->kind == PKV_SCALES_NONE ? NULL : scales_at(c, s, slot, head));
}

void convert_update(const pkv_cache *c, const pkv_new_kv *new_kv, const pkv_slices *slices)
{
    const pkv_plane        *planes[2] = {&c->k, &c->v};
    const pkv_scales       *scales[2] = {&c->k_scales, &c->v_scales};
    const pkv_new_kv_plane *rows[2] = {&new_kv->k, &new_kv->v};
    for (int64_t i = 0; i < *slices->num_slices; i++) {
        for (int64_t j = 0; j < slices->slice_len[i]; j++) {
            for (int64_t at = 0; at < 2 * c->n_heads; at++) {
                const int     p = (int)(at / c->n_heads);
                const int64_t h = at % c->n_heads;
                if (planes[p]->head_dim > 0) {
                    write_vector(c, planes[p], scales[p], slices->kv_cache_start[i] + j, h,
                                 new_kv->dtype,
                                 (const unsigned char *)rows[p]->data +
                                     (slices->new_kv_start[i] + j) * rows[p]->token_stride_bytes +
                                     h * rows[p]->head_stride_bytes);
                }
            }
        }
    }
}

void convert_gather(const pkv_cache *c, const pkv_rows *out, const pkv_slices *slices)
{
    const pkv_plane      *planes[2] = {&c->k, &c->v};
    const pkv_scales     *scales[2] = {&c->k_scales, &c->v_scales};
    const pkv_rows_plane *rows[2] = {&out->k, &out->v};
    for (int64_t i = 0; i < *slices->num_slices; i++) {
        for (int64_t j = 0; j < slices->slice_len[i]; j++) {
            for (int64_t at = 0; at < 2 * c->n_heads; at++) {
                const int     p = (int)(at / c->n_heads);
                const int64_t h = at % c->n_heads;
                if (planes[p]->head_dim > 0) {
                    read_vector(c, planes[p], scales[p], slices->kv_cache_start[i] + j, h,
                                out->dtype,
                                (unsigned char *)rows[p]->data +
                                    (slices->new_kv_start[i] + j) * rows[p]->token_stride_bytes +
                                    h * rows[p]->head_stride_bytes);
                }
            }
        }
    }
}

void convert_token(const pkv_cache *src, int64_t a, const pkv_cache *dst, int64_t b)
{
    const pkv_plane  *from[2] = {&src->k, &src->v}, *to[2] = {&dst->k, &dst->v};
    const pkv_scales *from_scales[2] = {&src->k_scales, &src->v_scales};
    const pkv_scales *to_scales[2] = {&dst->k_scales, &dst->v_scales};
    for (int64_t at = 0; at < 2 * src->n_heads; at++) {
        const int     p = (int)(at / src->n_heads);
        const int64_t h = at % src->n_heads;
        if (from[p]->head_dim == 0) {
            continue;
        }
        if (src->dtype > PKV_DTYPE_BF16 && src->dtype != dst->dtype) {
            read_vector(src, from[p], from_scales[p], a, h, dst->dtype,
                        vector_at(dst, to[p], b, h));
            continue;
        }
        write_vector(dst, to[p], to_scales[p], b, h, src->dtype, vector_at(src, from[p], a, h));
        if (src->dtype == dst->dtype && is_computed(from_scales[p])) {
            copy_bytes(scales_at(dst, to_scales[p], b, h), scales_at(src, from_scales[p], a, h),
                       from[p]->head_dim / group_of(from[p], from_scales[p]) * 4);
        }
    }
}
