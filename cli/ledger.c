/* The replay's pages: see ledger.h. */
#include "ledger.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* ---- memory ------------------------------------------------------------------------- */

static pkv_pool_config pool_config(const ledger_config *c)
{
    return (pkv_pool_config){.struct_size = sizeof(pkv_pool_config), .n_pages = c->num_pages,
                             .allocator = c->allocator};
}

static pkv_seqs_config seqs_config(const ledger_config *c)
{
    return (pkv_seqs_config){.struct_size = sizeof(pkv_seqs_config), .max_seqs = c->n_rows,
                             .max_pages_per_seq = c->width, .page_size = c->page_size};
}

bool ledger_add_bytes(const ledger_config *c, int64_t *sum_bytes)
{
    const pkv_pool_config pool = pool_config(c);
    const pkv_seqs_config seqs = seqs_config(c);
    const uint64_t        most = (uint64_t)INT64_MAX / 4;
    const uint64_t        row_bytes = 2 * sizeof(pkv_seq) + 4 * sizeof(int32_t);
    uint64_t              pool_bytes = 0, seqs_bytes = 0;
    if (pkv_pool_bytes(&pool, &pool_bytes, NULL) != PKV_OK || pool_bytes > most ||
        pkv_seqs_bytes(&seqs, &seqs_bytes, NULL) != PKV_OK || seqs_bytes > most) {
        return false;
    }
    /* The library allowed both, so these are at most as large. */
    const uint64_t notes_bytes = (uint64_t)c->num_pages * sizeof(int32_t) +
                                 (uint64_t)c->n_rows * row_bytes +
                                 (uint64_t)(c->n_rows * c->width) * sizeof(int32_t);
    return !__builtin_add_overflow(*sum_bytes, (int64_t)(pool_bytes + seqs_bytes), sum_bytes) &&
           !__builtin_add_overflow(*sum_bytes, (int64_t)notes_bytes, sum_bytes);
}

static int make_pool(ledger *p)
{
    const pkv_pool_config pool = pool_config(&p->config);
    const pkv_seqs_config seqs = seqs_config(&p->config);
    pkv_error             err;
    if (pkv_pool_create(&pool, NULL, &p->pool, &err) != PKV_OK) {
        return cli_fail_pkv(&err, "the pool");
    }
    if (pkv_seqs_create(&seqs, p->pool, NULL, &p->seqs, &err) != PKV_OK) {
        return cli_fail_pkv(&err, "the sequences");
    }
    return CLI_OK;
}

int ledger_init(ledger *p, const ledger_config *c)
{
    *p = (ledger){.config = *c, .least_extent = c->num_pages};
    const size_t rows = (size_t)c->n_rows;
    p->sequences = calloc(rows, sizeof *p->sequences);
    p->running = calloc(rows, sizeof *p->running);
    p->computed = calloc(rows, sizeof *p->computed);
    p->scheduled = calloc(rows, sizeof *p->scheduled);
    p->places = calloc(rows, sizeof *p->places);
    p->noted = calloc(rows * (size_t)c->width, sizeof *p->noted);
    p->n_noted = calloc(rows, sizeof *p->n_noted);
    p->holders = malloc((size_t)c->num_pages * sizeof *p->holders);
    if (p->sequences == NULL || p->running == NULL || p->computed == NULL ||
        p->scheduled == NULL || p->places == NULL || p->noted == NULL || p->n_noted == NULL ||
        p->holders == NULL) {
        return cli_no_memory("the pages' notes");
    }
    memset(p->holders, 0xff, (size_t)c->num_pages * sizeof *p->holders);
    return make_pool(p);
}

void ledger_free(ledger *p)
{
    pkv_seqs_destroy(p->seqs);
    pkv_pool_destroy(p->pool);
    free(p->sequences);
    free(p->running);
    free(p->computed);
    free(p->scheduled);
    free(p->places);
    free(p->noted);
    free(p->n_noted);
    free(p->holders);
    *p = (ledger){0};
}

/* ---- pages come and go ------------------------------------------------------------------ */

/* The library broke its word: a difference, whatever its status would be otherwise. */
static int fail_library(const pkv_error *err, const char *what)
{
    char line[512];
    pkv_error_format(err, line, sizeof line);
    return cli_fail(CLI_DIFFERENCE, "%s: %s", what, line);
}

/* A copy of the pages that a sequence has got; nobody else may have them. */
static int note_pages(ledger *p, int64_t row, int64_t n_tokens)
{
    const int64_t S = p->config.page_size, n_pages = n_tokens / S + (n_tokens % S != 0);
    int32_t      *noted = p->noted + row * p->config.width;
    pkv_seq_state state = {.struct_size = sizeof state};
    pkv_error     err;
    if (pkv_seq_info(p->seqs, p->sequences[row], &state, &err) != PKV_OK) {
        return fail_library(&err, "the sequence");
    }
    if (state.n_pages != n_pages) {
        return cli_fail(CLI_DIFFERENCE,
                        "a sequence of %" PRId64 " tokens got %" PRId64 " pages, not %" PRId64,
                        n_tokens, state.n_pages, n_pages);
    }
    for (int64_t i = 0; i < n_pages; i++) {
        const int32_t page = state.pages[i];
        if (page < 0 || page >= p->config.num_pages || p->holders[page] >= 0) {
            return cli_fail(CLI_DIFFERENCE, "the pool handed out page %" PRId32 ", which is %s",
                            page, page < 0 || page >= p->config.num_pages ? "none" : "in use");
        }
        p->holders[page] = (int32_t)row;
        noted[i] = page;
    }
    p->n_noted[row] = (int32_t)n_pages;
    p->n_held += n_pages;
    p->n_held_peak = p->n_held > p->n_held_peak ? p->n_held : p->n_held_peak;
    return CLI_OK;
}

/*
 * Admission reserves everything, so the whole is committed at once: a length in
 * the library is what a sequence has room for, and how much of it is computed
 * is known to the schedule.
 */
int ledger_take(ledger *p, int64_t row, int64_t n_tokens, bool *got)
{
    const int32_t n = (int32_t)n_tokens;
    int64_t       n_copies = 0;
    pkv_error     err;
    *got = false;
    if (pkv_seq_open(p->seqs, &p->sequences[row], &err) != PKV_OK) {
        return fail_library(&err, "opening a sequence");
    }
    pkv_status status =
        pkv_seqs_reserve(p->seqs, &p->sequences[row], &n, 1, 0, NULL, 0, &n_copies, &err);
    if (status == PKV_E_NO_PAGES) {
        status = pkv_seq_close(p->seqs, p->sequences[row], &err);
        p->sequences[row] = 0;
        return status == PKV_OK ? CLI_OK : fail_library(&err, "closing a sequence");
    }
    if (status == PKV_OK) {
        status = pkv_seqs_commit(p->seqs, &err);
    }
    if (status != PKV_OK) {
        return fail_library(&err, "reserving pages");
    }
    *got = true;
    p->n_copies += n_copies;
    return note_pages(p, row, n_tokens);
}

int ledger_give(ledger *p, int64_t row)
{
    int64_t        n_pages = 0;
    const int32_t *noted = ledger_of(p, row, &n_pages);
    pkv_error      err;
    for (int64_t i = 0; i < n_pages; i++) {
        p->holders[noted[i]] = -1;
    }
    p->n_held -= n_pages;
    p->n_noted[row] = 0;
    pkv_status status = pkv_seq_close(p->seqs, p->sequences[row], &err);
    p->sequences[row] = 0;
    return status == PKV_OK ? CLI_OK : fail_library(&err, "closing a sequence");
}

const int32_t *ledger_of(const ledger *p, int64_t row, int64_t *n_pages)
{
    *n_pages = p->n_noted[row];
    return p->noted + row * p->config.width;
}

int ledger_batch(ledger *p, const int32_t *computed, const int32_t *scheduled, int64_t n_rows,
                pkv_batch *out)
{
    pkv_error err;
    int64_t   n = 0;
    for (int64_t row = 0; row < n_rows; row++) {
        if (p->sequences[row] != 0) {
            p->running[n++] = p->sequences[row];
        }
    }
    if (pkv_seqs_batch(p->seqs, p->running, n, p->computed, p->scheduled, p->places, out, &err) !=
        PKV_OK) {
        return fail_library(&err, "the batch");
    }
    n = 0;
    for (int64_t row = 0; row < n_rows; row++) {
        if (p->sequences[row] != 0) {
            p->computed[n] = computed[row];
            p->scheduled[n++] = scheduled[row];
        }
    }
    out->n_pages = p->config.num_pages;
    return CLI_OK;
}

/* ---- counts --------------------------------------------------------------------------- */

int ledger_counts(const ledger *p, pkv_pool_counts *out)
{
    pkv_error err;
    *out = (pkv_pool_counts){.struct_size = sizeof *out};
    return pkv_pool_stats(p->pool, out, &err) == PKV_OK ? CLI_OK
                                                        : fail_library(&err, "the pool's counts");
}

int ledger_measure(ledger *p)
{
    pkv_pool_counts counts;
    int             status = ledger_counts(p, &counts);
    if (status == CLI_OK && counts.largest_extent < p->least_extent) {
        p->least_extent = counts.largest_extent;
    }
    return status;
}

int ledger_check(const ledger *p, const pkv_pool_counts *counts)
{
    pkv_error err;
    if (pkv_seqs_check(p->seqs, 1, &err) != PKV_OK) {
        return fail_library(&err, "the pool at the end");
    }
    if (counts->n_used != p->n_held || counts->n_used_peak != p->n_held_peak) {
        return cli_fail(CLI_DIFFERENCE,
                        "the pool counts %" PRId64 " pages in use and %" PRId64 " at the peak; "
                        "noted are %" PRId64 " and %" PRId64,
                        counts->n_used, counts->n_used_peak, p->n_held, p->n_held_peak);
    }
    return CLI_OK;
}
