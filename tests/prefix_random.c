/* See prefix_random.h. */
#include "prefix_random.h"

static int64_t draw(prefix_random *r, int64_t min, int64_t max)
{
    return r->draw(r->user, min, max);
}

/* ---- pages --------------------------------------------------------------- */

/* From a random page on the first one that fits; -1 if none does. */
static int32_t draw_page(prefix_random *r, bool (*fits)(const prefix_model *m, int64_t page))
{
    int64_t first = draw(r, 0, r->w.shape.n_pages - 1);
    for (int64_t i = 0; i < r->w.shape.n_pages; i++) {
        int64_t page = (first + i) % r->w.shape.n_pages;
        if (fits(&r->w.model, page)) {
            return (int32_t)page;
        }
    }
    return -1;
}

static bool is_used(const prefix_model *m, int64_t page)
{
    return pool_model_is_used(&m->pool, page);
}

static bool is_cached(const prefix_model *m, int64_t page)
{
    return pool_model_is_cached(&m->pool, page);
}

static bool is_sharable(const prefix_model *m, int64_t page)
{
    return pool_model_has_content(&m->pool, page);
}

/* Used, with nothing that can be found. */
static bool is_new(const prefix_model *m, int64_t page)
{
    return is_used(m, page) && m->held[page].id == 0;
}

static bool is_published(const prefix_model *m, int64_t page)
{
    return m->held[page].id != 0;
}

static bool was_published(const prefix_model *m, int64_t page)
{
    return m->held[page].n_tokens > 0;
}

/* ---- tokens -------------------------------------------------------------- */

/* Few different pages: all tokens the same, or but for one. */
static void draw_tokens(prefix_random *r, int32_t *tokens, int64_t n_pages)
{
    static const int32_t some[] = {0, 1, -1, INT32_MAX};
    const int64_t        S = r->w.shape.page_size;
    for (int64_t i = 0; i < n_pages * S; i++) {
        tokens[i] = i % S > 0 ? tokens[i - 1] : some[draw(r, 0, 1)];
    }
    if (n_pages > 0 && draw(r, 0, 3) == 0) {
        tokens[draw(r, 0, n_pages * S - 1)] = some[draw(r, 0, 3)];
    }
}

/* Small numbers, which are ids too, and ids. */
static uint64_t draw_salt(prefix_random *r)
{
    int64_t which = draw(r, 0, 7);
    return which < 7 ? (uint64_t)which / 3
                     : r->w.model.held[draw(r, 0, r->w.shape.n_pages - 1)].id;
}

/* What a page holds or held, or the beginning of that, and something behind it. */
static int64_t draw_prompt(prefix_random *r, uint64_t *salt, int32_t *tokens)
{
    const int64_t S = r->w.shape.page_size;
    const int32_t page = draw(r, 0, 7) > 0 ? draw_page(r, was_published) : -1;
    int32_t       more[3 * PREFIX_MAX_SIZE];
    int64_t       n = 0;
    *salt = draw_salt(r);
    if (page >= 0) {
        const prefix_held *h = &r->w.model.held[page];
        *salt = draw(r, 0, 15) > 0 ? h->salt : *salt;
        n = draw(r, 0, 2) > 0 ? h->n_tokens : draw(r, 0, h->n_tokens);
        memcpy(tokens, h->tokens, (size_t)n * sizeof *tokens);
    }
    if (n > 0 && draw(r, 0, 31) == 0) {
        tokens[draw(r, 0, n - 1)] ^= 1;
    }
    const int64_t room = PREFIX_MAX_DEPTH * S - n, n_more = draw(r, 0, 3 * S);
    draw_tokens(r, more, 3);
    memcpy(tokens + n, more, (size_t)(n_more < room ? n_more : room) * sizeof *tokens);
    return n_more < room ? n + n_more : n + room;
}

/* ---- the pool's own calls ------------------------------------------------ */

static void step_alloc(prefix_random *r)
{
    int32_t       pages[6];
    const int64_t n_free = prefix_world_count_free(&r->w);
    const int32_t after = draw_page(r, is_used);
    prefix_world_alloc(&r->w, after, draw(r, 0, 8), pages, draw(r, 0, n_free < 6 ? n_free : 6));
}

/* Pages of one sequence: those whose content is the beginning of what a page holds. */
static void step_close(prefix_random *r)
{
    const prefix_model *m = &r->w.model;
    const bool          backwards = draw(r, 0, 3) > 0;
    const int32_t       last = draw_page(r, is_used);
    for (int64_t i = 0; last >= 0 && i < PREFIX_MAX_DEPTH; i++) {
        const int64_t n_tokens = m->config.page_size * (backwards ? PREFIX_MAX_DEPTH - i : i + 1);
        for (int32_t page = 0; page < m->pool.n_pages; page++) {
            if (is_used(m, page) && m->held[page].n_tokens == n_tokens &&
                n_tokens <= m->held[last].n_tokens &&
                memcmp(m->held[page].tokens, m->held[last].tokens,
                       (size_t)n_tokens * sizeof *m->held[page].tokens) == 0) {
                prefix_world_drop(&r->w, &page, 1);
            }
        }
    }
}

static void step_pages(prefix_random *r, int kind)
{
    const bool keep = draw(r, 0, 3) == 0;
    for (int64_t i = draw(r, 1, 4); i > 0; i--) {
        const int32_t page = draw_page(r, kind == PREFIX_SHARE    ? is_sharable
                                          : kind == PREFIX_FORGET ? is_cached
                                                                  : is_used);
        if (page < 0) {
            return;
        }
        switch (kind) {
        case PREFIX_SHARE: prefix_world_share(&r->w, &page, 1); break;
        case PREFIX_FREE: prefix_world_drop(&r->w, &page, 1); break;
        case PREFIX_KEEP: prefix_world_keep(&r->w, &page, 1, keep); break;
        default: prefix_world_forget(&r->w, &page, 1); break;
        }
    }
}

static void step_reservation(prefix_random *r, int kind)
{
    if (r->w.model.pool.reserving == (kind == PREFIX_RESERVE)) {
        return;
    }
    switch (kind) {
    case PREFIX_RESERVE: prefix_world_reserve(&r->w); break;
    case PREFIX_COMMIT: prefix_world_commit(&r->w); break;
    default:
        r->n_undone += r->w.model.pool.n_evicted;
        prefix_world_release(&r->w);
        break;
    }
}

/* ---- the index ----------------------------------------------------------- */

static void step_find(prefix_random *r)
{
    int32_t  tokens[PREFIX_MAX_TOKENS], pages[PREFIX_MAX_GROUPS * (PREFIX_MAX_DEPTH + 2)];
    uint64_t salt;
    int64_t  n_tokens = draw_prompt(r, &salt, tokens);
    int64_t  most = draw(r, 0, 3) > 0 ? PREFIX_MAX_DEPTH + 2 : draw(r, 0, PREFIX_MAX_DEPTH);
    prefix_world_find(&r->w, salt, tokens, n_tokens, pages, most);
}

/* All groups page by page, or group by group; now and then not all pages, or not all groups. */
static pkv_status publish_sequence(prefix_random *r, uint64_t salt, int32_t behind,
                                   const int32_t *tokens,
                                   int32_t pages[][PREFIX_MAX_DEPTH], int64_t n)
{
    const int64_t S = r->w.shape.page_size;
    const int64_t at_once = draw(r, 0, 2) > 0 ? 1 : n;
    const int32_t n_groups = (int32_t)(draw(r, 0, 7) > 0 ? r->w.shape.n_groups
                                                         : draw(r, 1, r->w.shape.n_groups));
    const int64_t n_wanted = draw(r, 0, 7) > 0 ? n : draw(r, 0, n);
    for (int64_t i = 0; i < n_wanted; i += at_once) {
        for (int32_t g = 0; g < n_groups; g++) {
            const prefix_call call = {.group = g,
                                      .behind = i > 0 ? pages[0][i - 1] : behind,
                                      .salt = salt,
                                      .tokens = tokens + i * S,
                                      .pages = pages[g] + i,
                                      .n = at_once < n_wanted - i ? at_once : n_wanted - i};
            pkv_status status = prefix_world_publish(&r->w, &call);
            if (status != PKV_OK) {
                return status;
            }
        }
    }
    return PKV_OK;
}

static pkv_status step_admit(prefix_random *r)
{
    int32_t       tokens[PREFIX_MAX_TOKENS], found[PREFIX_MAX_GROUPS * PREFIX_MAX_DEPTH];
    int32_t       pages[PREFIX_MAX_GROUPS][PREFIX_MAX_DEPTH];
    uint64_t      salt;
    prefix_world *w = &r->w;
    const int64_t S = w->shape.page_size, n_tokens = draw_prompt(r, &salt, tokens);
    const int64_t n = prefix_world_find(w, salt, tokens, n_tokens, found, PREFIX_MAX_DEPTH);
    const int64_t n_new = n_tokens / S - n; /* full ones */
    for (int32_t g = 0; g < w->shape.n_groups; g++) {
        for (int64_t i = 0; i < n; i++) {
            const int32_t *page = &found[g * PREFIX_MAX_DEPTH + i];
            prefix_world_share(w, page, *page >= 0);
        }
    }
    if (n_new * w->shape.n_groups > prefix_world_count_free(w)) {
        return PKV_OK;
    }
    for (int32_t g = 0; g < w->shape.n_groups; g++) {
        const int32_t after = n > 0 ? found[g * PREFIX_MAX_DEPTH + n - 1] : -1;
        prefix_world_alloc(w, after, draw(r, 0, 8), pages[g], n_new);
    }
    return publish_sequence(r, salt, n > 0 ? found[n - 1] : -1, tokens + n * S, pages, n_new);
}

/* Tokens of a page behind the one in front, where there is one; it may be published again. */
static void draw_twin(prefix_random *r, const prefix_call *c, int32_t *tokens, int32_t *pages)
{
    const prefix_model *m = &r->w.model;
    const uint64_t      parent = c->behind < 0 ? c->salt : m->held[c->behind].id;
    const int64_t       first = draw(r, 0, m->pool.n_pages - 1);
    for (int64_t i = 0; i < m->pool.n_pages; i++) {
        const int64_t      page = (first + i) % m->pool.n_pages;
        const prefix_held *h = &m->held[page];
        if (h->id != 0 && h->parent == parent && prefix_model_is_first(m, h) == (c->behind < 0)) {
            memcpy(tokens, prefix_model_own_tokens(m, h),
                   (size_t)m->config.page_size * sizeof *tokens);
            pages[0] = draw(r, 0, 2) == 0 ? (int32_t)page : pages[0];
            return;
        }
    }
}

/* Any pages behind any page: mostly good, now and then not. */
static pkv_status step_publish(prefix_random *r)
{
    enum { MOST = 4 };
    const prefix_model *m = &r->w.model;
    int32_t             tokens[MOST * PREFIX_MAX_SIZE], pages[MOST];
    const int32_t       n_pages = (int32_t)m->pool.n_pages;
    prefix_call         c = {.group = (int32_t)draw(r, 0, m->config.n_groups - 1),
                             .behind = draw(r, 0, 2) > 0 ? draw_page(r, is_published) : -1,
                             .salt = draw_salt(r),
                             .tokens = tokens,
                             .pages = pages,
                             .n = draw(r, 0, 3) > 0 ? 1 : draw(r, 0, MOST)};
    if (draw(r, 0, 31) == 0) {
        c.behind = (int32_t)draw(r, -2, n_pages);
    }
    const bool    follows = c.behind >= 0 && c.behind < n_pages;
    const int64_t depth = follows ? m->held[c.behind].n_tokens / m->config.page_size : 0;
    c.n = c.n < PREFIX_MAX_DEPTH - depth ? c.n : PREFIX_MAX_DEPTH - depth;
    draw_tokens(r, tokens, MOST);
    for (int i = 0; i < MOST; i++) {
        pages[i] = draw_page(r, draw(r, 0, 15) > 0 ? is_new : is_sharable);
        for (int j = 0; j < i && pages[j] == pages[i] && draw(r, 0, 7) > 0;) {
            pages[i] = draw_page(r, is_new);
            j++;
        }
    }
    if ((follows || c.behind == -1) && draw(r, 0, 1) == 0) {
        draw_twin(r, &c, tokens, pages);
    }
    if (draw(r, 0, 63) == 0) {
        pages[draw(r, 0, MOST - 1)] = draw(r, 0, 1) == 0 ? n_pages : INT32_MIN;
    }
    if (draw(r, 0, 63) == 0) {
        c.group = draw(r, 0, 1) == 0 ? -1 : m->config.n_groups;
    }
    c.n = draw(r, 0, 127) == 0 ? -1 : c.n;
    return prefix_world_publish(&r->w, &c);
}

/* ---- any of them --------------------------------------------------------- */

static bool is_for_pool(int kind)
{
    return kind == PREFIX_FREE || kind == PREFIX_CLOSE || kind == PREFIX_KEEP ||
           kind == PREFIX_FORGET;
}

static pkv_status step(prefix_random *r, int kind)
{
    const int64_t n_pages = r->w.shape.n_pages;
    if (is_for_pool(kind) && r->w.model.pool.reserving) {
        return PKV_OK; /* the tests of the pool have what it refuses */
    }
    switch (kind) {
    case PREFIX_ALLOC: step_alloc(r); break;
    case PREFIX_CLOSE: step_close(r); break;
    case PREFIX_RESERVE:
    case PREFIX_COMMIT:
    case PREFIX_RELEASE: step_reservation(r, kind); break;
    case PREFIX_FIND: step_find(r); break;
    case PREFIX_ADMIT: return step_admit(r);
    case PREFIX_PUBLISH: return step_publish(r);
    case PREFIX_EVENTS:
        prefix_world_events(&r->w, draw(r, 0, 1) == 0 ? draw(r, 0, 6) : 4 * n_pages);
        break;
    case PREFIX_PAGE: return prefix_world_page(&r->w, (int32_t)draw(r, -1, n_pages));
    case PREFIX_CLEAR: return prefix_world_clear(&r->w);
    default: step_pages(r, kind); break;
    }
    return PKV_OK;
}

void prefix_random_step(prefix_random *r, int kind)
{
    const pkv_status status = step(r, kind);
    r->n_done[kind + (status == PKV_OK ? 0 : PREFIX_KINDS)]++;
}

int prefix_random_kind(prefix_random *r)
{
    static const char often[] = {
        PREFIX_ADMIT, PREFIX_ADMIT, PREFIX_ADMIT,   PREFIX_ADMIT,   PREFIX_RESERVE, PREFIX_FIND,
        PREFIX_FIND,  PREFIX_FIND,  PREFIX_PUBLISH, PREFIX_PUBLISH, PREFIX_EVENTS,  PREFIX_CLOSE,
        PREFIX_CLOSE, PREFIX_FREE,  PREFIX_FREE,    PREFIX_ALLOC};
    static const char inside[] = {PREFIX_ADMIT,  PREFIX_ALLOC,   PREFIX_ALLOC, PREFIX_FIND,
                                  PREFIX_SHARE,  PREFIX_RELEASE, PREFIX_FIND,  PREFIX_COMMIT,
                                  PREFIX_EVENTS, PREFIX_RELEASE};
    const int64_t drawn = draw(r, 0, 31);
    r->n_drawn++;
    if (drawn >= 28) {
        const int64_t any = draw(r, 0, 5 * PREFIX_KINDS - 1); /* clears are rare */
        return any / 5 == PREFIX_CLEAR && any % 5 > 0 ? PREFIX_CLOSE : (int)any / 5;
    }
    if (r->w.model.pool.reserving) {
        return inside[drawn % 10];
    }
    const bool drains = r->n_drawn % 64 >= 40 || 4 * prefix_world_count_free(&r->w) <
                                                     r->w.shape.n_pages;
    return drains && drawn >= 24 ? PREFIX_CLOSE : often[drawn % 16];
}
