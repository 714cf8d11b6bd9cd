/*
 * The case "pool": taking pages, giving them back, and sharing what is cached.
 * Beside the pool, in the same rounds and from the same order of pages, a plain
 * linked list of free pages.
 */
#include <stdlib.h>
#include <string.h>

#include "bench_pool.h"

enum { ALLOC = 0, FREE = 1, TOUCH = 2, N_OPS = 3 };
enum { POOL = 0, LIST = 1, N_IMPLS = 2 };

enum {
    SMALL_CALL = 10000,     /* shorter calls are timed SHORT_CALLS at a time */
    SHORT_CALLS = 5         /* of a tenth each */
};

/* ---- the linked list: free pages, oldest first; the node behind the last page is its ends */

typedef struct list_node {
    uint32_t previous;
    uint32_t next;
    uint32_t owners;
    uint32_t unused; /* a content's number, say */
} list_node;

static inline void list_unlink(list_node *nodes, uint32_t page)
{
    nodes[nodes[page].previous].next = nodes[page].next;
    nodes[nodes[page].next].previous = nodes[page].previous;
}

static inline void list_append(list_node *nodes, uint32_t ends, uint32_t page)
{
    uint32_t last = nodes[ends].previous;

    nodes[page].previous = last;
    nodes[page].next = ends;
    nodes[last].next = page;
    nodes[ends].previous = page;
}

static void list_alloc(list_node *nodes, uint32_t ends, int32_t *pages, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        uint32_t page = nodes[ends].next;
        list_unlink(nodes, page);
        nodes[page].owners = 1;
        pages[i] = (int32_t)page;
    }
}

static void list_free(list_node *nodes, uint32_t ends, const int32_t *pages, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (--nodes[pages[i]].owners == 0) {
            list_append(nodes, ends, (uint32_t)pages[i]);
        }
    }
}

static void list_share(list_node *nodes, const int32_t *pages, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (nodes[pages[i]].owners++ == 0) {
            list_unlink(nodes, (uint32_t)pages[i]);
        }
    }
}

/* ---- one case ---------------------------------------------------------------------- */

/* What calls take and give back, of the pool or the list. */
typedef struct held_pages {
    int32_t *pages; /* [n_calls * call_pages], in the pool's array as many as the pool has */
    bool     held;
} held_pages;

typedef struct queue_case {
    const bench_pool_step *step;
    pkv_memory             memory;
    pkv_pool              *pool;
    pkv_memory             list_memory;
    list_node             *nodes; /* NULL: no list beside the pool */
    held_pages             of[N_IMPLS];
    int64_t                call_pages;
    int64_t                n_calls;
    int64_t                n_others; /* pages that stay used */
    bool                   kept;     /* the pages are cached, in a random order */
    bool                   blank_in_random_order;
    uint64_t               random;
    int                    ops[N_OPS * N_IMPLS];   /* of each contender */
    int                    impls[N_OPS * N_IMPLS];
} queue_case;

static void shuffle_pages(int32_t *pages, int64_t n, uint64_t *random)
{
    for (int64_t i = n - 1; i > 0; i--) {
        int64_t other = bench_random_below(random, i + 1);
        int32_t page = pages[i];
        pages[i] = pages[other];
        pages[other] = page;
    }
}

static int fail_call(const queue_case *c, const pkv_error *err)
{
    char text[64];
    snprintf(text, sizeof text, "bench pool %s", c->step->names[0]);
    return cli_fail_pkv(err, text);
}

static int run_op(queue_case *c, int op, int impl)
{
    held_pages *h = &c->of[impl];
    uint32_t    ends = (uint32_t)c->step->n_pages;
    pkv_status  status = PKV_OK;
    pkv_error   err;

    for (int64_t call = 0; call < c->n_calls && status == PKV_OK; call++) {
        int32_t *pages = h->pages + call * c->call_pages;
        if (op == ALLOC) {
            if (impl == POOL) {
                status = pkv_pool_alloc(c->pool, c->call_pages, -1, 0, pages, &err);
            } else {
                list_alloc(c->nodes, ends, pages, c->call_pages);
            }
        } else if (op == FREE) {
            if (impl == POOL) {
                status = pkv_pool_free(c->pool, pages, c->call_pages, &err);
            } else {
                list_free(c->nodes, ends, pages, c->call_pages);
            }
        } else if (impl == POOL) {
            status = pkv_pool_share(c->pool, pages, c->call_pages, &err);
        } else {
            list_share(c->nodes, pages, c->call_pages);
        }
    }
    h->held = op != FREE;
    return status == PKV_OK ? CLI_OK : fail_call(c, &err);
}

/* Pages that are held, made ready to be freed: kept where they are to be, in another order. */
static int ready_to_free(queue_case *c, int impl)
{
    int64_t    n = c->n_calls * c->call_pages;
    pkv_status status = PKV_OK;
    pkv_error  err;

    if (c->kept && impl == POOL) {
        status = pkv_pool_keep(c->pool, c->of[impl].pages, n, 1, &err);
    }
    if (c->kept || c->blank_in_random_order) {
        shuffle_pages(c->of[impl].pages, n, &c->random);
    }
    return status == PKV_OK ? CLI_OK : fail_call(c, &err);
}

/* Before ALLOC all are free; before FREE they are held; before TOUCH they were just freed. */
static int prepare(void *ctx, int i)
{
    queue_case *c = ctx;
    int         op = c->ops[i], impl = c->impls[i], status = CLI_OK;

    if (!c->of[impl].held && op == ALLOC) {
        return CLI_OK;
    }
    if (!c->of[impl].held) {
        status = run_op(c, ALLOC, impl);
    }
    if (status == CLI_OK) {
        status = ready_to_free(c, impl);
    }
    if (status == CLI_OK && op != FREE) {
        status = run_op(c, FREE, impl);
    }
    if (op == TOUCH) {
        shuffle_pages(c->of[impl].pages, c->n_calls * c->call_pages, &c->random);
    }
    return status;
}

static int run(void *ctx, int i)
{
    queue_case *c = ctx;
    return run_op(c, c->ops[i], c->impls[i]);
}

/* How many pages the list has, both ways the same; -1 where it is broken. */
static int64_t list_length(const list_node *nodes, uint32_t ends)
{
    int64_t n = 0;

    for (uint32_t at = nodes[ends].next; at != ends && n >= 0; at = nodes[at].next) {
        bool whole = nodes[nodes[at].next].previous == at && nodes[at].owners == 0 && n < ends;
        n = whole ? n + 1 : -1;
    }
    return n;
}

/* Pages are distinct and have an owner each, or none; the rest is as it was. */
static int check(void *ctx, int i)
{
    const queue_case *c = ctx;
    const held_pages *h = &c->of[c->impls[i]];
    const char       *name = c->step->names[c->ops[i]];
    int64_t           n = c->n_calls * c->call_pages;
    int64_t           n_held = h->held ? n : 0;
    bool              same = true;
    bool             *seen = calloc((size_t)c->step->n_pages, sizeof *seen);

    if (seen == NULL) {
        return cli_no_memory("the check of bench pool");
    }
    for (int64_t k = 0; k < n && same; k++) {
        int32_t page = h->pages[k];
        same = page >= 0 && page < c->step->n_pages && !seen[page];
        if (same) {
            int64_t owners = c->impls[i] == POOL ? pkv_pool_owners(c->pool, page)
                                                 : (int64_t)c->nodes[page].owners;
            seen[page] = true;
            same = owners == h->held;
        }
    }
    free(seen);
    if (c->impls[i] == LIST && c->ops[i] == c->ops[0]) {
        /* A walk takes seconds where there are many pages: one will do. */
        uint32_t ends = (uint32_t)c->step->n_pages;
        same = same && list_length(c->nodes, ends) == c->step->n_pages - n_held;
    }
    if (!same) {
        return cli_fail(CLI_DIFFERENCE, "bench pool %s: a wrong page", name);
    }
    return c->impls[i] == LIST ? CLI_OK : bench_pool_check(c->pool, c->n_others + n_held, name);
}

/* ---- making and timing it ----------------------------------------------------------- */

/* All pages cached in a random order, or half of them blank in a random order. */
static int free_in_random_order(queue_case *c)
{
    int64_t    n_pages = c->step->n_pages;
    int64_t    n_free = n_pages - c->n_others;
    int32_t   *pages = c->of[POOL].pages;
    pkv_error  err;
    pkv_status status = pkv_pool_alloc(c->pool, n_pages, -1, 0, pages, &err);

    shuffle_pages(pages, n_pages, &c->random);
    if (status == PKV_OK && c->kept) {
        status = pkv_pool_keep(c->pool, pages, n_pages, 1, &err);
    }
    if (status == PKV_OK) {
        status = pkv_pool_free(c->pool, pages, n_free, &err);
    }
    for (int64_t i = 0; c->nodes != NULL && i < n_pages; i++) {
        list_append(c->nodes, (uint32_t)n_pages, (uint32_t)pages[i]);
    }
    return status == PKV_OK ? CLI_OK : fail_call(c, &err);
}

static int open_list(queue_case *c, bool huge_pages)
{
    uint32_t ends = (uint32_t)c->step->n_pages;
    int      status = bench_pool_memory(&c->list_memory, ((uint64_t)ends + 1) * sizeof(list_node),
                                        huge_pages);
    if (status == CLI_OK) {
        c->nodes = c->list_memory.data;
        c->nodes[ends] = (list_node){.previous = ends, .next = ends};
    }
    return status;
}

static int open_queue(queue_case *c, const bench_pool_step *step, bool huge_pages)
{
    int64_t n_pages = step->n_pages;

    *c = (queue_case){.step = step, .random = 9173, .kept = step->n == 0};
    c->blank_in_random_order = !c->kept && strcmp(step->names[0], "alloc_scattered") == 0;
    c->n_others = c->blank_in_random_order ? n_pages / 2 : 0;
    c->call_pages = c->kept ? n_pages / 10 : step->n;
    c->n_calls = (n_pages - c->n_others) / c->call_pages;
    if (c->kept) {
        c->n_calls = c->call_pages < SMALL_CALL ? SHORT_CALLS : 1;
    }
    for (int impl = 0; impl < N_IMPLS; impl++) {
        int64_t n = impl == POOL ? n_pages : c->n_calls * c->call_pages;
        c->of[impl].pages = calloc((size_t)n, sizeof(int32_t));
        if (c->of[impl].pages == NULL) {
            return cli_no_memory("bench pool");
        }
    }
    int status = bench_pool_open(&c->memory, &c->pool, n_pages, huge_pages);
    if (status == CLI_OK && c->kept) {
        status = open_list(c, huge_pages);
    }
    if (status == CLI_OK && (c->kept || c->blank_in_random_order)) {
        status = free_in_random_order(c);
    }
    return status;
}

static void close_queue(queue_case *c)
{
    pkv_memory_free(&c->memory);
    pkv_memory_free(&c->list_memory);
    free(c->of[POOL].pages);
    free(c->of[LIST].pages);
}

/* The pool's row comes before the list's of the same pattern. */
static int add_rows(const queue_case *c, const bench_job *job, bench_results *results)
{
    int status = CLI_OK;

    for (int i = 0; i < job->n_contenders && status == CLI_OK; i++) {
        const char *name = c->step->names[c->ops[i]];
        bench_row   row = bench_pool_row(c->step, name, &c->memory, job, i, c->n_calls,
                                         c->call_pages);
        if (c->impls[i] == LIST) {
            row.impl = "linked_list";
        } else if (c->nodes != NULL) {
            row.linked_list_fraction = bench_ratio(job, i + 1, i);
        }
        status = bench_add(results, &row);
    }
    return status;
}

int bench_pool_queue(const bench_pool_step *step, const bench_options *options, bool huge_pages,
                     int64_t end_ns, bench_results *results)
{
    queue_case c;
    bench_job *job = calloc(1, sizeof *job);
    int        n = 0;

    if (job == NULL) {
        return cli_no_memory("the times of bench pool");
    }
    int status = open_queue(&c, step, huge_pages);
    for (int op = 0; op < N_OPS; op++) {
        for (int impl = 0; impl < (c.nodes != NULL ? N_IMPLS : 1); impl++) {
            if (bench_pool_wants(options, step->names[op])) {
                c.ops[n] = op;
                c.impls[n++] = impl;
            }
        }
    }
    *job = (bench_job){.ctx = &c, .n_contenders = n, .prepare = prepare, .run = run,
                       .check = check};
    if (status == CLI_OK) {
        status = bench_run(job, options->rounds, end_ns);
    }
    if (status == CLI_OK) {
        status = add_rows(&c, job, results);
    }
    close_queue(&c);
    free(job);
    return status;
}
