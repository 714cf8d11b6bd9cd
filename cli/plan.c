/* `pagedkv plan`: the slices of one step, for people and as JSON. */
#define _POSIX_C_SOURCE 200809L

#include "cli.h"

#include <getopt.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { NUM_SLICES_PER_BLOCK = 64 };

typedef struct plan_options {
    int64_t      page_size; /* 0: not given */
    int64_t      max_num_reqs;
    int64_t      max_num_batched_tokens;
    bool         merge;
    const char  *json_path; /* NULL: no JSON */
    const char **requests;  /* the texts as given */
    int64_t      n_requests;
} plan_options;

/* The requests as the library takes them (CSR). */
typedef struct plan_input {
    int32_t *computed;
    int32_t *scheduled;
    int32_t *indptr;
    int32_t *pages;
    int64_t  n_pages;
    int64_t  max_pages; /* of one request, at least 1 */
} plan_input;

static int print_help(void)
{
    printf("Usage: pagedkv plan --page-size S [--request COMPUTED,SCHEDULED,PAGE[:PAGE...]]...\n"
           "\n"
           "Prints the slices of one step: for each request and each page it touches,\n"
           "(kv_cache_start, new_kv_start, slice_len) in tokens.\n"
           "\n"
           "  --page-size S               tokens of one page\n"
           "  --request C,S,P[:P...]      C tokens already in the cache, S tokens scheduled\n"
           "                              now, and the request's pages in order; once for\n"
           "                              each request, counted from 0\n"
           "  --merge                     join the slices of adjacent pages of one request\n"
           "  --max-num-reqs N            most requests of a step (256)\n"
           "  --max-num-batched-tokens N  most tokens of a step (8192)\n"
           "  --json FILE                 write JSON to FILE; - is standard output, and then\n"
           "                              the table goes to standard error\n"
           "  -h, --help                  this text\n"
           "\n"
           "Example:\n"
           "  pagedkv plan --page-size 16 --request 0,10,100 --request 10,30,200:201:202\n");
    return CLI_OK;
}

/* ---- options ------------------------------------------------------------- */

enum {
    OPTION_PAGE_SIZE = CLI_FIRST_LONG_OPTION,
    OPTION_REQUEST,
    OPTION_MERGE,
    OPTION_MAX_NUM_REQS,
    OPTION_MAX_NUM_BATCHED_TOKENS,
    OPTION_JSON
};

static const struct option long_options[] = {
    {"page-size", required_argument, NULL, OPTION_PAGE_SIZE},
    {"request", required_argument, NULL, OPTION_REQUEST},
    {"merge", no_argument, NULL, OPTION_MERGE},
    {"max-num-reqs", required_argument, NULL, OPTION_MAX_NUM_REQS},
    {"max-num-batched-tokens", required_argument, NULL, OPTION_MAX_NUM_BATCHED_TOKENS},
    {"json", required_argument, NULL, OPTION_JSON},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

/* Takes one option; false after an error line. */
static bool take_option(int option, plan_options *options)
{
    switch (option) {
    case OPTION_PAGE_SIZE:
        return cli_parse_int("--page-size", optarg, 1, INT32_MAX, &options->page_size);
    case OPTION_MAX_NUM_REQS:
        return cli_parse_int("--max-num-reqs", optarg, 1, INT32_MAX, &options->max_num_reqs);
    case OPTION_MAX_NUM_BATCHED_TOKENS:
        return cli_parse_int("--max-num-batched-tokens", optarg, 1, INT32_MAX,
                             &options->max_num_batched_tokens);
    case OPTION_REQUEST:
        options->requests[options->n_requests++] = optarg;
        return true;
    case OPTION_MERGE:
        options->merge = true;
        return true;
    default:
        options->json_path = optarg;
        return true;
    }
}

/* An exit status; *done where there is nothing left to do. */
static int parse_options(int argc, char **argv, plan_options *options, bool *done)
{
    int option, status = CLI_OK;
    while ((option = cli_next_option(argc, argv, long_options, print_help, done, &status)) != 0) {
        if (!take_option(option, options)) {
            return CLI_USAGE;
        }
    }
    if (*done || status != CLI_OK) {
        return status;
    }
    if (optind < argc) {
        return cli_extra_argument(argv);
    }
    if (options->page_size == 0) {
        return cli_fail(CLI_USAGE, "--page-size is missing (see pagedkv plan --help)");
    }
    return CLI_OK;
}

/* ---- requests ------------------------------------------------------------ */

static int64_t pages_for(int64_t n_tokens, int64_t page_size)
{
    return (n_tokens + page_size - 1) / page_size;
}

/* One line that names a request as it was given. */
static int fail_request(const plan_options *options, int64_t index, const char *reason)
{
    const char *text = options->requests[index];
    return cli_fail(CLI_USAGE, "--request %" PRId64 " (\"%.60s%s\"): %s", index, text,
                    strlen(text) > 60 ? "..." : "", reason);
}

/* Reads a number and, unless it is '\0', the character behind it. */
static bool take_number(const char **p, char separator, int32_t *out)
{
    int64_t value;
    const char *behind = cli_scan_int(*p, *p + strlen(*p), INT32_MAX, &value);
    if (behind == NULL || *behind != separator) {
        return false;
    }
    *p = behind + (separator != '\0');
    *out = (int32_t)value;
    return true;
}

/* Appends request r.  NULL, or what is wrong with its text. */
static const char *parse_request(const char *text, int64_t r, plan_input *input)
{
    const char *p = text;
    if (!take_number(&p, ',', &input->computed[r]) || !take_number(&p, ',', &input->scheduled[r])) {
        return "COMPUTED,SCHEDULED,PAGE[:PAGE...] expected, numbers from 0 to 2147483647";
    }
    int64_t first_page = input->n_pages;
    while (take_number(&p, ':', &input->pages[input->n_pages])) {
        input->n_pages++;
    }
    if (!take_number(&p, '\0', &input->pages[input->n_pages])) {
        return "pages expected as PAGE[:PAGE...], numbers from 0 to 2147483647";
    }
    input->n_pages++;
    input->indptr[r + 1] = (int32_t)input->n_pages;
    if (input->n_pages - first_page > input->max_pages) {
        input->max_pages = input->n_pages - first_page;
    }
    return NULL;
}

static void free_input(plan_input *input)
{
    free(input->computed);
    free(input->scheduled);
    free(input->indptr);
    free(input->pages);
}

static int parse_requests(const plan_options *options, plan_input *input)
{
    size_t n = (size_t)options->n_requests;
    size_t n_characters = 0; /* no text has more pages than characters */
    for (size_t r = 0; r < n; r++) {
        n_characters += strlen(options->requests[r]);
    }
    *input = (plan_input){.max_pages = 1};
    input->computed = calloc(n + 1, sizeof *input->computed);
    input->scheduled = calloc(n + 1, sizeof *input->scheduled);
    input->indptr = calloc(n + 1, sizeof *input->indptr);
    input->pages = calloc(n_characters + 1, sizeof *input->pages);
    if (input->computed == NULL || input->scheduled == NULL || input->indptr == NULL ||
        input->pages == NULL) {
        return cli_no_memory("the requests");
    }
    for (int64_t r = 0; r < options->n_requests; r++) {
        const char *problem = parse_request(options->requests[r], r, input);
        if (problem != NULL) {
            return fail_request(options, r, problem);
        }
    }
    return CLI_OK;
}

/* ---- the step ------------------------------------------------------------ */

/* Arrays of a step, sized by the limits as an engine would, in one allocation. */
static int alloc_step(const plan_options *options, const plan_input *input, pkv_step *step,
                      int32_t **memory)
{
    int64_t reqs = options->max_num_reqs;
    int64_t bucket = pkv_token_bucket(options->max_num_batched_tokens, PKV_MIN_TOKEN_BUCKET,
                                      options->max_num_batched_tokens, 0);
    int64_t capacity = pkv_padded_num_slices(reqs, bucket, options->page_size);
    int64_t n_entries = 3 * capacity + reqs * input->max_pages + reqs + (reqs + 1) + 2;
    uint64_t bytes = (uint64_t)n_entries * sizeof **memory;
    uint64_t memory_bytes = cli_memory_bytes();
    if (memory_bytes != 0 && bytes > memory_bytes / 2) {
        return cli_fail(CLI_EXHAUSTED,
                        "the arrays of a step of %" PRId64 " requests and %" PRId64
                        " tokens need %" PRIu64 " bytes, more than half the memory",
                        reqs, options->max_num_batched_tokens, bytes);
    }
    *memory = calloc((size_t)n_entries, sizeof **memory);
    if (*memory == NULL) {
        return cli_no_memory("the arrays of a step");
    }
    step->num_seqs = *memory;
    step->context_lens = step->num_seqs + 2;
    step->query_start_loc = step->context_lens + reqs;
    step->block_tables = step->query_start_loc + reqs + 1;
    step->block_tables_width = input->max_pages;
    pkv_slices_from_array(step->slices, sizeof *step->slices,
                          step->block_tables + reqs * input->max_pages, capacity, *memory + 1);
    return CLI_OK;
}

static int fail_plan(const plan_options *options, const pkv_batch *batch, const pkv_error *err)
{
    int64_t r = err->index;
    if (r < 0 || r >= options->n_requests) {
        return cli_fail_pkv(err, "plan");
    }
    char reason[256];
    if (err->rule == PKV_RULE_TABLE) {
        int64_t tokens = (int64_t)batch->computed[r] + batch->scheduled[r];
        snprintf(reason, sizeof reason,
                 "block table too short: %" PRId64 " tokens need %" PRId64 " pages, %" PRId64
                 " given",
                 tokens, pages_for(tokens, options->page_size), err->value);
    } else {
        snprintf(reason, sizeof reason, "%s (found %" PRId64 ", limit %" PRId64 ")", err->what,
                 err->value, err->limit);
    }
    return fail_request(options, r, reason);
}

static int make_plan(const plan_options *options, const plan_input *input, pkv_step *step)
{
    pkv_batch batch = {
        .struct_size = sizeof batch,
        .n_requests = options->n_requests,
        .computed = input->computed,
        .scheduled = input->scheduled,
        .indptr = input->indptr,
        .indices = input->pages,
        .page_size = options->page_size,
    };
    pkv_step_limits limits = {
        .struct_size = sizeof limits,
        .max_num_reqs = options->max_num_reqs,
        .max_num_batched_tokens = options->max_num_batched_tokens,
        .max_slice_tokens = options->merge ? 0 : options->page_size,
        .num_slices_per_block = NUM_SLICES_PER_BLOCK,
    };
    pkv_error err;
    if (pkv_step_plan(&batch, &limits, step, &err) != PKV_OK) {
        return fail_plan(options, &batch, &err);
    }
    return CLI_OK;
}

/* ---- output -------------------------------------------------------------- */

static void print_table(const plan_options *options, const pkv_step *step, FILE *stream)
{
    int32_t n = *step->slices->num_slices;
    int64_t r = 0;
    if (n > 0) {
        fprintf(stream, "%7s  %21s  %14s  %12s  %9s\n", "request", "pages", "kv_cache_start",
                "new_kv_start", "slice_len");
    }
    for (int32_t i = 0; i < n; i++) {
        int64_t start = step->slices->kv_cache_start[i];
        int64_t row = step->slices->new_kv_start[i];
        int64_t len = step->slices->slice_len[i];
        while (row >= step->query_start_loc[r + 1]) {
            r++;
        }
        char pages[64];
        int64_t first = start / options->page_size;
        int64_t last = (start + len - 1) / options->page_size;
        int used = snprintf(pages, sizeof pages, "%" PRId64, first);
        if (last > first) {
            snprintf(pages + used, sizeof pages - (size_t)used, "-%" PRId64, last);
        }
        fprintf(stream, "%7" PRId64 "  %21s  %14" PRId64 "  %12" PRId64 "  %9" PRId64 "\n", r,
                pages, start, row, len);
    }
    fprintf(stream, "%s%s plan: %d slices in %" PRId64 " columns, %" PRId64
            " tokens in a bucket of %" PRId64 ", %d requests, page size %" PRId64 "\n",
            n > 0 ? "\n" : "", options->merge ? "merged" : "exact", n, step->padded_num_slices,
            step->n_tokens, step->token_bucket, *step->num_seqs, options->page_size);
}

static json_t *int_array(const int32_t *values, int64_t n)
{
    json_t *array = json_array();
    for (int64_t i = 0; i < n; i++) {
        if (json_array_append_new(array, json_integer(values[i])) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

static json_t *slices_array(const pkv_slices *slices)
{
    json_t *array = json_array();
    for (int32_t i = 0; i < *slices->num_slices; i++) {
        const int32_t slice[] = {slices->kv_cache_start[i], slices->new_kv_start[i],
                                 slices->slice_len[i]};
        if (json_array_append_new(array, int_array(slice, 3)) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

/* The pages that each request holds, without the padding. */
static json_t *tables_array(const plan_options *options, const pkv_step *step)
{
    json_t *array = json_array();
    for (int64_t r = 0; r < *step->num_seqs; r++) {
        const int32_t *row = step->block_tables + r * step->block_tables_width;
        int64_t n_pages = pages_for(step->context_lens[r], options->page_size);
        if (json_array_append_new(array, int_array(row, n_pages)) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

/* NULL if memory ran out. */
static json_t *plan_json(const plan_options *options, const pkv_step *step)
{
    int64_t n_requests = *step->num_seqs;
    return json_pack(
        "{s:o, s:i, s:I, s:I, s:b, s:I, s:I, s:o, s:o, s:I, s:o, s:i}",
        "slices", slices_array(step->slices),
        "num_slices", *step->slices->num_slices,
        "padded_num_slices", (json_int_t)step->padded_num_slices,
        "page_size", (json_int_t)options->page_size,
        "merged", options->merge,
        "num_tokens", (json_int_t)step->n_tokens,
        "token_bucket", (json_int_t)step->token_bucket,
        "context_lens", int_array(step->context_lens, n_requests),
        "query_start_loc", int_array(step->query_start_loc, n_requests + 1),
        "num_seqs", (json_int_t)n_requests,
        "block_tables", tables_array(options, step),
        "num_slices_per_block", step->num_slices_per_block);
}

/* ---- the command --------------------------------------------------------- */

static int plan_and_print(const plan_options *options, const plan_input *input)
{
    pkv_slices slices;
    pkv_step step = {.struct_size = sizeof step, .slices = &slices};
    int32_t *memory = NULL;
    int status = alloc_step(options, input, &step, &memory);
    if (status == CLI_OK) {
        status = make_plan(options, input, &step);
    }
    if (status == CLI_OK && options->json_path != NULL) {
        status = cli_write_json(plan_json(options, &step), options->json_path);
    }
    if (status == CLI_OK) {
        print_table(options, &step, cli_table_stream(options->json_path));
    }
    free(memory);
    return status;
}

int cmd_plan(int argc, char **argv)
{
    plan_options options = {.max_num_reqs = 256, .max_num_batched_tokens = 8192};
    options.requests = calloc((size_t)argc, sizeof *options.requests);
    if (options.requests == NULL) {
        return cli_no_memory("the options");
    }
    bool done = false;
    int status = parse_options(argc, argv, &options, &done);
    if (status == CLI_OK && !done) {
        plan_input input = {0};
        status = parse_requests(&options, &input);
        if (status == CLI_OK) {
            status = plan_and_print(&options, &input);
        }
        free_input(&input);
    }
    free(options.requests);
    return status;
}
