/*
 * A continuous-batching scheduler: which request computes how many tokens in
 * each step, and which pages it holds.  It knows tokens and pages, never bytes.
 */
#ifndef PAGEDKV_CLI_SCHEDULE_H
#define PAGEDKV_CLI_SCHEDULE_H

#include "ledger.h"
#include "prompts.h"

typedef struct schedule_limits {
    int64_t page_size;
    int64_t num_pages;
    int64_t max_num_reqs;
    int64_t max_num_batched_tokens;
    int32_t allocator;       /* PKV_POOL_* */
    bool    follow_arrivals; /* else all requests wait from the start */
    bool    prefix_cache;    /* pages are found again by their tokens */
    bool    recompute;       /* admission reserves the prompt, and the youngest is put back */
} schedule_limits;

/* What the one who writes the pages must do when they change hands. */
typedef struct schedule_hooks {
    void (*evicted)(void *user, int32_t page, const ledger_note *note); /* see ledger.h */
    void (*leaving)(void *user, int64_t row); /* the row is about to give its pages back */
    void *user;
} schedule_hooks;

/* A request that was put back: it comes next, before all that were never admitted. */
typedef struct schedule_waiting {
    int64_t request;
    int64_t reached; /* tokens that it had computed at most */
} schedule_waiting;

/*
 * Running requests have a row each, which they keep until they end, so a row's
 * pages lie still.  A row without a request has scheduled 0.
 */
typedef struct schedule {
    schedule_limits limits;
    schedule_hooks  hooks;
    const trace    *trace;
    const prompts  *prompts;
    int64_t         next;      /* first request that was never admitted */
    int64_t         n_running;
    int64_t         n_rows;    /* rows up to the last one in use */
    int64_t         prefill;   /* row of the one unfinished prefill, or -1 */
    int64_t        *request;   /* [max_num_reqs] index into the trace, -1: free row */
    int64_t        *known;     /* [max_num_reqs] tokens that it knew when it was admitted: its
                                  prompt, and what it had answered before it was put back */
    int64_t        *reached;   /* [max_num_reqs] tokens that it ever computed */
    int64_t        *age;       /* [max_num_reqs] number of its admission */
    int32_t        *computed;  /* [max_num_reqs] tokens in the cache */
    int32_t        *scheduled; /* [max_num_reqs] tokens of this step */
    int32_t        *growing;   /* [max_num_reqs] rows that need room for a token */
    int32_t        *tokens;    /* [width * page_size] of one request */
    schedule_waiting *put_back; /* [max_num_reqs] the next one last */
    int64_t         n_put_back;
    int64_t         n_admissions;
    ledger          ledger;    /* one sequence a row */
    int64_t         clock_ns;  /* for follow_arrivals: now, by a model of step time */

    /* Of the step that schedule_step() made. */
    int64_t n_tokens;
    bool    has_prefill;

    /* Running totals. */
    int64_t n_finished;
    int64_t prompt_tokens; /* of admitted requests */
    int64_t prefix_hit_tokens; /* at the first admission */
    int64_t recomputed_tokens; /* that had been computed before their request was put back */
    int64_t n_preemptions;
} schedule;

/* Tokens whose K and V a request computes: the last output token's never are. */
int64_t schedule_total_tokens(const trace_request *r);

/* Pages that a request needs in the end: those of prompt + output. */
int64_t schedule_pages(const trace_request *r, int64_t page_size);

/* What its pages need to know; `width` is for the longest request of the trace. */
ledger_config schedule_ledger_config(const schedule_limits *limits, int64_t width);

/* Adds what schedule_init() will allocate to a sum of bytes; false if it is too much. */
bool schedule_add_bytes(const schedule_limits *limits, int64_t width, int64_t *sum_bytes);

/*
 * An exit status.  The prompts, and their trace, must outlive the schedule.
 * schedule_free() in any case.
 */
int  schedule_init(schedule *s, const prompts *p, const schedule_limits *limits,
                   const schedule_hooks *hooks, int64_t width);
void schedule_free(schedule *s);

/*
 * Decides the next step; *more is false when every request is done.  An exit
 * status: CLI_DIFFERENCE if the pool or a sequence does not what it should.
 */
int schedule_step(schedule *s, bool *more);

/* Is this row's request done once the step's tokens are written? */
bool schedule_row_done(const schedule *s, int64_t row);

/*
 * After the step: counts its tokens as computed, and lets others find the pages
 * that they filled.  Then rows that are done can be ended, which gives their
 * pages back.  Exit statuses as schedule_step().
 */
int  schedule_commit(schedule *s);
int  schedule_end_row(schedule *s, int64_t row);

#endif
