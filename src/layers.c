/* The layers of one call: see layers.h. */
#include "layers.h"

#include "calls.h"
#include "convert.h"

pkv_status pkv_i_layers_check(const pkv_i_layers *l, pkv_error *err)
{
    if (l->n_layers < 0 || l->n_groups < 0 || (l->n_layers > 0 && l->n_groups == 0)) {
        return pkv_i_fail(err, PKV_E_INVALID, "n_layers or n_groups is negative, or no group");
    }
    if (l->n_layers == 0) {
        return PKV_OK;
    }
    if (l->caches == NULL || l->rows == NULL || l->groups == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "an array of layers or groups is NULL");
    }
    PKV_I_TRY(pkv_i_check_array(l->caches, sizeof(pkv_cache), l->n_layers, err));
    PKV_I_TRY(pkv_i_check_array(l->rows, l->gather ? sizeof(pkv_rows) : sizeof(pkv_new_kv),
                                l->n_layers, err));
    return pkv_i_check_array(l->groups, sizeof(pkv_slices), l->n_groups, err);
}

pkv_status pkv_i_layer_views(const pkv_i_layers *l, int64_t layer, pkv_i_view *cache,
                             pkv_i_view *rows, pkv_error *err)
{
    const void *row = pkv_i_element(l->rows, layer);
    PKV_I_TRY(pkv_i_view_cache(pkv_i_element(l->caches, layer), cache, err));
    return l->gather ? pkv_i_view_rows(row, rows, err) : pkv_i_view_new_kv(row, rows, err);
}

pkv_status pkv_i_layer_check(const pkv_i_layers *l, int64_t layer, pkv_i_view *cache,
                             pkv_i_view *rows, pkv_error *err)
{
    if (l->group_ids != NULL && (l->group_ids[layer] < 0 || l->group_ids[layer] >= l->n_groups)) {
        return pkv_i_fail(err, PKV_E_INVALID, "a group id is not within 0..n_groups-1");
    }
    PKV_I_TRY(pkv_i_layer_views(l, layer, cache, rows, err));
    PKV_I_TRY(pkv_i_geometry_check(cache, rows, err));
    return pkv_i_convert_check_dtypes(cache, rows, l->gather, err);
}

const pkv_slices *pkv_i_layer_slices(const pkv_i_layers *l, int64_t layer)
{
    return pkv_i_element(l->groups, l->group_ids != NULL ? l->group_ids[layer] : 0);
}
