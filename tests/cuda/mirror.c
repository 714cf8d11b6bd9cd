/*
 * The suites of the host's calls once more on a device.  A program that is linked with
 * --wrap of these functions calls the ones here: the call is made on the host, for its
 * status; if it succeeded it is made again on a device, on copies of the memory as it was
 * before, and what the device made of them is put in the place of what the host wrote.
 * So every comparison that a suite makes is one of the device's bytes.
 */
#include "mirror.h"

#include <string.h>

pkv_status __real_pkv_update_layers(const pkv_cache *caches, const pkv_new_kv *new_kvs,
                                    const int32_t *group_ids, int64_t n_layers,
                                    const pkv_slices *groups, int64_t n_groups,
                                    const pkv_update_opts *opts, pkv_error *err);
pkv_status __real_pkv_gather_layers(const pkv_cache *caches, const pkv_rows *rows,
                                    const int32_t *group_ids, int64_t n_layers,
                                    const pkv_slices *groups, int64_t n_groups,
                                    const pkv_update_opts *opts, pkv_error *err);
pkv_status __real_pkv_copy_pages(const pkv_cache *srcs, const pkv_cache *dsts,
                                 const int32_t *group_ids, int64_t n_layers,
                                 const pkv_page_copy *copies, int64_t n_copies,
                                 const pkv_update_opts *opts, pkv_error *err);
pkv_status __wrap_pkv_update_layers(const pkv_cache *caches, const pkv_new_kv *new_kvs,
                                    const int32_t *group_ids, int64_t n_layers,
                                    const pkv_slices *groups, int64_t n_groups,
                                    const pkv_update_opts *opts, pkv_error *err);
pkv_status __wrap_pkv_gather_layers(const pkv_cache *caches, const pkv_rows *rows,
                                    const int32_t *group_ids, int64_t n_layers,
                                    const pkv_slices *groups, int64_t n_groups,
                                    const pkv_update_opts *opts, pkv_error *err);
pkv_status __wrap_pkv_update(const pkv_cache *cache, const pkv_new_kv *new_kv,
                             const pkv_slices *slices, const pkv_update_opts *opts,
                             pkv_error *err);
pkv_status __wrap_pkv_gather(const pkv_cache *cache, const pkv_rows *rows,
                             const pkv_slices *slices, const pkv_update_opts *opts,
                             pkv_error *err);
pkv_status __wrap_pkv_copy_pages(const pkv_cache *srcs, const pkv_cache *dsts,
                                 const int32_t *group_ids, int64_t n_layers,
                                 const pkv_page_copy *copies, int64_t n_copies,
                                 const pkv_update_opts *opts, pkv_error *err);

enum { MOST_GROUPS = 8 };

/* ---- the structs of a call with pointers to the copies ------------------------------ */

static const void *element(const void *array, int64_t i)
{
    return (const char *)array + (size_t)i * *(const size_t *)array;
}

static int64_t bytes_of(pkv_dtype dtype, int64_t head_dim)
{
    return head_dim * pkv_dtype_bits(dtype) / 8;
}

static int64_t axis(int64_t n, int64_t stride_bytes)
{
    return n > 1 ? (n - 1) * stride_bytes : 0;
}

static void add_plane(mirror *m, const pkv_cache *c, const pkv_plane *p)
{
    if (p->head_dim > 0) {
        mirror_add(m, p->data, axis(c->n_pages, p->page_stride_bytes) +
                                   axis(c->page_size, p->token_stride_bytes) +
                                   axis(c->n_heads, p->head_stride_bytes) +
                                   bytes_of(c->dtype, p->head_dim));
    }
}

static void add_scales(mirror *m, const pkv_cache *c, const pkv_plane *p, const pkv_scales *s)
{
    if (p->head_dim == 0 || s->kind == PKV_SCALES_NONE) {
        return;
    }
    int64_t bytes = 4;
    if (s->kind != PKV_SCALES_TENSOR) {
        bytes += axis(c->n_heads, s->head_stride_bytes);
    }
    if (s->kind == PKV_SCALES_TOKEN_HEAD || s->kind == PKV_SCALES_GROUP) {
        bytes += axis(c->n_pages, s->page_stride_bytes) +
                 axis(c->page_size, s->token_stride_bytes);
    }
    if (s->kind == PKV_SCALES_GROUP) {
        bytes += 4 * (p->head_dim / s->group_size - 1);
    }
    mirror_add(m, s->data, bytes);
}

static void add_caches(mirror *m, const pkv_cache *caches, int64_t n)
{
    for (int64_t l = 0; l < n; l++) {
        const pkv_cache *c = element(caches, l);
        add_plane(m, c, &c->k);
        add_plane(m, c, &c->v);
        add_scales(m, c, &c->k, &c->k_scales);
        add_scales(m, c, &c->v, &c->v_scales);
    }
}

static pkv_cache *caches_there(const mirror *m, const pkv_cache *caches, int64_t n)
{
    pkv_cache *out = test_alloc((size_t)n * sizeof *out + 1);
    for (int64_t l = 0; l < n; l++) {
        out[l] = *(const pkv_cache *)element(caches, l);
        out[l].struct_size = sizeof *out;
        out[l].k.data = mirror_there(m, out[l].k.data);
        out[l].v.data = out[l].v.head_dim > 0 ? mirror_there(m, out[l].v.data) : NULL;
        out[l].k_scales.data = mirror_there(m, out[l].k_scales.data);
        out[l].v_scales.data = mirror_there(m, out[l].v_scales.data);
    }
    return out;
}

/* pkv_rows and pkv_new_kv have one layout. */
static void add_rows(mirror *m, const void *rows, int64_t n)
{
    for (int64_t l = 0; l < n; l++) {
        const pkv_rows       *r = element(rows, l);
        const pkv_rows_plane *planes[2] = {&r->k, &r->v};
        for (int i = 0; i < 2 && r->n_tokens > 0; i++) {
            if (planes[i]->head_dim > 0) {
                mirror_add(m, planes[i]->data,
                           axis(r->n_tokens, planes[i]->token_stride_bytes) +
                               axis(r->n_heads, planes[i]->head_stride_bytes) +
                               bytes_of(r->dtype, planes[i]->head_dim));
            }
        }
    }
}

static pkv_rows *rows_there(const mirror *m, const void *rows, int64_t n)
{
    pkv_rows *out = test_alloc((size_t)n * sizeof *out + 1);
    for (int64_t l = 0; l < n; l++) {
        out[l] = *(const pkv_rows *)element(rows, l);
        out[l].struct_size = sizeof *out;
        out[l].k.data = mirror_there(m, out[l].k.data);
        out[l].v.data = out[l].v.head_dim > 0 ? mirror_there(m, out[l].v.data) : NULL;
    }
    return out;
}

/* The n real columns; what a device may read behind them is poison. */
static void slices_there(const pkv_slices *s, pkv_slices *out)
{
    const int32_t *rows[3] = {s->kv_cache_start, s->new_kv_start, s->slice_len};
    const size_t   N = (size_t)s->capacity, n = (size_t)*s->num_slices;
    int32_t       *columns = test_alloc((3 * N + 1) * sizeof *columns);
    fill(columns, (3 * N + 1) * sizeof *columns, FILL_RANDOM, 77);
    for (int i = 0; i < 3 && n > 0; i++) {
        memcpy(columns + (size_t)i * N, rows[i], n * sizeof *columns);
    }
    columns[3 * N] = *s->num_slices;
    int32_t *there = mirror_new(columns, (3 * N + 1) * sizeof *columns);
    free(columns);
    assert_int_equal(pkv_slices_from_array(out, sizeof *out, there, s->capacity, there + 3 * N),
                     PKV_OK);
}

static pkv_slices *groups_there(const pkv_slices *groups, int64_t n)
{
    pkv_slices *out = test_alloc((size_t)n * sizeof *out + 1);
    for (int64_t i = 0; i < n; i++) {
        slices_there(element(groups, i), &out[i]);
    }
    return out;
}

static void free_groups(pkv_slices *groups, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        mirror_drop(groups[i].kv_cache_start);
    }
    free(groups);
}

/* ---- one call ----------------------------------------------------------------------- */

typedef struct layers_call {
    const pkv_cache *caches;
    const void      *rows;
    const int32_t   *group_ids;
    int64_t          n_layers, n_groups;
    pkv_slices      *groups;
    bool             gather;
} layers_call;

static pkv_status put_layers(void *ctx, const pkv_update_opts *opts, pkv_error *err,
                             pkv_cuda_stream stream)
{
    const layers_call *c = ctx;
    return c->gather ? pkv_cuda_gather_layers(mirror_device(), c->caches, c->rows, c->group_ids,
                                              c->n_layers, c->groups, c->n_groups, opts, err,
                                              stream)
                     : pkv_cuda_update_layers(mirror_device(), c->caches, c->rows, c->group_ids,
                                              c->n_layers, c->groups, c->n_groups, opts, err,
                                              stream);
}

/*
 * Memory as it is now goes to the device, before the host's own call; false where it cannot.
 */
static bool mirror_layers(mirror *m, const pkv_cache *caches, const void *rows, int64_t n)
{
    mirror_init(m);
    add_caches(m, caches, n);
    add_rows(m, rows, n);
    if (!mirror_is_possible(m)) {
        return false;
    }
    mirror_fill(m);
    return true;
}

static void run_layers(mirror *m, const pkv_cache *caches, const void *rows,
                       const int32_t *group_ids, int64_t n_layers, const pkv_slices *groups,
                       int64_t n_groups, const pkv_update_opts *opts, bool gather)
{
    pkv_cache  *caches_of_device = caches_there(m, caches, n_layers);
    pkv_rows   *rows_of_device = rows_there(m, rows, n_layers);
    layers_call c = {.caches = caches_of_device, .rows = rows_of_device, .group_ids = group_ids,
                     .n_layers = n_layers, .n_groups = n_groups,
                     .groups = groups_there(groups, n_groups), .gather = gather};
    mirror_run(put_layers, &c, opts);
    mirror *written = test_alloc(sizeof *written);
    mirror_init(written);
    if (gather) {
        add_rows(written, rows, n_layers);
    } else {
        add_caches(written, caches, n_layers);
    }
    mirror_take(m, written);
    free(written);
    free_groups(c.groups, n_groups);
    free(caches_of_device);
    free(rows_of_device);
}

/* The host's own call, with these slices. */
static pkv_status call_host(const pkv_cache *caches, const void *rows, const int32_t *group_ids,
                            int64_t n_layers, const pkv_slices *groups, int64_t n_groups,
                            const pkv_update_opts *opts, pkv_error *err, bool gather)
{
    return gather ? __real_pkv_gather_layers(caches, rows, group_ids, n_layers, groups, n_groups,
                                             opts, err)
                  : __real_pkv_update_layers(caches, rows, group_ids, n_layers, groups, n_groups,
                                             opts, err);
}

/* Are the views in order, so that their memory can be read?  A call without slices tells. */
static bool in_order(const pkv_cache *caches, const void *rows, const int32_t *group_ids,
                     int64_t n_layers, int64_t n_groups, const pkv_update_opts *opts, bool gather)
{
    int32_t    none = 0;
    pkv_slices empty[MOST_GROUPS];
    for (int i = 0; i < MOST_GROUPS; i++) {
        empty[i] = (pkv_slices){.struct_size = sizeof empty[0], .num_slices = &none};
    }
    return n_groups <= MOST_GROUPS &&
           call_host(caches, rows, group_ids, n_layers, empty, n_groups, opts, NULL, gather) ==
               PKV_OK;
}

static pkv_status layers_on_both(const pkv_cache *caches, const void *rows,
                                 const int32_t *group_ids, int64_t n_layers,
                                 const pkv_slices *groups, int64_t n_groups,
                                 const pkv_update_opts *opts, pkv_error *err, bool gather)
{
    const bool here = in_order(caches, rows, group_ids, n_layers, n_groups, opts, gather);
    mirror    *m = test_alloc(sizeof *m);
    if (!here || !mirror_layers(m, caches, rows, n_layers)) {
        free(m);
        pkv_status status =
            call_host(caches, rows, group_ids, n_layers, groups, n_groups, opts, err, gather);
        assert_true(here || status != PKV_OK || n_layers == 0);
        return status;
    }
    pkv_status status =
        call_host(caches, rows, group_ids, n_layers, groups, n_groups, opts, err, gather);
    if (status == PKV_OK && n_layers > 0) {
        run_layers(m, caches, rows, group_ids, n_layers, groups, n_groups, opts, gather);
    }
    mirror_free(m);
    free(m);
    return status;
}

pkv_status __wrap_pkv_update_layers(const pkv_cache *caches, const pkv_new_kv *new_kvs,
                                    const int32_t *group_ids, int64_t n_layers,
                                    const pkv_slices *groups, int64_t n_groups,
                                    const pkv_update_opts *opts, pkv_error *err)
{
    return layers_on_both(caches, new_kvs, group_ids, n_layers, groups, n_groups, opts, err,
                          false);
}

pkv_status __wrap_pkv_gather_layers(const pkv_cache *caches, const pkv_rows *rows,
                                    const int32_t *group_ids, int64_t n_layers,
                                    const pkv_slices *groups, int64_t n_groups,
                                    const pkv_update_opts *opts, pkv_error *err)
{
    return layers_on_both(caches, rows, group_ids, n_layers, groups, n_groups, opts, err, true);
}

pkv_status __wrap_pkv_update(const pkv_cache *cache, const pkv_new_kv *new_kv,
                             const pkv_slices *slices, const pkv_update_opts *opts, pkv_error *err)
{
    return layers_on_both(cache, new_kv, NULL, 1, slices, 1, opts, err, false);
}

pkv_status __wrap_pkv_gather(const pkv_cache *cache, const pkv_rows *rows,
                             const pkv_slices *slices, const pkv_update_opts *opts, pkv_error *err)
{
    return layers_on_both(cache, rows, NULL, 1, slices, 1, opts, err, true);
}

/* ---- pages -------------------------------------------------------------------------- */

typedef struct pages_call {
    const pkv_cache     *srcs, *dsts;
    const int32_t       *group_ids;
    int64_t              n_layers, capacity;
    const pkv_page_copy *copies;
    const int32_t       *count;
} pages_call;

static pkv_status put_pages(void *ctx, const pkv_update_opts *opts, pkv_error *err,
                            pkv_cuda_stream stream)
{
    const pages_call *c = ctx;
    return pkv_cuda_copy_pages(mirror_device(), c->srcs, c->dsts, c->group_ids, c->n_layers,
                               c->copies, c->capacity, c->count, opts, err, stream);
}

/* Copies with room behind them, all garbage, and the count. */
static void run_pages(mirror *m, const pkv_cache *srcs, const pkv_cache *dsts,
                      const int32_t *group_ids, int64_t n_layers, const pkv_page_copy *copies,
                      int64_t n_copies, const pkv_update_opts *opts)
{
    const int32_t  n = (int32_t)n_copies;
    const int64_t  capacity = n_copies + 3;
    pkv_page_copy *list = test_alloc((size_t)capacity * sizeof *list);
    fill(list, (size_t)capacity * sizeof *list, FILL_RANDOM, 78);
    if (n > 0) {
        memcpy(list, copies, (size_t)n * sizeof *list);
    }
    pkv_page_copy *list_there = mirror_new(list, (size_t)capacity * sizeof *list);
    int32_t       *count_there = mirror_new(&n, sizeof n);
    pkv_cache     *srcs_of_device = caches_there(m, srcs, n_layers);
    pkv_cache     *dsts_of_device = dsts == NULL ? NULL : caches_there(m, dsts, n_layers);
    pages_call c = {srcs_of_device, dsts_of_device, group_ids, n_layers, capacity, list_there,
                    count_there};
    mirror_run(put_pages, &c, opts);
    mirror *written = test_alloc(sizeof *written);
    mirror_init(written);
    add_caches(written, dsts != NULL ? dsts : srcs, n_layers);
    mirror_take(m, written);
    free(written);
    free(srcs_of_device);
    free(dsts_of_device);
    free(list);
    mirror_drop(list_there);
    mirror_drop(count_there);
}

pkv_status __wrap_pkv_copy_pages(const pkv_cache *srcs, const pkv_cache *dsts,
                                 const int32_t *group_ids, int64_t n_layers,
                                 const pkv_page_copy *copies, int64_t n_copies,
                                 const pkv_update_opts *opts, pkv_error *err)
{
    const bool here = __real_pkv_copy_pages(srcs, dsts, group_ids, n_layers, NULL, 0, opts,
                                            NULL) == PKV_OK;
    mirror    *m = test_alloc(sizeof *m);
    if (here) {
        mirror_init(m);
        add_caches(m, srcs, n_layers);
        if (dsts != NULL) {
            add_caches(m, dsts, n_layers);
        }
        mirror_fill(m);
    }
    pkv_status status = __real_pkv_copy_pages(srcs, dsts, group_ids, n_layers, copies, n_copies,
                                              opts, err);
    if (status == PKV_OK && n_layers > 0) {
        assert_true(here);
        run_pages(m, srcs, dsts, group_ids, n_layers, copies, n_copies, opts);
    }
    if (here) {
        mirror_free(m);
    }
    free(m);
    return status;
}
