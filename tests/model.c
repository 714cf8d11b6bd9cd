/* The plain model; see model.h. */
#include "model.h"

static int64_t bits_of(pkv_dtype dtype)
{
    switch (dtype) {
    case PKV_DTYPE_F32:
    case PKV_DTYPE_BITS32:
        return 32;
    case PKV_DTYPE_F16:
    case PKV_DTYPE_BF16:
    case PKV_DTYPE_BITS16:
        return 16;
    case PKV_DTYPE_INT4:
        return 4;
    default:
        return 8;
    }
}

int64_t model_row_bytes(pkv_dtype dtype, int64_t head_dim)
{
    return head_dim * bits_of(dtype) / 8;
}

int64_t model_plane_bytes(const pkv_cache *cache, const pkv_plane *plane)
{
    if (plane->head_dim == 0) {
        return 0;
    }
    return (cache->n_pages - 1) * plane->page_stride_bytes +
           (cache->page_size - 1) * plane->token_stride_bytes +
           (cache->n_heads - 1) * plane->head_stride_bytes +
           model_row_bytes(cache->dtype, plane->head_dim);
}

/* One head vector of one token, in the cache. */
static unsigned char *cache_row(const pkv_cache *cache, const pkv_plane *plane, int64_t slot,
                                int64_t head)
{
    return (unsigned char *)plane->data + slot / cache->page_size * plane->page_stride_bytes +
           slot % cache->page_size * plane->token_stride_bytes + head * plane->head_stride_bytes;
}

static void copy_bytes(unsigned char *dst, const unsigned char *src, int64_t n_bytes)
{
    for (int64_t b = 0; b < n_bytes; b++) {
        dst[b] = src[b];
    }
}

static void update_token(const pkv_cache *cache, const pkv_plane *plane,
                         const pkv_new_kv_plane *source, int64_t slot, int64_t row)
{
    for (int64_t h = 0; h < cache->n_heads && plane->data != NULL; h++) {
        const unsigned char *src = (const unsigned char *)source->data +
                                   row * source->token_stride_bytes +
                                   h * source->head_stride_bytes;
        copy_bytes(cache_row(cache, plane, slot, h), src,
                   model_row_bytes(cache->dtype, plane->head_dim));
    }
}

void model_update(const pkv_cache *cache, const pkv_new_kv *new_kv, const pkv_slices *slices)
{
    for (int64_t i = 0; i < *slices->num_slices; i++) {
        for (int64_t j = 0; j < slices->slice_len[i]; j++) {
            int64_t slot = (int64_t)slices->kv_cache_start[i] + j;
            int64_t row = (int64_t)slices->new_kv_start[i] + j;
            update_token(cache, &cache->k, &new_kv->k, slot, row);
            update_token(cache, &cache->v, &new_kv->v, slot, row);
        }
    }
}

static void gather_token(const pkv_cache *cache, const pkv_plane *plane,
                         const pkv_rows_plane *rows, int64_t slot, int64_t row)
{
    for (int64_t h = 0; h < cache->n_heads && plane->data != NULL; h++) {
        unsigned char *dst = (unsigned char *)rows->data + row * rows->token_stride_bytes +
                             h * rows->head_stride_bytes;
        copy_bytes(dst, cache_row(cache, plane, slot, h),
                   model_row_bytes(cache->dtype, plane->head_dim));
    }
}

void model_gather(const pkv_cache *cache, const pkv_rows *rows, const pkv_slices *slices)
{
    for (int64_t i = 0; i < *slices->num_slices; i++) {
        for (int64_t j = 0; j < slices->slice_len[i]; j++) {
            int64_t slot = (int64_t)slices->kv_cache_start[i] + j;
            int64_t row = (int64_t)slices->new_kv_start[i] + j;
            gather_token(cache, &cache->k, &rows->k, slot, row);
            gather_token(cache, &cache->v, &rows->v, slot, row);
        }
    }
}

/* ---- plans --------------------------------------------------------------- */

static int64_t page_of(const pkv_batch *batch, int64_t request, int64_t i)
{
    if (batch->indptr != NULL) {
        return batch->indices[batch->indptr[request] + i];
    }
    return batch->block_table[request * batch->block_table_stride + i];
}

/* Joins the list's last slice to the one before it, if it follows on within the bound. */
static void join_last(slice_list *list, int32_t first_of_request, int64_t max_slice_tokens)
{
    int32_t i = list->n - 1;
    const pkv_slices *s = &list->view;
    if (i <= first_of_request ||
        s->kv_cache_start[i] != s->kv_cache_start[i - 1] + s->slice_len[i - 1]) {
        return;
    }
    int64_t joined = (int64_t)s->slice_len[i - 1] + s->slice_len[i];
    if (max_slice_tokens == 0 || joined <= max_slice_tokens) {
        s->slice_len[i - 1] = (int32_t)joined;
        list->n--;
    }
}

static void plan_request(const pkv_batch *batch, int64_t request, int64_t max_slice_tokens,
                         int64_t *row, slice_list *out)
{
    int64_t first = batch->computed[request];
    int64_t end = first + batch->scheduled[request];
    int32_t first_slice = out->n;
    for (int64_t token = first; token < end; token++) {
        int64_t offset = token % batch->page_size;
        int64_t page = page_of(batch, request, token / batch->page_size);
        if (token == first || offset == 0) {
            slice_list_add(out, page * batch->page_size + offset, *row, 0);
        }
        out->view.slice_len[out->n - 1]++;
        *row += 1;
        bool page_done = token + 1 == end || offset + 1 == batch->page_size;
        if (page_done && max_slice_tokens != batch->page_size) {
            join_last(out, first_slice, max_slice_tokens);
        }
    }
}

void model_plan(const pkv_batch *batch, int64_t max_slice_tokens, slice_list *out)
{
    int64_t row = 0;
    for (int64_t r = 0; r < batch->n_requests; r++) {
        plan_request(batch, r, max_slice_tokens, &row, out);
    }
}

static bool starts_request(const int32_t *query_start_loc, int64_t n_requests, int64_t token)
{
    for (int64_t r = 0; query_start_loc != NULL && r <= n_requests; r++) {
        if (query_start_loc[r] == token) {
            return true;
        }
    }
    return false;
}

void model_plan_slots(const int64_t *slots, int64_t n_tokens, int64_t page_size,
                      int64_t max_slice_tokens, const int32_t *query_start_loc,
                      int64_t n_requests, slice_list *out)
{
    for (int64_t t = 0; t < n_tokens; t++) {
        if (slots[t] == -1) {
            continue;
        }
        bool joins = t > 0 && slots[t - 1] != -1 && slots[t] == slots[t - 1] + 1 &&
                     !starts_request(query_start_loc, n_requests, t);
        if (joins && max_slice_tokens == page_size) {
            joins = slots[t] % page_size != 0;
        } else if (joins && max_slice_tokens != 0) {
            joins = out->view.slice_len[out->n - 1] < max_slice_tokens;
        }
        if (!joins) {
            slice_list_add(out, slots[t], t, 0);
        }
        out->view.slice_len[out->n - 1]++;
    }
}
