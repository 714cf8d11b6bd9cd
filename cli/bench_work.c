/* Contenders, rounds and rows of a work: see bench_work.h. */
#include "bench_work.h"

#include <stdlib.h>
#include <string.h>

#include "bench_run.h"

enum { ALIGN_BYTES = 4096 };

enum { LIBRARY, LIMIT, PATTERN, PEER, KINDS };

typedef struct contender {
    int         kind;
    int         way; /* of LIMIT and PATTERN; which of the library's own, which of the peers */
    const char *isa;
} contender;

typedef struct race {
    bench_work *work;
    bench_job   job;
    char       *limit_dst;
    const char *limit_src;
    int         n;
    contender   contenders[BENCH_MAX_CONTENDERS];
    int         first[KINDS + 1];
} race;

bool bench_work_wants(const bench_options *options, const char *pattern)
{
    return options->pattern == NULL || strcmp(options->pattern, pattern) == 0;
}

char *bench_work_source(bench_work *work, int64_t bytes)
{
    int64_t size_bytes = (int64_t)work->memory->source.size_bytes;
    int64_t step_bytes = (bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;

    if (work->source_next_bytes + step_bytes > size_bytes) {
        work->source_next_bytes = 0;
    }
    char *source = (char *)work->memory->source.data + work->source_next_bytes;
    work->source_next_bytes += step_bytes;
    return source;
}

/* ---- one run ------------------------------------------------------------- */

static int prepare(void *ctx, int i)
{
    race       *r = ctx;
    bench_work *w = r->work;
    contender  *who = &r->contenders[i];
    int64_t     places = ((int64_t)w->memory->cache.size_bytes - w->moved_bytes / 2) / ALIGN_BYTES;

    int status = w->draw(w->ctx);
    if (status != CLI_OK || who->kind == PEER) {
        return status;
    }
    if (who->kind == LIMIT) {
        char *cache = (char *)w->memory->cache.data +
                      bench_random_below(&w->random, places + 1) * ALIGN_BYTES;
        char *rows = bench_work_source(w, w->moved_bytes / 2);
        r->limit_dst = w->from_cache ? rows : cache;
        r->limit_src = w->from_cache ? cache : rows;
    }
    if (who->kind == LIBRARY && pkv_isa_select(who->isa) != PKV_OK) {
        return cli_fail(CLI_USAGE, "bench: cannot use %s", who->isa);
    }
    bench_machine_pin(&w->options->machine, w->threads);
    bench_memory_evict(w->memory);
    if (w->touch != NULL) {
        w->touch(w->ctx);
    }
    return CLI_OK;
}

static int run(void *ctx, int i)
{
    race            *r = ctx;
    bench_work      *w = r->work;
    const contender *who = &r->contenders[i];

    switch (who->kind) {
    case LIBRARY:
        return w->run(w->ctx, who->way);
    case LIMIT:
        limit_copy(who->way, r->limit_dst, r->limit_src, (size_t)w->moved_bytes / 2, w->threads);
        return CLI_OK;
    case PATTERN:
        limit_copy_rows(who->way, w->rows, (size_t)w->n_rows, w->threads);
        return CLI_OK;
    default:
        r->job.own_ns = w->run_peer(w->ctx, who->way);
        return CLI_OK;
    }
}

static int check(void *ctx, int i)
{
    race            *r = ctx;
    bench_work      *w = r->work;
    const contender *who = &r->contenders[i];

    if (who->kind == PEER) {
        int64_t slot = bench_peers_check(w->peers);
        return slot < 0 ? CLI_OK
                        : cli_fail(CLI_DIFFERENCE, "bench %s %s, %s: a wrong byte in slot %lld",
                                   w->row.case_name, w->row.pattern, bench_peer_name(who->way),
                                   (long long)slot);
    }
    if (who->kind == LIMIT) {
        return memcmp(r->limit_dst, r->limit_src, (size_t)w->moved_bytes / 2) == 0
                   ? CLI_OK
                   : cli_fail(CLI_DIFFERENCE, "bench: a wrong byte after a plain %s",
                              limit_way_name(who->way));
    }
    return w->check(w->ctx, who->kind == LIBRARY ? who->isa : limit_way_name(who->way));
}

/* ---- who takes part ------------------------------------------------------ */

static void add(race *r, int kind, int way, const char *isa)
{
    if (r->n < BENCH_MAX_CONTENDERS) {
        r->contenders[r->n++] = (contender){.kind = kind, .way = way, .isa = isa};
    }
}

static void add_library(race *r)
{
    const char *isa = r->work->options->isa, *name;

    for (int32_t i = 0; (name = pkv_isa_name(i)) != NULL; i++) {
        bool wanted = isa == NULL ? strcmp(name, pkv_isa_current()) == 0
                                  : strcmp(isa, "all") == 0 || strcmp(isa, name) == 0;
        for (int way = 0; way < 2 && wanted && pkv_isa_usable(i); way++) {
            if (r->work->impls[way] != NULL) {
                add(r, LIBRARY, way, name);
            }
        }
    }
}

static void add_contenders(race *r)
{
    const bench_work *w = r->work;

    add_library(r);
    r->first[LIMIT] = r->n;
    for (int way = 0; way < LIMIT_WAYS; way++) {
        if (limit_way_usable(way)) {
            add(r, LIMIT, way, NULL);
        }
    }
    r->first[PATTERN] = r->n;
    for (int way = LIMIT_MEMCPY; way <= LIMIT_STREAM && w->rows != NULL; way++) {
        if (limit_way_usable(way)) {
            add(r, PATTERN, way, NULL);
        }
    }
    r->first[PEER] = r->n;
    for (int peer = 0; peer < BENCH_N_PEERS && w->peers != NULL; peer++) {
        if (w->takes_peer[peer] && bench_peers_has(w->peers, peer)) {
            add(r, PEER, peer, NULL);
        }
    }
    r->first[KINDS] = r->n;
}

/* ---- results ------------------------------------------------------------- */

static double rate(const race *r, int i)
{
    return (double)r->work->moved_bytes * 1e9 /
           bench_quantile(r->job.ns[i], r->job.n_rounds, 0.5);
}

/* Median of (time of the peer / time of i); -1, null, where there is no such peer. */
static double peer_ratio(const race *r, int peer, int i)
{
    for (int k = r->first[PEER]; k < r->first[KINDS]; k++) {
        if (r->contenders[k].way == peer && bench_peers_has(r->work->peers, peer)) {
            return bench_ratio(&r->job, k, i);
        }
    }
    return -1;
}

/* The same over the other of the library's own ways, on the same instruction set. */
static double calls_ratio(const race *r, int i)
{
    const contender *who = &r->contenders[i];
    bool             other = who->kind == LIBRARY && who->way == 0 && r->work->impls[1] != NULL;
    return other ? bench_ratio(&r->job, i + 1, i) : -1;
}

static void fill_row(const race *r, int i, bench_row *row)
{
    const bench_job *job = &r->job;
    int              limit = bench_fastest(job, r->first[LIMIT], r->first[PATTERN]);

    row->rounds = job->n_rounds;
    row->ns_median = bench_quantile(job->ns[i], job->n_rounds, 0.5);
    row->ns_p25 = bench_quantile(job->ns[i], job->n_rounds, 0.25);
    row->ns_p75 = bench_quantile(job->ns[i], job->n_rounds, 0.75);
    row->ns_per_slice = row->num_slices > 0 ? row->ns_median / (double)row->num_slices : -1;
    row->ns_per_page = row->pages > 0 ? row->ns_median / (double)row->pages : -1;
    row->bytes_per_s = rate(r, i);
    row->limit_way = limit_way_name(r->contenders[limit].way);
    row->limit_bytes_per_s = rate(r, limit);
    row->limit_fraction = bench_ratio(job, limit, i);
    if (r->first[PATTERN] < r->first[PEER]) {
        int pattern = bench_fastest(job, r->first[PATTERN], r->first[PEER]);
        row->pattern_way = limit_way_name(r->contenders[pattern].way);
        row->pattern_bytes_per_s = rate(r, pattern);
        row->pattern_fraction = bench_ratio(job, pattern, i);
    }
    row->numpy_fraction = peer_ratio(r, BENCH_NUMPY, i);
    row->index_copy_fraction = peer_ratio(r, BENCH_INDEX_COPY, i);
    row->calls_fraction = calls_ratio(r, i);
}

static int add_rows(const race *r, bench_results *results)
{
    int status = CLI_OK;

    for (int i = 0; i < r->n && status == CLI_OK; i++) {
        const contender *who = &r->contenders[i];
        bench_row        row = r->work->row;
        bool failed = who->kind == PEER && !bench_peers_has(r->work->peers, who->way);
        if (who->kind == LIMIT || who->kind == PATTERN || failed) {
            continue;
        }
        row.impl = who->kind == LIBRARY ? r->work->impls[who->way] : bench_peer_name(who->way);
        row.isa = who->isa;
        fill_row(r, i, &row);
        status = bench_add(results, &row);
    }
    return status;
}

int bench_work_run(bench_work *work, int64_t end_ns, bench_results *results)
{
    race *r = calloc(1, sizeof *r);

    if (r == NULL) {
        return cli_no_memory("bench");
    }
    r->work = work;
    work->random = 2463534242U;
    int status = work->draw(work->ctx); /* so that it is seen whether there are plain copies */
    if (status == CLI_OK) {
        add_contenders(r);
        r->job.ctx = r;
        r->job.n_contenders = r->n;
        r->job.prepare = prepare;
        r->job.run = run;
        r->job.check = check;
        status = bench_run(&r->job, work->options->rounds, end_ns);
    }
    if (status == CLI_OK) {
        status = add_rows(r, results);
    }
    free(r);
    return status;
}
