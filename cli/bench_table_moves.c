/* Tables of the cases convert, gather, layout, copy-pages and swap, and of update's layers. */
#include <string.h>

#include "bench.h"

/* A case and what stands over its table. */
static const char *const tables[][2] = {
    {"convert", "update with another element type"},
    {"gather", "gather with another element type"},
    {"layout", "copies into other layouts and from strided rows"},
    {"update", "update layers, 32 in one call; calls: over 32 calls"},
    {"copy-pages", "pages inside a cache"},
    {"swap", "pages of 32 layers to a buffer and back"},
};

static bool is_shown(const bench_row *row, const char *case_name)
{
    return strcmp(row->case_name, case_name) == 0 && strcmp(row->impl, "pagedkv") == 0 &&
           (strcmp(case_name, "update") != 0 || row->layers > 0);
}

static void print_row(const bench_row *row, FILE *out)
{
    double fractions[] = {row->limit_fraction, row->pattern_fraction, row->calls_fraction,
                          row->numpy_fraction, row->index_copy_fraction};

    fprintf(out, "%-20s %5lld %-8s %2lld %3s %7s %4.*f", row->pattern, (long long)row->tokens,
            row->layout, (long long)row->threads, row->huge_pages > 0 ? "yes" : "no",
            bench_time_text(row->ns_median).s, row->bytes_per_s < 99.95e9,
            row->bytes_per_s / 1e9);
    for (size_t i = 0; i < sizeof fractions / sizeof fractions[0]; i++) {
        fprintf(out, " %4s", bench_fraction_text(fractions[i]).s);
    }
    fprintf(out, "\n");
}

void bench_print_moves(const bench_results *results, FILE *out)
{
    for (size_t t = 0; t < sizeof tables / sizeof tables[0]; t++) {
        bool any = false; /* is the head of the table there? */
        for (int64_t i = 0; i < results->n_rows; i++) {
            const bench_row *row = &results->rows[i];
            if (!is_shown(row, tables[t][0])) {
                continue;
            }
            if (!any) {
                fprintf(out, "\n%s: %s\n", tables[t][0], tables[t][1]);
                fprintf(out, "%-20s %5s %-8s %2s %3s %7s %4s %4s %4s %4s %4s %4s\n", "pattern",
                        "token", "layout", "th", "hp", "time", "GB/s", "lim", "loop", "call",
                        "nump", "torc");
                any = true;
            }
            print_row(row, out);
        }
    }
}
