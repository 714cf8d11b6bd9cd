/* `pagedkv replay`: its options, its result, and the parts that pass them on. */
#ifndef PAGEDKV_CLI_REPLAY_H
#define PAGEDKV_CLI_REPLAY_H

#include "cli.h"
#include "series.h"
#include "trace.h"

typedef struct replay_options {
    const char *trace_path; /* NULL: a synthetic trace */
    const char *format;
    const char *json_path;   /* NULL: none */
    const char *series_path; /* NULL: none */
    int64_t     max_requests; /* 0: all */
    int64_t     page_size;
    int64_t     num_pages; /* 0: what 2 GiB or a quarter of the memory hold */
    int64_t     max_num_reqs;
    int64_t     max_num_batched_tokens;
    int64_t     num_kv_heads;
    int64_t     head_dim;
    int64_t     num_layers;
    int64_t     num_slices_per_block;
    int64_t     threads;
    int64_t     seed;
    pkv_dtype   dtype;
    pkv_dtype   cache_dtype;
    int32_t     allocator; /* PKV_POOL_* */
    bool        follow_arrivals;
    bool        prefix_cache;
    bool        recompute; /* --preempt recompute */
    bool        cuda; /* --backend cuda */
    bool        verify;
    bool        quiet;
} replay_options;

/* The three ways in which each step is written. */
enum { WAY_STATIC = 0, WAY_EXACT = 1, WAY_MERGED = 2, N_WAYS = 3 };

/* Steps apart by kind: an average over both would describe neither. */
enum { KIND_DECODE = 0, KIND_PREFILL = 1, N_KINDS = 2 };

typedef struct replay_kind {
    int64_t steps;
    int64_t tokens;
    int64_t slices[N_WAYS];
    int64_t update_ns[N_WAYS];
} replay_kind;

typedef struct replay_result {
    int64_t     requests;
    int64_t     requests_finished;
    int64_t     prompt_tokens;
    int64_t     row_bytes; /* of one token in one layer */
    int64_t     num_pages;
    int64_t     pages_peak;
    int64_t     pages_leaked;
    int64_t     pages_cached; /* at the end */
    int64_t     prefix_hit_tokens;
    int64_t     recomputed_tokens;
    int64_t     preemptions;
    int64_t     evictions;
    int64_t     cow_pages;
    int64_t     largest_extent_pages; /* the smallest that it was */
    int64_t     plan_ns;
    int64_t     plan_ns_merged;
    int64_t     verified_tokens;
    int64_t     mismatched_tokens;
    int64_t     poison_errors; /* pages or slots that were written while nobody owned them */
    int64_t     plan_errors;   /* plans with another number of slices than counted from tokens */
    int64_t     elapsed_ns;
    int64_t     n_graphs; /* token buckets that were captured */
    int32_t     status_word;   /* of all updates on a device; 0: all was well */
    char        device[64];    /* its name; empty: none */
    double      copy_limit_bytes_per_s;
    bool        huge_pages; /* the cache got them */
    replay_kind kind[N_KINDS];
    int64_t    *histogram[N_WAYS]; /* [histogram_size] steps by their number of slices */
    int64_t     histogram_size;
    series      series; /* points NULL: not asked for */
} replay_result;

/* Name of a PKV_POOL_* allocator; NULL behind the last one. */
const char *replay_allocator_name(int32_t allocator);

/* Runs the trace.  An exit status; *out is to be freed whatever it is. */
int  replay_run(const replay_options *o, const trace *t, replay_result *out);
void replay_result_free(replay_result *r);

/* Sums over both kinds of steps. */
replay_kind replay_total(const replay_result *r);

/* The table for people, and the object for programs (NULL: out of memory). */
void    replay_print(FILE *out, const replay_options *o, const trace *t, const replay_result *r);
json_t *replay_json(const replay_options *o, const trace *t, const replay_result *r);

#endif
