/* Graphs of calls, their rounds, and the rows that come of them: see bench_cuda.h. */
#include "bench_cuda.h"

#include <string.h>

bench_row cuda_row(const cuda_item *item)
{
    bench_row row = bench_row_null;
    row.backend = "cuda";
    row.case_name = item->case_name;
    row.pattern = item->pattern;
    row.source = item->is_warm ? "warm" : "cold";
    return row;
}

cuda_contender *cuda_add(cuda_work *w, const char *impl, int kind, int64_t moved_bytes)
{
    cuda_contender *c = &w->contenders[w->n_contenders++];
    *c = (cuda_contender){.impl = impl, .launch = "graph", .kind = kind, .calls = -1,
                          .unpadded = -1, .moved_bytes = moved_bytes, .num_slices = -1};
    return c;
}

/* Copies end in the cache, in turn, as the calls do. */
int cuda_put_copy(const cuda_bench *b, int64_t moved_bytes, int64_t node)
{
    const int64_t n_bytes = moved_bytes / 2;
    int           code = gpu_copy(b->device.gpu, cuda_turn(b->cache, b->cache_bytes, n_bytes, node),
                                  cuda_turn(b->source, b->source_bytes, n_bytes, node),
                                  (size_t)n_bytes, b->device.stream);
    return device_status(&b->device, code, "copy");
}

int cuda_check_status(cuda_bench *b, const bench_row *row)
{
    int32_t word = 0;
    int     status = cuda_read(b, &word, b->numbers + CUDA_AT_STATUS, sizeof word);
    if (status == CLI_OK && word != 0) {
        status = cli_fail(CLI_DIFFERENCE, "bench %s %s: the kernels' status word is 0x%08x",
                          row->case_name, row->pattern, (unsigned)word);
    }
    return status;
}

/* ---- graphs -------------------------------------------------------------- */

static int put_node(cuda_work *w, const cuda_contender *c, int64_t node)
{
    node = w->is_warm ? 0 : node;
    return c->kind == CUDA_COPY || c->kind == CUDA_LARGE
               ? cuda_put_copy(w->bench, c->moved_bytes, node)
               : w->put(w->ctx, c->kind, node);
}

static int put_nodes(cuda_work *w, const cuda_contender *c)
{
    int status = CLI_OK;
    for (int64_t node = 0; node < w->bench->n_nodes && status == CLI_OK; node++) {
        status = put_node(w, c, node);
    }
    return status;
}

static int capture(cuda_work *w, cuda_contender *c)
{
    cli_device *d = &w->bench->device;
    int         status = device_status(d, gpu_capture_begin(d->gpu, d->stream), "capture");
    if (status != CLI_OK) {
        return status;
    }
    status = put_nodes(w, c);
    int code = gpu_capture_end(d->gpu, d->stream, &c->graph);
    return status != CLI_OK ? status : device_status(d, code, "capture");
}

/* ---- rounds -------------------------------------------------------------- */

/*
 * What a call finds in the L2 cache: nothing, or what it left there itself.  The device is
 * busy with that while the host puts event and graph behind it: no launch is in the time.
 */
static int prepare(void *ctx, int i)
{
    cuda_work      *w = ctx;
    cuda_contender *c = &w->contenders[i];
    cli_device     *d = &w->bench->device;
    if (!c->has_run) {
        /* Nobody's bytes of before must pass the check as its own. */
        int status = cuda_fill(w->bench, w->bench->cache, w->bench->cache_bytes);
        if (status != CLI_OK) {
            return status;
        }
        c->has_run = true;
    }
    int code = gpu_fill(d->gpu, w->bench->flushed, (unsigned char)i,
                        (size_t)w->bench->flushed_bytes, d->stream);
    return code != 0 || !w->is_warm ? device_status(d, code, "the L2 cache") : put_node(w, c, 0);
}

static int run(void *ctx, int i)
{
    cuda_work      *w = ctx;
    cuda_contender *c = &w->contenders[i];
    cli_device     *d = &w->bench->device;
    double          ns = 0;
    int             status = device_status(d, device_timer_start(d), "event");
    if (status == CLI_OK && c->graph != NULL) {
        status = device_status(d, gpu_graph_launch(d->gpu, c->graph, d->stream), "graph");
    } else if (status == CLI_OK) {
        status = put_nodes(w, c);
    }
    if (status == CLI_OK) {
        status = device_status(d, device_timer_stop(d, &ns), "event");
    }
    w->job.own_ns = ns / (double)w->bench->n_nodes;
    return status;
}

static int check(void *ctx, int i)
{
    cuda_work *w = ctx;
    const int  kind = w->contenders[i].kind;
    if (kind == CUDA_COPY || kind == CUDA_LARGE || kind == CUDA_NO_COUNT) {
        return CLI_OK;
    }
    int status = w->check(w->ctx, kind);
    return status != CLI_OK ? status : cuda_check_status(w->bench, &w->row);
}

/* ---- rows ---------------------------------------------------------------- */

static int find(const cuda_work *w, int kind)
{
    for (int i = 0; i < w->n_contenders; i++) {
        if (w->contenders[i].kind == kind) {
            return i;
        }
    }
    return -1;
}

static double median(const bench_job *job, int i)
{
    return bench_quantile(job->ns[i], job->n_rounds, 0.5);
}

/* How many times as fast as contender `other`, or a null; per byte if asked. */
static double over(const cuda_work *w, int i, int other, bool per_byte)
{
    if (other < 0 || other == i) {
        return -1;
    }
    const double bytes = (double)w->contenders[i].moved_bytes;
    const double other_bytes = (double)w->contenders[other].moved_bytes;
    return bench_ratio(&w->job, other, i) * (per_byte ? bytes / other_bytes : 1);
}

static void fill_times(const cuda_work *w, int i, bench_row *row)
{
    const bench_job *job = &w->job;
    const double     bytes = (double)w->contenders[i].moved_bytes;
    row->rounds = job->n_rounds;
    row->ns_median = median(job, i);
    row->ns_p25 = bench_quantile(job->ns[i], job->n_rounds, 0.25);
    row->ns_p75 = bench_quantile(job->ns[i], job->n_rounds, 0.75);
    row->bytes_per_s = bytes > 0 ? bytes * 1e9 / row->ns_median : -1;
    row->ns_per_slice = row->num_slices > 0 ? row->ns_median / (double)row->num_slices : -1;
}

static void fill_fractions(const cuda_work *w, int i, bench_row *row)
{
    const cuda_contender *c = &w->contenders[i];
    const int             limit = find(w, CUDA_COPY), floor = find(w, CUDA_NO_COUNT);
    if (c->kind == CUDA_COPY || c->kind == CUDA_LARGE || c->kind == CUDA_NO_COUNT) {
        return;
    }
    if (limit >= 0 && c->moved_bytes > 0) {
        row->limit_way = "memcpy";
        row->limit_bytes_per_s =
            (double)w->contenders[limit].moved_bytes * 1e9 / median(&w->job, limit);
        row->limit_fraction = over(w, i, limit, true);
        row->large_copy_fraction = over(w, i, find(w, CUDA_LARGE), true);
    }
    row->floor_ns = floor >= 0 ? median(&w->job, floor) : -1;
    row->calls_fraction = over(w, i, c->calls, false);
    row->unpadded_fraction = over(w, i, c->unpadded, false);
}

static int add_rows(const cuda_work *w, bench_results *results)
{
    int status = CLI_OK;
    for (int i = 0; i < w->n_contenders && status == CLI_OK; i++) {
        const cuda_contender *c = &w->contenders[i];
        bench_row             row = w->row;
        row.device = results->device;
        row.nodes = w->bench->n_nodes;
        row.impl = c->impl;
        row.launch = c->launch;
        row.plan = c->plan != NULL ? c->plan : row.plan;
        row.num_slices = c->num_slices >= 0 ? c->num_slices : row.num_slices;
        if (c->kind == CUDA_UNPADDED) {
            row.padded_num_slices = row.num_slices;
        } else if (c->kind == CUDA_NO_COUNT) {
            row.num_slices = 0;
        }
        fill_times(w, i, &row);
        fill_fractions(w, i, &row);
        status = bench_add(results, &row);
    }
    return status;
}

int cuda_work_run(cuda_work *w, int64_t end_ns, bench_results *results)
{
    const bench_options *o = w->bench->options;
    int                  status = CLI_OK;
    for (int i = 0; i < w->n_contenders && status == CLI_OK; i++) {
        if (strcmp(w->contenders[i].launch, "graph") == 0) {
            status = capture(w, &w->contenders[i]);
        }
    }
    if (status == CLI_OK) {
        w->job = (bench_job){.ctx = w, .n_contenders = w->n_contenders, .prepare = prepare,
                             .run = run, .check = check};
        status = bench_run(&w->job, o->rounds, end_ns);
    }
    status = status != CLI_OK ? status : add_rows(w, results);
    for (int i = 0; i < w->n_contenders; i++) {
        if (w->contenders[i].graph != NULL) {
            gpu_graph_destroy(w->bench->device.gpu, w->contenders[i].graph);
            w->contenders[i].graph = NULL;
        }
    }
    return status;
}
