/* Sequences: places, handles, fork, trim, drop, close. */
#include <string.h>

#include "allocator.h"
#include "seq_state.h"

enum { HANDLE_SHIFT = 32 };
static const int64_t MAX_SEQS = (int64_t)1 << 20, MAX_WIDTH = (int64_t)1 << 30;

/* ---- making a table --------------------------------------------------------------- */

static pkv_status lay_out(const pkv_seqs_config *c, pkv_seqs *s, pkv_error *err)
{
    PKV_I_TRY(pkv_i_check_struct(c, sizeof *c, err));
    if (c->flags != 0) {
        return pkv_i_fail(err, PKV_E_UNSUPPORTED, "a flag of the table is unknown");
    }
    if (c->max_seqs < 1 || c->max_seqs > MAX_SEQS || c->max_pages_per_seq < 1 ||
        c->max_pages_per_seq > MAX_WIDTH || c->page_size < 1 || c->page_size > INT32_MAX ||
        c->n_groups < 0 || c->n_groups > PKV_MAX_GROUPS) {
        return pkv_i_fail(err, PKV_E_INVALID,
                          "max_seqs is not in 1..2^20, max_pages_per_seq not in 1..2^30, "
                          "page_size not in 1..2^31-1, or n_groups not in 0..8");
    }
    const int64_t n_groups = c->n_groups > 0 ? c->n_groups : 1;
    uint64_t      end = sizeof *s, n = (uint64_t)c->max_seqs, n_rows = n * (uint64_t)n_groups;
    *s = (pkv_seqs){.magic = SEQS_MAGIC, .max_seqs = c->max_seqs, .n_groups = n_groups,
                    .width = c->max_pages_per_seq, .page_size = c->page_size};
    /* Nothing overflows: rows are at most 2^23, of 2^30 entries. */
    s->at.seqs = pkv_i_place_array(&end, n * sizeof(pkv_i_seq));
    s->at.step = pkv_i_place_array(&end, n * sizeof(int32_t));
    s->at.replaced = pkv_i_place_array(&end, n_rows * sizeof(int32_t));
    s->at.table = pkv_i_place_array(&end, n_rows * (uint64_t)s->width * sizeof(int32_t));
    s->at.total = pkv_i_place_array(&end, 0);
    return PKV_OK;
}

pkv_status pkv_seqs_bytes(const pkv_seqs_config *config, uint64_t *bytes_out, pkv_error *err)
{
    pkv_seqs s = {0}; /* gcc does not see that lay_out() sets it */
    PKV_I_TRY(lay_out(config, &s, err));
    if (bytes_out == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "bytes_out is NULL");
    }
    *bytes_out = s.at.total;
    return PKV_OK;
}

pkv_status pkv_seqs_init(const pkv_seqs_config *config, pkv_pool *pool, void *memory,
                         uint64_t memory_bytes, pkv_seqs **out, pkv_error *err)
{
    pkv_seqs laid = {0};
    PKV_I_TRY(lay_out(config, &laid, err));
    if (pkv_pool_owners(pool, 0) < 0 || memory == NULL || out == NULL ||
        memory_bytes < laid.at.total || (uintptr_t)memory % PKV_I_ALIGN_BYTES != 0) {
        return pkv_i_fail(err, PKV_E_INVALID,
                          "pool or memory is NULL, or memory too small or not aligned to 64");
    }
    pkv_seqs *s = memory;
    *s = laid;
    s->pool = pool;
    pkv_i_seq *seqs = pkv_i_seqs_seqs(s);
    for (int64_t i = 0; i < s->max_seqs; i++) {
        seqs[i] = (pkv_i_seq){.next_free = i + 1 < s->max_seqs ? (int32_t)(i + 1) : -1};
    }
    memset(pkv_i_seqs_replaced(s, 0), 0xff,
           (size_t)(s->max_seqs * s->n_groups) * sizeof(int32_t));
    *out = s;
    return PKV_OK;
}

pkv_status pkv_seqs_create(const pkv_seqs_config *config, pkv_pool *pool,
                           const pkv_allocator *allocator, pkv_seqs **out, pkv_error *err)
{
    pkv_allocator a;
    uint64_t      bytes = 0;
    void         *memory = NULL;
    PKV_I_TRY(pkv_seqs_bytes(config, &bytes, err));
    if (out == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "out is NULL");
    }
    PKV_I_TRY(pkv_i_take_memory(allocator, bytes, &a, &memory, err));
    pkv_status status = pkv_seqs_init(config, pool, memory, bytes, out, err);
    if (status != PKV_OK) {
        a.release(a.user, memory, (size_t)bytes);
        return status;
    }
    (*out)->memory = a;
    return PKV_OK;
}

void pkv_seqs_destroy(pkv_seqs *seqs)
{
    if (seqs == NULL || seqs->memory.release == NULL) {
        return;
    }
    if (seqs->reserving) {
        (void)pkv_seqs_release(seqs, NULL);
    }
    (void)pkv_seqs_clear(seqs, NULL);
    pkv_allocator a = seqs->memory;
    uint64_t      bytes = seqs->at.total;
    seqs->magic = 0;
    a.release(a.user, seqs, (size_t)bytes);
}

/* ---- handles ---------------------------------------------------------------------- */

static pkv_seq handle_of(const pkv_seqs *s, int64_t place)
{
    return (int64_t)pkv_i_seqs_seqs(s)[place].generation << HANDLE_SHIFT | place;
}

int64_t pkv_i_seqs_place(const pkv_seqs *s, pkv_seq seq)
{
    int64_t place = seq & (((int64_t)1 << HANDLE_SHIFT) - 1);
    if (seq <= 0 || place >= s->max_seqs) {
        return -1;
    }
    int32_t generation = pkv_i_seqs_seqs(s)[place].generation;
    return generation % 2 == 1 && generation == seq >> HANDLE_SHIFT ? place : -1;
}

pkv_status pkv_i_seqs_fail_handle(int64_t index, pkv_error *err)
{
    pkv_i_fail(err, PKV_E_INVALID, "no sequence has this handle (any more)");
    if (err != NULL) {
        err->index = index;
    }
    return PKV_E_INVALID;
}

pkv_status pkv_i_seqs_check_state(const pkv_seqs *s, bool reserving, pkv_error *err)
{
    if (s == NULL || s->magic != SEQS_MAGIC) {
        return pkv_i_fail(err, PKV_E_INVALID, "there is no table of sequences");
    }
    if (s->reserving != reserving) {
        return pkv_i_fail(err, PKV_E_STATE, reserving ? "no reservation is open"
                                                      : "a reservation is open");
    }
    return PKV_OK;
}

pkv_status pkv_i_seqs_find(const pkv_seqs *s, pkv_seq seq, int64_t *place, pkv_error *err)
{
    PKV_I_TRY(pkv_i_seqs_check_state(s, false, err));
    *place = pkv_i_seqs_place(s, seq);
    return *place < 0 ? pkv_i_seqs_fail_handle(-1, err) : PKV_OK;
}

/* ---- pages go --------------------------------------------------------------------- */

/*
 * Frees the entries [from, to) of groups [first, end), the last ones first.  The
 * pool refuses nothing but a reservation of someone else's, which is looked for before.
 */
static pkv_status free_entries(pkv_seqs *s, int64_t place, int64_t first, int64_t end, int64_t from,
                               int64_t to, pkv_error *err)
{
    PKV_I_TRY(pkv_pool_free(s->pool, NULL, 0, err));
    for (int64_t i = to; i-- > from;) {
        for (int64_t g = first; g < end; g++) {
            int32_t *page = &pkv_i_seqs_row(s, place, g)[i];
            if (*page != SEQ_DROPPED) {
                PKV_I_TRY(pkv_pool_free(s->pool, page, 1, err));
                *page = SEQ_DROPPED;
            }
        }
    }
    return PKV_OK;
}

pkv_status pkv_seq_trim(pkv_seqs *seqs, pkv_seq seq, int64_t n_tokens, pkv_error *err)
{
    int64_t place = 0;
    PKV_I_TRY(pkv_i_seqs_find(seqs, seq, &place, err));
    pkv_i_seq *q = &pkv_i_seqs_seqs(seqs)[place];
    if (n_tokens < 0 || n_tokens > q->n_tokens) {
        return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_LIMIT, -1, n_tokens, q->n_tokens,
                             "more tokens are left than the sequence has, or below 0");
    }
    int64_t n_pages = pkv_i_seqs_pages_of(seqs, n_tokens);
    PKV_I_TRY(free_entries(seqs, place, 0, seqs->n_groups, n_pages, q->n_pages, err));
    q->n_tokens = n_tokens;
    q->n_pages = n_pages;
    if (q->n_published > n_tokens / seqs->page_size) {
        q->n_published = n_tokens / seqs->page_size;
    }
    return PKV_OK;
}

pkv_status pkv_seq_drop(pkv_seqs *seqs, pkv_seq seq, int32_t group, int64_t from, int64_t to,
                        pkv_error *err)
{
    int64_t place = 0;
    PKV_I_TRY(pkv_i_seqs_find(seqs, seq, &place, err));
    if (group < 0 || group >= seqs->n_groups) {
        return pkv_i_fail(err, PKV_E_INVALID, "there is no such group");
    }
    const pkv_i_seq *q = &pkv_i_seqs_seqs(seqs)[place];
    if (from < 0 || to < from || to > q->n_tokens) {
        return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_LIMIT, -1, to, q->n_tokens,
                             "the tokens to drop are not inside the sequence");
    }
    int64_t first = pkv_i_seqs_pages_of(seqs, from), end = to / seqs->page_size;
    return first < end ? free_entries(seqs, place, group, group + 1, first, end, err) : PKV_OK;
}

static void give_place_back(pkv_seqs *s, int64_t place)
{
    pkv_i_seq *q = &pkv_i_seqs_seqs(s)[place];
    /* A place is retired when its generations are used up. */
    if (q->generation < INT32_MAX) {
        q->generation++;
        q->next_free = s->first_free;
        s->first_free = (int32_t)place;
    } else {
        q->generation = 0;
    }
    q->n_tokens = q->n_pages = q->n_published = 0;
    s->n_open--;
}

pkv_status pkv_seq_close(pkv_seqs *seqs, pkv_seq seq, pkv_error *err)
{
    int64_t place = 0;
    PKV_I_TRY(pkv_i_seqs_find(seqs, seq, &place, err));
    PKV_I_TRY(free_entries(seqs, place, 0, seqs->n_groups, 0,
                           pkv_i_seqs_seqs(seqs)[place].n_pages, err));
    give_place_back(seqs, place);
    return PKV_OK;
}

pkv_status pkv_seqs_clear(pkv_seqs *seqs, pkv_error *err)
{
    PKV_I_TRY(pkv_i_seqs_check_state(seqs, false, err));
    const pkv_i_seq *all = pkv_i_seqs_seqs(seqs);
    for (int64_t i = 0; i < seqs->max_seqs; i++) {
        if (all[i].generation % 2 == 1) {
            PKV_I_TRY(pkv_seq_close(seqs, handle_of(seqs, i), err));
        }
    }
    return PKV_OK;
}

/* ---- sequences come --------------------------------------------------------------- */

static pkv_status check_room(const pkv_seqs *s, const pkv_seq *out, pkv_error *err)
{
    PKV_I_TRY(pkv_i_seqs_check_state(s, false, err));
    if (out == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "out is NULL");
    }
    if (s->first_free < 0) {
        return pkv_i_fail_at(err, PKV_E_NO_MEMORY, PKV_RULE_NONE, -1, s->n_open, s->max_seqs,
                             "max_seqs sequences are open");
    }
    return PKV_OK;
}

static int64_t take_place(pkv_seqs *s)
{
    int64_t    place = s->first_free;
    pkv_i_seq *q = &pkv_i_seqs_seqs(s)[place];
    s->first_free = q->next_free;
    s->n_open++;
    q->generation++;
    return place;
}

pkv_status pkv_seq_open(pkv_seqs *seqs, pkv_seq *out, pkv_error *err)
{
    PKV_I_TRY(check_room(seqs, out, err));
    *out = handle_of(seqs, take_place(seqs));
    return PKV_OK;
}

pkv_status pkv_i_seqs_share(pkv_pool *pool, const int32_t *row, int64_t n, int64_t *n_done,
                            pkv_error *err)
{
    *n_done = 0;
    for (int64_t at = 0; at < n;) {
        int64_t end = at;
        while (end < n && row[end] != SEQ_DROPPED) {
            end++;
        }
        PKV_I_TRY(pkv_pool_share(pool, row + at, end - at, err));
        *n_done = at = end;
        while (at < n && row[at] == SEQ_DROPPED) {
            at++;
        }
    }
    return PKV_OK;
}

/* The first n_pages entries of all rows have an owner more, or none has. */
static pkv_status share_rows(const pkv_seqs *s, int64_t place, int64_t n_pages, pkv_error *err)
{
    pkv_status status = PKV_OK;
    int64_t    g = 0, n_done = 0;
    for (; g < s->n_groups && status == PKV_OK; g++) {
        status = pkv_i_seqs_share(s->pool, pkv_i_seqs_row(s, place, g), n_pages, &n_done, err);
    }
    while (status != PKV_OK && g-- > 0) {
        const int32_t *row = pkv_i_seqs_row(s, place, g);
        for (int64_t i = n_done; i-- > 0;) { /* owners that were just made: this cannot fail */
            if (row[i] != SEQ_DROPPED) {
                (void)pkv_pool_free(s->pool, &row[i], 1, NULL);
            }
        }
        n_done = n_pages;
    }
    return status;
}

pkv_status pkv_seq_fork(pkv_seqs *seqs, pkv_seq from, int64_t n_tokens, pkv_seq *out,
                        pkv_error *err)
{
    int64_t place = 0;
    PKV_I_TRY(pkv_i_seqs_find(seqs, from, &place, err));
    const pkv_i_seq *q = &pkv_i_seqs_seqs(seqs)[place];
    if (n_tokens < 0 || n_tokens > q->n_tokens) {
        return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_LIMIT, -1, n_tokens, q->n_tokens,
                             "a fork has more tokens than its origin, or below 0");
    }
    PKV_I_TRY(check_room(seqs, out, err));
    /* The pool in a reservation of its own user's would not take owners back. */
    PKV_I_TRY(pkv_pool_free(seqs->pool, NULL, 0, err));
    const int64_t n_pages = pkv_i_seqs_pages_of(seqs, n_tokens);
    PKV_I_TRY(share_rows(seqs, place, n_pages, err));
    const int64_t whole = n_tokens / seqs->page_size, child = take_place(seqs);
    pkv_i_seq    *c = &pkv_i_seqs_seqs(seqs)[child];
    c->n_tokens = n_tokens;
    c->n_pages = n_pages;
    c->n_published = q->n_published < whole ? q->n_published : whole;
    for (int64_t g = 0; g < seqs->n_groups; g++) {
        memcpy(pkv_i_seqs_row(seqs, child, g), pkv_i_seqs_row(seqs, place, g),
               (size_t)n_pages * sizeof(int32_t));
    }
    *out = handle_of(seqs, child);
    return PKV_OK;
}

/* ---- what is known ---------------------------------------------------------------- */

pkv_status pkv_seq_info(const pkv_seqs *seqs, pkv_seq seq, pkv_seq_state *out, pkv_error *err)
{
    if (seqs == NULL || seqs->magic != SEQS_MAGIC) {
        return pkv_i_fail(err, PKV_E_INVALID, "there is no table of sequences");
    }
    PKV_I_TRY(pkv_i_check_struct(out, sizeof *out, err));
    int64_t place = pkv_i_seqs_place(seqs, seq);
    if (place < 0) {
        return pkv_i_seqs_fail_handle(-1, err);
    }
    const pkv_i_seq *q = &pkv_i_seqs_seqs(seqs)[place];
    out->n_tokens = q->n_tokens;
    out->n_reserved = q->n_prefix + q->n_reserved;
    out->n_pages = q->n_pages;
    out->n_published = q->n_published;
    out->row = place * seqs->n_groups;
    out->pages = pkv_i_seqs_row(seqs, place, 0);
    out->pages_stride = seqs->width;
    return PKV_OK;
}
