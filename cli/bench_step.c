/*
 * A step is drawn as an engine would hand it over, requests with block tables,
 * and its slots are kept apart from the plan, so that they can check it.
 */
#include "bench_step.h"

#include <stdlib.h>

#include "bench_run.h"

enum { MAX_STRETCH_BYTES = 256 * 1024 };

int64_t bench_pattern_tokens(const bench_pattern *pattern)
{
    return pattern->prefill_tokens[0] + pattern->prefill_tokens[1] + pattern->n_decodes;
}

/* ---- runs of slots ------------------------------------------------------- */

/* Whole pages, but for single tokens. */
static int64_t run_tokens(const bench_pattern *pattern, int64_t page_size)
{
    int64_t tokens = pattern->run_tokens > 0 ? pattern->run_tokens : page_size;
    return tokens == 1 ? 1 : (tokens + page_size - 1) / page_size * page_size;
}

int64_t bench_pattern_slots(const bench_pattern *pattern, int64_t page_size)
{
    int64_t tokens_a_run = run_tokens(pattern, page_size);
    int64_t n_runs = pattern->n_decodes;

    for (int i = 0; i < 2; i++) {
        n_runs += (pattern->prefill_tokens[i] + tokens_a_run - 1) / tokens_a_run;
    }
    return n_runs * tokens_a_run;
}

int bench_runs_open(bench_runs *runs, const bench_pattern *pattern, const bench_view *view)
{
    int64_t n_slots = view->cache.n_pages * view->cache.page_size;

    *runs = (bench_runs){.run_tokens = run_tokens(pattern, view->cache.page_size),
                         .random = 2463534242U};
    runs->n_runs = n_slots / runs->run_tokens;
    runs->order = malloc((size_t)runs->n_runs * sizeof runs->order[0]);
    if (runs->order == NULL) {
        return cli_no_memory("bench");
    }
    for (int64_t i = 0; i < runs->n_runs; i++) {
        int64_t other = bench_random_below(&runs->random, i + 1);
        runs->order[i] = runs->order[other];
        runs->order[other] = (int32_t)i;
    }
    return CLI_OK;
}

void bench_runs_close(bench_runs *runs)
{
    free(runs->order);
    *runs = (bench_runs){0};
}

/* First slot of the next run. */
static int64_t next_run(bench_runs *runs)
{
    if (runs->next == runs->n_runs) {
        runs->next = 0;
    }
    return runs->order[runs->next++] * runs->run_tokens;
}

/* ---- steps --------------------------------------------------------------- */

int bench_step_open(bench_step *step, const bench_pattern *pattern, const bench_view *view)
{
    int64_t tokens = bench_pattern_tokens(pattern);
    /* No request has more pages than tokens, and no plan more slices. */
    size_t  n_numbers = (size_t)(4 * (tokens + 1) + 3 * tokens);

    *step = (bench_step){.n_tokens = tokens};
    step->max_rows = tokens * view->n_planes * view->rows_a_plane;
    step->slots = malloc((size_t)tokens * sizeof step->slots[0]);
    step->rows = malloc((size_t)step->max_rows * sizeof step->rows[0]);
    step->numbers = calloc(n_numbers, sizeof step->numbers[0]);
    if (step->slots == NULL || step->rows == NULL || step->numbers == NULL) {
        return cli_no_memory("bench");
    }
    step->batch = (pkv_batch){
        .struct_size = sizeof(pkv_batch),
        .computed = step->numbers,
        .scheduled = step->numbers + (tokens + 1),
        .indptr = step->numbers + 2 * (tokens + 1),
        .indices = step->numbers + 3 * (tokens + 1),
        .page_size = view->cache.page_size,
        .n_pages = view->cache.n_pages,
    };
    pkv_status status = pkv_slices_from_array(&step->slices, sizeof step->slices,
                                              step->numbers + 4 * (tokens + 1), tokens,
                                              &step->n_slices);
    return status == PKV_OK ? CLI_OK : cli_fail(CLI_USAGE, "bench: no such plan");
}

void bench_step_close(bench_step *step)
{
    free(step->slots);
    free(step->rows);
    free(step->numbers);
    *step = (bench_step){0};
}

/* Appends a request whose tokens take the slots [first_token, first_token + n). */
static void add_request(bench_step *step, int64_t first_token, int64_t n, int64_t *n_pages)
{
    int64_t        page_size = step->batch.page_size;
    const int64_t *slots = step->slots + first_token;
    int64_t        r = step->batch.n_requests++;
    int32_t       *numbers = step->numbers;
    int64_t        stride = step->n_tokens + 1;

    numbers[r] = (int32_t)(slots[0] % page_size);
    numbers[stride + r] = (int32_t)n;
    for (int64_t t = 0; t < n; t++) {
        if (t == 0 || slots[t] % page_size == 0) {
            numbers[3 * stride + (*n_pages)++] = (int32_t)(slots[t] / page_size);
        }
    }
    numbers[2 * stride + r + 1] = (int32_t)*n_pages;
}

static void draw_requests(bench_step *step, const bench_pattern *pattern, bench_runs *runs)
{
    int64_t token = 0;
    int64_t n_pages = 0;
    int64_t run = 0;

    step->batch.n_requests = 0;
    for (int i = 0; i < 2; i++) {
        int64_t n = pattern->prefill_tokens[i];
        for (int64_t t = 0; t < n; t++) {
            run = t % runs->run_tokens == 0 ? next_run(runs) : run;
            step->slots[token + t] = run + t % runs->run_tokens;
        }
        if (n > 0) {
            add_request(step, token, n, &n_pages);
        }
        token += n;
    }
    for (; token < step->n_tokens; token++) {
        step->slots[token] =
            next_run(runs) + bench_random_below(&runs->random, runs->run_tokens);
        add_request(step, token, 1, &n_pages);
    }
}

static void add_row(bench_step *step, const bench_view *view, int64_t plane, int64_t row,
                    int64_t slot, int64_t token, int64_t bytes)
{
    step->rows[step->n_rows++] = (limit_row){
        .dst = bench_slot_row(view, plane, slot, row),
        .src = bench_source_row(view, &step->source, plane, token, row),
        .bytes = (size_t)bytes,
    };
}

/* Tokens [token, token + n) of one slice, where rows lie in the cache as in the source. */
static void add_stretches(bench_step *step, const bench_view *view, int64_t slot, int64_t token,
                          int64_t n)
{
    for (int64_t plane = 0; plane < view->n_planes; plane++) {
        add_row(step, view, plane, 0, slot, token, n * view->row_bytes);
    }
}

/* The same where they do not: a row for each token and head. */
static void add_heads(bench_step *step, const bench_view *view, int64_t slot, int64_t token,
                      int64_t n)
{
    for (int64_t plane = 0; plane < view->n_planes; plane++) {
        for (int64_t k = 0; k < n * view->rows_a_plane; k++) {
            int64_t t = k / view->rows_a_plane;
            add_row(step, view, plane, k % view->rows_a_plane, slot + t, token + t,
                    view->row_bytes);
        }
    }
}

static void list_rows(bench_step *step, const bench_view *view)
{
    /* Long slices are cut, so that threads can share them. */
    int64_t most = view->row_bytes < MAX_STRETCH_BYTES ? MAX_STRETCH_BYTES / view->row_bytes : 1;

    step->n_rows = 0;
    for (int64_t i = 0; i < step->n_slices; i++) {
        int64_t slot = step->slices.kv_cache_start[i];
        int64_t token = step->slices.new_kv_start[i];
        int64_t left = step->slices.slice_len[i];
        while (left > 0) {
            int64_t n = left < most ? left : most;
            if (view->rows_a_plane == 1) {
                add_stretches(step, view, slot, token, n);
            } else {
                add_heads(step, view, slot, token, n);
            }
            slot += n;
            token += n;
            left -= n;
        }
    }
}

int bench_step_draw(bench_step *step, const bench_pattern *pattern, const bench_view *view,
                    bench_runs *runs, bool merged)
{
    pkv_error err;

    draw_requests(step, pattern, runs);
    int64_t max_slice_tokens = merged ? 0 : view->cache.page_size;
    if (pkv_plan(&step->batch, max_slice_tokens, &step->slices, NULL, &err) != PKV_OK) {
        return cli_fail_pkv(&err, "bench: pkv_plan");
    }
    list_rows(step, view);
    return CLI_OK;
}

static void touch(const void *data, size_t bytes)
{
    const volatile char *at = data;

    for (size_t i = 0; i < bytes; i += 64) {
        (void)at[i];
    }
}

void bench_step_touch(const bench_step *step)
{
    size_t n_slices = (size_t)step->n_slices;

    touch(step, sizeof *step);
    touch(step->slices.num_slices, sizeof *step->slices.num_slices);
    touch(step->slices.kv_cache_start, n_slices * sizeof *step->slices.kv_cache_start);
    touch(step->slices.new_kv_start, n_slices * sizeof *step->slices.new_kv_start);
    touch(step->slices.slice_len, n_slices * sizeof *step->slices.slice_len);
    touch(step->slots, (size_t)step->n_tokens * sizeof *step->slots);
    touch(step->rows, (size_t)step->n_rows * sizeof *step->rows);
}
