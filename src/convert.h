/*
 * Updates and gathers between element types.  Tokens are converted into a stage
 * in the processor's first cache, as rows in the destination's element type, and
 * copied from there as any rows are.  A token that does not fit the stage is
 * converted in its place.
 */
#ifndef PAGEDKV_SRC_CONVERT_H
#define PAGEDKV_SRC_CONVERT_H

#include "runs.h"

enum { PKV_I_STAGE_BYTES = 8192 };

typedef struct pkv_i_converter {
    const pkv_i_view *src, *dst;
    const pkv_i_view *cache; /* one of the two: where the scales are */
    bool              gather; /* it is the source */
    bool              worker_gather; /* what the worker goes back to */
    pkv_i_cast_fn     cast;
    int64_t           n_stage;  /* tokens that the stage holds; 0: there is none */
    int64_t           n_staged; /* that it holds now */
    pkv_i_plane       stage_plane[2];
    bool              joined;   /* both planes of a token are one vector */
    bool              in_turns; /* their heads are read in turns */
    pkv_i_geometry    to_dst; /* from the stage */
    uint64_t          float_environment;
    _Alignas(64) char stage[PKV_I_STAGE_BYTES];
} pkv_i_converter;

/* Is there such a conversion, with these kinds of scales?  PKV_OK too where none is needed. */
pkv_status pkv_i_convert_check_dtypes(const pkv_i_view *cache, const pkv_i_view *rows, bool gather,
                                      pkv_error *err);

/* Can the given scales be used, if something is to be converted?  Reads them. */
pkv_status pkv_i_convert_check_scales(const pkv_i_view *cache, const pkv_i_view *rows,
                                      pkv_error *err);

/*
 * Between begin and end a worker converts slices; the views must stay.  The
 * worker copies for the converter meanwhile, from the stage to the destination.
 */
void pkv_i_convert_begin(pkv_i_converter *c, const pkv_i_view *cache, const pkv_i_view *rows,
                         bool gather, pkv_i_worker *w);
void pkv_i_convert_slice(pkv_i_converter *c, pkv_i_worker *w, const pkv_i_piece *p);
void pkv_i_convert_end(pkv_i_converter *c, pkv_i_worker *w);

#endif
