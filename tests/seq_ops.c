/* See seq_model.h: what is done to sequences between the steps, and random operations. */
#include "seq_model.h"

#include <string.h>

/* ---- operations that must succeed ------------------------------------------ */

static seq_model *free_place(seq_world *w)
{
    for (int64_t s = 0; s < w->shape.max_seqs; s++) {
        if (w->seq[s].handle == 0) {
            return &w->seq[s];
        }
    }
    return NULL;
}

seq_model *seq_open(seq_world *w, int64_t prompt, uint64_t salt)
{
    pkv_error  err;
    seq_model *m = free_place(w);
    assert_non_null(m);
    memset(m, 0, sizeof *m);
    m->prompt = prompt;
    m->salt = salt;
    expect_ok(pkv_seq_open(w->seqs, &m->handle, &err), &err);
    assert_true(m->handle > 0 && m->handle != w->closed);
    return m;
}

seq_model *seq_fork(seq_world *w, const seq_model *from, int64_t n_tokens)
{
    pkv_error     err;
    seq_model    *m = free_place(w);
    const int64_t whole = n_tokens / w->shape.page_size;
    pkv_seq       handle = 0;
    assert_non_null(m);
    expect_ok(pkv_seq_fork(w->seqs, from->handle, n_tokens, &handle, &err), &err);
    *m = *from;
    m->handle = handle;
    m->n_tokens = n_tokens;
    m->n_published = from->n_published < whole ? from->n_published : whole;
    return m;
}

void seq_trim(seq_world *w, seq_model *m, int64_t n_tokens)
{
    pkv_error     err;
    const int64_t whole = n_tokens / w->shape.page_size;
    expect_ok(pkv_seq_trim(w->seqs, m->handle, n_tokens, &err), &err);
    m->n_tokens = n_tokens;
    m->n_published = m->n_published < whole ? m->n_published : whole;
}

void seq_drop(seq_world *w, seq_model *m, int32_t group, int64_t from, int64_t to)
{
    pkv_error     err;
    const int64_t S = w->shape.page_size;
    expect_ok(pkv_seq_drop(w->seqs, m->handle, group, from, to, &err), &err);
    for (int64_t i = 0; i < seq_pages_of(w, m->n_tokens); i++) {
        m->gone[group][i] = m->gone[group][i] || (i * S >= from && (i + 1) * S <= to);
    }
}

void seq_close(seq_world *w, seq_model *m)
{
    pkv_error err;
    expect_ok(pkv_seq_close(w->seqs, m->handle, &err), &err);
    w->closed = m->handle;
    m->handle = 0;
}

/* The page can be found as this content, and what it holds now is what it must hold from now on. */
static void note_published(seq_world *w, const seq_model *m, int32_t group, int64_t i)
{
    const int64_t    S = w->shape.page_size;
    const int32_t    page = seq_page(w, m, group, i);
    pkv_prefix_event e;
    pkv_error        err;
    expect_ok(pkv_prefix_page(w->index, page, &e, &err), &err);
    assert_int_equal(e.kind, PKV_PREFIX_STORED);
    assert_int_equal(e.group, group);
    assert_int_equal(e.is_first, i == 0);
    assert_true(i > 0 || e.parent == m->salt);
    assert_memory_equal(e.tokens, &m->token[i * S], (size_t)S * sizeof *e.tokens);
    memcpy(&w->told[page * S], &m->value[group][i * S], (size_t)S * sizeof *w->told);
    w->told_id[page] = e.id;
    w->told_group[page] = group;
    w->kept[page] = true;
}

void seq_publish(seq_world *w, seq_model *m, int64_t n_tokens)
{
    pkv_error     err;
    const int64_t whole = n_tokens / w->shape.page_size;
    expect_ok(pkv_seq_publish(w->seqs, m->handle, w->index, m->salt, m->token, n_tokens, &err),
              &err);
    int64_t i = m->n_published;
    for (; i < whole && !m->gone[0][i] && (i == 0 || !m->gone[0][i - 1]); i++) {
        for (int32_t g = 0; g < w->shape.n_groups; g++) {
            if (!m->gone[g][i]) {
                note_published(w, m, g, i);
            }
        }
    }
    w->counts.n_published += i - m->n_published;
    m->n_published = i;
}

/* ---- calls that must be refused ---------------------------------------------- */

static void expect_state(pkv_status status, const pkv_error *err)
{
    expect_error(status, err, PKV_E_STATE, PKV_RULE_NONE, -1);
}

void seq_expect_closed_shop(seq_world *w, const seq_model *m)
{
    pkv_error err;
    pkv_seq   out = 77;
    int64_t   n_copies = -7;
    int32_t   none = 0;
    seq_world_save(w, 1);
    expect_state(pkv_seq_open(w->seqs, &out, &err), &err);
    expect_state(pkv_seq_fork(w->seqs, m->handle, 0, &out, &err), &err);
    expect_state(pkv_seq_trim(w->seqs, m->handle, 0, &err), &err);
    expect_state(pkv_seq_drop(w->seqs, m->handle, 0, 0, 0, &err), &err);
    expect_state(pkv_seq_close(w->seqs, m->handle, &err), &err);
    expect_state(pkv_seqs_clear(w->seqs, &err), &err);
    expect_state(pkv_seq_publish(w->seqs, m->handle, w->index, 0, NULL, 0, &err), &err);
    expect_state(pkv_seqs_reserve(w->seqs, &m->handle, &none, NULL, 1, 0, NULL, 0, &n_copies, &err),
                 &err);
    assert_true(out == 77 && n_copies == -7);
    seq_expect_same(w, 1);
}

static int64_t draw(seq_world *w, int64_t min, int64_t max)
{
    return w->draw(w->user, min, max);
}

static void refuse_number(seq_world *w, const seq_model *m, pkv_error *err)
{
    const int64_t n = draw(w, 0, 1) ? m->n_tokens + 1 : -1;
    const int64_t from = draw(w, 0, m->n_tokens);
    int32_t       group = draw(w, 0, 1) ? w->shape.n_groups : -1;
    pkv_seq       out = 77;
    switch (draw(w, 0, 5)) {
    case 0:
        expect_error(pkv_seq_trim(w->seqs, m->handle, n, err), err, PKV_E_RANGE, PKV_RULE_LIMIT,
                     -1);
        break;
    case 1:
        expect_error(pkv_seq_fork(w->seqs, m->handle, n, &out, err), err, PKV_E_RANGE,
                     PKV_RULE_LIMIT, -1);
        break;
    case 2:
        expect_error(pkv_seq_drop(w->seqs, m->handle, 0, n < 0 ? n : from, n < 0 ? from : n, err),
                     err, PKV_E_RANGE, PKV_RULE_LIMIT, -1);
        break;
    case 3:
        expect_error(pkv_seq_drop(w->seqs, m->handle, 0, from, from - 1, err), err, PKV_E_RANGE,
                     PKV_RULE_LIMIT, -1);
        break;
    case 4:
        expect_error(pkv_seq_drop(w->seqs, m->handle, group, 0, 0, err), err, PKV_E_INVALID,
                     PKV_RULE_NONE, -1);
        break;
    default:
        expect_error(pkv_seq_publish(w->seqs, m->handle, w->index, m->salt, m->token, n, err), err,
                     PKV_E_RANGE, PKV_RULE_LIMIT, -1);
        break;
    }
    assert_int_equal(out, 77);
}

static void refuse_handle(seq_world *w, pkv_seq handle, pkv_error *err)
{
    pkv_seq    out = 77;
    pkv_status status = PKV_OK;
    switch (draw(w, 0, 4)) {
    case 0: status = pkv_seq_close(w->seqs, handle, err); break;
    case 1: status = pkv_seq_fork(w->seqs, handle, 0, &out, err); break;
    case 2: status = pkv_seq_trim(w->seqs, handle, 0, err); break;
    case 3: status = pkv_seq_drop(w->seqs, handle, 0, 0, 0, err); break;
    default: status = pkv_seq_publish(w->seqs, handle, w->index, 0, NULL, 0, err); break;
    }
    expect_error(status, err, PKV_E_INVALID, PKV_RULE_NONE, -1);
    assert_int_equal(out, 77);
}

static void refuse(seq_world *w, const seq_model *m)
{
    pkv_error err;
    expect_ok(pkv_prefix_check(w->index, &err), &err); /* it has taken note of what is lost */
    seq_world_save(w, 0);
    switch (draw(w, 0, 3)) {
    case 0: refuse_handle(w, w->closed, &err); break;
    case 1: expect_state(pkv_seqs_commit(w->seqs, &err), &err); break;
    case 2: expect_state(pkv_seqs_release(w->seqs, &err), &err); break;
    default:
        if (m != NULL) {
            refuse_number(w, m, &err);
        }
        break;
    }
    seq_expect_same(w, 0);
}

/* ---- random operations -------------------------------------------------------- */

static seq_model *pick(seq_world *w)
{
    const int64_t n = w->shape.max_seqs, first = draw(w, 0, n - 1);
    for (int64_t i = 0; i < n; i++) {
        seq_model *m = &w->seq[(first + i) % n];
        if (m->handle != 0) {
            return m;
        }
    }
    return NULL;
}

static int64_t draw_new_length(seq_world *w, const seq_model *m)
{
    const bool few = draw(w, 0, 1);
    return few ? m->n_tokens - draw(w, 0, m->n_tokens < 5 ? m->n_tokens : 5)
               : draw(w, 0, m->n_tokens);
}

/* What a window has passed, with the sinks kept; or anything. */
static void drop_some(seq_world *w, seq_model *m)
{
    const int32_t           g = (int32_t)draw(w, 0, w->shape.n_groups - 1);
    const pkv_prefix_group *of = &w->shape.groups[g];
    int64_t                 to = m->n_tokens - of->window_tokens + 1, from = of->sink_tokens;
    if (of->window_tokens == 0 || draw(w, 0, 7) == 7) {
        to = draw(w, 0, m->n_tokens);
        from = draw(w, 0, to);
    }
    if (from <= to && (g > 0 || draw(w, 0, 7) == 7)) {
        seq_drop(w, m, g, from, to);
    }
}

/* One page is kept that nobody published: it is not written any more, and never found. */
static void keep_some(seq_world *w, const seq_model *m)
{
    pkv_error     err;
    const int64_t n_pages = seq_pages_of(w, m->n_tokens);
    if (n_pages == 0) {
        return;
    }
    const int32_t g = (int32_t)draw(w, 0, w->shape.n_groups - 1);
    int32_t       page = seq_page(w, m, g, n_pages - 1 - draw(w, 0, n_pages > 1));
    if (page >= 0) {
        expect_ok(pkv_pool_keep(w->pool, &page, 1, 1, &err), &err);
        w->kept[page] = true;
    }
}

/* A sequence goes on, now and then otherwise than its prompt. */
static void add_some(seq_world *w, seq_step *st, seq_model *m)
{
    const int64_t longest = seq_longest(w), few = draw(w, 0, 3) > 0;
    int64_t       add = few ? draw(w, 0, 3) : draw(w, 0, 2 * w->shape.page_size + 3);
    const bool    dropped = m->n_tokens % w->shape.page_size != 0 &&
                         seq_page(w, m, 0, m->n_tokens / w->shape.page_size) < 0;
    if ((m->n_tokens + add > longest || dropped) && draw(w, 0, 31) < 31) {
        return;
    }
    seq_step_add(w, st, m, add);
    const int64_t end = m->n_tokens + add < longest ? m->n_tokens + add : longest;
    if (m->n_tokens < end && draw(w, 0, 7) == 7) {
        int64_t t = draw(w, m->n_tokens, end - 1);
        seq_put_token(w, m, t, (int32_t)draw(w, 7000, 7001));
        for (t++; t < end; t++) {
            seq_put_token(w, m, t, m->token[t]);
        }
    }
}

static void begin_some(seq_world *w, seq_step *st, seq_model *m)
{
    const int64_t S = w->shape.page_size, longest = seq_longest(w);
    const int64_t most = longest < 7 * S + 5 ? longest : 7 * S + 5;
    seq_step_begin(w, st, m, draw(w, 1, most));
    int32_t *n_tokens = &st->n_tokens[st->n - 1];
    if (draw(w, 0, 1)) { /* the prompt comes in chunks */
        *n_tokens = (int32_t)draw(w, 0, *n_tokens);
    }
}

static void step_some(seq_world *w)
{
    seq_step st;
    seq_step_init(&st);
    for (int64_t s = 0; s < w->shape.max_seqs; s++) {
        seq_model *m = &w->seq[s];
        if (m->handle != 0 && draw(w, 0, 2) > 0) {
            if (m->n_tokens == 0 && draw(w, 0, 3) > 0) {
                begin_some(w, &st, m);
            } else {
                add_some(w, &st, m);
            }
        }
    }
    st.room = draw(w, 0, 7);
    if (draw(w, 0, 31) == 31) {
        st.max_copies = draw(w, 0, 2);
    }
    seq_model *m = pick(w);
    if (seq_step_reserve(w, &st) != PKV_OK) {
        if (m != NULL && draw(w, 0, 1)) {
            seq_close(w, m);
        }
        return;
    }
    if (m != NULL && draw(w, 0, 15) == 15) {
        seq_expect_closed_shop(w, m);
    }
    if (draw(w, 0, 3) == 3) {
        seq_step_release(w, &st);
    } else {
        const int64_t S = w->shape.page_size;
        seq_step_commit(w, &st, draw(w, 0, 1) ? S : draw(w, 0, 1) * 2 * S);
    }
}

static void operate(seq_world *w, seq_kind kind, seq_model *m)
{
    switch (kind) {
    case SEQ_FORK: seq_fork(w, m, draw_new_length(w, m)); break;
    case SEQ_TRIM: seq_trim(w, m, draw_new_length(w, m)); break;
    case SEQ_DROP: drop_some(w, m); break;
    case SEQ_CLOSE: seq_close(w, m); break;
    case SEQ_PUBLISH:
        seq_publish(w, m, draw(w, 0, 3) > 0 ? m->n_tokens : draw(w, 0, m->n_tokens));
        break;
    case SEQ_KEEP: keep_some(w, m); break;
    default: break;
    }
}

void seq_world_step(seq_world *w)
{
    static const seq_kind kinds[] = {SEQ_STEP, SEQ_STEP, SEQ_STEP, SEQ_STEP, SEQ_STEP, SEQ_STEP,
                                     SEQ_OPEN, SEQ_FORK, SEQ_FORK, SEQ_TRIM, SEQ_DROP, SEQ_CLOSE,
                                     SEQ_PUBLISH, SEQ_PUBLISH, SEQ_PUBLISH, SEQ_REFUSED};
    const bool full = free_place(w) == NULL;
    seq_kind   kind = kinds[draw(w, 0, 15)];
    seq_model *m = pick(w);
    if (kind == SEQ_FORK && (full || draw(w, 0, 1))) {
        kind = full ? SEQ_CLOSE : SEQ_OPEN;
    }
    if (kind == SEQ_DROP && draw(w, 0, 7) == 7) {
        kind = SEQ_KEEP;
    }
    if (kind == SEQ_STEP) {
        step_some(w);
    } else if (kind == SEQ_REFUSED) {
        refuse(w, m);
    } else if (kind == SEQ_OPEN && !full) {
        const int64_t prompt = draw(w, 0, SEQ_PROMPTS - 1);
        seq_open(w, prompt, draw(w, 0, 7) == 7);
    } else if (m != NULL) {
        operate(w, kind, m);
    }
    w->counts.n_of_kind[kind]++;
    seq_world_check(w);
}
