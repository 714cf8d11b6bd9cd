/* Plans made on a device. */
#include "../slices.h"
#include "device.h"

/* The caller's rules in a job, and where it writes to. */
static pkv_status begin_job(int64_t page_size, int64_t max_slice_tokens, const pkv_slices *out,
                            int32_t *status_word, pkv_i_plan_job *job, pkv_error *err)
{
    PKV_I_TRY(pkv_i_slices_writable(out, err));
    if (page_size < 1 || page_size > INT32_MAX || max_slice_tokens < 0) {
        return pkv_i_fail(err, PKV_E_INVALID,
                          "page_size is not in 1..2^31-1, or max_slice_tokens negative");
    }
    if (max_slice_tokens != 0 && max_slice_tokens != page_size) {
        return pkv_i_fail(err, PKV_E_UNSUPPORTED,
                          "a device plans exact or merged slices; no other bound than these");
    }
    *job = (pkv_i_plan_job){.page_size = page_size, .exact = max_slice_tokens == page_size,
                            .cache_start = out->kv_cache_start, .rows_start = out->new_kv_start,
                            .len = out->slice_len, .num_slices = out->num_slices,
                            .capacity = out->capacity, .status = status_word};
    return PKV_OK;
}

static pkv_status launch(pkv_cuda *cuda, int kernel, const pkv_i_plan_job *job, pkv_error *err,
                         pkv_cuda_stream stream)
{
    pkv_i_cuda_call call;
    PKV_I_TRY(pkv_i_cuda_begin(&call, cuda, 0, stream, err));
    pkv_status status = pkv_i_cuda_launch(&call, kernel, job, true, err);
    pkv_i_cuda_end(&call);
    return status;
}

static pkv_status check_batch(const pkv_cuda_batch *b, pkv_error *err)
{
    PKV_I_TRY(pkv_i_check_struct(b, sizeof *b, err));
    if (b->num_seqs == NULL || b->context_lens == NULL || b->query_start_loc == NULL ||
        b->block_table == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "an array of the batch is NULL");
    }
    int64_t entries = 0;
    if (b->max_num_reqs < 0 || b->n_pages < 0 || b->block_table_width < 1 ||
        b->block_table_stride < b->block_table_width ||
        PKV_I_MUL(b->max_num_reqs, b->block_table_stride, &entries) ||
        entries > PTRDIFF_MAX / (int64_t)sizeof(int32_t)) {
        return pkv_i_fail(err, PKV_E_INVALID,
                          "a size of the batch is negative, too small or overflows");
    }
    return PKV_OK;
}

pkv_status pkv_cuda_plan(pkv_cuda *cuda, const pkv_cuda_batch *batch, int64_t max_slice_tokens,
                         pkv_slices *out, int32_t *status_word, pkv_error *err,
                         pkv_cuda_stream stream)
{
    pkv_i_plan_job job;
    PKV_I_TRY(check_batch(batch, err));
    PKV_I_TRY(begin_job(batch->page_size, max_slice_tokens, out, status_word, &job, err));
    const int64_t by_slots = ((int64_t)INT32_MAX + 1) / batch->page_size;
    job.context_lens = batch->context_lens;
    job.query_start_loc = batch->query_start_loc;
    job.num_seqs = batch->num_seqs;
    job.max_num_reqs = batch->max_num_reqs;
    job.block_table = batch->block_table;
    job.table_stride = batch->block_table_stride;
    job.table_width = batch->block_table_width;
    job.n_pages = batch->n_pages > 0 && batch->n_pages < by_slots ? batch->n_pages : by_slots;
    return launch(cuda, PKV_I_CUDA_plan_pages, &job, err, stream);
}

static pkv_status check_slots(const pkv_cuda_slots *s, pkv_error *err)
{
    PKV_I_TRY(pkv_i_check_struct(s, sizeof *s, err));
    if ((s->slots == NULL && s->n_tokens > 0) ||
        (s->query_start_loc == NULL) != (s->num_seqs == NULL)) {
        return pkv_i_fail(err, PKV_E_INVALID,
                          "slots is NULL, or one of query_start_loc and num_seqs");
    }
    if (s->n_tokens < 0 || s->n_tokens > INT32_MAX || s->n_slots < 0 || s->max_num_reqs < 0 ||
        (s->slot_bits != 32 && s->slot_bits != 64)) {
        return pkv_i_fail(err, PKV_E_INVALID,
                          "a size is negative or too large, or slot_bits neither 32 nor 64");
    }
    return PKV_OK;
}

pkv_status pkv_cuda_plan_slots(pkv_cuda *cuda, const pkv_cuda_slots *slots,
                               int64_t max_slice_tokens, pkv_slices *out, int32_t *status_word,
                               pkv_error *err, pkv_cuda_stream stream)
{
    pkv_i_plan_job job;
    PKV_I_TRY(check_slots(slots, err));
    PKV_I_TRY(begin_job(slots->page_size, max_slice_tokens, out, status_word, &job, err));
    const int64_t bound = (int64_t)INT32_MAX + 1;
    job.slots32 = slots->slot_bits == 32 ? slots->slots : NULL;
    job.slots64 = slots->slot_bits == 64 ? slots->slots : NULL;
    job.n_tokens = slots->n_tokens;
    job.num_tokens = slots->num_tokens;
    job.query_start_loc = slots->query_start_loc;
    job.num_seqs = slots->num_seqs;
    job.max_num_reqs = slots->max_num_reqs;
    job.n_slots = slots->n_slots > 0 && slots->n_slots < bound ? slots->n_slots : bound;
    return launch(cuda, PKV_I_CUDA_plan_slots, &job, err, stream);
}
