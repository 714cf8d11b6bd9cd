/* From views to jobs: see work.h. */
#include "work.h"

#include <string.h>

#include "../geometry.h"
#include "../pairs.h"
#include "../scales.h"

enum {
    MAX_PARTS = 1 << 26, /* vectors or units of a token: products with tokens and layers fit */
    CAST_UNIT = 1024,    /* elements, where no scale is made */
    CAST_LANE = 8        /* elements of a lane's turn */
};

/* ---- numbers ------------------------------------------------------------------------ */

/* by 0, for nothing to divide, where every number is below it. */
static pkv_i_divisor divisor_of(int64_t by)
{
    if (by > INT32_MAX) {
        return (pkv_i_divisor){0};
    }
    uint32_t bits = 0;
    while (((int64_t)1 << bits) < by) {
        bits++;
    }
    const uint64_t one = (uint64_t)1 << (31 + bits);
    return (pkv_i_divisor){(uint32_t)by, (uint32_t)((one + (uint64_t)by - 1) / (uint64_t)by),
                           31 + bits};
}

static pkv_status fail_size(pkv_error *err)
{
    return pkv_i_fail(err, PKV_E_UNSUPPORTED, "a token's row is too large for a device");
}

/*
 * A slice that begins below 2^31 may end behind it.  Pages that are told apart, and so large
 * that no divisor is made for them, have such slots in a second page.
 */
static bool has_far_page(const pkv_i_view *cache)
{
    return cache->n_pages > 1 && cache->page_size > INT32_MAX && cache->page_size < UINT32_MAX;
}

/* Does the first slot of a page follow the last one of the page before? */
static bool adjoin(int64_t n_pages, int64_t page_size, int64_t page, int64_t token)
{
    int64_t all = 0;
    return n_pages == 1 || (!PKV_I_MUL(page_size, token, &all) && all == page);
}

/* ---- copies ------------------------------------------------------------------------- */

/* A lane in bytes, before its vectors are known. */
typedef struct lane {
    char       *cache, *rows;
    pkv_i_steps cache_steps, rows_steps;
    int64_t     n_heads, head_bytes;
} lane;

/* Everything that an address is made of. */
static uint64_t address_bits(const lane *l)
{
    const pkv_i_steps *c = &l->cache_steps, *r = &l->rows_steps;
    return (uint64_t)(uintptr_t)l->cache | (uint64_t)(uintptr_t)l->rows |
           (uint64_t)(l->head_bytes | c->page | c->token | c->head | r->page | r->token | r->head);
}

/* The widest vector that divides it all. */
static int64_t vector_bytes(const lane *lanes, int n_lanes)
{
    uint64_t bits = 16;
    for (int i = 0; i < n_lanes; i++) {
        bits |= address_bits(&lanes[i]);
    }
    return (int64_t)(bits & (~bits + 1));
}

static int copy_kernel(int64_t bytes)
{
    switch (bytes) {
    case 16: return PKV_I_CUDA_copy_16;
    case 8: return PKV_I_CUDA_copy_8;
    case 4: return PKV_I_CUDA_copy_4;
    case 2: return PKV_I_CUDA_copy_2;
    default: return PKV_I_CUDA_copy_1;
    }
}

/* The list is there; the rest of the job from its lanes. */
static pkv_status make_copy(pkv_i_work *w, const lane *lanes, int n_lanes, bool gather,
                            pkv_error *err)
{
    pkv_i_copy_job *job = &w->job.copy;
    const int64_t   bytes = vector_bytes(lanes, n_lanes);
    int64_t         all = 0;
    w->kernel = copy_kernel(bytes);
    job->gather = gather;
    job->n_lanes = (uint32_t)n_lanes;
    for (int i = 0; i < n_lanes; i++) {
        const lane   *l = &lanes[i];
        const int64_t of_head = l->head_bytes / bytes;
        int64_t       n_vectors = 0;
        if (PKV_I_MUL(of_head, l->n_heads, &n_vectors) || n_vectors >= MAX_PARTS) {
            return fail_size(err);
        }
        all += n_vectors;
        job->lane[i] = (pkv_i_copy_lane){l->cache_steps, l->rows_steps, (uint32_t)n_vectors,
                                         divisor_of(of_head)};
        job->layer[0].cache[i] = l->cache;
        job->layer[0].rows[i] = l->rows;
    }
    if (all >= MAX_PARTS) {
        return fail_size(err);
    }
    job->token_vectors = (uint32_t)all;
    job->step_tokens = 32 / job->token_vectors;
    job->step_vectors = 32 % job->token_vectors;
    return PKV_OK;
}

/* Steps that no address needs are 0, so that they stand in the way of nothing. */
static void drop_unused(lane *l, bool flat)
{
    if (l->n_heads == 1) {
        l->cache_steps.head = l->rows_steps.head = 0;
    }
    if (flat) {
        l->cache_steps.page = 0;
    }
}

static int lanes_of(const pkv_i_geometry *g, lane *lanes)
{
    for (int i = 0; i < g->n_lanes; i++) {
        const pkv_i_lane *l = &g->lane[i];
        lanes[i] = (lane){.cache = l->cache, .rows = l->rows,
                          .cache_steps = {l->cache_page_stride_bytes, l->cache_token_stride_bytes,
                                          l->cache_head_stride_bytes},
                          .rows_steps = {0, l->rows_token_stride_bytes, l->rows_head_stride_bytes},
                          .n_heads = l->n_heads, .head_bytes = l->head_bytes};
    }
    return g->n_lanes;
}

/* ---- conversions -------------------------------------------------------------------- */

/* Which side is which, of a conversion. */
typedef struct cast_sides {
    const pkv_i_view *cache, *rows; /* as the job has them */
    const pkv_i_view *scaled;       /* the one whose scales count */
    bool              gather;       /* from the job's cache */
    bool              back;         /* from the scaled side */
    bool              flat;         /* pages are not told apart */
} cast_sides;

static int cast_kernel(pkv_dtype from, pkv_dtype to)
{
#define CAST(from_name, to_name, from_dtype, to_dtype)                      \
    if (from == PKV_DTYPE_##from_dtype && to == PKV_DTYPE_##to_dtype) {     \
        return PKV_I_CUDA_cast_##from_name##_##to_name;                     \
    }
    PKV_I_CASTS(CAST)
#undef CAST
    return -1;
}

static pkv_i_scaling scaling_of(const cast_sides *s, int plane)
{
    if (pkv_i_scales_kind(s->scaled, plane) == PKV_SCALES_NONE) {
        return PKV_I_SCALE_NONE;
    }
    return s->back                                ? PKV_I_SCALE_BACK
           : pkv_i_is_computed(s->scaled, plane) ? PKV_I_SCALE_COMPUTED
                                                  : PKV_I_SCALE_GIVEN;
}

/* Of an axis with one element the step is nobody's. */
static pkv_i_steps steps_of(const pkv_i_view *view, int64_t page, int64_t token, int64_t head)
{
    const int64_t page_step = view->n_pages == 1 ? 0 : page;
    return (pkv_i_steps){page_step, view->page_size == 1 ? page_step : token,
                         view->n_heads == 1 ? 0 : head};
}

/* Do heads that share a scale, or have none, lie side by side on both sides? */
static bool is_one_vector(const cast_sides *s, int plane)
{
    const pkv_i_plane *c = &s->cache->plane[plane], *r = &s->rows->plane[plane];
    const int32_t      kind = pkv_i_scales_kind(s->scaled, plane);
    return (kind == PKV_SCALES_NONE || kind == PKV_SCALES_TENSOR) &&
           (s->cache->n_heads == 1 || (c->head_stride_bytes == c->head_bytes &&
                                       r->head_stride_bytes == r->head_bytes));
}

static pkv_status make_cast_plane(pkv_i_cast_job *job, const cast_sides *s, int plane,
                                  pkv_error *err)
{
    const pkv_i_plane *c = &s->cache->plane[plane], *r = &s->rows->plane[plane];
    const int64_t      D = s->cache->head_dim[plane];
    const int32_t      kind = pkv_i_scales_kind(s->scaled, plane);
    const bool         one = is_one_vector(s, plane);
    pkv_i_cast_plane  *p = &job->plane[plane];
    const int64_t      n_heads = one ? 1 : s->cache->n_heads;
    int64_t            elements = D, n_units = 0;
    if (one && PKV_I_MUL(D, s->cache->n_heads, &elements)) {
        return fail_size(err);
    }
    p->scaling = (int32_t)scaling_of(s, plane);
    p->cache = steps_of(s->cache, c->page_stride_bytes, c->token_stride_bytes,
                        c->head_stride_bytes);
    p->rows = steps_of(s->rows, r->page_stride_bytes, r->token_stride_bytes, r->head_stride_bytes);
    if (one) {
        p->cache.head = p->rows.head = 0;
    }
    int64_t group = elements;
    if (kind != PKV_SCALES_NONE) {
        const pkv_i_scales *scales = &s->scaled->scales[plane];
        group = kind == PKV_SCALES_GROUP ? scales->group : elements;
        p->given = kind == PKV_SCALES_TENSOR || kind == PKV_SCALES_HEAD;
        p->scales = (pkv_i_steps){scales->page_stride_bytes, scales->token_stride_bytes,
                                  one ? 0 : scales->head_stride_bytes};
        if (!p->given) {
            p->scales = steps_of(s->scaled, scales->page_stride_bytes, scales->token_stride_bytes,
                                 scales->head_stride_bytes);
        }
        job->layer[0].scales[plane] = scales->data;
    }
    const int64_t unit = p->scaling == PKV_I_SCALE_COMPUTED || group < CAST_UNIT ? group
                                                                                  : CAST_UNIT;
    const int64_t group_units = (group + unit - 1) / unit;
    const int64_t head_units = elements / group * group_units;
    if (elements >= INT32_MAX || PKV_I_MUL(head_units, n_heads, &n_units) ||
        n_units >= MAX_PARTS) {
        return fail_size(err);
    }
    p->group = (uint32_t)group;
    p->unit = (uint32_t)unit;
    p->n_units = (uint32_t)n_units;
    p->head_units = divisor_of(head_units);
    p->group_units = divisor_of(group_units);
    job->layer[0].cache[plane] = c->data;
    job->layer[0].rows[plane] = r->data;
    return PKV_OK;
}

/* The list is there; the rest of the job. */
static pkv_status make_cast(pkv_i_work *w, const cast_sides *s, pkv_error *err)
{
    pkv_i_cast_job *job = &w->job.cast;
    int64_t         all = 0;
    uint32_t        widest = 0;
    const pkv_i_view *from = s->gather ? s->cache : s->rows, *to = s->gather ? s->rows : s->cache;
    w->kernel = cast_kernel(from->dtype, to->dtype);
    job->gather = s->gather;
    job->scales_by_rows = s->scaled == s->rows;
    job->n_planes = (uint32_t)s->cache->n_planes;
    for (int i = 0; i < s->cache->n_planes; i++) {
        PKV_I_TRY(make_cast_plane(job, s, i, err));
        all += job->plane[i].n_units;
        widest = job->plane[i].unit > widest ? job->plane[i].unit : widest;
    }
    if (all >= MAX_PARTS) {
        return fail_size(err);
    }
    job->token_units = (uint32_t)all;
    for (job->team = 1; job->team < 32 && job->team * CAST_LANE < widest;) {
        job->team *= 2;
    }
    return PKV_OK;
}

/* Pages, and the scales beside them, of which the next follows the last. */
static bool is_flat(const pkv_i_view *cache)
{
    bool flat = true;
    for (int i = 0; i < cache->n_planes; i++) {
        const pkv_i_plane *p = &cache->plane[i];
        flat = flat && adjoin(cache->n_pages, cache->page_size, p->page_stride_bytes,
                              p->token_stride_bytes);
        if (pkv_i_is_computed(cache, i)) {
            const pkv_i_scales *s = &cache->scales[i];
            flat = flat && adjoin(cache->n_pages, cache->page_size, s->page_stride_bytes,
                                  s->token_stride_bytes);
        }
    }
    return flat;
}

/* ---- slices ------------------------------------------------------------------------- */

/* What two works of one launch have in common ends where their layers begin; no gap in it. */
_Static_assert(sizeof(pkv_i_list) == 10 * 8 + 6 * 4, "a gap in the list");
_Static_assert(sizeof(pkv_i_copy_lane) == 6 * 8 + 4 * 4, "a gap in a lane");
_Static_assert(sizeof(pkv_i_cast_plane) == 9 * 8 + 12 * 4, "a gap in a plane");
_Static_assert(offsetof(pkv_i_copy_job, lane) == sizeof(pkv_i_list) + 6 * 4, "a gap");
_Static_assert(offsetof(pkv_i_cast_job, plane) == sizeof(pkv_i_list) + 6 * 4, "a gap");
_Static_assert(sizeof(pkv_i_copy_job) <= 4096 && sizeof(pkv_i_cast_job) <= 4096,
               "more than a kernel's parameters may have");

static void clear(pkv_i_work *w)
{
    const size_t copy = offsetof(pkv_i_copy_job, layer), cast = offsetof(pkv_i_cast_job, layer);
    memset(&w->job, 0, (copy > cast ? copy : cast) + sizeof(pkv_i_job_layer));
    w->kernel = -1;
}

pkv_status pkv_i_work_of_slices(pkv_i_work *w, const pkv_i_view *cache, const pkv_i_view *rows,
                                bool gather, const pkv_slices *slices, int32_t *status_word,
                                pkv_error *err)
{
    pkv_i_geometry g;
    lane           lanes[2];
    clear(w);
    pkv_i_geometry_of(cache, rows, &g);
    const bool flat = g.converts ? is_flat(cache) : g.pages_adjacent;
    if (!flat && has_far_page(cache)) {
        return pkv_i_fail(err, PKV_E_UNSUPPORTED, "a page is too large for a device");
    }
    w->job.copy.list = (pkv_i_list){.cache_start = slices->kv_cache_start,
                                    .rows_start = slices->new_kv_start,
                                    .len = slices->slice_len,
                                    .count = slices->num_slices,
                                    .status = status_word,
                                    .capacity = slices->capacity,
                                    .cache_limit = cache->n_pages * cache->page_size,
                                    .rows_limit = rows->page_size,
                                    .cache_page = flat ? (pkv_i_divisor){0}
                                                       : divisor_of(cache->page_size)};
    if (g.converts) {
        const cast_sides sides = {cache, rows, cache, gather, gather, flat};
        return make_cast(w, &sides, err);
    }
    const int n_lanes = lanes_of(&g, lanes);
    for (int i = 0; i < n_lanes; i++) {
        drop_unused(&lanes[i], flat);
    }
    return make_copy(w, lanes, n_lanes, gather, err);
}

/* ---- pages -------------------------------------------------------------------------- */

static void list_pages(pkv_i_work *w, const pkv_i_view *src, const pkv_i_view *dst,
                       const pkv_i_page_list *list, int32_t group)
{
    w->job.copy.list = (pkv_i_list){.copies = list->copies,
                                    .count = list->count,
                                    .status = list->status_word,
                                    .capacity = list->capacity,
                                    .cache_limit = dst->n_pages,
                                    .rows_limit = src->n_pages,
                                    .page_tokens = dst->page_size,
                                    .group = group};
}

/* One plane of a view as a view of its own. */
static pkv_i_view only_plane(const pkv_i_view *view, int plane)
{
    pkv_i_view one = *view;
    one.n_planes = 1;
    one.plane[0] = view->plane[plane];
    one.head_dim[0] = view->head_dim[plane];
    return one;
}

/* Lanes of a copy of pages: the planes together only if their pages keep step too. */
static int page_lanes(const pkv_i_view *src, const pkv_i_view *dst, lane *lanes)
{
    pkv_i_geometry g;
    pkv_i_geometry_of(dst, src, &g);
    int n = lanes_of(&g, lanes);
    if (dst->n_planes == 2 && n == 1 && src->n_pages > 1 &&
        src->plane[0].page_stride_bytes != src->plane[1].page_stride_bytes) {
        n = 0;
        for (int i = 0; i < 2; i++) {
            const pkv_i_view one_dst = only_plane(dst, i), one_src = only_plane(src, i);
            pkv_i_geometry_of(&one_dst, &one_src, &g);
            n += lanes_of(&g, lanes + n);
        }
    }
    for (int i = 0; i < n; i++) {
        lanes[i].rows_steps.page =
            src->n_pages == 1 ? 0 : src->plane[i].page_stride_bytes;
        drop_unused(&lanes[i], false);
    }
    return n;
}

pkv_status pkv_i_work_of_pages(pkv_i_work *w, const pkv_i_view *src, const pkv_i_view *dst,
                               const pkv_i_page_list *list, int32_t group, pkv_error *err)
{
    lane lanes[2];
    clear(w);
    list_pages(w, src, dst, list, group);
    if (src->dtype == dst->dtype) {
        const int n_lanes = page_lanes(src, dst, lanes);
        return make_copy(w, lanes, n_lanes, false, err);
    }
    const bool       back = !pkv_i_pair_is_update(src);
    const cast_sides sides = {dst, src, back ? src : dst, false, back, false};
    return make_cast(w, &sides, err);
}

pkv_status pkv_i_work_of_page_scales(pkv_i_work *w, const pkv_i_view *src, const pkv_i_view *dst,
                                     const pkv_i_page_list *list, int32_t group, pkv_error *err)
{
    lane lanes[2];
    int  n = 0;
    clear(w);
    for (int i = 0; i < dst->n_planes && src->dtype == dst->dtype; i++) {
        const pkv_i_scales *a = &src->scales[i], *b = &dst->scales[i];
        if (!pkv_i_is_computed(src, i)) {
            continue;
        }
        lanes[n] = (lane){.cache = b->data, .rows = a->data,
                          .cache_steps = steps_of(dst, b->page_stride_bytes, b->token_stride_bytes,
                                                  b->head_stride_bytes),
                          .rows_steps = steps_of(src, a->page_stride_bytes, a->token_stride_bytes,
                                                 a->head_stride_bytes),
                          .n_heads = dst->n_heads,
                          .head_bytes = dst->head_dim[i] / b->group * (int64_t)sizeof(float)};
        drop_unused(&lanes[n++], false);
    }
    if (n == 0) {
        return PKV_OK;
    }
    list_pages(w, src, dst, list, group);
    w->job.copy.list.status = NULL;
    return make_copy(w, lanes, n, false, err);
}
