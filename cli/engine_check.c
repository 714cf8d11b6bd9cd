/* The replay's checks: histories read back byte by byte, poison where nobody wrote, counts. */
#include "engine.h"
#include "engine_cuda.h"

#include <inttypes.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

/* A token of a request, and where it must be. */
typedef struct place {
    int64_t request, position, slot;
} place;

/* Prints the first difference; a broken run has too many to print them all. */
static void report_token(engine *e, const place *at, int64_t layer, const unsigned char *expected)
{
#ifdef _OPENMP
#pragma omp critical
#endif
    if (!e->reported) {
        const unsigned char *found = engine_cache_slot(e, layer, at->slot);
        int64_t              byte = 0;
        while (expected[byte] == found[byte]) {
            byte++;
        }
        int64_t vector = byte / e->shape.head_bytes;
        cli_fail(CLI_DIFFERENCE,
                 "request %" PRId64 ", token %" PRId64 ", slot %" PRId64 ", layer %" PRId64
                 ", %s head %" PRId64 ", byte %" PRId64 ": expected 0x%02x, found 0x%02x",
                 at->request, at->position, at->slot, layer,
                 vector % 2 == 0 ? "K" : "V", vector / 2, byte % e->shape.head_bytes,
                 expected[byte], found[byte]);
        e->reported = true;
    }
}

/* The same for a computed scale. */
static void report_scale(engine *e, const place *at, int64_t layer, int plane)
{
#ifdef _OPENMP
#pragma omp critical
#endif
    if (!e->reported) {
        cli_fail(CLI_DIFFERENCE,
                 "request %" PRId64 ", token %" PRId64 ", slot %" PRId64 ", layer %" PRId64
                 ": a scale of %s is not that of its numbers",
                 at->request, at->position, at->slot, layer, plane == 0 ? "K" : "V");
        e->reported = true;
    }
}

/* Poison of scales: 1 if a byte is none. */
static int64_t count_stray_scales(engine *e, int64_t layer, int64_t slot, int64_t n_slots)
{
    const int64_t bytes = engine_scales_bytes(e) * n_slots;
    bool          stray = false;
    for (int plane = 0; plane < 2 && bytes > 0; plane++) {
        stray = stray || !content_is_poison(engine_slot_scales(e, layer, plane, slot),
                                            (size_t)bytes);
    }
#ifdef _OPENMP
#pragma omp critical
#endif
    if (stray && !e->reported) {
        cli_fail(CLI_DIFFERENCE,
                 "stray write: step %" PRId64 ", slots %" PRId64 " to %" PRId64 ", layer %" PRId64
                 ": a scale that belongs to no token",
                 e->step, slot, slot + n_slots - 1, layer);
        e->reported = true;
    }
    return stray;
}

/* The same for a byte that is not poison, wherever it lies in the cache's memory. */
static void report_stray(engine *e, const unsigned char *at)
{
#ifdef _OPENMP
#pragma omp critical
#endif
    if (!e->reported) {
        const int64_t offset = at - engine_cache_slot(e, 0, 0);
        const int64_t layer = offset / e->layer_bytes;
        const int64_t byte = offset % e->layer_bytes % e->shape.row_bytes;
        const int64_t slot = offset % e->layer_bytes / e->shape.row_bytes;
        if (offset < 0 || layer >= e->o->num_layers) {
            cli_fail(CLI_DIFFERENCE, "stray write %s the cache: expected 0x%02x, found 0x%02x",
                     offset < 0 ? "in front of" : "behind", CONTENT_POISON, *at);
        } else {
            cli_fail(CLI_DIFFERENCE,
                     "stray write: step %" PRId64 ", page %" PRId64 ", slot %" PRId64
                     ", layer %" PRId64 ", byte %" PRId64 ": expected 0x%02x, found 0x%02x",
                     e->step, slot / e->o->page_size, slot, layer, byte, CONTENT_POISON, *at);
        }
        e->reported = true;
    }
}

/* 1 if a byte of the range is not poison, else 0. */
static int64_t count_stray(engine *e, const unsigned char *bytes, int64_t n_bytes)
{
    if (content_is_poison(bytes, (size_t)n_bytes)) {
        return 0;
    }
    while (*bytes == CONTENT_POISON) {
        bytes++;
    }
    report_stray(e, bytes);
    return 1;
}

static int64_t count_stray_slot(engine *e, int64_t slot)
{
    int64_t strays = 0;
    for (int64_t layer = 0; layer < e->o->num_layers; layer++) {
        strays += count_stray(e, engine_cache_slot(e, layer, slot), e->shape.row_bytes);
        strays += count_stray_scales(e, layer, slot, 1);
    }
    return strays;
}

/* The step's slots, from the device, adjacent ones at once. */
static void fetch_targets(engine *e)
{
    const step_token *tokens = e->tokens;
    int64_t           first = 0;
    for (int64_t t = 1; e->cuda != NULL && t <= e->schedule.n_tokens; t++) {
        if (t == e->schedule.n_tokens || tokens[t].slot != tokens[t - 1].slot + 1) {
            engine_cuda_fetch(e, tokens[first].slot, t - first);
            first = t;
        }
    }
}

/* The same for all pages of a row. */
static void fetch_row(engine *e, int64_t row)
{
    int64_t        n_pages = 0, first = 0;
    const int32_t *pages = ledger_of(&e->schedule.ledger, row, &n_pages);
    for (int64_t i = 1; e->cuda != NULL && i <= n_pages; i++) {
        if (i == n_pages || pages[i] != pages[i - 1] + 1) {
            engine_cuda_fetch(e, pages[first] * e->o->page_size, (i - first) * e->o->page_size);
            first = i;
        }
    }
}

void engine_check_targets(engine *e)
{
    const int64_t n = e->schedule.n_tokens;
    int64_t       strays = 0;
    fetch_targets(e);
#ifdef _OPENMP
#pragma omp parallel for num_threads((int)e->o->threads) schedule(static) reduction(+ : strays)
#endif
    for (int64_t t = 0; t < n; t++) {
        strays += count_stray_slot(e, e->tokens[t].slot);
    }
    e->result->poison_errors += strays;
}

static void check_count(engine *e, const char *plan, int64_t found, int64_t expected)
{
    if (found == expected) {
        return;
    }
    e->result->plan_errors++;
    if (!e->reported) {
        cli_fail(CLI_DIFFERENCE,
                 "step %" PRId64 ": the %s plan has %" PRId64 " slices, its tokens make %" PRId64,
                 e->step, plan, found, expected);
        e->reported = true;
    }
}

void engine_check_counts(engine *e)
{
    int64_t exact = 0, merged = 0;
    for (int64_t t = 0; t < e->schedule.n_tokens; t++) {
        const step_token *token = &e->tokens[t];
        bool goes_on = t > 0 && token->row == token[-1].row;
        exact += !(goes_on && token->position % e->o->page_size != 0);
        merged += !(goes_on && token->slot == token[-1].slot + 1);
    }
    check_count(e, "exact", e->counts[WAY_EXACT], exact);
    check_count(e, "merged", e->counts[WAY_MERGED], merged);
}

/* Are the computed scales of the token those that stand behind the expected row? */
static bool scales_match(engine *e, const place *at, int64_t layer, const unsigned char *scratch)
{
    const int64_t bytes = engine_scales_bytes(e);
    for (int plane = 0; plane < 2 && bytes > 0; plane++) {
        const unsigned char *found = engine_slot_scales(e, layer, plane, at->slot);
        const unsigned char *expected = scratch + e->shape.row_bytes + plane * bytes;
        if (memcmp(found, expected, (size_t)bytes) != 0) {
            report_scale(e, at, layer, plane);
            return false;
        }
    }
    return true;
}

static bool token_matches(engine *e, const place *at, unsigned char *scratch)
{
    const uint64_t key = prompts_key(&e->prompts, at->request, at->position);
    for (int64_t layer = 0; layer < e->o->num_layers; layer++) {
        engine_expect(e, key, at->position, layer, e->stamps[at->slot], scratch);
        if (memcmp(scratch, engine_cache_slot(e, layer, at->slot), (size_t)e->shape.row_bytes) !=
            0) {
            report_token(e, at, layer, scratch);
            return false;
        }
        if (!scales_match(e, at, layer, scratch)) {
            return false;
        }
    }
    return true;
}

/* Slots of the row's pages that no token was written to still hold poison. */
static int64_t count_stray_rest(engine *e, int64_t row, int64_t n_tokens)
{
    int64_t n_pages = 0, strays = 0;
    ledger_of(&e->schedule.ledger, row, &n_pages);
    for (int64_t position = n_tokens; position < n_pages * e->o->page_size; position++) {
        strays += count_stray_slot(e, engine_row_slot(e, row, position));
    }
    return strays;
}

int64_t engine_verify_row(engine *e, int64_t row)
{
    const int64_t n_tokens = e->schedule.computed[row];
    int64_t       mismatched = 0;
    fetch_row(e, row);
#ifdef _OPENMP
#pragma omp parallel for num_threads((int)e->o->threads) schedule(static) reduction(+ : mismatched)
#endif
    for (int64_t position = 0; position < n_tokens; position++) {
        const place at = {e->schedule.request[row], position, engine_row_slot(e, row, position)};
        mismatched += token_matches(e, &at, engine_scratch(e)) ? 0 : 1;
    }
    e->result->mismatched_tokens += mismatched;
    e->result->poison_errors += count_stray_rest(e, row, n_tokens);
    return n_tokens;
}

static void poison_page(engine *e, int32_t page)
{
    const int64_t page_bytes = e->o->page_size * e->shape.row_bytes;
    for (int64_t layer = 0; layer < e->o->num_layers; layer++) {
        memset(engine_cache_slot(e, layer, page * e->o->page_size), CONTENT_POISON,
               (size_t)page_bytes);
        for (int plane = 0; plane < 2 && e->scales != NULL; plane++) {
            memset(engine_slot_scales(e, layer, plane, page * e->o->page_size), CONTENT_POISON,
                   (size_t)(engine_scales_bytes(e) * e->o->page_size));
        }
    }
    engine_cuda_poison(e, page);
}

void engine_poison_row(engine *e, int64_t row)
{
    int64_t        n_pages = 0;
    const int32_t *pages = ledger_of(&e->schedule.ledger, row, &n_pages);
    for (int64_t i = 0; i < n_pages; i++) {
        if (ledger_is_last(&e->schedule.ledger, pages[i])) {
            poison_page(e, pages[i]);
        }
    }
}

/* Tokens of a page that can be found which are not what its request wrote. */
static int64_t count_wrong(engine *e, int32_t page, const ledger_note *note)
{
    const int64_t S = e->o->page_size;
    int64_t       wrong = 0;
    for (int64_t i = 0; i < S; i++) {
        const place at = {note->request, note->index * S + i, page * S + i};
        wrong += token_matches(e, &at, engine_scratch(e)) ? 0 : 1;
    }
    return wrong;
}

void engine_check_evicted(engine *e, int32_t page, const ledger_note *note)
{
    if (e->o->verify) {
        engine_cuda_fetch(e, page * e->o->page_size, e->o->page_size);
        e->result->mismatched_tokens += count_wrong(e, page, note);
        poison_page(e, page);
    }
}

/* Poison in front of the first layer's cache and behind the last one's. */
static int64_t count_stray_guards(engine *e)
{
    const unsigned char *memory = e->cache_memory.data;
    const unsigned char *end = memory + e->cache_memory.size_bytes;
    const unsigned char *behind = engine_cache_slot(e, e->o->num_layers, 0);
    return count_stray(e, memory, engine_cache_slot(e, 0, 0) - memory) +
           count_stray(e, behind, end - behind);
}

void engine_check_rest(engine *e)
{
    const ledger *p = &e->schedule.ledger;
    const int64_t page_bytes = e->o->page_size * e->shape.row_bytes;
    engine_cuda_fetch_all(e);
    int64_t       strays = count_stray_guards(e), wrong = 0;
#ifdef _OPENMP
#pragma omp parallel for num_threads((int)e->o->threads) schedule(static) \
    reduction(+ : strays, wrong)
#endif
    for (int64_t page = 0; page < p->config.num_pages; page++) {
        if (ledger_is_cached(p, (int32_t)page)) {
            wrong += count_wrong(e, (int32_t)page, &p->notes[page]);
            continue;
        }
        for (int64_t layer = 0; layer < e->o->num_layers; layer++) {
            const int64_t slot = page * e->o->page_size;
            strays += count_stray(e, engine_cache_slot(e, layer, slot), page_bytes);
            strays += count_stray_scales(e, layer, slot, e->o->page_size);
        }
    }
    e->result->poison_errors += strays;
    e->result->mismatched_tokens += wrong;
}
