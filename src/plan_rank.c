/* The planner where ranks share every sequence: each has every n-th token. */
#include "plan.h"

/* Tokens g in [from, to) with g mod n_ranks == rank: the first one. */
static int64_t first_token(int64_t from, int32_t rank, int32_t n_ranks)
{
    int64_t past = (from - rank) % n_ranks;
    past += past < 0 ? n_ranks : 0;
    return past == 0 ? from : from + n_ranks - past;
}

/* Failures come in the order of pkv_plan(). */
static pkv_status check_request(const pkv_batch *b, int64_t r, int32_t rank, int32_t n_ranks,
                                int64_t row, const int32_t **pages, pkv_error *err)
{
    int64_t n_pages = 0;
    PKV_I_TRY(pkv_i_batch_table(b, r, pages, &n_pages, err));
    if (row + b->scheduled[r] > INT32_MAX) {
        return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_SCHEDULED, r, row + b->scheduled[r],
                             INT32_MAX, "the tokens of the step exceed int32");
    }
    const int64_t from = b->computed[r], to = from + b->scheduled[r];
    const int64_t n_held = to > rank ? (to - rank - 1) / n_ranks + 1 : 0;
    const int64_t n_touched = (n_held + b->page_size - 1) / b->page_size;
    return first_token(from, rank, n_ranks) < to && n_touched > n_pages
               ? pkv_i_fail_table(r, n_pages, n_touched, err)
               : PKV_OK;
}

static pkv_status plan_request(const pkv_batch *b, int64_t r, int32_t rank, int32_t n_ranks,
                               int64_t row, pkv_slices *out, int64_t *n, pkv_error *err)
{
    const int64_t  from = b->computed[r], to = from + b->scheduled[r], S = b->page_size;
    const int64_t  by_slots = ((int64_t)INT32_MAX + 1) / S;
    const int64_t  max_page = (b->n_pages > 0 && b->n_pages < by_slots ? b->n_pages : by_slots) - 1;
    const int32_t *pages = NULL;
    PKV_I_TRY(check_request(b, r, rank, n_ranks, row, &pages, err));
    for (int64_t g = first_token(from, rank, n_ranks); g < to; g += n_ranks) {
        const int64_t local = g / n_ranks;
        const int32_t page = pages[local / S];
        if (page < 0 || page > max_page) {
            return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_PAGE, r, page, max_page,
                                 "a page is outside the cache, or its slots exceed int32");
        }
        if (*n == out->capacity) {
            return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_CAPACITY, r, *n + 1, out->capacity,
                                 "the slices do not fit their arrays");
        }
        out->kv_cache_start[*n] = (int32_t)(page * S + local % S);
        out->new_kv_start[*n] = (int32_t)(row + g - from);
        out->slice_len[*n] = 1;
        ++*n;
    }
    return PKV_OK;
}

pkv_status pkv_plan_rank(const pkv_batch *batch, int32_t rank, int32_t n_ranks, pkv_slices *out,
                         int64_t *n_tokens_out, pkv_error *err)
{
    if (n_ranks < 1 || rank < 0 || rank >= n_ranks) {
        return pkv_i_fail(err, PKV_E_INVALID, "rank is not in 0..n_ranks-1");
    }
    PKV_I_TRY(pkv_i_check_batch(batch, true, err));
    if (n_ranks == 1) {
        return pkv_plan(batch, batch->page_size, out, n_tokens_out, err);
    }
    PKV_I_TRY(pkv_i_slices_writable(out, err));
    int64_t row = 0, n = 0;
    for (int64_t r = 0; r < batch->n_requests; r++) {
        PKV_I_TRY(plan_request(batch, r, rank, n_ranks, row, out, &n, err));
        row += batch->scheduled[r];
    }
    *out->num_slices = (int32_t)n;
    if (n_tokens_out != NULL) {
        *n_tokens_out = n;
    }
    return PKV_OK;
}
