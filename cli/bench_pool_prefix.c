/* The case "pool" with the prefix index: prompts are found in it, and take the oldest's place. */
#include <stdlib.h>
#include <string.h>

#include <xxhash.h>

#include "bench_memory.h"
#include "bench_pool.h"

enum { FIND = 0, MISS = 1, INSERT = 2, APPEND = 3, N_OPS = 4 };

enum {
    PAGE_SIZE = 16,
    PROMPT_TOKENS = 10000,
    PROMPT_PAGES = PROMPT_TOKENS / PAGE_SIZE,
    HIT_PAGES = (PROMPT_TOKENS - 1) / PAGE_SIZE, /* the last token's page is never one */
    N_PROMPTS = 4,  /* of one run */
    N_MISSES = 256, /* of one run */
    MAX_EVENTS = 3 * N_PROMPTS * PROMPT_PAGES /* a run's: a page stored, one removed */
};

typedef struct prefix_case {
    const bench_pool_step *step;
    pkv_memory             pool_memory, memory;
    pkv_pool              *pool;
    pkv_prefix            *index;
    pkv_seqs              *seqs;
    int64_t                n_prompts; /* that are in the index: more do not fit in the pool */
    int64_t                n_made;    /* prompts so far; the last n_prompts are in the index */
    int32_t               *pages;     /* [n_prompts, PROMPT_PAGES]: i's at i % n_prompts */
    bench_job             *job;
    uint64_t               random;
    int                    ops[N_OPS]; /* of each contender */
    int32_t                tokens[PROMPT_TOKENS]; /* of the prompt of the call */
    int32_t                found[PROMPT_PAGES];
} prefix_case;

static int fail_prefix(const prefix_case *c, int op, const pkv_error *err)
{
    char text[64];
    snprintf(text, sizeof text, "bench pool %s", c->step->names[op]);
    return cli_fail_pkv(err, text);
}

/* A prompt is not kept: its number says what it is. */
static void write_prompt(prefix_case *c, int64_t number)
{
    uint64_t random = (uint64_t)(number + 1) * 0x9e3779b97f4a7c15U;
    for (int i = 0; i < PROMPT_TOKENS; i++) {
        c->tokens[i] = (int32_t)(bench_random(&random) >> 47);
    }
}

static int32_t *pages_of(const prefix_case *c, int64_t number)
{
    return c->pages + number % c->n_prompts * PROMPT_PAGES;
}

/* ---- what is timed -------------------------------------------------------------------- */

static pkv_status find(prefix_case *c, int64_t number, bool *same, pkv_error *err)
{
    pkv_prefix_hit hit = {0};

    write_prompt(c, number);
    int64_t    start_ns = cli_now_ns();
    pkv_status status = pkv_prefix_find(c->index, 0, c->tokens, PROMPT_TOKENS, c->found,
                                        PROMPT_PAGES, &hit, err);
    c->job->own_ns += (double)(cli_now_ns() - start_ns);
    *same = hit.n_pages == HIT_PAGES &&
            memcmp(c->found, pages_of(c, number), HIT_PAGES * sizeof c->found[0]) == 0;
    return status;
}

/* The salt makes another content of the same tokens, in another place each time. */
static pkv_status miss(prefix_case *c, bool *same, pkv_error *err)
{
    pkv_status     status = PKV_OK;
    pkv_prefix_hit hit = {0};

    write_prompt(c, c->n_made - 1);
    int64_t start_ns = cli_now_ns();
    for (int i = 0; i < N_MISSES && status == PKV_OK && hit.n_pages == 0; i++) {
        status = pkv_prefix_find(c->index, bench_random(&c->random), c->tokens, PROMPT_TOKENS,
                                 c->found, PROMPT_PAGES, &hit, err);
    }
    c->job->own_ns += (double)(cli_now_ns() - start_ns);
    *same = hit.n_pages == 0;
    return status;
}

/* Its pages come from evictions, which the index learns of in the call that is timed. */
static pkv_status insert(prefix_case *c, pkv_error *err)
{
    int32_t   *pages = pages_of(c, c->n_made);
    pkv_status status = pkv_pool_alloc(c->pool, PROMPT_PAGES, -1, 0, pages, err);

    write_prompt(c, c->n_made++);
    if (status == PKV_OK) {
        int64_t start_ns = cli_now_ns();
        status = pkv_prefix_publish(c->index, 0, 0, -1, c->tokens, pages, PROMPT_PAGES, err);
        c->job->own_ns += (double)(cli_now_ns() - start_ns);
    }
    return status == PKV_OK ? pkv_pool_free(c->pool, pages, PROMPT_PAGES, err) : status;
}

static pkv_status open_prompt(prefix_case *c, pkv_seq *seq, pkv_error *err)
{
    const int32_t n_tokens = PROMPT_TOKENS;
    int64_t       n_copies;
    pkv_status    status = pkv_seq_open(c->seqs, seq, err);

    if (status == PKV_OK) {
        status = pkv_seqs_reserve(c->seqs, seq, &n_tokens, NULL, 1, 0, NULL, 0, &n_copies, err);
    }
    return status == PKV_OK ? pkv_seqs_commit(c->seqs, err) : status;
}

/* The same page by page, as tokens come. */
static pkv_status append(prefix_case *c, pkv_error *err)
{
    pkv_seq_state state = {.struct_size = sizeof state};
    pkv_seq       seq = 0;
    pkv_status    status = open_prompt(c, &seq, err);

    write_prompt(c, c->n_made);
    int64_t start_ns = cli_now_ns();
    for (int n = PAGE_SIZE; n <= PROMPT_TOKENS && status == PKV_OK; n += PAGE_SIZE) {
        status = pkv_seq_publish(c->seqs, seq, c->index, 0, c->tokens, n, err);
    }
    c->job->own_ns += (double)(cli_now_ns() - start_ns);
    if (status == PKV_OK) {
        status = pkv_seq_info(c->seqs, seq, &state, err);
    }
    if (status == PKV_OK) {
        memcpy(pages_of(c, c->n_made++), state.pages, PROMPT_PAGES * sizeof c->pages[0]);
        status = pkv_seq_close(c->seqs, seq, err);
    }
    return status;
}

/* The log is emptied, as a router would. */
static int prepare_prefix(void *ctx, int i)
{
    prefix_case     *c = ctx;
    pkv_prefix_event events[64];
    const int64_t    most = sizeof events / sizeof events[0];
    pkv_error        err;

    for (int64_t n = most, n_lost = 0; n == most;) {
        if (pkv_prefix_events(c->index, events, most, &n, &n_lost, &err) != PKV_OK) {
            return fail_prefix(c, c->ops[i], &err);
        }
    }
    return CLI_OK;
}

static int run_prefix(void *ctx, int i)
{
    prefix_case *c = ctx;
    int          op = c->ops[i];
    pkv_status   status = PKV_OK;
    pkv_error    err;
    bool         same = true;

    for (int k = 0; k < (op == MISS ? 1 : N_PROMPTS) && status == PKV_OK && same; k++) {
        if (op == FIND) {
            int64_t age = bench_random_below(&c->random, c->n_prompts);
            status = find(c, c->n_made - 1 - age, &same, &err);
        } else if (op == MISS) {
            status = miss(c, &same, &err);
        } else {
            status = op == INSERT ? insert(c, &err) : append(c, &err);
        }
    }
    if (status != PKV_OK) {
        return fail_prefix(c, op, &err);
    }
    return same ? CLI_OK : cli_fail(CLI_DIFFERENCE, "bench pool %s: a wrong hit",
                                    c->step->names[op]);
}

/* Every prompt that should be there is, and the one before them is not. */
static int check_prefix(void *ctx, int i)
{
    prefix_case   *c = ctx;
    const char    *name = c->step->names[c->ops[i]];
    int64_t        first = c->n_made - c->n_prompts;
    bool           same = true;
    pkv_prefix_hit hit = {0};
    pkv_error      err;

    if (pkv_prefix_check(c->index, &err) != PKV_OK) {
        return cli_fail(CLI_DIFFERENCE, "bench pool %s: %s", name, err.what);
    }
    for (int64_t number = first; number < c->n_made && same; number++) {
        if (find(c, number, &same, &err) != PKV_OK) {
            return fail_prefix(c, c->ops[i], &err);
        }
    }
    write_prompt(c, first - 1);
    if (first > 0 && pkv_prefix_find(c->index, 0, c->tokens, PROMPT_TOKENS, c->found, PROMPT_PAGES,
                                     &hit, &err) != PKV_OK) {
        return fail_prefix(c, c->ops[i], &err);
    }
    return same && hit.n_pages == 0
               ? bench_pool_check(c->pool, 0, name)
               : cli_fail(CLI_DIFFERENCE, "bench pool %s: a wrong hit", name);
}

/* ---- making and timing it ----------------------------------------------------------- */

static int open_index(prefix_case *c, bool huge_pages)
{
    pkv_prefix_config config = {.struct_size = sizeof config, .page_size = PAGE_SIZE,
                                .n_groups = 1, .max_events = MAX_EVENTS,
                                .hash = XXH3_64bits_withSeed, .seed = 9173};
    pkv_seqs_config   of_seqs = {.struct_size = sizeof of_seqs, .max_seqs = 1,
                                 .max_pages_per_seq = PROMPT_PAGES, .page_size = PAGE_SIZE};
    uint64_t          bytes = 0;
    pkv_error         err;

    if (pkv_prefix_bytes(&config, c->pool, &bytes, &err) != PKV_OK) {
        return cli_fail_pkv(&err, "bench pool");
    }
    int status = bench_pool_memory(&c->memory, bytes, huge_pages);
    if (status != CLI_OK) {
        return status;
    }
    if (pkv_prefix_init(&config, c->pool, c->memory.data, bytes, &c->index, &err) != PKV_OK ||
        pkv_seqs_create(&of_seqs, c->pool, NULL, &c->seqs, &err) != PKV_OK) {
        return cli_fail_pkv(&err, "bench pool");
    }
    return CLI_OK;
}

/* The pool is full of cached prompts, whose pages lie in a random order. */
static int fill_index(prefix_case *c)
{
    int64_t    n_pages = c->n_prompts * PROMPT_PAGES;
    pkv_error  err;
    pkv_status status = pkv_pool_alloc(c->pool, n_pages, -1, 0, c->pages, &err);

    for (int64_t i = n_pages - 1; i > 0; i--) {
        int64_t other = bench_random_below(&c->random, i + 1);
        int32_t page = c->pages[i];
        c->pages[i] = c->pages[other];
        c->pages[other] = page;
    }
    for (; c->n_made < c->n_prompts && status == PKV_OK; c->n_made++) {
        write_prompt(c, c->n_made);
        status = pkv_prefix_publish(c->index, 0, 0, -1, c->tokens, pages_of(c, c->n_made),
                                    PROMPT_PAGES, &err);
    }
    if (status == PKV_OK) {
        status = pkv_pool_free(c->pool, c->pages, n_pages, &err);
    }
    return status == PKV_OK ? CLI_OK : cli_fail_pkv(&err, "bench pool");
}

static int open_prefix(prefix_case *c, const bench_pool_step *step, bool huge_pages)
{
    *c = (prefix_case){.step = step, .random = 9173, .n_prompts = step->n_pages / PROMPT_PAGES};
    c->pages = calloc((size_t)step->n_pages, sizeof c->pages[0]);
    c->job = calloc(1, sizeof *c->job);
    if (c->pages == NULL || c->job == NULL) {
        return cli_no_memory("bench pool");
    }
    int status = bench_pool_open(&c->pool_memory, &c->pool, c->n_prompts * PROMPT_PAGES,
                                 huge_pages);
    if (status == CLI_OK) {
        status = open_index(c, huge_pages);
    }
    return status == CLI_OK ? fill_index(c) : status;
}

static int add_prefix_rows(const prefix_case *c, bench_results *results)
{
    static const struct {
        int64_t n_calls, n_pages, tokens;
    } of_op[] = {{N_PROMPTS, HIT_PAGES, PROMPT_TOKENS},
                 {N_MISSES, 0, PROMPT_TOKENS},
                 {N_PROMPTS, PROMPT_PAGES, PROMPT_TOKENS},
                 {N_PROMPTS * PROMPT_PAGES, 1, PAGE_SIZE}};
    int status = CLI_OK;

    for (int i = 0; i < c->job->n_contenders && status == CLI_OK; i++) {
        int       op = c->ops[i];
        bench_row row = bench_pool_row(c->step, c->step->names[op], &c->memory, c->job, i,
                                       of_op[op].n_calls, of_op[op].n_pages);
        row.page_size = PAGE_SIZE;
        row.requests = 1;
        row.tokens = of_op[op].tokens;
        status = bench_add(results, &row);
    }
    return status;
}

int bench_pool_prefix(const bench_pool_step *step, const bench_options *options, bool huge_pages,
                      int64_t end_ns, bench_results *results)
{
    prefix_case *c = calloc(1, sizeof *c);

    if (c == NULL) {
        return cli_no_memory("bench pool");
    }
    int status = open_prefix(c, step, huge_pages);
    if (status == CLI_OK) {
        *c->job = (bench_job){.ctx = c, .prepare = prepare_prefix, .run = run_prefix,
                              .check = check_prefix};
        for (int op = 0; op < N_OPS; op++) {
            if (bench_pool_wants(options, step->names[op])) {
                c->ops[c->job->n_contenders++] = op;
            }
        }
        status = bench_run(c->job, options->rounds, end_ns);
    }
    if (status == CLI_OK) {
        status = add_prefix_rows(c, results);
    }
    pkv_seqs_destroy(c->seqs);
    pkv_memory_free(&c->memory);
    pkv_memory_free(&c->pool_memory);
    free(c->pages);
    free(c->job);
    free(c);
    return status;
}
