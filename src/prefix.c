/* The prefix index: finding and publishing pages. */
#include <string.h>

#include "prefix_state.h"

enum { MOST_AHEAD = 32 }; /* pages that are hashed before they are compared */

/* ---- following a chain of contents -------------------------------------------------- */

pkv_i_front pkv_i_prefix_root(const pkv_prefix *p, uint64_t salt)
{
    return (pkv_i_front){p->config.hash(&salt, sizeof salt, p->config.seed), salt, true};
}

static inline bool is_content(const pkv_prefix *p, const pkv_i_content *c, uint64_t hash,
                              const pkv_i_front *front, const int32_t *tokens)
{
    return c->hash == hash && c->parent == front->id && c->is_first == front->is_first &&
           memcmp(c->tokens, tokens, (size_t)p->config.page_size * sizeof *tokens) == 0;
}

/* The id of these tokens behind that front; 0: they are in no page. */
static uint64_t find_id(const pkv_prefix *p, uint64_t hash, const pkv_i_front *front,
                        const int32_t *tokens)
{
    for (int32_t at = *pkv_i_prefix_head(p, hash); at != PREFIX_END;) {
        const pkv_i_content *c = pkv_i_prefix_content(p, at);
        if (is_content(p, c, hash, front, tokens)) {
            return c->id;
        }
        at = c->next;
    }
    return 0;
}

/* ---- fetching ahead ----------------------------------------------------------------- */

static inline void fetch_page(const pkv_prefix *p, int32_t page)
{
    const char *c = (const char *)pkv_i_prefix_content(p, page);
    __builtin_prefetch(c);
    __builtin_prefetch(c + 64);
}

static inline void fetch_first(const pkv_prefix *p, uint64_t hash)
{
    const int32_t at = *pkv_i_prefix_head(p, hash);
    if (at != PREFIX_END) {
        fetch_page(p, at);
    }
}

/* The hashes of pages that follow one another, some pages ahead of where they are looked at. */
typedef struct ahead {
    const int32_t *tokens; /* [n * S] */
    int64_t        n, n_hashed, n_fetched;
    uint64_t       last; /* hash of all that is hashed */
    uint64_t       hashes[MOST_AHEAD];
} ahead;

static inline void look_ahead(ahead *a, const int32_t *tokens, int64_t n, uint64_t front)
{
    a->tokens = tokens;
    a->n = n;
    a->n_hashed = a->n_fetched = 0;
    a->last = front;
}

/*
 * The hash of page i, each in its turn.  The nearer half of the pages ahead has its
 * contents under way, the other half its buckets.  They are no more than the pages
 * behind, and two: where a prompt misses at once, little was in vain.
 */
static inline uint64_t next_hash(const pkv_prefix *p, ahead *a, int64_t i)
{
    const int64_t reach = i + 2 < MOST_AHEAD ? i + 2 : MOST_AHEAD;
    const int64_t far = a->n - i < reach ? a->n : i + reach, near = i + (far - i + 1) / 2;
    for (; a->n_hashed < far; a->n_hashed++) {
        a->last = pkv_i_prefix_hash(p, a->tokens + a->n_hashed * p->config.page_size, a->last);
        a->hashes[a->n_hashed % MOST_AHEAD] = a->last;
        __builtin_prefetch(pkv_i_prefix_head(p, a->last));
    }
    for (; a->n_fetched < near; a->n_fetched++) {
        fetch_first(p, a->hashes[a->n_fetched % MOST_AHEAD]);
    }
    return a->hashes[i % MOST_AHEAD];
}

/* ---- what the pool has lost --------------------------------------------------------- */

/* What each needs is under way before the first one waits for it; tokens are not looked at. */
static void unlink_pages(pkv_prefix *p, const int32_t *pages, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        __builtin_prefetch(pkv_i_prefix_content(p, pages[i]), 1);
    }
    for (int64_t i = 0; i < n; i++) {
        const pkv_i_content *c = pkv_i_prefix_content(p, pages[i]);
        __builtin_prefetch(pkv_i_prefix_head(p, c->hash));
        if (c->has_twins || c->next == PREFIX_TWIN) {
            __builtin_prefetch(pkv_i_prefix_twins(p, pages[i]), 1);
        }
    }
    for (int64_t i = 0; i < n; i++) {
        const int32_t first = *pkv_i_prefix_head(p, pkv_i_prefix_content(p, pages[i])->hash);
        if (first != PREFIX_END) {
            __builtin_prefetch(pkv_i_prefix_content(p, first), 1);
        }
    }
    for (int64_t i = 0; i < n; i++) {
        pkv_i_prefix_unlink(p, pages[i]);
    }
}

pkv_status pkv_i_prefix_enter(pkv_prefix *p, pkv_error *err)
{
    int32_t lost[64];
    int64_t n = sizeof lost / sizeof lost[0];
    if (p == NULL || p->magic != PREFIX_MAGIC) {
        return pkv_i_fail(err, PKV_E_INVALID, "there is no prefix index");
    }
    while (n == sizeof lost / sizeof lost[0]) {
        PKV_I_TRY(pkv_pool_lost(p->pool, lost, n, &n, err));
        unlink_pages(p, lost, n);
    }
    return PKV_OK;
}

/* ---- finding ------------------------------------------------------------------------ */

/*
 * The page that stands for its twins, or one of them: unless the pool is settled, it
 * may be one that the open reservation took, which is not kept now.  The newest first:
 * the oldest ones are taken before them.  -1: none is kept.
 */
static int32_t kept_twin(const pkv_prefix *p, bool settled, int32_t page)
{
    int32_t at = page;
    if (settled || pkv_i_pool_is_kept(p->pool, page)) {
        return page;
    }
    do {
        at = pkv_i_prefix_twins(p, at)->prev;
    } while (at != page && !pkv_i_pool_is_kept(p->pool, at));
    return at != page ? at : -1;
}

/* The pages of one content, one a group, into pages[g * stride]; false: the first has none. */
static bool find_pages(const pkv_prefix *p, bool settled, uint64_t hash, pkv_i_front *front,
                       const int32_t *tokens, int32_t *pages, int64_t stride)
{
    uint64_t id = 0;
    int32_t  n_missing = p->config.n_groups; /* that were not looked at */
    for (int32_t g = 0; g < p->config.n_groups; g++) {
        pages[g * stride] = -1;
    }
    for (int32_t at = *pkv_i_prefix_head(p, hash); at != PREFIX_END && n_missing > 0;) {
        const pkv_i_content *c = pkv_i_prefix_content(p, at);
        if (is_content(p, c, hash, front, tokens)) {
            pages[c->group * stride] = kept_twin(p, settled, at);
            id = c->id;
            n_missing--;
        }
        at = c->next;
    }
    *front = (pkv_i_front){hash, id, false};
    return pages[0] >= 0;
}

/*
 * Pages up to which a hit of n pages needs the group's first ones, and from which
 * it needs the last ones.
 */
static void needed_pages(const pkv_prefix *p, int32_t g, int64_t n, int64_t *sinks, int64_t *first)
{
    const int64_t           S = p->config.page_size;
    const pkv_prefix_group *w = &p->config.groups[g];
    *first = w->window_tokens == 0 || n * S < w->window_tokens ? 0
                                                               : (n * S - w->window_tokens + 1) / S;
    *sinks = w->sink_tokens / S + (w->sink_tokens % S != 0);
    *sinks = *sinks < *first ? *sinks : *first;
}

/*
 * A hit ends before the first page of `n` that the group needs in whatever is longer:
 * any one of a group without window, else its sinks.
 */
static int64_t bound_of_group(const pkv_prefix *p, int32_t g, const int32_t *row, int64_t n)
{
    const int64_t           S = p->config.page_size;
    const pkv_prefix_group *w = &p->config.groups[g];
    const int64_t           sinks = w->sink_tokens / S + (w->sink_tokens % S != 0);
    const int64_t           end = w->window_tokens == 0 || sinks > n ? n : sinks;
    for (int64_t i = 0; i < end; i++) {
        if (row[i] < 0) {
            return i;
        }
    }
    return n;
}

/*
 * Longest hit of at most n pages of which each group has what later tokens read.  A
 * shorter one may lack pages of other groups, since its windows start earlier: it is
 * the longest when no group in turn shortens it.  What a window has been seen to have
 * is not looked at again, so each page is once.
 */
static int64_t longest_hit(const pkv_prefix *p, const int32_t *pages, int64_t stride, int64_t n)
{
    const int32_t G = p->config.n_groups;
    int64_t       low[PKV_MAX_GROUPS], sinks, first; /* low .. n: are there */
    for (int32_t g = 1; g < G; g++) { /* group 0 has all */
        n = bound_of_group(p, g, pages + g * stride, n);
    }
    for (int32_t g = 0; g < G; g++) {
        low[g] = n;
    }
    for (int32_t g = 0, n_content = 0; n_content < G; g = g + 1 < G ? g + 1 : 0) {
        const int32_t *row = pages + g * stride;
        const int64_t  before = n;
        low[g] = low[g] < n ? low[g] : n;
        needed_pages(p, g, n, &sinks, &first);
        while (p->config.groups[g].window_tokens > 0 && low[g] > first) {
            if (row[--low[g]] < 0) {
                n = low[g];
                needed_pages(p, g, n, &sinks, &first);
            }
        }
        n_content = n < before ? 1 : n_content + 1;
    }
    return n;
}

static void leave_out_unneeded(const pkv_prefix *p, int32_t *pages, int64_t stride, int64_t n)
{
    for (int32_t g = 0; g < p->config.n_groups; g++) {
        int64_t sinks, first;
        needed_pages(p, g, n, &sinks, &first);
        for (int64_t i = sinks; i < first; i++) {
            pages[g * stride + i] = -1;
        }
    }
}

pkv_status pkv_prefix_find(pkv_prefix *prefix, uint64_t salt, const int32_t *tokens,
                           int64_t n_tokens, int32_t *pages, int64_t max_pages,
                           pkv_prefix_hit *out, pkv_error *err)
{
    PKV_I_TRY(pkv_i_prefix_enter(prefix, err));
    if (n_tokens < 0 || (n_tokens > 0 && tokens == NULL) || max_pages < 0 ||
        (max_pages > 0 && pages == NULL) || out == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "an array is NULL, or a number negative");
    }
    const int64_t S = prefix->config.page_size, whole = n_tokens > 0 ? (n_tokens - 1) / S : 0;
    const int64_t most = whole < max_pages ? whole : max_pages;
    pkv_i_front   front = pkv_i_prefix_root(prefix, salt);
    int64_t       n = 0;
    ahead         a;
    look_ahead(&a, tokens, most, front.hash);
    const bool settled = pkv_i_pool_is_settled(prefix->pool);
    while (n < most && find_pages(prefix, settled, next_hash(prefix, &a, n), &front,
                                  tokens + n * S, pages + n, max_pages)) {
        n++;
    }
    n = longest_hit(prefix, pages, max_pages, n);
    leave_out_unneeded(prefix, pages, max_pages, n);
    prefix->counts.n_finds++;
    prefix->counts.n_find_tokens += n_tokens;
    prefix->counts.n_hit_tokens += n * S;
    *out = (pkv_prefix_hit){.pages = pages, .stride = max_pages, .n_pages = n,
                            .stamp = pkv_i_pool_losses(prefix->pool)};
    return PKV_OK;
}

/* ---- publishing --------------------------------------------------------------------- */

static pkv_status fail_page(pkv_status code, int64_t index, int32_t page, const char *what,
                            pkv_error *err)
{
    return pkv_i_fail_at(err, code, PKV_RULE_PAGE, index, page, 0, what);
}

static pkv_status find_front(const pkv_prefix *p, uint64_t salt, int32_t behind,
                             pkv_i_front *front, pkv_error *err)
{
    if (behind == -1) {
        *front = pkv_i_prefix_root(p, salt);
        return PKV_OK;
    }
    if (behind < 0 || behind >= p->n_pages) {
        return fail_page(PKV_E_RANGE, -1, behind, "the page in front is none", err);
    }
    const pkv_i_content *c = pkv_i_prefix_content(p, behind);
    if (c->id == 0) {
        return fail_page(PKV_E_STATE, -1, behind, "the page in front is not published", err);
    }
    *front = (pkv_i_front){c->hash, c->id, false};
    return PKV_OK;
}

/* May this page have this content (id 0: one that is in no page)? */
static pkv_status check_page(const pkv_prefix *p, int32_t group, int32_t page, uint64_t id,
                             int64_t index, pkv_error *err)
{
    const int64_t owners = pkv_pool_owners(p->pool, page);
    if (owners < 0) {
        return fail_page(PKV_E_RANGE, index, page, "is no page of the pool", err);
    }
    const pkv_i_content *c = pkv_i_prefix_content(p, page);
    if (owners == 0) {
        return fail_page(PKV_E_STATE, index, page, "a page without owner is published", err);
    }
    if (c->next == PREFIX_NAMED) {
        return fail_page(PKV_E_STATE, index, page, "a page is named twice", err);
    }
    return c->id == 0 || (c->id == id && c->group == group)
               ? PKV_OK
               : fail_page(PKV_E_STATE, index, page, "a page holds another content already", err);
}

/* What check_page() will look at. */
static void fetch_named(const pkv_prefix *p, const int32_t *pages, int64_t i, int64_t n)
{
    if (i < n && pages[i] >= 0 && pages[i] < p->n_pages) {
        fetch_page(p, pages[i]);
        pkv_i_pool_fetch(p->pool, pages[i]);
    }
}

/*
 * All pages, before anything is stored but marks, which are taken back, and, in
 * pages that have no content, its hash and id (0: a new one).
 */
static pkv_status check_pages(pkv_prefix *p, int32_t group, pkv_i_front front,
                              const int32_t *tokens, const int32_t *pages, int64_t n,
                              pkv_error *err)
{
    pkv_status status = PKV_OK;
    int64_t    n_named = 0;
    ahead      a;
    look_ahead(&a, tokens, n, front.hash);
    for (; n_named < n; n_named++) {
        const int32_t *of_page = tokens + n_named * p->config.page_size;
        fetch_named(p, pages, n_named + MOST_AHEAD / 2, n);
        const uint64_t hash = next_hash(p, &a, n_named);
        const bool     known = front.is_first || front.id != 0;
        const uint64_t id = known ? find_id(p, hash, &front, of_page) : 0;
        status = check_page(p, group, pages[n_named], id, n_named, err);
        if (status != PKV_OK) {
            break;
        }
        pkv_i_content *c = pkv_i_prefix_content(p, pages[n_named]);
        if (c->next == PREFIX_NOWHERE) {
            c->next = PREFIX_NAMED;
            c->hash = hash;
            c->parent = id;
        }
        front = (pkv_i_front){hash, id, false};
    }
    for (int64_t i = 0; i < n_named; i++) {
        pkv_i_content *c = pkv_i_prefix_content(p, pages[i]);
        if (c->next == PREFIX_NAMED && status == PKV_OK) {
            c->next = PREFIX_NOWHERE;
        } else if (c->next == PREFIX_NAMED) {
            *c = (pkv_i_content){.next = PREFIX_NOWHERE};
        }
    }
    return status;
}

pkv_status pkv_prefix_publish(pkv_prefix *prefix, int32_t group, uint64_t salt, int32_t behind,
                              const int32_t *tokens, const int32_t *pages, int64_t n,
                              pkv_error *err)
{
    pkv_i_front front = {0};
    PKV_I_TRY(pkv_i_prefix_enter(prefix, err));
    if (group < 0 || group >= prefix->config.n_groups || n < 0 ||
        (n > 0 && (tokens == NULL || pages == NULL))) {
        return pkv_i_fail(err, PKV_E_INVALID, "no such group, an array is NULL, or n negative");
    }
    PKV_I_TRY(pkv_pool_keep(prefix->pool, NULL, 0, 1, err)); /* no reservation is open */
    PKV_I_TRY(find_front(prefix, salt, behind, &front, err));
    PKV_I_TRY(check_pages(prefix, group, front, tokens, pages, n, err));
    PKV_I_TRY(pkv_pool_keep(prefix->pool, pages, n, 1, err));
    for (int64_t i = 0; i < n; i++) {
        const pkv_i_content *c = pkv_i_prefix_content(prefix, pages[i]);
        if (c->id == 0) {
            pkv_i_content what = {.hash = c->hash, .id = c->parent, .parent = front.id,
                                  .group = (uint8_t)group, .is_first = front.is_first};
            pkv_i_prefix_link(prefix, pages[i], &what, tokens + i * prefix->config.page_size);
        }
        front = (pkv_i_front){c->hash, c->id, false};
    }
    return PKV_OK;
}
