/* Builders: one struct filled for each common layout. */
#include "layout.h"

/* A product of sizes; -1 once it overflows, which the check at the end refuses. */
static int64_t times(int64_t a, int64_t b)
{
    int64_t r = 0;
    return a < 0 || b < 0 || PKV_I_MUL(a, b, &r) ? -1 : r;
}

/* data + offset, for views that are sized before there is memory too. */
static void *at_offset(void *data, int64_t offset_bytes)
{
    return (void *)((uintptr_t)data + (uintptr_t)offset_bytes);
}

/* Gives a finished view to the caller if it stands its own check. */
static pkv_status finish_cache(pkv_cache *out, size_t struct_size, pkv_cache *view)
{
    PKV_I_TRY(pkv_i_check_out(out, struct_size, sizeof *view));
    view->struct_size = sizeof *view;
    PKV_I_TRY(pkv_cache_check(view, NULL));
    view->struct_size = struct_size;
    *out = *view;
    pkv_i_clear_tail(out, struct_size, sizeof *view);
    return PKV_OK;
}

pkv_status pkv_cache_combined(pkv_cache *out, size_t struct_size, void *data, int64_t n_pages,
                              int64_t page_size, int64_t n_heads, int64_t head_dim, pkv_dtype dtype)
{
    int64_t   head = pkv_i_dtype_bytes(dtype, head_dim);
    int64_t   pair = times(head, 2);
    int64_t   token = times(pair, n_heads);
    pkv_plane k = {data, times(token, page_size), token, pair, head_dim};
    pkv_plane v = k;
    v.data = at_offset(data, head);
    pkv_cache view = {.n_pages = n_pages, .page_size = page_size, .n_heads = n_heads,
                      .dtype = dtype, .k = k, .v = v};
    return finish_cache(out, struct_size, &view);
}

/* K and V with the same strides, each in memory of its own; no V where only K has some. */
static pkv_status finish_apart(pkv_cache *out, size_t struct_size, const pkv_plane *k, void *v,
                               int64_t n_pages, int64_t page_size, int64_t n_heads,
                               pkv_dtype dtype)
{
    pkv_cache view = {.n_pages = n_pages, .page_size = page_size, .n_heads = n_heads,
                      .dtype = dtype, .k = *k};
    if (k->data == NULL || v != NULL) {
        view.v = *k;
        view.v.data = v;
    }
    return finish_cache(out, struct_size, &view);
}

pkv_status pkv_cache_nhd(pkv_cache *out, size_t struct_size, void *k, void *v, int64_t n_pages,
                         int64_t page_size, int64_t n_heads, int64_t head_dim, pkv_dtype dtype)
{
    int64_t   head = pkv_i_dtype_bytes(dtype, head_dim);
    int64_t   token = times(head, n_heads);
    pkv_plane plane = {k, times(token, page_size), token, head, head_dim};
    return finish_apart(out, struct_size, &plane, v, n_pages, page_size, n_heads, dtype);
}

pkv_status pkv_cache_hnd(pkv_cache *out, size_t struct_size, void *k, void *v, int64_t n_pages,
                         int64_t page_size, int64_t n_heads, int64_t head_dim, pkv_dtype dtype)
{
    int64_t   token = pkv_i_dtype_bytes(dtype, head_dim);
    int64_t   head = times(token, page_size);
    pkv_plane plane = {k, times(head, n_heads), token, head, head_dim};
    return finish_apart(out, struct_size, &plane, v, n_pages, page_size, n_heads, dtype);
}

pkv_status pkv_cache_content(pkv_cache *out, size_t struct_size, void *data, int64_t n_pages,
                             int64_t page_size, int64_t n_heads, int64_t head_dim_k,
                             int64_t head_dim_v, pkv_dtype dtype)
{
    int64_t k_bytes = pkv_i_dtype_bytes(dtype, head_dim_k);
    int64_t v_bytes = pkv_i_dtype_bytes(dtype, head_dim_v);
    int64_t token = 0;
    if (k_bytes < 1 || v_bytes < 1 || PKV_I_ADD(k_bytes, v_bytes, &token)) {
        return out == NULL || struct_size >= sizeof *out ? PKV_E_INVALID : PKV_E_UNSUPPORTED;
    }
    int64_t   head = times(token, page_size);
    int64_t   page = times(head, n_heads);
    pkv_cache view = {.n_pages = n_pages, .page_size = page_size, .n_heads = n_heads,
                      .dtype = dtype,
                      .k = {data, page, token, head, head_dim_k},
                      .v = {at_offset(data, k_bytes), page, token, head, head_dim_v}};
    return finish_cache(out, struct_size, &view);
}

pkv_status pkv_cache_mla(pkv_cache *out, size_t struct_size, void *data, int64_t n_pages,
                         int64_t page_size, int64_t latent_dim, int64_t rope_dim,
                         int64_t rope_offset, int64_t row_dim, pkv_dtype dtype)
{
    int64_t rope_end = 0;
    int64_t row = pkv_i_dtype_bytes(dtype, row_dim);
    int64_t offset = pkv_i_dtype_bytes(dtype, rope_offset);
    if (latent_dim < 1 || rope_dim < 1 || rope_offset < latent_dim ||
        PKV_I_ADD(rope_offset, rope_dim, &rope_end) || row_dim < rope_end || row < 1 ||
        offset < 1) {
        return out == NULL || struct_size >= sizeof *out ? PKV_E_INVALID : PKV_E_UNSUPPORTED;
    }
    int64_t   page = times(row, page_size);
    pkv_cache view = {.n_pages = n_pages, .page_size = page_size, .n_heads = 1, .dtype = dtype,
                      .k = {data, page, row, row, latent_dim},
                      .v = {at_offset(data, offset), page, row, row, rope_dim}};
    return finish_cache(out, struct_size, &view);
}

/* ---- rows ---------------------------------------------------------------- */

/*
 * Strides of dense combined rows, or of K and V apart.  Rows are checked with a
 * page's rules and without memory, so that both kinds of rows share the code.
 */
typedef struct row_strides {
    int64_t head_bytes[2];
    int64_t token_bytes[2];
} row_strides;

static pkv_status combined_strides(int64_t n_tokens, int64_t n_heads, int64_t head_dim,
                                   pkv_dtype dtype, row_strides *out)
{
    int64_t head = pkv_i_dtype_bytes(dtype, head_dim);
    int64_t token = times(times(head, 2), n_heads);
    if (n_tokens < 0 || n_heads < 1 || head < 1 || token < 1 || times(token, n_tokens) < 0) {
        return PKV_E_INVALID;
    }
    *out = (row_strides){{head, head}, {token, token}};
    return PKV_OK;
}

static pkv_status nhd_strides(int64_t n_tokens, int64_t n_heads, int64_t head_dim_k,
                              int64_t head_dim_v, int64_t token_stride_bytes, pkv_dtype dtype,
                              row_strides *out)
{
    const int64_t dims[2] = {head_dim_k, head_dim_v};
    if (n_tokens < 0 || n_heads < 1 || head_dim_k < 1 || head_dim_v < 0 || token_stride_bytes < 0) {
        return PKV_E_INVALID;
    }
    for (int i = 0; i < 2; i++) {
        int64_t head = pkv_i_dtype_bytes(dtype, dims[i]);
        int64_t token = times(head, n_heads);
        int64_t stride = token_stride_bytes != 0 ? token_stride_bytes : token;
        if (head < (dims[i] > 0 ? 1 : 0) || token < 0 || stride < token ||
            times(stride, n_tokens) < 0) {
            return PKV_E_INVALID;
        }
        out->head_bytes[i] = head;
        out->token_bytes[i] = stride;
    }
    return PKV_OK;
}

pkv_status pkv_new_kv_combined(pkv_new_kv *out, size_t struct_size, const void *data,
                               int64_t n_tokens, int64_t n_heads, int64_t head_dim, pkv_dtype dtype)
{
    row_strides s;
    PKV_I_TRY(pkv_i_check_out(out, struct_size, sizeof *out));
    PKV_I_TRY(combined_strides(n_tokens, n_heads, head_dim, dtype, &s));
    uintptr_t v = (uintptr_t)data + (uintptr_t)s.head_bytes[0];
    *out = (pkv_new_kv){.struct_size = struct_size, .n_tokens = n_tokens, .n_heads = n_heads,
                        .dtype = dtype,
                        .k = {data, s.token_bytes[0], 2 * s.head_bytes[0], head_dim},
                        .v = {(const void *)v, s.token_bytes[0], 2 * s.head_bytes[0], head_dim}};
    pkv_i_clear_tail(out, struct_size, sizeof *out);
    return PKV_OK;
}

pkv_status pkv_rows_combined(pkv_rows *out, size_t struct_size, void *data, int64_t n_tokens,
                             int64_t n_heads, int64_t head_dim, pkv_dtype dtype)
{
    row_strides s;
    PKV_I_TRY(pkv_i_check_out(out, struct_size, sizeof *out));
    PKV_I_TRY(combined_strides(n_tokens, n_heads, head_dim, dtype, &s));
    void *v = at_offset(data, s.head_bytes[0]);
    *out = (pkv_rows){.struct_size = struct_size, .n_tokens = n_tokens, .n_heads = n_heads,
                      .dtype = dtype,
                      .k = {data, s.token_bytes[0], 2 * s.head_bytes[0], head_dim},
                      .v = {v, s.token_bytes[0], 2 * s.head_bytes[0], head_dim}};
    pkv_i_clear_tail(out, struct_size, sizeof *out);
    return PKV_OK;
}

pkv_status pkv_new_kv_nhd(pkv_new_kv *out, size_t struct_size, const void *k, const void *v,
                          int64_t n_tokens, int64_t n_heads, int64_t head_dim_k, int64_t head_dim_v,
                          int64_t token_stride_bytes, pkv_dtype dtype)
{
    row_strides s;
    PKV_I_TRY(pkv_i_check_out(out, struct_size, sizeof *out));
    PKV_I_TRY(nhd_strides(n_tokens, n_heads, head_dim_k, head_dim_v, token_stride_bytes, dtype,
                          &s));
    *out = (pkv_new_kv){.struct_size = struct_size, .n_tokens = n_tokens, .n_heads = n_heads,
                        .dtype = dtype,
                        .k = {k, s.token_bytes[0], s.head_bytes[0], head_dim_k},
                        .v = {v, s.token_bytes[1], s.head_bytes[1], head_dim_v}};
    pkv_i_clear_tail(out, struct_size, sizeof *out);
    return PKV_OK;
}

pkv_status pkv_rows_nhd(pkv_rows *out, size_t struct_size, void *k, void *v, int64_t n_tokens,
                        int64_t n_heads, int64_t head_dim_k, int64_t head_dim_v,
                        int64_t token_stride_bytes, pkv_dtype dtype)
{
    row_strides s;
    PKV_I_TRY(pkv_i_check_out(out, struct_size, sizeof *out));
    PKV_I_TRY(nhd_strides(n_tokens, n_heads, head_dim_k, head_dim_v, token_stride_bytes, dtype,
                          &s));
    *out = (pkv_rows){.struct_size = struct_size, .n_tokens = n_tokens, .n_heads = n_heads,
                      .dtype = dtype,
                      .k = {k, s.token_bytes[0], s.head_bytes[0], head_dim_k},
                      .v = {v, s.token_bytes[1], s.head_bytes[1], head_dim_v}};
    pkv_i_clear_tail(out, struct_size, sizeof *out);
    return PKV_OK;
}
