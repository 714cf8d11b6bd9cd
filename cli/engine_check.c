/* The replay's checks: histories read back byte by byte, poison where nobody wrote, counts. */
#include "engine.h"

#include <inttypes.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

/* Prints the first difference; a broken run has too many to print them all. */
static void report_token(engine *e, int64_t row, int64_t position, int64_t layer,
                         const unsigned char *expected)
{
#ifdef _OPENMP
#pragma omp critical
#endif
    if (!e->reported) {
        const unsigned char *found = engine_cache_slot(e, layer, engine_row_slot(e, row, position));
        int64_t              byte = 0;
        while (expected[byte] == found[byte]) {
            byte++;
        }
        int64_t vector = byte / e->shape.head_bytes;
        cli_fail(CLI_DIFFERENCE,
                 "request %" PRId64 ", token %" PRId64 ", slot %" PRId64 ", layer %" PRId64
                 ", %s head %" PRId64 ", byte %" PRId64 ": expected 0x%02x, found 0x%02x",
                 e->schedule.request[row], position, engine_row_slot(e, row, position), layer,
                 vector % 2 == 0 ? "K" : "V", vector / 2, byte % e->shape.head_bytes,
                 expected[byte], found[byte]);
        e->reported = true;
    }
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
    }
    return strays;
}

void engine_check_targets(engine *e)
{
    const int64_t n = e->schedule.n_tokens;
    int64_t       strays = 0;
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
        bool goes_on = t > 0 && token->key == token[-1].key;
        exact += !(goes_on && token->position % e->o->page_size != 0);
        merged += !(goes_on && token->slot == token[-1].slot + 1);
    }
    check_count(e, "exact", e->counts[WAY_EXACT], exact);
    check_count(e, "merged", e->counts[WAY_MERGED], merged);
}

static bool token_matches(engine *e, int64_t row, int64_t position, unsigned char *scratch)
{
    const int64_t slot = engine_row_slot(e, row, position);
    for (int64_t layer = 0; layer < e->o->num_layers; layer++) {
        content_fill(&e->shape, engine_request_key(e, row), position, layer, scratch);
        content_stamp(&e->shape, position, e->stamps[slot], scratch);
        if (memcmp(scratch, engine_cache_slot(e, layer, slot), (size_t)e->shape.row_bytes) != 0) {
            report_token(e, row, position, layer, scratch);
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

void engine_verify_row(engine *e, int64_t row)
{
    const int64_t n_tokens = e->schedule.computed[row];
    int64_t       mismatched = 0;
#ifdef _OPENMP
#pragma omp parallel for num_threads((int)e->o->threads) schedule(static) reduction(+ : mismatched)
#endif
    for (int64_t position = 0; position < n_tokens; position++) {
#ifdef _OPENMP
        unsigned char *scratch = e->scratch + omp_get_thread_num() * e->shape.row_bytes;
#else
        unsigned char *scratch = e->scratch;
#endif
        mismatched += token_matches(e, row, position, scratch) ? 0 : 1;
    }
    e->result->verified_tokens += n_tokens;
    e->result->mismatched_tokens += mismatched;
    e->result->poison_errors += count_stray_rest(e, row, n_tokens);
}

void engine_poison_row(const engine *e, int64_t row)
{
    int64_t        n_pages = 0;
    const int32_t *pages = ledger_of(&e->schedule.ledger, row, &n_pages);
    const int64_t  page_bytes = e->o->page_size * e->shape.row_bytes;
    for (int64_t i = 0; i < n_pages; i++) {
        for (int64_t layer = 0; layer < e->o->num_layers; layer++) {
            memset(engine_cache_slot(e, layer, pages[i] * e->o->page_size), CONTENT_POISON,
                   (size_t)page_bytes);
        }
    }
}

void engine_check_poison(engine *e)
{
    const unsigned char *memory = e->cache_memory.data;
    const int64_t        memory_bytes = (int64_t)e->cache_memory.size_bytes;
    const int64_t        piece_bytes = e->o->page_size * e->shape.row_bytes;
    for (int64_t at = 0; at < memory_bytes; at += piece_bytes) {
        int64_t rest = memory_bytes - at;
        e->result->poison_errors +=
            count_stray(e, memory + at, rest < piece_bytes ? rest : piece_bytes);
    }
}
