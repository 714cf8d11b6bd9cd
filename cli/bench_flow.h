/* The cases convert, gather and layout: tokens between rows and one cache, by a plan. */
#ifndef PAGEDKV_CLI_BENCH_FLOW_H
#define PAGEDKV_CLI_BENCH_FLOW_H

#include <stdbool.h>
#include <stdint.h>

#include "bench_step.h"
#include "bench_work.h"

/* Layouts beyond those of the options. */
enum { BENCH_CONTENT = 8, BENCH_MLA = 16 };

typedef struct bench_flow_kind {
    const char *case_name;
    const char *pattern;
    pkv_dtype   rows_dtype; /* of the new K/V, or of what a gather fills; 0: --dtype */
    pkv_dtype   cache_dtype;
    int32_t     scales; /* PKV_SCALES_* */
    unsigned    layout; /* 0: as the item's */
    bool        fused;  /* the new K/V lie in a QKV output with four times as many query heads */
} bench_flow_kind;

enum { BENCH_MAX_HEADS = 1024, BENCH_GROUP = 32 };

typedef struct bench_flow {
    bench_work             work;
    const bench_flow_kind *kind;
    unsigned               layout;
    bool                   gather;
    pkv_dtype              rows_dtype;
    bench_pattern          pattern;
    bench_view             view; /* what a step is drawn for: only its pages count */
    bench_runs             runs;
    bench_step             step;
    pkv_cache              cache;
    pkv_new_kv             rows; /* a gather's too: only `filled` is written */
    pkv_rows               filled;
    int64_t                rows_bytes; /* that they span */
    float                  scales[2][BENCH_MAX_HEADS];
    limit_row             *copies;
    int64_t                n_copies;
    pkv_update_opts        opts;
} bench_flow;

const char *bench_scales_name(int32_t scales);

/* Makes the cache in the memory, and the shape of the rows.  *fits: is there room?  Exit status. */
int bench_flow_shape(bench_flow *f, const bench_options *options, const bench_memory *memory,
                     int64_t tokens, bool *fits);

/* The rows at that place. */
int bench_flow_rows(bench_flow *f, char *at);

/* Bytes of all elements on one side, and of the scales that are computed or read. */
int64_t bench_flow_bytes(const bench_flow *f, pkv_dtype dtype);
int64_t bench_flow_scale_bytes(const bench_flow *f);

/* A token that does not hold what it should, or -1. */
int64_t bench_flow_wrong_token(const bench_flow *f);

#endif
