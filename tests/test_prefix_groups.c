/*
 * The prefix index by hand: groups with windows and sinks, and the log.  Each
 * call is compared with the model too.
 */
#include "prefix_story.h"

enum { S = 4, N = 5 /* pages of the sequence */ };

/* A pool with one sequence that has ended, in all groups. */
typedef struct stage {
    prefix_world w;
    story_seq    s;
    int32_t      tokens[(N + 1) * S];
} stage;

static void begin(stage *t, const pkv_prefix_group *windows, int32_t n_windows, const char *what)
{
    prefix_shape shape = story_shape(PKV_POOL_EXTENT, 40, S, windows, n_windows);
    note_case("groups", 0, "%s", what);
    prefix_world_init(&t->w, &shape);
    story_tokens(t->tokens, (N + 1) * S, 1);
    t->s = story_compute(&t->w, 0, t->tokens, N * S);
    story_end(&t->w, &t->s);
}

/* Pages of the hit; row: [N], what group g has of them (1: a page), in the order of pages. */
static int64_t find(stage *t, int32_t g, int32_t *row)
{
    int32_t pages[PREFIX_MAX_GROUPS * (N + 1)];
    int64_t n = prefix_world_find(&t->w, 0, t->tokens, (N + 1) * S, pages, N + 1);
    for (int64_t i = 0; i < n; i++) {
        row[i] = pages[g * (N + 1) + i] >= 0;
    }
    return n;
}

static void lose(stage *t, int32_t g, int64_t i)
{
    prefix_world_forget(&t->w, &t->s.pages[g][i], 1);
}

/* Which pages of a window are gone, how long the hit is then, and which of them it names. */
typedef struct window_case {
    const char *what;
    int64_t     gone[N + 1]; /* ended by -1 */
    int64_t     n;
    int32_t     row[N];
} window_case;

static void run_cases(pkv_prefix_group window, const window_case *cases, size_t n_cases)
{
    for (size_t i = 0; i < n_cases; i++) {
        const window_case *c = &cases[i];
        stage              t;
        int32_t            row[N + 1];
        begin(&t, &window, 1, c->what);
        for (int k = 0; c->gone[k] >= 0; k++) {
            lose(&t, 1, c->gone[k]);
        }
        expect_number(find(&t, 1, row), c->n);
        expect_same_bytes("row", row, c->row, (size_t)c->n * sizeof *row);
        story_over(&t.w);
    }
}

/* Of two pages: token 20 reads tokens 13 .. 20, so the pages 3 and 4. */
static void test_window(void **state)
{
    (void)state;
    const window_case cases[] = {
        {"all are there", {-1}, 5, {0, 0, 0, 1, 1}},
        {"those outside are gone", {0, 1, 2, -1}, 5, {0, 0, 0, 1, 1}},
        {"the last one is gone", {4, -1}, 4, {0, 0, 1, 1}},
        {"the last but one is gone", {3, -1}, 3, {0, 1, 1}},
        {"a hole and the last one", {2, 4, -1}, 2, {1, 1}},
        {"holes everywhere", {1, 3, -1}, 1, {1}},
        {"the first and the last", {0, 4, -1}, 4, {0, 0, 1, 1}},
        {"all but the first", {1, 2, 3, 4, -1}, 1, {1}},
        {"all but the last", {0, 1, 2, 3, -1}, 0, {0}},
        {"all are gone", {0, 1, 2, 3, 4, -1}, 0, {0}},
    };
    run_cases((pkv_prefix_group){2 * S, 0}, cases, sizeof cases / sizeof cases[0]);
}

/* One more token: 20 reads 12 .. 20, the same pages; two more: page 2 too.  One less: 14 .. 20. */
static void test_window_edges(void **state)
{
    (void)state;
    const struct {
        int64_t window;
        int32_t row[N];
    } cases[] = {
        {1, {0, 0, 0, 0, 0}}, /* a token reads itself only */
        {2, {0, 0, 0, 0, 1}},
        {S + 1, {0, 0, 0, 0, 1}},
        {S + 2, {0, 0, 0, 1, 1}},
        {2 * S + 1, {0, 0, 0, 1, 1}},
        {2 * S + 2, {0, 0, 1, 1, 1}},
        {N * S, {1, 1, 1, 1, 1}},
        {N * S - S + 1, {0, 1, 1, 1, 1}},
        {N * S - S + 2, {1, 1, 1, 1, 1}},
        {INT64_MAX, {1, 1, 1, 1, 1}},
        {0, {1, 1, 1, 1, 1}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        stage            t;
        int32_t          row[N + 1];
        pkv_prefix_group window = {cases[i].window, 0};
        begin(&t, &window, 1, "edges of a window");
        expect_number(find(&t, 1, row), N);
        expect_same_bytes("row", row, cases[i].row, sizeof cases[i].row);
        story_over(&t.w);
    }
}

/* A window of one page, and the first S + 1 tokens: pages 0 and 1 for ever. */
static void test_sinks(void **state)
{
    (void)state;
    const window_case cases[] = {
        {"all are there", {-1}, 5, {1, 1, 0, 0, 1}},
        {"between is gone", {2, 3, -1}, 5, {1, 1, 0, 0, 1}},
        {"the last sink is gone", {1, -1}, 1, {1}},
        {"the first sink is gone", {0, -1}, 0, {0}},
        {"the window is gone", {4, -1}, 4, {1, 1, 0, 1}},
        {"all but the sinks", {2, 3, 4, -1}, 2, {1, 1}},
    };
    run_cases((pkv_prefix_group){S, S + 1}, cases, sizeof cases / sizeof cases[0]);
}

/* Sinks of the whole prompt and of more, and sinks that reach into the window. */
static void test_wide_sinks(void **state)
{
    (void)state;
    const pkv_prefix_group wide[] = {{S, N * S}, {S, 100 * S}, {3 * S, 2 * S}, {1, INT64_MAX}};
    for (size_t i = 0; i < sizeof wide / sizeof wide[0]; i++) {
        stage   t;
        int32_t row[N + 1], all[N] = {1, 1, 1, 1, 1};
        begin(&t, &wide[i], 1, "wide sinks");
        expect_number(find(&t, 1, row), N);
        expect_same_bytes("row", row, all, sizeof all);
        lose(&t, 1, 2);
        expect_number(find(&t, 1, row), 2);
        story_over(&t.w);
    }
}

/* By the first group's pages a prompt is followed. */
static void test_the_first_group(void **state)
{
    (void)state;
    const pkv_prefix_group window = {2 * S, 0};
    for (int64_t gone = 0; gone < N; gone++) {
        stage   t;
        int32_t row[N + 1];
        begin(&t, &window, 1, "the first group");
        lose(&t, 0, gone);
        expect_number(find(&t, 0, row), gone);
        story_over(&t.w);
    }
}

/* What one group lacks shortens the hit of all; they may have no length in common. */
static void test_groups_agree(void **state)
{
    (void)state;
    const pkv_prefix_group windows[] = {{2 * S, 0}, {S, 0}};
    stage                  t;
    int32_t                row[N + 1];
    begin(&t, windows, 2, "groups agree");
    lose(&t, 2, 4);
    expect_number(find(&t, 1, row), 4);
    expect_that(row[2] == 1 && row[3] == 1 && row[1] == 0);
    lose(&t, 1, 3);
    expect_number(find(&t, 2, row), 3);
    expect_that(row[2] == 1 && row[1] == 0);
    lose(&t, 0, 2);
    expect_number(find(&t, 2, row), 2);
    lose(&t, 2, 1); /* the hit of one page needs the pages 0 */
    expect_number(find(&t, 0, row), 1);
    lose(&t, 1, 0);
    expect_number(find(&t, 0, row), 0);
    story_over(&t.w);

    begin(&t, windows, 1, "disjoint survivors");
    for (int64_t i = 0; i < 3; i++) {
        lose(&t, 1, i);
    }
    lose(&t, 0, 3);
    expect_number(find(&t, 0, row), 0);
    story_over(&t.w);
}

/* Behind a page of another group, and the same content in each group under one id. */
static void test_publish_behind_another_group(void **state)
{
    (void)state;
    const pkv_prefix_group window = {2 * S, 0};
    stage                  t;
    int32_t                pages[2], row[N + 1];
    begin(&t, &window, 1, "behind another group");
    for (int64_t i = 0; i < N; i++) {
        expect_number(t.w.model.held[t.s.pages[0][i]].id, t.w.model.held[t.s.pages[1][i]].id);
    }
    prefix_world_alloc(&t.w, -1, 0, pages, 2);
    const uint64_t id = t.w.model.held[t.s.pages[0][4]].id;
    lose(&t, 0, 4);
    expect_number(find(&t, 0, row), 4);
    prefix_call call = {0, t.s.pages[1][3], 0, t.tokens + 4 * S, pages, 1};
    expect_number(prefix_world_publish(&t.w, &call), PKV_OK);
    expect_number(t.w.model.held[pages[0]].id, id); /* the other group had it all the time */
    expect_number(find(&t, 0, row), 5);
    call.group = 1; /* a page has one group */
    expect_number(prefix_world_publish(&t.w, &call), PKV_E_STATE);
    story_over(&t.w);
}

/* ---- long prompts -------------------------------------------------------- */

enum { LONG = 140, POOL_PAGES = 2 * LONG };

/* Published a part at a time, found up to every token that is changed, and up to every length. */
static void check_long(pkv_prefix *prefix, pkv_pool *pool, int64_t part)
{
    int32_t        tokens[(LONG + 1) * S], pages[LONG], found[2 * (LONG + 1)];
    pkv_prefix_hit hit;
    pkv_error      err;
    story_tokens(tokens, (LONG + 1) * S, (int32_t)(1000 * part));
    expect_ok(pkv_pool_alloc(pool, LONG, -1, 0, pages, &err), &err);
    for (int64_t i = 0; i < LONG; i += part) {
        const int64_t now = part < LONG - i ? part : LONG - i;
        expect_ok(pkv_prefix_publish(prefix, 0, 5, i > 0 ? pages[i - 1] : -1, tokens + i * S,
                                     pages + i, now, &err), &err);
        expect_ok(pkv_prefix_find(prefix, 5, tokens, (LONG + 1) * S, found, LONG + 1, &hit, &err),
                  &err);
        expect_number(hit.n_pages, i + now);
    }
    for (int64_t i = 0; i <= LONG; i++) {
        for (int way = 0; way < 3; way++) { /* another token, the prompt's end, max_pages */
            tokens[i * S + i % S] += way == 0;
            expect_ok(pkv_prefix_find(prefix, 5, tokens,
                                      way == 1 ? i * S + 1 + i % S : (LONG + 1) * S, found,
                                      way == 2 ? i : LONG + 1, &hit, &err), &err);
            tokens[i * S + i % S] -= way == 0;
            expect_number(hit.n_pages, i);
            expect_same_bytes("pages", found, pages, (size_t)i * sizeof *pages);
        }
    }
    expect_ok(pkv_prefix_check(prefix, &err), &err);
    expect_ok(pkv_pool_free(pool, pages, LONG, &err), &err);
}

static void test_long_prompts(void **state)
{
    (void)state;
    const int64_t  parts[] = {1, 2, 3, 31, 32, 33, 34, 64, 65, LONG};
    const pkv_hash hashes[] = {prefix_hash_fnv, prefix_hash_two_bits};
    for (int h = 0; h < 2; h++) {
        pkv_pool_config   of_pool = {sizeof of_pool, POOL_PAGES, PKV_POOL_FIFO, 0};
        pkv_prefix_config config = {.struct_size = sizeof config, .page_size = S, .n_groups = 1,
                                    .hash = hashes[h]};
        pkv_pool         *pool = NULL;
        pkv_prefix       *prefix = NULL;
        pkv_error         err;
        expect_ok(pkv_pool_create(&of_pool, NULL, &pool, &err), &err);
        expect_ok(pkv_prefix_create(&config, pool, NULL, &prefix, &err), &err);
        for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
            note_case("long prompts", 0, "%lld pages at a time, hash %d", (long long)parts[i], h);
            check_long(prefix, pool, parts[i]);
        }
        pkv_prefix_destroy(prefix);
        pkv_pool_destroy(pool);
    }
}

/* ---- the log ------------------------------------------------------------- */

static pkv_prefix_event next_event(prefix_world *w)
{
    pkv_prefix_event e = w->model.log[0].event;
    const int64_t    n = w->model.counts.n_events;
    expect_that(n > 0);
    prefix_world_events(w, 1); /* compares it with the model's */
    expect_number(w->model.counts.n_events, n - 1);
    return e;
}

static void expect_event(prefix_world *w, int32_t kind, int32_t group, int32_t page, uint64_t id,
                         uint64_t parent)
{
    const pkv_prefix_event e = next_event(w);
    expect_number(e.kind, kind);
    expect_number(e.group, group);
    expect_number(e.page, page);
    expect_number(e.id, id);
    expect_number(e.parent, parent);
}

/* Each content of a group is told once, when its first page comes and when its last one goes. */
static void test_log(void **state)
{
    (void)state;
    const pkv_prefix_group window = {2 * S, 0};
    prefix_shape           shape = story_shape(PKV_POOL_FIFO, 20, S, &window, 1);
    prefix_world           w;
    int32_t                tokens[2 * S];
    note_case("log", 0, "in order");
    prefix_world_init(&w, &shape);
    story_tokens(tokens, 2 * S, 1);
    story_seq first = story_compute(&w, 9, tokens, 2 * S);
    story_seq twins = story_compute(&w, 9, tokens, 2 * S);
    expect_event(&w, PKV_PREFIX_STORED, 0, first.pages[0][0], 1, 9);
    expect_event(&w, PKV_PREFIX_STORED, 0, first.pages[0][1], 2, 1);
    expect_event(&w, PKV_PREFIX_STORED, 1, first.pages[1][0], 1, 9);
    expect_event(&w, PKV_PREFIX_STORED, 1, first.pages[1][1], 2, 1);
    expect_number(w.model.counts.n_events, 0);
    story_end(&w, &first);
    story_end(&w, &twins);
    prefix_world_forget(&w, &first.pages[0][1], 1);
    prefix_world_forget(&w, &twins.pages[1][1], 1);
    prefix_world_compare(&w, true);
    expect_number(w.model.counts.n_events, 0); /* twins are there */
    prefix_world_forget(&w, &first.pages[1][1], 1);
    prefix_world_forget(&w, &twins.pages[0][1], 1);
    prefix_world_compare(&w, true);
    expect_event(&w, PKV_PREFIX_REMOVED, 1, first.pages[1][1], 2, 1);
    expect_event(&w, PKV_PREFIX_REMOVED, 0, twins.pages[0][1], 2, 1);
    prefix_world_events(&w, 5);
    expect_number(prefix_world_clear(&w), PKV_OK);
    expect_event(&w, PKV_PREFIX_CLEARED, 0, -1, 0, 0);
    story_over(&w);
}

/* A page goes before its event is told, and its twin stays: what was stored is still there. */
static void test_log_tells_the_twin(void **state)
{
    (void)state;
    prefix_shape     shape = story_shape(PKV_POOL_FIFO, 8, S, NULL, 0);
    prefix_world     w;
    int32_t          tokens[S];
    pkv_prefix_event e;
    int64_t          n, n_lost;
    pkv_error        err;
    note_case("log", 0, "twins");
    prefix_world_init(&w, &shape);
    story_tokens(tokens, S, 1);
    story_seq first = story_compute(&w, 0, tokens, S), twin = story_compute(&w, 0, tokens, S);
    story_end(&w, &first);
    prefix_world_forget(&w, first.pages[0], 1);
    expect_ok(pkv_prefix_events(w.prefix, &e, 1, &n, &n_lost, &err), &err);
    expect_that(n == 1 && n_lost == 0 && e.kind == PKV_PREFIX_STORED && e.page == twin.pages[0][0]);
    expect_same_bytes("tokens", e.tokens, tokens, sizeof tokens);
    prefix_world_free(&w); /* the model knows nothing of that call */
}

/* Two events find room: the others are counted when there is nothing else to tell. */
static void test_log_that_is_full(void **state)
{
    (void)state;
    prefix_shape shape = story_shape(PKV_POOL_FIFO, 20, S, NULL, 0);
    shape.max_events = 2;
    prefix_world     w;
    int32_t          tokens[5 * S];
    pkv_prefix_event e[4];
    int64_t          n, n_lost;
    pkv_error        err;
    note_case("log", 0, "full");
    prefix_world_init(&w, &shape);
    story_tokens(tokens, 5 * S, 1);
    story_seq s = story_compute(&w, 0, tokens, 5 * S);
    expect_ok(pkv_prefix_events(w.prefix, e, 1, &n, &n_lost, &err), &err);
    expect_that(n == 1 && n_lost == 0 && e[0].id == 1); /* what is told later is older */
    story_end(&w, &s);
    prefix_world_forget(&w, &s.pages[0][0], 1); /* there is room, and no order any more */
    expect_ok(pkv_prefix_events(w.prefix, e, 0, &n, &n_lost, &err), &err);
    expect_that(n == 0 && n_lost == 0);
    expect_ok(pkv_prefix_events(w.prefix, e, 4, &n, &n_lost, &err), &err);
    expect_that(n == 1 && n_lost == 4 && e[0].id == 2);
    prefix_world_forget(&w, &s.pages[0][3], 1);
    expect_ok(pkv_prefix_events(w.prefix, e, 4, &n, &n_lost, &err), &err);
    expect_that(n == 1 && n_lost == 0 && e[0].id == 4 && e[0].kind == PKV_PREFIX_REMOVED);
    prefix_world_free(&w);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_window),
        cmocka_unit_test(test_window_edges),
        cmocka_unit_test(test_sinks),
        cmocka_unit_test(test_wide_sinks),
        cmocka_unit_test(test_the_first_group),
        cmocka_unit_test(test_groups_agree),
        cmocka_unit_test(test_publish_behind_another_group),
        cmocka_unit_test(test_long_prompts),
        cmocka_unit_test(test_log),
        cmocka_unit_test(test_log_tells_the_twin),
        cmocka_unit_test(test_log_that_is_full),
    };
    return cmocka_run_group_tests_name("prefix_groups", tests, NULL, NULL);
}
