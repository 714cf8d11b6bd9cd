/* Slot mappings in both widths, against the tests' plain planner. */
#include "fuzz_plan.h"

#include <stdlib.h>

#include "../tests/model.h"

enum { MAX_TOKENS = 48 };

/* A mapping, and what is asked of it. */
typedef struct mapping {
    int64_t *slots; /* [n_tokens], as i32 too where they fit */
    int32_t *slots32;
    bool     fit32;
    int64_t  n_tokens;
    int64_t  page_size;
    int64_t  n_slots;
    int64_t  max_slice_tokens;
    int32_t *starts; /* [n_requests + 1] or NULL */
    int64_t  n_requests;
    int64_t  capacity;
} mapping;

/* ---- drawing ------------------------------------------------------------- */

static int64_t take_slot(input *in, int64_t before)
{
    switch (take_range(in, 0, 7)) {
    case 0:
        return -1;
    case 1:
        return take_range(in, 0, 60);
    case 2:
        return take_number(in);
    default:
        return before < INT64_MAX ? before + 1 : 0;
    }
}

static void take_mapping(input *in, mapping *m)
{
    m->n_tokens = take_range(in, 0, MAX_TOKENS);
    m->page_size = take_chance(in, 16) ? take_number(in) : take_range(in, 1, 12);
    m->n_slots = take_chance(in, 4) ? take_number(in) : 0;
    int64_t bounds[] = {0, m->page_size, take_range(in, 0, 20), take_number(in)};
    m->max_slice_tokens = bounds[take_range(in, 0, 3)];
    m->capacity = take_chance(in, 2) ? take_range(in, 0, 9) : m->n_tokens;
    m->slots = exactly((size_t)m->n_tokens * sizeof *m->slots);
    m->slots32 = exactly((size_t)m->n_tokens * sizeof *m->slots32);
    m->fit32 = true;
    for (int64_t t = 0; t < m->n_tokens; t++) {
        m->slots[t] = take_slot(in, t > 0 ? m->slots[t - 1] : -1);
        m->slots32[t] = (int32_t)(uint32_t)(uint64_t)m->slots[t];
        m->fit32 = m->fit32 && m->slots32[t] == m->slots[t];
    }
    m->starts = NULL;
    m->n_requests = take_range(in, 0, 5);
    if (take_chance(in, 2)) {
        m->starts = exactly((size_t)(m->n_requests + 1) * sizeof *m->starts);
        for (int64_t r = 0; r <= m->n_requests; r++) {
            int32_t last = r > 0 ? m->starts[r - 1] : 0;
            m->starts[r] = take_chance(in, 16) ? take_int32(in)
                                               : (int32_t)take_range(in, last, last + 9L);
        }
    }
}

static void free_mapping(mapping *m)
{
    free(m->slots);
    free(m->slots32);
    free(m->starts);
}

/* ---- what is right ------------------------------------------------------- */

/* The first entry of query_start_loc that is wrong, or -1. */
static int64_t bad_start(const mapping *m)
{
    for (int64_t r = 0; m->starts != NULL && r <= m->n_requests; r++) {
        if (m->starts[r] < (r > 0 ? m->starts[r - 1] : 0) || m->starts[r] > m->n_tokens) {
            return r;
        }
    }
    return -1;
}

static int64_t first_bad_slot(const mapping *m)
{
    int64_t t = 0;
    while (t < m->n_tokens && m->slots[t] >= -1 && m->slots[t] <= INT32_MAX &&
           (m->n_slots == 0 || m->slots[t] < m->n_slots)) {
        t++;
    }
    return t;
}

/* What the call must answer: *index names the token or entry of a range error. */
static pkv_status judge(const mapping *m, slice_list *expected, int32_t *rule, int64_t *index)
{
    if (m->page_size < 1 || m->n_slots < 0 || m->max_slice_tokens < 0) {
        return PKV_E_INVALID;
    }
    *rule = PKV_RULE_LIMIT;
    *index = bad_start(m);
    if (*index >= 0) {
        return PKV_E_RANGE;
    }
    *rule = PKV_RULE_SLOT;
    *index = first_bad_slot(m);
    model_plan_slots(m->slots, *index, m->page_size, m->max_slice_tokens, m->starts,
                     m->n_requests, expected);
    if (expected->n > m->capacity) {
        *rule = PKV_RULE_CAPACITY;
        *index = expected->view.new_kv_start[m->capacity];
    }
    return *index < m->n_tokens ? PKV_E_RANGE : PKV_OK;
}

static void check_width(const mapping *m, bool wide)
{
    columns    out;
    slice_list expected;
    pkv_error  err = {0};
    columns_init(&out, m->capacity);
    slice_list_init(&expected, m->n_tokens);
    pkv_status status =
        wide ? pkv_plan_slots_i64(m->slots, m->n_tokens, m->page_size, m->n_slots,
                                  m->max_slice_tokens, m->starts, m->n_requests, &out.view, &err)
             : pkv_plan_slots_i32(m->slots32, m->n_tokens, m->page_size, m->n_slots,
                                  m->max_slice_tokens, m->starts, m->n_requests, &out.view, &err);
    int32_t rule = PKV_RULE_NONE;
    int64_t index = -1;
    assert_int_equal(status, judge(m, &expected, &rule, &index));
    if (status == PKV_OK) {
        triple slices[MAX_TOKENS];
        for (int32_t i = 0; i < expected.n; i++) {
            slices[i] = (triple){expected.view.kv_cache_start[i], expected.view.new_kv_start[i],
                                 expected.view.slice_len[i]};
        }
        columns_expect(&out, slices, expected.n, expected.n);
    } else {
        assert_int_equal(out.n, COUNT_BEFORE);
        assert_int_equal(err.code, status);
        assert_int_equal(err.rule, rule);
        assert_int_equal(err.index, index);
    }
    columns_free(&out);
    slice_list_free(&expected);
}

void fuzz_slots(input *in)
{
    mapping m;
    take_mapping(in, &m);
    check_width(&m, true);
    if (m.fit32) {
        check_width(&m, false);
    }
    free_mapping(&m);
}
