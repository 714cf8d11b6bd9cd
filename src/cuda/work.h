/*
 * From views to jobs.  The work of one layer is a job with one layer in it; works that
 * differ in nothing but their pointers are put into one launch.
 */
#ifndef PAGEDKV_SRC_CUDA_WORK_H
#define PAGEDKV_SRC_CUDA_WORK_H

#include "../layout.h"
#include "device.h"

typedef struct pkv_i_work {
    int kernel; /* PKV_I_CUDA_*; below 0: there is nothing to do */
    union {
        pkv_i_copy_job copy;
        pkv_i_cast_job cast;
    } job;
} pkv_i_work;

/* What an update writes, or a gather reads, of one layer; the views have passed their checks. */
pkv_status pkv_i_work_of_slices(pkv_i_work *w, const pkv_i_view *cache, const pkv_i_view *rows,
                                bool gather, const pkv_slices *slices, int32_t *status_word,
                                pkv_error *err);

/* A list of page copies in device memory. */
typedef struct pkv_i_page_list {
    const pkv_page_copy *copies;
    const int32_t       *count;
    int64_t              capacity;
    int32_t             *status_word;
} pkv_i_page_list;

/* Elements of one layer's pages, as they are or converted. */
pkv_status pkv_i_work_of_pages(pkv_i_work *w, const pkv_i_view *src, const pkv_i_view *dst,
                               const pkv_i_page_list *list, int32_t group, pkv_error *err);

/* Scales that were computed, of planes that are copied as they are; faults are not told again. */
pkv_status pkv_i_work_of_page_scales(pkv_i_work *w, const pkv_i_view *src, const pkv_i_view *dst,
                                     const pkv_i_page_list *list, int32_t group, pkv_error *err);

/*
 * Runs the works of n_layers layers in n_passes passes.  `make` fills one.  All are made once
 * before the first is launched, to find what is wrong with a layer, pointers too; and again,
 * with `call` NULL, for every launch that might take them.
 */
typedef pkv_status (*pkv_i_make_work)(const void *ctx, const pkv_i_cuda_call *call, int64_t layer,
                                      int pass, pkv_i_work *w, pkv_error *err);
pkv_status pkv_i_cuda_run(const pkv_i_cuda_call *call, pkv_i_make_work make, const void *ctx,
                          int64_t n_layers, int n_passes, pkv_error *err);

/* With PKV_UPDATE_CHECKED: can the device use every pointer of a view? */
pkv_status pkv_i_cuda_check_view(const pkv_i_cuda_call *call, const pkv_i_view *view,
                                 pkv_error *err);

/* Options as a device takes them. */
pkv_status pkv_i_cuda_check_opts(const pkv_update_opts *opts, pkv_update_opts *out,
                                 pkv_error *err);

#endif
