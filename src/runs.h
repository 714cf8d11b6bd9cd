/*
 * From slices to runs: a worker turns pieces of slices into the runs that its
 * kernels copy, 64 at a time.
 */
#ifndef PAGEDKV_SRC_RUNS_H
#define PAGEDKV_SRC_RUNS_H

#include "cpu/kernels.h"
#include "geometry.h"

enum { PKV_I_RUNS = 64 }; /* 3 KiB of a worker's stack */

typedef struct pkv_i_worker {
    const pkv_i_kernels  *kernels;
    const pkv_i_geometry *g;
    bool                  stream;
    bool                  gather; /* from the cache to the rows */
    size_t                n_runs;
    pkv_i_run             runs[PKV_I_RUNS];
} pkv_i_worker;

/* Tokens [from, to) of a slice of len tokens. */
typedef struct pkv_i_piece {
    int64_t slot, row, len, from, to;
    bool    cut_at_from; /* the part before ends inside the line at `from` */
    bool    cut_at_to;   /* this part ends inside the line at `to` */
} pkv_i_piece;

/* Split at page ends where pages are not adjacent. */
void pkv_i_emit_slice(pkv_i_worker *w, const pkv_i_piece *p);

/* Hands over what was emitted. */
void pkv_i_flush(pkv_i_worker *w);

#endif
