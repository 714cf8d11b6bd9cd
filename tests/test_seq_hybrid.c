/*
 * A hybrid model from end to end: layers 0 and 1 read all tokens (group 0), layer
 * 2 a window (group 1), layer 3 reads layer 2's cache.  Two requests with the
 * same system prompt, a fork, a window that moves on; the bytes of every token
 * are looked up in every layer's cache.
 */
#include "support.h"

#include <string.h>
#include <xxhash.h>

enum {
    S = 4, P = 64, D = 8, ROW_BYTES = 2 * D * 2, LAYERS = 5, OWN_LAYERS = 3, GROUPS = 2,
    WINDOW = 9, SEQS = 4, TOKENS = 80, SLOTS = P * S, MAX_STEP = 100
};

static const int32_t LAYER_GROUPS[LAYERS] = {0, 0, 1, 1, 0};

typedef struct engine {
    pkv_pool      *pool;
    pkv_seqs      *seqs;
    pkv_prefix    *index;
    unsigned char *memory[LAYERS]; /* 3: layer 2's; 4: said to be shared, with memory that tells */
    pkv_cache      caches[LAYERS];
    pkv_seq        seq[SEQS];
    int64_t        n_tokens[SEQS];
    int32_t        token[SEQS][TOKENS];
} engine;

static uint64_t hash(const void *data, size_t bytes, uint64_t seed)
{
    return XXH3_64bits_withSeed(data, bytes, seed);
}

/* What a layer computes for token t of these: it depends on all in front. */
static void compute_row(const int32_t *tokens, int64_t t, int layer, unsigned char *row)
{
    uint64_t of_all = hash(tokens, (size_t)(t + 1) * sizeof *tokens, (uint64_t)layer);
    fill(row, ROW_BYTES, FILL_RANDOM, of_all);
}

static void open_engine(engine *e)
{
    pkv_error         err;
    pkv_pool_config   pool = {.struct_size = sizeof pool, .n_pages = P};
    pkv_seqs_config   seqs = {.struct_size = sizeof seqs, .max_seqs = SEQS,
                              .max_pages_per_seq = TOKENS / S, .page_size = S,
                              .n_groups = GROUPS};
    pkv_prefix_config index = {.struct_size = sizeof index, .page_size = S, .n_groups = GROUPS,
                               .groups = {{0, 0}, {WINDOW, 0}}, .hash = hash};
    memset(e, 0, sizeof *e);
    expect_ok(pkv_pool_create(&pool, NULL, &e->pool, &err), &err);
    expect_ok(pkv_seqs_create(&seqs, e->pool, NULL, &e->seqs, &err), &err);
    expect_ok(pkv_prefix_create(&index, e->pool, NULL, &e->index, &err), &err);
    for (int l = 0; l < LAYERS; l++) {
        e->memory[l] = l == 3 ? e->memory[2] : test_alloc(SLOTS * ROW_BYTES);
        memset(e->memory[l], 0x5A, SLOTS * ROW_BYTES);
        expect_ok(pkv_cache_combined(&e->caches[l], sizeof e->caches[l], e->memory[l], P, S, 1, D,
                                     PKV_DTYPE_BF16), NULL);
        e->caches[l].flags = l >= OWN_LAYERS ? PKV_CACHE_SHARED : 0;
    }
}

static void close_engine(engine *e)
{
    pkv_error err;
    expect_ok(pkv_prefix_check(e->index, &err), &err);
    pkv_prefix_destroy(e->index);
    pkv_seqs_destroy(e->seqs);
    expect_ok(pkv_pool_check(e->pool, &err), &err);
    pkv_pool_destroy(e->pool);
    for (int l = 0; l < LAYERS; l++) {
        if (l != 3) {
            free(e->memory[l]);
        }
    }
}

/* In every token's slot in every layer is what was computed for it, unless its page was dropped. */
static void check_bytes(const engine *e)
{
    pkv_error     err;
    unsigned char row[ROW_BYTES];
    expect_ok(pkv_seqs_check(e->seqs, 1, &err), &err);
    for (int s = 0; s < SEQS; s++) {
        pkv_seq_state info = {.struct_size = sizeof info};
        if (e->seq[s] == 0) {
            continue;
        }
        expect_ok(pkv_seq_info(e->seqs, e->seq[s], &info, &err), &err);
        assert_int_equal(info.n_tokens, e->n_tokens[s]);
        for (int l = 0; l < LAYERS - 1; l++) {
            for (int64_t t = 0; t < info.n_tokens; t++) {
                int32_t page = info.pages[LAYER_GROUPS[l] * info.pages_stride + t / S];
                assert_true(page >= 0 || (LAYER_GROUPS[l] == 1 && t <= info.n_tokens - WINDOW));
                if (page >= 0) {
                    compute_row(e->token[s], t, l == 3 ? 2 : l, row);
                    expect_same_bytes("token", e->memory[l] + (page * S + t % S) * ROW_BYTES, row,
                                      ROW_BYTES);
                }
            }
        }
    }
    for (int64_t i = 0; i < SLOTS * ROW_BYTES; i++) {
        assert_int_equal(e->memory[4][i], 0x5A);
    }
}

/* All layers' rows of the step; a layer that shares computes some too, which go nowhere. */
static void write_step(engine *e, const pkv_seq *handles, const int *which, const int32_t *n_tokens,
                       int64_t n)
{
    static unsigned char rows[LAYERS][MAX_STEP * ROW_BYTES];
    int32_t              computed[SEQS], scheduled[SEQS], table_rows[SEQS];
    int64_t              total = 0;
    slice_list           lists[GROUPS];
    pkv_slices           groups[GROUPS];
    pkv_new_kv           new_kvs[LAYERS];
    pkv_batch            batch;
    pkv_error            err;
    for (int32_t g = 0; g < GROUPS; g++) {
        expect_ok(pkv_seqs_batch(e->seqs, g, handles, n, computed, scheduled, table_rows, &batch,
                                 &err), &err);
        batch.n_pages = P;
        slice_list_init(&lists[g], MAX_STEP);
        expect_ok(pkv_plan(&batch, g == 0 ? 0 : S, &lists[g].view, &total, &err), &err);
        groups[g] = lists[g].view;
    }
    for (int l = 0; l < LAYERS; l++) {
        unsigned char *row = rows[l];
        for (int64_t i = 0; i < n; i++) {
            for (int32_t t = computed[i]; t < computed[i] + n_tokens[i]; t++, row += ROW_BYTES) {
                compute_row(e->token[which[i]], t, l, row);
            }
        }
        expect_ok(pkv_new_kv_combined(&new_kvs[l], sizeof new_kvs[l], rows[l], total, 1, D,
                                      PKV_DTYPE_BF16), NULL);
    }
    expect_ok(pkv_update_layers(e->caches, new_kvs, LAYER_GROUPS, LAYERS, groups, GROUPS, NULL,
                                &err), &err);
    slice_list_free(&lists[0]);
    slice_list_free(&lists[1]);
}

/* A step as an engine runs it; sequence which[i] goes on with n_tokens[i] tokens behind its hit. */
static int64_t run_step(engine *e, const int *which, const int32_t *n_tokens,
                        const pkv_prefix_hit *hits, int64_t n)
{
    pkv_seq       handles[SEQS];
    pkv_page_copy copies[SEQS * GROUPS];
    int64_t       n_copies = 0;
    pkv_error     err;
    for (int64_t i = 0; i < n; i++) {
        handles[i] = e->seq[which[i]];
    }
    expect_ok(pkv_seqs_reserve(e->seqs, handles, n_tokens, hits, n, 1, copies, SEQS * GROUPS,
                               &n_copies, &err), &err);
    for (int64_t c = 0; c < n_copies; c++) {
        for (int l = 0; l < OWN_LAYERS; l++) {
            if (LAYER_GROUPS[l] == copies[c].group) {
                memcpy(e->memory[l] + copies[c].dst * S * ROW_BYTES,
                       e->memory[l] + copies[c].src * S * ROW_BYTES,
                       (size_t)copies[c].n_tokens * ROW_BYTES);
            }
        }
    }
    write_step(e, handles, which, n_tokens, n);
    expect_ok(pkv_seqs_commit(e->seqs, &err), &err);
    for (int64_t i = 0; i < n; i++) {
        e->n_tokens[which[i]] += n_tokens[i] + (hits != NULL ? hits[i].n_pages * S : 0);
    }
    check_bytes(e);
    return n_copies;
}

static void publish(engine *e, int s)
{
    pkv_error err;
    expect_ok(pkv_seq_publish(e->seqs, e->seq[s], e->index, 0, e->token[s], e->n_tokens[s], &err),
              &err);
}

/* Decode steps of both, and what their windows have passed goes. */
static void decode(engine *e, int n_steps)
{
    static const int     both[] = {0, 1};
    static const int32_t one[] = {1, 1};
    pkv_error            err;
    for (int i = 0; i < n_steps; i++) {
        run_step(e, both, one, NULL, 2);
        for (int s = 0; s < 2; s++) {
            int64_t passed = e->n_tokens[s] - WINDOW + 1;
            publish(e, s);
            expect_ok(pkv_seq_drop(e->seqs, e->seq[s], 1, 0, passed > 0 ? passed : 0, &err), &err);
        }
        check_bytes(e);
    }
}

static void test_hybrid(void **state)
{
    (void)state;
    engine         e;
    pkv_error      err;
    int32_t        found[GROUPS * TOKENS / S], n_tokens[] = {23, 0, 1};
    const int      which[] = {0, 1, 2};
    pkv_prefix_hit none_and_hit[2] = {{0}};
    note_case("hybrid", 0, "S %d, P %d", S, P);
    open_engine(&e);
    for (int s = 0; s < SEQS; s++) {
        for (int t = 0; t < TOKENS; t++) {
            e.token[s][t] = t < 20 ? 100 + t : 1000 * s + t; /* five pages alike */
        }
        expect_ok(pkv_seq_open(e.seqs, &e.seq[s], &err), &err);
    }
    run_step(&e, which, n_tokens, NULL, 1);
    publish(&e, 0);
    expect_ok(pkv_prefix_find(e.index, 0, e.token[1], 30, found, TOKENS / S, &none_and_hit[1],
                              &err), &err);
    assert_int_equal(none_and_hit[1].n_pages, 5);
    /* The token at 20 reads from 12 on. */
    assert_true(found[TOKENS / S + 2] < 0 && found[TOKENS / S + 3] >= 0);
    n_tokens[0] = 4;
    n_tokens[1] = 30 - 20;
    assert_int_equal(run_step(&e, which, n_tokens, none_and_hit, 2), 0);
    decode(&e, 25);
    /* A fork in the middle of a page writes: a copy in both groups, the shared layer has none. */
    expect_ok(pkv_seq_close(e.seqs, e.seq[2], &err), &err);
    expect_ok(pkv_seq_fork(e.seqs, e.seq[0], e.n_tokens[0] - 1, &e.seq[2], &err), &err);
    memcpy(e.token[2], e.token[0], sizeof e.token[0]);
    e.n_tokens[2] = e.n_tokens[0] - 1;
    e.token[2][e.n_tokens[2]] = -5;
    assert_int_equal(run_step(&e, &which[2], &n_tokens[2], NULL, 1), GROUPS);
    decode(&e, 3);
    close_engine(&e);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_hybrid)};
    return cmocka_run_group_tests_name("seq_hybrid", tests, NULL, NULL);
}
