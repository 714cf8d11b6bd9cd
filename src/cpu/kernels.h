/*
 * The contract of the CPU kernels.  A kernel knows runs and nothing else: no
 * pages, no slices, no pool.  The same bytes come out of every instruction set.
 */
#ifndef PAGEDKV_SRC_CPU_KERNELS_H
#define PAGEDKV_SRC_CPU_KERNELS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "cast.h"

/*
 * n_rows rows of row_bytes each, at fixed distances on both sides.  Any
 * alignment.  Rows of a destination do not overlap, neither do source and
 * destination.  row_bytes and n_rows may be 0.
 */
typedef struct pkv_i_run {
    char       *dst;
    const char *src;
    size_t      row_bytes;
    size_t      n_rows;
    ptrdiff_t   dst_stride_bytes; /* not looked at if n_rows is 1 */
    ptrdiff_t   src_stride_bytes; /* not looked at if n_rows is 1 */
} pkv_i_run;

/* One instruction set: constant data, chosen as a whole. */
typedef struct pkv_i_kernels {
    const char *isa;

    /* Can this processor run it? */
    bool (*usable)(void);

    /*
     * Copies the runs.  Reads and writes no byte outside them.  `stream`: past
     * the processor's cache where that wins; only whole 64-byte lines of a row
     * go that way, so two threads never stream into one line.
     */
    void (*copy_runs)(const pkv_i_run *runs, size_t n_runs, bool stream);

    /* Makes streamed stores visible: each worker calls it last. */
    void (*finish)(void);

    /* The conversion from one pkv_dtype to another; NULL: there is none. */
    pkv_i_cast_fn (*cast)(int32_t from, int32_t to);
} pkv_i_kernels;

/* Prototypes of all of them. */
#define PKV_ISA(isa_name, can_run, copy_fn, finish_fn, cast_fn)      \
    void          copy_fn(const pkv_i_run *runs, size_t n_runs, bool stream); \
    void          finish_fn(void);                                   \
    pkv_i_cast_fn cast_fn(int32_t from, int32_t to);
#include "kernels.def"
#undef PKV_ISA

/* The i-th built one, plainest first; NULL from the end on. */
const pkv_i_kernels *pkv_i_kernels_at(int32_t i);

/* The chosen one. */
const pkv_i_kernels *pkv_i_kernels_current(void);

#endif
