/* Sequences: the pages of a step, all or none, and the planner's view of it. */
#include <string.h>

#include "seq_state.h"

static pkv_status fail_at(pkv_status code, int32_t rule, int64_t index, int64_t value,
                          int64_t limit, const char *what, pkv_error *err)
{
    return pkv_i_fail_at(err, code, rule, index, value, limit, what);
}

/* ---- a reservation ends, or begins again from where it was ------------------------ */

static void forget_step(pkv_seqs *s)
{
    pkv_i_seq *seqs = pkv_i_seqs_seqs(s);
    for (int64_t i = 0; i < s->n_step; i++) {
        pkv_i_seq *q = &seqs[pkv_i_seqs_step(s)[i]];
        q->n_reserved = q->n_prefix = 0;
        q->in_step = false;
        memset(pkv_i_seqs_replaced(s, pkv_i_seqs_step(s)[i]), 0xff,
               (size_t)s->n_groups * sizeof(int32_t));
    }
    s->n_step = 0;
    s->reserving = false;
}

/* The tables as they were; the pool has undone its part or will. */
static void undo_tables(pkv_seqs *s)
{
    pkv_i_seq *seqs = pkv_i_seqs_seqs(s);
    for (int64_t i = 0; i < s->n_step; i++) {
        int64_t    place = pkv_i_seqs_step(s)[i];
        pkv_i_seq *q = &seqs[place];
        for (int64_t g = 0; g < s->n_groups; g++) {
            int32_t replaced = pkv_i_seqs_replaced(s, place)[g];
            if (replaced >= 0) {
                pkv_i_seqs_row(s, place, g)[q->pages_before - 1] = replaced;
            }
        }
        q->n_pages = q->pages_before;
    }
}

pkv_status pkv_seqs_release(pkv_seqs *seqs, pkv_error *err)
{
    PKV_I_TRY(pkv_i_seqs_check_state(seqs, true, err));
    PKV_I_TRY(pkv_pool_release(seqs->pool, err));
    undo_tables(seqs);
    forget_step(seqs);
    return PKV_OK;
}

pkv_status pkv_seqs_commit(pkv_seqs *seqs, pkv_error *err)
{
    PKV_I_TRY(pkv_i_seqs_check_state(seqs, true, err));
    PKV_I_TRY(pkv_pool_commit(seqs->pool, err));
    pkv_i_seq *all = pkv_i_seqs_seqs(seqs);
    for (int64_t i = 0; i < seqs->n_step; i++) {
        const int64_t place = pkv_i_seqs_step(seqs)[i];
        pkv_i_seq    *q = &all[place];
        q->n_tokens += q->n_prefix + q->n_reserved;
        q->n_published += q->n_prefix / seqs->page_size;
        for (int64_t g = 0; g < seqs->n_groups; g++) {
            const int32_t *replaced = &pkv_i_seqs_replaced(seqs, place)[g];
            if (*replaced >= 0) { /* copied by now; this owner was its own, so it cannot fail */
                (void)pkv_pool_free(seqs->pool, replaced, 1, NULL);
            }
        }
    }
    forget_step(seqs);
    return PKV_OK;
}

/* ---- a reservation is made -------------------------------------------------------- */

typedef struct step {
    int64_t        room;
    pkv_page_copy *copies;
    int64_t        max_copies, n_copies;
} step;

/* The partial last page, if writing behind its tokens would change what others read. */
static pkv_status own_last_page(pkv_seqs *s, int64_t i, int64_t place, int32_t group, step *t,
                                pkv_error *err)
{
    pkv_i_seq    *q = &pkv_i_seqs_seqs(s)[place];
    int32_t      *last = &pkv_i_seqs_row(s, place, group)[q->n_pages - 1];
    const int64_t n_held = q->n_tokens % s->page_size;
    if (n_held == 0) {
        return PKV_OK;
    }
    if (*last < 0) {
        return fail_at(PKV_E_RANGE, PKV_RULE_TABLE, i, q->n_tokens, 0,
                       "the last page was dropped, so nothing can be added to it", err);
    }
    if (pkv_i_pool_is_writable(s->pool, *last)) {
        return PKV_OK;
    }
    if (t->n_copies == t->max_copies) {
        return fail_at(PKV_E_RANGE, PKV_RULE_CAPACITY, i, t->n_copies + 1, t->max_copies,
                       "the copies do not fit their array", err);
    }
    int32_t page = -1, after = q->n_pages > 1 ? last[-1] : -1;
    PKV_I_TRY(pkv_pool_alloc(s->pool, 1, after < 0 ? -1 : after, t->room, &page, err));
    t->copies[t->n_copies++] = (pkv_page_copy){*last, page, (int32_t)n_held, group};
    pkv_i_seqs_replaced(s, place)[group] = *last;
    *last = page;
    return PKV_OK;
}

/* What is not kept was not found: its owner may write it. */
static pkv_status check_kept(const pkv_seqs *s, const int32_t *pages, int64_t n, pkv_error *err)
{
    const int64_t n_pages = pkv_i_pool_n_pages(s->pool);
    for (int64_t i = 0; i < n; i++) {
        if (pages[i] == SEQ_DROPPED) {
            continue;
        }
        if (pages[i] < 0 || pages[i] >= n_pages) {
            return fail_at(PKV_E_RANGE, PKV_RULE_PAGE, -1, pages[i], n_pages,
                           "a page of the prefix is no page of the pool", err);
        }
        if (!pkv_i_pool_is_kept(s->pool, pages[i])) {
            return fail_at(PKV_E_STATE, PKV_RULE_PAGE, -1, pages[i], 0,
                           "a page of the prefix is not kept", err);
        }
    }
    return PKV_OK;
}

/* The pages that an empty sequence begins with get an owner more and stand in its rows. */
static pkv_status begin_with(pkv_seqs *s, int64_t i, int64_t place, const pkv_prefix_hit *hit,
                             pkv_error *err)
{
    pkv_i_seq *q = &pkv_i_seqs_seqs(s)[place];
    int64_t    n_done = 0;
    if (q->n_tokens > 0) {
        return fail_at(PKV_E_STATE, PKV_RULE_NONE, i, q->n_tokens, 0,
                       "a sequence that has tokens cannot begin with others", err);
    }
    if (hit->stamp != pkv_i_pool_losses(s->pool)) {
        return fail_at(PKV_E_STATE, PKV_RULE_NONE, i, hit->stamp, pkv_i_pool_losses(s->pool),
                       "pages were lost since this prefix was found: find it again", err);
    }
    for (int64_t g = 0; g < s->n_groups; g++) {
        const int32_t *pages = hit->pages + g * hit->stride;
        PKV_I_TRY(check_kept(s, pages, hit->n_pages, err));
        PKV_I_TRY(pkv_i_seqs_share(s->pool, pages, hit->n_pages, &n_done, err));
        memcpy(pkv_i_seqs_row(s, place, g), pages, (size_t)hit->n_pages * sizeof *pages);
    }
    q->n_pages = hit->n_pages;
    q->n_prefix = hit->n_pages * s->page_size;
    return PKV_OK;
}

/* The pages of the tokens that the step computes. */
static pkv_status add_pages(pkv_seqs *s, int64_t i, int64_t place, step *t, pkv_error *err)
{
    pkv_i_seq    *q = &pkv_i_seqs_seqs(s)[place];
    const int64_t n_pages = pkv_i_seqs_pages_of(s, q->n_tokens + q->n_prefix + q->n_reserved);
    if (q->n_reserved == 0) {
        return PKV_OK;
    }
    for (int32_t g = 0; g < s->n_groups; g++) {
        int32_t *row = pkv_i_seqs_row(s, place, g);
        PKV_I_TRY(own_last_page(s, i, place, g, t, err));
        int32_t after = q->n_pages > 0 ? row[q->n_pages - 1] : -1;
        PKV_I_TRY(pkv_pool_alloc(s->pool, n_pages - q->n_pages, after < 0 ? -1 : after, t->room,
                                 row + q->n_pages, err));
    }
    q->n_pages = n_pages;
    return PKV_OK;
}

/* Into the list of the step: from here on an undo finds it.  And the pages that it begins with. */
static pkv_status enter(pkv_seqs *s, int64_t i, pkv_seq seq, int32_t n_tokens,
                        const pkv_prefix_hit *hit, pkv_error *err)
{
    const int64_t place = pkv_i_seqs_place(s, seq);
    if (place < 0) {
        return pkv_i_seqs_fail_handle(i, err);
    }
    pkv_i_seq *q = &pkv_i_seqs_seqs(s)[place];
    if (q->in_step) {
        return fail_at(PKV_E_STATE, PKV_RULE_NONE, i, 0, 0, "a sequence is named twice", err);
    }
    if (n_tokens < 0) {
        return fail_at(PKV_E_RANGE, PKV_RULE_SCHEDULED, i, n_tokens, 0, "n_tokens is negative",
                       err);
    }
    const int64_t n_prefix = hit != NULL ? hit->n_pages : 0;
    int64_t       n_pages = pkv_i_seqs_pages_of(s, q->n_tokens + n_tokens);
    if (PKV_I_ADD(n_pages, n_prefix, &n_pages) || n_pages > s->width) {
        return fail_at(PKV_E_RANGE, PKV_RULE_TABLE, i, n_pages < 0 ? INT64_MAX : n_pages, s->width,
                       "the sequence would exceed max_pages_per_seq", err);
    }
    pkv_i_seqs_step(s)[s->n_step++] = (int32_t)place;
    q->in_step = true;
    q->n_reserved = n_tokens;
    q->pages_before = q->n_pages;
    return n_prefix > 0 ? begin_with(s, i, place, hit, err) : PKV_OK;
}

static pkv_status check_hits(const pkv_prefix_hit *hits, int64_t n, pkv_error *err)
{
    for (int64_t i = 0; hits != NULL && i < n; i++) {
        const pkv_prefix_hit *h = &hits[i];
        if (h->n_pages < 0 || (h->n_pages > 0 && h->pages == NULL) || h->n_pages > h->stride) {
            return fail_at(PKV_E_INVALID, PKV_RULE_NONE, i, h->n_pages, h->stride,
                           "a prefix is NULL, negative or longer than its stride", err);
        }
    }
    return PKV_OK;
}

/* The pool does not know of sequences. */
static void name_sequence(pkv_status status, int64_t i, pkv_error *err)
{
    if (status != PKV_OK && err != NULL) {
        err->index = i;
    }
}

pkv_status pkv_seqs_reserve(pkv_seqs *seqs, const pkv_seq *seqs_of_step, const int32_t *n_tokens,
                            const pkv_prefix_hit *hits, int64_t n, int64_t room,
                            pkv_page_copy *copies, int64_t max_copies, int64_t *n_copies_out,
                            pkv_error *err)
{
    PKV_I_TRY(pkv_i_seqs_check_state(seqs, false, err));
    if (n < 0 || (n > 0 && (seqs_of_step == NULL || n_tokens == NULL)) || room < 0 ||
        max_copies < 0 || (max_copies > 0 && copies == NULL) || n_copies_out == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "an array is NULL, or a number negative");
    }
    PKV_I_TRY(check_hits(hits, n, err));
    PKV_I_TRY(pkv_pool_reserve(seqs->pool, err));
    seqs->reserving = true;
    step       t = {.room = room, .copies = copies, .max_copies = max_copies};
    pkv_status status = PKV_OK;
    /* All hits have an owner before any page is taken: one could be evicted for another. */
    for (int64_t i = 0; i < n && status == PKV_OK; i++) {
        status = enter(seqs, i, seqs_of_step[i], n_tokens[i],
                       hits != NULL ? &hits[i] : NULL, err);
        name_sequence(status, i, err);
    }
    for (int64_t i = 0; i < n && status == PKV_OK; i++) {
        status = add_pages(seqs, i, pkv_i_seqs_step(seqs)[i], &t, err);
        name_sequence(status, i, err);
    }
    if (status != PKV_OK) {
        (void)pkv_seqs_release(seqs, NULL);
        return status;
    }
    *n_copies_out = t.n_copies;
    return PKV_OK;
}

/* ---- the planner's view ----------------------------------------------------------- */

pkv_status pkv_seqs_batch(const pkv_seqs *seqs, int32_t group, const pkv_seq *seqs_of_step,
                          int64_t n, int32_t *computed, int32_t *scheduled, int32_t *rows,
                          pkv_batch *batch_out, pkv_error *err)
{
    if (seqs == NULL || seqs->magic != SEQS_MAGIC || group < 0 || group >= seqs->n_groups ||
        n < 0 || batch_out == NULL ||
        (n > 0 && (seqs_of_step == NULL || computed == NULL || scheduled == NULL ||
                   rows == NULL))) {
        return pkv_i_fail(err, PKV_E_INVALID, "a pointer is NULL, n negative, or no such group");
    }
    for (int64_t i = 0; i < n; i++) {
        int64_t place = pkv_i_seqs_place(seqs, seqs_of_step[i]);
        if (place < 0) {
            return pkv_i_seqs_fail_handle(i, err);
        }
        const pkv_i_seq *q = &pkv_i_seqs_seqs(seqs)[place];
        const int64_t n_tokens = q->n_tokens + q->n_prefix;
        if (n_tokens > INT32_MAX) {
            return fail_at(PKV_E_RANGE, PKV_RULE_COMPUTED, i, n_tokens, INT32_MAX,
                           "the sequence is longer than int32", err);
        }
        computed[i] = (int32_t)n_tokens;
        scheduled[i] = (int32_t)q->n_reserved;
        rows[i] = (int32_t)(place * seqs->n_groups + group);
    }
    *batch_out = (pkv_batch){.struct_size = sizeof *batch_out,
                             .n_requests = n,
                             .computed = computed,
                             .scheduled = scheduled,
                             .block_table = pkv_i_seqs_row(seqs, 0, 0),
                             .block_table_stride = seqs->width,
                             .block_table_width = seqs->width,
                             .page_size = seqs->page_size,
                             .table_rows = rows};
    return PKV_OK;
}

/* ---- proving ---------------------------------------------------------------------- */

static pkv_status check_seq(const pkv_seqs *s, int64_t place, int64_t *n_entries, pkv_error *err)
{
    const pkv_i_seq *q = &pkv_i_seqs_seqs(s)[place];
    const int64_t    n_tokens = q->n_tokens + q->n_prefix + q->n_reserved;
    if (q->n_pages != pkv_i_seqs_pages_of(s, n_tokens) || q->n_pages > s->width ||
        q->n_published > n_tokens / s->page_size) {
        return fail_at(PKV_E_CORRUPT, PKV_RULE_NONE, place, q->n_pages, s->width,
                       "a sequence's pages are not those of its tokens", err);
    }
    for (int64_t g = 0; g < s->n_groups; g++) {
        const int32_t *row = pkv_i_seqs_row(s, place, g);
        for (int64_t i = 0; i < q->n_pages; i++) {
            if (row[i] != SEQ_DROPPED && pkv_pool_owners(s->pool, row[i]) < 1) {
                return fail_at(PKV_E_CORRUPT, PKV_RULE_PAGE, place, row[i], 0,
                               "a sequence's page has no owner", err);
            }
            *n_entries += row[i] != SEQ_DROPPED;
        }
        *n_entries += pkv_i_seqs_replaced(s, place)[g] >= 0;
    }
    return PKV_OK;
}

pkv_status pkv_seqs_check(const pkv_seqs *seqs, int32_t alone, pkv_error *err)
{
    if (seqs == NULL || seqs->magic != SEQS_MAGIC) {
        return pkv_i_fail(err, PKV_E_INVALID, "there is no table of sequences");
    }
    PKV_I_TRY(pkv_pool_check(seqs->pool, err));
    int64_t n_entries = 0, n_open = 0, n_owners = 0;
    for (int64_t i = 0; i < seqs->max_seqs; i++) {
        if (pkv_i_seqs_seqs(seqs)[i].generation % 2 == 1) {
            n_open++;
            PKV_I_TRY(check_seq(seqs, i, &n_entries, err));
        }
    }
    if (n_open != seqs->n_open) {
        return pkv_i_fail(err, PKV_E_CORRUPT, "the number of open sequences is wrong");
    }
    for (int32_t page = 0; alone != 0; page++) {
        int64_t owners = pkv_pool_owners(seqs->pool, page);
        if (owners < 0) {
            break;
        }
        n_owners += owners;
    }
    if (alone != 0 && n_owners != n_entries) {
        return fail_at(PKV_E_CORRUPT, PKV_RULE_NONE, -1, n_owners, n_entries,
                       "pages have other owners than the sequences", err);
    }
    return PKV_OK;
}
