/* One case of `bench update`: one pattern, layout, source, plan and thread count. */
#ifndef PAGEDKV_CLI_BENCH_CASE_H
#define PAGEDKV_CLI_BENCH_CASE_H

#include "bench_memory.h"
#include "bench_peers.h"
#include "bench_step.h"

typedef struct bench_case {
    const bench_pattern *pattern;
    unsigned             layout;
    unsigned             source;
    int                  threads;
    bool                 merged;
} bench_case;

/* Is this peer to be timed in the case? */
bool bench_case_takes_peer(const bench_case *which, int peer);

/*
 * Times the case until end_ns and appends its rows; none if it does not fit the
 * memory.  Exit status.
 */
int bench_case_run(const bench_case *which, const bench_options *options,
                   const bench_memory *memory, bench_peers *peers, int64_t end_ns,
                   bench_results *results);

#endif
