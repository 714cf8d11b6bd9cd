/* See prefix_world.h. */
#include "prefix_world.h"

enum { POOL, INDEX };

/* ---- hashes -------------------------------------------------------------- */

uint64_t prefix_hash_fnv(const void *data, size_t bytes, uint64_t seed)
{
    const unsigned char *at = data;
    uint64_t             hash = seed ^ 0xCBF29CE484222325u;
    for (size_t i = 0; i < bytes; i++) {
        hash = (hash ^ at[i]) * 0x100000001B3u;
    }
    return hash ^ hash >> 29;
}

uint64_t prefix_hash_same(const void *data, size_t bytes, uint64_t seed)
{
    (void)data;
    (void)bytes;
    (void)seed;
    return 0x5555555555555555u;
}

uint64_t prefix_hash_two_bits(const void *data, size_t bytes, uint64_t seed)
{
    return prefix_hash_fnv(data, bytes, seed) & 3;
}

/* ---- making one ---------------------------------------------------------- */

static void *exact_memory(uint64_t bytes)
{
    void *memory = aligned_alloc(64, (size_t)bytes);
    assert_true(memory != NULL);
    memset(memory, 0xA5, (size_t)bytes);
    return memory;
}

void prefix_world_init(prefix_world *w, const prefix_shape *shape)
{
    pkv_error         err;
    pkv_pool_config   pool = {sizeof pool, shape->n_pages, shape->allocator, 0};
    pkv_prefix_config config = {.struct_size = sizeof config, .page_size = shape->page_size,
                                .n_groups = shape->n_groups, .max_events = shape->max_events,
                                .hash = shape->hash, .seed = 77};
    memcpy(config.groups, shape->groups, sizeof shape->groups);
    *w = (prefix_world){.shape = *shape};
    expect_ok(pkv_pool_bytes(&pool, &w->bytes[POOL], &err), &err);
    w->memory[POOL] = exact_memory(w->bytes[POOL]);
    expect_ok(pkv_pool_init(&pool, w->memory[POOL], w->bytes[POOL], &w->pool, &err), &err);
    expect_ok(pkv_prefix_bytes(&config, w->pool, &w->bytes[INDEX], &err), &err);
    w->memory[INDEX] = exact_memory(w->bytes[INDEX]);
    expect_ok(pkv_prefix_init(&config, w->pool, w->memory[INDEX], w->bytes[INDEX], &w->prefix,
                              &err), &err);
    for (int i = 0; i < 2; i++) {
        w->before[i] = test_alloc((size_t)w->bytes[i]);
    }
    w->known = test_alloc((size_t)(shape->n_pages + 1) * sizeof *w->known);
    prefix_model_init(&w->model, &config, shape->allocator, shape->n_pages);
}

void prefix_world_free(prefix_world *w)
{
    pkv_prefix_destroy(w->prefix); /* does nothing */
    for (int i = 0; i < 2; i++) {
        free(w->memory[i]);
        free(w->before[i]);
    }
    free(w->known);
    prefix_model_free(&w->model);
}

/* ---- comparing ----------------------------------------------------------- */

static void digest(prefix_world *w, const void *data, size_t bytes)
{
    w->digest = prefix_hash_fnv(data, bytes, w->digest);
}

/* The index forgets what is lost at the next call, also at one that it refuses: not here. */
static void remember_bytes(prefix_world *w)
{
    pkv_prefix_counts counts = {.struct_size = sizeof counts};
    pkv_error         err;
    expect_ok(pkv_prefix_stats(w->prefix, &counts, &err), &err);
    for (int i = 0; i < 2; i++) {
        memcpy(w->before[i], w->memory[i], (size_t)w->bytes[i]);
    }
}

static void expect_refused(const prefix_world *w, pkv_status status, const pkv_error *err,
                           verdict v)
{
    expect_error(status, err, v.status, v.rule, v.index);
    expect_same_bytes("pool", w->memory[POOL], w->before[POOL], (size_t)w->bytes[POOL]);
    expect_same_bytes("index", w->memory[INDEX], w->before[INDEX], (size_t)w->bytes[INDEX]);
}

/* What pkv_prefix_twin() must say: any page that holds the same and can be found. */
static void compare_twin(prefix_world *w, int32_t page)
{
    const prefix_model *m = &w->model;
    const prefix_held  *h = &m->held[page];
    int32_t             twin = 77;
    pkv_error           err;
    expect_ok(pkv_prefix_twin(w->prefix, page, &twin, &err), &err);
    bool any = false;
    for (int32_t i = 0; i < w->shape.n_pages; i++) {
        const bool is_one = i != page && h->id != 0 && m->held[i].id == h->id &&
                            m->held[i].group == h->group && m->pool.kept[i];
        expect_that(is_one || i != twin);
        any = any || is_one;
    }
    expect_that((twin >= 0 && twin < w->shape.n_pages) == (any && m->pool.kept[page]));
    expect_that(twin >= -1 && twin < w->shape.n_pages);
}

/* What pkv_prefix_page() must say. */
static void compare_page(prefix_world *w, int32_t page)
{
    const prefix_model *m = &w->model;
    const prefix_held  *h = &m->held[page];
    pkv_prefix_event    e = {.kind = 77};
    pkv_error           err;
    expect_ok(pkv_prefix_page(w->prefix, page, &e, &err), &err);
    expect_number(e.page, page);
    compare_twin(w, page);
    if (h->id == 0 || !m->pool.kept[page]) {
        expect_that(e.kind == 0 && e.id == 0 && e.tokens == NULL);
        return;
    }
    expect_that(e.kind == PKV_PREFIX_STORED && e.group == h->group && e.id == h->id &&
                e.parent == h->parent && e.is_first == prefix_model_is_first(m, h));
    expect_same_bytes("tokens", e.tokens, prefix_model_own_tokens(m, h),
                      (size_t)w->shape.page_size * sizeof *e.tokens);
}

void prefix_world_compare(prefix_world *w, bool whole)
{
    pkv_prefix_counts counts = {.struct_size = sizeof counts};
    pkv_pool_counts   of_pool = {.struct_size = sizeof of_pool};
    pkv_pool_counts   expected = pool_model_count(&w->model.pool);
    pkv_error         err;
    prefix_model_enter(&w->model);
    expect_ok(pkv_prefix_stats(w->prefix, &counts, &err), &err);
    expect_same_bytes("counts of the index", &counts, &w->model.counts, sizeof counts);
    expect_ok(pkv_pool_stats(w->pool, &of_pool, &err), &err);
    expect_same_bytes("counts of the pool", &of_pool, &expected, sizeof expected);
    if (whole) {
        expect_ok(pkv_prefix_check(w->prefix, &err), &err);
        for (int32_t page = 0; page < w->shape.n_pages; page++) {
            expect_number(pkv_pool_owners(w->pool, page), w->model.pool.owners[page]);
            compare_page(w, page);
        }
    }
}

/* ---- calls of the pool --------------------------------------------------- */

int64_t prefix_world_count_free(const prefix_world *w)
{
    return w->shape.n_pages - pool_model_count(&w->model.pool).n_used;
}

void prefix_world_alloc(prefix_world *w, int32_t after, int64_t room, int32_t *pages, int64_t n)
{
    pkv_error err;
    expect_ok(pkv_pool_alloc(w->pool, n, after, room, pages, &err), &err);
    pool_model_alloc(&w->model.pool, after, pages, n);
}

void prefix_world_share(prefix_world *w, const int32_t *pages, int64_t n)
{
    pkv_error err;
    expect_ok(pkv_pool_share(w->pool, pages, n, &err), &err);
    pool_model_share(&w->model.pool, pages, n);
}

void prefix_world_drop(prefix_world *w, const int32_t *pages, int64_t n)
{
    pkv_error err;
    expect_ok(pkv_pool_free(w->pool, pages, n, &err), &err);
    pool_model_drop(&w->model.pool, pages, n);
}

void prefix_world_keep(prefix_world *w, const int32_t *pages, int64_t n, bool keep)
{
    pkv_error err;
    expect_ok(pkv_pool_keep(w->pool, pages, n, keep, &err), &err);
    pool_model_keep(&w->model.pool, pages, n, keep);
}

void prefix_world_forget(prefix_world *w, const int32_t *pages, int64_t n)
{
    pkv_error err;
    expect_ok(pkv_pool_forget(w->pool, pages, n, &err), &err);
    pool_model_forget(&w->model.pool, pages, n);
}

void prefix_world_reserve(prefix_world *w)
{
    pkv_error err;
    expect_ok(pkv_pool_reserve(w->pool, &err), &err);
    pool_model_reserve(&w->model.pool, &w->model.pool_before);
}

void prefix_world_commit(prefix_world *w)
{
    pkv_error err;
    expect_ok(pkv_pool_commit(w->pool, &err), &err);
    pool_model_commit(&w->model.pool);
}

void prefix_world_release(prefix_world *w)
{
    pkv_error err;
    expect_ok(pkv_pool_release(w->pool, &err), &err);
    pool_model_release(&w->model.pool, &w->model.pool_before);
}

/* ---- finding and publishing ---------------------------------------------- */

static void compare_found(prefix_world *w, uint64_t salt, const int32_t *tokens,
                          const int32_t *pages, int64_t stride, const uint64_t *ids, int64_t n)
{
    const prefix_model *m = &w->model;
    for (int32_t g = 0; g < w->shape.n_groups; g++) {
        for (int64_t i = 0; i < n; i++) {
            const int32_t page = pages[g * stride + i];
            if (!prefix_model_needs(m, g, i, n)) {
                expect_number(page, -1);
                w->n_windowed++;
                continue;
            }
            expect_that(page >= 0 && page < w->shape.n_pages && m->pool.kept[page]);
            const prefix_held *h = &m->held[page];
            expect_that(h->id == ids[i] && h->group == g && h->salt == salt);
            expect_number(h->n_tokens, (i + 1) * w->shape.page_size);
            expect_same_bytes("tokens", h->tokens, tokens, (size_t)h->n_tokens * sizeof *tokens);
        }
    }
}

int64_t prefix_world_find(prefix_world *w, uint64_t salt, const int32_t *tokens, int64_t n_tokens,
                          int32_t *pages, int64_t stride)
{
    /* Just as large as they must be, for the sanitizers. */
    const size_t   page_bytes = (size_t)(w->shape.n_groups * stride) * sizeof *pages;
    const size_t   token_bytes = (size_t)n_tokens * sizeof *tokens;
    int32_t       *exactly = test_alloc(page_bytes), *prompt = test_alloc(token_bytes);
    uint64_t       ids[PREFIX_MAX_DEPTH];
    pkv_prefix_hit hit = {.n_pages = -1};
    pkv_error      err;
    memcpy(prompt, tokens, token_bytes);
    expect_ok(pkv_prefix_find(w->prefix, salt, prompt, n_tokens, exactly, stride, &hit, &err),
              &err);
    const int64_t n = hit.n_pages;
    expect_that(hit.pages == exactly && hit.stride == stride);
    prefix_model_enter(&w->model);
    expect_number(n, prefix_model_find(&w->model, salt, tokens, n_tokens, stride, ids));
    compare_found(w, salt, tokens, exactly, stride, ids, n);
    memcpy(pages, exactly, page_bytes);
    free(exactly);
    free(prompt);
    w->n_hits[n]++;
    digest(w, &n, sizeof n);
    for (int32_t g = 0; g < w->shape.n_groups; g++) {
        digest(w, pages + g * stride, (size_t)n * sizeof *pages);
    }
    return n;
}

pkv_status prefix_world_publish(prefix_world *w, const prefix_call *c)
{
    uint64_t      ids[PREFIX_MAX_DEPTH + 1];
    prefix_model *m = &w->model;
    pkv_error     err;
    prefix_model_enter(m);
    const verdict v = prefix_model_check(m, c);
    if (v.status != PKV_OK) {
        remember_bytes(w);
    }
    pkv_status status = pkv_prefix_publish(w->prefix, c->group, c->salt, c->behind, c->tokens,
                                           c->pages, c->n, &err);
    digest(w, &status, sizeof status);
    if (v.status != PKV_OK) {
        expect_refused(w, status, &err, v);
        return status;
    }
    expect_ok(status, &err);
    for (int64_t i = 0; i < c->n; i++) {
        pkv_prefix_event e = {0};
        expect_ok(pkv_prefix_page(w->prefix, c->pages[i], &e, &err), &err);
        ids[i] = e.id;
        digest(w, &e.id, sizeof e.id);
    }
    prefix_model_publish(m, c, ids);
    for (int64_t i = 0; i < c->n; i++) {
        compare_page(w, c->pages[i]);
    }
    return status;
}

pkv_status prefix_world_clear(prefix_world *w)
{
    pkv_error err;
    prefix_model_enter(&w->model);
    remember_bytes(w);
    pkv_status status = pkv_prefix_clear(w->prefix, &err);
    if (w->model.pool.reserving) {
        expect_refused(w, status, &err, (verdict){PKV_E_STATE, PKV_RULE_NONE, -1});
        return status;
    }
    expect_ok(status, &err);
    prefix_model_clear(&w->model);
    return status;
}

pkv_status prefix_world_page(prefix_world *w, int32_t page)
{
    pkv_prefix_event e = {0};
    pkv_error        err;
    prefix_model_enter(&w->model);
    if (page >= 0 && page < w->shape.n_pages) {
        compare_page(w, page);
        return PKV_OK;
    }
    remember_bytes(w);
    pkv_status status = pkv_prefix_page(w->prefix, page, &e, &err);
    expect_refused(w, status, &err, (verdict){PKV_E_RANGE, PKV_RULE_PAGE, -1});
    expect_that(err.value == page && err.limit == w->shape.n_pages);
    int32_t twin = 77;
    expect_number(pkv_prefix_twin(w->prefix, page, &twin, &err), status);
    expect_that(twin == 77 && err.value == page);
    return status;
}

/* ---- the log ------------------------------------------------------------- */

static int64_t find_known(const prefix_world *w, uint64_t id, int32_t group)
{
    int64_t i = 0;
    while (i < w->n_known && (w->known[i].id != id || (w->known[i].group != group && group >= 0))) {
        i++;
    }
    return i;
}

static void know(prefix_world *w, uint64_t id, int32_t group)
{
    expect_that(w->n_known < w->shape.n_pages);
    w->known[w->n_known++] = (prefix_known){id, group};
}

/* As a reader does that knows nothing but the log. */
static void follow_event(prefix_world *w, const pkv_prefix_event *e)
{
    const int64_t at = find_known(w, e->id, e->group);
    if (e->kind == PKV_PREFIX_CLEARED) {
        w->n_known = 0;
        w->missed = false;
    } else if (w->missed) {
        return;
    } else if (e->kind == PKV_PREFIX_STORED) {
        expect_number(at, w->n_known);
        expect_that(e->is_first || find_known(w, e->parent, -1) < w->n_known);
        know(w, e->id, e->group);
    } else {
        expect_that(e->kind == PKV_PREFIX_REMOVED && at < w->n_known);
        w->known[at] = w->known[--w->n_known];
    }
}

static void compare_event(prefix_world *w, const pkv_prefix_event *e, const prefix_logged *l)
{
    const prefix_model     *m = &w->model;
    const pkv_prefix_event *x = &l->event;
    expect_that(e->kind == x->kind && e->group == x->group && e->is_first == x->is_first &&
                e->id == x->id && e->parent == x->parent);
    const bool there = e->kind == PKV_PREFIX_STORED && prefix_model_has(m, e->id, e->group, -1);
    expect_that((e->tokens != NULL) == there); /* else the log tells further on that it is gone */
    w->n_gone += e->kind == PKV_PREFIX_STORED && !there;
    if (!there) {
        expect_number(e->page, x->page);
        return;
    }
    expect_same_bytes("tokens", e->tokens, l->tokens,
                      (size_t)w->shape.page_size * sizeof *e->tokens);
    expect_that(m->held[e->page].id == e->id && m->held[e->page].group == e->group);
    const bool still = m->held[x->page].id == e->id && m->held[x->page].group == e->group;
    expect_that(!still || e->page == x->page);
}

/* After events that found no room a reader looks at every page. */
static void begin_anew(prefix_world *w)
{
    w->n_known = 0;
    w->missed = false;
    w->n_begun++;
    for (int32_t page = 0; page < w->shape.n_pages; page++) {
        pkv_prefix_event e;
        pkv_error        err;
        expect_ok(pkv_prefix_page(w->prefix, page, &e, &err), &err);
        if (e.kind != 0 && find_known(w, e.id, e.group) == w->n_known) {
            know(w, e.id, e.group);
        }
    }
}

void prefix_world_events(prefix_world *w, int64_t n)
{
    prefix_model     *m = &w->model;
    pkv_prefix_event *events = test_alloc((size_t)n * sizeof *events);
    int64_t           n_told = -1, n_lost = -1;
    pkv_error         err;
    prefix_model_enter(m);
    expect_ok(pkv_prefix_events(w->prefix, events, n, &n_told, &n_lost, &err), &err);
    expect_number(n_told, n < m->counts.n_events ? n : m->counts.n_events);
    for (int64_t i = 0; i < n_told; i++) {
        compare_event(w, &events[i], &m->log[i]);
        follow_event(w, &events[i]);
        digest(w, &events[i], offsetof(pkv_prefix_event, tokens));
    }
    prefix_model_told(m, n_told);
    free(events);
    /* What found no room is told when there is nothing else to tell. */
    const bool all = m->counts.n_events == 0;
    expect_number(n_lost, all ? m->counts.n_events_lost : 0);
    m->counts.n_events_lost = all ? 0 : m->counts.n_events_lost;
    w->missed = w->missed || n_lost > 0 || m->config.max_events == 0;
    if (w->missed && all && !m->pool.reserving) { /* inside one, what it took would be missing */
        begin_anew(w);
    }
    if (all && !w->missed) {
        for (int64_t i = 0; i < w->n_known; i++) {
            expect_that(prefix_model_has(m, w->known[i].id, w->known[i].group, -1));
        }
        for (int64_t page = 0; page < w->shape.n_pages; page++) {
            expect_that(m->held[page].id == 0 ||
                        find_known(w, m->held[page].id, m->held[page].group) < w->n_known);
        }
    }
}
