/*
 * One case of `bench update`.  The library, one memcpy a token, and the plain
 * copies that give the limits all run on the same kind of memory: destinations
 * that were last touched long ago, sources that were (cold) or were just
 * written (warm).
 */
#include "bench_case.h"

#include <stdlib.h>
#include <string.h>

#include "bench_run.h"

enum {
    MAX_CALLS = 32,     /* short calls are timed so many at a time, */
    TIMED_TOKENS = 32,  /* or until they write so many tokens */
    ALIGN_BYTES = 4096  /* of sources, and of the limit's destinations */
};

enum { PAGEDKV, USER_MEMCPY, LIMIT, PATTERN, PEER, KINDS };

typedef struct contender {
    int         kind;
    int         way; /* of LIMIT and PATTERN; which of the peers */
    const char *isa; /* of PAGEDKV */
} contender;

typedef struct update_case {
    const bench_case    *which;
    const bench_memory  *memory;
    const bench_machine *machine;
    bench_peers         *peers;
    bench_job           *job;
    pkv_update_opts      opts;
    bench_view           view;
    bench_runs           runs;
    int64_t              n_calls;
    bench_step           steps[MAX_CALLS];
    char                *limit_dst[MAX_CALLS];
    int64_t              source_next_bytes;
    int64_t              call_bytes;   /* one way */
    int64_t              stride_bytes; /* from the source of one call to the next */
    int                  n_contenders;
    contender            contenders[BENCH_MAX_CONTENDERS];
    int                  first[KINDS + 1]; /* of each kind; the next kind's ends it */
} update_case;

/* ---- before each run ----------------------------------------------------- */

/* A place for the sources of all calls of one run: cold ones wander through the memory. */
static char *next_source(update_case *c)
{
    int64_t size_bytes = (int64_t)c->memory->source.size_bytes;
    int64_t run_bytes = c->n_calls * c->stride_bytes;

    if (c->which->source == BENCH_WARM || c->source_next_bytes + run_bytes > size_bytes) {
        c->source_next_bytes = 0;
    }
    char *source = (char *)c->memory->source.data + c->source_next_bytes;
    c->source_next_bytes += run_bytes;
    return source;
}

/* Each call of a run has a stretch of the cache to itself, so that none overwrites another. */
static char *random_limit_dst(update_case *c, int64_t call)
{
    int64_t stretch_bytes = (int64_t)c->memory->cache.size_bytes / c->n_calls;
    int64_t places = (stretch_bytes - c->call_bytes) / ALIGN_BYTES + 1;
    int64_t place = bench_random_below(&c->runs.random, places);

    return (char *)c->memory->cache.data + call * stretch_bytes + place * ALIGN_BYTES;
}

/* Writes new bytes to the source of a run, as a model that has just computed them. */
static void warm_source(update_case *c, char *source)
{
    uint64_t  value = bench_random(&c->runs.random);
    uint64_t *words = (uint64_t *)(void *)source;

    for (int64_t i = 0; i < c->n_calls * c->stride_bytes / (int64_t)sizeof words[0]; i++) {
        words[i] = value += 0x9e3779b97f4a7c15U;
    }
}

static int prepare(void *ctx, int i)
{
    update_case *c = ctx;
    char        *source = next_source(c);
    int          status = CLI_OK;

    for (int64_t call = 0; call < c->n_calls && status == CLI_OK; call++) {
        bench_step *step = &c->steps[call];
        status = bench_view_source(&c->view, source + call * c->stride_bytes, step->n_tokens,
                                   &step->source);
        if (status == CLI_OK) {
            status = bench_step_draw(step, c->which->pattern, &c->view, &c->runs, c->which->merged);
        }
        c->limit_dst[call] = random_limit_dst(c, call);
    }
    if (c->contenders[i].kind == PEER) {
        return status; /* prepares memory of its own */
    }
    if (c->contenders[i].kind == PAGEDKV && pkv_isa_select(c->contenders[i].isa) != PKV_OK) {
        return cli_fail(CLI_USAGE, "bench: cannot use %s", c->contenders[i].isa);
    }
    bench_machine_pin(c->machine, c->which->threads);
    bench_memory_evict(c->memory);
    if (c->which->source == BENCH_WARM) {
        warm_source(c, source);
    }
    for (int64_t call = 0; call < c->n_calls; call++) {
        bench_step_touch(&c->steps[call]);
    }
    return status;
}

/* ---- the timed part ------------------------------------------------------ */

static void copy_token(const bench_view *view, const bench_step *step, int64_t token)
{
    for (int64_t plane = 0; plane < view->n_planes; plane++) {
        for (int64_t row = 0; row < view->rows_a_plane; row++) {
            memcpy(bench_slot_row(view, plane, step->slots[token], row),
                   bench_source_row(view, &step->source, plane, token, row),
                   (size_t)view->row_bytes);
        }
    }
}

/* What one writes without a library: a memcpy for each row, by the slot of its token. */
static void copy_tokens(const update_case *c, const bench_step *step)
{
    int threads = limit_threads((size_t)c->call_bytes, c->which->threads);

    if (threads == 1) {
        for (int64_t token = 0; token < step->n_tokens; token++) {
            copy_token(&c->view, step, token);
        }
        return;
    }
#ifdef _OPENMP
#pragma omp parallel for num_threads(threads) schedule(static)
#endif
    for (int64_t token = 0; token < step->n_tokens; token++) {
        copy_token(&c->view, step, token);
    }
}

static int run_call(update_case *c, const contender *who, int64_t call)
{
    const bench_step *step = &c->steps[call];
    pkv_error         err;

    switch (who->kind) {
    case PAGEDKV:
        if (pkv_update(&c->view.cache, &step->source, &step->slices, &c->opts, &err) != PKV_OK) {
            return cli_fail_pkv(&err, "bench: pkv_update");
        }
        break;
    case USER_MEMCPY:
        copy_tokens(c, step);
        break;
    case LIMIT:
        limit_copy(who->way, c->limit_dst[call], step->source.k.data, (size_t)c->call_bytes,
                   c->which->threads);
        break;
    default:
        limit_copy_rows(who->way, step->rows, (size_t)step->n_rows, c->which->threads);
        break;
    }
    return CLI_OK;
}

/* One that has failed has no rows, so its time does not matter. */
static int run_peer(update_case *c, const contender *who)
{
    const char    *source = c->steps[0].source.k.data;
    bench_peer_run task = {
        .peer = who->way,
        .threads = c->which->threads,
        .warm = c->which->source == BENCH_WARM,
        .view = &c->view,
        .steps = c->steps,
        .n_calls = c->n_calls,
        .source_bytes = source - (const char *)c->memory->source.data,
        .stride_bytes = c->stride_bytes,
    };

    c->job->own_ns = bench_peers_run(c->peers, &task);
    return CLI_OK;
}

static int run(void *ctx, int i)
{
    update_case *c = ctx;
    int          status = CLI_OK;

    if (c->contenders[i].kind == PEER) {
        return run_peer(c, &c->contenders[i]);
    }
    for (int64_t call = 0; call < c->n_calls && status == CLI_OK; call++) {
        status = run_call(c, &c->contenders[i], call);
    }
    return status;
}

/* ---- the check ----------------------------------------------------------- */

/* By the slots that were drawn, not by the plan. */
static bool token_is_there(const bench_view *view, const bench_step *step, int64_t token)
{
    for (int64_t plane = 0; plane < view->n_planes; plane++) {
        for (int64_t row = 0; row < view->rows_a_plane; row++) {
            if (memcmp(bench_slot_row(view, plane, step->slots[token], row),
                       bench_source_row(view, &step->source, plane, token, row),
                       (size_t)view->row_bytes) != 0) {
                return false;
            }
        }
    }
    return true;
}

static int fail_slot(const update_case *c, const char *name, int64_t slot)
{
    return cli_fail(CLI_DIFFERENCE, "bench update %s, %s: a wrong byte in slot %lld",
                    c->which->pattern->name, name, (long long)slot);
}

static int check_peer(const update_case *c, int peer)
{
    int64_t slot = bench_peers_check(c->peers);
    return slot >= 0 ? fail_slot(c, bench_peer_name(peer), slot) : CLI_OK;
}

static int check(void *ctx, int i)
{
    const update_case *c = ctx;
    const contender   *who = &c->contenders[i];

    if (who->kind == PEER) {
        return check_peer(c, who->way);
    }
    const char *name = who->kind == PAGEDKV ? who->isa : limit_way_name(who->way);
    for (int64_t call = 0; call < c->n_calls; call++) {
        const bench_step *step = &c->steps[call];
        if (who->kind == LIMIT &&
            memcmp(c->limit_dst[call], step->source.k.data, (size_t)c->call_bytes) != 0) {
            return cli_fail(CLI_DIFFERENCE, "bench: a wrong byte after a plain %s", name);
        }
        for (int64_t t = 0; who->kind != LIMIT && t < step->n_tokens; t++) {
            if (!token_is_there(&c->view, step, t)) {
                return fail_slot(c, name, step->slots[t]);
            }
        }
    }
    return CLI_OK;
}

/* ---- who takes part ------------------------------------------------------ */

static void add_contender(update_case *c, int kind, int way, const char *isa)
{
    if (c->n_contenders < BENCH_MAX_CONTENDERS) {
        c->contenders[c->n_contenders++] = (contender){.kind = kind, .way = way, .isa = isa};
    }
}

/*
 * Python has rows where the layout is what Python declares, and for one plan:
 * it has slots.  NumPy has no threads.
 */
bool bench_case_takes_peer(const bench_case *which, int peer)
{
    return which->layout != BENCH_HND && !which->merged &&
           (peer != BENCH_NUMPY || which->threads == 1);
}

static void add_contenders(update_case *c, const char *isa)
{
    const char *name;

    for (int32_t i = 0; (name = pkv_isa_name(i)) != NULL; i++) {
        bool wanted = isa == NULL ? strcmp(name, pkv_isa_current()) == 0
                                  : strcmp(isa, "all") == 0 || strcmp(isa, name) == 0;
        if (wanted && pkv_isa_usable(i)) {
            add_contender(c, PAGEDKV, 0, name);
        }
    }
    c->first[USER_MEMCPY] = c->n_contenders;
    add_contender(c, USER_MEMCPY, LIMIT_MEMCPY, NULL);
    c->first[LIMIT] = c->n_contenders;
    for (int way = 0; way < LIMIT_WAYS; way++) {
        if (limit_way_usable(way)) {
            add_contender(c, LIMIT, way, NULL);
        }
    }
    c->first[PATTERN] = c->n_contenders;
    for (int way = LIMIT_MEMCPY; way <= LIMIT_STREAM; way++) {
        if (limit_way_usable(way)) {
            add_contender(c, PATTERN, way, NULL);
        }
    }
    c->first[PEER] = c->n_contenders;
    for (int peer = 0; peer < BENCH_N_PEERS; peer++) {
        if (bench_peers_has(c->peers, peer) && bench_case_takes_peer(c->which, peer)) {
            add_contender(c, PEER, peer, NULL);
        }
    }
    c->first[KINDS] = c->n_contenders;
}

/* Sets the sizes of a case.  Exit status. */
static int open_case(update_case *c, const bench_options *options)
{
    const bench_pattern *p = c->which->pattern;
    int64_t              tokens = bench_pattern_tokens(p);
    bench_shape          shape = {
        .layout = c->which->layout,
        .page_size = options->page_size > 0 ? options->page_size : p->page_size,
        .num_kv_heads = p->num_kv_heads > 0 ? p->num_kv_heads : options->num_kv_heads,
        .head_dim = p->head_dim > 0 ? p->head_dim : options->head_dim,
        .dtype = options->dtype,
    };

    int status = bench_view_open(&c->view, &shape, &c->memory->cache);
    c->n_calls = tokens < TIMED_TOKENS ? TIMED_TOKENS / tokens : 1;
    c->call_bytes = tokens * c->view.token_bytes;
    c->stride_bytes = (c->call_bytes + ALIGN_BYTES - 1) / ALIGN_BYTES * ALIGN_BYTES;
    c->opts = (pkv_update_opts){.struct_size = sizeof(pkv_update_opts),
                                .max_threads = (int32_t)c->which->threads};
    return status;
}

/* Is there room for the slots of a run, and for its sources? */
static bool fits(const update_case *c)
{
    int64_t page_size = c->view.cache.page_size;
    return bench_pattern_slots(c->which->pattern, page_size) <= c->view.cache.n_pages * page_size &&
           c->n_calls * c->stride_bytes <= (int64_t)c->memory->source.size_bytes;
}

static int allocate(update_case *c)
{
    int status = bench_runs_open(&c->runs, c->which->pattern, &c->view);

    for (int64_t call = 0; call < c->n_calls && status == CLI_OK; call++) {
        status = bench_step_open(&c->steps[call], c->which->pattern, &c->view);
    }
    return status;
}

static void close_case(update_case *c)
{
    for (int64_t call = 0; call < MAX_CALLS; call++) {
        bench_step_close(&c->steps[call]);
    }
    bench_runs_close(&c->runs);
    free(c);
}

/* ---- results ------------------------------------------------------------- */

static double median_of(const bench_job *job, int i)
{
    return bench_quantile(job->ns[i], job->n_rounds, 0.5);
}

/* What all rows of the case have in common. */
static bench_row common_row(const update_case *c, const bench_job *job)
{
    const bench_step *step = &c->steps[0];
    bench_row         row = bench_row_null;

    row.case_name = "update";
    row.pattern = c->which->pattern->name;
    row.plan = c->which->merged ? "merged" : "exact";
    row.layout = bench_layout_name(c->which->layout);
    row.source = c->which->source == BENCH_WARM ? "warm" : "cold";
    row.src_dtype = row.dtype = pkv_dtype_name(c->view.cache.dtype);
    row.page_size = c->view.cache.page_size;
    row.num_kv_heads = c->view.cache.n_heads;
    row.head_dim = c->view.cache.k.head_dim;
    row.requests = step->batch.n_requests;
    row.tokens = step->n_tokens;
    row.num_slices = step->n_slices;
    row.threads = c->which->threads;
    row.rounds = job->n_rounds;
    row.huge_pages = c->memory->huge_pages;
    return row;
}

/* Median of (time of the peer / time of i); -1, null, where there is no such peer. */
static double peer_ratio(const update_case *c, const bench_job *job, int peer, int i)
{
    for (int k = c->first[PEER]; k < c->first[KINDS]; k++) {
        if (c->contenders[k].way == peer && bench_peers_has(c->peers, peer)) {
            return bench_ratio(job, k, i);
        }
    }
    return -1;
}

static void fill_times(bench_row *row, const update_case *c, const bench_job *job, int i)
{
    double calls = (double)c->n_calls;
    double both_ways_bytes = 2.0 * (double)c->call_bytes * calls;
    int    limit = bench_fastest(job, c->first[LIMIT], c->first[PATTERN]);
    int    pattern = bench_fastest(job, c->first[PATTERN], c->first[PEER]);

    row->ns_median = median_of(job, i) / calls;
    row->ns_p25 = bench_quantile(job->ns[i], job->n_rounds, 0.25) / calls;
    row->ns_p75 = bench_quantile(job->ns[i], job->n_rounds, 0.75) / calls;
    row->ns_per_slice = row->num_slices > 0 ? row->ns_median / (double)row->num_slices : -1;
    row->bytes_per_s = both_ways_bytes * 1e9 / median_of(job, i);
    row->limit_bytes_per_s = both_ways_bytes * 1e9 / median_of(job, limit);
    row->limit_fraction = bench_ratio(job, limit, i);
    row->limit_way = limit_way_name(c->contenders[limit].way);
    row->pattern_bytes_per_s = both_ways_bytes * 1e9 / median_of(job, pattern);
    row->pattern_fraction = bench_ratio(job, pattern, i);
    row->pattern_way = limit_way_name(c->contenders[pattern].way);
    row->memcpy_fraction = bench_ratio(job, c->first[USER_MEMCPY], i);
    row->numpy_fraction = peer_ratio(c, job, BENCH_NUMPY, i);
    row->index_copy_fraction = peer_ratio(c, job, BENCH_INDEX_COPY, i);
}

/* NULL for the limits, which have no rows, and for a peer that has failed. */
static const char *row_name(const update_case *c, const contender *who)
{
    switch (who->kind) {
    case PAGEDKV:
        return "pagedkv";
    case USER_MEMCPY:
        return "memcpy";
    case PEER:
        return bench_peers_has(c->peers, who->way) ? bench_peer_name(who->way) : NULL;
    default:
        return NULL;
    }
}

static int add_rows(const update_case *c, const bench_job *job, bench_results *results)
{
    int status = CLI_OK;

    for (int i = 0; i < c->n_contenders && status == CLI_OK; i++) {
        bench_row row = common_row(c, job);
        row.impl = row_name(c, &c->contenders[i]);
        row.isa = c->contenders[i].isa;
        if (row.impl != NULL) {
            fill_times(&row, c, job, i);
            status = bench_add(results, &row);
        }
    }
    return status;
}

/* All of a case that fits. */
static int time_case(update_case *c, const bench_options *options, int64_t end_ns, bench_job *job,
                     bench_results *results)
{
    int status = allocate(c);
    if (status == CLI_OK) {
        add_contenders(c, options->isa);
        *job = (bench_job){.ctx = c, .n_contenders = c->n_contenders, .prepare = prepare,
                           .run = run, .check = check};
        c->job = job;
        status = bench_run(job, options->rounds, end_ns);
    }
    return status == CLI_OK ? add_rows(c, job, results) : status;
}

int bench_case_run(const bench_case *which, const bench_options *options,
                   const bench_memory *memory, bench_peers *peers, int64_t end_ns,
                   bench_results *results)
{
    update_case *c = calloc(1, sizeof *c);
    bench_job   *job = calloc(1, sizeof *job);

    if (c == NULL || job == NULL) {
        free(c);
        free(job);
        return cli_no_memory("bench");
    }
    c->which = which;
    c->memory = memory;
    c->machine = &options->machine;
    c->peers = peers;
    int status = open_case(c, options);
    if (status == CLI_OK && fits(c)) {
        status = time_case(c, options, end_ns, job, results);
    }
    close_case(c);
    free(job);
    return status;
}
