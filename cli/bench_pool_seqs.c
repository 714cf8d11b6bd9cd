/* The case "pool" with sequences: growing them, reserving a step, fork, trim and close. */
#include <stdlib.h>
#include <string.h>

#include "bench_memory.h"
#include "bench_pool.h"

/* ---- growing, on the pool alone ------------------------------------------------------- */

enum {
    MAX_GROWN = 2048,     /* pages of a sequence, which then ends in any case */
    PROMPT_LEAST = 16,    /* pages of a new one, up to PROMPT_MOST */
    PROMPT_MOST = 255,
    LIFE_ROUNDS = 150,    /* a sequence ends once in so many rounds */
    WARM_ROUNDS = 400,    /* until births and deaths are even */
    TIMED_ROUNDS = 20,    /* of one run */
    ROOM = 64
};

typedef struct grow_case {
    const bench_pool_step *step;
    pkv_memory             memory;
    pkv_pool              *pool;
    int32_t               *pages;  /* [n, MAX_GROWN] */
    int32_t               *n_pages; /* [n] */
    int64_t                n_grown; /* all that were timed, and those behind the last page */
    int64_t                n_adjacent;
    bench_job             *job;
    uint64_t               random;
} grow_case;

static int start_sequence(grow_case *c, int64_t i)
{
    int64_t   n = PROMPT_LEAST + bench_random_below(&c->random, PROMPT_MOST - PROMPT_LEAST + 1);
    pkv_error err;

    if (pkv_pool_alloc(c->pool, n, -1, ROOM, c->pages + i * MAX_GROWN, &err) != PKV_OK) {
        return cli_fail_pkv(&err, "bench pool grow");
    }
    c->n_pages[i] = (int32_t)n;
    return CLI_OK;
}

/* Some sequences end, and others start in their places. */
static int renew(grow_case *c)
{
    pkv_error err;
    int       status = CLI_OK;

    for (int64_t i = 0; i < c->step->n && status == CLI_OK; i++) {
        if (c->n_pages[i] < MAX_GROWN && bench_random_below(&c->random, LIFE_ROUNDS) != 0) {
            continue;
        }
        if (pkv_pool_free(c->pool, c->pages + i * MAX_GROWN, c->n_pages[i], &err) != PKV_OK) {
            return cli_fail_pkv(&err, "bench pool grow");
        }
        status = start_sequence(c, i);
    }
    return status;
}

/* One page more for each. */
static int grow_round(grow_case *c)
{
    pkv_error err;

    for (int64_t i = 0; i < c->step->n; i++) {
        int32_t *next = c->pages + i * MAX_GROWN + c->n_pages[i];
        if (pkv_pool_alloc(c->pool, 1, next[-1], ROOM, next, &err) != PKV_OK) {
            return cli_fail_pkv(&err, "bench pool grow");
        }
        c->n_adjacent += *next == next[-1] + 1;
        c->n_pages[i]++;
    }
    c->n_grown += c->step->n;
    return CLI_OK;
}

static int prepare_nothing(void *ctx, int i)
{
    (void)ctx;
    (void)i;
    return CLI_OK;
}

static int run_grow(void *ctx, int i)
{
    grow_case *c = ctx;
    double     ns = 0;

    (void)i;
    for (int round = 0; round < TIMED_ROUNDS; round++) {
        int status = renew(c);
        int64_t start_ns = cli_now_ns();
        if (status == CLI_OK) {
            status = grow_round(c);
        }
        ns += (double)(cli_now_ns() - start_ns);
        if (status != CLI_OK) {
            return status;
        }
    }
    c->job->own_ns = ns;
    return CLI_OK;
}

/* No page is in two places. */
static int check_grow(void *ctx, int i)
{
    const grow_case *c = ctx;
    int64_t          n_used = 0;
    bool             same = true;
    bool            *seen = calloc((size_t)c->step->n_pages, sizeof *seen);

    (void)i;
    if (seen == NULL) {
        return cli_no_memory("the check of bench pool");
    }
    for (int64_t s = 0; s < c->step->n; s++) {
        n_used += c->n_pages[s];
        for (int64_t k = 0; k < c->n_pages[s] && same; k++) {
            int32_t page = c->pages[s * MAX_GROWN + k];
            same = pkv_pool_owners(c->pool, page) == 1 && !seen[page];
            if (same) {
                seen[page] = true;
            }
        }
    }
    free(seen);
    return same ? bench_pool_check(c->pool, n_used, "grow")
                : cli_fail(CLI_DIFFERENCE, "bench pool grow: a wrong page");
}

static int open_grow(grow_case *c, const bench_pool_step *step, bool huge_pages)
{
    *c = (grow_case){.step = step, .random = 9173};
    c->pages = malloc((size_t)(step->n * MAX_GROWN) * sizeof(int32_t));
    c->n_pages = calloc((size_t)step->n, sizeof(int32_t));
    c->job = calloc(1, sizeof *c->job);
    if (c->pages == NULL || c->n_pages == NULL || c->job == NULL) {
        return cli_no_memory("bench pool grow");
    }
    memset(c->pages, 0, (size_t)(step->n * MAX_GROWN) * sizeof(int32_t));
    int status = bench_pool_open(&c->memory, &c->pool, step->n_pages, huge_pages);
    for (int64_t i = 0; i < step->n && status == CLI_OK; i++) {
        status = start_sequence(c, i);
    }
    for (int round = 0; round < WARM_ROUNDS && status == CLI_OK; round++) {
        status = grow_round(c);
        if (status == CLI_OK) {
            status = renew(c);
        }
    }
    c->n_grown = c->n_adjacent = 0;
    return status;
}

int bench_pool_grow(const bench_pool_step *step, const bench_options *options, bool huge_pages,
                    int64_t end_ns, bench_results *results)
{
    pkv_pool_counts counts = {.struct_size = sizeof counts};
    grow_case       c;

    int status = open_grow(&c, step, huge_pages);
    if (status == CLI_OK) {
        *c.job = (bench_job){.ctx = &c, .n_contenders = 1, .prepare = prepare_nothing,
                             .run = run_grow, .check = check_grow};
        status = bench_run(c.job, options->rounds, end_ns);
    }
    if (status == CLI_OK && pkv_pool_stats(c.pool, &counts, NULL) == PKV_OK) {
        bench_row row = bench_pool_row(step, "grow", &c.memory, c.job, 0, TIMED_ROUNDS, step->n);
        row.requests = step->n;
        row.adjacent_fraction = (double)c.n_adjacent / (double)c.n_grown;
        row.used_fraction = (double)counts.n_used / (double)step->n_pages;
        status = bench_add(results, &row);
    }
    pkv_memory_free(&c.memory);
    free(c.pages);
    free(c.n_pages);
    free(c.job);
    return status;
}

/* ---- the table of sequences ------------------------------------------------------------- */

enum { RESERVE = 0, FORK = 1, TRIM = 2, CLOSE = 3, N_OPS = 4 };

enum {
    PAGE_SIZE = 16,
    LONG_TOKENS = 100000,
    LONG_PAGES = LONG_TOKENS / PAGE_SIZE,
    N_SHORT = 256,        /* sequences that a reservation is for */
    SHORT_PAGES = 16,     /* that each of them has */
    N_RESERVES = 8,       /* so many of each are timed at a time */
    N_TRIMS = 64,
    TRIM_TOKENS = 5
};

typedef struct seqs_case {
    const bench_pool_step *step;
    pkv_memory             memory;
    pkv_pool              *pool;
    pkv_seqs              *seqs;
    pkv_seq                short_seqs[N_SHORT];
    int32_t                short_tokens[N_SHORT];
    pkv_seq                long_seq; /* 0: it is closed */
    pkv_seq                fork;     /* 0: there is none */
    int64_t                length;   /* of the long one */
    int                    ops[N_OPS]; /* of each contender */
} seqs_case;

static int fail_seqs(const seqs_case *c, int op, const pkv_error *err)
{
    char text[64];
    snprintf(text, sizeof text, "bench pool %s", c->step->names[op]);
    return cli_fail_pkv(err, text);
}

static pkv_status grow_seqs(seqs_case *c, const pkv_seq *seqs, const int32_t *n_tokens, int64_t n,
                            pkv_error *err)
{
    int64_t    n_copies;
    pkv_status status = pkv_seqs_reserve(c->seqs, seqs, n_tokens, NULL, n, ROOM, NULL, 0,
                                         &n_copies, err);
    return status == PKV_OK ? pkv_seqs_commit(c->seqs, err) : status;
}

/* The long sequence is whole again, and alone. */
static pkv_status make_whole(seqs_case *c, pkv_error *err)
{
    int32_t    tokens = LONG_TOKENS - (int32_t)c->length;
    pkv_status status = PKV_OK;

    if (c->fork != 0) {
        status = pkv_seq_close(c->seqs, c->fork, err);
        c->fork = 0;
    }
    if (status == PKV_OK && c->long_seq == 0) {
        status = pkv_seq_open(c->seqs, &c->long_seq, err);
    }
    if (status == PKV_OK && tokens > 0) {
        status = grow_seqs(c, &c->long_seq, &tokens, 1, err);
    }
    c->length = LONG_TOKENS;
    return status;
}

static int prepare_seqs(void *ctx, int i)
{
    seqs_case *c = ctx;
    pkv_error  err;
    return make_whole(c, &err) == PKV_OK ? CLI_OK : fail_seqs(c, c->ops[i], &err);
}

static pkv_status reserve_and_release(seqs_case *c, pkv_error *err)
{
    pkv_status status = PKV_OK;
    int64_t    n_copies;

    for (int k = 0; k < N_RESERVES && status == PKV_OK; k++) {
        status = pkv_seqs_reserve(c->seqs, c->short_seqs, c->short_tokens, NULL, N_SHORT, ROOM,
                                  NULL, 0, &n_copies, err);
        if (status == PKV_OK) {
            status = pkv_seqs_release(c->seqs, err);
        }
    }
    return status;
}

static pkv_status trim(seqs_case *c, pkv_error *err)
{
    pkv_status status = PKV_OK;

    for (int k = 0; k < N_TRIMS && status == PKV_OK; k++) {
        c->length -= TRIM_TOKENS;
        status = pkv_seq_trim(c->seqs, c->long_seq, c->length, err);
    }
    return status;
}

static int run_seqs(void *ctx, int i)
{
    seqs_case *c = ctx;
    pkv_status status;
    pkv_error  err;

    switch (c->ops[i]) {
    case RESERVE:
        status = reserve_and_release(c, &err);
        break;
    case FORK:
        status = pkv_seq_fork(c->seqs, c->long_seq, LONG_TOKENS, &c->fork, &err);
        break;
    case TRIM:
        status = trim(c, &err);
        break;
    default:
        status = pkv_seq_close(c->seqs, c->long_seq, &err);
        c->long_seq = 0;
        c->length = 0;
        break;
    }
    return status == PKV_OK ? CLI_OK : fail_seqs(c, c->ops[i], &err);
}

/* One reservation more, looked at while it is open: a page of its own for each. */
static int check_reserve(seqs_case *c, int64_t n_used)
{
    pkv_seq_state state = {.struct_size = sizeof state};
    pkv_error     err;
    int64_t       n_copies;
    bool          same = true;

    if (pkv_seqs_reserve(c->seqs, c->short_seqs, c->short_tokens, NULL, N_SHORT, ROOM, NULL, 0,
                         &n_copies, &err) != PKV_OK) {
        return fail_seqs(c, RESERVE, &err);
    }
    for (int i = 0; i < N_SHORT && same; i++) {
        same = pkv_seq_info(c->seqs, c->short_seqs[i], &state, &err) == PKV_OK &&
               state.n_pages == SHORT_PAGES + 1 && state.n_reserved == PAGE_SIZE &&
               pkv_pool_owners(c->pool, state.pages[SHORT_PAGES]) == 1;
    }
    int status = same && n_copies == 0 ? bench_pool_check(c->pool, n_used + N_SHORT, "reserve")
                                       : cli_fail(CLI_DIFFERENCE, "bench pool reserve: wrong");
    if (pkv_seqs_release(c->seqs, &err) != PKV_OK && status == CLI_OK) {
        status = fail_seqs(c, RESERVE, &err);
    }
    return status == CLI_OK ? bench_pool_check(c->pool, n_used, "reserve") : status;
}

/* Is the sequence so long, and has its every page so many owners? */
static bool is_as_told(const seqs_case *c, pkv_seq seq, int64_t n_tokens, int64_t n_owners)
{
    pkv_seq_state state = {.struct_size = sizeof state};

    if (pkv_seq_info(c->seqs, seq, &state, NULL) != PKV_OK || state.n_tokens != n_tokens ||
        state.n_pages != (n_tokens + PAGE_SIZE - 1) / PAGE_SIZE) {
        return false;
    }
    for (int64_t k = 0; k < state.n_pages; k++) {
        if (pkv_pool_owners(c->pool, state.pages[k]) != n_owners) {
            return false;
        }
    }
    return true;
}

/* That tables and owners agree is the library's own check; the counts are ours. */
static int check_seqs(void *ctx, int i)
{
    seqs_case  *c = ctx;
    int         op = c->ops[i];
    const char *name = c->step->names[op];
    int64_t     n_used = N_SHORT * SHORT_PAGES + (c->length + PAGE_SIZE - 1) / PAGE_SIZE;
    pkv_error   err;

    if (pkv_seqs_check(c->seqs, 1, &err) != PKV_OK) {
        return cli_fail(CLI_DIFFERENCE, "bench pool %s: %s", name, err.what);
    }
    bool same = true;
    if (op == FORK) {
        same = is_as_told(c, c->fork, LONG_TOKENS, 2) && is_as_told(c, c->long_seq, LONG_TOKENS, 2);
    } else if (op == TRIM) {
        same = is_as_told(c, c->long_seq, LONG_TOKENS - N_TRIMS * TRIM_TOKENS, 1);
    } else if (op == RESERVE) {
        return check_reserve(c, n_used);
    }
    return same ? bench_pool_check(c->pool, n_used, name)
                : cli_fail(CLI_DIFFERENCE, "bench pool %s: a wrong table", name);
}

static int open_seqs(seqs_case *c, const bench_pool_step *step, bool huge_pages)
{
    pkv_seqs_config config = {.struct_size = sizeof config, .max_seqs = N_SHORT + 2,
                              .max_pages_per_seq = LONG_PAGES, .page_size = PAGE_SIZE};
    pkv_status      done;
    pkv_error       err;

    *c = (seqs_case){.step = step};
    int status = bench_pool_open(&c->memory, &c->pool, step->n_pages, huge_pages);
    if (status != CLI_OK) {
        return status;
    }
    done = pkv_seqs_create(&config, c->pool, NULL, &c->seqs, &err);
    for (int i = 0; i < N_SHORT && done == PKV_OK; i++) {
        c->short_tokens[i] = SHORT_PAGES * PAGE_SIZE;
        done = pkv_seq_open(c->seqs, &c->short_seqs[i], &err);
    }
    if (done == PKV_OK) {
        done = grow_seqs(c, c->short_seqs, c->short_tokens, N_SHORT, &err);
    }
    for (int i = 0; i < N_SHORT; i++) {
        c->short_tokens[i] = PAGE_SIZE;
    }
    return done == PKV_OK ? CLI_OK : cli_fail_pkv(&err, "bench pool");
}

static int add_seqs_rows(const seqs_case *c, const bench_job *job, bench_results *results)
{
    static const struct {
        int64_t n_calls, n_pages, requests, tokens;
    } of_op[] = {{N_RESERVES, N_SHORT, N_SHORT, N_SHORT * PAGE_SIZE},
                 {1, LONG_PAGES, 1, LONG_TOKENS},
                 {N_TRIMS, 0, 1, TRIM_TOKENS},
                 {1, LONG_PAGES, 1, LONG_TOKENS}};
    int status = CLI_OK;

    for (int i = 0; i < job->n_contenders && status == CLI_OK; i++) {
        int       op = c->ops[i];
        bench_row row = bench_pool_row(c->step, c->step->names[op], &c->memory, job, i,
                                       of_op[op].n_calls, of_op[op].n_pages);
        row.page_size = PAGE_SIZE;
        row.requests = of_op[op].requests;
        row.tokens = of_op[op].tokens;
        status = bench_add(results, &row);
    }
    return status;
}

int bench_pool_seqs(const bench_pool_step *step, const bench_options *options, bool huge_pages,
                    int64_t end_ns, bench_results *results)
{
    seqs_case  c;
    bench_job *job = calloc(1, sizeof *job);

    if (job == NULL) {
        return cli_no_memory("the times of bench pool");
    }
    int status = open_seqs(&c, step, huge_pages);
    *job = (bench_job){.ctx = &c, .prepare = prepare_seqs, .run = run_seqs, .check = check_seqs};
    for (int op = 0; op < N_OPS; op++) {
        if (bench_pool_wants(options, step->names[op])) {
            c.ops[job->n_contenders++] = op;
        }
    }
    if (status == CLI_OK) {
        status = bench_run(job, options->rounds, end_ns);
    }
    if (status == CLI_OK) {
        status = add_seqs_rows(&c, job, results);
    }
    pkv_seqs_destroy(c.seqs);
    pkv_memory_free(&c.memory);
    free(job);
    return status;
}
