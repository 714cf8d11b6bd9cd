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
    return (ledger_config){.allocator = limits->allocator, .page_size = limits->page_size,
                          .num_pages = limits->num_pages, .n_rows = limits->max_num_reqs,
                          .width = width};
}

int schedule_init(schedule *s, const trace *t, const schedule_limits *limits, int64_t width)
{
    *s = (schedule){.limits = *limits, .trace = t, .prefill = -1};
    const size_t rows = (size_t)limits->max_num_reqs;
    s->request = malloc(rows * sizeof *s->request);
    s->computed = calloc(rows, sizeof *s->computed);
    s->scheduled = calloc(rows, sizeof *s->scheduled);
    if (s->request == NULL || s->computed == NULL || s->scheduled == NULL) {
        return cli_no_memory("the schedule");
    }
    for (int64_t row = 0; row < limits->max_num_reqs; row++) {
        s->request[row] = -1;
    }
    const ledger_config config = schedule_ledger_config(limits, width);
    return ledger_init(&s->ledger, &config);
}

void schedule_free(schedule *s)
{
    free(s->request);
    free(s->computed);
    free(s->scheduled);
    ledger_free(&s->ledger);
    *s = (schedule){0};
}

static const trace_request *row_request(const schedule *s, int64_t row)
{
    return &s->trace->requests[s->request[row]];
}

static int64_t free_row(const schedule *s)
{
    int64_t row = 0;
    while (s->request[row] >= 0) {
        row++;
    }
    return row;
}

/* The next waiting request, if it has arrived and a row is free. */
static const trace_request *admissible(const schedule *s)
{
    if (s->next >= s->trace->n_requests || s->n_running >= s->limits.max_num_reqs) {
        return NULL;
    }
    const trace_request *r = &s->trace->requests[s->next];
    bool here = !s->limits.follow_arrivals || r->arrival_ns <= s->clock_ns;
    return here ? r : NULL;
}

/* Gives a request a row and all its pages; without them (*row < 0) it goes on waiting. */
static int admit(schedule *s, const trace_request *r, int64_t *row)
{
    const int64_t at = free_row(s);
    bool          got = false;
    int status = ledger_take(&s->ledger, at, r->prompt_tokens + r->output_tokens, &got);
    *row = -1;
    if (status != CLI_OK || !got) {
        return status;
    }
    *row = at;
    s->request[at] = s->next++;
    s->computed[at] = 0;
    s->scheduled[at] = 0;
    s->n_running++;
    s->n_rows = at + 1 > s->n_rows ? at + 1 : s->n_rows;
    s->prompt_tokens += r->prompt_tokens;
    return CLI_OK;
}

/* As much of a row's prompt as the budget has left; the rest waits as the prefill. */
static void schedule_prompt(schedule *s, int64_t row, int64_t *budget)
{
    int64_t left = row_request(s, row)->prompt_tokens - s->computed[row];
    int64_t now = left < *budget ? left : *budget;
    s->scheduled[row] = (int32_t)now;
    s->prefill = now < left ? row : -1;
    s->has_prefill = s->has_prefill || now > 0;
    *budget -= now;
}

/* One token for every running request that has its prompt behind it. */
static void schedule_decodes(schedule *s, int64_t *budget)
{
    for (int64_t row = 0; row < s->n_rows; row++) {
        s->scheduled[row] = 0;
        bool decodes = s->request[row] >= 0 && row != s->prefill;
        if (decodes && *budget > 0) {
            s->scheduled[row] = 1;
            *budget -= 1;
        }
    }
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
    const int64_t first = s->next;
    int           status = CLI_OK;
    while (status == CLI_OK && *budget > 0 && s->prefill < 0) {
        const trace_request *r = admissible(s);
        int64_t              row = -1;
        status = r != NULL ? admit(s, r, &row) : CLI_OK;
        if (row < 0) {
            break;
        }
        schedule_prompt(s, row, budget);
    }
    return status == CLI_OK && s->next > first ? ledger_measure(&s->ledger) : status;
}

int schedule_step(schedule *s, bool *more)
{
    *more = s->n_running > 0 || s->next < s->trace->n_requests;
    if (!*more) {
        return CLI_OK;
    }
    if (s->n_running == 0) {
        wait_for_arrival(s);
    }
    int64_t budget = s->limits.max_num_batched_tokens;
    s->has_prefill = false;
    schedule_decodes(s, &budget);
    if (s->prefill >= 0 && budget > 0) {
        schedule_prompt(s, s->prefill, &budget);
    }
    int status = schedule_admissions(s, &budget);
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

void schedule_commit(schedule *s)
{
    int64_t context_tokens = 0;
    for (int64_t row = 0; row < s->n_rows; row++) {
        s->computed[row] += s->scheduled[row];
        context_tokens += s->scheduled[row] == 1 ? s->computed[row] : 0;
        s->scheduled[row] = 0;
    }
    s->clock_ns += STEP_NS + TOKEN_NS * s->n_tokens + CONTEXT_TOKEN_NS * context_tokens;
}

int schedule_end_row(schedule *s, int64_t row)
{
    s->request[row] = -1;
    s->computed[row] = 0;
    s->n_running--;
    s->n_finished++;
    while (s->n_rows > 0 && s->request[s->n_rows - 1] < 0) {
        s->n_rows--;
    }
    return ledger_give(&s->ledger, row);
}
