/* The plain reference: short, obvious, never tuned. */
#include "kernels.h"

#include <string.h>

void pkv_i_copy_runs_c(const pkv_i_run *runs, size_t n_runs, bool stream)
{
    (void)stream; /* C has no streaming stores */
    for (size_t i = 0; i < n_runs; i++) {
        char       *dst = runs[i].dst;
        const char *src = runs[i].src;
        for (size_t r = 0; r < runs[i].n_rows; r++) {
            memcpy(dst, src, runs[i].row_bytes);
            dst += runs[i].dst_stride_bytes;
            src += runs[i].src_stride_bytes;
        }
    }
}

void pkv_i_finish_c(void)
{
}
