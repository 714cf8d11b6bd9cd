/* Runs the works of all cases on one memory after another: see bench_work.h. */
#include <stdlib.h>

#include "bench.h"
#include "bench_run.h"
#include "bench_work.h"

/*
 * Numbers that every float format finds moderate, bf16 in each half of a word:
 * what models compute, and no infinities.
 */
static void fill_moderate(const pkv_memory *memory)
{
    uint64_t  seed = 11;
    uint64_t *words = memory->data;

    for (uint64_t i = 0; i < memory->size_bytes / sizeof words[0]; i++) {
        /* Exponents 0x3c80 .. 0x407f; no byte is a NaN of fp8. */
        words[i] = (bench_random(&seed) & 0x83bf83bf83bf83bfU) + 0x3c803c803c803c80U;
    }
}

static void show(const bench_options *options, const bench_item *item, int done, int total,
                 bool huge_pages)
{
    char text[128];

    snprintf(text, sizeof text, "%d/%d: %s, %s pages", done + 1, total, item->name,
             huge_pages ? "huge" : "ordinary");
    bench_progress(options, text);
}

/* All on one memory; the time that is left is shared out evenly. */
static int run_items(const bench_options *options, const bench_item *items, int n, bool huge_pages,
                     bench_peers *peers, int64_t deadline_ns, bench_results *results)
{
    bench_memory memory;

    bench_progress(options, "touching the memory");
    int status = bench_memory_open(&memory, options, huge_pages);
    /* Where the system gives no huge pages, there is nothing that ordinary ones have not shown. */
    bool new_to_see = !huge_pages || memory.huge_pages || options->huge_pages == BENCH_HUGE_ON;
    if (status == CLI_OK && new_to_see) {
        bench_peers_open(peers, &memory, huge_pages);
    }
    for (int i = 0; i < n && status == CLI_OK && new_to_see; i++) {
        if (i == 0 || items[i].fills != items[i - 1].fills) {
            fill_moderate(&memory.source);
            fill_moderate(&memory.cache);
        }
        int64_t now = cli_now_ns();
        show(options, &items[i], i, n, huge_pages);
        status = items[i].run(&items[i], options, &memory, peers,
                              now + (deadline_ns - now) / (n - i), results);
    }
    bench_memory_close(&memory);
    return status;
}

/* Python takes its time to start, so not for nothing; and a quick run has none. */
static bool wants_peers(const bench_options *options, const bench_item *items, int n)
{
    bool any = false;

    for (int i = 0; i < n; i++) {
        any = any || items[i].takes_peers;
    }
    return any && (options->peers != 0 ? options->peers == BENCH_PEERS_AUTO : !options->quick);
}

int bench_moves(const bench_options *options, int64_t deadline_ns, bench_results *results)
{
    const char *chosen_isa = pkv_isa_current();
    bench_item *items = calloc(BENCH_MAX_ITEMS, sizeof *items);
    unsigned    both = BENCH_HUGE_OFF | BENCH_HUGE_ON, wanted = options->huge_pages;
    bench_peers peers = {0};
    int         status = CLI_OK;

    if (items == NULL) {
        return cli_no_memory("bench");
    }
    wanted = wanted != 0 ? wanted : options->quick ? BENCH_HUGE_OFF : both;
    int n = bench_flow_items(options, items, 0);
    n = bench_layers_items(options, items, n);
    n = bench_pages_items(options, items, n);
    if (wants_peers(options, items, n)) {
        bench_peers_start(&peers, options);
    }
    int64_t now = cli_now_ns();
    int64_t half_ns = wanted == both ? now + (deadline_ns - now) / 2 : deadline_ns;
    if (n > 0 && (wanted & BENCH_HUGE_OFF) != 0) {
        status = run_items(options, items, n, false, &peers, half_ns, results);
    }
    if (status == CLI_OK && n > 0 && (wanted & BENCH_HUGE_ON) != 0) {
        status = run_items(options, items, n, true, &peers, deadline_ns, results);
    }
    bench_peers_close(&peers);
    free(items);
    /* It was usable before, so this cannot fail. */
    (void)pkv_isa_select(chosen_isa);
    return status;
}
