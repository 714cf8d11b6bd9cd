/* `pagedkv replay`: options, the trace, the run, what it says at the end. */
#define _POSIX_C_SOURCE 200809L

#include "replay.h"

#include <getopt.h>
#include <stddef.h>
#include <string.h>

enum { DEFAULT_SYNTHETIC_REQUESTS = 300 };

static int print_help(void)
{
    printf(
        "Usage: pagedkv replay [TRACE] [OPTION]...\n"
        "\n"
        "Schedules the requests of a trace as a continuous-batching engine does, writes\n"
        "their K and V through a paged cache, and reads every byte back when a request\n"
        "ends.  Without TRACE: a seeded synthetic chat trace.\n"
        "\n"
        "Trace\n"
        "  --format NAME                   auto azure burstgpt mooncake bailian agentic (auto)\n"
        "  --max-requests N                read the first N requests only (all; synthetic: 300)\n"
        "  --arrivals now|trace            all wait from the start, or by time stamps (now)\n"
        "  --seed N                        of content and synthetic trace (1)\n"
        "Cache\n"
        "  --page-size N                   tokens of a page (16)\n"
        "  --num-pages N                   pages (what 2 GiB of K/V hold, or a quarter of the\n"
        "                                  memory; at least the longest request)\n"
        "  --allocator extent|lifo|fifo    which free pages are taken: those that follow each\n"
        "                                  other, freed last, freed first (extent)\n"
        "  --prefix-cache off|on           find pages again by their tokens, which the trace's\n"
        "                                  hash ids make (off)\n"
        "  --preempt refuse|recompute      admission reserves prompt + output; or the prompt, and\n"
        "                                  the youngest is put back when pages run out (refuse)\n"
        "  --num-kv-heads N                (8)        --head-dim N  (128)\n"
        "  --num-layers N                  (1)\n"
        "  --dtype NAME                    f32 f16 bf16 fp8_e4m3 fp8_e5m2 int8 int4 (bf16)\n"
        "  --cache-dtype NAME              auto: as --dtype; or f32, f16 and bf16 are converted,\n"
        "                                  to int8 and int4 with a scale a token and head, to\n"
        "                                  fp8 with one scale\n"
        "Step\n"
        "  --max-num-reqs N                most running requests (256)\n"
        "  --max-num-batched-tokens N      most tokens of a step (8192)\n"
        "  --num-slices-per-block N        copies in flight on a TPU; noted in the JSON (64)\n"
        "Run\n"
        "  --threads N                     (all cores)\n"
        "  --backend cpu|cuda              where the cache is and the update runs: host memory,\n"
        "                                  or the first NVIDIA GPU (cpu)\n"
        "  --verify on|off                 content, stamps and the check of every byte (on)\n"
        "  --json FILE                     write JSON to FILE; - is standard output, and then\n"
        "                                  the table goes to standard error\n"
        "  --series FILE                   write the time series of the run as JSON\n"
        "  --quiet                         no table and no progress\n"
        "\n"
        "Exit status: 0 done, 1 a difference was found, 2 bad input, 3 no memory or pages,\n"
        "4 no such device.\n");
    return CLI_OK;
}

/* ---- options ------------------------------------------------------------- */

/* Options that are a whole number. */
static const struct {
    const char *name;
    int64_t     min, max;
    size_t      offset;
} numbers[] = {
    {"--max-requests", 1, INT32_MAX, offsetof(replay_options, max_requests)},
    {"--seed", 0, INT64_MAX, offsetof(replay_options, seed)},
    {"--page-size", 1, INT32_MAX, offsetof(replay_options, page_size)},
    {"--num-pages", 1, INT32_MAX, offsetof(replay_options, num_pages)},
    {"--num-kv-heads", 1, 1 << 16, offsetof(replay_options, num_kv_heads)},
    {"--head-dim", 1, 1 << 20, offsetof(replay_options, head_dim)},
    {"--num-layers", 1, 1 << 16, offsetof(replay_options, num_layers)},
    {"--max-num-reqs", 1, 1 << 20, offsetof(replay_options, max_num_reqs)},
    {"--max-num-batched-tokens", 1, 1 << 24, offsetof(replay_options, max_num_batched_tokens)},
    {"--num-slices-per-block", 1, 1 << 20, offsetof(replay_options, num_slices_per_block)},
};
enum { N_NUMBERS = sizeof numbers / sizeof numbers[0] };

/* The values of the others start behind those of the numbers, in one order. */
enum {
    OPTION_FIRST_NUMBER = CLI_FIRST_LONG_OPTION,
    OPTION_FORMAT = CLI_FIRST_LONG_OPTION + N_NUMBERS,
    OPTION_ARRIVALS,
    OPTION_ALLOCATOR,
    OPTION_PREFIX_CACHE,
    OPTION_PREEMPT,
    OPTION_DTYPE,
    OPTION_CACHE_DTYPE,
    OPTION_THREADS,
    OPTION_BACKEND,
    OPTION_VERIFY,
    OPTION_JSON,
    OPTION_SERIES,
    OPTION_QUIET
};

static const struct option named[] = {
    {"format", required_argument, NULL, OPTION_FORMAT},
    {"arrivals", required_argument, NULL, OPTION_ARRIVALS},
    {"allocator", required_argument, NULL, OPTION_ALLOCATOR},
    {"prefix-cache", required_argument, NULL, OPTION_PREFIX_CACHE},
    {"preempt", required_argument, NULL, OPTION_PREEMPT},
    {"dtype", required_argument, NULL, OPTION_DTYPE},
    {"cache-dtype", required_argument, NULL, OPTION_CACHE_DTYPE},
    {"threads", required_argument, NULL, OPTION_THREADS},
    {"backend", required_argument, NULL, OPTION_BACKEND},
    {"verify", required_argument, NULL, OPTION_VERIFY},
    {"json", required_argument, NULL, OPTION_JSON},
    {"series", required_argument, NULL, OPTION_SERIES},
    {"quiet", no_argument, NULL, OPTION_QUIET},
    {"help", no_argument, NULL, 'h'},
};
enum { N_NAMED = sizeof named / sizeof named[0] };

/* Is text the first word (*out = false) or the second (*out = true)? */
static int take_word(const char *option, const char *text, const char *first, const char *second,
                     bool *out)
{
    if (strcmp(text, first) != 0 && strcmp(text, second) != 0) {
        return cli_fail(CLI_USAGE, "%s \"%.60s\": not %s or %s", option, text, first, second);
    }
    *out = strcmp(text, second) == 0;
    return CLI_OK;
}

const char *replay_allocator_name(int32_t allocator)
{
    switch (allocator) {
    case PKV_POOL_EXTENT: return "extent";
    case PKV_POOL_LIFO: return "lifo";
    case PKV_POOL_FIFO: return "fifo";
    default: return NULL;
    }
}

static int take_allocator(const char *text, int32_t *out)
{
    const char *name;
    for (int32_t i = 0; (name = replay_allocator_name(i)) != NULL; i++) {
        if (strcmp(text, name) == 0) {
            *out = i;
            return CLI_OK;
        }
    }
    return cli_fail(CLI_USAGE, "--allocator \"%.60s\": not extent, lifo or fifo", text);
}

static int take_named(int option, replay_options *o)
{
    switch (option) {
    case OPTION_FORMAT: o->format = optarg; return CLI_OK;
    case OPTION_ARRIVALS:
        return take_word("--arrivals", optarg, "now", "trace", &o->follow_arrivals);
    case OPTION_ALLOCATOR: return take_allocator(optarg, &o->allocator);
    case OPTION_PREFIX_CACHE:
        return take_word("--prefix-cache", optarg, "off", "on", &o->prefix_cache);
    case OPTION_PREEMPT:
        return take_word("--preempt", optarg, "refuse", "recompute", &o->recompute);
    case OPTION_DTYPE:
        return cli_parse_dtype("--dtype", optarg, &o->dtype) ? CLI_OK : CLI_USAGE;
    case OPTION_CACHE_DTYPE:
        o->cache_dtype = 0;
        return strcmp(optarg, "auto") == 0 ||
                       cli_parse_dtype("--cache-dtype", optarg, &o->cache_dtype)
                   ? CLI_OK
                   : CLI_USAGE;
    case OPTION_THREADS:
        return cli_parse_threads("--threads", optarg, &o->threads) ? CLI_OK : CLI_USAGE;
    case OPTION_BACKEND: return take_word("--backend", optarg, "cpu", "cuda", &o->cuda);
    case OPTION_VERIFY: return take_word("--verify", optarg, "off", "on", &o->verify);
    case OPTION_JSON: o->json_path = optarg; return CLI_OK;
    case OPTION_SERIES: o->series_path = optarg; return CLI_OK;
    default: o->quiet = true; return CLI_OK;
    }
}

static int take_option(int option, replay_options *o)
{
    if (option >= OPTION_FIRST_NUMBER && option < OPTION_FIRST_NUMBER + N_NUMBERS) {
        int      i = option - OPTION_FIRST_NUMBER;
        int64_t *value = (int64_t *)(void *)((char *)o + numbers[i].offset);
        return cli_parse_int(numbers[i].name, optarg, numbers[i].min, numbers[i].max, value)
                   ? CLI_OK
                   : CLI_USAGE;
    }
    return take_named(option, o);
}

static int parse_options(int argc, char **argv, replay_options *o, bool *done)
{
    struct option all[N_NUMBERS + N_NAMED + 1] = {{0}};
    for (int i = 0; i < N_NUMBERS; i++) {
        all[i] = (struct option){numbers[i].name + 2, required_argument, NULL,
                                 OPTION_FIRST_NUMBER + i};
    }
    memcpy(all + N_NUMBERS, named, sizeof named);
    int option, status = CLI_OK;
    while ((option = cli_next_option(argc, argv, all, print_help, done, &status)) != 0) {
        status = take_option(option, o);
        if (status != CLI_OK) {
            return status;
        }
    }
    if (*done || status != CLI_OK) {
        return status;
    }
    if (optind < argc) {
        o->trace_path = argv[optind++];
    }
    return optind < argc ? cli_extra_argument(argv) : CLI_OK;
}

static int check_dtypes(replay_options *o)
{
    if (o->cache_dtype == 0) {
        o->cache_dtype = o->dtype;
    }
    if (o->cache_dtype != o->dtype && o->dtype > PKV_DTYPE_BF16) {
        return cli_fail(CLI_USAGE,
                        "--cache-dtype %s with --dtype %s: only f32, f16 and bf16 are converted",
                        pkv_dtype_name(o->cache_dtype), pkv_dtype_name(o->dtype));
    }
    return CLI_OK;
}

/* An output destroys no input and no other output; what cannot be written is better known now. */
static int check_outputs(const replay_options *o)
{
    if (o->series_path != NULL && strcmp(o->series_path, "-") == 0) {
        return cli_fail(CLI_USAGE, "--series -: the series needs a file of its own");
    }
    if (cli_is_same_file(o->series_path, o->json_path)) {
        return cli_fail(CLI_USAGE, "--series and --json name the same file: %s", o->json_path);
    }
    if (cli_is_same_file(o->series_path, o->trace_path)) {
        return cli_fail(CLI_USAGE, "--series names the trace: %s", o->series_path);
    }
    if (cli_is_same_file(o->json_path, o->trace_path)) {
        return cli_fail(CLI_USAGE, "--json names the trace: %s", o->json_path);
    }
    int status = cli_probe_output(o->json_path);
    return status != CLI_OK ? status : cli_probe_output(o->series_path);
}

/* ---- the command ----------------------------------------------------------- */

static int read_trace(const replay_options *o, trace *t)
{
    if (o->trace_path != NULL) {
        return trace_read(o->trace_path, o->format, o->max_requests, t);
    }
    int64_t n = o->max_requests > 0 ? o->max_requests : DEFAULT_SYNTHETIC_REQUESTS;
    return trace_synthetic((uint64_t)o->seed, n, t);
}

static bool found_difference(const replay_result *r)
{
    return r->mismatched_tokens > 0 || r->poison_errors > 0 || r->plan_errors > 0 ||
           r->pages_leaked > 0 || r->status_word != 0 || r->requests_finished != r->requests;
}

/* Table, JSON and series of a run that came to its end. */
static int write_results(const replay_options *o, const trace *t, const replay_result *r)
{
    int status = CLI_OK;
    if (!o->quiet) {
        replay_print(cli_table_stream(o->json_path), o, t, r);
    }
    if (o->series_path != NULL) {
        status = cli_write_json(series_json(&r->series), o->series_path);
    }
    if (status == CLI_OK && o->json_path != NULL) {
        status = cli_write_json(replay_json(o, t, r), o->json_path);
    }
    return status == CLI_OK && found_difference(r) ? CLI_DIFFERENCE : status;
}

int cmd_replay(int argc, char **argv)
{
    replay_options o = {.format = "auto", .page_size = 16, .max_num_reqs = 256,
                        .max_num_batched_tokens = 8192, .num_kv_heads = 8, .head_dim = 128,
                        .num_layers = 1, .num_slices_per_block = 64, .seed = 1,
                        .threads = pkv_default_threads(), .dtype = PKV_DTYPE_BF16,
                        .allocator = PKV_POOL_EXTENT, .verify = true};
    bool done = false;
    int  status = parse_options(argc, argv, &o, &done);
    if (done || status != CLI_OK) {
        return status;
    }
    trace t = {0};
    status = check_dtypes(&o);
    status = status != CLI_OK ? status : check_outputs(&o);
    status = status != CLI_OK ? status : read_trace(&o, &t);
    if (status == CLI_OK) {
        replay_result result;
        status = replay_run(&o, &t, &result);
        if (status == CLI_OK) {
            status = write_results(&o, &t, &result);
        }
        replay_result_free(&result);
    }
    trace_free(&t);
    return status;
}
