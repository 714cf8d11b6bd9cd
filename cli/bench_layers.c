/* update's `layers`: 32 layers in one call beside as many calls, on the same steps. */
#include <stdlib.h>
#include <string.h>

#include "bench_step.h"
#include "bench_work.h"

enum { LAYERS = 32 };

typedef struct layers {
    bench_work      work;
    bench_pattern   pattern;
    bench_view      view; /* of layer 0 */
    bench_runs      runs;
    bench_step      step;
    pkv_cache       caches[LAYERS];
    pkv_new_kv      news[LAYERS];
    pkv_update_opts opts;
    int64_t         layer_bytes; /* of one layer's cache memory */
} layers;

static int draw(void *ctx)
{
    layers *l = ctx;
    int64_t call_bytes = l->step.n_tokens * l->view.token_bytes;
    char   *source = bench_work_source(&l->work, LAYERS * call_bytes);

    int status = CLI_OK;
    for (int i = 0; i < LAYERS && status == CLI_OK; i++) {
        status = bench_view_source(&l->view, source + i * call_bytes, l->step.n_tokens,
                                   &l->news[i]);
    }
    l->step.source = l->news[0];
    if (status == CLI_OK) {
        status = bench_step_draw(&l->step, &l->pattern, &l->view, &l->runs, false);
    }
    l->work.row.num_slices = l->step.n_slices;
    return status;
}

static void touch(void *ctx)
{
    const layers *l = ctx;
    bench_step_touch(&l->step);
}

static int run(void *ctx, int impl)
{
    layers    *l = ctx;
    pkv_error  err;
    pkv_status status = PKV_OK;

    if (impl == 0) {
        status = pkv_update_layers(l->caches, l->news, NULL, LAYERS, &l->step.slices, 1, &l->opts,
                                   &err);
    }
    for (int i = 0; i < LAYERS && impl != 0 && status == PKV_OK; i++) {
        status = pkv_update(&l->caches[i], &l->news[i], &l->step.slices, &l->opts, &err);
    }
    return status == PKV_OK ? CLI_OK : cli_fail_pkv(&err, "bench: pkv_update_layers");
}

static int check(void *ctx, const char *who)
{
    const layers *l = ctx;
    size_t        bytes = (size_t)l->view.token_bytes;

    for (int i = 0; i < LAYERS; i++) {
        for (int64_t t = 0; t < l->step.n_tokens; t++) {
            const char *at = (const char *)l->caches[i].k.data +
                             l->step.slots[t] * l->view.token_bytes;
            const char *want = (const char *)l->news[i].k.data + t * l->view.token_bytes;
            if (memcmp(at, want, bytes) != 0) {
                return cli_fail(CLI_DIFFERENCE, "bench update layers, %s: a wrong byte in slot "
                                "%lld of layer %d", who, (long long)l->step.slots[t], i);
            }
        }
    }
    return CLI_OK;
}

static void fill_row(layers *l)
{
    bench_row *row = &l->work.row;

    *row = bench_row_null;
    row->case_name = "update";
    row->pattern = l->pattern.name;
    row->plan = "exact";
    row->layout = bench_layout_name(l->view.layout);
    row->source = "cold";
    row->src_dtype = row->dtype = pkv_dtype_name(l->view.cache.dtype);
    row->page_size = l->view.cache.page_size;
    row->num_kv_heads = l->view.cache.n_heads;
    row->head_dim = l->view.cache.k.head_dim;
    row->requests = l->step.n_tokens;
    row->tokens = l->step.n_tokens;
    row->layers = LAYERS;
    row->threads = l->work.threads;
    row->huge_pages = l->work.memory->huge_pages;
}

/* All layers in the cache memory, one behind the other.  Exit status. */
static int open_layers(layers *l, const bench_options *options)
{
    pkv_memory  part = l->work.memory->cache;
    bench_shape shape = {.layout = BENCH_COMBINED, .page_size = l->pattern.page_size,
                         .num_kv_heads = options->num_kv_heads, .head_dim = options->head_dim,
                         .dtype = options->dtype};

    l->layer_bytes = (int64_t)part.size_bytes / LAYERS / 64 * 64;
    part.size_bytes = (uint64_t)l->layer_bytes;
    int status = bench_view_open(&l->view, &shape, &part);
    for (int i = 0; i < LAYERS && status == CLI_OK; i++) {
        l->caches[i] = l->view.cache;
        l->caches[i].k.data = (char *)l->caches[i].k.data + i * l->layer_bytes;
        l->caches[i].v.data = (char *)l->caches[i].v.data + i * l->layer_bytes;
    }
    return status;
}

static bool fits(const layers *l)
{
    int64_t slots = l->view.cache.n_pages * l->view.cache.page_size;
    return bench_pattern_slots(&l->pattern, l->pattern.page_size) <= slots &&
           LAYERS * l->pattern.n_decodes * l->view.token_bytes <=
               (int64_t)l->work.memory->source.size_bytes;
}

static int time_layers(layers *l, int64_t end_ns, bench_results *results)
{
    bench_work *w = &l->work;

    int status = bench_runs_open(&l->runs, &l->pattern, &l->view);
    if (status == CLI_OK) {
        status = bench_step_open(&l->step, &l->pattern, &l->view);
    }
    if (status == CLI_OK) {
        w->impls[0] = "pagedkv";
        w->impls[1] = "pagedkv_calls";
        w->ctx = l;
        w->draw = draw;
        w->touch = touch;
        w->run = run;
        w->check = check;
        w->moved_bytes = 2 * LAYERS * l->step.n_tokens * l->view.token_bytes;
        l->opts = (pkv_update_opts){.struct_size = sizeof l->opts, .max_threads = w->threads};
        fill_row(l);
        status = bench_work_run(w, end_ns, results);
    }
    bench_step_close(&l->step);
    bench_runs_close(&l->runs);
    return status;
}

static int run_item(const bench_item *item, const bench_options *options,
                    const bench_memory *memory, bench_peers *peers, int64_t end_ns,
                    bench_results *results)
{
    layers *l = calloc(1, sizeof *l);

    (void)peers;
    if (l == NULL) {
        return cli_no_memory("bench");
    }
    l->work = (bench_work){.options = options, .memory = memory, .threads = item->threads};
    l->pattern = (bench_pattern){.name = item->name, .n_decodes = item->tokens, .run_tokens = 1,
                                 .page_size = options->page_size > 0 ? options->page_size : 16};
    int status = open_layers(l, options);
    if (status == CLI_OK && fits(l)) {
        status = time_layers(l, end_ns, results);
    }
    free(l);
    return status;
}

/* With --quick only where it is asked for by name: what it shows takes two threads and time. */
int bench_layers_items(const bench_options *options, bench_item *items, int n)
{
    static const int64_t sizes[] = {1, 8, 256};
    unsigned             layouts = options->layouts != 0 ? options->layouts : BENCH_COMBINED;
    int                  all = (int)pkv_default_threads();

    if (!options->run_update || !bench_work_wants(options, "layers") ||
        (options->quick && options->pattern == NULL) || (layouts & BENCH_COMBINED) == 0) {
        return n;
    }
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0] && n < BENCH_MAX_ITEMS; i++) {
        items[n++] = (bench_item){
            .run = run_item,
            .name = "layers",
            .tokens = sizes[i],
            .threads = options->threads > 0 ? (int)options->threads : all > 2 ? 2 : all,
        };
    }
    return n;
}
