/* What the parts of `bench pool` share. */
#ifndef PAGEDKV_CLI_BENCH_POOL_H
#define PAGEDKV_CLI_BENCH_POOL_H

#include <stdbool.h>
#include <stdint.h>

#include "bench.h"
#include "bench_run.h"

enum { BENCH_POOL_MAX_NAMES = 4 };

/* One thing to time: patterns that share a pool and take turns, and its size. */
typedef struct bench_pool_step {
    int (*run)(const struct bench_pool_step *step, const bench_options *options, bool huge_pages,
               int64_t end_ns, bench_results *results);
    const char *names[BENCH_POOL_MAX_NAMES]; /* patterns; the rest is NULL */
    int64_t     n_pages;
    int64_t     n;     /* grow: sequences; take and give back: pages of a call, 0: a tenth */
    bool        quick; /* a part of --quick */
} bench_pool_step;

/* Takes and gives back pages; in bench_pool_queue.c.  All of them: exit status. */
int bench_pool_queue(const bench_pool_step *step, const bench_options *options, bool huge_pages,
                     int64_t end_ns, bench_results *results);
/* Sequences; in bench_pool_seqs.c. */
int bench_pool_grow(const bench_pool_step *step, const bench_options *options, bool huge_pages,
                    int64_t end_ns, bench_results *results);
int bench_pool_seqs(const bench_pool_step *step, const bench_options *options, bool huge_pages,
                    int64_t end_ns, bench_results *results);
/* The prefix index; in bench_pool_prefix.c. */
int bench_pool_prefix(const bench_pool_step *step, const bench_options *options, bool huge_pages,
                      int64_t end_ns, bench_results *results);

/* Is the pattern, which may be NULL, to be timed? */
bool bench_pool_wants(const bench_options *options, const char *name);

/* Memory that is there: touched, all of it. */
int bench_pool_memory(pkv_memory *memory, uint64_t bytes, bool huge_pages);

/* A blank pool in such memory; `at` is to be freed whatever comes back. */
int bench_pool_open(pkv_memory *at, pkv_pool **pool, int64_t n_pages, bool huge_pages);

/* Is the pool whole, and are so many pages used? */
int bench_pool_check(const pkv_pool *pool, int64_t n_used, const char *name);

/*
 * The row of contender i, whose runs are n_calls calls of n_pages pages each; 0: of none that
 * can be counted.
 */
bench_row bench_pool_row(const bench_pool_step *step, const char *name, const pkv_memory *memory,
                         const bench_job *job, int i, int64_t n_calls, int64_t n_pages);

#endif
