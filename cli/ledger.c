/* The replay's pages: see ledger.h. */
#include "ledger.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

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

static pkv_prefix_config prefix_config(const ledger_config *c)
{
    return (pkv_prefix_config){.struct_size = sizeof(pkv_prefix_config), .page_size = c->page_size,
                               .n_groups = 1, .hash = XXH3_64bits_withSeed, .seed = 1};
}

/* What the index takes for a page: its header says so, and there is no pool to ask about yet. */
static int64_t index_page_bytes(const ledger_config *c)
{
    return c->prefix_cache ? 4 * c->page_size + 60 : 0;
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
    /* The library allowed both, so these are about as large. */
    const uint64_t page_bytes = sizeof(ledger_note) + (uint64_t)index_page_bytes(c);
    const uint64_t notes_bytes = (uint64_t)c->num_pages * page_bytes +
                                 (uint64_t)c->n_rows * row_bytes +
                                 (uint64_t)((c->n_rows + 1) * c->width) * sizeof(int32_t);
    return notes_bytes < most &&
           !__builtin_add_overflow(*sum_bytes, (int64_t)(pool_bytes + seqs_bytes), sum_bytes) &&
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
    const pkv_prefix_config prefix = prefix_config(&p->config);
    if (p->config.prefix_cache &&
        pkv_prefix_create(&prefix, p->pool, NULL, &p->prefix, &err) != PKV_OK) {
        return cli_fail_pkv(&err, "the prefix index");
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
    p->found = calloc((size_t)c->width, sizeof *p->found);
    p->notes = malloc((size_t)c->num_pages * sizeof *p->notes);
    if (p->sequences == NULL || p->running == NULL || p->computed == NULL ||
        p->scheduled == NULL || p->places == NULL || p->noted == NULL || p->n_noted == NULL ||
        p->found == NULL || p->notes == NULL) {
        return cli_no_memory("the pages' notes");
    }
    for (int64_t i = 0; i < c->num_pages; i++) {
        p->notes[i] = (ledger_note){.request = -1};
    }
    return make_pool(p);
}

void ledger_free(ledger *p)
{
    pkv_seqs_destroy(p->seqs);
    pkv_prefix_destroy(p->prefix);
    pkv_pool_destroy(p->pool);
    free(p->sequences);
    free(p->running);
    free(p->computed);
    free(p->scheduled);
    free(p->places);
    free(p->noted);
    free(p->n_noted);
    free(p->found);
    free(p->notes);
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

/* A page that was handed out as new: nobody may have it, and what it held is gone. */
static int note_new(ledger *p, int32_t page)
{
    ledger_note *note = &p->notes[page];
    if (note->n_holders > 0) {
        return cli_fail(CLI_DIFFERENCE, "the pool handed out page %" PRId32 ", which is in use",
                        page);
    }
    if (note->request >= 0) {
        const ledger_note before = *note;
        note->request = -1;
        p->config.evicted(p->config.user, page, &before);
    }
    return CLI_OK;
}

/* A page that a prompt begins with: it must hold that part of some request's. */
static int note_found(const ledger *p, int32_t page, int64_t index)
{
    const ledger_note *note = &p->notes[page];
    if (note->request < 0 || note->index != index) {
        return cli_fail(CLI_DIFFERENCE,
                        "page %" PRId32 " was found as page %" PRId64 " of a prompt, which it is "
                        "not", page, index);
    }
    return CLI_OK;
}

/* A copy of the pages that a sequence has got beside those noted; the first n_found are shared. */
static int note_pages(ledger *p, int64_t row, int64_t n_tokens, int64_t n_found)
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
    for (int64_t i = p->n_noted[row]; i < n_pages; i++) {
        const int32_t page = state.pages[i];
        if (page < 0 || page >= p->config.num_pages) {
            return cli_fail(CLI_DIFFERENCE, "the pool handed out page %" PRId32 ", which is none",
                            page);
        }
        int status = i < n_found ? note_found(p, page, i) : note_new(p, page);
        if (status != CLI_OK) {
            return status;
        }
        p->n_held += p->notes[page].n_holders++ == 0;
        noted[i] = page;
        p->n_noted[row] = (int32_t)(i + 1);
    }
    p->n_held_peak = p->n_held > p->n_held_peak ? p->n_held : p->n_held_peak;
    return CLI_OK;
}

/* Tokens for n sequences, committed at once; *got is false where the pool has too few pages. */
static int reserve(ledger *p, const pkv_seq *seqs, const int32_t *n_tokens,
                   const pkv_prefix_hit *hits, int64_t n, bool *got)
{
    int64_t    n_copies = 0;
    pkv_error  err;
    pkv_status status =
        pkv_seqs_reserve(p->seqs, seqs, n_tokens, hits, n, 0, NULL, 0, &n_copies, &err);
    *got = status == PKV_OK;
    if (status == PKV_E_NO_PAGES) {
        return CLI_OK;
    }
    if (status == PKV_OK) {
        status = pkv_seqs_commit(p->seqs, &err);
    }
    p->n_copies += n_copies;
    return status == PKV_OK ? CLI_OK : fail_library(&err, "reserving pages");
}

static int close_sequence(ledger *p, int64_t row)
{
    pkv_error  err;
    pkv_status status = pkv_seq_close(p->seqs, p->sequences[row], &err);
    p->sequences[row] = 0;
    return status == PKV_OK ? CLI_OK : fail_library(&err, "closing a sequence");
}

/*
 * What is taken is committed at once: a length in the library is what a sequence
 * has room for, and how much of it is computed is known to the schedule.
 */
int ledger_take(ledger *p, int64_t row, int64_t n_tokens, const int32_t *known, int64_t n_known,
                int64_t *n_hit, bool *got)
{
    pkv_prefix_hit hit = {0};
    pkv_error      err;
    *got = false;
    if (pkv_seq_open(p->seqs, &p->sequences[row], &err) != PKV_OK) {
        return fail_library(&err, "opening a sequence");
    }
    if (p->prefix != NULL &&
        pkv_prefix_find(p->prefix, 0, known, n_known, p->found, p->config.width, &hit, &err) !=
            PKV_OK) {
        return fail_library(&err, "finding a prompt");
    }
    *n_hit = hit.n_pages * p->config.page_size;
    if (*n_hit >= n_known && n_known > 0) {
        return cli_fail(CLI_DIFFERENCE, "a hit of %" PRId64 " tokens leaves none of %" PRId64,
                        *n_hit, n_known);
    }
    const int32_t n = (int32_t)(n_tokens - *n_hit);
    int           status = reserve(p, &p->sequences[row], &n, &hit, 1, got);
    if (status == CLI_OK && !*got) {
        return close_sequence(p, row);
    }
    return status == CLI_OK ? note_pages(p, row, n_tokens, hit.n_pages) : status;
}

int64_t ledger_room(const ledger *p, int64_t row)
{
    pkv_seq_state state = {.struct_size = sizeof state};
    return pkv_seq_info(p->seqs, p->sequences[row], &state, NULL) == PKV_OK ? state.n_tokens : -1;
}

int ledger_grow(ledger *p, const int32_t *rows, int64_t n, bool *got)
{
    for (int64_t i = 0; i < n; i++) {
        p->running[i] = p->sequences[rows[i]];
        p->scheduled[i] = 1;
    }
    int status = reserve(p, p->running, p->scheduled, NULL, n, got);
    for (int64_t i = 0; status == CLI_OK && *got && i < n; i++) {
        status = note_pages(p, rows[i], ledger_room(p, rows[i]), 0);
    }
    return status;
}

int64_t ledger_published(const ledger *p, int64_t row)
{
    pkv_seq_state state = {.struct_size = sizeof state};
    return pkv_seq_info(p->seqs, p->sequences[row], &state, NULL) == PKV_OK
               ? state.n_published * p->config.page_size
               : 0;
}

int ledger_publish(ledger *p, int64_t row, int64_t request, const int32_t *tokens,
                   int64_t n_tokens)
{
    const int32_t *noted = p->noted + row * p->config.width;
    pkv_error      err;
    if (pkv_seq_publish(p->seqs, p->sequences[row], p->prefix, 0, tokens, n_tokens, &err) !=
        PKV_OK) {
        return fail_library(&err, "publishing pages");
    }
    for (int64_t i = n_tokens / p->config.page_size; i-- > 0;) {
        ledger_note *note = &p->notes[noted[i]];
        if (note->request >= 0) {
            break; /* and so are all before it */
        }
        *note = (ledger_note){note->n_holders, (int32_t)request, (int32_t)i};
    }
    return CLI_OK;
}

int ledger_give(ledger *p, int64_t row)
{
    int64_t        n_pages = 0;
    const int32_t *noted = ledger_of(p, row, &n_pages);
    for (int64_t i = 0; i < n_pages; i++) {
        p->n_held -= --p->notes[noted[i]].n_holders == 0;
    }
    p->n_noted[row] = 0;
    return close_sequence(p, row);
}

const int32_t *ledger_of(const ledger *p, int64_t row, int64_t *n_pages)
{
    *n_pages = p->n_noted[row];
    return p->noted + row * p->config.width;
}

bool ledger_is_cached(const ledger *p, int32_t page)
{
    return p->notes[page].n_holders == 0 && p->notes[page].request >= 0;
}

bool ledger_is_last(const ledger *p, int32_t page)
{
    return p->notes[page].n_holders == 1 && p->notes[page].request < 0;
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
    if (pkv_seqs_batch(p->seqs, 0, p->running, n, p->computed, p->scheduled, p->places, out,
                       &err) != PKV_OK) {
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
    int64_t   n_cached = 0;
    if (pkv_seqs_check(p->seqs, 1, &err) != PKV_OK ||
        (p->prefix != NULL && pkv_prefix_check(p->prefix, &err) != PKV_OK)) {
        return fail_library(&err, "the pool at the end");
    }
    for (int32_t page = 0; page < p->config.num_pages; page++) {
        n_cached += ledger_is_cached(p, page);
    }
    if (counts->n_used != p->n_held || counts->n_used_peak != p->n_held_peak ||
        counts->n_cached != n_cached) {
        return cli_fail(CLI_DIFFERENCE,
                        "the pool counts %" PRId64 " pages in use, %" PRId64 " at the peak and "
                        "%" PRId64 " cached; noted are %" PRId64 ", %" PRId64 " and %" PRId64,
                        counts->n_used, counts->n_used_peak, counts->n_cached, p->n_held,
                        p->n_held_peak, n_cached);
    }
    return CLI_OK;
}
