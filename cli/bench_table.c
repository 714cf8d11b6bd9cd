/* Results of `pagedkv bench` as tables for people and as JSON for programs. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "bench.h"

const bench_row bench_row_null = {
    .backend = "cpu",
    .page_size = -1,
    .num_kv_heads = -1,
    .head_dim = -1,
    .requests = -1,
    .tokens = -1,
    .num_slices = -1,
    .padded_num_slices = -1,
    .nodes = -1,
    .pages = -1,
    .layers = -1,
    .threads = -1,
    .rounds = -1,
    .huge_pages = -1,
    .ns_median = -1,
    .ns_p25 = -1,
    .ns_p75 = -1,
    .ns_per_slice = -1,
    .ns_per_page = -1,
    .bytes_per_s = -1,
    .limit_bytes_per_s = -1,
    .limit_fraction = -1,
    .pattern_bytes_per_s = -1,
    .pattern_fraction = -1,
    .memcpy_fraction = -1,
    .numpy_fraction = -1,
    .index_copy_fraction = -1,
    .calls_fraction = -1,
    .floor_ns = -1,
    .unpadded_fraction = -1,
    .large_copy_fraction = -1,
    .linked_list_fraction = -1,
    .adjacent_fraction = -1,
    .used_fraction = -1,
};

int bench_add(bench_results *results, const bench_row *row)
{
    if (results->n_rows == results->capacity) {
        int64_t    capacity = results->capacity > 0 ? 2 * results->capacity : 64;
        bench_row *rows = realloc(results->rows, (size_t)capacity * sizeof *rows);
        if (rows == NULL) {
            return cli_no_memory("the results");
        }
        results->rows = rows;
        results->capacity = capacity;
    }
    results->rows[results->n_rows++] = *row;
    return CLI_OK;
}

/* ---- JSON ---------------------------------------------------------------- */

enum { TEXT, COUNT, NUMBER, TRUTH };

typedef struct field {
    const char *name;
    int         kind;
    size_t      offset;
} field;

static const field fields[] = {
    {"backend", TEXT, offsetof(bench_row, backend)},
    {"device", TEXT, offsetof(bench_row, device)},
    {"impl", TEXT, offsetof(bench_row, impl)},
    {"case", TEXT, offsetof(bench_row, case_name)},
    {"pattern", TEXT, offsetof(bench_row, pattern)},
    {"plan", TEXT, offsetof(bench_row, plan)},
    {"layout", TEXT, offsetof(bench_row, layout)},
    {"page_size", COUNT, offsetof(bench_row, page_size)},
    {"num_kv_heads", COUNT, offsetof(bench_row, num_kv_heads)},
    {"head_dim", COUNT, offsetof(bench_row, head_dim)},
    {"requests", COUNT, offsetof(bench_row, requests)},
    {"tokens", COUNT, offsetof(bench_row, tokens)},
    {"num_slices", COUNT, offsetof(bench_row, num_slices)},
    {"padded_num_slices", COUNT, offsetof(bench_row, padded_num_slices)},
    {"launch", TEXT, offsetof(bench_row, launch)},
    {"nodes", COUNT, offsetof(bench_row, nodes)},
    {"pages", COUNT, offsetof(bench_row, pages)},
    {"layers", COUNT, offsetof(bench_row, layers)},
    {"source", TEXT, offsetof(bench_row, source)},
    {"src_dtype", TEXT, offsetof(bench_row, src_dtype)},
    {"cache_dtype", TEXT, offsetof(bench_row, dtype)},
    {"scales", TEXT, offsetof(bench_row, scales)},
    {"isa", TEXT, offsetof(bench_row, isa)},
    {"threads", COUNT, offsetof(bench_row, threads)},
    {"huge_pages", TRUTH, offsetof(bench_row, huge_pages)},
    {"rounds", COUNT, offsetof(bench_row, rounds)},
    {"ns_median", NUMBER, offsetof(bench_row, ns_median)},
    {"ns_p25", NUMBER, offsetof(bench_row, ns_p25)},
    {"ns_p75", NUMBER, offsetof(bench_row, ns_p75)},
    {"ns_per_slice", NUMBER, offsetof(bench_row, ns_per_slice)},
    {"ns_per_page", NUMBER, offsetof(bench_row, ns_per_page)},
    {"bytes_per_s", NUMBER, offsetof(bench_row, bytes_per_s)},
    {"limit_way", TEXT, offsetof(bench_row, limit_way)},
    {"limit_bytes_per_s", NUMBER, offsetof(bench_row, limit_bytes_per_s)},
    {"limit_fraction", NUMBER, offsetof(bench_row, limit_fraction)},
    {"pattern_way", TEXT, offsetof(bench_row, pattern_way)},
    {"pattern_bytes_per_s", NUMBER, offsetof(bench_row, pattern_bytes_per_s)},
    {"pattern_fraction", NUMBER, offsetof(bench_row, pattern_fraction)},
    {"memcpy_fraction", NUMBER, offsetof(bench_row, memcpy_fraction)},
    {"numpy_fraction", NUMBER, offsetof(bench_row, numpy_fraction)},
    {"index_copy_fraction", NUMBER, offsetof(bench_row, index_copy_fraction)},
    {"calls_fraction", NUMBER, offsetof(bench_row, calls_fraction)},
    {"floor_ns", NUMBER, offsetof(bench_row, floor_ns)},
    {"unpadded_fraction", NUMBER, offsetof(bench_row, unpadded_fraction)},
    {"large_copy_fraction", NUMBER, offsetof(bench_row, large_copy_fraction)},
    {"linked_list_fraction", NUMBER, offsetof(bench_row, linked_list_fraction)},
    {"adjacent_fraction", NUMBER, offsetof(bench_row, adjacent_fraction)},
    {"used_fraction", NUMBER, offsetof(bench_row, used_fraction)},
};

static json_t *field_to_json(const bench_row *row, const field *f)
{
    const char *at = (const char *)row + f->offset;

    if (f->kind == TEXT) {
        const char *text = *(const char *const *)(const void *)at;
        return text != NULL ? json_string(text) : json_null();
    }
    if (f->kind == NUMBER) {
        double number = *(const double *)(const void *)at;
        return number >= 0 ? json_real(number) : json_null();
    }
    int64_t count = *(const int64_t *)(const void *)at;
    if (count < 0) {
        return json_null();
    }
    return f->kind == TRUTH ? json_boolean(count != 0) : json_integer(count);
}

json_t *bench_rows_to_json(const bench_results *results)
{
    json_t *array = json_array();

    for (int64_t i = 0; i < results->n_rows; i++) {
        json_t *object = json_object();
        /* Jansson takes NULL for a value or a container as one more failure. */
        bool failed = json_array_append_new(array, object) != 0;
        for (size_t k = 0; k < sizeof fields / sizeof fields[0] && !failed; k++) {
            json_t *value = field_to_json(&results->rows[i], &fields[k]);
            failed = json_object_set_new(object, fields[k].name, value) != 0;
        }
        if (failed) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

/* ---- tables -------------------------------------------------------------- */

bench_text bench_time_text(double ns)
{
    static const char *const units[] = {"ns", "us", "ms", "s"};
    bench_text out;
    int        unit = 0;

    for (; unit < 3 && ns >= 999.5; unit++) {
        ns /= 1000;
    }
    snprintf(out.s, sizeof out.s, "%.*f %s", ns < 9.995 ? 2 : ns < 99.95, ns, units[unit]);
    return out;
}

bench_text bench_fraction_text(double fraction)
{
    bench_text out = {"-"};

    if (fraction >= 0) {
        snprintf(out.s, sizeof out.s, "%.*f", fraction < 9.995 ? 2 : fraction < 99.95, fraction);
    }
    return out;
}

static void print_machine(const bench_machine *machine, FILE *out)
{
    fprintf(out, "%s, %lld cores, %.1f GiB, huge pages \"%s\", %s\n", machine->cpu,
            (long long)machine->n_online, (double)machine->memory_bytes / (double)(1 << 30),
            machine->huge_pages, pkv_isa_current());
}

static bool is_case(const bench_row *row, const char *name)
{
    return strcmp(row->case_name, name) == 0;
}

/* What one table holds: a pattern, a page size and a plan. */
static bool is_same_group(const bench_row *a, const bench_row *b)
{
    return strcmp(a->case_name, b->case_name) == 0 && strcmp(a->pattern, b->pattern) == 0 &&
           strcmp(a->plan, b->plan) == 0 && a->page_size == b->page_size;
}

/* True for the first row of its group. */
static bool opens_group(const bench_results *r, int64_t i)
{
    for (int64_t k = 0; k < i; k++) {
        if (is_same_group(&r->rows[k], &r->rows[i])) {
            return false;
        }
    }
    return true;
}

static const char *pattern_meaning(const bench_row *row)
{
    static const char *const meanings[][2] = {
        {"single", "one token a call"},
        {"decode", "scattered single tokens"},
        {"prefill", "a prompt in scattered pages"},
        {"merged", "a prompt in runs of 1024 adjacent tokens"},
        {"mixed", "median steps of a chat and of a code trace"},
        {"fixture", "upstream's two prompts and 512 decodes"},
    };
    for (size_t i = 0; i < sizeof meanings / sizeof meanings[0]; i++) {
        if (strcmp(meanings[i][0], row->pattern) == 0) {
            return meanings[i][1];
        }
    }
    return "";
}

static void print_update_row(FILE *out, const bench_row *row, bool show_isa)
{
    bench_text time = bench_time_text(row->ns_median);
    double     fractions[] = {row->limit_fraction, row->pattern_fraction, row->memcpy_fraction,
                              row->numpy_fraction, row->index_copy_fraction};

    fprintf(out, "%6lld %-8s %-4s %3lld %4s %7s %4.*f", (long long)row->tokens, row->layout,
            row->source, (long long)row->threads, row->huge_pages > 0 ? "yes" : "no", time.s,
            row->bytes_per_s < 99.95e9, row->bytes_per_s / 1e9);
    for (size_t i = 0; i < sizeof fractions / sizeof fractions[0]; i++) {
        fprintf(out, " %*s", i == 2 ? 6 : 5, bench_fraction_text(fractions[i]).s);
    }
    fprintf(out, "%s%s\n", show_isa ? " " : "", show_isa ? row->isa : "");
}

static void print_update(FILE *out, const bench_results *r, bool show_isa)
{
    bool any = false;

    for (int64_t i = 0; i < r->n_rows; i++) {
        const bench_row *first = &r->rows[i];
        if (!is_case(first, "update") || first->layers > 0 || !opens_group(r, i)) {
            continue;
        }
        any = true;
        fprintf(out, "\nupdate %s: %s;\npage size %lld, %s plan, %lld KV heads x %lld, %s\n",
                first->pattern, pattern_meaning(first), (long long)first->page_size, first->plan,
                (long long)first->num_kv_heads, (long long)first->head_dim, first->dtype);
        fprintf(out, "tokens layout   src  thr huge    time GB/s limit  loop memcpy numpy"
                     " torch%s\n", show_isa ? " isa" : "");
        for (int64_t k = i; k < r->n_rows; k++) {
            const bench_row *row = &r->rows[k];
            if (is_same_group(row, first) && strcmp(row->impl, "pagedkv") == 0) {
                print_update_row(out, row, show_isa);
            }
        }
    }
    if (!any) {
        return;
    }
    fprintf(out,
            "\nGB/s: bytes read plus written.  The last columns say how many times as fast as\n"
            "  limit    the best plain contiguous copy of as many bytes\n"
            "  loop     the best plain loop (memcpy or streaming stores) over the same rows\n"
            "  memcpy   one memcpy a token row, by slot\n"
            "  numpy    cache[slots] = new\n"
            "  torch    cache.index_copy_(0, slots, new)\n"
            "pagedkv was: medians of ratios inside a round; - is not measured.\n");
}

/* The row of the same pattern and request count with this plan and these tables, or NULL. */
static const bench_row *plan_row(const bench_results *r, const bench_row *like, const char *plan,
                                 const char *source)
{
    for (int64_t i = 0; i < r->n_rows; i++) {
        const bench_row *row = &r->rows[i];
        if (is_case(row, "plan") && row->requests == like->requests &&
            strcmp(row->pattern, like->pattern) == 0 && strcmp(row->plan, plan) == 0 &&
            strcmp(row->source, source) == 0) {
            return row;
        }
    }
    return NULL;
}

/* All that was timed for one pattern and request count. */
static void print_plan_line(FILE *out, const bench_results *r, const bench_row *like)
{
    static const char *const shown[][2] = {
        {"exact", "warm"}, {"merged", "warm"}, {"exact", "cold"}, {"merged", "cold"}};
    const bench_row *merged = plan_row(r, like, "merged", like->source);

    fprintf(out, "%-7s  %8lld %7lld %7lld %7lld", like->pattern, (long long)like->requests,
            (long long)like->tokens, (long long)like->num_slices,
            (long long)(merged != NULL ? merged->num_slices : like->num_slices));
    for (size_t i = 0; i < sizeof shown / sizeof shown[0]; i++) {
        const bench_row *row = plan_row(r, like, shown[i][0], shown[i][1]);
        if (row != NULL) {
            fprintf(out, " %8.1f", row->ns_per_slice);
        } else {
            fprintf(out, " %8s", "-");
        }
    }
    fprintf(out, "\n");
}

static void print_plan(FILE *out, const bench_results *r)
{
    const bench_row *last = NULL;

    for (int64_t i = 0; i < r->n_rows; i++) {
        const bench_row *row = &r->rows[i];
        if (!is_case(row, "plan")) {
            continue;
        }
        if (last == NULL) {
            fprintf(out, "\nplan, page size %lld: ns a slice of the exact plan, block tables"
                         " warm and cold\n"
                         "                          slices  slices     warm     warm     cold"
                         "     cold\n"
                         "pattern  requests  tokens   exact  merged    exact   merged    exact"
                         "   merged\n",
                    (long long)row->page_size);
        }
        /* Rows of one pattern and request count come one after another, the exact plan first. */
        if (last == NULL || row->requests != last->requests ||
            strcmp(row->pattern, last->pattern) != 0) {
            print_plan_line(out, r, row);
        }
        last = row;
    }
}

/* A table for each kind of memory, which is what differs most. */
static void print_pool(FILE *out, const bench_results *r, int64_t huge_pages)
{
    bool any = false;

    for (int64_t i = 0; i < r->n_rows; i++) {
        const bench_row *row = &r->rows[i];
        if (!is_case(row, "pool") || row->huge_pages != huge_pages ||
            strcmp(row->impl, "pagedkv") != 0) {
            continue;
        }
        if (!any) {
            fprintf(out, "\npool, bookkeeping on %s pages; list: over a plain linked list\n"
                         "pattern             pages      time  ns/page   list  adjacent   used\n",
                    huge_pages > 0 ? "huge" : "ordinary");
            any = true;
        }
        fprintf(out, "%-15s %9lld  %8s %8s %6s %9s %6s\n", row->pattern, (long long)row->pages,
                bench_time_text(row->ns_median).s, bench_fraction_text(row->ns_per_page).s,
                bench_fraction_text(row->linked_list_fraction).s,
                bench_fraction_text(row->adjacent_fraction).s,
                bench_fraction_text(row->used_fraction).s);
    }
}

void bench_print_tables(const bench_options *options, const bench_results *results, FILE *out)
{
    print_machine(&options->machine, out);
    if (options->backend == BENCH_CUDA) {
        bench_print_cuda(results, out);
        return;
    }
    if (options->run_update) {
        print_update(out, results, options->isa != NULL);
    }
    if (options->run_plan) {
        print_plan(out, results);
    }
    bench_print_moves(results, out);
    if (options->run_pool) {
        print_pool(out, results, 0);
        print_pool(out, results, 1);
    }
}
