/*
 * The loop that the streaming kernels share.  A file defines PKV_I_TARGET (the
 * function attribute of its instruction set) and stream_row(), and includes
 * this once.
 *
 * Scattered rows are bound by page walks: a streaming store that misses the TLB
 * holds up the stores behind it, but a prefetch does not.  So one line of each
 * of the next rows is prefetched, which makes their walks run side by side, and
 * then those rows are streamed.  Long runs are taken in pieces of one page.
 */
#include "kernels.h"

#include <immintrin.h>
#include <string.h>

enum { PIECE_BYTES = 4096, GROUP = 8 };

typedef struct piece {
    char       *dst;
    const char *src;
    size_t      bytes;
} piece;

PKV_I_TARGET static void stream_group(const piece *group, int n)
{
    for (int i = 0; i < n; i++) {
        _mm_prefetch(group[i].dst, _MM_HINT_NTA);
    }
    for (int i = 0; i < n; i++) {
        stream_row(group[i].dst, group[i].src, group[i].bytes);
    }
}

PKV_I_TARGET static void stream_runs(const pkv_i_run *runs, size_t n_runs)
{
    piece group[GROUP];
    int   n = 0;
    for (size_t i = 0; i < n_runs; i++) {
        char       *dst = runs[i].dst;
        const char *src = runs[i].src;
        for (size_t r = 0; r < runs[i].n_rows; r++) {
            for (size_t at = 0; at < runs[i].row_bytes;) {
                size_t left = runs[i].row_bytes - at;
                size_t room = PIECE_BYTES - (uintptr_t)(dst + at) % 64;
                size_t bytes = left < room ? left : room;
                group[n++] = (piece){dst + at, src + at, bytes};
                at += bytes;
                if (n == GROUP) {
                    stream_group(group, n);
                    n = 0;
                }
            }
            dst += runs[i].dst_stride_bytes;
            src += runs[i].src_stride_bytes;
        }
    }
    stream_group(group, n);
}
