/* The replay's checks: histories read back byte by byte, poison where nobody writes. */
#include "engine.h"

#include <inttypes.h>
#include <string.h>

#ifdef _OPENMP
#include <omp.h>
#endif

/* Prints the first difference; a broken run has too many to print them all. */
static void report_difference(engine *e, int64_t row, int64_t position, int64_t layer,
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

static bool token_matches(engine *e, int64_t row, int64_t position, unsigned char *scratch)
{
    const int64_t slot = engine_row_slot(e, row, position);
    for (int64_t layer = 0; layer < e->o->num_layers; layer++) {
        content_fill(&e->shape, engine_request_key(e, row), position, layer, scratch);
        content_stamp(&e->shape, position, e->stamps[slot], scratch);
        if (memcmp(scratch, engine_cache_slot(e, layer, slot), (size_t)e->shape.row_bytes) != 0) {
            report_difference(e, row, position, layer, scratch);
            return false;
        }
    }
    return true;
}

/* Slots of the row's pages that no token was written to still hold poison. */
static int64_t count_dirty_rest(const engine *e, int64_t row, int64_t n_tokens)
{
    int64_t n_pages = 0, dirty = 0;
    schedule_row_pages(&e->schedule, row, &n_pages);
    for (int64_t position = n_tokens; position < n_pages * e->o->page_size; position++) {
        for (int64_t layer = 0; layer < e->o->num_layers; layer++) {
            dirty += !content_is_poison(engine_cache_slot(e, layer, engine_row_slot(e, row, position)),
                                        (size_t)e->shape.row_bytes);
        }
    }
    return dirty;
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
    e->result->poison_errors += count_dirty_rest(e, row, n_tokens);
}

void engine_poison_row(const engine *e, int64_t row)
{
    int64_t        n_pages = 0;
    const int32_t *pages = schedule_row_pages(&e->schedule, row, &n_pages);
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
    const int64_t page_bytes = e->o->page_size * e->shape.row_bytes;
    const int64_t n = e->result->num_pages * e->o->num_layers;
    for (int64_t i = 0; i < n; i++) {
        const unsigned char *page = (const unsigned char *)e->cache_memory.data + i * page_bytes;
        e->result->poison_errors += !content_is_poison(page, (size_t)page_bytes);
    }
}
