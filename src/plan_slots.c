/* Slices from a slot for every token, 32 or 64 bits wide. */
#include "plan.h"

/* Where runs must end and what a slot may be. */
typedef struct run_rules {
    int64_t        page_size; /* runs end at page ends if exact */
    bool           exact;
    int64_t        max_len;
    int64_t        n_slots;   /* first slot that is out of bounds */
    const int32_t *starts;    /* query_start_loc or NULL */
    int64_t        n_requests;
} run_rules;

static pkv_status check_rules(const void *slots, int64_t n_tokens, int64_t page_size,
                              int64_t n_slots, int64_t max_slice_tokens,
                              const int32_t *query_start_loc, int64_t n_requests,
                              run_rules *rules, pkv_error *err)
{
    if (slots == NULL && n_tokens > 0) {
        return pkv_i_fail(err, PKV_E_INVALID, "slots is NULL");
    }
    if (n_tokens < 0 || n_tokens > INT32_MAX || page_size < 1 || n_slots < 0 ||
        max_slice_tokens < 0 || n_requests < 0) {
        return pkv_i_fail(err, PKV_E_INVALID, "a size is negative or too large");
    }
    int64_t bound = (int64_t)INT32_MAX + 1;
    *rules = (run_rules){.page_size = page_size, .exact = max_slice_tokens == page_size,
                         .max_len = max_slice_tokens == 0 ? INT32_MAX : max_slice_tokens,
                         .n_slots = n_slots > 0 && n_slots < bound ? n_slots : bound,
                         .starts = query_start_loc, .n_requests = n_requests};
    for (int64_t r = 0; query_start_loc != NULL && r <= n_requests; r++) {
        int64_t least = r == 0 ? 0 : query_start_loc[r - 1];
        if (query_start_loc[r] < least || query_start_loc[r] > n_tokens) {
            return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_LIMIT, r, query_start_loc[r], n_tokens,
                                 "query_start_loc does not rise within 0..n_tokens");
        }
    }
    return PKV_OK;
}

/* The slot of token t, in either width. */
static inline int64_t slot_at(const int32_t *i32, const int64_t *i64, int64_t t)
{
    return i32 != NULL ? i32[t] : i64[t];
}

/* Always inlined, so that each width gets a loop of its own. */
static inline __attribute__((always_inline)) pkv_status
plan_slots(const int32_t *i32, const int64_t *i64, int64_t n_tokens, const run_rules *rules,
           pkv_slices *out, pkv_error *err)
{
    int64_t n = 0, next = -2, request = 0;
    for (int64_t t = 0; t < n_tokens; t++) {
        const int64_t slot = slot_at(i32, i64, t);
        if (slot < -1 || slot >= rules->n_slots) {
            return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_SLOT, t, slot, rules->n_slots - 1,
                                 "a slot is below -1, outside the cache or over int32");
        }
        bool join = slot == next && out->slice_len[n - 1] < rules->max_len &&
                    !(rules->exact && slot % rules->page_size == 0);
        /* A request starts here: no slice crosses it. */
        while (rules->starts != NULL && request <= rules->n_requests &&
               rules->starts[request] <= t) {
            join = join && rules->starts[request] != t;
            request++;
        }
        next = slot >= 0 ? slot + 1 : -2;
        if (join) {
            out->slice_len[n - 1]++;
        } else if (slot >= 0) {
            if (n == out->capacity) {
                return pkv_i_fail_at(err, PKV_E_RANGE, PKV_RULE_CAPACITY, t, n + 1, out->capacity,
                                     "the slices do not fit their arrays");
            }
            out->kv_cache_start[n] = (int32_t)slot;
            out->new_kv_start[n] = (int32_t)t;
            out->slice_len[n++] = 1;
        }
    }
    *out->num_slices = (int32_t)n;
    return PKV_OK;
}

pkv_status pkv_plan_slots_i32(const int32_t *slots, int64_t n_tokens, int64_t page_size,
                              int64_t n_slots, int64_t max_slice_tokens,
                              const int32_t *query_start_loc, int64_t n_requests, pkv_slices *out,
                              pkv_error *err)
{
    run_rules rules;
    PKV_I_TRY(check_rules(slots, n_tokens, page_size, n_slots, max_slice_tokens, query_start_loc,
                          n_requests, &rules, err));
    PKV_I_TRY(pkv_i_slices_writable(out, err));
    return plan_slots(slots, NULL, n_tokens, &rules, out, err);
}

pkv_status pkv_plan_slots_i64(const int64_t *slots, int64_t n_tokens, int64_t page_size,
                              int64_t n_slots, int64_t max_slice_tokens,
                              const int32_t *query_start_loc, int64_t n_requests, pkv_slices *out,
                              pkv_error *err)
{
    run_rules rules;
    PKV_I_TRY(check_rules(slots, n_tokens, page_size, n_slots, max_slice_tokens, query_start_loc,
                          n_requests, &rules, err));
    PKV_I_TRY(pkv_i_slices_writable(out, err));
    return plan_slots(NULL, slots, n_tokens, &rules, out, err);
}
