/* Steps to time: what is written where, drawn anew for every run. */
#ifndef PAGEDKV_CLI_BENCH_STEP_H
#define PAGEDKV_CLI_BENCH_STEP_H

#include <stdbool.h>
#include <stdint.h>

#include "bench_memory.h"
#include "limit.h"

/* What one step writes. */
typedef struct bench_pattern {
    const char *name;
    int64_t     page_size;     /* unless --page-size says otherwise */
    int64_t     prefill_tokens[2];
    int64_t     n_decodes;     /* requests of one token behind the prefills */
    int64_t     run_tokens;    /* adjacent slots; 0: a page; 1: single tokens */
    int64_t     num_kv_heads;  /* 0: --num-kv-heads and --head-dim */
    int64_t     head_dim;
} bench_pattern;

/*
 * The slots of a cache in runs of adjacent ones, in a shuffled order: all are
 * visited before one comes again, so that destinations are cold.
 */
typedef struct bench_runs {
    int32_t *order;
    int64_t  n_runs;
    int64_t  next;
    int64_t  run_tokens;
    uint64_t random;
} bench_runs;

/* One step: requests, the slot of each token, the plan and the same as plain copies. */
typedef struct bench_step {
    pkv_batch  batch;
    int64_t    n_tokens;
    int64_t   *slots; /* [n_tokens] */
    int32_t    n_slices;
    pkv_slices slices;
    pkv_new_kv source;
    limit_row *rows;
    int64_t    n_rows;
    int64_t    max_rows;
    int32_t   *numbers; /* what batch and slices point to */
} bench_step;

int64_t bench_pattern_tokens(const bench_pattern *pattern);

/* Slots that one step takes out of a cache, rounded up to whole runs. */
int64_t bench_pattern_slots(const bench_pattern *pattern, int64_t page_size);

/* For a cache that has the slots of one step.  Exit status. */
int bench_runs_open(bench_runs *runs, const bench_pattern *pattern, const bench_view *view);
void bench_runs_close(bench_runs *runs);

/* Room for a step.  Exit status. */
int bench_step_open(bench_step *step, const bench_pattern *pattern, const bench_view *view);
void bench_step_close(bench_step *step);

/*
 * Draws new slots, plans them, merged or not, and lists the contiguous
 * stretches of every slice.  step->source is set before.  Exit status.
 */
int bench_step_draw(bench_step *step, const bench_pattern *pattern, const bench_view *view,
                    bench_runs *runs, bool merged);

/* Brings the plan, and the same as slots and as rows, to the caches: layers share a plan. */
void bench_step_touch(const bench_step *step);

#endif
