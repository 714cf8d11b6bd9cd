/* See seq_model.h: a step over many sequences, as an engine runs it. */
#include "seq_model.h"

#include <string.h>

static const uint64_t POISON = 0xdeadbeefdeadbeefU;

void seq_step_init(seq_step *st)
{
    st->n = st->room = st->n_copies = 0;
    st->max_copies = SEQ_MAX * SEQ_GROUPS;
}

static int64_t enter(seq_step *st, seq_model *m, int64_t n_tokens)
{
    const int64_t i = st->n++;
    assert_true(i < SEQ_MAX);
    st->of[i] = m;
    st->handles[i] = m->handle;
    st->n_tokens[i] = (int32_t)n_tokens;
    st->prefixes[i] = (pkv_prefix_hit){.pages = st->found[i]};
    return i;
}

void seq_step_add(seq_world *w, seq_step *st, seq_model *m, int64_t n_tokens)
{
    enter(st, m, n_tokens);
    for (int64_t t = m->n_tokens; t < m->n_tokens + n_tokens && t < SEQ_TOKENS; t++) {
        seq_put_token(w, m, t, seq_prompt_token(w, m->prompt, t));
    }
}

/* ---- what was found -------------------------------------------------------- */

/* Does no token from the hit's end on read page i? */
static bool is_passed(const seq_world *w, int32_t g, int64_t i, int64_t n_pages)
{
    const int64_t           S = w->shape.page_size;
    const pkv_prefix_group *of = &w->shape.groups[g];
    return of->window_tokens > 0 && i * S >= of->sink_tokens &&
           (i + 1) * S - 1 < n_pages * S - of->window_tokens + 1;
}

static void check_hit(const seq_world *w, const seq_model *m, const int32_t *found, int64_t n_pages)
{
    const int64_t S = w->shape.page_size;
    for (int32_t g = 0; g < w->shape.n_groups; g++) {
        for (int64_t i = 0; i < n_pages; i++) {
            const int32_t page = found[g * w->width + i];
            if (page < 0) {
                assert_true(is_passed(w, g, i, n_pages));
                continue;
            }
            assert_int_equal(w->told_group[page], g);
            expect_same_bytes("found page", &w->content[g][page * S], &m->value[g][i * S],
                              (size_t)S * sizeof(uint64_t));
        }
    }
}

int64_t seq_step_begin(seq_world *w, seq_step *st, seq_model *m, int64_t n_tokens)
{
    pkv_error err;
    assert_int_equal(m->n_tokens, 0);
    for (int64_t t = 0; t < n_tokens; t++) {
        seq_put_token(w, m, t, seq_prompt_token(w, m->prompt, t));
    }
    const int64_t i = enter(st, m, n_tokens);
    expect_ok(pkv_prefix_find(w->index, m->salt, m->token, n_tokens, st->found[i], w->width,
                              &st->prefixes[i], &err), &err);
    const int64_t n_pages = st->prefixes[i].n_pages;
    assert_true(st->prefixes[i].pages == st->found[i] && st->prefixes[i].stride == w->width);
    assert_true(n_pages >= 0 && (n_pages == 0 || n_pages * w->shape.page_size < n_tokens));
    check_hit(w, m, st->found[i], n_pages);
    st->n_tokens[i] -= (int32_t)(n_pages * w->shape.page_size);
    w->counts.n_hits += n_pages > 0;
    w->counts.n_hit_pages += n_pages;
    return n_pages;
}

/* ---- what must come of it --------------------------------------------------- */

static bool fails(seq_step *st, pkv_status status, int32_t rule, int64_t i)
{
    st->status = status;
    st->rule = rule;
    st->index = i;
    return true;
}

/* Pages that are there for the taking: those that the hits revive are not. */
static int64_t count_free(seq_world *w, const seq_step *st)
{
    const pkv_pool_counts counts = seq_pool_counts(w);
    int64_t               n_free = counts.n_blank + counts.n_cached;
    memset(w->refs, 0, (size_t)w->shape.n_pages * sizeof *w->refs);
    for (int64_t i = 0; i < st->n; i++) {
        for (int32_t g = 0; g < w->shape.n_groups; g++) {
            for (int64_t p = 0; p < st->prefixes[i].n_pages; p++) {
                const int32_t page = st->found[i][g * w->width + p];
                n_free -= page >= 0 && pkv_pool_owners(w->pool, page) == 0 && w->refs[page]++ == 0;
            }
        }
    }
    return n_free;
}

static int64_t pages_before(const seq_world *w, const seq_step *st, int64_t i)
{
    return seq_pages_of(w, st->of[i]->n_tokens) + st->prefixes[i].n_pages;
}

static int64_t pages_behind(const seq_world *w, const seq_step *st, int64_t i)
{
    return seq_pages_of(w, st->of[i]->n_tokens + st->n_tokens[i]) + st->prefixes[i].n_pages;
}

static bool predict_copy(const seq_world *w, seq_step *st, int64_t i, int32_t g, int64_t *n_free)
{
    const seq_model *m = st->of[i];
    const int64_t    n_held = m->n_tokens % w->shape.page_size, last = pages_before(w, st, i) - 1;
    if (n_held == 0) {
        return false;
    }
    if (m->gone[g][last]) {
        return fails(st, PKV_E_RANGE, PKV_RULE_TABLE, i);
    }
    const int32_t page = seq_page(w, m, g, last);
    if (!w->kept[page] && pkv_pool_owners(w->pool, page) == 1) {
        return false;
    }
    if (st->n_expected == st->max_copies) {
        return fails(st, PKV_E_RANGE, PKV_RULE_CAPACITY, i);
    }
    st->expected[st->n_expected++] = (pkv_page_copy){page, -1, (int32_t)n_held, g};
    return --*n_free < 0 && fails(st, PKV_E_NO_PAGES, PKV_RULE_NONE, i);
}

/* The needs of all sequences are summed; the first one that has no room is named. */
static void predict(seq_world *w, seq_step *st)
{
    int64_t n_free = count_free(w, st);
    bool    failed = false;
    st->n_expected = 0;
    fails(st, PKV_OK, PKV_RULE_NONE, -1);
    for (int64_t i = 0; i < st->n && !failed; i++) {
        failed = pages_behind(w, st, i) > w->width &&
                 fails(st, PKV_E_RANGE, PKV_RULE_TABLE, i);
    }
    for (int64_t i = 0; i < st->n && !failed; i++) {
        for (int32_t g = 0; g < w->shape.n_groups && st->n_tokens[i] > 0 && !failed; g++) {
            failed = predict_copy(w, st, i, g, &n_free);
            n_free -= pages_behind(w, st, i) - pages_before(w, st, i);
            failed = failed || (n_free < 0 && fails(st, PKV_E_NO_PAGES, PKV_RULE_NONE, i));
        }
    }
}

/* ---- the reservation ---------------------------------------------------------- */

static void check_reserved(seq_world *w, const seq_step *st)
{
    pkv_error err;
    expect_ok(pkv_seqs_check(w->seqs, 1, &err), &err);
    expect_ok(pkv_prefix_check(w->index, &err), &err);
    for (int64_t i = 0; i < st->n; i++) {
        const pkv_seq_state info = seq_info(w, st->of[i]);
        const int64_t       n_prefix = st->prefixes[i].n_pages;
        assert_int_equal(info.n_tokens, st->of[i]->n_tokens);
        assert_int_equal(info.n_reserved, st->n_tokens[i] + n_prefix * w->shape.page_size);
        assert_int_equal(info.n_pages, pages_behind(w, st, i));
        assert_int_equal(info.n_published, st->of[i]->n_published);
        for (int32_t g = 0; g < w->shape.n_groups && n_prefix > 0; g++) {
            assert_memory_equal(info.pages + g * info.pages_stride, st->found[i] + g * w->width,
                                (size_t)n_prefix * sizeof(int32_t));
        }
    }
    assert_int_equal(st->n_copies, st->n_expected);
    for (int64_t c = 0; c < st->n_copies; c++) {
        const pkv_page_copy *found = &st->copies[c], *must = &st->expected[c];
        assert_int_equal(found->src, must->src);
        assert_int_equal(found->n_tokens, must->n_tokens);
        assert_int_equal(found->group, must->group);
        assert_int_equal(pkv_pool_owners(w->pool, found->dst), 1);
    }
}

pkv_status seq_step_reserve(seq_world *w, seq_step *st)
{
    pkv_error err;
    bool      begins = false;
    predict(w, st);
    for (int64_t i = 0; i < st->n; i++) {
        begins = begins || st->prefixes[i].n_pages > 0;
    }
    seq_world_save(w, 0);
    st->n_copies = -7;
    pkv_status status = pkv_seqs_reserve(w->seqs, st->handles, st->n_tokens,
                                         begins ? st->prefixes : NULL, st->n, st->room, st->copies,
                                         st->max_copies, &st->n_copies, &err);
    w->counts.n_no_pages += status == PKV_E_NO_PAGES;
    w->counts.n_out_of_range += status == PKV_E_RANGE;
    if (st->status == PKV_OK) {
        expect_ok(status, &err);
        check_reserved(w, st);
    } else {
        expect_error(status, &err, st->status, st->rule, st->index);
        assert_int_equal(st->n_copies, -7);
        seq_expect_untouched(w);
        seq_world_check(w);
    }
    return status;
}

void seq_step_release(seq_world *w, seq_step *st)
{
    pkv_error err;
    expect_ok(pkv_seqs_release(w->seqs, &err), &err);
    seq_expect_untouched(w);
    seq_world_check(w);
    w->counts.n_releases++;
    st->n = 0;
}

/* ---- the step runs -------------------------------------------------------------- */

/* Nothing that a page held before may help whoever takes it. */
static void take_page(seq_world *w, int32_t page)
{
    assert_int_equal(pkv_pool_owners(w->pool, page), 1);
    w->kept[page] = false;
    for (int32_t g = 0; g < SEQ_GROUPS; g++) {
        for (int64_t t = 0; t < w->shape.page_size; t++) {
            w->content[g][page * w->shape.page_size + t] = POISON;
        }
    }
}

static void make_copies(seq_world *w, const seq_step *st)
{
    const int64_t S = w->shape.page_size;
    for (int64_t i = 0; i < st->n; i++) {
        const pkv_seq_state info = seq_info(w, st->of[i]);
        for (int32_t g = 0; g < w->shape.n_groups; g++) {
            for (int64_t p = pages_before(w, st, i); p < info.n_pages; p++) {
                take_page(w, info.pages[g * info.pages_stride + p]);
            }
        }
    }
    for (int64_t c = 0; c < st->n_copies; c++) {
        take_page(w, st->copies[c].dst);
    }
    for (int64_t c = 0; c < st->n_copies; c++) {
        const pkv_page_copy *copy = &st->copies[c];
        uint64_t            *content = w->content[copy->group];
        memcpy(&content[copy->dst * S], &content[copy->src * S],
               (size_t)copy->n_tokens * sizeof *content);
    }
    w->counts.n_copies += st->n_copies;
}

/* What the rows of the step's new K/V hold in this group. */
static int64_t compute_rows(seq_world *w, const seq_step *st, int32_t group)
{
    int64_t n = 0;
    for (int64_t i = 0; i < st->n; i++) {
        const int64_t first = st->of[i]->n_tokens + st->prefixes[i].n_pages * w->shape.page_size;
        memcpy(&w->fresh[n], &st->of[i]->value[group][first],
               (size_t)st->n_tokens[i] * sizeof *w->fresh);
        n += st->n_tokens[i];
    }
    return n;
}

static void write_group(seq_world *w, const seq_step *st, int32_t group, int64_t max_slice_tokens)
{
    const int64_t S = w->shape.page_size, capacity = w->shape.n_pages * S;
    int32_t       computed[SEQ_MAX], scheduled[SEQ_MAX], rows[SEQ_MAX], n_slices = 0;
    int64_t       total = 0;
    pkv_batch     batch;
    pkv_slices    slices;
    pkv_error     err;
    expect_ok(pkv_seqs_batch(w->seqs, group, st->handles, st->n, computed, scheduled, rows, &batch,
                             &err), &err);
    for (int64_t i = 0; i < st->n; i++) {
        assert_int_equal(computed[i], st->of[i]->n_tokens + st->prefixes[i].n_pages * S);
        assert_int_equal(scheduled[i], st->n_tokens[i]);
        assert_int_equal(rows[i], seq_info(w, st->of[i]).row + group);
    }
    batch.n_pages = w->shape.n_pages;
    expect_ok(pkv_slices_from_array(&slices, sizeof slices, w->columns, capacity, &n_slices), &err);
    expect_ok(pkv_plan(&batch, max_slice_tokens, &slices, &total, &err), &err);
    assert_int_equal(total, compute_rows(w, st, group));
    for (int32_t i = 0; i < n_slices; i++) {
        for (int32_t t = 0; t < slices.slice_len[i]; t++) {
            const int64_t slot = slices.kv_cache_start[i] + t;
            assert_true(!w->kept[slot / S] && pkv_pool_owners(w->pool, (int32_t)(slot / S)) == 1);
            w->content[group][slot] = w->fresh[slices.new_kv_start[i] + t];
        }
    }
}

void seq_step_commit(seq_world *w, seq_step *st, int64_t max_slice_tokens)
{
    const int64_t S = w->shape.page_size;
    pkv_error     err;
    make_copies(w, st);
    for (int32_t g = 0; g < w->shape.n_groups; g++) {
        write_group(w, st, g, max_slice_tokens);
    }
    expect_ok(pkv_seqs_commit(w->seqs, &err), &err);
    for (int64_t i = 0; i < st->n; i++) {
        seq_model    *m = st->of[i];
        const int64_t n_prefix = st->prefixes[i].n_pages, first = pages_before(w, st, i);
        const int64_t end = pages_behind(w, st, i);
        for (int32_t g = 0; g < w->shape.n_groups; g++) {
            for (int64_t p = 0; p < n_prefix; p++) {
                m->gone[g][p] = st->found[i][g * w->width + p] < 0;
            }
            for (int64_t p = first; p < end; p++) {
                m->gone[g][p] = false;
            }
        }
        m->n_published += n_prefix;
        m->n_tokens += n_prefix * S + st->n_tokens[i];
    }
    w->counts.n_commits++;
    seq_world_check(w);
    st->n = 0;
}

int64_t seq_grow(seq_world *w, seq_model *m, int64_t n_tokens)
{
    seq_step st;
    seq_step_init(&st);
    seq_step_add(w, &st, m, n_tokens);
    expect_ok(seq_step_reserve(w, &st), NULL);
    seq_step_commit(w, &st, w->shape.page_size);
    return st.n_copies;
}

seq_model *seq_grown(seq_world *w, int64_t prompt, int64_t n_tokens)
{
    seq_model *m = seq_open(w, prompt, 0);
    seq_grow(w, m, n_tokens);
    return m;
}
