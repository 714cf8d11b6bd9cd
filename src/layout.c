/* Views: element types and the checks that make every later address safe. */
#include "layout.h"
#include "scales.h"

#include <string.h>

static const struct {
    const char *name;
    int32_t     bits;
} dtypes[] = {
    [PKV_DTYPE_F32] = {"f32", 32},           [PKV_DTYPE_F16] = {"f16", 16},
    [PKV_DTYPE_BF16] = {"bf16", 16},         [PKV_DTYPE_FP8_E4M3] = {"fp8_e4m3", 8},
    [PKV_DTYPE_FP8_E5M2] = {"fp8_e5m2", 8},  [PKV_DTYPE_INT8] = {"int8", 8},
    [PKV_DTYPE_INT4] = {"int4", 4},          [PKV_DTYPE_BITS8] = {"bits8", 8},
    [PKV_DTYPE_BITS16] = {"bits16", 16},     [PKV_DTYPE_BITS32] = {"bits32", 32},
};
enum { N_DTYPES = sizeof dtypes / sizeof dtypes[0] };

int32_t pkv_dtype_bits(pkv_dtype dtype)
{
    return dtype > 0 && dtype < N_DTYPES ? dtypes[dtype].bits : 0;
}

const char *pkv_dtype_name(pkv_dtype dtype)
{
    return dtype > 0 && dtype < N_DTYPES ? dtypes[dtype].name : NULL;
}

pkv_dtype pkv_dtype_from_name(const char *name)
{
    for (pkv_dtype d = 1; name != NULL && d < N_DTYPES; d++) {
        if (strcmp(name, dtypes[d].name) == 0) {
            return d;
        }
    }
    return 0;
}

int64_t pkv_i_dtype_bytes(pkv_dtype dtype, int64_t elements)
{
    int64_t bits = 0;
    if (elements < 0 || PKV_I_MUL(elements, (int64_t)pkv_dtype_bits(dtype), &bits) ||
        bits % 8 != 0) {
        return -1;
    }
    return bits / 8;
}

/* The axes of a plane that have more than one element, by rising stride. */
typedef struct axes {
    int n;
    struct {
        int64_t n;
        int64_t stride_bytes;
    } at[3];
} axes;

static inline void insert_axis(axes *a, int64_t n, int64_t stride_bytes)
{
    if (n <= 1) {
        return;
    }
    int at = a->n++;
    for (; at > 0 && a->at[at - 1].stride_bytes > stride_bytes; at--) {
        a->at[at] = a->at[at - 1];
    }
    a->at[at].n = n;
    a->at[at].stride_bytes = stride_bytes;
}

/* From which axis on, counted from the narrowest, both planes have the same ones. */
static int first_same_axis(const axes *a, const axes *b)
{
    int i = a == b ? 0 : a->n;
    while (i > 0 && a->at[i - 1].n == b->at[i - 1].n &&
           a->at[i - 1].stride_bytes == b->at[i - 1].stride_bytes) {
        i--;
    }
    return i;
}

static const char *check_end(const pkv_i_plane *plane)
{
    return (uintptr_t)plane->data > UINTPTR_MAX - (uint64_t)plane->span_bytes
               ? "a plane runs over the end of the address space"
               : NULL;
}

static axes axes_of(const int64_t sizes[3], const pkv_i_plane *plane)
{
    axes a = {.n = 0};
    insert_axis(&a, sizes[2], plane->head_stride_bytes);
    insert_axis(&a, sizes[1], plane->token_stride_bytes);
    insert_axis(&a, sizes[0], plane->page_stride_bytes);
    return a;
}

/*
 * Fills span_bytes.  `distinct`: each axis must step over all that lies inside it,
 * so that no two elements of the plane share a byte.
 */
static const char *check_axes(const axes *a, bool distinct, pkv_i_plane *plane)
{
    int64_t span = plane->head_bytes;
    for (int i = 0; i < a->n; i++) {
        int64_t reach = 0;
        if (a->at[i].stride_bytes < 0) {
            return "a stride is negative";
        }
        if (distinct && a->at[i].stride_bytes < span) {
            return "a stride is too small: slots of a plane overlap";
        }
        if (PKV_I_MUL(a->at[i].n - 1, a->at[i].stride_bytes, &reach) ||
            PKV_I_ADD(span, reach, &span)) {
            return "the shape overflows 63 bits";
        }
    }
    plane->span_bytes = span;
    return check_end(plane);
}

/* Fills head_bytes, span_bytes and *a. */
static const char *check_plane(pkv_i_view *view, int which, bool distinct, axes *a)
{
    pkv_i_plane  *plane = &view->plane[which];
    const int64_t sizes[3] = {view->n_pages, view->page_size, view->n_heads};
    if (view->head_dim[which] < 1) {
        return "head_dim is below 1";
    }
    plane->head_bytes = pkv_i_dtype_bytes(view->dtype, view->head_dim[which]);
    if (plane->head_bytes < 1) {
        return "head_dim makes no whole bytes, or overflows";
    }
    *a = axes_of(sizes, plane);
    return check_axes(a, distinct, plane);
}

/*
 * Do blocks of k_bytes on a lattice of the axes from `first` to n and blocks of
 * v_bytes on the same lattice, delta bytes further, share a byte?  Only the two
 * steps of the widest axis that bring the blocks nearest to each other can; then
 * the next.
 */
static bool lattice_meets(const axes *a, int first, int n, int64_t delta, int64_t k_bytes,
                          int64_t v_bytes)
{
    if (n == first) {
        return delta < k_bytes && -delta < v_bytes;
    }
    const int64_t steps = a->at[n - 1].n, stride = a->at[n - 1].stride_bytes;
    const int64_t near = delta / stride - (delta < 0 ? 1 : 0);
    for (int64_t step = near; step <= near + 1; step++) {
        if (step > -steps && step < steps &&
            lattice_meets(a, first, n - 1, delta - step * stride, k_bytes, v_bytes)) {
            return true;
        }
    }
    return false;
}

/* Bytes that the axes below `first` span. */
static int64_t inner_span(const axes *a, int first, int64_t head_bytes)
{
    int64_t span = head_bytes;
    for (int i = 0; i < first; i++) {
        span += (a->at[i].n - 1) * a->at[i].stride_bytes;
    }
    return span;
}

/*
 * The usual case, without divisions: V behind K in each head vector's place, and
 * each axis steps over both together.
 */
static bool v_fits_behind_k(const axes *a, int64_t delta, int64_t k_bytes, int64_t v_bytes)
{
    int64_t reach = 0;
    if (delta < k_bytes || PKV_I_ADD(delta, v_bytes, &reach)) {
        return false;
    }
    for (int i = 0; i < a->n; i++) {
        const int64_t steps = (a->at[i].n - 1) * a->at[i].stride_bytes;
        if (a->at[i].stride_bytes < reach || PKV_I_ADD(reach, steps, &reach)) {
            return false;
        }
    }
    return true;
}

/* Not disjoint ranges, and not interleaved in step. */
static bool planes_meet(const pkv_i_plane *k, const pkv_i_plane *v, const axes *k_axes,
                        const axes *v_axes)
{
    const uintptr_t    k_at = (uintptr_t)k->data, v_at = (uintptr_t)v->data;
    if (k_at + (uint64_t)k->span_bytes <= v_at || v_at + (uint64_t)v->span_bytes <= k_at) {
        return false;
    }
    if (k_axes->n != v_axes->n) {
        return true; /* given scales inside the span of others: not looked at further */
    }
    const int64_t delta = (int64_t)(v_at - k_at);
    const int     first = first_same_axis(k_axes, v_axes);
    if (first == 0 && v_fits_behind_k(k_axes, delta, k->head_bytes, v->head_bytes)) {
        return false;
    }
    /* Axes that differ are taken as blocks without gaps. */
    return lattice_meets(k_axes, first, k_axes->n, delta,
                         inner_span(k_axes, first, k->head_bytes),
                         inner_span(v_axes, first, v->head_bytes));
}

const char *pkv_i_plane_check(const int64_t sizes[3], pkv_i_plane *plane)
{
    const axes a = axes_of(sizes, plane);
    return check_axes(&a, true, plane);
}

bool pkv_i_planes_meet(const int64_t a_sizes[3], const pkv_i_plane *a, const int64_t b_sizes[3],
                       const pkv_i_plane *b)
{
    const axes a_axes = axes_of(a_sizes, a), b_axes = axes_of(b_sizes, b);
    return planes_meet(a, b, &a_axes, &b_axes);
}

/* Is the view still being sized, by a builder that got no memory? */
static bool being_sized(const pkv_i_view *view)
{
    return view->plane[0].data == NULL;
}

static const char *check_shape(const pkv_i_view *view, int64_t fewest_tokens)
{
    if (view->n_pages < 1) {
        return "n_pages is below 1";
    }
    if (view->page_size < fewest_tokens) {
        return fewest_tokens == 0 ? "n_tokens is negative" : "page_size is below 1";
    }
    if (view->n_heads < 1) {
        return "n_heads is below 1";
    }
    if (pkv_dtype_bits(view->dtype) == 0) {
        return "dtype is none";
    }
    int64_t slots = 0;
    return PKV_I_MUL(view->n_pages, view->page_size, &slots) ? "the shape overflows 63 bits" : NULL;
}

/* V with K's strides and size needs no second look but at its address. */
static bool v_is_like_k(const pkv_i_view *view)
{
    const pkv_i_plane *k = &view->plane[0], *v = &view->plane[1];
    return view->head_dim[0] == view->head_dim[1] &&
           k->page_stride_bytes == v->page_stride_bytes &&
           k->token_stride_bytes == v->token_stride_bytes &&
           k->head_stride_bytes == v->head_stride_bytes;
}

static const char *check_v(pkv_i_view *view, bool distinct, const axes *k_axes)
{
    pkv_i_plane *v = &view->plane[1];
    axes         own;
    bool         like_k = v_is_like_k(view);
    if (like_k) {
        v->head_bytes = view->plane[0].head_bytes;
        v->span_bytes = view->plane[0].span_bytes;
    }
    const char *wrong = like_k ? check_end(v) : check_plane(view, 1, distinct, &own);
    if (wrong != NULL) {
        return wrong;
    }
    if (v->data == NULL && !being_sized(view) && view->page_size > 0) {
        return "V has a head_dim and no data";
    }
    bool apart = !distinct || view->page_size == 0 || (being_sized(view) && v->data == NULL);
    return apart || !planes_meet(&view->plane[0], v, k_axes, like_k ? k_axes : &own)
               ? NULL
               : "K and V overlap, or interleave with different strides";
}

/* All checks that caches and rows share.  `distinct`: memory that is written. */
static pkv_status check_view(pkv_i_view *view, bool distinct, int64_t fewest_tokens, pkv_error *err)
{
    axes        k_axes;
    const char *wrong = check_shape(view, fewest_tokens);
    view->n_planes = view->head_dim[1] != 0 ? 2 : 1;
    if (wrong == NULL) {
        wrong = check_plane(view, 0, distinct, &k_axes);
    }
    if (wrong == NULL && view->n_planes == 2) {
        wrong = check_v(view, distinct, &k_axes);
    }
    return wrong == NULL ? PKV_OK : pkv_i_fail(err, PKV_E_INVALID, wrong);
}

pkv_status pkv_i_view_cache(const pkv_cache *cache, pkv_i_view *out, pkv_error *err)
{
    PKV_I_TRY(pkv_i_check_struct(cache, sizeof *cache, err));
    if ((cache->flags & ~(uint32_t)PKV_CACHE_SHARED) != 0) {
        return pkv_i_fail(err, PKV_E_UNSUPPORTED, "a flag of the cache is unknown");
    }
    if (cache->k_scales.kind < PKV_SCALES_NONE || cache->k_scales.kind > PKV_SCALES_GROUP ||
        cache->v_scales.kind < PKV_SCALES_NONE || cache->v_scales.kind > PKV_SCALES_GROUP) {
        return pkv_i_fail(err, PKV_E_UNSUPPORTED, "a kind of scales is unknown");
    }
    const pkv_plane *planes[2] = {&cache->k, &cache->v};
    out->n_pages = cache->n_pages;
    out->page_size = cache->page_size;
    out->n_heads = cache->n_heads;
    out->dtype = cache->dtype;
    out->flags = cache->flags;
    out->has_scales = cache->k_scales.kind != PKV_SCALES_NONE ||
                      cache->v_scales.kind != PKV_SCALES_NONE;
    for (int i = 0; i < 2; i++) {
        out->head_dim[i] = planes[i]->head_dim;
        out->plane[i].data = planes[i]->data;
        out->plane[i].page_stride_bytes = planes[i]->page_stride_bytes;
        out->plane[i].token_stride_bytes = planes[i]->token_stride_bytes;
        out->plane[i].head_stride_bytes = planes[i]->head_stride_bytes;
    }
    PKV_I_TRY(check_view(out, true, 1, err));
    return out->has_scales ? pkv_i_scales_view(cache, out, err) : PKV_OK;
}

/* Rows are one page; new K/V and gathered rows differ in who may write them. */
static pkv_status view_rows(pkv_i_view *out, bool written, int64_t n_tokens, int64_t n_heads,
                            pkv_dtype dtype, uint32_t flags, pkv_error *err)
{
    if (flags != 0) {
        return pkv_i_fail(err, PKV_E_UNSUPPORTED, "a flag of the rows is unknown");
    }
    out->n_pages = 1;
    out->page_size = n_tokens;
    out->n_heads = n_heads;
    out->dtype = dtype;
    out->flags = 0;
    out->has_scales = false;
    PKV_I_TRY(check_view(out, written, 0, err));
    if (n_tokens > 0 && out->plane[0].data == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "rows without data");
    }
    return PKV_OK;
}

pkv_status pkv_i_view_rows(const pkv_rows *rows, pkv_i_view *out, pkv_error *err)
{
    PKV_I_TRY(pkv_i_check_struct(rows, sizeof *rows, err));
    const pkv_rows_plane *planes[2] = {&rows->k, &rows->v};
    for (int i = 0; i < 2; i++) {
        out->head_dim[i] = planes[i]->head_dim;
        out->plane[i].data = planes[i]->data;
        out->plane[i].page_stride_bytes = 0;
        out->plane[i].token_stride_bytes = planes[i]->token_stride_bytes;
        out->plane[i].head_stride_bytes = planes[i]->head_stride_bytes;
    }
    return view_rows(out, true, rows->n_tokens, rows->n_heads, rows->dtype, rows->flags, err);
}

pkv_status pkv_i_view_new_kv(const pkv_new_kv *new_kv, pkv_i_view *out, pkv_error *err)
{
    PKV_I_TRY(pkv_i_check_struct(new_kv, sizeof *new_kv, err));
    const pkv_new_kv_plane *planes[2] = {&new_kv->k, &new_kv->v};
    for (int i = 0; i < 2; i++) {
        out->head_dim[i] = planes[i]->head_dim;
        /* Through an integer: one form serves both directions, and an update only reads here. */
        out->plane[i].data = (char *)(uintptr_t)planes[i]->data;
        out->plane[i].page_stride_bytes = 0;
        out->plane[i].token_stride_bytes = planes[i]->token_stride_bytes;
        out->plane[i].head_stride_bytes = planes[i]->head_stride_bytes;
    }
    return view_rows(out, false, new_kv->n_tokens, new_kv->n_heads, new_kv->dtype, new_kv->flags,
                     err);
}

pkv_status pkv_cache_check(const pkv_cache *cache, pkv_error *err)
{
    pkv_i_view view;
    return pkv_i_view_cache(cache, &view, err);
}

pkv_status pkv_new_kv_check(const pkv_new_kv *new_kv, pkv_error *err)
{
    pkv_i_view view;
    return pkv_i_view_new_kv(new_kv, &view, err);
}

pkv_status pkv_rows_check(const pkv_rows *rows, pkv_error *err)
{
    pkv_i_view view;
    return pkv_i_view_rows(rows, &view, err);
}

pkv_status pkv_cache_bytes(const pkv_cache *cache, int64_t *k_bytes, int64_t *v_bytes,
                           int64_t *total_bytes, pkv_error *err)
{
    pkv_i_view view;
    PKV_I_TRY(pkv_i_view_cache(cache, &view, err));
    int64_t k = view.plane[0].span_bytes;
    int64_t v = view.n_planes == 2 ? view.plane[1].span_bytes : 0;
    int64_t total = 0;
    if (PKV_I_ADD(k, v, &total)) {
        return pkv_i_fail(err, PKV_E_INVALID, "the shape overflows 63 bits");
    }
    uint64_t v_offset = (uintptr_t)view.plane[1].data - (uintptr_t)view.plane[0].data;
    if (v > 0 && v_offset > 0 && v_offset <= (uint64_t)k) {
        int64_t v_end = (int64_t)v_offset + v;
        total = v_end > k ? v_end : k;
    }
    if (k_bytes != NULL) {
        *k_bytes = k;
    }
    if (v_bytes != NULL) {
        *v_bytes = v;
    }
    if (total_bytes != NULL) {
        *total_bytes = total;
    }
    return PKV_OK;
}
