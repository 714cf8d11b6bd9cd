/* See prefix_model.h. */
#include "prefix_model.h"

void prefix_model_init(prefix_model *m, const pkv_prefix_config *config, int32_t allocator,
                       int64_t n_pages)
{
    const size_t n = (size_t)n_pages;
    *m = (prefix_model){.config = *config, .counts = {.struct_size = sizeof m->counts}};
    pool_model_init(&m->pool, allocator, n_pages);
    pool_model_init(&m->pool_before, allocator, n_pages);
    m->held = test_alloc(n * sizeof *m->held);
    memset(m->held, 0, n * sizeof *m->held);
    m->log = test_alloc((size_t)config->max_events * sizeof *m->log);
}

void prefix_model_free(prefix_model *m)
{
    pool_model_free(&m->pool);
    pool_model_free(&m->pool_before);
    free(m->held);
    free(m->log);
}

/* ---- the log ------------------------------------------------------------- */

/* Behind one that found no room there is none, so that what is missing is missing at the end. */
static void log_event(prefix_model *m, const pkv_prefix_event *event, const int32_t *tokens)
{
    if (m->config.max_events == 0) {
        return;
    }
    if (m->counts.n_events == m->config.max_events || m->counts.n_events_lost > 0) {
        m->counts.n_events_lost++;
        return;
    }
    prefix_logged *l = &m->log[m->counts.n_events++];
    l->event = *event;
    if (tokens != NULL) {
        memcpy(l->tokens, tokens, (size_t)m->config.page_size * sizeof *tokens);
    }
}

static void log_page(prefix_model *m, int32_t kind, int32_t page)
{
    const prefix_held *h = &m->held[page];
    if (!prefix_model_has(m, h->id, h->group, page)) {
        log_event(m, &(pkv_prefix_event){.kind = kind, .group = h->group, .page = page,
                                         .is_first = prefix_model_is_first(m, h), .id = h->id,
                                         .parent = h->parent},
                  prefix_model_own_tokens(m, h));
    }
}

void prefix_model_told(prefix_model *m, int64_t n)
{
    m->counts.n_events -= n;
    memmove(m->log, m->log + n, (size_t)m->counts.n_events * sizeof *m->log);
}

/* ---- contents ------------------------------------------------------------ */

bool prefix_model_has(const prefix_model *m, uint64_t id, int32_t group, int64_t but)
{
    bool has = false;
    for (int64_t i = 0; i < m->pool.n_pages; i++) {
        has = has || (i != but && m->held[i].id == id && m->held[i].group == group);
    }
    return has;
}

void prefix_model_enter(prefix_model *m)
{
    for (int64_t i = 0; i < m->pool.n_lost; i++) {
        int32_t page = m->pool.lost[i];
        if (m->held[page].id != 0) {
            log_page(m, PKV_PREFIX_REMOVED, page);
            m->held[page].id = 0;
            m->counts.n_pages--;
            m->counts.n_removed++;
        }
    }
    pool_model_told(&m->pool, m->pool.n_lost);
}

/*
 * The content of these S tokens behind `front` (is_first: a salt), 0 if it is in no page; with
 * group >= 0 only pages of that group count, and only those that are kept.
 */
static uint64_t find_content(const prefix_model *m, uint64_t front, bool is_first,
                             const int32_t *tokens, int32_t group)
{
    uint64_t id = 0;
    for (int64_t i = 0; i < m->pool.n_pages; i++) {
        const prefix_held *h = &m->held[i];
        const bool here = h->id != 0 && h->parent == front &&
                          prefix_model_is_first(m, h) == is_first &&
                          memcmp(prefix_model_own_tokens(m, h), tokens,
                                 (size_t)m->config.page_size * sizeof *tokens) == 0;
        if (here) {
            expect_that(id == 0 || h->id == id || group >= 0); /* one content, one id */
            id = group < 0 || (h->group == group && m->pool.kept[i]) ? h->id : id;
        }
    }
    return id;
}

bool prefix_model_needs(const prefix_model *m, int32_t group, int64_t i, int64_t n)
{
    const int64_t           S = m->config.page_size;
    const pkv_prefix_group *w = &m->config.groups[group];
    bool                    needs = w->window_tokens == 0;
    for (int64_t at = i * S; at < (i + 1) * S; at++) {
        needs = needs || at < w->sink_tokens || n * S - at < w->window_tokens;
    }
    return needs;
}

static bool has_all(const prefix_model *m, const uint64_t *ids, int64_t n)
{
    for (int32_t g = 0; g < m->config.n_groups; g++) {
        for (int64_t i = 0; i < n; i++) {
            bool has = false;
            for (int64_t page = 0; page < m->pool.n_pages; page++) {
                has = has || (m->held[page].id == ids[i] && m->held[page].group == g &&
                              m->pool.kept[page]);
            }
            if (!has && prefix_model_needs(m, g, i, n)) {
                return false;
            }
        }
    }
    return true;
}

int64_t prefix_model_find(prefix_model *m, uint64_t salt, const int32_t *tokens, int64_t n_tokens,
                          int64_t max_pages, uint64_t *ids)
{
    const int64_t S = m->config.page_size;
    int64_t       n = 0;
    while (n < max_pages && (n + 1) * S < n_tokens && n < PREFIX_MAX_DEPTH) {
        ids[n] = find_content(m, n == 0 ? salt : ids[n - 1], n == 0, tokens + n * S, 0);
        if (ids[n] == 0) {
            break;
        }
        n++;
    }
    while (!has_all(m, ids, n)) {
        n--;
    }
    m->counts.n_finds++;
    m->counts.n_find_tokens += n_tokens;
    m->counts.n_hit_tokens += n * S;
    return n;
}

/* ---- publishing ---------------------------------------------------------- */

static verdict check_page(const prefix_model *m, const prefix_call *c, int64_t i, uint64_t id)
{
    const int32_t page = c->pages[i];
    if (page < 0 || page >= m->pool.n_pages) {
        return (verdict){PKV_E_RANGE, PKV_RULE_PAGE, i};
    }
    const prefix_held *h = &m->held[page];
    if (m->pool.owners[page] == 0 || pool_model_times_named(c->pages, i, page) > 0 ||
        (h->id != 0 && (h->id != id || h->group != c->group))) {
        return (verdict){PKV_E_STATE, PKV_RULE_PAGE, i};
    }
    return (verdict){PKV_OK, PKV_RULE_NONE, -1};
}

verdict prefix_model_check(const prefix_model *m, const prefix_call *c)
{
    uint64_t front = c->salt;
    bool     is_first = c->behind == -1;
    if (c->group < 0 || c->group >= m->config.n_groups || c->n < 0) {
        return (verdict){PKV_E_INVALID, PKV_RULE_NONE, -1};
    }
    if (m->pool.reserving) {
        return (verdict){PKV_E_STATE, PKV_RULE_NONE, -1};
    }
    if (!is_first) {
        if (c->behind < 0 || c->behind >= m->pool.n_pages) {
            return (verdict){PKV_E_RANGE, PKV_RULE_PAGE, -1};
        }
        front = m->held[c->behind].id;
        if (front == 0) {
            return (verdict){PKV_E_STATE, PKV_RULE_PAGE, -1};
        }
    }
    for (int64_t i = 0; i < c->n; i++) {
        /* Behind a content that is in no page there is none. */
        const int32_t *tokens = c->tokens + i * m->config.page_size;
        const uint64_t id = is_first || front != 0
                                ? find_content(m, front, is_first, tokens, -1)
                                : 0;
        const verdict  v = check_page(m, c, i, id);
        if (v.status != PKV_OK) {
            return v;
        }
        front = id;
        is_first = false;
    }
    return (verdict){PKV_OK, PKV_RULE_NONE, -1};
}

/* A page gets its content: that of the page in front, and S tokens more. */
static void hold(prefix_model *m, int32_t page, const prefix_held *front, bool is_first,
                 const int32_t *tokens, int32_t group, uint64_t id)
{
    const int64_t  S = m->config.page_size;
    prefix_held   *h = &m->held[page];
    const uint64_t parent = is_first ? front->salt : front->id;
    const uint64_t known = find_content(m, parent, is_first, tokens, -1);
    if (h->id != 0) {
        expect_that(h->id == id && known == id);
        return;
    }
    /* A content that is in no page gets an id that none ever had. */
    expect_that(known != 0 ? id == known : id > m->last_id);
    m->last_id = id > m->last_id ? id : m->last_id;
    *h = *front;
    h->id = id;
    h->parent = parent;
    h->group = group;
    memcpy(h->tokens + h->n_tokens, tokens, (size_t)S * sizeof *tokens);
    h->n_tokens += S;
    m->counts.n_pages++;
    m->counts.n_published++;
    log_page(m, PKV_PREFIX_STORED, page);
}

void prefix_model_publish(prefix_model *m, const prefix_call *c, const uint64_t *ids)
{
    bool        is_first = c->behind == -1;
    prefix_held front = {.salt = c->salt};
    if (!is_first) {
        front = m->held[c->behind];
    }
    pool_model_keep(&m->pool, c->pages, c->n, true);
    for (int64_t i = 0; i < c->n; i++) {
        hold(m, c->pages[i], &front, is_first, c->tokens + i * m->config.page_size, c->group,
             ids[i]);
        front = m->held[c->pages[i]];
        is_first = false;
    }
}

void prefix_model_clear(prefix_model *m)
{
    prefix_model_enter(m);
    for (int32_t page = 0; page < m->pool.n_pages; page++) {
        if (m->held[page].id != 0 && pool_model_is_used(&m->pool, page)) {
            pool_model_keep(&m->pool, &page, 1, false);
        } else if (m->held[page].id != 0) {
            pool_model_forget(&m->pool, &page, 1);
        }
    }
    prefix_model_enter(m);
    m->counts.n_events = 0;
    m->counts.n_events_lost = 0;
    log_event(m, &(pkv_prefix_event){.kind = PKV_PREFIX_CLEARED, .page = -1}, NULL);
}
