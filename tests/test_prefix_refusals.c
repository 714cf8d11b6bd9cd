/*
 * Whatever a prefix index refuses: the status, the index, and not one byte of it
 * or of its pool changed.  And what pkv_prefix_check() finds.
 */
#include "prefix_story.h"

enum { S = 2, PAGES = 16 };

/*
 * Pages 0 .. 3 are a sequence's, published in group 0, and 4 .. 7 in group 1; 8 .. 10
 * are used, 11 cached, the others blank.  Salt 9, tokens 1, 2, 3 ...
 */
typedef struct fixture {
    prefix_world   w;
    unsigned char *before[2];
    int32_t        tokens[8 * S];
} fixture;

static void go_on_from_here(fixture *f)
{
    for (int i = 0; i < 2; i++) {
        memcpy(f->before[i], f->w.memory[i], (size_t)f->w.bytes[i]);
    }
}

static void make(fixture *f, int64_t max_events, pkv_hash hash)
{
    const pkv_prefix_group window = {2 * S, 0};
    prefix_shape           shape = story_shape(PKV_POOL_EXTENT, PAGES, S, &window, 1);
    int32_t                pages[4];
    shape.max_events = max_events;
    shape.hash = hash;
    note_case("refusals", 0, "P %d", PAGES);
    prefix_world_init(&f->w, &shape);
    story_tokens(f->tokens, 8 * S, 1);
    story_compute(&f->w, 9, f->tokens, 4 * S);
    prefix_world_alloc(&f->w, -1, 0, pages, 4);
    prefix_call call = {0, -1, 10, f->tokens, &pages[3], 1};
    expect_number(prefix_world_publish(&f->w, &call), PKV_OK);
    prefix_world_drop(&f->w, &pages[3], 1);
    for (int32_t i = 0; i < 8; i++) {
        expect_number(f->w.model.held[i].group, i / 4);
    }
    expect_that(pages[0] == 8 && pages[3] == 11);
    for (int i = 0; i < 2; i++) {
        f->before[i] = test_alloc((size_t)f->w.bytes[i]);
    }
    go_on_from_here(f);
}

static void drop(fixture *f)
{
    free(f->before[0]);
    free(f->before[1]);
    story_over(&f->w);
}

static void expect_untouched(const fixture *f)
{
    expect_same_bytes("pool", f->w.memory[0], f->before[0], (size_t)f->w.bytes[0]);
    expect_same_bytes("index", f->w.memory[1], f->before[1], (size_t)f->w.bytes[1]);
}

static void expect_refusal(const fixture *f, pkv_status status, const pkv_error *err,
                           pkv_status code, int32_t rule, int64_t index)
{
    expect_error(status, err, code, rule, index);
    expect_untouched(f);
}

/* ---- finding ------------------------------------------------------------- */

static void test_find(void **state)
{
    (void)state;
    fixture        f;
    int32_t        pages[2 * 8];
    pkv_prefix_hit hit = {.n_pages = 77};
    pkv_error      err;
    make(&f, 100, prefix_hash_fnv);
    memset(pages, 0x77, sizeof pages);
    for (int i = 0; i < 8; i++) {
        const int64_t n_tokens = i == 1 ? -1 : i == 2 ? INT64_MIN : 3 * S;
        const int64_t most = i == 4 ? -1 : i == 5 ? INT64_MIN : 8;
        pkv_status    status = pkv_prefix_find(i == 0 ? NULL : f.w.prefix, 9,
                                               i == 3 ? NULL : f.tokens, n_tokens,
                                               i == 6 ? NULL : pages, most, i == 7 ? NULL : &hit,
                                               &err);
        expect_refusal(&f, status, &err, PKV_E_INVALID, 0, -1);
        expect_that(hit.n_pages == 77 && pages[0] == 0x77777777);
    }
    expect_number(pkv_prefix_find(NULL, 9, f.tokens, 1, pages, 8, &hit, NULL), PKV_E_INVALID);
    expect_ok(pkv_prefix_find(f.w.prefix, 9, NULL, 0, pages, 8, &hit, &err), &err);
    expect_number(hit.n_pages, 0);
    expect_ok(pkv_prefix_find(f.w.prefix, 9, f.tokens, 8 * S, NULL, 0, &hit, &err), &err);
    expect_number(hit.n_pages, 0);
    f.w.model.counts.n_finds += 2;
    f.w.model.counts.n_find_tokens += 8 * S;
    drop(&f);
}

/* ---- publishing ---------------------------------------------------------- */

/* A list of pages behind one, and what is refused: `value` is in the error. */
typedef struct wrong {
    int32_t    group, behind;
    int32_t    first; /* token */
    int32_t    pages[4];
    int64_t    n;
    pkv_status code;
    int64_t    index;
    int32_t    value;
} wrong;

static void test_publish(void **state)
{
    (void)state;
    static const wrong cases[] = {
        {0, 16, 9, {8}, 1, PKV_E_RANGE, -1, 16},
        {0, -2, 9, {8}, 1, PKV_E_RANGE, -1, -2},
        {0, INT32_MIN, 9, {8}, 1, PKV_E_RANGE, -1, INT32_MIN},
        {0, INT32_MAX, 9, {8}, 0, PKV_E_RANGE, -1, INT32_MAX},
        {0, 8, 9, {9}, 1, PKV_E_STATE, -1, 8},               /* behind one that is not published */
        {0, 15, 9, {9}, 1, PKV_E_STATE, -1, 15},             /* behind a blank one */
        {0, 9, 9, {9}, 1, PKV_E_STATE, -1, 9},               /* behind itself */
        {0, 3, 9, {16}, 1, PKV_E_RANGE, 0, 16},
        {0, 3, 9, {8, -1}, 2, PKV_E_RANGE, 1, -1},
        {1, 3, 9, {8, 9, INT32_MIN}, 3, PKV_E_RANGE, 2, INT32_MIN},
        {0, 3, 9, {8, INT32_MAX}, 2, PKV_E_RANGE, 1, INT32_MAX},
        {0, 3, 9, {12}, 1, PKV_E_STATE, 0, 12},              /* blank */
        {0, -1, 1, {11}, 1, PKV_E_STATE, 0, 11},             /* cached */
        {0, 3, 9, {8, 9, 15}, 3, PKV_E_STATE, 2, 15},
        {0, 3, 9, {8, 8}, 2, PKV_E_STATE, 1, 8},             /* named twice */
        {0, 3, 9, {8, 9, 10, 8}, 4, PKV_E_STATE, 3, 8},
        {1, 3, 9, {8, 9, 9}, 3, PKV_E_STATE, 2, 9},
        {0, -1, 1, {0, 1, 0}, 3, PKV_E_STATE, 2, 0},
        {0, 3, 9, {0}, 1, PKV_E_STATE, 0, 0},                /* another content */
        {0, -1, 1, {0, 1, 3}, 3, PKV_E_STATE, 2, 3},
        {0, -1, 3, {1}, 1, PKV_E_STATE, 0, 1},               /* its tokens, at the beginning */
        {0, -1, 2, {8, 1}, 2, PKV_E_STATE, 1, 1},            /* its tokens, behind others */
        {0, 1, 7, {3}, 1, PKV_E_STATE, 0, 3},                /* its tokens, behind another page */
        {1, 0, 3, {1}, 1, PKV_E_STATE, 0, 1},                /* its content, in another group */
        {0, 4, 3, {5}, 1, PKV_E_STATE, 0, 5},
        {0, 3, 9, {8, 0, 16}, 3, PKV_E_STATE, 1, 0},         /* the first one at fault is told */
        {0, 3, 9, {8, 16, 0}, 3, PKV_E_RANGE, 1, 16},
    };
    const pkv_hash hashes[] = {prefix_hash_fnv, prefix_hash_same};
    for (int h = 0; h < 2; h++) {
        fixture f;
        make(&f, 100, hashes[h]);
        for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
            const wrong *c = &cases[i];
            pkv_error    err;
            note_case("publish", i, "hash %d", h);
            pkv_status status = pkv_prefix_publish(f.w.prefix, c->group, 9, c->behind,
                                                   f.tokens + c->first - 1, c->pages, c->n, &err);
            expect_refusal(&f, status, &err, c->code, PKV_RULE_PAGE, c->index);
            expect_number(err.value, c->value);
            status = pkv_prefix_publish(f.w.prefix, c->group, 9, c->behind,
                                        f.tokens + c->first - 1, c->pages, c->n, NULL);
            expect_number(status, c->code);
            expect_untouched(&f);
        }
        drop(&f);
    }
}

static void test_publish_of_nothing(void **state)
{
    (void)state;
    const int32_t pages[] = {8, 9}, groups[] = {-1, 2, INT32_MAX, INT32_MIN};
    fixture       f;
    pkv_error     err;
    make(&f, 100, prefix_hash_fnv);
    for (int i = 0; i < 4; i++) {
        pkv_status status = pkv_prefix_publish(f.w.prefix, groups[i], 9, 3, f.tokens, pages, 1,
                                               &err);
        expect_refusal(&f, status, &err, PKV_E_INVALID, 0, -1);
    }
    for (int i = 0; i < 5; i++) { /* no index, no tokens, no pages, negative numbers */
        pkv_status status = pkv_prefix_publish(i == 0 ? NULL : f.w.prefix, 0, 9, 3,
                                               i == 1 ? NULL : f.tokens, i == 2 ? NULL : pages,
                                               i == 3 ? -1 : i == 4 ? INT64_MIN : 1, &err);
        expect_refusal(&f, status, &err, PKV_E_INVALID, 0, -1);
    }
    expect_ok(pkv_prefix_publish(f.w.prefix, 1, 9, 3, NULL, NULL, 0, &err), &err);
    expect_untouched(&f);
    /* Again what is published: nothing happens. */
    const int32_t same[] = {0, 1, 2, 3};
    expect_ok(pkv_prefix_publish(f.w.prefix, 0, 9, -1, f.tokens, same, 4, &err), &err);
    expect_ok(pkv_prefix_publish(f.w.prefix, 0, 9, 5, f.tokens + 2 * S, same + 2, 1, &err), &err);
    expect_untouched(&f);
    drop(&f);
}

/* ---- the other calls ----------------------------------------------------- */

static void test_inside_a_reservation(void **state)
{
    (void)state;
    fixture       f;
    const int32_t page = 8, published = 3;
    pkv_error     err;
    make(&f, 100, prefix_hash_fnv);
    prefix_world_reserve(&f.w);
    go_on_from_here(&f);
    pkv_status status = pkv_prefix_publish(f.w.prefix, 0, 9, 3, f.tokens, &page, 1, &err);
    expect_refusal(&f, status, &err, PKV_E_STATE, 0, -1);
    status = pkv_prefix_publish(f.w.prefix, 0, 9, 2, f.tokens + 3 * S, &published, 1, &err);
    expect_refusal(&f, status, &err, PKV_E_STATE, 0, -1);
    status = pkv_prefix_publish(f.w.prefix, 0, 9, -1, NULL, NULL, 0, &err);
    expect_refusal(&f, status, &err, PKV_E_STATE, 0, -1);
    expect_refusal(&f, pkv_prefix_clear(f.w.prefix, &err), &err, PKV_E_STATE, 0, -1);
    prefix_world_release(&f.w);
    drop(&f);
}

static void test_queries(void **state)
{
    (void)state;
    const int32_t     foreign[] = {-1, PAGES, INT32_MAX, INT32_MIN};
    fixture           f;
    pkv_prefix_event  e = {.kind = 77}, events[4];
    pkv_prefix_counts counts = {.struct_size = sizeof counts};
    int64_t           n = 77, n_lost = 78;
    pkv_error         err;
    make(&f, 100, prefix_hash_fnv);
    for (int i = 0; i < 6; i++) { /* no index, no room, negative numbers, nowhere to count */
        const int64_t asked = i == 2 ? -1 : i == 3 ? INT64_MIN : 4;
        pkv_status    status = pkv_prefix_events(i == 0 ? NULL : f.w.prefix,
                                                 i == 1 ? NULL : events, asked,
                                                 i == 4 ? NULL : &n, i == 5 ? NULL : &n_lost,
                                                 &err);
        expect_refusal(&f, status, &err, PKV_E_INVALID, 0, -1);
        expect_that(n == 77 && n_lost == 78);
    }
    expect_ok(pkv_prefix_events(f.w.prefix, NULL, 0, &n, &n_lost, &err), &err);
    expect_that(n == 0 && n_lost == 0);
    expect_untouched(&f);
    for (int i = 0; i < 4; i++) {
        pkv_status status = pkv_prefix_page(f.w.prefix, foreign[i], &e, &err);
        expect_refusal(&f, status, &err, PKV_E_RANGE, PKV_RULE_PAGE, -1);
        expect_that(err.value == foreign[i] && err.limit == PAGES && e.kind == 77);
    }
    expect_refusal(&f, pkv_prefix_page(NULL, 0, &e, &err), &err, PKV_E_INVALID, 0, -1);
    expect_refusal(&f, pkv_prefix_page(f.w.prefix, 0, NULL, &err), &err, PKV_E_INVALID, 0, -1);
    int32_t twin = 77;
    expect_refusal(&f, pkv_prefix_twin(NULL, 0, &twin, &err), &err, PKV_E_INVALID, 0, -1);
    expect_refusal(&f, pkv_prefix_twin(f.w.prefix, 0, NULL, &err), &err, PKV_E_INVALID, 0, -1);
    expect_number(twin, 77);
    expect_refusal(&f, pkv_prefix_stats(NULL, &counts, &err), &err, PKV_E_INVALID, 0, -1);
    expect_refusal(&f, pkv_prefix_clear(NULL, &err), &err, PKV_E_INVALID, 0, -1);
    expect_refusal(&f, pkv_prefix_check(NULL, &err), &err, PKV_E_INVALID, 0, -1);
    expect_number(pkv_prefix_check(NULL, NULL), PKV_E_INVALID);
    drop(&f);
}

/* ---- the check itself ---------------------------------------------------- */

/* Of all words of the index that a call changed, each one put back alone is found. */
static void expect_found(fixture *f, int n_least)
{
    int n_words = 0;
    for (size_t i = 0; i < f->w.bytes[1]; i += sizeof(uint64_t)) {
        unsigned char *at = f->w.memory[1] + i;
        uint64_t       word;
        pkv_error      err;
        memcpy(&word, at, sizeof word);
        if (memcmp(f->before[1] + i, &word, sizeof word) != 0) {
            memcpy(at, f->before[1] + i, sizeof word);
            if (pkv_prefix_check(f->w.prefix, &err) != PKV_E_CORRUPT) {
                fail_msg("byte %zu of the index put back, and nothing is found", i);
            }
            expect_that(err.what != NULL && err.index < PAGES);
            memcpy(at, &word, sizeof word);
            n_words++;
        }
    }
    expect_that(n_words >= n_least);
    go_on_from_here(f);
}

/* A first page comes, and a twin of it. */
static void test_check_finds_each_word(void **state)
{
    (void)state;
    fixture       f;
    const int32_t pages[] = {8, 9};
    make(&f, 0, prefix_hash_fnv);
    prefix_call call = {0, -1, 77, f.tokens, pages, 1};
    expect_number(prefix_world_publish(&f.w, &call), PKV_OK);
    expect_found(&f, 9);
    call.pages++;
    expect_number(prefix_world_publish(&f.w, &call), PKV_OK);
    expect_found(&f, 8); /* the last id is as before */
    drop(&f);
}

/* Each of these words becomes another, 4 or 8 bytes at a time; returns how often that is found. */
static int count_found(fixture *f, uint64_t from, uint64_t to, size_t size)
{
    int n_found = 0;
    for (size_t i = 0; i < f->w.bytes[1]; i += size) {
        unsigned char *at = f->w.memory[1] + i;
        pkv_error      err;
        if (memcmp(at, &from, size) == 0) { /* little-endian, as all that the tests run on */
            memcpy(at, &to, size);
            n_found += pkv_prefix_check(f->w.prefix, &err) == PKV_E_CORRUPT;
            memcpy(at, &from, size);
        }
    }
    return n_found;
}

static void test_check_finds_wrong_ids(void **state)
{
    (void)state;
    fixture       f;
    const int32_t page = 8;
    make(&f, 0, prefix_hash_same); /* all in one bucket */
    f.tokens[7 * S] = 1234567;
    prefix_call call = {0, 3, 9, f.tokens + 7 * S, &page, 1};
    expect_number(prefix_world_publish(&f.w, &call), PKV_OK);
    const uint64_t id = f.w.model.held[8].id;
    go_on_from_here(&f);
    expect_that(count_found(&f, id, id + 1, 8) >= 1); /* none has it yet */
    expect_that(count_found(&f, id, UINT64_MAX, 8) >= 1);
    expect_number(count_found(&f, id, 0, 8), 2);      /* of the page, and the last one given */
    expect_number(count_found(&f, id, id - 1, 8), 2); /* another content's */
    expect_number(count_found(&f, 3, 12345, 8), 4);   /* of two pages, and of the two behind them */
    expect_number(count_found(&f, 3, 0, 8), 4);
    expect_number(count_found(&f, 4, id, 8), 3);      /* of two pages, and of the parent */
    expect_number(count_found(&f, prefix_hash_same(NULL, 0, 0), 0, 8), 10);
    expect_number(count_found(&f, prefix_hash_same(NULL, 0, 0), UINT64_MAX - 1, 8), 10);
    drop(&f);
}

/* Two pages of one content: one of them under another's id. */
static void test_check_finds_twins_of_two_ids(void **state)
{
    (void)state;
    fixture       f;
    const int32_t pages[] = {8, 9};
    make(&f, 0, prefix_hash_fnv);
    for (int i = 0; i < 2; i++) {
        prefix_call call = {0, -1, 77, f.tokens, pages + i, 1};
        expect_number(prefix_world_publish(&f.w, &call), PKV_OK);
    }
    const uint64_t id = f.w.model.held[9].id;
    expect_number(count_found(&f, id, id - 1, 8), 3); /* of both, and the last one given */
    drop(&f);
}

/* Tokens of a sequence's first page, and of one that has a twin. */
static void test_check_finds_wrong_tokens(void **state)
{
    (void)state;
    fixture f;
    make(&f, 0, prefix_hash_fnv);
    for (uint32_t token = 1; token <= 4 * S; token++) {
        const int32_t  page = (int32_t)(token - 1) / S;
        const int32_t *of_page = NULL;
        int            n_found = 0;
        for (int32_t g = 0; g < 2; g++) {
            pkv_prefix_event e;
            pkv_error        err;
            expect_ok(pkv_prefix_page(f.w.prefix, 4 * g + page, &e, &err), &err);
            of_page = e.tokens;
            const size_t   at = (size_t)((const unsigned char *)of_page - f.w.memory[1]) +
                              (token - 1) % S * sizeof token;
            const uint32_t other = token + 100;
            memcpy(f.w.memory[1] + at, &other, sizeof other);
            n_found += pkv_prefix_check(f.w.prefix, &err) == PKV_E_CORRUPT;
            memcpy(f.w.memory[1] + at, &token, sizeof token);
        }
        expect_number(n_found, 2);
    }
    drop(&f);
}

/*
 * The two links that a page brings, the one to it and the one behind it, become any
 * other number: no page, no end of a chain, itself, a page of this bucket or of another.
 */
static void test_check_finds_wrong_links(void **state)
{
    (void)state;
    const pkv_hash hashes[] = {prefix_hash_fnv, prefix_hash_same, prefix_hash_two_bits};
    for (int h = 0; h < 3; h++) {
        fixture       f;
        const int32_t page = 8;
        int           n_links = 0;
        make(&f, 0, hashes[h]);
        note_case("links", 0, "hash %d", h);
        prefix_call call = {0, -1, 77, f.tokens, &page, 1};
        expect_number(prefix_world_publish(&f.w, &call), PKV_OK);
        for (size_t i = 0; i < f.w.bytes[1]; i += sizeof page) {
            unsigned char *at = f.w.memory[1] + i;
            int32_t        before, link;
            pkv_error      err;
            memcpy(&before, f.before[1] + i, sizeof before);
            memcpy(&link, at, sizeof link);
            if (link == before || (link != page && before != -2)) {
                continue;
            }
            n_links++;
            for (int32_t to = -3; to <= PAGES; to++) {
                memcpy(at, &to, sizeof to);
                expect_number(pkv_prefix_check(f.w.prefix, &err),
                              to == link ? PKV_OK : PKV_E_CORRUPT);
            }
            memcpy(at, &link, sizeof link);
        }
        expect_number(n_links, 2);
        drop(&f);
    }
}

/* A page that is published and not kept, which no call can bring about. */
static void test_check_finds_a_page_that_is_not_kept(void **state)
{
    (void)state;
    fixture       f;
    const int32_t page = 8;
    int           n_found = 0;
    make(&f, 0, prefix_hash_fnv);
    prefix_call call = {0, 3, 9, f.tokens, &page, 1};
    expect_number(prefix_world_publish(&f.w, &call), PKV_OK);
    for (size_t i = 0; i < f.w.bytes[0]; i += sizeof(uint64_t)) {
        unsigned char *at = f.w.memory[0] + i;
        uint64_t       word;
        pkv_error      err;
        memcpy(&word, at, sizeof word);
        if (memcmp(at, f.before[0] + i, sizeof word) != 0) {
            memcpy(at, f.before[0] + i, sizeof word);
            n_found += pkv_prefix_check(f.w.prefix, &err) == PKV_E_CORRUPT && err.index == page;
            memcpy(at, &word, sizeof word);
        }
    }
    expect_number(n_found, 1);
    drop(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_find),
        cmocka_unit_test(test_publish),
        cmocka_unit_test(test_publish_of_nothing),
        cmocka_unit_test(test_inside_a_reservation),
        cmocka_unit_test(test_queries),
        cmocka_unit_test(test_check_finds_each_word),
        cmocka_unit_test(test_check_finds_wrong_ids),
        cmocka_unit_test(test_check_finds_twins_of_two_ids),
        cmocka_unit_test(test_check_finds_wrong_tokens),
        cmocka_unit_test(test_check_finds_wrong_links),
        cmocka_unit_test(test_check_finds_a_page_that_is_not_kept),
    };
    return cmocka_run_group_tests_name("prefix_refusals", tests, NULL, NULL);
}
