/* The cases convert, gather and layout: what is timed, and its runs. */
#include <stdlib.h>
#include <string.h>

#include "bench_flow.h"

enum { MAX_COPY_BYTES = 256 * 1024 }; /* longer ones are cut, so that threads can share them */

#define F32  PKV_DTYPE_F32
#define F16  PKV_DTYPE_F16
#define BF16 PKV_DTYPE_BF16
#define E4M3 PKV_DTYPE_FP8_E4M3
#define E5M2 PKV_DTYPE_FP8_E5M2
#define INT8 PKV_DTYPE_INT8
#define INT4 PKV_DTYPE_INT4

static const bench_flow_kind kinds[] = {
    {"convert", "f32_bf16", F32, BF16, PKV_SCALES_NONE, 0, false},
    {"convert", "f32_f16", F32, F16, PKV_SCALES_NONE, 0, false},
    {"convert", "f32_int8_head", F32, INT8, PKV_SCALES_HEAD, 0, false},
    {"convert", "f32_int8_token_head", F32, INT8, PKV_SCALES_TOKEN_HEAD, 0, false},
    {"convert", "bf16_fp8_e4m3_tensor", BF16, E4M3, PKV_SCALES_TENSOR, 0, false},
    {"convert", "f32_fp8_e4m3", F32, E4M3, PKV_SCALES_NONE, 0, false},
    {"convert", "f32_fp8_e5m2", F32, E5M2, PKV_SCALES_NONE, 0, false},
    {"convert", "bf16_int8_token_head", BF16, INT8, PKV_SCALES_TOKEN_HEAD, 0, false},
    {"convert", "f32_int4_group32", F32, INT4, PKV_SCALES_GROUP, 0, false},
    {"gather", "bf16_f32", F32, BF16, PKV_SCALES_NONE, 0, false},
    {"gather", "f16_f32", F32, F16, PKV_SCALES_NONE, 0, false},
    {"gather", "int8_head_f32", F32, INT8, PKV_SCALES_HEAD, 0, false},
    {"gather", "int8_token_head_f32", F32, INT8, PKV_SCALES_TOKEN_HEAD, 0, false},
    {"gather", "int8_token_head_bf16", BF16, INT8, PKV_SCALES_TOKEN_HEAD, 0, false},
    {"gather", "fp8_e4m3_tensor_bf16", BF16, E4M3, PKV_SCALES_TENSOR, 0, false},
    {"gather", "fp8_e5m2_bf16", BF16, E5M2, PKV_SCALES_NONE, 0, false},
    {"gather", "int4_group32_bf16", BF16, INT4, PKV_SCALES_GROUP, 0, false},
    {"layout", "hnd", 0, 0, PKV_SCALES_NONE, BENCH_HND, false},
    {"layout", "fused_qkv", 0, 0, PKV_SCALES_NONE, BENCH_NHD, true},
    {"layout", "content", 0, 0, PKV_SCALES_NONE, BENCH_CONTENT, false},
    {"layout", "mla", 0, 0, PKV_SCALES_NONE, BENCH_MLA, false},
};

/* ---- a run --------------------------------------------------------------- */

/* A row of plain copies, joined to the last one where both sides go on. */
static void add_copy(bench_flow *f, char *dst, const char *src, int64_t bytes)
{
    limit_row *last = f->n_copies > 0 ? &f->copies[f->n_copies - 1] : NULL;

    if (last != NULL && dst == (char *)last->dst + last->bytes &&
        src == (const char *)last->src + last->bytes &&
        last->bytes + (size_t)bytes <= MAX_COPY_BYTES) {
        last->bytes += (size_t)bytes;
        return;
    }
    f->copies[f->n_copies++] = (limit_row){dst, src, (size_t)bytes};
}

/* The step as plain copies, a plane after the other. */
static void list_copies(bench_flow *f)
{
    const pkv_cache *c = &f->cache;
    int64_t          bits = pkv_dtype_bits(c->dtype);

    f->n_copies = 0;
    for (int plane = 0; plane < 2; plane++) {
        const pkv_plane        *p = plane == 0 ? &c->k : &c->v;
        const pkv_new_kv_plane *r = plane == 0 ? &f->rows.k : &f->rows.v;
        for (int64_t i = 0; i < f->step.n_tokens * c->n_heads; i++) {
            int64_t t = i / c->n_heads, h = i % c->n_heads, slot = f->step.slots[t];
            add_copy(f, (char *)p->data + slot / c->page_size * p->page_stride_bytes +
                            slot % c->page_size * p->token_stride_bytes + h * p->head_stride_bytes,
                     (const char *)r->data + t * r->token_stride_bytes + h * r->head_stride_bytes,
                     p->head_dim * bits / 8);
        }
    }
    f->work.rows = f->copies;
    f->work.n_rows = f->n_copies;
}

static int draw(void *ctx)
{
    bench_flow *f = ctx;

    int status = bench_flow_rows(f, bench_work_source(&f->work, f->rows_bytes));
    f->step.source = f->rows;
    if (status == CLI_OK) {
        status = bench_step_draw(&f->step, &f->pattern, &f->view, &f->runs, false);
    }
    f->work.row.num_slices = f->step.n_slices;
    if (f->copies != NULL) {
        list_copies(f);
    }
    return status;
}

static void touch(void *ctx)
{
    const bench_flow *f = ctx;
    bench_step_touch(&f->step);
}

static int run(void *ctx, int impl)
{
    bench_flow *f = ctx;
    pkv_error   err;

    (void)impl;
    pkv_status status =
        f->gather ? pkv_gather(&f->cache, &f->filled, &f->step.slices, &f->opts, &err)
                  : pkv_update(&f->cache, &f->rows, &f->step.slices, &f->opts, &err);
    return status == PKV_OK ? CLI_OK
                            : cli_fail_pkv(&err, f->gather ? "bench: pkv_gather"
                                                           : "bench: pkv_update");
}

static int check(void *ctx, const char *who)
{
    const bench_flow *f = ctx;
    int64_t           token = bench_flow_wrong_token(f);

    return token < 0 ? CLI_OK
                     : cli_fail(CLI_DIFFERENCE, "bench %s %s, %s: a wrong byte of token %lld",
                                f->kind->case_name, f->kind->pattern, who, (long long)token);
}

static double run_peer(void *ctx, int peer)
{
    bench_flow *f = ctx;
    bool        combined = f->layout == BENCH_COMBINED;
    int64_t     token_bytes = f->view.token_bytes;
    bench_view  view = f->view;
    uint32_t    factor = 0;

    if (f->kind->scales != PKV_SCALES_NONE) {
        float reciprocal = 1.0F / f->scales[0][0];
        memcpy(&factor, &reciprocal, sizeof factor);
    }
    view.n_planes = combined ? 1 : 2;
    view.row_bytes = token_bytes / view.n_planes;
    bench_peer_run task = {
        .peer = peer,
        .threads = f->work.threads,
        .view = &view,
        .steps = &f->step,
        .n_calls = 1,
        .source_bytes = (const char *)f->rows.k.data - (const char *)f->work.memory->source.data,
        .src_dtype = f->rows_dtype,
        .factor_bits = factor,
    };
    return bench_peers_run(f->work.peers, &task);
}

/* ---- one case ------------------------------------------------------------ */

/* Python converts where no scale is computed, to floats; NumPy has no threads. */
static bool takes_peers(const bench_flow_kind *kind)
{
    return strcmp(kind->case_name, "convert") == 0 && kind->cache_dtype < INT8 &&
           kind->scales <= PKV_SCALES_TENSOR;
}

static void fill_row(bench_flow *f)
{
    bench_row       *row = &f->work.row;
    const pkv_cache *c = &f->cache;
    bool             converts = f->rows_dtype != c->dtype;

    *row = bench_row_null;
    row->case_name = f->kind->case_name;
    row->pattern = f->kind->pattern;
    row->plan = "exact";
    row->layout = f->layout == BENCH_MLA       ? "mla"
                  : f->layout == BENCH_CONTENT ? "content"
                                               : bench_layout_name(f->layout);
    row->source = "cold";
    row->src_dtype = pkv_dtype_name(f->rows_dtype);
    row->dtype = pkv_dtype_name(c->dtype);
    row->scales = converts ? bench_scales_name(f->kind->scales) : NULL;
    row->page_size = c->page_size;
    row->num_kv_heads = c->n_heads;
    row->head_dim = c->k.head_dim;
    row->requests = 1;
    row->tokens = f->step.n_tokens;
    row->threads = f->work.threads;
    row->huge_pages = f->work.memory->huge_pages;
}

static int open_flow(bench_flow *f)
{
    int status = bench_runs_open(&f->runs, &f->pattern, &f->view);

    if (status == CLI_OK) {
        status = bench_step_open(&f->step, &f->pattern, &f->view);
    }
    if (status == CLI_OK && f->rows_dtype == f->cache.dtype) {
        int64_t most = 2 * f->step.n_tokens * f->cache.n_heads;
        f->copies = malloc((size_t)most * sizeof f->copies[0]);
        status = f->copies != NULL ? CLI_OK : cli_no_memory("bench");
    }
    return status;
}

static int time_flow(bench_flow *f, const bench_item *item, int64_t end_ns, bench_results *results)
{
    bench_work *w = &f->work;

    w->impls[0] = "pagedkv";
    w->from_cache = f->gather;
    w->ctx = f;
    w->draw = draw;
    w->touch = touch;
    w->run = run;
    w->check = check;
    w->run_peer = run_peer;
    w->moved_bytes = bench_flow_bytes(f, f->rows_dtype) + bench_flow_bytes(f, f->cache.dtype) +
                     bench_flow_scale_bytes(f);
    for (int peer = 0; peer < BENCH_N_PEERS; peer++) {
        w->takes_peer[peer] = item->takes_peers && (peer != BENCH_NUMPY || w->threads == 1) &&
                              bench_peers_converts(w->peers, peer, f->rows_dtype, f->cache.dtype);
    }
    f->opts = (pkv_update_opts){.struct_size = sizeof f->opts, .max_threads = w->threads};
    fill_row(f);
    return bench_work_run(w, end_ns, results);
}

static int run_item(const bench_item *item, const bench_options *options,
                    const bench_memory *memory, bench_peers *peers, int64_t end_ns,
                    bench_results *results)
{
    bench_flow *f = calloc(1, sizeof *f);
    bool        fits = false;

    if (f == NULL) {
        return cli_no_memory("bench");
    }
    f->kind = item->kind;
    f->layout = item->layout;
    f->gather = strcmp(f->kind->case_name, "gather") == 0;
    f->work = (bench_work){.options = options, .memory = memory, .peers = peers,
                           .threads = item->threads};
    int status = bench_flow_shape(f, options, memory, item->tokens, &fits);
    if (status == CLI_OK && fits) {
        status = open_flow(f);
        if (status == CLI_OK) {
            status = time_flow(f, item, end_ns, results);
        }
        bench_step_close(&f->step);
        bench_runs_close(&f->runs);
    }
    free(f->copies);
    free(f);
    return status;
}

/* ---- the list ------------------------------------------------------------ */

static bool takes_kind(const bench_options *o, const bench_flow_kind *kind)
{
    bool runs = kind->case_name[0] == 'c'   ? o->run_convert
                : kind->case_name[0] == 'g' ? o->run_gather
                                            : o->run_layout;
    return runs && bench_work_wants(o, kind->pattern);
}

int bench_flow_items(const bench_options *options, bench_item *items, int n)
{
    static const int64_t sizes[] = {1024, 8192};
    unsigned usual = options->quick ? BENCH_COMBINED : BENCH_COMBINED | BENCH_NHD;
    unsigned layouts = options->layouts != 0 ? options->layouts : usual;

    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++) {
        for (int k = 0; k < 4; k++) {
            const bench_flow_kind *kind = &kinds[i];
            unsigned               layout = k % 2 == 0 ? BENCH_COMBINED : BENCH_NHD;
            bool fixed = kind->layout != 0;
            bool wanted = fixed ? k % 2 == 0 : (layouts & layout) != 0;
            if (!wanted || !takes_kind(options, kind) || (options->quick && k >= 2) ||
                n == BENCH_MAX_ITEMS) {
                continue;
            }
            items[n++] = (bench_item){
                .run = run_item,
                .name = kind->pattern,
                .kind = kind,
                .layout = fixed ? kind->layout : layout,
                .tokens = sizes[k / 2],
                .threads = options->threads > 0 ? (int)options->threads : 1,
                .takes_peers = takes_peers(kind),
                .fills = kind->case_name[0],
            };
        }
    }
    return n;
}
