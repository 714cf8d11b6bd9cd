/* A step's metadata: the plan, and what attention needs beside it, padded. */
#include "plan.h"

#include <string.h>

static pkv_status check_step(const pkv_batch *batch, const pkv_step_limits *limits,
                             const pkv_step *step, pkv_error *err)
{
    PKV_I_TRY(pkv_i_check_struct(limits, sizeof *limits, err));
    PKV_I_TRY(pkv_i_check_struct(step, sizeof *step, err));
    PKV_I_TRY(pkv_i_check_struct(batch, sizeof *batch, err));
    if (limits->max_num_reqs < 1 || limits->max_num_reqs > INT32_MAX ||
        limits->max_num_batched_tokens < 1 || limits->max_num_batched_tokens > INT32_MAX ||
        limits->bucket_gap_tokens < 0 || limits->num_slices_per_block < 1) {
        return pkv_i_fail(err, PKV_E_INVALID, "a limit of the step is below 1 or over int32");
    }
    if (step->block_tables == NULL || step->context_lens == NULL || step->query_start_loc == NULL ||
        step->num_seqs == NULL || step->block_tables_width < 1) {
        return pkv_i_fail(err, PKV_E_INVALID, "an array of the step is NULL or has no width");
    }
    int64_t entries = 0;
    if (PKV_I_MUL(limits->max_num_reqs, step->block_tables_width, &entries) ||
        entries > PTRDIFF_MAX / (int64_t)sizeof(int32_t)) {
        return pkv_i_fail(err, PKV_E_INVALID, "the block tables overflow");
    }
    if (batch->n_requests > limits->max_num_reqs) {
        return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_LIMIT, limits->max_num_reqs,
                             batch->n_requests, limits->max_num_reqs,
                             "more requests than max_num_reqs");
    }
    return PKV_OK;
}

/*
 * Before the plan: arrays that fit the limits overflow in a step that does not,
 * and the limit is the better reason.  Negative counts are left to the plan.
 */
static pkv_status check_tokens(const pkv_batch *batch, const pkv_step_limits *limits,
                               pkv_error *err)
{
    int64_t n_tokens = 0;
    for (int64_t r = 0; batch->scheduled != NULL && r < batch->n_requests; r++) {
        n_tokens += batch->scheduled[r] > 0 ? batch->scheduled[r] : 0;
        if (n_tokens > limits->max_num_batched_tokens) {
            return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_LIMIT, r, n_tokens,
                                 limits->max_num_batched_tokens,
                                 "more tokens than max_num_batched_tokens");
        }
    }
    return PKV_OK;
}

/* The shapes of this step, from its token count alone. */
static pkv_status size_step(const pkv_batch *batch, const pkv_step_limits *limits, int64_t n_tokens,
                            pkv_step *step, pkv_error *err)
{
    int64_t bucket =
        pkv_token_bucket(n_tokens, PKV_MIN_TOKEN_BUCKET, limits->max_num_batched_tokens,
                         limits->bucket_gap_tokens);
    int64_t padded = pkv_padded_num_slices(limits->max_num_reqs, bucket, batch->page_size);
    if (step->slices->capacity < padded) {
        return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_CAPACITY, -1, step->slices->capacity,
                             padded, "the capacity of the slices is below padded_num_slices");
    }
    step->n_tokens = n_tokens;
    step->token_bucket = bucket;
    step->padded_num_slices = padded;
    step->num_slices_per_block = limits->num_slices_per_block;
    return PKV_OK;
}

static pkv_status fill_block_tables(const pkv_batch *batch, int64_t max_num_reqs, pkv_step *step,
                                    pkv_error *err)
{
    const int64_t width = step->block_tables_width;
    for (int64_t r = 0; r < batch->n_requests; r++) {
        const int32_t *pages = NULL;
        int64_t        n_pages = 0;
        PKV_I_TRY(pkv_i_batch_request(batch, r, &pages, &n_pages, err));
        if (n_pages > width) {
            return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_TABLE, r, n_pages, width,
                                 "the request has more pages than block_tables_width");
        }
        int32_t *row = step->block_tables + r * width;
        if (n_pages > 0) {
            memcpy(row, pages, (size_t)n_pages * sizeof *row);
        }
        memset(row + n_pages, 0, (size_t)(width - n_pages) * sizeof *row);
    }
    int64_t unused = max_num_reqs - batch->n_requests;
    memset(step->block_tables + batch->n_requests * width, 0,
           (size_t)(unused * width) * sizeof *step->block_tables);
    return PKV_OK;
}

static void fill_lengths(const pkv_batch *batch, int64_t max_num_reqs, pkv_step *step)
{
    step->query_start_loc[0] = 0;
    for (int64_t r = 0; r < max_num_reqs; r++) {
        bool real = r < batch->n_requests;
        step->context_lens[r] = real ? batch->computed[r] + batch->scheduled[r] : 0;
        /* Upstream's filler behind the last request is 1. */
        step->query_start_loc[r + 1] = real ? step->query_start_loc[r] + batch->scheduled[r] : 1;
    }
}

static pkv_status check_lengths(const pkv_batch *batch, pkv_error *err)
{
    for (int64_t r = 0; r < batch->n_requests; r++) {
        int64_t held = (int64_t)batch->computed[r] + batch->scheduled[r];
        if (held > INT32_MAX) {
            return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_COMPUTED, r, held, INT32_MAX,
                                 "computed + scheduled exceeds int32");
        }
    }
    return PKV_OK;
}

pkv_status pkv_step_plan(const pkv_batch *batch, const pkv_step_limits *limits, pkv_step *step,
                         pkv_error *err)
{
    PKV_I_TRY(check_step(batch, limits, step, err));
    PKV_I_TRY(pkv_i_slices_writable(step->slices, err));
    PKV_I_TRY(check_tokens(batch, limits, err));
    int32_t    n_slices = 0;
    int64_t    n_tokens = 0;
    pkv_slices slices = *step->slices;
    slices.num_slices = &n_slices; /* the caller's count changes on success only */
    slices.struct_size = sizeof slices;
    pkv_step sized = *step;
    PKV_I_TRY(pkv_plan(batch, limits->max_slice_tokens, &slices, &n_tokens, err));
    PKV_I_TRY(check_lengths(batch, err));
    PKV_I_TRY(size_step(batch, limits, n_tokens, &sized, err));
    PKV_I_TRY(fill_block_tables(batch, limits->max_num_reqs, &sized, err));
    fill_lengths(batch, limits->max_num_reqs, &sized);
    size_t pad = (size_t)(sized.padded_num_slices - n_slices) * sizeof(int32_t);
    memset(slices.kv_cache_start + n_slices, 0, pad);
    memset(slices.new_kv_start + n_slices, 0, pad);
    memset(slices.slice_len + n_slices, 0, pad);
    *step->slices->num_slices = n_slices;
    *step->num_seqs = (int32_t)batch->n_requests;
    step->n_tokens = sized.n_tokens;
    step->token_bucket = sized.token_bucket;
    step->padded_num_slices = sized.padded_num_slices;
    step->num_slices_per_block = sized.num_slices_per_block;
    return PKV_OK;
}
