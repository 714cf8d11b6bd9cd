/* Updates and gathers on a device. */
#include "../calls.h"
#include "../layers.h"
#include "../slices.h"
#include "work.h"

typedef struct update {
    pkv_i_layers    layers;
    pkv_update_opts opts;
} update;

static pkv_status check_pointers(const pkv_i_cuda_call *call, const pkv_i_view *cache,
                                 const pkv_i_view *rows, const pkv_slices *slices,
                                 const int32_t *status_word, pkv_error *err)
{
    const void *const lists[] = {slices->kv_cache_start, slices->new_kv_start, slices->slice_len,
                                 slices->num_slices, status_word};
    PKV_I_TRY(pkv_i_cuda_check_view(call, cache, err));
    PKV_I_TRY(pkv_i_cuda_check_view(call, rows, err));
    for (size_t i = 0; i < sizeof lists / sizeof lists[0]; i++) {
        PKV_I_TRY(pkv_i_cuda_check_pointer(call, lists[i],
                                           "slices, their count or the status word are not in "
                                           "memory that the device can use", err));
    }
    return PKV_OK;
}

/* For pkv_i_cuda_run(). */
static pkv_status make_layer(const void *ctx, const pkv_i_cuda_call *call, int64_t layer, int pass,
                             pkv_i_work *w, pkv_error *err)
{
    const update *u = ctx;
    pkv_i_view    cache, rows;
    (void)pass;
    if (call == NULL) {
        PKV_I_TRY(pkv_i_layer_views(&u->layers, layer, &cache, &rows, err));
    } else {
        PKV_I_TRY(pkv_i_layer_check(&u->layers, layer, &cache, &rows, err));
    }
    const pkv_slices *slices = pkv_i_layer_slices(&u->layers, layer);
    if (call != NULL) {
        PKV_I_TRY(pkv_i_slices_writable(slices, err));
        PKV_I_TRY(check_pointers(call, &cache, &rows, slices, u->opts.status_word, err));
    }
    PKV_I_TRY(pkv_i_work_of_slices(w, &cache, &rows, u->layers.gather, slices,
                                   u->opts.status_word, err));
    if (pkv_i_layer_skipped(&u->layers, &cache)) {
        w->kernel = -1;
    }
    return PKV_OK;
}

static pkv_status run(pkv_cuda *cuda, update *u, const pkv_update_opts *opts, pkv_error *err,
                      pkv_cuda_stream stream)
{
    pkv_i_cuda_call call;
    PKV_I_TRY(pkv_i_cuda_check_opts(opts, &u->opts, err));
    PKV_I_TRY(pkv_i_layers_check(&u->layers, err));
    PKV_I_TRY(pkv_i_cuda_begin(&call, cuda, u->opts.flags, stream, err));
    pkv_status status = pkv_i_cuda_run(&call, make_layer, u, u->layers.n_layers, 1, err);
    pkv_i_cuda_end(&call);
    return status;
}

pkv_status pkv_cuda_update_layers(pkv_cuda *cuda, const pkv_cache *caches,
                                  const pkv_new_kv *new_kvs, const int32_t *group_ids,
                                  int64_t n_layers, const pkv_slices *groups, int64_t n_groups,
                                  const pkv_update_opts *opts, pkv_error *err,
                                  pkv_cuda_stream stream)
{
    update u = {.layers = {caches, new_kvs, group_ids, n_layers, groups, n_groups, false}};
    return run(cuda, &u, opts, err, stream);
}

pkv_status pkv_cuda_gather_layers(pkv_cuda *cuda, const pkv_cache *caches, const pkv_rows *rows,
                                  const int32_t *group_ids, int64_t n_layers,
                                  const pkv_slices *groups, int64_t n_groups,
                                  const pkv_update_opts *opts, pkv_error *err,
                                  pkv_cuda_stream stream)
{
    update u = {.layers = {caches, rows, group_ids, n_layers, groups, n_groups, true}};
    return run(cuda, &u, opts, err, stream);
}

pkv_status pkv_cuda_update(pkv_cuda *cuda, const pkv_cache *cache, const pkv_new_kv *new_kv,
                           const pkv_slices *slices, const pkv_update_opts *opts, pkv_error *err,
                           pkv_cuda_stream stream)
{
    return pkv_cuda_update_layers(cuda, cache, new_kv, NULL, 1, slices, 1, opts, err, stream);
}

pkv_status pkv_cuda_gather(pkv_cuda *cuda, const pkv_cache *cache, const pkv_rows *rows,
                           const pkv_slices *slices, const pkv_update_opts *opts, pkv_error *err,
                           pkv_cuda_stream stream)
{
    return pkv_cuda_gather_layers(cuda, cache, rows, NULL, 1, slices, 1, opts, err, stream);
}
