/* See pool_model.h. */
#include "pool_model.h"

enum { NO_INDEX = -1 };

static const verdict GOOD = {PKV_OK, PKV_RULE_NONE, NO_INDEX};
static const verdict WRONG_STATE = {PKV_E_STATE, PKV_RULE_NONE, NO_INDEX};

/* ---- the model ----------------------------------------------------------- */

void pool_model_init(pool_model *m, int32_t allocator, int64_t n_pages)
{
    size_t n = (size_t)n_pages;
    *m = (pool_model){.allocator = allocator, .n_pages = n_pages};
    m->owners = test_alloc(n * sizeof *m->owners);
    m->kept = test_alloc(n * sizeof *m->kept);
    m->queue = test_alloc(n * sizeof *m->queue);
    m->lost = test_alloc(n * sizeof *m->lost);
    m->evicted = test_alloc(n * sizeof *m->evicted);
    memset(m->owners, 0, n * sizeof *m->owners);
    memset(m->kept, 0, n * sizeof *m->kept);
    for (int64_t i = 0; allocator != PKV_POOL_EXTENT && i < n_pages; i++) {
        m->queue[m->n_queue++] = (int32_t)(allocator == PKV_POOL_FIFO ? i : n_pages - 1 - i);
    }
}

void pool_model_free(pool_model *m)
{
    free(m->owners);
    free(m->kept);
    free(m->queue);
    free(m->lost);
    free(m->evicted);
}

void pool_model_copy(pool_model *to, const pool_model *from)
{
    pool_model arrays = *to;
    size_t     n = (size_t)from->n_pages;
    *to = *from;
    to->owners = arrays.owners;
    to->kept = arrays.kept;
    to->queue = arrays.queue;
    to->lost = arrays.lost;
    to->evicted = arrays.evicted;
    memcpy(to->owners, from->owners, n * sizeof *to->owners);
    memcpy(to->kept, from->kept, n * sizeof *to->kept);
    memcpy(to->queue, from->queue, (size_t)from->n_queue * sizeof *to->queue);
    memcpy(to->lost, from->lost, (size_t)from->n_lost * sizeof *to->lost);
    memcpy(to->evicted, from->evicted, (size_t)from->n_evicted * sizeof *to->evicted);
}

pkv_pool_counts pool_model_count(const pool_model *m)
{
    pkv_pool_counts c = {.struct_size = sizeof c, .n_pages = m->n_pages,
                         .n_used_peak = m->n_used_peak, .n_evictions = m->n_evictions};
    int64_t run = 0;
    for (int64_t i = 0; i < m->n_pages; i++) {
        bool blank = pool_model_is_blank(m, i);
        c.n_blank += blank;
        c.n_cached += pool_model_is_cached(m, i);
        c.n_used += m->owners[i] > 0;
        c.n_shared += m->owners[i] > 1;
        run = blank ? run + 1 : 0;
        c.largest_extent = run > c.largest_extent ? run : c.largest_extent;
    }
    return c;
}

static void note_peak(pool_model *m)
{
    int64_t n_used = pool_model_count(m).n_used;
    if (!m->reserving && n_used > m->n_used_peak) {
        m->n_used_peak = n_used;
    }
}

static void leave_queue(pool_model *m, int32_t page)
{
    int64_t i = 0;
    while (i < m->n_queue && m->queue[i] != page) {
        i++;
    }
    assert_true(i < m->n_queue);
    m->n_queue--;
    memmove(m->queue + i, m->queue + i + 1, (size_t)(m->n_queue - i) * sizeof *m->queue);
}

/* Each once, at its first place. */
static void lose_page(pool_model *m, int32_t page)
{
    if (pool_model_times_named(m->lost, m->n_lost, page) == 0) {
        m->lost[m->n_lost++] = page;
    }
}

static void take_page(pool_model *m, int32_t page)
{
    if (m->kept[page] && m->reserving) {
        m->evicted[m->n_evicted++] = page;
    } else if (m->kept[page]) {
        lose_page(m, page);
    }
    m->n_evictions += m->kept[page];
    m->kept[page] = false;
    m->owners[page] = 1;
}

/* LIFO and FIFO: just these pages in just this order. */
static void take_in_order(pool_model *m, const int32_t *pages, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        int64_t next = m->allocator == PKV_POOL_LIFO ? m->n_queue - 1 : 0;
        assert_int_equal(pages[i], m->queue[next]);
        leave_queue(m, pages[i]);
        take_page(m, pages[i]);
    }
}

/* Extents: any blank pages, but those behind `after` first; then the oldest cached ones. */
static void take_extents(pool_model *m, int32_t after, const int32_t *pages, int64_t n)
{
    int64_t n_blank = pool_model_count(m).n_blank;
    int64_t n_evicted = n > n_blank ? n - n_blank : 0;
    bool    grows = after >= 0;
    for (int64_t i = 0; i < n - n_evicted; i++) {
        grows = grows && pool_model_is_blank(m, after + 1 + i);
        assert_true(pool_model_is_blank(m, pages[i])); /* so they are distinct, too */
        assert_true(!grows || pages[i] == after + 1 + i);
        take_page(m, pages[i]);
    }
    const int32_t *evicted = pages + n - n_evicted;
    for (int64_t i = 0; i < n_evicted; i++) {
        assert_true(evicted[i] >= 0 && evicted[i] < m->n_pages);
        assert_true(pool_model_is_cached(m, evicted[i]));
        m->owners[evicted[i]] = 1; /* so they are distinct */
    }
    for (int64_t i = 0; i < n_evicted; i++) {
        assert_int_equal(m->owners[m->queue[i]], 1); /* the oldest are the ones that went */
        take_page(m, m->queue[i]);
    }
    m->n_queue -= n_evicted;
    memmove(m->queue, m->queue + n_evicted, (size_t)m->n_queue * sizeof *m->queue);
}

void pool_model_alloc(pool_model *m, int32_t after, const int32_t *pages, int64_t n)
{
    if (m->allocator == PKV_POOL_EXTENT) {
        take_extents(m, after, pages, n);
    } else {
        take_in_order(m, pages, n);
    }
    note_peak(m);
}

void pool_model_share(pool_model *m, const int32_t *pages, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        if (pool_model_is_cached(m, pages[i])) {
            leave_queue(m, pages[i]);
        }
        m->owners[pages[i]]++;
    }
    note_peak(m);
}

void pool_model_drop(pool_model *m, const int32_t *pages, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        bool waits = m->kept[pages[i]] || m->allocator != PKV_POOL_EXTENT;
        if (--m->owners[pages[i]] == 0 && waits) {
            m->queue[m->n_queue++] = pages[i];
        }
    }
}

void pool_model_keep(pool_model *m, const int32_t *pages, int64_t n, bool keep)
{
    for (int64_t i = 0; i < n; i++) {
        if (m->kept[pages[i]] && !keep) {
            lose_page(m, pages[i]);
        }
        m->kept[pages[i]] = keep;
    }
}

void pool_model_forget(pool_model *m, const int32_t *pages, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        leave_queue(m, pages[i]);
        m->kept[pages[i]] = false;
        lose_page(m, pages[i]);
        if (m->allocator != PKV_POOL_EXTENT) {
            m->queue[m->n_queue++] = pages[i];
        }
    }
}

void pool_model_reserve(pool_model *m, pool_model *before)
{
    m->n_evicted = 0;
    pool_model_copy(before, m);
    m->reserving = true;
}

void pool_model_commit(pool_model *m)
{
    for (int64_t i = 0; i < m->n_evicted; i++) {
        lose_page(m, m->evicted[i]);
    }
    m->reserving = false;
    note_peak(m);
}

/* What was told in between stays told. */
void pool_model_release(pool_model *m, const pool_model *before)
{
    const int64_t n_told = before->n_lost - m->n_lost;
    pool_model_copy(m, before);
    pool_model_told(m, n_told);
}

/* ---- what a call must return --------------------------------------------- */

static bool page_allows(const pool_model *m, int kind, const int32_t *pages, int64_t i)
{
    int32_t page = pages[i];
    switch (kind) {
    case POOL_SHARE:
        return pool_model_has_content(m, page);
    case POOL_KEEP:
        return m->owners[page] > 0;
    case POOL_FORGET:
        return pool_model_is_cached(m, page) && pool_model_times_named(pages, i, page) == 0;
    default:
        return pool_model_times_named(pages, i, page) < m->owners[page];
    }
}

static verdict expect_pages(const pool_model *m, int kind, const int32_t *pages, int64_t n)
{
    if (m->reserving && kind != POOL_SHARE) {
        return WRONG_STATE;
    }
    for (int64_t i = 0; i < n; i++) {
        if (pages[i] < 0 || pages[i] >= m->n_pages) {
            return (verdict){PKV_E_RANGE, PKV_RULE_PAGE, i};
        }
        if (!page_allows(m, kind, pages, i)) {
            return (verdict){PKV_E_STATE, PKV_RULE_PAGE, i};
        }
    }
    return GOOD;
}

/* ---- the pool beside it -------------------------------------------------- */

static unsigned char *aligned_memory(size_t n_bytes, void **block)
{
    *block = test_alloc(n_bytes + 64);
    memset(*block, 0xA5, n_bytes + 64);
    return (unsigned char *)*block + (64 - (uintptr_t)*block % 64);
}

void pool_world_init(pool_world *w, int32_t allocator, int64_t n_pages, pool_draw draw, void *user)
{
    pkv_error err;
    *w = (pool_world){.config = {sizeof w->config, n_pages, allocator, 0},
                      .draw = draw,
                      .user = user,
                      .n_pages_max = n_pages < 400 ? n_pages : 400};
    expect_ok(pkv_pool_bytes(&w->config, &w->bytes, &err), &err);
    w->memory = aligned_memory((size_t)w->bytes, &w->memory_block[0]);
    w->memory_before = aligned_memory((size_t)w->bytes, &w->memory_block[1]);
    expect_ok(pkv_pool_init(&w->config, w->memory, w->bytes, &w->pool, &err), &err);
    pool_model_init(&w->model, allocator, n_pages);
    pool_model_init(&w->model_before, allocator, n_pages);
    w->pages = test_alloc((size_t)(2 * n_pages + 8) * sizeof *w->pages);
}

void pool_world_free(pool_world *w)
{
    pkv_pool_destroy(w->pool); /* does nothing */
    pool_model_free(&w->model);
    pool_model_free(&w->model_before);
    free(w->memory_block[0]);
    free(w->memory_block[1]);
    free(w->pages);
}

void pool_world_copy(pool_world *to, const pool_world *from)
{
    to->n_drawn = from->n_drawn;
    memcpy(to->memory, from->memory, (size_t)from->bytes);
    pool_model_copy(&to->model, &from->model);
    pool_model_copy(&to->model_before, &from->model_before);
}

void pool_world_compare(const pool_world *w, bool whole)
{
    const pool_model *m = &w->model;
    pkv_pool_counts   expected = pool_model_count(m), found = {.struct_size = sizeof found};
    pkv_error         err;
    expect_ok(pkv_pool_stats(w->pool, &found, &err), &err);
    expect_same_bytes("counts", &found, &expected, sizeof found);
    for (int64_t i = 0; i < w->n; i++) {
        bool is_page = w->pages[i] >= 0 && w->pages[i] < m->n_pages;
        assert_int_equal(pkv_pool_owners(w->pool, w->pages[i]),
                         is_page ? m->owners[w->pages[i]] : -1);
    }
    for (int64_t i = 0; whole && i < m->n_pages; i++) {
        assert_int_equal(pkv_pool_owners(w->pool, (int32_t)i), m->owners[i]);
    }
    if (whole) {
        expect_ok(pkv_pool_check(w->pool, &err), &err);
    }
}

/* ---- random operations --------------------------------------------------- */

static int64_t draw(pool_world *w, int64_t min, int64_t max)
{
    return w->draw(w->user, min, max);
}

/* From a random page on the first one that fits, else any. */
static int32_t draw_page(pool_world *w, bool (*fits)(const pool_model *m, int64_t page))
{
    int64_t first = draw(w, 0, w->model.n_pages - 1);
    for (int64_t i = 0; i < w->model.n_pages; i++) {
        int64_t page = (first + i) % w->model.n_pages;
        if (fits(&w->model, page)) {
            return (int32_t)page;
        }
    }
    return (int32_t)first;
}

/* Mostly pages that the call takes, runs of them too; now and then others, and some twice. */
static void draw_pages(pool_world *w, int kind)
{
    static const int32_t foreign[] = {-1, INT32_MIN, INT32_MAX};
    const int64_t        n_pages = w->model.n_pages;
    int32_t             *pages = w->pages;
    w->n = draw(w, 0, 7) > 0 ? draw(w, 0, n_pages < 8 ? n_pages : 8) : draw(w, 0, w->n_pages_max);
    for (int64_t i = 0; i < w->n; i++) {
        if (i > 0 && draw(w, 0, 1) == 0) {
            bool up = draw(w, 0, 3) > 0;
            pages[i] = pages[i - 1] < 0 || pages[i - 1] >= n_pages
                           ? 0
                           : (int32_t)((pages[i - 1] + (up ? 1 : n_pages - 1)) % n_pages);
        } else {
            pages[i] = draw_page(w, kind == POOL_FORGET  ? pool_model_is_cached
                                    : kind == POOL_SHARE ? pool_model_has_content
                                                         : pool_model_is_used);
        }
        /* A list is mostly cut where the call would be refused. */
        if (expect_pages(&w->model, kind, pages + i, 1).status == PKV_E_STATE &&
            draw(w, 0, 15) > 0) {
            w->n = i;
        }
    }
    if (w->n > 1 && draw(w, 0, 3) == 0) {
        int32_t twice = pages[draw(w, 0, w->n - 1)];
        pages[draw(w, 0, w->n - 1)] = twice;
    }
    if (w->n > 0 && draw(w, 0, 63) == 0) {
        int64_t which = draw(w, 0, 3);
        int64_t at = draw(w, 0, w->n - 1);
        pages[at] = which == 3 ? (int32_t)n_pages : foreign[which];
    }
}

/* The refused call must not have changed a byte. */
static void expect_refused(const pool_world *w, const pkv_error *err, verdict v)
{
    expect_error(w->status, err, v.status, v.rule, v.index);
    expect_same_bytes("pool", w->memory, w->memory_before, (size_t)w->bytes);
}

static void step_alloc(pool_world *w)
{
    pool_model   *m = &w->model;
    const int64_t n_free = m->n_pages - pool_model_count(m).n_used;
    const int32_t after = draw(w, 0, 2) == 0 ? -1 : draw_page(w, pool_model_is_used);
    const int64_t room = draw(w, 0, 3) > 0 ? draw(w, 0, 40) : draw(w, 0, 2000);
    bool          many = draw(w, 0, 31) == 0;
    pkv_error     err;
    w->n = many ? draw(w, 0, m->n_pages + 1) : draw(w, 0, m->n_pages < 12 ? m->n_pages : 12);
    memcpy(w->memory_before, w->memory, w->n > n_free ? (size_t)w->bytes : 0);
    w->status = pkv_pool_alloc(w->pool, w->n, after, room, w->pages, &err);
    if (w->n > n_free) {
        expect_refused(w, &err, (verdict){PKV_E_NO_PAGES, PKV_RULE_NONE, NO_INDEX});
        assert_int_equal(err.value, n_free);
        assert_int_equal(err.limit, w->n);
        w->n = 0;
        return;
    }
    expect_ok(w->status, &err);
    pool_model_alloc(m, after, w->pages, w->n);
}

static void step_pages(pool_world *w, int kind)
{
    pool_model *m = &w->model;
    draw_pages(w, kind);
    const int32_t keep = (int32_t)draw(w, 0, 2) - 1;
    verdict       v = expect_pages(m, kind, w->pages, w->n);
    memcpy(w->memory_before, w->memory, v.status != PKV_OK ? (size_t)w->bytes : 0);
    pkv_error err;
    w->status = kind == POOL_SHARE  ? pkv_pool_share(w->pool, w->pages, w->n, &err)
                : kind == POOL_FREE ? pkv_pool_free(w->pool, w->pages, w->n, &err)
                : kind == POOL_KEEP ? pkv_pool_keep(w->pool, w->pages, w->n, keep, &err)
                                    : pkv_pool_forget(w->pool, w->pages, w->n, &err);
    if (v.status != PKV_OK) {
        expect_refused(w, &err, v);
        return;
    }
    expect_ok(w->status, &err);
    if (kind == POOL_SHARE) {
        pool_model_share(m, w->pages, w->n);
    } else if (kind == POOL_FREE) {
        pool_model_drop(m, w->pages, w->n);
    } else if (kind == POOL_KEEP) {
        pool_model_keep(m, w->pages, w->n, keep != 0);
    } else {
        pool_model_forget(m, w->pages, w->n);
    }
}

/* As many as there are, fewer, more, or none; now and then a negative number, which is refused. */
static void step_lost(pool_world *w)
{
    pool_model   *m = &w->model;
    const bool    good = draw(w, 0, 7) > 0;
    const int64_t most = draw(w, 0, 1) == 0 ? 8 : m->n_pages + 2;
    const int64_t n = good ? draw(w, 0, most) : -1;
    int64_t       n_told = 77;
    pkv_error     err;
    memcpy(w->memory_before, w->memory, good ? 0 : (size_t)w->bytes);
    w->status = pkv_pool_lost(w->pool, w->pages, n, &n_told, &err);
    w->n = 0;
    if (!good) {
        expect_refused(w, &err, (verdict){PKV_E_INVALID, PKV_RULE_NONE, NO_INDEX});
        return;
    }
    expect_ok(w->status, &err);
    w->n = n < m->n_lost ? n : m->n_lost;
    assert_int_equal(n_told, w->n);
    expect_same_bytes("lost", w->pages, m->lost, (size_t)w->n * sizeof *m->lost);
    pool_model_told(m, w->n);
}

static void step_reservation(pool_world *w, int kind)
{
    pool_model *m = &w->model;
    bool        good = m->reserving == (kind != POOL_RESERVE);
    pkv_error   err;
    memcpy(w->memory_before, w->memory, good ? 0 : (size_t)w->bytes);
    w->n = 0;
    w->status = kind == POOL_RESERVE  ? pkv_pool_reserve(w->pool, &err)
                : kind == POOL_COMMIT ? pkv_pool_commit(w->pool, &err)
                                      : pkv_pool_release(w->pool, &err);
    if (!good) {
        expect_refused(w, &err, WRONG_STATE);
        return;
    }
    expect_ok(w->status, &err);
    if (kind == POOL_RESERVE) {
        pool_model_reserve(m, &w->model_before);
    } else if (kind == POOL_RELEASE) {
        pool_model_release(m, &w->model_before);
    } else {
        pool_model_commit(m);
    }
}

void pool_world_step(pool_world *w, int kind)
{
    if (kind == POOL_ALLOC) {
        step_alloc(w);
    } else if (kind <= POOL_FORGET) {
        step_pages(w, kind);
    } else if (kind == POOL_LOST) {
        step_lost(w);
    } else {
        step_reservation(w, kind);
    }
    w->n_done[kind + (w->status == PKV_OK ? 0 : POOL_KINDS)]++;
}
