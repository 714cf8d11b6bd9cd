/* The case "update": which patterns, layouts, sources, threads and pages are timed. */
#include <stdlib.h>
#include <string.h>

#include "bench.h"
#include "bench_case.h"
#include "bench_memory.h"
#include "bench_peers.h"

/* Single tokens stand for decoding; runs of 1024 for what a good allocator gives. */
static const bench_pattern patterns[] = {
    {.name = "single", .page_size = 16, .n_decodes = 1, .run_tokens = 1},
    {.name = "decode", .page_size = 16, .n_decodes = 64, .run_tokens = 1},
    {.name = "decode", .page_size = 16, .n_decodes = 1024, .run_tokens = 1},
    {.name = "decode", .page_size = 16, .n_decodes = 8192, .run_tokens = 1},
    {.name = "prefill", .page_size = 16, .prefill_tokens = {1024, 0}},
    {.name = "prefill", .page_size = 16, .prefill_tokens = {8192, 0}},
    {.name = "prefill", .page_size = 64, .prefill_tokens = {1024, 0}},
    {.name = "prefill", .page_size = 64, .prefill_tokens = {8192, 0}},
    {.name = "merged", .page_size = 16, .prefill_tokens = {1024, 0}, .run_tokens = 1024},
    {.name = "merged", .page_size = 16, .prefill_tokens = {8192, 0}, .run_tokens = 1024},
    /* Median steps of replays under load: of the Azure chat trace and of the code trace, 2023. */
    {.name = "mixed", .page_size = 16, .prefill_tokens = {831, 0}, .n_decodes = 255},
    {.name = "mixed", .page_size = 16, .prefill_tokens = {8096, 0}, .n_decodes = 96},
    /* The fixture of upstream's own measurements; num_kv_heads 2 is 4 combined heads. */
    {.name = "fixture", .page_size = 64, .prefill_tokens = {1024, 512}, .n_decodes = 512,
     .num_kv_heads = 2, .head_dim = 128},
};

enum {
    N_PATTERNS = sizeof patterns / sizeof patterns[0],
    /* Plans, then sources, layouts, thread counts: the digits that a case is counted by. */
    SOURCES_DIGIT = 2,
    LAYOUTS_DIGIT = 2 * SOURCES_DIGIT,
    THREADS_DIGIT = 3 * LAYOUTS_DIGIT,
    PATTERN_DIGIT = 2 * THREADS_DIGIT,
    MAX_CASES = N_PATTERNS * PATTERN_DIGIT,
    QUICK_TOKENS = 2048
};

static bool is_named(const bench_pattern *p, const char *name)
{
    return strcmp(p->name, name) == 0;
}

/* With a page size given, patterns that differ in nothing else are one. */
static bool is_repeated(const bench_pattern *p)
{
    for (const bench_pattern *other = patterns; other < p; other++) {
        if (is_named(p, other->name) && bench_pattern_tokens(p) == bench_pattern_tokens(other)) {
            return true;
        }
    }
    return false;
}

static bool takes_pattern(const bench_options *o, const bench_pattern *p)
{
    if (o->pattern != NULL && !is_named(p, o->pattern)) {
        return false;
    }
    if (o->page_size > 0 && is_repeated(p)) {
        return false;
    }
    return !o->quick || bench_pattern_tokens(p) <= QUICK_TOKENS;
}

/*
 * The grid without options leaves out what says little: warm sources but where
 * the call is short enough to meet one, and more threads but for the layout and
 * source that the limits are quoted for.
 */
static bool takes_case(const bench_options *o, const bench_case *c)
{
    bool few_rows = is_named(c->pattern, "single") || is_named(c->pattern, "decode");
    bool usual = c->layout == BENCH_COMBINED && c->source == BENCH_COLD;

    if (c->merged && !is_named(c->pattern, "merged")) {
        return false;
    }
    if (o->quick && o->layouts == 0 && c->layout != BENCH_COMBINED) {
        return false;
    }
    if (o->sources == 0 && c->source == BENCH_WARM && (o->quick || !few_rows)) {
        return false;
    }
    return o->threads > 0 || c->threads == 1 || usual;
}

static int list_cases(const bench_options *o, bench_case *cases)
{
    unsigned layouts = o->layouts != 0 ? o->layouts : BENCH_COMBINED | BENCH_NHD;
    unsigned sources = o->sources != 0 ? o->sources : BENCH_COLD | BENCH_WARM;
    int      all = (int)pkv_default_threads();
    int      threads[2] = {o->threads > 0 ? (int)o->threads : 1, all};
    int      n_threads = o->threads == 0 && all > 1 && !o->quick ? 2 : 1;
    int      n = 0;

    for (int i = 0; i < MAX_CASES; i++) {
        int        thread_count = i / THREADS_DIGIT % 2;
        bench_case c = {
            .pattern = &patterns[i / PATTERN_DIGIT],
            .threads = threads[thread_count],
            .layout = 1U << (unsigned)(i / LAYOUTS_DIGIT % 3),
            .source = 1U << (unsigned)(i / SOURCES_DIGIT % 2),
            .merged = i % 2 != 0,
        };
        if (thread_count < n_threads && (layouts & c.layout) != 0 && (sources & c.source) != 0 &&
            takes_pattern(o, c.pattern) && takes_case(o, &c)) {
            cases[n++] = c;
        }
    }
    return n;
}

static void show(const bench_options *options, const bench_case *c, bool huge_pages, int done,
                 int total)
{
    char text[128];

    snprintf(text, sizeof text, "update %d/%d: %s %lld, %s, %d thread%s, %s pages", done + 1, total,
             c->pattern->name, (long long)bench_pattern_tokens(c->pattern),
             bench_layout_name(c->layout), c->threads, c->threads == 1 ? "" : "s",
             huge_pages ? "huge" : "ordinary");
    bench_progress(options, text);
}

/* Runs all cases on one memory; the time that is left is shared out evenly. */
static int run_cases(const bench_options *options, const bench_case *cases, int n, bool huge_pages,
                     bench_peers *peers, int64_t deadline_ns, bench_results *results)
{
    bench_memory memory;
    int          status = CLI_OK;

    bench_progress(options, "update: touching the memory");
    status = bench_memory_open(&memory, options, huge_pages);
    /* Where the system gives no huge pages, there is nothing that ordinary ones have not shown. */
    bool new_to_see = !huge_pages || memory.huge_pages || options->huge_pages == BENCH_HUGE_ON;
    if (status == CLI_OK && new_to_see) {
        bench_peers_open(peers, &memory, huge_pages);
    }
    for (int i = 0; i < n && status == CLI_OK && new_to_see; i++) {
        int64_t now = cli_now_ns();
        show(options, &cases[i], huge_pages, i, n);
        status = bench_case_run(&cases[i], options, &memory, peers,
                                now + (deadline_ns - now) / (n - i), results);
    }
    bench_memory_close(&memory);
    return status;
}

/* Python takes its time to start, so not for nothing; and a quick run has none. */
static bool wants_peers(const bench_options *options, const bench_case *cases, int n)
{
    bool allowed =
        options->peers == BENCH_PEERS_AUTO || (options->peers == 0 && !options->quick);

    for (int i = 0; i < n && allowed; i++) {
        for (int peer = 0; peer < BENCH_N_PEERS; peer++) {
            if (bench_case_takes_peer(&cases[i], peer)) {
                return true;
            }
        }
    }
    return false;
}

int bench_update(const bench_options *options, int64_t deadline_ns, bench_results *results)
{
    const char *chosen_isa = pkv_isa_current();
    bench_case *cases = calloc(MAX_CASES, sizeof *cases);
    unsigned    ordinary_and_huge = BENCH_HUGE_OFF | BENCH_HUGE_ON;
    unsigned    wanted = options->huge_pages;
    bench_peers peers = {0};
    int         status = CLI_OK;

    if (cases == NULL) {
        return cli_no_memory("bench");
    }
    if (wanted == 0) {
        wanted = options->quick ? BENCH_HUGE_OFF : ordinary_and_huge;
    }
    int n = list_cases(options, cases);
    if (wants_peers(options, cases, n)) {
        bench_peers_start(&peers, options);
    }
    int64_t now = cli_now_ns();
    int64_t half_ns = wanted == ordinary_and_huge ? now + (deadline_ns - now) / 2 : deadline_ns;
    if (n > 0 && (wanted & BENCH_HUGE_OFF) != 0) {
        status = run_cases(options, cases, n, false, &peers, half_ns, results);
    }
    if (status == CLI_OK && n > 0 && (wanted & BENCH_HUGE_ON) != 0) {
        status = run_cases(options, cases, n, true, &peers, deadline_ns, results);
    }
    bench_peers_close(&peers);
    free(cases);
    /* It was usable before, so this cannot fail. */
    (void)pkv_isa_select(chosen_isa);
    return status;
}
