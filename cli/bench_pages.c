/*
 * The cases copy-pages and swap: pages inside a cache, scattered on both sides,
 * and pages of 32 layers to a host buffer and back.
 */
#include <stdlib.h>
#include <string.h>

#include "bench_run.h"
#include "bench_work.h"

enum {
    LAYERS = 32,
    SWAP_PAGE_TOKENS = 16,
    CALL_BYTES = 8 << 20, /* one way */
    QUICK_CALL_BYTES = 2 << 20
};

typedef struct kind {
    const char *case_name;
    const char *pattern;
    int64_t     page_bytes; /* of one layer; 0: what SWAP_PAGE_TOKENS take */
    int         n_layers;
    bool        swaps, out;
} kind;

static const kind kinds[] = {
    {"copy-pages", "16KiB", 16 << 10, 1, false, false},
    {"copy-pages", "64KiB", 64 << 10, 1, false, false},
    {"copy-pages", "256KiB", 256 << 10, 1, false, false},
    {"swap", "out", 0, LAYERS, true, true},
    {"swap", "in", 0, LAYERS, true, false},
};

/* Pages in a shuffled order: all are visited before one comes again. */
typedef struct order {
    int32_t *pages;
    int64_t  n;
    int64_t  next;
} order;

typedef struct moves {
    bench_work      work;
    const kind     *kind;
    bench_view      view; /* of layer 0 */
    int64_t         page_bytes;
    pkv_cache       caches[LAYERS];
    pkv_cache       swapped[LAYERS];
    int64_t         block_bytes; /* of a page in all layers, in the buffer */
    order           pages, blocks;
    pkv_page_copy  *copies;
    int64_t         n_copies;
    limit_row      *rows;
    int64_t         n_rows;
    pkv_update_opts opts;
} moves;

/* ---- a run --------------------------------------------------------------- */

static int open_order(order *o, int64_t n, uint64_t *random)
{
    *o = (order){.pages = malloc((size_t)n * sizeof o->pages[0]), .n = n};
    if (o->pages == NULL) {
        return cli_no_memory("bench");
    }
    for (int64_t i = 0; i < n; i++) {
        int64_t other = bench_random_below(random, i + 1);
        o->pages[i] = o->pages[other];
        o->pages[other] = (int32_t)i;
    }
    return CLI_OK;
}

/* A run takes its pages from one round through all of them, so none comes twice. */
static void begin_draw(order *o, int64_t n)
{
    o->next = o->next + n > o->n ? 0 : o->next;
}

static char *page_at(const pkv_plane *p, int64_t page)
{
    return (char *)p->data + page * p->page_stride_bytes;
}

/* One page of one layer: inside the cache; or K and behind it V in the layer's part of a block. */
static void add_rows(moves *m, int layer, const pkv_page_copy *copy)
{
    const pkv_cache *c = &m->caches[layer];
    size_t           half = (size_t)m->page_bytes / 2;

    if (!m->kind->swaps) {
        m->rows[m->n_rows++] = (limit_row){page_at(&c->k, copy->dst), page_at(&c->k, copy->src),
                                           (size_t)m->page_bytes};
        return;
    }
    int32_t block = m->kind->out ? copy->dst : copy->src;
    int32_t page = m->kind->out ? copy->src : copy->dst;
    char   *buffer = (char *)m->work.memory->source.data + block * m->block_bytes +
                   layer * m->page_bytes;
    char   *k = page_at(&c->k, page), *v = page_at(&c->v, page);
    m->rows[m->n_rows++] = m->kind->out ? (limit_row){buffer, k, half}
                                        : (limit_row){k, buffer, half};
    m->rows[m->n_rows++] = m->kind->out ? (limit_row){buffer + half, v, half}
                                        : (limit_row){v, buffer + half, half};
}

static int draw(void *ctx)
{
    moves *m = ctx;
    order *in = m->kind->swaps && !m->kind->out ? &m->blocks : &m->pages;
    order *to = m->kind->swaps && m->kind->out ? &m->blocks : &m->pages;

    begin_draw(in, m->n_copies * (in == to ? 2 : 1));
    begin_draw(to, m->n_copies * (in == to ? 2 : 1));
    m->n_rows = 0;
    for (int64_t i = 0; i < m->n_copies; i++) {
        int32_t src = in->pages[in->next++], dst = to->pages[to->next++];
        m->copies[i] = (pkv_page_copy){src, dst, (int32_t)m->view.cache.page_size, 0};
        for (int layer = 0; layer < m->kind->n_layers; layer++) {
            add_rows(m, layer, &m->copies[i]);
        }
    }
    m->work.rows = m->rows;
    m->work.n_rows = m->n_rows;
    return CLI_OK;
}

static int run(void *ctx, int impl)
{
    moves           *m = ctx;
    const pkv_cache *srcs = m->kind->swaps && !m->kind->out ? m->swapped : m->caches;
    const pkv_cache *dsts = !m->kind->swaps ? NULL : m->kind->out ? m->swapped : m->caches;
    pkv_error        err;

    (void)impl;
    return pkv_copy_pages(srcs, dsts, NULL, m->kind->n_layers, m->copies, m->n_copies, &m->opts,
                          &err) == PKV_OK
               ? CLI_OK
               : cli_fail_pkv(&err, "bench: pkv_copy_pages");
}

static int check(void *ctx, const char *who)
{
    const moves *m = ctx;

    for (int64_t i = 0; i < m->n_rows; i++) {
        if (memcmp(m->rows[i].dst, m->rows[i].src, m->rows[i].bytes) != 0) {
            return cli_fail(CLI_DIFFERENCE, "bench %s %s, %s: a wrong byte in page %lld",
                            m->kind->case_name, m->kind->pattern, who,
                            (long long)m->copies[i * m->n_copies / m->n_rows].dst);
        }
    }
    return CLI_OK;
}

/* ---- one case ------------------------------------------------------------ */

static void fill_row(moves *m)
{
    bench_row *row = &m->work.row;

    *row = bench_row_null;
    row->case_name = m->kind->case_name;
    row->pattern = m->kind->pattern;
    row->plan = "none";
    row->layout = bench_layout_name(m->view.layout);
    row->source = "cold";
    row->src_dtype = row->dtype = pkv_dtype_name(m->view.cache.dtype);
    row->page_size = m->view.cache.page_size;
    row->num_kv_heads = m->view.cache.n_heads;
    row->head_dim = m->view.cache.k.head_dim;
    row->tokens = m->n_copies * m->view.cache.page_size;
    row->pages = m->n_copies * m->kind->n_layers;
    row->layers = m->kind->n_layers;
    row->threads = m->work.threads;
    row->huge_pages = m->work.memory->huge_pages;
}

/* The buffer is the source memory, in blocks. */
static int open_buffer(moves *m)
{
    const pkv_memory *memory = &m->work.memory->source;
    pkv_error         err;
    pkv_status        status = pkv_cache_swapped(m->swapped, sizeof m->swapped[0], m->caches,
                                                 LAYERS, NULL, 1, &m->block_bytes, &err);

    if (status == PKV_OK && m->block_bytes <= (int64_t)memory->size_bytes) {
        m->blocks.n = (int64_t)memory->size_bytes / m->block_bytes;
        status = pkv_cache_swapped(m->swapped, sizeof m->swapped[0], m->caches, LAYERS,
                                   memory->data, m->blocks.n, &m->block_bytes, &err);
    }
    return status == PKV_OK ? CLI_OK : cli_fail_pkv(&err, "bench: pkv_cache_swapped");
}

/* Caches, the buffer and how many pages a call has; *fits: is there room?  Exit status. */
static int open_caches(moves *m, const bench_options *o, bool *fits)
{
    pkv_memory  part = m->work.memory->cache;
    int64_t     token_bytes = 2 * o->num_kv_heads * o->head_dim * pkv_dtype_bits(o->dtype) / 8;
    int64_t     tokens = m->kind->page_bytes / (token_bytes > 0 ? token_bytes : 1);
    bench_shape shape = {.layout = m->kind->swaps ? BENCH_NHD : BENCH_COMBINED,
                         .page_size = m->kind->swaps ? SWAP_PAGE_TOKENS : tokens,
                         .num_kv_heads = o->num_kv_heads, .head_dim = o->head_dim,
                         .dtype = o->dtype};

    part.size_bytes = part.size_bytes / (uint64_t)m->kind->n_layers / 64 * 64;
    *fits = shape.page_size >= 1 && shape.page_size * token_bytes <= (int64_t)part.size_bytes;
    int status = *fits ? bench_view_open(&m->view, &shape, &part) : CLI_OK;
    if (status != CLI_OK || !*fits) {
        return status;
    }
    for (int i = 0; i < m->kind->n_layers; i++) {
        m->caches[i] = m->view.cache;
        m->caches[i].k.data = (char *)m->caches[i].k.data + i * (int64_t)part.size_bytes;
        m->caches[i].v.data = (char *)m->caches[i].v.data + i * (int64_t)part.size_bytes;
    }
    status = m->kind->swaps ? open_buffer(m) : CLI_OK;
    m->page_bytes = shape.page_size * m->view.token_bytes;
    m->n_copies = (o->quick ? QUICK_CALL_BYTES : CALL_BYTES) / m->page_bytes / m->kind->n_layers;
    m->n_copies = m->n_copies > 0 ? m->n_copies : 1;
    m->pages.n = m->view.cache.n_pages;
    *fits = m->pages.n >= 2 * m->n_copies && (!m->kind->swaps || m->blocks.n >= m->n_copies);
    return status;
}

static int time_moves(moves *m, int64_t end_ns, bench_results *results)
{
    bench_work *w = &m->work;
    uint64_t    random = 2463534242U;
    size_t      n = (size_t)m->n_copies;

    int status = open_order(&m->pages, m->pages.n, &random);
    if (status == CLI_OK && m->kind->swaps) {
        status = open_order(&m->blocks, m->blocks.n, &random);
    }
    m->copies = malloc(n * sizeof m->copies[0]);
    m->rows = malloc(2 * n * (size_t)m->kind->n_layers * sizeof m->rows[0]);
    if (status != CLI_OK || m->copies == NULL || m->rows == NULL) {
        return status != CLI_OK ? status : cli_no_memory("bench");
    }
    w->impls[0] = "pagedkv";
    w->from_cache = m->kind->out;
    w->ctx = m;
    w->draw = draw;
    w->run = run;
    w->check = check;
    w->moved_bytes = 2 * m->n_copies * m->kind->n_layers * m->page_bytes;
    m->opts = (pkv_update_opts){.struct_size = sizeof m->opts, .max_threads = w->threads};
    fill_row(m);
    return bench_work_run(w, end_ns, results);
}

static int run_item(const bench_item *item, const bench_options *options,
                    const bench_memory *memory, bench_peers *peers, int64_t end_ns,
                    bench_results *results)
{
    moves *m = calloc(1, sizeof *m);
    bool   fits = false;

    (void)peers;
    if (m == NULL) {
        return cli_no_memory("bench");
    }
    m->kind = item->kind;
    m->work = (bench_work){.options = options, .memory = memory, .threads = item->threads};
    int status = open_caches(m, options, &fits);
    if (status == CLI_OK && fits) {
        status = time_moves(m, end_ns, results);
    }
    free(m->pages.pages);
    free(m->blocks.pages);
    free(m->copies);
    free(m->rows);
    free(m);
    return status;
}

int bench_pages_items(const bench_options *options, bench_item *items, int n)
{
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0] && n < BENCH_MAX_ITEMS; i++) {
        bool runs = kinds[i].swaps ? options->run_swap : options->run_copy_pages;
        if (runs && bench_work_wants(options, kinds[i].pattern)) {
            items[n++] = (bench_item){
                .run = run_item,
                .name = kinds[i].pattern,
                .kind = &kinds[i],
                .threads = options->threads > 0 ? (int)options->threads : 1,
            };
        }
    }
    return n;
}
