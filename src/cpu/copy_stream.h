/*
 * The loop that the streaming kernels share.  A file defines PKV_I_TARGET (the
 * function attribute of its instruction set), PKV_I_PREFETCH(address) (for a
 * store that will not be read) and stream_row(), and includes this once.
 *
 * Scattered rows are bound by page walks: a streaming store that misses the TLB
 * holds up the stores behind it, but a prefetch does not.  So a row joins a
 * queue and one of its lines is prefetched; the walks of the queue's rows run
 * side by side, and each row is streamed 6 to 12 rows later.  A long row is
 * streamed as it comes, with the walk of a page further on under way.  Figures:
 * docs/benchmarking.md.
 */
#include "kernels.h"

#include <string.h>

enum {
    PAGE_BYTES = 4096,
    GROUP = 6,               /* pieces streamed in a row, and as many again that wait */
    QUEUE = 2 * GROUP,
    LONG_BYTES = 16384,      /* from here on a row has enough pages of its own */
    AHEAD_BYTES = 8 * PAGE_BYTES,
    SMALL_BYTES = 1024,      /* below, rows of a page are told from rows of others */
    WALKED = 64              /* pages that are remembered: heads of K and V, in places */
};

typedef struct piece {
    char       *dst;
    const char *src;
    size_t      bytes;
} piece;

/* Bytes up to the end of a page's worth, so that pieces end on a line. */
static inline size_t piece_bytes(const char *dst, size_t left)
{
    size_t room = PAGE_BYTES - (uintptr_t)dst % 64;
    return left < room ? left : room;
}

PKV_I_TARGET static void stream_pieces(const piece *pieces, int n)
{
    for (int i = 0; i < n; i++) {
        stream_row(pieces[i].dst, pieces[i].src, pieces[i].bytes);
    }
}

PKV_I_TARGET static void stream_long(char *dst, const char *src, size_t bytes)
{
    while (bytes > 0) {
        size_t now = piece_bytes(dst, bytes);
        if (bytes > AHEAD_BYTES) {
            PKV_I_PREFETCH(dst + AHEAD_BYTES);
        }
        stream_row(dst, src, now);
        dst += now;
        src += now;
        bytes -= now;
    }
}

/* Was a line of this page prefetched a moment ago?  Notes that it is now. */
static inline bool is_walked(uintptr_t *walked, const char *at)
{
    uintptr_t page = (uintptr_t)at / PAGE_BYTES;
    size_t    place = (size_t)((uint32_t)page * 0x9e3779b1u >> 26);
    bool      known = walked[place] == page;
    walked[place] = page;
    return known;
}

PKV_I_TARGET static void stream_runs(const pkv_i_run *runs, size_t n_runs)
{
    piece     queue[QUEUE];
    uintptr_t walked[WALKED] = {0};
    int       n = 0;
    if (n_runs == 1 && runs->n_rows == 1) { /* nothing to overlap its walk with */
        stream_long(runs->dst, runs->src, runs->row_bytes);
        return;
    }
    for (size_t i = 0; i < n_runs; i++) {
        const pkv_i_run *run = &runs[i];
        for (size_t r = 0; r < run->n_rows; r++) {
            char       *dst = run->dst + (ptrdiff_t)r * run->dst_stride_bytes;
            const char *src = run->src + (ptrdiff_t)r * run->src_stride_bytes;
            size_t      left = run->row_bytes;
            if (left >= LONG_BYTES) {
                stream_long(dst, src, left);
                left = 0;
            }
            while (left > 0) {
                size_t now = piece_bytes(dst, left);
                queue[n++] = (piece){dst, src, now};
                if (now >= SMALL_BYTES || !is_walked(walked, dst)) {
                    PKV_I_PREFETCH(dst + now - 1); /* the line that is written last */
                }
                dst += now;
                src += now;
                left -= now;
                if (n == QUEUE) {
                    stream_pieces(queue, GROUP);
                    memcpy(queue, queue + GROUP, GROUP * sizeof *queue);
                    n = GROUP;
                }
            }
        }
    }
    stream_pieces(queue, n);
}
