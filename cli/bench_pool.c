/* The case "pool": what is timed, and what its parts share. */
#include "bench_pool.h"

#include <string.h>

#include "bench_memory.h"

enum { LEAST_HUGE_BYTES = 4 << 20 };
static const uint64_t LIST_NODE_BYTES = 16, INDEX_PAGE_BYTES = 112;

/* ---- what the parts share ----------------------------------------------------------- */

bool bench_pool_wants(const bench_options *options, const char *name)
{
    return name != NULL && (options->pattern == NULL || strcmp(options->pattern, name) == 0);
}

int bench_pool_memory(pkv_memory *memory, uint64_t bytes, bool huge_pages)
{
    if (huge_pages && bytes < LEAST_HUGE_BYTES) {
        bytes = LEAST_HUGE_BYTES;
    }
    int status = bench_memory_allocate(memory, bytes, huge_pages);
    if (status == CLI_OK) {
        memset(memory->data, 0, (size_t)memory->size_bytes);
    } else {
        *memory = (pkv_memory){0};
    }
    return status;
}

int bench_pool_open(pkv_memory *at, pkv_pool **pool, int64_t n_pages, bool huge_pages)
{
    pkv_pool_config config = {.struct_size = sizeof config, .n_pages = n_pages};
    uint64_t        bytes = 0;
    pkv_error       err;

    if (pkv_pool_bytes(&config, &bytes, &err) != PKV_OK) {
        return cli_fail_pkv(&err, "bench pool");
    }
    int status = bench_pool_memory(at, bytes, huge_pages);
    if (status == CLI_OK && pkv_pool_init(&config, at->data, bytes, pool, &err) != PKV_OK) {
        status = cli_fail_pkv(&err, "bench pool");
    }
    return status;
}

int bench_pool_check(const pkv_pool *pool, int64_t n_used, const char *name)
{
    pkv_pool_counts counts = {.struct_size = sizeof counts};
    pkv_error       err;

    if (pkv_pool_check(pool, &err) != PKV_OK || pkv_pool_stats(pool, &counts, &err) != PKV_OK) {
        return cli_fail(CLI_DIFFERENCE, "bench pool %s: %s", name, err.what);
    }
    if (counts.n_used != n_used) {
        return cli_fail(CLI_DIFFERENCE, "bench pool %s: %lld pages are used instead of %lld",
                        name, (long long)counts.n_used, (long long)n_used);
    }
    return CLI_OK;
}

bench_row bench_pool_row(const bench_pool_step *step, const char *name, const pkv_memory *memory,
                         const bench_job *job, int i, int64_t n_calls, int64_t n_pages)
{
    bench_row row = bench_row_null;

    row.impl = "pagedkv";
    row.case_name = "pool";
    row.pattern = name;
    row.pages = step->n_pages;
    row.threads = 1;
    row.huge_pages = bench_memory_is_huge(memory);
    row.rounds = job->n_rounds;
    row.ns_median = bench_quantile(job->ns[i], job->n_rounds, 0.5) / (double)n_calls;
    row.ns_p25 = bench_quantile(job->ns[i], job->n_rounds, 0.25) / (double)n_calls;
    row.ns_p75 = bench_quantile(job->ns[i], job->n_rounds, 0.75) / (double)n_calls;
    row.ns_per_page = n_pages > 0 ? row.ns_median / (double)n_pages : -1;
    return row;
}

/* ---- all of it ------------------------------------------------------------------------ */

#define QUEUE bench_pool_queue, {"alloc", "free", "touch"}
#define RUNS bench_pool_queue, {"alloc_runs", "free_runs"}
#define SCATTERED bench_pool_queue, {"alloc_scattered", "free_scattered"}
#define GROW bench_pool_grow, {"grow"}
#define SEQS bench_pool_seqs, {"reserve", "fork", "trim", "close"}
#define PREFIX bench_pool_prefix, {"prefix_find", "prefix_miss", "prefix_insert", "prefix_append"}

static const bench_pool_step steps[] = {
    {QUEUE, 1000, 0, true},
    {QUEUE, 10000, 0, true},
    {QUEUE, 100000, 0, true},
    {QUEUE, 1000000, 0, false},
    {QUEUE, 10000000, 0, false},
    {RUNS, 100000, 256, true},
    {RUNS, 1000000, 256, false},
    {SCATTERED, 100000, 64, true},
    {SCATTERED, 1000000, 64, false},
    {GROW, 100000, 200, true},
    {GROW, 1000000, 1000, false},
    {GROW, 1000000, 2000, false},
    {GROW, 1000000, 3000, false},
    {SEQS, 100000, 0, true},
    {SEQS, 1000000, 0, false},
    {SEQS, 10000000, 0, false},
    {PREFIX, 10000, 0, true},
    {PREFIX, 100000, 0, true},
    {PREFIX, 1000000, 0, false},
};

/* Is the step to be run?  What does not fit is left out, with a line that says so. */
static bool takes_part(const bench_pool_step *s, const bench_options *options, bool says)
{
    /* The pool, what stands beside it, and the page numbers. */
    uint64_t beside = s->run == bench_pool_prefix ? INDEX_PAGE_BYTES : LIST_NODE_BYTES;
    uint64_t bytes = (uint64_t)s->n_pages * (58 + beside + 2 * sizeof(int32_t));
    uint64_t memory = (uint64_t)options->machine.memory_bytes;
    bool     wanted = false;

    for (int i = 0; i < BENCH_POOL_MAX_NAMES; i++) {
        wanted = wanted || bench_pool_wants(options, s->names[i]);
    }
    wanted = wanted && (s->quick || !options->quick);
    if (wanted && memory > 0 && bytes > memory / 8) {
        if (says && !options->quiet) {
            cli_fail(CLI_OK, "bench: pool %s: %lld pages are left out: %llu MiB are more than an"
                     " eighth of the memory", s->names[0], (long long)s->n_pages,
                     (unsigned long long)(bytes >> 20));
        }
        return false;
    }
    return wanted;
}

int bench_pool(const bench_options *options, int64_t deadline_ns, bench_results *results)
{
    const int n_steps = sizeof steps / sizeof steps[0];
    unsigned  kinds = options->huge_pages != 0 ? options->huge_pages
                                               : BENCH_HUGE_OFF | BENCH_HUGE_ON;
    int       n_kinds = kinds == (BENCH_HUGE_OFF | BENCH_HUGE_ON) ? 2 : 1;
    int       left = 0, status = CLI_OK;
    char      text[128];

    for (int i = 0; i < n_steps; i++) {
        left += takes_part(&steps[i], options, true) ? n_kinds : 0;
    }
    for (int i = 0; i < n_kinds * n_steps && status == CLI_OK; i++) {
        const bench_pool_step *s = &steps[i % n_steps];
        bool huge_pages = n_kinds == 2 ? i >= n_steps : kinds == BENCH_HUGE_ON;
        if (takes_part(s, options, false)) {
            int64_t now = cli_now_ns();
            snprintf(text, sizeof text, "pool %s, %lld pages, huge pages %s", s->names[0],
                     (long long)s->n_pages, huge_pages ? "on" : "off");
            bench_progress(options, text);
            status = s->run(s, options, huge_pages, now + (deadline_ns - now) / left--, results);
        }
    }
    return status;
}
