/* Caches and rows of a flow, and whether they hold the right numbers: see bench_flow.h. */
#include "bench_flow.h"

#include <math.h>
#include <string.h>

#include "bench_numbers.h"

enum {
    LATENT_DIM = 512,
    ROPE_DIM = 64,
    QUERY_HEADS = 4, /* for each KV head of a fused source */
    CHECK_STEP = 7   /* each token has every seventh element checked, another one in turn */
};

const char *bench_scales_name(int32_t scales)
{
    static const char *const names[] = {"none", "tensor", "head", "token_head", "group32"};
    return names[scales];
}

/* ---- shapes -------------------------------------------------------------- */

static int64_t groups_of(const bench_flow *f, int64_t head_dim)
{
    switch (f->kind->scales) {
    case PKV_SCALES_TOKEN_HEAD:
        return 1;
    case PKV_SCALES_GROUP:
        return head_dim / BENCH_GROUP;
    default:
        return 0;
    }
}

int64_t bench_flow_bytes(const bench_flow *f, pkv_dtype dtype)
{
    const pkv_cache *c = &f->cache;
    return f->step.n_tokens * c->n_heads * (c->k.head_dim + c->v.head_dim) *
           pkv_dtype_bits(dtype) / 8;
}

static int64_t scale_bytes_a_token(const bench_flow *f)
{
    const pkv_cache *c = &f->cache;
    return 4 * c->n_heads * (groups_of(f, c->k.head_dim) + groups_of(f, c->v.head_dim));
}

int64_t bench_flow_scale_bytes(const bench_flow *f)
{
    return f->step.n_tokens * scale_bytes_a_token(f);
}

/* Scales [P, S, H, groups], dense, K's and then V's. */
static void place_scales(bench_flow *f, char *at)
{
    pkv_cache  *c = &f->cache;
    pkv_scales *all[2] = {&c->k_scales, &c->v_scales};
    int64_t     dims[2] = {c->k.head_dim, c->v.head_dim};

    for (int i = 0; i < 2; i++) {
        int64_t head_bytes = 4 * groups_of(f, dims[i]);
        for (int64_t h = 0; h < c->n_heads; h++) {
            f->scales[i][h] = (4.0F + (float)(h % 8)) / bench_number_most(c->dtype);
        }
        *all[i] = (pkv_scales){.data = f->scales[i], .kind = f->kind->scales,
                               .head_stride_bytes = sizeof(float)};
        if (head_bytes > 0) {
            all[i]->data = at;
            all[i]->head_stride_bytes = head_bytes;
            all[i]->token_stride_bytes = c->n_heads * head_bytes;
            all[i]->page_stride_bytes = c->page_size * c->n_heads * head_bytes;
            all[i]->group_size = f->kind->scales == PKV_SCALES_GROUP ? BENCH_GROUP : 0;
            at += c->n_pages * all[i]->page_stride_bytes;
        }
        if (f->kind->scales == PKV_SCALES_NONE) {
            *all[i] = (pkv_scales){0};
        }
    }
}

static pkv_status build(bench_flow *f, char *data, int64_t n_pages, const bench_options *o,
                        pkv_dtype dtype)
{
    pkv_cache *c = &f->cache;
    int64_t    S = f->pattern.page_size, H = o->num_kv_heads, D = o->head_dim;
    char      *v = data == NULL ? NULL : data + n_pages * S * H * D * pkv_dtype_bits(dtype) / 8;

    switch (f->layout) {
    case BENCH_COMBINED:
        return pkv_cache_combined(c, sizeof *c, data, n_pages, S, H, D, dtype);
    case BENCH_NHD:
        return pkv_cache_nhd(c, sizeof *c, data, v, n_pages, S, H, D, dtype);
    case BENCH_HND:
        return pkv_cache_hnd(c, sizeof *c, data, v, n_pages, S, H, D, dtype);
    case BENCH_CONTENT:
        return pkv_cache_content(c, sizeof *c, data, n_pages, S, H, D, D, dtype);
    default:
        return pkv_cache_mla(c, sizeof *c, data, n_pages, S, LATENT_DIM, ROPE_DIM, LATENT_DIM,
                             LATENT_DIM + ROPE_DIM, dtype);
    }
}

int bench_flow_shape(bench_flow *f, const bench_options *options, const bench_memory *memory,
                     int64_t tokens, bool *fits)
{
    pkv_dtype dtype = f->kind->cache_dtype != 0 ? f->kind->cache_dtype : options->dtype;

    f->rows_dtype = f->kind->rows_dtype != 0 ? f->kind->rows_dtype : options->dtype;
    f->pattern = (bench_pattern){
        .name = f->kind->pattern,
        .page_size = options->page_size > 0 ? options->page_size : 64,
        .prefill_tokens = {tokens, 0},
    };
    f->step.n_tokens = 1; /* bytes of one token, for now */
    *fits = options->num_kv_heads <= BENCH_MAX_HEADS && options->head_dim % BENCH_GROUP == 0 &&
            build(f, NULL, 1, options, dtype) == PKV_OK;
    if (!*fits) {
        return CLI_OK;
    }
    int64_t token_bytes = bench_flow_bytes(f, dtype);
    int64_t page_bytes = f->pattern.page_size * (token_bytes + scale_bytes_a_token(f));
    int64_t n_pages = (int64_t)memory->cache.size_bytes / page_bytes;
    int64_t span = bench_flow_bytes(f, f->rows_dtype) * (f->kind->fused ? QUERY_HEADS / 2 + 1 : 1);
    f->rows_bytes = tokens * span;
    *fits = n_pages * f->pattern.page_size >= tokens &&
            f->rows_bytes <= (int64_t)memory->source.size_bytes;
    if (*fits && build(f, memory->cache.data, n_pages, options, dtype) != PKV_OK) {
        return cli_fail(CLI_USAGE, "bench: no such cache");
    }
    if (*fits) {
        place_scales(f, (char *)memory->cache.data + n_pages * f->pattern.page_size * token_bytes);
    }
    f->view = (bench_view){.layout = f->layout, .cache = f->cache, .n_planes = 1,
                           .rows_a_plane = 1, .row_bytes = token_bytes,
                           .token_bytes = token_bytes};
    return CLI_OK;
}

int bench_flow_rows(bench_flow *f, char *at)
{
    const pkv_cache *c = &f->cache;
    int64_t          n = f->step.n_tokens, bits = pkv_dtype_bits(f->rows_dtype);
    int64_t          plane_bytes = n * c->n_heads * c->k.head_dim * bits / 8;
    int64_t          stride = 0;
    pkv_status       status;

    if (f->layout == BENCH_COMBINED) {
        status = pkv_new_kv_combined(&f->rows, sizeof f->rows, at, n, c->n_heads, c->k.head_dim,
                                     f->rows_dtype);
    } else {
        if (f->kind->fused) { /* Q, K and V of a token side by side */
            int64_t row_bytes = plane_bytes / n;
            at += QUERY_HEADS * row_bytes;
            stride = (QUERY_HEADS + 2) * row_bytes;
            plane_bytes = row_bytes;
        }
        status = pkv_new_kv_nhd(&f->rows, sizeof f->rows, at, at + plane_bytes, n, c->n_heads,
                                c->k.head_dim, c->v.head_dim, stride, f->rows_dtype);
    }
    const pkv_new_kv_plane *k = &f->rows.k, *v = &f->rows.v;
    f->filled = (pkv_rows){
        .struct_size = sizeof f->filled, .n_tokens = n, .n_heads = c->n_heads,
        .dtype = f->rows_dtype,
        .k = {at + ((const char *)k->data - at), k->token_stride_bytes, k->head_stride_bytes,
              k->head_dim},
        .v = {at + ((const char *)v->data - at), v->token_stride_bytes, v->head_stride_bytes,
              v->head_dim}};
    return status == PKV_OK ? CLI_OK : cli_fail(CLI_USAGE, "bench: no such rows");
}

/* ---- the check ----------------------------------------------------------- */

typedef struct vector {
    const char *rows;  /* a head vector of a token */
    const char *cache;
    const char *scale; /* its scale, or the first of its groups; NULL: none */
    int64_t     head_dim;
    int64_t     group;
} vector;

static vector vector_at(const bench_flow *f, int64_t token, int plane, int64_t head)
{
    const pkv_cache        *c = &f->cache;
    const pkv_plane        *p = plane == 0 ? &c->k : &c->v;
    const pkv_scales       *s = plane == 0 ? &c->k_scales : &c->v_scales;
    const pkv_new_kv_plane *r = plane == 0 ? &f->rows.k : &f->rows.v;
    int64_t                 page = f->step.slots[token] / c->page_size;
    int64_t                 offset = f->step.slots[token] % c->page_size;
    bool                    each = groups_of(f, p->head_dim) > 0;
    vector                  v = {.head_dim = p->head_dim, .group = p->head_dim};

    v.rows = (const char *)r->data + token * r->token_stride_bytes + head * r->head_stride_bytes;
    v.cache = (const char *)p->data + page * p->page_stride_bytes +
              offset * p->token_stride_bytes + head * p->head_stride_bytes;
    if (s->kind != PKV_SCALES_NONE) {
        v.scale = (const char *)s->data + (each ? page * s->page_stride_bytes +
                                                      offset * s->token_stride_bytes : 0) +
                  (s->kind != PKV_SCALES_TENSOR ? head * s->head_stride_bytes : 0);
        v.group = s->kind == PKV_SCALES_GROUP ? s->group_size : v.group;
    }
    return v;
}

/* Is the stored scale of group g what its elements make it? */
static bool scale_is_right(const bench_flow *f, const vector *v, int64_t g, float scale)
{
    double largest = 0;

    for (int64_t i = g * v->group; i < (g + 1) * v->group; i++) {
        double size = fabs(bench_number_at(f->rows_dtype, v->rows, i));
        largest = isfinite(size) && size > largest ? size : largest;
    }
    float want = largest > 0 ? (float)largest / bench_number_most(f->cache.dtype) : 1.0F;
    want = want < 0x1p-126F ? 0x1p-126F : want;
    return memcmp(&want, &scale, sizeof want) == 0;
}

static bool is_same(double a, double b)
{
    return (isnan(a) && isnan(b)) || (a >= b && a <= b);
}

static bool vector_is_right(const bench_flow *f, const vector *v, int64_t first)
{
    float factor = 1;

    for (int64_t i = 0, g = -1; i < v->head_dim; i++) {
        if (v->scale != NULL && i / v->group != g) {
            float scale;
            g = i / v->group;
            memcpy(&scale, v->scale + g * (int64_t)sizeof scale, sizeof scale);
            factor = f->gather ? scale : 1.0F / scale;
            if (!f->gather && groups_of(f, v->head_dim) > 0 && !scale_is_right(f, v, g, scale)) {
                return false;
            }
        }
        if (i % CHECK_STEP == first) {
            double rows = bench_number_at(f->rows_dtype, v->rows, i);
            double cache = bench_number_at(f->cache.dtype, v->cache, i);
            float  product = (float)(f->gather ? cache : rows) * factor;
            double want = bench_number_round(f->gather ? f->rows_dtype : f->cache.dtype, product);
            if (!is_same(want, f->gather ? rows : cache)) {
                return false;
            }
        }
    }
    return true;
}

/* By the slots that were drawn, not by the plan. */
int64_t bench_flow_wrong_token(const bench_flow *f)
{
    const pkv_cache *c = &f->cache;
    bool             copied = f->rows_dtype == c->dtype;

    for (int64_t t = 0; t < f->step.n_tokens; t++) {
        for (int64_t i = 0; i < 2 * c->n_heads; i++) {
            vector v = vector_at(f, t, (int)(i % 2), i / 2);
            size_t bytes = (size_t)(v.head_dim * pkv_dtype_bits(c->dtype) / 8);
            if (copied ? memcmp(v.rows, v.cache, bytes) != 0
                       : !vector_is_right(f, &v, t % CHECK_STEP)) {
                return t;
            }
        }
    }
    return -1;
}
