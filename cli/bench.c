/* `pagedkv bench`: options, and what runs. */
#define _POSIX_C_SOURCE 200809L

#include "bench.h"

#include <getopt.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "bench_run.h"

enum { DEFAULT_SECONDS = 60, QUICK_SECONDS = 4 };

static int print_help(void)
{
    printf("Usage: pagedkv bench [CASE...] [OPTION...]\n"
           "\n"
           "Measures the library against plain copies of the same bytes, one thread and all,\n"
           "interleaved in shuffled rounds, and checks what each wrote.\n"
           "\n"
           "  update  write new keys and values into scattered slots of a cache of 1 GiB, or\n"
           "          an eighth of the memory; all slots are visited before one comes again;\n"
           "          what does not fit is left out\n"
           "  convert, gather    the same from and to another element type\n"
           "  layout             copies into other layouts, and from a fused QKV output\n"
           "  copy-pages, swap   pages inside a cache; of 32 layers to a buffer and back\n"
           "  plan    turn block tables into slices\n"
           "  pool    take and give back pages of a pool, and of a plain linked list\n"
           "\n"
           "  --backend NAME      cpu, or cuda: update, convert, copy-pages and plan in the\n"
           "                      memory of the first NVIDIA GPU, beside copies there (cpu)\n"
           "  --pattern NAME      update: single, decode, prefill, merged, mixed,\n"
           "                      fixture, layers (32 in one call); on a GPU prefill,\n"
           "                      merged, decode, padded, layers;\n"
           "                      convert: f32_bf16 ...; gather: bf16_f32 ...; layout: hnd,\n"
           "                      fused_qkv, content, mla; copy-pages: 16KiB ...; swap: out, in;\n"
           "                      plan: decode, prefill, mixed;\n"
           "                      pool: alloc, free, touch, alloc_runs, free_runs,\n"
           "                      alloc_scattered, free_scattered, grow, reserve, fork, trim,\n"
           "                      close, prefix_find, prefix_miss, prefix_insert,\n"
           "                      prefix_append (all)\n"
           "  --layout NAME       combined, nhd, hnd or all (combined and nhd)\n"
           "  --source NAME       what is read: cold, warm or both (cold; warm too where rows\n"
           "                      are few); for plan the block tables\n"
           "  --huge-pages NAME   off, on or both (both)\n"
           "  --threads N         at most N threads (1, and all for some rows)\n"
           "  --isa NAME          one instruction set, or all (the chosen one)\n"
           "  --peers NAME        auto: what one writes with NumPy and PyTorch beside it, where\n"
           "                      python3, or $PAGEDKV_PYTHON, has them; or off (auto; off with\n"
           "                      --quick)\n"
           "  --page-size S       tokens of a page (each pattern has its own)\n"
           "  --num-kv-heads N    (8)   the fixture keeps upstream's 2\n"
           "  --head-dim N        (128)\n"
           "  --dtype NAME        f32 f16 bf16 fp8_e4m3 fp8_e5m2 int8 int4 (bf16)\n"
           "  --seconds N         how long it may take, about (60); each case has 5 rounds at\n"
           "                      least\n"
           "  --rounds N          exactly so many rounds a case, 1 to %d\n"
           "  --quick             a few seconds: a small cache and a part of the cases\n"
           "  --json FILE         write JSON to FILE; - is standard output, and then the table\n"
           "                      goes to standard error\n"
           "  --quiet             no table and no progress\n"
           "  -h, --help          this text\n"
           "\n"
           "Example:\n"
           "  pagedkv bench update --pattern decode --threads 1 --json decode.json\n",
           BENCH_MAX_ROUNDS);
    return CLI_OK;
}

enum {
    OPTION_BACKEND = CLI_FIRST_LONG_OPTION,
    OPTION_PATTERN,
    OPTION_LAYOUT,
    OPTION_SOURCE,
    OPTION_HUGE_PAGES,
    OPTION_THREADS,
    OPTION_ISA,
    OPTION_PEERS,
    OPTION_PAGE_SIZE,
    OPTION_NUM_KV_HEADS,
    OPTION_HEAD_DIM,
    OPTION_DTYPE,
    OPTION_SECONDS,
    OPTION_ROUNDS,
    OPTION_QUICK,
    OPTION_JSON,
    OPTION_QUIET
};

static const struct option long_options[] = {
    {"backend", required_argument, NULL, OPTION_BACKEND},
    {"pattern", required_argument, NULL, OPTION_PATTERN},
    {"layout", required_argument, NULL, OPTION_LAYOUT},
    {"source", required_argument, NULL, OPTION_SOURCE},
    {"huge-pages", required_argument, NULL, OPTION_HUGE_PAGES},
    {"threads", required_argument, NULL, OPTION_THREADS},
    {"isa", required_argument, NULL, OPTION_ISA},
    {"peers", required_argument, NULL, OPTION_PEERS},
    {"page-size", required_argument, NULL, OPTION_PAGE_SIZE},
    {"num-kv-heads", required_argument, NULL, OPTION_NUM_KV_HEADS},
    {"head-dim", required_argument, NULL, OPTION_HEAD_DIM},
    {"dtype", required_argument, NULL, OPTION_DTYPE},
    {"seconds", required_argument, NULL, OPTION_SECONDS},
    {"rounds", required_argument, NULL, OPTION_ROUNDS},
    {"quick", no_argument, NULL, OPTION_QUICK},
    {"json", required_argument, NULL, OPTION_JSON},
    {"quiet", no_argument, NULL, OPTION_QUIET},
    {"help", no_argument, NULL, 'h'},
    {NULL, 0, NULL, 0},
};

typedef struct choice {
    const char *name; /* NULL ends a list */
    unsigned    set;
} choice;

static const choice layouts[] = {
    {"combined", BENCH_COMBINED},
    {"nhd", BENCH_NHD},
    {"hnd", BENCH_HND},
    {"all", BENCH_COMBINED | BENCH_NHD | BENCH_HND},
    {NULL, 0},
};
static const choice sources[] = {
    {"cold", BENCH_COLD},
    {"warm", BENCH_WARM},
    {"both", BENCH_COLD | BENCH_WARM},
    {NULL, 0},
};
static const choice huge_pages[] = {
    {"off", BENCH_HUGE_OFF},
    {"on", BENCH_HUGE_ON},
    {"both", BENCH_HUGE_OFF | BENCH_HUGE_ON},
    {NULL, 0},
};
static const choice backends[] = {
    {"cpu", BENCH_CPU},
    {"cuda", BENCH_CUDA},
    {NULL, 0},
};
static const choice peers[] = {
    {"auto", BENCH_PEERS_AUTO},
    {"off", BENCH_PEERS_OFF},
    {NULL, 0},
};

static bool parse_choice(const char *option, const choice *choices, unsigned *out)
{
    char names[64] = "";

    for (const choice *c = choices; c->name != NULL; c++) {
        size_t length = strlen(names);
        snprintf(names + length, sizeof names - length, " %s", c->name);
        if (strcmp(optarg, c->name) == 0) {
            *out = c->set;
            return true;
        }
    }
    cli_fail(CLI_USAGE, "%s \"%.60s\": not one of%s", option, optarg, names);
    return false;
}

static bool parse_isa(const char **out)
{
    const char *name;

    *out = optarg;
    for (int32_t i = 0; (name = pkv_isa_name(i)) != NULL; i++) {
        if (strcmp(optarg, name) == 0) {
            if (!pkv_isa_usable(i)) {
                cli_fail(CLI_USAGE, "--isa %s: this processor does not have it", name);
            }
            return pkv_isa_usable(i) != 0;
        }
    }
    if (strcmp(optarg, "all") != 0) {
        cli_fail(CLI_USAGE, "--isa \"%.60s\": not built in (see pagedkv info)", optarg);
        return false;
    }
    return true;
}

/* Takes one option; false after an error line. */
static bool take_option(int option, bench_options *o)
{
    switch (option) {
    case OPTION_BACKEND:
        return parse_choice("--backend", backends, &o->backend);
    case OPTION_PATTERN:
        o->pattern = optarg;
        return true;
    case OPTION_LAYOUT:
        return parse_choice("--layout", layouts, &o->layouts);
    case OPTION_SOURCE:
        return parse_choice("--source", sources, &o->sources);
    case OPTION_HUGE_PAGES:
        return parse_choice("--huge-pages", huge_pages, &o->huge_pages);
    case OPTION_THREADS:
        return cli_parse_threads("--threads", optarg, &o->threads);
    case OPTION_ISA:
        return parse_isa(&o->isa);
    case OPTION_PEERS:
        return parse_choice("--peers", peers, &o->peers);
    case OPTION_PAGE_SIZE:
        return cli_parse_int("--page-size", optarg, 1, 4096, &o->page_size);
    case OPTION_NUM_KV_HEADS:
        return cli_parse_int("--num-kv-heads", optarg, 1, 1024, &o->num_kv_heads);
    case OPTION_HEAD_DIM:
        return cli_parse_int("--head-dim", optarg, 1, 4096, &o->head_dim);
    case OPTION_DTYPE:
        return cli_parse_dtype("--dtype", optarg, &o->dtype);
    case OPTION_SECONDS:
        return cli_parse_int("--seconds", optarg, 1, 86400, &o->seconds);
    case OPTION_ROUNDS:
        return cli_parse_int("--rounds", optarg, 1, BENCH_MAX_ROUNDS, &o->rounds);
    case OPTION_QUICK:
        o->quick = true;
        return true;
    case OPTION_QUIET:
        o->quiet = true;
        return true;
    default:
        o->json_path = optarg;
        return true;
    }
}

/* What may stand on the command line. */
typedef struct case_name {
    const char *name;
    size_t      offset; /* of its switch in the options */
    bool        on_cuda;
} case_name;

static const case_name case_names[] = {
    {"update", offsetof(bench_options, run_update), true},
    {"plan", offsetof(bench_options, run_plan), true},
    {"pool", offsetof(bench_options, run_pool), false},
    {"convert", offsetof(bench_options, run_convert), true},
    {"gather", offsetof(bench_options, run_gather), false},
    {"layout", offsetof(bench_options, run_layout), false},
    {"copy-pages", offsetof(bench_options, run_copy_pages), true},
    {"swap", offsetof(bench_options, run_swap), false},
};

enum { N_CASES = sizeof case_names / sizeof case_names[0] };

static bool *case_switch(bench_options *o, int i)
{
    return (bool *)((char *)o + case_names[i].offset);
}

static int parse_cases(int argc, char **argv, bench_options *o)
{
    const bool cuda = o->backend == BENCH_CUDA;

    for (int i = 0; i < N_CASES; i++) {
        *case_switch(o, i) = optind == argc && (!cuda || case_names[i].on_cuda);
    }
    for (; optind < argc; optind++) {
        int i = 0;
        while (i < N_CASES && strcmp(argv[optind], case_names[i].name) != 0) {
            i++;
        }
        if (i == N_CASES) {
            return cli_fail(CLI_USAGE, "bench: no case \"%.60s\" (there are update, plan, pool, "
                            "convert, gather, layout, copy-pages and swap)", argv[optind]);
        }
        if (cuda && !case_names[i].on_cuda) {
            return cli_fail(CLI_USAGE, "bench %s: not with --backend cuda (there are update, "
                            "convert, copy-pages and plan)", argv[optind]);
        }
        *case_switch(o, i) = true;
    }
    return CLI_OK;
}

/* What is of processors would be passed over in silence on a GPU. */
static int check_backend(const bench_options *o)
{
    const struct {
        bool        given;
        const char *name;
    } of_cpus[] = {
        {o->huge_pages != 0, "--huge-pages"},
        {o->threads != 0, "--threads"},
        {o->isa != NULL, "--isa"},
        {o->peers != 0, "--peers"},
    };

    for (size_t i = 0; o->backend == BENCH_CUDA && i < sizeof of_cpus / sizeof of_cpus[0]; i++) {
        if (of_cpus[i].given) {
            return cli_fail(CLI_USAGE, "bench: no %s with --backend cuda", of_cpus[i].name);
        }
    }
    return CLI_OK;
}

/* An exit status; *done where there is nothing left to do. */
static int parse_options(int argc, char **argv, bench_options *o, bool *done)
{
    int option, status = CLI_OK;

    while ((option = cli_next_option(argc, argv, long_options, print_help, done, &status)) != 0) {
        if (!take_option(option, o)) {
            return CLI_USAGE;
        }
    }
    if (*done || status != CLI_OK) {
        return status;
    }
    if (o->seconds == 0) {
        o->seconds = o->quick ? QUICK_SECONDS : DEFAULT_SECONDS;
    }
    status = check_backend(o);
    return status != CLI_OK ? status : parse_cases(argc, argv, o);
}

void bench_progress(const bench_options *options, const char *text)
{
    if (!options->quiet && cli_is_terminal(stderr)) {
        fprintf(stderr, "\r\033[K%s", text != NULL ? text : "");
        fflush(stderr);
    }
}

/* Each case that runs gets its share of the time: planning is short work. */
static int run_cases(const bench_options *o, bench_results *results)
{
    const int flows = o->run_convert + o->run_gather + o->run_layout;
    const int moves = 3 * flows + o->run_copy_pages + o->run_swap + o->run_update;
    const struct {
        bool runs;
        int  share;
        int (*run)(const bench_options *o, int64_t deadline_ns, bench_results *results);
    } cases[] = {
        {o->run_update, 9, bench_update},
        {o->run_plan, 1, bench_plan},
        {moves > 0, moves, bench_moves},
        {o->run_pool, 2, bench_pool},
    };
    const size_t n_cases = sizeof cases / sizeof cases[0];
    int64_t      start_ns = cli_now_ns();
    int          shares = 0, shares_done = 0, status = CLI_OK;

    for (size_t i = 0; i < n_cases; i++) {
        shares += cases[i].runs ? cases[i].share : 0;
    }
    for (size_t i = 0; i < n_cases && status == CLI_OK; i++) {
        if (cases[i].runs) {
            shares_done += cases[i].share;
            int64_t ns = o->seconds * 1000000000 / shares * shares_done;
            status = cases[i].run(o, start_ns + ns, results);
        }
    }
    bench_progress(o, NULL);
    return status;
}

static int run_backend(const bench_options *o, bench_results *results)
{
    return o->backend == BENCH_CUDA
               ? bench_cuda(o, cli_now_ns() + o->seconds * 1000000000, results)
               : run_cases(o, results);
}

int cmd_bench(int argc, char **argv)
{
    bench_options o = {.num_kv_heads = 8, .head_dim = 128, .dtype = PKV_DTYPE_BF16};
    bench_results results = {0};
    bool          done = false;

    int status = parse_options(argc, argv, &o, &done);
    if (status != CLI_OK || done) {
        return status;
    }
    status = cli_probe_output(o.json_path);
    if (status != CLI_OK) {
        return status;
    }
    bench_machine_read(&o.machine);
    status = run_backend(&o, &results);
    if (status == CLI_OK && results.n_rows == 0) {
        status = cli_fail(CLI_USAGE, "bench: nothing to time: no such pattern, or too large");
    }
    if (status == CLI_OK && !o.quiet) {
        bench_print_tables(&o, &results, cli_table_stream(o.json_path));
    }
    if (status == CLI_OK && o.json_path != NULL) {
        status = cli_write_json(bench_rows_to_json(&results), o.json_path);
    }
    free(results.rows);
    return status;
}
