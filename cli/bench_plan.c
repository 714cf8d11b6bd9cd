/*
 * The case "plan": how long it takes to plan a step, by number of requests.
 * Tables are 2-D, a row a request, and on average every other page follows the
 * one before it, so that a merged plan has something to join.
 */
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "bench_run.h"

#if defined(__x86_64__)
#include <emmintrin.h>
#define HAVE_FLUSH 1
#else
#define HAVE_FLUSH 0
#endif

enum {
    MAX_REQUESTS = 4096,
    WIDTH = 1024,        /* pages of a request's row */
    TIMED_REQUESTS = 256 /* small plans are timed so many requests at a time */
};

enum { EXACT = 0, MERGED = 1, N_PLANS = 2 };

typedef struct plan_pattern {
    const char *name;
    int32_t     tokens;       /* of an ordinary request */
    int32_t     other_tokens; /* of every other_every-th one */
    int64_t     other_every;
} plan_pattern;

static const plan_pattern patterns[] = {
    {"decode", 1, 1, 1},
    {"prefill", 128, 128, 1},
    {"mixed", 1, 512, 16},
};

typedef struct plan_case {
    const plan_pattern *pattern;
    int64_t             n_requests; /* of one plan */
    int64_t             n_calls;    /* plans of one run, each over requests of its own */
    int64_t             page_size;
    bool                cold;
    uint64_t            random;
    int32_t            *table;     /* [MAX_REQUESTS, WIDTH] */
    int32_t            *computed;  /* [MAX_REQUESTS] */
    int32_t            *scheduled; /* [MAX_REQUESTS] */
    int32_t            *columns;   /* [3, capacity] */
    int64_t             capacity;
    int32_t             n_slices[N_PLANS]; /* of the last plan */
} plan_case;

static pkv_batch batch_of_call(const plan_case *c, int64_t call)
{
    int64_t first = call * c->n_requests;
    return (pkv_batch){
        .struct_size = sizeof(pkv_batch),
        .n_requests = c->n_requests,
        .computed = c->computed + first,
        .scheduled = c->scheduled + first,
        .block_table = c->table + first * WIDTH,
        .block_table_stride = WIDTH,
        .block_table_width = WIDTH,
        .page_size = c->page_size,
    };
}

static int plan_call(plan_case *c, int plan, int64_t call)
{
    int32_t    n_slices = 0;
    pkv_batch  batch = batch_of_call(c, call);
    pkv_slices out;
    pkv_error  err;

    pkv_status status = pkv_slices_from_array(&out, sizeof out, c->columns, c->capacity, &n_slices);
    if (status == PKV_OK) {
        status = pkv_plan(&batch, plan == EXACT ? c->page_size : 0, &out, NULL, &err);
    }
    c->n_slices[plan] = n_slices;
    return status == PKV_OK ? CLI_OK : cli_fail_pkv(&err, "bench plan");
}

/* Drops a line from the processor's caches, or brings it there. */
static int32_t visit(const int32_t *at, bool drop)
{
#if HAVE_FLUSH
    if (drop) {
        _mm_clflush(at);
        return 0;
    }
#endif
    (void)drop;
    return *at & 1;
}

/* Makes all that a plan reads cold or warm. */
static int32_t visit_inputs(const plan_case *c)
{
    int64_t n = c->n_calls * c->n_requests;
    int32_t sum = 0;

    for (int64_t r = 0; r < n; r++) {
        int64_t first = c->computed[r] / c->page_size;
        int64_t last = (c->computed[r] + c->scheduled[r] - 1) / c->page_size;
        for (int64_t i = first; i <= last; i++) {
            sum += visit(&c->table[r * WIDTH + i], c->cold);
        }
    }
    for (int64_t r = 0; r < n; r++) {
        sum += visit(&c->computed[r], c->cold);
        sum += visit(&c->scheduled[r], c->cold);
    }
    return sum;
}

/* Requests stand elsewhere in their rows each time; how many pages they touch stays. */
static int prepare(void *ctx, int plan)
{
    plan_case       *c = ctx;
    volatile int32_t used;

    (void)plan;
    for (int64_t r = 0; r < c->n_calls * c->n_requests; r++) {
        const plan_pattern *p = c->pattern;
        int64_t in_call = r % c->n_requests;
        c->scheduled[r] = in_call % p->other_every == 0 ? p->other_tokens : p->tokens;
        int64_t pages = (c->scheduled[r] - 1) / c->page_size + 2;
        int64_t first = bench_random_below(&c->random, WIDTH - pages + 1);
        c->computed[r] = (int32_t)(first * c->page_size + in_call % c->page_size);
    }
    used = visit_inputs(c);
    (void)used;
#if HAVE_FLUSH
    _mm_mfence();
#endif
    return CLI_OK;
}

static int run(void *ctx, int plan)
{
    plan_case *c = ctx;
    int        status = CLI_OK;

    for (int64_t call = 0; call < c->n_calls && status == CLI_OK; call++) {
        status = plan_call(c, plan, call);
    }
    return status;
}

/* Walks the tokens of the last call and the slices side by side. */
static int check(void *ctx, int plan)
{
    const plan_case *c = ctx;
    pkv_batch        b = batch_of_call(c, c->n_calls - 1);
    const int32_t   *start = c->columns;
    const int32_t   *row = c->columns + c->capacity;
    const int32_t   *len = c->columns + 2 * c->capacity;
    int64_t          slice = 0;
    int64_t          inside = 0;
    int64_t          token = 0;
    bool             same = true;

    for (int64_t r = 0; r < b.n_requests; r++) {
        for (int64_t t = b.computed[r]; t < (int64_t)b.computed[r] + b.scheduled[r]; t++, token++) {
            int64_t page = b.block_table[r * WIDTH + t / c->page_size];
            int64_t slot = page * c->page_size + t % c->page_size;
            same = same && slice < c->n_slices[plan] && row[slice] + inside == token &&
                   start[slice] + inside == slot;
            if (same && ++inside == len[slice]) {
                slice++;
                inside = 0;
            }
        }
    }
    if (!same || slice != c->n_slices[plan]) {
        return cli_fail(CLI_DIFFERENCE, "bench plan, %s: a wrong slice, number %lld",
                        c->pattern->name, (long long)slice);
    }
    return CLI_OK;
}

static int add_rows(const plan_case *c, const bench_job *job, bench_results *results)
{
    int64_t tokens = 0;

    for (int64_t r = 0; r < c->n_requests; r++) {
        tokens += c->scheduled[r];
    }
    for (int plan = 0; plan < N_PLANS; plan++) {
        double    calls = (double)c->n_calls;
        bench_row row = bench_row_null;
        row.impl = "pagedkv";
        row.case_name = "plan";
        row.pattern = c->pattern->name;
        row.plan = plan == EXACT ? "exact" : "merged";
        row.source = c->cold ? "cold" : "warm";
        row.page_size = c->page_size;
        row.requests = c->n_requests;
        row.tokens = tokens;
        row.num_slices = c->n_slices[plan];
        row.threads = 1;
        row.rounds = job->n_rounds;
        row.ns_median = bench_quantile(job->ns[plan], job->n_rounds, 0.5) / calls;
        row.ns_p25 = bench_quantile(job->ns[plan], job->n_rounds, 0.25) / calls;
        row.ns_p75 = bench_quantile(job->ns[plan], job->n_rounds, 0.75) / calls;
        /* Both plans walk the same pages: the exact plan's count is the work done. */
        row.ns_per_slice = row.ns_median / (double)c->n_slices[EXACT];
        int status = bench_add(results, &row);
        if (status != CLI_OK) {
            return status;
        }
    }
    return CLI_OK;
}

static int run_case(plan_case *c, const bench_options *options, int64_t end_ns,
                    bench_results *results)
{
    static const char *const tables[] = {"warm", "cold"};
    bench_job *job = calloc(1, sizeof *job);
    char       text[128];

    if (job == NULL) {
        return cli_no_memory("the times of bench plan");
    }
    snprintf(text, sizeof text, "plan %s, %lld requests, %s tables", c->pattern->name,
             (long long)c->n_requests, tables[c->cold]);
    bench_progress(options, text);
    *job = (bench_job){.ctx = c, .n_contenders = N_PLANS, .prepare = prepare, .run = run,
                       .check = check};
    int status = bench_run(job, options->rounds, end_ns);
    if (status == CLI_OK) {
        status = add_rows(c, job, results);
    }
    free(job);
    return status;
}

static void fill_table(plan_case *c)
{
    int32_t n_pages = (int32_t)(INT32_MAX / c->page_size);

    for (int64_t i = 0; i < (int64_t)MAX_REQUESTS * WIDTH; i++) {
        bool follows = i % WIDTH > 0 && (bench_random(&c->random) >> 63) != 0;
        if (follows && c->table[i - 1] + 1 < n_pages) {
            c->table[i] = c->table[i - 1] + 1;
        } else {
            c->table[i] = (int32_t)bench_random_below(&c->random, n_pages);
        }
    }
}

static int open_case(plan_case *c, int64_t page_size)
{
    *c = (plan_case){.page_size = page_size, .random = 9173};
    /* A prefill of 128 tokens is the most that every request has. */
    c->capacity = MAX_REQUESTS * (128 / page_size + 2);
    c->table = malloc(sizeof(int32_t) * MAX_REQUESTS * WIDTH);
    c->computed = malloc(sizeof(int32_t) * MAX_REQUESTS);
    c->scheduled = malloc(sizeof(int32_t) * MAX_REQUESTS);
    c->columns = malloc(sizeof(int32_t) * 3 * (size_t)c->capacity);
    if (c->table == NULL || c->computed == NULL || c->scheduled == NULL || c->columns == NULL) {
        return cli_no_memory("bench plan");
    }
    /* Touched before the clock starts. */
    memset(c->columns, 0, sizeof(int32_t) * 3 * (size_t)c->capacity);
    fill_table(c);
    return CLI_OK;
}

static void close_case(plan_case *c)
{
    free(c->table);
    free(c->computed);
    free(c->scheduled);
    free(c->columns);
}

static int run_pattern(plan_case *c, const bench_options *options, int64_t end_ns,
                       bench_results *results)
{
    static const int64_t counts[] = {1, 16, 256, MAX_REQUESTS};
    unsigned sources = options->sources != 0 ? options->sources : BENCH_COLD | BENCH_WARM;
    int      status = CLI_OK;

    for (size_t i = 0; i < sizeof counts / sizeof counts[0]; i++) {
        c->n_requests = counts[i];
        c->n_calls = counts[i] < TIMED_REQUESTS ? TIMED_REQUESTS / counts[i] : 1;
        for (unsigned source = BENCH_COLD; source <= BENCH_WARM && status == CLI_OK; source <<= 1) {
            c->cold = source == BENCH_COLD;
            if ((sources & source) != 0 && (HAVE_FLUSH || !c->cold)) {
                status = run_case(c, options, end_ns, results);
            }
        }
    }
    return status;
}

int bench_plan(const bench_options *options, int64_t deadline_ns, bench_results *results)
{
    size_t    n_patterns = sizeof patterns / sizeof patterns[0];
    int64_t   now = cli_now_ns();
    plan_case c;

    int status = open_case(&c, options->page_size > 0 ? options->page_size : 16);
    for (size_t i = 0; i < n_patterns && status == CLI_OK; i++) {
        c.pattern = &patterns[i];
        if (options->pattern == NULL || strcmp(options->pattern, patterns[i].name) == 0) {
            int64_t end_ns = now + (deadline_ns - now) * (int64_t)(i + 1) / (int64_t)n_patterns;
            status = run_pattern(&c, options, end_ns, results);
        }
    }
    close_case(&c);
    return status;
}
