/* Cases copy-pages and plan of `pagedkv bench --backend cuda`. */
#include <stdlib.h>
#include <string.h>

#include "bench_cuda.h"
#include "bench_memory.h"

/* ---- copy-pages: pages inside a cache, scattered on both sides -------------- */

enum { CALL_BYTES = 32 << 20, QUICK_CALL_BYTES = 2 << 20, MAX_COPIES = 2048 };

typedef struct copies {
    cuda_work  work;
    bench_view view;
    int64_t    page_bytes;
    int64_t    n_copies;
} copies;

static int put_copies(void *ctx, int kind, int64_t node)
{
    const copies         *c = ctx;
    const cuda_bench     *b = c->work.bench;
    const pkv_update_opts opts = {.struct_size = sizeof opts,
                                  .status_word = b->numbers + CUDA_AT_STATUS};
    int32_t              *numbers = cuda_numbers(b, node);
    pkv_error             err = {0};
    pkv_status            status = pkv_cuda_copy_pages(
        b->device.cuda, &c->view.cache, &c->view.cache, NULL, 1,
        (const pkv_page_copy *)(const void *)numbers, c->n_copies,
        kind == CUDA_NO_COUNT ? b->numbers + CUDA_AT_ZERO : numbers + 4 * c->n_copies, &opts, &err,
        b->device.stream);
    return status == PKV_OK ? CLI_OK : cli_fail_pkv(&err, "bench: copy-pages");
}

/* No page of a node is in two of its copies; all have their turn before one comes again. */
static int draw_copies(copies *c)
{
    cuda_bench   *b = c->work.bench;
    const int64_t n_pages = c->view.cache.n_pages, n = c->n_copies;
    int64_t       next = 0;
    int32_t      *order = cuda_shuffled(n_pages, &b->random);
    if (order == NULL) {
        return cli_no_memory("bench");
    }
    for (int64_t node = 0; node < b->n_nodes; node++) {
        pkv_page_copy *of_node = (pkv_page_copy *)(void *)cuda_staged(b, node);
        next = next + 2 * n > n_pages ? 0 : next;
        for (int64_t i = 0; i < n; i++, next += 2) {
            of_node[i] = (pkv_page_copy){.src = order[next], .dst = order[next + 1],
                                         .n_tokens = (int32_t)c->view.cache.page_size};
        }
        cuda_staged(b, node)[4 * n] = (int32_t)n;
    }
    free(order);
    return cuda_put_numbers(b);
}

/* Pages of the last node: they are what their sources are. */
static int check_copies(void *ctx, int kind)
{
    copies              *c = ctx;
    cuda_bench          *b = c->work.bench;
    const pkv_page_copy *all = (const pkv_page_copy *)(void *)cuda_staged(b, b->n_nodes - 1);
    const char          *pages = c->view.cache.k.data;
    char                *both = malloc((size_t)(2 * c->page_bytes));
    int                  status = both != NULL ? CLI_OK : cli_no_memory("bench");
    (void)kind;
    for (int64_t i = 0; i < c->n_copies && status == CLI_OK; i += c->n_copies / 32 + 1) {
        status = cuda_read(b, both, pages + all[i].src * c->page_bytes, c->page_bytes);
        status = status != CLI_OK ? status
                                  : cuda_read(b, both + c->page_bytes,
                                              pages + all[i].dst * c->page_bytes, c->page_bytes);
        if (status == CLI_OK && memcmp(both, both + c->page_bytes, (size_t)c->page_bytes) != 0) {
            status = cli_fail(CLI_DIFFERENCE, "bench copy-pages %s: a wrong byte in page %d",
                              c->work.row.pattern, (int)all[i].dst);
        }
    }
    free(both);
    return status;
}

static void fill_copies_row(copies *c, const cuda_item *item)
{
    bench_row *row = &c->work.row;
    *row = cuda_row(item);
    row->plan = "none";
    row->layout = bench_layout_name(BENCH_COMBINED);
    row->src_dtype = row->dtype = pkv_dtype_name(c->view.cache.dtype);
    row->page_size = c->view.cache.page_size;
    row->num_kv_heads = c->view.cache.n_heads;
    row->head_dim = c->view.cache.k.head_dim;
    row->tokens = c->n_copies * c->view.cache.page_size;
    row->pages = c->n_copies;
    row->layers = 1;
}

/* item->tokens: bytes of a page. */
static int run_copies(cuda_bench *b, const cuda_item *item, int64_t end_ns, bench_results *results)
{
    const bench_options *o = b->options;
    const int64_t        token_bits = 2 * o->num_kv_heads * o->head_dim * pkv_dtype_bits(o->dtype);
    const int64_t        tokens = item->tokens * 8 / token_bits;
    const int64_t        call_bytes = o->quick ? QUICK_CALL_BYTES : CALL_BYTES;
    const bench_shape    shape = {.layout = BENCH_COMBINED, .page_size = tokens,
                                  .num_kv_heads = o->num_kv_heads, .head_dim = o->head_dim,
                                  .dtype = o->dtype};
    pkv_memory           memory = {.data = b->cache, .size_bytes = (uint64_t)b->cache_bytes};
    copies              *c = tokens > 0 ? calloc(1, sizeof *c) : NULL;
    if (c == NULL) {
        return tokens > 0 ? cli_no_memory("bench") : CLI_OK;
    }
    c->work = (cuda_work){.bench = b, .ctx = c, .put = put_copies, .check = check_copies};
    int status = bench_view_open(&c->view, &shape, &memory);
    c->page_bytes = status == CLI_OK ? c->view.cache.k.page_stride_bytes : 1;
    c->n_copies = call_bytes / c->page_bytes < MAX_COPIES ? call_bytes / c->page_bytes : MAX_COPIES;
    if (status == CLI_OK && c->n_copies > 0 && 2 * c->n_copies <= c->view.cache.n_pages) {
        const int64_t moved = 2 * c->n_copies * c->page_bytes;
        fill_copies_row(c, item);
        cuda_add(&c->work, "pagedkv", CUDA_CALL, moved);
        cuda_add(&c->work, "pkv n=0", CUDA_NO_COUNT, 0);
        cuda_add(&c->work, "memcpy", CUDA_COPY, moved);
        status = draw_copies(c);
        status = status != CLI_OK ? status : cuda_work_run(&c->work, end_ns, results);
    }
    free(c);
    return status;
}

/* ---- plan: slices of a step, made on the device -------------------------------- */

enum { WIDTH = 64 }; /* pages of a request's row */

typedef struct plans {
    cuda_work work;
    int64_t   n_requests;
    int64_t   tokens; /* of a request */
    int64_t   page_size;
    int64_t   capacity;
} plans;

/* Of a node: [1] R, [R + 1] query_start_loc, [R] context_lens, [R, WIDTH] table, [3, N], [1] n. */
enum { AT_STARTS = 1 };

static int64_t at_contexts(const plans *p)
{
    return AT_STARTS + p->n_requests + 1;
}

static int64_t at_table(const plans *p)
{
    return at_contexts(p) + p->n_requests;
}

static int64_t at_columns(const plans *p)
{
    return at_table(p) + p->n_requests * WIDTH;
}

static int put_plan(void *ctx, int kind, int64_t node)
{
    const plans         *p = ctx;
    const cuda_bench    *b = p->work.bench;
    int32_t             *numbers = cuda_numbers(b, node), *columns = numbers + at_columns(p);
    const pkv_cuda_batch batch = {
        .struct_size = sizeof batch,
        .num_seqs = kind == CUDA_NO_COUNT ? b->numbers + CUDA_AT_ZERO : numbers,
        .max_num_reqs = p->n_requests,
        .context_lens = numbers + at_contexts(p),
        .query_start_loc = numbers + AT_STARTS,
        .block_table = numbers + at_table(p),
        .block_table_stride = WIDTH,
        .block_table_width = WIDTH,
        .page_size = p->page_size,
    };
    pkv_slices out;
    pkv_error  err = {0};
    pkv_status status = pkv_slices_from_array(&out, sizeof out, columns, p->capacity,
                                              columns + 3 * p->capacity);
    if (status == PKV_OK) {
        status = pkv_cuda_plan(b->device.cuda, &batch, kind == CUDA_MERGED ? 0 : p->page_size, &out,
                               b->numbers + CUDA_AT_STATUS, &err, b->device.stream);
    }
    return status == PKV_OK ? CLI_OK : cli_fail_pkv(&err, "bench: plan");
}

/* On average every other page follows the one before it, so that merged plans join some. */
static int draw_plans(plans *p)
{
    cuda_bench *b = p->work.bench;
    for (int64_t node = 0; node < b->n_nodes; node++) {
        int32_t *numbers = cuda_staged(b, node), *starts = numbers + AT_STARTS;
        numbers[0] = (int32_t)p->n_requests;
        for (int64_t r = 0; r < p->n_requests; r++) {
            int32_t      *row = numbers + at_table(p) + r * WIDTH;
            const int64_t most = WIDTH * p->page_size - p->tokens;
            starts[r] = (int32_t)(r * p->tokens);
            numbers[at_contexts(p) + r] =
                (int32_t)(p->tokens + bench_random_below(&b->random, most + 1));
            for (int64_t i = 0; i < WIDTH; i++) {
                bool follows = i > 0 && bench_random_below(&b->random, 2) == 0;
                row[i] = follows ? row[i - 1] + 1
                                 : (int32_t)bench_random_below(&b->random, 1 << 20);
            }
        }
        starts[p->n_requests] = (int32_t)(p->n_requests * p->tokens);
    }
    return cuda_put_numbers(b);
}

/* pkv_plan() of a node: the number of slices, -1 after a line. */
static int64_t plan_node(const plans *p, int64_t node, bool merged, int32_t *columns)
{
    const int32_t *numbers = cuda_staged(p->work.bench, node);
    int32_t       *scheduled = malloc((size_t)p->n_requests * 2 * sizeof *scheduled);
    int32_t        n = -1;
    if (scheduled == NULL) {
        cli_no_memory("bench");
        return -1;
    }
    int32_t *computed = scheduled + p->n_requests;
    for (int64_t r = 0; r < p->n_requests; r++) {
        scheduled[r] = (int32_t)p->tokens;
        computed[r] = numbers[at_contexts(p) + r] - scheduled[r];
    }
    const pkv_batch batch = {.struct_size = sizeof batch, .n_requests = p->n_requests,
                             .computed = computed, .scheduled = scheduled,
                             .block_table = numbers + at_table(p), .block_table_stride = WIDTH,
                             .block_table_width = WIDTH, .page_size = p->page_size};
    pkv_slices out;
    pkv_error  err = {0};
    (void)pkv_slices_from_array(&out, sizeof out, columns, p->capacity, &n);
    if (pkv_plan(&batch, merged ? 0 : p->page_size, &out, NULL, &err) != PKV_OK) {
        cli_fail_pkv(&err, "bench: pkv_plan");
        n = -1;
    }
    free(scheduled);
    return n;
}

/* All slices of the last node are those of pkv_plan(). */
static int check_plan(void *ctx, int kind)
{
    plans        *p = ctx;
    cuda_bench   *b = p->work.bench;
    const int64_t n_numbers = 3 * p->capacity + 1;
    int32_t      *found = malloc((size_t)n_numbers * 2 * sizeof *found);
    if (found == NULL) {
        return cli_no_memory("bench");
    }
    int32_t      *expected = found + n_numbers;
    const int64_t n = plan_node(p, p->work.bench->n_nodes - 1, kind == CUDA_MERGED, expected);
    int           status = n < 0 ? CLI_USAGE
                                 : cuda_read(b, found,
                                             cuda_numbers(b, b->n_nodes - 1) + at_columns(p),
                                             n_numbers * (int64_t)sizeof *found);
    bool          same = status != CLI_OK || found[3 * p->capacity] == n;
    for (int i = 0; i < 3 && status == CLI_OK && same; i++) {
        same = memcmp(found + i * p->capacity, expected + i * p->capacity,
                      (size_t)n * sizeof *found) == 0;
    }
    free(found);
    return same ? status
                : cli_fail(CLI_DIFFERENCE, "bench plan %s: not the slices of pkv_plan()",
                           p->work.row.pattern);
}

/* Of the last node; nodes differ by some. */
static int count_slices(const plans *p, cuda_contender *c)
{
    int32_t *columns = malloc((size_t)p->capacity * 3 * sizeof *columns);
    if (columns == NULL) {
        return cli_no_memory("bench");
    }
    c->num_slices = plan_node(p, p->work.bench->n_nodes - 1, c->kind == CUDA_MERGED, columns);
    free(columns);
    return c->num_slices >= 0 ? CLI_OK : CLI_USAGE;
}

/* item->tokens: of all requests; item->slice_tokens: of one. */
static int run_plan(cuda_bench *b, const cuda_item *item, int64_t end_ns, bench_results *results)
{
    plans *p = calloc(1, sizeof *p);
    if (p == NULL) {
        return cli_no_memory("bench");
    }
    p->work = (cuda_work){.bench = b, .ctx = p, .put = put_plan, .check = check_plan};
    p->n_requests = item->tokens / item->slice_tokens;
    p->tokens = item->slice_tokens;
    p->page_size = item->page_size;
    p->capacity = p->n_requests * ((p->tokens - 1) / p->page_size + 2);
    p->work.row = cuda_row(item);
    p->work.row.plan = "exact";
    p->work.row.page_size = p->page_size;
    p->work.row.requests = p->n_requests;
    p->work.row.tokens = item->tokens;
    p->work.row.padded_num_slices = p->capacity;
    int status = CLI_OK;
    if (p->tokens <= WIDTH * p->page_size &&
        at_columns(p) + 3 * p->capacity + 1 <= CUDA_NODE_NUMBERS) {
        cuda_contender *exact = cuda_add(&p->work, "pagedkv", CUDA_CALL, 0);
        cuda_contender *merged = cuda_add(&p->work, "pagedkv", CUDA_MERGED, 0);
        merged->plan = "merged";
        cuda_add(&p->work, "pkv n=0", CUDA_NO_COUNT, 0);
        status = draw_plans(p);
        status = status != CLI_OK ? status : count_slices(p, exact);
        status = status != CLI_OK ? status : count_slices(p, merged);
        status = status != CLI_OK ? status : cuda_work_run(&p->work, end_ns, results);
    }
    free(p);
    return status;
}

/* ---- what there is ---------------------------------------------------------- */

static bool wants(const bench_options *o, const char *pattern)
{
    return o->pattern == NULL || strcmp(o->pattern, pattern) == 0;
}

int cuda_pages_items(const bench_options *o, cuda_item *items, int n)
{
    static const struct {
        const char *pattern;
        int64_t     bytes;
    } pages[] = {{"16KiB", 16 << 10}, {"64KiB", 64 << 10}, {"256KiB", 256 << 10}};
    static const struct {
        const char *pattern;
        int64_t     n_requests, tokens;
    } steps[] = {{"decode", 1, 1}, {"decode", 64, 1}, {"decode", 256, 1}, {"decode", 1024, 1},
                 {"prefill", 4, 512}, {"prefill", 64, 128}};
    for (size_t i = 0; i < sizeof pages / sizeof pages[0] && o->run_copy_pages; i++) {
        if (wants(o, pages[i].pattern)) {
            items[n++] = (cuda_item){.run = run_copies, .case_name = "copy-pages",
                                     .pattern = pages[i].pattern, .tokens = pages[i].bytes};
        }
    }
    for (size_t i = 0; i < sizeof steps / sizeof steps[0] && o->run_plan; i++) {
        if (wants(o, steps[i].pattern)) {
            items[n++] = (cuda_item){.run = run_plan, .case_name = "plan",
                                     .pattern = steps[i].pattern,
                                     .page_size = o->page_size > 0 ? o->page_size : 16,
                                     .tokens = steps[i].n_requests * steps[i].tokens,
                                     .slice_tokens = steps[i].tokens};
        }
    }
    return n;
}
