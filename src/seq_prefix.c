/* Sequences and the prefix index: what is written can be found. */
#include <string.h>

#include "prefix_state.h"
#include "seq_state.h"

static pkv_status check_publish(const pkv_seqs *s, const pkv_i_seq *q, const pkv_prefix *p,
                                const int32_t *tokens, int64_t n_tokens, pkv_error *err)
{
    if (p->pool != s->pool || p->config.page_size != s->page_size ||
        p->config.n_groups != s->n_groups || (n_tokens > 0 && tokens == NULL)) {
        return pkv_i_fail(err, PKV_E_INVALID,
                          "the index is of another pool, page size or number of groups, or tokens "
                          "is NULL");
    }
    if (n_tokens < 0 || n_tokens > q->n_tokens) {
        return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_LIMIT, -1, n_tokens, q->n_tokens,
                             "more tokens are published than the sequence has, or below 0");
    }
    return PKV_OK;
}

static int32_t page_behind(const int32_t *row, int64_t i)
{
    return i > 0 ? row[i - 1] : -1;
}

/* Where the pages that can be published end: behind a dropped one nobody could follow. */
static int64_t find_end(const int32_t *row, int64_t from, int64_t whole)
{
    int64_t end = from;
    while (end < whole && row[end] != SEQ_DROPPED && (end == 0 || row[end - 1] != SEQ_DROPPED)) {
        end++;
    }
    return end;
}

/* Has the last page that was published these tokens?  All of them would take too long. */
static pkv_status check_front(const pkv_seqs *s, int64_t place, int64_t n_published,
                              const pkv_prefix *p, const int32_t *tokens, int64_t n_tokens,
                              pkv_error *err)
{
    const int64_t S = s->page_size, last = n_published - 1;
    if (last < 0 || n_tokens < n_published * S) {
        return PKV_OK;
    }
    const int32_t page = pkv_i_seqs_row(s, place, 0)[last];
    if (page == SEQ_DROPPED || pkv_i_prefix_content(p, page)->id == 0 ||
        memcmp(pkv_i_prefix_content(p, page)->tokens, tokens + last * S,
               (size_t)S * sizeof *tokens) == 0) {
        return PKV_OK;
    }
    return pkv_i_fail_at(err, PKV_E_STATE, PKV_RULE_PAGE, -1, page, 0,
                         "the tokens are not those that were published before");
}

/* Page i of all groups that still have it. */
static pkv_status publish_page(pkv_seqs *s, int64_t place, int64_t i, pkv_prefix *p, uint64_t salt,
                               const int32_t *tokens, pkv_error *err)
{
    const int32_t behind = page_behind(pkv_i_seqs_row(s, place, 0), i);
    for (int32_t g = 0; g < s->n_groups; g++) {
        const int32_t *page = &pkv_i_seqs_row(s, place, g)[i];
        if (*page != SEQ_DROPPED) {
            PKV_I_TRY(pkv_prefix_publish(p, g, salt, behind, tokens, page, 1, err));
        }
    }
    return PKV_OK;
}

pkv_status pkv_seq_publish(pkv_seqs *seqs, pkv_seq seq, pkv_prefix *prefix, uint64_t salt,
                           const int32_t *tokens, int64_t n_tokens, pkv_error *err)
{
    int64_t place = 0;
    PKV_I_TRY(pkv_i_seqs_find(seqs, seq, &place, err));
    PKV_I_TRY(pkv_i_prefix_enter(prefix, err));
    pkv_i_seq *q = &pkv_i_seqs_seqs(seqs)[place];
    PKV_I_TRY(check_publish(seqs, q, prefix, tokens, n_tokens, err));
    PKV_I_TRY(pkv_pool_keep(seqs->pool, NULL, 0, 1, err)); /* no reservation is open */
    PKV_I_TRY(check_front(seqs, place, q->n_published, prefix, tokens, n_tokens, err));
    const int32_t *row = pkv_i_seqs_row(seqs, place, 0);
    const int64_t  S = seqs->page_size, from = q->n_published;
    const int64_t  end = find_end(row, from, n_tokens / S);
    /* All at once where that goes; else one by one, up to the one at fault. */
    if (seqs->n_groups == 1 && end > from &&
        pkv_prefix_publish(prefix, 0, salt, page_behind(row, from), tokens + from * S, row + from,
                           end - from, NULL) == PKV_OK) {
        q->n_published = end;
    }
    for (; q->n_published < end; q->n_published++) {
        const int64_t i = q->n_published;
        PKV_I_TRY(publish_page(seqs, place, i, prefix, salt, tokens + i * S, err));
    }
    return PKV_OK;
}
