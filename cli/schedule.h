/*
 * A continuous-batching scheduler: which request computes how many tokens in
 * each step, and which pages it holds.  It knows tokens and pages, never bytes.
 */
#ifndef PAGEDKV_CLI_SCHEDULE_H
#define PAGEDKV_CLI_SCHEDULE_H

#include "ledger.h"
#include "trace.h"

typedef struct schedule_limits {
    int64_t page_size;
    int64_t num_pages;
    int64_t max_num_reqs;
    int64_t max_num_batched_tokens;
    int32_t allocator;       /* PKV_POOL_* */
    bool    follow_arrivals; /* else all requests wait from the start */
} schedule_limits;

/*
 * Running requests have a row each, which they keep until they end, so a row's
 * pages lie still.  A row without a request has scheduled 0.
 */
typedef struct schedule {
    schedule_limits limits;
    const trace    *trace;
    int64_t         next;      /* first request that is not admitted yet */
    int64_t         n_running;
    int64_t         n_rows;    /* rows up to the last one in use */
    int64_t         prefill;   /* row of the one unfinished prefill, or -1 */
    int64_t        *request;   /* [max_num_reqs] index into the trace, -1: free row */
    int32_t        *computed;  /* [max_num_reqs] tokens in the cache */
    int32_t        *scheduled; /* [max_num_reqs] tokens of this step */
    ledger          ledger;    /* one sequence a row */
    int64_t         clock_ns;  /* for follow_arrivals: now, by a model of step time */

    /* Of the step that schedule_step() made. */
    int64_t n_tokens;
    bool    has_prefill;

    /* Running totals. */
    int64_t n_finished;
    int64_t prompt_tokens; /* of admitted requests */
} schedule;

/* Tokens whose K and V a request computes: the last output token's never are. */
int64_t schedule_total_tokens(const trace_request *r);

/* Pages that are reserved for a request: all of prompt + output. */
int64_t schedule_pages(const trace_request *r, int64_t page_size);

/* What its pages need to know; `width` is for the longest request of the trace. */
ledger_config schedule_ledger_config(const schedule_limits *limits, int64_t width);

/*
 * An exit status.  The trace must outlive the schedule.  schedule_free() in any
 * case.
 */
int  schedule_init(schedule *s, const trace *t, const schedule_limits *limits, int64_t width);
void schedule_free(schedule *s);

/*
 * Decides the next step; *more is false when every request is done.  An exit
 * status: CLI_DIFFERENCE if the pool or a sequence does not what it should.
 */
int schedule_step(schedule *s, bool *more);

/* Is this row's request done once the step's tokens are written? */
bool schedule_row_done(const schedule *s, int64_t row);

/*
 * After the step: counts its tokens as computed.  Then rows that are done can
 * be ended, which gives their pages back; an exit status as schedule_step().
 */
void schedule_commit(schedule *s);
int  schedule_end_row(schedule *s, int64_t row);

#endif
