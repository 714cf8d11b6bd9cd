/* Running a trace: schedule, fill, plan, write three times, check, free. */
#include "engine.h"
#include "engine_cuda.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* Lists the step's tokens in the order of the new K/V. */
static void list_tokens(engine *e)
{
    const schedule *s = &e->schedule;
    int64_t         n = 0;
    for (int64_t row = 0; row < s->n_rows; row++) {
        for (int64_t i = 0; i < s->scheduled[row]; i++) {
            int64_t position = s->computed[row] + i;
            e->tokens[n++] = (step_token){prompts_key(&e->prompts, s->request[row], position),
                                          row, position, engine_row_slot(e, row, position)};
        }
    }
}

/* Makes the new K/V of the step with a stamp, or changes the stamp that it carries. */
static void make_source(const engine *e, bool fill, int stamp_before, int stamp)
{
    const int64_t n = e->schedule.n_tokens;
    for (int64_t layer = 0; layer < e->o->num_layers; layer++) {
#ifdef _OPENMP
#pragma omp parallel for num_threads((int)e->o->threads) schedule(static)
#endif
        for (int64_t t = 0; t < n; t++) {
            unsigned char *row = engine_source_row(e, layer, t);
            if (e->converts) {
                engine_fill_source(e, &e->tokens[t], layer, stamp, row, engine_scratch(e));
                continue;
            }
            if (fill) {
                content_fill(&e->shape, e->tokens[t].key, e->tokens[t].position, layer, row);
            }
            content_stamp(&e->shape, e->tokens[t].position, stamp_before ^ stamp, row);
        }
    }
}

static pkv_slices way_slices(engine *e, int way)
{
    pkv_slices slices;
    pkv_slices_from_array(&slices, sizeof slices, e->columns[way], e->slices_capacity,
                          &e->counts[way]);
    return slices;
}

static int plan_way(engine *e, const pkv_batch *batch, int way)
{
    pkv_error  err;
    pkv_slices slices = way_slices(e, way);
    int64_t   *spent = way == WAY_EXACT ? &e->result->plan_ns : &e->result->plan_ns_merged;
    int64_t    start = cli_now_ns();
    pkv_status status =
        pkv_plan(batch, way == WAY_EXACT ? e->o->page_size : 0, &slices, NULL, &err);
    *spent += cli_now_ns() - start;
    return status == PKV_OK ? CLI_OK : cli_fail_pkv(&err, "plan");
}

/* The static plan is the exact one with zero columns up to the bucket's N. */
static void pad_static(engine *e)
{
    const int64_t bucket = pkv_token_bucket(e->schedule.n_tokens, PKV_MIN_TOKEN_BUCKET,
                                            e->o->max_num_batched_tokens, 0);
    const int64_t padded = pkv_padded_num_slices(e->o->max_num_reqs, bucket, e->o->page_size);
    const int64_t n = e->counts[WAY_EXACT];
    for (int i = 0; i < 3; i++) {
        int32_t       *row = e->columns[WAY_STATIC] + i * e->slices_capacity;
        const int32_t *exact = e->columns[WAY_EXACT] + i * e->slices_capacity;
        memcpy(row, exact, (size_t)n * sizeof *row);
        memset(row + n, 0, (size_t)(padded - n) * sizeof *row);
    }
    e->counts[WAY_STATIC] = (int32_t)padded;
}

/*
 * The first plan of a step finds the block tables cold, the second one warm; so
 * exact and merged take turns in being first.
 */
static int plan_step(engine *e)
{
    schedule *s = &e->schedule;
    pkv_batch batch;
    int       first = e->step % 2 == 0 ? WAY_EXACT : WAY_MERGED;
    int       status = ledger_batch(&s->ledger, s->computed, s->scheduled, s->n_rows, &batch);
    if (status == CLI_OK) {
        status = plan_way(e, &batch, first);
    }
    if (status == CLI_OK) {
        status = plan_way(e, &batch, WAY_EXACT + WAY_MERGED - first);
    }
    if (status == CLI_OK) {
        pad_static(e);
    }
    return status;
}

static int write_way(engine *e, int way, int64_t *ns)
{
    const pkv_update_opts opts = {.struct_size = sizeof opts,
                                  .max_threads = (int32_t)e->o->threads};
    if (e->cuda != NULL) {
        return engine_cuda_write(e, way, ns);
    }
    pkv_slices            slices = way_slices(e, way);
    pkv_error             err;
    int64_t               start = cli_now_ns();
    pkv_status            status = pkv_update_layers(e->caches, e->sources, NULL, e->o->num_layers,
                                                     &slices, 1, &opts, &err);
    *ns = cli_now_ns() - start;
    return status == PKV_OK ? CLI_OK : cli_fail_pkv(&err, "update");
}

/* The step as a point of the series.  The result's evictions are those of the steps before. */
static int add_to_series(engine *e, const int64_t ns[N_WAYS])
{
    const schedule *s = &e->schedule;
    pkv_pool_counts pages;
    int             status = ledger_counts(&s->ledger, &pages);
    if (status != CLI_OK) {
        return status;
    }
    series_point point = {.steps = 1, .tokens = s->n_tokens,
                          .slices_static = e->counts[WAY_STATIC],
                          .slices_exact = e->counts[WAY_EXACT],
                          .slices_merged = e->counts[WAY_MERGED],
                          .update_ns_static = ns[WAY_STATIC], .update_ns_exact = ns[WAY_EXACT],
                          .update_ns_merged = ns[WAY_MERGED], .running = s->n_running,
                          .pages_used = s->ledger.n_held, .pages_shared = pages.n_shared,
                          .pages_cached = pages.n_cached,
                          .evictions = pages.n_evictions - e->result->evictions};
    if (!s->has_prefill) {
        point.decode_only_steps = point.steps;
        point.decode_only_tokens = point.tokens;
        point.decode_only_slices_static = point.slices_static;
        point.decode_only_slices_exact = point.slices_exact;
        point.decode_only_slices_merged = point.slices_merged;
        point.decode_only_update_ns_static = point.update_ns_static;
        point.decode_only_update_ns_exact = point.update_ns_exact;
        point.decode_only_update_ns_merged = point.update_ns_merged;
    }
    series_add(&e->result->series, &point);
    e->result->evictions = pages.n_evictions;
    return CLI_OK;
}

static int count_step(engine *e, const int64_t ns[N_WAYS])
{
    const schedule *s = &e->schedule;
    replay_kind    *kind = &e->result->kind[s->has_prefill ? KIND_PREFILL : KIND_DECODE];
    kind->steps++;
    kind->tokens += s->n_tokens;
    for (int way = 0; way < N_WAYS; way++) {
        kind->slices[way] += e->counts[way];
        kind->update_ns[way] += ns[way];
        e->result->histogram[way][e->counts[way]]++;
    }
    return e->result->series.points != NULL ? add_to_series(e, ns) : CLI_OK;
}

/*
 * Writes the step three times.  Each way carries its own stamp and the order
 * rotates, so the one that wrote last, which the check will look for, is each
 * way in turn: what one way leaves out, another cannot hide.
 */
static int write_step(engine *e)
{
    int64_t ns[N_WAYS] = {0};
    int     stamp = 0;
    int     status = plan_step(e);
    if (status != CLI_OK) {
        return status;
    }
    list_tokens(e);
    if (e->o->verify) {
        engine_check_targets(e);
        engine_check_counts(e);
    }
    for (int i = 0; status == CLI_OK && i < N_WAYS; i++) {
        int way = (int)((e->step + i) % N_WAYS);
        if (e->o->verify) {
            make_source(e, i == 0, stamp, way + 1);
            engine_cuda_put_rows(e);
            stamp = way + 1;
        }
        status = write_way(e, way, &ns[way]);
    }
    for (int64_t t = 0; t < e->schedule.n_tokens; t++) {
        e->stamps[e->tokens[t].slot] = (unsigned char)stamp;
    }
    e->step++;
    int counted = count_step(e, ns);
    return status != CLI_OK ? status : counted;
}

/* Counts the step's tokens and lets go of requests that are done. */
static int end_requests(engine *e)
{
    int status = schedule_commit(&e->schedule);
    for (int64_t row = e->schedule.n_rows - 1; status == CLI_OK && row >= 0; row--) {
        if (row < e->schedule.n_rows && schedule_row_done(&e->schedule, row)) {
            status = schedule_end_row(&e->schedule, row);
        }
    }
    return status;
}

/* ---- the run --------------------------------------------------------------------------- */

/* A line on a terminal, now and then; nothing in a pipe. */
static void show_progress(const engine *e, bool last)
{
    const schedule *s = &e->schedule;
    fprintf(stderr, "\r\033[K");
    if (!last) {
        fprintf(stderr, "step %" PRId64 "  requests %" PRId64 "/%" PRId64 "  running %" PRId64
                        "  pages %" PRId64 "/%" PRId64,
                e->step, s->n_finished, e->trace->n_requests, s->n_running,
                s->ledger.n_held, s->limits.num_pages);
    }
    fflush(stderr);
}

static int run_steps(engine *e)
{
    const int64_t interval_ns = 100000000;
    const bool    progress = !e->o->quiet && cli_is_terminal(stderr);
    int64_t       shown = cli_now_ns();
    bool          more = true;
    int           status = schedule_step(&e->schedule, &more);
    while (status == CLI_OK && more) {
        status = write_step(e);
        if (status == CLI_OK) {
            status = end_requests(e);
        }
        if (status == CLI_OK) {
            status = schedule_step(&e->schedule, &more);
        }
        if (progress && cli_now_ns() - shown > interval_ns) {
            shown = cli_now_ns();
            show_progress(e, false);
        }
    }
    if (progress) {
        show_progress(e, true);
    }
    return status;
}

/* The counts of the run; a pool that is not as it should be is a difference. */
static int collect(engine *e)
{
    replay_result  *r = e->result;
    const ledger   *p = &e->schedule.ledger;
    pkv_pool_counts counts;
    int             status = ledger_counts(p, &counts);
    if (status == CLI_OK && !e->reported) {
        status = ledger_check(p, &counts);
    }
    r->requests = e->trace->n_requests;
    r->requests_finished = e->schedule.n_finished;
    r->prompt_tokens = e->schedule.prompt_tokens;
    r->prefix_hit_tokens = e->schedule.prefix_hit_tokens;
    r->recomputed_tokens = e->schedule.recomputed_tokens;
    r->preemptions = e->schedule.n_preemptions;
    r->pages_cached = counts.n_cached;
    r->pages_peak = p->n_held_peak;
    r->pages_leaked = counts.n_used;
    r->evictions = counts.n_evictions;
    r->cow_pages = p->n_copies;
    r->largest_extent_pages = p->least_extent;
    return status;
}

int replay_run(const replay_options *o, const trace *t, replay_result *out)
{
    *out = (replay_result){0};
    engine  e = {.o = o, .trace = t, .result = out};
    int64_t start = cli_now_ns();
    int     status = engine_set_up(&e);
    if (status == CLI_OK) {
        status = engine_touch_memory(&e);
        status = status != CLI_OK ? status : run_steps(&e);
        if (status == CLI_OK && o->verify) {
            engine_check_rest(&e);
        }
        status = status != CLI_OK ? status : engine_cuda_finish(&e);
        status = status != CLI_OK ? status : collect(&e);
    }
    engine_tear_down(&e);
    out->elapsed_ns = cli_now_ns() - start;
    return status;
}

void replay_result_free(replay_result *r)
{
    for (int way = 0; way < N_WAYS; way++) {
        free(r->histogram[way]);
    }
    series_free(&r->series);
}
