/* Continuous batching: see schedule.h and docs/replay.md. */
#include "schedule.h"

#include <inttypes.h>
#include <stdlib.h>

/* A model of step time for follow_arrivals: rough figures of an 8B model on one GPU. */
enum { STEP_NS = 4000000, TOKEN_NS = 32000, CONTEXT_TOKEN_NS = 37 };

int64_t schedule_total_tokens(const trace_request *r)
{
    int64_t total = r->prompt_tokens + r->output_tokens - 1;
    return total > r->prompt_tokens ? total : r->prompt_tokens;
}

int64_t schedule_pages(const trace_request *r, int64_t page_size)
{
    int64_t tokens = r->prompt_tokens + r->output_tokens;
    return tokens / page_size + (tokens % page_size != 0 ? 1 : 0);
}

ledger_config schedule_ledger_config(const schedule_limits *limits, int64_t width)
{
    return (ledger_config){.allocator = limits->allocator, .prefix_cache = limits->prefix_cache,
                           .page_size = limits->page_size, .num_pages = limits->num_pages,
                           .n_rows = limits->max_num_reqs, .width = width};
}

bool schedule_add_bytes(const schedule_limits *limits, int64_t width, int64_t *sum_bytes)
{
    const ledger_config pages = schedule_ledger_config(limits, width);
    const int64_t       row_bytes = 4 * sizeof(int64_t) + 3 * sizeof(int32_t) +
                              sizeof(schedule_waiting);
    int64_t rows = 0, tokens = 0;
    return ledger_add_bytes(&pages, sum_bytes) &&
           !__builtin_mul_overflow(limits->max_num_reqs, row_bytes, &rows) &&
           !__builtin_mul_overflow(width * limits->page_size, sizeof(int32_t), &tokens) &&
           !__builtin_add_overflow(*sum_bytes, rows, sum_bytes) &&
           !__builtin_add_overflow(*sum_bytes, tokens, sum_bytes);
}

int schedule_init(schedule *s, const prompts *p, const schedule_limits *limits,
                  const schedule_hooks *hooks, int64_t width)
{
    *s = (schedule){.limits = *limits, .hooks = *hooks, .trace = p->trace, .prompts = p,
                    .prefill = -1};
    const size_t rows = (size_t)limits->max_num_reqs;
    s->request = malloc(rows * sizeof *s->request);
    s->known = calloc(rows, sizeof *s->known);
    s->reached = calloc(rows, sizeof *s->reached);
    s->age = calloc(rows, sizeof *s->age);
    s->computed = calloc(rows, sizeof *s->computed);
    s->scheduled = calloc(rows, sizeof *s->scheduled);
    s->growing = calloc(rows, sizeof *s->growing);
    s->put_back = calloc(rows, sizeof *s->put_back);
    s->tokens = calloc((size_t)(width * limits->page_size), sizeof *s->tokens);
    if (s->request == NULL || s->known == NULL || s->reached == NULL || s->age == NULL ||
        s->computed == NULL || s->scheduled == NULL || s->growing == NULL ||
        s->put_back == NULL || s->tokens == NULL) {
        return cli_no_memory("the schedule");
    }
    for (int64_t row = 0; row < limits->max_num_reqs; row++) {
        s->request[row] = -1;
    }
    ledger_config config = schedule_ledger_config(limits, width);
    config.evicted = hooks->evicted;
    config.user = hooks->user;
    return ledger_init(&s->ledger, &config);
}

void schedule_free(schedule *s)
{
    free(s->request);
    free(s->known);
    free(s->reached);
    free(s->age);
    free(s->computed);
    free(s->scheduled);
    free(s->growing);
    free(s->put_back);
    free(s->tokens);
    ledger_free(&s->ledger);
    *s = (schedule){0};
}

static const trace_request *row_request(const schedule *s, int64_t row)
{
    return &s->trace->requests[s->request[row]];
}

/* ---- rows come and go -------------------------------------------------------------------- */

static int64_t free_row(const schedule *s)
{
    int64_t row = 0;
    while (s->request[row] >= 0) {
        row++;
    }
    return row;
}

static int64_t n_waiting(const schedule *s)
{
    return s->n_put_back + s->trace->n_requests - s->next;
}

/* The next request, if it has arrived and a row is free; false: none. */
static bool admissible(const schedule *s, schedule_waiting *out)
{
    if (n_waiting(s) == 0 || s->n_running >= s->limits.max_num_reqs) {
        return false;
    }
    if (s->n_put_back > 0) {
        *out = s->put_back[s->n_put_back - 1];
        return true;
    }
    *out = (schedule_waiting){s->next, 0};
    return !s->limits.follow_arrivals || s->trace->requests[s->next].arrival_ns <= s->clock_ns;
}

/* Tokens whose K and V a request can compute before it must answer again. */
static int64_t known_tokens(const trace_request *r, int64_t reached)
{
    const int64_t total = schedule_total_tokens(r);
    const int64_t known = reached >= r->prompt_tokens ? reached + 1 : r->prompt_tokens;
    return known < total ? known : total;
}

/* Gives a request a row and its pages; without them (*row < 0) it goes on waiting. */
static int admit(schedule *s, const schedule_waiting *w, int64_t *row)
{
    const trace_request *r = &s->trace->requests[w->request];
    const int64_t        at = free_row(s), known = known_tokens(r, w->reached);
    int64_t              n_hit = 0;
    bool                 got = false;
    *row = -1;
    if (s->limits.prefix_cache) {
        prompts_tokens(s->prompts, w->request, 0, known, s->tokens);
    }
    int status = ledger_take(&s->ledger, at,
                             s->limits.recompute ? known : r->prompt_tokens + r->output_tokens,
                             s->tokens, known, &n_hit, &got);
    if (status != CLI_OK || !got) {
        return status;
    }
    if (s->n_put_back > 0) {
        s->n_put_back--;
    } else {
        s->next++;
        s->prompt_tokens += r->prompt_tokens;
        s->prefix_hit_tokens += n_hit;
    }
    *row = at;
    s->request[at] = w->request;
    s->known[at] = known;
    s->reached[at] = w->reached;
    s->age[at] = s->n_admissions++;
    s->computed[at] = (int32_t)n_hit;
    s->scheduled[at] = 0;
    s->n_running++;
    s->n_rows = at + 1 > s->n_rows ? at + 1 : s->n_rows;
    return CLI_OK;
}

static int leave(schedule *s, int64_t row)
{
    s->hooks.leaving(s->hooks.user, row);
    s->request[row] = -1;
    s->computed[row] = 0;
    s->scheduled[row] = 0;
    s->n_running--;
    while (s->n_rows > 0 && s->request[s->n_rows - 1] < 0) {
        s->n_rows--;
    }
    return ledger_give(&s->ledger, row);
}

/* The youngest gives its pages back and waits in front of all others. */
static int put_back_youngest(schedule *s)
{
    int64_t youngest = -1;
    for (int64_t row = 0; row < s->n_rows; row++) {
        if (s->request[row] >= 0 && (youngest < 0 || s->age[row] > s->age[youngest])) {
            youngest = row;
        }
    }
    if (youngest < 0) {
        return cli_fail(CLI_DIFFERENCE, "the pool has no page left, though nobody runs");
    }
    s->put_back[s->n_put_back++] = (schedule_waiting){s->request[youngest], s->reached[youngest]};
    s->prefill = youngest == s->prefill ? -1 : s->prefill;
    s->n_preemptions++;
    return leave(s, youngest);
}

/* ---- a step ------------------------------------------------------------------------------ */

/* As much of a row's prompt as the budget has left; the rest waits as the prefill. */
static void schedule_prompt(schedule *s, int64_t row, int64_t *budget)
{
    int64_t left = s->known[row] - s->computed[row];
    int64_t now = left < *budget ? left : *budget;
    s->scheduled[row] = (int32_t)now;
    s->prefill = now < left ? row : -1;
    s->has_prefill = s->has_prefill || now > 0;
    *budget -= now;
}

/* One token for every running request that has its prompt behind it; how many need room. */
static int64_t list_decodes(schedule *s, int64_t *budget)
{
    int64_t n_growing = 0;
    for (int64_t row = 0; row < s->n_rows; row++) {
        s->scheduled[row] = 0;
        bool decodes = s->request[row] >= 0 && row != s->prefill;
        if (decodes && *budget > 0) {
            s->scheduled[row] = 1;
            *budget -= 1;
            if (ledger_room(&s->ledger, row) == s->computed[row]) {
                s->growing[n_growing++] = (int32_t)row;
            }
        }
    }
    return n_growing;
}

/* All decodes with room for their token: who is put back for that does not run. */
static int schedule_decodes(schedule *s, int64_t *budget, bool *put_back)
{
    const int64_t before = *budget;
    bool          got = false;
    int           status = CLI_OK;
    *put_back = false;
    while (status == CLI_OK && !got) {
        *budget = before;
        int64_t n_growing = list_decodes(s, budget);
        got = n_growing == 0;
        if (!got) {
            status = ledger_grow(&s->ledger, s->growing, n_growing, &got);
        }
        if (status == CLI_OK && !got) {
            status = put_back_youngest(s);
            *put_back = true;
        }
    }
    return status;
}

/* Nothing runs: the clock moves on to the next arrival. */
static void wait_for_arrival(schedule *s)
{
    int64_t arrival = s->trace->requests[s->next].arrival_ns;
    s->clock_ns = arrival > s->clock_ns ? arrival : s->clock_ns;
}

/* First come first served: who does not get its pages keeps all behind it waiting. */
static int schedule_admissions(schedule *s, int64_t *budget)
{
    const int64_t    before = s->n_admissions;
    schedule_waiting w;
    int              status = CLI_OK;
    while (status == CLI_OK && *budget > 0 && s->prefill < 0 && admissible(s, &w)) {
        int64_t row = -1;
        status = admit(s, &w, &row);
        if (row < 0) {
            break;
        }
        schedule_prompt(s, row, budget);
    }
    return status == CLI_OK && s->n_admissions > before ? ledger_measure(&s->ledger) : status;
}

int schedule_step(schedule *s, bool *more)
{
    *more = s->n_running > 0 || n_waiting(s) > 0;
    if (!*more) {
        return CLI_OK;
    }
    if (s->n_running == 0 && s->n_put_back == 0) {
        wait_for_arrival(s);
    }
    int64_t budget = s->limits.max_num_batched_tokens;
    bool    put_back = false;
    s->has_prefill = false;
    int status = schedule_decodes(s, &budget, &put_back);
    if (status == CLI_OK && s->prefill >= 0 && budget > 0) {
        schedule_prompt(s, s->prefill, &budget);
    }
    if (status == CLI_OK && !put_back) {
        status = schedule_admissions(s, &budget);
    }
    if (status == CLI_OK && s->n_running == 0) {
        return cli_fail(CLI_DIFFERENCE, "the pool has no pages for request %" PRId64
                                        ", though nobody holds any", s->next);
    }
    s->n_tokens = s->limits.max_num_batched_tokens - budget;
    return status;
}

bool schedule_row_done(const schedule *s, int64_t row)
{
    return s->request[row] >= 0 &&
           s->computed[row] == schedule_total_tokens(row_request(s, row));
}

/* What the step has filled can be found from now on. */
static int publish(schedule *s, int64_t row)
{
    const int64_t S = s->limits.page_size, n = s->computed[row] / S * S;
    const int64_t from = ledger_published(&s->ledger, row);
    if (n <= from) {
        return CLI_OK;
    }
    prompts_tokens(s->prompts, s->request[row], from > 0 ? from - S : 0, n, s->tokens);
    return ledger_publish(&s->ledger, row, s->request[row], s->tokens, n);
}

int schedule_commit(schedule *s)
{
    int64_t context_tokens = 0;
    int     status = CLI_OK;
    for (int64_t row = 0; row < s->n_rows; row++) {
        const int64_t before = s->computed[row], again = s->reached[row] - before;
        if (again > 0) {
            s->recomputed_tokens += again < s->scheduled[row] ? again : s->scheduled[row];
        }
        s->computed[row] += s->scheduled[row];
        s->reached[row] = s->computed[row] > s->reached[row] ? s->computed[row] : s->reached[row];
        context_tokens += s->scheduled[row] == 1 ? s->computed[row] : 0;
        if (s->limits.prefix_cache && s->scheduled[row] > 0 && status == CLI_OK) {
            status = publish(s, row);
        }
        s->scheduled[row] = 0;
    }
    s->clock_ns += STEP_NS + TOKEN_NS * s->n_tokens + CONTEXT_TOKEN_NS * context_tokens;
    return status;
}

int schedule_end_row(schedule *s, int64_t row)
{
    s->n_finished++;
    return leave(s, row);
}
