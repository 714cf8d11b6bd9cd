/* Upstream's sizing rules: plain arithmetic, 0 for arguments out of range. */
#include "layout.h"

enum { LANES = 128, WORD_BITS = 32, SCALAR_TABLE_BYTES = (1 << 20) / 2, MAX_SLICES_PER_BLOCK = 64 };

/* Sizes above this are refused, so that the sums and doublings below cannot overflow. */
static const int64_t MAX_SIZE = (int64_t)1 << 61;

static bool in_range(int64_t least, int64_t x)
{
    return x >= least && x <= MAX_SIZE;
}

static int64_t min_i64(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t ceil_div(int64_t a, int64_t b)
{
    return a / b + (a % b != 0 ? 1 : 0);
}

/* The least power of two >= x, for 1 <= x <= MAX_SIZE. */
static int64_t next_pow2(int64_t x)
{
    return x <= 1 ? 1 : (int64_t)1 << (64 - __builtin_clzll((uint64_t)x - 1));
}

static bool bucket_rule_ok(int64_t min_tokens, int64_t max_tokens, int64_t gap_tokens)
{
    return in_range(1, min_tokens) && (min_tokens & (min_tokens - 1)) == 0 &&
           in_range(1, max_tokens) && in_range(0, gap_tokens);
}

/*
 * Buckets are min, 2 min, 4 min, ... while no larger than the gap (without a gap:
 * always), and from there on a gap apart.  `doubled` is the last of the first kind.
 */
static int64_t doubled(int64_t min_tokens, int64_t n_tokens, int64_t gap_tokens)
{
    int64_t bucket = min_tokens;
    while (bucket < n_tokens && (gap_tokens == 0 || bucket * 2 <= gap_tokens)) {
        bucket *= 2;
    }
    return bucket;
}

/* How many gaps lie between the last doubled bucket and the first one >= n_tokens. */
static int64_t gaps(int64_t last_doubled, int64_t n_tokens, int64_t gap_tokens)
{
    return n_tokens <= last_doubled ? 0 : ceil_div(n_tokens - last_doubled, gap_tokens);
}

int64_t pkv_token_buckets(int64_t min_tokens, int64_t max_tokens, int64_t gap_tokens, int64_t *out,
                          int64_t cap)
{
    if (!bucket_rule_ok(min_tokens, max_tokens, gap_tokens) || cap < 0 ||
        (out == NULL && cap > 0)) {
        return 0;
    }
    const int64_t last = doubled(min_tokens, max_tokens, gap_tokens);
    const int64_t n_doubled = 1 + __builtin_ctzll((uint64_t)(last / min_tokens));
    const int64_t n = n_doubled + gaps(last, max_tokens, gap_tokens);
    for (int64_t i = 0; i < n && i < cap; i++) {
        out[i] = i < n_doubled ? min_tokens << i : last + (i + 1 - n_doubled) * gap_tokens;
    }
    return n;
}

int64_t pkv_token_bucket(int64_t n_tokens, int64_t min_tokens, int64_t max_tokens,
                         int64_t gap_tokens)
{
    if (!bucket_rule_ok(min_tokens, max_tokens, gap_tokens) || n_tokens < 0) {
        return 0;
    }
    const int64_t last = doubled(min_tokens, max_tokens, gap_tokens);
    const int64_t largest = last + gaps(last, max_tokens, gap_tokens) * gap_tokens;
    if (n_tokens > largest) {
        return 0;
    }
    const int64_t below = doubled(min_tokens, n_tokens, gap_tokens);
    return below + gaps(below, n_tokens, gap_tokens) * gap_tokens;
}

int64_t pkv_request_buckets(int64_t min_num_reqs, int64_t max_num_reqs, int64_t *out, int64_t cap)
{
    if (!in_range(1, min_num_reqs) || !in_range(1, max_num_reqs) || cap < 0 ||
        (out == NULL && cap > 0)) {
        return 0;
    }
    int64_t n = 0;
    for (int64_t bucket = min_num_reqs;; bucket *= 2) {
        int64_t capped = min_i64(bucket, max_num_reqs);
        if (n < cap) {
            out[n] = capped;
        }
        n++;
        if (capped == max_num_reqs) {
            return n;
        }
    }
}

int64_t pkv_padded_num_reqs(int64_t n_requests, int64_t limit)
{
    if (!in_range(0, n_requests) || !in_range(1, limit)) {
        return 0;
    }
    return min_i64(limit, n_requests <= 8 ? 8 : next_pow2(n_requests));
}

int64_t pkv_padded_num_slices(int64_t max_num_reqs, int64_t token_bucket, int64_t page_size)
{
    if (!in_range(1, max_num_reqs) || !in_range(1, token_bucket) || !in_range(1, page_size)) {
        return 0;
    }
    return min_i64(2 * max_num_reqs + token_bucket / page_size, token_bucket);
}

int64_t pkv_scratch_page_bytes(int64_t page_size, int64_t n_heads, int64_t head_dim,
                               pkv_dtype dtype)
{
    int64_t bits = pkv_dtype_bits(dtype);
    if (bits == 0 || !in_range(1, page_size) || !in_range(1, n_heads) || !in_range(1, head_dim)) {
        return 0;
    }
    int64_t packing = WORD_BITS / bits;
    int64_t heads = ceil_div(2 * n_heads, packing) * packing;
    int64_t lanes = ceil_div(head_dim, LANES) * LANES;
    int64_t total = 0;
    if (PKV_I_MUL(page_size, heads, &total) || PKV_I_MUL(total, lanes, &total) ||
        PKV_I_MUL(total, bits, &total)) {
        return 0;
    }
    return total / 8;
}

int32_t pkv_num_slices_per_block(int64_t page_bytes, int64_t budget_bytes)
{
    if (page_bytes < 1 || budget_bytes < page_bytes) {
        return 0;
    }
    int64_t fit = min_i64(budget_bytes / page_bytes, MAX_SLICES_PER_BLOCK);
    return (int32_t)((int64_t)1 << (63 - __builtin_clzll((uint64_t)fit)));
}

int64_t pkv_page_size(int64_t max_model_len)
{
    if (!in_range(1, max_model_len)) {
        return 0;
    }
    if (max_model_len > 8192) {
        return 16;
    }
    int64_t size = next_pow2(max_model_len) / 16;
    return size < 16 ? 16 : min_i64(size, 256);
}

int64_t pkv_min_page_size(int64_t max_num_reqs, int64_t max_model_len)
{
    if (!in_range(1, max_num_reqs) || !in_range(1, max_model_len)) {
        return 0;
    }
    int64_t pages = SCALAR_TABLE_BYTES / 4 / max_num_reqs;
    return pages < 1 ? 0 : next_pow2(ceil_div(max_model_len, pages));
}

int64_t pkv_max_num_reqs(int64_t max_model_len, int64_t page_size)
{
    if (!in_range(1, max_model_len) || !in_range(1, page_size)) {
        return 0;
    }
    return SCALAR_TABLE_BYTES / ceil_div(max_model_len, page_size) / 4;
}
