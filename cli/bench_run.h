/* Timing contenders side by side: interleaved, shuffled each round, paired. */
#ifndef PAGEDKV_CLI_BENCH_RUN_H
#define PAGEDKV_CLI_BENCH_RUN_H

#include <stdbool.h>
#include <stdint.h>

enum { BENCH_MAX_ROUNDS = 101, BENCH_MAX_CONTENDERS = 16 };

typedef struct bench_job {
    void *ctx;
    int   n_contenders;                /* at most BENCH_MAX_CONTENDERS */
    int (*prepare)(void *ctx, int i);  /* before every run, not timed; exit status */
    int (*run)(void *ctx, int i);      /* timed; exit status */
    int (*check)(void *ctx, int i);    /* after the first run of each; exit status */
    double own_ns; /* run() sets it for a contender that has timed itself; else 0 */
    /* Filled: the times of each contender, round by round. */
    int    n_rounds;
    double ns[BENCH_MAX_CONTENDERS][BENCH_MAX_ROUNDS];
} bench_job;

/*
 * Runs a first round that is checked and not counted, then rounds until
 * end_ns, at least 5; or exactly `rounds` of them if that is not 0.
 * Exit status.
 */
int bench_run(bench_job *job, int64_t rounds, int64_t end_ns);

/* The q-th quantile of n values, 0 <= q <= 1; 1 <= n <= BENCH_MAX_ROUNDS. */
double bench_quantile(const double *values, int n, double q);

/* Median over the rounds of (time of a / time of b). */
double bench_ratio(const bench_job *job, int a, int b);

/* The contender of first..end-1 with the lowest median. */
int bench_fastest(const bench_job *job, int first, int end);

/* A number that looks random; the same sequence for the same first state, which is not 0. */
uint64_t bench_random(uint64_t *state);

/* The same, below n. */
int64_t bench_random_below(uint64_t *state, int64_t n);

#endif
