/* What the calls that move data share: see calls.h. */
#include "calls.h"

/* Below this, rows that are read at once stay in the cache: an L2's worth. */
enum { READ_SOON_BYTES = 1 << 20 };

pkv_status pkv_i_check_opts(const pkv_update_opts *opts, pkv_update_opts *out, pkv_error *err)
{
    *out = (pkv_update_opts){.struct_size = sizeof *out};
    if (opts == NULL) {
        return PKV_OK;
    }
    const uint32_t known = PKV_UPDATE_STRICT | PKV_UPDATE_CHECKED | PKV_UPDATE_READ_SOON |
                           PKV_UPDATE_DEPENDENT_LAUNCH;
    PKV_I_TRY(pkv_i_check_struct(opts, sizeof *opts, err));
    if ((opts->flags & ~known) != 0 || opts->max_threads < 0) {
        return pkv_i_fail(err, PKV_E_INVALID, "an option flag is unknown, or max_threads negative");
    }
    *out = *opts;
    return PKV_OK;
}

pkv_status pkv_i_check_array(const void *array, size_t bytes, int64_t n, pkv_error *err)
{
    PKV_I_TRY(pkv_i_check_struct(array, bytes, err));
    const size_t step = *(const size_t *)array;
    if (step % sizeof step != 0) {
        return pkv_i_fail(err, PKV_E_INVALID, "struct_size is not a multiple of 8");
    }
    for (int64_t i = 1; i < n; i++) {
        if (*(const size_t *)pkv_i_element(array, i) != step) {
            return pkv_i_fail(err, PKV_E_INVALID, "structs of one array differ in struct_size");
        }
    }
    return PKV_OK;
}

bool pkv_i_wants_streaming(const pkv_update_opts *opts, int64_t payload_bytes)
{
    return (opts->flags & PKV_UPDATE_READ_SOON) == 0 || payload_bytes > READ_SOON_BYTES;
}
