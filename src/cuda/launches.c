/* What is asked of every call before its works are launched, and the launches: see work.h. */
#include "work.h"

#include <string.h>

#include "../calls.h"
#include "../layers.h"
#include "../scales.h"

/* ---- options and pointers ----------------------------------------------------------- */

pkv_status pkv_i_cuda_check_opts(const pkv_update_opts *opts, pkv_update_opts *out, pkv_error *err)
{
    PKV_I_TRY(pkv_i_check_opts(opts, out, err));
    return (out->flags & PKV_UPDATE_STRICT) != 0
               ? pkv_i_fail(err, PKV_E_UNSUPPORTED,
                            "strict mode looks at slices, which the host cannot on a device")
               : PKV_OK;
}

pkv_status pkv_i_cuda_check_view(const pkv_i_cuda_call *call, const pkv_i_view *view,
                                 pkv_error *err)
{
    for (int i = 0; i < view->n_planes; i++) {
        PKV_I_TRY(pkv_i_cuda_check_pointer(call, view->plane[i].data,
                                           "K or V are not in memory that the device can use",
                                           err));
        if (pkv_i_scales_kind(view, i) != PKV_SCALES_NONE) {
            PKV_I_TRY(pkv_i_cuda_check_pointer(call, view->scales[i].data,
                                               "scales are not in memory that the device can use",
                                               err));
        }
    }
    return PKV_OK;
}

/* ---- launches ----------------------------------------------------------------------- */

static bool is_copy(const pkv_i_work *w)
{
    return w->kernel <= PKV_I_CUDA_copy_1;
}

/* Nothing but the pointers of their layers tells them apart. */
static bool are_alike(const pkv_i_work *a, const pkv_i_work *b)
{
    const size_t bytes = is_copy(a) ? offsetof(pkv_i_copy_job, layer)
                                    : offsetof(pkv_i_cast_job, layer);
    return a->kernel == b->kernel && memcmp(&a->job, &b->job, bytes) == 0;
}

static pkv_i_job_layer *layers_of(pkv_i_work *w)
{
    return is_copy(w) ? w->job.copy.layer : w->job.cast.layer;
}

enum { WINDOW = 256 }; /* layers that are looked through for more of the same */

/* Launches layer `first`'s work with those up to `end` that are like it; marks them. */
static pkv_status launch_alike(const pkv_i_cuda_call *call, pkv_i_make_work make, const void *ctx,
                               int64_t first, int64_t end, int pass, bool *done, pkv_error *err)
{
    pkv_i_work w, other;
    uint32_t   n = 1;
    PKV_I_TRY(make(ctx, NULL, first, pass, &w, err));
    if (w.kernel < 0) {
        return PKV_OK;
    }
    for (int64_t layer = first + 1; layer < end && n < PKV_I_CUDA_LAYERS; layer++) {
        if (done[layer - first]) {
            continue;
        }
        PKV_I_TRY(make(ctx, NULL, layer, pass, &other, err));
        if (are_alike(&w, &other)) {
            layers_of(&w)[n++] = layers_of(&other)[0];
            done[layer - first] = true;
        }
    }
    w.job.copy.list.n_layers = n; /* at the same place in both jobs */
    return pkv_i_cuda_launch(call, w.kernel, &w.job, false, err);
}

pkv_status pkv_i_cuda_run(const pkv_i_cuda_call *call, pkv_i_make_work make, const void *ctx,
                          int64_t n_layers, int n_passes, pkv_error *err)
{
    pkv_i_work w;
    for (int64_t layer = 0; layer < n_layers; layer++) {
        for (int pass = 0; pass < n_passes; pass++) {
            PKV_I_TRY(pkv_i_fail_layer(make(ctx, call, layer, pass, &w, err), layer, n_layers,
                                       err));
        }
    }
    for (int pass = 0; pass < n_passes; pass++) {
        for (int64_t from = 0; from < n_layers; from += WINDOW) {
            const int64_t end = n_layers - from < WINDOW ? n_layers : from + WINDOW;
            bool          done[WINDOW] = {false};
            for (int64_t layer = from; layer < end; layer++) {
                if (!done[layer - from]) {
                    PKV_I_TRY(launch_alike(call, make, ctx, layer, end, pass,
                                           done + (layer - from), err));
                }
            }
        }
    }
    return PKV_OK;
}
