/* Page copies on a device: elements first, then the scales that go with them. */
#include "../calls.h"
#include "../layers.h"
#include "../pairs.h"
#include "work.h"

typedef struct move {
    pkv_i_pairs     pairs;
    pkv_i_page_list list;
} move;

enum { PASS_ELEMENTS, PASS_SCALES, N_PASSES };

/* With PKV_UPDATE_CHECKED: every pointer of a layer and of the list. */
static pkv_status check_pointers(const pkv_i_cuda_call *call, const move *m, const pkv_i_view *src,
                                 const pkv_i_view *dst, pkv_error *err)
{
    const pkv_i_view *const views[] = {src, dst};
    const void *const lists[] = {m->list.copies, m->list.count, m->list.status_word};
    for (int v = 0; v < 2; v++) {
        PKV_I_TRY(pkv_i_cuda_check_view(call, views[v], err));
    }
    for (int i = 0; i < 3; i++) {
        PKV_I_TRY(pkv_i_cuda_check_pointer(call, lists[i],
                                           "copies, their count or the status word are not in "
                                           "memory that the device can use", err));
    }
    return PKV_OK;
}

/* For pkv_i_cuda_run(). */
static pkv_status make_layer(const void *ctx, const pkv_i_cuda_call *call, int64_t layer, int pass,
                             pkv_i_work *w, pkv_error *err)
{
    const move   *m = ctx;
    const int32_t group = pkv_i_pair_group(&m->pairs, layer);
    pkv_i_view    src, dst;
    PKV_I_TRY(pkv_i_pair_check(&m->pairs, layer, &src, &dst, err));
    if (call != NULL) {
        PKV_I_TRY(check_pointers(call, m, &src, &dst, err));
    }
    PKV_I_TRY(pass == PASS_ELEMENTS
                  ? pkv_i_work_of_pages(w, &src, &dst, &m->list, group, err)
                  : pkv_i_work_of_page_scales(w, &src, &dst, &m->list, group, err));
    if ((dst.flags & PKV_CACHE_SHARED) != 0) {
        w->kernel = -1;
    }
    return PKV_OK;
}

pkv_status pkv_cuda_copy_pages(pkv_cuda *cuda, const pkv_cache *srcs, const pkv_cache *dsts,
                               const int32_t *group_ids, int64_t n_layers,
                               const pkv_page_copy *copies, int64_t capacity,
                               const int32_t *num_copies, const pkv_update_opts *opts,
                               pkv_error *err, pkv_cuda_stream stream)
{
    pkv_update_opts checked;
    pkv_i_cuda_call call;
    PKV_I_TRY(pkv_i_cuda_check_opts(opts, &checked, err));
    const move m = {.pairs = {srcs, dsts != NULL ? dsts : srcs, group_ids, n_layers},
                    .list = {copies, num_copies, capacity, checked.status_word}};
    if (capacity < 0 || (capacity > 0 && copies == NULL) || num_copies == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "copies or their count is NULL, or too few");
    }
    PKV_I_TRY(pkv_i_pairs_check(&m.pairs, err));
    PKV_I_TRY(pkv_i_cuda_begin(&call, cuda, checked.flags, stream, err));
    pkv_status status = pkv_i_cuda_run(&call, make_layer, &m, n_layers, N_PASSES, err);
    pkv_i_cuda_end(&call);
    return status;
}
