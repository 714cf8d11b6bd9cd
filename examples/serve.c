/* Two requests with the same system prompt, served from one pool of pages.
 *
 *     cc examples/serve.c $(pkg-config --cflags --libs pagedkv libxxhash) && ./a.out
 *
 * The first one computes the prompt and publishes its pages; the second one finds
 * them and computes only what is its own.  A fork of it goes another way.
 */
#include <pagedkv/pagedkv.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum { P = 64, S = 16, H = 2, D = 64, MAX_SEQS = 8, WIDTH = 16, MAX_TOKENS = 64, N = 16 };
enum { ROW_BYTES = 2 * H * D * 2 }; /* K and V of a token, bf16 */

static pkv_pool   *pool;      /* who owns which page */
static pkv_seqs   *seqs;      /* which pages hold which sequence */
static pkv_prefix *prompts;   /* which pages hold the beginning of a prompt */
static pkv_cache   cache;     /* one layer's keys and values */
static char        memory[P * S * ROW_BYTES], new_rows[MAX_TOKENS * ROW_BYTES];
static pkv_error   err = {.code = PKV_E_INVALID, .what = "a builder refused its sizes",
                                .index = -1, .layer = -1};

static void check(pkv_status status)
{
    char line[256];
    if (status != PKV_OK) {
        pkv_error_format(&err, line, sizeof line);
        fprintf(stderr, "%s\n", line);
        exit(1);
    }
}

static uint64_t hash(const void *data, size_t bytes, uint64_t seed)
{
    return XXH3_64bits_withSeed(data, bytes, seed);
}

/* A step of n sequences: their pages, the copies, the plan, the new rows; then it is done. */
static void step(const char *what, const pkv_seq *of, const int32_t *n_tokens,
                 const pkv_prefix_hit *begin_with, int64_t n)
{
    int32_t       computed[MAX_SEQS], scheduled[MAX_SEQS], rows[MAX_SEQS], columns[3 * N], n_slices;
    pkv_page_copy copies[MAX_SEQS];
    int64_t       n_copies, total;
    pkv_batch     batch;
    pkv_slices    slices;
    pkv_new_kv    new_kv;
    printf("%s:\n", what);
    check(pkv_seqs_reserve(seqs, of, n_tokens, begin_with, n, 1, copies, MAX_SEQS, &n_copies,
                           &err));
    for (const pkv_page_copy *c = copies; c < copies + n_copies; c++) {
        memcpy(memory + c->dst * S * ROW_BYTES, memory + c->src * S * ROW_BYTES,
               (size_t)c->n_tokens * ROW_BYTES);
        printf("    copied %2d tokens of page %d to page %d\n", c->n_tokens, c->src, c->dst);
    }
    check(pkv_seqs_batch(seqs, 0, of, n, computed, scheduled, rows, &batch, &err));
    check(pkv_slices_from_array(&slices, sizeof slices, columns, N, &n_slices));
    check(pkv_plan(&batch, 0, &slices, &total, &err));
    /* Here the model runs; new_rows are what it computed, in each layer. */
    check(pkv_new_kv_combined(&new_kv, sizeof new_kv, new_rows, total, H, D, PKV_DTYPE_BF16));
    check(pkv_update(&cache, &new_kv, &slices, NULL, &err));
    check(pkv_seqs_commit(seqs, &err));
    for (int32_t i = 0; i < n_slices; i++) {
        printf("    wrote  %2d tokens from page %d, offset %d on\n", slices.slice_len[i],
               slices.kv_cache_start[i] / S, slices.kv_cache_start[i] % S);
    }
}

static void print_counts(const char *when)
{
    pkv_pool_counts c = {.struct_size = sizeof c};
    check(pkv_pool_stats(pool, &c, &err));
    printf("%s: %d pages used, %d of them shared, %d cached\n", when, (int)c.n_used,
           (int)c.n_shared, (int)c.n_cached);
}

int main(void)
{
    pkv_pool_config   of_pool = {.struct_size = sizeof of_pool, .n_pages = P};
    pkv_seqs_config   of_seqs = {.struct_size = sizeof of_seqs, .max_seqs = MAX_SEQS,
                                 .max_pages_per_seq = WIDTH, .page_size = S};
    pkv_prefix_config of_prompts = {.struct_size = sizeof of_prompts, .page_size = S,
                                    .n_groups = 1, .hash = hash};
    int32_t           tokens_a[50], tokens_b[50], pages[WIDTH];
    pkv_seq           a, b, both[2];
    pkv_prefix_hit    found;
    check(pkv_cache_combined(&cache, sizeof cache, memory, P, S, H, D, PKV_DTYPE_BF16));
    check(pkv_pool_create(&of_pool, NULL, &pool, &err));
    check(pkv_seqs_create(&of_seqs, pool, NULL, &seqs, &err));
    check(pkv_prefix_create(&of_prompts, pool, NULL, &prompts, &err));
    for (int i = 0; i < 50; i++) { /* 40 tokens of the system prompt, then their own */
        tokens_a[i] = i < 40 ? i : 1000 + i;
        tokens_b[i] = i < 40 ? i : 2000 + i;
    }
    check(pkv_seq_open(seqs, &a, &err));
    step("request A, 50 tokens", &a, (int32_t[]){50}, NULL, 1);
    check(pkv_seq_publish(seqs, a, prompts, 0, tokens_a, 50, &err));

    check(pkv_prefix_find(prompts, 0, tokens_b, 45, pages, WIDTH, &found, &err));
    printf("request B, 45 tokens: %d of them are in %d pages of A\n", (int)found.n_pages * S,
           (int)found.n_pages);
    check(pkv_seq_open(seqs, &b, &err));
    step("the others", &b, (int32_t[]){45 - (int32_t)found.n_pages * S}, &found, 1);

    step("a token for each", (pkv_seq[]){a, b}, (int32_t[]){1, 1}, NULL, 2);
    both[0] = b;
    check(pkv_seq_fork(seqs, b, 46, &both[1], &err));
    print_counts("B is forked");
    step("a token for the fork", &both[1], (int32_t[]){1}, NULL, 1);
    step("a token for both", both, (int32_t[]){1, 1}, NULL, 2);

    check(pkv_seqs_clear(seqs, &err));
    print_counts("all are closed");
    pkv_prefix_destroy(prompts);
    pkv_seqs_destroy(seqs);
    pkv_pool_destroy(pool);
    return 0;
}
