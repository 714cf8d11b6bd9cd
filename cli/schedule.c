/* Continuous batching: see schedule.h and docs/replay.md. */
#include "schedule.h"

#include <stdlib.h>
#include <string.h>

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

static int64_t widest_request(const trace *t, int64_t page_size)
{
    int64_t width = 1;
    for (int64_t i = 0; i < t->n_requests; i++) {
        int64_t pages = schedule_pages(&t->requests[i], page_size);
        width = pages > width ? pages : width;
    }
    return width;
}

bool schedule_init(schedule *s, const trace *t, const schedule_limits *limits)
{
    *s = (schedule){.limits = *limits, .trace = t, .prefill = -1};
    s->width = widest_request(t, limits->page_size);
    const size_t rows = (size_t)limits->max_num_reqs;
    s->request = malloc(rows * sizeof *s->request);
    s->computed = calloc(rows, sizeof *s->computed);
    s->scheduled = calloc(rows, sizeof *s->scheduled);
    s->block_table = calloc(rows * (size_t)s->width, sizeof *s->block_table);
    s->free_pages = malloc((size_t)limits->num_pages * sizeof *s->free_pages);
    if (s->request == NULL || s->computed == NULL || s->scheduled == NULL ||
        s->block_table == NULL || s->free_pages == NULL) {
        schedule_free(s);
        return false;
    }
    for (int64_t row = 0; row < limits->max_num_reqs; row++) {
        s->request[row] = -1;
    }
    s->n_free = limits->num_pages;
    for (int64_t i = 0; i < s->n_free; i++) {
        s->free_pages[i] = (int32_t)(s->n_free - 1 - i);
    }
    return true;
}

void schedule_free(schedule *s)
{
    free(s->request);
    free(s->computed);
    free(s->scheduled);
    free(s->block_table);
    free(s->free_pages);
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

/* The next waiting request, if it has arrived and a row and its pages are free. */
static const trace_request *admissible(const schedule *s)
{
    if (s->next >= s->trace->n_requests || s->n_running >= s->limits.max_num_reqs) {
        return NULL;
    }
    const trace_request *r = &s->trace->requests[s->next];
    bool here = !s->limits.follow_arrivals || r->arrival_ns <= s->clock_ns;
    return here && schedule_pages(r, s->limits.page_size) <= s->n_free ? r : NULL;
}

static int64_t admit(schedule *s, const trace_request *r)
{
    int64_t  row = free_row(s);
    int64_t  n_pages = schedule_pages(r, s->limits.page_size);
    int32_t *pages = s->block_table + row * s->width;
    for (int64_t i = 0; i < n_pages; i++) {
        pages[i] = s->free_pages[--s->n_free];
    }
    s->request[row] = s->next++;
    s->computed[row] = 0;
    s->scheduled[row] = 0;
    s->n_running++;
    s->n_rows = row + 1 > s->n_rows ? row + 1 : s->n_rows;
    s->prompt_tokens += r->prompt_tokens;
    int64_t used = s->limits.num_pages - s->n_free;
    s->pages_peak = used > s->pages_peak ? used : s->pages_peak;
    return row;
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

bool schedule_step(schedule *s)
{
    if (s->n_running == 0 && s->next == s->trace->n_requests) {
        return false;
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
    while (budget > 0 && s->prefill < 0) {
        const trace_request *r = admissible(s);
        if (r == NULL) {
            break;
        }
        schedule_prompt(s, admit(s, r), &budget);
    }
    s->n_tokens = s->limits.max_num_batched_tokens - budget;
    return true;
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

void schedule_end_row(schedule *s, int64_t row)
{
    int64_t        n_pages = 0;
    const int32_t *pages = schedule_row_pages(s, row, &n_pages);
    for (int64_t i = n_pages; i > 0; i--) {
        s->free_pages[s->n_free++] = pages[i - 1];
    }
    s->request[row] = -1;
    s->computed[row] = 0;
    s->n_running--;
    s->n_finished++;
    while (s->n_rows > 0 && s->request[s->n_rows - 1] < 0) {
        s->n_rows--;
    }
}

const int32_t *schedule_row_pages(const schedule *s, int64_t row, int64_t *n_pages)
{
    *n_pages = schedule_pages(row_request(s, row), s->limits.page_size);
    return s->block_table + row * s->width;
}
