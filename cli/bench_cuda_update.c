/* Cases update and convert of `pagedkv bench --backend cuda`. */
#include <stdlib.h>
#include <string.h>

#include "bench_cuda.h"
#include "bench_memory.h"

enum { LARGE_TOKENS = 65536, MERGED_TOKENS = 1024, CHECKED_SLICES = 32, MAX_PADDED = 8192 };

typedef struct update {
    cuda_work    work;
    const cuda_item *shape;
    bench_view   view; /* of layer 0 */
    pkv_cache    caches[CUDA_MAX_LAYERS];
    pkv_dtype    rows_dtype;
    int64_t      rows_bytes; /* new K/V of one layer */
    int64_t      n_slices;
    int64_t      padded; /* N */
    float        scale;  /* the one that the device has too */
} update;

/* ---- one node ------------------------------------------------------------ */

/* Columns of a node, and behind them the count. */
static pkv_slices slices_of(const update *u, int32_t *numbers, int64_t capacity)
{
    return (pkv_slices){.struct_size = sizeof(pkv_slices), .capacity = capacity,
                        .kv_cache_start = numbers, .new_kv_start = numbers + u->padded,
                        .slice_len = numbers + 2 * u->padded,
                        .num_slices = numbers + 3 * u->padded};
}

/* Dense rows of one layer in the layout's own order. */
static pkv_status rows_at(const update *u, const char *data, int64_t n_tokens, pkv_new_kv *out)
{
    const pkv_cache *c = &u->view.cache;
    const int64_t    plane_bytes = n_tokens * c->n_heads * c->k.head_dim *
                                   pkv_dtype_bits(u->rows_dtype) / 8;
    return u->shape->layout == BENCH_COMBINED
               ? pkv_new_kv_combined(out, sizeof *out, data, n_tokens, c->n_heads, c->k.head_dim,
                                     u->rows_dtype)
               : pkv_new_kv_nhd(out, sizeof *out, data, data + plane_bytes, n_tokens, c->n_heads,
                                c->k.head_dim, c->k.head_dim, 0, u->rows_dtype);
}

/* Each node reads rows of its own. */
static const char *rows_of_node(const update *u, int64_t node, int layer)
{
    const cuda_bench *b = u->work.bench;
    return cuda_turn(b->source, b->source_bytes, u->rows_bytes * u->shape->n_layers, node) +
           layer * u->rows_bytes;
}

static int put(void *ctx, int kind, int64_t node)
{
    const update         *u = ctx;
    const cuda_bench     *b = u->work.bench;
    const pkv_update_opts opts = {.struct_size = sizeof opts,
                                  .status_word = b->numbers + CUDA_AT_STATUS};
    const int  n_layers = u->shape->n_layers;
    pkv_new_kv rows[CUDA_MAX_LAYERS];
    pkv_slices slices = slices_of(u, cuda_numbers(b, node),
                                  kind == CUDA_UNPADDED ? u->n_slices : u->padded);
    pkv_error  err = {0};
    pkv_status status = PKV_OK;
    if (kind == CUDA_NO_COUNT) {
        slices.num_slices = b->numbers + CUDA_AT_ZERO;
    }
    for (int i = 0; i < n_layers && status == PKV_OK; i++) {
        status = rows_at(u, rows_of_node(u, node, i), u->shape->tokens, &rows[i]);
        if (kind == CUDA_CALLS && status == PKV_OK) {
            status = pkv_cuda_update(b->device.cuda, &u->caches[i], &rows[i], &slices, &opts, &err,
                                     b->device.stream);
        }
    }
    if (kind != CUDA_CALLS && status == PKV_OK) {
        status = pkv_cuda_update_layers(b->device.cuda, u->caches, rows, NULL, n_layers, &slices, 1,
                                        &opts, &err, b->device.stream);
    }
    return status == PKV_OK ? CLI_OK : cli_fail_pkv(&err, "bench: update");
}

/*
 * Slices of all nodes: stretches of adjacent slots in a shuffled order, all of them before
 * one comes again; single tokens each in a page of its own while there are such.
 */
static int draw(update *u)
{
    cuda_bench   *b = u->work.bench;
    const int64_t S = u->view.cache.page_size, slice = u->shape->slice_tokens;
    const int64_t run = slice > S ? slice : S, n_runs = u->view.cache.n_pages * S / run;
    int64_t       next = 0;
    int32_t      *order = cuda_shuffled(n_runs, &b->random);
    if (order == NULL) {
        return cli_no_memory("bench");
    }
    for (int64_t node = 0; node < b->n_nodes; node++) {
        int32_t *numbers = cuda_staged(b, node);
        memset(numbers, -1, (size_t)(3 * u->padded) * sizeof numbers[0]); /* garbage behind n */
        for (int64_t i = 0; i < u->n_slices; i++, next++) {
            const int64_t left = u->shape->tokens - i * slice;
            numbers[i] = (int32_t)(order[next % n_runs] * run + next / n_runs % (run / slice));
            numbers[u->padded + i] = (int32_t)(i * slice);
            numbers[2 * u->padded + i] = (int32_t)(left < slice ? left : slice);
        }
        numbers[3 * u->padded] = (int32_t)u->n_slices;
    }
    free(order);
    return cuda_put_numbers(b);
}

/* ---- the check: the part of a slice that is in one page, beside pkv_update() -------- */

typedef struct page_check {
    bench_view    view; /* of one page in host memory */
    int64_t       plane_bytes;
    unsigned char *found, *expected, *rows;
} page_check;

/* Page and rows from the device; in expected what the page is before the update. */
static int read_page(const update *u, page_check *p, int layer, int64_t node, int64_t page,
                     int64_t row, int64_t n_rows, pkv_new_kv *host_rows)
{
    const pkv_cache *c = &u->caches[layer];
    cuda_bench      *b = u->work.bench;
    pkv_new_kv       rows;
    int              status = CLI_OK;
    if (rows_at(u, rows_of_node(u, node, layer), u->shape->tokens, &rows) != PKV_OK ||
        rows_at(u, (const char *)p->rows, n_rows, host_rows) != PKV_OK) {
        return cli_fail(CLI_USAGE, "bench: no such rows");
    }
    for (int64_t plane = 0; plane < u->view.n_planes && status == CLI_OK; plane++) {
        const pkv_plane        *of = plane == 0 ? &c->k : &c->v;
        const pkv_new_kv_plane *from = plane == 0 ? &rows.k : &rows.v;
        const int64_t           bytes = n_rows * from->token_stride_bytes;
        status = cuda_read(b, p->found + plane * p->plane_bytes,
                           (const char *)of->data + page * of->page_stride_bytes, p->plane_bytes);
        if (status == CLI_OK) {
            status = cuda_read(b, p->rows + plane * bytes,
                               (const char *)from->data + row * from->token_stride_bytes, bytes);
        }
    }
    memcpy(p->expected, p->found, (size_t)(p->plane_bytes * u->view.n_planes));
    return status;
}

static int check_slice(const update *u, page_check *p, int layer, int64_t node, int64_t i)
{
    const int32_t *numbers = cuda_staged(u->work.bench, node);
    const int64_t  S = u->view.cache.page_size, slot = numbers[i], row = numbers[u->padded + i];
    int64_t        length = numbers[2 * u->padded + i];
    length = length < S - slot % S ? length : S - slot % S;
    int32_t    column[3] = {(int32_t)(slot % S), 0, (int32_t)length}, one = 1;
    pkv_slices slices;
    pkv_new_kv rows;
    pkv_error  err = {0};
    int        status = read_page(u, p, layer, node, slot / S, row, length, &rows);
    if (status != CLI_OK) {
        return status;
    }
    pkv_status done = pkv_slices_from_array(&slices, sizeof slices, column, 1, &one);
    done = done != PKV_OK ? done : pkv_update(&p->view.cache, &rows, &slices, NULL, &err);
    if (done != PKV_OK) {
        return cli_fail_pkv(&err, "bench: pkv_update");
    }
    if (memcmp(p->found, p->expected, (size_t)(p->plane_bytes * u->view.n_planes)) != 0) {
        return cli_fail(CLI_DIFFERENCE,
                        "bench %s %s: a wrong byte in page %lld of layer %d, slice %lld",
                        u->shape->case_name, u->shape->pattern, (long long)(slot / S), layer,
                        (long long)i);
    }
    return CLI_OK;
}

static void set_scales(const update *u, pkv_cache *cache, const float *scale)
{
    const bool has_scale = u->shape->cache_dtype != 0;
    cache->k_scales = (pkv_scales){.data = (void *)(uintptr_t)scale, .kind = PKV_SCALES_TENSOR};
    cache->v_scales = cache->k_scales = has_scale ? cache->k_scales : (pkv_scales){0};
}

/* Some slices of the last node, which nobody has written over, in the first and last layer. */
static int check(void *ctx, int kind)
{
    update       *u = ctx;
    const int64_t page_bytes = u->view.token_bytes * u->view.cache.page_size;
    const int64_t rows_bytes = u->view.cache.page_size * u->view.token_bytes * 8;
    const int64_t step = u->n_slices / CHECKED_SLICES + 1;
    page_check    p = {.plane_bytes = page_bytes / u->view.n_planes,
                       .found = malloc((size_t)page_bytes), .expected = malloc((size_t)page_bytes),
                       .rows = malloc((size_t)rows_bytes)};
    const cuda_bench *b = u->work.bench;
    const bench_shape one = {.layout = u->shape->layout, .page_size = u->view.cache.page_size,
                             .num_kv_heads = b->options->num_kv_heads,
                             .head_dim = b->options->head_dim, .dtype = u->view.cache.dtype};
    int status = p.found != NULL && p.expected != NULL && p.rows != NULL ? CLI_OK
                                                                         : cli_no_memory("bench");
    (void)kind;
    if (status == CLI_OK) {
        status = bench_view_open(&p.view, &one, &(pkv_memory){.data = p.expected,
                                                              .size_bytes = (uint64_t)page_bytes});
        set_scales(u, &p.view.cache, &u->scale);
    }
    for (int layer = 0; layer < u->shape->n_layers && status == CLI_OK;
         layer += u->shape->n_layers > 1 ? u->shape->n_layers - 1 : 1) {
        for (int64_t i = 0; i < u->n_slices && status == CLI_OK; i += step) {
            status = check_slice(u, &p, layer, u->shape->is_warm ? 0 : b->n_nodes - 1, i);
        }
    }
    free(p.found);
    free(p.expected);
    free(p.rows);
    return status;
}

/* ---- one case ------------------------------------------------------------ */

/* Caches of all layers, one behind the other; *fits: is there room for a call?  Exit status. */
static int open_caches(update *u, bool *fits)
{
    const cuda_item     *s = u->shape;
    const cuda_bench    *b = u->work.bench;
    const bench_options *o = b->options;
    const int64_t        layer_bytes = b->cache_bytes / s->n_layers / 4096 * 4096;
    const bench_shape    of = {.layout = s->layout, .page_size = s->page_size,
                               .num_kv_heads = o->num_kv_heads, .head_dim = o->head_dim,
                               .dtype = s->cache_dtype != 0 ? s->cache_dtype : o->dtype};
    int                  status = CLI_OK;
    for (int i = 0; i < s->n_layers && status == CLI_OK; i++) {
        pkv_memory part = {.data = b->cache + i * layer_bytes, .size_bytes = (uint64_t)layer_bytes};
        bench_view view;
        status = bench_view_open(&view, &of, &part);
        set_scales(u, &view.cache, (const float *)(const void *)(b->numbers + CUDA_AT_SCALE));
        u->caches[i] = view.cache;
        u->view = i == 0 ? view : u->view;
    }
    u->rows_bytes = s->tokens * 2 * o->num_kv_heads * o->head_dim *
                    pkv_dtype_bits(u->rows_dtype) / 8;
    *fits = status == CLI_OK && u->view.cache.n_pages * s->page_size >= s->tokens &&
            u->view.cache.n_pages * s->page_size >= s->slice_tokens &&
            u->rows_bytes * s->n_layers <= b->source_bytes &&
            3 * u->padded + 1 <= CUDA_NODE_NUMBERS;
    return status;
}

static void fill_row(update *u)
{
    const cuda_item *s = u->shape;
    const pkv_cache *c = &u->view.cache;
    bench_row       *row = &u->work.row;
    *row = cuda_row(s);
    row->plan = s->slice_tokens > s->page_size ? "merged" : "exact";
    row->layout = bench_layout_name(s->layout);
    row->src_dtype = pkv_dtype_name(u->rows_dtype);
    row->dtype = pkv_dtype_name(c->dtype);
    row->scales = s->cache_dtype != 0 ? "tensor" : NULL;
    row->page_size = c->page_size;
    row->num_kv_heads = c->n_heads;
    row->head_dim = c->k.head_dim;
    row->tokens = s->tokens;
    row->num_slices = u->n_slices;
    row->padded_num_slices = u->padded;
    row->layers = s->n_layers;
}

static void add_contenders(update *u)
{
    cuda_work    *w = &u->work;
    const cuda_item *s = u->shape;
    const int64_t moved = s->n_layers * (u->rows_bytes + s->tokens * u->view.token_bytes);
    const bool    has_calls = s->n_layers > 1;
    cuda_contender *call = cuda_add(w, "pagedkv", CUDA_CALL, moved);
    if (has_calls) {
        cuda_add(w, "pagedkv_calls", CUDA_CALLS, moved);
        call->calls = 1;
        call = cuda_add(w, "pagedkv", CUDA_CALL, moved);
        call->launch = "stream";
        call->calls = 3;
        cuda_add(w, "pagedkv_calls", CUDA_CALLS, moved)->launch = "stream";
    } else if (u->padded > u->n_slices) {
        cuda_add(w, "pkv N=n", CUDA_UNPADDED, moved);
        call->unpadded = 1;
    }
    cuda_add(w, "pkv n=0", CUDA_NO_COUNT, 0);
    if (moved > 1) {
        cuda_add(w, "memcpy", CUDA_COPY, moved);
    }
    if (s->tokens >= LARGE_TOKENS && s->cache_dtype == 0) {
        const int64_t most = (int64_t)1 << 30, there = w->bench->source_bytes;
        cuda_add(w, "memcpy large", CUDA_LARGE, there < most ? there : most);
    }
}

static int run_item(cuda_bench *b, const cuda_item *s, int64_t end_ns, bench_results *results)
{
    update *u = calloc(1, sizeof *u);
    bool    fits = false;
    if (u == NULL) {
        return cli_no_memory("bench");
    }
    u->shape = s;
    u->scale = 0.25F;
    u->work = (cuda_work){.bench = b, .ctx = u, .put = put, .check = check, .is_warm = s->is_warm};
    u->rows_dtype = b->options->dtype;
    u->n_slices = (s->tokens + s->slice_tokens - 1) / s->slice_tokens;
    u->padded = s->padded > u->n_slices ? s->padded : u->n_slices;
    int status = open_caches(u, &fits);
    if (status == CLI_OK && fits) {
        fill_row(u);
        add_contenders(u);
        status = draw(u);
        status = status != CLI_OK ? status : cuda_work_run(&u->work, end_ns, results);
    }
    free(u);
    return status;
}

/* ---- what there is -------------------------------------------------------- */

static bool wants(const bench_options *o, const char *pattern)
{
    return o->pattern == NULL || strcmp(o->pattern, pattern) == 0;
}

/* With --quick only what a small cache has room for. */
static bool is_left_out(const bench_options *o, int64_t tokens)
{
    return o->quick && tokens > 2048;
}

/* The item in all layouts asked for, or those of `layouts`. */
static int add_layouts(const bench_options *o, cuda_item item, unsigned layouts, cuda_item *items,
                       int n)
{
    layouts = o->layouts != 0 ? o->layouts : layouts;
    item.run = run_item;
    for (unsigned layout = BENCH_COMBINED; layout <= BENCH_HND; layout *= 2) {
        if ((layouts & layout) != 0 && n < CUDA_MAX_ITEMS && !is_left_out(o, item.tokens)) {
            item.layout = layout;
            items[n++] = item;
        }
    }
    return n;
}

static const unsigned all_layouts = BENCH_COMBINED | BENCH_NHD | BENCH_HND;

static int add_prefill(const bench_options *o, cuda_item *items, int n)
{
    static const int64_t tokens[] = {1, 64, 512, 2048, 8192, 65536};
    static const int64_t pages[] = {16, 64};
    for (size_t p = 0; p < 2; p++) {
        const int64_t S = o->page_size > 0 ? o->page_size : pages[p];
        for (size_t i = 0; i < sizeof tokens / sizeof tokens[0]; i++) {
            cuda_item item = {.case_name = "update", .pattern = "prefill", .page_size = S,
                              .tokens = tokens[i], .slice_tokens = S, .n_layers = 1};
            n = wants(o, "prefill") ? add_layouts(o, item, all_layouts, items, n) : n;
            item.pattern = "merged";
            item.slice_tokens = (MERGED_TOKENS + S - 1) / S * S;
            if (wants(o, "merged") && tokens[i] > MERGED_TOKENS) {
                n = add_layouts(o, item, BENCH_COMBINED, items, n);
            }
        }
        if (o->page_size > 0) {
            break;
        }
    }
    return n;
}

static int add_decode(const bench_options *o, cuda_item *items, int n)
{
    static const int64_t tokens[] = {1, 8, 64, 256, 512, 2048};
    const unsigned       sources = o->sources != 0 ? o->sources : BENCH_COLD | BENCH_WARM;
    cuda_item item = {.case_name = "update", .pattern = "decode", .slice_tokens = 1, .n_layers = 1,
                      .page_size = o->page_size > 0 ? o->page_size : 16};
    for (size_t i = 0; i < sizeof tokens / sizeof tokens[0] && wants(o, "decode"); i++) {
        item.tokens = tokens[i];
        for (unsigned source = BENCH_COLD; source <= BENCH_WARM; source *= 2) {
            item.is_warm = source == BENCH_WARM;
            if ((sources & source) != 0) {
                n = add_layouts(o, item, BENCH_COMBINED | BENCH_NHD, items, n);
            }
        }
    }
    return n;
}

/* n single tokens of N columns, beside the same with N = n. */
static int add_padded(const bench_options *o, cuda_item *items, int n)
{
    static const int64_t padded[] = {256, 1024, MAX_PADDED};
    static const int64_t real[] = {0, 1, 7, 33, -1};
    cuda_item item = {.case_name = "update", .pattern = "padded", .slice_tokens = 1, .n_layers = 1,
                      .page_size = o->page_size > 0 ? o->page_size : 16, .is_warm = true};
    for (size_t i = 0; i < sizeof padded / sizeof padded[0] && wants(o, "padded"); i++) {
        for (size_t k = 0; k < sizeof real / sizeof real[0]; k++) {
            item.padded = padded[i];
            item.tokens = real[k] >= 0 ? real[k] : padded[i];
            n = add_layouts(o, item, BENCH_COMBINED, items, n);
        }
    }
    return n;
}

static int add_many_layers(const bench_options *o, cuda_item *items, int n)
{
    static const int64_t tokens[] = {1, 64, 256};
    cuda_item item = {.case_name = "update", .pattern = "layers", .slice_tokens = 1,
                      .page_size = o->page_size > 0 ? o->page_size : 16,
                      .n_layers = CUDA_MAX_LAYERS};
    for (size_t i = 0; i < sizeof tokens / sizeof tokens[0] && wants(o, "layers"); i++) {
        item.tokens = tokens[i];
        n = add_layouts(o, item, BENCH_COMBINED, items, n);
    }
    return n;
}

static int add_convert(const bench_options *o, cuda_item *items, int n)
{
    static const pkv_dtype dtypes[] = {PKV_DTYPE_FP8_E4M3, PKV_DTYPE_INT8};
    static const char *const patterns[] = {"fp8_e4m3_tensor", "int8_tensor"};
    static const int64_t tokens[] = {64, 2048, 8192, 65536};
    for (size_t d = 0; d < 2 && o->dtype <= PKV_DTYPE_BF16; d++) {
        for (size_t i = 0; i < sizeof tokens / sizeof tokens[0] && wants(o, patterns[d]); i++) {
            const int64_t S = o->page_size > 0 ? o->page_size : 64;
            cuda_item item = {.case_name = "convert", .pattern = patterns[d], .page_size = S,
                              .tokens = tokens[i], .slice_tokens = S, .n_layers = 1,
                              .cache_dtype = dtypes[d]};
            n = add_layouts(o, item, BENCH_COMBINED | BENCH_NHD, items, n);
        }
    }
    return n;
}

int cuda_update_items(const bench_options *o, cuda_item *items, int n)
{
    if (o->run_update) {
        n = add_prefill(o, items, n);
        n = add_decode(o, items, n);
        n = add_padded(o, items, n);
        n = add_many_layers(o, items, n);
    }
    return o->run_convert ? add_convert(o, items, n) : n;
}
