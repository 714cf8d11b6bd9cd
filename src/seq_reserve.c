/* Sequences: the pages of a step, all or none, and the planner's view of it. */
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
        q->n_reserved = 0;
        q->replaced = -1;
        q->in_step = false;
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
        if (q->replaced >= 0) {
            pkv_i_seqs_row(s, place)[q->pages_before - 1] = q->replaced;
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
        pkv_i_seq *q = &all[pkv_i_seqs_step(seqs)[i]];
        q->n_tokens += q->n_reserved;
        if (q->replaced >= 0) { /* copied by now; this owner was its own, so it cannot fail */
            (void)pkv_pool_free(seqs->pool, &q->replaced, 1, NULL);
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
static pkv_status own_last_page(pkv_seqs *s, int64_t i, int64_t place, step *t, pkv_error *err)
{
    pkv_i_seq    *q = &pkv_i_seqs_seqs(s)[place];
    int32_t      *last = &pkv_i_seqs_row(s, place)[q->n_pages - 1];
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
    t->copies[t->n_copies++] = (pkv_page_copy){*last, page, (int32_t)n_held};
    q->replaced = *last;
    *last = page;
    return PKV_OK;
}

static pkv_status add_pages(pkv_seqs *s, int64_t i, int64_t place, step *t, pkv_error *err)
{
    pkv_i_seq *q = &pkv_i_seqs_seqs(s)[place];
    int32_t   *row = pkv_i_seqs_row(s, place);
    int64_t    n_pages = pkv_i_seqs_pages_of(s, q->n_tokens + q->n_reserved);
    if (n_pages > s->width) {
        return fail_at(PKV_E_RANGE, PKV_RULE_TABLE, i, n_pages, s->width,
                       "the sequence would exceed max_pages_per_seq", err);
    }
    if (q->n_reserved == 0) {
        return PKV_OK;
    }
    PKV_I_TRY(own_last_page(s, i, place, t, err));
    int32_t    after = q->n_pages > 0 ? row[q->n_pages - 1] : -1;
    pkv_status status = pkv_pool_alloc(s->pool, n_pages - q->n_pages, after < 0 ? -1 : after,
                                       t->room, row + q->n_pages, err);
    if (status == PKV_OK) {
        q->n_pages = n_pages;
    }
    return status;
}

/* Into the list of the step: from here on an undo finds it. */
static pkv_status enter(pkv_seqs *s, int64_t i, pkv_seq seq, int32_t n_tokens, int64_t *place,
                        pkv_error *err)
{
    *place = pkv_i_seqs_place(s, seq);
    if (*place < 0) {
        return pkv_i_seqs_fail_handle(i, err);
    }
    pkv_i_seq *q = &pkv_i_seqs_seqs(s)[*place];
    if (q->in_step) {
        return fail_at(PKV_E_STATE, PKV_RULE_NONE, i, 0, 0, "a sequence is named twice", err);
    }
    if (n_tokens < 0) {
        return fail_at(PKV_E_RANGE, PKV_RULE_SCHEDULED, i, n_tokens, 0, "n_tokens is negative",
                       err);
    }
    pkv_i_seqs_step(s)[s->n_step++] = (int32_t)*place;
    q->in_step = true;
    q->n_reserved = n_tokens;
    q->pages_before = q->n_pages;
    return PKV_OK;
}

pkv_status pkv_seqs_reserve(pkv_seqs *seqs, const pkv_seq *seqs_of_step, const int32_t *n_tokens,
                            int64_t n, int64_t room, pkv_page_copy *copies, int64_t max_copies,
                            int64_t *n_copies_out, pkv_error *err)
{
    PKV_I_TRY(pkv_i_seqs_check_state(seqs, false, err));
    if (n < 0 || (n > 0 && (seqs_of_step == NULL || n_tokens == NULL)) || room < 0 ||
        max_copies < 0 || (max_copies > 0 && copies == NULL) || n_copies_out == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "an array is NULL, or a number negative");
    }
    PKV_I_TRY(pkv_pool_reserve(seqs->pool, err));
    seqs->reserving = true;
    step       t = {.room = room, .copies = copies, .max_copies = max_copies};
    pkv_status status = PKV_OK;
    for (int64_t i = 0; i < n && status == PKV_OK; i++) {
        int64_t place = 0;
        status = enter(seqs, i, seqs_of_step[i], n_tokens[i], &place, err);
        if (status == PKV_OK) {
            status = add_pages(seqs, i, place, &t, err);
        }
        if (status == PKV_E_NO_PAGES && err != NULL) {
            err->index = i;
        }
    }
    if (status != PKV_OK) {
        (void)pkv_seqs_release(seqs, NULL);
        return status;
    }
    *n_copies_out = t.n_copies;
    return PKV_OK;
}

/* ---- the planner's view ----------------------------------------------------------- */

pkv_status pkv_seqs_batch(const pkv_seqs *seqs, const pkv_seq *seqs_of_step, int64_t n,
                          int32_t *computed, int32_t *scheduled, int32_t *rows,
                          pkv_batch *batch_out, pkv_error *err)
{
    if (seqs == NULL || seqs->magic != SEQS_MAGIC || n < 0 || batch_out == NULL ||
        (n > 0 && (seqs_of_step == NULL || computed == NULL || scheduled == NULL ||
                   rows == NULL))) {
        return pkv_i_fail(err, PKV_E_INVALID, "a pointer is NULL, or n negative");
    }
    for (int64_t i = 0; i < n; i++) {
        int64_t place = pkv_i_seqs_place(seqs, seqs_of_step[i]);
        if (place < 0) {
            return pkv_i_seqs_fail_handle(i, err);
        }
        const pkv_i_seq *q = &pkv_i_seqs_seqs(seqs)[place];
        if (q->n_tokens > INT32_MAX) {
            return fail_at(PKV_E_RANGE, PKV_RULE_COMPUTED, i, q->n_tokens, INT32_MAX,
                           "the sequence is longer than int32", err);
        }
        computed[i] = (int32_t)q->n_tokens;
        scheduled[i] = (int32_t)q->n_reserved;
        rows[i] = (int32_t)place;
    }
    *batch_out = (pkv_batch){.struct_size = sizeof *batch_out,
                             .n_requests = n,
                             .computed = computed,
                             .scheduled = scheduled,
                             .block_table = pkv_i_seqs_row(seqs, 0),
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
    const int32_t   *row = pkv_i_seqs_row(s, place);
    if (q->n_pages != pkv_i_seqs_pages_of(s, q->n_tokens + q->n_reserved) ||
        q->n_pages > s->width) {
        return fail_at(PKV_E_CORRUPT, PKV_RULE_NONE, place, q->n_pages, s->width,
                       "a sequence's pages are not those of its tokens", err);
    }
    for (int64_t i = 0; i < q->n_pages; i++) {
        if (row[i] != SEQ_DROPPED && pkv_pool_owners(s->pool, row[i]) < 1) {
            return fail_at(PKV_E_CORRUPT, PKV_RULE_PAGE, place, row[i], 0,
                           "a sequence's page has no owner", err);
        }
        *n_entries += row[i] != SEQ_DROPPED;
    }
    *n_entries += q->replaced >= 0;
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
