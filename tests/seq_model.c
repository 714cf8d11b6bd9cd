/* See seq_model.h: the world, and what is proved of it. */
#include "seq_model.h"

#include <string.h>
#include <xxhash.h>

/* ---- numbers ------------------------------------------------------------- */

static uint64_t mix(uint64_t z)
{
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

/* Prompts part behind two pages and a bit, then behind five. */
int32_t seq_prompt_token(const seq_world *w, int64_t prompt, int64_t t)
{
    const int64_t S = w->shape.page_size;
    if (t < 2 * S + 2) {
        return (int32_t)(t % 5);
    }
    return (int32_t)(t < 5 * S + 1 ? 100 + prompt / 3 * 10 + t % 3 : 1000 + prompt * 10 + t % 4);
}

void seq_put_token(const seq_world *w, seq_model *m, int64_t t, int32_t token)
{
    const uint64_t front = t > 0 ? m->value[0][t - 1] : mix(m->salt + 1);
    m->token[t] = token;
    m->value[0][t] = mix(front ^ mix((uint64_t)token + 0x9E3779B97F4A7C15u));
    for (int32_t g = 1; g < w->shape.n_groups; g++) {
        m->value[g][t] = mix(m->value[0][t] + (uint64_t)g);
    }
}

static uint64_t hash_well(const void *data, size_t bytes, uint64_t seed)
{
    return XXH3_64bits_withSeed(data, bytes, seed);
}

static uint64_t hash_badly(const void *data, size_t bytes, uint64_t seed)
{
    (void)data;
    (void)bytes;
    (void)seed;
    return 42;
}

/* ---- making one ---------------------------------------------------------- */

static unsigned char *aligned_memory(uint64_t bytes)
{
    unsigned char *memory = aligned_alloc(64, (size_t)bytes); /* a multiple of 64 */
    assert_non_null(memory);
    memset(memory, 0xA5, (size_t)bytes);
    return memory;
}

static void *zeroes(int64_t n, size_t item_bytes)
{
    void *memory = test_alloc((size_t)n * item_bytes);
    memset(memory, 0, (size_t)n * item_bytes);
    return memory;
}

static void make_parts(seq_world *w)
{
    const seq_shape  *s = &w->shape;
    pkv_error         err;
    pkv_pool_config   pool = {.struct_size = sizeof pool, .n_pages = s->n_pages,
                              .allocator = s->allocator};
    pkv_seqs_config   table = {.struct_size = sizeof table, .max_seqs = s->max_seqs,
                               .max_pages_per_seq = w->width, .page_size = s->page_size,
                               .n_groups = s->n_groups};
    pkv_prefix_config index = {.struct_size = sizeof index, .page_size = s->page_size,
                               .n_groups = s->n_groups, .max_events = 16, .seed = 7,
                               .hash = s->bad_hash ? hash_badly : hash_well};
    memcpy(index.groups, s->groups, sizeof s->groups);
    seq_part *part = w->part;
    expect_ok(pkv_pool_bytes(&pool, &part[SEQ_POOL].bytes, &err), &err);
    expect_ok(pkv_seqs_bytes(&table, &part[SEQ_TABLE].bytes, &err), &err);
    part[SEQ_POOL].memory = aligned_memory(part[SEQ_POOL].bytes);
    part[SEQ_TABLE].memory = aligned_memory(part[SEQ_TABLE].bytes);
    expect_ok(pkv_pool_init(&pool, part[SEQ_POOL].memory, part[SEQ_POOL].bytes, &w->pool, &err),
              &err);
    expect_ok(pkv_seqs_init(&table, w->pool, part[SEQ_TABLE].memory, part[SEQ_TABLE].bytes,
                            &w->seqs, &err), &err);
    expect_ok(pkv_prefix_bytes(&index, w->pool, &part[SEQ_INDEX].bytes, &err), &err);
    part[SEQ_INDEX].memory = aligned_memory(part[SEQ_INDEX].bytes);
    expect_ok(pkv_prefix_init(&index, w->pool, part[SEQ_INDEX].memory, part[SEQ_INDEX].bytes,
                              &w->index, &err), &err);
    for (int i = 0; i < SEQ_PARTS; i++) {
        part[i].saved[0] = aligned_memory(part[i].bytes);
        part[i].saved[1] = aligned_memory(part[i].bytes);
    }
}

void seq_world_init(seq_world *w, const seq_shape *shape, seq_draw draw, void *user)
{
    const int64_t n_pages = shape->n_pages, n_slots = n_pages * shape->page_size;
    *w = (seq_world){.shape = *shape, .width = SEQ_TOKENS / shape->page_size, .draw = draw,
                     .user = user};
    w->width = w->width < SEQ_PAGES ? w->width : SEQ_PAGES;
    assert_true(shape->max_seqs <= SEQ_MAX && shape->n_groups <= SEQ_GROUPS);
    make_parts(w);
    w->seq = zeroes(shape->max_seqs, sizeof *w->seq);
    for (int g = 0; g < SEQ_GROUPS; g++) {
        w->content[g] = zeroes(n_slots, sizeof *w->content[g]);
    }
    w->kept = zeroes(n_pages, sizeof *w->kept);
    w->told = zeroes(n_slots, sizeof *w->told);
    w->told_id = zeroes(n_pages, sizeof *w->told_id);
    w->told_group = zeroes(n_pages, sizeof *w->told_group);
    w->refs = zeroes(n_pages, sizeof *w->refs);
    w->role = zeroes(n_pages, sizeof *w->role);
    w->order[0] = zeroes(n_pages, sizeof *w->order[0]);
    w->order[1] = zeroes(n_pages, sizeof *w->order[1]);
    w->columns = zeroes(3 * n_slots, sizeof *w->columns);
    w->fresh = zeroes(n_slots, sizeof *w->fresh);
}

void seq_world_free(seq_world *w)
{
    pkv_error err;
    expect_ok(pkv_seqs_clear(w->seqs, &err), &err);
    assert_int_equal(seq_pool_counts(w).n_used, 0);
    expect_ok(pkv_seqs_check(w->seqs, 1, &err), &err);
    expect_ok(pkv_prefix_check(w->index, &err), &err);
    pkv_seqs_destroy(w->seqs); /* all three do nothing */
    pkv_prefix_destroy(w->index);
    pkv_pool_destroy(w->pool);
    for (int i = 0; i < SEQ_PARTS; i++) {
        free(w->part[i].memory);
        free(w->part[i].saved[0]);
        free(w->part[i].saved[1]);
    }
    for (int g = 0; g < SEQ_GROUPS; g++) {
        free(w->content[g]);
    }
    void *const all[] = {w->seq, w->kept, w->told, w->told_id, w->told_group, w->refs, w->role,
                         w->order[0], w->order[1], w->columns, w->fresh};
    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        free(all[i]);
    }
}

/* ---- copies of it --------------------------------------------------------- */

void seq_world_save(seq_world *w, int which)
{
    for (int i = 0; i < SEQ_PARTS; i++) {
        memcpy(w->part[i].saved[which], w->part[i].memory, (size_t)w->part[i].bytes);
    }
}

void seq_world_restore(seq_world *w, int which)
{
    for (int i = 0; i < SEQ_PARTS; i++) {
        memcpy(w->part[i].memory, w->part[i].saved[which], (size_t)w->part[i].bytes);
    }
}

void seq_expect_same(const seq_world *w, int which)
{
    static const char *const names[SEQ_PARTS] = {"pool", "table of sequences", "prefix index"};
    for (int i = 0; i < SEQ_PARTS; i++) {
        expect_same_bytes(names[i], w->part[i].memory, w->part[i].saved[which],
                          (size_t)w->part[i].bytes);
    }
}

/* All that tells two worlds apart, in one number. */
static uint64_t digest(seq_world *w)
{
    pkv_error             err;
    const pkv_pool_counts counts = seq_pool_counts(w);
    uint64_t              sum = XXH3_64bits_withSeed(&counts, sizeof counts, 0);
    for (int64_t s = 0; s < w->shape.max_seqs; s++) {
        if (w->seq[s].handle == 0) {
            continue;
        }
        pkv_seq_state info = seq_info(w, &w->seq[s]);
        for (int32_t g = 0; g < w->shape.n_groups; g++) {
            sum = XXH3_64bits_withSeed(info.pages + g * info.pages_stride,
                                       (size_t)info.n_pages * sizeof *info.pages, sum);
        }
        sum = XXH3_64bits_withSeed(&info, sizeof info, sum);
    }
    for (int32_t page = 0; page < w->shape.n_pages; page++) {
        pkv_prefix_event e;
        expect_ok(pkv_prefix_page(w->index, page, &e, &err), &err);
        sum = XXH3_64bits_withSeed(&e.id, sizeof e.id, sum);
    }
    return sum;
}

/* The order in which all pages that have no owner are handed out. */
static int64_t drain(seq_world *w, int32_t *order)
{
    int64_t n = 0;
    bool    some = true;
    while (some) {
        const int64_t now = n % 5 == 0 ? 3 : 1;
        if (pkv_pool_alloc(w->pool, now, n > 0 ? order[n - 1] : -1, 2, order + n, NULL) == PKV_OK) {
            n += now;
        } else {
            some = pkv_pool_alloc(w->pool, 1, -1, 0, order + n, NULL) == PKV_OK;
            n += some;
        }
    }
    return n;
}

void seq_expect_untouched(seq_world *w)
{
    seq_world_save(w, 1);
    const uint64_t now = digest(w);
    const int64_t  n_now = drain(w, w->order[1]);
    seq_world_restore(w, 0);
    if (digest(w) != now) {
        fail_msg("what was undone can still be seen");
    }
    assert_int_equal(drain(w, w->order[0]), n_now);
    seq_world_restore(w, 1);
    expect_same_bytes("pages in the order of their allocation", w->order[1], w->order[0],
                      (size_t)n_now * sizeof *w->order[0]);
}

/* ---- proofs --------------------------------------------------------------- */

pkv_seq_state seq_info(const seq_world *w, const seq_model *m)
{
    pkv_error     err;
    pkv_seq_state info;
    memset(&info, 0, sizeof info);
    info.struct_size = sizeof info;
    expect_ok(pkv_seq_info(w->seqs, m->handle, &info, &err), &err);
    return info;
}

pkv_pool_counts seq_pool_counts(const seq_world *w)
{
    pkv_error       err;
    pkv_pool_counts counts = {.struct_size = sizeof counts};
    expect_ok(pkv_pool_stats(w->pool, &counts, &err), &err);
    return counts;
}

int32_t seq_page(const seq_world *w, const seq_model *m, int32_t group, int64_t i)
{
    pkv_seq_state info = seq_info(w, m);
    assert_true(i < info.n_pages);
    return info.pages[group * info.pages_stride + i];
}

/* A page stands in one group and at one place of all tables that name it. */
static void note_owner(seq_world *w, int64_t s, int32_t page, int32_t group, int64_t i)
{
    const int64_t role = i * SEQ_GROUPS + group;
    if (page < 0 || page >= w->shape.n_pages) {
        fail_msg("sequence %lld, group %d: entry %lld is %d, which is no page", (long long)s, group,
                 (long long)i, page);
    }
    if (w->refs[page]++ > 0 && w->role[page] != role) {
        fail_msg("page %d stands at two places", page);
    }
    w->role[page] = role;
}

static void check_seq(seq_world *w, int64_t s)
{
    const seq_model    *m = &w->seq[s];
    const int64_t       S = w->shape.page_size;
    const pkv_seq_state info = seq_info(w, m);
    assert_int_equal(info.n_tokens, m->n_tokens);
    assert_int_equal(info.n_reserved, 0);
    assert_int_equal(info.n_pages, seq_pages_of(w, m->n_tokens));
    assert_int_equal(info.n_published, m->n_published);
    for (int32_t g = 0; g < w->shape.n_groups; g++) {
        for (int64_t i = 0; i < info.n_pages; i++) {
            const int32_t page = info.pages[g * info.pages_stride + i];
            const int64_t n_held = m->n_tokens - i * S < S ? m->n_tokens - i * S : S;
            if (m->gone[g][i]) {
                assert_int_equal(page, -1);
                continue;
            }
            note_owner(w, s, page, g, i);
            if (memcmp(&w->content[g][page * S], &m->value[g][i * S],
                       (size_t)n_held * sizeof(uint64_t)) != 0) {
                fail_msg("sequence %lld of %lld tokens, group %d: page %d, at %lld, does not hold "
                         "what was written; prompt %lld, S %lld, allocator %d",
                         (long long)s, (long long)m->n_tokens, g, page, (long long)i,
                         (long long)m->prompt, (long long)S, w->shape.allocator);
            }
        }
    }
}

/* What can be found holds what it held when it was published. */
static void check_found(seq_world *w, int32_t page)
{
    const int64_t    S = w->shape.page_size;
    pkv_error        err;
    pkv_prefix_event e;
    expect_ok(pkv_prefix_page(w->index, page, &e, &err), &err);
    if (e.id == 0) {
        return;
    }
    assert_true(w->kept[page]);
    assert_int_equal(e.id, w->told_id[page]);
    assert_int_equal(e.group, w->told_group[page]);
    expect_same_bytes("published page", &w->content[e.group][page * S], &w->told[page * S],
                      (size_t)S * sizeof(uint64_t));
}

void seq_world_check(seq_world *w)
{
    pkv_error err;
    expect_ok(pkv_seqs_check(w->seqs, 1, &err), &err);
    expect_ok(pkv_prefix_check(w->index, &err), &err);
    memset(w->refs, 0, (size_t)w->shape.n_pages * sizeof *w->refs);
    for (int64_t s = 0; s < w->shape.max_seqs; s++) {
        if (w->seq[s].handle != 0) {
            check_seq(w, s);
        }
    }
    for (int32_t page = 0; page < w->shape.n_pages; page++) {
        assert_int_equal(pkv_pool_owners(w->pool, page), w->refs[page]);
        check_found(w, page);
    }
}
