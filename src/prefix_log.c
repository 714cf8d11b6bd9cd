/* The prefix index: chains, the log of what was stored and removed, counts, proving. */
#include <string.h>

#include "prefix_state.h"

/* ---- the log -------------------------------------------------------------------------- */

static pkv_i_logged *logged_at(const pkv_prefix *p, int64_t i)
{
    int64_t at = p->log_head + i;
    at = at < p->config.max_events ? at : at - p->config.max_events;
    return (pkv_i_logged *)pkv_i_prefix_at(p, p->at.log) + at;
}

/* Behind one that found no room there is none: the log has no gap but at its end. */
static void note(pkv_prefix *p, const pkv_i_logged *what)
{
    if (p->counts.n_events < p->config.max_events && p->counts.n_events_lost == 0) {
        *logged_at(p, p->counts.n_events++) = *what;
    } else if (p->config.max_events > 0) {
        p->counts.n_events_lost++;
    }
}

static void note_page(pkv_prefix *p, int32_t kind, int32_t page, const pkv_i_content *c)
{
    note(p, &(pkv_i_logged){.id = c->id, .parent = c->parent, .hash = c->hash, .kind = kind,
                            .page = page, .group = c->group, .is_first = c->is_first});
}

void pkv_i_prefix_log_clear(pkv_prefix *p)
{
    p->counts.n_events = 0;
    p->counts.n_events_lost = 0;
    note(p, &(pkv_i_logged){.kind = PKV_PREFIX_CLEARED, .page = -1});
}

/* Where the chain names the page that stands for a content's pages in the group, or its end. */
static int32_t *find_link(const pkv_prefix *p, uint64_t hash, uint64_t id, int32_t group)
{
    int32_t *link = pkv_i_prefix_head(p, hash);
    while (*link != PREFIX_END && (pkv_i_prefix_content(p, *link)->id != id ||
                                   pkv_i_prefix_content(p, *link)->group != group)) {
        link = &pkv_i_prefix_content(p, *link)->next;
    }
    return link;
}

/* The page that has what was stored: the one of then, or one that holds the same; else -1. */
static int32_t find_stored(const pkv_prefix *p, const pkv_i_logged *l)
{
    const pkv_i_content *c = pkv_i_prefix_content(p, l->page);
    return c->id == l->id && c->group == l->group ? l->page
                                                  : *find_link(p, l->hash, l->id, l->group);
}

/* The tokens are not in the log: they are a page's, while one has this content. */
static pkv_prefix_event event_of(const pkv_prefix *p, const pkv_i_logged *l)
{
    pkv_prefix_event e = {.kind = l->kind, .group = l->group, .page = l->page,
                          .is_first = l->is_first, .id = l->id, .parent = l->parent};
    const int32_t    at = l->kind == PKV_PREFIX_STORED ? find_stored(p, l) : PREFIX_END;
    if (at != PREFIX_END) {
        e.page = at;
        e.tokens = pkv_i_prefix_content(p, at)->tokens;
    }
    return e;
}

pkv_status pkv_prefix_events(pkv_prefix *prefix, pkv_prefix_event *events, int64_t n,
                             int64_t *n_out, int64_t *n_lost_out, pkv_error *err)
{
    PKV_I_TRY(pkv_i_prefix_enter(prefix, err));
    if (n < 0 || (n > 0 && events == NULL) || n_out == NULL || n_lost_out == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "a pointer is NULL, or n negative");
    }
    pkv_prefix_counts *counts = &prefix->counts;
    int64_t            now = n < counts->n_events ? n : counts->n_events;
    for (int64_t i = 0; i < now; i++) {
        events[i] = event_of(prefix, logged_at(prefix, i));
    }
    if (now > 0) {
        prefix->log_head = (prefix->log_head + now) % prefix->config.max_events;
    }
    counts->n_events -= now;
    *n_out = now;
    /* Not before: who begins anew must not be told afterwards what was before. */
    *n_lost_out = counts->n_events == 0 ? counts->n_events_lost : 0;
    counts->n_events_lost -= *n_lost_out;
    return PKV_OK;
}

/* ---- chains and rings ----------------------------------------------------------------- */

/* Into the ring of the page that stands for both, as the newest. */
static void join(pkv_prefix *p, int32_t page, int32_t first)
{
    pkv_i_twins  *f = pkv_i_prefix_twins(p, first);
    const int32_t last = f->prev;
    *pkv_i_prefix_twins(p, page) = (pkv_i_twins){first, last};
    f->prev = page;
    pkv_i_prefix_twins(p, last)->next = page;
}

/* Out of its ring: the others close it. */
static void leave(pkv_prefix *p, int32_t page)
{
    pkv_i_twins *t = pkv_i_prefix_twins(p, page);
    pkv_i_prefix_twins(p, t->prev)->next = t->next;
    pkv_i_prefix_twins(p, t->next)->prev = t->prev;
    *t = (pkv_i_twins){page, page};
}

void pkv_i_prefix_link(pkv_prefix *p, int32_t page, const pkv_i_content *what,
                       const int32_t *tokens)
{
    pkv_i_content *c = pkv_i_prefix_content(p, page);
    const bool     is_new = what->id == 0;
    const int32_t  first = is_new ? PREFIX_END : *find_link(p, what->hash, what->id, what->group);
    *c = *what;
    c->id = is_new ? ++p->last_id : what->id;
    memcpy(c->tokens, tokens, (size_t)p->config.page_size * sizeof *tokens);
    p->counts.n_pages++;
    p->counts.n_published++;
    if (first != PREFIX_END) {
        c->next = PREFIX_TWIN;
        pkv_i_prefix_content(p, first)->has_twins = true;
        join(p, page, first);
        return;
    }
    int32_t *head = pkv_i_prefix_head(p, what->hash);
    c->next = *head;
    *head = page;
    note_page(p, PKV_PREFIX_STORED, page, c);
}

/* One that has twins goes; if it stood in the chain, one of them does from now on. */
static void unlink_twin(pkv_prefix *p, int32_t page)
{
    const pkv_i_content *c = pkv_i_prefix_content(p, page);
    const int32_t        twin = pkv_i_prefix_twins(p, page)->next;
    pkv_i_content       *t = pkv_i_prefix_content(p, twin);
    leave(p, page);
    const bool alone = pkv_i_prefix_twins(p, twin)->next == twin;
    if (c->next != PREFIX_TWIN) {
        *find_link(p, c->hash, c->id, c->group) = twin;
        t->next = c->next;
        t->has_twins = !alone;
    } else if (alone) {
        t->has_twins = false;
    }
}

void pkv_i_prefix_unlink(pkv_prefix *p, int32_t page)
{
    pkv_i_content *c = pkv_i_prefix_content(p, page);
    if (c->id == 0) {
        return; /* kept, but never published */
    }
    if (c->next == PREFIX_TWIN || c->has_twins) {
        unlink_twin(p, page);
    } else {
        *find_link(p, c->hash, c->id, c->group) = c->next;
        note_page(p, PKV_PREFIX_REMOVED, page, c);
    }
    p->counts.n_pages--;
    p->counts.n_removed++;
    *c = (pkv_i_content){.next = PREFIX_NOWHERE};
}

pkv_status pkv_prefix_clear(pkv_prefix *prefix, pkv_error *err)
{
    PKV_I_TRY(pkv_i_prefix_enter(prefix, err));
    PKV_I_TRY(pkv_pool_keep(prefix->pool, NULL, 0, 0, err)); /* no reservation is open */
    for (int32_t page = 0; page < prefix->n_pages; page++) {
        if (pkv_i_prefix_content(prefix, page)->id == 0) {
            continue;
        }
        PKV_I_TRY(pkv_pool_owners(prefix->pool, page) > 0
                      ? pkv_pool_keep(prefix->pool, &page, 1, 0, err)
                      : pkv_pool_forget(prefix->pool, &page, 1, err));
    }
    PKV_I_TRY(pkv_i_prefix_enter(prefix, err));
    pkv_i_prefix_log_clear(prefix);
    return PKV_OK;
}

/* ---- what is known -------------------------------------------------------------------- */

static pkv_status check_asked(pkv_prefix *p, int32_t page, const void *out, pkv_error *err)
{
    PKV_I_TRY(pkv_i_prefix_enter(p, err));
    if (out == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "out is NULL");
    }
    return page >= 0 && page < p->n_pages
               ? PKV_OK
               : pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_PAGE, -1, page, p->n_pages,
                               "is no page of the pool");
}

pkv_status pkv_prefix_page(pkv_prefix *prefix, int32_t page, pkv_prefix_event *out, pkv_error *err)
{
    PKV_I_TRY(check_asked(prefix, page, out, err));
    const pkv_i_content *c = pkv_i_prefix_content(prefix, page);
    *out = (pkv_prefix_event){.page = page};
    if (c->id != 0 && pkv_i_pool_is_kept(prefix->pool, page)) {
        *out = (pkv_prefix_event){.kind = PKV_PREFIX_STORED, .group = c->group, .page = page,
                                  .is_first = c->is_first, .id = c->id, .parent = c->parent,
                                  .tokens = c->tokens};
    }
    return PKV_OK;
}

pkv_status pkv_prefix_twin(pkv_prefix *prefix, int32_t page, int32_t *out, pkv_error *err)
{
    PKV_I_TRY(check_asked(prefix, page, out, err));
    int32_t twin = page;
    if (pkv_i_pool_is_kept(prefix->pool, page)) {
        do { /* inside a reservation it may have taken some */
            twin = pkv_i_prefix_twins(prefix, twin)->next;
        } while (twin != page && !pkv_i_pool_is_kept(prefix->pool, twin));
    }
    *out = twin == page ? -1 : twin;
    return PKV_OK;
}

pkv_status pkv_prefix_stats(pkv_prefix *prefix, pkv_prefix_counts *out, pkv_error *err)
{
    PKV_I_TRY(pkv_i_prefix_enter(prefix, err));
    PKV_I_TRY(pkv_i_check_struct(out, sizeof *out, err));
    const size_t size = out->struct_size;
    memcpy(out, &prefix->counts, sizeof prefix->counts);
    out->struct_size = size;
    return PKV_OK;
}

static pkv_status fail_corrupt(int64_t page, const char *what, pkv_error *err)
{
    return pkv_i_fail_at(err, PKV_E_CORRUPT, PKV_RULE_PAGE, page, 0, 0, what);
}

static bool is_same(const pkv_prefix *p, const pkv_i_content *a, const pkv_i_content *b)
{
    return a->hash == b->hash && a->parent == b->parent && a->is_first == b->is_first &&
           memcmp(a->tokens, b->tokens, (size_t)p->config.page_size * sizeof *a->tokens) == 0;
}

/*
 * Is it between its neighbours, and are these its twins?  If so for all pages, they
 * are in rings, each in one.
 */
static pkv_status check_ring(const pkv_prefix *p, int32_t page, pkv_error *err)
{
    const pkv_i_twins *t = pkv_i_prefix_twins(p, page);
    if (t->next < 0 || t->next >= p->n_pages || t->prev < 0 || t->prev >= p->n_pages ||
        pkv_i_prefix_twins(p, t->next)->prev != page ||
        pkv_i_prefix_twins(p, t->prev)->next != page) {
        return fail_corrupt(page, "a ring of equal pages is broken", err);
    }
    const pkv_i_content *c = pkv_i_prefix_content(p, page);
    const pkv_i_content *twin = pkv_i_prefix_content(p, t->next);
    if (twin != c && (c->id == 0 || twin->id != c->id || twin->group != c->group ||
                      !is_same(p, twin, c))) {
        return fail_corrupt(page, "a ring has pages that are not equal", err);
    }
    return PKV_OK;
}

/* What one page says of itself, as far as it can be told without the content in front. */
static pkv_status check_content(const pkv_prefix *p, int32_t page, pkv_error *err)
{
    const pkv_i_content *c = pkv_i_prefix_content(p, page);
    PKV_I_TRY(check_ring(p, page, err));
    if (c->has_twins && (c->id == 0 || c->next == PREFIX_TWIN)) {
        return fail_corrupt(page, "a page that is in no chain stands for others", err);
    }
    if (c->id == 0) {
        return c->next == PREFIX_NOWHERE ? PKV_OK
                                         : fail_corrupt(page, "a page without content is linked",
                                                        err);
    }
    if (c->id > p->last_id || (!c->is_first && (c->parent == 0 || c->parent >= c->id)) ||
        c->group >= p->config.n_groups) {
        return fail_corrupt(page, "a content's id, parent or group cannot be", err);
    }
    const uint64_t root = pkv_i_prefix_root(p, c->parent).hash;
    if (c->is_first && c->hash != pkv_i_prefix_hash(p, c->tokens, root)) {
        return fail_corrupt(page, "a content's hash is not that of its tokens", err);
    }
    return PKV_OK;
}

/* How many pages a ring has; 0: another one than `first` stands in a chain.  It is closed. */
static int64_t count_ring(const pkv_prefix *p, int32_t first)
{
    int64_t n = 1;
    for (int32_t at = pkv_i_prefix_twins(p, first)->next; at != first; n++) {
        if (pkv_i_prefix_content(p, at)->next != PREFIX_TWIN) {
            return 0;
        }
        at = pkv_i_prefix_twins(p, at)->next;
    }
    return n;
}

/*
 * Each chain has pages of its bucket; they and their rings are n together, so each page is in
 * one, once.  (One without content would lead nowhere: check_content() saw to that.)
 */
static pkv_status check_buckets(const pkv_prefix *p, int64_t n, pkv_error *err)
{
    for (uint64_t bucket = 0; bucket <= p->mask; bucket++) {
        for (int32_t at = *pkv_i_prefix_head(p, bucket); at != PREFIX_END;) {
            if (at < 0 || at >= p->n_pages || n <= 0) {
                return pkv_i_fail(err, PKV_E_CORRUPT, "a chain leads nowhere");
            }
            const pkv_i_content *c = pkv_i_prefix_content(p, at);
            const int64_t        n_equal = count_ring(p, at);
            if ((c->hash & p->mask) != bucket) {
                return fail_corrupt(at, "a page is in a bucket that is not its own", err);
            }
            if (n_equal == 0 || (n_equal > 1) != c->has_twins) {
                return fail_corrupt(at, "a page stands for others and should not, or the other "
                                        "way round", err);
            }
            n -= n_equal;
            at = c->next;
        }
    }
    return n == 0 ? PKV_OK : pkv_i_fail(err, PKV_E_CORRUPT, "a page is not in its bucket");
}

/*
 * Has none in the bucket the same content under another id, or the same id for another content?
 * And does one page stand for all that are equal?
 */
static pkv_status check_id(const pkv_prefix *p, int32_t page, pkv_error *err)
{
    const pkv_i_content *c = pkv_i_prefix_content(p, page);
    for (int32_t at = c->id != 0 ? *pkv_i_prefix_head(p, c->hash) : PREFIX_END; at != PREFIX_END;) {
        const pkv_i_content *other = pkv_i_prefix_content(p, at);
        if (is_same(p, other, c) != (other->id == c->id)) {
            return fail_corrupt(page, "an id does not stand for one content", err);
        }
        if (other->id == c->id && other->group == c->group && other != c &&
            c->next != PREFIX_TWIN) {
            return fail_corrupt(page, "equal pages are in two rings", err);
        }
        at = other->next;
    }
    return PKV_OK;
}

static pkv_status check_counts(const pkv_prefix *p, int64_t n_known, pkv_error *err)
{
    const pkv_prefix_counts *c = &p->counts;
    const int64_t            max = p->config.max_events;
    if (n_known != c->n_pages || c->n_published - c->n_removed != n_known) {
        return pkv_i_fail(err, PKV_E_CORRUPT, "the number of published pages is wrong");
    }
    return c->n_events >= 0 && c->n_events <= max && c->n_events_lost >= 0 && p->log_head >= 0 &&
                   p->log_head < (max > 0 ? max : 1)
               ? PKV_OK
               : pkv_i_fail(err, PKV_E_CORRUPT, "the log is not where it can be");
}

pkv_status pkv_prefix_check(pkv_prefix *prefix, pkv_error *err)
{
    int64_t n_known = 0;
    if (prefix == NULL || prefix->magic != PREFIX_MAGIC) {
        return pkv_i_fail(err, PKV_E_INVALID, "there is no prefix index");
    }
    PKV_I_TRY(pkv_pool_check(prefix->pool, err));
    for (int32_t page = 0; page < prefix->n_pages; page++) {
        PKV_I_TRY(check_content(prefix, page, err));
        n_known += pkv_i_prefix_content(prefix, page)->id != 0;
    }
    PKV_I_TRY(check_buckets(prefix, n_known, err));
    PKV_I_TRY(check_counts(prefix, n_known, err));
    for (int32_t page = 0; page < prefix->n_pages; page++) {
        PKV_I_TRY(check_id(prefix, page, err));
    }
    PKV_I_TRY(pkv_i_prefix_enter(prefix, err)); /* only now: it follows the chains */
    /* With a reservation open a page that it took is not kept, and may be again. */
    const bool settled = pkv_i_pool_is_settled(prefix->pool);
    for (int32_t page = 0; settled && page < prefix->n_pages; page++) {
        if (pkv_i_prefix_content(prefix, page)->id != 0 &&
            !pkv_i_pool_is_kept(prefix->pool, page)) {
            return fail_corrupt(page, "a page can be found that is not kept", err);
        }
    }
    return PKV_OK;
}
