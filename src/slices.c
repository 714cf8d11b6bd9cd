/* The checks of slices: the default ones, and upstream's validator. */
#include "slices.h"

/* What a slice is checked against; sizes in tokens. */
typedef struct bounds {
    int64_t n_tokens;
    int64_t n_slots;
    int64_t page_size;
} bounds;

pkv_status pkv_slices_from_array(pkv_slices *out, size_t struct_size, int32_t *array,
                                 int64_t capacity, int32_t *num_slices)
{
    PKV_I_TRY(pkv_i_check_out(out, struct_size, sizeof *out));
    if (num_slices == NULL || capacity < 0 || (array == NULL && capacity > 0) ||
        (uint64_t)capacity > PTRDIFF_MAX / (3 * sizeof *array)) {
        return PKV_E_INVALID;
    }
    bool any = capacity > 0;
    *out = (pkv_slices){.struct_size = struct_size, .capacity = capacity,
                        .kv_cache_start = array,
                        .new_kv_start = any ? array + capacity : array,
                        .slice_len = any ? array + 2 * capacity : array,
                        .num_slices = num_slices};
    pkv_i_clear_tail(out, struct_size, sizeof *out);
    return PKV_OK;
}

pkv_status pkv_i_slices_writable(const pkv_slices *slices, pkv_error *err)
{
    PKV_I_TRY(pkv_i_check_struct(slices, sizeof *slices, err));
    if (slices->num_slices == NULL) {
        return pkv_i_fail(err, PKV_E_INVALID, "num_slices is NULL");
    }
    if (slices->capacity < 0) {
        return pkv_i_fail(err, PKV_E_INVALID, "the capacity of the slices is negative");
    }
    if (slices->capacity > 0 && (slices->kv_cache_start == NULL || slices->new_kv_start == NULL ||
                                 slices->slice_len == NULL)) {
        return pkv_i_fail(err, PKV_E_INVALID, "a row of the slices is NULL");
    }
    return PKV_OK;
}

/* Names the first rule that slice i breaks; PKV_OK if it breaks none. */
static pkv_status check_slice(const pkv_slices *s, int64_t i, const bounds *b, bool strict,
                              pkv_error *err)
{
    const int64_t dst = s->kv_cache_start[i], src = s->new_kv_start[i], len = s->slice_len[i];
    if (src < 0) {
        return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_NEW_KV_START, i, src, 0,
                             "new_kv_start is negative");
    }
    if (dst < 0) {
        return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_KV_CACHE_START, i, dst, 0,
                             "kv_cache_start is negative");
    }
    if (len < 0) {
        return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_SLICE_LEN, i, len, 0,
                             "slice_len is negative");
    }
    if (strict && (len == 0 || len > b->page_size)) {
        return pkv_i_fail_at(err, PKV_E_STRICT, PKV_RULE_SLICE_LEN, i, len, b->page_size,
                             "slice_len is not within 1..page_size");
    }
    if (src + len > b->n_tokens) {
        return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_NEW_KV_END, i, src + len, b->n_tokens,
                             "new_kv_start + slice_len is past the new K/V");
    }
    if (dst + len > b->n_slots) {
        return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_KV_CACHE_END, i, dst + len, b->n_slots,
                             "kv_cache_start + slice_len is past the cache");
    }
    if (strict && dst / b->page_size != (dst + len - 1) / b->page_size) {
        return pkv_i_fail_at(err, PKV_E_STRICT, PKV_RULE_SAME_PAGE, i, dst + len - 1,
                             dst - dst % b->page_size + b->page_size - 1,
                             "the slice leaves its page");
    }
    return PKV_OK;
}

/*
 * All default rules over all n slices at once: any broken one leaves a sign bit
 * in `bad`.  Which one it was is found in a second, slower pass.
 */
static pkv_status check_default(const pkv_slices *s, int64_t n, const bounds *b, int64_t *n_tokens,
                                pkv_error *err)
{
    int64_t bad = 0, sum = 0;
    for (int64_t i = 0; i < n; i++) {
        const int64_t dst = s->kv_cache_start[i], src = s->new_kv_start[i], len = s->slice_len[i];
        bad |= dst | src | len | (b->n_tokens - src - len) | (b->n_slots - dst - len);
        sum += len;
    }
    *n_tokens = sum;
    for (int64_t i = 0; bad < 0 && i < n; i++) {
        PKV_I_TRY(check_slice(s, i, b, false, err));
    }
    return PKV_OK;
}

/* ---- strict: order without memory ------------------------------------------ */

enum { BATCH = 256 };

/* A range of rows or slots, ordered by start and then by index. */
typedef struct range {
    int64_t start, len, index;
} range;

static bool range_before(const range *a, const range *b)
{
    return a->start != b->start ? a->start < b->start : a->index < b->index;
}

/* Restores the heap (latest range on top) below position i. */
static void sift_down(range *heap, int n, int i)
{
    for (;;) {
        int child = 2 * i + 1;
        if (child >= n) {
            return;
        }
        if (child + 1 < n && range_before(&heap[child], &heap[child + 1])) {
            child++;
        }
        if (!range_before(&heap[i], &heap[child])) {
            return;
        }
        range moved = heap[i];
        heap[i] = heap[child];
        heap[child] = moved;
        i = child;
    }
}

/*
 * The next ranges in order: the BATCH earliest ones that come after *last (all,
 * if last is NULL), sorted.  A caller that walks n slices in order needs n/BATCH
 * passes and no memory but this array.
 */
static int next_ranges(const int32_t *starts, const int32_t *lens, int64_t n, const range *last,
                       range out[BATCH])
{
    int count = 0;
    for (int64_t i = 0; i < n; i++) {
        range r = {starts[i], lens[i], i};
        if (last != NULL && !range_before(last, &r)) {
            continue;
        }
        if (count < BATCH) {
            out[count++] = r;
            for (int at = count / 2; count == BATCH && at-- > 0;) {
                sift_down(out, count, at);
            }
        } else if (range_before(&r, &out[0])) {
            out[0] = r;
            sift_down(out, count, 0);
        }
    }
    for (int at = count / 2; at-- > 0;) {
        sift_down(out, count, at);
    }
    for (int end = count - 1; end > 0; end--) {
        range top = out[0];
        out[0] = out[end];
        out[end] = top;
        sift_down(out, end, 0);
    }
    return count;
}

/* Plans are mostly in order already: then there is nothing to sort. */
static bool in_order(const int32_t *starts, int64_t n)
{
    bool sorted = true;
    for (int64_t i = 1; i < n; i++) {
        sorted = sorted && starts[i - 1] <= starts[i];
    }
    return sorted;
}

/* The batch of ranges behind *last, where they lie in order. */
static int next_in_order(const int32_t *starts, const int32_t *lens, int64_t n, int64_t done,
                         range out[BATCH])
{
    int count = 0;
    for (; count < BATCH && done + count < n; count++) {
        out[count] = (range){starts[done + count], lens[done + count], done + count};
    }
    return count;
}

/*
 * Walks the ranges in order.  `gaps`: each must start where the last one ended;
 * else each must start at or behind it.
 */
static pkv_status check_order(const int32_t *starts, const int32_t *lens, int64_t n, bool gaps,
                              pkv_error *err)
{
    range      sorted[BATCH], last = {0, 0, -1};
    const bool ordered = in_order(starts, n);
    for (int64_t done = 0; done < n;) {
        int count = ordered ? next_in_order(starts, lens, n, done, sorted)
                            : next_ranges(starts, lens, n, done == 0 ? NULL : &last, sorted);
        for (int i = 0; i < count; i++) {
            int64_t end = last.start + last.len;
            if (last.index >= 0 && gaps && sorted[i].start != end) {
                return pkv_i_fail_at(err, PKV_E_STRICT, PKV_RULE_NEW_KV_GAP, sorted[i].index,
                                     sorted[i].start, end,
                                     "new_kv ranges do not join: start is not the last one's end");
            }
            if (last.index >= 0 && !gaps && sorted[i].start < end) {
                return pkv_i_fail_at(err, PKV_E_STRICT, PKV_RULE_KV_CACHE_OVERLAP,
                                     sorted[i].index, sorted[i].start, end,
                                     "cache ranges overlap: start is before the last one's end");
            }
            last = sorted[i];
        }
        done += count;
    }
    return PKV_OK;
}

static pkv_status check_strict(const pkv_slices *s, int64_t n, const bounds *b, int64_t *n_tokens,
                               pkv_error *err)
{
    int64_t sum = 0;
    for (int64_t i = 0; i < n; i++) {
        PKV_I_TRY(check_slice(s, i, b, true, err));
        sum += s->slice_len[i];
    }
    PKV_I_TRY(check_order(s->new_kv_start, s->slice_len, n, true, err));
    PKV_I_TRY(check_order(s->kv_cache_start, s->slice_len, n, false, err));
    *n_tokens = sum;
    return PKV_OK;
}

pkv_status pkv_slices_check(const pkv_slices *slices, int64_t n_tokens, int64_t n_slots,
                            int64_t page_size, int32_t strict, int64_t *n_tokens_out,
                            pkv_error *err)
{
    PKV_I_TRY(pkv_i_slices_writable(slices, err));
    if (n_tokens < 0 || n_slots < 0 || (strict != 0 && page_size < 1)) {
        return pkv_i_fail(err, PKV_E_INVALID, "a size is negative, or page_size is below 1");
    }
    const int64_t n = *slices->num_slices;
    if (n < 0 || n > slices->capacity) {
        return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_COUNT, -1, n, slices->capacity,
                             "num_slices is not within 0..N");
    }
    const bounds b = {n_tokens, n_slots, page_size};
    int64_t      sum = 0;
    PKV_I_TRY(strict != 0 ? check_strict(slices, n, &b, &sum, err)
                          : check_default(slices, n, &b, &sum, err));
    if (n_tokens_out != NULL) {
        *n_tokens_out = sum;
    }
    return PKV_OK;
}
