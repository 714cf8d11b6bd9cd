/* Threads: see parallel.h and docs/adr/0005-threads.md. */
#include "parallel.h"

#ifdef _OPENMP
#include <omp.h>
#endif

/* A part smaller than this costs more to hand over than to copy. */
enum { PART_BYTES = 64 * 1024, MAX_PARTS_OF_CALLER = 64 };

int32_t pkv_default_threads(void)
{
#ifdef _OPENMP
    return omp_get_max_threads();
#else
    return 1;
#endif
}

/* Inside the caller's own parallel region its threads are at work already. */
static int32_t own_threads(void)
{
#ifdef _OPENMP
    return omp_in_parallel() ? 1 : pkv_default_threads();
#else
    return 1;
#endif
}

int32_t pkv_i_parts(const pkv_update_opts *opts, int64_t payload_bytes)
{
    const int64_t worth = payload_bytes / PART_BYTES;
    if (worth <= 1 || opts->max_threads == 1) {
        return 1;
    }
    int32_t most = opts->max_threads;
    if (opts->parallel_for != NULL) {
        most = most == 0 ? MAX_PARTS_OF_CALLER : most;
    } else {
        /* Never more than OpenMP was told of: it cannot refuse, only end the process. */
        const int32_t own = own_threads();
        most = most == 0 || most > own ? own : most;
    }
    return worth < most ? (int32_t)worth : most;
}

void pkv_i_parallel(const pkv_update_opts *opts, int32_t n_parts, pkv_parallel_body body, void *ctx)
{
    if (n_parts == 1) {
        body(ctx, 0);
        return;
    }
    if (opts->parallel_for != NULL) {
        opts->parallel_for(opts->parallel_user, n_parts, body, ctx);
        return;
    }
#ifdef _OPENMP
#pragma omp parallel for num_threads(n_parts) schedule(static, 1)
#endif
    for (int32_t p = 0; p < n_parts; p++) {
        body(ctx, p);
    }
}
